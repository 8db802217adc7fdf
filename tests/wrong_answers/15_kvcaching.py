"""Wrong answers to module 15: what real implementations got wrong, and what students are likely to."""

from wrong_answers import Wrong

ATTEND = """\
    with no_grad():
        keys, values = cache.update(layer_idx, key, value)
        return scaled_dot_product_attention(query, keys, values, mask, causal=True)
"""

WRONG = [
    # counting
    Wrong(
        name="cached prompt counted as one token",
        part="test-generation-costs",
        old="        return prompt + new - 1\n",
        new="        return new\n",
    ),
    Wrong(
        name="cached generation counts one token too many",
        part="test-generation-costs",
        old="        return prompt + new - 1\n",
        new="        return prompt + new\n",
    ),
    Wrong(
        name="uncached attention called quadratic over a whole generation",
        part="test-generation-costs",
        old="    return sum(t * t for t in lengths)\n",
        new="    return sum(lengths)\n",
    ),
    Wrong(
        name="cached attention called linear over a whole generation",
        part="test-generation-costs",
        old="        return prompt * prompt + sum(lengths[1:])\n",
        new="        return prompt * prompt + new - 1\n",
    ),
    Wrong(
        name="cached prefill counted with one row of scores",
        part="test-generation-costs",
        old="        return prompt * prompt + sum(lengths[1:])\n",
        new="        return sum(lengths)\n",
    ),
    # bytes
    Wrong(
        name="memory forgets that there are keys and values",
        part="test-cache-bytes",
        old="    return 2 * num_layers * batch_size",
        new="    return num_layers * batch_size",
    ),
    Wrong(
        name="memory is wrong by the bytes of a number",
        part="test-cache-bytes",
        old=" * np.dtype(dtype).itemsize\n",
        new="\n",
    ),
    Wrong(
        name="memory assumes float32",
        part="test-cache-bytes",
        old=" * np.dtype(dtype).itemsize\n",
        new=" * 4\n",
    ),
    # the checks
    Wrong(
        name="a negative layer counts from the end",
        part="test-check-new",
        old="        self.check_layer(layer_idx)\n        key = key.data",
        new="        self.check_layer(abs(layer_idx))\n        key = key.data",
    ),
    Wrong(
        name="one head is broadcast into four",
        part="test-check-new",
        old="        if key.ndim != 4 or (key.shape[0], key.shape[1], key.shape[3]) != (B, H, D):\n",
        new="        if key.ndim != 4 or (key.shape[0], key.shape[3]) != (B, D):\n",
    ),
    Wrong(
        name="the batch is not checked",
        part="test-check-new",
        old="        if key.ndim != 4 or (key.shape[0], key.shape[1], key.shape[3]) != (B, H, D):\n",
        new="        if key.ndim != 4 or (key.shape[1], key.shape[3]) != (H, D):\n",
    ),
    Wrong(
        name="key and value may differ",
        part="test-check-new",
        old="        if key.shape != value.shape:\n",
        new="        if key.ndim != value.ndim:\n",
    ),
    Wrong(
        name="no new token is accepted",
        part="test-check-new",
        old="        if T == 0:\n",
        new="        if T < 0:\n",
    ),
    Wrong(
        name="the last place is refused, one off",
        part="test-check-new",
        old="        if self.seq_pos + T > self.max_seq_len:\n",
        new="        if self.seq_pos + T >= self.max_seq_len:\n",
    ),
    Wrong(
        name="positions run past the end",
        part="test-check-new",
        old="        if self.seq_pos + T > self.max_seq_len:\n",
        new="        if T > self.max_seq_len:\n",
    ),
    Wrong(
        name="key and value swapped on the way out",
        part="test-check-new",
        old="        return key, value\n        ### END",
        new="        return value, key\n        ### END",
    ),
    Wrong(
        name="a number that float16 cannot hold becomes infinite in silence",
        part="test-check-new",
        old="        self.check_numbers(key, value)\n",
        new="",
    ),
    Wrong(
        name="only the keys are looked at",
        part="test-check-new",
        old="        self.check_numbers(key, value)\n",
        new="        self.check_numbers(key)\n",
    ),
    Wrong(
        name="a full cache raises what any mistake raises",
        part="test-check-new",
        old="            raise CacheFull(\n",
        new="            raise ValueError(\n",
    ),
    # update
    Wrong(
        name="layer -1 is taken for the last",
        part="test-update",
        old="        key, value = self.check_new(layer_idx, key, value)\n        stop",
        new=(
            "        layer_idx = layer_idx % self.num_layers\n"
            "        key, value = self.check_new(layer_idx, key, value)\n        stop"
        ),
    ),
    Wrong(
        name="update does not note what it has written",
        part="test-update",
        old="        self.written[layer_idx] = stop\n",
        new="",
    ),
    Wrong(
        name="update always writes at the front",
        part="test-update",
        old="        key_store.data[:, :, self.seq_pos : stop] = key\n",
        new="        key_store.data[:, :, : key.shape[2]] = key\n",
    ),
    Wrong(
        name="a prompt leaves only its last token",
        part="test-update",
        old="        value_store.data[:, :, self.seq_pos : stop] = value\n",
        new="        value_store.data[:, :, self.seq_pos] = value[:, :, -1]\n",
    ),
    Wrong(
        name="the first token is never stored",
        part="test-update",
        old="        key_store.data[:, :, self.seq_pos : stop] = key\n",
        new="        key_store.data[:, :, self.seq_pos + 1 : stop] = key[:, :, 1:]\n",
    ),
    Wrong(
        name="update commits by itself",
        part="test-update",
        old="        return self.view(layer_idx, stop)\n",
        new="        shown = self.view(layer_idx, stop)\n        self.seq_pos = stop\n        return shown\n",
    ),
    Wrong(
        name="update shows only what was there before",
        part="test-update",
        old="        return self.view(layer_idx, stop)\n",
        new="        return self.view(layer_idx, self.seq_pos)\n",
    ),
    Wrong(
        name="update shows the whole storage",
        part="test-update",
        old="        return self.view(layer_idx, stop)\n",
        new="        return self.view(layer_idx, self.max_seq_len)\n",
    ),
    Wrong(
        name="update returns copies",
        part="test-update",
        old="        return self.view(layer_idx, stop)\n",
        new="        return tuple(Tensor(x.data.copy(), dtype=self.dtype) for x in self.view(layer_idx, stop))\n",
    ),
    Wrong(
        name="update glues arrays together instead of writing in place",
        part="test-update",
        old="        return self.view(layer_idx, stop)\n",
        new=(
            "        old_key, old_value = self.view(layer_idx, self.seq_pos)\n"
            "        return Tensor(np.concatenate([old_key.data, key], 2), dtype=self.dtype), Tensor(\n"
            "            np.concatenate([old_value.data, value], 2), dtype=self.dtype\n"
            "        )\n"
        ),
    ),
    Wrong(
        name="keys and values mixed up",
        part="test-update",
        old="        key_store, value_store = self.caches[layer_idx]\n",
        new="        value_store, key_store = self.caches[layer_idx]\n",
    ),
    Wrong(
        name="every layer writes into layer 0",
        part="test-update",
        old="        key_store, value_store = self.caches[layer_idx]\n",
        new="        key_store, value_store = self.caches[0]\n",
    ),
    Wrong(
        name="only row 0 of the batch is stored",
        part="test-update",
        old="        value_store.data[:, :, self.seq_pos : stop] = value\n",
        new="        value_store.data[0, :, self.seq_pos : stop] = value[0]\n",
    ),
    Wrong(
        name="old and new are added up",
        part="test-update",
        old="        key_store.data[:, :, self.seq_pos : stop] = key\n",
        new="        key_store.data[:, :, self.seq_pos : stop] += key\n",
    ),
    Wrong(
        name="the input is changed",
        part="test-update",
        old="        key_store.data[:, :, self.seq_pos : stop] = key\n",
        new="        key_store.data[:, :, self.seq_pos : stop] = key\n        key *= 0\n",
    ),
    Wrong(
        name="one token at a time only",
        part="test-update",
        old="        stop = self.seq_pos + key.shape[2]\n",
        new="        stop = self.seq_pos + 1\n",
    ),
    # get
    Wrong(
        name="get copies",
        part="test-get",
        old="        return self.view(layer_idx, self.seq_pos)\n",
        new="        return tuple(Tensor(x.data.copy(), dtype=self.dtype) for x in self.view(layer_idx, self.seq_pos))\n",
    ),
    Wrong(
        name="get shows the whole storage",
        part="test-get",
        old="        return self.view(layer_idx, self.seq_pos)\n",
        new="        return self.caches[layer_idx]\n",
    ),
    Wrong(
        name="get shows one token too many",
        part="test-get",
        old="        return self.view(layer_idx, self.seq_pos)\n",
        new="        return self.view(layer_idx, self.seq_pos + 1)\n",
    ),
    Wrong(
        name="get accepts negative layers",
        part="test-get",
        old="        self.check_layer(layer_idx)\n        return",
        new="        return",
    ),
    Wrong(
        name="get returns the values first",
        part="test-get",
        old="        return self.view(layer_idx, self.seq_pos)\n",
        new="        return self.view(layer_idx, self.seq_pos)[::-1]\n",
    ),
    # positions
    Wrong(
        name="advance ignores how many",
        part="test-advance",
        old="        self.seq_pos = stop\n        ### END",
        new="        self.seq_pos += 1\n        ### END",
    ),
    Wrong(
        name="advance commits what nobody wrote",
        part="test-advance",
        old="        if stop > min(self.written):\n",
        new="        if stop > self.max_seq_len:\n",
    ),
    Wrong(
        name="one layer that has written is enough",
        part="test-advance",
        old="        if stop > min(self.written):\n",
        new="        if stop > max(self.written):\n",
    ),
    Wrong(
        name="advance stops silently at the end",
        part="test-advance",
        old="        self.seq_pos = stop\n        ### END",
        new="        self.seq_pos = min(stop, self.max_seq_len - 1)\n        ### END",
    ),
    Wrong(
        name="advance moves and then complains",
        part="test-advance",
        old="        if stop > min(self.written):\n",
        new="        least, self.seq_pos = min(self.written), stop\n        if stop > least:\n",
    ),
    Wrong(
        name="truncate takes how many to drop",
        part="test-truncate-reset",
        old="        self.seq_pos = self.check_kept(seq_pos)\n",
        new="        self.seq_pos -= self.check_kept(seq_pos)\n",
    ),
    Wrong(
        name="truncate may grow",
        part="test-truncate-reset",
        old="        self.seq_pos = self.check_kept(seq_pos)\n",
        new='        self.seq_pos = whole_number("seq_pos", seq_pos, 0)\n',
    ),
    Wrong(
        name="reset allocates again",
        part="test-truncate-reset",
        old="        self.seq_pos = 0\n        ### END",
        new="        self.seq_pos = 0\n        self.allocate()\n        ### END",
    ),
    # memory usage
    Wrong(
        name="only the keys are counted",
        part="test-memory-usage",
        old="        arrays = self.arrays()\n        total",
        new="        arrays = self.arrays()[::2]\n        total",
    ),
    Wrong(
        name="MB of two to the twentieth",
        part="test-memory-usage",
        old='            "total_mb": total / 1e6,\n',
        new='            "total_mb": total / 2**20,\n',
    ),
    Wrong(
        name="bytes per token counts the whole batch",
        part="test-memory-usage",
        old="total // (self.batch_size * self.capacity)",
        new="total // self.capacity",
    ),
    Wrong(
        name="used memory is all of it",
        part="test-memory-usage",
        old='            "used_mb": total / 1e6 * utilization,\n',
        new='            "used_mb": total / 1e6,\n',
    ),
    # attention
    Wrong(
        name="the new token does not attend to itself",
        part="test-attention-with-cache",
        old=ATTEND,
        new="""\
    with no_grad():
        keys, values = cache.update(layer_idx, key, value)
        T, S = query.shape[2], keys.shape[2]
        hidden = np.where(np.arange(S)[None] < np.arange(S - T, S)[:, None], 0, -1e9).astype(np.float32)
        return scaled_dot_product_attention(query, keys, values, hidden if mask is None else mask + hidden)
""",
    ),
    Wrong(
        name="the causal mask counts from position 0",
        part="test-attention-with-cache",
        old=ATTEND,
        new="""\
    with no_grad():
        keys, values = cache.update(layer_idx, key, value)
        T, S = query.shape[2], keys.shape[2]
        triangle = np.where(np.arange(S)[None] <= np.arange(T)[:, None], 0, -np.inf).astype(np.float32)
        return scaled_dot_product_attention(query, keys, values, triangle if mask is None else mask + triangle)
""",
    ),
    Wrong(
        name="no causal mask",
        part="test-attention-with-cache",
        old="values, mask, causal=True)\n",
        new="values, mask)\n",
    ),
    Wrong(
        name="the causal mask has the wrong sign",
        part="test-attention-with-cache",
        old=ATTEND,
        new="""\
    with no_grad():
        keys, values = cache.update(layer_idx, key, value)
        T, S = query.shape[2], keys.shape[2]
        flipped = np.where(np.arange(S)[None] >= np.arange(S - T, S)[:, None], 0, -1e9).astype(np.float32)
        return scaled_dot_product_attention(query, keys, values, flipped if mask is None else mask + flipped)
""",
    ),
    Wrong(
        name="the mask of the caller is ignored",
        part="test-attention-with-cache",
        old="values, mask, causal=True)\n",
        new="values, None, causal=True)\n",
    ),
    Wrong(
        name="attends only to the new tokens",
        part="test-attention-with-cache",
        old="scaled_dot_product_attention(query, keys, values, mask, causal=True)\n",
        new="scaled_dot_product_attention(query, Tensor(key), Tensor(value), mask, causal=True)\n",
    ),
    Wrong(
        name="the group of a query taken for its tokens",
        part="test-attention-with-cache",
        old="        return scaled_dot_product_attention(query, keys, values, mask, causal=True)\n",
        new="        return scaled_dot_product_attention(query, keys, values, mask, causal=query.shape[2] > 1)\n",
    ),
    Wrong(
        name="scales twice",
        part="test-attention-with-cache",
        old="scaled_dot_product_attention(query, keys, values, mask, causal=True)\n",
        new="scaled_dot_product_attention(query / query.shape[-1] ** 0.5, keys, values, mask, causal=True)\n",
    ),
    Wrong(
        name="undoes the scaling",
        part="test-attention-with-cache",
        old="scaled_dot_product_attention(query, keys, values, mask, causal=True)\n",
        new="scaled_dot_product_attention(query * query.shape[-1] ** 0.5, keys, values, mask, causal=True)\n",
    ),
    Wrong(
        name="attention commits",
        part="test-attention-with-cache",
        old="        keys, values = cache.update(layer_idx, key, value)\n        return scaled",
        new=(
            "        keys, values = cache.update(layer_idx, key, value)\n"
            "        cache.advance(query.shape[2])\n"
            "        return scaled"
        ),
    ),
    Wrong(
        name="every layer goes to layer 0 of the cache",
        part="test-attention-with-cache",
        old="        keys, values = cache.update(layer_idx, key, value)\n        return scaled",
        new="        keys, values = cache.update(0, key, value)\n        return scaled",
    ),
    Wrong(
        name="the mask is checked after writing",
        part="test-attention-with-cache",
        old="""\
    mask = None if mask is None else fit_mask(mask, cache, query.shape)
    with no_grad():
        keys, values = cache.update(layer_idx, key, value)
""",
        new="""\
    with no_grad():
        keys, values = cache.update(layer_idx, key, value)
        mask = None if mask is None else fit_mask(mask, cache, query.shape)
""",
    ),
    Wrong(
        name="attention in float64",
        part="test-attention-with-cache",
        old="scaled_dot_product_attention(query, keys, values, mask, causal=True)\n",
        new=(
            "scaled_dot_product_attention(\n"
            "            Tensor(query.data, dtype=np.float64), keys, values, mask, causal=True\n"
            "        )\n"
        ),
    ),
    # the layer and the model
    Wrong(
        name="the cached layer drops layer_idx",
        part="test-cached-multi-head-attention",
        old="        return self.merge(attention_with_cache(query, key, value, cache, layer_idx, mask))\n",
        new="        return self.merge(attention_with_cache(query, key, value, cache, 0, mask))\n",
    ),
    Wrong(
        name="the cached layer forgets the output projection",
        part="test-cached-multi-head-attention",
        old="        return self.merge(attention_with_cache(query, key, value, cache, layer_idx, mask))\n",
        new=(
            "        heads = attention_with_cache(query, key, value, cache, layer_idx, mask)\n"
            "        return heads.transpose(0, 2, 1, 3).reshape(*x.shape)\n"
        ),
    ),
    Wrong(
        name="the cached layer drops the mask",
        part="test-cached-multi-head-attention",
        old="        return self.merge(attention_with_cache(query, key, value, cache, layer_idx, mask))\n",
        new="        return self.merge(attention_with_cache(query, key, value, cache, layer_idx))\n",
    ),
    Wrong(
        name="the cache is used in training",
        part="test-cached-layer",
        old="        if self.model.training:\n            return inner(x, mask, *where, **named)\n",
        new="",
    ),
    Wrong(
        name="the cache is never engaged",
        part="test-cached-layer",
        old="        if self.model.training:\n            return inner(x, mask, *where, **named)\n",
        new="        return inner(x, mask, *where, **named)\n",
    ),
    Wrong(
        name="every layer is layer 0",
        part="test-cached-layer",
        old="self.attention.merge(attention_with_cache(query, key, value, self.cache, self.layer_idx, mask))\n",
        new="self.attention.merge(attention_with_cache(query, key, value, self.cache, 0, mask))\n",
    ),
    Wrong(
        name="each layer commits",
        part="test-cached-layer",
        old="        return self.attention.merge(attention_with_cache(query, key, value, self.cache, self.layer_idx, mask))\n",
        new=(
            "        heads = attention_with_cache(query, key, value, self.cache, self.layer_idx, mask)\n"
            "        self.cache.advance(heads.shape[2])\n"
            "        return self.attention.merge(heads)\n"
        ),
    ),
    Wrong(
        name="nobody commits",
        part="test-cached-model",
        old="        self.commit(tokens.shape[1])\n",
        new="",
    ),
    Wrong(
        name="one token is committed whatever the prompt",
        part="test-cached-model",
        old="        self.commit(tokens.shape[1])\n",
        new="        self.commit(1)\n",
    ),
    Wrong(
        name="every new token is at position 0",
        part="test-cached-model",
        old="            hidden = inner(tokens, start_pos=self.cache.seq_pos)\n",
        new="            hidden = inner(tokens, start_pos=0)\n",
    ),
    Wrong(
        name="positions are one too high",
        part="test-cached-model",
        old="            hidden = inner(tokens, start_pos=self.cache.seq_pos)\n",
        new="            hidden = inner(tokens, start_pos=self.cache.seq_pos + (self.cache.seq_pos > 0))\n",
    ),
    Wrong(
        name="commits before the model has run",
        part="test-cached-model",
        old="""\
        with no_grad():
            hidden = inner(tokens, start_pos=self.cache.seq_pos)
        self.commit(tokens.shape[1])
""",
        new="""\
        start_pos = self.cache.seq_pos
        self.commit(tokens.shape[1])
        with no_grad():
            hidden = inner(tokens, start_pos=start_pos)
""",
    ),
    Wrong(
        name="the model in training advances the cache",
        part="test-cached-model",
        old="        if self.model.training:\n            return inner(tokens)\n",
        new="        if self.model.training:\n            self.cache.advance(1)\n            return inner(tokens)\n",
    ),
    Wrong(
        name="a second prompt goes on where the first ended",
        part="test-decoder",
        old="        self.start_over(batch_size, num_tokens)\n",
        new="",
    ),
    Wrong(
        name="generate recomputes everything",
        part="test-decoder",
        old="        self.start_over(batch_size, num_tokens)\n        return self.model.next_logits\n",
        new="        self.start_over(batch_size, num_tokens)\n        return inner(batch_size, num_tokens)\n",
    ),
    Wrong(
        name="generating in training empties the cache",
        part="test-decoder",
        old="        if self.model.training:\n            return inner(batch_size, num_tokens)\n",
        new=(
            "        if self.model.training:\n"
            "            self.cache.reset()\n"
            "            return inner(batch_size, num_tokens)\n"
        ),
    ),
    Wrong(
        name="the cache stays on afterwards",
        part="test-generate-with-cache",
        old="    finally:\n        disable_kv_cache(model)\n",
        new="    finally:\n        pass\n",
    ),
    Wrong(
        name="the cache stays on when generating fails",
        part="test-generate-with-cache",
        old="""\
    try:
        return model.generate(prompt, max_new_tokens, **options)
    finally:
        disable_kv_cache(model)
""",
        new="""\
    tokens = model.generate(prompt, max_new_tokens, **options)
    disable_kv_cache(model)
    return tokens
""",
    ),
    Wrong(
        name="a cache that was there is taken off",
        part="test-generate-with-cache",
        old="        return model.generate(prompt, max_new_tokens, **options)\n    enable_kv_cache",
        new=(
            "        tokens = model.generate(prompt, max_new_tokens, **options)\n"
            "        disable_kv_cache(model)\n"
            "        return tokens\n"
            "    enable_kv_cache"
        ),
    ),
    Wrong(
        name="the settings are lost",
        part="test-generate-with-cache",
        old="    try:\n        return model.generate(prompt, max_new_tokens, **options)\n",
        new="    try:\n        return model.generate(prompt, max_new_tokens)\n",
    ),
    Wrong(
        name="generates without enabling",
        part="test-generate-with-cache",
        old="    enable_kv_cache(model)\n    try:\n",
        new="    try:\n",
    ),
]
