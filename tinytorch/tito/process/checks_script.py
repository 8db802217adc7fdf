"""The process in which the checkpoint tests meet a student's module; `grade.py` starts and reads it."""

# Run as a script in the sandbox: standard library, NumPy, pytest, hypothesis. One line of JSON comes on
# stdin: {"root": folder that holds tinytorch, "target": the student's module in it, "token": what each line
# of the report begins with, "name": the test file's name, "source": its text}. One line of JSON a test leaves
# by what was stdout when Python began: [token, name, outcome, message], then [token, "changed", "", names],
# and at last [token, "end", "", ""]. [token, "import", line, message]: the student's module does not import.

import importlib
import json
import os
import sys
import tempfile
import traceback
import types
from pathlib import Path

MESSAGE_LIMIT = 500
# OpenBLAS's, of finite numbers too (numpy/numpy#24067); a nan shows in what the test compares.
SPURIOUS = [f"ignore:invalid value encountered in {name}:RuntimeWarning" for name in ("matmul", "dot")]
# What tests rely on and no solution has a reason to change, besides the earlier modules of the package.
WATCHED = {
    *("builtins", "functools", "json", "math", "operator", "os", "posix", "numpy", "numpy._core.fromnumeric"),
    *("numpy._core.multiarray", "numpy._core.numeric", "numpy.testing", "numpy.testing._private.utils"),
    *("pytest", "_pytest.approx", "_pytest.assertion.rewrite", "_pytest.assertion.util", "_pytest.fixtures"),
    *("_pytest.outcomes", "_pytest.python", "_pytest.raises", "_pytest.reports", "_pytest.runner"),
    *("pluggy._callers", "pluggy._hooks", "hypothesis", "hypothesis.core", "hypothesis.extra.numpy"),
}


def main() -> None:
    job = json.loads(sys.stdin.readline())
    report = os.fdopen(os.dup(1), "w", encoding="utf-8")
    null = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1, 2):
        os.dup2(null, stream)
    import numpy.testing  # noqa: F401
    import pytest

    outcomes: dict[str, list[str]] = {}
    changed: set[str] = set()
    before: dict[str, tuple] = {}
    kept: list = []

    class Reporter:
        def pytest_configure(self):
            from hypothesis import HealthCheck, Phase, settings

            settings.register_profile(
                "grading",
                database=None,
                deadline=None,
                derandomize=True,
                phases=[Phase.explicit, Phase.generate],
                suppress_health_check=list(HealthCheck),
            )
            settings.load_profile("grading")

        def pytest_collection(self):
            import_package(Path(job["root"]), job["target"])
            before.update(attributes(kept))
            try:
                importlib.import_module(f"tinytorch.{job['target']}")
            except BaseException as error:  # whatever it is, it must not stop the report
                send("import", *broken_at(error, job))
                finish()
                raise

        def pytest_runtest_logreport(self, report):
            name = report.nodeid.partition("::")[2]
            if report.when == "call" or report.outcome != "passed":
                outcomes[name] = [report.outcome, _reason(report)]
            if report.when == "teardown" and name in outcomes:
                changed.update(changes(before, attributes([])))
                send(name, *outcomes[name])

        def pytest_collectreport(self, report):
            if report.failed:
                send("collection", "failed", _reason(report))

    def send(*line):
        report.write(json.dumps([job["token"], *line]) + "\n")
        report.flush()

    def finish():
        send("changed", "", sorted(changed))
        send("end", "", "")

    sys.path.insert(0, job["root"])
    folder = Path(tempfile.mkdtemp())
    file = folder / job["name"]
    file.write_text(job["source"], encoding="utf-8")
    os.chdir(folder)
    arguments = [
        str(file),
        f"--rootdir={folder}",
        "-q",
        "-p",
        "no:cacheprovider",
        "--tb=line",
        "-c",
        os.devnull,
    ]
    for rule in ("error", *SPURIOUS):  # the last that fits counts
        arguments += ["-W", rule]
    pytest.main(arguments, plugins=[Reporter()])
    finish()


def _reason(report) -> str:
    crash = getattr(report.longrepr, "reprcrash", None)
    text = crash.message if crash is not None else str(report.longrepr or "")
    return text.strip()[:MESSAGE_LIMIT]


def broken_at(error: BaseException, job: dict) -> tuple[int, str]:
    """The line of the student's module at which its import failed, and why."""
    file = str(Path(job["root"], "tinytorch", *job["target"].split(".")).with_suffix(".py"))
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == file]
    text = (f"{type(error).__name__}: {error}".splitlines() or [""])[0]
    return (lines[0] if lines else getattr(error, "lineno", None) or 0), text[:MESSAGE_LIMIT]


def import_package(root: Path, target: str) -> None:
    """Imports every module of the package but the student's, and what needs that."""
    for path in sorted((root / "tinytorch").rglob("*.py")):
        name = ".".join(path.relative_to(root).with_suffix("").parts).removesuffix(".__init__")
        if name != f"tinytorch.{target}":
            importlib.import_module(name)


def attributes(kept: list) -> dict[str, tuple]:
    """{"module.name" or "module.Class.name": where it and a function's code lie} of all that is watched.

    What lies there is put into `kept`, so that nothing new comes to lie in its place.
    """
    found = {}
    for module_name, module in list(sys.modules.items()):
        if module_name not in WATCHED and module_name.partition(".")[0] != "tinytorch":
            continue
        for name, value in list(vars(module).items()):
            found[f"{module_name}.{name}"] = _identity(value, kept)
            if isinstance(value, type) and value.__module__ == module_name:
                for inner, part in list(vars(value).items()):
                    found[f"{module_name}.{name}.{inner}"] = _identity(part, kept)
    return found


def _identity(value, kept: list) -> tuple:
    function = value.__func__ if isinstance(value, (staticmethod, classmethod)) else value
    parts = (function,)
    if isinstance(function, types.FunctionType):
        parts = function, function.__code__, function.__defaults__, function.__kwdefaults__
    kept.append((value, parts))
    return tuple(map(id, parts))


def changes(before: dict[str, tuple], after: dict[str, tuple]) -> set[str]:
    """The names that were there before and are something else now, or gone."""
    return {name for name, _ in before.items() - after.items()}


if __name__ == "__main__":
    main()
