"""Known wrong answers and known right ones through `tito grade`: every wrong one costs its own part alone."""

import pytest

from bank import check, right_answers, wrong_answers
from course import Course
from tinytorch.tito.project import Project
from toy import REPO

pytestmark = pytest.mark.grading


OTHERS = [module.label for module in Project(REPO).modules() if module.label != "15_kvcaching"]
EVERY_OTHER = [
    pytest.param(label, marks=[pytest.mark.exhaustive] if place % 2 else [])
    for place, label in enumerate(OTHERS)
]
# A sample of each; all of them are judged by the same cells and checkpoints outside of nbgrader.
WRONG, RIGHT = 5, 2


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
    course.submit("empty", course.released)
    rows = course.grade("--jobs", "2", time_limit=20)
    assert float(rows["empty"]["score"]) == 0
    check(course, rows, expected)
