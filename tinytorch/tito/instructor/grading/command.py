"""`tito grade`: each submission checked, run apart from the others in a sandbox, and judged twice."""

# The first judge is nbgrader's: the test cells, hidden ones included, scored by its own rules into its own
# gradebook. They run beside the student's code, so they can be deceived. The second judge runs the checkpoint
# tests against the exported code in a process that has seen nothing of the notebook's other cells. What the
# two disagree on counts as the lower.

import ast
import contextlib
import copy
import hashlib
import json
import os
import platform
import random
import re
import secrets
import shutil
import tempfile
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future, ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import click

from tinytorch.tito.author.export import build_module
from tinytorch.tito.author.notebooks import cells_hash
from tinytorch.tito.instructor.course import alembic_on_path, prepare_course
from tinytorch.tito.instructor.grading import submissions
from tinytorch.tito.instructor.grading.results import (
    ABSENT,
    CRASHED,
    GRADED,
    MANUAL,
    REJECTED,
    TIMED_OUT,
    PartResult,
    Result,
    summary,
    write_feedback,
    write_grades,
)
from tinytorch.tito.instructor.grading.submissions import Refused, Submission
from tinytorch.tito.process import sandbox as sandboxes
from tinytorch.tito.process.sandbox import Limits, Sandbox, SandboxWorker, bounded_lines, find_bwrap
from tinytorch.tito.process.worker import BLOCKED, FAILED, PASSED, UNWRITTEN, Report, cells_of, read_notebook
from tinytorch.tito.project import (
    PARSER,
    Module,
    Project,
    TitoError,
    need_package,
    need_project,
    parse_python,
    write_text,
)
from tinytorch.tito.student.module import CODE_STUB

BEGIN, END = re.compile(r"[ \t]*### BEGIN SOLUTION"), re.compile(r"[ \t]*### END SOLUTION")
MAX_EXAMPLES = 25  # of one property; the checkpoint itself may ask for hundreds

TOOL = Path(__file__).parents[2]
OWN_FILES = sorted(file for room in ("process", "instructor/grading") for file in (TOOL / room).glob("*.py"))

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


@dataclass(frozen=True)
class Needs:
    """What the reference tells: which solution each test needs, and which part each solution earns.

    A solution is one region between the markers, numbered in the notebook's order.
    """

    tests: dict[str, list[int]]  # checkpoint test -> the solutions without which it fails
    parts: dict[str, list[int]]  # graded part -> the solutions without which it fails
    cells: list[str]  # solution -> the grade_id of its cell
    changes: list[str]  # what of others' code the reference itself changes while it is tested

    def first_part(self, solution: int) -> str | None:
        return next((name for name, needed in self.parts.items() if solution in needed), None)


@dataclass(frozen=True)
class Setup:
    """All that grading one student of a module takes."""

    label: str
    name: str
    target: str
    released: dict
    source: dict
    tests: str  # the checkpoint's text, "" if the module has none
    package: dict[str, str]  # {path: text} of the package: earlier modules only
    sandbox: Sandbox
    secret: bytes
    shown: frozenset[str]  # the cells that only show something: as they were handed out, they are not run
    needs: Needs | None = None

    def written(self) -> dict[str, float]:
        """{grade_id: points} of every graded cell, automatic or not."""
        cells = submissions.by_grade_id(self.source)
        tags = {name: cell["metadata"]["nbgrader"] for name, cell in cells.items()}
        return {
            name: tag.get("points", 0) for name, tag in tags.items() if tag.get("grade") or tag.get("task")
        }

    @contextmanager
    def package_folder(self) -> Iterator[Path]:
        """A temporary folder that holds the package."""
        with tempfile.TemporaryDirectory(prefix="tito-package-") as folder:
            root = Path(folder).resolve()
            for name, text in self.package.items():
                (root / name).parent.mkdir(parents=True, exist_ok=True)
                write_text(root / name, text)
            yield root


# ------------------------------------------------------------------------------------------- the two checks


