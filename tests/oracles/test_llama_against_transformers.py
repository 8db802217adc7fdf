"""Our Llama against transformers' with the same random weights; needs the [oracle] extra."""

import numpy as np
import pytest

from tinytorch.core.autograd import enable_autograd
from tinytorch.core.tensor import set_recorder
from tinytorch.generation.kv_cache import enable_kv_cache, generate_with_cache
from tinytorch.models.llama import Llama, rows_to_halves
from tinytorch.models.transformer import next_token_loss

pytestmark = pytest.mark.oracle

V = 103
SHAPES = {  # width, layers, query heads, key heads, hidden, head_dim, base of the frequencies, eps, tied
    "grouped and tied": (36, 3, 6, 2, 50, 6, 10000.0, 1e-5, True),
    "grouped and untied": (36, 3, 6, 2, 50, 6, 1e5, 1e-6, False),
    "heads wider than the model": (18, 2, 9, 3, 33, 8, 100.0, 1e-2, True),
    "one key head": (24, 2, 4, 1, 17, 6, 500.0, 1e-5, False),
    "a key for each query": (30, 2, 5, 5, 44, 6, 10000.0, 1e-5, True),
}
LAYER = {
    "norm1.weight": "input_layernorm.weight",
    "attention.q_proj.weight": "self_attn.q_proj.weight",
    "attention.k_proj.weight": "self_attn.k_proj.weight",
    "attention.v_proj.weight": "self_attn.v_proj.weight",
    "attention.out_proj.weight": "self_attn.o_proj.weight",
    "norm2.weight": "post_attention_layernorm.weight",
    "mlp.gate.weight": "mlp.gate_proj.weight",
    "mlp.up.weight": "mlp.up_proj.weight",
    "mlp.down.weight": "mlp.down_proj.weight",
}


def names(num_layers, tied):
    """Our name of a weight -> theirs."""
    found = {"token_embedding.weight": "model.embed_tokens.weight", "norm.weight": "model.norm.weight"}
    for i in range(num_layers):
        found |= {f"blocks.{i}.{ours}": f"model.layers.{i}.{theirs}" for ours, theirs in LAYER.items()}
    return found if tied else found | {"output.weight": "lm_head.weight"}


