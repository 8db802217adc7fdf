"""Module 06 as the package has it, against the papers' equations in plain loops of Python floats."""

import copy
import io
import json
import math
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tinytorch.core.activations import Tanh
from tinytorch.core.autograd import enable_autograd
from tinytorch.core.layers import Linear, Sequential
from tinytorch.core.losses import MSELoss
from tinytorch.core.optimizers import (
    SGD,
    Adam,
    AdamW,
    Optimizer,
    ParameterGroups,
    accumulate,
    adam_step,
    clip_grad_norm,
    matrices_and_others,
    sgd_step,
    update_moments,
)
from tinytorch.core.tensor import Tensor, set_recorder

ALL = [
    pytest.param(lambda p, **k: SGD(p, **{"lr": 0.1, **k}), id="SGD"),
    pytest.param(lambda p, **k: SGD(p, **{"lr": 0.1, "momentum": 0.9, **k}), id="momentum"),
    pytest.param(lambda p, **k: Adam(p, **{"lr": 0.1, **k}), id="Adam"),
    pytest.param(lambda p, **k: AdamW(p, **{"lr": 0.1, **k}), id="AdamW"),
]
SHAPES = [(), (7,), (3, 5), (2, 1, 4), (130, 257)]  # the last is larger than one block


def parameters(seed=0, shapes=SHAPES, dtype=np.float32):
    rng = np.random.default_rng(seed)
    return [Tensor(rng.normal(size=shape), requires_grad=True, dtype=dtype) for shape in shapes]


def give_gradients(tensors, rng, size=1.0):
    for p in tensors:
        p.grad = np.asarray(rng.normal(0, size, p.shape)).astype(p.dtype)


# --------------------------------------------------------------------------------- the papers, in plain loops


def sgd_by_hand(weight, grads, lr, momentum, decay):
    """Polyak 1964, with an L2 penalty; one weight."""
    velocity = 0.0
    for g in grads:
        velocity = momentum * velocity + g + decay * weight
        weight = weight - lr * velocity
    return weight


def adam_by_hand(weight, grads, lr, beta1, beta2, eps, l2, decoupled):
    """Kingma and Ba 2015, algorithm 1; Loshchilov and Hutter 2019, algorithm 2, lr * lambda; one weight."""
    m = v = 0.0
    for t, g in enumerate(grads, 1):
        g = g + l2 * weight
        m = beta1 * m + (1 - beta1) * g
        v = beta2 * v + (1 - beta2) * g**2
        m_hat, v_hat = m / (1 - beta1**t), v / (1 - beta2**t)
        weight = weight - lr * (m_hat / (math.sqrt(v_hat) + eps)) - lr * decoupled * weight
    return weight


