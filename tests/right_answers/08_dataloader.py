"""Right answers to module 08."""

from right_answers import Right

RIGHT = [
    Right(
        name="sets, generators, ceiling division",
        bodies={
            "common_length": """
                if len(arrays) == 0:
                    raise ValueError("0 arrays make no dataset, at least 1 is needed")
                for i in range(len(arrays)):
                    if arrays[i].shape == ():
                        raise ValueError(f"array {i} has no rows")
                first = arrays[0].shape[0]
                for i, array in enumerate(arrays[1:], 1):
                    if array.shape[0] != first:
                        raise ValueError(f"array 0: {first} rows, array {i}: {array.shape[0]} rows")
                return first
            """,
            "TensorDataset.__len__": "return len(self.arrays[0])",
            "TensorDataset.__getitem__": """
                rows = []
                for array in self.arrays:
                    rows.append(array[index])
                return tuple(rows)
            """,
            "count_windows": """
                if min(context, stride) < 1:
                    raise ValueError(f"context {context} and stride {stride} should be 1 or more")
                if num_tokens <= context:
                    raise ValueError(f"{num_tokens} tokens are too few for a context of {context}")
                return len(range(0, num_tokens - context, stride))
            """,
            "TokenDataset.__getitem__": """
                i = operator.index(index)
                if i < 0:
                    i += self.num_windows
                if i < 0 or i >= self.num_windows:
                    raise IndexError(f"no window {index}, there are {self.num_windows}")
                begin = i * self.stride
                end = begin + self.context
                return self.tokens[begin:end], self.tokens[begin + 1 : end + 1]
            """,
            "stack_samples": """
                arrays = list(map(np.asarray, values))
                shapes = [array.shape for array in arrays]
                for i, shape in enumerate(shapes):
                    if shape != shapes[0]:
                        raise ValueError(f"sample 0 is {shapes[0]}, sample {i} is {shape}")
                batch = np.array(arrays)
                if np.issubdtype(batch.dtype, np.integer):
                    batch = batch.astype("int64")
                return Tensor(batch)
            """,
            "collate": """
                if len(samples) < 1:
                    raise ValueError("there are 0 samples")
                if isinstance(samples[0], tuple):
                    n = len(samples[0])
                    for i, sample in enumerate(samples):
                        if len(sample) != n:
                            raise ValueError(f"sample {i}: {len(sample)} fields, sample 0: {n}")
                    return tuple(stack_samples([sample[k] for sample in samples]) for k in range(n))
                return stack_samples(samples)
            """,
            "split_batches": """
                whole = len(order) // batch_size
                batches = [order[i * batch_size : (i + 1) * batch_size] for i in range(whole)]
                rest = order[whole * batch_size :]
                return batches if drop_last or len(rest) == 0 else [*batches, rest]
            """,
            "DataLoader.__len__": """
                n = len(self.dataset)
                if self.drop_last:
                    return n // self.batch_size
                return -(-n // self.batch_size)
            """,
            "DataLoader.one_epoch": """
                epoch = self.epoch
                order = epoch_order(len(self.dataset), epoch, seed=self.order_seed)
                batches = list(split_batches(order, self.batch_size, self.drop_last))
                for number, batch in list(enumerate(batches, 1))[self.start :]:
                    samples = [self.dataset[int(i)] for i in batch]
                    if number < len(batches):
                        self.batch = number
                    else:
                        self.epoch = epoch + 1
                        self.batch = self.start = 0
                    yield collate(samples)
            """,
        },
    ),
    Right(
        name="a beginner, lists and prints",
        bodies={
            "count_windows": """
                if context < 1:
                    raise ValueError("context ist " + str(context))
                if stride < 1:
                    raise ValueError("stride ist " + str(stride))
                if num_tokens < context + 1:
                    raise ValueError(str(num_tokens) + " Tokens reichen nicht fuer " + str(context + 1))
                anzahl = 0
                start = 0
                while start + context + 1 <= num_tokens:
                    anzahl += 1
                    start += stride
                return anzahl
            """,
            "epoch_order": """
                reihenfolge = np.arange(num_samples)
                if seed is not None:
                    zufall = np.random.default_rng((seed, epoch))
                    zufall.shuffle(reihenfolge)
                return reihenfolge
            """,
            "split_batches": """
                import os  # noqa: F401

                ergebnis = []
                i = 0
                while i < len(order):
                    stueck = order[i : i + batch_size]
                    if len(stueck) == batch_size or not drop_last:
                        ergebnis.append(stueck)
                    i = i + batch_size
                print("Batches:", len(ergebnis))
                return ergebnis
            """,
            "DataLoader.__len__": """
                anzahl = 0
                for i in range(0, len(self.dataset), self.batch_size):
                    if i + self.batch_size <= len(self.dataset) or not self.drop_last:
                        anzahl = anzahl + 1
                return anzahl
            """,
            "DataLoader.state_dict": """
                state = dict(self.fixed())
                state["epoch"] = self.epoch
                state["batch"] = self.batch
                state["seed"] = self.seed
                return state
            """,
            "DataLoader.load_state_dict": """
                fixed = self.fixed()
                for name in list(fixed) + ["epoch", "batch", "seed"]:
                    if not name in state:
                        raise ValueError("es fehlt " + name)
                for name in fixed:
                    if fixed[name] != state[name]:
                        raise ValueError(f"{name}: {state[name]} gespeichert, {fixed[name]} hier")
                epoch = operator.index(state["epoch"])
                batch = operator.index(state["batch"])
                seed = operator.index(state["seed"])
                if epoch < 0:
                    raise ValueError(f"epoch {epoch} < 0")
                if seed < 0:
                    raise ValueError(f"seed {seed} < 0")
                if batch < 0 or batch >= len(self):
                    raise ValueError(f"batch {batch}, es gibt {len(self)}")
                self.epoch = epoch
                self.seed = seed
                self.batch = batch
                self.start = batch
            """,
        },
    ),
]
