# %% [markdown]
"""
# Module 02: Activations

A matrix product can rotate, stretch and mix, but it cannot bend: twice the input always gives twice the output. To bend, a network applies a small function to every number on its own, the *activation*. In this module you write four that networks use, ReLU, sigmoid, SiLU and GELU, and softmax, which turns scores into shares and comes after the last layer of every language model here.

The formulas are short. The difficulty is at the ends of the number line: `exp(89)` does not fit into 32 bits, minus infinity is a legal score, and a function that is right for 3 and wrong for 300 may not fail until a model has trained for a week.

After this module you will be able to

- show why a network without activations is a single matrix, and bend it with ReLU;
- write sigmoid, SiLU and GELU so that no input causes a warning and no digits are lost needlessly;
- write a softmax that copes with scores of a million and gives a masked score a share of exactly zero;
- say why ReLU replaced the sigmoid inside networks, with slopes that you measured;
- write a fast array function: few passes, no powers, no float64.

You need module 01: `Tensor`, and `apply`, the door through which every operation goes. Each part is graded alone: in the final grading it runs with correct versions of the parts before it.
"""

# %%
#| default_exp core.activations

# %%
#| export
import math

import numpy as np
from numpy.typing import ArrayLike

from tinytorch.core.tensor import Tensor, apply

# %% [markdown]
"""
## Why something has to bend

Two matrices in a row gain you nothing: `(x @ a) @ b` is `x @ (a @ b)`, and `a @ b` is one matrix. Run the cell: both ways give the same numbers.
"""

# %%
import timeit
import warnings

from tinytorch.core.tensor import set_recorder

x = Tensor([[1.0, 2.0]])
a, b = Tensor([[1.0, -1.0, 2.0], [0.0, 3.0, 1.0]]), Tensor([[2.0], [1.0], [-1.0]])
(x @ a) @ b, x @ (a @ b)

# %% [markdown]
"""
Exclusive or is a small task that shows the limit: the answer is 1 if exactly one of two inputs is 1. No straight line in the plane separates (0, 1) and (1, 0) from (0, 0) and (1, 1), so no matrix and bias can compute it (Minsky and Papert, *Perceptrons*, 1969). But take the sum `s` of the inputs, which is 0, 1 or 2, and one bend is enough: `s - 2 * max(s - 1, 0)`.
"""

# %%
pairs = np.float32([[0, 0], [0, 1], [1, 0], [1, 1]])
sums = pairs.sum(axis=1)
sums - 2 * np.maximum(sums - 1, 0)

# %% [markdown]
"""
## Floats first

The functions of this module take arrays and return arrays; `apply` wraps the results in tensors. All but ReLU return fractions even for integers, and here NumPy has a habit that you should know of: `np.exp` of an `int64` array is float64, and `np.exp` of an `int8` or boolean array is float16, with about three digits.
"""

# %%
{kind.__name__: np.exp(np.ones(1, kind)).dtype.name for kind in (np.int64, np.int16, np.int8, np.bool_)}

# %% [markdown]
"""
**Task (6 points).** Write `as_floats(x)`: an array of floats, of any width, is returned as it is, without a copy; anything else (an array of integers or booleans, a list, a number) becomes a float32 array, even a list of fractions. About 3 lines; `np.asarray` returns an array as it is.
"""


# %% nbgrader={"grade": false, "grade_id": "as-floats", "locked": false, "schema_version": 3, "solution": true}
#| export
def as_floats(x: ArrayLike) -> np.ndarray:
    """An array of floats as it is, anything else as a float32 array."""
    ### BEGIN SOLUTION
    if isinstance(x, np.ndarray) and x.dtype.kind == "f":
        return x
    return np.asarray(x).astype(np.float32)
    ### END SOLUTION


# %%
as_floats([1, 2]), as_floats(np.ones(2)).dtype

# %% nbgrader={"grade": true, "grade_id": "test-as-floats", "locked": true, "points": 6, "schema_version": 3, "solution": false}
whole = as_floats(np.array([1, 2]))
assert isinstance(whole, np.ndarray), f"as_floats returns an array, yours is a {type(whole).__name__}"
assert whole.dtype == np.float32, f"integers become float32, yours are {whole.dtype}"
assert as_floats([0.5, 1]).dtype == np.float32, "a list becomes float32"
wide = np.ones(2)
assert as_floats(wide) is wide, "floats are returned as they are: the same array, float64 included"
### BEGIN HIDDEN TESTS
for kind in (np.int8, np.uint8, np.int64, np.bool_):
    found = as_floats(np.ones((2, 3), kind))
    assert found.dtype == np.float32 and found.shape == (2, 3), f"{kind.__name__} became {found.dtype}"
for kind in (np.float16, np.float32, np.float64):
    array = np.ones((2, 3), kind)[:, ::2]
    assert as_floats(array) is array, f"{kind.__name__} should come back as it is"
assert as_floats(0.5).dtype == np.float32 and as_floats(0.5).shape == (), "a number has the shape ()"
assert as_floats(2).dtype == np.float32
### END HIDDEN TESTS

