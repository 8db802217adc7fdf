"""Right answers to module 04."""

from right_answers import Right

RIGHT = [
    Right(
        name="take_along_axis, numpy instead of math",
        bodies={
            "MSELoss.__call__": """
                prediction, target = (
                    Tensor(np.asarray(x), dtype=np.float32) if np.asarray(x).dtype.kind != "f" else floats(x)
                    for x in (prediction, target)
                )
                if prediction.shape != target.shape or 0 in target.shape:
                    raise ValueError(f"prediction {prediction.shape}, target {target.shape}")
                return ((prediction - target) ** 2).mean()
            """,
            "log_softmax": """
                x = as_floats(x)
                x = x - np.amax(x, axis=axis, keepdims=True)
                total = np.exp(x).sum(axis=axis, keepdims=True, dtype=np.float64)
                return x - np.log(total).astype(x.dtype)
            """,
            "cross_entropy": """
                keep = targets != ignore_index
                scores = log_softmax(logits[keep])
                chosen = np.take_along_axis(scores, targets[keep][:, None], axis=-1)
                return -np.mean(chosen)
            """,
            "check_targets": """
                targets = as_array(targets)
                if not np.issubdtype(targets.dtype, np.integer):
                    raise TypeError(f"targets should be integers, not {targets.dtype}")
                if len(logits_shape) == 0 or tuple(targets.shape) != tuple(logits_shape)[:-1]:
                    raise ValueError(f"targets {targets.shape} do not go with logits {logits_shape}")
                counts = targets != ignore_index
                if not counts.any():
                    raise ValueError(f"all {targets.size} targets are {ignore_index}")
                V = logits_shape[-1]
                if ((targets[counts] < 0) | (targets[counts] > V - 1)).any():
                    bad = [t for t in targets[counts].ravel().tolist() if not 0 <= t < V]
                    raise ValueError(f"target {bad[0]} is not in 0..{V - 1} (vocabulary {V})")
                return targets
            """,
            "chance_loss": "return float(np.log(vocab_size))",
            "perplexity": """
                if float(loss) < 0:
                    raise ValueError(f"{float(loss)} is below 0")
                with np.errstate(over="ignore"):
                    return float(np.exp(np.float64(float(loss))))
            """,
        },
    ),
    Right(
        name="loops over rows, sums instead of means",
        bodies={
            "MSELoss.__call__": """
                p = floats(prediction)
                t = floats(target)
                if p.shape != t.shape:
                    raise ValueError("Formen verschieden: " + str(p.shape) + " und " + str(t.shape))
                if p.size < 1:
                    raise ValueError("leer: " + str(p.shape))
                d = p - t
                return (d * d).sum() / p.size
            """,
            "log_softmax": """
                x = as_floats(x)
                m = np.max(x, axis=axis, keepdims=True)
                s = np.sum(np.exp(x - m), axis=axis, keepdims=True)
                return (x - m) - np.log(s)
            """,
            "cross_entropy": """
                rows = logits.reshape(-1, logits.shape[-1])
                ids = targets.reshape(-1)
                total = 0.0
                count = 0
                for i in range(len(rows)):
                    if ids[i] == ignore_index:
                        continue
                    total = total - log_softmax(rows[i])[ids[i]]
                    count = count + 1
                return np.asarray(total / count, dtype=logits.dtype)
            """,
            "chance_loss": "return -math.log(1 / vocab_size)",
            "perplexity": """
                value = float(loss)
                if value < 0:
                    raise ValueError("negativ: " + str(value))
                if value > 709.78:
                    return float("inf")
                return math.e**value
            """,
        },
    ),
]
