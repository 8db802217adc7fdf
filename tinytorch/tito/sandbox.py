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
from dataclasses import asdict, dataclass
from pathlib import Path

from tinytorch.tito.project import TitoError
from tinytorch.tito.runner import Outcome, Worker

HERE = Path(__file__).resolve().parent
SYSTEM = ("/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/etc/ld.so.cache", "/etc/alternatives")
REPORT_LIMIT = 20_000_000  # characters read from one process
LINE_LIMIT = 4_000_000
STOP = threading.Event()  # set: every guarded process is to end now


@dataclass(frozen=True)
class Limits:
    cell_seconds: float = 30.0  # wall clock, one cell
    wall_seconds: float = 300.0  # wall clock, one process
    cpu_seconds: int = 120
    memory_bytes: int = 4_000_000_000  # address space of one process
    resident_bytes: int = 2_000_000_000  # memory in use by all processes together
    processes: int = 64
    file_bytes: int = 64_000_000
    disk_bytes: int = 256_000_000  # all temporary files together, kept in memory


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
    bwrap: str | None  # None: without a sandbox, limits only
    hidden: tuple[Path, ...]  # folders that must not be seen: the project, the course
    limits: Limits = Limits()

    def start(self, script: str, root: Path, flags: tuple[str, ...] = ()) -> "Guarded":
        """Starts one of our scripts, with `root` to be read, and watches over it."""
        limits = asdict(self.limits)
        if self.bwrap is None:
            limits["processes"] = 0  # would count the user's own processes too
        home = tempfile.mkdtemp(prefix="tito-home-") if self.bwrap is None else None
        place = HERE if self.bwrap is None else Path("/tito")
        command = [sys.executable, "-I", str(place / "limited.py"), json.dumps(limits)]
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
            "MPLBACKEND": "Agg",
            "OPENBLAS_NUM_THREADS": "1",
            "OMP_NUM_THREADS": "1",
            "MKL_NUM_THREADS": "1",
        }
        if "SYSTEMROOT" in os.environ:
            env["SYSTEMROOT"] = os.environ["SYSTEMROOT"]
        if self.bwrap is not None:
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
        walls = [self.bwrap, "--unshare-all", "--die-with-parent", "--new-session", "--hostname", "sandbox"]
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
        for folder in self.hidden:
            if any(folder.is_relative_to(other) for other in shown):
                shown[folder] = "--tmpfs"
        for folder in sorted(shown, key=lambda path: len(path.parts)):
            how = shown[folder]
            walls += [how, str(folder)] if how == "--tmpfs" else [how, str(folder), str(folder)]
        for name in ("limited.py", script):
            walls += ["--ro-bind", str(HERE / name), f"/tito/{name}"]
        return [*walls, "--ro-bind", str(root), str(root), "--remount-ro", "/"]


class Guarded:
    """A running process and all that it started; ended when it takes too long, or too much."""

    def __init__(self, process: subprocess.Popen, limits: Limits, home: str | None):
        self.process, self.limits, self.home = process, limits, home
        self.reason = ""
        self._over = threading.Event()
        self.thread = threading.Thread(target=self._watch, daemon=True)
        self.thread.start()

    def _watch(self) -> None:
        end = time.monotonic() + self.limits.wall_seconds
        while not self._over.wait(0.1):
            count, resident = _weigh(self.process.pid)
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

    def _kill(self) -> None:
        if hasattr(os, "killpg"):
            try:
                os.killpg(self.process.pid, signal.SIGKILL)
            except ProcessLookupError:
                pass  # all of them have ended
            except PermissionError:  # macOS, for a group of zombies
                self.process.kill()
        else:
            self.process.kill()

    def close(self) -> None:
        self._over.set()
        self._kill()
        self.process.wait()
        for stream in (self.process.stdin, self.process.stdout, self.process.stderr):
            with contextlib.suppress(OSError, ValueError):  # what could not be written any more
                stream.close()
        if self.home:
            shutil.rmtree(self.home, ignore_errors=True)


def _weigh(pid: int) -> tuple[int, int]:
    """How many processes come from `pid`, and the memory they use; (0, 0) where /proc is not Linux's."""
    children: dict[int, list[int]] = {}
    resident: dict[int, int] = {}
    if not os.path.isdir("/proc/self"):
        return 0, 0
    for name in os.listdir("/proc"):
        if name.isdigit():
            try:
                fields = Path(f"/proc/{name}/stat").read_text(errors="replace").rpartition(")")[2].split()
            except OSError:
                continue  # it has just ended
            children.setdefault(int(fields[1]), []).append(int(name))
            resident[int(name)] = int(fields[21]) * os.sysconf("SC_PAGE_SIZE")
    found, waiting = set(), [pid]
    while waiting:
        for child in children.get(waiting.pop(), ()):
            if child not in found:
                found.add(child)
                waiting.append(child)
    return len(found), sum(resident[child] for child in found)


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

    def _start(self) -> None:
        if self.process is not None and self.process.poll() is None:
            return
        self.close()
        self.guarded = self.sandbox.start("cells.py", Path(self.root))
        self.process = self.guarded.process
        self.events, self.complaints = _Events(), []
        self.threads = [
            threading.Thread(
                target=self._read, args=(self.process.stdout, self.events.put_line), daemon=True
            ),
            threading.Thread(target=self._read, args=(self.process.stderr, self._complain), daemon=True),
        ]
        for thread in self.threads:
            thread.start()

    def _read(self, stream, take) -> None:
        for line in bounded_lines(stream):
            take(line)
        if take == self.events.put_line:
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


def bounded_lines(stream):
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
