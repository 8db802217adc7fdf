"""Who is who: the names that a learning platform gives to students, and the IDs of the course."""

import re
import unicodedata
from dataclasses import dataclass, field
from pathlib import Path

from tinytorch.tito.instructor.grading.handed_in import Refused, check_id, is_id
from tinytorch.tito.instructor.table import read_table
from tinytorch.tito.project import TitoError


class Unknown(Exception):
    """It cannot be told which student is meant; the text says why."""


@dataclass
class Roster:
    """A table with a column `student`; whatever else stands in a student's row is a name of theirs."""

    students: list[str] = field(default_factory=list)
    names: dict[str, set[str]] = field(default_factory=dict)

    def id_of(self, names: list[str]) -> str:
        """The one student who goes by all of these names that the roster knows; Unknown if there is none."""
        known = {name: self.names[_plain(name)] for name in names if _plain(name) in self.names}
        if not known:
            raise Unknown(f"nobody in the roster is called {' or '.join(f'`{name}`' for name in names)}")
        both = set.intersection(*known.values())
        if len(both) == 1:
            return next(iter(both))
        said = (f"`{name}` is {' and '.join(sorted(students))}" for name, students in known.items())
        raise Unknown(f"in the roster, {', but '.join(said)}")


class ByName:
    """Where there is no roster: a name that can be an ID is the ID."""

    students: list[str] = []

    def id_of(self, names: list[str]) -> str:
        name = unicodedata.normalize("NFC", names[-1])
        if not is_id(name):
            raise Unknown(f"`{name}` cannot be a student's ID; --roster FILE says which it is")
        return name


def read_roster(path: Path) -> Roster:
    """A CSV file -> who is called what; TitoError names the row that cannot be."""
    if not path.is_file():
        raise TitoError(f"There is no file {path}.")
    roster = Roster()
    for number, row in enumerate(read_table(path, ("student",))[1], 2):
        student = unicodedata.normalize("NFC", row["student"].strip())
        try:
            check_id(student)
        except Refused as refused:
            raise TitoError(f"Row {number} of {path}: {refused}.") from None
        if student in roster.students:
            raise TitoError(f"Row {number} of {path}: the student {student} stands there twice.")
        roster.students.append(student)
        for value in row.values():
            for name in _forms(value):
                roster.names.setdefault(name, set()).add(student)
    return roster


def _forms(value: str) -> set[str]:
    """A name in every order of its parts that is in use, and a number that stands in it.

    `Ada Lovelace`, `Lovelace, Ada` and `lovelaceada` are one; `Participant 123456` is `123456` too.
    """
    words = re.split(r"[\s,]+", value.strip())
    orders = ["".join(words[n:] + words[:n]) for n in range(min(len(words), 6))]
    numbers = [word for word in words if word.isdecimal()]
    return {plain for name in orders + numbers if (plain := _plain(name))}


def _plain(name: str) -> str:
    """Its letters and digits, small, without accents, which a platform's file names may have lost."""
    text = unicodedata.normalize("NFKD", name).casefold()
    return "".join(letter for letter in text if letter.isalnum())
