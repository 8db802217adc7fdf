"""What students hand in, looked at before anything of it runs: repaired where that is safe, else refused."""

# Nothing here executes a student's code, and nothing writes to a student's folder.

import ast
import copy
import os
import re
import stat
import symtable
from dataclasses import dataclass, field
from pathlib import Path

from tinytorch.tito.author.export import KERNELSPEC
from tinytorch.tito.instructor.grading.reach import reaching
from tinytorch.tito.process.worker import Cell, RunnerError, cells_of, names_bound, read_notebook
from tinytorch.tito.project import DEFAULT_EXP, Module, parse_python

SIZE_LIMIT = 20_000_000  # bytes of a notebook
CELL_LIMIT = 2_000
ROLES = ("grade", "solution", "task")
CODE_LIMIT = 500_000  # characters of what a student wrote
STUDENT_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@+-]{0,99}")
EXPORTS = re.compile(r"^#[ \t]*\|[ \t]*exports?i?\b", re.MULTILINE)
HIDDEN = re.compile(r"^[ \t]*### BEGIN HIDDEN TESTS.*?### END HIDDEN TESTS[ \t]*\n", re.MULTILINE | re.DOTALL)
DIRECTIVE = re.compile(r"^#[ \t]*\|.*\n?", re.MULTILINE)
MARKER = re.compile(r"(?:BEGIN|END) HIDDEN TESTS")


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
        raise Refused(
            f"`{folder.parent.name}` cannot be a student's ID: letters, digits and . _ @ + - only, no spaces"
        )
    if folder.parent.is_symlink() or folder.is_symlink():
        raise Refused("the submission's folder is a symbolic link")
    path = folder / f"{module.name}.ipynb"
    if not folder.is_dir():
        stray = folder.parent / path.name
        if stray.exists():
            raise Refused(f"{path.name} lies beside the folder {folder.name}/ and not in it")
        return None, []
    if path.is_symlink() or path.exists():
        return path, []
    others = sorted(p for p in folder.iterdir() if p.suffix == ".ipynb" and not p.name.startswith("."))
    if not others:
        there = sorted(p.name for p in folder.iterdir())
        if there:
            raise Refused(f"the submission holds no notebook {path.name}, but {', '.join(there)[:80]}")
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
    given = {cell["source"] for cell in released["cells"]}
    written = {
        index: cell["source"]
        for index, cell in enumerate(visible["cells"])
        if cell["cell_type"] == "code" and cell["source"] not in given
    }
    if sum(map(len, written.values())) > CODE_LIMIT:
        raise Refused(f"its code is longer than {CODE_LIMIT} characters")
    reference = [cell["source"] for cell in source["cells"] if EXPORTS.search(cell["source"])]
    return Submission(student, graded, visible, flags, reaching(written, reference))


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
            if any(bool(tags.get(k)) != original["metadata"]["nbgrader"].get(k, False) for k in ROLES):
                flags.append(f"the role of `{grade_id}` was changed and is restored")
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
    """The notebook to be exported for the second check, and what was left out of it or taken along.

    A cell that does not compile, did not run, or reaches for the machinery is as it was handed out: one such
    cell costs what depends on it, not the whole module. A directive in the wrong place is put right, and a
    cell of the student's own that only defines something is exported with the others.
    """
    originals, given = by_grade_id(released), {cell["source"] for cell in released["cells"]}
    cells, notes = [{"cell_type": "code", "source": f"#| default_exp {target}", "metadata": {}}], []
    for index, cell in enumerate(submission.visible["cells"]):
        source, grade_id = cell["source"], _grade_id(cell)
        if cell["cell_type"] != "code" or DEFAULT_EXP.search(source):
            continue
        wanted = EXPORTS.search(originals[grade_id]["source"] if grade_id else source)
        if not wanted and (source in given or grade_id or index in failed or not _only_defines(source)):
            continue
        reason = submission.reaching.get(index) or _not_exportable(source)
        if index in failed or reason:
            if reason:
                notes.append(f"`{grade_id or 'a cell'}` does not count in the second check: {reason}")
            if grade_id is None:
                continue
            source = originals[grade_id]["source"]
        elif not source.lstrip().startswith("#| export"):
            notes.append(f"`{grade_id or 'a cell'}` has no `#| export` at its top; it was taken along")
        source = "#| export\n" + DIRECTIVE.sub("", source)
        cells.append({"cell_type": "code", "source": source, "metadata": {}})
    return _notebook(cells), notes


def _only_defines(source: str) -> bool:
    """Whether a cell holds nothing but imports, functions, classes and constants."""
    try:
        body = parse_python(source).body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False
    kinds = (ast.Import, ast.ImportFrom, ast.FunctionDef, ast.ClassDef)
    return bool(body) and all(
        isinstance(node, kinds) or (isinstance(node, ast.Assign) and isinstance(node.value, ast.Constant))
        for node in body
    )


def _not_exportable(source: str) -> str | None:
    if MARKER.search(source):
        return "it holds a marker of hidden tests"
    try:
        parse_python(source)
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        return f"it is no Python ({type(error).__name__})"
    return None


# ------------------------------------------------------------------------------------------- what is run


def needed_cells(notebook: dict, unlike: dict | None = None) -> list[Cell]:
    """The cells of a course's own notebook that its parts need.

    They are the exported and the graded ones, and those which bind a name that these use. The others show
    something to the student and take most of the time. Where only the parts are asked for that can end
    otherwise than in the notebook `unlike`, the checks before the first difference are left out too.
    """
    cells = cells_of(notebook)
    code = [cell for cell in cells if cell.is_code]
    last = max((cell.index for cell in code if cell.is_test), default=-1)
    first = 0
    if unlike is not None:
        first = next(cell.index for cell in code if cell.source != unlike["cells"][cell.index]["source"])
    kept, used = set(), set()
    for cell in reversed(code):
        must = cell.index >= first if cell.is_test else cell.grade_id or cell.source.lstrip().startswith("#|")
        if cell.index <= last and (must or names_bound(cell.source) & used):
            kept.add(cell.index)
            used |= _names_used(cell.source)
    return [cell for cell in cells if cell.index in kept or not cell.is_code]


def _names_used(source: str) -> set[str]:
    """The names that a cell takes from other cells (or from Python)."""
    used, tables = set(), [symtable.symtable(source, "cell", "exec")]
    bound = [name for name in tables[0].get_symbols() if name.is_assigned() or name.is_imported()]
    while tables:
        table = tables.pop()
        tables += table.get_children()
        used |= {symbol.get_name() for symbol in table.get_symbols() if symbol.is_global()}
    return used - {name.get_name() for name in bound}
