"""Small mistakes in a solution, as honest students make them: one operator, sign, axis or number."""

import ast
import random

OPERATORS = {
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.Add,
    ast.Div: ast.Mult,
    ast.FloorDiv: ast.Mult,
    ast.Lt: ast.LtE,
    ast.LtE: ast.Lt,
    ast.Gt: ast.GtE,
    ast.GtE: ast.Gt,
    ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq,
    ast.And: ast.Or,
    ast.Or: ast.And,
    ast.Is: ast.IsNot,
    ast.IsNot: ast.Is,
}


def places(tree: ast.AST) -> list[tuple[ast.AST, str]]:
    """Where one thing can be another: (node, what)."""
    found = []
    for node in ast.walk(tree):
        if isinstance(node, (ast.BinOp, ast.BoolOp, ast.AugAssign)) and type(node.op) in OPERATORS:
            found.append((node, "op"))
        elif isinstance(node, ast.Compare) and type(node.ops[0]) in OPERATORS:
            found.append((node, "compare"))
        elif isinstance(node, ast.UnaryOp) and isinstance(node.op, (ast.USub, ast.Not)):
            found.append((node, "sign"))
        elif isinstance(node, ast.keyword) and node.arg in ("axis", "keepdims"):
            found.append((node, "keyword"))
        elif isinstance(node, ast.Constant) and type(node.value) is int:
            found.append((node, "number"))
    return found


def mutated(source: str, draw: random.Random) -> str | None:
    """A solution cell with one mistake between its markers; None if there is nothing to get wrong."""
    lines = source.split("\n")
    inside, within = set(), False
    for number, line in enumerate(lines, 1):
        within = "### BEGIN SOLUTION" in line or (within and "### END SOLUTION" not in line)
        inside |= {number} if within else set()
    tree = ast.parse(source)
    found = [(node, what) for node, what in places(tree) if getattr(node, "lineno", 0) in inside]
    if not found:
        return None
    node, what = draw.choice(found)
    first = next(
        n for n in ast.walk(tree) if isinstance(n, ast.stmt) and n.lineno <= node.lineno <= n.end_lineno
    )
    for statement in ast.walk(first):  # the smallest statement around it
        if isinstance(statement, ast.stmt) and statement.lineno <= node.lineno <= statement.end_lineno:
            if any(inner is node for inner in ast.walk(statement)):
                first = statement
    if what == "op":
        node.op = OPERATORS[type(node.op)]()
    elif what == "compare":
        node.ops[0] = OPERATORS[type(node.ops[0])]()
    elif what == "sign":
        node.op = ast.UAdd() if isinstance(node.op, ast.USub) else ast.USub()
    elif what == "keyword":
        node.value = ast.UnaryOp(ast.Not(), node.value) if node.arg == "keepdims" else ast.Constant(0)
    else:
        node.value += draw.choice([-1, 1])
    indent = " " * first.col_offset
    new = [indent + line for line in ast.unparse(first).split("\n")]
    return "\n".join(lines[: first.lineno - 1] + new + lines[first.end_lineno :])
