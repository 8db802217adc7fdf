"""What is finite gives what is finite: squares, cubes and small integers on the way do not overflow."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tinytorch.core.activations import GELU, Sigmoid, SiLU, Tanh
from tinytorch.core.autograd import enable_autograd
from tinytorch.core.losses import CrossEntropyLoss, MSELoss
from tinytorch.core.normalization import LayerNorm, RMSNorm
from tinytorch.core.optimizers import Adam, AdamW
from tinytorch.core.tensor import Tensor, set_recorder
from tinytorch.core.training import Trainer

quick = settings(max_examples=100, deadline=None)
LARGEST = float(np.finfo(np.float32).max)


@pytest.fixture(autouse=True)
def gradients():
    before = set_recorder(None)
    enable_autograd()
    yield
    set_recorder(before)


# small integers


@given(data=st.data(), dtype=st.sampled_from([np.uint8, np.int8, np.uint16, np.int64, np.bool_]))
@quick
def test_a_loss_of_integers_is_that_of_the_same_floats(data, dtype):
    limits = (0, 1) if dtype is np.bool_ else (max(-100, np.iinfo(dtype).min), min(255, np.iinfo(dtype).max))
    numbers = st.lists(st.integers(*limits), min_size=3, max_size=3)
    a, b = (np.array(data.draw(numbers), dtype) for _ in range(2))
    want = sum((float(x) - float(y)) ** 2 for x, y in zip(a, b, strict=True)) / 3
    for left, right in ((a, b), (Tensor(a), b), (a, Tensor(b.astype(np.float32)))):
        assert math.isclose(MSELoss()(left, right).item(), want, rel_tol=1e-6)
    row = a.astype(np.float64)
    want = math.log(np.exp(row - row.max()).sum()) + row.max() - row[1]
    assert math.isclose(CrossEntropyLoss()(a, np.int64(1)).item(), want, rel_tol=1e-5, abs_tol=1e-6)


@pytest.mark.parametrize("norm", [LayerNorm(3), RMSNorm(3)])
def test_a_norm_of_integers_is_that_of_the_same_floats(norm):
    row = np.uint8([200, 100, 250])
    np.testing.assert_allclose(norm(row).data, norm(row.astype(np.float32)).data, rtol=1e-5)


# numbers whose squares pass float32


@given(
    row=st.lists(st.floats(-1, 1), min_size=2, max_size=6),
    exponent=st.integers(-20, 34),
    rows=st.sampled_from([(), (1,), (3,), (2, 1)]),
)
@quick
def test_norms_are_right_for_numbers_of_any_size(row, exponent, rows):
    x = (np.array(row) * 10.0**exponent).astype(np.float32)
    exact = x.astype(np.float64)
    centred = exact - exact.mean()
    many = np.broadcast_to(x, (*rows, len(row)))
    for norm, c in ((LayerNorm(len(row)), centred), (RMSNorm(len(row)), exact)):
        want = c / np.sqrt((c * c).mean() + 1e-5)
        error = 1e-5 + 4e-7 * np.abs(exact).max() / (np.abs(c).max() or 1)
        assert np.abs(norm(many).data - want).max() <= error
        tensor = Tensor(many, requires_grad=True)
        norm(tensor).sum().backward()
        assert np.isfinite(tensor.grad).all()


@given(x=st.floats(width=32, allow_nan=False, allow_infinity=False))
@quick
def test_slopes_of_activations_are_finite_and_right_far_out(x):
    for activation, right in ((GELU(), 1.0), (SiLU(), 1.0), (Tanh(), 0.0), (Sigmoid(), 0.0)):
        tensor = Tensor(x, requires_grad=True)
        activation(tensor).backward()
        assert np.isfinite(tensor.grad)
        if abs(x) > 120:
            assert abs(tensor.grad - (right if x > 0 else 0.0)) < 1e-6


GRADIENTS = st.one_of(
    st.floats(-LARGEST, LARGEST, width=32), st.floats(-10, 10, width=32), st.sampled_from([0.0, 2e19, -2e19])
)


@pytest.mark.parametrize("kind", [Adam, AdamW])
@given(steps=st.lists(st.tuples(GRADIENTS, GRADIENTS), min_size=1, max_size=8))
@quick
def test_adam_takes_any_finite_gradient(kind, steps):
    """The oracle is the formula in float64."""
    weight = Tensor([1.0, -2.0], requires_grad=True)
    optimizer = kind([weight], lr=0.01)
    want, m, v = np.array([1.0, -2.0]), np.zeros(2), np.zeros(2)
    for t, grads in enumerate(steps, start=1):
        grad = np.array(grads, np.float32)
        weight.grad = grad.copy()
        optimizer.step()
        exact = grad.astype(np.float64)
        m, v = 0.9 * m + 0.1 * exact, 0.999 * v + 0.001 * exact * exact
        want = want * (1 - 0.01 * optimizer.weight_decay)
        want = want - 0.01 * (m / (1 - 0.9**t)) / (np.sqrt(v / (1 - 0.999**t)) + 1e-8)
        np.testing.assert_allclose(weight.data, want, rtol=1e-4, atol=1e-5)
    assert weight.data.dtype == np.float32
    twin = kind([Tensor([0.0, 0.0], requires_grad=True)], lr=0.5)
    twin.load_state_dict(optimizer.state_dict())
    for name, arrays in optimizer.buffers.items():
        assert np.array_equal(arrays[0], twin.buffers[name][0])
        assert arrays[0].dtype == twin.buffers[name][0].dtype


def test_what_was_saved_after_a_huge_gradient_is_loaded_again(tmp_path):
    from tinytorch.core.layers import Linear

    def trainer():
        model = Linear(2, 1, rng=0)
        return Trainer(model, AdamW(model.parameters(), lr=0.1), loss=MSELoss())

    first, second = trainer(), trainer()
    first.model.weight.grad = np.float32([[2e19, 1]])
    before = first.model.weight.data.copy()
    first.optimizer.step()
    assert (first.model.weight.data < before - 0.09).all(), "each weight moves by about lr"
    first.save(tmp_path / "state.npz")
    second.load(tmp_path / "state.npz")
    batch = np.float32([[1, 2], [3, 4]]), np.float32([[1], [0]])
    assert first.step(*batch) == second.step(*batch)
    assert np.array_equal(first.model.weight.data, second.model.weight.data)
