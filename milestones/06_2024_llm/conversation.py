"""A conversation that stays in a KV cache: each turn reads only what is new."""

from dataclasses import dataclass, field
from time import perf_counter

import numpy as np

from tinytorch.caches import bring_into_play, new_cache
from tinytorch.core.attention import whole_number
from tinytorch.generation.kv_cache import KVCache, disable_kv_cache
from tinytorch.models.transformer import Chooser
from tinytorch.text.tokenization import StopStream, StreamDecoder

PIECE = 256  # tokens of a long text that are read at a time
ROOM_FOR_ANSWER = 64  # tokens: with less left, the oldest turns are forgotten first
ENDED, LIMIT, CONTEXT, INTERRUPTED = "ended", "limit", "context", "interrupted"


def nothing(*_) -> None:
    """Shows nothing."""


@dataclass
class Answer:
    """What one turn gave and cost.

    tokens, text: the answer, without the token that ended it. ended: why it did.
    forgotten: turns dropped before it. read: tokens read for its first token, in `first` seconds; with the
    cache, those that were new. made: tokens made after the first, in `rest` seconds.
    """

    forgotten: int = 0
    read: int = 0
    first: float = 0.0
    made: int = 0
    rest: float = 0.0
    ended: str = INTERRUPTED
    tokens: list[int] = field(default_factory=list)
    text: str = ""


