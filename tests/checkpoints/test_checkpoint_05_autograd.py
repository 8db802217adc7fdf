"""Module 05 as the package has it: recording, walking back, every rule against central differences."""

import gc
import threading
import weakref

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tinytorch.core.activations import GELU, ReLU, Sigmoid, SiLU, Softmax, Tanh
from tinytorch.core.autograd import (
    RULES,
    describe_history,
    enable_autograd,
    gradient_of,
    history_order,
    no_grad,
    numerical_gradient,
    sum_to_shape,
)
from tinytorch.core.layers import Dropout, Linear, Sequential, linear
from tinytorch.core.losses import CrossEntropyLoss, MSELoss
from tinytorch.core.tensor import Tensor, apply, set_recorder, stack


@pytest.fixture(autouse=True, scope="module")
def gradients_on():
    previous = set_recorder(None)
    enable_autograd()
    yield
    set_recorder(previous)


def tensor(array, requires_grad=True):
    return Tensor(array, requires_grad=requires_grad, dtype=np.float64)


def measured(run, arrays, weights, h=1e-6):
    """The slopes of sum(weights * run(*arrays)), entry by entry: the judge, which knows no rule."""
    slopes = []
    for array in arrays:
        slope = np.zeros(array.shape)
        for index in np.ndindex(array.shape):
            kept, heights = array[index], []
            for value in (kept + h, kept - h):
                array[index] = value
                with no_grad():
                    output = run(*(tensor(a, False) for a in arrays))
                heights.append(float(np.sum(weights * output.data)))
            array[index] = kept
            slope[index] = (heights[0] - heights[1]) / (2 * h)
        slopes.append(slope)
    return slopes


def check(run, *arrays, rng=None):
    """backward through `run` against the judge, every entry of every array, within 1e-5."""
    rng = rng or np.random.default_rng(0)
    arrays = [np.array(a, dtype=np.float64) for a in arrays]
    kept = [a.copy() for a in arrays]
    inputs = [tensor(a) for a in arrays]
    output = run(*inputs)
    weights = rng.normal(size=output.shape)
    output.backward(weights)
    for x, a in zip(inputs, kept, strict=True):
        assert np.array_equal(x.data, a), "backward changed an input"
    for i, (x, want) in enumerate(zip(inputs, measured(run, arrays, weights), strict=True)):
        assert isinstance(x.grad, np.ndarray), f"the gradient of input {i} is a {type(x.grad).__name__}"
        assert x.grad.shape == x.shape and x.grad.dtype == np.float64
        assert np.allclose(x.grad, want, rtol=0, atol=1e-5), (
            f"input {i}: backward says\n{x.grad}\ntwo runs each say\n{want}"
        )


RNG = np.random.default_rng(5)


def random(*shape):
    return RNG.normal(size=shape)


def positive(*shape):
    return RNG.uniform(0.3, 2.0, shape)


# ------------------------------------------------------------------------------------------------- rules

SHAPES = [
    ((2, 3), (2, 3)),
    ((2, 3), (3,)),
    ((3,), (2, 3)),
    ((2, 1), (1, 3)),
    ((4, 1, 3), (2, 1)),
    ((), (2, 3)),
    ((1,), (2, 3)),
    ((1, 1), ()),
    ((), ()),
]


@pytest.mark.parametrize("shapes", SHAPES, ids=str)
def test_arithmetic_with_broadcasting(shapes):
    a, b = random(*shapes[0]), positive(*shapes[1])
    check(lambda a, b: a + b, a, b)
    check(lambda a, b: a - b, a, b)
    check(lambda a, b: a * b, a, b)
    check(lambda a, b: a / b, a, b)
    check(lambda a, b: a**b, positive(*shapes[0]), b)


CONSTANT = np.array([[2.0, -3.0, 0.5]])


