"""Mistakes that students make in module 06."""

from wrong_answers import Wrong

UPDATE_AND_STEP = (
    "        update_moments(m, v, grad, self.beta1, self.beta2)\n"
    "        adam_step(weight, m, v, t, self.lr, self.beta1, self.beta2, self.eps)\n"
)

WRONG = [
    Wrong(
        name="the model never sees the new weight",
        part="test-sgd-step",
        old="    weight -= lr * grad\n",
        new="    weight = weight - lr * grad\n",
    ),
    Wrong(
        name="uphill",
        part="test-sgd-step",
        old="    weight -= lr * grad\n",
        new="    weight += lr * grad\n",
    ),
    Wrong(
        name="the gradient is scaled in place",
        part="test-sgd-step",
        old="    weight -= lr * grad\n",
        new="    grad *= lr\n    weight -= grad\n",
    ),
    Wrong(
        name="a velocity that is a running mean",
        part="test-accumulate",
        old="    velocity += grad\n",
        new="    velocity += (1 - momentum) * grad\n",
    ),
    Wrong(
        name="the old velocity does not fade",
        part="test-accumulate",
        old="    velocity *= momentum\n",
        new="",
    ),
    Wrong(
        name="the velocity is a new array",
        part="test-accumulate",
        old="    velocity *= momentum\n    velocity += grad\n",
        new="    velocity = momentum * velocity + grad\n",
    ),
    Wrong(
        name="the betas are exchanged",
        part="test-update-moments",
        old="    m *= beta1\n    m += (1 - beta1) * grad\n    v *= beta2\n    v += (1 - beta2)",
        new="    m *= beta2\n    m += (1 - beta2) * grad\n    v *= beta1\n    v += (1 - beta1)",
    ),
    Wrong(
        name="the square is forgotten",
        part="test-update-moments",
        old="    v += (1 - beta2) * (grad * grad)\n",
        new="    v += (1 - beta2) * np.abs(grad)\n",
    ),
    Wrong(
        name="the square of the mean instead of the mean of the squares",
        part="test-update-moments",
        old="    v += (1 - beta2) * (grad * grad)\n",
        new="    v += (1 - beta2) * (m * m)\n",
    ),
    Wrong(
        name="m as in momentum",
        part="test-update-moments",
        old="    m += (1 - beta1) * grad\n",
        new="    m += grad\n",
    ),
    Wrong(
        name="no bias correction",
        part="test-adam-step",
        old="    root *= 1 / math.sqrt(1 - beta2**t)\n    root += eps\n"
        "    weight -= (lr / (1 - beta1**t)) * m / root\n",
        new="    root += eps\n    weight -= lr * m / root\n",
    ),
    Wrong(
        name="only the mean is corrected",
        part="test-adam-step",
        old="    root *= 1 / math.sqrt(1 - beta2**t)\n",
        new="",
    ),
    Wrong(
        name="t counts from 0",
        part="test-adam-step",
        old="    root *= 1 / math.sqrt(1 - beta2**t)\n    root += eps\n"
        "    weight -= (lr / (1 - beta1**t)) * m / root\n",
        new="    t = t + 1\n    root *= 1 / math.sqrt(1 - beta2**t)\n    root += eps\n"
        "    weight -= (lr / (1 - beta1**t)) * m / root\n",
    ),
    Wrong(
        name="eps under the root",
        part="test-adam-step",
        old="    root = np.sqrt(v)\n    root *= 1 / math.sqrt(1 - beta2**t)\n    root += eps\n",
        new="    root = np.sqrt(v / (1 - beta2**t) + eps)\n",
    ),
    Wrong(
        name="eps before the correction",
        part="test-adam-step",
        old="    root *= 1 / math.sqrt(1 - beta2**t)\n    root += eps\n",
        new="    root += eps\n    root *= 1 / math.sqrt(1 - beta2**t)\n",
    ),
    Wrong(
        name="v is spoiled by its own root",
        part="test-adam-step",
        old="    root = np.sqrt(v)\n",
        new="    root = np.sqrt(v, out=v)\n",
    ),
    Wrong(
        name="all steps are counted together",
        part="test-step",
        old="            self.steps[i] += 1\n",
        new="            self.steps = [t + 1 for t in self.steps]\n",
    ),
    Wrong(
        name="t begins with 0",
        part="test-step",
        old="                self.update(weight, grad, *buffers, t=self.steps[i])\n",
        new="                self.update(weight, grad, *buffers, t=self.steps[i] - 1)\n",
    ),
    Wrong(
        name="a step for each block",
        part="test-step",
        old="            self.steps[i] += 1\n            own = [arrays[i] for arrays in self.buffers.values()]\n"
        "            for weight, grad, *buffers in in_blocks(p.data, p.grad, *own):\n",
        new="            own = [arrays[i] for arrays in self.buffers.values()]\n"
        "            for weight, grad, *buffers in in_blocks(p.data, p.grad, *own):\n"
        "                self.steps[i] += 1\n",
    ),
    Wrong(
        name="the buffers are new at every step",
        part="test-step",
        old="            own = [arrays[i] for arrays in self.buffers.values()]\n",
        new="            own = [np.zeros_like(p.data) for _ in self.buffers]\n",
    ),
    Wrong(
        name="only the first block",
        part="test-step",
        old="                self.update(weight, grad, *buffers, t=self.steps[i])\n",
        new="                self.update(weight, grad, *buffers, t=self.steps[i])\n                break\n",
    ),
    Wrong(
        name="the steps are forgotten",
        part="test-state-dict",
        old='        state["steps"] = np.array(self.steps, dtype=np.int64)\n',
        new="",
    ),
    Wrong(
        name="the settings are forgotten",
        part="test-state-dict",
        old="        state = {name: getattr(self, name) for name in self.settings}\n",
        new="        state = {}\n",
    ),
    Wrong(
        name="the settings' names as values",
        part="test-state-dict",
        old="{name: getattr(self, name) for name in self.settings}",
        new="{name: name for name in self.settings}",
    ),
    Wrong(
        name="buffers without numbers",
        part="test-state-dict",
        old='                state[f"{name}.{i}"] = array\n',
        new="                state[name] = array\n",
    ),
    Wrong(
        name="the buffers are rounded to halves",
        part="test-state-dict",
        old='                state[f"{name}.{i}"] = array\n',
        new='                state[f"{name}.{i}"] = array.astype(np.float16)\n',
    ),
    Wrong(
        name="SGD decays uphill",
        part="test-sgd",
        old="            grad = grad + self.weight_decay * weight\n        if self.momentum:\n",
        new="            grad = grad - self.weight_decay * weight\n        if self.momentum:\n",
    ),
    Wrong(
        name="SGD writes the decay into the gradient",
        part="test-sgd",
        old="            grad = grad + self.weight_decay * weight\n        if self.momentum:\n",
        new="            grad += self.weight_decay * weight\n        if self.momentum:\n",
    ),
    Wrong(
        name="the velocity is kept but not used",
        part="test-sgd",
        old="            grad = velocity\n",
        new="",
    ),
    Wrong(
        name="decay after the momentum",
        part="test-sgd",
        old="        if self.weight_decay:\n            grad = grad + self.weight_decay * weight\n"
        "        if self.momentum:\n            (velocity,) = buffers\n"
        "            accumulate(velocity, grad, self.momentum)\n            grad = velocity\n",
        new="        if self.momentum:\n            (velocity,) = buffers\n"
        "            accumulate(velocity, grad, self.momentum)\n            grad = velocity\n"
        "        if self.weight_decay:\n            grad = grad + self.weight_decay * weight\n",
    ),
    Wrong(
        name="Adam decays outside of the gradient",
        part="test-adam",
        old="        if self.weight_decay:\n            grad = grad + self.weight_decay * weight\n"
        + UPDATE_AND_STEP,
        new="        weight *= 1 - self.lr * self.weight_decay\n" + UPDATE_AND_STEP,
    ),
    Wrong(
        name="Adam writes the decay into the gradient",
        part="test-adam",
        old="            grad = grad + self.weight_decay * weight\n        update_moments",
        new="            grad += self.weight_decay * weight\n        update_moments",
    ),
    Wrong(
        name="Adam decays the sign only",
        part="test-adam",
        old="            grad = grad + self.weight_decay * weight\n        update_moments",
        new="            grad = grad + self.weight_decay * np.sign(weight)\n        update_moments",
    ),
    Wrong(
        name="AdamW is Adam",
        part="test-adamw",
        old="        weight *= 1 - self.lr * self.weight_decay\n",
        new="        grad = grad + self.weight_decay * weight\n",
    ),
    Wrong(
        name="AdamW decays without lr",
        part="test-adamw",
        old="        weight *= 1 - self.lr * self.weight_decay\n",
        new="        weight *= 1 - self.weight_decay\n",
    ),
    Wrong(
        name="AdamW decays after the step",
        part="test-adamw",
        old="        weight *= 1 - self.lr * self.weight_decay\n" + UPDATE_AND_STEP,
        new=UPDATE_AND_STEP + "        weight *= 1 - self.lr * self.weight_decay\n",
    ),
    Wrong(
        name="each gradient is clipped by its own norm",
        part="test-clip-grad-norm",
        old="        for grad in grads.values():\n            grad *= max_norm / norm\n",
        new="        for i, grad in grads.items():\n"
        "            grad *= min(1.0, max_norm / math.sqrt(squares[i] or 1.0))\n",
    ),
    Wrong(
        name="short gradients are stretched",
        part="test-clip-grad-norm",
        old="    if norm > max_norm:\n",
        new="    if norm and max_norm < math.inf:\n",
    ),
    Wrong(
        name="every entry is clipped",
        part="test-clip-grad-norm",
        old="            grad *= max_norm / norm\n",
        new="            np.clip(grad, -max_norm, max_norm, out=grad)\n",
    ),
    Wrong(
        name="the norm after clipping",
        part="test-clip-grad-norm",
        old="    return norm\n",
        new="    return min(norm, max_norm)\n",
    ),
    Wrong(
        name="the root is forgotten",
        part="test-clip-grad-norm",
        old="    norm = math.sqrt(sum(squares.values()))\n",
        new="    norm = sum(squares.values())\n",
    ),
    Wrong(
        name="nan passes in silence",
        part="test-clip-grad-norm",
        old="    if not math.isfinite(norm):\n",
        new="    if norm == math.inf:\n",
    ),
    Wrong(
        name="a max_norm of 0",
        part="test-clip-grad-norm",
        old="    if not max_norm > 0:\n",
        new="    if max_norm < 0:\n",
    ),
]
