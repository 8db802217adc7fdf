"""All that grading a module takes, read once for all students."""

import hashlib
import platform
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tinytorch.tito.instructor.course import prepare_course
from tinytorch.tito.instructor.handed_out import Releases
from tinytorch.tito.notebook import files
from tinytorch.tito.notebook.cells import cells_of
from tinytorch.tito.process.sandbox import Sandbox
from tinytorch.tito.project import Module, Project, TitoError, write_text

TOOL = Path(__file__).parents[2]
ROOMS = ("notebook", "process", "instructor", "instructor/grading")
OWN_FILES = sorted(file for room in ROOMS for file in (TOOL / room).glob("*.py"))


@dataclass(frozen=True)
class Needs:
    """What the reference tells: which solution each test needs, and which part each solution earns.

    A solution is one region between the markers, numbered in the notebook's order.
    """

    tests: dict[str, list[int]]  # checkpoint test -> the solutions without which it fails
    parts: dict[str, list[int]]  # graded part -> the solutions without which it fails
    cells: list[str]  # solution -> the grade_id of its cell
    changes: list[str]  # what of others' code the reference itself changes while it is tested
    reached: list[str]  # what the reference asks Python for
    twins: list[str]  # of the tests, those that the reference fails, as it must

    def solutions_in(self, cell: str | None) -> list[int]:
        return [n for n, grade_id in enumerate(self.cells) if grade_id == cell]

    def parts_of(self, solution: int) -> set[str]:
        """The parts that a solution earns: those that need it and no later cell; else the first of all."""
        needing = [name for name, needed in self.parts.items() if solution in needed]
        own = {name for name in needing if self.cells[max(self.parts[name])] == self.cells[solution]}
        return own or set(needing[:1])


@dataclass(frozen=True)
class Setup:
    """All that grading one student of a module takes."""

    label: str
    name: str
    target: str
    released: dict
    releases: list[dict]  # every notebook that was ever handed out
    source: dict
    tests: str  # the checkpoint's text, "" if the module has none
    package: dict[str, str]  # {path: text} of the package: earlier modules only
    sandbox: Sandbox
    secret: bytes
    needs: Needs | None = None

    def written(self) -> dict[str, float]:
        """{grade_id: points} of every graded cell, automatic or not."""
        return {cell.grade_id: cell.points for cell in cells_of(self.source) if cell.graded}

    @contextmanager
    def package_folder(self) -> Iterator[Path]:
        """A temporary folder that holds the package."""
        with tempfile.TemporaryDirectory(prefix="tito-package-") as folder:
            root = Path(folder).resolve()
            for name, text in self.package.items():
                (root / name).parent.mkdir(parents=True, exist_ok=True)
                write_text(root / name, text)
            yield root


def set_up(
    project: Project,
    module: Module,
    course: Path,
    sandbox: Sandbox,
    say: Callable[[str], None] = lambda _: None,
) -> Setup:
    """Reads the course and the earlier modules' package; what an instructor has to know is told to `say`."""
    release = prepare_course(project, module, course, say)
    source = course / "source" / module.label / module.notebook.name
    target = module.export_target()
    tests = project.root / "tests" / "checkpoints" / f"test_checkpoint_{module.label}.py"
    exported = {project.package_dir / "__init__.py"}
    for other in project.modules():
        place = other.export_target()
        if place:
            file = project.package_dir.joinpath(*place.split(".")).with_suffix(".py")
            exported |= {file} if other.number < module.number else set()
            exported |= {file.with_name("__init__.py")}
    for file in sorted(exported):
        if not file.is_file():
            raise TitoError(f"{file} is missing; run `tito export` first.")
    secret = hashlib.sha256()
    checkpoint = [tests] if tests.is_file() else []
    for file in [source, release, *sorted(exported), *OWN_FILES, *checkpoint]:
        secret.update(hashlib.sha256(file.read_bytes()).digest())
    return Setup(
        label=module.label,
        name=module.name,
        target=target or "",
        released=files.read(release),
        releases=Releases(course, module, project).all(),
        source=files.read(source),
        tests=tests.read_text(encoding="utf-8") if tests.is_file() else "",
        package={
            file.relative_to(project.root).as_posix(): file.read_text(encoding="utf-8")
            for file in sorted(exported)
        },
        sandbox=sandbox,
        secret=secret.digest(),
    )


def code_version() -> tuple[str, str]:
    """Python's version, and a sum of the grader's own files."""
    own = hashlib.sha256(b"".join(file.read_bytes() for file in OWN_FILES))
    return platform.python_version(), own.hexdigest()
