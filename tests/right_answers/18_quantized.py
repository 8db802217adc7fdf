"""Right answers to module 18: loops, float64 inside, arithmetic for bits, and dequantising in full."""

from right_answers import Right

RIGHT = [
    Right(
        name="number by number, and arithmetic instead of shifts",
        bodies={
            "half_below": """
                halves = np.empty(x.shape, np.float16)
                for place in np.ndindex(x.shape):
                    half = np.float16(x[place])
                    if float(half) > float(x[place]):
                        half = np.nextafter(half, np.float16(-np.inf))
                    halves[place] = half
                return halves
            """,
            "quantize": """
                begin = 0.0 if low is None else low.astype(float)
                width = step.astype(float)
                marks = (x - begin) / np.where(width > 0, width, np.inf)
                return np.floor(marks + 0.5).astype(np.uint8 if low is not None else np.int8)
            """,
            "dequantize": """
                wide = np.asarray(codes, np.float64) * np.asarray(step, np.float64)
                if low is not None:
                    wide = wide + np.asarray(low, np.float64)
                return wide.astype(np.float32)
            """,
            "pack_int4": """
                half = codes.shape[-2] // 2
                digits = codes.astype(int) % 16
                packed = digits[..., :half, :] + 16 * digits[..., half:, :]
                return packed.astype(np.uint8).view(codes.dtype)
            """,
            "unpack_int4": """
                high, low = np.divmod(packed.view(np.uint8).astype(int), 16)
                codes = np.concatenate([low, high], axis=-2)
                if packed.dtype == np.int8:
                    codes = np.where(codes > 7, codes - 16, codes)
                return codes.astype(packed.dtype if dtype is None else dtype)
            """,
            "quantized_after": """
                moved = 0
                while num_tokens - moved > residual_length:
                    moved += group_size
                return moved
            """,
        },
    ),
    Right(
        name="float64 inside, the low as the least of two",
        bodies={
            "half_below": """
                near = x.astype(np.float16)
                with np.errstate(over="ignore"):
                    below = np.nextafter(near, np.float16(-np.inf))
                return np.where(near.astype(np.float64) <= x, near, below)
            """,
            "choose_steps": """
                wide = x.astype(np.float64)
                if symmetric:
                    low, begin = None, 0.0
                    wide = np.abs(wide)
                else:
                    low = half_below(x.min(axis=axis, keepdims=True))
                    begin = low.astype(np.float64)
                span = np.max(wide, axis=axis, keepdims=True) - begin
                step = np.float16(span / top)
                short = step.astype(np.float64) * top < span
                step[short] = np.nextafter(step[short], np.float16(np.inf))
                return step, low
            """,
            "error_bound": """
                top, wide = top_code(bits, low is None), step.astype(np.float64)
                size = 0 if low is None else abs(low.astype(np.float64))
                return (wide * (0.5 + top / 2**22) + size / 2**22).astype(np.float32)
            """,
        },
    ),
    Right(
        name="dequantised in full, einsum",
        bodies={
            "QuantizedBlocks.write": """
                first = start // self.group_size
                for place in range(x.shape[2]):
                    block = x[:, :, place]
                    if self.bits == 16:
                        self.codes[:, :, first + place] = block
                        continue
                    step, low = choose_steps(block, self.bits, self.axis, self.symmetric)
                    codes = quantize(block, step, low)
                    self.codes[:, :, first + place] = codes if self.bits == 8 else pack_int4(codes)
                    self.step[:, :, first + place] = step
                    if not self.symmetric:
                        self.low[:, :, first + place] = low
            """,
            "QuantizedBlocks.scores": """
                keys = codes
                if step is not None:
                    keys = keys * step
                if low is not None:
                    keys = keys + low
                scores = np.einsum("bhgd,bhntd->bhngt", query, keys)
            """,
            "QuantizedBlocks.mix": """
                values = codes if step is None else codes * step
                values = values if low is None else values + low
                shares = weights.reshape(B, H, weights.shape[2], -1, self.group_size)
                return np.einsum("bhgnt,bhntd->bhgd", shares, values)
            """,
        },
    ),
    Right(
        name="the cache one kind after the other",
        bodies={
            "QuantizedKVCache.write": """
                R, G = self.residual_length, self.group_size
                full = nq
                while n + T - full > R:
                    full += G
                for kind in (0, 1):
                    for start in range(nq, full, G):
                        group = both[kind][:, :, start - nq : start - nq + G]
                        self.blocks[layer_idx][kind].write(start, group)
                start = full if full > n else n
                key, value = (np.array(x[:, :, x.shape[2] - (n + T - start) :]) for x in both)
                self.pending[layer_idx] = (T, start, key, value)
                return both
            """,
            "QuantizedKVCache.advance": """
                if full < self.num_quantized:
                    full = self.num_quantized
                fresh = [None for _ in self.blocks]
                self.seq_pos, self.num_quantized, self.waiting, self.pending = stop, full, self.pending, fresh
            """,
            "QuantizedKVCache.truncate": """
                if self.num_quantized > whole and seq_pos > whole:
                    waiting = []
                    for keys, values in self.blocks:
                        group = [blocks.read(whole, whole + G) for blocks in (keys, values)]
                        key, value = (x[:, :, : seq_pos - whole] for x in group)
                        waiting.append((0, whole, key, value))
            """,
        },
    ),
]