def run_cells(setup: Setup, notebook: dict) -> tuple[Report, list[str]]:
    """The notebook's cells in the sandbox -> what became of each part, and why a process was ended."""
    cells = [cell for cell in cells_of(notebook) if not cell.is_code or cell.source not in setup.shown]
    with setup.package_folder() as root, SandboxWorker(setup.sandbox, root) as worker:
        report = worker.run(cells, time_limit=setup.sandbox.limits.cell_seconds)
        return report, worker.reasons


@dataclass
class Checked:
    """What became of the checkpoint tests."""

    outcomes: dict[str, tuple[bool, str]] = field(default_factory=dict)  # test -> passed, why not
    problem: str = ""  # why none of it counts
    notes: list[str] = field(default_factory=list)
    changes: list[str] = field(default_factory=list)  # what of others' code was changed meanwhile


def run_checks(setup: Setup, submission: Submission, failed: set[int]) -> Checked:
    """The checkpoint tests against the exported code, on top of the earlier modules."""
    notebook, notes = submissions.for_export(submission, setup.released, setup.target, failed)
    with setup.package_folder() as root:
        file = root / "modules" / setup.label / f"{setup.name}.ipynb"
        file.parent.mkdir(parents=True)
        write_text(file, json.dumps(notebook))
        try:
            with PARSER:  # nbdev parses, and keeps state of its own
                build_module(file, root, setup.target).write(root / "tinytorch")
        except (TitoError, SyntaxError, ValueError) as error:
            text = getattr(error, "message", None) or str(error)
            return Checked(
                problem=f"the code cannot be exported: {text.replace(str(file), file.name)}", notes=notes
            )
        shutil.rmtree(root / "modules")
        checked = _run_tests(setup, root, cells_hash(submission.visible))
    checked.notes = notes + checked.notes
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
    for node in parse_python(source).body:
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


# --------------------------------------------------------------------------------- what the reference tells


def solutions_of(notebook: dict) -> list[tuple[int, int, int]]:
    """Every region between solution markers: cell, first line, last line."""
    found = []
    for index, cell in enumerate(notebook["cells"]):
        first = None
        for number, line in enumerate(cell["source"].split("\n")):
            if BEGIN.match(line):
                first = number
            elif END.match(line) and first is not None:
                found.append((index, first, number))
    return [place for place in found if notebook["cells"][place[0]]["cell_type"] == "code"]


def without(notebook: dict, place: tuple[int, int, int]) -> dict:
    """The notebook with one solution replaced by its stub."""
    index, first, last = place
    notebook = copy.deepcopy(notebook)
    lines = notebook["cells"][index]["source"].split("\n")
    indent = re.match(r"\s*", lines[first])[0]
    lines[first : last + 1] = [indent + line for line in CODE_STUB]
    notebook["cells"][index]["source"] = "\n".join(lines)
    return notebook


def learn_needs(setup: Setup, jobs: int, tell: Callable[[], None] = lambda: None) -> Needs:
    """Runs the reference, then the reference without each of its solutions. TitoError if it does not pass."""

    def run(notebook: dict) -> tuple[Report, Checked]:
        with tempfile.TemporaryDirectory(prefix="tito-reference-") as folder:
            file = Path(folder) / "reference.ipynb"
            write_text(file, json.dumps(notebook))
            submission = submissions.check("reference", file, setup.released, setup.source)
        report, _ = run_cells(setup, submission.notebook)
        checked = run_checks(setup, submission, set()) if setup.tests else Checked()
        tell()
        return report, checked

    report, checked = run(setup.source)
    for part in report.parts:
        if part.status != PASSED:
            raise TitoError(f"The reference itself does not pass `{part.grade_id}`: {part.message}")
    if checked.problem or not all(passed for passed, _ in checked.outcomes.values()):
        wrong = next((f"{n}: {m}" for n, (p, m) in checked.outcomes.items() if not p), "")
        raise TitoError(f"The reference itself does not pass its checkpoint: {checked.problem or wrong}")
    places = solutions_of(setup.source)
    with ThreadPoolExecutor(jobs) as pool:
        runs = list(pool.map(lambda place: run(without(setup.source, place)), places))
    tests: dict[str, list[int]] = {name: [] for name in checked.outcomes}
    parts: dict[str, list[int]] = {part.grade_id: [] for part in report.parts}
    for number, (stubbed, less) in enumerate(runs):
        for part in stubbed.parts:
            if part.status != PASSED:
                parts[part.grade_id].append(number)
        for name in tests:
            if not less.outcomes.get(name, (False, ""))[0]:
                tests[name].append(number)
    cells = [setup.source["cells"][index]["metadata"]["nbgrader"]["grade_id"] for index, *_ in places]
    changes = {name for _, less in [(report, checked), *runs] for name in less.changes}
    return Needs(tests, parts, cells, sorted(changes))


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
    for n in range(len(needs.cells)):
        parts = [name for name, needed in needs.parts.items() if n in needed]
        if any(status.get(name) not in (PASSED, UNWRITTEN, BLOCKED) for name in parts):
            open_.add(n)
        if needs.first_part(n) not in earned:
            open_.add(n)
            surely.add(n)
    lost: dict[str, str] = {}

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


