# %% [markdown]
"""
# Activations
"""

# %%
#| default_exp core.activations

# %%
#| export
import math

import numpy as np

from tinytorch.core.tensor import Tensor, apply


# %%
#| export
def relu(x: np.ndarray) -> np.ndarray:
    """max(x, 0), entry by entry."""
    return np.maximum(x, 0)


# %%
#| export
def sigmoid(x: np.ndarray) -> np.ndarray:
    """1 / (1 + exp(-x)), entry by entry, without overflow for any x."""
    return 0.5 * (1 + np.tanh(0.5 * x))


# %%
#| export
def gelu(x: np.ndarray) -> np.ndarray:
    """x * Phi(x) in the tanh form that GPT-2 uses (Hendrycks and Gimpel 2016, arXiv:1606.08415, section 2)."""
    inner = math.sqrt(2 / math.pi) * (x + 0.044715 * (x * x * x))
    return 0.5 * x * (1 + np.tanh(inner))


# %%
#| export
def silu(x: np.ndarray) -> np.ndarray:
    """x * sigmoid(x), entry by entry."""
    return x * sigmoid(x)


# %%
#| export
def softmax(x: np.ndarray, axis: int = -1) -> np.ndarray:
    """exp(x) / sum(exp(x)) along `axis`, without overflow: the largest entry is subtracted first."""
    weights = np.exp(x - x.max(axis=axis, keepdims=True))
    weights /= weights.sum(axis=axis, keepdims=True)
    return weights


# %%
#| export
class ReLU:
    def __call__(self, x) -> Tensor:
        return apply(relu, x)


class Sigmoid:
    def __call__(self, x) -> Tensor:
        return apply(sigmoid, x)


class Tanh:
    def __call__(self, x) -> Tensor:
        return apply(np.tanh, x)


class GELU:
    def __call__(self, x) -> Tensor:
        return apply(gelu, x)


class SiLU:
    def __call__(self, x) -> Tensor:
        return apply(silu, x)


class Softmax:
    def __init__(self, axis: int = -1):
        self.axis = axis

    def __call__(self, x) -> Tensor:
        return apply(softmax, x, axis=self.axis)
