# %% [markdown]
"""
# Module 05: Autograd

To learn, a model needs to know one thing about every weight: if the weight grows a little, does the loss go up or down, and how fast? The answer is a slope, and all the slopes together are the gradient. A small GPT has a hundred million weights, so every step needs a hundred million slopes. In this module you write the engine that computes all of them in about the time of two forward passes. It is short: recording, ordering and walking back take about forty lines, and the rest is a table of rules.

After this module you will be able to

- measure any gradient slowly, and use that to check every fast one;
- apply the chain rule by hand, and say why a value that is used twice collects two gradients;
- write the gradient rule of a function, from `a * b` to softmax, matrix products and cross entropy;
- undo broadcasting;
- record how a tensor was made, put that history in order, and walk back through it without recursion;
- switch recording off, and say what recording costs and what it keeps in memory;
- fit a model to data by plain gradient descent, without deriving a formula for its gradient.

You need modules 01 to 04: `Tensor`, the activations, `Linear`, the losses. None of them is edited here. In module 01 you sent every operation through `apply`, which tells a recorder about it; all that you build here is such a recorder. From calculus, you should have met the derivative of `x ** 2` and the chain rule. Each part is graded alone: a test never needs a part that you have not written yet, unless it says so.
"""

# %%
#| default_exp core.autograd

# %%
#| export
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from copy import copy
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from tinytorch.core.activations import gelu, relu, sigmoid, silu, softmax
from tinytorch.core.layers import linear
from tinytorch.core.losses import cross_entropy
from tinytorch.core.tensor import Tensor, as_array, getitem, set_recorder, stacked

# %% [markdown]
r"""
## A slope, measured

You can measure the slope of a function at a point without any calculus: go a little to the right, go a little to the left, and divide the difference in height by the distance between the two.

$$\frac{\partial f}{\partial x_i} \approx \frac{f(x + h e_i) - f(x - h e_i)}{2h}$$

Stepping both ways ("central differences") matters. A step to the right alone is wrong by about $\tfrac12 h f''$; with the step to the left these errors cancel, and only $\tfrac16 h^2 f'''$ is left. With $h = 10^{-6}$ the formula itself is good to about twelve digits. What limits you is rounding: the two heights agree in nearly all their digits, and subtracting them loses those digits. In float64 about ten digits survive; in float32, which has only seven to begin with, one at most. So **gradients are always checked in float64**.

**Task (6 points).** Write `numerical_gradient(function, x, h)`. `function` takes one array and returns a number. The result has the shape of `x` and holds the slope along each entry. Work on a float64 copy, so that `x` itself does not change and may hold integers. About 8 lines; `np.ndindex(x.shape)` runs over all entries.
"""


# %% nbgrader={"grade": false, "grade_id": "numerical-gradient", "locked": false, "schema_version": 3, "solution": true}
#| export
def numerical_gradient(function: Callable, x: np.ndarray, h: float = 1e-6) -> np.ndarray:
    """Any shape -> the same shape, float64: how fast function(x), a number, grows with each entry of x.

    By central differences, with two calls of `function` per entry: slow, but right for any smooth function.
    """
    ### BEGIN SOLUTION
    x = np.array(x, dtype=np.float64)
    slopes = np.zeros_like(x)
    for index in np.ndindex(x.shape):
        kept = x[index]
        x[index] = kept + h
        right = float(function(x))
        x[index] = kept - h
        left = float(function(x))
        x[index] = kept
        slopes[index] = (right - left) / (2 * h)
    return slopes
    ### END SOLUTION


# %% [markdown]
"""
Take $f(x) = x_0^2 x_1$ at the point (3, 2). By hand, the slopes are $2 x_0 x_1 = 12$ along $x_0$ and $x_0^2 = 9$ along $x_1$.
"""

# %%
numerical_gradient(lambda x: x[0] ** 2 * x[1], np.array([3.0, 2.0]))


# %% nbgrader={"grade": true, "grade_id": "test-numerical-gradient", "locked": true, "points": 6, "schema_version": 3, "solution": false}
### BEGIN HIDDEN TESTS
def measured(function, arrays, grad, **options):
    """The slopes of sum(grad * function(*arrays)) along every entry of every array, for later tests too."""
    slopes = []
    for array in arrays:
        slope = np.zeros(array.shape)
        for index in np.ndindex(array.shape):
            kept, heights = array[index], []
            for change in (1e-6, -1e-6):
                array[index] = kept + change
                heights.append(float(np.sum(grad * function(*arrays, **options))))
            array[index] = kept
            slope[index] = (heights[0] - heights[1]) / 2e-6
        slopes.append(slope)
    return slopes


### END HIDDEN TESTS
x = np.array([3.0, 2.0])
slopes = numerical_gradient(lambda x: x[0] ** 2 * x[1], x)
assert slopes.shape == (2,), f"one slope for each of the 2 entries, yours has shape {slopes.shape}"
assert np.allclose(slopes, [12, 9], atol=1e-6), f"the slopes at (3, 2) are 12 and 9, yours are {slopes}"
assert np.array_equal(x, [3, 2]), f"x itself must stay (3, 2), but after the call it is {x}"
slopes = numerical_gradient(lambda x: x[0] ** 2 * x[1], x, h=0.1)
assert np.allclose(slopes, [12, 9]), f"h = 0.1 gives 12 and 9 too, not {slopes}; is each entry put back?"
slope = numerical_gradient(lambda x: float(x**3), np.array(2.0), h=0.1)
assert abs(slope - 12.01) < 1e-9, f"(2.1^3 - 1.9^3) / 0.2 is 12.01, not {slope}; do you step both ways?"
### BEGIN HIDDEN TESTS
x = np.arange(24).reshape(2, 3, 4)
weights = np.random.default_rng(0).normal(size=x.shape)
got = numerical_gradient(lambda x: (weights * x * x).sum(), x)
assert got.shape == x.shape and got.dtype == np.float64, f"shape {got.shape}, dtype {got.dtype}"
assert np.allclose(got, 2 * weights * x, atol=1e-5), "wrong for an array of integers with three axes"
assert np.array_equal(x, np.arange(24).reshape(2, 3, 4)), "x was changed"
### END HIDDEN TESTS

# %% [markdown]
"""
Why not train with it? Because each weight costs two runs of the model. Here is the number of weights of the small GPT-2 (Radford et al. 2019: 12 layers, 768 wide, 50,257 tokens, 1,024 positions). A single training step would need twice as many runs.
"""

# %%
width, layers, vocabulary, positions = 768, 12, 50257, 1024
(vocabulary + positions) * width + layers * (12 * width**2 + 13 * width) + 2 * width

# %% [markdown]
r"""
## The chain rule on two numbers

Calculus gets all slopes from one run. Take $y = (ab + a)^2$ and break it into steps, each of which does one thing:

$$u = a b, \qquad v = u + a, \qquad y = v^2.$$

Now go backwards and ask of every value how fast $y$ grows with it. From the last step, $\frac{dy}{dv} = 2v$. The step before is an addition, so $v$ grows exactly as fast as $u$: $\frac{dy}{du} = \frac{dy}{dv}$. The first step multiplies $a$ by $b$: $u$ grows $b$ times as fast as $a$, and therefore $y$ grows $\frac{dy}{du} \cdot b$ times as fast. That is the chain rule: *what flows into an input is what flows into the output, times the local slope*.

But $a$ reaches $y$ by two paths, through $u$ and directly through $v$. Both have an effect, so the two contributions are **added**. Forgetting this sum is the classic bug of hand-written gradients.

**Task (4 points).** Write `slopes_by_hand(a, b)`: the pair $(dy/da, dy/db)$, computed step by step as above. About 5 lines.
"""


# %% nbgrader={"grade": false, "grade_id": "by-hand", "locked": false, "schema_version": 3, "solution": true}
#| export
def slopes_by_hand(a: float, b: float) -> tuple[float, float]:
    """-> (dy/da, dy/db) of y = (a * b + a) ** 2."""
    ### BEGIN SOLUTION
    v = a * b + a
    into_v = 2 * v
    into_u = into_v
    return into_u * b + into_v, into_u * a
    ### END SOLUTION


# %% [markdown]
"""
At $a = 2$, $b = 3$ we have $v = 8$, so 16 flows into $v$ and into $u$. Work out the two slopes before you run the cell.
"""

# %%
slopes_by_hand(2, 3)

# %% nbgrader={"grade": true, "grade_id": "test-by-hand", "locked": true, "points": 4, "schema_version": 3, "solution": false}
into_a, into_b = slopes_by_hand(2, 3)
assert into_b == 32, f"16 flows into u = ab, and u grows a = 2 times as fast as b: 32, yours is {into_b}"
assert into_a == 64, f"a gets 16 * 3 = 48 through u and 16 directly through v, together 64; yours is {into_a}"
### BEGIN HIDDEN TESTS
for a, b in ((1.5, -2.0), (-3.0, 0.25), (0.0, 4.0)):
    # the same function multiplied out: y = a^2 (b + 1)^2
    want = 2 * a * (b + 1) ** 2, 2 * a * a * (b + 1)
    assert np.allclose(slopes_by_hand(a, b), want), f"at a = {a}, b = {b} the slopes are {want}"
### END HIDDEN TESTS

# %% [markdown]
"""
## A rule for each function

What you did by hand had two parts: a local rule for each kind of step (add, multiply, square), and a walk from the result back to the inputs. The walk is always the same. The rules go into a table.

A rule answers: *if `grad` flows into the output, what flows into each input?* It works on plain arrays and takes `(grad, output, *inputs, **options)`: the inputs and keyword options of the function, and also its output, because some slopes are easiest to write with it. `grad` has the shape of the output. The rule returns a **tuple** with one array for each input, even if there is only one input: `return (into_a,)`. It puts `None` where no gradient makes sense, for the targets of a loss for instance. `gradient_of(function)` puts a rule into the table. Later modules use it too: with each new array function they write its rule. The rules themselves need no names, so all are called `_`; here is the one for addition.
"""

# %%
#| export
RULES = {}


def gradient_of(function: Callable) -> Callable:
    """Decorator: the rule below is the gradient of `function`, an array function that `apply` is called with.

    A rule takes (grad, output, *inputs, **options), all of them arrays; `grad` has the shape of `output`. It
    returns a tuple with one entry per input: an array, or None where there is no gradient. An array may have
    the shape to which its input was broadcast: the engine sums. A rule changes none of its arguments.
    """

    def register(rule):
        RULES[function] = rule
        return rule

    return register


