"""nbgrader's own pages and commands on a course of ours, in a real browser against a real JupyterLab."""

import copy
import csv
import json
import os
import secrets
import shutil
import sqlite3
import subprocess
import sys
import sysconfig
import time
import urllib.error
import urllib.request
from contextlib import closing, contextmanager, suppress
from pathlib import Path

import psutil
import pytest
from selenium import webdriver
from selenium.common import exceptions
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.ui import WebDriverWait

from course import learnt_course
from tinytorch.tito.instructor.bundle import fill_bundle
from tinytorch.tito.instructor.course import prepare_course
from tinytorch.tito.instructor.dev_files import DevFiles
from tinytorch.tito.project import Project
from toy import REPO, run

pytestmark = pytest.mark.grading


LABEL, NOTEBOOK = "04_losses", "losses.ipynb"
AUTOMATIC = 90
DOT = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
WAIT = 60  # seconds for a page, on a slow machine
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
ARGUMENTS = (
    "--headless=new --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync --disable-dev-shm-usage --window-size=1400,1000"
).split()
# no page may need anything but the server
ARGUMENTS.append("--host-resolver-rules=MAP * ~NOTFOUND , EXCLUDE 127.0.0.1")
# what a page says while it is being built
NOT_YET = (
    exceptions.NoSuchElementException,
    exceptions.StaleElementReferenceException,
    exceptions.ElementNotInteractableException,
    exceptions.ElementClickInterceptedException,
)


def environment(home: Path, **more: str) -> dict[str, str]:
    """An activated virtual environment of somebody whose home is empty."""
    kept = ("LANG", "LC_ALL", "TMPDIR", "SYSTEMROOT", "OPENBLAS_NUM_THREADS")
    env = {name: os.environ[name] for name in kept if name in os.environ}
    env["PATH"] = os.pathsep.join([sysconfig.get_path("scripts"), os.environ["PATH"]])
    env["HOME"] = env["USERPROFILE"] = str(home)
    for name in ("JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "JUPYTER_RUNTIME_DIR", "IPYTHONDIR"):
        env[name] = str(home / name.lower())
    return env | more


def started_with(home: Path) -> list[psutil.Process]:
    """The processes that name the folder in their command or environment; pytest's own do not count."""
    own = {os.getpid(), *(parent.pid for parent in psutil.Process().parents())}
    found = []
    for process in psutil.process_iter():
        try:
            words = [*process.cmdline(), *process.environ().values()]
        except psutil.Error:
            continue  # it has ended, or is another user's
        if process.pid not in own and any(str(home) in word for word in words):
            found.append(process)
    return found


class Lab:
    """JupyterLab in a folder."""

    def __init__(self, folder: Path, home: Path, **env: str):
        self.home = home
        self.token = secrets.token_hex(16)
        # no --ServerApp.root_dir: to start it in the folder must be enough
        command = [sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root"]
        command += ["--ServerApp.ip=127.0.0.1", "--ServerApp.port=0"]
        command += ["--LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate"]
        self.log = home / "log.txt"
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                command,
                cwd=folder,
                env=environment(home, JUPYTER_TOKEN=self.token, **env),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
            )

    def wait(self) -> None:
        """Until it answers."""
        end = time.monotonic() + WAIT
        while time.monotonic() < end and self.process.poll() is None:
            for file in (self.home / "jupyter_runtime_dir").glob("jpserver-*.json"):
                text = file.read_text(encoding="utf-8")
                if text:
                    self.url = json.loads(text)["url"].rstrip("/")
                    with suppress(urllib.error.URLError):  # the file may be there before anybody listens
                        self.get("/api/status")
                        return
            time.sleep(0.1)
        raise AssertionError(f"JupyterLab did not start:\n{self.log.read_text(encoding='utf-8')}")

    def get(self, path: str):
        request = urllib.request.Request(self.url + path, headers={"Authorization": f"token {self.token}"})
        with urllib.request.urlopen(request, timeout=WAIT) as answer:
            return json.load(answer)

    def end(self) -> None:
        """Ends it; a kernel that it leaves behind is an error, and ended too."""
        self.process.terminate()
        try:
            self.process.wait(WAIT)
        finally:
            left = started_with(self.home)
            for process in left:
                process.kill()
        assert not left, f"JupyterLab left processes behind: {left}"


@contextmanager
def lab_in(folder: Path, home: Path, **env: str):
    lab = Lab(folder, home, **env)
    try:
        lab.wait()
        yield lab
    finally:
        lab.end()


class Browser:
    """A headless browser with an empty profile."""

    def __init__(self, home: Path):
        self.home = home
        home.mkdir()
        options = webdriver.ChromeOptions()
        options.binary_location = next(path for path in map(shutil.which, BROWSERS) if path)
        for argument in (*ARGUMENTS, f"--user-data-dir={home / 'profile'}"):
            options.add_argument(argument)
        driver = webdriver.ChromeService(shutil.which("chromedriver"), env=environment(home))
        self.driver = webdriver.Chrome(options=options, service=driver)

    def until(self, condition, why: str):
        """Waits until the condition holds -> what it returned."""
        waiting = WebDriverWait(self.driver, WAIT, ignored_exceptions=NOT_YET)
        try:
            return waiting.until(lambda _: condition())
        except exceptions.TimeoutException:
            text = self.driver.find_element(By.TAG_NAME, "body").text
            raise AssertionError(f"{why}; the page says:\n{text}") from None

    def find(self, css: str, text: str = ""):
        """The first element that is seen and has the text in it."""

        def look():
            found = self.driver.find_elements(By.CSS_SELECTOR, css)
            return next((one for one in found if one.is_displayed() and text in one.text), None)

        return self.until(look, f"no {css} with {text!r} is seen")

    def click(self, css: str, text: str = "") -> None:
        self.until(lambda: self.find(css, text).click() or True, f"{css} {text!r} cannot be clicked")

    def end(self) -> None:
        self.driver.quit()
        psutil.wait_procs(started_with(self.home), timeout=10)
        left = started_with(self.home)
        for process in left:
            process.kill()
        assert not left, f"the browser left processes behind: {left}"


@contextmanager
def browser_at(home: Path):
    browser = Browser(home)
    try:
        yield browser
    finally:
        browser.end()


@pytest.fixture(autouse=True, scope="module")
def a_browser_is_here():
    if shutil.which("chromedriver") and any(map(shutil.which, BROWSERS)):
        return
    missing = "there is no Chromium with its driver here: apt-get install chromium chromium-driver"
    if os.environ.get("CI"):
        pytest.fail(missing)
    pytest.skip(missing)


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
