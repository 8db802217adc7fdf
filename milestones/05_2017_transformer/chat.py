"""A conversation with the chat model: the model and its tokenizer in one file, turns, and what they cost."""

from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from time import perf_counter

import numpy as np

from tinytorch.caches import bring_into_play, new_cache
from tinytorch.core.attention import whole_number
from tinytorch.core.training import load_arrays, save_arrays
from tinytorch.generation.kv_cache import disable_kv_cache, enable_kv_cache
from tinytorch.models.transformer import GPT, stream
from tinytorch.text.tokenization import BPETokenizer, StopStream, StreamDecoder

FOLDER = Path(__file__).resolve().parent
SHIPPED = FOLDER / "weights" / "chat.npz"
SPECIAL = USER, ASSISTANT, END = "<|user|>", "<|assistant|>", "<|end|>"
SIZES = ("vocab_size", "embed_dim", "num_layers", "num_heads", "max_seq_len")
ROOM_FOR_ANSWER = 64  # tokens: with less left, the oldest turns are forgotten first


def save_chat(path, model: GPT, tokenizer: BPETokenizer, facts: dict) -> None:
    """Write weights (in float16), tokenizer, sizes and facts to one npz file, whole or not at all."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    arrays = {name: array.astype(np.float16) for name, array in model.state_dict().items()}
    sizes = {name: getattr(model, name) for name in SIZES}
    save_arrays(path, arrays, {**facts, "sizes": sizes, "tokenizer": tokenizer.to_json()})


def load_chat(path) -> tuple[GPT, BPETokenizer, dict]:
    """-> model, tokenizer, facts. Raises ValueError if the file is missing, damaged, or of another kind."""
    try:
        arrays, facts = load_arrays(path)
    except FileNotFoundError as error:
        raise ValueError(
            f"there are no weights at {path}; make some with --train --weights {path}"
        ) from error
    try:
        sizes = {name: int(facts["sizes"][name]) for name in SIZES}
        tokenizer = BPETokenizer.from_json(facts["tokenizer"])
    except (KeyError, TypeError) as error:
        raise ValueError(f"{path} holds no chat model: it does not say {error}") from error
    if sizes["vocab_size"] != tokenizer.vocab_size:
        raise ValueError(f"{path}: {sizes['vocab_size']} rows of weights for {tokenizer.vocab_size} tokens")
    model = GPT(**sizes, seed=0)
    model.load_state_dict(arrays)
    return model, tokenizer, facts


@dataclass
class Answer:
    """What one turn gave and cost: tokens, the seconds until the first of them, and those for the others."""

    tokens: list[int] = field(default_factory=list)
    prompt_tokens: int = 0
    prefill: float = 0.0
    decode: float = 0.0
    text: str = ""

    @property
    def decoded(self) -> int:
        """Tokens that were made one at a time, after the first."""
        return max(0, len(self.tokens) - 1)


class Chat:
    """One conversation. With the cache a turn reads only what is new, without it the whole conversation.

    Several may share a model: each brings its own cache into play whenever the model reads for it.
    """

    def __init__(self, model: GPT, tokenizer: BPETokenizer, cache: str | None):
        """cache: a name of `tinytorch.caches`, or None."""
        self.model, self.tokenizer = model, tokenizer
        self.user, self.assistant, self.end = (tokenizer.special_tokens[name] for name in SPECIAL)
        self.cache = enable_kv_cache(model, new_cache(cache, model)) if cache else None
        self.start_over([])

    def close(self) -> None:
        """Take the cache off the model, if it is this conversation's."""
        if self.cache is not None and getattr(self.model, "_kv_cache", None) is self.cache:
            disable_kv_cache(self.model)

    def turn_length(self, question: str) -> int:
        """Tokens of a question with its marks."""
        return len(self.tokenizer.encode(question)) + 2

    def start_over(self, turns: list[list[int]]) -> None:
        """Forget everything but these turns, which will be read again with the next question."""
        self.turns = turns
        self.unread = [token for turn in turns for token in turn]
        self.length = 0  # tokens read so far
        bring_into_play(self.model, self.cache)
        self.decode = self.model.decoder(1, self.model.max_seq_len)

    def next_logits(self, tokens: np.ndarray) -> np.ndarray:
        """(1, T) tokens not read yet -> (1, V), through this conversation's cache."""
        bring_into_play(self.model, self.cache)
        # with a cache, that of the moment: another conversation may have put its own in front meanwhile
        return (self.decode if self.cache is None else self.model.next_logits)(tokens)

    def make_room(self, new_tokens: int) -> int:
        """Drop the oldest turns until new_tokens and an answer fit -> how many were dropped.

        Raises ValueError if the new tokens alone are too many.
        """
        room = self.model.max_seq_len - ROOM_FOR_ANSWER - new_tokens
        if room < 0:
            limit = self.model.max_seq_len - ROOM_FOR_ANSWER
            raise ValueError(f"the question has {new_tokens} tokens, the model takes {limit} and an answer")
        if sum(map(len, self.turns)) <= room:
            return 0
        kept = list(self.turns)
        while sum(map(len, kept)) > room // 2:
            kept.pop(0)
        dropped = len(self.turns) - len(kept)
        self.start_over(kept)
        return dropped

    def ask(
        self, question: str, max_new_tokens: int | None = None, stop: bool = True, stop_strings=(), **sampling
    ):
        """Yields the text of each new token; `self.answer` holds the whole answer and its cost.

        stop: end at the model's end token. stop_strings: the text ends before the first of them. sampling:
        temperature, top_k, top_p, rng and more, as in `stream`. Ctrl-C leaves what was said; after any other
        error, and without an answer, the conversation is as it was.
        """
        before = list(self.turns)
        try:
            yield from self.turn(question, max_new_tokens, stop, stop_strings, sampling)
        except (KeyboardInterrupt, GeneratorExit):
            raise
        except BaseException:
            self.start_over(before)
            raise
        if not self.answer.tokens:
            self.start_over(before)

    def turn(self, question: str, max_new_tokens: int | None, stop: bool, stop_strings, sampling: dict):
        """The same; an error leaves a turn that has begun."""
        turn = [self.user, *self.tokenizer.encode(question), self.assistant]
        limit = self.model.max_seq_len
        if max_new_tokens is not None:
            limit = whole_number("max_new_tokens", max_new_tokens, 0)
        decoder = StopStream(StreamDecoder(self.tokenizer), stop_strings)
        self.make_room(len(turn))
        self.turns.append(turn)
        new = self.unread + turn
        limit = min(limit, self.model.max_seq_len - self.length - len(new))
        end = self.end if stop else None
        tokens = stream(self.next_logits, np.array([new]), limit, stop_token=end, **sampling)
        self.answer = answer = Answer(prompt_tokens=len(new))
        self.unread = None
        started = perf_counter()
        try:
            for (token,) in tokens:
                if answer.tokens:
                    answer.decode += perf_counter() - started
                else:
                    answer.prefill = perf_counter() - started
                answer.tokens.append(int(token))
                turn.append(int(token))
                self.length += 1 if self.unread else len(new)
                self.unread = [int(token)]
                text = "" if token == self.end else decoder.feed(int(token))
                answer.text += text
                yield text
                if decoder.stopped:
                    return
                started = perf_counter()  # what the caller does with the text is not the model's time
            if rest := decoder.finish():
                answer.text += rest
                yield rest
        except KeyboardInterrupt:  # in the middle of a step: what it had read is uncertain, so read all again
            self.start_over(self.turns)
            raise


