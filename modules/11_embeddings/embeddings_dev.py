# %% [markdown]
"""
# Module 11: Embeddings

The tokenizer turned text into numbers, but not into numbers that you can calculate with. Token 17 is not a little more than token 16, nor half of token 34: the ids are names. A model needs a row of features for each name, and also something for each *position* in the text, because attention, which comes next, treats its tokens as a set without order. This module makes both.

After this module you will be able to

- look up rows of a table, refuse ids that are not in it, and say why -1 is the dangerous one;
- send slopes back to the rows that were used, quickly, even if one id was used a thousand times;
- write three ways in which transformers know positions: learned, sinusoidal, rotary;
- prove on paper and in a cell that with rotary positions a score depends on two positions only through their distance;
- convert between the two layouts of rotary pairs that are in use, and recognise the bug of mixing them.

You need modules 01, 03 and 05.
"""

# %%
#| default_exp text.embeddings

# %%
#| export
import math
from itertools import pairwise

import numpy as np
from numpy.typing import ArrayLike

from tinytorch.core.autograd import enable_autograd, gradient_of
from tinytorch.core.layers import Module, check_sizes
from tinytorch.core.tensor import Tensor, apply, as_array

# %% [markdown]
"""
## A table of rows

An embedding is a matrix of shape (V, C) with one row for each token. To embed token 17 is to take row 17. A matrix product says the same, a vector of zeros with a one at place 17 times the table, and that explains the gradient; but computing V·C products to copy C numbers would be a waste.

**Task (6 points).** Write `take_rows(weight, ids)` for arrays: ids may have any shape (...), and the result has shape (..., C). The ids are known to be valid. 1 line; `weight.take(ids, axis=0)` does what `weight[ids]` does, and with a single id, as in generation, in about a quarter of the time (1.5 and 0.3 µs on the machine where we measured).
"""


# %% nbgrader={"grade": false, "grade_id": "take-rows", "locked": false, "schema_version": 3, "solution": true}
#| export
def take_rows(weight: np.ndarray, ids: np.ndarray) -> np.ndarray:
    """(V, C), (...) ints -> (..., C): the rows of `weight` with these numbers."""
    ### BEGIN SOLUTION
    return weight.take(ids, axis=0)
    ### END SOLUTION


# %% [markdown]
"""
Here are four tokens with two features each. We take row 3, row 0, and row 3 again:
"""

# %%
four_rows = np.array([[0.0, 0.1], [1.0, 1.1], [2.0, 2.1], [3.0, 3.1]])
take_rows(four_rows, np.array([3, 0, 3]))

# %% nbgrader={"grade": true, "grade_id": "test-take-rows", "locked": true, "points": 6, "schema_version": 3, "solution": false}
table = np.array([[0.0, 0.1], [1.0, 1.1], [2.0, 2.1], [3.0, 3.1]], np.float32)
rows = take_rows(table, np.array([3, 0, 3]))
assert rows.shape == (3, 2), f"3 ids of rows with 2 features give (3, 2), yours is {rows.shape}"
assert np.allclose(rows, [[3, 3.1], [0, 0.1], [3, 3.1]]), f"rows 3, 0 and 3, yours is {rows}"
rows = take_rows(table, np.array([[1, 2, 0], [3, 3, 1]]))
assert rows.shape == (2, 3, 2), f"ids of shape (2, 3) give rows of shape (2, 3, 2), yours is {rows.shape}"
assert np.allclose(rows[0, 1], [2, 2.1]), (
    f"the id at (0, 1) is 2, so its row is 2, 2.1; yours is {rows[0, 1]}"
)
### BEGIN HIDDEN TESTS
rng = np.random.default_rng(0)
for shape in ((), (1,), (4,), (2, 3), (2, 1, 5)):
    table, ids = rng.normal(size=(7, 3)).astype(np.float32), rng.integers(0, 7, shape)
    rows = take_rows(table, ids)
    assert rows.shape == (*shape, 3) and rows.dtype == np.float32, (
        f"wrong shape or type for ids of shape {shape}"
    )
    for place in np.ndindex(*shape):
        assert rows[place].tolist() == table[int(ids[place])].tolist(), f"wrong row at {place} of ids {shape}"
    rows[...] = 0
    assert table.all(), "writing into the result must not change the table"
### END HIDDEN TESTS

# %% [markdown]
"""
## Ids outside the table

An id of V or more raises an error by itself, an IndexError about axes. An id of -1 does not: it takes the *last* row. A padding value or the "not found" of a search may be -1, and then the model reads a wrong word without any error. So the range is checked. But this happens for every generated token, so the check should make one pass and not two: read as an *unsigned* integer, a negative number is larger than any id, so a single maximum finds both mistakes.

**Task (10 points).** Write `check_rows(ids, num_rows)`: it turns ids in any form into an integer array of type `np.intp` (what NumPy indexes with), or raises

- a `TypeError` with their type, if they are not integers (booleans do not count: as an index they would be a mask);
- a `ValueError` with one wrong id and the number of rows, if an id lies outside 0 … num_rows - 1.

An empty array is allowed. About 8 lines: `as_array`, then `ids.astype(np.uint64).max()`, and `ids.min()` only if that has found a mistake, to say which id it is.
"""


# %% nbgrader={"grade": false, "grade_id": "check-rows", "locked": false, "schema_version": 3, "solution": true}
#| export
def check_rows(ids: ArrayLike, num_rows: int) -> np.ndarray:
    """Ids in any form -> intp array of the same shape, each in [0, num_rows).

    Raises TypeError if they are not integers, ValueError for an id outside, naming it and num_rows.
    """
    ### BEGIN SOLUTION
    ids = as_array(ids)
    if ids.dtype.kind not in "iu":
        raise TypeError(f"ids are integers, got {ids.dtype}")
    if ids.size and ids.astype(np.uint64).max() >= num_rows:
        wrong = ids.min() if ids.min() < 0 else ids.max()
        raise ValueError(f"id {wrong} is outside the {num_rows} rows of the table (0 to {num_rows - 1})")
    return ids.astype(np.intp, copy=False)
    ### END SOLUTION


# %%
for ids in ([[0, 3], [4, 1]], [2, -1]):
    try:
        check_rows(ids, 4)
    except ValueError as error:
        print(error)

