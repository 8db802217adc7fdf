"""Rows of different lengths in one batch: each as if it were alone, padded on either side, cached or not."""

import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tinytorch.core.layers import Module
from tinytorch.core.tensor import Tensor
from tinytorch.generation.kv_cache import (
    KVCache,
    disable_kv_cache,
    enable_kv_cache,
    generate_with_cache,
)
from tinytorch.models.transformer import GPT, LanguageModel, padded, roll_rows

V, LONGEST = 19, 24
PADS = np.array([-100, -1, 0, 5, V, 2**40])  # in the vocabulary and far outside of it


def new_model(seed=0, layers=2, heads=2, head_dim=5, longest=LONGEST):
    """A GPT whose weights are large enough for its layers and its positions to matter."""
    model = GPT(V, heads * head_dim, layers, heads, longest, seed=seed)
    rng = np.random.default_rng(seed)
    for p in model.parameters():
        p.data[...] += rng.normal(0, 0.3, p.shape)
    return model


def objects_below(module):
    """Every module of a model with what it holds, to see whether anything was left behind."""
    yield id(module), {name: id(value) for name, value in vars(module).items()}
    for _, child in Module.children(module):
        yield from objects_below(child)


def new_rows(lengths, seed=0):
    rng = np.random.default_rng(seed)
    return [rng.integers(0, V, length) for length in lengths]


def pad(rows, width, side, seed=0):
    """Rows of their own lengths -> (B, width), and the pads that stand beside each."""
    rng = np.random.default_rng(seed)
    pads = [rng.choice(PADS, width - len(row)) for row in rows]
    both = [(p, row) if side == "left" else (row, p) for row, p in zip(rows, pads, strict=True)]
    return np.array([np.concatenate(pair) for pair in both]), pads


def laid_out(rows, news, pads, side):
    """What should come back: pad, prompt, new for the left side and prompt, new, pad for the right one."""
    order = [
        (p, row, new) if side == "left" else (row, new, p)
        for row, new, p in zip(rows, news, pads, strict=True)
    ]
    return np.array([np.concatenate(parts) for parts in order])


class Noted:
    """Around a model's `logits`: what it gave, for each position that was asked for."""

    def __init__(self):
        self.given = []

    def __call__(self, inner, hidden):
        out = inner(hidden)
        self.given.append(out.data.reshape(len(out.data), -1, V)[:, -1])  # (B, 1, V) or (B, V)
        return out


def written(model, prompt, new, **options):
    """-> the text, and the logits of every step, (n, B, V)."""
    noted = Noted()
    model.wrap("logits", noted)
    try:
        return model.generate(prompt, new, **options), np.array(noted.given)
    finally:
        model.unwrap("logits", noted)


def lengths_of(draw):
    B = draw(st.integers(1, 5))
    lengths = draw(st.lists(st.integers(1, 9), min_size=B, max_size=B))
    return lengths, max(lengths) + draw(st.integers(0, 3))


# every row as if it were alone


@settings(max_examples=40, deadline=None)
@given(st.data(), st.sampled_from(["left", "right"]), st.booleans())
def test_each_row_is_written_as_if_it_were_alone(data, side, cached):
    seed = data.draw(st.integers(0, 999))
    model = new_model(seed, layers=data.draw(st.integers(1, 3)), heads=data.draw(st.integers(1, 3)))
    lengths, width = lengths_of(data.draw)
    new = data.draw(st.integers(1, LONGEST - max(lengths)))
    rows = new_rows(lengths, seed)
    prompt, pads = pad(rows, width, side, seed)
    alone = [written(model, row[None], new, temperature=0) for row in rows]  # uncached: the oracle
    if cached:
        enable_kv_cache(model)
    text, logits = written(model, prompt, new, temperature=0, lengths=lengths, pad_side=side)
    want = laid_out(rows, [one[0, len(row) :] for (one, _), row in zip(alone, rows, strict=True)], pads, side)
    assert np.array_equal(text, want)
    assert logits.shape == (new, len(rows), V)
    for b, (_, one) in enumerate(alone):
        assert np.abs(logits[:, b] - one[:, 0]).max() < 1e-4, f"row {b} of {lengths}"


