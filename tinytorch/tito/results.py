"""What a grading run leaves: grades.csv and a page for each student. Neither shows a hidden test."""

import csv
import html
import io
from dataclasses import dataclass, field
from pathlib import Path

from tinytorch.tito.project import write_text

GRADED, MANUAL, ABSENT = "graded", "needs manual marks", "not submitted"
TIMED_OUT, CRASHED, REJECTED = "timed out", "crashed", "rejected"
COLUMNS = ("module", "student", "score", "max_score", "status", "reason", "flags", "seconds")


@dataclass
class PartResult:
    """One graded cell of one student."""

    points: float
    auto: float | None = None  # None: a person marks it
    outcome: str = ""
    reason: str = ""
    score: float = 0.0  # with manual marks, from the gradebook


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
    def max_score(self) -> float:
        return sum(part.points for part in self.parts.values())


def write_grades(path: Path, label: str, results: list[Result], fresh: set[str] | None = None) -> None:
    """Replaces the module's rows in grades.csv; those of other modules stay.

    `fresh`: only these students' rows are new, the module's other rows stay too.
    """
    rows, columns = [], list(COLUMNS)
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
            row[name] = f"{part.score:g}"
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
body {{ font: 16px/1.5 system-ui, sans-serif; max-width: 52rem; margin: 2rem auto; padding: 0 1rem; }}
table {{ border-collapse: collapse; width: 100%; }}
th, td {{ border-bottom: 1px solid #ccc; padding: .4rem .6rem; text-align: left; vertical-align: top; }}
pre {{ white-space: pre-wrap; overflow-wrap: anywhere; margin: 0; font-size: .9em; }}
</style>
</head>
<body>
<h1>{title}</h1>
<p>{score} of {max_score} points; {status}.</p>
{notes}
<table>
<tr><th>Part</th><th>Points</th><th>Outcome</th><th>Reason</th></tr>
{rows}
</table>
</body>
</html>
"""


def write_feedback(path: Path, label: str, result: Result) -> None:
    notes = [result.reason] if result.reason else []
    notes = "".join(f"<li>{html.escape(note)}</li>\n" for note in notes + result.flags)
    rows = "".join(
        f"<tr><td>{html.escape(name)}</td><td>{part.score:g} of {part.points:g}</td>"
        f"<td>{html.escape(part.outcome)}</td><td><pre>{html.escape(part.reason)}</pre></td></tr>\n"
        for name, part in result.parts.items()
    )
    text = PAGE.format(
        title=html.escape(f"{label}: {result.student}"),
        score=f"{result.score:g}",
        max_score=f"{result.max_score:g}",
        status=html.escape(result.status),
        notes=f"<ul>\n{notes}</ul>" if notes else "",
        rows=rows,
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, "".join(c if c.isprintable() or c in "\n\t" else "?" for c in text))
