"""`tito export`: dev file -> jupytext, in memory -> nbdev -> package file, the same bytes every time."""

from pathlib import Path

import click

from tinytorch.tito.console import count
from tinytorch.tito.notebook.package import ExportedModule, build_module
from tinytorch.tito.project import Project, TitoError, need_project


def build_all(project: Project, number: str | None = None) -> list[ExportedModule]:
    """Every module of the project (or the one named), built; TitoError if two share a place."""
    modules = project.select(number)
    owners: dict[str, Path] = {}
    for module in project.modules():
        target = module.export_target()
        if target in owners:
            raise TitoError(f"{module.dev_file} and {owners[target]} both export to {target}.")
        if target:
            owners[target] = module.dev_file
    return [build_module(module.dev_file, project.root) for module in modules]


def compare(project: Project, number: str | None = None) -> dict[Path, str]:
    """{package file: "missing" | "differs" | "stale"} for all that an export would change."""
    return _compare(project, build_all(project, number), whole=number is None)


@click.command("export")
@click.argument("number", metavar="[NN]", required=False)
@click.option("--check", is_flag=True, help="Write nothing; list what would change, exit 1 if anything.")
def command(number: str | None, check: bool) -> None:
    """Make the package from the dev files: all of them, or module NN.

    Only files that change are written; a package file whose dev file is gone is removed.
    """
    project = need_project()
    built = build_all(project, number)
    changes = _compare(project, built, whole=number is None)
    names = {path: path.relative_to(project.root).as_posix() for path in changes}
    if check:
        for path, state in changes.items():
            click.echo(f"{state}  {names[path]}")
        if changes:
            raise TitoError(f"{count(len(changes), 'file')} not as the dev files say; run `tito export`.")
        click.echo(f"{count(len(built), 'module')} exported, all up to date.")
        return
    for module in built:
        if module.path(project.package_dir) in changes:
            module.write(project.package_dir)
    for path, state in changes.items():
        if state == "stale":
            path.unlink()
        click.echo(f"{'removed' if state == 'stale' else 'written'}  {names[path]}")
    click.echo(f"{count(len(built), 'module')} exported, {len(changes)} changed.")


def _compare(project: Project, built: list[ExportedModule], whole: bool) -> dict[Path, str]:
    changes = {}
    for module in built:
        path = module.path(project.package_dir)
        if module.differs(project.package_dir):
            changes[path] = "differs" if path.exists() else "missing"
    if whole:
        kept = {module.path(project.package_dir) for module in built}
        changes |= {path: "stale" for path in project.exported_files() if path not in kept}
    return dict(sorted(changes.items()))
