"""The student's loop, `tito module start|test|complete|reset|status`, on a small course."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tinytorch.tito import console
from tinytorch.tito.notebook.files import back_up
from tinytorch.tito.notebook.files import read as read_notebook
from tinytorch.tito.notebook.markers import for_student, has_stub
from tinytorch.tito.notebook.settle import settle
from tinytorch.tito.process.checkpoint import Checkpoint
from tinytorch.tito.project import Project, TitoError
from tinytorch.tito.student import commands as course
from tinytorch.tito.student.module import student_module

NUMBERS = '''\
# %% [markdown]
"""
# Numbers
"""

# %%
#| default_exp core.numbers

# %%
#| export
import math


# %% <solution double>
#| export
def double(x):
    """x -> 2 x."""
    ### BEGIN SOLUTION
    return x + x
    ### END SOLUTION


# %%
double(3)

# %% <check test-double 30>
assert double(3) == 6, f"3 doubled is 6, yours is {double(3)}"
### BEGIN HIDDEN TESTS
assert double(-2.5) == -5, "secret: negative numbers double too"
### END HIDDEN TESTS


# %% <solution root>
#| export
def root(x):
    """x -> its square root. Raises ValueError below zero."""
    if x < 0:
        ### BEGIN SOLUTION
        raise ValueError(f"{x} has no root")
        ### END SOLUTION
    ### BEGIN SOLUTION
    return math.sqrt(x)
    ### END SOLUTION


# %% <check test-root 65>
assert root(9) == 3, "the root of 9 is 3 ≤ 4 → right"
try:
    root(-1)
except ValueError:
    pass
else:
    raise AssertionError("minus one has no root")

# %% [markdown]
"""
Why?
"""

# %% [markdown] <written why 5>
"""
Your answer here.
"""
'''


def _tags(kind, grade_id, points=None):
    tags = {"grade": kind != "solution", "grade_id": grade_id, "locked": kind == "check"}
    tags |= {"points": int(points)} if points else {}
    return "nbgrader=" + json.dumps(tags | {"schema_version": 3, "solution": kind != "check"})


NUMBERS = re.sub(r"<(\w+) ([\w-]+) ?(\d*)>", lambda found: _tags(*found.groups()), NUMBERS)

CHECKPOINT = """
from tinytorch.core.numbers import double, root


def test_double():
    assert double(7) == 14


def test_root():
    assert root(49) == 7
