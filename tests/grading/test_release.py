"""`tito release` on a small course: what a bundle holds, what it must never hold, and that it works alone."""

import json
import os
import re
import shutil
import sys
import zipfile

import pytest

from tinytorch.tito.instructor import release
from tinytorch.tito.instructor.course import prepare_course, swap_in
from tinytorch.tito.instructor.grading.reach import reaching
from tinytorch.tito.instructor.handed_out import Releases
from tinytorch.tito.instructor.leaks import Secrets, squeeze, texts_of
from tinytorch.tito.project import TitoError
from toy import REPO, run

# nbgrader and what it imports warn; the warnings are not ours to turn into errors
pytestmark = [pytest.mark.grading, pytest.mark.filterwarnings("default")]

CHECKPOINT = """
from tinytorch.core.{name} import {cls}


def test_size():
    assert {cls}([1, 2, 3]).size == 3
"""
MILESTONE = '''\
"""The size of a layer."""

from tinytorch.core.layers import Layer

if __name__ == "__main__":
    print("size", Layer([1, 2, 3, 4]).size, Layer.__init__.__code__.co_filename)
'''
SOLUTION = "self.data = Tensor(np.asarray(data))"
EARLIER = "self.data = np.asarray(data)"
HIDDEN = 'assert Layer([1, 2]).size == 2, "two numbers have size 2"'
KERNELS = pytest.mark.slow


@pytest.fixture
def course(toy):
    """The toy course with checkpoints, and a milestone that module 02 unlocks."""
    root = toy.project.root
    (root / "tests" / "checkpoints").mkdir(parents=True)
    for label, cls in (("01_tensor", "Tensor"), ("02_layers", "Layer")):
        test = root / "tests" / "checkpoints" / f"test_checkpoint_{label}.py"
        test.write_text(CHECKPOINT.format(name=label[3:], cls=cls), encoding="utf-8")
    (root / "milestones" / "01_first" / "__pycache__").mkdir(parents=True)
    (root / "milestones" / "01_first" / "size.py").write_text(MILESTONE, encoding="utf-8")
    (root / "milestones" / "01_first" / "__pycache__" / "size.cpython-311.pyc").write_bytes(b"x")
    shutil.copy(REPO / "LICENSE", root)
    (root / "tinytorch" / "pretrained").mkdir()
    (root / "tinytorch" / "pretrained" / "weights.py").write_text('"""By hand."""\n', encoding="utf-8")
    return toy


@pytest.fixture
def unproved(course, monkeypatch):
    """The proof needs two kernels; one test has it, the others do without."""
    monkeypatch.setattr(release, "prove", lambda *_: None)
    return course


def make(course, *arguments, ok=True):
    result = course.tito("release", *arguments, "--output", "out")
    if ok:
        assert result.exit_code == 0, result.output
        return result.stdout
    assert result.exit_code == 1 and isinstance(result.exception, SystemExit), result.output
    assert re.fullmatch(r"(tito: [^\n]+\n)+", result.stderr), result.stderr
    return result.stderr


def files(folder):
    """{path: bytes}, below the folder."""
    paths = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}


def test_the_notebooks_of_bundles_are_remembered(unproved, tmp_path):
    """Each that differs in what students do not change; grading measures a student's edits against them."""
    module, text = unproved.project.module("01"), unproved.dev().read_text(encoding="utf-8")
    for old, new in (("", ""), ("one number has", "a number has"), ("Keep the data", "Keep the numbers")):
        unproved.dev().write_text(text.replace(old, new, 1), encoding="utf-8")
        shutil.rmtree("out", ignore_errors=True)
        make(unproved, "1")
    kept = Releases(tmp_path / "course", module, unproved.project).all()
    assert sorted("a number has" in json.dumps(notebook) for notebook in kept) == [False, True]
    assert "BEGIN" not in json.dumps(kept)


def test_what_a_bundle_holds(unproved):
    make(unproved, "2")
    held = files(unproved.project.root / "out" / "02_layers")
    tools = {name for name in held if name.startswith("tinytorch/tito/")}
    needed = ("cli", "student/commands", "student/module", "process/worker", "process/cells_script")
    assert {f"tinytorch/tito/{name}.py" for name in needed} <= tools
    assert not any("/instructor/" in name or name.endswith("lint.py") for name in tools)
    assert set(held) - tools == {
        ".tito/pristine/02_layers.ipynb",
        "LICENSE",
        "README.md",
        "layers.ipynb",
        "milestones/01_first/size.py",
        "pyproject.toml",
        "tests/checkpoints/test_checkpoint_02_layers.py",
        "tinytorch/__init__.py",
        "tinytorch/core/__init__.py",
        "tinytorch/core/tensor.py",
        "tinytorch/generation/__init__.py",
        "tinytorch/pretrained/weights.py",
    }
    everything = "\n".join(re.sub(r"\s", "", text) for data in held.values() for text in texts_of(data))
    for secret in (SOLUTION, HIDDEN, "BEGIN HIDDEN TESTS", "BEGIN SOLUTION\\n"):
        assert re.sub(r"\s", "", secret) not in everything
    assert re.sub(r"\s", "", EARLIER) in everything, "the earlier module is there, solved"
    for said in ("tito module start 02", "python milestones/01_first/size.py", "pip install -e ."):
        assert said in held["README.md"].decode()
    assert len(held["README.md"].splitlines()) < 60, "one page"
    assert "\nllm = [\n" in held["pyproject.toml"].decode(), "the extra for published weights"


