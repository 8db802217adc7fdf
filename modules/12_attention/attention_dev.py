# %% [markdown]
"""
# Attention
"""

# %%
#| default_exp core.attention

# %%
#| export
import math

import numpy as np

from tinytorch.core.activations import softmax
from tinytorch.core.layers import Linear, Module
from tinytorch.core.tensor import Tensor, apply


# %%
#| export
def causal_mask(num_queries: int, num_keys: int) -> np.ndarray:
    """-> (T, S) float32, added to scores: 0 = visible, -inf = in the future.

    The T queries are the last T of the S positions.
    Raises ValueError if T > S.
    """
    if num_queries > num_keys:
        raise ValueError(f"{num_queries} queries cannot be the last of {num_keys} positions")
    query_pos = np.arange(num_keys - num_queries, num_keys)[:, None]
    key_pos = np.arange(num_keys)[None, :]
    return np.where(key_pos <= query_pos, 0, -np.inf).astype(np.float32)


# %%
#| export
def attention_weights(query, key, mask=None, causal: bool = False) -> Tensor:
    """(B, H, T, D), (B, H, S, D) -> (B, H, T, S): how much each query takes from each key; each row sums to 1.

    softmax(query @ key.T / sqrt(D) + mask) (Vaswani et al. 2017, equation 1). `mask` is added to the scores and
    broadcastable to (B, H, T, S). `causal`: the T queries are the last T of the S positions and see no later one.
    """
    scores = (query * (1 / math.sqrt(query.shape[-1]))) @ key.swapaxes(-1, -2)
    if causal and query.shape[-2] > 1:  # one query alone is the newest: it sees every key
        scores = scores + causal_mask(query.shape[-2], key.shape[-2])
    if mask is not None:
        scores = scores + mask
    return apply(softmax, scores)


def scaled_dot_product_attention(query, key, value, mask=None, causal: bool = False) -> Tensor:
    """(B, H, T, D), (B, H, S, D), (B, H, S, D) -> (B, H, T, D): the values, weighted by `attention_weights`."""
    return attention_weights(query, key, mask, causal) @ value


# %%
#| export
def split_heads(x, num_heads: int):
    """(B, T, C) -> (B, H, T, D), where C = H * D."""
    B, T, C = x.shape
    if C % num_heads:
        raise ValueError(f"embed_dim {C} is not divisible by num_heads {num_heads}")
    return x.reshape(B, T, num_heads, C // num_heads).transpose(0, 2, 1, 3)


def merge_heads(x):
    """(B, H, T, D) -> (B, T, C), where C = H * D."""
    B, H, T, D = x.shape
    return x.transpose(0, 2, 1, 3).reshape(B, T, H * D)


# %%
#| export
class MultiHeadAttention(Module):
    """(B, T, C) -> (B, T, C). With `causal`, no token sees a later one."""

    def __init__(self, embed_dim: int, num_heads: int, *, causal: bool = False, rng=None):
        if embed_dim < 1 or num_heads < 1 or embed_dim % num_heads:
            raise ValueError(f"embed_dim {embed_dim} is not divisible by num_heads {num_heads}")
        self.embed_dim, self.num_heads, self.head_dim = embed_dim, num_heads, embed_dim // num_heads
        self.causal = causal
        rng = np.random.default_rng(rng)
        self.q_proj = Linear(embed_dim, embed_dim, rng=rng)
        self.k_proj = Linear(embed_dim, embed_dim, rng=rng)
        self.v_proj = Linear(embed_dim, embed_dim, rng=rng)
        self.out_proj = Linear(embed_dim, embed_dim, rng=rng)

    def project(self, x):
        """(B, T, C) -> queries, keys and values, each (B, H, T, D)."""
        return tuple(split_heads(proj(x), self.num_heads) for proj in (self.q_proj, self.k_proj, self.v_proj))

    def merge(self, heads) -> Tensor:
        """(B, H, T, D) -> (B, T, C): the heads side by side, mixed by the output projection."""
        return self.out_proj(merge_heads(heads))

    def forward(self, x, mask=None) -> Tensor:
        query, key, value = self.project(x)
        return self.merge(scaled_dot_product_attention(query, key, value, mask, self.causal))
