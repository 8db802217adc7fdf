"""Checkpoint 15: the KV cache, through the installed package only.

The oracles are slow loops, a list of arrays, and the same model without the cache.
"""

import copy
import re
import time
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tinytorch.core.attention import MultiHeadAttention
from tinytorch.core.autograd import enable_autograd
from tinytorch.core.layers import Module
from tinytorch.core.losses import CrossEntropyLoss
from tinytorch.core.optimizers import AdamW
from tinytorch.core.tensor import Tensor
from tinytorch.generation.kv_cache import (
    Cache,
    CacheBase,
    CachedMultiHeadAttention,
    CacheFull,
    KVCache,
    PoolFull,
    attention_scores,
    attention_with_cache,
    cache_bytes,
    disable_kv_cache,
    enable_kv_cache,
    generate_with_cache,
    projected_tokens,
)
from tinytorch.models.transformer import GPT

B, H, S, D, L = 2, 4, 11, 6, 3  # every axis another size


def new_pair(T, seed=0, shape=(B, H, D)):
    """Random keys and values of T tokens, (B, H, T, D) each."""
    rows, heads, dim = shape
    return np.random.default_rng(seed).normal(size=(2, rows, heads, T, dim)).astype(np.float32)


def new_cache(seq_pos=0, **sizes):
    cache = KVCache(
        **{"batch_size": B, "max_seq_len": S, "num_layers": L, "num_heads": H, "head_dim": D, **sizes}
    )
    for layer_idx in range(L if seq_pos else 0):
        cache.update(layer_idx, *new_pair(seq_pos, seed=100 + layer_idx))
    if seq_pos:
        cache.advance(seq_pos)
    return cache


def new_model(seed=0, layers=3, heads=2, head_dim=6, vocab=17, max_seq_len=32):
    """A GPT whose weights are large enough for its layers to matter."""
    model = GPT(vocab, heads * head_dim, layers, heads, max_seq_len, seed=seed)
    rng = np.random.default_rng(seed)
    for p in model.parameters():
        p.data[...] += rng.normal(0, 0.2, p.shape)
    return model


def tokens_of(rows, length, vocab=17, seed=0):
    return np.random.default_rng(seed).integers(0, vocab, (rows, length))


def in_pieces(model, tokens, cuts):
    """The logits of the pieces of `tokens`, side by side."""
    return np.concatenate([model(piece).data for piece in np.split(tokens, cuts, axis=1)], axis=1)


def snapshot(cache):
    return cache.seq_pos, [x.data.copy() for pair in cache.caches for x in pair]


def unchanged(cache, before):
    seq_pos, arrays = before
    now = [x.data for pair in cache.caches for x in pair]
    return cache.seq_pos == seq_pos and all(np.array_equal(a, b) for a, b in zip(now, arrays, strict=True))


def objects_below(module):
    """Every module of a model with what it holds, to see whether anything was left behind."""
    yield id(module), {name: id(value) for name, value in vars(module).items()}
    for _, child in Module.children(module):
        yield from objects_below(child)


# what a generation costs


def test_the_costs_are_those_of_counting_every_step():
    for prompt, new in ((1, 1), (1, 30), (6, 1), (6, 9), (50, 4)):
        tokens, scores = [0, 0], [0, 0]
        for step in range(new):
            for cached in (0, 1):
                queries = 1 if cached and step else prompt + step
                tokens[cached] += queries
                scores[cached] += queries * (prompt + step)
        for cached in (False, True):
            assert projected_tokens(prompt, new, cached) == tokens[cached]
            assert attention_scores(prompt, new, cached) == scores[cached]


# the cache by itself


def test_storage_is_allocated_once_in_the_agreed_shape():
    cache = new_cache()
    assert len(cache.caches) == L
    for key, value in cache.caches:
        assert key.shape == value.shape == (B, H, S, D)
        assert key.dtype == value.dtype == np.float32
        assert not np.shares_memory(key.data, value.data)
    ids = [id(x.data) for pair in cache.caches for x in pair]
    assert len(set(ids)) == 2 * L
    for T in (3, 1, 5):
        for layer_idx in range(L):
            cache.update(layer_idx, *new_pair(T))
        cache.advance(T)
    cache.truncate(4)
    cache.reset()
    assert [id(x.data) for pair in cache.caches for x in pair] == ids


def test_update_writes_in_place_and_shows_all_that_is_visible():
    cache = new_cache(seq_pos=4)
    before = snapshot(cache)[1]
    key, value = new_pair(3, seed=7)
    keys, values = cache.update(1, key, value)
    for i, (shown, new) in enumerate(((keys, key), (values, value))):
        assert shown.shape == (B, H, 7, D)
        want = before[2 + i].copy()
        want[:, :, 4:7] = new
        assert np.array_equal(cache.caches[1][i].data, want)
        assert np.array_equal(shown.data, want[:, :, :7])
    for i in (0, 1, 4, 5):
        assert np.array_equal([x.data for pair in cache.caches for x in pair][i], before[i]), (
            "another layer was written"
        )
    assert cache.seq_pos == 4, "update must not commit"
    assert cache.get(1)[0].shape == (B, H, 4, D), "what is not committed is not shown by get"