# %% nbgrader={"grade": true, "grade_id": "test-check-rows", "locked": true, "points": 10, "schema_version": 3, "solution": false}
good = check_rows([[0, 3], [1, 2]], 4)
assert isinstance(good, np.ndarray) and good.dtype == np.intp, f"return an array of intp, yours is {good!r}"
assert np.array_equal(good, [[0, 3], [1, 2]]), f"valid ids come back as they are, yours: {good}"


def refused(kind, ids, num_rows, *words):
    try:
        check_rows(ids, num_rows)
    except (ValueError, TypeError) as error:
        assert type(error) is kind, f"raise a {kind.__name__} here, not a {type(error).__name__}: {error}"
        for word in words:
            assert word in str(error), f"the message should hold {word}, yours says: {error}"
    else:
        raise AssertionError(f"ids {ids} of a table of {num_rows} rows should raise a {kind.__name__}")


refused(ValueError, [1, 4], 4, "4")
refused(ValueError, [1, 9], 4, "9", "4")
refused(ValueError, [1, -1], 4, "-1", "4")
refused(TypeError, [1.0, 2.0], 4, "float")
### BEGIN HIDDEN TESTS
refused(TypeError, [True, False], 4, "bool")
refused(ValueError, np.array([[0, 1], [-7, 2]], np.int8), 4, "-7", "4")
refused(ValueError, np.array([255, 0], np.uint8), 200, "255", "200")
refused(ValueError, np.array(2**63 + 5, np.uint64), 4, str(2**63 + 5), "4")
for ids in (3, np.zeros((0, 2), int), np.array([3, 0], np.uint64), Tensor([1, 2]), np.array([[3]], np.int16)):
    got = check_rows(ids, 4)
    assert np.array_equal(got, np.asarray(ids)) and got.dtype == np.intp, f"{ids!r} is valid for 4 rows"
    assert got.shape == np.shape(ids), f"the shape should stay {np.shape(ids)}, yours is {got.shape}"
### END HIDDEN TESTS

# %% [markdown]
"""
## Slopes for the rows that were used

On the way back, each looked-up row brings a slope, and the slope of the table is their sum by id: a row taken twice gets both, a row not taken gets zero. Note what does *not* work: `total[ids] += slopes` with ids 3, 0, 3 reads `total[3]` twice and writes it twice, and the second write wins. One slope is lost without an error.

NumPy's `np.add.at(total, ids, slopes)` is correct, but it adds number by number. For 4,096 tokens with word-like frequencies and C = 128 it took about 8 times as long as what you will write with a vocabulary of 300, and about 3 times as long with 1,000. Sort first: then equal ids stand side by side, and each run of equal ids is one slice, whose sum NumPy computes at full speed.

**Task (14 points).** Write `sum_rows(slopes, ids, num_rows)`: slopes (..., C) and ids (...) give an array (num_rows, C) of the slopes' type.

1. Flatten ids to one axis and slopes to two.
2. `order = np.argsort(ids, kind="stable")` says which row comes first, second, ...; take ids and slopes in that order.
3. A run starts where the sorted id differs from the one before: `np.flatnonzero(np.diff(ids, prepend=-1))`. It ends where the next one starts, the last one at `len(ids)`; `pairwise` yields the pairs of neighbours in a list.
4. Sum the slices into the rows of an array of zeros.

About 8 lines. Without any ids the result is all zeros.
"""


# %% nbgrader={"grade": false, "grade_id": "sum-rows", "locked": false, "schema_version": 3, "solution": true}
#| export
def sum_rows(slopes: np.ndarray, ids: np.ndarray, num_rows: int) -> np.ndarray:
    """(..., C), (...) ints -> (num_rows, C): for each id the sum of its slopes, zero if it does not occur."""
    ### BEGIN SOLUTION
    ids, slopes = ids.reshape(-1), slopes.reshape(ids.size, slopes.shape[-1])
    order = np.argsort(ids, kind="stable")
    ids, slopes = ids[order], slopes[order]
    starts = np.flatnonzero(np.diff(ids, prepend=-1))
    bounds = np.append(starts, len(ids)).tolist()
    total = np.zeros((num_rows, slopes.shape[-1]), slopes.dtype)
    for row, (start, stop) in zip(ids[starts].tolist(), pairwise(bounds), strict=True):
        slopes[start:stop].sum(axis=0, out=total[row])
    return total
    ### END SOLUTION


# %% [markdown]
"""
Ids 3, 0, 3 bring slopes 1, 10 and 100. Which two rows are zero, and what does row 3 get?
"""

# %%
sum_rows(np.array([[1.0], [10.0], [100.0]]), np.array([3, 0, 3]), 4)

# %% nbgrader={"grade": true, "grade_id": "test-sum-rows", "locked": true, "points": 14, "schema_version": 3, "solution": false}
slopes = np.array([[1.0, 2.0], [10.0, 20.0], [100.0, 200.0]], np.float32)
total = sum_rows(slopes, np.array([3, 0, 3]), 4)
assert total.shape == (4, 2), f"a table of 4 rows with 2 features: (4, 2); yours is {total.shape}"
assert np.allclose(total[3], [101, 202]), (
    f"id 3 occurs twice, its slopes add up to 101, 202; yours is {total[3]}"
)
assert np.allclose(total[0], [10, 20]), f"id 0 occurs once, with 10, 20; yours is {total[0]}"
assert not total[1:3].any(), f"ids 1 and 2 do not occur, so their slopes are zero; yours: {total[1:3]}"
assert total.dtype == np.float32, f"float32 slopes give a float32 sum; yours is {total.dtype}"
total = sum_rows(np.ones((2, 3, 5)), np.array([[1, 1, 0], [1, 2, 0]]), 3)
assert np.allclose(total, np.repeat([[2], [3], [1]], 5, axis=1)), (
    f"ids of shape (2, 3) work too; yours: {total}"
)
### BEGIN HIDDEN TESTS
rng = np.random.default_rng(1)
for shape, num_rows, width in (
    ((40,), 6, 3),
    ((2, 3), 9, 4),
    ((5, 4, 3), 2, 1),
    ((), 3, 2),
    ((0,), 3, 2),
    ((7,), 1, 5),
):
    slopes, ids = rng.normal(size=(*shape, width)), rng.integers(0, num_rows, shape)
    kept = slopes.copy(), ids.copy()
    want = [[0.0] * width for _ in range(num_rows)]
    for place in np.ndindex(*shape):
        for column in range(width):
            want[int(ids[place])][column] += slopes[(*place, column)]
    got = sum_rows(slopes, ids, num_rows)
    assert got.shape == (num_rows, width), f"wrong shape for ids of shape {shape}: {got.shape}"
    assert np.allclose(got, want, atol=1e-12), f"wrong for ids of shape {shape} among {num_rows} rows"
    assert np.array_equal(slopes, kept[0]) and np.array_equal(ids, kept[1]), "an input was changed"
