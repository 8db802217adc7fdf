"""A new student's way through module 15: the zip alone, a new environment, pip, and the README's commands."""

# It asks the package index, as the student does: without a network it fails.

import json
import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from tinytorch.tito.instructor.release import Course, fill_bundle, write_zip
from tinytorch.tito.notebook.files import read as read_notebook
from tinytorch.tito.notebook.markers import without_markers
from tinytorch.tito.project import Project
from toy import REPO

pytestmark = [pytest.mark.grading, pytest.mark.slow, pytest.mark.filterwarnings("default")]

MINE = "# written by a student"
PACKAGE = "tinytorch/generation/kv_cache.py"


class Student:
    """Somebody who was given a zip, has a Python, and does what the README says."""

    def __init__(self, archive: Path, folder: Path):
        with zipfile.ZipFile(archive) as held:
            held.extractall(folder)
        self.home = folder / archive.stem
        self.notebook = self.home / "kvcaching.ipynb"
        self.readme = (self.home / "README.md").read_text(encoding="utf-8")
        lines = re.findall(r"^(?:python3?|pip|tito|source|jupyter) .*", self.readme, re.MULTILINE)
        self.commands = [line.split("#")[0].strip() for line in lines]
        bin_folder = self.home / ".venv" / ("Scripts" if os.name == "nt" else "bin")
        # what would lead back to the clone is taken away, what `activate` does is done
        self.env = {
            name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "IN_TEST")
        }
        self.env |= {
            "PATH": f"{bin_folder}{os.pathsep}{self.env['PATH']}",
            "VIRTUAL_ENV": str(bin_folder.parent),
        }
        self.env |= {"PIP_DISABLE_PIP_VERSION_CHECK": "1", "OPENBLAS_NUM_THREADS": "1", "PYTHONUTF8": "1"}

    def does(self, command: str, *more: str, ok: bool = True) -> str:
        """Runs a command that the README names, with `more` arguments -> what it said."""
        assert command in self.commands, f"the README does not say {command!r}; it says {self.commands}"
        return self.runs([*command.split(), *more], ok)

    def runs(self, words: list[str], ok: bool = True) -> str:
        program = shutil.which(words[0], path=self.env["PATH"])
        done = subprocess.run(
            [program, *words[1:]],
            cwd=self.home,
            env=self.env,
            capture_output=True,
            encoding="utf-8",
            timeout=600,
        )
        said = done.stdout + done.stderr
        assert (done.returncode == 0) == ok, said
        assert "Traceback" not in said, said
        return said

    def writes(self, solutions: dict[str, str]) -> None:
        """Fills in the cells and saves, as Jupyter does."""
        content = json.loads(self.notebook.read_text(encoding="utf-8"))
        for cell in content["cells"]:
            grade_id = cell["metadata"].get("nbgrader", {}).get("grade_id")
            if grade_id in solutions:
                cell["source"] = solutions[grade_id].splitlines(keepends=True)
        self.notebook.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def solutions_of(dev_file: Path) -> dict[str, str]:
    """{grade_id: the cell as a student would have it}."""
    cells = [cell for cell in read_notebook(dev_file)["cells"] if cell["cell_type"] == "code"]
    tagged = [cell for cell in cells if cell["metadata"].get("nbgrader", {}).get("solution")]
    return {cell["id"]: without_markers(cell["source"]) for cell in tagged}


def test_the_walk(tmp_path):
    course = Course(Project(REPO))
    module = course.project.module("15")
    fill_bundle(course, module, tmp_path / module.label, from_scratch=False)
    student = Student(
        write_zip(tmp_path / module.label, tmp_path / f"{module.label}.zip"), tmp_path / "elsewhere"
    )
    shutil.rmtree(tmp_path / module.label)
    chat = "python milestones/05_2017_transformer/vaswani_chatgpt.py"

    # install
    subprocess.run([sys.executable, "-m", "venv", ".venv"], cwd=student.home, env=student.env, check=True)
    student.does("pip install -e .")
    where = student.runs(["python", "-c", "import tinytorch; print(tinytorch.__file__)"])
    assert Path(where.strip()) == student.home / "tinytorch" / "__init__.py"
    assert "All is well." in student.runs(["tito", "doctor"])

    # the notebook as it was handed out
    assert "kvcaching.ipynb is there already" in student.does("tito module start 15")
    said = student.does("tito module test 15", ok=False)
    assert "0 of 14 parts passed, 0 of 85 points" in said and said.count("not written yet") == 14
    assert "Nothing was changed" in student.does("tito module complete 15", ok=False)
    assert not (student.home / PACKAGE).exists()
    said = student.does(chat, "--demo", ok=False)
    assert said == (
        "tinytorch.generation.kv_cache is not there yet: complete its module first "
        "(`tito module status` says which).\n"
    )

    # some parts, then all
    solutions = solutions_of(module.dev_file)
    first = dict(list(solutions.items())[:2])
    student.writes(first)
    assert "The notebook has changed since this test run." in student.does("tito module status 15")
    assert "2 of 14 parts passed, 12 of 85 points" in student.does("tito module test 15", ok=False)
    said = student.does("tito module status 15")
    assert len(re.findall("^passed", said, re.MULTILINE)) == 2 and "in progress" in said
    student.writes(solutions | {"kv-cache": f"{solutions['kv-cache']}\n\n{MINE}"})
    said = student.does("tito module complete 15")
    assert "14 of 14 parts passed, 85 of 85 points" in said and f"{PACKAGE} is now your code" in said
    assert "15_kvcaching: completed" in student.does("tito module status 15")

    # the milestone runs on it
    where = student.runs(["python", "-c", "import tinytorch.generation.kv_cache as it; print(it.__file__)"])
    assert Path(where.strip()) == student.home / PACKAGE
    assert MINE in (student.home / PACKAGE).read_text(encoding="utf-8")
    said = student.does(chat, "--demo")
    assert said.count("The same tokens") == 2

    # and begins again
    before = student.notebook.read_bytes()
    said = student.runs(["tito", "module", "reset", "15"])
    (backup,) = (student.home / ".tito" / "backups" / "15_kvcaching").glob("*.ipynb")
    assert backup.read_bytes() == before and backup.name in said
    assert "raise NotImplementedError()" in student.notebook.read_text(encoding="utf-8")
