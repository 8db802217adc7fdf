"""Tests in several processes (pytest-xdist): what they share, and whose turn it is."""

import os
from contextlib import ExitStack, contextmanager
from pathlib import Path

from filelock import FileLock

# of tests/grading: their tests share one course, which is costly to make
SHARING = {f"test_{name}.py" for name in ("class", "formgrader", "grade", "habits", "honest")}
NAME = "TINYTORCH_TESTS_SHARE"  # the folder that the first process made for all of them


def shared_folder() -> Path:
    return Path(os.environ[NAME])


def lock(name: str) -> FileLock:
    """Held by one process of this run at a time."""
    return FileLock(shared_folder() / f"{name}.lock", poll_interval=0.01)


@contextmanager
def turn(*, alone: bool):
    """While a test that must be alone runs, the other processes run none.

    Each process holds its own seat while it tests, and one that must be alone holds them all. They take
    seats one at a time, so that it waits for the tests that are running and for no later one.
    """
    me = os.environ.get("PYTEST_XDIST_WORKER")
    seats = [f"gw{number}" for number in range(int(os.environ["PYTEST_XDIST_WORKER_COUNT"]))] if me else []
    with ExitStack() as taken:
        with lock("door"):
            for seat in seats if alone else seats and [me]:
                taken.enter_context(lock(seat))
        yield


def scheduler(config, log):
    """Any test in any process, but all of a file that shares something costly in one.

    (pytest-xdist 3.8 does not see its own `xdist_group` marks under pytest 9.2.)
    """
    from xdist.scheduler import LoadScopeScheduling

    class FilesTogether(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            path = nodeid.partition("::")[0]
            return path if path.rpartition("/")[2] in SHARING else nodeid

    return FilesTogether(config, log)
