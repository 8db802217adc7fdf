"""Checkpoint 20: continuous batching. Every request against itself alone, without batch and without cache."""

import copy
import gc
import math
import weakref

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tinytorch.core.tensor import Tensor
from tinytorch.generation.batch import (
    ContinuousBatch,
    FlatLayer,
    NothingToDraw,
    Request,
    continuous_steps,
    flatten,
    share_out,
    static_steps,
)
from tinytorch.generation.kv_cache import (
    CacheFull,
    KVCache,
    PoolFull,
    cache_bytes,
    cache_sizes,
    disable_kv_cache,
    enable_kv_cache,
)
from tinytorch.generation.paged import BlockPool, PagedKVCache
from tinytorch.models.llama import Llama
from tinytorch.models.transformer import GPT

V, LONGEST = 13, 24
GPT_SIZES = {"num_layers": 2, "num_heads": 5, "head_dim": 2}
LLAMA_SIZES = {"num_layers": 3, "num_heads": 2, "head_dim": 4}  # 6 query heads on 2
PROMPTS = ([3, 1, 4, 1, 5, 9, 2, 6], [7], [0, 12, 11], [8, 8, 8, 8, 8], [2, 7, 1], [5, 3])
NEW = (4, 9, 1, 6, 16, 3)


def random_weights(model, seed=0):
    """Every weight random and large enough that each matters."""
    rng = np.random.default_rng(seed)
    for name, p in model.named_parameters():
        p.data[...] = rng.normal(1.0 if "norm" in name and "weight" in name else 0.0, 0.4, p.shape)
    return model


MODELS = {
    "gpt": random_weights(GPT(V, 10, 2, 5, LONGEST)),
    "llama": random_weights(Llama(V, 10, 3, 6, 2, hidden_dim=7, max_seq_len=LONGEST, head_dim=4)),
}
SIZES = {"gpt": GPT_SIZES, "llama": LLAMA_SIZES}


@pytest.fixture(params=MODELS)
def kind(request):
    return request.param


@pytest.fixture
def model(kind):
    return MODELS[kind]


def alone(model, prompt, new, **options) -> list:
    """The tokens of one text, all read again for each: no cache, no batch."""
    return model.generate([list(prompt)], new, **options)[0].tolist()


def finish(batch, limit=300):
    """Step until all are done, but not for ever."""
    for _ in range(limit):
        if not (batch.waiting or batch.running):
            return
        batch.step()
    raise AssertionError(f"not done after {limit} steps: {batch!r}")


def parts(module) -> list:
    return [module, *(part for _, child in module.children() for part in parts(child))]


def everything(model) -> list:
    """Which objects every part of the model holds; not the turns of the last pass, which each pass sets."""
    return [
        {name: id(value) for name, value in vars(part).items() if name not in ("cos", "sin")}
        for part in parts(model)
    ]


class GluedCache:
    """A cache for one row that glues; it counts, it may refuse, and it knows whether it was closed."""

    closed, is_broken, breaks = 0, False, 0

    def __init__(self, refuse=None, failure=None):
        """refuse(layer_idx, seq_pos, T) -> whether update raises `failure`."""
        self.batch_size, self.seq_pos, self.layers, self.log = 1, 0, {}, []
        self.refuse, self.failure = (
            refuse or (lambda *_: False),
            failure or CacheFull("no 17 blocks are left"),
        )

    def update(self, layer_idx, key, value):
        key, value = np.array(key), np.array(value)
        assert key.shape[0] == value.shape[0] == 1 and key.ndim == 4
        if self.is_broken and layer_idx == 1:
            GluedCache.breaks += 1
            raise KeyboardInterrupt
        self.log.append((layer_idx, self.seq_pos, key.shape[2]))
        if self.refuse(layer_idx, self.seq_pos, key.shape[2]):
            raise self.failure
        old = self.layers.get(layer_idx, (key[:, :, :0], value[:, :, :0]))
        self.layers[layer_idx] = tuple(
            np.concatenate([before[:, :, : self.seq_pos], new], axis=2)
            for before, new in zip(old, (key, value), strict=True)
        )
        return tuple(Tensor(array) for array in self.layers[layer_idx])

    def advance(self, num_tokens=1):
        self.seq_pos += num_tokens

    def close(self):
        self.closed += 1


class OwnAttention(GluedCache):
    """A cache that attends itself, in loops, with queries in groups or without."""

    def attend(self, query, key, value, layer_idx, mask=None):
        assert mask is None
        start = self.seq_pos
        keys, values = (x.data for x in self.update(layer_idx, key, value))
        groups = query.data if query.ndim == 5 else query.data[:, :, None]
        out = np.zeros(groups.shape, np.float32)
        for b, h, g, t in np.ndindex(groups.shape[:4]):
            scores = keys[b, h, : start + t + 1] @ groups[b, h, g, t] / math.sqrt(groups.shape[-1])
            shares = np.exp(scores - scores.max())
            out[b, h, g, t] = shares / shares.sum() @ values[b, h, : start + t + 1]
        return Tensor(out.reshape(query.shape))


# the same tokens as alone


@pytest.mark.parametrize(("max_requests", "chunk"), [(1, 1), (2, 3), (3, 1), (16, 64), (4, 5)])
def test_every_request_gets_what_it_gets_alone(model, max_requests, chunk):
    batch = ContinuousBatch(model, max_requests=max_requests, chunk=chunk)
    requests = [batch.add(p, n, temperature=0) for p, n in zip(PROMPTS, NEW, strict=True)]
    finish(batch)
    for request, prompt, new in zip(requests, PROMPTS, NEW, strict=True):
        assert request.tokens == alone(model, prompt, new, temperature=0)
        assert request.new_tokens == request.tokens[len(prompt) :] and len(request.new_tokens) == new
        assert request.done and request.error is None