### END HIDDEN TESTS

# %% [markdown]
"""
With that, the rule for `take_rows` is one line; ids have no slope. It is given, and so is the constructor of the class. The rows start as normal numbers with standard deviation 0.02, as GPT-2's code does for its token table (openai/gpt-2, `src/model.py`): small, so that the first logits are small and the first loss is near log V.
"""


# %%
#| export
@gradient_of(take_rows)
def _(grad, output, weight, ids):
    return sum_rows(grad, as_array(ids), len(weight)), None


# %% [markdown]
"""
**Task (6 points).** Write `Embedding.forward`: check the ids against the number of rows, then `take_rows` through `apply`. 1 or 2 lines.
"""


# %% nbgrader={"grade": false, "grade_id": "embedding", "locked": false, "schema_version": 3, "solution": true}
#| export
class Embedding(Module):
    """(...) ints in [0, num_embeddings) -> (..., embed_dim): one learned row for each id."""

    def __init__(self, num_embeddings: int, embed_dim: int, rng: np.random.Generator | int | None = None):
        """rng: a seed, a NumPy Generator, or None. The rows start normal with std 0.02, as GPT-2's tokens.

        Raises ValueError for a size below 1, TypeError for one that is not an integer.
        """
        check_sizes(num_embeddings=num_embeddings, embed_dim=embed_dim)
        weight = np.random.default_rng(rng).normal(0, 0.02, (num_embeddings, embed_dim))
        self.weight = Tensor(weight, requires_grad=True)

    def forward(self, ids: ArrayLike) -> Tensor:
        """Raises ValueError for an id outside the table, TypeError for ids that are not integers."""
        ### BEGIN SOLUTION
        return apply(take_rows, self.weight, check_rows(ids, self.weight.shape[0]))
        ### END SOLUTION


# %% [markdown]
"""
Look up 3, 0, 3 and sum everything: each looked-up number has slope 1. Which rows of the table will plain gradient descent move, and which of them twice as far?
"""

# %%
enable_autograd()
words = Embedding(4, 2, rng=0)
words([3, 0, 3]).sum().backward()
words.weight.grad

# %% nbgrader={"grade": true, "grade_id": "test-embedding", "locked": true, "points": 6, "schema_version": 3, "solution": false}
### BEGIN HIDDEN TESTS
own_take_rows, own_check_rows = take_rows, check_rows


def take_rows(weight, ids):
    """A correct version, independent of the task above."""
    return np.array([weight[int(i)] for i in np.ravel(ids)]).reshape(*np.shape(ids), weight.shape[1])


def check_rows(ids, num_rows):
    """The same for the check: enough of it to see that it is called."""
    ids = np.asarray(ids)
    if ids.dtype.kind not in "iu":
        raise TypeError(f"{ids.dtype}")
    if ids.size and not (0 <= ids.min() and ids.max() < num_rows):
        raise ValueError(f"{ids.min()} to {ids.max()}, {num_rows} rows")
    return ids


### END HIDDEN TESTS
words = Embedding(5, 3, rng=1)
y = words([[4, 0], [1, 4]])
assert isinstance(y, Tensor), f"forward returns a Tensor, yours is {type(y).__name__}: go through apply"
assert y.shape == (2, 2, 3), f"ids of shape (2, 2) give (2, 2, 3), yours is {y.shape}"
assert np.array_equal(y.data[1, 1], words.weight.data[4]), "the id at (1, 1) is 4, so row 4 belongs there"
for wrong in (5, -1):
    try:
        words([0, wrong])
    except ValueError as error:
        assert str(wrong) in str(error), f"name the id {wrong}: {error}"
    else:
        raise AssertionError(
            f"id {wrong} is outside 5 rows (3 features are not the limit): raise a ValueError"
        )
### BEGIN HIDDEN TESTS
assert np.array_equal(words([3, 4]).data, words.weight.data[3:5]), "with 5 rows, ids 3 and 4 are valid"
try:
    words([0.0, 1.0])
except TypeError:
    pass
else:
    raise AssertionError("floats are not ids: raise a TypeError")
from tinytorch.core.tensor import set_recorder


class Recorder:
    def __init__(self):
        self.seen = []

    def record(self, function, inputs, options, output):
        self.seen.append((function, inputs[0]))


recorder = Recorder()
previous = set_recorder(recorder)
words(np.array([1, 2]))
set_recorder(previous)
assert recorder.seen == [(take_rows, words.weight)], (
    "one operation on the weight itself should pass through apply"
)
take_rows, check_rows = own_take_rows, own_check_rows
### END HIDDEN TESTS

# %% [markdown]
"""
## Where am I? Learned positions

Attention, in the next module, compares every token with every other and mixes what fits. Shuffle the tokens and it mixes the same things: "dog bites man" and "man bites dog" are the same to it. (Hiding later tokens breaks this symmetry, and a model can learn positions from that alone: Haviv et al. 2022, arXiv:2203.16634.) So models are told the position.

GPT-2 does the simplest thing: it has a second table with one row for each *position*, learned like the first and added to the token's row. But that table has a last row. A model with 1,024 position rows has no row at all for position 1,024, not even a bad one.

**Task (6 points).** Write `LearnedPositions.forward(num_tokens, start_pos)`: the rows of the positions start_pos, start_pos + 1, ..., as a Tensor (num_tokens, C), from `self.table`, an Embedding. First raise a `ValueError` if start_pos is negative; and if the tokens reach beyond the table, one that names the last position asked for and the last one there is (`max_seq_len - 1`). About 6 lines.

`start_pos` is there for texts that arrive in pieces. The first new token after ten old ones stands at position 10, and with a cache that is easily forgotten.
"""


