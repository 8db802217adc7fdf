"""A module as a student works on it: the notebook, its first state, what is known of the progress."""

# What can be told from the files is told from the files. Kept in `.tito/` (ignored by git) are only the
# notebook as it was handed out, the result of the last test run, and the hashes of what was completed.

import hashlib
import json
import shutil
import time
from dataclasses import asdict, dataclass
from importlib.util import cache_from_source
from pathlib import Path
from typing import Any

from tinytorch.tito.author.notebooks import MAKER as SOLUTIONS_MAKER
from tinytorch.tito.author.notebooks import to_read
from tinytorch.tito.notebook import files
from tinytorch.tito.notebook.files import back_up, fingerprint, is_untouched
from tinytorch.tito.notebook.markers import for_student, target_of
from tinytorch.tito.notebook.package import Export, ExportedModule
from tinytorch.tito.notebook.settle import Settled, settle
from tinytorch.tito.process.outcomes import Report
from tinytorch.tito.process.worker import Worker
from tinytorch.tito.project import Module, Project, TitoError, need_package, write_text

START = "tito module start"


def student_modules(project: Project) -> list["StudentModule"]:
    """Every module that has a dev file (the instructor's repository) or a notebook (a student's bundle)."""
    found = []
    for module in project.unit_folders():
        unit = StudentModule(module, project)
        if any(path.is_file() for path in (unit.module.dev_file, unit.notebook, unit.pristine_file)):
            found.append(unit)
    return found


def student_module(project: Project, number: str) -> "StudentModule":
    """The module called "12", "12_attention" or "attention"; TitoError that lists the modules otherwise."""
    units = student_modules(project)
    wanted = number.zfill(2) if number.isdigit() else number
    for unit in units:
        if wanted in (unit.module.number, unit.module.name, unit.module.label):
            return unit
    known = ", ".join(unit.module.number for unit in units) or "none"
    raise TitoError(f"There is no module {number}; the modules here are: {known}.")


