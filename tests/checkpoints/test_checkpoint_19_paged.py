"""Checkpoint 19: the paged cache, through the installed package only.

The oracles are lists of arrays, slow loops, and the plain cache of module 15. The keys of a token are made
from all tokens before it, as in a model, so that a block that is shared wrongly shows.
"""

import zlib
from collections import Counter

import numpy as np
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from tinytorch.core.tensor import Tensor
from tinytorch.generation.kv_cache import (
    KVCache,
    attention_with_cache,
    disable_kv_cache,
    enable_kv_cache,
)
from tinytorch.generation.paged import (
    BlockPool,
    OutOfBlocks,
    PagedKVCache,
    PrefixIndex,
    blocks_for,
    chain_digest,
    slots_of,
    unused_slots,
)
from tinytorch.models.llama import Llama
from tinytorch.models.transformer import GPT

L, H, D = 2, 3, 5  # layers, heads, numbers
SIZE = 3  # tokens of a block


def new_pool(num_blocks=8, block_size=SIZE, **options):
    return BlockPool(num_blocks, block_size, L, H, D, **options)


def new_pair(T, B=1, seed=0):
    """Random keys and values, (B, H, T, D) each."""
    return np.random.default_rng(seed).normal(size=(2, B, H, T, D)).astype(np.float32)


def fill(cache, T, seed=0):
    """Write T tokens into all layers and commit them."""
    for layer_idx in range(L):
        cache.update(layer_idx, *new_pair(T, cache.batch_size, seed + layer_idx))
    cache.advance(T)


def vector_of(text, layer_idx):
    """What a model would store for the last token of a text: a key and a value, (H, D) each."""
    seed = zlib.crc32(bytes([layer_idx, *text]))
    return np.random.default_rng(seed).normal(size=(2, H, D)).astype(np.float32)


def pair_of(rows, start, layer_idx):
    """Texts of equal length -> their keys and values from position start on, (B, H, T, D) each."""
    made = [[vector_of(row[: i + 1], layer_idx) for i in range(start, len(row))] for row in rows]
    return np.array(made, np.float32).reshape(len(rows), -1, 2, H, D).transpose(2, 0, 3, 1, 4)


def state_of(pool, caches):
    """The books, copied."""
    books = list(pool.references), set(pool.free), list(pool.cached), sorted(pool.index.by_block)
    return books, [(cache.seq_pos, [list(table) for table in cache.tables]) for cache in caches]


def holds(cache, rows):
    """Whether the cache holds exactly these texts."""
    for layer_idx in range(L):
        for got, want in zip(cache.get(layer_idx), pair_of(rows, 0, layer_idx), strict=True):
            if got.shape != (len(rows), H, len(rows[0]), D) or not np.array_equal(got.data, want):
                return False
    return cache.seq_pos == len(rows[0])


def feed(cache, rows):
    """Bring the cache, which holds the beginning of these texts, to their end."""
    for layer_idx in range(L):
        cache.update(layer_idx, *pair_of(rows, cache.seq_pos, layer_idx))
    cache.advance(len(rows[0]) - cache.seq_pos)


# small functions


def test_blocks_and_unused_slots_are_those_of_counting():
    for size in (1, 2, 5, 16):
        for tokens in range(40):
            got = blocks_for(tokens, size)
            assert got * size >= tokens > (got - 1) * size or got == tokens == 0
        assert unused_slots(range(40), size) == sum(-n % size for n in range(40))


def test_slots_follow_the_table():
    for size, table in ((1, [4, 2, 0]), (4, [3, 0, 7]), (6, [1])):
        slots = [block * size + place for block in table for place in range(size)]
        for start in range(len(slots) + 1):
            for stop in range(start, len(slots) + 1):
                assert list(slots_of(table, start, stop, size)) == slots[start:stop]


def test_digests_tell_texts_apart():
    parents = [b"", chain_digest(b"", [1]), chain_digest(b"", [2])]
    texts = [(1, 23), (12, 3), (3, 12), (1,), (257,), (65537,), (2**31,), (123,), (1, 2, 3), (0,), (0, 0)]
    digests = {chain_digest(parent, text) for parent in parents for text in texts}
    assert len(digests) == len(parents) * len(texts)
    assert {(type(digest), len(digest)) for digest in digests} == {(bytes, 16)}
    assert chain_digest(b"", np.array([7, 8], np.int32)) == chain_digest(b"", (7, 8))


# the index