@pytest.mark.parametrize(
    "run",
    [
        lambda x: -x,
        lambda x: 3 - x,
        lambda x: x - 3,
        lambda x: 2 * x + x * 5,
        lambda x: x / 4,
        lambda x: 4 / x,
        lambda x: x * CONSTANT,
        lambda x: CONSTANT - x,
        lambda x: CONSTANT / x,
        lambda x: x / CONSTANT,
        lambda x: 2.0**x,
        lambda x: x**2,
        lambda x: x**3,
        lambda x: x**-1,
        lambda x: x**0.5,
        lambda x: x**1,
        lambda x: x**0,
        lambda x: x**CONSTANT,
        lambda x: x.exp(),
        lambda x: x.log(),
        lambda x: x.sqrt(),
        lambda x: x.tanh(),
        lambda x: ((x.exp() + 1).log() * x.tanh()).sqrt(),
    ],
    ids=range(23),
)
def test_functions_of_one_tensor(run):
    check(run, positive(2, 3))


def test_powers_at_their_corners():
    x = tensor([0.0, -2.0, 3.0])
    (x**2).sum().backward()
    assert np.array_equal(x.grad, [0, -4, 6])
    x.grad = None
    (x**0).sum().backward()
    assert np.array_equal(x.grad, [0, 0, 0]), "x ** 0 is flat, at 0 too"
    x.grad = None
    (x ** tensor([1.0, 2.0, 3.0], False)).sum().backward()
    assert np.array_equal(x.grad, [1, -4, 27])
    zero = tensor([0.0, 0.0])
    (zero ** tensor([0.0, 2.0], False)).sum().backward()
    assert np.array_equal(zero.grad, [0, 0])


MATMULS = [
    ((2, 3), (3, 4)),
    ((5, 2, 3), (5, 3, 4)),
    ((5, 2, 3), (3, 4)),
    ((2, 3), (5, 3, 4)),
    ((2, 1, 3, 4), (5, 4, 2)),
    ((1, 2, 3), (4, 3, 2)),
    ((3,), (3,)),
    ((3,), (3, 4)),
    ((2, 3), (3,)),
    ((3,), (5, 3, 4)),
    ((5, 2, 3), (3,)),
    ((6, 5, 2, 3), (3,)),
    ((1, 3), (3, 1)),
]


@pytest.mark.parametrize("shapes", MATMULS, ids=str)
def test_matmul(shapes):
    check(lambda a, b: a @ b, random(*shapes[0]), random(*shapes[1]))


@pytest.mark.parametrize("keepdims", [False, True])
@pytest.mark.parametrize("axis", [None, 0, 1, -1, (0, 2), (1, -1), (-3,), (0, 1, 2)], ids=str)
def test_reductions(axis, keepdims):
    x = RNG.permutation(24).reshape(2, 3, 4) / 7  # no ties, so the maximum has a slope
    for name in ("sum", "mean", "var", "max"):
        check(lambda x, name=name: getattr(x, name)(axis=axis, keepdims=keepdims), x)


def test_the_winners_of_a_maximum_share():
    x = tensor([[1.0, 5.0, 5.0], [2.0, 0.0, 1.0]])
    x.max(axis=1).backward([6.0, 1.0])
    assert np.array_equal(x.grad, [[0, 3, 3], [1, 0, 0]])


def test_moving_without_computing():
    x = random(2, 3, 4)
    for shape in ((4, 6), (24,), (2, -1), (3, 1, 8)):
        check(lambda x, shape=shape: x.reshape(*shape) * 1, x)
    for axes in ((), (1, 0, 2), (2, 0, 1), (1, 2, 0), (-1, 0, 1), (0, -1, -2)):
        check(lambda x, axes=axes: x.transpose(*axes) * 1, x)
    check(lambda x: x.swapaxes(0, -1), x)
    check(lambda x: x.T, x)
    check(lambda x: x.reshape(()), random(1, 1))


INDICES = [
    0,
    -1,
    np.int64(1),
    slice(None, None, -1),
    (slice(1, None), 2),
    (..., 3),
    (None, 1, ..., None),
    (slice(None), slice(0, 3, 2), slice(-2, None)),
    [0, 0, 1, 0],
    np.array([[1, 1], [0, 1]]),
    (slice(None), [2, 2, 0]),
    ([0, 1, 0], [1, 2, 1]),
    (slice(None), [0, 0], 1),
    np.arange(24).reshape(2, 3, 4) % 5 > 1,
    (1, np.array([True, False, True])),
    (np.array([0, -2, 0]),),
]


