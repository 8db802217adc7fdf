# %% [markdown]
"""
# Module 04: Losses

A model that learns has to be told how wrong it is, in one number that it can make smaller. The choice of that number decides what it learns: with the square of its error, a model learns to predict averages; with surprise, it learns probabilities. And the number has to stay usable in the worst moments of a training run, when the model is very wrong and very sure.

After this module you will be able to

- compute the mean squared error, and say which silent mistake its shape check prevents;
- turn logits into log probabilities that keep their digits for logits of any size;
- compute the cross entropy of a language model from its logits, leaving out the positions that do not count;
- say why the loss is computed from logits and not from probabilities;
- read a loss: what an untrained model should have, what a perplexity of 12 means, and when a first loss points to a bug.

You need modules 01, 02 and 03. Training follows the slope of these losses, which is the subject of module 05; here you measure it once, by nudging.
"""

# %%
#| default_exp core.losses

# %%
#| export
import math

import numpy as np
from numpy.typing import ArrayLike

from tinytorch.core.activations import as_floats
from tinytorch.core.layers import check_sizes
from tinytorch.core.tensor import Tensor, apply, as_array


# %%
#| export
def floats(x: ArrayLike) -> Tensor:
    """A Tensor of floats as it is; arrays, lists, integers and booleans as a new float32 Tensor."""
    if isinstance(x, Tensor) and x.dtype.kind == "f":
        return x
    x = as_array(x)
    return Tensor(x, dtype=None if x.dtype.kind == "f" else np.float32)


# %% [markdown]
"""
## How far off

For numbers, the usual loss is to square the differences and take the mean. Squaring makes one error of 10 as bad as a hundred errors of 1, and the constant that minimises the loss is the average of the targets.

Integers need care: with bytes from a picture, `np.uint8([0]) - np.uint8([1])` is 255, because a byte cannot be negative. So `floats(x)`, which is given, converts its argument to a Tensor of floats before anything is subtracted.

Shapes need care too. Subtracting targets of shape (3, 1) from predictions of shape (3,) raises no error. They broadcast to (3, 3), every prediction is compared with every target, and the result looks like a loss. The best that a model can do against it is to predict the average of all targets everywhere.

**Task (10 points).** Write `MSELoss.__call__`. Raise a `ValueError` with both shapes if they differ, and another if there is nothing to compare (no entries). Return the mean of the squared differences, computed with Tensor operations so that module 05 can follow them: subtract, multiply, `.mean()`. About 7 lines. `prediction` and `target` may be Tensors or arrays of any numbers: call `floats` first.
"""


# %% nbgrader={"grade": false, "grade_id": "mse", "locked": false, "schema_version": 3, "solution": true}
#| export
class MSELoss:
    """Called with predictions and targets of one shape: the mean of their squared differences, a scalar."""

    def __call__(self, prediction: ArrayLike, target: ArrayLike) -> Tensor:
        """Raises ValueError if the shapes differ, or if there are no entries."""
        ### BEGIN SOLUTION
        prediction, target = floats(prediction), floats(target)
        if prediction.shape != target.shape:
            raise ValueError(f"the prediction has shape {prediction.shape}, the target {target.shape}")
        if prediction.size == 0:
            raise ValueError(f"arrays of shape {prediction.shape} hold 0 numbers, the mean needs at least 1")
        difference = prediction - target
        return (difference * difference).mean()
        ### END SOLUTION


# %% [markdown]
"""
The predictions are off by 1, 0 and 2, so the squares are 1, 0 and 4. What is their mean?
"""

# %%
MSELoss()(Tensor([1.0, 5.0, 3.0]), Tensor([2.0, 5.0, 1.0]))

# %% nbgrader={"grade": true, "grade_id": "test-mse", "locked": true, "points": 10, "schema_version": 3, "solution": false}
loss = MSELoss()(Tensor([1.0, 5.0, 3.0]), Tensor([2.0, 5.0, 1.0]))
assert isinstance(loss, Tensor) and loss.shape == (), f"the loss is a Tensor of shape (), yours is {loss!r}"
assert abs(float(loss) - 5 / 3) < 1e-6, f"(1 + 0 + 4) / 3 = 1.667, yours is {float(loss)}"
loss = MSELoss()(Tensor([[1.0, 0.0], [0.0, 0.0]]), np.zeros((2, 2), np.float32))
assert abs(float(loss) - 0.25) < 1e-6, f"the mean runs over all 4 entries: 0.25, yours is {float(loss)}"
loss = MSELoss()(np.uint8([0, 255]), np.uint8([1, 0]))
assert float(loss) == 32513, (
    f"(0 - 1)^2 and (255 - 0)^2 have the mean 32,513, yours is {float(loss)}: floats first"
)
try:
    MSELoss()(Tensor([1.0, 2.0, 3.0]), Tensor([[1.0], [2.0], [3.0]]))
