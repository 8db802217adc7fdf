"""Module 01 as the package has it: types, shapes, views, operators, and the door that all of them pass."""

import copy
import math
import operator
import pickle
import timeit
import tracemalloc
from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tinytorch.core.tensor import (
    Tensor,
    apply,
    as_array,
    broadcast_shape,
    getitem,
    matmul_shape,
    matmul_slowly,
    row_major_strides,
    set_recorder,
    stack,
)

SYMBOLS = {
    "+": operator.add,
    "-": operator.sub,
    "*": operator.mul,
    "/": operator.truediv,
    "**": operator.pow,
}
SHAPES = st.lists(st.integers(0, 4), max_size=4).map(tuple)


@pytest.fixture(autouse=True)
def no_recorder():
    """Each test begins and ends with nobody listening."""
    previous = set_recorder(None)
    yield
    set_recorder(previous)


@pytest.fixture
def rng():
    return np.random.default_rng(1)


class Ear:
    def __init__(self):
        self.heard = []

    def record(self, function, inputs, options, output):
        self.heard.append((function, inputs, options, output))


def listening(run):
    """What a recorder hears while `run` runs, and what `run` gives."""
    ear = Ear()
    set_recorder(ear)
    try:
        return run(), ear.heard
    finally:
        set_recorder(None)


# ------------------------------------------------------------------------------------------ numbers come in


@pytest.mark.parametrize(
    ("data", "dtype"),
    [
        (1.5, "float32"),
        ([1, 2.5], "float32"),
        (np.zeros(3), "float32"),
        (np.float64(2), "float32"),
        (np.zeros(3, np.float16), "float32"),
        (np.zeros(3, np.float32), "float32"),
        (np.zeros(3, np.longdouble), "float32"),
        ([], "float32"),
        (7, "int64"),
        ([1, 2], "int64"),
        (np.zeros(3, np.int8), "int8"),
        (np.zeros(3, np.uint16), "uint16"),
        (np.zeros(3, np.int32), "int32"),
        ([True, False], "bool"),
        (range(4), "int64"),
    ],
)
def test_floats_become_float32_and_integers_stay(data, dtype):
    assert Tensor(data).dtype == dtype
    assert as_array(data).dtype == dtype
    assert np.array_equal(Tensor(data).data, np.asarray(data))


def test_another_type_on_request_keeps_all_digits():
    assert Tensor([1 / 3], dtype=np.float64).data[0] == 1 / 3
    assert Tensor([1, 2], dtype=np.float32).dtype == np.float32
    assert Tensor(np.ones(2, np.float16), dtype=np.float16).dtype == np.float16
    assert Tensor(Tensor([1 / 3], dtype=np.float64), dtype=np.float64).data[0] == 1 / 3


@pytest.mark.parametrize("dtype", [np.float32, np.int64, np.int8, np.bool_])
def test_an_array_of_the_right_type_is_not_copied(dtype):
    array = np.ones((4, 6), dtype)
    for view in (array, array.T, array[1:, ::2]):
        assert Tensor(view).data is view or np.shares_memory(Tensor(view).data, view)
        assert np.shares_memory(as_array(view), array)
    assert np.shares_memory(Tensor(Tensor(array)).data, array)


@pytest.mark.parametrize("data", ["three", None, [1j], [object()], np.array(["1"]), {1: 2}, [2**70]])
def test_what_is_no_number_is_refused(data):
    with pytest.raises(TypeError):
        Tensor(data)


@pytest.mark.parametrize(("data", "dtype"), [([1, 2], complex), ([1, 2], "U5"), (["1"], np.float32)])
def test_a_type_that_holds_no_numbers_is_refused(data, dtype):
    with pytest.raises(TypeError):
        Tensor(data, dtype=dtype)


def test_rows_of_different_lengths_are_refused():
    with pytest.raises(ValueError):
        Tensor([[1, 2], [3]])


