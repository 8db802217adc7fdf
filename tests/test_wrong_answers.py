"""Every plausible mistake is caught twice: by the graded cell it breaks, and by the checkpoint tests.

The quick run tries every other one on the graded cells and the middle one of each module on its checkpoint;
`make test-slow` the rest on the cells and every third on its checkpoint; `make test-answers` all. For one
module: `pytest -m "" tests/test_wrong_answers.py -k 12_attention`.
"""

import pytest

from judging import CHECKPOINT_LIMIT, MODULES, checkpoint_of, reference, run
from tinytorch.tito.notebook.cells import cells_of
from tinytorch.tito.notebook.markers import for_student
from tinytorch.tito.notebook.settle import needed_cells
from tinytorch.tito.process.checkpoint import run_checkpoint
from tinytorch.tito.process.outcomes import PASSED, UNWRITTEN
from toy import REPO
from wrong_answers import Wrong, apply_to, load_all

WRONG = load_all()
AT_LEAST = 8
SLOW, ONLY_ALL = [pytest.mark.slow], [pytest.mark.slow, pytest.mark.exhaustive]

ON_CELLS = [
    pytest.param(label, wrong, id=f"{label}-{wrong.name}", marks=SLOW if place % 2 else [])
    for label in WRONG
    for place, wrong in enumerate(WRONG[label])
]
MIDDLE = {label: len(wrongs) // 2 for label, wrongs in WRONG.items()}
ON_CHECKPOINTS = [
    pytest.param(
        label,
        wrong,
        id=f"{label}-{wrong.name}",
        marks=[] if place == MIDDLE[label] else ONLY_ALL if place % 3 else SLOW,
    )
    for label in WRONG
    for place, wrong in enumerate(WRONG[label])
]


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


@pytest.mark.parametrize(("label", "wrong"), ON_CELLS)
def test_the_graded_cell_catches_it_and_no_other_does(label, wrong):
    report = run(needed_cells(apply_to(reference(label), wrong), unlike=reference(label)))
    lost = {part.grade_id for part in report.parts if part.status != PASSED}
    told = "\n".join(f"{part.grade_id}: {part.status}: {part.message}" for part in report.parts)
    assert lost == {wrong.part, *wrong.also}, (
        f"{wrong.name!r} should cost {', '.join((wrong.part, *wrong.also))}, "
        f"it costs {', '.join(sorted(lost)) or 'nothing'}\n{told}"
    )


# ---------------------------------------------------------------------------- wrong answers and checkpoints


@pytest.mark.slow
@pytest.mark.parametrize("label", MODULES)
def test_the_checkpoint_passes_on_the_reference(label):
    path = REPO / "tests" / "checkpoints" / f"test_checkpoint_{label}.py"
    result = run_checkpoint(path, root=REPO, first_failure=True, time_limit=CHECKPOINT_LIMIT)
    assert result.ok, f"else catching wrong answers proves nothing: {result.failed}\n{result.output[-3000:]}"


@pytest.mark.parametrize(("label", "wrong"), ON_CHECKPOINTS)
def test_the_checkpoint_catches_it(label, wrong, tmp_path):
    result = checkpoint_of(label, apply_to(reference(label), wrong), tmp_path / "package")
    # by a test that fails, or by going on for ever; not by a pytest that did not get to its tests
    refused = not result.ok and (result.finished or "did not end" in str(result.failed))
    assert refused, (
        f"the checkpoint of {label} lets {wrong.name!r} pass ({result.passed} tests)\n{result.output[-3000:]}"
    )


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
