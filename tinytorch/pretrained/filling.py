"""From the tensors of a file to the weights of a model: what is checked first, and how it is filled."""

# The order is always the same: read what the file says of itself and check it; check that exactly the tensors
# of such a model are there, in their shapes; only then make the model and fill it, tensor by tensor. After
# the second check no size is larger than the bytes of the file can account for.

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import DTypeLike


@dataclass(frozen=True)
class Place:
    """A tensor of a file: its shape, the names of the weights in it, and how to take it apart into them."""

    shape: tuple
    names: tuple[str, ...]
    take_apart: Callable[[np.ndarray], list[np.ndarray]] | None = None  # None: it is one weight as it is


class Untouched(np.random.Generator):
    """In place of random weights, zeros that take no memory until something is written into them."""

    def __init__(self):
        super().__init__(np.random.PCG64(0))

    def uniform(self, low: float = 0.0, high: float = 1.0, size: Any = None) -> np.ndarray:
        return np.zeros(() if size is None else size, np.float32)

    def normal(self, loc: float = 0.0, scale: float = 1.0, size: Any = None) -> np.ndarray:
        return np.zeros(() if size is None else size, np.float32)

    def standard_normal(
        self, size: Any = None, dtype: DTypeLike = np.float32, out: np.ndarray | None = None
    ) -> np.ndarray:
        return np.zeros(() if size is None else size, np.float32) if out is None else out


def whole(path: str | Path, facts: dict, name: str, default: Any = None) -> int:
    """facts[name], a whole number from 1 on; ValueError if it is none, or missing without a default."""
    value = default if facts.get(name) is None else facts[name]
    if value is None:
        raise ValueError(f"{path}: {name} is missing")
    if type(value) is not int or not 1 <= value < 2**63:
        raise ValueError(f"{path}: {name} should be a whole number from 1 to 2**63 - 1, got {value!r:.99}")
    return value


def decimal(
    path: str | Path, facts: dict, name: str, least: float, most: float, default: Any = None
) -> float:
    """facts[name], a number above `least` and at most `most`."""
    value = default if facts.get(name) is None else facts[name]
    if value is None:
        raise ValueError(f"{path}: {name} is missing")
    if type(value) not in (int, float) or not least < value <= most:
        raise ValueError(f"{path}: {name} should be above {least:g} and at most {most:g}, got {value!r:.99}")
    return float(value)


def check_rules(path: str | Path, facts: dict, rules: dict[str, tuple]) -> None:
    """Each fact is one of the values of its rule; where it is missing, the first of them is meant."""
    for name, allowed in rules.items():
        value = facts.get(name, allowed[0])
        if value not in allowed:
            wanted = " or ".join(repr(one) for one in allowed)
            raise ValueError(f"{path}: {name} is {value!r:.99}, only {wanted} is supported")


def check_layers(path: str | Path, num_layers: int, shapes: dict) -> None:
    """Before anything is made for each layer: no more layers than tensors."""
    if num_layers > len(shapes):
        raise ValueError(f"{path}: {num_layers:,} layers cannot be in a file of {len(shapes):,} tensors")


def check_tensors(path: str | Path, shapes: dict[str, tuple], places: dict[str, Place]) -> None:
    """Exactly the tensors of `places` are there, in their shapes."""
    missing = [name for name in places if name not in shapes]
    unknown = [name for name in shapes if name not in places]
    if missing or unknown:
        raise ValueError(
            f"{path} holds another model: {len(missing)} tensors missing {missing[:3]}, "
            f"{len(unknown)} unknown {unknown[:3]!r:.300}"
        )
    for name, place in places.items():
        if shapes[name] != place.shape:
            raise ValueError(f"{path}: {name} has shape {shapes[name]}, the model needs {place.shape}")


def check_finite(path: str | Path, name: str, array: np.ndarray) -> None:
    finite = np.isfinite(array)
    if not finite.all():
        bad = finite.size - np.count_nonzero(finite)
        raise ValueError(f"{path}: {name}: {bad} of {finite.size} numbers are not finite")


def fill(model: Any, source: Any, places: dict[str, Place], progress: Callable | None = None) -> None:
    """Put the tensors of `source` into the model's weights. progress(done, total) hears the bytes of each."""
    own = dict(model.named_parameters())
    names = [name for place in places.values() for name in place.names]
    if set(own) != set(names):
        raise ValueError(f"{type(model).__name__} has other weights: {sorted(set(own) ^ set(names))[:3]}")
    done, total = 0, 4 * sum(math.prod(place.shape) for place in places.values())
    for theirs, place in places.items():
        tensor = source.tensor(theirs)
        check_finite(source.path, theirs, tensor)
        done += tensor.nbytes
        parts = [tensor] if place.take_apart is None else place.take_apart(tensor)
        for name, array in zip(place.names, parts, strict=True):
            if own[name].shape != array.shape:
                raise ValueError(f"{name} of the model has shape {own[name].shape}, not {array.shape}")
            own[name].data = array if array is tensor else np.array(array, order="C")
        if progress is not None:
            progress(done, total)


def drop_extras(source: Any, buffer: re.Pattern, tied: bool, embedding: str) -> None:
    """Forget tensors that say nothing new: buffers, and the output of a tied model, its embedding again."""
    for name in [name for name in source.shapes if buffer.fullmatch(name)]:
        del source.shapes[name]
    output = "lm_head.weight"
    if tied and output in source.shapes and source.shapes.get(embedding) == source.shapes[output]:
        if not np.array_equal(source.tensor(output), source.tensor(embedding)):
            raise ValueError(f"{source.path}: {output} and {embedding} should be equal in a tied model")
        del source.shapes[output]
