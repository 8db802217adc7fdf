"""`tito lint`: the mistakes in a dev file that nbdev and nbgrader pass over in silence."""

import ast
import json
import re
import sys
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import click

from tinytorch.tito.console import count
from tinytorch.tito.project import (
    EXPORT_FOLDERS,
    EXPORT_TARGET,
    Module,
    Project,
    TitoError,
    need_project,
    was_exported,
)

LINE_LENGTH = 110
MODULE_POINTS = 100
MARKER = re.compile(r"#[ \t]*%%(?:[ \t]+(.*))?$")
STRAY_MARKER = re.compile(r"[ \t]+#[ \t]*%%(?:[ \t]|$)|\s*# (?:In\[[\d ]*\]|<(?:code|markdown)cell>)")
DIRECTIVE = re.compile(r"\s*#[ \t]*\|[ \t]*(\w*):?[ \t]*(.*?)\s*$")
REGION = re.compile(r"\s*### (BEGIN|END) (SOLUTION|HIDDEN TESTS)\s*")
REGION_WORDS = re.compile(r"(BEGIN|END) (SOLUTION|HIDDEN TESTS|MARK SCHEME)")
DIRECTIVES = ("default_exp", "export", "exporti", "hide")
GRADE_ID = re.compile(r"[A-Za-z0-9_-]{1,64}")
METADATA_KEYS = {"grade", "grade_id", "locked", "schema_version", "solution"}
# (grade, solution, locked, task) -> what nbgrader takes the cell for
KINDS = {
    (False, True, False, False): "solution",
    (True, False, True, False): "test",
    (True, True, False, False): "written",
    (False, False, True, False): "read-only",
    (False, False, True, True): "task",
}
LEAVES_ALONE = {".ipynb_checkpoints", "__pycache__"}


@dataclass(frozen=True, order=True)
class Finding:
    path: Path
    line: int
    code: str
    message: str

    def show(self, root: Path) -> str:
        return f"{self.path.relative_to(root).as_posix()}:{self.line}: {self.code} {self.message}"


@dataclass
class Cell:
    """One cell of a dev file, with the line numbers that jupytext forgets."""

    line: int  # of the marker, counted from 1
    head: str  # what stands after `# %%`
    lines: list[str] = field(default_factory=list)

    @property
    def is_markdown(self) -> bool:
        return self.head.startswith("[markdown]")

    @property
    def is_code(self) -> bool:
        return not self.head.startswith("[")

    @property
    def options(self) -> str:
        return self.head.removeprefix("[markdown]").strip()

    @property
    def source(self) -> str:
        return "\n".join(self.lines)

    @cached_property
    def metadata(self) -> dict | None:
        """The nbgrader metadata, None where there is none; ValueError if it cannot be read."""
        if not self.options:
            return None
        name, _, value = self.options.partition("=")
        metadata = json.loads(value) if name == "nbgrader" else None
        if not isinstance(metadata, dict):
            raise ValueError("only nbgrader={...} belongs here")
        return metadata

    @cached_property
    def kind(self) -> str | None:
        """ "solution", "test", "written", "read-only", "task", None for a cell without (good) metadata."""
        try:
            metadata = self.metadata or {}
        except ValueError:
            return None
        flags = ("grade", "solution", "locked", "task")
        return KINDS.get(tuple(metadata.get(flag) is True for flag in flags))

    @cached_property
    def directives(self) -> dict[str, tuple[int, str]]:
        """{name: (line, value)} of the `#| ...` lines at the top, the only ones that nbdev obeys."""
        found = {}
        for number, text in enumerate(self.lines, self.line + 1):
            match = DIRECTIVE.match(text)
            if match:
                found[match[1]] = (number, match[2])
            elif text.strip():
                break
        return found

    @property
    def is_exported(self) -> bool:
        return self.is_code and not {"export", "exporti", "exports"}.isdisjoint(self.directives)

    @cached_property
    def tree(self) -> ast.Module | None:
        """None for a cell that is not Python; the whole file's check reports that."""
        if not self.is_code:
            return None
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                return ast.parse(self.source)
            except SyntaxError:
                return None

    def line_of(self, node: ast.AST) -> int:
        return self.line + node.lineno

    def statements(self) -> Iterator[ast.AST]:
        return ast.walk(self.tree) if self.tree else iter(())


