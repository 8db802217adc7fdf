"""From a notebook to a file of the package, by nbdev: the same bytes every time, and nothing of it is run."""

import ast
import re
import tempfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, TypeVar

from tinytorch.tito.notebook import files
from tinytorch.tito.notebook.cells import GIVEN, LOOK, OWN, SOLUTION, Cell
from tinytorch.tito.notebook.markers import (
    EXPORTS,
    HIDDEN,
    is_exported,
    lines_of,
    without_directives,
    without_markers,
)
from tinytorch.tito.notebook.python import (
    PARSER,
    as_python,
    defines,
    is_future,
    names_bound,
    names_used,
    objects_changed,
    only_shows,
    parse,
    parsed,
    statements,
)
from tinytorch.tito.notebook.settle import Settled
from tinytorch.tito.project import EXPORT_FOLDERS, EXPORT_TARGET, TitoError, need_package, write_text

DISPLAY = '#| exporti\ndef display(*values):  # what a notebook has\n    print(*values, sep="\\n")'
PLACE = re.compile(r"# %% .* #cell-(\d+)$")


@dataclass(frozen=True)
class ExportedModule:
    """One module of the package as an export makes it; nothing of it is on disk yet."""

    source: Path  # the dev file or the notebook
    target: str  # "core.tensor"
    text: str  # the whole package file

    def path(self, package_dir: Path) -> Path:
        return package_dir.joinpath(*self.target.split(".")).with_suffix(".py")

    def write(self, package_dir: Path) -> Path:
        path = self.path(package_dir)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text(path, self.text)
        return path

    def differs(self, package_dir: Path) -> bool:
        path = self.path(package_dir)
        return not path.is_file() or path.read_bytes() != self.text.encode()


def strip_markers(cell: Any) -> None:
    """nbdev processor: an exported cell keeps its solution and loses the markers around it.

    Plain `nbdev-export` runs it too, by `export_procs` in pyproject.toml.
    """
    if cell.cell_type != "code" or not EXPORTS & set(cell.directives_):
        return
    if any(line.is_marker and line.region == HIDDEN for line in lines_of(cell.source)[0]):
        raise TitoError(f"Cell {cell.id} holds hidden tests and is marked for export; hidden tests stay out.")
    cell.source = without_markers(cell.source)


def build(
    notebook: dict, source: Path, project_root: Path | None = None, target: str | None = None
) -> ExportedModule:
    """What exporting `notebook`, read from the file `source`, gives. Runs none of its code, writes nothing.

    The header names `source` as seen from the package file. If `target` is given, the notebook's
    `#| default_exp` must name just that. TitoError if the notebook cannot be exported.
    """
    need_package("nbdev", "Exporting")
    from fastcore.nbio import dict2nb
    from nbdev.export import ExportModuleProc
    from nbdev.maker import ModuleMaker
    from nbdev.process import NBProcessor

    with PARSER:  # nbdev parses, and keeps state of its own
        collected = ExportModuleProc()
        processor = NBProcessor(
            nb=dict2nb(files.of_cells(notebook["cells"])), procs=[_check_cell, collected, strip_markers]
        )
        try:
            processor.process()
        except TitoError as error:
            raise TitoError(f"{source}: {error.message}") from None
        found = _one_target(processor.nb.cells, source)
        if target is not None and found != target:
            raise TitoError(f"{source} exports to {found}, but this module's place is {target}.")
        cells = [cell for cell in collected.modules["#"] if cell.cell_type == "code"]
        if not cells:
            raise TitoError(f"{source} marks no cell with `#| export`, so there is nothing to export.")
        with tempfile.TemporaryDirectory(prefix="tito-export-") as folder:
            package = Path(folder) / "tinytorch"
            maker = ModuleMaker(dest=package, name=found, nb_path=source)
            maker.dest2nb = _seen_from_package(source, project_root, found)
            maker.hdr = f"# %% {maker.dest2nb}"
            maker.make(cells, collected.in_all["#"], lib_path=package)
            text = maker.fname.read_text(encoding="utf-8")
    return ExportedModule(source, found, text)


def build_module(source: Path, project_root: Path, target: str | None = None) -> ExportedModule:
    """`build` of a dev file or an .ipynb."""
    return build(files.read(source), source, project_root, target)


