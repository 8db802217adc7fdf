"""The runner tells the truth about each cell, whatever the other cells do."""

import json
import sys

import pytest

from tinytorch.tito.notebook.cells import cells_of
from tinytorch.tito.notebook.files import Unreadable
from tinytorch.tito.notebook.files import read as read_notebook
from tinytorch.tito.notebook.python import as_python, names_bound
from tinytorch.tito.process.checkpoint import run_checkpoint
from tinytorch.tito.process.outcomes import BLOCKED, FAILED, MAX_STUCK, NOT_RUN, PASSED, UNWRITTEN
from tinytorch.tito.process.worker import RunnerError, Worker

STUB = "def {0}(x):\n    # YOUR CODE HERE\n    raise NotImplementedError()"


def solution(grade_id, source):
    tags = {"grade": False, "grade_id": grade_id, "locked": False, "schema_version": 3, "solution": True}
    return {"cell_type": "code", "metadata": {"nbgrader": tags}, "source": source}


def check(grade_id, source, points=4):
    tags = {"grade": True, "grade_id": grade_id, "locked": True, "schema_version": 3, "solution": False}
    return {"cell_type": "code", "metadata": {"nbgrader": tags | {"points": points}}, "source": source}


def plain(source):
    return {"cell_type": "code", "metadata": {}, "source": source}


def notebook(*cells):
    cells = [plain(cell) if isinstance(cell, str) else cell for cell in cells]
    return {"nbformat": 4, "nbformat_minor": 5, "metadata": {}, "cells": cells}


@pytest.fixture(scope="module")
def worker():
    with Worker() as worker:
        yield worker


@pytest.fixture
def run(worker):
    return lambda *cells, **options: worker.run(cells_of(notebook(*cells)), **options)


# --------------------------------------------------------------------------------------- each part's status


def test_passed_and_failed_with_the_teaching_message(run):
    report = run(
        solution("double", "def double(x):\n    return x + x"),
        check("test-double", "assert double(3) == 6", points=3),
        check("test-no", "assert double(3) == 7, 'double of 3 is 6; did you add once too often?'", points=5),
    )
    assert [part.status for part in report.parts] == [PASSED, FAILED]
    assert (report.earned, report.possible, report.passed, report.ok) == (3, 8, 1, False)
    failed = report.part("test-no")
    assert failed.message == "double of 3 is 6; did you add once too often?"
    assert failed.where == "", "a failed check speaks for itself"


def test_an_assert_without_a_message_shows_what_does_not_hold(run):
    part = run("x = 3", check("t", "assert x == 4")).part("t")
    assert part.message == "this does not hold: x == 4"


def test_not_written_yet_names_the_cell_to_write(run):
    report = run(
        solution("f", STUB.format("f")),
        solution("g", "def g(x):\n    return f(x) + 1"),
        check("test-f", "assert f(1) == 1"),
        check("test-g", "assert g(1) == 2"),
    )
    assert [(part.status, part.cause) for part in report.parts] == [(UNWRITTEN, "`f`"), (UNWRITTEN, "`f`")]


def test_not_written_yet_when_the_stub_stands_outside_functions(run):
    report = run(
        solution("table", "# YOUR CODE HERE\nraise NotImplementedError()"),
        check("test-table", "assert table[1] == 2"),
    )
    # the cell never bound `table`, and nothing says that it should have: the name cannot be traced
    assert report.part("test-table").status == FAILED
    report = run(
        solution(
            "table", "def half(x):\n    return x / 2\n\nraise NotImplementedError()\ntable = {1: half(4)}"
        ),
        check("test-table", "assert table[1] == 2"),
    )
    assert (report.part("test-table").status, report.part("test-table").cause) == (UNWRITTEN, "`table`")


def test_not_written_yet_when_the_test_wraps_the_error(run):
    test = "try:\n    f(1)\nexcept Exception as e:\n    raise AssertionError('f should take 1') from e"
    assert run(solution("f", STUB.format("f")), check("t", test)).part("t").status == UNWRITTEN


