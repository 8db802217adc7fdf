# %% [markdown]
"""
# Module 16: Llama
"""

# %%
#| default_exp models.llama

# %%
#| export
import numpy as np

from tinytorch.core.activations import SiLU
from tinytorch.core.attention import merge_heads, scaled_dot_product_attention, split_heads, whole_number
from tinytorch.core.layers import Linear, Module, linear
from tinytorch.core.normalization import RMSNorm
from tinytorch.core.tensor import Tensor, apply
from tinytorch.models.transformer import LanguageModel, check_tokens
from tinytorch.text.embeddings import Embedding, apply_rotary, rotary_tables


# %%
#| export
class RotaryPositions(Module):
    """Turns queries and keys by the positions of the tokens that are being read; one for all layers.

    Su et al. 2021 (arXiv:2104.09864), with the pairing of Hugging Face's Llama. Called with the positions at
    the beginning of each pass; `turn` then serves every layer of it.
    """

    def __init__(self, head_dim: int, max_seq_len: int, base: float = 10000.0):
        """Raises ValueError for an odd head_dim, a max_seq_len below 1 or a base <= 0."""
        self.tables = rotary_tables(np.arange(whole_number("max_seq_len", max_seq_len, 1)), head_dim, base)
        self(np.arange(1))

    def forward(self, positions) -> None:
        """(T,) ints, or (B, T) where each row has its own: from now on `turn` is for these tokens."""
        positions = np.asarray(positions)[..., None, :]  # the same for every head
        self.cos, self.sin = (table[positions] for table in self.tables)

    def turn(self, x) -> Tensor:
        """(B, H, T, D) -> (B, H, T, D): each token's vector turned by its position."""
        return apply(apply_rotary, x, self.cos, self.sin)


# %% nbgrader={"grade": false, "grade_id": "grouped-query-attention", "locked": false, "schema_version": 3, "solution": true}
#| export
class GroupedQueryAttention(Module):
    """(B, T, C) -> (B, T, C): causal attention with fewer key and value heads than query heads.

    Ainslie et al. 2023 (arXiv:2305.13245). No biases.
    """

    def __init__(self, embed_dim: int, num_heads: int, num_kv_heads: int, head_dim: int, turn, rng=None):
        """turn: (B, H, T, D) -> (B, H, T, D), what positions do to queries and keys.

        Raises ValueError if num_heads is not divisible by num_kv_heads or a size is below 1, TypeError if a
        size is not a whole number.
        """
        self.embed_dim = whole_number("embed_dim", embed_dim, 1)
        self.num_heads = whole_number("num_heads", num_heads, 1)
        self.num_kv_heads = whole_number("num_kv_heads", num_kv_heads, 1)
        self.head_dim = whole_number("head_dim", head_dim, 1)
        if num_heads % num_kv_heads:
            raise ValueError(f"{num_heads} query heads cannot share {num_kv_heads} key heads evenly")
        self.turn = turn
        rng = np.random.default_rng(rng)
        self.q_proj = Linear(embed_dim, num_heads * head_dim, bias=False, rng=rng)
        self.k_proj = Linear(embed_dim, num_kv_heads * head_dim, bias=False, rng=rng)
        self.v_proj = Linear(embed_dim, num_kv_heads * head_dim, bias=False, rng=rng)
        self.out_proj = Linear(num_heads * head_dim, embed_dim, bias=False, rng=rng)

    def project(self, x) -> tuple[Tensor, Tensor, Tensor]:
        """(B, T, C) -> turned queries (B, H, G, T, D), turned keys (B, H, T, D), values (B, H, T, D).

        H = num_kv_heads; query heads 0 .. G - 1 share key head 0, the next G key head 1, and so on.
        """
        ### BEGIN SOLUTION
        query = self.turn(apply(split_heads, self.q_proj(x), num_heads=self.num_heads))
        key = self.turn(apply(split_heads, self.k_proj(x), num_heads=self.num_kv_heads))
        value = apply(split_heads, self.v_proj(x), num_heads=self.num_kv_heads)
        B, _, T, D = query.shape
        return query.reshape(B, self.num_kv_heads, -1, T, D), key, value
        ### END SOLUTION

    def merge(self, heads) -> Tensor:
        """(B, H, G, T, D) -> (B, T, C): the heads side by side, mixed by the output layer."""
        ### BEGIN SOLUTION
        B, H, G, T, D = heads.shape
        return self.out_proj(apply(merge_heads, heads.reshape(B, H * G, T, D)))
        ### END SOLUTION

    def forward(self, x, mask=None) -> Tensor:
        """(B, T, C) -> (B, T, C). mask: floats added to the scores, broadcastable to (B, H, T, T)."""
        ### BEGIN SOLUTION
        query, key, value = self.project(x)
        return self.merge(scaled_dot_product_attention(query, key, value, mask, causal=True))
        ### END SOLUTION


