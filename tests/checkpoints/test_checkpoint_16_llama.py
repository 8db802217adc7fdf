"""Checkpoint 16: Llama against a forward pass in float64, written here; cached, ragged and learning."""

import copy
import math
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tinytorch.core.autograd import enable_autograd
from tinytorch.core.optimizers import SGD
from tinytorch.core.tensor import Tensor, apply, set_recorder
from tinytorch.generation.kv_cache import KVCache, disable_kv_cache, enable_kv_cache, generate_with_cache
from tinytorch.models.llama import (
    GroupedQueryAttention,
    Llama,
    LlamaBlock,
    RotaryPositions,
    SwiGLU,
    count_llama_parameters,
    rows_to_halves,
)
from tinytorch.models.transformer import next_token_loss

quick = settings(max_examples=40, deadline=None)

V, C, L, H, G, D, F, LONGEST = 13, 10, 2, 2, 3, 4, 7, 24  # every size another; H counts the key heads


@pytest.fixture
def gradients():
    """Gradients are recorded in this test; afterwards all is as it was."""
    before = set_recorder(None)
    enable_autograd()
    yield
    set_recorder(before)


def random_llama(seed=0, kv_heads=H, group=G, **sizes):
    """Every weight random, those of the norms too, and large enough that each matters."""
    sizes = {"hidden_dim": F, "max_seq_len": LONGEST, "head_dim": D, "rope_base": 100.0} | sizes
    model = Llama(V, C, L, kv_heads * group, kv_heads, seed=seed, **sizes)
    rng = np.random.default_rng(seed)
    for name, p in model.named_parameters():
        p.data[...] = rng.normal(1.0 if "norm" in name else 0.0, 0.4, p.shape)
    return model


def some_tokens(rows, length, seed=1):
    return np.random.default_rng(seed).integers(0, V, (rows, length))


# the oracle: float64, from `state_dict` and the sizes alone


def slow_norm(x, weight, eps):
    return x / np.sqrt((x * x).mean(axis=-1, keepdims=True) + eps) * weight


def slow_turn(x, positions, base):
    """(T, D) turned at (T,) positions, as complex numbers: entry i with entry i + D / 2."""
    half = x.shape[-1] // 2
    spin = np.exp(1j * np.outer(positions, 1.0 / base ** (np.arange(half) / half)))
    turned = (x[:, :half] + 1j * x[:, half:]) * spin
    return np.concatenate([turned.real, turned.imag], axis=-1)


def slow_attention(x, weights, name, num_heads, num_kv_heads, positions, base, hidden=0):
    """(T, C) -> (T, C), head by head; the first `hidden` tokens are seen by nobody else."""
    q, k, v = (x @ weights[f"{name}.{part}_proj.weight"].T for part in "qkv")
    width, heads, T = q.shape[1] // num_heads, [], len(x)
    for h in range(num_heads):
        mine, shared = slice(h * width, h * width + width), h // (num_heads // num_kv_heads)
        theirs = slice(shared * width, shared * width + width)
        query = slow_turn(q[:, mine], positions, base)
        key = slow_turn(k[:, theirs], positions, base)
        head = np.zeros((T, width))
        for t in range(T):
            seen = [s for s in range(t + 1) if s >= hidden or s == t]
            parts = np.array([math.exp(query[t] @ key[s] / math.sqrt(width)) for s in seen])
            head[t] = parts @ v[seen][:, theirs] / parts.sum()
        heads.append(head)
    return np.concatenate(heads, axis=-1) @ weights[f"{name}.out_proj.weight"].T


def slow_swiglu(x, weights, name):
    gate, up, down = (weights[f"{name}.{part}.weight"] for part in ("gate", "up", "down"))
    a = x @ gate.T
    return (a / (1 + np.exp(-a)) * (x @ up.T)) @ down.T


def slow_block(x, weights, name, sizes, positions):
    normed = slow_norm(x, weights[f"{name}.norm1.weight"], sizes["eps"])
    heads = sizes["num_heads"], sizes["num_kv_heads"]
    x = x + slow_attention(normed, weights, f"{name}.attention", *heads, positions, sizes["base"])
    return x + slow_swiglu(
        slow_norm(x, weights[f"{name}.norm2.weight"], sizes["eps"]), weights, f"{name}.mlp"
    )