def test_the_new_keys_are_copied_in_not_kept():
    cache = new_cache()
    key, value = new_pair(2)
    cache.update(0, key, value)
    key[...] = 99
    assert not (cache.caches[0][0].data == 99).any()


def test_reads_are_views():
    cache = new_cache(seq_pos=3)
    for keys, values in (cache.get(2), cache.update(2, *new_pair(2))):
        assert np.shares_memory(keys.data, cache.caches[2][0].data)
        assert np.shares_memory(values.data, cache.caches[2][1].data)


def test_numbers_of_numpy_and_tensors_are_taken_too():
    cache = new_cache()
    key, value = new_pair(2)
    for layer_idx in range(L):
        cache.update(np.int64(layer_idx), Tensor(key), Tensor(value))
    cache.advance(np.int32(2))
    cache.truncate(np.int64(1))
    assert np.array_equal(cache.get(np.uint8(1))[0].data, key[:, :, :1])


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_dtype_is_kept(dtype):
    cache = new_cache(dtype=dtype)
    keys, values = cache.update(0, *new_pair(2))
    assert keys.dtype == values.dtype == cache.caches[0][0].dtype == dtype


class ListOfArrays:
    """The model of a cache: one list of single tokens for each layer, and a position."""

    def __init__(self):
        self.written = [[] for _ in range(L)]
        self.seq_pos = 0

    def write(self, layer_idx, key, value):
        tokens = [(key[:, :, t], value[:, :, t]) for t in range(key.shape[2])]
        self.written[layer_idx] = self.written[layer_idx][: self.seq_pos] + tokens
        return self.stack(layer_idx, len(self.written[layer_idx]))

    def stack(self, layer_idx, n):
        return [[token[i] for token in self.written[layer_idx][:n]] for i in (0, 1)]


operations = st.lists(
    st.one_of(
        st.tuples(st.just("write"), st.integers(0, S + 1)),
        st.tuples(st.just("truncate"), st.integers(-1, S + 1)),
        st.tuples(st.just("reset"), st.just(0)),
        st.tuples(st.just("get"), st.integers(0, L - 1)),
        st.tuples(st.just("half"), st.integers(1, S)),
    ),
    max_size=12,
)


def same_tokens(shown, tokens):
    assert shown.shape[2] == len(tokens)
    assert all(np.array_equal(shown.data[:, :, t], token) for t, token in enumerate(tokens))


@settings(max_examples=80, deadline=None)
@given(operations)
def test_any_sequence_of_operations_matches_a_list_of_arrays(sequence):
    cache, oracle = new_cache(), ListOfArrays()
    for step, (operation, n) in enumerate(sequence):
        if operation == "write" and not 1 <= n <= S - oracle.seq_pos:
            before = snapshot(cache)
            with pytest.raises(ValueError, match=r"\d"):
                cache.update(0, *new_pair(n))
            assert unchanged(cache, before)
        elif operation == "write":
            for layer_idx in range(L):
                key, value = new_pair(n, seed=10 * step + layer_idx)
                shown = cache.update(layer_idx, key, value)
                for x, tokens in zip(shown, oracle.write(layer_idx, key, value), strict=True):
                    same_tokens(x, tokens)
            cache.advance(n)
            oracle.seq_pos += n
        elif operation == "half" and n <= S - oracle.seq_pos:  # written into one layer and never committed
            cache.update(1, *new_pair(n, seed=10 * step))
            with pytest.raises(ValueError, match=r"\d"):  # the others hold what lay there before
                cache.advance(n)
        elif operation == "truncate" and not 0 <= n <= oracle.seq_pos:
            with pytest.raises(ValueError, match=r"\d"):
                cache.truncate(n)
        elif operation == "truncate":
            cache.truncate(n)
            oracle.seq_pos = n
        elif operation == "reset":
            cache.reset()
            oracle.seq_pos = 0
        assert cache.seq_pos == oracle.seq_pos
        for layer_idx in range(L):
            for x, tokens in zip(cache.get(layer_idx), oracle.stack(layer_idx, oracle.seq_pos), strict=True):
                same_tokens(x, tokens)


# bad input: the error names the numbers, and nothing has changed


@pytest.mark.parametrize(
    "layer_idx, pair, numbers",
    [
        (L, new_pair(1), ("3",)),
        (-1, new_pair(1), ("-1",)),
        (0, new_pair(1, shape=(1, H, D)), ("1", "2")),
        (0, new_pair(1, shape=(B + 1, H, D)), ("3", "2")),
        (0, new_pair(1, shape=(B, 1, D)), ("1", "4")),
        (0, new_pair(1, shape=(B, H, 1)), ("1", "6")),
        (0, new_pair(1, shape=(B, H, D + 1)), ("7", "6")),
        (0, new_pair(0), ("0",)),
        (0, new_pair(8), ("8|12", "11")),
        (0, (new_pair(2)[0], new_pair(1)[1]), ("2", "1")),
        (0, (new_pair(1)[0][0], new_pair(1)[1][0]), ("4",)),
    ],
)
def test_bad_keys_and_values_are_refused_before_anything_is_written(layer_idx, pair, numbers):
    cache = new_cache(seq_pos=4)
    before = snapshot(cache)
    with pytest.raises(ValueError) as error:
        cache.update(layer_idx, *pair)
    assert all(re.search(n, str(error.value)) for n in numbers), (
        f"the message should name {numbers}: {error.value}"
    )
    assert unchanged(cache, before)


