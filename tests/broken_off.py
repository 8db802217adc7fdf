"""Break a call off at any of its lines, as Ctrl-C may: which lines there are, and what is left then."""

import ast
import sys
from functools import cache
from pathlib import Path


class BrokenOff(BaseException):
    """Nobody catches it by mistake."""


@cache
def cleaning_up(path: str) -> frozenset:
    """The lines of a file that run when something has gone wrong already: what breaks them off is a second
    mishap, which no program can survive."""
    lines = set()
    for node in ast.walk(ast.parse(Path(path).read_text(encoding="utf-8"))):
        if isinstance(node, ast.Try):
            for part in (*node.handlers, *node.finalbody):
                lines.update(range(part.lineno, part.end_lineno + 1))
    return frozenset(lines)


def traced(call, files, at=None) -> list:
    """Run `call` -> (file, line) of each line of these files that it comes to; before that at `at`, it stops.

    files: modules. Lines that clean up after an error are left out.
    """
    paths = {module.__file__ for module in files}
    lines = []

    def line(frame, event, _):
        path = frame.f_code.co_filename
        if event == "line" and frame.f_lineno not in cleaning_up(path):
            if len(lines) == at:
                sys.settrace(None)
                raise BrokenOff(f"{path}:{frame.f_lineno}")
            lines.append((path, frame.f_lineno))
        return line

    def enter(frame, event, _):
        return line if frame.f_code.co_filename in paths else None

    before = sys.gettrace()
    sys.settrace(enter)
    try:
        call()
    finally:
        sys.settrace(before)
    return lines


def first_visits(lines: list) -> list:
    """-> where each line is come to for the first time."""
    return [place for place, line in enumerate(lines) if line not in lines[:place]]