class Conversation:
    """A system message and turns, as tokens; of these, the first cache.seq_pos have been read.

    turns: a list of tokens for each, the user's message, the answer and what closes it. Several may share a
    model: each brings its own cache into play whenever the model reads for it.
    A token is noted here before the model reads it. So an answer can break off anywhere, and what is noted
    and not yet read is read with the next turn.
    """

    def __init__(
        self, model, tokenizer, context: int, system: str | None = None, cache: str | None = "plain"
    ):
        """context: the longest conversation, in tokens. system: a message of your own, "" for none.
        cache: a name of `tinytorch.caches`, or None.

        Raises ValueError if the context is longer than the model's or too short for an answer.
        """
        if context > model.max_seq_len:
            raise ValueError(
                f"a context of {context:,} tokens is too long, the model takes {model.max_seq_len:,}"
            )
        self.model, self.tokenizer, self.context = model, tokenizer, context
        self.opening, self.turns = tokenizer.opening(system), []
        if self.room < 0:
            raise ValueError(
                f"a context of {context:,} tokens is too short: "
                f"{len(self.opening):,} are the system message, {ROOM_FOR_ANSWER} are for an answer"
            )
        self.cache = new_cache(cache, model, context) if cache else None

    def close(self) -> None:
        """Take the cache off the model, if it is this conversation's."""
        if self.cache is not None and getattr(self.model, "_kv_cache", None) is self.cache:
            disable_kv_cache(self.model)

    @property
    def tokens(self) -> list[int]:
        return [*self.opening, *(token for turn in self.turns for token in turn)]

    @property
    def room(self) -> int:
        """Tokens that turns may take if an answer is to follow."""
        return self.context - ROOM_FOR_ANSWER - len(self.opening)

    def reset(self) -> None:
        """Forget all turns. The system message stays in the cache."""
        self._forget(len(self.turns))

    def make_room(self, new_tokens: int) -> int:
        """Forget the oldest turns until new tokens and an answer fit -> how many were forgotten.

        When there is no room, half of it is made, so that the rest is not read again with every turn.
        Raises ValueError, and forgets nothing, if the new tokens alone are too many.
        """
        room = self.room - new_tokens
        if room < 0:
            raise ValueError(
                f"the message takes {new_tokens:,} tokens, there is room for {self.room:,} "
                f"in a context of {self.context:,}"
            )
        lengths = [len(turn) for turn in self.turns]
        count = 0
        if sum(lengths) > room:
            while sum(lengths[count:]) > room // 2:
                count += 1
            self._forget(count)
        return count

    def ask(
        self, question: str, show=nothing, reading=nothing, max_new_tokens=512, stop_strings=(), **sampling
    ) -> Answer:
        """Ask and have show(text) called with each part of the answer -> the answer.

        reading(tokens, all): called as a long text is read. stop_strings: the text ends before the first of
        them. sampling: as in module 13's `Chooser`.
        Ctrl-C ends the answer; what it was stays part of the conversation. If it had not begun, the question
        is taken back. Any other error leaves the conversation as it was; ValueError if the question is too
        long or no text, and for settings out of range.
        """
        turn, before = self.tokenizer.turn(question), list(self.turns)
        limit, choose = whole_number("max_new_tokens", max_new_tokens, 0), Chooser(**sampling)
        stream = StopStream(StreamDecoder(self.tokenizer), stop_strings)
        answer, begin = Answer(forgotten=self.make_room(len(turn))), len(turn)

        def say(text: str) -> None:
            answer.text += text
            show(text)

        self.turns.append(turn)
        try:
            started = perf_counter()
            answer.read = len(self.tokens) - self._seen
            choose.read(np.array([self.tokens]))
            while len(turn) - begin < limit and len(self.tokens) <= self.context:
                turn.append(int(choose(self._read(reading if len(turn) == begin else nothing))[0]))
                if len(turn) == begin + 1:
                    answer.first = perf_counter() - started
                else:
                    answer.made, answer.rest = answer.made + 1, perf_counter() - started - answer.first
                if turn[-1] in self.tokenizer.stop_tokens:
                    answer.ended = ENDED
                    break
                say(stream.feed(turn[-1]))
                if stream.stopped:
                    answer.ended = ENDED
                    break
            else:
                answer.ended = CONTEXT if len(self.tokens) > self.context else LIMIT
            say(stream.finish())
        except KeyboardInterrupt:
            self._start_again()
            say(stream.finish())
            self._end_turn(turn, begin, answer)
        except BaseException:
            self._start_again()
            if self.turns[:-1] != before:
                self._rewind(len(self.opening))
            self.turns = before
            self._rewind(len(self.tokens))
            raise
        else:
            self._end_turn(turn, begin, answer)
        return answer

    def _start_again(self) -> None:
        """Have a cache that may have stopped between two layers read everything again."""
        if not isinstance(self.cache, KVCache | None):
            self.cache.reset()

    @property
    def _seen(self) -> int:
        return self.cache.seq_pos if self.cache is not None else 0

    def _read(self, reading=nothing) -> np.ndarray:
        """Have the model read what it has not -> (1, V): the logits of the token after it."""
        bring_into_play(self.model, self.cache)
        tokens, start = self.tokens, self._seen
        piece = PIECE if self.cache is not None else len(tokens)
        reading(0, len(tokens) - start)
        for at in range(start, len(tokens), piece):
            logits = self.model.next_logits(np.array([tokens[at : at + piece]]))
            reading(min(at + piece, len(tokens)) - start, len(tokens) - start)
        return logits

    def _end_turn(self, turn: list[int], begin: int, answer: Answer) -> None:
        """Close the turn, or take it back if nothing was answered."""
        if turn[-1] in self.tokenizer.stop_tokens:
            turn.pop()  # never read: it is what closing begins with, or it stands for the same
        answer.tokens = turn[begin:]
        if answer.tokens or answer.ended == ENDED:
            turn += self.tokenizer.closing()
        else:
            self._rewind(len(self.tokens) - len(turn))
            self.turns.pop()

    def _forget(self, count: int) -> None:
        """Drop the oldest turns; all that came after them will be read again, at new positions."""
        if count:
            self._rewind(len(self.opening))
            self.turns = self.turns[count:]

    def _rewind(self, length: int) -> None:
        """Keep the first `length` tokens; a cache that has let go of what they need begins again."""
        if self.cache is None:
            return
        try:
            self.cache.truncate(min(length, self.cache.seq_pos))
        except ValueError:
            self.cache.reset()
