"""A course's nbgrader_config.py: made if there is none, else looked at for what would do harm."""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tinytorch.tito.project import TitoError, write_text

NAME = "nbgrader_config.py"

HEAD = """\
# nbgrader's configuration of this course; `tito release` and `tito grade` use nothing but these folders too.
import os

c = get_config()
c.CourseDirectory.root = os.path.dirname(os.path.abspath(__file__))
c.CourseDirectory.course_id = "tinytorch"
"""


@dataclass(frozen=True)
class Setting:
    """Lines that a course's configuration needs."""

    lines: str
    without: str  # what happens if they are not there


DATABASE = """\
# the gradebook, whatever the folder is called: a plain address would end at a `?`
from sqlalchemy import URL

gradebook = os.path.join(c.CourseDirectory.root, "gradebook.db")
c.CourseDirectory.db_url = URL.create("sqlite", database=gradebook).render_as_string()
"""

ADD_MISSING = Setting(
    """\
# a deleted test cell is put back, so that it scores nothing instead of waiting for a mark by hand
c.OverwriteCells.add_missing_cells = True
""",
    "`nbgrader autograde` leaves a deleted check waiting for a mark by hand",
)

FEEDBACK = Setting(
    """\
# a graded notebook holds the hidden tests, and its outputs quote them: nbgrader's feedback does without both
from nbconvert.preprocessors import CSSHTMLHeaderPreprocessor
from nbgrader.preprocessors import ClearHiddenTests, ClearOutput, GetGrades

c.GenerateFeedback.preprocessors = [GetGrades, ClearHiddenTests, ClearOutput, CSSHTMLHeaderPreprocessor]
""",
    "`nbgrader generate_feedback` shows students the hidden tests",
)

EXPORT_PLUGIN = Setting(
    """\
# `nbgrader export` writes grades.csv unless told otherwise, and that file is `tito grade`'s
import os

c.ExportPlugin.to = os.path.join(os.path.dirname(os.path.abspath(__file__)), "gradebook.csv")
""",
    "`nbgrader export` overwrites grades.csv",
)


def make_config(course: Path) -> None:
    """Writes the course's configuration if there is none."""
    if not (course / NAME).exists():
        parts = [HEAD, DATABASE, *(setting.lines for setting in (ADD_MISSING, FEEDBACK, EXPORT_PLUGIN))]
        write_text(course / NAME, "\n".join(parts))


def read_config(course: Path) -> Any:
    """The configuration of a course, as nbgrader reads it; TitoError if Python or nbgrader cannot."""
    from traitlets.config import Config, PyFileConfigLoader

    if not (course / NAME).is_file():
        return Config()
    sys.path.insert(0, str(course))  # it may import plugins that lie beside it
    try:
        return PyFileConfigLoader(NAME, path=str(course)).load_config()
    except Exception as error:
        raise TitoError(f"{course / NAME} cannot be read ({type(error).__name__}: {error}).") from None
    finally:
        sys.path.remove(str(course))


def lacks(course: Path) -> list[Setting]:
    """What the course's own configuration should say and does not."""
    config = read_config(course)
    missing = []
    if config.OverwriteCells.get("add_missing_cells") is not True:
        missing.append(ADD_MISSING)
    used = config.GenerateFeedback.get("preprocessors", [])
    names = {str(getattr(one, "__name__", one)).rpartition(".")[2] for one in used}
    if not {"ClearHiddenTests", "ClearOutput"} <= names:
        missing.append(FEEDBACK)
    targets = {str(config[name].get("to", "")) for name in ("ExportPlugin", "CsvExportPlugin")} - {""}
    if not targets or any((course / target).resolve() == course / "grades.csv" for target in targets):
        missing.append(EXPORT_PLUGIN)
    return missing


def advice(course: Path) -> str:
    """What to add to the course's configuration and why, "" if nothing."""
    missing = lacks(course)
    if not missing:
        return ""
    lines = "\n".join(setting.lines for setting in missing)
    return (
        f"{course / NAME} is not one that `tito` made. As it is, "
        f"{'; '.join(setting.without for setting in missing)}. Add these lines to it:\n\n{lines}"
    )
