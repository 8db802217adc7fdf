"""What lies in a student's submission folder: which file counts, its bytes, and when it was handed in."""

import os
import re
import stat
import unicodedata
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

from tinytorch.tito.project import Module

SIZE_LIMIT = 20_000_000  # bytes of a notebook
ID_LENGTH = 100
TIMESTAMP = "timestamp.txt"  # what nbgrader's own collecting leaves beside the notebook
# left by an operating system, by Jupyter or by the collecting of submissions: nothing that was handed in
OF_THE_SYSTEM = {"Thumbs.db", "desktop.ini", "__MACOSX", "__pycache__", TIMESTAMP}


class Refused(Exception):
    """This submission cannot be graded; the text says why."""


@dataclass
class HandedIn:
    """One student's file as it was handed in."""

    data: bytes | None = None  # None: nothing was handed in
    reason: str = ""  # what lies there instead of it
    flags: list[str] = field(default_factory=list)
    copies: list[str] = field(default_factory=list)  # other notebooks beside the one that counts
    when: datetime | None = None  # UTC, as nbgrader's timestamp.txt has it


def collect(folder: Path, module: Module) -> HandedIn:
    """What a student's submission folder `submitted/ID/NN_name` holds; Refused says why it cannot be graded.

    Whatever the file system says of one submission is that submission's.
    """
    try:
        check_id(folder.parent.name)
        path, found = _find_file(folder, module)
        if path is None:
            return found
        found.data = _read_bytes(path)
        found.when = timestamp(folder / TIMESTAMP, found.flags)
        return found
    except OSError as error:
        raise Refused(f"the submission cannot be read: {error.strerror or error}") from None


def check_id(student: str) -> None:
    """Refused, naming the character, if a folder's name cannot be a student's ID.

    Letters of any alphabet, digits, and . _ @ + - ' may stand in it. nbgrader takes others too, but an ID
    also becomes the name of files and a word in a spreadsheet.
    """
    name = unicodedata.normalize("NFC", student)  # macOS writes ü as two characters
    wrong = sorted(set(re.sub(r"[\w.@+'-]", "", name)))
    if wrong:
        said = ["a space" if c.isspace() else f"`{c}`" if c.isprintable() else repr(c) for c in wrong]
        raise Refused(
            f"`{student}` cannot be a student's ID: it holds {', '.join(said)}; "
            "letters, digits and . _ @ + - ' can stand in it"
        )
    if not re.match(r"\w", name):
        raise Refused(f"`{student}` cannot be a student's ID: it begins with `{name[0]}`")
    if len(name) > ID_LENGTH:
        raise Refused(f"a student's ID of {len(name)} characters is too long; the limit is {ID_LENGTH}")


def is_id(student: str) -> bool:
    try:
        check_id(student)
    except Refused:
        return False
    return True


def _find_file(folder: Path, module: Module) -> tuple[Path | None, HandedIn]:
    """The notebook that counts, None if there is none."""
    wanted = f"{module.name}.ipynb"
    if folder.parent.is_symlink() or folder.is_symlink():
        raise Refused("the submission's folder is a symbolic link")
    if not folder.is_dir():
        if (folder.parent / wanted).exists():
            raise Refused(f"{wanted} lies beside the folder {folder.name}/ and not in it")
        like = _like(folder, module) if folder.parent.is_dir() else []
        names = _listed(f"{name}/" for name in like)
        return None, HandedIn(reason=f"there is no folder {folder.name}/, but {names}" if like else "")
    there = [path for path in sorted(folder.iterdir()) if not _is_leftover(path)]
    path = folder / wanted
    others = [other for other in there if other.suffix == ".ipynb" and other.name != wanted]
    if path.is_symlink() or path.exists():
        return path, HandedIn(copies=[other.name for other in others])
    if not there:
        return None, HandedIn()
    if not others:
        raise Refused(f"the submission holds no notebook {wanted}, but {_listed(p.name for p in there)}")
    if len(others) > 1:
        raise Refused(f"there is no {wanted}, and {len(others)} other notebooks: which one counts?")
    return others[0], HandedIn(flags=["the notebook had another name"])


def _like(folder: Path, module: Module) -> list[str]:
    """The student's folders that look as if they were meant to be `folder`: 04_Losses, losses, 4 ..."""

    def is_like(path: Path) -> bool:
        letters = re.sub(r"[\W_]", "", path.name).lower()
        number = re.match(r"\d*", letters)[0]
        named = module.name.lower() in letters or letters == number != ""
        return named and number.lstrip("0") in ("", module.number.lstrip("0"))

    paths = [path for path in folder.parent.iterdir() if path.is_dir() and not _is_leftover(path)]
    return sorted(path.name for path in paths if is_like(path))


def _is_leftover(path: Path) -> bool:
    return path.name.startswith(".") or path.name in OF_THE_SYSTEM


def _listed(names) -> str:
    return ", ".join(names)[:80]


def _read_bytes(path: Path) -> bytes:
    """The file as it is; Refused if it is a link, not a plain file, or too large."""
    if path.is_symlink():
        raise Refused("the notebook is a symbolic link")
    descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0))
    try:
        mode = os.fstat(descriptor).st_mode
        if not stat.S_ISREG(mode):
            raise Refused(f"{path.name} is {'a folder' if stat.S_ISDIR(mode) else 'not a plain file'}")
        with os.fdopen(descriptor, "rb", closefd=False) as file:
            data = file.read(SIZE_LIMIT + 1)
    finally:
        os.close(descriptor)
    if len(data) > SIZE_LIMIT:
        raise Refused(f"the notebook is larger than {SIZE_LIMIT // 10**6} MB; hand it in without its outputs")
    if not data.strip():
        raise Refused("the notebook is an empty file")
    return data


def timestamp(path: Path, flags: list[str]) -> datetime | None:
    """When it was handed in, from the file that nbgrader's `collect` and `zip_collect` write."""
    from nbgrader.utils import parse_utc

    if path.is_symlink() or not path.is_file():
        return None
    text = path.read_bytes()[:200].decode("utf-8-sig", "replace").strip()
    if not text:
        return None
    try:
        return parse_utc(text)
    except (ValueError, OverflowError):
        flags.append(f"{TIMESTAMP} does not hold a time: `{text[:40]}`")
        return None