# ------------------------------------------------------------------------------------------- one student


@dataclass
class Graded:
    """A student's result, and the notebook with its outputs for the gradebook's pages."""

    result: Result
    notebook: dict | None = None


def grade_one(setup: Setup, student: str, data: bytes, flags: list[str]) -> Graded:
    """Grades one submission, whatever it is. Touches nothing but its own temporary files."""
    began = time.perf_counter()
    points = setup.written()
    result = Result(student, GRADED, flags=list(flags))
    result.parts = {name: PartResult(value, 0.0) for name, value in points.items()}
    notebook = None
    try:
        notebook = _grade(setup, student, data, result)
    except Refused as refused:
        result.status, result.reason = REJECTED, str(refused)
    except Exception as error:  # a report that a student's code has forged may break anything that reads it
        result.status, result.reason = (
            CRASHED,
            f"the report of its run cannot be read ({type(error).__name__})",
        )
        for part in result.parts.values():
            part.auto = 0.0
    result.seconds = time.perf_counter() - began
    return Graded(result, notebook)


def _grade(setup: Setup, student: str, data: bytes, result: Result) -> dict:
    with tempfile.TemporaryDirectory(prefix="tito-submission-") as folder:
        file = Path(folder) / f"{setup.name}.ipynb"
        file.write_bytes(data)
        submission = submissions.check(student, file, setup.released, setup.source)
    result.flags += submission.flags
    report, ended = run_cells(setup, submission.notebook)
    errors = {outcome.error for outcome in report.outcomes.values()}
    too_long = False
    timed_out = "Timeout" in errors or any("seconds" in reason for reason in ended)
    shown = report
    if not report.ok and not ended:
        shown, _ = run_cells(setup, submission.visible)
    lost: dict[str, str] = {}
    if setup.tests and setup.needs and report.earned:
        wrong = {index for index, outcome in report.outcomes.items() if not outcome.ok}
        checked = run_checks(setup, submission, wrong)
        lost = disagreements(setup.needs, report, checked)
        if lost and "tamper" not in checked.problem:  # a test of time may fail on a busy machine
            again = run_checks(setup, submission, wrong)
            for name, (passed, message) in again.outcomes.items():
                if passed:
                    checked.outcomes[name] = (passed, message)
            checked.problem = again.problem
            lost = disagreements(setup.needs, report, checked)
        result.flags += checked.notes
        if checked.problem:
            result.flags.append(f"second check: {checked.problem[:200]}")
            too_long = "seconds" in checked.problem
        if lost:
            result.flags.append(f"the two checks disagree on {', '.join(f'`{name}`' for name in lost)}")
    if setup.needs:
        confirmed = {n for needed in setup.needs.tests.values() for n in needed}
        for part in report.parts:
            needed = setup.needs.parts.get(part.grade_id, [])
            if part.status == PASSED and submission.reaching and not confirmed & set(needed):
                lost[part.grade_id] = "no second check confirms it, and a cell " + _first(submission.reaching)
    reached = sorted(set(submission.reaching.values()))
    result.flags += [f"worth a look: in a cell, {text}" for text in reached[:5]]
    visible = {part.grade_id: part for part in shown.parts}
    for part in report.parts:
        mine = result.parts.get(part.grade_id)
        if mine is None:
            continue
        mine.outcome = part.status
        if part.grade_id in lost:
            mine.outcome, mine.reason = FAILED, lost[part.grade_id]
        elif part.status == PASSED:
            mine.auto = mine.points
        else:
            mine.reason = _reason(part, visible.get(part.grade_id), bool(ended))
    if timed_out:
        result.status = TIMED_OUT
        result.reason = next((r for r in ended if "seconds" in r), "a cell did not end in time")
    elif too_long:
        result.status, result.reason = TIMED_OUT, "the second check did not end in time"
    elif "Crash" in errors or ended:
        result.status = CRASHED
        result.reason = ended[0] if ended else "Python itself ended in one of its cells"
    return _score(setup, submission, report, result)


