# %% [markdown]
"""
# Transformers
"""

# %%
#| default_exp models.transformer

# %%
#| export
import math
from collections.abc import Iterator

import numpy as np

from tinytorch.core.activations import GELU, softmax
from tinytorch.core.attention import MultiHeadAttention
from tinytorch.core.autograd import no_grad
from tinytorch.core.layers import Linear, Module, linear
from tinytorch.core.normalization import LayerNorm
from tinytorch.core.tensor import Tensor, apply, as_array
from tinytorch.text.embeddings import Embedding


# %%
#| export
class MLP(Module):
    """(B, T, C) -> (B, T, C): up to 4C, GELU, and down again, for each token apart."""

    def __init__(self, embed_dim: int, rng=None):
        rng = np.random.default_rng(rng)
        self.up = Linear(embed_dim, 4 * embed_dim, rng=rng)
        self.down = Linear(4 * embed_dim, embed_dim, rng=rng)
        self.gelu = GELU()

    def forward(self, x) -> Tensor:
        return self.down(self.gelu(self.up(x)))


# %%
#| export
class TransformerBlock(Module):
    """(B, T, C) -> (B, T, C): attention, then the MLP, each added to what came in (pre-norm)."""

    def __init__(self, embed_dim: int, num_heads: int, rng=None):
        rng = np.random.default_rng(rng)
        self.norm1 = LayerNorm(embed_dim)
        self.attention = MultiHeadAttention(embed_dim, num_heads, causal=True, rng=rng)
        self.norm2 = LayerNorm(embed_dim)
        self.mlp = MLP(embed_dim, rng=rng)

    def forward(self, x, mask=None) -> Tensor:
        x = x + self.attention(self.norm1(x), mask)
        return x + self.mlp(self.norm2(x))


# %%
#| export
def check_tokens(tokens, vocab_size: int) -> np.ndarray:
    """Tokens in any form -> (B, T) integer array. Raises ValueError or TypeError if they are not that."""
    ids = as_array(tokens)
    if ids.ndim != 2:
        raise ValueError(f"tokens have shape (B, T), got {ids.ndim} axes: {ids.shape}")
    if ids.size == 0:
        raise ValueError(f"there must be at least 1 token, got shape {ids.shape}")
    if ids.dtype.kind not in "iu":
        raise TypeError(f"tokens are integers, got {ids.dtype}")
    if ids.min() < 0 or ids.max() >= vocab_size:
        wrong = ids.min() if ids.min() < 0 else ids.max()
        raise ValueError(f"token {wrong} is outside the vocabulary of {vocab_size} (0 to {vocab_size - 1})")
    return ids


# %%
#| export
def keep_top_k(logits: np.ndarray, k: int) -> np.ndarray:
    """(B, V) -> (B, V): all but the k largest of each row become -inf; ties with the k-th stay."""
    if k >= logits.shape[-1]:
        return logits
    smallest_kept = np.partition(logits, -k, axis=-1)[:, -k, None]
    return np.where(logits >= smallest_kept, logits, -np.inf)


def keep_top_p(logits: np.ndarray, p: float) -> np.ndarray:
    """(B, V) -> (B, V): the fewest likeliest tokens whose probabilities reach p stay (Holtzman et al. 2020)."""
    order = np.argsort(-logits, axis=-1, kind="stable")
    probs = softmax(np.take_along_axis(logits, order, axis=-1))
    before = np.cumsum(probs, axis=-1) - probs  # what the likelier ones sum to
    dropped = np.empty(logits.shape, bool)
    np.put_along_axis(dropped, order, before >= p, axis=-1)
    return np.where(dropped, -np.inf, logits)


def sample(logits: np.ndarray, temperature=1.0, top_k=None, top_p=None, rng=None) -> np.ndarray:
    """(B, V) -> (B,): one token for each row. Temperature 0 takes the likeliest.

    Else tokens are drawn from softmax(logits / temperature), restricted to the top_k likeliest, then to top_p.
    """
    check_sampling(temperature, top_k, top_p)
    if temperature == 0:
        return logits.argmax(axis=-1)
    logits = logits / temperature
    if top_k is not None:
        logits = keep_top_k(logits, top_k)
    if top_p is not None:
        logits = keep_top_p(logits, top_p)
    cumulative = np.cumsum(softmax(logits.astype(np.float64)), axis=-1)
    draws = np.random.default_rng(rng).random((len(logits), 1)) * cumulative[:, -1:]
    return (cumulative <= draws).sum(axis=-1)


def check_sampling(temperature, top_k, top_p) -> None:
    """Raises ValueError or TypeError for settings that no distribution can have."""
    if not math.isfinite(temperature) or temperature < 0:
        raise ValueError(f"temperature should be finite and at least 0, got {temperature}")
    if top_k is not None and (isinstance(top_k, bool) or not isinstance(top_k, (int, np.integer))):
        raise TypeError(f"top_k is a whole number, got {top_k!r}")
    if top_k is not None and top_k < 1:
        raise ValueError(f"top_k should be at least 1, got {top_k}")
    if top_p is not None and not 0 < top_p <= 1:
        raise ValueError(f"top_p should be in (0, 1], got {top_p}")


# %%
#| export
def stream(
    next_logits, prompt, max_new_tokens, temperature=1.0, top_k=None, top_p=None, rng=None, stop_token=None
) -> Iterator[np.ndarray]:
    """Yields the next token of each row, (B,), up to max_new_tokens times.

    next_logits: called with the tokens it has not seen yet, (B, T): first the whole prompt, then one token a row;
        it gives the logits of the token after them, (B, V).
    stop_token: a row that has produced it produces nothing else; when all rows have, the stream ends.
    """
    check_sampling(temperature, top_k, top_p)
    return _stream(
        next_logits, prompt, max_new_tokens, temperature, top_k, top_p, np.random.default_rng(rng), stop_token
    )


