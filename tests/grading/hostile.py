"""Submissions that are broken or dishonest. Each is bounded in count, bytes and seconds by itself."""

import copy
import io
import json
import os
import zipfile

from course import Course, find, locked_cells, with_cell

# What is wrong with the one solution that every dishonest notebook hides: module -> (cell, right, wrong,
# the cell with nothing in it but a result).
WRONG = {
    "04": (
        "mse",
        ".mean()",
        ".sum()",
        "class MSELoss:\n    def __call__(self, prediction, target):\n        return RESULT\n",
    ),
    "15": (
        "attention-with-cache",
        ", causal=True)",
        ")",
        "def attention_with_cache(query, key, value, cache, layer_idx, mask=None):\n    return RESULT\n",
    ),
}

EQUAL = """
class Equal(float):
    def __eq__(self, other): return True
    def __ne__(self, other): return False
    def __lt__(self, other): return True
    def __gt__(self, other): return True
    def __abs__(self): return self
    def __sub__(self, other): return self
    __rsub__ = __sub__
    shape = ()
    data = property(lambda self: self)
"""
EQUAL_ARRAY = """
import numpy as np
class EqualArray(np.ndarray):
    def __array_ufunc__(self, function, *inputs, **options):
        return np.True_
    def __array_function__(self, function, kinds, arguments, options):
        return True
    data = property(lambda self: self)
"""
PATCH_NUMPY = """
import numpy as np
np.allclose = np.array_equal = lambda *a, **k: True
np.testing.assert_allclose = np.testing.assert_array_equal = lambda *a, **k: None
"""
PATCH_BUILTINS = """
import builtins
builtins.abs = lambda x: 0
builtins.isinstance = lambda a, b: True
builtins.all = lambda *a: True
"""
PATCH_DISGUISED = """
import numpy as np
for name in ("assert_" + "allclose", "assert_" + "array_equal"):
    setattr(getattr(np, "test" + "ing"), name, lambda *a, **k: None)
"""
PATCH_WITHIN = """
import numpy as np
inside = np.__dict__
inside["allclose"] = inside["array_equal"] = lambda *a, **k: True
tests = inside.get("test" + "ing")
if tests is not None:
    for name in ("allclose", "array_equal", "equal"):
        tests.__dict__["assert_" + name] = lambda *a, **k: None
"""
PATCH_OPERATORS = """
from tinytorch.core.tensor import Tensor
vars(Tensor)
for name in ("__eq__", "shape"):
    type.__setattr__(Tensor, name, property(lambda self: ()))
"""
PATCH_PYTEST = """
import _pytest.python
_pytest.python.Function.runtest = lambda self: None
"""
PATCH_PYTEST_FOUND = """
import sys
for name, module in list(sys.modules.items()):
    if name == "_pytest.python":
        module.Function.runtest = lambda self: None
"""
PATCH_HYPOTHESIS = """
import hypothesis
hypothesis.given = lambda *a, **k: lambda f: (lambda: None)
"""
SKIP = """
import pytest
pytest.skip("nothing to see", allow_module_level=True)
"""
FRAMES = """
import sys
def expected(*_):
    frame = sys._getframe(1)
    while frame:
        for name in ("expected", "want", "right", "result", "reference"):
            if name in frame.f_locals:
                return frame.f_locals[name]
        frame = frame.f_back
"""
TRACEBACKS = """
def expected(*_):
    try:
        raise ValueError
    except ValueError as error:
        frame = error.__traceback__.tb_frame.f_back.f_back
        return frame.f_locals.get("expected", frame.f_locals.get("want"))
"""
GARBAGE = """
import gc, types
for thing in gc.get_objects():
    if isinstance(thing, types.FunctionType) and thing.__name__.startswith("test_"):
        thing.__code__ = (lambda: None).__code__
"""
CLOSE_REPORT = """
import os, json
for fd in range(3, 12):
    try:
        os.write(fd, b'["end", "", ""]\\n' * 3)
    except OSError:
        pass
"""
TO_FILE = """
import numpy as np
for fd in range(1, 12):
    try:
        np.frombuffer(b'["?", "test_mean", "passed", ""]\\n["?", "end", "", ""]\\n', np.uint8).tofile(
            f"/proc/self/fd/{fd}")
    except OSError:
        pass
"""
CONFTEST = """
from pathlib import Path
for folder in (".", "/tmp", "/home/student", str(Path.home())):
    try:
        for name in ("conftest.py", "sitecustomize.py", "usercustomize.py", "numpy.py"):
            (Path(folder) / name).write_text("import os; os._exit(0)")
    except OSError:
        pass
"""
THREAD = """
import threading, time
def later():
    import numpy as np
    for _ in range(200):
        time.sleep(0.01)
        np.testing.assert_allclose = lambda *a, **k: None
threading.Thread(target=later, daemon=True).start()
"""
TRACE = """
import sys
def skip(frame, event, argument):
    return skip if event == "call" else None
sys.settrace(skip)
"""
IMPORTER = """
import builtins
real = builtins.__import__
def fake(name, *a, **k):
    module = real(name, *a, **k)
    if name.startswith("numpy"):
        module.allclose = lambda *a, **k: True
    return module
builtins.__import__ = fake
"""
DISK = """
import os
found = []
for top in ("/work", "/root", "/home", "/srv", "/usr/local", "/opt", "/tmp", "/check"):
    for folder, _, files in os.walk(top):
        found += [os.path.join(folder, f) for f in files if f in ("SOLUTION.py", "NAME_dev.py", "NAME.ipynb")]
for path in found[:5]:
    text = open(path, encoding="utf-8").read()
    if path.endswith(".py"):
        exec(text)
"""
INSTALLED = """
import importlib.metadata, json, pathlib
record = importlib.metadata.distribution("tinytorch").read_text("direct_url.json")
root = pathlib.Path(json.loads(record)["url"].removeprefix("file://"))
exec((root / "tinytorch" / "TARGET.py").read_text())
"""
BLANKS_CELLS = """
shell = get_ipython()
shell.input_transformers_cleanup.append(lambda lines: [])
shell.run_cell = lambda *a, **k: None
"""
FORGE = """
import os, sys, json
job = sys._getframe(2).f_locals.get("job") or sys._getframe(3).f_locals["job"]
for fd in range(3, 12):
    for index, source, is_test in job["cells"]:
        for event in ({"event": "begin", "cell": index},
                      {"event": "end", "cell": index, "ok": True, "stdout": "", "stderr": ""}):
            try:
                os.write(fd, (json.dumps(event) + "\\n").encode())
            except OSError:
                pass
    try:
        os.write(fd, b'{"event": "done"}\\n')
    except OSError:
        pass
import time; time.sleep(1); os._exit(0)
"""
STEAL = """
import sys
def stolen():
    frame, found = sys._getframe(), []
    while frame:
        found += [source for _, source, test in frame.f_locals.get("job", {}).get("cells", []) if test]
        frame = frame.f_back
    return "".join(found).replace("#", "")
"""
LOOK = """
import os
found = [os.path.join(d, f) for top in ("/work", "/root", "/home", "/tmp", "/usr/local", "/srv", "/mnt")
         for d, _, files in os.walk(top) for f in files
         if f in ("gradebook.db", "NAME.ipynb", "NAME_dev.py", "SOLUTION.py", "grades.csv")
         and "site-packages/nbgrader" not in d]
assert not found, found
"""
ENDLESS = """
import time
end = time.time() + 60
while time.time() < end:
    try:
        sum(range(10**6))
    except BaseException:
        pass
"""
FORKS = """
import os, time
for _ in range(150):
    if os.fork() == 0:
        time.sleep(8)
        os._exit(0)
time.sleep(5)
"""
NAP = f"87.{os.getpid()}"  # seconds, by which the daemons of this run of the tests are known
DAEMON = f"""
import os, time
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        for fd in range(3):
            os.close(fd)
        os.execvp("sleep", ["sleep", "{NAP}"])
    os._exit(0)
"""
KILLS = """
import os, signal
for pid in {os.getppid(), 1}:
    try:
        os.kill(pid, signal.SIGKILL)
    except OSError:
        pass
os.kill(os.getpid(), signal.SIGKILL)
"""
CRASH = """
import ctypes
ctypes.string_at(0)
"""


