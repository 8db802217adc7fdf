"""The benchmark of the quantised caches, on a small model: what it counts, reads and writes."""

import numpy as np
import pytest

from chat_quantized import Caches, losses_of
from quantized import FULL, QUESTIONS, prose
from tinytorch.core.losses import CrossEntropyLoss
from tinytorch.models.llama import Llama

NAMES = ["plain", "float16", "int8", "int4"]


@pytest.fixture
def caches():
    contender = object.__new__(Caches)  # without the file of the real model
    contender.model = Llama(31, 24, 2, num_heads=4, num_kv_heads=2, max_seq_len=128, seed=0)
    contender.held = {}
    return contender


def test_losses_are_those_of_module_4():
    rng = np.random.default_rng(0)
    logits, targets = rng.normal(size=(7, 31)).astype(np.float32), rng.integers(0, 31, 7)
    assert np.isclose(losses_of(logits, targets).mean(), CrossEntropyLoss()(logits, targets).item())


def test_quality_is_measured_against_the_plain_cache(caches):
    tokens = np.random.default_rng(0).integers(0, 31, 90).tolist()
    rows = caches.quality(tokens, piece=16)
    assert list(rows) == NAMES
    whole = caches.model(np.array([tokens[:-1]])).data[0]
    assert np.isclose(rows["plain"]["perplexity"], np.exp(losses_of(whole, tokens[1:]).mean()), rtol=1e-4)
    assert rows["plain"]["largest_logit_error"] == 0 and rows["plain"]["same_best_guess"] == 1
    errors = [rows[name]["largest_logit_error"] for name in NAMES]
    assert 0 < errors[1] < errors[2] < errors[3], f"what was quantised should be used: {errors}"
    one_piece = caches.quality(tokens, piece=90)
    assert max(row["largest_logit_error"] for row in one_piece.values()) < 1e-4


def test_tokens_are_compared_until_the_first_that_differs(caches):
    prompt = np.random.default_rng(1).integers(0, 31, 40).tolist()
    same = caches.write(prompt, new=30)
    assert list(same) == NAMES and same["plain"] == 30
    assert all(0 <= n <= 30 for n in same.values())


def test_steps_leave_the_text_as_it_was(caches):
    tokens = np.random.default_rng(2).integers(0, 31, 70).tolist()
    caches.model.vocab_size = 2000  # the timed tokens are those of a real vocabulary
    caches.model.token_embedding.weight.data = np.zeros((2000, 24), np.float32)
    assert caches.fill(tokens, piece=16, room=8) == {"tokens": 70}
    for name in NAMES:
        before = caches.held[name].get(1)[0].data.copy()
        said = caches.steps(name, steps=5)
        assert said["ms_per_token"] > 0 and caches.held[name].seq_pos == 70
        assert np.array_equal(caches.held[name].get(1)[0].data, before)


def test_there_is_enough_to_read():
    assert len(prose().split()) > FULL["context"] and len(QUESTIONS) == FULL["questions"]
