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

from tinytorch.tito.instructor.bundle import fill_bundle, write_zip
from tinytorch.tito.instructor.dev_files import DevFiles
from tinytorch.tito.notebook.files import read as read_notebook
from tinytorch.tito.notebook.markers import without_markers
from tinytorch.tito.project import Project
from toy import REPO

pytestmark = [pytest.mark.grading, pytest.mark.slow, pytest.mark.filterwarnings("default")]

MINE = "# written by a student"
PACKAGE = "tinytorch/generation/kv_cache.py"

# What `python -c` runs: code in a kernel that is started as JupyterLab does, in the notebook's folder.
KERNEL = """
import sys
from jupyter_client.manager import start_new_kernel
manager, client = start_new_kernel(cwd=sys.argv[1])
client.execute_interactive(sys.argv[2], timeout=60)
client.stop_channels()
manager.shutdown_kernel(now=True)
"""


class Student:
    """One who was given a zip, has a Python, and does what the README says."""

    def __init__(self, folder: Path):
        self.folder = folder
        bin_folder = folder / ".venv" / ("Scripts" if os.name == "nt" else "bin")
        # what would lead back to the clone is taken away, what `activate` does is done
        self.env = {
            name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "IN_TEST")
        }
        self.env |= {
            "PATH": f"{bin_folder}{os.pathsep}{self.env['PATH']}",
            "VIRTUAL_ENV": str(bin_folder.parent),
        }
        self.env |= {"PIP_DISABLE_PIP_VERSION_CHECK": "1", "OPENBLAS_NUM_THREADS": "1", "PYTHONUTF8": "1"}

    def unzips(self, archive: Path) -> None:
        """And goes into the folder."""
        with zipfile.ZipFile(archive) as held:
            held.extractall(self.folder)
        self.home = self.folder / archive.stem
        self.notebook = self.home / f"{archive.stem[3:]}.ipynb"
        readme = (self.home / "README.md").read_text(encoding="utf-8")
        lines = re.findall(r"^(?:python3?|pip|tito|source|jupyter) .*", readme, re.MULTILINE)
        self.commands = [line.split("#")[0].strip() for line in lines]

    def does(self, command: str, *more: str, ok: bool = True) -> str:
        """Runs a command that the README names, with `more` arguments -> what it said."""
        assert command in self.commands, f"the README does not say {command!r}; it says {self.commands}"
        return self.runs([*command.split(), *more], ok)

    def runs(self, words: list[str], ok: bool | None = True) -> str:
        """`ok`: whether it must succeed; None if that does not matter."""
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
        assert ok is None or (done.returncode == 0) == ok, said
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


def zip_of(dev_files: DevFiles, number: str, folder: Path) -> Path:
    """The bundle's zip; the folder that it was made of is gone again."""
    module = dev_files.project.module(number)
    fill_bundle(dev_files, module, folder / module.label, from_scratch=False)
    archive = write_zip(folder / module.label, folder / f"{module.label}.zip")
    shutil.rmtree(folder / module.label)
    return archive


def test_the_walk(tmp_path):
    dev_files = DevFiles(Project(REPO))
    module = dev_files.project.module("15")
    student = Student(tmp_path / "elsewhere")
    student.unzips(zip_of(dev_files, "15", tmp_path))
    chat = "python milestones/05_2017_transformer/vaswani_chatgpt.py"

    # install
    assert "python3 -m venv ../.venv" in student.commands
    subprocess.run([sys.executable, "-m", "venv", "../.venv"], cwd=student.home, env=student.env, check=True)
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

    the_next_module(student, zip_of(dev_files, "16", tmp_path))


def the_next_module(student: Student, archive: Path) -> None:
    """Unzipped beside the first, with nothing installed: everything takes the second one's package."""
    first = student.home
    student.unzips(archive)
    package = student.home / "tinytorch"
    (package / "models" / "llama.py").write_text("WHERE = __file__\n", encoding="utf-8")  # 15 has none
    assert "llama.ipynb is there already" in student.does("tito module start 16")
    assert "0 of" in student.does("tito module test 16", ok=False)
    said = student.runs(["tito", "doctor"], ok=None)
    assert f"tinytorch is imported from {package}" in said and f"was installed from {first}" in said

    look = "from tinytorch.models.llama import WHERE; print(WHERE)"
    (student.home / "tests" / "test_look.py").write_text(f"def test_where():\n    {look}\n", encoding="utf-8")
    chat = student.home / "milestones" / "06_2024_llm" / "look.py"
    script = (chat.parent / "smollm2_chat.py").read_text(encoding="utf-8")
    (by_place,) = re.findall(r"^sys\.path\.append.*", script, re.MULTILINE)
    chat.write_text(f"import sys\nfrom pathlib import Path\n{by_place}\n{look}\n", encoding="utf-8")
    for command in (
        ["python", "-c", look],
        ["python", str(chat)],
        ["pytest", "-s", "-p", "no:cacheprovider", "tests/test_look.py"],
        ["python", "-c", KERNEL, str(student.home), look],
    ):
        assert str(package / "models" / "llama.py") in student.runs(command), command
