"""`tito export`: dev file -> jupytext, in memory -> nbdev -> package file, the same bytes every time."""

import ast
import json
import re
import tempfile
from dataclasses import dataclass
from pathlib import Path

import click

from tinytorch.tito.console import count
from tinytorch.tito.project import (
    EXPORT_FOLDERS,
    EXPORT_TARGET,
    Project,
    TitoError,
    need_package,
    need_project,
    write_text,
)

SOLUTION_MARKER = re.compile(r"^[ \t]*### (?:BEGIN|END) SOLUTION[ \t]*\n?", re.MULTILINE)
HIDDEN_TESTS = re.compile(r"^[ \t]*### (?:BEGIN|END) HIDDEN TESTS", re.MULTILINE)
# jupytext would turn a comment like `# cat = 3` into a shell command if it might uncomment magics
PERCENT = {"extension": ".py", "format_name": "percent", "comment_magics": False}
PARTS = ("cell_type", "source", "metadata")
CELL_ID = re.compile(r"[A-Za-z0-9_-]{1,64}")
KERNELSPEC = {"display_name": "Python 3 (ipykernel)", "language": "python", "name": "python3"}


@dataclass(frozen=True)
class ExportedModule:
    """One module of the package as an export makes it; nothing of it is on disk yet."""

    source: Path  # the dev file or the notebook
    target: str  # "core.tensor"
    text: str  # the whole package file

    def path(self, package_dir: Path) -> Path:
        return package_dir.joinpath(*self.target.split(".")).with_suffix(".py")

    def write(self, package_dir: Path) -> Path:
        path = self.path(package_dir)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text(path, self.text)
        return path

    def differs(self, package_dir: Path) -> bool:
        path = self.path(package_dir)
        return not path.is_file() or path.read_bytes() != self.text.encode()


def read_notebook(path: Path) -> dict:
    """A dev file (percent format) or an .ipynb -> a notebook (nbformat 4.5, as plain dicts) without outputs.

    The cell ids are stable: the grade_id where there is one, else the cell's place in the notebook.
    """
    cells = _read_ipynb(path) if path.suffix == ".ipynb" else _read_percent(path)
    used: set[str] = set()
    for place, cell in enumerate(cells):
        grade_id = cell["metadata"].get("nbgrader", {}).get("grade_id", "")
        fits = CELL_ID.fullmatch(str(grade_id)) and grade_id not in used
        cell["id"] = str(grade_id) if fits else f"cell-{place}"
        used.add(cell["id"])
    return {
        "cells": cells,
        "metadata": {"kernelspec": dict(KERNELSPEC), "language_info": {"name": "python"}},
        "nbformat": 4,
        "nbformat_minor": 5,
    }


def strip_markers(cell) -> None:
    """nbdev processor: an exported cell keeps its solution and loses the markers around it.

    Plain `nbdev-export` runs it too, by `export_procs` in pyproject.toml.
    """
    if cell.cell_type != "code" or not {"export", "exporti", "exports"} & set(cell.directives_):
        return
    if HIDDEN_TESTS.search(cell.source):
        raise TitoError(f"Cell {cell.id} holds hidden tests and is marked for export; hidden tests stay out.")
    cell.source = SOLUTION_MARKER.sub("", cell.source).rstrip("\n")


def build_module(source: Path, project_root: Path, target: str | None = None) -> ExportedModule:
    """What exporting `source` (a dev file or an .ipynb) gives. Runs none of its code, writes nothing.

    The header names `source` as seen from the package file. If `target` is given, the notebook's
    `#| default_exp` must name just that. TitoError if the notebook cannot be exported.
    """
    need_package("nbdev", "Exporting")
    if source.suffix != ".ipynb":
        need_package("jupytext", "Exporting")
    from fastcore.nbio import dict2nb
    from nbdev.export import ExportModuleProc
    from nbdev.maker import ModuleMaker
    from nbdev.process import NBProcessor

    notebook = dict2nb(read_notebook(source))
    collected = ExportModuleProc()
    processor = NBProcessor(nb=notebook, procs=[_check_cell(source), collected, strip_markers])
    try:
        processor.process()
    except TitoError as error:
        raise TitoError(f"{source}: {error.message}") from None
    found = _one_target(processor.nb.cells, source)
    if target is not None and found != target:
        raise TitoError(f"{source} exports to {found}, but this module's place is {target}.")
    cells = [cell for cell in collected.modules["#"] if cell.cell_type == "code"]
    if not cells:
        raise TitoError(f"{source} marks no cell with `#| export`, so there is nothing to export.")
    in_all = collected.in_all["#"]

    with tempfile.TemporaryDirectory(prefix="tito-export-") as folder:
        package = Path(folder) / "tinytorch"
        maker = ModuleMaker(dest=package, name=found, nb_path=source)
        maker.dest2nb = _seen_from_package(source, project_root, found)
        maker.hdr = f"# %% {maker.dest2nb}"
        maker.make(cells, in_all, lib_path=package)
        text = maker.fname.read_text(encoding="utf-8")
    return ExportedModule(source, found, text)