def run(make, by_hand, dtype, tolerance, seed, num_steps):
    tensors = parameters(seed, dtype=dtype)
    start = [p.data.astype(np.float64) for p in tensors]
    optimizer = make(tensors)
    rng, grads = np.random.default_rng(seed + 1), []
    for _ in range(num_steps):
        give_gradients(tensors, rng)
        grads.append([p.grad.astype(np.float64) for p in tensors])
        optimizer.step()
    for i, p in enumerate(tensors):
        assert p.data.dtype == dtype, f"parameter {i} has become {p.data.dtype}"
        places = list(np.ndindex(p.shape))
        for place in places if len(places) < 50 else (places[0], places[len(places) // 2 + 1], places[-1]):
            want = by_hand(float(start[i][place]), [float(g[i][place]) for g in grads])
            assert abs(p.data[place] - want) < tolerance * max(1.0, abs(want)), (
                f"parameter {i} at {place}: {p.data[place]}, not {want}"
            )


def test_the_arithmetic_alone():
    rng = np.random.default_rng(3)
    weight, grad, velocity, m = (rng.normal(size=(3, 4)).astype(np.float32) for _ in range(4))
    v = rng.uniform(0.5, 1, (3, 4)).astype(np.float32)
    kept = [a.astype(np.float64) for a in (weight, grad, velocity, m, v)]
    arrays = weight, velocity, m, v
    addresses = [a.ctypes.data for a in arrays]
    assert accumulate(velocity, grad, 0.7) is None and sgd_step(weight, grad, 0.1) is None
    assert update_moments(m, v, grad, 0.6, 0.8) is None
    assert np.allclose(velocity, 0.7 * kept[2] + kept[1], atol=1e-6)
    assert np.allclose(weight, kept[0] - 0.1 * kept[1], atol=1e-6)
    mean, square = 0.6 * kept[3] + 0.4 * kept[1], 0.8 * kept[4] + 0.2 * kept[1] ** 2
    assert np.allclose(m, mean, atol=1e-6) and np.allclose(v, square, atol=1e-6)
    before = weight.astype(np.float64)
    adam_step(weight, m, v, t=3, lr=0.1, beta1=0.6, beta2=0.8, eps=0.05)
    want = before - 0.1 * (mean / (1 - 0.6**3)) / (np.sqrt(square / (1 - 0.8**3)) + 0.05)
    assert np.allclose(weight, want, atol=1e-5)
    assert np.array_equal(grad, kept[1].astype(np.float32)), "the gradient was changed"
    assert addresses == [a.ctypes.data for a in arrays] and all(a.dtype == np.float32 for a in arrays)


@settings(max_examples=15, deadline=None)
@given(
    lr=st.floats(0, 0.3),
    momentum=st.sampled_from([0.0, 0.5, 0.95]),
    decay=st.sampled_from([0.0, 0.01, 0.5]),
    seed=st.integers(0, 10**6),
)
def test_sgd_is_the_formula(lr, momentum, decay, seed):
    run(
        lambda p: SGD(p, lr, momentum, decay),
        lambda w, grads: sgd_by_hand(w, grads, lr, momentum, decay),
        *(np.float32, 1e-4, seed, 9),
    )


@settings(max_examples=15, deadline=None)
@given(
    lr=st.floats(0, 0.3),
    betas=st.sampled_from([(0.9, 0.999), (0.0, 0.99), (0.9, 0.0), (0.8, 0.95)]),
    eps=st.sampled_from([1e-8, 1e-3, 0.1]),
    decay=st.sampled_from([0.0, 0.01, 0.5]),
    seed=st.integers(0, 10**6),
)
@pytest.mark.parametrize("decoupled", [False, True], ids=["Adam", "AdamW"])
def test_adam_is_the_paper(decoupled, lr, betas, eps, decay, seed):
    chosen = AdamW if decoupled else Adam
    l2, outside = (0.0, decay) if decoupled else (decay, 0.0)
    if betas[1] == 0:
        eps = 0.1  # without a mean of squares, a gradient near 0 makes 1e7 of a rounding where eps is 1e-8
    run(
        lambda p: chosen(p, lr=lr, betas=betas, eps=eps, weight_decay=decay),
        lambda w, grads: adam_by_hand(w, grads, lr, *betas, eps, l2, outside),
        *(np.float64, 1e-9, seed, 9),
    )


def test_adam_in_float32_follows_the_paper_for_a_thousand_steps():
    for chosen, l2, outside in ((Adam, 0.1, 0.0), (AdamW, 0.0, 0.1)):
        weights = Tensor([1.0, -2.0, 0.5, 0.0], requires_grad=True)
        optimizer = chosen([weights], lr=0.01, weight_decay=0.1)
        rng = np.random.default_rng(1)
        grads = rng.normal([0.1, 0, -0.1, 0], [1, 100, 0.01, 0], (1000, 4)).astype(np.float32)
        start = weights.data.tolist()
        for grad in grads:
            weights.grad = grad
            optimizer.step()
        want = [
            adam_by_hand(w, grads[:, i].tolist(), 0.01, 0.9, 0.999, 1e-8, l2, outside)
            for i, w in enumerate(start)
        ]
        assert np.allclose(weights.data, want, rtol=1e-3, atol=1e-4) and weights.dtype == np.float32


def test_the_first_step_of_adam_is_lr_against_each_sign():
    p = Tensor(np.zeros(4), requires_grad=True)
    p.grad = np.array([1e4, 1.0, 1e-4, -1e-4], np.float32)
    Adam([p], lr=0.01).step()
    assert np.allclose(p.data, [-0.01, -0.01, -0.01, 0.01], rtol=1e-3)


def test_weights_without_a_slope_stay_finite():
    p = Tensor([1.0, -1.0], requires_grad=True)
    p.grad = np.zeros(2, np.float32)
    for chosen in (Adam, AdamW):
        chosen([p], lr=0.1, weight_decay=0.0).step()
        assert np.array_equal(p.data, [1, -1])


def test_decay_is_decoupled_in_adamw_only():
    ends = {}
    for chosen in (Adam, AdamW):
        p = Tensor([1.0, 1.0], requires_grad=True)
        optimizer = chosen([p], lr=0.001, weight_decay=0.5)
        for t in range(1000):
            p.grad = np.float32((-1) ** t) * np.array([10.0, 0.1], np.float32)
            optimizer.step()
        ends[chosen] = p.data
    assert np.allclose(ends[AdamW], (1 - 0.0005) ** 1000, atol=0.01)
    assert ends[Adam][0] > 0.9 and ends[Adam][1] < 0.4


# ------------------------------------------------------------------------------------------------- the class


@pytest.mark.parametrize("make", ALL)
def test_steps_are_in_place_and_in_float32(make):
    tensors = parameters(4)
    arrays = [p.data for p in tensors]
    optimizer = make(tensors, weight_decay=0.1)
    rng = np.random.default_rng(5)
    for _ in range(3):
        give_gradients(tensors, rng)
        grads = [p.grad.copy() for p in tensors]
        before = [p.data.copy() for p in tensors]
        optimizer.step()
        for p, array, grad, old in zip(tensors, arrays, grads, before, strict=True):
            assert p.data is array and array.dtype == np.float32
            assert np.array_equal(p.grad, grad), "step changed a gradient"
            assert (array != old).any()
    for name, value in optimizer.state_dict().items():
        if isinstance(value, np.ndarray) and name != "steps":
            assert value.dtype == np.float32, f"{name} is {value.dtype}"


@pytest.mark.parametrize("make", ALL)
def test_parameters_without_a_gradient_are_left_alone(make):
    first, second = parameters(6, [(2, 3), (4,)])
    kept = second.data.copy()
    optimizer = make([first, second], weight_decay=0.1)
    rng = np.random.default_rng(7)
    for _ in range(5):
        give_gradients([first], rng)
        optimizer.step()
    assert np.array_equal(second.data, kept), "not even decay may touch a parameter without a gradient"
    # its first gradient finds it as a new optimizer would
    twin = Tensor(kept.copy(), requires_grad=True)
    fresh = make([twin], weight_decay=0.1)
    second.grad = twin.grad = np.ones(4, np.float32)
    optimizer.step()
    fresh.step()
    assert np.array_equal(second.data, twin.data)


@pytest.mark.parametrize("make", ALL)
def test_any_layout_in_memory_is_updated(make):
    whole = np.random.default_rng(8).normal(size=(403, 302)).astype(np.float32)
    views = [whole.copy().T, whole.copy()[:, ::2], np.asfortranarray(whole)]
    for view in views:
        p, twin = Tensor(view, requires_grad=True), Tensor(view.copy("C"), requires_grad=True)
        assert p.data is view
        optimizer, other = make([p]), make([twin])
        for t in range(2):
            p.grad = twin.grad = np.random.default_rng(t).normal(size=view.shape).astype(np.float32)
            optimizer.step()
            other.step()
        assert np.allclose(view, twin.data, atol=1e-6)


@pytest.mark.parametrize("make", ALL)
def test_zero_grad_and_repeated_steps(make):
    tensors = parameters(9)
    optimizer = make(tensors)
    give_gradients(tensors, np.random.default_rng(10))
    optimizer.zero_grad()
    kept = [p.data.copy() for p in tensors]
    optimizer.step()
    assert all(p.grad is None and np.array_equal(p.data, old) for p, old in zip(tensors, kept, strict=True))


@pytest.mark.parametrize("make", ALL)
def test_lr_can_be_set_and_is_checked(make):
    (p,) = parameters(11, [(3,)])
    optimizer = make([p])
    assert optimizer.lr == 0.1
    optimizer.lr = 0
    p.grad, kept = np.ones(3, np.float32), p.data.copy()
    optimizer.step()
    assert np.array_equal(p.data, kept), "a step of lr 0 goes nowhere"
    for bad in (-0.1, math.nan, math.inf, -math.inf):
        with pytest.raises(ValueError, match="lr"):
            optimizer.lr = bad
    for bad in (None, "fast", [0.1, 0.2]):
        with pytest.raises(TypeError, match="lr"):
            optimizer.lr = bad
    assert optimizer.lr == 0
    optimizer.lr = np.float64(0.25)
    assert optimizer.lr == 0.25 and type(optimizer.lr) is float, "a NumPy number would promote the arrays"
    optimizer.step()
    assert p.data.dtype == np.float32 and not np.array_equal(p.data, kept)


def test_defaults_and_attributes():
    (p,) = parameters(12, [(3,)])
    optimizer = AdamW([p])
    assert (optimizer.lr, optimizer.betas, optimizer.eps, optimizer.weight_decay) == (
        1e-3,
        (0.9, 0.999),
        1e-8,
        0.01,
    )
    assert Adam([p]).weight_decay == 0 and isinstance(optimizer, Optimizer)
    assert SGD([p], 0.5).lr == 0.5 and optimizer.parameters == [p]
    assert AdamW(iter([p])).parameters == [p], "a generator of parameters is fine"


def test_a_step_of_a_large_parameter_needs_no_large_temporaries():
    p = Tensor(np.ones((1000, 1000)), requires_grad=True)
    p.grad = np.ones((1000, 1000), np.float32)
    for optimizer in (SGD([p], 0.1, 0.9, 0.1), Adam([p], weight_decay=0.1), AdamW([p])):
        optimizer.step()
        tracemalloc.start()
        try:
            optimizer.step()
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
        assert peak < p.data.nbytes / 4, (
            f"{type(optimizer).__name__}: {peak} bytes beside {p.data.nbytes} of weights"
        )


# ------------------------------------------------------------------------------------------------- bad input


@pytest.mark.parametrize("make", ALL)
def test_bad_parameters(make):
    with pytest.raises(ValueError, match="0 parameters"):
        make([])
    with pytest.raises(TypeError, match="parameter 1"):
        make([Tensor([1.0]), np.ones(3)])
    with pytest.raises(TypeError, match="parameter 0"):
        make([Tensor([1, 2])])
    p = Tensor([1.0])
    with pytest.raises(ValueError, match="3 parameters.*2"):
        make([p, Tensor([1.0]), p])


@pytest.mark.parametrize(
    "bad",
    [
        {"lr": -1e-3},
        {"lr": math.nan},
        {"lr": math.inf},
        {"weight_decay": -0.1},
        {"weight_decay": math.nan},
        {"betas": (1.0, 0.999)},
        {"betas": (0.9, 1.0)},
        {"betas": (-0.1, 0.9)},
        {"betas": (0.9, math.nan)},
        {"eps": -1e-8},
        {"eps": math.inf},
        {"momentum": 1.0},
        {"momentum": -0.5},
        {"momentum": math.nan},
    ],
    ids=str,
)
def test_settings_out_of_range(bad):
    chosen = (
        [SGD] if "momentum" in bad else [Adam, AdamW] if {"betas", "eps"} & set(bad) else [SGD, Adam, AdamW]
    )
    (value,) = bad.values()
    shown = value if not isinstance(value, tuple) else value[0] if value[1] in (0.999, 0.9) else value[1]
    for each in chosen:
        with pytest.raises(ValueError, match=str(shown).replace("-", r"\-").replace(".0", r"\.0")):
            each([Tensor([1.0])], **{"lr": 0.1, **bad})


def test_settings_of_the_wrong_type():
    for bad in ({"betas": 0.9}, {"betas": (0.9, 0.99, 0.999)}, {"lr": "0.1x"}, {"eps": None}):
        with pytest.raises(TypeError, match=next(iter(bad))):
            AdamW([Tensor([1.0])], **bad)


@pytest.mark.parametrize("make", ALL)
@pytest.mark.parametrize("shape", [(3, 2), (1,), (), (2, 1), (6,)], ids=str)
def test_a_gradient_of_another_shape_changes_nothing(make, shape):
    first, second = parameters(13, [(2, 3), (2, 3)])
    optimizer = make([first, second])
    first.grad, second.grad = np.ones((2, 3), np.float32), np.ones(shape, np.float32)
    state, kept = copy.deepcopy(optimizer.state_dict()), first.data.copy()
    with pytest.raises(ValueError, match=r"parameter 1.*\(2, 3\)"):
        optimizer.step()
    assert np.array_equal(first.data, kept)
    assert_same(optimizer.state_dict(), state)


# ------------------------------------------------------------------------------------------------- the state


def assert_same(state, other):
    assert list(state) == list(other)
    for name in state:
        assert np.array_equal(state[name], other[name]), name


@pytest.fixture
def gradients_on():
    previous = set_recorder(None)
    enable_autograd()
    yield
    set_recorder(previous)


def small_model(seed):
    rng = np.random.default_rng(seed)
    return Sequential(Linear(2, 5, rng=rng), Tanh(), Linear(5, 1, rng=rng))


def train(model, optimizer, start, stop):
    for i in range(start, stop):
        rng = np.random.default_rng(i)
        x = rng.normal(size=(8, 2))
        optimizer.lr = 0.1 / (1 + i)
        optimizer.zero_grad()
        MSELoss()(model(Tensor(x)), Tensor(x[:, :1] * x[:, 1:])).backward()
        clip_grad_norm(optimizer.parameters, 0.5)
        optimizer.step()


@pytest.mark.parametrize("make", ALL)
def test_a_run_cut_in_two_is_the_same_run(make, gradients_on):
    whole = small_model(0)
    finished = make(whole.parameters(), weight_decay=0.02)
    train(whole, finished, 0, 12)

    first = small_model(0)
    stopped = make(first.parameters(), weight_decay=0.02)
    train(first, stopped, 0, 7)
    file = io.BytesIO()  # through a file, as numbers in JSON and arrays in npz, without pickle
    state = stopped.state_dict()
    numbers = {name: value for name, value in state.items() if not isinstance(value, np.ndarray)}
    np.savez(file, **{name: value for name, value in state.items() if name not in numbers})
    text = json.dumps(numbers)

    second = small_model(99)
    second.load_state_dict(first.state_dict())
    resumed = make(second.parameters(), lr=0.7, weight_decay=0.5)
    file.seek(0)
    with np.load(file, allow_pickle=False) as arrays:
        resumed.load_state_dict({**json.loads(text), **arrays})
    assert_same(resumed.state_dict(), stopped.state_dict())
    train(second, resumed, 7, 12)
    for p, q in zip(whole.parameters(), second.parameters(), strict=True):
        assert np.array_equal(p.data, q.data), "the resumed run is another run"
    assert_same(resumed.state_dict(), finished.state_dict())


@pytest.mark.parametrize("make", ALL)
def test_every_bad_state_is_refused_and_changes_nothing(make):
    tensors = parameters(14, [(2, 3), (4,)])
    optimizer = make(tensors)
    give_gradients(tensors, np.random.default_rng(15))
    optimizer.step()
    good = copy.deepcopy(optimizer.state_dict())
    other = copy.deepcopy(good)
    other["lr"] = 0.7
    for value in other.values():
        if isinstance(value, np.ndarray):
            value += 1
    arrays = [name for name, value in good.items() if isinstance(value, np.ndarray) and name != "steps"]
    bad = [
        ({**other, "novelty": 1.0}, ValueError, "novelty"),
        ({**other, "lr": -1.0}, ValueError, "lr"),
        ({**other, "lr": math.nan}, ValueError, "lr"),
        ({**other, "lr": "fast"}, TypeError, "lr"),
        ({**other, "steps": np.array([1, 2, 3])}, ValueError, "steps"),
        ({**other, "steps": np.array([1.0, 2.0])}, TypeError, "steps"),
        ({**other, "steps": np.array([1, -2])}, ValueError, "-2"),
        *(({k: v for k, v in other.items() if k != name}, ValueError, name) for name in other),
    ]
    for name in arrays:
        shape = good[name].shape
        bad += [
            ({**other, name: np.zeros((*shape, 2), np.float32)}, ValueError, name),
            ({**other, name: np.zeros(shape, np.int64)}, TypeError, name),
            ({**other, name: np.full(shape, np.nan, np.float32)}, ValueError, name),
            ({**other, name: np.full(shape, 1e300)}, ValueError, name),
        ]
    for state, error, word in bad:
        with pytest.raises(error, match=word) as caught:
            optimizer.load_state_dict(state)
        assert caught.type is error
        assert_same(optimizer.state_dict(), good)
    optimizer.load_state_dict(other)
    assert_same(optimizer.state_dict(), other)


def test_the_state_of_another_kind_is_refused():
    make = [lambda p: SGD(p, 0.1), lambda p: SGD(p, 0.1, 0.9), Adam]
    optimizers = [each(parameters(16, [(2, 3)])) for each in make]
    for i, optimizer in enumerate(optimizers):
        for j, other in enumerate(optimizers):
            if i != j:
                with pytest.raises(ValueError, match="another optimizer"):
                    optimizer.load_state_dict(other.state_dict())
    larger = Adam(parameters(17, [(2, 3), (4,)]))
    with pytest.raises(ValueError, match="another optimizer"):
        optimizers[2].load_state_dict(larger.state_dict())
    adam, adamw = Adam(parameters(16, [(2, 3)])), AdamW(parameters(16, [(2, 3)]))
    adamw.load_state_dict(adam.state_dict())  # the same memory, so this is no mistake
    assert adamw.weight_decay == 0


def grouped(tensors, **settings):
    decaying, others = matrices_and_others(tensors)
    return ParameterGroups(
        AdamW(decaying, weight_decay=0.3, **settings), SGD(others, settings["lr"], momentum=0.5)
    )


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 10**6), steps=st.integers(1, 4))
def test_groups_are_their_optimizers_each_alone(seed, steps):
    """And a run that is cut in two is the same run."""
    together, alone, resumed = (parameters(seed) for _ in range(3))
    groups = grouped(together, lr=0.1)
    decaying, others = matrices_and_others(alone)
    assert len(decaying) + len(others) == len(alone) and all(p.ndim >= 2 for p in decaying)
    apart = AdamW(decaying, lr=0.1, weight_decay=0.3), SGD(others, 0.1, momentum=0.5)
    second = grouped(resumed, lr=0.7)
    rngs = [np.random.default_rng(seed + 1) for _ in range(2)]
    for step in range(2 * steps):
        groups.lr = apart[0].lr = apart[1].lr = 0.1 / (step + 1)
        for tensors, rng in zip((together, alone), rngs, strict=True):
            give_gradients(tensors, rng)
        if step == steps:
            second.load_state_dict(copy.deepcopy(groups.state_dict()))
            for mine, theirs in zip(resumed, together, strict=True):
                mine.data[...] = theirs.data
        for mine, theirs in zip(resumed, together, strict=True):
            mine.grad = None if theirs.grad is None else theirs.grad.copy()
        if step >= steps:
            second.lr = groups.lr
            second.step()
        groups.step()
        for optimizer in apart:
            optimizer.step()
    for a, b, c in zip(together, alone, resumed, strict=True):
        assert np.array_equal(a.data, b.data) and np.array_equal(a.data, c.data)
    groups.zero_grad()
    assert all(p.grad is None for p in together)