def dishonest(course: Course) -> dict[str, dict | bytes]:
    """{name: notebook}: each solves all but one part, as `broken` does, and tries to have that one too."""
    cell, right, wrong, stub = WRONG[course.module.number]
    name, target = course.module.name, course.module.export_target()
    broken = course.solved()
    assert right in find(broken, cell)["source"]
    find(broken, cell)["source"] = find(broken, cell)["source"].replace(right, wrong)

    def exported(code: str) -> dict:
        return with_cell(broken, "#| export" + spell(code), before=cell)

    def beside(code: str) -> dict:
        return with_cell(broken, spell(code), before=cell)

    def spell(code: str) -> str:
        code = code.replace("NAME", name).replace("SOLUTION", target.rpartition(".")[2])
        return code.replace("TARGET", target.replace(".", "/"))

    def result(code: str, expression: str) -> dict:
        """The one solution is nothing but this result."""
        notebook = copy.deepcopy(broken)
        find(notebook, cell)["source"] = f"#| export\n{spell(code)}\n{stub.replace('RESULT', expression)}"
        return notebook

    public = stub.partition("(")[0].removeprefix("def ").removeprefix("class ").partition(":")[0]
    imports = copy.deepcopy(broken)
    find(imports, cell)["source"] = f"#| export\nfrom tinytorch.{target} import {public}\n"
    found = {
        "broken": broken,
        "imports-solution": imports,
        "imports-by-name": exported(
            f"\nimport importlib\nsolution = importlib.import_module('tinytorch.{target}')\n"
            f"{public} = solution.{public}\n"
        ),
        "reads-disk": exported(DISK),
        "reads-installed": exported(INSTALLED),
        "reads-gradebook": exported(
            "\nimport sqlite3, glob\nfor path in glob.glob('/**/gradebook.db', recursive=True):\n"
            "    sqlite3.connect(path).execute('update grade set auto_score = 100').connection.commit()\n"
        ),
        "always-equal": result(EQUAL, "Equal(0)"),
        "always-equal-array": result(EQUAL_ARRAY, "np.zeros((1, 1, 1, 1)).view(EqualArray)"),
        "masked": result("import numpy as np", "np.ma.masked_all((1, 1, 1, 1))"),
        "frames": result(FRAMES, "expected()"),
        "tracebacks": result(TRACEBACKS, "expected()"),
        "garbage": exported(GARBAGE),
        "closes-report": exported(CLOSE_REPORT),
        "writes-report": exported(TO_FILE),
        "conftest": exported(CONFTEST),
        "thread": exported(THREAD),
        "trace": exported(TRACE),
        "importer": exported(IMPORTER),
        "patches-pytest": exported(PATCH_PYTEST),
        "patches-pytest-found": exported(PATCH_PYTEST_FOUND),
        "patches-hypothesis": exported(PATCH_HYPOTHESIS),
        "patches-operators": exported(PATCH_OPERATORS),
        "skips": exported(SKIP),
        "blanks-cells": beside(BLANKS_CELLS),
        "exits-in-export": exported("\nimport os\nos._exit(0)"),
        "leaves-in-export": exported("\nraise SystemExit(0)"),
    }
    for patch in ("NUMPY", "BUILTINS", "DISGUISED", "WITHIN"):
        code = globals()[f"PATCH_{patch}"]
        found[f"patches-{patch.lower()}"] = exported(code)
        found[f"patches-{patch.lower()}-beside"] = beside(code)
    return found | tampered(broken, "broken-") | newly_allowed(broken, beside, exported, cell)