# %% nbgrader={"grade": false, "grade_id": "swiglu", "locked": false, "schema_version": 3, "solution": true}
#| export
class SwiGLU(Module):
    """(..., C) -> (..., C): up twice, one way through SiLU as a gate for the other, and down again.

    Shazeer 2020 (arXiv:2002.05202). No biases.
    """

    def __init__(self, embed_dim: int, hidden_dim: int, rng=None):
        rng = np.random.default_rng(rng)
        self.gate = Linear(embed_dim, hidden_dim, bias=False, rng=rng)
        self.up = Linear(embed_dim, hidden_dim, bias=False, rng=rng)
        self.down = Linear(hidden_dim, embed_dim, bias=False, rng=rng)
        self.silu = SiLU()

    def forward(self, x) -> Tensor:
        """(..., C) -> (..., C)"""
        ### BEGIN SOLUTION
        return self.down(self.silu(self.gate(x)) * self.up(x))
        ### END SOLUTION


# %% nbgrader={"grade": false, "grade_id": "llama-block", "locked": false, "schema_version": 3, "solution": true}
#| export
class LlamaBlock(Module):
    """(B, T, C) -> (B, T, C): attention, then SwiGLU, each on what RMSNorm leaves, each added (pre-norm)."""

    def __init__(self, attention: GroupedQueryAttention, hidden_dim: int, eps: float = 1e-5, rng=None):
        self.norm1 = RMSNorm(attention.embed_dim, eps)
        self.attention = attention
        self.norm2 = RMSNorm(attention.embed_dim, eps)
        self.mlp = SwiGLU(attention.embed_dim, hidden_dim, rng=rng)

    def forward(self, x, mask=None) -> Tensor:
        """(B, T, C) -> (B, T, C). mask: floats added to the scores, broadcastable to (B, H, T, T)."""
        ### BEGIN SOLUTION
        x = x + self.attention(self.norm1(x), mask)
        return x + self.mlp(self.norm2(x))
        ### END SOLUTION


