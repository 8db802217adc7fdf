"""Which solution is to blame for a checkpoint's test that fails: the one whose replacement mends it."""

import ast
from collections.abc import Callable, Sequence, Set

from tinytorch.tito.instructor.grading.second_check import Checked
from tinytorch.tito.instructor.grading.setup import Needs, Setup
from tinytorch.tito.instructor.grading.stand_in import sources_of
from tinytorch.tito.instructor.grading.submissions import Submission
from tinytorch.tito.notebook.cells import SOLUTION
from tinytorch.tito.notebook.python import parsed
from tinytorch.tito.process.outcomes import PASSED, Report

Solutions = frozenset[int]
Again = Callable[[Set[int], Set[str]], Checked]  # with these solutions replaced too, these tests alone


def earned_parts(needs: Needs, report: Report) -> set[str]:
    status = {part.grade_id: part.status for part in report.parts}
    return {name for name in needs.parts if status.get(name) == PASSED}


def without_points(needs: Needs, report: Report) -> set[int]:
    """The solutions that earn nothing anyhow: the reference stands in for them in the second check."""
    earned = earned_parts(needs, report)
    every = range(len(needs.cells))
    lasting = {n for n in every if needs.parts_of(n) & earned}
    cells = {needs.cells[n] for n in lasting}
    return {n for n in every if n not in lasting and (needs.parts_of(n) or needs.cells[n] not in cells)}


def failing_tests(needs: Needs, checked: Checked) -> dict[str, str]:
    """{test that fails: why}; one that was not run fails."""
    outcomes = {name: checked.outcomes.get(name, (False, "it was not run")) for name in needs.tests}
    return {name: message for name, (passed, message) in outcomes.items() if not passed}


def blame(
    setup: Setup, submission: Submission, report: Report, checked: Checked, again: Again
) -> dict[str, str]:
    """The parts whose solutions pass although the checkpoint shows that they should not -> the reason."""
    needs = setup.needs
    earned = earned_parts(needs, report)
    if checked.problem:
        return {name: f"the second check failed: {checked.problem}" for name in earned}
    lost: dict[str, str] = {}

    def lose(solutions: Set[int], why: str) -> None:
        for n in solutions:
            lost.update({name: why for name in needs.parts_of(n) & earned if name not in lost})

    for cell, why in checked.withheld.items():
        lose(set(needs.solutions_in(cell)), f"its cell was withheld from the second check: {why}")
    failing = failing_tests(needs, checked)
    trials = _Trials(set(failing), again)
    suspects = [frozenset(needs.solutions_in(cell)) for cell in _suspects(setup, submission, earned, checked)]
    every = frozenset().union(*suspects)
    for test, message in failing.items():
        needed = frozenset(needs.tests[test])
        guilty = trials.guilty(test, suspects)
        found = [_within(trials, test, cell, every - cell, needed, needs, earned) for cell in guilty]
        to_blame = frozenset().union(*found) if found else needed
        explained = {n for n in to_blame if _explained(needs, n, earned, set(failing))}
        lose(to_blame - explained, f"its cell passes, but not the checkpoint's {test}: {message}")
        for n in sorted(explained):
            names = " and ".join(f"`{name}`" for name in sorted(needs.parts_of(n) & earned))
            note = f"worth a look: {names} passes in `{needs.cells[n]}`, but not all of the checkpoint does"
            checked.notes += [note] if note not in checked.notes else []
    return lost


def _explained(needs: Needs, solution: int, earned: set[str], failing: set[str]) -> bool:
    """Whether a part that fails anyhow tells why tests of this solution fail: if not all of them do."""
    tests = {test for test, needed in needs.tests.items() if solution in needed}
    return not needs.parts_of(solution) <= earned and not tests <= failing


def _within(
    trials: "_Trials", test: str, cell: Solutions, others: Solutions, needed: Solutions, needs: Needs, earned
) -> Solutions:
    """Of a guilty cell, the solutions that are to blame: those that the test needs if it cannot be told."""
    counted = frozenset(n for n in cell if needs.parts_of(n) & earned)
    if len(counted) < 2:
        return counted
    guilty = trials.guilty(test, [frozenset({n}) for n in sorted(counted)], others)
    told = frozenset().union(*guilty)
    return (told & needed) or (counted & needed) or counted


class _Trials:
    """The failing tests again, with some solutions replaced; each way once."""

    def __init__(self, tests: Set[str], again: Again):
        self.tests, self.again = tests, again
        self.passed: dict[Solutions, set[str]] = {}

    def passes(self, test: str, replaced: Solutions) -> bool:
        if replaced not in self.passed:
            outcomes = self.again(replaced, self.tests).outcomes
            self.passed[replaced] = {name for name, (passed, _) in outcomes.items() if passed}
        return test in self.passed[replaced]

    def guilty(
        self, test: str, groups: Sequence[Solutions], others: Solutions = frozenset()
    ) -> list[Solutions]:
        """The groups to blame for a failing test, where the reference stands in for `others`.

        That is the one whose replacement mends the test. If there are several, or none, it is those that fail
        it where everything else is the reference's.
        """
        mending = [group for group in groups if self.passes(test, others | group)]
        if len(mending) == 1:
            return mending
        every = others.union(*groups)
        alone = [group for group in mending or groups if not self.passes(test, every - group)]
        return alone or mending


def _suspects(setup: Setup, submission: Submission, earned: set[str], checked: Checked) -> list[str]:
    """The solution cells that count in the second check and are not what the reference has."""
    needs, reference = setup.needs, sources_of(setup.source)
    return [
        cell.grade_id
        for cell in submission.visible.cells
        if cell.role == SOLUTION
        and cell.grade_id not in checked.withheld
        and any(needs.parts_of(n) & earned for n in needs.solutions_in(cell.grade_id))
        and _code(cell.source) != _code(reference[cell.grade_id])
    ]


def _code(source: str) -> str:
    tree = parsed(source)
    return source if tree is None else ast.dump(tree)
