# %% [markdown]
"""
# Module 14: Profiling

Your GPT works. Is it fast? Compared with what? In this module you build the instruments that answer these questions: a stopwatch that is not fooled by its first reading, a scale for memory, a list of how much time each layer takes, and a count, on paper, of the work that has to be done. At the end one picture shows what your machine can do at best, and where your model stands: reading a text is limited by arithmetic, writing one token at a time by memory. The next module builds on that difference.

You will be able to

- measure a time so that someone else gets the same result, and say how far to trust it;
- measure the memory that a call really allocates, at its peak and afterwards;
- measure the time of every layer without editing the model, and leave no trace in it;
- count the operations and the bytes of a linear layer, of attention and of a whole GPT from their shapes;
- measure the two peaks of a machine, and predict from them how fast a program can be at best.

You need modules 03 (Module and its `wrap`), 12 (attention) and 13 (GPT).
"""

# %%
#| default_exp profiling.profiler

# %%
#| export
import gc
import math
import time
import tracemalloc
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from tinytorch.core.attention import whole_number
from tinytorch.core.layers import check_sizes

# %% [markdown]
"""
For this notebook only: a small GPT with random weights, 4 layers and a width of 256. Its output is nonsense, but its steps take as long as those of a trained model.
"""

# %%
from types import SimpleNamespace

from tinytorch.core.layers import Linear, Module, Sequential
from tinytorch.models.transformer import GPT

rng = np.random.default_rng(0)
model = GPT(vocab_size=512, embed_dim=256, num_layers=4, num_heads=4, max_seq_len=256, seed=0)
text = rng.integers(0, 512, (1, 256))

# %% [markdown]
"""
## 1. Time

Read a clock before and after a call, and you have a number. Do it again, and you have another. Here are twelve readings of the same matrix product, in microseconds:
"""


# %%
def twelve_readings():
    a, readings = np.ones((300, 300), np.float32), []
    for _ in range(12):
        start = time.perf_counter()
        a @ a
        readings.append(round(1e6 * (time.perf_counter() - start)))
    return readings


twelve_readings()

# %% [markdown]
"""
The first is often the largest: memory is touched for the first time, and a library starts its threads. That is not the cost you want to know, so the first call is thrown away; this is the *warm-up*. Some of the others are too large, because something else was running, but none is too small, because nothing makes a machine faster than it is. So the errors all point one way, and a mean includes every one of them. The median ignores a few outliers, and the lowest and highest reading show how far to trust it.

**Task (12 points).** Write `Profiler.time`: make `self.warmup` calls that do not count, then `self.repeats` calls, each between two readings of `self.clock()`, which returns seconds. Return `Timing(median, low, high)` as Python floats. Do nothing but the call between the two readings. The clock is an attribute so that a test can replace it. About 8 lines.

## 2. Memory

How much memory does a call need? More than the size of its result: attention makes scores, weights and copies on the way, and they have to fit as well. Python can tell you: `tracemalloc` counts every allocation, including NumPy's.

**Task (12 points).** Write `Profiler.memory`. After the warm-up and `gc.collect()`, start `tracemalloc`, unless it is tracing already (`is_tracing`). Then call `reset_peak()`, ask `get_traced_memory()`, which returns (now, peak), call the function *and hold its result*, and ask again. Return `Memory(peak, kept)`, both in bytes above what was allocated before; `kept` is what is still allocated while the result exists. If you started the tracing, stop it, even when the function fails: it slows everything down. About 16 lines.

The class also has a third method, `layers`, which is given and uses what you write in section 3.
"""


# %%
#| export
@dataclass(frozen=True)
class Timing:
    """Seconds: the median of the repeats, the fastest and the slowest."""

    median: float
    low: float
    high: float


@dataclass(frozen=True)
class Memory:
    """Bytes above those before the call: at the peak, and while only the result is kept."""

    peak: int
    kept: int