def test_what_the_readme_lets_code_use_is_what_the_grader_lets_it(unproved):
    make(unproved, "2")
    readme = (unproved.project.root / "out" / "02_layers" / "README.md").read_text(encoding="utf-8")
    allowed, _, forbidden = readme.partition("Your code may use")[2].partition("machinery")
    names = re.findall(r"`(\w+)`", allowed)
    assert len(names) > 5
    assert reaching({0: "\n".join(f"import {name}\n{name}.x" for name in names)}, []) == {}
    for name in re.findall(r"`(\w+)`", forbidden.partition("where the task")[0]):
        source = {
            "__eq__": "class A:\n    def __eq__(self, other):\n        return True",
            "os": "import os\nos.environ",
            "sys": "import sys\nsys.modules",
        }.get(name, f"{name}('x')")
        assert reaching({0: source}, []), name
    assert reaching({0: "import numpy as np\nnp.abs = 3"}, [])


def test_from_scratch_the_earlier_notebooks_are_handed_out(unproved):
    make(unproved, "2", "--from-scratch")
    held = files(unproved.project.root / "out" / "02_layers")
    assert "tinytorch/core/tensor.py" not in held and "modules/01_tensor/tensor.ipynb" in held
    assert "tests/checkpoints/test_checkpoint_01_tensor.py" in held
    everything = "\n".join(re.sub(r"\s", "", text) for data in held.values() for text in texts_of(data))
    assert re.sub(r"\s", "", EARLIER) not in everything


def test_the_zip_is_the_folder_and_always_the_same(unproved):
    make(unproved, "2")
    out = unproved.project.root / "out"
    first = (out / "02_layers.zip").read_bytes()
    with zipfile.ZipFile(out / "02_layers.zip") as archive:
        assert archive.testzip() is None
        assert archive.namelist() == sorted(archive.namelist())
        held = {name.removeprefix("02_layers/"): archive.read(name) for name in archive.namelist()}
    assert held == files(out / "02_layers")
    make(unproved, "2")
    assert (out / "02_layers.zip").read_bytes() == first
    assert sorted(path.name for path in out.iterdir()) == ["02_layers", "02_layers.zip"]


LATER = "# %%\n#| default_exp core.later\n\n# %%\n#| export\nimport numpy as np\n"


def plant(root, name, content):
    (root / name).parent.mkdir(parents=True, exist_ok=True)
    (root / name).write_bytes(content if isinstance(content, bytes) else content.encode())


def zipped(folder, text):
    with zipfile.ZipFile(folder / "x.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("inner.txt", text)
    return (folder / "x.zip").read_bytes()


NOTEBOOK = json.dumps({"cells": [{"source": ["x = 1\n", f"        {SOLUTION}"]}]})


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("notes.md", f"Hint: `{SOLUTION}`", "solution"),
        ("commented.py", f"#   {SOLUTION}\n", "solution"),
        ("folded.py", "self.data = Tensor(\n    np.asarray(data)\n)\n", "solution"),
        ("old.ipynb", NOTEBOOK, "solution"),
        ("log.jsonl", json.dumps({"a": f"x\n{SOLUTION}\n"}) + "\n", "solution"),
        ("wide.txt", SOLUTION.encode("utf-16"), "solution"),
        ("packed.npz", SOLUTION, "solution"),
        ("packed.xz", b"\xfd7zXZ\x00", "xz"),
        ("checks.txt", HIDDEN, "hidden test"),
        ("layers.py", "x = 1", None),
        ("build2/core/layers.py", "x = 1", "for module 02 to make"),
        ("layers_dev.py", "x = 1", "for module 02 to make"),
    ],
)
def test_a_leak_is_refused_and_the_earlier_release_stays(unproved, tmp_path, name, content, said):
    make(unproved, "2")
    out = unproved.project.root / "out"
    before = files(out)
    content = zipped(tmp_path, content) if name == "packed.npz" else content
    plant(unproved.project.root / "milestones" / "01_first", name, content)
    if said is None:
        make(unproved, "2")
        return
    message = make(unproved, "2", ok=False)
    assert said in message and f"milestones/01_first/{name}" in message
    assert files(out) == before


