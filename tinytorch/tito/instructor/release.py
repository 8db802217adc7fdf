"""`tito release`: the student's bundle, folder and zip, checked for leaks and proved with nbgrader."""

import ast
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import tomllib
import zipfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cache, cached_property
from pathlib import Path

import click

from tinytorch.tito.author.notebooks import MAKER, to_read
from tinytorch.tito.instructor.course import generate_release, swap_in
from tinytorch.tito.instructor.leaks import Secrets
from tinytorch.tito.notebook import files
from tinytorch.tito.notebook.cells import cells_of
from tinytorch.tito.notebook.files import put
from tinytorch.tito.notebook.markers import for_student
from tinytorch.tito.notebook.package import build
from tinytorch.tito.process.worker import clean_environment
from tinytorch.tito.project import (
    EXPORT_FOLDERS,
    Module,
    Project,
    TitoError,
    need_package,
    need_project,
    project_version,
)

# Besides the runtime's own: exporting, the checkpoint, the plots, a kernel for Jupyter or VS Code, --watch.
STUDENT_TOOLS = ("nbdev", "pytest", "hypothesis", "matplotlib", "ipykernel", "watchfiles")
STUDENT_COMMANDS = ("cli", "student.commands", "student.doctor")
WRITTEN_BY_HAND = ("pretrained", "caches")  # parts of the package that no module exports
LEFTOVERS = ("__pycache__", ".ipynb_checkpoints", ".*", "*.pyc", "*.pyo", "*.egg-info", "build", "dist")
CELL_SECONDS = 300  # for the proof
WHEN = (1980, 1, 1, 0, 0, 0)  # every file's time in the zip

# What `python -c` runs for the proof: {"failed": [...], "changed": [...]}, as nbgrader's validator says.
VALIDATE = """
import json, sys
from nbgrader.validator import Validator
from traitlets.config import Config
config = Config()
config.Execute.timeout = int(sys.argv[2])
print(json.dumps(Validator(config=config).validate(sys.argv[1])))
"""


@dataclass(frozen=True)
class Course:
    """The dev files of a project, each read and exported once for all bundles."""

    project: Project
    cache: dict = field(default_factory=dict)

    @cached_property
    def modules(self) -> list[Module]:
        return self.project.modules()

    def notebook(self, module: Module) -> dict:
        return self._once("notebook", module, lambda: to_read(module))

    def exported(self, module: Module):
        return self._once(
            "exported", module, lambda: build(self.notebook(module), module.dev_file, self.project.root)
        )

    def _once(self, what: str, module: Module, make):
        if (what, module) not in self.cache:
            self.cache[what, module] = make()
        return self.cache[what, module]

    def earlier(self, module: Module) -> list[Module]:
        return [other for other in self.modules if other.number < module.number]

    def later(self, module: Module) -> list[Module]:
        return [other for other in self.modules if other.number > module.number]

    def milestones(self, module: Module) -> list[Path]:
        """The folders of milestones/ whose latest import from the package is this module."""
        found = []
        for folder in sorted(path for path in (self.project.root / "milestones").glob("*/")):
            wanted = set().union(*(_package_imports(path) for path in folder.rglob("*.py")))
            needed = [other for other in self.modules if other.export_target() in wanted]
            if needed and needed[-1] == module:
                found.append(folder)
        return found


def make_bundle(course: Course, module: Module, output: Path, from_scratch: bool = False) -> Path:
    """Builds output/NN_name/ and output/NN_name.zip -> the folder; TitoError leaves both as they were."""
    place, archive = output / module.label, output / f"{module.label}.zip"
    _refuse_to_replace(place, module)
    had_output = output.is_dir()
    output.mkdir(parents=True, exist_ok=True)
    try:
        with tempfile.TemporaryDirectory(prefix=".tito-", dir=output) as folder:
            stage = Path(folder) / module.label
            fill_bundle(course, module, stage, from_scratch)
            check_bundle(course, module, stage, from_scratch)
            prove(course, module, stage)
            zipped = write_zip(stage, Path(folder) / archive.name)
            swap_in({place: stage, archive: zipped})
    except BaseException:
        if not had_output and not any(output.iterdir()):
            output.rmdir()
        raise
    return place


