"""The process in which the checkpoint tests meet a student's module; `grade.py` starts and reads it."""

# Run as a script in the sandbox: standard library, NumPy, pytest, hypothesis. One line of JSON comes on
# stdin: {"root": folder that holds tinytorch, "target": the student's module in it, "token": what each line
# of the report begins with, "name": the test file's name, "source": its text, "only": functions to run, or
# null, "skip": tests that have been run, "look": those after which what is watched is looked at}. Lists, as
# Python writes them, leave by what was stdout when it began:
# [token, "begin", name, ""] and [token, name, outcome, message] for each test, then
# [token, "changed", "", names], at any time, and at last [token, "end", "", ""].
# [token, "import", line, message]: the student's module does not import.
# [token, "reached", line, what]: its code asks Python for what no answer has a use for.

import importlib
import json
import operator
import os
import sys
import tempfile
import traceback
import types
from collections.abc import Callable
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


# What Python tells its audit hooks (PEP 578) whoever asks, and however the name was made: ways to frames, to
# all objects, to code and to other processes. No answer to a task has a use for them.
EVENTS = {
    *("sys._getframe", "sys._current_frames", "sys._current_exceptions", "sys.settrace", "sys.setprofile"),
    *("sys.addaudithook", "gc.get_objects", "gc.get_referrers", "gc.get_referents", "code.__new__", "exec"),
    *("compile", "function.__new__", "os.fork", "os.forkpty", "os.exec", "os.posix_spawn", "os.spawn"),
    *("os.system", "os.kill", "subprocess.Popen", "socket.__new__", "cpython.run_command"),
    "module.__dict__",  # ours: see guard_names
}
ATTRIBUTES = {
    "object.__getattr__": {
        *("tb_frame", "gi_frame", "cr_frame", "ag_frame", "gi_code", "f_code", "f_back", "__code__"),
    },
    "object.__setattr__": {"__code__", "__defaults__", "__kwdefaults__"},
}
DEPTH = 12  # so many calls of a library may lie between a student's code and what it asks for
# files of the standard library that ask such things on behalf of honest code (for a namedtuple, a dataclass),
# and so many of their calls lie between
AT_WORK = {
    **dict.fromkeys(("collections/__init__", "contextlib", "dataclasses", "enum", "functools", "typing"), 1),
    **{"importlib": 1, "logging/__init__": 2},
}


