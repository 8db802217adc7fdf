"""One student's submission through both checks."""

import time
from collections.abc import Set
from dataclasses import dataclass

from tinytorch.tito.instructor.grading import submissions
from tinytorch.tito.instructor.grading.blame import blame, failing_tests, without_points
from tinytorch.tito.instructor.grading.handed_in import Refused
from tinytorch.tito.instructor.grading.harmless import harmless
from tinytorch.tito.instructor.grading.results import CRASHED, GRADED, REJECTED, TIMED_OUT, PartResult, Result
from tinytorch.tito.instructor.grading.second_check import Checked, run_checks
from tinytorch.tito.instructor.grading.setup import Setup
from tinytorch.tito.instructor.grading.submissions import Submission
from tinytorch.tito.notebook.settle import Settled
from tinytorch.tito.process.outcomes import FAILED, PASSED, Report
from tinytorch.tito.process.sandbox import SandboxWorker


@dataclass
class Graded:
    """A student's result, and the notebook with its outputs for the gradebook's pages."""

    result: Result
    notebook: dict | None = None


def grade_one(setup: Setup, student: str, data: bytes) -> Graded:
    """Grades one submission, whatever it is. Touches nothing but its own temporary files."""
    began = time.perf_counter()
    points = setup.written()
    result = Result(student, GRADED)
    result.parts = {name: PartResult(value, 0.0) for name, value in points.items()}
    notebook = None
    try:
        notebook = _grade(setup, student, data, result)
    except Refused as refused:
        result.status, result.reason = REJECTED, str(refused)
    except Exception as error:  # a report that a student's code has forged may break anything that reads it
        result.status, result.reason = (
            CRASHED,
            f"the report of its run cannot be read ({type(error).__name__})",
        )
        for part in result.parts.values():
            part.auto = 0.0
    result.seconds = time.perf_counter() - began
    return Graded(result, notebook)


def _grade(setup: Setup, student: str, data: bytes, result: Result) -> dict:
    notebook = submissions.notebook_in(data)
    submission = submissions.check(student, notebook, setup.released, setup.source, setup.releases)
    result.flags += submission.flags
    report, ended = run_cells(setup, submission.full)
    errors = {outcome.error for outcome in report.outcomes.values()}
    too_long = False
    timed_out = "Timeout" in errors or any("seconds" in reason for reason in ended)
    shown = report
    if not report.ok and not ended:
        shown, _ = run_cells(setup, submission.visible)
    lost: dict[str, str] = {}
    if setup.tests and setup.needs and report.earned:
        checked, lost = _confirm(setup, submission, report)
        result.flags += checked.notes
        if checked.problem:
            result.flags.append(f"second check: {checked.problem[:200]}")
            too_long = "seconds" in checked.problem
        if lost:
            result.flags.append(f"the two checks disagree on {', '.join(f'`{name}`' for name in lost)}")
    if setup.needs:
        confirmed = {n for needed in setup.needs.tests.values() for n in needed}
        for part in report.parts:
            needed = setup.needs.parts.get(part.grade_id, [])
            if part.status == PASSED and submission.reaching and not confirmed & set(needed):
                lost[part.grade_id] = "no second check confirms it, and a cell " + _first(submission.reaching)
    reached = sorted(set(submission.reaching.values()))
    result.flags += [f"worth a look: in a cell, {text}" for text in reached[:5]]
    visible = {part.grade_id: part for part in shown.parts}
    for part in report.parts:
        mine = result.parts.get(part.grade_id)
        if mine is None:
            continue
        mine.outcome = part.status
        if part.grade_id in lost:
            mine.outcome, mine.reason = FAILED, lost[part.grade_id]
        elif part.status == PASSED:
            mine.auto = mine.points
        else:
            mine.reason = _reason(part, visible.get(part.grade_id), bool(ended))
    if timed_out:
        result.status = TIMED_OUT
        result.reason = next((r for r in ended if "seconds" in r), "a cell did not end in time")
    elif too_long:
        result.status, result.reason = TIMED_OUT, "the second check did not end in time"
    elif "Crash" in errors or ended:
        result.status = CRASHED
        result.reason = ended[0] if ended else "Python itself ended in one of its cells"
    return _score(setup, submission, report, result)