def _stream(next_logits, new, max_new_tokens, temperature, top_k, top_p, rng, stop_token):
    stopped = np.zeros(len(new), bool)
    for _ in range(max_new_tokens):
        tokens = sample(next_logits(new), temperature, top_k, top_p, rng)
        if stop_token is not None:
            tokens = np.where(stopped, stop_token, tokens)
            stopped |= tokens == stop_token
        yield tokens
        if stopped.all():
            return
        new = tokens[:, None]


# %%
#| export
class LanguageModel(Module):
    """What every model that predicts the next token can do. It needs `hidden_states`, `logits`, vocab_size and max_seq_len."""

    def forward(self, tokens) -> Tensor:
        """(B, T) ints -> (B, T, V): for each token, the logits of the one that follows."""
        return self.logits(self.hidden_states(tokens))

    def next_logits(self, tokens) -> np.ndarray:
        """(B, T) ints -> (B, V): the logits of the token after the last one only."""
        with no_grad():
            return self.logits(self.hidden_states(tokens)[:, -1:]).data[:, 0]

    def decoder(self, batch_size: int, num_tokens: int):
        """-> next_logits for a new text of at most num_tokens tokens. This one remembers the text and recomputes it all."""
        return Recompute(self, batch_size, num_tokens)

    def generate(
        self, prompt, max_new_tokens, temperature=1.0, top_k=None, top_p=None, rng=None, stop_token=None
    ) -> np.ndarray:
        """(B, T) ints -> (B, T + n) ints, n = max_new_tokens unless every row met stop_token before.

        Raises ValueError if the prompt is empty, holds a token outside the vocabulary, or if prompt and new tokens
        together are longer than max_seq_len.
        """
        prompt = check_tokens(prompt, self.vocab_size)
        if isinstance(max_new_tokens, bool) or not isinstance(max_new_tokens, (int, np.integer)):
            raise TypeError(f"max_new_tokens is a whole number, got {max_new_tokens!r}")
        if max_new_tokens < 0:
            raise ValueError(f"max_new_tokens should be at least 0, got {max_new_tokens}")
        total = prompt.shape[1] + max_new_tokens
        if total > self.max_seq_len:
            raise ValueError(
                f"{prompt.shape[1]} prompt tokens and {max_new_tokens} new ones make {total}, the model takes {self.max_seq_len}"
            )
        check_sampling(temperature, top_k, top_p)
        next_logits = self.decoder(len(prompt), total)
        new = stream(next_logits, prompt, max_new_tokens, temperature, top_k, top_p, rng, stop_token)
        return np.concatenate([prompt, *(tokens[:, None] for tokens in new)], axis=1)


class Recompute:
    """Called with new tokens, (B, T), runs the model on all tokens since the first -> (B, V)."""

    def __init__(self, model, batch_size: int, num_tokens: int):
        self.model = model
        self.tokens = np.empty((batch_size, num_tokens), np.int64)
        self.length = 0

    def __call__(self, new) -> np.ndarray:
        start, self.length = self.length, self.length + new.shape[1]
        self.tokens[:, start : self.length] = new
        return self.model.next_logits(self.tokens[:, : self.length])


# %%
#| export
class GPT(LanguageModel):
    """GPT-2 (Radford et al. 2019): pre-norm blocks, learned positions, output tied to the token embedding."""

    def __init__(
        self,
        vocab_size: int,
        embed_dim: int,
        num_layers: int,
        num_heads: int,
        max_seq_len: int = 1024,
        *,
        seed=None,
    ):
        for name, size in (
            ("vocab_size", vocab_size),
            ("num_layers", num_layers),
            ("max_seq_len", max_seq_len),
        ):
            if size < 1:
                raise ValueError(f"{name} should be at least 1, got {size}")
        rng = np.random.default_rng(seed)
        self.vocab_size, self.embed_dim, self.max_seq_len = vocab_size, embed_dim, max_seq_len
        self.num_layers, self.num_heads = num_layers, num_heads
        self.token_embedding = Embedding(vocab_size, embed_dim, rng=rng)
        self.position_embedding = Embedding(max_seq_len, embed_dim, rng=rng)
        self.blocks = [TransformerBlock(embed_dim, num_heads, rng=rng) for _ in range(num_layers)]
        self.norm = LayerNorm(embed_dim)
        self._initialise(rng)
        self.eval()

    def _initialise(self, rng) -> None:
        """Weights N(0, 0.02), those that end in the residual stream smaller by sqrt(2L); biases 0."""
        for name, p in self.named_parameters():
            if p.ndim == 2:
                residual = name.endswith(("out_proj.weight", "down.weight"))
                scale = 0.02 / math.sqrt(2 * self.num_layers) if residual else 0.02
                p.data[...] = rng.normal(0, scale, p.shape)

    def hidden_states(self, tokens, start_pos: int = 0) -> Tensor:
        """(B, T) ints at positions start_pos.. -> (B, T, C): what each token has gathered, ready for `logits`."""
        tokens = check_tokens(tokens, self.vocab_size)
        stop = start_pos + tokens.shape[1]
        if stop > self.max_seq_len:
            raise ValueError(f"the tokens reach position {stop - 1}, the model takes {self.max_seq_len}")
        x = self.token_embedding(tokens) + self.position_embedding(np.arange(start_pos, stop))
        for block in self.blocks:
            x = block(x)
        return self.norm(x)

    def logits(self, hidden) -> Tensor:
        """(B, T, C) -> (B, T, V): the token embedding read the other way."""
        return apply(linear, hidden, self.token_embedding.weight)