@pytest.mark.parametrize("index", INDICES, ids=range(len(INDICES)))
def test_indexing(index):
    check(lambda x: x[index], random(2, 3, 4))


def test_a_row_taken_three_times_collects_three_gradients():
    table = tensor(random(4, 2))
    table[[1, 3, 1, 1]].backward([[1.0, 10.0], [2.0, 20.0], [3.0, 30.0], [4.0, 40.0]])
    assert np.array_equal(table.grad, [[0, 0], [8, 80], [0, 0], [2, 20]])


def test_activations():
    x = random(3, 4) * 2
    for layer in (ReLU(), Sigmoid(), Tanh(), GELU(), SiLU(), Softmax(), Softmax(axis=0)):
        check(layer, x)
    check(Softmax(axis=1), random(2, 3, 4))
    large = Tensor([-100.0, -30.0, 0.0, 30.0, 100.0], requires_grad=True)
    for layer, at_the_ends in ((GELU(), (0, 1)), (SiLU(), (0, 1)), (Sigmoid(), (0, 0)), (Tanh(), (0, 0))):
        large.grad = None
        layer(large).sum().backward()
        assert np.isfinite(large.grad).all() and large.grad.dtype == np.float32
        assert np.allclose(large.grad[[0, -1]], at_the_ends, atol=1e-6)


@pytest.mark.parametrize("front", [(), (5,), (2, 5)], ids=str)
def test_linear(front):
    x, weight, bias = random(*front, 3), random(4, 3), random(4)
    check(lambda x, w, b: apply(linear, x, w, b), x, weight, bias)
    check(lambda x, w: apply(linear, x, w), x, weight)


def test_linear_of_a_view_that_no_reshape_keeps():
    check(lambda x, w, b: apply(linear, x.swapaxes(0, 1), w, b), random(5, 2, 3), random(4, 3), random(4))
    check(lambda x, w: apply(linear, x, w).swapaxes(0, 2) * 2, random(5, 2, 3), random(4, 3))


def test_losses():
    logits, targets = random(2, 3, 5), np.array([[4, 0, 2], [2, 2, 1]])
    check(lambda x: CrossEntropyLoss()(x, targets), logits)
    targets[0, 1] = targets[1, 2] = -100
    check(lambda x: CrossEntropyLoss()(x, targets), logits)
    ignored = tensor(logits)
    CrossEntropyLoss()(ignored, targets).backward()
    assert (ignored.grad[0, 1] == 0).all() and (ignored.grad[1, 2] == 0).all()
    check(lambda x: CrossEntropyLoss(ignore_index=2)(x, np.array([2, 0])), random(2, 3))
    check(lambda x, y: MSELoss()(x, y), random(2, 3), random(2, 3))


def test_dropout_lets_gradients_through_what_it_kept():
    x = Tensor(np.ones((50, 40)), requires_grad=True)
    y = Dropout(0.25, rng=0)(x)
    y.sum().backward()
    assert np.allclose(np.unique(x.grad), [0, 1 / 0.75]) and np.array_equal(x.grad, y.data)


PROGRAM_STEPS = [
    lambda a, b: a + b,
    lambda a, b: a * b,
    lambda a, b: a - b.tanh(),
    lambda a, b: a / (b * b + 1),
    lambda a, b: a @ b.swapaxes(-1, -2) @ b / 3,
    lambda a, b: a - b.mean(axis=-1, keepdims=True),
    lambda a, b: a * b.sum(axis=0, keepdims=True),
    lambda a, b: a[[0, 1, 1]] + b[::-1],
    lambda a, b: apply(softmax_rows, a) + b,
    lambda a, b: (a.T.reshape(-1) * b.reshape(-1)).reshape(3, 4),
]


def softmax_rows(x):
    weights = np.exp(x - x.max(axis=-1, keepdims=True))
    return weights / weights.sum(axis=-1, keepdims=True)


@gradient_of(softmax_rows)
def _(grad, output, x):
    # the full matrix of slopes, row by row: slow, and from the definition
    into = np.zeros_like(x)
    for i, p in enumerate(output):
        into[i] = (np.diag(p) - np.outer(p, p)) @ grad[i]
    return (into,)


