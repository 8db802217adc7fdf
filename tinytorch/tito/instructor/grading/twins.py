"""Twins of a checkpoint's tests that expect something else, and so must fail whatever the code is."""

# A twin calls the student's functions as its test does. Code that turns failures into passes, or that finds
# the expected value in the test and hands it back, lets the twin pass too.

import ast
import copy
import random
from collections.abc import Iterator

HELPER = '''
def NAME(value, by):
    """Another value of the same kind; where there is none to be had, one that equals nothing."""
    if isinstance(value, (bool, np.bool_, str, bytes, type(None))):
        return ("not", value, by)
    if isinstance(value, (list, tuple)):
        return type(value)([NAME(one, by) for one in value]) if value and type(value) in (list, tuple) else by
    data = np.asarray(getattr(value, "data", value))
    if data.dtype.kind not in "iuf" or not data.size:
        return ("not", by)
    return value + by * (1 + np.abs(np.where(np.isfinite(data), data, 0)))
'''
FAR = 1000, 9999  # times what is expected: what is stolen from the test and handed back
# The same of comparisons, which something in between might find alike. A test whose tolerance lets the
# reference pass with half as much has no such twin, so no answer can be right in both.
NEAR = 0.06, 0.12
HALF = 0.03
COMPARING = {"allclose", "array_equal", "isclose", "approx"}


class Shifter:
    """Makes twins; `name` is that of the helper, `draw` where the secret numbers come from.

    `half`: to learn of the reference which twins are any good.
    """

    def __init__(self, name: str, draw: random.Random, half: bool = False):
        self.name, self.draw, self.half = name, draw, half

    def helper(self) -> str:
        return HELPER.replace("NAME", self.name)

    def twins(self, test: ast.FunctionDef) -> Iterator[tuple[str, ast.FunctionDef]]:
        """(kind, twin) for each way in which something of the test can be expected otherwise."""
        for kind, change in (("assertion", _Assertions), ("want", _Wants)):
            twin = copy.deepcopy(test)
            changer = change(self)
            for statement in twin.body:
                changer.visit(statement)
            if changer.changed:
                yield kind, ast.fix_missing_locations(twin)

    def shifted(self, value: ast.expr, between: tuple[float, float]) -> ast.expr:
        by = HALF if self.half and between == NEAR else self.draw.uniform(*between)
        return ast.Call(ast.Name(self.name, ast.Load()), [value, ast.Constant(round(by, 4))], [])


class _Assertions(ast.NodeTransformer):
    """Other values in assertions that two things are equal or alike, and another exception."""

    def __init__(self, shifter: Shifter):
        self.shifter, self.changed = shifter, 0

    def shift(self, value: ast.expr) -> ast.expr:
        self.changed += 1
        return self.shifter.shifted(value, NEAR)

    def visit_UnaryOp(self, node: ast.UnaryOp) -> ast.AST:
        return node if isinstance(node.op, ast.Not) else self.generic_visit(node)

    def visit_Assert(self, node: ast.Assert) -> ast.Assert:
        node.test = _Equalities(self).visit(node.test)
        return node

    def visit_Call(self, node: ast.Call) -> ast.expr:
        name = getattr(node.func, "attr", "")
        if name.startswith("assert_") and len(node.args) > 1:
            node.args[1] = self.shift(node.args[1])
        elif name == "raises" and node.args:
            self.changed += 1
            node.args[0] = ast.Name("MemoryError", ast.Load())
            node.keywords = [keyword for keyword in node.keywords if keyword.arg != "match"]
        return node


class _Equalities(ast.NodeTransformer):
    def __init__(self, owner: _Assertions):
        self.owner = owner

    def visit_UnaryOp(self, node: ast.UnaryOp) -> ast.AST:
        return node if isinstance(node.op, ast.Not) else self.generic_visit(node)

    def visit_Compare(self, node: ast.Compare) -> ast.expr:
        if isinstance(node.ops[0], ast.Eq):
            node.comparators[0] = self.owner.shift(node.comparators[0])
        return node

    def visit_Call(self, node: ast.Call) -> ast.expr:
        name = getattr(node.func, "attr", getattr(node.func, "id", ""))
        if name in COMPARING and len(node.args) > 1:
            node.args[1] = self.owner.shift(node.args[1])
        return node


class _Wants(ast.NodeTransformer):
    """Another value where the test computes what it wants."""

    def __init__(self, shifter: Shifter):
        self.shifter, self.changed = shifter, 0

    def visit_Assign(self, node: ast.Assign) -> ast.Assign:
        if any(isinstance(target, ast.Name) and target.id.startswith("want") for target in node.targets):
            self.changed += 1
            node.value = self.shifter.shifted(node.value, FAR)
        return node
