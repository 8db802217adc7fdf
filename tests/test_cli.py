"""The command line where only what `pip install -e .` brings is installed."""

import os
import re
import shutil
import sys
import tomllib
from importlib import metadata
from pathlib import Path

import pytest

from tinytorch.tito.cli import COMMANDS
from toy import REPO, caches, run


def runtime() -> set[str]:
    """The distributions that the runtime needs, those that they need included."""
    wanted = tomllib.loads((REPO / "pyproject.toml").read_text(encoding="utf-8"))["project"]["dependencies"]
    found: set[str] = set()
    while wanted:
        name, marker = re.match(r"([\w.-]+)[^;]*;?(.*)", wanted.pop()).groups()
        if name not in found and "extra" not in marker and "python_version" not in marker:
            found.add(name)
            wanted += metadata.requires(name) or []
    return found


@pytest.fixture(scope="module")
def bare(tmp_path_factory):
    """A Python that has the runtime and nothing else: `bare(words)` -> the finished process."""
    folder = tmp_path_factory.mktemp("site-packages")
    for name in runtime():
        distribution = metadata.distribution(name)
        for top in {file.parts[0] for file in distribution.files if file.parts[0] != ".."}:
            (folder / top).symlink_to(distribution.locate_file(top))

    def tito(*words: str, where=REPO, **env):
        python = [sys.executable, "-S", "-P", "-c", "from tinytorch.tito.cli import main; main()"]
        return run([*python, *words], where, PYTHONPATH=os.pathsep.join(map(str, (folder, REPO))), **env)

    return tito


def test_this_environment_is_bare(bare):
    """The fixture hides what it says: exporting finds no jupytext."""
    done = bare("export", "--check")
    assert done.returncode == 1
    assert re.fullmatch(r"tito: .* needs (jupytext|nbdev): pip install -e '.\[dev\]'\n", done.stderr)


@pytest.mark.parametrize("words", [[], *([name] for name in COMMANDS), ["module", "test"]], ids=" ".join)
def test_help_needs_no_extra(bare, words):
    done = bare(*words, "--help")
    assert done.returncode == 0 and not done.stderr, done.stderr
    assert done.stdout.startswith(f"Usage: tito {' '.join(words)}".rstrip())


def test_the_help_lists_every_command(bare):
    said = bare("--help").stdout
    for name, place in COMMANDS.items():
        assert re.search(rf"^  {name} +{re.escape(place.summary[:40])}", said, re.MULTILINE), said


def test_completion_needs_no_extra(bare):
    done = bare(_TITO_COMPLETE="bash_complete", COMP_WORDS="tito ca", COMP_CWORD="1")
    assert (done.stdout, done.stderr) == ("plain,cache-report\n", "")


def test_the_help_loads_no_command():
    code = "import sys; from tinytorch.tito.cli import cli; cli(['--help'], standalone_mode=False); "
    code += "print(*(name for name in sys.modules if name.startswith('tinytorch.')))"
    done = run([sys.executable, "-c", code], REPO)
    assert not {place.module for place in COMMANDS.values()} & set(done.stdout.split("\n")[-2].split())


def test_grading_says_what_to_install(bare, tmp_path):
    done = bare("grade", "04", "--course", str(tmp_path))
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert done.stderr == "tito: Grading needs nbgrader: pip install -e '.[dev,instructor]'\n"


@pytest.fixture
def bundles(tmp_path):
    """Two students' bundles side by side; the tool of the second says that it is the second's."""
    for label in ("01_first", "02_second"):
        root = tmp_path / label
        shutil.copytree(REPO / "tinytorch" / "tito", root / "tinytorch" / "tito", ignore=caches)
        shutil.copy(REPO / "tinytorch" / "__init__.py", root / "tinytorch")
        table = f'[project]\nname = "tinytorch"\n[tool.tinytorch]\nmodule = "{label}"\n'
        (root / "pyproject.toml").write_text(table, encoding="utf-8")
        cli = root / "tinytorch" / "tito" / "cli.py"
        text = cli.read_text(encoding="utf-8")
        cli.write_text(text.replace("The tool of the", f"The tool in {label} of the"), encoding="utf-8")
    (root / "numpy.py").write_text("raise SystemExit('not this one')\n", encoding="utf-8")
    return tmp_path


def tool_in(installed: Path, where: Path) -> str:
    """What `tito --help` says in a folder, in an environment that was installed from `installed`."""
    code = "from tinytorch.tito.cli import main; main()"
    done = run([sys.executable, "-P", "-c", code, "--help"], where, PYTHONPATH=str(installed))
    assert done.returncode == 0, done.stderr
    return re.search("The tool .*of the TinyTorch course", done.stdout)[0]


def test_in_a_bundle_its_own_tool_works(bundles):
    first, second = bundles / "01_first", bundles / "02_second"
    (second / "deep").mkdir()
    for where in (second, second / "deep"):
        assert tool_in(first, where) == "The tool in 02_second of the TinyTorch course"
    assert tool_in(second, first) == "The tool in 01_first of the TinyTorch course"
    assert tool_in(first, bundles) == "The tool in 01_first of the TinyTorch course"


def test_the_tool_of_a_clone_hands_nothing_over(bundles):
    """An instructor's folders hold what students sent, which must not run for being looked at."""
    assert tool_in(REPO, bundles / "02_second") == "The tool of the TinyTorch course"