# %% [markdown]
"""
## ReLU

The rectified linear unit (Nair and Hinton 2010) keeps what is positive and sets the rest to zero. It costs one comparison per number, and deep networks learned better with it than with tanh (Glorot, Bordes and Bengio 2011).

**Task (8 points).** Write `relu(x)`: `max(x, 0)` for every entry. Integers stay integers here, since nothing is rounded. NaN must stay NaN: a broken model should look broken. Do not change `x`. One line.
"""


# %% nbgrader={"grade": false, "grade_id": "relu", "locked": false, "schema_version": 3, "solution": true}
#| export
def relu(x: np.ndarray) -> np.ndarray:
    """max(x, 0), entry by entry. Integers stay integers, NaN stays NaN."""
    ### BEGIN SOLUTION
    return np.maximum(x, 0)
    ### END SOLUTION


# %% [markdown]
"""
ReLU of `x` plus ReLU of `-x` is the absolute value, a curve with a corner. With enough corners, a network can come close to any continuous curve on an interval.
"""

# %%
x = np.float32([-2, -0.5, 0, 3])
relu(x), relu(x) + relu(-x)


# %% nbgrader={"grade": true, "grade_id": "test-relu", "locked": true, "points": 8, "schema_version": 3, "solution": false}
x = np.float32([[-2, -0.5], [0, 3]])
found = relu(x)
assert np.array_equal(found, [[0, 0], [0, 3]]), (
    f"relu of -2, -0.5, 0, 3 is 0, 0, 0, 3; yours is {found.ravel()}"
)
assert found.dtype == np.float32, f"float32 in, float32 out; yours is {found.dtype}"
assert x[0, 0] == -2, "x was changed: make a new array"
assert relu(np.array([-3, 4])).dtype.kind == "i", "integers stay integers"
assert np.isnan(relu(np.float32([np.nan]))).all(), "NaN must stay NaN, to show that something broke"
### BEGIN HIDDEN TESTS
x = np.random.default_rng(0).normal(size=(2, 3, 5)).astype(np.float32)
want = [v if v > 0 else 0 for v in x.ravel().tolist()]
assert np.array_equal(relu(x).ravel(), np.float32(want)), "wrong for random numbers"
with warnings.catch_warnings():
    warnings.simplefilter("error")
    assert relu(np.float32([-np.inf, np.inf, -1e38, 1e38])).tolist() == [0, np.inf, 0, np.float32(1e38)]
assert relu(np.float64([-1, 2])).dtype == np.float64, "float64 in, float64 out"
assert relu(np.int8([-100, 100])).tolist() == [0, 100]
### END HIDDEN TESTS

# %% [markdown]
"""
## Sigmoid

The sigmoid maps every number to one between 0 and 1: 1 / (1 + exp(−x)). You can read the result as a probability, or as a gate that is closed at 0 and open at 1.

For x = −100 it needs exp(100), about 10⁴³, but float32 ends at 3.4 · 10³⁸. NumPy returns infinity and gives a warning. Then 1 / (1 + ∞) is 0, and 0 is as good as the truth: 4 · 10⁻⁴⁴ is below the normal range of float32 as well. The overflow does no harm, but the warning does, because a warning that always appears hides the one that matters.

**Task (14 points).** Write `sigmoid(x)` so that no input causes a warning, infinities included, and the result has about seven correct digits in *both* tails: sigmoid(−20) is 2.06 · 10⁻⁹, not 0. (The formula (1 + tanh(x/2)) / 2 is equal on paper and never overflows, but for x = −20 it subtracts 1 from 1.) Either silence the one overflow that you have understood, `with np.errstate(over="ignore"):`, or use exp(−|x|), which never overflows, and two cases. About 6 lines, beginning with `as_floats`.

Every new array takes time to allocate. So make one, `np.negative(x, out=np.empty_like(x))`, and do the rest in it: `np.exp(result, out=result)`, `result += 1`. Points do not depend on this. For 1.5 million numbers the steps in place took 1.1 ms, the formula in one line 1.3 ms, and two cases with `np.where` 15 ms (two cores, NumPy 2.4).
"""


# %% nbgrader={"grade": false, "grade_id": "sigmoid", "locked": false, "schema_version": 3, "solution": true}
#| export
def sigmoid(x: np.ndarray) -> np.ndarray:
    """1 / (1 + exp(-x)), entry by entry, precise in both tails and without a warning for any x."""
    ### BEGIN SOLUTION
    x = as_floats(x)
    result = np.negative(x, out=np.empty_like(x))
    with np.errstate(over="ignore"):  # exp(-x) = inf gives 0, which is right
        np.exp(result, out=result)
    result += 1
    return np.divide(1, result, out=result)
    ### END SOLUTION


# %% [markdown]
"""
Which entries are exactly 0 or 1? The one at −20 is not.
"""

# %%
sigmoid(np.float32([-100, -20, -1, 0, 1, 20]))


