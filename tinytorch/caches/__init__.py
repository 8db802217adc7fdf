"""Every cache of the course by name, for options such as --cache. Written by hand, not exported."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # the course tool lists these commands before there is a package to import
    from tinytorch.generation.kv_cache import CacheBase
    from tinytorch.models.transformer import LanguageModel

BLOCK_SIZE = 16  # tokens of a block of the paged cache
NUM_SINKS = 4  # of the window, as in arXiv:2309.17453


def make_plain(module: ModuleType, model: "LanguageModel", **sizes: Any) -> "CacheBase":
    return module.KVCache(**sizes)


def make_window(
    module: ModuleType,
    model: "LanguageModel",
    max_seq_len: int,
    window: int | None = None,
    num_sinks: int = NUM_SINKS,
    **sizes: Any,
) -> "CacheBase":
    """By default a quarter of max_seq_len, the sinks included."""
    if window is None:
        window = max(1, max_seq_len // 4 - num_sinks)
    positions = model.position_embedding
    rotary = positions if hasattr(positions, "turn") else None
    cache = module.SlidingWindowKVCache
    return cache(max_seq_len=max_seq_len, window=window, num_sinks=num_sinks, rotary=rotary, **sizes)


def make_quantized(module: ModuleType, model: "LanguageModel", **sizes: Any) -> "CacheBase":
    return module.QuantizedKVCache(**sizes)


def make_paged(
    module: ModuleType,
    model: "LanguageModel",
    batch_size: int,
    max_seq_len: int,
    block_size: int = BLOCK_SIZE,
    **sizes: Any,
) -> "CacheBase":
    """A pool of its own, just large enough."""
    pool = module.BlockPool(batch_size * -(-max_seq_len // block_size), block_size, **sizes)
    return module.PagedKVCache(pool, batch_size, max_seq_len)


@dataclass(frozen=True)
class Kind:
    """What a cache is, for a list; the module of the course that makes it, and how it is made."""

    what: str
    label: str
    make: Callable
    is_exact: bool = False  # the same tokens as without a cache


CACHES = {
    "plain": Kind("every key and value in float32", "15_kvcaching", make_plain, True),
    "window": Kind("the newest tokens and a few of the first", "17_window", make_window),
    "float16": Kind("half the bytes", "18_quantized", partial(make_quantized, bits=16)),
    "int8": Kind("about a quarter of the bytes", "18_quantized", partial(make_quantized, bits=8)),
    "int4": Kind("about a seventh of the bytes", "18_quantized", partial(make_quantized, bits=4)),
    "paged": Kind("blocks from a pool", "19_paged", make_paged, True),
}
PLACES = {"15_kvcaching": "kv_cache", "17_window": "window", "18_quantized": "quantized", "19_paged": "paged"}


def new_cache(
    name: str, model: "LanguageModel", max_seq_len: int | None = None, batch_size: int = 1, **options: Any
) -> "CacheBase":
    """-> an empty cache of this name, of the model's sizes, for max_seq_len tokens (by default the model's).

    options: for its constructor, `window` for instance. Raises ValueError for an unknown name or sizes that
    are none, ModuleNotFoundError in one sentence if its module is not complete.
    """
    if name not in CACHES:
        raise ValueError(f"there is no cache {name!r}, there are {', '.join(CACHES)}")
    kind = CACHES[name]
    place = f"tinytorch.generation.{PLACES[kind.label]}"
    try:
        module = import_module(place)
    except ModuleNotFoundError as error:
        if error.name != place:
            raise
        raise ModuleNotFoundError(
            f"the {name} cache is module {kind.label[:2]}, which is not complete yet", name=place
        ) from error
    from tinytorch.generation.kv_cache import cache_sizes

    sizes = {"batch_size": batch_size, **cache_sizes(model)}
    sizes["max_seq_len"] = model.max_seq_len if max_seq_len is None else max_seq_len
    return kind.make(module, model, **sizes, **options)


def bring_into_play(model: "LanguageModel", cache: "CacheBase") -> None:
    """See to it that this cache, or none if it is None, stands in front of the model, as it was left."""
    from tinytorch.generation.kv_cache import disable_kv_cache, enable_kv_cache

    if getattr(model, "_kv_cache", None) is not cache:
        disable_kv_cache(model)
        if cache is not None:
            enable_kv_cache(model, cache)


def compared(cache: str, same: bool) -> str:
    """What to say of the tokens with and without this cache; some caches keep less than all."""
    if same:
        return "the same tokens"
    if CACHES[cache].is_exact:
        return "NOT the same tokens"
    return f"other tokens (the {cache} cache is not exact)"


def kinds() -> str:
    """The caches that there are, for the help."""
    return "; ".join(f"{name}: {kind.what}" for name, kind in CACHES.items())
