# %% [markdown]
"""
# Module 03: Layers

A model is a collection of arrays and an order in which they are used. The small GPT-2 that you will build in module 13 has 196 of them (16 in each of 12 blocks, and 4 more). You could keep them in 196 variables and write, by hand and for every model, the code that saves them, loads them, passes them to the optimizer, counts them and switches dropout off. In this module you write a class that does all this for every model to come, and the first three layers that use it.

After this module you will be able to

- multiply a batch of any shape by a weight matrix, and say why the matrix is stored as (out, in);
- find every weight of a model by name, and list each one once, however deeply it is nested and however often it is shared;
- start a layer with random weights of the right size, and predict what a stack of such layers does to a signal;
- drop activations at random during training, and never afterwards;
- save and load weights so that a wrong file changes nothing and the error says what is wrong;
- look at what passes through any layer of a finished model without editing its code, and leave no trace.

You need modules 01 and 02. Nothing here computes a gradient: module 05 does that, without changing a line of what you write now.
"""

# %%
#| default_exp core.layers

# %%
#| export
import math
from collections.abc import Callable, Iterator, Mapping
from threading import Lock
from typing import Any

import numpy as np

from tinytorch.core.tensor import Tensor, apply

# %% [markdown]
"""
## A layer is one matrix product

A linear layer has one row of weights for each of its outputs. Output `j` is the dot product of the input with row `j`, plus a bias: `y[j] = sum over i of weight[j, i] * x[i] + bias[j]`. With the rows in a matrix of shape (out, in), that is `x @ weight.T + bias`.

Why (out, in), when (in, out) would save the transpose? The transpose is a view, so it costs nothing. And a model that writes one token at a time multiplies one vector by each of its matrices, and spends its time fetching weights from memory, not on arithmetic. Stored as (out, in), the weights of one output are neighbours, and the matrix is read once from beginning to end.

With a few vectors, the weights should not be fetched from memory once for each. BLAS, the library behind `np.dot`, has one routine for many vectors and one for a single vector, and neither is good at two or three. So `multiply_rows` is given. For two or three rows, it takes the weights in blocks that stay in the processor's cache while the rows use them one after the other. From four rows on it calls the routine for many rows, also in blocks if the matrix is large, and from 64 rows on it computes `rows @ weight.T` directly. Use it as if it were `rows @ weight.T`.

`as_rows` is given too. A single row is what matters when a model writes, and `as_rows` makes it a plain vector: adding a bias of shape (128,) to an array of shape (1, 1, 128) took NumPy about two and a half times as long as adding it to one of its own shape (0.9 against 0.3 microseconds; two cores, NumPy 2.4).
"""


# %%
#| export
WEIGHT_BLOCK = 3 * 2**18  # numbers: 3 MB of float32, which stay in the caches of two cores


def as_rows(x: np.ndarray) -> np.ndarray:
    """(..., C) -> (N, C), or (C,) if there is only one row: NumPy is faster with plain vectors."""
    return x.reshape(-1) if x.size == x.shape[-1] else x.reshape(-1, x.shape[-1])


def multiply_rows(rows: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """(N, in) -> (N, out), or (in,) -> (out,): rows @ weight.T, contiguous, in the faster order."""
    if rows.ndim == 1:
        return weight.dot(rows)
    if len(rows) >= 64:
        return np.dot(rows, weight.T)
    product = np.empty((len(rows), len(weight)), np.result_type(rows, weight))
    one_by_one = len(rows) < 4
    num_blocks = max(1, round(weight.size / (WEIGHT_BLOCK if one_by_one else 5 * WEIGHT_BLOCK)))
    step = max(1, math.ceil(len(weight) / num_blocks))
    for start in range(0, len(weight), step):
        block, stop = weight[start : start + step], start + step
        if one_by_one:
            for row, out in zip(rows, product, strict=True):
                np.dot(block, row, out=out[start:stop])
        else:
            product[:, start:stop] = np.dot(block, rows.T).T
    return product


# %% [markdown]
"""
For 1, 2, 8 and 32 rows: the milliseconds of `rows @ weight.T`, and of `multiply_rows`, on your machine. Four matrices take turns, so that their weights come from memory and not from a cache.
"""

# %%
import timeit

weights = [np.ones((3072, 768), np.float32) for _ in range(4)]


def milliseconds(product, num_rows):
    rows = np.ones((num_rows, 768), np.float32)
    rounds = timeit.repeat(lambda: [product(rows, weight) for weight in weights], number=1, repeat=3)
    return round(min(rounds) / len(weights) * 1000, 2)


{n: (milliseconds(lambda rows, w: rows @ w.T, n), milliseconds(multiply_rows, n)) for n in (1, 2, 8, 32)}

# %% [markdown]
"""
**Task (12 points).** Write `linear(x, weight, bias)` for arrays. `x` may have any number of leading axes: (in,), (T, in) or (B, T, in) become (out,), (T, out) or (B, T, out). Flatten the leading axes into one (`as_rows`), multiply, add the bias if there is one, and restore the axes. Do not change the arrays that were passed in. About 5 lines.

`linear` is a plain function of arrays, like `gelu` in module 02. The class `Linear` further down holds the weights and calls it through `apply`, and module 05 gives it a gradient.
"""


# %% nbgrader={"grade": false, "grade_id": "linear", "locked": false, "schema_version": 3, "solution": true}
#| export
def linear(x: np.ndarray, weight: np.ndarray, bias: np.ndarray | None = None) -> np.ndarray:
    """(..., in), (out, in), (out,) -> (..., out): x @ weight.T + bias."""
    ### BEGIN SOLUTION
    y = multiply_rows(as_rows(x), weight)
    if bias is not None:
        y += bias  # y is ours: no second array is needed
    return y.reshape(*x.shape[:-1], len(weight))
    ### END SOLUTION


# %% [markdown]
"""
Two numbers go in, three come out: the first row of weights picks the first number, the second row the second, and the third adds them, with a bias of 10. What comes out for `[1, 2]`?
"""

# %%
linear(np.array([1.0, 2.0]), np.array([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]]), np.array([0.0, 0.0, 10.0]))

