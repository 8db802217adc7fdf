"""Module 04 as the package has it: MSELoss, log_softmax, CrossEntropyLoss, chance_loss, perplexity."""

import math
from decimal import Decimal, localcontext

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tinytorch.core.losses import (
    CrossEntropyLoss,
    MSELoss,
    chance_loss,
    check_targets,
    cross_entropy,
    log_softmax,
    perplexity,
)
from tinytorch.core.tensor import Tensor, set_recorder

quick = settings(max_examples=60, deadline=None, derandomize=True)
RNG = np.random.default_rng(4)


def exact_log_softmax(row):
    """In 50 digits, whatever the size of the numbers."""
    with localcontext() as context:
        context.prec, context.Emin, context.Emax = 50, -(10**9), 10**9
        values = [Decimal(float(v)) for v in row]
        total = sum(v.exp() for v in values).ln()
        return [float(v - total) for v in values]


# --------------------------------------------------------------------------------------------- log_softmax


@quick
@given(
    st.lists(st.floats(-1e4, 1e4, width=32), min_size=1, max_size=6),
    st.sampled_from([0.0, 1.0, -300.0, 5e4]),
)
def test_log_softmax_keeps_its_digits(row, offset):
    row = np.array(row, np.float32) + np.float32(offset)
    np.testing.assert_allclose(log_softmax(row), exact_log_softmax(row), rtol=2e-6, atol=2e-7)


@pytest.mark.parametrize("axis", [0, 1, 2, -1, -2, -3])
def test_log_softmax_along_every_axis(axis):
    x = RNG.normal(0, 20, size=(3, 4, 5))
    kept = x.copy()
    got = log_softmax(x, axis=axis)
    want = np.apply_along_axis(exact_log_softmax, axis, x)
    np.testing.assert_allclose(got, want, rtol=1e-12, atol=1e-12)
    assert np.array_equal(x, kept)
    assert log_softmax(x.astype(np.float32)).dtype == np.float32


def test_log_softmax_of_masked_logits():
    got = log_softmax(np.array([[0, -np.inf, 1], [-np.inf, -np.inf, 7]], np.float32))
    np.testing.assert_allclose(got[0], [-1.3132617, -np.inf, -0.3132617], rtol=1e-6)
    assert np.array_equal(got[1], [-np.inf, -np.inf, 0])


@pytest.mark.parametrize("dtype", [np.uint8, np.int8, np.int64])
def test_log_softmax_of_whole_numbers(dtype):
    """Two that are further apart than a byte's half."""
    row = np.array([100, 100, 0] if dtype is np.uint8 else [100, 100, -100]).astype(dtype)
    np.testing.assert_allclose(log_softmax(row), exact_log_softmax(row), rtol=1e-6)


# --------------------------------------------------------------------------------------------- cross entropy


@quick
@given(
    front=st.lists(st.integers(1, 4), max_size=3).map(tuple),
    vocab_size=st.integers(1, 7),
    ignore_index=st.sampled_from([-100, -1, 0]),
    scale=st.sampled_from([0.1, 3.0, 500.0]),
    seed=st.integers(0, 10**6),
)
def test_cross_entropy_against_slow_loops(front, vocab_size, ignore_index, scale, seed):
    rng = np.random.default_rng(seed)
    logits = rng.normal(0, scale, size=(*front, vocab_size))
    targets = np.where(rng.random(front) < 0.4, ignore_index, rng.integers(0, vocab_size, front))
    surprises = [
        -exact_log_softmax(row)[t]
        for row, t in zip(logits.reshape(-1, vocab_size), targets.reshape(-1), strict=True)
        if t != ignore_index
    ]
    loss = CrossEntropyLoss(ignore_index)
    if not surprises:
        with pytest.raises(ValueError, match=str(targets.size)):
            loss(logits, targets)
        return
    got = loss(Tensor(logits, dtype=np.float64), targets)
    assert isinstance(got, Tensor) and got.shape == ()
    np.testing.assert_allclose(got.data, math.fsum(surprises) / len(surprises), rtol=1e-9, atol=1e-12)


def test_cross_entropy_of_a_wrong_and_sure_model_is_finite_and_exact():
    logits = np.array([[0, 300, -7], [1e4, 0, 0], [1e38, 0, -1e38]], np.float32)
    loss = CrossEntropyLoss()
    assert float(loss(Tensor(logits[:2]), [0, 2])) == pytest.approx(5150, rel=1e-6)
    assert float(loss(Tensor(logits[2]), 0)) == 0
    assert loss(Tensor(logits[:2]), [0, 2]).dtype == np.float32


def test_inputs_stay_as_they_are():
    logits, targets = RNG.normal(size=(2, 3, 5)), np.array([[0, -100, 4], [2, 2, -100]])
    kept = logits.copy(), targets.copy()
    cross_entropy(logits, targets)
    assert np.array_equal(logits, kept[0]) and np.array_equal(targets, kept[1])


def test_ignored_positions_change_nothing_whatever_stands_there():
    logits, targets = RNG.normal(size=(2, 3, 5)), np.array([[0, -100, 4], [2, 2, -100]])
    loss = CrossEntropyLoss()
    want = float(loss(logits, targets))
    logits[0, 1], logits[1, 2] = 1e6, np.nan
    assert float(loss(logits, targets)) == want


