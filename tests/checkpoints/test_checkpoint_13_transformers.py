"""Checkpoint 13: GPT-2 against a forward pass in float64 loops, sampling and writing against plain lists."""

import math
import re
import time

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from tinytorch.core.autograd import enable_autograd
from tinytorch.core.optimizers import SGD
from tinytorch.core.tensor import Tensor, set_recorder
from tinytorch.models import transformer
from tinytorch.models.transformer import (
    GPT,
    MLP,
    LanguageModel,
    Recompute,
    TransformerBlock,
    check_tokens,
    count_parameters,
    draw,
    keep_top_k,
    keep_top_p,
    next_token_loss,
    sample,
    stream,
    write,
)

quick = settings(max_examples=60, deadline=None)


@pytest.fixture
def gradients():
    """Gradients are recorded in this test; afterwards all is as it was."""
    before = set_recorder(None)
    enable_autograd()
    yield
    set_recorder(before)


def random_gpt(V=13, C=12, L=2, H=3, longest=11, seed=0):
    """Every weight random, the biases too, and large enough that each matters."""
    model = GPT(V, C, L, H, longest, seed=seed)
    rng = np.random.default_rng(seed)
    for name, p in model.named_parameters():
        centre = 1.0 if "norm" in name and name.endswith("weight") else 0.0
        p.data[...] = rng.normal(centre, 0.3, p.shape)
    return model


# the oracle: lists of Python floats and the names of the weights


def slow_linear(x, weights, name):
    rows, bias = weights[f"{name}.weight"], weights[f"{name}.bias"]
    return [sum(a * b for a, b in zip(x, row, strict=True)) + c for row, c in zip(rows, bias, strict=True)]


def slow_norm(x, weights, name):
    mean = sum(x) / len(x)
    variance = sum((a - mean) ** 2 for a in x) / len(x)
    scale = 1 / math.sqrt(variance + 1e-5)
    pairs = zip(x, weights[f"{name}.weight"], weights[f"{name}.bias"], strict=True)
    return [(a - mean) * scale * w + b for a, w, b in pairs]


def slow_gelu(a):
    return 0.5 * a * (1 + math.tanh(math.sqrt(2 / math.pi) * (a + 0.044715 * a**3)))


def slow_block(xs, weights, name, num_heads):
    """One text, a list of T vectors -> the same after one block."""
    D = len(xs[0]) // num_heads
    normed = [slow_norm(x, weights, f"{name}.norm1") for x in xs]
    q, k, v = (
        [slow_linear(x, weights, f"{name}.attention.{part}_proj") for x in normed] for part in ("q", "k", "v")
    )
    out = []
    for t, x in enumerate(xs):
        mixed = []
        for h in range(0, len(x), D):
            scores = [sum(q[t][h + d] * k[s][h + d] for d in range(D)) / math.sqrt(D) for s in range(t + 1)]
            parts = [math.exp(score - max(scores)) for score in scores]
            mixed += [sum(p * v[s][h + d] for s, p in enumerate(parts)) / sum(parts) for d in range(D)]
        x = [a + b for a, b in zip(x, slow_linear(mixed, weights, f"{name}.attention.out_proj"), strict=True)]
        wide = slow_linear(slow_norm(x, weights, f"{name}.norm2"), weights, f"{name}.mlp.up")
        back = slow_linear([slow_gelu(a) for a in wide], weights, f"{name}.mlp.down")
        out.append([a + b for a, b in zip(x, back, strict=True)])
    return out


def slow_gpt(model, tokens, start_pos=0):
    """(B, T) -> (B, T, V) in float64 from `state_dict` alone."""
    weights = {name: np.asarray(array, np.float64).tolist() for name, array in model.state_dict().items()}
    words, places = weights["token_embedding.weight"], weights["position_embedding.weight"]
    logits = []
    for text in np.asarray(tokens).tolist():
        xs = [
            [a + b for a, b in zip(words[token], places[start_pos + t], strict=True)]
            for t, token in enumerate(text)
        ]
        for i in range(model.num_layers):
            xs = slow_block(xs, weights, f"blocks.{i}", model.num_heads)
        xs = [slow_norm(x, weights, "norm") for x in xs]
        logits.append([[sum(a * b for a, b in zip(x, row, strict=True)) for row in words] for x in xs])
    return np.array(logits)


# GPT-2, exactly


@pytest.mark.parametrize(
    ("V", "C", "L", "H", "B", "T"), [(13, 12, 2, 3, 2, 5), (7, 4, 1, 4, 3, 11), (5, 9, 3, 1, 1, 1)]
)
def test_the_model_is_what_the_loops_say(V, C, L, H, B, T):
    model = random_gpt(V, C, L, H, seed=C)
    tokens = np.random.default_rng(1).integers(0, V, (B, T))
    got = model(tokens)
    assert isinstance(got, Tensor) and got.shape == (B, T, V) and got.dtype == np.float32
    np.testing.assert_allclose(got.data, slow_gpt(model, tokens), rtol=1e-4, atol=1e-4)


