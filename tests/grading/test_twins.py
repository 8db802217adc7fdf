"""The twins of a checkpoint's tests: what they expect instead, and that each checkpoint has some."""

import ast
import random
import re

import numpy as np
import pytest

from tinytorch.tito.instructor.grading.second_check import disguised
from tinytorch.tito.instructor.grading.twins import FAR, HALF, NEAR, Shifter
from toy import REPO

pytestmark = pytest.mark.grading

CHECKPOINTS = sorted((REPO / "tests" / "checkpoints").glob("test_checkpoint_*.py"))


def twins_of(source: str) -> dict[str, str]:
    shifter = Shifter("other", random.Random(0))
    (test,) = ast.parse(source).body
    return {kind: ast.unparse(twin).partition("\n")[2].strip() for kind, twin in shifter.twins(test)}


@pytest.mark.parametrize(
    ("body", "kinds", "word"),
    [
        ("assert f(1) == 2", ["assertion"], "f(1) == other(2, "),
        ("assert np.allclose(f(1), 2)", ["assertion"], "np.allclose(f(1), other(2, "),
        ("assert f(1) == pytest.approx(2)", ["assertion"], "f(1) == other(pytest.approx(2), "),
        ("np.testing.assert_allclose(f(1), 2, rtol=1)", ["assertion"], "assert_allclose(f(1), other(2, "),
        ("with pytest.raises(ValueError, match='3'):\n        f(0)", ["assertion"], "raises(MemoryError)"),
        ("want = 2\n    assert f(1) == want", ["assertion", "want"], "f(1) == other(want, "),
        ("wanted = 2\n    check(f(1), wanted)", ["want"], "wanted = other(2, "),
        ("assert not f(1) == 2", [], ""),
        ("assert f(1) < 2", [], ""),
        ("f(1)", [], ""),
    ],
)
def test_what_a_twin_expects(body, kinds, word):
    twins = twins_of(f"def test_it():\n    {body}\n")
    assert list(twins) == kinds
    assert word in "\n".join(twins.values())


def other():
    names = {"np": np}
    exec(Shifter("other", random.Random(0)).helper(), names)
    return names["other"]


@pytest.mark.parametrize(
    "value",
    [
        0,
        2.5,
        -1,
        np.float32(3),
        np.arange(6.0).reshape(2, 3),
        np.int64(4),
        [1, 2],
        (3, 4.5),
        [[1.0], [2]],
    ],
)
def test_another_value_of_the_same_kind(value):
    made = other()(value, 1234.5)
    assert np.shape(made) == np.shape(value)
    assert not np.any(np.isclose(made, value))


def test_infinities_stay_and_the_others_are_shifted():
    made = other()(np.array([-np.inf, 1, 0]), 0.1)
    assert np.allclose(made, [-np.inf, 1.2, 0.1])


def test_no_answer_is_right_in_a_test_and_in_its_twin():
    """Within a tolerance that the reference fails with half of the shift, none lies between both."""
    assert 2 * HALF <= min(NEAR)
    (test,) = ast.parse("def test_it():\n    assert f(1) == 2\n    want = 3").body
    for half in (True, False):
        found = [ast.unparse(twin) for _, twin in Shifter("other", random.Random(0), half).twins(test)]
        (near,) = re.findall(r"other\(2, ([\d.]+)\)", found[0])
        (far,) = re.findall(r"other\(3, ([\d.]+)\)", found[1])
        assert FAR[0] <= float(far) <= FAR[1]
        assert float(near) == HALF if half else NEAR[0] <= float(near) <= NEAR[1]


@pytest.mark.parametrize("value", [True, False, None, "text", b"", [], (), np.ones((0, 3)), np.array([True])])
def test_what_has_no_other_value_equals_nothing(value):
    made = other()(value, 1234.5)
    assert not np.array_equal(made, value) and made is not value


@pytest.mark.parametrize("path", CHECKPOINTS, ids=lambda path: path.stem[-12:])
def test_each_checkpoint_has_twins_under_other_names(path):
    source = path.read_text(encoding="utf-8")
    text, real, twins, canaries = disguised(source, b"a secret")
    functions = [node.name for node in ast.parse(text).body if isinstance(node, ast.FunctionDef)]
    tests = [name for name in functions if name.startswith("test_")]
    assert {*real, *twins, *canaries} <= set(tests) and len(set(tests)) == len(tests)
    new = {old: name for name, old in real.items()}
    for twin, old in twins.items():  # what its decorators name is there already
        assert tests.index(twin) > tests.index(new[old.rpartition(" of ")[2]])
    assert len(twins) >= len(real) / 3
    assert not [old for old in real.values() if f"def {old}(" in text]
    assert disguised(source, b"another")[1].keys().isdisjoint(real)
