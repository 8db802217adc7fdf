"""Every plausible mistake is caught twice: by the graded cell it breaks, and by the checkpoint tests.

The quick run tries every other one on the graded cells and one of each module on its checkpoint; `make
test-slow` the rest on the cells and every third on its checkpoint; `make test-answers` all. For one module:
`pytest -m "" tests/test_wrong_answers.py -k 12_attention`.
"""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache

import pytest

from judging import CHECKPOINT_LIMIT, MODULES, PROCESSES, checkpoint_of, reference, run
from tinytorch.tito.instructor.grading.submissions import needed_cells
from tinytorch.tito.process.checkpoint import Checkpoint, run_checkpoint
from tinytorch.tito.process.worker import PASSED, UNWRITTEN, Cell, cells_of
from tinytorch.tito.student.module import for_student
from toy import REPO
from wrong_answers import FOLDER, Wrong, apply_to, load_all

WRONG = load_all()
EACH = [pytest.param(label, wrong, id=f"{label}-{wrong.name}") for label in WRONG for wrong in WRONG[label]]
AT_LEAST = 8
HALVES = [
    pytest.param(label, wrong, id=f"{label}-{wrong.name}", marks=[pytest.mark.slow] if place % 2 else [])
    for label in WRONG
    for place, wrong in enumerate(WRONG[label])
]
EACH_THIRD = [
    pytest.param(*each.values, id=each.id, marks=[pytest.mark.exhaustive] if place % 3 else [])
    for place, each in enumerate(EACH)
]
pytestmark = pytest.mark.usefixtures("few_processes")


@dataclass
class Verdict:
    """What the graded cells say of one wrong answer."""

    problem: str = ""  # why it does not fit the module
    lost: tuple[str, ...] = ()  # the parts without points
    told: str = ""


def cells_with(label: str, wrong: Wrong) -> list[Cell] | ValueError:
    """The cells to run with the mistake in them, or why it does not fit the module."""
    try:
        notebook = apply_to(reference(label), wrong)
    except ValueError as error:
        return error
    return needed_cells(notebook, unlike=reference(label))


def judged(cells: list[Cell] | ValueError) -> Verdict:
    if isinstance(cells, ValueError):
        return Verdict(problem=str(cells))
    report = run(cells)
    lost = tuple(part.grade_id for part in report.parts if part.status != PASSED)
    return Verdict(lost=lost, told="\n".join(f"{p.grade_id}: {p.status}: {p.message}" for p in report.parts))


@cache
def verdicts(label: str, half: int) -> dict[str, Verdict]:
    """Every other wrong answer to a module, from the first or the second on, on both cores."""
    wrongs = WRONG[label][half::2]
    # Parsed here and not in the threads, see PARSER.
    cells = [cells_with(label, wrong) for wrong in wrongs]
    with ThreadPoolExecutor(PROCESSES) as pool:
        found = pool.map(judged, cells)
        return dict(zip((wrong.name for wrong in wrongs), found, strict=True))


def verdict_on(label: str, wrong: Wrong) -> Verdict:
    return verdicts(label, WRONG[label].index(wrong) % 2)[wrong.name]


def is_caught(label: str, wrong: Wrong) -> bool:
    return set(verdict_on(label, wrong).lost) == {wrong.part, *wrong.also}


# ---------------------------------------------------------------------------------- right and empty answers


@pytest.mark.parametrize("label", MODULES)
def test_the_reference_gets_every_point(label):
    report = run(needed_cells(reference(label)))
    assert report.parts, f"module {label} has no graded part"
    lost = [
        f"{part.grade_id} {part.status}: {part.message}" for part in report.parts if part.status != PASSED
    ]
    assert not lost, "\n".join(lost)
    assert report.earned == report.possible > 0


