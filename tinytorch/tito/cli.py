"""The command line. A command's module is imported only when that command is used."""

import importlib
import sys
from importlib.util import find_spec

import click

from tinytorch.tito.project import TitoError, find_project

COMMANDS = {
    "export": "tinytorch.tito.author.export:command",
    "notebooks": "tinytorch.tito.author.notebooks:command",
    "lint": "tinytorch.tito.author.lint:command",
    "release": "tinytorch.tito.instructor.release:command",
    "module": "tinytorch.tito.student.commands:module",
    "cache-report": "tinytorch.caches.report:command",
    "grade": "tinytorch.tito.instructor.grading.command:command",
    "doctor": "tinytorch.tito.student.doctor:command",
}
FROM_DEV_FILES = ("export", "notebooks")  # a student's bundle has none


class LazyGroup(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:
        project = find_project()
        useless = FROM_DEV_FILES if project and project.bundle_label else ()
        here = [name for name, place in COMMANDS.items() if _is_here(place.partition(":")[0])]
        return [name for name in here if name not in useless]

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        if name not in self.list_commands(ctx):
            return None
        module, _, attribute = COMMANDS[name].partition(":")
        return getattr(importlib.import_module(module), attribute)


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
    try:
        cli(prog_name="tito")
    except UnicodeDecodeError as error:
        TitoError(f"A file that should be UTF-8 text is not: {error}.").show()
    except OSError as error:
        TitoError(f"{error.strerror or error}: {error.filename or 'no file'}.").show()
    sys.exit(1)