def test_what_a_line_must_say_to_be_a_secret():
    """A checkpoint has to walk through a loader and reset a tracer too; what is done in between tells."""
    lines = [
        "for inputs, targets in loader:",
        "    tracemalloc.reset_peak()",
        "    total += weigh(inputs, targets)",
    ]
    source = "\n".join(["### BEGIN SOLUTION", *lines, "### END SOLUTION"])
    tags = {"nbgrader": {"solution": True}}
    cell = {"cell_type": "code", "source": source, "metadata": tags}
    solution = Secrets.of({"07_training": {"cells": [cell]}}, {}, [], []).solution
    assert set(solution) == {squeeze(lines[2]), squeeze("".join(lines))}


def test_a_solution_in_the_checkpoint_or_in_the_tool_is_refused(unproved):
    root = unproved.project.root
    for name in ("tests/checkpoints/test_checkpoint_02_layers.py", "tinytorch/tito/student/commands.py"):
        text = (root / name).read_text(encoding="utf-8")
        (root / name).write_text(f"{text}\n# {SOLUTION}\n", encoding="utf-8")
        assert f"give away {name}" in make(unproved, "2", ok=False)
        assert not (root / "out").exists()
        (root / name).write_text(text, encoding="utf-8")


def test_a_failure_while_swapping_brings_the_earlier_release_back(unproved, monkeypatch):
    make(unproved, "2")
    out = unproved.project.root / "out"
    before = files(out)
    unproved.edit("What you will be able to do.", "Something new.", module="02_layers")
    replace = os.replace

    def full(source, target):
        if str(target).endswith("out/02_layers.zip") and ".tito-" in str(source):
            raise OSError(28, "No space left on device")
        replace(source, target)

    monkeypatch.setattr(os, "replace", full)
    assert unproved.tito("release", "2", "--output", "out").exit_code == 1
    assert files(out) == before


def test_a_folder_that_is_no_bundle_is_never_replaced(unproved):
    before = unproved.dev("02_layers").read_bytes()
    result = unproved.tito("release", "2", "--output", "modules")
    assert result.exit_code == 1 and "is no bundle of module 02" in result.stderr
    assert unproved.dev("02_layers").read_bytes() == before
    make(unproved, "2")
    (unproved.project.root / "out" / "02_layers" / ".tito" / "progress").mkdir()
    assert "A student has worked in" in make(unproved, "2", ok=False)


def test_all_makes_what_it_can_and_says_what_it_could_not(unproved):
    (unproved.project.root / "tests" / "checkpoints" / "test_checkpoint_01_tensor.py").unlink()
    said = make(unproved, "--all", ok=False)
    assert "module 01 has no checkpoint" in said and "1 of 2 modules were not released" in said
    assert (unproved.project.root / "out" / "02_layers.zip").is_file()
    said = make(unproved, "1", "2", ok=False)
    assert "module 01 has no checkpoint" in said and "1 of 2 modules were not released" in said
    for arguments in (("release", "--output", "out"), ("release", "2", "--all", "--output", "out")):
        assert unproved.tito(*arguments).exit_code == 1


# ------------------------------------------------------------------------------------------------- the proof


@KERNELS
def test_the_proof_passes_and_refuses(course):
    make(course, "2")
    before = files(course.project.root / "out")
    text = course.dev("02_layers").read_text(encoding="utf-8")
    course.edit("self.size = self.data.size", "self.size = 7 + self.data.size", module="02_layers")
    assert "solved notebook of module 02 does not validate" in make(course, "2", ok=False)
    empty = re.sub(r"assert Layer.*\n", "pass\n", text)
    course.dev("02_layers").write_text(empty, encoding="utf-8")
    assert "with nothing written in it" in make(course, "2", ok=False)
    assert files(course.project.root / "out") == before


# -------------------------------------------------------------------------------------- the bundle on its own


def solve(notebook):
    content = json.loads(notebook.read_text(encoding="utf-8"))
    for cell in content["cells"]:
        if cell["metadata"].get("nbgrader", {}).get("grade_id") == "tensor":
            own = "self.data = Tensor(np.array(data))\n        self.size = int(np.prod(self.data.data.shape))"
            cell["source"] = "".join(cell["source"]).replace("raise NotImplementedError()", own)
    notebook.write_text(json.dumps(content), encoding="utf-8")


