"""The judge of what counts: which code of a notebook, in which order, with what repaired and why.

A student's `test`, `status` and `complete` and both checks of the grader ask here.
"""

import ast
import builtins
import difflib
from dataclasses import dataclass, field, replace

from tinytorch.tito.notebook import files
from tinytorch.tito.notebook.cells import CHECK, GIVEN, LOOK, OWN, SOLUTION, TEXT, WRITTEN, Cell, cells_of
from tinytorch.tito.notebook.markers import (
    DIRECTIVE,
    EXPORTS,
    HIDDEN,
    all_directives,
    is_answered,
    replaced,
)
from tinytorch.tito.notebook.python import (
    defines,
    names_assigned,
    names_bound,
    names_used,
    names_used_at_once,
    parsed,
    statements,
)
from tinytorch.tito.project import TitoError

ALIKE = 0.6  # a cell whose label is lost is the one that was handed out if they share this much
BUILTINS = frozenset(name for name in dir(builtins) if not name.startswith("_"))


@dataclass
class Settled:
    """A notebook as it counts."""

    cells: list[Cell]  # in the order in which they count; index = place in this list
    given: dict  # what was handed out
    notes: list[str] = field(default_factory=list)  # what was repaired, for the student and the instructor
    advice: list[str] = field(default_factory=list)  # what a student should know, and no repair
    found: int = 0  # so many of the cells with a label were found in what was handed in
    elsewhere: set[str] = field(default_factory=set)  # questions whose answer seems to stand below its place

    def notebook(self) -> dict:
        """The cells as a notebook without outputs."""
        return files.of_cells(
            [
                {
                    "cell_type": cell.cell_type if cell.cell_type in ("code", "markdown") else "raw",
                    "source": cell.source,
                    "metadata": cell.metadata,
                    "attachments": cell.attachments,
                }
                for cell in self.cells
            ]
        )

    def with_checks_of(self, source: dict) -> "Settled":
        """The same with the checks as they stand in the instructor's notebook, hidden tests included."""
        full = {cell.grade_id: cell.source for cell in cells_of(source) if cell.is_test}
        cells = [replace(cell, source=full.get(cell.grade_id, cell.source)) for cell in self.cells]
        choose_looks(cells)  # a hidden test may use what a visible one does not
        return replace(self, cells=cells)

    def of_student(self) -> dict[int, str]:
        """{index: source} of the code that is not as it was handed out."""
        given = {tidy(cell["source"]) for cell in self.given["cells"]}
        return {c.index: c.source for c in self.cells if c.is_code and tidy(c.source) not in given}


def settle(notebook: dict, given: dict) -> Settled:
    """What counts of `notebook`, which was made from `given`, the notebook as handed out.

    Checks and given cells count as they were handed out, and what a student adds to a given cell counts as a
    cell behind it. A solution that lost its label is known by what it defines. What is missing is put back.
    """
    mine, theirs = cells_of(notebook), handed_out(given)
    settled = Settled([], given)
    pairs = _pair(mine, theirs, settled)
    settled.found = sum(bool(theirs[place].grade_id) for place in pairs.values())
    pieces: list[Cell] = []
    for cell in mine:
        pieces += _counting(cell, theirs[pairs[cell.index]] if cell.index in pairs else None, settled)
    _put_back(pieces, [cell for cell in theirs if cell.index not in pairs.values()], settled)
    settled.cells = _in_order(pieces, settled)
    for index, cell in enumerate(settled.cells):
        cell.index = index
    choose_looks(settled.cells)
    _advise(settled)
    return settled


def handed_out(given: dict) -> list[Cell]:
    """The cells of a notebook as handed out, each with its role and its place."""
    return [replace(cell, role=role_of(cell), place=cell.index) for cell in cells_of(given)]


def role_of(cell: Cell) -> str:
    """What a cell that was handed out is for."""
    if not cell.is_code:
        return WRITTEN if cell.graded else TEXT
    if cell.is_test:
        return CHECK
    if cell.is_written:
        return WRITTEN
    if cell.solution:
        return SOLUTION
    return GIVEN if cell.locked or all_directives(cell.source).keys() & {*EXPORTS, "default_exp"} else LOOK


def tidy(source: str) -> str:
    """A cell's text where neither white space at the ends of lines nor the form of a directive matters."""
    lines = (line.rstrip() for line in source.split("\n"))
    lines = [
        f"#| {m[1]} {m[2]}".rstrip() if (m := DIRECTIVE.match(line)) and m[1] else line for line in lines
    ]
    return "\n".join(lines).strip()


# ---------------------------------------------------------------------------------------- which cell is which