def fill_bundle(course: Course, module: Module, stage: Path, from_scratch: bool) -> None:
    """Puts every file of the bundle into the empty folder `stage`."""
    project = course.project
    stage.mkdir(parents=True)
    released = [(module, stage)]
    if from_scratch:  # nothing to build on, so the earlier notebooks are handed out too
        released += [(other, stage / "modules" / other.label) for other in course.earlier(module)]
    for unit, folder in released:
        text = released_notebook(course, unit)
        put(folder / unit.notebook.name, text)
        put(stage / ".tito" / "pristine" / f"{unit.label}.ipynb", text)
        name = f"test_checkpoint_{unit.label}.py"
        checkpoint = project.root / "tests" / "checkpoints" / name
        if not checkpoint.is_file():
            raise TitoError(
                f"tests/checkpoints/{name} is missing, so module {unit.number} has no checkpoint."
            )
        _copy(checkpoint, stage / "tests" / "checkpoints" / name)
    package = stage / "tinytorch"
    for part in ("", *EXPORT_FOLDERS):
        init = project.package_dir / part / "__init__.py"
        if init.is_file():
            _copy(init, package / part / "__init__.py")
    for path in _student_tools(project):
        _copy(path, package / path.relative_to(project.package_dir))
    for part in WRITTEN_BY_HAND:
        for path in sorted((project.package_dir / part).glob("*.py")):
            _copy(path, package / part / path.name)
    if not from_scratch:
        for other in course.earlier(module):
            course.exported(other).write(package)
    milestones = course.milestones(module)
    for folder in milestones:
        ignored = shutil.ignore_patterns(*LEFTOVERS)
        shutil.copytree(folder, stage / "milestones" / folder.name, ignore=ignored, symlinks=False)
    if (project.root / "LICENSE").is_file():
        _copy(project.root / "LICENSE", stage / "LICENSE")
    put(stage / "pyproject.toml", _pyproject(project, module))
    put(stage / "README.md", _readme(course, module, milestones, from_scratch))


def released_notebook(course: Course, module: Module) -> str:
    """The notebook as nbgrader releases it; TitoError if a cell of it is not what we expect of nbgrader."""
    with tempfile.TemporaryDirectory(prefix="tito-release-") as folder:
        source = Path(folder) / "source" / module.label / module.notebook.name
        put(source, files.text_of(course.notebook(module), MAKER))
        release = generate_release(Path(folder), module)
        released = files.read(release)
        text = release.read_text(encoding="utf-8")
    want = [cell["source"] for cell in for_student(course.notebook(module))["cells"]]
    have = [cell["source"] for cell in released["cells"]]
    for place, (wanted, found) in enumerate(zip(want, have, strict=True)):
        if wanted.strip() != found.strip():
            raise TitoError(
                f"Cell {place} of module {module.number}'s released notebook is not its student's."
            )
    return text


# ---------------------------------------------------------------------------------------------------- checks


def check_bundle(course: Course, module: Module, stage: Path, from_scratch: bool) -> None:
    """TitoError naming the first file that holds what students must not get."""
    closed = [module, *course.later(module)]
    if from_scratch:
        closed += course.earlier(module)
    opened = [other for other in course.modules if other not in closed]
    shown = [module] + (course.earlier(module) if from_scratch else [])
    secrets = Secrets.of(
        solutions={other.label: course.notebook(other) for other in closed},
        hidden={other.label: course.notebook(other) for other in course.modules},
        shown=[for_student(course.notebook(other)) for other in shown],
        opened=[course.notebook(other) for other in opened],
    )
    forbidden = {Path(*other.export_target().split(".")).with_suffix(".py").parts: other for other in closed}
    public = _public_files(course, module, stage)
    for path in sorted(path for path in stage.rglob("*") if not path.is_dir()):
        name = path.relative_to(stage).as_posix()
        if path.is_symlink():
            raise TitoError(f"The bundle would hold the symbolic link {name}; put the file itself there.")
        for parts, other in forbidden.items():
            if path.parts[-len(parts) :] == parts or path.name == other.dev_file.name:
                raise TitoError(f"The bundle would hold {name}, which is for module {other.number} to make.")
        if why := secrets.found_in(path, public=path in public):
            raise TitoError(f"The bundle would give away {name}: {why}.")


def prove(course: Course, module: Module, stage: Path) -> None:
    """nbgrader's validator passes the solved notebook and fails every test of the released one."""
    with tempfile.TemporaryDirectory(prefix="tito-proof-") as folder:
        solved, released = Path(folder) / "solved", Path(folder) / "released"
        put(solved / module.notebook.name, files.text_of(course.notebook(module), MAKER))
        _copy(stage / module.notebook.name, released / module.notebook.name)
        package = Path(folder) / "package" / "tinytorch"
        shutil.copytree(stage / "tinytorch", package)
        for other in course.earlier(module):  # they are there already, except from scratch
            course.exported(other).write(package)
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
        raise TitoError(f"Somebody has worked in {place}; move it away, or name another --output.")


def _public_files(course: Course, module: Module, stage: Path) -> set[Path]:
    """The files written to be read: their scaffolding may be like that of a hidden test."""
    folders = ("tests", "milestones", "tinytorch/tito", *(f"tinytorch/{part}" for part in WRITTEN_BY_HAND))
    return {path for folder in folders for path in (stage / folder).rglob("*.py")}


