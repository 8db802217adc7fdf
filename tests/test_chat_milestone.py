"""The chat milestone: the shipped model, both ways, bad files, an interrupted training."""

import os
import subprocess
import sys
from itertools import zip_longest
from pathlib import Path

import numpy as np
import pytest

FOLDER = Path(__file__).resolve().parents[1] / "milestones" / "05_2017_transformer"
SCRIPT = FOLDER / "vaswani_chatgpt.py"
sys.path.insert(0, str(FOLDER))

from chat import SHIPPED, Chat, exact_matches, load_chat, run_conversation, save_chat  # noqa: E402
from dialogues import load_dialogues  # noqa: E402
from train_chat import IGNORED, SETTINGS, ConversationDataset, train  # noqa: E402

QUESTIONS = ["Hello!", "What is a KV cache?", "What comes after Tuesday?", "Thank you!"]


@pytest.fixture(scope="module")
def shipped():
    return load_chat(SHIPPED)


def run_script(*arguments, stdin=""):
    command = [sys.executable, "-W", "error", str(SCRIPT), *arguments]
    env = os.environ | {
        "OPENBLAS_NUM_THREADS": "1",
        "OMP_NUM_THREADS": "1",
    }  # waits for nobody
    return subprocess.run(
        command, input=stdin, capture_output=True, text=True, encoding="utf-8", timeout=300, env=env
    )


def test_the_shipped_model_knows_its_training_questions(shipped):
    model, tokenizer, _ = shipped
    right, total = exact_matches(model, tokenizer, load_dialogues("train"))
    assert total > 300 and right / total >= 0.95, f"{right} of {total}"


def test_a_conversation_has_the_same_tokens_both_ways(shipped):
    model, tokenizer, _ = shipped
    slow, fast = (
        run_conversation(model, tokenizer, QUESTIONS, kind, temperature=0) for kind in (None, "plain")
    )
    assert [a.tokens for a in slow] == [a.tokens for a in fast]
    assert all(a.text for a in slow)
    assert not hasattr(model, "_kv_cache"), "the cache is gone afterwards"


def test_with_the_cache_a_turn_reads_only_what_is_new(shipped):
    model, tokenizer, _ = shipped
    chat, seen = Chat(model, tokenizer, "plain"), []
    watch = lambda inner, x: seen.append(x.shape[1]) or inner(x)  # noqa: E731
    model.blocks[0].mlp.wrap("forward", watch)
    try:
        for question in QUESTIONS[:2]:
            seen.clear()
            list(chat.ask(question, temperature=0))
            turn = (
                len(tokenizer.encode(question)) + 2 + (question != QUESTIONS[0])
            )  # and the last token before
            assert seen == [turn] + [1] * (len(chat.answer.tokens) - 1)
    finally:
        model.blocks[0].mlp.unwrap("forward", watch)
        chat.close()


@pytest.mark.parametrize("cache", [None, "plain", "window", "int4"])
def test_a_full_context_forgets_the_oldest_turns_and_goes_on(shipped, cache):
    model, tokenizer, _ = shipped
    chat = Chat(model, tokenizer, cache)
    dropped = 0
    for i in range(30):
        question = QUESTIONS[i % len(QUESTIONS)]
        dropped += chat.make_room(chat.turn_length(question))
        list(chat.ask(question, temperature=0))
        assert chat.answer.tokens and chat.length < model.max_seq_len
    chat.close()
    assert dropped > 0
    with pytest.raises(ValueError, match=r"\d+ tokens"):
        chat.make_room(500)


@pytest.mark.parametrize("cache", [None, "plain", "paged"])
@pytest.mark.parametrize("stop_in", ["the prompt", "the answer"])
def test_an_interrupted_answer_leaves_a_conversation_that_goes_on(shipped, cache, stop_in):
    model, tokenizer, _ = shipped
    chat = Chat(model, tokenizer, cache)
    list(chat.ask(QUESTIONS[0], temperature=0))
    at = len(QUESTIONS[1]) if stop_in == "the prompt" else 4
    steps = []

    def interrupt(inner, x):
        steps.append(x.shape[1])
        if stop_in == "the prompt" or len(steps) == at:
            raise KeyboardInterrupt
        return inner(x)

    model.blocks[2].mlp.wrap("forward", interrupt)
    with pytest.raises(KeyboardInterrupt):
        list(chat.ask(QUESTIONS[1], temperature=0))
    model.blocks[2].mlp.unwrap("forward", interrupt)
    history = [token for turn in chat.turns for token in turn]
    list(chat.ask(QUESTIONS[2], temperature=0))
    got = chat.answer.tokens
    turn = [chat.user, *tokenizer.encode(QUESTIONS[2]), chat.assistant]
    chat.close()
    prompt = np.array([history + turn])
    want = model.generate(prompt, len(got), temperature=0)[0, prompt.shape[1] :].tolist()
    assert got == want, "the conversation goes on as if all that was said had been read at once"


