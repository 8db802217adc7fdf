"""Checkpoint 12: attention against loops over every query, key and number, in float64."""

import math
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tinytorch.core.attention import (
    QUERY_BLOCK,
    MultiHeadAttention,
    attention_weights,
    causal_mask,
    merge_heads,
    scaled_dot_product_attention,
    split_heads,
    weigh_keys,
    weigh_keys_gradient,
)
from tinytorch.core.autograd import enable_autograd
from tinytorch.core.tensor import Tensor, apply, set_recorder

quick = settings(max_examples=60, deadline=None)
size = st.integers(1, 5)


@pytest.fixture
def gradients():
    """Gradients are recorded in this test; afterwards all is as it was."""
    before = set_recorder(None)
    enable_autograd()
    yield
    set_recorder(before)


def slow_weights(query, key, mask, causal):
    """The shares, one number at a time: no matrix product, no softmax of ours, plain Python floats."""
    (B, H, T, D), S = query.shape, key.shape[2]
    mask = np.zeros((B, H, T, S)) if mask is None else np.broadcast_to(mask, (B, H, T, S))
    shares = np.zeros((B, H, T, S))
    for b, h, t in np.ndindex(B, H, T):
        scores = {}
        for s in range(S):
            if causal and s > S - T + t:
                continue
            dot = sum(float(query[b, h, t, d]) * float(key[b, h, s, d]) for d in range(D))
            scores[s] = dot / math.sqrt(D) + float(mask[b, h, t, s])
        top = max(scores.values())
        parts = {s: math.exp(x - top) for s, x in scores.items()}
        for s, part in parts.items():
            shares[b, h, t, s] = part / sum(parts.values())
    return shares


def slow_attention(query, key, value, mask=None, causal=False):
    shares = slow_weights(query, key, mask, causal)
    out = np.zeros((*query.shape[:3], value.shape[3]))
    for b, h, t, s in np.ndindex(*shares.shape):
        for d in range(value.shape[3]):
            out[b, h, t, d] += shares[b, h, t, s] * float(value[b, h, s, d])
    return out


def slow_layer(layer, x, mask=None):
    """(B, T, C) -> (B, T, C), from the weights of the layer alone."""
    w = {name: np.asarray(array, np.float64) for name, array in layer.state_dict().items()}
    H, D = layer.num_heads, layer.head_dim
    B, T, C = x.shape
    q, k, v = np.zeros((3, B, H, T, D))
    for out, name in ((q, "q_proj"), (k, "k_proj"), (v, "v_proj")):
        for b, h, t, d in np.ndindex(B, H, T, D):
            row = h * D + d
            out[b, h, t, d] = sum(x[b, t, c] * w[f"{name}.weight"][row, c] for c in range(C))
            out[b, h, t, d] += w[f"{name}.bias"][row]
    heads = slow_attention(q, k, v, mask, layer.causal)
    y = np.zeros((B, T, C))
    for b, t, c in np.ndindex(B, T, C):
        y[b, t, c] = w["out_proj.bias"][c]
        for h, d in np.ndindex(H, D):
            y[b, t, c] += heads[b, h, t, d] * w["out_proj.weight"][c, h * D + d]
    return y


def random_heads(rng, B=2, H=4, T=3, S=5, D=6):
    """Queries, keys and values in float32."""
    return tuple(rng.standard_normal((B, H, n, D)).astype(np.float32) for n in (T, S, S))


def random_layer(embed_dim, num_heads, seed=0, causal=False):
    """With every weight random, the biases too."""
    layer = MultiHeadAttention(embed_dim, num_heads, causal=causal)
    rng = np.random.default_rng(seed)
    for p in layer.parameters():
        p.data[...] = rng.normal(0, 0.5, p.shape)
    return layer


# who sees whom


@given(num_keys=st.integers(1, 12), data=st.data())
@quick
def test_causal_mask_compares_positions_in_the_text(num_keys, data):
    num_queries = data.draw(st.integers(1, num_keys))
    mask = causal_mask(num_queries, num_keys)
    assert mask.dtype == np.float32 and mask.shape == (num_queries, num_keys)
    for row in range(num_queries):
        position = num_keys - num_queries + row
        assert mask[row].tolist() == [0.0 if key <= position else -math.inf for key in range(num_keys)]