# %% nbgrader={"grade": false, "grade_id": "learned-positions", "locked": false, "schema_version": 3, "solution": true}
#| export
class LearnedPositions(Module):
    """Called with a number of tokens T: (T, embed_dim), the learned rows of positions start_pos and after."""

    def __init__(self, max_seq_len: int, embed_dim: int, rng: np.random.Generator | int | None = None):
        """rng: a seed, a NumPy Generator, or None. Raises ValueError for a size below 1."""
        check_sizes(max_seq_len=max_seq_len, embed_dim=embed_dim)
        self.max_seq_len = max_seq_len
        self.table = Embedding(max_seq_len, embed_dim, rng=rng)

    def forward(self, num_tokens: int, start_pos: int = 0) -> Tensor:
        """Raises ValueError if start_pos is negative or the tokens reach past max_seq_len."""
        ### BEGIN SOLUTION
        stop = start_pos + num_tokens
        if start_pos < 0:
            raise ValueError(f"positions start at 0, got start_pos {start_pos}")
        if stop > self.max_seq_len:
            raise ValueError(f"the tokens reach position {stop - 1}, the last one is {self.max_seq_len - 1}")
        return self.table(np.arange(start_pos, stop))
        ### END SOLUTION


# %% [markdown]
"""
We ask for the same five positions in one piece and in two. Is the difference zero?
"""

# %%
places = LearnedPositions(8, 3, rng=0)
pieces = np.concatenate([places(2).data, places(3, start_pos=2).data])
float(np.abs(places(5).data - pieces).max())


# %% nbgrader={"grade": true, "grade_id": "test-learned-positions", "locked": true, "points": 6, "schema_version": 3, "solution": false}
class Rows(Module):
    """Takes the place of the table and is known to be right."""

    def forward(self, ids):
        return Tensor([[10.0 * i, 10.0 * i + 1] for i in ids])


places = LearnedPositions(6, 2, rng=0)
places.table = Rows()
assert np.array_equal(places(3).data, [[0, 1], [10, 11], [20, 21]]), (
    f"positions 0, 1, 2; yours {places(3).data}"
)
y = places(2, start_pos=4)
assert np.array_equal(y.data, [[40, 41], [50, 51]]), f"two tokens from 4 on are at 4 and 5; yours {y.data}"
for num_tokens, start_pos, number in ((7, 0, "6"), (1, 6, "6"), (3, 5, "7")):
    try:
        places(num_tokens, start_pos)
    except ValueError as error:
        assert number in str(error) and "5" in str(error), f"name {number} and the last position, 5: {error}"
    else:
        raise AssertionError(
            f"{num_tokens} tokens from {start_pos} on do not fit in 6 positions: raise a ValueError"
        )
### BEGIN HIDDEN TESTS
assert places(6).shape == (6, 2) and places(1, 5).data.tolist() == [[50, 51]], "the last position is 5"
try:
    places(2, start_pos=-1)
except ValueError as error:
    assert "-1" in str(error), f"name -1: {error}"
else:
    raise AssertionError("start_pos -1 should raise a ValueError")
### END HIDDEN TESTS

# %% [markdown]
"""
## Waves

Vaswani et al. (2017, arXiv:1706.03762, section 3.5) did not learn the rows but computed them: C/2 pairs of a sine and a cosine, each pair slower than the one before it by the same factor, from a wavelength of 2π tokens to one of nearly 10,000 · 2π. It is a clock with C/2 hands: the fast ones tell neighbours apart, the slow ones tell chapters apart.

row p, columns 2i and 2i + 1: sin(p · f_i) and cos(p · f_i), with f_i = base^(-2i / C), base = 10000

Why pairs? A pair is a point on a circle, and moving on by k tokens turns it by an angle that depends only on k: "three back" is the same rotation everywhere, and a model can learn it. The dot product of two such rows is the sum of cos(f_i · distance), so it depends only on the distance.

**Task (12 points).** Write `sinusoidal_table(positions, embed_dim, base)`: positions in any form, of shape (...), give a float32 array (..., embed_dim), with sines in the even columns and cosines in the odd ones. Compute the angles in float64 and round at the end: near 100,000, neighbouring float32 numbers are 0.008 apart. Raise a `ValueError` for an odd embed_dim. About 8 lines.
"""


# %% nbgrader={"grade": false, "grade_id": "sinusoidal-table", "locked": false, "schema_version": 3, "solution": true}
#| export
def sinusoidal_table(positions: ArrayLike, embed_dim: int, base: float = 10000.0) -> np.ndarray:
    """(...) positions -> (..., embed_dim) float32: sin(p f), cos(p f) in turn, f = base ** (-2i / embed_dim).

    Vaswani et al. 2017 (arXiv:1706.03762), section 3.5. Raises ValueError for an odd embed_dim.
    """
    ### BEGIN SOLUTION
    if embed_dim < 2 or embed_dim % 2:
        raise ValueError(f"sines and cosines come in pairs, so embed_dim should be even, got {embed_dim}")
    frequencies = base ** (-np.arange(0, embed_dim, 2) / embed_dim)
    angles = as_array(positions, np.float64)[..., None] * frequencies
    table = np.empty((*angles.shape[:-1], embed_dim), np.float32)
    table[..., 0::2] = np.sin(angles)
    table[..., 1::2] = np.cos(angles)
    return table
    ### END SOLUTION


# %% [markdown]
"""
Positions 0, 1 and 2, with four columns, so two hands. The first moves by one radian per token (sin 1 is 0.84), the second by a hundredth of one.
"""

# %%
sinusoidal_table([0, 1, 2], 4).round(4)

# %% nbgrader={"grade": true, "grade_id": "test-sinusoidal-table", "locked": true, "points": 12, "schema_version": 3, "solution": false}
table = sinusoidal_table([0, 1, 2], 4)
assert table.shape == (3, 4), f"3 positions and embed_dim 4 give (3, 4), yours is {table.shape}"
assert np.allclose(table[0], [0, 1, 0, 1]), f"at position 0 all sines are 0, all cosines 1; yours {table[0]}"
assert np.allclose(table[1], [0.84147, 0.54030, 0.0099998, 0.99995], atol=1e-5), (
    f"position 1: sin 1, cos 1, sin 0.01, cos 0.01, in this order; yours {table[1]}"
)
assert table.dtype == np.float32, f"the table is float32, yours is {table.dtype}"
far = sinusoidal_table([123456], 8)[0]
want = [wave(123456 * 10000 ** (-i / 4)) for i in range(4) for wave in (math.sin, math.cos)]
assert np.allclose(far, want, atol=1e-6), (
    f"at position 123,456, columns 2 and 3 are {want[2:4]}, yours {far[2:4]}; are the angles float64?"
)
try:
    sinusoidal_table([0], 5)
except ValueError as error:
    assert "5" in str(error), f"name the 5: {error}"
else:
    raise AssertionError("5 columns do not make pairs: raise a ValueError")
