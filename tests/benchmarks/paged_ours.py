"""Conversations with SmolLM2, on plain caches or on one pool of blocks."""

from time import perf_counter

import numpy as np

from tinytorch.generation.kv_cache import KVCache, disable_kv_cache, enable_kv_cache
from tinytorch.generation.paged import BlockPool, PagedKVCache, blocks_for, runs_of
from tinytorch.models.llama import Llama


class Conversations:
    """The model, and the conversations that are open. blocks: of the pool; none for plain caches."""

    def __init__(self, file: str, blocks: int = 0, block_size: int = 16):
        self.model = Llama.from_gguf(file)
        self.sizes = self.model.num_layers, self.model.num_kv_heads, self.model.head_dim
        self.pool = BlockPool(blocks, block_size, *self.sizes) if blocks else None
        self.caches = []

    def converse(self, text: list, new: int, room: int) -> dict:
        """Read a text and answer with `new` tokens -> seconds to read, bytes, tokens. room: of a plain cache.

        The seconds of the pool hold the search for known blocks, and making the text's own known.
        """
        seconds, shared = 0.0, 0
        if self.pool:
            cache = PagedKVCache(self.pool, max_seq_len=len(text) + new)
            self.caches.append(cache)
            started = perf_counter()
            shared = cache.share(text)
            seconds += perf_counter() - started
        else:
            cache = KVCache(1, room, *self.sizes)
        enable_kv_cache(self.model, cache)
        tokens, milliseconds = list(text), []
        started = perf_counter()
        tokens.append(int(self.model.next_logits(np.array([text[shared:]])).argmax()))
        seconds += perf_counter() - started
        for _ in range(new - 1):
            started = perf_counter()
            tokens.append(int(self.model.next_logits(np.array([tokens[-1:]])).argmax()))
            milliseconds.append(1e3 * (perf_counter() - started))
        disable_kv_cache(self.model)
        if self.pool:
            started = perf_counter()
            cache.register(tokens[: cache.seq_pos])
            seconds += perf_counter() - started
        return {
            "seconds": seconds,
            "shared": shared,
            "bytes": cache.nbytes,
            "stored": cache.seq_pos,
            "tokens": tokens[len(text) :],
            "ms_per_token": float(np.median(milliseconds)),
        }

    def held(self) -> dict:
        """What the pool holds, and what it gets back when all conversations end."""
        pool, counts = self.pool, self.pool.counts()
        pool.check(self.caches)
        blocks = {block for cache in self.caches for table in cache.tables for block in table}
        result = {
            "counts": counts,
            "block_size": pool.block_size,
            "held_bytes": len(blocks) * pool.block_bytes,
            "pool_bytes": pool.nbytes,
            "slots": len(blocks) * pool.block_size,
        }
        for cache in self.caches:
            cache.close()
        pool.check(self.caches)
        return result | {"counts_after": pool.counts()}

    def decode(self, length: int, steps: int, block_size: int = 16) -> dict:
        """The next token after `length`, cache by cache in turn -> milliseconds of each step, runs."""
        text = np.random.default_rng(0).integers(1000, 2000, (1, length))
        blocks = 2 * blocks_for(length + 1, block_size) + 2
        caches = {"plain": KVCache(1, length + 1, *self.sizes)}
        for name in ("one run", "two runs", "scattered"):
            caches[name] = PagedKVCache(BlockPool(blocks, block_size, *self.sizes), max_seq_len=length + 1)
        for name, cache in caches.items():
            pieces = [text]
            if name == "two runs":
                pieces = np.split(text, [length // 2], axis=1)
            if name == "scattered":
                pieces = np.split(text, range(block_size, length, block_size), axis=1)
            for piece in pieces:
                enable_kv_cache(self.model, cache)
                self.model.hidden_states(piece)
                if name != "plain" and len(pieces) > 1:  # somebody else takes the block that follows
                    cache.pool.take(1, cache.tables[0][-1])
        said = {name: [] for name in caches}
        for _ in range(steps + 1):
            for name, cache in caches.items():
                enable_kv_cache(self.model, cache)
                started = perf_counter()
                self.model.next_logits(text[:, :1])
                said[name].append(1e3 * (perf_counter() - started))
                cache.truncate(length)
        disable_kv_cache(self.model)
        runs = {name: len(runs_of(cache.tables[0])) for name, cache in caches.items() if name != "plain"}
        return {"ms": {name: times[1:] for name, times in said.items()}, "runs": runs}
