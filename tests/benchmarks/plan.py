"""The plan of every measurement: each contender in a process of its own, all in turn, ratios round by round.

The bandwidth of a machine drifts by a factor of 2 within minutes, so two times are compared only if one was
taken right after the other. The threads of one library spin for a while after its work is done, so two
libraries never share a process, and a pause lets them fall asleep before the next one runs.
"""

import json
import os
import subprocess
import sys
from collections import defaultdict
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from time import sleep

import numpy as np

FOLDER = Path(__file__).resolve().parent
ROOT = FOLDER.parents[1]
THREADS = ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS", "VECLIB_MAXIMUM_THREADS")
PAUSE = 0.1  # seconds before each turn


class WorkerFailed(Exception):
    """A contender's process ended before it answered; its own words are on stderr."""


class Worker:
    """A process in which one contender waits for jobs.

    contender: "file:Class"; setup: for the class; python: of another environment.
    """

    def __init__(self, contender: str, threads: int, python: str = sys.executable, **setup):
        self.contender = contender
        path = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
        env = os.environ | dict.fromkeys(THREADS, str(threads)) | {"PYTHONPATH": os.pathsep.join(path)}
        self.process = subprocess.Popen(
            [python, str(FOLDER / "worker.py"), contender, json.dumps(setup)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=env,
        )

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.kill()
        self.process.communicate()

    def ask(self, task: str, **options) -> dict:
        """Have the contender do `task` -> what it says. Raises WorkerFailed if its process has ended."""
        try:
            self.process.stdin.write(json.dumps({"task": task, **options}) + "\n")
            self.process.stdin.flush()
            line = self.process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            status = self.process.wait()
            raise WorkerFailed(f"the process of {self.contender} ended with status {status} in {task!r}")
        return json.loads(line)


@dataclass
class Job:
    """What one contender does in its turn. rounds: fewer than the others, for a slow one."""

    worker: Worker
    task: str
    options: dict = field(default_factory=dict)
    rounds: int | None = None

    def run(self) -> dict:
        return self.worker.ask(self.task, **self.options)


def in_turn(jobs: dict, rounds: int, warm_up: bool = True) -> dict:
    """name -> Job; A B A B, `rounds` times after one that does not count -> name -> what it said in each."""
    said = defaultdict(list)
    for turn in range(0 if warm_up else 1, rounds + 1):
        for name, job in jobs.items():
            if job.rounds is not None and turn > job.rounds:
                continue
            sleep(PAUSE)
            answer = job.run()
            if turn:
                said[name].append(answer)
    return dict(said)


@dataclass(frozen=True)
class Plan:
    """How much is measured. quick: the part without PyTorch, in under two minutes."""

    threads: int
    rounds: int = 5
    quick: bool = False
    every_step: bool = False

    def workers(self, stack: ExitStack, contenders: dict, **setup) -> dict:
        """name -> "file:Class" or ("file:Class", more setup) -> name -> Worker, closed with the stack."""
        workers = {}
        for name, contender in contenders.items():
            kind, more = contender if isinstance(contender, tuple) else (contender, {})
            workers[name] = stack.enter_context(Worker(kind, self.threads, **setup, **more))
        return workers


def spread(values) -> dict:
    """-> median, lowest and highest of some measured values, to four digits, and how many they are."""
    values = [float(value) for value in values]
    low, median, high = (float(f"{v:.4g}") for v in (min(values), np.median(values), max(values)))
    return {"median": median, "low": low, "high": high, "rounds": len(values)}


def figure(said: list, key: str) -> dict:
    """The spread of one figure over the rounds."""
    return spread(answer[key] for answer in said)


def ratio(above: list, below: list, key: str) -> dict:
    """The spread of a ratio that is taken in each round, between neighbours in time."""
    return spread(a[key] / b[key] for a, b in zip(above, below, strict=False))