def slow_llama(model, tokens, start_pos=0):
    """(B, T) -> (B, T, V) in float64."""
    weights = {name: np.asarray(array, np.float64) for name, array in model.state_dict().items()}
    sizes = {"num_heads": model.num_heads, "num_kv_heads": model.num_kv_heads}
    sizes |= {"base": model.rope_base, "eps": model.eps}
    rows = []
    for row in np.asarray(tokens):
        x = weights["token_embedding.weight"][row]
        for i in range(model.num_layers):
            x = slow_block(x, weights, f"blocks.{i}", sizes, np.arange(start_pos, start_pos + len(row)))
        x = slow_norm(x, weights["norm.weight"], sizes["eps"])
        rows.append(x @ weights.get("output.weight", weights["token_embedding.weight"]).T)
    return np.array(rows)


# Llama, exactly


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize(
    ("kv_heads", "group", "head_dim", "B", "T"),
    [(2, 3, 4, 3, 5), (3, 2, 6, 2, 9), (1, 4, 2, 1, 24), (5, 1, 2, 4, 1)],
)
def test_the_model_is_what_the_loops_say(kv_heads, group, head_dim, B, T, tied):
    model = random_llama(kv_heads=kv_heads, group=group, head_dim=head_dim, tied=tied, eps=1e-2)
    tokens = some_tokens(B, T)
    got = model(tokens)
    assert isinstance(got, Tensor) and got.shape == (B, T, V) and got.dtype == np.float32
    np.testing.assert_allclose(got.data, slow_llama(model, tokens), rtol=1e-4, atol=1e-4)


def test_positions_begin_at_start_pos():
    model, tokens = random_llama(), some_tokens(2, 5)
    want = slow_llama(model, tokens, 17)
    got = model.logits(model.hidden_states(tokens, start_pos=17)).data
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(got, model(tokens).data, rtol=1e-3, atol=1e-3)  # distances alone matter


def test_eps_and_the_base_of_the_frequencies_are_used():
    tokens = some_tokens(1, 6)
    for sizes in ({"eps": 0.5}, {"rope_base": 7.0}):
        model = random_llama(**sizes)
        np.testing.assert_allclose(model(tokens).data, slow_llama(model, tokens), rtol=1e-4, atol=1e-4)
        assert np.abs(random_llama()(tokens).data - model(tokens).data).max() > 1e-3


@pytest.mark.parametrize("tied", [True, False])
def test_the_names_of_the_weights(tied):
    layer = [f"attention.{part}_proj" for part in ("q", "k", "v", "out")]
    layer += ["norm1", "norm2", *(f"mlp.{part}" for part in ("gate", "up", "down"))]
    want = {f"blocks.{i}.{name}.weight" for i in range(L) for name in layer}
    want |= {"token_embedding.weight", "norm.weight"} | (set() if tied else {"output.weight"})
    model = random_llama(tied=tied)
    state = model.state_dict()
    assert set(state) == want
    assert state["blocks.1.attention.q_proj.weight"].shape == (H * G * D, C)
    assert state["blocks.1.attention.k_proj.weight"].shape == (H * D, C)
    assert state["blocks.1.attention.out_proj.weight"].shape == (C, H * G * D)
    assert state["blocks.0.mlp.gate.weight"].shape == (F, C)
    assert state["blocks.0.mlp.down.weight"].shape == (C, F)
    assert all(array.dtype == np.float32 for array in state.values())
    other = random_llama(seed=5, tied=tied)
    other.load_state_dict(state)
    assert np.array_equal(other(some_tokens(1, 4)).data, model(some_tokens(1, 4)).data)


def test_a_copy_turns_by_positions_of_its_own():
    model = random_llama()
    twin, tokens = copy.deepcopy(model), some_tokens(2, 6)
    want = model(tokens).data
    model.hidden_states(tokens[:, :3], start_pos=9)
    np.testing.assert_array_equal(twin(tokens).data, want)