def test_groups_that_cannot_be():
    a, b = (Tensor(np.ones(2), requires_grad=True) for _ in range(2))
    for optimizers, said in (
        ((), "0 optimizers"),
        ((SGD([a, b], 0.1), SGD([b], 0.1)), "3 parameters are only 2"),
        ((SGD([a], 0.1), SGD([b], 0.2)), r"\[0.1, 0.2\]"),
    ):
        with pytest.raises(ValueError, match=said):
            ParameterGroups(*optimizers)
    groups = ParameterGroups(SGD([a], 0.1), SGD([b], 0.1, momentum=0.5))
    kept = copy.deepcopy(groups.state_dict())
    for bad in (
        {**kept, "2/lr": 0.1},
        {**kept, "lr": 0.1},
        {name: value for name, value in kept.items() if name != "1/velocity.0"},
        {**kept, "0/lr": 0.5, "1/velocity.0": np.zeros(3)},
    ):
        with pytest.raises(ValueError):
            groups.load_state_dict(bad)
        assert groups.lr == 0.1 and groups.state_dict().keys() == kept.keys()
    a.grad, b.grad = np.ones(2, np.float32), np.ones(3, np.float32)
    with pytest.raises(ValueError, match=r"\(3,\)"):
        groups.step()
    assert np.array_equal(a.data, [1, 1]), "a group had stepped before the error of another"


