# %% [markdown]
"""
# Module 12: Attention

An embedding gives the word "bank" the same vector in a sentence about rivers and in one about money. Every layer you have built so far treats each token alone: a Linear layer or a GELU gives the same answer for "bank" in every text. In a transformer, attention is the only place where tokens learn about each other, and in this module you build all of it.

After this module you will be able to

- look something up softly: compare a query with every key and take a weighted mean of the values;
- say why the scores are divided by the square root of the head's width, and show what happens without it;
- hide tokens with an additive mask, above all the future, even when the queries do not begin at position 0;
- write the gradient of the weights by hand and check it;
- let several heads look at the same time, and put them together as the multi-head attention of GPT-2;
- prove on your own layer that no token sees a later one.

You need Tensor (01), softmax (02), Linear (03), gradients (05) and an idea of what an embedding is (11). In the final grading each part runs with correct versions of the parts before it, so a mistake costs only its own points.
"""

# %%
#| default_exp core.attention

# %%
#| export
import math
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from tinytorch.core.autograd import gradient_of
from tinytorch.core.layers import Linear, Module
from tinytorch.core.tensor import Tensor, apply, as_array

# %% [markdown]
r"""
## A dictionary that answers with a mixture

A Python dictionary compares your key with the keys that it holds, and returns the value of the one that is equal. If none is equal, you get an error. It is all or nothing, so it has no gradient, and there is no way to learn what to ask.

Attention makes each of these steps soft. The query is a vector, and so is each key. Instead of "equal or not" it asks *how similar*: the dot product of query and key, a number called the score. Instead of one winner there are *weights*: the softmax of the scores, which adds up to 1. And the answer is the mean of all values with these weights. A query that fits one key much better than the others gets nearly that key's value; a query that fits all equally well gets the plain average. Everything in between can be reached in small steps, so it can be learned.

For a query $q$, keys $k_j$ and values $v_j$, with $D$ numbers in $q$ and in each key:

$$w_j = \frac{e^{s_j}}{\sum_i e^{s_i}}, \qquad s_j = \frac{q \cdot k_j}{\sqrt{D}}, \qquad \text{answer} = \sum_j w_j v_j$$

This is equation 1 of "Attention Is All You Need" (Vaswani et al. 2017, arXiv:1706.03762). The letters are the same in the whole course: T queries, S keys and values, D numbers in each. In front of them stand B, the number of texts in a batch, and H, the number of *heads*, look-ups side by side, which are explained further down. So arrays have the shapes (B, H, T, D) and (B, H, S, D).

## Why divide by the square root of D

Take a query and a key whose numbers are independent, with mean 0 and variance 1. Their dot product is a sum of D products, each with variance 1, so it has variance D, and its typical size is $\sqrt{D}$. A wide head would therefore have large scores merely because it is wide. The cell takes 2,000 random queries, each over 8 random keys. It shows D, the standard deviation of the scores, and the mean of the largest of the 8 weights three times: with the scores as they are, with a third of them, and with the scores divided by $\sqrt{D}$.
"""


# %%
def largest_weight(scores):
    weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
    return (weights / weights.sum(axis=-1, keepdims=True)).max(axis=-1).mean().round(2)


rng = np.random.default_rng(0)
for D in (1, 16, 64, 256):
    q, k = rng.standard_normal((2000, 1, D)), rng.standard_normal((2000, 8, D))
    scores = (q * k).sum(axis=-1)
    print(D, scores.std().round(1), *(largest_weight(scores / c) for c in (1, 3, math.sqrt(D))))

# %% [markdown]
"""
At D = 64, the head width of GPT-2, such a head gives 0.88 of its attention to one key of eight, picked by chance. Fresh layers of module 03 turn inputs of variance 1 into queries and keys of variance 1/3, so their scores are a third of these; the share is then still 0.65. Where a softmax is that sure of itself, making a score larger or smaller changes little: the gradient is small, and the layer learns slowly to look anywhere else. After the division a head of any width begins undecided, with weights that are easy to move.

Where should you divide? `(q @ k.T) / sqrt(D)` divides T × S numbers, `(q / sqrt(D)) @ k.T` only T × D, for the same result. And beware of `np.sqrt`: `np.sqrt(64)` is a float64 number, and multiplied with a float32 array it gives float64, there and in everything after it. `math.sqrt(64)` is a Python float and keeps the array's type.
"""

# %%
#| export
LOWEST = float(np.finfo(np.float32).min)  # the lowest finite float32

# %% [markdown]
"""
## Weighing the keys

Every query of every head of every text is compared with every key: T × S weights per head. They are the largest array that a layer computes: with 12 heads and 1,024 tokens, 12 · 1024² float32 numbers or 50 MB (1 MB is 10⁶ bytes). In GPT-2 only the logits are larger, 1,024 × 50,257 numbers or 206 MB, but they are computed once and not in every layer. A new array for each operation would be another 50 MB each time, to be allocated and thrown away. So make one array and change it in place: `weights -= ...`, `np.exp(weights, out=weights)`, `weights /= ...`.

**Task (12 + 10 points).** Write `weigh_keys(query, key, mask=None)` on plain arrays:

1. the scores: query times 1 / √D, multiplied by the transposed keys (`key.swapaxes(-1, -2)`), shape (..., T, S);
2. if there is a mask, add it in place; a score of minus infinity will become a weight of exactly 0;
3. the softmax over the keys, the last axis, in place: first subtract each row's largest score, so that `exp` cannot overflow;
4. a query whose scores are all minus infinity sees no key, and all its weights should be 0. Left alone, −∞ − (−∞) and 0 / 0 give NaN, and NaN spreads through the whole model. Two small changes to step 3 are enough. Start the search for the largest score at the lowest finite number (`initial=LOWEST`). And where there is a mask, divide by the row's sum or by 1, whichever is larger: if anything is visible, the largest score gives exp(0) = 1, so the sum is at least 1 anyway. About 9 lines.

The first test covers steps 1 and 3, the second 2 and 4. `weigh_keys` is a plain NumPy function because that is what `apply` of module 01 takes, through which every operation with a gradient goes.
"""


# %% nbgrader={"grade": false, "grade_id": "weigh-keys", "locked": false, "schema_version": 3, "solution": true}
#| export
def weigh_keys(query: np.ndarray, key: np.ndarray, mask: np.ndarray | None = None) -> np.ndarray:
    """(..., T, D), (..., S, D), mask -> (..., T, S): each query's weights of the keys; rows sum to 1.

    softmax(query @ key.T / sqrt(D) + mask) over the keys (Vaswani et al. 2017, equation 1).
    mask: None, or added to the scores; it has, or broadcasts to, their shape. A query that it leaves without
    any key has weights of 0.
    """
    ### BEGIN SOLUTION
    weights = np.matmul(query * (1 / math.sqrt(query.shape[-1])), key.swapaxes(-1, -2))
    if mask is not None:
        weights += mask
    weights -= weights.max(axis=-1, keepdims=True, initial=LOWEST)
    np.exp(weights, out=weights)
    total = weights.sum(axis=-1, keepdims=True)
    if mask is not None:
        np.maximum(total, 1, out=total)
    weights /= total
    return weights
    ### END SOLUTION


# %% [markdown]
"""
One query, two keys, D = 4, so √D = 2. The dot products are 0 and 2 · ln 3, the scores 0 and ln 3, their exponentials 1 and 3. Which weights do you expect?
"""

# %%
weigh_keys(np.array([[2.0, 0, 0, 0]]), np.array([[0, 5.0, 0, 0], [math.log(3), 0, 5.0, 0]]))

