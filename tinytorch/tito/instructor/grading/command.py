"""`tito grade`: each submission checked, run apart from the others in a sandbox, and judged twice."""

import json
import os
from collections.abc import Callable
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import click

from tinytorch.tito.instructor.course_config import advice
from tinytorch.tito.instructor.database import recorded_students
from tinytorch.tito.instructor.grading.course_run import grade_course
from tinytorch.tito.instructor.grading.needs import known_needs, learn_needs, solutions_of
from tinytorch.tito.instructor.grading.pools import dask_pool, local_pool
from tinytorch.tito.instructor.grading.results import Result, read_grades, summary, write_grades
from tinytorch.tito.instructor.grading.setup import Setup, set_up
from tinytorch.tito.process.sandbox import Limits, Sandbox, find_bwrap
from tinytorch.tito.project import Module, Project, TitoError, need_package, need_project, write_text

SHOWN = 3  # so many of those who are being graded are named beside the bar, the longest first

# The first judge is nbgrader's: the test cells, hidden ones included, scored by its own rules into its own
# gradebook. They run beside the student's code, so they can be deceived. The second judge runs the checkpoint
# tests against the exported code in a process that has seen nothing of the notebook's other cells. What the
# two disagree on counts as the lower.


@click.command("grade")
@click.argument("numbers", metavar="NN...", nargs=-1, required=True)
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
    numbers: tuple[str, ...],
    course: Path,
    jobs: int,
    scheduler: str | None,
    student: str | None,
    no_sandbox: bool,
    again: bool,
    time_limit: float,
) -> None:
    """Grade each module NN: course/submitted/ID/NN_name/ -> gradebook, grades.csv and feedback."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    project = need_project()
    modules = [project.module(number) for number in numbers]
    for package in ("nbgrader", "nh3", "psutil", "nbdev", "pytest", "hypothesis"):
        need_package(package, "Grading", "dev,instructor")
    if scheduler:
        need_package("distributed", "Grading on a Dask cluster", "dev,instructor,cluster")
    course = course.resolve()
    found = {module.label: _chosen(course, module, student) for module in modules}
    read_grades(course / "grades.csv")  # before any grading: it is written with each result
    limits = Limits(cell_seconds=time_limit, wall_seconds=max(Limits.wall_seconds, 5 * time_limit))
    if not no_sandbox:
        find_bwrap()
    sandbox = Sandbox(not no_sandbox, (project.root, course), limits)
    console = Console(stderr=True)
    if no_sandbox:
        console.print("Without a sandbox: students' code can read and change whatever you can.")
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    for module in modules:
        try:
            with Progress(*columns, console=console) as bar:
                say = partial(bar.console.print, markup=False, highlight=False)
                setup = _prepared(project, module, course, sandbox, jobs, bar, say)
                task = bar.add_task(module.label, total=len(found[module.label]))
                table = course / "grades.csv"

                def done(result: Result, setup=setup, task=task, bar=bar, table=table) -> None:
                    write_grades(table, setup.label, [result], {result.student})
                    bar.update(task, advance=1)

                def busy(running: dict[str, float], setup=setup, task=task, bar=bar) -> None:
                    longest = sorted(running, key=running.__getitem__, reverse=True)[:SHOWN]
                    names = ", ".join(f"{name} {running[name]:.0f} s" for name in longest)
                    bar.update(task, description=f"{setup.label}: {names}" if names else setup.label)

                with dask_pool(scheduler) if scheduler else local_pool(jobs) as pool:
                    students = sorted(found[module.label])
                    results = grade_course(setup, course, students, pool, module, again, done, busy)
                write_grades(table, setup.label, results, {student} if student else None)
        except KeyboardInterrupt:
            raise TitoError(
                "Interrupted; the same command goes on with those who are not graded yet."
            ) from None
        click.echo(f"{setup.label}: {summary(results)}; see {table} and {course / 'feedback'}/")


def _chosen(course: Path, module: Module, student: str | None) -> set[str]:
    """Whom to grade: all who handed anything in or are known, or this one."""
    found = students_in(course, module)
    if student is not None:
        if student not in found | recorded_students(course):
            raise TitoError(f"There is no student {student} in {course / 'submitted'} or the gradebook.")
        return {student}
    if not found:
        raise TitoError(
            f"There is no submission in {course / 'submitted'}: put each student's notebook into "
            f"{course.name}/submitted/ID/{module.label}/{module.name}.ipynb."
        )
    return found | recorded_students(course)


def _prepared(
    project: Project,
    module: Module,
    course: Path,
    sandbox: Sandbox,
    jobs: int,
    bar: Any,
    say: Callable[[str], None],
) -> Setup:
    """The module's setup with what the reference tells, which is learnt if it is not known yet."""
    task = bar.add_task("preparing the course", total=None)
    setup = set_up(project, module, course, sandbox, say)
    needs, file = known_needs(setup, course)
    if needs is None:  # once, until the module or the grader changes
        total = 1 + len(solutions_of(setup.source))
        bar.update(task, description="our own solution", total=total, completed=0)
        needs = learn_needs(setup, jobs, lambda: bar.advance(task))
        file.parent.mkdir(parents=True, exist_ok=True)
        write_text(file, json.dumps({"key": setup.secret.hex(), "needs": asdict(needs)}))
    if said := advice(course):
        say(said)
    bar.update(task, visible=False)
    return replace(setup, needs=needs)


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
