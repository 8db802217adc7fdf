"""One run over a course's students; what has not changed since an earlier run is not run again."""

import hashlib
import json
from collections.abc import Callable
from concurrent.futures import Executor, Future, as_completed
from dataclasses import asdict, dataclass
from pathlib import Path

from tinytorch.tito.instructor.grading.gradebook import Gradebooks
from tinytorch.tito.instructor.grading.handed_in import HandedIn, Refused, collect, is_id
from tinytorch.tito.instructor.grading.results import (
    ABSENT,
    CRASHED,
    REJECTED,
    PartResult,
    Result,
    write_feedback,
)
from tinytorch.tito.instructor.grading.setup import Setup
from tinytorch.tito.instructor.grading.student import Graded, grade_one
from tinytorch.tito.notebook import files
from tinytorch.tito.notebook.cells import cells_of
from tinytorch.tito.notebook.settle import tidy
from tinytorch.tito.project import Module, write_text


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


def answers_in(notebook: dict) -> dict[str, str]:
    """{written question: answer, with what is attached to it}."""
    cells = [cell for cell in cells_of(notebook) if cell.is_written]
    return {cell.grade_id: json.dumps([cell.source, cell.attachments], sort_keys=True) for cell in cells}


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
    shared = setup.secret + json.dumps(setup.releases).encode()  # what every student's result depends on

    def finish(graded: Graded, handed: HandedIn, key: str | None = None) -> None:
        result = graded.result
        page = course / "feedback" / result.student / f"{setup.label}.html"
        place = course / "autograded" / result.student / setup.label / f"{setup.name}.ipynb"
        try:
            if result.status == ABSENT:
                result.reason = "; ".join(filter(None, [handed.reason, book.withdraw(result.student)]))
                for path in (page, place):
                    path.unlink(missing_ok=True)
            elif is_id(result.student):
                before = kept.answers(result.student)
                now = answers_in(graded.notebook) if graded.notebook else {}
                unchanged = {name for name, answer in now.items() if before.get(name) == answer}
                book.record(graded, unchanged, handed.when)
                if graded.notebook:
                    place.parent.mkdir(parents=True, exist_ok=True)
                    write_text(place, json.dumps(graded.notebook, indent=1) + "\n")
                if key:
                    kept.write(key, graded)
                result.flags[:0] = handed.flags
                write_feedback(page, setup.label, result)
        except OSError as error:  # a full disk, or something in the way of this student's files
            result.flags.append(f"its files could not be written: {error.strerror} ({error.filename})")
        results.append(result)
        tell(result)

    waiting: dict[Future, tuple[str, str, HandedIn]] = {}
    try:
        for student in students:
            parts = {name: PartResult(points, 0.0) for name, points in setup.written().items()}
            try:
                handed = collect(course / "submitted" / student / setup.label, module)
            except Refused as refused:
                finish(Graded(Result(student, REJECTED, str(refused), parts=parts)), HandedIn())
                continue
            if handed.data is None:
                finish(Graded(Result(student, ABSENT, parts=parts)), handed)
                continue
            if handed.copies:
                handed.flags.append(_of_copies(handed, setup.released))
            key = hashlib.sha256(shared + hashlib.sha256(handed.data).digest()).hexdigest()
            earlier = None if again else kept.read(student, key)
            if earlier is not None:
                finish(earlier, handed)
                continue
            waiting[pool.submit(grade_one, setup, student, handed.data)] = student, key, handed
        for future in as_completed(waiting):
            student, key, handed = waiting[future]
            error = future.exception()
            if type(error).__name__ == "KilledWorker":  # after as many tries as Dask is set to allow
                reason = "every worker of the cluster that graded it ended while it did"
                parts = {name: PartResult(points, 0.0) for name, points in setup.written().items()}
                finish(Graded(Result(student, CRASHED, reason, parts=parts)), handed)
            else:
                finish(future.result(), handed, key)
    finally:
        book.close()
    return results


def _of_copies(handed: HandedIn, released: dict) -> str:
    """What an instructor should know if other notebooks lie beside the one that counts."""
    said = f"{', '.join(handed.copies)} beside it {'was' if len(handed.copies) == 1 else 'were'} not graded"
    try:
        notebook = files.from_bytes(handed.data, "the file")
    except files.Unreadable:  # which is told elsewhere
        return said
    untouched = [tidy(cell["source"]) for cell in notebook["cells"]] == [
        tidy(cell["source"]) for cell in released["cells"]
    ]
    return said + (", and what was graded is as it was handed out" if untouched else "")