# %% nbgrader={"grade": true, "grade_id": "test-sigmoid", "locked": true, "points": 14, "schema_version": 3, "solution": false}
### BEGIN HIDDEN TESTS
# a right version of the part before this one, so that this part is graded alone
def right_floats(x):
    return x if isinstance(x, np.ndarray) and x.dtype.kind == "f" else np.array(x, np.float32)


own_floats, as_floats = globals().get("as_floats"), right_floats
### END HIDDEN TESTS
with warnings.catch_warnings():
    warnings.simplefilter("error")  # a warning counts as a mistake here
    found = sigmoid(np.float32([0, 1, -1]))
    assert np.allclose(found, [0.5, 0.7310586, 0.26894143], rtol=1e-5), (
        f"sigmoid of 0, 1, -1 is 0.5, 0.731, 0.269; yours is {found}"
    )
    assert found.dtype == np.float32, f"float32 in, float32 out; yours is {found.dtype}"
    found = sigmoid(np.float32([-1000, 1000]))
    assert found.tolist() == [0, 1], f"sigmoid of -1000 and 1000 is 0 and 1; yours is {found}"
    found = sigmoid(np.float32([-20]))
    assert np.allclose(found, 2.0611537e-09, rtol=1e-5, atol=0), (
        f"sigmoid(-20) is 2.06e-09, yours is {found[0]:.3g}; do you add 1 to something close to -1?"
    )
    whole = sigmoid(np.array([0, 2]))
    assert whole.dtype == np.float32, f"convert integers to float32 first; your result is {whole.dtype}"
### BEGIN HIDDEN TESTS
x = np.concatenate([np.linspace(-80, 80, 41), [-1e-6, 1e-30, 3e38, -3e38, np.inf, -np.inf]]).astype(
    np.float32
)
before = x.copy()
with warnings.catch_warnings():
    warnings.simplefilter("error")
    found = sigmoid(x.reshape(-1, 1))
    assert found.shape == (47, 1)
    for value, result in zip(x.tolist(), found.ravel().tolist(), strict=True):
        want = 1 / (1 + math.exp(-value)) if value > -700 else 0.0
        assert math.isclose(result, want, rel_tol=1e-5, abs_tol=1e-37), (
            f"sigmoid({value}) is {want}, yours {result}"
        )
    assert sigmoid(np.int8([-3, 3])).dtype == np.float32
    assert sigmoid(np.float64([-3])).dtype == np.float64, "float64 in, float64 out"
    assert math.isclose(sigmoid(np.float64([-500]))[0], 1 / (1 + math.exp(500)), rel_tol=1e-12)
    assert np.isnan(sigmoid(np.float32([np.nan]))).all(), "NaN stays NaN"
assert np.array_equal(x, before), "x was changed"
as_floats = own_floats
### END HIDDEN TESTS

# %% [markdown]
"""
### Why networks stopped using it between layers

To learn, a network has to know how much its output changes when an early number changes a little. That is a product along the layers: each contributes its weights and the slope of its activation. Here you look at the slopes alone, measured by a small step to either side. The sigmoid is steepest at 0. How steep is it there, and what is left of it after ten layers?
"""


# %%
def slope(function, x, step=1e-4):
    """The change of function(x) per change of x, from a step to either side, in float64."""
    x = np.float64(x)
    return (function(np.array(x + step)) - function(np.array(x - step))) / (2 * step)


steepest = slope(sigmoid, 0.0)
float(steepest), float(steepest**10), float(slope(relu, 2.0) ** 10)

# %% [markdown]
"""
The slope is a quarter at best, so ten sigmoids pass on at most a millionth. ReLU passes on everything where x is positive and nothing where x is negative: a unit that is negative for every example has no slope, so its weights stop changing. The next two functions keep a little slope there.

## SiLU

The sigmoid is still used as a gate. SiLU multiplies x by its own gate: x · sigmoid(x), almost 0 on the left, almost x on the right, and smooth in between (Elfwing, Uchibe and Doya 2017, arXiv:1702.03118; also called Swish). LLaMA has it in every layer (Touvron et al. 2023, arXiv:2302.13971).

**Task (8 points).** Write `silu(x)` as x / (1 + exp(−x)), so that one division serves as gate and product. The demands are the same as above: no warning for any finite x, seven digits in both tails, float32 for float32, and integers converted to float32. About 5 lines; do not call `sigmoid`, so that this part stands alone.
"""


# %% nbgrader={"grade": false, "grade_id": "silu", "locked": false, "schema_version": 3, "solution": true}
#| export
def silu(x: np.ndarray) -> np.ndarray:
    """x * sigmoid(x), entry by entry, no warning for finite x (Elfwing et al. 2017, arXiv:1702.03118)."""
    ### BEGIN SOLUTION
    x = as_floats(x)
    gate = np.negative(x, out=np.empty_like(x))
    with np.errstate(over="ignore"):  # x / inf = 0, which is right
        np.exp(gate, out=gate)
    gate += 1
    return np.divide(x, gate, out=gate)
    ### END SOLUTION


# %% [markdown]
"""
It dips below zero, and is lowest near x = −1.28. How much of x is left at −20, and how much at 20?
"""

# %%
silu(np.float32([-20, -1.28, 0, 1, 20]))


