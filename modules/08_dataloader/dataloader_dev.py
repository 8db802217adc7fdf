# %% [markdown]
"""
# Module 08: DataLoader

Your training loop wants batches: arrays of B samples, each sample once per epoch, in an order that has nothing to do with the order of the file. What you have is a table, or a long row of token ids. This module turns one into the other.

It is not hard, and that is the trap: a wrong data loader raises no error. The loss may still fall, but to a worse value, because targets are shifted the wrong way, because the last samples are never seen, or because every epoch after a restart repeats the same order. So you check each step here on numbers small enough to count by hand.

After this module you will be able to

- say what a dataset is in two methods, and write two: rows of arrays, and windows of a token stream;
- cut windows without copying a single token;
- stack samples into batches, and refuse those that do not fit together;
- shuffle so that seed and epoch number alone determine the order;
- stop in the middle of an epoch and continue with exactly the batch that would have come next.

You need only module 01 (`Tensor`). Each part is graded alone: in the final grading it runs with correct versions of the parts before it, so a mistake costs only the points of its own part.
"""

# %%
#| default_exp core.dataloader

# %%
#| export
import operator
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import copy

import numpy as np

from tinytorch.core.tensor import Tensor

# %% [markdown]
"""
## A dataset is two questions

How many samples are there, and what is sample number i? Anything that answers both is a dataset: a list, or a folder of a million pictures that reads one when asked for it. In Python the two questions are the methods `__len__` and `__getitem__`.

The base class below declares both and leaves them to its subclasses. A sample is a tuple, for instance (input, target). An index past the end must raise `IndexError`: that is how a `for` loop over a dataset knows when to stop.
"""


# %%
#| export
class Dataset(ABC):
    """Numbered samples: len(dataset) of them, and dataset[i] is sample i, a tuple of arrays or numbers."""

    @abstractmethod
    def __len__(self) -> int:
        """-> the number of samples."""

    @abstractmethod
    def __getitem__(self, index: int) -> tuple:
        """-> sample number index; IndexError if there is none."""


# %% [markdown]
"""
## Rows that belong together

The first dataset holds arrays whose rows belong together: row i of the inputs with row i of the targets. If one array has one row more than the other, a row has lost its partner somewhere, and nothing after that place is right. NumPy would not complain.

**Task (6 points).** Write `common_length(arrays)`, which returns the number of rows that all the arrays have. Raise a `ValueError` if there is no array, if one has no axis at all (a single number has no rows), or if two differ in length; in that case state both lengths. About 8 lines.
"""


# %% nbgrader={"grade": false, "grade_id": "common-length", "locked": false, "schema_version": 3, "solution": true}
#| export
def common_length(arrays: Sequence[np.ndarray]) -> int:
    """-> the length of the first axis, which all arrays must share; ValueError if they do not."""
    ### BEGIN SOLUTION
    if not arrays:
        raise ValueError("a dataset needs at least 1 array, it was given 0")
    for place, array in enumerate(arrays):
        if array.ndim == 0:
            raise ValueError(f"array {place} is a single number, it has no rows")
        if len(array) != len(arrays[0]):
            raise ValueError(f"array {place} has {len(array)} rows and array 0 has {len(arrays[0])}")
    return len(arrays[0])
    ### END SOLUTION


# %%
common_length([np.zeros((5, 2)), np.arange(5)])

# %% nbgrader={"grade": true, "grade_id": "test-common-length", "locked": true, "points": 6, "schema_version": 3, "solution": false}
length = common_length([np.zeros((4, 2)), np.zeros(4), np.zeros((4, 3, 5))])
assert length == 4, f"three arrays with 4 rows each have the common length 4, yours is {length}"
for arrays in ([], [np.zeros(4), np.array(7.0)], [np.zeros((4, 2)), np.zeros((4, 2)), np.zeros((3, 2))]):
    try:
        common_length(arrays)
    except ValueError as error:
        message = str(error)
    else:
        raise AssertionError(f"arrays of shapes {[a.shape for a in arrays]} should raise a ValueError")
assert "3" in message and "4" in message, f"name both lengths, 4 and 3; yours says: {message}"
### BEGIN HIDDEN TESTS
assert common_length([np.zeros((1, 9))]) == 1, (
    "one array is enough, and its rows are counted, not its columns"
)
assert common_length([np.zeros((0, 3)), np.zeros(0)]) == 0, "arrays without rows are allowed"
for lengths in ((2, 3), (3, 2), (5, 5, 5, 6)):
    try:
        common_length([np.zeros((n, 2)) for n in lengths])
    except ValueError:
        continue
    raise AssertionError(f"lengths {lengths} were accepted")
### END HIDDEN TESTS

# %% [markdown]
"""
**Task (8 points).** Write the two methods of `TensorDataset`. `self.arrays` is a tuple of arrays, with floats already in float32, and `self.length` is their common length; the constructor makes both. Sample i is the tuple of row i of each array. About 2 lines: NumPy's indexing handles negative indices, raises `IndexError`, and returns *views*, so no number is copied.
"""


# %% nbgrader={"grade": false, "grade_id": "tensor-dataset", "locked": false, "schema_version": 3, "solution": true}
#| export
class TensorDataset(Dataset):
    """Sample i is the tuple of row i of every array, as views."""

    def __init__(self, *arrays: Tensor | np.ndarray):
        """arrays: Tensors, arrays or lists with the same number of rows; else ValueError."""
        self.arrays = tuple(Tensor(array).data for array in arrays)
        self.length = common_length(self.arrays)

    def __len__(self) -> int:
        ### BEGIN SOLUTION
        return self.length
        ### END SOLUTION

    def __getitem__(self, index: int) -> tuple:
        ### BEGIN SOLUTION
        return tuple(array[index] for array in self.arrays)
        ### END SOLUTION