class Shares(np.random.Generator):
    """A generator that gives what stands in an array, (steps, B, 1)."""

    def __init__(self, numbers):
        super().__init__(np.random.PCG64(0))
        self.numbers = iter(numbers)

    def random(self, shape):
        return next(self.numbers).reshape(shape)


@settings(max_examples=20, deadline=None)
@given(st.data(), st.sampled_from(["left", "right"]), st.booleans())
def test_with_its_share_of_the_random_numbers_a_row_draws_what_it_draws_alone(data, side, cached):
    model = new_model(data.draw(st.integers(0, 99)))
    lengths, width = lengths_of(data.draw)
    rows = new_rows(lengths, width)
    prompt, pads = pad(rows, width, side)
    numbers = np.random.default_rng(data.draw(st.integers(0, 999))).random((10, len(rows), 1))
    options = dict(temperature=1.5, top_k=7, top_p=0.95)
    news = [
        model.generate(row[None], 10, rng=Shares(numbers[:, b : b + 1]), **options)[0, len(row) :]
        for b, row in enumerate(rows)
    ]
    if cached:
        enable_kv_cache(model)
    text = model.generate(prompt, 10, rng=Shares(numbers), lengths=lengths, pad_side=side, **options)
    assert np.array_equal(text, laid_out(rows, news, pads, side))


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("generate", [GPT.generate, generate_with_cache])
def test_each_row_stops_at_its_own_stop_token(side, generate):
    model, lengths, new = new_model(3), [2, 7, 4], 14
    rows = new_rows(lengths, 3)
    prompt, pads = pad(rows, 8, side)
    free = generate(model, prompt, new, temperature=0, lengths=lengths, pad_side=side)
    starts = [8 if side == "left" else len(row) for row in rows]
    news = [text[start : start + new].tolist() for text, start in zip(free, starts, strict=True)]
    ended = 0
    for stop in range(V):
        cut = [row[: row.index(stop) + 1] if stop in row else row for row in news]
        longest = max(len(row) for row in cut)
        ended += longest < new or any(len(row) < new for row in cut)
        cut = [np.array(row + [stop] * (longest - len(row))) for row in cut]
        got = generate(
            model, prompt, new, temperature=0, lengths=lengths, pad_side=side, stop_token=stop, rng=1
        )
        assert np.array_equal(got, laid_out(rows, cut, pads, side))
    assert ended, "no row met any stop token: this test has tried nothing"


def test_the_four_ways_give_the_same_rows_for_any_seed():
    model, lengths = new_model(4), [6, 1, 3]
    rows = new_rows(lengths)
    texts = []
    for side in ("left", "right"):
        prompt, _ = pad(rows, 7, side)
        for generate in (GPT.generate, generate_with_cache):
            text = generate(model, prompt, 12, top_k=5, rng=8, lengths=lengths, pad_side=side)
            starts = [7 - n if side == "left" else 0 for n in lengths]
            texts.append(
                [
                    text[b, s : s + n + 12].tolist()
                    for b, (s, n) in enumerate(zip(starts, lengths, strict=True))
                ]
            )
    assert texts.count(texts[0]) == 4


def test_full_rows_are_those_of_a_call_without_lengths():
    model = new_model(5)
    prompt = np.array(new_rows([6] * 4))
    want = model.generate(prompt, 9, rng=2)
    for side in ("left", "right"):
        for lengths in ([6] * 4, np.full(4, 6, np.uint64), (6,) * 4, Tensor(np.full(4, 6))):
            assert np.array_equal(model.generate(prompt, 9, rng=2, lengths=lengths, pad_side=side), want)
            assert np.array_equal(
                generate_with_cache(model, prompt, 9, rng=2, lengths=lengths, pad_side=side), want
            )


