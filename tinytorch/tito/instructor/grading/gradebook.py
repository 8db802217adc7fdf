"""nbgrader's gradebook, and what it is told of a result."""

import warnings
from pathlib import Path

from tinytorch.tito.instructor.course import alembic_on_path
from tinytorch.tito.instructor.grading.results import GRADED, MANUAL
from tinytorch.tito.instructor.grading.setup import Setup
from tinytorch.tito.instructor.grading.student import Graded


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
