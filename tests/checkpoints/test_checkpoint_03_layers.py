"""Module 03 as the package has it: linear, Module, Linear, Sequential, Dropout, wrap and unwrap."""

import copy
import itertools
import math
import operator
import pickle

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tinytorch.core.layers import Dropout, Linear, Module, Sequential, linear
from tinytorch.core.tensor import Tensor

quick = settings(max_examples=60, deadline=None, derandomize=True)
RNG = np.random.default_rng(3)


def slow_linear(x, weight, bias):
    flat = [
        [sum(row[i] * w[i] for i in range(len(row))) + b for w, b in zip(weight, bias, strict=True)]
        for row in x.reshape(-1, x.shape[-1])
    ]
    return np.array(flat).reshape(*x.shape[:-1], len(weight))


# ------------------------------------------------------------------------------------------------- linear


@quick
@given(
    front=st.lists(st.integers(1, 5), max_size=3).map(tuple),
    features=st.integers(1, 9),
    out=st.integers(1, 9),
    with_bias=st.booleans(),
    seed=st.integers(0, 10**6),
)
def test_linear_against_slow_loops(front, features, out, with_bias, seed):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(*front, features))
    weight, bias = rng.normal(size=(out, features)), rng.normal(size=out)
    got = linear(x, weight, bias if with_bias else None)
    want = slow_linear(x, weight, bias if with_bias else np.zeros(out))
    assert got.shape == want.shape
    np.testing.assert_allclose(got, want, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("rows", [1, 2, 3, 4, 31, 63, 64, 100])
@pytest.mark.parametrize("out", [17, 45_000])
def test_linear_is_the_same_function_for_few_and_many_rows(rows, out):
    x, weight, bias = (RNG.normal(size=s).astype(np.float32) for s in ((rows, 24), (out, 24), (out,)))
    kept = x.copy(), weight.copy(), bias.copy()
    y = linear(x, weight, bias)
    assert y.dtype == np.float32 and y.flags.c_contiguous
    np.testing.assert_allclose(y, x.astype(np.float64) @ weight.T + bias, rtol=1e-4, atol=1e-5)
    assert all(np.array_equal(a, b) for a, b in zip(kept, (x, weight, bias), strict=True))


def test_linear_takes_views_and_no_rows_at_all():
    x = RNG.normal(size=(6, 4, 3)).transpose(1, 2, 0)
    weight = RNG.normal(size=(5, 6))
    np.testing.assert_allclose(linear(x, weight), slow_linear(x, weight, np.zeros(5)), rtol=1e-12)
    assert linear(np.zeros((0, 6)), weight).shape == (0, 5)


# ------------------------------------------------------------------------------------------------- Linear


def test_layer_values_shapes_and_types():
    layer = Linear(4, 5, rng=0)
    assert layer.weight.shape == (5, 4) and layer.bias.shape == (5,)
    assert layer.weight.requires_grad and layer.bias.requires_grad
    assert layer.weight.dtype == layer.bias.dtype == np.float32
    layer.bias.data[...] = RNG.normal(size=5)
    for front in ((), (1,), (3,), (2, 3)):
        x = RNG.normal(size=(*front, 4)).astype(np.float32)
        y = layer(Tensor(x))
        assert isinstance(y, Tensor) and y.dtype == np.float32
        np.testing.assert_allclose(
            y.data, slow_linear(x, layer.weight.data, layer.bias.data), rtol=1e-5, atol=1e-6
        )
    bare = Linear(4, 5, bias=False, rng=0)
    assert bare.bias is None and len(bare.parameters()) == 1
    np.testing.assert_allclose(
        bare(Tensor(x)).data, slow_linear(x, bare.weight.data, np.zeros(5)), rtol=1e-5, atol=1e-6
    )


def test_layer_starts_uniform_within_one_over_root_of_inputs():
    layer = Linear(100, 2000, rng=1)
    limit, weight = 0.1, layer.weight.data
    assert np.abs(weight).max() <= limit * (1 + 1e-6)
    assert not layer.bias.data.any()
    shares = np.histogram(weight, bins=10, range=(-limit, limit))[0] / weight.size
    np.testing.assert_allclose(shares, 0.1, atol=0.004)


def test_layer_seeds():
    assert np.array_equal(Linear(7, 6, rng=5).weight.data, Linear(7, 6, rng=5).weight.data)
    assert not np.array_equal(Linear(7, 6, rng=5).weight.data, Linear(7, 6, rng=6).weight.data)
    rng = np.random.default_rng(5)
    assert not np.array_equal(Linear(7, 6, rng=rng).weight.data, Linear(7, 6, rng=rng).weight.data)


@pytest.mark.parametrize("sizes", [(0, 3), (3, 0), (-1, 3)])
def test_layer_refuses_sizes_below_one(sizes):
    with pytest.raises(ValueError, match=str(min(sizes))):
        Linear(*sizes)


@pytest.mark.parametrize("sizes", [(2.0, 3), (3, "4"), (True, 3), (3, None)])
def test_layer_refuses_sizes_that_are_no_whole_numbers(sizes):
    with pytest.raises(TypeError):
        Linear(*sizes)


@pytest.mark.parametrize("shape", [(4, 5), (6,), (), (4, 1)])
def test_layer_refuses_another_number_of_features(shape):
    with pytest.raises(ValueError, match="4"):
        Linear(4, 5, rng=0)(Tensor(np.ones(shape)))


# ------------------------------------------------------------------------------------------------- Module


class Pair(Module):
    def __init__(self, rng=None):
        rng = np.random.default_rng(rng)
        self.first, self.second = Linear(3, 4, rng=rng), Linear(4, 2, rng=rng)

    def forward(self, x):
        return self.second(self.first(x))

    def describe(self, x, *, loud=False):
        return f"{x}{'!' if loud else ''}"


class Tree(Module):
    def __init__(self):
        self.blocks = [Pair(0), Pair(1)]
        self.gain = Tensor(np.ones(2), requires_grad=True)
        self.extra = (Sequential(Linear(2, 2, rng=2), abs, Dropout(0.5, rng=0)), "text", None)
        self.head = self.blocks[0].second
        self.table = np.ones(5)


def test_names_in_order():
    names = [name for name, _ in Tree().named_parameters()]
    assert names == [
        "gain",
        *(
            f"blocks.{i}.{part}.{kind}"
            for i in range(2)
            for part in ("first", "second")
            for kind in ("weight", "bias")
        ),
        "extra.0.layers.0.weight",
        "extra.0.layers.0.bias",
        "head.weight",
        "head.bias",
    ]


def test_shared_weights_once_in_parameters_and_under_each_name_in_state_dict():
    tree = Tree()
    assert len(tree.parameters()) == 11 and len({id(p) for p in tree.parameters()}) == 11
    state = tree.state_dict()
    assert len(state) == 13 and state["head.weight"] is state["blocks.0.second.weight"]
    assert [id(p) for p in tree.parameters()] == list(
        dict.fromkeys(id(p) for _, p in tree.named_parameters())
    )
    equal = Module()
    equal.a, equal.b = Tensor([1.0]), Tensor([1.0])
    assert len(equal.parameters()) == 2


def test_train_and_eval_reach_every_part_and_only_these():
    tree = Tree()
    parts = [tree, *tree.blocks, tree.blocks[1].first, tree.extra[0], tree.extra[0].layers[2]]
    assert all(m.training for m in parts)
    assert tree.eval() is tree and not any(m.training for m in parts)
    assert tree.blocks[1].train() is tree.blocks[1]
    assert [m.training for m in parts] == [False, False, True, True, False, False]
    assert tree.train() is tree and all(m.training for m in parts)
    assert Pair(0).training and Module.training


def test_module_without_forward_says_so():
    with pytest.raises(NotImplementedError, match="Module has no forward"):
        Module()(1)


# ------------------------------------------------------------------------------------------- saved weights


def test_state_dict_is_live_and_load_copies():
    one, two = Pair(0), Pair(1)
    assert one.state_dict()["first.weight"] is one.first.weight.data
    before = one.first.weight.data
    saved = {name: array.copy() for name, array in two.state_dict().items()}
    one.load_state_dict(two.state_dict())
    assert one.first.weight.data is before, "the arrays stay where they are"
    two.first.weight.data += 1
    assert all(np.array_equal(one.state_dict()[name], saved[name]) for name in saved)
    x = Tensor(RNG.normal(size=(2, 3)))
    assert np.array_equal(one(x).data, (one.second(one.first(x))).data)


def test_load_takes_other_floats_tensors_and_lists_in_any_order():
    model = Pair(0)
    state = {
        "second.bias": [1.0, 2.0],
        "second.weight": Tensor(np.full((2, 4), 3.0)),
        "first.bias": np.arange(4, dtype=np.float16),
        "first.weight": np.full((4, 3), 0.1, np.float64),
    }
    model.load_state_dict(state)
    assert model.first.weight.dtype == model.second.bias.dtype == np.float32
    assert np.array_equal(model.second.bias.data, [1, 2]) and np.array_equal(model.first.bias.data, range(4))
    assert model.first.weight.data[0, 0] == np.float32(0.1)


def broken_states():
    good = {name: np.full_like(array, 9) for name, array in Pair(1).state_dict().items()}
    yield "missing", {k: v for k, v in good.items() if k != "second.bias"}, ValueError, "second.bias"
    yield "unknown", {**good, "third.bias": np.ones(2)}, ValueError, "third.bias"
    yield "empty", {}, ValueError, "4"
    yield "shape", {**good, "second.bias": np.ones(3)}, ValueError, r"second.bias(?=.*\(3,\))(?=.*\(2,\))"
    yield (
        "broadcasts",
        {**good, "second.bias": np.ones(1)},
        ValueError,
        r"second.bias(?=.*\(1,\))(?=.*\(2,\))",
    )
    yield (
        "transposed",
        {**good, "second.weight": np.ones((4, 2))},
        ValueError,
        r"(?=.*\(4, 2\))(?=.*\(2, 4\))",
    )
    yield "nan", {**good, "second.bias": np.array([1, np.nan])}, ValueError, "second.bias"
    yield "inf", {**good, "second.bias": np.array([1, -np.inf])}, ValueError, "second.bias"
    yield "too large", {**good, "second.bias": np.array([1, 1e39])}, ValueError, "second.bias"
    yield "integers", {**good, "second.bias": np.ones(2, int)}, TypeError, "second.bias"
    yield "text", {**good, "second.bias": np.array(["a", "b"])}, TypeError, "second.bias"
    yield "none", {**good, "second.bias": None}, TypeError, "second.bias"
    yield "no dictionary", list(good.items()), TypeError, "list"


@pytest.mark.parametrize(("state", "kind", "message"), [pytest.param(*c, id=i) for i, *c in broken_states()])
def test_load_writes_nothing_if_anything_is_wrong(state, kind, message):
    model = Pair(0)
    before = {name: array.copy() for name, array in model.state_dict().items()}
    with pytest.raises(kind, match=message):
        model.load_state_dict(state)
    assert all(np.array_equal(model.state_dict()[name], before[name]) for name in before)


def test_load_refuses_two_values_for_one_shared_weight():
    tree = Tree()
    state = {name: array.copy() for name, array in tree.state_dict().items()}
    tree.load_state_dict(state)
    state["head.weight"] += 1
    with pytest.raises(ValueError, match="blocks.0.second.weight and head.weight"):
        tree.load_state_dict(state)


# --------------------------------------------------------------------------------- Sequential and Dropout


def test_sequential():
    chain = Sequential(lambda x: x + 1, Sequential(lambda x: x * 10, lambda x: x - 3))
    assert chain(4) == 47 and len(chain) == 2 and chain[1](4) == 37
    x = Tensor([1.0])
    assert Sequential()(x) is x
    model = Sequential(Linear(3, 4, rng=0), np.tanh, Linear(4, 2, rng=1))
    assert list(model.state_dict()) == [f"layers.{i}.{k}" for i in (0, 2) for k in ("weight", "bias")]
    with pytest.raises(TypeError, match="layer 1"):
        Sequential(abs, 3)


@pytest.mark.parametrize("p", [0.1, 0.5, 0.9])
def test_dropout_drops_entries_and_keeps_the_mean(p):
    x = RNG.uniform(1, 2, size=(30, 40, 50)).astype(np.float32)
    y = Dropout(p, rng=1)(Tensor(x)).data
    assert y.dtype == np.float32
    assert abs((y == 0).mean() - p) < 5 * math.sqrt(p * (1 - p) / x.size)
    np.testing.assert_allclose(y[y != 0], x[y != 0] / (1 - p), rtol=1e-5)
    pairs = (y[:, :, 1:] == 0) & (y[:, :, :-1] == 0)
    assert abs(pairs.mean() - p * p) < 0.01, "neighbours are dropped independently"
    assert np.array_equal(y, Dropout(p, rng=1)(Tensor(x)).data)
    layer = Dropout(p, rng=1)
    assert not np.array_equal(layer(Tensor(x)).data, layer(Tensor(x)).data)


def test_dropout_steps_aside():
    x = Tensor(np.ones(6))
    assert Dropout(0.0)(x) is x
    layer = Dropout(0.9, rng=4).eval()
    assert layer(x) is x
    assert layer.rng.random() == np.random.default_rng(4).random()


@pytest.mark.parametrize("p", [1, 1.5, -0.1, math.nan])
def test_dropout_refuses_what_is_no_probability(p):
    with pytest.raises(ValueError, match=str(p)):
        Dropout(p)


# ----------------------------------------------------------------------------------------- wrap and unwrap


def marker(sign):
    def wrapper(inner, x, **options):
        return sign + inner(x, **options) + sign

    return wrapper


WRAPPERS = [marker(sign) for sign in "abc"]


class Counter:
    def __init__(self):
        self.calls = 0

    def count(self, method, *inputs, **options):
        self.calls += 1
        return method(*inputs, **options)


def test_wrap_goes_around_one_method_of_one_object():
    one, other = Pair(0), Pair(0)
    one.wrap("describe", WRAPPERS[0])
    one.wrap("describe", WRAPPERS[1])
    assert one.describe("x", loud=True) == "bax!ab" and other.describe("x") == "x" == Pair.describe(one, "x")


def test_call_goes_through_a_wrapped_forward():
    model, counter = Pair(0), Counter()
    x = Tensor(np.ones((2, 3)))
    want = model(x).data
    model.wrap("forward", counter.count)
    model.first.wrap("forward", counter.count)
    assert np.array_equal(model(x).data, want) and counter.calls == 2


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))))
def test_unwrap_in_any_order_leaves_no_trace(order):
    model = Pair(0)
    before, keys = dict(vars(model)), list(vars(model))
    for wrapper in WRAPPERS:
        model.wrap("describe", wrapper)
    left = "abc"
    for i in order:
        model.unwrap("describe", WRAPPERS[i])
        left = left.replace("abc"[i], "")
        assert model.describe("x") == left[::-1] + "x" + left
    assert vars(model) == before and list(vars(model)) == keys
    assert model.describe.__func__ is Pair.describe


