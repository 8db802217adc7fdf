"""A class of sixty in module 15, a third of it hostile: what each earns, what it takes in time and memory."""

import threading

import psutil
import pytest

from bank import check, right_answers, wrong_answers
from course import Course, points
from hostile import dishonest, harmful, unreadable

pytestmark = pytest.mark.grading


SIZE, HOSTILE = 60, 20
MEMORY_LIMIT = 3e9  # bytes, for the grader and two students at a time


class Peak:
    """The memory of this process and all that it started, at its highest."""

    def __enter__(self):
        self.bytes, self._over = 0, threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()
        return self

    def __exit__(self, *_):
        self._over.set()
        self._thread.join()

    def _watch(self):
        me = psutil.Process()
        while not self._over.wait(0.2):
            total = 0
            for process in [me, *me.children(recursive=True)]:
                try:
                    total += process.memory_info().rss
                except psutil.NoSuchProcess:
                    continue
            self.bytes = max(self.bytes, total)


@pytest.fixture(scope="module")
def course(tmp_path_factory):
    return Course(tmp_path_factory.mktemp("class"), "15")


@pytest.fixture(scope="module")
def graded(course):
    """-> rows, the honest with the parts that they must lose, the hostile."""
    lying, harming, broken = dishonest(course), harmful(course), unreadable(course)
    names = ["broken", "imports-solution", "imports-by-name", "reads-disk", "always-equal", "frames"]
    names += ["patches-numpy", "patches-within", "patches-pytest", "writes-report", "exits-in-export"]
    names += ["broken-tests-edited"]
    hostile = {name: lying[name] for name in names}
    hostile |= {name: harming[name] for name in ("endless", "forks", "memory", "kills", "daemon", "disk")}
    hostile |= {name: broken[name] for name in ("truncated", "deep")}
    assert len(hostile) == HOSTILE
    honest = {name: (notebook, set()) for name, notebook in right_answers(course).items()}
    wrong = wrong_answers(course)
    step = len(wrong) / (SIZE - HOSTILE - len(honest))
    chosen = {list(wrong)[int(i * step)] for i in range(SIZE - HOSTILE - len(honest))}
    honest |= {student: answer for student, answer in wrong.items() if student in chosen}
    for student, notebook in [*hostile.items(), *((s, n) for s, (n, _) in honest.items())]:
        course.submit(student, notebook)
    course.submit("empty", course.released)
    course.grade("--student", "empty")  # learns what the reference tells
    with Peak() as peak:
        rows = course.grade("--jobs", "2", time_limit=12)
    seconds = sum(float(row["seconds"]) for row in rows.values())
    print(f"\n{len(rows)} students, {seconds / len(rows) / 2:.1f} s each on two, {peak.bytes / 1e6:.0f} MB")
    return rows, {student: lost for student, (_, lost) in honest.items()}, list(hostile), peak.bytes


def test_the_honest_earn_what_is_theirs(graded, course):
    rows, honest, hostile, _ = graded
    assert len(honest) + len(hostile) == SIZE
    check(course, rows, honest)
    assert points(rows["reference"]) == course.automatic
    assert points(rows["empty"]) == 0


def test_the_hostile_earn_nothing_that_is_not_theirs(graded, course):
    rows, _, hostile, _ = graded
    deserved = course.parts(rows["broken"])
    assert 0 < sum(deserved.values()) < course.automatic
    for name in hostile:
        earned = course.parts(rows[name])
        assert not {part for part in deserved if earned[part] > deserved[part]}, rows[name]


def test_memory_is_bounded(graded):
    assert 50e6 < graded[3] < MEMORY_LIMIT


def test_alone_they_have_the_same_grade(graded, course):
    rows, honest, _, _ = graded
    for student in ("reference", next(s for s in honest if s.startswith("wrong")), "endless", "forks"):
        alone = course.grade("--student", student, "--again", time_limit=12)[student]
        assert course.parts(alone) == course.parts(rows[student]), student
