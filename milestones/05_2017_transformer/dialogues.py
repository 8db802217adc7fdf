"""Read the dialogue data set in data/ (described in data/README.md, made by data/build.py)."""

import json
from collections.abc import Iterator
from itertools import chain
from pathlib import Path

DATA = Path(__file__).resolve().parent / "data"
SPLITS = ("train", "heldout_paraphrase", "heldout_combination")

Turn = tuple[str, str]


def load_dialogues(split: str) -> list[list[Turn]]:
    """-> conversations, each a list of (question, answer) turns, in the order of the file.

    split: one of SPLITS. A question has one answer in the whole data set, whatever was said before it.
    Raises ValueError for an unknown split and for a file that is missing or damaged.
    """
    return [turns for _, turns in _records(split)]


def load_kinds(split: str) -> dict[str, str]:
    """-> {question: its kind}, one entry for each question of the split, in the order of the file.

    Conversations repeat questions that stand in the file alone, and keep the kind that they have there.
    """
    return {question: kind for kind, turns in _records(split) for question, _ in turns if len(turns) == 1}


def _records(split: str) -> Iterator[tuple[str, list[Turn]]]:
    if split not in SPLITS:
        raise ValueError(f"there is no split {split!r}; the splits are {', '.join(SPLITS)}")
    path = DATA / f"{split}.jsonl"
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise ValueError(f"cannot read the dialogues in {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is damaged: byte {error.start} is not UTF-8") from error
    for number, line in enumerate(lines, 1):
        yield _record(path, number, line)


def _record(path: Path, number: int, line: str) -> tuple[str, list[Turn]]:
    try:
        record = json.loads(line)
        kind, turns = record["kind"], [(question, answer) for question, answer in record["turns"]]
        if not turns or not all(isinstance(text, str) for text in (kind, *chain.from_iterable(turns))):
            raise TypeError("a dialogue needs turns, and all of it is text")
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(f"line {number} of {path} is not a dialogue: {line[:60]!r}") from error
    return kind, turns