@pytest.mark.parametrize(("num_queries", "num_keys"), [(2, 1), (9, 4)])
def test_causal_mask_refuses_more_queries_than_keys(num_queries, num_keys):
    with pytest.raises(ValueError, match=rf"{num_queries}.*{num_keys}|{num_keys}.*{num_queries}"):
        causal_mask(num_queries, num_keys)
    query, key, value = random_heads(np.random.default_rng(0), T=num_queries, S=num_keys)
    with pytest.raises(ValueError, match=rf"{num_queries}.*{num_keys}|{num_keys}.*{num_queries}"):
        scaled_dot_product_attention(query, key, value, causal=True)


# shares and answers


@given(B=size, H=size, T=size, more=st.integers(0, 4), D=size, seed=st.integers(0, 99), causal=st.booleans())
@quick
def test_attention_is_what_the_loops_say(B, H, T, more, D, seed, causal):
    rng = np.random.default_rng(seed)
    query, key, value = random_heads(rng, B, H, T, T + more, D)
    mask = rng.standard_normal((B, 1, T, T + more)).astype(np.float32) if seed % 2 else None
    got = scaled_dot_product_attention(Tensor(query), Tensor(key), Tensor(value), mask, causal)
    assert isinstance(got, Tensor) and got.dtype == np.float32
    np.testing.assert_allclose(
        got.data, slow_attention(query, key, value, mask, causal), rtol=1e-5, atol=2e-6
    )


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("shape", [(3, 5), (5,), (1, 5), (2, 1, 1, 5), (4, 3, 1), (1, 4, 1, 5), (2, 4, 3, 5)])
def test_a_mask_is_added_and_broadcast(shape, causal):
    rng = np.random.default_rng(1)
    query, key, value = random_heads(rng)
    mask = rng.standard_normal(shape).astype(np.float32)
    kept = mask.copy()
    weights = attention_weights(Tensor(query), Tensor(key), mask, causal)
    np.testing.assert_allclose(weights.data, slow_weights(query, key, mask, causal), rtol=2e-5, atol=1e-6)
    got = scaled_dot_product_attention(query, key, value, Tensor(mask), causal).data
    np.testing.assert_allclose(got, slow_attention(query, key, value, mask, causal), rtol=2e-5, atol=2e-6)
    assert np.array_equal(mask, kept), "the caller's mask was changed"


def test_shares_sum_to_one_and_the_hidden_get_exactly_nothing():
    rng = np.random.default_rng(2)
    query, key, _ = random_heads(rng)
    mask = np.where(rng.random((2, 1, 3, 5)) < 0.5, -np.inf, 0).astype(np.float32)
    mask[..., 0] = 0
    weights = attention_weights(Tensor(query), Tensor(key), mask, causal=True).data
    np.testing.assert_allclose(weights.sum(-1), 1, atol=1e-6)
    hidden = np.broadcast_to(np.isinf(mask + causal_mask(3, 5)), weights.shape)
    assert (weights[hidden] == 0).all() and (weights[~hidden] > 0).all()


def test_scores_of_any_size_do_not_overflow():
    query, key, value = (1e4 * x for x in random_heads(np.random.default_rng(3)))
    weights = attention_weights(Tensor(query), Tensor(key)).data
    assert np.isfinite(weights).all() and np.allclose(weights.sum(-1), 1)
    best = np.einsum("bhtd,bhsd->bhts", query, key).argmax(-1)
    assert np.array_equal(weights.argmax(-1), best)
    assert np.isfinite(scaled_dot_product_attention(query, key, value, causal=True).data).all()


