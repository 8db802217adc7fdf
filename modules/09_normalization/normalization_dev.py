# %% [markdown]
"""
# Module 09: Normalization

A signal that passes through thirty layers is multiplied thirty times. If each layer makes it a little smaller, almost nothing is left; if each makes it a little larger, it may overflow; and the slopes take the same path back. You could choose initial weights that just keep the size, but the first training steps change them. Normalization is the blunt and lasting remedy: it brings whatever comes in back to size, and lets the model choose the size with two small arrays that it learns.

After this module you will be able to

- normalize a row of numbers with LayerNorm, in the form that keeps its digits, and say what the small eps is for and where it belongs;
- derive the gradient of the normalization on half a page, write it as one rule, and check it against nudging;
- read from that rule which directions a normalization makes the model blind to;
- write RMSNorm, which most current open models use, and its gradient, by leaving out the mean;
- say over which axis a language model may normalize, and what breaks with another.

You need modules 01, 03 and 05.
"""

# %%
#| default_exp core.normalization

# %%
#| export
import math

import numpy as np

from tinytorch.core.activations import as_floats
from tinytorch.core.autograd import enable_autograd, gradient_of
from tinytorch.core.layers import Linear, Module, Sequential, as_rows, check_sizes
from tinytorch.core.tensor import Tensor, apply

# %% [markdown]
"""
Here is the trouble: ten layers of 256 numbers, fresh from the constructor, and the size of what comes out of each. `wrap`, from module 03, lets us look on.
"""


# %%
def sizes_after(model, x):
    """-> the standard deviation of the output of each layer of a Sequential, in order."""
    sizes = []

    def note_size(inner, x):
        y = inner(x)
        sizes.append(round(float(y.data.std()), 4))
        return y

    for layer in model:
        layer.wrap("forward", note_size)
    model(x)
    for layer in model:
        layer.unwrap("forward", note_size)
    return sizes


signal = Tensor(np.random.default_rng(0).normal(size=(100, 256)))
sizes_after(Sequential(*(Linear(256, 256, rng=seed) for seed in range(10))), signal)

# %% [markdown]
"""
## One row at a time

To normalize is to subtract the mean and divide by the standard deviation. But the mean of what? Batch normalization (Ioffe and Szegedy 2015, arXiv:1502.03167) takes one feature over all examples of the batch. Then, during training, what the model says about one text depends on which others happen to be in the batch. Layer normalization (Ba, Kiros and Hinton 2016, arXiv:1607.06450) turns the table by 90 degrees: it takes all C features of *one token*. Each row stands alone. It is the same in training and in use, for one token or a thousand, and, as will matter in module 15, a row that has been normalized does not change when another token comes after it.

For one row x of C numbers:

- the mean is `m = sum(x) / C`, and the centred row is `c = x - m`;
- the variance is the mean of the squares, `v = sum(c * c) / C` (divided by C, not by C - 1: this is the size of the row itself, not an estimate);
- the output is `weight * c / sqrt(v + eps) + bias`, with one weight and one bias for each feature, learned.

Two details matter. The variance is also `mean(x²) - m²`, which needs only one pass over the row. Do not compute it so: for a row around 1000 both terms are about a million, float32 keeps seven digits, and you want their small difference. Centre first. And `eps` stands *inside* the root: a row of equal numbers has v = 0, and `sqrt(eps)`, 0.003, is the smallest divisor possible. Outside the root it would make a different function for small rows, and weights trained with one would not fit the other.

Two small helpers are given. `mean_square` is the mean of the squares of each row, kept as an axis of length 1. `np.vecdot` multiplies and sums in one pass, without an array of squares in between: on 512 rows of 768, the RMSNorm below took about two thirds of the time that it takes with `(x * x).mean`. Where the sum of the squares is too large for float32, it computes in float64; otherwise a row of numbers around 2e19 would be divided by infinity and silently become 0.

The other helper is for the other end of the scale. A model that writes normalizes one row at a time, and most of that time goes into NumPy's preparations. Multiplying two arrays of shape (128,) took 0.5 µs on our machine, but (1, 1, 128) times (128,), which must broadcast, took 1.5. So a single row is treated as a plain vector (`as_rows`, from module 03), and its mean as a plain number (`column`). Together they bring the whole function to 0.7 of the time for one row of 128.
"""


# %%
#| export
def column(numbers: np.ndarray) -> np.ndarray:
    """(...) -> (..., 1): one number for each row, shaped to broadcast; a lone number stays as it is."""
    return numbers[..., None] if numbers.ndim else numbers