except ValueError as error:
    assert "(3,)" in str(error) and "(3, 1)" in str(error), f"name both shapes, (3,) and (3, 1): {error}"
else:
    raise AssertionError("shapes (3,) and (3, 1) would broadcast to (3, 3): raise a ValueError instead")
### BEGIN HIDDEN TESTS
rng = np.random.default_rng(0)
a, b = rng.normal(size=(3, 4, 5)).astype(np.float32), rng.normal(size=(3, 4, 5)).astype(np.float32)
want = sum((float(p) - float(t)) ** 2 for p, t in zip(a.ravel(), b.ravel(), strict=True)) / 60
for prediction, target in ((Tensor(a), Tensor(b)), (Tensor(a), b), (a, Tensor(b)), (b, a)):
    assert abs(float(MSELoss()(prediction, target)) - want) < 1e-5, (
        "wrong for random arrays of shape (3, 4, 5)"
    )
for shapes in (((2, 3), (3, 2)), ((4,), ()), ((0,), (0,))):
    try:
        MSELoss()(Tensor(np.ones(shapes[0])), Tensor(np.ones(shapes[1])))
    except ValueError:
        pass
    else:
        raise AssertionError(f"shapes {shapes[0]} and {shapes[1]} should raise a ValueError")
### END HIDDEN TESTS

# %% [markdown]
"""
## Log probabilities for any logits

A language model computes a number for each token of its vocabulary, a *logit*, and softmax turns the logits into probabilities. The loss needs the logarithm of one of these probabilities. Why not simply take the logarithm of the softmax? Here are three logits, the last far behind, as happens when a model is sure:
"""

# %%
far_behind = np.array([0.0, -50.0, -200.0], np.float32)
probabilities = np.exp(far_behind) / np.exp(far_behind).sum()
with np.errstate(divide="ignore"):
    logs = np.log(probabilities)
probabilities, logs

# %% [markdown]
"""
The true answer is 0, -50 and -200, to six digits. But the smallest positive float32 is about 1.4e-45, which is e to the -103, so the probability of the third token was rounded to zero, and its logarithm is minus infinity. A model that is wrong by more than about 103 gets an infinite loss and a slope of NaN, and the next step turns its weights into NaN.

The information was there, in the logits, and was lost on the detour through the probability. So avoid the detour:

log softmax(x)_i = x_i - log(sum over j of exp(x_j))

Now `exp` may overflow, for x above 88. Subtracting the same number from all logits does not change the softmax, so subtract the largest first: `s = x - max(x)`, then `s - log(sum(exp(s)))`. No exponent is above 0 and one is exactly 0, so the sum is between 1 and V, and its logarithm is safe.

There is a second common form: compute `m + log(sum(exp(x - m)))` first, with `m = max(x)`, and subtract it from x. It cannot overflow either. But take logits around 10,000, where neighbouring float32 numbers are 0.00098 apart: the logarithm is rounded to that grid before it is subtracted.
"""

# %%
high = np.array([10000.0, 9999.0, 9998.0], np.float32)
rounded_first = high.max() + np.log(np.exp(high - high.max()).sum())
high - rounded_first, high - high.max() - np.log(np.exp(high - high.max()).sum())

# %% [markdown]
"""
The second line is right to seven digits: it is the same as for the logits 2, 1, 0, as it should be.

**Task (18 points).** Write `log_softmax(x, axis)` for arrays, in the form that subtracts the maximum first. Begin with `as_floats` of module 02, for logits that are integers. About 3 lines; use `keepdims=True`, so that the shapes fit. Do not change the array that was passed in.
"""


# %% nbgrader={"grade": false, "grade_id": "log-softmax", "locked": false, "schema_version": 3, "solution": true}
#| export
def log_softmax(x: np.ndarray, axis: int = -1) -> np.ndarray:
    """log(softmax(x)) along `axis`, for logits of any size, without overflow or loss of digits."""
    ### BEGIN SOLUTION
    x = as_floats(x)
    shifted = x - x.max(axis=axis, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=axis, keepdims=True))
    ### END SOLUTION