def _pair(mine: list[Cell], theirs: list[Cell], settled: Settled) -> dict[int, int]:
    """{cell handed in: the cell handed out that it is}."""
    pairs: dict[int, int] = {}
    labelled = {cell.grade_id: cell for cell in theirs if cell.grade_id}
    for cell in mine:
        original = labelled.get(cell.grade_id)
        if original is not None and original.index not in pairs.values():
            pairs[cell.index] = original.index

    def pair(alike) -> None:
        for original in theirs:
            if original.index in pairs.values() or original.role == TEXT:
                continue
            found = next((c for c in mine if c.index not in pairs and alike(c, original)), None)
            if found is not None:
                pairs[found.index] = original.index
                if original.grade_id:
                    _relabelled(found, original, settled)

    pair(lambda c, o: c.is_code == o.is_code and tidy(c.source) == tidy(o.source))
    pair(lambda c, o: c.is_code and o.is_code and bool(d := defines(o.source)) and d <= defines(c.source))
    pair(lambda c, o: c.is_code and o.is_code and o.role in (GIVEN, CHECK) and _alike(c.source, o.source))
    for cell in mine:
        if cell.grade_id and cell.index not in pairs:
            original = labelled.get(cell.grade_id)
            if original is None:
                settled.notes.append(
                    f"`{cell.grade_id[:60]}` is not a cell of this module; it does not count as one"
                )
            elif original.role == SOLUTION:
                settled.notes.append(
                    f"`{cell.grade_id}` stands in two cells; both count, but merge them into one"
                )
            else:
                settled.notes.append(f"`{cell.grade_id}` is there twice; the second one does not count")
    return pairs


def _relabelled(cell: Cell, original: Cell, settled: Settled) -> None:
    how = "has another label" if cell.grade_id else "has lost its label"
    settled.notes.append(
        f"`{original.grade_id}` {how} (was the cell deleted and typed again?); it was found by what it holds"
    )


def _alike(one: str, other: str) -> bool:
    return difflib.SequenceMatcher(None, tidy(one), tidy(other), autojunk=False).ratio() >= ALIKE


# ------------------------------------------------------------------------------------------------ what counts


def _counting(cell: Cell, original: Cell | None, settled: Settled) -> list[Cell]:
    """The cells that count instead of one that was handed in."""
    if original is None:
        return _of_their_own(cell)
    _say_what_was_changed(cell, original, settled)
    kept = replace(original, source=cell.source, number=cell.number, attachments=cell.attachments)
    if original.role == LOOK and tidy(cell.source) != tidy(original.source):
        return [replace(kept, role=OWN)]
    if original.role == CHECK:
        visible = tidy(_without_hidden(cell.source)) if cell.is_code else None
        if visible != tidy(_without_hidden(original.source)):
            settled.notes.append(f"`{original.grade_id}` was changed; the check is run as it was handed out")
        return [replace(kept, source=original.source)]
    if original.role == GIVEN:
        return [replace(kept, source=original.source), *_added(cell, original, settled)]
    return [kept]


def _without_hidden(source: str) -> str:
    try:
        return replaced(source, HIDDEN, ())
    except TitoError:  # half a region: it was changed
        return source


def _of_their_own(cell: Cell) -> list[Cell]:
    """A cell that a student added. What passes itself off as a check does not run."""
    if cell.is_test:
        return []
    plain = {key: value for key, value in cell.metadata.items() if key != "nbgrader"}
    own = replace(cell, grade_id=None, graded=False, solution=False, locked=False, points=0, metadata=plain)
    return [replace(own, role=OWN if cell.is_code else TEXT)]


def _say_what_was_changed(cell: Cell, original: Cell, settled: Settled) -> None:
    name = original.grade_id
    if not name:
        return
    if cell.grade_id and cell.points != original.points:
        settled.notes.append(f"the points of `{name}` were changed and are restored")
    if cell.grade_id and (cell.graded, cell.solution) != (original.graded, original.solution):
        settled.notes.append(f"the role of `{name}` was changed and is restored")
    if cell.is_code != original.is_code:
        settled.notes.append(f"`{name}` had become a {cell.cell_type} cell and is restored")


def _added(cell: Cell, original: Cell, settled: Settled) -> list[Cell]:
    """What a student added to a given cell, each statement as a cell of its own."""
    if tidy(cell.source) == tidy(original.source):
        return []
    name = original.label if cell.is_code else "a given cell"
    known = [ast.dump(node) for node, _ in statements(original.source)]
    mine = [(ast.dump(node), text) for node, text in statements(cell.source)]
    if parsed(cell.source) is None or not cell.is_code:
        settled.notes.append(f"{name} is not Python any more; it counts as it was handed out")
        return []
    lost = set(known) - {dump for dump, _ in mine}
    if lost or all_directives(cell.source) != all_directives(original.source):
        settled.notes.append(f"{name} was changed; it counts as it was handed out, and what was added to it")
    bound = names_bound(original.source)
    new = [text for dump, text in mine if dump not in known and not (names_bound(text) or {""}) <= bound]
    return [replace(cell, grade_id=None, source=text, metadata={}, role=OWN) for text in new]


