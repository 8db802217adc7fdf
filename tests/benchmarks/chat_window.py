"""SmolLM2 on a cache that forgets: what a long text costs, and what it does to the model."""

from time import perf_counter

import numpy as np

from memory import peak_bytes
from tinytorch.generation.kv_cache import KVCache, enable_kv_cache
from tinytorch.generation.window import SlidingWindowKVCache, more_positions
from tinytorch.models.llama import Llama
from tinytorch.models.transformer import stream

PIECE = 64  # tokens read in one call


def surprise(logits: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """(T, V), (T,) -> (T,): minus the log probability of each target, in nats."""
    logits = logits.astype(np.float64)
    logits -= logits.max(axis=-1, keepdims=True)
    return np.log(np.exp(logits).sum(axis=-1)) - logits[np.arange(len(targets)), targets]


class Reader:
    """The model with room for `room` tokens. window None: the plain cache; near: positions in the cache."""

    def __init__(self, file: str, room: int, window: int | None, sinks: int = 0, near: bool = False):
        self.model = model = Llama.from_gguf(file)
        more_positions(model, max(room, model.max_seq_len))
        sizes = 1, room, model.num_layers, model.num_kv_heads, model.head_dim
        if window is None:
            self.cache = KVCache(*sizes)
        else:
            rotary = model.position_embedding if near else None
            self.cache = SlidingWindowKVCache(*sizes, window, sinks, rotary=rotary)
        enable_kv_cache(model, self.cache)

    def write(self, prompt: list, new: int, full: int, ends: int) -> dict:
        """`new` tokens drawn after the prompt. full: when the cache is; ends: tokens of a median at each end.

        -> of the first and of the last `ends` steps after the cache is full: ms per token, the cache's bytes,
        and the most that the process ever held up to there.
        """
        seconds, at_ends = [], []
        next_logits = self.model.decoder(1, len(prompt) + new)
        before = perf_counter()
        for _ in stream(next_logits, np.array([prompt]), new, temperature=1.0, rng=0):
            now = perf_counter()
            seconds.append(now - before)
            length = len(prompt) + len(seconds)
            if length in (full + ends, len(prompt) + new):
                taken = 1e3 * np.array(seconds[-ends:])
                at_ends.append(
                    {
                        "from": length - ends,
                        "to": length,
                        "ms_per_token": float(np.median(taken)),
                        "cache_bytes": self.cache.nbytes,
                        "peak_bytes": peak_bytes(),
                    }
                )
            before = perf_counter()
        first, last = at_ends
        growth = last["ms_per_token"] / first["ms_per_token"]
        rate = new / sum(seconds)
        return {"first": first, "last": last, "last_over_first": growth, "tokens_per_second": rate}

    def read(self, tokens: list, block: int) -> dict:
        """The perplexity of each block of the text, and the cache's bytes."""
        tokens, surprises = np.array(tokens), []
        self.cache.reset()
        for start in range(0, len(tokens) - 1, PIECE):
            stop = min(start + PIECE, len(tokens) - 1)
            logits = self.model(tokens[None, start:stop]).data[0]
            surprises.append(surprise(logits, tokens[start + 1 : stop + 1]))
        surprises = np.concatenate(surprises)
        blocks = [surprises[start : start + block] for start in range(0, len(surprises) - block + 1, block)]
        return {
            "perplexity": [float(f"{np.exp(part.mean()):.4g}") for part in blocks],
            "cache_bytes": self.cache.nbytes,
        }
