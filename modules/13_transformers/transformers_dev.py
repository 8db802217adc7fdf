# %% [markdown]
"""
# Module 13: Transformers

A language model answers one question: given these tokens, how likely is each token of the vocabulary to come next? Everything else, from a finished sentence to a chat, is that one question asked again and again. This module has two halves. First you write the loop that asks, and the ways to choose from the answer. They work with any model, and you try them on one so small that you can follow it by hand. Then you build the model that answers: exactly GPT-2, from the parts of earlier modules. You train a small one until it writes.

After this module you will be able to

- choose a token from the logits: greedily, by temperature, among the k likeliest, or within a given probability;
- write a text token by token, several rows at once, with a stop token, as a stream;
- build a transformer block, and say what the residual path and the norms in front of the layers are for;
- build GPT-2, and count the parameters of each published size exactly;
- train it on a text, and find out whether it learned what you think it learned;
- say what is wasteful about the way it writes.

You need attention (12), LayerNorm (09), embeddings (11), Linear and Module (03), gradients and an optimizer (05, 06). In the final grading each part is run with correct versions of the parts before it.
"""

# %%
#| default_exp models.transformer

# %%
#| export
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from functools import partial
from numbers import Real
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from tinytorch.core.activations import GELU, softmax
from tinytorch.core.attention import MultiHeadAttention, whole_number
from tinytorch.core.autograd import no_grad
from tinytorch.core.layers import Linear, Module, linear
from tinytorch.core.losses import CrossEntropyLoss, log_softmax
from tinytorch.core.normalization import LayerNorm
from tinytorch.core.tensor import Tensor, apply, as_array
from tinytorch.text.embeddings import Embedding
from tinytorch.text.tokenization import StopStream, StreamDecoder

# %% [markdown]
"""
## Choosing from the logits

A model returns V numbers, the *logits*, one for each token of the vocabulary. The softmax turns them into probabilities. Which token should be written? Taking the likeliest is called *greedy*: the same prompt always gives the same text, which is often dull and sometimes caught in a loop. Drawing from the probabilities gives variety, and now and then nonsense, because thousands of unlikely tokens together have some probability.

The *temperature* moves between the two: divide the logits by it before the softmax. Below 1 the differences grow and the likely tokens become likelier; above 1 they shrink. At 0 the division is impossible, but the limit is clear: always the likeliest token.

How do you draw from the probabilities 0.2, 0.5, 0.3 with one random number between 0 and 1? Lay them end to end on a line: token 0 owns 0 to 0.2, token 1 owns 0.2 to 0.7, token 2 the rest. The random number is a point on the line, and the token that owns it is drawn. The ends of the pieces are the cumulative sums, and the number of the token is the number of ends that are not above the point.

All sampling settings are checked before any work, by `check_sampling`, which is given. Otherwise, a temperature of NaN would produce nonsense after minutes of computing.
"""


# %%
#| export
PADDED: ContextVar[Any] = ContextVar(
    "padded", default=None
)  # the Padding with which this thread is reading, see the class


def check_sampling(temperature: float, top_k: int | None, top_p: float | None) -> None:
    """Raises ValueError or TypeError for impossible settings."""
    for name, value in (("temperature", temperature), ("top_p", 1 if top_p is None else top_p)):
        if not isinstance(value, Real):
            raise TypeError(f"{name} should be a number, got {value!r}")
    if not math.isfinite(temperature) or temperature < 0:
        raise ValueError(f"temperature should be finite and at least 0, got {temperature}")
    if top_k is not None:
        whole_number("top_k", top_k, 1)
    if top_p is not None and not 0 < top_p <= 1:
        raise ValueError(f"top_p should be above 0 and at most 1, got {top_p}")


# %% [markdown]
"""
**Task (4 + 6 points).** Write the two endings of `sample`:

- `greedy(logits)`: (B, V) to (B,), the likeliest token of each row. 1 line.
- `draw(logits, rng)`: (B, V) to (B,), one token for each row, drawn from the softmax of its logits. Add up with `np.cumsum(..., dtype=np.float64)`: a running sum of 50,257 float32 numbers loses digits. Take one random number per row, `rng.random((B, 1))`, and multiply it by the row's last sum, which is nearly 1 but not exactly. About 4 lines.

Randomness comes only from the `rng` that is passed in: the same seed and the same settings give the same text.
"""


# %% nbgrader={"grade": false, "grade_id": "greedy-draw", "locked": false, "schema_version": 3, "solution": true}
#| export
def greedy(logits: np.ndarray) -> np.ndarray:
    """(B, V) -> (B,): the likeliest token of each row."""
    ### BEGIN SOLUTION
    return logits.argmax(axis=-1)
    ### END SOLUTION