"""

RIGHT = {
    "double": "#| export\ndef double(x):\n    return 2 * x",
    "root": "#| export\ndef root(x):\n    if x < 0:\n        raise ValueError(x)\n    return x**0.5",
}
NOTEBOOK = "modules/03_numbers/numbers.ipynb"
PACKAGE = "tinytorch/core/numbers.py"


class Course:
    """The toy project with a module 03 of two parts, seen by a student."""

    def __init__(self, toy):
        self.toy, self.root = toy, toy.project.root
        folder = self.root / "modules" / "03_numbers"
        folder.mkdir()
        (folder / "numbers_dev.py").write_text(NUMBERS, encoding="utf-8")
        (self.root / "tests" / "checkpoints").mkdir(parents=True)
        self.checkpoint = self.root / "tests" / "checkpoints" / "test_checkpoint_03_numbers.py"
        self.checkpoint.write_text(CHECKPOINT, encoding="utf-8")
        self.notebook, self.package = self.root / NOTEBOOK, self.root / PACKAGE

    def do(self, *arguments, ok=True):
        """`tito module ...` -> what it said. A refusal must be one sentence on stderr."""
        result = self.toy.tito("module", *arguments)
        if ok:
            assert result.exit_code == 0, result.output
            assert result.stderr == ""
            return result.stdout
        assert result.exit_code == 1, result.output
        assert isinstance(result.exception, SystemExit), result.exception
        if result.stderr:
            assert re.fullmatch(r"tito: [^\n]+\n", result.stderr), result.stderr
        return result.stdout + result.stderr

    def cells(self):
        return {
            cell["metadata"].get("nbgrader", {}).get("grade_id", number): cell
            for number, cell in enumerate(read_notebook(self.notebook)["cells"])
        }

    def edit(self, change):
        """Change the notebook as an editor would; `change` gets it as a dictionary."""
        notebook = read_notebook(self.notebook)
        change(notebook)
        self.notebook.write_text(json.dumps(notebook), encoding="utf-8")

    def write(self, **sources):
        def change(notebook):
            for cell in notebook["cells"]:
                grade_id = cell["metadata"].get("nbgrader", {}).get("grade_id")
                cell["source"] = sources.get(grade_id, cell["source"])

        self.edit(change)

    def backups(self):
        return sorted(path.name for path in (self.root / ".tito" / "backups").rglob("*") if path.is_file())

    def make_bundle(self):
        """What a student gets of it: no dev file, no other notebook."""
        for path in self.root.glob("modules/*/*_dev.py"):
            path.unlink()


@pytest.fixture
def numbers(toy):
    return Course(toy)


@pytest.fixture
def started(numbers):
    numbers.do("start", "3")
    return numbers


@pytest.fixture
def bundle(started):
    started.make_bundle()
    (started.root / ".tito" / "pristine" / "03_numbers.ipynb").unlink()
    return started


# ---------------------------------------------------------------------------------------------------- start


def test_start_makes_the_notebook_without_solutions_and_hidden_tests(numbers):
    said = numbers.do("start", "03")
    assert "2 parts, 95 points, and 1 written question" in said
    assert f"jupyter lab {NOTEBOOK}" in said and "tito module test 03" in said
    text = numbers.notebook.read_text(encoding="utf-8")
    for secret in ("x + x", "{x} has", "math.sqrt", "secret", "BEGIN", "END"):
        assert secret not in text, f"{secret!r} is in the student's notebook"
    # as nbgrader's ClearSolutions and ClearHiddenTests leave them
    cells = numbers.cells()
    stub = "# YOUR CODE HERE\n{0}raise NotImplementedError()"
    head = '#| export\ndef double(x):\n    """x -> 2 x."""\n    '
    assert cells["double"]["source"] == head + stub.format("    ")
    head = '#| export\ndef root(x):\n    """x -> its square root. Raises ValueError below zero."""\n'
    head += "    if x < 0:\n"
    inner, outer = "        " + stub.format("        "), "\n    " + stub.format("    ")
    assert cells["root"]["source"] == head + inner + outer
    assert cells["test-double"]["source"] == 'assert double(3) == 6, f"3 doubled is 6, yours is {double(3)}"'
    assert cells["why"]["source"] == "YOUR ANSWER HERE"
    assert cells["test-double"]["metadata"]["editable"] is False
    assert "editable" not in cells["double"]["metadata"] and cells["double"]["metadata"]["deletable"] is False


@pytest.mark.parametrize("name", ["3", "03", "numbers", "03_numbers"])
def test_a_module_has_several_names(numbers, name):
    numbers.do("start", name)
    assert numbers.notebook.is_file()


def test_start_never_overwrites(started):
    started.write(**RIGHT)
    before = started.notebook.read_bytes()
    assert "left as it was" in started.do("start", "3").replace("left as it is", "left as it was")
    assert started.notebook.read_bytes() == before


def test_start_replaces_a_notebook_of_solutions_that_nobody_touched(numbers):
    assert numbers.toy.tito("notebooks", "3").exit_code == 0
    assert "x + x" in numbers.notebook.read_text(encoding="utf-8")
    numbers.do("start", "3")
    assert "x + x" not in numbers.notebook.read_text(encoding="utf-8")


def test_start_leaves_a_notebook_of_solutions_that_was_edited(numbers):
    numbers.toy.tito("notebooks", "3")
    numbers.write(double="#| export\ndef double(x):\n    return x * 2")
    numbers.do("start", "3")
    assert "x * 2" in numbers.notebook.read_text(encoding="utf-8")


@pytest.mark.parametrize("command", ["start", "test", "complete", "reset", "status"])
def test_an_unknown_module_lists_the_known_ones(numbers, command):
    said = numbers.do(command, "99", ok=False)
    assert said == "tito: There is no module 99; the modules here are: 01, 02, 03.\n"


@pytest.mark.parametrize(
    ("source", "tags", "sentence"),
    [
        ("### BEGIN SOLUTION\n1", {"solution": True}, "no END SOLUTION"),
        ("### BEGIN SOLUTION\n### BEGIN SOLUTION\n", {"solution": True}, "inside another"),
        ("### BEGIN SOLUTION\n### END SOLUTION\n", {}, "not marked as a solution"),
        ("### BEGIN HIDDEN TESTS\n### END HIDDEN TESTS", {"solution": True}, "not marked as graded"),
    ],
)
def test_a_region_that_would_leak_is_refused(source, tags, sentence):
    if "HIDDEN" in source:
        source = "### BEGIN SOLUTION\n### END SOLUTION\n" + source
    cell = {"cell_type": "code", "source": source, "metadata": {"nbgrader": tags}}
    with pytest.raises(TitoError, match=sentence):
        for_student({"cells": [cell]})


# ----------------------------------------------------------------------------------------------------- test


def test_test_tells_each_part_and_fails_until_all_pass(started):
    said = started.do("test", "3", ok=False)
    assert re.search(r"not written yet +0/30 +test-double +write `double`", said)
    assert "0 of 2 parts passed, 0 of 95 points; 1 written question (5 points)" in said

    started.write(double="#| export\ndef double(x):\n    return x * 3")
    said = started.do("test", "3", ok=False)
    assert re.search(r"failed +0/30 +test-double", said)
    assert "3 doubled is 6, yours is 9" in said

    started.write(double="#| export\ndef double(x:\n    return x * 3")
    said = started.do("test", "3", ok=False)
    assert re.search(r"blocked +0/30 +test-double +mend `double`", said)
    assert "line 2 of `double`" in said

    started.write(double=RIGHT["double"])
    said = started.do("test", "3", ok=False)
    assert re.search(r"passed +30/30 +test-double", said)
    assert re.search(r"not written yet +0/65 +test-root +write `root`", said)
    assert "1 of 2 parts passed, 30 of 95 points" in said

    started.write(root="#| export\ndef root(x):\n    y = math.sqrt(x)\n    return y.value")
    said = started.do("test", "3", ok=False)
    assert "AttributeError: 'float' object has no attribute 'value'" in said
    assert "line 4 of `root`: return y.value" in said

    started.write(**RIGHT)
    said = started.do("test", "3")
    assert "2 of 2 parts passed, 95 of 95 points" in said
    assert "Next: tito module complete 03" in said


def test_test_has_a_time_limit(started):
    started.write(double="#| export\ndef double(x):\n    while True:\n        pass", root=RIGHT["root"])
    said = started.do("test", "3", "--time-limit", "0.5", ok=False)
    assert "did not end within 0.5 seconds" in said
    assert re.search(r"passed +65/65 +test-root", said)


def test_test_shows_prints_when_asked(started):
    started.write(double="#| export\ndef double(x):\n    print('x is', x)\n    return 2 * x")
    assert "x is 3" not in started.do("test", "3", ok=False)
    assert "x is 3" in started.do("test", "3", "-v", ok=False)


def test_a_changed_check_is_run_as_it_was_handed_out(started):
    started.write(**{"test-double": "pass"})
    said = started.do("test", "3", ok=False)
    assert re.search(r"not written yet +0/30 +test-double", said)
    assert "`test-double` was changed" in said


def test_a_deleted_check_is_put_back(started):
    def change(notebook):
        notebook["cells"] = [cell for cell in notebook["cells"] if "root(9)" not in cell["source"]]

    started.write(**RIGHT)
    started.edit(change)
    said = started.do("test", "3")
    assert "`test-root` was missing and is put back" in said


def test_a_renamed_solution_cell_is_named(started):
    def change(notebook):
        for cell in notebook["cells"]:
            if cell["metadata"].get("nbgrader", {}).get("grade_id") == "double":
                cell["metadata"]["nbgrader"]["grade_id"] = "my-double"

    started.write(**RIGHT)
    started.edit(change)
    said = started.do("test", "3")
    assert "Note: `double` has another label" in said and "95 of 95 points" in said


def test_a_copied_check_does_not_count_twice(started):
    def change(notebook):
        notebook["cells"] += [cell for cell in notebook["cells"] if "double(3) ==" in cell["source"]]

    started.write(**RIGHT)
    started.edit(change)
    said = started.do("test", "3")
    assert "95 of 95 points" in said and "`test-double` is there twice" in said


def test_a_foreign_check_does_not_count():
    tags = {"grade": True, "grade_id": "mine", "points": 50, "solution": False}
    cells = [{"cell_type": "code", "source": "pass", "metadata": {"nbgrader": tags}}]
    pristine = [{"cell_type": "code", "source": "pass", "metadata": {"nbgrader": tags | {"grade_id": "a"}}}]
    settled = settle({"cells": cells}, {"cells": pristine})
    assert [cell.grade_id for cell in settled.cells] == ["a"]
    assert "`a` has another label" in settled.notes[0]


def test_hidden_tests_of_a_notebook_with_solutions_are_run(numbers):
    numbers.toy.edit("return x + x", "return x * abs(x) - x if x > 0 else 0", module="03_numbers")
    assert numbers.toy.tito("notebooks", "3").exit_code == 0
    said = numbers.do("test", "3", ok=False)
    assert "secret: negative numbers" in said


def test_a_missing_earlier_module_is_named(numbers):
    numbers.do("start", "2")
    notebook = numbers.root / "modules" / "02_layers" / "layers.ipynb"
    text = notebook.read_text(encoding="utf-8")
    assert "raise NotImplementedError()" in text
    text = text.replace("raise NotImplementedError()", "self.data = Tensor(data)")
    notebook.write_text(text, encoding="utf-8")
    said = numbers.do("test", "2", ok=False)
    assert re.search(r"blocked +0/95 +test-tensor +mend code cell 2", said)
    assert "Module 01 is not in the package yet: tito module complete 01" in said


@pytest.mark.parametrize("command", ["test", "complete"])
@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b'{"cells": [', "its JSON is broken"),
        (b'{"nbformat": 4, "cells": ["\xe9"]}', "is not UTF-8"),
        (b'{"nbformat": 3}', "its format is 3"),
    ],
)
def test_an_unreadable_notebook_is_one_sentence(started, command, content, sentence):
    started.notebook.write_bytes(content)
    assert sentence in started.do(command, "3", ok=False)


@pytest.mark.parametrize("command", ["test", "complete"])
def test_a_notebook_that_is_not_there_yet(numbers, command):
    assert "begin with: tito module start 03" in numbers.do(command, "3", ok=False)


def test_a_notebook_without_parts(started):
    (started.root / ".tito" / "pristine" / "03_numbers.ipynb").write_bytes(b'{"nbformat": 4, "cells": []}')
    started.notebook.write_bytes(b'{"nbformat": 4, "cells": []}')
    assert "holds no graded part" in started.do("test", "3", ok=False)


def test_a_dev_file_that_changed_since_start_is_told(started):
    started.write(**RIGHT)
    assert "has changed since" not in started.do("test", "3") + started.do("status", "3")
    dev = started.root / "modules" / "03_numbers" / "numbers_dev.py"
    dev.write_text(NUMBERS.replace("assert double(3) == 6", "assert double(3) == 7"), encoding="utf-8")
    for command in ("test", "status"):
        said = started.do(command, "3")
        assert "Note: modules/03_numbers/numbers_dev.py has changed since your notebook was made" in said
    started.do("reset", "3")
    started.write(**RIGHT)
    assert "has changed since" not in started.do("test", "3", ok=False)


@pytest.mark.parametrize("in_a_bundle", [False, True])
def test_a_renamed_notebook_is_found(started, in_a_bundle):
    if in_a_bundle:
        started.make_bundle()
    started.notebook.rename(started.notebook.with_name("numbers-mine.ipynb"))
    for command in ("test", "complete"):
        said = started.do(command, "3", ok=False)
        assert f"There is no notebook {NOTEBOOK}, only numbers-mine.ipynb; rename" in said


def test_start_and_status_name_a_copy_that_does_not_count(started):
    started.notebook.rename(started.notebook.with_name("numbers-mine.ipynb"))
    assert "only numbers.ipynb counts, not numbers-mine.ipynb" in started.do("status", "3")
    said = started.do("start", "3")
    assert "only modules/03_numbers/numbers.ipynb counts, not numbers-mine.ipynb beside it" in said


@pytest.mark.skipif(os.name == "nt", reason="sends Ctrl-C as POSIX does")
@pytest.mark.parametrize("last", ["right", "wrong"])
def test_watch_tests_at_each_save_until_ctrl_c(started, tmp_path, last):
    code = "from tinytorch.tito.cli import main; main()"
    log = tmp_path / "said.txt"
    with log.open("w", encoding="utf-8") as out:
        env = {k: v for k, v in os.environ.items() if k != "IN_TEST"} | {"PYTHONUNBUFFERED": "1"}
        command = [sys.executable, "-c", code, "module", "test", "3", "--watch"]
        process = subprocess.Popen(command, cwd=started.root, env=env, stdout=out, stderr=out)

    heard = 0

    def hear(words):
        """Waits until it says so, and waits again for a save.

        A save that is seen half written is a run of its own; so what is said counts, not how often.
        """
        nonlocal heard
        end = time.monotonic() + 60
        while not re.search(
            f"{words}.*?Waiting for the next save", said := log.read_text(encoding="utf-8")[heard:], re.DOTALL
        ):
            assert process.poll() is None and time.monotonic() < end, said
            time.sleep(0.05)
        heard += len(said)

    try:
        hear("0 of 2 parts passed")
        started.notebook.write_text("{", encoding="utf-8")  # cut off while it is saved
        hear("tito: ")
        started.toy.tito("module", "reset", "3")
        hear("0 of 2 parts passed")
        started.write(**RIGHT)
        hear("2 of 2 parts passed")
        if last == "wrong":
            started.write(double="#| export\ndef double(x):\n    return x * 3")
            hear("1 of 2 parts passed")
        process.send_signal(signal.SIGINT)
        assert process.wait(20) == (last == "wrong")
        assert "Traceback" not in log.read_text(encoding="utf-8")
    finally:
        process.kill()
        process.wait()


def test_watch_says_what_to_install(started, monkeypatch):
    monkeypatch.setattr("tinytorch.tito.project.find_spec", lambda name: None)
    said = started.do("test", "3", "--watch", ok=False)
    assert said == "tito: --watch needs watchfiles: pip install -e '.[dev]'\n"


# ------------------------------------------------------------------------------------------------- complete


def test_complete_puts_the_students_code_into_the_package(started):
    started.write(**RIGHT)
    said = started.do("complete", "3")
    assert f"{PACKAGE} is now your code; its checkpoint passed (2 tests" in said
    text = started.package.read_text(encoding="utf-8")
    assert text.startswith(f"# AUTOGENERATED! DO NOT EDIT! File to edit: ../../{NOTEBOOK}.")
    assert "return 2 * x" in text and "assert" not in text
    assert started.backups() == [], "there was nothing before it"


def test_complete_in_a_folder_of_any_name(toy, tmp_path, monkeypatch):
    root = toy.project.root.rename(tmp_path / "NLP [neu] 100% x=1, it's")
    monkeypatch.chdir(root)
    toy.project = Project(root)
    course = Course(toy)
    course.do("start", "3")
    course.write(**RIGHT)
    assert "its checkpoint passed (2 tests" in course.do("complete", "3")


def test_complete_keeps_what_was_there_and_export_restores_the_reference(started):
    assert started.toy.tito("export", "3").exit_code == 0
    reference = started.package.read_bytes()
    started.write(**RIGHT)
    said = started.do("complete", "3")
    (backup,) = (started.root / ".tito" / "backups" / "03_numbers").iterdir()
    assert backup.read_bytes() == reference and backup.relative_to(started.root).as_posix() in said
    assert started.toy.tito("export", "3").exit_code == 0
    assert started.package.read_bytes() == reference
    assert "`tito export NN`" in started.toy.tito("module", "complete", "--help").output


def test_complete_refuses_while_parts_are_open(started):
    started.write(double=RIGHT["double"])
    before = started.toy.files()
    said = started.do("complete", "3", ok=False)
    assert "Nothing was changed, because not every part passes: test-root (not written yet)." in said
    after = started.toy.files()
    assert {path for path in after if before.get(path) != after[path]} == {".tito/progress/03_numbers.json"}


SLY = "#| export\ndef double(x):\n    return 6"  # passes the visible check


def test_a_failed_checkpoint_leaves_the_package_as_it_was(started):
    assert started.toy.tito("export", "3").exit_code == 0
    reference = started.package.read_bytes()
    started.write(double=SLY, root=RIGHT["root"])
    said = started.do("complete", "3", ok=False)
    assert "failed  test_double" in said and "test_root" not in said
    assert "Nothing was changed, because the checkpoint of module 03 failed: test_double." in said
    assert started.package.read_bytes() == reference and started.backups() == []
    assert "completed" not in started.do("status", "3")


def test_a_failed_checkpoint_makes_no_file(started):
    started.write(double=SLY, root=RIGHT["root"])
    assert "Nothing was changed" in started.do("complete", "3", ok=False)
    assert not list(started.package.parent.rglob("numbers*"))


def test_the_checkpoint_runs_beside_the_package(started, monkeypatch):
    started.toy.tito("export", "3")
    reference = started.package.read_bytes()
    started.write(**RIGHT)
    seen = []

    def interrupted(_file, *, root, package_root):
        assert started.package.read_bytes() == reference
        seen.append((Path(package_root) / PACKAGE).read_text(encoding="utf-8"))
        raise KeyboardInterrupt

    monkeypatch.setattr(course, "run_checkpoint", interrupted)
    assert started.toy.tito("module", "complete", "3").exit_code == 1
    assert started.package.read_bytes() == reference
    assert "return 2 * x" in seen[0]


@pytest.mark.skipif(os.name == "nt", reason="Windows knows no signals between processes")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_complete_may_be_killed_at_any_time(started, tmp_path, number):
    started.toy.tito("export", "3")
    reference = started.package.read_bytes()
    started.write(**RIGHT)
    wait = f"import os, time\nopen({str(tmp_path / 'pid')!r}, 'w').write(str(os.getpid()))\ntime.sleep(60)\n"
    started.checkpoint.write_text(wait + CHECKPOINT, encoding="utf-8")
    (tmp_path / "tmp").mkdir()
    command = [sys.executable, "-c", "from tinytorch.tito.cli import main; main()", "module", "complete", "3"]
    env = os.environ | {"TMPDIR": str(tmp_path / "tmp")}
    process = subprocess.Popen(command, cwd=started.root, env=env, stdout=subprocess.DEVNULL)
    pid, until = None, time.monotonic() + 60
    while not pid and time.monotonic() < until:
        time.sleep(0.05)
        pid = (tmp_path / "pid").read_text() if (tmp_path / "pid").exists() else None
    process.send_signal(number)
    status = process.wait(timeout=30)
    assert started.package.read_bytes() == reference
    if number == signal.SIGKILL:
        os.kill(int(pid), signal.SIGKILL)  # nobody can tidy up after this one
    else:
        assert status == 128 + number
        assert list((tmp_path / "tmp").iterdir()) == [], "no temporary file is left"
        with pytest.raises(ProcessLookupError):
            os.kill(int(pid), 0)
    assert "03_numbers: ready" in started.do("status", "3")
    started.checkpoint.write_text(CHECKPOINT, encoding="utf-8")
    started.do("complete", "3")
    assert started.package.read_bytes() != reference


def test_the_place_in_the_package_is_not_the_students_choice(started):
    def change(notebook):
        notebook["cells"][1]["source"] = "#| default_exp core.tensor"

    started.write(**RIGHT)
    started.edit(change)
    assert "was changed; it counts as it was handed out" in started.do("test", "3")
    started.do("complete", "3")
    assert started.package.exists() and not (started.root / "tinytorch/core/tensor.py").exists()


def test_without_a_checkpoint_test_nothing_is_completed(started):
    started.write(**RIGHT)
    started.checkpoint.unlink()
    said = started.do("complete", "3", ok=False)
    assert "tests/checkpoints/test_checkpoint_03_numbers.py is missing" in said
    assert not started.package.exists()


@pytest.mark.parametrize("package", ["nbdev", "pytest", "hypothesis"])
def test_a_missing_tool_is_named_with_the_command_to_install_it(started, monkeypatch, package):
    started.write(**RIGHT)
    monkeypatch.setattr(
        "tinytorch.tito.project.find_spec", lambda name: None if name == package else object()
    )
    said = started.do("complete", "3", ok=False)
    assert package in said and "pip install -e" in said


# ---------------------------------------------------------------------------------------------------- reset


def test_reset_backs_up_first(started):
    fresh = read_notebook(started.notebook)
    started.write(**RIGHT)
    mine = started.notebook.read_bytes()
    said = started.do("reset", "3")
    (backup,) = (started.root / ".tito" / "backups" / "03_numbers").iterdir()
    assert backup.read_bytes() == mine and backup.relative_to(started.root).as_posix() in said
    assert read_notebook(started.notebook) == fresh
    started.do("reset", "3")
    assert len(started.backups()) == 2, "a second backup must not replace the first"


def test_reset_mends_an_unreadable_notebook(started):
    started.notebook.write_bytes(b"{")
    assert "tito module reset 03" in started.do("status", "3")
    started.do("reset", "3")
    assert "test-double" in started.cells() and started.backups()


def test_reset_without_a_notebook_makes_one(numbers):
    numbers.do("reset", "3")
    assert numbers.notebook.is_file() and not (numbers.root / ".tito" / "backups").exists()


def test_backups_of_the_same_second_are_all_kept(started, monkeypatch):
    monkeypatch.setattr("time.strftime", lambda *_: "2026-01-01-000000")
    copies = {back_up(started.notebook, started.toy.project) for _ in range(3)}
    assert len(copies) == 3


# --------------------------------------------------------------------------------------------------- status


def states(said):
    """{number: state} of the table of all modules."""
    rows = re.findall(r"^(\w[\w ]*?)  +(?:[\d/]+ +)?(\d\d)_\w+", said, re.MULTILINE)
    return {number: state for state, number in rows}


def test_status_follows_the_work(numbers):
    said = numbers.do("status")
    assert states(said) == {"01": "not started", "02": "not started", "03": "not started"}
    assert "Next: tito module start 01" in said

    numbers.do("start", "3")
    assert states(numbers.do("status"))["03"] == "started"
    numbers.do("test", "3", ok=False)
    numbers.write(double=RIGHT["double"])
    said = numbers.do("status")
    assert states(said)["03"] == "in progress"
    assert "0 of 2 parts, the notebook has changed since" in said

    numbers.do("test", "3", ok=False)
    said = numbers.do("status")
    assert re.search(r"in progress +30/95 +03_numbers +1 of 2 parts\n", said)
    said = numbers.do("status", "3")
    assert re.search(r"passed +30/30 +test-double", said)
    assert re.search(r"not written yet +0/65 +test-root +write `root`", said)
    assert re.search(r"no answer yet +5 +why", said)
    assert "Still to write: `root`" in said

    numbers.write(**RIGHT, why="Because.")
    numbers.do("test", "3")
    said = numbers.do("status", "3")
    assert "03_numbers: ready" in said and "Next: tito module complete 03" in said
    assert re.search(r"answered +5 +why", said) and "Still to write" not in said

    assert numbers.do("complete", "3").endswith("Next: tito module start 01\n")
    assert states(numbers.do("status"))["03"] == "completed"


def test_a_stub_left_below_the_answer_is_nothing_to_write(started):
    stub = "\n    # YOUR CODE HERE\n    raise NotImplementedError()"
    started.write(double=RIGHT["double"] + stub, root=RIGHT["root"], why="Because.")
    started.do("test", "3")
    said = started.do("status", "3")
    assert "03_numbers: ready" in said and "Still to write" not in said


def test_a_name_of_pythons_own_with_another_meaning_is_told(started):
    started.write(**RIGHT)
    scratch = {
        "cell_type": "code",
        "metadata": {},
        "source": "sum = 0",
        "outputs": [],
        "execution_count": None,
    }
    started.edit(lambda notebook: notebook["cells"].insert(2, scratch))
    said = " ".join(started.do("test", "3").split())
    assert "gives `sum`, a name of Python's own, another meaning" in said


@pytest.fixture
def completed(started, monkeypatch):
    """Module 03, completed; its checkpoint is taken for passed, which another test shows."""
    monkeypatch.setattr(course, "run_checkpoint", lambda *_, **__: Checkpoint(2, {}, 0.1, ""))
    started.write(**RIGHT)
    started.do("complete", "3")
    return started


def test_running_the_notebook_in_jupyter_does_not_undo_completion(completed):
    def change(notebook):
        for cell in notebook["cells"]:
            if cell["cell_type"] == "code":
                cell["outputs"] = [{"output_type": "stream", "name": "stdout", "text": "ran"}]
                cell["execution_count"] = 7

    completed.edit(change)
    assert states(completed.do("status"))["03"] == "completed"


def test_a_look_cell_more_does_not_undo_completion(completed):
    def change(notebook):
        notebook["cells"].append({"cell_type": "code", "metadata": {}, "source": "double(8)"})

    completed.edit(change)
    assert states(completed.do("status"))["03"] == "completed"


def test_other_code_undoes_completion(completed):
    completed.write(double="#| export\ndef double(x):\n    return x * 2")
    said = completed.do("status")
    assert states(said)["03"] == "in progress" and "was completed" in said


def test_another_package_file_undoes_completion(completed):
    assert completed.toy.tito("export", "3").exit_code == 0
    said = completed.do("status")
    assert states(said)["03"] == "ready" and "was completed" in said


def test_a_lost_package_file_undoes_completion(completed):
    completed.package.unlink()
    assert states(completed.do("status"))["03"] == "ready"


def test_status_of_a_notebook_of_solutions(numbers):
    numbers.toy.tito("notebooks", "3")
    said = numbers.do("status")
    assert states(said)["03"] == "not started" and "holds the solutions" in said


def test_status_with_an_unreadable_notebook_still_shows_the_others(started):
    started.notebook.write_bytes(b"{")
    said = started.do("status")
    assert states(said) == {"01": "not started", "02": "not started", "03": "unreadable"}


@pytest.mark.parametrize("content", [b"{", b"[]", b"\xff"])
def test_a_broken_record_is_one_sentence(started, content):
    record = started.root / ".tito" / "progress" / "03_numbers.json"
    record.parent.mkdir()
    record.write_bytes(content)
    assert ".tito/progress/03_numbers.json cannot be read; delete it" in started.do("status", ok=False)


def test_records_are_written_in_one_step(started, monkeypatch):
    started.do("test", "3", ok=False)
    record = started.root / ".tito" / "progress" / "03_numbers.json"
    before = record.read_bytes()

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    started.write(double=RIGHT["double"])
    assert started.toy.tito("module", "test", "3").exit_code == 1
    assert record.read_bytes() == before
    assert [path.name for path in record.parent.iterdir()] == [record.name]


# --------------------------------------------------------------------------------------------------- bundle


def test_a_bundle_works_without_dev_files(bundle):
    said = bundle.do("start", "3")
    assert "is there already" in said and "tito module test 03" in said
    bundle.do("test", "3", ok=False)
    bundle.write(**RIGHT)
    bundle.do("test", "3")
    said = bundle.do("complete", "3")
    assert said.endswith("Every module here is completed.\n")
    assert "return 2 * x" in bundle.package.read_text(encoding="utf-8")
    bundle.do("reset", "3")
    assert "raise NotImplementedError()" in bundle.cells()["double"]["source"]


def test_what_a_bundle_says_is_true_there(bundle, monkeypatch):
    pyproject = bundle.root / "pyproject.toml"
    table = '\n[tool.tinytorch]\nmodule = "03_numbers"\n'
    pyproject.write_text(pyproject.read_text(encoding="utf-8") + table, encoding="utf-8")
    (bundle.root / "numbers.ipynb").write_bytes(bundle.notebook.read_bytes())
    said = bundle.toy.tito("--help").output
    assert "module " in said and "doctor " in said and "export " not in said and "notebooks " not in said
    missing = lambda name: None if name in ("nbdev", "jupyterlab") else object()  # noqa: E731
    for place in ("tinytorch.tito.project.find_spec", "tinytorch.tito.student.commands.find_spec"):
        monkeypatch.setattr(place, missing)
    assert "pip install jupyterlab, then jupyter lab numbers.ipynb" in bundle.do("start", "3")
    assert "Completing a module needs nbdev: pip install -e .\n" in bundle.do("complete", "3", ok=False)


def test_a_bundle_that_was_never_started_cannot_be_reset(bundle):
    bundle.write(**RIGHT)
    before = bundle.notebook.read_bytes()
    said = bundle.do("reset", "3", ok=False)
    assert "copy modules/03_numbers/numbers.ipynb from the zip that you were given" in said
    assert bundle.notebook.read_bytes() == before


def test_a_bundle_may_ship_the_notebook_as_it_was_handed_out(started):
    started.make_bundle()
    started.notebook.unlink()
    started.do("start", "3")
    assert "raise NotImplementedError()" in started.cells()["double"]["source"]


def test_the_target_of_a_bundle_is_that_of_the_notebook_handed_out(started):
    started.make_bundle()
    assert student_module(started.toy.project, "3").target() == "core.numbers"
    started.write(**RIGHT)
    for place in ("core.other", "tito.cli"):
        started.edit(lambda notebook, at=place: notebook["cells"][1].update(source=f"#| default_exp {at}"))
        started.do("complete", "3")
        assert started.package.exists() and not (started.root / "tinytorch/core/other.py").exists()


# ------------------------------------------------------------------------------------------- the real thing


def test_the_console_may_know_few_characters(started):
    """Windows' cp1252 has no arrow: the teaching message must come out all the same."""
    started.write(root="#| export\ndef root(x):\n    return 4")
    done = subprocess.run(
        [sys.executable, "-c", "from tinytorch.tito.cli import main; main()", "module", "test", "3"],
        cwd=started.root,
        env=os.environ | {"PYTHONIOENCODING": "cp1252"},
        capture_output=True,
        timeout=60,
    )
    assert done.returncode == 1 and done.stderr == b""
    assert b"the root of 9 is 3 <= 4 -> right" in done.stdout


