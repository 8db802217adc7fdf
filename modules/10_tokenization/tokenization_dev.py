# %% [markdown]
"""
# Module 10: Tokenization

A language model never sees a letter. It sees rows of a table, and a number chooses the row. The tokenizer turns "How are you?" into numbers before the model runs, and numbers into "I am well." afterwards. It is trained before the model and frozen when the model starts to learn, and many of the odd things that chat models do with spelling, spaces, digits or rare languages begin here.

After this module you will be able to

- turn text into ids and back, one id per character, and say where that scheme breaks;
- train a byte-level byte pair encoding (BPE), the scheme of GPT-2, on a text of your own;
- make the training fast without changing one merge that it learns;
- encode any Unicode text with it, and decode it to exactly the same text;
- keep special tokens such as `<|end|>` out of reach of the person who types the text;
- print a model's answer token by token without ever printing half a character.

You need Python strings, bytes and dictionaries; no earlier module is used. The tokenizer is built from small functions, each graded alone: in the final grading a part runs with correct versions of the parts before it, so a mistake costs only the points of its own part.
"""

# %%
#| default_exp text.tokenization

# %%
#| export
import codecs
import json
import operator
import os
import re
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np

# %% [markdown]
"""
## One token per character

The simplest tokenizer numbers the characters of a text in sorted order. The text `"hello"` holds the four characters `e h l o`, so they get the ids 0, 1, 2, 3 and the word becomes `1 0 2 2 3`.

That is enough for a first language model, but it has two faults, which we will mend one after the other. It knows only the characters it was given. And its sequences are as long as the text, while the work of attention grows with the square of the length.

**Task (6 + 4 points).** The given constructor makes `self.vocabulary`, the list of characters, and `self.ids`, the dictionary from character to id. Write

- `encode(text)`: the list of ids. A character outside the vocabulary raises a `ValueError` that names the character and its position, because "unknown character" is no help in a text of a million. About 6 lines.
- `decode(ids)`: the text. An id outside 0 … V − 1 raises a `ValueError` that names the id and its position. Beware of Python's own rule for negative indices: `vocabulary[-1]` is a character, but -1 is not an id. About 6 lines.
"""


# %% nbgrader={"grade": false, "grade_id": "char-tokenizer", "locked": false, "schema_version": 3, "solution": true}
#| export
class CharTokenizer:
    """One token per character; the ids number the characters in sorted order."""

    def __init__(self, characters: Iterable[str]):
        """characters: a text, or any collection of single characters; repeats and order do not matter.

        Raises ValueError if there is none, or if an entry is longer than one character.
        """
        found = set(characters)
        for entry in found:
            if not isinstance(entry, str):
                raise TypeError(f"a vocabulary holds characters, not {type(entry).__name__}")
            if len(entry) != 1:
                raise ValueError(f"a vocabulary holds single characters, {entry!r} has {len(entry)}")
        if not found:
            raise ValueError("a vocabulary needs at least 1 character, this one has 0")
        self.vocabulary = sorted(found)
        self.ids = {character: i for i, character in enumerate(self.vocabulary)}

    @property
    def vocab_size(self) -> int:
        return len(self.vocabulary)

    def encode(self, text: str) -> list[int]:
        """-> the id of each character. ValueError names the first unknown character and its position."""
        ### BEGIN SOLUTION
        ids = []
        for position, character in enumerate(text):
            if character not in self.ids:
                raise ValueError(f"character {character!r} at position {position} is not in the vocabulary")
            ids.append(self.ids[character])
        return ids
        ### END SOLUTION

    def decode(self, ids: Iterable[int]) -> str:
        """-> the text. ValueError names the first id that is outside the vocabulary and its position."""
        ### BEGIN SOLUTION
        characters = []
        for position, i in enumerate(ids):
            if not 0 <= i < len(self.vocabulary):
                raise ValueError(f"id {i} at position {position} is outside 0..{len(self.vocabulary) - 1}")
            characters.append(self.vocabulary[i])
        return "".join(characters)
        ### END SOLUTION


# %% [markdown]
"""
The sorted characters are `e h l o`. What are the ids of "hole"? Answer before you run the cell.
"""

# %%
CharTokenizer("hello").encode("hole")

# %% nbgrader={"grade": true, "grade_id": "test-char-encode", "locked": true, "points": 6, "schema_version": 3, "solution": false}
tokenizer = CharTokenizer("hello")
ids = tokenizer.encode("hello")
assert ids == [1, 0, 2, 2, 3], f"'hello' over the characters e h l o is [1, 0, 2, 2, 3], yours is {ids}"
assert tokenizer.encode("") == [], "an empty text has no tokens"
try:
    tokenizer.encode("help")
except ValueError as error:
    assert "'p'" in str(error), f"the message should name the character 'p', yours says: {error}"
    assert "3" in str(error), f"the message should name the position 3, yours says: {error}"
else:
    raise AssertionError("'p' is not in the vocabulary of 'hello': encode should raise a ValueError")
### BEGIN HIDDEN TESTS
text = "Zürich, 3 € für 😀 und\nλόγος"
order = sorted(set(text))
assert CharTokenizer(text).encode(text) == [order.index(c) for c in text], "wrong ids beyond ASCII"
try:
    CharTokenizer("abc").encode("aéb")
except ValueError as error:
    assert "'é'" in str(error) and "1" in str(error), f"wrong character or position: {error}"
else:
    raise AssertionError("an unknown character inside the text was accepted")
### END HIDDEN TESTS

# %% nbgrader={"grade": true, "grade_id": "test-char-decode", "locked": true, "points": 4, "schema_version": 3, "solution": false}
tokenizer = CharTokenizer("hello")
text = tokenizer.decode([1, 3, 2, 0])
assert text == "hole", f"1 3 2 0 over the characters e h l o is 'hole', yours is {text!r}"
for wrong in (4, -1):
    try:
        raised = tokenizer.decode([1, 3, wrong])
    except (ValueError, IndexError) as error:
        raised = error
    assert isinstance(raised, ValueError), (
        f"4 characters have the ids 0 to 3: {wrong} should raise a ValueError, yours gave {raised!r}"
    )
    assert str(wrong) in str(raised) and "2" in str(raised), (
        f"the message should name the id {wrong} and its position 2, yours says: {raised}"
    )
### BEGIN HIDDEN TESTS
assert tokenizer.decode([]) == "", "no ids decode to an empty text"
text = "Zürich, 3 € für 😀"
order = sorted(set(text))
assert CharTokenizer(text).decode([order.index(c) for c in text]) == text, "wrong text beyond ASCII"
### END HIDDEN TESTS

# %% [markdown]
"""
## Bytes: 256 tokens that can write everything

Unicode has more than 150,000 characters and keeps growing, so a vocabulary of characters taken from a text is never complete. But UTF-8 stores each of them as one to four *bytes*, and there are only 256 bytes. With the bytes as tokens, no text is ever unknown. The next cell shows the price. English letters cost one byte each, `é` two, `€` three, and an emoji four.
"""

# %%
[(character, list(character.encode("utf-8"))) for character in "aé€😀"]

# %% [markdown]
"""
One kind of `str` has no UTF-8 form at all: a *lone surrogate*, half of a pair that an old encoding used. It is not a character, and usually comes from broken input. We refuse it with an error that says where it is. This helper is given, and so is `check_ids`, its counterpart for the way back.
"""


# %%
#| export
def to_bytes(text: str) -> bytes:
    """-> the UTF-8 bytes of text. ValueError for a lone surrogate; TypeError if it is not a str."""
    if not isinstance(text, str):
        raise TypeError(f"text must be a str, not {type(text).__name__}")
    try:
        return text.encode("utf-8")
    except UnicodeEncodeError as error:
        code = f"U+{ord(text[error.start]):04X}"
        raise ValueError(
            f"position {error.start} of the text holds the lone surrogate {code}, which is not a character"
        ) from None


