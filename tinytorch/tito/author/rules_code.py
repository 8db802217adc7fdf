"""Rules about the code of a dev file: tests that can fail, the order of cells, imports, definitions."""

import ast
import sys

from tinytorch.tito.author.dev_file import DevCell, DevFile
from tinytorch.tito.author.rules_form import Found
from tinytorch.tito.project import EXPORT_TARGET

MODULE_POINTS = 100


def check_tests(dev: DevFile) -> Found:
    """A test must be able to fail, and must not hide what failed."""
    for cell in dev.code:
        can_fail = False
        for node in cell.statements():
            if isinstance(node, ast.Assert):
                can_fail = True
                if isinstance(node.test, ast.Constant | ast.Tuple) and (
                    isinstance(node.test, ast.Tuple) or node.test.value
                ):
                    yield cell.line_of(node), "assert-true", "this assertion cannot fail"
            elif isinstance(node, ast.Raise):
                can_fail = True
            elif isinstance(node, ast.ExceptHandler):
                if node.type is None:
                    yield cell.line_of(node), "bare-except", "name the exception"
                elif _is_everything(node.type) and all(isinstance(n, ast.Pass) for n in node.body):
                    yield cell.line_of(node), "swallowed-exception", "every error disappears here"
        if cell.kind == "test" and cell.tree is not None:
            if not can_fail:
                yield cell.line, "test-without-assert", "a graded test asserts something"
            if cell.is_exported:
                yield cell.line, "exported-test", "a graded test does not belong in the package"


def check_order(dev: DevFile) -> Found:
    """A test stands after the solution that it tests and after all that it uses."""
    defined_at: dict[str, DevCell] = {}
    for cell in reversed(dev.code):
        for name in _defined_names(cell):
            defined_at[name] = cell
    marked = [cell for cell in dev.code if cell.kind == "solution"]
    solutions = {cell.metadata.get("grade_id"): cell for cell in marked}
    for cell in dev.code:
        if cell.kind != "test":
            continue
        tested = solutions.get(str(cell.metadata.get("grade_id")).removeprefix("test-"))
        if tested and tested.line > cell.line:
            yield cell.line, "test-too-early", f"its solution comes only in line {tested.line}"
        for name in sorted(_used_names(cell)):
            if name in defined_at and defined_at[name].line > cell.line:
                yield cell.line, "test-too-early", f"{name} comes only in line {defined_at[name].line}"


def check_imports(dev: DevFile) -> Found:
    """Earlier modules come from the package, later ones never; exported code needs NumPy alone."""
    for cell in dev.code:
        for node in cell.statements():
            for name in _imported(node):
                line = cell.line_of(node)
                if name.split(".")[0] == "tinytorch":
                    yield from check_own_import(dev, line, name.removeprefix("tinytorch").removeprefix("."))
                elif cell.is_exported and name.split(".")[0] not in sys.stdlib_module_names | {"numpy"}:
                    yield line, "export-import", f"exported code needs NumPy alone, not {name}"
            if isinstance(node, ast.ImportFrom) and node.level:
                yield cell.line_of(node), "relative-import", "write `from tinytorch... import ...`"


def check_own_import(dev: DevFile, line: int, name: str) -> Found:
    if name.split(".")[0] == "pretrained":  # hand-written, needs no module: readers of weight files
        return
    target = next((t for t in (name, name.rpartition(".")[0]) if t in dev.targets), None)
    if target is None:
        if not EXPORT_TARGET.fullmatch(name):
            yield line, "import-from", f"name the module: tinytorch.{name or '...'} is not one"
        else:
            yield line, "import-from", f"no dev file exports tinytorch.{name}"
    elif dev.targets[target] == dev.module.label:
        yield line, "import-self", f"{target} is this file: use the names of its own cells"
    elif dev.targets[target] > dev.module.label:
        yield line, "import-later", f"{target} belongs to {dev.targets[target]}, which comes later"


def check_definitions(dev: DevFile) -> Found:
    """nbdev exports both of two definitions of a name; the second silently wins."""
    seen: dict[str, int] = {}
    for cell in dev.code:
        if not cell.is_exported or not cell.tree:
            continue
        for node in cell.tree.body:
            name = getattr(node, "name", "_")  # `_`: `@gradient_of(...) def _(...)` registers, unnamed
            if name in seen:
                yield cell.line_of(node), "defined-twice", f"{name} stands in line {seen[name]} too"
            elif name != "_":
                seen[name] = cell.line_of(node)


def check_whole(dev: DevFile) -> Found:
    kinds = [cell.kind for cell in dev.cells]
    points = sum(_points(cell) for cell in dev.cells if cell.kind)
    if points != MODULE_POINTS:
        yield 1, "points-total", f"the graded cells give {points:g} points, not {MODULE_POINTS}"
    if "written" not in kinds and "task" not in kinds:
        yield 1, "no-written-question", "a module asks a question to be answered in words"
    if not any("### BEGIN HIDDEN TESTS" in cell.source for cell in dev.code if cell.kind == "test"):
        yield 1, "no-hidden-tests", "a module has at least one test cell with hidden tests"
    if not any(cell.is_exported for cell in dev.code):
        yield 1, "nothing-exported", "no cell says `#| export`"


def _points(cell: DevCell) -> float:
    points = cell.metadata.get("points", 0)
    return points if isinstance(points, int | float) else 0


def _is_everything(node: ast.expr) -> bool:
    return isinstance(node, ast.Name) and node.id in ("Exception", "BaseException")


def _imported(node: ast.AST) -> list[str]:
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom) and not node.level:
        if node.module == "tinytorch":  # `from tinytorch import core`
            return [f"tinytorch.{alias.name}" for alias in node.names]
        return [node.module]
    return []


def _defined_names(cell: DevCell) -> set[str]:
    """The names that the top level of a cell binds for good (not the loop variables of its tests)."""
    names = set()
    for node in cell.tree.body if cell.tree else ():
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            names.add(node.name)
        elif isinstance(node, ast.Assign):
            names |= {target.id for target in node.targets if isinstance(target, ast.Name)}
        elif isinstance(node, ast.Import | ast.ImportFrom):
            names |= {(alias.asname or alias.name).split(".")[0] for alias in node.names}
    return names


def _used_names(cell: DevCell) -> set[str]:
    """The names that a cell reads and does not bind itself, anywhere in it."""
    used, bound = set(), _defined_names(cell)
    for node in cell.statements():
        if isinstance(node, ast.Name):
            (used if isinstance(node.ctx, ast.Load) else bound).add(node.id)
        elif isinstance(node, ast.arg):
            bound.add(node.arg)
    return used - bound


CODE_RULES = (
    check_tests,
    check_order,
    check_imports,
    check_definitions,
    check_whole,
)
