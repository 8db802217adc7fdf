"""Checkpoint 14: instruments against clocks made by hand, counts against slow loops."""

import itertools
import time
import tracemalloc
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tinytorch.core.layers import Linear, Module, Sequential
from tinytorch.models.transformer import GPT
from tinytorch.profiling import profiler as profiling
from tinytorch.profiling.profiler import (
    Cost,
    LayerClock,
    LayerTime,
    Machine,
    Profiler,
    Timing,
    attention_cost,
    gpt_cost,
    linear_cost,
    measure_bandwidth,
    measure_flops,
    run_observed,
)

quick = settings(max_examples=60, deadline=None)
size = st.integers(1, 9)


class HandClock:
    """A clock that only `work` moves, by the next of the durations."""

    def __init__(self, durations):
        self.now, self.durations = 50, iter(durations)

    def __call__(self):
        return self.now

    def work(self, *args, **options):
        self.now += next(self.durations)
        return args, options


# time


@quick
@given(st.lists(st.integers(0, 1000), min_size=1, max_size=9), st.integers(0, 3))
def test_time_is_the_median_of_what_counts(durations, warmup):
    clock = HandClock([7777] * warmup + durations)
    timing = Profiler(len(durations), warmup, clock).time(clock.work)
    ordered = sorted(durations)
    middle = (ordered[(len(ordered) - 1) // 2] + ordered[len(ordered) // 2]) / 2
    assert timing == Timing(middle, ordered[0], ordered[-1])
    assert all(type(value) is float for value in (timing.median, timing.low, timing.high))
    with pytest.raises(StopIteration):
        clock.work()


def test_time_passes_arguments_on():
    calls = []
    Profiler(2, 1, lambda: 0).time(lambda *a, **o: calls.append((a, o)), 1, 2, function=3, self=4)
    assert calls == [((1, 2), {"function": 3, "self": 4})] * 3


def test_only_the_call_stands_between_two_readings():
    log = []
    Profiler(3, 2, lambda: log.append("clock") or 0).time(log.append, "call")
    assert log == ["call"] * 2 + ["clock", "call", "clock"] * 3


def test_the_real_clock_sees_a_pause():
    timing = Profiler(repeats=3, warmup=0).time(time.sleep, 0.01)
    assert 0.009 < timing.low <= timing.median <= timing.high


def test_settings_are_checked():
    for wrong in ({"repeats": 0}, {"warmup": -1}, {"repeats": -3}):
        with pytest.raises(ValueError):
            Profiler(**wrong)
    for wrong in ({"repeats": 2.5}, {"warmup": "1"}):
        with pytest.raises(TypeError):
            Profiler(**wrong)


# memory


def allocate(log=None, **options):
    """6 MB at the peak, 2 MB kept."""
    if log is not None:
        log.append(options)
    a = np.ones(4_000_000, np.uint8)
    b = np.ones(2_000_000, np.uint8)
    del a
    return b


def test_memory_is_peak_and_kept():
    log = []
    memory = Profiler(warmup=2).memory(allocate, log, function=1)
    assert memory.peak == pytest.approx(6e6, abs=1e5)
    assert memory.kept == pytest.approx(2e6, abs=1e5)
    assert log == [{"function": 1}] * 3
    assert not tracemalloc.is_tracing()


def test_memory_within_a_tracing():
    tracemalloc.start()
    try:
        peak = np.ones(30_000_000, np.uint8)
        del peak
        held = np.ones(8_000_000, np.uint8)
        memory = Profiler().memory(allocate)
        assert tracemalloc.is_tracing()
    finally:
        tracemalloc.stop()
    assert memory.peak == pytest.approx(6e6, abs=1e5) and memory.kept == pytest.approx(2e6, abs=1e5)
    assert held.size == 8_000_000


def test_memory_of_what_the_first_call_keeps_is_not_counted():
    tables = []

    def function():
        if not tables:
            tables.append(np.ones(5_000_000, np.uint8))

    memory = Profiler().memory(function)
    assert memory.peak < 1e5 and memory.kept < 1e5


@pytest.mark.parametrize("warmup", [0, 1])
def test_a_failing_function_leaves_no_tracing(warmup):
    with pytest.raises(ZeroDivisionError):
        Profiler(warmup=warmup).memory(lambda: 1 / 0)
    assert not tracemalloc.is_tracing()


# layers


@quick
@given(st.recursive(st.just([]), lambda trees: st.lists(trees, min_size=1, max_size=3), max_leaves=8))
def test_own_times_add_up_to_the_whole(tree):
    clock = HandClock(itertools.count(1))
    layers, number = LayerClock(clock), itertools.count()

    def run(tree):
        start = clock.now
        clock.work()
        inside = sum(layers.call(f"layer {next(number)}", run, child) for child in tree)
        clock.work()
        total = clock.now - start
        wanted.append((total, total - inside))
        return total

    wanted = []
    total = layers.call("root", run, tree)
    assert layers.times["root"].total == total
    assert sum(row.own for row in layers.times.values()) == total
    assert sorted(wanted) == sorted((row.total, row.own) for row in layers.times.values())
    assert layers.inside == []


def test_calls_of_one_name_are_added_and_failures_counted():
    clock = HandClock([1, 2, 3])
    layers = LayerClock(clock)
    assert layers.call("a", clock.work, 4, b=5) == ((4,), {"b": 5})
    layers.call("a", clock.work)

    def fails():
        clock.work()
        raise FloatingPointError

    with pytest.raises(FloatingPointError):
        layers.call("b", fails)
    assert layers.times == {"a": LayerTime(2, 3, 3), "b": LayerTime(1, 3, 3)}
    assert layers.inside == []


def everything(module):
    """The names of all attributes of a module and its parts."""
    return sorted(vars(module)), [everything(child) for _, child in module.children()]


def test_a_gpt_is_timed_and_left_as_it_was():
    model = GPT(13, embed_dim=6, num_layers=2, num_heads=3, max_seq_len=8, seed=0)
    tokens = np.array([[1, 5, 12, 0, 3]])
    before, logits = everything(model), model(tokens).data
    times = Profiler(repeats=3).layers(model, tokens)
    assert everything(model) == before
    assert np.array_equal(model(tokens).data, logits)
    parts = (
        "norm1",
        "attention",
        "attention.q_proj",
        "attention.out_proj",
        "norm2",
        "mlp",
        "mlp.up",
        "mlp.down",
    )
    names = {f"blocks.{i}.{part}" for i in range(2) for part in parts}
    assert times.keys() >= names | {"model", "blocks.0", "blocks.1", "norm"}
    assert list(times)[0] == "model"
    assert all(row.calls == 1 and 0 <= row.own <= row.total for row in times.values())
    assert sum(row.own for row in times.values()) == pytest.approx(times["model"].total)


def test_the_run_in_the_middle_is_reported():
    clock = HandClock([100, 7, 2, 9])

    class Model(Module):
        def forward(self):
            clock.work()

    assert Profiler(3, 1, clock).layers(Model())["model"] == LayerTime(1, 7, 7)


class Shared(Module):
    def __init__(self, fail=False):
        self.first = Linear(3, 3, rng=0)
        self.second = Sequential(self.first)
        self.unused, self.fail = Linear(2, 2, rng=0), fail

    def forward(self, x, times=1):
        if self.fail:
            raise FloatingPointError("half way")
        for _ in range(times):
            x = self.second(x)
        return x


def test_shared_parts_are_timed_once_and_idle_ones_not_at_all():
    model = Shared()
    times = run_observed(model, LayerClock(lambda: 0.0), (np.ones((2, 3), np.float32),), {"times": 3})
    assert {name: row.calls for name, row in times.items()} == {"model": 1, "first": 3, "second": 3}
    assert list(times) == ["model", "first", "second"]


def test_no_trace_is_left_after_a_failure():
    model = Shared(fail=True)
    before = everything(model)
    with pytest.raises(FloatingPointError):
        run_observed(model, LayerClock(), (np.ones((2, 3)),))
    assert everything(model) == before

    class Stubborn(Linear):
        def wrap(self, method, wrapper):
            raise ValueError("not me")

    model = Sequential(Linear(2, 2, rng=0), Stubborn(2, 2, rng=0))
    before = everything(model)
    with pytest.raises(ValueError, match="not me"):
        run_observed(model, LayerClock(), (np.ones((1, 2)),))
    assert everything(model) == before


# counts


@quick
@given(size, size, size, st.booleans())
def test_linear_cost_is_a_loop(rows, width, out, bias):
    flops = 0
    for _ in range(rows * out):
        flops += 2 * width + bias
    numbers = np.zeros((rows, width)).size + np.zeros((out, width)).size + np.zeros((rows, out)).size
    assert linear_cost(rows, width, out, bias=bias) == Cost(flops, 4 * (numbers + bias * out))


@quick
@given(size, size, size, size, size)
def test_attention_cost_is_a_loop(B, T, S, H, D):
    flops = moved = 0
    for _ in range(B * H):
        flops += sum(2 * D for _ in range(T * S)) + sum(2 * S for _ in range(T * D))
        moved += (T * D + S * D + T * S) + 2 * T * S + (T * S + S * D + T * D)
    assert attention_cost(B, T, S, H, D) == Cost(flops, 4 * moved)


@quick
@given(size, size, st.integers(0, 9), size, size, size)
def test_gpt_cost_is_the_sum_of_its_parts(batch, new, seen, layers, heads, width):
    C = heads * width
    sizes = SimpleNamespace(vocab_size=11, embed_dim=C, num_layers=layers, num_heads=heads)
    total = linear_cost(batch, C, 11, bias=False)
    for _ in range(layers):
        for wide, out in ((C, C), (C, C), (C, C), (C, 4 * C), (4 * C, C), (C, C)):
            total += linear_cost(batch * new, wide, out)
        total += attention_cost(batch, new, seen + new, heads, width)
    assert gpt_cost(sizes, batch, new, seen) == total


def test_gpt_cost_of_gpt2_small():
    """By hand: 12 layers of 12 C^2 weights and 13 C biases, attention over 1,024 keys, the logits."""
    gpt2 = SimpleNamespace(vocab_size=50257, embed_dim=768, num_layers=12, num_heads=12)
    biases = 12 * 9 * 768
    weights = 12 * 12 * 768**2 + 50257 * 768
    assert gpt_cost(gpt2, 1, 1, 1023).flops == 2 * weights + biases + 12 * 4 * 1024 * 768
    assert gpt_cost(gpt2, 1, 1).intensity == pytest.approx(0.5, abs=0.01)
    assert gpt_cost(gpt2, 1, 256).intensity > 50


def test_gpt_cost_reads_a_model():
    model = GPT(13, embed_dim=6, num_layers=2, num_heads=3, max_seq_len=8, seed=0)
    sizes = SimpleNamespace(vocab_size=13, embed_dim=6, num_layers=2, num_heads=3)
    assert gpt_cost(model, 2, 3, 4) == gpt_cost(sizes, 2, 3, 4)


def test_costs_refuse_what_is_no_size():
    model = SimpleNamespace(vocab_size=13, embed_dim=6, num_layers=2, num_heads=3)
    for call in (
        lambda: linear_cost(0, 1, 1),
        lambda: linear_cost(1, -1, 1),
        lambda: attention_cost(1, 1, 0, 1, 1),
        lambda: gpt_cost(model, 0, 1),
        lambda: gpt_cost(model, 1, 0),
        lambda: gpt_cost(model, 1, 1, -1),
    ):
        with pytest.raises(ValueError):
            call()
    with pytest.raises(TypeError):
        linear_cost(1.5, 1, 1)


def test_costs_can_be_added_and_multiplied():
    assert Cost(3, 4) + 2 * Cost(10, 20) * 3 == Cost(63, 124)
    assert Cost(3, 4).intensity == 0.75


# the machine


class FixedProfiler:
    """Everything takes 0.5 s at best."""

    def time(self, function, *arrays, **options):
        self.arrays = arrays
        self.result = function(*arrays, **options)
        return Timing(median=1.0, low=0.5, high=4.0)


def test_peaks_are_work_divided_by_the_best_time():
    fixed = FixedProfiler()
    assert measure_flops(fixed, size=12) == 2 * 12**3 * 2
    assert [a.shape for a in fixed.arrays] == [(12, 12)] * 2 and fixed.result.shape == (12, 12)
    assert all(a.dtype == np.float32 and a.all() for a in fixed.arrays)
    assert measure_bandwidth(fixed, num_bytes=250_000) == 500_000
    assert [a.shape for a in fixed.arrays] == [(250, 250), (250,)]
    assert all(a.dtype == np.float32 and a.all() for a in fixed.arrays)


@quick
@given(st.integers(1, 10**6), st.integers(1, 10**6), st.integers(1, 10**6), st.integers(1, 10**6))
def test_the_roofline(flops, moved, peak, bandwidth):
    machine, cost = Machine(float(peak), float(bandwidth)), Cost(flops, moved)
    assert machine.ridge == pytest.approx(peak / bandwidth)
    computing, fetching = flops / peak, moved / bandwidth
    assert machine.seconds(cost) == pytest.approx(sorted((computing, fetching))[1])
    assert machine.attainable(cost.intensity) == pytest.approx(flops / machine.seconds(cost))
    if abs(computing - fetching) > 1e-6 * computing:
        slower = "bytes" if fetching > computing else "flops"
        assert machine.bound_by(cost) == slower


def test_decode_is_bound_by_bytes_and_prefill_by_flops():
    machine = Machine(50e9, 10e9)
    sizes = SimpleNamespace(vocab_size=512, embed_dim=256, num_layers=4, num_heads=4)
    assert machine.bound_by(gpt_cost(sizes, 1, 1, 127)) == "bytes"
    assert machine.bound_by(gpt_cost(sizes, 1, 128)) == "flops"


def test_this_machine_can_be_measured(monkeypatch):
    machine = Machine.measure(FixedProfiler())
    assert machine == Machine(2 * 768**3 / 0.5, 2**26 / 0.5)
    seen = []
    monkeypatch.setattr(profiling, "measure_flops", lambda p: seen.append(p) or 6.0)
    monkeypatch.setattr(profiling, "measure_bandwidth", lambda p: seen.append(p) or 2.0)
    assert Machine.measure() == Machine(6.0, 2.0)
    assert all(isinstance(p, Profiler) for p in seen) and len(seen) == 2