# %% [markdown]
"""
Three equal logits give log(1/3) = -1.0986 three times, whatever their value.
"""

# %%
log_softmax(np.array([[0.0, 0.0, 0.0], [5e4, 5e4, 5e4]], np.float32))

# %% nbgrader={"grade": true, "grade_id": "test-log-softmax", "locked": true, "points": 18, "schema_version": 3, "solution": false}
third = -np.log(3.0)
logs = log_softmax(np.zeros((2, 3), np.float32))
assert logs.shape == (2, 3), f"(2, 3) in, (2, 3) out; yours is {logs.shape}"
assert np.allclose(logs, third), f"three equal logits have log probability {third:.4f} each, yours: {logs[0]}"
logs = log_softmax(np.array([0.0, -50.0, -200.0], np.float32))
assert np.allclose(logs, [0, -50, -200]), f"0, -50, -200 stay, yours: {logs}; do not compute the softmax"
with np.errstate(over="ignore", invalid="ignore"):
    logs = log_softmax(np.array([10000.0, 9999.0, 9998.0], np.float32))
want = np.array([-0.40760596, -1.40760596, -2.40760596])
assert np.isfinite(logs).all(), f"exp(10000) overflows: subtract the largest logit first; yours: {logs}"
assert np.allclose(logs, want, rtol=1e-6), (
    f"10000, 9999, 9998 should give the same as 2, 1, 0, which is {want}; yours is {logs}. "
    "Are the logits shifted before anything else is subtracted from them?"
)
x = np.array([[1.0, 2.0], [3.0, 5.0]], np.float32)
assert np.allclose(np.exp(log_softmax(x, axis=0)).sum(axis=0), 1), "along axis 0 the columns sum to 1"
assert np.array_equal(x, [[1, 2], [3, 5]]), "the array that was passed in must not change"
### BEGIN HIDDEN TESTS
rng = np.random.default_rng(1)
x = rng.normal(0, 30, size=(3, 4, 5))
for axis in range(-3, 3):
    got = log_softmax(x, axis=axis)
    moved, got_moved = np.moveaxis(x, axis, -1).reshape(-1, x.shape[axis]), np.moveaxis(got, axis, -1)
    for row, mine in zip(moved, got_moved.reshape(moved.shape), strict=True):
        total = math.log(math.fsum(math.exp(v - max(row)) for v in row))
        assert np.allclose(mine, [v - max(row) - total for v in row], rtol=1e-12, atol=1e-12), (
            f"wrong along {axis}"
        )
for offset in (0, 1e3, -1e3, 1e5):
    row = np.array([2.0, 1.0, 0.0, -1.0], np.float32) + np.float32(offset)
    got = log_softmax(row)
    assert np.allclose(got, [-0.4401897, -1.4401897, -2.4401897, -3.4401897], rtol=1e-6), (
        f"wrong at {offset}: {got}"
    )
    assert got.dtype == np.float32, f"float32 in, float32 out; yours is {got.dtype}"
assert np.allclose(log_softmax(np.uint8([200, 100, 200])), [-math.log(2), -100 - math.log(2), -math.log(2)])
masked = log_softmax(np.array([0.0, -np.inf, 0.0], np.float32))
assert np.allclose(masked[[0, 2]], -np.log(2.0)) and masked[1] == -np.inf, "a logit of -inf has probability 0"
### END HIDDEN TESTS

# %% [markdown]
"""
## Surprise

How good is a forecast of 80 % for rain, if it rains? Score it by the logarithm of the probability that it gave to what happened: `-log 0.8 = 0.22`. A forecast of 1 % would cost 4.6, and one of 100 % nothing. This is the *surprise*, measured in nats. It is the loss of language models because of one property: the forecast with the smallest expected surprise is the one that states the true probabilities.

The mean surprise of a model at a text is the **cross entropy**. From each row of logits you need one log probability, that of the token that came next.

Some positions do not count: the padding at the end of a short text, or the user's half of a dialogue, which the model should read but not learn to write. Their target is set to a number that is not a token, by convention -100. Leave them out of the sum *and* of the number by which it is divided; otherwise padding would make the mean smaller.

**Task (20 points).** Write `cross_entropy(logits, targets, ignore_index)` for arrays: logits (..., V) and integer targets (...). The result is a scalar, the mean of `-log p(target)` over the targets that are not `ignore_index`. Flatten to rows, choose the rows that count, take `log_softmax`, pick one entry of each row, and average. About 5 lines. `np.flatnonzero(condition)` gives the indices at which it holds; `table[np.arange(n), columns]` picks one entry of each row. You may assume that the targets are valid; the next task checks them.
"""


