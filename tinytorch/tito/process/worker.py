"""Runs a notebook's cells in a Python process of their own and says what became of each part."""

# No Jupyter kernel is needed. Each code cell is executed apart, so that one error costs only what depends on
# it. The process is `cells_script.py`; here it is started, watched and read, and its outcomes become results.

import contextlib
import json
import os
import queue
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Self

from tinytorch.tito.notebook.cells import Cell
from tinytorch.tito.notebook.python import as_python
from tinytorch.tito.process.outcomes import MAX_STUCK, MESSAGE_LIMIT, Outcome, Report, judge
from tinytorch.tito.project import TitoError

TIME_LIMIT = 60.0  # seconds for one cell
# The arrays here are small: several threads are no faster, and on a busy machine several times slower.
THREADS = ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS", "VECLIB_MAXIMUM_THREADS")


class RunnerError(TitoError):
    """Something outside the student's code is wrong; the text is one plain sentence."""


class Worker:
    """A Python process that runs notebooks, one after the other, each from fresh imports of tinytorch.

    A cell that does not end, or ends the process, costs itself: the process is started again without it.
    """

    def __init__(self, root: Path | None = None, cwd: Path | None = None, python: str = sys.executable):
        self.root = str(Path(root).resolve()) if root else None
        self.cwd = cwd
        self.python = python
        self.process: subprocess.Popen | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
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
        code = [cell for cell in cells if cell.is_code and cell.runs]
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
        cells = [[cell.index, as_python(cell.source), cell.is_test] for cell in by_index.values()]
        job = {"root": root, "cells": cells}
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

    def close(self) -> None:
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
