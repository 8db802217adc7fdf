"""The notebooks in what a learning platform lets one download: folders, zips, and zips in zips."""

# Nothing is unpacked: a file is read, and its path is only looked at.

import io
import lzma
import os
import re
import struct
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path, PurePosixPath
from typing import BinaryIO

from tinytorch.tito.instructor.grading.handed_in import OF_THE_SYSTEM, SIZE_LIMIT, TIMESTAMP, timestamp
from tinytorch.tito.project import TitoError

ZIP_LIMIT = 5 * SIZE_LIMIT  # bytes of a zip in a zip
# what zipfile raises: broken, encrypted, or packed in a way that it does not know
BROKEN = (
    zipfile.BadZipFile,
    zlib.error,
    lzma.LZMAError,
    OSError,
    RuntimeError,
    NotImplementedError,
    EOFError,
)
NO_NOTEBOOK = "it is no notebook"
UNIX_TIME = 0x5455  # the extra field in which a zip keeps a time with its zone (Info-ZIP's APPNOTE)


@dataclass(frozen=True)
class Download:
    """One notebook that was downloaded, or why something is none."""

    source: str  # the file or folder that was named
    path: PurePosixPath  # in it
    data: bytes = b""
    when: datetime | None = None  # UTC; its time in the zip, or the file's
    problem: str = ""

    @property
    def where(self) -> str:
        return self.source if str(self.path) == self.source else f"{self.source}: {self.path}"


def notebooks_in(source: Path) -> list[Download]:
    """All notebooks in a folder, a zip or a notebook, and what else lies there with its problem.

    TitoError if the source is none of the three.
    """
    if source.is_dir():
        found = list(_in_folder(source))
    elif source.suffix.lower() == ".zip" and source.is_file():
        with source.open("rb") as file:
            found = list(_in_zip(file, source.name))
    elif source.suffix.lower() == ".ipynb" and source.is_file():
        found = list(_in_file(source, source.name, PurePosixPath(source.name)))
    else:
        raise TitoError(f"{source} is no folder, no .zip and no .ipynb.")
    return _without_wrapper(found)


def _in_folder(folder: Path) -> Iterator[Download]:
    for place, folders, files in os.walk(folder):
        folders[:] = sorted(name for name in folders if not _is_leftover(name))
        for name in sorted(files):
            if not _is_leftover(name):
                path = Path(place, name)
                yield from _in_file(path, folder.name, PurePosixPath(path.relative_to(folder).as_posix()))


def _in_file(path: Path, source: str, name: PurePosixPath) -> Iterator[Download]:
    here = Download(source, name)
    if path.is_symlink() or not path.is_file():
        yield replace(here, problem="it is not a plain file")
        return
    try:
        size, suffix = path.stat().st_size, path.suffix.lower()
        when = timestamp(path.with_name(TIMESTAMP), [])
        when = when.replace(tzinfo=UTC) if when else datetime.fromtimestamp(path.stat().st_mtime, UTC)
        if suffix == ".zip":
            with path.open("rb") as file:
                yield from _in_zip(file, source, name, when)
        elif suffix != ".ipynb":
            yield replace(here, problem=NO_NOTEBOOK)
        elif size > SIZE_LIMIT:
            yield replace(here, problem=_too_large(size, SIZE_LIMIT))
        else:
            yield replace(here, data=path.read_bytes(), when=when)
    except OSError as error:
        yield replace(here, problem=f"it cannot be read ({error.strerror or error})")


def _in_zip(
    file: BinaryIO, source: str, student: PurePosixPath | None = None, when: datetime | None = None
) -> Iterator[Download]:
    """What is in a zip; `student`: where it lies, if it is one student's, handed in at the time `when`."""
    try:
        archive = zipfile.ZipFile(file)
    except (zipfile.BadZipFile, OSError) as error:
        problem = f"it is no zip file that can be read ({error})"
        yield Download(source, student or PurePosixPath(source), problem=problem)
        return
    size = 0
    for info in archive.infolist():
        path = PurePosixPath(info.filename.replace("\\", "/").lstrip("/"))
        suffix = path.suffix.lower()
        if info.is_dir() or not path.parts or any(map(_is_leftover, path.parts)):
            continue
        here = Download(source, path, when=_time_of(info))
        limit = SIZE_LIMIT if suffix == ".ipynb" else ZIP_LIMIT
        if student is not None:
            here = Download(source, student / path, when=when)
            size += info.file_size
        if suffix not in (".ipynb", ".zip"):
            yield replace(here, problem=NO_NOTEBOOK)
        elif suffix == ".zip" and student is not None:
            yield replace(here, problem="a zip in a zip in a zip is not looked into")
        elif info.file_size > limit:
            yield replace(here, problem=_too_large(info.file_size, limit))
        elif size > ZIP_LIMIT:
            yield replace(
                here, problem=f"with what stands before it in its zip, {_too_large(size, ZIP_LIMIT)}"
            )
        else:
            try:
                data = archive.read(info)
            except BROKEN as error:
                yield replace(here, problem=f"it cannot be read from the zip ({error})")
                continue
            if suffix == ".zip":
                yield from _in_zip(io.BytesIO(data), source, path, here.when)
            else:
                yield replace(here, data=data)


def _is_leftover(name: str) -> bool:
    return name.startswith(".") or name in OF_THE_SYSTEM


def _too_large(size: int, limit: int) -> str:
    return f"it has {size / 1e6:.0f} MB, the limit is {limit // 10**6} MB"


def _time_of(info: zipfile.ZipInfo) -> datetime | None:
    """When a file in a zip was last changed. Without a zone it is taken for this machine's."""
    extra = info.extra
    while len(extra) >= 9:
        kind, size = struct.unpack("<HH", extra[:4])
        if kind == UNIX_TIME and size >= 5 and extra[4] & 1:
            return datetime.fromtimestamp(struct.unpack("<i", extra[5:9])[0], UTC)
        extra = extra[4 + size :]
    try:
        return datetime(*info.date_time).astimezone(UTC) if info.date_time[0] > 1980 else None
    except (ValueError, OverflowError, OSError):
        return None


def _without_wrapper(found: list[Download]) -> list[Download]:
    """Without the one folder that holds all the others (`submissions/ada/...`, `submissions/ben/...`)."""
    while len({one.path.parts[0] for one in found}) == 1:
        inner = {one.path.parts[1] for one in found if len(one.path.parts) > 2}
        if len(inner) < 2 or all(re.fullmatch(r"\d\d_\w+", name) for name in inner):  # one student's modules
            break
        found = [replace(one, path=PurePosixPath(*(one.path.parts[1:] or one.path.parts))) for one in found]
    return found
