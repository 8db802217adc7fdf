"""`tito grade --scheduler` on a Dask cluster of separate worker processes, one of which is killed."""

import os
import signal
import threading
import time

import pytest

pytestmark = [pytest.mark.grading, pytest.mark.filterwarnings("default")]  # Dask's own warnings are not ours
pytest.importorskip("nbgrader", reason="make test-grading installs it")

import psutil  # noqa: E402
from distributed import LocalCluster  # noqa: E402

from course import Course, find, points, students_at_work  # noqa: E402


@pytest.fixture
def cluster():
    with LocalCluster(
        n_workers=2, threads_per_worker=1, processes=True, dashboard_address=None, host="127.0.0.1"
    ) as cluster:
        yield cluster


def test_a_worker_that_is_killed_costs_nobody_a_grade(cluster, tmp_path):
    course = Course(tmp_path / "course", "04")
    wrong = course.solved()
    find(wrong, "mse")["source"] = find(wrong, "mse")["source"].replace(".mean()", ".sum()")
    kinds = {"empty": (course.released, 0), "right": (course.solved(), 90), "wrong": (wrong, 80)}
    want = {}
    for number in range(4):
        for kind, (notebook, score) in kinds.items():
            course.submit(f"{kind}-{number}", notebook)
            want[f"{kind}-{number}"] = score
    course.grade("--student", "empty-0")  # what the reference tells is known before anybody is killed
    killed = []

    def kill() -> None:
        """The first worker that is seen running a student's code."""
        while not killed and not over.wait(0.05):
            workers = {worker.process.pid for worker in cluster.workers.values() if worker.process}
            for process in students_at_work():
                try:
                    above = {parent.pid for parent in process.parents()} & workers
                except psutil.NoSuchProcess:
                    continue  # it has just ended
                if above and not killed:
                    killed.extend(above)
                    os.kill(killed[0], signal.SIGKILL)

    over = threading.Event()
    killer = threading.Thread(target=kill)
    killer.start()
    try:
        rows = course.grade("--scheduler", cluster.scheduler_address)
    finally:
        over.set()
        killer.join()
    assert killed, "no worker was caught at work"
    assert sorted(rows) == sorted(want)  # each student is there once
    assert {name: points(row) for name, row in rows.items()} == want
    assert {row["status"] for row in rows.values()} <= {"graded", "needs manual marks"}
    end = time.monotonic() + 10
    while students_at_work():
        assert time.monotonic() < end, "a student's process outlived its worker"
        time.sleep(0.2)


def test_no_scheduler_and_other_code_are_told(cluster, tmp_path, monkeypatch):
    from tinytorch.tito import grade
    from tinytorch.tito.project import TitoError

    with pytest.raises(TitoError, match="No Dask scheduler can be reached at tcp://127.0.0.1:9"):
        with grade.dask_pool("tcp://127.0.0.1:9"):
            pass
    monkeypatch.setattr(grade, "OWN_FILES", grade.OWN_FILES[:-1])
    with pytest.raises(TitoError, match="2 of 2 workers of tcp.* have another Python or another version"):
        with grade.dask_pool(cluster.scheduler_address):
            pass
