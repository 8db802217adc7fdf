"""Honest work is never punished: what students do to a notebook besides solving it, judged by `tito grade`.

Each submission solves every graded cell of module 04; what it does besides is an ordinary habit. The
student's own `tito module test` must say what the grade says.
"""

import copy
import json

import pytest

from course import find, learnt_course, points, with_cell
from habits import with_habits
from judging import run
from tinytorch.tito.notebook.files import from_bytes
from tinytorch.tito.notebook.settle import settle

pytestmark = pytest.mark.grading

ALL = 90
UNUSED = "from pathlib import Path"
FUTURE = "from __future__ import annotations"
SOLVED_MORE = {  # name -> what is appended to a solution cell
    "timeit": "\n\n%timeit log_softmax(np.ones(3))\n%matplotlib inline",
    "display": "\n\ndisplay(log_softmax(np.ones(3)))",
    "prediction": "\n\nprediction = Tensor([1.0, 2.0])\nprint(prediction)",
    "look-variable": "\n\nprint(log_softmax(far_behind))",
    "own-plot": "\n\nimport matplotlib.pyplot as plt\nplt.plot([1, 2])\nplt.show()",
}
OWN = {  # name -> a cell of the student's own before the solution, and the default value that it lends
    "constant-call": ("LOWEST = float('-inf')", "LOWEST"),
    "constant-minus": ("SHIFT = -0.0", "SHIFT"),
    "constant-pair": ("A_MINE, B_MINE = 1, 2", "A_MINE"),
    "constant-annotated": ("SHIFT: float = 0.0", "SHIFT"),
    "constant-float32": ("SHIFT = np.float32(0)", "SHIFT"),
    "constant-lambda": ("nothing = lambda: 0", "nothing"),
    "def-print": ("def nothing():\n    return 0\n\n\nprint(nothing())", "nothing"),
    "def-assert": ("def nothing():\n    return 0\n\n\nassert nothing() == 0", "nothing()"),
    "doc-def": ('"""Helpers of mine."""\n\n\ndef nothing():\n    return 0', "nothing"),
    "loop": ("for SHIFT in (1, 0):\n    pass", "SHIFT"),
    "try": ("try:\n    import numba\n    FAST = True\nexcept ImportError:\n    FAST = False", "FAST"),
}


@pytest.fixture(scope="module")
def course(tmp_path_factory):
    return learnt_course(tmp_path_factory.mktemp("course"), "04")


def imports(course, change):
    notebook = course.solved()
    first = next(cell for cell in notebook["cells"] if "import math" in cell["source"])
    first["source"] = change(first["source"])
    return notebook


def edited(course, grade_id, change):
    notebook = course.solved()
    find(notebook, grade_id)["source"] = change(find(notebook, grade_id)["source"])
    return notebook


def without_labels(course, *grade_ids):
    notebook = course.solved()
    for cell in notebook["cells"]:
        if cell["metadata"].get("nbgrader", {}).get("grade_id") in grade_ids or not grade_ids:
            cell["metadata"] = {}
    return notebook


def split(course):
    """As JupyterLab splits a cell: both halves keep the label."""
    notebook = course.solved()
    cell = find(notebook, "log-softmax")
    lower = copy.deepcopy(cell) | {"source": "def a_helper_of_mine():\n    return 0"}
    notebook["cells"].insert(notebook["cells"].index(cell) + 1, lower)
    return notebook


def answer_below(course):
    notebook = course.solved()
    place = notebook["cells"].index(find(notebook, "question-padding")) + 1
    cell = {"cell_type": "markdown", "id": "below", "metadata": {}, "source": "Because they do not count."}
    notebook["cells"].insert(place, cell)
    return notebook


