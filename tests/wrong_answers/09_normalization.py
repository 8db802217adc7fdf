"""Mistakes that students make in module 09."""

from wrong_answers import Wrong

WRONG = [
    Wrong(
        name="layer_norm averages over the first axis",
        part="test-layer-norm",
        old="    y = rows - column(rows.sum(axis=-1)) / x.shape[-1]\n",
        new="    y = x - x.mean(axis=0, keepdims=True)\n",
    ),
    Wrong(
        name="layer_norm averages over everything",
        part="test-layer-norm",
        old="    y /= np.sqrt(mean_square(y) + eps)\n    y *= weight\n    y += bias\n",
        new="    y /= np.sqrt((y * y).mean() + eps)\n    y *= weight\n    y += bias\n",
    ),
    Wrong(
        name="layer_norm adds eps next to the root",
        part="test-layer-norm",
        old="    y /= np.sqrt(mean_square(y) + eps)\n",
        new="    y /= np.sqrt(mean_square(y)) + eps\n",
    ),
    Wrong(
        name="layer_norm forgets eps",
        part="test-layer-norm",
        old="    y /= np.sqrt(mean_square(y) + eps)\n",
        new="    y /= np.sqrt(mean_square(y)) + (mean_square(y) == 0)\n",
    ),
    Wrong(
        name="layer_norm divides by the variance",
        part="test-layer-norm",
        old="    y /= np.sqrt(mean_square(y) + eps)\n",
        new="    y /= mean_square(y) + eps\n",
    ),
    Wrong(
        name="layer_norm divides the sum of squares by C - 1",
        part="test-layer-norm",
        old="    y /= np.sqrt(mean_square(y) + eps)\n",
        new="    y /= np.sqrt(mean_square(y) * x.shape[-1] / max(x.shape[-1] - 1, 1) + eps)\n",
    ),
    Wrong(
        name="layer_norm takes the variance as a difference of two large numbers",
        part="test-layer-norm",
        old="    y /= np.sqrt(mean_square(y) + eps)\n",
        new="    mean = x.sum(axis=-1, keepdims=True) / x.shape[-1]\n"
        "    y /= np.sqrt(np.maximum(mean_square(x) - mean * mean, 0) + eps)\n",
    ),
    Wrong(
        name="layer_norm works in the array that came in",
        part="test-layer-norm",
        old="    y = rows - column(rows.sum(axis=-1)) / x.shape[-1]\n",
        new="    y = x\n    y -= x.sum(axis=-1, keepdims=True) / x.shape[-1]\n",
    ),
    Wrong(
        name="layer_norm forgets the bias",
        part="test-layer-norm",
        old="    y += bias\n",
        new="",
    ),
    Wrong(
        name="the gradient of layer_norm treats mean and deviation as constants",
        part="test-layer-norm-gradients",
        old="    grad_x = (g - g.mean(axis=-1, keepdims=True) - normal * along) / root\n",
        new="    grad_x = g / root\n",
    ),
    Wrong(
        name="the gradient of layer_norm forgets that the mean moves",
        part="test-layer-norm-gradients",
        old="    grad_x = (g - g.mean(axis=-1, keepdims=True) - normal * along) / root\n",
        new="    grad_x = (g - normal * along) / root\n",
    ),
    Wrong(
        name="the gradient of layer_norm forgets that the deviation moves",
        part="test-layer-norm-gradients",
        old="    grad_x = (g - g.mean(axis=-1, keepdims=True) - normal * along) / root\n",
        new="    grad_x = (g - g.mean(axis=-1, keepdims=True)) / root\n",
    ),
    Wrong(
        name="the gradient of layer_norm has the wrong sign along the row",
        part="test-layer-norm-gradients",
        old="    grad_x = (g - g.mean(axis=-1, keepdims=True) - normal * along) / root\n",
        new="    grad_x = (g - g.mean(axis=-1, keepdims=True) + normal * along) / root\n",
    ),
    Wrong(
        name="the gradient of layer_norm is not divided by the deviation",
        part="test-layer-norm-gradients",
        old="    grad_x = (g - g.mean(axis=-1, keepdims=True) - normal * along) / root\n",
        new="    grad_x = g - g.mean(axis=-1, keepdims=True) - normal * along\n",
    ),
    Wrong(
        name="the gradient of layer_norm passes the weight by",
        part="test-layer-norm-gradients",
        old="    g = grad * weight\n    along = np.vecdot(g, normal)[..., None] / x.shape[-1]\n    grad_x =",
        new="    g = grad\n    along = np.vecdot(g, normal)[..., None] / x.shape[-1]\n    grad_x =",
    ),
    Wrong(
        name="the slope at the weight takes the row instead of the normalized row",
        part="test-layer-norm-gradients",
        old="    return grad_x, grad * normal, grad\n",
        new="    return grad_x, grad * x, grad\n",
    ),
    Wrong(
        name="the slope at the bias is multiplied by the weight",
        part="test-layer-norm-gradients",
        old="    return grad_x, grad * normal, grad\n",
        new="    return grad_x, grad * normal, g\n",
    ),
    Wrong(
        name="the weight starts at zero",
        part="test-layer-norm-init",
        old="        self.weight = Tensor(np.ones(embed_dim), requires_grad=True)\n        self.bias",
        new="        self.weight = Tensor(np.zeros(embed_dim), requires_grad=True)\n        self.bias",
    ),
    Wrong(
        name="the bias is not learned",
        part="test-layer-norm-init",
        old="        self.bias = Tensor(np.zeros(embed_dim), requires_grad=True)\n",
        new="        self.bias = Tensor(np.zeros(embed_dim))\n",
    ),
    Wrong(
        name="forward does not pass eps on",
        part="test-layer-norm-forward",
        old="apply(layer_norm, x, self.weight, self.bias, eps=self.eps)",
        new="apply(layer_norm, x, self.weight, self.bias)",
    ),
    Wrong(
        name="forward goes around apply",
        part="test-layer-norm-forward",
        old="apply(layer_norm, x, self.weight, self.bias, eps=self.eps)",
        new="layer_norm(np.asarray(x), self.weight.data, self.bias.data, self.eps)",
    ),
    Wrong(
        name="forward does not say which shapes do not fit",
        part="test-layer-norm-forward",
        old="        if x.shape[-1:] != self.weight.shape:\n"
        '            raise ValueError(f"the norm takes {self.weight.size} features, x has shape {x.shape}")\n'
        "        return apply(layer_norm,",
        new="        return apply(layer_norm,",
    ),
    Wrong(
        name="rms_norm subtracts the mean after all",
        part="test-rms-norm",
        old="    y = rows / np.sqrt(mean_square(rows) + eps)\n",
        new="    y = x - x.mean(axis=-1, keepdims=True)\n    y /= np.sqrt(mean_square(x) + eps)\n",
    ),
    Wrong(
        name="rms_norm divides by the standard deviation",
        part="test-rms-norm",
        old="    y = rows / np.sqrt(mean_square(rows) + eps)\n",
        new="    y = x / np.sqrt(x.var(axis=-1, keepdims=True) + eps)\n",
    ),
    Wrong(
        name="rms_norm divides by the length of the row",
        part="test-rms-norm",
        old="    y = rows / np.sqrt(mean_square(rows) + eps)\n",
        new="    y = x / np.sqrt(mean_square(x) * x.shape[-1] + eps)\n",
    ),
    Wrong(
        name="rms_norm adds eps next to the root",
        part="test-rms-norm",
        old="    y = rows / np.sqrt(mean_square(rows) + eps)\n",
        new="    y = x / (np.sqrt(mean_square(x)) + eps)\n",
    ),
    Wrong(
        name="rms_norm works in the array that came in",
        part="test-rms-norm",
        old="    y = rows / np.sqrt(mean_square(rows) + eps)\n",
        new="    y = x\n    y /= np.sqrt(mean_square(x) + eps)\n",
    ),
    Wrong(
        name="the gradient of rms_norm treats the root as a constant",
        part="test-rms-norm-gradients",
        old="    return (g - normal * along) / root, grad * normal\n",
        new="    return g / root, grad * normal\n",
    ),
    Wrong(
        name="the gradient of rms_norm is that of layer_norm",
        part="test-rms-norm-gradients",
        old="    return (g - normal * along) / root, grad * normal\n",
        new="    return (g - g.mean(axis=-1, keepdims=True) - normal * along) / root, grad * normal\n",
    ),
    Wrong(
        name="the gradient of rms_norm sums along the row instead of averaging",
        part="test-rms-norm-gradients",
        old="    return (g - normal * along) / root, grad * normal\n",
        new="    return (g - normal * along * x.shape[-1]) / root, grad * normal\n",
    ),
    Wrong(
        name="the gradient of rms_norm passes the weight by",
        part="test-rms-norm-gradients",
        old="    g = grad * weight\n    along = np.vecdot(g, normal)[..., None] / x.shape[-1]\n    return",
        new="    g = grad\n    along = np.vecdot(g, normal)[..., None] / x.shape[-1]\n    return",
    ),
    Wrong(
        name="RMSNorm looks at the first axis",
        part="test-rms-norm-class",
        old="        if x.shape[-1:] != self.weight.shape:\n"
        '            raise ValueError(f"the norm takes {self.weight.size} features, x has shape {x.shape}")\n'
        "        return apply(rms_norm,",
        new="        if x.shape[:1] != self.weight.shape:\n"
        '            raise ValueError(f"the norm takes {self.weight.size} features, x has shape {x.shape}")\n'
        "        return apply(rms_norm,",
    ),
    Wrong(
        name="RMSNorm leaves its weight out",
        part="test-rms-norm-class",
        old="apply(rms_norm, x, self.weight, eps=self.eps)",
        new="apply(rms_norm, x, np.ones(self.weight.shape, np.float32), eps=self.eps)",
    ),
    Wrong(
        name="RMSNorm does not pass eps on",
        part="test-rms-norm-class",
        old="apply(rms_norm, x, self.weight, eps=self.eps)",
        new="apply(rms_norm, x, self.weight)",
    ),
]
