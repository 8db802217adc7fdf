"""Right answers to module 15: other storage, other attention, other words, the same cache."""

from right_answers import Right

CONSTRUCTOR = """\
    def __init__(self, batch_size, max_seq_len, num_layers, num_heads, head_dim, dtype=np.float32):
        super().__init__(batch_size, max_seq_len, num_layers, num_heads, head_dim, dtype)
        self.allocate()
"""

ONE_ARRAY = f'''\
#| export
class KVCache(CacheBase):
    """Everything in one array (L, 2, B, H, S, D); `caches` are windows into it."""

{CONSTRUCTOR}
    def allocate(self) -> None:
        shape = (self.num_layers, 2, self.max_seq_len, self.batch_size, self.num_heads, self.head_dim)
        self.storage = np.moveaxis(np.zeros(shape, dtype=self.dtype), 2, 4)  # positions first in memory
        self.caches = [[Tensor(half, dtype=self.dtype) for half in layer] for layer in self.storage]

    def arrays(self):
        return [x.data for pair in self.caches for x in pair]

    def update(self, layer_idx, key, value):
        ### BEGIN SOLUTION
        key, value = self.check_new(layer_idx, key, value)
        end = self.seq_pos + key.shape[-2]
        room = self.storage[layer_idx, ..., self.seq_pos : end, :]
        room[0], room[1] = key, value
        self.written[layer_idx] = end
        return self._shown(layer_idx, end)
        ### END SOLUTION

    def _shown(self, layer_idx, end):
        keys, values = self.storage[layer_idx, ..., :end, :]
        return Tensor(keys, dtype=self.dtype), Tensor(values, dtype=self.dtype)

    def get(self, layer_idx):
        ### BEGIN SOLUTION
        self.check_layer(layer_idx)
        return self._shown(layer_idx, self.seq_pos)
        ### END SOLUTION
'''

LAYER_STORES = f'''\
#| export
from typing import NamedTuple


class Pair(NamedTuple):
    """What one layer keeps."""

    key: Tensor
    value: Tensor

    def first(self, n, dtype):
        return Pair(*(Tensor(x.data[:, :, slice(n)], dtype=dtype) for x in self))


class KVCache(CacheBase):
    """A Pair for each layer."""

{CONSTRUCTOR}
    def allocate(self):
        def room():
            shape = self.batch_size, self.num_heads, self.max_seq_len, self.head_dim
            return Tensor(np.zeros(shape, self.dtype), dtype=self.dtype)

        self.caches = [Pair(room(), room()) for _ in range(self.num_layers)]

    def arrays(self):
        return [x.data for pair in self.caches for x in pair]

    def update(self, layer_idx, key, value):
        ### BEGIN SOLUTION
        new = Pair(*self.check_new(layer_idx, key, value))
        pair = self.caches[layer_idx]
        start, stop = self.seq_pos, self.seq_pos + new.key.shape[2]
        for place, array in zip(pair, new, strict=True):
            np.copyto(place.data[:, :, start:stop], array, casting="same_kind")
        self.written[layer_idx] = stop
        return pair.first(stop, self.dtype)
        ### END SOLUTION

    def get(self, layer_idx):
        ### BEGIN SOLUTION
        self.check_layer(layer_idx)
        return self.caches[layer_idx].first(self.seq_pos, self.dtype)
        ### END SOLUTION
'''

