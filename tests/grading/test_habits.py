"""What honest students and instructors do to a course folder, on a module of one part and one question."""

import contextlib
import copy
import csv
import json
import re
import shutil
import unicodedata
from datetime import datetime
from pathlib import Path

import pytest

from course import HAS_BWRAP, find
from tinytorch.tito.instructor import course_config
from tinytorch.tito.instructor.course import generate_release
from tinytorch.tito.instructor.database import open_gradebook
from tinytorch.tito.instructor.grading import command
from tinytorch.tito.instructor.grading.results import (
    GRADE_COLUMNS,
    PartResult,
    Result,
    read_grades,
    write_grades,
)
from tinytorch.tito.project import Project, TitoError
from toy import Toy, make_toy

pytestmark = pytest.mark.grading

MODULE = "01_tensor"
SECOND = """
# %% nbgrader={"grade": true, "grade_id": "test-data", "locked": true, "points": 20, "schema_version": 3, "solution": false}
assert list(Tensor([3]).data) == [3], "the numbers are kept"
"""  # noqa: E501
IMAGE = {"scan.png": {"image/png": "QUFBQQ=="}}


class ToyCourse:
    """A course on the toy's first module: test-tensor (95 points), test-data (20), why (5, by hand)."""

    def __init__(self, toy: Toy, folder: Path):
        self.toy, self.folder = toy, folder
        (toy.project.root / "tinytorch" / "core" / "tensor.py").touch()
        if "test-data" not in toy.dev().read_text(encoding="utf-8"):
            toy.edit('\n# %% [markdown]\n"""\nWhy is', SECOND + '\n# %% [markdown]\n"""\nWhy is')
        folder.mkdir(parents=True, exist_ok=True)

    @property
    def source(self) -> Path:
        return self.folder / "source" / MODULE / "tensor.ipynb"

    def edit_source(self, old: str, new: str) -> None:
        """By hand, in the notebook's text."""
        text = self.source.read_text(encoding="utf-8")
        assert old in text
        self.source.write_text(text.replace(old, new), encoding="utf-8")

    def notebook(self, *answer: str, attachments=None) -> dict:
        """What is handed out now, solved, perhaps with an answer to the question."""
        notebook = read(self.folder / "release" / MODULE / "tensor.ipynb")
        find(notebook, "tensor")["source"] = find(read(self.source), "tensor")["source"]
        if answer:
            find(notebook, "why")["source"] = answer[0]
        if attachments:
            find(notebook, "why")["attachments"] = attachments
        return notebook

    def submit(self, student: str, notebook: dict, name: str = "tensor.ipynb") -> Path:
        file = self.folder / "submitted" / student / MODULE / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(notebook), encoding="utf-8")
        return file

    def grade(self, *options: str):
        """-> click's result."""
        options = (*options, *(() if HAS_BWRAP else ("--no-sandbox",)))
        return self.toy.tito("grade", "01", "--course", str(self.folder), *options)

    def rows(self, *options: str) -> dict[str, dict]:
        done = self.grade(*options)
        assert done.exit_code == 0, done.output
        with (self.folder / "grades.csv").open(encoding="utf-8", newline="") as file:
            return {row["student"]: row for row in csv.DictReader(file)}

    def page(self, student: str) -> Path:
        return self.folder / "feedback" / student / f"{MODULE}.html"


def read(path: Path) -> dict:
    notebook = json.loads(path.read_text(encoding="utf-8"))
    for cell in notebook["cells"]:
        cell["source"] = "".join(cell["source"])
    return notebook


@pytest.fixture(scope="module")
def graded_once(tmp_path_factory):
    """A folder with the toy project, and a course in which ada has solved and answered everything."""
    folder = tmp_path_factory.mktemp("graded-once")
    toy = Toy(project=Project(make_toy(folder / "project")))
    made = ToyCourse(toy, folder / "course")
    (made.folder / "submitted" / "ada" / MODULE).mkdir(parents=True)
    with contextlib.chdir(toy.project.root):
        row = made.rows()["ada"]
        assert (row["score"], row["status"]) == ("0", "not submitted")
        made.submit("ada", made.notebook("Because."))
        row = made.rows()["ada"]
    assert (row["score"], row["max_score"], row["flags"]) == ("115", "120", "")
    return folder


