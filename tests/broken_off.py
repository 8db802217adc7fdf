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


@cache
def blocks(path: str) -> dict:
    """The line of each `with` of a file -> the lines inside it."""
    nodes = ast.walk(ast.parse(Path(path).read_text(encoding="utf-8")))
    return {n.lineno: range(n.body[0].lineno, n.end_lineno + 1) for n in nodes if isinstance(n, ast.With)}


def traced(call, files, at=None) -> list:
    """Run `call` -> (file, line) of each line of these files that it comes to; before that at `at`, it stops.

    files: modules. Lines that clean up after an error are left out, and so is a `with` that is come to from
    inside, to be left: no signal is looked at there (CPython looks after calls and at the end of loops), and
    what is raised by a trace function would leave a lock locked for good.
    """
    paths = {module.__file__ for module in files}
    lines = []

    def watch(path):
        before = 0  # the line of this call that came last

        def line(frame, event, _):
            nonlocal before
            if event == "line":
                leaves = before in blocks(path).get(frame.f_lineno, ())
                before = frame.f_lineno
                if not leaves and frame.f_lineno not in cleaning_up(path):
                    if len(lines) == at:
                        sys.settrace(None)
                        raise BrokenOff(f"{path}:{frame.f_lineno}")
                    lines.append((path, frame.f_lineno))
            return line

        return line

    def enter(frame, event, _):
        return watch(frame.f_code.co_filename) if frame.f_code.co_filename in paths else None

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
