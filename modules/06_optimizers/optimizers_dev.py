# %% [markdown]
r"""
# Module 06: Optimizers

`backward()` has told every weight in which direction the loss grows. It remains to decide how far to go the other way. In module 05, one step size for all weights, `p.data -= lr * p.grad`, was enough to fit a sine, but slowly. In this module the step gets a memory: of the direction in which it has been going (momentum), and of how large each weight's gradients usually are (Adam). The result, AdamW, is the optimizer of LLaMA (Touvron et al. 2023, arXiv:2302.13971) and of our own models, and it is nine lines of arithmetic.

After this module you will be able to

- say why one step size cannot suit all weights, and what momentum and Adam do about it;
- write each update in place, so that the model sees it and memory does not grow;
- derive the bias correction of Adam, and say what happens in the first steps without it;
- tell weight decay from an L2 penalty, and show that with Adam they are not the same;
- clip gradients by their common norm;
- save an optimizer so that training goes on exactly as if it had never stopped.

You need modules 01 to 05. The updates are functions of plain arrays; the classes around them only call them. Every part is graded alone, with correct versions of the functions before it.
"""

# %%
#| default_exp core.optimizers

# %%
#| export
import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from tinytorch.core.tensor import Tensor

# %% [markdown]
r"""
## One step size for all

Take the simplest loss with two weights, a bowl that is flat in one direction and steep in the other: $\tfrac12 (w_0^2 + 50 \, w_1^2)$. Its gradient is $(w_0, 50 \, w_1)$, so a step of gradient descent multiplies $w_0$ by $1 - \text{lr}$ and $w_1$ by $1 - 50 \, \text{lr}$.

The steep direction sets the limit: beyond $\text{lr} = 2/50$ the second factor is below $-1$, and every step overshoots further than the one before. The flat direction pays for this: with $\text{lr} = 0.04$, each step takes only 4 percent off $w_0$. A network has as many directions as weights, and nothing makes them equally steep.

**Task (6 points).** Write `sgd_step(weight, grad, lr)`: subtract lr times grad from weight, **in place**. `weight` is the array inside a Tensor of a model; `weight = weight - ...` would make a new array, and the model would keep the old one. Return nothing. 1 line.
"""


# %% nbgrader={"grade": false, "grade_id": "sgd-step", "locked": false, "schema_version": 3, "solution": true}
#| export
def sgd_step(weight: np.ndarray, grad: np.ndarray, lr: float) -> None:
    """Arrays of one shape: weight -= lr * grad, in place."""
    ### BEGIN SOLUTION
    weight -= lr * grad
    ### END SOLUTION


# %% [markdown]
"""
The cell takes 100 steps in the bowl from (1, 1), first with an lr a little below the limit, then with one a little above. Which of the two weights is the problem in the first run, and which in the second?
"""

# %%
CURVATURE = np.array([1.0, 50.0], dtype=np.float32)


def roll(step, num_steps=100):
    """Starts at (1, 1); `step(w, grad, t)` changes w in place for t = 1, 2, ... -> where w ends."""
    w = np.ones(2, dtype=np.float32)
    for t in range(1, num_steps + 1):
        step(w, CURVATURE * w, t)
    return w


roll(lambda w, grad, t: sgd_step(w, grad, 0.039)), roll(lambda w, grad, t: sgd_step(w, grad, 0.041))

# %% nbgrader={"grade": true, "grade_id": "test-sgd-step", "locked": true, "points": 6, "schema_version": 3, "solution": false}
weight, grad = np.array([1.0, 2.0], np.float32), np.array([10.0, -4.0], np.float32)
outside = weight
sgd_step(weight, grad, 0.5)
assert np.array_equal(weight, [-4, 4]), (
    f"(1, 2) - 0.5 * (10, -4) is (-4, 4), the array holds {weight}; was it changed in place?"
)
assert outside is weight and np.array_equal(grad, [10, -4]), "the gradient must not change"
### BEGIN HIDDEN TESTS
rng = np.random.default_rng(0)
for shape in ((), (7,), (3, 5), (2, 3, 4)):
    weight, grad = (np.asarray(rng.normal(size=shape)).astype(np.float32) for _ in range(2))
    want = [w - 0.03 * g for w, g in zip(weight.ravel().tolist(), grad.ravel().tolist(), strict=True)]
    sgd_step(weight, grad, 0.03)
    assert np.allclose(weight.ravel(), want, atol=1e-6), f"wrong for shape {shape}"
whole = np.ones((4, 6), np.float32)
sgd_step(whole[1:3], np.ones((2, 6), np.float32), 1.0)
assert np.array_equal(whole.sum(axis=1), [6, 0, 0, 6]), "a slice of a larger array is a weight too"
### END HIDDEN TESTS

# %% [markdown]
r"""
## Momentum

A ball that rolls down a valley does not zigzag: the pushes from its two walls cancel, while the small pushes along the valley add up. So give the step a velocity (Polyak 1964, "Some methods of speeding up the convergence of iteration methods"):

$$u \leftarrow \mu \, u + g, \qquad w \leftarrow w - \text{lr} \cdot u.$$

If the gradient is always the same, the velocity grows to $g (1 + \mu + \mu^2 + \dots) = g / (1 - \mu)$, ten times the gradient for $\mu = 0.9$. If the gradient changes its sign at every step, the size of the velocity settles at $g / (1 + \mu)$, about half.

**Task (8 points).** Write `accumulate(velocity, grad, momentum)`: velocity becomes momentum times velocity plus grad, in place. 2 lines.
"""


# %% nbgrader={"grade": false, "grade_id": "accumulate", "locked": false, "schema_version": 3, "solution": true}
#| export
def accumulate(velocity: np.ndarray, grad: np.ndarray, momentum: float) -> None:
    """Arrays of one shape: velocity = momentum * velocity + grad, in place (Polyak 1964)."""
    ### BEGIN SOLUTION
    velocity *= momentum
    velocity += grad
    ### END SOLUTION


# %% [markdown]
"""
Three gradients of 1, with momentum 0.9: 1, then 0.9 + 1, then ...
"""

# %%
velocity, seen = np.zeros(1, np.float32), []
for _ in range(3):
    accumulate(velocity, np.ones(1, np.float32), 0.9)
    seen.append(velocity.item())
seen

# %% nbgrader={"grade": true, "grade_id": "test-accumulate", "locked": true, "points": 8, "schema_version": 3, "solution": false}
velocity, grad = np.array([10.0, -10.0], np.float32), np.array([1.0, 2.0], np.float32)
accumulate(velocity, grad, 0.5)
assert np.array_equal(velocity, [6, -3]), (
    f"0.5 * (10, -10) + (1, 2) is (6, -3), the array holds {velocity}; was it changed in place?"
)
assert np.array_equal(grad, [1, 2]), "the gradient must not change"
velocity = np.zeros(1, np.float32)
for _ in range(200):
    accumulate(velocity, np.ones(1, np.float32), 0.9)
assert abs(velocity.item() - 10) < 1e-3, f"200 gradients of 1 lead to 1 / (1 - 0.9) = 10, yours to {velocity}"
### BEGIN HIDDEN TESTS
rng = np.random.default_rng(1)
velocity, want = np.zeros((3, 4), np.float32), [0.0] * 12
for _ in range(5):
    grad = rng.normal(size=(3, 4)).astype(np.float32)
    accumulate(velocity, grad, 0.7)
    want = [0.7 * u + g for u, g in zip(want, grad.ravel().tolist(), strict=True)]
assert np.allclose(velocity.ravel(), want, atol=1e-5), "wrong after five steps"
### END HIDDEN TESTS

