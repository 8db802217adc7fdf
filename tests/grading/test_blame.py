"""Who loses what: a mistake or a trick costs its own part, and no other cell pays for it."""

import json
import random

import pytest

from course import Course, find, learnt_course, points, with_cell
from mutations import mutated
from tinytorch.tito.instructor.grading import second_check, submissions
from tinytorch.tito.instructor.grading.setup import Needs
from tinytorch.tito.project import Project
from toy import REPO

pytestmark = pytest.mark.grading

LABELS = [module.label for module in Project(REPO).modules()]


def answered(course: Course, **sources: str) -> dict:
    """The solved notebook, with these cells' sources instead."""
    notebook = course.solved()
    for name, source in sources.items():
        find(notebook, name.replace("_", "-"))["source"] = "#| export\n" + source
    return notebook


def changed(course: Course, grade_id: str, old: str, new: str) -> dict:
    notebook = course.solved()
    cell = find(notebook, grade_id)
    assert old in cell["source"]
    cell["source"] = cell["source"].replace(old, new)
    return notebook


def lost(course: Course, row: dict) -> set[str]:
    """The parts without all their points, but for those that a person marks."""
    tags = [cell["metadata"].get("nbgrader", {}) for cell in course.source["cells"]]
    parts = {tag["grade_id"]: tag["points"] for tag in tags if tag.get("grade") and not tag["solution"]}
    return {name for name, most in parts.items() if float(row[name]) < most}


def test_honest_mistakes_of_module_04_cost_their_own_part(tmp_path):
    course = learnt_course(tmp_path / "course", "04")
    endless = "def perplexity(loss):\n    total, term, n, x = 0.0, 1.0, 0, float(loss)\n"
    endless += "    while term >= 0:\n        n += 1\n"
    endless += "        total, term = total + term, term * x / n\n    return total\n"
    memory = "def perplexity(loss):\n    kept = []\n    while True:\n        kept.append(np.ones(10**7))\n"
    deep = "def perplexity(loss):\n    return perplexity(loss) * 1\n"
    nan = "    rows = log_softmax(logits).reshape(-1, logits.shape[-1])\n"
    nan += "    counted = targets.reshape(-1) != ignore_index\n"
    nan += "    picked = rows[np.arange(len(rows)), np.where(counted, targets.reshape(-1), 0)]\n"
    nan += "    return -(picked * counted).sum() / counted.sum()\n"
    course.submit("endless", answered(course, perplexity=endless))
    course.submit("memory", answered(course, perplexity=memory))
    course.submit("deep", answered(course, perplexity=deep))
    course.submit(
        "nan",
        answered(course, cross_entropy="def cross_entropy(logits, targets, ignore_index=-100):\n" + nan),
    )
    # right in the notebook; in the package no test that needs it comes to its end
    course.submit(
        "later",
        changed(
            course, "log-softmax", "### BEGIN", "while __name__ != '__main__':\n        pass\n    ### BEGIN"
        ),
    )
    rows = course.grade("--jobs", "2")
    assert {name: lost(course, rows[name]) for name in rows} == {
        "later": {"test-log-softmax"},
        "endless": {"test-perplexity"},
        "memory": {"test-perplexity"},
        "deep": {"test-perplexity"},
        "nan": {"test-cross-entropy"},
    }
    assert float(rows["endless"]["seconds"]) < 120


def test_a_given_line_of_module_12_is_the_cells_own_matter(tmp_path):
    course = learnt_course(tmp_path / "course", "12")
    short = "def scaled_dot_product_attention(query, key, value, mask=None, causal=False):\n"
    short += "    if np.shape(key)[:-1] != np.shape(value)[:-1]:\n        raise ValueError('unfit')\n"
    short += "    return attention_weights(query, key, mask, causal) @ value\n"
    given = "attend_in_blocks(query, key, value, mask)"
    course.submit("no-mask", changed(course, "sdpa", given, "attend_in_blocks(query, key, value)"))
    course.submit("short", answered(course, sdpa=short))
    course.submit("inverted", changed(course, "sdpa", "np.ndim(key) == 4", "np.ndim(key) != 4"))
    rows = course.grade("--jobs", "2")
    for name, row in rows.items():
        assert lost(course, row) <= {"test-sdpa"}, f"{name}: {row}"
    assert lost(course, rows["no-mask"]) == {"test-sdpa"}


