"""The second check: checkpoint tests against the exported code, where no cell of the notebook has run."""

import ast
import contextlib
import hashlib
import json
import queue
import random
import re
import secrets
import threading
import time
from collections.abc import Set
from dataclasses import dataclass, field
from pathlib import Path

from tinytorch.tito.instructor.grading.reach import reaching
from tinytorch.tito.instructor.grading.setup import Setup
from tinytorch.tito.instructor.grading.stand_in import with_reference
from tinytorch.tito.instructor.grading.submissions import Submission
from tinytorch.tito.instructor.grading.twins import Shifter
from tinytorch.tito.notebook.cells import OWN, SOLUTION
from tinytorch.tito.notebook.files import fingerprint
from tinytorch.tito.notebook.package import Export, ExportedModule
from tinytorch.tito.notebook.python import PARSER, parse
from tinytorch.tito.process.outcomes import MAX_STUCK
from tinytorch.tito.process.sandbox import PATIENCE, bounded_lines
from tinytorch.tito.project import TitoError

MAX_EXAMPLES = 25  # of one property; the checkpoint itself may ask for hundreds
LOOKS = 6  # after one of so many tests, it is looked at what they have changed; and at the end
TEST_SECONDS = 15.0  # of the processor, for one test


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
    twins: dict[str, bool] = field(default_factory=dict)  # twin of a test -> passed
    problem: str = ""  # why none of it counts
    tampers: bool = False  # which is that the code turns on what checks it
    stuck: list[str] = field(default_factory=list)  # tests that did not come to their end
    notes: list[str] = field(default_factory=list)
    changes: list[str] = field(default_factory=list)  # what of others' code was changed meanwhile
    reached: set[str] = field(default_factory=set)  # what its code asked Python for
    withheld: dict[str, str] = field(default_factory=dict)  # solution cell that did not count -> why
    broken_line: int | None = None  # the line at which the exported code cannot be imported, or reaches
    broken_by: str = ""


def run_checks(
    setup: Setup,
    submission: Submission,
    ended: dict[int, str],
    replaced: Set[int] = frozenset(),
    only: Set[str] | None = None,
) -> Checked:
    """The checkpoint tests against the exported code, on top of the earlier modules.

    `ended`: the cells that did not come to their end when they were run, and why. They are withheld, like
    those that reach for the machinery or break the import, and the reference stands in for a withheld cell.
    `replaced`: solutions for which it stands in without a word. `only`: these tests alone.
    """
    settled = submission.visible
    if replaced:
        settled = with_reference(settled, setup.source, setup.needs, replaced)
    export = Export(settled, Path(f"{setup.name}.ipynb"), None, setup.target, setup.source)
    for index, why in sorted({**ended, **reaching(export.of_student(), submission.reference)}.items()):
        if settled.cells[index].role in (SOLUTION, OWN):
            export.withhold(settled.cells[index], why)

    def attempt(built: ExportedModule) -> Checked:
        with setup.package_folder() as root:
            built.write(root / "tinytorch")
            return _run_tests(setup, root, fingerprint(settled.notebook()), only)

    try:
        checked = export.until_it_imports(attempt)
    except TitoError as error:
        return Checked(problem=f"the code cannot be exported: {error.message}", notes=export.notes)
    checked.notes = export.notes + checked.notes
    cells = ((settled.cells[index], why) for index, why in export.withheld.items())
    checked.withheld = {cell.grade_id: why for cell, why in cells if cell.role == SOLUTION}
    return checked