# %% [markdown]
"""
The bowl again, with the same 100 steps, first without and then with momentum. The flat direction gets further, and the steep one stays stable.
"""

# %%
velocity = np.zeros(2, dtype=np.float32)


def step_with_momentum(w, grad, t):
    accumulate(velocity, grad, 0.9)
    sgd_step(w, velocity, 0.02)


roll(lambda w, grad, t: sgd_step(w, grad, 0.039)), roll(step_with_momentum)

# %% [markdown]
r"""
## Adam: a step size for every weight

Momentum still gives all weights the same lr. But the embedding of a rare word may get a gradient once in a thousand steps, while a bias gets one in every step. Adam (Kingma and Ba, "Adam: a method for stochastic optimization", ICLR 2015, arXiv:1412.6980) keeps two running means for every weight: of the gradient, and of its square.

$$m \leftarrow \beta_1 m + (1 - \beta_1) \, g, \qquad v \leftarrow \beta_2 v + (1 - \beta_2) \, g^2.$$

With $\beta_1 = 0.9$ the first covers about ten steps, with $\beta_2 = 0.999$ the second about a thousand. $\sqrt v$ is the usual size of this weight's gradients, so $m / \sqrt v$ is a direction without a scale: it stays the same if you multiply the loss by 1,000.

**Task (10 points).** Write `update_moments(m, v, grad, beta1, beta2)`, both in place. 4 lines.
"""


# %% nbgrader={"grade": false, "grade_id": "update-moments", "locked": false, "schema_version": 3, "solution": true}
#| export
def update_moments(m: np.ndarray, v: np.ndarray, grad: np.ndarray, beta1: float, beta2: float) -> None:
    """Arrays of one shape: updates m and v, the means of grad and grad**2, in place (Kingma and Ba 2015)."""
    ### BEGIN SOLUTION
    m *= beta1
    m += (1 - beta1) * grad
    v *= beta2
    v += (1 - beta2) * (grad * grad)
    ### END SOLUTION


# %% [markdown]
"""
From zero, with one gradient of 2: m should become a tenth of it, v a thousandth of its square.
"""

# %%
m, v = np.zeros(1, np.float32), np.zeros(1, np.float32)
update_moments(m, v, np.array([2.0], np.float32), 0.9, 0.999)
m, v

# %% nbgrader={"grade": true, "grade_id": "test-update-moments", "locked": true, "points": 10, "schema_version": 3, "solution": false}
m, v = np.array([1.0, 1.0], np.float32), np.array([4.0, 4.0], np.float32)
grad = np.array([2.0, -2.0], np.float32)
update_moments(m, v, grad, 0.75, 0.5)
assert np.allclose(m, [1.25, 0.25]), f"0.75 * 1 + 0.25 * (2, -2) is (1.25, 0.25), m holds {m}; in place?"
assert np.allclose(v, [4, 4]), f"0.5 * 4 + 0.5 * 2^2 is 4 for both signs, v holds {v}"
assert np.array_equal(grad, [2, -2]), "the gradient must not change"
### BEGIN HIDDEN TESTS
rng = np.random.default_rng(2)
m, v = np.zeros((2, 5), np.float32), np.zeros((2, 5), np.float32)
want_m, want_v = [0.0] * 10, [0.0] * 10
for _ in range(20):
    grad = rng.normal(size=(2, 5)).astype(np.float32)
    update_moments(m, v, grad, 0.9, 0.95)
    want_m = [0.9 * a + 0.1 * g for a, g in zip(want_m, grad.ravel().tolist(), strict=True)]
    want_v = [0.95 * a + 0.05 * g * g for a, g in zip(want_v, grad.ravel().tolist(), strict=True)]
assert np.allclose(m.ravel(), want_m, atol=1e-6), "m is wrong after twenty steps"
assert np.allclose(v.ravel(), want_v, atol=1e-6), "v is wrong after twenty steps"
### END HIDDEN TESTS

# %% [markdown]
r"""
Both means start at zero, and a mean that starts at zero is too small at first. After $t$ steps with one constant gradient $g$, $m$ holds

$$(1 - \beta_1)(1 + \beta_1 + \dots + \beta_1^{t-1}) \, g = (1 - \beta_1^t) \, g,$$

and $v$ holds $(1 - \beta_2^t) \, g^2$. Dividing by these factors corrects both. This matters: in the first step $m$ is a tenth of $g$ and $v$ a thousandth of $g^2$, so $m / \sqrt v = 0.1 / \sqrt{0.001} \approx 3.2$, more than three times the step that lr asks for, in a model that has seen one batch.

$$w \leftarrow w - \text{lr} \cdot \frac{m / (1 - \beta_1^t)}{\sqrt{v / (1 - \beta_2^t)} + \epsilon}$$

$\epsilon$ prevents a division by zero for a weight whose gradients have all been 0. It is added outside the root.

**Task (14 points).** Write `adam_step(weight, m, v, t, lr, beta1, beta2, eps)`, in place; `t` counts from 1; `m` and `v` are already up to date and must not change. About 3 lines. Compute plain numbers with `math.sqrt` and Python's arithmetic: `np.sqrt(0.5)` is a NumPy float64, and a float32 array times a float64 silently becomes a float64 array, with twice the memory and, for a million weights, 9.3 ms instead of 3.5 (one core, NumPy 2.4).
"""


# %% nbgrader={"grade": false, "grade_id": "adam-step", "locked": false, "schema_version": 3, "solution": true}
#| export
def adam_step(
    weight: np.ndarray,
    m: np.ndarray,
    v: np.ndarray,
    t: int,
    lr: float,
    beta1: float,
    beta2: float,
    eps: float,
) -> None:
    """Arrays of one shape: weight -= lr * (m / (1 - beta1^t)) / (sqrt(v / (1 - beta2^t)) + eps), in place.

    t: how many gradients m and v have seen, at least 1. (Kingma and Ba 2015, algorithm 1.)
    """
    ### BEGIN SOLUTION
    root = np.sqrt(v)
    root *= 1 / math.sqrt(1 - beta2**t)
    root += eps
    weight -= (lr / (1 - beta1**t)) * m / root
    ### END SOLUTION


# %% [markdown]
"""
The first step of four weights that start at 0, with gradients of very different sizes. How far does each go with lr 0.01?
"""

# %%
grad = np.array([1000.0, 1.0, 0.001, -0.001], np.float32)
weight, m, v = np.zeros(4, np.float32), 0.1 * grad, 0.001 * grad**2
adam_step(weight, m, v, t=1, lr=0.01, beta1=0.9, beta2=0.999, eps=1e-8)
weight

# %% nbgrader={"grade": true, "grade_id": "test-adam-step", "locked": true, "points": 14, "schema_version": 3, "solution": false}
weight = np.array([1.0, 1.0], np.float32)
m, v = np.array([0.1, -0.2], np.float32), np.array([0.001, 0.004], np.float32)
adam_step(weight, m, v, t=1, lr=0.25, beta1=0.9, beta2=0.999, eps=1e-8)
assert np.allclose(weight, [0.75, 1.25]), (
    f"the gradients were 1 and -2; the first step goes lr = 0.25 against each sign, to (0.75, 1.25); "
    f"yours is at {weight}. Were m and v divided by 1 - beta^t?"
)
assert np.allclose(m, [0.1, -0.2]) and np.allclose(v, [0.001, 0.004]), "m and v must not change"
weight = np.zeros(1, np.float32)
adam_step(weight, np.array([1.0], np.float32), np.array([0.0], np.float32), 1, 1.0, 0.5, 0.5, eps=4.0)
assert np.allclose(weight, -0.5), f"m / (1 - 0.5) = 2, divided by 0 + eps = 4: 0.5; you went {-weight}"
### BEGIN HIDDEN TESTS
rng = np.random.default_rng(3)
for t in (1, 2, 7, 100, 5000):
    for beta1, beta2 in ((0.9, 0.999), (0.8, 0.95), (0.0, 0.99)):
        weight, m = (rng.normal(size=(3, 2)).astype(np.float32) for _ in range(2))
        v = rng.uniform(0.1, 2, (3, 2)).astype(np.float32)
        want = []
        for w, a, b in zip(weight.ravel().tolist(), m.ravel().tolist(), v.ravel().tolist(), strict=True):
            mean, square = a / (1 - beta1**t), b / (1 - beta2**t)
            want.append(w - 0.1 * mean / (math.sqrt(square) + 0.01))
        adam_step(weight, m, v, t, 0.1, beta1, beta2, 0.01)
        assert np.allclose(weight.ravel(), want, atol=1e-5), f"wrong at t = {t} with betas {beta1}, {beta2}"
