"""The reference's function in the place of a student's, and nothing else of the cell."""

import ast

import pytest

from tinytorch.tito.instructor.grading.setup import Needs
from tinytorch.tito.instructor.grading.stand_in import with_reference
from tinytorch.tito.notebook.cells import SOLUTION, Cell
from tinytorch.tito.notebook.settle import Settled

pytestmark = pytest.mark.grading

REFERENCE = '''LIMIT = 3


class Counter:
    """Counts."""

    def __init__(self):
        self.n = 0

    def up(self, by=1):
        ### BEGIN SOLUTION
        self.n = self.n + by
        ### END SOLUTION

    @property
    def full(self):
        ### BEGIN SOLUTION
        return self.n >= LIMIT
        ### END SOLUTION


def count(things):
    ### BEGIN SOLUTION
    return len(things)
    ### END SOLUTION
'''
NEEDS = Needs({}, {}, ["counter", "counter", "counter"], [], [], [])
UP, FULL, COUNT = 0, 1, 2


def replaced(mine: str, *solutions: int) -> dict:
    """The names of a student's cell in which the reference stands in for some solutions."""
    cell = Cell(0, 1, mine, grade_id="counter", solution=True, role=SOLUTION)
    source = {
        "cells": [
            {"cell_type": "code", "source": REFERENCE, "metadata": {"nbgrader": {"grade_id": "counter"}}}
        ]
    }
    (made,) = with_reference(Settled([cell], {"cells": []}), source, NEEDS, set(solutions)).cells
    assert cell.source == mine, "the student's own stays as it is"
    names: dict = {}
    exec(compile(ast.parse(made.source), "cell", "exec"), names)
    return names


MINE = """LIMIT = 5
class Counter:
    def __init__(self):
        self.n = 10
    def up(self, by=1): self.n -= by
    @property
    def full(self): return "mine"
def count(things):
    return -1
"""


@pytest.mark.parametrize(
    ("solutions", "up", "full", "count", "start"),
    [
        ((), 9, "mine", -1, 10),
        ((UP,), 11, "mine", -1, 10),
        ((FULL,), 9, True, -1, 10),
        ((COUNT,), 9, "mine", 2, 10),
        ((UP, COUNT), 11, "mine", 2, 10),
        ((UP, FULL, COUNT), 1, False, 2, 0),  # then all of the cell is the reference's
    ],
)
def test_one_function_stands_in(solutions, up, full, count, start):
    names = replaced(MINE, *solutions)
    counter = names["Counter"]()
    assert counter.n == start and names["count"]("ab") == count
    counter.up()
    assert (counter.n, counter.full) == (up, full)


@pytest.mark.parametrize(
    "mine",
    [
        MINE.replace("    def up(self, by=1): self.n -= by\n", ""),  # it is not there
        MINE.replace(
            "    @property\n    def full", "    def up(self, by=1): self.n = 0\n    @property\n    def full"
        ),
        MINE.replace("    ", "  "),  # another indentation
        MINE.replace("    def up(self, by=1): self.n -= by", "    up = lambda self, by=1: None"),
        "%load_ext autoreload\n" + MINE,
    ],
)
def test_however_it_is_written(mine):
    counter = replaced(mine, UP)["Counter"]()
    counter.up()
    assert counter.n == 11 and counter.full == "mine"


def test_where_there_is_no_place_for_it_the_whole_cell_is_the_references():
    names = replaced("def count(things):\n    return -1\n", UP)
    assert names["count"]("ab") == 2 and names["LIMIT"] == 3


def test_what_is_no_python_stays():
    cell = Cell(0, 1, "def count(:", grade_id="counter", solution=True, role=SOLUTION)
    source = {
        "cells": [
            {"cell_type": "code", "source": REFERENCE, "metadata": {"nbgrader": {"grade_id": "counter"}}}
        ]
    }
    assert with_reference(Settled([cell], {"cells": []}), source, NEEDS, {UP}).cells[0].source == cell.source
