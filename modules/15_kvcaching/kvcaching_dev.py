# %% [markdown]
"""
# KV caching
"""

# %%
#| default_exp generation.kv_cache

# %%
#| export
import numpy as np

from tinytorch.core.attention import MultiHeadAttention, scaled_dot_product_attention
from tinytorch.core.autograd import no_grad
from tinytorch.core.tensor import Tensor, as_array
from tinytorch.models.transformer import check_tokens


# %%
#| export
class KVCache:
    """Room for the keys and values of every layer, filled from the left, never moved."""

    def __init__(self, batch_size, max_seq_len, num_layers, num_heads, head_dim, dtype=np.float32):
        self.batch_size, self.max_seq_len = batch_size, max_seq_len
        self.num_layers, self.num_heads, self.head_dim = num_layers, num_heads, head_dim
        self.dtype = np.dtype(dtype)
        self.seq_pos = 0
        self._allocate()

    def _allocate(self):
        shape = (self.batch_size, self.num_heads, self.max_seq_len, self.head_dim)
        self.caches = [
            tuple(Tensor(np.zeros(shape, self.dtype), dtype=self.dtype) for _ in "kv")
            for _ in range(self.num_layers)
        ]

    def update(self, layer_idx, key, value):
        key, value = as_array(key), as_array(value)
        stop = self.seq_pos + key.shape[2]
        if stop > self.max_seq_len:
            raise ValueError(
                f"{self.seq_pos} tokens and {key.shape[2]} new ones do not fit in {self.max_seq_len}"
            )
        keys, values = self.caches[layer_idx]
        keys.data[:, :, self.seq_pos : stop] = key
        values.data[:, :, self.seq_pos : stop] = value
        return self._view(layer_idx, stop)

    def _view(self, layer_idx, stop):
        return tuple(Tensor(x.data[:, :, :stop], dtype=self.dtype) for x in self.caches[layer_idx])

    def get(self, layer_idx):
        return self._view(layer_idx, self.seq_pos)

    def advance(self, num_tokens=1):
        self.seq_pos += num_tokens

    def truncate(self, seq_pos):
        self.seq_pos = seq_pos

    def reset(self, batch_size=None):
        self.seq_pos = 0
        if batch_size is not None and batch_size != self.batch_size:
            self.batch_size = batch_size
            self._allocate()


# %%
#| export
def attention_with_cache(query, key, value, cache, layer_idx, mask=None) -> Tensor:
    query = query if isinstance(query, Tensor) else Tensor(query)
    keys, values = cache.update(layer_idx, key, value)
    with no_grad():
        return scaled_dot_product_attention(query, keys, values, mask, causal=True)


# %%
#| export
class CachedLayer:
    """Stands in front of one attention layer of a finished model."""

    def __init__(self, model, attention, cache, layer_idx):
        self.model, self.attention, self.cache, self.layer_idx = model, attention, cache, layer_idx

    def forward(self, inner, x, mask=None):
        if self.model.training:
            return inner(x, mask)
        query, key, value = self.attention.project(x)
        return self.attention.merge(attention_with_cache(query, key, value, self.cache, self.layer_idx, mask))


class CachedModel:
    """Stands in front of a finished model."""

    def __init__(self, model, cache):
        self.model, self.cache = model, cache
        self.wraps = [(model, "hidden_states", self.hidden_states), (model, "decoder", self.decoder)]
        for i, block in enumerate(model.blocks):
            self.wraps.append(
                (block.attention, "forward", CachedLayer(model, block.attention, cache, i).forward)
            )

    def hidden_states(self, inner, tokens):
        if self.model.training:
            return inner(tokens)
        tokens = check_tokens(tokens, self.model.vocab_size)
        if self.cache.seq_pos == 0 and len(tokens) != self.cache.batch_size:
            self.cache.reset(len(tokens))
        with no_grad():
            hidden = inner(tokens, start_pos=self.cache.seq_pos)
        self.cache.advance(tokens.shape[1])
        return hidden

    def decoder(self, inner, batch_size, num_tokens):
        if self.model.training:
            return inner(batch_size, num_tokens)
        self.cache.reset()
        return self.model.next_logits


def enable_kv_cache(model, cache=None):
    if getattr(model, "_cache_enabled", False):
        disable_kv_cache(model)
    if cache is None:
        head_dim = model.embed_dim // model.num_heads
        cache = KVCache(1, model.max_seq_len, model.num_layers, model.num_heads, head_dim)
    model._cached = CachedModel(model, cache)
    for module, method, wrapper in model._cached.wraps:
        module.wrap(method, wrapper)
    model._kv_cache, model._cache_enabled = cache, True
    return cache


def disable_kv_cache(model):
    if not getattr(model, "_cache_enabled", False):
        return
    for module, method, wrapper in model._cached.wraps:
        module.unwrap(method, wrapper)
    del model._cached, model._kv_cache, model._cache_enabled


def generate_with_cache(model, prompt, max_new_tokens, **options):
    if getattr(model, "_cache_enabled", False):
        return model.generate(prompt, max_new_tokens, **options)
    enable_kv_cache(model)
    try:
        return model.generate(prompt, max_new_tokens, **options)
    finally:
        disable_kv_cache(model)


# %%
#| export
class CachedMultiHeadAttention(MultiHeadAttention):
    """Causal attention that remembers."""

    def __init__(self, embed_dim, num_heads, rng=None):
        super().__init__(embed_dim, num_heads, causal=True, rng=rng)

    def forward(self, x, cache=None, layer_idx=0, mask=None):
        if cache is None:
            return super().forward(x, mask)
        return self.merge(attention_with_cache(*self.project(x), cache, layer_idx, mask))
