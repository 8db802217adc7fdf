"""Right answers in another style than the dev files', and what turns one into a notebook.

`tests/right_answers/NN_name.py` holds `RIGHT = [Right(...), ...]`; `tests/test_right_answers.py` proves that
each of them gets every point and passes the checkpoint. What is right is what the contract and the task say.
"""

import ast
import copy
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from textwrap import dedent, indent

from tinytorch.tito.notebook.python import parse as parse_python
from wrong_answers import load_list, solution_regions

FOLDER = Path(__file__).parent


@dataclass(frozen=True)
class Right:
    """One answer; what it does not name stays as in the dev file.

    name: what is different, in a few words.
    bodies: function or Class.method -> what stands in its solution region, from the left margin.
    cells: grade_id of a solution cell -> its whole source.
    extra: grade_id of a cell -> a cell of the student's own that stands before it.
    """

    name: str
    bodies: Mapping[str, str] = field(default_factory=dict)
    cells: Mapping[str, str] = field(default_factory=dict)
    extra: Mapping[str, str] = field(default_factory=dict)


def load(label: str) -> list[Right]:
    """The right answers to module "12_attention"; an empty list if there is no such file."""
    return load_list(FOLDER, label, "RIGHT")


def load_all() -> dict[str, list[Right]]:
    """{module: its right answers}, in the order of the modules."""
    return {path.stem: load(path.stem) for path in sorted(FOLDER.glob("[0-9][0-9]_*.py"))}


def apply_to(notebook: dict, right: Right) -> dict:
    """The notebook with this answer in it. ValueError if the answer does not fit the notebook."""
    notebook = copy.deepcopy(notebook)
    bodies, cells, extra = dict(right.bodies), dict(right.cells), dict(right.extra)
    answered = []
    for cell in notebook["cells"]:
        tags = cell["metadata"].get("nbgrader", {})
        grade_id = tags.get("grade_id")
        if grade_id in extra:
            source = dedent(extra.pop(grade_id)).strip()
            answered.append({"cell_type": "code", "metadata": {}, "source": source})
        if cell["cell_type"] == "code" and tags.get("solution"):
            before = cell["source"]
            if grade_id in cells:
                cell["source"] = dedent(cells.pop(grade_id)).strip()
                if cell["source"] == before:
                    raise ValueError(f"{right.name!r} changes nothing in {grade_id}")
            else:
                cell["source"] = _with_bodies(before, bodies, right.name)
        answered.append(cell)
    notebook["cells"] = answered
    unknown = [*bodies, *cells, *extra]
    if unknown:
        raise ValueError(f"{right.name!r} answers what is not asked: {', '.join(unknown)}")
    for cell in answered:
        if cell["cell_type"] == "code":
            try:
                parse_python(cell["source"])
            except SyntaxError as error:
                raise ValueError(f"{right.name!r} is no Python: {error.msg} in line {error.lineno}") from None
    return notebook


def _with_bodies(source: str, bodies: dict[str, str], name: str) -> str:
    """The cell with the solutions that are meant for it, which are taken out of `bodies`."""
    functions = list(_functions(parse_python(source)))
    lines_before, new = 0, ""
    for is_solution, piece in solution_regions(source):
        inside = [f for f, start, stop in functions if start <= lines_before + 1 <= stop]
        lines_before += piece.count("\n")
        if is_solution and inside and inside[-1] in bodies:
            body = dedent(bodies.pop(inside[-1])).strip("\n")
            first, *_, last = piece.splitlines()
            answer = f"{first}\n{indent(body, first[: -len(first.lstrip())])}\n{last}"
            if answer == piece.rstrip("\n"):
                raise ValueError(f"{name!r} changes nothing in {inside[-1]}")
            piece = answer + piece[len(piece.rstrip("\n")) :]
        new += piece
    return new


def _functions(tree: ast.AST, prefix: str = ""):
    """Yields (Class.method, first line, last line) of every function, the outer before the inner."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            if isinstance(node, ast.FunctionDef):
                yield prefix + node.name, node.lineno, node.end_lineno
            yield from _functions(node, f"{prefix}{node.name}.")