def test_a_new_tensor():
    t = Tensor(np.zeros((2, 3, 5)))
    assert (t.shape, t.ndim, t.size, t.dtype, len(t)) == ((2, 3, 5), 3, 30, np.float32, 2)
    assert (t.requires_grad, t.grad, t.history) == (False, None, None)
    assert t.numpy() is t.data
    assert Tensor([1.0], requires_grad=True).requires_grad is True
    assert Tensor([1], requires_grad=True, dtype=np.float32).requires_grad is True


@pytest.mark.parametrize("data", [[1, 2], [True]])
def test_only_floats_have_gradients(data):
    with pytest.raises(TypeError, match="int64|bool"):
        Tensor(data, requires_grad=True)


def test_a_misspelt_attribute_is_an_error():
    with pytest.raises(AttributeError):
        Tensor([1.0]).dtaa = 3
    with pytest.raises(TypeError):
        Tensor([1.0])[0] = 2  # a value written by hand would have no history


# --------------------------------------------------------------------------------------- and out to NumPy


def test_numpy_functions_take_tensors(rng):
    array = rng.normal(size=(2, 3)).astype(np.float32)
    t = Tensor(array)
    assert np.asarray(t) is array or np.shares_memory(np.asarray(t), array)
    assert not np.shares_memory(np.array(t), array)
    assert np.shares_memory(np.asarray(t, dtype=np.float32), array)
    assert np.asarray(t, dtype=np.float64).dtype == np.float64
    assert np.allclose(t, array) and np.allclose(array, t) and np.array_equal(t, array)
    assert np.array_equal(np.abs(t), np.abs(array)) and np.array_equal(np.add(array, t), array + array)
    assert np.array_equal(np.stack([t, t]), np.stack([array, array]))
    assert np.array_equal(as_array([t, t]), np.stack([array, array]))
    with pytest.raises(ValueError):
        np.array(t, dtype=np.float64, copy=False)


def test_one_entry_is_a_number():
    for t in (Tensor(2.5), Tensor([2.5]), Tensor([[2.5]])):
        assert float(t) == 2.5 and t.item() == 2.5 and int(t) == 2 and bool(t) is True
    assert type(Tensor(2.5).item()) is float and type(Tensor(2).item()) is int
    assert bool(Tensor([0.0])) is False
    for several in (Tensor([1.0, 2.0]), Tensor(np.zeros((0, 3)))):
        for kind in (float, int, bool):
            with pytest.raises(ValueError, match=r"shape \(.*\) has \d"):
                kind(several)


def test_iteration_and_length():
    t = Tensor([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]])
    assert [row.data.tolist() for row in t] == [[1, 2], [3, 4], [5, 6]]
    assert [float(x) for x in t[0]] == [1, 2]
    first, *_ = t
    assert np.shares_memory(first.data, t.data)
    for nothing in (len, iter, list):
        with pytest.raises(TypeError):
            nothing(Tensor(1.0))
    with pytest.raises(TypeError):
        3 in Tensor([3.0])  # noqa: B015


def test_tensors_are_compared_as_objects():
    t = Tensor([1.0])
    assert t == t and {t: 1}[t] == 1 and t != Tensor([1.0])


def test_a_tensor_shows_its_values_shape_and_type():
    assert repr(Tensor([[1.5, 2]])) == "Tensor([[1.5, 2. ]], shape=(1, 2))"
    assert repr(Tensor([1, 2])) == "Tensor([1, 2], shape=(2,), dtype=int64)"
    assert repr(Tensor([1.0], requires_grad=True)) == "Tensor([1.], shape=(1,), requires_grad=True)"
    assert len(repr(Tensor(np.zeros((1000, 1000))))) < 500


@pytest.mark.parametrize("twin_of", [copy.deepcopy, lambda t: pickle.loads(pickle.dumps(t))])
def test_copies_and_pickles_keep_everything_but_the_history(twin_of, rng):
    t = Tensor(rng.normal(size=(2, 3)), requires_grad=True)
    t.grad, t.history = np.ones((2, 3), np.float32), (np.add, (t, lambda: None), {})
    twin = twin_of(t)
    assert np.array_equal(twin.data, t.data) and not np.shares_memory(twin.data, t.data)
    assert np.array_equal(twin.grad, t.grad) and twin.requires_grad and twin.history is None
    assert twin_of(Tensor([1, 2])).dtype == np.int64
    assert t.history is not None


