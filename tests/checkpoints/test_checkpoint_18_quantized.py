"""Checkpoint 18: the quantised cache against slow loops, its own bound, and a list of what was written."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tinytorch.core.tensor import Tensor
from tinytorch.generation.kv_cache import (
    KVCache,
    attention_with_cache,
    disable_kv_cache,
    enable_kv_cache,
    generate_with_cache,
)
from tinytorch.generation.quantized import (
    QuantizedBlocks,
    QuantizedKVCache,
    choose_steps,
    dequantize,
    error_bound,
    half_below,
    half_to_float,
    pack_int4,
    quantize,
    quantized_after,
    unpack_int4,
)
from tinytorch.models.llama import Llama

B, H, D, L, LONGEST = 2, 3, 5, 2, 60
TOP = {(8, True): 127, (8, False): 255, (4, True): 7, (4, False): 15}
LIMIT = 65504.0
KINDS = [(bits, symmetric) for bits in (16, 8, 4) for symmetric in (None, True, False)]

plain_numbers = st.floats(-LIMIT, LIMIT, width=32)
tiny_numbers = st.floats(-(2.0**-20), 2.0**-20, width=32)


@st.composite
def nasty_blocks(draw):
    """(n, G, D) float32: large, tiny, constant, nearly constant, zero, and all of these side by side."""
    shape = draw(st.integers(1, 3)), 2 * draw(st.integers(1, 4)), draw(st.integers(1, 5))
    size = int(np.prod(shape))
    kind = draw(st.sampled_from(["any", "tiny", "constant", "nearly", "outlier", "normal", "grains"]))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    if kind in ("any", "tiny"):
        numbers = plain_numbers if kind == "any" else tiny_numbers
        x = np.array(draw(st.lists(numbers, min_size=size, max_size=size)), np.float32)
    else:
        x = np.full(size, draw(plain_numbers), np.float32)
        if kind == "nearly":
            x *= 1 - np.float32(2**-9) * rng.uniform(0, 1, size).astype(np.float32)
        if kind == "outlier":
            x[1:] = rng.normal(size=size - 1)
        if kind == "grains":  # multiples of the smallest float32 there is
            x = rng.integers(-200, 200, size) * np.float32(2**-149)
        if kind == "normal":
            x = (rng.normal(size=size) * 10.0 ** rng.uniform(-9, 3)).astype(np.float32)
    return np.clip(x.reshape(shape), -LIMIT, LIMIT)


def some_pair(T, rows=B, seed=0, offset=0.0):
    """New keys and values, (rows, H, T, D) each."""
    rng = np.random.default_rng(seed)
    key, value = rng.normal(size=(2, rows, H, T, D)).astype(np.float32)
    key[..., 1] += np.float32(offset)
    return key, value


def small_cache(bits=8, symmetric=None, rows=B, group=4, residual=6, longest=LONGEST, layers=L):
    return QuantizedKVCache(rows, longest, layers, H, D, bits, group, residual, symmetric)


def feed(cache, key, value):
    """One pass: the same tokens in every layer, layer i times i + 1."""
    for i in range(cache.num_layers):
        cache.update(i, (i + 1) * key, (i + 1) * value)
    cache.advance(key.shape[2])


def state(cache):
    """What an outsider sees."""
    shown = [x.data for i in range(cache.num_layers) for x in cache.get(i)]
    return [np.array([cache.seq_pos, cache.batch_size, cache.nbytes]), *shown]


def same(before, after):
    return len(before) == len(after) and all(map(np.array_equal, before, after))


# numbers


@settings(max_examples=300, deadline=None)
@given(st.floats(-LIMIT, LIMIT, width=32))
def test_half_below_is_the_next_below(number):
    half = half_below(np.array([[number]], np.float32))
    assert half.dtype == np.float16 and half.shape == (1, 1)
    with np.errstate(over="ignore"):
        above = float(np.nextafter(half[0, 0], np.float16(np.inf)))
    assert float(half[0, 0]) <= number < above


@settings(max_examples=200, deadline=None)
@given(nasty_blocks(), st.sampled_from(list(TOP)), st.sampled_from([-1, -2]))
def test_every_block_comes_back_within_the_bound(x, kind, axis):
    (bits, symmetric), before = kind, x.copy()
    step, low = choose_steps(x, bits, axis, symmetric)
    assert step.dtype == np.float16 and step.shape == x.max(axis=axis, keepdims=True).shape
    assert (low is None) == symmetric
    codes = quantize(x, step, low)
    assert codes.dtype == (np.int8 if symmetric else np.uint8) and codes.shape == x.shape
    assert codes.min() >= (-TOP[kind] if symmetric else 0) and codes.max() <= TOP[kind]
    back = dequantize(codes, step, low)
    assert back.dtype == np.float32
    bound = error_bound(bits, step, low)
    error = np.abs(back.astype(np.float64) - x.astype(np.float64))
    assert np.all(error <= bound.astype(np.float64)), f"off by {error.max()}, the bound is {bound.max()}"
    assert np.array_equal(x, before)
    # The bound itself is what the group's span promises, and the roundings of float16, not more.
    wide = x.astype(np.float64)
    lowest = 0 if symmetric else wide.min(axis=axis, keepdims=True)
    span = (np.abs(wide) if symmetric else wide - lowest).max(axis=axis, keepdims=True)
    lost = 0 if symmetric else np.abs(lowest) * 2**-10 + 2**-24
    largest_step = (span + lost) / TOP[kind] * (1 + 2**-10) + 2**-24
    reach = TOP[kind] * largest_step + np.abs(lowest) + lost
    assert np.all(bound <= largest_step / 2 + 1.001 * reach / 2**22)


@pytest.mark.parametrize(("bits", "symmetric"), list(TOP))
def test_the_smallest_numbers_of_float32_have_a_step(bits, symmetric):
    """Their span over the top code is 0 in float32; a step of 0 would lose them beyond the bound."""
    x = (np.arange(1, 61) * np.float32(2**-149)).astype(np.float32).reshape(6, 10)
    step, low = choose_steps(x, bits, -1, symmetric)
    error = np.abs(dequantize(quantize(x, step, low), step, low).astype(np.float64) - x)
    assert np.all(step > 0) and np.all(error <= error_bound(bits, step, low).astype(np.float64))


def test_the_bound_counts_the_roundings_of_float32():
    """Many numbers far from zero: some are so near the middle of two marks that half a step is too little."""
    width = np.linspace(40, 400, 200)[:, None]
    x = (60000 + width * np.random.default_rng(0).uniform(0, 1, (200, 4000))).astype(np.float32)
    step, low = choose_steps(x, 8, -1, False)
    error = np.abs(dequantize(quantize(x, step, low), step, low).astype(np.float64) - x)
    bound = error_bound(8, step, low).astype(np.float64)
    assert np.all(error <= bound) and np.all(bound < 0.6 * step)
    assert np.any(error > step.astype(np.float64) / 2)


@pytest.mark.parametrize(("bits", "symmetric"), list(TOP))
@pytest.mark.parametrize("axis", [-1, -2])
def test_the_step_is_the_smallest_that_reaches(bits, symmetric, axis):
    rng = np.random.default_rng(bits)
    for scale in (1e-7, 1e-3, 1.0, 300.0):
        x = (scale * (rng.normal(size=(4, 6, 5)) + 1)).astype(np.float32)
        step, low = choose_steps(x, bits, axis, symmetric)
        for group, s, its_low in zip(
            np.moveaxis(x, axis, -1).reshape(-1, x.shape[axis]).tolist(),
            step.ravel(),
            step.ravel() if low is None else low.ravel(),
            strict=True,
        ):
            span = max(map(abs, group)) if symmetric else max(group) - float(its_low)
            below = float(np.nextafter(s, np.float16(0)))
            assert TOP[bits, symmetric] * float(s) >= span * (1 - 1e-7)
            assert TOP[bits, symmetric] * below < span or s == 0


def test_nearest_mark():
    ruler = np.array([[0.5]], np.float16), np.array([[-3.0]], np.float16)
    x = np.array([[-3.0, -2.8, -2.7, 0.1, 4.5]], np.float32)
    assert quantize(x, *ruler).tolist() == [[0, 0, 1, 6, 15]]
    assert quantize(x, ruler[0]).tolist() == [[-6, -6, -5, 0, 9]]


@settings(max_examples=60, deadline=None)
@given(st.sampled_from([np.int8, np.uint8]), st.integers(1, 4), st.integers(1, 5), st.integers(0, 2**16))
def test_packing_is_exact_and_halves_the_bytes(kind, half, width, seed):
    lowest = -8 if kind is np.int8 else 0
    codes = np.random.default_rng(seed).integers(lowest, lowest + 16, (3, 2 * half, width)).astype(kind)
    packed = pack_int4(codes)
    assert packed.shape == (3, half, width) and packed.dtype == kind and 2 * packed.nbytes == codes.nbytes
    for n, i, d in np.ndindex(packed.shape):
        assert int(packed[n, i, d]) % 16 == int(codes[n, i, d]) % 16
        assert int(packed[n, i, d]) % 256 // 16 == int(codes[n, i + half, d]) % 16
    back = unpack_int4(packed)
    assert back.dtype == kind and np.array_equal(back, codes)
    assert unpack_int4(packed, np.float32).dtype == np.float32
    assert np.array_equal(unpack_int4(packed, np.float32), codes)


@pytest.mark.parametrize(("R", "G"), [(1, 1), (6, 4), (32, 16), (32, 32), (7, 2)])
def test_groups_move_when_they_must(R, G):
    quantized = 0
    for n in range(5 * R):
        if n - quantized > R:
            quantized += G
        assert quantized_after(n, R, G) == quantized


def test_every_half_becomes_its_float():
    every = np.arange(2**16).astype(np.uint16).view(np.float16)
    every = every[np.isfinite(every)]
    floats = half_to_float(every)
    assert floats.dtype == np.float32 and np.array_equal(floats, every.astype(np.float32))
    assert np.array_equal(np.signbit(floats), np.signbit(every))
    square = every[:600].reshape(20, 30)
    assert np.array_equal(half_to_float(square[::2, 5:]), square[::2, 5:].astype(np.float32))


# blocks


@pytest.mark.parametrize("bits", [16, 8, 4])
@pytest.mark.parametrize(("axis", "symmetric"), [(-1, True), (-1, False), (-2, True), (-2, False)])
def test_blocks_read_score_and_mix_what_was_written(bits, axis, symmetric):
    rng = np.random.default_rng(3)
    blocks = QuantizedBlocks((B, H, 24, D), bits, 4, axis, symmetric)
    x = (rng.normal(size=(B, H, 24, D)) + 2).astype(np.float32)
    blocks.write(8, x[:, :, 8:])
    blocks.write(0, x[:, :, :8])
    assert blocks.read(0, 0).shape == (B, H, 0, D)
    for stop in (4, 24):
        read = blocks.read(0, stop)
        assert read.shape == (B, H, stop, D) and read.dtype == np.float32
        bound = blocks.bound(stop)
        assert bound.shape == read.shape and np.all(np.abs(read - x[:, :, :stop]) <= bound)
        query = rng.normal(size=(B, H, 2, D)).astype(np.float32)
        scores = blocks.scores(query, stop)
        assert scores.shape == (B, H, 2, stop)
        for b, h, g, s in np.ndindex(scores.shape):
            want = sum(float(query[b, h, g, d]) * float(read[b, h, s, d]) for d in range(D))
            assert abs(scores[b, h, g, s] - want) < 1e-4
        if axis == -1:
            weights = rng.uniform(size=(B, H, 2, stop)).astype(np.float32)
            mixed = blocks.mix(weights)
            for b, h, g, d in np.ndindex(mixed.shape):
                want = sum(float(weights[b, h, g, s]) * float(read[b, h, s, d]) for s in range(stop))
                assert abs(mixed[b, h, g, d] - want) < 1e-3
    assert np.array_equal(blocks.read(4, 12), blocks.read(0, 24)[:, :, 4:12])


# bytes


@pytest.mark.parametrize("longest", [2000, 2048])
@pytest.mark.parametrize(("bits", "share"), [(16, 0.51), (8, 0.27), (4, 0.16)])
def test_the_bytes_are_what_was_promised(longest, bits, share):
    """SmolLM2's shape, default arguments, the newest tokens and the steps counted."""
    cache = QuantizedKVCache(1, longest, 2, 3, 64, bits)
    plain = KVCache(1, longest, 2, 3, 64)
    arrays = [x for pair in cache.blocks for blocks in pair for x in blocks.arrays()]
    arrays += [x for pair in cache.newest for x in pair]
    assert all(array.base is None for array in arrays), "an array that is counted should be one, no view"
    assert cache.nbytes == sum(array.nbytes for array in arrays)
    assert cache.nbytes <= share * plain.nbytes
    assert QuantizedKVCache(1, longest, 2, 3, 64).nbytes <= 0.27 * plain.nbytes, "the default is 8 bits"
    kinds = {16: {"float16"}, 8: {"int8"}, 4: {"int8", "uint8"}}[bits]
    assert {str(blocks.codes.dtype) for pair in cache.blocks for blocks in pair} <= kinds


