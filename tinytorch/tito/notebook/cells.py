"""The cells of a notebook: what each one is for, told in one place."""

from dataclasses import dataclass, field

# what a cell is for
SOLUTION, CHECK, WRITTEN = "solution", "check", "written"  # to be solved; marked by the machine; by a person
GIVEN, LOOK, TEXT = "given", "look", "text"  # code that the rest builds on; code that shows something; prose
OWN = "own"  # what a student added


@dataclass
class Cell:
    """One cell of a notebook, as far as running and grading it goes."""

    index: int  # place among all cells
    number: int  # place among the code cells, from 1: what [n] shows after Run All
    source: str
    is_code: bool = True
    cell_type: str = "code"
    grade_id: str | None = None
    graded: bool = False
    solution: bool = False
    locked: bool = False
    points: float = 0
    role: str = ""
    runs: bool = True
    metadata: dict = field(default_factory=dict)
    attachments: dict = field(default_factory=dict)
    place: int | None = None  # place among the cells that were handed out

    @property
    def is_test(self) -> bool:
        """Graded by the machine: a part."""
        return self.is_code and self.graded and not self.solution

    @property
    def is_written(self) -> bool:
        """Graded by a person."""
        return self.graded and not self.is_test

    @property
    def label(self) -> str:
        """How a student finds it."""
        if self.grade_id:
            return f"`{self.grade_id}`"
        for line in self.source.splitlines():
            line = line.strip()
            if line and not line.startswith("#"):
                return f"code cell {self.number} ({line if len(line) <= 40 else line[:37] + '...'})"
        return f"code cell {self.number}"


def cells_of(notebook: dict) -> list[Cell]:
    cells, number = [], 0
    for index, cell in enumerate(notebook["cells"]):
        is_code = cell["cell_type"] == "code"
        number += is_code
        tags = cell["metadata"].get("nbgrader", {})
        cells.append(
            Cell(
                index=index,
                number=number,
                source=cell["source"],
                cell_type=cell["cell_type"],
                is_code=is_code,
                grade_id=tags.get("grade_id") or None,
                graded=bool(tags.get("grade")) or bool(tags.get("task")),
                solution=bool(tags.get("solution")) or bool(tags.get("task")),
                locked=bool(tags.get("locked")),
                points=tags.get("points", 0),
                metadata=cell["metadata"],
                attachments=cell.get("attachments") or {},
            )
        )
    return cells
