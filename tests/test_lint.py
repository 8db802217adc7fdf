"""`tito lint`: each mistake put into a clean dev file is found, in its line, by its name."""

import ast

import jupytext
import pytest

from tinytorch.tito.author.dev_file import split_cells
from tinytorch.tito.author.lint import lint_project
from tinytorch.tito.notebook.files import PERCENT
from toy import REPO

SOLUTION = '"grade_id": "tensor", "locked": false, "schema_version": 3, "solution": true}'
TEST = '"grade_id": "test-tensor", "locked": true, "points": 95, "schema_version": 3, "solution": false}'
WHY = '"grade_id": "why", "locked": false, "points": 5, "schema_version": 3, "solution": true}'


def codes(toy, number=None):
    """{code: the lines it was found in}."""
    found = {}
    for finding in lint_project(toy.project, number):
        found.setdefault(finding.code, []).append(finding.line)
    return found


def test_the_toy_project_is_clean(toy):
    result = toy.tito("lint", "1")
    assert (result.exit_code, result.stdout) == (0, "The dev files are in order.\n")
    assert codes(toy, "2") == {}


def test_the_dev_files_are_in_order(repo):
    findings = [finding.show(repo.root) for finding in lint_project(repo)]
    assert not findings, "\n".join(findings)


def test_a_finding_is_one_line(toy):
    toy.edit('points": 95', 'points": 94')
    result = toy.tito("lint", "1")
    message = "points-total the graded cells give 99 points, not 100"
    assert (result.exit_code, result.stdout) == (1, f"modules/01_tensor/tensor_dev.py:1: {message}\n")
    assert result.stderr == "tito: 1 finding.\n"


DATA = "        self.data = np.asarray(data)"
SIZE = "        self.size = self.data.size"
SHOW = "# %%\nTensor([1, 2]).size"
FIRST = 'assert Tensor([1]).size == 1, "one number has size 1"'
NUMPY = "#| export\nimport numpy as np"

