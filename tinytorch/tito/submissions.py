"""What students hand in, looked at before anything of it runs: repaired where that is safe, else refused."""

# Nothing here executes a student's code, and nothing writes to a student's folder.

import ast
import copy
import os
import re
import stat
from dataclasses import dataclass, field
from pathlib import Path

from tinytorch.tito.export import KERNELSPEC
from tinytorch.tito.project import DEFAULT_EXP, Module
from tinytorch.tito.runner import RunnerError, read_notebook

SIZE_LIMIT = 20_000_000  # bytes of a notebook
CELL_LIMIT = 2_000
STUDENT_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@+-]{0,99}")
EXPORTS = re.compile(r"^#[ \t]*\|[ \t]*exports?i?\b", re.MULTILINE)
HIDDEN = re.compile(r"^[ \t]*### BEGIN HIDDEN TESTS.*?### END HIDDEN TESTS[ \t]*\n", re.MULTILINE | re.DOTALL)
MARKER = re.compile(r"(?:BEGIN|END) HIDDEN TESTS")

# What reaches for the machinery around the code. Solutions need none of it, unless the reference does.
REACHING = {
    *("eval", "exec", "compile", "__import__", "globals", "locals", "vars", "setattr", "delattr", "open"),
    *("exit", "quit", "breakpoint", "input", "__builtins__", "__loader__", "__spec__", "get_ipython"),
    *("sys", "os", "modules", "__globals__", "__dict__", "__code__", "__closure__", "__subclasses__"),
    *("__bases__", "__mro__", "__base__", "f_back", "f_globals", "f_locals", "f_builtins", "tb_frame"),
    *("gi_frame", "cr_frame", "_getframe", "__getattribute__", "__getattr__", "__class__", "__wrapped__"),
    *("__eq__", "__ne__", "__lt__", "__le__", "__gt__", "__ge__", "__bool__", "__hash__", "__array_ufunc__"),
    *("__array_function__", "__instancecheck__", "__subclasscheck__", "__array_wrap__", "__array_finalize__"),
    *("__array__", "__array_interface__", "__array_priority__", "__rsub__", "__abs__", "__del__", "testing"),
    *("__set_name__", "__init_subclass__", "__class_getitem__", "__prepare__", "metaclass"),
}
IMPORTS = {
    *("abc", "bisect", "collections", "copy", "dataclasses", "decimal", "enum", "fractions", "functools"),
    *("heapq", "itertools", "math", "numbers", "numpy", "operator", "random", "re", "statistics", "string"),
    *("time", "tinytorch", "typing", "warnings", "__future__"),
}


class Refused(Exception):
    """This submission cannot be graded; the text says why."""


@dataclass
class Submission:
    """One student's notebook, ready to be graded."""

    student: str
    notebook: dict  # repaired, hidden tests in it, no outputs
    visible: dict  # the same without hidden tests
    flags: list[str] = field(default_factory=list)  # what had to be repaired
    reaching: dict[int, str] = field(default_factory=dict)  # cell -> what it reaches for


def find_file(folder: Path, module: Module) -> tuple[Path | None, list[str]]:
    """The notebook in a student's submission folder, None if nothing was submitted; Refused says why not."""
    if not STUDENT_ID.fullmatch(folder.parent.name):
        raise Refused("the student's folder has a name that cannot be a student's ID")
    if folder.parent.is_symlink() or folder.is_symlink():
        raise Refused("the submission's folder is a symbolic link")
    if not folder.is_dir():
        return None, []
    path = folder / f"{module.name}.ipynb"
    if path.is_symlink() or path.exists():
        return path, []
    others = sorted(p for p in folder.iterdir() if p.suffix == ".ipynb" and not p.name.startswith("."))
    if not others:
        if any(folder.iterdir()):
            raise Refused(f"the submission holds no notebook {path.name}")
        return None, []
    if len(others) > 1:
        raise Refused(f"there is no {path.name}, and {len(others)} other notebooks: which one counts?")
    return others[0], ["the notebook had another name"]


def read_bytes(path: Path) -> bytes:
    """The file as it is; Refused if it is a link, no plain file, or too large."""
    try:
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0))
    except OSError as error:
        if path.is_symlink():
            raise Refused("the notebook is a symbolic link") from None
        raise Refused(f"the notebook cannot be read: {error.strerror}") from None
    with os.fdopen(descriptor, "rb") as file:
        if path.is_symlink():
            raise Refused("the notebook is a symbolic link")
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise Refused("the notebook is not a plain file")
        data = file.read(SIZE_LIMIT + 1)
    if len(data) > SIZE_LIMIT:
        raise Refused(f"the notebook is larger than {SIZE_LIMIT // 10**6} MB; hand it in without its outputs")
    if not data.strip():
        raise Refused("the notebook is an empty file")
    return data