def mean_square(x: np.ndarray) -> np.ndarray:
    """(..., C) -> (..., 1): the mean of the squares of each row; float64 if float32 cannot hold them."""
    x = as_floats(x)
    with np.errstate(over="ignore"):
        total = np.vecdot(x, x)
        fits = math.isfinite(total.item() if total.size == 1 else total.sum())
    if not fits:
        total = np.vecdot(x, x, dtype=np.float64)
    return column(total) / x.shape[-1]


# %% [markdown]
"""
**Task (16 points).** Write `layer_norm(x, weight, bias, eps)` for arrays (..., C), (C,), (C,). About 5 lines. Make one new array, `y`, for the centred rows and change it in place (`y /= ...`); the arrays passed in must stay as they are. Keep the type of x: `x.sum(...) / x.shape[-1]` of a float32 array is float32.
"""


# %% nbgrader={"grade": false, "grade_id": "layer-norm", "locked": false, "schema_version": 3, "solution": true}
#| export
def layer_norm(x: np.ndarray, weight: np.ndarray, bias: np.ndarray, eps: float = 1e-5) -> np.ndarray:
    """(..., C), (C,), (C,) -> (..., C): each row brought to mean 0 and variance 1, times weight, plus bias.

    Divided by sqrt(variance + eps) (Ba, Kiros and Hinton 2016, arXiv:1607.06450).
    """
    ### BEGIN SOLUTION
    rows = as_rows(x)
    y = rows - column(rows.sum(axis=-1)) / x.shape[-1]
    y /= np.sqrt(mean_square(y) + eps)
    y *= weight
    y += bias
    return y.reshape(x.shape)
    ### END SOLUTION


# %% [markdown]
"""
The row 1, 3 has mean 2 and standard deviation 1, so it becomes -1, 1. What do 10, 30 and 5, 5 become?
"""

# %%
layer_norm(np.array([[1.0, 3.0], [10.0, 30.0], [5.0, 5.0]]), np.ones(2), np.zeros(2))

# %% nbgrader={"grade": true, "grade_id": "test-layer-norm", "locked": true, "points": 16, "schema_version": 3, "solution": false}
one, zero = np.ones(2, np.float32), np.zeros(2, np.float32)
x = np.array([[1.0, 3.0], [10.0, 30.0], [5.0, 5.0]], np.float32)
y = layer_norm(x, one, zero)
assert y.shape == (3, 2), f"(3, 2) in, (3, 2) out; yours is {y.shape}"
assert np.isfinite(y).all(), (
    f"a row of equal numbers has variance 0: eps keeps you from dividing by it; yours: {y}"
)
assert np.allclose(y, [[-1, 1], [-1, 1], [0, 0]], atol=1e-4), (
    f"1, 3 and 10, 30 become -1, 1, and 5, 5 becomes 0, 0; yours is {y}. Is the mean that of each row?"
)
y = layer_norm(x[:1], np.array([2.0, 3.0], np.float32), np.array([10.0, 20.0], np.float32))
assert np.allclose(y, [[8, 23]], atol=1e-4), f"-1, 1 times 2, 3 plus 10, 20 is 8, 23; yours is {y}"
y = layer_norm(np.array([0.001, -0.001], np.float32), one, zero)
assert np.allclose(y, [0.30151, -0.30151], atol=1e-4), (
    f"0.001 / sqrt(0.000001 + 0.00001) is 0.3015, yours {y[0]:.4f}: add eps to the variance, inside the root"
)
assert np.array_equal(x, [[1, 3], [10, 30], [5, 5]]), "the array that was passed in must stay as it is"
assert y.dtype == np.float32, f"float32 in, float32 out; yours is {y.dtype}"
### BEGIN HIDDEN TESTS
rng = np.random.default_rng(0)
for front, width in (((), 5), ((4,), 3), ((2, 3), 7), ((2, 1, 4), 6), ((3,), 1)):
    x, weight, bias = rng.normal(2, 3, size=(*front, width)), rng.normal(size=width), rng.normal(size=width)
    kept = x.copy(), weight.copy(), bias.copy()
    want = np.empty_like(x)
    for place in np.ndindex(*front):
        row = x[place].tolist()
        mean = math.fsum(row) / width
        root = math.sqrt(math.fsum((v - mean) ** 2 for v in row) / width + 0.1)
        want[place] = [(v - mean) / root * w + b for v, w, b in zip(row, weight, bias, strict=True)]
    got = layer_norm(x, weight, bias, eps=0.1)
    assert np.allclose(got, want, rtol=1e-10, atol=1e-12), f"wrong for x of shape {x.shape} and eps 0.1"
    assert all(np.array_equal(a, b) for a, b in zip(kept, (x, weight, bias), strict=True)), (
        "an input was changed"
    )
