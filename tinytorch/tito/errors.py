"""How a command says that it cannot go on."""

import click


class TitoError(click.ClickException):
    """A mistake that the user can mend: shown as one sentence on stderr, exit status 1."""

    def show(self, file=None) -> None:
        click.echo(f"tito: {self.format_message()}", file=file, err=file is None)