def check(student: str, file: Path, released: dict, source: dict) -> Submission:
    """The copy `file` of a student's notebook, repaired; Refused says what is wrong with it.

    `released` is what students were given, `source` the same with hidden tests (and solutions).
    """
    try:
        notebook = read_notebook(file)
    except RunnerError as error:
        raise Refused(str(error).replace(str(file), "the file").removesuffix(".")) from None
    if len(notebook["cells"]) > CELL_LIMIT:
        raise Refused(f"the notebook has {len(notebook['cells'])} cells, the limit is {CELL_LIMIT}")
    flags = []
    kernel = notebook.get("metadata", {})
    kernel = kernel.get("kernelspec", {}) if isinstance(kernel, dict) else {}
    if isinstance(kernel, dict) and str(kernel.get("language", "python")).lower() not in (
        "python",
        "ipython",
    ):
        flags.append("the notebook was set to another kernel than Python")
    originals, tests = by_grade_id(released), by_grade_id(source)
    cells = _own_cells(notebook, originals, flags)
    if not any("nbgrader" in cell["metadata"] for cell in cells):
        raise Refused("none of its cells is a graded cell of this module: is it another notebook?")
    cells = _with_missing(cells, originals, flags)
    for grade_id, cell in ((_grade_id(cell), cell) for cell in cells):
        if grade_id and is_locked(originals[grade_id]):
            if _shown(cell["source"]) != _shown(originals[grade_id]["source"]):
                flags.append(f"`{grade_id}` was edited and is restored")
            cell["source"] = originals[grade_id]["source"]
    visible = _notebook(cells)
    graded = copy.deepcopy(visible)
    for cell in graded["cells"]:
        grade_id = _grade_id(cell)
        if grade_id and is_locked(originals[grade_id]):
            cell["source"] = tests[grade_id]["source"]
    exported = (cell["source"] for cell in source["cells"] if EXPORTS.search(cell["source"]))
    allowed = names_in("\n".join(exported))
    submission = Submission(student, graded, visible, flags)
    given = {cell["source"] for cell in released["cells"]}
    for index, cell in enumerate(visible["cells"]):
        if cell["cell_type"] == "code" and cell["source"] not in given:
            reason = reaches_for(cell["source"], allowed)
            if reason:
                submission.reaching[index] = reason
    return submission


def by_grade_id(notebook: dict) -> dict[str, dict]:
    return {_grade_id(cell): cell for cell in notebook["cells"] if _grade_id(cell)}


def _shown(source: str) -> str:
    """A test as students see it: without hidden lines, the white space around it left out."""
    return HIDDEN.sub("", source + "\n").strip()


def is_locked(cell: dict) -> bool:
    tags = cell["metadata"]["nbgrader"]
    return bool(tags.get("locked") or tags.get("grade")) and not tags.get("solution")


def is_automatic(cell: dict) -> bool:
    tags = cell["metadata"].get("nbgrader", {})
    return bool(cell["cell_type"] == "code" and tags.get("grade") and not tags.get("solution"))


def _grade_id(cell: dict) -> str | None:
    return cell["metadata"].get("nbgrader", {}).get("grade_id")


def _own_cells(notebook: dict, originals: dict, flags: list[str]) -> list[dict]:
    cells, seen = [], set()
    for cell in notebook["cells"]:
        text = cell["source"].encode("utf-8", "replace").decode()
        made = {"cell_type": cell["cell_type"], "source": text, "metadata": {}}
        if made["cell_type"] not in ("code", "markdown"):
            made["cell_type"] = "raw"
        grade_id = cell.get("metadata", {}).get("nbgrader", {}).get("grade_id")
        original = originals.get(grade_id)
        if original is None:
            if grade_id:
                flags.append(f"`{grade_id[:60]}` is no cell of this module; it does not count")
        elif grade_id in seen:
            flags.append(f"`{grade_id}` is there twice; the second one does not count")
            if is_locked(original):
                continue
        else:
            seen.add(grade_id)
            tags = cell["metadata"]["nbgrader"]
            if tags.get("points") != original["metadata"]["nbgrader"].get("points"):
                flags.append(f"the points of `{grade_id}` were changed and are restored")
            if made["cell_type"] != original["cell_type"]:
                flags.append(f"`{grade_id}` had become a {made['cell_type']} cell and is restored")
                made["cell_type"] = original["cell_type"]
            made["metadata"] = copy.deepcopy(original["metadata"])
        cells.append(made)
    order = [g for g in originals if g in seen]
    if [g for g in map(_grade_id, cells) if g] != order:
        flags.append("the module's cells stood in another order")
    return cells


