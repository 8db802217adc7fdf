"""The benchmark of the window: what it measures, on a small model in the place of SmolLM2."""

import json

import numpy as np
import pytest

import chat_window
import window
from tinytorch.core.losses import CrossEntropyLoss
from tinytorch.generation.kv_cache import disable_kv_cache
from tinytorch.models.llama import Llama


@pytest.fixture
def small(monkeypatch):
    """Readers of this model, whatever file they are given."""
    model = Llama(13, 16, 2, num_heads=4, num_kv_heads=2, max_seq_len=32, seed=0)
    rng = np.random.default_rng(1)
    for p in model.parameters():
        p.data += rng.normal(0, 0.1, p.shape).astype(np.float32)
    monkeypatch.setattr(chat_window.Llama, "from_gguf", lambda file: model)
    return model


def test_surprise_is_the_cross_entropy():
    logits, targets = np.random.default_rng(0).normal(0, 3, (5, 7)), np.array([0, 6, 3, 3, 1])
    each = [CrossEntropyLoss()(logits[t : t + 1], targets[t : t + 1]).item() for t in range(5)]
    assert np.allclose(chat_window.surprise(logits, targets), each, atol=1e-5)


def test_the_curve_is_that_of_the_model_without_a_cache(small):
    tokens = np.random.default_rng(2).integers(0, 13, 200)
    curve = chat_window.Reader("", room=200, window=None).read(tokens.tolist(), block=50)
    small_cache = chat_window.Reader("", room=200, window=20, sinks=2).read(tokens.tolist(), block=50)
    disable_kv_cache(small)
    surprises = chat_window.surprise(small(tokens[None, :-1]).data[0], tokens[1:])
    want = [np.exp(surprises[start : start + 50].mean()) for start in (0, 50, 100)]
    assert np.allclose(curve["perplexity"], want, rtol=1e-3)
    assert not np.allclose(small_cache["perplexity"], want, rtol=1e-3), "the window should make a difference"
    assert 22 * curve["cache_bytes"] == 200 * small_cache["cache_bytes"]


def test_both_ends_of_a_long_text(small):
    reader = chat_window.Reader("", room=123, window=20, sinks=4, near=True)
    said = json.loads(json.dumps(reader.write([1, 2, 3], 120, full=24, ends=30)))
    assert (said["first"]["from"], said["first"]["to"]) == (24, 54)
    assert (said["last"]["from"], said["last"]["to"]) == (93, 123)
    assert said["first"]["cache_bytes"] == said["last"]["cache_bytes"] == reader.cache.nbytes
    assert 0 < said["first"]["peak_bytes"] <= said["last"]["peak_bytes"]
    assert said["last_over_first"] == said["last"]["ms_per_token"] / said["first"]["ms_per_token"]
    assert reader.cache.seq_pos == 122 and min(said["first"]["ms_per_token"], said["tokens_per_second"]) > 0


class Words:
    """A tokenizer: each word is a token."""

    def encode(self, text):
        return text.split()


def test_the_prose_is_that_of_the_lessons(monkeypatch, tmp_path):
    words = window.prose(Words(), 700)
    assert len(words) == 700 and "Tensor" in " ".join(words) and "#|" not in words
    folder = tmp_path / "modules" / "01_short"
    folder.mkdir(parents=True)
    lines = ["# %% [markdown]", "# three short words", "", "# %%", "code = 1", "", "# %% [markdown]", "# end"]
    (folder / "short_dev.py").write_text("\n".join(lines), encoding="utf-8")
    monkeypatch.setattr(window, "ROOT", tmp_path)
    assert window.prose(Words(), 4) == ["three", "short", "words", "end"]
    with pytest.raises(ValueError, match="4 tokens, 5"):
        window.prose(Words(), 5)
