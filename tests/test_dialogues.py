"""The chat milestone's dialogue data set: its splits, its texts, its facts, its card and its build script."""

import calendar
import importlib.util
import re
import shutil
import subprocess
import sys
from collections import Counter
from itertools import chain
from pathlib import Path

import pytest

MILESTONE = Path(__file__).resolve().parents[1] / "milestones" / "05_2017_transformer"
DATA = MILESTONE / "data"
TRAIN, PARAPHRASE, COMBINATION = "train", "heldout_paraphrase", "heldout_combination"
COMBINED = ("order", "opposite", "plural", "sum", "colour", "size")
KILOGRAMS = {
    "an ant": 5e-6,
    "a mouse": 0.02,
    "a cat": 4,
    "a sheep": 70,
    "a lion": 180,
    "a horse": 500,
    "a rhino": 1500,
    "an elephant": 5000,
    "a blue whale": 120_000,
}


def load_module(path):
    """The milestone's folder is no package: its modules are loaded by their place."""
    spec = importlib.util.spec_from_file_location(f"{path.stem}_under_test", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


dialogues = load_module(MILESTONE / "dialogues.py")
build = load_module(DATA / "build.py")


def singles(split, kind=None):
    """{question: answer} of the single exchanges of one split, of one kind if asked."""
    kinds = dialogues.load_kinds(split)
    found = dict(talk[0] for talk in dialogues.load_dialogues(split) if len(talk) == 1)
    return {question: answer for question, answer in found.items() if kind in (None, kinds[question])}


def conversations():
    return [talk for talk in dialogues.load_dialogues(TRAIN) if len(talk) > 1]


def everything(kind=None):
    return {q: a for split in dialogues.SPLITS for q, a in singles(split, kind).items()}


def texts(talk):
    return [text for turn in talk for text in turn]


def words(text):
    return re.findall(r"[a-z0-9]+", text.lower())


def matched(pattern, kind, split=None):
    """[(match of the question, answer)] for the questions of a kind that match; checks that some do."""
    source = everything(kind) if split is None else singles(split, kind)
    found = [(m, a) for q, a in source.items() if (m := re.fullmatch(pattern, q))]
    assert found, f"no question of the kind {kind} reads {pattern}"
    return found


# Reading


def test_every_split_is_a_list_of_conversations_of_question_and_answer():
    for split in dialogues.SPLITS:
        talks = dialogues.load_dialogues(split)
        assert talks and all(isinstance(talk, list) and talk for talk in talks)
        assert all(isinstance(turn, tuple) and len(turn) == 2 for turn in chain.from_iterable(talks))
        assert all(isinstance(text, str) for text in chain.from_iterable(chain.from_iterable(talks)))
        assert list(dialogues.load_kinds(split)) == list(singles(split))


def test_an_unknown_split_is_refused():
    with pytest.raises(ValueError, match="no split 'test'.*heldout_combination"):
        dialogues.load_dialogues("test")
    with pytest.raises(ValueError, match="no split 'test'"):
        dialogues.load_kinds("test")


GOOD = '{"kind": "sum", "turns": [["What is 1 plus 1?", "1 plus 1 is 2."]]}'


@pytest.mark.parametrize(
    "line",
    [
        GOOD[:-5],
        '{"kind": "sum"}',
        '{"kind": "sum", "turns": []}',
        '{"kind": "sum", "turns": [["What is 1 plus 1?"]]}',
        '{"kind": "sum", "turns": [["What is 1 plus 1?", 2]]}',
        '{"kind": 1, "turns": [["What is 1 plus 1?", "2"]]}',
        "[]",
        "",
    ],
)
def test_a_damaged_line_is_named(line, tmp_path, monkeypatch):
    monkeypatch.setattr(dialogues, "DATA", tmp_path)
    (tmp_path / "train.jsonl").write_text(f"{GOOD}\n{line}\n")
    with pytest.raises(ValueError, match=r"line 2 of .*train\.jsonl is not a dialogue"):
        dialogues.load_dialogues(TRAIN)


def test_a_missing_file_and_bytes_that_are_no_text_are_named(tmp_path, monkeypatch):
    monkeypatch.setattr(dialogues, "DATA", tmp_path)
    with pytest.raises(ValueError, match=r"cannot read the dialogues in .*train\.jsonl"):
        dialogues.load_dialogues(TRAIN)
    (tmp_path / "train.jsonl").write_bytes(GOOD.encode() + b"\n\xff\n")
    with pytest.raises(ValueError, match=f"byte {len(GOOD) + 1} is not UTF-8"):
        dialogues.load_dialogues(TRAIN)


# Splits


def test_no_question_stands_twice():
    talks = [talk for split in dialogues.SPLITS for talk in dialogues.load_dialogues(split)]
    asked = Counter(talk[0][0] for talk in talks if len(talk) == 1)
    assert [question for question, times in asked.items() if times > 1] == []


def test_no_held_out_question_is_trained_even_without_case_and_punctuation():
    trained = {tuple(words(q)) for talk in dialogues.load_dialogues(TRAIN) for q, _ in talk}
    for split in (PARAPHRASE, COMBINATION):
        assert [q for q in singles(split) if tuple(words(q)) in trained] == []
    held_out = [tuple(words(q)) for split in (PARAPHRASE, COMBINATION) for q in singles(split)]
    assert len(set(held_out)) == len(held_out), "two held-out questions differ in case or punctuation only"


def test_each_question_has_one_answer_wherever_it_is_asked():
    alone = singles(TRAIN)
    for talk in conversations():
        assert 2 <= len(talk) <= 3
        for question, answer in talk:
            assert question in alone, f"{question!r} stands in a conversation but not alone"
            assert alone[question] == answer, f"{question!r} is answered in two ways"


def test_conversations_differ():
    seen = [tuple(talk) for talk in conversations()]
    assert len(set(seen)) == len(seen)


def test_only_training_holds_conversations():
    assert conversations()
    for split in (PARAPHRASE, COMBINATION):
        assert all(len(talk) == 1 for talk in dialogues.load_dialogues(split))


def test_paraphrases_ask_for_trained_answers_of_their_kind():
    kinds = dialogues.load_kinds(PARAPHRASE)
    trained = {kind: set(singles(TRAIN, kind).values()) for kind in set(kinds.values())}
    for question, answer in singles(PARAPHRASE).items():
        assert kinds[question] not in COMBINED
        assert answer in trained[kinds[question]], f"training holds no wording for {question!r}"


def test_combinations_belong_to_kinds_that_are_trained():
    trained = Counter(dialogues.load_kinds(TRAIN).values())
    held_out = Counter(dialogues.load_kinds(COMBINATION).values())
    assert set(held_out) == set(COMBINED)
    for kind, count in held_out.items():
        assert trained[kind] >= 4 * count, f"{kind}: {count} held out, only {trained[kind]} trained"


# Texts


def test_texts_are_printable_ascii_and_tidy():
    for split in dialogues.SPLITS:
        for question, answer in chain.from_iterable(dialogues.load_dialogues(split)):
            for text in (question, answer):
                assert text.isascii() and text.isprintable(), text
                assert text == " ".join(text.split()), f"stray space in {text!r}"
                assert re.fullmatch(r"[A-Za-z0-9 .,:;?!'-]+", text), f"unplanned character in {text!r}"
            assert re.fullmatch(r"[A-Z0-9].*[.!?]", answer), f"not a sentence: {answer!r}"


def test_lengths_are_bounded():
    for split in dialogues.SPLITS:
        for talk in dialogues.load_dialogues(split):
            assert dialogue_bytes(talk) <= 500, f"too long: the dialogue that begins with {talk[0][0]!r}"
            assert all(len(question) <= 60 for question, _ in talk)


def dialogue_bytes(talk):
    return sum(len(text.encode()) for text in texts(talk))


def long_answers():
    return [answer for answer in set(singles(TRAIN).values()) if 40 <= len(answer.split()) <= 80]


# Facts, each checked by another way than the one that made it


def test_sums():
    for match, answer in matched(r"What is (\d) plus (\d)\?", "sum"):
        a, b = map(int, match.groups())
        assert answer == f"{a} plus {b} is {a + b}."
    assert len(everything("sum")) == 81


def test_days_and_months():
    for names in (calendar.day_name, calendar.month_name):
        names = [name for name in names if name]
        question = rf"(?:What|Which day|Which month) comes (after|before) ({'|'.join(names)})\?"
        found = matched(question, "order")
        for match, answer in found:
            relation, name = match.groups()
            step = 1 if relation == "after" else -1
            other = names[(names.index(name) + step) % len(names)]
            assert answer == f"{relation.capitalize()} {name} comes {other}."
        assert {match[2] for match, _ in found} == set(names)


def test_every_opposite_of_an_opposite_is_the_word_itself():
    pairs = {m[1]: a for m, a in matched(r"(?:What|Which word) is the opposite of (\w+)\?", "opposite")}
    opposite = {word: re.fullmatch(rf"The opposite of {word} is (\w+)\.", a)[1] for word, a in pairs.items()}
    assert all(opposite[other] == word != other for word, other in opposite.items())


def test_plurals():
    irregular = dict(
        pair.split()
        for pair in "leaf leaves,wolf wolves,mouse mice,child children,foot feet,tooth teeth,man men,"
        "woman women,goose geese,sheep sheep".split(",")
    )
    question = r"(?:What is the plural of|What do you call more than one) (\w+)\?"
    for match, answer in matched(question, "plural"):
        word = match[1]
        if word in irregular:
            plural = irregular[word]
        elif re.search(r"[^aeiou]y$", word):
            plural = word[:-1] + "ies"
        else:
            plural = word + ("es" if re.search(r"(s|x|ch|sh)$", word) else "s")
        assert answer == f"The plural of {word} is {plural}."


def test_a_choice_of_colours_offers_the_right_one_once():
    stated = {m[1]: a for m, a in matched(r"What colour is (.+)\?", "colour")}
    for thing, answer in stated.items():
        assert answer.startswith(f"{thing[0].upper()}{thing[1:]} is ")
    for match, answer in matched(r"Is (.+) (\w+) or (\w+)\?", "colour"):
        thing, *offered = match.groups()
        assert answer == stated[thing]
        assert sum(answer.endswith(f" is {colour}.") for colour in offered) == 1


def test_sizes():
    for match, answer in matched(r"Which is (bigger|smaller), (an? .+) or (an? .+)\?", "size"):
        word, *two = match.groups()
        first, second = sorted(two, key=KILOGRAMS.get, reverse=word == "bigger")
        assert answer == f"{first[0].upper()}{first[1:]} is {word} than {second}."


# What is held out is held out in the way that the card says


def test_held_out_orders_are_stated_in_the_other_wording():
    stated = set(singles(TRAIN, "order").values())
    assert set(singles(COMBINATION, "order").values()) <= stated


def test_held_out_opposites_are_five_reversals_and_five_rewordings():
    stated = set(singles(TRAIN, "opposite").values())
    held_out = singles(COMBINATION, "opposite").values()
    assert sum(answer in stated for answer in held_out) == 5
    for answer in set(held_out) - stated:
        word, other = re.fullmatch(r"The opposite of (\w+) is (\w+)\.", answer).groups()
        assert f"The opposite of {other} is {word}." in stated


def test_held_out_plurals_are_six_new_words_and_four_rewordings():
    stated = set(singles(TRAIN, "plural").values())
    held_out = singles(COMBINATION, "plural").values()
    assert sum(answer in stated for answer in held_out) == 4
    talks = dialogues.load_dialogues(TRAIN)
    elsewhere = {word for talk in talks for text in texts(talk) for word in words(text)}
    for answer in set(held_out) - stated:
        word = re.fullmatch(r"The plural of (\w+) is \w+\.", answer)[1]
        assert {word, word + "s"} & elsewhere, f"{word!r} stands nowhere in training"


def test_held_out_sums_are_three_pairs_and_five_mirror_images():
    asked = {tuple(re.findall(r"\d", question)) for question in singles(TRAIN, "sum")}
    held_out = [tuple(re.findall(r"\d", question)) for question in singles(COMBINATION, "sum")]
    assert len(held_out) == 11
    assert sum((b, a) in asked for a, b in held_out) == 5
    assert sum((b, a) in held_out for a, b in held_out) == 6


def test_held_out_colours_have_a_wrong_colour_never_offered_for_the_thing():
    asked = Counter()
    for match, _ in matched(r"Is (.+) (\w+) or (\w+)\?", "colour", TRAIN):
        asked.update([(match[1], match[2]), (match[1], match[3])])
    for match, _ in matched(r"Is (.+) (\w+) or (\w+)\?", "colour", COMBINATION):
        assert sorted(min(1, asked[match[1], colour]) for colour in match.groups()[1:]) == [0, 1]


def test_held_out_pairs_of_animals_are_never_compared_in_training():
    def pairs(split):
        compared = matched(r"Which is \w+, (.+) or (.+)\?", "size", split)
        return {frozenset(match.groups()) for match, _ in compared}

    assert len(pairs(COMBINATION)) == 5
    assert not pairs(COMBINATION) & pairs(TRAIN)
    ranks = sorted(KILOGRAMS, key=KILOGRAMS.get)
    for one, two in map(tuple, pairs(COMBINATION)):
        assert abs(ranks.index(one) - ranks.index(two)) > 1, "neighbours cannot be compared by way of others"


# The card


def card():
    return (DATA / "README.md").read_text(encoding="utf-8")


def test_the_card_counts_the_exchanges_of_each_kind():
    row = re.compile(r"^\| (\w+) \| (\d+) \| (\d+) \| (\d+) \|", re.MULTILINE)
    rows = {kind: tuple(map(int, counts)) for kind, *counts in row.findall(card())}
    counts = [Counter(dialogues.load_kinds(split).values()) for split in dialogues.SPLITS]
    expected = {kind: tuple(count[kind] for count in counts) for kind in set().union(*counts)}
    expected["all"] = tuple(count.total() for count in counts)
    assert rows == expected


def paraphrases_with_a_new_word():
    trained = {word for question in singles(TRAIN) for word in words(question)}
    return [question for question in singles(PARAPHRASE) if set(words(question)) - trained]


STATED = {
    r"(\d+) conversations of two or three turns": lambda: len(conversations()),
    r"(\d+) different answers": lambda: len(set(singles(TRAIN).values())),
    r"(\d+) of them are of 40 to 80 words": lambda: len(long_answers()),
    r"(\d+) of the paraphrases use a word": lambda: len(paraphrases_with_a_new_word()),
    r"([\d,]+) bytes of text in training": lambda: sum(map(dialogue_bytes, dialogues.load_dialogues(TRAIN))),
    r"longest dialogue has (\d+) bytes": lambda: max(
        dialogue_bytes(talk) for split in dialogues.SPLITS for talk in dialogues.load_dialogues(split)
    ),
}


@pytest.mark.parametrize("sentence", STATED)
def test_the_card_states(sentence):
    stated = re.findall(sentence, " ".join(card().split()))
    assert [int(number.replace(",", "")) for number in stated] == [STATED[sentence]()]


def test_the_card_names_the_licence():
    assert "CC0-1.0" in card()


# The build


def test_the_committed_files_are_what_the_build_makes():
    command = [sys.executable, "-W", "error", str(DATA / "build.py"), "--check"]
    result = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert result.returncode == 0, result.stderr


@pytest.fixture
def copy(tmp_path, monkeypatch):
    """A copy of the data, which build.main now works on."""
    folder = Path(shutil.copytree(DATA, tmp_path / "data", ignore=shutil.ignore_patterns("__pycache__")))
    monkeypatch.setattr(build, "HERE", folder)
    monkeypatch.setattr(build, "SOURCE", folder / "exchanges.txt")
    return folder


def test_check_finds_a_changed_character_and_a_missing_file_and_writes_nothing(copy, capsys):
    train, paraphrase = copy / "train.jsonl", copy / "heldout_paraphrase.jsonl"
    changed = train.read_bytes().replace(b"tensor", b"tensir", 1)
    train.write_bytes(changed)
    paraphrase.unlink()
    assert build.main(["--check"]) == 1
    assert "train.jsonl, heldout_paraphrase.jsonl" in capsys.readouterr().err
    assert train.read_bytes() == changed and not paraphrase.exists()


def test_building_again_makes_the_same_text(copy, capsys):
    for split in dialogues.SPLITS:
        (copy / f"{split}.jsonl").unlink()
    assert build.main([]) == 0
    assert capsys.readouterr().out.count("bytes") == 3
    for split in dialogues.SPLITS:
        assert (copy / f"{split}.jsonl").read_text() == (DATA / f"{split}.jsonl").read_text()
        assert b"\r" not in (copy / f"{split}.jsonl").read_bytes()


@pytest.mark.parametrize(
    "block, complaint",
    [
        ("Q: What is attention?\nA: Something else.", "stands in the data set twice"),
        ("Q: What is 1 plus 1?\nA: 3.", "stands in the data set twice"),
        ("Q: A question without an answer?", "one A: line"),
        ("Q: Two answers?\nA: One.\nA: Two.", "one A: line"),
        ("X: What is this?\nA: That.", "one A: line"),
        ("Q:\nA: That.", "a line without text"),
        ("[conversation]\n\n- What is not trained?", "training does not answer"),
        ("[conversation]\n\nQ: Hello", "begins with '- '"),
    ],
)
def test_a_mistake_in_the_source_is_refused_and_nothing_written(block, complaint, copy, capsys):
    train = (copy / "train.jsonl").read_bytes()
    source = copy / "exchanges.txt"
    head, mark, tail = source.read_text(encoding="utf-8").partition("[world]\n")
    source.write_text(f"{head}{block}\n\n{mark}{tail}", encoding="utf-8")
    assert build.main([]) == 1
    assert complaint in capsys.readouterr().err
    assert (copy / "train.jsonl").read_bytes() == train