# %% nbgrader={"grade": true, "grade_id": "test-weigh-keys", "locked": true, "points": 12, "schema_version": 3, "solution": false}
q = np.array([[2.0, 0, 0, 0], [0, 0, 0, 0]], np.float32)
k = np.array([[0, 5, 0, 0], [math.log(3), 0, 5, 0], [0, 0, 0, 7]], np.float32)
weights = weigh_keys(q, k)
assert weights.shape == (2, 3), f"2 queries over 3 keys give weights of shape (2, 3), yours {weights.shape}"
assert np.allclose(weights.sum(axis=-1), 1), (
    f"the weights of each query should sum to 1, yours sum to {weights.sum(axis=-1)}; "
    "is the softmax over the key axis, the last one?"
)
assert np.allclose(weights[1], 1 / 3), f"a query of zeros fits all 3 keys equally, you give it {weights[1]}"
assert not np.allclose(weights[0], [0.1, 0.8, 0.1], atol=0.02), (
    "9 to 1: are the scores divided by sqrt(D) = 2?"
)
assert np.allclose(weights[0], [0.2, 0.6, 0.2]), f"1, 3 and 1 fifths are 0.2, 0.6, 0.2; yours: {weights[0]}"
assert weights.dtype == np.float32, f"float32 goes in, {weights.dtype} comes out: was np.sqrt used?"
assert np.isfinite(weigh_keys(q * 1000, k)).all(), (
    "scores of 1,000 overflow: subtract each row's largest score first"
)
assert np.array_equal(q[0], [2, 0, 0, 0]), "the query that was passed in must stay as it is"
### BEGIN HIDDEN TESTS
rng = np.random.default_rng(1)
q, k = rng.standard_normal((2, 4, 3, 6)), rng.standard_normal((2, 4, 5, 6))
want = np.empty((2, 4, 3, 5))
for b in range(2):
    for h in range(4):
        for t in range(3):
            scores = [
                sum(float(q[b, h, t, d]) * float(k[b, h, s, d]) for d in range(6)) / 6**0.5 for s in range(5)
            ]
            parts = [math.exp(score) for score in scores]
            want[b, h, t] = [part / sum(parts) for part in parts]
got = weigh_keys(q.astype(np.float32), k.astype(np.float32))
assert np.allclose(got, want, rtol=1e-4, atol=1e-6), "the weights differ from a loop over every query and key"
got = weigh_keys(q, k)
assert got.dtype == np.float64 and np.allclose(got, want, rtol=1e-9), "float64 should stay float64"
### END HIDDEN TESTS

# %% nbgrader={"grade": true, "grade_id": "test-weigh-keys-mask", "locked": true, "points": 10, "schema_version": 3, "solution": false}
q, k = np.ones((2, 4), np.float32), np.zeros((3, 4), np.float32)
mask = np.array([[0, 0, -np.inf], [0, math.log(2), 0]], np.float32)
weights = weigh_keys(q, k, mask)
assert weights[0, 2] == 0, f"minus infinity means a weight of exactly 0, yours is {weights[0, 2]}"
assert np.allclose(weights[0], [0.5, 0.5, 0]), f"the two visible keys get equal weights, yours: {weights[0]}"
assert np.allclose(weights[1], [0.25, 0.5, 0.25]), f"a bias of ln 2 doubles a key's part, yours: {weights[1]}"
assert np.array_equal(mask[0], [0, 0, -np.inf]), "the mask that was passed in must stay as it is"
weights = weigh_keys(q, k, np.array([[0, 0, 0], [-np.inf] * 3], np.float32))
assert np.allclose(weights, [[1 / 3] * 3, [0] * 3]), (
    f"a query that sees no key has weights of 0, yours: {weights[1]}"
)
### BEGIN HIDDEN TESTS
rng = np.random.default_rng(2)
q, k = rng.standard_normal((2, 4, 3, 6)), rng.standard_normal((2, 4, 5, 6))
plain = weigh_keys(q, k)
for shape in ((3, 5), (2, 1, 1, 5), (1, 4, 3, 1), (2, 4, 3, 5), (5,)):
    mask = rng.standard_normal(shape)
    want = plain * np.exp(mask)
    want /= want.sum(axis=-1, keepdims=True)
    assert np.allclose(weigh_keys(q, k, mask), want), (
        f"a mask of shape {shape} should be broadcast over the scores"
    )
mask = np.zeros((2, 1, 1, 5))
mask[1, ..., 3:] = -np.inf
got = weigh_keys(q, k, mask)
assert (got[1, ..., 3:] == 0).all() and (got[0] > 0).all() and np.allclose(got[0], plain[0])
### END HIDDEN TESTS

# %% [markdown]
r"""
## The gradient of the weights

Module 05 keeps a table with one rule per function. `weigh_keys` is a new function, so it brings its own rule. What flows in is `grad`, the slope of the loss with respect to each weight. Two steps lead back.

*Through the softmax.* If $w$ is a row of weights and $g$ the gradient that arrives at it, the gradient at the scores is $w_j \, (g_j - \sum_i g_i w_i)$: a weight of 0 passes nothing on, and what matters is how far $g_j$ is above or below the row's weighted average.

*Through the product.* The scores are $q k^T / \sqrt{D}$, so a gradient $G$ of shape (..., T, S) at the scores gives $G k / \sqrt{D}$ for the queries and $G^T q / \sqrt{D}$ for the keys. A mask is simply added, so its gradient is $G$ itself, and the engine sums it over the axes along which the mask was broadcast.

**Task (12 points).** Write the rule. It gets `grad`, the `output` of `weigh_keys` (the weights, so the softmax need not be computed again) and the inputs. Return one array per input: two for the query and the key, and a third for the mask if there is one. About 6 lines.
"""


# %% nbgrader={"grade": false, "grade_id": "weigh-keys-gradient", "locked": false, "schema_version": 3, "solution": true}
#| export
@gradient_of(weigh_keys)
def weigh_keys_gradient(
    grad: np.ndarray, output: np.ndarray, query: np.ndarray, key: np.ndarray, mask: np.ndarray | None = None
) -> tuple[np.ndarray, ...]:
    """(..., T, S) twice, the inputs of weigh_keys -> the gradients of query, key and, if given, mask."""
    ### BEGIN SOLUTION
    grad_scores = grad - np.vecdot(grad, output)[..., None]
    grad_scores *= output
    scale = 1 / math.sqrt(query.shape[-1])
    grad_query = np.matmul(grad_scores, key) * scale
    grad_key = np.matmul(grad_scores.swapaxes(-1, -2), query) * scale
    return (grad_query, grad_key) if mask is None else (grad_query, grad_key, grad_scores)
    ### END SOLUTION


# %% [markdown]
"""
Take two keys with weights ½ and ½, and a loss that is simply the first weight, so `grad` is (1, 0). Raising score 1 a little raises the first weight by ½ · (1 − ½) = ¼ as much; raising score 2 lowers it by ¼ as much. With D = 1 and both keys 1, the two cancel in the gradient of the query; the keys get ± ¼ times the query, which is 2.
"""

# %%
weigh_keys_gradient(
    np.array([[1.0, 0.0]]), np.array([[0.5, 0.5]]), np.array([[2.0]]), np.array([[1.0], [1.0]])
)