def _with_missing(cells: list[dict], originals: dict, flags: list[str]) -> list[dict]:
    """The cells, each missing one put back behind the one that came before it."""
    here, before = {_grade_id(cell) for cell in cells}, None
    for grade_id, original in originals.items():
        if grade_id not in here:
            flags.append(f"`{grade_id}` was missing and is put back")
            place = 0
            for index, cell in enumerate(cells):
                if before and _grade_id(cell) == before:
                    place = index + 1
            cells.insert(place, copy.deepcopy({k: original[k] for k in ("cell_type", "source", "metadata")}))
        before = grade_id
    return cells


def _notebook(cells: list[dict]) -> dict:
    for index, cell in enumerate(cells):
        cell["id"] = f"cell-{index}"
        if cell["cell_type"] == "code":
            cell.update(outputs=[], execution_count=None)
    metadata = {"kernelspec": dict(KERNELSPEC), "language_info": {"name": "python"}}
    return {"cells": cells, "metadata": metadata, "nbformat": 4, "nbformat_minor": 5}


# ------------------------------------------------------------------------------------------- for the export


def for_export(
    submission: Submission, released: dict, target: str, failed: set[int]
) -> tuple[dict, list[str]]:
    """The notebook to be exported for the second check, and what was left out of it.

    A cell that does not compile, did not run, or reaches for the machinery is as it was handed out: one such
    cell costs what depends on it, not the whole module.
    """
    originals = by_grade_id(released)
    cells, notes = [{"cell_type": "code", "source": f"#| default_exp {target}", "metadata": {}}], []
    for index, cell in enumerate(submission.visible["cells"]):
        if cell["cell_type"] != "code" or DEFAULT_EXP.search(cell["source"]):
            continue
        grade_id = _grade_id(cell)
        if not EXPORTS.search(cell["source"]) and not (
            grade_id and EXPORTS.search(originals[grade_id]["source"])
        ):
            continue
        reason = submission.reaching.get(index) or _not_exportable(cell["source"])
        if index in failed or reason:
            if reason:
                notes.append(f"`{grade_id or 'a cell'}` does not count in the second check: {reason}")
            if grade_id is None:
                continue
            cell = originals[grade_id]
        cells.append({"cell_type": "code", "source": cell["source"], "metadata": {}})
    return _notebook(cells), notes


def _not_exportable(source: str) -> str | None:
    if MARKER.search(source):
        return "it holds a marker of hidden tests"
    try:
        ast.parse(source)
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        return f"it is no Python ({type(error).__name__})"
    return None


def names_in(source: str) -> set[str]:
    """Every name, attribute, keyword, imported module and text that looks like one."""
    names = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Name):
            names.add(node.id)
        elif isinstance(node, ast.Attribute):
            names.add(node.attr)
        elif isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            names.add(node.name)
        elif isinstance(node, ast.keyword) and node.arg:
            names.add(node.arg)
        elif isinstance(node, ast.Import):
            names |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names |= {(node.module or "").partition(".")[0], *(alias.name for alias in node.names)}
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and len(node.value) < 40:
            names.add(node.value)
    return names


def reaches_for(source: str, allowed: set[str]) -> str | None:
    """What of the machinery a cell reaches for that the reference does not; None if nothing."""
    try:
        tree = ast.parse(source)
        found = sorted((names_in(source) & REACHING) - allowed)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None
    if found:
        return f"it uses `{found[0]}`, which no solution needs"
    imported = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            modules = [alias.name for alias in node.names]
            imported |= {alias.asname or alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            modules = [node.module or "."]
            imported |= {alias.asname or alias.name for alias in node.names}
        else:
            continue
        for name in modules:
            if name.partition(".")[0] not in IMPORTS | allowed or node.__dict__.get("level"):
                return f"it imports `{name}`, which no solution needs"
    imported |= {"np", "math", "numpy"}
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, (ast.Store, ast.Del)):
            root = node
            while isinstance(root, ast.Attribute):
                root = root.value
            if isinstance(root, ast.Name) and root.id in imported:
                return f"it changes `{ast.unparse(node)}`, which belongs to others"
    return None
