"""`tito module start|test|complete|reset|status`: the student's loop."""

import re
import shutil
import signal
import sys
import tempfile
from contextlib import contextmanager
from importlib.util import find_spec
from itertools import chain
from pathlib import Path

import click

from tinytorch.tito.console import Spinner, count, indented, say, show_table
from tinytorch.tito.notebook.cells import cells_of
from tinytorch.tito.notebook.files import fingerprint
from tinytorch.tito.process.checkpoint import Checkpoint, run_checkpoint, try_import
from tinytorch.tito.process.outcomes import (
    BLOCKED,
    FAILED,
    NOT_RUN,
    PASSED,
    UNWRITTEN,
    Part,
    Report,
)
from tinytorch.tito.process.worker import TIME_LIMIT
from tinytorch.tito.project import Project, TitoError, need_package, need_project
from tinytorch.tito.student.module import StudentModule, student_module, student_modules
from tinytorch.tito.student.progress import Progress, progress_of

COLOURS = {
    PASSED: "green",
    FAILED: "red",
    BLOCKED: "yellow",
    NOT_RUN: "yellow",
    UNWRITTEN: "cyan",
    "completed": "green",
    "ready": "green",
    "in progress": "cyan",
    "unreadable": "red",
}
NAMED = 3  # so many parts are named in one sentence
COLUMNS = ["result", "points", "part", ""]

number_argument = click.argument("number", metavar="NN")
time_limit_option = click.option(
    "--time-limit",
    type=click.FloatRange(min=0.1),
    default=TIME_LIMIT,
    show_default=True,
    metavar="SECONDS",
    help="For one cell.",
)


@click.group()
@click.pass_context
def module(ctx: click.Context) -> None:
    """Work through a module: start, test, complete; reset and status.

    NN is a module's number (12) or name (attention).
    """
    ctx.with_resource(_ending_tidily())


@contextmanager
def _ending_tidily():
    """While it lasts, being told to end is an exception: processes are ended and temporary files removed."""

    def end(number, _frame):
        sys.exit(128 + number)

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@module.command()
@number_argument
def start(number: str) -> None:
    """Make the notebook of module NN for you to fill in. Never overwrites yours."""
    unit = student_module(need_project(), number)
    where = unit.shown(unit.notebook)
    if unit.notebook.is_file() and not unit.is_solutions():
        notebook = unit.read()
        unit.keep_pristine()
        say(f"{where} is there already; it was left as it is ({_count_parts(notebook)}).")
    else:
        unit.place_notebook()
        say(f"Made {where}: {_count_parts(unit.read())}.")
    if others := unit.other_notebooks():
        say(f"Note: only {where} counts, not {', '.join(others)} beside it.")
    install = "" if find_spec("jupyterlab") else "pip install jupyterlab, then "
    say(f"Open it in VS Code or Jupyter:  {install}jupyter lab {where}")
    say(f"Check your work at any time:    tito module test {unit.module.number}")


@module.command()
@number_argument
@time_limit_option
@click.option("-v", "--verbose", is_flag=True, help="Also show what the parts' cells print.")
@click.option("--watch", is_flag=True, help="Again each time that you save, until Ctrl-C.")
@click.pass_context
def test(ctx: click.Context, number: str, time_limit: float, verbose: bool, watch: bool) -> None:
    """Run your notebook of module NN and say what became of each part.

    The cells run as they are saved on disk, from top to bottom, in a fresh Python. Exit status 0 only if
    every part passed (with --watch, in the last run).
    """
    unit = student_module(need_project(), number)
    if watch:
        need_package("watchfiles", "--watch")
        passed = _test_each_save(unit, time_limit, verbose)
    else:
        passed = _test(unit, time_limit, verbose)
    ctx.exit(0 if passed else 1)


def _test(unit: StudentModule, time_limit: float, verbose: bool) -> bool:
    report = _run(unit, time_limit)
    show_report(report, verbose=verbose)
    for hint in _hints(report, unit.project):
        say(hint)
    if report.ok:
        say(f"Next: tito module complete {unit.module.number}")
    return report.ok


def _test_each_save(unit: StudentModule, time_limit: float, verbose: bool) -> bool:
    """Tests now and whenever the cells have changed, until Ctrl-C -> whether the last run passed."""
    from watchfiles import watch

    # The folder is watched, since editors put a new file in the place of the old one; and each second is a
    # look of its own, for what was saved while a test ran.
    saves = watch(
        unit.notebook.parent, recursive=False, rust_timeout=1000, yield_on_timeout=True, debounce=300
    )
    tested, passed = "", False
    try:
        for _ in chain([None], saves):
            try:
                now = fingerprint(unit.read())
            except TitoError as error:  # perhaps only until it is wholly saved
                now = error.message
            if now == tested:
                continue
            tested, passed = now, False
            try:
                passed = _test(unit, time_limit, verbose)
            except TitoError as error:
                error.show()
            say(f"Waiting for the next save of {unit.shown(unit.notebook)}; Ctrl-C ends.")
    except KeyboardInterrupt:
        say()
    return passed