@pytest.mark.parametrize("layer_idx", [0.0, "0", None, True])
def test_a_layer_is_a_whole_number(layer_idx):
    cache = new_cache(seq_pos=4)
    for call in (lambda: cache.update(layer_idx, *new_pair(1)), lambda: cache.get(layer_idx)):
        with pytest.raises(TypeError):
            call()


def test_words_are_no_keys():
    with pytest.raises(TypeError):
        new_cache().update(0, np.full((B, H, 1, D), "a"), np.full((B, H, 1, D), "b"))


def test_positions_stay_inside_the_cache():
    cache = new_cache(seq_pos=4)
    for call, numbers in (
        (lambda: cache.advance(8), ("8|12", "11")),
        (lambda: cache.advance(0), ("0",)),
        (lambda: cache.advance(-1), ("-1",)),
        (lambda: cache.truncate(5), ("5", "4")),
        (lambda: cache.truncate(-1), ("-1",)),
        (lambda: cache.get(L), ("3",)),
        (lambda: cache.get(-1), ("-1",)),
    ):
        with pytest.raises(ValueError) as error:
            call()
        assert all(re.search(n, str(error.value)) for n in numbers), error.value
        assert cache.seq_pos == 4
    for call in (lambda: cache.advance(1.0), lambda: cache.truncate("1")):
        with pytest.raises(TypeError):
            call()
    for layer_idx in range(L):
        cache.update(layer_idx, *new_pair(7))
    cache.advance(7)
    with pytest.raises(ValueError):
        cache.advance()
    with pytest.raises(CacheFull, match="1.*11"):
        cache.update(0, *new_pair(1))


def test_only_what_every_layer_has_written_is_committed():
    """After another text in the same storage, too: its keys are never shown."""
    cache = new_cache(seq_pos=9)
    for forget in (lambda: cache.truncate(2), cache.reset):
        forget()
        start = cache.seq_pos
        with pytest.raises(ValueError, match=r"\d"):
            cache.advance()
        for layer_idx in range(L):
            with pytest.raises(ValueError, match=r"\d"):
                cache.advance(3)
            cache.update(layer_idx, *new_pair(3))
        with pytest.raises(ValueError, match=r"\d"):
            cache.advance(4)
        assert cache.seq_pos == start
        cache.advance(3)
        with pytest.raises(ValueError):
            cache.advance()
    cache.reset(batch_size=5)
    with pytest.raises(ValueError):
        cache.advance()


@pytest.mark.parametrize("number", [1e6, -7e4, np.nan, np.inf, -np.inf])
def test_float16_takes_what_it_can_hold(number):
    cache = new_cache(dtype=np.float16)
    for i in (0, 1):
        pair = new_pair(2)
        pair[i][1, 3, 1, 5] = number
        before = snapshot(cache)
        with pytest.raises(ValueError, match="nan|inf|65504"):
            cache.update(0, *pair)
        assert unchanged(cache, before)


def test_a_cache_is_what_has_the_methods():
    cache = new_cache()
    assert isinstance(cache, Cache) and isinstance(cache, CacheBase)
    assert not isinstance({}, Cache) and issubclass(CacheFull, ValueError) and issubclass(PoolFull, CacheFull)


@pytest.mark.parametrize("part", ["forward", "next_logits"])
def test_without_logits_nothing_is_committed(part):
    """The pass is hidden states and logits: whoever gets an error finds the cache as it was."""
    model = new_model()
    tokens, cache = tokens_of(2, 9), enable_kv_cache(model)
    want = model(tokens).data
    cache.reset()
    model(tokens[:, :4])

    def fail(inner, hidden):
        raise MemoryError("the logits of 2 rows do not fit")

    model.wrap("logits", fail)
    for _ in range(2):
        with pytest.raises(MemoryError):
            getattr(model, part)(tokens[:, 4:])
        assert cache.seq_pos == 4
    model.unwrap("logits", fail)
    assert np.allclose(model(tokens[:, 4:]).data, want[:, 4:], atol=1e-4) and cache.seq_pos == 9