def test_the_same_wrapper_twice_runs_twice_and_comes_off_one_at_a_time():
    model = Pair(0)
    for i in (0, 1, 0):
        model.wrap("describe", WRAPPERS[i])
    assert model.describe("x") == "abaxaba"
    model.unwrap("describe", WRAPPERS[0])
    assert model.describe("x") == "baxab"
    model.unwrap("describe", WRAPPERS[0])
    assert model.describe("x") == "bxb"


@quick
@given(st.lists(st.tuples(st.booleans(), st.integers(0, 2)), max_size=12))
def test_wrap_and_unwrap_against_a_list(steps):
    model, model_of_it = Pair(0), []
    for put_on, i in steps:
        if put_on:
            model.wrap("describe", WRAPPERS[i])
            model_of_it.append(i)
        elif i in model_of_it:
            model.unwrap("describe", WRAPPERS[i])
            del model_of_it[len(model_of_it) - 1 - model_of_it[::-1].index(i)]
        else:
            with pytest.raises(ValueError, match="describe"):
                model.unwrap("describe", WRAPPERS[i])
        signs = "".join("abc"[i] for i in model_of_it)
        assert model.describe("x") == signs[::-1] + "x" + signs
    assert ("describe" in vars(model)) == bool(model_of_it)


def test_wrappers_that_are_methods_or_partials_come_off():
    from functools import partial

    model, counter = Pair(0), Counter()
    counted = partial(lambda sign, inner, x: sign + inner(x), ">")
    model.wrap("describe", counter.count)
    model.wrap("describe", counted)
    assert model.describe("x") == ">x" and counter.calls == 1
    model.unwrap("describe", counter.count)
    assert model.describe("x") == ">x" and counter.calls == 1
    model.unwrap("describe", counted)
    assert "describe" not in vars(model)


