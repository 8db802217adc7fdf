"""The lines that tell a reader of a notebook what a cell is; what counts is as it is without them."""

import json

import pytest

from tinytorch.tito.author.notebooks import EXPORT, LOOK, labelled, to_read
from tinytorch.tito.notebook.cells import cells_of
from tinytorch.tito.notebook.files import read, text_of
from tinytorch.tito.project import Project
from toy import REPO

MODULES = Project(REPO).modules()


def graded_or_code(notebook):
    return [cell for cell in notebook["cells"] if cell["cell_type"] == "code" or cell["metadata"]]


def text_above(notebook, place):
    before = notebook["cells"][place - 1]
    return before["source"] if before["cell_type"] == "markdown" else ""


def test_each_kind_of_cell_has_its_line(toy):
    notebook = to_read(toy.project.module("1"))
    above = {cell.grade_id: text_above(notebook, cell.index) for cell in cells_of(notebook) if cell.grade_id}
    assert above["tensor"].endswith("Keep the data.\n\n##### **Task tensor**\n\n*Yours to write.*")
    assert (
        above["test-tensor"]
        == "##### **Check test-tensor**\n\n*95 points. It checks [tensor](#Task-tensor).*"
    )
    assert above["why"].endswith("not a list?\n\n##### **Question why**\n\n*5 points, marked by a person.*")
    looks = [cell for cell in cells_of(notebook) if cell.source == "Tensor([1, 2]).size"]
    assert [text_above(notebook, cell.index) for cell in looks] == [LOOK]


@pytest.mark.parametrize("module", MODULES, ids=lambda module: module.label)
def test_what_counts_is_the_same(module):
    plain = read(module.dev_file)
    notebook = to_read(module)
    assert graded_or_code(notebook) == graded_or_code(plain)
    prose = "\n".join(cell["source"] for cell in notebook["cells"] if cell["cell_type"] == "markdown")
    assert prose.count(EXPORT) == 1
    for cell in plain["cells"]:
        if cell["cell_type"] == "markdown":
            assert cell["source"].strip() in prose
    headings = [line for line in prose.splitlines() if line.startswith("##### ")]
    graded = [cell for cell in cells_of(plain) if cell.grade_id and not (cell.locked and not cell.graded)]
    names = [heading.removeprefix("##### **").removesuffix("**").split(" ", 1) for heading in headings]
    assert sorted(name for _, name in names) == sorted(cell.grade_id for cell in graded)
    assert {word for word, _ in names} <= {"Task", "Check", "Question"}, (
        "formgrader's ids are the names alone"
    )
    links = {line.partition("](#")[2].partition(")")[0] for line in prose.splitlines() if "It checks" in line}
    assert {f"##### **{link.replace('-', ' ', 1)}**" for link in links} <= set(headings)
    ids = [cell["id"] for cell in json.loads(text_of(notebook))["cells"]]
    assert len(set(ids)) == len(ids)


def test_a_run_of_looks_has_one_line():
    cell = {"cell_type": "code", "metadata": {}, "source": "1"}
    cells = labelled({"cells": [cell, cell, {**cell, "cell_type": "markdown", "source": "And"}, cell]})[
        "cells"
    ]
    assert [each["source"] for each in cells] == [LOOK, "1", "1", f"And\n\n{LOOK}", "1"]
