"""`tito notebooks`: dev file -> notebook with the solutions in it, never over a student's work."""

import hashlib
import json
import shutil
import time
from pathlib import Path

import click

from tinytorch.tito.author.export import read_notebook
from tinytorch.tito.project import Module, Project, TitoError, need_package, need_project, write_text

MAKER = "tito notebooks"


def notebook_text(notebook: dict, maker: str) -> str:
    """The .ipynb file of `notebook`, stamped with the command that made it and the hash of its cells."""
    metadata = notebook["metadata"] | {"tinytorch": {"made_by": maker, "sha256": cells_hash(notebook)}}
    cells = [cell | {"source": cell["source"].splitlines(keepends=True)} for cell in notebook["cells"]]
    return json.dumps(notebook | {"cells": cells, "metadata": metadata}, indent=1, ensure_ascii=False) + "\n"


def cells_hash(notebook: dict) -> str:
    """Changes when a cell is edited, added, moved or removed; not when the notebook is only run."""
    cells = [(cell["cell_type"], "".join(cell["source"])) for cell in notebook["cells"]]
    return hashlib.sha256(json.dumps(cells).encode()).hexdigest()


def is_untouched(path: Path, maker: str = MAKER) -> bool:
    """Whether this notebook is just as `maker` made it, so that nothing is lost by making it again."""
    try:
        notebook = json.loads(path.read_text(encoding="utf-8"))
        stamp = notebook["metadata"]["tinytorch"]
        return stamp["made_by"] == maker and stamp["sha256"] == cells_hash(notebook)
    except (ValueError, KeyError, TypeError):
        return False


def back_up(path: Path, project: Project, label: str | None = None) -> Path:
    """Copies a module's file to .tito/backups/NN_name -> the copy. Never overwrites an earlier one.

    `label` is the NN_name of a file that lies outside the module's folder.
    """
    folder = project.state_dir / "backups" / (label or path.parent.name)
    folder.mkdir(parents=True, exist_ok=True)
    stamp = time.strftime("%Y-%m-%d-%H%M%S")
    copy, again = folder / f"{stamp}-{path.name}", 1
    while copy.exists():
        copy, again = folder / f"{stamp}-{again}-{path.name}", again + 1
    shutil.copy2(path, copy)
    return copy


def make_notebook(module: Module, project: Project, force: bool = False) -> Path | None:
    """Writes the module's notebook; TitoError if that would lose edits, unless `force` (-> the backup)."""
    backup = None
    if module.notebook.exists() and not is_untouched(module.notebook):
        if not force:
            where = module.notebook.relative_to(project.root).as_posix()
            raise TitoError(f"{where} has been edited; --force backs it up and makes it anew.")
        backup = back_up(module.notebook, project)
    write_text(module.notebook, notebook_text(read_notebook(module.dev_file), MAKER))
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
