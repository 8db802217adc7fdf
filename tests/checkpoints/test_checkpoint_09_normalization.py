"""Module 09 as the package has it: LayerNorm, RMSNorm and their gradients."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tinytorch.core.autograd import enable_autograd
from tinytorch.core.normalization import LayerNorm, RMSNorm, layer_norm, rms_norm
from tinytorch.core.tensor import Tensor, apply, set_recorder

quick = settings(max_examples=60, deadline=None, derandomize=True)
RNG = np.random.default_rng(9)


def slow_layer_norm(x, weight, bias, eps):
    out = np.empty_like(x)
    for place in np.ndindex(x.shape[:-1]):
        row = x[place].tolist()
        mean = math.fsum(row) / len(row)
        root = math.sqrt(math.fsum((v - mean) ** 2 for v in row) / len(row) + eps)
        out[place] = [(v - mean) / root * w + b for v, w, b in zip(row, weight, bias, strict=True)]
    return out


def slow_rms_norm(x, weight, eps):
    out = np.empty_like(x)
    for place in np.ndindex(x.shape[:-1]):
        row = x[place].tolist()
        root = math.sqrt(math.fsum(v * v for v in row) / len(row) + eps)
        out[place] = [v / root * w for v, w in zip(row, weight, strict=True)]
    return out


def central_differences(function, arrays, step=1e-6):
    """The slope of function(*arrays), a number, at every entry of every array."""
    slopes = []
    for array in arrays:
        slope = np.zeros_like(array)
        for place in np.ndindex(array.shape):
            kept = array[place]
            array[place] = kept + step
            up = function(*arrays)
            array[place] = kept - step
            slope[place] = (up - function(*arrays)) / (2 * step)
            array[place] = kept
        slopes.append(slope)
    return slopes


@pytest.fixture
def autograd():
    previous = set_recorder(None)
    enable_autograd()
    yield
    set_recorder(previous)


shapes = st.lists(st.integers(1, 4), min_size=1, max_size=3).map(tuple)
epsilons = st.sampled_from([1e-6, 1e-5, 1e-2, 1.0])


# ------------------------------------------------------------------------------------------------- values


@quick
@given(shape=shapes, eps=epsilons, scale=st.sampled_from([1e-3, 1.0, 1e3]), seed=st.integers(0, 10**6))
def test_values_against_slow_loops(shape, eps, scale, seed):
    rng = np.random.default_rng(seed)
    x = rng.normal(scale, scale, size=shape)
    weight, bias = rng.normal(size=shape[-1]), rng.normal(size=shape[-1])
    kept = x.copy(), weight.copy(), bias.copy()
    np.testing.assert_allclose(
        layer_norm(x, weight, bias, eps), slow_layer_norm(x, weight, bias, eps), rtol=1e-7, atol=1e-9
    )
    np.testing.assert_allclose(rms_norm(x, weight, eps), slow_rms_norm(x, weight, eps), rtol=1e-9, atol=1e-12)
    assert all(np.array_equal(a, b) for a, b in zip(kept, (x, weight, bias), strict=True))


def test_eps_stands_inside_the_root_and_is_1e_5_by_default():
    row = np.array([0.001, -0.001])
    one, zero = np.ones(2), np.zeros(2)
    want = 0.001 / math.sqrt(1e-6 + 1e-5)
    assert layer_norm(row, one, zero) == pytest.approx([want, -want], rel=1e-9)
    assert rms_norm(row, one) == pytest.approx([want, -want], rel=1e-9)
    assert LayerNorm(2)(Tensor(row)).data == pytest.approx([want, -want], rel=1e-5)
    assert RMSNorm(2)(Tensor(row)).data == pytest.approx([want, -want], rel=1e-5)


def test_rows_of_equal_numbers_and_of_zeros():
    weight, bias = np.array([2.0, 3, 4], np.float32), np.array([5.0, 6, 7], np.float32)
    assert np.array_equal(layer_norm(np.full((2, 3), 8, np.float32), weight, bias), [[5, 6, 7]] * 2)
    assert not rms_norm(np.zeros((2, 3), np.float32), weight).any()


def test_a_large_common_part_costs_no_digits():
    row = np.linspace(-1, 1, 64, dtype=np.float32)
    one, zero = np.ones(64, np.float32), np.zeros(64, np.float32)
    far = row + np.float32(4096)
    want = slow_layer_norm((far - np.float32(4096)).astype(np.float64), one, zero, 1e-5)
    np.testing.assert_allclose(layer_norm(far, one, zero), want, atol=2e-3)


def test_rows_do_not_see_each_other():
    x = RNG.normal(size=(2, 3, 8)).astype(np.float32)
    for norm in (LayerNorm(8), RMSNorm(8)):
        whole = norm(Tensor(x)).data
        for b, t in np.ndindex(2, 3):
            np.testing.assert_allclose(whole[b, t], norm(Tensor(x[b, t])).data, rtol=1e-6, atol=1e-6)


def test_views_and_types():
    x = RNG.normal(size=(6, 4, 3)).transpose(1, 2, 0)
    weight, bias = RNG.normal(size=6), RNG.normal(size=6)
    np.testing.assert_allclose(layer_norm(x, weight, bias), slow_layer_norm(x, weight, bias, 1e-5), rtol=1e-9)
    np.testing.assert_allclose(rms_norm(x, weight), slow_rms_norm(x, weight, 1e-5), rtol=1e-9)
    low = [a.astype(np.float32) for a in (x, weight, bias)]
    assert layer_norm(*low).dtype == rms_norm(*low[:2]).dtype == np.float32
    np.testing.assert_allclose(layer_norm(*low), slow_layer_norm(x, weight, bias, 1e-5), rtol=1e-4, atol=1e-5)


# ---------------------------------------------------------------------------------------------- gradients


@pytest.mark.parametrize("shape", [(5,), (3, 4), (2, 3, 5), (2, 1, 7), (4, 2)])
@pytest.mark.parametrize("eps", [1e-5, 0.3])
def test_layer_norm_gradients_against_central_differences(autograd, shape, eps):
    arrays = [RNG.normal(1, 2, size=shape), RNG.normal(size=shape[-1]), RNG.normal(size=shape[-1])]
    grad = RNG.normal(size=shape)
    want = central_differences(lambda *a: float((slow_layer_norm(*a, eps) * grad).sum()), arrays)
    tensors = [Tensor(a, requires_grad=True, dtype=np.float64) for a in arrays]
    apply(layer_norm, *tensors, eps=eps).backward(grad)
    for tensor, slope in zip(tensors, want, strict=True):
        assert tensor.grad.shape == tensor.shape
        np.testing.assert_allclose(tensor.grad, slope, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("shape", [(5,), (3, 4), (2, 3, 5), (2, 1, 7), (4, 1)])
@pytest.mark.parametrize("eps", [1e-5, 0.3])
def test_rms_norm_gradients_against_central_differences(autograd, shape, eps):
    arrays = [RNG.normal(1, 2, size=shape), RNG.normal(size=shape[-1])]
    grad = RNG.normal(size=shape)
    want = central_differences(lambda *a: float((slow_rms_norm(*a, eps) * grad).sum()), arrays)
    tensors = [Tensor(a, requires_grad=True, dtype=np.float64) for a in arrays]
    apply(rms_norm, *tensors, eps=eps).backward(grad)
    for tensor, slope in zip(tensors, want, strict=True):
        assert tensor.grad.shape == tensor.shape
        np.testing.assert_allclose(tensor.grad, slope, rtol=1e-5, atol=1e-7)


def test_the_classes_hand_their_eps_to_the_gradient(autograd):
    x = RNG.normal(size=(3, 4))
    grad = RNG.normal(size=(3, 4))
    for norm, slow in (
        (LayerNorm(4, eps=0.5), lambda a: slow_layer_norm(a, np.ones(4), np.zeros(4), 0.5)),
        (RMSNorm(4, eps=0.5), lambda a: slow_rms_norm(a, np.ones(4), 0.5)),
    ):
        tensor = Tensor(x, requires_grad=True)
        norm(tensor).backward(grad)
        (want,) = central_differences(lambda a, slow=slow: float((slow(a) * grad).sum()), [x])
        np.testing.assert_allclose(tensor.grad, want, rtol=1e-4, atol=1e-5)
        assert tensor.grad.dtype == np.float32
        assert all(p.grad.shape == (4,) and p.grad.dtype == np.float32 for p in norm.parameters())


def test_gradients_leave_their_inputs_alone(autograd):
    x, weight, bias = (Tensor(RNG.normal(size=s), requires_grad=True) for s in ((3, 4), (4,), (4,)))
    grad = RNG.normal(size=(3, 4)).astype(np.float32)
    kept = [a.copy() for a in (x.data, weight.data, bias.data, grad)]
    apply(layer_norm, x, weight, bias).backward(grad)
    apply(rms_norm, x, weight).backward(grad)
    assert all(
        np.array_equal(a, b) for a, b in zip(kept, (x.data, weight.data, bias.data, grad), strict=True)
    )


# ---------------------------------------------------------------------------------------------- the classes


def test_the_weights_start_as_if_they_were_not_there():
    norm, rms = LayerNorm(6), RMSNorm(6)
    assert [(name, p.shape) for name, p in norm.named_parameters()] == [("weight", (6,)), ("bias", (6,))]
    assert [(name, p.shape) for name, p in rms.named_parameters()] == [("weight", (6,))]
    assert (norm.weight.data == 1).all() and (norm.bias.data == 0).all() and (rms.weight.data == 1).all()
    assert all(p.requires_grad and p.dtype == np.float32 for p in (*norm.parameters(), *rms.parameters()))
    x = RNG.normal(3, 5, size=(2, 3, 6)).astype(np.float32)
    y = norm(Tensor(x))
    assert isinstance(y, Tensor) and y.shape == x.shape and y.dtype == np.float32
    np.testing.assert_allclose(y.data.mean(-1), 0, atol=1e-6)
    np.testing.assert_allclose(y.data.std(-1), 1, rtol=1e-4)
    np.testing.assert_allclose((rms(Tensor(x)).data ** 2).mean(-1), 1, rtol=1e-4)


@pytest.mark.parametrize("kind", [LayerNorm, RMSNorm])
@pytest.mark.parametrize("shape", [(3, 4), (5, 1), (7,), (), (6, 5)])
def test_another_number_of_features(kind, shape):
    with pytest.raises(ValueError, match="6"):
        kind(6)(Tensor(np.ones(shape)))


@pytest.mark.parametrize("kind", [LayerNorm, RMSNorm])
def test_sizes_and_eps_that_cannot_be(kind):
    for embed_dim in (0, -3):
        with pytest.raises(ValueError, match=str(embed_dim)):
            kind(embed_dim)
    for embed_dim in (2.0, "4", None, True):
        with pytest.raises(TypeError):
            kind(embed_dim)
    for eps in (0, -1e-5, math.nan, math.inf):
        with pytest.raises(ValueError, match=str(eps)):
            kind(4, eps=eps)
