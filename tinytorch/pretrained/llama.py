"""Llama's weights: from a GGUF file, or from a folder of Hugging Face's."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from tinytorch.pretrained.filling import (
    Place,
    Untouched,
    check_finite,
    check_layers,
    check_rules,
    check_tensors,
    decimal,
    drop_extras,
    fill,
    whole,
)
from tinytorch.pretrained.gguf_file import GGUFFile
from tinytorch.pretrained.safetensors_file import CONFIG, SafetensorsFolder, read_json

MAX_POSITIONS = 2**24  # numbers in a table of rotary angles: 131,072 positions of 128

# Within a layer: our weight -> its name in a GGUF file, and in Hugging Face's files.
LLAMA_LAYER = {
    "norm1.weight": ("attn_norm.weight", "input_layernorm.weight"),
    "attention.q_proj.weight": ("attn_q.weight", "self_attn.q_proj.weight"),
    "attention.k_proj.weight": ("attn_k.weight", "self_attn.k_proj.weight"),
    "attention.v_proj.weight": ("attn_v.weight", "self_attn.v_proj.weight"),
    "attention.out_proj.weight": ("attn_output.weight", "self_attn.o_proj.weight"),
    "norm2.weight": ("ffn_norm.weight", "post_attention_layernorm.weight"),
    "mlp.gate.weight": ("ffn_gate.weight", "mlp.gate_proj.weight"),
    "mlp.up.weight": ("ffn_up.weight", "mlp.up_proj.weight"),
    "mlp.down.weight": ("ffn_down.weight", "mlp.down_proj.weight"),
}
LLAMA_OUTSIDE = {
    "token_embedding.weight": ("token_embd.weight", "model.embed_tokens.weight"),
    "norm.weight": ("output_norm.weight", "model.norm.weight"),
    "output.weight": ("output.weight", "lm_head.weight"),
}
LLAMA_LAYERS = ("blk", "model.layers")  # what stands before the number of the layer
GGUF, HUGGING_FACE = 0, 1

# What a GGUF file may say of a Llama besides its sizes. A key that is not here may ask for anything.
GGUF_RULES = {
    "llama.rope.scaling.type": ("none", "linear"),
    "llama.expert_count": (0,),
    "llama.expert_used_count": (0,),
}
GGUF_SIZES = {
    *("vocab_size", "context_length", "embedding_length", "block_count", "feed_forward_length"),
    *("attention.head_count", "attention.head_count_kv", "attention.layer_norm_rms_epsilon"),
    *("attention.key_length", "attention.value_length", "rope.dimension_count", "rope.freq_base"),
    *("rope.scaling.factor", "rope.scale_linear", "rope.scaling.original_context_length"),
}
ROPE_FREQS = "rope_freqs.weight"  # in a GGUF file: what each frequency is divided by
MAX_FACTOR = 1e6  # of a frequency
LLAMA_RULES = {
    "model_type": ("llama",),
    "architectures": (["LlamaForCausalLM"], None),
    "hidden_act": ("silu",),
    "attention_bias": (False, None),
    "mlp_bias": (False, None),
    "partial_rotary_factor": (1.0, None),
    "sliding_window": (None,),
    "quantization_config": (None,),
}
BUFFER = re.compile(r"model\.layers\.\d+\.self_attn\.rotary_emb\.inv_freq")  # in older files


def load_llama_gguf(
    cls: type, path: str | Path, rows_to_halves: Callable, progress: Callable | None = None
) -> Any:
    """-> a `cls` (the Llama of module 16) with the sizes and weights of a GGUF file.

    path: of the file, or a GGUFFile, whose header is not read again.
    rows_to_halves(weight, num_heads): module 16's, which puts the rows of queries and keys into our order.
    progress(done, total): called with the bytes of weights after each tensor.
    Raises FileNotFoundError, ModuleNotFoundError without the [llm] extra, and ValueError for a file that is
    damaged or holds another kind of model, before memory is taken for it.
    """
    file = path if isinstance(path, GGUFFile) else GGUFFile(path)
    sizes = gguf_sizes(file)
    check_layers(file.path, sizes["num_layers"], file.shapes)
    places = llama_places(GGUF, sizes, rows_to_halves)
    if ROPE_FREQS in file.shapes:
        places[ROPE_FREQS] = Place((sizes["head_dim"] // 2,), (), lambda factors: [])  # is not a weight
    check_tensors(file.path, file.shapes, places)
    model = cls(**sizes, rope_factors=gguf_factors(file), seed=Untouched())
    fill(model, file, places, progress)
    return model


def load_llama_folder(cls: type, folder: str | Path, progress: Callable | None = None) -> Any:
    """-> a `cls` (the Llama of module 16) from Hugging Face's config.json and safetensors files."""
    source = SafetensorsFolder(folder)
    sizes = config_sizes(source.path / CONFIG)
    check_layers(source.path, sizes["num_layers"], source.shapes)
    places = llama_places(HUGGING_FACE, sizes)
    drop_extras(source, BUFFER, sizes["tied"], "model.embed_tokens.weight")
    check_tensors(source.path, source.shapes, places)
    model = cls(**sizes, seed=Untouched())
    fill(model, source, places, progress)
    return model