def test_the_loop_in_the_bundle_alone(unproved, tmp_path):
    make(unproved, "2")
    with zipfile.ZipFile(unproved.project.root / "out" / "02_layers.zip") as archive:
        archive.extractall(tmp_path / "student")
    home = tmp_path / "student" / "02_layers"

    def tito(*arguments, ok=True):
        code = "from tinytorch.tito.cli import main; main()"
        done = run([sys.executable, "-c", code, *arguments], home, PYTHONPATH=str(home))
        assert (done.returncode == 0) == ok, done.stdout + done.stderr
        assert "Traceback" not in done.stderr
        return done.stdout + done.stderr

    assert "layers.ipynb is there already" in tito("module", "start", "2")
    assert "not written yet" in tito("module", "test", "2", ok=False)
    assert "Nothing was changed" in tito("module", "complete", "2", ok=False)
    assert not (home / "tinytorch" / "core" / "layers.py").exists()
    script = [sys.executable, "milestones/01_first/size.py"]
    assert run(script, home, PYTHONPATH=str(home)).returncode != 0, "there is nothing to run it on yet"
    solve(home / "layers.ipynb")
    assert "1 of 1 part passed" in tito("module", "test", "2")
    assert "checkpoint passed (1 test" in tito("module", "complete", "2")
    assert "Every module here is completed." in tito("module", "status")
    done = run(script, home, PYTHONPATH=str(home))
    assert done.stdout.split() == ["size", "4", str(home / "tinytorch" / "core" / "layers.py")], done.stderr
    assert "Your notebook is kept: .tito/backups/02_layers/" in tito("module", "reset", "2")
    assert "raise NotImplementedError()" in (home / "layers.ipynb").read_text(encoding="utf-8")


@KERNELS
def test_pip_installs_the_bundle(unproved, tmp_path):
    """In a new environment that sees the packages of this one, so that the index is not asked."""
    make(unproved, "2")
    home = unproved.project.root / "out" / "02_layers"
    venv = tmp_path / "venv"
    assert run([sys.executable, "-m", "venv", "--without-pip", str(venv)], tmp_path).returncode == 0
    folder = "Scripts" if os.name == "nt" else "bin"
    site = next(venv.rglob("site-packages"))
    mine = next(path for path in sys.path if path.endswith("site-packages"))
    (site / "others.pth").write_text(mine + "\n", encoding="utf-8")
    python = venv / folder / ("python.exe" if os.name == "nt" else "python")
    pip = [str(python), "-m", "pip", "install", "-qq", "--no-deps", "--no-build-isolation", "-e", "."]
    done = run(pip, home)
    assert done.returncode == 0, done.stderr
    done = run([str(venv / folder / "tito"), "module", "status"], home)
    assert "02_layers" in done.stdout, done.stdout + done.stderr


# ----------------------------------------------------------------------------------------- nbgrader's course


def test_a_course_is_made_once_and_follows_the_dev_file(course, tmp_path):
    module = course.project.module("2")
    place = tmp_path / "course"
    notebook = prepare_course(course.project, module, place)
    assert notebook == place / "release" / "02_layers" / "layers.ipynb"
    source = place / "source" / "02_layers" / "layers.ipynb"
    released = json.loads(notebook.read_text(encoding="utf-8"))
    assert SOLUTION in source.read_text(encoding="utf-8") and SOLUTION not in notebook.read_text()
    assert "tinytorch" not in released["metadata"]
    names = {path.name for path in place.iterdir()}
    assert names == {"nbgrader_config.py", "source", "release", "submitted", "gradebook.db", ".tito"}
    before = files(place)
    prepare_course(course.project, module, place)
    assert files(place) == before

    course.edit("What you will be able to do.", "Something new.", module="02_layers")
    prepare_course(course.project, module, place)
    assert "Something new." in notebook.read_text(encoding="utf-8")
    text = source.read_text(encoding="utf-8").replace("Something new.", "By hand.")
    source.write_text(text, encoding="utf-8")
    shutil.rmtree(notebook.parent)
    prepare_course(course.project, module, place)
    assert "By hand." in notebook.read_text(encoding="utf-8"), "what an instructor edited is kept"


def test_a_broken_source_leaves_the_course_as_it_was(course, tmp_path):
    module, place = course.project.module("2"), tmp_path / "course"
    prepare_course(course.project, module, place)
    before = files(place)
    course.edit("### END SOLUTION", "", module="02_layers")
    with pytest.raises(TitoError, match="nbgrader could not make the release of module 02"):
        prepare_course(course.project, module, place)
    assert files(place) == before


def test_swapping_is_all_or_nothing(tmp_path):
    for name in ("old", "new"):
        (tmp_path / name).write_text(name)
    with pytest.raises(FileNotFoundError):
        swap_in({tmp_path / "old": tmp_path / "new", tmp_path / "other": tmp_path / "missing"})
    assert files(tmp_path) == {"old": b"old", "new": b"new"}