### BEGIN HIDDEN TESTS
for positions, width, base in (([[3, 1], [400, 7], [0, 65]], 6, 10000.0), ([5], 2, 10000.0), (9, 10, 50.0)):
    table = sinusoidal_table(positions, width, base)
    assert table.shape == (*np.shape(positions), width), (
        f"wrong shape for positions of shape {np.shape(positions)}"
    )
    for place in np.ndindex(np.shape(positions)):
        p = float(np.asarray(positions)[place])
        for column in range(width):
            angle = p / base ** ((column - column % 2) / width)
            want = math.cos(angle) if column % 2 else math.sin(angle)
            assert abs(table[(*place, column)] - want) < 1e-6, f"position {p}, column {column} of {width}"
assert np.array_equal(sinusoidal_table([4, 5], 6, base=10000), sinusoidal_table(Tensor([4, 5]), 6)), (
    "other forms"
)
### END HIDDEN TESTS

# %% [markdown]
"""
This class is given. It has no weights and no last position.
"""


# %%
#| export
class SinusoidalPositions(Module):
    """Called with a number of tokens: (T, embed_dim), the waves of positions start_pos..start_pos+T."""

    def __init__(self, embed_dim: int, base: float = 10000.0):
        """Raises ValueError for an embed_dim that is odd or below 1."""
        check_sizes(embed_dim=embed_dim)
        sinusoidal_table(0, embed_dim, base)  # raises for an odd embed_dim
        self.embed_dim, self.base = embed_dim, base

    def forward(self, num_tokens: int, start_pos: int = 0) -> Tensor:
        """Raises ValueError if start_pos is negative."""
        if start_pos < 0:
            raise ValueError(f"positions start at 0, got start_pos {start_pos}")
        return Tensor(
            sinusoidal_table(np.arange(start_pos, start_pos + num_tokens), self.embed_dim, self.base)
        )


# %% [markdown]
"""
To check the claim about distances: dot products of rows 3 apart, at three places in the text, and of rows 4 apart.
"""

# %%
waves = SinusoidalPositions(64)(2000).data
[float(waves[p] @ waves[p + 3]) for p in (0, 17, 1900)], float(waves[17] @ waves[21])

# %% [markdown]
"""
## Turning instead of adding

Adding has a price. Query and key each hold content plus position, so their product has four terms: content with content, content with position, position with content, position with position. Only the last compares two positions, and learned matrices stand between them.

Su et al. (2021, arXiv:2104.09864) turn the idea around: do not add the clock to the row, *turn the row like the clock*. Cut query and key into pairs of numbers, read each pair as a point in the plane, and rotate it by position times frequency. This is RoPE, the rotary position embedding, which most open models since Llama use.

Why it works, in one line. Turning by an angle a is a matrix R(a), and R(a)ᵀ R(b) = R(b - a). Query q at position m, key k at position n, one pair with frequency f:

(R(mf) q) · (R(nf) k) = qᵀ R(mf)ᵀ R(nf) k = qᵀ R((n - m) f) k

Of the two positions, only n - m is left in the score, and no mask or weight was needed for that. First the tables: the D numbers of a head make D/2 pairs, with the frequencies f_i = base^(-2i / D), as for the waves.

**Task (12 points).** Write `rotary_tables(positions, head_dim, base, factors=None)`: integer positions in any form, of shape (..., T), give two float32 arrays (..., T, head_dim / 2), the cosines and the sines of all angles p · f_i. Raise a `ValueError` for an odd head_dim or one below 2, and for a base that is not a positive finite number. Compute the angles in float64 here too. About 10 lines.

A model trained on short texts can be adapted to long ones by turning more slowly: if all frequencies are divided by 4, position 8,000 turns as 2,000 did before (Chen et al. 2023, arXiv:2306.15595). Llama 3.1 slows only the low frequencies: those that do not complete a turn in 8,192 tokens fully, those that complete up to four partly. Hence `factors`: each f_i is divided by its own of (head_dim / 2,) numbers, or all by a single number; None changes nothing.

Positions are an argument, not a length, because they will not always be 0 … T - 1: cached texts continue at seq_pos, and the texts of a batch may stand at different places. Negative positions are allowed and turn backwards.
"""


