"""Fixtures of the course tool's tests: the real project, a copy of it, and a small one of two modules."""

import os
import shutil
import tempfile

import pytest
from hypothesis import HealthCheck, settings

import side_by_side
from tinytorch.tito.process.worker import THREADS
from tinytorch.tito.project import Project
from toy import REPO, Toy, caches, make_toy

# how long an example takes says more about the machine than about what is tested
settings.register_profile("tests", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("tests")


def pytest_configure(config):
    """What every process of this run has: one thread for NumPy, and a folder that all of them share."""
    for name in THREADS:
        os.environ.setdefault(name, "1")
    if "PYTEST_XDIST_WORKER" not in os.environ:
        folder = tempfile.TemporaryDirectory(prefix="tinytorch-tests-")
        os.environ[side_by_side.NAME] = folder.name
        config.add_cleanup(folder.cleanup)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    return side_by_side.scheduler(config, log)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item):
    with side_by_side.turn(alone=item.get_closest_marker("alone") is not None):
        return (yield)


@pytest.fixture
def repo():
    return Project(REPO)


@pytest.fixture
def toy(tmp_path, monkeypatch):
    """Two modules, a package with nothing exported, and the current folder in it."""
    root = make_toy(tmp_path / "project")
    monkeypatch.chdir(root)
    return Toy(project=Project(root))


@pytest.fixture
def copy_of_repo(tmp_path, monkeypatch, repo):
    """The real project as it is checked out, in a temporary folder, which is the current one."""
    root = tmp_path / "copy"
    root.mkdir()
    for name in ("tinytorch", "modules"):
        shutil.copytree(REPO / name, root / name, ignore=caches)
    for name in ("pyproject.toml", "settings.ini"):
        shutil.copy(REPO / name, root)
    monkeypatch.chdir(root)
    return Toy(project=Project(root))
