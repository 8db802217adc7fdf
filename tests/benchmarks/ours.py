"""TinyTorch as a contender: with the cache, without it, and in training."""

from time import perf_counter

import numpy as np

from shapes import SHAPES, text, timed
from tinytorch.core.optimizers import AdamW
from tinytorch.core.training import Trainer
from tinytorch.generation.kv_cache import enable_kv_cache
from tinytorch.models.transformer import GPT, stream


class Generation:
    """What a model does with and without its cache."""

    def __init__(self, shape: str, max_seq_len: int = 1024):
        self.shape = shape
        self.model = GPT(*SHAPES[shape], max_seq_len, seed=0)

    def generate(self, prompt: int, new: int) -> dict:
        """A greedy generation of `new` tokens after `prompt` given ones."""
        started = perf_counter()
        next_logits = self.model.decoder(1, prompt + new)
        return timed(started, stream(next_logits, text(self.shape, prompt), new, temperature=0))

    def begin(self, prompt: int, new: int) -> dict:
        """The same in pieces: nothing is generated yet."""
        next_logits = self.model.decoder(1, prompt + new)
        self.coming = stream(next_logits, text(self.shape, prompt), new, temperature=0)
        return {}

    def go_on(self, tokens: int) -> dict:
        """Generate so many more -> seconds of each."""
        seconds = []
        for _ in range(tokens):
            started = perf_counter()
            next(self.coming)
            seconds.append(perf_counter() - started)
        return {"seconds": seconds}


class Uncached(Generation):
    """A model that reads the whole text again for each token."""

    def steps(self, lengths: list) -> dict:
        """The next token after each of these lengths -> milliseconds of each."""
        tokens, milliseconds = text(self.shape, max(lengths)), []
        for length in lengths:
            started = perf_counter()
            self.model.next_logits(tokens[:, :length]).argmax(axis=-1)
            milliseconds.append(1e3 * (perf_counter() - started))
        return {"ms": milliseconds, "ms_per_token": float(np.median(milliseconds))}

    def logits(self, length: int, file: str) -> dict:
        """All logits of a text, (length, V), into a .npy file."""
        np.save(file, self.model(text(self.shape, length)).data[0])
        return {}


class Cached(Generation):
    """The same model with its KV cache."""

    def __init__(self, shape: str, max_seq_len: int = 1024):
        super().__init__(shape, max_seq_len)
        self.cache = enable_kv_cache(self.model)

    def fill(self, context: int, batch: int) -> None:
        """Put `context` made-up keys and values of each row into the cache, by its own methods."""
        self.cache.reset(batch)
        shape = (batch, self.cache.num_heads, context, self.cache.head_dim)
        block = np.random.default_rng(0).standard_normal(shape, dtype=np.float32)
        for layer in range(self.cache.num_layers):
            self.cache.update(layer, block, block)
        self.cache.advance(context)

    def decode(self, context: int, new: int, batch: int = 1) -> dict:
        """`new` tokens a row, one after the other, the first of them after `context` cached ones."""
        self.fill(context - 1, batch)
        first = text(self.shape, 1, batch)
        return timed(perf_counter(), stream(self.model.next_logits, first, new, temperature=0))

    def logits(self, length: int, file: str, prompt: int = 16) -> dict:
        """All logits of a text, read as a prompt and then token by token, into a .npy file."""
        tokens = text(self.shape, length)
        self.cache.reset(1)
        pieces = np.split(tokens, range(prompt, length), axis=1)
        np.save(file, np.concatenate([self.model(piece).data[0] for piece in pieces]))
        return {}


class Training:
    """The chat model's training step, as in milestones/05_2017_transformer/train_chat.py."""

    def __init__(self, shape: str, batch: int, context: int):
        model = GPT(*SHAPES[shape], context, seed=0)
        self.tokens = text(shape, context + 1, batch)
        self.trainer = Trainer(model, AdamW(model.parameters(), lr=3e-3, weight_decay=0.1), max_norm=1.0)

    def train(self, steps: int) -> dict:
        """Some steps on the same batch -> tokens per second and the losses."""
        started = perf_counter()
        losses = [self.trainer.step(self.tokens[:, :-1], self.tokens[:, 1:]) for _ in range(steps)]
        seconds = perf_counter() - started
        return {"tokens_per_second": steps * self.tokens[:, 1:].size / seconds, "losses": losses}
