"""Module 02 as the package has it: values against `math`, both ends of the number line, masked scores."""

import math
import tracemalloc
import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tinytorch.core.activations import (
    GELU,
    ReLU,
    Sigmoid,
    SiLU,
    Softmax,
    Tanh,
    as_floats,
    gelu,
    relu,
    sigmoid,
    silu,
    softmax,
)
from tinytorch.core.tensor import Tensor, set_recorder


@pytest.fixture(autouse=True)
def warnings_are_mistakes():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


@pytest.fixture(autouse=True)
def no_recorder():
    previous = set_recorder(None)
    yield
    set_recorder(previous)


@pytest.fixture
def rng():
    return np.random.default_rng(2)


def true_relu(x):
    return max(x, 0.0)


def true_sigmoid(x):
    return 1 / (1 + math.exp(-x)) if x >= 0 else math.exp(x) / (1 + math.exp(x))


def true_silu(x):
    return x * true_sigmoid(x)


def true_gelu(x):
    """Hendrycks and Gimpel 2016, section 2; tanh is 1 long before the cube overflows."""
    v = max(-30.0, min(30.0, x))
    return 0.5 * x * (1 + math.tanh(math.sqrt(2 / math.pi) * (v + 0.044715 * v**3)))


def true_softmax(line):
    top = max(line)
    exps = [math.exp(v - top) if v > -math.inf else 0.0 for v in line]
    return [e / (math.fsum(exps) or 1.0) for e in exps]


PAIRS = [(relu, true_relu), (sigmoid, true_sigmoid), (silu, true_silu), (gelu, true_gelu)]
FUNCTIONS = [relu, sigmoid, silu, gelu, softmax]


# ------------------------------------------------------------------------------- the functions of one number


@pytest.mark.parametrize(("function", "true"), PAIRS)
def test_values(function, true, rng):
    x = np.concatenate([np.linspace(-20, 20, 161), rng.normal(size=59)]).astype(np.float32).reshape(4, 5, 11)
    found = function(x)
    assert found.shape == x.shape and found.dtype == np.float32
    want = [true(v) for v in x.ravel().tolist()]
    assert np.allclose(found.ravel(), want, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("function", "true"), PAIRS)
def test_values_in_float64(function, true):
    x = np.linspace(-8, 8, 321)
    found = function(x)
    assert found.dtype == np.float64
    assert np.allclose(found, [true(v) for v in x.tolist()], rtol=1e-12, atol=1e-14)


@settings(deadline=None, max_examples=200)
@given(st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=1, max_size=7))
def test_no_finite_number_is_too_large(numbers):
    x = np.float32(numbers)
    for function, true in PAIRS:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            found = function(x)
        want = np.array([true(max(v, -700.0)) if v < 0 else true(v) for v in x.tolist()])
        assert np.allclose(found, want, rtol=1e-5, atol=1e-6), function.__name__


@pytest.mark.parametrize("x", [-87, -60, -20, -10, -3, 3, 10, 20])
def test_the_gates_keep_their_digits_in_both_tails(x):
    assert math.isclose(sigmoid(np.float32([x]))[0], true_sigmoid(x), rel_tol=1e-5)
    assert math.isclose(silu(np.float32([x]))[0], true_silu(x), rel_tol=1e-5)
    assert math.isclose(sigmoid(np.float64([8 * x]))[0], true_sigmoid(8 * x), rel_tol=1e-12)


def test_infinities_and_nan():
    ends = np.float32([-np.inf, np.inf])
    assert relu(ends).tolist() == [0, np.inf]
    assert sigmoid(ends).tolist() == [0, 1]
    assert silu(ends[1:]).tolist() == [np.inf] and gelu(ends[1:]).tolist() == [np.inf]
    for function in FUNCTIONS:
        assert np.isnan(function(np.float32([[np.nan, np.nan]]))).all(), "NaN must not be hidden"


def test_published_values():
    """GELU of 1 and -1 from the tanh formula, sigmoid(1), and the minimum of SiLU, near -1.2785."""
    assert np.allclose(gelu(np.float32([1, -1])), [0.841192, -0.158808], atol=1e-6)
    assert np.allclose(sigmoid(np.float32([1])), 0.73105858, atol=1e-7)
    grid = np.linspace(-2, 0, 20001)
    assert abs(grid[silu(grid).argmin()] + 1.27846) < 2e-4
    assert abs(silu(grid).min() + 0.27846) < 1e-5