@pytest.mark.parametrize("label", MODULES)
def test_the_untouched_notebook_gets_no_point(label):
    report = run(needed_cells(for_student(reference(label))))
    given = [part.grade_id for part in report.parts if part.status == PASSED]
    assert report.parts and not given, f"points for nothing: {', '.join(given)}"
    other = [
        f"{part.grade_id} {part.status}: {part.message}" for part in report.parts if part.status != UNWRITTEN
    ]
    assert not other, "a student should read that these are not written yet:\n" + "\n".join(other)


# -------------------------------------------------------------------------------------------- wrong answers


@pytest.mark.parametrize("label", MODULES)
def test_there_are_enough_wrong_answers(label):
    assert len(WRONG.get(label, [])) >= AT_LEAST
    parts = {cell.grade_id for cell in cells_of(reference(label)) if cell.is_test}
    unknown = {part for wrong in WRONG[label] for part in (wrong.part, *wrong.also)} - parts
    assert not unknown, f"no such test cells: {', '.join(sorted(unknown))}"


def test_every_list_belongs_to_a_module():
    assert set(WRONG) <= set(MODULES)


@pytest.mark.parametrize(("label", "wrong"), HALVES)
def test_the_graded_cell_catches_it_and_no_other_does(label, wrong):
    verdict = verdict_on(label, wrong)
    assert not verdict.problem, verdict.problem
    assert set(verdict.lost) == {wrong.part, *wrong.also}, (
        f"{wrong.name!r} should cost {', '.join((wrong.part, *wrong.also))}, "
        f"it costs {', '.join(verdict.lost) or 'nothing'}\n{verdict.told}"
    )


@pytest.mark.slow
def test_all_are_caught_by_the_graded_cells(capsys):
    everyone = [(label, wrong) for label in WRONG for wrong in WRONG[label]]
    assert everyone, f"{FOLDER} holds no wrong answers"
    missed = [f"{label}: {wrong.name}" for label, wrong in everyone if not is_caught(label, wrong)]
    with capsys.disabled():
        print(f"\nwrong answers caught by the graded cells: {len(everyone) - len(missed)} of {len(everyone)}")
    assert not missed, "\n".join(missed)


# ---------------------------------------------------------------------------- wrong answers and checkpoints


@pytest.fixture(scope="module")
def overlays(tmp_path_factory):
    """(label, wrong) -> what the checkpoint says of the package with this mistake exported into it."""
    folder = tmp_path_factory.mktemp("overlays")
    results: dict[str, dict[str, Checkpoint]] = {}

    def one(label: str, wrong: Wrong) -> Checkpoint:
        root = folder / f"{label}-{WRONG[label].index(wrong)}"
        return checkpoint_of(label, apply_to(reference(label), wrong), root)

    def check(label: str, chosen: tuple[Wrong, ...]) -> dict[str, Checkpoint]:
        known = results.setdefault(label, {})
        todo = [wrong for wrong in chosen if wrong.name not in known]
        with ThreadPoolExecutor(PROCESSES) as pool:
            found = pool.map(lambda wrong: one(label, wrong), todo)
            known.update(zip((wrong.name for wrong in todo), found, strict=True))
        return known

    return check


def is_refused(result: Checkpoint) -> bool:
    """By a test that fails, or by going on for ever; not by a pytest that did not get to its tests."""
    return not result.ok and (result.finished or "did not end" in str(result.failed))


