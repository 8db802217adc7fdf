# %% [markdown]
"""
# Layers
"""

# %%
#| default_exp core.layers

# %%
#| export
import math
from functools import partial

import numpy as np

from tinytorch.core.tensor import Tensor, apply


# %%
#| export
def linear(x: np.ndarray, weight: np.ndarray, bias: np.ndarray | None = None) -> np.ndarray:
    """(..., in), (out, in), (out,) -> (..., out): x @ weight.T + bias."""
    rows = x.reshape(-1, x.shape[-1])
    # One row alone is a matrix-vector product: the weights are then read once, row by row, as they lie in memory.
    y = np.dot(weight, rows[0]) if len(rows) == 1 else np.dot(rows, weight.T)
    if bias is not None:
        y += bias
    return y.reshape(*x.shape[:-1], len(weight))


# %%
#| export
class Module:
    """A part of a model: holds weights (Tensors) and smaller parts (Modules), and knows how to run forward."""

    training = True

    def forward(self, *inputs):
        raise NotImplementedError(f"{type(self).__name__} has no forward")

    def __call__(self, *inputs, **options):
        return self.forward(*inputs, **options)

    def children(self):
        """Yields (name, module) for every part, those in lists included."""
        for name, value in vars(self).items():
            if isinstance(value, Module):
                yield name, value
            elif isinstance(value, (list, tuple)):
                for i, item in enumerate(value):
                    if isinstance(item, Module):
                        yield f"{name}.{i}", item

    def named_parameters(self, prefix: str = ""):
        """Yields (name, Tensor) for every weight of this module and of its parts."""
        for name, value in vars(self).items():
            if isinstance(value, Tensor):
                yield prefix + name, value
        for name, child in self.children():
            yield from child.named_parameters(f"{prefix}{name}.")

    def parameters(self) -> list[Tensor]:
        """Every weight once, shared ones too."""
        return list({id(p): p for _, p in self.named_parameters()}.values())

    def state_dict(self) -> dict[str, np.ndarray]:
        """name -> array: the weights themselves, not copies."""
        return {name: p.data for name, p in self.named_parameters()}

    def load_state_dict(self, state: dict) -> None:
        """Copy the arrays of `state` into the weights.

        Raises ValueError if a name is missing, unknown, or has another shape; nothing is written then.
        """
        own = dict(self.named_parameters())
        missing, unknown = sorted(own.keys() - state.keys()), sorted(state.keys() - own.keys())
        if missing or unknown:
            raise ValueError(
                f"these weights are of another model: {len(missing)} missing {missing[:3]}, {len(unknown)} unknown {unknown[:3]}"
            )
        arrays = {name: np.asarray(state[name]) for name in own}
        for name, array in arrays.items():
            if array.shape != own[name].shape:
                raise ValueError(f"{name} has shape {array.shape}, the model needs {own[name].shape}")
            if array.dtype.kind != "f":
                raise TypeError(f"{name} holds {array.dtype}, weights are floats")
        for name, array in arrays.items():
            own[name].data[...] = array

    def train(self, mode: bool = True) -> "Module":
        self.training = mode
        for _, child in self.children():
            child.train(mode)
        return self

    def eval(self) -> "Module":
        return self.train(False)

    def wrap(self, method: str, wrapper) -> None:
        """From now on `self.method(...)` calls `wrapper(inner, ...)`, `inner` being what it called before."""
        setattr(self, method, partial(wrapper, getattr(self, method)))

    def unwrap(self, method: str, wrapper) -> None:
        """Take `wrapper` off again; the others stay. Raises ValueError if it is not there."""
        wrappers = []
        inner = getattr(self, method)
        while isinstance(inner, partial):
            wrappers.append(inner.func)
            inner = inner.args[0]
        if wrapper not in wrappers:
            raise ValueError(f"{type(self).__name__}.{method} is not wrapped by {wrapper!r}")
        wrappers.remove(wrapper)
        delattr(self, method)
        for other in reversed(wrappers):
            self.wrap(method, other)


# %%
#| export
class Linear(Module):
    """(..., in_features) -> (..., out_features): x @ weight.T + bias, weight (out_features, in_features)."""

    def __init__(self, in_features: int, out_features: int, bias: bool = True, rng=None):
        if in_features < 1 or out_features < 1:
            raise ValueError(
                f"a layer needs at least one input and one output, got {in_features} and {out_features}"
            )
        limit = 1 / math.sqrt(in_features)
        rng = np.random.default_rng(rng)
        weight = rng.uniform(-limit, limit, (out_features, in_features))
        self.weight = Tensor(weight, requires_grad=True)
        self.bias = Tensor(np.zeros(out_features), requires_grad=True) if bias else None

    def forward(self, x) -> Tensor:
        if x.shape[-1] != self.weight.shape[1]:
            raise ValueError(f"the layer takes {self.weight.shape[1]} features, x has shape {x.shape}")
        if self.bias is None:
            return apply(linear, x, self.weight)
        return apply(linear, x, self.weight, self.bias)


# %%
#| export
class Sequential(Module):
    """Runs its layers one after the other; a layer is anything that can be called."""

    def __init__(self, *layers):
        self.layers = list(layers)

    def forward(self, x):
        for layer in self.layers:
            x = layer(x)
        return x


# %%
#| export
class Dropout(Module):
    """In training, sets each entry to 0 with probability p and scales the others by 1 / (1 - p) (Srivastava et al. 2014)."""

    def __init__(self, p: float = 0.1, rng=None):
        if not 0 <= p < 1:
            raise ValueError(f"the probability of dropping should be in [0, 1), got {p}")
        self.p = p
        self.rng = np.random.default_rng(rng)

    def forward(self, x) -> Tensor:
        if not self.training or self.p == 0:
            return x
        keep = self.rng.random(x.shape) >= self.p
        return apply(np.multiply, x, keep / (1 - self.p))