@settings(max_examples=25, deadline=None)
@given(
    steps=st.lists(
        st.tuples(st.sampled_from(range(len(PROGRAM_STEPS))), st.integers(0, 9), st.integers(0, 9)),
        min_size=1,
        max_size=7,
    ),
    seed=st.integers(0, 10**6),
)
def test_any_program_of_operations(steps, seed):
    """Random graphs: values used never, once or often, with every kind of operation on the way."""

    def run(*inputs):
        values = list(inputs)
        for step, i, j in steps:
            value = PROGRAM_STEPS[step](values[i % len(values)], values[j % len(values)])
            values.append(value.tanh())
        return sum(values[1:], values[0])

    rng = np.random.default_rng(seed)
    check(run, rng.normal(size=(3, 4)), rng.normal(size=(3, 4)), rng=rng)


# ----------------------------------------------------------------------------------------------- the walk


def test_the_expression_of_the_lesson():
    a, b = Tensor(2.0, requires_grad=True), Tensor(3.0, requires_grad=True)
    v = a * b + a
    (v * v).backward()
    assert a.grad == 64 and b.grad == 32
    assert type(a.grad) is np.ndarray and a.grad.shape == () and a.grad.dtype == np.float32


def test_gradients_accumulate_over_uses_and_over_calls():
    x = tensor([1.0, 2.0])
    y = x * x + x + x
    y.backward([1.0, 1.0])
    assert np.array_equal(x.grad, [4, 6])
    y.backward([1.0, 10.0])
    assert np.array_equal(x.grad, [8, 66]), "the history survives backward, and a second call adds"
    (x * 3).sum().backward()
    assert np.array_equal(x.grad, [11, 69]), "another graph adds as well"
    x.grad = None
    y.backward([1.0, 1.0])
    assert np.array_equal(x.grad, [4, 6])
    assert y.grad is None, "only leaves keep gradients"


def test_a_diamond_and_an_output_used_twice():
    check(lambda x: x.tanh() * x.exp() + x.tanh() / (x * x + 1), random(2, 3))

    def diamond(x):
        top = x * 3
        return (top + top.exp()) * (top - 1) + top

    check(diamond, random(2, 3))


def test_sixty_doublings_take_sixty_steps():
    x = Tensor(1.0, requires_grad=True)
    y = x
    for _ in range(60):
        y = y + y
    y.backward()
    assert x.grad == 2.0**60
    assert len(history_order(y)) == 61


def test_a_chain_of_ten_thousand_operations():
    x = tensor(1.0)
    y = x
    for _ in range(10_000):
        y = y * 0.9999 + 0.5
    y.backward()
    assert abs(x.grad - 0.9999**10_000) < 1e-9
    del y  # and letting go of it must not recurse either


def test_two_leaves_never_share_memory():
    a, b = tensor([1.0, 2.0]), tensor([3.0, 4.0])
    grad = np.array([1.0, 1.0])
    (a + b).backward(grad)
    for pair in ((a.grad, b.grad), (a.grad, grad), (b.grad, grad)):
        assert not np.shares_memory(*pair)
    total = tensor([[1.0, 2.0]])
    total.sum().backward()
    total.grad += 1  # not a read-only view
    assert np.array_equal(total.grad, [[2, 2]])
    x, y = tensor([1.0]), tensor([1.0])
    middle = x * 1
    ((middle + y) + middle).backward()
    assert x.grad == 2 and y.grad == 1


def test_only_leaves_that_asked_get_gradients():
    asked, silent = tensor([1.0, 2.0]), tensor([3.0, 4.0], requires_grad=False)
    (asked * silent).sum().backward()
    assert np.array_equal(asked.grad, [3, 4]) and silent.grad is None
    nothing = silent * silent
    assert not nothing.requires_grad and nothing.history is None


def test_gradients_have_the_dtype_of_their_tensor():
    constant = np.array([[1.0, 2.0, 3.0]])  # float64
    x, w = Tensor(random(2, 3), requires_grad=True), Tensor(random(4, 3), requires_grad=True)
    y = (x * constant).exp().mean(axis=0, keepdims=True) @ w.T
    (y.max() + (x.var(axis=1) ** 2).sum() + x[[0, 0]].sum()).backward()
    assert x.grad.dtype == w.grad.dtype == np.float32
    mixed = tensor([2.0])
    (mixed * w.sum()).backward()
    assert mixed.grad.dtype == np.float64 and w.grad.dtype == np.float32