def _check_cell(cell) -> None:
    """An nbdev processor that refuses the cells nbdev would export wrongly or drop silently."""
    exported = EXPORTS & set(cell.directives_)
    if cell.cell_type != "code" or not exported:
        return
    elsewhere = next((cell.directives_[name] for name in exported if cell.directives_[name]), None)
    if elsewhere:
        raise TitoError(f"cell {cell.id} exports to {elsewhere}; a notebook makes one file only.")
    try:
        tree = parse(cell.source)
    except SyntaxError as error:
        where = f"cell {cell.id}, line {error.lineno + len(cell.directives_)}"
        raise TitoError(f"{where} is not valid Python: {error.msg}.") from None
    if any(isinstance(node, ast.ImportFrom) and node.level for node in tree.body):
        raise TitoError(f"cell {cell.id} has a relative import; write `from tinytorch...`.")


def _one_target(cells, source: Path) -> str:
    code = [cell for cell in cells if cell.cell_type == "code"]
    targets = [cell.directives_["default_exp"] for cell in code if "default_exp" in cell.directives_]
    if len(targets) != 1:
        how_many = "no `#| default_exp`" if not targets else f"{len(targets)} `#| default_exp`"
        raise TitoError(f"{source} has {how_many}; it needs exactly one.")
    if not EXPORT_TARGET.fullmatch(targets[0]):
        places = ", ".join(EXPORT_FOLDERS)
        raise TitoError(f"{source} exports to {targets[0]!r}; it must be a module in one of {places}.")
    return targets[0]


def _seen_from_package(source: Path, project_root: Path | None, target: str) -> str:
    """The path of `source` from the folder of the package file; only its name if it lies elsewhere."""
    if project_root is None or not source.resolve().is_relative_to(project_root.resolve()):
        return source.name
    source, project_root = source.resolve(), project_root.resolve()
    return "../" * len(target.split(".")) + source.relative_to(project_root).as_posix()


# --------------------------------------------------------------------------------------- a student's notebook


class Attempt(Protocol):
    """What became of an attempt to import an exported module."""

    broken_line: int | None  # the line of the package file at which the import failed
    broken_by: str  # and why


Tried = TypeVar("Tried", bound=Attempt)


