"""How a command says that it cannot go on."""

from typing import Any

import click


class TitoError(click.ClickException):
    """A mistake that the user can mend: shown as one sentence on stderr, exit status 1."""

    def show(self, file: Any = None) -> None:
        click.echo(f"tito: {self.format_message()}", file=file, err=file is None)