# %% nbgrader={"grade": true, "grade_id": "test-linear", "locked": true, "points": 12, "schema_version": 3, "solution": false}
weight = np.array([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]], np.float32)
bias = np.array([0.0, 0.0, 10.0], np.float32)
y = linear(np.array([1.0, 2.0], np.float32), weight, bias)
assert np.shape(y) == (3,), f"a vector of 2 numbers gives one of 3: shape (3,), not {np.shape(y)}"
assert np.allclose(y, [1, 2, 13]), f"[1, 2] becomes [1, 2, 1 + 2 + 10], yours is {y}"
y = linear(np.ones((4, 5, 2), np.float32), weight)
assert y.shape == (4, 5, 3), f"(4, 5, 2) with 3 outputs gives (4, 5, 3); yours is {y.shape}"
assert np.allclose(y[3, 4], [1, 1, 2]), f"without a bias, [1, 1] becomes [1, 1, 2]; yours is {y[3, 4]}"
assert y.dtype == np.float32, f"float32 in, float32 out; yours is {y.dtype}"
assert np.array_equal(bias, [0, 0, 10]), "the bias that was passed in must not change"
### BEGIN HIDDEN TESTS
rng = np.random.default_rng(0)
for front in ((), (1,), (7,), (2, 3), (2, 1, 4), (5, 9), (0, 3)):
    x = rng.normal(size=(*front, 6))
    weight, bias = rng.normal(size=(5, 6)), rng.normal(size=5)
    kept = x.copy(), weight.copy(), bias.copy()
    want = np.zeros((*front, 5))
    for place in np.ndindex(*front):
        for j in range(5):
            want[(*place, j)] = sum(x[(*place, i)] * weight[j, i] for i in range(6)) + bias[j]
    got = linear(x, weight, bias)
    assert got.shape == want.shape, f"wrong shape for x of shape {x.shape}: {got.shape}"
    assert np.allclose(got, want, rtol=1e-12), f"wrong values for x of shape {x.shape}"
    assert np.allclose(linear(x, weight), want - bias, rtol=1e-12), f"wrong without a bias for {x.shape}"
    assert all(np.array_equal(a, b) for a, b in zip(kept, (x, weight, bias), strict=True)), (
        "an input was changed"
    )
turned = rng.normal(size=(6, 4, 3)).transpose(1, 2, 0)  # not contiguous
assert np.allclose(linear(turned, weight, bias), turned @ weight.T + bias), "wrong for an x that is a view"
### END HIDDEN TESTS

# %% [markdown]
"""
## A module knows its parts

Now comes the class that every layer and every model inherits from. It rests on one idea: *what is set as an attribute belongs to the module*. `self.weight = Tensor(...)` makes a weight, `self.norm = LayerNorm(...)` makes a part, and `self.blocks = [...]` makes several. Nothing has to be registered. Python keeps the attributes of an object in a dictionary, in the order in which they were set, and `vars(self)` is that dictionary. So a module finds its parts by looking at itself; `children`, which is given, does this.

The rest of the class walks the resulting tree. The short methods are given; saving and wrapping call functions that you write further down. You write three methods.

**Task: `named_parameters` (10 points).** Yield `(name, tensor)` for every attribute that is a `Tensor`. Then do the same for every child, with the child's name and a dot before each of its names: `bias`, `mlp.up.weight`, `blocks.0.norm.weight`. `prefix` comes before all names. About 5 lines; `yield from` passes on what another generator yields.

**Task: `parameters` (6 points).** A weight may occur in a tree twice: a GPT uses its token embedding at the bottom and again at the top. Such a weight has two names, but an optimizer that got it twice would change it twice. Return the list of all weights, each once, in the order of `named_parameters`. What counts is whether they are the same *object*: two weights that happen to be equal are still two weights. About 1 to 4 lines; `id(tensor)` tells objects apart.

**Task: `train` (6 points).** Some layers behave differently while a model learns. Set `self.training` to `mode` here and in every part, at any depth, and return the module itself, so that `model = GPT(...).eval()` works. About 3 lines.
"""


# %% nbgrader={"grade": false, "grade_id": "module", "locked": false, "schema_version": 3, "solution": true}
#| export
def modules_in(name: str, value: Any) -> Iterator[tuple[str, "Module"]]:
    """Yields (name, module) for a module, or for each in a list, tuple or dict: "name.0", "name.key"."""
    if isinstance(value, Module):
        yield name, value
    elif isinstance(value, (list, tuple, dict)):
        for key, item in value.items() if isinstance(value, dict) else enumerate(value):
            if isinstance(item, Tensor) and item.requires_grad:
                kind = type(value).__name__
                raise TypeError(f"the weight {name}.{key} is in a {kind}: make it an attribute")
            yield from modules_in(f"{name}.{key}", item)


WRAPPING = Lock()  # only one thread at a time may wrap or unwrap a method


class Module:
    """A part of a model: holds weights (Tensors) and smaller parts (Modules), and computes with them.

    Every attribute that is a Tensor is a weight; every attribute that is a Module, or a list, tuple or dict
    of Modules, is a part. Arrays and numbers are neither.
    """

    training = True

    def forward(self, *inputs: Any) -> Any:
        raise NotImplementedError(f"{type(self).__name__} has no forward")

    def __call__(self, *inputs: Any, **options: Any) -> Any:
        return self.forward(*inputs, **options)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({sum(p.size for p in self.parameters()):,} weights)"

    def children(self) -> Iterator[tuple[str, "Module"]]:
        """Yields (name, module) for every part, also those in lists and dicts, but not the parts of parts.

        Raises TypeError for a weight in a list or dict, where nothing would find it.
        """
        for name, value in list(vars(self).items()):  # a copy: another thread may wrap a method meanwhile
            yield from modules_in(name, value)

    def named_parameters(self, prefix: str = "") -> Iterator[tuple[str, Tensor]]:
        """Yields (name, weight) for every weight of this module and its parts, as in "blocks.0.norm.bias".

        A weight that occurs in the tree twice is yielded twice, under both names.
        """
        ### BEGIN SOLUTION
        for name, value in list(vars(self).items()):  # a copy: another thread may wrap a method meanwhile
            if isinstance(value, Tensor):
                yield prefix + name, value
        for name, child in self.children():
            yield from child.named_parameters(f"{prefix}{name}.")
        ### END SOLUTION

    def parameters(self) -> list[Tensor]:
        """Every weight once, even if it is shared."""
        ### BEGIN SOLUTION
        return list({id(p): p for _, p in self.named_parameters()}.values())
        ### END SOLUTION

    def train(self, mode: bool = True) -> "Module":
        """Switches this module and all its parts to training (or, with False, to evaluation) -> itself."""
        ### BEGIN SOLUTION
        self.training = mode
        for _, child in self.children():
            child.train(mode)
        return self
        ### END SOLUTION

    def eval(self) -> "Module":
        """The same as train(False) -> itself."""
        return self.train(False)

    def state_dict(self) -> dict[str, np.ndarray]:
        """name -> array: the weights themselves, not copies.

        A shared weight appears under each of its names.
        """
        return {name: p.data for name, p in self.named_parameters()}

    def load_state_dict(self, state: Mapping[str, np.ndarray]) -> None:
        """Copies the arrays of `state` into the weights: all of them, or none if one does not fit.

        Raises ValueError if a name is missing or unknown, a shape differs, or a number is not finite in the
        weight's type; TypeError for anything but floats.
        """
        own = self.state_dict()
        for name, array in check_state(own, state).items():
            own[name][...] = array

    def wrap(self, method: str, wrapper: Any) -> None:
        """From now on `self.method(...)` calls `wrapper(inner, ...)`, where `inner` is what it called before.

        Only this object changes, but for all threads. Raises ValueError if its class has no such method.
        """
        with WRAPPING:
            wrap_method(self, method, wrapper)

    def unwrap(self, method: str, wrapper: Any) -> None:
        """Takes `wrapper` off again, wherever it is in the chain; if it was put on twice, the outer one.

        Raises ValueError if it is not there.
        """
        with WRAPPING:
            unwrap_method(self, method, wrapper)


