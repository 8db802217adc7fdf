"""`tito grade` on module 04: what is earned, what is not, and that nobody harms anybody."""

import html
import json
import os
import re
from pathlib import Path

import psutil
import pytest
from click.testing import CliRunner

from course import HAS_BWRAP, find, learnt_course, points, with_cell
from hostile import NAP, dishonest, harmful, unreadable
from tinytorch.tito.cli import cli
from tinytorch.tito.instructor.grading.results import Result, summary
from toy import REPO

pytestmark = pytest.mark.grading


HELPER = "def absolute(x):\n    return np.maximum(x, -x)"


@pytest.fixture(scope="module")
def course(tmp_path_factory):
    return learnt_course(tmp_path_factory.mktemp("course"), "04")


@pytest.fixture(scope="module")
def graded(course):
    """One run over everybody -> the rows, and the names of the hostile by kind."""
    wrong = course.solved()
    find(wrong, "mse")["source"] = find(wrong, "mse")["source"].replace(".mean()", ".sum()")
    careless = course.solved()
    find(careless, "mse")["source"] = find(careless, "mse")["source"].replace(".size == 0", ".size == -1")
    broken = course.solved()
    find(broken, "log-softmax")["source"] = "#| export\ndef log_softmax(x, axis=-1)\n    return x"
    own = course.solved()
    softmax = find(own, "log-softmax")
    softmax["source"] = "# mine\n" + softmax["source"].replace("#| export", "import os, sys\n#| export")
    softmax["source"] += "\nabsolute(np.ones(1))\n"
    honest = {
        "a-empty": course.released,
        "b-reference": course.solved(),
        "c-half": course.solved("mse", "log-softmax", "cross-entropy"),
        "d-one": course.solved("perplexity"),
        "e-wrong-mse": wrong,
        "f-syntax-error": broken,
        "g-hidden-mistake": careless,
        "h-helper-without-export": with_cell(own, "import numpy as np\n\n\n" + HELPER, before="log-softmax"),
    }
    kinds = {"dishonest": dishonest(course), "harmful": harmful(course), "unreadable": unreadable(course)}
    for name, notebook in [*honest.items(), *(item for kind in kinds.values() for item in kind.items())]:
        course.submit(name, notebook)
    course.submit("g-outputs", json.dumps(course.solved(), indent=2).encode("utf-8-sig"))
    link, pipe = course.place("link"), course.place("pipe")
    for file in (link, pipe):
        file.parent.mkdir(parents=True)
    link.symlink_to(course.folder / "source" / course.module.label / link.name)
    os.mkfifo(pipe)
    course.place("no folder; rm -rf").parent.mkdir(parents=True)
    (course.folder / "submitted" / "absent").mkdir()
    before = {p: p.read_bytes() for p in (course.folder / "submitted").rglob("*.ipynb") if not p.is_fifo()}
    rows = course.grade("--jobs", "3")
    assert before == {p: p.read_bytes() for p in before}, "a submission was changed"
    names = {kind: list(notebooks) for kind, notebooks in kinds.items()}
    names["unreadable"] += ["link", "pipe", "no folder; rm -rf"]
    return rows, names


def test_what_is_earned(graded, course):
    rows, _ = graded
    assert points(rows["a-empty"]) == 0
    assert points(rows["b-reference"]) == course.automatic == 90 and rows["b-reference"]["flags"] == ""
    assert points(rows["c-half"]) == 48 and rows["c-half"]["flags"] == ""
    assert points(rows["d-one"]) == 10 and rows["d-one"]["flags"] == ""
    assert points(rows["e-wrong-mse"]) == course.automatic - 10
    assert float(rows["e-wrong-mse"]["test-mse"]) == 0
    assert points(rows["g-hidden-mistake"]) == course.automatic - 10
    assert points(rows["g-outputs"]) == course.automatic
    assert float(rows["f-syntax-error"]["test-mse"]) == 10
    assert float(rows["f-syntax-error"]["test-log-softmax"]) == 0
    helped = rows["h-helper-without-export"]
    assert points(helped) == course.automatic and helped["flags"] == ""
    assert rows["absent"]["status"] == "not submitted" and points(rows["absent"]) == 0


