"""Whatever breaks off a pass, at any line, leaves the cache as it was: for every cache, and behind models."""

import copy

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from broken_off import BrokenOff, first_visits, traced
from test_caches import CASES, MODELS, SIZES, TOKENS, Text, pair
from tinytorch.generation import kv_cache, paged, quantized, window
from tinytorch.generation.kv_cache import (
    Cache,
    CacheFull,
    attention_with_cache,
    enable_kv_cache,
    known_text,
    load_cache,
    save_cache,
)
from tinytorch.generation.paged import BlockPool, OutOfBlocks, PagedKVCache
from tinytorch.generation.window import SlidingWindowKVCache

LIKE_ANOTHER = ("int8, asymmetric", "int4, symmetric", "window of 1", "window, all")
FILES = [kv_cache, window, quantized, paged]
CASES = {**CASES, "window, spare": CASES["window, sinks"]}
SPARE = {"window, spare": 4}


def new_cache(name, **sizes):
    case = CASES[name]
    if name in SPARE:
        sizes = {"batch_size": 2, "max_seq_len": 40, **SIZES, **sizes}
        return SlidingWindowKVCache(**sizes, **case.options, spare=SPARE[name])
    return case.new(**sizes)


def filled(name, pieces=(7, 1, 1, 9, 1)):
    cache = new_cache(name)
    Text(CASES[name]).read(cache, pieces)
    return cache


def outside(cache):
    """All that can be seen of a cache, to the byte; how far it can be rewound; and the books of its pool."""
    probe = copy.deepcopy(cache)
    shown = [x.data.tobytes() for i in range(probe.num_layers) for x in probe.get(i)]
    rewinds = []
    for keep in sorted({0, *range(max(0, probe.seq_pos - 5), probe.seq_pos + 1)}):
        one = copy.deepcopy(probe)
        try:
            one.truncate(keep)
        except ValueError:
            continue
        rewinds.append((keep, [x.data.tobytes() for i in range(one.num_layers) for x in one.get(i)]))
    seen = [probe.seq_pos, probe.batch_size, probe.nbytes, probe.get_memory_usage(), shown, rewinds]
    if isinstance(probe, PagedKVCache):
        probe.pool.check([probe])
        seen.append([probe.tables, probe.pool.references, probe.pool.free, list(probe.pool.cached)])
    return seen


def one_pass(cache, text, num_tokens, mask=None):
    """Every layer attends to the next tokens; the last of all is the commit -> the answers."""
    start, stop, answers = cache.seq_pos, cache.seq_pos + num_tokens, []
    for i in range(cache.num_layers):
        new = (
            text.query[i, :, :, :, start:stop],
            text.key[i, :, :, start:stop],
            text.value[i, :, :, start:stop],
        )
        answers.append(attention_with_cache(*new, cache, i, mask).data)
    cache.advance(num_tokens)
    return answers


def goes_on(cache, text, num_tokens):
    """The bytes of this pass and of the next, one token long."""
    both = one_pass(cache, text, num_tokens) + one_pass(cache, text, 1)
    return [answer.tobytes() for answer in both], outside(cache)


EACH = [pytest.param(name, marks=[pytest.mark.slow] if name in LIKE_ANOTHER else []) for name in CASES]


def lines_of(call, thing) -> list:
    """The lines that the call comes to with a copy of the thing."""
    twin = copy.deepcopy(thing)
    return traced(lambda: call(twin), FILES)


def broken_off(call, thing, at: int):
    """-> a copy of the thing, with which the call was broken off before that line."""
    twin = copy.deepcopy(thing)
    with pytest.raises(BrokenOff):
        traced(lambda: call(twin), FILES, at)
    return twin


@pytest.mark.parametrize("num_tokens", [1, 5])
@pytest.mark.parametrize("name", EACH)
def test_a_pass_broken_off_at_any_line_leaves_the_cache_as_it_was(name, num_tokens):
    """Line by line of all layers and the commit; then the same pass gives what it would have given."""
    cache, text = filled(name), Text(CASES[name])
    text.stop = cache.seq_pos
    before, want = outside(cache), goes_on(copy.deepcopy(cache), text, num_tokens)
    call = lambda twin: one_pass(twin, text, num_tokens)  # noqa: E731
    lines = lines_of(call, cache)
    assert len(lines) > 60
    for at in sorted({*first_visits(lines), *range(0, len(lines), 23)}):  # of every layer some
        broken = broken_off(call, cache, at)
        path, line = lines[at]
        if isinstance(broken, PagedKVCache):
            broken.truncate(broken.seq_pos)  # a layer that is through keeps its blocks for the next attempt
        assert outside(broken) == before, f"{path}:{line}"
        assert goes_on(broken, text, num_tokens) == want, f"{path}:{line}"


