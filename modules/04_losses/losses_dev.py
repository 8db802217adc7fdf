# %% [markdown]
"""
# Losses
"""

# %%
#| default_exp core.losses

# %%
#| export
import math

import numpy as np

from tinytorch.core.tensor import Tensor, apply, as_array


# %%
#| export
def log_softmax(x: np.ndarray, axis: int = -1) -> np.ndarray:
    """log(softmax(x)) along `axis`, finite wherever x is."""
    shifted = x - x.max(axis=axis, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=axis, keepdims=True))


# %%
#| export
def cross_entropy(logits: np.ndarray, targets: np.ndarray, ignore_index: int = -100) -> np.ndarray:
    """(..., V), (...) ints -> scalar: the mean of -log p(target) over the targets that are not `ignore_index`."""
    rows = logits.reshape(-1, logits.shape[-1])
    targets = targets.reshape(-1)
    counted = np.flatnonzero(targets != ignore_index)
    return -log_softmax(rows[counted])[np.arange(len(counted)), targets[counted]].mean()


# %%
#| export
class CrossEntropyLoss:
    """(..., V) logits and (...) integer targets -> scalar Tensor."""

    def __init__(self, ignore_index: int = -100):
        self.ignore_index = ignore_index

    def __call__(self, logits, targets) -> Tensor:
        targets = as_array(targets)
        if targets.dtype.kind not in "iu":
            raise TypeError(f"targets are token ids, integers; got {targets.dtype}")
        if logits.shape[:-1] != targets.shape:
            raise ValueError(
                f"logits of shape {logits.shape} need targets of shape {logits.shape[:-1]}, got {targets.shape}"
            )
        counted = targets[targets != self.ignore_index]
        if counted.size == 0:
            raise ValueError(f"none of the {targets.size} targets is to be predicted")
        if counted.min() < 0 or counted.max() >= logits.shape[-1]:
            raise ValueError(
                f"targets run from {counted.min()} to {counted.max()}, the logits know 0 to {logits.shape[-1] - 1}"
            )
        return apply(cross_entropy, logits, targets, ignore_index=self.ignore_index)


# %%
#| export
class MSELoss:
    """The mean of (prediction - target) ** 2 over all entries -> scalar Tensor."""

    def __call__(self, prediction, target) -> Tensor:
        target = target if isinstance(target, Tensor) else Tensor(target)
        if prediction.shape != target.shape:
            raise ValueError(f"prediction has shape {prediction.shape}, target {target.shape}")
        difference = prediction - target
        return (difference * difference).mean()


# %%
#| export
def perplexity(loss) -> float:
    """exp(cross entropy in nats): between how many equally likely tokens the model hesitates."""
    return math.exp(float(loss))