def gguf_sizes(file: GGUFFile) -> dict:
    """What Llama's constructor is to be called with."""
    path, facts = file.path, file.metadata
    if "general.architecture" not in facts:
        raise ValueError(f"{path}: general.architecture is missing")
    check_rules(path, facts, {"general.architecture": ("llama",)} | GGUF_RULES)
    known = GGUF_RULES.keys() | {f"llama.{name}" for name in GGUF_SIZES}
    if unknown := [name for name in facts if name.startswith("llama.") and name not in known]:
        raise ValueError(f"{path}: {unknown[0]!r} asks for something that is not supported")
    if "token_embd.weight" not in file.shapes:
        raise ValueError(f"{path}: token_embd.weight is not among its {len(file.shapes)} tensors")
    vocab_size = file.shapes["token_embd.weight"][0]
    tokens = facts.get("tokenizer.ggml.tokens", [])
    said = {"llama.vocab_size": facts.get("llama.vocab_size", vocab_size)}
    said["tokenizer.ggml.tokens"] = len(tokens) if isinstance(tokens, list) and tokens else vocab_size
    for name, size in said.items():
        if size != vocab_size:
            raise ValueError(f"{path}: {name} counts {size!r:.99} tokens, token_embd.weight {vocab_size}")
    sizes = {
        "vocab_size": vocab_size,
        "embed_dim": whole(path, facts, "llama.embedding_length"),
        "num_layers": whole(path, facts, "llama.block_count"),
        "num_heads": (num_heads := whole(path, facts, "llama.attention.head_count")),
        "num_kv_heads": whole(path, facts, "llama.attention.head_count_kv", num_heads),
        "hidden_dim": whole(path, facts, "llama.feed_forward_length"),
        "max_seq_len": whole(path, facts, "llama.context_length"),
        "head_dim": facts.get("llama.attention.key_length"),
        "rope_base": decimal(path, facts, "llama.rope.freq_base", 1, 1e12, 10000.0),
        "eps": decimal(path, facts, "llama.attention.layer_norm_rms_epsilon", 0, 1),
        "tied": "output.weight" not in file.shapes,
    }
    check_llama(path, sizes)
    for name in ("llama.attention.value_length", "llama.rope.dimension_count"):
        if facts.get(name, sizes["head_dim"]) != sizes["head_dim"]:
            raise ValueError(f"{path}: {name} is {facts[name]!r:.99}, a head has {sizes['head_dim']}")
    return sizes


def gguf_factors(file: GGUFFile) -> np.ndarray | float | None:
    """What the rotary frequencies are divided by, a number or one for each pair; None: by nothing."""
    facts, numbers = file.metadata, []
    for name in ("llama.rope.scaling.factor", "llama.rope.scale_linear"):  # the second is of older files
        if facts.get("llama.rope.scaling.type") != "none" and facts.get(name):
            numbers.append(decimal(file.path, facts, name, 0, MAX_FACTOR))
    factor = numbers[0] if numbers else 1.0
    if ROPE_FREQS not in file.shapes:
        return None if factor == 1 else factor
    factors = file.tensor(ROPE_FREQS)
    check_finite(file.path, ROPE_FREQS, factors)
    if not 0 < factors.min() <= factors.max() <= MAX_FACTOR:
        least, most = factors.min(), factors.max()
        raise ValueError(
            f"{file.path}: {ROPE_FREQS} should hold numbers above 0 and at most {MAX_FACTOR:g}, "
            f"it goes from {least:g} to {most:g}"
        )
    return factor * factors


def config_factors(path: str | Path, rope: dict, head_dim: int, base: float) -> np.ndarray | float | None:
    """The same from what a config.json says of the rotation."""
    kind = rope.get("rope_type", "default")
    check_rules(path, rope, {"rope_type": ("default", "linear", "llama3")})
    if kind == "default":
        return None
    factor = decimal(path, rope, "factor", 0, MAX_FACTOR)
    if kind == "linear":
        return factor
    low = decimal(path, rope, "low_freq_factor", 0, MAX_FACTOR)
    high = decimal(path, rope, "high_freq_factor", 0, MAX_FACTOR)
    if not low < high:
        raise ValueError(f"{path}: low_freq_factor {low:g} should be below high_freq_factor {high:g}")
    context = whole(path, rope, "original_max_position_embeddings")
    return llama3_factors(head_dim, base, factor, low, high, context)


def llama3_factors(
    head_dim: int, base: float, factor: float, low: float, high: float, context: int
) -> np.ndarray | float | None:
    """-> (head_dim / 2,): how much slower than a plain Llama a Llama 3.1 turns each of its pairs.

    What goes round `high` times or more within the `context` of the first training stays, what does so `low`
    times or fewer is slowed by `factor`, with a straight line between them for the frequencies.
    """
    rounds = context / (2 * np.pi) * base ** (-np.arange(0, head_dim, 2) / head_dim)
    kept = np.clip((rounds - low) / (high - low), 0, 1)
    return 1 / (kept + (1 - kept) / factor)


