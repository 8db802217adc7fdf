"""`tito grade` on module 04: what is earned, what is not, and that nobody harms anybody."""

import copy
import csv
import json
import os
import shutil
from pathlib import Path

import pytest
from click.testing import CliRunner

from toy import REPO

pytestmark = pytest.mark.grading
pytest.importorskip("nbgrader", reason="make test-grading installs it")

from tinytorch.tito.cli import cli  # noqa: E402
from tinytorch.tito.nbcourse import prepare_course  # noqa: E402
from tinytorch.tito.project import Project  # noqa: E402

LABEL = "04_losses"
AUTOMATIC = 90
needs_bwrap = [] if shutil.which("bwrap") else ["--no-sandbox"]


def grade(course, *options):
    before = os.getcwd()
    os.chdir(REPO)
    try:
        done = CliRunner().invoke(
            cli, ["grade", "04", "--course", str(course), "--time-limit", "10", *options]
        )
    finally:
        os.chdir(before)
    assert done.exit_code == 0, done.output
    with (course / "grades.csv").open(encoding="utf-8", newline="") as file:
        return {row["student"]: row for row in csv.DictReader(file)}


class Course:
    def __init__(self, folder: Path):
        self.folder = folder
        release = prepare_course(Project(REPO), Project(REPO).module("04"), folder)
        self.released = json.loads(release.read_text(encoding="utf-8"))
        self.source = json.loads((folder / "source" / LABEL / release.name).read_text(encoding="utf-8"))

    def submit(self, student, notebook):
        """`notebook`: a dictionary, or the file's bytes."""
        file = self.folder / "submitted" / student / LABEL / "losses.ipynb"
        file.parent.mkdir(parents=True, exist_ok=True)
        data = notebook if isinstance(notebook, bytes) else json.dumps(notebook).encode()
        file.write_bytes(data)
        return file

    def solved(self, *grade_ids):
        """The released notebook with these solutions filled in (default: all)."""
        notebook = copy.deepcopy(self.released)
        for cell in notebook["cells"]:
            tags = cell["metadata"].get("nbgrader", {})
            if cell["cell_type"] == "code" and tags.get("solution"):
                if not grade_ids or tags["grade_id"] in grade_ids:
                    cell["source"] = find(self.source, tags["grade_id"])["source"]
        return notebook

    def with_code(self, code, place=2, **filled):
        """The released notebook with a cell of this code, and cells filled in by grade_id."""
        notebook = copy.deepcopy(self.released)
        for name, source in filled.items():
            find(notebook, name.replace("_", "-"))["source"] = source
        if code:
            cell = {
                "cell_type": "code",
                "source": code,
                "metadata": {},
                "outputs": [],
                "execution_count": None,
            }
            notebook["cells"].insert(place, cell | {"id": "mine"})
        return notebook


def find(notebook, grade_id):
    return next(c for c in notebook["cells"] if c["metadata"].get("nbgrader", {}).get("grade_id") == grade_id)


def locked_cells(notebook):
    return [c for c in notebook["cells"] if c["metadata"].get("nbgrader", {}).get("locked")]


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
"""
PATCH = """
import builtins, numpy as np
np.allclose = np.array_equal = lambda *a, **k: True
np.testing.assert_allclose = np.testing.assert_array_equal = lambda *a, **k: None
np.shape = lambda x: ()
builtins.abs = lambda x: 0
builtins.isinstance = lambda a, b: True
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
         if f in ("gradebook.db", "losses.ipynb", "losses_dev.py", "losses.py", "grades.csv")
         and "site-packages/nbgrader" not in d]
assert not found, found
"""
PYTEST = """#| export
import _pytest.python
_pytest.python.Function.runtest = lambda self: None
class MSELoss:
    pass
