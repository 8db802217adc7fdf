"""Known wrong answers and known right ones through `tito grade`: every wrong one costs its own part alone."""

from itertools import islice

import pytest

from bank import check, right_answers, wrong_answers
from course import Course
from tinytorch.tito.project import Project
from toy import REPO

pytestmark = pytest.mark.grading


OTHERS = [module.label for module in Project(REPO).modules() if module.label != "15_kvcaching"]
AT_LEAST = 8


@pytest.mark.parametrize("label", OTHERS)
def test_wrong_answers_cost_their_part_and_right_ones_nothing(label, tmp_path):
    course = Course(tmp_path / "course", label[:2])
    expected = {}
    wrong = wrong_answers(course)
    for student, (notebook, lost) in islice(wrong.items(), None, None, max(1, len(wrong) // AT_LEAST)):
        course.submit(student, notebook)
        expected[student] = lost
    for student, notebook in right_answers(course).items():
        course.submit(student, notebook)
        expected[student] = set()
    course.submit("empty", course.released)
    rows = course.grade("--jobs", "2", time_limit=20)
    assert float(rows["empty"]["score"]) == 0
    check(course, rows, expected)
