"""Module 11 as the package has it: Embedding, learned, sinusoidal and rotary positions, their gradients."""

import cmath
import math
import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tinytorch.core.autograd import enable_autograd
from tinytorch.core.tensor import Tensor, apply, set_recorder
from tinytorch.text.embeddings import (
    Embedding,
    LearnedPositions,
    RotaryEmbedding,
    SinusoidalPositions,
    apply_rotary,
    check_rows,
    pairs_to_halves,
    rotary_gradient,
    rotary_tables,
    sinusoidal_table,
    sum_rows,
    take_rows,
)

quick = settings(max_examples=60, deadline=None, derandomize=True)
RNG = np.random.default_rng(11)
id_shapes = st.lists(st.integers(0, 4), max_size=3).map(tuple)


@pytest.fixture
def autograd():
    previous = set_recorder(None)
    enable_autograd()
    yield
    set_recorder(previous)


# ----------------------------------------------------------------------------------------------- embeddings


@quick
@given(shape=id_shapes, rows=st.integers(1, 6), width=st.integers(1, 4), seed=st.integers(0, 10**6))
def test_rows_and_their_slopes_against_loops(shape, rows, width, seed):
    rng = np.random.default_rng(seed)
    table, ids, slopes = (
        rng.normal(size=(rows, width)),
        rng.integers(0, rows, shape),
        rng.normal(size=(*shape, width)),
    )
    kept = table.copy(), ids.copy(), slopes.copy()
    got, want = take_rows(table, ids), np.zeros((rows, width))
    assert got.shape == (*shape, width) and not np.shares_memory(got, table)
    for place in np.ndindex(*shape):
        assert np.array_equal(got[place], table[ids[place]])
        for column in range(width):
            want[ids[place], column] += slopes[(*place, column)]
    np.testing.assert_allclose(sum_rows(slopes, ids, rows), want, rtol=1e-12, atol=1e-12)
    assert all(np.array_equal(a, b) for a, b in zip(kept, (table, ids, slopes), strict=True))


def test_the_gradient_of_a_table_with_repeated_ids(autograd):
    words, ids = Embedding(7, 3, rng=0), np.array([[5, 0, 5], [5, 2, 0]])
    grad = RNG.normal(size=(2, 3, 3)).astype(np.float32)
    words(ids).backward(grad)
    want = np.zeros((7, 3))
    for place in np.ndindex(2, 3):
        want[ids[place]] += grad[place]
    assert words.weight.grad.dtype == np.float32
    np.testing.assert_allclose(words.weight.grad, want, rtol=1e-6, atol=1e-6)
    words(Tensor([1, 1])).backward(np.ones((2, 3)))
    want[1] += 2
    np.testing.assert_allclose(words.weight.grad, want, rtol=1e-6, atol=1e-6)


def test_the_gradient_is_a_sum_and_not_slow():
    """A batch of 8192 tokens over 300 words, most of them the same few; loose enough for any machine."""
    ids = RNG.zipf(1.3, size=8192) % 300
    slopes = RNG.normal(size=(8192, 16)).astype(np.float32)
    want = [slopes[ids == i].sum(axis=0, dtype=np.float64) for i in range(300)]
    np.testing.assert_allclose(sum_rows(slopes, ids, 300), want, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
    "ids", [[3, 0, 3], [[1, 2], [0, 4]], 4, np.array([[2]], np.uint8), Tensor([0, 4]), np.zeros((0, 2), int)]
)
def test_embedding_takes_ids_in_every_form(ids):
    words = Embedding(5, 2, rng=0)
    y = words(ids)
    plain = np.asarray(ids)
    assert isinstance(y, Tensor) and y.dtype == np.float32 and y.shape == (*plain.shape, 2)
    for place in np.ndindex(*plain.shape):
        assert np.array_equal(y.data[place], words.weight.data[int(plain[place])])


