"""The reference stands in for some of a student's solutions: one function each, where that can be."""

import ast
import textwrap
from collections.abc import Set
from dataclasses import replace
from typing import Any

from tinytorch.tito.instructor.grading.setup import Needs
from tinytorch.tito.notebook.cells import SOLUTION, Cell, cells_of
from tinytorch.tito.notebook.markers import regions
from tinytorch.tito.notebook.python import FUNCTIONS, as_python, parsed
from tinytorch.tito.notebook.settle import Settled

DEFINITIONS = (*FUNCTIONS, ast.ClassDef)
Definition = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef


def with_reference(settled: Settled, source: dict, needs: Needs, solutions: Set[int]) -> Settled:
    """The notebook with the reference's code instead of these solutions; `source` is the instructor's."""
    reference = sources_of(source)

    def changed(cell: Cell) -> Cell:
        own = needs.solutions_in(cell.grade_id)
        wanted = solutions & set(own)
        if cell.role != SOLUTION or not wanted:
            return cell
        theirs = reference[cell.grade_id]
        if len(wanted) == len(own):
            return replace(cell, source=theirs)
        starts = [region[0].number for region in regions(theirs, "SOLUTION")]
        paths = {_path_to(theirs, starts[own.index(n)]) for n in wanted}
        text = as_python(cell.source)
        for path in sorted(paths):
            text = _grafted(text, theirs, path)
        return replace(cell, source=text)

    return replace(settled, cells=[changed(cell) for cell in settled.cells])


def sources_of(notebook: dict) -> dict[str | None, str]:
    """{grade_id: text of the cell}."""
    return {cell.grade_id: cell.source for cell in cells_of(notebook)}


def _path_to(source: str, line: int) -> tuple[str, ...]:
    """The names that lead to the function in which a line stands; () if it stands in none."""
    names: list[str] = []
    node: Any = parsed(source)
    while node is not None and not isinstance(node, FUNCTIONS):
        inner = (n for n in node.body if isinstance(n, DEFINITIONS) and n.lineno <= line <= n.end_lineno)
        node = next(inner, None)
        names += [node.name] if node else []
    return tuple(names) if node is not None else ()


def _found(source: str, path: tuple[str, ...]) -> Any:
    """The definition at the end of a path, the last one of its name; the module for (), None if none."""
    node: Any = parsed(source)
    for name in path:
        named = [n for n in node.body if isinstance(n, DEFINITIONS) and n.name == name] if node else []
        node = named[-1] if named else None
    return node


def _grafted(source: str, reference: str, path: tuple[str, ...]) -> str:
    """The source with the reference's definition of a function; all of the reference if there is no place."""
    home = _found(source, path[:-1])
    if not path or home is None:
        return reference if parsed(source) is not None else source  # what is not Python does not count anyhow
    lines = source.split("\n")
    mine, (first, last) = _found(source, path), (len(lines), len(lines))
    if mine is not None:
        first, last = _span(mine)
    elif isinstance(home, ast.ClassDef):
        first = last = home.end_lineno
    indent = mine.col_offset if mine else home.body[-1].col_offset if path[:-1] else 0
    start, end = _span(_found(reference, path))
    text = textwrap.dedent("\n".join(reference.split("\n")[start:end]))
    lines[first:last] = textwrap.indent(text, " " * indent).split("\n")
    return "\n".join(lines)


def _span(node: Definition) -> tuple[int, int]:
    """The lines of a definition, its decorators included, as a slice."""
    return min([node.lineno, *(d.lineno for d in node.decorator_list)]) - 1, node.end_lineno
