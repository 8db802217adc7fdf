"""Every cache keeps the one protocol: the same tests for all of them, with a bound for each.

The oracles are attention in float64 over a list of all keys, and models without a cache.
"""

import tracemalloc
from dataclasses import dataclass, field

import numpy as np
import pytest

from tinytorch.caches import CACHES, new_cache
from tinytorch.generation.batch import ContinuousBatch
from tinytorch.generation.kv_cache import (
    KVCache,
    attention_with_cache,
    cache_sizes,
    disable_kv_cache,
    enable_kv_cache,
    generate_with_cache,
)
from tinytorch.generation.paged import BlockPool, PagedKVCache
from tinytorch.generation.quantized import QuantizedKVCache
from tinytorch.generation.window import SlidingWindowKVCache
from tinytorch.models.llama import Llama
from tinytorch.models.transformer import GPT

S, V = 40, 31  # tokens of a cache, words of a vocabulary
SIZES = {"num_layers": 3, "num_heads": 2, "head_dim": 8}
GROUP = 3  # queries that share a key


def paged(batch_size, max_seq_len, **sizes):
    pool = BlockPool(batch_size * -(-max_seq_len // 4), 4, **sizes)
    return PagedKVCache(pool, batch_size, max_seq_len)


@dataclass(frozen=True)
class Case:
    """A cache, what a query of it may look at, and how far its answers may be from the exact ones.

    off: of attention over keys and values N(0, 1); logits_off: of the models below.
    """

    make: type
    options: dict = field(default_factory=dict)
    window: int = 10**9
    num_sinks: int = 0
    off: float = 2e-6
    logits_off: float = 1e-4

    def new(self, batch_size=2, max_seq_len=S, **sizes):
        return self.make(batch_size=batch_size, max_seq_len=max_seq_len, **{**SIZES, **sizes}, **self.options)

    def sees(self, start: int, num_tokens: int) -> np.ndarray:
        """-> (T, start + T) bools: the one rule, for queries at start.. over all keys."""
        query = np.arange(start, start + num_tokens)[:, None]
        key = np.arange(start + num_tokens)
        return (key <= query) & ((key > query - self.window) | (key < self.num_sinks))

    @property
    def is_exact(self) -> bool:
        return self.logits_off == 1e-4

    @property
    def is_whole(self) -> bool:
        """It never lets a token go."""
        return self.window > S


def window(size: int, num_sinks: int = 0) -> Case:
    options = {"window": size, "num_sinks": num_sinks}
    return Case(SlidingWindowKVCache, options, size, num_sinks)


def quantized(bits: int, off: float, logits_off: float, **options) -> Case:
    options = {"group_size": 4, "residual_length": 6, **options} if bits < 16 else options
    return Case(QuantizedKVCache, {"bits": bits, **options}, off=off, logits_off=logits_off)


CASES = {
    "plain": Case(KVCache),
    "window": window(7),
    "window of 1": window(1),
    "window, sinks": window(6, num_sinks=3),
    "window, all": window(S),
    "float16": quantized(16, off=4e-3, logits_off=2e-2),
    "int8": quantized(8, off=0.05, logits_off=0.3),
    "int8, asymmetric": quantized(8, off=0.05, logits_off=0.3, symmetric=False),
    "int4": quantized(4, off=0.7, logits_off=6),
    "int4, symmetric": quantized(4, off=0.7, logits_off=6, symmetric=True),
    "paged": Case(paged),
}
SPLITS = ([S], [1] * S, [5, 1, 1, 9, 1, 12, 3, 1, 7], [25, *[1] * 15], [1, 2, 37], [13, 13, 14])


@pytest.fixture(params=CASES)
def case(request):
    return CASES[request.param]


def random(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def pair(num_tokens, batch_size=2, seed=0):
    return random(2, batch_size, SIZES["num_heads"], num_tokens, SIZES["head_dim"], seed=seed)


def attend_slowly(query, key, value, sees):
    """(B, H, G, T, D), (B, H, S, D) twice, (T, S) bools -> (B, H, G, T, D) in float64."""
    scores = np.einsum("bhgtd,bhsd->bhgts", query, key, dtype=np.float64) / np.sqrt(query.shape[-1])
    scores = np.where(sees, scores, -np.inf)
    shares = np.exp(scores - scores.max(-1, keepdims=True))
    return np.einsum("bhgts,bhsd->bhgtd", shares / shares.sum(-1, keepdims=True), value)


class Text:
    """Random queries, keys and values of S tokens for every layer, read piece by piece."""

    def __init__(self, case, batch_size=2, seed=0):
        self.case, self.stop = case, 0
        shape = SIZES["num_layers"], batch_size, SIZES["num_heads"]
        self.query = random(*shape, GROUP, S, SIZES["head_dim"], seed=seed)
        self.key, self.value = random(2, *shape, S, SIZES["head_dim"], seed=seed + 1)

    def off(self, cache, num_tokens, commit=True) -> float:
        """Have every layer attend to the next tokens -> the largest distance from the oracle."""
        start, stop = cache.seq_pos, cache.seq_pos + num_tokens
        sees, worst = self.case.sees(start, num_tokens), 0.0
        for i in range(SIZES["num_layers"]):
            new, old = np.s_[i, :, :, start:stop], np.s_[i, :, :, :stop]
            query = self.query[i, :, :, :, start:stop]
            got = attention_with_cache(query, self.key[new], self.value[new], cache, i)
            assert got.shape == query.shape and got.dtype == np.float32
            want = attend_slowly(query, self.key[old], self.value[old], sees)
            worst = max(worst, np.abs(got.data - want).max())
        if commit:
            cache.advance(num_tokens)
        return worst

    def read(self, cache, pieces) -> float:
        return max(self.off(cache, n) for n in pieces)


def state(cache):
    """What can be seen of a cache."""
    kept = [x.data.copy() for i in range(cache.num_layers) for x in cache.get(i)] if cache.seq_pos else []
    return cache.seq_pos, cache.nbytes, kept


def same(before, after):
    return before[:2] == after[:2] and all(
        np.array_equal(a, b) for a, b in zip(before[2], after[2], strict=True)
    )


# ------------------------------------------------------------------------------------------ the cache alone


@pytest.mark.parametrize("pieces", SPLITS, ids=str)
def test_attention_is_that_over_all_visible_keys_however_the_text_is_split(case, pieces):
    cache = case.new()
    assert sum(pieces) == S and Text(case).read(cache, pieces) < case.off
    assert cache.seq_pos == S


def test_update_returns_what_is_visible_and_get_what_is_committed(case):
    cache, text = case.new(), Text(case)
    for n in (5, 1, 8, 1):
        start = cache.seq_pos
        for i in range(SIZES["num_layers"]):
            for got, all_of in zip(
                cache.update(i, *(x[i, :, :, start : start + n] for x in (text.key, text.value))),
                (text.key, text.value),
                strict=True,
            ):
                seen = case.sees(start, n).any(axis=0)
                want = all_of[i, :, :, : start + n][:, :, seen]
                assert got.shape == want.shape, "the keys that one of the new tokens sees"
                order = np.argsort(got.data[0, 0, :, 0]), np.argsort(want[0, 0, :, 0])
                if case.is_exact:
                    apart = got.data[:, :, order[0]] - want[:, :, order[1]]
                    assert np.abs(apart).max() == 0, "in whatever order"
        cache.advance(n)
    seen = case.sees(cache.seq_pos, 1)[0, :-1]
    for i in range(SIZES["num_layers"]):
        for got in cache.get(i):
            assert got.shape[2] == seen.sum(), "the next token sees these besides itself"


def test_what_is_not_committed_may_be_written_again(case):
    """A pass may break off between any two layers; the next one must find all that was committed."""
    cache, text = case.new(), Text(case)
    text.read(cache, [11, 1])
    for broken in (1, 9, 20, 3):
        before = state(cache)
        for layers in (1, SIZES["num_layers"]):
            for i in range(layers):
                cache.update(i, *pair(broken, seed=99))
        assert before[0] == cache.seq_pos
        assert same(before[:1] + (0, before[2]), (cache.seq_pos, 0, state(cache)[2])), "get shows what it did"
        assert text.off(cache, 2) < case.off


@pytest.mark.parametrize("keep", [0, 1, 5, 8, 12, 16, 17])
def test_after_truncate_it_goes_on_as_if_the_rest_had_never_been(case, keep):
    cache, text = case.new(), Text(case)
    text.read(cache, [7, 1, 1, 8])
    before = state(cache)
    try:
        cache.truncate(keep)
    except ValueError as error:
        assert not case.is_whole and keep < 17, "only a window lets go of what it would need"
        assert str(keep) in str(error) and same(before, state(cache))
        cache.reset()
        keep = 0
    assert cache.seq_pos == keep
    other = Text(case, seed=50)  # another text from there on
    for name in ("query", "key", "value"):
        getattr(other, name)[..., :keep, :] = getattr(text, name)[..., :keep, :]
    assert other.read(cache, [1, 6, 1, 1]) < case.off


def test_reset_starts_over_and_keeps_its_storage(case):
    cache, text = case.new(), Text(case)
    text.read(cache, [S])
    full = cache.nbytes
    cache.reset()
    assert cache.seq_pos == 0 and cache.get(0)[0].shape[2] == 0
    assert Text(case, seed=7).read(cache, [3, 1, 20]) < case.off
    assert cache.nbytes <= full


def test_reset_changes_the_batch(case):
    cache = case.new(batch_size=1)
    Text(case, batch_size=1).read(cache, [9])
    if case.make is paged:
        cache = case.new(batch_size=3)  # the pool is as large as it is
    cache.reset(3)
    assert cache.batch_size == 3 and cache.seq_pos == 0
    assert Text(case, batch_size=3).read(cache, [9, 1]) < case.off


def test_rows_do_not_know_of_each_other(case):
    together, text = case.new(batch_size=3), Text(case, batch_size=3)
    text.read(together, [10, 1, 4])
    for row in range(3):
        alone = case.new(batch_size=1)
        for start, stop in ((0, 10), (10, 11), (11, 15)):
            for i in range(SIZES["num_layers"]):
                alone.update(i, *(x[i, row : row + 1, :, start:stop] for x in (text.key, text.value)))
            alone.advance(stop - start)
        for i in range(SIZES["num_layers"]):
            for a, b in zip(alone.get(i), together.get(i), strict=True):
                assert np.array_equal(a.data[0], b.data[row])


@pytest.mark.parametrize(
    "shape", [(2, 1, 3, 13), (2, 2, 1, 13), (2, 3, 13), (1, 3, 13), (3, 13), (13,)], ids=str
)
def test_a_mask_is_in_positions_of_the_text(case, shape):
    cache, text = case.new(), Text(case)
    text.read(cache, [9, 1])
    hidden = random(*shape, seed=3) > 0.7
    hidden[..., 10:] = False  # each sees itself
    mask = np.where(hidden, np.float32(-1e30), np.float32(0))
    i, new = 1, np.s_[1, :, :, 10:13]
    query = text.query[1, :, :, :, 10:13]
    got = attention_with_cache(query, text.key[new], text.value[new], cache, i, mask).data
    hidden = np.broadcast_to(hidden, (2, 2, 3, 13))
    sees = case.sees(10, 3) & ~hidden[:, :, None]
    want = attend_slowly(query, text.key[1, :, :, :13], text.value[1, :, :, :13], sees)
    assert np.abs(got - want).max() < case.off


BAD_CALLS = {
    "no such layer": (lambda c: c.update(3, *pair(1)), ValueError, "3"),
    "a layer before the first": (lambda c: c.update(-1, *pair(1)), ValueError, "-1"),
    "a layer that is no number": (lambda c: c.update("0", *pair(1)), TypeError, "0"),
    "no token": (lambda c: c.update(0, *pair(0)), ValueError, "0"),
    "another batch": (lambda c: c.update(0, *pair(1, batch_size=3)), ValueError, "3"),
    "another head_dim": (lambda c: c.update(0, *pair(1)[..., :5]), ValueError, "5"),
    "one head": (lambda c: c.update(0, *pair(1)[:, :, :1]), ValueError, "1"),
    "three axes": (lambda c: c.update(0, *pair(1)[:, 0]), ValueError, "2"),
    "key and value differ": (lambda c: c.update(0, pair(1)[0], pair(2)[0]), ValueError, "2"),
    "too many tokens": (lambda c: c.update(0, *pair(S - 9)), ValueError, str(S)),
    "advance past the end": (lambda c: c.advance(S - 9), ValueError, str(S)),
    "advance by nothing": (lambda c: c.advance(0), ValueError, "0"),
    "advance back": (lambda c: c.advance(-1), ValueError, "-1"),
    "truncate to more": (lambda c: c.truncate(11), ValueError, "11"),
    "truncate to less than nothing": (lambda c: c.truncate(-1), ValueError, "-1"),
    "truncate to half a token": (lambda c: c.truncate(1.5), TypeError, "1.5"),
    "get of no layer": (lambda c: c.get(3), ValueError, "3"),
    "no rows": (lambda c: c.reset(0), ValueError, "0"),
    "a query of other heads": (
        lambda c: attention_with_cache(pair(1)[0][:, :1], *pair(1), c, 0),
        ValueError,
        "1",
    ),
    "a mask that fits nothing": (
        lambda c: attention_with_cache(pair(1)[0], *pair(1), c, 0, np.zeros((3, 5), np.float32)),
        ValueError,
        "5",
    ),
    "a mask of booleans": (
        lambda c: attention_with_cache(pair(1)[0], *pair(1), c, 0, np.ones((1, 11), bool)),
        TypeError,
        "",
    ),
}


@pytest.mark.parametrize("call", BAD_CALLS)
def test_bad_input_is_refused_and_nothing_is_lost(case, call):
    cache, text = case.new(), Text(case)
    text.read(cache, [9, 1])
    before = state(cache)
    bad, error, number = BAD_CALLS[call]
    with pytest.raises(error) as caught:
        bad(cache)
    assert type(caught.value) is not KeyError and number in str(caught.value)
    assert same(before, state(cache))
    assert text.read(cache, [4, 1]) < case.off


def test_sizes_that_are_none_are_refused(case):
    for name in ("batch_size", "max_seq_len", "num_layers", "num_heads", "head_dim"):
        with pytest.raises(ValueError, match="0"):
            case.new(**{name: 0})
        with pytest.raises(TypeError):
            case.new(**{name: 2.5})


def test_the_memory_is_that_of_its_arrays_and_does_not_grow(case):
    cache, text = case.new(), Text(case)
    text.read(cache, [20])
    usage = cache.get_memory_usage()
    assert set(usage) >= {
        "total_mb",
        "per_layer_mb",
        "used_mb",
        "utilization",
        "cache_tensors",
        "total_elements",
        "bytes_per_token",
    }
    assert usage["total_mb"] == pytest.approx(cache.nbytes / 1e6)
    assert 0 < usage["utilization"] <= 1 and 0 < usage["used_mb"] <= usage["total_mb"] + 1e-12
    tracemalloc.start()
    try:
        if case.make is paged:
            text.read(cache, [1] * 20)  # takes its blocks as it needs them
            cache.truncate(20)
        held = cache.nbytes
        text.read(cache, [1] * 3)
        before = tracemalloc.get_traced_memory()[0]
        text.read(cache, [1] * 17)
        grown = tracemalloc.get_traced_memory()[0] - before
    finally:
        tracemalloc.stop()
    assert cache.nbytes == held or case.make is paged
    assert grown < 4000, f"{grown} bytes more after 17 tokens"


# ------------------------------------------------------------------------------------------- behind a model


def gpt():
    model = GPT(V, 16, 3, 2, max_seq_len=S, seed=0)
    for parameter in model.parameters():
        parameter.data += 0.2 * random(*parameter.shape, seed=parameter.size)
    return model


def llama():
    model = Llama(V, 48, 3, 6, 2, hidden_dim=40, max_seq_len=S, head_dim=8, seed=0)
    for parameter in model.parameters():
        parameter.data *= 3 if parameter.ndim == 2 else 1
    return model


MODELS = {"GPT": gpt, "Llama": llama}
TOKENS = np.random.default_rng(5).integers(0, V, (2, S))


@pytest.fixture(params=MODELS)
def model(request):
    return MODELS[request.param]()


def uncached(model, tokens, case):
    """The logits without a cache; each block is shown the window as a mask."""
    mask = np.where(case.sees(0, tokens.shape[1]), np.float32(0), np.float32(-np.inf))
    show = lambda inner, x, _=None, *where, **named: inner(x, mask, *where, **named)  # noqa: E731
    for block in model.blocks:
        block.wrap("forward", show)
    try:
        return model(tokens).data
    finally:
        for block in model.blocks:
            block.unwrap("forward", show)


@pytest.mark.parametrize("pieces", SPLITS[2:5], ids=str)
def test_the_logits_of_a_model_are_those_without_a_cache(case, model, pieces):
    want = uncached(model, TOKENS, case)
    cache = case.new()
    assert enable_kv_cache(model, cache) is cache is model._kv_cache
    cuts = np.cumsum(pieces)[:-1]
    got = np.concatenate([model(piece).data for piece in np.split(TOKENS, cuts, axis=1)], axis=1)
    assert cache.seq_pos == S and np.abs(got - want).max() < case.logits_off
    disable_kv_cache(model)
    assert np.array_equal(uncached(model, TOKENS, case), want), "no trace is left"


def test_generate_writes_what_it_writes_without_a_cache(case, model):
    want = model.generate(TOKENS[:, :6], 20, temperature=0)
    enable_kv_cache(model, case.new())
    got = model.generate(TOKENS[:, :6], 20, temperature=0)
    assert got.shape == want.shape and np.array_equal(got[:, :6], want[:, :6])
    if case.is_exact and case.is_whole:
        assert np.array_equal(got, want)
    assert np.array_equal(model.generate(TOKENS[:, :6], 20, temperature=0), got), "and again, at once"
    assert np.array_equal(generate_with_cache(model, TOKENS[:, :6], 20, temperature=0), got)
    drawn = [model.generate(TOKENS[:, :3], 9, temperature=1, rng=2) for _ in range(2)]
    assert np.array_equal(*drawn)
    with pytest.raises(ValueError, match=str(S)):
        model.generate(TOKENS[:, :6], S, temperature=0)


def test_rows_of_different_lengths_share_a_batch(case, model):
    """Each as if alone, its sinks too."""
    enable_kv_cache(model, case.new())
    got = model.generate(TOKENS[:, :9], 8, temperature=0, lengths=[9, 4])
    disable_kv_cache(model)
    for row, length in enumerate((9, 4)):
        enable_kv_cache(model, case.new(batch_size=1))
        alone = model.generate(TOKENS[row : row + 1, :length], 8, temperature=0)
        disable_kv_cache(model)
        if case.is_exact:
            assert np.array_equal(got[row, : length + 8], alone[0])
    assert got.shape == (2, 17)


def test_requests_of_a_running_batch_write_what_they_write_alone(case, model):
    prompts = [TOKENS[0, :n] for n in (5, 1, 11, 3)]
    alone = []
    for n, prompt in enumerate(prompts):
        enable_kv_cache(model, case.new(batch_size=1))
        alone.append(model.generate(prompt[None], 6 + 5 * n, temperature=0)[0].tolist())
        disable_kv_cache(model)
    caches = []
    with ContinuousBatch(model, lambda request: caches.append(case.new(1)) or caches[-1], 3) as batch:
        requests = [batch.add(prompt, 6 + 5 * n, temperature=0) for n, prompt in enumerate(prompts)]
        batch.run()
    assert [request.tokens for request in requests] == alone and len(caches) == 4
    assert not any(request.error for request in requests)


def test_in_training_the_cache_steps_aside(case, model):
    cache = case.new()
    want = model(TOKENS).data
    enable_kv_cache(model, cache)
    model(TOKENS[:, :4])
    before = state(cache)
    model.train()
    assert np.array_equal(model(TOKENS).data, want)
    model.eval()
    assert same(before, state(cache))


def test_a_pass_that_fails_loses_nothing(case, model):
    cache = case.new()
    want = uncached(model, TOKENS, case)
    enable_kv_cache(model, cache)
    model(TOKENS[:, :14])

    def fail(inner, x):
        raise FloatingPointError("half way")

    model.blocks[1].mlp.wrap("forward", fail)
    for width in (12, 1):
        with pytest.raises(FloatingPointError):
            model(TOKENS[:, :width])
    model.blocks[1].mlp.unwrap("forward", fail)
    got = [model(piece).data for piece in (TOKENS[:, 14:15], TOKENS[:, 15:25])]
    assert np.abs(np.concatenate(got, axis=1) - want[:, 14:25]).max() < case.logits_off


def test_a_cache_of_other_sizes_is_refused(case, model):
    with pytest.raises(ValueError, match="num_layers 2"):
        enable_kv_cache(model, case.new(num_layers=2))
    with pytest.raises(ValueError, match="head_dim 6"):
        enable_kv_cache(model, case.new(head_dim=6))
    assert not hasattr(model, "_kv_cache")


# --------------------------------------------------------------------------------------------------- names


@pytest.mark.parametrize("name", CACHES)
def test_each_name_makes_a_cache_for_a_model(name, model):
    cache = new_cache(name, model, batch_size=2)
    assert cache.batch_size == 2 and cache.max_seq_len == S
    assert {size: getattr(cache, size) for size in cache_sizes(model)} == SIZES
    exact = model.generate(TOKENS[:, :4], 20, temperature=0)
    enable_kv_cache(model, cache)
    written = model.generate(TOKENS[:, :4], 20, temperature=0)
    if CACHES[name].is_exact:
        assert np.array_equal(written, exact)
    assert written.shape == exact.shape


def test_an_unknown_name_is_told_what_there_is(model):
    with pytest.raises(ValueError, match="no cache 'huge', there are plain, window"):
        new_cache("huge", model)