@gradient_of(np.add)
def _(grad, output, a, b):
    return grad, grad


# %% [markdown]
"""
The cells that try a rule, and the tests, use this helper: it runs the function, then its rule.
"""


# %% nbgrader={"grade": false, "grade_id": "apply-rule", "locked": true, "schema_version": 3, "solution": false}
def apply_rule(function, grad, *arrays, **options):
    """-> what flows into each of `arrays` when `grad` flows into function(*arrays, **options)."""
    arrays = [np.asarray(a) for a in arrays]
    output = np.asarray(function(*arrays, **options))
    return RULES[function](np.asarray(grad), output, *arrays, **options)


# %%
apply_rule(np.add, [1.0, 10.0], [2.0, 3.0], [4.0, 5.0])

# %% [markdown]
"""
**Task (6 points).** Write the rules of `a - b`, `a * b`, `a / b` and `-a`. In each of them an entry of the output depends only on the entries at the same place, so the rule is the chain rule entry by entry: `grad` times the local slope. The slope of $a / b$ along $b$ is $-a / b^2$, or $-(a / b) / b$, and you already have `a / b`: it is `output`. One line each; the last returns a tuple of one array.
"""


# %% nbgrader={"grade": false, "grade_id": "arithmetic-rules", "locked": false, "schema_version": 3, "solution": true}
#| export
@gradient_of(np.subtract)
def _(grad, output, a, b):
    ### BEGIN SOLUTION
    return grad, -grad
    ### END SOLUTION


@gradient_of(np.multiply)
def _(grad, output, a, b):
    ### BEGIN SOLUTION
    return grad * b, grad * a
    ### END SOLUTION


@gradient_of(np.divide)
def _(grad, output, a, b):
    ### BEGIN SOLUTION
    return grad / b, -grad * output / b
    ### END SOLUTION


@gradient_of(np.negative)
def _(grad, output, a):
    ### BEGIN SOLUTION
    return (-grad,)
    ### END SOLUTION


# %% [markdown]
"""
6 / 2 with 1 flowing in: the slope along the 6 is 1 / 2, along the 2 it is -6 / 4.
"""

# %%
apply_rule(np.divide, 1.0, 6.0, 2.0)

# %% nbgrader={"grade": true, "grade_id": "test-arithmetic-rules", "locked": true, "points": 6, "schema_version": 3, "solution": false}
grad, a, b = np.array([1.0, 10.0]), np.array([6.0, 3.0]), np.array([2.0, -4.0])
into_a, into_b = apply_rule(np.subtract, grad, a, b)
assert np.allclose(into_a, [1, 10]), f"a - b grows as fast as a: {grad} flows into a, yours is {into_a}"
assert np.allclose(into_b, [-1, -10]), f"a - b falls when b grows: {-grad} flows into b, yours is {into_b}"
into_a, into_b = apply_rule(np.multiply, grad, a, b)
assert np.allclose(into_a, [2, -40]), f"the slope of a * b along a is b: grad * b is [2, -40], not {into_a}"
assert np.allclose(into_b, [6, 30]), f"the slope of a * b along b is a: grad * a is [6, 30], not {into_b}"
into_a, into_b = apply_rule(np.divide, grad, a, b)
assert np.allclose(into_a, [0.5, -2.5]), f"the slope of a / b along a is 1 / b: [0.5, -2.5], not {into_a}"
assert np.allclose(into_b, [-1.5, -1.875]), f"-grad * a / b^2 is [-1.5, -1.875], yours is {into_b}"
(into_a,) = apply_rule(np.negative, grad, a)
assert np.allclose(into_a, [-1, -10]), f"-a falls when a grows: {-grad}, yours is {into_a}"
### BEGIN HIDDEN TESTS
rng = np.random.default_rng(1)
for function in (np.subtract, np.multiply, np.divide):
    a, b, grad = rng.normal(size=(2, 3)), rng.uniform(0.5, 2, (2, 3)), rng.normal(size=(2, 3))
    for got, want in zip(apply_rule(function, grad, a, b), measured(function, (a, b), grad), strict=True):
        assert np.allclose(got, want, atol=1e-5), f"{function.__name__}: {got} is not the measured {want}"
kept = grad.copy(), a.copy(), b.copy()
apply_rule(np.divide, grad, a, b), apply_rule(np.subtract, grad, a, b)
assert all(np.array_equal(x, y) for x, y in zip(kept, (grad, a, b), strict=True)), "a rule changed its inputs"
### END HIDDEN TESTS

# %% [markdown]
r"""
**Task (5 points).** Write the rules of `exp`, `log`, `sqrt` and `tanh`. Each returns a tuple of one array. The slopes are $(e^x)' = e^x$, $(\ln x)' = 1/x$, $(\sqrt x)' = 1 / (2 \sqrt x)$ and $\tanh' = 1 - \tanh^2$. Three of the four contain the function's own result, which you need not compute again: it is `output`. One line each.
"""


# %% nbgrader={"grade": false, "grade_id": "function-rules", "locked": false, "schema_version": 3, "solution": true}
#| export
@gradient_of(np.exp)
def _(grad, output, a):
    ### BEGIN SOLUTION
    return (grad * output,)
    ### END SOLUTION


@gradient_of(np.log)
def _(grad, output, a):
    ### BEGIN SOLUTION
    return (grad / a,)
    ### END SOLUTION


@gradient_of(np.sqrt)
def _(grad, output, a):
    ### BEGIN SOLUTION
    return (grad * 0.5 / output,)
    ### END SOLUTION


@gradient_of(np.tanh)
def _(grad, output, a):
    ### BEGIN SOLUTION
    return (grad * (1 - output * output),)
    ### END SOLUTION


# %% [markdown]
"""
The square root of 9 is 3, so its slope at 9 is 1 / 6, and 12 flowing in become 2.
"""

# %%
apply_rule(np.sqrt, 12.0, 9.0)

# %% nbgrader={"grade": true, "grade_id": "test-function-rules", "locked": true, "points": 5, "schema_version": 3, "solution": false}
(into,) = apply_rule(np.sqrt, np.array([12.0, 1.0]), np.array([9.0, 0.25]))
assert np.allclose(into, [2, 1]), f"grad / (2 sqrt(x)) is [2, 1] here, yours is {into}"
(into,) = apply_rule(np.log, np.array([3.0, 1.0]), np.array([2.0, 0.5]))
assert np.allclose(into, [1.5, 2]), f"grad / x is [1.5, 2] here, yours is {into}"
(into,) = apply_rule(np.exp, np.array([2.0]), np.array([0.0]))
assert np.allclose(into, [2]), f"exp has the slope 1 at 0, so 2 flows on unchanged; yours is {into}"
(into,) = apply_rule(np.tanh, np.array([2.0]), np.array([0.0]))
assert np.allclose(into, [2]), f"tanh has the slope 1 at 0, so 2 flows on unchanged; yours is {into}"
### BEGIN HIDDEN TESTS
rng = np.random.default_rng(2)
for function in (np.exp, np.log, np.sqrt, np.tanh):
    x, grad = rng.uniform(0.3, 2, (3, 2)), rng.normal(size=(3, 2))
    (got,), (want,) = apply_rule(function, grad, x), measured(function, (x,), grad)
    assert np.allclose(got, want, atol=1e-5), f"{function.__name__}: {got} is not the measured {want}"
### END HIDDEN TESTS

# %% [markdown]
r"""
The rule for powers is given, because it has special cases. `x ** 0` is flat even at 0, where the formula $0 \cdot 0^{-1}$ is undefined. The slope along the exponent needs $\ln a$, so it is computed only if the exponent is an array, and only where $a$ is positive.
"""


# %%
#| export
@gradient_of(np.power)
def _(grad, output, a, exponent):
    if isinstance(exponent, (int, float)):
        return (grad * (exponent * a ** (exponent - 1)) if exponent else np.zeros_like(grad)), None
    flat = np.broadcast_to(exponent == 0, output.shape)
    slope = exponent * np.power(a, np.where(flat, 1, exponent - 1), dtype=output.dtype)
    return grad * slope, grad * output * np.log(np.where(a > 0, a, 1), dtype=output.dtype)


# %% [markdown]
"""
## Remembering how a tensor was made

To apply a rule later, you need to know which function ran, on which inputs, with which options. So while the model runs forward, every result gets a note of how it was made. In module 01 every operation goes through `apply`, and `apply` tells a *recorder*, if there is one: `recorder.record(function, inputs, options, output)`. The note goes into `output.history`. It holds the inputs themselves, and these hold *their* notes, so the last tensor leads to the whole computation, a graph. A tensor that no operation made, such as a weight, has no note; it is called a *leaf*. Not every result needs a note. If no input requires a gradient, the note would never be used, and it would keep every intermediate array in memory for nothing.

**Task (5 points).** Write `remember(function, inputs, options, output)`. If some input is a Tensor with `requires_grad`, and the output holds floats (`output.dtype.kind == "f"`: integers have no slope), set `output.requires_grad = True` and `output.history = (function, inputs, options)`. Otherwise leave the output alone. Inputs may be Tensors, arrays or plain numbers. About 4 lines; use a plain loop that stops at the first such input, because this runs for every operation of every training step.
"""


# %% nbgrader={"grade": false, "grade_id": "remember", "locked": false, "schema_version": 3, "solution": true}
#| export
def remember(function: Callable, inputs: tuple, options: dict, output: Tensor) -> None:
    """Notes in `output` how it was made, if an input requires a gradient and `output` holds floats."""
    ### BEGIN SOLUTION
    for x in inputs:
        if isinstance(x, Tensor) and x.requires_grad and output.data.dtype.kind == "f":
            output.requires_grad = True
            output.history = (function, inputs, options)
            return
    ### END SOLUTION


# %%
a, b, product = Tensor(2.0, requires_grad=True), Tensor(3.0), Tensor(6.0)
remember(np.multiply, (a, b), {}, product)
product.requires_grad, product.history