# %% [markdown]
"""
Here is a tree of three modules; `Module()` with attributes set from outside is enough to try it. Predict the names, in order, before you run the cell. A module's own weights come first.
"""

# %%
tree, branch, leaf = Module(), Module(), Module()
tree.branches, tree.scale = [branch, leaf], Tensor([2.0])
branch.weight, branch.bias = Tensor([[1.0, 2.0]]), Tensor([0.0])
leaf.weight = branch.weight  # shared
[name for name, _ in tree.named_parameters()]

# %% [markdown]
"""
There are four names, but `branches.0.weight` and `branches.1.weight` are the same tensor, so there are three weights:
"""

# %%
len(tree.parameters())

# %% nbgrader={"grade": true, "grade_id": "test-named-parameters", "locked": true, "points": 10, "schema_version": 3, "solution": false}
outer, inner = Module(), Module()
outer.first = inner
outer.own = Tensor([1.0])
inner.weight, inner.size, inner.missing = Tensor([[2.0]]), 7, None
names = [name for name, _ in outer.named_parameters()]
assert "weight" not in names, "the name of the weight in `first` is first.weight, not weight"
assert sorted(names) == ["first.weight", "own"], f"the names are own and first.weight, yours are {names}"
assert names == ["own", "first.weight"], f"a module's own weights come before its parts', yours: {names}"
assert dict(outer.named_parameters())["first.weight"] is inner.weight, "yield the tensor itself, not a copy"
names = [name for name, _ in outer.named_parameters("model.")]
assert names == ["model.own", "model.first.weight"], f"with the prefix 'model.' yours are {names}"
### BEGIN HIDDEN TESTS
deep, middle, bottom = Module(), Module(), Module()
bottom.w, bottom.table = Tensor([1.0]), np.ones(3)
middle.pair = (bottom, Module(), bottom)
deep.blocks, deep.norm, deep.gain = [Module(), middle], bottom, Tensor([3.0])
want = ["gain", "blocks.1.pair.0.w", "blocks.1.pair.2.w", "norm.w"]
got = [name for name, _ in deep.named_parameters()]
assert got == want, f"parts in lists and tuples, three levels deep: {want}, yours: {got}"
assert [name for name, _ in deep.named_parameters("x.")] == ["x." + name for name in want], "a prefix is lost"
assert list(Module().named_parameters()) == [], "a module without weights has none"
### END HIDDEN TESTS


# %% nbgrader={"grade": true, "grade_id": "test-parameters", "locked": true, "points": 6, "schema_version": 3, "solution": false}
class Named(Module):
    """A module whose `named_parameters` is known to be right."""

    def __init__(self, **weights):
        self.weights = weights

    def named_parameters(self, prefix=""):
        yield from self.weights.items()


w, v = Tensor([1.0]), Tensor([1.0])
found = Named(a=w, b=v).parameters()
assert isinstance(found, list), f"return a list, yours is {type(found).__name__}"
assert len(found) == 2, "two weights that hold equal numbers are two weights: compare objects, not values"
found = Named(a=w, b=v, c=w).parameters()
assert len(found) == 2, f"a and c are one shared weight, so there are 2 weights, yours has {len(found)}"
assert found[0] is w and found[1] is v, "return the tensors themselves, in the order of named_parameters"
### BEGIN HIDDEN TESTS
many = [Tensor([float(i)]) for i in range(6)]
order = [3, 1, 4, 1, 5, 2, 3, 0]
found = Named(**{f"n{place}": many[i] for place, i in enumerate(order)}).parameters()
assert [int(p) for p in found] == [3, 1, 4, 5, 2, 0], "each weight once, where it came first"
assert all(p is many[int(p)] for p in found) and Named().parameters() == []
### END HIDDEN TESTS

# %% nbgrader={"grade": true, "grade_id": "test-train", "locked": true, "points": 6, "schema_version": 3, "solution": false}
top, middle, bottom = Module(), Module(), Module()
top.parts, middle.part = [Module(), middle], bottom
assert top.training, "a new module is in training mode"
returned = top.train(False)
assert returned is top, "train returns the module itself, so that `model = Model().eval()` works"
assert not top.training, "train(False) switches the module itself"
assert not middle.training, "train(False) switches the parts, also those in lists"
assert not bottom.training, "train(False) switches the parts of the parts: let each part switch its own"
top.train()
assert top.training and bottom.training, "train() without an argument means True"
### BEGIN HIDDEN TESTS
middle.train(False)
assert top.training and top.parts[0].training, "switching a part must not switch what is above or beside it"
assert not middle.training and not bottom.training, "a part that is switched switches its own parts"
top.eval()
assert not any(m.training for m in (top, top.parts[0], middle, bottom)), "eval switches the whole tree"
top.train(True)
assert all(m.training for m in (top, top.parts[0], middle, bottom)), "train(True) switches the whole tree"
assert Module.training and Module().training, "only the objects change, never the class"
### END HIDDEN TESTS

# %% [markdown]
"""
## Random weights of the right size

`Linear` holds the arrays that `linear` needs. Which numbers should they start with? Not zeros: then all outputs of the layer would be equal, get equal gradients and stay equal. So they are random. How large should they be?

Take inputs of mean 0 and variance 1, independent of each other, and weights of mean 0 and variance `s²`. One output is a sum of `in` products. Each product has variance `s²`, and variances of independent terms add up, so the output has variance `in * s²`. With `s = 1`, a layer of 512 inputs makes the numbers about 22.6 times larger, and ten such layers 22.6¹⁰ times, about 3 · 10¹³. So `s` has to shrink with the square root of `in`.

We do what PyTorch's `Linear` does: uniform between `-1/sqrt(in)` and `+1/sqrt(in)`. Such a number has the variance `limit² / 3`, here `1 / (3 * in)`, so the output has a third of the input's variance.

First a small helper, which every constructor from here on will need: it checks that sizes are integers of at least 1, and its error names the one that is not.
"""


# %%
#| export
def check_sizes(**sizes: int) -> None:
    """Raises TypeError for a size that is not an integer, ValueError for one below 1, and names it."""
    for name, size in sizes.items():
        if isinstance(size, bool) or not isinstance(size, (int, np.integer)):
            raise TypeError(f"{name} should be a whole number, got {size!r}")
        if size < 1:
            raise ValueError(f"{name} should be at least 1, got {size}")


