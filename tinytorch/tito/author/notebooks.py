"""`tito notebooks`: dev file -> notebook with the solutions in it, never over a student's work."""

from pathlib import Path

import click

from tinytorch.tito.notebook.cells import cells_of
from tinytorch.tito.notebook.files import back_up, is_untouched, read, text_of
from tinytorch.tito.notebook.markers import directives
from tinytorch.tito.project import Module, Project, TitoError, need_package, need_project, write_text

MAKER = "tito notebooks"
EXPORT = (
    "*Cells that begin with `#| export` go into the package, by `tito module complete`, and `#| default_exp` "
    "says where to; leave these lines where they are.*"
)
LOOK = "*Run it and look; nothing here is graded.*"


def to_read(module: Module) -> dict:
    """The notebook of a module for a person: its dev file, with a line above each cell saying its kind."""
    return labelled(read(module.dev_file))


def labelled(notebook: dict) -> dict:
    """The notebook with the names of tasks, checks and questions as headings, which links reach.

    A label is the end of the prose before its cell, or else a cell of its own. Nothing graded and no code
    changes, nor the id of any cell. Each heading has a word before the name: the name alone is the id of the
    field on formgrader's page into which a mark is typed, and no second element may have it.
    """
    cells: list[dict] = []
    task, explained, before = None, False, None
    tasks = {cell.grade_id for cell in cells_of(notebook) if cell.is_code and cell.solution}
    for cell, plain in zip(cells_of(notebook), notebook["cells"], strict=True):
        label = None
        if cell.is_test:
            named = cell.grade_id.removeprefix("test-")
            task = named if named in tasks else task
            checked = f" It checks [{task}](#Task-{task})." if task else ""
            label = f"##### **Check {cell.grade_id}**\n\n*{cell.points:g} points.{checked}*"
        elif cell.is_written:
            label = f"##### **Question {cell.grade_id}**\n\n*{cell.points:g} points, marked by a person.*"
        elif cell.is_code and cell.solution:
            task, label = cell.grade_id, f"##### **Task {cell.grade_id}**\n\n*Yours to write.*"
        elif cell.is_code and directives(cell.source):
            label, explained = None if explained else EXPORT, True
        elif cell.is_code and not cell.locked and before != LOOK:
            label = LOOK
        before = label or (before if cell.is_code else None)
        if label and cells and cells[-1]["cell_type"] == "markdown" and not cells[-1]["metadata"]:
            cells[-1] = cells[-1] | {"source": f"{cells[-1]['source'].rstrip()}\n\n{label}"}
        elif label:
            name = f"label-{len(cells)}"
            cells.append({"cell_type": "markdown", "id": name, "metadata": {}, "source": label})
        cells.append(plain)
    return notebook | {"cells": cells}


def make_notebook(module: Module, project: Project, force: bool = False) -> Path | None:
    """Writes the module's notebook; TitoError if that would lose edits, unless `force` (-> the backup)."""
    backup = None
    if module.notebook.exists() and not is_untouched(module.notebook, MAKER):
        if not force:
            where = module.notebook.relative_to(project.root).as_posix()
            raise TitoError(f"{where} has been edited; --force backs it up and makes it anew.")
        backup = back_up(module.notebook, project)
    write_text(module.notebook, text_of(to_read(module), MAKER))
    return backup


@click.command("notebooks")
@click.argument("number", metavar="[NN]", required=False)
@click.option("--force", is_flag=True, help="Replace edited notebooks too; each is backed up first.")
def command(number: str | None, force: bool) -> None:
    """Make notebooks from the dev files, with solutions: all, or module NN.

    A notebook that was edited is left as it is.
    """
    project = need_project()
    need_package("jupytext", "Making notebooks")
    modules = project.select(number)
    kept = 0
    for module in modules:
        try:
            backup = make_notebook(module, project, force)
        except TitoError as error:
            error.show()
            kept += 1
            continue
        if backup:
            click.echo(f"backed up  {backup.relative_to(project.root).as_posix()}")
        click.echo(f"written  {module.notebook.relative_to(project.root).as_posix()}")
    if kept:
        raise TitoError(f"{kept} of {len(modules)} notebooks left as they were.")