def test_a_text_may_stand_anywhere():
    model = random_gpt()
    tokens = np.random.default_rng(2).integers(0, 13, (2, 4))
    for start_pos in (0, 3, 7):
        got = model.logits(model.hidden_states(tokens, start_pos=start_pos)).data
        np.testing.assert_allclose(got, slow_gpt(model, tokens, start_pos), rtol=1e-4, atol=1e-4)


def test_the_parts_are_what_the_loops_say():
    block = random_gpt(C=8, H=2).blocks[1]
    weights = {f"b.{name}": array.tolist() for name, array in block.state_dict().items()}
    x = np.random.default_rng(3).standard_normal((1, 4, 8)).astype(np.float32)
    np.testing.assert_allclose(
        block(Tensor(x)).data[0], slow_block(x[0].tolist(), weights, "b", 2), atol=1e-4
    )
    wide = slow_linear(x[0, 2].tolist(), weights, "b.mlp.up")
    want = slow_linear([slow_gelu(a) for a in wide], weights, "b.mlp.down")
    np.testing.assert_allclose(block.mlp(Tensor(x)).data[0, 2], want, rtol=1e-4, atol=1e-4)
    assert block.mlp.up.weight.shape == (32, 8) and block.mlp.down.weight.shape == (8, 32)


def test_a_block_hands_its_mask_to_the_attention():
    block = random_gpt(C=8, H=2).blocks[0]
    x = Tensor(np.random.default_rng(4).standard_normal((1, 4, 8)))
    mask = np.where(np.eye(4) == 1, 0, -np.inf).astype(np.float32)
    alone = [block(x[:, t : t + 1]).data[0, 0] for t in range(4)]
    np.testing.assert_allclose(block(x, mask).data[0], alone, rtol=1e-5, atol=1e-5)
    assert not np.allclose(block(x).data[0], alone, atol=1e-3)


@given(seed=st.integers(0, 99), length=st.integers(2, 11), data=st.data())
@quick
def test_a_later_token_changes_no_earlier_logit(seed, length, data):
    model = random_gpt(seed=seed)
    rng = np.random.default_rng(seed)
    first = data.draw(st.integers(1, length - 1))
    tokens = rng.integers(0, 13, (2, length))
    changed = tokens.copy()
    changed[:, first:] = (changed[:, first:] + rng.integers(1, 13, changed[:, first:].shape)) % 13
    before, after = model(tokens).data, model(changed).data
    assert np.array_equal(before[:, :first], after[:, :first])
    assert (before[:, first:] != after[:, first:]).any(axis=(0, 2)).all()


def test_the_rows_of_a_batch_do_not_see_each_other():
    model = random_gpt()
    tokens = np.random.default_rng(5).integers(0, 13, (4, 6))
    together = model(tokens).data
    for b in range(4):
        np.testing.assert_allclose(together[b], model(tokens[b : b + 1]).data[0], rtol=1e-5, atol=1e-5)


def test_tokens_may_be_tensors_arrays_or_lists_of_any_integers():
    model = random_gpt()
    tokens = np.random.default_rng(6).integers(0, 13, (2, 5))
    want = model(tokens).data
    for form in (Tensor(tokens), tokens.tolist(), tokens.astype(np.int32), tokens.astype(np.uint16)):
        assert np.array_equal(model(form).data, want)


# size and beginning


def test_published_sizes_are_met_to_the_last_parameter():
    published = {  # width, layers: parameters of the released files
        (768, 12): 124_439_808,
        (1024, 24): 354_823_168,
        (1280, 36): 774_030_080,
        (1600, 48): 1_557_611_200,
    }
    for (width, layers), number in published.items():
        assert count_parameters(50_257, width, layers) == number


@given(
    V=st.integers(1, 40),
    H=st.integers(1, 4),
    D=st.integers(1, 5),
    L=st.integers(1, 3),
    longest=st.integers(1, 9),
)
@quick
def test_the_count_is_that_of_the_model(V, H, D, L, longest):
    model = GPT(V, H * D, L, H, longest)
    assert count_parameters(V, H * D, L, longest) == sum(p.size for p in model.parameters())
    assert sum(a.size for a in model.state_dict().values()) == sum(p.size for p in model.parameters())


