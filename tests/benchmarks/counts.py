"""What counting operations predicts for the speed-up of a whole generation."""

from shapes import SHAPES
from tinytorch.profiling.profiler import gpt_cost

WHERE_THEY_PART = """\
The count has every operation take the same time. In fact a pass over a few tokens takes little longer than
a pass over one, since both read all weights once and the reading is what takes the time: so the cache gains
less than the count says until the text is long enough for arithmetic to outweigh the reading. A small
model's step has a fixed price in Python calls besides, with the cache and without."""


def predicted_speedup(shape: str, new: int, prompt: int = 1) -> float:
    """Floating point operations of generating `new` tokens, uncached over cached."""
    sizes = SHAPES[shape]
    lengths = range(prompt, prompt + new)
    uncached = sum(gpt_cost(sizes, 1, length).flops for length in lengths)
    cached = gpt_cost(sizes, 1, prompt).flops
    cached += sum(gpt_cost(sizes, 1, 1, seen_tokens=length - 1).flops for length in lengths[1:])
    return uncached / cached
