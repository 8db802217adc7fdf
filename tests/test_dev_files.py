"""Every dev file is a script, and a notebook."""

import ast
import os
import subprocess
import sys

import pytest

from tinytorch.tito.notebook.files import read as read_notebook
from tinytorch.tito.project import Project
from toy import REPO

MODULES = {module.label: module for module in Project(REPO).modules()}
SECONDS = 20.0  # for a dev file as a script
QUICK_NOTEBOOKS = ("03_layers", "12_attention")
CELL_LIMIT = 300


def environment():
    """A student's shell, but with one thread for NumPy: scripts that run together wait for nobody."""
    left_out = ("PYTHONPATH", "PYTHONWARNINGS", "PYTEST_CURRENT_TEST")
    env = {name: value for name, value in os.environ.items() if name not in left_out}
    return env | {"MPLBACKEND": "Agg", "PYTHONUTF8": "1", "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}


# Runs a script as `python -W error file` does, then adds a line: the processor's seconds.
RUN = """
import runpy, sys, time
path = sys.argv.pop(1)
sys.argv[0], sys.path[0] = path, path.rpartition("/")[0]
try:
    runpy.run_path(path, run_name="__main__")
finally:
    print(f"\\n{time.process_time()}")
"""


def run_script(label, folder):
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", RUN, MODULES[label].dev_file.as_posix()],
        cwd=folder,
        env=environment(),
        capture_output=True,
        encoding="utf-8",
        timeout=20 * SECONDS,
    )


@pytest.mark.parametrize("label", MODULES)
def test_a_dev_file_runs_as_a_script(label, tmp_path):
    """Hidden tests and look cells included; a warning is an error."""
    done = run_script(label, tmp_path)
    left = sorted(path.name for path in tmp_path.iterdir())
    assert done.returncode == 0, done.stderr[-3000:]
    assert not done.stderr, f"text on stderr costs points in nbgrader: {done.stderr[-3000:]}"
    assert not left, f"it leaves {', '.join(left)} behind"
    seconds = float(done.stdout.split()[-1])
    assert seconds < SECONDS, f"took {seconds:.1f} s of the processor"


@pytest.mark.parametrize("label", MODULES)
def test_no_graded_cell_ends_in_a_value(label):
    """nbgrader takes a value for the number of points. (A call may return None: the notebook's run tells.)"""
    for cell in read_notebook(MODULES[label].dev_file)["cells"]:
        if cell["cell_type"] == "code" and cell["metadata"].get("nbgrader", {}).get("grade"):
            last = ast.parse(cell["source"]).body[-1]
            value = isinstance(last, ast.Expr) and not isinstance(last.value, ast.Call)
            assert not value, f"{cell['id']} ends in {ast.unparse(last)}"


def execute(label):
    """The notebook after a run in a real kernel, as `Run All` does it."""
    import nbformat
    from nbclient import NotebookClient

    notebook = nbformat.from_dict(read_notebook(MODULES[label].dev_file))
    folder = {"metadata": {"path": str(MODULES[label].folder)}}
    client = NotebookClient(notebook, timeout=CELL_LIMIT, kernel_name="python3", resources=folder)
    client.execute(env=environment())
    return notebook


def check_as_a_notebook(label):
    for cell in execute(label).cells:
        for output in cell.get("outputs", []):
            said = output.get("text", "") if output.get("name") == "stderr" else ""
            assert not said, f"{cell.id} writes to stderr: {said[-3000:]}"
            value = output.get("output_type") == "execute_result"
            graded = cell.metadata.get("nbgrader", {}).get("grade")
            assert not (graded and value), f"nbgrader takes the value that {cell.id} ends in for points"


@pytest.mark.parametrize("label", [label for label in MODULES if label in QUICK_NOTEBOOKS])
def test_a_dev_file_runs_as_a_notebook(label):
    check_as_a_notebook(label)


@pytest.mark.slow
@pytest.mark.parametrize("label", [label for label in MODULES if label not in QUICK_NOTEBOOKS])
def test_every_dev_file_runs_as_a_notebook(label):
    check_as_a_notebook(label)


def test_there_are_dev_files():
    assert MODULES and set(QUICK_NOTEBOOKS) <= set(MODULES)