# %% [markdown]
"""
Three points in the plane and the class of each. What is sample 1?
"""

# %%
points = TensorDataset([[0.0, 0.0], [1.0, 2.0], [3.0, 4.0]], [0, 1, 1])
points[1]

# %% nbgrader={"grade": true, "grade_id": "test-tensor-dataset", "locked": true, "points": 8, "schema_version": 3, "solution": false}
### BEGIN HIDDEN TESTS
yours, common_length = common_length, lambda arrays: arrays[0].shape[0]
### END HIDDEN TESTS
inputs, targets = np.arange(10, dtype=np.float32).reshape(5, 2), np.array([0, 1, 0, 1, 2])
dataset = TensorDataset(inputs, targets)
assert len(dataset) == 5, f"5 rows are 5 samples, your dataset has {len(dataset)}"
sample = dataset[3]
assert isinstance(sample, tuple) and len(sample) == 2, (
    f"a sample of 2 arrays is a tuple of 2, yours: {sample!r}"
)
assert np.array_equal(sample[0], [6, 7]) and sample[1] == 1, f"sample 3 is ([6, 7], 1), yours is {sample}"
assert np.shares_memory(sample[0], inputs), "the row should be a view of the array, yours is a copy"
try:
    dataset[5]
except IndexError:
    past_the_end_refused = True
else:
    past_the_end_refused = False
assert past_the_end_refused, "5 samples are numbered 0 to 4: index 5 should raise an IndexError"
### BEGIN HIDDEN TESTS
assert np.array_equal(dataset[-1][0], [8, 9]) and dataset[-1][1] == 2, "index -1 is the last sample"
found = [int(target) for (_, target), _ in zip(dataset, range(9), strict=False)]
assert found == [0, 1, 0, 1, 2], f"a for loop should see each sample once, it sees {found}"
single = TensorDataset(np.zeros((2, 3), dtype=np.float32))[0]
assert isinstance(single, tuple) and single[0].shape == (3,), "one array gives tuples of one row"
assert len(TensorDataset(*[np.zeros((4, 2))] * 3)[0]) == 3, "three arrays give tuples of three rows"
common_length = yours
### END HIDDEN TESTS

# %% [markdown]
"""
## Windows of a token stream

A text is one long row of token ids, and a language model learns to predict the next one. With a context of T tokens, a sample is T ids to read and the same row shifted by one, so that at every position the target is the token that comes next. One window trains T predictions at once.

```
tokens    12  7  31  5  9  2          context 4
inputs    12  7  31  5
targets       7  31  5  9
```

So a window needs T + 1 tokens, and the next window begins `stride` tokens later. With stride 1 a window begins at every token that has T more after it; with stride T each token is a target once, except the first one and a remainder too short for a window.

**Task (10 points).** Write `count_windows(num_tokens, context, stride)`: how many windows of T + 1 tokens fit, the first at token 0 and each of the others `stride` tokens after the one before. Raise a `ValueError` if context or stride is smaller than 1, or if not even one window fits; state the two numbers that conflict. About 6 lines. First draw the case above: 6 tokens, context 4, stride 1.
"""


# %% nbgrader={"grade": false, "grade_id": "count-windows", "locked": false, "schema_version": 3, "solution": true}
#| export
def count_windows(num_tokens: int, context: int, stride: int) -> int:
    """-> how many windows of context + 1 tokens, stride apart, lie inside num_tokens; ValueError if none."""
    ### BEGIN SOLUTION
    if context < 1 or stride < 1:
        raise ValueError(f"context and stride must be at least 1, they are {context} and {stride}")
    last_start = num_tokens - (context + 1)
    if last_start < 0:
        raise ValueError(f"context {context} needs at least {context + 1} tokens, there are {num_tokens}")
    return last_start // stride + 1
    ### END SOLUTION


# %%
[count_windows(6, 4, 1), count_windows(10, 4, 4), count_windows(9, 4, 4), count_windows(8, 4, 4)]

# %% nbgrader={"grade": true, "grade_id": "test-count-windows", "locked": true, "points": 10, "schema_version": 3, "solution": false}
number = count_windows(6, 4, 1)
assert number == 2, f"6 tokens hold windows of 5 tokens at 0 and at 1, so 2; yours is {number}"
number = count_windows(9, 4, 4)
assert number == 2, f"9 tokens hold windows of 5 at 0 and at 4 (tokens 4 to 8), so 2; yours is {number}"
number = count_windows(5, 4, 3)
assert number == 1, f"exactly one window of 5 fits in 5 tokens, yours is {number}"
for num_tokens, context, stride, wrong in ((4, 4, 1, "4"), (9, 0, 1, "0"), (9, 4, 0, "0")):
    try:
        number = count_windows(num_tokens, context, stride)
    except ValueError as error:
        assert wrong in str(error), f"state the {wrong} that does not fit; yours says: {error}"
    else:
        raise AssertionError(
            f"{num_tokens} tokens, context {context}, stride {stride} gave {number}: no ValueError"
        )
### BEGIN HIDDEN TESTS
for num_tokens in range(2, 15):
    for context in range(1, num_tokens):
        for stride in range(1, 7):
            want = len([start for start in range(0, num_tokens, stride) if start + context < num_tokens])
            number = count_windows(num_tokens, context, stride)
            assert number == want, (
                f"{num_tokens} tokens, context {context}, stride {stride}: {want}, not {number}"
            )
### END HIDDEN TESTS

# %% [markdown]
"""
**Task (12 points).** Write `TokenDataset.__getitem__`: the tuple (inputs, targets) of window number `index`, both of length `self.context`, both slices of `self.tokens`, so that nothing is copied. Negative indices count from the end. An index that does not exist must raise `IndexError`, and here NumPy does not do it for you: a slice past the end is not an error in Python, only shorter. About 6 lines; use `self.stride` and `len(self)`.
"""