def _first(reaching: dict[int, str]) -> str:
    return next(iter(reaching.values()))


def _reason(part, visible, ended: bool) -> str:
    """Why a part earned nothing, from the run that has never seen a hidden test."""
    if ended or visible is None:
        return "the notebook did not come to its end"
    if visible.status == PASSED:
        return "the checks that you can see pass; one that you cannot see does not"
    return f"{visible.message}\n{visible.where}".strip()


def _score(setup: Setup, submission: Submission, report: Report, result: Result) -> dict:
    """Puts outputs into the notebook and lets nbgrader score it; the lower of both counts."""
    from nbformat import from_dict
    from nbgrader.utils import determine_grade

    notebook = copy.deepcopy(submission.notebook)
    for index, cell in enumerate(notebook["cells"]):
        if cell["cell_type"] != "code" or cell["source"] in setup.shown:
            continue
        outcome = report.outcomes.get(index)
        cell["outputs"] = outputs = []
        for name in ("stdout", "stderr") if outcome else ():
            text = getattr(outcome, name)
            if text:
                outputs.append({"output_type": "stream", "name": name, "text": str(text)[:20_000]})
        if outcome is None or not outcome.ok:
            error, message = (
                (outcome.error, outcome.message) if outcome else ("NotRun", "this cell was not run")
            )
            lines = [f"{error}: {message}"[:2000]]
            outputs.append({"output_type": "error", "ename": error, "evalue": message, "traceback": lines})
    for cell in notebook["cells"]:
        tags = cell["metadata"].get("nbgrader", {})
        if not tags.get("grade"):
            continue
        auto, most = determine_grade(from_dict(cell))
        mine = result.parts[tags["grade_id"]]
        if submissions.is_automatic(cell):
            mine.auto = min(auto, mine.auto or 0.0)
        else:
            mine.auto = auto
            mine.outcome = "no answer" if auto == 0 else "not marked yet"
    return notebook


# ------------------------------------------------------------------------------------------- the course


def set_up(project: Project, module: Module, course: Path, sandbox: Sandbox) -> Setup:
    """Reads the course and the package of the earlier modules."""
    release = prepare_course(project, module, course)
    source = course / "source" / module.label / module.notebook.name
    target = module.export_target()
    tests = project.root / "tests" / "checkpoints" / f"test_checkpoint_{module.label}.py"
    files = {project.package_dir / "__init__.py"}
    for other in project.modules():
        place = other.export_target()
        if place:
            file = project.package_dir.joinpath(*place.split(".")).with_suffix(".py")
            files |= {file} if other.number < module.number else set()
            files |= {file.with_name("__init__.py")}
    for file in sorted(files):
        if not file.is_file():
            raise TitoError(f"{file} is missing; run `tito export` first.")
    secret = hashlib.sha256()
    for file in [source, release, *sorted(files), *OWN_FILES, *([tests] if tests.is_file() else [])]:
        secret.update(hashlib.sha256(file.read_bytes()).digest())
    notebook = read_notebook(source)
    needed = {cell.source for cell in submissions.needed_cells(notebook)}
    return Setup(
        label=module.label,
        name=module.name,
        target=target or "",
        released=read_notebook(release),
        source=notebook,
        tests=tests.read_text(encoding="utf-8") if tests.is_file() else "",
        package={
            file.relative_to(project.root).as_posix(): file.read_text(encoding="utf-8")
            for file in sorted(files)
        },
        sandbox=sandbox,
        secret=secret.digest(),
        shown=frozenset(
            cell["source"]
            for cell in notebook["cells"]
            if cell["cell_type"] == "code" and cell["source"] not in needed
        ),
    )


