"""A dev file as it is written: its cells, with the line numbers that jupytext forgets."""

import ast
import json
import re
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from tinytorch.tito.notebook.markers import DIRECTIVE, EXPORTS
from tinytorch.tito.project import Module

MARKER = re.compile(r"#[ \t]*%%(?:[ \t]+(.*))?$")
# (grade, solution, locked, task) -> what nbgrader takes the cell for
KINDS: dict[tuple[bool, ...], str] = {
    (False, True, False, False): "solution",
    (True, False, True, False): "test",
    (True, True, False, False): "written",
    (False, False, True, False): "read-only",
    (False, False, True, True): "task",
}


@dataclass
class DevCell:
    """One cell of a dev file."""

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
        return self.is_code and not EXPORTS.isdisjoint(self.directives)

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

    def line_of(self, node: Any) -> int:
        return self.line + node.lineno

    def statements(self) -> Iterator[ast.AST]:
        return ast.walk(self.tree) if self.tree else iter(())


def split_cells(text: str) -> list[DevCell]:
    """The cells of a dev file: a cell begins at each line that starts with `# %%`."""
    cells = []
    for number, line in enumerate(text.splitlines(), 1):
        marker = MARKER.match(line)
        if marker:
            cells.append(DevCell(number, (marker[1] or "").strip()))
        elif cells:
            cells[-1].lines.append(line)
    return cells


class DevFile:
    """What the rules look at; `targets` says which module each place of the package belongs to."""

    def __init__(self, module: Module, targets: dict[str, str]):
        self.module, self.targets = module, targets
        self.path = module.dev_file
        self.text = self.path.read_text(encoding="utf-8")
        self.cells = split_cells(self.text)
        self.code = [cell for cell in self.cells if cell.is_code]