def run_conversation(model, tokenizer, questions, cache: str | None, **options) -> list[Answer]:
    """Ask the questions one after the other in one conversation -> the answers."""
    chat, answers = Chat(model, tokenizer, cache), []
    for question in questions:
        for _ in chat.ask(question, **options):
            pass
        answers.append(chat.answer)
    chat.close()
    return answers


def exact_matches(model, tokenizer, conversations) -> tuple[int, int]:
    """-> (right, all): questions, each asked alone, that get their answer to the letter."""
    user, assistant, end = (tokenizer.special_tokens[name] for name in SPECIAL)
    expected = {question: answer for turns in conversations for question, answer in turns}
    prompts = sorted(([user, *tokenizer.encode(q), assistant], a) for q, a in expected.items())
    right = 0
    enable_kv_cache(model)
    for length, group in groupby(sorted(prompts, key=lambda p: len(p[0])), key=lambda p: len(p[0])):
        rows, answers = zip(*group, strict=True)  # prompts of one length make one batch
        room = model.max_seq_len - length
        longest = max(len(tokenizer.encode(answer)) for answer in answers) + 2
        tokens = model.generate(np.array(rows), min(room, longest), temperature=0, stop_token=end)[:, length:]
        for row, answer in zip(tokens.tolist(), answers, strict=True):
            written = row[: row.index(end)] if end in row else row + [-1]
            right += written == tokenizer.encode(answer)
    disable_kv_cache(model)
    return right, len(prompts)