@pytest.fixture
def course(graded_once, tmp_path, monkeypatch):
    """A copy of it."""
    shutil.copytree(graded_once, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path / "project")
    return ToyCourse(Toy(project=Project(tmp_path / "project")), tmp_path / "course")


def mark(course: ToyCourse, student: str, part: str, score: float) -> None:
    with open_gradebook(course.folder) as book:
        grade = book.find_grade(part, "tensor", MODULE, student)
        grade.manual_score, grade.needs_manual_grade = score, False
        book.db.commit()


def in_gradebook(course: ToyCourse) -> dict[str, float]:
    with open_gradebook(course.folder) as book:
        return {one.student.id: one.score for one in book.assignment_submissions(MODULE)}


# ------------------------------------------------------------------------------------------- what students do


def test_what_lies_in_one_folder_is_that_students_matter(course):
    folder, solved = course.folder / "submitted", course.notebook()
    (folder / "cyn" / MODULE / "tensor.ipynb").mkdir(parents=True)
    for student, name in (("dot", "01_Tensor"), ("eve", "tensor"), ("fay", "02_layers"), ("gil", "1")):
        (folder / student / name).mkdir(parents=True)
        (folder / student / name / "tensor.ipynb").write_text(json.dumps(solved))
    for student, names in (("mac", [".DS_Store", ".ipynb_checkpoints"]), ("tim", ["timestamp.txt"])):
        for name in names:
            (folder / student / MODULE).mkdir(parents=True, exist_ok=True)
            (folder / student / MODULE / name).write_text("2026-11-27 10:00:00 UTC")
    course.submit("two", read(course.folder / "release" / MODULE / "tensor.ipynb"))
    course.submit("two", solved, "tensor-Copy1.ipynb")
    course.submit("müller", solved)
    course.submit(unicodedata.normalize("NFD", "jürgen"), solved)
    course.submit("o'brien", solved)
    course.submit("a b", solved)
    (course.folder / "feedback" / "way" / f"{MODULE}.html").mkdir(parents=True)
    course.submit("way", solved)
    rows = course.rows()
    said = {name: (row["score"], row["status"], row["reason"]) for name, row in rows.items()}
    assert said["cyn"] == ("0", "rejected", "tensor.ipynb is a folder")
    assert said["dot"] == ("0", "not submitted", "there is no folder 01_tensor/, but 01_Tensor/")
    assert said["eve"][2].endswith("but tensor/") and said["gil"][2].endswith("but 1/")
    assert said["fay"] == said["mac"] == said["tim"] == ("0", "not submitted", "")
    assert rows["two"]["flags"] == (
        "tensor-Copy1.ipynb beside it was not graded, and what was graded is as it was handed out"
    )
    for name in ("müller", unicodedata.normalize("NFD", "jürgen"), "o'brien", "way"):
        assert rows[name]["score"] == "115", rows[name]
    assert said["a b"][1] == "rejected" and "it holds a space; letters" in said["a b"][2]
    assert "its files could not be written: Is a directory" in rows["way"]["flags"]
    assert course.page("o'brien").is_file() and course.page("müller").is_file()


def test_an_image_in_an_answer_is_part_of_it(course):
    answer = "![scan.png](attachment:scan.png)"
    course.submit("ada", course.notebook(answer, attachments=IMAGE))
    assert course.rows()["ada"]["status"] == "needs manual marks"
    kept = find(read(course.folder / "autograded" / "ada" / MODULE / "tensor.ipynb"), "why")
    assert kept["attachments"] == IMAGE
    mark(course, "ada", "why", 4)
    assert course.rows()["ada"]["status"] == "graded"
    course.submit("ada", course.notebook(answer, attachments={"scan.png": {"image/png": "QkJCQg=="}}))
    row = course.rows()["ada"]
    assert (row["score"], row["status"]) == ("119", "needs manual marks")
    assert "changed, to be marked again" in course.page("ada").read_text(encoding="utf-8")