# %% [markdown]
"""
**Task: the constructor (7 points).** Make `self.weight`, a Tensor of shape (out_features, in_features) drawn by `rng.uniform` between the limits above, and `self.bias`, a Tensor of `out_features` zeros, or `None` if `bias` is False. Both require gradients (`requires_grad=True`). About 3 lines.

`rng` is passed in: a seed, a generator, or None for a fresh one. A model passes the same generator to all its layers, so one seed determines the whole model, and no two layers get the same numbers.

**Task: `forward` (7 points).** Raise a `ValueError` if the last axis of `x` is not `in_features` long, and name `in_features` and the shape of `x` in it: NumPy's own error would speak of the transposed matrix inside `linear`. Then call `linear` through `apply`, with the bias only if there is one. About 5 lines. `x.shape[-1:]` is a tuple, empty for a single number; it should equal `self.weight.shape[1:]`.
"""


# %% nbgrader={"grade": false, "grade_id": "linear-class", "locked": false, "schema_version": 3, "solution": true}
#| export
class Linear(Module):
    """(..., in_features) -> (..., out_features): x @ weight.T + bias, weight (out_features, in_features)."""

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        rng: np.random.Generator | int | None = None,
    ):
        """rng: a seed, a NumPy Generator, or None.

        The weights start uniform within 1 / sqrt(in_features), the biases at 0. Raises ValueError for a size
        below 1, TypeError for one that is not an integer.
        """
        check_sizes(in_features=in_features, out_features=out_features)
        rng = np.random.default_rng(rng)
        ### BEGIN SOLUTION
        limit = 1 / math.sqrt(in_features)
        weight = rng.uniform(-limit, limit, (out_features, in_features))
        self.weight = Tensor(weight, requires_grad=True)
        self.bias = Tensor(np.zeros(out_features), requires_grad=True) if bias else None
        ### END SOLUTION

    def forward(self, x: Tensor) -> Tensor:
        """x: a Tensor or array. Raises ValueError if its last axis is not in_features long."""
        ### BEGIN SOLUTION
        if x.shape[-1:] != self.weight.shape[1:]:
            raise ValueError(f"the layer takes {self.weight.shape[1]} features, x has shape {x.shape}")
        if self.bias is None:
            return apply(linear, x, self.weight)
        return apply(linear, x, self.weight, self.bias)
        ### END SOLUTION


# %% [markdown]
"""
A layer with 3 inputs and 2 outputs, whose weights are set by hand. The first output is 1 + 2 + 3 + 0.5, the second 2·1 − 3.
"""

# %%
layer = Linear(3, 2, rng=0)
layer.weight.data[...] = [[1, 1, 1], [2, 0, -1]]
layer.bias.data[...] = [0.5, 0]
layer(Tensor([[1.0, 2.0, 3.0]]))

# %% nbgrader={"grade": true, "grade_id": "test-linear-init", "locked": true, "points": 7, "schema_version": 3, "solution": false}
layer = Linear(400, 300, rng=5)
assert layer.weight.shape == (300, 400), f"(out, in) is (300, 400), yours is {layer.weight.shape}"
limit = 1 / np.sqrt(400)
largest = np.abs(layer.weight.data).max()
assert largest <= limit * 1.0001, f"no weight exceeds 1/sqrt(400) = {limit}, your largest is {largest}"
assert largest > 0.99 * limit, f"of 120,000 weights some come close to {limit}, your largest is {largest}"
assert abs(layer.weight.data.mean()) < limit / 50, "the weights should be negative as often as positive"
assert layer.bias.shape == (300,) and not layer.bias.data.any(), "the bias is one zero for each output"
assert layer.weight.requires_grad and layer.bias.requires_grad, "weight and bias both require gradients"
assert Linear(4, 3, bias=False, rng=0).bias is None, "without a bias, self.bias is None"
### BEGIN HIDDEN TESTS
rng = np.random.default_rng(1)
one, two = Linear(9, 8, rng=rng), Linear(9, 8, rng=rng)
assert not np.array_equal(one.weight.data, two.weight.data), "two layers of one generator got equal weights"
again = Linear(9, 8, rng=1).weight.data
assert np.array_equal(one.weight.data, again), "the same seed should give the same weights"
deviation = Linear(64, 5000, rng=2).weight.data.std() * np.sqrt(3 * 64)
assert abs(deviation - 1) < 0.01, f"the deviation should be limit/sqrt(3), yours is {deviation:.3f} of it"
assert one.weight.dtype == one.bias.dtype == np.float32, "weights are float32"
### END HIDDEN TESTS


# %% nbgrader={"grade": true, "grade_id": "test-linear-forward", "locked": true, "points": 7, "schema_version": 3, "solution": false}
### BEGIN HIDDEN TESTS
def linear(x, weight, bias=None):
    """A correct version, whatever the answer to the first task."""
    return np.einsum("...i,oi->...o", x, weight) + (0 if bias is None else bias)


### END HIDDEN TESTS
layer = Linear.__new__(Linear)  # made without the constructor, so that this test does not need it
layer.weight, layer.bias = Tensor([[1.0, 1.0, 1.0], [2.0, 0.0, -1.0]]), Tensor([0.5, 0.0])
y = layer.forward(Tensor([[1.0, 2.0, 3.0]]))
assert isinstance(y, Tensor), f"forward returns a Tensor, yours is {type(y).__name__}: go through apply"
assert np.allclose(y.data, [[6.5, -1]]), f"[1, 2, 3] becomes [1+2+3+0.5, 2-3], yours is {y.data}"
layer.bias = None
y = layer.forward(Tensor([1.0, 2.0, 3.0]))
assert np.allclose(y.data, [6, -1]), f"without a bias it becomes [6, -1], yours is {y.data}"
try:
    layer.forward(Tensor(np.ones((5, 2))))
except ValueError as error:
    assert "3" in str(error) and "(5, 2)" in str(error), f"name the 3 features and the shape (5, 2): {error}"
else:
    raise AssertionError("2 features into a layer for 3: forward should raise a ValueError")
### BEGIN HIDDEN TESTS
rng = np.random.default_rng(3)
layer.weight, layer.bias = Tensor(rng.normal(size=(5, 4))), Tensor(rng.normal(size=5))
for front in ((), (3,), (2, 3)):
    x = rng.normal(size=(*front, 4)).astype(np.float32)
    want = np.array(
        [
            [r @ w + b for w, b in zip(layer.weight.data, layer.bias.data, strict=True)]
            for r in x.reshape(-1, 4)
        ]
    )
    for given in (Tensor(x), x):
        assert np.allclose(layer(given).data, want.reshape(*front, 5), rtol=1e-5, atol=1e-6), (
            f"wrong for {x.shape}"
        )
for wrong in (np.ones((4, 5)), np.float32(1)):
    try:
        layer(Tensor(wrong))
    except ValueError:
        pass
    else:
        raise AssertionError(f"x of shape {np.shape(wrong)} was taken by a layer for 4 features")
### END HIDDEN TESTS