# %% nbgrader={"grade": true, "grade_id": "test-weigh-keys-gradient", "locked": true, "points": 12, "schema_version": 3, "solution": false}
grad, w = np.array([[1.0, 0.0]]), np.array([[0.5, 0.5]])
q, k = np.array([[2.0, 0, 0, 0]]), np.array([[1.0, 0, 0, 0], [1.0, 0, 0, 0]])
grads = weigh_keys_gradient(grad, w, q, k)
assert len(grads) == 2, f"without a mask there are two gradients, for query and key; you return {len(grads)}"
assert grads[0].shape == (1, 4) and grads[1].shape == (2, 4), "a gradient has the shape of its input"
assert not np.allclose(grads[1][:, 0], [0.5, -0.5]), (
    "the key's gradient is twice too large: divide by sqrt(D)"
)
assert np.allclose(grads[1][:, 0], [0.25, -0.25]), f"the keys should get 0.25 and -0.25, not {grads[1][:, 0]}"
assert np.allclose(grads[0], 0), f"two equal keys cancel in the query's gradient, yours is {grads[0]}"
grads = weigh_keys_gradient(grad, w, q, k, np.zeros((1, 2)))
assert len(grads) == 3, "with a mask there are three gradients"
assert np.allclose(grads[2], [[0.25, -0.25]]), f"the mask's gradient is that of the scores, yours: {grads[2]}"
assert np.array_equal(grad, [[1, 0]]) and np.array_equal(w, [[0.5, 0.5]]), (
    "grad and output must stay as they are"
)
### BEGIN HIDDEN TESTS
rng = np.random.default_rng(3)
inputs = [rng.standard_normal(shape) for shape in ((2, 4, 3, 6), (2, 4, 5, 6), (2, 4, 3, 5))]
grad = rng.standard_normal((2, 4, 3, 5))


def loss_of_weights():
    scores = np.einsum("bhtd,bhsd->bhts", inputs[0], inputs[1]) / 6**0.5 + inputs[2]
    parts = np.exp(scores)
    parts /= parts.sum(axis=-1, keepdims=True)
    return parts, (parts * grad).sum()


got = weigh_keys_gradient(grad, loss_of_weights()[0], *inputs)
for name, x, g in zip(("query", "key", "mask"), inputs, got, strict=True):
    for place in np.ndindex(x.shape):
        x[place] += 1e-6
        up = loss_of_weights()[1]
        x[place] -= 2e-6
        down = loss_of_weights()[1]
        x[place] += 1e-6
        slope = (up - down) / 2e-6
        assert abs(g[place] - slope) < 1e-5, (
            f"{name}{place}: the slope is {slope:.6f}, you give {g[place]:.6f}"
        )
### END HIDDEN TESTS

# %% [markdown]
"""
## Who may look at whom

A language model is trained to predict the next token at every position of a text at once. If position 4 could see position 5, it could simply copy the answer. The training loss would fall to nearly zero, but the model would learn nothing useful for writing, where position 5 does not exist yet. So the future must be invisible: minus infinity is added to its scores. This is called a *causal* mask.

The queries need not begin at position 0. The three newest tokens of a text of ten can ask about all ten: they stand at positions 7, 8 and 9, and the first of them may look at eight keys. So the rule compares positions in the text, not row numbers with column numbers: a query at position i sees a key at position j if and only if j ≤ i.

**Task (10 points).** Write `causal_mask(num_queries, num_keys)`: a float32 array of shape (T, S), for queries that are the *last* T of the S positions: 0 where the query may look, minus infinity elsewhere. Raise a `ValueError` with both numbers if there are more queries than keys. About 5 lines; `np.arange(...)[:, None]` makes a column.
"""


# %% nbgrader={"grade": false, "grade_id": "causal-mask", "locked": false, "schema_version": 3, "solution": true}
#| export
def causal_mask(num_queries: int, num_keys: int) -> np.ndarray:
    """-> (T, S) float32, to be added to scores: 0 where a query may look, -inf where the key is later.

    The queries are the last T of the S positions. Raises ValueError if T > S.
    """
    ### BEGIN SOLUTION
    if num_queries > num_keys:
        raise ValueError(f"{num_queries} queries cannot be the last of {num_keys} positions")
    query_position = np.arange(num_keys - num_queries, num_keys)[:, None]
    is_future = np.arange(num_keys) > query_position
    return np.where(is_future, np.float32(-np.inf), np.float32(0))
    ### END SOLUTION


# %% [markdown]
"""
Here are the last 3 tokens of a text of 5. How many zeros are in the first row?
"""

# %%
causal_mask(3, 5)

# %% nbgrader={"grade": true, "grade_id": "test-causal-mask", "locked": true, "points": 10, "schema_version": 3, "solution": false}
mask = causal_mask(3, 5)
assert mask.shape == (3, 5), f"3 queries over 5 keys give a mask of shape (3, 5), yours has {mask.shape}"
assert mask[0, 2] == 0, "the first of the 3 newest of 5 tokens stands at position 2 and must see itself"
assert mask[0, 3] == -np.inf, "the token at position 2 must not see position 3"
assert (mask[2] == 0).all(), f"the newest token sees everything, your last row is {mask[2]}"
assert mask.dtype == np.float32, f"the mask should be float32, yours is {mask.dtype}"
try:
    causal_mask(6, 5)
except ValueError as error:
    assert "6" in str(error) and "5" in str(error), f"the message should hold both 6 and 5, yours: {error}"
else:
    raise AssertionError("6 queries cannot be the last of 5 positions: raise a ValueError")
### BEGIN HIDDEN TESTS
for num_queries, num_keys in ((1, 1), (1, 6), (5, 5), (2, 9), (7, 8)):
    want = [
        [-np.inf if key > num_keys - num_queries + row else 0 for key in range(num_keys)]
        for row in range(num_queries)
    ]
    assert np.array_equal(causal_mask(num_queries, num_keys), want), (
        f"wrong for {num_queries} queries, {num_keys} keys"
    )
### END HIDDEN TESTS

# %% [markdown]
"""
Here it is as a picture, where black is hidden. On the left, all ten tokens of a text ask; on the right, only the four newest, which are the four lowest rows of the left picture.
"""


# %%
def plot_masks():
    import matplotlib.pyplot as plt

    fig, axes = plt.subplots(1, 2, figsize=(8, 3), width_ratios=[1, 1])
    for axis, num_queries in zip(axes, (10, 4), strict=True):
        axis.imshow(
            causal_mask(num_queries, 10) == 0, cmap="gray", extent=(-0.5, 9.5, 9.5, 9.5 - num_queries)
        )
        axis.set(xlabel="key position", ylabel="query position", title=f"the last {num_queries} of 10 tokens")
    plt.show()


# %%
if "get_ipython" in globals():
    plot_masks()

# %% [markdown]
"""
## Checking what comes in

Shapes easily go wrong in attention, and NumPy does not always complain: one head against four is silently *broadcast* to four. And a mask of True and False would be added as 1 and 0, which hides nothing. The given checks look at shapes and types only, never at the numbers, so they cost the same for large arrays as for small ones.
"""


# %%
#| export
def check_attention(query: Tensor, key: Tensor, mask: ArrayLike | None = None) -> None:
    """Raises ValueError unless the shapes are (..., T, D), (..., S, D) and broadcastable to (..., T, S).

    The leading axes of query and key (batch, heads) must be equal. TypeError for a mask that is not floats.
    """
    q, k = np.shape(query), np.shape(key)
    if len(q) < 2 or len(k) < 2:
        raise ValueError(
            f"query and key need at least two axes, (T, D) and (S, D); their shapes are {q} and {k}"
        )
    if q[:-2] != k[:-2]:
        raise ValueError(f"batch and heads differ: the query has {q[:-2]}, the key {k[:-2]}")
    if q[-1] != k[-1]:
        raise ValueError(f"a query of {q[-1]} numbers cannot be compared with a key of {k[-1]}")
    if 0 in q or 0 in k:
        raise ValueError(f"attention needs at least 1 query and 1 key; their shapes are {q} and {k}")
    if mask is None:
        return
    shape, scores = np.shape(mask), (*q[:-1], k[-2])
    if as_array(mask).dtype.kind != "f":
        raise TypeError(
            f"a mask is added to the scores: floats, 0 or -inf for instance, not {as_array(mask).dtype}"
        )
    fits = [m in (1, n) for m, n in zip(shape[::-1], scores[::-1], strict=False)]
    if len(shape) > len(scores) or not all(fits):
        raise ValueError(f"a mask of shape {shape} does not broadcast to the scores' shape {scores}")