def check_ids(ids: Iterable[int], vocab_size: int) -> list[int]:
    """-> ids as plain ints. ValueError if one is outside 0..vocab_size - 1; TypeError if not ints."""
    array = np.asarray(ids if hasattr(ids, "__len__") else list(ids))
    if array.ndim != 1:
        raise ValueError(f"ids must have 1 axis, these have {array.ndim}")
    if array.size and array.dtype.kind not in "iu":
        raise TypeError(f"ids must be integers, not {array.dtype}")
    plain = array.tolist()
    for position, i in enumerate(plain):
        if not 0 <= i < vocab_size:
            raise ValueError(f"id {i} at position {position} is outside the vocabulary 0..{vocab_size - 1}")
    return plain


# %% [markdown]
"""
## Counting pairs

Bytes cover everything, but make long sequences: four ids for one emoji, and one for every English letter. The way back to short sequences is *byte pair encoding*, a compression scheme of Philip Gage (1994) that Sennrich, Haddow and Birch brought to machine translation ("Neural Machine Translation of Rare Words with Subword Units", ACL 2016, arXiv:1508.07909). Find the two tokens that stand next to each other most often, make one new token of them, and repeat until the vocabulary is as large as you want.

It starts with a count. The text comes as *words* (you will see below why), each a list of ids, and a word that occurs 5 times is kept once with the count 5: a text has far fewer different words than words.

**Task (6 points).** Write `count_pairs(words, counts)`. `words` is a list of lists of ids, `counts[n]` says how often `words[n]` occurs in the text. Return a `Counter` from each pair of neighbours to its number of occurrences in the whole text. Pairs may overlap: `7 7 7` holds the pair `(7, 7)` twice. About 5 lines; `pairwise` yields the pairs of neighbours in a sequence.
"""


# %% nbgrader={"grade": false, "grade_id": "count-pairs", "locked": false, "schema_version": 3, "solution": true}
#| export
def count_pairs(words: Sequence[Sequence[int]], counts: Sequence[int]) -> Counter:
    """-> Counter of the pairs of neighbours in a text in which words[n] occurs counts[n] times."""
    ### BEGIN SOLUTION
    pairs = Counter()
    for ids, count in zip(words, counts, strict=True):
        for pair in pairwise(ids):
            pairs[pair] += count
    return pairs
    ### END SOLUTION


# %% [markdown]
"""
These are the words of the example in Sennrich's paper: "low" 5 times, "lower" twice, "newest" 6 times, "widest" 3 times. The pair `e s` occurs in the last two, so its count must be 9. Find its ids, 101 and 115, in the result.
"""

# %%
count_pairs([list(b"low"), list(b"lower"), list(b"newest"), list(b"widest")], [5, 2, 6, 3])

# %% nbgrader={"grade": true, "grade_id": "test-count-pairs", "locked": true, "points": 6, "schema_version": 3, "solution": false}
pairs = count_pairs([[1, 2, 3], [2, 3]], [10, 4])
assert pairs[(2, 3)] == 14, (
    f"(2, 3) occurs 10 times in 1 2 3 and 4 times in 2 3: 14, you count {pairs[(2, 3)]}"
)
assert pairs[(1, 2)] == 10, f"(1, 2) is once in a word that occurs 10 times: 10, you count {pairs[(1, 2)]}"
assert (3, 2) not in pairs, "the last id of a word and the first of the next are not neighbours"
assert count_pairs([[7, 7, 7]], [1]) == {(7, 7): 2}, "7 7 7 holds the pair (7, 7) twice"
### BEGIN HIDDEN TESTS
assert count_pairs([[5], []], [3, 2]) == {}, "a word of one id has no pair"
words, counts = [[1, 2, 1, 2], [2, 1], [3, 3, 3, 3]], [2, 7, 5]
text = [ids for ids, count in zip(words, counts, strict=True) for _ in range(count)]
flat = [(ids[i], ids[i + 1]) for ids in text for i in range(len(ids) - 1)]
want = {pair: flat.count(pair) for pair in flat}
assert count_pairs(words, counts) == want, f"{words} occurring {counts} times hold {want}"
### END HIDDEN TESTS

# %% [markdown]
"""
## The best pair, and what to do about a tie

In the counts above two pairs lead with 9: `e s` and `s t`. Which of them wins matters little, but it must be the same on every machine and in every run. Otherwise two students who train on the same text get different vocabularies, and a model trained with one cannot read the other's ids.

**Task (6 points).** Write `best_pair(pair_counts)`: the pair with the largest count; if several share it, the smallest of them, as Python compares tuples. So `(101, 115)` wins against `(115, 116)`. About 2 lines.
"""


# %% nbgrader={"grade": false, "grade_id": "best-pair", "locked": false, "schema_version": 3, "solution": true}
#| export
def best_pair(pair_counts: Mapping[tuple[int, int], int]) -> tuple[int, int]:
    """-> the pair with the largest count; among equal counts the smallest pair."""
    ### BEGIN SOLUTION
    most = max(pair_counts.values())
    return min(pair for pair, count in pair_counts.items() if count == most)
    ### END SOLUTION


# %%
best_pair({(115, 116): 9, (101, 115): 9, (108, 111): 7})

# %% nbgrader={"grade": true, "grade_id": "test-best-pair", "locked": true, "points": 6, "schema_version": 3, "solution": false}
best = best_pair({(1, 2): 3, (8, 9): 5, (4, 4): 4})
assert best == (8, 9), f"(8, 9) has the largest count, 5; you chose {best}"
best = best_pair({(5, 1): 7, (2, 9): 7, (2, 3): 7, (1, 1): 6})
assert best == (2, 3), f"three pairs have the count 7, the smallest of them is (2, 3); you chose {best}"
### BEGIN HIDDEN TESTS
assert best_pair({(2, 3): 7, (2, 9): 7, (5, 1): 7}) == (2, 3), "the order of the dictionary must not matter"
assert best_pair({(300, 2): 4, (31, 255): 4}) == (31, 255), "pairs are compared as numbers, not as text"
assert best_pair({(9, 9): 1}) == (9, 9), "a single pair is the best one"
### END HIDDEN TESTS

# %% [markdown]
"""
## Merging a pair

The winner gets a new id, which from now on replaces the pair wherever it occurs.

**Task (8 points).** Write `merge_pair(ids, pair, new_id)`: a new list in which every occurrence of the pair is replaced by `new_id`, found from left to right. An id that is part of one match cannot be part of the next: `7 7 7` with the pair `(7, 7)` gives `[new_id, 7]`. The list passed in must stay as it is. About 9 lines; use an index that moves by 2 after a match and by 1 otherwise.
"""


# %% nbgrader={"grade": false, "grade_id": "merge-pair", "locked": false, "schema_version": 3, "solution": true}
#| export
def merge_pair(ids: Sequence[int], pair: tuple[int, int], new_id: int) -> list[int]:
    """-> a copy of ids with each occurrence of pair, from left to right, replaced by new_id."""
    ### BEGIN SOLUTION
    first, second = pair
    merged, i, last = [], 0, len(ids) - 1
    while i <= last:
        if i < last and ids[i] == first and ids[i + 1] == second:
            merged.append(new_id)
            i += 2
        else:
            merged.append(ids[i])
            i += 1
    return merged
    ### END SOLUTION


# %% [markdown]
"""
"banana" is `98 97 110 97 110 97`, and `(97, 110)` is "an". What is left, and how long is it?
"""