@pytest.mark.parametrize("label", WRONG)
def test_the_checkpoint_catches_the_middle_one(label, overlays):
    middle = WRONG[label][len(WRONG[label]) // 2]
    assert is_refused(overlays(label, (middle,))[middle.name]), (
        f"the checkpoint of {label} lets {middle.name!r} pass"
    )


@pytest.mark.slow
@pytest.mark.parametrize("label", MODULES)
def test_the_checkpoint_passes_on_the_reference(label):
    path = REPO / "tests" / "checkpoints" / f"test_checkpoint_{label}.py"
    result = run_checkpoint(path, root=REPO, first_failure=True, time_limit=CHECKPOINT_LIMIT)
    assert result.ok, f"else catching wrong answers proves nothing: {result.failed}\n{result.output[-3000:]}"


@pytest.fixture(scope="module")
def chosen(request):
    """The wrong answers whose checkpoints this run asks for, by module: they are judged two at a time."""
    tests = (item for item in request.session.items if item.originalname == "test_the_checkpoint_catches_it")
    found: dict[str, list[Wrong]] = {}
    for item in tests:
        found.setdefault(item.callspec.params["label"], []).append(item.callspec.params["wrong"])
    return found


@pytest.mark.slow
@pytest.mark.parametrize(("label", "wrong"), EACH_THIRD)
def test_the_checkpoint_catches_it(label, wrong, overlays, chosen):
    result = overlays(label, tuple(chosen[label]))[wrong.name]
    assert is_refused(result), (
        f"the checkpoint of {label} lets {wrong.name!r} pass ({result.passed} tests)\n{result.output[-3000:]}"
    )


@pytest.mark.slow
@pytest.mark.exhaustive
def test_all_are_caught_by_the_checkpoints(overlays, capsys):
    everyone = [(label, wrong) for label in WRONG for wrong in WRONG[label]]
    missed = []
    for label, wrong in everyone:
        if not is_refused(overlays(label, tuple(WRONG[label]))[wrong.name]):
            missed.append(f"{label}: {wrong.name}")
    with capsys.disabled():
        print(f"\nwrong answers caught by the checkpoints: {len(everyone) - len(missed)} of {len(everyone)}")
    assert everyone and not missed, "\n".join(missed)


# --------------------------------------------------------------------------------------- the harness itself


SOURCE = """def f(x):
    'x + 1'
    ### BEGIN SOLUTION
    y = x + 1
    return y
    ### END SOLUTION
    x + 1

def g(x):
    ### BEGIN SOLUTION
    return x + 1
    ### END SOLUTION"""
NOTEBOOK = {
    "cells": [
        {
            "cell_type": "code",
            "metadata": {"nbgrader": {"solution": True, "grade": False, "grade_id": "f"}},
            "source": SOURCE,
        },
        {"cell_type": "code", "metadata": {}, "source": "x + 1"},
    ]
}


def test_a_mistake_is_made_in_solutions_only():
    wrong = apply_to(NOTEBOOK, Wrong("n", "p", "x + 1", "x - 1", count=2))
    source = wrong["cells"][0]["source"]
    assert source.count("x - 1") == 2 and source.count("x + 1") == 2
    assert wrong["cells"][1]["source"] == "x + 1"
    assert source.replace("x - 1", "x + 1") == NOTEBOOK["cells"][0]["source"]
    across = apply_to(NOTEBOOK, Wrong("n", "p", "x + 1\n    return y", "x\n    return y + 1"))
    assert "    y = x\n    return y + 1\n    ### END" in across["cells"][0]["source"]


@pytest.mark.parametrize(
    ("old", "new", "sentence"),
    [
        ("x + 1", "x - 1", "stands 2 times in solutions, should be 1"),
        ("x + 2", "x - 1", "stands 0 times"),
        ("'x + 1'", "x - 1", "stands 0 times"),
        ("y = x + 1", "y = ", "is no Python"),
        ("y = x + 1", "y = x + 1", "changes nothing"),
    ],
)
def test_a_mistake_that_does_not_fit_is_refused(old, new, sentence):
    with pytest.raises(ValueError, match=sentence):
        apply_to(NOTEBOOK, Wrong("n", "p", old, new))


def test_only_needed_cells_are_run():
    tags = {"grade": True, "solution": False, "grade_id": "t", "points": 1}
    sources = ["import a", "helper = a.b", "x = 1\nx", "def f(): return helper", "x = f()\nassert x"]
    cells = [{"cell_type": "code", "metadata": {}, "source": source} for source in [*sources, "late = x"]]
    cells[-2]["metadata"] = {"nbgrader": tags}
    assert [cell.index for cell in needed_cells({"cells": cells})] == [0, 1, 3, 4]