def test_a_not_implemented_error_that_is_no_stub_is_a_failure(run):
    part = run(
        solution("f", "def f(x):\n    raise NotImplementedError('only for odd x')"), check("t", "f(1)")
    ).part("t")
    assert (part.status, part.message) == (FAILED, "NotImplementedError: only for odd x")


def test_an_unexpected_error_names_the_students_line(run):
    part = run(
        solution("mean", "#| export\ndef mean(xs):\n    n = 0\n    return sum(xs) / n"),
        check("t", "x = 1\nassert mean([1, 2]) == 1.5, 'no'"),
    ).part("t")
    assert part.status == FAILED
    assert part.message == "ZeroDivisionError: division by zero"
    assert part.where == "line 4 of `mean`: return sum(xs) / n"


def test_an_error_in_the_check_itself_names_its_line(run):
    part = run(check("t", "x = 1\ny = x.shape")).part("t")
    assert part.message == "AttributeError: 'int' object has no attribute 'shape'"
    assert part.where == "line 2 of `t`: y = x.shape"


def test_blocked_names_the_earlier_cell_and_its_error(run):
    report = run(
        solution("f", "def f(x)\n    return x"),
        check("test-f", "assert f(1) == 1"),
        solution("g", "def g(x):\n    return x"),
        check("test-g", "assert g(1) == 1"),
    )
    part = report.part("test-f")
    assert (part.status, part.cause) == (BLOCKED, "`f`")
    assert part.message == "by an error in `f`: SyntaxError: expected ':'"
    assert part.where == "line 1 of `f`: def f(x)"
    assert report.part("test-g").status == PASSED, "the other part must not suffer"


def test_blocked_goes_back_to_the_first_cell_of_a_chain(run):
    report = run(
        "from nowhere_at_all import thing", "other = thing + 1", check("t", "assert other == 1"), "fine = 1"
    )
    part = report.part("t")
    assert part.status == BLOCKED
    assert part.message.startswith("by an error in code cell 1 (from nowhere_at_all import thing)")
    assert "No module named 'nowhere_at_all'" in part.message
    assert not report.notes, "what blocks a part is told there and not a second time"


def test_blocked_by_a_method_that_was_never_attached(run):
    report = run(
        "class Box:\n    pass",
        solution("size", "def size(self):\n    return 1\nsize(\nBox.size = size"),
        check("t", "assert Box().size() == 1"),
    )
    assert (report.part("t").status, report.part("t").cause) == (BLOCKED, "`size`")
    report = run(
        "class Box:\n    pass",
        solution("size", "def size(self):\n    return 1\nunknown\nBox.size = size"),
        check("t", "assert Box().size() == 1"),
    )
    assert (report.part("t").status, report.part("t").cause) == (BLOCKED, "`size`")


def test_an_own_missing_name_is_a_failure_not_a_block(run):
    report = run("broken = 1 / 0", solution("f", "def f():\n    return nme"), check("t", "f()"))
    assert report.part("t").status == FAILED
    assert report.part("t").message == "NameError: name 'nme' is not defined"
    assert report.notes == [
        "code cell 1 (broken = 1 / 0) stops with ZeroDivisionError: division by zero "
        "(line 1 of code cell 1 (broken = 1 / 0): broken = 1 / 0)"
    ]


def test_cells_that_only_show_something_may_fail_on_stubs(run):
    report = run(solution("f", STUB.format("f")), "f(3)", check("t", "assert 1 == 1"))
    assert report.ok and not report.notes


@pytest.mark.parametrize(
    "said", ["import warnings; warnings.warn('careful')", "import sys; print('careful', file=sys.stderr)"]
)
def test_text_on_stderr_in_a_check_is_a_failure_as_in_nbgrader(run, said):
    part = run(check("t", said)).part("t")
    assert part.status == FAILED
    assert "careful" in part.message and "grader" in part.message