@pytest.mark.parametrize("make", [GluedCache, OwnAttention])
def test_any_cache_of_the_protocol_will_do(model, make):
    made = []
    batch = ContinuousBatch(model, lambda request: made.append(make()) or made[-1], max_requests=4, chunk=3)
    requests = [batch.add(p, n, temperature=0) for p, n in zip(PROMPTS, NEW, strict=True)]
    finish(batch)
    assert len(made) == len(PROMPTS) and all(cache.closed == 1 for cache in made)
    for request, cache, prompt, new in zip(requests, made, PROMPTS, NEW, strict=True):
        assert request.tokens == alone(model, prompt, new, temperature=0)
        assert cache.seq_pos == len(prompt) + new - 1  # the last token is never read
        layers = [entry[0] for entry in cache.log]
        assert layers == list(range(len(model.blocks))) * (len(layers) // len(model.blocks))
        assert all(T <= 3 for _, _, T in cache.log)


SETTINGS = (
    {"temperature": 0.7},
    {"temperature": 1.5, "top_k": 4},
    {"top_p": 0.8, "stop_token": 2},
    {"temperature": 0},
    {"temperature": 0, "stop_token": 5},
    {"stop_token": 0},
)


def test_each_has_its_own_settings_and_its_own_rng(model):
    batch = ContinuousBatch(model, max_requests=4, chunk=4)
    jobs = [(p, 12, {**SETTINGS[i], "rng": 40 + i}) for i, p in enumerate(PROMPTS)]
    requests = [batch.add(p, n, **options) for p, n, options in jobs]
    finish(batch)
    for request, (prompt, new, options) in zip(requests, jobs, strict=True):
        assert request.tokens == alone(model, prompt, new, **options)


def test_a_generator_goes_on_where_it_stood():
    model, rng, same = MODELS["gpt"], np.random.default_rng(3), np.random.default_rng(3)
    batch = ContinuousBatch(model)
    for _ in range(2):
        request = batch.add([1, 2], 7, rng=rng)
        finish(batch)
        assert request.tokens == alone(model, [1, 2], 7, rng=same)


def test_a_stop_token_in_the_prompt_stops_nothing(model):
    want = alone(model, [4, 6], 5, temperature=0)
    stop = next(token for token in range(V) if token not in want[2:])
    batch = ContinuousBatch(model)
    request = batch.add([4, 6], 5, temperature=0, stop_token=stop)
    other = batch.add([1, stop], 5, temperature=0, stop_token=stop)
    finish(batch)
    assert request.tokens == want
    assert other.tokens == alone(model, [1, stop], 5, temperature=0, stop_token=stop)
    assert len(other.tokens) > 2


def test_each_of_several_stop_tokens_stops(model):
    prompt = PROMPTS[0]
    whole = alone(model, prompt, 12, temperature=0)
    new = whole[len(prompt) :]
    for stop in set(new):
        want = whole[: len(prompt) + new.index(stop) + 1]
        for other in {*range(V)} - {*new}:  # below it and above it
            batch = ContinuousBatch(model)
            request = batch.add(prompt, 12, temperature=0, stop_tokens=[other, stop])
            finish(batch)
            assert request.tokens == want and request.finish_reason == "stop"


class Letters:
    """The simplest stream: token 0 is an a, 1 a b."""

    def feed(self, token_id):
        return chr(ord("a") + token_id)

    def finish(self):
        return ""


def test_a_stop_string_stops_and_is_not_shown(model):
    prompt = PROMPTS[0]
    whole = alone(model, prompt, 12, temperature=0)
    text = "".join(map(Letters().feed, whole[len(prompt) :]))
    for end in (2, 5, 9):
        stop = text[end - 2 : end]
        first = text.index(stop)
        batch = ContinuousBatch(model)
        request = batch.add(prompt, 12, temperature=0, stop_strings=[stop], stream=Letters())
        finish(batch)
        assert request.tokens == whole[: len(prompt) + first + 2], "nothing is written after it"
        assert request.text == text[:first] and request.finish_reason == "stop"


def test_more_tokens_in_a_step_than_the_model_has_positions(model):
    """The tokens of a step have nothing to do with the length of a text."""
    prompts = [[i % V] * 20 for i in range(7)]
    batch = ContinuousBatch(model, max_requests=7, chunk=500)
    requests = [batch.add(prompt, 4, temperature=0) for prompt in prompts]
    finish(batch, limit=5)
    assert [r.tokens for r in requests] == [alone(model, prompt, 4, temperature=0) for prompt in prompts]


jobs = st.tuples(
    st.lists(st.integers(0, V - 1), min_size=1, max_size=9),
    st.integers(0, 12),
    st.sampled_from(SETTINGS),
    st.integers(0, 99),
)
events = st.one_of(
    jobs.map(lambda job: ("add", job)),
    jobs.map(lambda job: ("add", job)),
    st.integers(1, 4).map(lambda n: ("step", n)),
    st.integers(0, 9).map(lambda i: ("cancel", i)),
    st.integers(0, 2).map(lambda layer: ("refuse", layer)),
    st.just(("break off", None)),
)


@settings(max_examples=30, deadline=None)
@given(
    st.lists(events, min_size=8, max_size=20),
    st.integers(1, 4),
    st.integers(1, 7),
    st.sampled_from(sorted(MODELS)),
)
def test_whatever_the_schedule(schedule, max_requests, chunk, kind):
    """Joining late, leaving early, failing and broken-off steps, in any order."""
    model, made, added, refuse_next = MODELS[kind], [], [], []
    before = everything(model)

    def make(request):
        layer = refuse_next.pop() if refuse_next else None
        made.append(GluedCache(lambda at, seq_pos, T: at == layer and seq_pos + T > 4))
        return made[-1]

    def step(batch, breaking=False):
        """One step; what was read in it, and by whom, is as it should be."""
        running = [
            request for request in batch.running if not request.done
        ]  # one failed in a broken-off step
        if breaking and running:
            marks = [request.cache.seq_pos for request in running]
            GluedCache.is_broken, GluedCache.breaks = True, 0
            try:
                batch.step()
            except KeyboardInterrupt:
                pass
            else:  # whoever had a turn was refused before
                assert GluedCache.breaks == 0, "a break must reach the caller"
                return
            finally:
                GluedCache.is_broken = False
            assert [request.cache.seq_pos for request in running] == marks
            assert everything(model) == before
            return
        unread = [len(r.tokens) - r.cache.seq_pos for r in running]
        caches = [r.cache for r in running]
        logged = [len(cache.log) for cache in caches]
        batch.step()
        assert len(batch.running) <= max_requests
        for cache, mark, waiting in zip(caches, logged, unread, strict=True):
            read = {T for _, _, T in cache.log[mark:]}
            assert read == {1} if waiting == 1 else all(T <= min(chunk, waiting) for T in read)

    with ContinuousBatch(model, make, max_requests, chunk) as batch:
        for event, what in schedule:
            if event == "add":
                prompt, new, options, seed = what
                added.append((batch.add(prompt, new, rng=seed, **options), what))
            elif event == "step":
                for _ in range(what):
                    step(batch)
            elif event == "cancel" and added:
                batch.cancel(added[what % len(added)][0])
            elif event == "refuse":
                refuse_next[:] = [what]
            elif event == "break off":
                step(batch, breaking=True)
            assert everything(model) == before
        finish(batch)
    assert all(cache.closed == 1 for cache in made)
    for request, (prompt, new, options, seed) in added:
        want = alone(model, prompt, new, rng=seed, **options)
        assert request.done and request.cache is None
        if request.cancelled or request.error is not None:
            assert request.tokens == want[: len(request.tokens)] and len(request.tokens) >= len(prompt)
        else:
            assert request.tokens == want
        assert request.error is None or "17 blocks" in str(request.error)


# who reads how much, and who joins when


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(1, 30), max_size=8), st.integers(1, 20))
def test_the_chunk_is_shared_in_whole_pieces(unread, chunk):
    counts = [int(n) for n in share_out(list(unread), chunk)]
    reading = [(min(n, chunk), count) for n, count in zip(unread, counts, strict=True) if n > 1]
    assert all(count == 1 for n, count in zip(unread, counts, strict=True) if n == 1)
    assert all(count in (0, piece) for piece, count in reading), "where it is cut depends on itself alone"
    assert sum(count for _, count in reading) <= chunk
    for i, (piece, count) in enumerate(reading):
        left = chunk - sum(count for _, count in reading[:i])
        assert (count == piece) == (piece <= left), "a piece that fits is read, in their order"


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(1, 9), min_size=1, max_size=12), st.integers(1, 5))
def test_steps_are_counted_as_the_batch_makes_them(lengths, slots):
    rows, waiting, steps = [], list(lengths), 0
    while rows or waiting:
        rows += [waiting.pop(0) for _ in range(min(slots - len(rows), len(waiting)))]
        rows, steps = [left - 1 for left in rows if left > 1], steps + 1
    assert continuous_steps(list(lengths), slots) == steps
    groups = [lengths[i : i + slots] for i in range(0, len(lengths), slots)]
    assert static_steps(list(lengths), slots) == sum(max(group) for group in groups)