# ------------------------------------------------------------------------------------------------- shapes


@settings(deadline=None, max_examples=100)
@given(st.lists(st.integers(1, 4), max_size=4).map(tuple))
def test_row_major_strides_lead_to_every_entry(shape):
    numbered = np.arange(math.prod(shape)).reshape(shape)  # each entry holds its own place in the block
    strides = row_major_strides(shape)
    assert isinstance(strides, tuple) and len(strides) == len(shape)
    for index in np.ndindex(shape):
        assert sum(i * s for i, s in zip(index, strides, strict=True)) == numbered[index]


def test_row_major_strides_of_known_shapes():
    assert row_major_strides((2, 3, 4)) == (12, 4, 1)
    assert row_major_strides(()) == () and row_major_strides((1, 5)) == (5, 1)
    assert row_major_strides((2, 0, 3)) == (0, 3, 1)


@settings(deadline=None, max_examples=300)
@given(SHAPES, SHAPES)
def test_broadcast_shape_is_what_numpy_does(a, b):
    try:
        want = (np.empty(a) + np.empty(b)).shape
    except ValueError:
        with pytest.raises(ValueError) as error:
            broadcast_shape(a, b)
        assert str(a) in str(error.value) and str(b) in str(error.value)
    else:
        assert broadcast_shape(a, b) == want and isinstance(broadcast_shape(a, b), tuple)


@settings(deadline=None, max_examples=300)
@given(SHAPES, SHAPES)
def test_matmul_shape_is_what_numpy_does(a, b):
    try:
        want = np.matmul(np.zeros(a, np.int8), np.zeros(b, np.int8)).shape
    except ValueError:
        with pytest.raises(ValueError) as error:
            matmul_shape(a, b)
        assert type(error.value) is ValueError
    else:
        assert matmul_shape(a, b) == want and isinstance(matmul_shape(a, b), tuple)


@pytest.mark.parametrize(
    ("a", "b", "inner"),
    [((2, 3), (4, 5), (3, 4)), ((3,), (2, 3), (3, 2)), ((5, 2, 3), (2,), (3, 2)), ((2, 3), (2, 3), (3, 2))],
)
def test_a_product_that_does_not_fit_names_shapes_and_sizes(a, b, inner):
    for run in (lambda: matmul_shape(a, b), lambda: Tensor(np.ones(a)) @ Tensor(np.ones(b))):
        with pytest.raises(ValueError) as error:
            run()
        message = str(error.value)
        assert str(a) in message and str(b) in message
        rest = message.replace(str(a), "").replace(str(b), "")
        assert all(str(size) in rest for size in inner), message


def test_a_product_needs_axes_and_leading_axes_that_broadcast():
    matrix = Tensor(np.ones((2, 3)))
    for run in (lambda: matrix @ Tensor(2.0), lambda: 2.0 @ matrix, lambda: matmul_shape((), (3,))):
        with pytest.raises(ValueError, match=r"\(\)"):
            run()
    with pytest.raises(ValueError, match=r"\(2,\).*\(5,\)"):
        Tensor(np.ones((2, 4, 3))) @ Tensor(np.ones((5, 3, 4)))


@pytest.mark.parametrize("symbol", SYMBOLS)
@pytest.mark.parametrize(("a", "b", "axis"), [((2, 3), (4,), -1), ((2, 5, 1, 6), (4, 3, 6), -3)])
def test_operands_that_do_not_fit_name_shapes_and_axis(symbol, a, b, axis):
    left, right = Tensor(np.ones(a)), Tensor(np.ones(b))
    for x, y in ((left, right), (left, right.data), (left.data, right)):
        with pytest.raises(ValueError) as error:
            SYMBOLS[symbol](x, y)
        message = str(error.value)
        assert str(a) in message and str(b) in message and f"axis {axis}" in message
        assert error.value.__suppress_context__, "one explanation is enough"


