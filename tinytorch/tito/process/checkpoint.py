"""Runs a checkpoint test file with pytest in a process of its own and reads what became of each test."""

import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

from tinytorch.tito.process.worker import clean_environment


@dataclass
class Checkpoint:
    """What became of a checkpoint test file."""

    passed: int
    failed: dict[str, str]  # name of the test -> the line that says why
    seconds: float
    output: str
    finished: bool = True  # pytest came to its end and reported on tests; else it crashed or was ended

    @property
    def ok(self) -> bool:
        return self.passed > 0 and not self.failed


@dataclass
class ImportTry:
    """What became of an attempt to import a module of a package."""

    broken_line: int | None = None  # the line of its file at which the import failed, None if it did not
    broken_by: str = ""


# What `python -c` runs: the import, then one line, `line reason`, if it failed.
_IMPORT = """
import importlib, sys, traceback
root, name = sys.argv[1:]
sys.path.insert(0, root)
try:
    importlib.import_module(name)
except BaseException as error:
    file = root + "/" + name.replace(".", "/") + ".py"
    at = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == file]
    line = at[0] if at else getattr(error, "lineno", None) or 0
    print(line, f"{type(error).__name__}: {error}".splitlines()[0], flush=True)
"""


def try_import(package_root: Path, target: str, time_limit: float = 60.0) -> ImportTry:
    """Imports `tinytorch.<target>` of a package in a process of its own. One that hangs is not blamed."""
    command = [sys.executable, "-P", "-c", _IMPORT, str(package_root.resolve()), f"tinytorch.{target}"]
    try:
        done = subprocess.run(
            command,
            cwd=package_root,
            env=clean_environment() | {"PYTHONUTF8": "1"},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=time_limit,
            encoding="utf-8",
            errors="replace",
        )
    except subprocess.TimeoutExpired:
        return ImportTry()  # the checkpoint will say so
    line, _, why = (done.stdout.strip().splitlines() or [""])[-1].partition(" ")
    return ImportTry(int(line), why) if line.isdigit() else ImportTry()


# What `python -c` runs: pytest, with `tinytorch` from one folder and nothing else from there.
_PYTEST = """
import sys
root, quick, *arguments = sys.argv[1:]
sys.path.insert(0, root)
import tinytorch
sys.path.remove(root)
import pytest

class Quick:
    def pytest_configure(self):
        from hypothesis import HealthCheck, Phase, settings
        phases, checks = [Phase.explicit, Phase.generate], list(HealthCheck)
        settings.register_profile("quick", phases=phases, deadline=None, suppress_health_check=checks)
        settings.load_profile("quick")

sys.exit(pytest.main(arguments, plugins=[Quick()] if quick == "quick" else []))
"""


def run_checkpoint(
    test_file: Path,
    *,
    root: Path,
    package_root: Path | None = None,
    first_failure: bool = False,
    time_limit: float = 600.0,
) -> Checkpoint:
    """Run a checkpoint test file with pytest in a process of its own.

    `root` is the project, `package_root` the folder whose `tinytorch` is tested (default: the project's).
    `first_failure` ends at the first failed test and does not look for the smallest example of it.
    """
    began = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="tito-checkpoint-") as folder:
        record = Path(folder) / "report.xml"
        command = [sys.executable, "-P", "-c", _PYTEST, str(Path(package_root or root).resolve())]
        # named from its folder: brackets in a longer path would be read as a test's parameters
        command += ["quick" if first_failure else "full", test_file.name, f"--rootdir={root}"]
        command += [f"--junitxml={record}", "-q", "--tb=short", "--color=no"]
        command += ["--noconftest", "-p", "no:cacheprovider"]  # a checkpoint stands alone and leaves nothing
        command += ["-x"] if first_failure else []
        env = clean_environment() | {"HYPOTHESIS_STORAGE_DIRECTORY": folder, "PYTHONUTF8": "1"}
        env["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"  # whatever else is installed
        try:
            done = subprocess.run(
                command,
                cwd=test_file.parent,
                env=env,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                timeout=time_limit,
                encoding="utf-8",
                errors="replace",
            )
        except subprocess.TimeoutExpired:
            failed = {test_file.name: f"did not end within {time_limit:g} seconds"}
            return Checkpoint(0, failed, time.perf_counter() - began, "", finished=False)
        passed, failed = _read_junit(record)
        finished = bool(passed or failed)
        if done.returncode and not failed:
            last = (done.stdout.strip().splitlines() or [""])[-1]
            failed[test_file.name] = f"pytest ended with exit status {done.returncode}: {last}"
        elif not passed and not failed:
            failed[test_file.name] = "no test was run"
    return Checkpoint(passed, failed, time.perf_counter() - began, done.stdout, finished)


def _read_junit(record: Path) -> tuple[int, dict[str, str]]:
    try:
        cases = ElementTree.parse(record).getroot().iter("testcase")
    except (OSError, ElementTree.ParseError):
        return 0, {}
    passed, failed = 0, {}
    for case in cases:
        wrong = [child for child in case if child.tag in ("failure", "error")]
        if wrong:
            failed[case.get("name") or case.get("classname") or "collection"] = wrong[0].get("message", "")
        elif not any(child.tag == "skipped" for child in case):
            passed += 1
    return passed, failed