# %% nbgrader={"grade": false, "grade_id": "llama", "locked": false, "schema_version": 3, "solution": true}
#| export
class Llama(LanguageModel):
    """Llama (Touvron et al. 2023, arXiv:2302.13971), with grouped queries as in Llama 2 and 3."""

    def __init__(
        self,
        vocab_size: int,
        embed_dim: int,
        num_layers: int,
        num_heads: int,
        num_kv_heads: int | None = None,
        hidden_dim: int | None = None,
        max_seq_len: int = 2048,
        *,
        head_dim: int | None = None,
        rope_base: float = 10000.0,
        eps: float = 1e-5,
        tied: bool = True,
        seed=None,
    ):
        """num_kv_heads: of keys and values, by default num_heads. hidden_dim: of the MLP, by default 8C / 3.

        head_dim: by default C / num_heads. rope_base: of the rotary frequencies. eps: of the norms. tied: the
        logits are read off the token embedding. seed: of the random weights, or a NumPy Generator.
        Raises ValueError if a size is below 1, embed_dim is not divisible by num_heads (without head_dim), or
        num_heads is not divisible by num_kv_heads; TypeError if a size is not a whole number.
        """
        self.vocab_size = whole_number("vocab_size", vocab_size, 1)
        self.embed_dim = whole_number("embed_dim", embed_dim, 1)
        self.num_layers = whole_number("num_layers", num_layers, 1)
        self.num_heads = whole_number("num_heads", num_heads, 1)
        self.max_seq_len = whole_number("max_seq_len", max_seq_len, 1)
        self.num_kv_heads = num_heads if num_kv_heads is None else num_kv_heads
        self.hidden_dim = 8 * embed_dim // 3 if hidden_dim is None else hidden_dim
        if head_dim is None and embed_dim % num_heads:
            raise ValueError(f"embed_dim {embed_dim} is not divisible by num_heads {num_heads}")
        self.head_dim = embed_dim // num_heads if head_dim is None else head_dim
        self.rope_base, self.eps, self.tied = rope_base, eps, tied
        rng = np.random.default_rng(seed)
        self.token_embedding = Embedding(vocab_size, embed_dim, rng=rng)
        self.position_embedding = RotaryPositions(self.head_dim, max_seq_len, rope_base)
        self.blocks = [self.new_block(rng) for _ in range(num_layers)]
        self.norm = RMSNorm(embed_dim, eps)
        if not tied:
            self.output = Linear(embed_dim, vocab_size, bias=False, rng=rng)
        self.eval()

    def new_block(self, rng) -> LlamaBlock:
        """-> a block with random weights, whose attention turns with this model's positions."""
        sizes = self.embed_dim, self.num_heads, self.num_kv_heads, self.head_dim
        attention = GroupedQueryAttention(*sizes, turn=self.position_embedding.turn, rng=rng)
        return LlamaBlock(attention, self.hidden_dim, self.eps, rng=rng)

    def hidden_states(self, tokens, start_pos: int = 0) -> Tensor:
        """(B, T) ints at positions start_pos.. -> (B, T, C): what each token has gathered, for `logits`.

        Raises ValueError or TypeError for tokens that are none (see `check_tokens`) or that pass max_seq_len.
        """
        tokens = check_tokens(tokens, self.vocab_size)
        stop = whole_number("start_pos", start_pos, 0) + tokens.shape[1]
        if stop > self.max_seq_len:
            raise ValueError(
                f"{tokens.shape[1]} tokens from position {start_pos} on need {stop} positions, "
                f"the model has {self.max_seq_len}"
            )
        ### BEGIN SOLUTION
        self.position_embedding(np.arange(start_pos, stop))
        x = self.token_embedding(tokens)
        for block in self.blocks:
            x = block(x)
        return self.norm(x)
        ### END SOLUTION

    def logits(self, hidden) -> Tensor:
        """(..., C) -> (..., V)"""
        ### BEGIN SOLUTION
        if self.tied:
            return apply(linear, hidden, self.token_embedding.weight)
        return self.output(hidden)
        ### END SOLUTION

    @classmethod
    def from_gguf(cls, path, progress=None) -> "Llama":
        """A GGUF file of architecture "llama", such as SmolLM2's -> the model, its weights in float32.

        progress: called with (bytes done, bytes in all) while the weights are read.
        Raises ValueError for a file that is none, is damaged, or holds another model, OSError if it cannot be
        read, ModuleNotFoundError without the extra `[llm]`.
        """
        from tinytorch.pretrained.weights import load_llama_gguf

        return load_llama_gguf(cls, path, progress)

    @classmethod
    def from_pretrained(cls, folder, progress=None) -> "Llama":
        """A folder in Hugging Face's layout, config.json and safetensors -> the model, weights in float32.

        progress, errors: as for `from_gguf`.
        """
        from tinytorch.pretrained.weights import load_llama_folder

        return load_llama_folder(cls, folder, progress)
