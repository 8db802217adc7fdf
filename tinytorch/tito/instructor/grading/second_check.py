"""The second check: checkpoint tests against the exported code, where no cell of the notebook has run."""

import ast
import contextlib
import hashlib
import json
import random
import re
import secrets
import threading
from dataclasses import dataclass, field
from pathlib import Path

from tinytorch.tito.instructor.grading.reach import reaching
from tinytorch.tito.instructor.grading.setup import Needs, Setup
from tinytorch.tito.instructor.grading.submissions import Submission
from tinytorch.tito.notebook.cells import OWN, SOLUTION
from tinytorch.tito.notebook.files import fingerprint
from tinytorch.tito.notebook.package import Export, ExportedModule
from tinytorch.tito.notebook.python import parse
from tinytorch.tito.process.outcomes import BLOCKED, PASSED, UNWRITTEN, Report
from tinytorch.tito.process.sandbox import bounded_lines
from tinytorch.tito.project import TitoError

MAX_EXAMPLES = 25  # of one property; the checkpoint itself may ask for hundreds


# Tests that must fail, with numbers of each run's own. A pytest, an assert or a NumPy that lets them pass has
# been tampered with.
CANARIES = (
    "assert A == B",
    "assert np.float32(A) == np.float32(B)",
    "assert np.allclose([A], [B])",
    "assert np.array_equal(np.full(SHAPE, A), np.full(SHAPE, B))",
    "assert np.isclose(A, B)",
    "assert (np.full(SHAPE, A) == np.full(SHAPE, B)).all()",
    "assert all([True, A == B])",
    "assert any([A == B, B == A])",
    "assert abs(A - B) < 1e-6",
    "assert isinstance(A, str)",
    "assert len([A]) == 2",
    "assert max([A, B]) == A",
    "assert float(np.full(SHAPE, A).sum()) == 0.0",
    "assert [A, 2] == [B, 2]",
    "assert A == pytest.approx(B)",
    "np.testing.assert_allclose(np.full(SHAPE, A), np.full(SHAPE, B), atol=1e-5)",
    "np.testing.assert_array_equal(np.full(SHAPE, A), np.full(SHAPE, B))",
    "np.testing.assert_equal(A, B)",
    "with pytest.raises(ValueError):\n        pass",
    "raise AssertionError('must fail')",
    "hypothesis.given(hypothesis.strategies.integers(0, 9))(lambda drawn: pytest.fail())()",
)

IMPORTS = "    import hypothesis\n    import numpy as np\n    import pytest\n\n"


@dataclass
class Checked:
    """What became of the checkpoint tests."""

    outcomes: dict[str, tuple[bool, str]] = field(default_factory=dict)  # test -> passed, why not
    problem: str = ""  # why none of it counts
    notes: list[str] = field(default_factory=list)
    changes: list[str] = field(default_factory=list)  # what of others' code was changed meanwhile
    withheld: dict[str, str] = field(default_factory=dict)  # solution cell that did not count -> why
    broken_line: int | None = None  # the line at which the exported code cannot be imported
    broken_by: str = ""


def run_checks(setup: Setup, submission: Submission, ended: dict[int, str]) -> Checked:
    """The checkpoint tests against the exported code, on top of the earlier modules.

    `ended`: the cells that did not come to their end when they were run, and why. They are withheld, like
    those that reach for the machinery or break the import; the reference stands in for a withheld solution.
    """
    settled = submission.visible
    export = Export(settled, Path(f"{setup.name}.ipynb"), None, setup.target, setup.source)
    for index, why in sorted({**ended, **reaching(export.of_student(), submission.reference)}.items()):
        if settled.cells[index].role in (SOLUTION, OWN):
            export.withhold(settled.cells[index], why)

    def attempt(built: ExportedModule) -> Checked:
        with setup.package_folder() as root:
            built.write(root / "tinytorch")
            return _run_tests(setup, root, fingerprint(settled.notebook()))

    try:
        checked = export.until_it_imports(attempt)
    except TitoError as error:
        return Checked(problem=f"the code cannot be exported: {error.message}", notes=export.notes)
    checked.notes = export.notes + checked.notes
    cells = ((settled.cells[index], why) for index, why in export.withheld.items())
    checked.withheld = {cell.grade_id: why for cell, why in cells if cell.role == SOLUTION}
    return checked


