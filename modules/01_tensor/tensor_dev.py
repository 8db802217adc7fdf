# %% [markdown]
"""
# Tensor
"""

# %%
#| default_exp core.tensor

# %%
#| export
import numpy as np


# %%
#| export
def as_array(data, dtype=None) -> np.ndarray:
    """Any numbers -> an array: floats in float32, integers and booleans as they are.

    `dtype` asks for another type, float64 for instance. An array that already has the right type is not copied.
    Raises TypeError for anything that is not numbers, ValueError for rows of different lengths.
    """
    array = data.data if isinstance(data, Tensor) else np.asarray(data)
    if array.dtype.kind not in "fiub":
        raise TypeError(f"a tensor holds numbers; {type(data).__name__} gave an array of type {array.dtype}")
    if dtype is None and array.dtype.kind == "f":
        dtype = np.float32
    return array if dtype is None else array.astype(dtype, copy=False)


# %%
#| export
_recorder = None


def set_recorder(recorder):
    """From now on `recorder.record(function, inputs, options, output)` hears of every operation.

    Returns the recorder that was there before; None switches it off.
    """
    global _recorder
    previous, _recorder = _recorder, recorder
    return previous


def apply(function, *inputs, **options) -> "Tensor":
    """Run `function`, which knows only arrays, on tensors, arrays and numbers -> Tensor.

    Every operation of every module passes here. The result is float32 unless an input was float64.
    """
    arrays = [x.data if type(x) is Tensor else x if type(x) in (int, float) else as_array(x) for x in inputs]
    result = np.asarray(function(*arrays, **options))
    if result.dtype == np.float64 and not any(getattr(a, "dtype", None) == np.float64 for a in arrays):
        result = result.astype(np.float32)
    output = Tensor(result, dtype=result.dtype)
    if _recorder is not None:
        _recorder.record(function, inputs, options, output)
    return output


def getitem(array, index):
    """array[index], as a function."""
    return array[index]


# %%
#| export
class Tensor:
    """An array of numbers that can remember how it was made.

    data: (any shape) ndarray, float32 unless it holds integers or another dtype was asked for.
    grad: None, or an ndarray of the same shape.
    history: None, or (function, inputs, options), set by the recorder.
    """

    __slots__ = ("data", "requires_grad", "grad", "history")
    __array_priority__ = 1000  # ndarray + Tensor asks Tensor first

    def __init__(self, data, requires_grad: bool = False, dtype=None):
        self.data = as_array(data, dtype)
        self.requires_grad = requires_grad
        self.grad = None
        self.history = None
        if requires_grad and self.data.dtype.kind != "f":
            raise TypeError(f"only floats have gradients, this tensor holds {self.data.dtype}")

    @property
    def shape(self):
        return self.data.shape

    @property
    def ndim(self):
        return self.data.ndim

    @property
    def size(self):
        return self.data.size

    @property
    def dtype(self):
        return self.data.dtype

    @property
    def T(self):
        return self.transpose()

    def numpy(self) -> np.ndarray:
        return self.data

    def item(self):
        return self.data.item()

    def __array__(self, dtype=None, copy=None):
        return np.array(self.data, dtype=dtype, copy=copy)

    def __float__(self):
        return float(self.data.item())

    def __int__(self):
        return int(self.data.item())

    def __len__(self):
        return len(self.data)

    def __repr__(self):
        grad = ", requires_grad=True" if self.requires_grad else ""
        body = np.array2string(self.data, prefix="Tensor(", separator=", ", threshold=60, precision=4)
        return f"Tensor({body}, shape={self.shape}{grad})"

    def __add__(self, other):
        return apply(np.add, self, other)

    def __radd__(self, other):
        return apply(np.add, other, self)

    def __sub__(self, other):
        return apply(np.subtract, self, other)

    def __rsub__(self, other):
        return apply(np.subtract, other, self)

    def __mul__(self, other):
        return apply(np.multiply, self, other)

    def __rmul__(self, other):
        return apply(np.multiply, other, self)

    def __truediv__(self, other):
        return apply(np.divide, self, other)

    def __rtruediv__(self, other):
        return apply(np.divide, other, self)

    def __pow__(self, exponent):
        return apply(np.power, self, exponent)

    def __neg__(self):
        return apply(np.negative, self)

    def __matmul__(self, other):
        return matmul(self, other)

    def __rmatmul__(self, other):
        return matmul(other, self)

    def __getitem__(self, index):
        return apply(getitem, self, index=index)

    def reshape(self, *shape):
        return apply(np.reshape, self, shape=shape[0] if len(shape) == 1 else shape)

    def transpose(self, *axes):
        return apply(np.transpose, self, axes=axes or None)

    def swapaxes(self, axis1: int, axis2: int):
        return apply(np.swapaxes, self, axis1=axis1, axis2=axis2)

    def sum(self, axis=None, keepdims: bool = False):
        return apply(np.sum, self, axis=axis, keepdims=keepdims)

    def mean(self, axis=None, keepdims: bool = False):
        return apply(np.mean, self, axis=axis, keepdims=keepdims)

    def var(self, axis=None, keepdims: bool = False):
        return apply(np.var, self, axis=axis, keepdims=keepdims)

    def max(self, axis=None, keepdims: bool = False):
        return apply(np.max, self, axis=axis, keepdims=keepdims)

    def exp(self):
        return apply(np.exp, self)

    def log(self):
        return apply(np.log, self)

    def sqrt(self):
        return apply(np.sqrt, self)

    def tanh(self):
        return apply(np.tanh, self)

    def backward(self, grad=None) -> None:
        """Fill `.grad` of every tensor that this one was made from and that asked for it.

        Raises RuntimeError if nobody recorded how this tensor was made.
        """
        if _recorder is None:
            raise RuntimeError("nothing recorded how this tensor was made: switch gradients on first")
        _recorder.backward(self, grad)


# %%
#| export
def matmul(a, b) -> Tensor:
    """(..., n, k) @ (..., k, m) -> (..., n, m). Raises ValueError if the two k differ."""
    a_shape, b_shape = np.shape(a), np.shape(b)
    if not a_shape or not b_shape:
        raise ValueError(
            f"a matrix product needs at least one axis on each side, got shapes {a_shape} and {b_shape}"
        )
    inner = b_shape[-2] if len(b_shape) > 1 else b_shape[-1]
    if a_shape[-1] != inner:
        raise ValueError(f"cannot multiply {a_shape} by {b_shape}: {a_shape[-1]} columns meet {inner} rows")
    return apply(np.matmul, a, b)
