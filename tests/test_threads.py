"""Two threads on one model give what one gives: plain passes, padded rows, batches, training beside them."""

import faulthandler
import sys
import threading

import numpy as np
import pytest

from tinytorch.core.autograd import enable_autograd
from tinytorch.core.losses import CrossEntropyLoss
from tinytorch.core.tensor import set_recorder
from tinytorch.generation.batch import ContinuousBatch
from tinytorch.models.llama import Llama
from tinytorch.models.transformer import GPT

MODELS = {
    "gpt": lambda: GPT(23, 24, 2, 4, 40, seed=0),
    "llama": lambda: Llama(23, 24, 2, 4, 2, max_seq_len=40, seed=0),
}
MANY = pytest.param(1000, marks=pytest.mark.slow)
SEVERAL = pytest.param(60, marks=pytest.mark.slow)
PATIENCE = 120  # seconds


@pytest.fixture(autouse=True)
def often():
    """Threads take turns every 10 microseconds instead of every 5 milliseconds."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    yield
    sys.setswitchinterval(before)


def together(*jobs):
    """Run the jobs in threads of their own, all beginning at once -> what they return, or raise."""
    start, results = threading.Barrier(len(jobs)), [None] * len(jobs)

    def run(place, job):
        start.wait()
        try:
            results[place] = job()
        except BaseException as error:  # handed on to the thread that waits
            results[place] = error

    threads = [threading.Thread(target=run, args=(i, job), daemon=True) for i, job in enumerate(jobs)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE)
        if thread.is_alive():
            faulthandler.dump_traceback(all_threads=True)
            pytest.fail(f"after {PATIENCE} seconds a thread still runs: where, is in what was said on stderr")
    for result in results:
        if isinstance(result, BaseException):
            raise result
    return results


def passes(model, seed, count):
    """-> a job: `count` passes over texts of lengths of its own; its result are all logits."""
    rng = np.random.default_rng(seed)
    plan = [(rng.integers(0, 23, (1, rng.integers(1, 9))), int(rng.integers(0, 30))) for _ in range(count)]

    def job():
        return [model.logits(model.hidden_states(t, start_pos=p)).data for t, p in plan]

    return job


@pytest.mark.parametrize("count", [150, MANY])
@pytest.mark.parametrize("kind", MODELS)
def test_passes_of_two_threads_are_those_of_one(kind, count):
    model = MODELS[kind]()
    jobs = [passes(model, seed, count) for seed in (1, 2)]
    want = [job() for job in jobs]
    for mine, alone in zip(together(*jobs), want, strict=True):
        assert all(np.array_equal(a, b) for a, b in zip(mine, alone, strict=True))


@pytest.mark.parametrize("count", [8, SEVERAL])
@pytest.mark.parametrize("kind", MODELS)
def test_padded_rows_and_a_batch_beside_plain_passes(kind, count):
    model = MODELS[kind]()
    rows = np.random.default_rng(3).integers(0, 23, (3, 6))

    def padded():
        return [
            model.generate(rows, 4, temperature=0, lengths=[2, 6, 3], pad_side=side).tolist()
            for side in ("left", "right") * count
        ]

    def padded_otherwise():
        return [model.generate(rows, 3, temperature=0, lengths=[5, 1, 6]).tolist() for _ in range(2 * count)]

    def batch():
        texts = []
        for _ in range(count):
            with ContinuousBatch(model, chunk=4) as served:
                requests = [
                    served.add(row[:n], 5, temperature=0) for row, n in zip(rows, (6, 2, 4), strict=True)
                ]
                served.run()
                assert not any(request.error for request in requests)
                texts.append([request.tokens for request in requests])
        return texts

    jobs = [padded, padded_otherwise, batch, passes(model, 4, 10 * count)]
    want = [job() for job in jobs]
    got = together(*jobs)
    assert got[:3] == want[:3]
    assert all(np.array_equal(a, b) for a, b in zip(got[3], want[3], strict=True))
    assert not any("forward" in vars(part) for part in (model.position_embedding, *model.blocks)), "a trace"


@pytest.mark.parametrize("kind", MODELS)
def test_a_thread_that_answers_does_not_disturb_one_that_learns(kind):
    before = set_recorder(None)
    enable_autograd()
    model, answering = MODELS[kind](), MODELS[kind]()
    tokens = np.random.default_rng(5).integers(0, 23, (2, 9))

    def gradients():
        found = []
        for _ in range(10):
            for p in model.parameters():
                p.grad = None
            CrossEntropyLoss()(model(tokens[:, :-1]), tokens[:, 1:]).backward()
            found.append([p.grad.copy() for p in model.parameters()])
        return found

    def answers():
        return [answering.generate(tokens[:1], 6, temperature=0).tolist() for _ in range(10)]

    want = gradients(), answers()
    got = together(gradients, answers)
    set_recorder(before)
    assert got[1] == want[1]
    for mine, alone in zip(got[0], want[0], strict=True):
        assert all(np.array_equal(a, b) for a, b in zip(mine, alone, strict=True))