# %%
merge_pair(list(b"banana"), (97, 110), 256)

# %% nbgrader={"grade": true, "grade_id": "test-merge-pair", "locked": true, "points": 8, "schema_version": 3, "solution": false}
merged = merge_pair([1, 2, 3, 1, 2], (1, 2), 9)
assert merged == [9, 3, 9], f"1 2 3 1 2 with (1, 2) merged into 9 is [9, 3, 9], yours is {merged}"
merged = merge_pair([7, 7, 7], (7, 7), 9)
assert merged == [9, 7], f"the middle 7 is used up by the first match, so [9, 7]; yours is {merged}"
assert merge_pair([2, 1], (1, 2), 9) == [2, 1], "(1, 2) does not occur in 2 1: the order counts"
assert merge_pair([3, 1], (1, 2), 9) == [3, 1], "the last id has no right neighbour and stays"
ids = [1, 2]
merge_pair(ids, (1, 2), 9)
assert ids == [1, 2], "the list that was passed in must stay as it is"
### BEGIN HIDDEN TESTS
rng = np.random.default_rng(0)
for _ in range(200):
    ids = rng.integers(1, 4, size=rng.integers(0, 12)).tolist()
    pair = tuple(rng.integers(1, 4, size=2).tolist())
    want = [ord(c) for c in "".join(map(chr, ids)).replace("".join(map(chr, pair)), chr(256))]
    assert merge_pair(ids, pair, 256) == want, f"{ids} with {pair} merged into 256 is {want}"
### END HIDDEN TESTS

# %% [markdown]
"""
## Learning the merges

Training is now one loop: count, choose, merge, repeat. The result is the list of pairs in the order in which they were merged, and that list *is* the trained tokenizer. The first merge gets the id 256, the next 257, since 0 to 255 are the bytes.

**Task (8 points).** Write `learn_merges_slowly(word_counts, num_merges)`. `word_counts` is a dictionary from word (`bytes`) to count. Count all pairs anew in every round, and stop early when no pair is left. Return the list of pairs. About 9 lines.
"""


# %% nbgrader={"grade": false, "grade_id": "learn-merges-slowly", "locked": false, "schema_version": 3, "solution": true}
#| export
def learn_merges_slowly(word_counts: Mapping[bytes, int], num_merges: int) -> list[tuple[int, int]]:
    """-> at most num_merges pairs in the order learned, pair n becoming id 256 + n. Recounts every round."""
    ### BEGIN SOLUTION
    words = [list(word) for word in word_counts]
    counts = list(word_counts.values())
    merges = []
    while len(merges) < num_merges:
        pair_counts = count_pairs(words, counts)
        if not pair_counts:
            break
        pair = best_pair(pair_counts)
        words = [merge_pair(ids, pair, 256 + len(merges)) for ids in words]
        merges.append(pair)
    return merges
    ### END SOLUTION


# %% [markdown]
"""
Sennrich's words again. `e s` wins first and becomes 256; then `256 t` ("est", 9 times) becomes 257. After that `l o` and `o w` have 7 each, and the smaller pair wins: the third merge must be `(108, 111)`.
"""

# %%
PAPER_WORDS = {b"low": 5, b"lower": 2, b"newest": 6, b"widest": 3}
learn_merges_slowly(PAPER_WORDS, 4)


# %% nbgrader={"grade": true, "grade_id": "test-learn-merges-slowly", "locked": true, "points": 8, "schema_version": 3, "solution": false}
### BEGIN HIDDEN TESTS
def plain_count_pairs(words, counts):
    pairs = Counter()
    for ids, count in zip(words, counts, strict=True):
        for left, right in zip(ids[:-1], ids[1:], strict=True):
            pairs[left, right] += count
    return pairs


def plain_best_pair(pair_counts):
    return sorted(pair_counts, key=lambda pair: (-pair_counts[pair], pair))[0]


def plain_merge_pair(ids, pair, new_id):
    return [ord(c) for c in "".join(map(chr, ids)).replace("".join(map(chr, pair)), chr(new_id))]


# correct versions of the parts before this one, so that this part is graded alone
yours = count_pairs, best_pair, merge_pair
count_pairs, best_pair, merge_pair = plain_count_pairs, plain_best_pair, plain_merge_pair
### END HIDDEN TESTS
merges = learn_merges_slowly({b"low": 5, b"lower": 2, b"newest": 6, b"widest": 3}, 4)
assert merges[0] == (101, 115), f"the first merge is (101, 115), 'e s'; yours is {merges[0]}"
assert merges[1] == (256, 116), f"the second joins the new token 256 with t, (256, 116); yours is {merges[1]}"
assert merges == [(101, 115), (256, 116), (108, 111), (258, 119)], f"the four merges are wrong: {merges}"
merges = learn_merges_slowly({b"aaaa": 1}, 10)
assert merges == [(97, 97), (256, 256)], f"'aaaa' is one token after 2 merges, then stop; yours: {merges}"
### BEGIN HIDDEN TESTS
assert learn_merges_slowly({}, 5) == [], "without words there are no merges"
assert learn_merges_slowly({b"ab": 3, b"c": 9}, 0) == [], "no merges were asked for"
assert learn_merges_slowly({b"abc": 1, b"bcd": 3, b"ab": 2}, 3) == [(98, 99), (256, 100), (97, 98)]
count_pairs, best_pair, merge_pair = yours
### END HIDDEN TESTS

# %% [markdown]
"""
## The same merges, faster

Recounting is simple and slow: each round looks at every word, although most words have not changed. A merge of `e s` changes only the words that contain `e s`. So keep the counts, keep for every pair the set of words in which it may occur (its *homes*), and in each round visit only those words: subtract their old pairs from the counts and add their new ones.

**Task (10 points).** Write `learn_merges(word_counts, num_merges)`, which returns exactly what the slow one returns. For each home of the winner: subtract the word's old pairs, merge, add its new pairs, and enter the word as a home of each of them. Delete a count that has fallen to 0, or the loop will not know when to stop. About 18 lines; the first five are given.
"""


# %% nbgrader={"grade": false, "grade_id": "learn-merges", "locked": false, "schema_version": 3, "solution": true}
#| export
def learn_merges(word_counts: Mapping[bytes, int], num_merges: int) -> list[tuple[int, int]]:
    """-> the merges of learn_merges_slowly; each round visits only the words that contain the pair."""
    words = [list(word) for word in word_counts]
    counts = list(word_counts.values())
    pair_counts = count_pairs(words, counts)
    homes = defaultdict(set)  # pair -> places in `words` where it may occur
    merges = []
    ### BEGIN SOLUTION
    for place, ids in enumerate(words):
        for pair in pairwise(ids):
            homes[pair].add(place)
    while pair_counts and len(merges) < num_merges:
        best = best_pair(pair_counts)
        for place in homes.pop(best):
            old, new = words[place], merge_pair(words[place], best, 256 + len(merges))
            for pair in pairwise(old):
                pair_counts[pair] -= counts[place]
                if not pair_counts[pair]:
                    del pair_counts[pair]
            for pair in pairwise(new):
                pair_counts[pair] += counts[place]
                homes[pair].add(place)
            words[place] = new
        merges.append(best)
    return merges
    ### END SOLUTION


# %%
learn_merges(PAPER_WORDS, 4)