def test_no_new_tokens_and_other_forms_of_prompt():
    model = new_model()
    prompt = np.array([[1, 2, -7], [3, -8, -9]])
    assert model.generate(prompt, 0, lengths=[2, 1]).tolist() == prompt.tolist()
    text = model.generate(prompt, 3, temperature=0, lengths=[2, 1])
    assert text.dtype == np.int64 and text[:, -1].tolist() == [-7, -9] and text[1, -2] == -8
    assert prompt.tolist() == [[1, 2, -7], [3, -8, -9]], "the prompt that was passed in must stay as it is"
    for other in (prompt.tolist(), prompt.astype(np.int16), Tensor(prompt)):
        assert np.array_equal(model.generate(other, 3, temperature=0, lengths=[2, 1]), text)
    small = np.array([[1, 2, 200], [3, 0, 255]], np.uint8)
    want = model.generate(np.where(small > 18, 0, small).astype(int), 3, temperature=0, lengths=[2, 1])
    want[:, -1] = [200, 255]
    for unsigned in (small, small.astype(np.uint64)):
        text = model.generate(unsigned, 3, temperature=0, lengths=[2, 1])
        assert np.array_equal(text, want) and text.dtype == np.int64


def test_the_longest_row_may_fill_the_model_to_the_last_position():
    model = new_model()
    prompt, _ = pad(new_rows([20, 2]), 40, "right")
    for generate in (model.generate, lambda *a, **o: generate_with_cache(model, *a, **o)):
        assert generate(prompt, LONGEST - 20, lengths=[20, 2]).shape == (2, 40 + LONGEST - 20)
        with pytest.raises(ValueError, match=r"20 .*5 .*25.*24"):
            generate(prompt, 5, lengths=[20, 2])


def test_in_training_mode_the_rows_are_the_same_too():
    model = new_model(6)
    prompt, _ = pad(new_rows([5, 2, 8]), 9, "left")
    options = dict(temperature=0, lengths=[5, 2, 8], pad_side="left")
    want = model.generate(prompt, 10, **options)
    cache = enable_kv_cache(model)
    model.train()
    assert np.array_equal(model.generate(prompt, 10, **options), want) and cache.seq_pos == 0


# what the parts do


def test_logits_of_all_columns_in_any_pieces():
    """Not only the last column, and not through `generate`: every real token's logits are its own."""
    model, lengths = new_model(7), [9, 4, 1]
    rows = new_rows(lengths)
    alone = [model(row[None]).data[0] for row in rows]
    tokens = np.array([np.concatenate([np.zeros(9 - len(row), int), row]) for row in rows])
    padding = [0, 5, 8]

    def largest(logits):
        return max(np.abs(logits[b, p:] - alone[b]).max() for b, p in enumerate(padding))

    with padded(model, padding):
        assert largest(model(tokens).data) < 1e-4
        cache = enable_kv_cache(model)  # put on later, inside of the padding: they do not meet
        for cuts in ((), (4,), (5, 6, 7), range(1, 9)):
            cache.reset()
            pieces = [model(piece).data for piece in np.split(tokens, cuts, axis=1)]
            assert largest(np.concatenate(pieces, axis=1)) < 1e-4
        cache.truncate(6)
        assert np.abs(model(tokens[:, 6:]).data[:, -1] - [one[-1] for one in alone]).max() < 1e-4
    assert largest(model(tokens).data) > 1e-2, "without padding these rows mean something else"


def test_what_stands_in_the_pad_columns_changes_nothing_at_all():
    model, rows = new_model(8), new_rows([3, 8])
    texts = []
    for seed in range(4):
        prompt, _ = pad(rows, 10, "left", seed)
        texts.append(written(model, prompt, 6, temperature=0, lengths=[3, 8], pad_side="left")[1])
    assert all(np.array_equal(logits, texts[0]) for logits in texts), "to the last bit"


def test_columns_that_are_padding_in_every_row_are_not_read():
    model, read = new_model(), []
    for block in model.blocks:
        block.mlp.wrap("forward", lambda inner, x: read.append(x.shape[1]) or inner(x))
    prompt, _ = pad(new_rows([3, 2]), 15, "right")
    generate_with_cache(model, prompt, 3, lengths=[3, 2])
    assert read == [3, 3, 1, 1, 1, 1]