def test_gelu_is_the_tanh_form_and_not_the_exact_one():
    grid = np.linspace(-6, 6, 1201)
    exact = np.array([0.5 * v * (1 + math.erf(v / math.sqrt(2))) for v in grid])
    assert 4e-4 < abs(gelu(grid) - exact).max() < 5e-4


# ------------------------------------------------------------------------------------------------- softmax


@pytest.mark.parametrize("axis", [-1, 0, 1, 2, -2, -3])
def test_softmax_along_each_axis(axis, rng):
    x = rng.normal(scale=3, size=(2, 3, 5)).astype(np.float32)
    found = softmax(x, axis=axis)
    assert found.shape == x.shape and found.dtype == np.float32
    lines = np.moveaxis(x, axis, -1).reshape(-1, x.shape[axis]).tolist()
    shares = np.moveaxis(found, axis, -1).reshape(-1, x.shape[axis])
    assert np.allclose(shares, [true_softmax(line) for line in lines], rtol=1e-5, atol=1e-6)


def test_softmax_uses_the_last_axis_unless_told():
    x = np.random.default_rng(4).normal(size=(2, 3, 5)).astype(np.float32)
    assert np.array_equal(softmax(x), softmax(x, axis=2)) and np.allclose(softmax(x).sum(-1), 1)


SCORES = st.one_of(
    st.floats(width=32, min_value=-(2.0**100), max_value=2.0**100),
    st.floats(-5, 5, width=32),
    st.just(-math.inf),
)


@settings(deadline=None, max_examples=300)
@given(st.lists(st.lists(SCORES, min_size=4, max_size=4), min_size=1, max_size=3))
def test_softmax_of_any_scores(rows):
    x = np.float32(rows)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = softmax(x)
    assert np.allclose(found, [true_softmax(line) for line in x.tolist()], rtol=1e-5, atol=1e-6)
    assert (found[x == -np.inf] == 0).all(), "a masked score gets exactly 0"
    assert np.allclose(found.sum(-1), (x > -np.inf).any(-1)), "shares sum to 1, or to 0 where all is masked"


@settings(deadline=None, max_examples=100)
@given(st.lists(st.floats(-20, 20), min_size=2, max_size=6), st.floats(-1000, 1000))
def test_softmax_does_not_care_where_zero_is(line, shift):
    assert np.allclose(softmax(np.array(line) + shift), softmax(np.array(line)), rtol=1e-9, atol=1e-12)


def test_softmax_where_everything_is_masked(rng):
    x = rng.normal(size=(2, 3, 4, 5)).astype(np.float32)
    x[1, 2] = x[0, :, 1] = -np.inf
    found = softmax(x)
    masked = (x == -np.inf).all(-1)
    assert (found[masked] == 0).all() and np.allclose(found[~masked].sum(-1), 1)
    assert np.array_equal(found[~masked], softmax(x[~masked])), "a masked row changes no other"
    x = np.full((3, 2), -np.inf, np.float32)
    assert (softmax(x, axis=0) == 0).all()
    assert softmax(np.float64([[-np.inf, 3]])).tolist() == [[0, 1]]


def test_softmax_in_float64_keeps_its_digits():
    found = softmax(np.array([0.0, 1.0, -740.0]))
    assert found.dtype == np.float64
    assert np.allclose(found, true_softmax([0.0, 1.0, -740.0]), rtol=1e-14, atol=0)


def test_softmax_of_wrong_axes_and_of_nothing():
    with pytest.raises(ValueError):
        softmax(np.zeros((2, 3), np.float32), axis=2)
    with pytest.raises(ValueError):
        Softmax(axis=-4)(Tensor(np.zeros((2, 3))))
    assert softmax(np.zeros((0, 3), np.float32)).shape == (0, 3)


# ------------------------------------------------------------------------------------- types and memory


@pytest.mark.parametrize("kind", [np.int8, np.uint8, np.int16, np.int32, np.int64, np.bool_])
def test_integers_are_computed_in_float32(kind):
    x = np.array([[0, 1, 1], [1, 0, 1]]).astype(kind)
    for function in (sigmoid, silu, gelu, softmax):
        found = function(x)
        assert found.dtype == np.float32
        assert np.array_equal(found, function(x.astype(np.float32))), function.__name__
    whole = relu(np.int8([-100, 100]))
    assert whole.dtype == np.int8 and whole.tolist() == [0, 100]