# %% [markdown]
"""
## Weights for tensors

Now the two parts meet: the caller's mask, the causal rule, or both, and `weigh_keys`, called through `apply` so that gradients are recorded.

**Task (8 points).** Write `attention_weights(query, key, mask=None, causal=False)`, which returns a Tensor:

1. if `causal`, the mask to use is the causal one for T queries and S keys, plus `mask` if there is one;
2. a single query is the newest token and sees everything, so with T = 1 the causal mask would be all zeros: skip it, because a model that writes asks with one query at a time. T > S must still be an error; `causal_mask` raises it, since T > S ≥ 1 means T > 1;
3. call `apply(weigh_keys, ...)` with query, key and, if there is one, the mask: `apply` does not accept `None`. About 6 lines.
"""


# %% nbgrader={"grade": false, "grade_id": "attention-weights", "locked": false, "schema_version": 3, "solution": true}
#| export
def attention_weights(
    query: Tensor, key: Tensor, mask: ArrayLike | None = None, causal: bool = False
) -> Tensor:
    """(B, H, T, D), (B, H, S, D) -> (B, H, T, S): each query's weights of the keys; rows sum to 1.

    mask: floats added to the scores, broadcastable to (B, H, T, S).
    causal: the T queries are the last T of the S positions, and none sees a later one.
    A query that the mask leaves without any key has weights of 0.
    Raises ValueError for shapes that do not fit and for T > S with `causal`.
    """
    check_attention(query, key, mask)
    ### BEGIN SOLUTION
    T, S = query.shape[-2], key.shape[-2]
    if causal and T > 1:
        future = causal_mask(T, S)
        mask = future if mask is None else mask + future
    if mask is None:
        return apply(weigh_keys, query, key)
    return apply(weigh_keys, query, key, mask)
    ### END SOLUTION


# %% [markdown]
"""
Queries of zeros fit every key equally, so each gives equal weights to what it may see. With three tokens and the causal rule: a staircase of 1, ½, ⅓.
"""

# %%
attention_weights(Tensor(np.zeros((3, 2))), Tensor(np.ones((3, 2))), causal=True)

# %% nbgrader={"grade": true, "grade_id": "test-attention-weights", "locked": true, "points": 8, "schema_version": 3, "solution": false}
### BEGIN HIDDEN TESTS
own = {name: globals().get(name) for name in ("weigh_keys", "causal_mask")}


def weigh_keys(query, key, mask=0.0):
    parts = np.exp(np.einsum("...td,...sd->...ts", query, key) / query.shape[-1] ** 0.5 + mask)
    return parts / parts.sum(axis=-1, keepdims=True)


def causal_mask(num_queries, num_keys):
    if num_queries > num_keys:
        raise ValueError(f"{num_queries} queries, {num_keys} keys")
    return np.triu(np.full((num_queries, num_keys), -np.inf, np.float32), num_keys - num_queries + 1)


### END HIDDEN TESTS
zeros, ones = Tensor(np.zeros((3, 2))), Tensor(np.ones((3, 2)))
weights = attention_weights(zeros, ones)
assert isinstance(weights, Tensor), f"the result should be a Tensor, yours is a {type(weights).__name__}"
assert np.allclose(weights.data, 1 / 3), f"without a mask all 3 weights are equal, yours:\n{weights.data}"
weights = attention_weights(zeros, ones, causal=True)
assert np.allclose(weights.data[1], [0.5, 0.5, 0]), f"token 1 sees tokens 0 and 1, yours: {weights.data[1]}"
weights = attention_weights(zeros, ones, mask=np.array([0, -np.inf, 0], np.float32))
assert np.allclose(weights.data, [0.5, 0, 0.5]), f"the mask hides key 1 everywhere, yours:\n{weights.data}"
weights = attention_weights(zeros, ones, mask=np.array([[0], [0], [0.0]]), causal=True)
assert np.allclose(weights.data[0], [1, 0, 0]), "with a mask and causal=True both rules hold"
try:
    attention_weights(ones, Tensor(np.ones((2, 2))), causal=True)
except ValueError:
    pass
else:
    raise AssertionError("3 queries cannot be the last of 2 positions: causal=True should raise a ValueError")
### BEGIN HIDDEN TESTS
rng = np.random.default_rng(4)
q, k = (Tensor(rng.standard_normal((2, 4, n, 6))) for n in (3, 5))
bias = rng.standard_normal((2, 1, 3, 5)).astype(np.float32)
for mask in (None, bias):
    for causal in (False, True):
        got = attention_weights(q, k, mask, causal).data
        want = np.zeros((2, 4, 3, 5))
        for b, h, t in np.ndindex(2, 4, 3):
            seen = range(5 - 3 + t + 1) if causal else range(5)
            score = {
                s: q.data[b, h, t] @ k.data[b, h, s] / 6**0.5 + (0 if mask is None else bias[b, 0, t, s])
                for s in seen
            }
            total = sum(math.exp(x) for x in score.values())
            for s, x in score.items():
                want[b, h, t, s] = math.exp(x) / total
        assert np.allclose(got, want, rtol=1e-4, atol=1e-6), (
            f"wrong for {'a mask' if mask is bias else 'no mask'}, {causal=}"
        )
one = attention_weights(q[:, :, -1:], k, causal=True).data
assert (one > 0).all(), "a single query is the newest token and sees every key"
before = bias.copy()
attention_weights(q, k, bias, causal=True)
assert np.array_equal(bias, before), "the mask that was passed in must stay as it is"
globals().update(own)
### END HIDDEN TESTS

# %% [markdown]
"""
## The answer: a mean of the values

What a token *offers* need not be what it is found *by*, so the values are separate from the keys: a library finds a book by its catalogue card and hands out the book. The values may even have a width of their own; here it is D as well.

The answer is the weights, multiplied by the values: one line, and it is yours. For a long text there is a catch. The weights are T × S numbers per head, and under the causal rule almost half of them are computed only to be thrown away. So when a model reads a long prompt without recording gradients, the given helper cuts the queries into blocks of 128. A block looks at the keys up to its own last position and no further: for a long text that is about half the work, and no more than 128 × S weights of a head exist at a time. (FlashAttention, Dao et al. 2022, arXiv:2205.14135, cuts the keys into blocks too. It keeps a running maximum and a running sum for each query, so that not even a whole row exists at once.) When gradients are recorded, every weight is needed again on the way back, and nothing is cut.
"""


# %%
#| export
QUERY_BLOCK = 128