def test_a_filled_cache_belongs_to_the_weights_that_filled_it():
    model, other = new_model(seed=0), new_model(seed=1)
    tokens = tokens_of(1, 6)
    cache = enable_kv_cache(model)
    model(tokens)
    with pytest.raises(ValueError, match="6 tokens.*other weights"):
        use(other, cache, tokens)
    disable_kv_cache(other)
    kept = {name: array.copy() for name, array in model.state_dict().items()}
    model.load_state_dict(other.state_dict())
    for read in (model, model.next_logits):
        with pytest.raises(ValueError, match="6 tokens.*other weights"):
            read(tokens)
    assert cache.seq_pos == 6
    model.load_state_dict(kept)
    want = model(tokens).data  # the old weights are there again: it goes on
    assert cache.seq_pos == 12 and np.isfinite(want).all()
    model.load_state_dict(other.state_dict())
    cache.reset()
    disable_kv_cache(model)
    plain = model(tokens).data
    assert np.allclose(use(model, cache, tokens), plain, atol=1e-4), "empty, it serves any weights"


def use(model, cache, tokens):
    enable_kv_cache(model, cache)
    return model(tokens).data


def test_a_step_of_an_optimizer_is_noticed():
    enable_autograd()
    model = new_model()
    tokens = tokens_of(2, 6)
    enable_kv_cache(model)
    model(tokens)
    optimizer = AdamW(model.parameters(), lr=1e-2)
    model.train()
    CrossEntropyLoss()(model(tokens), tokens).backward()
    optimizer.step()
    model.eval()
    with pytest.raises(ValueError, match="other weights"):
        model(tokens)
    assert model.generate(tokens, 3, temperature=0).shape == (2, 9), "generate begins anew"


@pytest.mark.parametrize("name", ["batch_size", "max_seq_len", "num_layers", "num_heads", "head_dim"])
def test_sizes_are_positive_whole_numbers(name):
    for bad, error in (
        (0, ValueError),
        (-3, ValueError),
        (2.0, TypeError),
        ("2", TypeError),
        (None, TypeError),
    ):
        with pytest.raises(error, match=name):
            new_cache(**{name: bad})


def test_the_dtype_is_a_float():
    with pytest.raises(TypeError):
        new_cache(dtype=np.int32)


# memory


def test_memory_is_counted_from_the_arrays():
    cache = new_cache(seq_pos=4, dtype=np.float16)
    usage = cache.get_memory_usage()
    total = sum(x.data.nbytes for pair in cache.caches for x in pair)
    assert total == 2 * L * B * H * S * D * 2 == cache.nbytes == cache_bytes(B, S, L, H, D, np.float16)
    want = {
        "total_mb": pytest.approx(total / 1e6),
        "per_layer_mb": pytest.approx(total / 1e6 / 3),
        "used_mb": pytest.approx(total / 1e6 * 4 / 11),
        "utilization": pytest.approx(4 / 11),
        "cache_tensors": 6,
        "total_elements": 2 * L * B * H * S * D,
        "bytes_per_token": 2 * L * H * D * 2,
    }
    assert {name: usage.get(name) for name in want} == want


def test_published_models_weigh_what_they_should():
    assert cache_bytes(1, 1024, 12, 12, 64) == 75_497_472, "GPT-2 small: 75.5 MB in float32"
    assert cache_bytes(1, 2048, 96, 96, 128) == 19_327_352_832, "GPT-3: 19.3 GB in float32"
    assert KVCache(1, 1024, 12, 12, 64).get_memory_usage()["total_mb"] == pytest.approx(75.497472)


def traced_peak(call):
    """Bytes that `call` holds at its highest, above what was there before."""
    call()
    tracemalloc.start()
    try:
        start = tracemalloc.get_traced_memory()[0]
        tracemalloc.reset_peak()
        call()
        return tracemalloc.get_traced_memory()[1] - start
    finally:
        tracemalloc.stop()


def test_nothing_of_the_size_of_the_keys_is_ever_allocated():
    cache = KVCache(1, 2000, 1, 2, 64)
    cache.update(0, *new_pair(1500, shape=(1, 2, 64)))
    cache.advance(1500)
    key, value = new_pair(1, shape=(1, 2, 64))
    one_layer = 2 * 1500 * 64 * 4
    assert traced_peak(lambda: cache.update(0, key, value)) < 4_000
    assert traced_peak(lambda: cache.get(0)) < 4_000
    attend = traced_peak(lambda: attention_with_cache(key, key, value, cache, 0))
    assert attend < one_layer / 4, (
        f"attention over {one_layer} bytes of keys took {attend} more: were they copied?"
    )


def test_an_update_late_costs_what_an_update_early_costs():
    cache = KVCache(1, 20_000, 1, 4, 64)
    key, value = new_pair(1, shape=(1, 4, 64))

    def fastest(seq_pos):
        cache.seq_pos = seq_pos
        seconds = []
        for _ in range(200):
            start = time.perf_counter()
            cache.update(0, key, value)
            cache.get(0)
            seconds.append(time.perf_counter() - start)
        return min(seconds)

    early = fastest(10)
    late = fastest(19_000)
    assert late < 5 * early, f"the fastest of 200 updates: {early:.2e} s at 10 tokens, {late:.2e} s at 19,000"


# attention


