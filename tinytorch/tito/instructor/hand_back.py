"""`tito return`: every student's feedback in one zip, under the names that the platform knows them by."""

import tempfile
import zipfile
from pathlib import Path

import click

from tinytorch.tito.console import count, say
from tinytorch.tito.instructor.collect import MENTIONED, origins
from tinytorch.tito.instructor.course import swap_in
from tinytorch.tito.instructor.grading.results import MANUAL, read_grades
from tinytorch.tito.project import TitoError, need_project


@click.command("return")
@click.argument("number", metavar="NN")
@click.option(
    "--course", required=True, type=click.Path(file_okay=False, path_type=Path), help="nbgrader's folder."
)
@click.option(
    "--output",
    required=True,
    type=click.Path(file_okay=False, path_type=Path),
    metavar="DIR",
    help="Where to.",
)
def command(number: str, course: Path, output: Path) -> None:
    """Make DIR/NN_name-feedback.zip of the pages in course/feedback/, to be uploaded.

    Each page bears the name that its student's notebook had when `tito collect` brought it in, which is how
    Moodle (feedback files) and Canvas (submission comments) find the student; others lie in a folder ID/.
    """
    label = (module := need_project().module(number)).label
    pages = {page.parent.name: page for page in sorted((course / "feedback").glob(f"*/{label}.html"))}
    if not pages:
        raise TitoError(f"There is no feedback of module {number} in {course / 'feedback'}: grade it first.")
    known = origins(course, module)
    output.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".tito-", dir=output) as folder:
        made = Path(folder) / f"{label}-feedback.zip"
        with zipfile.ZipFile(made, "w", zipfile.ZIP_DEFLATED) as archive:
            for student, page in pages.items():
                archive.write(page, f"{known.get(student, f'{student}/')}{label}.html")
        swap_in({output / made.name: made})
    rows = read_grades(course / "grades.csv")[1]
    waiting = [row["student"] for row in rows if row["module"] == label and row.get("status") == MANUAL]
    if waiting:
        names = ", ".join(waiting[:MENTIONED]) + (", ..." if len(waiting) > MENTIONED else "")
        say(f"Answers of {count(len(waiting), 'student')} are not marked yet: {names}.")
    say(f"{output / f'{label}-feedback.zip'}: {count(len(pages), 'page')}.")