@pytest.mark.parametrize("name", EACH)
@pytest.mark.parametrize("change", ["truncate", "reset", "reset rows"])
def test_a_change_broken_off_at_any_line_is_made_or_not_made(name, change):
    if change == "truncate":
        keep = filled(name).seq_pos - 1
        call = lambda cache: cache.truncate(keep)  # noqa: E731
    else:
        call = lambda cache: cache.reset(*([1] if change == "reset rows" else []))  # noqa: E731
    cache = filled(name)
    made = copy.deepcopy(cache)
    lines, before, after = traced(lambda: call(made), FILES), outside(cache), outside(made)
    for at in range(len(lines)):
        broken = broken_off(call, cache, at)
        assert outside(broken) in (before, after), f"{lines[at][0]}:{lines[at][1]}"
        call(broken)
        assert outside(broken) == after


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("name", ["plain", "window, sinks", "int4", "paged"])
def test_a_pass_of_a_model_broken_off_at_any_line_commits_nothing(name, model):
    """Logits included: whoever gets an error finds the cache as it was, the blocks of a pool too."""
    model = MODELS[model]()
    enable_kv_cache(model, new_cache(name))
    model(TOKENS[:, :11])
    start = copy.deepcopy(model)
    before = outside(model._kv_cache)
    for width in (1, 4):
        new = TOKENS[:, 11 : 11 + width]
        want = copy.deepcopy(start).next_logits(new)
        call = lambda twin, new=new: twin.next_logits(new)  # noqa: E731
        lines = lines_of(call, start)
        for at in first_visits(lines)[::5]:
            broken = broken_off(call, start, at)
            assert outside(broken._kv_cache) == before, f"{lines[at][0]}:{lines[at][1]}"
            assert np.array_equal(broken.next_logits(new), want)


BAD_MASKS = {
    "integers": np.zeros((1, 24), int),
    "booleans": np.ones((1, 24), bool),
    "another shape": np.zeros((3, 7), np.float32),
    "a column too many": np.zeros((5, 25), np.float32),
}


@pytest.mark.parametrize("bad", BAD_MASKS)
@pytest.mark.parametrize("name", CASES)
def test_a_bad_mask_is_refused_before_anything_is_written(name, bad):
    cache, text = filled(name), Text(CASES[name])
    before = outside(cache)
    with pytest.raises((ValueError, TypeError)):
        one_pass(cache, text, 5, BAD_MASKS[bad])
    assert outside(cache) == before
    query = np.zeros((2, 2, 5, 8), int)
    with pytest.raises(TypeError, match="int"):
        attention_with_cache(query, *pair(5), cache, 0)
    assert outside(cache) == before


@pytest.mark.parametrize("name", CASES)
def test_only_what_every_layer_has_written_is_committed(name):
    cache = filled(name)
    assert isinstance(cache, Cache)
    before, start = outside(cache), cache.seq_pos
    for layer in range(cache.num_layers):
        for n in (1, 3):
            with pytest.raises(ValueError, match=str(n)):
                cache.advance(n)
        cache.update(layer, *pair(3))
    with pytest.raises(ValueError, match="4"):
        cache.advance(4)
    cache.truncate(start)
    with pytest.raises(ValueError):
        cache.advance(3)
    assert outside(cache) == before
    cache.reset()
    with pytest.raises(ValueError):
        cache.advance()


@pytest.mark.parametrize("name", CASES)
def test_want_of_room_has_an_exception_of_its_own(name):
    cache = filled(name)
    with pytest.raises(CacheFull, match="40"):
        cache.update(0, *pair(22))
    with pytest.raises(CacheFull, match="40"):
        cache.reserve(22)
    cache.reserve(21)


def test_another_texts_keys_are_never_shown():
    """Its blocks were given back, and are taken again: what lies in them is nobody's."""
    pool = BlockPool(4, 4, **SIZES)
    first, second = PagedKVCache(pool), PagedKVCache(pool)
    for i in range(SIZES["num_layers"]):
        first.update(i, *pair(12, batch_size=1))
    first.advance(12)
    first.close()
    for i in range(SIZES["num_layers"]):
        second.update(i, *pair(1, batch_size=1, seed=1))
    with pytest.raises(ValueError, match="8"):
        second.advance(8)
    second.advance(1)


def test_a_closed_cache_refuses_and_can_be_closed_again():
    pool = BlockPool(8, 4, **SIZES)
    with PagedKVCache(pool) as cache:
        cache.update(0, *pair(3, batch_size=1))
    for call in (
        lambda: cache.update(0, *pair(3, batch_size=1)),
        lambda: cache.reserve(2),
        lambda: cache.reset(),
        lambda: cache.share([1, 2, 3]),
    ):
        with pytest.raises(ValueError, match="closed|open"):
            call()
    cache.close()
    assert pool.counts()["free"] == 8 and cache.nbytes == 0
    pool.check([cache])