def test_the_weights_have_gpt_2s_parts():
    model = GPT(13, 12, 2, 3, 11)
    linear = [f"attention.{p}_proj" for p in ("q", "k", "v", "out")] + ["mlp.up", "mlp.down"]
    parts = [f"blocks.{i}.{part}" for i in range(2) for part in ("norm1", "norm2", *linear)] + ["norm"]
    names = {f"{part}.{kind}" for part in parts for kind in ("weight", "bias")}
    assert set(model.state_dict()) == names | {"token_embedding.weight", "position_embedding.weight"}
    assert (model.vocab_size, model.embed_dim, model.num_layers, model.num_heads) == (13, 12, 2, 3)
    assert model.max_seq_len == 11 and len(model.blocks) == 2 and not model.training
    assert all(p.dtype == np.float32 and p.requires_grad for p in model.parameters())
    assert GPT(13, 12, 2, 3).max_seq_len == 1024
    block = TransformerBlock(12, 3)
    assert block.attention.causal and block.norm1.eps == block.norm2.eps == model.norm.eps == 1e-5


def test_the_weights_begin_as_gpt_2s_do():
    model = GPT(211, 64, 8, 4, 67, seed=3)
    for name, p in model.named_parameters():
        if p.ndim == 2:
            residual = name.endswith(("out_proj.weight", "mlp.down.weight"))
            want = 0.02 / math.sqrt(16) if residual else 0.02
            assert abs(p.data.std() / want - 1) < 0.05 and abs(p.data.mean()) < want / 10, name
        else:
            assert (p.data == (1 if "norm" in name and name.endswith("weight") else 0)).all(), name
    tokens = np.random.default_rng(7).integers(0, 211, (3, 40))
    assert abs(next_token_loss(model, tokens).item() - math.log(211)) < 0.1


def test_the_seed_decides_and_nothing_else():
    a, b, c = (GPT(13, 12, 2, 3, 11, seed=seed).state_dict() for seed in (5, 5, 6))
    assert all(np.array_equal(a[name], b[name]) for name in a)
    assert not np.array_equal(a["blocks.1.mlp.up.weight"], c["blocks.1.mlp.up.weight"])
    assert not np.array_equal(a["blocks.0.mlp.up.weight"], a["blocks.1.mlp.up.weight"])


@pytest.mark.parametrize(
    ("sizes", "error", "numbers"),
    [
        ((0, 12, 2, 3, 11), ValueError, "vocab_size.*0"),
        ((13, 0, 2, 3, 11), ValueError, "embed_dim.*0"),
        ((13, 12, 0, 3, 11), ValueError, "num_layers.*0"),
        ((13, 12, 2, 0, 11), ValueError, "num_heads.*0"),
        ((13, 12, 2, 3, 0), ValueError, "max_seq_len.*0"),
        ((13, 12, -2, 3, 11), ValueError, "num_layers.*-2"),
        ((13, 12, 2, 5, 11), ValueError, "12.*5"),
        ((13.0, 12, 2, 3, 11), TypeError, "vocab_size.*13.0"),
        ((13, 12, 2.5, 3, 11), TypeError, "num_layers.*2.5"),
        ((13, "12", 2, 3, 11), TypeError, "embed_dim.*12"),
        ((13, 12, 2, 3, None), TypeError, "max_seq_len.*None"),
        ((13, 12, True, 3, 11), TypeError, "num_layers.*True"),
    ],
)
def test_sizes_that_no_model_can_have(sizes, error, numbers):
    with pytest.raises(error, match=numbers):
        GPT(*sizes)


# sampling


def random_logits(seed, B=3, V=17, scale=2.0):
    return (np.random.default_rng(seed).standard_normal((B, V)) * scale).astype(np.float32)


def exact_probabilities(row):
    parts = [math.exp(float(x) - float(max(row))) for x in row]
    return [part / sum(parts) for part in parts]


@given(seed=st.integers(0, 999), B=st.integers(1, 4), V=st.integers(1, 20), k=st.integers(1, 22))
@quick
def test_top_k_keeps_the_k_likeliest_and_their_equals(seed, B, V, k):
    logits = np.round(random_logits(seed, B, V))  # with ties
    kept = keep_top_k(logits, k)
    assert kept.dtype == np.float32
    for row, got in zip(logits.tolist(), kept.tolist(), strict=True):
        assert got == [x if sum(y > x for y in row) < k else -math.inf for x in row]


@given(seed=st.integers(0, 999), B=st.integers(1, 4), V=st.integers(1, 20), p=st.floats(0.01, 0.99))
@quick
def test_top_p_keeps_the_nucleus(seed, B, V, p):
    logits = random_logits(seed, B, V)
    kept = keep_top_p(logits, p)
    assert kept.dtype == np.float32
    for row, got in zip(logits, kept, strict=True):
        probs = exact_probabilities(row)
        reached, want, close = 0.0, set(), False
        for token in sorted(range(V), key=lambda t: -probs[t]):
            close = close or abs(reached - p) < 1e-5  # float32 may see it either way
            if reached < p:
                want.add(token)
            reached += probs[token]
        if not close:
            assert {t for t in range(V) if got[t] > -np.inf} == want
            assert all(got[t] == row[t] for t in want)


