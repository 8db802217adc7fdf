"""Every slope of a whole GPT against central differences in float64."""

import numpy as np
import pytest

from tinytorch.core.autograd import enable_autograd, no_grad
from tinytorch.core.losses import CrossEntropyLoss
from tinytorch.core.tensor import set_recorder
from tinytorch.models.transformer import GPT


@pytest.fixture(autouse=True)
def gradients_on():
    previous = set_recorder(None)
    enable_autograd()
    yield
    set_recorder(previous)


def double_gpt(seed):
    """A tiny GPT in float64, every weight random and far from 0, so that no slope hides."""
    model = GPT(vocab_size=7, embed_dim=4, num_layers=2, num_heads=2, max_seq_len=5, seed=seed)
    rng = np.random.default_rng(seed)
    for name, p in model.named_parameters():
        centre = 1.0 if "norm" in name and name.endswith("weight") else 0.0
        p.data = rng.normal(centre, 0.4, p.shape)
    return model


def batch(seed):
    rng = np.random.default_rng(seed)
    return rng.integers(0, 7, (3, 4)), rng.integers(0, 7, (3, 4))


def test_every_slope_of_a_gpt_is_the_measured_one():
    model = double_gpt(1).train()
    tokens, targets = batch(2)
    targets[0, 2] = -100
    loss_of = CrossEntropyLoss()
    loss_of(model(tokens), targets).backward()
    h, compared = 1e-6, 0
    for name, p in model.named_parameters():
        assert p.grad is not None, f"{name} got no gradient"
        assert p.grad.shape == p.shape and p.grad.dtype == np.float64
        for index in np.ndindex(p.shape):
            kept, heights = p.data[index], []
            for value in (kept + h, kept - h):
                p.data[index] = value
                with no_grad():
                    heights.append(loss_of(model(tokens), targets).item())
            p.data[index] = kept
            slope = (heights[0] - heights[1]) / (2 * h)
            assert abs(p.grad[index] - slope) < 1e-5, (
                f"{name}{list(index)}: backward says {p.grad[index]}, two runs of the model say {slope}"
            )
            compared += 1
    assert compared == sum(p.size for p in model.parameters())


def test_the_tied_embedding_collects_from_both_ends():
    """The token embedding is read at the input, by the tokens that occur, and at the output, by all."""
    model = double_gpt(3).train()
    tokens, targets = batch(4)
    tokens[tokens == 6] = 0
    CrossEntropyLoss()(model(tokens), targets).backward()
    assert (model.token_embedding.weight.grad[6] != 0).all(), "the output reads the rows of absent tokens"
    position = model.position_embedding.weight.grad
    assert (position[4:] == 0).all() and (position[:4] != 0).any(), "position 4 was not used"


def test_two_batches_accumulate_to_the_gradient_of_their_sum():
    model = double_gpt(5).train()
    first, second = batch(6), batch(7)
    loss_of = CrossEntropyLoss()
    for tokens, targets in (first, second):
        loss_of(model(tokens), targets).backward()
    apart = {name: p.grad for name, p in model.named_parameters()}
    for p in model.parameters():
        p.grad = None
    (loss_of(model(first[0]), first[1]) + loss_of(model(second[0]), second[1])).backward()
    for name, p in model.named_parameters():
        assert np.allclose(p.grad, apart[name], rtol=1e-10, atol=1e-12), name


def test_float32_gradients_are_those_of_float64_to_float32_accuracy():
    double = double_gpt(8).train()
    single = GPT(vocab_size=7, embed_dim=4, num_layers=2, num_heads=2, max_seq_len=5).train()
    single.load_state_dict(double.state_dict())
    tokens, targets = batch(9)
    for model in (double, single):
        CrossEntropyLoss()(model(tokens), targets).backward()
    exact = dict(double.named_parameters())
    for name, p in single.named_parameters():
        assert p.grad.dtype == np.float32, f"the gradient of {name} is {p.grad.dtype}"
        assert np.allclose(p.grad, exact[name].grad, rtol=1e-4, atol=1e-5), name


def test_a_model_that_only_answers_records_nothing():
    model = double_gpt(10)
    with no_grad():
        logits = model(batch(11)[0])
    assert not logits.requires_grad and logits.history is None
    tokens = model.generate(batch(11)[0][:, :2], max_new_tokens=3, temperature=0)
    assert tokens.shape == (3, 5) and all(p.grad is None for p in model.parameters())