def test_the_batch_makes_as_many_steps_as_were_counted():
    lengths = [5, 1, 7, 2, 2, 6, 1]
    batch, steps = ContinuousBatch(MODELS["gpt"], max_requests=3), 0
    for new in lengths:
        batch.add([1], new)
    while batch.waiting or batch.running:
        assert steps < 50
        batch.step()
        steps += 1
    assert steps == continuous_steps(lengths, 3)


def test_a_list_of_tokens_with_their_positions():
    pieces, starts = [[5, 6], [7], [8, 9, 1]], [3, 0, 11]
    tokens, positions, rows = flatten(pieces, starts)
    assert tokens.shape == positions.shape == (6, 1)
    assert tokens[:, 0].tolist() == [5, 6, 7, 8, 9, 1]
    assert positions[:, 0].tolist() == [3, 4, 0, 11, 12, 13]
    assert [(r.start, r.stop) for r in rows] == [(0, 2), (2, 3), (3, 6)]


def test_first_come_first_served_and_a_place_is_filled_at_once():
    batch = ContinuousBatch(MODELS["gpt"], max_requests=2, chunk=50)
    first, second, third, fourth = (batch.add([1, 2], n) for n in (3, 1, 2, 1))
    got = [batch.step() for _ in range(4)]
    assert [[id(r) for r in step] for step in got] == [
        [id(first), id(second)],
        [id(first), id(third)],
        [id(first), id(third)],
        [id(fourth)],
    ]
    assert batch.step() == [] and not batch.running and not batch.waiting