def attend_in_blocks(query: Tensor, key: Tensor, value: Tensor, mask: ArrayLike | None = None) -> Tensor:
    """(..., T, D), (..., S, D), (..., S, D) -> (..., T, D): causal attention, QUERY_BLOCK queries at a time.

    mask: as for `attention_weights`. Nothing is recorded for gradients.
    """
    check_attention(query, key, mask)
    query, key, value = (x.data if isinstance(x, Tensor) else as_array(x) for x in (query, key, value))
    T, S = query.shape[-2], key.shape[-2]
    if mask is not None:
        mask = as_array(mask)
        mask = np.broadcast_to(mask, np.broadcast_shapes(mask.shape, (T, S)))
    answer = np.empty((*query.shape[:-1], value.shape[-1]), query.dtype)
    for start in range(0, T, QUERY_BLOCK):
        stop = min(start + QUERY_BLOCK, T)
        seen = S - T + stop
        visible = causal_mask(stop - start, seen)
        if mask is not None:
            visible = visible + mask[..., start:stop, :seen]
        weights = weigh_keys(query[..., start:stop, :], key[..., :seen, :], visible)
        answer[..., start:stop, :] = np.matmul(weights, value[..., :seen, :])
    return Tensor(answer, dtype=answer.dtype)


# %% [markdown]
"""
**Task (8 points).** Write the last line of `scaled_dot_product_attention`: the weights, multiplied by the values, (..., T, S) @ (..., S, D). The lines above yours are given: they check that each key has a value, handle queries that share keys (explained after the heads), and send long prompts to `attend_in_blocks`.
"""


# %% nbgrader={"grade": false, "grade_id": "sdpa", "locked": false, "schema_version": 3, "solution": true}
#| export
def scaled_dot_product_attention(
    query: Tensor, key: Tensor, value: Tensor, mask: ArrayLike | None = None, causal: bool = False
) -> Tensor:
    """(B, H, T, D), (B, H, S, D), (B, H, S, D) -> (B, H, T, D): each query's weighted mean of the values.

    mask, causal: as for `attention_weights` (Vaswani et al. 2017). Raises ValueError for unfit shapes.
    Queries (B, H, G, T, D) share each key and value among G of them -> (B, H, G, T, D); see `share_keys`.
    """
    if np.shape(key)[:-1] != np.shape(value)[:-1]:
        raise ValueError(
            f"each key needs one value: keys have shape {np.shape(key)}, values {np.shape(value)}"
        )
    if np.ndim(query) == 5 and np.ndim(key) == 4:
        B, H, G, T, D = query.shape
        if T == 1 and mask is None and key.shape[2] <= FEW_KEYS:
            answer = scaled_dot_product_attention(query.reshape(B, H, G, D), key, value)
            return answer.reshape(B, H, G, 1, -1)
        key, value, mask = share_keys(key, value, mask, group=G)
    if causal and QUERY_BLOCK < query.shape[-2] <= key.shape[-2]:
        if not any(isinstance(x, Tensor) and x.requires_grad for x in (query, key, value, mask)):
            return attend_in_blocks(query, key, value, mask)
    ### BEGIN SOLUTION
    return attention_weights(query, key, mask, causal) @ value
    ### END SOLUTION


# %% [markdown]
"""
The keys are 0 and ln 3 once more, so the weights are ¼ and ¾. The values are 0 and 100. What is the answer?
"""

# %%
scaled_dot_product_attention(Tensor([[1.0]]), Tensor([[0.0], [math.log(3)]]), Tensor([[0.0], [100.0]]))

# %% nbgrader={"grade": true, "grade_id": "test-sdpa", "locked": true, "points": 8, "schema_version": 3, "solution": false}
### BEGIN HIDDEN TESTS
own = globals().get("attention_weights")


def attention_weights(query, key, mask=None, causal=False):
    scores = np.einsum("...td,...sd->...ts", query.data, key.data) / query.shape[-1] ** 0.5
    scores = scores + (0 if mask is None else mask)
    if causal:
        T, S = scores.shape[-2:]
        scores = np.where(np.tri(T, S, S - T, dtype=bool), scores, -np.inf)
    parts = np.exp(scores)
    return Tensor(parts / parts.sum(axis=-1, keepdims=True))


### END HIDDEN TESTS
q, k, v = Tensor(np.zeros((3, 2))), Tensor(np.ones((3, 2))), Tensor([[1.0, 0], [3.0, 0], [8.0, 3]])
answer = scaled_dot_product_attention(q, k, v)
assert answer.shape == (3, 2), f"3 queries and values of width 2 give (3, 2), yours: {answer.shape}"
assert np.allclose(answer.data, [4, 1]), (
    f"with equal weights the answer is the mean, (4, 1); yours: {answer.data[0]}"
)
answer = scaled_dot_product_attention(q, k, v, causal=True)
assert np.allclose(answer.data, [[1, 0], [2, 0], [4, 1]]), (
    f"causal answers are means of the values so far, yours:\n{answer.data}"
)
answer = scaled_dot_product_attention(q, k, v, mask=np.array([0, 0, -np.inf], np.float32))
assert np.allclose(answer.data, [2, 0]), (
    f"with the last key masked the mean is (2, 0), yours: {answer.data[0]}"
)
### BEGIN HIDDEN TESTS
rng = np.random.default_rng(5)
q, k, v = (Tensor(rng.standard_normal((2, 4, n, 6))) for n in (3, 5, 5))
bias = rng.standard_normal((2, 1, 1, 5)).astype(np.float32)
got = scaled_dot_product_attention(q, k, v, bias, True).data
want = np.zeros((2, 4, 3, 6))
for b, h, t in np.ndindex(2, 4, 3):
    parts = [math.exp(q.data[b, h, t] @ k.data[b, h, s] / 6**0.5 + bias[b, 0, 0, s]) for s in range(t + 3)]
    for s, part in enumerate(parts):
        want[b, h, t] += part / sum(parts) * v.data[b, h, s]
assert np.allclose(got, want, rtol=1e-4, atol=1e-5), (
    "wrong for 2 texts, 4 heads, 3 queries, 5 keys, a mask and causal"
)
attention_weights = own
### END HIDDEN TESTS

# %% [markdown]
"""
## A head set by hand

Training finds queries and keys; to see what they can do, set some yourself. Give position j the key (cos θj, sin θj), a point on a circle. Give position i the point of i − 1 as its query, made long so that the softmax becomes sharp. Then the query of position i fits the key of position i − 1 best: this head reads the previous token, wherever it stands. Trained models have such heads too; Olsson et al. 2022 (arXiv:2209.11895) call them *previous token heads* and show what they are good for.
"""

# %%
angle = 0.5 * np.arange(10)
keys = np.stack([np.cos(angle), np.sin(angle)], axis=-1)
queries = 30 * np.stack([np.cos(angle - 0.5), np.sin(angle - 0.5)], axis=-1)
look_back = attention_weights(Tensor(queries), Tensor(keys), causal=True).data
look_back.argmax(axis=-1)

# %% [markdown]
"""
Row i of the picture shows the weights that position i gives to each position. The bright line lies one place to the left of the diagonal; position 0 has no token before it and can only look at itself.
"""


# %%
def plot_weights(weights):
    import matplotlib.pyplot as plt

    plt.imshow(weights, cmap="viridis", vmin=0, vmax=1)
    plt.colorbar(label="weight")
    plt.gca().set(xlabel="key position", ylabel="query position", title="a head that looks one token back")
    plt.show()


# %%
if "get_ipython" in globals():
    plot_weights(look_back)

# %% [markdown]
"""
## Several heads

One softmax gives one mixture. In "The animal did not cross the street because *it* was too tired", to understand *it* you want both the noun it stands for and the verb. A single look-up would have to mix the two. So the C numbers of a token are cut into H pieces of D = C / H, and each piece, a *head*, does its own look-up.

The heads then form one more axis, treated like the batch. NumPy's matrix product works on the last two axes, so heads must stand in front of the tokens: (B, T, C) becomes (B, H, T, D). This takes two steps, and their order matters: first cut C into H × D (`reshape`), then swap the axes T and H (`transpose`). Reshaping straight to (B, H, T, D) gives the right shape and the wrong numbers: a head would get whole tokens instead of a piece of every token.

**Task (8 points).** Write `split_heads(x, num_heads)` for an array. Raise a `ValueError` with both numbers if C cannot be cut into `num_heads` equal pieces. About 4 lines.
"""


