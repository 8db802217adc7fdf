"""Mistakes that students make in module 16."""

from wrong_answers import Wrong

WRONG = [
    Wrong(
        name="positions count from 0 at each call",
        part="test-rotary-forward",
        old="positions = check_rows(positions, len(self.tables[0]))[..., None, :]",
        new="positions = np.arange(check_rows(positions, len(self.tables[0])).shape[-1])[None]",
    ),
    Wrong(
        name="every row of a batch stands where the first one does",
        part="test-rotary-forward",
        old="positions = check_rows(positions, len(self.tables[0]))[..., None, :]",
        new="positions = np.atleast_2d(check_rows(positions, len(self.tables[0])))[:1]",
    ),
    Wrong(
        name="no axis for the heads: the rows of a batch are taken for heads",
        part="test-rotary-forward",
        old="check_rows(positions, len(self.tables[0]))[..., None, :]",
        new="check_rows(positions, len(self.tables[0]))",
    ),
    Wrong(
        name="position -1 is the last one",
        part="test-rotary-forward",
        old="check_rows(positions, len(self.tables[0]))[..., None, :]",
        new="np.asarray(positions)[..., None, :]",
    ),
    Wrong(
        name="the rotation is kept in the object, where another thread finds it",
        part="test-rotary-forward",
        old="return Rotation(*(table[positions] for table in self.tables))",
        new="self.rotation = Rotation(*(table[positions] for table in self.tables))\n        return self.rotation",
    ),
    Wrong(
        name="sine and cosine exchanged",
        part="test-rotary-turn",
        old="return apply(apply_rotary, x, self.cos, self.sin)",
        new="return apply(apply_rotary, x, self.sin, self.cos)",
    ),
    Wrong(
        name="turned backwards",
        part="test-rotary-turn",
        old="return apply(apply_rotary, x, self.cos, self.sin)",
        new="return apply(apply_rotary, x, self.cos, -self.sin)",
    ),
    Wrong(
        name="turned past the engine: no gradient",
        part="test-rotary-turn",
        old="return apply(apply_rotary, x, self.cos, self.sin)",
        new="return Tensor(apply_rotary(x.data, self.cos, self.sin))",
    ),
    Wrong(
        name="query heads dealt out like cards, h % H instead of h // G",
        part="test-gqa-project",
        old="return query.reshape(B, self.num_kv_heads, -1, T, D), key, value",
        new="return query.reshape(B, -1, self.num_kv_heads, T, D).swapaxes(1, 2), key, value",
    ),
    Wrong(
        name="groups and key heads exchanged",
        part="test-gqa-project",
        old="return query.reshape(B, self.num_kv_heads, -1, T, D), key, value",
        new="return query.reshape(B, -1, self.num_kv_heads, T, D), key, value",
    ),
    Wrong(
        name="the values come from the keys' layer",
        part="test-gqa-project",
        old="value = apply(split_heads, self.v_proj(x), num_heads=self.num_kv_heads)",
        new="value = apply(split_heads, self.k_proj(x), num_heads=self.num_kv_heads)",
        also=("test-gqa-turned",),
    ),
    Wrong(
        name="heads cut by reshape alone: tokens and heads are mixed",
        part="test-gqa-project",
        old="value = apply(split_heads, self.v_proj(x), num_heads=self.num_kv_heads)",
        new="value = self.v_proj(x).reshape(len(x), self.num_kv_heads, x.shape[1], self.head_dim)",
        also=("test-gqa-turned",),
    ),
    Wrong(
        name="keys copied for every query head: right, but the cache is as large as before",
        part="test-gqa-project",
        old="return query.reshape(B, self.num_kv_heads, -1, T, D), key, value",
        new="share = np.arange(self.num_heads) // (self.num_heads // self.num_kv_heads)\n"
        "        return query.reshape(B, self.num_heads, 1, T, D), key[:, share], value[:, share]",
        also=("test-gqa-turned",),
    ),
    Wrong(
        name="keys are not turned",
        part="test-gqa-turned",
        old="key = rotation.turn(apply(split_heads, self.k_proj(x), num_heads=self.num_kv_heads))",
        new="key = apply(split_heads, self.k_proj(x), num_heads=self.num_kv_heads)",
    ),
    Wrong(
        name="queries are not turned",
        part="test-gqa-turned",
        old="query = rotation.turn(apply(split_heads, self.q_proj(x), num_heads=self.num_heads))",
        new="query = apply(split_heads, self.q_proj(x), num_heads=self.num_heads)",
    ),
    Wrong(
        name="values are turned, too",
        part="test-gqa-turned",
        old="value = apply(split_heads, self.v_proj(x), num_heads=self.num_kv_heads)",
        new="value = rotation.turn(apply(split_heads, self.v_proj(x), num_heads=self.num_kv_heads))",
    ),
    Wrong(
        name="turned before the heads are cut",
        part="test-gqa-turned",
        old="query = rotation.turn(apply(split_heads, self.q_proj(x), num_heads=self.num_heads))",
        new="query = apply(split_heads, rotation.turn(self.q_proj(x)), num_heads=self.num_heads)",
    ),
    Wrong(
        name="turned in groups, where the rows of a batch are taken for heads",
        part="test-gqa-turned",
        old="query = rotation.turn(apply(split_heads, self.q_proj(x), num_heads=self.num_heads))\n"
        "        key = rotation.turn(apply(split_heads, self.k_proj(x), num_heads=self.num_kv_heads))\n"
        "        value = apply(split_heads, self.v_proj(x), num_heads=self.num_kv_heads)\n"
        "        B, _, T, D = query.shape\n"
        "        return query.reshape(B, self.num_kv_heads, -1, T, D), key, value",
        new="query = apply(split_heads, self.q_proj(x), num_heads=self.num_heads)\n"
        "        key = rotation.turn(apply(split_heads, self.k_proj(x), num_heads=self.num_kv_heads))\n"
        "        value = apply(split_heads, self.v_proj(x), num_heads=self.num_kv_heads)\n"
        "        B, _, T, D = query.shape\n"
        "        return rotation.turn(query.reshape(B, self.num_kv_heads, -1, T, D)), key, value",
    ),
    Wrong(
        name="the group on the wrong side: heads merged in the order G, H",
        part="test-gqa-merge",
        old="heads.reshape(B, H * G, T, D)",
        new="heads.swapaxes(1, 2).reshape(B, H * G, T, D)",
    ),
    Wrong(
        name="heads merged by reshape alone: tokens and heads are mixed",
        part="test-gqa-merge",
        old="self.out_proj(apply(merge_heads, heads.reshape(B, H * G, T, D)))",
        new="self.out_proj(heads.reshape(B, T, H * G * D))",
    ),
    Wrong(
        name="the output layer is left out",
        part="test-gqa-merge",
        old="return self.out_proj(apply(merge_heads, heads.reshape(B, H * G, T, D)))",
        new="return apply(merge_heads, heads.reshape(B, H * G, T, D))",
    ),
    Wrong(
        name="tokens see the future",
        part="test-gqa-forward",
        old="scaled_dot_product_attention(query, key, value, mask, causal=True)",
        new="scaled_dot_product_attention(query, key, value, mask)",
    ),
    Wrong(
        name="the mask is dropped",
        part="test-gqa-forward",
        old="scaled_dot_product_attention(query, key, value, mask, causal=True)",
        new="scaled_dot_product_attention(query, key, value, causal=True)",
    ),
    Wrong(
        name="gate and up exchanged",
        part="test-swiglu",
        old="self.silu(self.gate(x)) * self.up(x)",
        new="self.silu(self.up(x)) * self.gate(x)",
    ),
    Wrong(
        name="SiLU on the product",
        part="test-swiglu",
        old="self.silu(self.gate(x)) * self.up(x)",
        new="self.silu(self.gate(x) * self.up(x))",
    ),
    Wrong(
        name="the gate is added instead of multiplied",
        part="test-swiglu",
        old="self.silu(self.gate(x)) * self.up(x)",
        new="self.silu(self.gate(x)) + self.up(x)",
    ),
    Wrong(
        name="an MLP without a gate",
        part="test-swiglu",
        old="self.down(self.silu(self.gate(x)) * self.up(x))",
        new="self.down(self.silu(self.up(x)))",
    ),
    Wrong(
        name="no residual around the MLP",
        part="test-llama-block",
        old="return x + self.mlp(self.norm2(x))",
        new="return self.mlp(self.norm2(x))",
    ),
    Wrong(
        name="one norm for both",
        part="test-llama-block",
        old="return x + self.mlp(self.norm2(x))",
        new="return x + self.mlp(self.norm1(x))",
    ),
    Wrong(
        name="norms behind the additions, as in 2017",
        part="test-llama-block",
        old="x = x + self.attention(self.norm1(x), mask, rotation)\n        return x + self.mlp(self.norm2(x))",
        new="x = self.norm1(x + self.attention(x, mask, rotation))\n        return self.norm2(x + self.mlp(x))",
    ),
    Wrong(
        name="the residual begins behind the norm",
        part="test-llama-block",
        old="x = x + self.attention(self.norm1(x), mask, rotation)",
        new="x = self.norm1(x)\n        x = x + self.attention(x, mask, rotation)",
    ),
    Wrong(
        name="attention and MLP side by side",
        part="test-llama-block",
        old="x = x + self.attention(self.norm1(x), mask, rotation)\n        return x + self.mlp(self.norm2(x))",
        new="return x + self.attention(self.norm1(x), mask, rotation) + self.mlp(self.norm2(x))",
    ),
    Wrong(
        name="the block keeps its mask to itself",
        part="test-llama-block",
        old="self.attention(self.norm1(x), mask, rotation)",
        new="self.attention(self.norm1(x))",
    ),
    Wrong(
        name="start_pos is ignored",
        part="test-hidden-states",
        old="self.position_embedding(np.arange(start_pos, stop))",
        new="self.position_embedding(np.arange(tokens.shape[1]))",
    ),
    Wrong(
        name="positions told for each row, where padding expects one row for all",
        part="test-hidden-states",
        old="self.position_embedding(np.arange(start_pos, stop))",
        new="self.position_embedding(np.broadcast_to(np.arange(start_pos, stop), tokens.shape))",
    ),
    Wrong(
        name="positions counted from 1",
        part="test-hidden-states",
        old="self.position_embedding(np.arange(start_pos, stop))",
        new="self.position_embedding(np.arange(start_pos + 1, stop + 1))",
    ),
    Wrong(
        name="only the first block is told where the tokens stand",
        part="test-hidden-states",
        old="            x = block(x, None, rotation)\n",
        new="            x = block(x, None, rotation)\n"
        "            rotation = self.position_embedding(np.arange(tokens.shape[1]))\n",
    ),
    Wrong(
        name="no last norm",
        part="test-hidden-states",
        old="return self.norm(x)",
        new="return x",
    ),
    Wrong(
        name="a norm after every block",
        part="test-hidden-states",
        old="            x = block(x, None, rotation)\n        return self.norm(x)",
        new="            x = self.norm(block(x, None, rotation))\n        return x",
    ),
    Wrong(
        name="the output layer of an untied model is ignored",
        part="test-logits",
        old="        if self.tied:\n"
        "            return apply(linear, hidden, self.token_embedding.weight)\n"
        "        return self.output(hidden)",
        new="        return apply(linear, hidden, self.token_embedding.weight)",
    ),
    Wrong(
        name="tied by a copy that does not learn",
        part="test-logits",
        old="apply(linear, hidden, self.token_embedding.weight)",
        new="apply(linear, hidden, self.token_embedding.weight.data)",
    ),
    Wrong(
        name="the tied output counted twice",
        part="test-count-llama-parameters",
        old="tables = 1 if tied else 2",
        new="tables = 2",
    ),
    Wrong(
        name="keys and values counted with as many heads as queries",
        part="test-count-llama-parameters",
        old="2 * embed_dim * (num_heads + num_kv_heads) * head_dim",
        new="4 * embed_dim * num_heads * head_dim",
    ),
    Wrong(
        name="two matrices in the MLP",
        part="test-count-llama-parameters",
        old="mlp = 3 * embed_dim * hidden_dim",
        new="mlp = 2 * embed_dim * hidden_dim",
    ),
    Wrong(
        name="heads of width C / num_heads, whatever head_dim says",
        part="test-count-llama-parameters",
        old="2 * embed_dim * (num_heads + num_kv_heads) * head_dim",
        new="2 * embed_dim * (num_heads + num_kv_heads) * (embed_dim // num_heads)",
    ),
    Wrong(
        name="rows put back across the heads",
        part="test-rows-to-halves",
        old="pairs = weight.reshape(num_heads, rows // num_heads // 2, 2, width)\n"
        "    return pairs.swapaxes(1, 2).reshape(rows, width)",
        new="return np.concatenate([weight[0::2], weight[1::2]])",
    ),
    Wrong(
        name="the wrong way round: from halves to neighbours",
        part="test-rows-to-halves",
        old="weight.reshape(num_heads, rows // num_heads // 2, 2, width)",
        new="weight.reshape(num_heads, 2, rows // num_heads // 2, width)",
    ),
    Wrong(
        name="the columns are put in another order instead of the rows",
        part="test-rows-to-halves",
        old="pairs = weight.reshape(num_heads, rows // num_heads // 2, 2, width)\n"
        "    return pairs.swapaxes(1, 2).reshape(rows, width)",
        new="return np.concatenate([weight[:, 0::2], weight[:, 1::2]], axis=1)",
    ),
    Wrong(
        name="heads of an odd width are not refused",
        part="test-rows-to-halves",
        old="    if rows % (2 * num_heads):\n"
        '        raise ValueError(f"{rows} rows cannot be cut into {num_heads} heads of an even width")\n',
        new="",
    ),
]