# %% nbgrader={"grade": true, "grade_id": "test-silu", "locked": true, "points": 8, "schema_version": 3, "solution": false}
### BEGIN HIDDEN TESTS
# a right version of the part before this one, so that this part is graded alone
def right_floats(x):
    return x if isinstance(x, np.ndarray) and x.dtype.kind == "f" else np.array(x, np.float32)


own_floats, as_floats = globals().get("as_floats"), right_floats
### END HIDDEN TESTS
with warnings.catch_warnings():
    warnings.simplefilter("error")  # a warning counts as a mistake here
    x = np.float32([0, 1, -1])
    found = silu(x)
    assert np.allclose(found, [0, 0.7310586, -0.26894143], rtol=1e-5, atol=1e-6), (
        f"silu of 0, 1, -1 is 0, 0.731, -0.269; yours is {found}"
    )
    assert found.dtype == np.float32, f"float32 in, float32 out; yours is {found.dtype}"
    assert x[1] == 1, "x was changed: make a new array"
    found = silu(np.float32([-1000, 1000]))
    assert found.tolist() == [0, 1000], f"silu of -1000 and 1000 is 0 and 1000; yours is {found}"
    assert silu(np.array([1, 2])).dtype == np.float32, "convert integers to float32 first"
### BEGIN HIDDEN TESTS
x = np.concatenate([np.linspace(-80, 80, 41), [-1e-6, 3e38, -3e38]]).astype(np.float32).reshape(4, 11)
with warnings.catch_warnings():
    warnings.simplefilter("error")
    found = silu(x)
    assert found.shape == (4, 11)
    for value, result in zip(x.ravel().tolist(), found.ravel().tolist(), strict=True):
        want = value / (1 + math.exp(-value)) if value > -700 else 0.0
        assert math.isclose(result, want, rel_tol=1e-5, abs_tol=1e-35), (
            f"silu({value}) is {want}, yours {result}"
        )
    assert silu(np.int8([-3, 3])).dtype == np.float32
    assert math.isclose(silu(np.float64([-50]))[0], -50 / (1 + math.exp(50)), rel_tol=1e-12)
as_floats = own_floats
### END HIDDEN TESTS

# %% [markdown]
"""
## GELU

GPT-2 uses another curve: x · Φ(x), where Φ(x) is the probability that a standard normal number is below x (Hendrycks and Gimpel 2016, arXiv:1606.08415). Φ needs the error function, which NumPy does not have. The paper gives an approximation by tanh, and the weights of GPT-2 were trained with *that*. To run the model as it was trained, you need this formula, not a better one.

gelu(x) = x/2 · (1 + tanh( √(2/π) · (x + 0.044715 x³) ))

**Task (14 points).** Write `gelu(x)`.

- Write the cube as `x * x * x`; a cell below shows why not as `x**3`.
- The constant is a Python float: `math.sqrt(2 / math.pi)`. `np.sqrt(2 / np.pi)` is a float64 *NumPy* number, and float32 times that is float64.
- For |x| above about 2 · 10¹⁹ the square overflows, and tanh turns the infinity into ±1, as it should; silence the warning with `np.errstate(over="ignore")`.
- Make it right first, then fast: after `t = x * x` every further step can be done in place (`t *= x`), in the array that you made, never in `x`. One step can be saved: (1 + tanh(u)) / 2 is the sigmoid of 2u, so gelu(x) = x / (1 + exp(-2u)). This also keeps its digits for very negative x, where 1 + tanh(u) rounds to 0.

About 10 lines.
"""


# %% nbgrader={"grade": false, "grade_id": "gelu", "locked": false, "schema_version": 3, "solution": true}
#| export
def gelu(x: np.ndarray) -> np.ndarray:
    """x * Phi(x) in the tanh form of GPT-2 (Hendrycks and Gimpel 2016, arXiv:1606.08415, section 2)."""
    ### BEGIN SOLUTION
    x = as_floats(x)
    scale = -2 * math.sqrt(2 / math.pi)
    with np.errstate(over="ignore"):  # exp(-2u) = inf gives 0, which is right
        t = np.asarray(x * x)
        t *= 0.044715 * scale
        t += scale
        t *= x
        np.exp(t, out=t)
    t += 1
    return np.divide(x, t, out=t)
    ### END SOLUTION


# %% [markdown]
"""
How far is the tanh form from the exact x · Φ(x)? Here is the largest difference on a grid from −6 to 6, with Φ from Python's `math.erf`:
"""

# %%
grid = np.linspace(-6, 6, 2401)
exact = np.array([v * 0.5 * (1 + math.erf(v / math.sqrt(2))) for v in grid])
round(float(np.abs(gelu(grid) - exact).max()), 6)

# %% [markdown]
"""
That is small, but thousands of times the rounding of a float32 near 1 (6 · 10⁻⁸). Now the powers. How many times as long does `x**3` take as `x * x * x`, on your machine, for 100,000 float32 numbers?
"""

