"""A course folder for tests: who hands in what, and what `tito grade` makes of it."""

import contextlib
import copy
import csv
import json
import os
import shutil
import time
from pathlib import Path

import psutil
from click.testing import CliRunner

from habits import code_cell
from side_by_side import lock, shared_folder
from tinytorch.tito.cli import cli
from tinytorch.tito.instructor.course import prepare_course
from tinytorch.tito.project import Project
from toy import REPO

HAS_BWRAP = shutil.which("bwrap") is not None


class Course:
    """One module's part of an nbgrader course."""

    def __init__(self, folder: Path, number: str):
        self.folder = folder
        self.module = Project(REPO).module(number)
        folder.mkdir(parents=True, exist_ok=True)
        release = prepare_course(Project(REPO), self.module, folder)
        source = folder / "source" / self.module.label / release.name
        self.released = json.loads(release.read_text(encoding="utf-8"))
        self.source = json.loads(source.read_text(encoding="utf-8"))
        for cell in self.released["cells"] + self.source["cells"]:
            cell["source"] = "".join(cell["source"])

    @property
    def automatic(self) -> float:
        """The points of all cells that the machine marks."""
        tags = [cell["metadata"].get("nbgrader", {}) for cell in self.source["cells"]]
        return sum(tag["points"] for tag in tags if tag.get("grade") and not tag.get("solution"))

    def place(self, student: str) -> Path:
        return self.folder / "submitted" / student / self.module.label / f"{self.module.name}.ipynb"

    def submit(self, student: str, notebook: dict | bytes) -> Path:
        file = self.place(student)
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(notebook if isinstance(notebook, bytes) else json.dumps(notebook).encode())
        return file

    def solved(self, *grade_ids: str) -> dict:
        """The released notebook with these solutions filled in (default: all)."""
        notebook = copy.deepcopy(self.released)
        for cell in notebook["cells"]:
            tags = cell["metadata"].get("nbgrader", {})
            if cell["cell_type"] == "code" and tags.get("solution"):
                if not grade_ids or tags["grade_id"] in grade_ids:
                    cell["source"] = find(self.source, tags["grade_id"])["source"]
        return notebook

    def written(self, notebook: dict) -> dict:
        """The released notebook with the solution cells of `notebook`, which may be a dev file's."""
        filled = copy.deepcopy(self.released)
        for cell in filled["cells"]:
            tags = cell["metadata"].get("nbgrader", {})
            if cell["cell_type"] == "code" and tags.get("solution"):
                cell["source"] = "".join(find(notebook, tags["grade_id"])["source"])
        return filled

    def grade(self, *options: str, time_limit: float = 10) -> dict[str, dict]:
        """`tito grade` -> {student: row of grades.csv}."""
        command = ["grade", self.module.number, "--course", str(self.folder)]
        command += ["--time-limit", str(time_limit), *options]
        if not HAS_BWRAP and "--no-sandbox" not in options:
            command.append("--no-sandbox")
        before = os.getcwd()
        os.chdir(REPO)
        try:
            done = CliRunner().invoke(cli, command)
        finally:
            os.chdir(before)
        assert done.exit_code == 0, done.output
        return self.rows()

    def rows(self) -> dict[str, dict]:
        with (self.folder / "grades.csv").open(encoding="utf-8", newline="") as file:
            return {row["student"]: row for row in csv.DictReader(file) if row["module"] == self.module.label}

    def parts(self, row: dict) -> dict[str, float]:
        """{graded cell: points} of a row."""
        names = [cell["metadata"].get("nbgrader", {}) for cell in self.source["cells"]]
        return {tag["grade_id"]: float(row[tag["grade_id"]]) for tag in names if tag.get("grade")}

    def autograded(self, student: str) -> dict:
        file = self.folder / "autograded" / student / self.module.label / f"{self.module.name}.ipynb"
        return json.loads(file.read_text(encoding="utf-8"))

    def hidden_lines(self) -> list[str]:
        """Lines of hidden tests that stand nowhere in what students get."""
        shown, found = json.dumps(self.released), []
        for cell in locked_cells(self.source):
            for region in cell["source"].split("### BEGIN HIDDEN TESTS")[1:]:
                lines = region.split("### END HIDDEN TESTS")[0].splitlines()
                found += [line.strip() for line in lines if len(line.strip()) > 30]
        return [line for line in found if json.dumps(line)[1:-1] not in shown]


def learnt_course(folder: Path, number: str) -> Course:
    """An empty course in which what the reference tells is known, as after an earlier run of `tito grade`.

    The first test that wants one for this module learns it, for all processes of this run.
    """
    model = shared_folder() / f"course-{number}"
    with lock(model.name):
        if not model.exists():
            trial = Course(model.with_suffix(".trial"), number)
            shutil.copytree(trial.folder, model.with_suffix(".new"))
            trial.submit("empty", trial.released)
            trial.grade()
            shutil.copytree(trial.folder / ".tito", model.with_suffix(".new") / ".tito", dirs_exist_ok=True)
            shutil.rmtree(model.with_suffix(".new") / ".tito" / "graded")
            model.with_suffix(".new").rename(model)
    shutil.copytree(model, folder, dirs_exist_ok=True)
    return Course(folder, number)


def students_of(pid: int) -> list[psutil.Process]:
    """The processes below this one that run a student's code."""
    found = []
    for process in psutil.Process(pid).children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):  # it has just ended
            if any(word.endswith(("/cells_script.py", "/checks_script.py")) for word in process.cmdline()):
                found.append(process)
    return found


def wait_for(condition, seconds: float) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"not within {seconds} seconds"
        time.sleep(0.05)


def wait_for_end(processes: list[psutil.Process], seconds: float = 10) -> None:
    wait_for(lambda: not any(process.is_running() for process in processes), seconds)


def points(row: dict) -> float:
    return float(row["score"])


def find(notebook: dict, grade_id: str) -> dict:
    return next(c for c in notebook["cells"] if c["metadata"].get("nbgrader", {}).get("grade_id") == grade_id)


def locked_cells(notebook: dict) -> list[dict]:
    return [c for c in notebook["cells"] if c["metadata"].get("nbgrader", {}).get("locked")]


def with_cell(notebook: dict, source: str, before: str | None = None) -> dict:
    """The notebook with a code cell put in front of the cell `before`, or at the end of its text cells."""
    notebook = copy.deepcopy(notebook)
    place = notebook["cells"].index(find(notebook, before)) if before else 2
    notebook["cells"].insert(place, code_cell(source))
    return notebook