@pytest.mark.parametrize("causal", [False, True])
def test_a_query_that_sees_no_key_takes_nothing(causal):
    query, key, value = random_heads(np.random.default_rng(4))
    mask = np.zeros((2, 1, 1, 5), np.float32)
    mask[1] = -np.inf
    weights = attention_weights(query, key, mask, causal).data
    assert (weights[1] == 0).all() and np.allclose(weights[0].sum(-1), 1)
    got = scaled_dot_product_attention(query, key, value, mask, causal).data
    assert (got[1] == 0).all()
    np.testing.assert_allclose(
        got[:1], slow_attention(query, key, value, None, causal)[:1], rtol=1e-5, atol=1e-6
    )


def test_padding_in_front_of_a_text_changes_nothing_of_it():
    layer = random_layer(8, 2, causal=True)
    text = np.random.default_rng(21).standard_normal((1, 4, 8)).astype(np.float32)
    padded = np.concatenate([np.full((1, 3, 8), 7, np.float32), text], axis=1)
    mask = np.zeros((1, 1, 1, 7), np.float32)
    mask[..., :3] = -np.inf
    out = layer(padded, mask).data
    assert np.isfinite(out).all()
    np.testing.assert_allclose(out[:, 3:], layer(text).data, rtol=1e-5, atol=1e-6)


