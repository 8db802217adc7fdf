"""Plausible mistakes, one list a module, and what turns one into a notebook and a package.

`tests/wrong_answers/NN_name.py` holds `WRONG = [Wrong(...), ...]`; `tests/test_wrong_answers.py` proves that
the graded cells and the checkpoint tests catch each of them.
"""

import copy
import importlib.util
import re
from dataclasses import dataclass
from pathlib import Path

from tinytorch.tito.notebook.python import parse as parse_python

FOLDER = Path(__file__).parent


@dataclass(frozen=True)
class Wrong:
    """One mistake: in the solutions of a dev file, `old` is replaced by `new`.

    name: what is wrong, in a few words.
    part: the grade_id of the test cell that must fail, and nothing but it.
    old, new: exact source text; `old` occurs `count` times within the module's solution regions.
    also: other parts that cannot but fail with it.
    """

    name: str
    part: str
    old: str
    new: str
    count: int = 1
    also: tuple[str, ...] = ()


def load(label: str) -> list[Wrong]:
    """The wrong answers to module "12_attention"; an empty list if there is no such file."""
    return load_list(FOLDER, label, "WRONG")


def load_list(folder: Path, label: str, name: str) -> list:
    """The list of answers `name` in folder/NN_name.py, no two called alike; empty if there is no such file."""
    path = folder / f"{label}.py"
    if not path.is_file():
        return []
    spec = importlib.util.spec_from_file_location(f"{folder.name}_{label}", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    answers = getattr(module, name)
    names = [answer.name for answer in answers]
    twice = {name for name in names if names.count(name) > 1}
    if twice:
        raise ValueError(f"{path.name}: two answers are called {', '.join(sorted(twice))}")
    return answers


def load_all() -> dict[str, list[Wrong]]:
    """{module: its wrong answers}, in the order of the modules."""
    return {path.stem: load(path.stem) for path in sorted(FOLDER.glob("[0-9][0-9]_*.py"))}


def apply_to(notebook: dict, wrong: Wrong) -> dict:
    """The notebook with the mistake in it. ValueError if the mistake does not fit the notebook."""
    notebook = copy.deepcopy(notebook)
    found = 0
    for cell in notebook["cells"]:
        if cell["cell_type"] != "code" or not cell["metadata"].get("nbgrader", {}).get("solution"):
            continue
        pieces = solution_regions(cell["source"])
        inside = sum(piece.count(wrong.old) for is_solution, piece in pieces if is_solution)
        if not inside:
            continue
        found += inside
        pieces = [
            piece.replace(wrong.old, wrong.new) if is_solution else piece for is_solution, piece in pieces
        ]
        cell["source"] = "".join(pieces)
        try:
            parse_python(cell["source"])
        except SyntaxError as error:
            raise ValueError(f"{wrong.name!r} is no Python: {error.msg} in line {error.lineno}") from None
    if found != wrong.count:
        raise ValueError(
            f"{wrong.name!r}: the text to replace stands {found} times in solutions, "
            f"should be {wrong.count}: {wrong.old!r}"
        )
    if wrong.old == wrong.new:
        raise ValueError(f"{wrong.name!r} changes nothing")
    return notebook


def solution_regions(source: str) -> list[tuple[bool, str]]:
    """The source cut into (is it a solution, its two marker lines included; text)."""
    pieces = re.split(r"(?ms)^([ \t]*### BEGIN SOLUTION$.*?^[ \t]*### END SOLUTION$\n?)", source)
    return [(place % 2 == 1, piece) for place, piece in enumerate(pieces)]