# %% [markdown]
"""
Now measure what was predicted above: 512 numbers with a standard deviation of 1 go into a layer of 512 outputs. A third of the variance means a standard deviation of `1/sqrt(3)`, 0.577.
"""

# %%
signal = Tensor(np.random.default_rng(0).normal(size=(200, 512)))
float(Linear(512, 512, rng=1)(signal).data.std())

# %% [markdown]
"""
## One after the other

Many models are chains: the output of one layer is the input of the next. `Sequential` is such a chain, and itself a layer, so chains can be nested. Its layers need not be Modules. Anything that can be called will do, such as `GELU()` of module 02 or a plain function; only Modules have weights to find.

**Task (5 points).** Write `forward`: pass `x` through the layers in order. A chain without layers returns `x`. About 3 lines.
"""


# %% nbgrader={"grade": false, "grade_id": "sequential", "locked": false, "schema_version": 3, "solution": true}
#| export
class Sequential(Module):
    """Runs its layers one after the other; a layer is anything that can be called."""

    def __init__(self, *layers: Module):
        """Raises TypeError if one of the layers cannot be called."""
        for i, layer in enumerate(layers):
            if not callable(layer):
                raise TypeError(
                    f"layer {i} of {len(layers)} cannot be called, it is a {type(layer).__name__}"
                )
        self.layers = list(layers)

    def __len__(self) -> int:
        return len(self.layers)

    def __getitem__(self, index: int | slice) -> Any:
        return self.layers[index]

    def forward(self, x: Any) -> Any:
        """The output of the last layer; x itself if there is none."""
        ### BEGIN SOLUTION
        for layer in self.layers:
            x = layer(x)
        return x
        ### END SOLUTION


# %%
Sequential(lambda x: x + 1, lambda x: x * 10)(Tensor([1.0, 2.0]))

# %% nbgrader={"grade": true, "grade_id": "test-sequential", "locked": true, "points": 5, "schema_version": 3, "solution": false}
chain = Sequential(lambda x: x + 1, lambda x: x * 10)
y = chain(Tensor([1.0, 2.0])).data
assert np.array_equal(y, [20, 30]), f"add 1, then times 10: [20, 30]; yours is {y}. Is the order right?"
x = Tensor([4.0])
assert Sequential()(x) is x, "a chain without layers returns x"
### BEGIN HIDDEN TESTS
calls = []
steps = [lambda x, i=i: calls.append((i, x)) or x + 2**i for i in range(5)]
y = Sequential(*steps[:2], Sequential(*steps[2:4]), steps[4])(0)
assert y == 31 and calls == [(0, 0), (1, 1), (2, 3), (3, 7), (4, 15)], "each layer once, in order, nested too"
assert Sequential(*steps)(0) == Sequential(*steps)(0), "a second call gives the same"
### END HIDDEN TESTS

# %% [markdown]
"""
## Dropout

A model with many weights can learn its examples by heart, and its units can come to depend on particular other units. Srivastava et al. ("Dropout: A Simple Way to Prevent Neural Networks from Overfitting", JMLR 2014) set a random part of the numbers to 0 in every training step, so that no unit can depend on any single other one.

Two things are easy to get wrong. Without some of its terms, the sum that the next layer computes is smaller on average, so the remaining numbers are multiplied by `1 / (1 - p)`, which restores the average. And when the model is used, nothing may be dropped; this is what `training` is for.

**Task (10 points).** Write `forward`. In training, set each entry of `x` to 0 with probability `p`, independently of the others, and multiply the rest by `1 / (1 - p)`. In evaluation, or if `p` is 0, return `x` itself and draw no random numbers. Multiply through `apply(np.multiply, x, ...)`, so that module 05 can record it. About 5 lines; `self.rng.random(shape)` is uniform in [0, 1).
"""


# %% nbgrader={"grade": false, "grade_id": "dropout", "locked": false, "schema_version": 3, "solution": true}
#| export
class Dropout(Module):
    """In training, sets each entry to 0 with probability p and multiplies the rest by 1 / (1 - p).

    Srivastava et al. 2014 (JMLR 15), scaled in training instead of afterwards.
    """

    def __init__(self, p: float = 0.1, rng: np.random.Generator | int | None = None):
        """rng: a seed, a NumPy Generator, or None. Raises ValueError if p is not in [0, 1)."""
        if not 0 <= p < 1:
            raise ValueError(f"the probability of dropping should be in [0, 1), got {p}")
        self.p = p
        self.rng = np.random.default_rng(rng)

    def forward(self, x: Tensor) -> Tensor:
        """(any shape) -> the same shape."""
        ### BEGIN SOLUTION
        if not self.training or self.p == 0:
            return x
        keep = self.rng.random(x.shape) >= self.p
        return apply(np.multiply, x, keep.astype(np.float32) / (1 - self.p))
        ### END SOLUTION


# %% [markdown]
"""
Twelve ones, of which a quarter is dropped on average. What value do the others get? (1 / 0.75.) And how many zeros do you get with another seed?
"""

# %%
Dropout(0.25, rng=0)(Tensor(np.ones((3, 4))))

# %% nbgrader={"grade": true, "grade_id": "test-dropout", "locked": true, "points": 10, "schema_version": 3, "solution": false}
Module.training = True  # as at first, whatever `train` did
x = Tensor(np.full((100, 100), 2.0))
dropout = Dropout(0.2, rng=1)
y = dropout.forward(x).data
dropped = (y == 0).mean()
assert y.shape == (100, 100), f"the shape stays (100, 100), yours is {y.shape}"
assert 0.18 < dropped < 0.22, f"p = 0.2 drops about 20 % of the entries, you dropped {100 * dropped:.1f} %"
kept = y[y != 0]
assert np.allclose(kept, 2.5), f"2 is kept as 2 / 0.8 = 2.5, so that the mean stays; yours: {kept[:3]}"
assert not np.array_equal(dropout.forward(x).data, y), "every call should drop different entries"
dropout.training = False
assert dropout.forward(x) is x, "in evaluation nothing is dropped and nothing is scaled"
### BEGIN HIDDEN TESTS
for p, seed in ((0.8, 2), (0.5, 3)):
    x = Tensor(np.random.default_rng(seed).uniform(1, 2, size=(40, 50, 30)))
    y = Dropout(p, rng=seed)(x).data
    assert abs((y == 0).mean() - p) < 4 * np.sqrt(p * (1 - p) / x.size), f"p = {p} dropped {(y == 0).mean()}"
    assert np.allclose(y, np.where(y == 0, 0, x.data / (1 - p)), rtol=1e-6), f"wrong scale for p = {p}"
    for axis in range(3):
        spread = np.sqrt(
            p * (1 - p) / y.shape[axis]
        )  # of the share dropped in one row, if all are independent
        assert (y == 0).mean(axis=axis).std() < 1.5 * spread, "entries are dropped one by one, not in rows"
    assert y.dtype == np.float32, f"float32 in, float32 out; yours is {y.dtype}"
    assert np.array_equal(y, Dropout(p, rng=seed)(x).data), "the same seed should drop the same entries"