def test_a_warning_that_showed_before_shows_again_in_the_check(run):
    report = run(
        "import numpy as np",
        solution("e", "def e(x):\n    y = 1\n    return np.exp(np.float32(x))"),
        "e(1000)",
        check("t", "assert e(1000) > 5"),
    )
    part = report.part("t")
    assert part.status == FAILED
    assert part.message.startswith("line 3 of `e`: RuntimeWarning: overflow")
    assert not report.notes, "a warning outside the checks costs nothing"


def test_what_openblas_says_of_finite_numbers_fails_no_check(run):
    """The same words from a product that does give a nan: the check sees the nan itself."""
    zero_times_inf = "assert np.isnan(np.zeros((2, 2)) @ np.full((2, 2), np.inf)).all()"
    assert run("import numpy as np", check("t", zero_times_inf)).part("t").status == PASSED


def test_written_questions_are_counted_apart(run):
    cells = [
        {"cell_type": "markdown", "source": "Why?", "metadata": {}},
        {
            "cell_type": "markdown",
            "source": "Because.",
            "metadata": {"nbgrader": {"grade": True, "solution": True, "grade_id": "why", "points": 5}},
        },
        check("t", "pass"),
    ]
    report = run(*cells)
    assert [cell.grade_id for cell in report.written] == ["why"]
    assert (report.possible, report.ok) == (4, True)


# ------------------------------------------------------------------------------ cells that end or never end


def test_an_endless_loop_costs_only_its_own_part(run):
    report = run(
        solution("f", "def f():\n    while True:\n        pass"),
        check("test-f", "f()"),
        solution("g", "def g():\n    return 2"),
        check("test-g", "assert g() == 2"),
        time_limit=0.7,
    )
    assert report.part("test-f").status == FAILED
    assert report.part("test-f").message.startswith("it did not end within 0.7 seconds")
    assert report.part("test-g").status == PASSED


def test_many_endless_loops_do_not_take_for_ever(run):
    loops = [check(f"t{i}", "while True: pass") for i in range(MAX_STUCK)]
    report = run(check("first", "pass"), *loops, check("last", "pass"), time_limit=0.2)
    assert report.part("first").status == PASSED
    assert [report.part(f"t{i}").status for i in range(MAX_STUCK)] == [FAILED] * MAX_STUCK
    assert report.part("last").status == NOT_RUN


def test_ending_python_costs_only_its_own_part(run):
    report = run("import os", check("dies", "os._exit(0)"), check("lives", "assert os.sep"))
    assert report.part("dies").status == FAILED
    assert report.part("dies").message == "Python itself ended while it ran (exit status 0)"
    assert report.part("lives").status == PASSED


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("import sys; sys.exit(0)", "must not end Python"),
        ("exit()", "must not end Python"),
        ("raise KeyboardInterrupt", "KeyboardInterrupt"),
        ("input('name? ')", "nobody to type"),
        ("def f(): return f()\nf()", "RecursionError"),
        ("class E(Exception):\n    def __str__(self): raise ValueError\nraise E", "cannot be shown"),
    ],
)
def test_ways_to_stop_that_are_failures(run, source, message):
    report = run(check("t", source), check("after", "pass"))
    assert report.part("t").status == FAILED
    assert message in report.part("t").message
    assert report.part("after").status == PASSED


def test_what_cells_print_cannot_be_taken_for_results(run):
    forged = json.dumps({"event": "end", "cell": 1, "ok": True})
    report = run(
        f"import os, sys\nprint({forged!r})\nos.write(1, b'{forged}\\n')\nsys.__stdout__.write('x')",
        check("t", "assert False, 'no'"),
    )
    assert report.part("t").status == FAILED


def test_a_flood_of_output_is_cut(run):
    report = run(check("t", "for i in range(200_000):\n    print('twenty characters...')"))
    assert report.ok
    assert len(report.part("t").output) <= 20_000


def test_a_time_limit_that_is_none():
    with pytest.raises(RunnerError, match="positive number of seconds, not 0"):
        Worker().run([], time_limit=0)