def test_top_p_keeps_equals_together_and_all_at_one():
    flat = np.zeros((2, 50_257), np.float32)
    assert np.isfinite(keep_top_p(flat, 0.5)).all()
    logits = random_logits(1, 2, 50_257, scale=4.0)
    assert np.array_equal(keep_top_p(logits, 1.0), logits)
    kept = np.isfinite(keep_top_p(logits, 0.9))
    probs = np.exp(logits.astype(np.float64))
    probs /= probs.sum(axis=-1, keepdims=True)
    for row, stays in zip(probs, kept, strict=True):
        assert 0.9 <= row[stays].sum() < 0.9 + row[stays].min() + 1e-5


@pytest.mark.parametrize(("top_k", "top_p"), [(None, None), (4, None), (None, 0.7), (5, 0.8)])
@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.5])
def test_draws_have_the_shares_that_the_settings_say(temperature, top_k, top_p):
    row = random_logits(2, 1, 9)[0]
    probs = exact_probabilities(row / temperature)
    order = sorted(range(9), key=lambda t: -probs[t])[: top_k or 9]
    total, reached, nucleus = sum(probs[t] for t in order), 0.0, []
    for token in order:
        if top_p is None or reached < top_p:
            nucleus.append(token)
        reached += probs[token] / total
    total = sum(probs[t] for t in nucleus)
    n = 40_000
    settings = {"temperature": temperature, "top_k": top_k, "top_p": top_p}
    drawn = sample(np.tile(row, (n, 1)), **settings, rng=np.random.default_rng(3))
    for token in range(9):
        want = probs[token] / total if token in nucleus else 0
        assert abs((drawn == token).mean() - want) <= 5 * math.sqrt(want * (1 - want) / n), (
            f"token {token} of {nucleus}"
        )


LOGITS = st.one_of(
    st.floats(width=32, allow_nan=False, allow_infinity=False),
    st.floats(-20, 20, width=32),
    st.sampled_from([-math.inf, 0.0, 1.0, 3e38, -3e38, 1e-45]),
)
TEMPERATURES = st.one_of(st.floats(5e-324, 1e308), st.floats(0.1, 3.0), st.sampled_from([1e-39, 1e-50, 1e38]))


@given(
    row=st.lists(LOGITS, min_size=1, max_size=9).filter(lambda row: max(row) > -math.inf),
    temperature=TEMPERATURES,
    top_k=st.none() | st.integers(1, 10),
    top_p=st.none() | st.floats(1e-6, 1.0),
    point=st.floats(0, 1, exclude_max=True),
    dtype=st.sampled_from([np.float32, np.float64]),
)
@settings(max_examples=300, deadline=None)
def test_at_any_temperature_the_draw_is_that_of_exact_arithmetic(
    row, temperature, top_k, top_p, point, dtype
):
    """The oracle computes in float64, with lists; float32 may differ by 1e-5 in where a piece ends."""

    class Point:
        def random(self, size):
            return np.full(size, point)

    def apart(a, b):
        return -math.inf if a == -math.inf else (a - b) / temperature

    exact = [apart(x, max(row)) for x in row]
    rank = sorted(range(len(row)), key=lambda t: -exact[t])
    bar = exact[rank[min(top_k or len(row), len(row)) - 1]]
    kept = [t for t in rank if exact[t] >= bar]
    total = math.fsum(math.exp(exact[t]) for t in kept)
    probs = {t: math.exp(exact[t]) / total for t in kept}
    assume(all(p == q or abs(p - q) > 1e-5 * p for p in probs.values() for q in probs.values()))
    if top_p is not None and top_p < 1:
        before = {t: math.fsum(probs[u] for u in kept if probs[u] > probs[t]) for t in kept}
        assume(all(abs(b - top_p) > 1e-4 for b in before.values()))
        probs = {t: p for t, p in probs.items() if before[t] < top_p or p == max(probs.values())}
    assume(all(abs(exact[t] - bar) > 1e-4 or exact[t] == bar for t in range(len(row))))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(transformer.np.random, "default_rng", lambda rng: rng)
        settings = {"temperature": temperature, "top_k": top_k, "top_p": top_p}
        (token,) = sample(np.array([row], dtype), **settings, rng=Point())
    total = math.fsum(probs.values())
    start = math.fsum(probs[t] for t in probs if t < token) / total
    assert token in probs and start - 1e-5 <= point <= start + probs[token] / total + 1e-5