TEXTS = st.lists(st.integers(0, 1), min_size=1, max_size=12)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(TEXTS, st.booleans()), max_size=12), st.integers(3, 8), st.booleans())
def test_what_is_known_can_be_found(texts, blocks, colliding):
    """After any texts that come, stay known and are evicted: no block is cached that no text could find."""
    digest = (lambda parent, tokens: bytes([sum(tokens) % 2])) if colliding else None
    pool = BlockPool(blocks, 2, 1, 1, 1, digest=digest)
    open_caches = []
    for text, stays in texts:
        cache = PagedKVCache(pool, max_seq_len=12)
        shared = cache.share(text)
        new = np.zeros((1, 1, len(text) - shared, 1), np.float32)
        try:
            cache.update(0, new, new)
            cache.advance(len(text) - shared)
            cache.register(text)
        except OutOfBlocks:
            stays = False
        open_caches.append(cache) if stays else cache.close()
        while sum(len(c.tables[0]) for c in open_caches) > blocks // 2:
            open_caches.pop(0).close()
        pool.check(open_caches)
        for known in pool.index.by_block.values():
            whole, chain = [], known
            while chain is not None:
                whole, chain = [*chain.tokens, *whole], chain.parent
            assert pool.index.find(whole)[-1:] == [known.block]


@pytest.mark.parametrize("name", CASES)
def test_a_cache_that_was_saved_goes_on(name, tmp_path):
    """The same to the byte, rewinds too; what is not committed is not saved."""
    cache, text = filled(name), Text(CASES[name])
    for layer in range(2):
        cache.update(layer, *pair(2, seed=3))
    save_cache(cache, tmp_path / "cache.npz")
    again = new_cache(name)
    load_cache(again, tmp_path / "cache.npz")
    cache.truncate(cache.seq_pos)
    assert outside(again)[:6] == outside(cache)[:6]  # all but which blocks of which pool
    assert goes_on(again, text, 5)[0] == goes_on(cache, text, 5)[0]
    with pytest.raises(ValueError, match=f"{again.seq_pos} tokens"):
        load_cache(again, tmp_path / "cache.npz")
    for other in (new_cache(name, num_layers=2), new_cache("window" if name == "plain" else "plain")):
        with pytest.raises(ValueError, match="saved was a"):
            load_cache(other, tmp_path / "cache.npz")
        assert other.seq_pos == 0
    assert [path.name for path in tmp_path.iterdir()] == ["cache.npz"]


def test_a_saved_cache_knows_its_text_and_its_weights(tmp_path):
    model, other = MODELS["GPT"](), MODELS["GPT"]()
    other.parameters()[3].data += 1
    whole = model(TOKENS).data
    cache = enable_kv_cache(model, new_cache("plain"))
    model(TOKENS[:, :20])
    save_cache(cache, tmp_path / "cache.npz")
    again = new_cache("plain")
    load_cache(again, str(tmp_path / "cache.npz"))
    assert known_text(again) == TOKENS[:, :20].T.tolist()
    enable_kv_cache(model, again)
    assert np.abs(model(TOKENS[:, 20:]).data - whole[:, 20:]).max() < 1e-4
    third = new_cache("plain")
    load_cache(third, tmp_path / "cache.npz")
    enable_kv_cache(other, third)
    with pytest.raises(ValueError, match="20 tokens.*other weights"):
        other(TOKENS[:, 20:])


def test_a_file_that_is_damaged_is_refused_and_a_bad_save_leaves_the_old_one(tmp_path):
    cache, path = filled("plain"), tmp_path / "cache.npz"
    with pytest.raises(ValueError, match="0 tokens"):
        save_cache(new_cache("plain"), path)
    with pytest.raises(FileNotFoundError):
        load_cache(new_cache("plain"), path)
    save_cache(cache, path)
    good = path.read_bytes()
    for bad in (b"", b"nothing", good[:-200], good[:300] + bytes(200) + good[500:]):
        path.write_bytes(bad)
        empty = new_cache("plain")
        with pytest.raises(ValueError, match="not a saved cache"):
            load_cache(empty, path)
        assert empty.seq_pos == 0 and outside(empty) == outside(new_cache("plain"))
    path.write_bytes(good)
    cache.dump = lambda: {"k_0": np.array([object()])}["x"]
    with pytest.raises(KeyError):
        save_cache(cache, path)
    assert path.read_bytes() == good and len(list(tmp_path.iterdir())) == 1
