"""Make the dialogue data set: hand-written exchanges and small tables -> three JSON-lines files.

    python milestones/05_2017_transformer/data/build.py           # write the files
    python milestones/05_2017_transformer/data/build.py --check   # write nothing, exit 1 if they differ

The hand-written part is exchanges.txt. The kinds with a regular structure (order, opposite, plural, sum,
colour, size) are made here from short lists. Nothing is drawn from a random number generator: a hash of the
question and of SEED decides what is held out, so that every machine and every Python makes the same bytes.
"""

import argparse
import hashlib
import json
import sys
from collections.abc import Iterable, Sequence
from itertools import combinations
from pathlib import Path

HERE = Path(__file__).resolve().parent
SOURCE = HERE / "exchanges.txt"
SEED = "tinytorch-2017"
CONVERSATION = "conversation"

Exchange = tuple[str, str]  # question, answer
Parts = tuple[list[Exchange], list[Exchange]]  # training, held out

DAYS = "Monday Tuesday Wednesday Thursday Friday Saturday Sunday".split()
MONTHS = "January February March April May June July August September October November December".split()

OPPOSITES = """
    hot cold, big small, fast slow, high low, light dark, good bad, happy sad, full empty, open closed,
    wet dry, strong weak, day night, up down, early late, loud quiet, near far, rich poor, deep shallow,
    thick thin, clean dirty
"""
REGULAR_PLURALS = """
    cat dog horse cow bird whale tree star planet house river key token tensor book ship
"""
OTHER_PLURALS = {
    "box": "boxes",
    "fox": "foxes",
    "bus": "buses",
    "dish": "dishes",
    "city": "cities",
    "story": "stories",
    "baby": "babies",
    "leaf": "leaves",
    "wolf": "wolves",
    "mouse": "mice",
    "child": "children",
    "foot": "feet",
    "tooth": "teeth",
    "man": "men",
    "woman": "women",
    "goose": "geese",
    "sheep": "sheep",
}
UNSEEN_PLURALS = "layer weight head spider penguin dragon".split()  # in the training text, never asked for

COLOURS = {
    "a lemon": "yellow",
    "a banana": "yellow",
    "grass": "green",
    "a cucumber": "green",
    "an emerald": "green",
    "snow": "white",
    "milk": "white",
    "coal": "black",
    "a raven": "black",
    "a carrot": "orange",
    "a pumpkin": "orange",
    "a tomato": "red",
    "a ripe strawberry": "red",
    "an elephant": "grey",
    "a flamingo": "pink",
    "chocolate": "brown",
    "the sky": "blue",
    "a plum": "purple",
}

# From small to large, each so much larger than the one before that no two of them can be confused.
ANIMALS = [
    "an ant",
    "a mouse",
    "a cat",
    "a sheep",
    "a lion",
    "a horse",
    "a rhino",
    "an elephant",
    "a blue whale",
]


def pick(items: Iterable, count: int, purpose: str) -> list:
    """`count` of the items, chosen by a hash of each item and SEED, in their original order."""
    items = list(items)
    if count > len(items):
        raise ValueError(f"{purpose}: cannot pick {count} of {len(items)} items")

    def rank(index: int) -> str:
        return hashlib.sha256(f"{SEED}/{purpose}/{items[index]}".encode()).hexdigest()

    return [items[index] for index in sorted(sorted(range(len(items)), key=rank)[:count])]


def without(items: Sequence, removed: Sequence) -> list:
    return [item for item in items if item not in removed]


def sentence(words: str) -> str:
    return words[0].upper() + words[1:]


def order_kind() -> Parts:
    """What comes after Tuesday? Held out: one wording of a fact that the other wording states."""
    first, second = [], []
    for names, what in ((DAYS, "day"), (MONTHS, "month")):
        for place, name in enumerate(names):
            after = f"After {name} comes {names[(place + 1) % len(names)]}."
            before = f"Before {name} comes {names[place - 1]}."
            first += [(f"What comes after {name}?", after), (f"What comes before {name}?", before)]
            second.append((f"Which {what} comes after {name}?", after))
            if what == "day":
                second.append((f"Which {what} comes before {name}?", before))
    held_out = pick(second, 10, "order")
    return first + without(second, held_out), held_out