# %% nbgrader={"grade": true, "grade_id": "test-remember", "locked": true, "points": 5, "schema_version": 3, "solution": false}
a, b, product = Tensor(2.0, requires_grad=True), Tensor(3.0), Tensor(6.0)
remember(np.multiply, (b, a), {}, product)
assert product.requires_grad, "what is made from a tensor that requires a gradient requires one too"
assert product.history is not None, "the history of the product was not written"
function, inputs, options = product.history
assert function is np.multiply and options == {}, f"note np.multiply and {{}}, yours is {product.history}"
assert inputs[0] is b and inputs[1] is a, "the note should hold the inputs themselves, all of them, in order"
constant = Tensor(9.0)
remember(np.multiply, (b, 3.0), {}, constant)
assert not constant.requires_grad and constant.history is None, "no input requires a gradient: no history"
### BEGIN HIDDEN TESTS
total = Tensor([5.0, 7.0])
remember(np.sum, (np.ones((2, 3)), 4, Tensor(np.ones(2), requires_grad=True)), {"axis": 1}, total)
assert total.requires_grad and total.history[0] is np.sum, "np.sum has an input that requires a gradient"
assert total.history[2] == {"axis": 1}, "the options belong in the note too"
assert len(total.history[1]) == 3, "arrays and numbers belong in the note too"
place = Tensor([0, 1])
remember(np.argsort, (Tensor([1.0, 2.0], requires_grad=True),), {}, place)
assert not place.requires_grad and place.history is None, "integers have no gradient"
### END HIDDEN TESTS

# %% [markdown]
r"""
## Each after its inputs

The walk back needs the tensors of the history in a suitable order. Before a tensor passes gradients to its inputs, it must have received all of its own: everything that was made *from* it has to come first. So list every tensor **after its inputs**, and walk the list from the end. Such a list is called a topological order.

The natural way to write it is recursive: list the inputs, then the tensor. But Python allows about 1,000 nested calls, and a chain of 10,000 additions is a legal model. So keep a stack of your own, which begins with `(tensor, False)`. When you take off `(x, False)` and meet `x` for the first time, put it back as `(x, True)`, and its inputs on top of it with `False`. When `(x, True)` comes off, its inputs have been listed, and `x` can be. Here is $y = v \cdot v$ with $v = u + a$ and $u = a b$; the top of the stack is on the right, and `v!` stands for `(v, True)`:

| taken off | what you do | stack | listed so far |
|---|---|---|---|
| y | back as `y!`, inputs v, v | y! v v | |
| v | back as `v!`, inputs u, a | y! v v! u a | |
| a, then a! | no inputs: list it | y! v v! u | a |
| u | back as `u!`, inputs a, b | y! v v! u! a b | a |
| b, then b! | no inputs: list it | y! v v! u! a | a b |
| a | met before: nothing | y! v v! u! | a b |
| u!, then v! | list them | y! v | a b u v |
| v | met before: nothing | y! | a b u v |
| y! | list it | | a b u v y |

**Task (8 points).** Write `history_order(tensor)`: a list of every tensor that `tensor` was made from and that requires a gradient, itself included (it comes last), each once, each after its inputs. Leave out inputs that are not Tensors or require no gradient. Remember by `id(x)` which tensors you have met. Without that, a tensor that is used twice is walked twice, after two such steps in a row four times, and after sixty 2⁶⁰ times. About 12 lines.
"""


# %% nbgrader={"grade": false, "grade_id": "history-order", "locked": false, "schema_version": 3, "solution": true}
#| export
def history_order(tensor: Tensor) -> list[Tensor]:
    """-> every tensor that leads to `tensor` and requires a gradient, each after its inputs, itself last."""
    ### BEGIN SOLUTION
    order, met, stack = [], set(), [(tensor, False)]
    while stack:
        node, inputs_listed = stack.pop()
        if inputs_listed:
            order.append(node)
        elif id(node) not in met:
            met.add(id(node))
            stack.append((node, True))
            if node.history is not None:
                stack.extend((x, False) for x in node.history[1] if isinstance(x, Tensor) and x.requires_grad)
    return order
    ### END SOLUTION


# %% [markdown]
"""
Here is $y = (ab + a)^2$ once more, with notes written by a helper that the tests use too. The given function `describe_history` prints a history: one line for each tensor, with the numbers of those it was made from.
"""


# %% nbgrader={"grade": false, "grade_id": "made-by", "locked": true, "schema_version": 3, "solution": false}
def made_by(function, *inputs, **options) -> Tensor:
    """function(*inputs) as a Tensor with a history, without a recorder."""
    arrays = [x.data if isinstance(x, Tensor) else x for x in inputs]
    array = np.asarray(function(*arrays, **options))
    tensor = Tensor(array, requires_grad=True, dtype=array.dtype)
    tensor.history = (function, inputs, options)
    return tensor


# %%
#| export
def describe_history(tensor: Tensor) -> str:
    """One line for each tensor that leads to `tensor`: number, function, shape, numbers of its inputs."""
    order = history_order(tensor)
    number = {id(node): i for i, node in enumerate(order)}
    lines = []
    for i, node in enumerate(order):
        function, inputs, _ = node.history or (None, (), None)
        name = "leaf" if function is None else getattr(function, "__name__", repr(function))
        made_from = ", ".join(str(number.get(id(x), "constant")) for x in inputs)
        lines.append(f"{i:>3}  {name:<14} {str(node.shape):<14} {made_from}".rstrip())
    return "\n".join(lines)


# %%
a, b = Tensor(2.0, requires_grad=True), Tensor(3.0, requires_grad=True)
v = made_by(np.add, made_by(np.multiply, a, b), a)
y = made_by(np.multiply, v, v)
print(describe_history(y))

# %% [markdown]
"""
Every number on the right is smaller than the one on the left: that is the order you need. And `a` is listed once although it is used twice.
"""

# %% nbgrader={"grade": true, "grade_id": "test-history-order", "locked": true, "points": 8, "schema_version": 3, "solution": false}
a, b = Tensor(2.0, requires_grad=True), Tensor(3.0, requires_grad=True)
u = made_by(np.multiply, a, b)
v = made_by(np.add, u, a)
y = made_by(np.multiply, v, v)
order = [id(node) for node in history_order(y)]
assert len(order) == 5, f"a, b, u, v and y are 5 tensors, each to be listed once; your list has {len(order)}"
assert order[-1] == id(y), "the tensor itself comes last"
for name, node, inputs in (("u", u, (a, b)), ("v", v, (u, a)), ("y", y, (v,))):
    for x in inputs:
        assert order.index(id(x)) < order.index(id(node)), f"an input of {name} is listed after {name}"
assert len(history_order(a)) == 1, "a tensor without history leads only to itself"
with_constant = made_by(np.multiply, made_by(np.add, a, 1.0), Tensor(5.0))
assert len(history_order(with_constant)) == 3, "numbers, and tensors that require no gradient, are left out"
### BEGIN HIDDEN TESTS
long = Tensor(0.0, requires_grad=True)
for _ in range(10_000):
    long = made_by(np.add, long, 1.0)
try:
    order = history_order(long)
except RecursionError:
    raise AssertionError("a chain of 10,000 operations needs more nested calls than Python allows") from None
assert len(order) == 10_001 and order[-1] is long, "a chain of 10,000 operations has 10,001 tensors"
doubled = Tensor(1.0, requires_grad=True)
for _ in range(60):
    doubled = made_by(np.add, doubled, doubled)
assert len(history_order(doubled)) == 61, "60 doublings of one tensor are 61 tensors"
rng = np.random.default_rng(3)
for _ in range(30):
    nodes = [Tensor(0.0, requires_grad=True) for _ in range(3)]
    while len(nodes) < 15:
        nodes.append(made_by(np.add, nodes[rng.integers(len(nodes))], nodes[rng.integers(len(nodes))]))
    order = history_order(nodes[-1])
    place = {id(node): i for i, node in enumerate(order)}
    assert len(place) == len(order), "a tensor is listed twice"
    for node in order:
        for x in node.history[1] if node.history else ():
            assert place.get(id(x), 99) < place[id(node)], "an input is missing, or listed after what it made"
### END HIDDEN TESTS

# %% [markdown]
"""
## Walking back

What flows into the tensor where the walk starts? If it is a single number, such as a loss, the answer is 1: the slope of the loss along itself. For any other shape there is no natural answer, and the caller has to say what flows in.

**Task (4 points).** Write `first_gradient(tensor, grad)`, the array that the walk starts with, of the shape and dtype of `tensor`. `grad` is `None`, a Tensor, or anything `as_array` takes.

- `RuntimeError` if the tensor does not require a gradient: no history leads back from it.
- `ValueError` with the shape if `grad` is None and the tensor does not have exactly one entry.
- `ValueError` with both shapes if the shape of `grad` is not that of the tensor. Do not broadcast: it would hide a mistake.

About 9 lines.
"""


# %% nbgrader={"grade": false, "grade_id": "first-gradient", "locked": false, "schema_version": 3, "solution": true}
#| export
def first_gradient(tensor: Tensor, grad: ArrayLike | None = None) -> np.ndarray:
    """-> what flows into `tensor`, of its shape and dtype: `grad`, or 1 if the tensor is a single number.

    Raises RuntimeError if the tensor requires no gradient, ValueError if `grad` is missing or misshapen.
    """
    ### BEGIN SOLUTION
    if not tensor.requires_grad:
        raise RuntimeError(
            "no gradient leads back from this tensor: none of its inputs requires one, or it was made before "
            "enable_autograd() or inside no_grad()"
        )
    if grad is None:
        if tensor.size != 1:
            raise ValueError(
                f"a tensor of shape {tensor.shape} is not a single number: pass what flows into it"
            )
        return np.ones_like(tensor.data)
    grad = as_array(grad, tensor.dtype)
    if grad.shape != tensor.shape:
        raise ValueError(f"the gradient has shape {grad.shape}, the tensor {tensor.shape}")
    return grad
    ### END SOLUTION


# %%
first_gradient(Tensor([[5.0]], requires_grad=True))

