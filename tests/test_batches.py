"""A batch that survives: memory that runs out, neighbours, threads, and steps broken off at any line."""

import threading
from contextlib import suppress
from time import perf_counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from broken_off import BrokenOff, first_visits, traced
from tinytorch.core import layers
from tinytorch.generation import batch as batch_module
from tinytorch.generation import paged as paged_module
from tinytorch.generation.batch import ContinuousBatch, QueueFull
from tinytorch.generation.kv_cache import KVCache, cache_sizes
from tinytorch.generation.paged import BlockPool, PagedKVCache
from tinytorch.generation.quantized import QuantizedKVCache
from tinytorch.generation.window import SlidingWindowKVCache
from tinytorch.models.llama import Llama
from tinytorch.models.transformer import GPT
from tinytorch.text.tokenization import BPETokenizer, StreamDecoder

V, LONGEST = 50, 160


def llama():
    """Every matrix large, so that a rounded key shows in the tokens."""
    model = Llama(V, 32, 2, 4, 2, max_seq_len=LONGEST, seed=1)
    for parameter in model.parameters():
        if parameter.ndim == 2:
            parameter.data *= 6
    return model


LLAMA, TINY = llama(), GPT(V, 12, 2, 3, LONGEST, seed=0)
SIZES = cache_sizes(LLAMA)


def quantized(bits, **options):
    return lambda: QuantizedKVCache(1, LONGEST, **SIZES, bits=bits, **options)


CACHES = {
    "plain": lambda: KVCache(1, LONGEST, **SIZES),
    "window": lambda: SlidingWindowKVCache(1, LONGEST, **SIZES, window=20, num_sinks=2),
    "float16": quantized(16),
    "int8": quantized(8),
    "int8, asymmetric": quantized(8, symmetric=False),
    "int4": quantized(4),
    "int4, small groups": quantized(4, group_size=8, residual_length=8),
    "paged": lambda: PagedKVCache(BlockPool(40, 4, **SIZES)),
}


def text(seed, length):
    return np.random.default_rng(seed).integers(0, V, length).tolist()


def alone(model, prompt, new, **options):
    return model.generate([prompt], new, **options)[0].tolist()


# ------------------------------------------------------------------------------------------------ neighbours


@pytest.mark.parametrize("name", CACHES)
@settings(max_examples=5, deadline=None)
@given(st.data())
def test_a_neighbour_changes_no_token(name, data):
    """Whatever the cache: who is in the batch, since when, and how long their prompts are."""
    chunk, seed = data.draw(st.integers(4, 40), "chunk"), data.draw(st.integers(0, 10**6), "seed")
    prompt = text(seed, data.draw(st.integers(1, 70), "prompt"))
    neighbours = data.draw(st.lists(st.tuples(st.integers(1, 50), st.integers(1, 6)), max_size=3))

    def written(others, before):
        with ContinuousBatch(LLAMA, lambda _: CACHES[name](), chunk=chunk) as batch:
            for i, (length, new) in enumerate(others[:before]):
                batch.add(text(seed + i + 1, length), new, temperature=0)
            batch.step()
            request = batch.add(prompt, 12, temperature=0)
            batch.step()
            for i, (length, new) in enumerate(others[before:]):
                batch.add(text(seed - i - 1 + 10**7, length), new, temperature=0)
            batch.run()
        return request.tokens

    assert written(neighbours, data.draw(st.integers(0, 3), "before")) == written([], 0)


