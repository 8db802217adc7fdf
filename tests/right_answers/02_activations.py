"""Right answers to module 02."""

from right_answers import Right

RIGHT = [
    Right(
        name="np.where and the two halves of the sigmoid",
        bodies={
            "as_floats": """
                if not isinstance(x, np.ndarray):
                    return np.array(x, dtype=np.float32)
                return x if np.issubdtype(x.dtype, np.floating) else x.astype("float32")
            """,
            "relu": "return np.where(x < 0, np.zeros_like(x), x)",
            "sigmoid": """
                x = as_floats(x)
                small = np.exp(-np.abs(x))
                return np.where(x >= 0, 1 / (1 + small), small / (1 + small))
            """,
            "silu": """
                x = as_floats(x)
                return x * sigmoid(x)
            """,
            "gelu": """
                x = as_floats(x)
                near = np.clip(x, -12, 12)  # beyond, tanh is 1
                inner = math.sqrt(2 / math.pi) * (near + 0.044715 * near**3)
                return 0.5 * x * (1 + np.tanh(inner))
            """,
            "softmax": """
                x = as_floats(x)
                top = np.max(x, axis=axis, keepdims=True)
                e = np.asarray(np.exp(x - np.where(np.isneginf(top), 0, top)))
                total = np.sum(e, axis=axis, keepdims=True)
                return np.divide(e, total, out=np.zeros_like(e), where=total != 0)
            """,
        },
    ),
    Right(
        name="in place, clip, logaddexp",
        bodies={
            "relu": "return np.clip(x, 0, None)",
            "sigmoid": """
                # with lots of comments and unused imports
                import os  # noqa: F401

                a = as_floats(x)
                result = np.empty_like(a)
                positive = a >= 0
                result[positive] = 1 / (1 + np.exp(-a[positive]))
                e = np.exp(a[~positive])
                result[~positive] = e / (1 + e)
                return result
            """,
            "silu": """
                a = as_floats(x)
                return np.multiply(a, sigmoid(a))
            """,
            "gelu": """
                x = as_floats(x)
                c = math.sqrt(2.0 / math.pi)
                with np.errstate(over="ignore"):
                    t = np.tanh(c * x * (1.0 + 0.044715 * x * x))
                return (0.5 * (1.0 + t)) * x
            """,
            "softmax": """
                x = as_floats(x)
                m = np.array(x.max(axis=axis, keepdims=True))
                m[m == -np.inf] = 0
                shares = np.exp(x - m)
                total = np.array(shares.sum(axis=axis, keepdims=True))
                total[total == 0] = 1
                return shares / total
            """,
            "Sigmoid.__call__": """
                tensor = apply(sigmoid, x)
                return tensor
            """,
            "Softmax.__call__": """
                options = {"axis": self.axis}
                return apply(softmax, x, **options)
            """,
        },
    ),
]
