"""Right answers to module 01."""

from right_answers import Right

RIGHT = [
    Right(
        name="comprehensions, padding with ones, products of slices",
        bodies={
            "as_array": """
                array = np.asarray(data)
                wanted = array.dtype if dtype is None else np.dtype(dtype)
                for kind in (array.dtype.kind, wanted.kind):
                    if kind not in ("f", "i", "u", "b"):
                        raise TypeError(f"no real numbers: {array.dtype}, {wanted}")
                if dtype is None and np.issubdtype(array.dtype, np.floating):
                    wanted = np.dtype("float32")
                return np.asarray(array, dtype=wanted)
            """,
            "row_major_strides": """
                import math

                return tuple(math.prod(shape[axis + 1 :]) for axis in range(len(shape)))
            """,
            "broadcast_shape": """
                n = max(len(a), len(b))
                left, right = ((1,) * (n - len(s)) + tuple(s) for s in (a, b))
                for axis, pair in enumerate(zip(left, right, strict=True), start=-n):
                    if len(set(pair) - {1}) == 2:
                        raise ValueError(f"{a} and {b}: axis {axis} has {pair[0]} and {pair[1]}")
                return tuple(q if p == 1 else p for p, q in zip(left, right, strict=True))
            """,
            "matmul_slowly": """
                columns = list(zip(*b, strict=True))
                rows = [[sum(x * y for x, y in zip(row, column, strict=True)) for column in columns] for row in a]
                return np.array(rows, dtype=np.float32)
            """,
            "matmul_shape": """
                if len(a) == 0 or len(b) == 0:
                    raise ValueError(f"no matrix product of {a} and {b}")
                inner = b[-2] if len(b) >= 2 else b[0]
                if a[-1] != inner:
                    raise ValueError(f"{a} @ {b}: {a[-1]} is not {inner}")
                row = [] if len(a) == 1 else [a[-2]]
                column = [] if len(b) == 1 else [b[-1]]
                return (*broadcast_shape(tuple(a[:-2]), tuple(b[:-2])), *row, *column)
            """,
            "Tensor.__sub__": "return apply(np.subtract, *(self, other))",
            "Tensor.reshape": """
                if len(shape) == 1 and isinstance(shape[0], (tuple, list)):
                    (shape,) = shape
                return apply(np.reshape, self, shape=tuple(shape))
            """,
            "Tensor.transpose": """
                if not axes:
                    return apply(np.transpose, self)
                if isinstance(axes[0], (tuple, list)):
                    axes = axes[0]
                return apply(np.transpose, self, axes=tuple(axes))
            """,
        },
    ),
    Right(
        name="a beginner, step by step",
        bodies={
            "as_array": """
                import sys  # noqa: F401

                arr = np.array(data, copy=None)
                erlaubt = ["f", "i", "u", "b"]
                if arr.dtype.kind not in erlaubt:
                    raise TypeError("keine Zahlen: " + str(arr.dtype))
                if dtype is not None:
                    ziel = np.dtype(dtype)
                    if ziel.kind not in erlaubt:
                        raise TypeError("kein Zahlentyp: " + str(ziel))
                    if arr.dtype == ziel:
                        return arr
                    return arr.astype(ziel)
                if arr.dtype.kind == "f" and arr.dtype != np.float32:
                    arr = arr.astype(np.float32)
                return arr
            """,
            "row_major_strides": """
                ergebnis = []
                for i in range(len(shape)):
                    schritt = 1
                    for j in range(i + 1, len(shape)):
                        schritt = schritt * shape[j]
                    ergebnis.append(schritt)
                print("strides", ergebnis)
                return tuple(ergebnis)
            """,
            "broadcast_shape": """
                x = list(a)
                y = list(b)
                while len(x) < len(y):
                    x.insert(0, 1)
                while len(y) < len(x):
                    y.insert(0, 1)
                ergebnis = []
                for i in range(len(x)):
                    if x[i] == y[i]:
                        ergebnis.append(x[i])
                    elif x[i] == 1:
                        ergebnis.append(y[i])
                    elif y[i] == 1:
                        ergebnis.append(x[i])
                    else:
                        achse = i - len(x)
                        raise ValueError(f"{a} und {b} passen nicht: axis {achse}: {x[i]} und {y[i]}")
                return tuple(ergebnis)
            """,
            "matmul_slowly": """
                a = np.asarray(a)
                b = np.asarray(b)
                assert a.shape[1] == b.shape[0]
                ergebnis = np.zeros((a.shape[0], b.shape[1]), dtype="float32")
                for k in range(a.shape[1]):
                    for j in range(b.shape[1]):
                        for i in range(a.shape[0]):
                            ergebnis[i][j] = ergebnis[i][j] + a[i][k] * b[k][j]
                return ergebnis
            """,
            "Tensor.__init__": """
                arr = as_array(data, dtype=dtype)
                if requires_grad:
                    if not np.issubdtype(arr.dtype, np.floating):
                        raise TypeError("nur floats haben Gradienten, nicht " + str(arr.dtype))
                self.data = arr
                self.requires_grad = requires_grad
                self.grad = None
                self.history = None
            """,
            "Tensor.__truediv__": "return apply(np.true_divide, self, other)",
            "Tensor.__rtruediv__": "return apply(np.true_divide, other, self)",
            "Tensor.__array__": """
                if copy:
                    return np.array(self.data, dtype=dtype)
                if copy is None:
                    return np.asarray(self.data, dtype=dtype)
                return np.array(self.data, dtype=dtype, copy=False)
            """,
            "apply": """
                arrays = []
                for x in inputs:
                    if isinstance(x, Tensor):
                        arrays.append(x.data)
                    elif isinstance(x, (int, float)) and not isinstance(x, (bool, np.generic)):
                        arrays.append(x)
                    else:
                        arrays.append(as_array(x))
                try:
                    result = function(*arrays, **options)
                except ValueError:
                    check_shapes(function, arrays)
                    raise
                result = np.asarray(result)
                has64 = False
                for a in arrays:
                    if isinstance(a, np.ndarray):
                        if a.dtype == np.float64:
                            has64 = True
                if result.dtype == np.float64 and not has64:
                    result = result.astype(np.float32)
                tensor = wrap_result(result)
                if _recorder != None:
                    _recorder.record(function, inputs, options, tensor)
                return tensor
            """,
        },
    ),
]