def test_lists_and_numbers_may_take_part():
    x = tensor([1.0, 2.0])
    (x * [3, 4] + [[1], [2]] - 5).sum().backward()
    assert np.array_equal(x.grad, [6, 8])
    y = tensor([1.0, 2.0])
    (np.array([3.0, 4.0]) * y).sum().backward()
    assert np.array_equal(y.grad, [3, 4])


def test_an_unused_leaf_keeps_none_and_an_empty_tensor_is_no_problem():
    x, unused = tensor([1.0]), tensor([1.0])
    (x * 2).backward()
    assert unused.grad is None
    empty = tensor(np.zeros((0, 3)))
    (empty * 2).sum().backward()
    assert empty.grad.shape == (0, 3)


def test_a_leaf_may_be_asked_itself():
    x = tensor(5.0)
    x.backward()
    x.backward(2.0)
    assert x.grad == 3


def test_what_flows_in_may_be_a_tensor_and_stays_as_it_is():
    x = tensor([1.0, 2.0])
    grad = np.array([1.0, 10.0])
    (x * 3).backward(Tensor(grad))
    assert np.array_equal(x.grad, [3, 30]) and np.array_equal(grad, [1, 10])


# --------------------------------------------------------------------------------------------- the switch


def test_no_grad_records_nothing_and_nests():
    x = tensor([1.0, 2.0])
    with no_grad():
        inside = x * 2
        with no_grad():
            deeper = x * 2
        after_inner = x * 2
    outside = x * 2
    for quiet in (inside, deeper, after_inner):
        assert not quiet.requires_grad and quiet.history is None
    assert outside.requires_grad and outside.history is not None


def test_no_grad_survives_exceptions():
    x = tensor([1.0])
    with pytest.raises(KeyError), no_grad():
        raise KeyError("accident")
    assert (x * 2).requires_grad
    with no_grad():
        with pytest.raises(KeyError), no_grad():
            raise KeyError("accident")
        assert not (x * 2).requires_grad, "the outer block is still on"
    assert (x * 2).requires_grad


def test_backward_works_inside_no_grad_for_what_was_recorded_outside():
    x = tensor([3.0])
    y = x * x
    with no_grad():
        y.backward()
    assert x.grad == 6


def test_no_grad_as_a_decorator():
    @no_grad()
    def answer(x):
        return x * 2

    x = tensor([1.0])
    assert not answer(x).requires_grad and not answer(x).requires_grad and (x * 2).requires_grad


def test_enabling_twice_changes_nothing():
    x = tensor([1.0])
    y = x * 2
    enable_autograd()
    (y * 3).backward()
    assert x.grad == 6
    with no_grad():
        enable_autograd()
        assert not (x * 2).requires_grad, "enabling inside no_grad does not end the block"


def test_a_constant_made_in_no_grad_stops_the_gradient():
    x = tensor([2.0])
    with no_grad():
        factor = x * x
    (x * factor).backward()
    assert x.grad == 4


def test_whole_numbers_are_not_recorded():
    x = tensor([3.0, 1.0, 2.0])
    order = apply(np.argsort, x)
    assert not order.requires_grad and order.history is None
    x[order.data].backward([1.0, 10.0, 100.0])
    assert np.array_equal(x.grad, [100, 1, 10])


# ------------------------------------------------------------------------------------------------- memory


def test_the_history_goes_with_the_loss():
    x = Tensor(np.ones((40, 50)), requires_grad=True)
    gc.disable()  # reference counts alone must do it
    try:
        hidden = x * 2
        watched = weakref.ref(hidden.data)
        loss = (hidden * hidden).sum()
        del hidden
        assert watched() is not None, "the loss needs it for backward"
        loss.backward()
        assert watched() is not None, "backward may be called again"
        del loss
        assert watched() is None, "the intermediate arrays outlive the loss"
    finally:
        gc.enable()


