"""One reader and one writer of notebooks: .ipynb files, and dev files in percent format."""

# A notebook is a plain dictionary in nbformat 4, each cell's source one string with \n for line ends. It is
# read once, handed on as a value, and written once.

import hashlib
import json
import re
import shutil
import time
from pathlib import Path

from tinytorch.tito.project import Project, TitoError, need_package, write_text

# jupytext would turn a comment like `# cat = 3` into a shell command if it might uncomment magics
PERCENT = {"extension": ".py", "format_name": "percent", "comment_magics": False}
CELL_ID = re.compile(r"[A-Za-z0-9_-]{1,64}")
KERNELSPEC = {"display_name": "Python 3 (ipykernel)", "language": "python", "name": "python3"}


class Unreadable(TitoError):
    """The file is not a notebook that can be used; the text is one plain sentence."""


def read(path: Path | str) -> dict:
    """The notebook in a dev file (.py) or an .ipynb, with all that the file says; else Unreadable."""
    path = Path(path)
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise Unreadable(f"There is no notebook at {path}.") from None
    except OSError as error:
        raise Unreadable(f"{path} cannot be read: {error.strerror or error}.") from None
    return from_bytes(data, str(path))


def from_bytes(data: bytes, name: str) -> dict:
    """The notebook in the bytes of the file `name`."""
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise Unreadable(
            f"{name} is not a notebook: byte {error.start} is not UTF-8. Was it opened in another program?"
        ) from None
    if name.endswith(".py"):
        return _from_percent(text.replace("\r\n", "\n"))
    try:
        notebook = json.loads(text)
    except (ValueError, RecursionError) as error:
        where = f" at line {error.lineno}" if isinstance(error, json.JSONDecodeError) else ""
        raise Unreadable(
            f"{name} is not a notebook: its JSON is broken{where}. Was the file cut off while it was saved?"
        ) from None
    if problem := _problem_of(notebook):
        raise Unreadable(f"{name} is not a notebook that can be used here: {problem}.")
    for cell in notebook["cells"]:
        source = "".join(cell["source"]).replace("\r\n", "\n")
        cell["source"] = source.encode("utf-8", "replace").decode()  # half a pair of surrogates is no text
        cell.setdefault("metadata", {})
    return notebook


def _from_percent(text: str) -> dict:
    need_package("jupytext", "Reading a dev file")
    import jupytext

    cells = jupytext.reads(text, fmt=PERCENT).cells
    return of_cells(
        [{"cell_type": c.cell_type, "source": c.source, "metadata": dict(c.metadata)} for c in cells]
    )


def of_cells(cells: list[dict]) -> dict:
    """A notebook of these cells as nothing has run it yet, with no metadata but the grading's and stable ids.

    A cell's id is its grade_id if it has one, else its place.
    """
    made, used = [], set()
    for place, cell in enumerate(cells):
        tags = cell.get("metadata", {}).get("nbgrader")
        grade_id = str((tags or {}).get("grade_id", ""))
        name = grade_id if CELL_ID.fullmatch(grade_id) and grade_id not in used else f"cell-{place}"
        used.add(name)
        plain = {"cell_type": cell["cell_type"], "id": name, "metadata": {}, "source": cell["source"]}
        if tags is not None:
            plain["metadata"]["nbgrader"] = dict(tags)
        if plain["cell_type"] == "code":
            plain |= {"execution_count": None, "outputs": []}
        elif cell.get("attachments"):
            plain["attachments"] = cell["attachments"]
        made.append(plain)
    metadata = {"kernelspec": dict(KERNELSPEC), "language_info": {"name": "python"}}
    return {"cells": made, "metadata": metadata, "nbformat": 4, "nbformat_minor": 5}


def _problem_of(notebook) -> str | None:
    if not isinstance(notebook, dict):
        return "it holds no object with cells"
    if notebook.get("nbformat") != 4:
        return f"its format is {notebook.get('nbformat')!r}, needed is 4"
    cells = notebook.get("cells")
    if not isinstance(cells, list):
        return "it has no list of cells"
    for number, cell in enumerate(cells, 1):
        if not isinstance(cell, dict):
            return f"cell {number} is not an object"
        source = cell.get("source")
        lines = source if isinstance(source, list) else [source]
        if not all(isinstance(line, str) for line in lines):
            return f"cell {number} has no source text"
        if not isinstance(cell.get("cell_type"), str) or not isinstance(cell.get("metadata", {}), dict):
            return f"cell {number} has no type or no metadata"
        if not isinstance(cell.get("attachments", {}), dict):
            return f"cell {number} has unreadable attachments"
        tags = cell.get("metadata", {}).get("nbgrader", {})
        if not isinstance(tags, dict) or not isinstance(tags.get("grade_id", ""), str):
            return f"cell {number} has unreadable grading metadata"
        points = tags.get("points", 0)
        if isinstance(points, bool) or not isinstance(points, (int, float)):
            return f"cell {number} has unreadable points"
    return None


# -------------------------------------------------------------------------------------------------- writing


def text_of(notebook: dict, maker: str | None = None) -> str:
    """The .ipynb file of `notebook`, stamped with the command that made it and the hash of its cells."""
    metadata = {key: value for key, value in notebook["metadata"].items() if key != "tinytorch"}
    if maker is not None:
        metadata["tinytorch"] = {"made_by": maker, "sha256": fingerprint(notebook)}
    cells = [cell | {"source": cell["source"].splitlines(keepends=True)} for cell in notebook["cells"]]
    return json.dumps(notebook | {"cells": cells, "metadata": metadata}, indent=1, ensure_ascii=False) + "\n"


def fingerprint(notebook: dict) -> str:
    """Changes when a cell is edited, added, moved or removed; not when the notebook is only run."""
    cells = [
        (cell["cell_type"], cell["source"], *([cell["attachments"]] if cell.get("attachments") else []))
        for cell in notebook["cells"]
    ]
    return hashlib.sha256(json.dumps(cells, sort_keys=True).encode()).hexdigest()


def is_untouched(path: Path, maker: str) -> bool:
    """Whether this notebook is just as `maker` made it, so that nothing is lost by making it again."""
    try:
        notebook = read(path)
        stamp = notebook["metadata"]["tinytorch"]
        return stamp["made_by"] == maker and stamp["sha256"] == fingerprint(notebook)
    except (Unreadable, KeyError, TypeError):
        return False


def back_up(path: Path, project: Project, label: str | None = None) -> Path:
    """Copies a module's file to .tito/backups/NN_name -> the copy. Never overwrites an earlier one.

    `label` is the NN_name of a file that lies outside the module's folder.
    """
    folder = project.state_dir / "backups" / (label or path.parent.name)
    folder.mkdir(parents=True, exist_ok=True)
    stamp = time.strftime("%Y-%m-%d-%H%M%S")
    copy, again = folder / f"{stamp}-{path.name}", 1
    while copy.exists():
        copy, again = folder / f"{stamp}-{again}-{path.name}", again + 1
    shutil.copy2(path, copy)
    return copy


def put(path: Path, text: str) -> None:
    """Writes a file, and the folders above it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, text)
