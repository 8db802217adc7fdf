# %% [markdown]
"""
# Normalization
"""

# %%
#| default_exp core.normalization

# %%
#| export
import numpy as np

from tinytorch.core.autograd import gradient_of
from tinytorch.core.layers import Module
from tinytorch.core.tensor import Tensor, apply


# %%
#| export
def layer_norm(x: np.ndarray, weight: np.ndarray, bias: np.ndarray, eps: float = 1e-5) -> np.ndarray:
    """(..., C), (C,), (C,) -> (..., C): each row to mean 0 and variance 1, then times weight plus bias (Ba et al. 2016)."""
    width = x.shape[-1]
    y = x - x.sum(axis=-1, keepdims=True) / width
    y /= np.sqrt((y * y).sum(axis=-1, keepdims=True) / width + eps)
    y *= weight
    y += bias
    return y


@gradient_of(layer_norm)
def _(grad, output, x, weight, bias, eps=1e-5):
    centred = x - x.mean(axis=-1, keepdims=True)
    deviation = np.sqrt((centred * centred).mean(axis=-1, keepdims=True) + eps)
    normal = centred / deviation
    g = grad * weight
    grad_x = g - g.mean(axis=-1, keepdims=True) - normal * (g * normal).mean(axis=-1, keepdims=True)
    return grad_x / deviation, grad * normal, grad


# %%
#| export
def rms_norm(x: np.ndarray, weight: np.ndarray, eps: float = 1e-5) -> np.ndarray:
    """(..., C), (C,) -> (..., C): each row divided by its root mean square, times weight (Zhang and Sennrich 2019)."""
    return x / np.sqrt((x * x).sum(axis=-1, keepdims=True) / x.shape[-1] + eps) * weight


@gradient_of(rms_norm)
def _(grad, output, x, weight, eps=1e-5):
    root = np.sqrt((x * x).mean(axis=-1, keepdims=True) + eps)
    normal = x / root
    g = grad * weight
    return (g - normal * (g * normal).mean(axis=-1, keepdims=True)) / root, grad * normal


# %%
#| export
class LayerNorm(Module):
    def __init__(self, embed_dim: int, eps: float = 1e-5):
        self.eps = eps
        self.weight = Tensor(np.ones(embed_dim), requires_grad=True)
        self.bias = Tensor(np.zeros(embed_dim), requires_grad=True)

    def forward(self, x) -> Tensor:
        return apply(layer_norm, x, self.weight, self.bias, eps=self.eps)


class RMSNorm(Module):
    def __init__(self, embed_dim: int, eps: float = 1e-5):
        self.eps = eps
        self.weight = Tensor(np.ones(embed_dim), requires_grad=True)

    def forward(self, x) -> Tensor:
        return apply(rms_norm, x, self.weight, eps=self.eps)