# -------------------------------------------------------------------------------- magics, and the namespace


@pytest.mark.parametrize(
    "source",
    [
        "%matplotlib inline\nx = 1",
        "x = 1\n!ls -l 'unclosed",
        "x = 1\nif x:\n    %timeit x",
        "%%time\nx = 1",
        "\n%%capture out\nx = 1",
        "x = 1\nx?",
        "x = 1\nstr.join??",
        "?str\nx = 1",
        "files = !ls\nx = 1",
        "x = 1\nget_ipython().run_line_magic('matplotlib', 'inline')",
        "if True:\n    x = 1\n    get_ipython().system('ls')",
        "if 'get_ipython' in globals():\n    plot()\nx = 1",
        "x = 1\ndisplay(x, 'text')",
        "x = (3\n     % 2)",
        "x = len('''\n%matplotlib inline\n!ls\n''') - 23",
    ],
)
def test_magics_are_left_out_and_python_is_kept(run, source):
    report = run(source, check("t", "assert x == 1"))
    assert report.ok, report.part("t").message


def test_other_cell_magics_are_no_python(run):
    assert run("%%bash\nls | head", "%%writefile x.txt\nnot python", check("t", "pass")).notes == []


def test_magics_keep_the_line_numbers(run):
    report = run("%matplotlib inline\n\n!ls\nx = 1 / 0", check("t", "assert x"))
    assert report.part("t").where == "line 4 of code cell 1 (%matplotlib inline): x = 1 / 0"


def test_a_real_syntax_error_is_reported_where_it_is():
    with pytest.raises(SyntaxError) as caught:
        compile(as_python("%matplotlib inline\nx = = 1"), "<cell 0>", "exec")
    assert caught.value.lineno == 2


def test_cells_see_a_module_of_their_own_called_main(run):
    source = """
import dataclasses, inspect, pickle, sys
@dataclasses.dataclass
class Point:
    x: "int"
assert __name__ == "__main__" and sys.modules["__main__"].Point is Point
assert pickle.loads(pickle.dumps(Point(1))) == Point(1)
def f():
    return "findable"
assert "findable" in inspect.getsource(f)
"""
    report = run(source, check("t", "assert Point(2).x == 2 and 'judge' not in globals()"))
    assert report.ok and not report.notes


def test_what_a_name_is_bound_by():
    source = "import a.b as c, d.e\nfrom f import *\ndef g():\n    h = 1\nclass I:\n    def j(self): pass\n"
    source += "I.k = g\nfor m in ():\n    n: int = 1\nsetattr(I, 'o', 1)\np = [q for q in ()]"
    assert names_bound(source) >= {"c", "d", "g", "I", "j", "k", "m", "n", "o", "p"}
    assert not names_bound(source) & {"h", "q", "self"}
    assert names_bound("from a import b, c\ndef d(\nclass E:\nf = 1") >= {"b", "c", "d", "E", "f"}


# ---------------------------------------------------------------------------------- where modules come from


def make_package(root, text):
    (root / "tinytorch").mkdir(parents=True)
    (root / "tinytorch" / "__init__.py").write_text(text, encoding="utf-8")
    return root


def test_the_package_comes_from_the_root_and_nothing_else_does(tmp_path):
    root = make_package(tmp_path / "root", "WHERE = 'root'\n")
    (root / "json.py").write_text("raise RuntimeError('shadowed')", encoding="utf-8")
    cwd = tmp_path / "cwd"
    cwd.mkdir()
    for name in ("random", "numpy", "tinytorch", "notebook_helper"):
        (cwd / f"{name}.py").write_text("raise RuntimeError('shadowed')", encoding="utf-8")
    (cwd / "data.txt").write_text("here", encoding="utf-8")
    cells = cells_of(
        notebook(
            check("imports", "import random, json, numpy, tinytorch\nassert tinytorch.WHERE == 'root'"),
            check(
                "folder", "assert open('data.txt').read() == 'here'\nimport sys\nassert '' not in sys.path"
            ),
            check("helper", "import notebook_helper"),
        )
    )
    with Worker(root=root, cwd=cwd) as worker:
        report = worker.run(cells)
    assert [part.status for part in report.parts] == [PASSED, PASSED, FAILED], report.parts
    assert "No module named 'notebook_helper'" in report.part("helper").message