PATCH = "np.allclose = np.array_equal = np.isclose = lambda *a, **k: True"


def newly_allowed(broken: dict, beside, exported, cell: str) -> dict[str, dict]:
    """What hides behind the habits that cost nothing: magics, `display`, __future__, look cells, labels."""

    def changed(grade_id: str, change) -> dict:
        notebook = copy.deepcopy(broken)
        find(notebook, grade_id)["source"] = change(find(notebook, grade_id)["source"])
        return notebook

    def given(change) -> dict:
        notebook = copy.deepcopy(broken)
        first = next(c for c in notebook["cells"] if "import numpy as np" in c["source"])
        first["source"] = change(first["source"])
        return notebook

    def look(code: str) -> dict:
        notebook = copy.deepcopy(broken)
        places = [
            i for i, c in enumerate(notebook["cells"]) if c["cell_type"] == "code" and not c["metadata"]
        ]
        notebook["cells"][places[2]]["source"] = code
        return notebook

    test = next(c["metadata"]["nbgrader"]["grade_id"] for c in locked_cells(broken))
    swapped, weak, claims, split = (copy.deepcopy(broken) for _ in range(4))
    one, other = find(swapped, cell), find(swapped, test)
    one["metadata"], other["metadata"] = other["metadata"], one["metadata"]
    for check in locked_cells(weak):
        check["metadata"], check["source"] = {}, check["source"].splitlines()[0] + "\nassert 1 == 1"
    for code in claims["cells"]:
        if code["cell_type"] == "code":
            text = "100 of 100 points; all parts passed"
            code["outputs"] = [{"output_type": "stream", "name": "stdout", "text": text}]
            code["metadata"] = code["metadata"] | {"score": 100, "auto_score": 100}
    lower = copy.deepcopy(find(split, cell)) | {"source": f"import numpy as np\n{PATCH}"}
    split["cells"].insert(split["cells"].index(find(split, cell)) + 1, lower)
    hook = "import sys\nsys.displayhook = lambda value: None\nimport numpy as np\n" + PATCH
    shown = f"def display(*values):\n    import numpy as np\n    {PATCH}"
    fake = "class np:\n    float32 = float\n    allclose = array_equal = lambda *a, **k: True"
    return {
        "magic-shell": beside("!echo 1 > /tmp/conftest.py\nfound = !cat /proc/self/cmdline"),
        "magic-python": beside(f"%%python\nimport numpy as np\n{PATCH}"),
        "magic-time": exported(f"\nimport numpy as np\n%time {PATCH}"),
        "magic-capture": beside(f"%%capture\nimport numpy as np\n{PATCH}"),
        "display-hook": beside(hook),
        "display-own": changed(cell, lambda text: f"{text}\n\n{shown}\n\n\ndisplay(1)"),
        "future-flufl": changed(cell, lambda text: "from __future__ import barry_as_FLUFL\n" + text),
        "future-module": beside("import sys\nsys.modules['__future__'] = sys.modules['numpy']"),
        "look-patches": look(f"import numpy as np\n{PATCH}\nworth = 1"),
        "given-fake": given(lambda text: text.replace("import numpy as np", fake)),
        "given-added": given(lambda text: f"{text}\n{PATCH}"),
        "labels-swapped": swapped,
        "checks-typed-again": weak,
        "outputs-claim": claims,
        "split-patches": split,
        "shell-by-name": exported(
            "\nimport numpy as np\ndef get_ipython():\n    return np\n"
            "get_ipython().allclose = get_ipython().array_equal = lambda *a, **k: True"
        ),
    }


