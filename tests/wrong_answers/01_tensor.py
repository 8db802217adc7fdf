"""Mistakes that students make in module 01."""

from wrong_answers import Wrong

WRONG = [
    Wrong(
        name="floats keep the width they came with",
        part="test-as-array",
        old='    if dtype is None and array.dtype.kind == "f":\n        dtype = np.float32\n',
        new="",
    ),
    Wrong(
        name="everything becomes float32",
        part="test-as-array",
        old='if dtype is None and array.dtype.kind == "f":',
        new="if dtype is None:",
    ),
    Wrong(
        name="float64 asked for, by way of float32",
        part="test-as-array",
        old="    return array if dtype is None else array.astype(dtype, copy=False)\n",
        new='    if array.dtype.kind == "f":\n'
        "        array = array.astype(np.float32, copy=False)\n"
        "    return array if dtype is None else array.astype(dtype, copy=False)\n",
    ),
    Wrong(
        name="always a copy",
        part="test-as-array",
        old="return array if dtype is None else array.astype(dtype, copy=False)",
        new="return array.astype(dtype or array.dtype)",
    ),
    Wrong(
        name="text is let in",
        part="test-as-array",
        old='if found.kind not in "fiub":',
        new='if found.kind not in "fiubU":',
    ),
    Wrong(
        name="booleans are refused",
        part="test-as-array",
        old='if found.kind not in "fiub":',
        new='if found.kind not in "fiu":',
    ),
    Wrong(
        name="aligned at the first axis",
        part="test-broadcast-shape",
        old="""        size_a = a[axis] if -axis <= len(a) else 1
        size_b = b[axis] if -axis <= len(b) else 1
""",
        new="""        place = axis + max(len(a), len(b))
        size_a = a[place] if place < len(a) else 1
        size_b = b[place] if place < len(b) else 1
""",
    ),
    Wrong(
        name="the larger size, also beside 0",
        part="test-broadcast-shape",
        old="shape.append(size_b if size_a == 1 else size_a)",
        new="shape.append(max(size_a, size_b))",
    ),
    Wrong(
        name="built from the last axis and not turned round",
        part="test-broadcast-shape",
        old="return tuple(reversed(shape))",
        new="return tuple(shape)",
    ),
    Wrong(
        name="any multiple may be repeated",
        part="test-broadcast-shape",
        old="if size_a != size_b and 1 not in (size_a, size_b):",
        new="if size_a != size_b and size_a and size_b and max(size_a, size_b) % min(size_a, size_b):",
    ),
    Wrong(
        name="the shorter shape decides how many axes there are",
        part="test-broadcast-shape",
        old="-max(len(a), len(b)) - 1, -1",
        new="-min(len(a), len(b)) - 1, -1",
    ),
    Wrong(
        name="the inner size of the right side is its last axis",
        part="test-matmul-shape",
        old="if rows[-1] != columns[-2]:",
        new="if rows[-1] != columns[-1]:",
    ),
    Wrong(
        name="leading axes of the left side only",
        part="test-matmul-shape",
        old="shape = broadcast_shape(rows[:-2], columns[:-2])",
        new="shape = rows[:-2]",
    ),
    Wrong(
        name="a single axis on the right is a row",
        part="test-matmul-shape",
        old="columns = b if len(b) > 1 else (*b, 1)",
        new="columns = b if len(b) > 1 else (1, *b)",
    ),
    Wrong(
        name="the axis that was added stays",
        part="test-matmul-shape",
        old="    if len(a) > 1:\n        shape += rows[-2:-1]\n",
        new="    shape += rows[-2:-1]\n",
    ),
    Wrong(
        name="shapes without axes are not refused",
        part="test-matmul-shape",
        old="    if not a or not b:\n",
        new="    if not a and not b:\n        return ()\n    if not a:\n        return b\n    if not b:\n",
    ),
    Wrong(
        name="the constructor copies",
        part="test-in-and-out",
        old="self.data = as_array(data, dtype)",
        new="self.data = as_array(data, dtype).copy()",
    ),
    Wrong(
        name="the constructor forgets the dtype",
        part="test-in-and-out",
        old="self.data = as_array(data, dtype)",
        new="self.data = as_array(data)",
    ),
    Wrong(
        name="integers may want gradients",
        part="test-in-and-out",
        old='if requires_grad and self.data.dtype.kind != "f":',
        new='if requires_grad and self.data.dtype.kind not in "fiub":',
    ),
    Wrong(
        name="gradients are always wanted of floats",
        part="test-in-and-out",
        old="self.requires_grad = requires_grad",
        new='self.requires_grad = requires_grad or self.data.dtype.kind == "f"',
    ),
    Wrong(
        name="np.asarray copies",
        part="test-in-and-out",
        old="return np.array(self.data, dtype=dtype, copy=copy)",
        new="return np.array(self.data, dtype=dtype)",
    ),
    Wrong(
        name="NumPy's arguments are ignored",
        part="test-in-and-out",
        old="return np.array(self.data, dtype=dtype, copy=copy)",
        new="return self.data",
    ),
    Wrong(
        name="integers divided stay float64",
        part="test-apply",
        old="if result.dtype == FLOAT64 and not any(isinstance(a, np.ndarray) and a.dtype == FLOAT64 for a in arrays):",
        new="if False:",
    ),
    Wrong(
        name="float64 is cut down though it was asked for",
        part="test-apply",
        old="if result.dtype == FLOAT64 and not any(isinstance(a, np.ndarray) and a.dtype == FLOAT64 for a in arrays):",
        new="if result.dtype == FLOAT64:",
    ),
    Wrong(
        name="a number without dtype counts as float64",
        part="test-apply",
        old="isinstance(a, np.ndarray) and a.dtype == FLOAT64 for a in arrays",
        new='getattr(a, "dtype", None) == FLOAT64 for a in arrays',
    ),
    Wrong(
        name="results are always float32",
        part="test-apply",
        old="    output = wrap_result(result)\n",
        new="    output = wrap_result(result if result.dtype == FLOAT64 else result.astype(np.float32, copy=False))\n",
    ),
    Wrong(
        name="plain numbers become float32 arrays",
        part="test-apply",
        old="x.data if type(x) is Tensor else x if type(x) in (int, float) else as_array(x) for x in inputs",
        new="x.data if type(x) is Tensor else as_array(x) for x in inputs",
    ),
    Wrong(
        name="the recorder gets arrays",
        part="test-apply",
        old="_recorder.record(function, inputs, options, output)",
        new="_recorder.record(function, tuple(arrays), options, output)",
    ),
    Wrong(
        name="the recorder gets the array of the result",
        part="test-apply",
        old="_recorder.record(function, inputs, options, output)",
        new="_recorder.record(function, inputs, options, result)",
    ),
    Wrong(
        name="the recorder hears of tensors only",
        part="test-apply",
        old="    if _recorder is not None:\n        _recorder.record",
        new="    if _recorder is not None and type(inputs[0]) is Tensor:\n        _recorder.record",
    ),
    Wrong(
        name="nobody is told",
        part="test-apply",
        old="    if _recorder is not None:\n        _recorder.record(function, inputs, options, output)\n",
        new="",
    ),
    Wrong(
        name="the options are forgotten",
        part="test-apply",
        old="np.asarray(function(*arrays, **options))",
        new="np.asarray(function(*arrays))",
    ),
    Wrong(
        name="a full sum stays a NumPy number",
        part="test-apply",
        old="np.asarray(function(*arrays, **options))",
        new="function(*arrays, **options)",
    ),
    Wrong(
        name="every result is copied",
        part="test-apply",
        old="np.asarray(function(*arrays, **options))",
        new="np.array(function(*arrays, **options))",
    ),
    Wrong(
        name="NumPy's message for wrong shapes",
        part="test-apply",
        old="        check_shapes(function, arrays)\n        raise\n",
        new="        raise\n",
    ),
    Wrong(
        name="other errors are swallowed",
        part="test-apply",
        old="        check_shapes(function, arrays)\n        raise\n",
        new="        check_shapes(function, arrays)\n        result = arrays[0]\n",
    ),
    Wrong(
        name="5 - x is x - 5",
        part="test-operators",
        old="return apply(np.subtract, other, self)",
        new="return apply(np.subtract, self, other)",
    ),
    Wrong(
        name="1 / x is x / 1",
        part="test-operators",
        old="return apply(np.divide, other, self)",
        new="return apply(np.divide, self, other)",
    ),
    Wrong(
        name="2 ** x is x ** 2",
        part="test-operators",
        old="return apply(np.power, base, self)",
        new="return apply(np.power, self, base)",
    ),
    Wrong(
        name="division rounds down",
        part="test-operators",
        old="return apply(np.divide, self, other)",
        new="return apply(np.floor_divide, self, other)",
    ),
    Wrong(
        name="x ** y is x times y",
        part="test-operators",
        old="return apply(np.power, self, exponent)",
        new="return apply(np.multiply, self, exponent)",
    ),
    Wrong(
        name="an operator gives an array",
        part="test-operators",
        old="return apply(np.subtract, self, other)",
        new="return np.subtract(self.data, getattr(other, 'data', other) if isinstance(other, Tensor) else other)",
    ),
    Wrong(
        name="a shape as one tuple is not understood",
        part="test-shapes",
        old="        if len(shape) == 1:\n            shape = shape[0]\n",
        new="",
    ),
    Wrong(
        name="reshape from column to column",
        part="test-shapes",
        old="return apply(np.reshape, self, shape=shape)",
        new='return apply(np.reshape, self, shape=shape, order="F")',
    ),
    Wrong(
        name="reshape copies",
        part="test-shapes",
        old="return apply(np.reshape, self, shape=shape)",
        new="return apply(np.reshape, self, shape=shape, copy=True)",
    ),
    Wrong(
        name="transpose ignores the axes",
        part="test-shapes",
        old="return apply(np.transpose, self, axes=axes or None)",
        new="return apply(np.transpose, self, axes=None)",
    ),
    Wrong(
        name="axes as one tuple are not understood",
        part="test-shapes",
        old="if len(axes) == 1 and not isinstance(axes[0], int):",
        new="if False:",
    ),
    Wrong(
        name="the axes say where each axis goes",
        part="test-shapes",
        old="return apply(np.transpose, self, axes=axes or None)",
        new="return apply(np.transpose, self, axes=tuple(np.argsort(axes).tolist()) if axes else None)",
    ),
    Wrong(
        name="the sum forgets keepdims",
        part="test-reductions",
        old="return apply(np.sum, self, axis=axis, keepdims=keepdims)",
        new="return apply(np.sum, self, axis=axis)",
    ),
    Wrong(
        name="the mean is over everything",
        part="test-reductions",
        old="return apply(np.mean, self, axis=axis, keepdims=keepdims)",
        new="return apply(np.mean, self, keepdims=keepdims)",
    ),
    Wrong(
        name="the variance is divided by n - 1",
        part="test-reductions",
        old="return apply(np.var, self, axis=axis, keepdims=keepdims)",
        new="return apply(np.var, self, axis=axis, keepdims=keepdims, ddof=1)",
    ),
    Wrong(
        name="the standard deviation instead of the variance",
        part="test-reductions",
        old="return apply(np.var, self, axis=axis, keepdims=keepdims)",
        new="return apply(np.std, self, axis=axis, keepdims=keepdims)",
    ),
    Wrong(
        name="the largest by its distance from 0",
        part="test-reductions",
        old="return apply(np.max, self, axis=axis, keepdims=keepdims)",
        new="return apply(lambda x, **o: np.max(np.abs(x), **o), self, axis=axis, keepdims=keepdims)",
    ),
]
