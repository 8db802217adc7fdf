"""TinyTorch with SmolLM2 as a contender."""

from time import perf_counter

import numpy as np

from memory import peak_bytes
from shapes import timed
from tinytorch.generation.kv_cache import KVCache, cache_bytes, enable_kv_cache
from tinytorch.models.llama import Llama
from tinytorch.models.transformer import stream


class Chat:
    """The model, with the cache or without. room: the tokens that the cache holds."""

    def __init__(self, file: str, cached: bool, room: int = 1024):
        started = perf_counter()
        self.model = Llama.from_gguf(file)
        self.load_seconds = perf_counter() - started
        if cached:
            sizes = self.model.num_layers, self.model.num_kv_heads, self.model.head_dim
            enable_kv_cache(self.model, KVCache(1, room, *sizes))

    def generate(self, prompt: list, new: int) -> dict:
        """A greedy generation of `new` tokens after the prompt's."""
        tokens = np.array([prompt])
        started = perf_counter()
        next_logits = self.model.decoder(1, len(prompt) + new)
        return timed(started, stream(next_logits, tokens, new, temperature=0))

    def steps(self, lengths: list) -> dict:
        """The next token after each of these lengths, all read again -> milliseconds of each."""
        tokens, milliseconds = np.arange(max(lengths))[None] + 1000, []
        for length in lengths:
            started = perf_counter()
            self.model.next_logits(tokens[:, :length]).argmax(axis=-1)
            milliseconds.append(1e3 * (perf_counter() - started))
        return {"ms": milliseconds, "ms_per_token": float(np.median(milliseconds))}

    def costs(self) -> dict:
        """Seconds that loading took; bytes of the process at its peak, of the weights, of a cached token."""
        model = self.model
        return {
            "load_seconds": self.load_seconds,
            "peak_bytes": peak_bytes(),
            "weights_bytes": sum(weight.data.nbytes for weight in model.parameters()),
            "cache_bytes_per_token": cache_bytes(1, 1, model.num_layers, model.num_kv_heads, model.head_dim),
        }
