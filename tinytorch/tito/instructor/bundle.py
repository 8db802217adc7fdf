"""The files of a student's bundle."""

import re
import shutil
import tempfile
import tomllib
import zipfile
from pathlib import Path

from tinytorch.tito.author.notebooks import MAKER
from tinytorch.tito.instructor.course import generate_release
from tinytorch.tito.instructor.dev_files import DevFiles, package_imports
from tinytorch.tito.instructor.templating import render
from tinytorch.tito.notebook import files
from tinytorch.tito.notebook.files import put
from tinytorch.tito.notebook.markers import for_student
from tinytorch.tito.project import EXPORT_FOLDERS, Module, Project, TitoError, project_version

# Besides the runtime's own: exporting, the checkpoint, the plots, a kernel for Jupyter or VS Code, --watch.
STUDENT_TOOLS = ("nbdev", "pytest", "hypothesis", "matplotlib", "ipykernel", "watchfiles")
STUDENT_COMMANDS = ("cli", "student.commands", "student.doctor")
WRITTEN_BY_HAND = ("pretrained", "caches")  # parts of the package that no module exports
LEFTOVERS = ("__pycache__", ".ipynb_checkpoints", ".*", "*.pyc", "*.pyo", "*.egg-info", "build", "dist")
WHEN = (1980, 1, 1, 0, 0, 0)  # every file's time in the zip


def fill_bundle(dev_files: DevFiles, module: Module, stage: Path, from_scratch: bool) -> None:
    """Puts every file of the bundle into the empty folder `stage`."""
    project = dev_files.project
    stage.mkdir(parents=True)
    released = [(module, stage)]
    if from_scratch:  # nothing to build on, so the earlier notebooks are handed out too
        released += [(other, stage / "modules" / other.label) for other in dev_files.earlier(module)]
    for unit, folder in released:
        text = released_notebook(dev_files, unit)
        put(folder / unit.notebook.name, text)
        put(stage / ".tito" / "pristine" / f"{unit.label}.ipynb", text)
        name = f"test_checkpoint_{unit.label}.py"
        checkpoint = project.root / "tests" / "checkpoints" / name
        if not checkpoint.is_file():
            raise TitoError(
                f"tests/checkpoints/{name} is missing, so module {unit.number} has no checkpoint."
            )
        copy_file(checkpoint, stage / "tests" / "checkpoints" / name)
    package = stage / "tinytorch"
    for part in ("", *EXPORT_FOLDERS):
        init = project.package_dir / part / "__init__.py"
        if init.is_file():
            copy_file(init, package / part / "__init__.py")
    for path in _student_tools(project):
        copy_file(path, package / path.relative_to(project.package_dir))
    for part in WRITTEN_BY_HAND:
        for path in sorted((project.package_dir / part).glob("*.py")):
            copy_file(path, package / part / path.name)
    if not from_scratch:
        for other in dev_files.earlier(module):
            dev_files.exported(other).write(package)
    milestones = dev_files.milestones(module)
    for folder in milestones:
        ignored = shutil.ignore_patterns(*LEFTOVERS)
        shutil.copytree(folder, stage / "milestones" / folder.name, ignore=ignored, symlinks=False)
    if (project.root / "LICENSE").is_file():
        copy_file(project.root / "LICENSE", stage / "LICENSE")
    put(stage / "pyproject.toml", _pyproject(project, module))
    put(stage / "README.md", _readme(dev_files, module, milestones, from_scratch))


def released_notebook(dev_files: DevFiles, module: Module) -> str:
    """The notebook as nbgrader releases it; TitoError if a cell of it is not what we expect of nbgrader."""
    with tempfile.TemporaryDirectory(prefix="tito-release-") as folder:
        source = Path(folder) / "source" / module.label / module.notebook.name
        put(source, files.text_of(dev_files.notebook(module), MAKER))
        release = generate_release(Path(folder), module)
        released = files.read(release)
        text = release.read_text(encoding="utf-8")
    want = [cell["source"] for cell in for_student(dev_files.notebook(module))["cells"]]
    have = [cell["source"] for cell in released["cells"]]
    for place, (wanted, found) in enumerate(zip(want, have, strict=True)):
        if wanted.strip() != found.strip():
            raise TitoError(
                f"Cell {place} of module {module.number}'s released notebook is not its student's."
            )
    return text


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
            names = package_imports(file, whole=True)
            wanted += [name for name in names if name.startswith("tinytorch.tito.")]
    # a file that is run by its path and imported by nobody
    found |= {file for file in (tool / "process" / "cells_script.py",) if file.is_file()}
    return sorted(found)


def _pyproject(project: Project, module: Module) -> str:
    table = tomllib.loads((project.root / "pyproject.toml").read_text(encoding="utf-8"))
    ours = table["project"]
    tools = [
        item for item in ours["optional-dependencies"]["dev"] if re.match(r"[\w-]+", item)[0] in STUDENT_TOOLS
    ]
    return render(
        "bundle.toml",
        build=table["build-system"],
        version=project_version(project.root),
        module=module,
        python=ours["requires-python"],
        dependencies=[*ours["dependencies"], *tools],
        weights=ours["optional-dependencies"]["llm"],
        nbdev=table["tool"]["nbdev"] | {"nbs_path": "."},
    )


def _readme(dev_files: DevFiles, module: Module, milestones: list[Path], from_scratch: bool) -> str:
    first = dev_files.notebook(module)["cells"][0]["source"]
    heading = re.search(r"^# (?:Module \d+: )?(.+)$", first, re.MULTILINE)
    scripts = [path for folder in milestones for path in _scripts(folder)]
    return render(
        "bundle.md",
        module=module,
        title=heading[1] if heading else module.name,
        from_scratch=from_scratch,
        scripts=[path.relative_to(dev_files.project.root).as_posix() for path in scripts],
        published=any((folder / "model.txt").exists() for folder in milestones),
    )


def _scripts(folder: Path) -> list[Path]:
    """The programs at the top of a milestone's folder."""
    files = sorted(folder.glob("*.py"))
    return [path for path in files if '__name__ == "__main__"' in path.read_text(encoding="utf-8")]


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


def copy_file(source: Path, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, path)