def test_without_recording_nothing_is_kept():
    x = Tensor(np.ones((40, 50)), requires_grad=True)
    for quiet in (True, False):
        source = x if quiet else Tensor(np.ones((40, 50)))
        if quiet:
            with no_grad():
                hidden = source * 2
                result = hidden * 3
        else:
            hidden = source * 2
            result = hidden * 3
        watched = weakref.ref(hidden.data)
        del hidden
        assert watched() is None, "an intermediate array is kept though nobody can ask for gradients"
        assert result.data[0, 0] == 6


# ------------------------------------------------------------------------------------------------- errors


def test_backward_without_a_recorder():
    x = tensor([1.0])
    y = x * 2
    previous = set_recorder(None)
    try:
        with pytest.raises(RuntimeError, match="recorded") as caught:
            y.backward()
        assert caught.type is RuntimeError
        late = x * 2
    finally:
        set_recorder(previous)
    with pytest.raises(RuntimeError) as caught:
        late.backward()
    assert caught.type is RuntimeError and x.grad is None


def test_backward_from_what_needs_no_gradient():
    with pytest.raises(RuntimeError) as caught:
        (tensor([1.0], False) * 2).backward()
    assert caught.type is RuntimeError


@pytest.mark.parametrize("grad", [None, [1.0], [[1.0, 1.0, 1.0]], 1.0, np.ones((3, 2))], ids=str)
def test_backward_with_a_gradient_that_does_not_fit(grad):
    x = tensor(random(2, 3))
    y = x * 2
    with pytest.raises(ValueError, match=r"\(2, 3\)"):
        y.backward(grad)
    assert x.grad is None


def test_a_gradient_that_is_no_number():
    x = tensor(random(2))
    with pytest.raises(TypeError):
        (x * 2).backward(["a", "b"])
    assert x.grad is None


def test_a_function_without_a_rule_is_named_and_leaves_no_gradients():
    x, y = tensor([1.0, 2.0]), tensor([3.0, 4.0])
    z = apply(np.cbrt, x) * y
    with pytest.raises(NotImplementedError, match="cbrt"):
        z.sum().backward()
    assert x.grad is None and y.grad is None
    with no_grad():
        assert np.allclose(apply(np.cbrt, x).data, np.cbrt(x.data)), "without gradients it runs"


def first_only(a, b):
    return a * b


@gradient_of(first_only)
def rule_of_first_only(grad, output, a, b, scale=1):
    return grad * b, None


def test_rules_can_be_registered_and_may_refuse_an_input():
    assert callable(rule_of_first_only), "the decorator gives the rule back"
    a, b = tensor([1.0, 2.0]), tensor([3.0, 4.0], False)
    apply(first_only, a, b).sum().backward()
    assert np.array_equal(a.grad, [3, 4])
    with pytest.raises(NotImplementedError, match="first_only"):
        apply(first_only, a, tensor([3.0, 4.0])).sum().backward()


# ------------------------------------------------------------------------------------------------- pieces


@given(
    shape=st.lists(st.integers(1, 4), max_size=4).map(tuple),
    data=st.data(),
)
def test_sum_to_shape_undoes_broadcasting(shape, data):
    kept = data.draw(st.integers(0, len(shape)))
    ones = data.draw(st.lists(st.booleans(), min_size=kept, max_size=kept))
    small = tuple(1 if one else n for one, n in zip(ones, shape[len(shape) - kept :], strict=True))
    grad = np.asarray(np.random.default_rng(len(shape)).normal(size=shape))
    got = sum_to_shape(grad, small)
    # which entry of the small array each entry was broadcast from
    places = np.broadcast_to(np.arange(int(np.prod(small))).reshape(small), shape)
    want = [grad[places == i].sum() for i in range(int(np.prod(small)))]
    assert got.shape == small and np.allclose(got.ravel(), want)