def test_the_defaults():
    model = Llama(11, 12, 1, 6)
    assert (model.num_kv_heads, model.head_dim, model.hidden_dim, model.max_seq_len) == (6, 2, 32, 2048)
    assert model.tied and not model.training and model.rope_base == 10000.0 and model.eps == 1e-5
    one, two, other = (Llama(11, 12, 1, 6, seed=seed).state_dict() for seed in (3, 3, 4))
    assert all(np.array_equal(one[name], two[name]) for name in one)
    assert not np.array_equal(one["blocks.0.mlp.up.weight"], other["blocks.0.mlp.up.weight"])


def test_nothing_is_float64_anywhere():
    model, tokens = random_llama(tied=False), some_tokens(2, 5)
    attention = model.blocks[0].attention
    hidden, rotation = model.hidden_states(tokens), model.position_embedding(np.arange(5))
    parts = [
        hidden,
        model.logits(hidden),
        *attention.project(hidden, rotation),
        attention(hidden, None, rotation),
        model.blocks[0](hidden, None, rotation),
    ]
    assert all(part.dtype == np.float32 for part in parts)
    assert model.next_logits(tokens).dtype == np.float32
    cache = enable_kv_cache(model)
    assert model(tokens).dtype == np.float32
    assert all(array.dtype == np.float32 for pair in cache.caches for array in pair)


# its parts


def test_rotary_positions_turn_as_complex_numbers_do():
    rng = np.random.default_rng(2)
    rotary = RotaryPositions(6, 500, base=50.0)
    x = rng.standard_normal((2, 3, 5, 6)).astype(np.float32)
    for positions in (rng.integers(0, 500, 5), rng.integers(0, 500, (2, 5))):
        got = rotary(positions).turn(Tensor(x))
        assert isinstance(got, Tensor) and got.dtype == np.float32
        for b, h in np.ndindex(2, 3):
            want = slow_turn(x[b, h].astype(float), positions if positions.ndim == 1 else positions[b], 50.0)
            np.testing.assert_allclose(got.data[b, h], want, atol=1e-4)


def test_a_pass_leaves_nothing_behind():
    """Whoever else asks the model, before the layers of this pass are done, changes nothing in it."""
    rotary, x = RotaryPositions(4, 9), Tensor(np.ones((1, 1, 2, 4)))
    kept = dict(vars(rotary))
    first = rotary([5, 6])
    before = first.turn(x).data
    rotary([[0, 1], [2, 3]])
    np.testing.assert_array_equal(first.turn(x).data, before)
    assert vars(rotary).keys() == kept.keys() and all(vars(rotary)[name] is kept[name] for name in kept)


def test_a_forgotten_rotation_is_an_error():
    model, x = random_llama(), Tensor(np.zeros((1, 2, C), np.float32))
    for part in (model.blocks[0], model.blocks[0].attention, model.blocks[0].attention.project):
        with pytest.raises(TypeError, match="rotation"):
            part(x)


@given(m=st.integers(0, 900), n=st.integers(0, 900), shift=st.integers(0, 99))
@quick
def test_a_score_depends_on_the_distance_alone(m, n, shift):
    rng, rotary = np.random.default_rng(3), RotaryPositions(8, 1000)
    q, k = rng.standard_normal((2, 1, 1, 1, 8)).astype(np.float32)

    def score(m, n):
        turned = []
        for x, position in ((q, m), (k, n)):
            turned.append(rotary(np.array([position])).turn(Tensor(x)).data)
        return float((turned[0] * turned[1]).sum())

    assert abs(score(m, n) - score(m + shift, n + shift)) < 1e-4


@pytest.mark.parametrize(
    ("positions", "error"),
    [([9], ValueError), ([-1], ValueError), ([[0], [12]], ValueError), ([1.0], TypeError)],
)
def test_positions_that_are_none(positions, error):
    with pytest.raises(error):
        RotaryPositions(4, 9)(np.array(positions))