# %% nbgrader={"grade": false, "grade_id": "rotary-tables", "locked": false, "schema_version": 3, "solution": true}
#| export
def rotary_tables(
    positions: ArrayLike, head_dim: int, base: float = 10000.0, factors: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """(..., T) positions -> cos, sin, (..., T, head_dim / 2) float32 each, of p * base ** (-2i / head_dim).

    Su et al. 2021 (arXiv:2104.09864), section 3.2.2. factors: (head_dim / 2,) or one number; the
    frequencies are divided by them (Chen et al. 2023, arXiv:2306.15595). Raises ValueError for an odd
    head_dim or a base <= 0.
    """
    ### BEGIN SOLUTION
    if head_dim < 2 or head_dim % 2:
        raise ValueError(f"rotary positions turn pairs, so head_dim should be even, got {head_dim}")
    if not 0 < base < math.inf:
        raise ValueError(f"the base of the frequencies should be a positive number, got {base}")
    frequencies = base ** (-np.arange(0, head_dim, 2) / head_dim)
    if factors is not None:
        frequencies = frequencies / as_array(factors, np.float64)
    angles = as_array(positions, np.float64)[..., None] * frequencies
    return np.cos(angles).astype(np.float32), np.sin(angles).astype(np.float32)
    ### END SOLUTION


# %%
rotary_tables([0, 1, 2], 4)

# %% nbgrader={"grade": true, "grade_id": "test-rotary-tables", "locked": true, "points": 12, "schema_version": 3, "solution": false}
cos, sin = rotary_tables([0, 1, 2], 4)
assert cos.shape == sin.shape == (3, 2), (
    f"3 positions and 4 / 2 pairs give (3, 2), yours {cos.shape}, {sin.shape}"
)
assert np.allclose(cos[0], 1) and np.allclose(sin[0], 0), "position 0 is not turned: its cos is 1, its sin 0"
assert np.allclose(cos[1], [math.cos(1), math.cos(0.01)], atol=1e-6), (
    f"position 1 turns by 1 and by 1/100: cos {math.cos(1):.4f}, {math.cos(0.01):.4f}; yours {cos[1]}"
)
assert np.allclose(sin[2], [math.sin(2), math.sin(0.02)], atol=1e-6), f"sin 2, sin 0.02; yours {sin[2]}"
assert cos.dtype == sin.dtype == np.float32, f"the tables are float32, yours {cos.dtype}, {sin.dtype}"
far, want = rotary_tables([123456], 8)[0][0], [math.cos(123456 * 10000 ** (-i / 4)) for i in range(4)]
assert np.allclose(far, want, atol=1e-6), (
    f"far out, at position 123,456, the cosines are {want}, yours {far}; are the angles float64?"
)
slowed = rotary_tables([6], 4, factors=[1, 3])[0][0]
assert np.allclose(slowed, [math.cos(6), math.cos(0.02)], atol=1e-6), (
    f"6 turns by 6 and by 0.06, and 0.06 divided by its factor 3 is 0.02: "
    f"{math.cos(6):.4f}, {math.cos(0.02):.4f}; yours {slowed}"
)
for head_dim in (5, 0):
    try:
        rotary_tables([0], head_dim)
    except ValueError as error:
        assert str(head_dim) in str(error), f"name the {head_dim}: {error}"
    else:
        raise AssertionError(f"head_dim {head_dim} cannot be cut into pairs: raise a ValueError")
### BEGIN HIDDEN TESTS
for positions, head_dim, base in (([[3, 1, 0], [400, 7, -2]], 6, 10000.0), ([5], 2, 1e5), ([9, 8], 10, 50)):
    cos, sin = rotary_tables(positions, head_dim, base)
    assert cos.shape == sin.shape == (*np.shape(positions), head_dim // 2), "wrong shape"
    for place in np.ndindex(np.shape(positions)):
        for i in range(head_dim // 2):
            angle = float(np.asarray(positions)[place]) / base ** (2 * i / head_dim)
            assert abs(cos[(*place, i)] - math.cos(angle)) < 1e-6, f"cos at {place}, pair {i}, base {base}"
            assert abs(sin[(*place, i)] - math.sin(angle)) < 1e-6, f"sin at {place}, pair {i}, base {base}"
for factors in (4.0, np.array([1.0, 2.5, 32.0], np.float32), (8, 1, 1)):
    each = np.broadcast_to(factors, 3).astype(np.float64)
    for table, wave in zip(rotary_tables([5, 70_000], 6, 500.0, factors), (math.cos, math.sin), strict=True):
        want = [[wave(p * 500.0 ** (-i / 3) / each[i]) for i in range(3)] for p in (5, 70_000)]
        assert np.allclose(table, want, atol=1e-6), f"the frequencies should be divided by {factors}"
for base in (0, -1.0, math.inf, math.nan):
    try:
        rotary_tables([0], 4, base)
    except ValueError:
        pass
    else:
        raise AssertionError(f"base {base} should raise a ValueError")
### END HIDDEN TESTS

# %% [markdown]
"""
Which numbers form a pair? Two conventions are in use, and they look the same in every formula. In the paper, in Meta's own Llama code and in the GGUF files of Llama models, *neighbours* are a pair: 0 with 1, 2 with 3. In Hugging Face's Llama code and weight files, number i pairs with number i + D/2, the first half of the head with the second; so it does in the GGUF files of Qwen2, Gemma, Phi-3 and Falcon. We take the halves, because two slices are two contiguous blocks.

Rotating the pair (a, b) by an angle gives (a cos - b sin, b cos + a sin).

**Task (12 points).** Write `apply_rotary(x, cos, sin)`: x (..., T, D), for instance queries (B, H, T, D), and tables (..., T, D/2) that broadcast over the axes in front. Entry i of the first half is a, entry i of the second half is b. Raise a `ValueError` with both shapes if the last two axes of the tables are not (T, D/2): otherwise a table for one position would silently be used for all. About 7 lines; the result is a new array.
"""


# %% nbgrader={"grade": false, "grade_id": "apply-rotary", "locked": false, "schema_version": 3, "solution": true}
#| export
def apply_rotary(x: np.ndarray, cos: np.ndarray, sin: np.ndarray) -> np.ndarray:
    """(..., T, D), (..., T, D/2), (..., T, D/2) -> (..., T, D): entries i and i + D/2 turned by angle i.

    The pairing of Hugging Face's Llama. Raises ValueError for tables of other than T positions and D/2 pairs.
    """
    ### BEGIN SOLUTION
    half = x.shape[-1] // 2
    if x.shape[-1] % 2 or cos.shape[-2:] != (x.shape[-2], half):
        raise ValueError(f"x of shape {x.shape} cannot be turned by tables of shape {cos.shape}")
    first, second = x[..., :half], x[..., half:]
    return np.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
    ### END SOLUTION


# %% [markdown]
"""
One pair, (1, 0), at positions 0, 1 and 2. The frequency of the first pair is 1, so it moves around the circle by one radian per position: (cos p, sin p).
"""

# %%
apply_rotary(np.array([[1.0, 0.0]] * 3), *rotary_tables([0, 1, 2], 2)).round(4)

# %% nbgrader={"grade": true, "grade_id": "test-apply-rotary", "locked": true, "points": 12, "schema_version": 3, "solution": false}
x = np.array([[1.0, 2.0, 3.0, 4.0]], np.float32)  # the pairs are (1, 3) and (2, 4)
quarter, none = np.array([[0.0, 1.0]], np.float32), np.array([[1.0, 0.0]], np.float32)
y = apply_rotary(x, cos=quarter, sin=none)
assert y.shape == (1, 4), f"the shape stays (1, 4), yours is {y.shape}"
assert np.allclose(y, [[-3, 2, 1, 4]]), (
    f"a quarter turn of the pair (1, 3) gives (-3, 1), the pair (2, 4) stays: -3, 2, 1, 4; yours {y[0]}"
)
y = apply_rotary(x, np.array([[0.6, 0.8]], np.float32), np.array([[0.8, 0.6]], np.float32))
assert np.allclose(y, [[-1.8, -0.8, 2.6, 4.4]]), f"-1.8, -0.8, 2.6, 4.4 by hand; yours {y[0]}"
assert np.array_equal(x, [[1, 2, 3, 4]]), "the array that was passed in must stay as it is"
assert y.dtype == np.float32, f"float32 in, float32 out; yours is {y.dtype}"
try:
    apply_rotary(np.ones((2, 5, 4), np.float32), quarter, none)
except ValueError as error:
    assert "(2, 5, 4)" in str(error) and "(1, 2)" in str(error), f"name both shapes: {error}"
else:
    raise AssertionError("tables for 1 position do not fit 5 tokens: raise a ValueError")
### BEGIN HIDDEN TESTS
rng = np.random.default_rng(2)
B, H, T, D = 2, 3, 5, 6
x = rng.normal(size=(B, T, H, D)).transpose(0, 2, 1, 3)  # as split_heads leaves it
for table_shape in ((T,), (B, 1, T), (B, H, T)):
    angles = rng.uniform(-9, 9, size=(*table_shape, D // 2))
    got = apply_rotary(x, np.cos(angles), np.sin(angles))
    angles = np.broadcast_to(angles, (B, H, T, D // 2))
    for place in np.ndindex(B, H, T, D // 2):
        b, h, t, i = place
        turned = complex(x[b, h, t, i], x[b, h, t, i + D // 2]) * complex(
            math.cos(angles[place]), math.sin(angles[place])
        )
        mine = got[b, h, t, i], got[b, h, t, i + D // 2]
        assert np.allclose(mine, (turned.real, turned.imag), rtol=1e-9), (
            f"wrong at {place}, tables {table_shape}"
        )
for shape in ((T, D // 2 + 1), (T + 1, D // 2), (T, 1), (T, D)):
    try:
        apply_rotary(x, np.ones(shape), np.zeros(shape))
    except ValueError:
        pass
    else:
        raise AssertionError(f"tables of shape {shape} do not fit x of shape {x.shape}: raise a ValueError")
try:
    apply_rotary(np.ones((T, 5)), np.ones((T, 2)), np.zeros((T, 2)))
except ValueError:
    pass
else:
    raise AssertionError("5 numbers cannot be cut into pairs: raise a ValueError")
### END HIDDEN TESTS

# %% [markdown]
"""
Now the proof, in a cell. It takes the dot product of a random query at position m and a random key at n, for three pairs of positions that are 7 apart and one that is 8 apart. The tables are float64 here, so that rounding does not blur the result. How far apart are the first three?
"""

# %%
rng = np.random.default_rng(0)
q, k = rng.normal(size=(1, 64)), rng.normal(size=(1, 64))


def turned(x, position):
    angles = position * 10000.0 ** (-np.arange(0, 64, 2) / 64)
    return apply_rotary(x, np.cos(angles)[None], np.sin(angles)[None])


scores = [
    float(np.sum(turned(q, m) * turned(k, n))) for m, n in ((0, 7), (100, 107), (5000, 5007), (100, 108))
]
max(scores[:3]) - min(scores[:3]) < 1e-9, [round(score, 6) for score in scores]

# %% [markdown]
"""
And the two conventions. Put the even places of a head first, then the odd ones, and neighbours become halves; the given `pairs_to_halves` does that, and a later module needs it. The rotation of the paper, done directly on neighbours, is the same as ours on the reordered numbers. So a model trained with one convention runs with the other if the rows of its query and key weights are reordered in this way once, when they are loaded. If they are not, no error is raised: all shapes fit, and the scores are wrong.
"""


# %%
#| export
def pairs_to_halves(x: np.ndarray) -> np.ndarray:
    """(..., D), neighbours as pairs (paper, Llama's GGUF) -> (..., D), halves as pairs (Hugging Face)."""
    return np.concatenate([x[..., 0::2], x[..., 1::2]], axis=-1)


# %%
numbers, angle = rng.normal(size=(1, 6)), np.array([[0.3, 1.1, 2.0]])
a, b = numbers[:, 0::2], numbers[:, 1::2]
as_in_the_paper = np.empty((1, 6))
as_in_the_paper[:, 0::2] = a * np.cos(angle) - b * np.sin(angle)
as_in_the_paper[:, 1::2] = b * np.cos(angle) + a * np.sin(angle)
ours = apply_rotary(pairs_to_halves(numbers), np.cos(angle), np.sin(angle))
np.allclose(pairs_to_halves(as_in_the_paper), ours), pairs_to_halves(np.arange(6))

# %% [markdown]
"""
## Turning back

The gradient is quickly found. The output is a rotation matrix times x, so the slope at x is the transposed matrix times the slope at the output. And the transpose of a rotation is the rotation back by the same angle: cos stays, sin changes its sign.

**Task (6 points).** Write `rotary_gradient(grad, cos, sin)`, the slope at x. 1 line.
"""


# %% nbgrader={"grade": false, "grade_id": "rotary-gradient", "locked": false, "schema_version": 3, "solution": true}
#| export
def rotary_gradient(grad: np.ndarray, cos: np.ndarray, sin: np.ndarray) -> np.ndarray:
    """(..., T, D), (..., T, D/2), (..., T, D/2) -> (..., T, D): the slope turned back by the same angles."""
    ### BEGIN SOLUTION
    return apply_rotary(grad, cos, -sin)
    ### END SOLUTION


# %%
#| export
@gradient_of(apply_rotary)
def _(grad, output, x, cos, sin):
    return rotary_gradient(grad, cos, sin), None, None


# %% nbgrader={"grade": true, "grade_id": "test-rotary-gradient", "locked": true, "points": 6, "schema_version": 3, "solution": false}
### BEGIN HIDDEN TESTS
own_apply_rotary = apply_rotary


def apply_rotary(x, cos, sin):
    """A correct version, independent of the task above."""
    a, b = np.split(x, 2, axis=-1)
    return np.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1)


### END HIDDEN TESTS
cos, sin = np.array([[0.6, 1.0]]), np.array([[0.8, 0.0]])
back = rotary_gradient(np.array([[1.0, 2.0, 3.0, 4.0]]), cos, sin)
assert np.allclose(back, [[3.0, 2.0, 1.0, 4.0]]), (
    f"the pair (1, 3) turned back is (0.6 + 2.4, 1.8 - 0.8), the pair (2, 4) stays; yours {back}"
)
assert np.allclose(sin, [[0.8, 0.0]]), "the tables must stay as they are"
### BEGIN HIDDEN TESTS
rng = np.random.default_rng(3)
x, grad, angles = rng.normal(size=(2, 3, 4)), rng.normal(size=(2, 3, 4)), rng.uniform(-3, 3, size=(3, 2))
tables, slopes = (np.cos(angles), np.sin(angles)), np.zeros((2, 3, 4))
for place in np.ndindex(2, 3, 4):
    up, down = x.copy(), x.copy()
    up[place] += 1e-6
    down[place] -= 1e-6
    slopes[place] = ((apply_rotary(up, *tables) - apply_rotary(down, *tables)) * grad).sum() / 2e-6
assert np.allclose(rotary_gradient(grad, *tables), slopes, atol=1e-7), "nudging gives other slopes"
apply_rotary = own_apply_rotary
### END HIDDEN TESTS

# %% [markdown]
"""
A model turns queries and keys in every layer by the same angles. So the tables are computed once, for all positions up to the longest text, and sliced. They are arrays, not Tensors: nothing in them is learned, so they are not in the `state_dict` and no optimizer changes them.

**Task (6 points).** Write `RotaryEmbedding.forward(x, start_pos)`: x (..., T, head_dim) at the positions start_pos, start_pos + 1, ... Raise the same two errors as for learned positions, with both numbers; then call `apply_rotary` through `apply` with the slices of `self.cos` and `self.sin`. About 6 lines.
"""


# %% nbgrader={"grade": false, "grade_id": "rotary-embedding", "locked": false, "schema_version": 3, "solution": true}
#| export
class RotaryEmbedding(Module):
    """(..., T, head_dim) queries or keys -> the same shape, turned by positions start_pos..start_pos+T."""

    def __init__(self, head_dim: int, max_seq_len: int, base: float = 10000.0):
        """Raises ValueError for an odd head_dim, a max_seq_len below 1 or a base <= 0."""
        check_sizes(head_dim=head_dim, max_seq_len=max_seq_len)
        self.head_dim, self.max_seq_len, self.base = head_dim, max_seq_len, base
        self.cos, self.sin = rotary_tables(np.arange(max_seq_len), head_dim, base)

    def forward(self, x: Tensor, start_pos: int = 0) -> Tensor:
        """ValueError if start_pos is negative, the tokens reach past max_seq_len, or D is not head_dim."""
        ### BEGIN SOLUTION
        stop = start_pos + x.shape[-2]
        if start_pos < 0:
            raise ValueError(f"positions start at 0, got start_pos {start_pos}")
        if stop > self.max_seq_len:
            raise ValueError(f"the tokens reach position {stop - 1}, the last one is {self.max_seq_len - 1}")
        return apply(apply_rotary, x, self.cos[start_pos:stop], self.sin[start_pos:stop])
        ### END SOLUTION


# %% [markdown]
"""
Six keys are turned in one piece and in two, as a cache will do it. Is the difference zero?
"""

# %%
rotary, keys = RotaryEmbedding(8, 16), np.random.default_rng(4).normal(size=(1, 2, 6, 8)).astype(np.float32)
pieces = [rotary(keys[:, :, :4]).data, rotary(keys[:, :, 4:], start_pos=4).data]
float(np.abs(rotary(keys).data - np.concatenate(pieces, axis=2)).max())

# %% nbgrader={"grade": true, "grade_id": "test-rotary-embedding", "locked": true, "points": 6, "schema_version": 3, "solution": false}
### BEGIN HIDDEN TESTS
own_apply_rotary = apply_rotary


def apply_rotary(x, cos, sin):
    """A correct version, independent of the task above."""
    a, b = np.split(x, 2, axis=-1)
    return np.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1)


### END HIDDEN TESTS
rotary = RotaryEmbedding.__new__(RotaryEmbedding)  # made without the constructor, which needs rotary_tables
rotary.head_dim, rotary.max_seq_len = 2, 5
rotary.cos, rotary.sin = (
    np.array([[1.0], [0.0], [-1.0], [0.0], [1.0]]),
    np.array([[0.0], [1.0], [0.0], [-1.0], [0.0]]),
)
x = Tensor([[[1.0, 2.0], [1.0, 2.0]]])  # two tokens; the tables turn by a quarter for each position
y = rotary.forward(x)
assert isinstance(y, Tensor), f"forward returns a Tensor, yours is {type(y).__name__}: go through apply"
assert np.allclose(y.data, [[[1, 2], [-2, 1]]]), (
    f"position 0 stays, position 1 turns by a quarter; yours {y.data}"
)
y = rotary.forward(x, start_pos=2)
assert np.allclose(y.data, [[[-1, -2], [2, -1]]]), (
    f"positions 2 and 3: a half, three quarters; yours {y.data}"
)
for start_pos, number in ((4, "5"), (-1, "-1")):
    try:
        rotary.forward(x, start_pos)
    except ValueError as error:
        assert number in str(error), f"name {number}: {error}"
    else:
        raise AssertionError(f"2 tokens from {start_pos} on do not fit in 5 positions: raise a ValueError")
### BEGIN HIDDEN TESTS
assert np.allclose(rotary.forward(x, 3).data, [[[2, -1], [1, 2]]]), "positions 3 and 4 are the last two of 5"
many = np.ones((2, 3, 4, 2), np.float32)
y = rotary.forward(many, 1).data
assert y.shape == (2, 3, 4, 2) and np.allclose(y, y[:1, :1]), "all heads and texts are turned alike"
assert np.allclose(y[0, 0], [[-1, 1], [-1, -1], [1, -1], [1, 1]]), (
    f"quarters 1 to 4 of (1, 1); yours {y[0, 0]}"
)
apply_rotary = own_apply_rotary
### END HIDDEN TESTS

# %% [markdown]
"""
**Question (5 points).** RoPE turns queries and keys and leaves the values alone. What would go wrong if the values were turned by their positions too, and their weighted sum were used as it is?
"""

# %% [markdown] nbgrader={"grade": true, "grade_id": "question-values", "locked": false, "points": 5, "schema_version": 3, "solution": true}
"""
Your answer here.
"""

# %% [markdown]
"""
**Question (5 points).** A model was trained on texts of up to 1,024 tokens and must now read 1,500. For each of the three kinds of positions, say what happens at position 1,200: does the model run, and if it does, why may its output still be bad?
"""

# %% [markdown] nbgrader={"grade": true, "grade_id": "question-longer", "locked": false, "points": 5, "schema_version": 3, "solution": true}
"""
Your answer here.
"""

# %% [markdown]
"""
## You can now

- turn ids into rows, and slopes back into the rows of a table;
- tell a model where its tokens stand in three ways, in one of which scores depend on positions only through their distance, and convert between its two layouts.

Two exercises:

- Compare three ways to sum slopes by id, `np.add.at`, yours, and the product of a one-hot matrix with the slopes, for vocabularies of 100, 1,000 and 10,000. Which is the fastest for each, and how does the time of the one-hot product grow with the vocabulary?
- Plot the rotary score of a random query with a copy of itself at distances 0 to 500, averaged over a hundred random queries. It falls and then wavers. Which frequencies make it fall, and what does a base of 1,000,000 change?

Next: the rows know what they are and where they are. In module 12 they look at each other.
"""
