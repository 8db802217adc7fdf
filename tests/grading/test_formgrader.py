"""nbgrader's own pages and commands on a course of ours, in a real browser against a real JupyterLab."""

import copy
import csv
import json
import shutil
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys

from browser import browser_at, environment, lab_in
from course import learnt_course
from tinytorch.tito.instructor.bundle import fill_bundle
from tinytorch.tito.instructor.course import prepare_course
from tinytorch.tito.instructor.dev_files import DevFiles
from tinytorch.tito.project import Project
from toy import REPO, run

pytestmark = [pytest.mark.grading, pytest.mark.usefixtures("a_browser_is_here")]


LABEL, NOTEBOOK = "04_losses", "losses.ipynb"
AUTOMATIC = 90
DOT = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="


# --------------------------------------------------------------------------------------------- the course


class Course:
    """An nbgrader course of module 04 and what students hand in."""

    def __init__(self, folder: Path):
        self.folder = folder
        project = Project(REPO)
        release = prepare_course(project, project.module("04"), folder)
        self.released = json.loads(release.read_text(encoding="utf-8"))
        self.source = json.loads((folder / "source" / LABEL / NOTEBOOK).read_text(encoding="utf-8"))

    def solved(self, *grade_ids: str, **answers: str) -> dict:
        """The released notebook with these solutions (none named: all), and answers to questions."""
        notebook = copy.deepcopy(self.released)
        solutions = {grade_id_of(cell): cell["source"] for cell in self.source["cells"]}
        for cell in notebook["cells"]:
            name = grade_id_of(cell)
            if cell["cell_type"] == "code" and name in (grade_ids or solutions) and is_solution(cell):
                cell["source"] = solutions[name]
            if name.replace("-", "_") in answers:
                cell["source"] = answers[name.replace("-", "_")]
        return notebook

    def submit(self, student: str, notebook: dict) -> None:
        file = self.folder / "submitted" / student / LABEL / NOTEBOOK
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(notebook), encoding="utf-8")

    def hidden_lines(self) -> list[str]:
        """Lines that only the source holds: what no student may see."""
        seen = "\n".join("".join(cell["source"]) for cell in self.released["cells"])
        hidden = []
        for cell in self.source["cells"]:
            for region in "".join(cell["source"]).split("### BEGIN HIDDEN TESTS")[1:]:
                hidden += region.split("### END HIDDEN TESTS")[0].splitlines()
        return [line.strip() for line in hidden if len(line.strip()) > 30 and line.strip() not in seen]


def tags_of(cell: dict) -> dict:
    return cell["metadata"].get("nbgrader", {})


def grade_id_of(cell: dict) -> str:
    return tags_of(cell).get("grade_id", "")


def is_solution(cell: dict) -> bool:
    return tags_of(cell).get("solution", False)


def with_image(notebook: dict) -> dict:
    """The notebook with an image pasted into the answer, as Jupyter does it."""
    cell = next(cell for cell in notebook["cells"] if grade_id_of(cell) == "question-padding")
    cell["source"] += "\n\n![scan.png](attachment:scan.png)"
    cell["attachments"] = {"scan.png": {"image/png": DOT}}
    return notebook


def tito_grade(course: Path) -> dict[str, dict]:
    """`tito grade 04` -> the rows of grades.csv by student."""
    code = "from tinytorch.tito.cli import main; main()"
    command = [sys.executable, "-c", code, "grade", "04", "--course", str(course), "--time-limit", "10"]
    done = run(command + ([] if shutil.which("bwrap") else ["--no-sandbox"]), REPO)
    assert done.returncode == 0, done.stderr
    with (course / "grades.csv").open(encoding="utf-8", newline="") as file:
        return {row["student"]: row for row in csv.DictReader(file)}


def nbgrader(folder: Path, home: Path, *arguments: str, **env: str) -> str:
    """nbgrader's own command, in the folder -> all that it said."""
    home.mkdir(exist_ok=True)
    done = subprocess.run(
        [sys.executable, "-m", "nbgrader", *arguments],
        cwd=folder,
        env=environment(home, **env),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        encoding="utf-8",
        timeout=120,
    )
    assert done.returncode == 0, done.stdout
    return done.stdout


def use_exchange(home: Path, exchange: Path) -> None:
    """Where nbgrader hands out and takes in on this computer: its administrator's file, not the course's."""
    config = home / "jupyter_config_dir" / "nbgrader_config.py"
    config.parent.mkdir(parents=True)
    config.write_text(f"c = get_config()\nc.Exchange.root = {str(exchange)!r}\n", encoding="utf-8")