# %% nbgrader={"grade": false, "grade_id": "cross-entropy", "locked": false, "schema_version": 3, "solution": true}
#| export
def cross_entropy(logits: np.ndarray, targets: np.ndarray, ignore_index: int = -100) -> np.ndarray:
    """(..., V), (...) ints -> scalar: the mean of -log p(target) over targets other than ignore_index."""
    ### BEGIN SOLUTION
    rows, targets = logits.reshape(-1, logits.shape[-1]), targets.reshape(-1)
    counted = np.flatnonzero(targets != ignore_index)
    if len(counted) < len(rows):  # else there is nothing to leave out, and no reason to copy
        rows, targets = rows[counted], targets[counted]
    return -log_softmax(rows)[np.arange(len(rows)), targets].mean()
    ### END SOLUTION


# %% [markdown]
"""
Here are two rows over three tokens. The first gives the right token a probability of 1/2 (its logits are the logarithms of 2, 1, 1), the second 1/4. The mean of log 2 and log 4 is 1.5 log 2, about 1.04.
"""

# %%
logits = np.log(np.array([[2.0, 1.0, 1.0], [2.0, 1.0, 1.0]]))
float(cross_entropy(logits, np.array([0, 2])))


# %% nbgrader={"grade": true, "grade_id": "test-cross-entropy", "locked": true, "points": 20, "schema_version": 3, "solution": false}
### BEGIN HIDDEN TESTS
def log_softmax(x, axis=-1):
    """A correct version, whatever the answer to the task above."""
    x = x - np.max(x, axis=axis, keepdims=True)
    return x - np.log(np.sum(np.exp(x), axis=axis, keepdims=True))


### END HIDDEN TESTS
logits = np.log(np.array([[2.0, 1.0, 1.0], [2.0, 1.0, 1.0]], np.float32))
loss = cross_entropy(logits, np.array([0, 2]))
assert np.shape(loss) == (), f"the loss is one number, yours has shape {np.shape(loss)}"
want = 1.5 * np.log(2)
assert np.allclose(loss, want), f"the mean of log 2 and log 4 is {want:.4f}, yours is {loss:.4f}"
loss = cross_entropy(np.concatenate([logits, 9 * logits]), np.array([0, 2, -100, -100]))
assert np.allclose(loss, want), (
    f"two more rows that do not count leave the loss at {want:.4f}, yours is {loss:.4f}; divide by 2, not 4"
)
loss = cross_entropy(logits, np.array([0, 2]), ignore_index=2)
assert np.allclose(loss, np.log(2)), f"with ignore_index=2 only the first row counts: log 2, yours is {loss}"
### BEGIN HIDDEN TESTS
rng = np.random.default_rng(2)
for front, vocab_size in (((4,), 7), ((2, 3), 5), ((2, 3, 4), 6), ((), 5)):
    logits, targets = rng.normal(0, 3, size=(*front, vocab_size)), rng.integers(0, vocab_size, front)
    targets = np.where(rng.random(front) < 0.3, -100, targets)
    targets.reshape(-1)[0] = 1
    kept = logits.copy(), targets.copy()
    surprises = []
    for row, target in zip(logits.reshape(-1, vocab_size), targets.reshape(-1), strict=True):
        if target != -100:
            surprises.append(math.log(sum(math.exp(v) for v in row)) - row[target])
    got = cross_entropy(logits, targets)
    assert np.allclose(got, sum(surprises) / len(surprises), rtol=1e-12), f"wrong for logits {logits.shape}"
    assert np.array_equal(kept[0], logits) and np.array_equal(kept[1], targets), "an input was changed"
wrong_and_sure = np.array([[0.0, 300.0], [1e4, 0.0]], np.float32)
loss = cross_entropy(wrong_and_sure, np.array([0, 1]))
assert np.allclose(loss, 5150, rtol=1e-6), f"wrong by 300 and by 10000: a loss of 5150, yours is {loss}"
assert loss.dtype == np.float32, f"float32 in, float32 out; yours is {loss.dtype}"
### END HIDDEN TESTS