def test_there_are_at_least_forty(graded):
    assert sum(map(len, graded[1].values())) >= 40


def test_nobody_earns_what_is_not_deserved(graded, course):
    """The dishonest solved all but one part: none has more than the one that only left it wrong."""
    rows, names = graded
    deserved = course.parts(rows["broken"])
    assert sum(deserved.values()) == course.automatic - 10
    for name in names["dishonest"]:
        earned = course.parts(rows[name])
        more = {part for part in deserved if earned[part] > deserved[part]}
        assert not more, f"{name} earned {more}: {rows[name]}"
    earned = {name: points(rows[name]) for name in names["harmful"] + names["unreadable"]}
    assert not {name: score for name, score in earned.items() if score}


def test_statuses_tell_what_happened(graded):
    rows, names = graded
    status = {name: row["status"] for name, row in rows.items()}
    assert status["endless"] == "timed out", rows["endless"]
    for name in ("os-exit", "kills", "crash"):
        assert status[name] == "crashed", rows[name]
    for name in names["unreadable"]:
        assert status[name] == "rejected" and rows[name]["reason"], rows[name]
    assert "20 MB" in rows["large-outputs"]["reason"]
    assert status["b-reference"] == "graded"  # no answer was written, so that there is nothing to mark
    assert "put back" in rows["tests-deleted"]["flags"]
    assert "as it was handed out" in rows["tests-edited"]["flags"]
    plain = {"broken", "imports-solution", "leaves-in-export", "blanks-cells", "patches-within-beside"}
    plain |= {"magic-shell", "magic-python", "outputs-claim", "future-flufl", "future-module", "look-patches"}
    for name in set(names["dishonest"]) - plain:  # these only fail, or deceive nobody here
        assert rows[name]["flags"], rows[name]
    assert "tampers" in rows["patches-within"]["flags"], rows["patches-within"]


def test_nothing_is_left_behind(graded):
    assert not [p for p in psutil.process_iter(["cmdline"]) if NAP in (p.info["cmdline"] or [])]
    assert not list(Path("/tmp").glob("conftest.py")) and not Path("/usr/written-by-student").exists()


def test_feedback_shows_no_hidden_test(graded, course):
    rows, names = graded
    hidden = course.hidden_lines()
    assert len(hidden) > 20
    pages = list((course.folder / "feedback").rglob("*.html"))
    assert len(pages) == len(rows) - 2  # the absent, and the one whose name is no student's
    for page in pages:
        text = html.unescape(page.read_text(encoding="utf-8"))
        for line in hidden:
            assert line not in text, f"{page.name} of {page.parent.name} shows {line}"
    page = course.folder / "feedback" / "g-hidden-mistake" / f"{course.module.label}.html"
    assert "one that you cannot see does not" in page.read_text(encoding="utf-8")


@pytest.mark.skipif(not HAS_BWRAP and "CI" not in os.environ, reason="there is no bubblewrap here")
def test_the_sandbox_shows_nothing_and_lets_nothing_out(graded, course):
    assert HAS_BWRAP, "CI grades in bubblewrap: apt-get install bubblewrap"
    own = course.autograded("looks-around")["cells"][2]
    assert "found" in own["source"]
    assert not [out for out in own["outputs"] if out["output_type"] == "error"]
    for name in ("socket", "writes-outside", "large-file", "disk"):
        errors = [
            out for out in course.autograded(name)["cells"][2]["outputs"] if out["output_type"] == "error"
        ]
        assert errors and errors[0]["ename"].endswith("Error"), name


def mark(course, student, question, score, comment=""):
    """What formgrader does when an instructor types a score and a comment."""
    from nbgrader.api import Gradebook

    with Gradebook(f"sqlite:///{course.folder / 'gradebook.db'}", "tinytorch") as book:
        where = question, course.module.name, course.module.label, student
        grade = book.find_grade(*where)
        grade.manual_score, grade.needs_manual_grade = score, False
        if comment:
            book.find_comment(*where).manual_comment = comment
        book.db.commit()


def page_of(course, student):
    path = course.folder / "feedback" / student / f"{course.module.label}.html"
    return path.read_text(encoding="utf-8")


