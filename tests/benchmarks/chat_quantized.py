"""TinyTorch with SmolLM2 and caches of 32, 16, 8 and 4 bits as contenders, all in one process."""

from time import perf_counter

import numpy as np

from tinytorch.generation.kv_cache import KVCache, disable_kv_cache, enable_kv_cache
from tinytorch.generation.quantized import QuantizedKVCache
from tinytorch.models.llama import Llama
from tinytorch.models.transformer import stream

BITS = {"float16": 16, "int8": 8, "int4": 4}


def losses_of(logits, targets) -> np.ndarray:
    """(T, V), (T,) -> (T,): minus the log probability of each target."""
    shifted = logits - logits.max(axis=-1, keepdims=True)
    return np.log(np.exp(shifted).sum(axis=-1)) - shifted[np.arange(len(targets)), targets]


class Caches:
    """One model, and a cache of each kind that takes its turn in front of it."""

    def __init__(self, file: str):
        self.model = Llama.from_gguf(file)
        self.held = {}  # for `steps`: name -> the cache with its text

    def new_caches(self, max_seq_len: int) -> dict:
        """-> name -> an empty cache with default arguments, the plain one first."""
        sizes = 1, max_seq_len, self.model.num_layers, self.model.num_kv_heads, self.model.head_dim
        quantized = {name: QuantizedKVCache(*sizes, bits=bits) for name, bits in BITS.items()}
        return {"plain": KVCache(*sizes), **quantized}

    def read(self, cache, tokens) -> np.ndarray:
        """(T,) new tokens -> their logits (T, V), through `cache`, which is taken off again."""
        enable_kv_cache(self.model, cache)
        logits = self.model(np.asarray(tokens)[None]).data[0]
        disable_kv_cache(self.model)
        return logits

    def sizes(self, max_seq_len: int) -> dict:
        """name -> bytes of a cache for so many tokens."""
        return {name: cache.nbytes for name, cache in self.new_caches(max_seq_len).items()}

    def quality(self, tokens: list, piece: int) -> dict:
        """The text read in pieces -> name -> perplexity, largest logit error, share of equal best guesses."""
        caches = self.new_caches(len(tokens))
        kept = {name: {"losses": [], "error": 0.0, "same": 0} for name in caches}
        for start in range(0, len(tokens) - 1, piece):
            part = tokens[start : min(start + piece, len(tokens) - 1)]
            targets = tokens[start + 1 : start + 1 + len(part)]
            for name, cache in caches.items():
                logits = self.read(cache, part)
                if name == "plain":
                    plain = logits
                of = kept[name]
                of["losses"].extend(losses_of(logits, targets).tolist())
                of["error"] = max(of["error"], float(np.abs(logits - plain).max()))
                of["same"] += int((logits.argmax(axis=-1) == plain.argmax(axis=-1)).sum())
        return {
            name: {
                "perplexity": float(np.exp(np.mean(of["losses"]))),
                "largest_logit_error": of["error"],
                "same_best_guess": of["same"] / len(of["losses"]),
            }
            for name, of in kept.items()
        }

    def write(self, prompt: list, new: int) -> dict:
        """name -> how many greedy tokens are the plain cache's, until the first that is not."""
        texts = {}
        for name, cache in self.new_caches(len(prompt) + new).items():
            enable_kv_cache(self.model, cache)
            next_logits = self.model.decoder(1, len(prompt) + new)
            tokens = stream(next_logits, np.array([prompt]), new, temperature=0)
            texts[name] = np.array([column[0] for column in tokens])
            disable_kv_cache(self.model)
        same = {name: text == texts["plain"] for name, text in texts.items()}
        return {name: int(s.argmin()) if not s.all() else new for name, s in same.items()}

    def fill(self, tokens: list, piece: int, room: int) -> dict:
        """Read the text into a cache of each kind, for `steps`; room: the tokens that will come on top."""
        self.held = self.new_caches(len(tokens) + room)
        for start in range(0, len(tokens), piece):
            for cache in self.held.values():
                self.read(cache, tokens[start : start + piece])
        return {"tokens": len(tokens)}

    def steps(self, name: str, steps: int) -> dict:
        """Some tokens after the text that `fill` read -> milliseconds of each; the cache is as before."""
        cache, milliseconds = self.held[name], []
        length = cache.seq_pos
        enable_kv_cache(self.model, cache)
        for token in range(1000, 1000 + steps):
            started = perf_counter()
            self.model.next_logits(np.array([[token]])).argmax(axis=-1)
            milliseconds.append(1e3 * (perf_counter() - started))
        cache.truncate(length)
        disable_kv_cache(self.model)
        median = float(np.median(milliseconds))
        return {"ms_per_token": median, "tokens_per_second": 1e3 / median}