def tampered(notebook: dict, prefix: str) -> dict[str, dict]:
    """The notebook with the test cells changed in every way that Jupyter or an editor allows."""
    deleted, edited, dear, twice, moved, renamed, typed, opened, cheap, cut = (
        copy.deepcopy(notebook) for _ in range(10)
    )
    deleted["cells"] = [cell for cell in deleted["cells"] if cell not in locked_cells(deleted)]
    for cell in locked_cells(edited):
        cell["source"] = "pass"
    for cell in locked_cells(dear):
        cell["metadata"]["nbgrader"]["points"] = 1000
    for cell in locked_cells(twice):
        twice["cells"].append(copy.deepcopy(cell) | {"source": "pass"})
    moved["cells"] = locked_cells(moved) + [c for c in moved["cells"] if c not in locked_cells(moved)]
    for cell in locked_cells(renamed):
        cell["metadata"]["nbgrader"]["grade_id"] += "-mine"
    for cell in locked_cells(typed):
        cell["cell_type"] = "markdown"
    for cell in locked_cells(opened):
        cell["metadata"]["nbgrader"] |= {"solution": True, "grade": False, "locked": False}
    for cell in locked_cells(cheap):
        cell["metadata"]["nbgrader"]["points"] = float("nan")
    for cell in locked_cells(cut):
        cell["source"] = f"### BEGIN HIDDEN TESTS\n{cell['source']}\n### END HIDDEN TESTS"
    return {
        f"{prefix}tests-deleted": deleted,
        f"{prefix}tests-edited": edited,
        f"{prefix}tests-dear": dear,
        f"{prefix}tests-twice": twice,
        f"{prefix}tests-moved": moved,
        f"{prefix}tests-renamed": renamed,
        f"{prefix}tests-typed": typed,
        f"{prefix}tests-opened": opened,
        f"{prefix}tests-nan": cheap,
        f"{prefix}tests-cut": cut,
    }


