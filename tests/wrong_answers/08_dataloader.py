"""Plausible mistakes in module 08, each with the part that must catch it."""

from wrong_answers import Wrong

WRONG = [
    Wrong(
        name="lengths are not compared",
        part="test-common-length",
        old="if len(array) != len(arrays[0]):",
        new="if array.ndim < 0:",
    ),
    Wrong(
        name="only a shorter array is refused",
        part="test-common-length",
        old="if len(array) != len(arrays[0]):",
        new="if len(array) < len(arrays[0]):",
    ),
    Wrong(
        name="no array is no mistake",
        part="test-common-length",
        old='        raise ValueError("a dataset needs at least 1 array, it was given 0")',
        new="        return 0",
    ),
    Wrong(
        name="a sample is a copy of its rows",
        part="test-tensor-dataset",
        old="return tuple(array[index] for array in self.arrays)",
        new="return tuple(array[index].copy() for array in self.arrays)",
    ),
    Wrong(
        name="the number of samples is the number of arrays",
        part="test-tensor-dataset",
        old="        return self.length\n",
        new="        return len(self.arrays)\n",
    ),
    Wrong(
        name="a column instead of a row",
        part="test-tensor-dataset",
        old="return tuple(array[index] for array in self.arrays)",
        new="return tuple(array[..., index] for array in self.arrays)",
    ),
    Wrong(
        name="the token to predict is forgotten",
        part="test-count-windows",
        old="last_start = num_tokens - (context + 1)",
        new="last_start = num_tokens - context",
    ),
    Wrong(
        name="the first window is forgotten",
        part="test-count-windows",
        old="return last_start // stride + 1",
        new="return last_start // stride",
    ),
    Wrong(
        name="too few tokens are zero windows",
        part="test-count-windows",
        old='raise ValueError(f"context {context} needs at least {context + 1} tokens, there are {num_tokens}")',
        new="return 0",
    ),
    Wrong(
        name="the targets are the inputs",
        part="test-token-dataset",
        old="return window[:-1], window[1:]",
        new="return window[:-1], window[:-1]",
    ),
    Wrong(
        name="the stride is forgotten",
        part="test-token-dataset",
        old="start = index % len(self) * self.stride",
        new="start = index % len(self)",
    ),
    Wrong(
        name="a window past the end comes back short",
        part="test-token-dataset",
        old='            raise IndexError(f"window {index} does not exist, there are {len(self)}")',
        new="            return self.tokens[index * self.stride :], self.tokens[index * self.stride + 1 :]",
    ),
    Wrong(
        name="an index past the end starts again at the beginning",
        part="test-token-dataset",
        old="        if not -len(self) <= index < len(self):\n"
        '            raise IndexError(f"window {index} does not exist, there are {len(self)}")\n',
        new="",
    ),
    Wrong(
        name="ids of 16 bits stay in 16 bits",
        part="test-stack-samples",
        old='return Tensor(batch.astype(np.int64) if batch.dtype.kind in "iu" else batch)',
        new="return Tensor(batch)",
    ),
    Wrong(
        name="samples are joined end to end",
        part="test-stack-samples",
        old="batch = np.stack(arrays)",
        new="batch = np.concatenate([np.atleast_1d(array) for array in arrays])",
    ),
    Wrong(
        name="samples are stacked along the last axis",
        part="test-stack-samples",
        old="batch = np.stack(arrays)",
        new="batch = np.stack(arrays, axis=-1)",
    ),
    Wrong(
        name="samples of different shapes are broadcast",
        part="test-stack-samples",
        old="    for place, array in enumerate(arrays):\n        if array.shape != arrays[0].shape:",
        new="    arrays = np.broadcast_arrays(*arrays)\n"
        "    for place, array in enumerate(arrays):\n        if array.shape != arrays[0].shape:",
    ),
    Wrong(
        name="fields of all samples are one long list",
        part="test-collate",
        old="return tuple(stack_samples(field) for field in zip(*samples, strict=True))",
        new="return tuple(stack_samples(sample) for sample in samples)",
    ),
    Wrong(
        name="a field that one sample lacks is dropped for all",
        part="test-collate",
        old="for place, sample in enumerate(samples):\n        if len(sample) != len(samples[0]):",
        new="samples = list(zip(*zip(*samples, strict=False), strict=True))\n"
        "    for place, sample in enumerate(samples):\n        if len(sample) != len(samples[0]):",
    ),
    Wrong(
        name="every epoch has the same order",
        part="test-epoch-order",
        old="np.random.default_rng([seed, epoch])",
        new="np.random.default_rng(seed)",
    ),
    Wrong(
        name="seed and epoch are added",
        part="test-epoch-order",
        old="np.random.default_rng([seed, epoch])",
        new="np.random.default_rng(seed + epoch)",
    ),
    Wrong(
        name="the order cannot be had again",
        part="test-epoch-order",
        old="np.random.default_rng([seed, epoch])",
        new="np.random.default_rng()",
    ),
    Wrong(
        name="seed 0 does not shuffle",
        part="test-epoch-order",
        old="    if seed is None:\n        return np.arange(num_samples)",
        new="    if not seed:\n        return np.arange(num_samples)",
    ),
    Wrong(
        name="samples are drawn with replacement",
        part="test-epoch-order",
        old=".permutation(num_samples)",
        new=".integers(0, max(num_samples, 1), num_samples)",
    ),
    Wrong(
        name="the last batch is dropped even if it is full",
        part="test-split-batches",
        old="if drop_last and batches and len(batches[-1]) < batch_size:",
        new="if drop_last and batches:",
    ),
    Wrong(
        name="the short batch is always dropped",
        part="test-split-batches",
        old="if drop_last and batches and len(batches[-1]) < batch_size:",
        new="if batches and len(batches[-1]) < batch_size:",
    ),
    Wrong(
        name="the short batch is not counted",
        part="test-loader-len",
        old="return whole + (rest > 0 and not self.drop_last)",
        new="return whole",
    ),
    Wrong(
        name="a full last batch is counted twice",
        part="test-loader-len",
        old="return whole + (rest > 0 and not self.drop_last)",
        new="return whole + (not self.drop_last)",
    ),
    Wrong(
        name="the epoch is never counted up",
        part="test-loader-iter",
        old="self.epoch, self.batch, self.start = self.epoch + 1, 0, 0",
        new="self.epoch, self.batch, self.start = self.epoch, 0, 0",
    ),
    Wrong(
        name="a loaded state is not heeded",
        part="test-loader-iter",
        old="for number in range(self.start, len(batches)):",
        new="for number in range(len(batches)):",
    ),
    Wrong(
        name="every epoch after a resumption begins in the middle",
        part="test-loader-iter",
        old="self.epoch, self.batch, self.start = self.epoch + 1, 0, 0",
        new="self.epoch, self.batch = self.epoch + 1, 0",
    ),
    Wrong(
        name="a batch is counted only after it was used",
        part="test-loader-iter",
        old="            self.batch = number + 1\n",
        new="            yield collate([self.dataset[i] for i in batches[number].tolist()])\n"
        "            self.batch = number + 1\n"
        "            if self.batch < len(batches):\n                continue\n"
        "            self.epoch, self.batch, self.start = self.epoch + 1, 0, 0\n            return\n",
    ),
    Wrong(
        name="a loader that should not shuffle does",
        part="test-loader-iter",
        old="order = epoch_order(len(self.dataset), self.epoch, self.order_seed)",
        new="order = epoch_order(len(self.dataset), self.epoch, self.seed)",
    ),
    Wrong(
        name="the position points behind the last batch",
        part="test-loader-iter",
        old="self.epoch, self.batch, self.start = self.epoch + 1, 0, 0",
        new="self.epoch, self.start = self.epoch + 1, 0",
    ),
    Wrong(
        name="the state does not say for what it is valid",
        part="test-loader-state",
        old='"seed": self.seed, **self.fixed()}',
        new='"seed": self.seed}',
    ),
    Wrong(
        name="the seed of the state is not taken over",
        part="test-loader-state",
        old="self.epoch, self.seed = epoch, seed",
        new="self.epoch = epoch",
    ),
    Wrong(
        name="the epoch is set before the state is checked",
        part="test-loader-state",
        old="        for name, value in self.fixed().items():\n            if state[name] != value:",
        new='        self.epoch = operator.index(state["epoch"])\n'
        "        for name, value in self.fixed().items():\n            if state[name] != value:",
    ),
    Wrong(
        name="a state of other data is accepted",
        part="test-loader-state",
        old="            if state[name] != value:",
        new="            if state[name] < 0:",
    ),
]
