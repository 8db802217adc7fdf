"""Mistakes that students make in module 02."""

from wrong_answers import Wrong

WRONG = [
    Wrong(
        name="every array becomes float32",
        part="test-as-floats",
        old='    if isinstance(x, np.ndarray) and x.dtype.kind == "f":\n        return x\n',
        new="",
    ),
    Wrong(
        name="integers stay integers",
        part="test-as-floats",
        old='if isinstance(x, np.ndarray) and x.dtype.kind == "f":',
        new='if isinstance(x, np.ndarray) and x.dtype.kind in "fiu":',
    ),
    Wrong(
        name="a list of fractions becomes float64",
        part="test-as-floats",
        old='    if isinstance(x, np.ndarray) and x.dtype.kind == "f":\n        return x\n',
        new='    x = np.asarray(x)\n    if x.dtype.kind == "f":\n        return x\n',
    ),
    Wrong(
        name="relu with a leak",
        part="test-relu",
        old="return np.maximum(x, 0)",
        new="return np.where(x > 0, x, 0.01 * x).astype(x.dtype)",
    ),
    Wrong(
        name="relu of the absolute value",
        part="test-relu",
        old="return np.maximum(x, 0)",
        new="return np.abs(x)",
    ),
    Wrong(
        name="relu hides NaN",
        part="test-relu",
        old="return np.maximum(x, 0)",
        new="return np.where(x > 0, x, np.zeros_like(x))",
    ),
    Wrong(
        name="relu writes into its input",
        part="test-relu",
        old="return np.maximum(x, 0)",
        new="return np.maximum(x, 0, out=x)",
    ),
    Wrong(
        name="relu by a product with 0 and 1",
        part="test-relu",
        old="return np.maximum(x, 0)",
        new="return np.multiply(x, x > 0, dtype=x.dtype)",
    ),
    Wrong(
        name="relu makes integers floats",
        part="test-relu",
        old="return np.maximum(x, 0)",
        new="return np.maximum(as_floats(x), 0)",
    ),
    Wrong(
        name="exp of x instead of -x",
        part="test-sigmoid",
        old="result = np.negative(x, out=np.empty_like(x))",
        new="result = np.array(x)",
    ),
    Wrong(
        name="sigmoid warns of its overflow",
        part="test-sigmoid",
        old="""    with np.errstate(over="ignore"):  # exp(-x) = inf gives 0, which is right
        np.exp(result, out=result)
""",
        new="    np.exp(result, out=result)\n",
    ),
    Wrong(
        name="sigmoid by the tanh, without its left tail",
        part="test-sigmoid",
        old="    return np.divide(1, result, out=result)\n",
        new="    return 0.5 * (1 + np.tanh(0.5 * x))\n",
    ),
    Wrong(
        name="sigmoid of integers in NumPy's own width",
        part="test-sigmoid",
        old="""    x = as_floats(x)
    result = np.negative(x, out=np.empty_like(x))
    with np.errstate(over="ignore"):  # exp(-x) = inf gives 0, which is right
        np.exp(result, out=result)
""",
        new="""    with np.errstate(over="ignore"):
        result = np.exp(-x)
""",
    ),
    Wrong(
        name="the exponent cut off at 10",
        part="test-sigmoid",
        old="        np.exp(result, out=result)\n",
        new="        np.exp(np.clip(result, -10, 10), out=result)\n",
    ),
    Wrong(
        name="the gate without x",
        part="test-silu",
        old="return np.divide(x, gate, out=gate)",
        new="return np.divide(1, gate, out=gate)",
    ),
    Wrong(
        name="silu closes its gate on the right",
        part="test-silu",
        old="gate = np.negative(x, out=np.empty_like(x))",
        new="gate = np.array(x)",
    ),
    Wrong(
        name="silu warns of its overflow",
        part="test-silu",
        old="""    with np.errstate(over="ignore"):  # x / inf = 0, which is right
        np.exp(gate, out=gate)
""",
        new="    np.exp(gate, out=gate)\n",
    ),
    Wrong(
        name="silu of small integers in half precision",
        part="test-silu",
        old="""    x = as_floats(x)
    gate = np.negative(x, out=np.empty_like(x))
    with np.errstate(over="ignore"):  # x / inf = 0, which is right
        np.exp(gate, out=gate)
""",
        new="""    with np.errstate(over="ignore"):
        gate = np.exp(-x)
""",
    ),
    Wrong(
        name="silu writes into its input",
        part="test-silu",
        old="return np.divide(x, gate, out=gate)",
        new="return np.divide(x, gate, out=x)",
    ),
    Wrong(
        name="another constant for the cube",
        part="test-gelu",
        old="t *= 0.044715 * scale",
        new="t *= 0.04715 * scale",
    ),
    Wrong(
        name="the square instead of the cube",
        part="test-gelu",
        old="        t *= x\n        np.exp(t, out=t)\n    t += 1\n",
        new="        np.exp(t, out=t)\n    t += 1\n",
    ),
    Wrong(
        name="the root of pi over 2",
        part="test-gelu",
        old="scale = -2 * math.sqrt(2 / math.pi)",
        new="scale = -2 * math.sqrt(math.pi / 2)",
    ),
    Wrong(
        name="the sigmoid of u, not of 2u",
        part="test-gelu",
        old="scale = -2 * math.sqrt(2 / math.pi)",
        new="scale = -math.sqrt(2 / math.pi)",
    ),
    Wrong(
        name="the exact form with the sigmoid of 1.702 x",
        part="test-gelu",
        old="    t += 1\n    return np.divide(x, t, out=t)\n",
        new='    with np.errstate(over="ignore"):\n        return x / (1 + np.exp(-1.702 * x))\n',
    ),
    Wrong(
        name="a float64 constant",
        part="test-gelu",
        old="        t = np.asarray(x * x)\n        t *= 0.044715 * scale\n        t += scale\n",
        new="        t = -2 * np.sqrt(2 / np.pi) * (1 + np.float64(0.044715) * (x * x))\n",
    ),
    Wrong(
        name="gelu writes into its input",
        part="test-gelu",
        old="t = np.asarray(x * x)",
        new="t = np.multiply(x, x, out=x)",
    ),
    Wrong(
        name="gelu of small integers",
        part="test-gelu",
        old="    x = as_floats(x)\n    scale = -2 * math",
        new="    scale = -2 * math",
    ),
    Wrong(
        name="nothing is subtracted",
        part="test-softmax",
        old="shares = np.asarray(x - x.max(axis=axis, keepdims=True, initial=lowest))",
        new="shares = x.copy()",
        also=("test-softmax-masked",),
    ),
    Wrong(
        name="the largest score of all rows is subtracted",
        part="test-softmax",
        old="shares = np.asarray(x - x.max(axis=axis, keepdims=True, initial=lowest))",
        new="shares = x - x.max(initial=lowest)",
        also=("test-softmax-masked",),
    ),
    Wrong(
        name="the sum runs over everything",
        part="test-softmax",
        old="total = shares.sum(axis=axis, keepdims=True)",
        new="total = shares.sum(keepdims=True)",
        also=("test-softmax-masked",),
    ),
    Wrong(
        name="always the last axis",
        part="test-softmax",
        old="total = shares.sum(axis=axis, keepdims=True)",
        new="total = shares.sum(axis=-1, keepdims=True)",
    ),
    Wrong(
        name="the first axis unless told",
        part="test-softmax",
        old="    lowest = np.finfo(x.dtype).min\n",
        new="    lowest, axis = np.finfo(x.dtype).min, 0 if axis == -1 else axis\n",
        also=("test-softmax-masked",),
    ),
    Wrong(
        name="softmax writes into its input",
        part="test-softmax",
        old="    shares = np.asarray(x - x.max(axis=axis, keepdims=True, initial=lowest))\n",
        new="    x -= x.max(axis=axis, keepdims=True, initial=lowest)\n    shares = x\n",
        also=("test-softmax-masked",),
    ),
    Wrong(
        name="softmax of small integers",
        part="test-softmax",
        old="    x = as_floats(x)\n    lowest = np.finfo(x.dtype).min\n",
        new="    lowest = np.finfo(np.float32).min\n",
    ),
    Wrong(
        name="a row without choice gives NaN",
        part="test-softmax-masked",
        old="shares /= np.maximum(total, 1)",
        new="shares /= total",
    ),
    Wrong(
        name="minus infinity less minus infinity",
        part="test-softmax-masked",
        old="shares = np.asarray(x - x.max(axis=axis, keepdims=True, initial=lowest))",
        new="shares = np.asarray(x - x.max(axis=axis, keepdims=True))",
    ),
    Wrong(
        name="a row without choice is shared evenly",
        part="test-softmax-masked",
        old="    shares = np.asarray(x - x.max(axis=axis, keepdims=True, initial=lowest))\n",
        new="    shares = np.maximum(x, lowest)\n    shares = shares - shares.max(axis=axis, keepdims=True)\n",
    ),
    Wrong(
        name="a masked score gets a little",
        part="test-softmax-masked",
        old="    np.exp(shares, out=shares)\n",
        new="    np.exp(np.where(x == -np.inf, -16, shares), out=shares)\n",
    ),
    Wrong(
        name="SiLU calls the sigmoid",
        part="test-classes",
        old="return apply(silu, x)",
        new="return apply(sigmoid, x)",
    ),
    Wrong(
        name="Softmax forgets its axis",
        part="test-classes",
        old="return apply(softmax, x, axis=self.axis)",
        new="return apply(softmax, x)",
    ),
    Wrong(
        name="GELU goes round the door",
        part="test-classes",
        old="return apply(gelu, x)",
        new="return Tensor(gelu(np.asarray(x)))",
    ),
    Wrong(
        name="Sigmoid gives an array",
        part="test-classes",
        old="return apply(sigmoid, x)",
        new="return apply(sigmoid, x).data",
    ),
]
