"""The tokenizer of a published chat model: byte-level BPE, special tokens, ChatML, text as it is written."""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from tinytorch.pretrained import need
from tinytorch.pretrained.chat_template import END, START, default_system

CONTROL, USER_DEFINED = 3, 4  # kinds of tokens in a GGUF; all others are ordinary
PRE_TOKENIZERS = ("gpt-2", "smollm")
END_OF_TEXT = "<|endoftext|>"
CHATML = START, END, END_OF_TEXT
ROLES = ("system", "user", "assistant")


def byte_characters() -> dict[str, int]:
    """The 256 characters that stand for bytes in a vocabulary -> the bytes (Radford et al. 2019).

    A byte that is a visible Latin-1 character stands for itself, the others for U+0100 and on.
    """
    visible = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    hidden = [byte for byte in range(256) if byte not in visible]
    return {chr(byte): byte for byte in visible} | {chr(256 + n): byte for n, byte in enumerate(hidden)}


def token_bytes(token: str, characters: dict[str, int]) -> bytes:
    """A token as the vocabulary spells it -> the bytes it stands for; of a word that is no such spelling,
    its UTF-8."""
    try:
        return bytes(characters[character] for character in token)
    except KeyError:
        return token.encode()


class ChatTokenizer:
    """Text to tokens and back, and conversations in ChatML.

    What a user types never becomes a special token, so that no message can end its own turn.
    vocabulary: the bytes of each token. special_tokens: name -> token. stop_tokens: those that end an answer.
    bos, eos: tokens, or None. default_system: what the model is told when nobody tells it anything, or "".
    """

    def __init__(self, tokenizer: Any, *, bos: int | None = None, eos: int | None = None, template: str = ""):
        """tokenizer: a byte-level `tokenizers.Tokenizer`. template: the model's chat template."""
        tokenizer.encode_special_tokens = True  # in the library's words: special tokens are spelled out
        tokenizer.no_truncation()
        tokenizer.no_padding()
        added = tokenizer.get_added_tokens_decoder()
        ids = tokenizer.get_vocab(with_added_tokens=True)
        characters = byte_characters()
        self.vocabulary = [b""] * (max(ids.values()) + 1)
        for token, i in ids.items():
            self.vocabulary[i] = token.encode() if i in added else token_bytes(token, characters)
        self.special_tokens = {token.content: i for i, token in added.items() if token.special}
        self.bos, self.eos = bos, eos
        ends = {self.special_tokens.get(name) for name in (END, END_OF_TEXT)} | {eos}
        self.stop_tokens = frozenset(ends - {None})
        self.default_system, self._not_chatml = "", None
        names = {"bos_token": bos, "eos_token": eos}
        names = {
            k: "" if i is None else self.vocabulary[i].decode(errors="replace") for k, i in names.items()
        }
        try:
            self.default_system = default_system(template, names)
        except ValueError as error:  # it can encode all the same, and says so when it is to chat
            self._not_chatml = str(error)
        self._tokenizer = tokenizer

    @classmethod
    def from_metadata(cls, metadata: dict) -> "ChatTokenizer":
        """The metadata of a GGUF file -> its tokenizer.

        Raises ValueError if they describe another kind of tokenizer, or none, or contradict themselves;
        ModuleNotFoundError without the [llm] extra.
        """
        tokenizers = need("tokenizers")
        kind, pre = metadata.get("tokenizer.ggml.model"), metadata.get("tokenizer.ggml.pre")
        if kind != "gpt2":
            raise ValueError(f"only the byte-level tokenizer 'gpt2' can be read, the file holds {kind!r}")
        if pre not in PRE_TOKENIZERS:
            raise ValueError(
                f"only the pre-tokenizers {', '.join(PRE_TOKENIZERS)} can be read, the file holds {pre!r}"
            )
        tokens, merges, kinds = (
            _listed(metadata, name, item)
            for name, item in (("tokens", str), ("merges", str), ("token_type", int))
        )
        if len(kinds) != len(tokens):
            raise ValueError(f"the file has {len(tokens):,} tokens and {len(kinds):,} token types")
        vocabulary = {token: i for i, token in enumerate(tokens)}
        if len(vocabulary) != len(tokens):
            raise ValueError(f"{len(tokens):,} tokens have only {len(vocabulary):,} different names")
        if not tokens or "" in vocabulary:
            raise ValueError("a vocabulary needs tokens, and each a name of at least 1 character")
        pairs = [_merge(n, merge, vocabulary) for n, merge in enumerate(merges)]
        tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE(vocabulary, pairs))
        steps = [tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)]
        if pre == "smollm":
            steps.insert(0, tokenizers.pre_tokenizers.Digits(individual_digits=True))
        tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Sequence(steps)
        tokenizer.decoder = tokenizers.decoders.ByteLevel()
        for token, kind in zip(tokens, kinds, strict=True):
            if kind in (CONTROL, USER_DEFINED) or token in CHATML:
                special = kind == CONTROL or token in CHATML
                tokenizer.add_tokens([tokenizers.AddedToken(token, normalized=False, special=special)])
        template = metadata.get("tokenizer.chat_template", "")
        bos, eos = (_token_id(metadata, name, len(tokens)) for name in ("bos", "eos"))
        return cls(tokenizer, bos=bos, eos=eos, template=template if isinstance(template, str) else "")

    @classmethod
    def from_pretrained(cls, folder: str | Path) -> "ChatTokenizer":
        """A Hugging Face folder with tokenizer.json (and tokenizer_config.json) -> its tokenizer.

        Raises FileNotFoundError, ValueError and ModuleNotFoundError as `from_metadata` does.
        """
        tokenizers = need("tokenizers")
        path = Path(folder) / "tokenizer.json"
        content = _read_json(path)
        model, decoder = content.get("model"), content.get("decoder")
        kinds = [part.get("type") if isinstance(part, dict) else None for part in (model, decoder)]
        if kinds != ["BPE", "ByteLevel"]:
            raise ValueError(
                f"{path}: only byte-level BPE can be read; its model is {kinds[0]!r}, "
                f"its decoder {kinds[1]!r}"
            )
        try:
            tokenizer = tokenizers.Tokenizer.from_file(str(path))
        except Exception as error:  # the library raises nothing more exact
            raise ValueError(f"{path} is no tokenizer: {error}") from error
        beside = path.with_name("tokenizer_config.json")
        config = _read_json(beside) if beside.exists() else {}
        bos, eos = (_named_token(tokenizer, config.get(name)) for name in ("bos_token", "eos_token"))
        jinja, template = path.with_name("chat_template.jinja"), config.get("chat_template")
        if jinja.exists():
            template = jinja.read_text(encoding="utf-8")
        return cls(tokenizer, bos=bos, eos=eos, template=template if isinstance(template, str) else "")

    @property
    def vocab_size(self) -> int:
        return len(self.vocabulary)

    def __repr__(self) -> str:
        return f"ChatTokenizer(vocab_size={self.vocab_size}, special_tokens={list(self.special_tokens)})"

    def encode(self, text: str) -> list[int]:
        """-> tokens; the name of a special token in the text is spelled out, letter for letter.

        A byte that the vocabulary lacks (SmolLM2's lacks 21 that hardly any text has: control characters
        and bytes of unassigned characters) is left out, as in transformers.
        Raises TypeError if text is no str, ValueError if it holds a lone surrogate.
        """
        _check_text(text)
        return self._tokenizer.encode(text, add_special_tokens=False).ids

    def decode(self, ids: Iterable[int]) -> str:
        """-> text; bytes that are no UTF-8 become U+FFFD. ValueError for a token outside the vocabulary."""
        ids = list(ids)
        for i in ids:
            if not 0 <= i < self.vocab_size:
                raise ValueError(f"token {i} is outside the vocabulary of {self.vocab_size}")
        return b"".join(self.vocabulary[i] for i in ids).decode(errors="replace")

    # ChatML: <|im_start|>role\ncontent<|im_end|>\n for each message. The pieces of a conversation, one after
    # the other, are the tokens of the whole: opening, then for each turn turn, the answer, closing.

    def opening(self, system: str | None = None) -> list[int]:
        """What comes before the first turn: the system message, the default one if system is None."""
        system = self.default_system if system is None else system
        return self.message("system", system) if system else []

    def turn(self, question: str) -> list[int]:
        """A user's message and the words that let the assistant speak."""
        return self.message("user", question) + self._answer_begins()

    def closing(self) -> list[int]:
        """What ends every message."""
        return [self._special(END), *self.encode("\n")]

    def message(self, role: str, content: str) -> list[int]:
        """One whole message. ValueError for a role that is none of ROLES, TypeError if it is no text."""
        if role not in ROLES:
            raise ValueError(f"a message comes from {', '.join(ROLES)}, not from {role!r}")
        _check_text(content)
        return [self._special(START), *self.encode(f"{role}\n{content}"), *self.closing()]

    def chat(self, messages: Sequence[dict[str, str]], answer: bool = True) -> list[int]:
        """[{"role": ..., "content": ...}, ...] -> the tokens of the conversation.

        A default system message comes first if there is none; answer: let the assistant speak next.
        Raises ValueError or TypeError for what is no conversation, or if the model knows no ChatML.
        """
        for n, message in enumerate(messages):
            if not isinstance(message, dict) or not {"role", "content"} <= message.keys():
                raise ValueError(f"message {n} should be a dict with a role and a content, got {message!r}")
        if not messages:
            raise ValueError("a conversation needs at least 1 message, got 0")
        ids = [] if messages[0]["role"] == "system" else self.opening()
        for message in messages:
            ids += self.message(message["role"], message["content"])
        return ids + self._answer_begins() if answer else ids

    def _answer_begins(self) -> list[int]:
        return [self._special(START), *self.encode("assistant\n")]

    def _special(self, name: str) -> int:
        if self._not_chatml is not None:
            raise ValueError(self._not_chatml)
        if name not in self.special_tokens:
            raise ValueError(f"this model is not made for ChatML: its vocabulary has no {name}")
        return self.special_tokens[name]