def harmful(course: Course) -> dict[str, dict | bytes]:
    """{name: notebook}: nothing is solved, and something is broken on the way."""
    released, name = course.released, course.module.name

    def cell(code: str) -> dict:
        solution = course.module.export_target().rpartition(".")[2]
        return with_cell(released, code.replace("NAME", name).replace("SOLUTION", solution))

    stub = WRONG[course.module.number][3]
    steals = cell(STEAL)
    find(steals, WRONG[course.module.number][0])["source"] = "#| export\n" + stub.replace(
        "return RESULT", "raise ValueError(stolen())"
    )
    return tampered(released, "") | {
        "sys-exit": cell("import sys\nsys.exit(0)"),
        "os-exit": cell("import os\nos._exit(0)"),
        "endless": cell(ENDLESS),
        "forks": cell(FORKS),
        "daemon": cell(DAEMON),
        "kills": cell(KILLS),
        "crash": cell(CRASH),
        "recursion": cell("import sys\nsys.setrecursionlimit(10**6)\ndef f(): return f()\nf()"),
        "memory": cell("kept = [bytearray(b'x' * 10**8) for _ in range(30)]"),
        "disk": cell(
            "import tempfile\nfor _ in range(40):\n"
            "    tempfile.NamedTemporaryFile(delete=False).write(b'x' * 10**7)"
        ),
        "large-file": cell("open('/tmp/large', 'wb').write(b'x' * 10**8)"),
        "prints": cell("for _ in range(50):\n    print('x' * 10**6)"),
        "prints-below": cell("import os\nfor fd in (3, 4):\n    os.write(fd, b'x' * 3 * 10**7)"),
        "forges": cell(FORGE),
        "breaks-reader": cell(
            "import os\nfor fd in range(3, 12):\n    try:\n"
            '        os.write(fd, b\'{"event": "end", "cell": [], "no": {}}\\n\')\n'
            "    except OSError:\n        pass"
        ),
        "steals-tests": steals,
        "looks-around": cell(LOOK),
        "socket": cell("import socket\nsocket.create_connection(('127.0.0.1', 22), 2)"),
        "writes-outside": cell("open('/usr/written-by-student', 'w')"),
    }


def unreadable(course: Course) -> dict[str, dict | bytes]:
    """{name: bytes}: each is to be rejected with a reason."""
    text = json.dumps(course.released).encode()
    noisy, other, long, attached = (copy.deepcopy(course.released) for _ in range(4))
    attached["cells"][0]["attachments"] = {"scan.png": {"image/png": "Q" * 100_000_000}}
    noisy["cells"][2]["outputs"] = [{"output_type": "stream", "name": "stdout", "text": "x" * 50_000_000}]
    other["cells"] = [cell for cell in other["cells"] if "nbgrader" not in cell["metadata"]]
    bomb = io.BytesIO()
    with zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(f"{course.module.name}.ipynb", b" " * 50_000_000)
    return {
        "truncated": text[: len(text) // 2],
        "not-json": b"hello",
        "empty-file": b"",
        "not-utf8": b"\xff\xfe" + text,
        "deep": b"[" * 100_000,
        "nbformat-3": json.dumps({"nbformat": 3, "worksheets": [], "metadata": {}}).encode(),
        "cells-no-list": json.dumps({"nbformat": 4, "cells": {"a": 1}, "metadata": {}}).encode(),
        "large-outputs": noisy,
        "other-notebook": other,
        "large-attachment": attached,
        "long-code": with_cell(long, "x = 1\n" * 100_000),
        "zip-bomb": bomb.getvalue(),
    }