@pytest.mark.parametrize(
    ("text", "encoding", "shown"),
    [
        ("≤ → ×", "utf-8", "≤ → ×"),
        ("≤ → ×", "cp1252", "<= -> x"),
        ("α", "ascii", "?"),
        ("plain", "ascii", "plain"),
    ],
)
def test_text_fits_the_console(text, encoding, shown):
    assert console.fit(text, encoding) == shown


def test_a_terminal_gets_a_table_in_colours(started, monkeypatch, capsys):
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "100")
    rows = [["passed", "30/30", "test-double", ""], ["failed", "0/65", "test-[root]", "[red]no markup[/red]"]]
    console.show_table("2 parts", course.COLUMNS, rows, course.COLOURS)
    out = capsys.readouterr().out
    assert "\x1b[" in out and "test-[root]" in out and "[red]no markup[/red]" in out


def test_every_command_has_help(numbers):
    for command in ("start", "test", "complete", "reset", "status"):
        said = numbers.do(command, "--help")
        assert said.startswith("Usage:") and len(said.splitlines()) > 4


def test_git_ignores_what_the_loop_writes(repo):
    ignored = (repo.root / ".gitignore").read_text(encoding="utf-8").split()
    assert ".tito/" in ignored and "modules/*/*.ipynb" in ignored


def test_stubs_and_answers_are_told_from_what_students_write():
    assert has_stub("def f():\n    # YOUR CODE HERE\n    raise NotImplementedError()")
    assert not has_stub("def f():\n    raise NotImplementedError('not yet')")