def test_lateness_is_recorded_as_nbgrader_does_and_a_rule_of_the_course_is_kept(course):
    """The due date stands in the gradebook, the time of handing in in nbgrader's own file."""
    with open_gradebook(course.folder) as book:
        book.update_or_create_assignment(MODULE, duedate="2026-11-17 12:00:00")
    file = course.folder / "submitted" / "ada" / MODULE / "timestamp.txt"
    file.write_text("2026-11-27 13:30:00 UTC\n")
    row = course.rows()["ada"]
    assert (row["late"], row["score"]) == ("10 d 1 h", "115")
    assert "handed in 10 d 1 h late" in course.page("ada").read_text(encoding="utf-8")
    with open_gradebook(course.folder) as book:
        submission = book.find_submission(MODULE, "ada")
        assert submission.timestamp == datetime(2026, 11, 27, 13, 30)
        assert submission.total_seconds_late == 10 * 86400 + 5400 and submission.late_submission_penalty == 0
    with (course.folder / "nbgrader_config.py").open("a") as config:
        config.write("\nc.LateSubmissionPlugin.penalty_method = 'zero'\n")
    course.rows()
    with open_gradebook(course.folder) as book:
        assert book.find_submission(MODULE, "ada").late_submission_penalty == 115
    assert "which costs 115 points" in course.page("ada").read_text(encoding="utf-8")
    file.write_text("yesterday")
    assert "timestamp.txt does not hold a time: `yesterday`" in course.rows()["ada"]["flags"]


def test_a_submission_that_is_gone_is_gone_everywhere(course):
    mark(course, "ada", "why", 5)
    course.submit("bob", course.notebook())
    assert course.rows()["ada"]["score"] == "120" and in_gradebook(course) == {"ada": 120, "bob": 115}
    (course.folder / "submitted" / "ada" / MODULE / "tensor.ipynb").unlink()
    row = course.rows()["ada"]
    assert (row["score"], row["status"]) == ("0", "not submitted")
    assert in_gradebook(course) == {"bob": 115} and not course.page("ada").exists()
    copy_of_it = course.folder / ".tito" / "backups" / re.search(r"\.tito/backups/(\S+)", row["reason"])[1]
    assert copy_of_it.is_file()
    course.submit("ada", course.notebook("Because."))
    assert course.rows()["ada"]["score"] == "115" and in_gradebook(course) == {"ada": 115, "bob": 115}


def test_a_resubmission_that_is_worse_is_flagged_and_both_results_are_kept(course):
    good, best = (
        course.notebook("Because."),
        course.folder / ".tito" / "graded" / MODULE / "best" / "ada.json",
    )
    worse = course.notebook("Because.")
    find(worse, "tensor")["source"] = "#| export\nclass Tensor:\n    pass\n"
    said = "earlier earned 115 points by machine, this 0; that result is kept in .tito/graded/01_tensor/"
    course.submit("ada", worse)
    for _ in range(2):  # graded, and repeated
        row = course.rows()["ada"]
        assert row["score"] == "0" and f"{said}best/ada.json" in row["flags"]
        assert (
            sum(part["auto"] or 0 for part in json.loads(best.read_text())["result"]["parts"].values()) == 115
        )
    for unreadable in ("{", ""):  # rejected, by what it holds and before that
        course.submit("ada", {}).write_text(unreadable, encoding="utf-8")
        row = course.rows()["ada"]
        assert row["status"] == "rejected" and f"{said}best/ada.json" in row["flags"]
    course.submit("ada", good)
    assert (course.rows()["ada"]["score"], course.rows()["ada"]["flags"]) == ("115", "")


# ---------------------------------------------------------------------------- source and release disagree


def test_points_that_were_changed_after_the_release(course):
    course.edit_source('"points": 95', '"points": 60')
    row = course.rows()["ada"]
    assert (row["score"], row["max_score"], row["flags"]) == ("80", "85", "")
    assert in_gradebook(course) == {"ada": 80}
    course.edit_source('"points": 60', '"points": 45')
    generate_release(
        course.folder, course.toy.project.module("01")
    )  # as `nbgrader generate_assignment --force`
    row = course.rows()["ada"]
    assert (row["score"], row["max_score"], row["flags"]) == ("65", "70", "")


def test_a_check_whose_words_were_mended_is_not_called_edited_but_an_edited_one_is(course):
    edited = course.notebook("Because.")
    find(edited, "test-tensor")["source"] += "\n# mine"
    course.submit("bob", edited)
    course.edit_source("one number has size 1", "a single number has size 1")
    rows = course.rows()
    assert (rows["ada"]["score"], rows["ada"]["flags"]) == ("115", "")
    assert rows["bob"]["flags"] == "`test-tensor` was changed; the check is run as it was handed out"
    graded = read(course.folder / "autograded" / "ada" / MODULE / "tensor.ipynb")
    assert "a single number" in find(graded, "test-tensor")["source"]