def test_half_precision_is_calculated_in_single():
    row = np.float16([[10.0, 10.01, 9.0]])
    assert sample(row, temperature=1e-3, rng=0).tolist() == sample(row, temperature=0).tolist() == [1]
    assert sample([[0, 5, 1]], temperature=1e-39, top_p=0.9, rng=0).tolist() == [1]


@pytest.mark.parametrize("temperature", [0, 1])
@pytest.mark.parametrize("shape", [(), (5,), (2, 0), (0, 0), (2, 3, 4)])
def test_logits_of_another_shape_are_refused_at_any_temperature(shape, temperature):
    with pytest.raises(ValueError, match=re.escape(str(shape))):
        sample(np.zeros(shape, np.float32), temperature=temperature)


def test_temperature_zero_is_greedy_and_needs_no_random_number():
    logits = random_logits(4)
    rng = np.random.default_rng(0)
    state = rng.bit_generator.state
    got = sample(logits, temperature=0, top_k=3, top_p=0.5, rng=rng)
    assert got.tolist() == [row.index(max(row)) for row in logits.tolist()]
    assert got.dtype.kind == "i" and rng.bit_generator.state == state


def test_one_random_number_is_used_for_each_row():
    rng, twin = np.random.default_rng(8), np.random.default_rng(8)
    logits = random_logits(5, B=4)
    drawn = sample(logits, top_k=6, top_p=0.9, temperature=0.7, rng=rng)
    points = twin.random(4)
    assert rng.random() == twin.random(), "other settings must not change how many numbers are drawn"
    plain = sample(logits, rng=np.random.default_rng(8))
    for row, point, token in zip(logits, points, plain, strict=True):
        ends = np.cumsum(exact_probabilities(row))
        assert token == sum(end <= point for end in ends)
    assert drawn.shape == plain.shape == (4,)


def test_a_float64_temperature_leaves_the_logits_float32(monkeypatch):
    seen = []
    monkeypatch.setattr(
        transformer, "draw", lambda logits, rng: seen.append(logits.dtype) or draw(logits, rng)
    )
    sample(random_logits(9), temperature=np.float64(0.7), top_k=3, top_p=0.9, rng=0)
    assert seen == [np.float32]


def test_what_has_no_probability_is_never_drawn():
    logits = np.full((3000, 5), -np.inf, np.float32)
    logits[:, [1, 3]] = 0
    assert set(sample(logits, rng=0).tolist()) == {1, 3}
    extreme = np.tile(np.float32([-1e30, 88.0, 1e30]), (10, 1))
    assert set(sample(extreme, rng=0).tolist()) == {2}


def test_every_point_of_the_line_belongs_to_a_token_that_can_be_drawn():
    class Points:
        """A stand-in for a generator whose numbers are known."""

        def random(self, shape):
            return np.array([0.0, 0.25, 0.5, 1 - 2**-53]).reshape(shape)

    logits = np.tile(np.float32([-np.inf, 0, -np.inf, 0, 0, 0, -np.inf]), (4, 1))
    assert draw(logits, Points()).tolist() == [1, 3, 4, 5]


@pytest.mark.parametrize("temperature", [0, 1.0])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_broken_logits_are_named(temperature, value):
    logits = random_logits(6)
    logits[1, 4] = value
    with pytest.raises(ValueError, match="row 1"):
        sample(logits, temperature=temperature, rng=0)
    logits[1] = -np.inf
    with pytest.raises(ValueError, match="row 1"):
        sample(logits, temperature=temperature, rng=0)


BAD_SETTINGS = [
    ({"temperature": math.nan}, ValueError, "nan"),
    ({"temperature": math.inf}, ValueError, "inf"),
    ({"temperature": -0.5}, ValueError, "-0.5"),
    ({"temperature": "hot"}, TypeError, "hot"),
    ({"temperature": None}, TypeError, "None"),
    ({"top_k": 0}, ValueError, "0"),
    ({"top_k": -3}, ValueError, "-3"),
    ({"top_k": 2.0}, TypeError, "2.0"),
    ({"top_k": True}, TypeError, "True"),
    ({"top_p": 0}, ValueError, "0"),
    ({"top_p": 1.5}, ValueError, "1.5"),
    ({"top_p": math.nan}, ValueError, "nan"),
    ({"top_p": "all"}, TypeError, "all"),
]


@pytest.mark.parametrize(("setting", "error", "said"), BAD_SETTINGS)
def test_settings_out_of_range_are_named(setting, error, said):
    with pytest.raises(error, match=said):
        sample(random_logits(7), **setting)


# the loop