# %% nbgrader={"grade": true, "grade_id": "test-first-gradient", "locked": true, "points": 4, "schema_version": 3, "solution": false}
grad = first_gradient(Tensor([[5.0]], requires_grad=True))
assert np.array_equal(grad, [[1.0]]), f"1 flows into a single number, here as (1, 1); yours is {grad!r}"
vector = Tensor([5.0, 6.0, 7.0], requires_grad=True)
grad = first_gradient(vector, [1, 2, 3])
assert np.array_equal(grad, [1, 2, 3]), f"[1, 2, 3] was passed and flows in, yours is {grad!r}"
assert grad.dtype == np.float32, f"the tensor is float32, so its gradient is too; yours is {grad.dtype}"
for name, tensor, given, error, words in (
    ("without requires_grad", Tensor(5.0), None, RuntimeError, ()),
    ("of 3 entries, without grad", vector, None, ValueError, ("(3,)",)),
    ("of shape (3,), with grad of shape (1,)", vector, [1.0], ValueError, ("(1,)", "(3,)")),
):
    try:
        first_gradient(tensor, given)
    except (RuntimeError, ValueError) as caught:
        assert type(caught) is error, f"a tensor {name}: {error.__name__} expected, got {caught!r}"
        assert all(w in str(caught) for w in words), f"the message should name {words}: {caught}"
    else:
        raise AssertionError(f"a tensor {name} should raise a {error.__name__}")
### BEGIN HIDDEN TESTS
double = Tensor(np.ones((2, 3)), requires_grad=True, dtype=np.float64)
grad = first_gradient(double, Tensor(np.full((2, 3), 0.5)))
assert grad.dtype == np.float64 and isinstance(grad, np.ndarray) and (grad == 0.5).all(), "grad as a Tensor"
try:
    first_gradient(double, np.ones((3, 2)))
except ValueError:
    pass
else:
    raise AssertionError("a gradient of shape (3, 2) was accepted for a tensor of shape (2, 3)")
### END HIDDEN TESTS

# %% [markdown]
"""
One step of the walk is plumbing, and it is given: it looks up the rule, passes it arrays, and yields a gradient for each input that requires one, in that input's dtype and shape. `sum_to_shape`, which it calls when a rule returns another shape, is a task further down.
"""


# %%
#| export
def input_gradients(node: Tensor, grad: np.ndarray) -> Iterator[tuple[Tensor, np.ndarray]]:
    """Yields (input, gradient) for each input of `node` that requires one, if `grad` flows into `node`."""
    function, inputs, options = node.history
    arrays = [
        x.data if isinstance(x, Tensor) else x if type(x) in (int, float) else as_array(x) for x in inputs
    ]
    gradients = RULES[function](grad, node.data, *arrays, **options)
    for i, (x, g) in enumerate(zip(inputs, gradients, strict=True)):
        if isinstance(x, Tensor) and x.requires_grad:
            if g is None:
                raise NotImplementedError(f"the rule of {function.__name__} gives no gradient for input {i}")
            if np.shape(g) != x.shape:
                g = sum_to_shape(g, x.shape)
            yield x, np.asarray(g, dtype=x.dtype)


# %% [markdown]
"""
**Task (10 points).** Write `flow_back(order, grad)`. `order` is what `history_order` returns; `grad` flows into its last tensor.

Keep a dictionary `grads` from `id(tensor)` to the array that has flowed into it so far. Go through `order` from the end. Take the tensor's gradient out of the dictionary with `pop`, which frees its memory for the next one. If the tensor has a history, add each of its `input_gradients` to what the dictionary holds for that input. If it has none, it is a leaf: store a copy, `np.array(grad)`, in `tensor.grad`, or add to the gradient that is already there.

In the dictionary, *add* means a new array, `old + new`, never `+=`: the rule of addition returns the same array for both inputs, so writing into one would change the other. The leaf needs a copy for the same reason; to that copy you may add in place. About 12 lines.
"""


# %% nbgrader={"grade": false, "grade_id": "flow-back", "locked": false, "schema_version": 3, "solution": true}
#| export
def flow_back(order: list[Tensor], grad: np.ndarray) -> None:
    """Lets `grad` flow from the last tensor of `order` back to the leaves, and adds to their `.grad`."""
    ### BEGIN SOLUTION
    grads = {id(order[-1]): grad}
    for node in reversed(order):
        grad = grads.pop(id(node))
        if node.history is None:
            if node.grad is None:
                node.grad = np.array(grad)
            else:
                node.grad += grad
            continue
        for x, g in input_gradients(node, grad):
            grads[id(x)] = grads[id(x)] + g if id(x) in grads else g
    ### END SOLUTION


# %% [markdown]
"""
Here is $y = (ab + a)^2$ at (2, 3) for the last time. Read the first row of numbers from left to right, the second from right to left:

| | a | b | u = ab | v = u + a | y = v · v |
|---|---|---|---|---|---|
| value | 2 | 3 | 6 | 8 | 64 |
| what flows in | 16 · 3 + 16 = 64 | 16 · 2 = 32 | 16 | 8 + 8 = 16 | 1 |

The order is written out, so that this cell works before `history_order` does; the multiplication rule is yours.
"""

# %%
a, b = Tensor(2.0, requires_grad=True), Tensor(3.0, requires_grad=True)
u = made_by(np.multiply, a, b)
v = made_by(np.add, u, a)
y = made_by(np.multiply, v, v)
flow_back([a, b, u, v, y], np.array(1.0))
a.grad, b.grad


# %% nbgrader={"grade": true, "grade_id": "test-flow-back", "locked": true, "points": 10, "schema_version": 3, "solution": false}
def times_seven(x):
    return 7 * x


def sum_and_difference(x, y):
    return x + 0 * y  # the rule below is what counts


@gradient_of(times_seven)
def _(grad, output, x):
    return (7 * grad,)


@gradient_of(sum_and_difference)
def _(grad, output, x, y):
    return grad, grad  # the very same array, twice


x = Tensor([1.0, 2.0], requires_grad=True)
chain = made_by(times_seven, x)
end = made_by(times_seven, chain)
flow_back([x, chain, end], np.array([1.0, 10.0]))
assert x.grad is not None, "the gradient of the leaf was not written"
assert np.array_equal(x.grad, [49, 490]), f"7 * 7 * [1, 10] is [49, 490], yours is {x.grad}"
assert chain.grad is None and end.grad is None, "only leaves, tensors without a history, get a .grad"
flow_back([x, chain, end], np.array([1.0, 10.0]))
assert np.array_equal(x.grad, [98, 980]), f"a second walk adds to what is there: [98, 980], yours is {x.grad}"

x = Tensor(1.0, requires_grad=True)
left, right = made_by(times_seven, x), made_by(np.add, x, 1.0)
both = made_by(np.add, left, right)
flow_back([x, left, right, both], np.array(1.0))
assert x.grad == 8, f"7 arrives through one branch and 1 through the other, 8 in all; yours is {x.grad}"
### BEGIN HIDDEN TESTS
x = Tensor([1.0, 2.0], requires_grad=True)
twice = made_by(sum_and_difference, x, x)
flow_back([x, twice], np.array([1.0, 3.0]))
assert np.array_equal(x.grad, [2, 6]), f"a tensor used twice by one operation gets both gradients: {x.grad}"

x, y = Tensor([1.0, 2.0], requires_grad=True), Tensor([5.0, 5.0], requires_grad=True)
grad = np.array([1.0, 3.0], np.float32)
inner = made_by(times_seven, x)
end = made_by(sum_and_difference, made_by(sum_and_difference, inner, y), inner)
flow_back([x, inner, y, end.history[1][0], end], grad)
assert np.array_equal(x.grad, [14, 42]), f"14 and 42 flow into x, yours is {x.grad}"
assert np.array_equal(y.grad, [1, 3]), f"[1, 3] flows into y, yours is {y.grad}; was += used on an array?"
assert np.array_equal(grad, [1, 3]), "the gradient that was passed in must not change"
x.grad += 1
assert np.array_equal(y.grad, [1, 3]) and np.array_equal(grad, [1, 3]), "two leaves share one array"
leaf = Tensor([1.0], requires_grad=True)
grad = np.array([4.0], np.float32)
flow_back([leaf], grad)
grad += 1
assert leaf.grad == [4], "a leaf keeps a copy: what happens to the array afterwards must not reach it"
### END HIDDEN TESTS

# %% [markdown]
"""
## Broadcasting, undone

When you add a bias of shape (3,) to `a` of shape (2, 3), NumPy repeats the bias for both rows. The gradient that comes back has the shape of the output, (2, 3), but the bias has three entries. Each of them was used twice, and a value that is used twice collects two gradients: the gradient of the bias is the **sum** over the axis along which it was repeated. Broadcasting forward is summing backward.

There are two kinds of repeated axes: those that the smaller shape lacks (they are added on the left), and those where it has a 1 and the output another size.

**Task (8 points).** Write `sum_to_shape(grad, shape)`: `grad` summed over every axis along which an array of shape `shape` was repeated to become `grad.shape`. The result has exactly the shape `shape`, including its axes of length 1. About 4 lines; `sum` takes a tuple of axes.
"""