def known_needs(setup: Setup, course: Path) -> tuple[Needs | None, Path]:
    """What an earlier run learnt of the reference, and where that is kept."""
    file = course / ".tito" / "reference" / f"{setup.label}.json"
    try:
        kept = json.loads(file.read_text(encoding="utf-8"))
        if kept["key"] == setup.secret.hex():
            return Needs(**kept["needs"]), file
    except (OSError, ValueError, KeyError, TypeError):
        pass  # there is none, or not of this version: it is learnt anew
    return None, file


def open_gradebook(course: Path):
    """nbgrader's gradebook of the course, as a context manager."""
    from nbgrader.api import Gradebook
    from sqlalchemy.exc import SAWarning

    warnings.filterwarnings("ignore", category=SAWarning, module="nbgrader")  # of its own queries
    with alembic_on_path():
        return Gradebook(f"sqlite:///{course / 'gradebook.db'}", "tinytorch")


def recorded_students(course: Path) -> set[str]:
    """Those whom the gradebook knows."""
    if not (course / "gradebook.db").is_file():
        return set()
    with open_gradebook(course) as book:
        return {student.id for student in book.students}


class Gradebooks:
    """nbgrader's gradebook of a course, open."""

    def __init__(self, course: Path, setup: Setup):
        self.setup = setup
        self.book = open_gradebook(course)

    def record(self, graded: Graded, unchanged: set[str]) -> None:
        """Puts the automatic scores there; marks given by hand stay as they are.

        unchanged: the written answers that are as they were when they were last recorded.
        Then fills in what the gradebook knows of each part, and the status.
        """
        from nbgrader.api import MissingEntry

        result, setup = graded.result, self.setup
        try:
            notebook = self.book.find_submission_notebook(setup.name, setup.label, result.student)
        except MissingEntry:
            self.book.update_or_create_student(result.student)
            self.book.update_or_create_submission(setup.label, result.student)
            notebook = self.book.find_submission_notebook(setup.name, setup.label, result.student)
            unchanged = set()
        for grade in notebook.grades:
            part = result.parts.get(grade.name)
            if part is None:
                continue
            if grade.name not in unchanged and (part.auto is None or grade.auto_score != part.auto):
                grade.needs_manual_grade = grade.manual_score is not None or part.auto is None
            grade.auto_score = part.auto
        self.book.db.commit()
        comments = {comment.name: comment.manual_comment for comment in notebook.comments}
        for grade in notebook.grades:
            part = result.parts.get(grade.name)
            if part is None:
                continue
            part.score, part.by_hand = float(grade.score or 0), grade.manual_score
            part.waits = bool(grade.needs_manual_grade)
            part.comment = comments.get(grade.name) or ""
            if part.waits:
                part.outcome = "not marked yet" if part.by_hand is None else "changed, to be marked again"
            elif part.by_hand is not None and part.auto is None:
                part.outcome = "marked by hand"
        if result.status in (GRADED, MANUAL):
            result.status = MANUAL if result.waiting else GRADED
            result.reason = f"to be marked: {', '.join(result.waiting)}" if result.waiting else ""

    def close(self) -> None:
        self.book.close()


@dataclass
class Kept:
    """The results of earlier runs, one file per student."""

    folder: Path

    def read(self, student: str, key: str) -> Graded | None:
        try:
            kept = json.loads((self.folder / f"{student}.json").read_text(encoding="utf-8"))
            if kept["key"] != key:
                return None
            parts = {name: PartResult(**part) for name, part in kept["result"].pop("parts").items()}
            return Graded(Result(**kept["result"], parts=parts), kept["notebook"])
        except (OSError, ValueError, KeyError, TypeError):
            return None  # there is none, or not of this version: it is graded anew

    def answers(self, student: str) -> dict[str, str]:
        """{written question: the answer that was recorded last}."""
        try:
            kept = json.loads((self.folder / f"{student}.json").read_text(encoding="utf-8"))
            return answers_in(kept["notebook"])
        except (OSError, ValueError, KeyError, TypeError):
            return {}  # nothing was recorded, or not by this version

    def write(self, key: str, graded: Graded) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        text = json.dumps({"key": key, "result": asdict(graded.result), "notebook": graded.notebook})
        write_text(self.folder / f"{graded.result.student}.json", text)