def _run_tests(setup: Setup, root: Path, salt: str) -> Checked:
    source, real, canaries = disguised(setup.tests, setup.secret + salt.encode())
    token = secrets.token_hex(16)
    job = {"root": str(root), "target": setup.target, "token": token, "source": source}
    job["name"] = f"test_checkpoint_{setup.label}.py"
    checked, outcomes, ended = Checked(), {}, False
    guarded = setup.sandbox.start("checks_script.py", root)
    drain = threading.Thread(target=lambda: list(bounded_lines(guarded.process.stderr)), daemon=True)
    drain.start()
    try:
        with contextlib.suppress(OSError):  # it is already dead, and the report says nothing
            guarded.process.stdin.write(json.dumps(job) + "\n")
            guarded.process.stdin.flush()
        for line in bounded_lines(guarded.process.stdout):
            if not line.startswith(f'["{token}", '):
                continue  # nothing of ours
            _, name, outcome, message = json.loads(line)
            if name == "changed":
                checked.changes = message
            elif name == "import":
                checked.broken_line, checked.broken_by = outcome, message
                outcomes["collection"] = False, message
            elif name == "end":
                ended = True
            else:
                outcomes[name] = (outcome == "passed", message[:500])
    finally:
        guarded.close()
        drain.join(timeout=5)
    checked.problem = guarded.reason
    collection = outcomes.pop("collection", None)
    for name, (passed, message) in outcomes.items():
        function, bracket, case = name.partition("[")
        if function in real:
            checked.outcomes[real[function] + bracket + case] = (passed, message)
    changes = [name for name in checked.changes if setup.needs and name not in setup.needs.changes]
    if collection and not checked.problem:
        checked.problem = f"the exported code cannot be imported: {collection[1]}"
    elif not ended and not checked.problem:
        checked.problem = "Python ended before the tests did"
    elif any(outcomes.get(name, (True, ""))[0] for name in canaries) and not checked.problem:
        checked.problem = "tests that must fail did not: the code tampers with what checks it"
    elif changes and not checked.problem:
        checked.problem = f"the code tampers with what checks it: it changes `{changes[0]}`"
    return checked


def disguised(source: str, secret: bytes) -> tuple[str, dict[str, str], set[str]]:
    """The test file under names that nobody can foresee, with tests among them that must fail.

    -> its text, {new name: old name}, the names of those that must fail
    """

    def name_of(old: str) -> str:
        return "test_" + hashlib.blake2b(old.encode(), key=hashlib.sha256(secret).digest()).hexdigest()[:16]

    draw = random.Random(secret)

    lines = re.sub(r"max_examples=(\d+)", lambda m: f"max_examples={min(int(m[1]), MAX_EXAMPLES)}", source)
    lines = lines.split("\n")
    real, canaries, starts = {}, {}, []
    for node in parse(source).body:
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test_"):
            real[name_of(node.name)] = node.name
            lines[node.lineno - 1] = lines[node.lineno - 1].replace(node.name, name_of(node.name), 1)
            starts.append(min([node.lineno, *(d.lineno for d in node.decorator_list)]) - 1)
    for number, body in enumerate(CANARIES):
        name = name_of(f"canary {number}")
        low = round(draw.uniform(0.5, 4.0), 3)
        shape = tuple(draw.choices(range(1, 6), k=draw.randint(1, 4)))
        for word, value in (("SHAPE", shape), ("A", low), ("B", low + draw.randint(1, 9))):
            body = re.sub(rf"\b{word}\b", repr(value), body)
        canaries[name] = f"def {name}():\n{IMPORTS}    {body}\n\n\n"
    starts.append(len(lines))
    for place, name in sorted(
        ((starts[int(name[5:13], 16) % len(starts)], name) for name in canaries), reverse=True
    ):
        lines.insert(place, canaries[name])
    return "\n".join(lines) + "\n", real, set(canaries)


def disagreements(needs: Needs, report: Report, checked: Checked) -> dict[str, str]:
    """The parts whose cells pass although the checkpoint shows that they should not -> the reason."""
    status = {part.grade_id: part.status for part in report.parts}
    earned = {name for name in needs.parts if status.get(name) == PASSED}
    if checked.problem:
        return {name: f"the second check failed: {checked.problem}" for name in earned}
    failing = {
        name: checked.outcomes.get(name, (False, "it was not run"))[1]
        for name in needs.tests
        if not checked.outcomes.get(name, (False, ""))[0]
    }
    open_, surely = set(), set()  # solutions that the cells themselves call wrong: perhaps, and surely
    lost: dict[str, str] = {}
    for n, cell in enumerate(needs.cells):
        name = needs.first_part(n)
        if cell in checked.withheld and name in earned:
            lost.setdefault(name, f"its cell was withheld from the second check: {checked.withheld[cell]}")
    for n in range(len(needs.cells)):
        parts = [name for name, needed in needs.parts.items() if n in needed]
        if any(status.get(name) not in (PASSED, UNWRITTEN, BLOCKED) for name in parts):
            open_.add(n)
        if needs.first_part(n) not in earned:
            open_.add(n)
            surely.add(n)

    def lose(solution: int, test: str) -> None:
        name = needs.first_part(solution)
        if name in earned:
            lost.setdefault(name, f"its cell passes, but not the checkpoint's {test}: {failing[test]}")

    def has_passing(n: int) -> bool:
        return any(n in needed and test not in failing for test, needed in needs.tests.items())

    for test in failing:
        needed = needs.tests[test]
        if not open_ & set(needed):
            for n in [n for n in needed if not has_passing(n)] or needed:
                lose(n, test)
    for n in open_ - surely:
        own = [test for test, needed in needs.tests.items() if n in needed and not surely & set(needed)]
        if own and all(test in failing for test in own):
            lose(n, own[0])
    return lost