def split_cells(text: str) -> list[Cell]:
    """The cells of a dev file: a cell begins at each line that starts with `# %%`."""
    cells = []
    for number, line in enumerate(text.splitlines(), 1):
        marker = MARKER.match(line)
        if marker:
            cells.append(Cell(number, (marker[1] or "").strip()))
        elif cells:
            cells[-1].lines.append(line)
    return cells


class Linter:
    """Collects the findings about one dev file; `targets` says which module number each place belongs to."""

    def __init__(self, module: Module, targets: dict[str, str]):
        self.module, self.targets = module, targets
        self.path = module.dev_file
        self.text = self.path.read_text(encoding="utf-8")
        self.cells = split_cells(self.text)
        self.code = [cell for cell in self.cells if cell.is_code]
        self.findings: list[Finding] = []

    def add(self, line: int, code: str, message: str) -> None:
        self.findings.append(Finding(self.path, line, code, message))

    def run(self) -> list[Finding]:
        for check in (
            self.check_file,
            self.check_folder,
            self.check_markdown,
            self.check_directives,
            self.check_default_exp,
            self.check_metadata,
            self.check_regions,
            self.check_stubs,
            self.check_tests,
            self.check_order,
            self.check_imports,
            self.check_definitions,
            self.check_whole,
        ):
            check()
        return self.findings

    def check_file(self) -> None:
        """Valid Python without a warning, no marker inside a function, code lines of bearable length."""
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            try:
                compile(self.text, str(self.path), "exec")
            except SyntaxError as error:
                self.add(error.lineno or 1, "syntax", f"not valid Python: {error.msg}")
        for warning in caught:
            self.add(warning.lineno, "syntax-warning", f"{warning.message} (use a raw string?)")
        for number, line in enumerate(self.text.splitlines(), 1):
            if STRAY_MARKER.match(line):
                self.add(number, "stray-marker", "jupytext splits the cell in the middle here")
        for cell in self.code:
            for number, line in enumerate(cell.lines, cell.line + 1):
                if len(line) > LINE_LENGTH:
                    self.add(number, "line-length", f"{len(line)} characters of code, {LINE_LENGTH} fit")

    def check_folder(self) -> None:
        """nbgrader copies every other file of the folder into the students' release."""
        allowed = {self.path.name, self.module.notebook.name} | LEAVES_ALONE
        for path in sorted(self.module.folder.iterdir()):
            if path.name not in allowed:
                finding = "a file beside the dev file would be released to students with all it says"
                self.findings.append(Finding(path, 1, "extra-file", finding))

    def check_markdown(self) -> None:
        for cell in self.cells:
            body = cell.source.strip()
            if not cell.is_markdown:
                if not cell.is_code:
                    self.add(cell.line, "cell-type", f"cells are code or [markdown], not {cell.head}")
            elif not re.fullmatch(r'r?"""\n.*\n"""', body, re.DOTALL):
                self.add(cell.line, "markdown-string", 'a markdown cell is one string between lines of """')
        title = next((cell for cell in self.cells if cell.is_markdown), None)
        if title is None or title is not self.cells[0] or '"""\n# ' not in title.source:
            self.add(1, "title", "the first cell is markdown and begins with the title, `# ...`")
        elif re.search(r"^> ", title.source, re.MULTILINE):
            self.add(title.line, "title-quote", "nbdev makes a `> ` line here the module's docstring")

    def check_directives(self) -> None:
        for cell in self.cells:
            for number, text in enumerate(cell.lines, cell.line + 1):
                match = DIRECTIVE.match(text) if not cell.is_markdown else re.match(r"#\|", text)
                if not match:
                    continue
                if cell.is_markdown:
                    self.add(number, "directive-in-markdown", "a directive works in code cells only")
                elif number not in {line for line, _ in cell.directives.values()}:
                    self.add(number, "directive-late", "nbdev ignores a directive below code or a comment")
                elif number != cell.line + 1 + list(cell.directives).index(match[1]):
                    self.add(number, "directive-late", "directives are the first lines of their cell")
                elif match[1] not in DIRECTIVES:
                    self.add(number, "directive-unknown", f"the directives are {', '.join(DIRECTIVES)}")
                elif not text.startswith("#| "):
                    self.add(number, "directive-form", f"write `#| {match[1]}`")
                elif match[1] in ("export", "exporti") and match[2]:
                    self.add(number, "export-elsewhere", "a dev file makes one file, its default_exp")

    def check_default_exp(self) -> None:
        found = [cell for cell in self.code if "default_exp" in cell.directives]
        if not found:
            self.add(1, "default-exp-missing", "no cell says `#| default_exp ...`, so nothing is exported")
            return
        for cell in found[1:]:
            self.add(cell.line, "default-exp-twice", f"the first stands in line {found[0].line + 1}")
        first = found[0]
        line, target = first.directives["default_exp"]
        if first is not self.code[0] or len([text for text in first.lines if text.strip()]) != 1:
            self.add(line, "default-exp-place", "`#| default_exp` stands alone in the first code cell")
        if not EXPORT_TARGET.fullmatch(target):
            places = ", ".join(EXPORT_FOLDERS)
            self.add(line, "default-exp-target", f"{target!r} is not a module in one of {places}")
        elif (owner := self.targets.get(target)) != self.module.label:
            self.add(line, "default-exp-shared", f"{owner} exports to {target} too")

    def check_metadata(self) -> None:
        seen: dict[str, int] = {}
        for cell in self.cells:
            try:
                metadata = cell.metadata
            except ValueError as error:
                self.add(cell.line, "metadata-form", f"not readable as nbgrader={{...}}: {error}")
                continue
            if metadata is None:
                continue
            self._check_keys(cell, metadata)
            grade_id = metadata.get("grade_id")
            if not isinstance(grade_id, str) or not GRADE_ID.fullmatch(grade_id):
                self.add(cell.line, "grade-id", f"{grade_id!r} is not 1 to 64 of A-Z a-z 0-9 _ -")
            elif grade_id in seen:
                self.add(cell.line, "grade-id-twice", f"{grade_id} is also the cell in line {seen[grade_id]}")
            seen.setdefault(str(grade_id), cell.line)
            if cell.kind is None:
                self.add(cell.line, "metadata-kind", "grade, solution and locked do not go together")
            elif cell.is_markdown and cell.kind in ("solution", "test"):
                self.add(cell.line, "metadata-kind", f"a {cell.kind} cell holds code, not markdown")
            elif cell.is_code and cell.kind in ("written", "task"):
                self.add(cell.line, "metadata-kind", f"a {cell.kind} cell is markdown")

    def _check_keys(self, cell: Cell, metadata: dict) -> None:
        needs_points = metadata.get("grade") is True or metadata.get("task") is True
        expected = METADATA_KEYS | ({"points"} if needs_points else set())
        keys = set(metadata) - ({"task"} if metadata.get("task") is True else set())
        if missing := sorted(expected - keys):
            self.add(cell.line, "metadata-keys", f"missing: {', '.join(missing)}")
        if extra := sorted(keys - expected):
            self.add(cell.line, "metadata-keys", f"does not belong here: {', '.join(extra)}")
        for key in {"grade", "locked", "solution"} & keys:
            if not isinstance(metadata[key], bool):
                self.add(cell.line, "metadata-keys", f"{key} is true or false, not {metadata[key]!r}")
        if metadata.get("schema_version", 3) != 3:
            self.add(cell.line, "schema-version", f"schema_version is 3, not {metadata['schema_version']}")
        points = metadata.get("points", 1)
        if isinstance(points, bool) or not isinstance(points, int | float) or points <= 0:
            self.add(cell.line, "points", f"points is a number above 0, not {points!r}")

    def check_regions(self) -> None:
        """Solution and hidden-test regions: closed, not nested, in the cells that they belong to."""
        belongs = {"SOLUTION": "solution", "HIDDEN TESTS": "test"}
        for cell in self.cells:
            open_region: tuple[str, int] | None = None
            regions = 0
            for number, text in enumerate(cell.lines, cell.line + 1):
                match = REGION.fullmatch(text)
                if not match or not cell.is_code:
                    if REGION_WORDS.search(text):
                        self.add(number, "region-words", "nbgrader takes these words for a marker")
                    continue
                begins, what = match[1] == "BEGIN", match[2]
                if begins:
                    regions += 1
                    if cell.kind != belongs[what]:
                        self.add(number, "region-place", f"{what} belongs in a {belongs[what]} cell")
                    if open_region:
                        self.add(number, "region-unbalanced", f"line {open_region[1]} is still open")
                    open_region = (what, number)
                elif open_region and open_region[0] == what:
                    open_region = None
                else:
                    self.add(number, "region-unbalanced", f"END {what} without its BEGIN")
            if open_region:
                self.add(open_region[1], "region-unbalanced", f"BEGIN {open_region[0]} without its END")
            if cell.kind == "solution" and cell.is_code and not regions:
                self.add(cell.line, "solution-unmarked", "no BEGIN SOLUTION: nbgrader would empty the cell")

    def check_stubs(self) -> None:
        """What a student gets, with `raise NotImplementedError()` for each solution, must be Python."""
        for cell in self.code:
            if cell.kind != "solution" or cell.tree is None:
                continue
            stub, inside = [], False
            for text in cell.lines:
                match = REGION.fullmatch(text)
                if match and match[2] == "SOLUTION":
                    inside = match[1] == "BEGIN"
                    if inside:
                        stub.append(text[: len(text) - len(text.lstrip())] + "raise NotImplementedError()")
                elif not inside:
                    stub.append(text)
            try:
                ast.parse("\n".join(stub))
            except SyntaxError as error:
                self.add(cell.line, "stub-syntax", f"not Python without its solution: {error.msg}")

    def check_tests(self) -> None:
        """A test must be able to fail, and must not hide what failed."""
        for cell in self.code:
            can_fail = False
            for node in cell.statements():
                if isinstance(node, ast.Assert):
                    can_fail = True
                    if isinstance(node.test, ast.Constant | ast.Tuple) and (
                        isinstance(node.test, ast.Tuple) or node.test.value
                    ):
                        self.add(cell.line_of(node), "assert-true", "this assertion cannot fail")
                elif isinstance(node, ast.Raise):
                    can_fail = True
                elif isinstance(node, ast.ExceptHandler):
                    if node.type is None:
                        self.add(cell.line_of(node), "bare-except", "name the exception")
                    elif _is_everything(node.type) and all(isinstance(n, ast.Pass) for n in node.body):
                        self.add(cell.line_of(node), "swallowed-exception", "every error disappears here")
            if cell.kind == "test" and cell.tree is not None:
                if not can_fail:
                    self.add(cell.line, "test-without-assert", "a graded test asserts something")
                if cell.is_exported:
                    self.add(cell.line, "exported-test", "a graded test does not belong in the package")

    def check_order(self) -> None:
        """A test stands after the solution that it tests and after all that it uses."""
        defined_at: dict[str, Cell] = {}
        for cell in reversed(self.code):
            for name in _defined_names(cell):
                defined_at[name] = cell
        marked = [cell for cell in self.code if cell.kind == "solution"]
        solutions = {cell.metadata.get("grade_id"): cell for cell in marked}
        for cell in self.code:
            if cell.kind != "test":
                continue
            tested = solutions.get(str(cell.metadata.get("grade_id")).removeprefix("test-"))
            if tested and tested.line > cell.line:
                self.add(cell.line, "test-too-early", f"its solution comes only in line {tested.line}")
            for name in sorted(_used_names(cell)):
                if name in defined_at and defined_at[name].line > cell.line:
                    self.add(
                        cell.line, "test-too-early", f"{name} comes only in line {defined_at[name].line}"
                    )

    def check_imports(self) -> None:
        """Earlier modules come from the package, later ones never; exported code needs NumPy alone."""
        for cell in self.code:
            for node in cell.statements():
                for name in _imported(node):
                    line = cell.line_of(node)
                    if name.split(".")[0] == "tinytorch":
                        self._check_own_import(line, name.removeprefix("tinytorch").removeprefix("."))
                    elif cell.is_exported and name.split(".")[0] not in sys.stdlib_module_names | {"numpy"}:
                        self.add(line, "export-import", f"exported code needs NumPy alone, not {name}")
                if isinstance(node, ast.ImportFrom) and node.level:
                    self.add(cell.line_of(node), "relative-import", "write `from tinytorch... import ...`")

    def _check_own_import(self, line: int, name: str) -> None:
        if name.split(".")[0] == "pretrained":  # hand-written, needs no module: readers of weight files
            return
        target = next((t for t in (name, name.rpartition(".")[0]) if t in self.targets), None)
        if target is None:
            if not EXPORT_TARGET.fullmatch(name):
                self.add(line, "import-from", f"name the module: tinytorch.{name or '...'} is not one")
            else:
                self.add(line, "import-from", f"no dev file exports tinytorch.{name}")
        elif self.targets[target] == self.module.label:
            self.add(line, "import-self", f"{target} is this file: use the names of its own cells")
        elif self.targets[target] > self.module.label:
            self.add(line, "import-later", f"{target} belongs to {self.targets[target]}, which comes later")

    def check_definitions(self) -> None:
        """nbdev exports both of two definitions of a name; the second silently wins."""
        seen: dict[str, int] = {}
        for cell in self.code:
            if not cell.is_exported or not cell.tree:
                continue
            for node in cell.tree.body:
                name = getattr(node, "name", "_")  # `_`: `@gradient_of(...) def _(...)` registers, unnamed
                if name in seen:
                    self.add(cell.line_of(node), "defined-twice", f"{name} stands in line {seen[name]} too")
                elif name != "_":
                    seen[name] = cell.line_of(node)

    def check_whole(self) -> None:
        kinds = [cell.kind for cell in self.cells]
        points = sum(_points(cell) for cell in self.cells if cell.kind)
        if points != MODULE_POINTS:
            self.add(1, "points-total", f"the graded cells give {points:g} points, not {MODULE_POINTS}")
        if "written" not in kinds and "task" not in kinds:
            self.add(1, "no-written-question", "a module asks a question to be answered in words")
        if not any("### BEGIN HIDDEN TESTS" in cell.source for cell in self.code if cell.kind == "test"):
            self.add(1, "no-hidden-tests", "a module has at least one test cell with hidden tests")
        if not any(cell.is_exported for cell in self.code):
            self.add(1, "nothing-exported", "no cell says `#| export`")


