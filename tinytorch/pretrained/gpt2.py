"""GPT-2's weights: from a folder of Hugging Face's, and into one."""

import re
from collections.abc import Callable, Iterator
from functools import partial
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
    drop_extras,
    fill,
    whole,
)
from tinytorch.pretrained.safetensors_file import CONFIG, SafetensorsFolder, read_json, save_folder

# Within a layer: Hugging Face's name -> our parts, and the widths in and out in units of embed_dim. These are
# Conv1D layers: weights (in, out), not (out, in) like ours, several parts side by side, column by column.
CONV = {
    "attn.c_attn": (("attention.q_proj", "attention.k_proj", "attention.v_proj"), 1, 3),
    "attn.c_proj": (("attention.out_proj",), 1, 1),
    "mlp.c_fc": (("mlp.up",), 1, 4),
    "mlp.c_proj": (("mlp.down",), 4, 1),
}
NORMS = {"ln_1": "norm1", "ln_2": "norm2"}
RULES = {
    "model_type": ("gpt2",),
    "architectures": (["GPT2LMHeadModel"], ["GPT2Model"], None),
    "activation_function": ("gelu_new", "gelu_pytorch_tanh"),
    "layer_norm_epsilon": (1e-5,),
    "scale_attn_weights": (True,),
    "scale_attn_by_inverse_layer_idx": (False,),
    "add_cross_attention": (False,),
    "tie_word_embeddings": (True,),
    "quantization_config": (None,),
}
BUFFER = re.compile(r".*h\.\d+\.attn\.(bias|masked_bias)")  # the causal mask, in older files
PREFIX = "transformer."  # missing in older files


def load_gpt_folder(cls: type, folder: str | Path, progress: Callable | None = None) -> Any:
    """-> a `cls` (the GPT of module 13) from Hugging Face's config.json and safetensors in GPT-2's layout.

    progress(done, total): called with the bytes of weights after each tensor.
    Raises FileNotFoundError, ModuleNotFoundError without the [llm] extra, and ValueError for files that are
    damaged or hold another kind of model, before memory is taken for it.
    """
    source = SafetensorsFolder(folder)
    sizes = config_sizes(source.path / CONFIG)
    check_layers(source.path, sizes["num_layers"], source.shapes)
    prefix = PREFIX if any(name.startswith(PREFIX) for name in source.shapes) else ""
    drop_extras(source, BUFFER, True, f"{prefix}wte.weight")
    places = {prefix + name: place for name, place in gpt_places(sizes)}
    check_tensors(source.path, source.shapes, places)
    model = cls(**sizes, seed=Untouched())
    fill(model, source, places, progress)
    return model


def save_gpt_folder(model: Any, folder: str | Path) -> None:
    """Write a GPT as config.json and model.safetensors, which transformers opens: both, or none of them.

    Raises ModuleNotFoundError without the [llm] extra, ValueError for weights that are no GPT's or infinite.
    """
    names = ("vocab_size", "embed_dim", "num_layers", "num_heads", "max_seq_len")
    sizes = {name: int(getattr(model, name)) for name in names}
    config = {
        "architectures": ["GPT2LMHeadModel"],
        "model_type": "gpt2",
        "vocab_size": sizes["vocab_size"],
        "n_positions": sizes["max_seq_len"],
        "n_embd": sizes["embed_dim"],
        "n_layer": sizes["num_layers"],
        "n_head": sizes["num_heads"],
        "n_inner": None,
        "activation_function": "gelu_new",
        "layer_norm_epsilon": 1e-5,
        "tie_word_embeddings": True,
        "embd_pdrop": 0.0,
        "attn_pdrop": 0.0,
        "resid_pdrop": 0.0,
        "bos_token_id": None,
        "eos_token_id": None,
    }
    own, places = model.state_dict(), dict(gpt_places(sizes))
    asked = {name for place in places.values() for name in place.names}
    if asked != set(own):
        raise ValueError(f"a GPT of GPT-2's layout has other weights: {sorted(asked ^ set(own))[:3]}")
    tensors = {}
    for theirs, place in places.items():
        parts = [own[name] for name in place.names]
        array = parts[0] if place.take_apart is None else np.concatenate([part.T for part in parts], axis=-1)
        check_finite(folder, theirs, array)
        if array.shape != place.shape:
            raise ValueError(f"{theirs} would have shape {array.shape}, GPT-2's layout needs {place.shape}")
        tensors[PREFIX + theirs] = array
    save_folder(folder, config, tensors)


def config_sizes(path: Path) -> dict:
    """What GPT's constructor is to be called with."""
    facts = read_json(path)
    if facts.get("model_type") is None:
        raise ValueError(f"{path}: model_type is missing")
    check_rules(path, facts, RULES)
    width = whole(path, facts, "n_embd")
    check_rules(path, facts, {"n_inner": (None, 4 * width)})
    num_heads = whole(path, facts, "n_head")
    if width % num_heads:
        raise ValueError(f"{path}: a width of {width} is not divisible by {num_heads} heads")
    return {
        "vocab_size": whole(path, facts, "vocab_size"),
        "embed_dim": width,
        "num_layers": whole(path, facts, "n_layer"),
        "num_heads": num_heads,
        "max_seq_len": whole(path, facts, "n_positions"),
    }


def gpt_places(sizes: dict) -> Iterator[tuple[str, Place]]:
    """Yields (name in the file, without the prefix; what is there)."""
    width = sizes["embed_dim"]
    yield "wte.weight", Place((sizes["vocab_size"], width), ("token_embedding.weight",))
    yield "wpe.weight", Place((sizes["max_seq_len"], width), ("position_embedding.weight",))
    norms = {"ln_f": "norm"}
    for layer in range(sizes["num_layers"]):
        norms |= {f"h.{layer}.{theirs}": f"blocks.{layer}.{ours}" for theirs, ours in NORMS.items()}
        for theirs, (parts, fan_in, fan_out) in CONV.items():
            for kind, shape in (("weight", (fan_in * width, fan_out * width)), ("bias", (fan_out * width,))):
                names = tuple(f"blocks.{layer}.{part}.{kind}" for part in parts)
                yield f"h.{layer}.{theirs}.{kind}", Place(shape, names, partial(columns, len(parts)))
    for theirs, ours in norms.items():
        for kind in ("weight", "bias"):
            yield f"{theirs}.{kind}", Place((width,), (f"{ours}.{kind}",))


def columns(num_parts: int, array: np.ndarray) -> list[np.ndarray]:
    """(in, n * out) -> n times (out, in); a bias, (n * out,) -> n times (out,)."""
    return [part.T for part in np.split(array, num_parts, axis=-1)]