# %% [markdown]
"""
## Why from logits: the slope

Write the surprise of one row as `L = log(sum_j exp(x_j)) - x_t`. Its derivative with respect to logit `i` comes out in one line: the first term gives `exp(x_i) / sum_j exp(x_j)`, which is the softmax, the second gives -1 where `i` is the target:

dL/dx_i = softmax(x)_i - [i = t]

Against this slope, training pushes every logit down in proportion to its probability, and the right one up by 1 besides. The slope of each logit is between -1 and 1, however wrong the model is. On the detour through the probability, the same slope would be a product: `-1/p` from the logarithm, times a number about as small as `p` from the softmax. At p = 0 that is infinity times zero. Together the two factors cancel; computed apart they give NaN. This is why `CrossEntropyLoss` takes logits.

Check the derivation by nudging: move each logit by a millionth and see what the loss does. Below that is what the formula says for a target of 2.
"""

# %%
row, target, step = np.array([[1.0, -2.0, 0.5, 3.0]]), np.array([2]), 1e-6
nudged = [
    (cross_entropy(row + step * one, target) - cross_entropy(row - step * one, target)) / (2 * step)
    for one in np.eye(4)
]
formula = np.exp(row[0]) / np.exp(row[0]).sum() - np.eye(4)[2]
np.array([nudged, formula]).round(6)

# %% [markdown]
"""
## Invalid targets

NumPy silently accepts several kinds of invalid targets. A target of -1 picks the *last* column. Targets of shape (T, B) with logits of shape (B, T, V) flatten to the same number of rows, in the wrong order. Booleans are a mask for NumPy, not columns. Each of these either trains a model towards nonsense or fails later with an obscure error, and the checks cost little beside the matrix products.

**Task (16 points).** Write `check_targets(targets, logits_shape, ignore_index)`. It returns the targets as an array, or raises, in this order:

1. `TypeError` with their dtype, if they are not integers (kinds `"i"` and `"u"`; booleans do not count);
2. `ValueError` with both shapes, if their shape is not that of the logits without the last axis;
3. `ValueError` with the number of targets, if all of them are `ignore_index`;
4. `ValueError` with the first wrong target and V, if one that is not `ignore_index` is outside 0 … V - 1.

About 12 lines. `as_array` of module 01 takes lists, arrays and Tensors.
"""


# %% nbgrader={"grade": false, "grade_id": "check-targets", "locked": false, "schema_version": 3, "solution": true}
#| export
def check_targets(targets: ArrayLike, logits_shape: tuple, ignore_index: int = -100) -> np.ndarray:
    """Targets in any form, for logits (..., V) -> integer array (...), each in [0, V) or ignore_index.

    Raises TypeError if they are not integers; ValueError for another shape, for a target outside the
    vocabulary, and if all of them are ignore_index.
    """
    ### BEGIN SOLUTION
    targets = as_array(targets)
    if targets.dtype.kind not in "iu":
        raise TypeError(f"targets are token ids, integers; got {targets.dtype}")
    if not logits_shape or targets.shape != tuple(logits_shape[:-1]):
        raise ValueError(
            f"logits of shape {logits_shape} need targets of shape {logits_shape[:-1]}, got {targets.shape}"
        )
    counted = targets[targets != ignore_index]
    if counted.size == 0:
        raise ValueError(f"none of the {targets.size} targets counts, all are {ignore_index}")
    wrong = counted[(counted < 0) | (counted >= logits_shape[-1])]
    if wrong.size:
        raise ValueError(f"target {wrong[0]} is outside the {logits_shape[-1]} tokens of the logits")
    return targets
    ### END SOLUTION


# %%
try:
    check_targets([[4, 1], [-100, 5]], (2, 2, 5))
except ValueError as error:
    print(error)


# %% nbgrader={"grade": true, "grade_id": "test-check-targets", "locked": true, "points": 16, "schema_version": 3, "solution": false}
def refused(kind, targets, shape, *words, **options):
    try:
        check_targets(targets, shape, **options)
    except (ValueError, TypeError) as error:
        assert type(error) is kind, f"raise a {kind.__name__} here, not a {type(error).__name__}: {error}"
        for word in words:
            assert word in str(error), f"the message should contain {word}, yours says: {error}"
    else:
        raise AssertionError(f"targets {targets} for logits of shape {shape} should raise a {kind.__name__}")


