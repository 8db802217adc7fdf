# %% [markdown]
"""
# Module 15: The KV cache

Your GPT writes a text one token at a time, and for every token it reads the whole text again from the beginning. In this module you measure that waste, find the part of the work that never changes, and keep it. You do not edit the finished model; you put a cache in front of it. At the end the same model produces the same tokens several times faster, and you can say exactly why, and where the gain stops.

You will be able to

- count what a whole generation costs with and without a cache, for the projections and for attention;
- design a cache that is filled in place, is read without copying, and refuses bad input before it writes;
- attend causally at absolute positions, for any batch and any number of new tokens;
- put the cache in front of a model that knows nothing about it, and remove it without a trace;
- compute the size of the cache for published models, and when it becomes larger than the model.

You need modules 12 (attention), 13 (GPT) and 14 (Profiler).
"""

# %%
#| default_exp generation.kv_cache

# %%
#| export
from collections.abc import Callable
from copy import copy
from functools import partial
from itertools import takewhile
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import ArrayLike, DTypeLike

from tinytorch.core.attention import MultiHeadAttention, scaled_dot_product_attention, whole_number
from tinytorch.core.autograd import no_grad
from tinytorch.core.tensor import Tensor, as_array, wrap_result
from tinytorch.models.transformer import PADDED, LanguageModel, check_tokens, generate_ragged

# %% [markdown]
"""
The next imports are for this notebook only: a model to work on, and the Profiler to measure it.
"""

# %%
from contextlib import contextmanager
from types import SimpleNamespace

from tinytorch.models.transformer import GPT
from tinytorch.profiling.profiler import Profiler

rng = np.random.default_rng(0)

# %% [markdown]
"""
## 1. Measure the waste

Here is a small GPT with random weights: 4 layers, a width of 128, a context of 512 tokens. Its output is nonsense, but its steps take as long as those of a trained model. How long does it take to compute the next token after 32 tokens, after 128, after 512?
"""

# %%
model = GPT(vocab_size=65, embed_dim=128, num_layers=4, num_heads=4, max_seq_len=512, seed=0)
text = rng.integers(0, 65, (1, 512))
lengths = (32, 128, 512)


def ms_per_token(length):
    """Milliseconds to read `length` tokens and return the logits of the next."""
    return 1e3 * Profiler().time(model.next_logits, text[:, :length]).median


{length: round(ms_per_token(length), 2) for length in lengths}


# %%
def plot_waste():
    import matplotlib.pyplot as plt

    lengths = (16, 64, 128, 192, 256, 384, 512)
    plt.plot(lengths, [ms_per_token(n) for n in lengths], "o-")
    plt.xlabel("tokens in the text so far")
    plt.ylabel("ms for the next token")
    plt.title("Without a cache, the longer the text, the more a token costs")
    plt.ylim(0)
    plt.show()


# %%
if "get_ipython" in globals():
    plot_waste()

# %% [markdown]
"""
You might expect one more token to cost the same however long the text is. Instead, the cost rises with the number of tokens already written.

That curve adds up costs that grow at different rates. Take a generation of n tokens from a prompt of one, so that step t reads t tokens.

| | step t, everything again | whole generation | step t, only the new token | whole generation |
|---|---|---|---|---|
| tokens pushed through the projections and the MLP | t | n(n+1)/2 | 1 | n |
| query-key products, per head and layer | t · t | n(n+1)(2n+1)/6 | t | n(n+1)/2 |

So over a whole generation the projections fall from O(n²) to O(n), and attention falls from O(n³) to O(n²); per token, attention falls from O(n²) to O(n). A cache never makes attention over a whole generation linear, because each new token has to look at every old one.

**Task (6 points).** Write both counts for a prompt of any length. With `prompt` tokens given and `new` to be produced, step 1 reads `prompt` tokens, step 2 reads `prompt + 1`, and so on; step `new` reads `prompt + new - 1`. With a cache, step 1 still reads the whole prompt, and each later step reads one token. When several tokens are read at once, count every query against every key, as in the table. (That is an upper bound. For more than 128 queries, module 12 skips blocks that the causal rule hides: a prompt of 512 takes 128² · (1 + 2 + 3 + 4) = 163,840 products, not 512² = 262,144.) About 4 lines each.
"""


# %% nbgrader={"grade": false, "grade_id": "generation-costs", "locked": false, "schema_version": 3, "solution": true}
#| export
def projected_tokens(prompt: int, new: int, cached: bool) -> int:
    """How many tokens the projections see while `new` tokens are generated after `prompt` given ones."""
    ### BEGIN SOLUTION
    if cached:
        return prompt + new - 1
    return sum(range(prompt, prompt + new))
    ### END SOLUTION


def attention_scores(prompt: int, new: int, cached: bool) -> int:
    """How many query-key products one head of one layer needs for it, every query against every key."""
    ### BEGIN SOLUTION
    lengths = range(prompt, prompt + new)
    if cached:
        return prompt * prompt + sum(lengths[1:])
    return sum(t * t for t in lengths)
    ### END SOLUTION


# %% [markdown]
"""
Generate three tokens from a prompt of one: the steps read 1, 2 and 3 tokens. Work out the four numbers by hand before you run the cell.
"""

# %%
[count(1, 3, cached) for count in (projected_tokens, attention_scores) for cached in (False, True)]

# %% nbgrader={"grade": true, "grade_id": "test-generation-costs", "locked": true, "points": 6, "schema_version": 3, "solution": false}
assert projected_tokens(1, 3, False) == 6, (
    "steps of 1, 2 and 3 tokens push 1 + 2 + 3 tokens through the projections"
)
assert projected_tokens(1, 3, True) == 3, "with a cache each of the three steps projects one token"
assert attention_scores(1, 3, False) == 14, "steps of 1, 2 and 3 tokens compute 1 + 4 + 9 products"
assert attention_scores(1, 3, True) == 6, "with a cache, one query meets 1, then 2, then 3 keys"
### BEGIN HIDDEN TESTS
for prompt, new in ((1, 1), (1, 40), (7, 1), (7, 12), (100, 3)):
    tokens, products = {True: 0, False: 0}, {True: 0, False: 0}
    for step in range(new):
        seen = prompt + step
        tokens[False] += seen
        products[False] += seen * seen
        fresh = prompt if step == 0 else 1
        tokens[True] += fresh
        products[True] += fresh * seen
    for cached in (True, False):
        assert projected_tokens(prompt, new, cached) == tokens[cached], (
            f"{prompt} + {new} tokens, cached={cached}"
        )
        assert attention_scores(prompt, new, cached) == products[cached], (
            f"{prompt} + {new} tokens, cached={cached}"
        )
### END HIDDEN TESTS

# %% [markdown]
"""
## 2. See what never changes

Why may we skip the old tokens at all? Look at the keys of layer 1 as the text grows from 5 to 6 tokens. To catch them we put an observer in front of the layer, with `wrap` from module 03.
"""


# %%
def keys_of_layer(tokens, layer_idx):
    """(1, T) -> (1, H, T, D): the keys that layer `layer_idx` computes for this text."""
    caught = []

    def observer(inner, x):
        caught.append(inner(x))
        return caught[-1]

    attention = model.blocks[layer_idx].attention
    attention.wrap("project", observer)
    model.hidden_states(tokens)
    attention.unwrap("project", observer)
    query, key, value = caught[0]
    return key.data


short, longer = keys_of_layer(text[:, :5], 1), keys_of_layer(text[:, :6], 1)
short.shape, longer.shape, float(np.abs(longer[:, :, :5] - short).max())

# %% [markdown]
"""
The first five keys are the same, up to rounding. Nothing that came later could reach them: in a causal model information flows only forwards, so what a token computes in any layer depends on the tokens up to and including itself, and those do not change.

**Question (5 points).** We are going to keep the keys and values and discard the queries. Why are old queries never needed again? And why would the same trick be wrong for an encoder without a causal mask? Answer in three or four sentences.
"""

# %% [markdown] nbgrader={"grade": true, "grade_id": "question-why-not-queries", "locked": false, "points": 5, "schema_version": 3, "solution": true}
"""
Your answer here.
"""

# %% [markdown]
"""
## 3. How large it is

For each layer we keep two arrays, keys and values. Each holds one vector of `head_dim` numbers for each row of the batch, each head and each position. Their shape is (B, H, max_seq_len, D), so that the keys of one head lie next to each other in memory, in the order in which attention reads them.

**Task (6 points).** Write `cache_bytes`: two arrays for each of L layers, of B · H · max_seq_len · D numbers each. `dtype` determines how many bytes a number takes. This is pure arithmetic, and nothing is allocated; about 2 lines. In models with grouped-query attention, H is the number of *key and value* heads.
"""


# %% nbgrader={"grade": false, "grade_id": "cache-bytes", "locked": false, "schema_version": 3, "solution": true}
#| export
def cache_bytes(
    batch_size: int,
    max_seq_len: int,
    num_layers: int,
    num_heads: int,
    head_dim: int,
    dtype: DTypeLike = np.float32,
) -> int:
    """The bytes of keys and values for `max_seq_len` tokens: 2 * L * B * H * max_seq_len * D * itemsize."""
    ### BEGIN SOLUTION
    return 2 * num_layers * batch_size * num_heads * max_seq_len * head_dim * np.dtype(dtype).itemsize
    ### END SOLUTION


# %% [markdown]
"""
GPT-2 small has 12 layers of 12 heads of width 64, and a context of 1,024 tokens. In float32 its cache takes 75.5 MB (in this course, 1 MB is 10⁶ bytes). Do you get the same?
"""

# %%
cache_bytes(1, 1024, 12, 12, 64) / 1e6

# %% nbgrader={"grade": true, "grade_id": "test-cache-bytes", "locked": true, "points": 6, "schema_version": 3, "solution": false}
assert cache_bytes(1, 1, 1, 1, 1) == 8, (
    "one token, one layer, one head, one number: a key and a value of 4 bytes each"
)
assert cache_bytes(1, 1024, 12, 12, 64) == 75_497_472, "GPT-2 small in float32 takes 75,497,472 bytes"
assert cache_bytes(1, 1024, 12, 12, 64, np.float16) == 75_497_472 // 2, "float16 halves it"
### BEGIN HIDDEN TESTS
assert cache_bytes(1, 2048, 96, 96, 128) == 19_327_352_832, (
    "GPT-3 (96 layers, 96 heads of 128, 2048 tokens) takes 19.3 GB"
)
for dtype in (np.float16, np.float32, np.float64):
    pair = [np.zeros((2, 5, 7, 3), dtype) for _ in "kv"]
    assert cache_bytes(2, 7, 4, 5, 3, dtype) == 4 * sum(a.nbytes for a in pair), (
        f"4 layers in {np.dtype(dtype)}"
    )
### END HIDDEN TESTS

# %% [markdown]
"""
## 4. The cache

The design rests on four decisions.

**Allocate once.** Appending with `np.concatenate` copies everything that is already there at every token. (The default cache of the transformers library does just that, and can afford to: it needs no length in advance, and as long as the cache is small beside the weights, copying it takes little of a step that reads them all.) We reserve room for `max_seq_len` tokens at the start and write into it. The unused zeros cost little, since most systems hand out memory pages only when they are first touched.

**Positions live in the cache, and nowhere else.** `seq_pos` is the number of committed tokens, and therefore the position of the next one.

**Write first, commit once.** Within one step every layer writes its keys at the *same* positions. If each layer's `update` moved `seq_pos`, layer 1 would write at later positions than layer 0. So `update` writes and returns, and `advance` commits once all layers have written. This has a second advantage: a step that fails half way has committed nothing.

**Check before you write.** NumPy silently broadcasts one head into four and counts negative layers from the end. The checks cost microseconds; without them, a wrong shape shows up much later as wrong text.

What these decisions demand of a cache can be written down before there is one. `Cache` is a *protocol*: whatever has these methods is a cache, whether it is yours, one from modules 17 to 19, or written by someone else, and no class has to be inherited. Two exceptions belong to it. A cache that has no room raises `CacheFull`, so that the caller can tell a full cache from a mistake in the program. If the room is a pool shared with other caches, it raises `PoolFull`, which means that there may be room later.
"""


# %%
#| export
class CacheFull(ValueError):
    """A cache has no room for the new tokens. Nothing was changed."""


class PoolFull(CacheFull):
    """A pool shared by several caches is used up for now; there may be room when one of them frees some."""