def attend_in_loops(query, keys, values, start, mask=None):
    """Attention by its definition: query i stands at position start + i and sees 0 to start + i."""
    out = np.zeros(query.shape)
    for b, h, i in np.ndindex(query.shape[:3]):
        seen = range(start + i + 1)
        scores = [
            float(query[b, h, i].astype(float) @ keys[b, h, j].astype(float)) / query.shape[-1] ** 0.5
            for j in seen
        ]
        if mask is not None:
            scores = [s + mask[b, h, i, j] for s, j in zip(scores, seen, strict=True)]
        weights = np.exp(np.array(scores) - max(scores))
        out[b, h, i] = sum(
            w * values[b, h, j].astype(float) for w, j in zip(weights / weights.sum(), seen, strict=True)
        )
    return out


@settings(max_examples=25, deadline=None)
@given(
    st.integers(1, 3),
    st.integers(1, 4),
    st.integers(1, 5),
    st.lists(st.integers(1, 4), min_size=1, max_size=4),
    st.integers(0, 99),
)
def test_attention_against_loops(rows, heads, dim, pieces, seed):
    total = sum(pieces)
    query, key, value = (
        np.random.default_rng(seed).normal(size=(3, rows, heads, total, dim)).astype(np.float32)
    )
    cache = KVCache(rows, total, 2, heads, dim)
    start = 0
    for T in pieces:
        part = (slice(None), slice(None), slice(start, start + T))
        out = attention_with_cache(query[part], key[part], value[part], cache, 1)
        want = attend_in_loops(query[part], key[:, :, : start + T], value[:, :, : start + T], start)
        assert out.shape == (rows, heads, T, dim) and out.dtype == np.float32
        assert np.allclose(out.data, want, rtol=1e-4, atol=1e-5)
        assert cache.seq_pos == start
        cache.update(0, key[part], value[part])
        cache.advance(T)
        start += T


@pytest.mark.parametrize("G", [1, 3])
def test_queries_of_a_group_share_the_cache(G):
    rng = np.random.default_rng(6)
    query = rng.normal(size=(B, H, G, 5, D)).astype(np.float32)
    key, value = rng.normal(size=(2, B, H, 5, D)).astype(np.float32)
    hide = np.zeros((B, 1, 1, S), np.float32)
    hide[0, :, :, 0] = -1e30
    cache = KVCache(B, S, 1, H, D)
    for start, stop in ((0, 2), (2, 3), (3, 5)):
        new = (slice(None), slice(None), slice(start, stop))
        mask = hide[..., :stop]
        out = attention_with_cache(query[:, :, :, start:stop], key[new], value[new], cache, 0, mask)
        for g in range(G):
            wide = np.broadcast_to(mask, (B, H, stop - start, stop))
            seen = key[:, :, :stop], value[:, :, :stop]
            want = attend_in_loops(query[:, :, g, start:stop], *seen, start, wide)
            assert np.allclose(out.data[1:, :, g], want[1:], rtol=1e-4, atol=1e-5)
            if start:
                assert np.allclose(out.data[0, :, g], want[0], rtol=1e-4, atol=1e-5)
        cache.advance(stop - start)
    for wrong in (query[:, :1], query[..., :1], query[:1], query[:, :, 0, :0]):
        with pytest.raises(ValueError):
            attention_with_cache(wrong, key[:, :, :2], value[:, :, :2], KVCache(B, S, L, H, D), 0)


def test_the_new_token_attends_to_itself():
    cache = new_cache(seq_pos=4)
    key, value = new_pair(1, seed=3)
    once = attention_with_cache(key, key, value, cache, 0).data
    assert not np.allclose(once, attention_with_cache(key, key, 10 * value, cache, 0).data, atol=1e-3)


def test_a_later_token_changes_no_earlier_output():
    query, key, value = np.random.default_rng(2).normal(size=(3, B, H, 5, D)).astype(np.float32)
    one = attention_with_cache(query, key, value, new_cache(seq_pos=4), 0).data
    key[:, :, 3:] += 1
    value[:, :, 3:] += 1
    two = attention_with_cache(query, key, value, new_cache(seq_pos=4), 0).data
    assert np.array_equal(one[:, :, :3], two[:, :, :3]) and not np.allclose(one[:, :, 3:], two[:, :, 3:])


def test_a_mask_of_the_callers_comes_on_top():
    rng = np.random.default_rng(1)
    query, key, value = rng.normal(size=(3, B, H, 3, D)).astype(np.float32)
    cache = new_cache(seq_pos=4)
    old_keys, old_values = (x.data.copy() for x in cache.get(0))
    keys, values = np.concatenate([old_keys, key], 2), np.concatenate([old_values, value], 2)
    square = rng.normal(size=(S, S)).astype(np.float32)
    for mask in (
        square,
        rng.normal(size=(B, H, 3, 7)),
        rng.normal(size=(B, 1, 1, 7)),
        rng.normal(size=(3, 7)),
        np.zeros(7),
    ):
        applies = square[4:7, :7] if mask is square else mask
        want = attend_in_loops(query, keys, values, 4, np.broadcast_to(applies, (B, H, 3, 7)))
        assert np.allclose(
            attention_with_cache(query, key, value, cache, 0, mask).data, want, rtol=1e-4, atol=1e-5
        )