row = np.arange(64, dtype=np.float32)
near, far = (
    layer_norm(row + shift, np.ones(64, np.float32), np.zeros(64, np.float32)) for shift in (0, 10000)
)
assert np.allclose(near, far, atol=1e-3), (
    "adding 10,000 to a row should change nothing: subtract the mean first"
)
### END HIDDEN TESTS

# %% [markdown]
"""
## Its gradient, on half a page

You could build the normalization from Tensor operations, and module 05 would find the gradient: nine operations forward and nine rules back, each with an array of its own. Derived in one piece, the rule has three terms, and it shows something that the nine steps hide.

Take one row, let `r = sqrt(v + eps)`, and call `n = c / r` the normalized row. The output is `weight * n + bias`. With `grad` for the slope of the loss at the output:

- the slope at `bias` is `grad` and at `weight` it is `grad * n`, both summed over all rows;
- the slope at `n` is `g = grad * weight`.

Now move x by a small dx and follow it. The centred row moves by `dc = dx - mean(dx)`. From `r² = mean(c²) + eps` it follows that `2 r dr = 2 mean(c dc)`, so `dr = mean(n dc)`. And `n = c / r` moves by `dn = dc / r - c dr / r² = (dc - n mean(n dc)) / r`. Since n has mean 0, `mean(n dc)` equals `mean(n dx)`. Together, `dn = (dx - mean(dx) - n mean(n dx)) / r`.

The loss moves by `sum(g dn)`. Collect the terms with dx; a mean can be moved from one factor to the other, `sum(g mean(dx)) = sum(mean(g) dx)`:

sum(g dn) = sum( (g - mean(g) - n mean(g n)) dx ) / r

The factor of dx is the slope at x:

grad_x = (g - mean(g) - n * mean(g * n)) / r

**Task (20 points).** Write `layer_norm_gradients(grad, x, weight, eps)` for arrays: it returns the three slopes (grad_x, grad_weight, grad_bias). All means run over the last axis, row by row. Leave grad_weight and grad_bias in the shape of x, not summed over the rows: the engine of module 05 sums over what was broadcast. About 6 lines. The bias itself is not needed; change none of the arrays passed in.
"""


# %% nbgrader={"grade": false, "grade_id": "layer-norm-gradients", "locked": false, "schema_version": 3, "solution": true}
#| export
def layer_norm_gradients(grad: np.ndarray, x: np.ndarray, weight: np.ndarray, eps: float = 1e-5) -> tuple:
    """(..., C), (..., C), (C,) -> the slopes at x, weight, bias, (..., C) each, the last two unsummed."""
    ### BEGIN SOLUTION
    centred = x - x.mean(axis=-1, keepdims=True)
    root = np.sqrt(mean_square(centred) + eps)
    normal = centred / root
    g = grad * weight
    along = np.vecdot(g, normal)[..., None] / x.shape[-1]
    grad_x = (g - g.mean(axis=-1, keepdims=True) - normal * along) / root
    return grad_x, grad * normal, grad
    ### END SOLUTION


# %% [markdown]
"""
This given cell registers the rule for its function, so that `apply(layer_norm, ...)` has a gradient from here on.
"""


# %%
#| export
@gradient_of(layer_norm)
def _(grad, output, x, weight, bias, eps=1e-5):
    return layer_norm_gradients(grad, x, weight, eps)


# %% [markdown]
"""
Read the rule again: it subtracts from g its mean, and then its part along n. What is left has no part along (1, 1, …, 1) and none along n. It must be so: adding a constant to a row does not change the output, and neither does stretching the centred row, so there is no slope in these two directions. Both products below should be zero (the second up to eps). A row of *two* different numbers always becomes -1, 1 or 1, -1; what slope should it have?
"""

# %%
rng = np.random.default_rng(1)
eight, eight_slopes = rng.normal(2, 3, size=8), rng.normal(size=8)
slope = layer_norm_gradients(eight_slopes, eight, np.ones(8))[0]
slope_of_two = layer_norm_gradients(eight_slopes[:2], eight[:2], np.ones(2))[0]
(slope @ np.ones(8)).round(9), (slope @ eight).round(6), slope_of_two.round(6)


# %% nbgrader={"grade": true, "grade_id": "test-layer-norm-gradients", "locked": true, "points": 20, "schema_version": 3, "solution": false}
def plain_layer_norm(x, weight, bias, eps):
    centred = x - x.mean(axis=-1, keepdims=True)
    return centred / np.sqrt((centred * centred).mean(axis=-1, keepdims=True) + eps) * weight + bias