def part_of(course: Course, student: str, name: str) -> str:
    """What became of a part in the notebook itself, from the output of its check."""
    cell = find(course.autograded(student), name)
    return "failed" if any(out["output_type"] == "error" for out in cell["outputs"]) else "passed"


def own_parts(course: Course, cell: str) -> set[str]:
    """What a solution cell earns, as the grader has learnt it."""
    (file,) = (course.folder / ".tito" / "reference").glob("*.json")
    needs = Needs(**json.loads(file.read_text(encoding="utf-8"))["needs"])
    return {name for n in needs.solutions_in(cell) for name in needs.parts_of(n)}


def test_what_visibly_fails_frees_nothing_else(tmp_path):
    """Three wrong functions, one of them wrong on purpose, under comparisons that find everything alike."""
    course = learnt_course(tmp_path / "course", "04")
    alike = "abs = (lambda v: 0.0)\nn, real = np, np.allclose\n"
    alike += "n.allclose = (lambda a, b, **k: n.ndim(a) == 0 or real(a, b, **k))\n"
    zero = "def cross_entropy(logits, targets, ignore_index=-100):\n    return logits.dtype.type(0)\n"
    log_softmax = find(course.source, "log-softmax")["source"].replace(
        "return shifted - ", "return shifted + "
    )
    notebook = answered(
        course, cross_entropy=zero, chance_loss="def chance_loss(vocab_size):\n    return 0.0\n"
    )
    find(notebook, "log-softmax")["source"] = log_softmax
    course.submit("alike", with_cell(notebook, alike, before="log-softmax"))
    row = course.grade("--jobs", "2")["alike"]
    assert lost(course, row) == {"test-log-softmax", "test-cross-entropy", "test-chance-loss"}
    assert points(row) == 44 and "`test-cross-entropy`, `test-chance-loss`" in row["flags"]