good = check_targets([[4, 0], [-100, 1]], (2, 2, 5))
assert isinstance(good, np.ndarray), f"return an array, yours is {type(good).__name__}"
assert np.array_equal(good, [[4, 0], [-100, 1]]), f"valid targets are returned as they are, yours: {good}"
refused(TypeError, [1.0, 2.0], (2, 5), "float32")
refused(ValueError, [1, 2, 3, 4], (2, 2, 5), "(2, 2", "(4,)")
refused(ValueError, [-100, -100], (2, 5), "2")
refused(ValueError, [0, 5], (2, 5), "5")
refused(ValueError, [0, -1], (2, 5), "-1", "5")
### BEGIN HIDDEN TESTS
refused(TypeError, [True, False], (2, 5), "bool")
refused(ValueError, [0, -100], (2, 5), "-100", "5", ignore_index=7)
refused(ValueError, [[0], [1]], (2, 5))
refused(ValueError, [0, 1], (5,))
refused(ValueError, 0, ())
refused(ValueError, np.zeros((0,), int), (0, 5), "0")
refused(ValueError, [0, 9, 8], (3, 5), "9")
for targets, shape in ((np.array(3), (5,)), (Tensor([0, 4]), (2, 5)), (np.array([4, 0], np.uint8), (2, 5))):
    assert np.array_equal(check_targets(targets, shape), np.asarray(targets)), (
        f"{targets!r} for {shape} is valid"
    )
assert np.array_equal(check_targets([7, 0], (2, 5), ignore_index=7), [7, 0]), "an ignored target: any number"
assert np.array_equal(check_targets([0, -100], (2, 5)), [0, -100])
### END HIDDEN TESTS

# %% [markdown]
"""
**Task (8 points).** Put the two together in `CrossEntropyLoss.__call__`: check the targets against the shape of the logits, then call `cross_entropy` through `apply`, with `ignore_index` as an option. 2 lines. With `apply`, module 05 sees a single operation, `cross_entropy`, and uses the slope above, instead of those of the logarithm and the softmax.
"""


# %% nbgrader={"grade": false, "grade_id": "cross-entropy-loss", "locked": false, "schema_version": 3, "solution": true}
#| export
class CrossEntropyLoss:
    """Called with (..., V) logits and (...) integer targets: the mean surprise in nats, a scalar Tensor.

    Targets equal to ignore_index do not count. Raises ValueError or TypeError for invalid targets.
    """

    def __init__(self, ignore_index: int = -100):
        self.ignore_index = ignore_index

    def __call__(self, logits: Tensor, targets: ArrayLike) -> Tensor:
        ### BEGIN SOLUTION
        targets = check_targets(targets, np.shape(logits), self.ignore_index)
        return apply(cross_entropy, logits, targets, ignore_index=self.ignore_index)
        ### END SOLUTION


# %%
CrossEntropyLoss()(Tensor([[[0.0, 0.0], [9.0, 0.0]]]), [[1, -100]])


# %% nbgrader={"grade": true, "grade_id": "test-cross-entropy-loss", "locked": true, "points": 8, "schema_version": 3, "solution": false}
### BEGIN HIDDEN TESTS
def cross_entropy(logits, targets, ignore_index=-100):
    """A correct version, whatever the answer to the task above."""
    pairs = zip(logits.reshape(-1, logits.shape[-1]), np.asarray(targets).reshape(-1), strict=True)
    return np.float32(np.mean([np.log(np.exp(row - row[t]).sum()) for row, t in pairs if t != ignore_index]))


def check_targets(targets, logits_shape, ignore_index=-100):
    """A simpler version, which is enough to see that it is called."""
    targets = as_array(targets)
    counted = targets[targets != ignore_index]
    if targets.shape != logits_shape[:-1] or counted.min() < 0 or counted.max() >= logits_shape[-1]:
        raise ValueError(f"targets {targets} for logits of shape {logits_shape}")
    return targets


### END HIDDEN TESTS
loss = CrossEntropyLoss()(Tensor([[[0.0, 0.0], [9.0, 0.0]]]), [[1, -100]])
assert isinstance(loss, Tensor), f"the loss is a Tensor, yours is {type(loss).__name__}: go through apply"
assert loss.shape == () and abs(float(loss) - np.log(2)) < 1e-6, f"two equal logits: log 2, not {loss!r}"
loss = CrossEntropyLoss(ignore_index=0)(Tensor([[0.0, 0.0, 0.0], [9.0, 0.0, 0.0]]), [1, 0])
assert abs(float(loss) - np.log(3)) < 1e-6, f"with ignore_index=0 only the first row counts: log 3, {loss!r}"
try:
    CrossEntropyLoss()(Tensor([[0.0, 0.0]]), [-1])