def main() -> None:
    own = sys.modules["__main__"]  # kept, but nowhere that a name leads to
    sys.modules["__main__"] = types.ModuleType("__main__")
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
    looked = set(job["look"])

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
                report_multiple_bugs=False,  # a twin fails with its first example
            )
            settings.load_profile("grading")

        def pytest_collection(self):
            import_package(Path(job["root"]), job["target"])
            before.update(attributes())
            guard_names(send)
            watch(student_file(job), send)
            try:
                importlib.import_module(f"tinytorch.{job['target']}")
            except BaseException as error:  # whatever it is, it must not stop the report
                send("import", *broken_at(error, job))
                finish()
                raise

        def pytest_collection_modifyitems(self, items):
            only, skip = job["only"], set(job["skip"])
            items[:] = [
                item
                for item in items
                if name_of(item.nodeid) not in skip and (only is None or item.originalname in only)
            ]

        def pytest_collection_finish(self):
            put_out_of_reach(job)

        @pytest.hookimpl(wrapper=True)
        def pytest_pyfunc_call(self):
            try:
                return (yield)
            except (KeyboardInterrupt, pytest.exit.Exception) as error:  # would end all other tests too
                raise RuntimeError(f"{type(error).__name__} came out of it") from error

        def pytest_runtest_logstart(self, nodeid):
            send("begin", name_of(nodeid), "")

        def pytest_runtest_logreport(self, report):
            name = name_of(report.nodeid)
            if report.when == "call" or report.outcome != "passed":
                outcomes[name] = [report.outcome, _reason(report)]
            if report.when == "teardown" and name in outcomes:
                if name.partition("[")[0] in looked:
                    changed.update(changes(before, attributes()))
                send(name, *outcomes[name])

        def pytest_collectreport(self, report):
            if report.failed:
                send("collection", "failed", _reason(report))

    token = job.pop("token")

    # what student's code could exchange is looked up before it is there
    def send(*line, text=repr, write=report.write, flush=report.flush):
        write(text([token, *line]) + "\n")
        flush()

    def finish():
        changed.update(changes(before, attributes()))
        send("changed", "", sorted(changed))
        send("end", "", "")

    # What pytest keeps in modules of its own would lead to the tests: its assertions' and debugger's
    # configuration, and what other packages plug in.
    os.environ["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"
    sys.path.insert(0, job["root"])
    folder = Path(tempfile.mkdtemp())
    file = folder / job["name"]
    file.write_text(job["source"], encoding="utf-8")
    os.chdir(folder)
    arguments = [
        str(file),
        f"--rootdir={folder}",
        "-q",
        *("-p", "no:cacheprovider", "-p", "no:assertion", "-p", "no:debugging"),
        "--tb=line",
        "-c",
        os.devnull,
    ]
    for rule in ("error", *SPURIOUS):  # the last that fits counts
        arguments += ["-W", rule]
    pytest.main(arguments, plugins=[Reporter()])
    finish()
    del own


def student_file(job: dict) -> str:
    return str(Path(job["root"], "tinytorch", *job["target"].split(".")).with_suffix(".py"))


def name_of(nodeid: str) -> str:
    return nodeid.partition("::")[2]


def put_out_of_reach(job: dict) -> None:
    """The tests are known now: no name, no import hook and no file leads to them any more."""
    sys.modules.pop(Path(job["name"]).stem, None)
    sys.meta_path[:] = [finder for finder in sys.meta_path if not hasattr(finder, "session")]
    Path(job["name"]).unlink()


def guard_names(send: Callable) -> None:
    """Says when a name of what is watched becomes something else, even if it is put back before one looks."""
    inner = vars(types.ModuleType)["__dict__"].__get__

    class Guarded(types.ModuleType):
        def __setattr__(self, name, value, send=send, names=inner, put=types.ModuleType.__setattr__):
            if names(self).get(name, value) is not value:
                send("changed", "", [f"{self.__name__}.{name}"])
            put(self, name, value)

        def __delattr__(self, name, send=send, take=types.ModuleType.__delattr__):
            send("changed", "", [f"{self.__name__}.{name}"])
            take(self, name)

        @property
        def __dict__(self, names=inner, tell=sys.audit):
            tell("module.__dict__")
            return names(self)

    for module in watched():
        module.__class__ = Guarded


def watch(file: str, send: Callable) -> None:
    """Says at once what the student's file, or what it calls of a library, asks Python for."""
    places = {os.path.dirname(os.__file__), *(path for path in sys.path if "site-packages" in path)}
    libraries = tuple(sorted(places, key=len, reverse=True))
    busy = []

    def look(event, arguments, getframe=sys._getframe, events=EVENTS, names=ATTRIBUTES, at_work=AT_WORK):
        if event in names:
            if arguments[1] not in names[event]:
                return
        elif event not in events and not event.startswith("ctypes."):
            return
        if busy:
            return
        busy.append(event)
        try:
            frame, calls = getframe(1), []
            for _ in range(DEPTH):
                if frame is None:
                    return
                name = frame.f_code.co_filename
                if name == file:
                    if not calls or not len(calls) >= at_work.get(calls[0], DEPTH):
                        send("reached", frame.f_lineno, arguments[1] if event in names else event)
                    return
                if name.startswith("<frozen importlib"):
                    calls.append("importlib")
                elif name.startswith("<"):
                    calls.append(name)  # code that was made of a text: what it asks for is nobody's else
                elif name.startswith(libraries):
                    calls.append(module_of(name, libraries))
                else:
                    return  # a test, or an earlier module
                frame = frame.f_back
        finally:
            busy.clear()

    sys.addaudithook(look)


def module_of(file: str, libraries: tuple[str, ...]) -> str:
    """A library's file without where it is installed: numpy/linalg/_linalg, collections/__init__, inspect."""
    inner = next(file.removeprefix(folder) for folder in libraries if file.startswith(folder))
    return inner.strip(os.sep).replace(os.sep, "/").removesuffix(".py")


def _reason(report) -> str:
    crash = getattr(report.longrepr, "reprcrash", None)
    text = crash.message if crash is not None else str(report.longrepr or "")
    return text.strip()[:MESSAGE_LIMIT]


def broken_at(error: BaseException, job: dict) -> tuple[int, str]:
    """The line of the student's module at which its import failed, and why."""
    file = student_file(job)
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == file]
    text = (f"{type(error).__name__}: {error}".splitlines() or [""])[0]
    return (lines[0] if lines else getattr(error, "lineno", None) or 0), text[:MESSAGE_LIMIT]


def import_package(root: Path, target: str) -> None:
    """Imports every module of the package but the student's, and what needs that."""
    for path in sorted((root / "tinytorch").rglob("*.py")):
        name = ".".join(path.relative_to(root).with_suffix("").parts).removesuffix(".__init__")
        if name != f"tinytorch.{target}":
            importlib.import_module(name)


def watched() -> list[types.ModuleType]:
    """What tests rely on: the modules that no answer has a reason to change."""
    modules = list(sys.modules.items())
    return [module for name, module in modules if name in WATCHED or name.partition(".")[0] == "tinytorch"]


def attributes() -> dict[str, tuple]:
    """{"module.name" or "module.Class.name": what it is, and a function is made of} of what is watched."""
    found = {}
    for module in watched():
        module_name = module.__name__
        for name, value in list(vars(module).items()):
            found[f"{module_name}.{name}"] = _made_of(value)
            if isinstance(value, type) and value.__module__ == module_name:
                for inner, part in list(vars(value).items()):
                    found[f"{module_name}.{name}.{inner}"] = _made_of(part)
    return found


def _made_of(value) -> tuple:
    function = value.__func__ if isinstance(value, (staticmethod, classmethod)) else value
    if isinstance(function, types.FunctionType):
        return function, function.__code__, function.__defaults__, function.__kwdefaults__
    return (function,)


def changes(before: dict[str, tuple], after: dict[str, tuple]) -> set[str]:
    """The names that were there before and are something else now, or gone."""
    return {name for name, parts in before.items() if not _same(parts, after.get(name, ()))}


def _same(one: tuple, other: tuple) -> bool:
    return len(one) == len(other) and all(map(operator.is_, one, other))


if __name__ == "__main__":
    main()