def _put_back(pieces: list[Cell], missing: list[Cell], settled: Settled) -> None:
    """Puts each missing cell behind the one that it was handed out behind."""
    for original in missing:
        if original.role == TEXT:
            continue
        if original.role not in (LOOK, GIVEN):
            settled.notes.append(f"`{original.grade_id}` was missing and is put back as it was handed out")
        _insert(pieces, original)


def _insert(pieces: list[Cell], cell: Cell) -> None:
    before = [i for i, piece in enumerate(pieces) if piece.place is not None and piece.place < cell.place]
    nearest = max(before, key=lambda i: pieces[i].place, default=-1)
    pieces.insert(nearest + 1, cell)


# ------------------------------------------------------------------------------------------------------ order


def _in_order(pieces: list[Cell], settled: Settled) -> list[Cell]:
    """The student's order, with each check behind all that it was handed out behind.

    Where a cell would need at once what comes later, it is the order handed out.
    """
    placed = [piece for piece in pieces if piece.place is not None]
    if [piece.place for piece in placed] == sorted(piece.place for piece in placed):
        return pieces
    settled.notes.append("the module's cells stood in another order")
    code = [piece for piece in placed if piece.role in (GIVEN, SOLUTION)]
    moved = _moved(code)
    if any(piece.role == GIVEN for piece in moved) or _needs_what_comes_later(code):
        return _as_handed_out(pieces)
    ordered, waiting, left = [], [], {piece.place for piece in code}
    for piece in pieces:
        if piece.role == CHECK:
            waiting.append(piece)
        else:
            ordered.append(piece)
            left.discard(piece.place)
        ready = [check for check in waiting if not any(place < check.place for place in left)]
        ordered += sorted(ready, key=lambda check: check.place)
        waiting = [check for check in waiting if check not in ready]
    return ordered + waiting


def _as_handed_out(pieces: list[Cell]) -> list[Cell]:
    moved = _moved([piece for piece in pieces if piece.place is not None])
    kept = [piece for piece in pieces if piece not in moved]
    for piece in sorted(moved, key=lambda piece: piece.place):
        _insert(kept, piece)
    return kept


def _moved(placed: list[Cell]) -> list[Cell]:
    """The fewest cells without which the others stand in the order in which they were handed out."""
    longest: list[list[Cell]] = []  # the longest ordered run that ends with each cell
    for piece in placed:
        runs = [run for run in longest if run[-1].place < piece.place]
        longest.append([*max(runs, key=len, default=[]), piece])
    kept = max(longest, key=len, default=[])
    return [piece for piece in placed if piece not in kept]


def _needs_what_comes_later(code: list[Cell]) -> bool:
    for number, piece in enumerate(code):
        needed = names_used_at_once(piece.source)
        for later in code[number + 1 :]:
            if later.place < piece.place and needed & names_bound(later.source):
                return True
    return False


def choose_looks(cells: list[Cell], first: int = 0) -> None:
    """A cell that only shows something runs where a cell below it uses a name that it makes.

    So do the checks before the place `first`.
    """
    used: set[str] = set()
    for cell in reversed([cell for cell in cells if cell.is_code]):
        only_if_used = cell.role == LOOK or (cell.role == CHECK and cell.index < first)
        cell.runs = not only_if_used or not used.isdisjoint(names_bound(cell.source))
        if cell.runs:
            used |= names_used(cell.source)


def needed_cells(notebook: dict, unlike: dict | None = None) -> list[Cell]:
    """The cells of a course's own notebook that its parts need.

    Where only the parts are asked for that can end otherwise than in the notebook `unlike`, the checks before
    the first difference are left out too.
    """
    cells, first = handed_out(notebook), 0
    if unlike is not None:
        first = next(c.index for c in cells if c.source != unlike["cells"][c.index]["source"])
    choose_looks(cells, first)
    return [cell for cell in cells if cell.runs]


# ----------------------------------------------------------------------------------------------------- advice


def _advise(settled: Settled) -> None:
    made = set().union(*(names_assigned(cell["source"]) for cell in settled.given["cells"]))
    texts = {tidy(cell["source"]) for cell in settled.given["cells"]}
    for place, cell in enumerate(settled.cells):
        if cell.is_code and cell.role in (OWN, SOLUTION):
            for name in sorted((names_assigned(cell.source) & BUILTINS) - made):
                settled.advice.append(
                    f"{cell.label} gives `{name}`, a name of Python's own, another meaning for every cell "
                    "below; take another name, then restart the kernel"
                )
        if cell.role == WRITTEN and not is_answered(cell.source) and not cell.attachments:
            for other in settled.cells[place + 1 :]:
                if other.place is not None:
                    break
                if other.role == TEXT and tidy(other.source) not in texts and is_answered(other.source):
                    settled.elsewhere.add(cell.grade_id)
                    settled.notes.append(
                        f"`{cell.grade_id}` is as it was handed out, and there is text below it: "
                        "is that the answer? It belongs in the cell itself"
                    )
                    break
