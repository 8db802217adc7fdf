"""Right answers to module 13."""

from right_answers import Right

RIGHT = [
    Right(
        name="searchsorted, argsort, einsum for the logits",
        bodies={
            "greedy": "return np.array([np.argmax(row) for row in logits])",
            "draw": """
                points = rng.random(len(logits))
                chosen = []
                for row, point in zip(softmax(logits).astype(np.float64), points, strict=True):
                    ends = np.cumsum(row)
                    chosen.append(np.searchsorted(ends, point * ends[-1], side="right"))
                return np.array(chosen)
            """,
            "keep_top_k": """
                k = min(k, logits.shape[-1])
                smallest_kept = np.sort(logits, axis=-1)[:, -k][:, None]
                kept = logits.copy()
                kept[logits < smallest_kept] = -np.inf
                return kept
            """,
            "keep_top_p": """
                if p == 1:
                    return logits
                probs = softmax(logits)
                kept = np.full_like(logits, -np.inf)
                for b in range(len(logits)):
                    order = np.argsort(-probs[b], kind="stable")
                    total = 0.0
                    for i in order:
                        total += float(probs[b, i])
                        if total >= p:
                            break
                    stays = probs[b] >= probs[b, i]
                    kept[b, stays] = logits[b, stays]
                return kept
            """,
            "sample": """
                if temperature == 0:
                    return greedy(logits)
                scaled = at_temperature(logits, temperature)
                scaled = scaled if top_k is None else keep_top_k(scaled, top_k)
                scaled = scaled if top_p is None else keep_top_p(scaled, top_p)
                return draw(scaled, rng=np.random.default_rng(rng))
            """,
            "at_temperature": """
                wide = logits.astype(np.float64)
                wide -= wide.max(axis=1)[:, None]
                with np.errstate(all="ignore"):
                    wide /= temperature
                    return np.asarray(wide, logits.dtype)
            """,
            "write": """
                running = np.ones(len(tokens), dtype=bool)
                written = 0
                while written < max_new_tokens and running.any():
                    new = np.array(choose(next_logits(tokens)))
                    if stop_token is not None:
                        new[~running] = stop_token
                        running &= new != stop_token
                    yield new
                    tokens = new.reshape(-1, 1)
                    written += 1
            """,
            "Recompute.__call__": """
                stop = self.length + np.shape(new)[1]
                np.copyto(self.tokens[:, self.length : stop], new)
                self.length = stop
                return self.model.next_logits(self.tokens[:, :stop])
            """,
            "LanguageModel.next_logits": """
                with no_grad():
                    hidden = self.hidden_states(tokens)
                    last = hidden[:, -1]
                    return self.logits(last).data
            """,
            "LanguageModel.generate": """
                give = self.decoder(batch_size=len(prompt), num_tokens=total)
                columns = [prompt]
                for new_tokens in stream(
                    give, prompt, new, temperature=temperature, top_k=top_k, top_p=top_p, rng=rng, stop_token=stop_token
                ):
                    columns.append(new_tokens.reshape(-1, 1))
                return np.hstack(columns)
            """,
            "MLP.forward": """
                wide = self.gelu(self.up(x))
                return self.down(wide)
            """,
            "TransformerBlock.forward": """
                attended = self.attention(self.norm1(x), mask=mask) + x
                return self.mlp(self.norm2(attended)) + attended
            """,
            "GPT.hidden_states": """
                from functools import reduce

                positions = self.position_embedding(np.arange(tokens.shape[1]) + start_pos)
                x = self.token_embedding(tokens) + positions
                return self.norm(reduce(lambda h, block: block(h), self.blocks, x))
            """,
            "GPT.logits": """
                hidden = hidden if isinstance(hidden, Tensor) else Tensor(hidden)
                return hidden @ self.token_embedding.weight.T
            """,
            "count_parameters": """
                linear = lambda i, o: i * o + o
                norm = 2 * embed_dim
                block = 2 * norm + 4 * linear(embed_dim, embed_dim)
                block += linear(embed_dim, 4 * embed_dim) + linear(4 * embed_dim, embed_dim)
                return sum([vocab_size * embed_dim, max_seq_len * embed_dim, num_layers * block, norm])
            """,
            "next_token_loss": """
                inputs, targets = tokens[:, :-1], tokens[:, 1:]
                logits = model(inputs)
                loss = CrossEntropyLoss()
                return loss(logits, targets)
            """,
        },
    ),
    Right(
        name="a beginner, token by token",
        bodies={
            "greedy": """
                ergebnis = []
                for b in range(logits.shape[0]):
                    bestes = 0
                    for v in range(logits.shape[1]):
                        if logits[b, v] > logits[b, bestes]:
                            bestes = v
                    ergebnis.append(bestes)
                return np.array(ergebnis)
            """,
            "keep_top_k": """
                if k > logits.shape[1]:
                    k = logits.shape[1]
                ergebnis = np.zeros_like(logits)
                for b in range(logits.shape[0]):
                    sortiert = sorted(logits[b], reverse=True)
                    grenze = sortiert[k - 1]
                    for v in range(logits.shape[1]):
                        if logits[b, v] >= grenze:
                            ergebnis[b, v] = logits[b, v]
                        else:
                            ergebnis[b, v] = -np.inf
                return ergebnis
            """,
            "sample": """
                import sys  # noqa: F401

                zufall = np.random.default_rng(rng)
                if temperature == 0 or temperature == 0.0:
                    return greedy(logits)
                x = at_temperature(logits, temperature)
                if top_k != None:
                    x = keep_top_k(x, top_k)
                if top_p != None:
                    x = keep_top_p(x, top_p)
                token = draw(x, zufall)
                return token
            """,
            "write": """
                fertig = [False] * len(tokens)
                eingabe = tokens
                for i in range(max_new_tokens):
                    logits = next_logits(eingabe)
                    neu = choose(logits)
                    if stop_token is not None:
                        neu = list(neu)
                        for b in range(len(neu)):
                            if fertig[b]:
                                neu[b] = stop_token
                            if neu[b] == stop_token:
                                fertig[b] = True
                        neu = np.array(neu)
                    yield neu
                    if all(fertig):
                        break
                    eingabe = neu[:, np.newaxis]
            """,
            "LanguageModel.next_logits": """
                with no_grad():
                    alles = self.hidden_states(tokens)
                    letztes = alles[:, -1:, :]
                    logits = self.logits(letztes)
                ergebnis = logits.numpy()[:, -1, :]
                return ergebnis
            """,
            "LanguageModel.generate": """
                decoder = self.decoder(prompt.shape[0], total)
                ergebnis = prompt
                for spalte in stream(decoder, prompt, new, temperature, top_k, top_p, rng, stop_token):
                    print("neu:", spalte)
                    ergebnis = np.concatenate([ergebnis, spalte[:, None]], axis=1)
                return ergebnis
            """,
            "TransformerBlock.forward": """
                a = self.norm1(x)
                a = self.attention(a, mask)
                x = x + a
                b = self.norm2(x)
                b = self.mlp(b)
                x = x + b
                return x
            """,
            "GPT.hidden_states": """
                T = tokens.shape[1]
                positionen = list(range(start_pos, start_pos + T))
                x = self.token_embedding(tokens)
                p = self.position_embedding(positionen)
                x = x + p
                for i in range(self.num_layers):
                    x = self.blocks[i](x)
                x = self.norm(x)
                return x
            """,
            "count_parameters": """
                C = embed_dim
                tokens = vocab_size * C
                positionen = max_seq_len * C
                pro_block = 12 * C * C + 13 * C
                return tokens + positionen + num_layers * pro_block + 2 * C
            """,
        },
    ),
]
