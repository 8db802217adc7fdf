"""Mistakes that students make in module 12."""

from wrong_answers import Wrong

WRONG = [
    Wrong(
        name="the scores are not divided by the square root of D",
        part="test-weigh-keys",
        old="query * (1 / math.sqrt(query.shape[-1]))",
        new="query",
    ),
    Wrong(
        name="the scores are divided by D",
        part="test-weigh-keys",
        old="query * (1 / math.sqrt(query.shape[-1]))",
        new="query * (1 / query.shape[-1])",
    ),
    Wrong(
        name="the scores are divided by the square root of the number of keys",
        part="test-weigh-keys",
        old="query * (1 / math.sqrt(query.shape[-1]))",
        new="query * (1 / math.sqrt(key.shape[-2]))",
    ),
    Wrong(
        name="np.sqrt makes everything float64",
        part="test-weigh-keys",
        old="query * (1 / math.sqrt(query.shape[-1]))",
        new="query * (1 / np.sqrt(query.shape[-1]))",
    ),
    Wrong(
        name="the query that was passed in is scaled in place",
        part="test-weigh-keys",
        old="query * (1 / math.sqrt(query.shape[-1]))",
        new="np.multiply(query, 1 / math.sqrt(query.shape[-1]), out=query)",
        also=("test-weigh-keys-mask",),
    ),
    Wrong(
        name="the shares of each key sum to 1, not those of each query",
        part="test-weigh-keys",
        old="total = weights.sum(axis=-1, keepdims=True)",
        new="total = weights.sum(axis=-2, keepdims=True)",
        also=("test-weigh-keys-mask",),
    ),
    Wrong(
        name="the largest score is not subtracted",
        part="test-weigh-keys",
        old="    weights -= weights.max(axis=-1, keepdims=True, initial=LOWEST)\n"
        "    np.exp(weights, out=weights)\n"
        "    total = weights.sum(axis=-1, keepdims=True)\n"
        "    if mask is not None:\n"
        "        np.maximum(total, 1, out=total)\n"
        "    weights /= total\n",
        new="    np.exp(weights, out=weights)\n    weights /= weights.sum(axis=-1, keepdims=True) + 1e-30\n",
    ),
    Wrong(
        name="the mask is multiplied",
        part="test-weigh-keys-mask",
        old="        weights += mask\n",
        new="        weights *= mask\n",
    ),
    Wrong(
        name="the mask is subtracted",
        part="test-weigh-keys-mask",
        old="        weights += mask\n",
        new="        weights -= mask\n",
    ),
    Wrong(
        name="only minus infinity counts, a bias is ignored",
        part="test-weigh-keys-mask",
        old="        weights += mask\n",
        new="        weights += np.where(np.isneginf(mask), mask, 0)\n",
    ),
    Wrong(
        name="a query without any key becomes NaN",
        part="test-weigh-keys-mask",
        old="weights.max(axis=-1, keepdims=True, initial=LOWEST)",
        new="weights.max(axis=-1, keepdims=True)",
    ),
    Wrong(
        name="the gradient of the key lacks the scale",
        part="test-weigh-keys-gradient",
        old="np.matmul(grad_scores.swapaxes(-1, -2), query) * scale",
        new="np.matmul(grad_scores.swapaxes(-1, -2), query)",
    ),
    Wrong(
        name="the softmax is taken for independent sigmoids",
        part="test-weigh-keys-gradient",
        old="grad - np.vecdot(grad, output)[..., None]\n",
        new="grad - grad * output\n",
    ),
    Wrong(
        name="the gradient goes past the softmax unchanged",
        part="test-weigh-keys-gradient",
        old="    grad_scores = grad - np.vecdot(grad, output)[..., None]\n    grad_scores *= output\n",
        new="    grad_scores = grad\n",
    ),
    Wrong(
        name="the gradient that flows in is overwritten",
        part="test-weigh-keys-gradient",
        old="    grad_scores = grad - np.vecdot(grad, output)[..., None]\n",
        new="    grad_scores = grad\n    grad_scores -= np.vecdot(grad, output)[..., None]\n",
    ),
    Wrong(
        name="the mask gets no gradient",
        part="test-weigh-keys-gradient",
        old="else (grad_query, grad_key, grad_scores)",
        new="else (grad_query, grad_key, np.zeros_like(grad_scores))",
    ),
    Wrong(
        name="a token does not see itself",
        part="test-causal-mask",
        old="is_future = np.arange(num_keys) > query_position",
        new="is_future = np.arange(num_keys) >= query_position",
    ),
    Wrong(
        name="the queries are taken to begin at position 0",
        part="test-causal-mask",
        old="np.arange(num_keys - num_queries, num_keys)[:, None]",
        new="np.arange(num_queries)[:, None]",
    ),
    Wrong(
        name="the past is hidden and the future visible",
        part="test-causal-mask",
        old="np.arange(num_keys) > query_position",
        new="np.arange(num_keys) < query_position",
    ),
    Wrong(
        name="a large number instead of minus infinity",
        part="test-causal-mask",
        old="np.where(is_future, np.float32(-np.inf), np.float32(0))",
        new="np.where(is_future, np.float32(-10), np.float32(0))",
    ),
    Wrong(
        name="the mask is 1 and 0",
        part="test-causal-mask",
        old="np.where(is_future, np.float32(-np.inf), np.float32(0))",
        new="np.where(is_future, np.float32(0), np.float32(1))",
    ),
    Wrong(
        name="more queries than keys are accepted",
        part="test-causal-mask",
        old="    if num_queries > num_keys:\n"
        '        raise ValueError(f"{num_queries} queries cannot be the last of {num_keys} positions")\n',
        new="",
    ),
    Wrong(
        name="a mask replaces the causal rule",
        part="test-attention-weights",
        old="mask = future if mask is None else mask + future",
        new="mask = future if mask is None else mask",
    ),
    Wrong(
        name="the causal rule replaces the mask",
        part="test-attention-weights",
        old="mask = future if mask is None else mask + future",
        new="mask = future",
    ),
    Wrong(
        name="always causal",
        part="test-attention-weights",
        old="    if causal and T > 1:\n",
        new="    if T > 1:\n",
    ),
    Wrong(
        name="the causal rule is written into the caller's mask",
        part="test-attention-weights",
        old="mask = future if mask is None else mask + future",
        new="mask = future if mask is None else np.add(mask, future, out=mask)",
    ),
    Wrong(
        name="the mean is taken of the keys",
        part="test-sdpa",
        old="attention_weights(query, key, mask, causal) @ value",
        new="attention_weights(query, key, mask, causal) @ key",
    ),
    Wrong(
        name="the mask is not handed on",
        part="test-sdpa",
        old="attention_weights(query, key, mask, causal) @ value",
        new="attention_weights(query, key, None, causal) @ value",
    ),
    Wrong(
        name="causal is not handed on",
        part="test-sdpa",
        old="attention_weights(query, key, mask, causal) @ value",
        new="attention_weights(query, key, mask) @ value",
    ),
    Wrong(
        name="heads are cut without swapping the axes",
        part="test-split-heads",
        old="x.reshape(B, T, num_heads, C // num_heads).transpose(0, 2, 1, 3)",
        new="x.reshape(B, num_heads, T, C // num_heads)",
    ),
    Wrong(
        name="heads are every H-th number",
        part="test-split-heads",
        old="x.reshape(B, T, num_heads, C // num_heads).transpose(0, 2, 1, 3)",
        new="x.reshape(B, T, C // num_heads, num_heads).transpose(0, 3, 1, 2)",
    ),
    Wrong(
        name="unequal heads are left to NumPy",
        part="test-split-heads",
        old="    if C % num_heads:\n"
        '        raise ValueError(f"{C} numbers cannot be cut into {num_heads} equal heads")\n',
        new="    x = x[..., : C - C % num_heads]\n",
    ),
    Wrong(
        name="heads are merged without swapping the axes",
        part="test-merge-heads",
        old="x.transpose(0, 2, 1, 3).reshape(B, T, H * D)",
        new="x.reshape(B, T, H * D)",
    ),
    Wrong(
        name="the numbers of the heads are shuffled together",
        part="test-merge-heads",
        old="x.transpose(0, 2, 1, 3).reshape(B, T, H * D)",
        new="x.transpose(0, 2, 3, 1).reshape(B, T, H * D)",
    ),
    Wrong(
        name="the values come from the layer of the keys",
        part="test-mha-project",
        old="layers = self.q_proj, self.k_proj, self.v_proj",
        new="layers = self.q_proj, self.k_proj, self.k_proj",
    ),
    Wrong(
        name="project gives keys, values and queries",
        part="test-mha-project",
        old="layers = self.q_proj, self.k_proj, self.v_proj",
        new="layers = self.k_proj, self.v_proj, self.q_proj",
    ),
    Wrong(
        name="the number of heads and their width are mixed up",
        part="test-mha-project",
        old="apply(split_heads, layer(x), num_heads=self.num_heads)",
        new="apply(split_heads, layer(x), num_heads=self.head_dim)",
    ),
    Wrong(
        name="the heads are not mixed by the output layer",
        part="test-mha-merge",
        old="self.out_proj(apply(merge_heads, heads))",
        new="apply(merge_heads, heads)",
    ),
    Wrong(
        name="the gradient is lost where the heads are merged",
        part="test-mha-merge",
        old="self.out_proj(apply(merge_heads, heads))",
        new="self.out_proj(merge_heads(heads.data))",
    ),
    Wrong(
        name="the output goes through another layer",
        part="test-mha-merge",
        old="self.out_proj(apply(merge_heads, heads))",
        new="self.v_proj(apply(merge_heads, heads))",
    ),
    Wrong(
        name="the layer ignores its mask",
        part="test-mha-forward",
        old="scaled_dot_product_attention(query, key, value, mask, self.causal)",
        new="scaled_dot_product_attention(query, key, value, None, self.causal)",
    ),
    Wrong(
        name="the layer is never causal",
        part="test-mha-forward",
        old="scaled_dot_product_attention(query, key, value, mask, self.causal)",
        new="scaled_dot_product_attention(query, key, value, mask)",
    ),
    Wrong(
        name="the layer is always causal",
        part="test-mha-forward",
        old="scaled_dot_product_attention(query, key, value, mask, self.causal)",
        new="scaled_dot_product_attention(query, key, value, mask, True)",
    ),
    Wrong(
        name="keys and values change places",
        part="test-mha-forward",
        old="query, key, value = self.project(x)",
        new="query, value, key = self.project(x)",
    ),
    Wrong(
        name="the heads are not merged",
        part="test-mha-forward",
        old="return self.merge(heads)",
        new="return self.out_proj(heads.reshape(*x.shape))",
    ),
]