@module.command()
@number_argument
@time_limit_option
def complete(number: str, time_limit: float) -> None:
    """Put your module NN into the package, if all its parts and its checkpoint pass.

    Your notebook's code replaces the file in tinytorch/; the file before it is kept in .tito/backups/. If
    anything fails, the package stays as it was. In a clone of the whole course the file before yours is the
    reference solution: `tito export NN` puts it back at any time.
    """
    project = need_project()
    unit = student_module(project, number)
    unit.read()
    need_package("nbdev", "Completing a module")
    need_package("pytest", "The checkpoint")
    need_package("hypothesis", "The checkpoint")
    if not unit.checkpoint_file.is_file():
        raise TitoError(f"The checkpoint test {unit.shown(unit.checkpoint_file)} is missing.")
    report = _run(unit, time_limit)
    if not report.ok:
        show_report(report)
        missing = [part for part in report.parts if part.status != PASSED]
        names = ", ".join(f"{part.grade_id} ({part.status})" for part in missing[:NAMED])
        names += f" and {len(missing) - NAMED} more" if len(missing) > NAMED else ""
        raise TitoError(f"Nothing was changed, because not every part passes: {names}.")
    say(_summary(report))
    path, checkpoint = _install(unit)
    tests = count(checkpoint.passed, "test")
    say(f"{unit.shown(path)} is now your code; its checkpoint passed ({tests}, {checkpoint.seconds:.1f} s).")
    say(_next_step(project))


def _install(unit: StudentModule):
    """Prove the export beside the package, then put it in: whatever ends this early changes nothing."""
    number, package, export = unit.module.number, unit.project.package_dir, unit.export()
    with tempfile.TemporaryDirectory(prefix="tito-complete-") as folder:
        copy = Path(folder) / package.name
        shutil.copytree(package, copy, ignore=shutil.ignore_patterns("__pycache__"))

        def attempt(built):
            built.write(copy)
            return try_import(Path(folder), built.target)

        with Spinner(f"checkpoint of module {number}"):
            export.until_it_imports(attempt)
            checkpoint = run_checkpoint(
                unit.checkpoint_file, root=unit.project.root, package_root=Path(folder)
            )
    for note in export.notes:
        say(f"Note: {note}.")
    if not checkpoint.ok:
        _explain(checkpoint)
        raise TitoError(
            f"Nothing was changed, because the checkpoint of module {number} failed: "
            f"{', '.join(checkpoint.failed)}."
        )
    path, kept = unit.install(export.built)
    if kept:
        say(f"The package file before it is kept: {unit.shown(kept)}")
    return path, checkpoint


def _explain(checkpoint: Checkpoint) -> None:
    for name, message in checkpoint.failed.items():
        say(f"failed  {name}")
        for line in message.splitlines()[:6]:
            say(f"        {line}")


@module.command()
@number_argument
def reset(number: str) -> None:
    """Put the notebook of module NN back as it was handed out; yours is backed up first."""
    unit = student_module(need_project(), number)
    backup = unit.reset()
    if backup:
        say(f"Your notebook is kept: {unit.shown(backup)}")
    say(f"Made {unit.shown(unit.notebook)} anew: {_count_parts(unit.read())}.")


@module.command()
@click.argument("number", metavar="[NN]", required=False)
def status(number: str | None) -> None:
    """Show what is done and what is left to do, in all modules or part by part in module NN."""
    project = need_project()
    if number is None:
        _show_all(project)
    else:
        _show_one(student_module(project, number))


# ------------------------------------------------------------------------------------------------ showing


def show_report(report: Report, verbose: bool = False) -> None:
    """Part by part, then what went wrong, then the sum."""
    show_table(
        f"{count(len(report.parts), 'part')}, {report.seconds:.1f} s", COLUMNS, _rows(report.parts), COLOURS
    )
    _show_reasons(report.parts)
    if verbose:
        for part in report.parts:
            if part.output.strip():
                say(f"{part.grade_id} printed:\n{indented(part.output.strip())}\n")
    for note in report.notes:
        say(f"Note: {note}{'' if note.endswith('?') else '.'}")
    say(_summary(report))