def test_other_errors_come_through():
    x = Tensor(np.ones((2, 3)))
    for run in (
        lambda: x.reshape(4),
        lambda: x.reshape(-1, -1),
        lambda: x.sum(axis=2),
        lambda: x.mean(axis=(0, 0)),
        lambda: x.transpose(0),
        lambda: x.transpose(0, 2),
        lambda: x.swapaxes(0, 5),
        lambda: Tensor(np.ones((0, 2))).max(),
        lambda: Tensor([1, 2]) ** -1,
    ):
        with pytest.raises(ValueError):
            run()
    for run in (lambda: x[2], lambda: x[0, 3], lambda: x[0, 0, 0]):
        with pytest.raises(IndexError):
            run()
    for run in (lambda: x + "1", lambda: x * None, lambda: "1" - x):
        with pytest.raises(TypeError):
            run()


# ------------------------------------------------------------------------------------------------ the door


def test_apply_takes_tensors_arrays_lists_and_numbers():
    for a, b in product((Tensor([1.0, 2.0]), np.float32([1, 2]), [1.0, 2.0]), (Tensor([3.0]), [3.0], 3, 3.0)):
        found = apply(np.add, a, b)
        assert type(found) is Tensor and found.data.tolist() == [4, 5] and found.dtype == np.float32
    assert isinstance(apply(np.sum, Tensor([1.0, 2.0])).data, np.ndarray)
    with pytest.raises(TypeError):
        apply(np.add, Tensor([1.0]), "1")


def test_a_function_of_ours_and_its_options():
    def scaled(x, by=1):
        return x * by

    found, heard = listening(lambda: apply(scaled, Tensor([1.0, 2.0]), by=3))
    assert found.data.tolist() == [3, 6]
    assert heard[0][0] is scaled and heard[0][2] == {"by": 3}


FLOAT, WIDE, WHOLE = Tensor([1.0, 2.0]), Tensor([1.0, 2.0], dtype=np.float64), Tensor([1, 2])


@pytest.mark.parametrize(
    ("run", "dtype"),
    [
        (lambda: FLOAT * 2, "float32"),
        (lambda: FLOAT * 0.1, "float32"),
        (lambda: 1 / FLOAT, "float32"),
        (lambda: FLOAT * np.float64(0.1), "float32"),
        (lambda: np.float64(0.1) * FLOAT, "float32"),
        (lambda: FLOAT * np.int64(2), "float32"),
        (lambda: np.float32(2) - FLOAT, "float32"),
        (lambda: FLOAT + np.ones(2), "float32"),
        (lambda: np.ones(2) + FLOAT, "float32"),
        (lambda: FLOAT + WHOLE, "float32"),
        (lambda: FLOAT @ np.ones((2, 3)), "float32"),
        (lambda: FLOAT @ WHOLE, "float32"),
        (lambda: FLOAT.mean(), "float32"),
        (lambda: FLOAT.var(), "float32"),
        (lambda: FLOAT * True, "float32"),
        (lambda: WHOLE / 2, "float32"),
        (lambda: WHOLE * 0.5, "float32"),
        (lambda: WHOLE.mean(), "float32"),
        (lambda: WHOLE.exp(), "float32"),
        (lambda: Tensor(np.ones(2, np.int8)).exp(), "float32"),
        (lambda: Tensor([True, False]).mean(), "float32"),
        (lambda: WHOLE + 1, "int64"),
        (lambda: WHOLE.sum(), "int64"),
        (lambda: WHOLE.max(), "int64"),
        (lambda: WHOLE @ WHOLE, "int64"),
        (lambda: Tensor(np.ones(2, np.int32)) * 3, "int32"),
        (lambda: WIDE * 0.1, "float64"),
        (lambda: WIDE + FLOAT, "float64"),
        (lambda: FLOAT - WIDE, "float64"),
        (lambda: WIDE.mean(), "float64"),
        (lambda: WIDE.exp(), "float64"),
        (lambda: WIDE[0], "float64"),
        (lambda: WIDE @ WIDE, "float64"),
    ],
)
def test_results_are_float32_unless_an_input_is_wider(run, dtype):
    assert run().dtype == dtype


