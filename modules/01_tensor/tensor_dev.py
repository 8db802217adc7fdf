# %% [markdown]
"""
# Module 01: Tensor

A language model is a few hundred arrays of numbers and a handful of operations on them: add, multiply, matrix product, sum, exponential. In this module you build the object that carries such an array through all of them. NumPy does the arithmetic. You decide which numbers are accepted, which shapes fit together and what is copied, and you send every operation through one door, so that a single place knows what ran.

The class stays thin on purpose. To write one word, a model calls these operations hundreds of times, and it pays for every microsecond that the class adds just as often.

After this module you will be able to

- say which type the tensor of any data will have, and why 32-bit floats are the rule here;
- tell a view from a copy by looking at strides, and prove it;
- predict the shape of any sum and of any matrix product, or name the two sizes that do not fit;
- write a class whose objects mix with arrays and plain numbers on either side of an operator;
- send every operation through one function, observe what passes through it, and measure what that costs.

You need Python classes and the basics of NumPy arrays (creating, indexing). Each part is graded alone: in the final grading it runs with correct versions of the parts before it, so a mistake costs only the points of its own part.
"""

# %%
#| default_exp core.tensor

# %%
import copy
import operator
import pickle
import timeit
import warnings
from collections import Counter

# %%
#| export
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, DTypeLike

# %% [markdown]
"""
## Which numbers get in

Python's floats have 64 bits, and so do the entries of a NumPy array made from them. Models use 32: they need half the memory, and a processor handles twice as many numbers per instruction. About seven decimal digits remain, which is plenty for a model. Look at what is lost.
"""

# %%
one_third = np.array(1 / 3)
{
    "float64": (one_third.nbytes, f"{one_third:.17f}"),
    "float32": (one_third.astype(np.float32).nbytes, f"{one_third.astype(np.float32):.17f}"),
}

# %% [markdown]
"""
A single float64 array undoes this: for NumPy, `float32 + float64` is float64, and so is everything computed from the result. So you guard the entrance. Integers and booleans pass unchanged, because they are not measurements but names and choices: token 50,256 must not become 50,256.0.

**Task (10 points).** Write `as_array(data, dtype=None)`. Make an array of `data` with `np.asarray`, then:

- without `dtype`, floats of any width become float32; integers and booleans stay what they are;
- with `dtype`, the array gets that type (`np.float64`, where the extra digits are needed);
- an array that already has the right type is returned without a copy: `astype(..., copy=False)`;
- text, `None`, complex numbers and other objects raise a `TypeError` that names the type found, and so does a `dtype` of such a kind. `array.dtype.kind` is `"f"` for floats, `"i"` and `"u"` for integers, `"b"` for booleans.

About 6 lines. One check is given: gradients come in module 05, and a list of tensors would silently lose them here.
"""


# %%
#| export
def check_gradients(data: Any) -> None:
    """Raises TypeError for a list of tensors that require gradients: an array of their numbers has none."""
    if set(map(type, data)) <= {int, float, bool}:
        return
    for item in data:
        if isinstance(item, (list, tuple)):
            check_gradients(item)
        elif getattr(item, "requires_grad", False):
            raise TypeError(
                f"a list of {len(data)} tensors would lose their gradients: stack(tensors) keeps them, "
                "tensor.data gives plain numbers"
            )


# %% nbgrader={"grade": false, "grade_id": "as-array", "locked": false, "schema_version": 3, "solution": true}
#| export
def as_array(data: ArrayLike, dtype: DTypeLike | None = None) -> np.ndarray:
    """Any numbers -> an array: floats in float32, integers and booleans as they are.

    dtype: asks for another type, such as np.float64. An array that already has the right type is not copied.
    Raises TypeError for anything other than real numbers and for lists of tensors that require gradients,
    ValueError for rows of different lengths.
    """
    if isinstance(data, (list, tuple)):
        check_gradients(data)
    ### BEGIN SOLUTION
    array = np.asarray(data)
    for found in (array.dtype,) if dtype is None else (array.dtype, np.dtype(dtype)):
        if found.kind not in "fiub":
            raise TypeError(f"a tensor holds real numbers, not {found} (from {type(data).__name__})")
    if dtype is None and array.dtype.kind == "f":
        dtype = np.float32
    return array if dtype is None else array.astype(dtype, copy=False)
    ### END SOLUTION


# %% [markdown]
"""
Four inputs, four types. Predict them before you run the cell.
"""

# %%
[as_array(data).dtype.name for data in ([1, 2], [1, 2.5], np.zeros(3), [True, False])]

# %% nbgrader={"grade": true, "grade_id": "test-as-array", "locked": true, "points": 10, "schema_version": 3, "solution": false}
floats = as_array([1, 2.5])
assert isinstance(floats, np.ndarray), f"as_array returns an ndarray, yours is a {type(floats).__name__}"
assert floats.dtype == np.float32, f"floats become float32, yours are {floats.dtype}"
assert as_array(np.zeros(2)).dtype == np.float32, "a float64 array becomes float32 unless dtype asks for more"
assert as_array([3, 4]).dtype.kind == "i", f"integers stay integers, yours are {as_array([3, 4]).dtype}"
assert as_array([True]).dtype == bool, f"booleans stay booleans, yours are {as_array([True]).dtype}"
wide = as_array([1 / 3], dtype=np.float64)
assert wide.dtype == np.float64, f"dtype=np.float64 asks for float64, yours is {wide.dtype}"
assert wide[0] == 1 / 3, "float64 was asked for, but digits are lost: was the number float32 in between?"
right = np.ones(4, np.float32)
assert as_array(right) is right or np.shares_memory(as_array(right), right), "float32 needs no copy"
for wrong in ("three", None, [1j], [object()]):
    try:
        as_array(wrong)
    except TypeError:
        continue
    raise AssertionError(f"{wrong!r} does not hold real numbers: as_array should raise a TypeError")
### BEGIN HIDDEN TESTS
for kind in (np.int8, np.uint16, np.int32, np.int64, np.bool_):
    data = np.ones((2, 3), kind)
    assert as_array(data).dtype == kind, f"{kind.__name__} should stay, yours became {as_array(data).dtype}"
    assert np.shares_memory(as_array(data), data), f"{kind.__name__} needs no conversion and no copy"
assert as_array(np.ones(2, np.float16)).dtype == np.float32, "float16 becomes float32 too"
assert as_array(np.float64(0.5)).dtype == np.float32, "a NumPy number is data like any other"
assert as_array(7).shape == (), "a plain number is an array without axes"
assert as_array([[1, 2, 3], [4, 5, 6]]).shape == (2, 3)
assert as_array(np.ones(3, np.float32), np.float64).dtype == np.float64, "dtype widens float32 as well"
assert as_array([1, 2], dtype=np.float32).dtype == np.float32, "dtype makes integers floats"
assert as_array(np.float64([1e-3]), np.float64)[0] == 1e-3
strided = np.ones((4, 6), np.float32)[:, ::2]
assert np.shares_memory(as_array(strided), strided), "a view is an array of the right type: no copy"
for data, dtype in (([1, 2], complex), ([1, 2], "U5"), (["1", "2"], np.float32), (np.array(["a"]), None)):
    try:
        as_array(data, dtype)
    except TypeError:
        continue
    raise AssertionError(f"{data!r} with dtype {dtype} should raise a TypeError")
try:
    as_array([[1, 2], [3]])
except ValueError:
    pass
else:
    raise AssertionError("rows of different lengths do not make an array: raise a ValueError")
### END HIDDEN TESTS

# %% [markdown]
"""
## Where the numbers are stored

An array is a block of memory, whose entries are numbered from 0, and a rule that says where entry `[i, j, k]` is. The rule is one step size per axis, the *strides*: entry `[i, j, k]` is at `i * s0 + j * s1 + k * s2`. In a new array the entries along the last axis are neighbours, so its step is 1; the step of the axis before it is the length of a row; and so on.

**Task (6 points).** Write `row_major_strides(shape)`: the strides of a new array of that shape, counted in entries, as a tuple. `(2, 3, 4)` gives `(12, 4, 1)`: the next `j` is 4 entries further on, the next `i` 3 times 4. Axes may have length 0; the sizes are multiplied as usual. About 5 lines, from the last axis to the first.
"""