def rope_of(path: str | Path, facts: dict) -> dict:
    """What a config.json says of the rotation, in the words of transformers 5."""
    parts = []
    for name in ("rope_scaling", "rope_parameters"):  # the first is of older files, beside rope_theta
        part = facts.get(name) or {}
        if not isinstance(part, dict):
            raise ValueError(f"{path}: {name} should be an object, got {part!r:.99}")
        parts.append({"rope_type": part["type"]} | part if "type" in part else part)
    return {"rope_theta": facts.get("rope_theta")} | parts[0] | parts[1]


def config_sizes(path: Path) -> dict:
    """The same as `gguf_sizes`, and rope_factors, from a config.json."""
    facts = read_json(path)
    rope = rope_of(path, facts)
    if facts.get("model_type") is None:
        raise ValueError(f"{path}: model_type is missing")
    check_rules(path, facts, LLAMA_RULES)
    check_rules(path, rope, {"partial_rotary_factor": (1.0, None)})
    check_rules(path, facts, {"tie_word_embeddings": (False, True)})
    sizes = {
        "vocab_size": whole(path, facts, "vocab_size"),
        "embed_dim": whole(path, facts, "hidden_size"),
        "num_layers": whole(path, facts, "num_hidden_layers"),
        "num_heads": (num_heads := whole(path, facts, "num_attention_heads")),
        "num_kv_heads": whole(path, facts, "num_key_value_heads", num_heads),
        "hidden_dim": whole(path, facts, "intermediate_size"),
        "max_seq_len": whole(path, facts, "max_position_embeddings", 2048),
        "head_dim": facts.get("head_dim"),
        "rope_base": decimal(path, rope, "rope_theta", 1, 1e12, 10000.0),
        "eps": decimal(path, facts, "rms_norm_eps", 0, 1, 1e-6),
        "tied": bool(facts.get("tie_word_embeddings", False)),
    }
    check_llama(path, sizes)
    return sizes | {"rope_factors": config_factors(path, rope, sizes["head_dim"], sizes["rope_base"])}


def check_llama(path: str | Path, sizes: dict) -> None:
    """The sizes fit each other; a head_dim that is not said is filled in."""
    width, heads, kv_heads = (sizes[name] for name in ("embed_dim", "num_heads", "num_kv_heads"))
    if heads % kv_heads:
        raise ValueError(f"{path}: {heads} query heads cannot share {kv_heads} key and value heads evenly")
    if sizes["head_dim"] is None:
        if width % heads:
            raise ValueError(f"{path}: a width of {width} is not divisible by {heads} heads")
        sizes["head_dim"] = width // heads
    head_dim = whole(path, sizes, "head_dim")
    if head_dim % 2:
        raise ValueError(f"{path}: rotary positions turn pairs, so a head should be even, it has {head_dim}")
    if sizes["max_seq_len"] * head_dim > MAX_POSITIONS:
        positions = f"{sizes['max_seq_len']:,} positions of {head_dim}"
        raise ValueError(f"{path}: a table of {positions} is larger than {MAX_POSITIONS:,} numbers")


def llama_places(kind: int, sizes: dict, rows_to_halves: Callable | None = None) -> dict[str, Place]:
    """name in the file -> what is there. kind: GGUF, which needs rows_to_halves, or HUGGING_FACE."""
    width, hidden, head_dim = (sizes[name] for name in ("embed_dim", "hidden_dim", "head_dim"))
    heads, kv_heads = sizes["num_heads"], sizes["num_kv_heads"]
    shapes = {
        "norm1.weight": (width,),
        "attention.q_proj.weight": (heads * head_dim, width),
        "attention.k_proj.weight": (kv_heads * head_dim, width),
        "attention.v_proj.weight": (kv_heads * head_dim, width),
        "attention.out_proj.weight": (width, heads * head_dim),
        "norm2.weight": (width,),
        "mlp.gate.weight": (hidden, width),
        "mlp.up.weight": (hidden, width),
        "mlp.down.weight": (width, hidden),
        "token_embedding.weight": (sizes["vocab_size"], width),
        "norm.weight": (width,),
        "output.weight": (sizes["vocab_size"], width),
    }
    places = {}
    for name, theirs in LLAMA_OUTSIDE.items():
        if name != "output.weight" or not sizes["tied"]:
            places[theirs[kind]] = Place(shapes[name], (name,))
    in_pairs = {  # GGUF has the rows that turn together as neighbours, we have them half a head apart
        "attention.q_proj.weight": lambda rows: [rows_to_halves(rows, heads)],
        "attention.k_proj.weight": lambda rows: [rows_to_halves(rows, kv_heads)],
    }
    for layer in range(sizes["num_layers"]):
        for name, theirs in LLAMA_LAYER.items():
            place = Place(shapes[name], (f"blocks.{layer}.{name}",))
            if kind == GGUF and name in in_pairs:
                place = Place(shapes[name], place.names, in_pairs[name])
            places[f"{LLAMA_LAYERS[kind]}.{layer}.{theirs[kind]}"] = place
    return places