# %% nbgrader={"grade": false, "grade_id": "split-heads", "locked": false, "schema_version": 3, "solution": true}
#| export
def split_heads(x: np.ndarray, num_heads: int) -> np.ndarray:
    """(B, T, C) -> (B, H, T, D), where C = H * D. Raises ValueError if C is not divisible by num_heads."""
    ### BEGIN SOLUTION
    B, T, C = x.shape
    if C % num_heads:
        raise ValueError(f"{C} numbers cannot be cut into {num_heads} equal heads")
    return x.reshape(B, T, num_heads, C // num_heads).transpose(0, 2, 1, 3)
    ### END SOLUTION


# %% [markdown]
"""
Two tokens of six numbers: 0 to 5 and 10 to 15. Two heads: the first should hold 0 1 2 and 10 11 12.
"""

# %%
split_heads(np.array([[[0, 1, 2, 3, 4, 5], [10, 11, 12, 13, 14, 15]]]), 2)

# %% nbgrader={"grade": true, "grade_id": "test-split-heads", "locked": true, "points": 8, "schema_version": 3, "solution": false}
x = np.array([[[0, 1, 2, 3, 4, 5], [10, 11, 12, 13, 14, 15]]])
heads = split_heads(x, 2)
assert heads.shape == (1, 2, 2, 3), f"(1, 2, 6) in 2 heads is (1, 2, 2, 3), yours is {heads.shape}"
assert heads[0, 0, 1].tolist() == [10, 11, 12], (
    f"head 0 of token 1 is the first half of token 1, [10, 11, 12]; yours is {heads[0, 0, 1].tolist()}. "
    "Reshape to (B, T, H, D) first, then swap T and H"
)
assert heads[0, 1, 0].tolist() == [3, 4, 5], (
    f"head 1 of token 0 is [3, 4, 5], yours: {heads[0, 1, 0].tolist()}"
)
try:
    split_heads(np.zeros((1, 2, 6)), 4)
except ValueError as error:
    assert "6" in str(error) and "4" in str(error), f"the message should hold 6 and 4, yours: {error}"
else:
    raise AssertionError("6 numbers cannot be cut into 4 equal heads: raise a ValueError")
### BEGIN HIDDEN TESTS
x = np.random.default_rng(6).standard_normal((2, 3, 20))
heads = split_heads(x, 4)
assert heads.shape == (2, 4, 3, 5)
for b, h, t in np.ndindex(2, 4, 3):
    assert np.array_equal(heads[b, h, t], x[b, t, 5 * h : 5 * h + 5]), (
        f"wrong numbers for text {b}, head {h}, token {t}"
    )
### END HIDDEN TESTS

# %% [markdown]
"""
**Task (8 points).** Write `merge_heads(x)`, the way back: (B, H, T, D) to (B, T, C), the heads of each token side by side again. `merge_heads(split_heads(x, H))` is x. About 2 lines.
"""


# %% nbgrader={"grade": false, "grade_id": "merge-heads", "locked": false, "schema_version": 3, "solution": true}
#| export
def merge_heads(x: np.ndarray) -> np.ndarray:
    """(B, H, T, D) -> (B, T, C), where C = H * D: the heads of each token side by side."""
    ### BEGIN SOLUTION
    B, H, T, D = x.shape
    return x.transpose(0, 2, 1, 3).reshape(B, T, H * D)
    ### END SOLUTION


# %%
merge_heads(np.array([[[[0, 1, 2], [10, 11, 12]], [[3, 4, 5], [13, 14, 15]]]]))

# %% nbgrader={"grade": true, "grade_id": "test-merge-heads", "locked": true, "points": 8, "schema_version": 3, "solution": false}
x = np.array([[[[0, 1, 2], [10, 11, 12]], [[3, 4, 5], [13, 14, 15]]]])
merged = merge_heads(x)
assert merged.shape == (1, 2, 6), f"2 heads of (2, 3) merge into (1, 2, 6), yours is {merged.shape}"
assert merged[0, 1].tolist() == [10, 11, 12, 13, 14, 15], (
    f"token 1 is [10, 11, 12] of head 0 and [13, 14, 15] of head 1, yours: {merged[0, 1].tolist()}"
)
### BEGIN HIDDEN TESTS
x = np.random.default_rng(7).standard_normal((2, 4, 3, 5))
merged = merge_heads(x)
assert merged.shape == (2, 3, 20)
for b, h, t in np.ndindex(2, 4, 3):
    assert np.array_equal(merged[b, t, 5 * h : 5 * h + 5], x[b, h, t]), (
        f"wrong numbers for text {b}, head {h}, token {t}"
    )
### END HIDDEN TESTS

# %% [markdown]
"""
Neither of the two computes anything: every number only changes its place. So the gradient of each is the other, and their given rules for module 05 are one line each.
"""


# %%
#| export
@gradient_of(split_heads)
def _(grad, output, x, num_heads):
    return (merge_heads(grad),)


@gradient_of(merge_heads)
def _(grad, output, x):
    return (split_heads(grad, x.shape[1]),)


# %% [markdown]
"""
## Queries that share keys

Nothing says that every query head needs keys of its own: G query heads may ask different questions of the same keys. Large models do that, because keys and values are what has to be kept while a text is written (Shazeer 2019, arXiv:1911.02150; Ainslie et al. 2023, arXiv:2305.13245). Such queries have one more axis for the group, (B, H, G, T, D), and meet keys (B, H, S, D). The given `share_heads` shows the same keys to the whole group through a view whose step along G is 0 bytes, so nothing is copied. What remains is ordinary attention with one more axis in front, and `scaled_dot_product_attention` treats it so. A single new token is simpler still: with T = 1 the group can take the place of T, and one product per head replaces G. That is faster as long as there are few keys; with 3 key heads of 64 numbers the two ways took the same time at about 400 keys (NumPy 2.4, two cores).
"""


# %%
#| export
FEW_KEYS = 400  # up to so many, the group of a single token is faster in one product


def share_heads(x: np.ndarray, group: int) -> np.ndarray:
    """(B, H, S, D) -> (B, H, group, S, D): each head is seen `group` times; a view, nothing is copied."""
    B, H, S, D = x.shape
    return np.broadcast_to(x[:, :, None], (B, H, group, S, D))


@gradient_of(share_heads)
def _(grad, output, x, group):
    return (grad.sum(axis=2),)


def share_keys(key: Tensor, value: Tensor, mask: ArrayLike | None, group: int) -> tuple:
    """(B, H, S, D) twice and a mask -> the same for queries (B, H, group, T, D).

    mask: broadcastable to (B, H, T, S), the same for the whole group, or to (B, H, group, T, S).
    """
    key, value = (apply(share_heads, x, group=group) for x in (key, value))
    if np.ndim(mask) in (3, 4):
        mask = (mask if isinstance(mask, Tensor) else as_array(mask))[..., None, :, :]
    return key, value, mask


# %% [markdown]
"""
## The layer

Where do queries, keys and values come from? From the tokens themselves, through three learned linear layers: "what I look for", "what I can be found by", "what I have to say". A fourth linear layer at the end lets the heads mix. That is the whole layer, and it has three steps: `project`, look up, `merge`. The first and the last are methods of their own because a look-up can be done in more than one way, and another way can reuse both.

The constructor is given; the names of the four layers are the names under which weights are saved in files. So is `whole_number`, which raises a readable error for a width of 0 or of 2.5.

**Task (4 + 4 + 6 points).**

- `project(x)`: (B, T, C) to the queries, keys and values, in this order, each through its own layer and then split into heads, with `apply(split_heads, ..., num_heads=...)`, which records gradients. About 2 lines.
- `merge(heads)`: (B, H, T, D) to (B, T, C): merge the heads, again with `apply`, then the output layer. 1 line.
- `forward(x, mask=None)`: project, attend with the mask and with `self.causal`, merge. About 3 lines.
"""


# %%
#| export
def whole_number(name: str, value: Any, at_least: int) -> int:
    """-> value as an int. TypeError if it is not a whole number, ValueError if it is below `at_least`."""
    if isinstance(value, (bool, np.bool_)) or not isinstance(value, (int, np.integer)):
        raise TypeError(f"{name} should be a whole number, got {value!r}")
    if value < at_least:
        raise ValueError(f"{name} should be at least {at_least}, got {value}")
    return int(value)


# %% nbgrader={"grade": false, "grade_id": "multi-head-attention", "locked": false, "schema_version": 3, "solution": true}
#| export
class MultiHeadAttention(Module):
    """(B, T, C) -> (B, T, C): each token looks at the tokens of its text, in several heads at once.

    Vaswani et al. 2017, section 3.2.2.
    """

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        *,
        causal: bool = False,
        rng: np.random.Generator | int | None = None,
    ):
        """causal: no token sees a later one. rng: a seed or numpy Generator for the weights.

        Raises ValueError if embed_dim is not divisible by num_heads or a size is below 1, TypeError if a size
        is not a whole number.
        """
        embed_dim = whole_number("embed_dim", embed_dim, 1)
        num_heads = whole_number("num_heads", num_heads, 1)
        if embed_dim % num_heads:
            raise ValueError(f"embed_dim {embed_dim} is not divisible by num_heads {num_heads}")
        self.embed_dim, self.num_heads, self.head_dim = embed_dim, num_heads, embed_dim // num_heads
        self.causal = causal
        rng = np.random.default_rng(rng)
        self.q_proj = Linear(embed_dim, embed_dim, rng=rng)
        self.k_proj = Linear(embed_dim, embed_dim, rng=rng)
        self.v_proj = Linear(embed_dim, embed_dim, rng=rng)
        self.out_proj = Linear(embed_dim, embed_dim, rng=rng)

    def project(self, x: Tensor) -> tuple[Tensor, ...]:
        """(B, T, C) -> queries, keys and values, each (B, H, T, D). Raises ValueError for another shape."""
        shape = np.shape(x)
        if len(shape) != 3 or shape[-1] != self.embed_dim or 0 in shape:
            raise ValueError(f"attention takes (B, T, {self.embed_dim}) with at least 1 token, got {shape}")
        x = x if isinstance(x, Tensor) else Tensor(x)
        ### BEGIN SOLUTION
        layers = self.q_proj, self.k_proj, self.v_proj
        return tuple(apply(split_heads, layer(x), num_heads=self.num_heads) for layer in layers)
        ### END SOLUTION

    def merge(self, heads: Tensor) -> Tensor:
        """(B, H, T, D) -> (B, T, C): the heads side by side, mixed by the output layer."""
        ### BEGIN SOLUTION
        return self.out_proj(apply(merge_heads, heads))
        ### END SOLUTION

    def forward(self, x: Tensor, mask: ArrayLike | None = None) -> Tensor:
        """(B, T, C) -> (B, T, C). mask: floats added to the scores, broadcastable to (B, H, T, T)."""
        ### BEGIN SOLUTION
        query, key, value = self.project(x)
        heads = scaled_dot_product_attention(query, key, value, mask, self.causal)
        return self.merge(heads)
        ### END SOLUTION