# %% nbgrader={"grade": false, "grade_id": "row-major-strides", "locked": false, "schema_version": 3, "solution": true}
#| export
def row_major_strides(shape: tuple) -> tuple:
    """For each axis, how many entries apart two neighbouring indices are in a new array of `shape`."""
    ### BEGIN SOLUTION
    strides, step = [], 1
    for size in reversed(shape):
        strides.append(step)
        step *= size
    return tuple(reversed(strides))
    ### END SOLUTION


# %% [markdown]
"""
NumPy counts its strides in bytes, and a float32 takes 4 of them. Do the two agree?
"""

# %%
row_major_strides((2, 3, 4)), tuple(step // 4 for step in np.zeros((2, 3, 4), np.float32).strides)

# %% nbgrader={"grade": true, "grade_id": "test-row-major-strides", "locked": true, "points": 6, "schema_version": 3, "solution": false}
found = row_major_strides((2, 3, 4))
assert isinstance(found, tuple), f"the strides are a tuple, yours are a {type(found).__name__}"
assert found[-1] == 1, f"entries along the last axis are neighbours: its step is 1, yours is {found[-1]}"
assert found == (12, 4, 1), f"(2, 3, 4) has the strides (12, 4, 1), yours are {found}"
assert row_major_strides((5,)) == (1,), "an only axis has the step 1"
### BEGIN HIDDEN TESTS
assert row_major_strides(()) == (), "no axes, no steps"
for shape in ((7, 2), (3, 1, 5), (2, 3, 5, 4, 6)):
    numbered = np.arange(np.prod(shape)).reshape(shape)  # each entry holds its own place in the block
    found = row_major_strides(shape)
    for index in np.ndindex(shape):
        place = sum(i * s for i, s in zip(index, found, strict=True))
        assert place == numbered[index], (
            f"shape {shape}: entry {index} is at {numbered[index]}, yours is at {place}"
        )
assert row_major_strides((2, 0, 3)) == (0, 3, 1), "sizes are multiplied as they are, even 0"
### END HIDDEN TESTS

# %% [markdown]
"""
Now the surprise: transposing moves no numbers. A transposed array is the same block, read with the steps swapped. A slice is the same block too, read from another start or with other steps. Such an array is a *view*: making one costs the same for ten entries as for ten million, and writing into it writes into the block. `np.shares_memory` tells you whether two arrays share memory.
"""

# %%
table = np.arange(6, dtype=np.float32).reshape(2, 3)
views = {"table": table, "table.T": table.T, "table[:, 1]": table[:, 1], "table[::-1]": table[::-1]}
{name: (tuple(s // 4 for s in view.strides), np.shares_memory(view, table)) for name, view in views.items()}

# %% [markdown]
"""
A negative step walks backwards. Rows chosen by a list always get a new block, since a list need not have constant steps, and so do most reshapes of a transposed array. Reading `table.T` row by row visits the places 0, 3, 1, 4, 2, 5. They are not evenly spaced, so no single step describes them, and a row of these six numbers needs a new block.
"""

# %%
copies = {"table[[1, 0]]": table[[1, 0]], "table.T.reshape(6)": table.T.reshape(6), "table + 0": table + 0}
{name: np.shares_memory(array, table) for name, array in copies.items()}

# %% [markdown]
"""
**Question (5 points).** Let `x` be a new array of shape (4, 6). Which of these are views of `x`, and which are copies: `x[2]`, `x[:, 2]`, `x[[2]]`, `x.reshape(2, 12)`, `x.T.reshape(24)`? Give the strides of every view, counted in entries, and say for each copy whether a view would have been possible. Then name one situation in which getting a view where you expected a copy gives wrong results.
"""

# %% [markdown] nbgrader={"grade": true, "grade_id": "written-views", "locked": false, "points": 5, "schema_version": 3, "solution": true}
"""
Your answer here.
"""

# %% [markdown]
"""
## Shapes that fit together

Adding a bias of shape `(3,)` to a table of shape `(2, 3)` should add it to every row, and in NumPy it does. NumPy aligns the two shapes at their *last* axes and repeats an axis of size 1, or one that is missing in front, as often as needed. Nothing is copied; the repeated axis gets the step 0. This is called broadcasting. It is also how a wrong shape passes unnoticed.

**Task (14 points).** Write `broadcast_shape(a, b)` for two shapes, without NumPy:

- compare from the last axis to the first; a missing axis counts as 1;
- two equal sizes give that size; a 1 gives the other size, whatever that is, even 0;
- anything else raises a `ValueError` that names both shapes, the axis counted from the end, and the two sizes: `shapes (2, 3) and (2, 4) do not broadcast: axis -1 has 3 and 4 entries`.

About 9 lines.
"""


# %% nbgrader={"grade": false, "grade_id": "broadcast-shape", "locked": false, "schema_version": 3, "solution": true}
#| export
def broadcast_shape(a: tuple, b: tuple) -> tuple:
    """The shape of x + y, for x of shape `a` and y of shape `b`.

    Raises ValueError if an axis has two sizes and neither is 1.
    """
    ### BEGIN SOLUTION
    shape = []
    for axis in range(-1, -max(len(a), len(b)) - 1, -1):
        size_a = a[axis] if -axis <= len(a) else 1
        size_b = b[axis] if -axis <= len(b) else 1
        if size_a != size_b and 1 not in (size_a, size_b):
            sizes = f"{size_a} and {size_b}"
            raise ValueError(f"shapes {a} and {b} do not broadcast: axis {axis} has {sizes} entries")
        shape.append(size_b if size_a == 1 else size_a)
    return tuple(reversed(shape))
    ### END SOLUTION


# %% [markdown]
"""
A column of 4 and a row of 3 make a table: this is how you form all pairs of two lists without a loop.
"""

# %%
broadcast_shape((4, 1), (3,))

# %% nbgrader={"grade": true, "grade_id": "test-broadcast-shape", "locked": true, "points": 14, "schema_version": 3, "solution": false}
found = broadcast_shape((2, 3), (3,))
assert isinstance(found, tuple), f"a shape is a tuple, yours is a {type(found).__name__}"
assert found == (2, 3), f"a row of 3 fits every row of (2, 3): the shape is (2, 3), yours is {found}"
found = broadcast_shape((4, 1), (3,))
assert found == (4, 3), f"(4, 1) and (3,) repeat each other to (4, 3), yours is {found}"
assert broadcast_shape((5,), (2, 1, 5)) == (2, 1, 5), "the shorter shape may also be on the left"
assert broadcast_shape((), (2, 3)) == (2, 3), "a number, which has no axes, fits everything"
for a, b in (((2, 3), (2,)), ((2, 3), (2, 4)), ((5, 2, 1), (3, 2, 4))):
    try:
        found = broadcast_shape(a, b)
    except ValueError as error:
        message = str(error)
        assert str(a) in message and str(b) in message, f"name both shapes, {a} and {b}; you say: {message}"
    else:
        raise AssertionError(f"{a} and {b} do not broadcast: raise a ValueError, yours gave {found}")
### BEGIN HIDDEN TESTS
for a in ((), (1,), (3,), (2, 3), (2, 1), (4, 2, 3), (4, 1, 1), (1, 2, 1), (0,), (2, 0), (0, 1)):
    for b in ((), (1,), (3,), (2, 3), (5, 2, 3), (4, 1, 3), (1, 1), (2,), (0,), (1, 0), (7, 1, 1, 1)):
        try:
            want = np.broadcast(np.ones(a), np.ones(b)).shape
        except ValueError:
            want = None
        try:
            found = broadcast_shape(a, b)
        except ValueError:
            found = None
        assert found == want, f"{a} and {b} broadcast to {want}, yours gave {found}"
try:
    broadcast_shape((2, 5, 1, 6), (4, 3, 6))
except ValueError as error:
    message = str(error)
    assert "axis -3" in message and "5" in message and "4" in message, (
        f"name the axis and its sizes: {message}"
    )
### END HIDDEN TESTS

# %% [markdown]
"""
The danger is a last axis of size 1. Subtracting targets of shape (3, 1) from predictions of shape (3,) raises no error. It gives nine differences instead of three, and their mean looks plausible and means nothing.
"""

# %%
predictions = np.float32([1, 2, 3])
targets = np.float32([[1], [2], [3]])
(predictions - targets).shape, float(np.mean((predictions - targets) ** 2))

# %% [markdown]
"""
All three predictions are right, yet the mean squared error is 1.33. NumPy will not warn you; code that expects equal shapes has to check them itself, as the loss in module 04 does.

## The matrix product

A language model spends most of its time on one operation. To get entry `[i, j]`, multiply row `i` of the left matrix by column `j` of the right one, entry by entry, and add up the products. The row and the column must be equally long: that is the *inner* size `k` of (n, k) @ (k, m).

You will let NumPy do it, but first write it by hand once. Fast code is tested against slow code that is plainly right.

**Task (8 points).** Write `matmul_slowly(a, b)` for two matrices, with three nested loops and no NumPy arithmetic on whole rows. Return a float32 array of shape (n, m). About 7 lines.
"""


# %% nbgrader={"grade": false, "grade_id": "matmul-slowly", "locked": false, "schema_version": 3, "solution": true}
#| export
def matmul_slowly(a: Sequence[Sequence[float]], b: Sequence[Sequence[float]]) -> np.ndarray:
    """(n, k), (k, m) -> (n, m): out[i, j] is the sum over k of a[i, k] * b[k, j]."""
    ### BEGIN SOLUTION
    rows, inner, columns = len(a), len(b), len(b[0])
    product = np.zeros((rows, columns), np.float32)
    for i in range(rows):
        for j in range(columns):
            for k in range(inner):
                product[i, j] += a[i][k] * b[k][j]
    return product
    ### END SOLUTION


# %% [markdown]
"""
A row of two times a matrix of two rows: 1·3 + 2·5 = 13, and 1·4 + 2·6 = 16.
"""

# %%
matmul_slowly([[1, 2]], [[3, 4], [5, 6]])

# %% nbgrader={"grade": true, "grade_id": "test-matmul-slowly", "locked": true, "points": 8, "schema_version": 3, "solution": false}
product = matmul_slowly([[1, 2]], [[3, 4], [5, 6]])
assert np.shape(product) == (1, 2), f"(1, 2) @ (2, 2) has the shape (1, 2), yours is {np.shape(product)}"
assert np.array_equal(product, [[13, 16]]), f"[[1, 2]] @ [[3, 4], [5, 6]] is [[13, 16]], yours is {product}"
assert product.dtype == np.float32, f"the product is float32, yours is {product.dtype}"
swapped = matmul_slowly([[0, 1], [1, 0]], [[1, 2, 3], [4, 5, 6]])
assert np.array_equal(swapped, [[4, 5, 6], [1, 2, 3]]), f"this matrix swaps the rows, yours gives {swapped}"
### BEGIN HIDDEN TESTS
rng = np.random.default_rng(0)
for n, k, m in ((2, 3, 5), (4, 1, 2), (1, 6, 1), (3, 5, 2)):
    a, b = rng.integers(-4, 5, (n, k)), rng.integers(-4, 5, (k, m))
    want = [[sum(a[i, p] * b[p, j] for p in range(k)) for j in range(m)] for i in range(n)]
    found = matmul_slowly(a, b)
    assert np.shape(found) == (n, m), f"({n}, {k}) @ ({k}, {m}) is ({n}, {m}), yours {np.shape(found)}"
    assert np.array_equal(found, want), f"wrong for ({n}, {k}) @ ({k}, {m})"
### END HIDDEN TESTS

# %% [markdown]
"""
How much slower is it? The cell measures, on your machine, how many times as long the loops take as `np.matmul` does on the same two matrices of 48 by 48. NumPy hands the work to a BLAS library, which computes many products per instruction and arranges the work so that each number is read from memory rarely.
"""

# %%
square = np.random.default_rng(1).random((48, 48), np.float32)
loops = min(timeit.repeat(lambda: matmul_slowly(square, square), number=1, repeat=2))
blas = min(timeit.repeat(lambda: square @ square, number=50, repeat=5)) / 50
round(loops / blas)

# %% [markdown]
"""
## Which matrices fit

Arrays with more than two axes are stacks of matrices: the last two axes are multiplied, and the axes before them broadcast. So one call can do two hundred small products. An array with a single axis counts as a row on the left and as a column on the right, and the axis added for that does not appear in the result.

**Task (12 points).** Write `matmul_shape(a, b)`, the shape of the product for two shapes:

- (..., n, k) @ (..., k, m) is (..., n, m), where the leading axes follow `broadcast_shape`;
- (k,) @ (..., k, m) is (..., m); (..., n, k) @ (k,) is (..., n); (k,) @ (k,) is ();
- a shape without axes raises a `ValueError` that names both shapes; two different inner sizes raise one that also names the sizes: `cannot multiply (2, 3) by (4, 5): 3 columns meet 4 rows`.

About 11 lines. Hint: give a shape with one axis a second one, compute, and leave the added axis out of the result.
"""


# %% nbgrader={"grade": false, "grade_id": "matmul-shape", "locked": false, "schema_version": 3, "solution": true}
#| export
def matmul_shape(a: tuple, b: tuple) -> tuple:
    """The shape of x @ y, for x of shape `a` and y of shape `b`: (..., n, k) @ (..., k, m) is (..., n, m).

    A single axis counts as a row on the left and as a column on the right; the added axis is left out.
    Raises ValueError if the two k differ, if the leading axes do not broadcast, or if a shape has no axes.
    """
    ### BEGIN SOLUTION
    if not a or not b:
        raise ValueError(f"a matrix product needs an axis on each side, got the shapes {a} and {b}")
    rows = a if len(a) > 1 else (1, *a)
    columns = b if len(b) > 1 else (*b, 1)
    if rows[-1] != columns[-2]:
        raise ValueError(f"cannot multiply {a} by {b}: {rows[-1]} columns meet {columns[-2]} rows")
    shape = broadcast_shape(rows[:-2], columns[:-2])
    if len(a) > 1:
        shape += rows[-2:-1]
    if len(b) > 1:
        shape += columns[-1:]
    return shape
    ### END SOLUTION


# %% [markdown]
"""
First, two texts of five tokens, each token 4 numbers wide, times one matrix (4, 3) for all of them. Then, in each text, every token against every other: (5, 4) @ (4, 5), twice.
"""

# %%
matmul_shape((2, 5, 4), (4, 3)), matmul_shape((2, 5, 4), (2, 4, 5))


# %% nbgrader={"grade": true, "grade_id": "test-matmul-shape", "locked": true, "points": 12, "schema_version": 3, "solution": false}
### BEGIN HIDDEN TESTS
# a right version of the part before this one, so that this part is graded alone
def right_broadcast(a, b):
    try:
        return np.broadcast_shapes(a, b)
    except ValueError:
        raise ValueError(f"shapes {a} and {b} do not broadcast") from None


own_broadcast, broadcast_shape = globals().get("broadcast_shape"), right_broadcast
### END HIDDEN TESTS
found = matmul_shape((2, 3), (3, 5))
assert found == (2, 5), f"(2, 3) @ (3, 5) is (2, 5): the inner 3 disappears, yours is {found}"
found = matmul_shape((2, 5, 4), (4, 3))
assert found == (2, 5, 3), f"a stack of two times one matrix is a stack of two, (2, 5, 3), yours is {found}"
found = matmul_shape((2, 1, 5, 4), (3, 4, 6))
assert found == (2, 3, 5, 6), f"the leading axes (2, 1) and (3,) broadcast to (2, 3); yours is {found}"
assert matmul_shape((4,), (4, 3)) == (3,), "a single axis on the left is a row; its added axis disappears"
assert matmul_shape((2, 4), (4,)) == (2,), "a single axis on the right is a column; its added axis disappears"
assert matmul_shape((4,), (4,)) == (), "a row times a column is a number, which has no axes"
for a, b in (((2, 3), (4, 5)), ((2, 3), (2, 3)), ((3,), (2, 3)), ((), (2, 3))):
    try:
        found = matmul_shape(a, b)
    except ValueError as error:
        message = str(error)
        assert str(a) in message and str(b) in message, f"name both shapes, {a} and {b}; you say: {message}"
    else:
        raise AssertionError(f"{a} cannot be multiplied by {b}: raise a ValueError, yours gave {found}")
### BEGIN HIDDEN TESTS
for a in ((), (4,), (3,), (2, 4), (4, 3), (1, 4), (5, 2, 4), (6, 1, 2, 4), (0, 4), (2, 0)):
    for b in ((), (4,), (2,), (4, 3), (3, 4), (5, 4, 3), (6, 5, 4, 1), (7, 4, 3), (4, 0), (0, 3)):
        try:
            want = np.matmul(np.ones(a), np.ones(b)).shape
        except ValueError:
            want = None
        try:
            found = matmul_shape(a, b)
        except ValueError:
            found = None
        assert found == want, f"{a} @ {b} has the shape {want}, yours gave {found}"
broadcast_shape = own_broadcast
### END HIDDEN TESTS

# %% [markdown]
"""
## The class

A `Tensor` is a box around one array, `data`. Most of its methods pass the work on to one function, which you write in the next section: `apply(np.subtract, x, y)` takes boxes, arrays and numbers, runs the NumPy function on what is inside, and puts the result in a new box. A method has nothing else to do, so most are one line.

`__slots__` lists the only attributes that a tensor can have. This keeps the object small and quick to make, and a typing error such as `x.dtaa = 3` is caught. Three of the four are not used yet: `requires_grad`, `grad` and `history` are where an observer of the operations can keep what it learns about a tensor. The class only carries them.

The cell is long because a class cannot be split over several cells. The code that is given is plumbing, or an example of what is missing. You write four parts; their tests follow, each under its own heading.

**Task A (8 points): in and out.** `__init__` stores `as_array(data, dtype)` and `requires_grad`, and sets `grad` and `history` to None. Gradients are about small changes, and only floats can change by a little, so `requires_grad=True` for anything else raises a `TypeError` that names the type. `np.asarray(tensor)` calls `__array__`: there, `np.array(self.data, dtype=dtype, copy=copy)` follows NumPy's rules for both arguments (`copy=None` copies only if it must). About 7 lines together.

**Task B (8 points): operators.** Python turns `x - y` into `x.__sub__(y)`. If the left side is a plain number, which knows nothing about tensors, Python tries `y.__rsub__(x)`: the same operation, called on the right operand. Addition and multiplication are given. Write `-`, `/` and `**`, each in both forms. One line each; only the order of the arguments needs care.

**Task C (6 points): shapes.** `x.reshape(2, 3)` and `x.reshape((2, 3))` both work, and so do `x.transpose(0, 2, 1)` and `x.transpose((0, 2, 1))`; `x.transpose()` reverses all axes. Pass `np.reshape` with the option `shape`, and `np.transpose` with the option `axes` (None to reverse), to `apply`. About 5 lines together.

**Task D (4 points): reductions.** `sum`, `mean`, `var` and `max` pass the NumPy function of that name to `apply`, with the options `axis` and `keepdims`. One line each.
"""


# %% nbgrader={"grade": false, "grade_id": "tensor", "locked": false, "schema_version": 3, "solution": true}
#| export
class Tensor:
    """An array of numbers whose operations can be observed.

    data: ndarray of any shape, float32 unless it holds integers or booleans or another dtype was asked for.
    requires_grad, grad, history: kept for a recorder (see `set_recorder`): whether gradients are wanted, the
        gradient (None, or an ndarray of the same shape), and how the tensor was made.

    Operations return new tensors; indexing with slices, transpose, and reshape where possible, return views.
    Two tensors are equal only if they are the same object: compare values with np.array_equal or np.allclose.
    `<`, `<=`, `>` and `>=` compare entry by entry and return a tensor of booleans, which has no gradient.
    """

    data: np.ndarray
    requires_grad: bool
    grad: np.ndarray | None
    history: tuple | None
    __slots__ = ("data", "requires_grad", "grad", "history")
    __array_priority__ = 1000  # makes `ndarray + Tensor` ask the tensor
    __contains__ = None  # `3 in tensor` would compare objects, not values: TypeError instead

    def __init__(self, data: ArrayLike, requires_grad: bool = False, dtype: DTypeLike | None = None):
        """data: what `as_array` takes. Raises TypeError for requires_grad with anything but floats."""
        ### BEGIN SOLUTION
        self.data = as_array(data, dtype)
        if requires_grad and self.data.dtype.kind != "f":
            raise TypeError(f"only floats have gradients, this tensor holds {self.data.dtype}")
        self.requires_grad = requires_grad
        self.grad = None
        self.history = None
        ### END SOLUTION

    def __array__(self, dtype: DTypeLike | None = None, copy: bool | None = None) -> np.ndarray:
        """The array that np.asarray and NumPy's functions see; a copy only if one is asked for or needed."""
        ### BEGIN SOLUTION
        return np.array(self.data, dtype=dtype, copy=copy)
        ### END SOLUTION

    @property
    def shape(self) -> tuple:
        return self.data.shape

    @property
    def ndim(self) -> int:
        return self.data.ndim

    @property
    def size(self) -> int:
        return self.data.size

    @property
    def dtype(self) -> np.dtype:
        return self.data.dtype

    def numpy(self) -> np.ndarray:
        """The array itself, not a copy."""
        return self.data

    def item(self) -> float | int | bool:
        """The only entry, as a Python number. Raises ValueError if there is not exactly one."""
        if self.data.size != 1:
            raise ValueError(f"only a tensor with 1 entry is a number, shape {self.shape} has {self.size}")
        return self.data.item()

    def __float__(self) -> float:
        return float(self.item())

    def __int__(self) -> int:
        return int(self.item())

    def __bool__(self) -> bool:
        return bool(self.item())

    def __format__(self, spec: str) -> str:
        """With a format such as ".3f", the only entry as a number; without one, the same as `str`."""
        return format(self.item(), spec) if spec else str(self)

    def __lt__(self, other: ArrayLike) -> "Tensor":
        return apply(np.less, self, other)

    def __le__(self, other: ArrayLike) -> "Tensor":
        return apply(np.less_equal, self, other)

    def __gt__(self, other: ArrayLike) -> "Tensor":
        return apply(np.greater, self, other)

    def __ge__(self, other: ArrayLike) -> "Tensor":
        return apply(np.greater_equal, self, other)

    def __len__(self) -> int:
        return len(self.data)

    def __iter__(self) -> Iterator["Tensor"]:
        if not self.shape:
            raise TypeError("a tensor without axes has no rows to go through")
        return (self[i] for i in range(len(self)))

    def __repr__(self) -> str:
        body = np.array2string(self.data, prefix="Tensor(", separator=", ", threshold=60, precision=4)
        dtype = "" if self.dtype == np.float32 else f", dtype={self.dtype}"
        grad = ", requires_grad=True" if self.requires_grad else ""
        return f"Tensor({body}, shape={self.shape}{dtype}{grad})"

    def __getstate__(self) -> tuple:
        """What copy and pickle keep: everything but how the tensor was made."""
        return None, {
            "data": self.data,
            "requires_grad": self.requires_grad,
            "grad": self.grad,
            "history": None,
        }

    def __add__(self, other: ArrayLike) -> "Tensor":
        return apply(np.add, self, other)

    def __radd__(self, other: ArrayLike) -> "Tensor":
        return apply(np.add, other, self)

    def __mul__(self, other: ArrayLike) -> "Tensor":
        return apply(np.multiply, self, other)

    def __rmul__(self, other: ArrayLike) -> "Tensor":
        return apply(np.multiply, other, self)

    def __sub__(self, other: ArrayLike) -> "Tensor":
        ### BEGIN SOLUTION
        return apply(np.subtract, self, other)
        ### END SOLUTION

    def __rsub__(self, other: ArrayLike) -> "Tensor":
        ### BEGIN SOLUTION
        return apply(np.subtract, other, self)
        ### END SOLUTION

    def __truediv__(self, other: ArrayLike) -> "Tensor":
        ### BEGIN SOLUTION
        return apply(np.divide, self, other)
        ### END SOLUTION

    def __rtruediv__(self, other: ArrayLike) -> "Tensor":
        ### BEGIN SOLUTION
        return apply(np.divide, other, self)
        ### END SOLUTION

    def __pow__(self, exponent: float) -> "Tensor":
        ### BEGIN SOLUTION
        return apply(np.power, self, exponent)
        ### END SOLUTION

    def __rpow__(self, base: float) -> "Tensor":
        ### BEGIN SOLUTION
        return apply(np.power, base, self)
        ### END SOLUTION

    def __neg__(self) -> "Tensor":
        return apply(np.negative, self)

    def __matmul__(self, other: ArrayLike) -> "Tensor":
        return apply(np.matmul, self, other)

    def __rmatmul__(self, other: ArrayLike) -> "Tensor":
        return apply(np.matmul, other, self)

    def __getitem__(self, index: Any) -> "Tensor":
        return apply(getitem, self, index=index)

    def reshape(self, *shape: Any) -> "Tensor":
        """The same entries in another shape; one size may be -1, "what is left". A view where possible."""
        ### BEGIN SOLUTION
        if len(shape) == 1:
            shape = shape[0]
        return apply(np.reshape, self, shape=shape)
        ### END SOLUTION

    def transpose(self, *axes: Any) -> "Tensor":
        """A view with the axes in the given order; without arguments, in reverse order."""
        ### BEGIN SOLUTION
        if len(axes) == 1 and not isinstance(axes[0], int):
            axes = axes[0]
        return apply(np.transpose, self, axes=axes or None)
        ### END SOLUTION

    def swapaxes(self, axis1: int, axis2: int) -> "Tensor":
        """A view with two axes exchanged."""
        return apply(np.swapaxes, self, axis1=axis1, axis2=axis2)

    @property
    def T(self) -> "Tensor":
        return self.transpose()

    def sum(self, axis: int | tuple[int, ...] | None = None, keepdims: bool = False) -> "Tensor":
        """The sum over `axis` (an int, a tuple, None for all). keepdims keeps each such axis, with size 1."""
        ### BEGIN SOLUTION
        return apply(np.sum, self, axis=axis, keepdims=keepdims)
        ### END SOLUTION

    def mean(self, axis: int | tuple[int, ...] | None = None, keepdims: bool = False) -> "Tensor":
        """The mean over `axis`."""
        ### BEGIN SOLUTION
        return apply(np.mean, self, axis=axis, keepdims=keepdims)
        ### END SOLUTION

    def var(self, axis: int | tuple[int, ...] | None = None, keepdims: bool = False) -> "Tensor":
        """The mean of the squared distances from the mean, over `axis` (divided by n, not by n - 1)."""
        ### BEGIN SOLUTION
        return apply(np.var, self, axis=axis, keepdims=keepdims)
        ### END SOLUTION

    def max(self, axis: int | tuple[int, ...] | None = None, keepdims: bool = False) -> "Tensor":
        """The largest entry over `axis`."""
        ### BEGIN SOLUTION
        return apply(np.max, self, axis=axis, keepdims=keepdims)
        ### END SOLUTION

    def exp(self) -> "Tensor":
        return apply(np.exp, self._floats())

    def log(self) -> "Tensor":
        return apply(np.log, self._floats())

    def sqrt(self) -> "Tensor":
        return apply(np.sqrt, self._floats())

    def tanh(self) -> "Tensor":
        return apply(np.tanh, self._floats())

    def _floats(self) -> "Tensor":
        """The tensor itself, or its integers as float32: for int8, NumPy would choose half precision."""
        return self if self.data.dtype.kind == "f" else Tensor(self.data, dtype=np.float32)

    def backward(self, grad: ArrayLike | None = None) -> None:
        """Asks the recorder for the gradients of this tensor: `recorder.backward(tensor, grad)`.

        Raises RuntimeError if there is no recorder.
        """
        if _recorder is None:
            raise RuntimeError("nothing recorded how this tensor was made: install a recorder first")
        _recorder.backward(self, grad)


# %% [markdown]
"""
### Task A: in and out

A tensor does not copy a float32 array. Write into the array, and the tensor changes too.
"""

# %%
shared = np.ones(3, np.float32)
around = Tensor(shared)
shared[0] = 7
around

# %% [markdown]
"""
`__array__` opens all of NumPy to you: a NumPy function that does not know our class asks for the array.
"""

# %%
np.abs(Tensor([-1.5, 2])), np.allclose(Tensor([0.1, 0.2]), [0.1, 0.2]), float(Tensor([3.5]))


# %% nbgrader={"grade": true, "grade_id": "test-in-and-out", "locked": true, "points": 8, "schema_version": 3, "solution": false}
### BEGIN HIDDEN TESTS
# a right version of the part before this one, so that this part is graded alone
def right_array(data, dtype=None):
    array = np.asarray(data)
    if array.dtype.kind not in "fiub":
        raise TypeError(f"a tensor holds real numbers, not {array.dtype}")
    return array.astype(dtype or (np.float32 if array.dtype.kind == "f" else array.dtype), copy=False)


own_array, as_array = globals().get("as_array"), right_array
### END HIDDEN TESTS
tensor = Tensor([[1.5, 2], [3, 4]])
assert isinstance(tensor.data, np.ndarray), f".data is an ndarray, yours is a {type(tensor.data).__name__}"
assert tensor.data.dtype == np.float32, f"floats are float32, yours are {tensor.data.dtype}: use as_array"
assert (tensor.requires_grad, tensor.grad, tensor.history) == (False, None, None), (
    "a new tensor has requires_grad False, grad None and history None"
)
assert Tensor([1.0], requires_grad=True).requires_grad is True, "requires_grad should be kept as given"
assert Tensor([1 / 3], dtype=np.float64).data[0] == 1 / 3, "dtype goes on to as_array"
array = np.ones((2, 3), np.float32)
assert np.shares_memory(Tensor(array).data, array), "a float32 array is taken as it is, without a copy"
assert np.asarray(Tensor(array)) is not None and np.shares_memory(np.asarray(Tensor(array)), array), (
    "np.asarray(tensor) should not copy: pass copy=copy on to np.array"
)
assert np.asarray(Tensor([1, 2]), dtype=np.float64).dtype == np.float64, "pass dtype=dtype on to np.array"
try:
    Tensor([1, 2], requires_grad=True)
except TypeError as error:
    assert "int" in str(error), f"name the type that was found, yours says: {error}"
else:
    raise AssertionError("integers have no gradients: requires_grad=True should raise a TypeError")
### BEGIN HIDDEN TESTS
with warnings.catch_warnings():
    warnings.simplefilter("error")
    assert not np.shares_memory(np.array(Tensor(array)), array), (
        "np.array(tensor) copies, as it does for arrays"
    )
    assert np.array_equal(np.abs(Tensor([-1.0, 2.0])), [1, 2])
    assert np.allclose(Tensor(array), array)
    assert np.asarray(Tensor([[1, 2]]), np.float32).dtype == np.float32
    try:
        np.array(Tensor([1, 2]), dtype=np.float64, copy=False)
    except ValueError:
        pass
    else:
        raise AssertionError("copy=False must not copy: where the type has to change, that is a ValueError")
assert Tensor(Tensor([1.0, 2.0])).shape == (2,), "a tensor can be made from a tensor"
assert Tensor([1, 2], requires_grad=True, dtype=np.float32).requires_grad, "these integers became floats"
try:
    Tensor([True], requires_grad=True)
except TypeError:
    pass
else:
    raise AssertionError("booleans have no gradient: TypeError")
twin = copy.deepcopy(Tensor(array, requires_grad=True))
assert twin.requires_grad and not np.shares_memory(twin.data, array) and np.array_equal(twin.data, array)
assert pickle.loads(pickle.dumps(Tensor([1, 2]))).data.tolist() == [1, 2]
as_array = own_array
### END HIDDEN TESTS

# %% [markdown]
"""
## One door

What ran, in which order, on which shapes? You need to know this to see where a model spends its time. If each method above did its own work, you would have to add the question to every one of them. So all of them go through one function, which also tells an observer, the *recorder*: any object with a method `record(function, inputs, options, output)`. Usually there is no recorder, and then the question costs one comparison with None.

The cell below is given, because there is little to learn in it besides `global`. `wrap_result` makes a tensor around an array that is known to be right, without the checks of `Tensor(array)`. `check_shapes` uses your two shape functions: NumPy's own message for a failed matrix product speaks of a "core dimension 0, with gufunc signature (n?,k),(k,m?)->(n?,m?)".
"""


# %%
#| export
_recorder = None
FLOAT64 = np.dtype(np.float64)


def set_recorder(recorder: Any) -> Any:
    """From now on, `recorder.record(function, inputs, options, output)` is called after every operation.

    recorder: None switches recording off. Returns the previous recorder.
    """
    global _recorder
    previous, _recorder = _recorder, recorder
    return previous


def getitem(array: np.ndarray, index: Any) -> np.ndarray:
    """array[index], as a function."""
    return array[index]


def wrap_result(array: np.ndarray) -> Tensor:
    """A new Tensor around an array that already has the right type."""
    tensor = Tensor.__new__(Tensor)
    tensor.data = array
    tensor.requires_grad = False
    tensor.grad = tensor.history = None
    return tensor


def check_shapes(function: Callable, arrays: Any) -> None:
    """Raises a ValueError that names both shapes if `function` combines two arrays that do not fit."""
    if isinstance(function, np.ufunc) and len(arrays) == 2:
        rule = matmul_shape if function is np.matmul else broadcast_shape
        try:
            rule(np.shape(arrays[0]), np.shape(arrays[1]))
        except ValueError as error:
            raise error from None


# %% [markdown]
"""
**Task (14 points).** Write `apply(function, *inputs, **options)`:

1. Take the array out of every tensor. Leave a Python `int` or `float` as it is: NumPy adapts a plain number to the array beside it, so a float32 array times 0.1 stays float32, and a float64 array gets all the digits of 0.1. Anything else (arrays, lists, NumPy numbers) goes through `as_array`.
2. Call `function` with these and the options. If that raises a `ValueError`, call `check_shapes(function, arrays)`, which may raise one with a better message; if it does not, raise NumPy's again. A full sum comes back as a NumPy number; `np.asarray` makes it an array, and returns an array as it is.
3. When integers meet fractions, NumPy's result is float64. If the result has the type `FLOAT64` but none of the input arrays did, make it float32. (Ask only arrays for their `dtype`: a plain number has none, and `None == FLOAT64` is True, because NumPy reads None as "the default type".)
4. Wrap the result with `wrap_result`. If there is a `_recorder`, call its `record(function, inputs, options, output)` with the inputs as they were passed in.

About 12 lines.
"""


# %% nbgrader={"grade": false, "grade_id": "apply", "locked": false, "schema_version": 3, "solution": true}
#| export
def apply(function: Callable, *inputs: ArrayLike, **options: Any) -> Tensor:
    """Runs `function`, which knows only arrays, on tensors, arrays and numbers -> Tensor.

    Every operation passes through here. The result is float64 only if an input was. The recorder, if any,
    gets the inputs as they were passed in. Raises ValueError if the shapes of two operands do not fit.
    """
    ### BEGIN SOLUTION
    arrays = [x.data if type(x) is Tensor else x if type(x) in (int, float) else as_array(x) for x in inputs]
    try:
        result = np.asarray(function(*arrays, **options))
    except ValueError:
        check_shapes(function, arrays)
        raise
    if result.dtype is FLOAT64 and not any(isinstance(a, np.ndarray) and a.dtype == FLOAT64 for a in arrays):
        result = result.astype(np.float32)
    output = wrap_result(result)
    if _recorder is not None:
        _recorder.record(function, inputs, options, output)
    return output
    ### END SOLUTION


# %%
#| export
def stacked(*arrays: np.ndarray, axis: int = 0) -> np.ndarray:
    """n arrays of one shape -> one array with a new axis of length n."""
    return np.stack(arrays, axis)


def stack(tensors: Sequence[ArrayLike], axis: int = 0) -> Tensor:
    """n tensors of one shape -> one tensor with a new axis of length n; gradients flow back to each."""
    return apply(stacked, *tensors, axis=axis)


# %% [markdown]
"""
Tensors, arrays and numbers go in, a tensor comes out. The second cell makes a mistake; the message comes from your shape function.
"""

# %%
apply(np.add, Tensor([1.0, 2.0]), 0.5)

# %%
try:
    Tensor(np.ones((2, 3))) @ Tensor(np.ones((4, 5)))
except ValueError as error:
    explanation = str(error)
explanation


# %% nbgrader={"grade": true, "grade_id": "test-apply", "locked": true, "points": 14, "schema_version": 3, "solution": false}
### BEGIN HIDDEN TESTS
# right versions of the parts before this one, so that this part is graded alone
def right_init(self, data, requires_grad=False, dtype=None):
    self.data, self.requires_grad, self.grad, self.history = right_array(data), requires_grad, None, None


def right_array(data, dtype=None):
    array = np.asarray(data)
    if array.dtype.kind not in "fiub":
        raise TypeError(f"a tensor holds real numbers, not {array.dtype}")
    return array.astype(np.float32 if array.dtype.kind == "f" else array.dtype, copy=False)


def right_broadcast(a, b):
    raise ValueError(f"shapes {a} and {b} do not broadcast")


def right_product(a, b):
    raise ValueError(f"cannot multiply {a} by {b}")


own_parts = {name: globals().get(name) for name in ("as_array", "broadcast_shape", "matmul_shape")}
as_array, broadcast_shape, matmul_shape = right_array, right_broadcast, right_product
own_init, Tensor.__init__ = Tensor.__init__, right_init
### END HIDDEN TESTS
total = apply(np.add, Tensor([1.0, 2.0]), Tensor([10.0, 20.0]))
assert type(total) is Tensor, f"apply gives a Tensor, yours is a {type(total).__name__}"
assert total.data.tolist() == [11, 22], f"[1, 2] + [10, 20] is [11, 22], yours is {total.data.tolist()}"
assert apply(np.add, [1.0, 2.0], np.ones(2)).data.tolist() == [2, 3], "lists and arrays are inputs as well"
everything = apply(np.sum, Tensor([[1.0, 2.0], [3.0, 4.0]]), axis=None)
assert isinstance(everything.data, np.ndarray), "a full sum is a NumPy number; np.asarray makes it an array"
half = apply(np.divide, Tensor([1, 2]), 2)
assert half.dtype == np.float32, (
    f"integers / 2 is {half.dtype} in your tensor; only float64 inputs give float64"
)
wide = apply(np.multiply, wrap_result(np.float64([1 / 3])), 0.1)
assert wide.dtype == np.float64, "an input was float64, so the result is too"
assert wide.data[0] == 1 / 3 * 0.1, "0.1 lost digits: leave Python numbers as they are"
for function, a, b in ((np.add, (2, 3), (4,)), (np.matmul, (2, 3), (4, 5))):
    try:
        apply(function, Tensor(np.ones(a)), Tensor(np.ones(b)))
    except ValueError as error:
        assert str(a) in str(error) and str(b) in str(error), f"call check_shapes; your message says: {error}"
    else:
        raise AssertionError(f"{function.__name__} of {a} and {b} should raise a ValueError")


class Ear:
    def record(self, *heard):
        self.heard = heard


ear, left = Ear(), Tensor([1.0, 2.0])
previous = set_recorder(ear)
result = apply(np.sum, left, axis=0)
set_recorder(previous)
assert hasattr(ear, "heard"), "the recorder was not told: call its record(function, inputs, options, output)"
function, inputs, options, output = ear.heard
assert function is np.sum and options == {"axis": 0}, f"the recorder heard {function} with {options}"
assert len(inputs) == 1 and inputs[0] is left, "the recorder gets the inputs as they came, as tensors"
assert output is result, "the recorder gets the same tensor that you return"
### BEGIN HIDDEN TESTS
for integers in (np.int32([4, 9]), np.int64([4, 9]), np.uint8([4, 9])):
    small = Tensor(integers)
    assert apply(np.add, small, 1).dtype == integers.dtype, f"{integers.dtype} + 1 stays {integers.dtype}"
    assert apply(np.mean, small).dtype == np.float32, f"the mean of {integers.dtype} is float32"
mixed = apply(np.multiply, Tensor([1.0, 2.0]), np.int64(3))
assert mixed.dtype == np.float32 and mixed.data.tolist() == [3, 6], "a NumPy integer must not promote floats"
assert apply(np.multiply, Tensor([1.0]), np.float64(0.5)).dtype == np.float32, "nor a NumPy float64"
assert apply(np.add, Tensor([1.0]), wrap_result(np.float64([1]))).dtype == np.float64
assert apply(np.add, Tensor([1.0]), Tensor(2.5)).dtype == np.float32
base = Tensor(np.ones((3, 4), np.float32))
assert np.shares_memory(apply(np.transpose, base).data, base.data), (
    "apply must not copy what the function did not"
)
assert np.shares_memory(apply(getitem, base, index=(slice(None), 1)).data, base.data)
for function, wrong in ((np.reshape, {"shape": (5,)}), (np.sum, {"axis": 7})):
    try:
        apply(function, base, **wrong)
    except ValueError:
        continue
    raise AssertionError(f"{function.__name__} with {wrong} is an error that apply must not swallow")
heard = []
ear.record = lambda *event: heard.append(event)
set_recorder(ear)
array = np.float32([5, 6])
results = [apply(np.multiply, left, 2), apply(np.subtract, array, left), apply(np.matmul, left, array)]
set_recorder(None)
apply(np.add, left, 1)
assert [event[0] for event in heard] == [np.multiply, np.subtract, np.matmul], "one record for each operation"
assert heard[0][1] == (left, 2) and heard[1][1][0] is array and heard[2][1][1] is array
assert all(event[3] is result for event, result in zip(heard, results, strict=True))
set_recorder(previous)
globals().update(own_parts)
Tensor.__init__ = own_init
### END HIDDEN TESTS

# %% [markdown]
"""
### What the door is good for

A small recorder writes down what ran. The cell gives every row of `x` the mean 0 and the variance 1 and shows the trace: five operations, and you can see `keepdims` in the shapes.
"""


# %%
class Trace:
    """A recorder that lists the operations it is told of."""

    def __init__(self):
        self.calls = []

    def record(self, function, inputs, options, output):
        self.calls.append((function.__name__, output.shape))


trace = Trace()
x = Tensor([[1.0, 2.0, 3.0], [4.0, 6.0, 8.0]])
previous = set_recorder(trace)
standard = (x - x.mean(axis=-1, keepdims=True)) / x.var(axis=-1, keepdims=True).sqrt()
set_recorder(previous)
trace.calls

# %% [markdown]
"""
Counting such a trace shows what a computation consists of. Here are three rounds of `x = (x @ w + b).tanh()`.
"""

# %%
weight, bias, trace = Tensor(np.eye(3)), Tensor(np.ones(3)), Trace()
previous = set_recorder(trace)
for _ in range(3):
    x = (x @ weight + bias).tanh()
set_recorder(previous)
Counter(name for name, _ in trace.calls)

# %% [markdown]
"""
### Task B: operators from both sides

2 − 5 is not 5 − 2, and in `1 / x` the left operand knows nothing about tensors.
"""

# %%
x = Tensor([1.0, 2.0, 4.0])
x - 1, 1 - x, 8 / x, 2**x


# %% nbgrader={"grade": true, "grade_id": "test-operators", "locked": true, "points": 8, "schema_version": 3, "solution": false}
### BEGIN HIDDEN TESTS
# right versions of the parts before this one, so that this part is graded alone
def right_init(self, data):
    self.data, self.requires_grad, self.grad, self.history = np.asarray(data, np.float32), False, None, None


def right_apply(function, *inputs, **options):
    arrays = [x.data if isinstance(x, Tensor) else x for x in inputs]
    return Tensor(function(*arrays, **options))


own_apply, apply = globals().get("apply"), right_apply
own_init, Tensor.__init__ = Tensor.__init__, right_init
### END HIDDEN TESTS
x, y = Tensor([1.0, 2.0, 4.0]), Tensor([2.0, 2.0, 8.0])
for name, found, want in (
    ("x - y", x - y, [-1, 0, -4]),
    ("x - 1", x - 1, [0, 1, 3]),
    ("1 - x", 1 - x, [0, -1, -3]),
    ("x / y", x / y, [0.5, 1, 0.5]),
    ("8 / x", 8 / x, [8, 4, 2]),
    ("x ** 2", x**2, [1, 4, 16]),
    ("2 ** x", 2**x, [2, 4, 16]),
):
    assert type(found) is Tensor, f"{name} should be a Tensor, yours is a {type(found).__name__}"
    assert np.allclose(found.data, want), (
        f"for x = [1, 2, 4], y = [2, 2, 8], {name} is {want}, not {found.data}"
    )
### BEGIN HIDDEN TESTS
rng = np.random.default_rng(2)
a, b = rng.uniform(1, 2, (2, 3)).astype(np.float32), rng.uniform(1, 2, 3).astype(np.float32)
sides = [(Tensor(a), Tensor(b)), (Tensor(a), b), (a, Tensor(b)), (b, Tensor(a)), (3.0, Tensor(a))]
for symbol, operate in (("-", operator.sub), ("/", operator.truediv), ("**", operator.pow)):
    for left, right in sides:
        name, found = f"{type(left).__name__} {symbol} {type(right).__name__}", operate(left, right)
        lefts, rights = np.broadcast_arrays(*(x.data if type(x) is Tensor else x for x in (left, right)))
        want = [operate(float(p), float(q)) for p, q in zip(lefts.ravel(), rights.ravel(), strict=True)]
        assert type(found) is Tensor, f"{name} is a {type(found).__name__}, it should be a Tensor"
        assert np.allclose(found.data.ravel(), want, rtol=1e-5), f"{name} is wrong for {left} and {right}"
apply, Tensor.__init__ = own_apply, own_init
### END HIDDEN TESTS

# %% [markdown]
"""
### Task C: shapes without copies

Six numbers, two shapes, one block of memory.
"""

# %%
x = Tensor([[0.0, 1.0, 2.0], [3.0, 4.0, 5.0]])
x.reshape(3, 2), x.T, np.shares_memory(x.T.data, x.data)


# %% nbgrader={"grade": true, "grade_id": "test-shapes", "locked": true, "points": 6, "schema_version": 3, "solution": false}
### BEGIN HIDDEN TESTS
# right versions of the parts before this one, so that this part is graded alone
def right_init(self, data):
    self.data, self.requires_grad, self.grad, self.history = np.asarray(data, np.float32), False, None, None


def right_apply(function, *inputs, **options):
    arrays = [x.data if isinstance(x, Tensor) else x for x in inputs]
    return Tensor(function(*arrays, **options))


own_apply, apply = globals().get("apply"), right_apply
own_init, Tensor.__init__ = Tensor.__init__, right_init
### END HIDDEN TESTS
x = Tensor(np.arange(6.0).reshape(2, 3))
assert x.reshape(3, 2).data.tolist() == [[0, 1], [2, 3], [4, 5]], (
    f"reshape(3, 2) gives {x.reshape(3, 2).data}"
)
assert x.reshape((3, 2)).shape == (3, 2), "the shape may come as one tuple too"
assert x.reshape(-1).shape == (6,), f"-1 alone is all six entries in a row, yours is {x.reshape(-1).shape}"
assert x.transpose().data.tolist() == [[0, 3], [1, 4], [2, 5]], f"transpose() swaps the axes: {x.transpose()}"
pile = Tensor(np.zeros((2, 3, 5)))
assert pile.transpose(0, 2, 1).shape == (2, 5, 3), f"axes 0, 2, 1: {pile.transpose(0, 2, 1).shape}"
assert pile.transpose((0, 2, 1)).shape == (2, 5, 3), "the axes may come as one tuple too"
assert np.shares_memory(x.reshape(3, 2).data, x.data), "reshape of a new array is a view, yours is a copy"
assert np.shares_memory(pile.transpose(2, 0, 1).data, pile.data), "transpose is a view, yours is a copy"
### BEGIN HIDDEN TESTS
block = np.arange(2 * 3 * 5 * 4, dtype=np.float32).reshape(2, 3, 5, 4)
moved = Tensor(block).transpose(3, 0, 2, 1)
assert moved.shape == (4, 2, 5, 3), (
    f"transpose(3, 0, 2, 1) of (2, 3, 5, 4) is (4, 2, 5, 3), not {moved.shape}"
)
for i, j, k, m in ((1, 2, 3, 0), (0, 1, 4, 3)):
    assert moved.data[m, i, k, j] == block[i, j, k, m], "the entries went to the wrong places"
assert Tensor(block).transpose().shape == (4, 5, 3, 2) and Tensor(block).T.shape == (4, 5, 3, 2)
assert Tensor(block).reshape(2, 3, -1).data.tolist() == [[sum(r, []) for r in m] for m in block.tolist()]
assert Tensor([7.0]).reshape(()).shape == (), "the empty tuple is a shape as well"
assert Tensor([7.0, 8.0]).transpose(0).shape == (2,), "a single axis may be named"
for wrong in ((4,), (5, 5)):
    try:
        x.reshape(*wrong)
    except ValueError:
        continue
    raise AssertionError(f"six entries do not fit {wrong}: ValueError")
apply, Tensor.__init__ = own_apply, own_init
### END HIDDEN TESTS

# %% [markdown]
"""
### Task D: reductions

`axis` names the axis that disappears. With `keepdims` it stays, with size 1, so that the result broadcasts against the input: that is what you need to subtract the mean of each row from that row.
"""

# %%
x = Tensor([[1.0, 2.0, 3.0], [4.0, 6.0, 8.0]])
x.sum(), x.sum(axis=0), x.mean(axis=1), x.max(axis=1, keepdims=True)


# %% nbgrader={"grade": true, "grade_id": "test-reductions", "locked": true, "points": 4, "schema_version": 3, "solution": false}
### BEGIN HIDDEN TESTS
# right versions of the parts before this one, so that this part is graded alone
def right_init(self, data):
    self.data, self.requires_grad, self.grad, self.history = np.asarray(data, np.float32), False, None, None


def right_apply(function, *inputs, **options):
    arrays = [x.data if isinstance(x, Tensor) else x for x in inputs]
    return Tensor(function(*arrays, **options))


own_apply, apply = globals().get("apply"), right_apply
own_init, Tensor.__init__ = Tensor.__init__, right_init
### END HIDDEN TESTS
x = Tensor([[1.0, 2.0, 3.0], [4.0, 6.0, 8.0]])
assert x.sum().item() == 24, f"1 + 2 + 3 + 4 + 6 + 8 is 24, yours is {x.sum().item()}"
assert x.sum(axis=0).data.tolist() == [5, 8, 11], f"axis 0 disappears: [5, 8, 11], not {x.sum(axis=0).data}"
assert x.mean(axis=1).data.tolist() == [2, 6], f"the rows have the means 2 and 6, not {x.mean(axis=1).data}"
assert x.max(axis=1, keepdims=True).data.tolist() == [[3], [8]], "keepdims leaves an axis of size 1"
assert np.allclose(x.var(axis=1).data, [2 / 3, 8 / 3]), (
    f"(1 + 0 + 1) / 3 = 0.67, yours is {x.var(axis=1).data}"
)
### BEGIN HIDDEN TESTS
block = np.random.default_rng(3).normal(size=(2, 3, 5)).astype(np.float32)
plain = block.astype(np.float64)
means = np.add.reduce(plain, axis=1, keepdims=True) / 3
wanted = {
    "sum": (np.add.reduce(plain, axis=1, keepdims=True), np.add.reduce(plain, axis=(0, 2))),
    "mean": (means, np.add.reduce(plain, axis=(0, 2)) / 10),
    "max": (np.maximum.reduce(plain, axis=1, keepdims=True), np.maximum.reduce(plain, axis=(0, 2))),
    "var": (
        np.add.reduce((plain - means) ** 2, axis=1, keepdims=True) / 3,
        np.add.reduce(plain**2, axis=(0, 2)) / 10 - (np.add.reduce(plain, axis=(0, 2)) / 10) ** 2,
    ),
}
for name, (kept, gone) in wanted.items():
    found = getattr(Tensor(block), name)(axis=1, keepdims=True)
    assert found.shape == (2, 1, 5), (
        f"{name}(axis=1, keepdims=True) of (2, 3, 5) is (2, 1, 5), not {found.shape}"
    )
    assert np.allclose(found.data, kept, rtol=1e-5, atol=1e-6), f"{name}(axis=1, keepdims=True) is wrong"
    found = getattr(Tensor(block), name)(axis=(0, 2))
    assert found.shape == (3,), f"{name}(axis=(0, 2)) of (2, 3, 5) is (3,), not {found.shape}"
    assert np.allclose(found.data, gone, rtol=1e-5, atol=1e-6), f"{name}(axis=(0, 2)) is wrong"
    assert getattr(Tensor(block), name)().shape == (), f"{name}() of everything has no axes"
    assert getattr(Tensor(block), name)(-1).shape == (2, 3), f"{name}(-1) takes the axis as first argument"
apply, Tensor.__init__ = own_apply, own_init
### END HIDDEN TESTS

# %% [markdown]
"""
## What the box costs

You put a class and a function call in front of NumPy. For large arrays this makes no difference; for small ones it is most of the cost. The cell measures, on your machine and in microseconds, one addition of six numbers and one of 250,000: with NumPy alone, then with tensors.
"""

# %%
costs = {}
for size in (6, 250_000):
    a = np.ones(size, np.float32)
    t = Tensor(a)
    runs = 20_000 if size == 6 else 200
    alone = min(timeit.repeat(lambda: np.add(a, a), number=runs, repeat=5)) / runs  # noqa: B023
    boxed = min(timeit.repeat(lambda: t + t, number=runs, repeat=5)) / runs  # noqa: B023
    costs[size] = f"{alone * 1e6:.2f} alone, {boxed * 1e6:.2f} as tensors"
costs

# %% [markdown]
"""
Where this was written (two cores, Python 3.11, NumPy 2.4) the first line showed 0.4 and 1.2, so a tensor adds 0.8 microseconds; in the second line, 26 and 27, that is about the size of the noise. The class adds a constant to each call, so what matters is how much work a call does.

**Question (5 points).** A model consists of 100 million numbers, and all of them are read from memory once for every word that it writes. Your memory delivers 12 GB per second. (a) What is the least time that one word takes in float32, and in float64? Show the computation. (b) The model needs 300 operations per word. If each takes one microsecond more than it has to, what share of the float32 time does that add? (c) Name one computation in which you would still ask for float64, and say what goes wrong in float32.
"""

# %% [markdown] nbgrader={"grade": true, "grade_id": "written-cost", "locked": false, "points": 5, "schema_version": 3, "solution": true}
"""
Your answer here.
"""

# %% [markdown]
"""
## You can now

- accept numbers with the type that you chose, and keep float64 out;
- read strides, tell views from copies, and know which operations give which;
- compute the shape of any broadcast and any matrix product before NumPy does;
- write classes whose operators work from the left and from the right;
- observe every operation of a program in one place, for about a microsecond per operation.

**Exercises, without points**

1. Write a recorder that adds up the floating point operations of every matrix product it is told of: (n, k) @ (k, m) takes n · m · k multiplications and as many additions. Test it on a stack of matrices.
2. `x.T.reshape(-1)` copies. Find, with `row_major_strides` and a pencil, the rule that tells from shape and strides whether two neighbouring axes can be joined without a copy, and write `can_join(shape, strides, axis)`. Check it against `np.shares_memory`.

Next: `(x @ a) @ b` is `x @ (a @ b)`, so a stack of matrix products can do no more than a single one. Something that is not linear has to come between them.
"""