@pytest.mark.parametrize("bits", [16, 8, 4])
def test_it_does_not_grow(bits):
    cache = small_cache(bits)
    arrays, nbytes = list(map(id, cache.arrays())), cache.nbytes
    for T in (1, 20, 1, 7, 31):
        feed(cache, *some_pair(T))
        assert list(map(id, cache.arrays())) == arrays and cache.nbytes == nbytes
    usage = cache.get_memory_usage()
    assert usage["utilization"] == 1 and usage["cache_tensors"] == len(cache.arrays())
    assert usage["total_mb"] == nbytes / 1e6 and usage["bytes_per_token"] == nbytes // (B * LONGEST)
    cache.reset()
    assert cache.nbytes == nbytes and cache.seq_pos == 0
    assert f"{bits} bits, {nbytes / 1e6:.2f} MB" in repr(cache)


# the cache against a list


class Written:
    """What was written, token by token, in the order of the positions; and how much of it is quantised."""

    def __init__(self, rows, group, residual):
        self.rows, self.group, self.residual = rows, group, residual
        self.tokens, self.quantized = [], 0  # of layer 0: pairs (rows, H, D)

    def add(self, key, value):
        for t in range(key.shape[2]):
            self.tokens.append((key[:, :, t], value[:, :, t]))
            if len(self.tokens) - self.quantized > self.residual:
                self.quantized += self.group

    def cut(self, seq_pos, shown):
        """Only the first tokens stay; those of a group that is cut are from now on what was shown."""
        whole = min(self.quantized, seq_pos // self.group * self.group)
        for t in range(whole, min(seq_pos, self.quantized)):
            self.tokens[t] = tuple(x[:, :, t].copy() for x in shown)
        del self.tokens[seq_pos:]
        self.quantized = whole

    def stacked(self, kind):
        tokens = [token[kind] for token in self.tokens]
        return np.stack(tokens, axis=2) if tokens else np.zeros((self.rows, H, 0, D), np.float32)


def check_against(cache, written):
    """Each layer shows what was written: exactly where it is exact, within the bound where it is not."""
    assert cache.seq_pos == len(written.tokens)
    for i in range(cache.num_layers):
        for kind, (seen, bound) in enumerate(zip(cache.get(i), cache.error_bound(i), strict=True)):
            want = (i + 1) * written.stacked(kind)
            assert seen.shape == bound.shape == want.shape and seen.data.dtype == np.float32
            nq = written.quantized
            assert np.array_equal(seen.data[:, :, nq:], want[:, :, nq:]), "the newest are exact"
            assert not bound[:, :, nq:].any()
            if i == 0:  # truncate replaces what was written by what layer 0 showed
                error = np.abs(seen.data.astype(np.float64) - want.astype(np.float64))
                assert np.all(error <= bound), f"off by {error.max()}, the bound says {bound.max()}"


OPERATIONS = st.lists(
    st.one_of(
        st.tuples(st.just("pass"), st.integers(1, 12)),
        st.tuples(st.just("broken"), st.integers(1, 12)),
        st.tuples(st.just("truncate"), st.floats(0, 1)),
        st.tuples(st.just("reset"), st.sampled_from([None, 1, 3])),
    ),
    max_size=14,
)


@settings(max_examples=120, deadline=None)
@given(OPERATIONS, st.sampled_from(KINDS), st.sampled_from([(4, 6), (2, 2), (6, 7), (2, 9)]), st.data())
def test_any_sequence_of_operations_matches_what_was_written(sequence, kind, sizes, data):
    bits, symmetric = kind
    group, residual = sizes
    cache = small_cache(bits, symmetric, group=group, residual=residual, layers=1)
    written, rows, seed = Written(B, group, residual), B, 0
    for name, how in sequence:
        seed += 1
        if name in ("pass", "broken"):
            key, value = some_pair(how, rows, seed, offset=7)
            if cache.seq_pos + how > LONGEST:
                before = state(cache)
                with pytest.raises(ValueError, match=str(LONGEST)):
                    cache.update(0, key, value)
                assert same(before, state(cache))
                continue
            before = state(cache)
            keys, values = cache.update(0, key, value)
            for seen, old, new in zip((keys, values), before[1:], (key, value), strict=True):
                assert np.array_equal(seen.data[:, :, : cache.seq_pos], old), "the old ones are as stored"
                assert np.array_equal(seen.data[:, :, cache.seq_pos :], new), "the new ones are exact"
            assert same(before, state(cache)), "what is not committed changes nothing"
            if name == "pass":
                cache.advance(how)
                written.add(key, value)
        elif name == "truncate":
            keep = round(how * cache.seq_pos)
            shown = [x.data for x in cache.get(0)]
            cache.truncate(keep)
            written.cut(keep, shown)
            for seen, old in zip(cache.get(0), shown, strict=True):
                assert np.array_equal(seen.data, old[:, :, :keep]), "truncate keeps what was shown"
        else:
            cache.reset(how)
            rows = how or rows
            written = Written(rows, group, residual)
            assert cache.batch_size == rows
        check_against(cache, written)


@pytest.mark.parametrize("T", [1, 3, 9])
@pytest.mark.parametrize("n", [11, 14, 17])
def test_after_every_cut_the_text_goes_on(n, T):
    for keep in range(n + 1):
        cache, written = small_cache(8, layers=1), Written(B, 4, 6)
        first = some_pair(n)
        feed(cache, *first)
        written.add(*first)
        shown = [x.data for x in cache.get(0)]
        cache.truncate(keep)
        written.cut(keep, shown)
        for seed in range(1, 4):
            pair = some_pair(T, seed=seed)
            feed(cache, *pair)
            written.add(*pair)
            check_against(cache, written)


def test_little_is_kept_beside_the_cache():
    """Of a long prompt the newest tokens wait to be committed, and nothing else."""
    cache = small_cache(4)
    feed(cache, *some_pair(5))
    for i in range(L):
        cache.update(i, *some_pair(50))
        for x in cache.pending[i][2:]:
            assert x.shape[2] <= 6 and x.base is None, f"{x.shape[2]} tokens wait, 6 are kept exact"


@pytest.mark.parametrize("bits", [16, 8, 4])
def test_layers_are_apart(bits):
    cache, written = small_cache(bits, layers=3), Written(B, 4, 6)
    for seed, T in enumerate((5, 1, 1, 1, 1, 11, 30)):
        pair = some_pair(T, seed=seed)
        feed(cache, *pair)
        written.add(*pair)
    check_against(cache, written)
    for i in range(3):
        keys, bound = cache.get(i)[0].data, cache.error_bound(i)[0]
        assert np.all(np.abs(keys - (i + 1) * written.stacked(0)) <= bound)


def test_more_bits_are_closer():
    key, value = some_pair(60)
    errors = []
    for bits in (16, 8, 4):
        cache = small_cache(bits, layers=1)
        feed(cache, key, value)
        errors.append([float(np.abs(seen.data - x).mean()) for seen, x in zip(cache.get(0), (key, value))])  # noqa: B905
    assert all(0 < 5 * errors[i][kind] < errors[i + 1][kind] for i in (0, 1) for kind in (0, 1)), errors


def test_keys_of_four_bits_bear_an_outlying_channel():
    """A channel that lies far from zero spoils its own ruler only."""
    key, value = some_pair(60, offset=100)
    cache = small_cache(4, layers=1)
    feed(cache, key, value)
    error = np.abs(cache.get(0)[0].data - key).mean(axis=(0, 1, 2))
    assert error.max() < 0.15
    per_token = small_cache(8, layers=1)
    feed(per_token, key, value)
    assert np.abs(per_token.get(0)[0].data - key).mean(axis=(0, 1, 2)).max() > 0.15


def test_a_short_cache_is_exact():
    """As long as all tokens are among the newest, nothing is quantised."""
    cache = QuantizedKVCache(B, 20, L, H, D, bits=4)
    pair = some_pair(20)
    feed(cache, *pair)
    for i in range(L):
        assert all(np.array_equal(a.data, (i + 1) * b) for a, b in zip(cache.get(i), pair, strict=True))
    assert not any(bound.any() for bound in cache.error_bound(0))


def test_tensors_and_other_numbers_are_taken_and_copied():
    cache = small_cache()
    key, value = some_pair(3)
    cache.update(0, Tensor(key), value.astype(np.float64))
    cache.update(1, 2 * key, 2 * value)
    given = key.copy()
    key[...] = value[...] = 99
    cache.advance(3)
    assert np.array_equal(cache.get(0)[0].data, given)
    shown = cache.get(0)[0]
    shown.data[...] = 5
    assert np.array_equal(cache.get(0)[0].data, given), "what is shown is a copy"


@pytest.mark.parametrize("bits", [16, 8, 4])
def test_the_newest_may_be_float64(bits):
    cache = QuantizedKVCache(B, LONGEST, 1, H, D, bits, 4, 6, dtype=np.float64)
    key, value = some_pair(17)
    feed(cache, key, value)
    query, new_key, new_value = (some_pair(1, seed=seed)[0] for seed in (1, 2, 3))
    old = [x.data for x in cache.get(0)]
    assert old[0].dtype == np.float64 and np.all(np.abs(old[0] - key) <= cache.error_bound(0)[0])
    out = attention_with_cache(query, new_key, new_value, cache, 0)
    both = [np.concatenate(pair, axis=2) for pair in zip(old, (new_key, new_value), strict=True)]
    assert np.abs(out.data - slow_attention(query, *both)).max() < 1e-4


# atomicity


@pytest.mark.parametrize("bits", [16, 8, 4])
def test_a_pass_that_breaks_off_loses_nothing(bits):
    for start in range(1, 18):
        cache, written = small_cache(bits), Written(B, 4, 6)
        pair = some_pair(start)
        feed(cache, *pair)
        written.add(*pair)
        before = state(cache)
        for T in (9, 1, 5):  # each reaches the first layer only
            cache.update(0, *some_pair(T, seed=T))
            assert same(before, state(cache))
        with pytest.raises(ValueError, match="5"):
            cache.advance(4)
        assert same(before, state(cache))
        again = some_pair(3, seed=50)
        feed(cache, *again)
        written.add(*again)
        check_against(cache, written)


class Slots(np.ndarray):
    """An array in which only so many assignments succeed; then somebody presses Ctrl-C."""

    left = 0

    def __setitem__(self, place, x):
        if Slots.left == 0:
            raise KeyboardInterrupt
        Slots.left -= 1
        super().__setitem__(place, x)


@pytest.mark.parametrize("method", ["advance", "truncate"])
@pytest.mark.parametrize("successes", range(8))
def test_interrupted_at_any_place_while_it_commits(method, successes):
    """Of the six arrays of the newest some have their tokens: the next reader finds the new state whole."""

    def cache_of(*pairs):
        cache = small_cache(4, layers=3)
        for pair in pairs:
            feed(cache, *pair)
        return cache

    first, second = some_pair(17), some_pair(6, seed=1)
    cache, want = cache_of(first), cache_of(first)
    if method == "advance":
        for i in range(3):
            cache.update(i, *((i + 1) * x for x in second))
        feed(want, *second)
    else:
        want.truncate(10)
    cache.settle()
    real, Slots.left = cache.newest, successes
    cache.newest = [tuple(x.view(Slots) for x in pair) for pair in real]
    try:
        cache.advance(6) if method == "advance" else cache.truncate(10)
        cache.settle()
    except KeyboardInterrupt:
        assert successes < 6
    else:
        assert successes >= 6, "all six arrays have new tokens"
    cache.newest = real
    assert same(state(want), state(cache))
    for one in (cache, want):
        feed(one, *some_pair(9, seed=2))
    assert same(state(want), state(cache))


# attention


def slow_attention(query, keys, values, mask=None):
    """(B, H, T, D), (B, H, S, D) twice -> (B, H, T, D): the queries are the last T, in plain loops."""
    T, S = query.shape[2], keys.shape[2]
    out = np.zeros(query.shape)
    for b, h, i in np.ndindex(query.shape[:3]):
        visible = S - T + i + 1
        scores = keys[b, h, :visible].astype(np.float64) @ query[b, h, i].astype(np.float64) / D**0.5
        if mask is not None:
            scores = scores + mask[i, :visible]
        weights = np.exp(scores - scores.max())
        out[b, h, i] = weights / weights.sum() @ values[b, h, :visible].astype(np.float64)
    return out


@pytest.mark.parametrize(("bits", "symmetric"), KINDS)
@pytest.mark.parametrize("groups", [None, 2])
def test_attention_sees_the_old_as_stored_and_the_new_exactly(bits, symmetric, groups):
    cache = small_cache(bits, symmetric, layers=1)
    square = np.random.default_rng(9).normal(size=(LONGEST, LONGEST)).astype(np.float32)
    for seed, T in enumerate((3, 1, 1, 1, 1, 1, 12, 1, 1, 1, 1, 1, 1, 9, 1)):
        key, value = some_pair(T, seed=seed, offset=3)
        shape = (B, H, T, D) if groups is None else (B, H, groups, T, D)
        query = np.random.default_rng(100 + seed).normal(size=shape).astype(np.float32)
        n, old = cache.seq_pos, [x.data for x in cache.get(0)]
        both = [np.concatenate(pair, axis=2) for pair in zip(old, (key, value), strict=True)]
        for mask, its in ((None, None), (square, square[n : n + T, : n + T])):
            out = attention_with_cache(query, key, value, cache, 0, mask)
            assert isinstance(out, Tensor) and out.shape == shape and out.data.dtype == np.float32
            for g in range(groups or 1):
                part = (query, out.data) if groups is None else (query[:, :, g], out.data[:, :, g])
                assert np.abs(part[1] - slow_attention(part[0], *both, its)).max() < 1e-4
            assert cache.seq_pos == n
        cache.advance(T)


def test_bad_attention_input_changes_nothing():
    cache = small_cache()
    feed(cache, *some_pair(11))
    before, (key, value) = state(cache), some_pair(1)
    bad = key.copy()
    bad[0, 0, 0, 0] = np.nan
    for query, its_key, mask in (
        (key[:, :1], key, None),
        (key, bad, None),
        (key, key, np.zeros((3, 3))),
    ):
        with pytest.raises(ValueError, match=r"\d|nan"):
            attention_with_cache(query, its_key, value, cache, 0, mask)
        assert same(before, state(cache)) and cache.pending == [None] * L


# a model


def logits_through(model, cache, tokens, cuts):
    enable_kv_cache(model, cache)
    pieces = [model(piece).data for piece in np.split(tokens, cuts, axis=1)]
    disable_kv_cache(model)
    cache.reset()
    return np.concatenate(pieces, axis=1)


def test_a_model_in_any_pieces():
    model = Llama(31, 24, 2, num_heads=4, num_kv_heads=2, max_seq_len=80, seed=0)
    tokens = np.random.default_rng(0).integers(0, 31, (2, 70))
    whole = model(tokens).data
    for cuts, exact in (((), True), ((6,), True), ((30,), False), (range(1, 70), False), ((5, 6, 40), False)):
        errors = []
        for bits in (16, 8, 4):
            cache = QuantizedKVCache(2, 80, 2, 2, 6, bits, group_size=4, residual_length=6)
            got = logits_through(model, cache, tokens, cuts)
            errors.append(float(np.abs(got - whole).max()))
        if exact:  # the first piece is among the newest when the second is read
            assert max(errors) < 1e-4, f"pieces at {list(cuts)}: {errors}"
        else:
            assert 0 < errors[0] < errors[1] < errors[2], f"pieces at {list(cuts)}: {errors}"


def test_greedy_text_of_a_model_that_is_sure():
    """Through 8 bits and through 16 the tokens are the plain cache's; the cache may be used again at once."""
    model = Llama(31, 24, 2, num_heads=4, num_kv_heads=2, max_seq_len=80, seed=3)
    for p in model.parameters():
        p.data *= np.float32(2)
    prompt = np.random.default_rng(1).integers(0, 31, (2, 20))
    want = generate_with_cache(model, prompt, 40, temperature=0)
    for bits in (16, 8):
        cache = enable_kv_cache(model, QuantizedKVCache(2, 80, 2, 2, 6, bits))
        for _ in range(2):
            assert np.array_equal(model.generate(prompt, 40, temperature=0), want), f"{bits} bits"
        assert cache.num_quantized > 0 and cache.seq_pos == 59
        disable_kv_cache(model)


# bad input


@pytest.mark.parametrize(
    ("options", "kind", "said"),
    [
        ({"bits": 3}, ValueError, "3"),
        ({"bits": 32}, ValueError, "32"),
        ({"bits": 8.0}, TypeError, "8.0"),
        ({"bits": 4, "group_size": 5}, ValueError, "5"),
        ({"group_size": 0}, ValueError, "0"),
        ({"group_size": 33}, ValueError, "33.*32"),
        ({"group_size": 8, "residual_length": 7}, ValueError, "8.*7"),
        ({"residual_length": 0}, ValueError, "0"),
        ({"residual_length": "2"}, TypeError, "2"),
        ({"bits": 4, "residual_length": 1}, ValueError, "1"),
        ({"dtype": np.float16}, TypeError, "float16"),
        ({"dtype": np.int64}, TypeError, "int64"),
        ({"batch_size": 0}, ValueError, "0"),
        ({"max_seq_len": 1.5}, TypeError, "1.5"),
    ],
)
def test_sizes_that_make_no_cache(options, kind, said):
    sizes = {"batch_size": 1, "max_seq_len": 50, "num_layers": 1, "num_heads": 2, "head_dim": 3}
    with pytest.raises(kind, match=said):
        QuantizedKVCache(**(sizes | options))


def test_a_group_fits_the_residual_by_itself():
    assert QuantizedKVCache(1, 50, 1, 2, 3, 4, residual_length=9).group_size == 8
    assert QuantizedKVCache(1, 50, 1, 2, 3, 8, residual_length=9).group_size == 9
    assert QuantizedKVCache(1, 50, 1, 2, 3, 4).group_size == 32


def spoiled(number):
    key, value = some_pair(2)
    value[1, 2, 1, 0] = number
    return key, value


@pytest.mark.parametrize(
    ("layer_idx", "pair", "said"),
    [
        (2, some_pair(1), "2.*1"),
        (-1, some_pair(1), "-1"),
        (0, some_pair(1, rows=1), r"\(1, 3, 1, 5\).*\(2, 3, T, 5\)"),
        (0, some_pair(0), "0"),
        (0, some_pair(50), "50.*60"),
        (0, (some_pair(1)[0], some_pair(2)[1]), "2"),
        (0, spoiled(np.nan), "nan"),
        (0, spoiled(np.inf), "inf"),
        (0, spoiled(-np.inf), "inf"),
        (0, spoiled(-65536.0), "65536.*65504"),
        (1, spoiled(1e30), "65504"),
    ],
)
def test_bad_keys_and_values_are_refused_before_anything_is_written(layer_idx, pair, said):
    cache = small_cache(4)
    feed(cache, *some_pair(11, seed=4))
    before = state(cache)
    with pytest.raises(ValueError, match=said):
        cache.update(layer_idx, *pair)
    assert same(before, state(cache)) and cache.pending == [None] * L


def test_positions_stay_inside():
    cache = small_cache(4)
    feed(cache, *some_pair(17))
    before = state(cache)
    for call, number, kind in (
        (cache.advance, 44, ValueError),
        (cache.advance, 0, ValueError),
        (cache.advance, 1.0, TypeError),
        (cache.truncate, 18, ValueError),
        (cache.truncate, -1, ValueError),
        (cache.truncate, None, TypeError),
        (cache.reset, 0, ValueError),
        (cache.get, 2, ValueError),
        (cache.error_bound, 2, ValueError),
    ):
        with pytest.raises(kind, match=str(number)):
            call(number)
        assert same(before, state(cache))


def test_a_layer_that_wrote_nothing_cannot_commit():
    cache = small_cache(8)
    feed(cache, *some_pair(10))
    before = state(cache)
    cache.update(0, *some_pair(5, seed=1))
    with pytest.raises(ValueError, match="5.*layer 1 .*0"):
        cache.advance(5)
    assert same(before, state(cache))


def test_another_batch_size_needs_another_storage():
    cache = small_cache(4)
    feed(cache, *some_pair(30))
    nbytes = cache.nbytes
    cache.reset(6)
    assert (cache.batch_size, cache.seq_pos, cache.nbytes) == (6, 0, 3 * nbytes)
    feed(cache, *some_pair(30, rows=6))
    assert cache.get(1)[1].shape == (6, H, 30, D)
