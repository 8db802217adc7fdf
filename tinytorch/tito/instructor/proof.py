"""What a bundle has to stand before it is handed out: no secret in it, and nbgrader's validator agrees."""

import json
import re
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tinytorch.tito.author.notebooks import MAKER
from tinytorch.tito.instructor.bundle import WRITTEN_BY_HAND, copy_file
from tinytorch.tito.instructor.dev_files import DevFiles
from tinytorch.tito.instructor.leaks import Secrets
from tinytorch.tito.notebook import files
from tinytorch.tito.notebook.cells import cells_of
from tinytorch.tito.notebook.files import put
from tinytorch.tito.notebook.markers import for_student
from tinytorch.tito.process.worker import clean_environment
from tinytorch.tito.project import Module, TitoError

CELL_SECONDS = 300  # for the proof

# What `python -c` runs for the proof: {"failed": [...], "changed": [...]}, as nbgrader's validator says.
VALIDATE = """
import json, sys
from nbgrader.validator import Validator
from traitlets.config import Config
config = Config()
config.Execute.timeout = int(sys.argv[2])
print(json.dumps(Validator(config=config).validate(sys.argv[1])))
"""


def check_bundle(dev_files: DevFiles, module: Module, stage: Path, from_scratch: bool) -> None:
    """TitoError naming the first file that holds what students must not get."""
    closed = [module, *dev_files.later(module)]
    if from_scratch:
        closed += dev_files.earlier(module)
    opened = [other for other in dev_files.modules if other not in closed]
    shown = [module] + (dev_files.earlier(module) if from_scratch else [])
    secrets = Secrets.of(
        solutions={other.label: dev_files.notebook(other) for other in closed},
        hidden={other.label: dev_files.notebook(other) for other in dev_files.modules},
        shown=[for_student(dev_files.notebook(other)) for other in shown],
        opened=[dev_files.notebook(other) for other in opened],
    )
    forbidden = {Path(*other.export_target().split(".")).with_suffix(".py").parts: other for other in closed}
    public = _public_files(dev_files, module, stage)
    for path in sorted(path for path in stage.rglob("*") if not path.is_dir()):
        name = path.relative_to(stage).as_posix()
        if path.is_symlink():
            raise TitoError(f"The bundle would hold the symbolic link {name}; put the file itself there.")
        for parts, other in forbidden.items():
            if path.parts[-len(parts) :] == parts or path.name == other.dev_file.name:
                raise TitoError(f"The bundle would hold {name}, which is for module {other.number} to make.")
        if why := secrets.found_in(path, public=path in public):
            raise TitoError(f"The bundle would give away {name}: {why}.")


def prove(dev_files: DevFiles, module: Module, stage: Path) -> None:
    """nbgrader's validator passes the solved notebook and fails every test of the released one."""
    with tempfile.TemporaryDirectory(prefix="tito-proof-") as folder:
        solved, released = Path(folder) / "solved", Path(folder) / "released"
        put(solved / module.notebook.name, files.text_of(dev_files.notebook(module), MAKER))
        copy_file(stage / module.notebook.name, released / module.notebook.name)
        package = Path(folder) / "package" / "tinytorch"
        shutil.copytree(stage / "tinytorch", package)
        for other in dev_files.earlier(module):  # they are there already, except from scratch
            dev_files.exported(other).write(package)
        with ThreadPoolExecutor(2) as pool:
            notebooks = [place / module.notebook.name for place in (solved, released)]
            solved_says, released_says = pool.map(lambda path: _validate(path, package.parent), notebooks)
    if solved_says:
        kind, cells = next(iter(solved_says.items()))
        first = cells[0].get("error") or cells[0]["source"]
        why = [line for line in re.sub(r"\x1b\[[\d;]*m", "", first).splitlines() if line.strip()][-1]
        raise TitoError(f"The solved notebook of module {module.number} does not validate ({kind}: {why}).")
    tests = [cell.source for cell in cells_of(files.read(stage / module.notebook.name)) if cell.is_test]
    failed = {cell["source"].strip() for cell in released_says.get("failed", [])}
    earned = [source for source in tests if source.strip() not in failed]
    if earned or not tests:
        what = f"earns the points of {earned[0].splitlines()[0]!r}" if earned else "has no test"
        raise TitoError(f"The released notebook of module {module.number} {what} with nothing written in it.")


def _validate(notebook: Path, package_root: Path) -> dict:
    """What nbgrader's Validator says, its kernel seeing the package of `package_root`; {} is a pass."""
    with tempfile.TemporaryDirectory(prefix="tito-ipython-") as folder:
        env = clean_environment() | {"PYTHONPATH": str(package_root), "PYTHONDONTWRITEBYTECODE": "1"}
        env |= {"IPYTHONDIR": folder, "PYTHONUTF8": "1"}
        command = [sys.executable, "-c", VALIDATE, notebook.name, str(CELL_SECONDS)]
        done = subprocess.run(
            command, cwd=notebook.parent, env=env, stdin=subprocess.DEVNULL, capture_output=True
        )
    said = done.stdout.decode("utf-8", "replace").strip().splitlines()
    if done.returncode or not said:
        lines = done.stderr.decode("utf-8", "replace").strip().splitlines()
        raise TitoError(f"nbgrader could not validate {notebook.name}: {(lines or ['it said nothing'])[-1]}")
    return json.loads(said[-1])


def _public_files(dev_files: DevFiles, module: Module, stage: Path) -> set[Path]:
    """The files written to be read: their scaffolding may be like that of a hidden test."""
    folders = ("tests", "milestones", "tinytorch/tito", *(f"tinytorch/{part}" for part in WRITTEN_BY_HAND))
    return {path for folder in folders for path in (stage / folder).rglob("*.py")}
