"""Rules about the form of a dev file: cells, directives, grading metadata, regions."""

import ast
import re
import warnings
from collections.abc import Iterator

from tinytorch.tito.author.dev_file import DevCell, DevFile
from tinytorch.tito.errors import TitoError
from tinytorch.tito.notebook.files import CELL_ID
from tinytorch.tito.notebook.markers import CODE_STUB, DIRECTIVE, HIDDEN, SOLUTION, WORDS, replaced
from tinytorch.tito.project import EXPORT_FOLDERS, EXPORT_TARGET

LINE_LENGTH = 110
STRAY_MARKER = re.compile(r"[ \t]+#[ \t]*%%(?:[ \t]|$)|\s*# (?:In\[[\d ]*\]|<(?:code|markdown)cell>)")
REGION = re.compile(rf"\s*### (BEGIN|END) ({SOLUTION}|{HIDDEN})\s*")
DIRECTIVES = ("default_exp", "export", "exporti", "hide")
METADATA_KEYS = {"grade", "grade_id", "locked", "schema_version", "solution"}
LEAVES_ALONE = {".ipynb_checkpoints", "__pycache__"}

Found = Iterator[tuple]  # (line, code, message), and a path if it is not the dev file's


def check_file(dev: DevFile) -> Found:
    """Valid Python without a warning, no marker inside a function, code lines of bearable length."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            compile(dev.text, str(dev.path), "exec")
        except SyntaxError as error:
            yield error.lineno or 1, "syntax", f"not valid Python: {error.msg}"
    for warning in caught:
        yield warning.lineno, "syntax-warning", f"{warning.message} (use a raw string?)"
    for number, line in enumerate(dev.text.splitlines(), 1):
        if STRAY_MARKER.match(line):
            yield number, "stray-marker", "jupytext splits the cell in the middle here"
    for cell in dev.code:
        for number, line in enumerate(cell.lines, cell.line + 1):
            if len(line) > LINE_LENGTH:
                yield number, "line-length", f"{len(line)} characters of code, {LINE_LENGTH} fit"


def check_folder(dev: DevFile) -> Found:
    """nbgrader copies every other file of the folder into the students' release."""
    allowed = {dev.path.name, dev.module.notebook.name} | LEAVES_ALONE
    for path in sorted(dev.module.folder.iterdir()):
        if path.name not in allowed:
            finding = "a file beside the dev file would be released to students with all it says"
            yield 1, "extra-file", finding, path


def check_markdown(dev: DevFile) -> Found:
    for cell in dev.cells:
        body = cell.source.strip()
        if not cell.is_markdown:
            if not cell.is_code:
                yield cell.line, "cell-type", f"cells are code or [markdown], not {cell.head}"
        elif not re.fullmatch(r'r?"""\n.*\n"""', body, re.DOTALL):
            yield cell.line, "markdown-string", 'a markdown cell is one string between lines of """'
        elif re.search(r"\\\\[A-Za-z]", body):
            yield cell.line, "latex", 'a notebook shows both backslashes: write r""" and one'
    title = next((cell for cell in dev.cells if cell.is_markdown), None)
    if title is None or title is not dev.cells[0] or '"""\n# ' not in title.source:
        yield 1, "title", "the first cell is markdown and begins with the title, `# ...`"
    elif re.search(r"^> ", title.source, re.MULTILINE):
        yield title.line, "title-quote", "nbdev makes a `> ` line here the module's docstring"


def check_directives(dev: DevFile) -> Found:
    for cell in dev.cells:
        for number, text in enumerate(cell.lines, cell.line + 1):
            match = DIRECTIVE.match(text) if not cell.is_markdown else re.match(r"#\|", text)
            if not match:
                continue
            if cell.is_markdown:
                yield number, "directive-in-markdown", "a directive works in code cells only"
            elif number not in {line for line, _ in cell.directives.values()}:
                yield number, "directive-late", "nbdev ignores a directive below code or a comment"
            elif number != cell.line + 1 + list(cell.directives).index(match[1]):
                yield number, "directive-late", "directives are the first lines of their cell"
            elif match[1] not in DIRECTIVES:
                yield number, "directive-unknown", f"the directives are {', '.join(DIRECTIVES)}"
            elif not text.startswith("#| "):
                yield number, "directive-form", f"write `#| {match[1]}`"
            elif match[1] in ("export", "exporti") and match[2]:
                yield number, "export-elsewhere", "a dev file makes one file, its default_exp"