def test_bad_attention_input_is_refused_before_anything_is_written():
    cache = new_cache(seq_pos=4)
    before = snapshot(cache)
    key, value = new_pair(2)
    for query, mask, layer_idx, error in (
        (key[:, :1], None, 0, ValueError),
        (key[:, :, :1], None, 0, ValueError),
        (key, np.zeros((3, 6)), 0, ValueError),
        (key, np.zeros((2, 5)), 0, ValueError),
        (key, np.zeros((B + 1, 1, 1, 6)), 0, ValueError),
        (key, np.zeros((1, B, H, 2, 6)), 0, ValueError),
        (key, np.ones((2, 6), bool), 0, TypeError),
        (key, None, L, ValueError),
        (key, None, -1, ValueError),
    ):
        with pytest.raises(error):
            attention_with_cache(query, key, value, cache, layer_idx, mask)
        assert unchanged(cache, before)


def test_a_cached_attention_layer():
    layer = CachedMultiHeadAttention(H * D, H, rng=0)
    plain = MultiHeadAttention(H * D, H, causal=True)
    plain.load_state_dict(layer.state_dict())
    x = np.random.default_rng(0).normal(size=(B, 8, H * D)).astype(np.float32)
    want = plain(Tensor(x)).data
    assert np.allclose(layer(Tensor(x)).data, want, atol=1e-6)
    for cuts in ((), (1,), (7,), (2, 3, 5)):
        cache = new_cache()
        pieces = []
        for piece in np.split(x, cuts, axis=1):
            pieces.append(layer(Tensor(piece), cache=cache, layer_idx=2).data)
            assert not cache.caches[0][0].data[:, :, cache.seq_pos :].any(), "layer 2, and no other"
            for layer_idx in (0, 1):
                cache.update(layer_idx, *new_pair(piece.shape[1]))
            cache.advance(piece.shape[1])
        assert np.allclose(np.concatenate(pieces, 1), want, atol=1e-5)
        assert cache.caches[2][0].data[:, :, :8].all()
    bias = np.random.default_rng(1).normal(size=(8, 8)).astype(np.float32)
    want = plain(Tensor(x), bias).data
    assert np.allclose(layer(Tensor(x), mask=bias).data, want, atol=1e-5)
    assert np.allclose(layer(Tensor(x), new_cache(), 0, bias).data, want, atol=1e-5)


# in front of a finished model


@settings(max_examples=20, deadline=None)
@given(st.data())
def test_logits_are_the_same_for_any_model_batch_and_split(data):
    draw = data.draw
    heads, layers, rows = draw(st.integers(1, 8)), draw(st.integers(1, 6)), draw(st.integers(1, 5))
    model = new_model(
        draw(st.integers(0, 999)), layers, heads, draw(st.integers(1, 7)), vocab=13, max_seq_len=20
    )
    length = draw(st.integers(1, 20))
    cuts = sorted(draw(st.sets(st.integers(1, max(1, length - 1)), max_size=5))) if length > 1 else []
    tokens = tokens_of(rows, length, 13, seed=draw(st.integers(0, 999)))
    want = model(tokens).data
    cache = enable_kv_cache(model)
    assert np.abs(in_pieces(model, tokens, cuts) - want).max() < 1e-4
    keep = draw(st.integers(0, length - 1))  # rewind, and say the rest again
    cache.truncate(keep)
    assert np.abs(model(tokens[:, keep:]).data - want[:, keep:]).max() < 1e-4
    cache.reset()  # a second text
    other = tokens_of(rows, length, 13, seed=1000)
    second = in_pieces(model, other, cuts)
    disable_kv_cache(model)
    assert np.abs(second - model(other).data).max() < 1e-4


@pytest.mark.parametrize("rows", [1, 2, 5])
def test_generate_gives_the_same_tokens(rows):
    model = new_model()
    settings_list = (
        dict(temperature=0),
        dict(temperature=0.8, rng=3),
        dict(top_k=4, rng=5),
        dict(top_p=0.7, temperature=1.3, rng=7),
        dict(temperature=0, stop_token=2),
    )
    for seed, options in enumerate(settings_list):
        prompt = tokens_of(rows, 5 + seed, seed=seed)
        want = model.generate(prompt, 20, **options)
        assert np.array_equal(generate_with_cache(model, prompt, 20, **options), want)
        enable_kv_cache(model)
        for _ in range(2):  # a second prompt at once, no reset in between
            assert np.array_equal(model.generate(prompt, 20, **options), want)
        disable_kv_cache(model)


def test_another_prompt_and_another_batch_at_once():
    model = new_model()
    prompts = [tokens_of(rows, length, seed=rows) for rows, length in ((1, 9), (4, 2), (2, 30), (1, 1))]
    want = [model.generate(p, 2, temperature=0) for p in prompts]
    cache = enable_kv_cache(model)
    assert all(
        np.array_equal(model.generate(p, 2, temperature=0), w) for p, w in zip(prompts, want, strict=True)
    )
    assert model._kv_cache is cache and model._cache_enabled


