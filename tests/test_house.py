"""How the hand-written parts of the package stand to what students export, told from their syntax trees."""

import ast
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

from tinytorch.tito.project import EXPORT_FOLDERS
from toy import REPO

PACKAGE = REPO / "tinytorch"
STUDENTS = tuple(f"tinytorch.{part}" for part in EXPORT_FOLDERS)
ON_THEM = ("tinytorch.caches",)  # written by hand, on top of what is exported
TITO = sorted((PACKAGE / "tito").rglob("*.py"))


def imports(path: Path) -> set[str]:
    """Every name of tinytorch that the file imports, at its top, in a function or by a constant string."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path}: write `from tinytorch... import ...`"
            names |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Call) and getattr(node.func, "attr", "") == "import_module":
            names |= {arg.value for arg in node.args if isinstance(arg, ast.Constant)}
    return {name for name in names if name.startswith("tinytorch.")}


def is_in(name: str, parts: tuple[str, ...]) -> bool:
    return any(f"{name}.".startswith(f"{part}.") for part in parts)


def test_imports_are_found(tmp_path):
    file = tmp_path / "file.py"
    file.write_text(
        "import tinytorch.core.tensor\n"
        "def f():\n    from tinytorch import text\n    importlib.import_module('tinytorch.models.llama')\n"
    )
    assert imports(file) == {"tinytorch.core.tensor", "tinytorch.text", "tinytorch.models.llama"}
    assert all(is_in(name, STUDENTS) for name in imports(file))


@pytest.mark.parametrize("part", ["tito", "pretrained"])
def test_nothing_exported_is_imported(part):
    files = sorted((PACKAGE / part).rglob("*.py"))
    assert len(files) > 5
    for path in files:
        wrong = [name for name in imports(path) if is_in(name, STUDENTS + ON_THEM)]
        assert not wrong, f"{path.relative_to(REPO)} imports {', '.join(sorted(wrong))}, which students write"


def test_the_tool_has_no_circle():
    names = {".".join(path.relative_to(REPO).with_suffix("").parts): path for path in TITO}
    graph = {name: imports(path) & names.keys() - {name} for name, path in names.items()}
    assert list(TopologicalSorter(graph).static_order())  # CycleError names the circle


def test_rooms_are_small():
    for path in TITO:
        text = path.read_text(encoding="utf-8")
        assert len(text.splitlines()) <= 400, f"{path.relative_to(REPO)} has {len(text.splitlines())} lines"
        for node in ast.parse(text).body:
            if isinstance(node, ast.ClassDef):
                lines = node.end_lineno - node.lineno + 1
                assert lines <= 200, f"{path.relative_to(REPO)}: {node.name} has {lines} lines"


def public_functions(body, owner=""):
    for node in body:
        if isinstance(node, ast.ClassDef):
            yield from public_functions(node.body, f"{node.name}.")
        elif isinstance(node, ast.FunctionDef):
            if not node.name.startswith("_") or node.name.startswith("__"):
                yield f"{owner}{node.name}", node, bool(owner)


def without_type(name, node, is_method) -> list[str]:
    """The arguments of a function that say no type, and "->" if it does not say what it gives."""
    arguments = [*node.args.posonlyargs, *node.args.args][is_method:] + node.args.kwonlyargs
    arguments += [star for star in (node.args.vararg, node.args.kwarg) if star]
    if is_method and any(getattr(d, "id", "") == "staticmethod" for d in node.decorator_list):
        arguments = [*node.args.args[:1], *arguments]
    missing = [argument.arg for argument in arguments if argument.annotation is None]
    return missing + ["->"] * (node.returns is None and node.name != "__init__")


def test_missing_types_are_found():
    source = "class A:\n    def f(self, x: int, *y, z=1): ...\n    def _g(self): ...\ndef h(x) -> int: ...\n"
    found = {name: without_type(name, *rest) for name, *rest in public_functions(ast.parse(source).body)}
    assert found == {"A.f": ["z", "y", "->"], "h": ["x"]}


def test_every_public_signature_says_its_types():
    for path in sorted(PACKAGE.rglob("*.py")):
        for name, *rest in public_functions(ast.parse(path.read_text(encoding="utf-8")).body):
            missing = without_type(name, *rest)
            assert not missing, f"{path.relative_to(REPO)}: {name} has no type for {', '.join(missing)}"


def test_no_two_things_have_one_name():
    """Scripts that run in other processes stand alone, and each command's function is `command`."""
    owners: dict[str, Path] = {}
    for path in TITO:
        if path.stem.endswith("_script"):
            continue
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            names = [getattr(node, "name", "_")] if not isinstance(node, ast.Assign) else []
            names += [target.id for target in getattr(node, "targets", ()) if isinstance(target, ast.Name)]
            for name in names:
                if not name.startswith("_") and name != "command":
                    assert name not in owners, f"{name} stands in {owners[name].name} and in {path.name}"
                    owners[name] = path