@pytest.mark.parametrize(
    ("ids", "kind", "message"),
    [
        ([0, 5], ValueError, "5.*5"),
        ([[0, 1], [99, 2]], ValueError, "(?=.*99)(?=.*5)"),
        ([0, -1], ValueError, "(?=.*-1)(?=.*5)"),
        (-6, ValueError, "(?=.*-6)(?=.*5)"),
        (np.array([3, -1, 9], np.int8), ValueError, "(?=.*-1)(?=.*5)"),
        (np.array(2**63, np.uint64), ValueError, "(?=.*9223372036854775808)(?=.* 5)"),
        ([0.0, 1.0], TypeError, "float"),
        ([True, False], TypeError, "bool"),
        (["a"], TypeError, None),
    ],
)
def test_ids_that_are_no_rows(ids, kind, message):
    with pytest.raises(kind, match=message):
        Embedding(5, 2, rng=0)(ids)
    with pytest.raises(kind, match=message):
        check_rows(ids, 5)


def test_the_table_starts_small_and_seeded():
    words = Embedding(200, 300, rng=3)
    assert (
        words.weight.requires_grad and words.weight.shape == (200, 300) and words.weight.dtype == np.float32
    )
    assert abs(words.weight.data.std() - 0.02) < 3e-4 and abs(words.weight.data.mean()) < 5e-4
    assert np.array_equal(words.weight.data, Embedding(200, 300, rng=3).weight.data)
    assert not np.array_equal(words.weight.data, Embedding(200, 300, rng=4).weight.data)
    assert list(words.state_dict()) == ["weight"]


@pytest.mark.parametrize("make", [Embedding, LearnedPositions])
def test_sizes_that_cannot_be(make):
    for sizes in ((0, 3), (3, -2)):
        with pytest.raises(ValueError, match=str(min(sizes))):
            make(*sizes)
    with pytest.raises(TypeError):
        make(3.0, 2)


# ------------------------------------------------------------------------------------ learned and sinusoidal


@pytest.mark.parametrize("make", [lambda: LearnedPositions(9, 4, rng=0), lambda: SinusoidalPositions(4)])
def test_positions_go_on_where_the_last_piece_ended(make):
    places = make()
    whole = places(9)
    assert isinstance(whole, Tensor) and whole.shape == (9, 4) and whole.dtype == np.float32
    for cut in range(1, 9):
        pieces = [places(cut).data, places(9 - cut, start_pos=cut).data]
        assert np.array_equal(np.concatenate(pieces), whole.data)
    assert len({tuple(row) for row in whole.data.tolist()}) == 9, "no two positions are alike"
    with pytest.raises(ValueError, match="-1"):
        places(2, start_pos=-1)


def test_learned_positions_end_and_learn(autograd):
    places = LearnedPositions(6, 2, rng=0)
    for num_tokens, start_pos, reached in ((7, 0, 6), (1, 6, 6), (3, 5, 7)):
        with pytest.raises(ValueError, match=f"(?i)(?=.*position)(?=.*{reached})(?=.*5)"):
            places(num_tokens, start_pos)
    (weight,) = places.parameters()
    places(2, start_pos=3).backward(np.array([[1, 2], [3, 4]]))
    assert np.array_equal(weight.grad, [[0, 0]] * 3 + [[1, 2], [3, 4], [0, 0]])
    assert not SinusoidalPositions(4).parameters()


@quick
@given(
    positions=st.lists(st.integers(0, 10**6), min_size=1, max_size=4),
    half=st.integers(1, 5),
    base=st.sampled_from([10000.0, 50.0]),
)
def test_waves_against_the_formula(positions, half, base):
    table = sinusoidal_table(positions, 2 * half, base)
    assert table.shape == (len(positions), 2 * half) and table.dtype == np.float32
    for row, p in zip(table, positions, strict=True):
        for i in range(half):
            angle = p / base ** (2 * i / (2 * half))
            assert row[2 * i] == pytest.approx(math.sin(angle), abs=1e-6)
            assert row[2 * i + 1] == pytest.approx(math.cos(angle), abs=1e-6)


def test_products_of_waves_depend_on_the_distance_only():
    table = sinusoidal_table(np.arange(300), 32).astype(np.float64)
    products = table @ table.T
    for distance in (0, 1, 7, 100):
        line = np.diagonal(products, distance)
        assert line.max() - line.min() < 1e-4