x = Tensor(np.ones(5))
assert Dropout(0.0, rng=0)(x) is x, "with p = 0 nothing is dropped"
used = Dropout(0.5, rng=7)
used.training = False
used(x)
assert used.rng.random() == np.random.default_rng(7).random(), "in evaluation no random number may be drawn"
### END HIDDEN TESTS

# %% [markdown]
"""
## Saving and loading weights

`state_dict` returns the weights by name; module 07 writes them to a file. Loading is where things go wrong: the file may belong to an older or a larger model, be half written, or come from a training run that diverged. A loader that copies until it meets the first problem leaves a model that is half old and half new, and that model will run. So check everything first, then copy.

You have to decide what to refuse. Refuse missing and unknown names, which belong to another model. Refuse a wrong shape, even if broadcasting would make it fit. Refuse numbers that are not finite: NaN spreads to every later output, and the error should appear here, with the name of the weight, not a thousand tokens later. Refuse integers, with a TypeError. Accept floats of another precision and convert them; a float64 that is too large for float32 counts as not finite.

**Task (12 points).** Write the checks of `check_state(own, state)`, in this order. `own` and `state` are dictionaries from name to array. Fill `arrays` with the arrays of `state` (`np.asarray`), one for each name of `own`; change neither dictionary.

1. ValueError if names are missing in `state` or unknown to `own`; name at least the first of each.
2. For each name: TypeError if the `dtype.kind` of the array is not `"f"`; ValueError with both shapes if they differ; ValueError if an entry is not finite after conversion to the type of the array in `own`. Each message contains the name.

About 15 lines. The line that silences NumPy's overflow warning is given, and so is the last check: the two names of a shared weight must come with the same numbers.
"""


