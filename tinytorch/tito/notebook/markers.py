"""The marker words of nbgrader and the directives of nbdev, read in one place."""

import copy
import re
from dataclasses import dataclass

from tinytorch.tito.errors import TitoError

CODE_STUB = ("# YOUR CODE HERE", "raise NotImplementedError()")
TEXT_STUB = "YOUR ANSWER HERE"
SOLUTION, HIDDEN, MARKS = "SOLUTION", "HIDDEN TESTS", "MARK SCHEME"
# nbgrader takes any line with these words for a marker, wherever they stand in it
WORDS = re.compile(rf"(BEGIN|END) ({SOLUTION}|{HIDDEN}|{MARKS})")
DIRECTIVE = re.compile(r"[ \t]*#[ \t]*\|[ \t]*(\w*):?[ \t]*(.*?)[ \t]*$")
EXPORTS = frozenset({"export", "exporti", "exports"})


@dataclass(frozen=True)
class Line:
    """One line of a cell."""

    number: int  # from 1
    text: str
    region: (
        str  # the region that it stands in, "" outside; a marker belongs to the region that it opens or ends
    )
    begins: bool = False
    ends: bool = False

    @property
    def is_marker(self) -> bool:
        return self.begins or self.ends


def lines_of(source: str) -> tuple[list[Line], list[tuple[int, str]]]:
    """Every line with its region, and what is wrong with the markers: [(line, what), ...]."""
    lines, problems = [], []
    region, opened = "", 0
    for number, text in enumerate(source.split("\n"), 1):
        marker = WORDS.search(text)
        if marker is None:
            lines.append(Line(number, text, region))
        elif marker[1] == "BEGIN":
            if region:
                what = f"a BEGIN {marker[2]} stands inside another region, which line {opened} begins"
                problems.append((number, what))
            region, opened = marker[2], number
            lines.append(Line(number, text, region, begins=True))
        else:
            if region != marker[2]:
                problems.append((number, f"an END {marker[2]} has no BEGIN {marker[2]}"))
            lines.append(Line(number, text, marker[2], ends=True))
            region = ""
    if region:
        problems.append((opened, f"a BEGIN {region} has no END {region}"))
    return lines, problems


def regions(source: str, name: str) -> list[list[Line]]:
    """The lines of each region of this name, its markers first and last; TitoError if they do not match."""
    lines, problems = lines_of(source)
    if problems:
        number, what = problems[0]
        raise TitoError(f"Line {number} of a cell ({lines[number - 1].text.strip()!r}): {what}.")
    found: list[list[Line]] = []
    for line in lines:
        if line.region == name:
            found += [[]] if line.begins else []
            found[-1].append(line)
    return found


def replaced(source: str, name: str, stub: tuple[str, ...], only: int | None = None) -> str:
    """The source with `stub` instead of each region of this name, or of number `only` of them."""
    lines: list[str | None] = source.split("\n")
    for place, region in enumerate(regions(source, name)):
        if only in (None, place):
            indent = re.match(r"\s*", region[0].text)[0]
            first, last = region[0].number - 1, region[-1].number
            new = "\n".join(indent + line for line in stub) if stub else None
            lines[first:last] = [new] + [None] * (last - first - 1)
    return "\n".join(line for line in lines if line is not None)


def without_markers(source: str) -> str:
    """The source without the lines that begin and end a solution."""
    lines = [line.text for line in lines_of(source)[0] if not (line.is_marker and line.region == SOLUTION)]
    return "\n".join(lines).rstrip("\n")


def has_stub(source: str) -> bool:
    """Whether a line of the cell is still the stub that was handed out."""
    return any(line.strip() == CODE_STUB[-1] for line in source.splitlines())


def is_answered(text: str) -> bool:
    """Whether a written answer is more than what was handed out."""
    return text.strip().strip(".*_").casefold() not in ("", TEXT_STUB.casefold(), "# your code here")


def directives(source: str) -> dict[str, str]:
    """{name: value} of the `#| ...` lines at the top of a cell, the only ones that nbdev obeys."""
    found = {}
    for line in source.splitlines():
        match = DIRECTIVE.match(line)
        if match:
            found[match[1]] = match[2]
        elif line.strip():
            break
    return found


def all_directives(source: str) -> dict[str, str]:
    """The same of lines anywhere in the cell, the first of each name: what the writer meant."""
    found: dict[str, str] = {}
    for line in source.splitlines():
        if match := DIRECTIVE.match(line):
            found.setdefault(match[1], match[2])
    return found


def is_exported(source: str) -> bool:
    return not EXPORTS.isdisjoint(all_directives(source))


def without_directives(source: str) -> str:
    return "\n".join(line for line in source.split("\n") if not DIRECTIVE.match(line)).strip("\n")


def target_of(notebook: dict) -> str | None:
    """Where the notebook exports to (`#| default_exp core.tensor`), None if it does not say."""
    for cell in notebook["cells"]:
        if cell["cell_type"] == "code" and (target := all_directives(cell["source"]).get("default_exp")):
            return target
    return None


def for_student(notebook: dict) -> dict:
    """The notebook without solutions and hidden tests.

    It is what nbgrader's ClearSolutions and ClearHiddenTests make. Locked cells are marked so that Jupyter
    lets nobody edit them by mistake.
    """
    notebook = copy.deepcopy(notebook)
    for cell in notebook["cells"]:
        tags = cell["metadata"].get("nbgrader", {})
        stub = CODE_STUB if cell["cell_type"] == "code" else (TEXT_STUB,)
        source = cell["source"]
        solved, hidden = regions(source, SOLUTION), regions(source, HIDDEN)
        if solved and not tags.get("solution"):
            raise TitoError(
                f"A cell with a solution in it is not marked as a solution cell: {source[:60]!r}."
            )
        if hidden and not tags.get("grade"):
            raise TitoError(f"A cell with hidden tests in it is not marked as graded: {source[:60]!r}.")
        if tags.get("solution") and not solved:
            source = "\n".join(stub)
        cell["source"] = replaced(replaced(source, SOLUTION, stub), HIDDEN, ())
        if tags.get("grade") or tags.get("solution") or tags.get("locked"):
            cell["metadata"]["deletable"] = False
        if tags.get("locked") and not tags.get("solution"):
            cell["metadata"]["editable"] = False
    return notebook