def test_a_long_prompt_does_not_stop_those_who_write():
    model, read = MODELS["llama"], []
    batch = ContinuousBatch(model, chunk=4)
    writers = [batch.add([i], 20) for i in range(3)]
    batch.step()
    batch.step()
    long = batch.add([1] * 19, 2)

    def note(inner, tokens):
        read.append(np.size(tokens))
        return inner(tokens)

    model.wrap("hidden_states", note)
    try:
        for turn in range(5):
            written = [len(w.new_tokens) for w in writers]
            batch.step()
            assert [len(w.new_tokens) for w in writers] == [n + 1 for n in written]
            assert len(long.new_tokens) == (turn == 4)
    finally:
        model.unwrap("hidden_states", note)
    assert read == [3 + 4, 3 + 4, 3 + 4, 3 + 4, 3 + 3]
    batch.close()


def test_every_token_is_read_once_and_logits_are_made_for_the_last_only(model):
    read, asked = [], []

    def hidden_states(inner, tokens):
        read.append(np.size(tokens))
        return inner(tokens)

    def logits(inner, hidden):
        asked.append(math.prod(hidden.shape[:-1]))
        return inner(hidden)

    model.wrap("hidden_states", hidden_states)
    model.wrap("logits", logits)
    try:
        batch = ContinuousBatch(model, max_requests=3, chunk=3)
        for prompt, new in zip(PROMPTS, NEW, strict=True):
            batch.add(prompt, new)
        finish(batch)
    finally:
        model.unwrap("hidden_states", hidden_states)
        model.unwrap("logits", logits)
    assert sum(read) == sum(len(prompt) + new - 1 for prompt, new in zip(PROMPTS, NEW, strict=True))
    assert sum(asked) == sum(NEW) and 0 not in asked


# failing alone


@pytest.mark.parametrize("failure", [CacheFull("17 of 17 blocks are taken"), MemoryError("no bytes")])
@pytest.mark.parametrize("when", [0, 6, 11])
def test_one_fails_the_others_do_not_notice(model, failure, when):
    last = len(model.blocks) - 1
    for layer in (0, last):
        bad = GluedCache(lambda at, seq_pos, T, layer=layer: at == layer and seq_pos + T > when, failure)
        batch = ContinuousBatch(model, chunk=5)
        requests = [batch.add(p, n, temperature=0) for p, n in zip(PROMPTS[:3], NEW[:3], strict=True)]
        victim = batch.add([1, 2, 3, 4, 5], 12, temperature=0, cache=bad)
        requests.append(batch.add(PROMPTS[3], NEW[3], temperature=0))
        finish(batch)
        assert victim.error is failure and victim.done and victim.cache is None
        want = alone(model, [1, 2, 3, 4, 5], 12, temperature=0)
        assert victim.tokens == want[: len(victim.tokens)]
        assert bad.seq_pos <= when and (layer == last or bad.log[-1][0] == layer)
        others = zip(requests, [*PROMPTS[:3], PROMPTS[3]], [*NEW[:3], NEW[3]], strict=True)
        for request, prompt, new in others:
            assert request.error is None and request.tokens == alone(model, prompt, new, temperature=0)


def test_a_cache_that_is_too_short_is_refused_before_anything_is_read(kind, model):
    """3 tokens and 9 new ones: 11 are read, the last never is."""
    batch = ContinuousBatch(model)
    with pytest.raises(CacheFull, match=r"11 .*10"):
        batch.add([1, 2, 3], 9, cache=KVCache(1, 10, **SIZES[kind]))
    batch.make_cache = lambda request: KVCache(1, 10, **SIZES[kind])
    full, good = batch.add([1, 2, 3], 9, temperature=0), batch.add([4], 9, temperature=0)
    fits = batch.add([1, 2, 3], 9, temperature=0, cache=KVCache(1, 11, **SIZES[kind]))
    finish(batch)
    assert isinstance(full.error, CacheFull) and "11" in str(full.error) and "10" in str(full.error)
    assert full.tokens == [1, 2, 3]
    assert fits.tokens == alone(model, [1, 2, 3], 9, temperature=0)
    assert good.tokens == alone(model, [4], 9, temperature=0)


def test_who_gets_no_cache_fails_alone():
    model, made = MODELS["gpt"], []

    def make(request):
        made.append(request)
        if len(made) == 2:
            raise MemoryError("no room for 3 tokens")
        return KVCache(1, 30, **GPT_SIZES)

    batch = ContinuousBatch(model, make, max_requests=1)
    requests = [batch.add([i], 3, temperature=0) for i in range(4)]
    finish(batch)
    assert [type(r.error) for r in requests] == [type(None), MemoryError, type(None), type(None)]
    assert made == requests and all(r.cache is None for r in requests)
    for i in (0, 2, 3):
        assert requests[i].tokens == alone(model, [i], 3, temperature=0)


def test_who_gets_no_cache_waits_if_others_will_give_memory_back():
    model, left = MODELS["gpt"], [None, MemoryError("none left"), MemoryError("none left"), None, None]

    def make(request):
        if (error := left.pop(0)) is not None:
            raise error
        return KVCache(1, 30, **GPT_SIZES)

    batch = ContinuousBatch(model, make, max_requests=2)
    requests = [batch.add([i], 3, temperature=0) for i in range(3)]
    batch.step()
    assert batch.running == requests[:1] and list(batch.waiting) == requests[1:], "in their order"
    finish(batch)
    assert [r.tokens for r in requests] == [alone(model, [i], 3, temperature=0) for i in range(3)]