# %% nbgrader={"grade": false, "grade_id": "check-state", "locked": false, "schema_version": 3, "solution": true}
#| export
def check_state(own: Mapping[str, np.ndarray], state: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """-> the arrays of `state`, one for each name of `own`, checked for copying. Writes nothing.

    Raises ValueError for missing and unknown names, another shape, numbers that are not finite in the type of
    the array in `own`, and for a shared weight whose two names differ; TypeError for anything but floats.
    """
    if not isinstance(state, Mapping):
        raise TypeError(f"weights come as a dictionary from name to array, got {type(state).__name__}")
    arrays = {}
    with np.errstate(over="ignore"):  # what is too large for float32 becomes inf, which is refused
        ### BEGIN SOLUTION
        missing = [name for name in own if name not in state]
        unknown = [name for name in state if name not in own]
        if missing or unknown:
            raise ValueError(
                f"these weights are of another model: {len(missing)} missing {missing[:3]}, "
                f"{len(unknown)} unknown {unknown[:3]}"
            )
        for name, weight in own.items():
            array = np.asarray(state[name])
            if array.dtype.kind != "f":
                raise TypeError(f"{name} holds {array.dtype}, weights are floats")
            if array.shape != weight.shape:
                raise ValueError(f"{name} has shape {array.shape}, the model needs {weight.shape}")
            finite = np.isfinite(array.astype(weight.dtype, copy=False))
            if not finite.all():
                raise ValueError(
                    f"{name}: {finite.size - finite.sum()} of {finite.size} numbers are not finite"
                )
            arrays[name] = array
        ### END SOLUTION
    first_name = {}
    for name, weight in own.items():
        first = first_name.setdefault(id(weight), name)
        if first != name and not np.array_equal(arrays[first], arrays[name]):
            raise ValueError(
                f"{first} and {name} are one weight of this model, but come with different numbers"
            )
    return arrays


# %% [markdown]
"""
One layer loads the weights of another; afterwards both give the same output. The second cell tries a wrong shape: what does the message name, and has the layer changed?
"""

# %%
teacher, pupil, question = Linear(3, 2, rng=1), Linear(3, 2, rng=2), Tensor([1.0, 2.0, 3.0])
pupil.load_state_dict(teacher.state_dict())
np.array_equal(pupil(question).data, teacher(question).data)

# %%
try:
    pupil.load_state_dict({"weight": np.zeros((2, 3), np.float32), "bias": np.zeros(1, np.float32)})
except ValueError as error:
    print(error)
bool(pupil.weight.data.any())  # False would mean that the zeros were copied before the bias was checked

# %% nbgrader={"grade": true, "grade_id": "test-check-state", "locked": true, "points": 12, "schema_version": 3, "solution": false}
own = {"a.weight": np.zeros((2, 3), np.float32), "a.bias": np.zeros(3, np.float32)}
good = {"a.bias": np.ones(3, np.float32), "a.weight": np.full((2, 3), 2.0)}


def complaint(state, kind=ValueError):
    try:
        check_state(own, state)
    except (ValueError, TypeError) as error:
        assert type(error) is kind, f"raise a {kind.__name__} here, not {type(error).__name__}: {error}"
        return str(error)
    raise AssertionError(f"this state should be refused with a {kind.__name__}: {state}")


arrays = check_state(own, good)
assert sorted(arrays) == ["a.bias", "a.weight"], f"one array for each name of own, yours: {sorted(arrays)}"
assert np.array_equal(arrays["a.weight"], good["a.weight"]), "return the arrays of state, not those of own"
assert not own["a.weight"].any(), "check_state only looks: it must not write into own"
assert "a.bias" in complaint({"a.weight": good["a.weight"]}), "name the missing weight, a.bias"
assert "b.bias" in complaint({**good, "b.bias": np.ones(3)}), "name the unknown weight, b.bias"
message = complaint({**good, "a.bias": np.ones(1, np.float32)})
assert all(part in message for part in ("a.bias", "(1,)", "(3,)")), (
    f"a.bias has shape (1,) and needs (3,): say so, even though (1,) would broadcast; yours: {message}"
)
assert "a.weight" in complaint({**good, "a.weight": np.full((2, 3), np.nan)}), "which weight holds NaN?"
assert "a.bias" in complaint({**good, "a.bias": np.ones(3, int)}, TypeError), "which weight holds integers?"
### BEGIN HIDDEN TESTS
for bad, kind in (
    ({**good, "a.weight": np.array([[1, 2, 3], [4, -np.inf, 6]])}, ValueError),
    ({**good, "a.bias": np.array([1.0, 1e300, 1.0])}, ValueError),
    ({**good, "a.weight": np.zeros((3, 2), np.float32)}, ValueError),
    ({**good, "a.weight": np.zeros((1, 2, 3), np.float32)}, ValueError),
    ({**good, "a.bias": np.array(["1", "2", "3"])}, TypeError),
    ({**good, "a.bias": np.ones(3, bool)}, TypeError),
    ({**good, "a.bias": None}, TypeError),
    ({}, ValueError),
):
    complaint(bad, kind)
    assert not own["a.weight"].any() and not own["a.bias"].any(), "own was changed"
low = check_state(own, {"a.weight": np.full((2, 3), 2, np.float16), "a.bias": [1.0, 2.0, 3.0]})
assert np.array_equal(low["a.weight"], np.full((2, 3), 2)) and np.array_equal(low["a.bias"], [1, 2, 3]), (
    "float16, lists"
)
arrays = check_state(own, dict(reversed(good.items())))
assert np.array_equal(arrays["a.bias"], [1, 1, 1]), "the order of state does not matter"
### END HIDDEN TESTS

# %% [markdown]
"""
## Looking inside without editing

A finished model gives strange answers. Which layer is at fault? You want to see what passes through each of them, and afterwards you want the model back as it was. You cannot edit its classes: other models use them too, and you may not have written them.

But Python looks up `layer.forward` on the object first and only then on its class. So you can give one *object* its own `forward`, which calls the original and does something in addition. That is a wrapper: its first argument is `inner`, what would have been called, and the others are the call's arguments.

```python
def show_shape(inner, x):
    y = inner(x)
    print(x.shape, "->", y.shape)
    return y

layer.wrap("forward", show_shape)      # from now on, this one layer reports
layer.unwrap("forward", show_shape)    # and now it is as before
```

Wrappers can be put around each other: the `inner` of the second is the first. They must come off in any order, since the code that put on the first does not know about the second. So the attribute holds a small object that remembers both the wrapper and what is below it, and these objects form a chain.

`Wrapped` is given. (`functools.partial(wrapper, inner)` would do nearly the same, but it merges with a wrapper that is itself a partial, and then the chain is lost.)
"""


# %%
#| export
class Wrapped:
    """Takes the place of a method and calls `wrapper(inner, ...)`; `inner` is a method or a Wrapped."""

    __slots__ = ("wrapper", "inner")

    def __init__(self, wrapper: Any, inner: Callable):
        self.wrapper, self.inner = wrapper, inner

    def __call__(self, *inputs: Any, **options: Any) -> Any:
        return self.wrapper(self.inner, *inputs, **options)

    def __repr__(self) -> str:
        return f"Wrapped({self.wrapper!r}, {self.inner!r})"


# %% [markdown]
"""
**Task: put on (6 points).** Write `wrap_method(owner, method, wrapper)`: set the attribute `method` of `owner` to a `Wrapped` around what was there before. Check first. Raise a ValueError that names the class and the method if the *class* has no method of that name (a part such as `self.norm` is not a method, and replacing it would lose its weights), or if the name begins with `__` (Python looks up such methods only on the class, so the wrapper would never be called). Raise a TypeError if the wrapper cannot be called. About 6 lines with `getattr`, `callable`, `setattr`.
"""


# %% nbgrader={"grade": false, "grade_id": "wrap-method", "locked": false, "schema_version": 3, "solution": true}
#| export
def wrap_method(owner: Any, method: str, wrapper: Any) -> None:
    """From now on `owner.method(...)` calls `wrapper(inner, ...)`, where `inner` is what it called before.

    Raises ValueError if the class of owner has no such method or its name begins with "__"; TypeError if
    wrapper cannot be called.
    """
    ### BEGIN SOLUTION
    if method.startswith("__") or not callable(getattr(type(owner), method, None)):
        raise ValueError(f"{type(owner).__name__} has no method {method!r} that could be wrapped")
    if not callable(wrapper):
        raise TypeError(
            f"a wrapper is called with what it wraps, a {type(wrapper).__name__} cannot be called"
        )
    setattr(owner, method, Wrapped(wrapper, getattr(owner, method)))
    ### END SOLUTION


# %% [markdown]
"""
The layer doubles its input, the first wrapper adds 1 to the result, and the second multiplies that by 10. For an input of 3, is it 70 or 61?
"""


# %%
class Double(Module):
    def forward(self, x):
        return 2 * x


double = Double()
double.wrap("forward", lambda inner, x: inner(x) + 1)
double.wrap("forward", lambda inner, x: inner(x) * 10)
double(3)


# %% nbgrader={"grade": true, "grade_id": "test-wrap-method", "locked": true, "points": 6, "schema_version": 3, "solution": false}
class Doubler(Module):
    def forward(self, x, times=1):
        return 2 * x * times


one, other = Doubler(), Doubler()
wrap_method(one, "forward", lambda inner, x, **options: inner(x, **options) + 1)
y = one(3)
assert y == 7, f"2 * 3, and the wrapper adds 1: 7; yours is {y}"
assert one(3, times=5) == 31, f"keyword arguments reach the wrapper too: 31; yours is {one(3, times=5)}"
assert other(3) == 6, "only this one object is wrapped: set the attribute on the object, not on its class"
wrap_method(one, "forward", lambda inner, x: inner(x) * 10)
assert one(3) == 70, f"the second wrapper goes around the first: (2 * 3 + 1) * 10 = 70; yours is {one(3)}"
try:
    wrap_method(one, "backward", lambda inner, x: x)
except ValueError as error:
    assert "Doubler" in str(error) and "backward" in str(error), f"name the class and the method: {error}"
else:
    raise AssertionError("a Doubler has no method backward: wrap_method should raise a ValueError")
### BEGIN HIDDEN TESTS
same = Doubler()
add = lambda inner, x: inner(x) + 1  # noqa: E731
for times in range(1, 4):
    wrap_method(same, "forward", add)
    assert same(3) == 6 + times, "a wrapper runs as often as it was put on"
part = Doubler()
part.inside = Doubler()
for name, wrapper, kind in (
    ("inside", add, ValueError),
    ("__call__", add, ValueError),
    ("forward", 7, TypeError),
):
    before = dict(vars(part))
    try:
        wrap_method(part, name, wrapper)
    except (ValueError, TypeError) as error:
        assert type(error) is kind, f"{name} by {wrapper!r}: {kind.__name__}, not {type(error).__name__}"
    else:
        raise AssertionError(f"{name!r} wrapped by {wrapper!r} should raise a {kind.__name__}")
    assert vars(part) == before, "after an error nothing should have changed"
### END HIDDEN TESTS

# %% [markdown]
"""
**Task: take off (9 points).** Write `unwrap_method(owner, method, wrapper)`. Walk the chain from the outside, starting at `vars(owner).get(method)`, until you reach a `Wrapped` whose wrapper *equals* the one you are looking for. Use `==`, not `is`: Python makes a new object for every `timer.forward`, but two of them are equal. If you do not find it, raise a ValueError that names the class and the method.

Then take the link out. If another link is outside it, set that one's `inner` to what is below it. If it was the outermost, delete the attribute; then, if what the class offers is not what was below, set the attribute to what was below. Once all wrappers are off, `vars(owner)` is as it was before the first. About 12 lines.
"""


# %% nbgrader={"grade": false, "grade_id": "unwrap-method", "locked": false, "schema_version": 3, "solution": true}
#| export
def unwrap_method(owner: Any, method: str, wrapper: Any) -> None:
    """Takes `wrapper` off `owner.method`, wherever it is in the chain; if it was put on twice, the outer one.

    Raises ValueError if it is not there.
    """
    ### BEGIN SOLUTION
    outer, link = None, vars(owner).get(method)
    while isinstance(link, Wrapped) and link.wrapper != wrapper:
        outer, link = link, link.inner
    if not isinstance(link, Wrapped):
        raise ValueError(f"{type(owner).__name__}.{method} is not wrapped by {wrapper!r}")
    if outer is not None:
        outer.inner = link.inner
        return
    if isinstance(link.inner, Wrapped):
        setattr(owner, method, link.inner)
        return
    delattr(owner, method)
    if getattr(owner, method) != link.inner:
        setattr(owner, method, link.inner)
    ### END SOLUTION


# %% nbgrader={"grade": true, "grade_id": "test-unwrap-method", "locked": true, "points": 9, "schema_version": 3, "solution": false}
class Tripler(Module):
    def forward(self, x):
        return 3 * x


class Watcher:
    """Counts calls; its wrapper is a method."""

    def __init__(self):
        self.calls = 0

    def watch(self, inner, x):
        self.calls += 1
        return inner(x)


def wrapped(*wrappers):
    """A Tripler with these wrappers, the last outermost, made without wrap_method."""
    module = Tripler()
    for wrapper in wrappers:
        module.forward = Wrapped(wrapper, module.forward)
    return module


def add_one(inner, x):
    return inner(x) + 1


def times_ten(inner, x):
    return inner(x) * 10


module = wrapped(add_one)
unwrap_method(module, "forward", add_one)
assert module(2) == 6, f"without the wrapper, 2 becomes 6 again; yours is {module(2)}"
assert vars(module) == {}, f"no trace may remain on the object, yours has {vars(module)}"
module = wrapped(add_one, times_ten)
unwrap_method(module, "forward", add_one)
assert module(2) == 60, f"the inner one comes off, the outer one stays: 60; yours is {module(2)}"
module = wrapped(add_one, times_ten)
unwrap_method(module, "forward", times_ten)
assert module(2) == 7, f"the outer one comes off, the inner one stays: 7; yours is {module(2)}"
watcher = Watcher()
module = wrapped(watcher.watch)
unwrap_method(module, "forward", watcher.watch)
assert module(2) == 6 and watcher.calls == 0, "a method can be a wrapper: compare with ==, not with `is`"
module = wrapped(add_one)
try:
    unwrap_method(module, "forward", times_ten)
except ValueError as error:
    assert "Tripler" in str(error) and "forward" in str(error), f"name the class and the method: {error}"
else:
    raise AssertionError("times_ten was never put on: unwrap_method should raise a ValueError")
assert module(2) == 7, "after the error the module should be as it was"
### BEGIN HIDDEN TESTS
from itertools import permutations

pieces = [lambda inner, x, i=i: inner(x) + 10**i for i in range(3)]
for order in permutations(range(3)):
    module, left = wrapped(*pieces), {0, 1, 2}
    for i in order:
        unwrap_method(module, "forward", pieces[i])
        left.discard(i)
        want = 6 + sum(10**j for j in left)
        assert module(2) == want, f"taken off in the order {order}: {want} expected, yours is {module(2)}"
    assert vars(module) == {}, f"taken off in the order {order}, the wrappers left a trace"
module = wrapped(add_one, times_ten, add_one)
unwrap_method(module, "forward", add_one)
assert module(2) == 70, "put on twice, the outer one comes off first: (3 * 2 + 1) * 10"
unwrap_method(module, "forward", add_one)
assert module(2) == 60, "put on twice, the second unwrap takes the inner one"
for method in ("forward", "train"):
    try:
        unwrap_method(Tripler(), method, add_one)
    except ValueError:
        pass
    else:
        raise AssertionError("a module that was never wrapped has nothing to take off: raise a ValueError")
module = Tripler()
module.forward = own = lambda x: 5 * x
module.forward = Wrapped(add_one, module.forward)
unwrap_method(module, "forward", add_one)
assert vars(module) == {"forward": own}, "a forward that the object had before must come back"
### END HIDDEN TESTS

# %% [markdown]
"""
Now use wrappers on ten new layers in a row: each notes the standard deviation of its layer's output. The prediction is a factor of 0.577 per layer, so 0.577¹⁰, about 0.004, at the end.
"""

# %%
deep = Sequential(*(Linear(256, 256, rng=seed) for seed in range(10)))
passed = []


def note_size(inner, x):
    y = inner(x)
    passed.append(float(y.data.std()))
    return y


for layer in deep:
    layer.wrap("forward", note_size)
deep(Tensor(np.random.default_rng(0).normal(size=(100, 256))))
for layer in deep:
    layer.unwrap("forward", note_size)
[round(size, 4) for size in passed]

# %% [markdown]
"""
One such layer does little harm. Thirty of them leave less than a ten-millionth (3⁻¹⁵), and gradients, which pass through the same matrices on the way back, shrink just as much. There are two remedies: start with larger weights (He et al. 2015, arXiv:1502.01852, derive the size for ReLU), or rescale every signal as it passes. Transformers do the second, in module 09.

Later modules use wrappers too: module 14 times every layer with them, and module 15 gives a finished model a cache. Neither edits a line of the model.

**Question (5 points).** During training, a student sets `best = model.state_dict()` whenever the validation loss is lower than ever before, and calls `model.load_state_dict(best)` after the last epoch. The model that she gets is not the best one. Which one is it, why, and what single change corrects this?
"""

# %% [markdown] nbgrader={"grade": true, "grade_id": "question-best", "locked": false, "points": 5, "schema_version": 3, "solution": true}
"""
Your answer here.
"""

# %% [markdown]
"""
**Question (5 points).** `wrap` sets an attribute on one object. A colleague proposes to replace the method on the class instead, `Linear.forward = timed_forward`, because then one line times all layers. The program has two models, and only one of them should be timed. Name two things that can go wrong.
"""

# %% [markdown] nbgrader={"grade": true, "grade_id": "question-wrap", "locked": false, "points": 5, "schema_version": 3, "solution": true}
"""
Your answer here.
"""

# %% [markdown]
"""
## You can now ...

... build a model as a tree of parts and find its weights by name, start them at a size that you can justify, switch dropout on and off, load weights all or none, and watch any layer at work.

Two exercises.

- Write `describe(module)`: one line for each part, indented by its depth, with its class and its number of weights. `children` is all you need. Which part of a model has the most weights?
- Give the ten layers of the last experiment weights of variance `1 / in`, and predict the ten numbers before you look. Then put a `GELU()` between them and explain the difference.

Next: module 04. A model that learns has to be told how wrong it is, in one number.
"""