def nudged(loss, array, step=1e-6):
    """The slope of loss() at every entry of an array, by moving it a little up and down."""
    slopes = np.zeros_like(array)
    for place in np.ndindex(array.shape):
        kept = array[place]
        array[place] = kept + step
        up = loss()
        array[place] = kept - step
        slopes[place] = (up - loss()) / (2 * step)
        array[place] = kept
    return slopes


rng = np.random.default_rng(2)
x, weight, bias, grad = (
    rng.normal(1, 2, (3, 5)),
    rng.normal(size=5),
    rng.normal(size=5),
    rng.normal(size=(3, 5)),
)
loss = lambda: (plain_layer_norm(x, weight, bias, 1e-5) * grad).sum()  # noqa: E731
got = layer_norm_gradients(grad, x, weight)
assert len(got) == 3, f"three slopes: at x, weight and bias; yours returns {len(got)}"
got_x, got_weight, got_bias = got
assert got_x.shape == (3, 5), f"the slope at x has the shape of x, (3, 5); yours {got_x.shape}"
assert np.allclose(got_x.sum(axis=-1), 0, atol=1e-9), (
    "the slopes of each row should sum to 0: is mean(g) subtracted?"
)
want = nudged(loss, x)
assert np.allclose(got_x, want, atol=1e-7), (
    f"by nudging, the slopes of the first row are\n{want[0]}, yours are\n{got_x[0]}"
)
want = nudged(loss, weight)
assert np.allclose(got_weight.reshape(-1, 5).sum(axis=0), want, atol=1e-7), (
    f"at the weight nudging gives {want}"
)
want = nudged(loss, bias)
assert np.allclose(got_bias.reshape(-1, 5).sum(axis=0), want, atol=1e-7), f"at the bias nudging gives {want}"
### BEGIN HIDDEN TESTS
for shape, eps in (((7,), 1e-5), ((2, 3, 4), 0.5), ((2, 1, 6), 1e-3)):
    x, grad = rng.normal(size=shape), rng.normal(size=shape)
    weight, bias = rng.normal(size=shape[-1]), rng.normal(size=shape[-1])
    kept = grad.copy(), x.copy(), weight.copy()
    got = layer_norm_gradients(grad, x, weight, eps)
    assert all(np.array_equal(a, b) for a, b in zip(kept, (grad, x, weight), strict=True)), (
        "an input was changed"
    )
    loss = lambda: (plain_layer_norm(x, weight, bias, eps) * grad).sum()  # noqa: B023, E731
    sums = (got[0], *(g.reshape(-1, shape[-1]).sum(axis=0) for g in got[1:]))
    for name, array, mine in zip(("x", "weight", "bias"), (x, weight, bias), sums, strict=True):
        assert np.allclose(mine, nudged(loss, array), atol=1e-7), (
            f"wrong at {name} for shape {shape} and eps {eps}"
        )
low = layer_norm_gradients(*(a.astype(np.float32) for a in (grad, x, weight)))
assert all(g.dtype == np.float32 for g in low), f"float32 in, float32 out; yours {[g.dtype for g in low]}"
### END HIDDEN TESTS

# %% [markdown]
"""
## LayerNorm

The class holds the two learned arrays. They start without effect: a weight of ones and a bias of zeros. The checks of the sizes are given.

**Task: the constructor (7 points).** Make `self.weight` and `self.bias`, Tensors of shape (embed_dim,), both with `requires_grad=True`. 2 lines.

**Task: `forward` (8 points).** Raise a `ValueError` that states embed_dim and the shape of x if the last axis of x is not embed_dim long. Then call `layer_norm` through `apply`, with eps as an option. About 5 lines; `x.shape[-1:]` is a tuple that holds the last length, and is empty if x has no axis.
"""


# %%
#| export
def check_eps(eps: float) -> None:
    """Raises ValueError unless eps is a positive, finite number."""
    if not 0 < eps < math.inf:
        raise ValueError(f"eps should be a positive number, got {eps}")


# %% nbgrader={"grade": false, "grade_id": "layer-norm-class", "locked": false, "schema_version": 3, "solution": true}
#| export
class LayerNorm(Module):
    """(..., embed_dim) -> (..., embed_dim): each row to mean 0, variance 1, then learned weight and bias."""

    def __init__(self, embed_dim: int, eps: float = 1e-5):
        """Raises ValueError for an embed_dim below 1 or an eps that is not positive."""
        check_sizes(embed_dim=embed_dim)
        check_eps(eps)
        self.eps = eps
        ### BEGIN SOLUTION
        self.weight = Tensor(np.ones(embed_dim), requires_grad=True)
        self.bias = Tensor(np.zeros(embed_dim), requires_grad=True)
        ### END SOLUTION

    def forward(self, x: Tensor) -> Tensor:
        """x: a Tensor or array. Raises ValueError if its last axis is not embed_dim long."""
        ### BEGIN SOLUTION
        if x.shape[-1:] != self.weight.shape:
            raise ValueError(f"the norm takes {self.weight.size} features, x has shape {x.shape}")
        return apply(layer_norm, x, self.weight, self.bias, eps=self.eps)
        ### END SOLUTION


