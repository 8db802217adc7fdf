"""A small project of two modules, for the tests of the course tool; the fixtures are in conftest.py."""

import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

from click.testing import CliRunner

from tinytorch.tito.cli import cli
from tinytorch.tito.project import Project

REPO = Path(__file__).resolve().parents[1]

TENSOR = '''\
# %% [markdown]
"""
# Tensor

What you will be able to do.
"""

# %%
#| default_exp core.tensor

# %%
#| export
import numpy as np

# %% [markdown]
"""
**Task.** Keep the data.
"""


# %% nbgrader={"grade": false, "grade_id": "tensor", "locked": false, "schema_version": 3, "solution": true}
#| export
class Tensor:
    """An array of numbers."""

    def __init__(self, data):
        ### BEGIN SOLUTION
        self.data = np.asarray(data)
        self.size = self.data.size
        ### END SOLUTION


# %%
Tensor([1, 2]).size

# %% nbgrader={"grade": true, "grade_id": "test-tensor", "locked": true, "points": 95, "schema_version": 3, "solution": false}
assert Tensor([1]).size == 1, "one number has size 1"
### BEGIN HIDDEN TESTS
assert Tensor([1, 2]).size == 2, "two numbers have size 2"
### END HIDDEN TESTS

# %% [markdown]
"""
Why is a tensor not a list?
"""

# %% [markdown] nbgrader={"grade": true, "grade_id": "why", "locked": false, "points": 5, "schema_version": 3, "solution": true}
"""
Your answer here.
"""
'''  # noqa: E501

LAYERS = (
    TENSOR.replace("# Tensor\n", "# Layers\n")
    .replace("core.tensor", "core.layers")
    .replace("import numpy as np\n", "import numpy as np\n\nfrom tinytorch.core.tensor import Tensor\n")
    .replace("class Tensor", "class Layer")
    .replace("Tensor([", "Layer([")
    .replace("np.asarray(data)", "Tensor(np.asarray(data))")
)


class Toy(SimpleNamespace):
    """A project in a temporary folder, and the command line in it."""

    project: Project

    def dev(self, module="01_tensor"):
        return next((self.project.modules_dir / module).glob("*_dev.py"))

    def edit(self, old, new, module="01_tensor"):
        text = self.dev(module).read_text(encoding="utf-8")
        assert old in text, f"the toy dev file does not hold {old!r}"
        self.dev(module).write_text(text.replace(old, new), encoding="utf-8")

    def tito(self, *arguments):
        """The command in this process -> click's result (exit_code, stdout, stderr)."""
        return CliRunner().invoke(cli, list(arguments))

    def tito_process(self, *arguments, **env):
        """The command in a process of its own, with this project's own copy of the package."""
        code = "from tinytorch.tito.cli import main; main()"
        return run([sys.executable, "-c", code, *arguments], self.project.root, **env)

    def files(self):
        """{path: bytes} of everything in the project, to see what a command changed."""
        root = self.project.root
        return {
            path.relative_to(root).as_posix(): path.read_bytes()
            for path in sorted(root.rglob("*"))
            if path.is_file() and "__pycache__" not in path.parts
        }


def make_toy(root: Path) -> Path:
    """Writes the project into a new folder -> the folder."""
    shutil.copytree(REPO / "tinytorch" / "tito", root / "tinytorch" / "tito", ignore=caches)
    shutil.copy(REPO / "tinytorch" / "__init__.py", root / "tinytorch")
    shutil.copy(REPO / "pyproject.toml", root)
    for part in ("core", "generation"):
        (root / "tinytorch" / part).mkdir()
        (root / "tinytorch" / part / "__init__.py").touch()
    for name, text in (("01_tensor", TENSOR), ("02_layers", LAYERS)):
        folder = root / "modules" / name
        folder.mkdir(parents=True)
        (folder / f"{name[3:]}_dev.py").write_text(text, encoding="utf-8")
    return root


def run(command, folder, **env):
    """A finished process, with text output. IN_TEST would make nbdev do nothing."""
    clean = {name: value for name, value in os.environ.items() if name not in ("IN_TEST", "PYTHONPATH")}
    return subprocess.run(
        command, cwd=folder, env=clean | env, capture_output=True, text=True, encoding="utf-8", timeout=120
    )


def caches(_folder, names):
    return [name for name in names if name in ("__pycache__", "_modidx.py") or name.endswith(".ipynb")]
