"""What of Python's machinery a student's code reaches for, told without running it."""

# The second check runs a student's code in the process that judges it, so code that could turn on its judge
# is left out of it. No solution needs any of this, except where the reference has it too. A clever disguise
# gets past these lists; `checks_script.py` then still sees what the code changed.

import ast
from typing import Any

from tinytorch.tito.notebook.python import parsed

# builtins that run or find other code
CALLS = {"eval", "exec", "compile", "__import__", "open", "breakpoint", "__builtins__", "__loader__"}

# ways from an object to the frames, functions and files around it
PATHS = {
    *("f_back", "f_globals", "f_locals", "f_builtins", "f_code", "tb_frame", "gi_frame", "cr_frame"),
    *("ag_frame", "_getframe", "_current_frames", "settrace", "setprofile", "__globals__", "__code__"),
    *("__closure__", "__builtins__", "__loader__", "__subclasses__", "__getattribute__", "meta_path"),
    *("tofile", "memmap", "masked_array", "masked_all"),
}

# special methods with which an object is equal to anything
DISGUISES = {
    *("__eq__", "__ne__", "__lt__", "__le__", "__gt__", "__ge__", "__bool__", "__class__", "__rsub__"),
    *(
        "__abs__",
        "__array__",
        "__array_ufunc__",
        "__array_function__",
        "__array_wrap__",
        "__array_finalize__",
    ),
    *("__array_interface__", "__array_struct__", "__array_priority__", "__instancecheck__", "__del__"),
    *("__subclasscheck__",),
}

HARMLESS = {
    *(
        "abc",
        "array",
        "bisect",
        "codecs",
        "collections",
        "contextlib",
        "copy",
        "dataclasses",
        "decimal",
        "enum",
    ),
    *("fractions", "functools", "heapq", "itertools", "json", "math", "numbers", "numpy", "operator"),
    *("pprint", "random", "re", "statistics", "string", "struct", "textwrap", "time", "tinytorch", "typing"),
    *("tracemalloc", "typing_extensions", "warnings", "weakref", "__future__"),
}
# what one draws with
DRAWING = {
    *("annotate", "axhline", "axis", "axvline", "bar", "barh", "cla", "clf", "close", "colorbar", "errorbar"),
    *("figure", "fill_between", "gca", "gcf", "grid", "hist", "imshow", "ioff", "ion", "legend", "loglog"),
    *("matshow", "pause", "plot", "rc", "rcParams", "scatter", "semilogx", "semilogy", "show", "step"),
    *("subplot", "subplots", "subplots_adjust", "suptitle", "text", "tight_layout", "title", "xlabel"),
    *("xlim", "xscale", "xticks", "ylabel", "ylim", "yscale", "yticks"),
}
# of other modules, and of these alone
PARTS = {
    "matplotlib.pyplot": DRAWING,
    "IPython.display": {"display", "clear_output"},
    "gc": {"collect"},
    "hashlib": {"blake2b", "blake2s", "md5", "sha1", "sha256", "sha512", "sha3_256"},
    "os": {"path", "sep", "cpu_count", "getcwd"},
    "sys": {"byteorder", "float_info", "getsizeof", "maxsize", "platform", "version", "version_info"},
    "types": {"MethodType", "SimpleNamespace"},
}
NOT_OF = {"numpy": {"testing", "ma", "ctypeslib"}}
# modules that others hold as attributes: `typing.sys`
INNER = {
    *(
        "_thread",
        "ast",
        "builtins",
        "ctypes",
        "dis",
        "gc",
        "importlib",
        "inspect",
        "io",
        "os",
        "pathlib",
        "pdb",
    ),
    *("posix", "shutil", "signal", "socket", "subprocess", "sys", "threading", "types"),
}


def reaching(cells: dict[int, str], reference: list[str]) -> dict[int, str]:
    """{cell: what it reaches for} of a notebook's cells, without those that reach for nothing.

    What the `reference` cells reach for is allowed. A cell that is no Python is left out.
    """
    trees = {index: tree for index, source in cells.items() if (tree := parsed(source)) is not None}
    known = [tree for source in reference if (tree := parsed(source)) is not None]
    origins = {"np": "numpy"}  # {name: where it was imported from}, anywhere in the notebook
    for tree in [*known, *trees.values()]:
        origins |= _imported(tree)
    allowed = {reach for tree in known for reach in _reaches(tree, origins)}
    found = {}
    for index, tree in trees.items():
        new = [reach for reach in _reaches(tree, origins) if reach not in allowed]
        if new:
            found[index] = new[0]
    return found