# %% [markdown]
"""
Now the whole path, backward included. The sum of the squares of a normalized row of C numbers is C, whatever the row, so its slope at x must be zero; at the weight it is 2 n².
"""

# %%
enable_autograd()
norm, x = LayerNorm(4), Tensor([[1.0, 2.0, 3.0, 6.0]], requires_grad=True)
y = norm(x)
(y * y).sum().backward()
x.grad.round(4), norm.weight.grad.round(4), (2 * y.data**2).round(4)

# %% nbgrader={"grade": true, "grade_id": "test-layer-norm-init", "locked": true, "points": 7, "schema_version": 3, "solution": false}
norm = LayerNorm(6)
assert norm.weight.shape == norm.bias.shape == (6,), (
    f"both should have shape (6,): {norm.weight.shape}, {norm.bias.shape}"
)
assert (norm.weight.data == 1).all(), f"the weight starts at 1, yours: {norm.weight.data}"
assert (norm.bias.data == 0).all(), f"the bias starts at 0, yours: {norm.bias.data}"
assert norm.weight.requires_grad and norm.bias.requires_grad, "both are learned: requires_grad=True"
### BEGIN HIDDEN TESTS
assert [name for name, _ in LayerNorm(3).named_parameters()] == ["weight", "bias"], (
    "weight and bias, in this order"
)
assert LayerNorm(3).weight.dtype == np.float32
one, two = LayerNorm(3), LayerNorm(3)
one.weight.data[0] = 9
assert two.weight.data[0] == 1, "two norms should not share their weights"
### END HIDDEN TESTS

# %% nbgrader={"grade": true, "grade_id": "test-layer-norm-forward", "locked": true, "points": 8, "schema_version": 3, "solution": false}
### BEGIN HIDDEN TESTS
own_layer_norm = layer_norm


def layer_norm(x, weight, bias, eps=1e-5):
    """A correct version, independent of the first task."""
    return (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + eps) * weight + bias


### END HIDDEN TESTS
norm = LayerNorm.__new__(LayerNorm)  # made without the constructor, so that this test does not need it
norm.weight, norm.bias, norm.eps = Tensor([2.0, 3.0]), Tensor([10.0, 20.0]), 1e-5
y = norm.forward(Tensor([[[1.0, 3.0]], [[30.0, 10.0]]]))
assert isinstance(y, Tensor), f"forward returns a Tensor, yours is {type(y).__name__}: go through apply"
assert np.allclose(y.data, [[[8, 23]], [[12, 17]]], atol=1e-3), (
    f"-1, 1 times 2, 3 plus 10, 20 is 8, 23; yours {y.data}"
)
norm.eps = 3.0
y = norm.forward(Tensor([1.0, 3.0]))
assert np.allclose(y.data, [9, 21.5]), f"with eps = 3 the divisor is sqrt(1 + 3): 9, 21.5; yours is {y.data}"
for wrong in (np.ones((2, 3)), np.ones((4, 1))):
    try:
        norm.forward(Tensor(wrong))
    except ValueError as error:
        assert "2" in str(error) and str(wrong.shape) in str(error), (
            f"name 2 features and {wrong.shape}: {error}"
        )
    else:
        raise AssertionError(f"x of shape {wrong.shape} into a norm of 2 features: raise a ValueError")
### BEGIN HIDDEN TESTS
try:
    norm.forward(Tensor(1.0))
except ValueError:
    pass
else:
    raise AssertionError("a single number has no features: raise a ValueError")
rng = np.random.default_rng(3)
x, norm.eps = rng.normal(size=(3, 4, 2)), 1e-5
want = layer_norm(x, norm.weight.data, norm.bias.data)
assert np.allclose(norm.forward(Tensor(x)).data, want, atol=1e-5), "wrong for x of shape (3, 4, 2)"
assert np.allclose(norm.forward(x.astype(np.float32)).data, want, atol=1e-5), "arrays are accepted too"
layer_norm = own_layer_norm
### END HIDDEN TESTS

# %% [markdown]
"""
Ten layers again, each now followed by a norm: every second number is the output of a norm.
"""

# %%
layers = [layer for seed in range(10) for layer in (Linear(256, 256, rng=seed), LayerNorm(256))]
sizes_after(Sequential(*layers), signal)