def test_relative_folders_of_pythonpath_are_not_searched(tmp_path, monkeypatch):
    (tmp_path / "sneaky.py").write_text("", encoding="utf-8")
    absolute = tmp_path / "absolute"
    absolute.mkdir()
    (absolute / "welcome.py").write_text("", encoding="utf-8")
    monkeypatch.setenv("PYTHONPATH", f"{absolute}{':' if sys.platform != 'win32' else ';'}.")
    with Worker(cwd=tmp_path) as worker:
        report = worker.run(cells_of(notebook(check("a", "import welcome"), check("b", "import sneaky"))))
    assert [part.status for part in report.parts] == [PASSED, FAILED]


def test_each_run_of_a_worker_imports_the_package_anew(tmp_path):
    one = make_package(tmp_path / "one", "switched = []\n")
    two = make_package(tmp_path / "two", "switched = ['two']\n")
    cells = cells_of(
        notebook(
            "import tinytorch", check("t", "assert not tinytorch.switched\ntinytorch.switched.append(1)")
        )
    )
    with Worker(root=one) as worker:
        assert worker.run(cells).ok
        pid = worker.process.pid
        assert worker.run(cells).ok, "the first run left something behind"
        assert not worker.run(cells, root=two).ok
        assert worker.process.pid == pid, "one process should do for all of them"


def test_a_package_that_cannot_be_imported_is_a_sentence(tmp_path):
    root = make_package(tmp_path, "import no_such_thing\n")
    with (
        Worker(root=root) as worker,
        pytest.raises(RunnerError, match="tinytorch cannot be imported.*no_such"),
    ):
        worker.run(cells_of(notebook(check("t", "pass"))))


def test_a_syntax_error_in_the_package_names_its_file(tmp_path):
    root = make_package(tmp_path, "")
    (root / "tinytorch" / "half.py").write_text("def f(:\n", encoding="utf-8")
    with Worker(root=root) as worker:
        part = worker.run(cells_of(notebook(check("t", "import tinytorch.half")))).part("t")
    assert "tinytorch/half.py, line 1" in part.message


def test_a_notebook_works_in_its_folder(tmp_path):
    path = tmp_path / "n.ipynb"
    path.write_text(json.dumps(notebook(check("t", ["import os\n", "assert os.listdir() == ['n.ipynb']"]))))
    with Worker(cwd=tmp_path) as worker:
        assert worker.run(cells_of(read_notebook(path))).ok


# -------------------------------------------------------------------------------------------- bad notebooks


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"", "JSON is broken at line 1"),
        (b'{"cells": [', "JSON is broken"),
        (b'{"nbformat": 4, "cells": [\xff\xfe]}', "not UTF-8"),
        (b"[" * 100_000, "JSON is broken"),
        (b"[]", "no object with cells"),
        (b'{"nbformat": 3, "worksheets": []}', "its format is 3, needed is 4"),
        (b'{"nbformat": 4}', "no list of cells"),
        (b'{"nbformat": 4, "cells": [1]}', "cell 1 is not an object"),
        (b'{"nbformat": 4, "cells": [{"cell_type": "code", "source": 5}]}', "cell 1 has no source"),
        (b'{"nbformat": 4, "cells": [{"source": ""}]}', "cell 1 has no type"),
        (
            b'{"nbformat": 4, "cells": [{"cell_type": "code", "source": "", "metadata": {"nbgrader": 3}}]}',
            "unreadable grading metadata",
        ),
        (
            b'{"nbformat": 4, "cells": [{"cell_type": "code", "source": "", '
            b'"metadata": {"nbgrader": {"points": "9"}}}]}',
            "unreadable points",
        ),
    ],
)
def test_unreadable_notebooks_get_one_sentence(tmp_path, content, sentence):
    path = tmp_path / "n.ipynb"
    path.write_bytes(content)
    with pytest.raises(Unreadable, match=sentence) as caught:
        read_notebook(path)
    assert "n.ipynb" in str(caught.value) and "\n" not in str(caught.value)