def lint_module(module: Module, targets: dict[str, str]) -> list[Finding]:
    return sorted(Linter(module, targets).run())


def lint_project(project: Project, number: str | None = None) -> list[Finding]:
    """The findings about every module (or the one named) and, if all, about the project around them."""
    selected = project.select(number)
    targets: dict[str, str] = {}
    for module in project.modules():
        if target := module.export_target():
            targets.setdefault(target, module.label)
    findings = [finding for module in selected for finding in lint_module(module, targets)]
    return findings if number else findings + lint_package(project) + lint_strays(project)


def lint_package(project: Project) -> list[Finding]:
    """Plain nbdev-export copies docstrings of more than three lines into tinytorch/__init__.py."""
    findings = []
    for path in sorted(project.package_dir.rglob("*.py")):
        if path.name.startswith("_") or was_exported(path):
            continue
        try:
            docstring = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
        except SyntaxError:
            continue  # ruff reports it better
        if len(docstring.splitlines()) > 3:
            message = "more than three lines: nbdev-export would copy it to tinytorch/__init__.py"
            findings.append(Finding(path, 1, "module-docstring", message))
    return findings


def lint_strays(project: Project) -> list[Finding]:
    """Folders of modules/ that look like a module but hold no dev file of that name."""
    known = {module.folder for module in project.modules()}
    return [
        Finding(folder, 1, "no-dev-file", f"the folder holds no {folder.name.partition('_')[2]}_dev.py")
        for folder in sorted(project.modules_dir.iterdir())
        if folder.is_dir() and folder not in known and folder.name not in LEAVES_ALONE
    ]