def test_plain_numbers_keep_their_digits_beside_float64():
    assert (Tensor([1 / 3], dtype=np.float64) * 0.1).item() == 1 / 3 * 0.1
    assert (0.1 - Tensor([1 / 3], dtype=np.float64)).item() == 0.1 - 1 / 3


def test_small_integers_are_not_computed_in_half_precision():
    small = Tensor(np.int8([1, 3]))
    for name, function in (("exp", math.exp), ("log", math.log), ("sqrt", math.sqrt), ("tanh", math.tanh)):
        assert np.allclose(getattr(small, name)(), [function(1), function(3)], rtol=1e-6)


def test_the_recorder_hears_every_operation_as_it_was_called(rng):
    x, y = Tensor(rng.uniform(1, 2, (2, 3))), Tensor(rng.uniform(1, 2, (2, 3)))
    array = np.ones(3, np.float32)
    calls = [
        (lambda: x + y, np.add, (x, y), {}),
        (lambda: x + 2, np.add, (x, 2), {}),
        (lambda: 2 + x, np.add, (2, x), {}),
        (lambda: array + x, np.add, (array, x), {}),
        (lambda: x - y, np.subtract, (x, y), {}),
        (lambda: 2 - x, np.subtract, (2, x), {}),
        (lambda: x * array, np.multiply, (x, array), {}),
        (lambda: 3 * x, np.multiply, (3, x), {}),
        (lambda: x / y, np.divide, (x, y), {}),
        (lambda: 1 / x, np.divide, (1, x), {}),
        (lambda: x**2, np.power, (x, 2), {}),
        (lambda: 2**x, np.power, (2, x), {}),
        (lambda: -x, np.negative, (x,), {}),
        (lambda: x @ array, np.matmul, (x, array), {}),
        (lambda: array[:2] @ x, np.matmul, None, {}),
        (lambda: x.exp(), np.exp, (x,), {}),
        (lambda: x.log(), np.log, (x,), {}),
        (lambda: x.sqrt(), np.sqrt, (x,), {}),
        (lambda: x.tanh(), np.tanh, (x,), {}),
        (lambda: x.sum(0), np.sum, (x,), {"axis": 0, "keepdims": False}),
        (lambda: x.mean(axis=-1, keepdims=True), np.mean, (x,), {"axis": -1, "keepdims": True}),
        (lambda: x.var((0, 1)), np.var, (x,), {"axis": (0, 1), "keepdims": False}),
        (lambda: x.max(), np.max, (x,), {"axis": None, "keepdims": False}),
        (lambda: x.reshape(3, -1), np.reshape, (x,), {"shape": (3, -1)}),
        (lambda: x.reshape((6,)), np.reshape, (x,), {"shape": (6,)}),
        (lambda: x.transpose(1, 0), np.transpose, (x,), {"axes": (1, 0)}),
        (lambda: x.T, np.transpose, (x,), {"axes": None}),
        (lambda: x.swapaxes(0, 1), np.swapaxes, (x,), {"axis1": 0, "axis2": 1}),
        (lambda: x[1, :2], getitem, (x,), {"index": (1, slice(None, 2))}),
    ]
    for run, function, inputs, options in calls:
        output, heard = listening(run)
        assert len(heard) == 1 and heard[0][0] is function, function
        told = {name: value for name, value in heard[0][2].items() if value is not None}
        assert told == {name: value for name, value in options.items() if value is not None}, function
        assert heard[0][3] is output
        if inputs is not None:
            assert len(heard[0][1]) == len(inputs)
            assert all(a is b for a, b in zip(heard[0][1], inputs, strict=True)), function.__name__


def test_recorders_are_exchanged_and_not_stacked():
    first, second = Ear(), Ear()
    assert set_recorder(first) is None
    assert set_recorder(second) is first
    Tensor([1.0]) + 1
    assert set_recorder(None) is second
    Tensor([1.0]) + 1
    assert (len(first.heard), len(second.heard)) == (0, 1)