# (code, line of the finding, old text, new text): each put alone into the clean dev file
MISTAKES = [
    ("syntax", 29, SIZE, "        self.size = = 1"),
    ("syntax-warning", 24, "An array of numbers.", r"An array, $\gamma$."),
    ("syntax-warning", 37, FIRST, 'assert (Tensor([1]).size == 1, "always")'),
    ("stray-marker", 29, SIZE, "        # %% now\n" + SIZE),
    ("stray-marker", 14, NUMPY, NUMPY + "\n# In[3]:"),
    ("line-length", 29, SIZE, SIZE + "  # " + "x" * 80),
    ("title", 1, "# Tensor\n", "Tensor\n"),
    ("title-quote", 1, "# Tensor\n", "# Tensor\n> A summary.\n"),
    ("markdown-string", 15, '"""\n**Task.** Keep the data.\n"""', "# **Task.** Keep the data."),
    ("latex", 15, "**Task.** Keep the data.", r"**Task.** Keep $\\gamma$."),
    ("cell-type", 33, SHOW, "# %% [raw]\nTensor"),
    ("directive-late", 13, NUMPY, "# needed below\n" + NUMPY),
    ("directive-late", 13, NUMPY, "import os\n" + NUMPY),
    ("directive-late", 13, NUMPY, "\n" + NUMPY),
    ("directive-unknown", 12, NUMPY, NUMPY.replace("export", "exprot")),
    ("directive-form", 12, NUMPY, NUMPY.replace("#|", "# |")),
    ("directive-form", 12, NUMPY, NUMPY.replace("#| ", "#|")),
    ("directive-in-markdown", 17, "**Task.**", "#| export\n**Task.**"),
    ("export-elsewhere", 12, NUMPY, NUMPY.replace("export", "export core.other")),
    ("default-exp-missing", 1, "#| default_exp core.tensor", "1"),
    ("default-exp-twice", 11, NUMPY, "#| default_exp core.other\n" + NUMPY),
    ("default-exp-place", 9, "#| default_exp core.tensor", "#| default_exp core.tensor\n1"),
    ("default-exp-place", 12, "# %%\n#| default_exp", "# %%\n1\n\n# %%\n#| default_exp"),
    ("default-exp-target", 9, "core.tensor", "tito.cli"),
    ("default-exp-target", 9, "core.tensor", "core.__init__"),
    ("nothing-exported", 1, "#| export", "#| hide"),
    ("metadata-form", 36, TEST, TEST.replace("}", "")),
    ("metadata-form", 33, SHOW, '# %% tags=["x"]\n'),
    ("metadata-form", 33, SHOW, "# %% A title\n"),
    ("metadata-keys", 21, SOLUTION, SOLUTION.replace("}", ', "points": 3}')),
    ("metadata-keys", 21, SOLUTION, SOLUTION.replace("}", ', "cell_type": "code"}')),
    ("metadata-keys", 36, TEST, TEST.replace('"points": 95, ', "")),
    ("metadata-keys", 36, TEST, TEST.replace('"schema_version": 3, ', "")),
    ("metadata-keys", 36, '"grade": true, ' + TEST, '"grade": 1, ' + TEST),
    ("metadata-kind", 36, TEST, TEST.replace("true", "false")),
    ("metadata-kind", 36, '# %% nbgrader={"grade": true', '# %% [markdown] nbgrader={"grade": true'),
    ("metadata-kind", 47, "# %% [markdown] nbgrader", "# %% nbgrader"),
    ("schema-version", 36, TEST, TEST.replace("3", "2")),
    ("grade-id", 36, TEST, TEST.replace("test-tensor", "test tensor")),
    ("grade-id", 36, TEST, TEST.replace('"test-tensor"', "7")),
    ("grade-id-twice", 36, TEST, TEST.replace("test-tensor", "tensor")),
    ("points", 36, TEST, TEST.replace("95", "0")),
    ("points", 36, TEST, TEST.replace("95", '"95"')),
    ("points-total", 1, TEST, TEST.replace("95", "94")),
    ("solution-unmarked", 21, "        ### BEGIN SOLUTION\n" + DATA, DATA),
    ("region-unbalanced", 30, "        ### BEGIN SOLUTION\n" + DATA, DATA + "\n"),
    ("region-unbalanced", 27, "### END SOLUTION", "pass"),
    ("region-unbalanced", 38, "### END HIDDEN TESTS", "1"),
    ("region-unbalanced", 40, "### END HIDDEN TESTS", "### END SOLUTION"),
    ("region-unbalanced", 29, SIZE, "        ### BEGIN SOLUTION"),
    ("region-words", 24, "An array of numbers.", "An array; BEGIN SOLUTION stands below."),
    ("region-words", 27, "### BEGIN SOLUTION", "### BEGIN SOLUTION (2 lines)"),
    ("region-words", 17, "**Task.** Keep the data.", "### BEGIN SOLUTION"),
    ("region-words", 49, "Your answer here.", "=== BEGIN MARK SCHEME ==="),
    ("region-place", 34, SHOW, "# %%\n### BEGIN HIDDEN TESTS\n### END HIDDEN TESTS"),
    ("region-place", 34, SHOW, "# %%\n### BEGIN SOLUTION\n### END SOLUTION"),
    (
        "stub-syntax",
        21,
        DATA,
        f"        if 1:\n            ### END SOLUTION\n    {DATA}\n        ### BEGIN SOLUTION",
    ),
    ("no-hidden-tests", 1, "### BEGIN HIDDEN TESTS", "#"),
    ("no-written-question", 1, '"grade": true, ' + WHY, '"grade": false, ' + WHY),
    ("assert-true", 37, FIRST, 'assert True, "one number has size 1"'),
    ("assert-true", 37, FIRST, 'assert 1, "one number has size 1"'),
    ("assert-true", 37, FIRST, 'assert (Tensor([1]).size == 1, "always")'),
    ("bare-except", 36, SHOW, "# %%\ntry:\n    1 / 0\nexcept:\n    raise"),
    ("swallowed-exception", 36, SHOW, "# %%\ntry:\n    1 / 0\nexcept Exception:\n    pass"),
    ("test-without-assert", 36, "assert ", ""),
    ("exported-test", 36, FIRST, "#| export\n" + FIRST),
    ("defined-twice", 35, SHOW, "# %%\n#| export\nclass Tensor:\n    pass"),
    ("import-self", 14, NUMPY, NUMPY + "\nfrom tinytorch.core.tensor import Tensor"),
    ("import-later", 14, NUMPY, NUMPY + "\nfrom tinytorch.core.layers import Layer"),
    ("import-later", 34, SHOW, "# %%\nimport tinytorch.core.layers"),
    ("import-later", 29, SIZE, "        import tinytorch.core.layers"),
    ("import-from", 14, NUMPY, NUMPY + "\nfrom tinytorch.core.nowhere import x"),
    ("import-from", 14, NUMPY, NUMPY + "\nfrom tinytorch import core"),
    ("import-from", 14, NUMPY, NUMPY + "\nfrom tinytorch.tito.cli import main"),
    ("export-import", 14, NUMPY, NUMPY + "\nimport matplotlib.pyplot as plt"),
    ("relative-import", 14, NUMPY, NUMPY + "\nfrom . import x"),
]