class Successor(LanguageModel):
    """After n comes n + 1, after 9 comes 0. It notes the tokens it reads and the logits it gives."""

    vocab_size, max_seq_len = 10, 12

    def __init__(self):
        self.read, self.given = [], []

    def hidden_states(self, tokens):
        self.read.append(np.asarray(tokens).tolist())
        return Tensor(np.eye(10, dtype=np.float32)[np.asarray(tokens)])

    def logits(self, hidden):
        self.given.append(hidden.shape)
        return hidden @ np.roll(np.eye(10, dtype=np.float32), 1, axis=1) * 9.0


def argmax(logits):
    return logits.argmax(axis=-1)


def test_the_loop_shows_only_what_is_new():
    shown = []

    def next_logits(tokens):
        shown.append(tokens.tolist())
        return np.eye(10)[(tokens[:, -1] + 1) % 10]

    tokens = write(next_logits, np.array([[5, 6], [1, 2]]), 3, argmax)
    assert shown == [], "nothing was asked for yet"
    assert next(tokens).tolist() == [7, 3] and len(shown) == 1
    assert [t.tolist() for t in tokens] == [[8, 4], [9, 5]]
    assert shown == [[[5, 6], [1, 2]], [[7], [3]], [[8], [4]]], "nothing is shown after the last token"


@given(seed=st.integers(0, 999), B=st.integers(1, 4), new=st.integers(0, 12), stop=st.integers(0, 9))
@quick
def test_rows_stop_at_their_stop_token(seed, B, new, stop):
    starts = np.random.default_rng(seed).integers(0, 10, (B, 1))
    calls = []

    def next_logits(tokens):
        calls.append(1)
        return np.eye(10)[(tokens[:, -1] + 1) % 10]

    written = [tokens.tolist() for tokens in write(next_logits, starts, new, argmax, stop_token=stop)]
    rows = []
    for (start,) in starts.tolist():
        row = []
        while len(row) < new and (not row or row[-1] != stop):
            row.append(((row[-1] if row else start) + 1) % 10)
        rows.append(row)
    longest = max(len(row) for row in rows)
    rows = [row + [stop] * (longest - len(row)) for row in rows]
    assert written == [list(column) for column in zip(*rows, strict=True)]
    assert len(calls) == longest


def test_a_stream_is_checked_when_it_is_made():
    def next_logits(tokens):
        raise AssertionError("the model was asked before the settings were checked")

    for setting, error, said in BAD_SETTINGS:
        with pytest.raises(error, match=said):
            stream(next_logits, [[1]], 3, **setting)
    for prompt in ([], [[]], [1, 2], [[[1]]]):
        with pytest.raises(ValueError):
            stream(next_logits, prompt, 3)
    with pytest.raises(ValueError, match="-1"):
        stream(next_logits, [[1]], -1)
    with pytest.raises(TypeError, match="2.5"):
        stream(next_logits, [[1]], 2.5)
    stream(next_logits, [[1]], 3)


def test_a_seed_is_one_generator_for_the_whole_text():
    def flat(tokens):
        return np.zeros((len(tokens), 50), np.float32)

    one = [t.tolist() for t in stream(flat, [[1], [2]], 12, rng=4)]
    again = [t.tolist() for t in stream(flat, [[1], [2]], 12, rng=np.random.default_rng(4))]
    other = [t.tolist() for t in stream(flat, [[1], [2]], 12, rng=5)]
    assert one == again != other
    assert len({tuple(t) for t in one}) > 8, "every step draws numbers of its own"


def test_recompute_remembers_one_text():
    model = Successor()
    reader, other = Recompute(model, 2, 6), Recompute(model, 1, 6)
    text = np.array([[1, 2, 3, 4, 5, 6], [9, 8, 7, 6, 5, 4]])
    logits = [reader(text[:, :3]), reader(text[:, 3:4]), other(text[:1, :1]), reader(text[:, 4:])]
    assert model.read == [text[:, :3].tolist(), text[:, :4].tolist(), [[1]], text.tolist()]
    assert [x.argmax(-1).tolist() for x in logits] == [[4, 8], [5, 7], [2], [7, 5]]


def test_next_logits_are_the_last_ones_of_the_model_and_only_they_are_computed(gradients):
    model = random_gpt()
    tokens = np.random.default_rng(9).integers(0, 13, (2, 7))
    asked = []

    def spy(inner, hidden):
        asked.append((hidden.shape, hidden.requires_grad))
        return inner(hidden)

    want = model(tokens).data[:, -1]
    model.wrap("logits", spy)
    got = model.next_logits(tokens)
    model.unwrap("logits", spy)
    assert isinstance(got, np.ndarray) and got.shape == (2, 13) and got.dtype == np.float32
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)
    assert asked in ([((2, 1, 12), False)], [((2, 12), False)]), (
        "the logits of one position, without gradients"
    )


# generate


