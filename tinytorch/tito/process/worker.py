"""Runs a notebook's cells in a Python process of their own and says what became of each part."""

# No Jupyter kernel is needed. Each code cell is executed apart, so that one error costs only what depends on
# it. The process is `cells_script.py`; here it is started, watched and read, and its outcomes become results.

import ast
import contextlib
import json
import os
import queue
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from tinytorch.tito.project import parse_python

TIME_LIMIT = 60.0  # seconds for one cell
MAX_STUCK = 4  # after so many cells that never ended, the rest is not run
MESSAGE_LIMIT = 2_000
# The arrays here are small: several threads are no faster, and on a busy machine several times slower.
THREADS = ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS", "VECLIB_MAXIMUM_THREADS")

PASSED = "passed"
FAILED = "failed"
UNWRITTEN = "not written yet"
BLOCKED = "blocked"
NOT_RUN = "not run"
MISSING = "missing"


class RunnerError(Exception):
    """Something outside the student's code is wrong; the text is one plain sentence."""


# ---------------------------------------------------------------------------------------------- notebooks


def read_notebook(path: Path) -> dict:
    """The notebook as a dictionary, every cell's source as one string; RunnerError if it is none."""
    path = Path(path)
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except FileNotFoundError:
        raise RunnerError(f"There is no notebook at {path}.") from None
    except UnicodeDecodeError as error:
        raise RunnerError(
            f"{path} is not a notebook: byte {error.start} is not UTF-8. Was it opened in another program?"
        ) from None
    except OSError as error:
        raise RunnerError(f"{path} cannot be read: {error.strerror or error}.") from None
    try:
        notebook = json.loads(text)
    except (ValueError, RecursionError) as error:
        where = f" at line {error.lineno}" if isinstance(error, json.JSONDecodeError) else ""
        raise RunnerError(
            f"{path} is not a notebook: its JSON is broken{where}. Was the file cut off while it was saved?"
        ) from None
    problem = _problem_of_notebook(notebook)
    if problem:
        raise RunnerError(f"{path} is not a notebook that can be used here: {problem}.")
    for cell in notebook["cells"]:
        if isinstance(cell["source"], list):
            cell["source"] = "".join(cell["source"])
    return notebook


def _problem_of_notebook(notebook) -> str | None:
    if not isinstance(notebook, dict):
        return "it holds no object with cells"
    if notebook.get("nbformat") != 4:
        return f"its format is {notebook.get('nbformat')!r}, needed is 4"
    cells = notebook.get("cells")
    if not isinstance(cells, list):
        return "it has no list of cells"
    for number, cell in enumerate(cells, 1):
        if not isinstance(cell, dict):
            return f"cell {number} is not an object"
        source = cell.get("source")
        lines = source if isinstance(source, list) else [source]
        if not all(isinstance(line, str) for line in lines):
            return f"cell {number} has no source text"
        if not isinstance(cell.get("cell_type"), str) or not isinstance(cell.get("metadata", {}), dict):
            return f"cell {number} has no type or no metadata"
        tags = cell.get("metadata", {}).get("nbgrader", {})
        if not isinstance(tags, dict) or not isinstance(tags.get("grade_id", ""), str):
            return f"cell {number} has unreadable grading metadata"
        points = tags.get("points", 0)
        if isinstance(points, bool) or not isinstance(points, (int, float)):
            return f"cell {number} has unreadable points"
    return None


@dataclass
class Cell:
    """One cell of a notebook, as far as running it goes."""

    index: int  # place among all cells
    number: int  # place among the code cells, from 1: what [n] shows after Run All
    source: str
    is_code: bool = True
    grade_id: str | None = None
    graded: bool = False
    solution: bool = False
    locked: bool = False
    points: float = 0

    @property
    def is_test(self) -> bool:
        """Graded by the machine: a part."""
        return self.is_code and self.graded and not self.solution

    @property
    def is_written(self) -> bool:
        """Graded by a person."""
        return self.graded and not self.is_test

    @property
    def label(self) -> str:
        """How a student finds it."""
        if self.grade_id:
            return f"`{self.grade_id}`"
        for line in self.source.splitlines():
            line = line.strip()
            if line and not line.startswith("#"):
                return f"code cell {self.number} ({line if len(line) <= 40 else line[:37] + '...'})"
        return f"code cell {self.number}"


def cells_of(notebook: dict) -> list[Cell]:
    cells, number = [], 0
    for index, cell in enumerate(notebook["cells"]):
        is_code = cell["cell_type"] == "code"
        number += is_code
        source = cell["source"] if isinstance(cell["source"], str) else "".join(cell["source"])
        tags = cell.get("metadata", {}).get("nbgrader", {})
        cells.append(
            Cell(
                index=index,
                number=number,
                source=source,
                is_code=is_code,
                grade_id=tags.get("grade_id"),
                graded=bool(tags.get("grade")) or bool(tags.get("task")),
                solution=bool(tags.get("solution")) or bool(tags.get("task")),
                locked=bool(tags.get("locked")),
                points=tags.get("points", 0),
            )
        )
    return cells