def test_who_waits_for_room_holds_no_cache():
    """Its cache was made and found no room: it is closed, and another one is made when there may be some."""
    model, made = MODELS["gpt"], []

    class Small(GluedCache):
        def reserve(self, num_tokens):
            if sum(not cache.closed for cache in made) > 1:
                raise PoolFull(f"no room for {num_tokens} tokens")

    def make(request):
        made.append(Small())
        return made[-1]

    batch = ContinuousBatch(model, make, max_requests=2)
    requests = [batch.add([i], 3, temperature=0) for i in range(2)]
    batch.step()
    assert batch.running == requests[:1] and list(batch.waiting) == requests[1:]
    assert requests[1].cache is None and made[1].closed == 1
    finish(batch)
    assert [r.tokens for r in requests] == [alone(model, [i], 3, temperature=0) for i in range(2)]
    assert all(cache.closed == 1 for cache in made)


def test_a_cache_of_another_model_is_a_mistake_of_the_program():
    batch = ContinuousBatch(MODELS["gpt"], lambda request: KVCache(1, 30, **LLAMA_SIZES))
    request = batch.add([1], 3)
    for _ in range(2):
        with pytest.raises(ValueError, match="num_layers 3, the request needs 2"):
            batch.step()
    assert request.error is None and list(batch.waiting) == [request]
    batch.cancel(request)
    assert not batch.waiting and request.cache is None


# memory runs out


@pytest.mark.parametrize(
    ("blocks", "chunk", "max_requests"), [(6, 64, 8), (8, 3, 8), (13, 5, 5), (40, 64, 8)]
)
def test_on_a_pool_that_is_too_small_for_all_everyone_is_completed_in_order(
    model, blocks, chunk, max_requests
):
    pool, done = BlockPool(blocks, 4, **cache_sizes(model)), []
    prompts = [[(3 * i + j) % V for j in range(5 + i % 5)] for i in range(8)]
    batch = ContinuousBatch(model, lambda _: PagedKVCache(pool), max_requests, chunk)
    requests = [batch.add(prompt, 12, temperature=0) for prompt in prompts]
    for _ in range(400):
        if not (batch.waiting or batch.running):
            break
        batch.step()
        pool.check([r.cache for r in requests if r.cache is not None])
        done += [i for i, request in enumerate(requests) if request.done and i not in done]
    assert [r.error for r in requests] == [None] * 8
    assert done == sorted(done) or max_requests < 8
    assert [r.tokens for r in requests] == [alone(model, p, 12, temperature=0) for p in prompts]
    assert (sum(r.put_back for r in requests) > 0) == (blocks < 40) and requests[0].put_back == 0
    assert all(r.put_back <= 2 for r in requests), "nobody is put back over and over"
    assert pool.counts()["held"] == 0


def test_what_does_not_fit_alone_has_an_error_and_the_others_go_on():
    model = MODELS["gpt"]
    pool = BlockPool(4, 4, **GPT_SIZES)
    batch = ContinuousBatch(model, lambda _: PagedKVCache(pool, max_seq_len=100))
    requests = [batch.add([1] * 5, new, temperature=0) for new in (12, 13, 12)]
    finish(batch)
    assert isinstance(requests[1].error, CacheFull) and "4" in str(requests[1].error)
    for i in (0, 2):
        assert requests[i].tokens == alone(model, [1] * 5, 12, temperature=0)
    held = PagedKVCache(pool)
    held.reserve(9)
    alone_there = batch.add([1] * 5, 12)  # and the room is somebody's who will never give it back
    finish(batch)
    assert isinstance(alone_there.error, CacheFull) and batch.running == []
    pool.check([held])


def test_a_brought_cache_waits_for_room_and_keeps_what_it_has():
    model, pool = MODELS["gpt"], BlockPool(8, 4, **GPT_SIZES)
    mine = PagedKVCache(pool)
    batch = ContinuousBatch(model, lambda _: PagedKVCache(pool))
    old = batch.add([1] * 5, 12, temperature=0)
    brought = batch.add([2] * 5, 12, temperature=0, cache=mine)
    new = batch.add([3] * 5, 12, temperature=0)
    finish(batch)
    for request, token in ((old, 1), (brought, 2), (new, 3)):
        assert request.error is None and request.tokens == alone(model, [token] * 5, 12, temperature=0)
    assert brought.put_back == 0 and mine.seq_pos == 16, "it stays yours"
    both = [PagedKVCache(pool) for _ in "ab"]
    mine.reset()
    stuck = [batch.add([4] * 9, 12, temperature=0, cache=cache) for cache in both]
    finish(batch)  # neither can be put back, so neither can go on; but the batch comes to an end
    want = alone(model, [4] * 9, 12, temperature=0)
    for request in stuck:
        assert isinstance(request.error, CacheFull) and request.tokens == want[: len(request.tokens)]


