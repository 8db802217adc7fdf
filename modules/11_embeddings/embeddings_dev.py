# %% [markdown]
"""
# Embeddings
"""

# %%
#| default_exp text.embeddings

# %%
#| export
import numpy as np

from tinytorch.core.autograd import gradient_of
from tinytorch.core.layers import Module
from tinytorch.core.tensor import Tensor, apply, as_array


# %%
#| export
def take_rows(weight: np.ndarray, ids: np.ndarray) -> np.ndarray:
    """(V, C), (...) ints -> (..., C): the rows of `weight` with these numbers."""
    return weight[ids]


@gradient_of(take_rows)
def _(grad, output, weight, ids):
    grad_weight = np.zeros_like(weight)
    np.add.at(grad_weight, as_array(ids), grad)
    return grad_weight, None


# %%
#| export
class Embedding(Module):
    """(...) ints in [0, num_embeddings) -> (..., embed_dim)."""

    def __init__(self, num_embeddings: int, embed_dim: int, rng=None):
        weight = np.random.default_rng(rng).normal(0, 0.02, (num_embeddings, embed_dim))
        self.weight = Tensor(weight, requires_grad=True)

    def forward(self, ids) -> Tensor:
        return apply(take_rows, self.weight, as_array(ids))
