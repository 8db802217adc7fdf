"""What `generate` and `stream` take besides temperature, top-k and top-p, against loops over lists."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tinytorch.generation.kv_cache import generate_with_cache
from tinytorch.models.transformer import GPT, Chooser, sample, stream_text
from tinytorch.text.tokenization import BPETokenizer

V = 11
ROWS = st.lists(st.floats(-9, 9, width=32), min_size=V, max_size=V)


def new_model(vocab_size=V):
    model = GPT(vocab_size, 24, 2, 3, 64, seed=1)
    for p in model.parameters():
        p.data *= 6 if p.ndim == 2 else 1
    return model


@pytest.fixture(scope="module")
def model():
    return new_model()


def log_probabilities(row):
    total = math.fsum(math.exp(x - max(row)) for x in row)
    return [x - max(row) - math.log(total) for x in row]


@given(
    rows=st.lists(ROWS, min_size=1, max_size=4),
    prompt=st.lists(st.integers(0, V - 1), min_size=1, max_size=5),
    penalty=st.floats(0.5, 3),
    bias=st.dictionaries(
        st.integers(0, V - 1), st.floats(-20, 20, width=32) | st.just(-math.inf), max_size=4
    ),
)
@settings(max_examples=60, deadline=None)
def test_penalty_and_bias_are_what_lists_say(rows, prompt, penalty, bias):
    log_probs = []
    choose = Chooser(0, repetition_penalty=penalty, logit_bias=bias, log_probs=log_probs)
    choose.read(np.array([prompt]))
    text = list(prompt)
    for row in rows:
        want = [x if t not in text else x / penalty if x > 0 else x * penalty for t, x in enumerate(row)]
        want = [x + bias.get(t, 0) for t, x in enumerate(want)]
        (token,) = choose(np.array([row], np.float32))
        assert math.isclose(want[token], max(want), rel_tol=1e-5, abs_tol=1e-5)
        text.append(int(token))
        assert math.isclose(log_probs[-1][0], log_probabilities(row)[token], rel_tol=1e-4, abs_tol=1e-4)
    assert len(log_probs) == len(rows)


@given(row=ROWS, min_p=st.floats(0.01, 1), temperature=st.floats(0.2, 3))
@settings(max_examples=60, deadline=None)
def test_min_p_drops_what_is_less_likely_than_its_part_of_the_likeliest(row, min_p, temperature):
    part = [math.exp((x - max(row)) / temperature) for x in row]
    drawn = set()
    choose = Chooser(temperature, rng=0, min_p=min_p)
    for _ in range(50):
        drawn.update(choose(np.array([row] * 8, np.float32)).tolist())
    assert all(part[t] >= min_p * (1 - 1e-5) for t in drawn)
    certain = [t for t in range(V) if part[t] > min_p * (1 + 1e-5) and part[t] / sum(part) > 0.05]
    assert drawn >= set(certain), "what is above the bar can be drawn"


def test_without_further_wishes_it_is_sample():
    logits = np.random.default_rng(0).normal(size=(5, V)).astype(np.float32)
    for options in ({"temperature": 0}, {"temperature": 0.7, "top_k": 4, "top_p": 0.8}):
        want = sample(logits, **options, rng=np.random.default_rng(3))
        assert (
            Chooser(**options, rng=np.random.default_rng(3), min_p=0, logit_bias={})(logits).tolist()
            == want.tolist()
        )


@pytest.mark.parametrize("generate", [GPT.generate, generate_with_cache])
def test_generate_takes_them_with_the_cache_and_without(model, generate):
    prompt = np.array([[1, 2, 3], [4, 5, 6]])
    log_probs = []
    text = generate(model, prompt, 9, temperature=0, repetition_penalty=3.0, log_probs=log_probs)
    for row in text.tolist():
        for t in range(3, 12):
            scores = model(np.array([row[:t]])).data[0, -1].tolist()
            scores = [x if i not in row[:t] else x / 3 if x > 0 else x * 3 for i, x in enumerate(scores)]
            assert row[t] == scores.index(max(scores))
    logits = model(text[:, :-1]).data
    for t, column in enumerate(log_probs):
        for b in range(2):
            want = log_probabilities(logits[b, 2 + t].tolist())[text[b, 3 + t]]
            assert math.isclose(column[b], want, abs_tol=1e-3)
    plain = generate(model, prompt, 9, temperature=0)
    never = int(plain[0, 3])
    other = generate(model, prompt, 9, temperature=0, logit_bias={never: -math.inf})
    assert never in plain[:, 3:] and never not in other[:, 3:]
    always = generate(model, prompt, 4, temperature=1, rng=0, logit_bias={7: 1e4})
    assert (always[:, 3:] == 7).all()
    greedy = generate(model, prompt, 9, temperature=2.0, rng=0, min_p=1)
    assert greedy.tolist() == plain.tolist(), "with min_p 1 only the likeliest is left"


@pytest.mark.parametrize("pad_side", ["left", "right"])
def test_padding_is_no_part_of_the_text(model, pad_side):
    """Token 0 stands for padding inside; it must not count as said."""
    rows, lengths = np.array([[1, 2, 3, 4], [5, 6, 0, 0]]), [4, 2]
    if pad_side == "left":
        rows[1] = [0, 0, 5, 6]
    options = dict(temperature=0, repetition_penalty=3.0)
    together = model.generate(rows, 6, lengths=lengths, pad_side=pad_side, **options)
    start = 2 if pad_side == "right" else 4
    for b, (text, at) in enumerate((([1, 2, 3, 4], 4), ([5, 6], start))):
        alone = model.generate(np.array([text]), 6, **options)[0, len(text) :].tolist()
        assert together[b, at : at + 6].tolist() == alone


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"min_p": 1.5}, ValueError, "min_p.*1.5"),
        ({"min_p": math.nan}, ValueError, "min_p.*nan"),
        ({"min_p": "much"}, TypeError, "min_p.*much"),
        ({"repetition_penalty": 0}, ValueError, "repetition_penalty.*0"),
        ({"repetition_penalty": math.inf}, ValueError, "repetition_penalty.*inf"),
        ({"logit_bias": {V: 1.0}}, ValueError, "token 11.*vocabulary of 11"),
        ({"logit_bias": {1: math.nan}}, ValueError, "token 1.*nan"),
        ({"logit_bias": {1: math.inf}}, ValueError, "token 1.*inf"),
        ({"logit_bias": {"the": 1.0}}, TypeError, "the"),
        ({"stop_strings": "x"}, TypeError, "tokenizer"),
        ({"surprise": 1}, TypeError, "surprise"),
    ],
)
def test_what_cannot_be_is_refused_before_any_work(model, options, error, words):
    passes = []
    count = lambda inner, *args: passes.append(1) or inner(*args)  # noqa: E731
    model.wrap("hidden_states", count)
    try:
        with pytest.raises(error, match=words):
            model.generate(np.array([[1, 2]]), 3, **options)
    finally:
        model.unwrap("hidden_states", count)
    assert not passes


# stop strings

ASCII = {"logit_bias": dict.fromkeys(range(128, 256), -math.inf)}  # half a character is no text yet


@pytest.fixture(scope="module")
def talker():
    """-> a model, a tokenizer, a prompt, and what the model writes after it, as text."""
    tokenizer = BPETokenizer.train("the cat sat on the mat and the rat sat on the hat " * 3, vocab_size=280)
    model = new_model(tokenizer.vocab_size)
    prompt = "the cat"
    ids = np.array([tokenizer.encode(prompt)])

    def tokens(n, **options):
        return model.generate(ids, n, **ASCII | options)[0, ids.shape[1] :].tolist()

    return model, tokenizer, prompt, tokens


def test_a_stop_string_ends_the_text_and_is_not_shown(talker):
    model, tokenizer, prompt, tokens = talker
    for seed in range(6):
        whole = "".join(stream_text(model, tokenizer, prompt, 30, rng=seed, **ASCII))
        assert whole == tokenizer.decode(tokens(30, rng=seed))
        for start, stop in ((3, 5), (7, 8), (4, 10)):
            word = whole[start:stop]
            if not word:
                continue
            shown = "".join(
                stream_text(model, tokenizer, prompt, 30, stop_strings=["no such", word], rng=seed, **ASCII)
            )
            assert shown == whole[: whole.index(word)]
            cut = tokens(30, rng=seed, stop_strings=word, tokenizer=tokenizer)
            assert word in tokenizer.decode(cut) and word not in tokenizer.decode(cut[:-1])


def test_a_stop_token_is_not_shown_and_ends(talker):
    model, tokenizer, prompt, tokens = talker
    written = tokens(20, temperature=0.9, rng=4)
    stop = written[5]
    shown = "".join(
        stream_text(model, tokenizer, prompt, 20, temperature=0.9, rng=4, stop_token=stop, **ASCII)
    )
    assert shown == tokenizer.decode(written[: written.index(stop)])


def test_stop_strings_are_for_one_text(talker):
    model, tokenizer, *_ = talker
    with pytest.raises(ValueError, match="1 text, the prompt has 2 rows"):
        model.generate(np.array([[1], [2]]), 3, stop_strings="x", tokenizer=tokenizer)