@runtime_checkable
class Cache(Protocol):
    """A cache has these methods, and may have three more. No class has to be inherited.

    After any error a cache is as it was: everything that can fail is done before the first committed number
    changes. Bad input raises ValueError (TypeError for a wrong type), in one sentence with the numbers. Lack
    of room raises CacheFull, or PoolFull if there may be room later.
    Optional methods:
    attend(query, key, value, layer_idx, mask=None) -> Tensor: attention through this cache, called by
        `attention_with_cache` instead of `update` and the attention of module 12;
    reserve(num_tokens): make sure, before a pass, that there is room for this many more tokens;
    close(): give all memory back; methods called afterwards may raise.
    """

    batch_size: int
    num_layers: int
    num_heads: int
    head_dim: int
    max_seq_len: int
    seq_pos: int  # tokens committed so far, which is the position of the next one

    @property
    def nbytes(self) -> int:
        """Bytes of all storage."""

    def update(self, layer_idx: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """(B, H, T, D) new keys and values at seq_pos.. -> all that is visible. Nothing is committed."""

    def get(self, layer_idx: int) -> tuple[Tensor, Tensor]:
        """-> the committed keys and values that are visible to the next token."""

    def advance(self, num_tokens: int = 1) -> None:
        """Commit. ValueError for more tokens than every layer has written."""

    def truncate(self, seq_pos: int) -> None:
        """Rewind to seq_pos tokens. What was written but not committed is forgotten, too."""

    def reset(self, batch_size: int | None = None) -> None:
        """Start over, for another batch_size if one is given."""

    def get_memory_usage(self) -> dict:
        """-> total_mb, per_layer_mb, used_mb, utilization, cache_tensors, total_elements, bytes_per_token."""


# %% [markdown]
"""
The work has two halves. Sizes, checks and positions do not depend on how the numbers are stored; they go into `CacheBase`, on which modules 17 to 19 build as well. The storage belongs to `KVCache`. Much of both is given, including how a cache prints itself in the terminal and in the notebook. The methods below are yours. Each is graded separately, so you can skip one and go on.

`self.written` records, for each layer, up to which position it has been written. A step of two tokens after three, in a cache of two layers, goes like this:

| call | `written` | `seq_pos` |
|---|---|---|
| (three tokens are committed) | [3, 3] | 3 |
| `update(0, ...)` with T = 2 | [5, 3] | 3 |
| `update(1, ...)` with T = 2 | [5, 5] | 3 |
| `advance(2)` | [5, 5] | 5 |
| `truncate(4)` | [4, 4] | 4 |

Whenever `seq_pos` is set, the setter, which is given, sets every entry of `written` to the same number: what was written beyond it is forgotten.

**Task, `check_new` (8 points).** Turn key and value into arrays (`as_array`) and raise before anything is written: `TypeError` if `layer_idx` is not a whole number, `ValueError` if it is outside 0 to L - 1 (`self.check_layer`, given, does both); `ValueError` if the two shapes differ, if they are not (B, H, T, D) with this cache's B, H and D, or if T is 0; `CacheFull` if `seq_pos + T` exceeds `max_seq_len`. Name both numbers each time. Finally, `self.check_numbers(key, value)`, given, refuses numbers that the storage cannot hold. Return the two arrays. About 13 lines.

**Task, `advance` (4 points).** Commit `num_tokens`, at least 1. Raise `ValueError` if that is more than *every* layer has written, and change nothing then: committing positions that were not written would expose the keys of an earlier text. About 6 lines.

**Task, `truncate` and `reset` (6 points).** `truncate` forgets the newest tokens, so that `seq_pos` tokens are left; it raises `ValueError` if there are fewer (`self.check_kept`, given). Nothing needs to be erased: what lies beyond `seq_pos` is invisible and will be overwritten. `reset` starts over in the same storage; the branch for another batch size is given.

**Task, `get_memory_usage` (5 points).** Count from the real arrays (`self.arrays()`; `array.nbytes`, `array.size`), not from the formula, so that the two can be checked against each other. Return `total_mb`, `per_layer_mb`, `used_mb` (of the committed tokens), `utilization` (from 0 to 1), `cache_tensors` (how many arrays), `total_elements`, `bytes_per_token` (of one token in one row, all layers). There is storage for `self.capacity` tokens of each row; here that is max_seq_len. In a cache that keeps only part of a long text (module 17), utilization stays at 1 once the storage is full. About 10 lines.
"""


# %% nbgrader={"grade": false, "grade_id": "cache-base", "locked": false, "schema_version": 3, "solution": true}
#| export
class CacheBase:
    """What caches with any kind of storage have in common: sizes, checks, and what is committed.

    seq_pos: tokens committed so far, which is the position of the next one.
    written: for each layer, up to which position it has been written; set by `update`.
    A subclass calls `super().__init__` and then its own `allocate`, and provides
    `allocate()`: make new arrays for batch_size rows; `arrays()` -> list of all arrays that it keeps;
    `update`, `get`, and, where its storage needs it, `truncate`, `reset`, `attend`, `capacity`.
    Raises ValueError if a size is not positive, TypeError if it is not a whole number or dtype not a float.
    """

    text: list  # what `note_text` has noted
    weights: tuple  # what `Weights.check` has noted
    allocate: Callable[[], None]
    arrays: Callable[[], list]
    update: Callable[..., tuple[Tensor, Tensor]]
    get: Callable[[int], tuple[Tensor, Tensor]]

    def __init__(
        self,
        batch_size: int,
        max_seq_len: int,
        num_layers: int,
        num_heads: int,
        head_dim: int,
        dtype: DTypeLike = np.float32,
    ):
        self.batch_size = whole_number("batch_size", batch_size, 1)
        self.max_seq_len = whole_number("max_seq_len", max_seq_len, 1)
        self.num_layers = whole_number("num_layers", num_layers, 1)
        self.num_heads = whole_number("num_heads", num_heads, 1)
        self.head_dim = whole_number("head_dim", head_dim, 1)
        self.dtype = np.dtype(dtype)
        if self.dtype.kind != "f":
            raise TypeError(f"keys and values are floats, got dtype {self.dtype}")
        self.seq_pos = 0

    @property
    def seq_pos(self) -> int:
        """Tokens committed so far. Setting it forgets what was written but not committed."""
        return self._seq_pos

    @seq_pos.setter
    def seq_pos(self, position: int) -> None:
        del getattr(self, "text", [])[position:]  # what `note_text` has noted
        self._seq_pos, self.written = position, [position] * self.num_layers  # both or, interrupted, neither

    def check_layer(self, layer_idx: int) -> int:
        """-> layer_idx. Raises TypeError if it is not an integer, ValueError if there is no such layer."""
        if whole_number("layer_idx", layer_idx, 0) >= self.num_layers:
            raise ValueError(f"layer_idx {layer_idx} is outside 0 to {self.num_layers - 1}")
        return int(layer_idx)

    def check_numbers(self, *arrays: np.ndarray) -> None:
        """Raises ValueError for a number that does not fit into a narrower dtype, or is nan.

        float32 numbers in a float32 cache are not checked: they come back as they went in.
        """
        for array in arrays:
            if not np.can_cast(array.dtype, self.dtype):
                largest = np.abs(array).max()
                if not largest <= np.finfo(self.dtype).max:  # catches nan too
                    raise ValueError(
                        f"the new tokens hold a {largest}, {self.dtype} numbers go up to "
                        f"{np.finfo(self.dtype).max:.6g}"
                    )

    def check_new(self, layer_idx: int, key: Tensor, value: Tensor) -> tuple[np.ndarray, np.ndarray]:
        """-> key and value as arrays, (B, H, T, D) each.

        Raises TypeError if layer_idx is not a whole number or the arrays do not hold numbers; ValueError if
        there is no such layer, a shape is not (B, H, T >= 1, D), the two differ, or a number does not fit
        the dtype; CacheFull if seq_pos + T exceeds max_seq_len.
        """
        ### BEGIN SOLUTION
        self.check_layer(layer_idx)
        key = key.data if isinstance(key, Tensor) else as_array(key)
        value = value.data if isinstance(value, Tensor) else as_array(value)
        if key.shape != value.shape:
            raise ValueError(f"key has shape {key.shape}, value {value.shape}: they should be equal")
        B, H, D = self.batch_size, self.num_heads, self.head_dim
        if key.ndim != 4 or (key.shape[0], key.shape[1], key.shape[3]) != (B, H, D):
            raise ValueError(f"key and value have shape {key.shape}, this cache takes ({B}, {H}, T, {D})")
        T = key.shape[2]
        if T == 0:
            raise ValueError(f"there should be at least 1 new token, key has shape {key.shape}, T = 0")
        if self.seq_pos + T > self.max_seq_len:
            raise CacheFull(
                f"{T} tokens after {self.seq_pos} make {self.seq_pos + T}, the cache holds {self.max_seq_len}"
            )
        self.check_numbers(key, value)
        return key, value
        ### END SOLUTION

    def check_room(self, num_tokens: int) -> int:
        """-> seq_pos + num_tokens. Raises CacheFull if that is more than max_seq_len."""
        stop = self.seq_pos + whole_number("num_tokens", num_tokens, 1)
        if stop > self.max_seq_len:
            raise CacheFull(
                f"{num_tokens} tokens after {self.seq_pos} make {stop}, the cache holds {self.max_seq_len}"
            )
        return stop

    def reserve(self, num_tokens: int) -> None:
        """Make sure that there is room for `num_tokens` more. Raises CacheFull, with nothing changed."""
        self.check_room(num_tokens)

    def check_kept(self, seq_pos: int) -> int:
        """-> seq_pos. Raises ValueError if fewer tokens are committed, TypeError if it is not an integer."""
        if whole_number("seq_pos", seq_pos, 0) > self.seq_pos:
            raise ValueError(f"cannot keep {seq_pos} tokens, only {self.seq_pos} are committed")
        return int(seq_pos)

    def advance(self, num_tokens: int = 1) -> None:
        """Commit `num_tokens`. Raises ValueError for more than every layer has written."""
        ### BEGIN SOLUTION
        stop = self.seq_pos + whole_number("num_tokens", num_tokens, 1)
        if stop > min(self.written):
            raise ValueError(
                f"{num_tokens} tokens after {self.seq_pos} make {stop}: of {self.max_seq_len} places only "
                f"{min(self.written)} are written in every layer"
            )
        self.seq_pos = stop
        ### END SOLUTION

    def truncate(self, seq_pos: int) -> None:
        """Rewind: keep the first `seq_pos` tokens. Raises ValueError if fewer are committed."""
        ### BEGIN SOLUTION
        self.seq_pos = self.check_kept(seq_pos)
        ### END SOLUTION

    def reset(self, batch_size: int | None = None) -> None:
        """Start over with an empty cache. The storage is kept unless another batch_size is given."""
        if batch_size is not None and whole_number("batch_size", batch_size, 1) != self.batch_size:
            return self.resize(batch_size)
        ### BEGIN SOLUTION
        self.seq_pos = 0
        ### END SOLUTION

    def resize(self, batch_size: int) -> None:
        """Become an empty cache for batch_size rows; if there is no memory for it, stay unchanged."""
        fresh = copy(self)
        fresh.batch_size = int(batch_size)
        fresh.allocate()
        fresh.reset()
        self.__dict__ = fresh.__dict__

    def dump(self) -> dict:
        """-> {name: array}, from which `fill` restores the cache."""
        pairs = ((i, *self.get(i)) for i in range(self.num_layers))
        return {f"{name}_{i}": x.data for i, *pair in pairs for name, x in zip("kv", pair, strict=True)}

    def fill(self, seq_pos: int, kept: dict) -> None:
        """Restore into an empty cache what `dump` returned. Raises as `update`, and is still empty then."""
        for i in range(self.num_layers):
            self.update(i, kept[f"k_{i}"], kept[f"v_{i}"])
        self.advance(seq_pos)

    def take_arrays(self, kept: dict) -> None:
        """Copy array_0, array_1, ... into the arrays of the cache. ValueError if shape or dtype differs."""
        arrays = self.arrays()
        for i, array in enumerate(arrays):
            new = kept[f"array_{i}"]
            if (new.shape, new.dtype) != (array.shape, array.dtype):
                raise ValueError(
                    f"array {i} has {new.dtype} {new.shape}, the cache {array.dtype} {array.shape}"
                )
        for i, array in enumerate(arrays):
            array[...] = kept[f"array_{i}"]

    @property
    def capacity(self) -> int:
        """How many tokens of one row there is storage for."""
        return self.max_seq_len

    @property
    def nbytes(self) -> int:
        """Bytes of all arrays."""
        return sum(array.nbytes for array in self.arrays())

    def get_memory_usage(self) -> dict:
        """-> total_mb, per_layer_mb, used_mb (of committed tokens), utilization (0 to 1), cache_tensors,
        total_elements, bytes_per_token (one token of one row, all layers); 1 MB = 10**6 bytes.
        """
        ### BEGIN SOLUTION
        arrays = self.arrays()
        total = sum(a.nbytes for a in arrays)
        utilization = min(self.seq_pos, self.capacity) / self.capacity
        return {
            "total_mb": total / 1e6,
            "per_layer_mb": total / 1e6 / self.num_layers,
            "used_mb": total / 1e6 * utilization,
            "utilization": utilization,
            "cache_tensors": len(arrays),
            "total_elements": sum(a.size for a in arrays),
            "bytes_per_token": total // (self.batch_size * self.capacity),
        }
        ### END SOLUTION

    def __repr__(self) -> str:
        return (
            f"{type(self).__name__}({self.seq_pos}/{self.max_seq_len} tokens, batch_size={self.batch_size}, "
            f"num_layers={self.num_layers}, num_heads={self.num_heads}, head_dim={self.head_dim}, "
            f"{self.dtype}, {self.nbytes / 1e6:.2f} MB)"
        )

    def _repr_html_(self):
        """A bar for each layer, showing how much is filled, and its size."""
        filled = 240 * min(1, self.seq_pos / max(1, self.capacity))
        layer_mb = self.nbytes / 1e6 / self.num_layers
        bars = "".join(
            f'<text x="0" y="{16 * i + 11}">layer {i}</text>'
            f'<rect x="60" y="{16 * i + 2}" width="240" height="10" fill="#ddd"/>'
            f'<rect x="60" y="{16 * i + 2}" width="{filled:.1f}" height="10" fill="#4477aa"/>'
            f'<text x="308" y="{16 * i + 11}">{layer_mb:.2f} MB</text>'
            for i in range(self.num_layers)
        )
        size = f'width="400" height="{16 * self.num_layers}" font-family="monospace" font-size="11"'
        return f"<pre>{self!r}</pre><svg {size}>{bars}</svg>"


# %% [markdown]
"""
Now the storage.

**Task, `update` (10 points).** First call `self.check_new`, which returns key and value as arrays. Then write the T new keys and values *in place* at positions seq_pos to seq_pos + T - 1, and return views of everything now visible, (B, H, seq_pos + T, D); `self.view` makes them. `seq_pos` does not move. When both are written, set `self.written[layer_idx]` to seq_pos + T. About 6 lines.

**Task, `get` (5 points).** Check the layer number (`self.check_layer`) and return views of what is committed, (B, H, seq_pos, D). Two lines.
"""


# %% nbgrader={"grade": false, "grade_id": "kv-cache", "locked": false, "schema_version": 3, "solution": true}
#| export
class KVCache(CacheBase):
    """The keys and values of all tokens so far, for every layer, in arrays that are allocated once.

    caches: list over layers of (key, value) Tensors, each (B, H, max_seq_len, D).
    """

    def __init__(
        self,
        batch_size: int,
        max_seq_len: int,
        num_layers: int,
        num_heads: int,
        head_dim: int,
        dtype: DTypeLike = np.float32,
    ):
        super().__init__(batch_size, max_seq_len, num_layers, num_heads, head_dim, dtype)
        self.allocate()

    def allocate(self) -> None:
        """New storage for batch_size rows, all zero."""
        shape = (self.batch_size, self.num_heads, self.max_seq_len, self.head_dim)
        self.caches = [
            tuple(Tensor(np.zeros(shape, self.dtype), dtype=self.dtype) for _ in "kv")
            for _ in range(self.num_layers)
        ]

    def arrays(self) -> list:
        """-> all arrays that it keeps."""
        return [x.data for pair in self.caches for x in pair]

    def view(self, layer_idx: int, num_tokens: int) -> tuple[Tensor, Tensor]:
        """-> the first num_tokens keys and values of a layer, each (B, H, num_tokens, D), without copying."""
        key, value = self.caches[layer_idx]
        return wrap_result(key.data[:, :, :num_tokens]), wrap_result(value.data[:, :, :num_tokens])

    def update(self, layer_idx: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """(B, H, T, D) new keys and values -> views of all that is now visible, (B, H, seq_pos + T, D) each.

        Written in place from position seq_pos on; seq_pos does not move. Raises as `check_new`.
        """
        ### BEGIN SOLUTION
        key, value = self.check_new(layer_idx, key, value)
        stop = self.seq_pos + key.shape[2]
        key_store, value_store = self.caches[layer_idx]
        key_store.data[:, :, self.seq_pos : stop] = key
        value_store.data[:, :, self.seq_pos : stop] = value
        self.written[layer_idx] = stop
        return self.view(layer_idx, stop)
        ### END SOLUTION

    def get(self, layer_idx: int) -> tuple[Tensor, Tensor]:
        """-> views of the committed keys and values, (B, H, seq_pos, D) each."""
        ### BEGIN SOLUTION
        self.check_layer(layer_idx)
        return self.view(layer_idx, self.seq_pos)
        ### END SOLUTION


# %% [markdown]
"""
Take two layers with room for eight tokens. We write a prompt of three, commit it, and then write one more token to layer 0 without committing it. Which numbers will you see in the storage of layer 0, and which of them does `get` return?
"""


# %%
def show_cache():
    cache = KVCache(batch_size=1, max_seq_len=8, num_layers=2, num_heads=1, head_dim=1)
    prompt = np.array([1.0, 2.0, 3.0]).reshape(1, 1, 3, 1)
    for layer_idx in range(2):
        cache.update(layer_idx, prompt, -prompt)
    cache.advance(3)
    cache.update(0, np.full((1, 1, 1, 1), 7.0), np.full((1, 1, 1, 1), -7.0))
    return cache, cache.caches[0][0].data.ravel(), cache.get(0)[0].data.ravel()


# %%
show_cache()

# %% [markdown]
"""
Each test below checks one method. To be independent of the other methods, they set `seq_pos`, `written` and the storage by hand, and `Unchecked` is your cache with a `check_new` that checks nothing.
"""


# %% nbgrader={"grade": false, "grade_id": "cache-instruments", "locked": true, "schema_version": 3, "solution": false}
class Unchecked(KVCache):
    def check_new(self, layer_idx, key, value):
        return np.asarray(key), np.asarray(value)


class OnlyLayers(KVCache):
    """Your cache with a check_new that checks only the layer number."""

    def check_new(self, layer_idx, key, value):
        if layer_idx not in range(3):
            raise ValueError(f"layer_idx {layer_idx} is outside 0 to 2")
        return np.asarray(key), np.asarray(value)


def numbered_cache(kind=KVCache, seq_pos=0, **sizes):
    """A cache of different sizes along each axis, with a different number in every place."""
    sizes = {"batch_size": 2, "max_seq_len": 7, "num_layers": 3, "num_heads": 4, "head_dim": 5, **sizes}
    cache = kind(**sizes)
    for i, pair in enumerate(cache.caches):
        for j, x in enumerate(pair):
            x.data[...] = np.arange(x.data.size).reshape(x.data.shape) + 1000 * (2 * i + j)
    cache.seq_pos = seq_pos
    return cache


def random_pair(T, B=2, H=4, D=5, seed=0):
    """New keys and values, (B, H, T, D)."""
    return np.random.default_rng(seed).normal(size=(2, B, H, T, D)).astype(np.float32)


def error_of(call, *args):
    """The ValueError or TypeError that the call raises, or None; other errors pass through."""
    try:
        call(*args)
    except (ValueError, TypeError) as error:
        return error
    return None


# %% nbgrader={"grade": true, "grade_id": "test-check-new", "locked": true, "points": 8, "schema_version": 3, "solution": false}
cache = numbered_cache(seq_pos=4)
key, value = random_pair(3)
checked = cache.check_new(2, Tensor(key), value)
assert type(checked[0]) is np.ndarray and np.array_equal(checked[0], key), (
    "a Tensor of the right shape should come back as its array"
)
assert np.array_equal(checked[1], value), "the second array should be the value"
for layer_idx in (3, -1):
    assert isinstance(error_of(cache.check_new, layer_idx, key, value), ValueError), (
        f"there is no layer {layer_idx} among 3 layers"
    )
assert isinstance(error_of(cache.check_new, 1.0, key, value), TypeError), (
    "layer 1.0 is not a whole number: TypeError"
)
assert isinstance(error_of(cache.check_new, 0, key, value[:, :, :2]), ValueError), (
    "3 keys and 2 values do not belong together"
)
assert isinstance(error_of(cache.check_new, 0, key[:, :1], value[:, :1]), ValueError), (
    "1 head must not be broadcast into 4"
)
four_new = random_pair(4)
too_long = error_of(cache.check_new, 0, *four_new)
assert isinstance(too_long, CacheFull), f"4 tokens after 4 do not fit into 7: a CacheFull, not {too_long!r}"
assert "7" in str(too_long) and ("8" in str(too_long) or "4" in str(too_long)), (
    f"name both numbers; your message is: {too_long}"
)


### BEGIN HIDDEN TESTS
def before_and_after(call, cache=cache):
    state = [x.data.copy() for pair in cache.caches for x in pair]
    assert isinstance(error_of(*call), (ValueError, TypeError)), (
        f"bad input was accepted: {[np.shape(a) for a in call[2:]]}"
    )
    now = [x.data for pair in cache.caches for x in pair]
    assert cache.seq_pos == 4 and all(np.array_equal(a, b) for a, b in zip(state, now, strict=True)), (
        "the check wrote something"
    )


for bad in (
    random_pair(1, B=1),
    random_pair(1, B=3),
    random_pair(1, H=3),
    random_pair(1, D=6),
    random_pair(1, D=1),
    random_pair(0),
):
    before_and_after((cache.check_new, 0, *bad))
for axes in (3, 5):
    before_and_after(
        (
            cache.check_new,
            0,
            *(np.zeros((2, 4, 1, 5, 1, 1))[..., 0] if axes == 5 else np.zeros((4, 1, 5)) for _ in "kv"),
        )
    )
before_and_after((cache.check_new, 0, [["a"]], [["b"]]))
before_and_after((cache.check_new, True, key, value))
before_and_after((cache.check_new, None, key, value))
swapped = np.zeros((4, 2, 3, 5))
before_and_after((cache.check_new, 0, swapped, swapped))
assert len(cache.check_new(np.int64(1), key, value)) == 2, "a NumPy integer is a whole number too"
full = numbered_cache(seq_pos=7)
assert isinstance(error_of(full.check_new, 0, *random_pair(1)), CacheFull), "a full cache takes nothing"
half = numbered_cache(seq_pos=4, dtype=np.float16)
for number in (1e6, -1e6, np.nan, np.inf):
    wide = random_pair(3)
    wide[1, 1, 2, 1, 3] = number
    assert isinstance(error_of(half.check_new, 0, *wide), ValueError), (
        f"{number} does not go into float16: let check_numbers see keys and values, last"
    )
assert len(half.check_new(0, *random_pair(3))) == 2, "what goes into float16 is taken"
### END HIDDEN TESTS

# %% nbgrader={"grade": true, "grade_id": "test-update", "locked": true, "points": 10, "schema_version": 3, "solution": false}
cache = numbered_cache(Unchecked, seq_pos=2)
before = [[x.data.copy() for x in pair] for pair in cache.caches]
key, value = random_pair(3)
keys, values = cache.update(1, key, value)
assert keys.shape == (2, 4, 5, 5), (
    f"2 old and 3 new tokens are visible, shape (2, 4, 5, 5), yours is {keys.shape}"
)
assert np.array_equal(cache.caches[1][0].data[:, :, 2:5], key), (
    "the new keys belong at positions 2, 3 and 4 of layer 1"
)
assert np.array_equal(cache.caches[1][1].data[:, :, 2:5], value), (
    "the new values belong at positions 2, 3 and 4 of layer 1"
)
assert np.array_equal(keys.data[:, :, :2], before[1][0][:, :, :2]), "the old keys come first, unchanged"
assert np.shares_memory(keys.data, cache.caches[1][0].data), (
    "the keys should be a view of the storage, yours are a copy"
)
assert cache.seq_pos == 2, f"update writes, advance commits: seq_pos should stay 2, yours is {cache.seq_pos}"
assert cache.written == [2, 5, 2], f"written should be [2, 5, 2] after layer 1, yours is {cache.written}"
### BEGIN HIDDEN TESTS
for layer_idx, (old_key, old_value) in enumerate(before):
    for old, new, store in (
        (old_key, key, cache.caches[layer_idx][0]),
        (old_value, value, cache.caches[layer_idx][1]),
    ):
        want = old.copy()
        if layer_idx == 1:
            for b in range(2):
                for h in range(4):
                    for t in range(3):
                        want[b, h, 2 + t] = new[b, h, t]
        assert np.array_equal(store.data, want), (
            f"layer {layer_idx} holds something else after update(1, ...)"
        )
assert np.array_equal(values.data, cache.caches[1][1].data[:, :, :5]) and np.shares_memory(
    values.data, cache.caches[1][1].data
)
assert keys.dtype == np.float32 and len(keys.shape) == 4
for layer_idx in (-1, -3, 3):
    assert isinstance(error_of(numbered_cache(OnlyLayers).update, layer_idx, key, value), ValueError), (
        f"there is no layer {layer_idx} among 3: pass the number to check_new as it came"
    )
key_before = key.copy()
cache.update(1, key, value)
assert np.array_equal(key, key_before), "the new keys themselves must not change"
assert np.array_equal(cache.caches[1][0].data[:, :, 2:5], key), (
    "the same step written twice should land in the same place"
)
cache.update(2, *random_pair(5, seed=1))
assert np.array_equal(cache.caches[2][0].data[:, :, 2:], random_pair(5, seed=1)[0]), (
    "5 tokens after 2 fill all 7"
)
half = numbered_cache(Unchecked, seq_pos=0, dtype=np.float16)
assert half.update(0, key, value)[0].dtype == np.float16, "a float16 cache shows float16"
### END HIDDEN TESTS

# %% nbgrader={"grade": true, "grade_id": "test-get", "locked": true, "points": 5, "schema_version": 3, "solution": false}
cache = numbered_cache(seq_pos=3)
keys, values = cache.get(2)
assert keys.shape == (2, 4, 3, 5), f"3 tokens are committed, so (2, 4, 3, 5); yours is {keys.shape}"
assert np.array_equal(keys.data, cache.caches[2][0].data[:, :, :3]), "get(2) should show the keys of layer 2"
assert np.array_equal(values.data, cache.caches[2][1].data[:, :, :3]), (
    "get(2) should show the values of layer 2"
)
assert np.shares_memory(keys.data, cache.caches[2][0].data), "get should not copy"
assert isinstance(error_of(cache.get, -1), ValueError), "there is no layer -1"
### BEGIN HIDDEN TESTS
assert np.shares_memory(values.data, cache.caches[2][1].data) and cache.seq_pos == 3
assert isinstance(error_of(cache.get, 3), ValueError) and isinstance(error_of(cache.get, "0"), TypeError)
assert numbered_cache(seq_pos=0).get(0)[0].shape == (2, 4, 0, 5), "an empty cache shows 0 tokens"
assert numbered_cache(seq_pos=7).get(0)[1].shape == (2, 4, 7, 5), "a full cache shows all"
### END HIDDEN TESTS

# %% nbgrader={"grade": true, "grade_id": "test-advance", "locked": true, "points": 4, "schema_version": 3, "solution": false}
cache = numbered_cache(seq_pos=2)
cache.written = [7, 5, 6]
cache.advance(3)
assert cache.seq_pos == 5, f"2 and 3 more make 5, yours is {cache.seq_pos}"
cache.written = [6, 6, 6]
cache.advance()
assert cache.seq_pos == 6, "advance() commits one token"
assert isinstance(error_of(cache.advance, 2), ValueError), "2 more after 6 pass the end of 7"
assert cache.seq_pos == 6, "after an error the cache is as it was"
cache = numbered_cache(seq_pos=2)
cache.written = [6, 4, 6]
error = error_of(cache.advance, 3)
assert isinstance(error, ValueError), "layer 1 is written up to 4: 3 tokens after 2 cannot be committed"
assert any(number in str(error) for number in "345"), f"name the numbers; your message is: {error}"
assert cache.seq_pos == 2 and cache.written == [6, 4, 6], "after an error the cache is as it was"
### BEGIN HIDDEN TESTS
cache.advance(2)
assert cache.seq_pos == 4, "what every layer has written can be committed"
assert isinstance(error_of(cache.advance), ValueError), "and nothing else was written"
cache.written = [7, 7, 7]
assert isinstance(error_of(cache.advance, -1), ValueError) and isinstance(
    error_of(cache.advance, 0), ValueError
)
assert isinstance(error_of(cache.advance, 1.0), TypeError) and cache.seq_pos == 4
cache.advance(3)
assert cache.seq_pos == 7, "the cache may be filled to the last place"
assert isinstance(error_of(cache.advance), ValueError) and cache.seq_pos == 7
assert isinstance(error_of(numbered_cache().advance), ValueError), "in a new cache nothing is written"
### END HIDDEN TESTS

# %% nbgrader={"grade": true, "grade_id": "test-truncate-reset", "locked": true, "points": 6, "schema_version": 3, "solution": false}
cache = numbered_cache(seq_pos=6)
storage = [x.data for pair in cache.caches for x in pair]
cache.truncate(4)
assert cache.seq_pos == 4, f"4 tokens should be left, yours has {cache.seq_pos}"
assert isinstance(error_of(cache.truncate, 5), ValueError), "5 tokens cannot be kept when 4 are committed"
assert cache.seq_pos == 4, "after an error the cache is as it was"
cache.reset()
assert cache.seq_pos == 0, f"reset starts over at 0, yours is at {cache.seq_pos}"
now = [x.data for pair in cache.caches for x in pair]
assert all(a is b for a, b in zip(now, storage, strict=True)), "reset keeps the storage"
### BEGIN HIDDEN TESTS
cache.truncate(0)
assert cache.seq_pos == 0, "keeping 0 of 0 tokens is allowed"
cache = numbered_cache(seq_pos=5)
assert isinstance(error_of(cache.truncate, -1), ValueError) and isinstance(
    error_of(cache.truncate, 2.0), TypeError
)
assert cache.seq_pos == 5
kept = cache.caches[1][0].data[:, :, :3].copy()
cache.truncate(3)
assert np.array_equal(cache.caches[1][0].data[:, :, :3], kept), "the tokens that are kept must not change"
cache.truncate(3)
assert cache.seq_pos == 3, "keeping all is allowed"
cache.reset(batch_size=6)
assert cache.seq_pos == 0 and cache.caches[2][1].shape == (6, 4, 7, 5), (
    "another batch size needs another storage"
)
### END HIDDEN TESTS

# %% nbgrader={"grade": true, "grade_id": "test-memory-usage", "locked": true, "points": 5, "schema_version": 3, "solution": false}
usage = numbered_cache(seq_pos=0).get_memory_usage()
assert usage["cache_tensors"] == 6, (
    f"3 layers hold 3 keys and 3 values, 6 arrays, yours says {usage['cache_tensors']}"
)
assert usage["total_elements"] == 6 * 2 * 4 * 7 * 5, "6 arrays of 2 * 4 * 7 * 5 numbers"
assert np.isclose(usage["total_mb"], 6 * 280 * 4 / 1e6), (
    f"6 arrays of 280 numbers of 4 bytes, yours says {usage['total_mb']} MB"
)
assert usage["bytes_per_token"] == 2 * 3 * 4 * 5 * 4, (
    "one token: a key and a value, in 3 layers of 4 heads of 5 numbers"
)
assert usage["utilization"] == 0 and usage["used_mb"] == 0, "nothing is committed yet"
### BEGIN HIDDEN TESTS
for B, S, L, H, D, dtype, used in (
    (1, 9, 2, 3, 4, np.float32, 6),
    (3, 5, 1, 2, 7, np.float16, 5),
    (2, 4, 5, 1, 3, np.float64, 1),
):
    cache = KVCache(B, S, L, H, D, dtype)
    cache.seq_pos = used
    usage = cache.get_memory_usage()
    total = sum(x.data.nbytes for pair in cache.caches for x in pair)
    assert set(usage) >= {
        "total_mb",
        "per_layer_mb",
        "used_mb",
        "utilization",
        "cache_tensors",
        "total_elements",
        "bytes_per_token",
    }
    assert np.isclose(usage["total_mb"], total / 1e6) and np.isclose(usage["per_layer_mb"], total / 1e6 / L)
    assert np.isclose(usage["used_mb"], total / 1e6 * used / S) and np.isclose(usage["utilization"], used / S)
    assert usage["cache_tensors"] == 2 * L and usage["total_elements"] == 2 * L * B * H * S * D
    assert usage["bytes_per_token"] == 2 * L * H * D * np.dtype(dtype).itemsize, (
        "one token of one row, whatever the batch"
    )
### END HIDDEN TESTS

# %% [markdown]
"""
## 5. Attend through the cache

The queries of the new tokens meet all visible keys, old and new. The T queries are the *last* T of S = seq_pos + T positions, which is exactly what `causal=True` means in module 12. A single new token sees everything, itself included, so it needs no mask at all; a prompt, or a chunk of one, needs a triangle that starts in the right place.

A caller may add a mask on top of the causal rule, for example to hide padding. It is either a whole square (max_seq_len, max_seq_len), of which rows seq_pos to S - 1 and columns 0 to S - 1 apply now, or an array that broadcasts to (B, H, T, S).

**Task (12 points).** Write `attention_with_cache`. Both checks come before `update`, since `update` writes. The query must have the key's shape, except for the axis of groups that module 12 allows (`check_query`; the call is given), and the mask must fit (`fit_mask`, given; call it if there is a mask). Then, without recording gradients, update the cache and attend over what `update` returned. About 4 lines.
"""


# %%
#| export
def check_query(query: tuple, key: tuple) -> None:
    """Raises ValueError unless both shapes are (B, H, T, D), or the query's is (B, H, G, T, D) with a group.

    What attention would refuse later is refused here, before the cache is written.
    """
    alone = (*query[:2], *query[3:]) if len(query) == 5 else query
    if alone != key:
        raise ValueError(f"query has shape {query}, key {key}: but for a group they should be equal")


def fit_mask(mask: ArrayLike | None, cache: CacheBase, query_shape: tuple) -> np.ndarray:
    """An additive mask -> the part of it that applies to the new tokens, broadcastable to the scores.

    mask: (max_seq_len, max_seq_len), or broadcastable to (B, H, T, S). S = seq_pos + T. The scores of a query
        (B, H, G, T, D) are (B, H, G, T, S), and the mask is the same for the whole group.
    Raises ValueError if its shape is neither, TypeError if it does not hold floats.
    """
    mask = as_array(mask)
    if mask.dtype.kind != "f":
        raise TypeError(f"the mask is added to the scores: it holds floats, 0 and -inf, not {mask.dtype}")
    B, H, *_, T, _ = query_shape
    S, longest = cache.seq_pos + T, getattr(cache, "max_seq_len", None)
    if mask.shape == (longest, longest):
        return mask[S - T : S, :S]
    if len(mask.shape) > 4 or any(
        m not in (1, n) for m, n in zip(mask.shape[::-1], (S, T, H, B), strict=False)
    ):
        raise ValueError(
            f"mask of shape {mask.shape} is neither {(longest, longest)} nor broadcastable to {(B, H, T, S)}"
        )
    if len(query_shape) == 4 or mask.ndim < 3:
        return mask
    return mask.reshape(-1, *mask.shape[-3:])[..., None, :, :]  # (B or 1, H, 1, T, S)


# %% nbgrader={"grade": false, "grade_id": "attention-with-cache", "locked": false, "schema_version": 3, "solution": true}
#| export
def attention_with_cache(
    query: Tensor, key: Tensor, value: Tensor, cache: CacheBase, layer_idx: int, mask: ArrayLike | None = None
) -> Tensor:
    """(B, H, T, D) each -> (B, H, T, D): new tokens attend, causally, to the cache and to themselves.

    A query (B, H, G, T, D), in which G queries share each key, gives (B, H, G, T, D).
    Writes key and value from seq_pos on and does not commit. Nothing is recorded for gradients.
    mask: additive, on top of the causal rule: (max_seq_len, max_seq_len) or broadcastable to (B, H, T, S),
        S = seq_pos + T.
    If the cache has a method `attend(query, key, value, layer_idx, mask)`, that is called instead.
    Raises ValueError if the shapes of query, key and mask do not fit, and whatever the cache raises;
    nothing is written then.
    """
    query = query if isinstance(query, Tensor) else Tensor(query)
    if query.dtype.kind != "f":
        raise TypeError(f"the query should hold floats, not {query.dtype}")
    check_query(query.shape, np.shape(key))
    if hasattr(cache, "attend"):
        return cache.attend(query, key, value, layer_idx, mask)
    ### BEGIN SOLUTION
    mask = None if mask is None else fit_mask(mask, cache, query.shape)
    with no_grad():
        keys, values = cache.update(layer_idx, key, value)
        return scaled_dot_product_attention(query, keys, values, mask, causal=True)
    ### END SOLUTION


# %% [markdown]
"""
To test it without your `KVCache`, we need another cache. `ListCache` keeps the pieces in a list and joins them whenever it is asked: that is slow, but simple enough to trust. `attend_slowly` is the definition of attention, in loops.
"""


# %% nbgrader={"grade": false, "grade_id": "attention-instruments", "locked": true, "schema_version": 3, "solution": false}
class ListCache:
    """A cache that appends and concatenates: the slow oracle."""

    def __init__(self, batch_size=2, max_seq_len=9, num_layers=3, num_heads=4, head_dim=5):
        self.batch_size, self.max_seq_len, self.num_layers = batch_size, max_seq_len, num_layers
        self.num_heads, self.head_dim = num_heads, head_dim
        self.pieces = [([], []) for _ in range(num_layers)]
        self.seq_pos, self.log = 0, []

    def update(self, layer_idx, key, value):
        self.log.append(("update", layer_idx, np.shape(key)[2]))
        both = []
        for pieces, new in zip(self.pieces[layer_idx], (key, value), strict=True):
            old = (
                np.concatenate(pieces, axis=2)[:, :, : self.seq_pos] if pieces else np.asarray(new)[:, :, :0]
            )
            pieces[:] = [old, np.array(new)]
            both.append(Tensor(np.concatenate(pieces, axis=2)))
        return tuple(both)

    def advance(self, num_tokens=1):
        self.log.append(("advance", num_tokens))
        self.seq_pos += num_tokens

    def reset(self, batch_size=None):
        self.log.append(("reset", batch_size))
        self.seq_pos, self.batch_size = 0, batch_size or self.batch_size


def attend_slowly(query, keys, values, start, mask=None):
    """(B, H, T, D), (B, H, S, D) twice -> (B, H, T, D), in plain loops: query i is at position start + i."""
    B, H, T, D = query.shape
    out = np.zeros((B, H, T, D))
    for b, h, i in np.ndindex(B, H, T):
        visible = range(start + i + 1)
        scores = [
            sum(float(query[b, h, i, d]) * float(keys[b, h, j, d]) for d in range(D)) / D**0.5
            for j in visible
        ]
        if mask is not None:
            scores = [s + mask[i, j] for s, j in zip(scores, visible, strict=True)]
        exps = np.exp(np.array(scores) - max(scores))
        out[b, h, i] = sum(
            w * values[b, h, j].astype(np.float64) for w, j in zip(exps / exps.sum(), visible, strict=True)
        )
    return out


def random_qkv(T, seed):
    """Queries, keys and values of T tokens, (2, 4, T, 5) each."""
    return np.random.default_rng(seed).normal(size=(3, 2, 4, T, 5)).astype(np.float32)


# %% [markdown]
"""
A first example: one head of width 1, two old tokens with values 10 and 20, and a new token with value 60. All keys are equal, so the new token takes a third of each value. What does it get?
"""


# %%
def look_at_attention():
    cache = ListCache(batch_size=1, num_layers=1, num_heads=1, head_dim=1)
    column = lambda *numbers: np.array(numbers, np.float32).reshape(1, 1, -1, 1)  # noqa: E731
    first = attention_with_cache(column(1, 1), column(1, 1), column(10, 20), cache, 0)
    cache.advance(2)
    return first.data.ravel(), attention_with_cache(column(1), column(1), column(60), cache, 0).data.ravel()


look_at_attention()

# %% nbgrader={"grade": true, "grade_id": "test-attention-with-cache", "locked": true, "points": 12, "schema_version": 3, "solution": false}
cache = ListCache()
query, key, value = random_qkv(7, seed=1)
for start, stop in ((0, 3), (3, 4), (4, 7)):
    part = slice(start, stop)
    out = attention_with_cache(query[:, :, part], key[:, :, part], value[:, :, part], cache, 1)
    assert out.shape == (2, 4, stop - start, 5), (
        f"{stop - start} new tokens give (2, 4, {stop - start}, 5), yours {out.shape}"
    )
    want = attend_slowly(query[:, :, part], key[:, :, :stop], value[:, :, :stop], start)
    assert np.allclose(out.data, want, atol=1e-5), (
        f"tokens {start} to {stop - 1}: wrong by up to {np.abs(out.data - want).max():.3g}; "
        "does each see itself and everything before it, and nothing after?"
    )
    assert cache.seq_pos == start, "attention does not commit; the model does, once all layers have written"
    cache.advance(stop - start)
assert all(step[0] != "update" or step[1] == 1 for step in cache.log), (
    "layer 1 was asked for, but another one was written"
)
for group in (np.stack([query, 2 * query, -query], axis=2), query[:, :, None]):
    cache, G = ListCache(), group.shape[2]
    for start, stop in ((0, 3), (3, 4)):
        part = slice(start, stop)
        out = attention_with_cache(group[:, :, :, part], key[:, :, part], value[:, :, part], cache, 1)
        assert out.shape == (2, 4, G, stop - start, 5), (
            f"{G} queries to each key give (2, 4, {G}, {stop - start}, 5), yours {out.shape}"
        )
        for g in range(G):
            want = attend_slowly(group[:, :, g, part], key[:, :, :stop], value[:, :, :stop], start)
            wrong = np.abs(out.data[:, :, g] - want).max()
            assert wrong < 1e-5, f"query {g} of {G} that share a key is wrong by up to {wrong:.3g}"
        cache.advance(stop - start)
### BEGIN HIDDEN TESTS
square = np.triu(np.full((9, 9), -2.0, np.float32)) + np.random.default_rng(5).normal(size=(9, 9)).astype(
    np.float32
)
cache = ListCache()
for start, stop in ((0, 2), (2, 6)):
    part = slice(start, stop)
    out = attention_with_cache(query[:, :, part], key[:, :, part], value[:, :, part], cache, 0, mask=square)
    want = attend_slowly(query[:, :, part], key[:, :, :stop], value[:, :, :stop], start, square[part, :stop])
    assert np.allclose(out.data, want, atol=1e-5), "of a square mask, rows seq_pos.. and columns ..S apply"
    cache.advance(stop - start)
hide = np.zeros((2, 1, 1, 7), np.float32)
hide[1, :, :, 0] = -np.inf
out = attention_with_cache(query[:, :, 6:], key[:, :, 6:], value[:, :, 6:], cache, 0, mask=hide).data
assert np.allclose(out[0], attend_slowly(query[:1, :, 6:], key[:1], value[:1], 6)[0], atol=1e-5), (
    "row 0 hides nothing"
)
row1 = attend_slowly(query[1:, :, 6:], key[1:], value[1:], 6, hide[1, 0])
assert np.allclose(out[1], row1[0], atol=1e-5), "row 1 should not see position 0"
log = list(cache.log)
for bad_query, bad_mask in (
    (query[:, :1, 6:], None),
    (query[:, :, 5:], None),
    (query[:, :, 6:], np.zeros((3, 3))),
    (query[:, :, 6:], np.zeros((1, 7), int)),
):
    assert isinstance(
        error_of(
            lambda q=bad_query, m=bad_mask: attention_with_cache(
                q, key[:, :, 6:], value[:, :, 6:], cache, 0, m
            )
        ),
        (ValueError, TypeError),
    )
    assert cache.log == log, "bad input must be refused before the cache is written"
assert out.dtype == np.float32, f"float32 in, float32 out; yours is {out.dtype}"
### END HIDDEN TESTS

# %% [markdown]
"""
With that, an attention layer that uses a cache is the layer of module 12 with one line changed: it projects and splits as before, attends through the cache if it is given one, and merges as before.

**Task (4 points).** Write its `forward`. With `cache=None` it is plain causal attention, `super().forward`. `self.project` and `self.merge` are inherited. About 4 lines.
"""


# %% nbgrader={"grade": false, "grade_id": "cached-multi-head-attention", "locked": false, "schema_version": 3, "solution": true}
#| export
class CachedMultiHeadAttention(MultiHeadAttention):
    """Causal multi-head attention that can attend through a cache."""

    def __init__(self, embed_dim: int, num_heads: int, *, rng: np.random.Generator | int | None = None):
        super().__init__(embed_dim, num_heads, causal=True, rng=rng)

    def forward(
        self, x: Tensor, cache: CacheBase | None = None, layer_idx: int = 0, mask: ArrayLike | None = None
    ) -> Tensor:
        """(B, T, C) new tokens -> (B, T, C). Writes into `cache`, commits nothing."""
        ### BEGIN SOLUTION
        if cache is None:
            return super().forward(x, mask)
        query, key, value = self.project(x)
        return self.merge(attention_with_cache(query, key, value, cache, layer_idx, mask))
        ### END SOLUTION


# %% nbgrader={"grade": false, "grade_id": "layer-instruments", "locked": true, "schema_version": 3, "solution": false}
def slow_attention_with_cache(query, key, value, cache, layer_idx, mask=None):
    """What `attention_with_cache` should do, by the slow oracle."""
    start = cache.seq_pos
    keys, values = cache.update(layer_idx, key, value)
    return Tensor(attend_slowly(np.asarray(query), np.asarray(keys), np.asarray(values), start, mask))


@contextmanager
def slow_attention():
    """In this block `attention_with_cache` is the slow oracle, so that layers are tested without yours."""
    names = globals()
    yours = names.get("attention_with_cache")  # None if its cell is not valid Python
    names["attention_with_cache"] = slow_attention_with_cache
    try:
        yield
    finally:
        del names["attention_with_cache"]
        if yours is not None:
            names["attention_with_cache"] = yours


# %% nbgrader={"grade": true, "grade_id": "test-cached-multi-head-attention", "locked": true, "points": 4, "schema_version": 3, "solution": false}
layer = CachedMultiHeadAttention(20, 4, rng=0)
x = np.random.default_rng(2).normal(size=(2, 6, 20)).astype(np.float32)
whole = layer(Tensor(x))
plain = MultiHeadAttention(20, 4, causal=True)
plain.load_state_dict(layer.state_dict())
assert np.allclose(whole.data, plain(Tensor(x)).data, atol=1e-6), (
    "without a cache it is the causal attention of module 12"
)
cache = ListCache()
with slow_attention():
    for start, stop in ((0, 4), (4, 6)):
        out = layer(Tensor(x[:, start:stop]), cache=cache, layer_idx=2)
        assert np.allclose(out.data, whole.data[:, start:stop], atol=1e-5), (
            f"tokens {start} to {stop - 1} differ from the whole text's"
        )
        cache.advance(stop - start)
assert [step for step in cache.log if step[0] == "update"] == [("update", 2, 4), ("update", 2, 2)], (
    "layer_idx should reach the cache"
)
### BEGIN HIDDEN TESTS
cache = ListCache()
bias = np.random.default_rng(3).normal(size=(6, 6)).astype(np.float32)
with slow_attention():
    out = layer(Tensor(x), cache, 0, bias)
assert np.allclose(out.data, plain(Tensor(x), bias).data, atol=1e-5), "the mask should reach the attention"
assert np.allclose(layer(Tensor(x), mask=bias).data, plain(Tensor(x), bias).data, atol=1e-5), (
    "without a cache too"
)
### END HIDDEN TESTS

# %% [markdown]
"""
## 6. Put it in front of a finished model

The GPT of module 13 knows nothing about caches, and we leave it that way. We use two things that it already offers: `wrap` (module 03) puts a call of ours in front of a method of *one object*, and `hidden_states(tokens, start_pos)` lets a text begin at a position other than 0.

One object per layer stands in front of that layer's attention and holds that layer's number. It has to be an object (or a bound argument): a function defined in a loop would look up the loop variable when it is *called*, and every layer would then write as the last one.

**Task, `CachedLayer.forward` (4 points).** `inner` is what would have run without us. While the model is training, the cache steps aside: call `inner` and return its result. Otherwise project, attend through the cache, and merge, with the methods of `self.attention`. In later models (module 16), attention is given more than x and a mask, namely the positions of its tokens. Pass on `*where, **named` to `inner` or to `project`. About 4 lines.
"""


# %% nbgrader={"grade": false, "grade_id": "cached-layer", "locked": false, "schema_version": 3, "solution": true}
#| export
class CachedLayer:
    """Stands in front of the attention of one layer of a finished model."""

    def __init__(self, model: LanguageModel, attention: MultiHeadAttention, cache: CacheBase, layer_idx: int):
        self.model, self.attention, self.cache, self.layer_idx = model, attention, cache, layer_idx

    def forward(
        self, inner: Callable, x: Tensor, mask: ArrayLike | None = None, *where: Any, **named: Any
    ) -> Tensor:
        """(B, T, C) new tokens -> (B, T, C), through the cache unless the model is training.

        where, named: further arguments of the attention, for `project`.
        """
        ### BEGIN SOLUTION
        if self.model.training:
            return inner(x, mask, *where, **named)
        query, key, value = self.attention.project(x, *where, **named)
        return self.attention.merge(attention_with_cache(query, key, value, self.cache, self.layer_idx, mask))
        ### END SOLUTION


# %% nbgrader={"grade": true, "grade_id": "test-cached-layer", "locked": true, "points": 4, "schema_version": 3, "solution": false}
attention = MultiHeadAttention(20, 4, causal=True, rng=1)
x = np.random.default_rng(4).normal(size=(2, 6, 20)).astype(np.float32)
whole = attention(Tensor(x)).data
fake_model, cache, never = SimpleNamespace(training=False), ListCache(), lambda *args: None
layer = CachedLayer(fake_model, attention, cache, 1)
with slow_attention():
    for start, stop in ((0, 1), (1, 5), (5, 6)):
        out = layer.forward(never, Tensor(x[:, start:stop]))
        assert out is not None, "outside training, the layer should not call inner"
        assert np.allclose(out.data, whole[:, start:stop], atol=1e-5), (
            f"tokens {start} to {stop - 1} differ from the whole text's"
        )
        cache.advance(stop - start)
fake_model.training, log = True, list(cache.log)
out = layer.forward(lambda x, mask=None: "inner was called", Tensor(x))
assert out == "inner was called" and cache.log == log, (
    "in training, the original runs and the cache does not change"
)
### BEGIN HIDDEN TESTS
fake_model.training, seen = False, []
fake_cache = ListCache()
with slow_attention():
    bias = np.random.default_rng(6).normal(size=(6, 6)).astype(np.float32)
    out = CachedLayer(fake_model, attention, fake_cache, 2).forward(never, Tensor(x), bias)
assert np.allclose(out.data, attention(Tensor(x), bias).data, atol=1e-5), (
    "the mask should reach the attention"
)
assert fake_cache.log == [("update", 2, 6)], (
    "each layer writes under its own number, once, and commits nothing"
)


class Moved(MultiHeadAttention):
    def project(self, x, step):
        return super().project(x + step)


moved, where = Moved(20, 4, causal=True, rng=1), np.float32(0.5)
with slow_attention():
    outs = [
        CachedLayer(fake_model, moved, ListCache(), 0).forward(never, Tensor(x), None, where),
        CachedLayer(fake_model, moved, ListCache(), 0).forward(never, Tensor(x), step=where),
    ]
for out in outs:
    assert np.allclose(out.data, attention(Tensor(x) + where).data, atol=1e-5), (
        "the arguments after the mask should reach project"
    )
fake_model.training = True
layer.forward(lambda *given, **named: seen.append((given, named)), "x", "mask")
layer.forward(lambda *given, **named: seen.append((given, named)), "x", None, "where", by_name=1)
assert [given for given, _ in seen] == [("x", "mask"), ("x", None, "where")], (
    "in training, all arguments go to the original"
)
assert seen[1][1] == {"by_name": 1}, "keyword arguments are passed on as keyword arguments"
### END HIDDEN TESTS

# %% [markdown]
"""
The second object stands in front of the model itself. It tells the model at which position the new tokens begin, and commits them.

**Task, `CachedModel.hidden_states` (7 points).** In training, return `inner(tokens)` and do nothing else. Otherwise, let `self.prepare(tokens)` check the tokens and return them as an array (given; while the cache is empty, it also adapts it to another batch size). Run `inner(tokens, start_pos=...)` at the cache's position without recording gradients, then commit all T tokens at once with `self.commit`, and return what `inner` returned. In this order, nothing is committed if `inner` fails. About 6 lines.

`commit`, which is given, advances the cache. But `model(tokens)` computes `hidden_states` *and then* `logits`, and if there is no memory for the logits, the caller gets an error and should find the cache as it was. So `whole`, also given, stands in front of `forward` and `next_logits`: while it runs, `commit` waits until it is done.

**Task, `CachedModel.decoder` (4 points).** `generate` calls it at the start of a new text. In training, return `inner(batch_size, num_tokens)`. Otherwise, let `self.start_over(batch_size, num_tokens)` empty the cache, and return `self.model.next_logits`: it needs only the tokens that it has not seen, since our `hidden_states` stands in front of it. About 4 lines.
"""


# %%
#| export
class Weights:
    """A sample of a model's weights, to notice that a filled cache was read with different ones.

    The sample is one number from the middle of each parameter. A step of an optimizer, or loading other
    weights, changes nearly all of them, and reading two hundred takes only microseconds. A change that leaves
    all of them as they were is not noticed; parameters that are added later are not sampled.
    """

    def __init__(self, model: LanguageModel):
        parameters = model.parameters() if hasattr(model, "parameters") else []
        self.middles = [(p, p.data.size // 2) for p in parameters]

    def sample(self) -> tuple:
        """-> the sampled numbers, as they are now."""
        return tuple([p.data.item(middle) for p, middle in self.middles])

    def check(self, cache: CacheBase, now: tuple | None = None) -> None:
        """Before a pass: note the weights in an empty cache; ValueError if a filled one was read with others.

        now: what `sample` has just returned, if several caches are checked.
        """
        now = self.sample() if now is None else now
        if cache.seq_pos == 0:
            cache.weights = now
        elif getattr(cache, "weights", now) != now:
            raise ValueError(
                f"the cache holds {cache.seq_pos} tokens that were read with other weights: reset() it and "
                "read the text again"
            )


def note_text(cache: CacheBase, tokens: ArrayLike) -> None:
    """Note in the cache which tokens (B, T) come next, before they are committed, for `known_text`."""
    text = getattr(cache, "text", [])
    if PADDED.get() is not None:  # what a row holds depends on its padding too
        cache.text = []
    elif len(text) >= cache.seq_pos:  # otherwise the cache was filled without noting the text
        cache.text = text
        del text[cache.seq_pos :]
        text.extend(np.asarray(tokens).T.tolist())


def known_text(cache: CacheBase) -> list | None:
    """-> the ids of the committed tokens, a list of B for each position, or None if they were not noted."""
    text = getattr(cache, "text", [])
    return text[: cache.seq_pos] if len(text) >= cache.seq_pos else None


def forget_rest(cache: CacheBase) -> None:
    """After a pass that failed: forget what was written but not committed, and free its memory."""
    if hasattr(cache, "truncate"):
        cache.truncate(cache.seq_pos)


# %% nbgrader={"grade": false, "grade_id": "cached-model", "locked": false, "schema_version": 3, "solution": true}
#| export
class CachedModel:
    """Stands in front of a finished language model, and holds what was put in front of its layers.

    fixed_batch: the cache was passed in by the caller and keeps its batch size.
    """

    def __init__(self, model: LanguageModel, cache: CacheBase, fixed_batch: bool):
        self.model, self.cache, self.fixed_batch = model, cache, fixed_batch
        self.weights = Weights(model)
        self.waiting: int | None = None  # tokens to commit at the end, while a whole pass runs
        self.wraps = [(model, name, getattr(self, name)) for name in ("hidden_states", "logits", "decoder")]
        self.wraps += [(model, name, self.whole) for name in ("forward", "next_logits")]
        for layer_idx, block in enumerate(model.blocks):
            layer = CachedLayer(model, block.attention, cache, layer_idx)
            self.wraps.append((block.attention, "forward", layer.forward))

    def set_batch(self, batch_size: int) -> None:
        """Give the empty cache another batch size. ValueError if it is not empty or its size is fixed."""
        rows = getattr(self.cache, "batch_size", batch_size)
        if rows == batch_size:
            return
        if self.fixed_batch or self.cache.seq_pos:
            raise ValueError(
                f"the tokens have {batch_size} rows, the cache has {rows}, {self.cache.seq_pos} tokens each"
            )
        self.cache.reset(batch_size)

    def prepare(self, tokens: ArrayLike) -> np.ndarray:
        """Tokens in any form -> (B, T) ints, with the cache's batch size.

        Raises ValueError or TypeError, also if the cache was filled with other weights.
        """
        tokens = check_tokens(tokens, self.model.vocab_size)
        self.set_batch(len(tokens))
        self.weights.check(self.cache)
        self.reading = tokens
        return tokens

    def commit(self, num_tokens: int) -> None:
        """Commit what every layer has written; while a whole pass runs, at its end."""
        if self.waiting is not None:
            self.waiting = num_tokens
            return
        note_text(self.cache, self.reading)
        self.cache.advance(num_tokens)

    def whole(self, inner: Callable, tokens: ArrayLike) -> Any:
        """`forward` and `next_logits`: commit what was read once the logits are computed."""
        if self.model.training:
            return inner(tokens)
        try:
            self.waiting = 0
            logits = inner(tokens)
            return (logits, self.finish())[0]  # in one line: after the commit nothing can fail
        except BaseException:
            self.waiting = None
            forget_rest(self.cache)
            raise

    def finish(self) -> None:
        """The pass is over: commit what is waiting."""
        num_tokens, self.waiting = self.waiting, None
        self.commit(num_tokens)

    def check_room(self, num_tokens: int) -> None:
        """Raises ValueError if num_tokens, the last of which is never fed in, are too many for the cache."""
        room = getattr(self.cache, "max_seq_len", num_tokens)
        if num_tokens - 1 > room:
            raise ValueError(
                f"a text of {num_tokens} tokens needs a cache for {num_tokens - 1}, this one holds {room}"
            )

    def start_over(self, batch_size: int, num_tokens: int) -> None:
        """Empty the cache for num_tokens, the last of which is never fed in. ValueError if too small."""
        self.check_room(num_tokens)
        self.cache.reset()
        self.set_batch(batch_size)

    def logits(self, inner: Callable, hidden: Tensor) -> Tensor:
        """(B, T, C) -> (B, T, V), as the model does it; outside training, nothing is recorded."""
        if self.model.training:
            return inner(hidden)
        with no_grad():
            return inner(hidden)

    def hidden_states(self, inner: Callable, tokens: ArrayLike) -> Tensor:
        """(B, T) new tokens -> (B, T, C), from the cache's position on; they are committed."""
        ### BEGIN SOLUTION
        if self.model.training:
            return inner(tokens)
        tokens = self.prepare(tokens)
        with no_grad():
            hidden = inner(tokens, start_pos=self.cache.seq_pos)
        self.commit(tokens.shape[1])
        return hidden
        ### END SOLUTION

    def decoder(self, inner: Callable, batch_size: int, num_tokens: int) -> Callable:
        """-> next_logits for a new text of at most num_tokens tokens, with the cache emptied."""
        ### BEGIN SOLUTION
        if self.model.training:
            return inner(batch_size, num_tokens)
        self.start_over(batch_size, num_tokens)
        return self.model.next_logits
        ### END SOLUTION


# %% nbgrader={"grade": false, "grade_id": "model-instruments", "locked": true, "schema_version": 3, "solution": false}
def in_front_of_fake(training=False, fails=False):
    """Your CachedModel in front of a model that only records how it is called."""
    model = SimpleNamespace(
        training=training, vocab_size=10, blocks=[], next_logits=lambda tokens: f"the logits after {tokens}"
    )
    cache = ListCache(batch_size=2, max_seq_len=9)
    calls = []

    def inner(tokens, start_pos=0):
        calls.append((tokens, start_pos, cache.seq_pos))
        if fails:
            raise FloatingPointError("half way")
        return "hidden"

    return CachedModel(model, cache, fixed_batch=False), cache, inner, calls


# %% nbgrader={"grade": true, "grade_id": "test-cached-model", "locked": true, "points": 7, "schema_version": 3, "solution": false}
front, cache, inner, calls = in_front_of_fake()
assert front.hidden_states(inner, np.zeros((2, 3), int)) == "hidden", (
    "what the model returns should be returned"
)
assert cache.seq_pos == 3, f"3 tokens should be committed after the step, yours has {cache.seq_pos}"
front.hidden_states(inner, np.zeros((2, 1), int))
starts = [start_pos for _, start_pos, _ in calls]
assert starts == [0, 3], f"the second call's token is at position 3; your starts are {starts}"
assert [pos for _, _, pos in calls] == [0, 3], "commit after the model has run, not before"
front, cache, inner, calls = in_front_of_fake(training=True)
cache.seq_pos = 5
front.hidden_states(inner, "anything")
assert calls == [("anything", 0, 5)] and cache.log == [], (
    "in training, the original runs as if nothing stood in front of it"
)
### BEGIN HIDDEN TESTS
front, cache, inner, calls = in_front_of_fake(fails=True)
try:
    front.hidden_states(inner, np.zeros((2, 3), int))
except FloatingPointError:
    pass
assert len(calls) == 1 and cache.seq_pos == 0, "a step that fails commits nothing"
front, cache, inner, calls = in_front_of_fake()
for T in (4, 1, 2):
    front.hidden_states(inner, np.full((2, T), 7))
assert [start_pos for _, start_pos, _ in calls] == [0, 4, 5] and cache.seq_pos == 7
assert [step for step in cache.log if step[0] == "advance"] == [
    ("advance", 4),
    ("advance", 1),
    ("advance", 2),
], "one commit per step"
assert (
    isinstance(error_of(front.hidden_states, inner, np.full((2, 1), 10)), ValueError) and len(calls) == 3
), "token 10 of 10 is refused first"
front, cache, inner, calls = in_front_of_fake()
front.hidden_states(inner, np.zeros((5, 1), int))
assert cache.batch_size == 5, "an empty cache takes another batch size"
probe = Tensor([1.0], requires_grad=True)
front, cache, _, _ = in_front_of_fake()
from tinytorch.core.autograd import enable_autograd  # noqa: E402

enable_autograd()
out = front.hidden_states(lambda tokens, start_pos=0: probe * 2, np.zeros((2, 1), int))
assert not out.requires_grad, "nothing should be recorded for gradients while the cache is used"
assert (probe * 2).requires_grad, "and recording goes on afterwards"
### END HIDDEN TESTS

# %% nbgrader={"grade": true, "grade_id": "test-decoder", "locked": true, "points": 4, "schema_version": 3, "solution": false}
front, cache, _, _ = in_front_of_fake()
cache.seq_pos = 5
asked = []


def original_decoder(batch_size, num_tokens):
    asked.append((batch_size, num_tokens))
    return "the original's decoder"


decoder = front.decoder(original_decoder, 2, 9)
assert callable(decoder) and decoder("these") == "the logits after these", "return the model's next_logits"
assert cache.seq_pos == 0, "a new text starts with an empty cache"
assert asked == [], "outside training, the original decoder is not needed"
front, cache, _, _ = in_front_of_fake(training=True)
cache.seq_pos = 5
assert front.decoder(original_decoder, 2, 9) == "the original's decoder" and asked == [(2, 9)], (
    "in training, call the original with both numbers"
)
assert cache.seq_pos == 5 and cache.log == [], "in training, the cache does not change"
### BEGIN HIDDEN TESTS
front, cache, _, _ = in_front_of_fake()
front.decoder(original_decoder, 6, 10)
assert cache.batch_size == 6, "the cache takes the new text's batch size"
assert isinstance(error_of(front.decoder, original_decoder, 2, 11), ValueError), (
    "a text of 11 tokens needs room for 10"
)
### END HIDDEN TESTS

# %% [markdown]
"""
Now the two switches, which are given. One loop puts everything in place; another removes it again and leaves no trace in any object.

With `reuse=True`, a text that begins like the one in the cache continues from there: the same instructions before every question, say, or a conversation that has grown by a turn. Your `CachedModel` empties the cache for each text. `ReusingModel` first compares the tokens, rewinds to the end of what both texts have in common, and reads the rest. It always reads at least the last token of the prompt, because its logits are needed.
"""


# %%
#| export
class ReusingModel(CachedModel):
    """A CachedModel for which a new text continues from what it has in common with the one in the cache."""

    def decoder(self, inner: Callable, batch_size: int, num_tokens: int) -> Callable:
        """-> next_logits for a text of at most num_tokens tokens; its first call takes the whole prompt."""
        if self.model.training:
            return inner(batch_size, num_tokens)
        self.check_room(num_tokens)
        is_new = True

        def next_logits(tokens):
            nonlocal is_new
            if is_new:
                tokens, is_new = self.rest_of(tokens, num_tokens), False
            return self.model.next_logits(tokens)

        return next_logits

    def rest_of(self, tokens: ArrayLike, num_tokens: int) -> np.ndarray:
        """A prompt (B, T) -> the part that the cache does not hold; the cache keeps only the other part."""
        tokens = check_tokens(tokens, self.model.vocab_size)
        kept = self.in_common(tokens)
        try:
            if kept:
                self.cache.truncate(kept)
        except ValueError:  # from a window that has overwritten what it would need
            kept = 0
        if not kept:
            self.start_over(len(tokens), num_tokens)
        return tokens[:, kept:]

    def in_common(self, tokens: np.ndarray) -> int:
        """-> how many of the first tokens, never all, the cache holds, read with the present weights."""
        if PADDED.get() is not None or getattr(self.cache, "weights", None) != self.weights.sample():
            return 0
        pairs = zip(known_text(self.cache) or [], tokens[:, :-1].T.tolist(), strict=False)
        return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))


def cache_sizes(model: LanguageModel) -> dict:
    """-> num_layers, num_heads (of keys) and head_dim of the caches that fit a language model."""
    attention = model.blocks[0].attention
    return {
        "num_layers": len(model.blocks),
        "num_heads": getattr(attention, "num_kv_heads", attention.num_heads),
        "head_dim": attention.head_dim,
    }


def enable_kv_cache(model: Any, cache: CacheBase | None = None, *, reuse: bool = False) -> CacheBase:
    """Now `model(tokens)` takes only new tokens, at positions seq_pos.., and `generate` uses the cache.

    model: a language model with `blocks`, each with an `attention` that can `project` and `merge`; the cache
        holds its num_kv_heads heads if it has that attribute, else its num_heads.
    cache: anything with KVCache's methods; by default a KVCache of the model's sizes, for any batch size.
    reuse: `generate` reads only the part of its prompt that is not already in the cache.
    Returns the cache, which is also model._kv_cache. Enabling again starts over with a new cache.
    Raises TypeError if the model is not such a model, ValueError if the sizes of model and cache differ.
    """
    if not all(hasattr(model, name) for name in ("blocks", "hidden_states", "logits", "decoder", "wrap")):
        raise TypeError(f"a cache needs a language model with blocks, got {type(model).__name__}")
    sizes, fixed_batch = cache_sizes(model), cache is not None
    if cache is None:
        cache = KVCache(batch_size=1, max_seq_len=model.max_seq_len, **sizes)
    for name, size in sizes.items():
        if getattr(cache, name, size) != size:
            raise ValueError(f"the cache has {name} {getattr(cache, name)}, the model has {size}")
    disable_kv_cache(model)
    front = (ReusingModel if reuse else CachedModel)(model, cache, fixed_batch)
    for module, method, wrapper in front.wraps:
        module.wrap(method, wrapper)
    model._cached_model, model._kv_cache, model._cache_enabled = front, cache, True
    return cache


def disable_kv_cache(model: Any) -> None:
    """Remove the cache; every object is as before. Does nothing if there is no cache."""
    if not getattr(model, "_cache_enabled", False):
        return
    for module, method, wrapper in model._cached_model.wraps:
        module.unwrap(method, wrapper)
    del model._cached_model, model._kv_cache, model._cache_enabled


# %% [markdown]
"""
**Task (4 points).** `generate_with_cache` generates once with a cache and changes nothing for good. If the model already has a cache, call `model.generate`, which uses it. Otherwise enable, generate, and disable again, even if generating fails (`try … finally`). About 7 lines.
"""


# %% nbgrader={"grade": false, "grade_id": "generate-with-cache", "locked": false, "schema_version": 3, "solution": true}
#| export
def generate_with_cache(
    model: LanguageModel,
    prompt: ArrayLike,
    max_new_tokens: int,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    rng: np.random.Generator | int | None = None,
    stop_token: int | None = None,
    lengths: ArrayLike | None = None,
    pad_side: str = "right",
    **more: Any,
) -> np.ndarray:
    """(B, T) ints -> (B, T + n) ints, as `model.generate`, through a cache that is gone afterwards."""
    options = dict(temperature=temperature, top_k=top_k, top_p=top_p, rng=rng, stop_token=stop_token) | more
    if lengths is not None or pad_side != "right":
        generate = partial(generate_with_cache, model)
        return generate_ragged(generate, model, prompt, lengths, pad_side, max_new_tokens, **options)
    ### BEGIN SOLUTION
    if getattr(model, "_cache_enabled", False):
        return model.generate(prompt, max_new_tokens, **options)
    enable_kv_cache(model)
    try:
        return model.generate(prompt, max_new_tokens, **options)
    finally:
        disable_kv_cache(model)
    ### END SOLUTION


# %% nbgrader={"grade": true, "grade_id": "test-generate-with-cache", "locked": true, "points": 4, "schema_version": 3, "solution": false}
class SpyGPT(GPT):
    """A GPT that records how generate is called."""

    def generate(
        self, prompt, max_new_tokens, temperature=1.0, top_k=None, top_p=None, rng=None, stop_token=None
    ):
        options = dict(temperature=temperature, top_k=top_k, top_p=top_p, rng=rng, stop_token=stop_token)
        calls.append((prompt, max_new_tokens, options, getattr(self, "_cache_enabled", False)))
        if max_new_tokens == 13:
            raise FloatingPointError("half way")
        return "tokens"


calls, spy = [], SpyGPT(11, 8, 2, 2, 16, seed=0)
before = dict(vars(spy))
assert generate_with_cache(spy, "prompt", 5, temperature=0, stop_token=3) == "tokens", (
    "return what generate returns"
)
assert calls[0][:2] == ("prompt", 5) and calls[0][3], "generate should run while the cache is enabled"
assert calls[0][2].items() >= {"temperature": 0, "stop_token": 3}.items(), (
    f"the options should be passed on; yours are {calls[0][2]}"
)
assert vars(spy) == before, f"no trace should be left; there is {set(vars(spy)) - set(before)}"
### BEGIN HIDDEN TESTS
try:
    generate_with_cache(spy, "prompt", 13)
except FloatingPointError:
    pass
assert len(calls) == 2 and vars(spy) == before, "no trace should be left when generating fails, either"
mine = enable_kv_cache(spy)
generate_with_cache(spy, "prompt", 4, top_k=2, top_p=0.5, rng="rng")
assert len(calls) == 3 and spy._kv_cache is mine, "a cache that was there before stays"
assert calls[2][2] == {"temperature": 1.0, "top_k": 2, "top_p": 0.5, "rng": "rng", "stop_token": None}
disable_kv_cache(spy)
### END HIDDEN TESTS

# %% [markdown]
"""
### Saving a cache

A prompt that took a minute to read need not be read again tomorrow. `save_cache`, given, writes what a cache holds into one file, along with its tokens and the sample of the weights. `load_cache`, given, loads it into an empty cache of the same kind, and the text can continue.
"""


# %%
#| export
def save_cache(cache: CacheBase, path: str | Path) -> None:
    """Write what a cache holds into a file of NumPy arrays (npz, no pickle), completely or not at all.

    Raises ValueError for an empty cache and TypeError for one without `dump`.
    """
    if not hasattr(cache, "dump"):
        raise TypeError(f"a {type(cache).__name__} cannot be saved: it has no dump")
    if cache.seq_pos == 0:
        raise ValueError("there is nothing to save: the cache holds 0 tokens")
    from tinytorch.core.training import save_arrays  # only here: nothing else of a cache needs module 07

    arrays, text, weights = cache.dump(), known_text(cache), getattr(cache, "weights", None)
    if text is not None:
        arrays["text"] = text
    if weights is not None:
        arrays["weights"] = np.array(weights, np.float64)
    save_arrays(
        path, arrays, {"kind": type(cache).__name__, "sizes": sizes_of(cache), "seq_pos": cache.seq_pos}
    )


def load_cache(cache: CacheBase, path: str | Path) -> None:
    """Load into an empty cache what was saved from one of the same kind and sizes; the text continues there.

    A model whose weights are not those that filled it will refuse it. Raises FileNotFoundError; ValueError if
    the file is not a cache of this kind and these sizes, or `cache` is not empty; it is then unchanged.
    """
    if cache.seq_pos:
        raise ValueError(f"only an empty cache can be loaded, this one holds {cache.seq_pos} tokens")
    from tinytorch.core.training import load_arrays

    try:
        kept, facts = load_arrays(path)
        kind, sizes, seq_pos = facts["kind"], facts["sizes"], facts["seq_pos"]
    except (ValueError, KeyError) as error:  # damaged, or not a cache
        raise ValueError(f"{path} is not a saved cache: {error}") from None
    if (kind, sizes) != (type(cache).__name__, sizes_of(cache)):
        raise ValueError(
            f"saved was a {kind} of sizes {sizes}, this is a {type(cache).__name__} of {sizes_of(cache)}"
        )
    try:
        cache.fill(seq_pos, kept)
    except BaseException:
        forget_rest(cache)
        raise
    cache.text = kept["text"].tolist() if "text" in kept else []
    if "weights" in kept:
        cache.weights = tuple(kept["weights"].tolist())


def sizes_of(cache: CacheBase) -> list:
    """-> batch_size, num_layers, num_heads, head_dim."""
    return [cache.batch_size, cache.num_layers, cache.num_heads, cache.head_dim]


# %% [markdown]
"""
## 7. Prove it equal

A cache that is fast and slightly wrong is worse than none. The claim is that the logits are the same, up to rounding, however the text is split into calls, and that the greedy tokens are the same. Here is a batch of three texts, split in four ways.
"""


# %%
def largest_difference(tokens, cuts):
    """How far the cached logits of `tokens`, read in pieces, are from those of one uncached call."""
    whole = model(tokens).data
    cache = enable_kv_cache(model)
    pieces = [model(piece).data for piece in np.split(tokens, cuts, axis=1)]
    filled = cache.seq_pos
    disable_kv_cache(model)
    assert filled == tokens.shape[1], f"{filled} tokens were committed"
    return float(np.abs(np.concatenate(pieces, axis=1) - whole).max())


def prove_equal():
    tokens = rng.integers(0, 65, (3, 40))
    differences = [largest_difference(tokens, cuts) for cuts in ((), (39,), (1, 2, 3, 20), range(1, 40))]
    prompt = tokens[:, :10]
    same = np.array_equal(
        model.generate(prompt, 30, temperature=0), generate_with_cache(model, prompt, 30, temperature=0)
    )
    return differences, same


prove_equal()

# %% [markdown]
"""
The differences are rounding: the same float32 numbers are summed in a different order. They stay far below 1e-4, the bound that the course promises, and the tokens are identical.

And rows of different lengths? `generate` of module 13 moves the padding to the front of each row, so that all rows end at the same column, and wraps the position embedding and the blocks. Your cache wraps `hidden_states` and each attention, so the two do not interfere, whichever was enabled first. The pad columns are cached like all others: `seq_pos` stays one number for the whole batch, and the mask that comes in through the blocks, as wide as everything visible, hides them at every step. Below are three rows of 3, 10 and 7 tokens, with and without the cache, padded on either side, and each row alone.
"""


# %%
def prove_ragged():
    lengths, new = [3, 10, 7], 20
    prompt = rng.integers(0, 65, (3, 10))
    options = dict(temperature=0, lengths=lengths)
    uncached = model.generate(prompt, new, **options)
    same = [np.array_equal(uncached, generate_with_cache(model, prompt, new, **options))]
    pads_first = np.array([np.roll(row, 10 - n) for row, n in zip(prompt, lengths, strict=True)])
    left = generate_with_cache(model, pads_first, new, pad_side="left", **options)
    for row, (n, text) in enumerate(zip(lengths, uncached, strict=True)):
        alone = generate_with_cache(model, prompt[row : row + 1, :n], new, temperature=0)[0]
        same += [np.array_equal(alone, text[: n + new]), np.array_equal(alone, left[row, 10 - n :])]
    return same, 1 - sum(lengths) / prompt.size


prove_ragged()

# %% [markdown]
"""
The last number is the cost: a third of the prompt's entries in the cache are padding, computed once and then read in vain at every step. Systems that serve many texts at once avoid this (section 10).

## 8. Measure again
"""


# %%
def seconds_to_generate(new):
    """(uncached, cached): seconds for `new` greedy tokens from a prompt of one."""
    timer, prompt = Profiler(repeats=3), text[:, :1]
    plain = timer.time(model.generate, prompt, new, temperature=0).median
    return plain, timer.time(generate_with_cache, model, prompt, new, temperature=0).median


def speedups(lengths=(10, 50, 200)):
    """-> for each length, the measured factor and the ratio of the projected tokens."""
    counted = {n: projected_tokens(1, n, False) / projected_tokens(1, n, True) for n in lengths}
    times = {n: seconds_to_generate(n) for n in lengths}
    return {n: (round(times[n][0] / times[n][1], 1), counted[n]) for n in lengths}


speedups()


# %%
def plot_speedup():
    import matplotlib.pyplot as plt

    lengths = (10, 25, 50, 100, 200, 400)
    times = np.array([seconds_to_generate(n) for n in lengths]) * 1e3 / np.array(lengths)[:, None]
    plt.plot(lengths, times[:, 0], "o-", label="everything again")
    plt.plot(lengths, times[:, 1], "o-", label="with the cache")
    plt.xlabel("tokens generated")
    plt.ylabel("ms per token, mean over the generation")
    plt.ylim(0)
    plt.legend()


# %%
if "get_ipython" in globals():
    plot_speedup()

# %% [markdown]
"""
Without the cache, the mean cost of a token grows with the length; with it, the curve is nearly flat. Compare the two numbers for each length above: if the time depended only on the number of tokens projected, the factor for n tokens would be (n + 1) / 2. The measured factors are smaller, as you should expect. A matrix product with 200 rows does not take 200 times as long as one with a single row: the single row has to read the same weights from memory and does little with them, so each of many rows costs less. And every step pays for Python, cached or not. (n + 1) / 2 is a ratio of operations, not a speed-up.

**Question (5 points).** With the cache, which grows faster with the length of the text: the time that one more token takes, or the memory? At what length would you expect the time of one token to stop being nearly flat, and what takes up most of the reading from memory then? Three or four sentences; use the counts.
"""

# %% [markdown] nbgrader={"grade": true, "grade_id": "question-growth", "locked": false, "points": 5, "schema_version": 3, "solution": true}
"""
Your answer here.
"""

# %% [markdown]
"""
## 9. The cost: memory

The cache trades memory for time. How much memory? The sizes below are published: GPT-2's layers and width by Radford et al. 2019 (table 2) and its heads in the hparams.json that was released with the weights; GPT-3 by Brown et al. 2020, arXiv:2005.14165 (table 2.1); Llama 2 7B in arXiv:2307.09288 (table 1; its layers and heads are those of LLaMA 7B, arXiv:2302.13971, table 2); Llama 3.1 8B in arXiv:2407.21783 (table 3; its context is in its config.json); Mistral 7B in arXiv:2310.06825 (table 1); SmolLM2-135M in its config.json. Mistral has a window: no layer looks back further than 4,096 tokens, so its cache never needs to hold more, although its context is longer. Parameters are rounded, and the other columns are computed. Weights and cache are both counted in float16, two bytes a number, as such models are usually served.
"""

# %%
# name: (parameters, layers, key/value heads, head_dim, most tokens that one text keeps in the cache)
published = {
    "GPT-2 small": (124e6, 12, 12, 64, 1024),
    "GPT-3": (175e9, 96, 96, 128, 2048),
    "Llama 2 7B": (6.7e9, 32, 32, 128, 4096),
    "Llama 3.1 8B": (8.0e9, 32, 8, 128, 131_072),
    "Mistral 7B": (7.2e9, 32, 8, 128, 4096),
    "SmolLM2-135M": (135e6, 30, 3, 64, 8192),
}


def memory_table():
    rows = [f"{'model':14}{'kB/token':>10}{'tokens':>9}{'cache GB':>10}{'weights GB':>12}{'break-even':>12}"]
    for name, (parameters, layers, heads, head_dim, context) in published.items():
        per_token = cache_bytes(1, 1, layers, heads, head_dim, np.float16)
        weights = parameters * 2
        cells = per_token / 1e3, context, per_token * context / 1e9, weights / 1e9, weights / per_token
        rows.append("{:14}{:>10,.1f}{:>9,}{:>10.2f}{:>12.2f}{:>12,.0f}".format(name, *cells))
    return "\n".join(rows)


print(memory_table())


# %%
def plot_memory():
    import matplotlib.pyplot as plt

    tokens = np.array([1, 100_000])
    for name, (_, layers, heads, head_dim, _) in published.items():
        plt.loglog(tokens, cache_bytes(1, 1, layers, heads, head_dim, np.float16) * tokens / 1e9, label=name)
    plt.xlabel("tokens in the cache, over all conversations")
    plt.ylabel("cache, GB (float16)")
    plt.legend()


# %%
if "get_ipython" in globals():
    plot_memory()

# %% [markdown]
"""
The last column is the break-even in memory: with that many tokens, over all conversations that are served at once, the cache is as large as the model. For Llama 2 7B that is about 25,600 tokens, a little over six full conversations. Llama 3.1 8B keeps a quarter of the heads for keys and values and reaches 4.8 times as many tokens. But its context is 32 times as long, and a single text that fills it takes 17.2 GB, more than the 16 GB of weights.

And the break-even in time? The time to the first token does not change, since the prompt has to be read either way. The time between tokens does: from the second token on, the cache saves all but one token's work; the factors in section 8 show it for ten tokens and more. A cache gains nothing when only one token is needed, as in a classifier, or when a given text is scored.

**Question (5 points).** A service runs Llama 3.1 8B in float16 on a card with 80 GB, and a conversation takes 4,000 tokens. How many conversations fit at once beside the weights? Name two ways to get more onto the card and what each of them costs.
"""

# %% [markdown] nbgrader={"grade": true, "grade_id": "question-serving", "locked": false, "points": 5, "schema_version": 3, "solution": true}
"""
Your answer here.
"""

# %% [markdown]
"""
## 10. What production systems add

Your cache is complete: it takes batches, a prefill in one call or in chunks, rewinds, and any model with the same methods. Systems that serve thousands of texts add more, each for a reason that you have just computed:

- **fewer key and value heads**: multi-query (Shazeer 2019, arXiv:1911.02150) and grouped-query attention (Ainslie et al. 2023, arXiv:2305.13245; module 16) divide the bytes per token. Latent attention (DeepSeek-V2, arXiv:2405.04434) instead keeps one short vector per token, from which the keys and values of all heads are computed. Neighbouring layers can share keys and values as well (Brandon et al. 2024, arXiv:2405.12981);
- **a window**: keep the newest tokens and a few of the first, and memory stays fixed (Xiao et al. 2023, arXiv:2309.17453; module 17);
- **fewer bits**: keys and values in 4 bits (Sheng et al. 2023, arXiv:2303.06865) or in 2 (Liu et al. 2024, arXiv:2402.02750); module 18 does it in 8 and 4;
- **pages**: blocks of a few tokens from a shared pool, so that short conversations do not reserve room for long ones, and equal beginnings are stored once (Kwon et al. 2023, arXiv:2309.06180; module 19);
- **continuous batching**: requests join and leave a running batch at every step (Yu et al. 2022, Orca; module 20).

You can now

- say what a whole generation costs with and without a cache, for the projections and for attention;
- write a cache that is exact for any batch and any split of the prompt, after a rewind and after an error;
- attach it to a model that you did not write, and remove it;
- compute its size for any published model.

**Exercises.** (1) In speculative decoding, a small model guesses three tokens and the large one checks them in one call (greedily: a guess is right if it is the large model's own most likely token). Write the loop. Which method of your cache does the large model need when the second guess is wrong, with which argument, and how many tokens has the call gained? (2) Replace the writing in place in `update` by `np.concatenate`, measure what a token costs at 100, 1,000 and 4,000 tokens, and explain the slope.

Next: run `milestones/05_2017_transformer/vaswani_chatgpt.py`, where a model that this course trained talks through the cache you have just written.
"""
