"""`tito grade`: each submission checked, run apart from the others in a sandbox, and judged twice."""

import json
import os
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path

import click

from tinytorch.tito.instructor.course_config import advice
from tinytorch.tito.instructor.database import recorded_students
from tinytorch.tito.instructor.grading.course_run import grade_course
from tinytorch.tito.instructor.grading.needs import known_needs, learn_needs, solutions_of
from tinytorch.tito.instructor.grading.pools import dask_pool, local_pool
from tinytorch.tito.instructor.grading.results import read_grades, summary, write_grades
from tinytorch.tito.instructor.grading.setup import set_up
from tinytorch.tito.process.sandbox import Limits, Sandbox, find_bwrap
from tinytorch.tito.project import Module, TitoError, need_package, need_project, write_text

# The first judge is nbgrader's: the test cells, hidden ones included, scored by its own rules into its own
# gradebook. They run beside the student's code, so they can be deceived. The second judge runs the checkpoint
# tests against the exported code in a process that has seen nothing of the notebook's other cells. What the
# two disagree on counts as the lower.


@click.command("grade")
@click.argument("number", metavar="NN")
@click.option(
    "--course", required=True, type=click.Path(file_okay=False, path_type=Path), help="nbgrader's folder."
)
@click.option("--jobs", type=click.IntRange(1, 256), default=os.cpu_count() or 1, help="Students at a time.")
@click.option("--scheduler", metavar="ADDRESS", help="Send students to a Dask cluster: tcp://HOST:PORT.")
@click.option("--student", metavar="ID", help="Grade this student only.")
@click.option("--no-sandbox", is_flag=True, help="Run students' code without bubblewrap.")
@click.option("--again", is_flag=True, help="Grade anew what has not changed since it was graded.")
@click.option(
    "--time-limit", type=click.FloatRange(1), default=Limits.cell_seconds, help="Seconds for one cell."
)
def command(
    number: str,
    course: Path,
    jobs: int,
    scheduler: str | None,
    student: str | None,
    no_sandbox: bool,
    again: bool,
    time_limit: float,
) -> None:
    """Grade module NN: course/submitted/ID/NN_name/ -> gradebook, grades.csv and feedback."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    project = need_project()
    module = project.module(number)
    for package in ("nbgrader", "psutil", "nbdev", "pytest", "hypothesis"):
        need_package(package, "Grading", "dev,instructor")
    if scheduler:
        need_package("distributed", "Grading on a Dask cluster", "dev,instructor,cluster")
    course = course.resolve()
    found = students_in(course, module)
    if student is not None:
        if student not in found | recorded_students(course):
            raise TitoError(f"There is no student {student} in {course / 'submitted'} or the gradebook.")
        found = {student}
    elif not found:
        raise TitoError(
            f"There is no submission in {course / 'submitted'}: put each student's notebook into "
            f"{course.name}/submitted/ID/{module.label}/{module.name}.ipynb."
        )
    else:
        found |= recorded_students(course)
    read_grades(course / "grades.csv")  # before any grading: it is written at the end
    limits = Limits(cell_seconds=time_limit, wall_seconds=max(Limits.wall_seconds, 5 * time_limit))
    if not no_sandbox:
        find_bwrap()
    sandbox = Sandbox(not no_sandbox, (project.root, course), limits)
    console = Console(stderr=True)
    if no_sandbox:
        console.print("Without a sandbox: students' code can read and change whatever you can.")
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    try:
        with Progress(*columns, console=console) as bar:
            task = bar.add_task("preparing the course", total=None)
            say = partial(bar.console.print, markup=False, highlight=False)
            setup = set_up(project, module, course, sandbox, say)
            needs, file = known_needs(setup, course)
            if needs is None:  # once, until the module or the grader changes
                bar.update(
                    task,
                    description="our own solution",
                    total=1 + len(solutions_of(setup.source)),
                    completed=0,
                )
                needs = learn_needs(setup, jobs, lambda: bar.advance(task))
                file.parent.mkdir(parents=True, exist_ok=True)
                write_text(file, json.dumps({"key": setup.secret.hex(), "needs": asdict(needs)}))
            if said := advice(course):
                say(said)
            setup = replace(setup, needs=needs)
            bar.update(task, visible=False)
            task = bar.add_task("students", total=len(found))
            with dask_pool(scheduler) if scheduler else local_pool(jobs) as pool:
                results = grade_course(
                    setup, course, sorted(found), pool, module, again, lambda _: bar.advance(task)
                )
            write_grades(course / "grades.csv", setup.label, results, {student} if student else None)
    except KeyboardInterrupt:
        raise TitoError("Interrupted; the same command goes on with those who are not graded yet.") from None
    click.echo(f"{setup.label}: {summary(results)}; see {course / 'grades.csv'} and {course / 'feedback'}/")


def students_in(course: Path, module: Module) -> set[str]:
    """The names of the folders in submitted/; TitoError if this is no course folder."""
    folder = course / "submitted"
    if course.name == "submitted" and (course.parent / "gradebook.db").exists():
        raise TitoError(f"{course} is the folder of submissions; --course is the folder above it.")
    if not folder.is_dir():
        raise TitoError(
            f"There is no folder {folder}. For a new course, make "
            f"{course.name}/submitted/ID/{module.label}/ for each student and put the notebook there."
        )
    return {path.name for path in folder.iterdir() if path.is_dir() and not path.name.startswith(".")}