except ValueError:
    pass
else:
    raise AssertionError("a target of -1 is not a token: check the targets first")
### BEGIN HIDDEN TESTS
from tinytorch.core.tensor import set_recorder


class Recorder:
    def __init__(self):
        self.seen = []

    def record(self, function, inputs, options, output):
        self.seen.append((function, inputs[0], options))


logits, recorder = Tensor([[1.0, 2.0], [3.0, 0.0]]), Recorder()
previous = set_recorder(recorder)
CrossEntropyLoss(ignore_index=1)(logits, [0, 1])
set_recorder(previous)
assert len(recorder.seen) == 1, f"one operation should pass through apply, {len(recorder.seen)} did"
function, first, options = recorder.seen[0]
assert function is cross_entropy, f"apply should be given cross_entropy, it was given {function}"
assert first is logits, "give apply the logits as they came, or no gradient reaches them"
assert options == {"ignore_index": 1}, f"ignore_index is passed on as an option, yours: {options}"
### END HIDDEN TESTS

# %% [markdown]
"""
## What an untrained model should say

Before the first step a model knows nothing, so it should give all V tokens about the same probability, 1/V. Its surprise is then `log V`, whatever token comes next. A training run should begin near this number, and you know it before you start.

**Task (8 points).** Write `chance_loss(vocab_size)`: the cross entropy of a model that gives every token the same probability. 1 line; the check of the size is given.
"""


# %% nbgrader={"grade": false, "grade_id": "chance-loss", "locked": false, "schema_version": 3, "solution": true}
#| export
def chance_loss(vocab_size: int) -> float:
    """The cross entropy, in nats, of a model that finds all tokens equally likely: where training starts.

    Raises ValueError for a vocabulary below 1 token, TypeError if it is not an integer.
    """
    check_sizes(vocab_size=vocab_size)
    ### BEGIN SOLUTION
    return math.log(vocab_size)
    ### END SOLUTION


# %% [markdown]
"""
The vocabulary of GPT-2 has 50,257 tokens. If a new GPT with that vocabulary begins training far from this number, find out why:
"""

# %%
chance_loss(50257)

# %% nbgrader={"grade": true, "grade_id": "test-chance-loss", "locked": true, "points": 8, "schema_version": 3, "solution": false}
chance = chance_loss(2)
assert abs(chance - 0.6931472) < 1e-6, f"two tokens, 1/2 each: log 2 = 0.693 nats, yours is {chance}"
assert chance_loss(1) == 0, f"an only token is never a surprise: 0, yours is {chance_loss(1)}"
### BEGIN HIDDEN TESTS
for vocab_size in (3, 65, 256, 50257):
    want = -sum(math.log(1 / vocab_size) / vocab_size for _ in range(vocab_size))
    assert abs(chance_loss(vocab_size) - want) < 1e-9, f"V = {vocab_size}: the loss by chance is {want}"
### END HIDDEN TESTS

# %% [markdown]
"""
A real model does not begin with equal logits but with random ones. Suppose they are normal with standard deviation `s`, and independent of the target. Then the expected value of `exp(x)` is `exp(s² / 2)`, so for many tokens the logarithm of the sum is close to `log V + s² / 2`, while the target's logit is 0 on average. So an untrained model pays `s² / 2` more than chance, for being sure of things that it cannot know. The cell measures this on 4,000 rows over 2,000 tokens, for standard deviations of 0.1, 1 and 2, beside `s² / 2`:
"""

# %%
rng = np.random.default_rng(0)
excess = {}
for deviation in (0.1, 1.0, 2.0):
    logits = deviation * rng.standard_normal((4000, 2000), np.float32)
    loss = float(CrossEntropyLoss()(logits, rng.integers(0, 2000, 4000)))
    excess[deviation] = (round(loss - chance_loss(2000), 3), round(deviation**2 / 2, 3))
excess