def test_greedy_generation_takes_the_likeliest_each_time():
    model = random_gpt()
    prompt = np.random.default_rng(10).integers(0, 13, (3, 4))
    text = model.generate(prompt, 7, temperature=0)
    assert text.shape == (3, 11) and text.dtype.kind == "i" and np.array_equal(text[:, :4], prompt)
    for length in (4, 7, 10):
        assert np.array_equal(text[:, length], slow_gpt(model, text[:, :length])[:, -1].argmax(-1))


def test_sampled_generation_follows_the_seed_and_the_rows_stay_apart():
    model = random_gpt()
    prompt = np.random.default_rng(11).integers(0, 13, (2, 3))
    kept = prompt.copy()
    a, b, c = (model.generate(prompt, 8, temperature=2.0, rng=seed) for seed in (1, 1, 2))
    assert np.array_equal(a, b) and not np.array_equal(a, c) and np.array_equal(prompt, kept)
    rng = np.random.default_rng(1)
    for step in range(3, 11):  # the same, by hand
        chosen = sample(model(a[:, :step]).data[:, -1], temperature=2.0, rng=rng)
        assert np.array_equal(a[:, step], chosen)
    held = model.generate(prompt, 8, temperature=2.0, top_k=1, rng=3)
    assert np.array_equal(held, model.generate(prompt, 8, temperature=0))
    assert np.array_equal(held, model.generate(prompt, 8, temperature=2.0, top_p=1e-6, rng=4))


def test_generation_goes_through_decoder_and_hidden_states():
    model, asked = Successor(), []

    def spy(decoder, batch_size, num_tokens):
        asked.append((batch_size, num_tokens))
        return decoder(batch_size, num_tokens)

    model.wrap("decoder", spy)
    text = model.generate([[1, 2], [7, 8]], 3, temperature=0)
    assert text.tolist() == [[1, 2, 3, 4, 5], [7, 8, 9, 0, 1]]
    assert asked == [(2, 5)] and [len(read[0]) for read in model.read] == [2, 3, 4]
    assert set(model.given) in ({(2, 1, 10)}, {(2, 10)})


def test_generation_stops_with_its_last_row():
    text = Successor().generate([[4], [1]], 9, temperature=0, stop_token=6)
    assert text.tolist() == [[4, 5, 6, 6, 6, 6], [1, 2, 3, 4, 5, 6]]
    assert Successor().generate([[4]], 0).tolist() == [[4]]
    assert Successor().generate(np.array([[4]], np.uint64), 2, temperature=0).dtype.kind == "i"


def test_a_text_may_fill_the_model_to_the_last_position():
    model = random_gpt(longest=8)
    assert model.generate([[1, 2, 3]], 5, temperature=0).shape == (1, 8)
    assert model(np.zeros((1, 8), int)).shape == (1, 8, 13)


@pytest.mark.parametrize(
    ("prompt", "new", "options", "error", "said"),
    [
        ([[1, 2, 3]], 10, {}, ValueError, r"3 .*10.* 13.*12"),
        ([[1] * 13], 0, {}, ValueError, r"13.*12"),
        ([[1, 10]], 2, {}, ValueError, r"10.*10"),
        ([[1, -1]], 2, {}, ValueError, r"-1.*10"),
        ([[]], 2, {}, ValueError, "0"),
        ([], 2, {}, ValueError, "1"),
        ([1, 2], 2, {}, ValueError, "2"),
        (np.zeros((0, 3), int), 2, {}, ValueError, "0"),
        ([[1.0]], 2, {}, TypeError, "float"),
        ([[True]], 2, {}, TypeError, "bool"),
        ("text", 2, {}, (TypeError, ValueError), None),
        (None, 2, {}, (TypeError, ValueError), None),
        ([[1]], -1, {}, ValueError, "-1"),
        ([[1]], 2.0, {}, TypeError, "2.0"),
        ([[1]], True, {}, TypeError, "True"),
        ([[1]], "two", {}, TypeError, "two"),
        ([[1]], 2, {"stop_token": 10}, ValueError, "10.*10"),
        ([[1]], 2, {"stop_token": -1}, ValueError, "-1"),
        ([[1]], 2, {"stop_token": 1.0}, TypeError, "1.0"),
        ([[1]], 2, {"rng": "dice"}, (TypeError, ValueError), None),
        *(([[1]], 2, setting, error, said) for setting, error, said in BAD_SETTINGS),
    ],
)
def test_bad_requests_are_refused_before_any_work(prompt, new, options, error, said):
    model = Successor()
    started = []
    model.wrap("decoder", lambda inner, *sizes: started.append(sizes) or inner(*sizes))
    with pytest.raises(error, match=said):
        model.generate(prompt, new, **options)
    assert started == [] and model.read == [], "work began before the request was checked"


