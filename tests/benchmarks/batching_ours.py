"""SmolLM2 with many requests: one after the other through the cache, or in a running batch."""

from time import perf_counter

import numpy as np

from tinytorch.generation.batch import ContinuousBatch
from tinytorch.generation.kv_cache import KVCache, cache_sizes, disable_kv_cache, enable_kv_cache
from tinytorch.models.llama import Llama


def as_answer(started: float, texts: list, first_ms: list) -> dict:
    """The new tokens of every request, and what they cost together."""
    seconds = perf_counter() - started
    return {
        "seconds": seconds,
        "tokens_per_second": sum(map(len, texts)) / seconds,
        "first_ms": float(np.median(first_ms)),
        "tokens": texts,
    }


class Serving:
    """One model for both, in one process: only one of them runs at a time."""

    def __init__(self, file: str):
        self.model = Llama.from_gguf(file)

    def one_at_a_time(self, requests: list) -> dict:
        """[(prompt, new)]: `generate` through the cache for each, in order; all were there from the start."""
        texts, room = [], max(len(prompt) + new for prompt, new in requests)
        enable_kv_cache(self.model, KVCache(1, room, **cache_sizes(self.model)))
        started, firsts = perf_counter(), []
        try:
            for prompt, new in requests:
                began = perf_counter() - started
                text = self.model.generate([prompt], new, temperature=0)[0, len(prompt) :]
                taken = perf_counter() - started - began
                firsts.append(1e3 * (began + taken / new))  # as if its tokens came evenly
                texts.append(text.tolist())
        finally:
            disable_kv_cache(self.model)
        return as_answer(started, texts, firsts)

    def in_a_batch(self, requests: list, max_requests: int, chunk: int) -> dict:
        """The same requests in a running batch."""
        started, firsts, ends = perf_counter(), {}, []
        with ContinuousBatch(self.model, max_requests=max_requests, chunk=chunk) as batch:
            added = [batch.add(prompt, new, temperature=0) for prompt, new in requests]
            while batch.waiting or batch.running:
                for request in batch.step():
                    firsts.setdefault(id(request), 1e3 * (perf_counter() - started))
                ends.append(perf_counter())
        failed = [request for request in added if request.error is not None]
        if failed:
            raise failed[0].error
        answer = as_answer(started, [request.new_tokens for request in added], list(firsts.values()))
        longest = max(np.diff([started, *ends]))
        return answer | {"steps": len(ends), "longest_step_ms": 1e3 * float(longest)}
