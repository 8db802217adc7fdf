"""The results of earlier runs, one file per student, and the best of what a student handed in earlier."""

import hashlib
import json
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path

from tinytorch.tito.instructor.grading.results import PartResult, Result
from tinytorch.tito.instructor.grading.student import Graded
from tinytorch.tito.notebook.cells import cells_of
from tinytorch.tito.project import write_text


def _hash(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


@dataclass
class Kept:
    """One module's results: ID.json of the last notebook, best/ID.json of an earlier one that earned more."""

    folder: Path
    shared: bytes  # what every student's result depends on: the checks, the grader

    def read(self, student: str, data: bytes) -> Graded | None:
        """The result of this notebook, None if it is not known."""
        kept = self._record(f"{student}.json")
        if kept is None or kept["notebook_hash"] != _hash(data):
            return None
        parts = {name: PartResult(**part) for name, part in kept["result"].pop("parts").items()}
        return Graded(Result(**kept["result"], parts=parts), kept["notebook"])

    def answers(self, student: str) -> dict[str, str]:
        """{written question: the answer that was recorded last}."""
        kept = self._record(f"{student}.json", of_these_checks=False)
        return answers_in(kept["notebook"]) if kept and kept["notebook"] else {}

    def write(self, data: bytes, graded: Graded) -> None:
        (self.folder / "best").mkdir(parents=True, exist_ok=True)
        last, best = self._names(graded.result.student)
        before = self._record(last)
        if (
            before
            and before["notebook_hash"] != _hash(data)
            and _points(before) > _points(self._record(best))
        ):
            shutil.copy2(self.folder / last, self.folder / best)
        record: dict = {"checks": _hash(self.shared), "notebook_hash": _hash(data)}
        record |= {"result": asdict(graded.result), "notebook": graded.notebook}
        write_text(self.folder / last, json.dumps(record))

    def better(self, result: Result, data: bytes | None) -> str:
        """What an instructor should know if an earlier notebook of the student earned more; else ""."""
        earlier = {name: kept for name in self._names(result.student) if (kept := self._record(name))}
        other = [name for name, kept in earlier.items() if kept["notebook_hash"] != _hash(data or b"")]
        best = max(other, key=lambda name: _points(earlier[name]), default="")
        if not best or _points(earlier[best]) <= _points({"result": asdict(result)}):
            return ""
        return (
            f"what was handed in earlier earned {_points(earlier[best]):g} points by machine, this "
            f"{_points({'result': asdict(result)}):g}; that result is kept in "
            f".tito/graded/{self.folder.name}/{best}"
        )

    def _names(self, student: str) -> tuple[str, str]:
        return f"{student}.json", f"best/{student}.json"

    def _record(self, name: str, of_these_checks: bool = True) -> dict | None:
        """What a file holds; None if there is none, or one of another version or of other checks."""
        try:
            kept = json.loads((self.folder / name).read_text(encoding="utf-8"))
            current = (
                kept["checks"] == _hash(self.shared) and "notebook_hash" in kept and "parts" in kept["result"]
            )
            return kept if current or (not of_these_checks and "notebook" in kept) else None
        except (OSError, ValueError, KeyError, TypeError):
            return None


def answers_in(notebook: dict) -> dict[str, str]:
    """{written question: answer, with what is attached to it}."""
    cells = [cell for cell in cells_of(notebook) if cell.is_written]
    return {cell.grade_id: json.dumps([cell.source, cell.attachments], sort_keys=True) for cell in cells}


def _points(kept: dict | None) -> float:
    """What the machine gave; less than nothing if there is no result."""
    return -1.0 if kept is None else sum(part["auto"] or 0.0 for part in kept["result"]["parts"].values())
