"""The baseline: GPT-2 in plain NumPy functions, one loop over the heads, no cache, the logits of every token.

What one writes first, in the manner of picoGPT, only kept in float32 (a float64 that slips in makes it five
times slower, which would flatter ours). Weights are (in, out), as GPT-2's own.
"""

import math
from time import perf_counter

import numpy as np

from shapes import SHAPES, text, timed
from tinytorch.models.transformer import GPT


def gelu(x):
    return 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x * x * x)))


def softmax(x):
    e = np.exp(x - x.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)


def layer_norm(x, gain, bias):
    mean, variance = x.mean(axis=-1, keepdims=True), x.var(axis=-1, keepdims=True)
    return gain * (x - mean) / np.sqrt(variance + np.float32(1e-5)) + bias


def attention(x, w, name, heads):
    """(T, C) -> (T, C)"""
    q, k, v = (
        np.split(x @ w[f"{name}{p}_proj.weight"] + w[f"{name}{p}_proj.bias"], heads, axis=-1) for p in "qkv"
    )
    future = np.triu(np.full((len(x), len(x)), -1e10, np.float32), 1)
    scale = math.sqrt(q[0].shape[-1])
    seen = [softmax(q[h] @ k[h].T / scale + future) @ v[h] for h in range(heads)]
    return np.concatenate(seen, axis=-1) @ w[f"{name}out_proj.weight"] + w[f"{name}out_proj.bias"]


def gpt2(tokens, w, layers, heads):
    """T tokens -> logits (T, V)"""
    x = w["token_embedding.weight"][tokens] + w["position_embedding.weight"][: len(tokens)]
    for i in range(layers):
        b = f"blocks.{i}."
        h = layer_norm(x, w[f"{b}norm1.weight"], w[f"{b}norm1.bias"])
        x = x + attention(h, w, f"{b}attention.", heads)
        h = layer_norm(x, w[f"{b}norm2.weight"], w[f"{b}norm2.bias"])
        h = gelu(h @ w[f"{b}mlp.up.weight"] + w[f"{b}mlp.up.bias"])
        x = x + h @ w[f"{b}mlp.down.weight"] + w[f"{b}mlp.down.bias"]
    return layer_norm(x, w["norm.weight"], w["norm.bias"]) @ w["token_embedding.weight"].T


class Plain:
    """The functions above with the weights of GPT(seed=0)."""

    def __init__(self, shape: str, max_seq_len: int = 1024):
        self.shape = shape
        self.weights = GPT(*SHAPES[shape], max_seq_len, seed=0).state_dict()
        for name, array in self.weights.items():
            if array.ndim == 2 and "embedding" not in name:
                self.weights[name] = np.ascontiguousarray(array.T)

    def tokens(self, prompt: int, new: int):
        """Yields greedy tokens, (1,) each."""
        _, _, layers, heads = SHAPES[self.shape]
        tokens = text(self.shape, prompt)[0].tolist()
        for _ in range(new):
            tokens.append(int(gpt2(tokens, self.weights, layers, heads)[-1].argmax()))
            yield tokens[-1:]

    def generate(self, prompt: int, new: int) -> dict:
        """A greedy generation of `new` tokens after `prompt` given ones."""
        return timed(perf_counter(), self.tokens(prompt, new))


def one_more(token, position, w, layers, heads, cache):
    """One token after `position` cached ones -> its logits (V,). cache: (layers, 2, heads, longest, D)"""
    x = w["token_embedding.weight"][token] + w["position_embedding.weight"][position]
    for i in range(layers):
        b = f"blocks.{i}."
        h = layer_norm(x, w[f"{b}norm1.weight"], w[f"{b}norm1.bias"])
        q, k, v = (
            (h @ w[f"{b}attention.{p}_proj.weight"] + w[f"{b}attention.{p}_proj.bias"]).reshape(heads, 1, -1)
            for p in "qkv"
        )
        keys, values = cache[i, :, :, : position + 1]
        keys[:, position:], values[:, position:] = k, v
        seen = softmax(q @ keys.swapaxes(-1, -2) / math.sqrt(q.shape[-1])) @ values
        x = x + seen.reshape(-1) @ w[f"{b}attention.out_proj.weight"] + w[f"{b}attention.out_proj.bias"]
        h = layer_norm(x, w[f"{b}norm2.weight"], w[f"{b}norm2.bias"])
        h = gelu(h @ w[f"{b}mlp.up.weight"] + w[f"{b}mlp.up.bias"])
        x = x + h @ w[f"{b}mlp.down.weight"] + w[f"{b}mlp.down.bias"]
    return layer_norm(x, w["norm.weight"], w["norm.bias"]) @ w["token_embedding.weight"].T


class PlainCached(Plain):
    """The same with a cache, and no check of anything: what decoding takes without a library."""

    def decode(self, context: int, new: int) -> dict:
        """`new` greedy tokens, the first of them after `context` cached ones, made up as for our own."""
        vocab, wide, layers, heads = SHAPES[self.shape]
        cache = np.zeros((layers, 2, heads, context + new, wide // heads), np.float32)
        cache[..., : context - 1, :] = np.random.default_rng(0).standard_normal(
            (heads, context - 1, wide // heads), dtype=np.float32
        )
        return timed(perf_counter(), self.follow(text(self.shape, 1)[0, 0], context - 1, new, cache))

    def follow(self, token: int, position: int, new: int, cache):
        """Yields greedy tokens, (1,) each, after `token`, which stands at `position`."""
        _, _, layers, heads = SHAPES[self.shape]
        for place in range(position, position + new):
            token = int(one_more(token, place, self.weights, layers, heads, cache).argmax())
            yield [token]