def _rows(parts: list[Part]) -> list[list[str]]:
    rows = []
    for part in parts:
        hint = {UNWRITTEN: "write", BLOCKED: "mend"}.get(part.status)
        about = f"{hint} {part.cause}" if hint and part.cause else ""
        rows.append([part.status, f"{part.earned:g}/{part.points:g}", part.grade_id, about])
    return rows


def _show_reasons(parts: list[Part]) -> None:
    for part in parts:
        if part.status not in (PASSED, UNWRITTEN) and part.message:
            reasons = [indented(text) for text in (part.message, part.where) if text]
            say("\n".join([f"{part.grade_id} ({part.status}):", *reasons, ""]))


def _summary(report: Report) -> str:
    text = f"{report.passed} of {count(len(report.parts), 'part')} passed, "
    text += f"{report.earned:g} of {report.possible:g} points"
    if report.written:
        more = sum(cell.points for cell in report.written)
        text += f"; {count(len(report.written), 'written question')} ({more:g} points) are marked by a person"
    return text + "."


def _show_all(project: Project) -> None:
    rows = []
    for unit in student_modules(project):
        progress = progress_of(unit)
        done, total = _points(progress.parts)
        known = bool(progress.parts) and progress.state not in ("unreadable",)
        about = [_in_words(progress)] if known else []
        about += [progress.note] if progress.note else []
        points = f"{done:g}/{total:g}" if known else ""
        rows.append([progress.state, points, unit.module.label, "; ".join(about)])
    if not rows:
        raise TitoError(f"{project.modules_dir} holds no modules.")
    show_table("Where you are", ["state", "points", "module", "parts"], rows, COLOURS)
    say(_next_step(project))


def _in_words(progress: Progress) -> str:
    if progress.state in ("not started", "started"):
        return count(len(progress.parts), "part")
    text = f"{progress.passed} of {count(len(progress.parts), 'part')}"
    return text + (", the notebook has changed since" if progress.changed else "")


def _points(parts: list[Part]) -> tuple[float, float]:
    return sum(part.earned for part in parts), sum(part.points for part in parts)


def _next_step(project: Project) -> str:
    for unit in student_modules(project):
        progress = progress_of(unit)
        if progress.state != "completed":
            return _next_step_of(unit, progress)
    return "Every module here is completed."


def _show_one(unit: StudentModule) -> None:
    progress = progress_of(unit)
    rows = _rows(progress.parts)
    for cell, answered in progress.questions:
        state = "answered" if answered else "no answer yet"
        rows.append([state, f"{cell.points:g}", cell.grade_id or cell.label, "marked by a person"])
    title = f"Module {unit.module.label}: {progress.state}"
    if rows:
        show_table(title, COLUMNS, rows, COLOURS)
        _show_reasons(progress.parts)
    else:
        say(title)
    if progress.note:
        say(f"Note: {progress.note}.")
    if progress.changed:
        say("The notebook has changed since this test run.")
    if progress.to_write:
        say(f"Still to write: {', '.join(progress.to_write)}")
    say(_next_step_of(unit, progress))


def _next_step_of(unit: StudentModule, progress: Progress) -> str:
    number = unit.module.number
    return {
        "not started": f"Next: tito module start {number}",
        "unreadable": f"Next: tito module reset {number} (your notebook is backed up first)",
        "ready": f"Next: tito module complete {number}",
        "completed": f"Module {number} is completed.",
    }.get(progress.state, f"Next: fill in {unit.shown(unit.notebook)}, then tito module test {number}")


# ------------------------------------------------------------------------------------------------- helpers


def _run(unit: StudentModule, time_limit: float) -> Report:
    with Spinner(f"module {unit.module.number}") as spinner:
        return unit.test(time_limit, progress=lambda cell: spinner(f"running {cell.label}"))


def _hints(report: Report, project: Project) -> list[str]:
    """What helps where a part fails for want of an earlier module."""
    wanted = set()
    for outcome in report.outcomes.values():
        if outcome.error in ("ModuleNotFoundError", "ImportError"):
            wanted |= set(re.findall(r"'tinytorch\.([\w.]+)'", outcome.message))
    hints = []
    for unit in student_modules(project):
        if unit.target() in wanted:
            number = unit.module.number
            hints.append(f"Module {number} is not in the package yet: tito module complete {number}")
    return hints


def _count_parts(notebook: dict) -> str:
    cells = cells_of(notebook)
    tests = [cell for cell in cells if cell.is_test]
    written = [cell for cell in cells if cell.is_written]
    text = f"{count(len(tests), 'part')}, {sum(cell.points for cell in tests):g} points"
    if written:
        text += f", and {count(len(written), 'written question')}"
    return text