def mark_of(course: Path, student: str, part: str):
    """(automatic score, mark by hand) in the gradebook."""
    question = (
        "SELECT grade.auto_score, grade.manual_score FROM grade "
        "JOIN base_cell ON base_cell.id = grade.cell_id "
        "JOIN submitted_notebook ON submitted_notebook.id = grade.notebook_id "
        "JOIN submitted_assignment ON submitted_assignment.id = submitted_notebook.assignment_id "
        "WHERE submitted_assignment.student_id = ? AND base_cell.name = ?"
    )
    with closing(sqlite3.connect(course / "gradebook.db")) as book:
        return book.execute(question, (student, part)).fetchone()


@pytest.fixture(scope="module")
def graded(tmp_path_factory):
    """Ada solved everything, Bob one part, Eve nothing; each test takes a copy of the folder."""
    course = Course(learnt_course(tmp_path_factory.mktemp("graded") / "course", "04").folder)
    course.submit(
        "ada", course.solved(question_padding="They would count.", question_first_loss="log V, by chance")
    )
    course.submit("bob", with_image(course.solved("mse", question_padding="Padding is not text.")))
    course.submit("eve", course.released)
    course.rows = tito_grade(course.folder)
    assert {name: float(row["score"]) for name, row in course.rows.items()} == {
        "ada": AUTOMATIC,
        "bob": 10,
        "eve": 0,
    }
    return course


@pytest.fixture
def course(graded, tmp_path):
    mine = copy.copy(graded)
    mine.folder = tmp_path / "course"
    shutil.copytree(graded.folder, mine.folder)
    return mine


# ----------------------------------------------------------------------------------------------- the tests


def test_an_instructor_works_in_formgrader(course, tmp_path):
    exchange, home, student = tmp_path / "exchange", tmp_path / "lab", tmp_path / "student"
    for folder in (exchange, home, student):
        folder.mkdir()
    exchange.chmod(0o777)
    use_exchange(home, exchange)
    with lab_in(course.folder, home) as lab, browser_at(tmp_path / "browser") as browser:
        browser.driver.get(f"{lab.url}/lab?token={lab.token}")
        browser.click(".lm-MenuBar-itemLabel", "Nbgrader")
        browser.click(".lm-Menu-itemLabel", "Formgrader")
        browser.driver.switch_to.frame(browser.find("iframe"))
        the_list_shows_the_assignment(browser)
        it_goes_out_and_comes_back(course, browser, student, home)
        a_mark_by_hand_stays(course, browser)
        feedback_shows_no_hidden_test(course, browser)


def the_list_shows_the_assignment(browser):
    browser.find("#main-table td.name", LABEL)
    browser.find("#main-table td.status", "draft")
    browser.find("#main-table td.num-submissions", "3")
    for column, folder in (("name", "source"), ("preview", "release")):
        browser.click(f"#main-table td.{column} a")  # opens the folder beside, in Lab
        browser.driver.switch_to.default_content()
        browser.find(".jp-FileBrowser .jp-BreadCrumbs", folder)
        browser.find(".jp-FileBrowser .jp-DirListing-item", NOTEBOOK)
        browser.driver.switch_to.frame(browser.find("iframe"))


def it_goes_out_and_comes_back(course, browser, student, home):
    """Release and Collect are pressed in formgrader, a student uses nbgrader's commands."""
    browser.click("#main-table td.release a")
    confirm(browser, "Successfully released")
    browser.find("#main-table td.status", "released")

    nbgrader(student, home, "fetch_assignment", LABEL, "--course", "tinytorch")
    got = student / LABEL / NOTEBOOK
    assert got.read_bytes() == (course.folder / "release" / LABEL / NOTEBOOK).read_bytes()
    got.write_text(json.dumps(course.solved("perplexity")), encoding="utf-8")
    nbgrader(student, home, "submit", LABEL, "--course", "tinytorch")

    browser.click("#main-table td.collect a")
    confirm(browser, "Successfully collected")
    browser.find("#main-table td.num-submissions", "4")
    rows = tito_grade(course.folder)
    assert {rows[name]["score"] for name in set(rows) - {"ada", "bob", "eve"}} == {"10"}


def confirm(browser, text):
    browser.find(".modal.in .modal-body", text)
    browser.click(".modal.in .modal-footer button")
    browser.until(lambda: not browser.driver.find_elements(By.CSS_SELECTOR, ".modal"), "the dialog stays")


