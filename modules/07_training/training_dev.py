# %% [markdown]
"""
# Training
"""

# %%
#| default_exp core.training

# %%
#| export
import json
import math
import os
import zipfile
from pathlib import Path

import numpy as np

from tinytorch.core.autograd import enable_autograd, no_grad
from tinytorch.core.losses import CrossEntropyLoss
from tinytorch.core.optimizers import clip_grad_norm


# %%
#| export
class CosineSchedule:
    """step -> learning rate: a straight rise to max_lr over warmup_steps, then half a cosine down to min_lr."""

    def __init__(self, max_lr: float, total_steps: int, warmup_steps: int = 0, min_lr: float = 0.0):
        if not 0 <= warmup_steps <= total_steps or total_steps < 1:
            raise ValueError(f"a warm-up of {warmup_steps} steps does not fit in {total_steps} steps")
        if not 0 <= min_lr <= max_lr:
            raise ValueError(f"the learning rate should fall from max_lr {max_lr} to min_lr {min_lr}")
        self.max_lr, self.min_lr, self.total_steps, self.warmup_steps = (
            max_lr,
            min_lr,
            total_steps,
            warmup_steps,
        )

    def __call__(self, step: int) -> float:
        if step < self.warmup_steps:
            return self.max_lr * (step + 1) / self.warmup_steps
        done = (step - self.warmup_steps) / max(1, self.total_steps - self.warmup_steps)
        return self.min_lr + (self.max_lr - self.min_lr) * 0.5 * (1 + math.cos(math.pi * min(done, 1.0)))


# %%
#| export
def save_arrays(path, arrays: dict, facts: dict | None = None) -> None:
    """Write arrays, and facts that JSON can hold, to one npz file: whole or not at all."""
    path = Path(path)
    beside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    text = json.dumps(facts or {}, sort_keys=True)
    try:
        with open(beside, "wb") as file:
            np.savez(file, **{f"array/{name}": array for name, array in arrays.items()}, facts=np.array(text))
        os.replace(beside, path)
    finally:
        beside.unlink(missing_ok=True)


def load_arrays(path) -> tuple[dict, dict]:
    """-> (arrays, facts) of a file that save_arrays wrote. Never unpickles.

    Raises FileNotFoundError if there is none, ValueError if it cannot be read or is not such a file.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            entries = {name: file[name] for name in file.files}
        facts = json.loads(str(entries.pop("facts")))
    except (zipfile.BadZipFile, ValueError, KeyError, EOFError, AttributeError) as error:
        raise ValueError(f"{path} is not a whole file of saved arrays: {error}") from error
    return {name.removeprefix("array/"): array for name, array in entries.items()}, facts


# %%
#| export
class Trainer:
    """Takes a model through batches of (inputs, targets), and can stop and go on exactly where it was."""

    def __init__(self, model, optimizer, loss=None, schedule=None, max_norm: float | None = None):
        enable_autograd()
        self.model, self.optimizer, self.schedule, self.max_norm = model, optimizer, schedule, max_norm
        self.loss = CrossEntropyLoss() if loss is None else loss
        self.steps = 0

    def step(self, inputs, targets) -> float:
        """One batch forward, backward, and a step of the optimizer -> the loss before it."""
        self.model.train()
        self.optimizer.zero_grad()
        loss = self.loss(self.model(inputs), targets)
        loss.backward()
        if self.max_norm is not None:
            clip_grad_norm(self.optimizer.parameters, self.max_norm)
        if self.schedule is not None:
            self.optimizer.lr = self.schedule(self.steps)
        self.optimizer.step()
        self.steps += 1
        return loss.item()

    def fit(self, loader, num_steps: int, on_step=None) -> None:
        """Train until `num_steps` steps are done, those before a checkpoint included; on_step(step, loss) hears of each."""
        while self.steps < num_steps:
            for inputs, targets in loader:
                loss = self.step(inputs, targets)
                if on_step is not None:
                    on_step(self.steps, loss)
                if self.steps >= num_steps:
                    break
        self.model.eval()

    def evaluate(self, batches) -> float:
        """-> the mean loss over the batches, without learning from them."""
        self.model.eval()
        with no_grad():
            losses = [self.loss(self.model(inputs), targets).item() for inputs, targets in batches]
        return sum(losses) / len(losses)

    def save(self, path, loader=None) -> None:
        """Everything that the next step depends on, in one file."""
        arrays = {f"model/{name}": array for name, array in self.model.state_dict().items()}
        facts = {
            "steps": self.steps,
            "optimizer": {},
            "loader": None if loader is None else loader.state_dict(),
        }
        for name, value in self.optimizer.state_dict().items():
            if isinstance(value, np.ndarray):
                arrays[f"optimizer/{name}"] = value
            else:
                facts["optimizer"][name] = value
        save_arrays(path, arrays, facts)

    def load(self, path, loader=None) -> None:
        """Go on where `save` was called."""
        arrays, facts = load_arrays(path)
        part = {"model": {}, "optimizer": dict(facts["optimizer"])}
        for name, array in arrays.items():
            kind, _, rest = name.partition("/")
            part[kind][rest] = array
        self.model.load_state_dict(part["model"])
        self.optimizer.load_state_dict(part["optimizer"])
        if loader is not None:
            loader.load_state_dict(facts["loader"])
        self.steps = facts["steps"]