def test_a_part_that_was_left_out_and_one_that_was_renamed(course):
    notebook = read(course.source)
    notebook["cells"].remove(find(notebook, "test-data"))
    course.source.write_text(json.dumps(notebook), encoding="utf-8")
    row = course.rows()["ada"]
    assert (row["score"], row["max_score"], row["flags"]) == ("95", "100", "")
    assert in_gradebook(course) == {"ada": 95}
    mark(course, "ada", "why", 3)
    course.edit_source('"grade_id": "why"', '"grade_id": "question"')
    done = course.grade()
    assert done.exit_code == 0, done.output
    said = " ".join(done.stderr.split())
    assert (
        "no longer has parts that were marked by hand: `why` (1)" in said
        and "give it its old grade_id" in said
    )
    assert list((course.folder / ".tito" / "backups").glob("*-gradebook.db"))
    row = course.rows()["ada"]
    assert (row["score"], row["max_score"]) == ("95", "100")


def test_a_source_saved_with_carriage_returns(course):
    notebook = read(course.source)
    for cell in notebook["cells"]:
        cell["source"] = cell["source"].replace("\n", "\r\n")
    course.source.write_text("\ufeff" + json.dumps(notebook), encoding="utf-8")
    row = course.rows()["ada"]
    assert (row["score"], row["flags"]) == ("115", "")
    assert "\\r" not in (course.folder / "release" / MODULE / "tensor.ipynb").read_text(encoding="utf-8")


@pytest.mark.parametrize("place", ["course", "project"])
def test_a_release_of_another_place_can_be_put_beside_the_others(place, course):
    foreign = copy.deepcopy(course.notebook("Because."))
    find(foreign, "test-tensor")["source"] = "assert Tensor([1]).size == 1, 'of last year'"
    course.submit("bob", foreign)
    assert "`test-tensor` was changed" in course.rows()["bob"]["flags"]
    folder = course.folder.parent / place / ".tito" / "releases" / MODULE
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "last-year.ipynb").write_text(json.dumps(foreign))
    row = course.rows()["bob"]
    assert (row["score"], row["flags"]) == ("115", "")


# ----------------------------------------------------------------------------------------------------- paths


def test_any_name_that_a_folder_can_have(toy, tmp_path):
    folder = tmp_path / "NLP [2026]" / "what? now" / "100% #1 {x} * ü"
    course = ToyCourse(toy, folder)
    (folder / "submitted" / "ada" / MODULE).mkdir(parents=True)
    course.rows()
    course.submit("ada", course.notebook())
    row = course.rows()["ada"]
    assert (row["score"], row["flags"]) == ("115", "")
    assert in_gradebook(course) == {"ada": 115} and (folder / "gradebook.db").is_file()
    assert {path.name for path in tmp_path.iterdir()} == {"project", "NLP [2026]"}
    assert [path.name for path in (tmp_path / "NLP [2026]").iterdir()] == ["what? now"]
    assert not course_config.lacks(folder)
    address = course_config.read_config(folder).CourseDirectory.db_url
    from nbgrader.api import Gradebook

    with Gradebook(address, "tinytorch") as book:  # the one that formgrader opens
        assert [student.id for student in book.students] == ["ada"]


# --------------------------------------------------------------------------------------------- configuration


def test_a_configuration_of_the_courses_own_is_told_what_it_lacks(toy, tmp_path):
    course = ToyCourse(toy, tmp_path / "course")
    config = course.folder / "nbgrader_config.py"
    config.write_text('c = get_config()\nc.CourseDirectory.course_id = "course101"\n')
    (course.folder / "submitted" / "ada").mkdir(parents=True)
    said = course.grade().stderr
    for words in (
        "shows students the hidden tests",
        "overwrites grades.csv",
        "c.GenerateFeedback.preprocessors =",
    ):
        assert words in " ".join(said.split()), said
    for setting in course_config.lacks(course.folder):
        config.write_text(config.read_text() + setting.lines)
    assert not course_config.lacks(course.folder) and "nbgrader_config.py" not in course.grade().stderr
    config.write_text("c = get_config(\n")
    done = course.grade()
    assert done.exit_code == 1 and "nbgrader_config.py cannot be read (SyntaxError" in done.stderr