@contextmanager
def local_pool(jobs: int) -> Iterator[Executor]:
    """So many students at a time on this machine; each thread waits for processes of its own."""
    with ThreadPoolExecutor(jobs) as pool:
        try:
            yield pool
        except BaseException:
            sandboxes.STOP.set()  # ends what runs now
            pool.shutdown(wait=True, cancel_futures=True)
            sandboxes.STOP.clear()
            raise


@contextmanager
def dask_pool(address: str) -> Iterator[Executor]:
    """The workers of a Dask cluster that is there; TitoError if it cannot be reached or has other code."""
    from distributed import Client

    try:
        client = Client(address, timeout=20, set_as_default=False)
    except (OSError, ValueError) as error:
        raise TitoError(f"No Dask scheduler can be reached at {address} ({error}).") from None
    with client:
        versions = client.run(code_version)
        other = [worker for worker, version in versions.items() if version != code_version()]
        if other:
            raise TitoError(
                f"{len(other)} of {len(versions)} workers of {address} have another Python or another "
                f"version of tinytorch than this machine, {other[0]} among them."
            )
        pool = client.get_executor(pure=False)
        try:
            yield pool
        finally:
            pool.shutdown(wait=False)  # cancels what is not finished


def code_version() -> tuple[str, str]:
    """Python's version, and a sum of the grader's own files."""
    own = hashlib.sha256(b"".join(file.read_bytes() for file in OWN_FILES))
    return platform.python_version(), own.hexdigest()


def answers_in(notebook: dict) -> dict[str, str]:
    """{written question: answer}."""
    cells = submissions.by_grade_id(notebook)
    return {name: cell["source"] for name, cell in cells.items() if not submissions.is_automatic(cell)}


def grade_course(
    setup: Setup,
    course: Path,
    students: list[str],
    pool: Executor,
    module: Module,
    again: bool = False,
    tell: Callable[[Result], None] = lambda _: None,
) -> list[Result]:
    """Grades these students, writing each one's results as soon as they are known."""
    kept = Kept(course / ".tito" / "graded" / setup.label)
    book = Gradebooks(course, setup)
    results = []

    def finish(graded: Graded, key: str | None = None) -> None:
        result = graded.result
        if graded.result.status != ABSENT and submissions.STUDENT_ID.fullmatch(result.student):
            before = kept.answers(result.student)
            now = answers_in(graded.notebook) if graded.notebook else {}
            book.record(graded, {name for name, answer in now.items() if before.get(name) == answer})
            if graded.notebook:
                place = course / "autograded" / result.student / setup.label / f"{setup.name}.ipynb"
                place.parent.mkdir(parents=True, exist_ok=True)
                write_text(place, json.dumps(graded.notebook, indent=1) + "\n")
            if key:
                kept.write(key, graded)
            write_feedback(course / "feedback" / result.student / f"{setup.label}.html", setup.label, result)
        results.append(result)
        tell(result)

    waiting: dict[Future, tuple[str, str, dict]] = {}
    try:
        for student in students:
            parts = {name: PartResult(points, 0.0) for name, points in setup.written().items()}
            try:
                file, flags = submissions.find_file(course / "submitted" / student / setup.label, module)
                if file is None:
                    finish(Graded(Result(student, ABSENT, parts=parts)))
                    continue
                data = submissions.read_bytes(file)
            except Refused as refused:
                finish(Graded(Result(student, REJECTED, str(refused), parts=parts)))
                continue
            key = hashlib.sha256(setup.secret + hashlib.sha256(data).digest()).hexdigest()
            earlier = None if again else kept.read(student, key)
            if earlier is not None:
                finish(earlier)
                continue
            waiting[pool.submit(grade_one, setup, student, data, flags)] = student, key, parts
        for future in as_completed(waiting):
            student, key, parts = waiting[future]
            error = future.exception()
            if type(error).__name__ == "KilledWorker":  # after as many tries as Dask is set to allow
                reason = "every worker of the cluster that graded it ended while it did"
                finish(Graded(Result(student, CRASHED, reason, parts=parts)))
            else:
                finish(future.result(), key)
    finally:
        book.close()
    return results