# %% nbgrader={"grade": false, "grade_id": "profiler", "locked": false, "schema_version": 3, "solution": true}
#| export
class Profiler:
    """Measures calls: the first `warmup` are thrown away, the next `repeats` count."""

    def __init__(self, repeats: int = 5, warmup: int = 1, clock: Callable[[], float] = time.perf_counter):
        """clock: () -> seconds. Raises ValueError for repeats below 1 or warmup below 0."""
        self.repeats = whole_number("repeats", repeats, 1)
        self.warmup = whole_number("warmup", warmup, 0)
        self.clock = clock

    def time(self, function: Callable, /, *args: Any, **options: Any) -> Timing:
        """-> seconds that `function(*args, **options)` takes."""
        ### BEGIN SOLUTION
        for _ in range(self.warmup):
            function(*args, **options)
        seconds = []
        for _ in range(self.repeats):
            start = self.clock()
            function(*args, **options)
            seconds.append(self.clock() - start)
        return Timing(float(np.median(seconds)), float(min(seconds)), float(max(seconds)))
        ### END SOLUTION

    def memory(self, function: Callable, /, *args: Any, **options: Any) -> Memory:
        """-> bytes that `function(*args, **options)` allocates, as Python and NumPy report them."""
        ### BEGIN SOLUTION
        for _ in range(self.warmup):
            function(*args, **options)
        gc.collect()
        tracing = tracemalloc.is_tracing()
        if not tracing:
            tracemalloc.start()
        try:
            tracemalloc.reset_peak()
            before, _ = tracemalloc.get_traced_memory()
            result = function(*args, **options)
            after, peak = tracemalloc.get_traced_memory()
            del result
        finally:
            if not tracing:
                tracemalloc.stop()
        return Memory(peak - before, after - before)
        ### END SOLUTION

    def layers(self, model: Any, /, *inputs: Any, **options: Any) -> dict:
        """-> name -> LayerTime of `model(*inputs, **options)`, for the model and all its parts that ran.

        The times are those of the repeat whose total is the median. The model is left as it was.
        """
        for _ in range(self.warmup):
            model(*inputs, **options)
        runs = [run_observed(model, LayerClock(self.clock), inputs, options) for _ in range(self.repeats)]
        runs.sort(key=lambda times: times["model"].total)
        return runs[(len(runs) - 1) // 2]


# %% [markdown]
"""
Here is a clock that we control: the calls take 9, 1, 2, 8 and 3 seconds. The 9 is warm-up. What are the median, the lowest and the highest of the others? (With two middle values, the median is their mean.)
"""


# %%
class ToyClock:
    """Shows the seconds that calls of `work` have taken so far."""

    def __init__(self, durations):
        self.now, self.durations = 100.0, list(durations)

    def __call__(self):
        return self.now

    def work(self, *args, **options):
        self.now += self.durations.pop(0)


toy = ToyClock([9, 1, 2, 8, 3])
Profiler(repeats=4, warmup=1, clock=toy).time(toy.work)

# %% nbgrader={"grade": true, "grade_id": "test-time", "locked": true, "points": 12, "schema_version": 3, "solution": false}
toy = ToyClock([50, 60, 4, 1, 30])
timing = Profiler(repeats=3, warmup=2, clock=toy).time(toy.work)
assert timing.median == 4, (
    f"after two calls of warm-up the times are 4, 1, 30 and their median is 4; yours is {timing.median}"
)
assert (timing.low, timing.high) == (1, 30), f"the fastest took 1, the slowest 30; yours {timing}"
assert toy.durations == [], f"2 + 3 calls should be made, {5 - len(toy.durations)} were"
assert type(timing.median) is float and type(timing.low) is float, "the times should be Python floats"
### BEGIN HIDDEN TESTS
toy = ToyClock([2, 7, 4, 100])
assert Profiler(4, 0, toy).time(toy.work) == Timing(5.5, 2.0, 100.0), "with no warm-up every call counts"
toy, calls = ToyClock([1] * 6), []
Profiler(2, 1, toy).time(lambda *args, **options: calls.append((args, options)), 1, "b", function=3)
assert calls == [((1, "b"), {"function": 3})] * 3, "pass the arguments to the function, in the warm-up too"
reading = []
Profiler(3, 4, lambda: reading.append(len(calls)) or 0.0).time(calls.append, 0)
assert len(reading) == 6, (
    f"3 repeats need 6 readings of the clock, 4 warm-up calls none; you had {len(reading)}"
)
assert [b - a for a, b in zip(reading[::2], reading[1::2], strict=True)] == [1] * 3, (
    "one call between two readings"
)
### END HIDDEN TESTS

# %% [markdown]
"""
A million float32 numbers are 4 MB (1 MB is 10⁶ bytes). To sum their squares, NumPy makes an array of the squares, 4 MB at the peak, and keeps one number. What does `np.dot` of the array with itself need?
"""

# %%
numbers = np.ones(1_000_000, np.float32)
Profiler().memory(lambda: (numbers * numbers).sum()), Profiler().memory(np.dot, numbers, numbers)

# %% nbgrader={"grade": true, "grade_id": "test-memory", "locked": true, "points": 12, "schema_version": 3, "solution": false}


def about(number, megabytes):
    return abs(number - megabytes * 1e6) < 1e5


def three_then_one(log=None):
    """3 MB for a moment, then 1 MB that is returned."""
    big = np.ones(3_000_000, np.uint8)
    small = np.ones(1_000_000, np.uint8)
    del big
    return small


tracemalloc.stop()
memory = Profiler().memory(three_then_one)
assert about(memory.peak, 4), f"3 + 1 MB exist together for a moment, yours is {memory.peak / 1e6:.2f} MB"
assert about(memory.kept, 1), f"the result of 1 MB is kept, yours is {memory.kept / 1e6:.2f} MB"
assert not tracemalloc.is_tracing(), "tracing slows everything down: stop it if you started it"
### BEGIN HIDDEN TESTS
tracemalloc.start()
try:
    ballast = np.ones(20_000_000, np.uint8)
    del ballast
    held = np.ones(5_000_000, np.uint8)
    memory = Profiler().memory(three_then_one)
    still = tracemalloc.is_tracing()
finally:
    tracemalloc.stop()
assert about(memory.peak, 4) and about(memory.kept, 1), f"what was there before does not count: {memory}"
assert still, "tracing that was on before the call should stay on"
first = [True]


def costly_at_first(*args, **options):
    """The first call leaves 2 MB behind."""
    if first:
        first[:] = []
        costly_at_first.table = np.ones(2_000_000, np.uint8)
    assert args == (1,) and options == {"function": 2}


memory = Profiler().memory(costly_at_first, 1, function=2)
assert memory.peak < 1e5 and memory.kept < 1e5, f"the warm-up should take the first call's 2 MB: {memory}"
try:
    Profiler().memory(lambda: 1 / 0)
except ZeroDivisionError:
    pass
try:
    Profiler(warmup=0).memory(lambda: 1 / 0)
except ZeroDivisionError:
    pass
assert not tracemalloc.is_tracing(), "tracing should stop when the function fails"
### END HIDDEN TESTS

# %% [markdown]
"""
Now the GPT. What takes the memory at the peak when it reads 256 tokens? Compare with one array of scores, 4 heads · 256 · 256 numbers of 4 bytes, and with the middle of the MLP, 256 tokens · 1,024 numbers of 4 bytes.
"""

# %%
memory = Profiler().memory(model.next_logits, text)
memory.peak / 1e6, memory.kept / 1e6, 4 * 256 * 256 * 4 / 1e6, 256 * 1024 * 4 / 1e6

# %% [markdown]
"""
## 3. Which layer?

The slow part of a program is often not where you would have guessed. Module 03 offers a way to look: after `module.wrap("forward", wrapper)`, `wrapper(inner, ...)` is called instead of `forward`. So you can put an observer in front of every layer without changing the model.

Layers contain layers. If the MLP takes 5 ms and each of its two linear layers takes 2 ms, then only 1 ms is its *own*. Adding up totals counts some time more than once; the own times add up to the whole.

**Task (12 points).** Write `LayerClock.call(name, inner, *inputs, **options)`, which stands in front of one layer. It calls `inner` between two readings of the clock, returns what `inner` returns, and adds to `self.times[name]` one call, its total seconds, and its own seconds. To find the own time, use a stack, `self.inside`. Push 0.0 before the call. After it, pop the number, which has become the seconds of the layers inside; then add your total to the new top of the stack, if there is one, because your layer is inside *that* one. For an outer layer that works 1 s, calls an inner layer of 4 s, and works 2 s more, the stack goes like this:

| moment | stack | noted |
|---|---|---|
| outer, then inner starts | [0, 0] | |
| inner ends | [4] | inner: total 4, own 4 − 0 = 4 |
| outer ends | [] | outer: total 7, own 7 − 4 = 3 |

A layer that fails must pop too (`try … finally`). About 12 lines.

**Task (12 points).** Write `run_observed(model, layer_clock, inputs, options)`. For each (name, module) of `named_modules(model)`, which is given, wrap `"forward"` with `partial(layer_clock.call, name)`. Then call the model. Whatever happens, even if a wrap fails half way, unwrap everything that was wrapped, the last one first. Return the times of the modules that ran, in the order of `named_modules`. About 11 lines.
"""


# %%
#| export
@dataclass(frozen=True)
class LayerTime:
    """How often a layer was called, its total seconds, and those not spent in its parts."""

    calls: int = 0
    total: float = 0.0
    own: float = 0.0


def named_modules(
    model: Any, name: str = "model", prefix: str = "", seen: set | None = None
) -> Iterator[tuple[str, Any]]:
    """Yields (name, module) for the model and all its parts, as in "blocks.0.mlp"; each module once."""
    seen = set() if seen is None else seen
    if id(model) in seen:
        return
    seen.add(id(model))
    yield name, model
    for child_name, child in model.children():
        yield from named_modules(child, prefix + child_name, f"{prefix}{child_name}.", seen)


# %% nbgrader={"grade": false, "grade_id": "layer-clock", "locked": false, "schema_version": 3, "solution": true}
#| export
class LayerClock:
    """Times calls that may contain one another. times: name -> LayerTime."""

    def __init__(self, clock: Callable[[], float] = time.perf_counter):
        self.clock, self.times, self.inside = clock, {}, []

    def call(self, name: str, inner: Callable, /, *inputs: Any, **options: Any) -> Any:
        """-> inner(*inputs, **options), whose time is added to `times[name]`."""
        ### BEGIN SOLUTION
        self.inside.append(0.0)
        start = self.clock()
        try:
            return inner(*inputs, **options)
        finally:
            total = self.clock() - start
            own = total - self.inside.pop()
            if self.inside:
                self.inside[-1] += total
            old = self.times.get(name, LayerTime())
            self.times[name] = LayerTime(old.calls + 1, old.total + total, old.own + own)
        ### END SOLUTION


# %% [markdown]
"""
The example of the table: is the total of the outer layer 7, and its own time 3?
"""


# %%
def outer_and_inner():
    toy = ToyClock([1, 4, 2])
    clock = LayerClock(toy)

    def outer():
        toy.work()
        clock.call("inner", toy.work)
        toy.work()

    clock.call("outer", outer)
    return clock.times


outer_and_inner()

# %% nbgrader={"grade": true, "grade_id": "test-layer-clock", "locked": true, "points": 12, "schema_version": 3, "solution": false}
toy = ToyClock([1, 10, 100, 1000, 10000])
clock = LayerClock(toy)


def block(x, scale=1):
    toy.work()
    clock.call("mlp", toy.work)
    clock.call("attention", attention)
    return x * scale


def attention():
    clock.call("mlp", toy.work)
    toy.work()


answer = clock.call("block", block, 7, scale=3)
assert answer == 21, f"call should give inner its inputs and return what it returns, 21; yours {answer!r}"
assert clock.times["mlp"] == LayerTime(2, 110, 110), f"mlp ran twice, 10 and 100 s: {clock.times['mlp']}"
assert clock.times["attention"] == LayerTime(1, 1100, 1000), (
    f"attention takes 1100 s, of which 100 are inside it: {clock.times['attention']}"
)
assert clock.times["block"].total == 1111, f"the whole takes 1111 s: {clock.times['block']}"
assert clock.times["block"].own == 1, (
    f"of its 1111 s, 10 + 1100 are inside, so 1 is its own, yours {clock.times['block'].own}; "
    "what is inside attention should not be subtracted twice"
)
### BEGIN HIDDEN TESTS
clock.call("block", toy.work)
assert clock.times["block"] == LayerTime(2, 11111, 10001) and clock.inside == [], "a second call is added"
toy.durations = [5, 6, 7]


def fails():
    toy.work()
    raise FloatingPointError("half way")


def goes_on():
    try:
        clock.call("bad", fails)
    except FloatingPointError:
        toy.work()
        return
    raise AssertionError("the error of a layer should reach the caller")


clock.call("good", goes_on)
assert clock.times["bad"] == LayerTime(1, 5, 5) and clock.times["good"] == LayerTime(1, 11, 6), (
    f"the time of a layer that fails counts too: {clock.times}"
)
assert clock.inside == [], "the stack should be empty afterwards"
### END HIDDEN TESTS


# %% nbgrader={"grade": false, "grade_id": "run-observed", "locked": false, "schema_version": 3, "solution": true}
#| export
def run_observed(
    model: Any, layer_clock: LayerClock, inputs: tuple = (), options: dict | None = None
) -> dict:
    """Call model(*inputs, **options) with a clock on each layer -> name -> LayerTime, of those that ran.

    Afterwards the model is as before, even if it fails.
    """
    ### BEGIN SOLUTION
    wrapped = []
    try:
        for name, module in named_modules(model):
            wrapper = partial(layer_clock.call, name)
            module.wrap("forward", wrapper)
            wrapped.append((name, module, wrapper))
        model(*inputs, **(options or {}))
    finally:
        for _, module, wrapper in reversed(wrapped):
            module.unwrap("forward", wrapper)
    return {name: layer_clock.times[name] for name, _, _ in wrapped if name in layer_clock.times}
    ### END SOLUTION


# %% [markdown]
"""
The GPT reads 128 tokens. Here are the slowest layers by their own time, in milliseconds, summed over the four blocks:
"""


# %%
def slowest_kinds(num_tokens):
    """-> (kind of layer, ms of its own), the slowest first."""
    kinds = {}
    for name, layer in Profiler().layers(model, text[:, :num_tokens]).items():
        kind = ".".join(part for part in name.split(".") if not part.isdigit())
        kinds[kind] = kinds.get(kind, 0) + 1e3 * layer.own
    return [(kind, round(ms, 2)) for kind, ms in sorted(kinds.items(), key=lambda pair: -pair[1])[:7]]


slowest_kinds(128)

# %% nbgrader={"grade": true, "grade_id": "test-run-observed", "locked": true, "points": 12, "schema_version": 3, "solution": false}


class NotingClock:
    """Has LayerClock's interface; records the names in the order of the calls."""

    def __init__(self):
        self.names, self.times = [], {}

    def call(self, name, inner, *inputs, **options):
        self.names.append(name)
        self.times[name] = len(self.names)
        return inner(*inputs, **options)


class Twice(Module):
    """Runs the same part twice, and another not at all."""

    def __init__(self, fail=False):
        self.shared = Linear(3, 3, rng=0)
        self.parts = [Sequential(self.shared), Sequential(Linear(3, 3, rng=0))]
        self.unused, self.fail = Linear(2, 2, rng=0), fail

    def forward(self, x, again=1):
        if self.fail:
            raise FloatingPointError("half way")
        for _ in range(again):
            x = self.shared(self.parts[1](x))
        return x


def traces(model):
    return [sorted(vars(module)) for _, module in named_modules(model)]


twice, clock = Twice(), NotingClock()
before = traces(twice)
times = run_observed(twice, clock, (np.ones((2, 3), np.float32),), {"again": 2})
want = ["model", *["parts.1", "parts.1.layers.0", "shared"] * 2]
assert clock.names == want, f"the calls of the layers should be {want}, yours {clock.names}"
want = {"model": 1, "shared": 7, "parts.1": 5, "parts.1.layers.0": 6}
assert times == want, f"the clock's times by name are {want}, yours {times}"
assert traces(twice) == before, "afterwards no trace should be left in the model"
### BEGIN HIDDEN TESTS
assert list(times) == list(want), "in the order of named_modules"
twice, clock = Twice(fail=True), NotingClock()
try:
    run_observed(twice, clock, (np.ones((2, 3)),))
    told = False
except FloatingPointError:
    told = True
assert told and traces(twice) == before, "when the model fails, its error arrives and no trace is left"


class Stubborn(Linear):
    def wrap(self, method, wrapper):
        raise ValueError("not me")


refusing = Sequential(Linear(2, 2, rng=0), Stubborn(2, 2, rng=0))
before = traces(refusing)
try:
    run_observed(refusing, NotingClock(), (np.ones((1, 2)),))
except ValueError:
    pass
assert traces(refusing) == before, "when a wrap fails half way, those before it should be removed again"


def other(inner, *inputs):
    return inner(*inputs)


refusing = Sequential(Linear(2, 2, rng=0))
refusing[0].wrap("forward", other)
assert list(run_observed(refusing, NotingClock(), (np.ones((1, 2), np.float32),))) == ["model", "layers.0"]
refusing[0].unwrap("forward", other)
assert traces(refusing) == [["layers"], ["bias", "weight"]], "another wrapper stays, and can be removed"
### END HIDDEN TESTS

# %% [markdown]
"""
The line `attention` is the time of attention itself, without its four projections. Is the list the same for a single token?

## 4. Count the work

How fast *could* it be? To answer that, count the work; the shapes are enough for it. Two numbers are needed: how many operations there are (FLOPs, floating point operations; a multiplication and an addition are two), and how many bytes must travel between memory and processor at least, when each input is read once and each output written once, 4 bytes a number.

`Cost` holds both, and costs can be added and multiplied. Its `intensity` is FLOPs per byte: how much is done with each byte that is fetched.

**Task (8 points).** Write `linear_cost(rows, in_features, out_features, bias)`. Each of the rows · out results is a sum of `in` products: count `in` multiplications and `in` additions. A bias adds one addition per result. The bytes are those of inputs, weight, bias and outputs. About 5 lines.

**Task (10 points).** Write `attention_cost(B, T, S, H, D)`: T queries meet S keys, in B · H heads of width D. There are three steps: (a) scores, queries times keys; (b) the softmax, from scores to weights; (c) weights times values. Count the FLOPs of the two products (with `in` = D in the first, S in the second; the softmax does a handful per score where the products do 4D, so we leave its FLOPs out), and the bytes of all three steps: everything a step reads and everything it writes. Count all T · S scores, hidden by the mask or not. (So for more than 128 causal queries the count is too high: there, module 12 skips most of the hidden scores.) About 6 lines.

**Task (12 points).** Write `gpt_cost(sizes, batch, new_tokens, seen_tokens)`: the cost of passing `new_tokens` tokens in each of `batch` rows through a GPT and computing the logits of the *last* one. The new tokens also attend to `seen_tokens` earlier ones, whose keys and values already exist. Each layer has four linear layers C → C, one C → 4C and one 4C → C, with biases, for all batch · new tokens; and attention of the new tokens to all seen and new ones. At the end comes one linear layer without bias, C → V, for one token per row. `sizes` is anything with `vocab_size`, `embed_dim`, `num_layers` and `num_heads`, so a GPT will do. Norms, GELU and the additions of the residual path are left out: they do a few operations per number where a linear layer does C or more. Use `linear_cost` and `attention_cost`. About 8 lines.
"""


# %%
#| export
@dataclass(frozen=True)
class Cost:
    """Work, counted: floating point operations, and bytes read and written."""

    flops: int = 0
    bytes: int = 0

    def __add__(self, other: "Cost") -> "Cost":
        return Cost(self.flops + other.flops, self.bytes + other.bytes)

    def __mul__(self, times: int) -> "Cost":
        return Cost(self.flops * times, self.bytes * times)

    __rmul__ = __mul__

    @property
    def intensity(self) -> float:
        """FLOPs per byte."""
        return self.flops / self.bytes


# %% nbgrader={"grade": false, "grade_id": "linear-cost", "locked": false, "schema_version": 3, "solution": true}
#| export
def linear_cost(rows: int, in_features: int, out_features: int, bias: bool = True) -> Cost:
    """(rows, in) -> (rows, out) in float32: every array moves between memory and processor once."""
    check_sizes(rows=rows, in_features=in_features, out_features=out_features)
    ### BEGIN SOLUTION
    flops = 2 * rows * in_features * out_features
    numbers = rows * in_features + out_features * in_features + rows * out_features
    if bias:
        flops += rows * out_features
        numbers += out_features
    return Cost(flops, 4 * numbers)
    ### END SOLUTION


# %% [markdown]
"""
By hand: 1 row, 2 features in, 3 out. Three results of 2 multiplications and 2 additions each, and 3 additions of the bias, are 15 FLOPs. The numbers are 2 inputs, 6 weights, 3 biases and 3 outputs: 14, of 4 bytes each. Then a layer of width 256, for 1 row and for 100: how do the intensities compare?
"""

# %%
linear_cost(1, 2, 3), linear_cost(1, 256, 256).intensity, linear_cost(100, 256, 256).intensity

# %% nbgrader={"grade": true, "grade_id": "test-linear-cost", "locked": true, "points": 8, "schema_version": 3, "solution": false}
cost = linear_cost(1, 2, 3)
assert cost.flops == 15, f"3 results of 2 + 2 operations, and 3 biases: 15 FLOPs, yours {cost.flops}"
assert cost.bytes == 56, f"2 + 6 + 3 + 3 numbers of 4 bytes are 56 bytes, yours {cost.bytes}"
assert linear_cost(1, 2, 3, bias=False) == Cost(12, 44), "without a bias: 12 FLOPs, 11 numbers"
### BEGIN HIDDEN TESTS
for rows, width, out in ((5, 3, 2), (7, 1, 4), (2, 6, 1)):
    flops = sum(2 for _ in range(rows) for _ in range(out) for _ in range(width))
    x, weight, y = np.zeros((rows, width), "f4"), np.zeros((out, width), "f4"), np.zeros((rows, out), "f4")
    numbers = x.nbytes + weight.nbytes + y.nbytes
    assert linear_cost(rows, width, out, bias=False) == Cost(flops, numbers), f"{rows} x {width} -> {out}"
    assert linear_cost(rows, width, out) == Cost(flops + y.size, numbers + 4 * out), f"with a bias {rows}"
### END HIDDEN TESTS


# %% nbgrader={"grade": false, "grade_id": "attention-cost", "locked": false, "schema_version": 3, "solution": true}
#| export
def attention_cost(B: int, T: int, S: int, H: int, D: int) -> Cost:
    """(B, H, T, D) queries, (B, H, S, D) keys and values -> (B, H, T, D), in float32, scores in memory.

    The FLOPs of the two products; the bytes of scores, softmax and weighted values, each step on its own.
    """
    check_sizes(B=B, T=T, S=S, H=H, D=D)
    ### BEGIN SOLUTION
    per_head = B * H
    scores = per_head * T * S
    flops = 2 * (2 * scores * D)
    queries, keys = per_head * T * D, per_head * S * D
    numbers = (queries + keys + scores) + (scores + scores) + (scores + keys + queries)
    return Cost(flops, 4 * numbers)
    ### END SOLUTION


# %% [markdown]
"""
By hand: one head, one query, 2 keys, width 3. The scores are 2 sums of 3 products, 12 FLOPs; the weighted values are 3 sums of 2 products, 12 more. Numbers: (3 + 6 read, 2 written) + (2 read, 2 written) + (2 + 6 read, 3 written) = 26.
"""

# %%
attention_cost(1, 1, 2, 1, 3)

# %% nbgrader={"grade": true, "grade_id": "test-attention-cost", "locked": true, "points": 10, "schema_version": 3, "solution": false}
cost = attention_cost(B=1, T=1, S=2, H=1, D=3)
assert cost.flops == 24, f"12 FLOPs for the scores, 12 for the values, yours {cost.flops}"
assert cost.bytes == 104, f"26 numbers of 4 bytes are 104 bytes, yours {cost.bytes}"
assert attention_cost(5, 1, 2, 7, 3) == Cost(35 * 24, 35 * 104), "35 heads cost 35 times as much"
### BEGIN HIDDEN TESTS
for B, T, S, H, D in ((2, 3, 5, 4, 6), (1, 4, 4, 2, 1), (3, 1, 9, 1, 2)):
    query, key = np.zeros((B, H, T, D), "f4"), np.zeros((B, H, S, D), "f4")
    scores = query @ key.swapaxes(2, 3)
    output = scores @ key
    flops = 2 * scores.size * D + 2 * output.size * S
    moved = sum(a.nbytes for a in (query, key, scores, scores, scores, scores, key, output))
    assert attention_cost(B, T, S, H, D) == Cost(flops, moved), f"B, T, S, H, D = {B, T, S, H, D}"
### END HIDDEN TESTS


# %% nbgrader={"grade": false, "grade_id": "gpt-cost", "locked": false, "schema_version": 3, "solution": true}
#| export
def gpt_cost(sizes: Any, batch: int, new_tokens: int, seen_tokens: int = 0) -> Cost:
    """Matrix products of a GPT for (batch, new_tokens) tokens after seen_tokens, with the last one's logits.

    sizes: has vocab_size, embed_dim, num_layers, num_heads. Keys and values of the seen tokens exist already.
    """
    check_sizes(batch=batch, new_tokens=new_tokens)
    whole_number("seen_tokens", seen_tokens, 0)
    C, rows = sizes.embed_dim, batch * new_tokens
    ### BEGIN SOLUTION
    projections = 4 * linear_cost(rows, C, C)
    mlp = linear_cost(rows, C, 4 * C) + linear_cost(rows, 4 * C, C)
    all_tokens = seen_tokens + new_tokens
    attention = attention_cost(batch, new_tokens, all_tokens, sizes.num_heads, C // sizes.num_heads)
    logits = linear_cost(batch, C, sizes.vocab_size, bias=False)
    return sizes.num_layers * (projections + mlp + attention) + logits
    ### END SOLUTION


# %% [markdown]
"""
A rule of thumb says 2 FLOPs per weight and token (Kaplan et al. 2020, arXiv:2001.08361, section 2.1, which leaves out the embeddings and counts attention separately). Our GPT has 12 · 256² weights in each of its 4 layers, biases and norms aside, and 512 · 256 for the logits. How far is one token from the rule?
"""

# %%
gpt_cost(model, 1, 1).flops, 2 * (4 * 12 * 256**2 + 512 * 256)

# %% nbgrader={"grade": true, "grade_id": "test-gpt-cost", "locked": true, "points": 12, "schema_version": 3, "solution": false}
### BEGIN HIDDEN TESTS
your_linear_cost, your_attention_cost = linear_cost, attention_cost


def linear_cost(rows, in_features, out_features, bias=True):
    outputs, weights = rows * out_features, out_features * (in_features + bias)
    return Cost((2 * in_features + bias) * outputs, 4 * (rows * in_features + weights + outputs))


def attention_cost(B, T, S, H, D):
    return Cost(4 * B * H * T * S * D, 8 * B * H * (T * D + S * D + 2 * T * S))


### END HIDDEN TESTS
tiny = SimpleNamespace(vocab_size=5, embed_dim=2, num_layers=1, num_heads=1)
cost = gpt_cost(tiny, batch=1, new_tokens=1, seen_tokens=0)
assert cost.flops == 4 * 10 + (40 + 34) + 8 + 20, (
    f"projections 4 * 10, MLP 40 + 34, attention 8, logits 20: 142 FLOPs, yours {cost.flops}"
)
assert cost.bytes == 4 * (4 * 10 + (34 + 28) + 12 + 17), (
    f"numbers: projections 4 * 10, MLP 34 + 28, attention 12, logits 17: 524 bytes, yours {cost.bytes}"
)
more = gpt_cost(tiny, 1, 1, seen_tokens=3)
assert more.flops - cost.flops == 3 * 8, "each seen token adds 2 products of width 2 in attention: 8 FLOPs"
### BEGIN HIDDEN TESTS
sizes = SimpleNamespace(vocab_size=17, embed_dim=12, num_layers=5, num_heads=3)
for batch, new, seen in ((1, 1, 0), (2, 7, 0), (3, 1, 9), (2, 4, 6)):
    rows, flops, moved = batch * new, 0, 0
    for _ in range(5):
        for width, out in ((12, 12), (12, 12), (12, 12), (12, 12), (12, 48), (48, 12)):
            flops += rows * out * (2 * width + 1)
            moved += 4 * (rows * width + width * out + out + rows * out)
        flops += 4 * batch * 3 * new * (seen + new) * 4
        moved += 4 * batch * 3 * (2 * new * 4 + 2 * (seen + new) * 4 + 4 * new * (seen + new))
    flops += 2 * batch * 12 * 17
    moved += 4 * (batch * 12 + 12 * 17 + batch * 17)
    assert gpt_cost(sizes, batch, new, seen) == Cost(flops, moved), f"batch {batch}, {new} new after {seen}"
linear_cost, attention_cost = your_linear_cost, your_attention_cost
### END HIDDEN TESTS

# %% [markdown]
"""
## 5. What the machine can do

A machine has two speeds: how many FLOPs per second it computes when nothing else holds it up, and how many bytes per second it reads from memory. Data sheets state both, for a machine that is not yours. So measure them.

For the FLOPs, take something that is nearly pure arithmetic: a product of two large square matrices does 2n³ FLOPs on 3n² numbers. For the bytes, take a product that reads much and computes little: a matrix times a vector does 2 FLOPs per number read. The matrix must be far larger than the processor's own caches, or you measure those. And there is a trap: an array from `np.zeros` that has not been written to does not exist in memory yet. The system shows the same page of zeros everywhere, and reading it is far too fast.

**Task (6 points).** Write `measure_flops(profiler, size)` and `measure_bandwidth(profiler, num_bytes)`: the first for two float32 matrices (size, size), the second for a square float32 matrix of about `num_bytes` (its side is `math.isqrt(num_bytes // 4)`) times a vector. Measure with `profiler.time(np.dot, a, b)`, and divide the FLOPs, or the bytes of the matrix, by the *lowest* time: a peak is what the machine can do undisturbed. Fill the arrays with `np.ones`. About 3 lines each.
"""


# %% nbgrader={"grade": false, "grade_id": "measure", "locked": false, "schema_version": 3, "solution": true}
#| export
def measure_flops(profiler: "Profiler | None", size: int = 768) -> float:
    """-> FLOPs per second in the product of two float32 matrices (size, size)."""
    ### BEGIN SOLUTION
    a, b = np.ones((size, size), np.float32), np.ones((size, size), np.float32)
    return 2 * size**3 / profiler.time(np.dot, a, b).low
    ### END SOLUTION


def measure_bandwidth(profiler: "Profiler | None", num_bytes: int = 2**26) -> float:
    """-> bytes per second in the product of a float32 matrix of about num_bytes and a vector."""
    ### BEGIN SOLUTION
    side = math.isqrt(num_bytes // 4)
    matrix, vector = np.ones((side, side), np.float32), np.ones(side, np.float32)
    return matrix.nbytes / profiler.time(np.dot, matrix, vector).low
    ### END SOLUTION


# %% [markdown]
"""
Your machine, in GFLOP/s and GB/s (10⁹ FLOPs or bytes per second):
"""

# %%
round(measure_flops(Profiler()) / 1e9, 1), round(measure_bandwidth(Profiler()) / 1e9, 1)

# %% nbgrader={"grade": true, "grade_id": "test-measure", "locked": true, "points": 6, "schema_version": 3, "solution": false}


class FixedProfiler:
    """Claims that everything takes 0.25 s at best and 0.5 s in the median, and keeps the arrays."""

    def time(self, function, *arrays):
        self.arrays, self.result = arrays, function(*arrays)
        return Timing(median=0.5, low=0.25, high=1.0)


fixed = FixedProfiler()
rate = measure_flops(fixed, size=10)
assert [a.shape for a in fixed.arrays] == [(10, 10)] * 2, (
    "two matrices of shape (10, 10) should be multiplied"
)
assert rate == 8000, f"2 * 10**3 FLOPs in 0.25 s at best are 8000 per second, yours {rate}"
rate = measure_bandwidth(fixed, num_bytes=40_000)
assert fixed.arrays[0].shape == (100, 100) and fixed.arrays[1].shape == (100,), (
    f"40,000 bytes are a float32 matrix (100, 100), times a vector; yours {[a.shape for a in fixed.arrays]}"
)
assert rate == 160_000, f"40,000 bytes in 0.25 s at best are 160,000 per second, yours {rate}"
### BEGIN HIDDEN TESTS
assert all(a.dtype == np.float32 for a in fixed.arrays), "the model computes in float32, so measure float32"
assert all((a != 0).all() for a in fixed.arrays), "zeros may be one page of memory shown many times"
assert fixed.result.shape == (100,)
assert measure_bandwidth(fixed, 1_000_000) == 4_000_000 and measure_flops(fixed, 7) == 2744
assert all(a.dtype == np.float32 and (a != 0).all() for a in fixed.arrays)
### END HIDDEN TESTS

# %% [markdown]
r"""
## 6. The roofline

Now combine the two peaks. A program with an intensity of I FLOPs per byte cannot do more than

$$\text{attainable}(I) = \min(\text{peak FLOP/s}, \; I \cdot \text{bytes per second})$$

because it has to compute its FLOPs and to fetch its bytes (Williams, Waterman and Patterson 2009, "Roofline", Communications of the ACM 52(4)). Drawn over I, that is a slope and a flat roof. They meet at the *ridge*, peak FLOP/s divided by bytes per second. To its left, memory is the limit, and faster arithmetic would change nothing; to its right, arithmetic is.

**Task (6 points).** Write the methods of `Machine`. `ridge`: FLOPs per byte. `attainable(intensity)`: FLOPs per second. `seconds(cost)`: the shortest possible time, the longer of computing and fetching, which can go on at the same time. `bound_by(cost)`: `"bytes"` if fetching takes longer, otherwise `"flops"`. One or two lines each.
"""


# %% nbgrader={"grade": false, "grade_id": "machine", "locked": false, "schema_version": 3, "solution": true}
#| export
@dataclass(frozen=True)
class Machine:
    """The two peaks of a machine, and the roofline that they make (Williams et al. 2009)."""

    flops_per_second: float
    bytes_per_second: float

    @classmethod
    def measure(cls, profiler: "Profiler | None" = None) -> "Machine":
        """-> this machine, measured."""
        profiler = Profiler() if profiler is None else profiler
        return cls(measure_flops(profiler), measure_bandwidth(profiler))

    @property
    def ridge(self) -> float:
        """The intensity, in FLOPs per byte, above which arithmetic is the limit."""
        ### BEGIN SOLUTION
        return self.flops_per_second / self.bytes_per_second
        ### END SOLUTION

    def attainable(self, intensity: float) -> float:
        """-> FLOPs per second that a program of this intensity (FLOPs per byte) can do at best."""
        ### BEGIN SOLUTION
        return min(self.flops_per_second, intensity * self.bytes_per_second)
        ### END SOLUTION

    def seconds(self, cost: Cost) -> float:
        """-> the shortest time in which the work can be done."""
        ### BEGIN SOLUTION
        return max(cost.flops / self.flops_per_second, cost.bytes / self.bytes_per_second)
        ### END SOLUTION

    def bound_by(self, cost: Cost) -> str:
        """-> "bytes" or "flops": which of them takes longer."""
        ### BEGIN SOLUTION
        fetching_is_longer = cost.bytes / self.bytes_per_second > cost.flops / self.flops_per_second
        return "bytes" if fetching_is_longer else "flops"
        ### END SOLUTION


# %% [markdown]
"""
Take a machine with 100 FLOPs and 20 bytes per second. At an intensity of 2 it reaches 40 FLOPs per second, and at 5 the roof.
"""

# %%
toy_machine = Machine(100, 20)
toy_machine.ridge, [toy_machine.attainable(i) for i in (1, 2, 5, 10)], toy_machine.seconds(Cost(300, 80))

# %% nbgrader={"grade": true, "grade_id": "test-machine", "locked": true, "points": 6, "schema_version": 3, "solution": false}
machine = Machine(flops_per_second=60.0, bytes_per_second=10.0)
assert machine.ridge == 6, f"60 FLOPs and 10 bytes per second meet at 6 FLOPs per byte, yours {machine.ridge}"
assert machine.attainable(2.0) == 20, (
    f"2 FLOPs per byte, 10 bytes per second: 20, yours {machine.attainable(2.0)}"
)
assert machine.attainable(30.0) == 60, "no intensity lifts it above the peak, 60"
assert machine.seconds(Cost(120, 50)) == 5, "2 s of computing and 5 s of fetching at the same time take 5 s"
assert machine.bound_by(Cost(120, 50)) == "bytes" and machine.bound_by(Cost(600, 50)) == "flops"
### BEGIN HIDDEN TESTS
for flops, moved in ((1, 1), (7, 1), (360, 60), (1000, 3), (3, 1000)):
    cost = Cost(flops, moved)
    computing, fetching = flops / 60, moved / 10
    assert math.isclose(machine.seconds(cost), sorted([computing, fetching])[1])
    assert math.isclose(flops / machine.seconds(cost), machine.attainable(cost.intensity)), "they must agree"
    assert machine.bound_by(cost) == ("bytes" if fetching > computing else "flops")
### END HIDDEN TESTS

# %% [markdown]
"""
And now your GPT. *Prefill* reads 128 tokens in one call. *Decode* passes one token through, as in writing a text when the old tokens need not be read again; here it attends only to itself. The third row decodes 16 texts at once. For each: the intensity, the limit, the shortest time according to the roofline and the measured time, both in milliseconds, and the measured GFLOP/s.
"""

# %%
machine = Machine.measure()


def on_the_roofline(batch, new_tokens):
    """-> intensity, bound by, shortest ms, measured ms, measured GFLOP/s."""
    tokens = rng.integers(0, 512, (batch, new_tokens))
    cost, seconds = gpt_cost(model, batch, new_tokens), Profiler().time(model.next_logits, tokens).median
    shortest = 1e3 * machine.seconds(cost)
    ms = round(shortest, 2), round(1e3 * seconds, 2)
    return round(cost.intensity, 2), machine.bound_by(cost), *ms, round(cost.flops / seconds / 1e9, 1)


shapes = {"prefill, 128 tokens": (1, 128), "decode, 1 token": (1, 1), "decode, 16 texts": (16, 1)}
round(machine.ridge, 1), {name: on_the_roofline(*shape) for name, shape in shapes.items()}


# %%
def plot_roofline():
    import matplotlib.pyplot as plt

    intensities = np.logspace(-1.5, 3, 100)
    plt.loglog(intensities, [machine.attainable(i) / 1e9 for i in intensities], "k", label="attainable")
    for name, shape in shapes.items():
        intensity, _, _, _, rate = on_the_roofline(*shape)
        plt.plot(intensity, rate, "o", label=name)
    cached = gpt_cost(model, 1, 1, seen_tokens=1000).intensity
    plt.plot(cached, machine.attainable(cached) / 1e9, "kx", label="decode after 1,000 tokens, at best")
    plt.xlabel("intensity, FLOPs per byte")
    plt.ylabel("GFLOP/s")
    plt.legend()


# %%
if "get_ipython" in globals():
    plot_roofline()

# %% [markdown]
"""
Decode is far to the left, on the slope: every weight is fetched for one multiplication and one addition, half a FLOP per byte. Prefill is to the right: a weight, once fetched, serves 128 tokens. You can count it: a linear layer with N rows has an intensity of about 2 · N · in · out / (4 · in · out) = N / 2, as long as N is small against the widths.

The points lie below the roof. Part of the gap is norms, GELU, the softmax and Python, which we did not count; another part is that small matrix products do not reach the peak, which was measured with large ones. (If decode lies *above* the slope, the weights, 12.6 MB in the layers, fit into a cache of your processor, which is faster than the memory that was measured.)

So the cost of one token at a time is bytes, not FLOPs. That explains why generating is slow on any machine, why a step for 16 texts takes far less time than 16 steps for one (compare your last two rows), and why fewer bits per weight make it faster. The cross in the figure is on paper only, since this model cannot yet keep what it has read: a token that reads the keys and values of 1,000 earlier ones. They are fetched for one token as well, so its intensity is no better, and the bytes grow with the text.

**Question (5 points).** A GPT in float32 writes for one user, and then for 16 at once, one token each per step. Use N / 2 and the ridge of your machine: by what factor can the tokens per second grow at best, and from how many users on is there nothing more to gain? What in attention does *not* get cheaper per user? Three or four sentences.
"""

# %% [markdown] nbgrader={"grade": true, "grade_id": "question-batch", "locked": false, "points": 5, "schema_version": 3, "solution": true}
"""
Your answer here.
"""

# %% [markdown]
"""
**Question (5 points).** A colleague reports: "my layer takes 0.8 ms". That was one reading of the clock, in the first call, on another machine, for an unknown shape. Name four things that you would ask or change before you compare it with your time, and say for each in which direction it can mislead.
"""

# %% [markdown] nbgrader={"grade": true, "grade_id": "question-report", "locked": false, "points": 5, "schema_version": 3, "solution": true}
"""
Your answer here.
"""

# %% [markdown]
"""
## 7. From the roof to the floor

The roofline says what cannot be beaten; a profile says what stands between you and it. For decoding the floor is simple: all weights, read once, at the bandwidth. Two steps lead from there to the time that you measure. First come the bare products, `np.dot` of each weight matrix with a vector and nothing else: what they take beyond the floor is up to BLAS. Then comes everything else: norms, GELU, softmax, and Python, which is busy between any two calls of NumPy. For one token of the GPT above, in milliseconds:
"""


# %%
def floor_products_measured():
    """-> ms for one token: weights at the bandwidth, bare products, the model."""
    matrices = [p.data for name, p in model.named_parameters() if p.ndim == 2 and "position" not in name]
    vectors = [np.ones(matrix.shape[1], np.float32) for matrix in matrices]
    token = text[:, :1]

    def products():
        for matrix, vector in zip(matrices, vectors, strict=True):
            np.dot(matrix, vector)

    floor = sum(matrix.nbytes for matrix in matrices) / machine.bytes_per_second
    seconds = floor, Profiler().time(products).median, Profiler().time(model.next_logits, token).median
    return [round(1e3 * s, 3) for s in seconds]


dict(zip(("floor", "products", "measured"), floor_products_measured(), strict=True))

# %% [markdown]
"""
A layer clock cannot see *inside* a step of Python. A *sampling* profiler can: a few hundred times a second it looks where the program is, and the share of samples is the share of the time; the program itself is hardly slowed down. `py-spy record -- python your_script.py` does this for Python, from another process. Here is what it found in this course's own models, decoding with the cache of module 15 and reading a prompt (`tests/benchmarks/shares.py`; NumPy 2.4 with OpenBLAS, one thread):

| share of the time | 4 layers, 128 wide: decode after 100 tokens | GPT-2 small's shape: decode after 100 | the same after 1,000 | the same: prefill of 512 |
|---|---|---|---|---|
| products with the weights | 16 % | 85 % | 78 % | 82 % |
| attention: scores, softmax, values | 11 % | 3 % | 11 % | 10 % |
| norms and GELU | 19 % | 3 % | 3 % | 4 % |
| biases, and shapes of rows | 9 % | 1 % | 2 % | 2 % |
| the rest: `apply`, `Module`, `Tensor`, checks, residual additions, the cache | 46 % | 8 % | 7 % | 2 % |

The large model is where the roofline says it is: it reads weights, and faster Python would hardly help. The tiny one is limited by neither bytes nor FLOPs but by the number of *steps*: 74 calls of `apply` per token, most of them on arrays of a few hundred numbers. In prefill the products take most of the time, and there they are limited by FLOPs.

Such profiles are behind several things in your modules: weights as (out, in), so that a product with one vector reads them in the order in which they are stored; one row as a plain vector, and weights in blocks that serve a few rows while they are in the cache (03); GELU with a single exponential, in place (02); logits of the last token only, whose weights are 31 % of GPT-2 small's, 38.6 of 124.4 million (13); queries in blocks, so that most of the scores that the causal rule hides are never computed (12). Not every such idea helps. Measure first.

You can now

- measure time and memory so that the numbers mean something;
- find the slow layer of a model that you did not write;
- count its work from shapes alone, and compare the count with the machine;
- say what limits a program, and what would not help.

**Exercises.** (1) Count the norms and GELU as well, and the additions of the residual path: how much closer do the points come to the roof, and is a norm limited by bytes or by FLOPs? (2) Measure the bandwidth for matrices from 64 kB to 64 MB and plot it: each step down is a cache of your processor that has become too small.

Next: module 15. Decoding *without* reading the old tokens again was only assumed here. There you write it.
"""