def _check_text(text) -> None:
    """TypeError unless it is a str, ValueError with the place of what is no character in it."""
    if not isinstance(text, str):
        raise TypeError(f"a text should be a str, got {type(text).__name__}")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(
            f"character {error.start} of the text is U+{ord(text[error.start]):04X}, "
            "half of a pair of surrogates, which is no text"
        ) from None


def _listed(metadata: dict, name: str, kind: type) -> list:
    values = metadata.get(f"tokenizer.ggml.{name}")
    if not isinstance(values, list) or any(type(value) is not kind for value in values):
        raise ValueError(
            f"tokenizer.ggml.{name} should be a list of {kind.__name__}, the file has no such list"
        )
    return values


def _merge(number: int, merge: str, vocabulary: dict) -> tuple[str, str]:
    """One line of the merges, "left right" -> the pair, both and what they make being tokens."""
    left, _, right = merge.partition(" ")
    if not all(part in vocabulary for part in (left, right, left + right)):
        raise ValueError(f"merge {number} is {merge!r}, which does not join two tokens to a third")
    return left, right


def _token_id(metadata: dict, name: str, vocab_size: int) -> int | None:
    token = metadata.get(f"tokenizer.ggml.{name}_token_id")
    if token is None:
        return None
    if type(token) is not int or not 0 <= token < vocab_size:
        raise ValueError(f"{name}_token_id is {token!r}, the vocabulary has {vocab_size:,} tokens")
    return token


def _named_token(tokenizer, name) -> int | None:
    if isinstance(name, dict):
        name = name.get("content")
    return tokenizer.token_to_id(name) if isinstance(name, str) else None


def _read_json(path: Path) -> dict:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not JSON: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} should hold a JSON object, it holds a {type(content).__name__}")
    return content
