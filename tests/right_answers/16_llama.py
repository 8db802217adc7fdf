"""Right answers to module 16: other orders, other axes, loops, and einsum."""

from right_answers import Right

RIGHT = [
    Right(
        name="reshape instead of split_heads, heads gathered by index",
        bodies={
            "RotaryPositions.forward": """
                positions = check_rows(positions, self.tables[0].shape[0])
                if positions.ndim == 1:
                    positions = positions[np.newaxis]
                cos, sin = self.tables
                return Rotation(sin=sin[positions][:, np.newaxis], cos=cos[positions][:, np.newaxis])
            """,
            "GroupedQueryAttention.project": """
                def heads_of(layer, count):
                    y = layer(x)
                    return y.reshape(y.shape[0], y.shape[1], count, self.head_dim).transpose(0, 2, 1, 3)

                H = self.num_kv_heads
                G = self.num_heads // H
                query = rotation.turn(heads_of(self.q_proj, H * G))
                key = rotation.turn(heads_of(self.k_proj, H))
                value = heads_of(self.v_proj, H)
                return query.reshape(query.shape[0], H, G, query.shape[2], query.shape[3]), key, value
            """,
            "GroupedQueryAttention.merge": """
                B, H, G, T, D = heads.shape
                return self.out_proj(heads.transpose(0, 3, 1, 2, 4).reshape(B, T, H * G * D))
            """,
            "SwiGLU.forward": """
                gate = self.silu(self.gate(x))
                up = self.up(x)
                return self.down(up * gate)
            """,
            "rows_to_halves": """
                H = num_heads
                D, left = divmod(len(weight), H)
                if left or D % 2:
                    raise ValueError(f"{len(weight)} rows in {H} heads: each should have an even number")
                order = np.concatenate([np.arange(h * D, h * D + D).reshape(-1, 2).T.ravel() for h in range(H)])
                return weight[order]
            """,
        },
    ),
    Right(
        name="queries and keys turned in one call",
        bodies={
            "RotaryPositions.forward": """
                rows = check_rows(positions, len(self.tables[1]))
                rows = np.expand_dims(rows, -2)
                return Rotation(self.tables[0].take(rows, axis=0), self.tables[1].take(rows, axis=0))
            """,
            "GroupedQueryAttention.project": """
                from tinytorch.core.autograd import gradient_of

                def side_by_side(q, k):
                    return np.concatenate([q, k], axis=1)

                @gradient_of(side_by_side)
                def _(grad, output, q, k):
                    return grad[:, : q.shape[1]], grad[:, q.shape[1] :]

                q = apply(split_heads, self.q_proj(x), num_heads=self.num_heads)
                k = apply(split_heads, self.k_proj(x), num_heads=self.num_kv_heads)
                v = apply(split_heads, self.v_proj(x), num_heads=self.num_kv_heads)
                both = rotation.turn(apply(side_by_side, q, k))
                group = (x.shape[0], self.num_kv_heads, self.num_heads // self.num_kv_heads, *q.shape[2:])
                return both[:, : self.num_heads].reshape(group), both[:, self.num_heads :], v
            """,
            "Llama.hidden_states": """
                from functools import reduce

                x = self.token_embedding(tokens)
                rotation = self.position_embedding(range(start_pos, stop))
                return self.norm(reduce(lambda h, block: block(h, None, rotation), self.blocks, x))
            """,
            "Llama.logits": """
                weight = self.token_embedding.weight if self.tied else self.output.weight
                return apply(linear, hidden, weight)
            """,
            "count_llama_parameters": """
                C = embed_dim
                sizes = {
                    "norms": 2 * C,
                    "q": C * num_heads * head_dim,
                    "k": C * num_kv_heads * head_dim,
                    "v": C * num_kv_heads * head_dim,
                    "out": num_heads * head_dim * C,
                    "gate": C * hidden_dim,
                    "up": C * hidden_dim,
                    "down": hidden_dim * C,
                }
                total = vocab_size * C + num_layers * sum(sizes.values()) + C
                return total if tied else total + vocab_size * C
            """,
            "rows_to_halves": """
                if weight.shape[0] % num_heads or weight.shape[0] // num_heads % 2:
                    raise ValueError(f"{weight.shape[0]} rows are not {num_heads} heads of an even width")
                heads = np.split(weight, num_heads)
                return np.concatenate([part for head in heads for part in (head[0::2], head[1::2])])
            """,
        },
    ),
    Right(
        name="grouped by an axis in the layer's output, before the heads are moved",
        bodies={
            "Rotation.turn": """
                half = x.shape[-1] // 2
                first, second = x[..., :half], x[..., half:]

                def join(a, b):
                    return np.concatenate([a, b], axis=-1)

                from tinytorch.core.autograd import gradient_of

                @gradient_of(join)
                def _(grad, output, a, b):
                    return grad[..., :half], grad[..., half:]

                return apply(join, first * self.cos - second * self.sin, first * self.sin + second * self.cos)
            """,
            "GroupedQueryAttention.project": """
                B, T, _ = x.shape
                H, D = self.num_kv_heads, self.head_dim
                flat = self.q_proj(x).reshape(B, T, self.num_heads, D).transpose(0, 2, 1, 3)
                key = self.k_proj(x).reshape(B, T, H, D).swapaxes(1, 2)
                value = self.v_proj(x).reshape(B, T, H, D).swapaxes(1, 2)
                return rotation.turn(flat).reshape((B, H, self.num_heads // H, T, D)), rotation.turn(key), value
            """,
            "GroupedQueryAttention.forward": """
                q, k, v = self.project(x, rotation)
                heads = scaled_dot_product_attention(q, k, v, mask=mask, causal=True)
                merged = self.merge(heads)
                return merged
            """,
            "LlamaBlock.forward": """
                attended = self.attention(self.norm1(x), mask=mask, rotation=rotation) + x
                return self.mlp(self.norm2(attended)) + attended
            """,
            "Llama.logits": """
                if not self.tied:
                    return self.output(hidden)
                hidden = hidden if isinstance(hidden, Tensor) else Tensor(hidden)
                return hidden @ self.token_embedding.weight.T
            """,
        },
    ),
    Right(
        name="heads flattened by -1, rows moved by einsum",
        bodies={
            "Llama.hidden_states": """
                places = np.arange(stop)[start_pos:]
                turned = self.position_embedding(places)
                h = self.token_embedding(tokens)
                for layer in self.blocks:
                    h = layer(h, None, turned)
                h = self.norm(h)
                return h
            """,
            "GroupedQueryAttention.merge": """
                B, H, G, T, D = heads.shape
                flat = heads.reshape(B, -1, T, D)
                together = apply(merge_heads, flat)
                return self.out_proj(together)
            """,
            "rows_to_halves": """
                H, (N, C) = num_heads, weight.shape
                if N % H != 0 or (N // H) % 2 != 0:
                    raise ValueError(f"cannot cut {N} rows into {H} heads with pairs")
                return np.einsum("hpkc->hkpc", weight.reshape(H, N // H // 2, 2, C)).reshape(N, C)
            """,
        },
    ),
    Right(
        name="a beginner, step by step",
        bodies={
            "RotaryPositions.forward": """
                import math  # noqa: F401

                pos = check_rows(positions, len(self.tables[0]))
                cos = self.tables[0]
                sin = self.tables[1]
                if len(pos.shape) == 1:
                    ergebnis = Rotation(cos[pos], sin[pos])
                else:
                    c = []
                    s = []
                    for row in pos:
                        c.append([cos[row]])
                        s.append([sin[row]])
                    ergebnis = Rotation(np.array(c), np.array(s))
                return ergebnis
            """,
            "GroupedQueryAttention.project": """
                # Köpfe schneiden
                q = self.q_proj(x)
                k = self.k_proj(x)
                v = self.v_proj(x)
                q = apply(split_heads, q, num_heads=self.num_heads)
                k = apply(split_heads, k, num_heads=self.num_kv_heads)
                v = apply(split_heads, v, num_heads=self.num_kv_heads)
                # drehen
                q = rotation.turn(q)
                k = rotation.turn(k)
                # Gruppen
                B = q.shape[0]
                T = q.shape[2]
                H = self.num_kv_heads
                G = int(self.num_heads / self.num_kv_heads)
                q = q.reshape(B, H, G, T, self.head_dim)
                print("q", q.shape)
                return [q, k, v]
            """,
            "SwiGLU.forward": """
                a = self.gate(x)
                a = self.silu(a)
                b = self.up(x)
                c = a * b
                c = self.down(c)
                return c
            """,
            "LlamaBlock.forward": """
                a = self.norm1(x)
                a = self.attention(a, mask, rotation)
                x = x + a
                b = self.norm2(x)
                b = self.mlp(b)
                x = x + b
                return x
            """,
            "Llama.hidden_states": """
                positionen = []
                for i in range(tokens.shape[1]):
                    positionen.append(start_pos + i)
                drehung = self.position_embedding(positionen)
                x = self.token_embedding(tokens)
                for i in range(len(self.blocks)):
                    x = self.blocks[i](x, None, drehung)
                x = self.norm(x)
                return x
            """,
            "Llama.logits": """
                if self.tied == True:
                    ergebnis = apply(linear, hidden, self.token_embedding.weight)
                else:
                    ergebnis = self.output(hidden)
                return ergebnis
            """,
            "count_llama_parameters": """
                C = embed_dim
                D = head_dim
                anzahl = vocab_size * C
                if tied == False:
                    anzahl = anzahl + vocab_size * C
                for i in range(num_layers):
                    anzahl += C + C
                    anzahl += C * num_heads * D
                    anzahl += C * num_kv_heads * D
                    anzahl += C * num_kv_heads * D
                    anzahl += C * num_heads * D
                    anzahl += C * hidden_dim
                    anzahl += C * hidden_dim
                    anzahl += C * hidden_dim
                anzahl += C
                return anzahl
            """,
            "rows_to_halves": """
                N = weight.shape[0]
                if N % num_heads != 0:
                    raise ValueError("geht nicht: " + str(N) + " Zeilen, " + str(num_heads) + " Koepfe")
                D = N // num_heads
                if D % 2 == 1:
                    raise ValueError("ungerade: " + str(N) + " Zeilen, " + str(num_heads) + " Koepfe")
                neu = np.zeros_like(weight)
                for h in range(num_heads):
                    for d in range(D // 2):
                        neu[h * D + d] = weight[h * D + 2 * d]
                        neu[h * D + d + D // 2] = weight[h * D + 2 * d + 1]
                return neu
            """,
        },
    ),
    Right(
        name="key by key: queries grouped with a comprehension, attention for each group",
        bodies={
            "GroupedQueryAttention.forward": """
                def stacked(*groups):
                    return np.stack(groups, axis=2)

                from tinytorch.core.autograd import gradient_of

                @gradient_of(stacked)
                def _(grad, output, *groups):
                    return tuple(grad[:, :, g] for g in range(len(groups)))

                query, key, value = self.project(x, rotation)
                heads = [
                    scaled_dot_product_attention(query[:, :, g], key, value, mask, causal=True)
                    for g in range(query.shape[2])
                ]
                return self.merge(apply(stacked, *heads))
            """,
            "SwiGLU.forward": """
                sigmoid = 1 / (1 + (-self.gate(x)).exp())
                return self.down(self.gate(x) * sigmoid * self.up(x))
            """,
            "count_llama_parameters": """
                per_head = embed_dim * head_dim
                block = embed_dim * 2 + per_head * 2 * num_heads + per_head * 2 * num_kv_heads
                block += embed_dim * hidden_dim * 3
                return int(np.sum([(2 - tied) * vocab_size * embed_dim, num_layers * block, embed_dim], dtype=object))
            """,
        },
    ),
    Right(
        name="a cell of the student's own with helpers, and the classes by them",
        extra={
            "grouped-query-attention": """
                #| export
                def into_groups(heads, num_kv_heads):
                    B, N, T, D = heads.shape
                    return heads.reshape(B, num_kv_heads, N // num_kv_heads, T, D)


                def out_of_groups(heads):
                    return heads.reshape(heads.shape[0], heads.shape[1] * heads.shape[2], *heads.shape[3:])
            """,
            "rows-to-halves": """
                #| export
                from tinytorch.text.embeddings import pairs_to_halves
            """,
        },
        bodies={
            "GroupedQueryAttention.project": """
                count = {"q": self.num_heads, "k": self.num_kv_heads, "v": self.num_kv_heads}
                layer = {"q": self.q_proj, "k": self.k_proj, "v": self.v_proj}
                cut = {name: apply(split_heads, layer[name](x), num_heads=count[name]) for name in "qkv"}
                return into_groups(rotation.turn(cut["q"]), self.num_kv_heads), rotation.turn(cut["k"]), cut["v"]
            """,
            "GroupedQueryAttention.merge": """
                return self.out_proj(apply(merge_heads, out_of_groups(heads)))
            """,
            "rows_to_halves": """
                if len(weight) % num_heads or (len(weight) // num_heads) & 1:
                    raise ValueError(f"{len(weight)} rows: {num_heads} heads of pairs do not fit")
                columns = weight.T.reshape(weight.shape[1], num_heads, -1)
                return pairs_to_halves(columns).reshape(weight.shape[::-1]).T
            """,
        },
    ),
    Right(
        name="parts in a loop, hidden states in a list",
        bodies={
            "Rotation.turn": """
                return apply(apply_rotary, x if isinstance(x, Tensor) else Tensor(x), self.cos, self.sin)
            """,
            "GroupedQueryAttention.forward": """
                heads = scaled_dot_product_attention(*self.project(x, rotation), causal=True, mask=mask)
                return self.merge(heads)
            """,
            "LlamaBlock.forward": """
                for norm, part in ((self.norm1, lambda h: self.attention(h, mask, rotation)), (self.norm2, self.mlp)):
                    x = x + part(norm(x))
                return x
            """,
            "Llama.hidden_states": """
                length = tokens.shape[1]
                rotation = self.position_embedding(start_pos + np.arange(length, dtype=np.int32))
                hidden = [self.token_embedding(tokens)]
                for block in self.blocks:
                    hidden.append(block(hidden[-1], None, rotation))
                return self.norm(hidden[-1])
            """,
        },
    ),
    Right(
        name="the reference's classes, one cell rewritten as a whole",
        cells={
            "swiglu": '''
                #| export
                class SwiGLU(Module):
                    """(..., C) -> (..., C): down(silu(gate(x)) * up(x))."""

                    def __init__(self, embed_dim, hidden_dim, rng=None):
                        rng = np.random.default_rng(rng)
                        sizes = {"gate": (embed_dim, hidden_dim), "up": (embed_dim, hidden_dim)}
                        for name, size in (sizes | {"down": (hidden_dim, embed_dim)}).items():
                            setattr(self, name, Linear(*size, bias=False, rng=rng))
                        self.silu = SiLU()

                    def forward(self, x):
                        ### BEGIN SOLUTION
                        hidden = self.up(x) * self.silu(self.gate(x))
                        return self.down(hidden)
                        ### END SOLUTION
            ''',
        },
        bodies={
            "RotaryPositions.forward": """
                index = check_rows(positions, len(self.tables[0]))
                pick = (..., None, slice(None), slice(None))
                return Rotation(*[table[index][pick] for table in self.tables])
            """,
        },
    ),
]
