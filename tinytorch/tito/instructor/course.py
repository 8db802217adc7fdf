"""A standard nbgrader course: config, source/, release/ and gradebook, made by nbgrader's own code."""

import os
import re
import shutil
import sqlite3
import sysconfig
import tempfile
from contextlib import closing, contextmanager
from pathlib import Path

from tinytorch.tito.author.notebooks import MAKER, to_read
from tinytorch.tito.notebook import files
from tinytorch.tito.project import Module, Project, TitoError, need_package, write_text

CONFIG = """\
# nbgrader's configuration of this course; `tito release` and `tito grade` use nothing but these folders too.
import os

from nbconvert.preprocessors import CSSHTMLHeaderPreprocessor
from nbgrader.preprocessors import ClearHiddenTests, ClearOutput, GetGrades

c = get_config()
c.CourseDirectory.root = os.path.dirname(os.path.abspath(__file__))
c.CourseDirectory.course_id = "tinytorch"
# a deleted test cell is put back, so that it scores nothing instead of waiting for a mark by hand
c.OverwriteCells.add_missing_cells = True
# a graded notebook holds the hidden tests, and its outputs quote them: nbgrader's feedback does without both
c.GenerateFeedback.preprocessors = [GetGrades, ClearHiddenTests, ClearOutput, CSSHTMLHeaderPreprocessor]
# `nbgrader export` writes grades.csv unless told otherwise, and that file is `tito grade`'s
c.ExportPlugin.to = os.path.join(c.CourseDirectory.root, "gradebook.csv")
"""


def prepare_course(project: Project, module: Module, course_dir: Path | str) -> Path:
    """Makes what is missing of the module in the nbgrader course -> release/NN_name/name.ipynb.

    nbgrader_config.py, source/NN_name/name.ipynb (solutions and hidden tests in it), release/NN_name/ and
    gradebook.db. A source notebook that was edited by hand is left as it is; one that was made here follows
    the dev file. When everything is current, nothing is written.
    """
    need_package("nbgrader", "An nbgrader course", "instructor")
    need_package("jupytext", "Making a notebook from its dev file")
    course = Path(course_dir).resolve()
    (course / "submitted").mkdir(parents=True, exist_ok=True)
    config = course / "nbgrader_config.py"
    if not config.exists():
        write_text(config, CONFIG)
    source = course / "source" / module.label / module.notebook.name
    text = files.text_of(to_read(module), MAKER)
    made_here = not source.exists() or files.is_untouched(source, MAKER)
    if made_here and not (source.exists() and source.read_text(encoding="utf-8") == text):
        fresh = text
    else:
        fresh = None
    release = course / "release" / module.label / module.notebook.name
    gradebook = course / "gradebook.db"
    if fresh is None and release.is_file() and _is_recorded(gradebook, module):
        return release
    with tempfile.TemporaryDirectory(prefix=".tito-", dir=course) as folder:
        trial = Path(folder)
        place = trial / "source" / module.label / module.notebook.name
        place.parent.mkdir(parents=True)
        write_text(place, fresh or source.read_text(encoding="utf-8"))
        generate_release(trial, module)  # what fails, fails before the gradebook is opened
        made = generate_release(trial, module, gradebook)
        if fresh:
            source.parent.mkdir(parents=True, exist_ok=True)
            write_text(source, fresh)
        swap_in({release.parent: made.parent})
    return release


def generate_release(course: Path, module: Module, gradebook: Path | None = None) -> Path:
    """nbgrader's generate_assignment in the course -> the notebook that it released; TitoError if it fails.

    Without a gradebook nothing is recorded. A failure deletes the release that was there: for use in a
    temporary course only.
    """
    from nbgrader.apps import NbGraderAPI
    from traitlets.config import Config

    config = Config()
    config.CourseDirectory.root = str(course)
    config.CourseDirectory.course_id = "tinytorch"
    config.CourseDirectory.db_url = f"sqlite:///{gradebook}"
    if gradebook is None:
        config.GenerateAssignment.no_database = True
        config.SaveCells.enabled = False
    with alembic_on_path():
        result = NbGraderAPI(config=config).generate_assignment(module.label, force=True, create=True)
    release = course / "release" / module.label / module.notebook.name
    if not result["success"] or not release.is_file():
        why = reason_of(result)
        raise TitoError(f"nbgrader could not make the release of module {module.number}: {why}")
    write_text(release, files.text_of(files.read(release)))  # without the stamp, which speaks of the source
    return release


@contextmanager
def alembic_on_path():
    """nbgrader's gradebook starts `alembic` by name, which an environment that is not activated hides."""
    before = os.environ.get("PATH", "")
    os.environ["PATH"] = os.pathsep.join([sysconfig.get_path("scripts"), before])
    try:
        yield
    finally:
        os.environ["PATH"] = before


def reason_of(result: dict) -> str:
    """Why a call of nbgrader's API failed: the line of its log that names the exception."""
    text = result.get("log", "") + result.get("error", "")
    named = re.findall(r"^ *(?:\[ERROR\] )?([\w.]*(?:Error|Exception|Entry): .+)$", text, re.MULTILINE)
    return named[0] if named else (text.strip().splitlines() or ["it gave no reason"])[-1]


def swap_in(news: dict[Path, Path]) -> None:
    """{place: new file or folder, on the same file system}: puts all of them in place, or none.

    What was there before is deleted only when the new ones stand, and comes back if that fails.
    """
    olds: dict[Path, Path] = {}
    done: list[Path] = []
    try:
        for place, new in news.items():
            place.parent.mkdir(parents=True, exist_ok=True)
            if place.exists():
                old = place.with_name(f".{place.name}.{os.getpid()}.old")
                os.replace(place, old)
                olds[place] = old
            os.replace(new, place)
            done.append(place)
    except BaseException:
        for place in done:
            os.replace(place, news[place])
        for place, old in olds.items():
            os.replace(old, place)
        raise
    for old in olds.values():
        shutil.rmtree(old) if old.is_dir() else old.unlink()


def _is_recorded(gradebook: Path, module: Module) -> bool:
    """Whether the gradebook knows the module's notebook."""
    if not gradebook.is_file():
        return False
    question = (
        "SELECT COUNT(*) FROM notebook JOIN assignment ON notebook.assignment_id = assignment.id "
        "WHERE assignment.name = ? AND notebook.name = ?"
    )
    try:
        with closing(sqlite3.connect(gradebook)) as database:
            return database.execute(question, (module.label, module.name)).fetchone()[0] > 0
    except sqlite3.OperationalError:  # no such table: an empty gradebook
        return False
    except sqlite3.DatabaseError as error:
        raise TitoError(f"{gradebook} is not a readable gradebook ({error}).") from None