def test_without_lengths_nothing_stands_in_front_of_the_model():
    model, seen = new_model(), []
    before = dict(objects_below(model))

    def look(inner, *sizes, **named):
        seen.append(dict(objects_below(model)))
        return inner(*sizes, **named)

    model.wrap("decoder", look)
    model.generate([[1, 2]], 2)
    (now,) = seen
    assert all(now[key].keys() == held.keys() for key, held in before.items() if key != id(model))


def test_a_caller_s_own_mask_is_kept():
    model, seen = new_model(), []
    block = model.blocks[0]
    block.attention.wrap("forward", lambda inner, x, mask=None: seen.append(mask) or inner(x, mask))
    bias = np.arange(6, dtype=np.float32)
    with padded(model, [0, 2]):
        model.position_embedding(np.arange(6))
        block(Tensor(np.zeros((2, 6, 10))), bias)
    pads = np.zeros((2, 1, 1, 6), np.float32)
    pads[1, ..., :2] = -1e30
    assert np.array_equal(seen[0], pads + bias) and seen[0].dtype == np.float32


def test_rows_are_rolled_round_the_end():
    tokens = np.arange(12).reshape(3, 4)
    want = [np.roll(row, steps).tolist() for row, steps in zip(tokens, (0, 1, 3), strict=True)]
    assert roll_rows(tokens, np.array([0, 1, 3])).tolist() == want
    assert roll_rows(np.array(want), -np.array([0, 1, 3])).tolist() == tokens.tolist()


# nothing is left


@pytest.mark.parametrize("cached", [False, True])
def test_nothing_is_left_afterwards(cached):
    model = new_model(9)
    prompt, _ = pad(new_rows([2, 6, 4]), 6, "right")
    even = np.array(new_rows([6] * 3))
    want, logits = model.generate(even, 8, temperature=0), model(even).data
    cache = enable_kv_cache(model) if cached else None
    before = dict(objects_below(model))
    for _ in range(2):
        model.generate(prompt, 8, lengths=[2, 6, 4])
        assert dict(objects_below(model)) == before
        if cached:
            assert cache.seq_pos == 0, "nobody can go on from padded columns, so none are left"
        assert np.abs(model(even).data - logits).max() < 1e-4
        assert np.array_equal(model.generate(even, 8, temperature=0), want)
    disable_kv_cache(model)
    generate_with_cache(model, prompt, 8, lengths=[2, 6, 4])
    assert np.array_equal(model.generate(even, 8, temperature=0), want)


@pytest.mark.parametrize("cached", [False, True])
def test_nothing_is_left_after_a_failure_half_way(cached):
    model, steps = new_model(10), []
    prompt, _ = pad(new_rows([2, 6]), 6, "right")
    even = np.array(new_rows([6] * 2))
    want, ragged = model.generate(even, 8, temperature=0), model.generate(prompt, 8, lengths=[2, 6], rng=1)
    cache = enable_kv_cache(model) if cached else None

    def fails_later(inner, x):
        steps.append(1)
        if len(steps) == 6:
            raise FloatingPointError("half way")
        return inner(x)

    model.blocks[1].mlp.wrap("forward", fails_later)
    before = dict(objects_below(model))
    with pytest.raises(FloatingPointError, match="half way"):
        model.generate(prompt, 8, lengths=[2, 6])
    assert dict(objects_below(model)) == before and (cache is None or cache.seq_pos == 0)
    model.blocks[1].mlp.unwrap("forward", fails_later)
    assert np.array_equal(model.generate(even, 8, temperature=0), want)
    assert np.array_equal(model.generate(prompt, 8, lengths=[2, 6], rng=1), ragged)


def test_a_cache_of_somebody_else_is_used():
    model = new_model(11)
    prompt, _ = pad(new_rows([2, 6]), 6, "right")
    want = model.generate(prompt, 8, temperature=0, lengths=[2, 6])
    enable_kv_cache(model, KVCache(2, 13, 2, 2, 5))
    assert np.array_equal(model.generate(prompt, 8, temperature=0, lengths=[2, 6]), want)
    with pytest.raises(ValueError, match=r"15.*14.*13"):
        model.generate(prompt, 9, lengths=[2, 6])
    with pytest.raises(ValueError, match=r"\b1\b.*\b2\b"):
        model.generate(prompt[:1], 8, lengths=[2])