# %% nbgrader={"grade": false, "grade_id": "token-dataset", "locked": false, "schema_version": 3, "solution": true}
#| export
class TokenDataset(Dataset):
    """Windows of a token stream: sample i is (inputs, targets), views of context ids, targets one later."""

    def __init__(self, tokens: Tensor | np.ndarray | Sequence[int], context: int, stride: int = 1):
        """tokens: (N,) ids, kept as they are (a memory map stays on disk); window i begins at i * stride.

        Raises TypeError if the ids are not integers; ValueError if they do not have exactly one axis, if
        context or stride is smaller than 1, or if N is smaller than context + 1.
        """
        self.tokens = tokens.data if isinstance(tokens, Tensor) else np.asanyarray(tokens)
        if self.tokens.ndim != 1:
            raise ValueError(f"tokens must have 1 axis, these have {self.tokens.ndim}")
        if len(self.tokens) and self.tokens.dtype.kind not in "iu":
            raise TypeError(f"tokens must be integers, not {self.tokens.dtype}")
        self.context, self.stride = operator.index(context), operator.index(stride)
        self.num_windows = count_windows(len(self.tokens), self.context, self.stride)

    def __len__(self) -> int:
        return self.num_windows

    def __getitem__(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """-> (inputs, targets), each (T,)."""
        ### BEGIN SOLUTION
        index = operator.index(index)
        if not -len(self) <= index < len(self):
            raise IndexError(f"window {index} does not exist, there are {len(self)}")
        start = index % len(self) * self.stride
        window = self.tokens[start : start + self.context + 1]
        return window[:-1], window[1:]
        ### END SOLUTION


# %% [markdown]
"""
Take ten tokens, context 4 and stride 3. Which is the last window, and which tokens are never a target?
"""

# %%
windows = TokenDataset(np.arange(10), context=4, stride=3)
[windows[i] for i in range(len(windows))]

# %% nbgrader={"grade": true, "grade_id": "test-token-dataset", "locked": true, "points": 12, "schema_version": 3, "solution": false}
### BEGIN HIDDEN TESTS
yours = count_windows


def count_windows(num_tokens, context, stride):
    return len(range(0, num_tokens - context, stride))


### END HIDDEN TESTS
tokens = np.array([12, 7, 31, 5, 9, 2, 8])
dataset = TokenDataset(tokens, context=4)
inputs, targets = dataset[1]
assert np.array_equal(inputs, [7, 31, 5, 9]), f"window 1 reads 7 31 5 9, yours reads {inputs}"
assert np.array_equal(targets, [31, 5, 9, 2]), f"after 7 31 5 9 come 31 5 9 2, your targets are {targets}"
inputs, targets = TokenDataset(tokens, context=2, stride=2)[2]
assert np.array_equal(inputs, [9, 2]), f"with stride 2, window 2 begins at token 4: 9 2; yours reads {inputs}"
assert np.shares_memory(inputs, tokens) and np.shares_memory(targets, tokens), (
    "slices are views; yours copies"
)
for wrong in (3, -4):
    try:
        got = dataset[wrong]
    except IndexError:
        continue
    raise AssertionError(f"3 windows are numbered 0 to 2 (or -3 to -1), but {wrong} gave {got}")
### BEGIN HIDDEN TESTS
assert np.array_equal(dataset[-1][1], [9, 2, 8]) is False and np.array_equal(dataset[-1][1], [5, 9, 2, 8])
rng = np.random.default_rng(0)
for num_tokens, context, stride in ((13, 3, 2), (20, 5, 7), (9, 8, 1), (11, 1, 3)):
    tokens = rng.integers(0, 50, num_tokens)
    dataset = TokenDataset(tokens, context, stride)
    starts = [start for start in range(0, num_tokens, stride) if start + context < num_tokens]
    for place in range(-len(starts), len(starts)):
        inputs, targets = dataset[place]
        want = [int(tokens[starts[place] + t]) for t in range(context + 1)]
        assert inputs.tolist() == want[:-1] and targets.tolist() == want[1:], (
            f"window {place} should be {want}"
        )
count_windows = yours
### END HIDDEN TESTS

# %% [markdown]
"""
What do the views save? Take a million tokens in 16-bit integers, context 128, stride 1. The row itself takes 2 MB (1 MB is 10**6 bytes). All its windows, written out as inputs and targets, would take nearly 256 times as much.
"""

# %%
stream = np.zeros(1_000_000, dtype=np.uint16)
windows = TokenDataset(stream, context=128)
stream.nbytes / 10**6, len(windows) * sum(part.nbytes for part in windows[0]) / 10**6

# %% [markdown]
"""
## Samples become a batch

The model wants one array per field, with a new first axis of length B. Here numbers are copied for the first time, and only those of B samples: they lie in different places in memory and must end up side by side.

**Task (10 points).** Write `stack_samples(values)`: `values` is a list of B arrays (or numbers) of one shape; return a `Tensor` of shape (B, …). Integers of any width become int64, because ids stored in 16 bits to save space could overflow in 16-bit arithmetic. Floats become float32, which `Tensor` does for you, and booleans stay booleans. If two shapes differ, raise a `ValueError` that states both. About 8 lines.
"""


# %% nbgrader={"grade": false, "grade_id": "stack-samples", "locked": false, "schema_version": 3, "solution": true}
#| export
def stack_samples(values: Sequence) -> Tensor:
    """B arrays or numbers of one shape -> (B, ...) Tensor, int64, float32 or bool; else ValueError."""
    ### BEGIN SOLUTION
    arrays = [np.asarray(value) for value in values]
    for place, array in enumerate(arrays):
        if array.shape != arrays[0].shape:
            raise ValueError(f"sample {place} has shape {array.shape} and sample 0 has {arrays[0].shape}")
    batch = np.stack(arrays)
    return Tensor(batch.astype(np.int64) if batch.dtype.kind in "iu" else batch)
    ### END SOLUTION


# %%
stack_samples([np.array([1, 2, 3]), np.array([4, 5, 6])])

# %% nbgrader={"grade": true, "grade_id": "test-stack-samples", "locked": true, "points": 10, "schema_version": 3, "solution": false}
batch = stack_samples([np.array([1, 2, 3], dtype=np.uint16), np.array([4, 5, 6], dtype=np.uint16)])
assert isinstance(batch, Tensor), f"a batch is a Tensor, yours is a {type(batch).__name__}"
assert batch.shape == (2, 3), f"2 samples of shape (3,) give (2, 3), yours is {batch.shape}"
assert batch.data.tolist() == [[1, 2, 3], [4, 5, 6]], f"expected the samples as rows, yours is {batch.data}"
assert batch.dtype == np.int64, f"16-bit ids become int64 in a batch, yours are {batch.dtype}"
batch = stack_samples([0.5, 1.5, 2.5])
assert batch.shape == (3,) and batch.dtype == np.float32, (
    f"3 floats give (3,) float32: {batch.shape} {batch.dtype}"
)
try:
    stack_samples([np.zeros((2, 4)), np.zeros((2, 4)), np.zeros((2, 3))])
except ValueError as error:
    assert "(2, 4)" in str(error) and "(2, 3)" in str(error), f"state both shapes, yours says: {error}"
else:
    raise AssertionError("samples of shapes (2, 4) and (2, 3) do not fit together: raise a ValueError")
### BEGIN HIDDEN TESTS
assert stack_samples([7]).data.tolist() == [7], "a batch of one sample still has its first axis"
assert stack_samples([np.True_, np.False_]).dtype == np.bool_, "booleans stay booleans"
row = np.arange(4, dtype=np.int8)
batch = stack_samples([row, row])
row[0] = 99
assert batch.data[:, 0].tolist() == [0, 0], "a batch is a copy: it must not change when its samples do"
values = np.random.default_rng(1).standard_normal((3, 2, 5)).astype(np.float32)
assert np.array_equal(stack_samples(list(values)).data, values), "stack along a new first axis"
try:
    stack_samples([np.zeros(1), np.zeros(3)])
except ValueError:
    broadcast_refused = True
else:
    broadcast_refused = False
assert broadcast_refused, "shapes (1,) and (3,) would broadcast, but they do not fit"
### END HIDDEN TESTS

# %% [markdown]
"""
**Task (6 points).** Write `collate(samples)`. If the samples are tuples of n fields, return a tuple of n Tensors, one stacked field each; if they are not tuples, return one Tensor. If there are no samples, or tuples of different lengths, raise a `ValueError` that states the numbers. About 8 lines; `zip(*samples)` turns B tuples of n into n tuples of B.
"""


# %% nbgrader={"grade": false, "grade_id": "collate", "locked": false, "schema_version": 3, "solution": true}
#| export
def collate(samples: Sequence) -> tuple[Tensor, ...] | Tensor:
    """B tuples of n fields -> n Tensors (B, ...); B samples that are not tuples -> one Tensor (B, ...)."""
    ### BEGIN SOLUTION
    if not samples:
        raise ValueError("a batch needs at least 1 sample, it was given 0")
    if not isinstance(samples[0], tuple):
        return stack_samples(samples)
    for place, sample in enumerate(samples):
        if len(sample) != len(samples[0]):
            raise ValueError(f"sample {place} has {len(sample)} fields and sample 0 has {len(samples[0])}")
    return tuple(stack_samples(field) for field in zip(*samples, strict=True))
    ### END SOLUTION


# %%
collate([points[0], points[2]])

# %% nbgrader={"grade": true, "grade_id": "test-collate", "locked": true, "points": 6, "schema_version": 3, "solution": false}
### BEGIN HIDDEN TESTS
yours = stack_samples


def stack_samples(values):
    shapes = [np.shape(value) for value in values]
    assert len(set(shapes)) == 1, f"you stack values of shapes {shapes}; is each of them the same field?"
    return Tensor(np.array(list(values)))


### END HIDDEN TESTS
batch = collate([([1, 2, 3], 0), ([4, 5, 6], 1)])
assert isinstance(batch, tuple) and len(batch) == 2, f"samples of 2 fields give 2 Tensors, yours: {batch!r}"
assert batch[0].shape == (2, 3) and batch[1].shape == (2,), (
    f"expected shapes (2, 3) and (2,), yours are {[t.shape for t in batch]}"
)
assert batch[1].data.tolist() == [0, 1], f"the second field is 0 and 1, yours is {batch[1].data}"
batch = collate([3.0, 4.0])
assert isinstance(batch, Tensor), f"samples that are not tuples give one Tensor, yours: {batch!r}"
### BEGIN HIDDEN TESTS
batch = collate([(1, 2, 3)])
assert [part.data.tolist() for part in batch] == [[1], [2], [3]], "a batch of one keeps its first axis"
batch = collate([([1.0],), ([2.0],)])
assert isinstance(batch, tuple) and len(batch) == 1, "tuples of one field give a tuple of one Tensor"
for samples in ([], [(1, 2), (3,)], [(1,), (2, 3)]):
    try:
        collate(samples)
    except ValueError as error:
        message = str(error)
    else:
        raise AssertionError(f"{samples} should raise a ValueError")
    numbers = [str(len(sample)) for sample in samples] or ["0"]
    assert all(number in message for number in numbers), f"state the numbers {numbers}, yours says: {message}"
stack_samples = yours
### END HIDDEN TESTS

# %% [markdown]
"""
## The order of an epoch

A file often has an order of its own, say all samples of one class and then all of the next. Read in that order, neighbouring batches are alike, and the model drifts towards whatever it saw last. So shuffle, anew in every epoch.

But a run with random numbers can be repeated only if you know where they come from. A generator shared by the whole program has a history, and its next number depends on all of it. Here the order is a *function* of the seed and the epoch number, and of nothing else. You can have epoch 7 without computing epochs 0 to 6, and the whole state of the shuffling is two integers.

**Task (12 points).** Write `epoch_order(num_samples, epoch, seed=None)`: an integer array with each of 0 … N − 1 once. Without a seed, they come in order. With a seed, return a permutation from a generator made on the spot from both numbers. Their sum would not do: seed 3 in epoch 1 would repeat seed 4 in epoch 0. `np.random.default_rng` also accepts a list of integers and mixes all of them in. About 3 lines.
"""


# %% nbgrader={"grade": false, "grade_id": "epoch-order", "locked": false, "schema_version": 3, "solution": true}
#| export
def epoch_order(num_samples: int, epoch: int, seed: int | None = None) -> np.ndarray:
    """-> (N,) ints, each of 0..N-1 once: in order without a seed, else shuffled by seed and epoch alone."""
    ### BEGIN SOLUTION
    if seed is None:
        return np.arange(num_samples)
    return np.random.default_rng([seed, epoch]).permutation(num_samples)
    ### END SOLUTION


# %%
[epoch_order(6, epoch, seed=3).tolist() for epoch in (0, 1, 0)]

# %% nbgrader={"grade": true, "grade_id": "test-epoch-order", "locked": true, "points": 12, "schema_version": 3, "solution": false}
order = epoch_order(5, epoch=2)
assert np.array_equal(order, [0, 1, 2, 3, 4]), f"without a seed the order is 0 1 2 3 4, yours is {order}"
first, again, later = (epoch_order(50, epoch, seed=3) for epoch in (0, 0, 1))
assert sorted(first.tolist()) == list(range(50)), (
    f"each of the 50 samples must come exactly once, yours: {first}"
)
assert not np.array_equal(first, np.arange(50)), "with a seed the order should be shuffled"
assert np.array_equal(first, again), "the same seed and epoch must give the same order every time"
assert not np.array_equal(first, later), "epoch 1 should not repeat the order of epoch 0"
### BEGIN HIDDEN TESTS
assert not np.array_equal(epoch_order(50, 0, seed=4), later), "seed 4 in epoch 0 repeats seed 3 in epoch 1"
assert not np.array_equal(epoch_order(50, 3, seed=1), epoch_order(50, 1, seed=3)), (
    "seed 1 in epoch 3 repeats seed 3 in epoch 1"
)
assert not np.array_equal(epoch_order(50, 0, seed=0), np.arange(50)), "seed 0 is a seed, not the lack of one"
assert not np.array_equal(epoch_order(50, 0, seed=0), epoch_order(50, 1, seed=0)), (
    "with seed 0, too, each epoch must have its own order"
)
counts = np.zeros((4, 4), dtype=int)
for epoch in range(400):
    counts[np.arange(4), epoch_order(4, epoch, seed=5)] += 1
assert counts.min() > 60, f"in 400 epochs each of 4 samples should be about 100 times in each place: {counts}"
assert len(epoch_order(0, 0, seed=1)) == 0, "without samples the order is empty"
### END HIDDEN TESTS

# %% [markdown]
"""
## Cutting the order into batches

Seven samples in batches of three make 3, 3 and 1. The short batch at the end may be kept or dropped. Keep it when every sample counts, as in an evaluation; drop it when a gradient from so few samples is too noisy to be worth a step.

**Task (8 points).** Write `split_batches(order, batch_size, drop_last)`: a list of slices of `order`. About 4 lines.
"""


# %% nbgrader={"grade": false, "grade_id": "split-batches", "locked": false, "schema_version": 3, "solution": true}
#| export
def split_batches(order: np.ndarray, batch_size: int, drop_last: bool) -> list[np.ndarray]:
    """-> consecutive slices of order, batch_size long; the last may be shorter, unless drop_last."""
    ### BEGIN SOLUTION
    batches = [order[start : start + batch_size] for start in range(0, len(order), batch_size)]
    if drop_last and batches and len(batches[-1]) < batch_size:
        batches.pop()
    return batches
    ### END SOLUTION


# %%
split_batches(np.arange(7), 3, drop_last=False), split_batches(np.arange(7), 3, drop_last=True)

# %% nbgrader={"grade": true, "grade_id": "test-split-batches", "locked": true, "points": 8, "schema_version": 3, "solution": false}
order = np.array([4, 0, 6, 2, 5, 1, 3])
batches = [batch.tolist() for batch in split_batches(order, 3, False)]
assert batches == [[4, 0, 6], [2, 5, 1], [3]], f"7 samples in threes are 3, 3 and 1, yours: {batches}"
batches = [batch.tolist() for batch in split_batches(order, 3, True)]
assert batches == [[4, 0, 6], [2, 5, 1]], f"drop_last drops the short batch [3], yours: {batches}"
batches = [batch.tolist() for batch in split_batches(order[:6], 3, True)]
assert batches == [[4, 0, 6], [2, 5, 1]], f"6 samples in threes leave nothing to drop, yours: {batches}"
### BEGIN HIDDEN TESTS
for num_samples in range(0, 12):
    for batch_size in range(1, 8):
        order = np.arange(num_samples)[::-1]
        whole = [
            order[i * batch_size : (i + 1) * batch_size].tolist() for i in range(num_samples // batch_size)
        ]
        rest = order[num_samples - num_samples % batch_size :].tolist()
        for drop_last in (False, True):
            want = whole + ([rest] if rest and not drop_last else [])
            got = [batch.tolist() for batch in split_batches(order, batch_size, drop_last)]
            assert got == want, (
                f"{num_samples} samples, batch_size {batch_size}, drop_last {drop_last}: {want}, not {got}"
            )
### END HIDDEN TESTS

# %% [markdown]
"""
## The loader and its position

The loader joins the parts: it takes the order of the epoch, cuts it into batches, fetches the samples of each and collates them. One `for` loop over the loader is one epoch.

A run of several hours also needs a way to stop and continue. The loader's position is two integers: `self.epoch` and `self.batch` say which batch comes *next*. They move before a batch is handed out, so if you save the state after training on a batch, you will not train on it again. After the last batch of epoch 3 comes batch 0 of epoch 4.

A `for` loop that is left before the last batch does not count: the next loop shows the same epoch from its beginning, and the position says so. So a look at `next(iter(loader))` does not change what you train on. Only a loaded state begins in the middle, at batch `self.start`, which is otherwise 0. (The Trainer of module 07 stops in the middle of an epoch and continues there; it asks for that with `going_on`.)

And what if the loss is measured on the same data while a loop over it is running? The two loops must not move each other's position. So the given `__iter__` runs each pass on a copy of the loader, where your generator moves the position. The loader follows the pass that began first; any pass begun meanwhile is a whole epoch that leaves no trace.

**Task (4 + 8 + 6 points).**

- `__len__()`: the number of batches in a whole epoch, computed without looping. About 3 lines.
- `one_epoch()`, a generator: take the order of `self.epoch` (`self.order_seed` is the seed, or None for no shuffling) and cut it. For each batch from number `self.start` on, move the position forward, then `yield` the collated samples. With the last batch, `self.epoch` grows by 1, and `self.batch` and `self.start` become 0. About 7 lines.
- `state_dict()` and `load_state_dict(state)`. The state has three integers that say which batch comes next, `epoch`, `batch` and `seed`, and four that say which loader they are valid for, `num_samples`, `batch_size`, `shuffle` and `drop_last`; `self.fixed()` returns those four. Loading checks first: it raises a `ValueError` if a name is missing, if one of the four differs (state both values), if epoch or seed is negative, or if the batch is not one of 0 … len(self) − 1. Then it sets `self.epoch` and `self.seed`, and sets both `self.batch` and `self.start` to the batch. If anything is wrong, nothing is set. About 14 lines together.
"""


# %% nbgrader={"grade": false, "grade_id": "data-loader", "locked": false, "schema_version": 3, "solution": true}
#| export
class DataLoader:
    """Batches of a dataset, one epoch per for loop; `epoch` and `batch` say which batch comes next."""

    def __init__(
        self,
        dataset: Dataset | Sequence,
        batch_size: int,
        shuffle: bool = False,
        drop_last: bool = False,
        seed: int | np.random.Generator | None = None,
        rng: int | np.random.Generator | None = None,
    ):
        """dataset: anything with a length and samples by number.

        shuffle needs one of seed and rng, which mean the same: an integer, or a Generator, from which one
        integer is drawn now. The order of an epoch then depends only on that and on the epoch's number.
        Raises ValueError if batch_size is smaller than 1, if there is no sample, or if drop_last drops all.
        """
        num_samples, batch_size = len(dataset), operator.index(batch_size)
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, it is {batch_size}")
        if num_samples < 1:
            raise ValueError("a loader needs at least 1 sample, the dataset has 0")
        if drop_last and num_samples < batch_size:
            raise ValueError(f"drop_last leaves no batch: {num_samples} samples, batch_size {batch_size}")
        if seed is not None and rng is not None:
            raise ValueError("give a seed or an rng, not both")
        if shuffle and seed is None and rng is None:
            raise ValueError("shuffle=True needs a seed or an rng, so that the order can be repeated")
        seed = rng if seed is None else seed
        if isinstance(seed, np.random.Generator):
            seed = seed.integers(2**63) if shuffle else 0
        self.seed = 0 if seed is None else operator.index(seed)
        if self.seed < 0:
            raise ValueError(f"seed must not be negative, it is {self.seed}")
        self.dataset, self.batch_size = dataset, batch_size
        self.shuffle, self.drop_last = bool(shuffle), bool(drop_last)
        self.epoch = self.batch = self.start = 0
        self.first: DataLoader | None = None  # the pass that this loader follows, a copy of itself
        self.breaks_count = False

    @property
    def order_seed(self) -> int | None:
        """The seed for epoch_order; None if this loader does not shuffle."""
        return self.seed if self.shuffle else None

    def fixed(self) -> dict[str, int]:
        """-> the values that a state must agree with to be valid here."""
        return {
            "num_samples": len(self.dataset),
            "batch_size": self.batch_size,
            "shuffle": int(self.shuffle),
            "drop_last": int(self.drop_last),
        }

    def __len__(self) -> int:
        """-> the number of batches in a whole epoch."""
        ### BEGIN SOLUTION
        whole, rest = divmod(len(self.dataset), self.batch_size)
        return whole + (rest > 0 and not self.drop_last)
        ### END SOLUTION

    def __iter__(self) -> Iterator[tuple[Tensor, ...] | Tensor]:
        """One pass: the batches of this epoch, from `start` on; `epoch` and `batch` follow it.

        A pass begun while another is under way covers the whole epoch and moves no position.
        """
        own = copy(self)
        if self.first is not None:
            own.start = 0
            return own.one_epoch()
        return self.follow(own)

    def follow(self, own: "DataLoader") -> Iterator[tuple[Tensor, ...] | Tensor]:
        """Run the pass of a copy of this loader and take over its position, unless ours is set meanwhile."""
        if self.first is not None:  # another pass began after this one was created
            own.start = 0
            yield from own.one_epoch()
            return
        self.first, place = own, (self.epoch, self.batch, self.start)
        try:
            for batch in own.one_epoch():
                if (self.epoch, self.batch, self.start) == place:
                    place = own.epoch, own.batch, own.start
                    self.epoch, self.batch, self.start = place
                yield batch
        finally:
            self.first = None
            if (self.epoch, self.batch, self.start) == place:
                self.start = self.batch = self.batch if self.breaks_count else self.start

    @contextmanager
    def going_on(self) -> Iterator[None]:
        """Inside the block a pass that is left early counts: the next one continues after it."""
        before, self.breaks_count = self.breaks_count, True
        try:
            yield
        finally:
            self.breaks_count = before

    def one_epoch(self) -> Iterator[tuple[Tensor, ...] | Tensor]:
        """The batches of this epoch, from `start` on; `epoch` and `batch` move before each is handed out."""
        ### BEGIN SOLUTION
        order = epoch_order(len(self.dataset), self.epoch, self.order_seed)
        batches = split_batches(order, self.batch_size, self.drop_last)
        for number in range(self.start, len(batches)):
            self.batch = number + 1
            if self.batch == len(batches):
                self.epoch, self.batch, self.start = self.epoch + 1, 0, 0
            yield collate([self.dataset[i] for i in batches[number].tolist()])
        ### END SOLUTION

    def state_dict(self) -> dict[str, int]:
        """-> the integers that load_state_dict needs to continue with the next batch."""
        ### BEGIN SOLUTION
        return {"epoch": self.epoch, "batch": self.batch, "seed": self.seed, **self.fixed()}
        ### END SOLUTION

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        """Continue where state_dict was taken; ValueError, with nothing changed, if it does not fit."""
        ### BEGIN SOLUTION
        for name in ("epoch", "batch", "seed", *self.fixed()):
            if name not in state:
                raise ValueError(f"the state has no {name!r}")
        for name, value in self.fixed().items():
            if state[name] != value:
                raise ValueError(f"the state was saved with {name} {state[name]}, this loader has {value}")
        epoch, batch, seed = (operator.index(state[name]) for name in ("epoch", "batch", "seed"))
        if epoch < 0 or seed < 0:
            raise ValueError(f"epoch and seed must not be negative, they are {epoch} and {seed}")
        if not 0 <= batch < len(self):
            raise ValueError(f"the state's batch {batch} is not one of this loader's {len(self)} batches")
        self.epoch, self.seed = epoch, seed
        self.batch = self.start = batch
        ### END SOLUTION


# %% [markdown]
"""
Here are two epochs of the windows of ten tokens, in batches of three. Look for a sample that is missing or comes twice.
"""

# %%
loader = DataLoader(TokenDataset(np.arange(10), context=2), batch_size=3, shuffle=True, seed=1)
[[inputs.data[:, 0].tolist() for inputs, targets in loader] for epoch in range(2)]

# %% nbgrader={"grade": true, "grade_id": "test-loader-len", "locked": true, "points": 4, "schema_version": 3, "solution": false}
samples = list(range(7))
number = len(DataLoader(samples, 3))
assert number == 3, f"7 samples in threes are 3 batches, the last with 1 sample; yours says {number}"
number = len(DataLoader(samples, 3, drop_last=True))
assert number == 2, f"with drop_last the batch of 1 is dropped and 2 are left; yours says {number}"
### BEGIN HIDDEN TESTS
for num_samples in range(1, 13):
    for batch_size in range(1, num_samples + 1):
        for drop_last in (False, True):
            starts = range(0, num_samples, batch_size)
            want = sum(1 for s in starts if not drop_last or s + batch_size <= num_samples)
            number = len(DataLoader(list(range(num_samples)), batch_size, drop_last=drop_last))
            assert number == want, (
                f"{num_samples} samples, {batch_size}, drop_last {drop_last}: {want}, not {number}"
            )
assert len(DataLoader([1, 2], 5)) == 1, "fewer samples than batch_size are one short batch"
### END HIDDEN TESTS

# %% nbgrader={"grade": true, "grade_id": "test-loader-iter", "locked": true, "points": 8, "schema_version": 3, "solution": false}
### BEGIN HIDDEN TESTS
yours = epoch_order, split_batches, collate


def epoch_order(num_samples, epoch, seed=None):
    return (
        np.arange(num_samples)
        if seed is None
        else (np.arange(num_samples) * (epoch + 2) + seed) % num_samples
    )


def split_batches(order, batch_size, drop_last):
    end = len(order) - len(order) % batch_size if drop_last else len(order)
    return [order[start : min(start + batch_size, end)] for start in range(0, end, batch_size)]


def collate(samples):
    return tuple(Tensor(np.array(field)) for field in zip(*samples, strict=True))


### END HIDDEN TESTS
samples = [(10 * i, i) for i in range(7)]
loader = DataLoader(samples, 3)
seen = [(loader.epoch, loader.batch, tens.data.tolist()) for tens, ones in loader]
assert [batch for _, _, batch in seen] == [[0, 10, 20], [30, 40, 50], [60]], f"wrong batches: {seen}"
places = [(epoch, number) for epoch, number, _ in seen]
assert places == [(0, 1), (0, 2), (1, 0)], f"next: batch 1, batch 2, batch 0 of epoch 1; yours: {places}"
loader.start = 2
rest = [tens.data.tolist() for tens, ones in loader]
assert rest == [[60]], f"from start 2 on only the third batch is left, yours: {rest}"
assert (loader.epoch, loader.batch, loader.start) == (2, 0, 0), "the next epoch begins at batch 0 again"
### BEGIN HIDDEN TESTS
next(iter(loader))
loader.start = 1
next(iter(loader))
loader.start = 0
assert [ones.data.tolist() for tens, ones in loader] == [[0, 1, 2], [3, 4, 5], [6]], (
    "looking at a batch must not use it up"
)
shuffled = DataLoader(samples, 3, shuffle=True, seed=5, drop_last=True)
for epoch in range(3):
    want = [[(i * (epoch + 2) + 5) % 7 for i in range(start, start + 3)] for start in (0, 3)]
    got = [ones.data.tolist() for tens, ones in shuffled]
    assert got == want, (
        f"epoch {epoch} should take the order of epoch_order({7}, {epoch}, 5): {want}, not {got}"
    )
epoch_order, split_batches, collate = yours
### END HIDDEN TESTS

# %% nbgrader={"grade": true, "grade_id": "test-loader-state", "locked": true, "points": 6, "schema_version": 3, "solution": false}
### BEGIN HIDDEN TESTS
YourLoader = DataLoader


class DataLoader(YourLoader):
    def __len__(self):
        return -(-len(self.dataset) // self.batch_size)


### END HIDDEN TESTS
loader = DataLoader(list(range(7)), 3, shuffle=True, seed=11)
loader.epoch, loader.batch = 4, 2
state = loader.state_dict()
want = {"epoch": 4, "batch": 2, "seed": 11, "num_samples": 7, "batch_size": 3, "shuffle": 1, "drop_last": 0}
assert state == want, f"the state should be {want}, yours is {state}"
other = DataLoader(list(range(7)), 3, shuffle=True, seed=99)
other.load_state_dict(want)
found = (other.epoch, other.batch, other.start, other.seed)
assert found == (4, 2, 2, 11), f"epoch, batch, start, seed should be (4, 2, 2, 11), yours are {found}"
try:
    other.load_state_dict({**want, "epoch": 5, "batch_size": 4})
except ValueError as error:
    assert "4" in str(error) and "3" in str(error), f"state both batch sizes, 4 and 3; yours says: {error}"
else:
    raise AssertionError("a state saved with batch_size 4 means nothing to a loader with batch_size 3")
assert other.epoch == 4, "after an error nothing should have changed"
### BEGIN HIDDEN TESTS
changes = [{"num_samples": 8}, {"shuffle": 0}, {"drop_last": 1}, {"epoch": -1}, {"batch": 3}, {"batch": -1}]
wrong_states = [{**want, "epoch": 5, **change} for change in changes]
wrong_states += [{name: want[name] for name in want if name != missing} for missing in want]
for wrong in wrong_states:
    try:
        other.load_state_dict(wrong)
    except ValueError:
        found = (other.epoch, other.batch, other.start, other.seed)
        assert found == (4, 2, 2, 11), f"{wrong} was refused, but changed the loader to {found}"
    else:
        raise AssertionError(f"{wrong} was accepted by a loader whose own state is {want}")
DataLoader = YourLoader
### END HIDDEN TESTS

# %% [markdown]
"""
Now all of it together. Take five batches, stop, and let a *new* loader continue from the saved state. Its batches must be those that the first loader would have shown next. The cell ends in True if they are, for the rest of this epoch and the whole next one.
"""

# %%
tokens = np.random.default_rng(0).integers(0, 100, 60)
first = DataLoader(TokenDataset(tokens, context=4, stride=2), batch_size=4, shuffle=True, seed=7)
batches = iter(first)
for _ in range(5):
    next(batches)
saved = first.state_dict()
second = DataLoader(TokenDataset(tokens, context=4, stride=2), batch_size=4, shuffle=True, seed=0)
second.load_state_dict(saved)
rest = [*batches, *first]
resumed = [*second, *second]
(
    len(rest),
    all(
        np.array_equal(a.data, b.data)
        for x, y in zip(rest, resumed, strict=True)
        for a, b in zip(x, y, strict=True)
    ),
)

# %% [markdown]
"""
## Is it fast enough?

The loader should take only a small part of a training step, or the model waits for it. A step of this course's chat model (8 texts of 256 tokens) took 0.25 s of processor time on one core. The cell gives the number of batches in an epoch and the milliseconds per batch of 32 windows of 128 tokens on your machine.
"""

# %%
import time

loader = DataLoader(TokenDataset(stream, context=128, stride=128), batch_size=32, shuffle=True, seed=0)
start = time.perf_counter()
num_batches = sum(1 for _ in loader)
num_batches, round((time.perf_counter() - start) / num_batches * 1000, 3)

# %% [markdown]
"""
## Questions

**Question 1 (5 points).** You want to know how well your language model does on text it has not seen, so you hold back a tenth. One colleague makes all windows of the whole text with stride 1 and takes a tenth of the *windows* at random. Another first cuts off the last tenth of the *tokens* and makes windows of each part. Which validation loss will be lower, and what does it measure? How many tokens do a window and its neighbour share at context 128?
"""

# %% [markdown] nbgrader={"grade": true, "grade_id": "question-held-out", "locked": false, "points": 5, "schema_version": 3, "solution": true}
"""
Your answer here.
"""

# %% [markdown]
"""
**Question 2 (5 points).** A run of 20 epochs over 10**8 samples is interrupted in the middle of epoch 13. A different loader shuffles one list of indices in place, with a single generator, at the beginning of each epoch. List what it would have to save for the run to continue exactly, and how many bytes that is; compare with yours. What does yours compute again when it resumes, and roughly how much work is that?
"""

# %% [markdown] nbgrader={"grade": true, "grade_id": "question-resume", "locked": false, "points": 5, "schema_version": 3, "solution": true}
"""
Your answer here.
"""

# %% [markdown]
"""
## You can now

- turn any numbered collection into a dataset with two methods, and a text of any length into windows without copying it;
- give a training loop batches that hold every sample once per epoch, in an order that two integers determine;
- interrupt a run anywhere and continue as if nothing had happened.

Two exercises:

1. Write `Subset(dataset, indices)`, a dataset that shows only some samples of another, and use it to hold back the last tenth of the samples of a `TensorDataset`. Why is it wrong for the last tenth of the windows with stride 1? How many of those windows contain tokens that were trained on?
2. Write a dataset of sentences of different lengths and a collate function of your own that pads them to the longest in the batch. What must the loss know about the padding?

Next: the numbers that now arrive in batches grow and shrink on their way through the layers. In module 09, normalization keeps them in bounds.
"""