def export_notebook(source: Path | str, package_dir: Path | str, target: str | None = None) -> Path:
    """Exports one dev file or .ipynb into the package folder -> the file written.

    Static: nothing in the notebook is executed. `target` ("core.tensor"), if given, is the only place
    that the notebook may export to.
    """
    source, package_dir = Path(source).resolve(), Path(package_dir).resolve()
    return build_module(source, package_dir.parent, target).write(package_dir)


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


def _read_percent(path: Path) -> list[dict]:
    import jupytext

    cells = jupytext.reads(path.read_text(encoding="utf-8"), fmt=PERCENT).cells
    return [_plain_cell(cell.cell_type, cell.source, cell.metadata) for cell in cells]


def _read_ipynb(path: Path) -> list[dict]:
    try:
        notebook = json.loads(path.read_text(encoding="utf-8"))
        if notebook["nbformat"] != 4:
            raise TitoError(f"{path} is in notebook format {notebook['nbformat']}; save it anew in Jupyter.")
        return [_plain_cell(*(cell[key] for key in PARTS)) for cell in notebook["cells"]]
    except FileNotFoundError:
        raise TitoError(f"There is no notebook {path}.") from None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise TitoError(f"{path} is not a readable notebook ({type(error).__name__}: {error}).") from None


def _plain_cell(cell_type: str, source: str | list[str], metadata: dict) -> dict:
    """Only what the course uses: neither outputs nor the metadata that editors and converters leave."""
    kept = {key: dict(metadata[key]) for key in ("nbgrader",) if key in metadata}
    cell = {"cell_type": cell_type, "id": "", "metadata": kept, "source": "".join(source)}
    if cell_type == "code":
        cell |= {"execution_count": None, "outputs": []}
    return cell


def _check_cell(source: Path):
    """-> an nbdev processor that refuses the cells nbdev would export wrongly or drop silently."""

    def check(cell) -> None:
        exported = {"export", "exporti", "exports"} & set(cell.directives_)
        if cell.cell_type != "code" or not exported:
            return
        elsewhere = next((cell.directives_[name] for name in exported if cell.directives_[name]), None)
        if elsewhere:
            raise TitoError(f"cell {cell.id} exports to {elsewhere}; a notebook makes one file only.")
        try:
            tree = ast.parse(cell.source)
        except SyntaxError as error:
            where = f"cell {cell.id}, line {error.lineno + len(cell.directives_)}"
            raise TitoError(f"{where} is not valid Python: {error.msg}.") from None
        if any(isinstance(node, ast.ImportFrom) and node.level for node in tree.body):
            raise TitoError(f"cell {cell.id} has a relative import; write `from tinytorch...`.")

    return check


def _one_target(cells, source: Path) -> str:
    code = [cell for cell in cells if cell.cell_type == "code"]
    targets = [cell.directives_["default_exp"] for cell in code if "default_exp" in cell.directives_]
    if len(targets) != 1:
        how_many = "no `#| default_exp`" if not targets else f"{len(targets)} `#| default_exp`"
        raise TitoError(f"{source} has {how_many}; it needs exactly one.")
    if not EXPORT_TARGET.fullmatch(targets[0]):
        places = ", ".join(EXPORT_FOLDERS)
        raise TitoError(f"{source} exports to {targets[0]!r}; it must be a module in one of {places}.")
    return targets[0]


def _seen_from_package(source: Path, project_root: Path, target: str) -> str:
    """The path of `source` from the folder of the package file; only its name if it lies elsewhere."""
    source, project_root = source.resolve(), project_root.resolve()
    if not source.is_relative_to(project_root):
        return source.name
    return "../" * len(target.split(".")) + source.relative_to(project_root).as_posix()
