"""A grading run that is interrupted, or killed, goes on where it was; one without a sandbox says so."""

import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from course import Course, learnt_course, points, students_of, wait_for, wait_for_end
from hostile import NAP, harmful
from toy import REPO

pytestmark = pytest.mark.grading


@pytest.fixture
def course(tmp_path):
    return learnt_course(tmp_path / "course", "04")


def start(course: Course, *options: str) -> subprocess.Popen:
    command = [
        sys.executable,
        "-c",
        "from tinytorch.tito.cli import main; main()",
        "grade",
        "04",
        "--course",
        str(course.folder),
    ]
    return subprocess.Popen(
        [*command, "--jobs", "2", *options],
        cwd=REPO,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_an_interrupted_run_goes_on(course, how):
    for number in range(8):
        course.submit(f"student-{number}", course.solved())
    pages = course.folder / "feedback"
    first = start(course)
    wait_for(lambda: len(list(pages.glob("*/*.html"))) >= 2 and students_of(first.pid), 120)
    working = students_of(first.pid)
    first.send_signal(how)
    _, said = first.communicate(timeout=60)
    if how == signal.SIGINT:
        assert first.returncode == 1 and "Interrupted; the same command goes on" in said
    wait_for_end(working)
    done = {page: page.stat().st_mtime_ns for page in pages.glob("*/*.html")}
    kept = {path.stem for path in (course.folder / ".tito" / "graded" / "04_losses").glob("*.json")}
    assert 2 <= len(kept) < 8 and len(done) < 8
    second = start(course)
    _, said = second.communicate(timeout=300)
    assert second.returncode == 0, said
    rows = course.rows()
    assert len(rows) == 8 and {points(row) for row in rows.values()} == {course.automatic}
    seconds = {
        path.stem: path.stat().st_mtime_ns for path in (course.folder / ".tito").rglob("student-*.json")
    }
    assert all(seconds[student] < max(seconds.values()) for student in kept)
    assert not [path for path in Path(course.folder).rglob(".*.new")]


def test_without_a_sandbox(course):
    bad = harmful(course)
    course.submit("reference", course.solved())
    for name in ("daemon", "endless", "disk"):
        course.submit(name, bad[name])
    run = start(course, "--no-sandbox", "--time-limit", "3")
    _, said = run.communicate(timeout=300)
    assert run.returncode == 0 and "Without a sandbox" in said, said
    rows = course.rows()
    assert points(rows["reference"]) == course.automatic
    assert sum(map(points, rows.values())) == course.automatic
    assert rows["endless"]["status"] == "timed out"
    assert not [p for p in psutil.process_iter(["cmdline"]) if NAP in (p.info["cmdline"] or [])]


def test_the_sandbox_is_not_left_out_silently(course, monkeypatch, tmp_path):
    from click.testing import CliRunner

    from tinytorch.tito.cli import cli
    from tinytorch.tito.process import sandbox

    course.submit("empty", course.released)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.chdir(REPO)
    sandbox.find_bwrap.cache_clear()
    done = CliRunner().invoke(cli, ["grade", "04", "--course", str(course.folder)])
    sandbox.find_bwrap.cache_clear()
    assert done.exit_code == 1 and "apt install bubblewrap" in done.stderr and "--no-sandbox" in done.stderr
