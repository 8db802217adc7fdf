"""`tito grade --scheduler` on a Dask cluster of separate worker processes, one of which is killed."""

import os
import signal
import threading

import pytest
from distributed import LocalCluster

from course import find, learnt_course, points, students_of, wait_for_end

pytestmark = [pytest.mark.grading, pytest.mark.filterwarnings("default")]  # Dask's own warnings are not ours


@pytest.fixture
def cluster():
    with LocalCluster(
        n_workers=2, threads_per_worker=1, processes=True, dashboard_address=":0", host="127.0.0.1"
    ) as cluster:
        yield cluster


def test_a_worker_that_is_killed_costs_nobody_a_grade(cluster, tmp_path):
    course = learnt_course(tmp_path / "course", "04")
    wrong = course.solved()
    find(wrong, "mse")["source"] = find(wrong, "mse")["source"].replace(".mean()", ".sum()")
    kinds = {"empty": (course.released, 0), "right": (course.solved(), 90), "wrong": (wrong, 80)}
    want = {}
    for number in range(4):
        for kind, (notebook, score) in kinds.items():
            course.submit(f"{kind}-{number}", notebook)
            want[f"{kind}-{number}"] = score
    killed, orphans = [], []

    def kill() -> None:
        """The first worker that is seen running a student's code."""
        while not killed and not over.wait(0.05):
            for worker in cluster.workers.values():
                working = students_of(worker.process.pid) if worker.process else []
                if working and not killed:
                    orphans.extend(working)
                    killed.append(worker.process.pid)
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
    wait_for_end(orphans)


def test_no_scheduler_and_other_code_are_told(cluster, tmp_path, monkeypatch):
    from tinytorch.tito.instructor.grading import pools, setup
    from tinytorch.tito.project import TitoError

    with pytest.raises(TitoError, match="No Dask scheduler can be reached at tcp://127.0.0.1:9"):
        with pools.dask_pool("tcp://127.0.0.1:9"):
            pass
    monkeypatch.setattr(setup, "OWN_FILES", setup.OWN_FILES[:-1])
    with pytest.raises(TitoError, match="2 of 2 workers of tcp.* have another Python or another version"):
        with pools.dask_pool(cluster.scheduler_address):
            pass
