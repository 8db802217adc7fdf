"""What honest students do to a notebook besides solving it: edits that must not cost a point."""

import ast
import copy
import random

from tinytorch.tito.notebook.cells import GIVEN, LOOK, SOLUTION, TEXT, WRITTEN
from tinytorch.tito.notebook.markers import TEXT_STUB
from tinytorch.tito.notebook.settle import handed_out

SCRATCH = [
    "print('here I am')",
    "1 + 1",
    "x_of_mine = [1, 2, 3]\nx_of_mine",
    "import matplotlib.pyplot as plt\nplt.plot([1, 2, 3])\nplt.show()",
    "assert 2 + 2 == 4",
    "def try_it(n):\n    return n + 1\n\n\nprint(try_it(2))",
    "%matplotlib inline",
    "!ls",
    "%%bash\nls",
    "%%html\n<b>bold</b>",
    "np.ones(3).tolist?",
    "from __future__ import annotations",
    "for i in range(3):\n    print(i)",
    "display('hello')",
    "get_ipython().run_line_magic('matplotlib', 'inline')",
    "raise ValueError('an experiment that failed')",
    "this is not python",
]
IMPORTS = [
    "%load_ext autoreload\n%autoreload 2",
    "%matplotlib inline",
    "from matplotlib import pyplot as plt",
    "from pathlib import Path",
    "import os, sys",
    "import a_package_that_is_not_installed",
    "np.set_printoptions(precision=3)",
    "# my imports",
]
ENDS = [
    "print('the cell is done')",
    "display('the cell is done')",
    "%timeit 1 + 1",
    "%time the_time_of_mine = 1",
    "# a note to myself",
    "assert 2 < 3",
    "{'a': 1}",
]
TOPS = ["%%time", "%%capture", "%%timeit -n 1 -r 1"]


def code_cell(source: str) -> dict:
    return {
        "cell_type": "code",
        "id": "mine",
        "source": source,
        "metadata": {},
        "outputs": [],
        "execution_count": None,
    }


def _cells(notebook, *roles):
    return [notebook["cells"][cell.index] for cell in handed_out(notebook) if cell.role in roles]


def _place(draw, notebook):
    return draw.randrange(3, len(notebook["cells"]) + 1)


def scratch(draw, notebook):
    notebook["cells"].insert(_place(draw, notebook), code_cell(draw.choice(SCRATCH)))


def prose(draw, notebook):
    cell = {"cell_type": draw.choice(["markdown", "raw"]), "id": "note", "metadata": {}, "source": "A note."}
    notebook["cells"].insert(_place(draw, notebook), cell)


def imports(draw, notebook):
    first = next(cell for cell in _cells(notebook, GIVEN) if "import " in cell["source"])
    lines, new = first["source"].split("\n"), draw.choice(IMPORTS)
    first["source"] = "\n".join([*lines, new] if draw.random() < 0.7 else [lines[0], new, *lines[1:]])


def end(draw, notebook):
    draw.choice(_cells(notebook, SOLUTION))["source"] += "\n\n" + draw.choice(ENDS)


def top(draw, notebook):
    cell = draw.choice(_cells(notebook, SOLUTION))
    if not cell["source"].startswith("%%"):
        cell["source"] = draw.choice(TOPS) + "\n" + cell["source"]


def looks(draw, notebook):
    cell = draw.choice(_cells(notebook, LOOK, SOLUTION))
    cell["source"] += "\nprint('again')"


def retype(draw, notebook):
    cell = draw.choice(_cells(notebook, SOLUTION))
    cell["metadata"] = {}
    cell["id"] = "typed-again"


def split(draw, notebook):
    """As JupyterLab splits a cell: both halves keep the metadata."""
    cell = draw.choice(_cells(notebook, SOLUTION))
    try:
        body = ast.parse(cell["source"]).body
    except SyntaxError:  # a magic stands in it
        return
    if len(body) < 2:
        return
    node = draw.choice(body[1:])
    first = min([node.lineno, *(d.lineno for d in getattr(node, "decorator_list", ()))]) - 1
    lines = cell["source"].split("\n")
    lower = copy.deepcopy(cell) | {"source": "\n".join(lines[first:]), "id": "split"}
    cell["source"] = "\n".join(lines[:first])
    notebook["cells"].insert(notebook["cells"].index(cell) + 1, lower)


def helper(draw, notebook):
    """A constant and a function of their own, which a solution uses."""
    value = draw.choice(["float('-inf')", "-0.0", "(1, 2)", "np.float32(0)", "lambda: 0"])
    name = f"mine_{draw.randrange(10**6)}"
    cell = draw.choice(_cells(notebook, SOLUTION))
    made = draw.choice(
        [f"{name} = {value}", f"{name}: object = {value}", f"{name}, other_{name} = {value}, 1"]
    )
    place = notebook["cells"].index(cell)
    notebook["cells"].insert(place, code_cell(f'"""Mine."""\n{made}\nprint({name})'))
    cell["source"] += f"\n\n\ndef use_{name}(x={name}):\n    return x"


def directive(draw, notebook):
    for cell in _cells(notebook, SOLUTION, GIVEN):
        cell["source"] = cell["source"].replace("#| export", "# | export")


def future(draw, notebook):
    cell = draw.choice(_cells(notebook, SOLUTION))
    cell["source"] = cell["source"].replace("#| export", "#| export\nfrom __future__ import annotations", 1)


def move(draw, notebook):
    cells = notebook["cells"]
    place = draw.randrange(2, len(cells))
    cell = cells.pop(place)
    cells.insert(max(2, min(len(cells), place + draw.randrange(-6, 7))), cell)


def answer(draw, notebook):
    written = _cells(notebook, WRITTEN)
    if written:
        cell = draw.choice(written)
        cell["source"] = cell["source"].replace(TEXT_STUB, "Because. ![s](attachment:s.png)")
        cell["attachments"] = {"s.png": {"image/png": "QUFBQQ=="}}


def delete(draw, notebook):
    """A cell that only shows something, or text."""
    cell = draw.choice(_cells(notebook, LOOK, TEXT)[1:])
    notebook["cells"].remove(cell)


def ran(draw, notebook):
    for cell in notebook["cells"]:
        if cell["cell_type"] == "code":
            cell["execution_count"] = draw.randrange(1, 99)
            cell["outputs"] = [{"output_type": "stream", "name": "stdout", "text": "90 of 90 points\n"}]


def windows(draw, notebook):
    for cell in notebook["cells"]:
        cell["source"] = cell["source"].replace("\n", "\r\n")


HABITS = [
    *(scratch, prose, imports, end, top, looks, retype, split, helper, directive, future, move, answer),
    *(delete, ran),
]


def with_habits(notebook: dict, seed: int, how_many: int = 4) -> tuple[dict, list[str]]:
    """The notebook after some random habits -> and their names."""
    draw, notebook = random.Random(seed), copy.deepcopy(notebook)
    chosen = draw.sample(HABITS, how_many)
    for habit in chosen:
        habit(draw, notebook)
    if draw.random() < 0.1:
        windows(draw, notebook)
    return notebook, [habit.__name__ for habit in chosen]
