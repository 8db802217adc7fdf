"""A standard nbgrader course: config, source/, release/ and gradebook, made by nbgrader's own code."""

import os
import re
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

from tinytorch.tito.author.notebooks import MAKER, to_read
from tinytorch.tito.instructor.course_config import make_config
from tinytorch.tito.instructor.database import (
    alembic_on_path,
    fit_parts,
    gradebook_file,
    gradebook_url,
    is_recorded,
)
from tinytorch.tito.instructor.handed_out import Releases
from tinytorch.tito.notebook import files
from tinytorch.tito.project import Module, Project, TitoError, need_package, write_text


def prepare_course(
    project: Project, module: Module, course_dir: Path | str, say: Callable[[str], None] = lambda _: None
) -> Path:
    """Makes what is missing of the module in the nbgrader course -> release/NN_name/name.ipynb.

    nbgrader_config.py, source/NN_name/name.ipynb (solutions and hidden tests in it), release/NN_name/ and
    gradebook.db. A source notebook that was edited by hand is left as it is; one that was made here follows
    the dev file. The release and the gradebook follow the source. When everything is current, nothing is
    written. What an instructor has to know of it is told to `say`.
    """
    need_package("nbgrader", "An nbgrader course", "instructor")
    need_package("jupytext", "Making a notebook from its dev file")
    course = Path(course_dir).resolve()
    (course / "submitted").mkdir(parents=True, exist_ok=True)
    make_config(course)
    source = course / "source" / module.label / module.notebook.name
    made_here = not source.exists() or files.is_untouched(source, MAKER)
    notebook = to_read(module) if made_here else files.read(source)
    text = files.text_of(notebook, MAKER if made_here else None)
    releases = Releases(course, module, project)
    releases.remember()
    if source.exists() and releases.made_from(text) and is_recorded(course, module):
        return releases.file
    # made where no character of a folder's name means anything to nbgrader, which takes paths for patterns
    with tempfile.TemporaryDirectory(prefix="tito-course-") as folder:
        trial = Path(folder).resolve()
        place = trial / "source" / module.label / module.notebook.name
        place.parent.mkdir(parents=True)
        write_text(place, text)
        generate_release(trial, module)  # what fails, fails before the gradebook is opened
        if lost := fit_parts(course, module, notebook):
            say(lost)
        made = generate_release(trial, module, gradebook_file(course))
        if made_here:
            files.put(source, text)
        with tempfile.TemporaryDirectory(prefix=".tito-", dir=course) as beside:
            swap_in({releases.file.parent: Path(shutil.copytree(made.parent, Path(beside) / module.label))})
    releases.remember()
    releases.stamp(text)
    return releases.file


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
    config.CourseDirectory.db_url = gradebook_url(gradebook or course / "none.db")
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