def test_slope_by_nudging_is_softmax_minus_one_hot():
    logits, targets = RNG.normal(size=(4, 5)), np.array([3, -100, 0, 3])
    step = 1e-5
    for i, j in np.ndindex(4, 5):
        moved = np.zeros((4, 5))
        moved[i, j] = step
        slope = (cross_entropy(logits + moved, targets) - cross_entropy(logits - moved, targets)) / (2 * step)
        want = (math.exp(exact_log_softmax(logits[i])[j]) - (j == targets[i])) / 3 if i != 1 else 0
        assert slope == pytest.approx(want, abs=1e-8)


def test_the_loss_is_one_operation_that_others_can_see():
    seen = []

    class Recorder:
        def record(self, function, inputs, options, output):
            seen.append((function, inputs[0], options))

    logits = Tensor(RNG.normal(size=(2, 3)))
    previous = set_recorder(Recorder())
    try:
        CrossEntropyLoss(ignore_index=2)(logits, [0, 2])
    finally:
        set_recorder(previous)
    assert len(seen) == 1 and seen[0][0] is cross_entropy and seen[0][1] is logits
    assert seen[0][2] == {"ignore_index": 2}


@pytest.mark.parametrize(
    ("targets", "kind", "message"),
    [
        ([[0, 1, 5], [0, 0, 0]], ValueError, "5.*5"),
        ([[0, 1, -1], [0, 0, 0]], ValueError, "(?=.*-1)(?=.*5)"),
        ([[0, 1, -101], [0, 0, 0]], ValueError, "(?=.*-101)(?=.*5)"),
        ([0, 1, 2, 3, 4, 0], ValueError, r"(?=.*\(2, 3)(?=.*\(6,\))"),
        ([[0, 1], [2, 3], [4, 0]], ValueError, r"(?=.*\(2, 3)(?=.*\(3, 2\))"),
        (0, ValueError, r"\(2, 3"),
        ([[-100] * 3] * 2, ValueError, "6"),
        ([[0.0, 1, 2], [0, 0, 0]], TypeError, "float"),
        ([[True, False, True]] * 2, TypeError, "bool"),
        ([["a", "b", "c"]] * 2, TypeError, None),
    ],
)
def test_targets_that_cannot_be(targets, kind, message):
    with pytest.raises(kind, match=message):
        CrossEntropyLoss()(Tensor(np.zeros((2, 3, 5))), targets)


def test_logits_without_an_axis():
    with pytest.raises(ValueError):
        CrossEntropyLoss()(Tensor(1.0), 0)


def test_check_targets_takes_every_form_and_any_ignored_number():
    for targets in ([4, 0], np.array([4, 0], np.uint16), Tensor([4, 0])):
        assert np.array_equal(check_targets(targets, (2, 5)), [4, 0])
    assert np.array_equal(check_targets([9, 0], (2, 5), 9), [9, 0])


# ------------------------------------------------------------------------------------------------- the rest


@quick
@given(shape=st.lists(st.integers(1, 4), max_size=3).map(tuple), seed=st.integers(0, 10**6))
def test_mse_against_a_slow_loop(shape, seed):
    rng = np.random.default_rng(seed)
    a, b = (rng.normal(size=shape).astype(np.float32) for _ in "ab")
    want = math.fsum((float(p) - float(t)) ** 2 for p, t in zip(a.ravel(), b.ravel(), strict=True)) / a.size
    for pair in ((Tensor(a), Tensor(b)), (Tensor(a), b), (a, b)):
        got = MSELoss()(*pair)
        assert isinstance(got, Tensor) and got.shape == () and got.dtype == np.float32
        assert float(got) == pytest.approx(want, rel=1e-5, abs=1e-7)


def test_mse_of_bytes():
    """As of pictures, whose difference fits into no byte, nor does its square."""
    for kind in (np.uint8, np.int8):
        a, b = np.array([0, 127], kind), np.array([100, 0], kind)
        assert float(MSELoss()(a, b)) == pytest.approx((100**2 + 127**2) / 2, rel=1e-6)


@pytest.mark.parametrize("shapes", [((3,), (3, 1)), ((2, 3), (3, 2)), ((4,), ()), ((0,), (0,))])
def test_mse_refuses_other_shapes_and_nothing(shapes):
    with pytest.raises(ValueError, match=str(shapes[0]).replace("(", r"\(").replace(")", r"\)")):
        MSELoss()(Tensor(np.ones(shapes[0])), Tensor(np.ones(shapes[1])))


def test_chance_is_the_loss_of_equal_logits():
    for vocab_size in (1, 2, 65, 50257):
        loss = CrossEntropyLoss()(Tensor(np.full((1, vocab_size), 3.0)), [vocab_size - 1])
        assert chance_loss(vocab_size) == pytest.approx(float(loss), rel=1e-6)
    assert chance_loss(50257) == pytest.approx(10.8249, abs=1e-4)
    with pytest.raises(ValueError, match="0"):
        chance_loss(0)
    with pytest.raises(TypeError):
        chance_loss(2.5)


def test_perplexity():
    assert perplexity(Tensor(math.log(12))) == pytest.approx(12, rel=1e-6)
    assert perplexity(0) == 1.0 and perplexity(np.float32(0)) == 1.0 and isinstance(perplexity(0), float)
    assert perplexity(2.5) == pytest.approx(float(Decimal("2.5").exp()))
    assert perplexity(709.0) < math.inf == perplexity(710.0) == perplexity(math.inf)
    assert math.isnan(perplexity(math.nan))
    with pytest.raises(ValueError, match="-0.1"):
        perplexity(-0.1)