def test_a_cache_that_is_there_is_used_and_stays():
    model, prompt = new_model(), tokens_of(2, 5)
    cache = enable_kv_cache(model)
    generate_with_cache(model, prompt, 4, temperature=0)
    assert model._cache_enabled and model._kv_cache is cache and cache.seq_pos == 5 + 4 - 1


def test_only_the_new_tokens_are_computed():
    model = new_model()
    seen = []
    for block in model.blocks:
        block.mlp.wrap("forward", lambda inner, x: seen.append(x.shape[1]) or inner(x))
    generate_with_cache(model, tokens_of(1, 6), 4, temperature=0)
    assert seen == [6] * 3 + [1] * 9, f"each layer should see 6 tokens, then 1 at a time; they saw {seen}"


def test_the_model_itself_uses_the_cache_and_commits():
    model, tokens = new_model(), tokens_of(2, 7)
    cache = enable_kv_cache(model)
    model(tokens[:, :4])
    assert cache.seq_pos == 4
    assert all((key.data[:, :, :4] != 0).all() for key, _ in cache.caches), (
        "slots 0 to 3 should hold the prompt's keys"
    )
    model(tokens[:, 4:5])
    assert cache.seq_pos == 5
    assert all(not key.data[:, :, 5:].any() for key, _ in cache.caches)


def test_each_layer_keeps_keys_of_its_own_weights():
    model, tokens = new_model(), tokens_of(2, 5)
    caught = []
    for block in model.blocks:
        block.attention.wrap("project", lambda inner, x: caught.append(inner(x)) or caught[-1])
    model(tokens)
    want = caught[:]
    cache = enable_kv_cache(model)
    model(tokens)
    for (key, value), (_, want_key, want_value) in zip(cache.caches, want, strict=True):
        assert np.allclose(key.data[:, :, :5], want_key.data, atol=1e-5)
        assert np.allclose(value.data[:, :, :5], want_value.data, atol=1e-5)


def test_positions_move_on():
    model = new_model()
    same = np.full((1, 4), 3)
    model.position_embedding.weight.data[...] = np.arange(32)[:, None] * np.linspace(-1, 1, 12)
    cache = enable_kv_cache(model)
    in_pieces(model, same, (1, 2, 3))
    key = cache.caches[0][0].data[0, 0, :4]
    assert all(not np.allclose(key[i], key[i + 1], atol=1e-3) for i in range(3)), (
        "four equal tokens at four positions"
    )


def test_the_last_prompt_token_is_fed_once():
    model, prompt = new_model(), tokens_of(1, 6)
    cache = enable_kv_cache(model)
    model.generate(prompt, 3, temperature=0)
    assert cache.seq_pos == 6 + 3 - 1, "6 prompt tokens and all new ones but the last are in the cache"


def test_any_object_with_the_methods_is_a_cache():
    class Counting:
        """Passes everything on to a KVCache and counts."""

        def __init__(self, inner):
            self.inner, self.calls = inner, []

        @property
        def seq_pos(self):
            return self.inner.seq_pos

        def update(self, layer_idx, key, value):
            self.calls.append("update")
            return self.inner.update(layer_idx, key, value)

        def advance(self, num_tokens=1):
            self.calls.append("advance")
            self.inner.advance(num_tokens)

        def reset(self):
            self.calls.append("reset")
            self.inner.reset()

    model, prompt = new_model(), tokens_of(2, 4)
    want = model.generate(prompt, 5, temperature=0)
    mine = Counting(KVCache(2, 32, 3, 2, 6))
    assert enable_kv_cache(model, cache=mine) is mine and model._kv_cache is mine
    assert np.array_equal(model.generate(prompt, 5, temperature=0), want)
    assert mine.calls == ["reset"] + (["update"] * 3 + ["advance"]) * 5


def test_in_training_the_cache_steps_aside():
    enable_autograd()
    model, tokens = new_model(), tokens_of(2, 6)
    want = model(tokens).data
    cache = enable_kv_cache(model)
    model(tokens[:, :2])
    before = snapshot(cache)
    model.train()
    logits = model(tokens)
    CrossEntropyLoss()(logits[:, :-1], tokens[:, 1:]).backward()
    generated = model.generate(tokens, 3, temperature=0)
    assert np.allclose(logits.data, want, atol=1e-5)
    assert all(p.grad is not None and np.isfinite(p.grad).all() for p in model.parameters())
    assert unchanged(cache, before)
    model.eval()
    disable_kv_cache(model)
    assert np.array_equal(generated, model.generate(tokens, 3, temperature=0))
    enable_kv_cache(model)
    assert not model(tokens).requires_grad, "with the cache nothing is recorded"