def test_one_query_is_the_newest_and_sees_everything():
    query, key, value = random_heads(np.random.default_rng(5), T=1)
    alone = scaled_dot_product_attention(query, key, value, causal=True).data
    assert np.array_equal(alone, scaled_dot_product_attention(query, key, value).data)
    np.testing.assert_allclose(alone, slow_attention(query, key, value), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("T, S", [(129, 129), (300, 300), (200, 450), (256, 256)])
@pytest.mark.parametrize("mask_shape", [None, (1, 1), (2, 1, 1, None), (None,), (2, 3, "T", None)])
def test_many_queries_in_blocks_are_what_they_are_at_once(T, S, mask_shape):
    rng = np.random.default_rng(T + S)
    query, key, value = (rng.standard_normal((2, 3, n, 4)) for n in (T, S, S))
    mask = None
    if mask_shape is not None:
        mask = rng.standard_normal([{None: S, "T": T}.get(n, n) for n in mask_shape])
    got = scaled_dot_product_attention(
        *(Tensor(x, dtype=np.float64) for x in (query, key, value)), mask, True
    )
    scores = np.einsum("bhtd,bhsd->bhts", query, key) / 2 + (0 if mask is None else mask)
    scores[..., np.arange(S) > np.arange(S - T, S)[:, None]] = -np.inf
    shares = np.exp(scores - scores.max(axis=-1, keepdims=True))
    want = np.einsum("bhts,bhsd->bhtd", shares / shares.sum(axis=-1, keepdims=True), value)
    exact = 1e-9 if mask is None else 1e-5  # a mask is kept in float32
    assert np.allclose(got.data, want, rtol=exact, atol=exact / 100)


def test_a_long_text_never_has_all_its_scores_at_once():
    T = 2048
    query, key, value = (Tensor(np.ones((1, 2, T, 8))) for _ in range(3))
    tracemalloc.start()
    scaled_dot_product_attention(query, key, value, causal=True)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    scores = 4 * 2 * T * T
    assert peak < scores / 4, f"{peak} bytes, all scores of both heads are {scores}"


def test_a_long_text_has_the_gradients_of_attention_at_once(gradients):
    rng = np.random.default_rng(0)
    inputs = [Tensor(rng.standard_normal((1, 2, 150, 4)), requires_grad=True) for _ in range(3)]
    scaled_dot_product_attention(*inputs, causal=True).sum().backward()
    assert all(x.grad is not None and np.abs(x.grad).max() > 0 for x in inputs)
    assert np.allclose(inputs[2].grad.sum(), 150 * 2 * 4, rtol=1e-4), "shares of 1 for each query"


def test_values_may_have_a_width_of_their_own():
    rng = np.random.default_rng(6)
    query, key, _ = random_heads(rng)
    value = rng.standard_normal((2, 4, 5, 9)).astype(np.float32)
    got = scaled_dot_product_attention(query, key, value, causal=True)
    np.testing.assert_allclose(got.data, slow_attention(query, key, value, None, True), rtol=1e-5, atol=1e-6)


def test_number_types_go_through():
    query, key, value = random_heads(np.random.default_rng(7))
    assert weigh_keys(query, key).dtype == np.float32
    assert weigh_keys(query, key, causal_mask(3, 5)).dtype == np.float32
    double = tuple(Tensor(x, dtype=np.float64) for x in (query, key, value))
    got = scaled_dot_product_attention(*double, causal=True)
    assert got.dtype == np.float64
    np.testing.assert_allclose(got.data, slow_attention(query, key, value, None, True), rtol=1e-12)


def test_nothing_that_comes_in_is_changed():
    arrays = random_heads(np.random.default_rng(8))
    kept = [x.copy() for x in arrays]
    scaled_dot_product_attention(*(Tensor(x) for x in arrays), causal=True)
    weigh_keys(*arrays[:2], causal_mask(3, 5))
    assert all(np.array_equal(a, b) for a, b in zip(arrays, kept, strict=True))


def test_the_weights_are_made_in_one_array():
    """T * S numbers per head are the largest array that a model makes: there should be one of it."""
    query, key, _ = random_heads(np.random.default_rng(9), B=1, H=3, T=200, S=200, D=4)
    mask = causal_mask(200, 200)
    weigh_keys(query, key, mask)
    tracemalloc.start()
    weights = weigh_keys(query, key, mask)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1.5 * weights.nbytes, f"{peak:,} bytes at the peak for {weights.nbytes:,} bytes of weights"


def test_queries_of_a_group_share_their_keys(gradients):
    """(B, H, G, T, D) queries on (B, H, S, D) keys, against one look-up for each member of the group."""
    rng = np.random.default_rng(3)
    query = Tensor(rng.normal(size=(2, 3, 4, 2, 6)), requires_grad=True)
    key, value = (Tensor(rng.normal(size=(2, 3, 5, 6)), requires_grad=True) for _ in range(2))
    single = [Tensor(x.data, requires_grad=True) for x in (query, key, value)]
    weight = rng.normal(size=(2, 3, 4, 2, 6)).astype(np.float32)
    bias, wide = (rng.normal(size=shape).astype(np.float32) for shape in ((2, 1, 1, 5), (2, 3, 4, 2, 5)))
    for mask, causal in ((None, False), (None, True), (bias, True), (bias[0, 0], False), (wide, True)):
        for x in (query, key, value, *single):
            x.grad = None
        out = scaled_dot_product_attention(query, key, value, mask, causal)
        (out * weight).sum().backward()
        q, k, v = single
        for g in range(4):
            own = wide[:, :, g] if mask is wide else mask
            alone = scaled_dot_product_attention(q[:, :, g], k, v, own, causal)
            assert np.allclose(out.data[:, :, g], alone.data, rtol=1e-5, atol=1e-6)
            (alone * weight[:, :, g]).sum().backward()
        for shared, apart in zip((query, key, value), single, strict=True):
            assert np.allclose(shared.grad, apart.grad, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("num_keys", [1, 7, 400, 401, 900])
def test_one_token_of_a_group_sees_all_keys(num_keys):
    rng = np.random.default_rng(num_keys)
    query = rng.normal(size=(2, 3, 4, 1, 6)).astype(np.float32)
    key = rng.normal(size=(2, 3, num_keys, 6)).astype(np.float32)
    value = rng.normal(size=(2, 3, num_keys, 5)).astype(np.float32)
    parts = np.exp(np.einsum("bhgtd,bhsd->bhgts", query, key) / 6**0.5)
    want = np.einsum("bhgts,bhsd->bhgtd", parts / parts.sum(-1, keepdims=True), value)
    for causal in (False, True):
        out = scaled_dot_product_attention(query, key, value, causal=causal)
        assert out.shape == (2, 3, 4, 1, 5) and np.allclose(out.data, want, rtol=1e-4, atol=1e-5)


def test_a_long_prompt_of_groups_is_attended_in_blocks():
    rng = np.random.default_rng(4)
    query = rng.normal(size=(1, 2, 3, QUERY_BLOCK + 9, 4)).astype(np.float32)
    key, value = rng.normal(size=(2, 1, 2, QUERY_BLOCK + 20, 4)).astype(np.float32)
    out = scaled_dot_product_attention(query, key, value, causal=True).data
    scores = np.einsum("bhgtd,bhsd->bhgts", query, key) / 2
    visible = np.tri(QUERY_BLOCK + 9, QUERY_BLOCK + 20, 11, dtype=bool)
    parts = np.exp(np.where(visible, scores, -np.inf))
    want = np.einsum("bhgts,bhsd->bhgtd", parts / parts.sum(-1, keepdims=True), value)
    assert np.allclose(out, want, rtol=1e-4, atol=1e-5)


# bad input

GOOD = {"query": (2, 4, 3, 6), "key": (2, 4, 5, 6), "value": (2, 4, 5, 6)}


@pytest.mark.parametrize(
    ("changed", "numbers"),
    [
        ({"key": (2, 4, 5, 7), "value": (2, 4, 5, 7)}, "6.*7"),
        ({"key": (2, 1, 5, 6), "value": (2, 1, 5, 6)}, "4.*1"),
        ({"query": (1, 4, 3, 6)}, "1.*2"),
        ({"value": (2, 4, 4, 6)}, "5.*4"),
        ({"value": (2, 1, 5, 6)}, "4.*1"),
        ({"query": (4, 3, 6)}, "4.*2"),
        ({"query": (6,), "key": (6,), "value": (6,)}, "6"),
        ({"query": (2, 4, 0, 6)}, "0"),
        ({"key": (2, 4, 0, 6), "value": (2, 4, 0, 6)}, "0"),
        ({"mask": (3, 4)}, "4.*5"),
        ({"mask": (1, 2, 4, 3, 5)}, "1, 2, 4, 3, 5"),
        ({"mask": (3, 1, 3, 5)}, "3.*2"),
        ({"mask": (2, 4, 6, 5)}, "6.*3"),
    ],
)
def test_shapes_that_do_not_fit_are_named(changed, numbers):
    arrays = {name: np.zeros(shape, np.float32) for name, shape in (GOOD | changed).items()}
    with pytest.raises(ValueError, match=rf"(?s){numbers}"):
        scaled_dot_product_attention(**arrays)


@pytest.mark.parametrize("dtype", [bool, np.int64])
def test_a_mask_of_yes_and_no_is_refused(dtype):
    query, key, value = random_heads(np.random.default_rng(10))
    with pytest.raises(TypeError, match="floats"):
        scaled_dot_product_attention(query, key, value, np.tri(3, 5, 2).astype(dtype))


def test_what_is_no_number_is_refused():
    _, key, value = random_heads(np.random.default_rng(11))
    words = np.full((2, 4, 3, 6), "word")
    with pytest.raises(TypeError):
        scaled_dot_product_attention(words, key, value)


# gradients


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("masked", [False, True])
def test_slopes_are_the_measured_ones(gradients, causal, masked):
    rng = np.random.default_rng(12)
    shapes = [(2, 2, 3, 4), (2, 2, 5, 4), (2, 2, 5, 3)] + [(2, 1, 1, 5)] * masked
    inputs = [Tensor(rng.standard_normal(s), requires_grad=True, dtype=np.float64) for s in shapes]
    pull = rng.standard_normal((2, 2, 3, 3))
    (scaled_dot_product_attention(*inputs, causal=causal) * Tensor(pull, dtype=np.float64)).sum().backward()
    for x in inputs:
        assert x.grad.shape == x.shape
        for place in np.ndindex(x.shape):
            kept, heights = x.data[place], []
            for value in (kept + 1e-6, kept - 1e-6):
                x.data[place] = value
                arrays = [y.data for y in inputs] + [None] * (not masked)
                heights.append((slow_attention(*arrays, causal) * pull).sum())
            x.data[place] = kept
            assert abs(x.grad[place] - (heights[0] - heights[1]) / 2e-6) < 1e-5


def test_the_rule_changes_nothing_that_comes_in():
    rng = np.random.default_rng(20)
    query, key, _ = random_heads(rng)
    arrays = (rng.standard_normal((2, 4, 3, 5)), weigh_keys(query, key), query, key)
    kept = [x.copy() for x in arrays]
    grads = weigh_keys_gradient(*arrays)
    assert [g.shape for g in grads] == [query.shape, key.shape]
    assert len(weigh_keys_gradient(*arrays, causal_mask(3, 5))) == 3
    assert all(np.array_equal(a, b) for a, b in zip(arrays, kept, strict=True))


def test_no_gradient_flows_from_the_past_to_the_future(gradients):
    layer = random_layer(8, 2, causal=True)
    x = Tensor(np.random.default_rng(13).standard_normal((2, 5, 8)), requires_grad=True)
    layer(x)[:, 2].sum().backward()
    assert (x.grad[:, 3:] == 0).all(), "the output at position 2 depends on later tokens"
    assert (x.grad[:, :3] != 0).any(axis=-1).all(), "the output at position 2 depends on tokens 0 to 2"


def test_every_weight_of_the_layer_learns(gradients):
    layer = random_layer(8, 2, causal=True)
    x = Tensor(np.random.default_rng(14).standard_normal((2, 5, 8)))
    (layer(x) * layer(x)).sum().backward()
    for name, p in layer.named_parameters():
        assert p.grad is not None and p.grad.shape == p.shape
        # a bias of the keys moves all scores of a query alike, which the softmax takes out again
        assert name == "k_proj.bias" or np.abs(p.grad).max() > 1e-3, f"{name} gets no gradient"


# heads


@given(B=size, T=size, H=size, D=size)
@quick
def test_heads_are_pieces_of_every_token(B, T, H, D):
    x = np.arange(B * T * H * D).reshape(B, T, H * D)
    heads = split_heads(x, H)
    assert heads.shape == (B, H, T, D)
    for b, h, t, d in np.ndindex(B, H, T, D):
        assert heads[b, h, t, d] == x[b, t, h * D + d]
    assert np.array_equal(merge_heads(heads), x)
    other = np.arange(B * H * T * D).reshape(B, H, T, D)
    merged = merge_heads(other)
    for b, h, t, d in np.ndindex(B, H, T, D):
        assert merged[b, t, h * D + d] == other[b, h, t, d]


def test_splitting_and_merging_are_each_others_gradient(gradients):
    rng = np.random.default_rng(19)
    x = Tensor(rng.standard_normal((2, 3, 20)), requires_grad=True)
    pull = rng.standard_normal((2, 4, 3, 5)).astype(np.float32)
    (apply(split_heads, x, num_heads=4) * pull).sum().backward()
    assert np.array_equal(x.grad, np.concatenate([pull[:, h] for h in range(4)], axis=-1))
    heads = Tensor(pull, requires_grad=True)
    (apply(merge_heads, heads) * x.data).sum().backward()
    assert np.array_equal(heads.grad, np.stack(np.split(x.data, 4, axis=-1), axis=1))


def test_heads_of_unequal_size_are_refused():
    with pytest.raises(ValueError, match=r"20.*3"):
        split_heads(np.zeros((2, 3, 20)), 3)


# the layer


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize(("B", "T", "H", "D"), [(2, 3, 4, 5), (1, 6, 3, 2), (3, 1, 1, 7), (2, 5, 2, 1)])
def test_the_layer_is_what_the_loops_say(B, T, H, D, causal):
    layer = random_layer(H * D, H, seed=B, causal=causal)
    rng = np.random.default_rng(T)
    x = rng.standard_normal((B, T, H * D)).astype(np.float32)
    mask = rng.standard_normal((B, 1, 1, T)).astype(np.float32)
    for m in (None, mask):
        np.testing.assert_allclose(layer(Tensor(x), m).data, slow_layer(layer, x, m), rtol=1e-4, atol=1e-5)


def test_the_steps_of_the_layer_make_the_layer():
    layer = random_layer(12, 3, causal=True)
    x = Tensor(np.random.default_rng(15).standard_normal((2, 5, 12)))
    query, key, value = layer.project(x)
    assert query.shape == key.shape == value.shape == (2, 3, 5, 4)
    heads = scaled_dot_product_attention(query, key, value, causal=True)
    assert np.array_equal(layer.merge(heads).data, layer(x).data)


@given(length=st.integers(2, 9), place=st.data(), seed=st.integers(0, 99))
@quick
def test_a_later_token_changes_no_earlier_output(length, place, seed):
    layer = random_layer(8, 4, seed=seed, causal=True)
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((2, length, 8)).astype(np.float32)
    first = place.draw(st.integers(1, length - 1))
    changed = x.copy()
    changed[:, first:] = rng.standard_normal(changed[:, first:].shape)
    before, after = layer(Tensor(x)).data, layer(Tensor(changed)).data
    assert np.array_equal(before[:, :first], after[:, :first])
    assert (np.abs(before[:, first:] - after[:, first:]).max(axis=(0, 2)) > 0).all()


def test_without_causal_the_order_of_the_tokens_does_not_matter():
    layer = random_layer(8, 2)
    x = np.random.default_rng(16).standard_normal((2, 5, 8)).astype(np.float32)
    order = [3, 0, 4, 1, 2]
    np.testing.assert_allclose(layer(Tensor(x[:, order])).data, layer(Tensor(x)).data[:, order], atol=1e-5)


def test_texts_of_a_batch_do_not_see_each_other():
    layer = random_layer(8, 2, causal=True)
    x = np.random.default_rng(17).standard_normal((3, 4, 8)).astype(np.float32)
    together = layer(Tensor(x)).data
    for b in range(3):
        np.testing.assert_allclose(together[b], layer(Tensor(x[b : b + 1])).data[0], rtol=1e-5, atol=1e-6)


def test_the_weights_have_their_names_and_sizes():
    layer = MultiHeadAttention(6, 3, rng=0)
    names = {f"{part}_proj.{kind}" for part in ("q", "k", "v", "out") for kind in ("weight", "bias")}
    assert set(layer.state_dict()) == names
    assert (layer.embed_dim, layer.num_heads, layer.head_dim, layer.causal) == (6, 3, 2, False)
    assert sum(p.size for p in layer.parameters()) == 4 * 6 * 6 + 4 * 6
    same, other = MultiHeadAttention(6, 3, rng=0), MultiHeadAttention(6, 3, rng=1)
    assert np.array_equal(layer.q_proj.weight.data, same.q_proj.weight.data)
    assert not np.array_equal(layer.q_proj.weight.data, other.q_proj.weight.data)


@pytest.mark.parametrize(
    ("sizes", "error", "numbers"),
    [
        ((6, 4), ValueError, "6.*4"),
        ((0, 1), ValueError, "0"),
        ((6, 0), ValueError, "0"),
        ((6, -2), ValueError, "-2"),
        ((-6, 3), ValueError, "-6"),
        ((6.0, 3), TypeError, "6.0"),
        ((6, 2.5), TypeError, "2.5"),
        ((6, True), TypeError, "True"),
        (("6", 3), TypeError, "6"),
        ((None, 3), TypeError, "None"),
    ],
)
def test_sizes_that_no_layer_can_have(sizes, error, numbers):
    with pytest.raises(error, match=numbers):
        MultiHeadAttention(*sizes)


@pytest.mark.parametrize("shape", [(2, 3, 7), (3, 8), (8,), (2, 0, 8), (0, 3, 8), (1, 2, 3, 8)])
def test_input_that_the_layer_cannot_take(shape):
    layer = MultiHeadAttention(8, 2)
    with pytest.raises(ValueError, match=str(shape[0])):
        layer(Tensor(np.zeros(shape, np.float32)))


def test_arrays_and_lists_are_taken_as_tensors_are():
    layer = random_layer(4, 2)
    x = np.random.default_rng(18).standard_normal((1, 3, 4)).astype(np.float32)
    assert np.array_equal(layer(x).data, layer(Tensor(x)).data)
    assert np.array_equal(layer(x.tolist()).data, layer(Tensor(x)).data)