def test_nothing_is_recorded_of_an_operation_that_failed():
    ear = Ear()
    set_recorder(ear)
    with pytest.raises(ValueError):
        Tensor([1.0, 2.0]) + Tensor([1.0, 2.0, 3.0])
    assert not ear.heard


def test_backward_asks_the_recorder():
    class Asked(Ear):
        def backward(self, tensor, grad):
            self.asked = (tensor, grad)

    t, asked = Tensor([1.0]), Asked()
    with pytest.raises(RuntimeError, match="recorder"):
        t.backward()
    set_recorder(asked)
    t.backward(7)
    assert asked.asked == (t, 7)


# --------------------------------------------------------------------------------------------- operations


@pytest.mark.parametrize("symbol", SYMBOLS)
@pytest.mark.parametrize(("a", "b"), [((2, 3), (2, 3)), ((2, 3), (3,)), ((4, 1), (3,)), ((2, 1, 3), (5, 1))])
def test_operators_against_plain_numbers(symbol, a, b, rng):
    left, right = rng.uniform(0.5, 2, a).astype(np.float32), rng.uniform(0.5, 2, b).astype(np.float32)
    wide_left, wide_right = np.broadcast_arrays(left.astype(np.float64), right.astype(np.float64))
    want = [
        SYMBOLS[symbol](p, q)
        for p, q in zip(wide_left.ravel().tolist(), wide_right.ravel().tolist(), strict=True)
    ]
    for x, y in ((Tensor(left), Tensor(right)), (Tensor(left), right), (left, Tensor(right))):
        found = SYMBOLS[symbol](x, y)
        assert type(found) is Tensor and found.shape == wide_left.shape and found.dtype == np.float32
        assert np.allclose(found.data.ravel(), want, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("symbol", SYMBOLS)
@pytest.mark.parametrize("number", [3, 1.5, np.float32(1.5), np.float64(1.5), np.int64(3)])
def test_numbers_on_both_sides(symbol, number):
    for found, want in (
        (SYMBOLS[symbol](number, Tensor([1.0, 2.0])), [SYMBOLS[symbol](float(number), x) for x in (1, 2)]),
        (SYMBOLS[symbol](Tensor([1.0, 2.0]), number), [SYMBOLS[symbol](x, float(number)) for x in (1, 2)]),
    ):
        assert type(found) is Tensor and found.dtype == np.float32
        assert np.allclose(found, want, rtol=1e-6)


def test_lists_beside_tensors():
    assert (Tensor([1.0, 2.0]) - [1, 1]).data.tolist() == [0, 1]
    assert ([3, 3] - Tensor([1.0, 2.0])).data.tolist() == [2, 1]
    assert ([1, 1] @ Tensor([1.0, 2.0])).item() == 3


def test_operators_leave_their_operands_alone():
    x = Tensor([1.0, 2.0])
    y = x
    y += 1
    assert x.data.tolist() == [1, 2] and y.data.tolist() == [2, 3] and y is not x
    assert (-x).data.tolist() == [-1, -2] and x.data.tolist() == [1, 2]


def slow_matmul(a, b):
    """One matrix product, entry by entry, in Python numbers."""
    return [
        [math.fsum(a[i][k] * b[k][j] for k in range(len(b))) for j in range(len(b[0]))] for i in range(len(a))
    ]


@pytest.mark.parametrize(
    ("a", "b"), [((2, 3), (3, 5)), ((4, 2, 3), (3, 5)), ((2, 1, 4, 3), (6, 3, 5)), ((1, 7), (7, 1))]
)
def test_matmul_against_loops(a, b, rng):
    left, right = rng.normal(size=a).astype(np.float32), rng.normal(size=b).astype(np.float32)
    shape = matmul_shape(a, b)
    lefts = np.broadcast_to(left, (*shape[:-2], *a[-2:])).reshape(-1, *a[-2:])
    rights = np.broadcast_to(right, (*shape[:-2], *b[-2:])).reshape(-1, *b[-2:])
    want = [slow_matmul(x.tolist(), y.tolist()) for x, y in zip(lefts, rights, strict=True)]
    for x, y in ((Tensor(left), Tensor(right)), (left, Tensor(right)), (Tensor(left), right)):
        found = x @ y
        assert type(found) is Tensor and found.shape == shape and found.dtype == np.float32
        assert np.allclose(found.data.reshape(np.shape(want)), want, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("n", "k", "m"), [(2, 3, 5), (4, 1, 2), (1, 6, 1), (3, 5, 2)])
def test_matmul_slowly_against_loops(n, k, m, rng):
    a, b = rng.normal(size=(n, k)).astype(np.float32), rng.normal(size=(k, m)).astype(np.float32)
    for left, right in ((a, b), (a.tolist(), b.tolist())):
        found = matmul_slowly(left, right)
        assert found.shape == (n, m) and found.dtype == np.float32
        assert np.allclose(found, slow_matmul(a.tolist(), b.tolist()), rtol=1e-5, atol=1e-6)


def test_matmul_with_single_axes():
    row, matrix = Tensor([1.0, 2.0]), Tensor([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]])
    assert (row @ matrix).data.tolist() == [9, 12, 15]
    assert (matrix @ [1.0, 0.0, 1.0]).data.tolist() == [4, 10]
    assert (row @ row).item() == 5


