"""Every operation on plain numbers, on arrays without entries and on views, forward and backward."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tinytorch.core.activations import GELU, ReLU, Sigmoid, SiLU, Softmax, Tanh
from tinytorch.core.attention import merge_heads, split_heads
from tinytorch.core.autograd import RULES, enable_autograd
from tinytorch.core.layers import Linear
from tinytorch.core.normalization import LayerNorm, RMSNorm
from tinytorch.core.tensor import Tensor, apply, set_recorder, stack
from tinytorch.text.embeddings import apply_rotary

ANY = {  # operations for every shape
    "add": lambda x: x + x,
    "subtract": lambda x: 1 - x,
    "multiply": lambda x: x * x,
    "divide": lambda x: x / (x * x + 1),
    "negative": lambda x: -x,
    "square": lambda x: x**2,
    "power 0": lambda x: x**0,
    "power": lambda x: (x * x + 1) ** x,
    "exponent": lambda x: 2.0**x,
    "exp": lambda x: x.exp(),
    "log": lambda x: (x * x + 1).log(),
    "sqrt": lambda x: (x * x + 1).sqrt(),
    "tanh": Tanh(),
    "relu": ReLU(),
    "sigmoid": Sigmoid(),
    "silu": SiLU(),
    "gelu": GELU(),
    "softmax": Softmax(),
    "softmax 0": Softmax(axis=0),
    "sum": lambda x: x.sum(),
    "sum of rows": lambda x: x.sum(axis=-1),
    "sum, kept": lambda x: x.sum(axis=0, keepdims=True),
    "reshape": lambda x: x.reshape(-1),
    "transpose": lambda x: x.T,
    "all": lambda x: x[...],
    "new axis": lambda x: x[None],
    "stack": lambda x: stack([x, x * 2], axis=-1),
}
FILLED = {  # operations that need an entry
    "mean": lambda x: x.mean(),
    "var": lambda x: x.var(),
    "max": lambda x: x.max(),
}
ROWS = {  # operations for (2, 3, 4), or (0, 3, 4), or (2, 0, 4)
    "matmul": lambda x: x @ x.swapaxes(-1, -2),
    "mean of rows": lambda x: x.mean(axis=-1),
    "var of rows": lambda x: x.var(axis=-1, keepdims=True),
    "max of rows": lambda x: x.max(axis=-1),
    "first column": lambda x: x[..., 0],
    "chosen columns": lambda x: x[..., [2, 0, 2]],
    "linear": Linear(4, 5, rng=0),
    "layer norm": LayerNorm(4),
    "rms norm": RMSNorm(4),
    "heads": lambda x: apply(merge_heads, apply(split_heads, x, num_heads=2)),
    "rotary": lambda x: apply(apply_rotary, x, *(np.full((x.shape[-2], 2), c) for c in (0.6, 0.8))),
}


@pytest.fixture(autouse=True)
def gradients():
    before = set_recorder(None)
    enable_autograd()
    yield
    set_recorder(before)


def run(operation, array):
    """-> the result, and what flows back into `array` from 1, 2, 3, ..."""
    x = Tensor(array, requires_grad=True)
    assert np.shares_memory(x.data, array) or not array.size
    y = operation(x)
    y.backward(np.arange(1, y.size + 1, dtype=np.float32).reshape(y.shape))
    assert type(y.data) is type(x.grad) is np.ndarray and x.grad.shape == x.shape
    assert y.dtype == x.grad.dtype == np.float32
    return y.data, x.grad


@pytest.mark.parametrize("name", [*ANY, *FILLED])
def test_a_plain_number_is_what_an_array_of_one_is(name):
    operation = (ANY | FILLED)[name]
    number, slope = run(operation, np.array(0.7, np.float32))
    one, slopes = run(operation, np.array([0.7], np.float32))
    np.testing.assert_allclose(number.reshape(-1), one.reshape(-1), rtol=1e-6)
    np.testing.assert_allclose(slope, slopes[0], rtol=1e-6)


@pytest.mark.parametrize("shape", [(0,), (2, 0, 3), (0, 1)])
@pytest.mark.parametrize("name", ANY)
def test_an_array_without_entries_has_a_gradient_without_entries(name, shape):
    run(ANY[name], np.zeros(shape, np.float32))


@pytest.mark.parametrize("shape", [(0, 3, 4), (2, 0, 4)])
@pytest.mark.parametrize("name", ROWS)
def test_no_rows_are_rows_too(name, shape):
    run(ROWS[name], np.zeros(shape, np.float32))


def views_of(block):
    """Arrays that hold the same as `block` in other orders of memory."""
    yield np.asfortranarray(block)
    yield np.repeat(block, 2, axis=-1)[..., ::2]
    yield np.ascontiguousarray(block[::-1])[::-1]
    yield np.ascontiguousarray(block.T).T


@pytest.mark.parametrize("name", [*ANY, *FILLED, *ROWS])
@given(seed=st.integers(0, 99))
@settings(max_examples=5, deadline=None)
def test_a_view_is_calculated_like_its_copy(name, seed):
    block = np.random.default_rng(seed).standard_normal((2, 3, 4)).astype(np.float32)
    operation = (ANY | FILLED | ROWS)[name]
    want, slopes = run(operation, block)
    for view in views_of(block):
        kept = view.copy()
        got, back = run(operation, view)
        np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(back, slopes, rtol=1e-5, atol=1e-5)
        assert np.array_equal(view, kept), "the view was changed"


def test_every_rule_of_module_05_is_tried_here():
    """An operation that is new there belongs into the lists above."""
    seen = set()

    class Listener:
        def record(self, function, inputs, options, output):
            seen.add(function)

    set_recorder(Listener())
    x = Tensor(np.ones((2, 3, 4), np.float32))
    for operation in (ANY | FILLED | ROWS).values():
        operation(x)
    ours = [f for f in RULES if getattr(f, "__module__", "numpy").startswith(("numpy", "tinytorch"))]
    untried = {function.__name__ for function in ours if function not in seen}
    assert untried <= {"cross_entropy", "weigh_keys", "share_heads", "take_rows"}, f"not tried: {untried}"
