"""What commands share to show things: lines, tables, counts, and a sign of life."""

import sys

import click

# For consoles that cannot show them (Windows' code pages).
ASCII = {
    "→": "->",
    "≤": "<=",
    "≥": ">=",
    "≠": "!=",
    "×": "x",
    "−": "-",
    "–": "-",
    "—": "-",
    "·": "*",
    "…": "...",
}


def say(text: str = "") -> None:
    click.echo(fit(text))


def fit(text: str, encoding: str | None = None) -> str:
    """The text in characters that the console has."""
    encoding = encoding or getattr(sys.stdout, "encoding", None) or "utf-8"
    try:
        text.encode(encoding)
    except UnicodeEncodeError:
        for character, plain in ASCII.items():
            text = text.replace(character, plain)
        text = text.encode(encoding, "replace").decode(encoding)
    return text


def show_table(title: str, columns: list[str], rows: list[list[str]], colours: dict[str, str]) -> None:
    """A table in a terminal; aligned plain lines into a file or a pipe. colours: of the cells that say so."""
    rows = [[fit(cell) for cell in row] for row in rows]
    if sys.stdout.isatty():
        from rich import box
        from rich.console import Console
        from rich.table import Table
        from rich.text import Text

        table = Table(title=Text(fit(title)), title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
        for name in columns:
            table.add_column(name, justify="right" if name == "points" else "left", overflow="fold")
        for row in rows:
            table.add_row(*(Text(cell, colours.get(cell, "")) for cell in row))
        Console().print(table)
        return
    say(title)
    widths = [max(len(row[i]) for row in [columns, *rows]) for i in range(len(columns))]
    for row in [columns, *rows]:
        say("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def count(number: int, noun: str) -> str:
    """-> "1 part", "2 parts"."""
    return f"{number} {noun}{'' if number == 1 else 's'}"


def indented(text: str) -> str:
    return "\n".join("    " + line for line in text.splitlines())


class Spinner:
    """In a terminal, a line that says what goes on; else nothing."""

    def __init__(self, text: str):
        self.status = None
        if sys.stdout.isatty():
            from rich.console import Console
            from rich.text import Text

            self.status = Console().status(Text(fit(text)), spinner="line")

    def __enter__(self) -> "Spinner":
        if self.status:
            self.status.start()
        return self

    def __call__(self, text: str) -> None:
        if self.status:
            from rich.text import Text

            self.status.update(Text(fit(text)))

    def __exit__(self, *_: object) -> None:
        if self.status:
            self.status.stop()