def _run_tests(setup: Setup, root: Path, salt: str, only: Set[str] | None) -> Checked:
    text, real, twins, canaries = disguised(setup.tests, setup.secret + salt.encode(), setup.needs is None)
    hidden = {old: new for new, old in real.items()}
    wanted = None if only is None else sorted({hidden[name.partition("[")[0]] for name in only})
    name = f"test_{secrets.token_hex(8)}.py"
    job = {
        "root": str(root),
        "target": setup.target,
        "name": name,
        "source": text,
        "only": wanted,
        "look": random.Random(text).sample(sorted(real), len(real) // LOOKS),
    }
    checked, outcomes = Checked(), {}
    for _ in range(MAX_STUCK):
        stuck = _one_process(setup, root, job | {"skip": sorted(outcomes)}, checked, outcomes)
        if stuck is None or checked.problem or checked.broken_line is not None:
            break
        function, bracket, case = stuck.partition("[")
        checked.stuck += [real[function] + bracket + case] if function in real else []
    else:
        checked.problem = f"{MAX_STUCK} tests did not come to their end"
    for test, (passed, message) in outcomes.items():
        function, bracket, case = test.partition("[")
        if function in real:
            checked.outcomes[real[function] + bracket + case] = (passed, message)
        elif function in twins:
            checked.twins[twins[function] + bracket + case] = passed
    known = setup.needs
    changes = [name for name in checked.changes if known and name not in known.changes]
    both = [name for name, passed in checked.twins.items() if passed and _passed(checked, name)]
    tricked = any(known and name in known.twins for name in both)
    checked.tampers = bool(tricked or changes or any(outcomes.get(name, (False, ""))[0] for name in canaries))
    if checked.tampers and not checked.problem:
        why = f"it changes `{changes[0]}`" if changes else "tests that must fail did not"
        checked.problem = f"the code tampers with what checks it: {why}"
    return checked


def _passed(checked: Checked, twin: str) -> bool:
    """Whether the test of a twin passed too."""
    return checked.outcomes.get(twin.partition(" of ")[2], (False, ""))[0]


def _one_process(setup: Setup, root: Path, job: dict, checked: Checked, outcomes: dict) -> str | None:
    """Runs the tests that have no outcome yet -> the one that the process did not get past."""
    token, limits = secrets.token_hex(16), setup.sandbox.limits
    patience = min(TEST_SECONDS, limits.cell_seconds)
    lines: queue.Queue[str | None] = queue.Queue()
    current, ended = None, False
    guarded = setup.sandbox.start("checks_script.py", root)

    def read() -> None:
        for line in bounded_lines(guarded.process.stdout):
            lines.put(line)
        lines.put(None)

    threads = [
        threading.Thread(target=read, daemon=True),
        threading.Thread(target=lambda: list(bounded_lines(guarded.process.stderr)), daemon=True),
    ]
    for thread in threads:
        thread.start()
    try:
        with contextlib.suppress(OSError):  # it is already dead, and the report says nothing
            guarded.process.stdin.write(json.dumps(job | {"token": token}) + "\n")
            guarded.process.stdin.flush()
        began, used = time.monotonic(), 0.0
        while not ended:  # Python's own end may take seconds
            try:
                line = lines.get(timeout=0.1)
            except queue.Empty:
                cpu, wall = guarded.cpu_seconds - used, time.monotonic() - began
                if current and (cpu > patience or wall > PATIENCE * patience):
                    outcomes[current] = False, f"it did not end within {patience:g} seconds"
                    return current
                continue
            if line is None:
                break
            if not line.startswith(f"['{token}', "):
                continue  # nothing of ours
            with PARSER:
                _, name, outcome, message = ast.literal_eval(line)
            if name == "begin":
                current, began, used = outcome, time.monotonic(), guarded.cpu_seconds
            elif name == "changed":
                checked.changes += [what for what in message if what not in checked.changes]
            elif name == "import":
                checked.broken_line, checked.broken_by = outcome, message
                checked.problem = f"the exported code cannot be imported: {message}"
                return None
            elif name == "reached":
                checked.reached.add(message)
                if setup.needs and message not in setup.needs.reached:
                    checked.broken_line, checked.broken_by = outcome, f"it asks Python for `{message}`"
                    checked.problem = f"the code {checked.broken_by}"
                    return None
            elif name == "collection":
                checked.problem = f"the checkpoint cannot be read: {message}"
            elif name == "end":
                ended = True
            else:
                outcomes[name], current = (outcome == "passed", message[:500]), None
    finally:
        guarded.close()
        for thread in threads:
            thread.join(timeout=5)
    if ended:
        return None
    if current is None:
        checked.problem = guarded.reason or "Python ended before the tests did"
        return None
    outcomes[current] = False, guarded.reason or "Python ended in it"
    return current


def disguised(
    source: str, secret: bytes, learning: bool = False
) -> tuple[str, dict[str, str], dict[str, str], set[str]]:
    """The test file under names that nobody can foresee, with tests among them that must fail.

    -> its text, {new name: old name} of the tests, the same of their twins, the names of the canaries
    """

    def name_of(old: str) -> str:
        return "test_" + hashlib.blake2b(old.encode(), key=hashlib.sha256(secret).digest()).hexdigest()[:16]

    draw = random.Random(secret)
    lines = re.sub(r"max_examples=(\d+)", lambda m: f"max_examples={min(int(m[1]), MAX_EXAMPLES)}", source)
    lines = lines.split("\n")
    tree = parse("\n".join(lines))
    real, twins, extra, after, starts = {}, {}, {}, {}, []
    shifter = Shifter(name_of("shift"), draw, half=learning)
    for node in tree.body:
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test_"):
            real[name_of(node.name)] = node.name
            lines[node.lineno - 1] = lines[node.lineno - 1].replace(node.name, name_of(node.name), 1)
            starts.append(min([node.lineno, *(d.lineno for d in node.decorator_list)]) - 1)
            for kind, twin in shifter.twins(node):
                old = f"{kind} of {node.name}"
                twin.name = name_of(old)
                twins[twin.name], extra[twin.name] = old, ast.unparse(twin) + "\n\n\n"
                after[twin.name] = len(starts)  # what its decorators name stands above its test
    canaries = set()
    for number, body in enumerate(CANARIES):
        name = name_of(f"canary {number}")
        low = round(draw.uniform(0.5, 4.0), 3)
        shape = tuple(draw.choices(range(1, 6), k=draw.randint(1, 4)))
        for word, value in (("SHAPE", shape), ("A", low), ("B", low + draw.randint(1, 9))):
            body = re.sub(rf"\b{word}\b", repr(value), body)
        canaries.add(name)
        extra[name] = f"def {name}():\n{IMPORTS}    {body}\n\n\n"
    starts.append(len(lines))
    ways = {name: starts[after.get(name, 0) :] for name in extra}
    places = ((ways[name][int(name[5:13], 16) % len(ways[name])], name) for name in extra)
    for place, name in sorted(places, reverse=True):
        lines.insert(place, extra[name])
    return "\n".join([*lines, shifter.helper(), ""]), real, twins, canaries
