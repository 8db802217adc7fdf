"""Right answers to module 11."""

from right_answers import Right

RIGHT = [
    Right(
        name="np.add.at, complex rotations, outer products",
        bodies={
            "take_rows": "return weight[ids]",
            "check_rows": """
                ids = as_array(ids)
                if not np.issubdtype(ids.dtype, np.integer):
                    raise TypeError(f"ids should be integers, not {ids.dtype}")
                bad = (ids < 0) | (ids >= num_rows)
                if bad.any():
                    raise ValueError(f"id {ids[bad].flat[0]} is not one of the {num_rows} rows")
                return ids.astype(np.intp)
            """,
            "sum_rows": """
                total = np.zeros((num_rows, slopes.shape[-1]), dtype=slopes.dtype)
                np.add.at(total, ids, slopes)
                return total
            """,
            "Embedding.forward": """
                rows = len(self.weight)
                return apply(take_rows, self.weight, check_rows(ids, num_rows=rows))
            """,
            "LearnedPositions.forward": """
                positions = start_pos + np.arange(num_tokens)
                if start_pos < 0:
                    raise ValueError(f"start_pos is {start_pos}, below 0")
                if num_tokens > self.max_seq_len - start_pos:
                    raise ValueError(f"position {positions[-1]} is beyond {self.max_seq_len - 1}")
                return self.table(positions)
            """,
            "sinusoidal_table": """
                if embed_dim % 2 == 1 or embed_dim <= 0:
                    raise ValueError(f"embed_dim {embed_dim} is not even and positive")
                i = np.arange(embed_dim // 2, dtype=np.float64)
                p = as_array(positions, np.float64)
                angles = np.multiply.outer(p, base ** (-2 * i / embed_dim))
                pairs = np.stack([np.sin(angles), np.cos(angles)], axis=-1)
                return pairs.reshape(*p.shape, embed_dim).astype(np.float32)
            """,
            "rotary_tables": """
                if head_dim % 2 or head_dim < 1:
                    raise ValueError(f"head_dim {head_dim} is not even and positive")
                if not (base > 0 and math.isfinite(base)):
                    raise ValueError(f"base {base} is not positive and finite")
                exponents = np.linspace(0, 1, head_dim // 2, endpoint=False)
                speeds = float(base) ** -exponents
                speeds /= 1 if factors is None else factors
                turns = np.exp(1j * np.multiply.outer(as_array(positions, np.float64), speeds))
                return [part.astype(np.float32) for part in (turns.real, turns.imag)]
            """,
            "apply_rotary": """
                T, D = x.shape[-2:]
                if D % 2 == 1 or cos.shape[-2:] != (T, D // 2) or sin.shape[-2:] != (T, D // 2):
                    raise ValueError(f"x {x.shape}, tables {cos.shape} and {sin.shape}")
                a, b = np.split(x, 2, axis=-1)
                turned = np.empty(np.broadcast_shapes(x.shape[:-1], cos.shape[:-1]) + (D,), x.dtype)
                turned[..., : D // 2] = a * cos - b * sin
                turned[..., D // 2 :] = a * sin + b * cos
                return turned
            """,
            "RotaryEmbedding.forward": """
                T = x.shape[-2]
                last = start_pos + T - 1
                if not 0 <= start_pos <= self.max_seq_len - T:
                    raise ValueError(f"{start_pos} to {last} are not all in 0..{self.max_seq_len - 1}")
                cos, sin = (table[start_pos : start_pos + T] for table in (self.cos, self.sin))
                return apply(apply_rotary, x, cos, sin)
            """,
        },
    ),
    Right(
        name="a beginner, loops over ids and pairs",
        bodies={
            "take_rows": """
                flach = np.reshape(ids, -1)
                zeilen = np.empty((len(flach), weight.shape[1]), dtype=weight.dtype)
                for n in range(len(flach)):
                    zeilen[n] = weight[flach[n]]
                return zeilen.reshape(np.shape(ids) + (weight.shape[1],))
            """,
            "sum_rows": """
                summe = np.zeros((num_rows, slopes.shape[-1]), dtype=slopes.dtype)
                flach = ids.reshape(-1)
                steigungen = slopes.reshape(len(flach), slopes.shape[-1])
                for i in range(len(flach)):
                    summe[flach[i]] += steigungen[i]
                return summe
            """,
            "sinusoidal_table": """
                import os  # noqa: F401

                if embed_dim < 2:
                    raise ValueError("embed_dim " + str(embed_dim) + " ist zu klein")
                if embed_dim % 2 != 0:
                    raise ValueError("embed_dim " + str(embed_dim) + " ist ungerade")
                p = np.asarray(positions).astype(np.float64)
                tabelle = np.zeros(p.shape + (embed_dim,), dtype=np.float32)
                for i in range(embed_dim // 2):
                    winkel = p / base ** (2 * i / embed_dim)
                    tabelle[..., 2 * i] = np.sin(winkel)
                    tabelle[..., 2 * i + 1] = np.cos(winkel)
                print("Tabelle", tabelle.shape)
                return tabelle
            """,
            "apply_rotary": """
                D = x.shape[-1]
                T = x.shape[-2]
                if D % 2 != 0:
                    raise ValueError(f"D = {D} ist ungerade, x hat {x.shape}")
                if cos.shape[-2:] != (T, D // 2):
                    raise ValueError(f"Tabelle {cos.shape} passt nicht zu {x.shape}")
                ergebnis = np.zeros_like(x)
                for i in range(D // 2):
                    erster = x[..., i]
                    zweiter = x[..., i + D // 2]
                    ergebnis[..., i] = erster * cos[..., i] - zweiter * sin[..., i]
                    ergebnis[..., i + D // 2] = zweiter * cos[..., i] + erster * sin[..., i]
                return ergebnis
            """,
            "rotary_gradient": """
                g1, g2 = np.split(grad, 2, axis=-1)
                return np.concatenate((g1 * cos + g2 * sin, g2 * cos - g1 * sin), axis=-1)
            """,
        },
    ),
]