def test_integers_do_not_wrap_around():
    x = np.int8([100, -100])
    assert gelu(x).tolist() == [100, 0]
    assert softmax(x).tolist() == [1, 0]
    assert np.allclose(sigmoid(np.uint8([2])), true_sigmoid(2))
    assert gelu(np.int64([3_000_000])).tolist() == [3_000_000]


def test_as_floats():
    for kind in (np.float16, np.float32, np.float64):
        array = np.ones((2, 3), kind)
        assert as_floats(array) is array
    for data in ([1, 2], [0.5], 3, 0.5, np.ones(2, np.int8), np.ones(2, bool)):
        assert isinstance(as_floats(data), np.ndarray) and as_floats(data).dtype == np.float32
        assert np.array_equal(as_floats(data), np.float32(data))


@pytest.mark.parametrize("function", FUNCTIONS)
def test_the_input_is_never_written(function, rng):
    x = rng.normal(size=(2, 3, 5)).astype(np.float32)
    kept = x.copy()
    x.flags.writeable = False
    found = function(x)
    assert np.array_equal(x, kept) and not np.shares_memory(found, x)
    assert np.allclose(function(x.transpose(2, 0, 1)), function(np.ascontiguousarray(x.transpose(2, 0, 1))))


@pytest.mark.parametrize("function", FUNCTIONS)
def test_few_arrays_are_made_on_the_way(function):
    """Six of the input's size at most at any time; the task says that points do not depend on fewer."""
    x = np.linspace(-3, 3, 1_000_000, dtype=np.float32).reshape(1000, 1000)
    function(x)
    tracemalloc.start()
    try:
        function(x)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 6.1 * x.nbytes, f"{peak} bytes for an input of {x.nbytes}"


# ------------------------------------------------------------------------------------------------ objects


OBJECTS = [(ReLU(), relu), (Sigmoid(), sigmoid), (Tanh(), np.tanh), (GELU(), gelu), (SiLU(), silu)]


@pytest.mark.parametrize(("activation", "function"), [*OBJECTS, (Softmax(), softmax)])
def test_objects_take_and_give_tensors(activation, function, rng):
    array = rng.normal(size=(2, 3, 5)).astype(np.float32)
    for x in (Tensor(array), array, array.tolist(), array.astype(np.float64)):
        found = activation(x)
        assert type(found) is Tensor and found.dtype == np.float32
        assert np.allclose(found, function(array), rtol=1e-5, atol=1e-6)
    whole = activation(Tensor(np.int8([[1, 3], [0, 2]])))
    assert np.allclose(whole, function(np.float32([[1, 3], [0, 2]])), rtol=1e-6)
    assert whole.dtype == (np.int8 if function is relu else np.float32)
    assert activation(Tensor([[0.5, 1.0]], dtype=np.float64)).dtype == np.float64


@pytest.mark.parametrize(("activation", "function"), OBJECTS)
def test_objects_take_a_single_number(activation, function):
    for number in (Tensor(0.5), 0.5, 2):
        found = activation(number)
        assert type(found) is Tensor and found.shape == ()
        assert np.isclose(float(found), float(function(np.float32([float(number)]))[0]))


def test_softmax_has_its_axis(rng):
    array = rng.normal(size=(2, 3, 5)).astype(np.float32)
    for axis in (-1, 0, 1, 2):
        assert np.array_equal(Softmax(axis=axis)(Tensor(array)).data, softmax(array, axis=axis))
    assert np.array_equal(Softmax(1)(array).data, softmax(array, 1))


@pytest.mark.parametrize(
    ("activation", "function", "options"),
    [(a, f, {}) for a, f in OBJECTS]
    + [(Softmax(), softmax, {"axis": -1}), (Softmax(axis=0), softmax, {"axis": 0})],
)
def test_one_operation_is_recorded(activation, function, options):
    heard = []

    class Ear:
        def record(self, *event):
            heard.append(event)

    x = Tensor([[1.0, 2.0], [3.0, 4.0]])
    set_recorder(Ear())
    output = activation(x)
    ((found, inputs, told, result),) = heard
    assert found is function and told == options and result is output
    assert len(inputs) == 1 and inputs[0] is x