@pytest.mark.parametrize("digest", [None, lambda parent, tokens: b"the same"])
def test_the_index_finds_nothing_but_what_is_there(digest):
    rng = np.random.default_rng(0)
    for _ in range(60):
        index, truth = PrefixIndex(2, digest), {}
        for _ in range(8):
            tokens = rng.integers(0, 3, rng.integers(0, 9)).tolist()
            free = [block for block in range(40) if block not in truth]
            table = rng.permutation(free)[: len(tokens) // 2 + 1].tolist()
            truth.update({block: tuple(tokens[: 2 * i + 2]) for i, block in enumerate(table)})
            index.add(tokens, table)
            if rng.random() < 0.3 and index.by_block:
                index.forget(int(rng.choice(list(index.by_block))))
            assert sorted(index.by_block) == sorted(known.block for known in index.by_digest.values())
            for _ in range(5):
                wanted = rng.integers(0, 3, rng.integers(0, 9)).tolist()
                found = index.find(wanted)
                for i, block in enumerate(found):
                    assert truth[block] == tuple(wanted[: 2 * i + 2]), "this block holds another text"
            if digest is None:
                held = {truth[block] for block in index.by_block}
                chain = 0
                while 2 * chain + 2 <= len(tokens) and tuple(tokens[: 2 * chain + 2]) in held:
                    chain += 1
                assert len(index.find(tokens)) <= chain
    index = PrefixIndex(2)
    index.add([1, 2, 3, 4, 5], [9, 4, 6])
    assert index.find([1, 2, 3, 4]) == [9, 4] and index.find([1, 2, 5, 5]) == [9]
    assert index.find([5, 5, 1, 2]) == index.find([3, 4]) == index.find([1]) == []
    index.add([1, 2, 7, 7], [3, 8])
    assert index.find([1, 2, 7, 7]) == [9, 8], "1 2 was known, and stays where it was"
    index.forget(9)
    assert index.find([1, 2, 3, 4]) == []
    index.add([1, 2, 3, 4], [9, 4])
    assert index.find([1, 2, 3, 4]) == [9, 4], "a chain can be made known again"


# the pool


def test_a_text_does_not_forget_its_own_beginning():
    """Whose pieces all have one digest: the first stays known, the rest is not."""
    index = PrefixIndex(1, lambda parent, tokens: b"the same")
    index.add([1, 2, 3], [0, 1, 2])
    assert index.find([1, 2, 3]) == [0] and len(index) == 1 and 0 in index
    index = PrefixIndex(1)
    index.add([1, 2, 3], [0, 1, 0])  # one block cannot hold two pieces
    assert index.find([1, 2, 3]) == [0, 1] and len(index) == 2


def test_what_follows_a_forgotten_block_is_forgotten_too():
    index = PrefixIndex(2)
    index.add([1, 2, 3, 4, 5, 6], [4, 0, 2])
    index.add([1, 2, 3, 4, 7, 8], [4, 0, 3])
    index.add([1, 2, 9, 9], [4, 1])
    assert sorted(index.forget(0)) == [0, 2, 3]
    assert len(index) == 2 and [block in index for block in range(5)] == [False, True, False, False, True]
    assert index.find([1, 2, 3, 4]) == [4] and index.find([1, 2, 9, 9]) == [4, 1]
    assert index.forget(0) == []


def test_what_can_be_found_no_more_is_free():
    """The second piece of one text comes after the first of another, which is given back before it."""
    pool = new_pool(4)
    first, second = pool.take(1), pool.take(2)
    pool.register([1, 2, 3], first)
    pool.register([1, 2, 3, 4, 5, 6], second)
    pool.give_back(first)
    pool.give_back(second)
    assert list(pool.cached) == [first[0], second[1]] and len(pool.free) == 2
    pool.take(3)
    assert not pool.cached and len(pool.free) == 1 and len(pool.index) == 0


def test_the_pool_takes_its_sizes_seriously():
    pool = new_pool()
    assert [array.shape for array in pool.arrays()] == [(H, 8 * SIZE, D)] * (2 * L)
    assert pool.nbytes == sum(array.nbytes for array in pool.arrays()) == 8 * pool.block_bytes
    assert new_pool(dtype=np.float16).nbytes * 2 == pool.nbytes
    for bad in ((0, 3), (8, 0), (-1, 3)):
        with pytest.raises(ValueError, match="at least 1"):
            new_pool(*bad)
    with pytest.raises(TypeError):
        new_pool(2.0)
    with pytest.raises(TypeError, match="int32"):
        new_pool(dtype=np.int32)


def test_taking_and_giving_back_balances():
    pool, rng, held = new_pool(12), np.random.default_rng(1), []
    for _ in range(300):
        action = rng.integers(0, 3)
        if action == 0:
            count = int(rng.integers(0, 6))
            if count > 12 - len(set(held)):
                before = state_of(pool, ())
                with pytest.raises(OutOfBlocks, match=str(count)):
                    pool.take(count)
                assert state_of(pool, ()) == before
            else:
                new = pool.take(count)
                assert len(set(new)) == count and not set(new) & set(held)
                held += new
        elif action == 1 and held:
            again = list({int(block) for block in rng.choice(held, 2)})
            pool.hold(again)
            held += again
        elif held:
            back = [held.pop(int(rng.integers(len(held)))) for _ in range(min(2, len(held)))]
            pool.give_back(back)
        assert pool.references == [held.count(block) for block in range(12)]
        assert pool.free == set(range(12)) - set(held)
        pool.check()


def test_a_block_is_not_given_back_twice():
    pool = new_pool()
    first, second = pool.take(2)
    pool.give_back([second])
    before = state_of(pool, ())
    for bad in ([second], [first, second], [first, first]):
        with pytest.raises(ValueError, match=r"\d"):
            pool.give_back(bad)
        assert state_of(pool, ()) == before


def test_the_longest_unused_block_is_evicted_first_and_the_end_of_a_text_before_its_beginning():
    pool = new_pool(6, 2)
    texts = {"old": [1, 1, 2, 2, 3, 3], "young": [5, 5, 6, 6]}
    tables = {name: pool.take(len(text) // 2) for name, text in texts.items()}
    for name, text in texts.items():
        pool.register(text, tables[name])
    pool.give_back(tables["old"])
    pool.give_back(tables["young"])
    assert pool.counts() == {"free": 1, "cached": 5, "held": 0, "shared": 0}
    order = tables["old"][::-1] + tables["young"][::-1]
    before = state_of(pool, ())
    with pytest.raises(OutOfBlocks, match="7"):
        pool.take(7)
    assert state_of(pool, ()) == before, "nothing may be forgotten for an order that cannot be met"
    pool.take(1)
    for lost in range(1, 6):
        (taken,) = pool.take(1)
        assert taken == order[lost - 1]
        assert list(pool.cached) == order[lost:]
        assert len(pool.index.find(texts["old"])) == max(0, 3 - lost)
        assert len(pool.index.find(texts["young"])) == min(2, 5 - lost)
        pool.check()


def test_what_is_held_again_is_not_evicted():
    pool = new_pool(3, 2)
    table = pool.take(3)
    pool.register([1, 1, 2, 2, 3, 3], table)
    pool.give_back(table)
    pool.hold(table[:2])
    assert pool.take(1) == table[2:]
    with pytest.raises(OutOfBlocks):
        pool.take(1)
    assert pool.index.find([1, 1, 2, 2, 3, 3]) == table[:2]


def test_reading_gives_what_was_written_and_copies_only_if_it_must():
    for table in ([2, 3, 4], [0], [5, 1, 3], [1, 3, 2, 4], [4, 3]):
        pool, (key, value) = new_pool(), new_pair(len(table) * SIZE)
        for start, stop in ((0, 2), (2, 3), (3, len(table) * SIZE)):
            if stop > start:
                pool.write(1, table, start, key[0][:, start:stop], value[0][:, start:stop])
        for n in range(1, len(table) * SIZE + 1):
            keys, values = pool.read(1, table, n)
            assert np.array_equal(keys, key[0][:, :n]) and np.array_equal(values, value[0][:, :n])
        is_run = table == list(range(table[0], table[0] + len(table)))
        assert np.shares_memory(keys, pool.keys[1]) == np.shares_memory(values, pool.values[1]) == is_run
        assert not pool.keys[0].any() and not pool.values[0].any()


# the cache by itself


def test_a_cache_needs_a_pool():
    with pytest.raises(TypeError, match="int"):
        PagedKVCache(2, 16)


def test_a_text_that_grows_alone_is_one_run_and_is_read_without_a_copy():
    pool = new_pool(20)
    other = PagedKVCache(pool)
    fill(other, 4)
    cache = PagedKVCache(pool)
    for T in (7, 1, 1, 1, 1, 1, 1, 1):
        fill(cache, T)
        keys, values = cache.get(1)
        assert np.shares_memory(keys.data, pool.keys[1]) and np.shares_memory(values.data, pool.values[1])
    assert np.shares_memory(cache.update(0, *new_pair(1))[0].data, pool.keys[0])


def test_all_layers_share_one_table_and_a_repeated_update_takes_nothing():
    pool = new_pool()
    cache = PagedKVCache(pool, batch_size=2)
    fill(cache, 2)
    for _ in range(3):
        for layer_idx in (0, 1, 0):
            keys, _ = cache.update(layer_idx, *new_pair(3, 2, seed=9))
            assert keys.shape == (2, H, 5, D) and cache.seq_pos == 2
            assert np.array_equal(keys.data[:, :, 2:], new_pair(3, 2, seed=9)[0])
            assert [len(table) for table in cache.tables] == [2, 2]
    assert pool.counts()["held"] == 4
    cache.update(0, *new_pair(1, 2))
    cache.advance(1)
    assert pool.counts()["held"] == 2, "what a longer step that was given up had taken comes back"
    pool.check([cache])


def test_a_longer_second_attempt_takes_only_what_is_missing():
    pool = new_pool(2)
    cache = PagedKVCache(pool)
    cache.update(0, *new_pair(1))
    for layer_idx in range(L):
        cache.update(layer_idx, *new_pair(SIZE + 1))
    assert len(cache.tables[0]) == 2 == len(set(cache.tables[0]))
    cache.advance(SIZE + 1)
    pool.check([cache])


def test_memory_is_that_of_the_blocks():
    pool = new_pool()
    cache = PagedKVCache(pool)
    assert cache.nbytes == 0 and cache.get_memory_usage()["utilization"] == 0
    fill(cache, 4)
    token = 2 * L * H * D * 4
    assert pool.block_bytes == SIZE * token and cache.nbytes == 2 * SIZE * token and cache.capacity == 6
    usage = cache.get_memory_usage()
    assert usage["total_mb"] == cache.nbytes / 1e6 and usage["bytes_per_token"] == token
    assert usage["used_mb"] == pytest.approx(4 * token / 1e6) and usage["utilization"] == pytest.approx(4 / 6)
    assert usage["total_elements"] * 4 == cache.nbytes and usage["cache_tensors"] == 2 * L
    assert usage["per_layer_mb"] == pytest.approx(usage["total_mb"] / L)
    twin = cache.fork()
    assert twin.nbytes == cache.nbytes and pool.counts()["held"] == 2
    for shrink, held in ((lambda: cache.truncate(3), 2), (twin.reset, 1), (cache.close, 0)):
        shrink()
        assert pool.counts()["held"] == held
    assert cache.nbytes == 0 and "0.00 MB" in repr(cache)


def test_a_fork_shares_until_one_of_the_two_writes():
    pool, text = new_pool(), [1, 2, 3, 4]
    cache = PagedKVCache(pool)
    feed(cache, [text])
    twin = cache.fork()
    assert pool.counts() == {"free": 6, "cached": 0, "held": 2, "shared": 2}
    feed(twin, [[*text, 8]])
    assert pool.counts() == {"free": 5, "cached": 0, "held": 3, "shared": 1}
    feed(cache, [[*text, 9, 9]])
    assert pool.counts()["held"] == 3, "the one that is left alone with a block writes into it"
    assert holds(cache, [[*text, 9, 9]]) and holds(twin, [[*text, 8]])
    pool.check([cache, twin])


def test_a_known_block_is_not_overwritten_by_its_own_text():
    pool = new_pool()
    cache = PagedKVCache(pool)
    feed(cache, [[1, 2, 3, 4]])
    cache.register([1, 2, 3, 4])
    cache.truncate(2)
    feed(cache, [[1, 2, 7]])
    late = PagedKVCache(pool)
    assert late.share([1, 2, 3, 4, 5]) == 3
    assert holds(late, [[1, 2, 3]]) and holds(cache, [[1, 2, 7]])
    pool.check([cache, late])


def test_sharing_leaves_the_last_token_and_goes_by_the_row_that_has_least():
    pool = new_pool(16)
    first = PagedKVCache(pool)
    feed(first, [[1, 1, 1, 2, 2, 2, 3]])
    first.register([1, 1, 1, 2, 2, 2, 3])
    for text, shared in (
        ([1, 1, 1], 0),
        ([1, 1, 1, 2], 3),
        ([1, 1, 1, 2, 2, 2], 3),
        ([1, 1, 1, 2, 2, 2, 9], 6),
    ):
        with PagedKVCache(pool) as cache:
            assert cache.share(text) == cache.seq_pos == shared, text
            assert shared == 0 or holds(cache, [text[:shared]])
    with PagedKVCache(pool, 2) as both:
        assert both.share([[1, 1, 1, 2, 2, 2, 9], [1, 1, 1, 5, 5, 5, 9]]) == 3
        feed(both, [[1, 1, 1, 8], [1, 1, 1, 9]])
        assert holds(both, [[1, 1, 1, 8], [1, 1, 1, 9]])
        pool.check([first, both])
    with PagedKVCache(pool, 1, max_seq_len=5) as small:
        assert small.share([1, 1, 1, 2, 2, 2, 9]) == 3, "no more than its max_seq_len"
    assert PagedKVCache(pool).share([]) == 0
    pool.check([first])
    assert pool.counts()["shared"] == 0


def test_token_ids_are_checked():
    pool = new_pool()
    cache = PagedKVCache(pool)
    fill(cache, 4)
    before = state_of(pool, [cache])
    for call, bad, error in (
        (cache.register, [1, 2, 3], ValueError),
        (cache.register, [1, 2, 3, 4, 5], ValueError),
        (cache.register, [[1, 2, 3, 4]] * 2, ValueError),
        (cache.register, [1.0, 2.0, 3.0, 4.0], TypeError),
        (cache.share, [1, 2, 3, 4, 5], ValueError),
    ):
        with pytest.raises(error, match=r"\d|float"):
            call(bad)
        assert state_of(pool, [cache]) == before


@pytest.mark.parametrize(
    "call, error",
    [
        (lambda cache: cache.update(L, *new_pair(1)), ValueError),
        (lambda cache: cache.update(-1, *new_pair(1)), ValueError),
        (lambda cache: cache.update(0.0, *new_pair(1)), TypeError),
        (lambda cache: cache.update(0, *new_pair(0)), ValueError),
        (lambda cache: cache.update(0, *new_pair(1, B=2)), ValueError),
        (lambda cache: cache.update(0, new_pair(1)[0][:, :1], new_pair(1)[1][:, :1]), ValueError),
        (lambda cache: cache.update(0, new_pair(2)[0], new_pair(1)[1]), ValueError),
        (lambda cache: cache.update(0, *new_pair(16)), ValueError),
        (lambda cache: cache.advance(16), ValueError),
        (lambda cache: cache.advance(3), ValueError),
        (lambda cache: cache.advance(0), ValueError),
        (lambda cache: cache.truncate(6), ValueError),
        (lambda cache: cache.truncate(-1), ValueError),
        (lambda cache: cache.truncate(1.0), TypeError),
        (lambda cache: cache.reset(0), ValueError),
        (lambda cache: cache.reset(1.5), TypeError),
        (lambda cache: cache.get(L), ValueError),
    ],
)
def test_bad_input_is_refused_and_changes_nothing(call, error):
    pool = new_pool()
    cache = PagedKVCache(pool, max_seq_len=20)
    feed(cache, [[1, 2, 3, 4, 5]])
    before = state_of(pool, [cache])
    with pytest.raises(error, match=r"\d"):
        call(cache)
    assert state_of(pool, [cache]) == before and holds(cache, [[1, 2, 3, 4, 5]])
    pool.check([cache])


def test_out_of_blocks_changes_nothing_for_any_row():
    pool = new_pool(8)
    cache = PagedKVCache(pool, batch_size=3)
    rows = [[row, 1, 2, 3] for row in range(3)]
    feed(cache, rows)
    before = state_of(pool, [cache])
    with pytest.raises(OutOfBlocks, match=r"3 .* 2 .*8"):
        cache.update(0, *new_pair(3, 3))
    assert state_of(pool, [cache]) == before and holds(cache, rows)
    twin = cache.fork()
    with pytest.raises(OutOfBlocks, match=r"3 .* 2"):
        twin.update(0, *new_pair(1, 3))
    assert state_of(pool, [cache]) == before or pool.counts()["shared"] == 6
    twin.close()
    assert state_of(pool, [cache]) == before
    feed(cache, [[*row, 5, 6] for row in rows])
    assert holds(cache, [[*row, 5, 6] for row in rows])


# attention and models


def slow_attention(query, keys, values, mask):
    """(H, G, T, D), (H, S, D) twice, (H, T, S) -> (H, G, T, D), causal, in loops."""
    heads, group, T, dim = query.shape
    S, out = keys.shape[1], np.zeros(query.shape)
    for h, g, t in np.ndindex(heads, group, T):
        seen = range(S - T + t + 1)
        scores = np.array([float(query[h, g, t] @ keys[h, s]) / dim**0.5 + mask[h, t, s] for s in seen])
        weights = np.exp(scores - scores.max())
        out[h, g, t] = sum(w * values[h, s] for w, s in zip(weights / weights.sum(), seen, strict=True))
    return out


@pytest.mark.parametrize("mask_kind", ["none", "square", "each row", "all alike"])
@pytest.mark.parametrize("T", [1, 4])
def test_rows_attend_through_their_own_tables(mask_kind, T):
    rng, B, G, old = np.random.default_rng(3), 2, 2, 5
    pool = new_pool(20)
    cache = PagedKVCache(pool, B, max_seq_len=11)
    key, value = rng.normal(size=(2, B, H, old + T, D)).astype(np.float32)
    for layer_idx in range(L):
        cache.update(layer_idx, key[:, :, :old], value[:, :, :old])
    cache.advance(old)
    query = rng.normal(size=(B, H, G, T, D)).astype(np.float32)
    masks = {
        "none": None,
        "square": rng.normal(size=(11, 11)).astype(np.float32),
        "each row": rng.normal(size=(B, H, T, old + T)).astype(np.float32),
        "all alike": rng.normal(size=(1, 1, T, old + T)).astype(np.float32),
    }
    mask, full = masks[mask_kind], np.zeros((B, H, T, old + T))
    if mask is not None:
        full += mask[old : old + T, : old + T] if mask_kind == "square" else mask
    for shape in ((B, H, G, T, D), (B, H, T, D)):
        queries = query if len(shape) == 5 else query[:, :, 0]
        out = attention_with_cache(queries, key[:, :, old:], value[:, :, old:], cache, 1, mask)
        assert isinstance(out, Tensor) and out.shape == shape and out.dtype == np.float32
        assert cache.seq_pos == old
        for row in range(B):
            mine = queries[row] if len(shape) == 5 else queries[row][:, None]
            want = slow_attention(mine, key[row], value[row], full[row]).reshape(shape[1:])
            assert np.allclose(out.data[row], want, atol=1e-5), f"row {row}"
    before = state_of(pool, [cache])
    with pytest.raises(ValueError, match=r"\d"):
        attention_with_cache(query, key[:, :, old:], value[:, :, old:], cache, 1, np.zeros((3, 2)))
    assert state_of(pool, [cache]) == before


def small_models():
    yield (
        Llama(29, embed_dim=24, num_layers=3, num_heads=6, num_kv_heads=2, max_seq_len=48, seed=0),
        (3, 2, 4),
    )
    gpt = GPT(29, 24, 3, 4, 48, seed=0)
    for p in gpt.parameters():
        p.data[...] += np.random.default_rng(0).normal(0, 0.2, p.shape)
    yield gpt, (3, 4, 6)


def logits_of(model, cache, tokens, cuts=()):
    enable_kv_cache(model, cache)
    try:
        return np.concatenate([model(piece).data for piece in np.split(tokens, cuts, axis=1)], axis=1)
    finally:
        disable_kv_cache(model)


@pytest.mark.parametrize("block_size", [1, 4, 16])
def test_any_split_and_batch_gives_the_logits_of_the_plain_cache(block_size):
    tokens = np.random.default_rng(2).integers(0, 29, (3, 30))
    for model, sizes in small_models():
        want = logits_of(model, KVCache(3, 48, *sizes), tokens)
        for cuts in ((), (29,), (1, 2, 3, 20), range(1, 30)):
            pool = BlockPool(3 * 48 // block_size, block_size, *sizes)
            got = logits_of(model, PagedKVCache(pool, 3, 48), tokens, cuts)
            assert np.abs(got - want).max() < 1e-4
        plain = model.generate(tokens[:, :7], 15, temperature=0)
        pool = BlockPool(3 * 48 // block_size, block_size, *sizes)
        cache = enable_kv_cache(model, PagedKVCache(pool, 3, 48))
        for _ in range(2):
            assert np.array_equal(model.generate(tokens[:, :7], 15, temperature=0), plain)
            pool.check([cache])
        disable_kv_cache(model)


def test_rows_of_different_lengths_give_the_tokens_of_the_plain_cache():
    tokens = np.random.default_rng(8).integers(0, 29, (3, 10))
    for model, sizes in small_models():
        plain = model.generate(tokens, 12, temperature=0, lengths=[3, 10, 7])
        pool = BlockPool(3 * 6, 4, *sizes)
        enable_kv_cache(model, PagedKVCache(pool, 3, 48))
        assert np.array_equal(model.generate(tokens, 12, temperature=0, lengths=[3, 10, 7]), plain)
        disable_kv_cache(model)


@pytest.mark.parametrize("others", range(12))
def test_a_text_in_any_number_of_pieces_is_attended_to(others):
    """The blocks that follow are taken by somebody else `others` times while the text grows."""
    pool, cut = new_pool(40), np.random.default_rng(others)
    cache, key, value = PagedKVCache(pool), *cut.normal(size=(2, 1, H, 41, D)).astype(np.float32)
    for start in range(0, 40, SIZE):
        part = slice(start, min(40, start + SIZE))
        for layer_idx in range(L):
            cache.update(layer_idx, key[:, :, part], value[:, :, part])
        cache.advance(part.stop - start)
        if start < others * SIZE:
            pool.take(1, cache.tables[0][-1])
    for shape in ((1, H, 2, 1, D), (1, H, 1, D)):
        query = 3 * cut.normal(size=shape).astype(np.float32)
        out = attention_with_cache(query, key[:, :, 40:], value[:, :, 40:], cache, 1)
        assert out.shape == shape and out.dtype == np.float32
        mine = query[0] if len(shape) == 5 else query[0][:, None]
        want = slow_attention(mine, key[0], value[0], np.zeros((H, 1, 41))).reshape(shape)
        assert np.allclose(out.data, want, atol=1e-5)


def test_a_shared_beginning_gives_the_same_logits():
    rng = np.random.default_rng(5)
    prompt = rng.integers(0, 29, 21)
    for model, sizes in small_models():
        pool, caches = BlockPool(40, 4, *sizes), []
        for i in range(4):
            text = np.concatenate([prompt, rng.integers(0, 29, 6)])
            want = logits_of(model, KVCache(1, 48, *sizes), text[None])
            caches.append(PagedKVCache(pool, 1, 48))
            shared = caches[-1].share(text)
            assert shared == (20 if i else 0)
            got = logits_of(model, caches[-1], text[None, shared:])
            assert np.abs(got - want[:, shared:]).max() < 1e-4
            caches[-1].register(text)
        pool.check(caches)
        assert pool.counts()["shared"] == 5 and pool.counts()["held"] == 5 + 4 * 2
        for cache in caches:
            cache.close()
        assert pool.counts() == {"free": 36 - 5 + 4 - 4, "cached": 5 + 4, "held": 0, "shared": 0}


def test_a_model_that_runs_out_of_blocks_can_go_on_when_there_are_some():
    model, sizes = next(small_models())
    tokens = np.random.default_rng(6).integers(0, 29, (1, 14))
    pool = BlockPool(4, 4, *sizes)
    other, cache = PagedKVCache(pool), PagedKVCache(pool, 1, 48)
    other.update(0, *np.zeros((2, 1, 2, 5, 4), np.float32))
    with pytest.raises(OutOfBlocks, match=r"4 .*2"):
        logits_of(model, cache, tokens)
    assert cache.seq_pos == 0 and cache.tables == [[]]
    other.close()
    want = logits_of(model, KVCache(1, 48, *sizes), tokens)
    assert np.abs(logits_of(model, cache, tokens, (5,)) - want).max() < 1e-4


# any sequence of operations

CHOICES = st.integers(0, 5)
TEXTS = st.lists(st.integers(0, 1), min_size=1, max_size=8)


class Conversations(RuleBasedStateMachine):
    """Up to five caches on a pool of nine blocks, against lists of texts."""

    digest = None

    def __init__(self):
        super().__init__()
        self.pool = new_pool(9, digest=self.digest)
        self.caches, self.texts = [], []

    def pick(self, choice):
        i = choice % len(self.caches)
        return i, self.caches[i], self.texts[i]

    def refused(self, call, kind=ValueError):
        before = state_of(self.pool, self.caches)
        with pytest.raises(kind, match=r"\d"):
            call()
        assert state_of(self.pool, self.caches) == before

    @initialize()
    def begin(self):
        self.join(1)

    @precondition(lambda self: len(self.caches) < 5)
    @rule(rows=st.integers(1, 2))
    def join(self, rows):
        self.caches.append(PagedKVCache(self.pool, rows, max_seq_len=18))
        self.texts.append([[] for _ in range(rows)])

    @precondition(lambda self: self.caches)
    @rule(choice=CHOICES, new=TEXTS, again=st.booleans(), commit=st.booleans())
    def write(self, choice, new, again, commit):
        i, cache, rows = self.pick(choice)
        longer = [[*row, *new[:-1], (new[-1] + place) % 2] for place, row in enumerate(rows)]
        if len(longer[0]) > 18:
            pair = pair_of(longer, cache.seq_pos, 0)
            return self.refused(lambda: cache.update(0, *pair))
        missing = sum(max(0, -(-len(longer[0]) // SIZE) - len(table)) for table in cache.tables)
        counts = self.pool.counts()
        left = counts["free"] + counts["cached"]
        if missing > left:
            return self.refused(lambda: cache.update(0, *pair_of(longer, cache.seq_pos, 0)), OutOfBlocks)
        try:
            for layer_idx in range(L if commit else 1):
                for _ in range(1 + again):
                    cache.update(layer_idx, *pair_of(longer, cache.seq_pos, layer_idx))
        except OutOfBlocks:
            assert missing + len(rows) > left, f"{missing} blocks and copies were needed, {left} were left"
            return None
        if commit:
            cache.advance(len(new))
            self.texts[i] = longer

    @precondition(lambda self: self.caches)
    @rule(choice=CHOICES, new=TEXTS, method=st.sampled_from(["write", "arrays", "hold", "place"]))
    def break_off(self, choice, new, method):
        """Ctrl-C while blocks are taken, copied or written: nothing committed is lost, and no block."""
        _, cache, rows = self.pick(choice)
        longer = [[*row, *new] for row in rows]
        if len(longer[0]) > 18:
            return

        def interrupt(*_):
            raise KeyboardInterrupt

        setattr(self.pool, method, interrupt)
        try:
            cache.update(0, *pair_of(longer, cache.seq_pos, 0))
            cache.fork().close()
        except (KeyboardInterrupt, OutOfBlocks):
            pass
        finally:
            delattr(self.pool, method)

    @precondition(lambda self: self.caches)
    @rule(choice=CHOICES, kept=st.integers(0, 19))
    def truncate(self, choice, kept):
        i, cache, rows = self.pick(choice)
        if kept > cache.seq_pos:
            return self.refused(lambda: cache.truncate(kept))
        cache.truncate(kept)
        self.texts[i] = [row[:kept] for row in rows]

    @precondition(lambda self: self.caches)
    @rule(choice=CHOICES, rows=st.sampled_from([None, 1, 2]))
    def reset(self, choice, rows):
        i, cache, old = self.pick(choice)
        cache.reset(rows)
        self.texts[i] = [[] for _ in range(rows or len(old))]
        assert cache.nbytes == 0

    @precondition(lambda self: self.caches)
    @rule(choice=CHOICES)
    def leave(self, choice):
        i, cache, _ = self.pick(choice)
        cache.close()
        del self.caches[i], self.texts[i]

    @precondition(lambda self: 0 < len(self.caches) < 5)
    @rule(choice=CHOICES)
    def fork(self, choice):
        _, cache, rows = self.pick(choice)
        free = self.pool.counts()["free"]
        self.caches.append(cache.fork())
        self.texts.append([list(row) for row in rows])
        assert self.pool.counts()["free"] == free

    @precondition(lambda self: self.caches)
    @rule(choice=CHOICES)
    def register(self, choice):
        _, cache, rows = self.pick(choice)
        cache.register(rows)
        self.refused(lambda: cache.register([[*row, 1] for row in rows]))

    @precondition(lambda self: self.caches)
    @rule(choice=CHOICES, text=TEXTS)
    def share(self, choice, text):
        i, cache, rows = self.pick(choice)
        if cache.seq_pos:
            return self.refused(lambda: cache.share([text] * len(rows)))
        known = [row for texts in self.texts for row in texts if row] + [text]
        wanted = known[choice % len(known)] + text
        shared = cache.share([wanted] * len(rows))
        assert shared % SIZE == 0 and shared < len(wanted)
        self.texts[i] = [wanted[:shared] for _ in rows]

    @invariant()
    def contents_are_those_of_the_texts(self):
        for cache, rows in zip(self.caches, self.texts, strict=True):
            assert holds(cache, rows), f"{rows} in {cache.tables}"

    @invariant()
    def the_books_balance(self):
        tables = Counter(block for cache in self.caches for table in cache.tables for block in table)
        assert self.pool.references == [tables[block] for block in range(9)]
        free, cached, held = set(self.pool.free), set(self.pool.cached), set(tables)
        assert sorted([*free, *cached, *held]) == list(range(9)), "each block is free, cached or held"
        assert cached <= set(self.pool.index.by_block) and not free & set(self.pool.index.by_block)
        assert self.pool.counts()["held"] * self.pool.block_bytes <= sum(c.nbytes for c in self.caches)
        self.pool.check(self.caches)

    def teardown(self):
        for cache in self.caches:
            cache.close()
        counts = self.pool.counts()
        assert counts["held"] == 0 and counts["free"] + counts["cached"] == 9, "a block was lost"
        assert sorted(self.pool.take(9)) == list(range(9))
        assert len(self.pool.index) == 0


class Collisions(Conversations):
    """The same with a digest that is always the same: whatever is found has to be what was meant."""

    @staticmethod
    def digest(parent, tokens):
        return b"the same"


MACHINE = settings(
    max_examples=40, stateful_step_count=25, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
TestConversations = Conversations.TestCase
TestConversations.settings = MACHINE
TestCollisions = Collisions.TestCase
TestCollisions.settings = settings(MACHINE, max_examples=15)
