"""Where a student's code runs: in bubblewrap, with limits, and with an end whatever it does."""

import contextlib
import json
import os
import queue
import shutil
import signal
import subprocess
import sys
import sysconfig
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import IO

from tinytorch.tito.process.worker import Outcome, Worker
from tinytorch.tito.project import TitoError

HERE = Path(__file__).resolve().parent
SYSTEM = ("/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/etc/ld.so.cache", "/etc/alternatives")
REPORT_LIMIT = 20_000_000  # characters read from one process
LINE_LIMIT = 4_000_000
PATIENCE = 4  # a cell that only waits may take so many times its seconds
STOP = threading.Event()  # set: every guarded process is to end now


@dataclass(frozen=True)
class Limits:
    """Seconds of a cell are the processor's, so that a busy machine costs nobody a point."""

    cell_seconds: float = 30.0
    wall_seconds: float = 300.0  # wall clock, one process
    cpu_seconds: int = 120  # one process
    memory_bytes: int = 4_000_000_000  # address space of one process
    resident_bytes: int = 2_000_000_000  # memory in use by all processes together
    processes: int = 64
    file_bytes: int = 64_000_000
    disk_bytes: int = 256_000_000  # all temporary files together, kept in memory


@cache
def find_bwrap() -> str:
    """The bubblewrap program; TitoError that says how to get it if it is not there or does not work."""
    bwrap = shutil.which("bwrap")
    if bwrap is None:
        raise TitoError(
            "Grading runs students' code in bubblewrap, which is not installed: `sudo apt install "
            "bubblewrap` (Debian, Ubuntu), `sudo dnf install bubblewrap` (Fedora). Where there is none, "
            "--no-sandbox grades without: students' code can then read and change whatever you can."
        )
    trial = [bwrap, "--ro-bind", "/", "/", "--unshare-all", "--die-with-parent", "--", "/bin/true"]
    done = subprocess.run(trial, capture_output=True, text=True)
    if done.returncode:
        raise TitoError(
            f"bubblewrap does not work here ({done.stderr.strip() or 'no reason given'}); allow user "
            "namespaces, or grade with --no-sandbox."
        )
    return bwrap


@dataclass(frozen=True)
class Sandbox:
    walls: bool  # False: without a sandbox, limits only
    hidden: tuple[Path, ...]  # folders that must not be seen: the project, the course
    limits: Limits = Limits()

    def start(self, script: str, root: Path, flags: tuple[str, ...] = ()) -> "Guarded":
        """Starts one of our scripts, with `root` to be read, and watches over it."""
        limits = asdict(self.limits)
        if not self.walls:
            limits["processes"] = 0  # would count the user's own processes too
        home = None if self.walls else tempfile.mkdtemp(prefix="tito-home-")
        place = Path("/tito") if self.walls else HERE
        command = [sys.executable, "-I", str(place / "limited_script.py"), json.dumps(limits)]
        command += [sys.executable, "-s", "-P", "-B", *flags, str(place / script)]
        env = {
            "HOME": home or "/home/student",
            "TMPDIR": home or "/tmp",
            "HYPOTHESIS_STORAGE_DIRECTORY": (home or "/tmp") + "/hypothesis",
            "MPLCONFIGDIR": (home or "/tmp") + "/matplotlib",
            "PATH": "/usr/bin:/bin",
            "LANG": "C.UTF-8",
            "PYTHONUTF8": "1",
            "PYTHONHASHSEED": "0",
            "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
            "MPLBACKEND": "Agg",
            "OPENBLAS_NUM_THREADS": "1",
            "OMP_NUM_THREADS": "1",
            "MKL_NUM_THREADS": "1",
        }
        if "SYSTEMROOT" in os.environ:
            env["SYSTEMROOT"] = os.environ["SYSTEMROOT"]
        if self.walls:
            command = [*self._walls(root, script), "--", *command]
        process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            cwd=home or "/",
            env=env,
            encoding="utf-8",
            errors="replace",
            start_new_session=True,
        )
        return Guarded(process, self.limits, home)

    def _walls(self, root: Path, script: str) -> list[str]:
        size = ["--size", str(self.limits.disk_bytes)]
        walls = [find_bwrap(), "--unshare-all", "--die-with-parent", "--new-session", "--hostname", "sandbox"]
        walls += ["--proc", "/proc", "--dev", "/dev", *size, "--tmpfs", "/dev/shm", "--remount-ro", "/dev"]
        walls += [*size, "--tmpfs", "/tmp", *size, "--tmpfs", "/home/student", "--chdir", "/home/student"]
        shown: dict[Path, str] = {}
        for name in SYSTEM:
            if os.path.islink(name):
                walls += ["--symlink", os.readlink(name), name]
            elif os.path.exists(name):
                shown[Path(name)] = "--ro-bind"
        for folder in (sys.base_prefix, sys.prefix):
            shown[Path(folder)] = "--ro-bind"
        for folder in {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}:
            if (Path(folder) / "tinytorch").is_dir():  # installed with its solutions
                shown[Path(folder) / "tinytorch"] = "--tmpfs"
        for folder in self.hidden:  # on another machine they may not be there
            if folder.is_dir() and any(folder.is_relative_to(other) for other in shown):
                shown[folder] = "--tmpfs"
        for folder in sorted(shown, key=lambda path: len(path.parts)):
            how = shown[folder]
            walls += [how, str(folder)] if how == "--tmpfs" else [how, str(folder), str(folder)]
        for name in ("limited_script.py", script):
            walls += ["--ro-bind", str(HERE / name), f"/tito/{name}"]
        return [*walls, "--ro-bind", str(root), str(root), "--remount-ro", "/"]