@pytest.mark.parametrize("cache", [None, "plain", "paged"])
def test_whatever_ends_a_turn_leaves_the_conversation_as_it_was(shipped, cache):
    model, tokenizer, _ = shipped
    chat = Chat(model, tokenizer, cache)
    list(chat.ask(QUESTIONS[0], temperature=0))
    turns, steps = [list(turn) for turn in chat.turns], []

    def fail(inner, x):
        steps.append(1)
        if len(steps) == 3:
            raise MemoryError("no more")
        return inner(x)

    for wrong in ({"temperature": -1}, {"top_p": 0}, {"max_new_tokens": -1}, {"max_new_tokens": 1.5}):
        with pytest.raises((ValueError, TypeError)):
            list(chat.ask(QUESTIONS[1], **wrong))
        assert chat.turns == turns
    model.blocks[2].mlp.wrap("forward", fail)
    with pytest.raises(MemoryError):
        list(chat.ask(QUESTIONS[1], temperature=0))
    model.blocks[2].mlp.unwrap("forward", fail)
    assert chat.turns == turns
    assert list(chat.ask(QUESTIONS[1], max_new_tokens=0)) == [] and chat.turns == turns
    assert chat.answer.tokens == []
    history = sum(turns, [])
    list(chat.ask(QUESTIONS[1], temperature=0))
    got = chat.answer.tokens
    chat.close()
    prompt = np.array([history + [chat.user, *tokenizer.encode(QUESTIONS[1]), chat.assistant]])
    assert got == model.generate(prompt, len(got), temperature=0)[0, prompt.shape[1] :].tolist()


@pytest.mark.parametrize("kinds", [("plain", "plain"), ("plain", None), (None, None)])
def test_two_chats_share_a_model(shipped, kinds):
    """Token by token in turn, each says what it would say alone."""
    model, tokenizer, _ = shipped
    want = []
    for kind, question in zip(kinds, QUESTIONS, strict=False):
        chat = Chat(model, tokenizer, kind)
        want.append(list(chat.ask(question, max_new_tokens=12, temperature=0)))
        chat.close()
    chats = [Chat(model, tokenizer, kind) for kind in kinds]
    asked = [
        chat.ask(question, max_new_tokens=12, temperature=0)
        for chat, question in zip(chats, QUESTIONS, strict=False)
    ]
    got = [list(texts) for texts in zip(*zip_longest(*asked, fillvalue=""), strict=True)]
    assert ["".join(texts) for texts in got] == ["".join(texts) for texts in want]
    for chat in chats:
        chat.close()
    assert not hasattr(model, "_kv_cache")


def test_a_stop_string_is_not_shown(shipped):
    model, tokenizer, _ = shipped
    chat = Chat(model, tokenizer, "plain")
    whole = "".join(chat.ask(QUESTIONS[0], temperature=0))
    word = whole[5:8]
    chat.start_over([])
    assert "".join(chat.ask(QUESTIONS[0], temperature=0, stop_strings=word)) == whole[: whole.index(word)]
    chat.close()


def test_one_prompt_from_the_command_line():
    done = run_script("--prompt", "What is a KV cache?", "--use-cache")
    assert done.returncode == 0 and done.stderr == ""
    assert "The same tokens" in done.stdout and "times as fast" in done.stdout


def test_another_cache_from_the_command_line():
    done = run_script("--prompt", "What is a KV cache?", "--cache", "int4")
    assert done.returncode == 0 and not done.stderr
    assert "int4" in done.stdout and "The int4 cache:" in done.stdout
    done = run_script("--prompt", "Hello!", "--cache", "huge")
    assert done.returncode == 2 and "'int8', 'int4', 'paged'" in done.stderr


