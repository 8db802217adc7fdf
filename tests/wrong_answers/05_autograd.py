"""Mistakes that students make in module 05."""

from wrong_answers import Wrong

WRONG = [
    Wrong(
        name="one step to the right only",
        part="test-numerical-gradient",
        old="        slopes[index] = (right - left) / (2 * h)\n",
        new="        slopes[index] = (right - float(function(x))) / h\n",
    ),
    Wrong(
        name="divided by half the distance",
        part="test-numerical-gradient",
        old="(right - left) / (2 * h)",
        new="(right - left) / h",
    ),
    Wrong(
        name="the entry is not put back",
        part="test-numerical-gradient",
        old="        x[index] = kept\n",
        new="        pass\n",
    ),
    Wrong(
        name="the caller's array is moved",
        part="test-numerical-gradient",
        old="    x = np.array(x, dtype=np.float64)\n",
        new="    x = np.asarray(x)\n",
    ),
    Wrong(
        name="both sides of a difference get the same",
        part="test-arithmetic-rules",
        old="    return grad, -grad\n",
        new="    return grad, grad\n",
    ),
    Wrong(
        name="each factor gets itself",
        part="test-arithmetic-rules",
        old="    return grad * b, grad * a\n",
        new="    return grad * a, grad * b\n",
    ),
    Wrong(
        name="the divisor is divided by once only",
        part="test-arithmetic-rules",
        old="    return grad / b, -grad * output / b\n",
        new="    return grad / b, -grad * output\n",
    ),
    Wrong(
        name="the divisor's slope has the wrong sign",
        part="test-arithmetic-rules",
        old="-grad * output / b",
        new="grad * output / b",
    ),
    Wrong(
        name="the rule of minus writes into its gradient",
        part="test-arithmetic-rules",
        old="    return grad, -grad\n",
        new="    return grad.copy(), np.negative(grad, out=grad)\n",
    ),
    Wrong(
        name="exp forgets what flows in",
        part="test-function-rules",
        old="    return (grad * output,)\n",
        new="    return (output,)\n",
    ),
    Wrong(
        name="the slope of log from its result",
        part="test-function-rules",
        old="    return (grad / a,)\n",
        new="    return (grad / output,)\n",
    ),
    Wrong(
        name="the slope of sqrt without its half",
        part="test-function-rules",
        old="    return (grad * 0.5 / output,)\n",
        new="    return (grad / output,)\n",
    ),
    Wrong(
        name="the slope of tanh from its argument",
        part="test-function-rules",
        old="    return (grad * (1 - output * output),)\n",
        new="    return (grad * (1 - a * a),)\n",
    ),
    Wrong(
        name="only the first input is asked",
        part="test-remember",
        old="    for x in inputs:\n",
        new="    for x in inputs[:1]:\n",
    ),
    Wrong(
        name="everything is remembered",
        part="test-remember",
        old="isinstance(x, Tensor) and x.requires_grad and",
        new="isinstance(x, Tensor) and",
    ),
    Wrong(
        name="whole numbers are remembered",
        part="test-remember",
        old=' and output.data.dtype.kind == "f":',
        new=":",
    ),
    Wrong(
        name="only the tensors are noted",
        part="test-remember",
        old="            output.history = (function, inputs, options)\n",
        new="            tensors = tuple(x for x in inputs if isinstance(x, Tensor))\n"
        "            output.history = (function, tensors, options)\n",
    ),
    Wrong(
        name="the output is not marked",
        part="test-remember",
        old="            output.requires_grad = True\n",
        new="",
    ),
    Wrong(
        name="listed before its inputs",
        part="test-history-order",
        old="        if inputs_listed:\n            order.append(node)\n        elif id(node) not in met:\n",
        new="        if id(node) not in met:\n            order.insert(0, node)\n",
    ),
    Wrong(
        name="nobody remembers who was met",
        part="test-history-order",
        old="            met.add(id(node))\n",
        new="            if len(order) > 200_000:\n                raise MemoryError\n",
    ),
    Wrong(
        name="a recursion",
        part="test-history-order",
        old="    order, met, stack = [], set(), [(tensor, False)]\n",
        new="    order, met, stack = [], set(), []\n\n"
        "    def visit(node):\n"
        "        if id(node) not in met:\n"
        "            met.add(id(node))\n"
        "            for x in node.history[1] if node.history else ():\n"
        "                if isinstance(x, Tensor) and x.requires_grad:\n"
        "                    visit(x)\n"
        "            order.append(node)\n\n"
        "    visit(tensor)\n",
    ),
    Wrong(
        name="constants are listed",
        part="test-history-order",
        old="if isinstance(x, Tensor) and x.requires_grad)",
        new="if isinstance(x, Tensor))",
    ),
    Wrong(
        name="met when put on the stack",
        part="test-history-order",
        old="                stack.extend((x, False) for x in node.history[1]"
        " if isinstance(x, Tensor) and x.requires_grad)\n",
        new="                for x in node.history[1]:\n"
        "                    if isinstance(x, Tensor) and x.requires_grad and id(x) not in met:\n"
        "                        met.add(id(x))\n"
        "                        stack.append((x, True))\n"
        "                        stack.extend((z, False) for z in (x.history or (0, ()))[1]"
        " if isinstance(z, Tensor))\n",
    ),
    Wrong(
        name="any shape begins with ones",
        part="test-first-gradient",
        old="        if tensor.size != 1:\n",
        new="        if tensor.size == 0:\n",
    ),
    Wrong(
        name="a gradient that broadcasts is accepted",
        part="test-first-gradient",
        old="    if grad.shape != tensor.shape:\n",
        new="    if np.broadcast_shapes(grad.shape, tensor.shape) != tensor.shape:\n",
    ),
    Wrong(
        name="the 1 has lost its shape",
        part="test-first-gradient",
        old="        return np.ones_like(tensor.data)\n",
        new="        return np.array(1.0, tensor.dtype)\n",
    ),
    Wrong(
        name="no look at requires_grad",
        part="test-first-gradient",
        old="    if not tensor.requires_grad:\n",
        new="    if tensor.requires_grad is None:\n",
    ),
    Wrong(
        name="the second contribution replaces the first",
        part="test-flow-back",
        old="            grads[id(x)] = grads[id(x)] + g if id(x) in grads else g\n",
        new="            grads[id(x)] = g\n",
    ),
    Wrong(
        name="added in place",
        part="test-flow-back",
        old="            grads[id(x)] = grads[id(x)] + g if id(x) in grads else g\n",
        new="            if id(x) in grads:\n"
        "                grads[id(x)] += g\n"
        "            else:\n"
        "                grads[id(x)] = g\n",
    ),
    Wrong(
        name="a leaf forgets what it had",
        part="test-flow-back",
        old="                node.grad += grad\n",
        new="                node.grad = np.array(grad)\n",
    ),
    Wrong(
        name="a leaf keeps the array itself",
        part="test-flow-back",
        old="                node.grad = np.array(grad)\n",
        new="                node.grad = grad\n",
    ),
    Wrong(
        name="walked forwards",
        part="test-flow-back",
        old="    for node in reversed(order):\n        grad = grads.pop(id(node))\n",
        new="    for node in order:\n        grad = grads.pop(id(node), grad)\n",
    ),
    Wrong(
        name="every tensor keeps its gradient",
        part="test-flow-back",
        old="            continue\n",
        new="            continue\n        node.grad = grad\n",
    ),
    Wrong(
        name="axes of length one are forgotten",
        part="test-sum-to-shape",
        old="    return grad.sum(axis=(*range(added), *ones), keepdims=True).reshape(shape)\n",
        new="    return grad.sum(axis=tuple(range(added)))\n",
    ),
    Wrong(
        name="missing axes are forgotten",
        part="test-sum-to-shape",
        old="    added = grad.ndim - len(shape)\n",
        new="    added = 0\n",
    ),
    Wrong(
        name="the mean instead of the sum",
        part="test-sum-to-shape",
        old="    return grad.sum(",
        new="    return grad.mean(",
    ),
    Wrong(
        name="axes counted from the left",
        part="test-sum-to-shape",
        old="    ones = (added + i for i",
        new="    ones = (i for i",
    ),
    Wrong(
        name="recording is always on afterwards",
        part="test-no-grad",
        old="        _autograd.recording = previous\n",
        new="        _autograd.recording = True\n",
    ),
    Wrong(
        name="an exception leaves it off",
        part="test-no-grad",
        old="    try:\n        yield\n    finally:\n        _autograd.recording = previous\n",
        new="    yield\n    _autograd.recording = previous\n",
    ),
    Wrong(
        name="the exception is swallowed",
        part="test-no-grad",
        old="    finally:\n",
        new="    except Exception:\n        pass\n    finally:\n",
    ),
    Wrong(
        name="all axes are turned around",
        part="test-matmul-gradients",
        old="    return grad @ b.swapaxes(-1, -2), a.swapaxes(-1, -2) @ grad\n",
        new="    return grad @ b.T, a.T @ grad\n",
    ),
    Wrong(
        name="the sides are exchanged",
        part="test-matmul-gradients",
        old="    return grad @ b.swapaxes(-1, -2), a.swapaxes(-1, -2) @ grad\n",
        new="    return a.swapaxes(-1, -2) @ grad, grad @ b.swapaxes(-1, -2)\n",
    ),
    Wrong(
        name="the batch is summed away",
        part="test-matmul-gradients",
        old="a.swapaxes(-1, -2) @ grad\n",
        new="(a.swapaxes(-1, -2) @ grad).sum(axis=tuple(range(a.ndim - 2)))\n",
    ),
    Wrong(
        name="the lost axis is not put back",
        part="test-reductions",
        old="    if axis is not None and not keepdims and shape:\n",
        new="    if False:\n",
    ),
    Wrong(
        name="the lost axis goes to the end",
        part="test-reductions",
        old="        grad = np.expand_dims(grad, axis)\n",
        new="        grad = grad[..., None]\n",
    ),
    Wrong(
        name="the mean is a sum",
        part="test-reductions",
        old=" * (output.size / max(a.size, 1)),)",
        new=",)",
    ),
    Wrong(
        name="the mean divides by all entries",
        part="test-reductions",
        old=" * (output.size / max(a.size, 1)),)",
        new=" / a.size,)",
    ),
    Wrong(
        name="transposed by the same axes again",
        part="test-views",
        old="np.argsort([axis % a.ndim for axis in axes])",
        new="axes",
    ),
    Wrong(
        name="negative axes are sorted as they are",
        part="test-views",
        old="np.argsort([axis % a.ndim for axis in axes])",
        new="np.argsort(axes)",
    ),
    Wrong(
        name="a row taken twice gets the last gradient only",
        part="test-views",
        old="        np.add.at(full, index, grad)\n",
        new="        full[index] += grad\n",
    ),
    Wrong(
        name="the entries are put back as they were",
        part="test-views",
        old="    full = np.zeros_like(a)\n",
        new="    full = a.copy()\n",
    ),
    Wrong(
        name="softmax takes each entry alone",
        part="test-softmax-rule",
        old="    into -= output * into.sum(axis=axis, keepdims=True)\n",
        new="    into -= output * into\n",
    ),
    Wrong(
        name="softmax always over the last axis",
        part="test-softmax-rule",
        old="into.sum(axis=axis, keepdims=True)",
        new="into.sum(axis=-1, keepdims=True)",
    ),
    Wrong(
        name="softmax sums over everything",
        part="test-softmax-rule",
        old="into.sum(axis=axis, keepdims=True)",
        new="into.sum()",
    ),
    Wrong(
        name="the weight's gradient is transposed",
        part="test-linear-rule",
        old="grad_rows.T @ rows, ",
        new="rows.T @ grad_rows, ",
    ),
    Wrong(
        name="the bias gets the mean",
        part="test-linear-rule",
        old="grad_rows.sum(axis=0)",
        new="grad_rows.mean(axis=0)",
    ),
    Wrong(
        name="the loss is not a mean",
        part="test-cross-entropy-rule",
        old="    into /= len(targets)\n",
        new="",
    ),
    Wrong(
        name="right minus what the model said",
        part="test-cross-entropy-rule",
        old="    into /= len(targets)\n    return into\n",
        new="    into /= len(targets)\n    return -into\n",
    ),
    Wrong(
        name="1 is taken from every entry of the row",
        part="test-cross-entropy-rule",
        old="    into[np.arange(len(targets)), targets] -= 1\n",
        new="    into -= 1\n",
    ),
]