def test_an_error_keeps_no_arrays_alive(model):
    seen = []

    def make(request):
        return GluedCache(lambda layer, seq_pos, T: layer == 1 and seq_pos > 2, CacheFull("full"))

    def watch(inner, x, *where, **named):
        seen.append(weakref.ref(x.data))
        return inner(x, *where, **named)

    model.blocks[0].wrap("forward", watch)
    try:
        batch = ContinuousBatch(model, make)
        request = batch.add([1, 2, 3], 9)
        finish(batch)
    finally:
        model.blocks[0].unwrap("forward", watch)
    gc.collect()
    assert isinstance(request.error, CacheFull) and request.error.__traceback__ is None
    assert not any(ref() is not None for ref in seen), "the arrays of the pass are still held"


def test_logits_that_are_no_numbers_end_one_request(model):
    batch = ContinuousBatch(model)
    good, bad, also_good = (batch.add([i], 5, temperature=0) for i in (1, 2, 3))
    batch.step()

    def spoil(inner, hidden):
        logits = inner(hidden)
        logits.data[1] = np.nan
        return logits

    model.wrap("logits", spoil)
    try:
        batch.step()
    finally:
        model.unwrap("logits", spoil)
    assert isinstance(bad.error, NothingToDraw) and len(bad.new_tokens) == 1
    finish(batch)
    for request, token in ((good, 1), (also_good, 3)):
        assert request.tokens == alone(model, [token], 5, temperature=0)


class Stumbling(GluedCache):
    """Its advance is broken off once."""

    stumbles = 1

    def advance(self, num_tokens=1):
        if self.stumbles:
            self.stumbles -= 1
            raise KeyboardInterrupt
        super().advance(num_tokens)


def test_a_step_that_was_broken_off_is_made_again(model):
    """In a layer, while choosing, before a commit: the texts go on as if nothing had been."""
    before = everything(model)
    in_layer = GluedCache(lambda layer, seq_pos, T: layer == 1 and in_layer.failure, KeyboardInterrupt())
    batch = ContinuousBatch(model, chunk=4)
    caches = (in_layer, Stumbling(), GluedCache(), None)
    requests = [batch.add(PROMPTS[i], 7, rng=i, cache=cache) for i, cache in enumerate(caches)]
    choose, calls = requests[2].choose, []

    def interrupted(logits):
        calls.append(logits)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return choose(logits)

    requests[2].choose, broken = interrupted, 0
    for _ in range(60):
        if not (batch.waiting or batch.running):
            break
        try:
            batch.step()
        except KeyboardInterrupt:
            broken += 1
            in_layer.failure = None
        assert everything(model) == before
    assert broken == 3
    for i, request in enumerate(requests):
        assert request.error is None and request.tokens == alone(model, PROMPTS[i], 7, rng=i)


def test_mistakes_of_the_program_go_through(model):
    before = everything(model)
    for failure in (ZeroDivisionError("a bug"), RuntimeError("another"), ValueError("shapes (3,) and (4,)")):
        batch = ContinuousBatch(model)
        request = batch.add([1, 2], 3, cache=GluedCache(lambda *_: True, failure))
        with pytest.raises(type(failure)):
            batch.step()
        assert request.error is None and not request.done and batch.running == [request]
        assert everything(model) == before


# memory


def test_caches_are_let_go_as_soon_as_a_request_is_done(kind, model):
    caches = []

    def make(request):
        cache = KVCache(1, 20, **SIZES[kind])
        caches.append(weakref.ref(cache))
        return cache

    batch = ContinuousBatch(model, make)
    short, long = batch.add([1], 2), batch.add([2], 6)
    for _ in range(2):
        batch.step()
    gc.collect()
    assert short.done and not long.done
    assert caches[0]() is None and caches[1]() is not None
    batch.close()
    gc.collect()
    assert caches[1]() is None and long.cancelled


def test_by_default_a_cache_is_as_long_as_it_must_be(kind, model):
    batch = ContinuousBatch(model)
    request = batch.add([1, 2, 3], 4)
    batch.step()
    assert isinstance(request.cache, KVCache) and request.cache.nbytes == cache_bytes(1, 6, **SIZES[kind])
    finish(batch)
    assert request.error is None and request.cache is None


def test_a_cache_that_was_passed_in_stays_yours(model):
    mine = GluedCache()
    batch = ContinuousBatch(model)
    request = batch.add([1, 2, 3], 4, temperature=0, cache=mine)
    finish(batch)
    assert mine.closed == 0 and mine.seq_pos == 6
    again = batch.add(request.tokens + [5], 3, temperature=0, cache=mine)  # the conversation goes on
    marks = len(mine.log)
    finish(batch)
    assert again.tokens == alone(model, request.tokens + [5], 3, temperature=0)
    assert mine.log[marks][1:] == (6, 2)  # only what is new was read


def test_the_beginning_may_have_been_read_before(kind, model):
    instructions, read = [3, 1, 4, 1, 5, 9], []

    def prepared(request):
        cache = KVCache(1, LONGEST, **SIZES[kind])
        enable_kv_cache(model, cache)
        model(np.array([instructions]))
        disable_kv_cache(model)
        return cache

    def note(inner, tokens, **options):
        read.append(np.size(tokens))
        return inner(tokens, **options)

    batch = ContinuousBatch(model, chunk=3)
    batch.make_cache = prepared
    questions = [[7, 7], [8], [2, 6, 5, 3, 5]]
    requests = [batch.add(instructions + question, 6, temperature=0) for question in questions]
    batch.admit()
    model.wrap("hidden_states", note)
    try:
        finish(batch)
    finally:
        model.unwrap("hidden_states", note)
    assert sum(read) == sum(len(question) + 5 for question in questions)
    for request, question in zip(requests, questions, strict=True):
        assert request.tokens == alone(model, instructions + question, 6, temperature=0)