# %% [markdown]
"""
Five tokens of eight numbers, in two heads. The output has the shape of the input, so layers like this one can be stacked.
"""

# %%
attention = MultiHeadAttention(8, 2, causal=True, rng=0)
x = Tensor(np.random.default_rng(1).standard_normal((1, 5, 8)))
[y.shape for y in (*attention.project(x), attention(x))]

# %% nbgrader={"grade": false, "grade_id": "recording", "locked": true, "schema_version": 3, "solution": false}
from contextlib import contextmanager

from tinytorch.core.autograd import enable_autograd
from tinytorch.core.tensor import set_recorder


@contextmanager
def recording():
    """Records gradients inside the block and restores the state before it afterwards. For the tests."""
    before = set_recorder(None)
    enable_autograd()
    try:
        yield
    finally:
        set_recorder(before)


# %% nbgrader={"grade": true, "grade_id": "test-mha-project", "locked": true, "points": 4, "schema_version": 3, "solution": false}
### BEGIN HIDDEN TESTS
own = globals().get("split_heads")


def split_heads(x, num_heads):
    if isinstance(x, Tensor):
        return apply(split_heads, x, num_heads=num_heads)
    return np.stack(np.split(x, num_heads, axis=-1), axis=1)


@gradient_of(split_heads)
def _(grad, output, x, num_heads):
    return (np.concatenate([grad[:, h] for h in range(num_heads)], axis=-1),)


### END HIDDEN TESTS
attention = MultiHeadAttention(8, 2, rng=0)
x = Tensor(np.random.default_rng(2).standard_normal((2, 3, 8)))
projected = attention.project(x)
assert len(projected) == 3, f"project returns 3 things, queries, keys and values; yours {len(projected)}"
for name, layer, got in zip(
    "qkv", (attention.q_proj, attention.k_proj, attention.v_proj), projected, strict=True
):
    assert got.shape == (2, 2, 3, 4), f"{name} should have shape (2, 2, 3, 4), yours has {got.shape}"
    want = x.data[1, 2] @ layer.weight.data[4:].T  # text 1, token 2, head 1
    assert np.allclose(got.data[1, 1, 2], want, atol=1e-5), (
        f"{name} does not come from {name}_proj and split_heads"
    )
### BEGIN HIDDEN TESTS
attention = MultiHeadAttention(12, 3, rng=1)
rng = np.random.default_rng(3)
for p in attention.parameters():
    p.data[...] = rng.standard_normal(p.shape)
x = rng.standard_normal((2, 5, 12)).astype(np.float32)
for layer, got in zip(
    (attention.q_proj, attention.k_proj, attention.v_proj), attention.project(x), strict=True
):
    for b, h, t, d in np.ndindex(2, 3, 5, 4):
        want = x[b, t] @ layer.weight.data[4 * h + d] + layer.bias.data[4 * h + d]
        assert abs(got.data[b, h, t, d] - want) < 1e-4, f"wrong for text {b}, head {h}, token {t}"
with recording():
    x = Tensor(x, requires_grad=True)
    attention.project(x)[1].sum().backward()
want = attention.k_proj.weight.data.sum(axis=0)
assert x.grad is not None and np.allclose(x.grad[1, 2], want, atol=1e-4), (
    "the gradient should reach x: use apply"
)
split_heads = own
### END HIDDEN TESTS

# %% nbgrader={"grade": true, "grade_id": "test-mha-merge", "locked": true, "points": 4, "schema_version": 3, "solution": false}
### BEGIN HIDDEN TESTS
own = globals().get("merge_heads")


def merge_heads(x):
    if isinstance(x, Tensor):
        return apply(merge_heads, x)
    return np.concatenate([x[:, h] for h in range(x.shape[1])], axis=-1)


@gradient_of(merge_heads)
def _(grad, output, x):
    return (np.stack(np.split(grad, x.shape[1], axis=-1), axis=1),)