@pytest.mark.parametrize("name", ["exp", "log", "sqrt", "tanh"])
def test_functions_entry_by_entry(name, rng):
    array = rng.uniform(0.1, 3, (2, 3)).astype(np.float32)
    want = [getattr(math, name)(value) for value in array.ravel().tolist()]
    found = getattr(Tensor(array), name)()
    assert found.shape == (2, 3) and np.allclose(found.data.ravel(), want, rtol=1e-5, atol=1e-6)


def reduced(name, values):
    """One reduction of a list of Python numbers."""
    mean = math.fsum(values) / len(values)
    return {
        "sum": math.fsum(values),
        "mean": mean,
        "max": max(values),
        "var": math.fsum((v - mean) ** 2 for v in values) / len(values),
    }[name]


@pytest.mark.parametrize("name", ["sum", "mean", "max", "var"])
@pytest.mark.parametrize("axis", [None, 0, 1, 2, -1, -3, (0, 2), (1, -1), (0, 1, 2)])
def test_reductions_against_lists(name, axis, rng):
    array = rng.normal(size=(2, 3, 5)).astype(np.float32)
    gone = {a % 3 for a in (range(3) if axis is None else axis if isinstance(axis, tuple) else (axis,))}
    kept = [a for a in range(3) if a not in gone]
    lines = {}
    for index in np.ndindex(array.shape):
        lines.setdefault(tuple(index[a] for a in kept), []).append(float(array[index]))
    want = [reduced(name, line) for _, line in sorted(lines.items())]
    found, wide = getattr(Tensor(array), name)(axis), getattr(Tensor(array), name)(axis=axis, keepdims=True)
    assert found.shape == tuple(array.shape[a] for a in kept) and found.dtype == np.float32
    assert wide.shape == tuple(1 if a in gone else n for a, n in enumerate(array.shape))
    assert np.allclose(found.data.ravel(), want, rtol=1e-5, atol=1e-6)
    assert np.array_equal(wide.data.ravel(), found.data.ravel())


# ---------------------------------------------------------------------------------------- views, no copies


def test_shapes_are_changed_without_copies():
    array = np.arange(120, dtype=np.float32).reshape(2, 3, 4, 5)
    t = Tensor(array)
    for run in (
        lambda: t.reshape(6, 20),
        lambda: t.reshape((2, 12, 5)),
        lambda: t.reshape([24, -1]),
        lambda: t.reshape(-1),
        lambda: t.transpose(3, 0, 2, 1),
        lambda: t.transpose((0, 2, 1, 3)),
        lambda: t.transpose(0, -2, -3, -1),
        lambda: t.transpose(),
        lambda: t.T,
        lambda: t.swapaxes(1, -1),
        lambda: t[1],
        lambda: t[:, 1:, ::2, -1],
        lambda: t[..., None, 0],
    ):
        (found, heard) = listening(run)
        ((function, _, options, _),) = heard
        assert np.array_equal(found.data, function(array, **options))
        assert np.shares_memory(found.data, array)
    assert t.T.shape == (5, 4, 3, 2) and t.transpose(3, 0, 2, 1).shape == (5, 2, 4, 3)
    assert t.reshape([24, -1]).shape == (24, 5) and t.swapaxes(0, 2).shape == (4, 3, 2, 5)
    assert Tensor([7.0]).reshape(()).shape == () and Tensor([7.0, 8.0]).transpose(0).shape == (2,)


