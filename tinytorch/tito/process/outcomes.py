"""What became of a notebook's cells, and from that what became of each part."""

import re
from dataclasses import dataclass, field

from tinytorch.tito.notebook.cells import Cell
from tinytorch.tito.notebook.python import names_bound

MESSAGE_LIMIT = 2_000
MAX_STUCK = 4  # after so many cells that never ended, the rest is not run

PASSED = "passed"
FAILED = "failed"
UNWRITTEN = "not written yet"
BLOCKED = "blocked"
NOT_RUN = "not run"


@dataclass
class Outcome:
    """What became of one cell."""

    ok: bool
    error: str = ""  # the exception's type, "Timeout" or "Crash"
    message: str = ""
    frames: list[dict] = field(default_factory=list)  # outermost first: cell or file, line, code
    missing: str | None = None  # the name that a NameError or AttributeError misses
    stub: bool = False  # the error is the stub of a solution that nobody wrote
    stub_cell: int | None = None
    stdout: str = ""
    stderr: str = ""
    seconds: float = 0.0


@dataclass
class Part:
    """What became of one graded test cell."""

    grade_id: str
    points: float
    status: str
    message: str = ""
    where: str = ""  # "line 3 of `causal-mask`: return x" for an error that is no failed check
    cause: str | None = None  # the cell that blocks it or is still to be written
    output: str = ""

    @property
    def earned(self) -> float:
        return self.points if self.status == PASSED else 0


@dataclass
class Report:
    """What became of a notebook."""

    parts: list[Part]
    written: list[Cell]  # the questions that a person marks
    outcomes: dict[int, Outcome]  # by cell index
    notes: list[str]  # errors in cells that no part depends on
    seconds: float

    @property
    def earned(self) -> float:
        return sum(part.earned for part in self.parts)

    @property
    def possible(self) -> float:
        return sum(part.points for part in self.parts)

    @property
    def passed(self) -> int:
        return sum(part.status == PASSED for part in self.parts)

    @property
    def ok(self) -> bool:
        return bool(self.parts) and self.passed == len(self.parts)

    def part(self, grade_id: str) -> Part:
        for part in self.parts:
            if part.grade_id == grade_id:
                return part
        raise KeyError(grade_id)


def judge(cells: list[Cell], outcomes: dict[int, Outcome], seconds: float = 0.0) -> Report:
    """From each cell's outcome to each part's status."""
    by_index = {cell.index: cell for cell in cells}
    parts, used = [], set()
    for cell in cells:
        if cell.is_test:
            part, cause = _judge_part(cell, cells, by_index, outcomes)
            parts.append(part)
            used |= {cell.index, cause}
    notes = []
    for index, outcome in sorted(outcomes.items()):
        cell = by_index[index]
        if not (outcome.ok or outcome.stub or index in used or cell.is_test):
            if _source_of(outcome, cell, cells, outcomes) is None:
                what = describe(outcome)
                stops = "was stopped:" if outcome.error in ("Timeout", "Crash") else "stops with"
                notes.append(f"{cell.label} {stops} {what}{_at(outcome, by_index, cell)}")
    return Report(parts, [cell for cell in cells if cell.is_written], outcomes, notes, seconds)


def describe(outcome: Outcome) -> str:
    """ "ValueError: text", or only the text where the type says nothing to a student."""
    if outcome.error in ("", "AssertionError", "Warning", "Timeout", "Crash"):
        return outcome.message
    return f"{outcome.error}: {outcome.message}" if outcome.message else outcome.error


def _judge_part(cell, cells, by_index, outcomes) -> tuple[Part, int | None]:
    part = Part(cell.grade_id or cell.label, cell.points, PASSED)
    outcome = outcomes.get(cell.index)
    if outcome is None:
        part.status = NOT_RUN
        part.message = f"not run, because {MAX_STUCK} cells before it did not end"
        return part, None
    part.output = outcome.stdout + outcome.stderr
    if outcome.ok:
        return part, None
    if outcome.stub:
        part.status = UNWRITTEN
        stub = by_index.get(outcome.stub_cell)
        if stub is not None and stub.index != cell.index:
            part.cause = stub.label
            part.message = f"{stub.label} still holds its `raise NotImplementedError()`"
        return part, outcome.stub_cell
    source = _source_of(outcome, cell, cells, outcomes)
    if source is not None:
        first, part.cause = outcomes[source.index], source.label
        if first.stub:
            part.status = UNWRITTEN
            stub = by_index.get(first.stub_cell, source)
            part.cause = stub.label
            part.message = f"{stub.label} still holds its `raise NotImplementedError()`"
        else:
            part.status = BLOCKED
            part.message = f"by an error in {source.label}: {describe(first)}"
            part.where = _where(first, by_index, source)
        return part, source.index
    part.status = FAILED
    part.message = re.sub(
        r"<cell (\d+)>:(\d+)", lambda m: f"line {m[2]} of {by_index[int(m[1])].label}", describe(outcome)
    )
    if outcome.error != "AssertionError" or _own_frames(outcome, cell):
        part.where = _where(outcome, by_index, cell)
    return part, None


def _source_of(outcome, cell, cells, outcomes) -> Cell | None:
    """The first failed cell before this one without which the name that it misses does not exist."""
    seen = set()
    source = None
    while outcome.missing and outcome.missing not in seen:
        seen.add(outcome.missing)
        found = None
        for earlier in cells:
            if earlier.index >= cell.index:
                break
            failed = outcomes.get(earlier.index)
            if failed is not None and not failed.ok and not earlier.is_test:
                if outcome.missing in names_bound(earlier.source):
                    found = earlier
        if found is None:
            break
        source, cell, outcome = found, found, outcomes[found.index]
    return source


def _own_frames(outcome, cell) -> list[dict]:
    return [frame for frame in outcome.frames if frame["cell"] not in (None, cell.index)]


def _where(outcome, by_index, cell) -> str:
    """The innermost line in a cell, the student's own before this one; the package's too, if it is deeper."""
    frames = _own_frames(outcome, cell) or [frame for frame in outcome.frames if frame["cell"] == cell.index]
    if not frames:
        return ""
    frame = frames[-1]
    label = by_index[frame["cell"]].label if frame["cell"] in by_index else cell.label
    text = f"line {frame['line']} of {label}"
    if frame["code"]:
        text += f": {frame['code']}"
    if outcome.frames[-1]["cell"] is None and "tinytorch" in outcome.frames[-1]["file"]:
        deepest = outcome.frames[-1]
        text += f" (raised in {deepest['file']}, line {deepest['line']})"
    return text


def _at(outcome, by_index, cell) -> str:
    where = _where(outcome, by_index, cell)
    return f" ({where})" if where else ""