def test_loading_copies():
    first, second = (AdamW(parameters(18, [(2, 3)])) for _ in range(2))
    second.load_state_dict(first.state_dict())
    second.parameters[0].grad = np.ones((2, 3), np.float32)
    second.step()
    assert (first.state_dict()["m.0"] == 0).all() and (second.state_dict()["m.0"] != 0).all()


# ---------------------------------------------------------------------------------------------- the clipping


@settings(max_examples=40, deadline=None)
@given(
    shapes=st.lists(st.lists(st.integers(1, 4), max_size=3).map(tuple), min_size=1, max_size=4),
    max_norm=st.floats(1e-3, 100),
    size=st.sampled_from([1e-3, 1.0, 1e3]),
    seed=st.integers(0, 10**6),
)
def test_clipping_against_a_loop(shapes, max_norm, size, seed):
    tensors = parameters(seed, shapes)
    give_gradients(tensors, np.random.default_rng(seed), size)
    tensors.append(Tensor([1.0], requires_grad=True))  # no gradient
    before = [p.grad.copy() for p in tensors[:-1]]
    length = math.sqrt(sum(g * g for grad in before for g in grad.ravel().tolist()))
    norm = clip_grad_norm(iter(tensors), max_norm)
    assert type(norm) is float and math.isclose(norm, length, rel_tol=1e-5)
    factor = min(1.0, max_norm / length)
    for p, grad in zip(tensors[:-1], before, strict=True):
        assert np.allclose(p.grad, grad * factor, rtol=1e-5, atol=0) and p.grad.dtype == np.float32
    if factor == 1.0:
        assert all(np.array_equal(p.grad, grad) for p, grad in zip(tensors[:-1], before, strict=True))
    assert tensors[-1].grad is None