def test_entries_go_to_the_right_places():
    array = np.arange(24, dtype=np.float32).reshape(2, 3, 4)
    moved = Tensor(array).transpose(2, 0, 1)
    for i, j, k in np.ndindex(2, 3, 4):
        assert moved.data[k, i, j] == array[i, j, k] == Tensor(array)[i, j, k].item()


def test_a_view_sees_what_is_written_later():
    t = Tensor(np.zeros((2, 3), np.float32))
    row, column = t[0], t.T[1]
    t.data[0, 1] = 9
    assert row.data.tolist() == [0, 9, 0] and column.data.tolist() == [9, 0]


def test_indexing_by_lists_masks_and_tensors(rng):
    array = rng.normal(size=(4, 3)).astype(np.float32)
    t, rows = Tensor(array), [2, 0, 2]
    for index in (rows, np.array(rows), Tensor(rows)):
        assert np.array_equal(t[index].data, array[rows])
    assert np.array_equal(t[array > 0].data, array[array > 0])
    assert np.array_equal(t[Tensor(rows), 1].data, array[rows, 1])
    assert not np.shares_memory(t[rows].data, array)


def test_views_cost_nothing_whatever_their_size():
    t = Tensor(np.zeros((8, 1_000_000), np.float32))
    tracemalloc.start()
    try:
        for _ in range(3):
            t.reshape(4, -1).T.swapaxes(0, 1)[1, 5:]
            Tensor(t.data), np.asarray(t)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 100_000, f"{peak} bytes for views of an array of 32,000,000"


def test_an_operation_makes_one_array_and_no_more():
    t = Tensor(np.ones(1_000_000, np.float32))
    t + t
    tracemalloc.start()
    try:
        result = t + t
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert result.size == 1_000_000 and peak < 1.1 * t.data.nbytes, f"{peak} bytes for a result of 4,000,000"


def test_the_box_is_thin():
    """Not a speed test: a door that scanned or copied its arrays would cost milliseconds here."""
    t = Tensor(np.zeros((2000, 2000), np.float32))
    seconds = min(timeit.repeat(lambda: t[0], number=20, repeat=5)) / 20
    assert seconds < 1e-3
    assert not hasattr(t, "__dict__"), "a dictionary in every tensor doubles the time to make one"


def test_a_single_number_is_formatted_and_compared_like_one():
    loss = Tensor(2.34567)
    assert f"{loss:.3f}" == "2.346" and f"{loss:8.2e}" == "2.35e+00" and f"{loss}" == str(loss)
    assert loss < 3 and loss <= 2.5 and 1 < loss and not loss > 3 and loss >= Tensor(2)
    with pytest.raises(ValueError, match="2"):
        f"{Tensor([1.0, 2.0]):.3f}"
    few = Tensor([1, 5, 3]) > np.array([2, 2, 3])
    assert isinstance(few, Tensor) and few.dtype == bool and few.data.tolist() == [False, True, False]


@pytest.mark.parametrize("nest", [list, tuple, lambda pair: [[pair[0]], [pair[1]]]])
def test_a_list_of_tensors_that_want_gradients_is_refused(nest):
    pair = [Tensor([1.0]), Tensor([2.0], requires_grad=True)]
    for use in (Tensor, lambda x: Tensor([0.0]) + x):
        with pytest.raises(TypeError, match="stack"):
            use(nest(pair))
    plain = [Tensor([1.0]), Tensor([2.0])]
    assert Tensor(nest(plain)).size == 2
    assert stack(pair, axis=1).data.tolist() == [[1.0, 2.0]]
