"""The chat of the 2024 milestone without its model: a random small Llama, whose words are bytes."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tinytorch.caches import CACHES, new_cache
from tinytorch.generation.kv_cache import disable_kv_cache, enable_kv_cache
from tinytorch.models.llama import Llama

REPO = Path(__file__).resolve().parents[1]
FOLDER = REPO / "milestones" / "06_2024_llm"
sys.path.insert(0, str(FOLDER))

from conversation import CONTEXT, ENDED, INTERRUPTED, LIMIT, Conversation  # noqa: E402
from display import Wrapped  # noqa: E402
from smollm2_chat import bench  # noqa: E402

START, END = 256, 257
QUESTIONS = ["one?", "and the second one?", "3", "a fourth, a longer one, to fill what is left"]


class Bytes:
    """A tokenizer of bytes, with the pieces of ChatML that a conversation is made of."""

    vocabulary = [bytes([i]) for i in range(256)] + [b"<", b">"]
    stop_tokens = {END}

    def opening(self, system=None):
        return [START, *(b"be kind" if system is None else system.encode()), END]

    def turn(self, question):
        return [START, *question.encode(), END, START]

    def closing(self):
        return [END, 10]


def new_model():
    """Weights four times as large as usual, so that all that was said matters; it never says END."""
    model = Llama(258, 24, 2, 6, 2, hidden_dim=40, max_seq_len=300, seed=3)
    for parameter in model.parameters():
        parameter.data *= 4 if parameter.ndim == 2 else 1
    model.token_embedding.weight.data[END] = 0
    return model


@pytest.fixture
def model():
    return new_model()


def answers(chat, questions, **options):
    return [chat.ask(question, temperature=0, **options) for question in questions]


TWIN = new_model()  # of the model in every test


def fresh(tokens, new, cache=None):
    """What the model writes after these tokens, greedily, read all at once, without a cache or a new one."""
    if cache is not None:
        enable_kv_cache(TWIN, cache)
    row = TWIN.generate(np.array([tokens]), new, temperature=0, stop_token=END)[0, len(tokens) :].tolist()
    disable_kv_cache(TWIN)
    return row[:-1] if row[-1] == END else row


def test_a_conversation_is_the_same_with_and_without_the_cache(model):
    cached, plain = (Conversation(model, Bytes(), 300, cache=kind) for kind in ("plain", None))
    got = answers(cached, QUESTIONS, max_new_tokens=12)
    cached.close()
    want = answers(plain, QUESTIONS, max_new_tokens=12)
    assert not hasattr(model, "_kv_cache"), "the cache is gone afterwards"
    assert [a.tokens for a in got] == [a.tokens for a in want] and cached.tokens == plain.tokens
    assert all(len(a.tokens) == 12 and a.ended == LIMIT and a.made == 11 for a in got)
    assert [a.read for a in want] == [
        len(plain.opening + sum(plain.turns[:n], [])) + len(Bytes().turn(q)) for n, q in enumerate(QUESTIONS)
    ]


def test_with_the_cache_a_turn_reads_only_what_is_new(model):
    chat, seen = Conversation(model, Bytes(), 300), []
    watch = lambda inner, x: seen.append(x.shape[1]) or inner(x)  # noqa: E731
    model.blocks[0].mlp.wrap("forward", watch)
    for n, question in enumerate(QUESTIONS):
        seen.clear()
        answer = chat.ask(question, max_new_tokens=7, temperature=0)
        before = len(chat.opening) if n == 0 else 1 + len(Bytes().closing())  # its last token is not read yet
        assert seen == [before + len(Bytes().turn(question))] + [1] * 6
        assert answer.read == seen[0]
    assert chat.cache.seq_pos == len(chat.tokens) - 1 - len(Bytes().closing())


def test_the_cache_holds_the_kv_heads_only(model):
    chat = Conversation(model, Bytes(), 100)
    assert chat.cache.nbytes == 2 * 2 * 2 * 100 * 4 * 4  # keys and values, layers, kv heads, tokens, D, bytes


def test_a_long_text_is_read_in_pieces(model, monkeypatch):
    monkeypatch.setattr("conversation.PIECE", 100)
    heard, chat = [], Conversation(model, Bytes(), 300)
    answer = chat.ask("x" * 200, max_new_tokens=5, temperature=0, reading=lambda *n: heard.append(n))
    total = len(chat.opening) + 200 + 3
    assert heard == [(0, total), (100, total), (200, total), (total, total)]
    assert answer.tokens == fresh(chat.tokens[:total], 5)


@pytest.mark.parametrize("cache", ["plain", None])
def test_the_end_token_ends_an_answer_and_is_not_said(model, cache):
    chat = Conversation(model, Bytes(), 300, cache=cache)
    said = chat.ask("one?", max_new_tokens=9, temperature=0).tokens
    chat.close()
    stopping = Bytes()
    at = next(n for n in range(2, 9) if said[n] not in said[:n])
    stopping.stop_tokens = {END, said[at]}
    chat = Conversation(model, stopping, 300, cache=cache)
    answer = chat.ask("one?", max_new_tokens=9, temperature=0)
    assert answer.ended == ENDED and answer.tokens == said[:at] and answer.made == at
    assert chat.tokens == chat.opening + stopping.turn("one?") + said[:at] + stopping.closing()
    assert answer.text == b"".join(Bytes.vocabulary[i] for i in said[:at]).decode(errors="replace")


@pytest.mark.parametrize("cache", [*CACHES, None])
def test_a_full_context_forgets_the_oldest_turns_and_keeps_the_system_message(model, cache):
    chat, forgotten = Conversation(model, Bytes(), 150, cache=cache), 0
    just_now = 0
    for n in range(12):
        before = [list(turn) for turn in chat.turns]
        answer = chat.ask(QUESTIONS[n % 4], max_new_tokens=12, temperature=0)
        forgotten += answer.forgotten
        assert chat.turns[:-1] == before[answer.forgotten :]
        assert not (answer.forgotten and just_now), "half of the room was made, not a turn's worth"
        just_now = answer.forgotten
        assert chat.tokens[: len(chat.opening)] == Bytes().opening() and len(chat.tokens) <= 150 + 2
        prompt = chat.tokens[: -len(answer.tokens) - 2]
        assert len(answer.tokens) == 12
        if cache is None or CACHES[cache].is_exact:
            assert answer.tokens == fresh(prompt, 12), "as if only what is left had ever been said"
        if answer.forgotten and cache:
            stayed = 0 if cache == "window" else len(chat.opening)
            assert answer.read == len(prompt) - stayed, "the system message stayed in the cache"
    assert forgotten > 4


@pytest.mark.parametrize("cache", ["plain", None])
def test_an_answer_ends_with_the_context(model, cache):
    chat = Conversation(model, Bytes(), 100, cache=cache)
    answer = chat.ask("one?", max_new_tokens=500, temperature=0)
    assert answer.ended == CONTEXT
    assert len(chat.opening) + len(Bytes().turn("one?")) + len(answer.tokens) == 101, "the last is not read"
    again = chat.ask("and?", max_new_tokens=5, temperature=0)
    assert again.forgotten == 1 and again.tokens == fresh(chat.opening + Bytes().turn("and?"), 5)


def test_what_does_not_fit_is_refused_and_nothing_is_lost(model):
    with pytest.raises(ValueError, match="301 tokens is too long, the model takes 300"):
        Conversation(model, Bytes(), 301)
    with pytest.raises(ValueError, match="72 tokens is too short: 9 are the system message, 64"):
        Conversation(model, Bytes(), 72)
    chat = Conversation(model, Bytes(), 150)
    answers(chat, QUESTIONS[:2], max_new_tokens=12)
    before, read = chat.tokens, chat.cache.seq_pos
    with pytest.raises(ValueError, match="takes 103 tokens, there is room for 77 in a context of 150"):
        chat.ask("x" * 100)
    assert chat.tokens == before and chat.cache.seq_pos == read
    with pytest.raises(ValueError, match="temperature"):
        chat.ask("one?", temperature=-1)
    assert chat.tokens == before
    chat.reset()
    assert chat.tokens == chat.opening and chat.cache.seq_pos == len(chat.opening)
    assert chat.ask("one?", max_new_tokens=5, temperature=0).read == len(Bytes().turn("one?"))


@pytest.mark.parametrize("kinds", [("plain", "plain"), ("plain", None), ("int8", "paged"), (None, None)])
def test_two_conversations_share_a_model(model, kinds):
    """Each turn, and even each token, is what the conversation would get alone."""
    alone = []
    for kind, questions in zip(kinds, (QUESTIONS, QUESTIONS[::-1]), strict=True):
        chat = Conversation(new_model(), Bytes(), 300, cache=kind)
        alone.append([a.tokens for a in answers(chat, questions, max_new_tokens=6)])
    one, other = (Conversation(model, Bytes(), 300, cache=kind) for kind in kinds)
    got, interleaved = ([], []), iter(QUESTIONS[::-1])

    def meanwhile(_):
        """The other conversation asks its next question in the middle of an answer."""
        if question := next(interleaved, None):
            got[1].append(other.ask(question, max_new_tokens=6, temperature=0).tokens)

    for question in QUESTIONS:
        got[0].append(one.ask(question, max_new_tokens=6, temperature=0, show=meanwhile).tokens)
    assert list(got) == alone
    other.close()
    assert one.ask("and?", max_new_tokens=2, temperature=0).tokens
    one.close()
    assert not hasattr(model, "_kv_cache")


@pytest.mark.parametrize("cache", ["plain", "window", "paged", "int8", None])
@pytest.mark.parametrize("at", [1, 3])
def test_whatever_ends_a_turn_leaves_the_conversation_as_it_was(model, cache, at):
    chat = Conversation(model, Bytes(), 150, cache=cache)
    answers(chat, QUESTIONS[:2], max_new_tokens=12)
    turns = [list(turn) for turn in chat.turns]
    passes = []

    def fail(inner, x):
        passes.append(1)
        if len(passes) == at:
            raise MemoryError("no more")
        return inner(x)

    long = "x" * 60  # for which the oldest turn would be forgotten
    for question in ("one?", long):
        passes.clear()
        model.blocks[1].mlp.wrap("forward", fail)
        with pytest.raises(MemoryError):
            chat.ask(question, max_new_tokens=5, temperature=0)
        model.blocks[1].mlp.unwrap("forward", fail)
        assert chat.turns == turns
    for wrong in ({"temperature": -1}, {"top_p": 2}, {"max_new_tokens": -1}, {"stop_strings": [""]}):
        with pytest.raises(ValueError):
            chat.ask(long, **wrong)
        assert chat.turns == turns
    said = chat.tokens
    again = chat.ask("so?", max_new_tokens=4, temperature=0).tokens
    window = new_cache(cache, TWIN, 150) if cache in ("window", "int8") else None
    if cache != "int8":  # which is read in other pieces now, and not exact
        assert again == fresh(said + Bytes().turn("so?"), 4, window)


@pytest.mark.parametrize("cache", ["plain", None])
def test_no_tokens_are_no_answer(model, cache):
    chat = Conversation(model, Bytes(), 300, cache=cache)
    chat.ask("one?", max_new_tokens=3, temperature=0)
    before = chat.tokens
    answer = chat.ask("two?", max_new_tokens=0, temperature=0)
    assert answer.tokens == [] and answer.text == "" and answer.ended == LIMIT and chat.tokens == before


def test_a_stop_string_ends_an_answer_and_is_not_shown(model):
    whole = Conversation(model, Bytes(), 300).ask("one?", max_new_tokens=40, temperature=0).text
    word, shown = whole[20:23], []
    chat = Conversation(model, Bytes(), 300)
    answer = chat.ask("one?", max_new_tokens=40, temperature=0, stop_strings=[word], show=shown.append)
    assert answer.text == "".join(shown) == whole[: whole.index(word)] and answer.ended == ENDED
    assert chat.turns[-1][-2:] == Bytes().closing()


@pytest.mark.slow
@pytest.mark.parametrize("cache", ["plain", "window", "paged", None])
def test_ctrl_c_at_any_line_leaves_a_conversation_that_goes_on(model, cache):
    """Stopped at every line of the conversation and the cache, one after the other, in its second answer."""
    chat = Conversation(model, Bytes(), 300, cache=cache)
    first = chat.ask("one?", max_new_tokens=4, temperature=0)
    start = [list(chat.turns[0])]
    lines, stopped, begun = 0, 0, 0
    while True:
        chat.reset()
        chat.turns = [list(turn) for turn in start]
        lines += 1
        interrupt = Interrupt(lines)
        sys.settrace(interrupt.trace)
        try:
            answer = chat.ask("two?", max_new_tokens=3, temperature=0)
        except KeyboardInterrupt:
            answer = None  # before it began or when it had ended: the caller's
        finally:
            sys.settrace(None)
        if not interrupt.done:
            break
        if answer and answer.ended == INTERRUPTED:
            stopped, begun = stopped + 1, begun + bool(answer.tokens)
        if answer:
            assert len(chat.turns) == 1 + bool(answer.tokens), "a question without an answer is taken back"
        said = chat.tokens
        third = chat.ask("three?", max_new_tokens=3, temperature=0)
        window = new_cache(cache, TWIN) if cache == "window" else None
        want = fresh(said + Bytes().turn("three?"), 3, window)
        assert third.tokens == want, f"stopped at {interrupt.where}"
    assert first.tokens and stopped > 20 and 5 < begun < stopped


class Interrupt:
    """Raises KeyboardInterrupt at the n-th line that runs in these files."""

    CACHES = ("kv_cache.py", "window.py", "paged.py")
    FILES = (str(FOLDER / "conversation.py"), *(str(Path("generation", name)) for name in CACHES))
    NOT_IN = ("_end_turn", "_rewind", "truncate", "reset", "<genexpr>", "<listcomp>")

    def __init__(self, lines: int):
        self.left, self.done, self.where = lines, False, None

    def trace(self, frame, event, _):
        if not frame.f_code.co_filename.endswith(self.FILES) or frame.f_code.co_name in self.NOT_IN:
            return None
        if event == "line" and not self.done:
            self.left -= 1
            if self.left == 0:
                self.done, self.where = True, f"{frame.f_code.co_name}, line {frame.f_lineno}"
                raise KeyboardInterrupt
        return self.trace


def test_the_bench_measures_both_ways_on_the_same_tokens(model, capsys):
    bench(model, Bytes(), 1.23)
    with_cache, without, both, cost = capsys.readouterr().out.splitlines()
    assert re.fullmatch(r"200 tokens after 68, with the plain cache: [\d.]+ tokens/s", with_cache)
    assert re.fullmatch(r"200 tokens after 68, without a cache: [\d.]+ tokens/s", without)
    assert re.fullmatch(r"the same tokens, [\d.]+ times as fast with it", both)
    assert re.fullmatch(r"loaded in 1\.2 s, peak memory ([\d,]+ MB|is not measured on Windows)", cost)
    assert not hasattr(model, "_kv_cache")
    with pytest.raises(ValueError, match="--bench needs 268 tokens, the model takes 100"):
        bench(Llama(258, 24, 1, 2, max_seq_len=100), Bytes(), 1)


def test_lines_break_at_spaces(monkeypatch, capsys):
    for width, text, want in (
        (10, "one two three four", "one two \nthree four"),
        (10, "a\n\nbb cc dd ee ff", "a\n\nbb cc dd \nee ff"),
        (6, "0123456789abc d", "012345\n6789ab\nc d"),
        (6, "世界世界世界", "世界世\n界世界"),
        (0, "one two three four", "one two three four"),
    ):
        for size in (1, 3, 100):
            wrapped = Wrapped()
            wrapped.width = width
            for at in range(0, len(text), size):
                wrapped.write(text[at : at + size])
            wrapped.finish()
            got = capsys.readouterr().out
            assert got.replace("\n", "").replace(" ", "") == text.replace("\n", "").replace(" ", "")
            assert got == want, (width, size)


@pytest.mark.parametrize(
    ("missing", "words"),
    [
        ("generation/kv_cache.py", "finish module 15, kvcaching"),
        ("models/llama.py", "finish module 16, llama"),
        ("text/tokenization.py", "finish its module"),
    ],
)
def test_a_package_that_is_not_finished_is_told_what_is_missing(tmp_path, missing, words):
    shutil.copytree(REPO / "tinytorch", tmp_path / "tinytorch")
    (tmp_path / "tinytorch" / missing).unlink()
    env = os.environ | {"PYTHONPATH": str(tmp_path)}
    command = [sys.executable, "-W", "error", str(FOLDER / "smollm2_chat.py"), "--prompt", "Hi"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, env=env)
    assert done.returncode == 1 and done.stdout == ""
    assert words in done.stderr and len(done.stderr.splitlines()) == 1, done.stderr
