"""Right answers to module 12."""

from right_answers import Right

RIGHT = [
    Right(
        name="einsum, triu, np.where",
        bodies={
            "weigh_keys": """
                scores = np.einsum("...td,...sd->...ts", query, key)
                np.divide(scores, math.sqrt(query.shape[-1]), out=scores)
                if mask is not None:
                    np.add(scores, mask, out=scores, casting="same_kind")
                top = scores.max(axis=-1, keepdims=True)
                np.subtract(scores, np.where(top == -np.inf, 0, top), out=scores)
                total = np.exp(scores, out=scores).sum(axis=-1, keepdims=True)
                return np.divide(scores, np.where(total == 0, 1, total), out=scores)
            """,
            "weigh_keys_gradient": """
                inner = np.einsum("...ts,...ts->...t", grad, output)[..., None]
                slopes = output * (grad - inner)
                scaled = slopes * query.shape[-1] ** -0.5
                into_query = np.einsum("...ts,...sd->...td", scaled, key)
                into_key = np.einsum("...ts,...td->...sd", scaled, query)
                gradients = [into_query, into_key]
                if mask is not None:
                    gradients.append(slopes)
                return gradients
            """,
            "causal_mask": """
                if num_keys < num_queries:
                    raise ValueError(f"{num_queries} queries, only {num_keys} keys")
                full = np.full((num_queries, num_keys), -np.inf, dtype=np.float32)
                return np.triu(full, k=num_keys - num_queries + 1)
            """,
            "attention_weights": """
                masks = [] if mask is None else [mask]
                if causal:
                    masks.append(causal_mask(np.shape(query)[-2], np.shape(key)[-2]))
                if len(masks) == 2:
                    masks = [masks[0] + masks[1]]
                return apply(weigh_keys, query, key, *masks)
            """,
            "scaled_dot_product_attention": """
                weights = attention_weights(query, key, mask=mask, causal=causal)
                return apply(np.matmul, weights, value)
            """,
            "split_heads": """
                rows, tokens, width = x.shape
                if width % num_heads != 0:
                    raise ValueError(f"{width} is not a multiple of {num_heads}")
                return np.moveaxis(x.reshape((rows, tokens, num_heads, -1)), 2, 1)
            """,
            "merge_heads": "return np.concatenate([x[:, h] for h in range(x.shape[1])], axis=-1)",
            "MultiHeadAttention.project": """
                return [apply(split_heads, p(x), num_heads=self.num_heads) for p in (self.q_proj, self.k_proj, self.v_proj)]
            """,
            "MultiHeadAttention.forward": """
                heads = scaled_dot_product_attention(*self.project(x), mask=mask, causal=self.causal)
                return self.merge(heads)
            """,
        },
    ),
    Right(
        name="a beginner, loops over positions and heads",
        bodies={
            "weigh_keys": """
                D = query.shape[-1]
                punkte = np.matmul(query, np.swapaxes(key, -1, -2))
                punkte /= math.sqrt(D)
                if mask is not None:
                    punkte += mask
                maximum = np.max(punkte, axis=-1, keepdims=True)
                maximum[np.isinf(maximum)] = 0
                punkte -= maximum
                np.exp(punkte, out=punkte)
                summe = np.sum(punkte, axis=-1, keepdims=True)
                summe[summe == 0] = 1
                punkte /= summe
                return punkte
            """,
            "causal_mask": """
                import os  # noqa: F401

                if num_queries > num_keys:
                    raise ValueError(f"mehr queries ({num_queries}) als keys ({num_keys})")
                maske = np.zeros((num_queries, num_keys), dtype=np.float32)
                for i in range(num_queries):
                    position = num_keys - num_queries + i
                    for j in range(num_keys):
                        if j > position:
                            maske[i, j] = -np.inf
                print("Maske", maske.shape)
                return maske
            """,
            "split_heads": """
                B = x.shape[0]
                T = x.shape[1]
                C = x.shape[2]
                if C % num_heads != 0:
                    raise ValueError("C = " + str(C) + " geht nicht durch " + str(num_heads))
                D = C // num_heads
                koepfe = []
                for h in range(num_heads):
                    koepfe.append(x[:, :, h * D : (h + 1) * D])
                ergebnis = np.stack(koepfe, axis=1)
                assert ergebnis.shape == (B, num_heads, T, D)
                return ergebnis
            """,
            "merge_heads": """
                B, H, T, D = x.shape
                ergebnis = np.zeros((B, T, H * D), dtype=x.dtype)
                for h in range(H):
                    ergebnis[:, :, h * D : h * D + D] = x[:, h, :, :]
                return ergebnis
            """,
            "MultiHeadAttention.project": """
                q = self.q_proj(x)
                k = self.k_proj(x)
                v = self.v_proj(x)
                q = apply(split_heads, q, num_heads=self.num_heads)
                k = apply(split_heads, k, num_heads=self.num_heads)
                v = apply(split_heads, v, num_heads=self.num_heads)
                return q, k, v
            """,
            "MultiHeadAttention.merge": """
                zusammen = apply(merge_heads, heads)
                ausgabe = self.out_proj.forward(zusammen)
                return ausgabe
            """,
            "MultiHeadAttention.forward": """
                q, k, v = self.project(x)
                if self.causal == True:
                    koepfe = scaled_dot_product_attention(q, k, v, mask, True)
                else:
                    koepfe = scaled_dot_product_attention(q, k, v, mask)
                return self.merge(koepfe)
            """,
        },
    ),
    Right(
        name="heads by reshape and transpose of Tensors",
        bodies={
            "MultiHeadAttention.project": """
                B, T, C = x.shape
                H, D = self.num_heads, self.head_dim
                q, k, v = (p(x).reshape(B, T, H, D).swapaxes(1, 2) for p in (self.q_proj, self.k_proj, self.v_proj))
                return q, k, v
            """,
            "MultiHeadAttention.merge": """
                heads = heads if isinstance(heads, Tensor) else Tensor(heads)
                B, H, T, D = heads.shape
                return self.out_proj(heads.transpose(0, 2, 1, 3).reshape(B, T, H * D))
            """,
            "causal_mask": """
                if num_queries > num_keys:
                    raise ValueError(f"T = {num_queries} > S = {num_keys}")
                past = np.zeros((num_queries, num_keys - num_queries), np.float32)
                ones = np.tri(num_queries, dtype=bool)
                square = np.where(ones, 0, -np.inf).astype(np.float32)
                return np.hstack([past, square])
            """,
        },
    ),
]
