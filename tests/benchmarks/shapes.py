"""What every process of the benchmarks has to agree on: the models' shapes, the tokens, how time is taken."""

from time import perf_counter
from typing import NamedTuple

import numpy as np

from tinytorch.models.transformer import count_parameters


class Shape(NamedTuple):
    vocab_size: int
    embed_dim: int
    num_layers: int
    num_heads: int


SHAPES = {
    "tiny": Shape(65, 128, 4, 4),
    "small": Shape(50_257, 768, 12, 12),  # GPT-2 small
    "chat": Shape(768, 128, 4, 4),  # the milestone's chat model
}


def text(shape: str, length: int, rows: int = 1) -> np.ndarray:
    """-> (rows, length) tokens of that shape's vocabulary, the same in every process."""
    return np.random.default_rng(0).integers(0, SHAPES[shape].vocab_size, (rows, length))


def weight_numbers(shape: str) -> int:
    """How many float32 one decoded token reads: all weights, of the positions only one row."""
    return count_parameters(*SHAPES[shape][:3], max_seq_len=1)


def timed(started: float, tokens) -> dict:
    """Reads `tokens`, (B,) each, to the end and notes when each came, in seconds after `started`."""
    seconds, rows = [], []
    for column in tokens:
        seconds.append(perf_counter() - started)
        rows.append([int(token) for token in column])
    return summary(seconds, rows)


def summary(seconds: list, tokens: list) -> dict:
    """When each token came, and the tokens -> milliseconds to the first, per later one, and tokens/s."""
    result = {
        "first_ms": 1e3 * seconds[0],
        "tokens_per_second": len(tokens[0]) * len(tokens) / seconds[-1],
        "seconds": seconds,
        "tokens": tokens,
    }
    if len(seconds) > 1:
        result["ms_per_token"] = 1e3 * float(np.median(np.diff(seconds)))
    return result