def test_who_is_put_back_is_cut_in_the_same_places():
    """int4 in blocks would be a cache whose numbers depend on its cuts, and which can be put back."""

    class Bounded(QuantizedKVCache):
        left = 6

        def reserve(self, num_tokens):
            need = -(-(self.seq_pos + num_tokens) // 16) - getattr(self, "held", 0)
            if need > Bounded.left:
                raise paged_module.OutOfBlocks(f"{need} of {Bounded.left}")
            if need > 0:
                Bounded.left, self.held = Bounded.left - need, getattr(self, "held", 0) + need

        def close(self):
            Bounded.left, self.held = Bounded.left + getattr(self, "held", 0), 0

    def written(count):
        make = lambda _: Bounded(1, LONGEST, **SIZES, bits=4, group_size=8, residual_length=8)  # noqa: E731
        with ContinuousBatch(LLAMA, make, chunk=10) as batch:
            requests = [batch.add(text(i, 25), 30, temperature=0) for i in range(count)]
            batch.run()
        assert Bounded.left == 6
        return requests

    together, (first,) = written(3), written(1)
    assert sum(request.put_back for request in together) >= 1
    for i, request in enumerate(together):
        with ContinuousBatch(LLAMA, lambda _: CACHES["int4, small groups"](), chunk=10) as batch:
            single = batch.add(text(i, 25), 30, temperature=0)
            batch.run()
        assert request.error is None and request.tokens == single.tokens
    assert first.tokens == together[0].tokens


# ------------------------------------------------------------------------------------------ memory runs out


def test_sixteen_requests_on_a_pool_for_three():
    pool = BlockPool(18, 4, **cache_sizes(TINY))  # a text takes 6 blocks
    prompts = [text(i, 8 + i % 5) for i in range(16)]
    joined, done = {}, {}
    with ContinuousBatch(TINY, lambda _: PagedKVCache(pool), chunk=16) as batch:
        requests = [batch.add(prompt, 12, temperature=0) for prompt in prompts]
        for step in range(500):
            if not (batch.waiting or batch.running):
                break
            batch.step()
            pool.check([request.cache for request in requests if request.cache is not None])
            for i, request in enumerate(requests):
                if request.joined is not None:
                    joined.setdefault(i, step)
                if request.done:
                    done.setdefault(i, step)
    assert [request.error for request in requests] == [None] * 16
    assert [r.tokens for r in requests] == [alone(TINY, p, 12, temperature=0) for p in prompts]
    assert list(joined) == sorted(joined), "who came first joins first"
    assert all(abs(place - i) <= 2 for place, i in enumerate(done)), f"done in the order {list(done)}"
    times = [request.joined for request in requests]
    assert times == sorted(times)
    three_at_a_time = 16 / 3 * (1 + 12)
    assert step < three_at_a_time, (
        f"{step} steps; three at a time, each with its room reserved, would take more"
    )


@settings(max_examples=12, deadline=None)
@given(st.data())
def test_whatever_fits_alone_is_completed(data):
    size = data.draw(st.integers(1, 5), "block_size")
    jobs = data.draw(st.lists(st.tuples(st.integers(1, 12), st.integers(1, 14)), min_size=1, max_size=7))
    longest = max(-(-(length + new - 1) // size) for length, new in jobs)
    pool = BlockPool(longest + data.draw(st.integers(0, 6), "spare"), size, **cache_sizes(TINY))
    sharing = data.draw(st.booleans(), "sharing")

    def make(request):
        cache = PagedKVCache(pool)
        if sharing:
            cache.share(request.tokens)
        return cache

    rows, chunk = data.draw(st.integers(1, 5)), data.draw(st.integers(1, 9))
    with ContinuousBatch(TINY, make, rows, chunk) as batch:
        requests = []
        for i, (length, new) in enumerate(jobs):
            requests.append(batch.add(text(i // 2, length), new, rng=i))
            for _ in range(data.draw(st.integers(0, 3))):
                batch.step()
            for request in batch.running if sharing else ():
                request.cache.register(request.tokens[: request.cache.seq_pos])
        for _ in range(2000):
            if not (batch.waiting or batch.running):
                break
            batch.step()
            pool.check([request.cache for request in requests if request.cache is not None])
    for i, (request, (length, new)) in enumerate(zip(requests, jobs, strict=True)):
        assert request.error is None, f"{request!r} fits alone"
        assert request.tokens == alone(TINY, text(i // 2, length), new, rng=i)
    assert pool.counts()["held"] == 0


# --------------------------------------------------------------------------------------- when a text ends


def letters():
    return StreamDecoder(BPETokenizer([]))


class Dictated(GPT):
    """It writes what it is told, a byte a token."""

    def __init__(self, said: bytes):
        super().__init__(256, 4, 1, 1, 100, seed=0)
        self.said = said

    def logits(self, hidden):
        logits = super().logits(hidden)
        logits.data[...] = np.eye(256)[list(self.said[: len(logits.data)])].reshape(logits.data.shape)
        self.said = self.said[len(logits.data) :]
        return logits


def dictated(said, new=99, **options):
    """-> the request, and what its text was after each step."""
    batch, seen = ContinuousBatch(Dictated(said)), []
    request = batch.add([1], min(new, len(said)), temperature=0, stream=letters(), **options)
    while batch.running or batch.waiting:
        batch.step()
        seen.append(request.text)
    return request, seen


def test_a_stop_string_over_several_tokens_is_not_shown():
    request, seen = dictated(b"Yes.\nUser: no", stop_strings=["\nUser:", "##"])
    assert request.text == "Yes." and request.finish_reason == "stop"
    assert bytes(request.new_tokens) == b"Yes.\nUser:", "the tokens are what was read and written"
    assert seen == ["Y", "Ye", "Yes", *["Yes."] * 7], "nothing is shown that is taken back"
    request, _ = dictated("one\nUsed é".encode(), stop_strings=["\nUser:"])
    assert request.text == "one\nUsed é" and request.finish_reason == "length"
    request, _ = dictated(b"one\nUse", stop_strings=["\nUser:"])
    assert request.text == "one\nUse", "at the end what was held back is shown"
    request, _ = dictated("aé".encode(), new=2)
    assert request.text == "a\ufffd" and request.finish_reason == "length"


def test_reasons():
    batch = ContinuousBatch(TINY)
    (third,) = alone(TINY, [1, 2], 3, temperature=0)[4:]
    options = dict(temperature=0)
    stop = batch.add([1, 2], 9, stop_tokens=[third, 49], **options)
    same = batch.add([1, 2], 9, stop_token=third, **options)
    length, cancelled = batch.add([1, 2], 2, **options), batch.add([1, 2], 9, **options)
    error = batch.add([1, 2], 9, cache=None, **options)
    nothing = batch.add([1], 0)
    assert [r.finish_reason for r in (stop, length, cancelled)] == [None] * 3
    assert nothing.finish_reason == "length"
    batch.step()
    batch.cancel(cancelled)
    error.error = ValueError("full")
    batch.run()
    assert stop.tokens == same.tokens and (third in stop.new_tokens[-1:]) and len(stop.new_tokens) <= 3
    reasons = [r.finish_reason for r in (stop, same, length, cancelled, error)]
    assert reasons == ["stop", "stop", "length", "cancelled", "error"]
    with pytest.raises(ValueError, match="stream"):
        batch.add([1], 2, stop_strings=["x"])
    with pytest.raises(ValueError, match="stream"):
        length.text  # noqa: B018
    with pytest.raises(ValueError, match="stop_token 50"):
        batch.add([1], 2, stop_tokens=[3, V])


def test_it_says_when():
    before = perf_counter()
    with ContinuousBatch(TINY, max_requests=1, chunk=4) as batch:
        first, second = batch.add(text(0, 10), 3), batch.add(text(1, 3), 2)
        assert (first.joined, first.first_token, first.finished) == (None, None, None)
        batch.step()
        assert first.joined is not None and first.first_token is None and second.joined is None
        batch.run()
    after = perf_counter()
    for request in (first, second):
        times = [request.arrived, request.joined, request.first_token, request.finished]
        assert [before, *times, after] == sorted([before, *times, after])
    assert second.joined >= first.finished


# ---------------------------------------------------------------------------------------------- the door


def test_a_queue_may_be_bounded():
    batch = ContinuousBatch(TINY, max_requests=1, max_waiting=2)
    requests = [batch.add([1], 3) for _ in range(2)]
    with pytest.raises(QueueFull, match="2 requests wait, of 2"):
        batch.add([1], 3)
    batch.step()
    requests.append(batch.submit([1], 3))
    with pytest.raises(QueueFull):
        batch.submit([1], 3)
    batch.run()
    assert all(len(request.new_tokens) == 3 for request in requests)
    for wrong, error in ((-1, ValueError), (1.5, TypeError)):
        with pytest.raises(error, match="max_waiting"):
            ContinuousBatch(TINY, max_waiting=wrong)


def test_other_threads_submit_and_cancel_while_one_steps():
    batch, requests, wrong = ContinuousBatch(TINY, max_requests=3, chunk=5), [], []
    over = threading.Event()

    def ask(name):
        rng = np.random.default_rng(name)
        for i in range(6):
            prompt, new = text(100 * name + i, int(rng.integers(1, 9))), int(rng.integers(1, 7))
            request = batch.submit(prompt, new, rng=i)
            requests.append((request, prompt, new, i))
            if i % 3 == 2:
                request.cancelled = True
            try:
                batch.submit([V], 1)
            except ValueError as error:
                wrong.append(str(error))

    def serve():
        while not (over.is_set() and not (batch.running or batch.waiting or batch.inbox)):
            batch.step()
            batch.wait(0.01)

    server = threading.Thread(target=serve)
    askers = [threading.Thread(target=ask, args=(name,)) for name in range(4)]
    for thread in (server, *askers):
        thread.start()
    for thread in askers:
        thread.join()
    over.set()
    server.join(timeout=60)
    assert not server.is_alive() and len(requests) == 24 and len(wrong) == 24
    for request, prompt, new, seed in requests:
        want = alone(TINY, prompt, new, rng=seed)
        assert request.done and request.cache is None
        assert request.tokens == want or request.cancelled and request.tokens == want[: len(request.tokens)]


def test_the_thread_that_steps_sleeps_until_there_is_something_to_do():
    batch = ContinuousBatch(TINY)
    assert not batch.wait(0.001)
    timer = threading.Timer(0.05, batch.submit, ([1], 1))
    timer.start()
    assert batch.wait(30), "woken"
    batch.run()
    timer.join()
    assert not batch.wait(0)


def test_a_batch_and_others_use_one_model_at_the_same_time():
    """What stands in front of the model for a pass steps aside for everybody else."""
    prompts, found, errors = [text(i, 5 + i) for i in range(3)], [], []
    want = [alone(TINY, prompt, 20, temperature=0) for prompt in prompts]

    def batched():
        for _ in range(4):
            with ContinuousBatch(TINY, chunk=4) as batch:
                requests = [batch.add(prompt, 20, temperature=0) for prompt in prompts]
                batch.run()
            found.append([request.tokens for request in requests] == want)

    def by_itself():
        for _ in range(4):
            found.append([alone(TINY, prompt, 20, temperature=0) for prompt in prompts] == want)

    def guarded(call):
        try:
            call()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=guarded, args=(call,)) for call in (batched, batched, by_itself)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=120)
    assert not errors and found == [True] * 12
    assert "forward" not in vars(TINY.position_embedding)
    assert not any("forward" in vars(block.attention) for block in TINY.blocks)


# --------------------------------------------------------------------------------- steps that are broken off


class Scene:
    """A batch in the middle of everything: someone reads, someone writes and is drawn for, someone waits, two
    end, and the pool runs dry in the next step, so that the youngest is put back."""

    def __init__(self):
        self.pool, self.last = BlockPool(10, 3, **cache_sizes(TINY)), {}
        self.batch = ContinuousBatch(TINY, self.make, max_requests=4, chunk=6)
        self.release, self.batch.release = self.batch.release, self.note_and_release
        add = self.batch.add
        self.requests = [
            add(text(0, 5), 4, rng=0),
            add(text(1, 4), 5, temperature=0, stream=letters(), stop_strings=["~~"]),
            add(text(2, 9), 3, rng=2, top_k=5),
            add(text(3, 7), 4, rng=3),
            add(text(4, 2), 3, rng=4),
        ]

    def make(self, request):
        return PagedKVCache(self.pool)

    def note_and_release(self, request):
        if request.cache is not None:
            self.last[id(request)] = self.kept(request.cache)
        self.release(request)

    def run(self, steps=200):
        for _ in range(steps):
            if not (self.batch.waiting or self.batch.running):
                return
            self.batch.step()
        raise AssertionError(f"not done: {self.batch!r}")

    def stands(self):
        """Of each request its tokens, what its cache has committed, to the byte, and what it last had."""
        return [(r.tokens, self.kept(r.cache), self.last.get(id(r))) for r in self.requests]

    @staticmethod
    def kept(cache):
        if cache is None or cache.seq_pos == 0:
            return None
        arrays = [x.data.tobytes() for i in range(cache.num_layers) for x in cache.get(i)]
        return cache.seq_pos, b"".join(arrays)

    def check(self):
        caches = [request.cache for request in self.requests if request.cache is not None]
        self.pool.check(caches)
        assert len(self.batch.running) <= 4
        queue = [*self.batch.running, *self.batch.waiting]
        assert len(set(map(id, queue))) == len(queue), "nobody stands in two places"
        assert {id(r) for r in self.requests if not r.done} <= set(map(id, queue)), "nobody is lost"
        assert "forward" not in vars(TINY.position_embedding)
        assert not any("forward" in vars(block.attention) for block in TINY.blocks)


def after(steps):
    scene = Scene()
    for _ in range(steps):
        scene.batch.step()
    return scene


def broken_off_at(steps, places, want):
    """Break the next step off at each of these places."""
    before, whole = after(steps), after(steps + 1)
    for place in places:
        scene = after(steps)
        with suppress(BrokenOff):
            traced(scene.batch.step, (batch_module,), at=place)
            raise AssertionError(f"place {place} was not come to")
        locks = {"WRAPPING": layers.WRAPPING, "door": scene.batch.door}
        assert not any(lock.locked() for lock in locks.values()), f"locked for other threads after {place}"
        scene.check()
        for now, old, new in zip(scene.stands(), before.stands(), whole.stands(), strict=True):
            assert now[0] in (old[0], new[0]), "the tokens are those of before, or of after the step"
            assert now[1] in (old[1], new[1], new[2], None), "and so is the cache"
        scene.run()
        scene.check()
        assert [request.tokens for request in scene.requests] == want
        assert scene.pool.counts()["held"] == 0 and not any(r.cache for r in scene.requests)


@pytest.mark.parametrize("steps", [2])
def test_a_step_that_is_broken_off_anywhere_is_made_again(steps):
    whole = Scene()
    whole.run()
    want = [request.tokens for request in whole.requests]
    assert want[0] == alone(TINY, text(0, 5), 4, rng=0)
    lines = traced(after(steps).batch.step, (batch_module,))
    broken_off_at(steps, first_visits(lines), want)


@pytest.mark.slow
@pytest.mark.parametrize("steps", range(11))
def test_at_every_visit_of_every_line(steps):
    whole = Scene()
    whole.run()
    lines = traced(after(steps).batch.step, (batch_module,))
    broken_off_at(steps, range(len(lines)), [request.tokens for request in whole.requests])


def test_the_scene_has_everything_in_it():
    scene = Scene()
    scene.run()
    assert sum(request.put_back for request in scene.requests) >= 2
    assert after(2).requests != scene.requests and sum(r.put_back for r in after(3).requests) >= 1
