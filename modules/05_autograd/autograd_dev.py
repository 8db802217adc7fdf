# %% [markdown]
"""
# Autograd
"""

# %%
#| default_exp core.autograd

# %%
#| export
import math
from contextlib import contextmanager

import numpy as np

from tinytorch.core.activations import gelu, relu, sigmoid, silu, softmax
from tinytorch.core.layers import linear
from tinytorch.core.losses import cross_entropy
from tinytorch.core.tensor import Tensor, as_array, getitem, set_recorder

# %%
#| export
_rules = {}


def gradient_of(function):
    """Decorator: the rule below is the gradient of `function`.

    A rule takes (grad, output, *inputs, **options), arrays all, and returns one array, or None, for each input.
    """

    def register(rule):
        _rules[function] = rule
        return rule

    return register


# %%
#| export
def sum_to_shape(grad: np.ndarray, shape: tuple) -> np.ndarray:
    """Undo broadcasting: add up `grad` over the axes along which an array of `shape` was repeated."""
    grad = grad.sum(axis=tuple(range(grad.ndim - len(shape))))
    repeated = tuple(i for i, n in enumerate(shape) if n == 1 and grad.shape[i] != 1)
    return grad.sum(axis=repeated, keepdims=True)


# %%
#| export
def history_order(tensor: Tensor) -> list[Tensor]:
    """Every recorded tensor that `tensor` was made from, itself included, each after its inputs."""
    order, seen, stack = [], set(), [(tensor, False)]
    while stack:
        node, inputs_done = stack.pop()
        if inputs_done:
            order.append(node)
        elif id(node) not in seen:
            seen.add(id(node))
            stack.append((node, True))
            if node.history is not None:
                stack.extend((x, False) for x in node.history[1] if isinstance(x, Tensor) and x.requires_grad)
    return order


# %%
#| export
class Autograd:
    """The recorder: writes into each output how it was made, and walks that history back."""

    def __init__(self):
        self.recording = True

    def record(self, function, inputs, options, output) -> None:
        if self.recording and any(type(x) is Tensor and x.requires_grad for x in inputs):
            output.requires_grad = True
            output.history = (function, inputs, options)

    def backward(self, tensor: Tensor, grad=None) -> None:
        if not tensor.requires_grad:
            raise RuntimeError("no gradient leads here: this tensor was made from none that requires one")
        if grad is None and tensor.size != 1:
            raise ValueError(
                f"a tensor of shape {tensor.shape} is no scalar: pass the gradient that flows into it"
            )
        grad = np.ones_like(tensor.data) if grad is None else as_array(grad, tensor.dtype)
        if grad.shape != tensor.shape:
            raise ValueError(f"the gradient has shape {grad.shape}, the tensor {tensor.shape}")
        grads = {id(tensor): grad}
        for node in reversed(history_order(tensor)):
            grad = grads.pop(id(node))
            if node.history is None:
                node.grad = grad.copy() if node.grad is None else node.grad + grad
                continue
            function, inputs, options = node.history
            if function not in _rules:
                raise NotImplementedError(f"no gradient rule for {function.__name__}")
            arrays = [x.data if isinstance(x, Tensor) else x for x in inputs]
            for x, g in zip(inputs, _rules[function](grad, node.data, *arrays, **options), strict=True):
                if isinstance(x, Tensor) and x.requires_grad:
                    g = sum_to_shape(g, x.shape).astype(x.dtype, copy=False)
                    grads[id(x)] = grads[id(x)] + g if id(x) in grads else g


# %%
#| export
_autograd = Autograd()


def enable_autograd() -> None:
    """Switch gradients on; calling it again changes nothing."""
    set_recorder(_autograd)


@contextmanager
def no_grad():
    """Inside the block nothing is recorded."""
    previous, _autograd.recording = _autograd.recording, False
    try:
        yield
    finally:
        _autograd.recording = previous


# %%
#| export
@gradient_of(np.add)
def _(grad, output, a, b):
    return grad, grad


@gradient_of(np.subtract)
def _(grad, output, a, b):
    return grad, -grad


@gradient_of(np.multiply)
def _(grad, output, a, b):
    return grad * b, grad * a