def honest(course) -> dict[str, dict]:
    """{name: notebook}: each is worth all automatic points."""
    found = {
        "autoreload": imports(course, lambda text: f"%load_ext autoreload\n%autoreload 2\n{text}"),
        "pyplot": imports(course, lambda text: f"{text}\nfrom matplotlib import pyplot as plt"),
        "pathlib": imports(course, lambda text: f"{text}\nfrom pathlib import Path"),
        "not-installed-last": imports(course, lambda text: f"{text}\nimport a_package_of_mine"),
        "not-installed-first": imports(course, lambda text: f"import a_package_of_mine\n{text}"),
        "lost-import": imports(course, lambda text: text.replace("import math\n", "")),
        "future-cell": with_cell(course.solved(), FUTURE, before="mse"),
        "future-solution": edited(
            course,
            "mse",
            lambda text: text.replace("export", "export\nfrom __future__ import annotations", 1),
        ),
        "time": edited(course, "mse", lambda text: f"%%time\n{text}"),
        "black": edited(course, "mse", lambda text: text.replace("#| export", "# | export")),
        "typed-again": without_labels(course, "mse"),
        "all-typed-again": without_labels(course),
        "split": split(course),
        "answer-below": answer_below(course),
    }
    for name, more in SOLVED_MORE.items():
        found[name] = edited(course, "log-softmax", lambda text, more=more: text + more)
    for name, (cell, default) in OWN.items():
        more = f"\n\n\ndef uses_it(x={default}):\n    return x"
        notebook = edited(course, "log-softmax", lambda text, more=more: text + more)
        found[name] = with_cell(notebook, cell, before="log-softmax")
    for seed in range(8):
        found[f"habits-{seed}"] = with_habits(course.solved(), 7000 + seed)[0]
    return found


def partly(course) -> dict[str, tuple[dict, set[str]]]:
    """{name: (notebook, the parts that it may lose at most)}."""
    unused = edited(
        course,
        "mse",
        lambda text: text.replace(
            "        prediction =", "        from pathlib import Path\n        prediction =", 1
        ),
    )
    equal = (
        "\n\n\nclass Pair:\n    def __init__(self, a):\n        self.a = a\n\n"
        "    def __eq__(self, other):\n        return self.a == other.a"
    )
    return {
        "unused-path": (unused, {"test-mse"}),
        "own-equal": (edited(course, "log-softmax", lambda text: text + equal), {"test-log-softmax"}),
        "broken-constant": (
            with_cell(
                edited(course, "perplexity", lambda text: text + "\n\n\ndef f(x=WORST):\n    return x"),
                "WORST = 1 / 0",
                before="perplexity",
            ),
            {"test-perplexity"},
        ),
    }


@pytest.fixture(scope="module")
def graded(course):
    notebooks = honest(course) | {name: notebook for name, (notebook, _) in partly(course).items()}
    for name, notebook in notebooks.items():
        course.submit(name, notebook)
    return course.grade("--jobs", "2"), notebooks


def test_every_honest_one_has_all_its_points(graded, course):
    rows, _ = graded
    lost = {
        name: (points(rows[name]), rows[name]["flags"])
        for name in honest(course)
        if points(rows[name]) != ALL
    }
    assert not lost, "\n".join(map(str, lost.items()))


def test_what_is_withheld_costs_itself_and_says_why(graded, course):
    rows, _ = graded
    for name, (_, at_most) in partly(course).items():
        earned = course.parts(rows[name])
        full = course.parts(rows["autoreload"])
        lost = {part for part in full if earned[part] < full[part]}
        assert lost <= at_most, f"{name} lost {lost}: {rows[name]['flags']}"


def test_flags_tell_what_a_person_should_look_at(graded):
    rows, _ = graded
    for name in (
        "autoreload",
        "pyplot",
        "own-plot",
        "black",
        "time",
        "display",
        "constant-call",
        "future-cell",
    ):
        assert rows[name]["flags"] == "", f"{name}: {rows[name]['flags']}"
    assert "`mse` has lost its label" in rows["typed-again"]["flags"]
    assert "two cells; both count, but merge them" in rows["split"]["flags"]
    assert "is that the answer?" in rows["answer-below"]["flags"]
    assert rows["answer-below"]["status"] == "needs manual marks"


def test_the_students_tool_says_what_the_grade_says(graded, course):
    rows, notebooks = graded
    for name, notebook in notebooks.items():
        notebook = from_bytes(json.dumps(notebook).encode(), "a.ipynb")
        report = run(settle(notebook, course.released).cells)
        if name in honest(course):
            assert report.earned == points(rows[name]), f"{name}: {[p for p in report.parts if not p.earned]}"
