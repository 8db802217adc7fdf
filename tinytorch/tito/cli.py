"""The command line. A command's module is imported only when that command is used."""

import importlib
import sys
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import click
from click.shell_completion import CompletionItem

from tinytorch.tito.project import Project, TitoError, find_project


@dataclass(frozen=True)
class Place:
    """Where a command is, and its line in `tito --help`, which loads none of them."""

    module: str
    attribute: str
    summary: str


COMMANDS = {
    "export": Place("tinytorch.tito.author.export", "command", "Make the package from the dev files."),
    "notebooks": Place(
        "tinytorch.tito.author.notebooks", "command", "Make notebooks from the dev files, with solutions."
    ),
    "lint": Place("tinytorch.tito.author.lint", "command", "Check the dev files' directives and metadata."),
    "release": Place(
        "tinytorch.tito.instructor.release", "command", "Make the student's bundle of module NN."
    ),
    "module": Place(
        "tinytorch.tito.student.commands", "module", "Work through a module: start, test, complete."
    ),
    "cache-report": Place("tinytorch.caches.report", "command", "Measure every cache on a model and a text."),
    "collect": Place(
        "tinytorch.tito.instructor.collect", "command", "Bring in what a learning platform lets one download."
    ),
    "grade": Place("tinytorch.tito.instructor.grading.command", "command", "Grade what students handed in."),
    "return": Place("tinytorch.tito.instructor.hand_back", "command", "Lay out the feedback for upload."),
    "doctor": Place("tinytorch.tito.student.doctor", "command", "Say what is wrong with the installation."),
}
FROM_DEV_FILES = ("export", "notebooks")  # a student's bundle has none


class LazyGroup(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:
        project = find_project()
        useless = FROM_DEV_FILES if project and project.bundle_label else ()
        return [name for name, place in COMMANDS.items() if name not in useless and _is_here(place.module)]

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        if name not in self.list_commands(ctx):
            return None
        return getattr(importlib.import_module(COMMANDS[name].module), COMMANDS[name].attribute)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, COMMANDS[name].summary) for name in self.list_commands(ctx)])

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        names = [name for name in self.list_commands(ctx) if name.startswith(incomplete)]
        items = [CompletionItem(name, help=COMMANDS[name].summary) for name in names]
        return items + click.Command.shell_complete(self, ctx, incomplete)


def _is_here(module: str) -> bool:
    """Whether this copy of the package holds the module; a student's bundle leaves some out."""
    try:
        return find_spec(module) is not None
    except ModuleNotFoundError:  # not even the package that would hold it
        return False


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="tinytorch", prog_name="tito")
def cli() -> None:
    """The tool of the TinyTorch course."""


def main() -> None:
    """The entry point: a user's mistake ends in one sentence on stderr, never in a traceback."""
    if bundle := _another_bundle():
        return _tool_of(bundle)()
    try:
        cli(prog_name="tito")
    except UnicodeDecodeError as error:
        TitoError(f"A file that should be UTF-8 text is not: {error}.").show()
    except OSError as error:
        TitoError(f"{error.strerror or error}: {error.filename or 'no file'}.").show()
    sys.exit(1)


def _another_bundle() -> Project | None:
    """The student's bundle that holds the current folder, if this tool is part of another one.

    One environment serves all bundles that lie side by side: pip knows the one it was installed from, and
    each is worked on by its own tool, with its own package.
    """
    mine, here = Project(Path(__file__).resolve().parents[2]), find_project()
    if here is None or here.root == mine.root or not (here.bundle_label and mine.bundle_label):
        return None
    return here


def _tool_of(project: Project) -> Callable[[], None]:
    """Puts this project's package in the place of the one that is loaded -> its tool's `main`."""
    for name in [name for name in sys.modules if name.partition(".")[0] == "tinytorch"]:
        del sys.modules[name]
    sys.path.insert(0, str(project.root))
    importlib.import_module("tinytorch")
    sys.path.pop(0)  # its other files must not pass for modules
    return importlib.import_module("tinytorch.tito.cli").main
