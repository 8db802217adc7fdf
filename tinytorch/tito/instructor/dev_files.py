"""The dev files of a project, each read once, and what of the package a file imports."""

import ast
from dataclasses import dataclass, field
from functools import cache, cached_property
from pathlib import Path
from typing import Any

from tinytorch.tito.author.notebooks import to_read
from tinytorch.tito.notebook.package import build
from tinytorch.tito.project import Module, Project


@dataclass(frozen=True)
class DevFiles:
    """The dev files of a project, each read and exported once for all bundles."""

    project: Project
    cache: dict = field(default_factory=dict)

    @cached_property
    def modules(self) -> list[Module]:
        return self.project.modules()

    def notebook(self, module: Module) -> dict:
        return self._once("notebook", module, lambda: to_read(module))

    def exported(self, module: Module) -> Any:
        return self._once(
            "exported", module, lambda: build(self.notebook(module), module.dev_file, self.project.root)
        )

    def _once(self, what: str, module: Module, make):
        if (what, module) not in self.cache:
            self.cache[what, module] = make()
        return self.cache[what, module]

    def earlier(self, module: Module) -> list[Module]:
        return [other for other in self.modules if other.number < module.number]

    def later(self, module: Module) -> list[Module]:
        return [other for other in self.modules if other.number > module.number]

    def milestones(self, module: Module) -> list[Path]:
        """The folders of milestones/ whose latest import from the package is this module."""
        found = []
        for folder in sorted(path for path in (self.project.root / "milestones").glob("*/")):
            wanted = set().union(*(package_imports(path) for path in folder.rglob("*.py")))
            needed = [other for other in self.modules if other.export_target() in wanted]
            if needed and needed[-1] == module:
                found.append(folder)
        return found


@cache
def package_imports(path: Path, whole: bool = False) -> frozenset[str]:
    """{"core.tensor", ...}: what the file imports from tinytorch; with "tinytorch." before it if `whole`."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    ours = {name for name in names if name.startswith("tinytorch.")}
    return frozenset(ours if whole else {name.removeprefix("tinytorch.") for name in ours})