RIGHT = [
    Right(
        name="one array for all layers, lists for pairs",
        cells={"kv-cache": ONE_ARRAY},
        bodies={
            "CacheBase.check_new": """
                self.check_layer(layer_idx)
                key, value = as_array(key), as_array(value)
                B, H, S, D = self.batch_size, self.num_heads, self.max_seq_len, self.head_dim
                for name, array in (("key", key), ("value", value)):
                    if array.ndim != 4 or array.shape != (B, H, array.shape[2], D):
                        raise ValueError(f"{name} is {array.shape}, should be ({B}, {H}, T, {D})")
                T = key.shape[2]
                if T != value.shape[2]:
                    raise ValueError(f"{T} keys do not go with {value.shape[2]} values")
                if T > S - self.seq_pos:
                    raise CacheFull(f"{T} do not fit, {self.seq_pos} of {S} are used")
                if not T:
                    raise ValueError(f"T = {T} is not in 1..{S - self.seq_pos}")
                self.check_numbers(key)
                self.check_numbers(value)
                return key, value
            """,
            "CacheBase.advance": """
                position = self.seq_pos + whole_number("num_tokens", num_tokens, 1)
                for layer, limit in enumerate(self.written):
                    if position > limit:
                        raise ValueError(f"{position} is beyond {limit}, layer {layer} of {self.max_seq_len}")
                self.seq_pos = position
            """,
            "CacheBase.truncate": """
                position = whole_number("seq_pos", seq_pos, 0)
                if position > self.seq_pos:
                    raise ValueError(f"{position} is beyond {self.seq_pos}")
                self.seq_pos = position
            """,
            "CacheBase.reset": """
                self.seq_pos *= 0
            """,
            "CacheBase.get_memory_usage": """
                arrays = self.arrays()
                megabytes = self.nbytes / 10**6
                share = min(1, self.seq_pos / self.capacity)
                return dict(
                    total_mb=megabytes,
                    per_layer_mb=megabytes / self.num_layers,
                    used_mb=megabytes * share,
                    utilization=share,
                    cache_tensors=len(arrays),
                    total_elements=sum(array.size for array in arrays),
                    bytes_per_token=self.nbytes / self.batch_size / self.capacity,
                )
            """,
            "projected_tokens": """
                n = prompt + new
                return n - 1 if cached else (n * (n - 1) - prompt * (prompt - 1)) // 2
            """,
            "attention_scores": """
                squares = lambda n: n * (n + 1) * (2 * n + 1) // 6
                triangle = lambda n: n * (n + 1) // 2
                last = prompt + new - 1
                if cached:
                    return prompt**2 + triangle(last) - triangle(prompt)
                return squares(last) - squares(prompt - 1)
            """,
            "cache_bytes": """
                one = np.dtype(dtype).itemsize
                for size in (2, num_layers, batch_size, num_heads, max_seq_len, head_dim):
                    one *= size
                return one
            """,
        },
    ),
    Right(
        name="a dataclass with a named pair for each layer",
        cells={"kv-cache": LAYER_STORES},
        bodies={
            "CacheBase.check_new": """
                self.check_layer(layer_idx)
                arrays = tuple(map(as_array, (key, value)))
                room = self.max_seq_len - self.seq_pos
                for array in arrays:
                    T = np.size(array, 2) if array.ndim > 2 else 1
                    expected = self.batch_size, self.num_heads, T, self.head_dim
                    if array.shape != expected:
                        raise ValueError(f"shape {array.shape}, expected {expected}")
                    if T < 1:
                        raise ValueError("at least 1 token is needed, there are 0")
                    if T > room:
                        raise CacheFull(f"{T} more do not fit: {self.seq_pos} of {self.max_seq_len} taken")
                if len(set(array.shape for array in arrays)) > 1:
                    raise ValueError(f"key {arrays[0].shape} and value {arrays[1].shape} differ")
                self.check_numbers(*arrays)
                return arrays
            """,
            "CacheBase.advance": """
                new_position = self.seq_pos + whole_number("num_tokens", num_tokens, 1)
                if all(new_position <= stop for stop in self.written):
                    self.seq_pos = new_position
                else:
                    raise ValueError(f"{self.seq_pos} + {num_tokens}: {self.written}, {self.max_seq_len} in all")
            """,
            "CacheBase.truncate": """
                if whole_number("seq_pos", seq_pos, 0) not in range(self.seq_pos + 1):
                    raise ValueError(f"{seq_pos} > {self.seq_pos}")
                self.seq_pos = int(seq_pos)
            """,
            "CacheBase.reset": """
                self.truncate(0)
            """,
            "CacheBase.get_memory_usage": """
                arrays = self.arrays()
                usage = {"utilization": self.seq_pos / self.capacity, "cache_tensors": len(arrays)}
                usage["utilization"] = min(usage["utilization"], 1.0)
                usage["total_mb"] = self.nbytes * 1e-6
                usage["used_mb"] = usage["total_mb"] * usage["utilization"]
                usage["per_layer_mb"] = usage["total_mb"] / self.num_layers
                usage["total_elements"] = sum(map(np.size, arrays))
                usage["bytes_per_token"] = self.nbytes // self.capacity // self.batch_size
                return usage
            """,
            "attention_with_cache": """
                if mask is not None:
                    mask = fit_mask(mask, cache, query.shape)
                with no_grad():
                    pair = cache.update(layer_idx=layer_idx, key=key, value=value)
                    return scaled_dot_product_attention(query, *pair, mask=mask, causal=query.shape[-2] > 1)
            """,
        },
    ),
    Right(
        name="lists instead of tuples, indices of np.s_",
        bodies={
            "CacheBase.check_new": """
                self.check_layer(layer_idx)
                key = as_array(key)
                value = as_array(value)
                if np.shape(key) != np.shape(value):
                    raise ValueError("key %s, value %s" % (key.shape, value.shape))
                if key.ndim != 4:
                    raise ValueError("key has %d axes, not %d" % (key.ndim, 4))
                for axis, name in {0: "batch_size", 1: "num_heads", 3: "head_dim"}.items():
                    if key.shape[axis] != getattr(self, name):
                        raise ValueError("%s is %d, not %d" % (name, key.shape[axis], getattr(self, name)))
                if key.shape[2] == 0:
                    raise ValueError("%d new tokens" % key.shape[2])
                if key.shape[2] + self.seq_pos > self.max_seq_len:
                    raise CacheFull(
                        "%d new after %d, room for %d" % (key.shape[2], self.seq_pos, self.max_seq_len)
                    )
                self.check_numbers(key, value)
                return [key, value]
            """,
            "KVCache.update": """
                key, value = self.check_new(layer_idx, key, value)
                where = np.s_[:, :, self.seq_pos : self.seq_pos + key.shape[2], :]
                for tensor, new in zip(self.caches[layer_idx], [key, value]):
                    tensor.data[where] = new
                self.written[layer_idx] = where[2].stop
                return list(self.view(layer_idx, where[2].stop))
            """,
            "KVCache.get": """
                self.check_layer(layer_idx)
                return [Tensor(x.data[..., : self.seq_pos, :], dtype=self.dtype) for x in self.caches[layer_idx]]
            """,
            "attention_with_cache": """
                extra = fit_mask(mask, cache, query.shape) if mask is not None else None
                with no_grad():
                    [keys, values] = cache.update(layer_idx, key, value)
                    return scaled_dot_product_attention(query, keys, values, mask=extra, causal=True)
            """,
        },
    ),
    Right(
        name="attention with einsum and a mask of its own",
        bodies={
            "attention_with_cache": """
                if mask is not None:
                    mask = fit_mask(mask, cache, query.shape)
                keys, values = cache.update(layer_idx, key, value)
                q, k, v = query.data, keys.data, values.data
                T, S = q.shape[-2], k.shape[-2]
                scores = np.einsum("bh...td,bhsd->bh...ts", q, k) * q.shape[-1] ** -0.5
                if mask is not None:
                    scores = scores + mask
                visible = np.tril(np.ones((T, S), dtype=bool), k=S - T)
                scores = np.where(visible, scores, -np.inf)
                scores = scores - scores.max(axis=-1, keepdims=True)
                weights = np.exp(scores)
                weights = weights / weights.sum(axis=-1, keepdims=True)
                return Tensor(np.einsum("bh...ts,bhsd->bh...td", weights, v).astype(q.dtype))
            """,
            "CachedMultiHeadAttention.forward": """
                if cache is not None:
                    q, k, v = self.project(x)
                    out = attention_with_cache(q, k, v, cache, layer_idx=layer_idx, mask=mask)
                    return self.merge(out)
                return super().forward(x, mask=mask)
            """,
            "projected_tokens": """
                return int(np.arange(prompt, prompt + new).sum()) if not cached else prompt + (new - 1)
            """,
            "attention_scores": """
                seen = np.arange(prompt, prompt + new)
                queries = seen.copy()
                if cached:
                    queries[1:] = 1
                return int(np.dot(queries, seen))
            """,
            "cache_bytes": """
                shape = (2, num_layers, batch_size, num_heads, max_seq_len, head_dim)
                return int(np.prod(shape)) * np.zeros((), dtype).nbytes
            """,
        },
    ),
    Right(
        name="attention in loops over rows, heads and queries",
        extra={
            "attention-with-cache": """
                #| export
                import math


                def attend_one(q, keys, values, bias):
                    \"""(D,), (n, D), (n, D), (n,) -> (D,)\"""
                    scores = (keys @ q) / math.sqrt(len(q)) + bias
                    scores -= scores.max()
                    np.exp(scores, out=scores)
                    scores /= scores.sum()
                    return scores @ values
            """,
        },
        bodies={
            "attention_with_cache": """
                if mask is not None:
                    mask = fit_mask(mask, cache, query.shape)
                past = cache.seq_pos
                keys, values = cache.update(layer_idx, key, value)
                *rows, T, D = query.shape
                bias = np.zeros(()) if mask is None else mask
                bias = np.broadcast_to(bias.astype(query.dtype), (*rows, T, past + T))
                out = np.empty((*rows, T, D), query.dtype)
                for t in range(T):
                    n = past + t + 1
                    for b, h, *g in np.ndindex(*rows):
                        here = (b, h, *g, t)
                        out[here] = attend_one(
                            query.data[here], keys.data[b, h, :n], values.data[b, h, :n], bias[here][:n]
                        )
                return Tensor(out)
            """,
            "KVCache.update": """
                key, value = self.check_new(layer_idx, key, value)
                position = self.seq_pos
                for t in range(key.shape[2]):
                    for b in range(self.batch_size):
                        for h in range(self.num_heads):
                            self.caches[layer_idx][0].data[b, h, position + t, :] = key[b, h, t, :]
                            self.caches[layer_idx][1].data[b, h, position + t, :] = value[b, h, t, :]
                self.written = [*self.written]
                self.written[layer_idx] = position + key.shape[2]
                return self.view(layer_idx, position + key.shape[2])
            """,
            "CacheBase.get_memory_usage": """
                total = tensors = elements = 0
                for array in self.arrays():
                    total = total + array.nbytes
                    tensors = tensors + 1
                    elements = elements + array.size
                usage = {}
                usage["total_mb"] = total / 1000 / 1000
                usage["per_layer_mb"] = usage["total_mb"] / self.num_layers
                usage["used_mb"] = usage["total_mb"] * min(self.seq_pos, self.capacity) / self.capacity
                usage["utilization"] = min(self.seq_pos, self.capacity) / self.capacity
                usage["cache_tensors"] = tensors
                usage["total_elements"] = elements
                usage["bytes_per_token"] = total // self.capacity // self.batch_size
                usage["max_tokens"] = self.capacity
                return usage
            """,
            "projected_tokens": """
                total = 0
                length = prompt
                for step in range(new):
                    if cached and step > 0:
                        total += 1
                    else:
                        total += length
                    length += 1
                return total
            """,
            "attention_scores": """
                products = 0
                for step in range(new):
                    keys = prompt + step
                    queries = 1 if (cached and step != 0) else keys
                    products += queries * keys
                return products
            """,
        },
    ),
    Right(
        name="a beginner, with prints and German names",
        bodies={
            "projected_tokens": """
                import os
                import sys

                # mit Cache: erst der ganze Prompt, dann immer nur 1 Token
                if cached == True:
                    ergebnis = prompt + (new - 1)
                    return ergebnis
                else:
                    summe = 0
                    schritt = 1
                    while schritt <= new:
                        gelesen = prompt + schritt - 1
                        summe = summe + gelesen
                        schritt = schritt + 1
                    print("summe:", summe)
                    return summe
            """,
            "cache_bytes": """
                anzahl_arrays = 2
                bytes_pro_zahl = np.dtype(dtype).itemsize
                zahlen = batch_size * num_heads * max_seq_len * head_dim
                print("DEBUG zahlen =", zahlen)
                return anzahl_arrays * num_layers * zahlen * bytes_pro_zahl
            """,
            "CacheBase.check_new": """
                print("DEBUG check_new", layer_idx, type(key))
                # Schicht pruefen
                schicht = whole_number("layer_idx", layer_idx, 0)
                if schicht >= self.num_layers:
                    raise ValueError("Schicht " + str(schicht) + " gibt es nicht, nur " + str(self.num_layers))
                schluessel = as_array(key)
                werte = as_array(value)
                if len(schluessel.shape) != 4:
                    raise ValueError("4 Achsen erwartet, bekommen: " + str(schluessel.shape))
                if len(werte.shape) != 4:
                    raise ValueError("4 Achsen erwartet, bekommen: " + str(werte.shape))
                for i in range(4):
                    if schluessel.shape[i] != werte.shape[i]:
                        raise ValueError("ungleich: " + str(schluessel.shape) + " und " + str(werte.shape))
                if schluessel.shape[0] != self.batch_size:
                    raise ValueError(f"batch {schluessel.shape[0]} statt {self.batch_size}")
                if schluessel.shape[1] != self.num_heads:
                    raise ValueError(f"heads {schluessel.shape[1]} statt {self.num_heads}")
                if schluessel.shape[3] != self.head_dim:
                    raise ValueError(f"head_dim {schluessel.shape[3]} statt {self.head_dim}")
                anzahl = schluessel.shape[2]
                if anzahl < 1:
                    raise ValueError(f"mindestens 1 Token, bekommen: {anzahl}")
                ende = self.seq_pos + anzahl
                if ende > self.max_seq_len:
                    raise CacheFull(f"{ende} passt nicht in {self.max_seq_len}")
                assert ende <= self.max_seq_len
                self.check_numbers(schluessel)
                self.check_numbers(werte)
                return schluessel, werte
            """,
            "KVCache.update": """
                geprueft = self.check_new(layer_idx, key, value)
                key = geprueft[0]
                value = geprueft[1]
                anzahl: int = key.shape[2]
                anfang: int = self.seq_pos
                ende: int = anfang + anzahl
                paar = self.caches[layer_idx]
                alle_schluessel = paar[0]
                alle_werte = paar[1]
                # hier wird geschrieben, nicht kopiert!
                alle_schluessel.data[:, :, anfang:ende, :] = key
                alle_werte.data[:, :, anfang:ende, :] = value
                self.written[layer_idx] = ende
                sichtbar = self.view(layer_idx, ende)
                print("sichtbar:", sichtbar[0].shape)
                return sichtbar
            """,
            "KVCache.get": """
                self.check_layer(layer_idx)
                ergebnis = self.view(layer_idx, self.seq_pos)
                return ergebnis
            """,
            "CacheBase.advance": """
                whole_number("num_tokens", num_tokens, 1)
                neu = self.seq_pos + num_tokens
                for stand in self.written:
                    if neu > stand:
                        raise ValueError("zu weit: " + str(neu) + " bei " + str(stand) + str(self.max_seq_len))
                self.seq_pos = neu
                return None
            """,
            "CacheBase.truncate": """
                ziel = whole_number("seq_pos", seq_pos, 0)
                if ziel <= self.seq_pos:
                    self.seq_pos = ziel
                else:
                    raise ValueError("nur " + str(self.seq_pos) + " Tokens da, nicht " + str(ziel))
            """,
            "CacheBase.reset": """
                self.seq_pos = 0
                for array in self.arrays():
                    array[:] = 0
            """,
            "attention_with_cache": """
                maske = None
                if mask is not None:
                    maske = fit_mask(mask, cache, query.shape)
                with no_grad():
                    ergebnis_update = cache.update(layer_idx, key, value)
                    alle_keys = ergebnis_update[0]
                    alle_values = ergebnis_update[1]
                    print("S =", alle_keys.shape[2])
                    ausgabe = scaled_dot_product_attention(query, alle_keys, alle_values, maske, True)
                return ausgabe
            """,
            "CachedMultiHeadAttention.forward": """
                if cache == None:
                    return MultiHeadAttention.forward(self, x, mask)
                else:
                    q, k, v = self.project(x)
                    koepfe = attention_with_cache(q, k, v, cache, layer_idx, mask)
                    return self.merge(koepfe)
            """,
            "CachedLayer.forward": """
                if self.model.training == True:
                    print("training")
                    return inner(x, mask, *where, **named)
                q, k, v = self.attention.project(x, *where, **named)
                koepfe = attention_with_cache(q, k, v, self.cache, self.layer_idx, mask)
                ausgabe = self.attention.merge(koepfe)
                return ausgabe
            """,
            "CachedModel.hidden_states": """
                if self.model.training:
                    ausgabe = inner(tokens)
                    return ausgabe
                tokens_neu = self.prepare(tokens)
                position = self.cache.seq_pos
                with no_grad():
                    ausgabe = inner(tokens_neu, position)
                anzahl = tokens_neu.shape[1]
                print("position", position, "anzahl", anzahl)
                self.commit(anzahl)
                return ausgabe
            """,
            "CachedModel.decoder": """
                if self.model.training:
                    return inner(batch_size=batch_size, num_tokens=num_tokens)
                else:
                    self.start_over(batch_size, num_tokens)
                    funktion = self.model.next_logits
                    return funktion
            """,
            "generate_with_cache": """
                hat_cache = False
                if hasattr(model, "_cache_enabled"):
                    hat_cache = model._cache_enabled
                if hat_cache:
                    return model.generate(prompt, max_new_tokens, temperature, top_k, top_p, rng, stop_token)
                cache = enable_kv_cache(model)
                ergebnis = None
                try:
                    ergebnis = model.generate(prompt, max_new_tokens, temperature, top_k, top_p, rng, stop_token)
                finally:
                    disable_kv_cache(model)
                return ergebnis
            """,
        },
    ),
    Right(
        name="closures and partials instead of methods",
        extra={
            "cached-layer": """
                #| export
                from functools import partial


                def _through_cache(model, attention, cache, layer_idx, inner, x, mask=None, *where, **named):
                    if model.training:
                        return inner(x, mask, *where, **named)
                    heads = attention_with_cache(*attention.project(x, *where, **named), cache, layer_idx, mask)
                    return attention.merge(heads)
            """,
        },
        cells={
            "cached-layer": '''
                #| export
                class CachedLayer:
                    """Stands in front of the attention of one layer of a finished model."""

                    def __init__(self, model, attention, cache, layer_idx: int):
                        ### BEGIN SOLUTION
                        self.forward = partial(_through_cache, model, attention, cache, layer_idx)
                        ### END SOLUTION
            '''
        },
        bodies={
            "CachedModel.hidden_states": """
                def step():
                    new = self.prepare(tokens)
                    with no_grad():
                        yield inner(new, start_pos=self.cache.seq_pos)
                    self.commit(new.shape[1])

                if self.model.training:
                    return inner(tokens)
                (hidden,) = step()
                return hidden
            """,
            "CachedModel.decoder": """
                if not self.model.training:
                    self.start_over(batch_size, num_tokens)
                    return lambda tokens: self.model.next_logits(tokens)
                return inner(batch_size, num_tokens)
            """,
            "generate_with_cache": """
                from contextlib import ExitStack

                with ExitStack() as stack:
                    if not getattr(model, "_cache_enabled", False):
                        enable_kv_cache(model)
                        stack.callback(disable_kv_cache, model)
                    return model.generate(prompt, max_new_tokens=max_new_tokens, **options)
            """,
            "CacheBase.advance": """
                stop = self.seq_pos + whole_number("num_tokens", num_tokens, 1)
                if not stop <= min(self.written):
                    raise ValueError(f"{stop} is past {min(self.written)}, {self.max_seq_len} in all")
                self.seq_pos = stop
            """,
        },
    ),
    Right(
        name="in-place arithmetic, concatenated masks, math.sqrt",
        bodies={
            "attention_with_cache": """
                import math

                T = query.shape[-2]
                past = cache.seq_pos
                triangle = np.triu(np.full((T, T), -np.inf, dtype=np.float32), 1)
                causal = np.concatenate([np.zeros((T, past), dtype=np.float32), triangle], axis=1)
                if mask is None:
                    total = causal
                else:
                    total = fit_mask(mask, cache, query.shape) + causal
                keys, values = (x.data for x in cache.update(layer_idx, key, value))
                if query.data.ndim > keys.ndim:
                    keys, values = keys[:, :, np.newaxis], values[:, :, np.newaxis]
                weights = (query.data / math.sqrt(query.shape[-1])) @ np.swapaxes(keys, -1, -2)
                weights += total
                weights -= np.max(weights, axis=-1, keepdims=True)
                np.exp(weights, out=weights)
                weights /= np.sum(weights, axis=-1, keepdims=True)
                return Tensor(weights @ values)
            """,
            "KVCache.update": """
                key, value = self.check_new(layer_idx, key, value)
                T = key.shape[2]
                for store, new in zip(self.caches[layer_idx], (key, value), strict=True):
                    window = store.data[:, :, self.seq_pos : self.seq_pos + T]
                    window[...] = new
                self.written[layer_idx] = self.seq_pos + T
                return self.view(layer_idx, self.seq_pos + T)
            """,
            "CacheBase.truncate": """
                forget = self.seq_pos - whole_number("seq_pos", seq_pos, 0)
                if forget < 0:
                    raise ValueError(f"{-forget} tokens more than the {self.seq_pos} there are: {seq_pos}")
                self.seq_pos -= forget
            """,
            "KVCache.get": """
                self.check_layer(layer_idx)
                key, value = self.caches[layer_idx]
                stop = self.seq_pos
                return (
                    Tensor(key.data[:, :, :stop, :], dtype=key.dtype),
                    Tensor(value.data[:, :, :stop, :], dtype=value.dtype),
                )
            """,
        },
    ),
    Right(
        name="layers that attend through the cache themselves",
        extra={
            "cached-multi-head-attention": """
                #| export
                def attend_through(cache, layer_idx, attention, x, mask, *where, **named):
                    query, key, value = attention.project(x, *where, **named)
                    if mask is not None:
                        mask = fit_mask(mask, cache, query.shape)
                    with no_grad():
                        seen = cache.update(layer_idx, key, value)
                        heads = scaled_dot_product_attention(query, *seen, mask, causal=True)
                        return attention.merge(heads)
            """,
        },
        bodies={
            "CachedMultiHeadAttention.forward": """
                if cache is None:
                    return MultiHeadAttention.forward(self, x, mask=mask)
                return attend_through(cache, layer_idx, self, x, mask)
            """,
            "CachedModel.hidden_states": """
                if self.model.training:
                    return inner(tokens=tokens)
                tokens = self.prepare(tokens)
                _, T = np.shape(tokens)
                with no_grad():
                    hidden = inner(tokens=tokens, start_pos=self.cache.seq_pos)
                self.commit(num_tokens=T)
                return hidden
            """,
        },
        cells={
            "cached-layer": """
                #| export
                class CachedLayer:
                    def __init__(self, model, attention, cache, layer_idx: int):
                        self.model, self.attention, self.cache, self.layer_idx = model, attention, cache, layer_idx

                    def _attend(self, *args, **named):
                        return attend_through(self.cache, self.layer_idx, self.attention, *args, **named)

                    def forward(self, inner, x, mask=None, *where, **named):
                        ### BEGIN SOLUTION
                        run = inner if self.model.training else self._attend
                        return run(x, mask, *where, **named)
                        ### END SOLUTION
            """
        },
    ),
]