@click.command("lint")
@click.argument("number", metavar="[NN]", required=False)
def command(number: str | None) -> None:
    """Check the dev files' directives and metadata: all, or module NN.

    One finding a line: path:line: code message.
    """
    project = need_project()
    findings = lint_project(project, number)
    for finding in findings:
        click.echo(finding.show(project.root))
    if findings:
        raise TitoError(f"{count(len(findings), 'finding')}.")
    click.echo("The dev files are in order.")


def _points(cell: Cell) -> float:
    points = cell.metadata.get("points", 0)
    return points if isinstance(points, int | float) else 0


def _is_everything(node: ast.expr) -> bool:
    return isinstance(node, ast.Name) and node.id in ("Exception", "BaseException")


def _imported(node: ast.AST) -> list[str]:
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom) and not node.level:
        if node.module == "tinytorch":  # `from tinytorch import core`
            return [f"tinytorch.{alias.name}" for alias in node.names]
        return [node.module]
    return []


def _defined_names(cell: Cell) -> set[str]:
    """The names that the top level of a cell binds for good (not the loop variables of its tests)."""
    names = set()
    for node in cell.tree.body if cell.tree else ():
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            names.add(node.name)
        elif isinstance(node, ast.Assign):
            names |= {target.id for target in node.targets if isinstance(target, ast.Name)}
        elif isinstance(node, ast.Import | ast.ImportFrom):
            names |= {(alias.asname or alias.name).split(".")[0] for alias in node.names}
    return names


def _used_names(cell: Cell) -> set[str]:
    """The names that a cell reads and does not bind itself, anywhere in it."""
    used, bound = set(), _defined_names(cell)
    for node in cell.statements():
        if isinstance(node, ast.Name):
            (used if isinstance(node.ctx, ast.Load) else bound).add(node.id)
        elif isinstance(node, ast.arg):
            bound.add(node.arg)
    return used - bound
