"""The process in which a notebook's cells run, one job after the other; `runner.py` starts and reads it."""

# It is run as a script, uses the standard library alone and imports nothing of this package but `tinytorch`
# itself. A job is one line of JSON on stdin: {"root": folder that holds tinytorch, or null, "cells": [[index,
# source, is it a graded test], ...]}. Events, one a line, leave by what was stdout when Python began.

import __future__

import builtins
import gc
import io
import json
import linecache
import os
import re
import sys
import time
import traceback
import types
import warnings
from typing import Any

OUTPUT_LIMIT = 20_000  # characters kept of what one cell prints
MESSAGE_LIMIT = 2_000


class _Tail(io.TextIOBase):
    """What a cell prints, up to a limit."""

    encoding = "utf-8"

    def __init__(self):
        self.pieces, self.size = [], 0

    def writable(self) -> bool:
        return True

    def write(self, text: str) -> int:
        room = OUTPUT_LIMIT - self.size
        if room > 0:
            self.pieces.append(text[:room])
            self.size += len(text)
        return len(text)

    def text(self) -> str:
        return "".join(self.pieces)


class _NoInput(io.TextIOBase):
    def readable(self) -> bool:
        return True

    def readline(self, size: int = -1) -> str:
        raise EOFError("there is nobody to type an answer here; take the `input(...)` out of the cell")

    read = readline


FUTURE = __future__.annotations.compiler_flag  # the one that is no part of Python yet


_STUB = re.compile(r"\s*raise NotImplementedError(\(\s*\))?\s*(#.*)?$")


def _frames(error, sources) -> list[dict]:
    """The frames of the cells and of what they call, outermost first."""
    found = []
    if isinstance(error, SyntaxError) and error.filename in sources:
        cell, source = sources[error.filename]
        lines = source.split("\n")
        line = error.lineno or 1
        code = lines[line - 1].strip() if line <= len(lines) else ""
        return [{"cell": cell, "file": "", "line": line, "code": code}]
    for frame in traceback.extract_tb(error.__traceback__):
        if frame.filename in sources:
            cell, source = sources[frame.filename]
            lines = source.split("\n")
            code = lines[frame.lineno - 1].strip() if 0 < frame.lineno <= len(lines) else ""
            found.append({"cell": cell, "file": "", "line": frame.lineno, "code": code})
        elif found and frame.filename != __file__:
            found.append({"cell": None, "file": _short(frame.filename), "line": frame.lineno, "code": ""})
    return found if len(found) <= 40 else found[:20] + found[-20:]


def _short(filename: str) -> str:
    pieces = filename.replace("\\", "/").split("/")
    if "tinytorch" in pieces:
        last = len(pieces) - 1 - pieces[::-1].index("tinytorch")
        return "/".join(pieces[last:])
    return "/".join(pieces[-2:])


def _chain(error):
    seen = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or error.__context__


def _text_of(error, sources) -> str:
    if isinstance(error, SyntaxError):
        inside = error.filename in sources or not error.filename
        return error.msg if inside else f"{error.msg} ({_short(error.filename)}, line {error.lineno})"
    if isinstance(error, KeyError) and error.args:
        return f"{error.args[0]!r} is not there"
    try:
        return str(error)
    except Exception as inner:
        return f"(its text cannot be shown: {type(inner).__name__})"


def _run_cell(index, source, is_test, namespace, sources, futures) -> dict:
    filename = f"<cell {index}>"
    sources[filename] = (index, source)
    linecache.cache[filename] = (len(source), None, source.splitlines(keepends=True), filename)
    result: dict[str, Any] = {
        "ok": True,
        "error": "",
        "message": "",
        "frames": [],
        "missing": None,
        "stub": False,
    }
    result["stub_cell"] = None
    stdout, stderr = _Tail(), _Tail()
    began = time.perf_counter()
    before = sys.stdout, sys.stderr
    try:
        with warnings.catch_warnings():  # also lets a warning of an earlier cell show again
            sys.stdout, sys.stderr = stdout, stderr
            code = compile(source, filename, "exec", flags=sum(futures), dont_inherit=True)
            if code.co_flags & FUTURE:
                futures.add(FUTURE)  # as in a kernel, it holds for the cells below
            exec(code, namespace)
    except BaseException as error:
        frames = _frames(error, sources)
        result.update(
            ok=False,
            error=type(error).__name__,
            message=_text_of(error, sources)[:MESSAGE_LIMIT],
            frames=frames,
        )
        if isinstance(error, SystemExit):
            result["message"] = "a cell must not end Python; take the exit() out"
        if isinstance(error, AssertionError) and not result["message"]:
            code = frames[-1]["code"] if frames else ""
            result["message"] = f"this does not hold: {code.removeprefix('assert ')}"
        if isinstance(error, (NameError, AttributeError)):
            result["missing"] = getattr(error, "name", None)
        for link in _chain(error):
            inner = _frames(link, sources)
            if isinstance(link, NotImplementedError) and inner and _STUB.match(inner[-1]["code"]):
                result.update(stub=True, stub_cell=inner[-1]["cell"])
    finally:
        sys.stdout, sys.stderr = before
    result.update(stdout=stdout.text(), stderr=stderr.text(), seconds=time.perf_counter() - began)
    if is_test and result["ok"] and result["stderr"].strip():
        said = result["stderr"].strip()[:MESSAGE_LIMIT]
        result.update(
            ok=False, error="Warning", message=f"{said}\n(a grader counts any warning as a failure)"
        )
    return result


def _run_job(job, send):
    for name in [name for name in sys.modules if name.partition(".")[0] == "tinytorch"]:
        del sys.modules[name]
    if job["root"]:
        sys.path.insert(0, job["root"])
    try:
        import tinytorch  # noqa: F401
    except ImportError as error:
        send({"event": "broken", "message": f"The package tinytorch cannot be imported: {error}."})
        return
    finally:
        if job["root"]:
            sys.path.remove(job["root"])  # its other files must not pass for modules
    main = types.ModuleType("__main__")
    main.__dict__.update(__builtins__=builtins, display=lambda *values: print(*values, sep="\n"))
    sys.modules["__main__"] = main
    sources, futures = {}, set()
    for index, source, is_test in job["cells"]:
        send({"event": "begin", "cell": index})
        send(
            {
                "event": "end",
                "cell": index,
                **_run_cell(index, source, is_test, main.__dict__, sources, futures),
            }
        )
    for filename in sources:
        linecache.cache.pop(filename, None)
    main.__dict__.clear()
    if "numpy" in sys.modules:
        sys.modules["numpy"].seterr(divide="warn", over="warn", under="ignore", invalid="warn")
    gc.collect()


def _child():
    """Read jobs, one a line, from stdin; write events, one a line, to what was stdout when Python began."""
    jobs = os.fdopen(os.dup(0), encoding="utf-8")
    events = os.fdopen(os.dup(1), "w", encoding="utf-8")
    null = os.open(os.devnull, os.O_RDWR)
    os.dup2(null, 0)
    os.dup2(null, 1)
    sys.stdin = _NoInput()

    def send(event):
        events.write(json.dumps(event) + "\n")
        events.flush()

    # OpenBLAS's, of finite numbers too: as in tinytorch/__init__.py, which not every notebook imports
    warnings.filterwarnings("ignore", "invalid value encountered in (matmul|dot)", RuntimeWarning)
    for line in jobs:
        with warnings.catch_warnings():
            _run_job(json.loads(line), send)
        send({"event": "done"})


if __name__ == "__main__":
    _child()
