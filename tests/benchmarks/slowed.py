"""A package that has become slower, made on purpose: the proof that the regression test notices."""

from time import perf_counter, sleep

import ours


def dawdle(inner, *inputs):
    """Four times as long as it takes to do it, it sleeps afterwards."""
    started = perf_counter()
    result = inner(*inputs)
    sleep(4 * (perf_counter() - started))
    return result


class SlowAttention(ours.Cached):
    def __init__(self, **setup):
        super().__init__(**setup)
        for block in self.model.blocks:
            block.attention.wrap("forward", dawdle)
