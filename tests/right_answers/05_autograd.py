"""Right answers to module 05."""

from right_answers import Right

RIGHT = [
    Right(
        name="einsum, an iterative search, no blanket helpers",
        cells={
            "arithmetic-rules": """
                #| export
                def _quotient(grad, a, b):
                    return grad / b, -grad * a / (b * b)


                @gradient_of(np.subtract)
                def _(grad, output, a, b):
                    ### BEGIN SOLUTION
                    return grad, np.negative(grad)
                    ### END SOLUTION


                @gradient_of(np.multiply)
                def _(grad, output, a, b):
                    ### BEGIN SOLUTION
                    return tuple(grad * other for other in (b, a))
                    ### END SOLUTION


                @gradient_of(np.divide)
                def _(grad, output, a, b):
                    ### BEGIN SOLUTION
                    return _quotient(grad, a, b)
                    ### END SOLUTION


                @gradient_of(np.negative)
                def _(grad, output, a):
                    ### BEGIN SOLUTION
                    return (-1 * grad,)
                    ### END SOLUTION
            """,
            "function-rules": """
                #| export
                @gradient_of(np.exp)
                def _(grad, output, a):
                    ### BEGIN SOLUTION
                    return (np.exp(a) * grad,)
                    ### END SOLUTION


                @gradient_of(np.log)
                def _(grad, output, a):
                    ### BEGIN SOLUTION
                    return (grad * (1 / a),)
                    ### END SOLUTION


                @gradient_of(np.sqrt)
                def _(grad, output, a):
                    ### BEGIN SOLUTION
                    return (grad / (2 * output),)
                    ### END SOLUTION


                @gradient_of(np.tanh)
                def _(grad, output, a):
                    ### BEGIN SOLUTION
                    return (grad * (1 - output) * (1 + output),)
                    ### END SOLUTION
            """,
            "no-grad": '''
                #| export
                from contextlib import ContextDecorator


                class no_grad(ContextDecorator):
                    """Inside `with no_grad():` nothing is recorded, so no gradient leads back from there."""

                    ### BEGIN SOLUTION
                    def __enter__(self):
                        self.before = _autograd.recording
                        _autograd.recording = False

                    def __exit__(self, *error):
                        _autograd.recording = self.before

                    ### END SOLUTION
            ''',
        },
        bodies={
            "numerical_gradient": """
                x = np.asarray(x, dtype=float)
                slopes = []
                for i in range(x.size):
                    nudge = np.zeros(x.size)
                    nudge[i] = h
                    nudge = nudge.reshape(x.shape)
                    slopes.append((float(function(x + nudge)) - float(function(x - nudge))) / (2 * h))
                return np.array(slopes).reshape(x.shape)
            """,
            "slopes_by_hand": """
                # y = a^2 (b + 1)^2
                return 2 * a * (b + 1) ** 2, 2 * a * a * (b + 1)
            """,
            "remember": """
                wants = any(isinstance(x, Tensor) and x.requires_grad for x in inputs)
                if wants and np.issubdtype(output.dtype, np.floating):
                    output.requires_grad, output.history = True, (function, inputs, options)
            """,
            "history_order": """
                def inputs_of(node):
                    made_from = () if node.history is None else node.history[1]
                    return iter([x for x in made_from if isinstance(x, Tensor) and x.requires_grad])

                order, met, path = [], {id(tensor)}, [(tensor, inputs_of(tensor))]
                while path:
                    node, rest = path[-1]
                    for x in rest:
                        if id(x) not in met:
                            met.add(id(x))
                            path.append((x, inputs_of(x)))
                            break
                    else:
                        order.append(node)
                        path.pop()
                return order
            """,
            "flow_back": """
                flowing = {id(order[-1]): grad}
                for node in order[::-1]:
                    g = flowing[id(node)]
                    if node.history is None:
                        node.grad = np.array(g if node.grad is None else node.grad + g)
                    else:
                        for x, part in input_gradients(node, g):
                            known = flowing.get(id(x))
                            flowing[id(x)] = part if known is None else np.add(known, part)
            """,
            "sum_to_shape": """
                while grad.ndim > len(shape):
                    grad = grad.sum(axis=0)
                for axis, size in enumerate(shape):
                    if size == 1 and grad.shape[axis] != 1:
                        grad = grad.sum(axis=axis, keepdims=True)
                return grad
            """,
            "matmul_gradients": """
                into_a = np.einsum("...nm,...km->...nk", grad, b)
                into_b = np.einsum("...nk,...nm->...km", a, grad)
                return into_a, into_b
            """,
            "spread": """
                if axis is not None and not keepdims:
                    axes = axis if isinstance(axis, tuple) else (axis,)
                    axes = [a % len(shape) for a in axes]
                    kept = [1 if i in axes else n for i, n in enumerate(shape)]
                    grad = np.reshape(grad, kept)
                return np.broadcast_to(grad, shape)
            """,
            "linear_gradients": """
                into_rows = np.einsum("no,oi->ni", grad_rows, weight)
                into_weight = np.einsum("no,ni->oi", grad_rows, rows)
                return into_rows, into_weight, np.einsum("no->o", grad_rows)
            """,
            "cross_entropy_gradient": """
                hot = np.zeros_like(rows)
                np.put_along_axis(hot, targets[:, None], 1, axis=1)
                return (softmax(rows) - hot) / len(rows)
            """,
        },
    ),
    Right(
        name="lists for tuples, np.add.at for every index",
        cells={
            "views": """
                #| export
                def takes_once(index) -> bool:
                    return False


                @gradient_of(np.reshape)
                def _(grad, output, a, shape):
                    ### BEGIN SOLUTION
                    return [np.reshape(grad, np.shape(a))]
                    ### END SOLUTION


                @gradient_of(np.transpose)
                def _(grad, output, a, axes=None):
                    ### BEGIN SOLUTION
                    if axes is None:
                        axes = range(a.ndim)[::-1]
                    back = [0] * a.ndim
                    for i, axis in enumerate(axes):
                        back[axis] = i
                    return [np.transpose(grad, back)]
                    ### END SOLUTION


                @gradient_of(np.swapaxes)
                def _(grad, output, a, axis1, axis2):
                    return [grad.swapaxes(axis1, axis2)]


                @gradient_of(getitem)
                def _(grad, output, a, index):
                    ### BEGIN SOLUTION
                    result = np.zeros(a.shape, a.dtype)
                    np.add.at(result, index, grad)
                    return [result]
                    ### END SOLUTION
            """,
            "softmax-rule": """
                #| export
                @gradient_of(softmax)
                def _(grad, output, x, axis=-1):
                    ### BEGIN SOLUTION
                    mean = np.sum(grad * output, axis=axis, keepdims=True)
                    return [output * (grad - mean)]
                    ### END SOLUTION
            """,
        },
        bodies={
            "numerical_gradient": """
                import sys  # noqa: F401

                punkt = np.asarray(x).astype(np.float64)
                ergebnis = np.zeros(punkt.shape)
                it = np.nditer(punkt, flags=["multi_index"])
                for _ in it:
                    rechts = punkt.copy()
                    links = punkt.copy()
                    rechts[it.multi_index] += h
                    links[it.multi_index] -= h
                    ergebnis[it.multi_index] = (function(rechts) - function(links)) / (2 * h)
                print("fertig")
                return ergebnis
            """,
            "slopes_by_hand": """
                u = a * b
                v = u + a
                dy_dv = 2 * v
                dy_da = dy_dv * (b + 1)
                dy_db = dy_dv * a
                return dy_da, dy_db
            """,
            "first_gradient": """
                if tensor.requires_grad == False:
                    raise RuntimeError("this tensor requires no gradient")
                if grad is not None:
                    g = as_array(grad, dtype=tensor.dtype)
                    if g.shape == tensor.shape:
                        return g
                    raise ValueError(f"{g.shape} should be {tensor.shape}")
                if tensor.size == 1:
                    return np.ones(tensor.shape, dtype=tensor.dtype)
                raise ValueError(f"a tensor of shape {tensor.shape} has {tensor.size} numbers, not 1")
            """,
            "flow_back": """
                grads = {}
                for t in order:
                    grads[id(t)] = None
                grads[id(order[-1])] = grad
                i = len(order) - 1
                while i >= 0:
                    t = order[i]
                    g = grads[id(t)]
                    if t.history is None:
                        if t.grad is None:
                            t.grad = np.zeros_like(t.data)
                        t.grad += g
                    else:
                        for x, gx in input_gradients(t, g):
                            if grads[id(x)] is None:
                                grads[id(x)] = np.zeros_like(x.data)
                            grads[id(x)] = grads[id(x)] + gx
                    i = i - 1
            """,
            "sum_to_shape": """
                wanted = (1,) * (grad.ndim - len(shape)) + tuple(shape)
                for i in range(grad.ndim):
                    if wanted[i] == 1:
                        grad = np.sum(grad, axis=i, keepdims=True)
                return np.reshape(grad, shape)
            """,
            "matmul_gradients": """
                b_t = np.moveaxis(b, -1, -2)
                a_t = np.moveaxis(a, -1, -2)
                return [np.matmul(grad, b_t), np.matmul(a_t, grad)]
            """,
            "linear_gradients": """
                into_rows = np.dot(grad_rows, weight)
                into_weight = np.dot(rows.T, grad_rows).T
                into_bias = np.ones(len(grad_rows), grad_rows.dtype) @ grad_rows
                return [into_rows, into_weight, into_bias]
            """,
            "cross_entropy_gradient": """
                n = rows.shape[0]
                result = softmax(rows)
                for i in range(n):
                    result[i, targets[i]] -= 1.0
                return result / n
            """,
        },
    ),
]
