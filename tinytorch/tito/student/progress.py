"""How far a student is in a module, told from the files and the last test run."""

from dataclasses import dataclass

from tinytorch.tito.errors import TitoError
from tinytorch.tito.notebook.cells import Cell, cells_of
from tinytorch.tito.notebook.files import fingerprint
from tinytorch.tito.notebook.markers import has_stub, is_answered
from tinytorch.tito.process.outcomes import PASSED, Part
from tinytorch.tito.student.module import StudentModule

UNTESTED = "not tested yet"


@dataclass
class Progress:
    """Where a student stands in one module."""

    state: str  # not started, started, in progress, ready, completed, unreadable
    parts: list[Part]
    questions: list[tuple[Cell, bool]]  # the written ones, and whether there is an answer
    to_write: list[str]  # cells that still hold a stub
    changed: bool = False  # the notebook is not the one of the last test run
    note: str = ""

    @property
    def passed(self) -> int:
        return sum(part.status == PASSED for part in self.parts)


def _untested(notebook: dict) -> list[Part]:
    return [Part(cell.grade_id, cell.points, UNTESTED) for cell in cells_of(notebook) if cell.is_test]


def progress_of(unit: StudentModule) -> Progress:
    """What the files and the last test run say."""
    pristine = unit.pristine()
    if not unit.notebook.is_file() or unit.is_solutions():
        note = "its notebook holds the solutions (tito notebooks)" if unit.notebook.is_file() else ""
        if not note and (others := unit.other_notebooks()):
            note = f"only {unit.notebook.name} counts, not {', '.join(others)}"
        parts = _untested(pristine) if pristine else []
        return Progress("not started", parts, [], [], note=note)
    try:
        notebook = unit.read()
    except TitoError as error:
        return Progress("unreadable", [], [], [], note=error.message)
    record, cells = unit.record(), unit.settled(notebook).cells
    tested, completed = record.get("tested"), record.get("completed")
    now = fingerprint(notebook)
    parts = [Part(**part) for part in tested["parts"]] if tested else _untested(pristine or notebook)
    questions = [(cell, is_answered(cell.source)) for cell in cells if cell.is_written]
    to_write = [cell.label for cell in cells if cell.is_code and cell.solution and has_stub(cell.source)]
    progress = Progress("in progress", parts, questions, to_write)
    progress.changed = bool(tested) and tested["cells"] != now
    if completed and unit.is_still_completed(completed, now):
        progress.state = "completed"
    elif completed:
        progress.note = "was completed; the notebook or the package file is another one now"
    elif not tested and pristine and fingerprint(pristine) == now:
        progress.state = "started"
    if progress.state != "completed" and tested and not progress.changed:
        if all(part.status == PASSED for part in parts):
            progress.state = "ready"
    progress.note = progress.note or unit.note_of_source()
    if progress.state in ("ready", "completed"):
        progress.to_write = []  # a stub that is left over is never reached
    return progress