@pytest.fixture(params=SHAPES)
def pair(request):
    """Theirs with random weights, large enough for every layer to matter, and ours with the same."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    width, layers, heads, kv_heads, hidden, head_dim, base, eps, tied = SHAPES[request.param]
    config = LlamaConfig(
        vocab_size=V,
        hidden_size=width,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        intermediate_size=hidden,
        head_dim=head_dim,
        max_position_embeddings=64,
        rope_parameters={"rope_type": "default", "rope_theta": base},
        rms_norm_eps=eps,
        tie_word_embeddings=tied,
        bos_token_id=None,
        eos_token_id=None,
    )
    theirs = LlamaForCausalLM(config).eval()
    rng = np.random.default_rng(7)
    with torch.no_grad():
        for name, p in theirs.named_parameters():
            centre = 1.0 if "norm" in name else 0.0
            p.copy_(torch.tensor(rng.normal(centre, 0.15, p.shape)))
    sizes = {"hidden_dim": hidden, "max_seq_len": 64, "head_dim": head_dim, "rope_base": base, "eps": eps}
    ours = Llama(V, width, layers, heads, kv_heads, **sizes, tied=tied)
    state = theirs.state_dict()
    ours.load_state_dict({mine: state[name].numpy() for mine, name in names(layers, tied).items()})
    return ours, theirs


def tokens(rows, length, seed=0):
    return np.random.default_rng(seed).integers(0, V, (rows, length))


def logits_of(theirs, text, **options):
    import torch

    with torch.no_grad():
        return theirs(torch.tensor(text), **options).logits.numpy()


def test_logits_equal_those_of_transformers(pair):
    ours, theirs = pair
    text = tokens(3, 64)
    want = logits_of(theirs, text)
    assert np.abs(want).max() > 1
    assert np.abs(ours(text).data - want).max() < 1e-4
    cache = enable_kv_cache(ours)
    cached = np.concatenate([ours(piece).data for piece in np.split(text, (7, 8, 20), axis=1)], axis=1)
    assert cache.num_heads == theirs.config.num_key_value_heads
    assert np.abs(cached - want).max() < 1e-4


def test_what_the_caches_hold_is_the_same(pair):
    """Their keys are turned before they are cached, too."""
    import torch
    from transformers import DynamicCache

    ours, theirs = pair
    text, kept = tokens(2, 11), DynamicCache()
    with torch.no_grad():
        theirs(torch.tensor(text), cache=kept)
    cache = enable_kv_cache(ours)
    ours(text)
    for layer in range(ours.num_layers):
        for mine, other in zip(
            cache.get(layer), (kept.layers[layer].keys, kept.layers[layer].values), strict=True
        ):
            assert mine.shape == tuple(other.shape)
            assert np.abs(np.asarray(mine) - other.numpy()).max() < 1e-4


def test_greedy_tokens_equal_those_of_transformers(pair):
    import torch

    ours, theirs = pair
    prompt = tokens(1, 5, seed=1)
    with torch.no_grad():
        options = {"do_sample": False, "pad_token_id": 0, "attention_mask": torch.ones(1, 5, dtype=int)}
        want = theirs.generate(torch.tensor(prompt), max_new_tokens=30, **options).numpy()
    assert np.array_equal(ours.generate(prompt, 30, temperature=0), want)
    assert np.array_equal(generate_with_cache(ours, prompt, 30, temperature=0), want)


@pytest.mark.parametrize("cached", [False, True])
def test_padded_rows_equal_those_of_transformers(pair, cached):
    """Their left padding: an attention mask and position ids of each row's own."""
    import torch

    ours, theirs = pair
    lengths, new = [9, 4, 1, 6], 8
    prompt, given = tokens(4, 9, seed=4), []
    ours.wrap("logits", lambda inner, hidden: given.append(inner(hidden)) or given[-1])
    if cached:
        enable_kv_cache(ours)
    text = ours.generate(prompt, new, temperature=0, lengths=lengths, pad_side="left")
    real = np.arange(9 + new) >= 9 - np.array(lengths)[:, None]
    places = np.maximum(real.cumsum(axis=1) - 1, 0)
    want = logits_of(
        theirs, text, attention_mask=torch.tensor(real.astype(int)), position_ids=torch.tensor(places)
    )
    got = np.stack([logits.data[:, -1] for logits in given], axis=1)
    assert np.abs(got - want[:, 8:-1]).max() < 1e-4
    assert np.array_equal(text[:, 9:], want[:, 8:-1].argmax(axis=-1))


def test_gradients_equal_those_of_pytorch(pair):
    import torch

    ours, theirs = pair
    text, before = tokens(4, 12, seed=2), set_recorder(None)
    try:
        enable_autograd()
        loss = next_token_loss(ours.train(), text)
        loss.backward()
    finally:
        set_recorder(before)
    logits = theirs(torch.tensor(text[:, :-1])).logits
    want = torch.nn.functional.cross_entropy(logits.reshape(-1, V), torch.tensor(text[:, 1:]).reshape(-1))
    want.backward()
    assert abs(loss.item() - want.item()) < 1e-4
    other = dict(theirs.named_parameters())
    for mine, name in names(ours.num_layers, ours.tied).items():
        grad = dict(ours.named_parameters())[mine].grad
        np.testing.assert_allclose(grad, other[name].grad.numpy(), rtol=1e-3, atol=2e-5, err_msg=mine)


def test_rows_in_the_order_of_the_file_are_put_back():
    """The order in which llama.cpp's converter writes the rows of queries and keys, done in PyTorch."""
    import torch

    for heads, width, columns in ((9, 64, 576), (3, 6, 5), (1, 2, 3)):
        weight = torch.randn(heads * width, columns)
        in_file = weight.reshape(heads, 2, width // 2, columns).swapaxes(1, 2).reshape(weight.shape)
        assert np.array_equal(rows_to_halves(in_file.numpy(), heads), weight.numpy())