def test_numerical_gradient():
    x = np.array([[1.0, -2.0], [0.5, 3.0]])
    kept = x.copy()
    got = numerical_gradient(lambda x: float((x * x * x).sum()), x)
    assert np.allclose(got, 3 * x * x, atol=1e-7) and np.array_equal(x, kept)
    wide = numerical_gradient(lambda x: float(x[0] ** 2 * x[1]), np.array([3.0, 2.0]), h=0.25)
    assert np.allclose(wide, [12, 9], rtol=1e-12), "exact for this function, if each entry is put back"
    assert np.isclose(numerical_gradient(lambda x: float(x**3), np.array(2.0), h=0.5), 12.25)
    whole = numerical_gradient(lambda x: x[0] * x[1], np.array([3, 4]))
    assert np.allclose(whole, [4, 3]) and whole.dtype == np.float64


def test_the_history_can_be_read():
    a, b = tensor([1.0, 2.0]), tensor([3.0, 4.0])
    lines = describe_history(((a * b + a) * 2).sum()).splitlines()
    assert len(lines) == 6
    assert [line.split()[1] for line in lines].count("leaf") == 2
    multiply = next(line for line in lines if "multiply" in line and "constant" not in line)
    assert "(2,)" in multiply
    assert lines[-1].split()[1] == "sum" and lines[-1].split()[-1] == "4"


# --------------------------------------------------------------------------------------------- it learns


def test_a_network_learns_xor():
    rng = np.random.default_rng(0)
    model = Sequential(Linear(2, 8, rng=rng), Tanh(), Linear(8, 2, rng=rng))
    x, y = np.array([[0, 0], [0, 1], [1, 0], [1, 1]], dtype=np.float32), np.array([0, 1, 1, 0])
    for _ in range(300):
        loss = CrossEntropyLoss()(model(Tensor(x)), y)
        loss.backward()
        for p in model.parameters():
            p.data -= 1.0 * p.grad
            p.grad = None
    assert float(loss) < 0.05
    with no_grad():
        assert np.array_equal(model(Tensor(x)).data.argmax(axis=-1), y)


# errors, and threads


def half_way(kind):
    """A function whose rule fails, or gives nothing, and a sum that needs it and another leaf."""

    def strange(x):
        return x * 2.0

    @gradient_of(strange)
    def _(grad, output, x):
        if kind == "raises":
            raise ZeroDivisionError("in the rule")
        return (None,)

    return strange


@pytest.mark.parametrize("had", [False, True])
@pytest.mark.parametrize(("kind", "error"), [("raises", ZeroDivisionError), ("nothing", NotImplementedError)])
def test_a_rule_that_fails_leaves_every_gradient_as_it_was(kind, error, had):
    strange = half_way(kind)
    leaves = [Tensor([1.0, 2.0], requires_grad=True) for _ in range(3)]
    if had:
        (leaves[0] * leaves[1] * leaves[2]).sum().backward()
    before = [None if leaf.grad is None else leaf.grad.copy() for leaf in leaves]
    total = (leaves[0] * apply(strange, leaves[1]) * leaves[2]).sum() + leaves[2].sum()
    with pytest.raises(error):
        total.backward()
    for leaf, grad in zip(leaves, before, strict=True):
        assert (leaf.grad is None) if grad is None else np.array_equal(leaf.grad, grad)
    del RULES[strange]


def test_no_grad_in_one_thread_does_not_touch_another():
    inside, leave = threading.Event(), threading.Event()

    def answer():
        with no_grad():
            inside.set()
            leave.wait(10)

    other = threading.Thread(target=answer)
    other.start()
    assert inside.wait(10)
    x = Tensor([2.0], requires_grad=True)
    (x * x).sum().backward()
    assert x.grad.tolist() == [4.0], "another thread's no_grad switched recording off here"
    with no_grad():
        leave.set()
        other.join()
        assert not (x * x).requires_grad, "another thread's leaving switched recording on here"


@pytest.mark.parametrize("axis", [0, 1, -1])
def test_stacked_tensors_get_back_what_came_from_their_place(axis):
    rng = np.random.default_rng(3)
    parts = [tensor(rng.normal(size=(2, 3))) for _ in range(4)]
    weights = rng.normal(size=stack(parts, axis).shape)
    (stack(parts, axis) * Tensor(weights, dtype=np.float64)).sum().backward()
    for place, part in enumerate(parts):
        assert np.array_equal(part.grad, np.take(weights, place, axis=axis))