def test_disabling_leaves_no_trace():
    model = new_model()
    prompt = tokens_of(1, 4)
    before = dict(objects_below(model))
    weights = [p.data.copy() for p in model.parameters()]
    names = list(model.state_dict())
    enable_kv_cache(model)
    assert list(model.state_dict()) == names, "the cache is no weight of the model"
    model.generate(prompt, 4)
    disable_kv_cache(model)
    assert dict(objects_below(model)) == before
    assert all(np.array_equal(p.data, w) for p, w in zip(model.parameters(), weights, strict=True))
    assert model(prompt).shape == model(prompt).shape == (1, 4, 17)
    disable_kv_cache(model)  # a second time changes nothing
    generate_with_cache(model, prompt, 3)
    assert dict(objects_below(model)) == before
    with pytest.raises(ValueError):
        generate_with_cache(model, prompt, 300)
    assert dict(objects_below(model)) == before


def test_enabling_twice_does_not_wrap_twice():
    model, tokens = new_model(), tokens_of(2, 9)
    before = dict(objects_below(model))
    want = model(tokens).data
    enable_kv_cache(model)
    model(tokens[:, :3])
    cache = enable_kv_cache(model)
    assert np.abs(in_pieces(model, tokens, (4, 5)) - want).max() < 1e-4
    assert cache.seq_pos == 9
    disable_kv_cache(model)
    assert dict(objects_below(model)) == before


def test_two_models_do_not_share_anything():
    one, two = new_model(1), new_model(2)
    tokens = tokens_of(1, 8)
    want = one(tokens).data, two(tokens).data
    enable_kv_cache(one), enable_kv_cache(two)
    got = [], []
    for piece in np.split(tokens, (3, 4), axis=1):
        got[0].append(one(piece).data)
        got[1].append(two(piece).data)
    assert all(np.abs(np.concatenate(g, 1) - w).max() < 1e-4 for g, w in zip(got, want, strict=True))


def test_a_copy_of_an_enabled_model_goes_its_own_way():
    model, tokens = new_model(), tokens_of(1, 8)
    want = model(tokens).data
    cache = enable_kv_cache(model)
    model(tokens[:, :5])
    twin = copy.deepcopy(model)
    assert np.abs(twin(tokens[:, 5:]).data - want[:, 5:]).max() < 1e-4
    assert (cache.seq_pos, twin._kv_cache.seq_pos) == (5, 8)


def test_bad_tokens_change_nothing():
    model = new_model()
    cache = enable_kv_cache(model)
    model(tokens_of(2, 5))
    before = snapshot(cache)
    for tokens, error in (
        (tokens_of(3, 1), ValueError),
        (tokens_of(2, 28), ValueError),
        (np.zeros((2, 0), int), ValueError),
        (np.full((2, 1), 17), ValueError),
        (np.full((2, 1), -1), ValueError),
        (np.zeros(2, int), ValueError),
        (np.zeros((2, 1)), TypeError),
    ):
        with pytest.raises(error):
            model(tokens)
        assert unchanged(cache, before)
    for options in (
        dict(max_new_tokens=30),
        dict(max_new_tokens=1, temperature=float("nan")),
        dict(max_new_tokens=-1),
    ):
        with pytest.raises(ValueError):
            model.generate(tokens_of(2, 5), **options)
        assert unchanged(cache, before), "refused before any work, so the cache is as it was"


def test_a_failure_half_way_commits_nothing():
    model, tokens = new_model(), tokens_of(1, 6)
    want = model(tokens).data
    cache = enable_kv_cache(model)
    model(tokens[:, :3])

    def failing(inner, x):
        raise FloatingPointError("half way")

    model.blocks[1].mlp.wrap("forward", failing)
    with pytest.raises(FloatingPointError):
        model(tokens[:, 3:])
    assert cache.seq_pos == 3
    model.blocks[1].mlp.unwrap("forward", failing)
    assert np.abs(model(tokens[:, 3:]).data - want[:, 3:]).max() < 1e-4


def test_a_cache_of_other_sizes_is_refused():
    model = new_model()
    before = dict(objects_below(model))
    for sizes in ((1, 32, 2, 2, 6), (1, 32, 3, 1, 6), (1, 32, 3, 2, 5)):
        with pytest.raises(ValueError, match=r"\d"):
            enable_kv_cache(model, KVCache(*sizes))
        assert dict(objects_below(model)) == before
    enable_kv_cache(model, KVCache(2, 10, 3, 2, 6))
    with pytest.raises(ValueError, match="12"):
        model.generate(tokens_of(2, 4), 8)
    assert model.generate(tokens_of(2, 4), 7).shape == (2, 11)
    with pytest.raises(ValueError, match="3"):
        model.generate(tokens_of(3, 4), 2)
    with pytest.raises(TypeError):
        enable_kv_cache("a model")


def test_a_cache_shows_itself():
    cache = new_cache(seq_pos=4)
    line = repr(cache)
    assert "\n" not in line and "4/11" in line and f"{cache.nbytes / 1e6:.2f} MB" in line
    html = cache._repr_html_()
    assert html.count("layer ") == L and html.count("<rect") == 2 * L