# %%
x = np.random.default_rng(0).normal(size=100_000).astype(np.float32)
power = min(timeit.repeat(lambda: x**3, number=3, repeat=5))
products = min(timeit.repeat(lambda: x * x * x, number=3, repeat=5))
round(power / products)


# %% nbgrader={"grade": true, "grade_id": "test-gelu", "locked": true, "points": 14, "schema_version": 3, "solution": false}
### BEGIN HIDDEN TESTS
# a right version of the part before this one, so that this part is graded alone
def right_floats(x):
    return x if isinstance(x, np.ndarray) and x.dtype.kind == "f" else np.array(x, np.float32)


own_floats, as_floats = globals().get("as_floats"), right_floats
### END HIDDEN TESTS
with warnings.catch_warnings():
    warnings.simplefilter("error")  # a warning counts as a mistake here
    x = np.float32([0, 1, -1, 3])
    found = gelu(x)
    assert np.allclose(found, [0, 0.8411920, -0.1588080, 2.9963627], rtol=1e-5, atol=1e-6), (
        f"gelu of 0, 1, -1, 3 is 0, 0.84119, -0.15881, 2.99636; yours is {found}"
    )
    assert found.dtype == np.float32, (
        f"float32 in, float32 out; yours is {found.dtype}: is a NumPy float64 in it?"
    )
    assert x[1] == 1, "x was changed: work in an array of your own"
    found = gelu(np.float32([-1000, 1000, 1e30]))
    assert np.allclose(found, [0, 1000, 1e30]), (
        f"gelu of -1000, 1000, 1e30 is 0, 1000, 1e30; yours is {found}"
    )
    assert gelu(np.array([1, 2])).dtype == np.float32, "convert integers to float32 first"
### BEGIN HIDDEN TESTS
x = np.concatenate([np.linspace(-12, 12, 97), [1e-6, -3e38, 3e38]]).astype(np.float32).reshape(4, 25)
with warnings.catch_warnings():
    warnings.simplefilter("error")
    found = gelu(x)
    assert found.shape == (4, 25)
    for value, result in zip(x.ravel().tolist(), found.ravel().tolist(), strict=True):
        inner = 0.7978845608028654 * (value + 0.044715 * value**3)
        want = 0.5 * value * (1 + math.tanh(inner))
        assert math.isclose(result, want, rel_tol=1e-5, abs_tol=2e-6), (
            f"gelu({value}) is {want}, yours {result}"
        )
    assert gelu(np.int8([-100, 100])).tolist() == [0, 100], (
        "the cube of 100 does not fit into int8: floats first"
    )
    assert gelu(np.float64([0.3])).dtype == np.float64, "float64 in, float64 out"
    assert np.isclose(
        gelu(np.float64([0.3]))[0], 0.15 * (1 + math.tanh(0.7978845608028654 * 0.301207305)), rtol=1e-12
    )
as_floats = own_floats
### END HIDDEN TESTS

# %% [markdown]
"""
The three curves in one plot: towards the right all of them become straight; on the left ReLU is flat, while the other two dip below zero and still have a slope.
"""


# %%
def plot_activations():
    import matplotlib.pyplot as plt

    x = np.linspace(-4, 4, 200, dtype=np.float32)
    for function in (relu, gelu, silu):
        plt.plot(x, function(x), label=function.__name__)
    plt.xlabel("x")
    plt.ylabel("activation of x")
    plt.legend()
    plt.show()


if "get_ipython" in globals():
    plot_activations()

# %% [markdown]
"""
**Question (5 points).** A ReLU unit has got weights that make its input negative for every example. (a) Why can training not change these weights? (b) Would SiLU or GELU bring the unit back? Argue with the slopes at x = −1 and x = −30 (measure them with `slope`). (c) Each activation here sees one number at a time. Why can the network's output still depend on combinations of inputs, as exclusive or requires?
"""

# %% [markdown] nbgrader={"grade": true, "grade_id": "written-dead-unit", "locked": false, "points": 5, "schema_version": 3, "solution": true}
"""
Your answer here.
"""

# %% [markdown]
"""
## Softmax

A model gives one score per word of its vocabulary, and the scores can be any real numbers. You want shares: positive numbers that add up to 1, with the largest share for the largest score. Softmax takes exp(score), which is positive, and divides by the sum of all of them. Written like that, it fails at both ends. The cell tries three rows: harmless scores, scores of 1000, and no allowed word at all.
"""

# %%
with np.errstate(all="ignore"):  # only to show what comes out
    exps = np.exp(np.float32([[1, 2], [1000, 1000], [-np.inf, -np.inf]]))
    naive = exps / exps.sum(axis=-1, keepdims=True)
naive