@dataclass
class Export:
    """A student's notebook on its way into the package."""

    settled: Settled
    source: Path
    project_root: Path | None
    target: str
    instead: dict | None = (
        None  # the notebook whose cells count instead of those withheld; as handed out if None
    )
    withheld: dict[int, str] = field(default_factory=dict)  # cell -> why it does not count
    dropped: set[tuple[int, str]] = field(default_factory=set)  # cell and text of a statement that cannot run
    notes: list[str] = field(default_factory=list)
    built: ExportedModule | None = None  # what was built last
    _places: list[int] = field(default_factory=list)  # and the cell of each of its pieces

    def build(self) -> ExportedModule:
        pieces = self._pieces()
        self._places = [index for index, _ in pieces]
        code = [f"#| default_exp {self.target}", *(source for _, source in pieces)]
        cells = [{"cell_type": "code", "source": source} for source in code]
        self.built = build(files.of_cells(cells), self.source, self.project_root, self.target)
        return self.built

    def until_it_imports(self, attempt: Callable[[ExportedModule], Tried]) -> Tried:
        """Attempts to import what is built, without whatever an attempt shows to break the import."""
        self._withhold_what_is_not_python()
        for _ in range(2 * len(self.settled.cells)):
            built = self.build()
            tried = attempt(built)
            if tried.broken_line is None or not self._blame(built, tried.broken_line, tried.broken_by):
                break
        return tried

    def of_student(self) -> dict[int, str]:
        """{cell: code} of all that goes into the file and was not handed out."""
        theirs = self.settled.of_student()
        return {index: source for index, source in self._pieces() if index in theirs}

    def _withhold_what_is_not_python(self) -> None:
        for cell in self._counted():
            if cell.index not in self.withheld and parsed(cell.source) is None:
                self.withhold(cell, "it is not Python")

    def withhold(self, cell: Cell, why: str) -> None:
        self.withheld[cell.index] = why
        self.notes.append(f"{cell.label} does not count in the second check: {why}")

    def _blame(self, built: ExportedModule, line: int, why: str) -> bool:
        """Withholds the statement or the cell at a line of the file; False if that changes nothing."""
        lines = built.text.split("\n")
        markers = [number for number, text in enumerate(lines[:line], 1) if PLACE.match(text)]
        if not markers:
            return False
        place = int(PLACE.match(lines[markers[-1] - 1])[1]) - 1
        index = self._places[place] if 0 <= place < len(self._places) else -1
        if index < 0 or index in self.withheld:
            return False
        cell = self.settled.cells[index]
        code = "\n".join(lines[markers[-1] : _end_of_cell(lines, markers[-1])])
        node, text = _statement_at(code, line - markers[-1])
        if node is not None and not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            if (index, text) not in self.dropped:
                self.dropped.add((index, text))
                self.notes.append(
                    f"`{text.strip().splitlines()[0][:60]}` in {cell.label} was left out: {why}"
                )
                return True
        if cell.role == GIVEN:
            return False
        self.withhold(cell, why)
        return True

    def _pieces(self) -> list[tuple[int, str]]:
        """(cell, source with its directive) of all that goes into the file, in order."""
        counted = self._counted()
        code, futures = {}, set()
        for cell in counted:
            code[cell.index], imports = self._code_of(cell)
            futures |= imports
        chosen = self._chosen(counted, code)
        pieces = [(-1, f"#| export\nfrom __future__ import {', '.join(sorted(futures))}")] if futures else []
        used = set().union(*(names_used(code[index]) for index in chosen))
        bound = set().union(*(names_bound(code[index]) for index in chosen))
        if "display" in used - bound:
            pieces.append((-1, DISPLAY))
        return pieces + [(index, f"#| export\n{code[index]}") for index in chosen if code[index].strip()]

    def _counted(self) -> list[Cell]:
        return [
            cell for cell in self.settled.cells if cell.is_code and cell.role in (GIVEN, SOLUTION, OWN, LOOK)
        ]

    def _handed_out(self, cell: Cell) -> str:
        return self.settled.given["cells"][cell.place]["source"] if cell.place is not None else ""

    def _code_of(self, cell: Cell) -> tuple[str, set[str]]:
        """A cell's code without what only shows something, and what it imports from __future__."""
        if cell.index in self.withheld:
            cells = (self.instead or self.settled.given)["cells"]
            return without_directives(cells[cell.place]["source"]) if cell.place is not None else "", set()
        source = without_directives(as_python(cell.source))
        if cell.role == GIVEN:
            return source, set()
        futures, out = set(), []
        for node, text in statements(source):
            if is_future(node):
                futures |= {alias.name for alias in node.names}
            if is_future(node) or only_shows(node) or (cell.index, text) in self.dropped:
                out.append(node)
        return _without(source, out), futures

    def _chosen(self, counted: list[Cell], code: dict[int, str]) -> list[int]:
        """The cells that go into the file: those handed out for it, and what they need of the others."""
        public, chosen, others = set(), set(), []
        for cell in counted:
            given = self._handed_out(cell)
            if cell.role in (GIVEN, SOLUTION) and is_exported(given):
                public |= defines(given)
                chosen.add(cell.index)
            elif cell.role == OWN and is_exported(cell.source) and cell.index not in self.withheld:
                chosen.add(cell.index)
            elif code[cell.index].strip() and "default_exp" not in given:
                others.append(cell)
        while True:
            used = set().union(*(names_used(code[index]) for index in chosen))
            bound = set().union(public, *(names_bound(code[index]) for index in chosen))
            wanted = {LOOK: used - bound}
            more = {
                cell.index
                for cell in others
                if names_bound(code[cell.index]) & wanted.get(cell.role, used | public)
                or (cell.role != LOOK and objects_changed(code[cell.index]) & bound)
            } - chosen
            if not more:
                return sorted(chosen)
            chosen |= more


def _without(source: str, nodes: Iterable[ast.stmt]) -> str:
    """The source without these statements of it; one that shares a line with another stays."""
    lines: list[str | None] = source.split("\n")
    body = [node for node, _ in statements(source)]
    for node in nodes:
        span = range(node.lineno - 1, node.end_lineno)
        if not any(
            other is not node and _lines(other) & set(span) for other in body if not _same(other, node)
        ):
            for number in span:
                lines[number] = None
    return "\n".join(line for line in lines if line is not None).strip("\n")


def _lines(node: ast.stmt) -> set[int]:
    return set(range(node.lineno - 1, node.end_lineno))


def _same(one: ast.stmt, other: ast.stmt) -> bool:
    return (one.lineno, one.col_offset) == (other.lineno, other.col_offset)


def _end_of_cell(lines: list[str], start: int) -> int:
    return next((n for n in range(start, len(lines)) if PLACE.match(lines[n])), len(lines))


def _statement_at(code: str, line: int) -> tuple[ast.stmt | None, str]:
    for node, text in statements(code):
        first = min([node.lineno, *(d.lineno for d in getattr(node, "decorator_list", ()))])
        if first <= line <= node.end_lineno:
            return node, text
    return None, ""