# %% [markdown]
"""
Every layer still shrinks the signal to about 0.58 of its size, 1/√3 as in module 03, and every norm brings it back to 1, however many there are.

## Without the mean

Is the mean needed at all? Zhang and Sennrich (2019, arXiv:1910.07467) left it out: they divide each row by its root mean square and multiply by a learned weight, without a bias. They report models of comparable quality and running times lower by 7 to 64 %, depending on the model, and most open models since Llama (Touvron et al. 2023, arXiv:2302.13971) do the same.

r = sqrt(mean(x²) + eps), output: weight * x / r

**Task (14 points).** Write `rms_norm(x, weight, eps)` for arrays. About 3 lines, with `mean_square`. Again the arrays passed in must stay as they are.
"""


# %% nbgrader={"grade": false, "grade_id": "rms-norm", "locked": false, "schema_version": 3, "solution": true}
#| export
def rms_norm(x: np.ndarray, weight: np.ndarray, eps: float = 1e-5) -> np.ndarray:
    """(..., C), (C,) -> (..., C): each row divided by its root mean square, times weight.

    Divided by sqrt(mean of squares + eps) (Zhang and Sennrich 2019, arXiv:1910.07467).
    """
    ### BEGIN SOLUTION
    rows = as_rows(x)
    y = rows / np.sqrt(mean_square(rows) + eps)
    y *= weight
    return y.reshape(x.shape)
    ### END SOLUTION


# %% [markdown]
"""
The mean square of 3 and 4 is (9 + 16) / 2 = 12.5, and its root is 3.5355. And 103, 104? The mean stays in, and makes up nearly all of the output.
"""

# %%
rms_norm(np.array([[3.0, 4.0], [103.0, 104.0]]), np.ones(2))

# %% nbgrader={"grade": true, "grade_id": "test-rms-norm", "locked": true, "points": 14, "schema_version": 3, "solution": false}
x = np.array([[3.0, 4.0], [-30.0, 40.0], [0.0, 0.0]], np.float32)
y = rms_norm(x, np.ones(2, np.float32))
assert y.shape == (3, 2), f"(3, 2) in, (3, 2) out; yours is {y.shape}"
assert np.isfinite(y).all(), f"a row of zeros stays zeros: eps keeps you from dividing by 0; yours: {y}"
want = np.array([[3, 4], [-3, 4], [0, 0]]) / np.sqrt(12.5)
assert np.allclose(y, want, atol=1e-4), (
    f"3, 4 is divided by sqrt((9 + 16) / 2) = 3.5355, so it becomes 0.8485, 1.1314; yours is {y}"
)
y = rms_norm(x[:1], np.array([10.0, 100.0], np.float32))
assert np.allclose(y, [[8.485281, 113.137]], atol=1e-2), f"times 10, 100 it is 8.485, 113.1; yours is {y}"
y = rms_norm(np.array([0.001, -0.001], np.float32), np.ones(2, np.float32))
assert np.allclose(y, [0.30151, -0.30151], atol=1e-4), (
    f"eps is added to the mean square, inside the root; yours {y}"
)
assert np.array_equal(x, [[3, 4], [-30, 40], [0, 0]]), "the array that was passed in must stay as it is"
assert y.dtype == np.float32, f"float32 in, float32 out; yours is {y.dtype}"
### BEGIN HIDDEN TESTS
rng = np.random.default_rng(4)
for front, width in (((), 5), ((4,), 3), ((2, 3), 7), ((3,), 1)):
    x, weight = rng.normal(2, 3, size=(*front, width)), rng.normal(size=width)
    kept = x.copy(), weight.copy()
    want = np.empty_like(x)
    for place in np.ndindex(*front):
        root = math.sqrt(math.fsum(v * v for v in x[place]) / width + 0.1)
        want[place] = [v / root * w for v, w in zip(x[place], weight, strict=True)]
    got = rms_norm(x, weight, eps=0.1)
    assert np.allclose(got, want, rtol=1e-10, atol=1e-12), f"wrong for x of shape {x.shape} and eps 0.1"
    assert np.array_equal(x, kept[0]) and np.array_equal(weight, kept[1]), "an input was changed"
### END HIDDEN TESTS

# %% [markdown]
"""
The derivation of its gradient is the same with `dc` replaced by `dx`, since nothing is centred: from `r² = mean(x²) + eps` it follows that `dr = mean(n dx)` with `n = x / r`, so `dn = (dx - n mean(n dx)) / r`, and

grad_x = (g - n * mean(g * n)) / r, with g = grad * weight

One direction is left in which the output does not change: along x itself.

**Task (16 points).** Write `rms_norm_gradients(grad, x, weight, eps)`: it returns the slopes (grad_x, grad_weight), the second not yet summed over the rows. About 5 lines.
"""


