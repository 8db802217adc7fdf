"""What Python a cell is: magics taken out, names bound and used, told without running it."""

import ast
import re
import symtable
import threading
import warnings
from functools import lru_cache
from importlib.util import find_spec
from typing import TypeGuard

PARSER = threading.RLock()  # CPython 3.11 cannot parse in two threads at once ("recursion depth mismatch")
NOT_PYTHON = (SyntaxError, ValueError, RecursionError, MemoryError)
CELL_MAGIC = re.compile(r"\s*%%(\w+)")
RUNS_ITS_BODY = {"time", "timeit", "capture", "prun"}
SHOWING = {"print", "display", "help"}  # calls that show something and do nothing else
FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)
_remembered = lru_cache(maxsize=8192)  # the same cells are asked about again and again
SCOPES = (*FUNCTIONS, ast.Lambda, ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)


def parse(source: str) -> ast.Module:
    """`ast.parse`, one thread at a time."""
    with PARSER, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return ast.parse(source)


@_remembered
def parsed(source: str) -> ast.Module | None:
    """The tree of a cell without its magics, None if it is not Python."""
    try:
        return parse(as_python(source))
    except NOT_PYTHON:
        return None


@_remembered
def as_python(source: str) -> str:
    """A cell as plain Python with as many lines. A cell that is not Python stays as it is.

    A kernel's magics, shell lines and `x?` do nothing here; `%time f()` and `%%time` run what they time.
    """
    magic = CELL_MAGIC.match(source)
    if magic:
        above, body = source[: magic.start(1)], source[magic.end() :].partition("\n")[2]
        if magic[1] not in RUNS_ITS_BODY:
            return "\n" * source.count("\n")
        source = "\n" * (above.count("\n") + 1) + body
    try:
        tree = parse(source)
    except NOT_PYTHON:
        if find_spec("IPython") is None:
            return source
        from IPython.core.inputtransformer2 import TransformerManager

        with PARSER, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                changed = TransformerManager().transform_cell(source).rstrip("\n")
                # it drops empty lines at the top
                changed = "\n" * (source.rstrip("\n").count("\n") - changed.count("\n")) + changed
            except NOT_PYTHON:
                return source
            try:
                tree = ast.parse(changed)
            except NOT_PYTHON:
                return changed
        source = changed
    return _without_ipython(source, tree)


def _without_ipython(source: str, tree: ast.Module) -> str:
    """The source with each statement that asks the kernel for something made harmless."""
    if "get_ipython" not in source:
        return source
    shells, lines = {"get_ipython"}, source.split("\n")
    for node in ast.walk(tree):
        if not isinstance(node, (ast.Expr, ast.Assign)) or _root(node.value) not in shells:
            continue
        if isinstance(node.value, ast.Name):
            continue
        new = "pass"
        if isinstance(node, ast.Assign):
            new = ast.unparse(ast.Assign(node.targets, ast.Constant(None), lineno=node.lineno))
            shells |= {target.id for target in node.targets if isinstance(target, ast.Name)}
        elif (run := _timed(node.value)) is not None:
            new = run
        first, last = node.lineno - 1, node.end_lineno - 1
        # offsets count bytes
        before = lines[first].encode()[: node.col_offset].decode()
        after = lines[last].encode()[node.end_col_offset :].decode()
        lines[first : last + 1] = [before + new + after] + [""] * (last - first)
    return "\n".join(lines)


@_remembered
def names_assigned(source: str) -> frozenset[str]:
    """The global names, and no attributes, that the top level of a cell binds."""
    try:
        with PARSER, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            table = symtable.symtable(as_python(source), "cell", "exec")
    except NOT_PYTHON:
        return frozenset()
    return frozenset(n.get_name() for n in table.get_symbols() if n.is_assigned() or n.is_imported())


def _root(node: ast.expr) -> str:
    """The name that a chain of calls and attributes begins with."""
    while isinstance(node, (ast.Call, ast.Attribute)):
        node = node.func if isinstance(node, ast.Call) else node.value
    return node.id if isinstance(node, ast.Name) else ""


def _timed(call: ast.expr) -> str | None:
    """The statement that a `%time statement` runs."""
    values = [arg.value for arg in getattr(call, "args", ()) if isinstance(arg, ast.Constant)]
    if len(values) == 2 and values[0] == "time" and isinstance(values[1], str):
        statement = values[1].strip()
        try:
            parse(statement)
        except NOT_PYTHON:
            return None
        return statement if "\n" not in statement else None
    return None


# ------------------------------------------------------------------------------------------------------ names


