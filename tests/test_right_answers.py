"""Every right answer, in whatever style, gets every point and passes the checkpoint.

The quick run judges all of them by the graded cells; `-m slow` runs their checkpoints. For one module:
`pytest -m "" tests/test_right_answers.py -k 12_attention`.
"""

import re

import pytest

from judging import MODULES, REPO, checkpoint_of, reference, run
from right_answers import FOLDER, Right, apply_to, load_all
from tinytorch.tito.notebook.settle import needed_cells
from tinytorch.tito.process.outcomes import PASSED

RIGHT = load_all()
EACH = [pytest.param(label, right, id=f"{label}-{right.name}") for label in RIGHT for right in RIGHT[label]]
AT_LEAST = {"15_kvcaching": 8, "16_llama": 8}


@pytest.mark.parametrize("label", MODULES)
def test_there_are_enough_right_answers(label):
    assert len(RIGHT.get(label, [])) >= AT_LEAST.get(label, 2)
    short = [right.name for right in RIGHT[label] if len(right.bodies) + len(right.cells) < 2]
    assert not short, f"these answer only one task in another way: {', '.join(short)}"


def test_every_list_belongs_to_a_module():
    assert RIGHT and set(RIGHT) <= set(MODULES), f"see {FOLDER}"


@pytest.mark.parametrize(("label", "right"), EACH)
def test_it_gets_every_point(label, right):
    report = run(needed_cells(apply_to(reference(label), right)))
    lost = [f"{p.grade_id} {p.status}: {p.message}" for p in report.parts if p.status != PASSED]
    assert not lost, f"{right.name!r} is punished:\n" + "\n".join(lost)
    assert (
        report.earned
        == report.possible
        == sum(
            cell["metadata"]["nbgrader"]["points"]
            for cell in reference(label)["cells"]
            if cell["cell_type"] == "code" and cell["metadata"].get("nbgrader", {}).get("grade")
        )
    )
    assert not report.notes, report.notes


@pytest.mark.slow
@pytest.mark.parametrize(("label", "right"), EACH)
def test_the_checkpoint_lets_it_pass(label, right, tmp_path):
    result = checkpoint_of(label, apply_to(reference(label), right), tmp_path / "package")
    assert result.ok, f"{right.name!r} is refused: {result.failed}\n{result.output[-3000:]}"


MANY = 1000  # examples of each property; a class of 300 draws more


@pytest.mark.slow
@pytest.mark.exhaustive
@pytest.mark.parametrize(("label", "right"), EACH)
def test_no_rare_example_refuses_it(label, right, tmp_path):
    """Each submission is judged with examples of its own; none may ask for more than the task does."""
    checkpoint = (REPO / "tests" / "checkpoints" / f"test_checkpoint_{label}.py").read_text(encoding="utf-8")
    text, properties = re.subn(r"max_examples=\d+", f"max_examples={MANY}", checkpoint)
    assert properties
    file = tmp_path / f"test_{label}.py"
    file.write_text(text, encoding="utf-8")
    notebook = apply_to(reference(label), right)
    result = checkpoint_of(label, notebook, tmp_path / "package", file, time_limit=1800)
    assert result.ok, f"{right.name!r} is refused: {result.failed}\n{result.output[-3000:]}"


RAGGED = [each for each in EACH if each.values[0][:2] in ("12", "13", "15")]


@pytest.mark.slow
@pytest.mark.parametrize(("label", "right"), RAGGED)
def test_rows_of_different_lengths_are_exact_with_it(label, right, tmp_path):
    """No task speaks of padding: what is given for it in 13 and 15 has to work with any right answer."""
    notebook = apply_to(reference(label), right)
    result = checkpoint_of(label, notebook, tmp_path / "package", REPO / "tests" / "test_ragged.py")
    assert result.ok, f"{right.name!r} is refused: {result.failed}\n{result.output[-3000:]}"


# --------------------------------------------------------------------------------------- the harness itself


SOURCE = """class A:
    def f(self, x):
        ### BEGIN SOLUTION
        y = x + 1
        return y
        ### END SOLUTION

def f(x):
    ### BEGIN SOLUTION
    return x + 1
    ### END SOLUTION"""
TAGS = {"solution": True, "grade": False, "grade_id": "f"}
NOTEBOOK = {"cells": [{"cell_type": "code", "metadata": {"nbgrader": TAGS}, "source": SOURCE}]}


def test_an_answer_stands_where_it_was_asked():
    right = Right("r", bodies={"A.f": "\nif x:\n    return 1 + x\nreturn 1\n"}, extra={"f": "import os"})
    own, cell = apply_to(NOTEBOOK, right)["cells"]
    assert own["source"] == "import os"
    assert cell["source"] == SOURCE.replace(
        "        y = x + 1\n        return y\n", "        if x:\n            return 1 + x\n        return 1\n"
    )
    assert cell["source"].count("return x + 1") == 1
    last = apply_to(NOTEBOOK, Right("r", bodies={"f": "return 1 + x"}))["cells"][0]["source"]
    assert last == SOURCE.replace("    return x + 1\n", "    return 1 + x\n")
    whole = apply_to(NOTEBOOK, Right("r", cells={"f": "def f(x): return 1 + x"}))
    assert whole["cells"][0]["source"] == "def f(x): return 1 + x"
    assert NOTEBOOK["cells"][0]["source"] == SOURCE


@pytest.mark.parametrize(
    ("right", "sentence"),
    [
        (Right("r", bodies={"g": "return 1"}), "what is not asked: g"),
        (Right("r", cells={"g": "x = 1"}), "what is not asked: g"),
        (Right("r", extra={"g": "x = 1"}), "what is not asked: g"),
        (Right("r", bodies={"f": "return"}, cells={"f": "x = 1"}), "what is not asked: f"),
        (Right("r", bodies={"f": "return x + 1"}), "changes nothing in f"),
        (Right("r", cells={"f": SOURCE}), "changes nothing in f"),
        (Right("r", bodies={"f": "return ("}), "is no Python"),
    ],
)
def test_an_answer_that_does_not_fit_is_refused(right, sentence):
    with pytest.raises(ValueError, match=sentence):
        apply_to(NOTEBOOK, right)