@pytest.mark.parametrize(
    ("tokens", "start_pos", "error", "said"),
    [
        (np.zeros((1, 12), int), 0, ValueError, "12.*11"),
        (np.zeros((1, 5), int), 7, ValueError, "5.*7.*12.*11"),
        ([[1]], -1, ValueError, "-1"),
        ([[1]], 1.0, TypeError, "1.0"),
        ([[13]], 0, ValueError, "13.*13"),
        ([[-13]], 0, ValueError, "-13.*13"),
        ([1], 0, ValueError, "1"),
        ([[[1]]], 0, ValueError, "3"),
        ([[0.5]], 0, TypeError, "float"),
        ([[1], [1, 2]], 0, ValueError, None),
    ],
)
def test_texts_that_the_model_cannot_read(tokens, start_pos, error, said):
    with pytest.raises(error, match=said):
        random_gpt().hidden_states(tokens, start_pos)


def test_good_tokens_are_not_copied():
    tokens = np.array([[1, 2], [3, 0]])
    assert check_tokens(tokens, 4) is tokens


# training


def test_the_loss_is_that_of_the_next_token():
    model = random_gpt()
    tokens = np.random.default_rng(12).integers(0, 13, (2, 6))
    logits = slow_gpt(model, tokens[:, :-1])
    want = [
        -math.log(exact_probabilities(logits[b, t])[tokens[b, t + 1]]) for b in range(2) for t in range(5)
    ]
    assert abs(next_token_loss(model, tokens).item() - sum(want) / 10) < 1e-4
    with pytest.raises(ValueError, match="1"):
        next_token_loss(model, tokens[:, :1])


def test_slopes_of_a_whole_model_are_the_measured_ones(gradients):
    model = random_gpt(V=5, C=4, L=2, H=2, longest=4, seed=1).train()
    for p in model.parameters():
        p.data = p.data.astype(np.float64)
    tokens = np.array([[0, 3, 1, 4], [2, 2, 0, 1]])
    next_token_loss(model, tokens).backward()
    rng = np.random.default_rng(13)
    for name, p in model.named_parameters():
        assert p.grad is not None and p.grad.shape == p.shape, f"{name} gets no gradient"
        for place in {tuple(rng.integers(0, p.shape)) for _ in range(4)}:
            kept, heights = p.data[place], []
            for value in (kept + 1e-5, kept - 1e-5):
                p.data[place] = value
                logits = slow_gpt(model, tokens[:, :-1])
                rows = [(logits[b, t], tokens[b, t + 1]) for b in range(2) for t in range(3)]
                heights.append(-sum(math.log(exact_probabilities(row)[t]) for row, t in rows) / 6)
            p.data[place] = kept
            assert abs(p.grad[place] - (heights[0] - heights[1]) / 2e-5) < 1e-5, f"{name}{place}"


def test_a_tiny_text_is_learned_and_written(gradients):
    text = np.array([[3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5, 8, 9, 7]])
    model = GPT(10, 16, 2, 2, 14, seed=0).train()
    optimizer = SGD(model.parameters(), lr=0.3)
    losses = []
    for _ in range(150):
        loss = next_token_loss(model, text)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert abs(losses[0] - math.log(10)) < 0.1, f"a model that knows nothing guesses: {losses[0]:.2f}"
    assert losses[-1] < 0.1, f"after 150 steps the loss is still {losses[-1]:.2f}"
    assert model.eval().generate(text[:, :2], 12, temperature=0).tolist() == text.tolist()


def test_generation_records_nothing(gradients):
    model = random_gpt()
    model.generate([[1, 2]], 3, temperature=0)
    assert all(p.grad is None for p in model.parameters())
    hidden = []
    model.wrap("hidden_states", lambda inner, tokens: hidden.append(inner(tokens)) or hidden[-1])
    model.generate([[1, 2]], 3, temperature=0)
    assert hidden and not any(x.requires_grad for x in hidden)


def test_sampling_from_a_large_vocabulary_is_cheap():
    """50,257 logits: sorting them all stably took a third of a decoding step; a loop in Python may pass."""
    logits = random_logits(14, 1, 50_257)
    sample(logits, top_k=50, top_p=0.9, rng=0)
    took = []
    for _ in range(5):
        began = time.process_time()
        sample(logits, temperature=0.8, top_k=50, top_p=0.9, rng=0)
        took.append(time.process_time() - began)
    assert min(took) < 0.25


def test_the_small_network_works_on_each_token_alone():
    mlp = MLP(6, rng=1)
    x = np.random.default_rng(15).standard_normal((2, 3, 6)).astype(np.float32)
    together = mlp(Tensor(x)).data
    for b, t in np.ndindex(2, 3):
        np.testing.assert_allclose(mlp(Tensor(x[b : b + 1, t : t + 1])).data[0, 0], together[b, t], atol=1e-6)
