"""Whether a file, of whatever kind, holds a line of a solution or of a hidden test."""

import gzip
import io
import json
import re
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from tinytorch.tito.notebook.markers import HIDDEN, MARKS, SOLUTION, lines_of

TELLING = 24  # characters, spaces not counted: a shorter line may be anybody's
RUN = 3  # so many lines in a row tell, however short each is
# Lines that tell nothing by themselves: imports, handlers, a loop over a plain name, a call of nothing.
BOILERPLATE = re.compile(r"(except|import|from)\b|for [\w, ]+ in [\w.]+:$|[\w.]+\(\)$")
PRINTABLE = re.compile(rb"[\t\n\r -~]{16,}")  # what is text in a file that is none
CLOSED_BOXES = {b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"7z\xbc\xaf": "7z", b"(\xb5/\xfd": "zstd"}


def squeeze(text: str) -> str:
    """Without any white space, so that neither indentation nor the folding of lines matters."""
    return re.sub(r"\s+", "", text)


@dataclass
class Secrets:
    """What must not be in a bundle: {squeezed line or run of lines: (as written, whose it is)}."""

    solution: dict[str, tuple[str, str]] = field(default_factory=dict)
    hidden: dict[str, tuple[str, str]] = field(default_factory=dict)

    @classmethod
    def of(cls, solutions: dict, hidden: dict, shown: list[dict], opened: list[dict]) -> "Secrets":
        """From {label: notebook with its regions}; `shown` are notebooks as students get them, `opened` those
        whose solutions they get. What stands in those anyway is no secret.
        """
        secrets = cls()
        for label, notebook in solutions.items():
            secrets._add(notebook, SOLUTION, secrets.solution, f"module {label[:2]}'s solution")
        for label, notebook in hidden.items():
            for name in (HIDDEN, MARKS):
                secrets._add(notebook, name, secrets.hidden, f"a hidden test of module {label[:2]}")
        known = [cell["source"] for notebook in shown for cell in notebook["cells"]]
        for notebook in opened:
            for cell in notebook["cells"]:
                known += ["\n".join(regions_of(cell).get(name, ())) for name in ("", SOLUTION)]
        known = "\n".join(map(squeeze, known))
        for table in (secrets.solution, secrets.hidden):
            for line in [line for line in table if line in known]:
                del table[line]
        return secrets

    def _add(self, notebook: dict, name: str, table: dict, whose: str) -> None:
        for cell in notebook["cells"]:
            lines = [line for line in regions_of(cell).get(name, ()) if line.strip()]
            for line in lines:
                code = line.split("  #")[0].strip()
                if len(squeeze(code)) >= TELLING and not BOILERPLATE.match(code):
                    table.setdefault(squeeze(code), (code, whose))
            for i in range(len(lines) - RUN + 1):
                run = squeeze("\n".join(lines[i : i + RUN]))
                if len(run) >= TELLING:
                    table.setdefault(run, (lines[i].strip() + " ...", whose))

    def found_in(self, path: Path, public: bool = False) -> str | None:
        """What the file gives away, None if nothing.

        In a `public` file, one that was written to be read, lines of hidden tests that assert nothing do not
        count: its scaffolding may be like theirs.
        """
        if path.suffix in (".pyc", ".pyo"):
            return "compiled code cannot be looked into"
        try:
            texts = {squeeze(text) for text in texts_of(path.read_bytes())}
        except ValueError as error:
            return str(error)
        for table in (self.solution, self.hidden):
            for line, (shown, whose) in table.items():
                if table is self.hidden and public and "assert" not in line:
                    continue
                if any(line in text for text in texts):
                    return f"it holds a line of {whose}, `{shown}`"
        return None


def regions_of(cell: dict) -> dict[str, list[str]]:
    """{"" | "SOLUTION" | "HIDDEN TESTS" | "MARK SCHEME": lines, ...} of a cell.

    A code cell to be solved that marks no region is a solution as a whole.
    """
    found: dict[str, list[str]] = {}
    for line in lines_of(cell["source"])[0]:
        if not line.is_marker:
            found.setdefault(line.region, []).append(line.text)
    if cell["metadata"].get("nbgrader", {}).get("solution") and cell["cell_type"] == "code":
        if SOLUTION not in found:
            found = {SOLUTION: cell["source"].splitlines()}
    return found


def texts_of(content: bytes, depth: int = 0) -> Iterator[str]:
    """Every text that a file holds: itself, the strings of JSON, the members of archives.

    ValueError if it is packed in a way that cannot be looked into.
    """
    if depth > 3:
        raise ValueError("it is an archive in an archive in an archive")
    for magic, name in CLOSED_BOXES.items():
        if content.startswith(magic):
            raise ValueError(f"it is packed with {name}, which cannot be looked into")
    if content.startswith(b"\x1f\x8b"):
        yield from texts_of(gzip.decompress(content), depth + 1)
    elif content.startswith(b"PK\x03\x04"):
        try:
            with zipfile.ZipFile(io.BytesIO(content)) as archive:
                for member in archive.namelist():
                    yield member
                    yield from texts_of(archive.read(member), depth + 1)
        except (zipfile.BadZipFile, RuntimeError, NotImplementedError) as error:
            raise ValueError(f"it is a zip that cannot be looked into ({error})") from None
    if b"\x00" in content:
        wide = content.replace(b"\x00", b"")  # UTF-16 and UTF-32, of either byte order
        content = b"\n".join(PRINTABLE.findall(wide) + PRINTABLE.findall(content))
    text = content.decode("utf-8", "replace")
    yield text
    yield text.replace("\\n", "\n").replace('\\"', '"').replace("\\\\", "\\")
    try:
        yield "\n".join(_strings(json.loads(text)))
    except (ValueError, RecursionError):
        return


def _strings(value) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for key, item in value.items():
            yield key
            yield from _strings(item)
    elif isinstance(value, list):
        if value and all(isinstance(item, str) for item in value):
            yield "".join(value)  # the lines of a notebook's cell
        else:
            for item in value:
                yield from _strings(item)