# bad requests


BAD = [
    (dict(lengths=[1, 2, 3]), ValueError, r"2 .*\(2,\).*\(3,\)"),
    (dict(lengths=3), ValueError, r"\(2,\).*\(\)"),
    (dict(lengths=[[1, 2]]), ValueError, r"\(2,\).*\(1, 2\)"),
    (dict(lengths=[]), ValueError, r"\(2,\).*\(0,\)"),
    (dict(lengths=[3, 0]), ValueError, "row 1 .*0.* 1 to 4"),
    (dict(lengths=[-1, 2]), ValueError, "row 0 .*-1.* 1 to 4"),
    (dict(lengths=[4, 5]), ValueError, "row 1 .*5.* 1 to 4"),
    (dict(lengths=[1.0, 2.0]), TypeError, "float"),
    (dict(lengths=[True, True]), TypeError, "bool"),
    (dict(lengths=[1, 2], pad_side="up"), ValueError, "'up'"),
    (dict(lengths=[1, 2], pad_side=None), ValueError, "None"),
    (dict(pad_side="up"), ValueError, "'up'"),
    (dict(pad_side="left"), ValueError, "lengths"),
    (dict(lengths=[4, 4], max_new_tokens=30), ValueError, "4 .*30.*34.*24"),
    (dict(lengths=[1, 2], max_new_tokens=-1), ValueError, "-1"),
    (dict(lengths=[1, 2], temperature=float("nan")), ValueError, "nan"),
    (dict(lengths=[1, 2], top_k=0), ValueError, "0"),
    (dict(lengths=[1, 2], stop_token=V), ValueError, f"{V}.*{V}"),
    (dict(lengths=[1, 2], prompt=[[1, 2], [-1, 3]]), ValueError, f"-1 .*{V}"),
    (dict(lengths=[1, 2], pad_side="left", prompt=[[-1, 99], [1, 3]]), ValueError, f"99 .*{V}"),
    (dict(lengths=[1, 2], prompt=[[1.0, 2.0], [1.0, 2.0]]), TypeError, "float"),
    (dict(lengths=[1, 2], prompt=[[True, False], [True, False]]), TypeError, "bool"),
    (dict(lengths=[1, 2], prompt=[1, 2]), ValueError, "2 axes"),
    (dict(lengths=[1], prompt=[[]]), ValueError, "at least 1"),
    (dict(lengths=[1, 2], prompt=[[1], [2, 3]]), ValueError, None),
    (dict(lengths=[1, 2], prompt="text"), (TypeError, ValueError), None),
]


@pytest.mark.parametrize(("request_", "error", "said"), BAD)
@pytest.mark.parametrize("cached", [False, True])
def test_bad_requests_are_refused_before_any_work(request_, error, said, cached):
    model = new_model()
    arguments = dict(prompt=[[1, 2, 3, 4], [5, 6, 7, 8]], max_new_tokens=3) | request_
    cache = enable_kv_cache(model) if cached else None
    if cached:
        model([[1, 2], [3, 4]])
        kept = cache.caches[1][0].data.copy()
    read = []
    model.blocks[0].wrap("forward", lambda inner, x, mask=None: read.append(1) or inner(x, mask))
    before = dict(objects_below(model))
    for generate in (model.generate, lambda **o: generate_with_cache(model, **o)):
        with pytest.raises(error) as caught:
            generate(**arguments)
        assert said is None or re.search(said, str(caught.value)), str(caught.value)
    assert read == [] and dict(objects_below(model)) == before
    if cached:
        assert cache.seq_pos == 2 and np.array_equal(cache.caches[1][0].data, kept)


def test_a_model_without_blocks_or_positions_is_refused():
    class Constant(LanguageModel):
        vocab_size, max_seq_len = V, LONGEST

    with pytest.raises(TypeError, match="Constant"):
        Constant().generate([[1, 2]], 2, lengths=[1])