# ----------------------------------------------------------------------------------------------------- files


def write_zip(folder: Path, archive: Path) -> Path:
    """The folder as a zip: the same files give the same bytes."""
    with zipfile.ZipFile(archive, "w") as out:
        for path in sorted(path for path in folder.rglob("*") if path.is_file()):
            name = f"{folder.name}/{path.relative_to(folder).as_posix()}"
            entry = zipfile.ZipInfo(name, WHEN)
            entry.compress_type, entry.create_system = zipfile.ZIP_DEFLATED, 3
            entry.external_attr = 0o644 << 16
            out.writestr(entry, path.read_bytes())
    return archive


def _copy(source: Path, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, path)


def _student_tools(project: Project) -> list[Path]:
    """The files of tito that the student's commands import, directly or not."""
    tool = project.package_dir / "tito"
    wanted, found = [f"tinytorch.tito.{name}" for name in STUDENT_COMMANDS], set()
    while wanted:
        place = project.root.joinpath(*wanted.pop().split("."))
        file = place.with_suffix(".py")
        if file.is_file() and file not in found:
            found |= {
                file,
                *(folder / "__init__.py" for folder in file.parents if folder.is_relative_to(tool)),
            }
            names = _package_imports(file, whole=True)
            wanted += [name for name in names if name.startswith("tinytorch.tito.")]
    # a file that is run by its path and imported by nobody
    found |= {file for file in (tool / "process" / "cells_script.py",) if file.is_file()}
    return sorted(found)


@cache
def _package_imports(path: Path, whole: bool = False) -> frozenset[str]:
    """{"core.tensor", ...}: what the file imports from tinytorch; with "tinytorch." before it if `whole`."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    ours = {name for name in names if name.startswith("tinytorch.")}
    return frozenset(ours if whole else {name.removeprefix("tinytorch.") for name in ours})


def _pyproject(project: Project, module: Module) -> str:
    table = tomllib.loads((project.root / "pyproject.toml").read_text(encoding="utf-8"))
    ours = table["project"]
    tools = [
        item for item in ours["optional-dependencies"]["dev"] if re.match(r"[\w-]+", item)[0] in STUDENT_TOOLS
    ]
    dependencies = "\n".join(f"    {json.dumps(item)}," for item in [*ours["dependencies"], *tools])
    weights = "\n".join(f"    {json.dumps(item)}," for item in ours["optional-dependencies"]["llm"])
    nbdev = "\n".join(
        f"{key} = {json.dumps('.' if key == 'nbs_path' else value)}"
        for key, value in table["tool"]["nbdev"].items()
    )
    return f"""\
[build-system]
requires = {json.dumps(table["build-system"]["requires"])}
build-backend = {json.dumps(table["build-system"]["build-backend"])}

[project]
name = "tinytorch"
version = {json.dumps(project_version(project.root))}
description = {json.dumps(f"TinyTorch, module {module.number}: your part of it is to write")}
requires-python = {json.dumps(ours["requires-python"])}
dependencies = [
{dependencies}
]

[project.optional-dependencies]
llm = [
{weights}
]

[project.scripts]
tito = "tinytorch.tito.cli:main"

[tool.setuptools.packages.find]
include = ["tinytorch*"]

[tool.tinytorch]
module = {json.dumps(module.label)}

[tool.nbdev]
{nbdev}

[tool.pytest.ini_options]
pythonpath = ["."]
filterwarnings = ["error"]
"""


INSTALL_ALONE = """\
## Install, once

You need Python 3.11 or newer. In a terminal, in this folder:

```bash
python3 -m venv .venv            # Windows: py -m venv .venv
source .venv/bin/activate        # Windows: .venv\\Scripts\\activate
pip install -e .
pip install jupyterlab           # or use VS Code
```

Everything goes into `.venv`. In a new terminal, activate it again.
"""

INSTALL_ONCE = """\
## Install, once for all modules

Keep the folders of all modules side by side: one environment, beside them, serves them all. You need Python \
3.11 or newer. The first time, in a terminal, in this folder:

```bash
python3 -m venv ../.venv         # Windows: py -m venv ..\\.venv
source ../.venv/bin/activate     # Windows: ..\\.venv\\Scripts\\activate
pip install -e .
pip install jupyterlab           # or use VS Code, and open the folder that holds .venv
```

