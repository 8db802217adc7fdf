"""`tito notebooks`: dev file -> notebook with the solutions in it, never over a student's work."""

from pathlib import Path

import click

from tinytorch.tito.notebook.files import back_up, is_untouched, read, text_of
from tinytorch.tito.project import Module, Project, TitoError, need_package, need_project, write_text

MAKER = "tito notebooks"


def make_notebook(module: Module, project: Project, force: bool = False) -> Path | None:
    """Writes the module's notebook; TitoError if that would lose edits, unless `force` (-> the backup)."""
    backup = None
    if module.notebook.exists() and not is_untouched(module.notebook, MAKER):
        if not force:
            where = module.notebook.relative_to(project.root).as_posix()
            raise TitoError(f"{where} has been edited; --force backs it up and makes it anew.")
        backup = back_up(module.notebook, project)
    write_text(module.notebook, text_of(read(module.dev_file), MAKER))
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