### END HIDDEN TESTS
attention = MultiHeadAttention(8, 2, rng=0)
heads = Tensor(np.random.default_rng(4).standard_normal((2, 2, 3, 4)))
merged = attention.merge(heads)
assert merged.shape == (2, 3, 8), f"(2, 2, 3, 4) merges into (2, 3, 8), yours is {merged.shape}"
want = np.concatenate([heads.data[1, 0, 2], heads.data[1, 1, 2]]) @ attention.out_proj.weight.data.T
assert np.allclose(merged.data[1, 2], want, atol=1e-5), "put the heads side by side, then apply out_proj"
### BEGIN HIDDEN TESTS
attention = MultiHeadAttention(12, 3, rng=1)
rng = np.random.default_rng(5)
for p in attention.parameters():
    p.data[...] = rng.standard_normal(p.shape)
heads = Tensor(rng.standard_normal((2, 3, 5, 4)))
merged = attention.merge(heads)
for b, t, c in np.ndindex(2, 5, 12):
    want = attention.out_proj.bias.data[c]
    for h, d in np.ndindex(3, 4):
        want = want + heads.data[b, h, t, d] * attention.out_proj.weight.data[c, 4 * h + d]
    assert abs(merged.data[b, t, c] - want) < 1e-4, f"wrong for text {b}, token {t}"
with recording():
    heads = Tensor(heads.data, requires_grad=True)
    attention.merge(heads).sum().backward()
want = attention.out_proj.weight.data.sum(axis=0)[4:8]
assert heads.grad is not None and np.allclose(heads.grad[1, 1, 2], want, atol=1e-4), (
    "the gradient should reach the heads: use apply"
)
merge_heads = own
### END HIDDEN TESTS

# %% nbgrader={"grade": true, "grade_id": "test-mha-forward", "locked": true, "points": 6, "schema_version": 3, "solution": false}
### BEGIN HIDDEN TESTS
own = globals().get("scaled_dot_product_attention")


def scaled_dot_product_attention(query, key, value, mask=None, causal=False):
    scores = query.data @ key.data.swapaxes(-1, -2) / query.shape[-1] ** 0.5
    scores = scores + (0 if mask is None else mask)
    if causal:
        scores = np.where(
            np.tri(*scores.shape[-2:], scores.shape[-1] - scores.shape[-2], dtype=bool), scores, -np.inf
        )
    parts = np.exp(scores)
    return Tensor(parts / parts.sum(axis=-1, keepdims=True) @ value.data)


### END HIDDEN TESTS
rng = np.random.default_rng(6)
q, k, v = (Tensor(rng.standard_normal((1, 2, 3, 4))) for _ in range(3))
for causal in (False, True):
    attention = MultiHeadAttention(8, 2, causal=causal)
    attention.project = lambda x: (q, k, v)  # stand-ins: this test is about what forward does with them
    attention.merge = lambda heads: heads * 10
    for hidden in (None, 0):  # no mask, and one that hides key 0 from the others
        mask = None if hidden is None else np.array([[0, 0, 0], [-np.inf, 0, 0], [-np.inf, 0, 0]], np.float32)
        seen = [s for s in (range(2) if causal else range(3)) if s != hidden]
        parts = [math.exp(q.data[0, 1, 1] @ k.data[0, 1, s] / 2) for s in seen]
        want = 10 * sum(p / sum(parts) * v.data[0, 1, s] for p, s in zip(parts, seen, strict=True))
        got = attention.forward(Tensor(np.zeros((1, 3, 8))), mask).data[0, 1, 1]
        where = f"with causal={causal} and {'no mask' if mask is None else 'a mask'}"
        assert np.allclose(got, want, atol=1e-4), (
            f"{where}: project, attend, merge should give {want}, yours {got}"
        )
### BEGIN HIDDEN TESTS
scaled_dot_product_attention = own
### END HIDDEN TESTS

# %% [markdown]
"""
## Does it keep its promises?

*No look into the future.* Change the last of five tokens and compare all outputs: only the last may differ, and the others must be equal to the last bit, not just nearly.
"""

# %%
attention = MultiHeadAttention(8, 2, causal=True, rng=0)
tokens = np.random.default_rng(1).standard_normal((1, 5, 8))
changed = tokens.copy()
changed[0, 4] += 1
np.abs(attention(changed).data - attention(tokens).data).max(axis=-1)

# %% [markdown]
"""
*Heads add no weights.* More heads mean more look-ups, but the four layers have C² + C numbers each, whatever H is. For C = 8 that is 4 · (64 + 8) = 288.
"""

# %%
[sum(p.size for p in MultiHeadAttention(8, num_heads).parameters()) for num_heads in (1, 2, 4, 8)]

# %% [markdown]
"""
*The price.* Each of T tokens is compared with T tokens. These are the megabytes of attention weights, in float32, that one layer of the smallest GPT-2, with 12 heads, computes for one text of T tokens: twice the text, four times the memory.
"""

# %%
{T: 12 * T * T * 4 / 1e6 for T in (128, 256, 512, 1024)}

# %% [markdown]
"""
*Padding.* Two texts of different lengths can share a batch if the shorter one is filled up, before or after its tokens. The filling must not be looked at, so it is hidden by a mask of shape (B, 1, 1, S), broadcast over heads and queries. Here the second text has two real tokens; whatever follows them, its first two outputs stay the same.
"""

# %%
attention = MultiHeadAttention(8, 2, rng=0)
padding = np.zeros((2, 1, 1, 5), np.float32)
padding[1, ..., 2:] = -np.inf
texts = np.random.default_rng(7).standard_normal((2, 5, 8))
other = texts.copy()
other[1, 2:] = 100
np.abs(attention(other, padding).data - attention(texts, padding).data).max(axis=-1).round(3)[:, :2]

# %% [markdown]
"""
## In your own words

**Question 1 (5 points).** Suppose a friend leaves out the division by √D, once in a model with heads of width 4 and once in one with heads of width 64. In which of them does learning suffer more at the beginning, and why? Explain it with the gradient that you wrote, `w * (g - sum(g * w))`, and the table that the first cell printed. Four to six sentences.
"""

# %% [markdown] nbgrader={"grade": true, "grade_id": "why-scale", "locked": false, "points": 5, "schema_version": 3, "solution": true}
"""
Your answer here.
"""

# %% [markdown]
"""
**Question 2 (5 points).** Suppose a language model is trained without the causal mask. What do you expect of the training loss and of the text that the model writes, and why do the two tell opposite stories? Then say why, with the mask, one pass over a text of T tokens trains on T predictions at once. Four to six sentences.
"""

# %% [markdown] nbgrader={"grade": true, "grade_id": "why-causal", "locked": false, "points": 5, "schema_version": 3, "solution": true}
"""
Your answer here.
"""

# %% [markdown]
"""
## You can now

look up softly, mask by absolute position, carry the gradient back through a softmax and a product, and let several heads work on one text without a loop. Every transformer has this layer at its heart.

Two exercises. First, write a mask that lets each of 10 tokens see only itself and the 3 tokens before it, and look at the weights with `plot_weights`. Second, attention without `causal` does not know the order of the tokens: show that shuffling the tokens of a text shuffles the outputs and changes nothing else. Then add to the scores, through `mask`, a bias of −0.5 for each position of distance (ALiBi, for earlier keys only: Press, Smith and Lewis 2022, arXiv:2108.12409), and show that a shuffle now changes the outputs, but reversing the text still only reverses them. Why?

Next: in module 13 the layer gets a partner, a small network that treats each token alone; the two are stacked, and the stack learns to write.
"""
