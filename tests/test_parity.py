"""The promise of module 15 on a hundred random models: logits within 1e-4, greedy tokens identical."""

import numpy as np
import pytest

from tinytorch.generation.kv_cache import disable_kv_cache, enable_kv_cache
from tinytorch.models.transformer import GPT

BOUND = 1e-4


def random_model(rng):
    """1 to 6 layers, 1 to 8 heads, odd sizes; weights scaled so that the logits spread by about 1 or more."""
    layers, heads, head_dim = rng.integers(1, 7), rng.integers(1, 9), 2 * rng.integers(1, 9) + 1
    vocab, longest = 2 * int(rng.integers(5, 60)) + 1, int(rng.integers(12, 50))
    model = GPT(
        vocab, int(heads * head_dim), int(layers), int(heads), longest, seed=int(rng.integers(1 << 30))
    )
    for p in model.parameters():
        p.data[...] += rng.normal(0, 0.15, p.shape)
    return model


def random_pieces(rng, tokens):
    cuts = np.flatnonzero(rng.random(tokens.shape[1] - 1) < rng.random()) + 1
    return np.split(tokens, cuts, axis=1)


def largest_difference(seed: int) -> float:
    """One model, two texts in random pieces, and a rewind -> how far the cached logits are off at most."""
    rng = np.random.default_rng(seed)
    model, rows = random_model(rng), int(rng.integers(1, 6))
    length = int(rng.integers(3, model.max_seq_len + 1))
    texts = rng.integers(0, model.vocab_size, (2, rows, length))
    want = [model(text).data for text in texts]
    prompt, new = texts[0][:, : length // 2], length - length // 2
    greedy = model.generate(prompt, new, temperature=0)
    cache, worst = enable_kv_cache(model), 0.0
    for text, logits in zip(texts, want, strict=True):
        cache.reset()
        pieces = [model(piece).data for piece in random_pieces(rng, text)]
        worst = max(worst, np.abs(np.concatenate(pieces, axis=1) - logits).max())
        keep = int(rng.integers(0, length))
        cache.truncate(keep)
        pieces = [model(piece).data for piece in random_pieces(rng, text[:, keep:])]
        worst = max(worst, np.abs(np.concatenate(pieces, axis=1) - logits[:, keep:]).max())
    assert np.array_equal(model.generate(prompt, new, temperature=0), greedy), (
        f"seed {seed}: other greedy tokens"
    )
    disable_kv_cache(model)
    return float(worst)


def test_twelve_random_models():
    assert max(largest_difference(seed) for seed in range(12)) < BOUND


@pytest.mark.slow
def test_a_hundred_random_models(record_testsuite_property):
    worst = max(largest_difference(seed) for seed in range(100))
    print(f"largest difference of a logit over 100 random models: {worst:.2e}")
    assert worst < BOUND
