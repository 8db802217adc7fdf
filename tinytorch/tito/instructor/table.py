"""A table as a spreadsheet may have saved it."""

import csv
import io
import re
from pathlib import Path

from tinytorch.tito.project import TitoError


def read_table(path: Path, needed: tuple[str, ...]) -> tuple[list[str], list[dict[str, str]]]:
    """A CSV file -> its columns and rows; with a byte order mark, semicolons or tabs, and decimal commas.

    TitoError if it cannot be read or has not the columns that are needed.
    """
    advice = "move it away, or save it as CSV in UTF-8"
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise TitoError(f"{path} is not UTF-8 text (byte {error.start}); {advice}.") from None
    first, _, rest = text.partition("\n")
    if first.lower().startswith("sep="):  # a line of Excel's own
        first, text = rest.partition("\n")[0], rest
    mark = max(",;\t", key=first.count)
    try:
        reader = csv.DictReader(io.StringIO(text, newline=""), delimiter=mark, restval="", strict=True)
        rows, columns = list(reader), list(reader.fieldnames or ())
    except csv.Error as error:
        raise TitoError(f"{path} is not a table that can be read ({error}); {advice}.") from None
    missing = [name for name in needed if name not in columns]
    if missing:
        raise TitoError(f"{path} has no column {' and no column '.join(missing)}; {advice}.")
    longer = [number for number, row in enumerate(rows, 2) if None in row]
    if longer:
        raise TitoError(f"Row {longer[0]} of {path} has more than {len(columns)} values; {advice}.")
    if mark == ";":
        for row in rows:
            row |= {name: re.sub(r"^(-?\d+),(\d+)$", r"\1.\2", value) for name, value in row.items()}
    return columns, [row for row in rows if any(row.values())]
