"""nbgrader's gradebook as a file: opened whatever its folder is called, copied, given other parts."""

import os
import sqlite3
import sysconfig
import time
import warnings
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

from tinytorch.tito.project import Module, TitoError


def gradebook_file(course: Path) -> Path:
    return course / "gradebook.db"


def gradebook_url(file: Path) -> str:
    """The address of an SQLite file for SQLAlchemy, in which no character of its path means anything."""
    from sqlalchemy import URL

    return URL.create("sqlite", database=str(file)).render_as_string()


@contextmanager
def alembic_on_path() -> Iterator[None]:
    """nbgrader's gradebook starts `alembic` by name, which an environment that is not activated hides."""
    before = os.environ.get("PATH", "")
    os.environ["PATH"] = os.pathsep.join([sysconfig.get_path("scripts"), before])
    try:
        yield
    finally:
        os.environ["PATH"] = before


def open_gradebook(course: Path) -> Any:
    """nbgrader's gradebook of the course, as a context manager."""
    from nbgrader.api import Gradebook
    from sqlalchemy.exc import SAWarning

    warnings.filterwarnings("ignore", category=SAWarning, module="nbgrader")  # of its own queries
    with alembic_on_path():
        return Gradebook(gradebook_url(gradebook_file(course)), "tinytorch")


def recorded_students(course: Path) -> set[str]:
    """Those whom the gradebook knows."""
    if not gradebook_file(course).is_file():
        return set()
    with open_gradebook(course) as book:
        return {student.id for student in book.students}


def is_recorded(course: Path, module: Module) -> bool:
    """Whether the gradebook knows the module's notebook."""
    file = gradebook_file(course)
    if not file.is_file():
        return False
    question = (
        "SELECT COUNT(*) FROM notebook JOIN assignment ON notebook.assignment_id = assignment.id "
        "WHERE assignment.name = ? AND notebook.name = ?"
    )
    try:
        with closing(sqlite3.connect(file)) as database:
            return database.execute(question, (module.label, module.name)).fetchone()[0] > 0
    except sqlite3.OperationalError:  # no such table: an empty gradebook
        return False
    except sqlite3.DatabaseError as error:
        raise TitoError(f"{file} is not a readable gradebook ({error}).") from None


def back_up_gradebook(course: Path) -> Path:
    """Copies the gradebook into the course's .tito/backups/ -> the copy."""
    folder = course / ".tito" / "backups"
    folder.mkdir(parents=True, exist_ok=True)
    stamp = time.strftime("%Y-%m-%d-%H%M%S")
    copy, again = folder / f"{stamp}-gradebook.db", 1
    while copy.exists():
        copy, again = folder / f"{stamp}-{again}-gradebook.db", again + 1
    with (
        closing(sqlite3.connect(gradebook_file(course))) as source,
        closing(sqlite3.connect(copy)) as target,
    ):
        source.backup(target)
    return copy


def fit_parts(course: Path, module: Module, notebook: dict) -> str:
    """Gives the gradebook the parts of `notebook` -> a sentence on the marks by hand that were lost, or "".

    nbgrader does so itself as long as nothing was submitted, and refuses afterwards. A part that is gone
    takes its scores with it; a new one stands at every submission, without a score.
    """
    from nbgrader import api

    if not is_recorded(course, module):
        return ""
    with open_gradebook(course) as book:
        recorded = book.find_notebook(module.name, module.label)
        if not recorded.submissions:
            return ""
        wanted = _parts_of(notebook)
        parts = [*recorded.grade_cells, *recorded.solution_cells, *recorded.task_cells]
        there = {(type(cell), cell.name): cell for cell in parts}
        there |= {(api.SourceCell, cell.name): cell for cell in recorded.source_cells}
        marks, copy = {}, None
        for cell in [cell for key, cell in there.items() if key not in wanted]:
            owned = [] if isinstance(cell, api.SourceCell) else [*cell.grades, *cell.comments]
            by_hand = [item for item in owned if _is_by_hand(item)]
            if by_hand:
                copy = copy or back_up_gradebook(course)
                marks[cell.name] = len(by_hand)
            for item in [*owned, cell]:
                book.db.delete(item)
        book.db.flush()
        for kind, name in wanted.keys() - there.keys():
            values = wanted[kind, name]
            cell = kind(name=name, notebook_id=recorded.id, **values)
            book.db.add(cell)
            book.db.flush()
            for submission in recorded.submissions:
                if kind in (api.GradeCell, api.TaskCell):
                    book.db.add(api.Grade(cell_id=cell.id, notebook_id=submission.id))
                if kind in (api.SolutionCell, api.TaskCell):
                    book.db.add(api.Comment(cell_id=cell.id, notebook_id=submission.id))
        book.db.commit()
    if copy is None:
        return ""
    return (
        f"Module {module.number} no longer has parts that were marked by hand: "
        f"{', '.join(f'`{name}` ({count})' for name, count in marks.items())}. Their marks are gone from "
        f"the gradebook; a copy of it as it was is {copy}. If such a part was only renamed, give it its old "
        "grade_id back and put the copy in the gradebook's place."
    )


def _parts_of(notebook: dict) -> dict:
    """{(nbgrader's class, grade_id): values} of everything that the gradebook holds of a notebook."""
    from nbformat import from_dict
    from nbgrader import api, utils

    found = {}
    for cell in from_dict(notebook)["cells"]:
        tags = cell.metadata.get("nbgrader", {})
        name, kind = tags.get("grade_id"), {"cell_type": cell.cell_type}
        points = {"max_score": float(tags.get("points") or 0)}
        if utils.is_grade(cell):
            found[api.GradeCell, name] = kind | points
        if utils.is_solution(cell):
            found[api.SolutionCell, name] = {}
        if utils.is_task(cell):
            found[api.TaskCell, name] = kind | points
        if utils.is_grade(cell) or utils.is_solution(cell) or utils.is_locked(cell) or utils.is_task(cell):
            found[api.SourceCell, name] = kind
    return found


def _is_by_hand(item) -> bool:
    """Whether a Grade or a Comment of the gradebook holds what a person gave."""
    return getattr(item, "manual_score", None) is not None or bool(getattr(item, "manual_comment", None))