@dataclass(frozen=True)
class StudentModule:
    module: Module
    project: Project

    # ------------------------------------------------------------------------------------------- files

    @property
    def notebook(self) -> Path:
        return self.module.notebook

    @property
    def pristine_file(self) -> Path:
        """The notebook as it was handed out. A bundle may ship it; `start` keeps it otherwise."""
        return self.project.state_dir / "pristine" / f"{self.module.label}.ipynb"

    @property
    def record_file(self) -> Path:
        return self.project.state_dir / "progress" / f"{self.module.label}.json"

    @property
    def checkpoint_file(self) -> Path:
        return self.project.root / "tests" / "checkpoints" / f"test_checkpoint_{self.module.label}.py"

    def shown(self, path: Path) -> str:
        return path.relative_to(self.project.root).as_posix()

    def read(self) -> dict:
        """The student's notebook; TitoError if it is not there or cannot be read."""
        if not self.notebook.is_file():
            where, others = self.shown(self.notebook), self.other_notebooks()
            begin = f"begin with: tito module start {self.module.number}"
            if others:
                raise TitoError(
                    f"There is no notebook {where}, only {', '.join(others)}; rename the one that is yours "
                    f"to {self.notebook.name}, or {begin}"
                )
            raise TitoError(f"There is no notebook {where} yet; {begin}")
        return files.read(self.notebook)

    def other_notebooks(self) -> list[str]:
        """The notebooks beside the one that counts: renamed ones, copies."""
        found = sorted(path.name for path in self.notebook.parent.glob("*.ipynb"))
        return [name for name in found if name != self.notebook.name]

    def note_of_source(self) -> str:
        """What there is to say if the dev file is no longer the one that the notebook was made from."""
        if not (self.module.dev_file.is_file() and self.pristine_file.is_file()) or self.is_solutions():
            return ""
        if fingerprint(self.fresh()) == fingerprint(files.read(self.pristine_file)):
            return ""
        return (
            f"{self.shown(self.module.dev_file)} has changed since your notebook was made from it, and your "
            f"checks are the old ones; `tito module reset {self.module.number}` makes it anew and keeps yours"
        )

    def pristine(self) -> dict | None:
        """The notebook as handed out; None if nobody knows it any more."""
        if self.pristine_file.is_file() and not self.is_solutions():
            return files.read(self.pristine_file)
        if self.module.dev_file.is_file():
            return self.fresh()
        return None

    def fresh(self) -> dict:
        """The student's notebook, made from the dev file."""
        need_package("jupytext", "Making a notebook from its dev file")
        return for_student(to_read(self.module))

    def is_solutions(self) -> bool:
        """Whether what lies there is the notebook with the solutions, as `tito notebooks` made it."""
        files = self.module.dev_file.is_file() and self.notebook.is_file()
        return files and is_untouched(self.notebook, SOLUTIONS_MAKER)

    def target(self) -> str | None:
        """Where the module exports to, by the dev file or the notebook as handed out."""
        if self.module.dev_file.is_file():
            return self.module.export_target()
        return target_of(self.pristine() or self.read())

    def package_file(self) -> Path:
        target = self.target()
        if not target:
            raise TitoError(
                f"Module {self.module.number} does not say where it exports to (`#| default_exp`)."
            )
        return self.project.package_dir.joinpath(*target.split(".")).with_suffix(".py")

    # ------------------------------------------------------------------------------------------- start, reset

    def place_notebook(self) -> None:
        """Write a fresh notebook for the student, and keep it as it was handed out."""
        if self.module.dev_file.is_file():
            text = files.text_of(self.fresh(), START)
            self.pristine_file.parent.mkdir(parents=True, exist_ok=True)
            write_text(self.pristine_file, text)
            write_text(self.notebook, text)
        elif self.pristine_file.is_file():
            files.read(self.pristine_file)
            write_text(self.notebook, self.pristine_file.read_text(encoding="utf-8"))
        else:
            raise TitoError(
                f"{self.shown(self.pristine_file)}, the notebook as it was handed out, is missing; "
                f"copy {self.shown(self.notebook)} from the zip that you were given."
            )
        self.record_file.unlink(missing_ok=True)

    def keep_pristine(self) -> None:
        """In a bundle that ships no copy: remember the notebook as it is now."""
        if not self.pristine_file.exists() and not self.module.dev_file.is_file():
            self.pristine_file.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(self.notebook, self.pristine_file)

    def reset(self) -> Path | None:
        """Put the notebook back as it was handed out -> where the student's copy lies now."""
        if not self.module.dev_file.is_file() and not self.pristine_file.is_file():
            self.place_notebook()  # says what to do
        backup = back_up(self.notebook, self.project, self.module.label) if self.notebook.exists() else None
        self.place_notebook()
        return backup

    # ------------------------------------------------------------------------------------------- test

    def settled(self, notebook: dict | None = None) -> Settled:
        """What counts of the student's notebook, told as the grader tells it."""
        notebook = notebook or self.read()
        return settle(notebook, notebook if self.is_solutions() else self.pristine() or notebook)

    def test(self, time_limit: float, progress: Any = None) -> Report:
        """Run the student's notebook and remember the result."""
        notebook = self.read()
        settled = self.settled(notebook)
        if not any(cell.is_test for cell in settled.cells):
            raise TitoError(f"{self.shown(self.notebook)} holds no graded part.")
        with Worker(root=self.project.root, cwd=self.notebook.parent) as worker:
            report = worker.run(settled.cells, time_limit=time_limit, progress=progress)
        source = self.note_of_source()
        report.notes[:0] = settled.notes + settled.advice + ([source] if source else [])
        parts = [asdict(part) | {"output": ""} for part in report.parts]
        self._remember(tested={"cells": fingerprint(notebook), "when": _now(), "parts": parts})
        return report

    # ------------------------------------------------------------------------------------------- complete

    def export(self) -> Export:
        """The student's code on its way into the package; nothing of it is on disk yet."""
        target = self.target()
        if not target:
            raise TitoError(
                f"Module {self.module.number} does not say where it exports to (`#| default_exp`)."
            )
        return Export(self.settled(), self.notebook, self.project.root, target)

    def install(self, built: ExportedModule) -> tuple[Path, Path | None]:
        """Put proven code into the package, in one step -> the file, where what it held before is kept."""
        path, kept = self.package_file(), None
        if path.exists() and path.read_bytes() != built.text.encode():
            kept = back_up(path, self.project, self.module.label)
        built.write(self.project.package_dir)
        _forget_bytecode(path)
        self._remember(
            completed={
                "cells": fingerprint(self.read()),
                "package": _sha256(path),
                "when": _now(),
            }
        )
        return path, kept

    # ------------------------------------------------------------------------------------------- progress

    def record(self) -> dict:
        """{"tested": …, "completed": …}, as far as there is anything to remember."""
        try:
            record = json.loads(self.record_file.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return {}
        except ValueError:
            record = None
        if not isinstance(record, dict):
            raise TitoError(
                f"{self.shown(self.record_file)} cannot be read; delete it and run "
                f"`tito module test {self.module.number}` (your notebook is not touched)."
            )
        return record

    def _remember(self, **news) -> None:
        self.record_file.parent.mkdir(parents=True, exist_ok=True)
        write_text(self.record_file, json.dumps(self.record() | news, indent=1) + "\n")

    def is_still_completed(self, completed: dict, now: str) -> bool:
        """The package file is the export of the notebook as it is, and passed the checkpoint."""
        path = self.package_file()
        if not path.is_file() or _sha256(path) != completed["package"]:
            return False
        if completed["cells"] == now:
            return True
        try:  # the notebook changed: perhaps only in cells that are not exported
            return self.export().build().text.encode() == path.read_bytes()
        except TitoError:
            return False


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _forget_bytecode(path: Path) -> None:
    """Python takes compiled code for current if size and second agree, which two quick exports may do."""
    Path(cache_from_source(str(path))).unlink(missing_ok=True)


def _now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S")
