"""Ours against PyTorch and transformers; needs the [oracle] extra."""

import numpy as np
import pytest

from tinytorch.core.autograd import enable_autograd
from tinytorch.core.losses import CrossEntropyLoss
from tinytorch.core.optimizers import AdamW
from tinytorch.generation.kv_cache import enable_kv_cache, generate_with_cache
from tinytorch.models.transformer import GPT

pytestmark = pytest.mark.oracle


@pytest.fixture
def pair():
    """A GPT with weights large enough for its layers to matter, and its twin."""
    from gpt2_twin import twin_of

    model = GPT(101, 48, 3, 4, 40, seed=3)
    rng = np.random.default_rng(3)
    for p in model.parameters():
        p.data[...] += rng.normal(0, 0.1, p.shape)
    return model, twin_of(model)


def tokens(rows, length, seed=0):
    return np.random.default_rng(seed).integers(0, 101, (rows, length))


def test_logits_equal_those_of_transformers(pair):
    import torch

    model, twin = pair
    text = tokens(3, 40)
    with torch.no_grad():
        want = twin(torch.tensor(text)).logits.numpy()
    assert np.abs(model(text).data - want).max() < 1e-4
    enable_kv_cache(model)
    cached = np.concatenate([model(piece).data for piece in np.split(text, (7, 8, 20), axis=1)], axis=1)
    assert np.abs(cached - want).max() < 1e-4


def test_greedy_tokens_equal_those_of_transformers(pair):
    import torch

    model, twin = pair
    prompt = tokens(1, 5, seed=1)
    with torch.no_grad():
        options = {"do_sample": False, "pad_token_id": 0, "attention_mask": torch.ones(1, 5, dtype=int)}
        want = twin.generate(torch.tensor(prompt), max_new_tokens=30, **options).numpy()
    assert np.array_equal(model.generate(prompt, 30, temperature=0), want)
    assert np.array_equal(generate_with_cache(model, prompt, 30, temperature=0), want)


@pytest.mark.parametrize("cached", [False, True])
def test_padded_rows_equal_those_of_transformers(pair, cached):
    """Their left padding: an attention mask and position ids of each row's own."""
    import torch

    model, twin = pair
    lengths, new = [9, 4, 1, 6], 12
    prompt = tokens(4, 9, seed=4)
    given = []
    model.wrap("logits", lambda inner, hidden: given.append(inner(hidden)) or given[-1])
    if cached:
        enable_kv_cache(model)
    text = model.generate(prompt, new, temperature=0, lengths=lengths, pad_side="left")
    real = np.arange(9 + new) >= 9 - np.array(lengths)[:, None]
    places = np.maximum(real.cumsum(axis=1) - 1, 0)
    with torch.no_grad():
        want = twin(
            torch.tensor(text),
            attention_mask=torch.tensor(real.astype(int)),
            position_ids=torch.tensor(places),
        ).logits.numpy()
    got = np.stack([logits.data[:, -1] for logits in given], axis=1)
    assert np.abs(got - want[:, 8:-1]).max() < 1e-4
    assert np.array_equal(text[:, 9:], want[:, 8:-1].argmax(axis=-1))


def test_ten_steps_of_training_equal_those_of_pytorch(pair):
    import torch

    enable_autograd()
    model, twin = pair
    text = tokens(4, 20, seed=2)
    ours = AdamW(model.parameters(), lr=1e-3, weight_decay=0.1)
    theirs = torch.optim.AdamW(twin.parameters(), lr=1e-3, weight_decay=0.1)
    losses = []
    for _ in range(10):
        loss = CrossEntropyLoss()(model(text[:, :-1]), text[:, 1:])
        ours.zero_grad()
        loss.backward()
        ours.step()
        logits = twin(torch.tensor(text[:, :-1])).logits
        their_loss = torch.nn.functional.cross_entropy(
            logits.reshape(-1, 101), torch.tensor(text[:, 1:]).reshape(-1)
        )
        theirs.zero_grad()
        their_loss.backward()
        theirs.step()
        losses.append((loss.item(), their_loss.item()))
    ours_fell, theirs_fell = np.array(losses).T
    assert np.abs(ours_fell - theirs_fell).max() < 1e-3 and ours_fell[-1] < ours_fell[0] - 0.3