# ------------------------------------------------------------------------------------------------ results


@dataclass
class Outcome:
    """What became of one cell."""

    ok: bool
    error: str = ""  # the exception's type, "Timeout" or "Crash"
    message: str = ""
    frames: list[dict] = field(default_factory=list)  # outermost first: cell or file, line, code
    missing: str | None = None  # the name that a NameError or AttributeError misses
    stub: bool = False  # the error is the stub of a solution that nobody wrote
    stub_cell: int | None = None
    stdout: str = ""
    stderr: str = ""
    seconds: float = 0.0


@dataclass
class Part:
    """What became of one graded test cell."""

    grade_id: str
    points: float
    status: str
    message: str = ""
    where: str = ""  # "line 3 of `causal-mask`: return x" for an error that is no failed check
    cause: str | None = None  # the cell that blocks it or is still to be written
    output: str = ""

    @property
    def earned(self) -> float:
        return self.points if self.status == PASSED else 0


@dataclass
class Report:
    """What became of a notebook."""

    parts: list[Part]
    written: list[Cell]  # the questions that a person marks
    outcomes: dict[int, Outcome]  # by cell index
    notes: list[str]  # errors in cells that no part depends on
    seconds: float

    @property
    def earned(self) -> float:
        return sum(part.earned for part in self.parts)

    @property
    def possible(self) -> float:
        return sum(part.points for part in self.parts)

    @property
    def passed(self) -> int:
        return sum(part.status == PASSED for part in self.parts)

    @property
    def ok(self) -> bool:
        return bool(self.parts) and self.passed == len(self.parts)

    def part(self, grade_id: str) -> Part:
        for part in self.parts:
            if part.grade_id == grade_id:
                return part
        raise KeyError(grade_id)


def run_notebook(
    notebook: dict | Path, *, root: Path | None = None, time_limit: float = TIME_LIMIT
) -> Report:
    """Run a notebook (a path, or what `read_notebook` returns) and judge its parts.

    `root` is the folder that holds the package `tinytorch`; None takes the installed one.
    """
    cwd = Path(notebook).resolve().parent if not isinstance(notebook, dict) else None
    if not isinstance(notebook, dict):
        notebook = read_notebook(notebook)
    with Worker(root=root, cwd=cwd) as worker:
        return worker.run(cells_of(notebook), time_limit=time_limit)