def opposite_kind() -> Parts:
    """What is the opposite of hot? Held out: 5 pairs the other way round, 5 in another wording."""
    one_way = [tuple(pair.split()) for pair in OPPOSITES.split(",")]
    other_way = [(b, a) for a, b in one_way]
    reversal = pick(other_way, 5, "opposite reversal")
    known = one_way + without(other_way, reversal)
    reworded = pick(without(one_way, [(a, b) for b, a in reversal]), 15, "opposite wording")
    held_out_words = pick(reworded, 5, "opposite held-out wording")

    def ask(pairs: Sequence, question: str) -> list[Exchange]:
        return [(question.format(a), f"The opposite of {a} is {b}.") for a, b in pairs]

    plain, other = "What is the opposite of {}?", "Which word is the opposite of {}?"
    train = ask(known, plain) + ask(without(reworded, held_out_words), other)
    return train, ask(reversal, plain) + ask(held_out_words, other)


def plural_kind() -> Parts:
    """What is the plural of cat? Held out: 6 words never asked for, 4 in another wording."""
    plurals = {word: word + "s" for word in REGULAR_PLURALS.split()} | OTHER_PLURALS
    reworded = pick(plurals, 14, "plural wording")
    held_out_words = pick(reworded, 4, "plural held-out wording")

    def ask(word: str, question: str) -> Exchange:
        return question.format(word), f"The plural of {word} is {plurals.get(word, word + 's')}."

    plain, other = "What is the plural of {}?", "What do you call more than one {}?"
    train = [ask(word, plain) for word in plurals]
    train += [ask(word, other) for word in without(reworded, held_out_words)]
    held_out = [ask(word, plain) for word in UNSEEN_PLURALS] + [ask(word, other) for word in held_out_words]
    return train, held_out


def sum_kind() -> Parts:
    """What is 3 plus 4? Held out: 5 whose mirror image is trained, and 3 pairs in both orders."""

    def ask(a: int, b: int) -> Exchange:
        return f"What is {a} plus {b}?", f"{a} plus {b} is {a + b}."

    pairs = list(combinations(range(1, 10), 2))
    neither = pick(pairs, 3, "sum pair")
    mirrored = pick(without(pairs, neither), 5, "sum mirror")
    held_out = [order for a, b in neither for order in ((a, b), (b, a))] + mirrored
    train = [(a, b) for a in range(1, 10) for b in range(1, 10) if (a, b) not in held_out]
    return [ask(a, b) for a, b in train], [ask(a, b) for a, b in held_out]


def colour_kind() -> Parts:
    """What colour is a lemon? Is a lemon yellow or blue? Held out: the choice with another wrong colour."""
    train, spare = [], []
    palette = sorted(set(COLOURS.values()))
    for thing, colour in COLOURS.items():
        answer = f"{sentence(thing)} is {colour}."
        train.append((f"What colour is {thing}?", answer))
        wrong = pick(without(palette, [colour]), 3, f"wrong colours of {thing}")
        train.append((f"Is {thing} {colour} or {wrong[0]}?", answer))
        train.append((f"Is {thing} {wrong[1]} or {colour}?", answer))
        spare.append((f"Is {thing} {colour} or {wrong[2]}?", answer))
    return train, pick(spare, 10, "colour")