def test_clipping_is_in_place_and_accurate_for_many_numbers():
    p = Tensor(np.zeros((1000, 999)), requires_grad=True)
    p.grad = np.full((1000, 999), 0.1, np.float32)
    array = p.grad
    norm = clip_grad_norm([p], 1.0)
    assert math.isclose(norm, float(np.float32(0.1)) * math.sqrt(999_000), rel_tol=1e-5)
    assert p.grad is array and math.isclose(np.linalg.norm(array.astype(np.float64)), 1.0, rel_tol=1e-5)


def test_clipping_of_huge_and_of_no_gradients():
    (p,) = parameters(19, [(2,)])
    assert clip_grad_norm([p], 1.0) == 0 and clip_grad_norm([], 1.0) == 0
    p.grad = np.array([3e30, 4e30], np.float32)
    assert math.isclose(clip_grad_norm([p], math.inf), 5e30, rel_tol=1e-6)
    assert np.array_equal(p.grad, np.array([3e30, 4e30], np.float32)), "infinity only measures"
    clip_grad_norm([p], 10.0)
    assert np.allclose(p.grad, [6, 8])


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_norm_that_is_not_finite_is_said_so(bad):
    first, quiet, second = parameters(20, [(2,), (3,), (4,)])
    first.grad, second.grad = np.ones(2, np.float32), np.array([1, 1, bad, 1], np.float32)
    with pytest.raises(ValueError, match=f"(?=.*{abs(bad)})(?=.*2)"):
        clip_grad_norm([first, quiet, second], 1.0)
    assert (first.grad == 1).all() and second.grad[0] == 1, "nothing may be scaled"


@pytest.mark.parametrize("bad", [0, -1.0, math.nan, -math.inf])
def test_max_norm_must_be_positive(bad):
    (p,) = parameters(21, [(2,)])
    p.grad = np.ones(2, np.float32)
    with pytest.raises(ValueError, match=str(bad)):
        clip_grad_norm([p], bad)
    assert (p.grad == 1).all()


# ------------------------------------------------------------------------------------------------ it descends


@pytest.mark.parametrize("make", ALL)
def test_a_bowl_is_descended(make):
    p = Tensor([1.0, 1.0], requires_grad=True)
    optimizer = make([p], lr=0.02)
    for _ in range(400):
        p.grad = np.array([1.0, 30.0], np.float32) * p.data
        optimizer.step()
    assert np.abs(p.data).max() < 0.01
