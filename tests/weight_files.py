"""Small files of published models, made with the usual libraries, for the tests of reading them."""

import json
from pathlib import Path

import numpy as np

SIZES = {  # every one another
    "vocab_size": 50,
    "embed_dim": 64,
    "num_layers": 2,
    "num_heads": 4,
    "num_kv_heads": 2,
    "hidden_dim": 96,
    "max_seq_len": 40,
    "head_dim": 16,
    "rope_base": 5000.0,
    "eps": 2e-5,
}
LLAMA3 = {  # how a small Llama 3.1 would say that it turns slowly
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 30,
}
GPT_SIZES = {"vocab_size": 37, "embed_dim": 24, "num_layers": 2, "num_heads": 3, "max_seq_len": 20}
# our name -> GGUF's, Hugging Face's; written a second time, so that a slip in the package shows
PARTS = {
    "norm1": ("attn_norm", "input_layernorm"),
    "attention.q_proj": ("attn_q", "self_attn.q_proj"),
    "attention.k_proj": ("attn_k", "self_attn.k_proj"),
    "attention.v_proj": ("attn_v", "self_attn.v_proj"),
    "attention.out_proj": ("attn_output", "self_attn.o_proj"),
    "norm2": ("ffn_norm", "post_attention_layernorm"),
    "mlp.gate": ("ffn_gate", "mlp.gate_proj"),
    "mlp.up": ("ffn_up", "mlp.up_proj"),
    "mlp.down": ("ffn_down", "mlp.down_proj"),
}
WHOLE = {
    "token_embedding": ("token_embd", "model.embed_tokens"),
    "norm": ("output_norm", "model.norm"),
    "output": ("output", "lm_head"),
}


def their_name(name: str, which: int) -> str:
    """ "blocks.3.norm1.weight" -> "blk.3.attn_norm.weight" (which 0) or Hugging Face's (1)."""
    name = name.removesuffix(".weight")
    if not name.startswith("blocks."):
        return f"{WHOLE[name][which]}.weight"
    _, layer, part = name.split(".", 2)
    return f"{('blk', 'model.layers')[which]}.{layer}.{PARTS[part][which]}.weight"


def llama_state(tied=True, seed=0) -> dict[str, np.ndarray]:
    """Random weights under our names; norms near 1."""
    from tinytorch.models.llama import Llama

    model = Llama(**SIZES, tied=tied, seed=seed)
    rng = np.random.default_rng(seed)
    for p in model.parameters():
        p.data[...] = rng.normal(1 if p.ndim == 1 else 0, 0.3, p.shape)
    return model.state_dict()


def permuted(weight: np.ndarray, num_heads: int) -> np.ndarray:
    """What llama.cpp's converter does to q and k."""
    split = weight.reshape(num_heads, 2, weight.shape[0] // num_heads // 2, *weight.shape[1:])
    return split.swapaxes(1, 2).reshape(weight.shape)


def write_gguf(path: Path, kind="F32", tied=True, change=None) -> dict[str, np.ndarray]:
    """A GGUF file of a random Llama, its matrices of type `kind` -> the weights that are in it, our names.

    change(writer): adds to the metadata.
    """
    import gguf

    kind = gguf.GGMLQuantizationType[kind]
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_vocab_size(SIZES["vocab_size"])
    writer.add_context_length(SIZES["max_seq_len"])
    writer.add_embedding_length(SIZES["embed_dim"])
    writer.add_block_count(SIZES["num_layers"])
    writer.add_feed_forward_length(SIZES["hidden_dim"])
    writer.add_head_count(SIZES["num_heads"])
    writer.add_head_count_kv(SIZES["num_kv_heads"])
    writer.add_rope_dimension_count(SIZES["head_dim"])
    writer.add_rope_freq_base(SIZES["rope_base"])
    writer.add_layer_norm_rms_eps(SIZES["eps"])
    writer.add_token_list([f"token{i}" for i in range(SIZES["vocab_size"])])
    writer.add_token_types([1] * SIZES["vocab_size"])
    if change is not None:
        change(writer)
    state = llama_state(tied)
    for name, array in state.items():
        heads = {"q_proj": SIZES["num_heads"], "k_proj": SIZES["num_kv_heads"]}.get(name.split(".")[-2])
        array = permuted(array, heads) if heads else array
        if array.ndim == 1:
            writer.add_tensor(their_name(name, 0), array)
            continue
        stored = gguf.quants.quantize(array, kind)
        raw = None if kind in (kind.F32, kind.F16) else kind
        writer.add_tensor(their_name(name, 0), stored, raw_dtype=raw)
        # quantised row by row, so the order of the rows does not matter
        state[name] = gguf.quants.dequantize(gguf.quants.quantize(state[name], kind), kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return state


def llama_config(tied=True) -> dict:
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": SIZES["vocab_size"],
        "hidden_size": SIZES["embed_dim"],
        "num_hidden_layers": SIZES["num_layers"],
        "num_attention_heads": SIZES["num_heads"],
        "num_key_value_heads": SIZES["num_kv_heads"],
        "intermediate_size": SIZES["hidden_dim"],
        "max_position_embeddings": SIZES["max_seq_len"],
        "rms_norm_eps": SIZES["eps"],
        "rope_theta": SIZES["rope_base"],
        "hidden_act": "silu",
        "tie_word_embeddings": tied,
    }


def write_llama_folder(folder: Path, tied=True, dtype=np.float32, shards=1) -> dict[str, np.ndarray]:
    """A folder in Hugging Face's layout -> the weights in it, our names."""
    from safetensors.numpy import save_file

    folder.mkdir(parents=True)
    state = {name: array.astype(dtype) for name, array in llama_state(tied).items()}
    tensors = {their_name(name, 1): array for name, array in state.items()}
    if shards == 1:
        save_file(tensors, folder / "model.safetensors")
    else:
        places = {name: f"model-{i % shards}.safetensors" for i, name in enumerate(tensors)}
        for place in set(places.values()):
            part = {name: array for name, array in tensors.items() if places[name] == place}
            save_file(part, folder / place)
        index = {"metadata": {}, "weight_map": places}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")
    (folder / "config.json").write_text(json.dumps(llama_config(tied)), encoding="utf-8")
    return {name: array.astype(np.float32) for name, array in state.items()}


def random_gpt(seed=0):
    from tinytorch.models.transformer import GPT

    model = GPT(**GPT_SIZES, seed=seed)
    rng = np.random.default_rng(seed)
    for p in model.parameters():
        p.data[...] += rng.normal(0, 0.1, p.shape)
    return model
