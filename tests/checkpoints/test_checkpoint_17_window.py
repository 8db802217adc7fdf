"""Checkpoint 17: the sliding window, through the installed package only.

The oracles: attention in plain loops over absolute positions; a cache that stores unturned keys and turns all
of them by their place in what is left of the text; a list of tokens that remembers which were written over.
"""

import math
import tracemalloc
from time import perf_counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tinytorch.core.attention import scaled_dot_product_attention
from tinytorch.core.tensor import Tensor
from tinytorch.generation.kv_cache import (
    CacheBase,
    KVCache,
    attention_with_cache,
    disable_kv_cache,
    enable_kv_cache,
    generate_with_cache,
)
from tinytorch.generation.window import (
    SlidingWindowKVCache,
    attend_in_window,
    more_positions,
    seen_positions,
    sink_correction,
    slots_of,
    window_mask,
)
from tinytorch.models.llama import Llama, RotaryPositions
from tinytorch.models.transformer import GPT

B, H, G, D, L = 2, 3, 4, 6, 5  # every axis another size
WINDOWS = [(1, 0), (1, 2), (4, 0), (4, 2), (3, 5), (9, 1), (50, 2)]  # window, sinks


def sees(p: int, q: int, window: int, num_sinks: int) -> bool:
    """The rule."""
    return q <= p and (q > p - window or q < num_sinks)