# %% nbgrader={"grade": true, "grade_id": "test-learn-merges", "locked": true, "points": 10, "schema_version": 3, "solution": false}
### BEGIN HIDDEN TESTS
yours = count_pairs, best_pair, merge_pair
count_pairs, best_pair, merge_pair = plain_count_pairs, plain_best_pair, plain_merge_pair
### END HIDDEN TESTS
merges = learn_merges({b"low": 5, b"lower": 2, b"newest": 6, b"widest": 3}, 4)
assert merges == [(101, 115), (256, 116), (108, 111), (258, 119)], (
    f"the merges of the paper's words are (101, 115), (256, 116), (108, 111), (258, 119), yours: {merges}"
)
merges = learn_merges({b"aaaa": 1}, 10)
assert merges == [(97, 97), (256, 256)], f"'aaaa' is one token after 2 merges, then stop; yours: {merges}"
visits, real_merge_pair = [], merge_pair


def merge_pair(ids, pair, new_id):
    visits.append(list(ids))
    return real_merge_pair(ids, pair, new_id)


learn_merges({b"xyxy": 50, b"abc": 1, b"bcd": 1, b"cde": 1}, 1)
merge_pair = real_merge_pair
assert visits == [[120, 121, 120, 121]], f"only 'xyxy' contains the best pair, you merged in {visits}"
### BEGIN HIDDEN TESTS


def merges_by_replacing(word_counts, num_merges):
    words = {"".join(map(chr, word)): count for word, count in word_counts.items()}
    merges = []
    while len(merges) < num_merges:
        found = Counter()
        for word, count in words.items():
            for i in range(len(word) - 1):
                found[ord(word[i]), ord(word[i + 1])] += count
        if not found:
            break
        merges.append(plain_best_pair(found))
        pair, new = "".join(map(chr, merges[-1])), chr(255 + len(merges))
        replaced = Counter()
        for word, count in words.items():
            replaced[word.replace(pair, new)] += count
        words = replaced
    return merges


rng = np.random.default_rng(1)
for _ in range(40):
    sample = {
        rng.integers(97, 100, rng.integers(1, 9)).astype(np.uint8).tobytes(): int(rng.integers(1, 5))
        for _ in range(9)
    }
    want = merges_by_replacing(sample, 12)
    assert learn_merges(sample, 12) == want, f"the merges of {sample} are {want}"
count_pairs, best_pair, merge_pair = yours
### END HIDDEN TESTS

# %% [markdown]
"""
How much faster is it? Try both on a text that every Python has: the source of `argparse`, here its first 60,000 characters, split at white space. The cell gives the seconds for 200 merges on your machine, slow and fast. The gap grows with the number of merges, because later pairs occur in fewer words: on ours it was 4 times for 100 merges, 6 for 200 and 11 for 800.
"""

# %%
import argparse
import inspect
import time

SOURCE = inspect.getsource(argparse)[:60_000]
source_words = Counter(to_bytes(SOURCE).split())
seconds = []
for learn in (learn_merges_slowly, learn_merges):
    start = time.perf_counter()
    learn(source_words, 200)
    seconds.append(round(time.perf_counter() - start, 3))
seconds

# %% [markdown]
r"""
## Words: where a merge may not go

What happens without words? `dog.`, `dog!` and `dog?` may become three tokens that share nothing. The authors of GPT-2 saw that happen and forbade merges across categories of characters, with one exception, a space in front of a word (Radford et al., "Language Models are Unsupervised Multitask Learners", 2019, section 2.2). So ` dog` with its space is a word and can become one token; `.` is another word.

We cut text into words by their rule. At each position the first alternative that fits wins, in this order:

| a word is | regular expression |
|---|---|
| an English ending after an apostrophe: 's 't 're 've 'm 'll 'd | `'(?:s\|t\|re\|ve\|m\|ll\|d)` |
| letters, with at most one space before them | `[^\W\d_]+` |
| digits, with at most one space before them | `\d+` |
| other signs, with at most one space before them | `(?:[^\s\w]\|_)+` |
| white space, but not its last character if a word follows | `\s+(?!\S)` |
| the white space that is left | `\s+` |

`[^\W\d_]` reads: no non-word character, no digit, no underscore; what remains are the letters of all alphabets. (The bars are written `\|` only because this is a table; in the pattern they are `|`.) Python's own `re` knows fewer classes than the library that GPT-2 used, so one thing differs: ½, ² and other numbers that are not decimal digits go with the letters here.

**Task (8 points).** Write `split_words(text)`: the list of words, whose concatenation is exactly the text. Add the optional space, ` ?`, to the three alternatives that need it, join all six with `|`, and let `re.findall` do the rest. About 5 lines.
"""


# %% nbgrader={"grade": false, "grade_id": "split-words", "locked": false, "schema_version": 3, "solution": true}
#| export
def split_words(text: str) -> list[str]:
    """-> the words of text, each with at most one space before it; joined they are the text. GPT-2's rule."""
    ### BEGIN SOLUTION
    endings = r"'(?:s|t|re|ve|m|ll|d)"
    letters = r" ?[^\W\d_]+"
    digits = r" ?\d+"
    signs = r" ?(?:[^\s\w]|_)+"
    return re.findall(rf"{endings}|{letters}|{digits}|{signs}|\s+(?!\S)|\s+", text)
    ### END SOLUTION


# %% [markdown]
"""
In which words do the second and the third of the three spaces end up?
"""

# %%
split_words("The dog's 2 bones...   (old ones)")

# %% nbgrader={"grade": true, "grade_id": "test-split-words", "locked": true, "points": 8, "schema_version": 3, "solution": false}
for text, want in {
    "low lower": ["low", " lower"],
    "the dog. dog!": ["the", " dog", ".", " dog", "!"],
    "it's 42%": ["it", "'s", " 42", "%"],
    "a   b": ["a", "  ", " b"],
    "end \n": ["end", " \n"],
}.items():
    words = split_words(text)
    assert words == want, f"{text!r} is cut into {want}, yours gives {words}"
### BEGIN HIDDEN TESTS
for text, want in {
    "": [],
    "snake_case x2": ["snake", "_", "case", " x", "2"],
    "We'll've 'd": ["We", "'ll", "'ve", " '", "d"],
    "für λόγος 漢字!": ["für", " λόγος", " 漢字", "!"],
    "a\n\nb\tc": ["a", "\n", "\n", "b", "\t", "c"],
    "hi 😀😀 x": ["hi", " 😀😀", " x"],
}.items():
    assert split_words(text) == want, f"{text!r} is cut into {want}, yours gives {split_words(text)}"
rng = np.random.default_rng(2)
for _ in range(300):
    text = "".join(rng.choice(list("ab'st 1_\n\t.é漢😀\u00a0\u0301½"), size=12).tolist())
    assert "".join(split_words(text)) == text, f"something of {text!r} was lost"
### END HIDDEN TESTS

# %% [markdown]
"""
## What a token stands for

A token stands for a piece of text, or at least for some bytes: 256 is "es", 257 is "est". These pieces can be built from the merges in one pass, because a merge joins only tokens that existed before it.

**Task (6 points).** Write `build_vocabulary(merges)`: a list of `bytes`, one entry per id: first the 256 single bytes, then for each merge the joined bytes of its two halves. About 4 lines.
"""


# %% nbgrader={"grade": false, "grade_id": "build-vocabulary", "locked": false, "schema_version": 3, "solution": true}
#| export
def build_vocabulary(merges: Iterable[tuple[int, int]]) -> list[bytes]:
    """-> the bytes of each id: the 256 single bytes, then what each merge joins."""
    ### BEGIN SOLUTION
    vocabulary = [bytes([value]) for value in range(256)]
    for left, right in merges:
        vocabulary.append(vocabulary[left] + vocabulary[right])
    return vocabulary
    ### END SOLUTION


# %%
build_vocabulary([(101, 115), (256, 116), (108, 111), (258, 119)])[256:]

