"""llama.cpp with SmolLM2 as a contender, by its Python binding, which takes minutes to compile."""

import os
from time import perf_counter

import llama_cpp
import numpy as np

from shapes import timed

DEFAULTS = llama_cpp.llama_model_default_params


def without_repacking():
    """The binding's defaults but for the repacking of weights, which fails on this model's file."""
    parameters = DEFAULTS()
    parameters.use_extra_bufts = False
    return parameters


class Chat:
    """A GGUF file as it is: 4-bit weights stay 4-bit weights."""

    def __init__(self, file: str, room: int = 1024):
        llama_cpp.llama_cpp.llama_model_default_params = without_repacking
        threads = int(os.environ["OMP_NUM_THREADS"])
        options = {"n_threads": threads, "n_threads_batch": threads, "verbose": False}
        self.model = llama_cpp.Llama(file, n_ctx=room, **options)

    def generate(self, prompt: list, new: int) -> dict:
        """A greedy generation of `new` tokens after the prompt's."""
        self.model.reset()
        return timed(perf_counter(), self._tokens(prompt, new))

    def _tokens(self, prompt: list, new: int):
        read = prompt
        for _ in range(new):
            self.model.eval(read)
            logits = llama_cpp.llama_get_logits_ith(self.model.ctx, -1)
            read = [int(np.ctypeslib.as_array(logits, (self.model.n_vocab(),)).argmax())]
            yield read
