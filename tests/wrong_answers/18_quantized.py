"""Wrong answers to module 18: rulers that do not reach, bytes that lose a sign, caches that forget."""

from wrong_answers import Wrong

WRONG = [
    # float16, rounded outward
    Wrong(
        name="the low is rounded to the nearest float16",
        part="test-half-below",
        old="    half[above] = np.nextafter(half[above], np.float16(-np.inf))\n",
        new="",
    ),
    # step and low
    Wrong(
        name="the step is rounded up by the quotient, which float32 rounds down to zero",
        part="test-choose-steps",
        old="    too_short = top * step.astype(np.float32) < span\n",
        new="    too_short = step.astype(np.float32) < span / np.float32(top)\n",
    ),
    Wrong(
        name="the span begins at the smallest number, not at the stored low",
        part="test-choose-steps",
        old="        span = x.max(axis=axis, keepdims=True) - low.astype(np.float32)\n",
        new="        span = x.max(axis=axis, keepdims=True) - x.min(axis=axis, keepdims=True)\n",
    ),
    Wrong(
        name="symmetric steps for the largest number instead of the largest magnitude",
        part="test-choose-steps",
        old="        span = np.abs(x).max(axis=axis, keepdims=True)\n",
        new="        span = np.maximum(x, 0).max(axis=axis, keepdims=True)\n",
    ),
    Wrong(
        name="the group along the other axis",
        part="test-choose-steps",
        old="        span = np.abs(x).max(axis=axis, keepdims=True)\n",
        new="        axis = -3 - axis\n        span = np.abs(x).max(axis=axis, keepdims=True)\n",
    ),
    # codes
    Wrong(
        name="unsigned codes kept as int8",
        part="test-quantize",
        old="    return codes.astype(np.int8 if low is None else np.uint8)\n",
        new="    return codes.astype(np.int8)\n",
    ),
    Wrong(
        name="the low is forgotten on the way back",
        part="test-dequantize",
        old="    return x if low is None else x + low.astype(np.float32)\n",
        new="    return x\n",
    ),
    # the bound
    Wrong(
        name="the bound leaves out the rounding of float32",
        part="test-error-bound",
        old="    return step / 2 + np.float32(2**-22) * reach\n",
        new="    return step / 2\n",
    ),
    Wrong(
        name="the bound takes a low for what it is, with its sign",
        part="test-error-bound",
        old="        reach = reach + np.abs(low.astype(np.float32))\n",
        new="        reach = reach + low.astype(np.float32)\n",
    ),
    # two in a byte
    Wrong(
        name="the sign of the first code spills into the second",
        part="test-pack-int4",
        old="    return (first & 15) | (second << 4)\n",
        new="    return first | (second << 4)\n",
    ),
    Wrong(
        name="neighbours share a byte",
        part="test-pack-int4",
        old="    first, second = np.split(codes, 2, axis=-2)\n",
        new="    first, second = codes[..., 0::2, :], codes[..., 1::2, :]\n",
    ),
    Wrong(
        name="the sign of the low half is lost",
        part="test-unpack-int4",
        old="    codes[..., :half, :] = (packed << 4) >> 4\n",
        new="    codes[..., :half, :] = packed & 15\n",
    ),
    # how many
    Wrong(
        name="groups move only when the newest are full of them",
        part="test-quantized-after",
        old="    return -(-too_many // group_size) * group_size\n",
        new="    return too_many // group_size * group_size\n",
    ),
    # blocks
    Wrong(
        name="codes of 4 bits are stored without packing them",
        part="test-blocks-write",
        old="        self.codes[:, :, blocks] = pack_int4(codes) if self.bits == 4 else codes\n",
        new="        self.codes[:, :, blocks] = codes[..., : self.codes.shape[3], :]\n",
    ),
    Wrong(
        name="the step of a token is left out of its score",
        part="test-scores",
        old="                scores *= step.reshape(B, H, 1, stop)\n",
        new="                scores *= 1\n",
    ),
    Wrong(
        name="the low of a channel meets the query that was scaled",
        part="test-scores",
        old="            scores += query @ low.swapaxes(-1, -2)\n",
        new="            scores += (query if step is None else query * step) @ low.swapaxes(-1, -2)\n",
    ),
    Wrong(
        name="the lows of the values are forgotten",
        part="test-mix",
        old="        if low is not None:\n            mixed += weights @ low.reshape(B, H, stop, 1)\n",
        new="",
    ),
    Wrong(
        name="the steps go into the caller's weights in place",
        part="test-mix",
        old="        scaled = weights if step is None else weights * step.reshape(B, H, 1, stop)\n",
        new="        scaled = weights\n        if step is not None:\n            scaled *= step.reshape(B, H, 1, stop)\n",
    ),
    # the cache
    Wrong(
        name="the blocks get the new tokens instead of the oldest",
        part="test-cache-write",
        old="                blocks.write(nq, x[:, :, : full - nq])\n",
        new="                blocks.write(nq, x[:, :, x.shape[2] - full + nq :])\n",
    ),
    Wrong(
        name="new tokens that were quantised are kept a second time",
        part="test-cache-write",
        old="        start = max(n, full)\n",
        new="        start = n\n",
    ),
    Wrong(
        name="pending tokens are views of what is shown",
        part="test-cache-write",
        old="x[:, :, start - nq :].copy() for x in both))\n",
        new="x[:, :, start - nq :] for x in both))\n",
    ),
    Wrong(
        name="after a truncate the number of quantised tokens falls",
        part="test-cache-advance",
        old="            max(self.num_quantized, full),\n",
        new="            full,\n",
    ),
    Wrong(
        name="the numbers move one after the other",
        part="test-cache-advance",
        old="        self.seq_pos, self.num_quantized, self.waiting",
        new="        self.num_quantized = max(self.num_quantized, full)\n"
        "        self.seq_pos, self.num_quantized, self.waiting",
    ),
    Wrong(
        name="what was pending is lost when it is committed",
        part="test-cache-advance",
        old="            self.pending,\n",
        new="            None,\n",
    ),
    Wrong(
        name="a group that is cut is forgotten",
        part="test-cache-truncate",
        old="        if whole < min(seq_pos, self.num_quantized):\n",
        new="        if False:\n",
    ),
    Wrong(
        name="the cut group is read from the wrong place",
        part="test-cache-truncate",
        old="blocks.read(whole, whole + G)[:, :, :kept] for blocks in pair))\n",
        new="blocks.read(seq_pos - G, seq_pos)[:, :, :kept] for blocks in pair))\n",
    ),
]