# %% nbgrader={"grade": false, "grade_id": "rms-norm-gradients", "locked": false, "schema_version": 3, "solution": true}
#| export
def rms_norm_gradients(grad: np.ndarray, x: np.ndarray, weight: np.ndarray, eps: float = 1e-5) -> tuple:
    """(..., C), (..., C), (C,) -> the slopes at x and weight, (..., C) each; the second not yet summed."""
    ### BEGIN SOLUTION
    root = np.sqrt(mean_square(x) + eps)
    normal = x / root
    g = grad * weight
    along = np.vecdot(g, normal)[..., None] / x.shape[-1]
    return (g - normal * along) / root, grad * normal
    ### END SOLUTION


# %%
#| export
@gradient_of(rms_norm)
def _(grad, output, x, weight, eps=1e-5):
    return rms_norm_gradients(grad, x, weight, eps)


# %% [markdown]
"""
Along the row there is no slope (up to eps), but along (1, 1, …, 1) now there is one:
"""

# %%
slope = rms_norm_gradients(eight_slopes, eight, np.ones(8))[0]
(slope @ eight).round(6), (slope @ np.ones(8)).round(6)


# %% nbgrader={"grade": true, "grade_id": "test-rms-norm-gradients", "locked": true, "points": 16, "schema_version": 3, "solution": false}
def plain_rms_norm(x, weight, eps):
    return x / np.sqrt((x * x).mean(axis=-1, keepdims=True) + eps) * weight


def nudged(loss, array, step=1e-6):
    """The slope of loss() at every entry of an array, by moving it a little up and down."""
    slopes = np.zeros_like(array)
    for place in np.ndindex(array.shape):
        kept = array[place]
        array[place] = kept + step
        up = loss()
        array[place] = kept - step
        slopes[place] = (up - loss()) / (2 * step)
        array[place] = kept
    return slopes


rng = np.random.default_rng(5)
x, weight, grad = rng.normal(1, 2, (3, 5)), rng.normal(size=5), rng.normal(size=(3, 5))
loss = lambda: (plain_rms_norm(x, weight, 1e-5) * grad).sum()  # noqa: E731
got = rms_norm_gradients(grad, x, weight)
assert len(got) == 2, f"two slopes: at x and weight; yours returns {len(got)}"
got_x, got_weight = got
assert got_x.shape == (3, 5), f"the slope at x has the shape of x, (3, 5); yours {got_x.shape}"
want = nudged(loss, x)
assert np.allclose(got_x, want, atol=1e-7), (
    f"by nudging, the slopes of the first row are\n{want[0]}, yours are\n{got_x[0]}"
)
want = nudged(loss, weight)
assert np.allclose(got_weight.reshape(-1, 5).sum(axis=0), want, atol=1e-7), (
    f"at the weight nudging gives {want}"
)
### BEGIN HIDDEN TESTS
for shape, eps in (((7,), 1e-5), ((2, 3, 4), 0.5), ((2, 1, 6), 1e-3)):
    x, weight, grad = rng.normal(size=shape), rng.normal(size=shape[-1]), rng.normal(size=shape)
    kept = grad.copy(), x.copy(), weight.copy()
    got = rms_norm_gradients(grad, x, weight, eps)
    assert all(np.array_equal(a, b) for a, b in zip(kept, (grad, x, weight), strict=True)), (
        "an input was changed"
    )
    loss = lambda: (plain_rms_norm(x, weight, eps) * grad).sum()  # noqa: B023, E731
    assert np.allclose(got[0], nudged(loss, x), atol=1e-7), f"wrong at x for shape {shape} and eps {eps}"
    mine = got[1].reshape(-1, shape[-1]).sum(axis=0)
    assert np.allclose(mine, nudged(loss, weight), atol=1e-7), (
        f"wrong at the weight for shape {shape} and eps {eps}"
    )
low = rms_norm_gradients(*(a.astype(np.float32) for a in (grad, x, weight)))
assert all(g.dtype == np.float32 for g in low), f"float32 in, float32 out; yours {[g.dtype for g in low]}"
### END HIDDEN TESTS

# %% [markdown]
"""
**Task (9 points).** The class `RMSNorm` is `LayerNorm` without the bias; its constructor is given. Write `forward`, with the same check and the same error. About 3 lines.
"""