def a_mark_by_hand_stays(course, browser):
    browser.click("a", "Manual Grading")
    browser.click(f'#main-table a[href$="/{LABEL}"]')
    browser.click('#main-table a[href$="/losses"]')
    open_submission(browser, "bob", "10")
    browser.find("#notebook", "Padding is not text.")
    browser.find('#notebook img[src^="data:image/png;base64,"]')
    score = browser.find("#question-padding")
    browser.until(lambda: "needs_manual_grade" in score.get_attribute("class"), "it waits for no mark")
    score.send_keys("4", Keys.TAB)
    browser.until(lambda: mark_of(course.folder, "bob", "question-padding") == (None, 4), "no mark of 4")

    answered = course.solved("mse", "log-softmax", question_padding="Padding is not text.")
    course.submit("bob", with_image(answered))
    row = tito_grade(course.folder)["bob"]
    assert [float(row[name]) for name in ("question-padding", "test-log-softmax", "score")] == [4, 18, 32]
    assert mark_of(course.folder, "bob", "question-padding") == (None, 4)
    browser.click('.breadcrumb a[href$="/losses"]')
    open_submission(browser, "bob", "32")
    browser.until(lambda: browser.find("#question-padding").get_attribute("value") == "4", "the mark is gone")
    placeholder = browser.find("#test-log-softmax").get_attribute("placeholder")
    assert placeholder == "18", "the new automatic score is not shown"


def open_submission(browser, student, score):
    """From the list of submissions, which hides names until it is told to show them."""

    def rows():
        return browser.driver.find_elements(By.CSS_SELECTOR, "#main-table tr")

    browser.find("#main-table a.name-hidden")
    assert len(rows()) == 4, [row.text for row in rows()]
    browser.click("#toggle_names")
    browser.find("#main-table a.name-shown", student)
    row = next(row for row in rows() if student in row.text)
    assert row.find_element(By.CSS_SELECTOR, "td.score").text == f"{score} / 100"
    browser.click("#main-table a.name-shown", student)


def feedback_shows_no_hidden_test(course, browser):
    """The page that nbgrader makes, which its exchange hands to students."""
    browser.click(".breadcrumb a", "Manual Grading")
    browser.click("a", "Manage Assignments")
    browser.click("#main-table td.generate-feedback a")
    confirm(browser, "Successfully generated feedback")
    browser.driver.get((course.folder / "feedback" / "bob" / LABEL / "losses.html").as_uri())
    text = browser.find("body").text
    assert "Score: 32.0 / 100.0" in text and "Padding is not text." in text
    hidden = course.hidden_lines()
    assert len(hidden) > 20
    assert not [line for line in hidden if line in text]


def test_validate_fails_the_released_notebook_and_passes_the_solved_one(graded, tmp_path):
    """The student's bundle, its package first on the path as `pip install -e .` puts it there."""
    bundle, home = tmp_path / LABEL, tmp_path / "lab"
    project = Project(REPO)
    fill_bundle(DevFiles(project), project.module("04"), bundle, from_scratch=False)
    assert not (bundle / "tinytorch" / "core" / "losses.py").exists()
    answered = graded.solved(question_padding="They would count.", question_first_loss="log V")
    (bundle / "solved.ipynb").write_text(json.dumps(answered), encoding="utf-8")
    home.mkdir()
    with lab_in(bundle, home, PYTHONPATH=str(bundle)) as lab, browser_at(tmp_path / "browser") as browser:
        said = validate(browser, lab, NOTEBOOK)
        tests = [cell for cell in graded.released["cells"] if tags_of(cell).get("grade")]
        assert said.count("The following cell failed") == len(tests) == 9
        assert "NotImplementedError" in said and "You did not provide a response." in said
        assert "Success! Your notebook passes all the tests." in validate(browser, lab, "solved.ipynb")
        assert len(lab.get("/api/kernels")) == 2  # which end with the server


def validate(browser, lab, notebook):
    """What the Validate button says of the notebook, which is alone in a workspace of its own.

    In the same workspace Lab first shows the notebook that was open before, with a button of its own.
    """
    workspace = Path(notebook).stem
    browser.driver.get(f"{lab.url}/lab/workspaces/{workspace}/tree/{notebook}?token={lab.token}")
    browser.find(".lm-DockPanel-tabBar .lm-mod-current .lm-TabBar-tabLabel", notebook)
    browser.click(".jp-NotebookPanel-toolbar .jp-ToolbarButtonComponent-label", "Validate")
    return browser.find("#validation-message").text


def test_nbgraders_commands_work_beside_tito(course, tmp_path):
    home, folder = tmp_path / "home", course.folder
    before = (folder / "grades.csv").read_bytes()
    nbgrader(folder, home, "export")
    with (folder / "gradebook.csv").open(encoding="utf-8", newline="") as file:
        exported = {row["student_id"]: float(row["score"]) for row in csv.DictReader(file)}
    assert exported == {name: float(row["score"]) for name, row in course.rows.items()}
    assert (folder / "grades.csv").read_bytes() == before, "nbgrader wrote over the grades"

    nbgrader(folder, home, "autograde", LABEL, "--student", "bob", "--force", PYTHONPATH=str(REPO))
    assert mark_of(folder, "bob", "test-mse") == (10, None)
    assert mark_of(folder, "bob", "test-log-softmax") == (0, None)
    assert tito_grade(folder) == course.rows
