"""Whatever an honest student does to a solved notebook besides, every part still counts.

Random habits (scratch cells, splits, moves, imports, magics, cells typed again …) on solved modules: all
parts pass, hidden tests included, and the package file holds all that the module exports. Through `tito
grade` the same edits are tried by tests/grading/test_honest.py and, many more, by `make test-answers`.
"""

import ast
import copy
import json
from pathlib import Path

import pytest

from habits import with_habits
from judging import MODULES, PROJECT, reference, run
from tinytorch.tito.notebook.files import from_bytes
from tinytorch.tito.notebook.markers import for_student, without_markers
from tinytorch.tito.notebook.package import Export
from tinytorch.tito.notebook.settle import settle
from tinytorch.tito.process.outcomes import PASSED

QUICK = ("01_tensor", "04_losses", "09_normalization", "15_kvcaching")
EACH = [
    pytest.param(label, seed, marks=[] if label in QUICK and not seed else [pytest.mark.slow])
    for label in MODULES
    for seed in range(3)
]


def solved(label: str) -> tuple[dict, dict]:
    """The notebook with every solution in it, and as it was handed out."""
    full, given = reference(label), for_student(reference(label))
    notebook = copy.deepcopy(given)
    for cell, right in zip(notebook["cells"], full["cells"], strict=True):
        if cell["cell_type"] == "code" and cell["metadata"].get("nbgrader", {}).get("solution"):
            cell["source"] = without_markers(right["source"])
    return notebook, given


def definitions(text: str) -> set[str]:
    return {n.name for n in ast.parse(text).body if isinstance(n, (ast.FunctionDef, ast.ClassDef))}


@pytest.mark.parametrize(("label", "seed"), EACH)
def test_an_honest_edit_costs_nothing(label, seed):
    notebook, given = solved(label)
    edited, habits = with_habits(notebook, seed + 100 * list(MODULES).index(label))
    settled = settle(from_bytes(json.dumps(edited).encode(), "a.ipynb"), given)
    report = run(settled.with_checks_of(reference(label)).cells)
    lost = [f"{p.grade_id} {p.status}: {p.message} {p.where}" for p in report.parts if p.status != PASSED]
    assert not lost, f"{habits}: {lost}"
    target = MODULES[label].export_target()
    built = Export(settled, Path("a.ipynb"), None, target).build()
    file = PROJECT.package_dir.joinpath(*target.split(".")).with_suffix(".py")
    missing = definitions(file.read_text(encoding="utf-8")) - definitions(built.text)
    assert not missing, f"{habits}: {missing}"