def test_wrapped_modules_keep_their_weights_and_modes():
    plain, model = Pair(0), Pair(0)
    model.wrap("forward", WRAPPERS[0])
    model.first.wrap("forward", WRAPPERS[1])
    assert list(model.state_dict()) == list(plain.state_dict()) and len(model.parameters()) == 4
    model.eval()
    assert not model.first.training


def test_copies_of_a_wrapped_module_stand_on_their_own():
    model, counter = Pair(0), Counter()
    model.wrap("forward", counter.count)
    model.wrap("forward", Counter().count)
    x = Tensor(np.ones((2, 3)))
    want = model(x).data
    twin = copy.deepcopy(model)
    calls = counter.calls
    twin.first.weight.data[...] = 0
    twin.second.bias.data[...] = 5
    assert np.array_equal(twin(x).data, np.full((2, 2), 5)), "the copy runs with its own weights"
    assert np.array_equal(model(x).data, want) and counter.calls == calls + 1
    twin.unwrap("forward", twin.forward.wrapper)
    twin.unwrap("forward", twin.forward.wrapper)
    assert "forward" not in vars(twin) and "forward" in vars(model)


def test_a_wrapped_module_survives_pickle():
    model = Sequential(Linear(3, 4, rng=0), Linear(4, 2, rng=1))
    model.wrap("forward", operator.call)  # it calls what it wraps
    x = Tensor(np.ones((2, 3)))
    want = model(x).data
    twin = pickle.loads(pickle.dumps(model))
    assert np.array_equal(twin(x).data, want)
    twin.layers[0].weight.data[...] = 0
    twin.layers[1].bias.data[...] = 5
    assert np.array_equal(twin(x).data, np.full((2, 2), 5)), "the copy runs with its own weights"
    assert np.array_equal(model(x).data, want)
    twin.unwrap("forward", operator.call)
    assert "forward" not in vars(twin) and "forward" in vars(model)