def check_default_exp(dev: DevFile) -> Found:
    found = [cell for cell in dev.code if "default_exp" in cell.directives]
    if not found:
        yield 1, "default-exp-missing", "no cell says `#| default_exp ...`, so nothing is exported"
        return
    for cell in found[1:]:
        yield cell.line, "default-exp-twice", f"the first stands in line {found[0].line + 1}"
    first = found[0]
    line, target = first.directives["default_exp"]
    if first is not dev.code[0] or len([text for text in first.lines if text.strip()]) != 1:
        yield line, "default-exp-place", "`#| default_exp` stands alone in the first code cell"
    if not EXPORT_TARGET.fullmatch(target):
        places = ", ".join(EXPORT_FOLDERS)
        yield line, "default-exp-target", f"{target!r} is not a module in one of {places}"
    elif (owner := dev.targets.get(target)) != dev.module.label:
        yield line, "default-exp-shared", f"{owner} exports to {target} too"


def check_metadata(dev: DevFile) -> Found:
    seen: dict[str, int] = {}
    for cell in dev.cells:
        try:
            metadata = cell.metadata
        except ValueError as error:
            yield cell.line, "metadata-form", f"not readable as nbgrader={{...}}: {error}"
            continue
        if metadata is None:
            continue
        yield from check_keys(dev, cell, metadata)
        grade_id = metadata.get("grade_id")
        if not isinstance(grade_id, str) or not CELL_ID.fullmatch(grade_id):
            yield cell.line, "grade-id", f"{grade_id!r} is not 1 to 64 of A-Z a-z 0-9 _ -"
        elif grade_id in seen:
            yield cell.line, "grade-id-twice", f"{grade_id} is also the cell in line {seen[grade_id]}"
        seen.setdefault(str(grade_id), cell.line)
        if cell.kind is None:
            yield cell.line, "metadata-kind", "grade, solution and locked do not go together"
        elif cell.is_markdown and cell.kind in ("solution", "test"):
            yield cell.line, "metadata-kind", f"a {cell.kind} cell holds code, not markdown"
        elif cell.is_code and cell.kind in ("written", "task"):
            yield cell.line, "metadata-kind", f"a {cell.kind} cell is markdown"


def check_keys(dev: DevFile, cell: DevCell, metadata: dict) -> Found:
    needs_points = metadata.get("grade") is True or metadata.get("task") is True
    expected = METADATA_KEYS | ({"points"} if needs_points else set())
    keys = set(metadata) - ({"task"} if metadata.get("task") is True else set())
    if missing := sorted(expected - keys):
        yield cell.line, "metadata-keys", f"missing: {', '.join(missing)}"
    if extra := sorted(keys - expected):
        yield cell.line, "metadata-keys", f"does not belong here: {', '.join(extra)}"
    for key in {"grade", "locked", "solution"} & keys:
        if not isinstance(metadata[key], bool):
            yield cell.line, "metadata-keys", f"{key} is true or false, not {metadata[key]!r}"
    if metadata.get("schema_version", 3) != 3:
        yield cell.line, "schema-version", f"schema_version is 3, not {metadata['schema_version']}"
    points = metadata.get("points", 1)
    if isinstance(points, bool) or not isinstance(points, int | float) or points <= 0:
        yield cell.line, "points", f"points is a number above 0, not {points!r}"


def check_regions(dev: DevFile) -> Found:
    """Solution and hidden-test regions: closed, not nested, in the cells that they belong to."""
    belongs = {"SOLUTION": "solution", "HIDDEN TESTS": "test"}
    for cell in dev.cells:
        open_region: tuple[str, int] | None = None
        regions = 0
        for number, text in enumerate(cell.lines, cell.line + 1):
            match = REGION.fullmatch(text)
            if not match or not cell.is_code:
                if WORDS.search(text):
                    yield number, "region-words", "nbgrader takes these words for a marker"
                continue
            begins, what = match[1] == "BEGIN", match[2]
            if begins:
                regions += 1
                if cell.kind != belongs[what]:
                    yield number, "region-place", f"{what} belongs in a {belongs[what]} cell"
                if open_region:
                    yield number, "region-unbalanced", f"line {open_region[1]} is still open"
                open_region = (what, number)
            elif open_region and open_region[0] == what:
                open_region = None
            else:
                yield number, "region-unbalanced", f"END {what} without its BEGIN"
        if open_region:
            yield open_region[1], "region-unbalanced", f"BEGIN {open_region[0]} without its END"
        if cell.kind == "solution" and cell.is_code and not regions:
            yield cell.line, "solution-unmarked", "no BEGIN SOLUTION: nbgrader would empty the cell"


def check_stubs(dev: DevFile) -> Found:
    """What a student gets, with `raise NotImplementedError()` for each solution, must be Python."""
    for cell in dev.code:
        if cell.kind != "solution" or cell.tree is None:
            continue
        try:
            ast.parse(replaced(cell.source, SOLUTION, CODE_STUB))
        except TitoError:
            continue  # the markers do not match, which check_regions says
        except SyntaxError as error:
            yield cell.line, "stub-syntax", f"not Python without its solution: {error.msg}"


FORM_RULES = (
    check_file,
    check_folder,
    check_markdown,
    check_directives,
    check_default_exp,
    check_metadata,
    check_regions,
    check_stubs,
)