def test_notebooks_that_are_not_there(tmp_path):
    with pytest.raises(Unreadable, match="no notebook at"):
        read_notebook(tmp_path / "none.ipynb")
    with pytest.raises(Unreadable, match="cannot be read"):
        read_notebook(tmp_path)


def test_a_byte_order_mark_does_no_harm(tmp_path):
    path = tmp_path / "n.ipynb"
    path.write_bytes(b"\xef\xbb\xbf" + json.dumps(notebook("x = 'é'")).encode())
    assert cells_of(read_notebook(path))[0].source == "x = 'é'"


# ----------------------------------------------------------------------------------------- checkpoint tests


@pytest.fixture
def checkpoint(tmp_path):
    make_package(tmp_path, "answer = 42\n")
    path = tmp_path / "test_checkpoint.py"

    def run(text, **options):
        path.write_text(text, encoding="utf-8")
        return run_checkpoint(path, root=tmp_path, **options)

    return run


def test_a_checkpoint_runs_against_the_package_of_its_root(checkpoint):
    result = checkpoint("import tinytorch\ndef test_answer():\n    assert tinytorch.answer == 42\n")
    assert (result.ok, result.passed, result.failed) == (True, 1, {})


def test_a_failed_checkpoint_names_the_tests(checkpoint):
    text = "def test_a():\n    assert 1 + 1 == 3, 'sum'\ndef test_b():\n    pass\ndef test_c():\n    1 / 0\n"
    result = checkpoint(text)
    assert (result.ok, result.passed, list(result.failed)) == (False, 1, ["test_a", "test_c"])
    assert "sum" in result.failed["test_a"]
    assert list(checkpoint(text, first_failure=True).failed) == ["test_a"]


@pytest.mark.parametrize(
    "text",
    [
        "import tinytorch.no_such_module\ndef test_a():\n    pass\n",
        "def nothing_to_test():\n    pass\n",
        "import os\ndef test_a():\n    os._exit(0)\n",
        "import pytest\n@pytest.mark.skip(reason='no')\ndef test_a():\n    pass\n",
        "def test_a(:\n",
    ],
)
def test_a_checkpoint_that_proves_nothing_has_not_passed(checkpoint, text):
    result = checkpoint(text)
    assert not result.ok and result.failed


HYPOTHESIS = """
from hypothesis import given, settings, strategies as st
import tinytorch
@settings(max_examples=20)
@given(st.integers(0, 10))
def test_a(n):
    assert n < tinytorch.answer
"""


def test_the_quick_way_judges_as_the_full_one(checkpoint):
    for quick in (True, False):
        right = checkpoint(HYPOTHESIS, first_failure=quick)
        assert (right.ok, right.finished, right.passed) == (True, True, 1), right.output
    wrong = checkpoint(HYPOTHESIS.replace("tinytorch.answer", "3"), first_failure=True)
    assert (wrong.ok, wrong.finished, list(wrong.failed)) == (False, True, ["test_a"]), wrong.output


def test_a_crash_of_pytest_is_no_failed_test(checkpoint):
    result = checkpoint("import os\ndef test_a():\n    os._exit(3)\n")
    assert not result.ok and not result.finished
    assert "exit status 3" in result.failed["test_checkpoint.py"]


def test_a_checkpoint_that_never_ends_is_ended(checkpoint):
    result = checkpoint("def test_a():\n    while True: pass\n", time_limit=1.5)
    assert list(result.failed.values()) == ["did not end within 1.5 seconds"]