# %% nbgrader={"grade": true, "grade_id": "test-build-vocabulary", "locked": true, "points": 6, "schema_version": 3, "solution": false}
vocabulary = build_vocabulary([(101, 115), (256, 116), (108, 111)])
assert len(vocabulary) == 259, f"256 bytes and 3 merges are 259 tokens, yours are {len(vocabulary)}"
assert vocabulary[65] == b"A", f"id 65 is the byte 65, b'A'; yours is {vocabulary[65]!r}"
assert vocabulary[256] == b"es", f"256 joins 101 and 115, b'es'; yours is {vocabulary[256]!r}"
assert vocabulary[257] == b"est", f"257 joins 256 and 116, b'est'; yours is {vocabulary[257]!r}"
### BEGIN HIDDEN TESTS
assert build_vocabulary([])[:256] == [int.to_bytes(i, 1, "big") for i in range(256)], (
    "the first 256 are bytes"
)
assert vocabulary[200] == b"\xc8", "id 200 is one byte, not the two of the character 'È'"
assert build_vocabulary([(226, 130), (256, 172), (257, 257)])[258].decode() == "€€", "bytes of '€€' expected"
### END HIDDEN TESTS

# %% [markdown]
"""
## Encoding one word

A new word must be cut exactly as training would have cut it, so the merges are applied in the order in which they were learned. Going through all of them would work, but take as many steps as there are merges. Look at the word instead: of its pairs that were learned, one was learned first and has the smallest id. Merge that one, look again, and stop when none of the word's pairs was ever learned.

**Task (8 points).** Write `encode_word(word, merge_ids)`. `word` is `bytes`, `merge_ids` a dictionary from pair to the id it became. Return the list of ids. About 7 lines.
"""


# %% nbgrader={"grade": false, "grade_id": "encode-word", "locked": false, "schema_version": 3, "solution": true}
#| export
def encode_word(word: bytes, merge_ids: Mapping[tuple[int, int], int]) -> list[int]:
    """-> the ids of one word: merge the pair that was learned first, again and again, until none is left."""
    ### BEGIN SOLUTION
    ids = list(word)
    while True:
        known = [pair for pair in pairwise(ids) if pair in merge_ids]
        if not known:
            return ids
        first = min(known, key=merge_ids.__getitem__)
        ids = merge_pair(ids, first, merge_ids[first])
    ### END SOLUTION


# %% [markdown]
"""
With the four merges from above, "lowest", a word that was not in the training, needs two tokens: 259 is "low" and 257 is "est". What will "slow" become?
"""

# %%
merge_ids = {(101, 115): 256, (256, 116): 257, (108, 111): 258, (258, 119): 259}
encode_word(b"lowest", merge_ids), encode_word(b"slow", merge_ids)

# %% nbgrader={"grade": true, "grade_id": "test-encode-word", "locked": true, "points": 8, "schema_version": 3, "solution": false}
### BEGIN HIDDEN TESTS
yours, merge_pair = merge_pair, plain_merge_pair
### END HIDDEN TESTS
merge_ids = {(101, 115): 256, (256, 116): 257, (108, 111): 258, (258, 119): 259}
ids = encode_word(b"lowest", merge_ids)
assert ids == [259, 257], f"'lowest' is low (259) + est (257), yours is {ids}"
ids = encode_word(b"xyz", merge_ids)
assert ids == [120, 121, 122], f"a word without a known pair stays bytes, [120, 121, 122]; yours is {ids}"
ids = encode_word(b"abc", {(98, 99): 256, (97, 98): 257})
assert ids == [97, 256], f"(98, 99) was learned before (97, 98), so 'abc' is [97, 256]; yours is {ids}"
### BEGIN HIDDEN TESTS
assert encode_word(b"", merge_ids) == [], "an empty word has no tokens"
assert encode_word(b"aaaaa", {(97, 97): 256, (256, 256): 257}) == [257, 97]
rng = np.random.default_rng(3)
for _ in range(40):
    learned = []
    while len(learned) < 8:
        pair = tuple(i if i < 100 else 156 + i for i in rng.integers(97, 100 + len(learned), size=2).tolist())
        if pair not in learned:
            learned.append(pair)
    word = rng.integers(97, 100, 10).astype(np.uint8).tobytes()
    want = list(word)
    for n, pair in enumerate(learned):
        want = plain_merge_pair(want, pair, 256 + n)
    ids = encode_word(word, {pair: 256 + n for n, pair in enumerate(learned)})
    assert ids == want, f"{word} with the merges {learned} is {want}, yours is {ids}"
merge_pair = yours
### END HIDDEN TESTS

# %% [markdown]
"""
## Special tokens

A chat model must know who is speaking and when an answer ends. Tokens that stand for no text say so: `<|user|>`, `<|assistant|>`, `<|end|>`. Their ids come after all merges.

Now suppose that a user types the eight characters `<|user|>` into your chat. If the tokenizer turned them into the token, a user could put words into the assistant's mouth. So it does not: what a person types is always ordinary text. Only the program that builds the conversation asks for special tokens, by name, and only then are they recognised.

**Task (6 points).** Write `split_special(text, names)`: cut the text so that every occurrence of a name is a piece of its own, drop empty pieces, and return the list. Where two names fit, the longer one wins. Names contain characters that have a meaning in regular expressions; `re.escape` takes it away. `re.split` keeps the separators if the pattern is in parentheses. About 4 lines.
"""


# %% nbgrader={"grade": false, "grade_id": "split-special", "locked": false, "schema_version": 3, "solution": true}
#| export
def split_special(text: str, names: Collection[str]) -> list[str]:
    """-> text, cut so that each occurrence of a name is a piece of its own; the longest name wins."""
    ### BEGIN SOLUTION
    if not names:
        return [text] if text else []
    pattern = "|".join(re.escape(name) for name in sorted(names, key=len, reverse=True))
    return [piece for piece in re.split(f"({pattern})", text) if piece]
    ### END SOLUTION


# %%
split_special("<|user|>Hi!<|end|>", ["<|user|>", "<|end|>"])

# %% nbgrader={"grade": true, "grade_id": "test-split-special", "locked": true, "points": 6, "schema_version": 3, "solution": false}
pieces = split_special("<|user|>Hi!<|end|>", ["<|user|>", "<|end|>"])
assert pieces == ["<|user|>", "Hi!", "<|end|>"], f"expected the two names and 'Hi!' apart, yours is {pieces}"
pieces = split_special("<|user|>Hi!", ["<|end|>"])
assert pieces == ["<|user|>Hi!"], f"<|user|> was not asked for and stays in the text, yours is {pieces}"
pieces = split_special("a|b", [])
assert pieces == ["a|b"], f"without names the text is one piece, yours is {pieces}"
### BEGIN HIDDEN TESTS
assert split_special("", ["x"]) == [] and split_special("", []) == [], "an empty text has no pieces"
assert split_special("user", ["<|user|>"]) == ["user"], "the bars of the name do not mean 'or': escape them"
assert split_special("a<e><e>b", ["<e>"]) == ["a", "<e>", "<e>", "b"], "neighbouring names are two pieces"
assert split_special("<e><e2>", ["<e>", "<e><e2>"]) == ["<e><e2>"], "the longer name wins"
assert split_special("1+1=2", ["1+"]) == ["1+", "1=2"], "names are text, not patterns"
### END HIDDEN TESTS

# %% [markdown]
"""
Two helpers are given: one checks the names, and one writes a file so that a crash in the middle leaves the old file whole. Weights are useless without the tokenizer that they were trained with.
"""