@pytest.mark.parametrize("method", ["backward", "first", "training", "__call__", "size"])
def test_wrap_refuses_what_is_no_method(method):
    model = Pair(0)
    model.size = 3
    before = dict(vars(model))
    with pytest.raises(ValueError, match=method):
        model.wrap(method, WRAPPERS[0])
    assert vars(model) == before


def test_wrap_refuses_a_wrapper_that_cannot_be_called():
    model = Pair(0)
    with pytest.raises(TypeError):
        model.wrap("forward", 3)
    assert "forward" not in vars(model)


def test_unwrap_refuses_what_was_never_put_on():
    model = Pair(0)
    with pytest.raises(ValueError, match="describe"):
        model.unwrap("describe", WRAPPERS[0])
    model.wrap("describe", WRAPPERS[1])
    with pytest.raises(ValueError, match="describe"):
        model.unwrap("describe", WRAPPERS[0])
    assert model.describe("x") == "bxb"


def test_parts_in_dicts_and_deeper_are_found_and_weights_in_lists_are_named():
    model = Module()
    model.parts = {"first": Linear(2, 3, rng=0), "more": [Linear(3, 1, rng=0), (Dropout(0.5),)]}
    names = [name for name, _ in model.named_parameters()]
    assert names == ["parts.first.weight", "parts.first.bias", "parts.more.0.weight", "parts.more.0.bias"]
    assert len(model.parameters()) == 4
    assert [name for name, _ in model.children()] == ["parts.first", "parts.more.0", "parts.more.1.0"]
    model.eval()
    assert model.parts["more"][1][0].training is False
    twin = copy.deepcopy(model)
    twin.load_state_dict(model.state_dict())
    model.weights = [Tensor([1.0], requires_grad=True)]
    with pytest.raises(TypeError, match=r"weights\.0 is in a list"):
        model.parameters()
