"""What students hand in, looked at before anything of it runs."""

# Nothing here executes a student's code, and nothing writes to a student's folder.

from collections.abc import Iterable
from dataclasses import dataclass, field

from tinytorch.tito.instructor.grading.handed_in import Refused
from tinytorch.tito.instructor.grading.reach import reaching
from tinytorch.tito.instructor.handed_out import nearest
from tinytorch.tito.notebook import files
from tinytorch.tito.notebook.markers import is_exported
from tinytorch.tito.notebook.settle import Settled, settle

CELL_LIMIT = 2_000
CODE_LIMIT = 500_000  # characters of what a student wrote


@dataclass
class Submission:
    """One student's notebook, ready to be graded."""

    student: str
    visible: Settled  # what counts, with the checks that students see
    full: Settled  # the same with hidden tests
    flags: list[str] = field(default_factory=list)  # what had to be repaired
    reaching: dict[int, str] = field(default_factory=dict)  # cell -> what it reaches for
    reference: list[str] = field(default_factory=list)  # code that may reach for what it likes


def notebook_in(data: bytes) -> dict:
    """The notebook in what a student handed in; Refused says why there is none."""
    try:
        notebook = files.from_bytes(data, "the file")
    except files.Unreadable as error:
        raise Refused(error.message.removesuffix(".")) from None
    if len(notebook["cells"]) > CELL_LIMIT:
        raise Refused(f"the notebook has {len(notebook['cells'])} cells, the limit is {CELL_LIMIT}")
    return notebook


def check(
    student: str, notebook: dict, released: dict, source: dict, releases: Iterable[dict] = ()
) -> Submission:
    """What counts of a student's notebook; Refused says why nothing does.

    `released` is what students are given now, `source` the same with hidden tests (and solutions), `releases`
    what they were given earlier: what was repaired is told as of the release that this student had.
    """
    settled = settle(notebook, released)
    if not settled.found:
        raise Refused("none of its cells is a graded cell of this module: is it another notebook?")
    had = nearest(notebook, [released, *releases])
    flags = list((settled if had is released else settle(notebook, had)).notes)
    kernel = notebook.get("metadata", {})
    kernel = kernel.get("kernelspec", {}) if isinstance(kernel, dict) else {}
    language = kernel.get("language", "python") if isinstance(kernel, dict) else "python"
    if str(language).lower() not in ("python", "ipython"):
        flags.append("the notebook was set to another kernel than Python")
    written = settled.of_student()
    if sum(map(len, written.values())) > CODE_LIMIT:
        raise Refused(f"its code is longer than {CODE_LIMIT} characters")
    reference = [cell["source"] for cell in source["cells"] if is_exported(cell["source"])]
    return Submission(
        student, settled, settled.with_checks_of(source), flags, reaching(written, reference), reference
    )
