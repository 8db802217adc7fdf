# %% [markdown]
"""
# Optimizers
"""

# %%
#| default_exp core.optimizers

# %%
#| export
import math

import numpy as np

from tinytorch.core.tensor import Tensor


# %%
#| export
def sgd_step(weight, grad, lr, scratch) -> None:
    """Arrays of one shape: weight -= lr * grad, in place; `scratch` is overwritten."""
    np.multiply(grad, lr, out=scratch)
    weight -= scratch


def accumulate(velocity, grad, momentum) -> None:
    """Arrays of one shape: velocity = momentum * velocity + grad, in place (Polyak 1964)."""
    velocity *= momentum
    velocity += grad


def update_moments(m, v, grad, beta1, beta2, scratch) -> None:
    """Arrays of one shape: the running means of grad and of grad**2, in place (Kingma and Ba 2015, algorithm 1)."""
    m *= beta1
    np.multiply(grad, 1 - beta1, out=scratch)
    m += scratch
    v *= beta2
    np.multiply(grad, grad, out=scratch)
    scratch *= 1 - beta2
    v += scratch


def adam_step(weight, m, v, t, lr, beta1, beta2, eps, scratch) -> None:
    """weight -= lr * (m / (1 - beta1^t)) / (sqrt(v / (1 - beta2^t)) + eps), in place, with t = 1, 2, ..."""
    np.sqrt(v, out=scratch)
    scratch *= 1 / math.sqrt(1 - beta2**t)
    scratch += eps
    np.divide(m, scratch, out=scratch)
    scratch *= lr / (1 - beta1**t)
    weight -= scratch


# %%
#| export
BLOCK = (
    2**14
)  # entries worked on at a time: weight, gradient, moments and scratch then fit in the CPU's cache


def check_setting(name: str, value: float, below: float = math.inf) -> float:
    """-> value as a float. Raises ValueError unless 0 <= value < below, TypeError if it is no number."""
    try:
        number = float(value)
    except (TypeError, ValueError):
        raise TypeError(f"{name} is a number, got {value!r}") from None
    if not 0 <= number < below:
        limit = "finite and at least 0" if below == math.inf else f"in [0, {below})"
        raise ValueError(f"{name} should be {limit}, got {value}")
    return number


