"""Right answers to module 17: loops, other orders, other ways to say the same positions."""

from right_answers import Right

RIGHT = [
    Right(
        name="plain loops wherever one can",
        bodies={
            "window_mask": """
                mask = np.full((len(queries), len(keys)), -np.inf, np.float32)
                for t, p in enumerate(queries):
                    for s, q in enumerate(keys):
                        if q <= p and (p - q < window or q < num_sinks):
                            mask[t, s] = 0
                return mask
            """,
            "seen_positions": """
                start = first - window + 1
                positions = [q for q in range(num_sinks) if q < start]
                positions += range(max(start, 0), last)
                return np.array(positions, dtype=int)
            """,
            "SlidingWindowKVCache.write_one": """
                keys, values = self.caches[layer_idx]
                slot = int(slots_of(self.seq_pos, self.ring, self.num_sinks))
                if self.replaced.get(layer_idx) is None:
                    old = np.array(keys[:, :, slot]), np.array(values[:, :, slot])
                    self.replaced = {**self.replaced, layer_idx: (slot, old[0], old[1])}
                keys[:, :, slot : slot + 1] = key
                values[:, :, slot : slot + 1] = value
                in_use = min(self.seq_pos + 1, self.capacity)
                return keys[:, :, :in_use], values[:, :, :in_use]
            """,
            "SlidingWindowKVCache.join": """
                start = self.seq_pos
                stay = []
                for t in range(key.shape[2]):
                    newest = start + t >= self.pending_stop - self.ring
                    if newest or start + t < self.num_sinks:
                        stay.append(t)
                keys, values = self.get(layer_idx)
                key, value = np.array(key, dtype=self.dtype), np.array(value, dtype=self.dtype)
                kept_keys = np.stack([key[:, :, t] for t in stay], axis=2)
                kept_values = np.stack([value[:, :, t] for t in stay], axis=2)
                self.pending[layer_idx] = (np.array(stay) + start, kept_keys, kept_values)
                return np.concatenate([keys.data, key], axis=2), np.concatenate([values.data, value], axis=2)
            """,
            "SlidingWindowKVCache.settle": """
                if self.seq_pos - self.ring > self.gone:
                    self.gone = self.seq_pos - self.ring
                for layer_idx in self.pending:
                    positions, keys, values = self.pending[layer_idx]
                    for i, position in enumerate(positions):
                        slot = int(slots_of(position, self.ring, self.num_sinks))
                        self.caches[layer_idx][0][:, :, slot] = keys[:, :, i]
                        self.caches[layer_idx][1][:, :, slot] = values[:, :, i]
                self.pending = {}
            """,
            "SlidingWindowKVCache.get": """
                keys, values = self.caches[layer_idx]
                shape = (self.batch_size, self.num_heads, len(self.positions), self.head_dim)
                out = np.empty(shape, self.dtype), np.empty(shape, self.dtype)
                for i, position in enumerate(self.positions):
                    slot = int(slots_of(position, self.ring, self.num_sinks))
                    out[0][:, :, i], out[1][:, :, i] = keys[:, :, slot], values[:, :, slot]
                return wrap_result(out[0]), wrap_result(out[1])
            """,
            "SlidingWindowKVCache.truncate": """
                for needed in range(max(self.num_sinks, seq_pos - self.window + 1), seq_pos):
                    if needed < self.gone:
                        raise ValueError(
                            f"{seq_pos} tokens cannot be kept: token {needed} is among those before "
                            f"{self.gone}, which are gone; reset and read the text again"
                        )
                self.take_back()
                if self.gone > seq_pos:
                    self.gone = seq_pos
                self.seq_pos = seq_pos
            """,
        },
    ),
    Right(
        name="the ring's remainder taken by divmod, blocks into one empty array, scores by hand",
        bodies={
            "slots_of": """
                positions = np.array(positions)
                _, in_ring = np.divmod(positions - num_sinks, window)
                is_sink = positions < num_sinks
                return is_sink * positions + ~is_sink * (num_sinks + in_ring)
            """,
            "attend_in_window": """
                T = query.shape[-2]
                where = seen_positions(first, first + T, window, num_sinks)
                out = np.empty((*query.shape[:-1], value.shape[-1]), query.dtype)
                for a in range(0, T, block):
                    b = min(T, a + block)
                    queries = np.arange(first + a, first + b)
                    keys = seen_positions(first + a, first + b, window, num_sinks)
                    columns = np.flatnonzero(np.isin(where, keys))
                    scores = query[..., a:b, :] @ key[..., columns, :].swapaxes(-1, -2)
                    scores = scores / np.float32(math.sqrt(query.shape[-1]))
                    scores = scores + window_mask(queries, keys, window, num_sinks)
                    if add is not None:
                        scores = scores + add(queries, keys)
                    scores = scores - scores.max(axis=-1, keepdims=True)
                    shares = np.exp(scores)
                    shares = shares / shares.sum(axis=-1, keepdims=True)
                    out[..., a:b, :] = shares @ value[..., columns, :]
                return out
            """,
            "sink_correction": """
                cos, sin = tables[0][shift], tables[1][shift]
                half = query.shape[-1] // 2
                a, b = query[..., :half], query[..., half:]
                back = np.concatenate([a * cos + b * sin, b * cos - a * sin], axis=-1)
                across = sinks.swapaxes(-1, -2)
                return (np.matmul(back, across) - np.matmul(query, across)) / np.float32(query.shape[-1] ** 0.5)
            """,
            "more_positions": """
                fresh = type(rotary)(model.head_dim, max_seq_len, model.rope_base, model.rope_factors)
                rotary.tables = fresh.tables
                model.max_seq_len = max_seq_len
            """,
        },
    ),
    Right(
        name="the sinks turned forward instead of the query turned back, sets of positions",
        bodies={
            "window_mask": """
                p, q = np.meshgrid(np.asarray(queries), np.asarray(keys), indexing="ij")
                hidden = (q > p) | ((p - q >= window) & (q >= num_sinks))
                mask = np.zeros(hidden.shape, np.float32)
                mask[hidden] = -np.inf
                return mask
            """,
            "seen_positions": """
                in_window = range(max(0, first + 1 - window), last)
                return np.array(sorted({*range(min(num_sinks, last)), *in_window}), dtype=np.int64)
            """,
            "sink_correction": """
                cos, sin = (table[shift][:, None] for table in tables)
                forward = apply_rotary(sinks[..., None, :, :], cos.repeat(sinks.shape[-2], 1), sin.repeat(sinks.shape[-2], 1))
                change = forward - sinks[..., None, :, :]
                scores = (change @ query[..., None]).squeeze(-1)
                return scores / np.float32(math.sqrt(query.shape[-1]))
            """,
            "SlidingWindowKVCache.join": """
                chunk = np.arange(self.seq_pos, self.pending_stop)
                stays = (chunk >= self.pending_stop - self.ring) | (chunk < self.num_sinks)
                shown = []
                waiting = [chunk[stays]]
                for old, new in zip(self.get(layer_idx), (key, value), strict=True):
                    new = new.astype(self.dtype, copy=False)
                    waiting.append(new[:, :, stays])
                    shown.append(np.concatenate((old.data, new), axis=-2))
                self.pending[layer_idx] = tuple(waiting)
                return tuple(shown)
            """,
            "SlidingWindowKVCache.truncate": """
                needed = np.arange(self.num_sinks, seq_pos)[-self.window + 1 :] if self.window > 1 else np.arange(0)
                if (needed < self.gone).any():
                    raise ValueError(f"{seq_pos} tokens need keys before {self.gone}, which are gone")
                self.gone = min(seq_pos, self.gone)
                self.take_back()
                self.seq_pos = seq_pos
            """,
        },
    ),
]
