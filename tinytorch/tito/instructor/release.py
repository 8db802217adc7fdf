"""`tito release`: the student's bundle, folder and zip, checked for leaks and proved with nbgrader."""

import os
import tempfile
from pathlib import Path

import click

from tinytorch.tito.instructor.bundle import fill_bundle, write_zip
from tinytorch.tito.instructor.course import swap_in
from tinytorch.tito.instructor.dev_files import DevFiles
from tinytorch.tito.instructor.handed_out import remember_bundle
from tinytorch.tito.instructor.proof import check_bundle, prove
from tinytorch.tito.notebook import files
from tinytorch.tito.project import Module, Project, TitoError, need_package, need_project


def make_bundle(dev_files: DevFiles, module: Module, output: Path, from_scratch: bool = False) -> Path:
    """Builds output/NN_name/ and output/NN_name.zip -> the folder; TitoError leaves both as they were."""
    place, archive = output / module.label, output / f"{module.label}.zip"
    _refuse_to_replace(place, module)
    had_output = output.is_dir()
    output.mkdir(parents=True, exist_ok=True)
    try:
        with tempfile.TemporaryDirectory(prefix=".tito-", dir=output) as folder:
            stage = Path(folder) / module.label
            fill_bundle(dev_files, module, stage, from_scratch)
            check_bundle(dev_files, module, stage, from_scratch)
            prove(dev_files, module, stage)
            zipped = write_zip(stage, Path(folder) / archive.name)
            swap_in({place: stage, archive: zipped})
        for path in (place / ".tito" / "pristine").glob("*.ipynb"):
            remember_bundle(dev_files.project, dev_files.project.module(path.stem), files.read(path))
    except BaseException:
        if not had_output and not any(output.iterdir()):
            output.rmdir()
        raise
    return place


def _refuse_to_replace(place: Path, module: Module) -> None:
    """A folder is replaced only if it is a bundle of this module in which nobody has worked."""
    if not place.exists():
        return
    pyproject = place / "pyproject.toml"
    label = Project(place).bundle_label if pyproject.is_file() else None
    if label != module.label:
        raise TitoError(
            f"{place} is there and is no bundle of module {module.number}; name another --output."
        )
    if (place / ".tito" / "progress").exists():
        raise TitoError(f"A student has worked in {place}; move it away, or name another --output.")


@click.command("release")
@click.argument("numbers", metavar="[NN]...", nargs=-1)
@click.option("--all", "everything", is_flag=True, help="Every module.")
@click.option(
    "--output",
    required=True,
    type=click.Path(path_type=Path, file_okay=False),
    metavar="DIR",
    help="Where to.",
)
@click.option("--from-scratch", is_flag=True, help="Leave out the earlier modules' solutions too.")
def command(numbers: tuple[str, ...], everything: bool, output: Path, from_scratch: bool) -> None:
    """Make the student's bundle of each module NN: DIR/NN_name/ and DIR/NN_name.zip.

    It is checked for solutions, hidden tests and later modules, and nbgrader's validator must pass the solved
    notebook and fail the released one. If anything is wrong, what is in DIR stays as it was.
    """
    if bool(numbers) == everything:
        raise TitoError("Name the modules or --all: tito release NN --output DIR.")
    project = need_project()
    for name, extra in (("jupytext", "dev"), ("nbdev", "dev"), ("nbgrader", "instructor")):
        need_package(name, "Making a release", extra)
    dev_files, refused = DevFiles(project), 0
    modules = project.select(None) if everything else [project.module(number) for number in numbers]
    for module in modules:
        try:
            place = make_bundle(dev_files, module, output.resolve(), from_scratch)
        except TitoError as error:
            if len(modules) == 1:
                raise
            error.show()
            refused += 1
            continue
        shown = Path(os.path.relpath(place)) if place.is_relative_to(Path.cwd()) else place
        click.echo(f"released  {shown.as_posix()} and {shown.name}.zip")
    if refused:
        raise TitoError(f"{refused} of {len(modules)} modules were not released.")