# %% [markdown]
"""
**Large scores.** exp(1000) overflows to infinity, and here infinity is *not* harmless: ∞ / ∞ is NaN. But adding the same number to all scores multiplies every exp by the same factor, and the factor cancels. So subtract the largest score of the row first. Then every exp is between 0 and 1, and their sum is at least 1, because the largest is exp(0).

**Minus infinity** is a legal score. It means "not allowed": exp(−∞) is 0, a share of exactly zero, and code that masks words relies on that. If *all* scores of a row are −∞, there is nothing to choose from, and a row of NaN would spoil everything computed from it. So we decide that all shares of such a row are zero. Two small changes do it:

- subtract at least the lowest finite number of the type, `np.finfo(x.dtype).min`; `x.max(..., initial=lowest)` includes it in the maximum. So the row of −∞ stays −∞, and exp makes it 0;
- divide by at least 1. The sum of an ordinary row is at least 1 anyway, so nothing changes for it, and 0 / 1 is 0.

**Task (18 points, and 12 for the masked scores).** Write `softmax(x, axis=-1)`. The shape stays; begin with `as_floats`, and work in place where you can, but never in `x`. (The difference of two arrays without axes is a NumPy number; `np.asarray` makes it an array that can be changed in place.) About 8 lines. There are two test cells: the first is about finite scores, the second about −∞.
"""


# %% nbgrader={"grade": false, "grade_id": "softmax", "locked": false, "schema_version": 3, "solution": true}
#| export
def softmax(x: np.ndarray, axis: int = -1) -> np.ndarray:
    """exp(x) / sum(exp(x)) along `axis`: shares that sum to 1, without overflow for any finite x.

    A score of -inf gets a share of exactly 0. If all scores along the axis are -inf, all shares are 0.
    """
    ### BEGIN SOLUTION
    x = as_floats(x)
    lowest = np.finfo(x.dtype).min
    shares = np.asarray(x - x.max(axis=axis, keepdims=True, initial=lowest))
    np.exp(shares, out=shares)
    total = shares.sum(axis=axis, keepdims=True)
    shares /= np.maximum(total, 1)  # below 1 only where all scores are -inf
    return shares
    ### END SOLUTION


# %% [markdown]
"""
The exps of the scores 0, log 2 and log 5 are 1, 2 and 5, so the shares must be 1/8, 2/8 and 5/8. In the second example, the second row of scores is the first plus a million.
"""

# %%
scores = np.log(np.float32([1, 2, 5]))
softmax(scores), softmax(np.float32([[0, 1, 2], [1e6, 1e6 + 1, 1e6 + 2]]))


# %% nbgrader={"grade": true, "grade_id": "test-softmax", "locked": true, "points": 18, "schema_version": 3, "solution": false}
### BEGIN HIDDEN TESTS
# a right version of the part before this one, so that this part is graded alone
def right_floats(x):
    return x if isinstance(x, np.ndarray) and x.dtype.kind == "f" else np.array(x, np.float32)


own_floats, as_floats = globals().get("as_floats"), right_floats
### END HIDDEN TESTS
with warnings.catch_warnings():
    warnings.simplefilter("error")  # a warning counts as a mistake here
    x = np.log(np.float32([[1, 2, 5], [1, 1, 2]]))
    before = x.copy()
    found = softmax(x)
    assert found.shape == (2, 3), f"the shape stays (2, 3), yours is {found.shape}"
    assert np.allclose(found.sum(axis=-1), 1), (
        f"the shares of each row should sum to 1, yours sum to {found.sum(axis=-1)}; is it the last axis?"
    )
    assert np.allclose(found, [[0.125, 0.25, 0.625], [0.25, 0.25, 0.5]], rtol=1e-5), (
        f"exp of the first row is 1, 2, 5: its shares are 1/8, 2/8, 5/8; yours are {found[0]}"
    )
    assert found.dtype == np.float32, f"float32 in, float32 out; yours is {found.dtype}"
    assert np.array_equal(x, before), "x was changed: work in an array of your own"
    columns = softmax(x, axis=0)
    assert np.allclose(columns.sum(axis=0), 1), (
        "with axis=0 each column sums to 1: does the axis reach max and sum?"
    )
    found = softmax(np.float32([1000, 1000]))
    assert np.allclose(found, [0.5, 0.5]), f"equal scores get equal shares, even at 1000; yours: {found}"
    assert softmax(np.array([3, 3])).dtype == np.float32, "convert integers to float32 first"
### BEGIN HIDDEN TESTS
x = np.random.default_rng(1).normal(scale=4, size=(2, 3, 5)).astype(np.float32)
with warnings.catch_warnings():
    warnings.simplefilter("error")
    for axis in (-1, 0, 1, 2, -2):
        found, lines = softmax(x, axis=axis), np.moveaxis(x, axis, -1).reshape(-1, x.shape[axis])
        for line, shares in zip(
            lines.tolist(), np.moveaxis(found, axis, -1).reshape(lines.shape), strict=True
        ):
            exps = [math.exp(v) for v in line]
            want = [e / math.fsum(exps) for e in exps]
            assert np.allclose(shares, want, rtol=1e-5, atol=1e-6), (
                f"axis {axis}: shares of {line} are {want}"
            )
    assert np.allclose(softmax(x + 500), softmax(x), atol=1e-4), "adding 500 to all scores changes no share"
    assert np.allclose(softmax(x - 500), softmax(x), atol=1e-4), (
        "subtracting 500 from all scores changes no share"
    )
    assert softmax(np.float32([-1e30, 0, 1e30])).tolist() == [0, 0, 1]
    assert softmax(np.float32([[-200, -200], [-1e5, -1e5]])).tolist() == [[0.5, 0.5], [0.5, 0.5]]
    assert softmax(np.float64([0.0, 1])).dtype == np.float64, "float64 in, float64 out"
    assert math.isclose(softmax(np.float64([0.0, 1]))[1], math.e / (1 + math.e), rel_tol=1e-14)
    assert softmax(np.int8([100, -100])).tolist() == [1, 0], "100 + 100 does not fit into int8: floats first"
    assert softmax(np.float32([[7.0]])).tolist() == [[1]], "a single score gets the whole share"