def test_a_cache_that_has_read_something_else_is_refused(kind, model):
    cache = KVCache(1, LONGEST, **SIZES[kind])
    batch = ContinuousBatch(model)
    first = batch.add([1, 2, 3], 3, temperature=0, cache=cache)
    finish(batch)
    assert cache.seq_pos == 5
    for other in ([1, 7, 3, 4, 5, 6, 7], [*first.tokens[:4], (first.tokens[4] + 1) % V, 3, 3]):
        place = next(i for i, pair in enumerate(zip(other, first.tokens, strict=False)) if len({*pair}) == 2)
        with pytest.raises(ValueError, match=f"token {place} is {first.tokens[place]}"):
            batch.add(other, 3, cache=cache)
    stranger = copy.deepcopy(model)
    for parameter in stranger.parameters():
        parameter.data *= 2
    for use in (lambda: ContinuousBatch(stranger).add(first.tokens, 3, cache=cache),):
        with pytest.raises(ValueError, match="5 tokens that were read with other weights"):
            use()
    again = batch.add(first.tokens, 3, temperature=0, cache=cache)
    finish(batch)
    assert again.tokens == alone(model, first.tokens, 3, temperature=0)


def test_weights_that_change_under_running_requests_are_noticed(model):
    changing = copy.deepcopy(model)
    batch = ContinuousBatch(changing)
    request = batch.add([1, 2, 3], 5, temperature=0)
    batch.step()
    for parameter in changing.parameters():
        parameter.data *= 1.01
    with pytest.raises(ValueError, match="3 tokens that were read with other weights"):
        batch.step()
    for parameter, before in zip(changing.parameters(), model.parameters(), strict=True):
        parameter.data[...] = before.data
    finish(batch)
    assert request.tokens == alone(model, [1, 2, 3], 5, temperature=0)


def test_leaving_the_block_gives_everything_back():
    model, made = MODELS["gpt"], []

    def make(request):
        made.append(GluedCache())
        return made[-1]

    with pytest.raises(ZeroDivisionError):
        with ContinuousBatch(model, make, max_requests=2) as batch:
            requests = [batch.add([i], 9) for i in range(4)]
            batch.step()
            batch.cancel(requests[1])
            assert made[1].closed == 1 and requests[1].cancelled and requests[1].done
            batch.step()
            raise ZeroDivisionError
    assert len(made) == 3 and [cache.closed for cache in made] == [1, 1, 1]
    assert all(r.done and r.cancelled and r.cache is None for r in requests)
    assert not batch.running and not batch.waiting


# no trace, and what is refused


def test_no_trace_is_left_on_the_model(model):
    before, text = everything(model), alone(model, [1, 2], 8, temperature=0)
    batch = ContinuousBatch(model)
    batch.add([1, 2], 8)
    for _ in range(3):
        batch.step()
        assert everything(model) == before
        assert alone(model, [1, 2], 8, temperature=0) == text  # in the middle of a batch, too
    finish(batch)
    assert everything(model) == before
    assert all(p.grad is None for p in model.parameters())


def test_two_batches_in_turn_do_not_meet(model):
    one, two = ContinuousBatch(model), ContinuousBatch(model)
    first, second = one.add([1, 2], 6, temperature=0), two.add([3], 6, temperature=0)
    for _ in range(8):
        one.step()
        two.step()
    assert first.tokens == alone(model, [1, 2], 6, temperature=0)
    assert second.tokens == alone(model, [3], 6, temperature=0)


def test_a_model_that_cannot_be_batched_is_refused(model):
    with pytest.raises(TypeError, match="dict"):
        ContinuousBatch({})
    batch = ContinuousBatch(model)
    request = batch.add([1, 2], 3, temperature=0)
    enable_kv_cache(model)
    try:
        with pytest.raises(ValueError, match="disable_kv_cache"):
            ContinuousBatch(model)
        with pytest.raises(ValueError, match="disable_kv_cache"):
            batch.step()
    finally:
        disable_kv_cache(model)
    training = copy.deepcopy(model).train()
    with pytest.raises(ValueError, match="training"):
        ContinuousBatch(training)
    finish(batch)
    assert request.tokens == alone(model, [1, 2], 3, temperature=0)


@pytest.mark.parametrize(
    ("options", "kind_of_error", "said"),
    [
        ({"max_requests": 0}, ValueError, "0"),
        ({"chunk": 0}, ValueError, "0"),
        ({"chunk": 2.5}, TypeError, "2.5"),
        ({"max_requests": "4"}, TypeError, "4"),
    ],
)
def test_bad_sizes_are_refused(options, kind_of_error, said):
    with pytest.raises(kind_of_error, match=said):
        ContinuousBatch(MODELS["gpt"], **options)


