"""What the reference tells: which solution each test and each part needs, learnt by leaving solutions out."""

import copy
import json
import re
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tinytorch.tito.instructor.grading import submissions
from tinytorch.tito.instructor.grading.second_check import Checked, run_checks
from tinytorch.tito.instructor.grading.setup import Needs, Setup
from tinytorch.tito.instructor.grading.student import run_cells
from tinytorch.tito.process.worker import PASSED, Report
from tinytorch.tito.project import TitoError, write_text
from tinytorch.tito.student.module import CODE_STUB

BEGIN, END = re.compile(r"[ \t]*### BEGIN SOLUTION"), re.compile(r"[ \t]*### END SOLUTION")


def solutions_of(notebook: dict) -> list[tuple[int, int, int]]:
    """Every region between solution markers: cell, first line, last line."""
    found = []
    for index, cell in enumerate(notebook["cells"]):
        first = None
        for number, line in enumerate(cell["source"].split("\n")):
            if BEGIN.match(line):
                first = number
            elif END.match(line) and first is not None:
                found.append((index, first, number))
    return [place for place in found if notebook["cells"][place[0]]["cell_type"] == "code"]


def without(notebook: dict, place: tuple[int, int, int]) -> dict:
    """The notebook with one solution replaced by its stub."""
    index, first, last = place
    notebook = copy.deepcopy(notebook)
    lines = notebook["cells"][index]["source"].split("\n")
    indent = re.match(r"\s*", lines[first])[0]
    lines[first : last + 1] = [indent + line for line in CODE_STUB]
    notebook["cells"][index]["source"] = "\n".join(lines)
    return notebook


def learn_needs(setup: Setup, jobs: int, tell: Callable[[], None] = lambda: None) -> Needs:
    """Runs the reference, then the reference without each of its solutions. TitoError if it does not pass."""

    def run(notebook: dict) -> tuple[Report, Checked]:
        with tempfile.TemporaryDirectory(prefix="tito-reference-") as folder:
            file = Path(folder) / "reference.ipynb"
            write_text(file, json.dumps(notebook))
            submission = submissions.check("reference", file, setup.released, setup.source)
        report, _ = run_cells(setup, submission.notebook)
        checked = run_checks(setup, submission, set()) if setup.tests else Checked()
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
        runs = list(pool.map(lambda place: run(without(setup.source, place)), places))
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
    changes = {name for _, less in [(report, checked), *runs] for name in less.changes}
    return Needs(tests, parts, cells, sorted(changes))


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
