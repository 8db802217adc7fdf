"""`tito lint`: the mistakes in a dev file that nbdev and nbgrader pass over in silence."""

import ast
from dataclasses import dataclass
from pathlib import Path

import click

from tinytorch.tito.author import rules_code, rules_form
from tinytorch.tito.author.dev_file import DevFile
from tinytorch.tito.console import count
from tinytorch.tito.project import Module, Project, TitoError, need_project, was_exported


@dataclass(frozen=True, order=True)
class Finding:
    path: Path
    line: int
    code: str
    message: str

    def show(self, root: Path) -> str:
        return f"{self.path.relative_to(root).as_posix()}:{self.line}: {self.code} {self.message}"


def lint_module(module: Module, targets: dict[str, str]) -> list[Finding]:
    dev = DevFile(module, targets)
    found = [finding for rule in (*rules_form.FORM_RULES, *rules_code.CODE_RULES) for finding in rule(dev)]
    return sorted(
        Finding(path[0] if path else dev.path, line, code, message) for line, code, message, *path in found
    )


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
        if folder.is_dir() and folder not in known and folder.name not in rules_form.LEAVES_ALONE
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