# %%
#| export
def special_token_names(names: Iterable[str]) -> list[str]:
    """-> the names as a list. ValueError if one is empty or repeated; TypeError if one is not a str."""
    if isinstance(names, str):
        raise TypeError(f"special_tokens must be a list of names, not the one str {names!r}")
    names = list(names)
    for name in names:
        if not to_bytes(name):
            raise ValueError("the name of a special token must have at least 1 character, one has 0")
    for name, count in Counter(names).items():
        if count > 1:
            raise ValueError(f"the special token {name!r} is named {count} times, a name can have one id")
    return names


def write_whole(path: str | os.PathLike, text: str) -> None:
    """Write text to path, through a file beside it, so that a crash leaves the old file or the new one."""
    path = Path(path)
    beside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        beside.write_text(text, encoding="utf-8")
        os.replace(beside, path)
    finally:
        beside.unlink(missing_ok=True)


# %% [markdown]
"""
## The tokenizer

Now the parts come together. The constructor takes the merges and the names of the special tokens; `train` cuts a text into words and learns the merges. The ids are:

| ids | are |
|---|---|
| 0 … 255 | the bytes |
| 256 … 256 + M − 1 | the M merges, in the order learned |
| 256 + M … V − 1 | the special tokens, in the order given |

`self.vocabulary` is the list of all V byte strings (for a special token: its name in UTF-8), `self.special_tokens` the dictionary from name to id, `self.merge_ids` the dictionary from pair to id. `self.encode_cached(word)` encodes one word and remembers the result: texts repeat words, and a dictionary lookup is cheaper than a chain of merges.

**Task (4 + 4 points).**

- `encode(text, allowed_special=())`: the given first lines turn `allowed_special` into `names`, a set. Cut the text at those names; each name becomes its id, and each other piece the ids of its words. About 7 lines.
- `decode(ids)`: check the ids with `check_ids`, join the bytes of all tokens *first*, and then decode them as UTF-8 once, with `errors="replace"`, because a model may stop in the middle of a character. About 2 lines.
"""


# %% nbgrader={"grade": false, "grade_id": "bpe-tokenizer", "locked": false, "schema_version": 3, "solution": true}
#| export
class BPETokenizer:
    """Byte-level byte pair encoding; ids: 256 bytes, the merges in the order learned, the special tokens."""

    def __init__(self, merges: Iterable[tuple[int, int]], special_tokens: Iterable[str] = ()):
        """merges: pairs of ids, pair n becoming id 256 + n; special_tokens: their names.

        Raises ValueError for a pair that joins an id not yet made or was merged before, and for an empty or
        repeated name.
        """
        self.merges, self.merge_ids = [], {}
        for pair in merges:
            left, right = (operator.index(i) for i in pair)
            new_id = 256 + len(self.merges)
            if not (0 <= left < new_id and 0 <= right < new_id):
                raise ValueError(
                    f"merge {new_id} joins {left} and {right}, it can only join ids below {new_id}"
                )
            if (left, right) in self.merge_ids:
                raise ValueError(
                    f"merge {new_id} repeats merge {self.merge_ids[left, right]}: {left}, {right}"
                )
            self.merge_ids[left, right] = new_id
            self.merges.append((left, right))
        self.special_tokens = {}
        for name in special_token_names(special_tokens):
            self.special_tokens[name] = 256 + len(self.merges) + len(self.special_tokens)
        self.vocabulary = build_vocabulary(self.merges) + [to_bytes(name) for name in self.special_tokens]
        self._cache = {}

    @classmethod
    def train(cls, text: str, vocab_size: int, special_tokens: Iterable[str] = ()) -> "BPETokenizer":
        """-> a tokenizer with vocab_size ids, learned from text; fewer ids if every word becomes one token.

        Special tokens in the text are not learned from.
        Raises ValueError if vocab_size has no room for the 256 bytes and the special tokens.
        """
        to_bytes(text)
        names = special_token_names(special_tokens)
        num_merges = operator.index(vocab_size) - 256 - len(names)
        if num_merges < 0:
            raise ValueError(
                f"vocab_size {vocab_size} is less than {256 + len(names)}, "
                f"256 bytes and {len(names)} special tokens"
            )
        pieces = (piece for piece in split_special(text, names) if piece not in names)
        word_counts = Counter(to_bytes(word) for piece in pieces for word in split_words(piece))
        return cls(learn_merges(word_counts, num_merges), names)

    @property
    def vocab_size(self) -> int:
        return len(self.vocabulary)

    def __repr__(self) -> str:
        return (
            f"BPETokenizer(vocab_size={self.vocab_size}, merges={len(self.merges)}, "
            f"special_tokens={list(self.special_tokens)})"
        )

    def allowed(self, allowed_special: str | Iterable[str]) -> set[str]:
        """The word "all", one name or several -> set of names. ValueError for an unknown name."""
        if isinstance(allowed_special, str):
            allowed_special = self.special_tokens if allowed_special == "all" else [allowed_special]
        names = set(allowed_special)
        unknown = sorted(names - self.special_tokens.keys())
        if unknown:
            raise ValueError(f"{unknown[0]!r} is not one of the special tokens {list(self.special_tokens)}")
        return names

    def encode_cached(self, word: str) -> list[int]:
        """-> the ids of one word, remembered; they are shared, so do not change them."""
        ids = self._cache.get(word)
        if ids is None:
            if len(self._cache) >= 2**16:
                self._cache.clear()
            ids = self._cache[word] = encode_word(to_bytes(word), self.merge_ids)
        return ids

    def encode(self, text: str, allowed_special: str | Iterable[str] = ()) -> list[int]:
        """-> ids. Special tokens are recognised only if allowed ("all" or names).

        Raises ValueError for a lone surrogate, naming its position.
        """
        to_bytes(text)
        names = self.allowed(allowed_special)
        ### BEGIN SOLUTION
        ids = []
        for piece in split_special(text, names):
            if piece in names:
                ids.append(self.special_tokens[piece])
                continue
            for word in split_words(piece):
                ids.extend(self.encode_cached(word))
        return ids
        ### END SOLUTION

    def decode(self, ids: Iterable[int]) -> str:
        """-> text; bytes that are not UTF-8 become U+FFFD. ValueError for an id outside the vocabulary."""
        ### BEGIN SOLUTION
        ids = check_ids(ids, self.vocab_size)
        return b"".join(self.vocabulary[i] for i in ids).decode("utf-8", errors="replace")
        ### END SOLUTION

    def to_json(self) -> str:
        """-> the tokenizer as JSON text, for from_json."""
        content = {
            "format": "tinytorch-bpe",
            "version": 1,
            "special_tokens": list(self.special_tokens),
            "merges": self.merges,
        }
        return json.dumps(content)

    @classmethod
    def from_json(cls, text: str) -> "BPETokenizer":
        """The text of to_json -> the tokenizer. ValueError for any other text, saying what is wrong."""
        try:
            content = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"not a tokenizer: not JSON, or cut short ({error})") from None
        if not isinstance(content, dict) or content.get("format") != "tinytorch-bpe":
            raise ValueError('not a tokenizer: the JSON has no "format": "tinytorch-bpe"')
        if content.get("version") != 1:
            raise ValueError(f"tokenizer version {content.get('version')!r} is unknown, this program reads 1")
        merges, names = content.get("merges"), content.get("special_tokens")
        if not isinstance(merges, list) or not isinstance(names, list):
            raise ValueError('not a tokenizer: "merges" and "special_tokens" must be lists')
        for n, pair in enumerate(merges):
            if not isinstance(pair, list) or len(pair) != 2 or any(type(i) is not int for i in pair):
                raise ValueError(f"not a tokenizer: merge {n} is {pair!r}, not a pair of ids")
        try:
            return cls(merges, names)
        except (ValueError, TypeError) as error:
            raise ValueError(f"not a tokenizer: {error}") from None

    def save(self, path: str | os.PathLike) -> None:
        """Write to_json() to path; a file there is replaced as a whole or not at all."""
        write_whole(path, self.to_json())

    @classmethod
    def load(cls, path: str | os.PathLike) -> "BPETokenizer":
        """-> the tokenizer saved at path. ValueError names the file if it does not hold one."""
        try:
            return cls.from_json(Path(path).read_text(encoding="utf-8"))
        except UnicodeDecodeError as error:
            name, place = os.fspath(path), error.start
            raise ValueError(f"{name}: not a tokenizer: its byte {place} is not UTF-8 text") from None
        except ValueError as error:
            raise ValueError(f"{os.fspath(path)}: {error}") from None