@gradient_of(np.divide)
def _(grad, output, a, b):
    return grad / b, -grad * output / b


@gradient_of(np.power)
def _(grad, output, a, exponent):
    return grad * exponent * a ** (exponent - 1), None


@gradient_of(np.negative)
def _(grad, output, a):
    return (-grad,)


@gradient_of(np.exp)
def _(grad, output, a):
    return (grad * output,)


@gradient_of(np.log)
def _(grad, output, a):
    return (grad / a,)


@gradient_of(np.sqrt)
def _(grad, output, a):
    return (grad * 0.5 / output,)


@gradient_of(np.tanh)
def _(grad, output, a):
    return (grad * (1 - output * output),)


# %%
#| export
@gradient_of(np.matmul)
def _(grad, output, a, b):
    if a.ndim == 1 or b.ndim == 1:
        raise NotImplementedError(f"gradients of matmul need matrices, got shapes {a.shape} and {b.shape}")
    return grad @ b.swapaxes(-1, -2), a.swapaxes(-1, -2) @ grad


# %%
#| export
def spread(grad, shape, axis, keepdims):
    """Undo a reduction: repeat `grad` along the axes that were summed away."""
    if axis is not None and not keepdims:
        grad = np.expand_dims(grad, axis)
    return np.broadcast_to(grad, shape)


@gradient_of(np.sum)
def _(grad, output, a, axis=None, keepdims=False):
    return (spread(grad, a.shape, axis, keepdims),)


@gradient_of(np.mean)
def _(grad, output, a, axis=None, keepdims=False):
    return (spread(grad, a.shape, axis, keepdims) * (output.size / a.size),)


@gradient_of(np.var)
def _(grad, output, a, axis=None, keepdims=False):
    centred = a - a.mean(axis=axis, keepdims=True)
    return (spread(grad, a.shape, axis, keepdims) * centred * (2 * output.size / a.size),)


@gradient_of(np.max)
def _(grad, output, a, axis=None, keepdims=False):
    winners = a == a.max(axis=axis, keepdims=True)
    share = winners / winners.sum(axis=axis, keepdims=True)
    return (spread(grad, a.shape, axis, keepdims) * share,)


@gradient_of(np.reshape)
def _(grad, output, a, shape):
    return (grad.reshape(a.shape),)


@gradient_of(np.transpose)
def _(grad, output, a, axes=None):
    return (grad.transpose(np.argsort(axes) if axes else None),)


@gradient_of(np.swapaxes)
def _(grad, output, a, axis1, axis2):
    return (grad.swapaxes(axis1, axis2),)


@gradient_of(getitem)
def _(grad, output, a, index):
    full = np.zeros_like(a)
    np.add.at(full, index, grad)
    return (full,)


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
    scale = math.sqrt(2 / math.pi)
    t = np.tanh(scale * (x + 0.044715 * (x * x * x)))
    slope = scale * (1 + 3 * 0.044715 * (x * x))
    return (grad * 0.5 * (1 + t + x * (1 - t * t) * slope),)


@gradient_of(softmax)
def _(grad, output, x, axis=-1):
    return (output * (grad - (grad * output).sum(axis=axis, keepdims=True)),)


@gradient_of(linear)
def _(grad, output, x, weight, bias=None):
    rows, grad_rows = x.reshape(-1, x.shape[-1]), grad.reshape(-1, grad.shape[-1])
    grad_x = (grad_rows @ weight).reshape(x.shape)
    grad_weight = grad_rows.T @ rows
    return (grad_x, grad_weight) if bias is None else (grad_x, grad_weight, grad_rows.sum(axis=0))


@gradient_of(cross_entropy)
def _(grad, output, logits, targets, ignore_index=-100):
    rows, targets = logits.reshape(-1, logits.shape[-1]), np.asarray(targets).reshape(-1)
    counted = np.flatnonzero(targets != ignore_index)
    grad_rows = softmax(rows)
    grad_rows[counted, targets[counted]] -= 1
    grad_rows[targets == ignore_index] = 0
    return (grad_rows * (grad / len(counted))).reshape(logits.shape), None