@click.command("grade")
@click.argument("number", metavar="NN")
@click.option(
    "--course", required=True, type=click.Path(file_okay=False, path_type=Path), help="nbgrader's folder."
)
@click.option("--jobs", type=click.IntRange(1, 256), default=os.cpu_count() or 1, help="Students at a time.")
@click.option("--scheduler", metavar="ADDRESS", help="Send students to a Dask cluster: tcp://HOST:PORT.")
@click.option("--student", metavar="ID", help="Grade this student only.")
@click.option("--no-sandbox", is_flag=True, help="Run students' code without bubblewrap.")
@click.option("--again", is_flag=True, help="Grade anew what has not changed since it was graded.")
@click.option(
    "--time-limit", type=click.FloatRange(1), default=Limits.cell_seconds, help="Seconds for one cell."
)
def command(
    number: str,
    course: Path,
    jobs: int,
    scheduler: str | None,
    student: str | None,
    no_sandbox: bool,
    again: bool,
    time_limit: float,
) -> None:
    """Grade module NN: course/submitted/ID/NN_name/ -> gradebook, grades.csv and feedback."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    project = need_project()
    module = project.module(number)
    for package in ("nbgrader", "psutil", "nbdev", "pytest", "hypothesis"):
        need_package(package, "Grading", "dev,instructor")
    if scheduler:
        need_package("distributed", "Grading on a Dask cluster", "dev,instructor,cluster")
    course = course.resolve()
    found = students_in(course, module)
    if student is not None:
        if student not in found | recorded_students(course):
            raise TitoError(f"There is no student {student} in {course / 'submitted'} or the gradebook.")
        found = {student}
    elif not found:
        raise TitoError(
            f"There is no submission in {course / 'submitted'}: put each student's notebook into "
            f"{course.name}/submitted/ID/{module.label}/{module.name}.ipynb."
        )
    else:
        found |= recorded_students(course)
    limits = Limits(cell_seconds=time_limit, wall_seconds=max(Limits.wall_seconds, 5 * time_limit))
    if not no_sandbox:
        find_bwrap()
    sandbox = Sandbox(not no_sandbox, (project.root, course), limits)
    console = Console(stderr=True)
    if no_sandbox:
        console.print("Without a sandbox: students' code can read and change whatever you can.")
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    try:
        with Progress(*columns, console=console) as bar:
            task = bar.add_task("preparing the course", total=None)
            setup = set_up(project, module, course, sandbox)
            needs, file = known_needs(setup, course)
            if needs is None:  # once, until the module or the grader changes
                bar.update(
                    task,
                    description="our own solution",
                    total=1 + len(solutions_of(setup.source)),
                    completed=0,
                )
                needs = learn_needs(setup, jobs, lambda: bar.advance(task))
                file.parent.mkdir(parents=True, exist_ok=True)
                write_text(file, json.dumps({"key": setup.secret.hex(), "needs": asdict(needs)}))
            setup = replace(setup, needs=needs)
            bar.update(task, visible=False)
            task = bar.add_task("students", total=len(found))
            with dask_pool(scheduler) if scheduler else local_pool(jobs) as pool:
                results = grade_course(
                    setup, course, sorted(found), pool, module, again, lambda _: bar.advance(task)
                )
            write_grades(course / "grades.csv", setup.label, results, {student} if student else None)
    except KeyboardInterrupt:
        raise TitoError("Interrupted; the same command goes on with those who are not graded yet.") from None
    click.echo(f"{setup.label}: {summary(results)}; see {course / 'grades.csv'} and {course / 'feedback'}/")


def students_in(course: Path, module: Module) -> set[str]:
    """The names of the folders in submitted/; TitoError if this is no course folder."""
    folder = course / "submitted"
    if course.name == "submitted" and (course.parent / "gradebook.db").exists():
        raise TitoError(f"{course} is the folder of submissions; --course is the folder above it.")
    if not folder.is_dir():
        raise TitoError(
            f"There is no folder {folder}. For a new course, make "
            f"{course.name}/submitted/ID/{module.label}/ for each student and put the notebook there."
        )
    return {path.name for path in folder.iterdir() if path.is_dir() and not path.name.startswith(".")}
