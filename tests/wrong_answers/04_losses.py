"""Mistakes that students make in module 04."""

from wrong_answers import Wrong

WRONG = [
    Wrong(
        name="the shapes are not compared",
        part="test-mse",
        old="        if prediction.shape != target.shape:\n",
        new="        if False:\n",
    ),
    Wrong(
        name="the sizes are compared instead of the shapes",
        part="test-mse",
        old="        if prediction.shape != target.shape:\n",
        new="        if prediction.size != target.size:\n",
    ),
    Wrong(
        name="the squares are summed, not averaged",
        part="test-mse",
        old="return (difference * difference).mean()",
        new="return (difference * difference).sum()",
    ),
    Wrong(
        name="the mean is taken before the square",
        part="test-mse",
        old="return (difference * difference).mean()",
        new="return difference.mean() * difference.mean()",
    ),
    Wrong(
        name="the differences are not squared",
        part="test-mse",
        old="return (difference * difference).mean()",
        new="return (difference * difference).sqrt().mean()",
    ),
    Wrong(
        name="the mean squared error is halved",
        part="test-mse",
        old="return (difference * difference).mean()",
        new="return (difference * difference).mean() / 2",
    ),
    Wrong(
        name="log_softmax overflows",
        part="test-log-softmax",
        old="    shifted = x - x.max(axis=axis, keepdims=True)\n",
        new="    shifted = x\n",
    ),
    Wrong(
        name="log_softmax passes by the probabilities",
        part="test-log-softmax",
        old="    return shifted - np.log(np.exp(shifted).sum(axis=axis, keepdims=True))\n",
        new="    with np.errstate(divide='ignore'):\n"
        "        return np.log(np.exp(shifted) / np.exp(shifted).sum(axis=axis, keepdims=True))\n",
    ),
    Wrong(
        name="log_softmax adds a small number inside the logarithm",
        part="test-log-softmax",
        old="    return shifted - np.log(np.exp(shifted).sum(axis=axis, keepdims=True))\n",
        new="    return np.log(np.exp(shifted) / np.exp(shifted).sum(axis=axis, keepdims=True) + 1e-12)\n",
    ),
    Wrong(
        name="log_softmax rounds the logarithm of the sum before it is subtracted",
        part="test-log-softmax",
        old="    return shifted - np.log(np.exp(shifted).sum(axis=axis, keepdims=True))\n",
        new="    top = x.max(axis=axis, keepdims=True)\n"
        "    return x - (top + np.log(np.exp(shifted).sum(axis=axis, keepdims=True)))\n",
    ),
    Wrong(
        name="log_softmax forgets the axis in the sum",
        part="test-log-softmax",
        old="np.log(np.exp(shifted).sum(axis=axis, keepdims=True))",
        new="np.log(np.exp(shifted).sum(axis=-1, keepdims=True))",
    ),
    Wrong(
        name="log_softmax shifts in place",
        part="test-log-softmax",
        old="    shifted = x - x.max(axis=axis, keepdims=True)\n",
        new="    shifted = x\n    shifted -= x.max(axis=axis, keepdims=True)\n",
    ),
    Wrong(
        name="the mean counts the positions that are ignored",
        part="test-cross-entropy",
        old="    return -log_softmax(rows)[np.arange(len(rows)), targets].mean()\n",
        new="    return -log_softmax(rows)[np.arange(len(rows)), targets].sum() / (logits.size // logits.shape[-1])\n",
    ),
    Wrong(
        name="ignored positions are not left out",
        part="test-cross-entropy",
        old="    counted = np.flatnonzero(targets != ignore_index)\n",
        new="    counted = np.arange(len(targets))\n",
    ),
    Wrong(
        name="ignore_index is always -100",
        part="test-cross-entropy",
        old="    counted = np.flatnonzero(targets != ignore_index)\n",
        new="    counted = np.flatnonzero(targets != -100)\n",
    ),
    Wrong(
        name="every row pays for every target",
        part="test-cross-entropy",
        old="log_softmax(rows)[np.arange(len(rows)), targets]",
        new="log_softmax(rows)[:, targets]",
    ),
    Wrong(
        name="the sign of the surprise is wrong",
        part="test-cross-entropy",
        old="    return -log_softmax(rows)",
        new="    return log_softmax(rows)",
    ),
    Wrong(
        name="the softmax runs over all rows together",
        part="test-cross-entropy",
        old="log_softmax(rows)[",
        new="log_softmax(rows, axis=0)[",
    ),
    Wrong(
        name="the surprises are summed, not averaged",
        part="test-cross-entropy",
        old="targets].mean()",
        new="targets].sum()",
    ),
    Wrong(
        name="negative targets count from the end",
        part="test-check-targets",
        old="(counted < 0) | (counted >= logits_shape[-1])",
        new="counted >= logits_shape[-1]",
    ),
    Wrong(
        name="a target as large as the vocabulary passes",
        part="test-check-targets",
        old="(counted >= logits_shape[-1])",
        new="(counted > logits_shape[-1])",
    ),
    Wrong(
        name="ignored targets are checked too",
        part="test-check-targets",
        old="    wrong = counted[(counted < 0) | (counted >= logits_shape[-1])]\n",
        new="    wrong = targets[(targets < 0) | (targets >= logits_shape[-1])]\n",
    ),
    Wrong(
        name="flat targets for batched logits pass",
        part="test-check-targets",
        old="targets.shape != tuple(logits_shape[:-1]):",
        new="targets.size != math.prod(logits_shape[:-1]):",
    ),
    Wrong(
        name="floats pass as targets",
        part="test-check-targets",
        old='if targets.dtype.kind not in "iu":',
        new='if targets.dtype.kind not in "iuf":',
    ),
    Wrong(
        name="booleans pass as targets",
        part="test-check-targets",
        old='if targets.dtype.kind not in "iu":',
        new='if targets.dtype.kind == "f":',
    ),
    Wrong(
        name="a batch in which nothing counts passes",
        part="test-check-targets",
        old="    if counted.size == 0:\n",
        new="    if targets.size == 0:\n",
    ),
    Wrong(
        name="the loss does not check its targets",
        part="test-cross-entropy-loss",
        old="        targets = check_targets(targets, np.shape(logits), self.ignore_index)\n",
        new="        targets = as_array(targets)\n",
    ),
    Wrong(
        name="the loss goes around apply",
        part="test-cross-entropy-loss",
        old="return apply(cross_entropy, logits, targets, ignore_index=self.ignore_index)",
        new="return Tensor(cross_entropy(np.asarray(logits), targets, self.ignore_index))",
    ),
    Wrong(
        name="the loss does not pass ignore_index on",
        part="test-cross-entropy-loss",
        old="return apply(cross_entropy, logits, targets, ignore_index=self.ignore_index)",
        new="return apply(cross_entropy, logits, targets)",
    ),
    Wrong(
        name="the loss cuts the logits off from what they were made of",
        part="test-cross-entropy-loss",
        old="return apply(cross_entropy, logits, targets, ignore_index=self.ignore_index)",
        new="return apply(cross_entropy, as_array(logits), targets, ignore_index=self.ignore_index)",
    ),
    Wrong(
        name="chance is one over the vocabulary",
        part="test-chance-loss",
        old="    return math.log(vocab_size)\n",
        new="    return 1 / vocab_size\n",
    ),
    Wrong(
        name="chance is measured in bits",
        part="test-chance-loss",
        old="    return math.log(vocab_size)\n",
        new="    return math.log2(vocab_size)\n",
    ),
    Wrong(
        name="perplexity is a power of two",
        part="test-perplexity",
        old="        return math.exp(loss)\n",
        new="        return 2.0**loss\n",
    ),
    Wrong(
        name="perplexity stops the run when it is too large",
        part="test-perplexity",
        old="    except OverflowError:\n        return math.inf\n",
        new="    except ValueError:\n        return math.inf\n",
    ),
    Wrong(
        name="a negative loss has a perplexity",
        part="test-perplexity",
        old="    if loss < 0:\n",
        new="    if loss == -math.inf:\n",
    ),
]
