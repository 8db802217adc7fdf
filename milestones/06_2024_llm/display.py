"""What the chat shows: text as it comes, with lines broken at spaces, and bars for work that takes long."""

import sys

from rich.cells import cell_len
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

out, notes = Console(highlight=False), Console(stderr=True, highlight=False)
# What a model writes may not move the cursor or ring the bell.
CONTROLS = {code: None for code in (*range(32), *range(127, 160)) if chr(code) not in "\n\t"}


def note(text: str, console: Console = notes) -> None:
    """A quiet line."""
    console.print(text, style="dim", markup=False, soft_wrap=True)


def progress_bar(description: str) -> Progress:
    """A bar on stderr that is gone afterwards, and nothing where nobody watches."""
    percent = TextColumn("{task.percentage:3.0f} %")
    columns = TextColumn(description), BarColumn(), percent, TimeRemainingColumn()
    return Progress(*columns, console=notes, transient=True, disable=not notes.is_terminal)


class Wrapped:
    """Writes text to stdout; in a terminal word by word, so that no line breaks within one."""

    def __init__(self):
        self.width = out.width if out.is_terminal else 0  # 0: nothing is wrapped
        self.column, self.word = 0, ""

    def write(self, text: str) -> None:
        if not self.width:
            sys.stdout.write(text)
        for character in text if self.width else "":
            alone = character.isspace() or cell_len(character) == 2  # Chinese breaks anywhere
            if alone or len(self.word) >= self.width:
                self.put_word()
            if character.isspace():
                self.put_space(character)
            else:
                self.word += character
        sys.stdout.flush()

    def finish(self) -> None:
        self.put_word()
        sys.stdout.flush()

    def put_word(self) -> None:
        length = cell_len(self.word)
        if self.column and self.column + length > self.width:
            self.put_space("\n")
        sys.stdout.write(self.word)
        self.column, self.word = self.column + length, ""

    def put_space(self, character: str) -> None:
        if self.column + 1 >= self.width and character != "\n":
            character = "\n"
        sys.stdout.write(character)
        self.column = 0 if character == "\n" else self.column + 1


class Display:
    """Shows one answer: a bar while a long text is read, then the text."""

    def __init__(self, label: str, longest_unseen: int):
        """label: stands before the answer. longest_unseen: tokens that are read without a bar."""
        self.longest_unseen, self.bar, self.output = longest_unseen, None, Wrapped()
        self.label = label

    def reading(self, done: int, total: int) -> None:
        if total <= self.longest_unseen:
            return
        if self.bar is None:
            self.bar = progress_bar(f"reading {total:,} tokens")
            self.bar.start()
            self.task = self.bar.add_task("", total=total)
        self.bar.update(self.task, completed=done)

    def text(self, text: str) -> None:
        if text:
            self.stop_bar()
            self.output.write(self.label + text.translate(CONTROLS))
            self.label = ""

    def close(self) -> None:
        self.stop_bar()
        self.output.finish()

    def stop_bar(self) -> None:
        if self.bar is not None:
            self.bar.stop()
            self.bar = None


def forgiving_streams() -> None:
    """What a terminal cannot show, or sent and is no text, becomes a replacement character, not an error."""
    for file in (sys.stdin, sys.stdout, sys.stderr):
        if hasattr(file, "reconfigure"):
            file.reconfigure(errors="replace")


def edit_lines() -> None:
    """Arrow keys and history at the prompt where Python brings them; Windows has its own."""
    try:
        import readline  # noqa: F401
    except ModuleNotFoundError:
        pass