# %% [markdown]
"""
So a first loss should be near `log V`. If it is far above, the initial weights are probably too large, and training first has to undo them. If it is clearly *below* before anything was learned, the model has seen the answer: look for a target that leaks into the input.

## Perplexity

Nats are not intuitive, so undo the logarithm: a loss of `log 12` is that of a model that always hesitates between 12 equally likely tokens. `exp(loss)` is called the **perplexity**. At chance it is V; for a model that knows the text by heart it is close to 1.

**Task (10 points).** Write `perplexity(loss)` for a Tensor, array or number. A cross entropy cannot be negative: raise a `ValueError` with the number. `math.exp` raises an error above about 709.8; return `math.inf` there, since a report should not stop a training run. NaN stays NaN. About 7 lines.
"""


# %% nbgrader={"grade": false, "grade_id": "perplexity", "locked": false, "schema_version": 3, "solution": true}
#| export
def perplexity(loss: Tensor | float) -> float:
    """exp(cross entropy in nats): between how many equally likely tokens the model hesitates.

    inf where that is too large for a float. Raises ValueError for a negative loss.
    """
    ### BEGIN SOLUTION
    loss = float(loss)
    if loss < 0:
        raise ValueError(f"a cross entropy is at least 0, got {loss}")
    try:
        return math.exp(loss)
    except OverflowError:
        return math.inf
    ### END SOLUTION


# %%
perplexity(chance_loss(12)), perplexity(0.0)

# %% nbgrader={"grade": true, "grade_id": "test-perplexity", "locked": true, "points": 10, "schema_version": 3, "solution": false}
value = perplexity(math.log(12))
assert abs(value - 12) < 1e-9, f"a loss of log 12 is a choice among 12, yours is {value}"
assert perplexity(0.0) == 1, f"no surprise at all is a perplexity of 1, yours is {perplexity(0.0)}"
value = perplexity(Tensor(2.0))
assert isinstance(value, float) and abs(value - 7.3890561) < 1e-6, f"a Tensor of 2: 7.389, not {value!r}"
assert perplexity(1000.0) == math.inf, f"exp(1000) is too large: infinity, not {perplexity(1000.0)}"
try:
    perplexity(-0.5)
except ValueError as error:
    assert "-0.5" in str(error), f"name the number -0.5 in the message: {error}"
else:
    raise AssertionError("a loss of -0.5 is not a cross entropy: raise a ValueError")
### BEGIN HIDDEN TESTS
from decimal import Decimal

for loss in (0.1, 3.0, 11.0, 700.0):
    want = float(Decimal(loss).exp())
    assert abs(perplexity(np.float64(loss)) / want - 1) < 1e-9, f"wrong for a loss of {loss}"
assert math.isnan(perplexity(math.nan)) and perplexity(math.inf) == math.inf, "NaN stays NaN, inf stays inf"
### END HIDDEN TESTS

# %% [markdown]
"""
**Question (5 points).** A student pads the short texts of a batch with token 0 and forgets `ignore_index`. A third of all positions are padding. Her loss falls faster than that of a colleague who ignores the padding, but her model writes worse. Explain both.
"""

# %% [markdown] nbgrader={"grade": true, "grade_id": "question-padding", "locked": false, "points": 5, "schema_version": 3, "solution": true}
"""
Your answer here.
"""

# %% [markdown]
"""
**Question (5 points).** A model over 65 characters prints a loss of 9.3 before its first step. What should it have printed? What are the two most likely causes, in the model or in the data, and how would you tell them apart?
"""

# %% [markdown] nbgrader={"grade": true, "grade_id": "question-first-loss", "locked": false, "points": 5, "schema_version": 3, "solution": true}
"""
Your answer here.
"""

# %% [markdown]
"""
## You can now ...

... measure how wrong a model is with a loss that is smallest for the true probabilities, keep it finite and precise for logits of any size, leave out positions that do not count, refuse invalid targets, and predict the first loss of a run.

Two exercises.

- Two batches have perplexities of 4 (10 tokens) and 2 (990 tokens). What is the perplexity of both together? It is neither the mean of the two nor the mean weighted by tokens; write a function that combines any number of them.
- Label smoothing (Szegedy et al. 2016, arXiv:1512.00567) gives the target 0.9 and divides 0.1 among all tokens. Write it with `log_softmax`, and find the smallest loss that it can reach. Why is it not zero?

Next: module 05. The loss is a number; its slopes tell each weight which way to go. You measured four slopes by nudging. A model has a hundred million of them.
"""
