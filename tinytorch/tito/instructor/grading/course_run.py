"""One run over a course's students; what has not changed since an earlier run is not run again."""

import json
import time
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Executor, Future, wait
from pathlib import Path

from tinytorch.tito.instructor.grading.gradebook import Gradebooks
from tinytorch.tito.instructor.grading.handed_in import HandedIn, Refused, collect, is_id
from tinytorch.tito.instructor.grading.kept import Kept, answers_in
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
from tinytorch.tito.notebook.settle import tidy
from tinytorch.tito.project import Module, write_text


def grade_course(
    setup: Setup,
    course: Path,
    students: list[str],
    pool: Executor,
    module: Module,
    again: bool = False,
    tell: Callable[[Result], None] = lambda _: None,
    busy: Callable[[dict[str, float]], None] = lambda _: None,
) -> list[Result]:
    """Grades these students, writing each one's results as soon as they are known.

    Each second `busy` is told who is being graded, and for how many seconds.
    """
    shared = setup.secret + json.dumps(setup.releases).encode()
    kept = Kept(course / ".tito" / "graded" / setup.label, shared)
    book = Gradebooks(course, setup)
    results = []

    def finish(graded: Graded, handed: HandedIn, is_new: bool = False) -> None:
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
                if is_new and handed.data is not None:
                    kept.write(handed.data, graded)
                result.flags[:0] = handed.flags
                if better := kept.better(result, handed.data):
                    result.flags.insert(0, better)
                write_feedback(page, setup.label, result)
        except OSError as error:  # a full disk, or something in the way of this student's files
            result.flags.append(f"its files could not be written: {error.strerror} ({error.filename})")
        results.append(result)
        tell(result)

    waiting: dict[Future, tuple[str, HandedIn]] = {}
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
            earlier = None if again else kept.read(student, handed.data)
            if earlier is not None:
                finish(earlier, handed)
                continue
            waiting[pool.submit(grade_one, setup, student, handed.data)] = student, handed
        for future in _as_completed(waiting, busy):
            student, handed = waiting[future]
            error = future.exception()
            if type(error).__name__ == "KilledWorker":  # after as many tries as Dask is set to allow
                reason = "every worker of the cluster that graded it ended while it did"
                parts = {name: PartResult(points, 0.0) for name, points in setup.written().items()}
                finish(Graded(Result(student, CRASHED, reason, parts=parts)), handed)
            else:
                finish(future.result(), handed, is_new=True)
    finally:
        book.close()
    return results


def _as_completed(
    waiting: dict[Future, tuple[str, HandedIn]], busy: Callable[[dict[str, float]], None]
) -> Iterator[Future]:
    """`as_completed`, which says meanwhile who is being graded and for how long."""
    pending, began = set(waiting), {}
    while pending:
        done, pending = wait(pending, timeout=1, return_when=FIRST_COMPLETED)
        yield from done
        now = time.monotonic()
        running = {
            waiting[future][0]: began.setdefault(future, now) for future in pending if future.running()
        }
        busy({student: now - start for student, start in running.items()})


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
