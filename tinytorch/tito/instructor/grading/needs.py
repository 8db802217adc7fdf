"""What the reference tells: which solution each test and each part needs, learnt by leaving solutions out."""

import copy
import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tinytorch.tito.instructor.grading import submissions
from tinytorch.tito.instructor.grading.second_check import Checked, run_checks
from tinytorch.tito.instructor.grading.setup import Needs, Setup
from tinytorch.tito.instructor.grading.student import run_cells
from tinytorch.tito.notebook.markers import CODE_STUB, regions, replaced
from tinytorch.tito.process.outcomes import PASSED, Report
from tinytorch.tito.project import TitoError


def solutions_of(notebook: dict) -> list[tuple[int, int]]:
    """Every region between solution markers: its cell, and which of the cell's it is."""
    return [
        (index, place)
        for index, cell in enumerate(notebook["cells"])
        if cell["cell_type"] == "code"
        for place, _ in enumerate(regions(cell["source"], "SOLUTION"))
    ]


def without(notebook: dict, place: tuple[int, int]) -> dict:
    """The notebook with one solution replaced by its stub."""
    notebook = copy.deepcopy(notebook)
    cell = notebook["cells"][place[0]]
    cell["source"] = replaced(cell["source"], "SOLUTION", CODE_STUB, only=place[1])
    return notebook


def learn_needs(setup: Setup, jobs: int, tell: Callable[[], None] = lambda: None) -> Needs:
    """Runs the reference, then the reference without each of its solutions. TitoError if it does not pass."""

    def run(notebook: dict, only: set[str] | None = None) -> tuple[Report, Checked]:
        submission = submissions.check("reference", notebook, setup.released, setup.source)
        report, _ = run_cells(setup, submission.full)
        checked = run_checks(setup, submission, {}, only=only) if setup.tests else Checked()
        tell()
        return report, checked

    report, checked = run(setup.source)
    for part in report.parts:
        if part.status != PASSED:
            raise TitoError(f"The reference itself does not pass `{part.grade_id}`: {part.message}")
    if checked.problem or not all(passed for passed, _ in checked.outcomes.values()):
        wrong = next((f"{n}: {m}" for n, (p, m) in checked.outcomes.items() if not p), "")
        raise TitoError(f"The reference itself does not pass its checkpoint: {checked.problem or wrong}")
    places = solutions_of(setup.source)
    with ThreadPoolExecutor(jobs) as pool:
        names = set(checked.outcomes)  # of the tests; the twins tell nothing of a stub
        runs = list(pool.map(lambda place: run(without(setup.source, place), names), places))
    tests: dict[str, list[int]] = {name: [] for name in checked.outcomes}
    parts: dict[str, list[int]] = {part.grade_id: [] for part in report.parts}
    for number, (stubbed, less) in enumerate(runs):
        for part in stubbed.parts:
            if part.status != PASSED:
                parts[part.grade_id].append(number)
        for name in tests:
            if not less.outcomes.get(name, (False, ""))[0]:
                tests[name].append(number)
    cells = [setup.source["cells"][index]["metadata"]["nbgrader"]["grade_id"] for index, *_ in places]
    every = [checked, *(less for _, less in runs)]
    changes = {name for less in every for name in less.changes}
    reached = {what for less in every for what in less.reached}
    twins = [name for name, passed in checked.twins.items() if not passed]
    return Needs(tests, parts, cells, sorted(changes), sorted(reached), twins)


def known_needs(setup: Setup, course: Path) -> tuple[Needs | None, Path]:
    """What an earlier run learnt of the reference, and where that is kept."""
    file = course / ".tito" / "reference" / f"{setup.label}.json"
    try:
        kept = json.loads(file.read_text(encoding="utf-8"))
        if kept["key"] == setup.secret.hex():
            return Needs(**kept["needs"]), file
    except (OSError, ValueError, KeyError, TypeError):
        pass  # there is none, or not of this version: it is learnt anew
    return None, file
