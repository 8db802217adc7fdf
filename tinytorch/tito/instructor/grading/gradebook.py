"""nbgrader's gradebook, and what it is told of a result."""

from datetime import datetime
from pathlib import Path

from tinytorch.tito.instructor.course_config import read_config
from tinytorch.tito.instructor.database import (
    back_up_gradebook,
    gradebook_file,
    gradebook_url,
    open_gradebook,
)
from tinytorch.tito.instructor.grading.results import GRADED, MANUAL
from tinytorch.tito.instructor.grading.setup import Setup
from tinytorch.tito.instructor.grading.student import Graded


class Gradebooks:
    """nbgrader's gradebook of a course, open."""

    def __init__(self, course: Path, setup: Setup):
        self.course, self.setup = course, setup
        self.config = read_config(course)
        self.book = open_gradebook(course)
        self.copy: Path | None = None  # made once, before the first submission is taken out

    def record(self, graded: Graded, unchanged: set[str], when: datetime | None) -> None:
        """Puts the automatic scores there; marks given by hand stay as they are.

        unchanged: the written answers that are as they were when they were last recorded.
        when: the time of handing in (UTC), if it is known.
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
        if when is not None:
            self.book.update_or_create_submission(setup.label, result.student, timestamp=when)
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

        result.seconds_late = notebook.assignment.total_seconds_late
        result.penalty = self._penalty(result.student, notebook)

    def _penalty(self, student: str, notebook) -> float:
        """What the course's own rule takes off for lateness, asked and recorded by nbgrader's code."""
        if not notebook.assignment.total_seconds_late and notebook.late_submission_penalty is None:
            return 0.0
        from nbformat.v4 import new_notebook
        from nbgrader.preprocessors import AssignLatePenalties

        place = {"notebook": self.setup.name, "assignment": self.setup.label, "student": student}
        place["db_url"] = gradebook_url(gradebook_file(self.course))
        AssignLatePenalties(config=self.config).preprocess(new_notebook(), {"nbgrader": place})
        self.book.db.expire_all()
        return float(notebook.late_submission_penalty or 0)

    def withdraw(self, student: str) -> str:
        """Takes a submission out that is no longer there -> a sentence that says so; "" if there was none."""
        from nbgrader.api import MissingEntry

        try:
            self.book.find_submission(self.setup.label, student)
        except MissingEntry:
            return ""
        self.copy = self.copy or back_up_gradebook(self.course)
        self.book.remove_submission(self.setup.label, student)
        return f"it was graded before and is gone; a copy of the gradebook is .tito/backups/{self.copy.name}"

    def close(self) -> None:
        self.book.close()