def draw(logits: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """(B, V) -> (B,): a token for each row, drawn from softmax(logits) with one number of rng per row."""
    ### BEGIN SOLUTION
    ends = np.cumsum(softmax(logits), axis=-1, dtype=np.float64)
    points = rng.random((len(logits), 1)) * ends[:, -1:]
    return (ends <= points).sum(axis=-1)
    ### END SOLUTION


# %% [markdown]
"""
Draw from the probabilities 0.2, 0.5 and 0.3 in a hundred rows: how often should each token come?
"""

# %%
np.bincount(draw(np.log(np.tile([0.2, 0.5, 0.3], (100, 1))), np.random.default_rng(0)))

# %% nbgrader={"grade": true, "grade_id": "test-greedy", "locked": true, "points": 4, "schema_version": 3, "solution": false}
chosen = greedy(np.array([[0.1, 2.0, 0.3], [5.0, -1.0, 4.9]], np.float32))
assert chosen.shape == (2,), f"two rows give two tokens, shape (2,); yours is {chosen.shape}"
assert chosen.tolist() == [1, 0], f"the largest logits are at 1 and at 0, you chose {chosen.tolist()}"
### BEGIN HIDDEN TESTS
logits = np.random.default_rng(0).standard_normal((5, 11)).astype(np.float32)
want = [max(range(11), key=row.__getitem__) for row in logits.tolist()]
assert greedy(logits).tolist() == want and greedy(logits).dtype.kind == "i", "wrong for 5 rows of 11 logits"
assert greedy(np.array([[-np.inf, -7.0, -np.inf]])).tolist() == [1], "minus infinity is never the likeliest"
### END HIDDEN TESTS


# %% nbgrader={"grade": true, "grade_id": "test-draw", "locked": true, "points": 6, "schema_version": 3, "solution": false}
class Points:
    """A stand-in for a generator: its random numbers are known."""

    def __init__(self, *numbers):
        self.numbers, self.asked = numbers, []

    def random(self, size=None):
        self.asked.append(size)
        return np.array(self.numbers).reshape(size)


logits = np.log(np.tile([0.2, 0.5, 0.3], (4, 1)))
drawn = draw(logits, Points(0.1, 0.3, 0.6, 0.9))
assert drawn.shape == (4,), f"four rows give four tokens, shape (4,); yours is {drawn.shape}"
assert drawn.tolist() == [0, 1, 1, 2], (
    f"the points 0.1 0.3 0.6 0.9 belong to tokens 0 1 1 2, not {drawn.tolist()}"
)
unseen = draw(np.array([[-np.inf, 1.0, -np.inf]]), Points(0.0))
assert unseen.tolist() == [1], f"a token of probability 0 owns no point, not even 0.0; you drew {unseen}"
### BEGIN HIDDEN TESTS
rng = np.random.default_rng(1)
logits = rng.standard_normal((7, 13)) * 3
points = rng.random(7)
for row, point, got in zip(logits, points, draw(logits, Points(*points)), strict=True):
    parts = [math.exp(x) for x in row]
    at, token = 0.0, -1
    while at <= point:
        token += 1
        at += parts[token] / sum(parts)
    assert got == token, f"the point {point:.4f} belongs to token {token}, you drew {got}"
flat = np.zeros((1, 50_257), np.float32)
assert 50_200 < draw(flat, Points(0.9999))[0] < 50_257, (
    "50,257 equal logits: the point 0.9999 lies near the end"
)
assert draw(flat, Points(1 - 2**-53))[0] == 50_256, "the last point of the line belongs to the last token"
first = draw(logits, np.random.default_rng(5))
again = draw(logits, np.random.default_rng(5))
assert first.tolist() == again.tolist(), "the same seed should draw the same tokens"
### END HIDDEN TESTS

# %% [markdown]
"""
## Cutting off the tail

There are two remedies against nonsense, and they are often used together. *Top-k* (Fan, Lewis and Dauphin 2018, arXiv:1805.04833) keeps the k likeliest tokens. It always keeps k, even where only one makes sense, or where a thousand do. *Top-p*, or nucleus sampling (Holtzman et al. 2020, arXiv:1904.09751), keeps as many of the likeliest as are needed to reach the probability p: few where the model is sure, many where it is not.

Both take logits and return logits, in which what is cut off has become minus infinity. So they can be applied one after the other, and `draw` does not change.

**Task (8 points).** Write `keep_top_k(logits, k)`. The k-th largest logit of each row is the bar, and everything below it is cut off. Tokens equal to the bar stay, even if there are then more than k: nothing distinguishes them, and which of them stayed would depend on the order in which they happened to be sorted. `np.partition(logits, -k)` puts the k-th largest at index −k without sorting the rest. If k is V or more, nothing is cut off. About 4 lines.
"""


# %% nbgrader={"grade": false, "grade_id": "keep-top-k", "locked": false, "schema_version": 3, "solution": true}
#| export
def keep_top_k(logits: np.ndarray, k: int) -> np.ndarray:
    """(B, V) -> (B, V): all but the k largest of each row become -inf; what equals the k-th largest stays.

    Fan, Lewis and Dauphin 2018.
    """
    ### BEGIN SOLUTION
    if k >= logits.shape[-1]:
        return logits
    bar = np.partition(logits, -k, axis=-1)[:, -k, None]
    return np.where(logits >= bar, logits, -np.inf)
    ### END SOLUTION


# %%
keep_top_k(np.array([[1.0, 4.0, 3.0, 2.0]]), 2)

# %% nbgrader={"grade": true, "grade_id": "test-keep-top-k", "locked": true, "points": 8, "schema_version": 3, "solution": false}
logits = np.array([[1, 4, 3, 2], [9, 0, 8, 7]], np.float32)
kept = keep_top_k(logits, 2)
assert kept[0].tolist() == [-np.inf, 4, 3, -np.inf], (
    f"of 1 4 3 2 only 4 and 3 stay, yours: {kept[0].tolist()}"
)
assert kept[1].tolist() == [9, -np.inf, 8, -np.inf], f"each row has its own bar; yours: {kept[1].tolist()}"
assert kept.dtype == np.float32, f"float32 goes in, {kept.dtype} comes out"
assert logits[0].tolist() == [1, 4, 3, 2], "the logits that were passed in must not change"
ties = keep_top_k(np.array([[5.0, 5.0, 5.0, 1.0]]), 2)
assert np.isfinite(ties[0]).tolist() == [True, True, True, False], "what equals the k-th largest stays too"
assert np.array_equal(keep_top_k(logits, 9), logits), "k above the vocabulary keeps everything"
### BEGIN HIDDEN TESTS
logits = np.random.default_rng(2).standard_normal((3, 17))
for k in (1, 5, 16, 17):
    want = [[x if sum(y > x for y in row) < k else -np.inf for x in row] for row in logits.tolist()]
    assert keep_top_k(logits, k).tolist() == want, f"wrong for 3 rows of 17 logits and k = {k}"
### END HIDDEN TESTS

# %% [markdown]
"""
**Task (8 points).** Write `keep_top_p(logits, p)`: go through the tokens from the likeliest down, and keep each one if the probabilities of those *before* it add up to less than p. So the likeliest always stays, and so does the one that crosses p. As above, tokens that are as likely as the last one kept stay with it, and p = 1 keeps everything. (The transformers library does the same in top-k. In top-p it cuts among equals wherever its sort has put them, so that of 1,000 equal tokens p = 0.1 leaves about 100 there and all 1,000 here.)

1. compute the probabilities, and sort a copy in descending order (`np.sort(...)[:, ::-1]`);
2. for each place, sum what comes before it: the cumulative sum (in float64, as above) minus the probability itself;
3. count how many stay; the probability of the last of them is the bar (`np.take_along_axis`). About 7 lines.
"""


# %% nbgrader={"grade": false, "grade_id": "keep-top-p", "locked": false, "schema_version": 3, "solution": true}
#| export
def keep_top_p(logits: np.ndarray, p: float) -> np.ndarray:
    """(B, V) -> (B, V): the likeliest tokens stay, just enough to reach probability p; the rest become -inf.

    Tokens that are as likely as the last one kept stay too. (Nucleus sampling, Holtzman et al. 2020)
    """
    ### BEGIN SOLUTION
    if p >= 1:
        return logits
    probs = softmax(logits)
    ordered = np.sort(probs, axis=-1)[:, ::-1]
    before = np.cumsum(ordered, axis=-1, dtype=np.float64) - ordered
    last = (before < p).sum(axis=-1, keepdims=True) - 1
    bar = np.take_along_axis(ordered, last, axis=-1)
    return np.where(probs >= bar, logits, -np.inf)
    ### END SOLUTION


# %% [markdown]
"""
Take the probabilities 0.15, 0.5, 0.3, 0.05. With p = 0.7 the two likeliest are needed: 0.5 alone is too little, 0.8 is enough.
"""

# %%
np.exp(keep_top_p(np.log(np.array([[0.15, 0.5, 0.3, 0.05]])), 0.7))

# %% nbgrader={"grade": true, "grade_id": "test-keep-top-p", "locked": true, "points": 8, "schema_version": 3, "solution": false}
logits = np.log(np.array([[0.15, 0.5, 0.3, 0.05], [0.9, 0.04, 0.03, 0.03]], np.float32))
stays = np.isfinite(keep_top_p(logits, 0.7)).tolist()
assert stays[0] == [False, True, True, False], (
    f"0.5 is below 0.7, so 0.3 stays as well; yours keeps {stays[0]}"
)
assert stays[1] == [True, False, False, False], f"0.9 alone reaches 0.7; yours keeps {stays[1]}"
kept = keep_top_p(logits, 0.7)
assert kept[0, 1] == logits[0, 1] and kept.dtype == np.float32, "the logits that stay do not change"
assert np.isfinite(keep_top_p(logits, 0.01)).sum() == 2, "the likeliest token of each row always stays"
assert np.isfinite(keep_top_p(logits, 1.0)).all(), "p = 1 keeps everything"
stays = np.isfinite(keep_top_p(np.log(np.array([[0.25, 0.25, 0.25, 0.25]])), 0.4)).tolist()
assert stays == [[True] * 4], f"four equal tokens stay or go together; yours keeps {stays[0]}"
### BEGIN HIDDEN TESTS
logits = np.random.default_rng(3).standard_normal((4, 19)) * 2
for p in (0.05, 0.33, 0.71, 0.97):
    got = keep_top_p(logits, p)
    for row, kept in zip(logits, got, strict=True):
        probs = np.exp(row) / np.exp(row).sum()
        want, reached = set(), 0.0
        for token in sorted(range(19), key=lambda t: -probs[t]):
            if reached >= p:
                break
            want.add(token)
            reached += probs[token]
        assert set(np.flatnonzero(np.isfinite(kept))) == want, f"p = {p}: {sorted(want)} should stay"
        assert all(kept[t] == row[t] for t in want), "the logits that stay do not change"
cut = np.where(logits < 0, -np.inf, logits)
assert not np.isfinite(keep_top_p(cut, 0.999)[cut == -np.inf]).any(), "what was cut off before stays cut off"
flat = np.zeros((1, 50_257), np.float32)
assert np.array_equal(keep_top_p(flat, 1.0), flat), "p = 1 keeps all 50,257 equal logits"
### END HIDDEN TESTS

# %% [markdown]
"""
Now put the parts together, in this order: temperature, top-k, top-p, draw. Temperature 0 skips them all.

Dividing by a very small temperature has two traps. A logit of 5 divided by 1e-39 is infinite in float32, and infinity minus infinity, which the softmax computes next, is NaN. And 1e-50 is already 0 in float32. So first subtract the largest logit of each row, which changes no probability: then the largest is 0, and the others become minus infinity at worst, which is a probability of 0, as it should be. And compute in float64, which can represent 1e-50, but return the type of the logits: 50,000 float64 logits would slow down everything that follows.

**Task (6 points).** Write `at_temperature(logits, temperature)`: (B, V) to (B, V). Subtract the largest logit of each row and divide by the temperature, both in float64, then convert to the type of the logits with `astype(logits.dtype)`. Overflow to minus infinity is intended here: `with np.errstate(over="ignore"):`. About 3 lines.

Then write the rest of `sample`. The checks are given. A row of logits whose largest value is not finite (NaN, or minus infinity everywhere) comes from a broken model, and it is better to say so than to draw token 0 again and again. About 8 lines.
"""


# %% nbgrader={"grade": false, "grade_id": "sample", "locked": false, "schema_version": 3, "solution": true}
#| export
def check_logits(logits: ArrayLike) -> np.ndarray:
    """Logits in any form -> (B, V) array, float32 or float64.

    Raises ValueError for another number of axes, an empty vocabulary, and a row whose largest logit is not
    finite.
    """
    logits = np.asarray(logits)
    if logits.ndim != 2 or logits.shape[1] == 0:
        raise ValueError(f"logits have shape (B, V) with at least 1 token, got shape {logits.shape}")
    if logits.dtype not in (np.float32, np.float64):  # half precision is too coarse to calculate in
        logits = logits.astype(np.float32)
    largest = logits.max(axis=-1)
    if not np.isfinite(largest).all():
        row = np.flatnonzero(~np.isfinite(largest))[0]
        raise ValueError(f"the largest logit of row {row} is {largest[row]}: nothing can be drawn from it")
    return logits


def at_temperature(logits: np.ndarray, temperature: float) -> np.ndarray:
    """(B, V), temperature > 0 -> (B, V): (logits - the largest of their row) / temperature, so at most 0."""
    ### BEGIN SOLUTION
    with np.errstate(over="ignore"):
        scaled = np.subtract(logits, logits.max(axis=-1, keepdims=True), dtype=np.float64) / temperature
        return scaled.astype(logits.dtype)
    ### END SOLUTION


def sample(
    logits: ArrayLike,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    rng: np.random.Generator | int | None = None,
) -> np.ndarray:
    """(B, V) -> (B,): one token for each row. Temperature 0 takes the likeliest.

    Otherwise it is drawn from softmax(logits / temperature), among the top_k likeliest, then within top_p.
    rng: a seed or a numpy Generator; one number of it is used per row.
    Raises ValueError or TypeError for settings out of range and for logits that are not finite.
    """
    check_sampling(temperature, top_k, top_p)
    logits = check_logits(logits)
    ### BEGIN SOLUTION
    if temperature == 0:
        return greedy(logits)
    logits = at_temperature(logits, temperature)
    if top_k is not None:
        logits = keep_top_k(logits, top_k)
    if top_p is not None:
        logits = keep_top_p(logits, top_p)
    return draw(logits, np.random.default_rng(rng))
    ### END SOLUTION


# %% [markdown]
"""
A thousand draws from the logits 0, 1 and 2 at each of three temperatures, as shares.
"""

# %%
rows = np.tile(np.float32([0, 1, 2]), (1000, 1))
{t: np.bincount(sample(rows, temperature=t, rng=0), minlength=3) / 1000 for t in (0.5, 1, 4)}

# %% nbgrader={"grade": true, "grade_id": "test-sample", "locked": true, "points": 6, "schema_version": 3, "solution": false}
### BEGIN HIDDEN TESTS
own = {name: globals().get(name) for name in ("greedy", "draw", "keep_top_k", "keep_top_p")}


def greedy(logits):
    return np.argmax(logits, axis=-1)


def draw(logits, rng):
    probs = np.exp(logits.astype(np.float64) - logits.max(axis=-1, keepdims=True))
    ends = np.cumsum(probs, axis=-1)
    return (ends <= rng.random((len(logits), 1)) * ends[:, -1:]).sum(axis=-1)


def keep_top_k(logits, k):
    bars = np.sort(logits, axis=-1)[:, ::-1][:, min(k, logits.shape[-1]) - 1]
    return np.where(logits >= bars[:, None], logits, -np.inf)


def keep_top_p(logits, p):
    probs = np.exp(logits - logits.max(axis=-1, keepdims=True))
    probs = probs / probs.sum(axis=-1, keepdims=True)
    likelier = (probs[:, None, :] > probs[:, :, None]) * probs[:, None, :]
    return np.where(likelier.sum(axis=-1) < p, logits, -np.inf)


### END HIDDEN TESTS
logits = np.tile(np.float32([0, 2, 1, -9]), (2000, 1))
assert (sample(logits, temperature=0) == 1).all(), "temperature 0 takes the likeliest token, here 1"
share = (sample(logits, temperature=0.5, rng=0) == 1).mean()
assert abs(share - 0.867) < 0.03, (
    f"at temperature 0.5 the share of token 1 is exp(4) / (exp(0) + exp(4) + exp(2)); yours: {share}"
)
drawn = sample(logits, temperature=1.5, top_k=2, rng=0)
assert set(drawn.tolist()) == {1, 2}, (
    f"among the 2 likeliest are tokens 1 and 2, you drew {set(drawn.tolist())}"
)
drawn = sample(logits, top_p=0.5, rng=0)
assert set(drawn.tolist()) == {1}, (
    f"token 1 alone has probability 0.67; with top_p=0.5 you drew {set(drawn.tolist())}"
)
assert (sample(logits, rng=7) == sample(logits, rng=7)).all(), "the same seed should draw the same tokens"
for tiny in (1e-5, 1e-39, 1e-50):
    drawn = sample(np.float32([[0, 5, 1]]), temperature=tiny, top_p=0.9, rng=0)
    assert drawn.tolist() == [1], f"at temperature {tiny} token 1 has all the probability, you drew {drawn}"
halved = at_temperature(np.float32([[1, 3, 2]]), 0.5)
assert halved.tolist() == [[-4, 0, -2]], f"1, 3, 2 minus 3, divided by 0.5, is -4, 0, -2, not {halved[0]}"
### BEGIN HIDDEN TESTS
assert at_temperature(np.float32([[-3e38, 3e38]]), 1e38).tolist()[0][0] == np.float32(-6), (
    "-3e38 less 3e38 fits only into float64"
)
assert at_temperature(np.float64([[0, 1]]), 0.1).dtype == np.float64, "float64 logits stay float64"
warm = np.log(np.tile(np.float32([0.5, 0.25, 0.15, 0.1]), (3000, 1)))
drawn = sample(warm, temperature=4.0, top_p=0.6, rng=1)  # once flatter, 3 tokens are needed, not 2
assert set(drawn.tolist()) == {0, 1, 2}, f"temperature comes before top-p; you drew {set(drawn.tolist())}"
drawn = sample(warm, top_k=2, top_p=0.6, rng=1)  # top-k first: 0.67 alone reaches 0.6
assert set(drawn.tolist()) == {0}, f"top-k comes before top-p; you drew {set(drawn.tolist())}"
seen = []
own_draw, draw = draw, lambda logits, rng: seen.append(logits.dtype) or own_draw(logits, rng)
sample(warm, temperature=np.float64(0.7), rng=2)
assert seen == [np.float32], "a float64 temperature must not make the logits float64"
rng = np.random.default_rng(3)
assert [sample(warm[:1], rng=rng).item() for _ in range(30)] != [sample(warm[:1], rng=3).item()] * 30
globals().update(own)
### END HIDDEN TESTS

# %% [markdown]
"""
## The loop that writes

The loop asks a function for the logits of the next token, chooses a token, passes it on, and asks again. It passes on only what the function has not seen yet: first the whole prompt, (B, T), then one new token for each row, (B, 1). How the function computes its logits does not concern the loop, so when you test it, a function of three lines can stand in for a model.

The loop is a generator: it yields the tokens of all rows as soon as they are chosen, so that they can be printed at once. And a text may end early: when a row has chosen the *stop token*, it is finished. The other rows go on, and the finished row is filled with the stop token, so that the batch keeps its shape. When all rows are finished, the loop ends.

**Task (10 points).** Write `write(next_logits, tokens, max_new_tokens, choose, stop_token=None)`, a generator.

1. call `next_logits(tokens)`, (B, V), and `choose(...)`, (B,);
2. if there is a stop token, replace the choice by it in rows that have stopped before; then note which rows have stopped now;
3. `yield` the tokens, and end if all rows have stopped; otherwise go on with the chosen tokens as a column, `[:, None]`.

Do not compute logits that are not used: after the last token is yielded, the model is not called again. About 10 lines.
"""


# %% nbgrader={"grade": false, "grade_id": "write", "locked": false, "schema_version": 3, "solution": true}
#| export
def write(
    next_logits: Callable,
    tokens: np.ndarray,
    max_new_tokens: int,
    choose: Callable,
    stop_token: int | None = None,
) -> Iterator[np.ndarray]:
    """Yields the next token of each row, (B,), up to max_new_tokens times.

    next_logits: called with the tokens it has not seen yet, first all of `tokens`, (B, T), then the newest,
        (B, 1); it returns the logits of the token after them, (B, V).
    choose: (B, V) -> (B,).
    stop_token: a row that has produced it produces nothing else; when all rows have, the loop ends.
    """
    ### BEGIN SOLUTION
    stopped = np.zeros(len(tokens), bool)
    for _ in range(max_new_tokens):
        chosen = choose(next_logits(tokens))
        if stop_token is not None:
            chosen = np.where(stopped, stop_token, chosen)
            stopped |= chosen == stop_token
        yield chosen
        if stop_token is not None and stopped.all():
            return
        tokens = chosen[:, None]
    ### END SOLUTION


# %% [markdown]
"""
This stand-in for a model predicts token n + 1 after token n, and ignores everything but the newest token. Two rows begin with 3 and with 5, and the stop token is 7: which row is filled up?
"""


# %%
def one_more(tokens):
    """(B, T) -> (B, 10) logits: the token after n is n + 1."""
    return np.eye(10)[tokens[:, -1] + 1]


np.stack(
    list(write(one_more, np.array([[3], [5]]), 6, lambda logits: logits.argmax(-1), stop_token=7)), axis=1
)


# %% nbgrader={"grade": true, "grade_id": "test-write", "locked": true, "points": 10, "schema_version": 3, "solution": false}
class Listener:
    """A stand-in for a model: it predicts n + 1 after n and records what it was shown."""

    def __init__(self):
        self.shown = []

    def __call__(self, tokens):
        self.shown.append(tokens.tolist())
        return np.eye(10)[tokens[:, -1] + 1]


def likeliest(logits):
    return logits.argmax(axis=-1)


listener = Listener()
written = [tokens.tolist() for tokens in write(listener, np.array([[1, 3], [0, 5]]), 3, likeliest)]
assert written == [[4, 6], [5, 7], [6, 8]], f"after 3 come 4, 5, 6, after 5 come 6, 7, 8; yours: {written}"
assert listener.shown[0] == [[1, 3], [0, 5]], f"first the whole prompt is shown, yours: {listener.shown[0]}"
assert listener.shown[1:] == [[[4], [6]], [[5], [7]]], (
    f"then only the newest token of each row, and nothing after the last; you showed {listener.shown[1:]}"
)
written = [tokens.tolist() for tokens in write(Listener(), np.array([[3], [5]]), 9, likeliest, stop_token=7)]
assert written == [[4, 6], [5, 7], [6, 7], [7, 7]], (
    f"row 1 stops at 7 and stays there, row 0 later; yours: {written}"
)
stream_of_one = write(Listener(), np.array([[1]]), 5, likeliest)
assert next(stream_of_one).tolist() == [2], "write should yield each token as soon as it is chosen"
### BEGIN HIDDEN TESTS
listener = Listener()
tokens = write(listener, np.array([[1]]), 5, likeliest)
next(tokens)
assert len(listener.shown) == 1, "one token was asked for, the model should have been called once"
assert list(write(listener, np.array([[1]]), 0, likeliest)) == [], "no new tokens, nothing to yield"
assert len(listener.shown) == 1, "no new tokens: the model should not be called"
listener = Listener()
written = [tokens.tolist() for tokens in write(listener, np.array([[6]]), 3, likeliest, stop_token=0)]
assert written == [[7], [8], [9]], f"a stop token that never comes changes nothing, yours: {written}"
listener = Listener()
assert (
    len(list(write(listener, np.array([[6], [6]]), 3, likeliest, stop_token=7))) == 1 == len(listener.shown)
)
written = list(write(Listener(), np.array([[0]]), 2, lambda logits: logits.argmax(-1), stop_token=0))
assert len(written) == 2, "a stop token in the prompt does not stop anything"
### END HIDDEN TESTS

# %% [markdown]
"""
Some settings need the text so far, or concern single tokens: do not repeat yourself, never use this word, report how sure you were. All of them look at the logits before `sample` does, or at its choice afterwards, so an object can take the place of `sample`. `Chooser` is given. The *repetition penalty* (Keskar et al. 2019, arXiv:1909.05858) divides the positive logits of tokens that are already in the text, and multiplies the negative ones. *Min-p* (Nguyen et al. 2024, arXiv:2407.01082) drops tokens whose probability is below a given fraction of the likeliest one's: many tokens where the model is sure, few where it is not. A *bias* is added to single logits.
"""


# %%
#| export
class Chooser:
    """Chooses tokens as `sample` does, with settings that need the text so far or concern single tokens.

    temperature, top_k, top_p, rng: as for `sample`. repetition_penalty: above 1, tokens that are in the text
    become rarer (Keskar et al. 2019). logit_bias: {token: number to be added, -inf forbids it}. min_p: at the
    temperature, tokens below this fraction of the likeliest one's probability are dropped, before top_k and
    top_p (Nguyen et al. 2024). log_probs: a list, to which each choice adds (B,) numbers, the logarithms of
    the probabilities that the model gave the chosen tokens, at temperature 1 and without any setting.
    """

    def __init__(
        self,
        temperature: float = 1.0,
        top_k: int | None = None,
        top_p: float | None = None,
        rng: np.random.Generator | int | None = None,
        *,
        min_p: float | None = None,
        repetition_penalty: float = 1.0,
        logit_bias: dict[int, float] | None = None,
        log_probs: list | None = None,
        vocab_size: int | None = None,
    ):
        """vocab_size: for the check of logit_bias. Raises ValueError or TypeError for impossible settings."""
        check_sampling(temperature, top_k, top_p)
        settings: dict[str, Any] = dict(
            temperature=temperature, top_k=top_k, top_p=top_p, rng=np.random.default_rng(rng)
        )
        self.sample: Callable = partial(sample, **settings)
        for name, value in (
            ("min_p", 0 if min_p is None else min_p),
            ("repetition_penalty", repetition_penalty),
        ):
            if not isinstance(value, Real):
                raise TypeError(f"{name} should be a number, got {value!r}")
        if min_p is not None and not 0 <= min_p <= 1:
            raise ValueError(f"min_p should be at least 0 and at most 1, got {min_p}")
        if not 0 < repetition_penalty < math.inf:
            raise ValueError(f"repetition_penalty should be above 0 and finite, got {repetition_penalty}")
        self.bar = temperature * math.log(min_p) if min_p and temperature else None
        self.penalty, self.log_probs = float(repetition_penalty), log_probs
        self.bias = {} if logit_bias is None else dict(logit_bias)
        for token, bias in self.bias.items():
            if whole_number("a token of logit_bias", token, 0) >= (vocab_size or math.inf):
                raise ValueError(f"token {token} of logit_bias is outside the vocabulary of {vocab_size}")
            if not isinstance(bias, Real) or not bias < math.inf:
                raise ValueError(f"the bias of token {token} should be a number below infinity, got {bias!r}")
        self.unread: list[np.ndarray] = []  # tokens of the text
        self.seen: np.ndarray | None = None  # which tokens of the vocabulary are in it, (B, V + 1)

    def read(self, tokens: np.ndarray) -> None:
        """(B, T) tokens of the text before the next one; padding does not count."""
        front = PADDED.get()
        padding = np.zeros((len(tokens), 1), int) if front is None else front.padding
        self.unread.append(np.where(np.arange(tokens.shape[1]) < padding, -1, tokens))

    def __call__(self, logits: np.ndarray) -> np.ndarray:
        """(B, V) -> (B,): the next token of each row, which from now on belongs to the text."""
        tokens = self.sample(self.adjust(check_logits(logits)))
        if self.log_probs is not None:
            chosen = log_softmax(np.asarray(logits))[np.arange(len(tokens)), tokens]
            self.log_probs.append(chosen)
        if self.penalty != 1:
            self.unread.append(tokens[:, None])
        return tokens

    def adjust(self, logits: np.ndarray) -> np.ndarray:
        """(B, V) -> (B, V): with penalty, bias and min-p; the array that is passed in does not change."""
        if self.penalty != 1:
            if self.seen is None:
                self.seen = np.zeros((len(logits), logits.shape[-1] + 1), bool)  # the last is for padding
            for tokens in self.unread:
                np.put_along_axis(self.seen, tokens, True, axis=1)
            self.unread = []
            rarer = np.where(logits > 0, logits / self.penalty, logits * self.penalty)
            logits = np.where(self.seen[:, :-1], rarer, logits)
        if self.bias:
            logits = logits.copy()
            for token, bias in self.bias.items():
                logits[:, token] += bias
        if self.bar is not None:
            logits = np.where(logits >= logits.max(axis=-1, keepdims=True) + self.bar, logits, -np.inf)
        return logits


# %% [markdown]
"""
`stream`, which is given, puts the loop and the choice together. Settings are checked when it is called, not when the first token is requested, and a seed becomes *one* generator for the whole text. (If a seed were passed to `sample` at every step, every step would draw the same number.)
"""


# %%
#| export
def stream(
    next_logits: Callable,
    prompt: ArrayLike,
    max_new_tokens: int,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    rng: np.random.Generator | int | None = None,
    stop_token: int | None = None,
    **more: Any,
) -> Iterator[np.ndarray]:
    """Yields the next token of each row, (B,), up to max_new_tokens times, chosen as in `sample`.

    next_logits: called with the tokens it has not seen yet, (B, T): first the whole prompt, then one token
        per row; it returns the logits of the token after them, (B, V).
    stop_token: a row that has produced it produces nothing else; when all rows have, the stream ends.
    more: min_p, repetition_penalty, logit_bias, log_probs, as for `Chooser`.
    Raises ValueError or TypeError at once for settings out of range.
    """
    choose = Chooser(temperature, top_k, top_p, rng, **more)
    prompt = as_array(prompt)
    if prompt.ndim != 2 or prompt.size == 0:
        raise ValueError(f"a prompt has shape (B, T) and at least 1 token, got shape {prompt.shape}")
    max_new_tokens = whole_number("max_new_tokens", max_new_tokens, 0)
    choose.read(prompt)
    return write(next_logits, prompt, max_new_tokens, choose, stop_token)


# %% [markdown]
"""
The stand-in above gives the next number a logit of 1 and the nine others 0. At temperature 0.3 that is $e^{1/0.3}$ = 28 against 9, so about three in four of these numbers should be one more than the one before (after 9 comes 1):
"""

# %%
[tokens.item() for tokens in stream(lambda tokens: one_more(tokens % 9), [[3]], 16, temperature=0.3, rng=2)]

# %% [markdown]
"""
## What every language model can do

A model has weights, but no memory of a text: to predict the next token, it must read the whole text. The loop, however, passes on only what is new. Between the two stands `Recompute`, which remembers all tokens since the first and has the model read all of them again every time. One such object belongs to one text, so the model itself does not change, and two texts cannot get mixed up.

**Task (4 points).** Write `Recompute.__call__(new)`: write the new tokens, (B, T), into `self.tokens` after the `self.length` tokens that are already there, and return `self.model.next_logits` of all tokens so far. The constructor has made the room, so nothing is appended or copied. About 4 lines.
"""


# %% nbgrader={"grade": false, "grade_id": "recompute", "locked": false, "schema_version": 3, "solution": true}
#| export
class Recompute:
    """Called with new tokens, (B, T), it lets the model read all tokens since the first -> logits (B, V)."""

    def __init__(self, model: "LanguageModel", batch_size: int, num_tokens: int):
        self.model = model
        self.tokens = np.empty((batch_size, num_tokens), np.int64)
        self.length = 0

    def __call__(self, new: np.ndarray) -> np.ndarray:
        """(B, T) new tokens -> (B, V): the logits of the token after them."""
        ### BEGIN SOLUTION
        start = self.length
        self.length += new.shape[1]
        self.tokens[:, start : self.length] = new
        return self.model.next_logits(self.tokens[:, : self.length])
        ### END SOLUTION


# %% nbgrader={"grade": true, "grade_id": "test-recompute", "locked": true, "points": 4, "schema_version": 3, "solution": false}
class Echo:
    """A stand-in for a model: it returns what it was shown."""

    def next_logits(self, tokens):
        return np.array(tokens)


reader = Recompute(Echo(), batch_size=2, num_tokens=6)
assert reader(np.array([[1, 2], [3, 4]])).tolist() == [[1, 2], [3, 4]], (
    "the first call shows the model the prompt"
)
read = reader(np.array([[5], [6]])).tolist()
assert read == [[1, 2, 5], [3, 4, 6]], f"then the model reads prompt and new tokens, yours read {read}"
read = reader(np.array([[7], [8]])).tolist()
assert read == [[1, 2, 5, 7], [3, 4, 6, 8]], f"and every time all of them, yours read {read}"
### BEGIN HIDDEN TESTS
reader = Recompute(Echo(), batch_size=3, num_tokens=9)
text = np.arange(27).reshape(3, 9)
storage = reader.tokens
for start, stop in ((0, 1), (1, 4), (4, 5), (5, 9)):
    assert np.array_equal(reader(text[:, start:stop]), text[:, :stop]), f"wrong after {stop} tokens"
assert reader.tokens is storage and reader.length == 9, "use the array that is there, not a new one"
other = Recompute(Echo(), 3, 9)
assert np.array_equal(other(text[:, 3:4]), text[:, 3:4]), "two texts must not get mixed up"
### END HIDDEN TESTS

# %% [markdown]
"""
Tokens from outside are checked once, where they come in, by `check_tokens`, which is given. NumPy would silently take token −1 for the last one of the vocabulary.

`LanguageModel` holds what all models share. A model that inherits from it provides `vocab_size`, `max_seq_len`, and two methods: `hidden_states`, from tokens (B, T) to one vector per token (B, T, C), and `logits`, from such vectors to (…, V). They are separate for a reason. In the smallest GPT-2 the step to the logits takes 50,257 · 768 = 38.6 million multiplications per position, and the weights of all its blocks together take 12 · 12 · 768² = 84.9 million. When the model writes, only one position needs logits.

**Task (4 + 8 points).**

- `next_logits(tokens)`: compute the hidden states of all tokens, but the logits of the last one only, and return them as an array (B, V), recording no gradients (`with no_grad():`). About 2 lines.
- `generate`: the checks are given. Get a reader for this text with `self.decoder(batch size, number of tokens in the end)`, run `stream` with the settings, and join prompt and tokens into one array (B, T + n) with `np.concatenate`. Use `self.decoder` and not `Recompute`, so that a model can decide in one place how it remembers a text. About 3 lines. (`lengths` and `pad_side` are explained in the section on rows of different lengths, `more` in the text that follows this cell; what you write does not need them.)
"""


# %%
#| export
def check_tokens(tokens: ArrayLike, vocab_size: int) -> np.ndarray:
    """Tokens in any form -> (B, T) integer array; an array is not copied.

    Raises ValueError for another number of axes, for no tokens, and for a token outside the vocabulary,
    TypeError for anything but integers.
    """
    ids = as_array(tokens)
    if ids.ndim != 2:
        raise ValueError(f"tokens should have 2 axes, (B, T), got {ids.ndim}: shape {ids.shape}")
    if ids.size == 0:
        raise ValueError(f"there should be at least 1 token, got 0: shape {ids.shape}")
    if ids.dtype.kind not in "iu":
        raise TypeError(f"tokens should be integers, got {ids.dtype}")
    lowest, highest = ids.min(), ids.max()
    if lowest < 0 or highest >= vocab_size:
        wrong = lowest if lowest < 0 else highest
        raise ValueError(f"token {wrong} is outside the vocabulary of {vocab_size} (0 to {vocab_size - 1})")
    return ids


def check_stop(start_pos: int, num_tokens: int, max_seq_len: int) -> int:
    """-> the position after num_tokens tokens that begin at start_pos.

    Raises ValueError if start_pos is negative or max_seq_len positions are too few, TypeError if start_pos is
    not a whole number.
    """
    stop = whole_number("start_pos", start_pos, 0) + num_tokens
    if stop > max_seq_len:
        raise ValueError(
            f"{num_tokens} tokens from position {start_pos} on need {stop} positions, "
            f"the model has {max_seq_len}"
        )
    return stop


# %% nbgrader={"grade": false, "grade_id": "language-model", "locked": false, "schema_version": 3, "solution": true}
#| export
class LanguageModel(Module):
    """What every model that predicts the next token can do.

    It provides vocab_size, max_seq_len, hidden_states(tokens) -> (B, T, C), logits(hidden) -> (B, T, V).
    """

    vocab_size: int
    max_seq_len: int
    hidden_states: Callable[..., Tensor]
    logits: Callable[..., Tensor]
    blocks: list
    position_embedding: Module

    def forward(self, tokens: ArrayLike) -> Tensor:
        """(B, T) ints -> (B, T, V): for each token, the logits of the one that follows."""
        return self.logits(self.hidden_states(tokens))

    def next_logits(self, tokens: ArrayLike) -> np.ndarray:
        """(B, T) ints -> (B, V): the logits of the token after the last one only; records no gradients."""
        ### BEGIN SOLUTION
        with no_grad():
            return self.logits(self.hidden_states(tokens)[:, -1:]).data[:, 0]
        ### END SOLUTION

    def decoder(self, batch_size: int, num_tokens: int) -> Callable:
        """-> a function that gives `stream` the logits of one new text, at most num_tokens tokens per row."""
        return Recompute(self, batch_size, num_tokens)

    def generate(
        self,
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
        """(B, T) ints -> (B, T + n) ints, n = max_new_tokens unless all rows reach stop_token earlier.

        Settings as in `sample`; rng: a seed or a numpy Generator. lengths, pad_side: for rows of different
        lengths, see `generate_ragged`. more: min_p, repetition_penalty, logit_bias and log_probs as for
        `Chooser`, stop_strings and their tokenizer as for `generate_more`. Before any work, raises ValueError
        if the prompt is empty or contains a token outside the vocabulary, if prompt and new tokens exceed
        max_seq_len, or if a setting is out of range, and TypeError for a wrong type.
        """
        options: dict[str, Any] = dict(temperature=temperature, top_k=top_k, top_p=top_p, rng=rng)
        options["stop_token"] = stop_token
        if lengths is not None or pad_side != "right":
            options |= more
            return generate_ragged(self.generate, self, prompt, lengths, pad_side, max_new_tokens, **options)
        prompt = check_tokens(prompt, self.vocab_size)
        new = whole_number("max_new_tokens", max_new_tokens, 0)
        total = prompt.shape[1] + new
        if total > self.max_seq_len:
            raise ValueError(
                f"{prompt.shape[1]} prompt tokens and {new} new ones make {total}, "
                f"the model takes {self.max_seq_len}"
            )
        check_sampling(temperature, top_k, top_p)
        if stop_token is not None and whole_number("stop_token", stop_token, 0) >= self.vocab_size:
            raise ValueError(f"stop_token {stop_token} is outside the vocabulary of {self.vocab_size}")
        rng = np.random.default_rng(rng)
        prompt = prompt.astype(np.int64)
        if more:
            return generate_more(self, prompt, new, **options, **more)
        ### BEGIN SOLUTION
        next_logits = self.decoder(len(prompt), total)
        tokens = stream(next_logits, prompt, new, temperature, top_k, top_p, rng, stop_token)
        return np.concatenate([prompt, *(column[:, None] for column in tokens)], axis=1)
        ### END SOLUTION


# %% [markdown]
"""
With one of the settings in `more`, `generate` calls `generate_more`, which is given. It can also end a text at a word: the stop strings of module 10 are searched for in the text, not in the tokens, because a word may be cut into tokens in several ways. `stream_text` yields the text while it is written. It holds back what might become a stop string until that is clear, and never yields the stop string itself.
"""


# %%
#| export
def generate_more(
    model: LanguageModel,
    prompt: np.ndarray,
    max_new_tokens: int,
    stop_token: int | None = None,
    stop_strings: Sequence[str] = (),
    tokenizer: Any = None,
    **settings: Any,
) -> np.ndarray:
    """(B, T) ints -> (B, T + n) ints, as `generate`, with all that `stream` takes.

    stop_strings: the text ends with the token that completes one of them; for a single row, and with the
    tokenizer that turns its tokens into text. Raises ValueError or TypeError for impossible settings.
    """
    stops = stop_stream(tokenizer, stop_strings) if stop_strings else None
    if stops is not None and len(prompt) != 1:
        raise ValueError(f"stop strings are looked for in 1 text, the prompt has {len(prompt)} rows")
    settings["vocab_size"] = model.vocab_size
    Chooser(**settings | {"log_probs": None})  # raises before the decoder begins a new text
    next_logits = model.decoder(len(prompt), prompt.shape[1] + max_new_tokens)
    columns = [prompt]
    for column in stream(next_logits, prompt, max_new_tokens, stop_token=stop_token, **settings):
        columns.append(column[:, None])
        if stops is not None:
            stops.feed(int(column[0]))
            if stops.stopped:
                break
    return np.concatenate(columns, axis=1)


def stop_stream(tokenizer: Any, stop_strings: Sequence[str]) -> StopStream:
    """-> what decodes the tokens of one text, up to the first stop string. TypeError without a tokenizer."""
    if not hasattr(tokenizer, "vocabulary"):
        raise TypeError(f"to find {stop_strings!r} takes a tokenizer, got {type(tokenizer).__name__}")
    return StopStream(StreamDecoder(tokenizer), stop_strings)


def stream_text(
    model: LanguageModel,
    tokenizer: Any,
    prompt: str,
    max_new_tokens: int,
    stop_token: int | None = None,
    stop_strings: Sequence[str] = (),
    **settings: Any,
) -> Iterator[str]:
    """Yields the text after `prompt` as it is written, without stop_token and without a stop string.

    settings: as for `stream`. Raises ValueError or TypeError at once, as `generate`.
    """
    tokens = check_tokens([tokenizer.encode(prompt)], model.vocab_size)
    total = tokens.shape[1] + whole_number("max_new_tokens", max_new_tokens, 0)
    check_stop(0, total, model.max_seq_len)
    shown, settings["vocab_size"] = stop_stream(tokenizer, stop_strings), model.vocab_size
    Chooser(**settings | {"log_probs": None})  # raises before the decoder begins a new text
    new = stream(model.decoder(1, total), tokens, max_new_tokens, stop_token=stop_token, **settings)

    def pieces():
        for (token,) in new:
            text = "" if token == stop_token else shown.feed(int(token))
            if text:
                yield text
            if shown.stopped:
                return
        if rest := shown.finish():
            yield rest

    return pieces()


# %% [markdown]
"""
Here is a complete language model, a *bigram* model: the next token depends only on the newest one, through a table of probabilities. Its tokens are 0 "sun", 1 "rain" and 2 "and". All it knows is that "and" follows a noun, and that a noun follows "and", three times out of four the sun. Its `hidden_states` mark which token it is (one-hot); its `logits` look up the row.
"""


# %%
class Bigram(LanguageModel):
    """(B, T) -> (B, T, V): logits from a (V, V) table of probabilities, with one row for each token."""

    def __init__(self, table, max_seq_len=20):
        self.table = np.log(np.asarray(table) + 1e-9).astype(np.float32)
        self.vocab_size, self.max_seq_len = len(table), max_seq_len

    def hidden_states(self, tokens):
        return Tensor(np.eye(self.vocab_size)[check_tokens(tokens, self.vocab_size)])

    def logits(self, hidden):
        return hidden @ self.table


weather = Bigram([[0, 0, 1], [0, 0, 1], [0.75, 0.25, 0]])
text = weather.generate([[0]], max_new_tokens=10, rng=1)
" ".join(["sun", "rain", "and"][token] for token in text[0])


# %% nbgrader={"grade": true, "grade_id": "test-next-logits", "locked": true, "points": 4, "schema_version": 3, "solution": false}
class Counting(LanguageModel):
    """A stand-in: token n becomes the vector (n, 2n), its logits are five multiples of their sum."""

    vocab_size, max_seq_len = 5, 8

    def __init__(self):
        self.asked = []

    def hidden_states(self, tokens):
        tokens = np.asarray(tokens, np.float32)
        return Tensor(np.stack([tokens, 2 * tokens], axis=-1))

    def logits(self, hidden):
        self.asked.append(hidden.shape)
        return hidden.sum(axis=-1, keepdims=True) * np.arange(5, dtype=np.float32)


model = Counting()
logits = model.next_logits(np.array([[4, 1, 2], [0, 2, 3]]))
assert isinstance(logits, np.ndarray), f"next_logits returns an array, yours a {type(logits).__name__}"
assert logits.shape == (2, 5), f"2 rows and 5 tokens in the vocabulary: shape (2, 5), yours is {logits.shape}"
assert logits[:, 1].tolist() == [6, 9], (
    f"the last tokens 2 and 3 give logits of 6 and 9, yours: {logits[:, 1]}"
)
assert model.asked in ([(2, 1, 2)], [(2, 2)]), (
    f"logits are needed for the last position only, you asked for {model.asked}"
)
### BEGIN HIDDEN TESTS
from tinytorch.core.autograd import enable_autograd
from tinytorch.core.tensor import set_recorder


class Recorded(Counting):
    def logits(self, hidden):
        self.seen = hidden
        return super().logits(hidden)

    def hidden_states(self, tokens):
        return Tensor(np.ones((2, 3, 2)), requires_grad=True) * 2.0


before = set_recorder(None)
enable_autograd()
model = Recorded()
model.next_logits(np.array([[4, 1, 2], [0, 2, 3]]))
recorded_after = model.hidden_states([[0]]).requires_grad
set_recorder(before)
assert not model.seen.requires_grad, "next_logits should record no gradients: use no_grad()"
assert recorded_after, "afterwards gradients are recorded again"
### END HIDDEN TESTS


# %% nbgrader={"grade": true, "grade_id": "test-generate", "locked": true, "points": 8, "schema_version": 3, "solution": false}
### BEGIN HIDDEN TESTS
def plain_stream(
    next_logits, prompt, max_new_tokens, temperature=1.0, top_k=None, top_p=None, rng=None, stop_token=None
):
    shown, stopped = prompt, np.zeros(len(prompt), bool)
    for _ in range(max_new_tokens):
        logits = next_logits(shown)
        if temperature:
            assert top_k == 1 or top_p == 0.25 or (top_k is None and top_p is None), f"{top_k=}, {top_p=}"
            noise = np.random.default_rng(rng).gumbel(size=logits.shape)
            logits = logits / temperature + (0 if top_k == 1 or top_p == 0.25 else noise)
        chosen = np.where(stopped, -1 if stop_token is None else stop_token, logits.argmax(-1))
        stopped |= chosen == stop_token
        yield chosen
        if stopped.all():
            return
        shown = chosen[:, None]


own, stream = globals().get("stream"), plain_stream


### END HIDDEN TESTS
class Cycle(LanguageModel):
    """A stand-in: after n comes n + 1, after 9 comes 0; it records what its decoder was asked for."""

    vocab_size, max_seq_len = 10, 12

    def decoder(self, batch_size, num_tokens):
        self.asked = (batch_size, num_tokens)
        self.shown = []

        def next_logits(tokens):
            self.shown.append(tokens.shape)
            return 5 * np.eye(10, dtype=np.float32)[(tokens[:, -1] + 1) % 10]

        return next_logits


model = Cycle()
text = model.generate([[1, 2], [7, 8]], 4, temperature=0)
assert text.tolist() == [[1, 2, 3, 4, 5, 6], [7, 8, 9, 0, 1, 2]], (
    f"prompt and new tokens together; yours: {text}"
)
assert text.dtype.kind == "i", f"tokens are integers, yours are {text.dtype}"
assert model.asked == (2, 6), (
    f"the decoder is for 2 rows of 2 + 4 tokens: (2, 6), you asked for {model.asked}"
)
assert model.shown == [(2, 2), (2, 1), (2, 1), (2, 1)], f"4 tokens need 4 calls; yours: {model.shown}"
text = model.generate([[1, 2], [7, 8]], 8, temperature=0, stop_token=9).tolist()
assert text == [[1, 2, 3, 4, 5, 6, 7, 8, 9], [7, 8, 9, 9, 9, 9, 9, 9, 9]], (
    f"both rows stop at 9; yours: {text}"
)
### BEGIN HIDDEN TESTS
assert model.generate([[4, 5, 6]], 0).tolist() == [[4, 5, 6]], "no new tokens: the prompt comes back"
assert model.generate([[4]], 3, top_k=1).tolist() == [[4, 5, 6, 7]], "top_k should reach the sampling"
assert model.generate([[4]], 3, top_p=0.25).tolist() == [[4, 5, 6, 7]], "top_p should reach the sampling"
hot = [model.generate([[4]], 11, temperature=9.0, rng=seed).tolist() for seed in (1, 1, 2)]
assert hot[0] == hot[1] != hot[2], "rng should reach the sampling"
assert hot[0] != [[4, 5, 6, 7, 8, 9, 0, 1, 2, 3, 4, 5]], "temperature should reach the sampling"
prompt = np.array([[3, 4]], np.uint8)
text = model.generate(prompt, 2, temperature=0)
assert text.tolist() == [[3, 4, 5, 6]] and prompt.tolist() == [[3, 4]] and text.dtype.kind == "i"
stream = own
### END HIDDEN TESTS

# %% [markdown]
"""
## The other half of a block

Now the model. Attention carries information from token to token, but it does so only by averaging values. What was gathered must then be processed, for each token alone. That is done by a small network of two layers with an activation between them: up to four times the width, GELU, and down again. It is called MLP, *multilayer perceptron*, and holds two thirds of a block's weights: 8C² against the 4C² of attention.

**Task (4 points).** Write `MLP.forward`: up, GELU, down. 1 line.
"""


# %% nbgrader={"grade": false, "grade_id": "mlp", "locked": false, "schema_version": 3, "solution": true}
#| export
class MLP(Module):
    """(..., C) -> (..., C): up to 4C, GELU, and down again, for each token alone."""

    def __init__(self, embed_dim: int, rng: np.random.Generator | int | None = None):
        rng = np.random.default_rng(rng)
        self.up = Linear(embed_dim, 4 * embed_dim, rng=rng)
        self.down = Linear(4 * embed_dim, embed_dim, rng=rng)
        self.gelu = GELU()

    def forward(self, x: Tensor) -> Tensor:
        """(..., C) -> (..., C)"""
        ### BEGIN SOLUTION
        return self.down(self.gelu(self.up(x)))
        ### END SOLUTION


# %%
MLP(8, rng=0)(Tensor(np.ones((2, 3, 8)))).shape

# %% nbgrader={"grade": true, "grade_id": "test-mlp", "locked": true, "points": 4, "schema_version": 3, "solution": false}
mlp = MLP(3, rng=0)
x = np.random.default_rng(0).standard_normal((2, 5, 3)).astype(np.float32)
out = mlp(Tensor(x))
assert out.shape == (2, 5, 3), f"(2, 5, 3) should stay (2, 5, 3), yours is {out.shape}"
alone = mlp(Tensor(x[1:, 4:])).data
assert np.allclose(out.data[1, 4], alone[0, 0], atol=1e-6), "the MLP works on each token alone"
middle = x[1, 4] @ mlp.up.weight.data.T + mlp.up.bias.data
bent = 0.5 * middle * (1 + np.tanh(math.sqrt(2 / math.pi) * (middle + 0.044715 * middle**3)))
assert np.allclose(out.data[1, 4], bent @ mlp.down.weight.data.T, atol=1e-5), "it should be down(gelu(up(x)))"
### BEGIN HIDDEN TESTS
mlp = MLP(2)
mlp.up, mlp.gelu, mlp.down = (lambda x: x + "u"), (lambda x: x + "g"), (lambda x: x + "d")
assert mlp.forward("x") == "xugd", "each of up, gelu and down is used once, in this order"
### END HIDDEN TESTS

# %% [markdown]
"""
## A block adds

A deep stack of layers has a problem, whatever the layers compute: each one replaces its input, and after a dozen there is little left of it. The remedy is the *residual* path (He et al. 2016, arXiv:1512.03385): a layer does not replace its input but *adds* to it, x + f(x). On the way back, the addition passes the gradient on unchanged, past every layer, down to the embeddings. Here is the standard deviation at the end of a stack of new MLPs when 1 goes in: without the residual path, and with it.
"""


# %%
def spread_after(depth, residual):
    rng = np.random.default_rng(0)
    x = Tensor(rng.standard_normal((50, 32)))
    for _ in range(depth):
        y = MLP(32, rng=rng)(x)
        x = x + y if residual else y
    return float(f"{x.data.std():.2g}")


{depth: (spread_after(depth, False), spread_after(depth, True)) for depth in (1, 4, 12)}

# %% [markdown]
r"""
A block makes two such additions, first attention and then the MLP. A LayerNorm stands in front of each, so that a layer always sees numbers of the same size, while the residual path itself is not normalised. This order, *pre-norm*, is GPT-2's (Radford et al. 2019, section 2.3). The original transformer normalised after the addition, and deep stacks of that kind need care in training (Xiong et al. 2020, arXiv:2002.04745).

$$x \leftarrow x + \text{attention}(\text{norm}_1(x)), \qquad x \leftarrow x + \text{mlp}(\text{norm}_2(x))$$

**Task (8 points).** Write `TransformerBlock.forward`. The second line uses the x of the first. Pass the mask to the attention. 2 lines.
"""


# %% nbgrader={"grade": false, "grade_id": "block", "locked": false, "schema_version": 3, "solution": true}
#| export
class TransformerBlock(Module):
    """(B, T, C) -> (B, T, C): causal attention, then the MLP, each added to what came in (pre-norm)."""

    def __init__(self, embed_dim: int, num_heads: int, rng: np.random.Generator | int | None = None):
        rng = np.random.default_rng(rng)
        self.norm1 = LayerNorm(embed_dim)
        self.attention = MultiHeadAttention(embed_dim, num_heads, causal=True, rng=rng)
        self.norm2 = LayerNorm(embed_dim)
        self.mlp = MLP(embed_dim, rng=rng)

    def forward(self, x: Tensor, mask: ArrayLike | None = None) -> Tensor:
        """(B, T, C) -> (B, T, C). mask: floats added to the scores, broadcastable to (B, H, T, T)."""
        ### BEGIN SOLUTION
        x = x + self.attention(self.norm1(x), mask)
        return x + self.mlp(self.norm2(x))
        ### END SOLUTION


# %% [markdown]
"""
With stand-ins you can do the sum in your head: both norms multiply by 10, the attention adds 1, the MLP adds 2. From x = 3: 3 + (30 + 1) = 34, and then 34 + (340 + 2).
"""

# %%
block = TransformerBlock(4, 2, rng=0)
block.norm1 = block.norm2 = lambda x: 10 * x
block.attention, block.mlp = (lambda x, mask: x + 1), (lambda x: x + 2)
block.forward(3)

# %% nbgrader={"grade": true, "grade_id": "test-block", "locked": true, "points": 8, "schema_version": 3, "solution": false}
block = TransformerBlock(4, 2, rng=0)
block.norm1, block.norm2 = (lambda x: 10 * x), (lambda x: 100 * x)
block.attention = lambda x, mask=None: x + (1 if mask is None else mask)
block.mlp = lambda x: x + 2
got = block.forward(3)
assert got != 3 + 31 + 302, "the second addition should start from the result of the first"
assert got != 31 + 3102, "the attention should be added to what came in, not replace it"
assert got != 34 + 342, "the MLP has a norm of its own, norm2"
assert got != 14200, "the norms belong before attention and MLP, not after the additions"
assert got == 34 + 3402, f"3 + (30 + 1) = 34, then 34 + (3400 + 2) = 3436; yours is {got}"
assert block.forward(3, 7) == 40 + 4002, "the mask should reach the attention"
### BEGIN HIDDEN TESTS
for x, a, m in ((0.5, 2.0, -1.0), (-3.0, 0.25, 4.0)):
    block.norm1, block.norm2 = (lambda x: x - 1), (lambda x: x * x)
    block.attention, block.mlp = (lambda x, mask=None, a=a: a * x), (lambda x, m=m: m * x)
    first = x + a * (x - 1)
    assert abs(block.forward(x) - (first + m * first * first)) < 1e-9, f"wrong for x = {x}"
### END HIDDEN TESTS

# %% [markdown]
"""
## GPT-2

Here is the whole model. Each token becomes its row of the token embedding plus the row of its position in the position embedding; then come L blocks, a last LayerNorm, and the logits. The logits are the dot products of each vector with the embedding of every token of the vocabulary. So the same table is used at the input and at the output, which is called *weight tying* (Press and Wolf 2017, arXiv:1608.05859): a token is a likely next one if its embedding points in the direction of the last vector. Tying saves V · C weights: 50,257 · 768, or 38.6 million, in the smallest GPT-2.

The constructor is given, and with it two decisions. The weights start as normal random numbers with a standard deviation of 0.02, except in the layers that write into the residual path, two in each block: theirs is divided by √(2L), because so many of them are added up (Radford et al. 2019, section 2.3). And the model starts in `eval()`, ready to write.

Saving and loading are given too. `save_pretrained(folder)` writes the model as a folder with the names and shapes that other software uses for GPT-2, so that the transformers library opens what you trained here; `from_pretrained(folder)` opens such a folder, including the published GPT-2. Both need one more library, safetensors (`pip install -e ".[llm]"`); nothing else in this module does.

Besides the tokens, `hidden_states` takes the position where they begin. A text is usually read from position 0, but a learned position is only a row of a table, and you may ask whether a sentence reads the same at position 0 and at position 40. After the training you will.

**Task (8 + 4 points).**

- `hidden_states(tokens, start_pos=0)`: the checks are given. Embed the tokens and the positions `start_pos` to `stop - 1`, add them ((B, T, C) and (T, C) broadcast), go through the blocks and the last norm. About 4 lines.
- `logits(hidden)`: (…, C) to (…, V) with the token embedding's weight, (V, C), and no bias. Call `linear(x, weight)` of module 03 through `apply`. 1 line.
"""


# %% nbgrader={"grade": false, "grade_id": "gpt", "locked": false, "schema_version": 3, "solution": true}
#| export
class GPT(LanguageModel):
    """GPT-2 (Radford et al. 2019): pre-norm blocks, learned positions, output tied to the token embedding."""

    def __init__(
        self,
        vocab_size: int,
        embed_dim: int,
        num_layers: int,
        num_heads: int,
        max_seq_len: int = 1024,
        *,
        seed: np.random.Generator | int | None = None,
    ):
        """seed: of the random weights; the same seed gives the same model.

        Raises ValueError if a size is below 1 or embed_dim is not divisible by num_heads, TypeError if a size
        is not a whole number.
        """
        self.vocab_size = whole_number("vocab_size", vocab_size, 1)
        self.embed_dim = whole_number("embed_dim", embed_dim, 1)
        self.num_layers = whole_number("num_layers", num_layers, 1)
        self.num_heads = whole_number("num_heads", num_heads, 1)
        self.max_seq_len = whole_number("max_seq_len", max_seq_len, 1)
        if embed_dim % num_heads:
            raise ValueError(f"embed_dim {embed_dim} is not divisible by num_heads {num_heads}")
        rng = np.random.default_rng(seed)
        self.token_embedding = Embedding(vocab_size, embed_dim, rng=rng)
        self.position_embedding = Embedding(max_seq_len, embed_dim, rng=rng)
        self.blocks = [TransformerBlock(embed_dim, num_heads, rng=rng) for _ in range(num_layers)]
        self.norm = LayerNorm(embed_dim)
        self.initialise(rng)
        self.eval()

    def initialise(self, rng: np.random.Generator) -> None:
        """Weights N(0, 0.02), smaller by sqrt(2L) where they add to the residual path; biases 0, norms 1."""
        for name, p in self.named_parameters():
            if p.ndim == 2:
                rng.standard_normal(out=p.data, dtype=np.float32)
                residual = name.endswith(("out_proj.weight", "down.weight"))
                p.data *= 0.02 / math.sqrt(2 * self.num_layers) if residual else 0.02

    @classmethod
    def from_pretrained(cls, folder: str | Path) -> "GPT":
        """A folder with a GPT-2 in Hugging Face's layout, config.json and safetensors -> the model.

        Raises FileNotFoundError, ValueError for damaged files and other models, ModuleNotFoundError without
        the [llm] extra.
        """
        from tinytorch.pretrained.weights import load_gpt_folder

        return load_gpt_folder(cls, folder)

    def save_pretrained(self, folder: str | Path) -> None:
        """Write such a folder, completely or not at all. ModuleNotFoundError without the [llm] extra."""
        from tinytorch.pretrained.weights import save_gpt_folder

        save_gpt_folder(self, folder)

    def hidden_states(self, tokens: ArrayLike, start_pos: int = 0) -> Tensor:
        """(B, T) ints at positions start_pos.. -> (B, T, C): what each token has gathered, for `logits`.

        Raises ValueError or TypeError for invalid tokens (see `check_tokens`) or more than max_seq_len.
        """
        tokens = check_tokens(tokens, self.vocab_size)
        stop = check_stop(start_pos, tokens.shape[1], self.max_seq_len)
        ### BEGIN SOLUTION
        x = self.token_embedding(tokens) + self.position_embedding(np.arange(start_pos, stop))
        for block in self.blocks:
            x = block(x)
        return self.norm(x)
        ### END SOLUTION

    def logits(self, hidden: Tensor) -> Tensor:
        """(..., C) -> (..., V): the token embedding read the other way."""
        ### BEGIN SOLUTION
        return apply(linear, hidden, self.token_embedding.weight)
        ### END SOLUTION


# %% [markdown]
"""
A new model knows nothing, so all 50 tokens of this one should be about equally likely, and its loss should be near ln 50 = 3.91. This is worth checking every time: a much larger number means that the initial weights are too large.
"""

# %%
model = GPT(vocab_size=50, embed_dim=32, num_layers=2, num_heads=4, max_seq_len=16, seed=0)
tokens = np.random.default_rng(0).integers(0, 50, (4, 17))
CrossEntropyLoss()(model(tokens[:, :-1]), tokens[:, 1:]).item()

# %% nbgrader={"grade": true, "grade_id": "test-hidden-states", "locked": true, "points": 8, "schema_version": 3, "solution": false}
model = GPT(vocab_size=7, embed_dim=4, num_layers=3, num_heads=2, max_seq_len=9, seed=1)
model.norm = lambda x: x  # stand-ins: this test is about what hidden_states does with its parts
model.blocks = [lambda x: x * 2, lambda x: x + 1, lambda x: x * 3]
words, places = model.token_embedding.weight.data, model.position_embedding.weight.data
tokens = np.array([[3, 0, 6], [1, 1, 5]])
got = model.hidden_states(tokens)
assert got.shape == (2, 3, 4), f"2 texts of 3 tokens, 4 wide: (2, 3, 4), yours is {got.shape}"
want = 3 * (2 * (words[1] + places[1]) + 1)
assert not np.allclose(got.data[1, 1], 3 * (2 * words[1] + 1)), "where is the position embedding?"
assert np.allclose(got.data[1, 1], want, atol=1e-6), (
    "embed token and position, add, go through the blocks in order"
)
got = model.hidden_states(tokens, start_pos=4)
want = 3 * (2 * (words[5] + places[6]) + 1)
assert np.allclose(got.data[1, 2], want, atol=1e-6), "with start_pos 4, the third token is at position 6"
### BEGIN HIDDEN TESTS
model.norm = lambda x: x - 5
got = model.hidden_states(tokens, 6).data
for b, t in np.ndindex(2, 3):
    want = 3 * (2 * (words[tokens[b, t]] + places[6 + t]) + 1) - 5
    assert np.allclose(got[b, t], want, atol=1e-6), (
        f"wrong for text {b}, token {t}: is the last norm applied?"
    )
assert np.allclose(
    model.hidden_states(tokens[:, :1]).data[0, 0], 3 * (2 * (words[3] + places[0]) + 1) - 5, atol=1e-6
)
### END HIDDEN TESTS

# %% nbgrader={"grade": true, "grade_id": "test-logits", "locked": true, "points": 4, "schema_version": 3, "solution": false}
model = GPT(vocab_size=7, embed_dim=4, num_layers=1, num_heads=2, max_seq_len=9, seed=1)
hidden = np.random.default_rng(2).standard_normal((2, 3, 4)).astype(np.float32)
got = model.logits(Tensor(hidden))
assert got.shape == (2, 3, 7), f"7 tokens in the vocabulary: (2, 3, 7), yours is {got.shape}"
want = hidden[1, 2] @ model.token_embedding.weight.data[5]
assert np.allclose(got.data[1, 2, 5], want, atol=1e-6), (
    "a logit is the dot product of the vector and the token's embedding"
)
### BEGIN HIDDEN TESTS
for place in np.ndindex(2, 3, 7):
    want = sum(
        float(h) * float(w)
        for h, w in zip(hidden[place[:2]], model.token_embedding.weight.data[place[2]], strict=True)
    )
    assert abs(got.data[place] - want) < 1e-5, f"wrong at {place}"
model.token_embedding.weight.data[...] *= 2
assert np.allclose(model.logits(Tensor(hidden)).data, 2 * got.data, atol=1e-5), (
    "the output is tied to the embedding"
)
### END HIDDEN TESTS

# %% [markdown]
"""
## How large is GPT-2?

The paper names its four models 117M, 345M, 762M and 1542M (Radford et al. 2019, table 2); the files that its authors published are called 124M, 355M, 774M and 1558M. Which is right? Count.

**Task (4 points).** Write `count_parameters(vocab_size, embed_dim, num_layers, max_seq_len)`. With C the width, each block has two LayerNorms of 2C numbers; attention with four layers of C² + C; and the MLP with C · 4C + 4C going up and 4C · C + C coming down. Add the two embeddings and the last LayerNorm. The tied output adds nothing, and the number of heads does not matter. About 4 lines.
"""


# %% nbgrader={"grade": false, "grade_id": "count-parameters", "locked": false, "schema_version": 3, "solution": true}
#| export
def count_parameters(vocab_size: int, embed_dim: int, num_layers: int, max_seq_len: int = 1024) -> int:
    """-> the number of weights of a GPT of these sizes; the tied output is not counted twice."""
    ### BEGIN SOLUTION
    C = embed_dim
    attention = 4 * (C * C + C)
    mlp = (C * 4 * C + 4 * C) + (4 * C * C + C)
    block = 2 * 2 * C + attention + mlp
    return (vocab_size + max_seq_len) * C + num_layers * block + 2 * C
    ### END SOLUTION


# %%
[count_parameters(50257, width, depth) for width, depth in ((768, 12), (1024, 24), (1280, 36), (1600, 48))]

# %% nbgrader={"grade": true, "grade_id": "test-count-parameters", "locked": true, "points": 4, "schema_version": 3, "solution": false}
got = count_parameters(50257, 768, 12)
assert got != 124_439_808 + 50257 * 768, "the output is tied to the token embedding: do not count it twice"
assert got == 124_439_808, f"the smallest GPT-2 has 124,439,808 parameters, you count {got:,}"
assert count_parameters(1, 1, 1, 1) == 29, (
    f"all sizes 1: 2 + 4 + 8 + 13 + 2 = 29, you count {count_parameters(1, 1, 1, 1)}"
)
### BEGIN HIDDEN TESTS
for sizes, want in (
    ((50257, 1024, 24, 1024), 354_823_168),
    ((50257, 1280, 36, 1024), 774_030_080),
    ((50257, 1600, 48, 1024), 1_557_611_200),
    ((65, 12, 3, 17), 6_660),
):
    assert count_parameters(*sizes) == want, (
        f"{sizes} has {want:,} parameters, you count {count_parameters(*sizes):,}"
    )
### END HIDDEN TESTS

# %% [markdown]
"""
The files are right: the counts in the paper are too small. And a formula should be checked against the thing itself; these two numbers must be equal.
"""

# %%
small = GPT(vocab_size=50, embed_dim=32, num_layers=2, num_heads=4, max_seq_len=16)
count_parameters(50, 32, 2, 16), sum(p.size for p in small.parameters())

# %% [markdown]
"""
## Training

The targets are the text itself, shifted by one: the model reads tokens 0 to T − 1, and at each position it must predict the next, tokens 1 to T. One pass over T tokens is T exercises at once, and the causal mask makes sure that none can see its answer.

**Task (4 points).** Write `next_token_loss(model, tokens)`: (B, T + 1) tokens to the mean cross-entropy, a scalar Tensor. The model reads all but the last token of each row; the targets are all but the first. 1 line.
"""


# %% nbgrader={"grade": false, "grade_id": "next-token-loss", "locked": false, "schema_version": 3, "solution": true}
#| export
def next_token_loss(model: LanguageModel, tokens: ArrayLike) -> Tensor:
    """(B, T + 1) ints -> scalar: the mean cross-entropy, in nats, of each token given those before it."""
    tokens = as_array(tokens)
    if tokens.ndim != 2 or tokens.shape[1] < 2:
        raise ValueError(f"to predict a token takes one before it: (B, 2) at least, got shape {tokens.shape}")
    ### BEGIN SOLUTION
    return CrossEntropyLoss()(model(tokens[:, :-1]), tokens[:, 1:])
    ### END SOLUTION


# %% [markdown]
"""
The bigram model knows that "and" comes after "sun" (almost no loss), and gives the rain one chance in four: ln 4 = 1.386. What is the mean of the two?
"""

# %%
next_token_loss(weather, [[0, 2, 1]]).item()

# %% nbgrader={"grade": true, "grade_id": "test-next-token-loss", "locked": true, "points": 4, "schema_version": 3, "solution": false}
table = np.log(np.array([[0.1, 0.2, 0.7], [0.6, 0.3, 0.1], [0.25, 0.5, 0.25]], np.float32))


def look_up(tokens):
    return Tensor(table[np.asarray(tokens)])


loss = next_token_loss(look_up, np.array([[0, 2, 1]]))
assert isinstance(loss, Tensor) and loss.size == 1, "the loss should be a scalar Tensor"
want = -(math.log(0.7) + math.log(0.5)) / 2
assert np.isclose(loss.item(), want), (
    f"2 after 0 has 0.7 and 1 after 2 has 0.5: {want:.4f}, yours {loss.item():.4f}"
)
### BEGIN HIDDEN TESTS
tokens = np.random.default_rng(4).integers(0, 3, (5, 8))
want = -np.mean([table[row[i], row[i + 1]] for row in tokens for i in range(7)])
assert np.isclose(next_token_loss(look_up, tokens).item(), want), "wrong for 5 rows of 8 tokens"
### END HIDDEN TESTS

# %% [markdown]
"""
Here is a sentence to learn by heart, with one token per character. The model is tiny, with a width of 32 and 2 layers, and reads the whole sentence 60 times.
"""

# %%
from tinytorch.core.autograd import enable_autograd
from tinytorch.core.optimizers import AdamW
from tinytorch.text.tokenization import CharTokenizer

SENTENCE = "a small seed drinks the rain and wakes up as a green forest. "
tokenizer = CharTokenizer(SENTENCE)


def train(model, tokens, steps):
    """-> the loss of each step."""
    enable_autograd()
    optimizer = AdamW(model.parameters(), lr=0.01)
    losses = []
    for _ in range(steps):
        loss = next_token_loss(model, tokens)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


model = GPT(tokenizer.vocab_size, embed_dim=32, num_layers=2, num_heads=4, max_seq_len=128, seed=0)
losses = train(model.train(), np.array([tokenizer.encode(SENTENCE)]), steps=60)
model.eval()
math.log(tokenizer.vocab_size), losses[0], losses[-1]

# %% [markdown]
"""
The loss starts near the logarithm of the vocabulary size, as it should, and falls to nearly nothing: with one sentence to learn, every next character is certain.
"""


# %%
def plot_losses(losses):
    import matplotlib.pyplot as plt

    plt.plot(losses)
    plt.axhline(math.log(tokenizer.vocab_size), linestyle="--", color="gray", label="ln(vocabulary)")
    plt.gca().set(xlabel="step", ylabel="loss (nats per character)", ylim=(0, None))
    plt.legend()
    plt.show()


# %%
if "get_ipython" in globals():
    plot_losses(losses)

# %% [markdown]
"""
Let it continue from "a small": greedily, drawn at temperature 1, and drawn at temperature 4.
"""


# %%
def continued(text, **settings):
    return tokenizer.decode(model.generate([tokenizer.encode(text)], 40, **settings)[0])


[continued("a small", temperature=t, rng=1) for t in (0, 1, 4)]

# %% [markdown]
"""
The same as a stream: each character is printed as soon as it is chosen.
"""

# %%
prompt = np.array([tokenizer.encode("a small seed")])
for token in stream(model.decoder(1, 60), prompt, 48, temperature=0):
    print(tokenizer.decode(token), end="")

# %% [markdown]
"""
Now the question from above: does the sentence read the same at another position? Here is its loss when the first character is at position 0, as in training, at position 1, and at position 60. A guess without any knowledge costs ln 20 = 3.0.
"""


# %%
def loss_at(start_pos):
    tokens = np.array([tokenizer.encode(SENTENCE)])
    logits = model.logits(model.hidden_states(tokens[:, :-1], start_pos=start_pos))
    return round(CrossEntropyLoss()(logits, tokens[:, 1:]).item(), 2)


{start_pos: loss_at(start_pos) for start_pos in (0, 1, 60)}

# %% [markdown]
"""
Moved by a single position, the sentence that the model knows by heart costs more than a blind guess. It did not learn that *seed* comes after *a small*; it learned that *s* comes at position 8, which was just as true in its training. And the positions that no training text has reached are still the random numbers that they began with. This is why training texts are cut at random places, why GPT-2 cannot read more than 1,024 tokens, and one reason why newer models have no table of positions but turn queries and keys by an angle.

## Rows of different lengths

All rows of a batch have the same length, but texts do not. The short ones are filled up with *padding*: tokens that mean nothing and must change nothing. Should it go in front or at the end? The loop appends one column to all rows at each step, so all rows must end at the same column: the padding goes in front.

That requires two corrections. In a row with 12 pad columns the first token is in column 12, but its position is still 0, and you have just seen what a wrong position costs. So the position of a token is its column minus the row's padding. And no token may look at a pad column: a mask of shape (B, 1, 1, S) is added to the scores of every layer, 0 for a real column and −10³⁰ for a pad column, which the softmax turns into a share of exactly 0. (Minus infinity would do as well for the real tokens. But a pad column sees only pad columns, and attention that does not allow for a query without any key would return NaN there.)

Your model does not have to change for this. `Padding` wraps two methods that it has anyway: the `forward` of the position embedding, so that it is called with positions instead of columns, and the `forward` of each block, to which it passes the mask. `generate` with `lengths`, the number of real tokens in each row, puts the wrappers on and takes them off again. If another thread uses the same model in the meantime, this padding does not affect it: `PADDED` tells each thread which padding it is reading with. All of this is given.
"""


# %%
#| export
class Padding:
    """Wraps a model's positions and blocks while it reads one text with pad columns in front.

    padding: (B,) ints, how many columns at the front of each row are to be hidden.
    """

    def __init__(self, model: LanguageModel, padding: np.ndarray):
        if not all(hasattr(model, name) for name in ("blocks", "position_embedding")):
            raise TypeError(f"padding needs a model with blocks and positions, got {type(model).__name__}")
        self.padding = np.asarray(padding)[:, None]
        pads = np.arange(model.max_seq_len) < self.padding
        self.mask = np.where(pads, np.float32(-1e30), np.float32(0))[:, None, None]
        self.seen = 0  # columns read up to now
        self.wraps: list[tuple[Any, Callable]] = [(model.position_embedding, self.position)]
        self.wraps += [(block, self.block) for block in model.blocks]

    def position(self, inner: Callable, columns: np.ndarray) -> Tensor:
        """(T,) columns, the newest last -> (B, T, C): the embedding of each row's own positions."""
        if PADDED.get() is not self:
            return inner(columns)
        self.seen = int(columns[-1]) + 1
        return inner(np.maximum(columns - self.padding, 0))

    def block(
        self, inner: Callable, x: Tensor, mask: ArrayLike | None = None, *where: Any, **named: Any
    ) -> Tensor:
        """(B, T, C) -> (B, T, C), with the pad columns among the S seen hidden.

        where, named: what else the model passes to its blocks, such as a rotation.
        """
        if PADDED.get() is not self:
            return inner(x, mask, *where, **named)
        pads = self.mask[..., : self.seen]
        return inner(x, pads if mask is None else mask + pads, *where, **named)


@contextmanager
def padded(model: LanguageModel, padding: np.ndarray) -> Iterator[None]:
    """Inside the block, `model` reads one text, (B, T), that begins with padding[b] pad columns in row b.

    Afterwards no trace is left in any object. If the model has read anything, a new text is begun, since
    these columns cannot be continued without their padding.
    """
    front = Padding(model, padding)
    for module, wrapper in front.wraps:
        module.wrap("forward", wrapper)
    before = PADDED.set(front)
    try:
        yield
    finally:
        PADDED.reset(before)
        for module, wrapper in front.wraps:
            module.unwrap("forward", wrapper)
        if front.seen:
            model.decoder(len(front.padding), 1)


# %% [markdown]
"""
The prompt may be padded on either side, with any numbers: they are replaced by token 0 before the model sees them, and kept in the result. Rotating a row, so that what leaves at the end comes in at the front, turns one kind of padding into the other.
"""


# %%
#| export
def roll_rows(tokens: np.ndarray, steps: np.ndarray) -> np.ndarray:
    """(B, T), (B,) -> (B, T): row b rotated by steps[b] columns to the right."""
    width = tokens.shape[1]
    return np.take_along_axis(tokens, (np.arange(width) - steps[:, None]) % width, axis=1)


def check_lengths(lengths: ArrayLike, pad_side: str, shape: tuple) -> np.ndarray:
    """-> lengths as (B,) ints, for a prompt of shape (B, T). Raises ValueError or TypeError."""
    if pad_side not in ("left", "right"):
        raise ValueError(f"pad_side should be 'left' or 'right', got {pad_side!r}")
    if lengths is None:
        raise ValueError(f"pad_side {pad_side!r} says where the padding is; lengths, how much, is missing")
    lengths, (B, T) = as_array(lengths), shape
    if lengths.shape != (B,):
        raise ValueError(f"a prompt of {B} rows takes {B} lengths, shape ({B},), got shape {lengths.shape}")
    if lengths.dtype.kind not in "iu":
        raise TypeError(f"lengths should be integers, got {lengths.dtype}")
    for row, length in enumerate(lengths.tolist()):
        if not 1 <= length <= T:
            raise ValueError(f"row {row} has length {length}, it should be 1 to {T}, the prompt's columns")
    return lengths.astype(np.int64)


def generate_ragged(
    generate: Callable,
    model: LanguageModel,
    prompt: ArrayLike,
    lengths: ArrayLike,
    pad_side: str,
    max_new_tokens: int,
    **options: Any,
) -> np.ndarray:
    """(B, T) ints -> (B, T + n) ints: rows of different lengths, each written as if it were alone.

    generate: called with a prompt, max_new_tokens and the options, it lets `model` write.
    lengths: (B,) ints from 1 to T, the real tokens of each row. The other columns, at its end for pad_side
        "right" and at its front for "left", hold any integers; the model never sees them, and they are kept:
        prompt, new, pad for "right"; pad, prompt, new for "left".
    options: as for `generate`; the longest row and the new tokens must fit into max_seq_len. rng gives one
        number per row and token, so a row gets the tokens that it would get alone with its share of them.
    Raises, before any work, as `generate`, ValueError or TypeError for invalid lengths or pad_side, and
    TypeError for a model without blocks and positions.
    """
    prompt = as_array(prompt)
    T = check_tokens(np.zeros_like(prompt), model.vocab_size).shape[-1]  # of any tokens: shape and type
    padding = T - check_lengths(lengths, pad_side, prompt.shape)
    prompt = prompt.astype(np.int64)
    if pad_side == "right":
        prompt = roll_rows(prompt, padding)  # the padding that follows is now in front
    spare = padding.min()  # columns that are padding in every row need not be read
    tokens = np.where(np.arange(T) < padding[:, None], 0, prompt)[:, spare:]
    with padded(model, padding - spare):
        text = generate(tokens, max_new_tokens, **options)
    text = np.concatenate([prompt, text[:, T - spare :]], axis=1)
    return roll_rows(text, -padding) if pad_side == "right" else text


# %% [markdown]
"""
Put two beginnings of the sentence, 7 and 19 characters long, into one batch: first padded at the end with −1, with their lengths; then padded in front with spaces, without lengths.
"""


# %%
def together(beginnings, new):
    rows = [tokenizer.encode(text) for text in beginnings]
    lengths = [len(row) for row in rows]
    prompt = np.array([row + [-1] * (max(lengths) - len(row)) for row in rows])
    told = model.generate(prompt, new, temperature=0, lengths=lengths)
    told = [tokenizer.decode(row[: length + new]) for row, length in zip(told, lengths, strict=True)]
    prompt = [tokenizer.encode(text.rjust(max(lengths))) for text in beginnings]
    return told, [tokenizer.decode(row).strip() for row in model.generate(prompt, new, temperature=0)]


together(["a small", "a small seed drinks"], 16)

# %% [markdown]
"""
With the lengths, each row continues as it would alone. Without them the model reads twelve spaces as text in the first row, and its words at positions where they never were in training.

## What it costs to write

One last thing to measure is the work. A wrapper in front of `hidden_states` (module 03) records how many tokens the model reads while it writes 20 from a prompt of one.
"""

# %%
read = []


def note(inner, tokens):
    read.append(tokens.shape[1])
    return inner(tokens)


model.wrap("hidden_states", note)
model.generate([[0]], 20, temperature=0)
model.unwrap("hidden_states", note)
read, sum(read)

# %% [markdown]
"""
The model reads 1 + 2 + … + 20 = 210 tokens to write 20. For the twentieth, it read nineteen that it had read before, in every layer, with the same result: nothing that comes later can change what an earlier token computes, as you saw in module 12. A text twice as long costs about four times as much reading. Keep the number 210 in mind.

## In your own words

**Question 1 (5 points).** A block computes x + f(norm(x)). Suppose it computed norm(x) + f(norm(x)) instead. After twelve blocks, what has become of the embedding that went in, and of the gradient on its way back? Compare with the original. Four to six sentences.
"""

# %% [markdown] nbgrader={"grade": true, "grade_id": "why-residual", "locked": false, "points": 5, "schema_version": 3, "solution": true}
"""
Your answer here.
"""

# %% [markdown]
"""
**Question 2 (5 points).** You write a chat program that must quote a phone number correctly and also tell jokes. Which temperature, top-k and top-p would you use for each, and why? For each of the three settings, give one case where it is the wrong tool on its own. Four to six sentences.
"""

# %% [markdown] nbgrader={"grade": true, "grade_id": "which-sampling", "locked": false, "points": 5, "schema_version": 3, "solution": true}
"""
Your answer here.
"""

# %% [markdown]
"""
## You can now

build GPT-2 exactly, train it, and let it write, with the sampling that suits the text and a loop that works for any model.

Two exercises. First, train the model on its sentence at a random position in each step (`hidden_states` with a random `start_pos`) and look at the three losses again: what did it have to learn this time? Second, remove the two additions from the block, train with the same steps and seed, and plot both losses in one picture.

Next: in module 14 you build the instruments. How long does a step take, how much memory does it move, and what is the limit of the machine? They will tell you what the number 210 costs, and after that you do something about it.
"""