def size_kind() -> Parts:
    """Which is bigger, a cat or a horse? Held out: 5 pairs of animals that training never compares."""

    def ask(word: str, small: str, large: str, small_first: bool) -> Exchange:
        one, two = (small, large) if small_first else (large, small)
        winner, loser = (large, small) if word == "bigger" else (small, large)
        return f"Which is {word}, {one} or {two}?", f"{sentence(winner)} is {word} than {loser}."

    pairs = list(combinations(ANIMALS, 2))
    apart = [(a, b) for a, b in pairs if ANIMALS.index(b) - ANIMALS.index(a) > 1]
    held_out = pick(apart, 5, "size")
    known = without(pairs, held_out)
    turned = pick(known, len(known) // 2, "size order")
    train = [ask("bigger", *pair, pair in turned) for pair in known]
    train += [ask("smaller", *pair, pair not in turned) for pair in pick(known, 19, "smaller")]
    return train, [ask(word, *pair, True) for pair in held_out for word in ("bigger", "smaller")]


COMBINED_KINDS = {
    "order": order_kind,
    "opposite": opposite_kind,
    "plural": plural_kind,
    "sum": sum_kind,
    "colour": colour_kind,
    "size": size_kind,
}


def read_source(text: str) -> tuple[list, list, list[list[str]]]:
    """exchanges.txt -> training records, held-out records (both: kind, question, answer), conversations."""
    train, held_out, conversations = [], [], []
    kind = None
    lines = [line for line in text.splitlines() if not line.startswith("#")]
    for block in "\n".join(lines).split("\n\n"):
        block = block.replace("\n  ", " ").strip()
        if not block:
            continue
        if block.startswith("["):
            kind = block.strip("[]")
            continue
        marked = [line.split(" ", 1) for line in block.splitlines()]
        if any(len(parts) != 2 for parts in marked):
            raise ValueError(f"a line without text in the block {block!r}")
        if kind == CONVERSATION:
            if any(mark != "-" for mark, _ in marked):
                raise ValueError(f"every line of a conversation begins with '- ', not so in {block!r}")
            conversations.append([question for _, question in marked])
            continue
        answers = [text for mark, text in marked if mark == "A:"]
        if kind is None or len(answers) != 1 or any(mark not in ("Q:", "H:", "A:") for mark, _ in marked):
            raise ValueError(f"a block needs a kind, Q: or H: lines and one A: line, not so in {block!r}")
        train += [(kind, text, answers[0]) for mark, text in marked if mark == "Q:"]
        held_out += [(kind, text, answers[0]) for mark, text in marked if mark == "H:"]
    return train, held_out, conversations


def make() -> dict[str, str]:
    """-> {file name: its text}, made from exchanges.txt and the lists above."""
    train, paraphrases, conversations = read_source(SOURCE.read_text(encoding="utf-8"))
    combinations_held_out = []
    for kind, make_kind in COMBINED_KINDS.items():
        seen, unseen = make_kind()
        train += [(kind, question, answer) for question, answer in seen]
        combinations_held_out += [(kind, question, answer) for question, answer in unseen]

    answers = {}
    for _, question, answer in train + paraphrases + combinations_held_out:
        if question in answers:
            raise ValueError(f"the question {question!r} stands in the data set twice")
        answers[question] = answer
    trained = {question for _, question, _ in train}
    for questions in conversations:
        for question in questions:
            if question not in trained:
                raise ValueError(f"a conversation asks {question!r}, which training does not answer")

    def lines(records: list, talks: Sequence = ()) -> str:
        rows = [{"kind": kind, "turns": [[question, answer]]} for kind, question, answer in records]
        rows += [{"kind": CONVERSATION, "turns": [[q, answers[q]] for q in talk]} for talk in talks]
        return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)

    return {
        "train.jsonl": lines(train, conversations),
        "heldout_paraphrase.jsonl": lines(paraphrases),
        "heldout_combination.jsonl": lines(combinations_held_out),
    }


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Make the dialogue data set of the chat milestone.")
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 if a file differs")
    options = parser.parse_args(arguments)
    try:
        made = make()
    except (OSError, ValueError) as error:
        print(f"build.py: {error}", file=sys.stderr)
        return 1
    differing = []
    for name, text in made.items():
        path = HERE / name
        if options.check:
            if not path.is_file() or path.read_text(encoding="utf-8") != text:
                differing.append(name)
        else:
            path.write_text(text, encoding="utf-8", newline="\n")
            print(f"{name}: {text.count(chr(10))} lines, {len(text.encode())} bytes")
    if differing:
        print(f"build.py: not what the sources make: {', '.join(differing)}", file=sys.stderr)
        return 1
    if options.check:
        print(f"{len(made)} files are what the sources make.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