@pytest.mark.parametrize("width", [0, 1, 5])
def test_waves_come_in_pairs(width):
    with pytest.raises(ValueError, match=str(width)):
        sinusoidal_table([0], width)
    with pytest.raises(ValueError, match=str(width)):
        SinusoidalPositions(width)


# ---------------------------------------------------------------------------------------------------- rotary


def slow_rotary(x, positions, base):
    """Complex numbers, one at a time; positions broadcast to x without its last axis."""
    half = x.shape[-1] // 2
    positions, out = np.broadcast_to(positions, x.shape[:-1]), np.empty(x.shape)
    for place in np.ndindex(*x.shape[:-1]):
        for i in range(half):
            angle = float(positions[place]) * base ** (-2 * i / x.shape[-1])
            pair = complex(x[(*place, i)], x[(*place, i + half)]) * cmath.exp(1j * angle)
            out[(*place, i)], out[(*place, i + half)] = pair.real, pair.imag
    return out


@quick
@given(
    positions=st.lists(st.integers(-1000, 10**6), min_size=1, max_size=4),
    half=st.integers(1, 5),
    base=st.sampled_from([10000.0, 100000.0, 50]),
    factors=st.one_of(st.none(), st.floats(0.5, 64), st.lists(st.floats(0.5, 64), min_size=5, max_size=5)),
)
def test_tables_against_the_formula(positions, half, base, factors):
    factors = factors[:half] if isinstance(factors, list) else factors
    slower = np.ones(half) if factors is None else np.broadcast_to(factors, half)
    cos, sin = rotary_tables(positions, 2 * half, base, factors)
    assert cos.shape == sin.shape == (len(positions), half) and cos.dtype == sin.dtype == np.float32
    for t, p in enumerate(positions):
        for i in range(half):
            angle = p * base ** (-2 * i / (2 * half)) / slower[i]
            assert cos[t, i] == pytest.approx(math.cos(angle), abs=1e-6)
            assert sin[t, i] == pytest.approx(math.sin(angle), abs=1e-6)


@pytest.mark.parametrize(
    "positions", [np.arange(4), [7, 3, 1000, 0], np.array([[[5, 6, 7, 8]], [[0, 1, 2, 3]]])]
)
def test_rotation_against_complex_numbers(positions):
    x = RNG.normal(size=(2, 4, 3, 6)).transpose(0, 2, 1, 3)  # (B, H, T, D) as split_heads leaves it
    kept = x.copy()
    got = apply_rotary(x, *rotary_tables(positions, 6, 500.0))
    np.testing.assert_allclose(got, slow_rotary(x, np.asarray(positions), 500.0), atol=1e-6)
    assert np.array_equal(x, kept) and not np.shares_memory(got, x)
    assert apply_rotary(x.astype(np.float32), *rotary_tables(positions, 6)).dtype == np.float32
    np.testing.assert_allclose((got**2).sum(-1), (x**2).sum(-1), rtol=1e-5, err_msg="turning keeps lengths")


def test_scores_depend_on_the_distance_only():
    query, key = RNG.normal(size=(1, 16)), RNG.normal(size=(1, 16))

    def score(m, n):
        turned = (apply_rotary(x, *rotary_tables([p], 16)) for x, p in ((query, m), (key, n)))
        return float(np.sum(next(turned) * next(turned)))

    for distance in (0, 1, -5, 300):
        scores = [score(m, m + distance) for m in (0, 5, 17, 4000, 100000)]
        assert max(scores) - min(scores) < 2e-5
    assert abs(score(0, 1) - score(0, 2)) > 1e-3 and abs(score(0, 1) - score(1, 0)) > 1e-3
    assert score(3, 3) == pytest.approx(float(np.sum(query * key)), abs=1e-5)