def test_the_cache_sees_turned_keys_of_the_key_heads():
    attention = random_llama().blocks[0].attention
    positions = np.array([[3, 4, 5, 6, 7], [0, 1, 2, 3, 4]])
    rotation = RotaryPositions(D, LONGEST, 100.0)(positions)
    x = np.random.default_rng(4).standard_normal((2, 5, C)).astype(np.float32)
    query, key, value = attention.project(Tensor(x), rotation)
    assert query.shape == (2, H, G, 5, D) and key.shape == value.shape == (2, H, 5, D)
    for b in range(2):
        q, k, v = (
            x[b] @ layer.weight.data.T for layer in (attention.q_proj, attention.k_proj, attention.v_proj)
        )
        for h in range(H):
            mine = slice(h * D, h * D + D)
            np.testing.assert_allclose(key.data[b, h], slow_turn(k[:, mine], positions[b], 100.0), atol=1e-4)
            np.testing.assert_allclose(value.data[b, h], v[:, mine], atol=1e-5)
        for h in range(H * G):
            want = slow_turn(q[:, h * D : h * D + D], positions[b], 100.0)
            np.testing.assert_allclose(query.data[b, h // G, h % G], want, atol=1e-4)


def test_attention_and_its_mask():
    model = random_llama()
    attention = model.blocks[1].attention
    weights = {f"a.{name}": array.astype(np.float64) for name, array in attention.state_dict().items()}
    x = np.random.default_rng(5).standard_normal((2, 6, C)).astype(np.float32)
    rotation = model.position_embedding(np.arange(2, 8))
    for hidden in (0, 2):
        mask = None
        if hidden:  # the first two keys are hidden, except from themselves
            mask = np.where((np.arange(6) < hidden) & ~np.eye(6, dtype=bool), -np.inf, 0).astype(np.float32)
        for form in (mask, None if mask is None else mask[None, None]):
            got = attention(Tensor(x), form, rotation)
            assert got.shape == (2, 6, C) and got.dtype == np.float32
            for b in range(2):
                want = slow_attention(
                    x[b].astype(float), weights, "a", H * G, H, np.arange(2, 8), 100.0, hidden
                )
                np.testing.assert_allclose(got.data[b], want, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("shape", [(5, C), (1, 5, C + 1), (1, 0, C), (0, 5, C), (1, 1, 5, C)])
def test_what_attention_does_not_take(shape):
    attention = random_llama().blocks[0].attention
    with pytest.raises(ValueError, match=str(C)):
        attention.project(Tensor(np.zeros(shape, np.float32)), None)


def test_swiglu_and_block():
    model = random_llama(eps=0.1)
    block, rng = model.blocks[0], np.random.default_rng(6)
    weights = {f"b.{name}": array.astype(np.float64) for name, array in block.state_dict().items()}
    for shape in ((C,), (4, C), (2, 3, 5, C)):
        x = rng.standard_normal(shape).astype(np.float32)
        np.testing.assert_allclose(
            block.mlp(Tensor(x)).data, slow_swiglu(x, weights, "b.mlp"), rtol=1e-4, atol=1e-4
        )
    x = rng.standard_normal((2, 5, C)).astype(np.float32)
    rotation = model.position_embedding(np.arange(5))
    sizes = {"num_heads": H * G, "num_kv_heads": H, "base": 100.0, "eps": 0.1}
    for b in range(2):
        want = slow_block(x[b].astype(float), weights, "b", sizes, np.arange(5))
        np.testing.assert_allclose(block(Tensor(x), None, rotation).data[b], want, rtol=1e-4, atol=1e-4)
    alone = np.where(np.eye(5, dtype=bool), 0, -np.inf).astype(np.float32)
    hidden, plain = block(Tensor(x), alone, rotation).data, block(Tensor(x), None, rotation).data
    assert np.abs(hidden - plain)[:, 1:].max() > 1e-3


# sizes


@pytest.mark.parametrize(
    ("sizes", "tied", "want"),
    [
        ((49_152, 576, 30, 9, 3, 1536), True, 134_515_008),  # SmolLM2-135M
        ((32_000, 2048, 22, 32, 4, 5632), False, 1_100_048_384),  # TinyLlama
        ((32_000, 4096, 32, 32, 32, 11_008), False, 6_738_415_616),  # Llama 2 7B
        ((128_256, 4096, 32, 32, 8, 14_336), False, 8_030_261_248),  # Llama 3 8B
    ],
)
def test_published_sizes(sizes, tied, want):
    assert count_llama_parameters(*sizes, tied=tied) == want


@given(
    kv_heads=st.integers(1, 4),
    group=st.integers(1, 3),
    width=st.integers(1, 5),
    head_dim=st.sampled_from([None, 2, 6]),
    hidden=st.integers(1, 9),
    layers=st.integers(1, 3),
    tied=st.booleans(),
)
@quick
def test_the_count_is_that_of_the_model(kv_heads, group, width, head_dim, hidden, layers, tied):
    heads = kv_heads * group
    embed_dim = 2 * width * heads
    sizes = 17, embed_dim, layers, heads, kv_heads, hidden
    model = Llama(*sizes, 8, head_dim=head_dim, tied=tied)
    count = count_llama_parameters(*sizes, head_dim=head_dim, tied=tied)
    assert count == sum(p.size for p in model.parameters())


@pytest.mark.parametrize(
    ("change", "error", "said"),
    [
        ({"vocab_size": 0}, ValueError, "vocab_size.*0"),
        ({"embed_dim": -4}, ValueError, "embed_dim.*-4"),
        ({"num_layers": 0}, ValueError, "num_layers.*0"),
        ({"num_heads": 5}, ValueError, "12.*5"),
        ({"num_kv_heads": 4}, ValueError, "6.*4"),
        ({"num_kv_heads": 0}, ValueError, "num_kv_heads.*0"),
        ({"num_kv_heads": 12}, ValueError, "6.*12"),
        ({"hidden_dim": 0}, ValueError, "hidden_dim.*0"),
        ({"max_seq_len": 0}, ValueError, "max_seq_len.*0"),
        ({"head_dim": 3}, ValueError, "even.*3"),
        ({"rope_base": 0.0}, ValueError, "0"),
        ({"eps": -1.0}, ValueError, "-1"),
        ({"embed_dim": 12.0}, TypeError, "embed_dim.*12.0"),
        ({"num_kv_heads": "2"}, TypeError, "num_kv_heads.*2"),
        ({"hidden_dim": 7.5}, TypeError, "hidden_dim.*7.5"),
        ({"head_dim": True}, TypeError, "head_dim.*True"),
    ],
)
def test_sizes_that_no_model_has(change, error, said):
    sizes = {"vocab_size": 11, "embed_dim": 12, "num_layers": 2, "num_heads": 6, "num_kv_heads": 2}
    with pytest.raises(error, match=said):
        Llama(**sizes | change)


@pytest.mark.parametrize(
    ("tokens", "start_pos", "error"),
    [
        ([[0, V]], 0, ValueError),
        ([[0, -1]], 0, ValueError),
        ([[]], 0, ValueError),
        ([[0.5]], 0, TypeError),
        ([[1, 2]], LONGEST - 1, ValueError),
        ([[1]], -1, ValueError),
        ([[1]], 0.0, TypeError),
    ],
)
def test_tokens_that_are_refused(tokens, start_pos, error):
    with pytest.raises(error):
        random_llama().hidden_states(tokens, start_pos)


def test_the_whole_context_and_no_token_more():
    model = random_llama()
    assert model.generate(some_tokens(1, LONGEST - 3), 3, temperature=0).shape == (1, LONGEST)
    with pytest.raises(ValueError, match=f"{LONGEST + 1}.*{LONGEST}"):
        model.generate(some_tokens(1, LONGEST - 3), 4)


# the rows in the file


@given(heads=st.integers(1, 5), half=st.integers(1, 5), width=st.integers(1, 4))
@quick
def test_rows_are_put_back_head_by_head(heads, half, width):
    rows = heads * 2 * half
    weight = np.arange(rows * width, dtype=np.float32).reshape(rows, width)
    kept = weight.copy()
    got = rows_to_halves(weight, heads)
    want = []
    for h in range(heads):
        first = h * 2 * half
        want += [first + 2 * i for i in range(half)] + [first + 2 * i + 1 for i in range(half)]
    assert got.shape == weight.shape and got.dtype == np.float32
    assert np.array_equal(got, kept[want]) and np.array_equal(weight, kept)


@pytest.mark.parametrize(("rows", "heads"), [(12, 5), (9, 3), (6, 6), (7, 1)])
def test_rows_that_make_no_heads(rows, heads):
    with pytest.raises(ValueError, match=f"{rows}.*{heads}"):
        rows_to_halves(np.zeros((rows, 2), np.float32), heads)


def test_a_model_in_the_order_of_the_file_scores_alike():
    """Neighbours turned as pairs, on the file's rows, give the scores of halves on the rows put back."""
    rng = np.random.default_rng(7)
    file_rows = rng.standard_normal((2, 3 * 6, 5))
    x, positions = rng.standard_normal((4, 5)), np.array([0, 3, 11, 40])
    q, k = (x @ rows.T for rows in file_rows)
    ours_q, ours_k = (x @ rows_to_halves(rows, 3).T for rows in file_rows)
    for h in range(3):
        mine = slice(6 * h, 6 * h + 6)
        spin = np.exp(1j * np.outer(positions, 100.0 ** (-np.arange(3) / 3)))
        pairs = [(a[:, mine][:, 0::2] + 1j * a[:, mine][:, 1::2]) * spin for a in (q, k)]
        halves = [slow_turn(a[:, mine], positions, 100.0) for a in (ours_q, ours_k)]
        want = (pairs[0] @ pairs[1].conj().T).real
        np.testing.assert_allclose(halves[0] @ halves[1].T, want, atol=1e-9)


# through the cache of module 15


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize(("kv_heads", "group"), [(2, 3), (1, 4), (3, 1)])
@pytest.mark.parametrize("rows", [1, 3])
def test_cached_is_uncached_however_it_is_cut(kv_heads, group, rows, tied):
    model = random_llama(kv_heads=kv_heads, group=group, tied=tied)
    tokens = some_tokens(rows, 19)
    want = slow_llama(model, tokens)
    for cuts in ((), (18,), (1, 2, 3, 11), (5, 12), range(1, 19)):
        cache = enable_kv_cache(model)
        got = np.concatenate([model(piece).data for piece in np.split(tokens, cuts, axis=1)], axis=1)
        assert cache.seq_pos == 19 and cache.num_heads == kv_heads
        np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-4)
    disable_kv_cache(model)
    np.testing.assert_allclose(model(tokens).data, want, rtol=1e-4, atol=1e-4)


def test_what_the_cache_holds_is_turned_once_and_stays():
    model, tokens = random_llama(), some_tokens(2, 12)
    cache = enable_kv_cache(model)
    model(tokens[:, :7])
    before = [[part.data[:, :, :7].copy() for part in pair] for pair in cache.caches]
    assert cache.caches[0][0].shape == (2, H, LONGEST, D)
    model(tokens[:, 7:9])
    model(tokens[:, 9:])
    for pair, kept in zip(cache.caches, before, strict=True):
        for part, was in zip(pair, kept, strict=True):
            assert np.array_equal(part.data[:, :, :7], was)
    weights = model.state_dict()
    x = slow_norm(weights["token_embedding.weight"][tokens[1]], weights["blocks.0.norm1.weight"], model.eps)
    key = x @ weights["blocks.0.attention.k_proj.weight"].T
    want = slow_turn(key[:, D : 2 * D].astype(float), np.arange(12), 100.0)
    np.testing.assert_allclose(cache.caches[0][0].data[1, 1, :12], want, atol=1e-4)


def test_greedy_tokens_and_the_cache_taken_off():
    model = random_llama()
    before = dict(vars(model))
    for rows, length in ((1, 1), (3, 4), (2, 20)):
        prompt = some_tokens(rows, length, seed=rows)
        want = prompt
        for _ in range(4):
            want = np.concatenate([want, slow_llama(model, want)[:, -1:].argmax(axis=-1)], axis=1)
        assert np.array_equal(model.generate(prompt, 4, temperature=0), want)
        assert np.array_equal(generate_with_cache(model, prompt, 4, temperature=0), want)
    assert vars(model) == before


def test_a_rewound_cache_goes_on_at_the_right_position():
    model, tokens = random_llama(), some_tokens(1, 14)
    want = slow_llama(model, tokens)
    cache = enable_kv_cache(model)
    model(tokens[:, :9])
    model(some_tokens(1, 5, seed=8))
    cache.truncate(9)
    np.testing.assert_allclose(model(tokens[:, 9:]).data, want[:, 9:], rtol=1e-4, atol=1e-4)


def test_a_cache_of_another_shape_is_refused():
    model = random_llama()
    with pytest.raises(ValueError, match=f"{H * G}.*{H}"):
        enable_kv_cache(model, KVCache(1, LONGEST, L, H * G, D))


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("cached", [True, False])
def test_rows_of_different_lengths_are_as_if_alone(side, cached):
    model, lengths, new = random_llama(), [2, 9, 5, 1], 6
    texts = [some_tokens(1, n, seed=n)[0] for n in lengths]
    prompt = np.full((4, 9), -1)
    for row, text in zip(prompt, texts, strict=True):
        row[: len(text)] = text
        row[:] = np.roll(row, 9 - len(text)) if side == "left" else row
    write = generate_with_cache if cached else Llama.generate
    got = write(model, prompt, new, temperature=0, lengths=lengths, pad_side=side)
    for row, text in zip(got, texts, strict=True):
        want = text[None]
        for _ in range(new):
            want = np.concatenate([want, slow_llama(model, want)[:, -1:].argmax(axis=-1)], axis=1)
        n, pad = len(text), 9 - len(text)
        row = row[pad:] if side == "left" else row[: n + new]
        assert row.tolist() == want[0].tolist()
    plain = some_tokens(2, 8)
    np.testing.assert_allclose(model(plain).data, slow_llama(model, plain), rtol=1e-4, atol=1e-4)


# gradients


@pytest.mark.parametrize("tied", [True, False])
def test_every_weight_has_the_slope_that_nudging_finds(tied, gradients):
    model = random_llama(tied=tied)
    tokens = some_tokens(2, 6, seed=9)
    state = {name: array.astype(np.float64) for name, array in model.state_dict().items()}

    class Float64:
        """What the oracle asks of a model, with weights that can be nudged."""

        num_heads, num_kv_heads, num_layers = model.num_heads, model.num_kv_heads, model.num_layers
        rope_base, eps, state_dict = model.rope_base, model.eps, staticmethod(lambda: state)

    def loss():
        logits = slow_llama(Float64, tokens[:, :-1])
        shares = np.exp(logits - logits.max(axis=-1, keepdims=True))
        shares /= shares.sum(axis=-1, keepdims=True)
        return -np.log(np.take_along_axis(shares, tokens[:, 1:, None], axis=-1)).mean()

    got = next_token_loss(model.train(), tokens)
    assert abs(got.item() - loss()) < 1e-4
    got.backward()
    rng = np.random.default_rng(10)
    for name, p in model.named_parameters():
        assert p.grad is not None and p.grad.shape == p.shape, name
        for _ in range(4):
            place = tuple(rng.integers(0, size) for size in p.shape)
            kept, losses = state[name][place], []
            for step in (1e-5, -1e-5):
                state[name][place] = kept + step
                losses.append(loss())
            state[name][place] = kept
            slope = (losses[0] - losses[1]) / 2e-5
            assert abs(p.grad[place] - slope) < 1e-4, f"{name}{place}: {p.grad[place]} instead of {slope}"


def test_a_tiny_llama_learns(gradients):
    model = Llama(V, 16, 2, 4, 2, max_seq_len=LONGEST, seed=0).train()
    tokens = some_tokens(3, 12, seed=11)
    optimizer, losses = SGD(model.parameters(), lr=0.5), []
    for _ in range(40):
        loss = next_token_loss(model, tokens)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert abs(losses[0] - math.log(V)) < 0.5 and losses[-1] < 0.5 * losses[0]


def test_a_block_can_stand_alone():
    """Anything that can turn will do: for a model without positions, what turns nothing."""
    unturned = SimpleNamespace(turn=lambda x: x)
    attention = GroupedQueryAttention(6, 4, 2, 2, rng=0)
    block = LlamaBlock(attention, hidden_dim=5, rng=0)
    x = Tensor(np.random.default_rng(12).standard_normal((1, 4, 6)))
    y = block(x, None, unturned).data
    swapped = block(Tensor(x.data[:, [1, 0, 2, 3]]), None, unturned).data
    np.testing.assert_allclose(swapped[:, 2:], y[:, 2:], atol=1e-5)  # nothing knows an order
    assert SwiGLU(6, 5)(x).shape == (1, 4, 6)
    doubled = SimpleNamespace(turn=lambda x: apply(np.multiply, x, np.float32(2)))
    ratio = attention.project(x, doubled)[1].data / attention.project(x, unturned)[1].data
    np.testing.assert_allclose(ratio, 2, rtol=1e-5)