def _imported(tree: ast.Module) -> dict[str, str]:
    """{name: "module" or "module.part"} of everything that the code imports."""
    found = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                first = alias.name.partition(".")[0]
                found[alias.asname or first] = alias.name if alias.asname else first
        elif isinstance(node, ast.ImportFrom):
            for alias in node.names:
                found[alias.asname or alias.name] = f"{'.' * node.level}{node.module or ''}.{alias.name}"
    return found


def _reaches(tree: ast.Module, origins: dict[str, str]) -> list[str]:
    """Each thing that the code reaches for, in words."""
    found = []
    nodes = list(ast.walk(tree))
    parameters = {node.arg for node in nodes if isinstance(node, ast.arg)}
    origins = {name: origin for name, origin in origins.items() if name not in parameters}
    bases = {id(node.value) for node in nodes if isinstance(node, ast.Attribute)}
    for node in nodes:
        used, changed, taken = "", None, []
        if isinstance(node, ast.Name):
            used = node.id if node.id in CALLS or (_is_set(node) and node.id in DISGUISES) else ""
            if not _is_set(node) and node.id in origins and id(node) not in bases:
                taken = [origins[node.id]]
        elif isinstance(node, ast.Attribute):
            used = node.attr if node.attr in PATHS or (_is_set(node) and node.attr in DISGUISES) else ""
            if id(node) not in bases and _root(node) in origins:
                taken = [_dotted(node, origins)]
            changed = node if _is_set(node) else None
        elif isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            used = node.name if node.name in DISGUISES else ""
        elif isinstance(node, ast.keyword):
            used = node.arg if node.arg == "metaclass" else ""
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            used = node.value if node.value in PATHS | DISGUISES else ""
        elif isinstance(node, ast.Call):
            if _computes_a_name(node, origins):
                found.append(f"it computes the name of an attribute, `{ast.unparse(node)[:60]}`")
            if getattr(node.func, "id", "") in ("setattr", "delattr") and node.args:
                changed = node.args[0]
        elif isinstance(node, ast.Import):  # an import that is never used is no matter
            taken = [alias.name for alias in node.names if alias.name.partition(".")[0] in HARMLESS]
        elif isinstance(node, ast.ImportFrom):
            taken = [f"{'.' * node.level}{node.module or ''}.{alias.name}" for alias in node.names]
            taken = [name for name in taken if name.endswith(".*") or name.partition(".")[0] in HARMLESS]
        if used:
            found.append(f"it uses `{used}`, which no solution needs")
        found += [f"it takes `{name}`, which no solution needs" for name in taken if not _is_harmless(name)]
        if _root(changed) in origins:
            found.append(f"it changes `{ast.unparse(changed)}`, which belongs to others")
    return found


def _is_set(node: ast.Name | ast.Attribute) -> bool:
    return isinstance(node.ctx, (ast.Store, ast.Del))


def _is_harmless(name: str) -> bool:
    """Whether "module" or "module.part" is nothing that could turn on its judge."""
    for module, parts in PARTS.items():
        if name == module or name.startswith(f"{module}."):
            return name.removeprefix(f"{module}.").partition(".")[0] in parts
    module, *parts = name.split(".")
    return module in HARMLESS and INNER.isdisjoint(parts) and not NOT_OF.get(module, set()) & set(parts[:1])


def _dotted(node: ast.Attribute, origins: dict[str, str]) -> str:
    """What `a.b.c` is, by where `a` was imported from."""
    parts: list[str] = []
    inner: Any = node
    while isinstance(inner, ast.Attribute):
        parts.append(inner.attr)
        inner = inner.value
    return ".".join([origins[inner.id], *reversed(parts)])


def _root(node: ast.expr | None) -> str | None:
    while isinstance(node, ast.Attribute):
        node = node.value
    return node.id if isinstance(node, ast.Name) else None


def _computes_a_name(node: ast.Call, origins: dict[str, str]) -> bool:
    """Whether it gets an attribute whose name is put together, or one of a module by no plain name."""
    name = getattr(node.func, "id", getattr(node.func, "attr", ""))
    if name not in ("getattr", "attrgetter", "methodcaller") or not node.args:
        return False
    wanted = node.args[min(1, len(node.args) - 1)] if name == "getattr" else node.args[0]
    if isinstance(wanted, (ast.BinOp, ast.JoinedStr, ast.Call, ast.Subscript)):
        return True
    return name == "getattr" and _root(node.args[0]) in origins and not isinstance(wanted, ast.Constant)