class Optimizer:
    """What all optimizers share: the parameters, the loop over them, and a state that can be saved."""

    limits: dict[str, float] = {}  # setting -> what it must stay below
    buffer_names: tuple[str, ...] = ()  # arrays kept for each parameter, of its shape

    def __init__(self, parameters, **settings):
        self.parameters = list(parameters)
        if not self.parameters:
            raise ValueError("there are 0 parameters to optimize")
        for i, p in enumerate(self.parameters):
            if not isinstance(p, Tensor):
                raise TypeError(f"parameter {i} should be a Tensor, got {type(p).__name__}")
        if len({id(p) for p in self.parameters}) < len(self.parameters):
            distinct = len({id(p) for p in self.parameters})
            raise ValueError(f"{len(self.parameters)} parameters are only {distinct} different tensors")
        for name, value in settings.items():
            setattr(self, name, check_setting(name, value, self.limits.get(name, math.inf)))
        self.settings = tuple(settings)
        self.steps = [0] * len(self.parameters)
        self.buffers = {name: [np.zeros_like(p.data) for p in self.parameters] for name in self.buffer_names}

    @property
    def lr(self) -> float:
        return self._lr

    @lr.setter
    def lr(self, value: float) -> None:
        self._lr = check_setting("lr", value)

    def zero_grad(self) -> None:
        """Forget the gradients, so that the next backward starts at none."""
        for p in self.parameters:
            p.grad = None

    def step(self) -> None:
        """Change every parameter that has a gradient, in place.

        Raises ValueError, before anything changes, if a gradient has another shape than its parameter.
        """
        todo = [i for i, p in enumerate(self.parameters) if p.grad is not None]
        for i in todo:
            p = self.parameters[i]
            if p.grad.shape != p.shape:
                raise ValueError(f"parameter {i} has shape {p.shape}, its gradient {p.grad.shape}")
        for i in todo:
            p = self.parameters[i]
            self.steps[i] += 1
            arrays = [np.atleast_1d(a) for a in (p.data, p.grad, *(b[i] for b in self.buffers.values()))]
            rows = max(1, BLOCK * len(arrays[0]) // max(1, p.size))
            scratch = np.empty_like(arrays[0][:rows])
            for start in range(0, len(arrays[0]), rows):
                weight, grad, *buffers = [a[start : start + rows] for a in arrays]
                self.update(weight, grad, *buffers, t=self.steps[i], scratch=scratch[: len(weight)])

    def update(self, weight, grad, *buffers, t, scratch) -> None:
        """Change `weight` and `buffers` in place; `grad` stays, `scratch` may be overwritten; t = 1, 2, ..."""
        raise NotImplementedError(f"{type(self).__name__} has no update")

    def state_dict(self) -> dict:
        """name -> number or array: all that this optimizer remembers; the buffers themselves, not copies."""
        state = {name: getattr(self, name) for name in self.settings}
        state["steps"] = np.array(self.steps, dtype=np.int64)
        for name, arrays in self.buffers.items():
            state |= {f"{name}.{i}": array for i, array in enumerate(arrays)}
        return state

    def load_state_dict(self, state: dict) -> None:
        """Go on where the optimizer that gave `state` stood.

        Raises ValueError if a name is missing, unknown, or its value does not fit; nothing is changed then.
        """
        own = self.state_dict()
        missing, unknown = sorted(own.keys() - state.keys()), sorted(state.keys() - own.keys())
        if missing or unknown:
            raise ValueError(
                f"this is the state of another optimizer: {len(missing)} missing {missing[:3]}, "
                f"{len(unknown)} unknown {unknown[:3]}"
            )
        settings = {n: check_setting(n, state[n], self.limits.get(n, math.inf)) for n in self.settings}
        arrays = {n: np.asarray(state[n]) for n in own if n not in settings}
        for name, array in arrays.items():
            if array.shape != own[name].shape:
                raise ValueError(f"{name} has shape {array.shape}, this optimizer needs {own[name].shape}")
            if array.dtype.kind not in ("iu" if name == "steps" else "f"):
                raise TypeError(f"{name} holds {array.dtype}, this optimizer's holds {own[name].dtype}")
        if (arrays["steps"] < 0).any():
            raise ValueError(f"steps are counted from 0, got {arrays['steps'].min()}")
        for name, value in settings.items():
            setattr(self, name, value)
        self.steps = arrays.pop("steps").tolist()
        for name, array in arrays.items():
            own[name][...] = array


# %%
#| export
class SGD(Optimizer):
    """weight -= lr * (gradient + weight_decay * weight), with momentum if there is any."""

    limits = {"momentum": 1.0}

    def __init__(self, parameters, lr: float, momentum: float = 0.0, weight_decay: float = 0.0):
        if momentum:
            self.buffer_names = ("velocity",)
        super().__init__(parameters, lr=lr, momentum=momentum, weight_decay=weight_decay)

    def update(self, weight, grad, *velocity, t, scratch) -> None:
        if self.weight_decay:
            grad = grad + self.weight_decay * weight
        if velocity:
            accumulate(velocity[0], grad, self.momentum)
            grad = velocity[0]
        sgd_step(weight, grad, self.lr, scratch)


# %%
#| export
class Adam(Optimizer):
    """Adam (Kingma and Ba 2015, arXiv:1412.6980); weight_decay * weight, if any, is added to the gradient."""

    limits = {"beta1": 1.0, "beta2": 1.0}
    buffer_names = ("m", "v")

    def __init__(self, parameters, lr=1e-3, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.0):
        try:
            beta1, beta2 = betas
        except (TypeError, ValueError):
            raise ValueError(f"betas are two numbers, got {betas!r}") from None
        super().__init__(parameters, lr=lr, beta1=beta1, beta2=beta2, eps=eps, weight_decay=weight_decay)

    @property
    def betas(self) -> tuple[float, float]:
        return self.beta1, self.beta2

    def update(self, weight, grad, m, v, *, t, scratch) -> None:
        if self.weight_decay:
            grad = grad + self.weight_decay * weight
        update_moments(m, v, grad, self.beta1, self.beta2, scratch)
        adam_step(weight, m, v, t, self.lr, self.beta1, self.beta2, self.eps, scratch)


class AdamW(Adam):
    """Adam with decoupled weight decay (Loshchilov and Hutter 2019, arXiv:1711.05101, algorithm 2)."""

    def __init__(self, parameters, lr=1e-3, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.01):
        super().__init__(parameters, lr, betas, eps, weight_decay)

    def update(self, weight, grad, m, v, *, t, scratch) -> None:
        if self.weight_decay:
            weight *= 1 - self.lr * self.weight_decay
        update_moments(m, v, grad, self.beta1, self.beta2, scratch)
        adam_step(weight, m, v, t, self.lr, self.beta1, self.beta2, self.eps, scratch)


# %%
#| export
def clip_grad_norm(parameters, max_norm: float) -> float:
    """-> the norm of all gradients as one long vector; if it is above max_norm, scale them down to max_norm.

    Raises ValueError if the norm is not finite; no gradient is changed then. (Pascanu et al. 2013, arXiv:1211.5063)
    """
    if not max_norm > 0:
        raise ValueError(f"max_norm should be above 0, got {max_norm}")
    grads = [p.grad for p in parameters if p.grad is not None]
    norm = math.sqrt(sum(float(np.vdot(g, g)) for g in grads))
    if not math.isfinite(norm):
        norm = math.sqrt(sum(float(np.square(g, dtype=np.float64).sum()) for g in grads))
    if not math.isfinite(norm):
        raise ValueError(f"the norm of the gradients is {norm}: a loss or a gradient is not finite")
    if norm > max_norm:
        for g in grads:
            g *= max_norm / norm
    return norm