### END HIDDEN TESTS

# %% [markdown]
r"""
## The class around it

Everything but the arithmetic is the same for all optimizers: hold the parameters, keep some arrays for each of them, count its steps, and call the arithmetic. Three decisions need an explanation.

**Blocks.** `m += (1 - beta1) * grad` first computes the product for *all* entries and writes it to memory, then reads it back to add it. For an embedding of 40 million entries, each of these passes goes to main memory, and an Adam step has about a dozen. So we pass the arithmetic a few rows at a time. All arrays of such a block, including the temporary ones, fit in the processor's cache together, and the formulas stay as you wrote them. `in_blocks` is given, and the cell below measures what it gains.
"""

# %%
#| export
BLOCK = 2**15  # entries; weight, gradient, moments and temporaries of a block fit in the cache together


def in_blocks(*arrays: np.ndarray) -> Iterator[Sequence[np.ndarray]]:
    """Yields views: the same rows of each array, about BLOCK entries at a time. All have the same shape."""
    rows, size = len(arrays[0]) if arrays[0].ndim else 1, arrays[0].size
    if size <= BLOCK:
        yield arrays
        return
    step = max(1, BLOCK * rows // size)
    for start in range(0, rows, step):
        yield [a[start : start + step] for a in arrays]


# %%
from time import perf_counter


def milliseconds(run, rounds=3):
    times = []
    for _ in range(rounds):
        start = perf_counter()
        run()
        times.append(perf_counter() - start)
    return round(min(times) * 1000, 1)


def adam_arithmetic(weight, grad, m, v):
    update_moments(m, v, grad, 0.9, 0.999)
    adam_step(weight, m, v, 1, 1e-3, 0.9, 0.999, 1e-8)


four = np.ones((4, 4096, 512), np.float32)  # weight, grad, m, v of one large layer
{
    "whole arrays, ms": milliseconds(lambda: adam_arithmetic(*four)),
    "in blocks, ms": milliseconds(lambda: [adam_arithmetic(*block) for block in in_blocks(*four)]),
}

# %% [markdown]
r"""
**Steps are counted for each parameter.** A parameter whose `.grad` is None had no part in this loss and is skipped: its moments do not decay, and its $t$ does not grow, because $t$ is the number of gradients that *its* means have seen.

**A state is a flat dictionary** of numbers and arrays, because that can be stored in a file without pickle. The settings are part of it, since a run that goes on with another lr is a different run. Loading checks every entry before it changes anything.

**Task (12 points).** The method `step()` of `Optimizer`. `with_gradient()` is given; it checks all shapes and returns the indices of the parameters that have a gradient. For each such index `i`, add 1 to `self.steps[i]`; collect the parameter's buffers, `arrays[i]` for every list `arrays` in `self.buffers.values()`; and for each block of `p.data`, `p.grad` and the buffers call `self.update(weight, grad, *buffers, t=self.steps[i])`. About 6 lines.

**Task (8 points).** The method `state_dict()`. It returns, for every name in `self.settings`, the attribute of that name; under `"steps"`, the counts as an int64 array; and for every buffer such as `"m"` and every parameter index `i` the array itself, under a name such as `"m.0"`. About 5 lines.
"""


# %% nbgrader={"grade": false, "grade_id": "optimizer", "locked": false, "schema_version": 3, "solution": true}
#| export
def check_setting(name: str, value: Any, below: float = math.inf) -> float:
    """-> value as a float. Raises ValueError unless 0 <= value < below, TypeError if it is not a number."""
    try:
        number = float(value)
    except (TypeError, ValueError):
        raise TypeError(f"{name} is a number, got {value!r}") from None
    if not 0 <= number < below:
        limit = "finite and at least 0" if below == math.inf else f"at least 0 and below {below:g}"
        raise ValueError(f"{name} should be {limit}, got {value}")
    return number


class Optimizer:
    """What all optimizers share: the parameters, the loop over them, and a state that can be saved.

    A subclass has an `update` for arrays, and names what it needs:
    buffer_names: arrays to keep for each parameter, of its shape, initially zero.
    limits: setting -> what it must stay below.
    squares: the buffers that hold squares, which can overflow float32 where the gradient itself does not.
    """

    buffer_names: tuple[str, ...] = ()
    squares: tuple[str, ...] = ()
    limits: dict[str, float] = {}
    momentum: float
    weight_decay: float
    beta1: float
    beta2: float
    eps: float

    def __init__(self, parameters: Sequence[Tensor], **settings: Any):
        """Raises ValueError if there are no parameters, one occurs twice, or a setting is out of range."""
        self.parameters = list(parameters)
        if not self.parameters:
            raise ValueError("there are 0 parameters to optimize")
        for i, p in enumerate(self.parameters):
            if not isinstance(p, Tensor):
                raise TypeError(f"parameter {i} should be a Tensor, got {type(p).__name__}")
            if p.data.dtype.kind != "f":
                raise TypeError(f"parameter {i} holds {p.dtype}, only floats can be optimized")
        distinct = len({id(p) for p in self.parameters})
        if distinct < len(self.parameters):
            raise ValueError(f"{len(self.parameters)} parameters are only {distinct} different tensors")
        for name, value in settings.items():
            setattr(self, name, check_setting(name, value, self.limits.get(name, math.inf)))
        self.settings = tuple(settings)
        self.steps = [0] * len(self.parameters)
        self.buffers = {name: [np.zeros_like(p.data) for p in self.parameters] for name in self.buffer_names}

    @property
    def lr(self) -> float:
        """The learning rate. It may be set at any time; ValueError unless it is finite and at least 0."""
        return self._lr

    @lr.setter
    def lr(self, value: float) -> None:
        self._lr = check_setting("lr", value)

    def zero_grad(self) -> None:
        """Removes all gradients, because `backward` adds to what is there."""
        for p in self.parameters:
            p.grad = None

    def with_gradient(self) -> list[int]:
        """-> the indices of the parameters that have a gradient. ValueError if one has another shape."""
        found = [i for i, p in enumerate(self.parameters) if p.grad is not None]
        for i in found:
            p = self.parameters[i]
            if p.grad.shape != p.data.shape:
                raise ValueError(f"parameter {i} has shape {p.shape}, its gradient {p.grad.shape}")
        return found

    def step(self) -> None:
        """Changes every parameter that has a gradient, in place; the others stay as they are.

        Raises ValueError, before anything changes, if the shape of a gradient is not its parameter's.
        """
        ### BEGIN SOLUTION
        for i in self.with_gradient():
            p = self.parameters[i]
            self.steps[i] += 1
            own = [arrays[i] for arrays in self.buffers.values()]
            for weight, grad, *buffers in in_blocks(p.data, p.grad, *own):
                self.update(weight, grad, *buffers, t=self.steps[i])
        ### END SOLUTION

    def update(self, weight: np.ndarray, grad: np.ndarray, *buffers: np.ndarray, t: int) -> None:
        """Changes `weight` and its buffers in place, but not `grad`; t is the number of the step, from 1."""
        raise TypeError(f"{type(self).__name__} has no update")

    def state_dict(self) -> dict:
        """name -> number or array: all that the next step depends on; the buffers themselves, not copies."""
        ### BEGIN SOLUTION
        state = {name: getattr(self, name) for name in self.settings}
        state["steps"] = np.array(self.steps, dtype=np.int64)
        for name, arrays in self.buffers.items():
            for i, array in enumerate(arrays):
                state[f"{name}.{i}"] = array
        return state
        ### END SOLUTION

    def check_state(self, state: dict) -> dict:
        """-> `state` with its values as floats and arrays; changes nothing.

        Raises ValueError if a name is missing, unknown, or does not fit, TypeError for a wrong type.
        """
        own = {**dict.fromkeys(self.settings), "steps": np.array(self.steps)}
        own |= {f"{name}.{i}": a for name, arrays in self.buffers.items() for i, a in enumerate(arrays)}
        missing, unknown = [n for n in own if n not in state], [n for n in state if n not in own]
        if missing or unknown:
            raise ValueError(
                f"this is the state of another optimizer: {len(missing)} names missing {missing[:3]}, "
                f"{len(unknown)} unknown {unknown[:3]}"
            )
        checked: dict[str, Any] = {}
        for name, mine in own.items():
            if name in self.settings:
                checked[name] = check_setting(name, state[name], self.limits.get(name, math.inf))
                continue
            array = checked[name] = np.asarray(state[name])
            if array.shape != mine.shape:
                raise ValueError(f"{name} has shape {array.shape}, this optimizer needs {mine.shape}")
            if array.dtype.kind not in ("iu" if name == "steps" else "f"):
                raise TypeError(f"{name} holds {array.dtype}, this optimizer has {mine.dtype} there")
            size = np.sqrt(np.abs(array)) if name.partition(".")[0] in self.squares else array
            with np.errstate(over="ignore"):
                finite = np.isfinite(size.astype(mine.dtype, copy=False))
            if not finite.all():
                raise ValueError(f"{name} holds {finite.size - finite.sum()} numbers that are not finite")
        if (checked["steps"] < 0).any():
            raise ValueError(f"steps are counted from 0, got {checked['steps'].min()}")
        return checked

    def load_state_dict(self, state: dict) -> None:
        """Continues from the state of another optimizer. Errors as `check_state`, before any change."""
        checked = self.check_state(state)
        for name in self.settings:
            setattr(self, name, checked[name])
        self.steps = checked["steps"].tolist()
        for name, arrays in self.buffers.items():
            for i, p in enumerate(self.parameters):
                saved = checked[f"{name}.{i}"]
                arrays[i] = saved.astype(np.result_type(saved, p.data) if name in self.squares else p.dtype)


# %% [markdown]
"""
A toy optimizer shows what the two methods do. Its update subtracts the number of the step from every weight, and its one buffer holds the sum of all gradients. The second parameter has no gradient.
"""


# %% nbgrader={"grade": false, "grade_id": "counter", "locked": true, "schema_version": 3, "solution": false}
class Counter(Optimizer):
    """weight -= t, total += grad."""

    buffer_names = ("total",)

    def __init__(self, parameters, lr=1.0, speed=0.5):
        super().__init__(parameters, lr=lr, speed=speed)

    def update(self, weight, grad, total, *, t):
        weight -= t
        total += grad


# %%
first, second = Tensor([10.0, 20.0], requires_grad=True), Tensor([[30.0]], requires_grad=True)
counter = Counter([first, second])
first.grad = np.array([3.0, 4.0], np.float32)
counter.step()
counter.step()
first.data, second.data, counter.state_dict()

# %% nbgrader={"grade": true, "grade_id": "test-step", "locked": true, "points": 12, "schema_version": 3, "solution": false}
first, second = Tensor([10.0, 20.0], requires_grad=True), Tensor([[30.0]], requires_grad=True)
counter, array = Counter([first, second]), first.data
first.grad = np.array([3.0, 4.0], np.float32)
counter.step()
assert np.array_equal(first.data, [9, 19]), f"in the first step t is 1: (9, 19), yours is {first.data}"
counter.step()
assert np.array_equal(first.data, [7, 17]), f"in the second step t is 2: (7, 17), yours is {first.data}"
assert first.data is array, "the array inside the tensor must remain the same object"
assert np.array_equal(counter.buffers["total"][0], [6, 8]), "pass each parameter's own buffer to update"
assert np.array_equal(second.data, [[30]]) and counter.steps == [2, 0], (
    f"the second parameter has no gradient: no change, no step; yours: {second.data}, {counter.steps}"
)
second.grad = np.ones((1, 1), np.float32)
counter.step()
assert np.array_equal(second.data, [[29]]), "the second parameter's first gradient is its step number 1"
### BEGIN HIDDEN TESTS
large = Tensor(np.zeros((300, 401)), requires_grad=True)
counter = Counter([second, large])
large.grad = np.arange(large.size, dtype=np.float32).reshape(large.shape)
counter.step()
assert (large.data == -1).all(), "every entry of a large parameter takes exactly one step"
assert np.array_equal(counter.buffers["total"][1], large.grad), "rows are mixed up"
assert counter.steps == [1, 1], "a parameter in several blocks takes one step, not one for each block"
large.grad = np.ones(401, np.float32)
try:
    counter.step()
except ValueError:
    assert (second.data == 28).all() and counter.steps == [1, 1], "something was changed before the error"
else:
    raise AssertionError("a gradient whose shape is not its parameter's was accepted")
### END HIDDEN TESTS

# %% nbgrader={"grade": true, "grade_id": "test-state-dict", "locked": true, "points": 8, "schema_version": 3, "solution": false}
first, second = Tensor([10.0, 20.0], requires_grad=True), Tensor([[30.0]], requires_grad=True)
counter = Counter([first, second], lr=0.25)
counter.steps = [3, 1]
counter.buffers["total"][0][:] = [5, 6]
state = counter.state_dict()
assert sorted(state) == ["lr", "speed", "steps", "total.0", "total.1"], f"wrong names: {sorted(state)}"
assert state["lr"] == 0.25 and state["speed"] == 0.5, "the settings are part of the state"
assert isinstance(state["steps"], np.ndarray) and state["steps"].tolist() == [3, 1], (
    f"steps should be an array of (3, 1), yours is {state['steps']!r}; the bias correction needs them"
)
assert np.array_equal(state["total.0"], [5, 6]) and np.array_equal(state["total.1"], [[0]]), "wrong buffers"
### BEGIN HIDDEN TESTS
assert state["steps"].dtype == np.int64, f"steps are int64, yours are {state['steps'].dtype}"
assert state["total.0"] is counter.buffers["total"][0], "the arrays themselves, not copies"
counter.lr = 0.125
assert counter.state_dict()["lr"] == 0.125, "lr is what it is now, not what it was at the beginning"
other = Counter([Tensor(np.zeros(2), requires_grad=True), Tensor(np.zeros((1, 1)), requires_grad=True)])
other.load_state_dict(counter.state_dict())
assert (other.lr, other.speed, other.steps) == (0.125, 0.5, [3, 1]), "a second optimizer cannot go on from it"
assert np.array_equal(other.buffers["total"][0], [5, 6]), "the buffers did not arrive"
assert not np.shares_memory(other.buffers["total"][0], counter.buffers["total"][0])
### END HIDDEN TESTS

# %% [markdown]
r"""
## SGD

Large weights make sharp functions, so training often pulls all weights a little towards zero. The oldest way is to add $\tfrac{\lambda}{2} \lVert w \rVert^2$ to the loss, which adds $\lambda w$ to every gradient.

**Task (10 points).** Write `SGD.update`. If `self.weight_decay` is not 0, use `grad + self.weight_decay * weight` as the gradient; make a new array, because `grad` must not change. If `self.momentum` is not 0, there is one buffer, the velocity: call `accumulate`, and use the velocity instead of the gradient. Then call `sgd_step`. About 6 lines.
"""


# %% nbgrader={"grade": false, "grade_id": "sgd", "locked": false, "schema_version": 3, "solution": true}
#| export
class SGD(Optimizer):
    """weight -= lr * (grad + weight_decay * weight); with momentum, lr times the velocity of that.

    lr, weight_decay: at least 0; momentum: in [0, 1), usually 0.9. Errors as `Optimizer`.
    """

    limits = {"momentum": 1.0}

    def __init__(
        self, parameters: Sequence[Tensor], lr: float, momentum: float = 0.0, weight_decay: float = 0.0
    ):
        if check_setting("momentum", momentum, 1.0):
            self.buffer_names = ("velocity",)
        super().__init__(parameters, lr=lr, momentum=momentum, weight_decay=weight_decay)

    def update(self, weight: np.ndarray, grad: np.ndarray, *buffers: np.ndarray, t: int) -> None:
        ### BEGIN SOLUTION
        if self.weight_decay:
            grad = grad + self.weight_decay * weight
        if self.momentum:
            (velocity,) = buffers
            accumulate(velocity, grad, self.momentum)
            grad = velocity
        sgd_step(weight, grad, self.lr)
        ### END SOLUTION


# %% [markdown]
"""
A weight of 4 with gradient 1, lr 0.5 and decay 0.25: the gradient becomes 2, so the step leads to 3.
"""

# %%
weight = np.array([4.0], np.float32)
SGD([Tensor(0.0, requires_grad=True)], lr=0.5, weight_decay=0.25).update(weight, np.ones(1, np.float32), t=1)
weight


# %% nbgrader={"grade": true, "grade_id": "test-sgd", "locked": true, "points": 10, "schema_version": 3, "solution": false}
### BEGIN HIDDEN TESTS
def sgd_step(weight, grad, lr):
    weight[...] = weight - lr * grad


def accumulate(velocity, grad, momentum):
    velocity[...] = momentum * velocity + grad


### END HIDDEN TESTS
one = [Tensor(0.0, requires_grad=True)]
weight, grad = np.array([4.0, -4.0], np.float32), np.array([1.0, 1.0], np.float32)
SGD(one, lr=0.5).update(weight, grad, t=1)
assert np.allclose(weight, [3.5, -4.5]), f"(4, -4) - 0.5 * (1, 1) is (3.5, -4.5), yours is {weight}"
weight = np.array([4.0, -4.0], np.float32)
SGD(one, lr=0.5, weight_decay=0.25).update(weight, grad, t=1)
assert np.allclose(weight, [3, -4]), f"with 0.25 * weight the gradients are (2, 0): (3, -4), not {weight}"
assert np.array_equal(grad, [1, 1]), "the gradient must not change"
weight, velocity = np.array([4.0, -4.0], np.float32), np.array([2.0, 2.0], np.float32)
SGD(one, lr=0.5, momentum=0.5).update(weight, grad, velocity, t=2)
assert np.allclose(velocity, [2, 2]), f"0.5 * 2 + 1 is 2 again, the velocity is {velocity}"
assert np.allclose(weight, [3, -5]), f"0.5 times the velocity (2, 2) leads to (3, -5), yours is {weight}"
### BEGIN HIDDEN TESTS
assert np.array_equal(grad, [1, 1]), "the gradient must not change"
rng = np.random.default_rng(4)
weight, velocity = rng.normal(size=(2, 3)).astype(np.float32), np.zeros((2, 3), np.float32)
want, moving = weight.astype(float).ravel().tolist(), [0.0] * 6
both = SGD(one, lr=0.1, momentum=0.9, weight_decay=0.3)
for t in range(1, 9):
    grad = rng.normal(size=(2, 3)).astype(np.float32)
    both.update(weight, grad, velocity, t=t)
    slopes = [g + 0.3 * w for g, w in zip(grad.ravel().tolist(), want, strict=True)]
    moving = [0.9 * u + g for u, g in zip(moving, slopes, strict=True)]
    want = [w - 0.1 * u for w, u in zip(want, moving, strict=True)]
assert np.allclose(weight.ravel(), want, atol=1e-5), "momentum and weight decay together are wrong"
### END HIDDEN TESTS

# %% [markdown]
r"""
## Adam, and weight decay done right

If you add the same $\lambda w$ to Adam's gradient, something odd happens. Adam divides by the size of the gradients, and $\lambda w$ is divided with the rest: a weight with large gradients is hardly pulled to zero, and a weight with small ones strongly. This is not what decay is meant to do. So Loshchilov and Hutter ("Decoupled weight decay regularization", ICLR 2019, arXiv:1711.05101) took it out of the gradient: first shrink the weight, $w \leftarrow (1 - \text{lr} \cdot \lambda) \, w$, then take the plain Adam step. That is AdamW. (In the paper $\lambda$ is multiplied by the schedule but not by the lr; PyTorch multiplies by the lr too, and so do we.)

A gradient of 2e19 is finite in float32, but its square is not, and once $v$ is infinite it stays infinite and its weight no longer moves. `with_gradient`, which is given, prevents this: if the squares of a gradient are too large, the gradient and its $v$ become float64, and your formulas need not change.

**Task (6 + 6 points).** Write `Adam.update` (add `weight_decay * weight` to the gradient, if there is any; then the moments; then the step) and `AdamW.update` (shrink the weight; add nothing to the gradient). Use `self.beta1`, `self.beta2` and `self.eps`. About 4 and 3 lines.
"""


# %% nbgrader={"grade": false, "grade_id": "adam", "locked": false, "schema_version": 3, "solution": true}
#| export
class Adam(Optimizer):
    """Adam (Kingma and Ba 2015, arXiv:1412.6980); weight_decay * weight, if any, is added to the gradient.

    lr, eps, weight_decay: at least 0; betas: two numbers in [0, 1). Errors as `Optimizer`.
    """

    limits = {"beta1": 1.0, "beta2": 1.0}
    buffer_names = ("m", "v")
    squares = ("v",)

    def __init__(
        self,
        parameters: Sequence[Tensor],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
    ):
        try:
            beta1, beta2 = betas
        except (TypeError, ValueError):
            raise TypeError(f"betas are two numbers, got {betas!r}") from None
        super().__init__(parameters, lr=lr, beta1=beta1, beta2=beta2, eps=eps, weight_decay=weight_decay)

    def with_gradient(self) -> list[int]:
        """As for any optimizer; if squares would overflow float32, the gradient and its v become float64."""
        found = super().with_gradient()
        for i in found:
            p, v = self.parameters[i], self.buffers["v"]
            if not math.isfinite(np.vdot(p.grad, p.grad)):
                p.grad, v[i] = p.grad.astype(np.float64), v[i].astype(np.float64)
        return found

    @property
    def betas(self) -> tuple[float, float]:
        return self.beta1, self.beta2

    def update(self, weight: np.ndarray, grad: np.ndarray, m: np.ndarray, v: np.ndarray, *, t: int) -> None:
        ### BEGIN SOLUTION
        if self.weight_decay:
            grad = grad + self.weight_decay * weight
        update_moments(m, v, grad, self.beta1, self.beta2)
        adam_step(weight, m, v, t, self.lr, self.beta1, self.beta2, self.eps)
        ### END SOLUTION


class AdamW(Adam):
    """Adam with decoupled weight decay, weight *= 1 - lr * weight_decay before each step.

    Loshchilov and Hutter 2019, arXiv:1711.05101, algorithm 2. Arguments and errors as `Adam`.
    """

    def __init__(
        self,
        parameters: Sequence[Tensor],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.01,
    ):
        super().__init__(parameters, lr, betas, eps, weight_decay)

    def update(self, weight: np.ndarray, grad: np.ndarray, m: np.ndarray, v: np.ndarray, *, t: int) -> None:
        ### BEGIN SOLUTION
        weight *= 1 - self.lr * self.weight_decay
        update_moments(m, v, grad, self.beta1, self.beta2)
        adam_step(weight, m, v, t, self.lr, self.beta1, self.beta2, self.eps)
        ### END SOLUTION


# %% [markdown]
r"""
Two weights start at 1. The gradients of the first are +10, −10, +10, …, those of the second +0.1, −0.1, …. They nearly cancel, so only the decay has an effect. After 1,000 steps with lr 0.001 and $\lambda = 0.5$, both weights should have shrunk by the factor $(1 - 0.0005)^{1000} \approx 0.61$. With which optimizer do they?
"""


# %%
def decayed(optimizer_class):
    p = Tensor([1.0, 1.0], requires_grad=True)
    optimizer = optimizer_class([p], lr=0.001, weight_decay=0.5)
    for t in range(1000):
        p.grad = (-1) ** t * np.array([10.0, 0.1], np.float32)
        optimizer.step()
    return p.data.round(2)


{"Adam": decayed(Adam), "AdamW": decayed(AdamW)}


# %% nbgrader={"grade": true, "grade_id": "test-adam", "locked": true, "points": 6, "schema_version": 3, "solution": false}
### BEGIN HIDDEN TESTS
def update_moments(m, v, grad, beta1, beta2):
    m[...] = beta1 * m + (1 - beta1) * grad
    v[...] = beta2 * v + (1 - beta2) * grad**2


def adam_step(weight, m, v, t, lr, beta1, beta2, eps):
    weight[...] = weight - lr * (m / (1 - beta1**t)) / (np.sqrt(v / (1 - beta2**t)) + eps)


### END HIDDEN TESTS
one = [Tensor(0.0, requires_grad=True)]
weight, grad = np.array([4.0, -4.0], np.float32), np.array([1.0, 1.0], np.float32)
m, v = np.zeros(2, np.float32), np.zeros(2, np.float32)
Adam(one, lr=0.5).update(weight, grad, m, v, t=1)
assert np.allclose(weight, [3.5, -4.5]), f"the first step goes lr = 0.5 against the sign, not to {weight}"
assert np.allclose(m, 0.1) and np.allclose(v, 0.001), f"m should be 0.1 and v 0.001, yours {m} and {v}"
weight, m, v = np.array([4.0, -8.0], np.float32), np.zeros(2, np.float32), np.zeros(2, np.float32)
Adam(one, lr=0.5, weight_decay=0.25).update(weight, grad, m, v, t=1)
assert np.allclose(m, [0.2, -0.1]), f"the gradients are 1 + 0.25 * (4, -8) = (2, -1), a tenth in m; yours {m}"
assert np.array_equal(grad, [1, 1]), "the gradient must not change"


### BEGIN HIDDEN TESTS
def by_hand(weight, grads, lr, beta1, beta2, eps, inside, outside):
    """One weight by the paper's algorithm, in Python floats; inside: L2, outside: decoupled decay."""
    m = v = 0.0
    for t, g in enumerate(grads, 1):
        g = g + inside * weight
        m, v = beta1 * m + (1 - beta1) * g, beta2 * v + (1 - beta2) * g * g
        direction = (m / (1 - beta1**t)) / (math.sqrt(v / (1 - beta2**t)) + eps)
        weight = weight - lr * (direction + outside * weight)
    return weight


rng = np.random.default_rng(5)
grads = rng.normal(size=(9, 2, 3)).astype(np.float32)
start = rng.normal(size=(2, 3)).astype(np.float32)
weight, m, v = start.copy(), np.zeros((2, 3), np.float32), np.zeros((2, 3), np.float32)
chosen = Adam(one, lr=0.1, betas=(0.8, 0.95), eps=0.01, weight_decay=0.3)
for t, grad in enumerate(grads, 1):
    chosen.update(weight, grad, m, v, t=t)
for i in np.ndindex(2, 3):
    want = by_hand(float(start[i]), grads[:, *i].tolist(), 0.1, 0.8, 0.95, 0.01, 0.3, 0.0)
    assert abs(weight[i] - want) < 1e-5, f"after nine steps the paper's weight is {want}, yours {weight[i]}"
### END HIDDEN TESTS


# %% nbgrader={"grade": true, "grade_id": "test-adamw", "locked": true, "points": 6, "schema_version": 3, "solution": false}
### BEGIN HIDDEN TESTS
def update_moments(m, v, grad, beta1, beta2):
    m[...] = beta1 * m + (1 - beta1) * grad
    v[...] = beta2 * v + (1 - beta2) * grad**2


def adam_step(weight, m, v, t, lr, beta1, beta2, eps):
    weight[...] = weight - lr * (m / (1 - beta1**t)) / (np.sqrt(v / (1 - beta2**t)) + eps)


### END HIDDEN TESTS
one = [Tensor(0.0, requires_grad=True)]
weight, grad = np.array([4.0, -8.0], np.float32), np.array([1.0, 1.0], np.float32)
m, v = np.zeros(2, np.float32), np.zeros(2, np.float32)
AdamW(one, lr=0.5, weight_decay=0.5).update(weight, grad, m, v, t=1)
assert np.allclose(m, 0.1), f"the decay must not be in the moments: m should be 0.1, yours is {m}"
assert np.allclose(weight, [2.5, -6.5]), (
    f"(4, -8) shrunk by 1 - 0.5 * 0.5 is (3, -6), then 0.5 against the sign: (2.5, -6.5); yours is {weight}"
)
weight, m, v = np.array([4.0], np.float32), np.zeros(1, np.float32), np.zeros(1, np.float32)
AdamW(one, lr=0.5, weight_decay=0.5).update(weight, np.zeros(1, np.float32), m, v, t=1)
assert np.allclose(weight, 3), f"with a gradient of 0 only the decay acts: 4 * 0.75 = 3, yours is {weight}"
### BEGIN HIDDEN TESTS
rng = np.random.default_rng(6)
grads = rng.normal(size=(9, 3, 2)).astype(np.float32)
start = rng.normal(size=(3, 2)).astype(np.float32)
weight, m, v = start.copy(), np.zeros((3, 2), np.float32), np.zeros((3, 2), np.float32)
chosen = AdamW(one, lr=0.1, betas=(0.7, 0.9), eps=0.02, weight_decay=0.4)
for t, grad in enumerate(grads, 1):
    chosen.update(weight, grad, m, v, t=t)
for i in np.ndindex(3, 2):
    w, mean, square = float(start[i]), 0.0, 0.0
    for t, g in enumerate(grads[:, *i].tolist(), 1):
        mean, square = 0.7 * mean + 0.3 * g, 0.9 * square + 0.1 * g * g
        w -= 0.1 * (mean / (1 - 0.7**t) / (math.sqrt(square / (1 - 0.9**t)) + 0.02) + 0.4 * w)
    assert abs(weight[i] - w) < 1e-5, f"after nine steps the paper's weight is {w}, yours {weight[i]}"
### END HIDDEN TESTS

# %% [markdown]
r"""
## Not every weight should decay

Decay is a remedy for weights that grow without need, and it is meant for matrices. A bias or the scale of a norm loses its purpose if it is pulled to 0, so these are usually spared. Two optimizers with different settings do this, and `ParameterGroups` makes them look like one, so that a trainer, a schedule and a saved file need not know. `matrices_and_others` separates the parameters. Both are given.
"""


# %%
#| export
def matrices_and_others(parameters: Iterable[Tensor]) -> tuple[list, list]:
    """-> the parameters with two axes or more, and the others: biases, and the weights of norms."""
    parameters = list(parameters)
    return [p for p in parameters if p.ndim >= 2], [p for p in parameters if p.ndim < 2]


class ParameterGroups:
    """Several optimizers as one, each with its own parameters and settings, but one learning rate.

    For instance AdamW with weight_decay for the matrices, and AdamW with 0 for the others.
    """

    def __init__(self, *optimizers: Optimizer):
        """Raises ValueError if there are none, two share a parameter, or their learning rates differ."""
        self.optimizers = optimizers
        self.parameters = [p for optimizer in optimizers for p in optimizer.parameters]
        rates = sorted({optimizer.lr for optimizer in optimizers})
        distinct = len({id(p) for p in self.parameters})
        if not optimizers:
            raise ValueError("there are 0 optimizers to group")
        if distinct < len(self.parameters):
            raise ValueError(f"{len(self.parameters)} parameters are only {distinct} different tensors")
        if len(rates) > 1:
            raise ValueError(f"the groups have one learning rate, got {rates}")

    @property
    def lr(self) -> float:
        """The learning rate of all groups. It may be set at any time; errors as for `Optimizer`."""
        return self.optimizers[0].lr

    @lr.setter
    def lr(self, value: float) -> None:
        for optimizer in self.optimizers:
            optimizer.lr = value

    def zero_grad(self) -> None:
        """Removes all gradients."""
        for optimizer in self.optimizers:
            optimizer.zero_grad()

    def step(self) -> None:
        """One step of each. Raises ValueError as `Optimizer.step`, before any group has changed."""
        for optimizer in self.optimizers:
            optimizer.with_gradient()
        for optimizer in self.optimizers:
            optimizer.step()

    def state_dict(self) -> dict:
        """As for `Optimizer`, with the number of the group before each name, as in "0/lr"."""
        states = [optimizer.state_dict() for optimizer in self.optimizers]
        return {f"{i}/{name}": value for i, state in enumerate(states) for name, value in state.items()}

    def load_state_dict(self, state: dict) -> None:
        """Continues from the state of other groups. Errors as for `Optimizer`, before any change."""
        own = [f"{i}/" for i in range(len(self.optimizers))]
        unknown = [name for name in state if not name.startswith(tuple(own))]
        if unknown:
            raise ValueError(f"this is the state of other groups: {unknown[:3]} are not in these {len(own)}")
        parts = [{name[len(i) :]: state[name] for name in state if name.startswith(i)} for i in own]
        for optimizer, part in zip(self.optimizers, parts, strict=True):
            optimizer.check_state(part)
        for optimizer, part in zip(self.optimizers, parts, strict=True):
            optimizer.load_state_dict(part)


# %% [markdown]
"""
With a matrix of ones, a bias of ones, a learning rate of 1 and gradients of 0, what is left after one step with a decay of 0.1?
"""


# %%
def spared():
    matrix, bias = Tensor(np.ones((2, 2)), requires_grad=True), Tensor(np.ones(2), requires_grad=True)
    decaying, others = matrices_and_others([matrix, bias])
    both = ParameterGroups(AdamW(decaying, 1.0, weight_decay=0.1), AdamW(others, 1.0, weight_decay=0))
    matrix.grad, bias.grad = np.zeros((2, 2), np.float32), np.zeros(2, np.float32)
    both.step()
    return matrix.data.tolist(), bias.data.tolist()


spared()

# %% [markdown]
r"""
## One bad batch

Now and then a batch has a far longer gradient than usual, and a single step along it can spoil a model. The remedy is simple: if the gradient is longer than `max_norm`, shorten it to `max_norm` (Pascanu, Mikolov and Bengio, "On the difficulty of training recurrent neural networks", ICML 2013, arXiv:1211.5063). *The* gradient means all gradients of all weights as one long vector; shortening each array separately would change its direction.

If the norm is not finite, clipping cannot help. Scaling by `max_norm / nan` would fill every gradient with NaN. `max_norm / inf` is 0, so finite gradients would become 0 and infinite ones NaN. So raise an error instead.

**Task (10 points).** Write `clip_grad_norm(parameters, max_norm)`. `squared_norm(array)` is given: the sum of the squares as a Python float, even where float32 would overflow.

- Raise a `ValueError` unless `max_norm` is above 0. Infinity is allowed; it only measures.
- Compute the norm of all gradients together. Leave out parameters without one; if none has a gradient, the norm is 0.
- If the norm is not finite, raise a `ValueError` before any gradient changes, and name the index of the first parameter whose gradient is the cause.
- If the norm is above `max_norm`, multiply every gradient in place by `max_norm / norm`.
- Return the norm before clipping: it belongs in the log of a training run.

About 11 lines.
"""


# %% nbgrader={"grade": false, "grade_id": "clip-grad-norm", "locked": false, "schema_version": 3, "solution": true}
#| export
def squared_norm(array: np.ndarray) -> float:
    """-> the sum of the squares of all entries, block by block; in float64 where float32 would overflow."""
    total = math.fsum(float(np.vdot(block, block)) for (block,) in in_blocks(array))
    return total if math.isfinite(total) else float(np.square(array, dtype=np.float64).sum())


def clip_grad_norm(parameters: Sequence[Tensor], max_norm: float) -> float:
    """-> the norm of all gradients as one vector, before clipping; if above max_norm, they are scaled to it.

    Raises ValueError, without changing a gradient, unless max_norm > 0 and the norm is finite.
    (Pascanu, Mikolov and Bengio 2013, arXiv:1211.5063)
    """
    ### BEGIN SOLUTION
    if not max_norm > 0:
        raise ValueError(f"max_norm should be above 0, got {max_norm}")
    grads = {i: p.grad for i, p in enumerate(parameters) if p.grad is not None}
    squares = {i: squared_norm(grad) for i, grad in grads.items()}
    norm = math.sqrt(sum(squares.values()))
    if not math.isfinite(norm):
        cause = next((i for i, square in squares.items() if not math.isfinite(square)), None)
        raise ValueError(
            f"the norm of the gradients is {norm}; parameter {cause} is the first that is not finite"
        )
    if norm > max_norm:
        for grad in grads.values():
            grad *= max_norm / norm
    return norm
    ### END SOLUTION


# %% [markdown]
"""
Two gradients, (3) and (0, 4), have a length of 5 together. Clipped to 1, each is divided by 5.
"""

# %%
a, b = Tensor([0.0], requires_grad=True), Tensor([0.0, 0.0], requires_grad=True)
a.grad, b.grad = np.array([3.0], np.float32), np.array([0.0, 4.0], np.float32)
clip_grad_norm([a, b], 1.0), a.grad, b.grad


# %% nbgrader={"grade": true, "grade_id": "test-clip-grad-norm", "locked": true, "points": 10, "schema_version": 3, "solution": false}
def with_grads(*grads):
    tensors = []
    for grad in grads:
        tensors.append(Tensor(np.zeros(1 if grad is None else np.shape(grad)), requires_grad=True))
        tensors[-1].grad = None if grad is None else np.array(grad, np.float32)
    return tensors


a, nothing, b = with_grads([3.0], None, [0.0, 4.0])
array = a.grad
norm = clip_grad_norm([a, nothing, b], 1.0)
assert abs(norm - 5) < 1e-6, f"the norm before clipping is the root of 9 + 16, 5; yours is {norm}"
assert np.allclose(a.grad, [0.6]) and np.allclose(b.grad, [0, 0.8]), (
    f"all gradients are multiplied by the same 1 / 5: (0.6) and (0, 0.8), yours are {a.grad} and {b.grad}"
)
assert a.grad is array, "change the gradients in place"
a, b = with_grads([3.0], [0.0, 4.0])
norm = clip_grad_norm([a, b], 50.0)
assert abs(norm - 5) < 1e-6 and np.allclose(a.grad, [3]), "a gradient of length 5 is short enough for 50"
for bad in (0, -1.0, float("nan")):
    try:
        clip_grad_norm([a, b], bad)
    except ValueError:
        pass
    else:
        raise AssertionError(f"max_norm = {bad} should raise a ValueError")
### BEGIN HIDDEN TESTS
for value, word in ((np.nan, "nan"), (np.inf, "inf")):
    a, nothing, b = with_grads([3.0], None, [1.0, value])
    try:
        clip_grad_norm([a, nothing, b], 1.0)
    except ValueError as error:
        assert word in str(error) and "parameter 2" in str(error), f"name the norm and parameter 2: {error}"
        assert a.grad == 3 and b.grad[0] == 1, "gradients were changed before the error"
    else:
        raise AssertionError(f"a gradient of {value} was clipped silently: raise a ValueError")
rng = np.random.default_rng(7)
grads = [rng.normal(size=shape).astype(np.float32) for shape in ((2, 3), (), (4,), (2, 1, 5))]
length = math.sqrt(sum(g * g for grad in grads for g in grad.ravel().tolist()))
tensors = with_grads(*grads)
assert abs(clip_grad_norm(iter(tensors), 0.5) - length) < 1e-5, "wrong norm for four arrays"
for p, grad in zip(tensors, grads, strict=True):
    assert np.allclose(p.grad, grad * 0.5 / length, atol=1e-6), "wrong gradients after clipping to 0.5"
assert clip_grad_norm(with_grads(None, None), 1.0) == 0, "no gradient at all has the norm 0"
(huge,) = with_grads([3e30, 4e30])
assert abs(clip_grad_norm([huge], math.inf) / 5e30 - 1) < 1e-5, "infinity only measures, however large"
assert np.array_equal(huge.grad, np.array([3e30, 4e30], np.float32)), "infinity clips nothing"
### END HIDDEN TESTS

# %% [markdown]
r"""
## Continuing as if nothing had happened

The test of a saved state is a run that is cut in two. Train 20 steps; or train 10, save, make a new model and a new optimizer, load, and train 10 more. The weights must be equal to the last bit; otherwise the state lacks something that the step depends on.
"""

# %%
from tinytorch.core.activations import Tanh
from tinytorch.core.autograd import enable_autograd
from tinytorch.core.layers import Linear, Sequential
from tinytorch.core.losses import MSELoss

enable_autograd()
x = np.linspace(-3, 3, 64)[:, None]
y = np.sin(x)


def new_model():
    rng = np.random.default_rng(8)
    return Sequential(Linear(1, 16, rng=rng), Tanh(), Linear(16, 1, rng=rng))


def train(model, optimizer, num_steps):
    """-> the loss before each step."""
    losses = []
    for _ in range(num_steps):
        optimizer.zero_grad()
        loss = MSELoss()(model(Tensor(x)), Tensor(y))
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


whole = new_model()
train(whole, AdamW(whole.parameters(), lr=0.01), 20)

first = new_model()
optimizer = AdamW(first.parameters(), lr=0.01)
train(first, optimizer, 10)
second = new_model()
resumed = AdamW(second.parameters())
second.load_state_dict(first.state_dict())
resumed.load_state_dict(optimizer.state_dict())
train(second, resumed, 10)
[np.array_equal(p.data, q.data) for p, q in zip(whole.parameters(), second.parameters(), strict=True)]

# %% [markdown]
"""
## The race

Each optimizer fits the sine of module 05 with the same network, from the same initial weights, with a step size at which it trains well. Here is the loss of each after 600 steps:
"""

# %%
runners = {
    "SGD, lr 0.1": lambda p: SGD(p, lr=0.1),
    "SGD, lr 0.05, momentum 0.9": lambda p: SGD(p, lr=0.05, momentum=0.9),
    "AdamW, lr 0.02": lambda p: AdamW(p, lr=0.02),
}
curves = {}
for name, make in runners.items():
    model = new_model()
    curves[name] = train(model, make(model.parameters()), 600)
{name: curve[-1] for name, curve in curves.items()}


# %%
def plot_curves(curves):
    import matplotlib.pyplot as plt

    plt.figure(figsize=(6, 3.5))
    for name, curve in curves.items():
        plt.semilogy(curve, label=name)
    plt.xlabel("step")
    plt.ylabel("mean squared error")
    plt.legend()
    plt.show()


if "get_ipython" in globals():
    plot_curves(curves)

# %% [markdown]
r"""
AdamW ends lowest, and its loss is the least smooth: near the minimum the gradients shrink, $\sqrt v$ shrinks with them, and the steps hardly get shorter. So lr has to fall during training, and module 07 does that with a schedule.

This memory has a price. Adam keeps two numbers for every weight, so with the gradient a model in training takes four times the memory of its weights, before the first activation. For the 124,439,808 weights of the small GPT-2 that is 4 · 4 bytes · 124,439,808 ≈ 2.0 GB.

**Question (5 points).** A student trains with AdamW, saves only the *weights* every hour, and after a crash continues with a new optimizer. The loss jumps up in the first steps, then recovers. Explain what the new optimizer does differently in its first steps, and discuss the roles of $m$, $v$ and $t$ separately. Would the jump be larger or smaller with $\beta_2 = 0.95$? And why does plain SGD have no such jump?
"""

# %% [markdown] nbgrader={"grade": true, "grade_id": "question-resume", "locked": false, "points": 5, "schema_version": 3, "solution": true}
"""
Your answer here.
"""

# %% [markdown]
r"""
**Question (5 points).** Adam's step does not change if the loss is multiplied by 1,000. Show why, from the formulas, and say which setting makes this only nearly true. What does the same factor do to SGD, to SGD with momentum, to `clip_grad_norm` followed by SGD, and to Adam with `weight_decay` in the gradient?
"""

# %% [markdown] nbgrader={"grade": true, "grade_id": "question-scale", "locked": false, "points": 5, "schema_version": 3, "solution": true}
"""
Your answer here.
"""

# %% [markdown]
r"""
## You can now

write the steps of SGD, Adam and AdamW, in place and in blocks; say what each of their memories is for, and what it costs; keep one bad batch from ruining a run; and stop a run and continue it exactly.

Two exercises:

1. Lion (Chen et al. 2023, arXiv:2302.06675) keeps only one buffer and steps by the *sign* of $\beta_1 m + (1 - \beta_1) g$, then updates $m$ with $\beta_2$. Write it as a subclass of `Optimizer`, with decoupled decay, and enter it in the race. What lr does it need, and why a smaller one than AdamW?
2. Give each group of `ParameterGroups` its own learning rate. A schedule sets one number: what should it mean for each group, even after a warm-up that begins at 0?

Next: module 07, where a trainer adds a schedule, a log and a file.
"""