@pytest.mark.parametrize(
    ("prompt", "new", "options", "kind_of_error", "said"),
    [
        ([], 3, {}, ValueError, "0"),
        ([[1, 2]], 3, {}, ValueError, "2 axes"),
        ([1, 13], 3, {}, ValueError, "13"),
        ([-1], 3, {}, ValueError, "-1"),
        ([0.5], 3, {}, TypeError, "float"),
        ([1] * 20, 5, {}, ValueError, "25.*24"),
        ([1], -1, {}, ValueError, "-1"),
        ([1], 2.0, {}, TypeError, "2.0"),
        ([1], 3, {"temperature": -1}, ValueError, "-1"),
        ([1], 3, {"top_k": 0}, ValueError, "0"),
        ([1], 3, {"top_p": 1.5}, ValueError, "1.5"),
        ([1], 3, {"stop_token": 13}, ValueError, "13"),
        ([1], 3, {"stop_token": "a"}, TypeError, "a"),
        ([1], 3, {"cache": KVCache(2, 9, **GPT_SIZES)}, ValueError, "2.*1"),
        ([1], 3, {"cache": KVCache(1, 9, **LLAMA_SIZES)}, ValueError, "3.*2"),
    ],
)
def test_bad_requests_are_refused_at_the_door(prompt, new, options, kind_of_error, said):
    batch = ContinuousBatch(MODELS["gpt"])
    good = batch.add([1], 2, temperature=0)
    with pytest.raises(kind_of_error, match=said):
        batch.add(prompt, new, **options)
    assert list(batch.waiting) == [good]


def test_a_cache_serves_one_request():
    model, cache = MODELS["gpt"], KVCache(1, 20, **GPT_SIZES)
    batch = ContinuousBatch(model)
    batch.add([1, 2, 3], 2, cache=cache)
    for _ in range(2):
        with pytest.raises(ValueError, match="its own"):
            batch.add([1, 2, 3], 2, cache=cache)
        batch.step()
    assert cache.seq_pos == 4
    with pytest.raises(ValueError, match="4.*3"):
        batch.add([1, 2, 3], 2, cache=cache)


def test_a_generator_serves_one_request():
    batch, rng = ContinuousBatch(MODELS["gpt"]), np.random.default_rng(0)
    batch.add([1], 2, rng=rng)
    for same in (rng, rng.bit_generator):
        with pytest.raises(ValueError, match="its own"):
            batch.add([1], 2, rng=same)
    finish(batch)
    batch.add([1], 2, rng=rng)


def test_a_question_of_5_tokens_does_not_wait_behind_a_long_prompt():
    model, batch = MODELS["gpt"], ContinuousBatch(MODELS["gpt"], chunk=2)
    long = batch.add([1] * 20, 2, temperature=0)
    batch.step()
    short = batch.add([2] * 5, 2, temperature=0)
    for _ in range(6):  # three pieces, in turn with the other's
        batch.step()
    assert len(short.new_tokens) >= 1 and not long.new_tokens
    finish(batch)
    assert long.tokens == alone(model, [1] * 20, 2, temperature=0)


def test_nothing_to_write_is_done_at_once():
    batch = ContinuousBatch(MODELS["gpt"])
    request = batch.add(np.array([1, 2]), 0)
    assert request.done and request.tokens == [1, 2] and request.new_tokens == []
    assert batch.step() == [] and not batch.waiting


def test_cancelling():
    model = MODELS["gpt"]
    batch = ContinuousBatch(model, max_requests=1)
    running, waiting, last = (batch.add([i], 4, temperature=0) for i in range(3))
    batch.step()
    batch.cancel(waiting)
    batch.cancel(running)
    batch.cancel(running)
    assert running.done and waiting.done and list(batch.waiting) == [last] and not batch.running
    assert running.tokens == alone(model, [0], 1, temperature=0) and waiting.tokens == [1]
    batch.step()
    last.cancelled = True  # without a word to the batch
    assert batch.step() == [] and not batch.running and last.cache is None
    assert last.tokens == alone(model, [2], 1, temperature=0)
    with pytest.raises(ValueError, match="none of the 0"):
        batch.cancel(Request([1], 2))


def test_a_layer_reads_what_its_front_says():
    """One layer alone, a GPT's: two texts, three tokens and one, then one and two."""
    attention = MODELS["gpt"].blocks[0].attention
    rng = np.random.default_rng(0)
    texts = [rng.normal(size=(4, 10)).astype(np.float32), rng.normal(size=(3, 10)).astype(np.float32)]
    requests = [Request([0], 9, cache=GluedCache()) for _ in texts]

    class Front:
        reading = ()

    layer, got = FlatLayer(Front, attention, 1), [[], []]
    for counts in ((3, 1), (1, 2)):
        stops = np.cumsum(counts).tolist()
        rows = [slice(stop - n, stop) for stop, n in zip(stops, counts, strict=True)]
        Front.reading = list(zip(requests, rows, strict=True))
        pieces = [text[r.cache.seq_pos :][:n] for text, r, n in zip(texts, requests, counts, strict=True)]
        out = layer.forward(None, Tensor(np.concatenate(pieces)[:, None]))
        assert out.shape == (sum(counts), 1, 10)
        for mine, where, request, n in zip(got, rows, requests, counts, strict=True):
            mine.append(out.data[where, 0])
            assert request.cache.log[-1] == (1, request.cache.seq_pos, n)
            request.cache.advance(n)
    for text, mine in zip(texts, got, strict=True):
        np.testing.assert_allclose(np.concatenate(mine), attention(text[None]).data[0], rtol=1e-4, atol=1e-5)


def test_run_runs_to_the_end(model):
    with ContinuousBatch(model, max_requests=2, chunk=3) as batch:
        requests = [batch.add(p, n, temperature=0) for p, n in zip(PROMPTS, NEW, strict=True)]
        batch.run()
    for request, prompt, new in zip(requests, PROMPTS, NEW, strict=True):
        assert request.tokens == alone(model, prompt, new, temperature=0)
        assert not request.cancelled and "done" in repr(request)
    assert "0 of 2 running, 0 waiting" in repr(batch)