# %% nbgrader={"grade": false, "grade_id": "sum-to-shape", "locked": false, "schema_version": 3, "solution": true}
#| export
def sum_to_shape(grad: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """-> `shape`: `grad` summed over the axes along which broadcasting repeated an array of `shape`."""
    ### BEGIN SOLUTION
    added = grad.ndim - len(shape)
    ones = (added + i for i, size in enumerate(shape) if size == 1)
    return grad.sum(axis=(*range(added), *ones), keepdims=True).reshape(shape)
    ### END SOLUTION


# %% [markdown]
"""
Here is a gradient of shape (2, 3) for a bias of shape (3,), for a column of shape (2, 1), and for a single number. Add in your head first.
"""

# %%
grad = np.array([[1.0, 2.0, 3.0], [10.0, 20.0, 30.0]])
sum_to_shape(grad, (3,)), sum_to_shape(grad, (2, 1)), sum_to_shape(grad, ())

# %% nbgrader={"grade": true, "grade_id": "test-sum-to-shape", "locked": true, "points": 8, "schema_version": 3, "solution": false}
grad = np.array([[1.0, 2.0, 3.0], [10.0, 20.0, 30.0]])
for shape, want in (
    ((3,), [11, 22, 33]),
    ((1, 3), [[11, 22, 33]]),
    ((2, 1), [[6], [60]]),
    ((), 66),
    ((2, 3), grad),
):
    got = sum_to_shape(grad, shape)
    assert got.shape == shape, f"asked for shape {shape}, yours has {got.shape}"
    assert np.allclose(got, want), f"{grad.tolist()} summed to {shape} is {want}, yours is {got.tolist()}"
### BEGIN HIDDEN TESTS
rng = np.random.default_rng(4)
for shape in ((5,), (1,), (4, 1), (1, 5), (3, 1, 5), (3, 4, 1), (1, 1, 1), (2, 1, 4, 1), (1, 3, 1, 5), ()):
    grad = rng.normal(size=(2, 3, 4, 5))
    want = np.zeros(shape)
    for index in np.ndindex(grad.shape):
        tail = index[grad.ndim - len(shape) :]
        want[tuple(0 if size == 1 else i for i, size in zip(tail, shape, strict=True))] += grad[index]
    got = sum_to_shape(grad, shape)
    assert np.shape(got) == shape, f"(2, 3, 4, 5) to {shape}: got {np.shape(got)}"
    assert np.allclose(got, want), f"(2, 3, 4, 5) summed to {shape} has wrong values"
assert np.array_equal(sum_to_shape(np.ones((1, 1)), (1, 1)), [[1]]), "an axis of 1 that stays 1"
### END HIDDEN TESTS

# %% [markdown]
"""
## The switch

The recorder that `apply` calls is an object with two methods, and both rest on the functions that you have written. `record` is called for every operation of the whole program, so it first checks whether recording is on.

`backward` checks that every function on the way has a rule *before* it writes a gradient. A rule may still fail, or return no gradient where one is needed. Then every leaf gets its earlier gradient back, so that an error leaves no half-finished gradients behind.

Each thread decides for itself whether to record, because one thread may train while another answers with the same model. So `recording` is kept in a `ContextVar`, a variable with a separate value in each thread and each asyncio task.
"""


# %%
#| export
_recording = ContextVar("recording", default=True)


class Autograd:
    """The recorder: notes in each result how it was made, and walks back through these notes.

    A history holds the arrays themselves, not copies: one that is overwritten between the forward pass and
    `backward` gives the gradients at its new values. A history lives as long as the tensor that holds it.
    """

    @property
    def recording(self) -> bool:
        """Whether this thread's operations are recorded; setting it changes nothing for other threads."""
        return _recording.get()

    @recording.setter
    def recording(self, value: bool) -> None:
        _recording.set(value)

    def record(self, function: Callable, inputs: tuple, options: dict, output: Tensor) -> None:
        if _recording.get():
            remember(function, inputs, options, output)

    def backward(self, tensor: Tensor, grad: ArrayLike | None = None) -> None:
        """Adds to `.grad` of every leaf that `tensor` was made from; after an error all are as they were.

        Raises NotImplementedError if a function on the way has no rule, or its rule returns no gradient.
        """
        grad = first_gradient(tensor, grad)
        order = history_order(tensor)
        for node in order:
            if node.history is not None and node.history[0] not in RULES:
                name = getattr(node.history[0], "__name__", repr(node.history[0]))
                raise NotImplementedError(f"{name} has no rule: register one with @gradient_of({name})")
        leaves = [(x, copy(x.grad)) for x in order if x.history is None]
        try:
            flow_back(order, grad)
        except BaseException:
            for leaf, before in leaves:
                leaf.grad = before
            raise


_autograd = Autograd()


def enable_autograd() -> None:
    """From now on `tensor.backward()` computes gradients; calling this again changes nothing."""
    set_recorder(_autograd)


# %% [markdown]
"""
When a trained model answers a prompt, no gradients are needed, but its weights still require them. Every result would get a note, and every note keeps its inputs in memory, all for nothing. `with no_grad():` switches recording off for a block.

**Task (5 points).** Write `no_grad()` with the flag `_autograd.recording`. At the end of the block, set the flag to what it *was* before, not simply to `True`: blocks can be nested, and the end of the inner one must not switch recording on in the outer. Restore it even if the block raises an exception; otherwise one failed call would leave recording off for good. `@contextmanager` is given: what comes before the `yield` runs when the block begins, what comes after it when the block ends. About 5 lines.
"""


# %% nbgrader={"grade": false, "grade_id": "no-grad", "locked": false, "schema_version": 3, "solution": true}
#| export
@contextmanager
def no_grad() -> Iterator[None]:
    """Inside `with no_grad():` nothing is recorded, so no gradient leads back from what is made there."""
    ### BEGIN SOLUTION
    previous, _autograd.recording = _autograd.recording, False
    try:
        yield
    finally:
        _autograd.recording = previous
    ### END SOLUTION


# %%
with no_grad():
    inside = _autograd.recording
inside, _autograd.recording

# %% nbgrader={"grade": true, "grade_id": "test-no-grad", "locked": true, "points": 5, "schema_version": 3, "solution": false}
_autograd.recording = True
with no_grad():
    assert not _autograd.recording, "inside the block nothing should be recorded"
    with no_grad():
        assert not _autograd.recording, "inside the inner block nothing should be recorded"
    assert not _autograd.recording, "leaving the inner block must not switch recording on in the outer one"
assert _autograd.recording, "after the block recording should be on again"
### BEGIN HIDDEN TESTS
try:
    with no_grad():
        raise KeyError("an accident")
except KeyError:
    pass
else:
    raise AssertionError("the exception of the block was swallowed")
survived, _autograd.recording = _autograd.recording, True
assert survived, "after an exception in the block recording stays off; use try and finally"
_autograd.recording = False
with no_grad():
    pass
survived, _autograd.recording = _autograd.recording, True
assert not survived, "recording was off before the block and should be off after it"
### END HIDDEN TESTS

# %% [markdown]
"""
Switch it on. From here on, every result gets its note automatically.
"""

# %%
enable_autograd()
a, b = Tensor(2.0, requires_grad=True), Tensor(3.0, requires_grad=True)
y = a * b + a
(y * y).backward()
a.grad, b.grad

# %% [markdown]
r"""
## Matrices

For $Y = A B$, what flows into $A$ if $G$ flows into $Y$? Look at one entry: $A_{ik}$ is used in every column $j$ of row $i$ of $Y$, each time multiplied by $B_{kj}$. So it collects $\sum_j G_{ij} B_{kj}$, and that sum is itself a matrix product. The same holds for $B_{kj}$, which is used in every row:

$$G_A = G \, B^\top, \qquad G_B = A^\top G.$$

You need not remember where the transpose goes: $A$ is (n, k), $G$ is (n, m), $B$ is (k, m), and only one arrangement has shapes that fit. The walk back computes two products of the same size as the one forward, which is why it takes about twice as long.

**Task (6 points).** Write `matmul_gradients(grad, a, b)` for arrays of two axes or more: the last two are the matrix, any before them are a batch. If the batch axes were broadcast, return the broadcast shape; the engine sums. 1 or 2 lines; `.T` would reverse the batch axes too.
"""


# %% nbgrader={"grade": false, "grade_id": "matmul-gradients", "locked": false, "schema_version": 3, "solution": true}
#| export
def matmul_gradients(grad: np.ndarray, a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(..., n, m), (..., n, k), (..., k, m) -> (..., n, k), (..., k, m): what flows into a and b."""
    ### BEGIN SOLUTION
    return grad @ b.swapaxes(-1, -2), a.swapaxes(-1, -2) @ grad
    ### END SOLUTION


# %% [markdown]
r"""
One row times one column, $1 \cdot 3 + 2 \cdot 4$, with 10 flowing in: 30 and 40 flow into the row, 10 and 20 into the column.
"""

# %%
matmul_gradients(np.array([[10.0]]), np.array([[1.0, 2.0]]), np.array([[3.0], [4.0]]))

# %% nbgrader={"grade": true, "grade_id": "test-matmul-gradients", "locked": true, "points": 6, "schema_version": 3, "solution": false}
into_a, into_b = matmul_gradients(np.array([[10.0]]), np.array([[1.0, 2.0]]), np.array([[3.0], [4.0]]))
assert into_a.shape == (1, 2), f"the row has shape (1, 2), its gradient should too; yours has {into_a.shape}"
assert into_b.shape == (2, 1), f"the column is (2, 1), its gradient should be too; yours is {into_b.shape}"
assert np.allclose(into_a, [[30, 40]]), f"10 * (3, 4) flows into the row, yours is {into_a}"
assert np.allclose(into_b, [[10], [20]]), f"10 * (1, 2) flows into the column, yours is {into_b}"
rng = np.random.default_rng(5)
a, b, grad = rng.normal(size=(5, 2, 3)), rng.normal(size=(5, 3, 4)), rng.normal(size=(5, 2, 4))
into_a, into_b = matmul_gradients(grad, a, b)
assert into_a.shape == a.shape and into_b.shape == b.shape, (
    f"5 products of (2, 3) and (3, 4): gradients of shape {a.shape} and {b.shape} expected, "
    f"yours have {into_a.shape} and {into_b.shape}; are the batch axes left where they are?"
)
### BEGIN HIDDEN TESTS
for got, want in zip((into_a, into_b), measured(np.matmul, (a, b), grad), strict=True):
    assert np.allclose(got, want, atol=1e-5), "wrong values for a batch of 5 matrices"
a, b, grad = rng.normal(size=(2, 1, 3, 4)), rng.normal(size=(5, 4, 2)), rng.normal(size=(2, 5, 3, 2))
into_a, into_b = matmul_gradients(grad, a, b)
want_a, want_b = measured(np.matmul, (a, b), grad)
assert np.allclose(into_a.sum(axis=1, keepdims=True), want_a, atol=1e-5), "wrong for a broadcast left side"
assert np.allclose(into_b.sum(axis=0), want_b, atol=1e-5), "wrong for a broadcast right side"
### END HIDDEN TESTS

# %% [markdown]
"""
`np.matmul` also takes vectors: one on the left is a row, one on the right a column, and the added axis is left out of the result. The given rule puts that axis back, calls your function, and drops it again.
"""


# %%
#| export
@gradient_of(np.matmul)
def _(grad, output, a, b):
    row, column = a.ndim == 1, b.ndim == 1
    if column:
        grad = grad[..., None]
    if row:
        grad = grad[..., None, :]
    into_a, into_b = matmul_gradients(grad, a[None, :] if row else a, b[:, None] if column else b)
    return into_a[..., 0, :] if row else into_a, into_b[..., 0] if column else into_b


# %% [markdown]
"""
## Sums and means

A sum grows exactly as fast as each of its entries. So, going backward, its one gradient is **repeated** for all of them: summing forward is broadcasting backward, the reverse of the section before. The mean is a sum divided by a count, so each entry gets its share. The only difficulty is the shape. (2, 3) summed over axis 1 without `keepdims` gives (2,), and NumPy would align that with the wrong axis. First put the lost axis back with length 1 (`np.expand_dims` takes one axis or a tuple of them); then `np.broadcast_to` repeats it without a copy.

**Task (6 points).** Write `spread(grad, shape, axis, keepdims)`: the gradient of a reduced result, repeated to the `shape` before the reduction; `axis` is None (all axes), a number or a tuple. Use it in the rules of `np.sum` and `np.mean`; each mean is over `a.size / output.size` entries. About 3 lines, and 1 line for each rule.
"""


# %% nbgrader={"grade": false, "grade_id": "reductions", "locked": false, "schema_version": 3, "solution": true}
#| export
def spread(
    grad: np.ndarray, shape: tuple[int, ...], axis: int | tuple[int, ...], keepdims: bool
) -> np.ndarray:
    """-> `shape`, read-only: the gradient of a reduction over `axis`, repeated for every reduced entry."""
    ### BEGIN SOLUTION
    if axis is not None and not keepdims and shape:
        grad = np.expand_dims(grad, axis)
    return np.broadcast_to(grad, shape)
    ### END SOLUTION


@gradient_of(np.sum)
def _(grad, output, a, axis=None, keepdims=False):
    ### BEGIN SOLUTION
    return (spread(grad, a.shape, axis, keepdims),)
    ### END SOLUTION


@gradient_of(np.mean)
def _(grad, output, a, axis=None, keepdims=False):
    ### BEGIN SOLUTION
    return (spread(grad, a.shape, axis, keepdims) * (output.size / max(a.size, 1)),)
    ### END SOLUTION


# %% [markdown]
"""
Two rows of three are averaged, each by itself; 3 flows into the mean of the first and 30 into that of the second. What does each entry get?
"""

# %%
apply_rule(np.mean, np.array([3.0, 30.0]), np.ones((2, 3)), axis=1)[0]

# %% nbgrader={"grade": true, "grade_id": "test-reductions", "locked": true, "points": 6, "schema_version": 3, "solution": false}
a = np.arange(6.0).reshape(2, 3)
got = spread(np.array([3.0, 30.0]), (2, 3), axis=1, keepdims=False)
assert np.shape(got) == (2, 3), f"the gradient should be repeated to (2, 3), yours has shape {np.shape(got)}"
assert np.allclose(got, [[3, 3, 3], [30, 30, 30]]), f"each row gets its own gradient, yours is {got}"
(into,) = apply_rule(np.sum, np.array(5.0), a)
assert into.shape == (2, 3) and np.allclose(into, 5), f"each of the 6 entries gets the whole 5, not {into}"
(into,) = apply_rule(np.mean, np.array([3.0, 30.0]), a, axis=1)
assert np.allclose(into, [[1, 1, 1], [10, 10, 10]]), f"each entry gets a third of its row's, not {into}"
(into,) = apply_rule(np.sum, np.array([[1.0, 2.0, 3.0]]), a, axis=0, keepdims=True)
assert np.allclose(into, [[1, 2, 3], [1, 2, 3]]), f"both rows get [1, 2, 3], yours is {into}"
### BEGIN HIDDEN TESTS
rng = np.random.default_rng(6)
for function in (np.sum, np.mean):
    for axis in (None, 0, 1, -1, (0, 2), (1, -1), (0, 1, 2)):
        for keepdims in (False, True):
            a, options = rng.normal(size=(2, 3, 4)), {"axis": axis, "keepdims": keepdims}
            grad = rng.normal(size=function(a, **options).shape)
            (got,), (want,) = (
                apply_rule(function, grad, a, **options),
                measured(function, (a,), grad, **options),
            )
            assert np.allclose(got, want, atol=1e-5), f"wrong for {function.__name__} with {options}"
### END HIDDEN TESTS

# %% [markdown]
r"""
The rules of the variance, the maximum and `stacked` are given. In the variance $\frac1n \sum (a_i - \bar a)^2$ the mean also moves when an entry moves, but that contributes nothing, because the deviations from the mean sum to zero. A maximum depends only on the largest entry; if several are equally large, they share the gradient. Tensors that were stacked along a new axis each get the gradient at their own index of it.
"""


# %%
#| export
@gradient_of(stacked)
def _(grad, output, *arrays, axis=0):
    return tuple(np.moveaxis(grad, axis, 0))


@gradient_of(np.var)
def _(grad, output, a, axis=None, keepdims=False):
    centred = a - a.mean(axis=axis, keepdims=True)
    return (spread(grad, a.shape, axis, keepdims) * centred * (2 * output.size / max(a.size, 1)),)


@gradient_of(np.max)
def _(grad, output, a, axis=None, keepdims=False):
    winners = a == a.max(axis=axis, keepdims=True)
    count = winners.sum(axis=axis, keepdims=True, dtype=grad.dtype)
    return (spread(grad, a.shape, axis, keepdims) / count * winners,)


# %% [markdown]
"""
## Moving without computing

Reshaping, transposing and indexing only move entries around, so their rules only move gradients back. A reshape is undone by a reshape. A transpose is undone by the inverse permutation: `np.argsort(axes)` says where each axis went. (Axes may be counted from the end, so take them `% ndim` first.)

Indexing takes entries out; going backward, their gradients are put back where they came from, into zeros. With slices that is an assignment. But a list of row numbers may name a row twice, as an embedding does for a word that occurs twice in a sentence. Then that row was *used* twice, so it collects two gradients. `full[index] = grad` would keep only the last, and so would `full[index] += grad`, because NumPy first reads and adds all rows and then writes them, so that the last of two writes wins. `np.add.at(full, index, grad)` adds every time.

**Task (6 points).** Write the rules of `np.reshape`, `np.transpose` (`axes` is None for "all reversed") and `getitem`. `takes_once` is given: it says whether an index consists of numbers and slices only. In that case assign, which is about a hundred times faster (256 rows of 768 took 0.017 ms instead of 1.7); otherwise use `np.add.at`. About 1, 3 and 6 lines.
"""


# %% nbgrader={"grade": false, "grade_id": "views", "locked": false, "schema_version": 3, "solution": true}
#| export
def takes_once(index: Any) -> bool:
    """True if no entry of an array can occur twice in array[index]: numbers, slices, `...` and None only."""
    parts = index if isinstance(index, tuple) else (index,)
    return all(part is None or part is ... or isinstance(part, (int, np.integer, slice)) for part in parts)


@gradient_of(np.reshape)
def _(grad, output, a, shape):
    ### BEGIN SOLUTION
    return (grad.reshape(a.shape),)
    ### END SOLUTION


@gradient_of(np.transpose)
def _(grad, output, a, axes=None):
    ### BEGIN SOLUTION
    if axes is None:
        return (grad.transpose(),)
    return (grad.transpose(np.argsort([axis % a.ndim for axis in axes])),)
    ### END SOLUTION


@gradient_of(np.swapaxes)
def _(grad, output, a, axis1, axis2):
    return (grad.swapaxes(axis1, axis2),)


@gradient_of(getitem)
def _(grad, output, a, index):
    ### BEGIN SOLUTION
    full = np.zeros_like(a)
    if takes_once(index):
        full[index] = grad
    else:
        np.add.at(full, index, grad)
    return (full,)
    ### END SOLUTION


# %% [markdown]
"""
Entry 2 is taken twice, entry 0 once, entry 1 never.
"""

# %%
apply_rule(getitem, np.array([1.0, 10.0, 100.0]), np.array([5.0, 6.0, 7.0]), index=[2, 0, 2])

# %% nbgrader={"grade": true, "grade_id": "test-views", "locked": true, "points": 6, "schema_version": 3, "solution": false}
a = np.arange(6.0).reshape(2, 3)
(into,) = apply_rule(np.reshape, np.arange(6.0), a, shape=(6,))
assert np.array_equal(into, a), f"6 entries in a row go back to (2, 3) in their order, yours is {into}"
(into,) = apply_rule(np.transpose, np.arange(6.0).reshape(3, 2), a)
assert np.array_equal(into, [[0, 2, 4], [1, 3, 5]]), f"a transpose undoes a transpose, yours is {into}"
(into,) = apply_rule(getitem, np.array([1.0, 10.0, 100.0]), np.array([5.0, 6.0, 7.0]), index=[2, 0, 2])
assert np.array_equal(into, [10, 0, 101]), f"entry 2 was taken twice and gets 1 + 100, yours is {into}"
(into,) = apply_rule(getitem, np.array([[7.0]]), a, index=(slice(1, 2), slice(0, 1)))
assert np.array_equal(into, [[0, 0, 0], [7, 0, 0]]), f"only a[1:2, 0:1] was taken, yours is {into}"
### BEGIN HIDDEN TESTS
rng = np.random.default_rng(7)
a = rng.normal(size=(2, 3, 4))
cases = [(np.transpose, {"axes": axes}) for axes in (None, (2, 0, 1), (1, 2, 0), (-1, 0, 1), (0, -1, -2))]
cases += [(np.reshape, {"shape": shape}) for shape in ((4, 3, 2), (6, -1), (24,))]
cases += [
    (getitem, {"index": index})
    for index in (
        1,
        -1,
        (slice(None), [2, 0, 2, 2]),
        ([0, 1, 1], [2, 0, 0]),
        (..., None, slice(None, None, -2)),
        (slice(None), np.array([[1, 1], [0, 2]]), 3),
        a > 0,
        np.array([1, 1, 1]),
    )
]
for function, options in cases:
    grad = rng.normal(size=function(a, **options).shape)
    (got,), (want,) = apply_rule(function, grad, a, **options), measured(function, (a,), grad, **options)
    assert got.shape == a.shape, f"{function.__name__} of (2, 3, 4) with {options}: shape {got.shape}"
    assert np.allclose(got, want, atol=1e-5), f"{function.__name__} of (2, 3, 4) with {options} is wrong"
### END HIDDEN TESTS

# %% [markdown]
r"""
## The functions of a network

In principle this is enough: everything else can be built from these operations. But a function that runs often deserves its own rule. It is faster, because one note replaces several and no intermediate arrays are kept, and it is often simpler, because terms cancel. The rules of the activations of module 02 are given; they are the chain rule, written out. The longest is that of the tanh form of GELU, $\tfrac12 x (1 + t)$ with $t = \tanh(s(x + 0.044715 x^3))$, where the product rule gives $\tfrac12 (1 + t) + \tfrac12 x (1 - t^2) \, s (1 + 3 \cdot 0.044715 x^2)$. It works in place on two arrays, because a GPT calls it on arrays four times as wide as its layers' inputs. For $|x| = 50$ the tanh is already ±1 to the last digit, while for very large $x$ the power $x^3$ would overflow, and infinity times 0 is NaN. So x is clipped to ±50.
"""


# %%
#| export
@gradient_of(relu)
def _(grad, output, x):
    return (grad * (x > 0),)


@gradient_of(sigmoid)
def _(grad, output, x):
    return (grad * output * (1 - output),)


@gradient_of(silu)
def _(grad, output, x):
    s = sigmoid(x)
    return (grad * (s + output * (1 - s)),)


@gradient_of(gelu)
def _(grad, output, x):
    s = math.sqrt(2 / math.pi)
    x = np.clip(x, -50, 50)
    square = np.asarray(x * x)
    slope = square * (3 * 0.044715 * s)  # of the argument of tanh
    slope += s
    t = square  # becomes s * (x + 0.044715 x^3), then its tanh
    t *= 0.044715 * s
    t += s
    t *= x
    np.tanh(t, out=t)
    slope *= x
    slope *= 1 - t * t
    slope += t
    slope += 1
    slope *= 0.5
    slope *= grad
    return (slope,)


# %% [markdown]
r"""
In the softmax every output depends on every input of its row: if one share grows, the others must shrink. The slope of $p_i$ along $x_j$ is $p_i (\delta_{ij} - p_j)$, where $\delta_{ij}$ is 1 for $i = j$ and 0 otherwise. Add up what flows into $x_j$ through all outputs $i$:

$$\sum_i g_i \, p_i (\delta_{ij} - p_j) = p_j \Big( g_j - \sum_i g_i p_i \Big).$$

So you never build the matrix of slopes; one sum for each row is enough. The result sums to zero along the row, because raising all inputs together changes no share.

**Task (4 points).** Write the rule of `softmax`. `output` holds the $p$. 1 to 3 lines; sum along `axis`, with `keepdims=True`.
"""


# %% nbgrader={"grade": false, "grade_id": "softmax-rule", "locked": false, "schema_version": 3, "solution": true}
#| export
@gradient_of(softmax)
def _(grad, output, x, axis=-1):
    ### BEGIN SOLUTION
    into = grad * output
    into -= output * into.sum(axis=axis, keepdims=True)
    return (into,)
    ### END SOLUTION


# %% [markdown]
"""
Two equal inputs have the shares ½ and ½. If 1 flows into the first share and 0 into the second, the two inputs get opposite gradients of the same size, ½ · (1 − ½).
"""

# %%
apply_rule(softmax, np.array([1.0, 0.0]), np.array([3.0, 3.0]))

# %% nbgrader={"grade": true, "grade_id": "test-softmax-rule", "locked": true, "points": 4, "schema_version": 3, "solution": false}
(into,) = apply_rule(softmax, np.array([1.0, 0.0]), np.array([3.0, 3.0]))
assert np.allclose(into, [0.25, -0.25]), f"1/2 * (1 - 1/2) and 1/2 * (0 - 1/2), yours is {into}"
rng = np.random.default_rng(8)
x, grad = rng.normal(size=(2, 3)), rng.normal(size=(2, 3))
(into,) = apply_rule(softmax, grad, x)
assert np.allclose(into.sum(axis=-1), 0), f"the gradient of a row sums to 0, yours to {into.sum(axis=-1)}"
### BEGIN HIDDEN TESTS
for axis in (-1, 0, 1, 2):
    x, grad = rng.normal(size=(2, 3, 4)), rng.normal(size=(2, 3, 4))
    kept = grad.copy()
    (got,), (want,) = apply_rule(softmax, grad, x, axis=axis), measured(softmax, (x,), grad, axis=axis)
    assert np.allclose(got, want, atol=1e-5), f"the gradient of a softmax over axis {axis} is wrong"
    assert np.array_equal(grad, kept), "the rule changed the gradient it was given"
### END HIDDEN TESTS

# %% [markdown]
"""
A linear layer is `x @ weight.T + bias` for every row of `x`, however many axes come before the last. Fold all the leading axes into one, and it is a single matrix product: (n, in) times (in, out).

**Task (4 points).** Write `linear_gradients(grad_rows, rows, weight)`: for `y = rows @ weight.T + bias` with rows (n, in), weight (out, in) and `grad_rows` (n, out), return the gradients of rows, weight and bias. For the first two, only one product has the right shape; the bias is broadcast over the rows. About 1 line. The rule around it, which folds and unfolds, is given.
"""


# %% nbgrader={"grade": false, "grade_id": "linear-rule", "locked": false, "schema_version": 3, "solution": true}
#| export
def linear_gradients(grad_rows: np.ndarray, rows: np.ndarray, weight: np.ndarray) -> tuple:
    """(n, out), (n, in), (out, in) -> (n, in), (out, in), (out,): what flows into rows, weight and bias."""
    ### BEGIN SOLUTION
    return grad_rows @ weight, grad_rows.T @ rows, grad_rows.sum(axis=0)
    ### END SOLUTION


@gradient_of(linear)
def _(grad, output, x, weight, bias=None):
    rows, grad_rows = x.reshape(-1, x.shape[-1]), grad.reshape(-1, grad.shape[-1])
    into_rows, into_weight, into_bias = linear_gradients(grad_rows, rows, weight)
    into_x = into_rows.reshape(x.shape)
    return (into_x, into_weight) if bias is None else (into_x, into_weight, into_bias)


# %%
linear_gradients(np.array([[1.0], [10.0]]), np.array([[1.0, 2.0], [3.0, 4.0]]), np.array([[5.0, 6.0]]))

# %% nbgrader={"grade": true, "grade_id": "test-linear-rule", "locked": true, "points": 4, "schema_version": 3, "solution": false}
grad, rows, weight = np.array([[1.0], [10.0]]), np.array([[1.0, 2.0], [3.0, 4.0]]), np.array([[5.0, 6.0]])
into_rows, into_weight, into_bias = linear_gradients(grad, rows, weight)
assert np.allclose(into_rows, [[5, 6], [50, 60]]), f"each row gets its grad times the weights: {into_rows}"
assert np.allclose(into_weight, [[31, 42]]), f"1 * (1, 2) + 10 * (3, 4) is (31, 42), not {into_weight}"
assert np.shape(into_bias) == (1,), f"the bias has shape (1,), its gradient has {np.shape(into_bias)}"
assert np.allclose(into_bias, [11]), f"the bias is used in both rows, 1 + 10 = 11; yours is {into_bias}"
### BEGIN HIDDEN TESTS
rng = np.random.default_rng(9)
arrays = rng.normal(size=(2, 5, 3)), rng.normal(size=(4, 3)), rng.normal(size=4)
grad = rng.normal(size=(2, 5, 4))
for got, want in zip(apply_rule(linear, grad, *arrays), measured(linear, arrays, grad), strict=True):
    assert np.shape(got) == want.shape, f"a gradient has shape {np.shape(got)} instead of {want.shape}"
    assert np.allclose(got, want, atol=1e-5), "wrong values for x of shape (2, 5, 3)"
### END HIDDEN TESTS

# %% [markdown]
r"""
Finally, the loss. Cross entropy is $-\ln p_t$ for the target $t$, averaged over the rows, and $p$ is a softmax. Going back through the logarithm, $g_t = -1 / p_t$ flows into $p_t$ and 0 into the others. Going back through the softmax with the rule above, this flows into logit $j$:

$$p_j \Big( g_j - \sum_i g_i p_i \Big) = p_j \Big( g_j + 1 \Big) = p_j - \delta_{jt}.$$

All logarithms and exponentials are gone. What flows into the logits is *what the model said, minus what was right*. Everything that a language model learns from its text starts from this difference.

**Task (3 points).** Write `cross_entropy_gradient(rows, targets)` for logits (n, V) and n target ids, all of which count: the result (n, V) is softmax minus 1 at the target, divided by n because the loss is a mean. About 4 lines; `softmax` is imported. The rule around it, which leaves out ignored targets, is given.
"""


# %% nbgrader={"grade": false, "grade_id": "cross-entropy-rule", "locked": false, "schema_version": 3, "solution": true}
#| export
def cross_entropy_gradient(rows: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """(n, V) logits, (n,) ids -> (n, V): the gradient of the mean loss, (softmax - 1 at the target) / n."""
    ### BEGIN SOLUTION
    into = softmax(rows)
    into[np.arange(len(targets)), targets] -= 1
    into /= len(targets)
    return into
    ### END SOLUTION


@gradient_of(cross_entropy)
def _(grad, output, logits, targets, ignore_index=-100):
    rows, targets = logits.reshape(-1, logits.shape[-1]), targets.reshape(-1)
    counted = targets != ignore_index
    if counted.all():
        into = cross_entropy_gradient(rows, targets)
    else:
        into = np.zeros_like(rows)
        into[counted] = cross_entropy_gradient(rows[counted], targets[counted])
    into *= grad
    return into.reshape(logits.shape), None


# %% [markdown]
"""
The model finds two tokens equally likely, and the first is right: its logit should be pushed up as much as the other is pushed down. (A gradient says where the loss *grows*; training goes the other way.)
"""

# %%
cross_entropy_gradient(np.array([[2.0, 2.0]]), np.array([0]))

# %% nbgrader={"grade": true, "grade_id": "test-cross-entropy-rule", "locked": true, "points": 3, "schema_version": 3, "solution": false}
into = cross_entropy_gradient(np.array([[2.0, 2.0]]), np.array([0]))
assert np.allclose(into, [[-0.5, 0.5]]), f"(1/2, 1/2) - (1, 0) is (-1/2, 1/2), yours is {into}"
into = cross_entropy_gradient(np.array([[2.0, 2.0], [7.0, 7.0]]), np.array([0, 1]))
assert np.allclose(into, [[-0.25, 0.25], [0.25, -0.25]]), f"over 2 rows each counts half, yours is {into}"
### BEGIN HIDDEN TESTS
rng = np.random.default_rng(10)
logits, targets = rng.normal(size=(2, 3, 5)), np.array([[4, 0, -100], [2, 2, 1]])
(want,) = measured(lambda x: cross_entropy(x, targets), (logits,), 3.0)
got, nothing = apply_rule(cross_entropy, 3.0, logits, targets)
assert np.allclose(got, want, atol=1e-5), "wrong for logits of shape (2, 3, 5) with one ignored target"
assert nothing is None
kept = logits.copy()
apply_rule(cross_entropy, 3.0, logits, np.abs(targets) % 5)
assert np.array_equal(logits, kept), "the rule changed the logits"
### END HIDDEN TESTS

# %% [markdown]
"""
## Checking everything

Check every rule against your own `numerical_gradient`: `check_rule` draws a random `grad` and returns the largest difference, which should be far below $10^{-5}$ for each.
"""


# %%
def check_rule(function, *inputs, **options):
    """-> the largest difference between what the rule of `function` returns and the measured slopes."""
    output, worst = np.asarray(function(*inputs, **options)), 0.0
    grad = np.random.default_rng(0).normal(size=output.shape)
    for i, found in enumerate(RULES[function](grad, output, *inputs, **options)):
        if found is not None:

            def height(x, i=i):
                return np.sum(grad * function(*inputs[:i], x, *inputs[i + 1 :], **options))

            found = sum_to_shape(found, inputs[i].shape)
            worst = max(worst, float(np.abs(found - numerical_gradient(height, inputs[i])).max()))
    return worst


rng = np.random.default_rng(13)
a, b, pile, positive = (rng.normal(size=shape) for shape in ((2, 3), (2, 3), (2, 3, 4), (2, 3)))
positive = np.exp(positive)
trials = [(f, (a, b), {}) for f in (np.add, np.subtract, np.multiply)]
trials += [(f, (a,), {}) for f in (np.negative, np.exp, np.tanh, relu, sigmoid, silu, gelu)]
trials += [(f, (positive,), {}) for f in (np.log, np.sqrt)]
trials += [(f, (pile,), {"axis": 1}) for f in (np.sum, np.mean, np.var, np.max, softmax)]
trials += [(np.divide, (a, positive), {}), (np.power, (positive, b), {}), (np.matmul, (a, pile), {})]
trials += [(np.reshape, (pile,), {"shape": (4, 6)}), (np.transpose, (pile,), {"axes": (2, 0, 1)})]
trials += [(np.swapaxes, (pile,), {"axis1": 0, "axis2": 2}), (getitem, (a,), {"index": [1, 0, 1]})]
trials += [(linear, (pile, rng.normal(size=(5, 4)), rng.normal(size=5)), {}), (stacked, (a, b), {"axis": 1})]
trials += [(cross_entropy, (a, np.array([2, -100])), {})]
{function.__name__: check_rule(function, *inputs, **options) for function, inputs, options in trials}

# %% [markdown]
"""
Now the whole engine at once: a network of two layers and a cross entropy, with all weights in float64, and every slope against two runs of the model.
"""

# %%
from tinytorch.core.activations import Tanh
from tinytorch.core.layers import Linear, Sequential
from tinytorch.core.losses import CrossEntropyLoss, MSELoss

rng = np.random.default_rng(11)
network = Sequential(Linear(3, 5, rng=rng), Tanh(), Linear(5, 4, rng=rng))
for p in network.parameters():
    p.data = rng.normal(size=p.shape)
points, labels = Tensor(rng.normal(size=(6, 3)), dtype=np.float64), np.array([0, 1, 2, 3, 1, 0])
CrossEntropyLoss()(network(points), labels).backward()


def loss_with(p, values):
    kept, p.data = p.data, values
    with no_grad():
        loss = float(CrossEntropyLoss()(network(points), labels))
    p.data = kept
    return loss


differences = {
    name: np.abs(p.grad - numerical_gradient(lambda values, p=p: loss_with(p, values), p.data)).max()
    for name, p in network.named_parameters()
}
differences

# %% [markdown]
"""
## What it costs

**Time.** The cell times an addition of two small arrays without a recorder, inside `no_grad()`, and while recording, in microseconds on your machine (the best of several rounds). The difference between the first two is what this module costs a model that only answers.
"""

# %%
import timeit
import weakref


def microseconds(run) -> float:
    return round(min(timeit.repeat(run, number=2000, repeat=7)) / 2000 * 1e6, 2)


weight, small = Tensor(np.ones((4, 4)), requires_grad=True), Tensor(np.ones((4, 4)))
recorder = set_recorder(None)
times = {"no recorder": microseconds(lambda: weight + small)}
set_recorder(recorder)
with no_grad():
    times["no_grad"] = microseconds(lambda: weight + small)
times["recording"] = microseconds(lambda: weight + small)
times

# %% [markdown]
"""
**Memory.** Only the loss leads to its history. Inputs do not know what was made from them, so there are no reference cycles, and Python frees the whole graph as soon as the last reference to the loss is gone. `alive` below refers to an intermediate array without keeping it in memory.
"""

# %%
hidden = weight @ small
loss = (hidden * hidden).sum()
alive = weakref.ref(hidden.data)
del hidden
before = alive() is not None  # the history of the loss still holds it
del loss
before, alive() is None

# %% [markdown]
"""
So keep the *number* for your loss curve (`float(loss)`), not the loss itself: a list of losses keeps all their computations in memory.

**In-place changes.** The notes hold the arrays themselves, not copies, which would take more memory. So an array that you overwrite between forward and backward gives the gradient at its *new* value, without a warning. Here $y = x^2$ is computed at 3, where its slope is 6:
"""

# %%
x = Tensor([3.0], requires_grad=True)
y = x * x
x.data[0] = 10.0
y.backward()
x.grad

# %% [markdown]
"""
So do not write into any array of the computation between the start of the forward pass and the end of `backward()`. After `backward()` you may: that is when the weights change.

**Question (5 points).** Our walk goes from the loss back to the weights. You could also go forwards: choose one weight and carry along, through every operation, how fast each value grows with that weight. Both use the chain rule. How many walks of each kind does a model with 124 million weights and one loss need? Describe a function for which walking forwards would be cheaper. And what must the backward walk keep in memory that the forward walk need not?
"""

# %% [markdown] nbgrader={"grade": true, "grade_id": "question-direction", "locked": false, "points": 5, "schema_version": 3, "solution": true}
"""
Your answer here.
"""

# %% [markdown]
"""
**Question (5 points).** To get gradients for very long texts, a colleague proposes: "During the forward pass, keep only every tenth intermediate tensor; in the backward pass, recompute the nine between two kept ones from the first of them." Roughly how much memory does this save, how much time does it cost, and would the gradients be the same? What would go wrong if a recomputed function draws random numbers, as dropout does?
"""

# %% [markdown] nbgrader={"grade": true, "grade_id": "question-recompute", "locked": false, "points": 5, "schema_version": 3, "solution": true}
"""
Your answer here.
"""

# %% [markdown]
"""
## It learns

Here are 32 points near the line $y = 2x - 1$. A linear layer with one input starts with a random slope. Gradient descent moves every weight a small step against its gradient, computes the gradient again, and repeats. Two things are easy to forget. The step works on `p.data`, the plain array, so that it is not recorded. And `p.grad` must be cleared, because `backward` adds to it.
"""

# %%
rng = np.random.default_rng(12)
x = rng.uniform(-1, 1, (32, 1))
y = 2 * x - 1 + rng.normal(0, 0.1, (32, 1))


def descend(model, x, y, lr: float, steps: int) -> list[float]:
    """Fits `model` to the points by plain gradient descent -> the loss before each step."""
    losses = []
    for _ in range(steps):
        loss = MSELoss()(model(Tensor(x)), Tensor(y))
        losses.append(float(loss))
        loss.backward()
        for p in model.parameters():
            p.data -= lr * p.grad
            p.grad = None
    return losses


line = Linear(1, 1, rng=rng)
losses = descend(line, x, y, lr=0.3, steps=100)
losses[0], losses[-1], line.weight.item(), line.bias.item()

# %% [markdown]
r"""
The slope and the intercept are nearly 2 and -1. The loss has fallen a little below the variance of the noise, $0.1^2$: the best line through 32 points follows their noise with its two parameters, so $0.01 \cdot 30/32 \approx 0.0094$ is expected, and it varies from sample to sample. For a line there is a formula that gives the best fit directly. For a network of 16 hidden units, fitted to a sine, there is none.
"""

# %%
x = np.linspace(-3, 3, 64)[:, None]
wave = Sequential(Linear(1, 16, rng=rng), Tanh(), Linear(16, 1, rng=rng))
losses = descend(wave, x, np.sin(x), lr=0.1, steps=1500)
losses[0], losses[-1]


# %%
def plot_fit(losses, x, fitted):
    import matplotlib.pyplot as plt

    _, (left, right) = plt.subplots(1, 2, figsize=(9, 3))
    left.semilogy(losses)
    left.set(xlabel="step", ylabel="mean squared error", title="the loss")
    right.plot(x, np.sin(x), label="sin(x)")
    right.plot(x, fitted, "--", label="the network")
    right.set(xlabel="x", ylabel="y", title="the fit after the last step")
    right.legend()
    plt.show()


if "get_ipython" in globals():
    plot_fit(losses, x, wave(Tensor(x)).data)

# %% [markdown]
"""
The loss falls fast in the first steps, and hardly at all in the last 900: every step uses the same factor for all weights, whether their slopes are steep or flat. The next module changes that.

## You can now

say what flows back through a function, register a rule for a new one, and trust it because you have measured it; explain why values that are used twice collect two gradients, and find the same idea in broadcasting, in repeated rows and in the bias of a layer; and train anything that is made of tensors.

Two exercises:

1. Register a rule for `np.sin`, and fit `apply(np.sin, w * x)` to data made with $w = 1.5$, starting from $w = 1$. (`apply` is in `tinytorch.core.tensor`; `np.sin(w * x)` would return a plain array without a history.) Then start from $w = 6$. What happens, and what does the loss look like as a function of $w$?
2. `backward` fills `.grad` only for leaves. Change a copy of `flow_back` so that it returns the gradient of every tensor of the history, and look at a network of 30 `Linear(64, 64)` layers with a `Tanh` after each, with `output.sum()` as the loss: how large is what arrives at each layer?

Next: module 06, where the step `p.data -= lr * p.grad` remembers earlier gradients.
"""
