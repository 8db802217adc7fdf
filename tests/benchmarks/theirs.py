"""transformers on PyTorch as a contender, with the same weights; needs the [oracle] extra."""

import os
import sys
from time import perf_counter

import numpy as np
import torch
import transformers

from plan import ROOT
from shapes import SHAPES, summary, text
from tinytorch.models.transformer import GPT

sys.path.insert(0, str(ROOT / "tests" / "oracles"))
from gpt2_twin import twin_of  # noqa: E402

transformers.logging.set_verbosity_error()
torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))


class Clock:
    """A streamer of transformers that notes when each token comes; the first call brings the prompt."""

    def __init__(self):
        self.started = perf_counter()
        self.seconds, self.tokens = [], []

    def put(self, tokens):
        self.seconds.append(perf_counter() - self.started)
        self.tokens.append(tokens.flatten().tolist())

    def end(self):
        pass


class Generation:
    """GPT-2 with `generate`. cache: "dynamic" grows with the text, "static" is allocated for all of it."""

    def __init__(self, shape: str, cache: str, max_seq_len: int = 1024):
        self.shape, self.cache = shape, cache
        self.twin = twin_of(GPT(*SHAPES[shape], max_seq_len, seed=0))

    def generate(self, prompt: int, new: int) -> dict:
        """A greedy generation of `new` tokens after `prompt` given ones; nothing is compiled."""
        tokens = torch.tensor(text(self.shape, prompt))
        mask, clock = torch.ones_like(tokens), Clock()
        options = {"do_sample": False, "pad_token_id": 0, "disable_compile": True}
        options |= {"cache_implementation": self.cache, "max_new_tokens": new, "streamer": clock}
        with torch.inference_mode():
            self.twin.generate(tokens, attention_mask=mask, **options)
        return summary(clock.seconds[1:], clock.tokens[1:])

    def logits(self, length: int, file: str) -> dict:
        """All logits of a text, (length, V), into a .npy file."""
        with torch.inference_mode():
            np.save(file, self.twin(torch.tensor(text(self.shape, length))).logits[0].numpy())
        return {}


class Training:
    """The chat model's training step with torch.optim, dropout off as in ours."""

    def __init__(self, shape: str, batch: int, context: int):
        self.twin = twin_of(GPT(*SHAPES[shape], context, seed=0)).train()
        for module in self.twin.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
        tokens = torch.tensor(text(shape, context + 1, batch))
        self.inputs, self.targets = tokens[:, :-1].contiguous(), tokens[:, 1:].flatten()
        self.optimizer = torch.optim.AdamW(self.twin.parameters(), lr=3e-3, weight_decay=0.1)

    def step(self) -> float:
        """One batch forward, backward, clipped, and a step of the optimizer -> the loss before it."""
        self.optimizer.zero_grad()
        logits = self.twin(self.inputs, use_cache=False).logits
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), self.targets)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.twin.parameters(), 1.0)
        self.optimizer.step()
        return loss.item()

    def train(self, steps: int) -> dict:
        """Some steps on the same batch -> tokens per second and the losses."""
        started = perf_counter()
        losses = [self.step() for _ in range(steps)]
        seconds = perf_counter() - started
        return {"tokens_per_second": steps * self.targets.numel() / seconds, "losses": losses}