as_floats = own_floats
### END HIDDEN TESTS


# %% nbgrader={"grade": true, "grade_id": "test-softmax-masked", "locked": true, "points": 12, "schema_version": 3, "solution": false}
### BEGIN HIDDEN TESTS
# a right version of the part before this one, so that this part is graded alone
def right_floats(x):
    return x if isinstance(x, np.ndarray) and x.dtype.kind == "f" else np.array(x, np.float32)


own_floats, as_floats = globals().get("as_floats"), right_floats
### END HIDDEN TESTS
with warnings.catch_warnings():
    warnings.simplefilter("error")  # a warning counts as a mistake here
    nothing = -np.inf
    found = softmax(np.float32([[0, nothing, 0, nothing]]))
    assert not np.isnan(found).any(), f"-inf beside finite scores must not give NaN: {found}"
    assert found.tolist() == [[0.5, 0, 0.5, 0]], f"-inf gets exactly 0, the others share 1; yours: {found}"
    found = softmax(np.float32([[nothing, nothing], [0, 0]]))
    assert not np.isnan(found).any(), f"a row of -inf should give zeros, not NaN: {found}"
    assert found[0].tolist() == [0, 0], f"nothing is allowed in the first row: all shares 0, yours {found[0]}"
    assert found[1].tolist() == [0.5, 0.5], f"the second row is an ordinary one, yours gives {found[1]}"
### BEGIN HIDDEN TESTS
rng = np.random.default_rng(2)
x = rng.normal(size=(2, 3, 4, 5)).astype(np.float32)
x[rng.random(x.shape) < 0.5] = -np.inf
x[1, 2, 3] = x[0, 0, 0] = -np.inf
with warnings.catch_warnings():
    warnings.simplefilter("error")
    found = softmax(x)
    for line, shares in zip(x.reshape(-1, 5).tolist(), found.reshape(-1, 5), strict=True):
        exps = [math.exp(v) if v > -math.inf else 0.0 for v in line]
        want = [e / (math.fsum(exps) or 1.0) for e in exps]
        assert np.allclose(shares, want, rtol=1e-5, atol=1e-6), (
            f"the shares of {line} are {want}, not {shares}"
        )
    assert (found[x == -np.inf] == 0).all(), "a score of -inf gets exactly 0"
    shifted = np.float32([[-1e4, -np.inf, -1e4]])
    assert softmax(shifted).tolist() == [[0.5, 0, 0.5]], "low scores can still be the highest of their row"
    assert softmax(x.astype(np.float64), axis=1).dtype == np.float64
as_floats = own_floats
### END HIDDEN TESTS

# %% [markdown]
"""
Dividing the scores by a *temperature* before the softmax sets how much their differences count: below 1 the favourite gets a larger share, above 1 the shares become more equal.
"""

# %%
{temperature: [f"{share:.3f}" for share in softmax(scores / temperature)] for temperature in (0.25, 1, 4)}

# %% [markdown]
"""
**Question (5 points).** (a) Show on paper that subtracting a number m from all scores changes no share. (b) Which m would be cheapest? Why do we still subtract the largest score: what would go wrong with the mean? (c) Softmax gave two words the shares 0.6 and 0.3. By how much do their scores differ? What can you say about the scores themselves?
"""

# %% [markdown] nbgrader={"grade": true, "grade_id": "written-softmax", "locked": false, "points": 5, "schema_version": 3, "solution": true}
"""
Your answer here.
"""

# %% [markdown]
"""
## As objects

A network is built from objects that are called like functions: `layer(x)`. So each function gets a small class. It has nothing to learn; it only sends its array function through `apply`, so that tensors go in and come out, and a recorder sees the call.

**Task (10 points).** `ReLU` and `Tanh` are given; `Tensor.tanh` uses NumPy's `np.tanh`. Write `__call__` for `Sigmoid`, `GELU`, `SiLU` and `Softmax`, one line each. Pass the *function* to `apply`, with `axis` as an option for the softmax; do not call it yourself.
"""


# %% nbgrader={"grade": false, "grade_id": "classes", "locked": false, "schema_version": 3, "solution": true}
#| export
class ReLU:
    """x -> max(x, 0)."""

    def __call__(self, x: ArrayLike) -> Tensor:
        return apply(relu, x)


class Tanh:
    """x -> tanh(x), between -1 and 1."""

    def __call__(self, x: ArrayLike) -> Tensor:
        return (x if isinstance(x, Tensor) else Tensor(x)).tanh()