def test_neighbouring_pairs_become_halves():
    x, angle = RNG.normal(size=(3, 8)), RNG.normal(size=(3, 4))
    paper = np.empty((3, 8))
    for t, i in np.ndindex(3, 4):
        pair = complex(x[t, 2 * i], x[t, 2 * i + 1]) * cmath.exp(1j * angle[t, i])
        paper[t, 2 * i], paper[t, 2 * i + 1] = pair.real, pair.imag
    ours = apply_rotary(pairs_to_halves(x), np.cos(angle), np.sin(angle))
    np.testing.assert_allclose(pairs_to_halves(paper), ours, rtol=1e-12)
    assert pairs_to_halves(np.arange(6)).tolist() == [0, 2, 4, 1, 3, 5]


def test_rotary_gradient_against_central_differences(autograd):
    x, grad = RNG.normal(size=(2, 3, 4)), RNG.normal(size=(2, 3, 4))
    cos, sin = rotary_tables([9, 2, 5], 4)
    kept = cos.copy(), sin.copy()
    tensor = Tensor(x, requires_grad=True, dtype=np.float64)
    apply(apply_rotary, tensor, cos, sin).backward(grad)
    want, step = np.zeros_like(x), 1e-5
    for place in np.ndindex(*x.shape):
        for sign in (1, -1):
            moved = x.copy()
            moved[place] += sign * step
            want[place] += (
                sign * float((slow_rotary(moved, np.array([9, 2, 5]), 10000.0) * grad).sum()) / (2 * step)
            )
    np.testing.assert_allclose(tensor.grad, want, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(apply_rotary(rotary_gradient(grad, cos, sin), cos, sin), grad, atol=1e-6)
    assert np.array_equal(cos, kept[0]) and np.array_equal(sin, kept[1])


@quick
@given(split=st.integers(1, 6), start=st.integers(0, 9))
def test_rotary_embedding_in_pieces(split, start):
    rotary = RotaryEmbedding(6, 16, base=100.0)
    x = np.random.default_rng(split).normal(size=(2, 3, 7, 6)).astype(np.float32)
    whole = rotary(Tensor(x), start_pos=start)
    assert isinstance(whole, Tensor) and whole.dtype == np.float32
    np.testing.assert_allclose(
        whole.data, slow_rotary(x, np.arange(start, start + 7), 100.0), rtol=1e-5, atol=1e-5
    )
    pieces = [rotary(x[:, :, :split], start).data, rotary(x[:, :, split:], start + split).data]
    assert np.array_equal(np.concatenate(pieces, axis=2), whole.data)


def test_rotary_embedding_has_nothing_to_learn_and_to_save():
    rotary = RotaryEmbedding(6, 16)
    assert rotary.parameters() == [] and rotary.state_dict() == {}


def test_rotary_positions_that_cannot_be():
    rotary, x = RotaryEmbedding(4, 8), np.ones((1, 2, 3, 4), np.float32)
    with pytest.raises(ValueError, match="(?=.*8)(?=.*7)"):
        rotary(x, start_pos=6)
    with pytest.raises(ValueError, match="-1"):
        rotary(x, start_pos=-1)
    with pytest.raises(ValueError, match=re.escape("(1, 2, 3, 6)")):
        rotary(np.ones((1, 2, 3, 6), np.float32))
    for head_dim in (0, 1, 7):
        with pytest.raises(ValueError, match=str(head_dim)):
            rotary_tables([0], head_dim)
        with pytest.raises(ValueError, match=str(head_dim)):
            RotaryEmbedding(head_dim, 8)
    for base in (0, -10, math.nan, math.inf):
        with pytest.raises(ValueError, match=str(base)):
            rotary_tables([0], 4, base)
    with pytest.raises(ValueError, match="0"):
        RotaryEmbedding(4, 0)


@pytest.mark.parametrize("shape", [(1, 2), (4, 2), (3, 1), (3, 4), (2,)])
def test_tables_that_do_not_fit(shape):
    with pytest.raises(ValueError, match=rf"(?=.*\(5, 3, 4\))(?=.*{re.escape(str(shape))})"):
        apply_rotary(np.ones((5, 3, 4)), np.ones(shape), np.zeros(shape))
    with pytest.raises(ValueError, match=re.escape("(3, 5)")):
        apply_rotary(np.ones((3, 5)), np.ones((3, 2)), np.zeros((3, 2)))
