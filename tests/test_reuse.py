"""`enable_kv_cache(model, reuse=True)`: what two texts have in common is read once; nothing else changes."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tinytorch.generation.kv_cache import KVCache, cache_sizes, disable_kv_cache, enable_kv_cache
from tinytorch.generation.paged import BlockPool, PagedKVCache
from tinytorch.generation.quantized import QuantizedKVCache
from tinytorch.generation.window import SlidingWindowKVCache
from tinytorch.models.llama import Llama
from tinytorch.models.transformer import GPT

V, LONGEST = 7, 40


def new_model(kind):
    if kind == "gpt":
        model = GPT(V, 24, 2, 3, LONGEST, seed=1)
    else:
        model = Llama(V, 24, 2, 4, 2, max_seq_len=LONGEST, seed=1)
    for p in model.parameters():
        p.data *= 6 if p.ndim == 2 else 1
    return model


MODELS = {kind: new_model(kind) for kind in ("gpt", "llama")}
CACHES = {
    "plain": lambda sizes: KVCache(1, LONGEST, **sizes),
    "float16": lambda sizes: QuantizedKVCache(1, LONGEST, **sizes, bits=16),
    "paged": lambda sizes: PagedKVCache(BlockPool(20, 4, **sizes), 1, LONGEST),
    "window": lambda sizes: SlidingWindowKVCache(1, LONGEST, **sizes, window=LONGEST),
}


class Reads:
    """How many tokens a model reads in each of its passes."""

    def __init__(self, model):
        self.model, self.counts = model, []

    def __enter__(self):
        self.model.wrap("hidden_states", self.count)
        return self.counts

    def count(self, inner, tokens, **options):
        self.counts.append(np.shape(tokens)[1])
        return inner(tokens, **options)

    def __exit__(self, *_):
        self.model.unwrap("hidden_states", self.count)


def common(a, b) -> int:
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


@pytest.mark.parametrize("name", CACHES)
@pytest.mark.parametrize("kind", MODELS)
@settings(max_examples=25)
@given(
    prompts=st.lists(
        st.tuples(st.integers(0, 30), st.lists(st.integers(0, V - 1), min_size=1, max_size=9)),
        min_size=1,
        max_size=5,
    ),
    new=st.integers(0, 6),
)
def test_each_text_is_the_one_it_is_alone_and_its_rest_is_read_once(kind, name, prompts, new):
    """Each prompt begins with some of the tokens of the text before it."""
    model, text = MODELS[kind], []
    enable_kv_cache(model, CACHES[name](cache_sizes(model)), reuse=True)
    try:
        held = []  # what the cache has read
        for kept, rest in prompts:
            prompt = [*text[: min(kept, len(text), 20)], *rest]
            with Reads(model) as counts:
                text = model.generate([prompt], new, temperature=0)[0].tolist()
            if new:
                assert counts == [len(prompt) - min(common(held, prompt), len(prompt) - 1)] + [1] * (new - 1)
                held = text[:-1]
            alone = new_model(kind).generate([prompt], new, temperature=0)[0].tolist()
            assert text == alone
    finally:
        disable_kv_cache(model)


def test_without_asking_each_text_starts_over():
    model = MODELS["gpt"]
    enable_kv_cache(model)
    with Reads(model) as counts:
        for _ in range(2):
            model.generate([[1, 2, 3, 4]], 2, temperature=0)
    disable_kv_cache(model)
    assert counts == [4, 1, 4, 1]


def test_a_window_that_has_gone_round_starts_over_and_spare_slots_go_back():
    model, prompt = MODELS["llama"], [*range(V), *range(V), 3]
    for spare, first in ((0, 16), (4, 1)):
        cache = SlidingWindowKVCache(1, LONGEST, **cache_sizes(model), window=5, spare=spare)
        enable_kv_cache(model, cache, reuse=True)
        text = model.generate([prompt], 3, temperature=0)[0].tolist()
        with Reads(model) as counts:
            again = model.generate([text[:-2]], 2, temperature=0)[0].tolist()
        disable_kv_cache(model)
        assert again == text and counts == [first, 1]


def test_rows_are_compared_together_and_other_rows_start_over():
    model = new_model("llama")
    enable_kv_cache(model, reuse=True)
    pair = np.array([[1, 2, 3, 4, 5], [1, 2, 6, 4, 5]])
    model.generate(pair, 2, temperature=0)
    for prompt, first in ((pair, 1), (pair[:, [0, 1, 2, 4]], 1), (pair[:1], 5), (pair[::-1][:1], 3)):
        with Reads(model) as counts:
            got = model.generate(prompt, 1, temperature=0)
        assert counts == [first]
        assert np.array_equal(got, new_model("llama").generate(prompt, 1, temperature=0))


def test_what_was_read_otherwise_is_read_again():
    """By other weights, or with padding in front, or written by hand."""
    model, prompt = new_model("llama"), np.array([[1, 2, 3, 4, 5]])
    cache = enable_kv_cache(model, reuse=True)

    def first_read():
        with Reads(model) as counts:
            got = model.generate(prompt, 3, temperature=0)
        changed = new_model("llama")
        changed.load_state_dict(model.state_dict())
        assert np.array_equal(got, changed.generate(prompt, 3, temperature=0))
        return counts[0]

    assert [first_read(), first_read()] == [5, 1]
    model.load_state_dict({name: 1.1 * array for name, array in model.state_dict().items()})
    assert [first_read(), first_read()] == [5, 1]
    model.generate(prompt, 3, temperature=0, lengths=[3])
    assert [first_read(), first_read()] == [5, 1]
    cache.reset()
    for layer in range(2):
        cache.update(layer, *np.ones((2, 1, 2, 4, 6), np.float32))
    cache.advance(4)
    assert [first_read(), first_read()] == [5, 1]
    disable_kv_cache(model)


def test_a_cache_that_is_too_short_is_told_before_anything_is_forgotten():
    model = MODELS["gpt"]
    cache = enable_kv_cache(model, KVCache(1, 9, **cache_sizes(model)), reuse=True)
    model.generate([[1, 2, 3, 4, 5]], 3, temperature=0)
    with pytest.raises(ValueError, match="needs a cache for 10, this one holds 9"):
        model.generate([[1, 2, 3, 4, 5]], 6)
    assert cache.seq_pos == 7
    disable_kv_cache(model)