class Sigmoid:
    """x -> 1 / (1 + exp(-x)), between 0 and 1."""

    def __call__(self, x: ArrayLike) -> Tensor:
        ### BEGIN SOLUTION
        return apply(sigmoid, x)
        ### END SOLUTION


class GELU:
    """x -> x * Phi(x), in the tanh form of GPT-2."""

    def __call__(self, x: ArrayLike) -> Tensor:
        ### BEGIN SOLUTION
        return apply(gelu, x)
        ### END SOLUTION


class SiLU:
    """x -> x * sigmoid(x)."""

    def __call__(self, x: ArrayLike) -> Tensor:
        ### BEGIN SOLUTION
        return apply(silu, x)
        ### END SOLUTION


class Softmax:
    """x -> shares along `axis`: positive, summing to 1."""

    def __init__(self, axis: int = -1):
        self.axis = axis

    def __call__(self, x: ArrayLike) -> Tensor:
        ### BEGIN SOLUTION
        return apply(softmax, x, axis=self.axis)
        ### END SOLUTION


# %%
x = Tensor([[-1.0, 0.0, 1.0], [2.0, 2.0, 2.0]])
GELU()(x), Softmax()(x), Softmax(axis=0)(x)


# %% nbgrader={"grade": true, "grade_id": "test-classes", "locked": true, "points": 10, "schema_version": 3, "solution": false}
### BEGIN HIDDEN TESTS
# right versions of the functions, so that this part is graded alone
own_functions = {name: globals().get(name) for name in ("sigmoid", "silu", "gelu", "softmax")}


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def silu(x):
    return x / (1 + np.exp(-x))


def gelu(x):
    return 0.5 * x * (1 + np.tanh(0.7978845608028654 * (x + 0.044715 * x * x * x)))


def softmax(x, axis=-1):
    return np.exp(x) / np.exp(x).sum(axis=axis, keepdims=True)


### END HIDDEN TESTS


class Ear:
    def record(self, function, inputs, options, output):
        self.heard = (function, inputs, options, output)


x = Tensor([[-1.0, 0.0, 1.0], [2.0, 1.0, 2.0]])
row = [[0.09003057, 0.24472848, 0.66524094], [0.4223188, 0.15536241, 0.4223188]]
column = [[0.04742587, 0.26894143, 0.26894143], [0.95257413, 0.73105857, 0.73105857]]
for activation, function, options, want in (
    (Sigmoid(), sigmoid, {}, [[0.26894143, 0.5, 0.7310586], [0.880797, 0.7310586, 0.880797]]),
    (SiLU(), silu, {}, [[-0.26894143, 0, 0.7310586], [1.761594, 0.7310586, 1.761594]]),
    (GELU(), gelu, {}, [[-0.158808, 0, 0.841192], [1.9545977, 0.841192, 1.9545977]]),
    (Softmax(), softmax, {"axis": -1}, row),
    (Softmax(axis=0), softmax, {"axis": 0}, column),
):
    name, ear = type(activation).__name__, Ear()
    previous = set_recorder(ear)
    found = activation(x)
    set_recorder(previous)
    assert type(found) is Tensor, f"{name} should give a Tensor, yours gives a {type(found).__name__}"
    assert hasattr(ear, "heard"), f"{name} did not go through apply: the recorder was not called"
    assert ear.heard[0] is function, f"pass the function {function.__name__} to apply, not its result"
    assert ear.heard[1] == (x,) and ear.heard[2] == options, (
        f"{name} should call apply({function.__name__}, x) with the options {options}, not {ear.heard[2]}"
    )
    assert np.allclose(found.data, want, rtol=1e-5, atol=1e-6), (
        f"{name} of {x.data} is {want}, not {found.data}"
    )
### BEGIN HIDDEN TESTS
array = np.random.default_rng(3).normal(size=(2, 3, 5)).astype(np.float32)
for activation, function in ((Sigmoid(), sigmoid), (SiLU(), silu), (GELU(), gelu), (Softmax(), softmax)):
    assert np.allclose(activation(array).data, function(array)), (
        f"{type(activation).__name__} takes arrays as well"
    )
assert np.allclose(Softmax(axis=1)(array).data.sum(axis=1), 1), "use the axis of the object"
globals().update(own_functions)
### END HIDDEN TESTS

# %% [markdown]
"""
## You can now

- explain what a network without activations cannot do, and show it with exclusive or;
- write functions that are right at both ends of the number line, and say which overflow is harmless;
- turn scores into shares, with exact masks and rows in which nothing is allowed;
- choose between ReLU, SiLU and GELU by their slopes;
- send your own array functions through `apply`.

**Exercises, without points**

1. Write `log_softmax(x, axis=-1)` so that a score 200 below the best gives −200 and not −∞, and explain why `np.log(softmax(x))` cannot do this.
2. Softplus is log(1 + exp(x)), a smooth ReLU. Write it for all x without a warning, and compare it with `np.logaddexp`. Which activation of this module is its slope?

Next: these functions have nothing to learn. What learns is the matrices between them, and something has to hold these, name them and pass them on.
"""