def _confirm(setup: Setup, submission: Submission, report: Report) -> tuple[Checked, dict[str, str]]:
    """The second check of what the cells earn, and the parts that it takes away -> why."""
    wrong = {i: o.message for i, o in report.outcomes.items() if o.error in ("Timeout", "Crash")}
    replaced = without_points(setup.needs, report)

    def again(more: Set[int], tests: Set[str]) -> Checked:
        return run_checks(setup, submission, wrong, replaced | more, tests)

    checked = run_checks(setup, submission, wrong, replaced)
    if checked.tampers or (checked.problem and checked.stuck):
        checked = _without_the_culprit(setup, submission, checked, wrong, replaced) or checked
    failing = failing_tests(setup.needs, checked)
    if failing and not checked.problem:  # a test of time may fail on a busy machine
        checked.outcomes |= again(set(), set(failing)).outcomes
    return checked, blame(setup, submission, report, checked, again)


def _without_the_culprit(
    setup: Setup, submission: Submission, checked: Checked, wrong: dict[int, str], replaced: set[int]
) -> Checked | None:
    """The second check without the one cell that makes it fail as a whole; None if there is no such cell."""
    why = "it tampers with what checks it" if checked.tampers else "with it, tests do not come to their end"
    only = set(checked.stuck[:1]) or None

    def mended(cells: list[int], tests: set[str] | None) -> Checked | None:
        tried = run_checks(setup, submission, wrong | dict.fromkeys(cells, why), replaced, tests)
        return None if tried.problem or (tests and tried.stuck) else tried

    suspects = [index for index in submission.visible.of_student() if index not in wrong]
    while len(suspects) > 1:
        half = suspects[: len(suspects) // 2]
        suspects = half if mended(half, only) else suspects[len(half) :]
    return mended(suspects, None)


def _first(reaching: dict[int, str]) -> str:
    return next(iter(reaching.values()))


def _reason(part, visible, ended: bool) -> str:
    """Why a part earned nothing, from the run that has never seen a hidden test."""
    if ended or visible is None:
        return "the notebook did not come to its end"
    if visible.status == PASSED:
        return "the checks that you can see pass; one that you cannot see does not"
    return f"{visible.message}\n{visible.where}".strip()


def _score(setup: Setup, submission: Submission, report: Report, result: Result) -> dict:
    """Puts outputs into the notebook and lets nbgrader score it; the lower of both counts."""
    from nbformat import from_dict
    from nbgrader.utils import determine_grade

    notebook = submission.full.notebook()
    for index, cell in enumerate(notebook["cells"]):
        if cell["cell_type"] != "code" or not submission.full.cells[index].runs:
            continue
        outcome = report.outcomes.get(index)
        outputs: list[dict] = []
        cell["outputs"] = outputs
        for name in ("stdout", "stderr") if outcome else ():
            text = getattr(outcome, name)
            if text:
                outputs.append({"output_type": "stream", "name": name, "text": str(text)[:20_000]})
        if outcome is None or not outcome.ok:
            error, message = (
                (outcome.error, outcome.message) if outcome else ("NotRun", "this cell was not run")
            )
            lines = [f"{error}: {message}"[:2000]]
            outputs.append({"output_type": "error", "ename": error, "evalue": message, "traceback": lines})
    automatic = {cell.grade_id for cell in submission.full.cells if cell.is_test}
    for cell in notebook["cells"]:
        tags = cell["metadata"].get("nbgrader", {})
        if not tags.get("grade"):
            continue
        auto, most = determine_grade(from_dict(cell))
        mine = result.parts[tags["grade_id"]]
        if tags["grade_id"] in automatic:
            mine.auto = min(auto, mine.auto or 0.0)
        else:
            mine.auto = None if tags["grade_id"] in submission.visible.elsewhere else auto
            mine.outcome = "no answer" if mine.auto == 0 else "not marked yet"
    notebook["cells"] = [_shown(cell, setup.released) for cell in notebook["cells"]]
    return notebook


def _shown(cell: dict, released: dict) -> dict:
    """A cell as it may stand on an instructor's page: only prose of the course's own is taken as it is."""
    own = any(cell["source"] == given["source"] for given in released["cells"])
    return cell if cell["cell_type"] == "code" or (own and "attachments" not in cell) else harmless(cell)


def run_cells(setup: Setup, settled: Settled) -> tuple[Report, list[str]]:
    """A notebook's cells in the sandbox -> what became of each part, and why a process was ended."""
    with setup.package_folder() as root, SandboxWorker(setup.sandbox, root) as worker:
        report = worker.run(settled.cells, time_limit=setup.sandbox.limits.cell_seconds)
        return report, worker.reasons