class Guarded:
    """A running process and all that it started; ended when it takes too long, or too much."""

    def __init__(self, process: subprocess.Popen, limits: Limits, home: str | None):
        import psutil  # here, so that the help of a command that grades needs no extra

        self.psutil = psutil
        self.process, self.limits, self.home = process, limits, home
        self.reason = ""
        self.cpu_seconds = 0.0  # of the process and all that it started
        self._family = {self.psutil.Process(process.pid)}  # everybody ever seen
        self._over = threading.Event()
        self.thread = threading.Thread(target=self._watch, daemon=True)
        self.thread.start()

    def _watch(self) -> None:
        end = time.monotonic() + self.limits.wall_seconds
        while not self._over.wait(0.1):
            count, resident = self._weigh()
            if STOP.is_set():
                self.reason = "the grading was interrupted"
            elif time.monotonic() > end:
                self.reason = f"it did not end within {self.limits.wall_seconds:g} seconds"
            elif count > self.limits.processes:
                self.reason = f"it started more than {self.limits.processes} processes"
            elif resident > self.limits.resident_bytes:
                self.reason = f"it used more than {self.limits.resident_bytes // 10**6} MB of memory"
            if self.reason:
                self._kill()
                return

    def _look_around(self) -> None:
        with contextlib.suppress(self.psutil.NoSuchProcess):
            self._family.update(self.psutil.Process(self.process.pid).children(recursive=True))

    def _weigh(self) -> tuple[int, int]:
        """How many processes there are, and the bytes of memory that they use."""
        count, resident, seconds = 0, 0, 0.0
        self._look_around()
        for member in self._family:
            try:
                resident += member.memory_info().rss
                times = member.cpu_times()
            except (self.psutil.NoSuchProcess, self.psutil.AccessDenied):
                continue  # it has just ended
            count += 1
            seconds += times.user + times.system
            seconds += getattr(times, "children_user", 0) + getattr(times, "children_system", 0)
        self.cpu_seconds = max(self.cpu_seconds, seconds)
        return count - 1, resident

    def _kill(self) -> None:
        self._look_around()
        for member in self._family:  # one that left its group too; psutil knows a number used anew
            with contextlib.suppress(self.psutil.NoSuchProcess, self.psutil.AccessDenied):
                member.kill()
        if hasattr(os, "killpg"):
            with contextlib.suppress(ProcessLookupError, PermissionError):  # all of them have ended
                os.killpg(self.process.pid, signal.SIGKILL)
        self.process.kill()

    def close(self) -> None:
        self._over.set()
        self.thread.join()
        self._kill()
        self.process.wait()
        for stream in (self.process.stdin, self.process.stdout, self.process.stderr):
            with contextlib.suppress(OSError, ValueError):  # what could not be written any more
                stream.close()
        if self.home:
            shutil.rmtree(self.home, ignore_errors=True)


class SandboxWorker(Worker):
    """Runs a notebook's cells in the sandbox."""

    def __init__(self, sandbox: Sandbox, root: Path):
        super().__init__(root=root)
        self.sandbox = sandbox
        self.guarded: Guarded | None = None
        self.end = time.monotonic() + sandbox.limits.wall_seconds
        self.reasons: list[str] = []

    def _run_once(self, code, stuck, outcomes, time_limit, root, progress):
        if time.monotonic() > self.end:
            self.reasons.append(f"it did not end within {self.sandbox.limits.wall_seconds:g} seconds")
            return True, None
        finished, culprit = super()._run_once(code, stuck, outcomes, time_limit, root, progress)
        reason = self.guarded.reason if self.guarded else ""
        if reason and culprit is not None:
            self.reasons.append(reason)
            error = "Timeout" if "seconds" in reason else "Crash"
            outcomes[culprit] = Outcome(ok=False, error=error, message=reason)
        return finished, culprit

    def _next_event(self, limit: float) -> dict | None:
        began, used = time.monotonic(), self.guarded.cpu_seconds
        while True:
            try:
                return self.events.get(timeout=0.1)
            except queue.Empty:
                waited = time.monotonic() - began
                if self.guarded.cpu_seconds - used > limit or waited > PATIENCE * limit:
                    raise

    def _start(self) -> None:
        if self.process is not None and self.process.poll() is None:
            return
        self.close()
        self.guarded = self.sandbox.start("cells_script.py", Path(self.root))
        self.process = self.guarded.process
        self.events = events = _Events()
        self.complaints = []
        self.threads = [
            threading.Thread(target=self._read, args=(self.process.stdout, events.put_line), daemon=True),
            threading.Thread(target=self._read, args=(self.process.stderr, self._complain), daemon=True),
        ]
        for thread in self.threads:
            thread.start()

    def _read(self, stream, take) -> None:
        for line in bounded_lines(stream):
            take(line)
        if take != self._complain:
            self.events.put(None)

    def _complain(self, line: str) -> None:
        self.complaints.append(line[:500])
        del self.complaints[:-50]

    def close(self) -> None:
        if self.guarded is not None:
            self.guarded.close()
        super().close()


class _Events(queue.Queue):
    def put_line(self, line: str) -> None:
        try:
            event = json.loads(line)
        except (ValueError, RecursionError):
            return  # not ours: something else wrote to the pipe
        if isinstance(event, dict) and "event" in event:
            self.put(event)


def bounded_lines(stream: IO[str]) -> Iterator[str]:
    """The lines of a pipe until it ends, or until it has said more than anybody wants to read."""
    size = 0
    try:
        while line := stream.readline(LINE_LIMIT):
            size += len(line)
            if size > REPORT_LIMIT:
                return
            yield line
    except ValueError:
        return  # the pipe was closed while it was read