# ---------------------------------------------------------------------------------------------- spreadsheets

ROWS = 'module,student,score,note\n02_layers,ada,"1,5","a, b"\n02_layers,müller,3,\n'


@pytest.mark.parametrize(
    "saved",
    [
        ROWS.replace('"1,5"', "1.5").encode(),
        ("\ufeff" + ROWS.replace('"1,5"', "1.5")).replace("\n", "\r\n").encode(),
        b"\xef\xbb\xbfmodule;student;score;note\r\n02_layers;ada;1,5;a, b\r\n02_layers;m\xc3\xbcller;3;\r\n",
        b"sep=;\r\nmodule;student;score;note\r\n02_layers;ada;1,5;a, b\r\n02_layers;m\xc3\xbcller;3;\r\n",
        b"module\tstudent\tscore\tnote\n02_layers\tada\t1.5\ta, b\n02_layers\tm\xc3\xbcller\t3\t\n\n",
    ],
    ids=["plain", "byte-order-mark", "semicolons", "sep", "tabs"],
)
def test_a_table_that_a_spreadsheet_saved(saved, tmp_path):
    path = tmp_path / "grades.csv"
    path.write_bytes(saved)
    result = Result("ada", "graded", parts={"test-tensor": PartResult(95, 95, score=95)})
    write_grades(path, MODULE, [result])
    columns, rows = read_grades(path)
    assert columns == [*GRADE_COLUMNS, "note", "test-tensor"] and path.read_bytes().startswith(
        b"module,student,"
    )
    said = [(row["module"], row["student"], row["score"], row["note"]) for row in rows]
    assert said == [
        (MODULE, "ada", "95", ""),
        ("02_layers", "ada", "1.5", "a, b"),
        ("02_layers", "müller", "3", ""),
    ]


@pytest.mark.parametrize(
    ("saved", "words"),
    [
        (b"\xff\xfem\x00o\x00", "is not UTF-8 text"),
        (b"name,points\nada,3\n", "has no column module and no column student"),
        (b'module,student\n01,"ada\n', "is not a table that can be read"),
        (b"module,student\n01,ada,3\n", "Row 2 of .* has more than 2 values"),
    ],
    ids=["utf-16", "another-table", "cut-off", "ragged"],
)
def test_a_table_that_cannot_be_read_is_refused_before_any_grading(saved, words, toy, tmp_path):
    course = ToyCourse(toy, tmp_path / "course")
    (course.folder / "submitted" / "ada" / MODULE).mkdir(parents=True)
    (course.folder / "grades.csv").write_bytes(saved)
    done = course.grade()
    assert done.exit_code == 1 and re.search(words, done.stderr) and done.stderr.count("\n") == 1, done.stderr
    assert {path.name for path in course.folder.iterdir()} == {"submitted", "grades.csv"}
    with pytest.raises(TitoError, match=words):
        read_grades(course.folder / "grades.csv")


# -------------------------------------------------------------------------------------------- several modules


def test_several_modules_are_graded_by_one_command_and_the_table_grows(toy, tmp_path, monkeypatch):
    course = ToyCourse(toy, tmp_path / "course")
    assert toy.tito("export").exit_code == 0
    for student in ("ada", "bob"):
        (course.folder / "submitted" / student / MODULE).mkdir(parents=True)
    table = course.folder / "grades.csv"
    seen = []

    def written(path, label, results, fresh=None):
        write_grades(path, label, results, fresh)
        seen.append([(row["module"], row["student"]) for row in read_grades(table)[1]])

    monkeypatch.setattr(command, "write_grades", written)
    done = course.grade("02")
    assert done.exit_code == 0, done.output
    assert seen[0] == [(MODULE, "ada")] or seen[0] == [(MODULE, "bob")]
    assert seen[-1] == [(label, name) for label in (MODULE, "02_layers") for name in ("ada", "bob")]
    assert done.stdout.count("2 not submitted") == 2
    assert course.grade("03").exit_code == 1, "the one that is not there is told before any grading"
    course.submit("ada", course.notebook("Because."))
    course.grade("02", "--student", "ada")
    scores = [(row["student"], row["score"]) for row in read_grades(table)[1] if row["module"] == MODULE]
    assert scores == [("ada", "115"), ("bob", "0")]
