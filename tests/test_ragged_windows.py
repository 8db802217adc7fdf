"""Rows of different lengths through a window with attention sinks: each as if it were alone."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from test_ragged import LONGEST, V, laid_out, lengths_of, new_model, new_rows, pad, written
from tinytorch.generation.kv_cache import cache_sizes, enable_kv_cache
from tinytorch.generation.window import SlidingWindowKVCache
from tinytorch.models.llama import Llama


def new_llama(seed):
    model = Llama(V, 16, 2, 4, 2, max_seq_len=LONGEST, seed=seed)
    for p in model.parameters():
        p.data *= 3 if p.ndim == 2 else 1
    return model


@settings(max_examples=25, deadline=None)
@given(st.data(), st.sampled_from(["left", "right"]), st.sampled_from(["gpt", "llama", "near"]))
def test_a_window_and_its_sinks_are_each_rows_own(data, side, kind):
    """Through a window with attention sinks a short row keeps its own first tokens, and not its padding."""
    seed = data.draw(st.integers(0, 999))
    model = new_model(seed) if kind == "gpt" else new_llama(seed)
    lengths, width = lengths_of(data.draw)
    window, sinks = data.draw(st.integers(1, 7)), data.draw(st.integers(0, 4))
    spare = data.draw(st.sampled_from([0, 3]))
    rows = new_rows(lengths, seed)
    prompt, pads = pad(rows, width, side, seed)
    new = data.draw(st.integers(1, LONGEST - max(lengths)))

    def cached(batch_size):
        rotary = model.position_embedding if kind == "near" else None
        sizes = dict(batch_size=batch_size, max_seq_len=LONGEST, **cache_sizes(model))
        return SlidingWindowKVCache(**sizes, window=window, num_sinks=sinks, rotary=rotary, spare=spare)

    alone = []
    for row in rows:
        enable_kv_cache(model, cached(1))
        alone.append(written(model, row[None], new, temperature=0))
    enable_kv_cache(model, cached(len(rows)))
    for _ in range(2):  # and again, at once
        text, logits = written(model, prompt, new, temperature=0, lengths=lengths, pad_side=side)
        for b, (_, one) in enumerate(alone):
            assert np.abs(logits[:, b] - one[:, 0]).max() < 1e-4, f"row {b} of {lengths}"
        news = [one[0, len(row) :] for (one, _), row in zip(alone, rows, strict=True)]
        assert np.array_equal(text, laid_out(rows, news, pads, side))
    cache = model._kv_cache
    assert np.array_equal(
        model.generate(rows[0][None].repeat(len(rows), 0), 1, temperature=0)[:, -1:],
        alone[0][0][:1, len(rows[0]) : len(rows[0]) + 1].repeat(len(rows), 0),
    )
    assert cache.rows is None, "rows of one length are one text again"
