"""The command line where only what `pip install -e .` brings is installed."""

import os
import re
import sys
import tomllib
from importlib import metadata

import pytest

from tinytorch.tito.cli import COMMANDS
from toy import REPO, run


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
    """The fixture hides what it says: exporting finds no nbdev."""
    done = bare("export", "--check")
    assert (done.returncode, done.stderr) == (1, "tito: Exporting needs nbdev: pip install -e '.[dev]'\n")


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