def test_again_changes_nothing_and_manual_marks_stay(graded, course):
    rows, _ = graded
    mark(course, "c-half", "test-mse", 9)
    answered = course.solved("mse")
    find(answered, "question-padding")["source"] = "Because."
    course.submit("d-one", answered)
    again = course.grade("--jobs", "3")
    assert points(again["c-half"]) == 47 and "9 points were given by hand" in page_of(course, "c-half")
    assert points(again["d-one"]) == 10 and again["d-one"]["status"] == "needs manual marks"
    assert again["d-one"]["reason"] == "to be marked: question-padding"
    assert again["d-one"]["question-padding"] == "" and "not marked yet" in page_of(course, "d-one")
    assert "10 of 95 points so far; 1 answer (5 points) not marked yet." in page_of(course, "d-one")
    for name in set(rows) - {"c-half", "d-one"}:
        assert again[name] == rows[name]
    mark(course, "d-one", "question-padding", 4, comment="And why?")
    for options in ((), ("--again",)):  # the answer is the same: its mark stays, and needs no second look
        row = course.grade("--student", "d-one", *options)["d-one"]
        assert points(row) == 14 and (row["status"], row["reason"]) == ("graded", "")
        assert "marked by hand" in page_of(course, "d-one") and "And why?" in page_of(course, "d-one")
    find(answered, "question-padding")["source"] = "Because of the mean."
    course.submit("d-one", answered)
    rows = course.grade("--student", "d-one")
    assert points(rows["d-one"]) == 14 and rows["d-one"]["status"] == "needs manual marks"
    assert set(rows) == set(again)


def test_what_lies_in_the_wrong_place_is_told(graded, course):
    """After the others: it adds a student and a loose file."""
    folder = course.folder / "submitted"
    (folder / "z-misplaced").mkdir()
    (folder / "z-misplaced" / "losses.ipynb").write_bytes(course.place("b-reference").read_bytes())
    course.place("z-zipped").parent.mkdir(parents=True)
    (course.place("z-zipped").parent / "losses.zip").write_bytes(b"PK")
    (folder / "losses.ipynb").write_bytes(b"{}")
    rows = course.grade("--student", "z-misplaced")
    assert rows["z-misplaced"]["status"] == "rejected"
    assert rows["z-misplaced"]["reason"] == "losses.ipynb lies beside the folder 04_losses/ and not in it"
    rows = course.grade("--student", "z-zipped")
    assert "holds no notebook losses.ipynb, but losses.zip" in rows["z-zipped"]["reason"]
    assert "losses.ipynb" not in rows
    assert "hand it in again" in page_of(course, "z-zipped") and "<table>" not in page_of(course, "z-zipped")


@pytest.mark.parametrize(
    ("place", "said"),
    [
        ("nowhere", "There is no folder .*nowhere/submitted. For a new course, make"),
        ("empty", "There is no submission in .*empty/submitted: put each student's notebook into"),
        ("course/submitted", "submitted is the folder of submissions; --course is the folder above it"),
    ],
)
def test_a_folder_that_is_no_course_is_refused_before_anything_is_made(place, said, tmp_path, monkeypatch):
    (tmp_path / "empty" / "submitted").mkdir(parents=True)
    (tmp_path / "course" / "submitted").mkdir(parents=True)
    (tmp_path / "course" / "gradebook.db").touch()
    before = sorted(tmp_path.rglob("*"))
    monkeypatch.chdir(REPO)
    sandbox = [] if HAS_BWRAP else ["--no-sandbox"]
    done = CliRunner().invoke(cli, ["grade", "04", "--course", str(tmp_path / place), *sandbox])
    assert done.exit_code == 1 and re.search(said, done.stderr), done.output
    assert sorted(tmp_path.rglob("*")) == before


def test_the_summary_names_what_to_look_at():
    results = [
        Result("ada", "graded"),
        Result("bob", "needs manual marks"),
        Result("eva", "needs manual marks", flags=["the notebook had another name"]),
        Result("gus", "rejected", "the notebook is an empty file"),
    ]
    said = "1 graded, 2 need manual marks, 1 rejected (gus), 1 flagged (eva)"
    assert summary(results) == said
