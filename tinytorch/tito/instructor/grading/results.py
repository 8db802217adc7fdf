"""What a grading run leaves: grades.csv and a page for each student. Neither shows a hidden test."""

import csv
import io
from dataclasses import dataclass, field
from pathlib import Path

from tinytorch.tito.console import count
from tinytorch.tito.instructor.grading.harmless import plain_text
from tinytorch.tito.instructor.table import read_table
from tinytorch.tito.instructor.templating import render
from tinytorch.tito.project import write_text

GRADED, MANUAL, ABSENT = "graded", "needs manual marks", "not submitted"
TIMED_OUT, CRASHED, REJECTED = "timed out", "crashed", "rejected"
GRADE_COLUMNS = ("module", "student", "score", "max_score", "status", "late", "reason", "flags", "seconds")


@dataclass
class PartResult:
    """One graded cell of one student."""

    points: float
    auto: float | None = None  # None: a person marks it
    outcome: str = ""
    reason: str = ""
    score: float = 0.0  # with manual marks, from the gradebook
    waits: bool = False  # for a person's mark
    by_hand: float | None = None  # a person's mark
    comment: str = ""  # and words


@dataclass
class Result:
    """What became of one student's submission."""

    student: str
    status: str
    reason: str = ""
    flags: list[str] = field(default_factory=list)
    seconds: float = 0.0
    seconds_late: float = 0.0  # after the due date that nbgrader's gradebook knows
    penalty: float = 0.0  # points that the course's own rule takes off for that
    parts: dict[str, PartResult] = field(default_factory=dict)

    @property
    def score(self) -> float:
        return sum(part.score for part in self.parts.values())

    @property
    def waiting(self) -> dict[str, PartResult]:
        return {name: part for name, part in self.parts.items() if part.waits}

    @property
    def max_score(self) -> float:
        return sum(part.points for part in self.parts.values())


def read_grades(path: Path) -> tuple[list[str], list[dict[str, str]]]:
    """grades.csv -> its columns and rows; nothing if there is no file."""
    return read_table(path, ("module", "student")) if path.is_file() else (list(GRADE_COLUMNS), [])


def write_grades(path: Path, label: str, results: list[Result], fresh: set[str] | None = None) -> None:
    """Replaces the module's rows in grades.csv; those of other modules stay.

    `fresh`: only these students' rows are new, the module's other rows stay too.
    """
    there, rows = read_grades(path)
    new = None if fresh is None else {plain_text(student) for student in fresh}
    rows = [row for row in rows if row["module"] != label or (new is not None and row["student"] not in new)]
    columns = list(GRADE_COLUMNS) + [name for name in there if name not in GRADE_COLUMNS]
    for result in results:
        row = {
            "module": label,
            "student": plain_text(result.student),
            "score": f"{result.score:g}",
            "max_score": f"{result.max_score:g}",
            "status": result.status,
            "late": late(result.seconds_late),
            "reason": plain_text(result.reason),
            "flags": plain_text("; ".join(result.flags)),
            "seconds": f"{result.seconds:.1f}",
        }
        for name, part in result.parts.items():
            row[name] = "" if part.waits else f"{part.score:g}"
            if name not in columns:
                columns.append(name)
        rows.append(row)
    rows.sort(key=lambda row: (row["module"], row["student"]))
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows({name: row.get(name) or "" for name in columns} for row in rows)
    write_text(path, text.getvalue())


def late(seconds: float) -> str:
    """-> "10 d 2 h", "5 min"; "" if it was not late."""
    if seconds <= 0:
        return ""
    minutes = max(1, round(seconds / 60))
    days, hours = minutes // 1440, minutes // 60 % 24
    return f"{days} d {hours} h" if days else f"{hours} h {minutes % 60} min" if hours else f"{minutes} min"


def write_feedback(path: Path, label: str, result: Result) -> None:
    waiting = result.waiting
    open_points = sum(part.points for part in waiting.values())
    head = f"{result.score:g} of {result.max_score - open_points:g} points"
    if waiting:
        head += f" so far; {count(len(waiting), 'answer')} ({open_points:g} points) not marked yet"
    if result.status not in (GRADED, MANUAL):
        head += f"; {result.status}"
    if result.seconds_late:
        head += f"; handed in {late(result.seconds_late)} late"
    if result.penalty:
        head += f", which costs {result.penalty:g} points"
    notes = [result.reason] if result.reason and result.status != MANUAL else []
    text = render(
        "feedback.html",
        title=f"Module {label.replace('_', ', ', 1)}: {result.student}",
        head=f"{head}.",
        notes=notes + result.flags,
        rejected=result.status == REJECTED,
        rows=[_row(name, part) for name, part in result.parts.items()],
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, "".join(c if c.isprintable() or c in "\n\t" else "?" for c in text))


def _row(name: str, part: PartResult) -> tuple[str, str, str, str]:
    points, reasons = f"{part.score:g} of {part.points:g}", [part.reason]
    if part.waits:
        points = f"- of {part.points:g}"
    elif part.by_hand is not None and part.auto is not None:
        reasons.append(f"{part.by_hand:g} points were given by hand")
    return name, points, part.outcome, "\n".join(filter(None, [*reasons, part.comment]))


def summary(results: list[Result]) -> str:
    """What an instructor wants to know before opening the table."""
    counts = {}
    for result in results:
        counts.setdefault(result.status, []).append(result.student)
    said = []
    for status, students in sorted(counts.items()):
        status = "need manual marks" if status == MANUAL and len(students) > 1 else status
        said.append(f"{len(students)} {status}" + (_names(students) if status in (REJECTED, ABSENT) else ""))
    flagged = [result.student for result in results if result.flags]
    if flagged:
        said.append(f"{len(flagged)} flagged{_names(flagged)}")
    return ", ".join(said)


def _names(students: list[str]) -> str:
    return f" ({', '.join(students[:5])}{', ...' if len(students) > 5 else ''})"
