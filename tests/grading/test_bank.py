"""Known wrong answers and known right ones through `tito grade`: every wrong one costs its own part alone."""

import json

import pytest

from bank import check, right_answers, wrong_answers
from course import Course, points
from habits import with_habits
from judging import run
from tinytorch.tito.notebook.files import from_bytes
from tinytorch.tito.notebook.settle import settle
from tinytorch.tito.project import Project
from toy import REPO

pytestmark = pytest.mark.grading


OTHERS = [module.label for module in Project(REPO).modules() if module.label != "15_kvcaching"]
EVERY_OTHER = [
    pytest.param(label, marks=[pytest.mark.exhaustive] if place % 2 else [])
    for place, label in enumerate(OTHERS)
]
# A sample of each; all of them are judged by the same cells and checkpoints outside of nbgrader.
WRONG, RIGHT, HABITS = 5, 2, 2


def some(answers: dict, number: int) -> list:
    """So many of the answers, spread over all, if there are so many."""
    items = list(answers.items())
    return [items[place * len(items) // number] for place in range(min(number, len(items)))]


@pytest.mark.parametrize("label", EVERY_OTHER)
def test_wrong_answers_cost_their_part_and_right_ones_nothing(label, tmp_path):
    course = Course(tmp_path / "course", label[:2])
    expected = {}
    for student, (notebook, lost) in some(wrong_answers(course), WRONG):
        course.submit(student, notebook)
        expected[student] = lost
    for student, notebook in some(right_answers(course), RIGHT):
        course.submit(student, notebook)
        expected[student] = set()
    for seed in range(HABITS):  # right too, and edited as students do
        course.submit(f"edited-{seed}", with_habits(course.solved(), seed)[0])
        expected[f"edited-{seed}"] = set()
    course.submit("empty", course.released)
    rows = course.grade("--jobs", "2", time_limit=12)
    assert float(rows["empty"]["score"]) == 0
    check(course, rows, expected)


@pytest.mark.exhaustive
@pytest.mark.parametrize("label", OTHERS)
def test_honest_edits_cost_nothing(label, tmp_path):
    """30 random edits of each module: every point through the grader, and `tito module test` agrees."""
    course = Course(tmp_path / "course", label[:2])
    edits = {f"edited-{seed}": with_habits(course.solved(), 1000 + seed) for seed in range(30)}
    for student, (notebook, _) in edits.items():
        course.submit(student, notebook)
    rows = course.grade("--jobs", "2", time_limit=12)
    for student, (notebook, habits) in edits.items():
        report = run(settle(from_bytes(json.dumps(notebook).encode(), "a.ipynb"), course.released).cells)
        assert points(rows[student]) == report.earned == course.automatic, f"{habits}: {rows[student]}"