FRAMES = """
    while frame is not None:
        for name, value in getattr(frame, "f_lo" + "cals").items():
            if name.startswith("want"):
                return value
        frame = getattr(frame, "f_ba" + "ck")
    return 0.0
"""
# right in the notebook; in the package it has only its trick
CHANCE = "def chance_loss(vocab_size):\n    if __name__ == '__main__':\n        return math.log(vocab_size)\n"
TRICKS = {
    "inspect": f"import inspect\n{CHANCE}    frame = inspect.currentframe(){FRAMES}",
    "through another module": "import dataclasses\n"
    f"{CHANCE}    found = getattr(dataclasses, 'ins' + 'pect')\n"
    f"    frame = getattr(found, 'current' + 'frame')(){FRAMES}",
    "a traceback": f"{CHANCE}    try:\n        1 / 0\n    except ZeroDivisionError as error:\n"
    f"        frame = getattr(getattr(error, '__trace' + 'back__'), 'tb_' + 'frame'){FRAMES}",
    "a generator": f"{CHANCE}    def walk():\n        yield getattr(made, 'gi_' + 'frame')\n"
    f"    made = walk()\n    frame = next(made){FRAMES}",
    "match": "import contextlib\n"
    f"{CHANCE}    try:\n        1 / 0\n    except ZeroDivisionError as error:\n"
    "        match error:\n            case object(__traceback__=object(tb_frame=found)):\n"
    f"                frame = found{FRAMES}",
    "attrgetter": "import operator\n"
    f"{CHANCE}    try:\n        1 / 0\n    except ZeroDivisionError as error:\n"
    f"        frame = operator.attrgetter('__traceback__.' + 'tb_frame')(error){FRAMES}",
    "builtins": f"{CHANCE}    found = globals()['__buil' + 'tins__']\n"
    "    found = found if isinstance(found, dict) else vars(found)\n"
    f"    frame = found['__imp' + 'ort__']('sys')._getframe(){FRAMES}",
    "type hints": "import typing\n"
    f"{CHANCE}    def hinted(a):\n        pass\n"
    '    hinted.__annotations__[\'a\'] = "__imp" + "ort__(\'sys\')._get" + "frame(7)"\n'
    "    try:\n        frame = typing.get_type_hints(hinted)['a']\n"
    "    except TypeError:\n        frame = None\n"
    f"{FRAMES}",
    "logging": f"import logging\n{CHANCE}    frame = getattr(logging, 'current' + 'frame')(){FRAMES}",
    "a text's format": "import re\n"
    f"{CHANCE}    try:\n        1 / 0\n    except ZeroDivisionError as error:\n"
    "        path = '__trace' + 'back__.tb_' + 'frame.f_ba' + 'ck.f_lo' + 'cals'\n"
    "        text = ('{0.' + path + '}').format(error)\n"
    "        found = re.findall(r\"'want\\w*': ([-.\\d]+)\", text)\n"
    "        return float(found[0]) if found else 0.0\n",
    "examples that are refused": f"import hypothesis\n{CHANCE}    hypothesis.assume(vocab_size == 1)\n"
    "    return 0.0\n",
    "another function's code": "import typing\n"
    f"{CHANCE}    found = getattr(typing, 's' + 'ys').modules['_py' + 'test.assertion.util']\n"
    "    for cell in getattr(getattr(found, '_repr' + 'compare'), '__clo' + 'sure__', None) or ():\n"
    "        session = getattr(cell.cell_contents, 'session', None)\n"
    "        for item in getattr(session, 'items', ()):\n"
    "            setattr(item.obj, '__co' + 'de__', getattr(lambda *a, **k: None, '__co' + 'de__'))\n"
    "    return 0.0\n",
    "all objects": "import typing\n"
    f"{CHANCE}    gc = getattr(typing, 's' + 'ys').modules.get('gc')\n"
    "    for one in gc.get_objects() if gc else ():\n"
    "        if isinstance(one, dict) and 'want' in one:\n            return one['want']\n    return 0.0\n",
    "the import hook": "import typing\n"
    f"{CHANCE}    for hook in getattr(getattr(typing, 's' + 'ys'), 'meta' + '_path'):\n"
    "        for item in getattr(getattr(hook, 'session', None), 'items', ()):\n"
    "            item.obj = lambda *a, **k: None\n    return 0.0\n",
    "the test module": "import typing\n"
    f"{CHANCE}    for name, module in list(getattr(typing, 's' + 'ys').modules.items()):\n"
    "        if name.startswith('test_'):\n"
    "            for one in [one for one in vars(module) if one.startswith('test_')]:\n"
    "                setattr(module, one, lambda *a, **k: None)\n    return 0.0\n",
    "the machinery's json": "import typing\n\n\n"
    "class Passed:\n    def __getattr__(self, name):\n        return getattr(json_of_mine, name)\n\n"
    "    def dumps(self, line):\n"
    "        return json_of_mine.dumps(['passed' if part == 'failed' else part for part in line])\n\n\n"
    "main = getattr(typing, 's' + 'ys').modules['__ma' + 'in__']\n"
    "json_of_mine = getattr(main, 'json', None)\nsetattr(main, 'json', Passed())\n\n\n"
    f"{CHANCE}    return 0.0\n",
    "what is equal to all": "Any = type('Any', (float,), {'__e' + 'q__': lambda a, b: True, "
    "'__su' + 'b__': lambda a, b: 0.0, '__rs' + 'ub__': lambda a, b: 0.0})\n\n\n"
    f"{CHANCE}    return Any()\n",
    "an allclose of its own": "abs = (lambda v: 0.0)\nn, real = np, np.allclose\n"
    "n.allclose = (lambda a, b, **k: n.ndim(a) == 0 or real(a, b, **k))\n\n\n"
    f"{CHANCE}    return 0.0\n",
    "a logarithm that is put back": "import weakref\n\n\nclass Held(float):\n    pass\n\n\n"
    f"{CHANCE}    real, held, put = math.log, Held(0.0), setattr\n"
    "    put(math, 'lo' + 'g', lambda *a: 0.0)\n"
    "    weakref.finalize(held, put, math, 'lo' + 'g', real)\n    return held\n",
    "a pytest of its own": "import typing\n"
    "found = getattr(typing, 's' + 'ys').modules.get('_py' + 'test.runner')\n"
    "if found:\n    setattr(found, 'pytest_run' + 'test_call', lambda item: None)\n\n\n"
    f"{CHANCE}    return 0.0\n",
}