# %% [markdown]
"""
The four merges of the paper's words and two special tokens make 262 ids. A user typed the first `<|end|>` below; the program put the second there. How many ids does each take?
"""

# %%
toy = BPETokenizer([(101, 115), (256, 116), (108, 111), (258, 119)], ["<|user|>", "<|end|>"])
toy.encode("lowest<|end|>"), toy.encode("lowest<|end|>", allowed_special="all")


# %% nbgrader={"grade": true, "grade_id": "test-bpe-encode", "locked": true, "points": 4, "schema_version": 3, "solution": false}
### BEGIN HIDDEN TESTS
def plain_split_special(text, names):
    pieces = [text]
    for name in sorted(names, key=len, reverse=True):
        cut = []
        for piece in pieces:
            parts = [piece] if piece in names else piece.split(name)
            cut += [part for pair in zip(parts, [name] * len(parts), strict=True) for part in pair][
                : 2 * len(parts) - 1
            ]
        pieces = [piece for piece in cut if piece]
    return pieces


def plain_split_words(text):
    return re.findall(r"'(?:s|t|re|ve|m|ll|d)| ?[^\W\d_]+| ?\d+| ?(?:[^\s\w]|_)+|\s+(?!\S)|\s+", text)


def plain_encode_word(word, merge_ids):
    ids = list(word)
    for pair, new_id in sorted(merge_ids.items(), key=lambda item: item[1]):
        ids = plain_merge_pair(ids, pair, new_id)
    return ids


def plain_build_vocabulary(merges):
    def spell(i):
        return bytes([i]) if i < 256 else spell(merges[i - 256][0]) + spell(merges[i - 256][1])

    return [spell(i) for i in range(256 + len(merges))]


yours = split_special, split_words, encode_word, build_vocabulary
split_special, split_words = plain_split_special, plain_split_words
encode_word, build_vocabulary = plain_encode_word, plain_build_vocabulary
### END HIDDEN TESTS
toy = BPETokenizer([(101, 115), (256, 116), (108, 111), (258, 119)], ["<|user|>", "<|end|>"])
ids = toy.encode("low lowest")
assert ids == [259, 32, 259, 257], f"low, space, low, est: [259, 32, 259, 257]; yours is {ids}"
ids = toy.encode("<|end|>")
assert ids == list(b"<|end|>"), f"typed text never becomes a special token, only its 7 bytes; yours is {ids}"
ids = toy.encode("<|user|>low<|end|>", allowed_special="all")
assert ids == [260, 259, 261], f"<|user|> is 260, low 259, <|end|> 261 when they are allowed; yours is {ids}"
### BEGIN HIDDEN TESTS
ids = toy.encode("<|user|>low<|end|>", allowed_special=["<|user|>"])
assert ids == [260, 259, *b"<|end|>"], f"only <|user|> was allowed, yours is {ids}"
ids = BPETokenizer([(119, 32), (111, 119)]).encode("low low")
assert ids == [108, 257, 32, 108, 257], f"a merge must not cross the end of a word, yours is {ids}"
assert toy.encode("") == [], "an empty text has no tokens"
assert toy.encode("é😀") == list("é😀".encode()), "characters without merges should become their bytes"
split_special, split_words, encode_word, build_vocabulary = yours
### END HIDDEN TESTS

# %% nbgrader={"grade": true, "grade_id": "test-bpe-decode", "locked": true, "points": 4, "schema_version": 3, "solution": false}
### BEGIN HIDDEN TESTS
yours, build_vocabulary = build_vocabulary, plain_build_vocabulary
### END HIDDEN TESTS
toy = BPETokenizer([(101, 115), (256, 116), (108, 111), (258, 119)], ["<|user|>", "<|end|>"])
text = toy.decode([259, 32, 259, 257, 261])
assert text == "low lowest<|end|>", f"expected 'low lowest<|end|>', yours is {text!r}"
text = toy.decode([195, 169])
assert text == "é", f"the two bytes of é are one character: join first, then decode; yours is {text!r}"
text = toy.decode([104, 195])
assert text == "h\ufffd", f"half an é becomes the replacement character U+FFFD, yours is {text!r}"
for wrong in (262, -1):
    try:
        raised = toy.decode([259, wrong])
    except (ValueError, IndexError) as error:
        raised = error
    assert isinstance(raised, ValueError) and str(wrong) in str(raised), (
        f"ids go from 0 to 261: {wrong} should raise a ValueError that names it, yours gave {raised!r}"
    )
### BEGIN HIDDEN TESTS
assert toy.decode([]) == "", "no ids decode to an empty text"
assert toy.decode(np.array(list("日本😀".encode()))) == "日本😀", "ids may come as an array"
build_vocabulary = yours
### END HIDDEN TESTS

# %% [markdown]
"""
Where a text is cut matters: `encode(a + b)` need not be `encode(a) + encode(b)`. Here are "lo" and "w" apart, then "low". Both lists decode to "low", but a model reads different ids. From module 15 on, a model keeps what it has computed for the ids it has read. A chat that keeps its history as text and encodes it again may get other ids, and from the first difference on, nothing that was kept is valid. So keep the ids and append to them.
"""

# %%
toy.encode("lo") + toy.encode("w"), toy.encode("low")

# %% [markdown]
"""
Now train one, with 300 merges on the 60,000 characters of `argparse`. The cell shows the first tokens that it learned, the last ones, and what it makes of a new line.
"""

# %%
trained = BPETokenizer.train(SOURCE, vocab_size=256 + 300 + 2, special_tokens=["<|user|>", "<|end|>"])
line = [trained.decode([i]) for i in trained.encode("def tokenize(self, text):")]
trained.vocabulary[256:262], trained.vocabulary[550:556], line

# %% [markdown]
"""
## How many merges?

More merges make shorter sequences, but later merges are rarer and save less. The next cells list (merges, bytes per token) for the same text, and draw them. The first hundred merges remove about half of the tokens; the next seven hundred, about a fifth.
"""

# %%
all_merges = BPETokenizer.train(SOURCE, vocab_size=256 + 800).merges
savings = []
for num_merges in (0, 25, 50, 100, 200, 400, 800):
    num_tokens = len(BPETokenizer(all_merges[:num_merges]).encode(SOURCE))
    savings.append((num_merges, round(len(to_bytes(SOURCE)) / num_tokens, 2)))
savings


# %%
def plot_savings(savings):
    import matplotlib.pyplot as plt

    merges, bytes_per_token = zip(*savings, strict=True)
    plt.plot(merges, bytes_per_token, marker="o")
    plt.xlabel("merges")
    plt.ylabel("bytes per token")
    plt.title("Every further merge saves less")
    plt.show()


# %%
if "get_ipython" in globals():
    plot_savings(savings)