"""


def hostile(course):
    """{name: notebook or bytes}: none of these solves anything."""
    c, released = course, course.released
    no_tests, edited, dear, twice, moved = (copy.deepcopy(released) for _ in range(5))
    no_tests["cells"] = [cell for cell in no_tests["cells"] if cell not in locked_cells(no_tests)]
    for cell in locked_cells(edited):
        cell["source"] = "pass"
    for cell in locked_cells(dear):
        cell["metadata"]["nbgrader"]["points"] = 1000
    for cell in locked_cells(twice):
        twice["cells"].append(copy.deepcopy(cell) | {"source": "pass"})
    moved["cells"] = locked_cells(moved) + [
        cell for cell in moved["cells"] if cell not in locked_cells(moved)
    ]
    renamed, typed, noisy = (copy.deepcopy(released) for _ in range(3))
    for cell in locked_cells(renamed):
        cell["metadata"]["nbgrader"]["grade_id"] += "-mine"
    for cell in locked_cells(typed):
        cell["cell_type"] = "markdown"
    noisy["cells"][2]["outputs"] = [{"output_type": "stream", "name": "stdout", "text": "x" * 50_000_000}]
    other = copy.deepcopy(released)
    other["cells"] = [cell for cell in other["cells"] if "nbgrader" not in cell["metadata"]]
    text = json.dumps(released).encode()
    return {
        "imports-solution": c.with_code("", mse="#| export\nfrom tinytorch.core.losses import MSELoss"),
        "patches": c.with_code(PATCH, place=4),
        "patches-exported": c.with_code("#| export" + PATCH, place=4),
        "always-equal": c.with_code(
            "",
            mse=f"#| export\n{EQUAL}\nclass MSELoss:\n    def __call__(self, a, b): return Equal(0)",
            cross_entropy=f"#| export\n{EQUAL}\ndef cross_entropy(*a, **k): return Equal(0)",
        ),
        "patches-pytest": c.with_code("", mse=PYTEST),
        "exits-in-export": c.with_code("", mse="#| export\nimport os\nos._exit(0)"),
        "no-tests": no_tests,
        "edited-tests": edited,
        "dear-tests": dear,
        "tests-twice": twice,
        "tests-moved": moved,
        "tests-renamed": renamed,
        "tests-typed": typed,
        "sys-exit": c.with_code("import sys\nsys.exit(0)"),
        "os-exit": c.with_code("import os\nos._exit(0)"),
        "endless": c.with_code(
            "import time\nend = time.time() + 60\nwhile time.time() < end:\n    try:\n        time.sleep(1)\n"
            "    except BaseException:\n        pass"
        ),
        "forks": c.with_code(
            "import os, time\nfor _ in range(150):\n    if os.fork() == 0:\n        time.sleep(8)\n"
            "        os._exit(0)\ntime.sleep(5)"
        ),
        "memory": c.with_code("kept = [bytearray(b'x' * 10**8) for _ in range(30)]"),
        "disk": c.with_code(
            "import tempfile\nfor _ in range(40):\n"
            "    tempfile.NamedTemporaryFile(delete=False).write(b'x' * 10**7)"
        ),
        "large-file": c.with_code("open('/tmp/large', 'wb').write(b'x' * 10**8)"),
        "prints": c.with_code("for _ in range(50):\n    print('x' * 10**6)"),
        "prints-below": c.with_code("import os\nfor fd in (3, 4):\n    os.write(fd, b'x' * 3 * 10**7)"),
        "forges": c.with_code(FORGE),
        "breaks-reader": c.with_code(
            "import os\nfor fd in range(3, 12):\n    try:\n"
            '        os.write(fd, b\'{"event": "end", "cell": [], "no": {}}\\n\')\n'
            "    except OSError:\n        pass"
        ),
        "steals-tests": c.with_code(STEAL, mse="raise ValueError(stolen())"),
        "looks-around": c.with_code(LOOK),
        "socket": c.with_code("import socket\nsocket.create_connection(('127.0.0.1', 22), 2)"),
        "writes-outside": c.with_code("open('/usr/written-by-student', 'w')"),
        "truncated": text[: len(text) // 2],
        "not-json": b"hello",
        "empty-file": b"",
        "not-utf8": b"\xff\xfe" + text,
        "deep": b"[" * 100_000,
        "nbformat-3": json.dumps({"nbformat": 3, "worksheets": [], "metadata": {}}).encode(),
        "cells-no-list": json.dumps({"nbformat": 4, "cells": {"a": 1}, "metadata": {}}).encode(),
        "large-outputs": noisy,
        "other-notebook": other,
    }


@pytest.fixture(scope="module")
def graded(tmp_path_factory):
    """One run over everybody -> the course, the rows, the names of the hostile."""
    course = Course(tmp_path_factory.mktemp("course"))
    wrong = course.solved()
    cell = find(wrong, "mse")
    cell["source"] = "".join(cell["source"]).replace(".mean()", ".sum()")
    broken = course.solved()
    find(broken, "log-softmax")["source"] = "#| export\ndef log_softmax(x, axis=-1)\n    return x"
    course.submit("a-empty", course.released)
    course.submit("b-reference", course.solved())
    course.submit("c-half", course.solved("mse", "log-softmax", "cross-entropy"))
    course.submit("d-one", course.solved("perplexity"))
    course.submit("e-wrong-mse", wrong)
    course.submit("f-syntax-error", broken)
    course.submit("g-outputs", json.dumps(course.solved(), indent=2).encode("utf-8-sig"))
    names = hostile(course)
    for name, notebook in names.items():
        course.submit(name, notebook)
    link = course.folder / "submitted" / "link" / LABEL / "losses.ipynb"
    link.parent.mkdir(parents=True)
    link.symlink_to(course.folder / "source" / LABEL / "losses.ipynb")
    pipe = course.folder / "submitted" / "pipe" / LABEL / "losses.ipynb"
    pipe.parent.mkdir(parents=True)
    os.mkfifo(pipe)
    (course.folder / "submitted" / "no folder; rm -rf" / LABEL).mkdir(parents=True)
    (course.folder / "submitted" / "absent").mkdir()
    before = {p: p.read_bytes() for p in (course.folder / "submitted").rglob("*.ipynb") if not p.is_fifo()}
    rows = grade(course.folder, "--jobs", "3", *needs_bwrap)
    assert before == {p: p.read_bytes() for p in before}, "a submission was changed"
    return course, rows, [*names, "link", "pipe", "no folder; rm -rf"]


def points(row):
    return float(row["score"])


def test_what_is_earned(graded):
    _, rows, _ = graded
    assert points(rows["a-empty"]) == 0
    assert points(rows["b-reference"]) == AUTOMATIC and rows["b-reference"]["flags"] == ""
    assert points(rows["c-half"]) == 48 and rows["c-half"]["flags"] == ""
    assert points(rows["d-one"]) == 10 and rows["d-one"]["flags"] == ""
    assert points(rows["e-wrong-mse"]) == AUTOMATIC - 10 and float(rows["e-wrong-mse"]["test-mse"]) == 0
    assert points(rows["g-outputs"]) == AUTOMATIC
    assert float(rows["f-syntax-error"]["test-mse"]) == 10
    assert float(rows["f-syntax-error"]["test-log-softmax"]) == 0
    assert rows["absent"]["status"] == "not submitted" and points(rows["absent"]) == 0


def test_nobody_earns_what_is_not_deserved(graded):
    _, rows, names = graded
    earned = {name: points(rows[name]) for name in names if points(rows[name])}
    assert not earned


def test_statuses_tell_what_happened(graded):
    _, rows, _ = graded
    status = {name: row["status"] for name, row in rows.items()}
    assert status["endless"] == "timed out", rows["endless"]
    assert status["os-exit"] == "crashed"
    for name in ("truncated", "not-json", "empty-file", "not-utf8", "deep", "nbformat-3", "link", "pipe"):
        assert status[name] == "rejected" and rows[name]["reason"], rows[name]
    assert "50 MB" in rows["large-outputs"]["reason"] or "20 MB" in rows["large-outputs"]["reason"]
    assert status["b-reference"] == "graded"  # no answer was written, so that there is nothing to mark
    assert "put back" in rows["no-tests"]["flags"] and "restored" in rows["edited-tests"]["flags"]


def test_feedback_shows_no_hidden_test(graded):
    course, rows, _ = graded
    hidden = []
    for cell in locked_cells(course.source):
        text = "".join(cell["source"])
        for region in text.split("### BEGIN HIDDEN TESTS")[1:]:
            lines = region.split("### END HIDDEN TESTS")[0].splitlines()
            hidden += [line.strip() for line in lines if len(line.strip()) > 30]
    shown = json.dumps(course.released)
    hidden = [line for line in hidden if json.dumps(line)[1:-1] not in shown]
    assert len(hidden) > 20
    pages = list((course.folder / "feedback").rglob("*.html"))
    assert len(pages) > 30
    import html

    for page in pages:
        text = html.unescape(page.read_text(encoding="utf-8"))
        for line in hidden:
            assert line not in text, f"{page.name} of {page.parent.name} shows {line}"


@pytest.mark.skipif(bool(needs_bwrap), reason="there is no bubblewrap here")
def test_the_sandbox_shows_nothing_and_lets_nothing_out(graded):
    course, rows, _ = graded
    notebook = json.loads(
        (course.folder / "autograded" / "looks-around" / LABEL / "losses.ipynb").read_text(encoding="utf-8")
    )
    assert not [out for out in notebook["cells"][2]["outputs"] if out["output_type"] == "error"]
    for name in ("socket", "writes-outside", "large-file", "disk"):
        text = (course.folder / "autograded" / name / LABEL / "losses.ipynb").read_text(encoding="utf-8")
        assert "OSError" in text or "Error" in text
    assert not Path("/usr/written-by-student").exists()


def test_again_changes_nothing_and_manual_marks_stay(graded):
    from nbgrader.api import Gradebook

    course, rows, _ = graded
    with Gradebook(f"sqlite:///{course.folder / 'gradebook.db'}", "tinytorch") as book:
        grade_ = book.find_grade("question-padding", "losses", LABEL, "c-half")
        grade_.manual_score, grade_.needs_manual_grade = 4, False
        book.db.commit()
    answered = course.solved("mse")
    find(answered, "question-padding")["source"] = "Because."
    course.submit("d-one", answered)
    again = grade(course.folder, "--jobs", "3", *needs_bwrap)
    assert points(again["c-half"]) == 52
    assert points(again["d-one"]) == 10 and again["d-one"]["status"] == "needs manual marks"
    for name in set(rows) - {"c-half", "d-one"}:
        assert again[name] == rows[name]
    alone = grade(course.folder, "--student", "b-reference", "--again", *needs_bwrap)
    assert set(alone) == set(rows)
    assert points(alone["b-reference"]) == AUTOMATIC
