"""The same weights in transformers' GPT-2: the independent oracle for ours."""

import torch
from transformers import GPT2Config, GPT2LMHeadModel


def twin_of(model) -> GPT2LMHeadModel:
    """Our GPT -> transformers' GPT-2 with the same weights, in eval mode. Conv1D weights are (in, out)."""
    config = GPT2Config(
        vocab_size=model.vocab_size,
        n_positions=model.max_seq_len,
        n_embd=model.embed_dim,
        n_layer=model.num_layers,
        n_head=model.num_heads,
        bos_token_id=None,
        eos_token_id=None,
    )
    twin = GPT2LMHeadModel(config).eval()
    state = {name: torch.tensor(array) for name, array in model.state_dict().items()}
    theirs = {"wte.weight": state["token_embedding.weight"], "wpe.weight": state["position_embedding.weight"]}
    for i in range(model.num_layers):
        ours, name = f"blocks.{i}.", f"h.{i}."
        for kind in ("weight", "bias"):
            qkv = torch.cat([state[f"{ours}attention.{p}_proj.{kind}"] for p in "qkv"])
            theirs[f"{name}attn.c_attn.{kind}"] = qkv.T if kind == "weight" else qkv
            names = {"attention.out_proj": "attn.c_proj", "mlp.up": "mlp.c_fc", "mlp.down": "mlp.c_proj"}
            for mine, other in names.items():
                array = state[f"{ours}{mine}.{kind}"]
                theirs[f"{name}{other}.{kind}"] = array.T if kind == "weight" else array
            theirs[f"{name}ln_1.{kind}"] = state[f"{ours}norm1.{kind}"]
            theirs[f"{name}ln_2.{kind}"] = state[f"{ours}norm2.{kind}"]
    theirs |= {"ln_f.weight": state["norm.weight"], "ln_f.bias": state["norm.bias"]}
    twin.transformer.load_state_dict(theirs)
    twin.tie_weights()
    return twin