# %% nbgrader={"grade": false, "grade_id": "rms-norm-class", "locked": false, "schema_version": 3, "solution": true}
#| export
class RMSNorm(Module):
    """(..., embed_dim) -> (..., embed_dim): each row divided by its root mean square, times a weight."""

    def __init__(self, embed_dim: int, eps: float = 1e-5):
        """Raises ValueError for an embed_dim below 1 or an eps that is not positive."""
        check_sizes(embed_dim=embed_dim)
        check_eps(eps)
        self.eps = eps
        self.weight = Tensor(np.ones(embed_dim), requires_grad=True)

    def forward(self, x: Tensor) -> Tensor:
        """x: a Tensor or array. Raises ValueError if its last axis is not embed_dim long."""
        ### BEGIN SOLUTION
        if x.shape[-1:] != self.weight.shape:
            raise ValueError(f"the norm takes {self.weight.size} features, x has shape {x.shape}")
        return apply(rms_norm, x, self.weight, eps=self.eps)
        ### END SOLUTION


# %%
RMSNorm(2)(Tensor([[3.0, 4.0], [0.3, 0.4]]))

# %% nbgrader={"grade": true, "grade_id": "test-rms-norm-class", "locked": true, "points": 9, "schema_version": 3, "solution": false}
### BEGIN HIDDEN TESTS
own_rms_norm = rms_norm


def rms_norm(x, weight, eps=1e-5):
    """A correct version, independent of the task above."""
    return x / np.sqrt(np.square(x).mean(-1, keepdims=True) + eps) * weight


### END HIDDEN TESTS
norm = RMSNorm(2, eps=3.5)
y = norm(Tensor([[[3.0, 4.0]], [[-4.0, 3.0]]]))
assert isinstance(y, Tensor), f"forward returns a Tensor, yours is {type(y).__name__}: go through apply"
assert np.allclose(y.data, [[[0.75, 1]], [[-1, 0.75]]]), f"with eps = 3.5 the divisor is 4; yours is {y.data}"
for wrong in (np.ones((2, 3)), np.ones((4, 1))):
    try:
        norm(Tensor(wrong))
    except ValueError as error:
        assert "2" in str(error) and str(wrong.shape) in str(error), (
            f"name 2 features and {wrong.shape}: {error}"
        )
    else:
        raise AssertionError(f"x of shape {wrong.shape} into a norm of 2 features: raise a ValueError")
### BEGIN HIDDEN TESTS
norm.weight.data[...] = [2, -1]
assert np.allclose(norm(Tensor([3.0, 4.0])).data, [1.5, -1]), "the output should be multiplied by the weight"
x = np.random.default_rng(6).normal(size=(3, 4, 2)).astype(np.float32)
assert np.allclose(RMSNorm(2)(x).data, rms_norm(x, np.ones(2)), atol=1e-5), (
    "eps is 1e-5 unless said otherwise"
)
try:
    norm(Tensor(1.0))
except ValueError:
    pass
else:
    raise AssertionError("a single number has no features: raise a ValueError")
rms_norm = own_rms_norm
### END HIDDEN TESTS

# %% [markdown]
"""
**Question (5 points).** Suppose a GPT's activations (B, T, C) are normalized over the T positions of each text instead of over the C features. In training, the loss is even lower than before. In generation, the model writes nonsense. Explain both, and say why a cache of earlier tokens could not work with such a model at all.
"""

# %% [markdown] nbgrader={"grade": true, "grade_id": "question-axis", "locked": false, "points": 5, "schema_version": 3, "solution": true}
"""
Your answer here.
"""

# %% [markdown]
"""
**Question (5 points).** During training the weights of a linear layer without a bias grow to ten times their size; a LayerNorm follows it directly. What happens to the output of the norm, and what to the slope that reaches the linear layer's weights? Use the factor 1/r of the rule. How does this help to keep training stable?
"""

# %% [markdown] nbgrader={"grade": true, "grade_id": "question-scale", "locked": false, "points": 5, "schema_version": 3, "solution": true}
"""
Your answer here.
"""

# %% [markdown]
"""
## You can now

- keep a signal at size through any depth, in the two forms that today's language models use;
- derive, write and check the gradient of a function of your own, and register it with the engine of module 05.

Two exercises:

- Build `layer_norm` from Tensor operations (`mean`, `-`, `*`, `sqrt`, `/`) and let module 05 find its gradient. Do the two agree? How many times faster is the fused rule, forward and backward, on (16, 128, 256)?
- Put the norm *after* the addition of a residual branch, `x = norm(x + layer(x))`, and then before the layer, `x = x + layer(norm(x))`. Send a slope back through 24 such layers of each kind and compare what arrives at the bottom (Xiong et al. 2020, arXiv:2002.04745). Which of the two would you train?

Next: modules 10 and 11 turn text into the rows of numbers that you can now keep at size.
"""
