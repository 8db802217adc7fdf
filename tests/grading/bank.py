"""The bank of wrong and right answers, as submissions, and what each of them must earn."""

from textwrap import dedent

import right_answers as right_bank
import wrong_answers as wrong_bank
from course import Course, with_cell
from tinytorch.tito.notebook.files import read as read_notebook


def wrong_answers(course: Course) -> dict[str, tuple[dict, set[str]]]:
    """{student: (notebook, the parts that it must lose)}."""
    reference = read_notebook(course.module.dev_file)
    return {
        f"wrong-{number:03}": (
            course.written(wrong_bank.apply_to(reference, wrong)),
            {wrong.part, *wrong.also},
        )
        for number, wrong in enumerate(wrong_bank.load(course.module.label))
    }


def right_answers(course: Course) -> dict[str, dict]:
    """{student: notebook} of answers that are right: the reference, and those that differ from it."""
    reference = read_notebook(course.module.dev_file)
    found = {"reference": course.solved()}
    for number, right in enumerate(right_bank.load(course.module.label)):
        notebook = course.written(right_bank.apply_to(reference, right))
        for grade_id, source in right.extra.items():
            notebook = with_cell(notebook, dedent(source).strip(), before=grade_id)
        found[f"right-{number:02}"] = notebook
    return found


def check(course: Course, rows: dict[str, dict], expected: dict[str, set[str]]) -> None:
    """Prints what was caught and what was punished by mistake, and fails if anything was amiss."""
    automatic = {
        cell["metadata"]["nbgrader"]["grade_id"]: cell["metadata"]["nbgrader"]["points"]
        for cell in course.source["cells"]
        if (tags := cell["metadata"].get("nbgrader", {})).get("grade") and not tags.get("solution")
    }
    amiss = []
    for student, lost in expected.items():
        earned = {name: float(rows[student][name]) for name in automatic}
        want = {name: 0.0 if name in lost else points for name, points in automatic.items()}
        if earned != want:
            wrong = {name: value for name, value in earned.items() if value != want[name]}
            amiss.append(f"{student} should lose {sorted(lost)}, has {wrong}: {rows[student]['flags']}")
    wrong = [student for student, lost in expected.items() if lost]
    caught = sum(all(float(rows[student][part]) == 0 for part in expected[student]) for student in wrong)
    right = [student for student, lost in expected.items() if not lost]
    whole = sum(float(rows[student]["score"]) == sum(automatic.values()) for student in right)
    print(
        f"\n{course.module.label}: wrong answers caught {caught} of {len(wrong)}, "
        f"right answers with every point {whole} of {len(right)}, amiss {len(amiss)}"
    )
    assert not amiss, "\n".join(amiss)