def random(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def turned(x, position, base=10000.0):
    """(D,) -> (D,): numbers i and i + D / 2 turned as one complex number, by the angle of `position`."""
    half = len(x) // 2
    spin = np.exp(1j * position * base ** (-np.arange(half) / half))
    z = (x[:half].astype(np.float64) + 1j * x[half:]) * spin
    return np.concatenate([z.real, z.imag])


def slow_attention(query, key, value, window, num_sinks, near=None, mask=None):
    """Unturned (B, H, G, T, D), (B, H, T, D) twice, of a whole text -> (B, H, G, T, D), one query at a time.

    near: None without rotary positions, False with those of the text, True with those of the cache, where
    what is left is counted from 0. mask: added, (T, T).
    """
    answer = np.zeros(query.shape)
    for b, h, g, p in np.ndindex(*query.shape[:-1]):
        left = [q for q in range(p + 1) if sees(p, q, window, num_sinks)]
        scores = []
        for place, q in enumerate(left):
            asks, asked = query[b, h, g, p], key[b, h, q]
            if near is not None:
                here, there = (len(left) - 1, place) if near else (p, q)
                asks, asked = turned(asks, here), turned(asked, there)
            extra = 0 if mask is None else float(mask[p, q])
            scores.append(float(np.dot(asks, asked)) / math.sqrt(query.shape[-1]) + extra)
        shares = np.exp(np.array(scores) - max(scores))
        answer[b, h, g, p] = shares @ value[b, h, left] / shares.sum()
    return answer


def all_turned(x):
    """(..., T, D) -> the same, each turned by its position."""
    return np.stack(
        [np.apply_along_axis(turned, -1, x[..., p, :], p) for p in range(x.shape[-2])], axis=-2
    ).astype(np.float32)


def new_cache(window=4, num_sinks=2, kind=SlidingWindowKVCache, **sizes):
    sizes = {"batch_size": B, "max_seq_len": 60, "num_layers": L, "num_heads": H, "head_dim": D, **sizes}
    return kind(**sizes, window=window, num_sinks=num_sinks)


def fed(cache, query, key, value, chunks, mask=None, layers=(0,)):
    """What attention answers, layer by layer the same, with the text cut at `chunks`."""
    parts, T = [], key.shape[2]
    for start, stop in zip([0, *chunks], [*chunks, T], strict=True):
        part = None if mask is None else mask[start:stop, :stop]
        for layer in layers:
            new = (x[:, :, start:stop] for x in (key, value))
            answer = attention_with_cache(query[..., start:stop, :], *new, cache, layer, part)
        parts.append(answer.data)
        cache.advance(stop - start)
    return np.concatenate(parts, axis=-2)


# the three functions below everything


@pytest.mark.parametrize(("window", "num_sinks"), WINDOWS)
def test_the_mask_is_the_rule(window, num_sinks):
    rng = np.random.default_rng(window)
    queries, keys = rng.permutation(70)[:11], rng.permutation(70)[:23]
    mask = window_mask(queries, keys, window, num_sinks)
    want = [[0 if sees(p, q, window, num_sinks) else -np.inf for q in keys] for p in queries]
    assert mask.dtype == np.float32 and mask.tolist() == want


@pytest.mark.parametrize(("window", "num_sinks"), WINDOWS)
def test_who_is_asked_for_and_where_it_lies(window, num_sinks):
    for first in range(0, 60, 7):
        for last in (first + 1, first + 2, first + 9):
            want = [q for q in range(last) if any(sees(p, q, window, num_sinks) for p in range(first, last))]
            assert seen_positions(first, last, window, num_sinks).tolist() == want
    owners = {}
    for q in range(60):
        slot = int(slots_of(q, window, num_sinks))
        assert 0 <= slot < window + num_sinks and (q >= num_sinks or slot == q)
        assert owners.get(slot, q - window) == q - window, "a slot passes to the one a window younger"
        assert slot in owners or slot == len(owners), "slots are taken one after the other"
        owners[slot] = q
    assert slots_of([[1, 2], [30, 4]], window, num_sinks).shape == (2, 2)


def test_far_positions_cost_nothing():
    far = 10**13
    assert seen_positions(far, far + 2, 3, 1).tolist() == [0, far - 2, far - 1, far, far + 1]
    assert slots_of(far, 7, 3) == 3 + (far - 3) % 7


# exact under the rule


@pytest.mark.parametrize("chunks", [(), (1,), range(1, 21), (7, 8, 14), (2, 11, 12, 13, 19), (20,)])
@pytest.mark.parametrize(("window", "num_sinks"), WINDOWS)
def test_attention_is_that_of_a_slow_masked_one(window, num_sinks, chunks):
    query, (key, value) = random(1, 2, 2, 21, 4), random(2, 1, 2, 21, 4, seed=1)
    mask = random(21, 21, seed=2)
    for added in (None, mask):
        cache = new_cache(window, num_sinks, batch_size=1, num_heads=2, head_dim=4, num_layers=1)
        got = fed(cache, query, key, value, chunks, added)
        want = slow_attention(query, key, value, window, num_sinks, mask=added)
        assert got.dtype == np.float32 and np.allclose(got, want, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("near", [False, True])
@pytest.mark.parametrize(("window", "num_sinks"), WINDOWS)
def test_both_conventions_of_rotary_positions(window, num_sinks, near):
    query, (key, value) = random(1, 2, 3, 33, 6, seed=3), random(2, 1, 2, 33, 6, seed=4)
    want = slow_attention(query, key, value, window, num_sinks, near)
    for chunks in ((), range(1, 33), (5, 6, 7, 25)):
        sizes = {"batch_size": 1, "num_heads": 2, "head_dim": 6, "num_layers": 1, "max_seq_len": 33}
        cache = new_cache(window, num_sinks, **sizes, rotary=RotaryPositions(6, 33) if near else None)
        got = fed(cache, all_turned(query), all_turned(key), value, chunks)
        assert np.allclose(got, want, rtol=1e-4, atol=2e-5)


def test_batches_groups_and_masks_of_every_shape():
    T = 17
    query, (key, value) = random(B, H, G, T, D), random(2, B, H, T, D, seed=1)
    whole = random(60, 60, seed=2)
    masks = {"(S, S)": whole, "(B, 1, T, S)": random(B, 1, T, T, seed=3), "(1, S)": random(1, T, seed=4)}
    masks |= {
        "(H, T, S)": random(H, T, T, seed=7),
        "(B, H, 1, S)": random(B, H, 1, T, seed=5),
        "(B, H, T, 1)": random(B, H, T, 1, seed=6),
    }
    for rotary in (None, RotaryPositions(D, 60)):
        for name, mask in masks.items():
            for group in (query, query[:, :, 0]):
                once = attention_with_cache(group, key, value, new_cache(rotary=rotary), 0, mask)
                cache, parts = new_cache(rotary=rotary, num_layers=1), []
                for t in range(T):
                    rows = mask if mask.shape[-2] != T else mask[..., t : t + 1, :]
                    rows = rows if name == "(S, S)" or rows.shape[-1] == 1 else rows[..., : t + 1]
                    new = (x[..., t : t + 1, :] for x in (group, key, value))
                    parts.append(attention_with_cache(*new, cache, 0, rows).data)
                    cache.advance()
                assert once.shape == group.shape
                assert np.allclose(once.data, np.concatenate(parts, axis=-2), atol=1e-5), name
    for t, b in ((3, 0), (16, 1)):  # and one of them by the rule
        scores = np.full(T, -np.inf)
        for q in range(t + 1):
            if sees(t, q, 4, 2):
                scores[q] = (
                    query[b, 1, 2, t] @ key[b, 1, q] / math.sqrt(D) + masks["(B, H, 1, S)"][b, 1, 0, q]
                )
        shares = np.exp(scores - scores.max())
        got = attention_with_cache(query, key, value, new_cache(), 0, masks["(B, H, 1, S)"])
        assert np.allclose(got.data[b, 1, 2, t], shares @ value[b, 1] / shares.sum(), atol=1e-5)


@pytest.mark.parametrize(("dtype", "bound"), [(np.float16, 5e-3), (np.float64, 1e-5)])
def test_other_types_are_near_float32(dtype, bound):
    query, (key, value) = random(B, H, G, 25, D), random(2, B, H, 25, D, seed=1)
    rotary = RotaryPositions(D, 60)
    for chunks in (range(1, 25), (6, 18)):
        got, want = (
            fed(new_cache(dtype=kind, rotary=rotary, num_layers=1), query, key, value, chunks)
            for kind in (dtype, np.float32)
        )
        assert np.abs(got - want).max() < bound


def test_attend_in_window_asks_add_by_position_and_takes_any_block():
    query, key, value = random(9, 4), random(14, 4, seed=1), random(14, 3, seed=2)
    extra, asked = random(29, 29, seed=3), []

    def add(queries, keys):
        asked.append((min(queries), max(queries)))
        return extra[np.asarray(queries)[:, None], np.asarray(keys)]

    answers = [attend_in_window(query, key, value, 20, 4, 2, add, block) for block in (1, 4, 100)]
    assert asked == [(p, p) for p in range(20, 29)] + [(20, 23), (24, 27), (28, 28), (20, 28)]
    positions = seen_positions(20, 29, 4, 2).tolist()
    for t in range(9):
        left = [i for i, q in enumerate(positions) if sees(20 + t, q, 4, 2)]
        scores = [query[t] @ key[i] / 2 + extra[20 + t, positions[i]] for i in left]
        shares = np.exp(np.array(scores) - max(scores))
        for answer in answers:
            assert np.allclose(answer[t], shares @ value[left] / shares.sum(), atol=1e-5)


def test_the_correction_is_the_difference_of_two_scores():
    tables = RotaryPositions(D, 50).tables
    query, sinks = random(2, 3, 1, 4, D), random(2, 1, 1, 5, D, seed=1)
    at, shift = (4, 17, 30, 49), np.array([0, 3, 29, 40])
    placed = np.stack(
        [np.apply_along_axis(turned, -1, query[..., t, :], p) for t, p in enumerate(at)], axis=-2
    )
    near = np.stack(
        [np.apply_along_axis(turned, -1, query[..., t, :], p - shift[t]) for t, p in enumerate(at)], axis=-2
    )
    got = sink_correction(placed.astype(np.float32), sinks, shift, tables)
    assert got.shape == (2, 3, 1, 4, 5)
    assert np.allclose(got, (near - placed) @ sinks.swapaxes(-1, -2) / math.sqrt(D), atol=1e-5)


# any sequence of operations


class ListOfTokens:
    """Every token's key, for each layer, and who was written over."""

    def __init__(self, window, num_sinks):
        self.window, self.num_sinks = window, num_sinks
        self.tokens, self.holder, self.seq_pos = [], {}, 0

    def slot(self, q):
        return q if q < self.num_sinks else (q - self.num_sinks) % self.window + self.num_sinks

    def write(self, start, stop):
        for q in range(start, stop):
            self.holder[self.slot(q)] = q

    def left(self):
        """What the next token will see besides itself."""
        return [q for q in range(self.seq_pos) if sees(self.seq_pos, q, self.window, self.num_sinks)]

    def can_keep(self, n):
        needed = [q for q in range(n) if sees(n, q, self.window, self.num_sinks)]
        return all(self.holder[self.slot(q)] == q for q in needed)


operations = st.lists(
    st.one_of(
        st.tuples(st.just("write"), st.integers(1, 14)),
        st.tuples(st.just("write"), st.just(1)),
        st.tuples(st.just("fail"), st.integers(1, 14)),
        st.tuples(st.just("back"), st.integers(1, 3)),
        st.tuples(st.just("truncate"), st.integers(-1, 61)),
        st.tuples(st.just("advance other"), st.integers(2, 5)),
        st.tuples(st.just("bad"), st.just(0)),
        st.tuples(st.just("reset"), st.just(0)),
    ),
    max_size=14,
)


@settings(max_examples=150, deadline=None)
@given(st.sampled_from(WINDOWS), operations)
def test_any_sequence_of_operations_matches_a_list(sizes, sequence):
    """Writes, failures half way, rewinds and resets; layer 1 shows what is visible, exactly and in order."""
    window, num_sinks = sizes
    cache, oracle, step = new_cache(window, num_sinks, num_layers=2), ListOfTokens(window, num_sinks), 0
    nbytes = cache.nbytes
    for operation, n in sequence:
        step += 1
        new = random(2, 2, B, H, max(n, 1), D, seed=step)  # of layer 0 and 1
        before = oracle.seq_pos
        if operation in ("write", "fail") and n > 60 - before:
            with pytest.raises(ValueError, match="60"):
                cache.update(0, *new[0])
        elif operation == "write":
            for layer in (0, 1):
                shown = cache.update(layer, *new[layer])
            tokens = oracle.tokens[:before] + [new[1, :, :, :, t] for t in range(n)]
            visible = [
                q
                for q in range(before + n)
                if any(sees(p, q, window, num_sinks) for p in range(before, before + n))
            ]
            if n == 1:
                visible.sort(key=oracle.slot)
            for i, array in enumerate(shown):
                assert np.array_equal(array.data, np.stack([tokens[q][i] for q in visible], axis=2))
            cache.advance(n)
            oracle.tokens, oracle.seq_pos = tokens, before + n
            oracle.write(before, before + n)
        elif operation == "fail":
            cache.update(0, *new[0])
        elif operation == "advance other" and n < 60 - before:
            cache.update(0, *new[0])
            with pytest.raises(ValueError, match=str(n)):
                cache.advance(n + 1)
        elif operation == "bad":
            with pytest.raises(ValueError, match=str(H)):
                cache.update(0, *(x[:, :1] for x in new[0]))
        elif operation == "reset":
            cache.reset()
            oracle = ListOfTokens(window, num_sinks)
        elif operation in ("back", "truncate"):
            kept = before - n if operation == "back" else n
            if not 0 <= kept <= before:
                with pytest.raises(ValueError, match=r"\d"):
                    cache.truncate(kept)
            elif oracle.can_keep(kept):
                cache.truncate(kept)
                oracle.seq_pos = kept
                oracle.tokens = oracle.tokens[:kept]
            else:
                with pytest.raises(ValueError, match=rf"{kept}.*\d"):
                    cache.truncate(kept)
        assert cache.seq_pos == oracle.seq_pos and cache.nbytes == nbytes
        left = oracle.left()
        assert cache.positions.tolist() == left
        for i, array in enumerate(cache.get(1)):
            want = [oracle.tokens[q][i] for q in left]
            assert np.array_equal(array.data, np.stack(want, axis=2) if want else np.zeros((B, H, 0, D)))


@pytest.mark.parametrize(("window", "num_sinks"), WINDOWS[:-1])
@pytest.mark.parametrize("chunks", [[1] * 14, [14], [5, 1, 1, 7], [6, 8], [13, 1]])
def test_a_rewind_is_exact_or_refused(window, num_sinks, chunks):
    """Every rewind, after a text that came in chunks, and with a token written and not committed."""
    tokens = random(2, B, H, 16, D)
    for kept in range(15):
        for more in (0, 1):
            cache, oracle = new_cache(window, num_sinks, num_layers=1), ListOfTokens(window, num_sinks)
            for T in [*chunks, *[1] * more]:
                start = cache.seq_pos
                cache.update(0, *tokens[:, :, :, start : start + T])
                if start < 14:
                    oracle.write(start, start + T)
                    cache.advance(T)
            if not oracle.can_keep(kept):
                with pytest.raises(ValueError, match=rf"{kept}.*\d"):
                    cache.truncate(kept)
                assert cache.seq_pos == 14
                continue
            cache.truncate(kept)
            left = [q for q in range(kept) if sees(kept, q, window, num_sinks)]
            for shown, text in zip(cache.get(0), tokens, strict=True):
                assert np.array_equal(shown.data, text[:, :, left])
            for q in range(kept, 14):  # and it goes on
                cache.update(0, *tokens[:, :, :, q : q + 1])
                cache.advance()
            left = [q for q in range(14) if sees(14, q, window, num_sinks)]
            assert np.array_equal(cache.get(0)[1].data, tokens[1][:, :, left])


def test_a_failed_pass_loses_nothing():
    """Any number of failed passes, of any size, between two that succeed: the answers are the same."""
    query, (key, value) = random(B, H, G, 30, D), random(2, B, H, 30, D, seed=1)
    want = fed(new_cache(), query, key, value, range(3, 30), layers=range(L))
    cache, parts, start = new_cache(), [], 0
    rng = np.random.default_rng(0)
    for stop in (3, 4, 5, 11, 12, 20, 21, 22, 23, 30):
        for T in rng.integers(1, 9, 4):
            for layer in range(rng.integers(1, L + 1)):
                junk = random(3, B, H, T, D, seed=int(T))
                attention_with_cache(*junk, cache, layer)
        for layer in range(L):
            new = (x[..., start:stop, :] for x in (query, key, value))
            answer = attention_with_cache(*new, cache, layer)
        cache.advance(stop - start)
        parts.append(answer.data)
        start = stop
    assert np.allclose(np.concatenate(parts, axis=3), want, atol=1e-5)


@pytest.mark.parametrize("layer", range(L))
def test_committing_may_be_interrupted(layer):
    """What was committed is there even if writing it was stopped in the middle of the layers."""
    cache, whole = new_cache(), random(L, 2, B, H, 19, D)
    for start, stop in ((0, 9), (9, 19)):
        for i in range(L):
            cache.update(i, *whole[i, :, :, :, start:stop])
        if start == 0:
            cache.advance(9)
    arrays = cache.arrays()
    for array in arrays[2 * layer : 2 * layer + 2]:
        array.setflags(write=False)
    cache.advance(10)
    for _ in range(2):
        with pytest.raises(ValueError, match="read-only"):
            cache.get(0)
    for array in arrays:
        array.setflags(write=True)
    for i in range(L):
        for shown, text in zip(cache.get(i), whole[i], strict=True):
            assert np.array_equal(shown.data, text[:, :, [0, 1, 16, 17, 18]])
    with pytest.raises(ValueError, match="18|15"):
        cache.truncate(17)


@pytest.mark.parametrize("spare", [1, 3, 8])
@pytest.mark.parametrize("chunks", [[40], [1] * 40, [7, 1, 1, 20, 1, 10]])
def test_spare_slots_make_a_rewind_exact(spare, chunks):
    """Up to so many tokens, wherever the ring stands, and again and again; then it goes on as a new text."""
    texts = random(2, 3, B, H, 60, D, seed=1)
    for window, num_sinks in ((4, 2), (1, 0), (5, 0)):
        for back in range(1, spare + 1):
            cache = new_cache(window, num_sinks, spare=spare)
            assert cache.capacity == window + num_sinks + spare
            parts = [*chunks, -back, 3, -min(3, spare), 1, 2]
            mixed = texts[0].copy()
            for turn, n in enumerate(parts):
                start = cache.seq_pos
                if n < 0:
                    cache.truncate(start + n)
                    continue
                text = texts[int(turn >= len(chunks))]
                mixed[..., start : start + n, :] = text[..., start : start + n, :]
                for layer in range(L):
                    new = mixed[:, :, :, start : start + n]
                    got = attention_with_cache(*new, cache, layer)
                cache.advance(n)
                keys = np.arange(start + n)
                rule = np.array(
                    [
                        [0 if sees(p, q, window, num_sinks) else -np.inf for q in keys]
                        for p in range(start, start + n)
                    ]
                )
                want = scaled_dot_product_attention(
                    Tensor(mixed[0][:, :, start : start + n]),
                    Tensor(mixed[1][:, :, : start + n]),
                    Tensor(mixed[2][:, :, : start + n]),
                    rule.astype(np.float32),
                )
                assert np.allclose(got.data, want.data, atol=1e-5)


# in front of models


def small_llama(**more):
    model = Llama(
        19, 24, 3, num_heads=4, num_kv_heads=2, max_seq_len=80, seed=0, **({"rope_base": 300.0} | more)
    )
    rng = np.random.default_rng(1)
    for p in model.parameters():
        p.data += rng.normal(0, 0.1, p.shape).astype(np.float32)
    return model


def small_gpt():
    model = GPT(19, 24, 3, 4, 80, seed=0)
    rng = np.random.default_rng(1)
    for p in model.parameters():
        p.data += rng.normal(0, 0.1, p.shape).astype(np.float32)
    return model


def cache_for(model, window, num_sinks, batch_size=1, near=False, room=None):
    attention = model.blocks[0].attention
    heads = getattr(attention, "num_kv_heads", attention.num_heads)
    return SlidingWindowKVCache(
        batch_size,
        room or model.max_seq_len,
        len(model.blocks),
        heads,
        attention.head_dim,
        window,
        num_sinks,
        rotary=model.position_embedding if near else None,
    )


def masked_logits(model, tokens, window, num_sinks):
    """The model without a cache, with the rule as a mask in each block."""
    T = tokens.shape[1]
    rule = np.array([[0 if sees(p, q, window, num_sinks) else -np.inf for q in range(T)] for p in range(T)])

    def masked(inner, x, mask=None, *where, **named):
        return inner(x, rule.astype(np.float32), *where, **named)

    for block in model.blocks:
        block.wrap("forward", masked)
    logits = model(tokens).data
    for block in model.blocks:
        block.unwrap("forward", masked)
    return logits


@pytest.mark.parametrize("make", [small_llama, small_gpt])
@pytest.mark.parametrize(("window", "num_sinks"), [(5, 0), (5, 2), (1, 1), (90, 3)])
def test_models_answer_as_with_the_mask(make, window, num_sinks):
    model, tokens = make(), np.random.default_rng(0).integers(0, 19, (3, 40))
    want = masked_logits(model, tokens, window, num_sinks)
    cache = enable_kv_cache(model, cache_for(model, window, num_sinks, batch_size=3))
    for cuts in ((), (39,), range(1, 40), (3, 4, 10, 28)):
        cache.reset()
        got = np.concatenate([model(part).data for part in np.split(tokens, cuts, axis=1)], axis=1)
        assert np.abs(got - want).max() < 1e-4
    disable_kv_cache(model)


@pytest.mark.parametrize("near", [False, True])
def test_while_the_window_is_not_full_it_is_the_plain_cache(near):
    model, prompt = small_llama(), np.random.default_rng(0).integers(0, 19, (2, 9))
    plain = generate_with_cache(model, prompt, 20, temperature=0)
    enable_kv_cache(model, cache_for(model, 30, 4, batch_size=2, near=near))
    assert np.array_equal(model.generate(prompt, 20, temperature=0), plain)
    assert np.array_equal(model.generate(prompt, 20, temperature=0), plain), "and again, with the same cache"
    disable_kv_cache(model)


def test_rows_of_different_lengths():
    """Padding stands in front; each row is as alone, also when its window moves."""
    model, prompt = small_llama(), np.random.default_rng(0).integers(0, 19, (3, 9))
    lengths, options = [4, 9, 6], {"temperature": 0}
    enable_kv_cache(model, cache_for(model, 7, 0, batch_size=3))
    together = model.generate(prompt, 25, lengths=lengths, **options)
    enable_kv_cache(model, cache_for(model, 7, 0))
    for row, (n, text) in enumerate(zip(lengths, together, strict=True)):
        alone = model.generate(prompt[row : row + 1, :n], 25, **options)[0]
        assert np.array_equal(alone, text[: n + 25])
    disable_kv_cache(model)


def test_training_goes_past_the_cache():
    model, tokens = small_llama(), np.arange(12)[None]
    plain = model(tokens).data
    cache = enable_kv_cache(model, cache_for(model, 4, 1))
    model.train()
    assert np.array_equal(model(tokens).data, plain) and cache.seq_pos == 0
    disable_kv_cache(model)


# more positions


def test_more_positions_are_the_model_as_if_it_had_been_made_with_them():
    tokens = np.random.default_rng(0).integers(0, 19, (2, 120))
    model, wide = small_llama(), small_llama()
    wide.max_seq_len, wide.position_embedding.tables = 120, RotaryPositions(6, 120, 300.0).tables
    with pytest.raises(ValueError, match="80"):
        model(tokens)
    weights = {name: p.copy() for name, p in model.state_dict().items()}
    rotary = model.position_embedding
    more_positions(model, 120)
    assert model.max_seq_len == 120 and model.position_embedding is rotary
    assert np.array_equal(model(tokens).data, wide(tokens).data)
    assert all(np.array_equal(weights[name], p) for name, p in model.state_dict().items())
    for wrong in (119, 0, -1):
        with pytest.raises(ValueError, match=r"\d"):
            more_positions(model, wrong)
    with pytest.raises(TypeError):
        more_positions(model, 200.0)
    with pytest.raises(TypeError, match="GPT"):
        more_positions(small_gpt(), 100)
    assert model.max_seq_len == 120 and len(rotary.tables[0]) == 120


def test_a_model_that_turns_more_slowly_does_so_at_more_positions_too():
    tokens, sizes = np.random.default_rng(0).integers(0, 19, (1, 40)), dict(num_heads=2, seed=0)
    short, long = (
        Llama(19, 12, 2, max_seq_len=n, rope_base=300.0, rope_factors=[1, 2, 8], **sizes) for n in (20, 40)
    )
    more_positions(short, 40)
    assert np.array_equal(short(tokens).data, long(tokens).data)


# memory and time


def test_memory_is_that_of_the_window_whatever_the_length():
    for window, num_sinks in WINDOWS:
        for length in (60, 10_000):
            cache = new_cache(window, num_sinks, max_seq_len=length)
            slots = min(length, window + num_sinks)
            assert cache.capacity == slots and len(cache.arrays()) == 2 * L
            assert cache.nbytes == 2 * L * B * H * slots * D * 4
            usage = cache.get_memory_usage()
            assert usage["total_mb"] == cache.nbytes / 1e6 and usage["utilization"] == 0
            assert usage["bytes_per_token"] == 2 * L * H * D * 4
    half = new_cache(dtype=np.float16)
    assert half.nbytes * 2 == new_cache().nbytes
    for layer in range(L):
        shown = half.update(layer, *random(2, B, H, 3, D))[0]
    assert shown.dtype == np.float16
    ids = [id(array) for array in half.arrays()]
    half.advance(3)
    half.truncate(1)
    half.reset()
    assert [id(array) for array in half.arrays()] == ids, "allocated once"
    half.reset(batch_size=4)
    assert half.batch_size == 4 and half.nbytes == new_cache().nbytes


def test_a_long_prompt_leaves_a_window_and_takes_no_square_of_its_length():
    T, window = 6000, 16
    cache = SlidingWindowKVCache(1, T, 4, 1, 4, window, 2)
    query, (key, value) = random(1, 1, T, 4), random(2, 1, 1, T, 4, seed=1)
    attention_with_cache(query[:, :, :9], key[:, :, :9], value[:, :, :9], cache, 0)
    tracemalloc.start()
    try:
        for layer in range(4):
            attention_with_cache(query, key, value, cache, layer)
        left, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    one = key.nbytes + value.nbytes
    assert left < one / 4, "between the layers only what stays is kept, not the prompt of each layer"
    assert peak < 12 * one < T * T, "T * T scores would be 144 MB"
    cache.advance(T)
    assert cache.positions.tolist() == [0, 1, *range(T - window + 1, T)]


def test_ten_thousand_tokens_at_constant_work():
    """The keys that a token meets, the bytes, and the time: against a cache whose window has just filled."""
    model, window, sinks, new = Llama(11, 8, 1, num_heads=2, max_seq_len=64, seed=0), 64, 4, 10_000
    more_positions(model, new + 500)
    old, young = (cache_for(model, window, sinks, near=True) for _ in "ab")
    enable_kv_cache(model, old)
    rng = np.random.default_rng(0)
    tokens, met, nbytes = rng.integers(0, 11, (new + 400, 1, 1)), set(), old.nbytes

    def update(layer_idx, key, value):
        shown = SlidingWindowKVCache.update(old, layer_idx, key, value)
        met.add(shown[0].shape)
        return shown

    for token in tokens[: window + sinks]:
        model.hidden_states(token)
    old.update = update
    for token in tokens[window + sinks : new]:
        model.hidden_states(token)
    del old.update
    assert old.seq_pos == new and old.nbytes == nbytes
    assert met == {(1, 2, window + sinks, 4)}, "each token meets all slots, and there are no more"
    enable_kv_cache(model, young)
    model.hidden_states(tokens[: window + sinks, 0].T)
    seconds = {"old": [], "young": []}
    for token in tokens[new : new + 200]:  # in turn, so that a busy machine is busy for both
        for name, cache in (("old", old), ("young", young)):
            enable_kv_cache(model, cache)
            started = perf_counter()
            model.hidden_states(token)
            seconds[name].append(perf_counter() - started)
    disable_kv_cache(model)
    ends = {name: float(np.median(times)) for name, times in seconds.items()}
    assert ends["old"] < 3 * ends["young"], f"median seconds of a token after 10,000 and after 70: {ends}"
    assert np.isfinite(old.get(0)[0].data).all() and old.nbytes == young.nbytes == nbytes


# bad input


def test_it_is_a_cache_like_the_others():
    cache = new_cache()
    assert isinstance(cache, CacheBase) and repr(cache).startswith("SlidingWindowKVCache(0/60 tokens")
    for name in ("update", "get", "advance", "truncate", "reset", "get_memory_usage", "attend"):
        assert callable(getattr(cache, name))
    plain = KVCache(B, 60, L, H, D)
    assert set(cache.get_memory_usage()) == set(plain.get_memory_usage())
    shown = cache.update(np.int64(1), Tensor(random(B, H, 1, D)), random(B, H, 1, D))
    assert all(isinstance(x, Tensor) for x in (*shown, *cache.get(1)))
    assert np.shares_memory(shown[0].data, cache.arrays()[2]), "one token is shown without a copy"


@pytest.mark.parametrize(
    ("sizes", "kind"),
    [
        ({"window": 0}, ValueError),
        ({"window": -3}, ValueError),
        ({"window": 2.5}, TypeError),
        ({"num_sinks": -1}, ValueError),
        ({"num_sinks": "4"}, TypeError),
        ({"max_seq_len": 0}, ValueError),
        ({"head_dim": 0}, ValueError),
        ({"dtype": np.int8}, TypeError),
        ({"rotary": "near"}, TypeError),
        ({"rotary": RotaryPositions(D, 59)}, ValueError),
        ({"rotary": RotaryPositions(D + 2, 60)}, ValueError),
    ],
)
def test_sizes_that_no_cache_can_have(sizes, kind):
    with pytest.raises(kind):
        new_cache(**({"window": 4, "num_sinks": 2} | sizes))


def test_bad_input_changes_nothing():
    cache = new_cache()
    for layer in range(L):
        cache.update(layer, *random(2, B, H, 9, D, seed=layer))
    cache.advance(9)
    before = cache.seq_pos, [array.copy() for array in cache.arrays()]
    good = random(2, B, H, 2, D)
    for call in (
        lambda: cache.update(L, *good),
        lambda: cache.update(-1, *good),
        lambda: cache.update(0.0, *good),
        lambda: cache.update(0, good[0], good[1][:, :, :1]),
        lambda: cache.update(0, *good[:, :, :1]),
        lambda: cache.update(0, *good[:, :1]),
        lambda: cache.update(0, *good[..., :1]),
        lambda: cache.update(0, *good[:, :, :, :0]),
        lambda: cache.update(0, *good[:, 0]),
        lambda: cache.update(0, *random(2, B, H, 52, D)),
        lambda: cache.get(L),
        lambda: cache.get("0"),
        lambda: cache.advance(0),
        lambda: cache.advance(52),
        lambda: cache.advance(1.5),
        lambda: cache.truncate(10),
        lambda: cache.truncate(7),
        lambda: cache.truncate(-1),
        lambda: cache.reset(0),
        lambda: attention_with_cache(random(B, H, 1, D), *good, cache, 0),
        lambda: attention_with_cache(random(B, H, 2, D), *good, cache, 0, np.zeros((2, 10))),
        lambda: attention_with_cache(random(B, H, 2, D), *good, cache, 0, np.zeros((2, 11), bool)),
    ):
        with pytest.raises((ValueError, TypeError)):
            call()
        assert cache.seq_pos == before[0] and cache.batch_size == B
        assert all(np.array_equal(a, b) for a, b in zip(cache.arrays(), before[1], strict=True))


def test_a_token_written_twice_leaves_what_lay_in_its_slot():
    """The second attempt must not take the first one for the key that it forgets."""
    rng = np.random.default_rng(3)
    cache = SlidingWindowKVCache(1, 20, num_layers=1, num_heads=1, head_dim=2, window=3)
    pairs = [tuple(rng.normal(size=(1, 1, 1, 2)).astype(np.float32) for _ in range(2)) for _ in range(8)]
    for pair in pairs[:6]:
        cache.update(0, *pair)
        cache.advance()
    for pair in pairs[6:]:
        cache.update(0, *pair)  # in the slot of token 3
    cache.truncate(5)  # the next token sees 3 and 4
    for got, *kept in zip(cache.get(0), *pairs[3:5], strict=True):
        want = np.concatenate(kept, axis=2)
        assert np.array_equal(got.data, want), f"token 3 should be back: {want}, got {got.data}"