def test_a_conversation_from_the_command_line():
    done = run_script("--use-cache", stdin="Hello!\nThank you!\n\n")
    assert done.returncode == 0 and done.stderr == ""
    assert "You are welcome" in done.stdout and "The same tokens" in done.stdout


@pytest.mark.parametrize(
    "spoil",
    [
        lambda path: path.unlink(),
        lambda path: path.write_bytes(path.read_bytes()[:1000]),
        lambda path: path.write_bytes(path.read_bytes()[:-200]),
        lambda path: path.write_bytes(b""),
        lambda path: path.write_bytes(b"not weights at all"),
        lambda path: np.savez(path, weights=np.zeros(3)),
        lambda path: np.savez(path, facts=np.array("{}")),
        lambda path: np.savez(path, facts=np.array([{}], dtype=object)),
    ],
)
def test_bad_weights_end_in_one_sentence(tmp_path, spoil):
    path = tmp_path / "chat.npz"
    path.write_bytes(SHIPPED.read_bytes())
    spoil(path)
    done = run_script("--prompt", "Hello!", "--weights", str(path))
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1 and str(path) in done.stderr


def test_weights_of_another_model_are_refused(tmp_path, shipped):
    model, tokenizer, facts = shipped
    path = tmp_path / "chat.npz"
    sizes, model.num_layers = model.num_layers, 3
    try:
        save_chat(path, model, tokenizer, facts)
    finally:
        model.num_layers = sizes
    with pytest.raises(ValueError, match="another model"):
        load_chat(path)


@pytest.mark.parametrize(
    "options", [("--steps", "0", "--train"), ("--temperature", "nan"), ("--temperature", "-1")]
)
def test_bad_options_end_in_one_sentence(options):
    done = run_script("--prompt", "Hello!", *options)
    assert done.returncode == 1 and len(done.stderr.strip().splitlines()) == 1


def test_training_samples_are_shifted_by_one_and_leave_the_user_out(shipped):
    _, tokenizer, _ = shipped
    conversations = load_dialogues("train")
    dataset = ConversationDataset(conversations, tokenizer, context=64, seed=5)
    end, assistant = tokenizer.special_tokens["<|end|>"], tokenizer.special_tokens["<|assistant|>"]
    for index in (0, 7, len(conversations) + 7):
        inputs, targets = dataset[index]
        counted = targets[:-1] != IGNORED
        assert np.array_equal(targets[:-1][counted], inputs[1:][counted])
        question, answer = conversations[index % len(conversations)][0]
        start = inputs.tolist().index(assistant)
        assert tokenizer.decode(inputs[1:start].tolist()) == question
        stop = targets.tolist().index(end)
        assert tokenizer.decode(targets[start:stop].tolist()) == answer
        assert (targets[:start] == IGNORED).all()
    assert not np.array_equal(dataset[7][0], dataset[len(conversations) + 7][0]), (
        "another round, another company"
    )


TINY = {
    **SETTINGS,
    "vocab_size": 300,
    "embed_dim": 16,
    "num_layers": 2,
    "num_heads": 2,
    "max_seq_len": 32,
    "steps": 6,
}


def test_an_interrupted_training_goes_on_exactly(tmp_path):
    losses = {}

    def note(step, loss):
        losses[step] = loss

    straight, _ = train(TINY, tmp_path / "unused.npz", note)
    whole, losses = losses, {}

    def interrupt(step, loss):
        losses[step] = loss
        if step == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(TINY, tmp_path / "checkpoint.npz", interrupt)
    resumed, _ = train(TINY, tmp_path / "checkpoint.npz", note)
    assert losses == whole and sorted(losses) == list(range(1, 7))
    for name, array in straight.state_dict().items():
        assert np.array_equal(array, resumed.state_dict()[name]), name


@pytest.mark.slow
def test_a_trained_model_is_saved_and_talks(tmp_path):
    weights = tmp_path / "mine.npz"
    done = run_script("--train", "--steps", "2", "--weights", str(weights))
    assert done.returncode == 0 and done.stderr == "", done.stderr
    assert "Saved to" in done.stdout and "held out" in done.stdout
    assert [path.name for path in tmp_path.iterdir()] == ["mine.npz"], (
        "the checkpoint is gone when it is not needed"
    )
    assert run_script("--prompt", "Hello!", "--weights", str(weights)).returncode == 0