For the next module, and in every new terminal, only activate it. Whichever folder you are in, its own \
`tinytorch` is the one that `tito`, Jupyter and the scripts use. The folder that you installed from must \
stay where it is; if it went, `pip install -e .` in another one, which takes seconds.
"""


def _readme(course: Course, module: Module, milestones: list[Path], from_scratch: bool) -> str:
    number, notebook = module.number, module.notebook.name
    checkpoint = f"test_checkpoint_{module.label}.py"
    heading = re.search(
        r"^# (?:Module \d+: )?(.+)$", course.notebook(module)["cells"][0]["source"], re.MULTILINE
    )
    title = heading[1] if heading else module.name
    if from_scratch:
        order = f"""
The package `tinytorch` is empty: you build all of it. The earlier notebooks are in `modules/`; \
take them in the order of their numbers (`tito module status` says which is next), module {number} last. \
In the commands below put the number of the module that you are at.
"""
        install = INSTALL_ALONE
    else:
        order = f"""
The package `tinytorch` holds the modules before this one, solved. Module {number} is yours to write.
"""
        install = INSTALL_ONCE
    text = f"""\
# TinyTorch, module {number}: {title}
{order}
{install}
## Work

```bash
tito module start {number}       # says what there is to do
jupyter lab {notebook}
tito module test {number}        # part by part: passed, failed and why (--watch: at each save)
tito module status {number}      # what is left to do
tito module complete {number}    # once all parts pass: runs the checkpoint, puts your code into the package
```

In the notebook, `{notebook}`, write your code where it says `# YOUR CODE HERE`, delete the \
`raise NotImplementedError()` below it, and save: `tito` reads the file as it is saved. \
`tito module reset {number}` begins again and keeps a copy of what you had. `tito doctor` says what is wrong \
with the installation.

## What counts

Each part earns its points alone, so leave what you cannot do. `tito module test` runs the checks that you \
can see. Grading runs more of them, on other numbers, and the checkpoint, `tests/checkpoints/{checkpoint}`, \
which you may read and run. The cells with the checks are locked: what you change in them does not count. \
A check in which your code warns is not passed.

Your code may use NumPy, the package's earlier modules, and of the standard library what computes and \
holds values (`math`, `itertools`, `functools`, `collections`, `dataclasses`, `typing`, `copy`, `time` ...). \
A cell that reaches into Python's own machinery (`eval`, `exec`, `open`, frames, most of `os` and `sys`, \
an `__eq__` of its own, a change to another module ...) where the task does not ask for it counts only \
once a person has looked at it.
"""
    scripts = [path for folder in milestones for path in _scripts(folder)]
    if scripts:
        lines = "\n".join(f"python {path.relative_to(course.project.root).as_posix()}" for path in scripts)
        if any((folder / "model.txt").exists() for folder in milestones):
            lines = 'pip install -e ".[llm]"          # libraries that read a published model\n' + lines
        text += f"""
## Your code at work

Once module {number} is completed, this runs on what you wrote (add `--help` to see what it can do):

```bash
{lines}
```
"""
    return (
        text
        + f"""
## Hand in

Hand in the notebook, `{notebook}`, saved, under this name and nothing else.
"""
    )


def _scripts(folder: Path) -> list[Path]:
    """The programs at the top of a milestone's folder."""
    files = sorted(folder.glob("*.py"))
    return [path for path in files if '__name__ == "__main__"' in path.read_text(encoding="utf-8")]


# --------------------------------------------------------------------------------------------------- command


@click.command("release")
@click.argument("number", metavar="[NN]", required=False)
@click.option("--all", "everything", is_flag=True, help="Every module.")
@click.option(
    "--output",
    required=True,
    type=click.Path(path_type=Path, file_okay=False),
    metavar="DIR",
    help="Where to.",
)
@click.option("--from-scratch", is_flag=True, help="Leave out the earlier modules' solutions too.")
def command(number: str | None, everything: bool, output: Path, from_scratch: bool) -> None:
    """Make the student's bundle of module NN: DIR/NN_name/ and DIR/NN_name.zip.

    It is checked for solutions, hidden tests and later modules, and nbgrader's validator must pass the solved
    notebook and fail the released one. If anything is wrong, what is in DIR stays as it was.
    """
    if bool(number) == everything:
        raise TitoError("Name one module or --all: tito release NN --output DIR.")
    project = need_project()
    for name, extra in (("jupytext", "dev"), ("nbdev", "dev"), ("nbgrader", "instructor")):
        need_package(name, "Making a release", extra)
    course, refused = Course(project), 0
    modules = project.select(number)
    for module in modules:
        try:
            place = make_bundle(course, module, output.resolve(), from_scratch)
        except TitoError as error:
            if number:
                raise
            error.show()
            refused += 1
            continue
        shown = Path(os.path.relpath(place)) if place.is_relative_to(Path.cwd()) else place
        click.echo(f"released  {shown.as_posix()} and {shown.name}.zip")
    if refused:
        raise TitoError(f"{refused} of {len(modules)} modules were not released.")
