"""What a grading run leaves: grades.csv and a page for each student. Neither shows a hidden test."""

import csv
import html
import io
import re
from dataclasses import dataclass, field
from pathlib import Path

from tinytorch.tito.console import count
from tinytorch.tito.project import write_text

GRADED, MANUAL, ABSENT = "graded", "needs manual marks", "not submitted"
TIMED_OUT, CRASHED, REJECTED = "timed out", "crashed", "rejected"
GRADE_COLUMNS = ("module", "student", "score", "max_score", "status", "reason", "flags", "seconds")


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


def write_grades(path: Path, label: str, results: list[Result], fresh: set[str] | None = None) -> None:
    """Replaces the module's rows in grades.csv; those of other modules stay.

    `fresh`: only these students' rows are new, the module's other rows stay too.
    """
    rows, columns = [], list(GRADE_COLUMNS)
    if path.is_file():
        with path.open(encoding="utf-8", newline="") as file:
            reader = csv.DictReader(file)
            for row in reader:
                if row.get("module") != label or (fresh is not None and row.get("student") not in fresh):
                    rows.append(row)
            columns += [name for name in reader.fieldnames or () if name not in columns]
    for result in results:
        row = {
            "module": label,
            "student": result.student,
            "score": f"{result.score:g}",
            "max_score": f"{result.max_score:g}",
            "status": result.status,
            "reason": _one_line(result.reason),
            "flags": _one_line("; ".join(result.flags)),
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


def _one_line(text: str) -> str:
    text = " ".join(text.split())[:500]
    return "'" + text if text[:1] in ("=", "+", "-", "@") else text  # a spreadsheet must not compute it


PAGE = """\
<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<title>{title}</title>
<style>
body {{ font: 16px/1.5 system-ui, sans-serif; max-width: 56rem; margin: 2rem auto; padding: 0 1rem; }}
table {{ border-collapse: collapse; width: 100%; }}
th, td {{ border-bottom: 1px solid #ccc; padding: .4rem .6rem; text-align: left; vertical-align: top; }}
td:nth-child(-n+3) {{ white-space: nowrap; }}
td:last-child {{ white-space: pre-wrap; overflow-wrap: anywhere; }}
</style>
</head>
<body>
<h1>{title}</h1>
<p>{head}</p>
{notes}
{table}
</body>
</html>
"""


def write_feedback(path: Path, label: str, result: Result) -> None:
    waiting = result.waiting
    open_points = sum(part.points for part in waiting.values())
    head = f"{result.score:g} of {result.max_score - open_points:g} points"
    if waiting:
        head += f" so far; {count(len(waiting), 'answer')} ({open_points:g} points) not marked yet"
    if result.status not in (GRADED, MANUAL):
        head += f"; {result.status}"
    notes = [result.reason] if result.reason and result.status != MANUAL else []
    notes = "".join(f"<li>{_marked_up(note)}</li>\n" for note in notes + result.flags)
    rows = "".join(_row(name, part) for name, part in result.parts.items())
    table = f"<table>\n<tr><th>Part</th><th>Points</th><th>Outcome</th><th>Reason</th></tr>\n{rows}</table>"
    if result.status == REJECTED:
        table = "<p>Mend the notebook, save it, and hand it in again.</p>"
    text = PAGE.format(
        title=html.escape(f"Module {label.replace('_', ', ', 1)}: {result.student}"),
        head=html.escape(head + "."),
        notes=f"<ul>\n{notes}</ul>" if notes else "",
        table=table,
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, "".join(c if c.isprintable() or c in "\n\t" else "?" for c in text))


def _row(name: str, part: PartResult) -> str:
    points, reasons = f"{part.score:g} of {part.points:g}", [part.reason]
    if part.waits:
        points = f"- of {part.points:g}"
    elif part.by_hand is not None and part.auto is not None:
        reasons.append(f"{part.by_hand:g} points were given by hand")
    cells = name, points, part.outcome, "\n".join(filter(None, [*reasons, part.comment]))
    return f"<tr>{''.join(f'<td>{_marked_up(cell)}</td>' for cell in cells)}</tr>\n"


def _marked_up(text: str) -> str:
    """As HTML, with `code` in backticks as code."""
    return re.sub(r"`([^`\n]+)`", r"<code>\1</code>", html.escape(text))


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
