"""What students hand in, looked at before anything of it runs."""

# Nothing here executes a student's code, and nothing writes to a student's folder.

import os
import re
import stat
from dataclasses import dataclass, field
from pathlib import Path

from tinytorch.tito.instructor.grading.reach import reaching
from tinytorch.tito.notebook import files
from tinytorch.tito.notebook.markers import is_exported
from tinytorch.tito.notebook.settle import Settled, settle
from tinytorch.tito.project import Module

SIZE_LIMIT = 20_000_000  # bytes of a notebook
CELL_LIMIT = 2_000
CODE_LIMIT = 500_000  # characters of what a student wrote
STUDENT_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@+-]{0,99}")


class Refused(Exception):
    """This submission cannot be graded; the text says why."""


@dataclass
class Submission:
    """One student's notebook, ready to be graded."""

    student: str
    visible: Settled  # what counts, with the checks that students see
    full: Settled  # the same with hidden tests
    flags: list[str] = field(default_factory=list)  # what had to be repaired
    reaching: dict[int, str] = field(default_factory=dict)  # cell -> what it reaches for
    reference: list[str] = field(default_factory=list)  # code that may reach for what it likes


def find_file(folder: Path, module: Module) -> tuple[Path | None, list[str]]:
    """The notebook in a student's submission folder, None if nothing was submitted; Refused says why not."""
    if not STUDENT_ID.fullmatch(folder.parent.name):
        raise Refused(
            f"`{folder.parent.name}` cannot be a student's ID: letters, digits and . _ @ + - only, no spaces"
        )
    if folder.parent.is_symlink() or folder.is_symlink():
        raise Refused("the submission's folder is a symbolic link")
    path = folder / f"{module.name}.ipynb"
    if not folder.is_dir():
        stray = folder.parent / path.name
        if stray.exists():
            raise Refused(f"{path.name} lies beside the folder {folder.name}/ and not in it")
        return None, []
    if path.is_symlink() or path.exists():
        return path, []
    others = sorted(p for p in folder.iterdir() if p.suffix == ".ipynb" and not p.name.startswith("."))
    if not others:
        there = sorted(p.name for p in folder.iterdir())
        if there:
            raise Refused(f"the submission holds no notebook {path.name}, but {', '.join(there)[:80]}")
        return None, []
    if len(others) > 1:
        raise Refused(f"there is no {path.name}, and {len(others)} other notebooks: which one counts?")
    return others[0], ["the notebook had another name"]


def read_bytes(path: Path) -> bytes:
    """The file as it is; Refused if it is a link, no plain file, or too large."""
    try:
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0))
    except OSError as error:
        if path.is_symlink():
            raise Refused("the notebook is a symbolic link") from None
        raise Refused(f"the notebook cannot be read: {error.strerror}") from None
    with os.fdopen(descriptor, "rb") as file:
        if path.is_symlink():
            raise Refused("the notebook is a symbolic link")
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise Refused("the notebook is not a plain file")
        data = file.read(SIZE_LIMIT + 1)
    if len(data) > SIZE_LIMIT:
        raise Refused(f"the notebook is larger than {SIZE_LIMIT // 10**6} MB; hand it in without its outputs")
    if not data.strip():
        raise Refused("the notebook is an empty file")
    return data


def notebook_in(data: bytes) -> dict:
    """The notebook in what a student handed in; Refused says why there is none."""
    try:
        notebook = files.from_bytes(data, "the file")
    except files.Unreadable as error:
        raise Refused(error.message.removesuffix(".")) from None
    if len(notebook["cells"]) > CELL_LIMIT:
        raise Refused(f"the notebook has {len(notebook['cells'])} cells, the limit is {CELL_LIMIT}")
    return notebook


def check(student: str, notebook: dict, released: dict, source: dict) -> Submission:
    """What counts of a student's notebook; Refused says why nothing does.

    `released` is what students were given, `source` the same with hidden tests (and solutions).
    """
    settled = settle(notebook, released)
    if not settled.found:
        raise Refused("none of its cells is a graded cell of this module: is it another notebook?")
    flags = list(settled.notes)
    kernel = notebook.get("metadata", {})
    kernel = kernel.get("kernelspec", {}) if isinstance(kernel, dict) else {}
    language = kernel.get("language", "python") if isinstance(kernel, dict) else "python"
    if str(language).lower() not in ("python", "ipython"):
        flags.append("the notebook was set to another kernel than Python")
    written = settled.of_student()
    if sum(map(len, written.values())) > CODE_LIMIT:
        raise Refused(f"its code is longer than {CODE_LIMIT} characters")
    reference = [cell["source"] for cell in source["cells"] if is_exported(cell["source"])]
    return Submission(
        student, settled, settled.with_checks_of(source), flags, reaching(written, reference), reference
    )
