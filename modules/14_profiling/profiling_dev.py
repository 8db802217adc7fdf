# %% [markdown]
"""
# Profiling
"""

# %%
#| default_exp profiling.profiler

# %%
#| export
import time
from dataclasses import dataclass

import numpy as np


# %%
#| export
@dataclass(frozen=True)
class Timing:
    """Seconds: the median of the repeats, the fastest and the slowest."""

    median: float
    low: float
    high: float


class Profiler:
    """Measures calls: some to warm up, then `repeats` that count."""

    def __init__(self, repeats: int = 5, warmup: int = 1):
        self.repeats, self.warmup = repeats, warmup

    def time(self, function, *args, **options) -> Timing:
        """-> seconds that `function(*args, **options)` takes."""
        for _ in range(self.warmup):
            function(*args, **options)
        seconds = []
        for _ in range(self.repeats):
            start = time.perf_counter()
            function(*args, **options)
            seconds.append(time.perf_counter() - start)
        return Timing(float(np.median(seconds)), min(seconds), max(seconds))