@_remembered
def names_bound(source: str) -> frozenset[str]:
    """The global names, and attributes of them, that a cell makes."""
    tree = parsed(source)
    if tree is None:
        pattern = r"^\s*(?:def|class|async\s+def|import)\s+(\w+)|^\s*from\b.*\bimport\s+(.+)$|^(\w+)\s*=[^=]"
        found = re.findall(pattern, source, re.MULTILINE)
        return frozenset(name for groups in found for group in groups for name in re.findall(r"\w+", group))
    names: set[str] = set()
    queue: list[ast.AST] = [tree]
    while queue:
        node = queue.pop()
        if isinstance(node, (*FUNCTIONS, ast.ClassDef)):
            names.add(node.name)
        if isinstance(node, SCOPES):
            continue  # what is bound in there is its own
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            names.add(node.id)
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            names.add(node.attr)
        elif isinstance(node, (ast.Import, ast.ImportFrom)):
            names |= {(alias.asname or alias.name).split(".")[0] for alias in node.names}
        elif isinstance(node, (ast.MatchAs, ast.MatchStar)) and node.name:
            names.add(node.name)
        elif isinstance(node, ast.Call) and getattr(node.func, "id", "") == "setattr" and len(node.args) > 1:
            if isinstance(node.args[1], ast.Constant):
                names.add(str(node.args[1].value))
        queue.extend(ast.iter_child_nodes(node))
    return frozenset(names)


@_remembered
def defines(source: str) -> frozenset[str]:
    """The names of a cell's top-level functions, classes and constants; imports and loops left out."""
    tree = parsed(source)
    names = set()
    for node in tree.body if tree else ():
        if isinstance(node, (*FUNCTIONS, ast.ClassDef)):
            names.add(node.name)
        elif isinstance(node, (ast.Assign, ast.AnnAssign)):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            for target in targets:
                names |= {n.id for n in ast.walk(target) if isinstance(n, ast.Name)}
    return frozenset(names)


@_remembered
def names_used(source: str) -> frozenset[str]:
    """The names that a cell takes from other cells (or from Python), anywhere in it."""
    try:
        with PARSER, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            tables = [symtable.symtable(as_python(source), "cell", "exec")]
    except NOT_PYTHON:
        return frozenset()
    used = set()
    while tables:
        table = tables.pop()
        tables += table.get_children()
        used |= {symbol.get_name() for symbol in table.get_symbols() if symbol.is_global()}
    return frozenset(used - names_assigned(source))


@_remembered
def names_used_at_once(source: str) -> frozenset[str]:
    """The names of other cells that a cell needs while it runs: not those in the bodies of its functions."""
    tree, used = parsed(source), set()
    queue: list[ast.AST] = [tree] if tree else []
    while queue:
        node = queue.pop()
        if isinstance(node, (*FUNCTIONS, ast.Lambda)):
            arguments = node.args
            queue += [*arguments.defaults, *filter(None, arguments.kw_defaults)]
            if not isinstance(node, ast.Lambda):
                queue += [*node.decorator_list, *filter(None, [node.returns])]
                every = [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs]
                every += filter(None, [arguments.vararg, arguments.kwarg])
                queue += [arg.annotation for arg in every if arg.annotation]
            continue
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load):
            used.add(node.id)
        queue.extend(ast.iter_child_nodes(node))
    return frozenset(used - names_bound(source))


@_remembered
def objects_changed(source: str) -> frozenset[str]:
    """The names of other cells whose objects a cell changes: `Tensor.relu = relu`, `setattr(Tensor, …)`, a
    decorator that registers what it decorates.
    """
    tree, roots = parsed(source), set()
    for node in ast.walk(tree) if tree else ():
        if isinstance(node, (ast.Attribute, ast.Subscript)) and not isinstance(node.ctx, ast.Load):
            while isinstance(node, (ast.Attribute, ast.Subscript)):
                node = node.value
            roots.add(getattr(node, "id", ""))
        elif isinstance(node, ast.Call) and getattr(node.func, "id", "") in ("setattr", "delattr"):
            roots.add(_root(node.args[0]) if node.args else "")
        elif isinstance(node, (*FUNCTIONS, ast.ClassDef)):
            roots |= {_root(decorator) for decorator in node.decorator_list}
    return frozenset(roots - names_bound(source) - {""})


# ------------------------------------------------------------------------------------------------- statements


def statements(source: str) -> list[tuple[ast.stmt, str]]:
    """The top-level statements of a cell, each with its text; [] if it is not Python."""
    source = as_python(source)
    try:
        tree = parse(source)
    except NOT_PYTHON:
        return []
    lines = source.split("\n")
    found = []
    for node in tree.body:
        first = min([node.lineno, *(d.lineno for d in getattr(node, "decorator_list", ()))])
        text = "\n".join(lines[first - 1 : node.end_lineno])
        if _shares_its_lines(node, tree.body):
            text = ast.unparse(node)
        found.append((node, text))
    return found


def _shares_its_lines(node: ast.stmt, body: list[ast.stmt]) -> bool:
    """Whether another statement stands in a line of this one (`a = 1; b = 2`)."""
    near = (other for other in body if other is not node)
    return any(other.lineno <= node.end_lineno and node.lineno <= other.end_lineno for other in near)


def only_shows(node: ast.stmt) -> bool:
    """Whether a statement computes or prints something to be looked at, and leaves nothing behind."""
    if not isinstance(node, ast.Expr):
        return isinstance(node, ast.Pass)
    value = node.value
    if isinstance(value, ast.Call) and isinstance(value.func, ast.Name) and value.func.id in SHOWING:
        return True
    return not any(isinstance(n, (ast.Call, ast.Await, ast.NamedExpr, ast.Yield)) for n in ast.walk(value))


def is_future(node: ast.stmt) -> TypeGuard[ast.ImportFrom]:
    return isinstance(node, ast.ImportFrom) and node.module == "__future__"