# %% [markdown]
"""
## Streaming

A chat prints each token as it comes. Decoding each token alone goes wrong as soon as a character is spread over two tokens: `é`, as the tokens 195 and 169, would print two replacement characters. Bytes that do not yet make a whole character must wait for the next token. The standard library has a decoder that waits, `codecs.getincrementaldecoder("utf-8")`. Its `decode(data, final=False)` returns the complete characters and keeps the rest; with `final=True` it stops waiting and returns a replacement character for what is left.

**Task (6 points).** Write `feed(token_id)`, which returns the text that this token completes (often all of its own, sometimes none), and `finish()`, which returns a replacement character if a character was left unfinished, else nothing. An id outside the vocabulary raises a `ValueError`; `check_ids` takes a list. About 3 lines together.
"""


# %% nbgrader={"grade": false, "grade_id": "stream-decoder", "locked": false, "schema_version": 3, "solution": true}
#| export
class StreamDecoder:
    """Ids go in one at a time; text comes out as soon as its characters are complete."""

    def __init__(self, tokenizer: BPETokenizer):
        self.vocabulary = tokenizer.vocabulary
        self.decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def feed(self, token_id: int) -> str:
        """-> the text that this token completes; "" while a character is unfinished."""
        ### BEGIN SOLUTION
        (token_id,) = check_ids([token_id], len(self.vocabulary))
        return self.decoder.decode(self.vocabulary[token_id])
        ### END SOLUTION

    def finish(self) -> str:
        """-> U+FFFD if a character was left unfinished, else ""; the decoder can then be used again."""
        ### BEGIN SOLUTION
        return self.decoder.decode(b"", final=True)
        ### END SOLUTION


# %% [markdown]
"""
The euro sign is three bytes. Which of the four calls returns it?
"""

# %%
stream = StreamDecoder(BPETokenizer([]))
[stream.feed(byte) for byte in "€!".encode()]

# %% nbgrader={"grade": true, "grade_id": "test-stream-decoder", "locked": true, "points": 6, "schema_version": 3, "solution": false}
### BEGIN HIDDEN TESTS
yours, build_vocabulary = build_vocabulary, plain_build_vocabulary
### END HIDDEN TESTS
stream = StreamDecoder(BPETokenizer([(104, 105)]))
parts = [stream.feed(i) for i in (256, 195, 169, 33)]
assert parts == ["hi", "", "é", "!"], (
    f"tokens hi, half é, half é, ! come out as hi, nothing, é, !; yours: {parts}"
)
assert stream.finish() == "", "nothing is left after '!'"
stream.feed(195)
rest = stream.finish()
assert rest == "\ufffd", f"half an é at the end becomes U+FFFD, yours is {rest!r}"
assert stream.feed(104) == "h", "after finish the decoder starts afresh"
### BEGIN HIDDEN TESTS
rng = np.random.default_rng(4)
for _ in range(100):
    ids = rng.choice([65, 195, 169, 226, 130, 172, 240, 159, 152, 128, 256], size=9).tolist()
    want = b"".join(b"hi" if i == 256 else bytes([i]) for i in ids).decode(errors="replace")
    got = "".join([*map(stream.feed, ids), stream.finish()])
    assert got == want, f"{ids} should come out as {want!r}, yours: {got!r}"
for wrong in (257, -1):
    try:
        stream.feed(wrong)
    except ValueError:
        continue
    raise AssertionError(f"257 ids are numbered 0 to 256, but {wrong} was accepted")
build_vocabulary = yours
### END HIDDEN TESTS

# %% [markdown]
"""
Sometimes a text should end not at a token but at certain words, for instance when the model begins to write the user's next line itself: "User:". Such a *stop string* may be spread over several tokens, and may begin in the middle of one. So text that could be the beginning of one must wait, like the bytes of half a character. The given `StopStream` wraps a stream and lets no stop string through.
"""


# %%
#| export
class StopStream:
    """Wraps a stream with `feed` and `finish`: returns its text up to the first stop string, which it omits.

    stopped: whether a stop string has come; after that, nothing more is returned. The first is the one that
    ends first, of several the longest; so it does not matter how the text is cut into tokens.
    """

    def __init__(self, stream: StreamDecoder, stop_strings: Sequence[str]):
        """stop_strings: a str or several. Raises TypeError for one that is not a str, ValueError if empty."""
        self.stop_strings = [stop_strings] if isinstance(stop_strings, str) else list(stop_strings)
        for stop in self.stop_strings:
            if not isinstance(stop, str):
                raise TypeError(f"a stop string is text, got {stop!r}")
            if not stop:
                raise ValueError(f"a stop string has at least 1 character, got {stop!r}")
        self.stream, self.held, self.stopped = stream, "", False

    def feed(self, token_id: int) -> str:
        """-> the text that can be shown now; what may be the beginning of a stop string is held back."""
        return self.show(self.stream.feed(token_id))

    def finish(self) -> str:
        """-> the rest: at the end of the text, what was held back is not a stop string."""
        shown = self.show(self.stream.finish())
        rest, self.held = self.held, ""
        return shown + rest

    def show(self, text: str) -> str:
        """New text -> what can be shown of all that has not been shown yet."""
        if self.stopped:
            return ""
        held = self.held + text
        found = [(held.find(stop) + len(stop), -len(stop)) for stop in self.stop_strings if stop in held]
        if found:
            stop, length = min(found)
            self.held, self.stopped = "", True
            return held[: stop + length]
        beginnings = (stop[:n] for stop in self.stop_strings for n in range(1, len(stop)))
        waits = max((len(part) for part in beginnings if held.endswith(part)), default=0)
        self.held = held[len(held) - waits :]
        return held[: len(held) - waits]


# %% [markdown]
"""
Here each token is one byte. The text should end before "er:", and each part should appear as soon as it can.
"""

# %%
stream = StopStream(StreamDecoder(BPETokenizer([])), "er:")
[stream.feed(byte) for byte in b"better user: no"], stream.stopped

# %% [markdown]
"""
**Question 1 (5 points).** You train a chat model with embed_dim 64 on 60,000 bytes of text, and may give your tokenizer 300 ids or 5,000. Say what the choice changes, and in which direction, for the number of weights in the token embedding, for the number of tokens in an answer and the time to compute it, and for how often the model sees each token during training. Which size would you take, and what would you measure to find out whether you were right?
"""

# %% [markdown] nbgrader={"grade": true, "grade_id": "question-vocabulary-size", "locked": false, "points": 5, "schema_version": 3, "solution": true}
"""
Your answer here.
"""

# %% [markdown]
"""
**Question 2 (5 points).** Language models are often bad at counting the letters of a word and at adding long numbers, although they write fluently. Explain how the tokenizer contributes to each: encode an example of each with `trained` and quote what you see. Then propose one change to `split_words` that should help with the numbers, and name its price.
"""

# %% [markdown] nbgrader={"grade": true, "grade_id": "question-letters-and-digits", "locked": false, "points": 5, "schema_version": 3, "solution": true}
"""
Your answer here.
"""

# %% [markdown]
"""
## You can now

- train a byte-level BPE on any text, the scheme of GPT-2, whose 50,257 ids are 256 bytes, 50,000 merges and one special token;
- encode text that has never been written before, and get exactly that text back;
- say what a prompt looks like to a model, and why `lowest` and ` lowest` are different to it.

Two exercises:

1. Replace `split_words` temporarily by `lambda text: [text]`, train on `SOURCE` with 300 merges, and look at the longest tokens. Which of them would you not want as a row of the table? Is the encoded text shorter?
2. `learn_merges` looks at all pairs to find the best one. Keep them in a heap instead (`heapq`; an entry whose count is out of date is dropped when it comes up). From which vocabulary size on is it faster? Measure it.

Next: an id chooses a row of a table of numbers. In module 11 you fill that table, and tell the model which token came before which.
"""