class Worker:
    """A Python process that runs notebooks, one after the other, each from fresh imports of tinytorch.

    A cell that does not end, or ends the process, costs itself: the process is started again without it.
    """

    def __init__(self, root: Path | None = None, cwd: Path | None = None, python: str = sys.executable):
        self.root = str(Path(root).resolve()) if root else None
        self.cwd = cwd
        self.python = python
        self.process = None

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def run(
        self,
        cells: list[Cell],
        *,
        time_limit: float = TIME_LIMIT,
        root: Path | None = None,
        progress: Callable[[Cell], None] | None = None,
    ) -> Report:
        """Run the code cells in order and judge the parts. `progress` hears of each cell that begins."""
        if not time_limit > 0:
            raise RunnerError(f"The time limit must be a positive number of seconds, not {time_limit}.")
        began = time.perf_counter()
        code = [cell for cell in cells if cell.is_code]
        root = str(Path(root).resolve()) if root else self.root
        outcomes: dict[int, Outcome] = {}
        stuck: set[int] = set()
        while True:
            finished, culprit = self._run_once(code, stuck, outcomes, time_limit, root, progress)
            if finished:
                break
            stuck.add(culprit)
            if len(stuck) == MAX_STUCK:
                break
        return judge(cells, outcomes, seconds=time.perf_counter() - began)

    def _run_once(self, code, stuck, outcomes, time_limit, root, progress) -> tuple[bool, int | None]:
        self._start()
        by_index = {cell.index: cell for cell in code if cell.index not in stuck}
        job = {"root": root, "cells": [[c.index, c.source, c.is_test] for c in by_index.values()]}
        current, limit = None, max(time_limit, TIME_LIMIT)
        try:
            self.process.stdin.write(json.dumps(job) + "\n")
            self.process.stdin.flush()
        except OSError:
            pass  # it is already dead: the end of its events says so below
        while True:
            try:
                event = self._next_event(limit)
            except queue.Empty:
                self.close()
                if current is None:
                    raise RunnerError(
                        f"Python did not begin to run the notebook within {limit:g} seconds."
                    ) from None
                outcomes[current] = Outcome(
                    ok=False,
                    error="Timeout",
                    message=f"it did not end within {limit:g} seconds; is there a loop that never stops?",
                    seconds=limit,
                )
                return False, current
            if event is None:
                status = self.process.wait()
                self.close()
                said = "".join(self.complaints)[-MESSAGE_LIMIT:].strip()
                if current is None:
                    raise RunnerError(f"Python could not run the notebook (exit status {status}): {said}")
                message = f"Python itself ended while it ran (exit status {status})"
                outcomes[current] = Outcome(ok=False, error="Crash", message=message, stderr=said)
                return False, current
            if event["event"] == "begin":
                current, limit = event["cell"], time_limit
                if progress is not None:
                    progress(by_index[current])
            elif event["event"] == "end":
                index = event.pop("cell")
                del event["event"]
                outcomes[index] = Outcome(**event)
            elif event["event"] == "broken":
                self.close()
                raise RunnerError(event["message"])
            elif event["event"] == "done":
                return True, None

    def _next_event(self, limit: float) -> dict | None:
        """What the process says next, None at its end; queue.Empty if it says nothing for too long."""
        return self.events.get(timeout=limit)

    def _start(self):
        if self.process is not None and self.process.poll() is None:
            return
        self.close()
        self.process = subprocess.Popen(
            [self.python, "-P", str(Path(__file__).with_name("cells_script.py"))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            cwd=self.cwd,
            env=clean_environment(),
            text=True,
            encoding="utf-8",
            errors="replace",
        )
        self.events: queue.Queue = queue.Queue()
        self.complaints: list[str] = []
        self.threads = [
            threading.Thread(target=_read_events, args=(self.process.stdout, self.events), daemon=True),
            threading.Thread(target=_read_tail, args=(self.process.stderr, self.complaints), daemon=True),
        ]
        for thread in self.threads:
            thread.start()

    def close(self):
        """End the process, if there is one."""
        if self.process is None:
            return
        self.process.kill()
        self.process.wait()
        for thread in self.threads:
            thread.join(timeout=1)  # a grandchild may hold the pipe open: the threads are daemons
        for stream in (self.process.stdin, self.process.stdout, self.process.stderr):
            with contextlib.suppress(OSError, ValueError):
                stream.close()
        self.process = None


def _read_events(stream, events):
    try:
        for line in stream:
            try:
                event = json.loads(line)
            except ValueError:
                continue  # not ours: something below Python wrote to the pipe
            if isinstance(event, dict) and "event" in event:
                events.put(event)
    except ValueError:
        pass  # the pipe was closed while it was read
    events.put(None)


def _read_tail(stream, lines):
    try:
        for line in stream:
            lines.append(line)
            del lines[:-50]
    except ValueError:
        pass


def clean_environment() -> dict[str, str]:
    """The user's environment without what would let files of the current folder pass for modules.

    NumPy takes one thread, as in the grader, unless the user says otherwise.
    """
    env = dict(os.environ)
    for name in ("PYTHONWARNINGS", "PYTHONSTARTUP", "PYTEST_ADDOPTS", "PYTEST_CURRENT_TEST"):
        env.pop(name, None)
    folders = [folder for folder in env.pop("PYTHONPATH", "").split(os.pathsep) if os.path.isabs(folder)]
    if folders:
        env["PYTHONPATH"] = os.pathsep.join(folders)
    env["MPLBACKEND"] = "Agg"
    for name in THREADS:
        env.setdefault(name, "1")
    return env


# ----------------------------------------------------------------------------------------------- judgement


def judge(cells: list[Cell], outcomes: dict[int, Outcome], seconds: float = 0.0) -> Report:
    """From each cell's outcome to each part's status."""
    by_index = {cell.index: cell for cell in cells}
    parts, used = [], set()
    for cell in cells:
        if cell.is_test:
            part, cause = _judge_part(cell, cells, by_index, outcomes)
            parts.append(part)
            used |= {cell.index, cause}
    notes = []
    for index, outcome in sorted(outcomes.items()):
        cell = by_index[index]
        if not (outcome.ok or outcome.stub or index in used or cell.is_test):
            if _source_of(outcome, cell, cells, outcomes) is None:
                what = describe(outcome)
                stops = "was stopped:" if outcome.error in ("Timeout", "Crash") else "stops with"
                notes.append(f"{cell.label} {stops} {what}{_at(outcome, by_index, cell)}")
    return Report(parts, [cell for cell in cells if cell.is_written], outcomes, notes, seconds)


def describe(outcome: Outcome) -> str:
    """ "ValueError: text", or only the text where the type says nothing to a student."""
    if outcome.error in ("", "AssertionError", "Warning", "Timeout", "Crash"):
        return outcome.message
    return f"{outcome.error}: {outcome.message}" if outcome.message else outcome.error


def _judge_part(cell, cells, by_index, outcomes) -> tuple[Part, int | None]:
    part = Part(cell.grade_id or cell.label, cell.points, PASSED)
    outcome = outcomes.get(cell.index)
    if outcome is None:
        part.status = NOT_RUN
        part.message = f"not run, because {MAX_STUCK} cells before it did not end"
        return part, None
    part.output = outcome.stdout + outcome.stderr
    if outcome.ok:
        return part, None
    if outcome.stub:
        part.status = UNWRITTEN
        stub = by_index.get(outcome.stub_cell)
        if stub is not None and stub.index != cell.index:
            part.cause = stub.label
            part.message = f"{stub.label} still holds its `raise NotImplementedError()`"
        return part, outcome.stub_cell
    source = _source_of(outcome, cell, cells, outcomes)
    if source is not None:
        first, part.cause = outcomes[source.index], source.label
        if first.stub:
            part.status = UNWRITTEN
            stub = by_index.get(first.stub_cell, source)
            part.cause = stub.label
            part.message = f"{stub.label} still holds its `raise NotImplementedError()`"
        else:
            part.status = BLOCKED
            part.message = f"by an error in {source.label}: {describe(first)}"
            part.where = _where(first, by_index, source)
        return part, source.index
    part.status = FAILED
    part.message = re.sub(
        r"<cell (\d+)>:(\d+)", lambda m: f"line {m[2]} of {by_index[int(m[1])].label}", describe(outcome)
    )
    if outcome.error != "AssertionError" or _own_frames(outcome, cell):
        part.where = _where(outcome, by_index, cell)
    return part, None


def _source_of(outcome, cell, cells, outcomes) -> Cell | None:
    """The first failed cell before this one without which the name that it misses does not exist."""
    seen = set()
    source = None
    while outcome.missing and outcome.missing not in seen:
        seen.add(outcome.missing)
        found = None
        for earlier in cells:
            if earlier.index >= cell.index:
                break
            failed = outcomes.get(earlier.index)
            if failed is not None and not failed.ok and not earlier.is_test:
                if outcome.missing in names_bound(earlier.source):
                    found = earlier
        if found is None:
            break
        source, cell, outcome = found, found, outcomes[found.index]
    return source


def names_bound(source: str) -> set[str]:
    """The global names, and attributes of them, that a cell makes; told without running it."""
    try:
        tree = parse_python(source)
    except (SyntaxError, ValueError, RecursionError):
        pattern = r"^\s*(?:def|class|async\s+def|import)\s+(\w+)|^\s*from\b.*\bimport\s+(.+)$|^(\w+)\s*=[^=]"
        found = re.findall(pattern, source, re.MULTILINE)
        return {name for groups in found for group in groups for name in re.findall(r"\w+", group)}
    names, queue_ = set(), [tree]
    while queue_:
        node = queue_.pop()
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            names.add(node.name)
            continue  # what a function's body binds is its own
        if isinstance(node, (ast.Lambda, ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)):
            continue
        if isinstance(node, ast.ClassDef):
            names.add(node.name)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            names.add(node.id)
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            names.add(node.attr)
        elif isinstance(node, (ast.Import, ast.ImportFrom)):
            names |= {(alias.asname or alias.name).split(".")[0] for alias in node.names}
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "setattr":
            if len(node.args) > 1 and isinstance(node.args[1], ast.Constant):
                names.add(str(node.args[1].value))
        queue_.extend(ast.iter_child_nodes(node))
    return names


def _own_frames(outcome, cell) -> list[dict]:
    return [frame for frame in outcome.frames if frame["cell"] not in (None, cell.index)]


def _where(outcome, by_index, cell) -> str:
    """The innermost line in a cell, the student's own before this one; the package's too, if it is deeper."""
    frames = _own_frames(outcome, cell) or [frame for frame in outcome.frames if frame["cell"] == cell.index]
    if not frames:
        return ""
    frame = frames[-1]
    label = by_index[frame["cell"]].label if frame["cell"] in by_index else cell.label
    text = f"line {frame['line']} of {label}"
    if frame["code"]:
        text += f": {frame['code']}"
    if outcome.frames[-1]["cell"] is None and "tinytorch" in outcome.frames[-1]["file"]:
        deepest = outcome.frames[-1]
        text += f" (raised in {deepest['file']}, line {deepest['line']})"
    return text


def _at(outcome, by_index, cell) -> str:
    where = _where(outcome, by_index, cell)
    return f" ({where})" if where else ""