@pytest.mark.parametrize(
    ("code", "line", "old", "new"), MISTAKES, ids=[f"{row[0]}-{n}" for n, row in enumerate(MISTAKES)]
)
def test_a_mistake_is_found(toy, code, line, old, new):
    toy.edit(old, new)
    found = codes(toy, "1")
    assert line in found.get(code, []), f"{code} should be found in line {line}, found {found}"


def test_two_files_with_one_target(toy):
    toy.edit("core.layers", "core.tensor", "02_layers")
    assert codes(toy)["default-exp-shared"] == [9]
    message = "modules/02_layers/layers_dev.py:9: default-exp-shared 01_tensor exports to core.tensor too\n"
    assert message in toy.tito("lint").stdout


def test_every_code_has_its_mistake():
    """A check that nothing here provokes might as well not be there."""
    known = set()
    for path in (REPO / "tinytorch" / "tito" / "author").glob("rules_*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Yield):
                known.add(node.value.elts[1].value)
    elsewhere = {"default-exp-shared", "test-too-early", "extra-file"}
    assert known - elsewhere == {row[0] for row in MISTAKES}


def test_a_test_before_its_solution(toy):
    cells = toy.dev().read_text(encoding="utf-8").split("\n# %%")
    test = next(cell for cell in cells if "test-tensor" in cell)
    cells.remove(test)
    cells.insert(4, test)
    toy.dev().write_text("\n# %%".join(cells), encoding="utf-8")
    assert len(codes(toy, "1")["test-too-early"]) == 2, "its solution is later, and so is what it uses"


def test_what_would_leak_into_a_release(toy):
    (toy.project.modules_dir / "01_tensor" / "old_solution.py").write_text("x = 1\n", encoding="utf-8")
    (toy.project.modules_dir / "01_tensor" / "tensor.ipynb").write_text("{}", encoding="utf-8")
    result = toy.tito("lint", "1")
    assert result.exit_code == 1
    assert result.stdout.startswith("modules/01_tensor/old_solution.py:1: extra-file ")
    assert result.stdout.count("\n") == 1, "the module's own notebook is no extra file"


def test_a_folder_without_its_dev_file(toy):
    (toy.project.modules_dir / "03_losses").mkdir()
    assert "modules/03_losses:1: no-dev-file the folder holds no losses_dev.py\n" in toy.tito("lint").stdout


def test_a_long_docstring_in_the_package(toy):
    text = '"""One.\n\nTwo.\n\nThree.\n"""\n'
    (toy.project.package_dir / "tito" / "other.py").write_text(text, encoding="utf-8")
    assert "tinytorch/tito/other.py:1: module-docstring" in toy.tito("lint").stdout


def test_lint_sees_the_cells_that_jupytext_sees(repo):
    for module in repo.modules():
        text = module.dev_file.read_text(encoding="utf-8")
        theirs = [
            (cell.cell_type, cell.metadata.get("nbgrader")) for cell in jupytext.reads(text, PERCENT).cells
        ]
        ours = [("markdown" if cell.is_markdown else "code", cell.metadata) for cell in split_cells(text)]
        assert ours == theirs, module.label