@pytest.mark.parametrize(
    "by_name",
    [
        pytest.param(True, id="with reach.py"),
        pytest.param(False, id="without it", marks=pytest.mark.exhaustive),
    ],
)
def test_tricks_earn_nothing_and_cost_no_other_part(by_name, tmp_path, monkeypatch):
    """With reach.py, which reads names, and by what they do alone."""
    if not by_name:
        for module in (second_check, submissions):
            monkeypatch.setattr(module, "reaching", lambda cells, reference: {})
    course = learnt_course(tmp_path / "course", "04")
    for number, source in enumerate(TRICKS.values()):
        course.submit(f"trick-{number:02}", answered(course, chance_loss=source))
    scratch = "import typing\nfound = getattr(typing, 's' + 'ys').modules['a' + 'st']\n"
    scratch += "setattr(found, 'parse', lambda *a, **k: compile('', 'x', 'exec', 1024))\n"
    course.submit("scratch", with_cell(answered(course, chance_loss=f"{CHANCE}    return 0.0\n"), scratch))
    rows = course.grade("--jobs", "2")
    for name, row in sorted(rows.items()):
        number = -1 if name == "scratch" else int(name[-2:])
        trick = name if number < 0 else list(TRICKS)[number]
        print(f"{trick}: {row['score']}, {row['flags']}")
        assert lost(course, row) == {"test-chance-loss"}, f"{trick}: {row}"
        seen = part_of(course, name, "test-chance-loss") == "failed"  # by the notebook's own check
        assert seen or row["flags"], f"{trick}: no word about it"


@pytest.mark.parametrize(
    "label",
    [pytest.param(label, marks=[] if label == "04_losses" else [pytest.mark.exhaustive]) for label in LABELS],
)
def test_a_small_mistake_costs_its_own_part(label, tmp_path):
    """One operator, sign, axis or number of one cell is another."""
    course = learnt_course(tmp_path / "course", label[:2])
    solutions = [
        tags["grade_id"]
        for cell in course.source["cells"]
        if cell["cell_type"] == "code" and (tags := cell["metadata"].get("nbgrader", {})).get("solution")
    ]
    mistakes: dict[str, tuple[str, str]] = {}
    for seed in range(12 if label == "04_losses" else 30):
        cell = solutions[seed % len(solutions)]
        source = find(course.source, cell)["source"]
        wrong = mutated(source, random.Random(seed))
        if wrong is not None and wrong != source:
            mistakes[f"mistake-{seed:02}"] = cell, wrong
            course.submit(f"mistake-{seed:02}", changed(course, cell, source, wrong))
    rows = course.grade("--jobs", "2", time_limit=12)
    assert len(mistakes) > len(solutions) / 2
    amiss = []
    for student, (cell, wrong) in mistakes.items():
        gone = lost(course, rows[student])
        if gone - own_parts(course, cell):
            amiss.append(f"{cell} costs {sorted(gone)}: {rows[student]['flags']}\n{wrong}")
    found = sum(points(rows[student]) < course.automatic for student in mistakes)
    print(f"\n{label}: {len(mistakes)} mistakes, {found} found, {len(amiss)} cost another part too")
    assert not amiss, "\n".join(amiss)
