"""The memory that a cached run needs, measured in a process that does nothing else."""

import sys
from pathlib import Path

from shapes import SHAPES, text
from tinytorch.generation.kv_cache import cache_bytes, enable_kv_cache
from tinytorch.models.transformer import GPT, count_parameters, stream


def peak_bytes() -> int:
    """The most memory that this process ever held.

    Linux counts it in /proc for this program alone; getrusage there begins with the peak of the process that
    started this one. Elsewhere getrusage is what there is, in KiB or, on macOS, in bytes.
    """
    status = Path("/proc/self/status")
    if status.exists():
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return 1024 * int(line.split()[1])
    import resource  # which Windows does not have

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak


class Peak:
    """Before: Python, NumPy and TinyTorch are imported. After: a model was built and wrote with its cache."""

    def __init__(self, shape: str):
        self.shape = shape

    def run(self, prompt: int, new: int) -> dict:
        """-> bytes: the peak above the imports, and what weights and cache must take."""
        before = peak_bytes()
        model = GPT(*SHAPES[self.shape], prompt + new, seed=0)
        enable_kv_cache(model)
        for _ in stream(model.decoder(1, prompt + new), text(self.shape, prompt), new, temperature=0):
            pass
        vocab, wide, layers, heads = SHAPES[self.shape]
        weights = 4 * count_parameters(vocab, wide, layers, prompt + new)
        needed = weights + cache_bytes(1, prompt + new, layers, heads, wide // heads)
        peak = peak_bytes() - before
        return {"peak_bytes": peak, "weights_and_cache_bytes": needed, "peak_over_needed": peak / needed}
