"""What becomes of a notebook: its graded cells in another process, its checkpoint on an exported package."""

import atexit
import shutil
from functools import cache
from pathlib import Path

from tinytorch.tito.notebook.cells import Cell
from tinytorch.tito.notebook.files import read as read_notebook
from tinytorch.tito.notebook.package import build
from tinytorch.tito.process.checkpoint import Checkpoint, run_checkpoint
from tinytorch.tito.process.outcomes import Report
from tinytorch.tito.process.worker import Worker
from tinytorch.tito.project import Project
from toy import REPO

PROJECT = Project(REPO)
MODULES = {module.label: module for module in PROJECT.modules()}
TIME_LIMIT = 30.0  # seconds for a cell; a wrong answer may loop for ever
CHECKPOINT_LIMIT = 300.0

_worker = Worker(root=REPO)  # starts with the first notebook
atexit.register(_worker.close)


def run(cells: list[Cell]) -> Report:
    """What becomes of the parts, hidden tests included."""
    return _worker.run(cells, time_limit=TIME_LIMIT)


@cache
def reference(label: str) -> dict:
    """The notebook of module "12_attention", with its solutions. Not to be changed."""
    return read_notebook(MODULES[label].dev_file)


def checkpoint_of(
    label: str,
    notebook: dict,
    root: Path,
    test_file: Path | None = None,
    time_limit: float = CHECKPOINT_LIMIT,
) -> Checkpoint:
    """What the checkpoint says of the package with this notebook exported into it.

    root: a folder that does not exist yet and is gone afterwards. test_file: another than the checkpoint's.
    """
    _package_with(label, notebook, root)
    try:
        return run_checkpoint(
            test_file or REPO / "tests" / "checkpoints" / f"test_checkpoint_{label}.py",
            root=REPO,
            package_root=root,
            first_failure=True,
            time_limit=time_limit,
        )
    finally:
        shutil.rmtree(root)


def _package_with(label: str, notebook: dict, root: Path) -> None:
    """Make a package at `root` into which the module is exported from this notebook."""
    shutil.copytree(REPO / "tinytorch", root / "tinytorch")  # compiled files too: they stay current
    source = root / "modules" / label / f"{MODULES[label].name}.ipynb"
    path = build(notebook, source, root, MODULES[label].export_target()).write(root / "tinytorch")
    for compiled in (path.parent / "__pycache__").glob(f"{path.stem}.*"):
        compiled.unlink()
