"""From a learning platform's download to submitted/, and the feedback back again."""

import io
import json
import os
import zipfile
from datetime import UTC, datetime
from pathlib import Path

import pytest

from test_habits import MODULE
from tinytorch.tito.instructor.roster import Unknown, read_roster
from tinytorch.tito.project import TitoError

pytestmark = pytest.mark.grading

NOTEBOOK = {"cells": [], "metadata": {}, "nbformat": 4, "nbformat_minor": 5}
ROSTER = (
    'student,name,number,mail\nada,Ada King Lovelace,11,ada@x.org\nmüller,"Müller, Ben",Participant 12,\n'
)


def notebook(words: str) -> bytes:
    return json.dumps(NOTEBOOK | {"metadata": {"words": words}}).encode()


def zipped(**files) -> bytes:
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w") as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return made.getvalue()


class Downloads:
    """A folder with what was downloaded, a roster, and the course that it goes to."""

    def __init__(self, toy, folder: Path):
        self.toy, self.folder, self.course = toy, folder, folder / "course"
        folder.mkdir()
        (folder / "roster.csv").write_text(ROSTER, encoding="utf-8")

    def zip(self, name: str, files: dict[str, bytes], day: int = 20) -> Path:
        with zipfile.ZipFile(self.folder / name, "w") as archive:
            for path, data in files.items():
                archive.writestr(zipfile.ZipInfo(path, (2026, 11, day, 10, 30, 0)), data)
        return self.folder / name

    def put(self, files: dict[str, bytes], day: int = 20) -> Path:
        for name, data in files.items():
            file = self.folder / "all" / name
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(data)
            os.utime(file, (datetime(2026, 11, day, 10, 30, tzinfo=UTC).timestamp(),) * 2)
        return self.folder / "all"

    def collect(self, *sources: Path, roster: bool = True, ok: bool = True) -> str:
        options = ["--roster", str(self.folder / "roster.csv")] if roster else []
        words = ["collect", "01", *map(str, sources), "--course", str(self.course), *options]
        done = self.toy.tito(*words)
        assert (done.exit_code == 0) == ok, done.output
        assert "Traceback" not in done.output
        return done.output

    def place(self, student: str) -> Path:
        return self.course / "submitted" / student / MODULE

    def there(self, student: str) -> str:
        return json.loads((self.place(student) / "tensor.ipynb").read_text(encoding="utf-8"))["metadata"][
            "words"
        ]

    def handed_in(self, student: str) -> str:
        return (self.place(student) / "timestamp.txt").read_text(encoding="utf-8")[:10]


@pytest.fixture
def downloads(toy, tmp_path):
    return Downloads(toy, tmp_path / "downloads")


MOODLE = "Ada King Lovelace_11_assignsubmission_file_"
LAYOUTS = {
    "moodle": {f"{MOODLE}/tensor.ipynb": b"", "Ben Müller_12_assignsubmission_file_/tensor.ipynb": b""},
    "moodle, flat": {f"{MOODLE}tensor.ipynb": b"", "Ben Müller_12_assignsubmission_file_tensor-2.ipynb": b""},
    "canvas": {"lovelaceadaking_11_901_tensor.ipynb": b"", "mullerben_LATE_12_902_tensor-1.ipynb": b""},
    "folders": {"ada/tensor.ipynb": b"", "Müller, Ben/01_tensor/tensor.ipynb": b""},
    "one folder around": {"all of them/ada/tensor.ipynb": b"", "all of them/müller/tensor.ipynb": b""},
    "files": {"ada.ipynb": b"", "müller_01_tensor (2).ipynb": b""},
    "what lies about": {
        **{
            "ada/tensor.ipynb": b"",
            "müller/tensor.ipynb": b"",
            "ada/notes.txt": b"",
            "__MACOSX/x.ipynb": b"",
        },
        **{"ada/.ipynb_checkpoints/tensor.ipynb": b"", "ada/02_layers/layers.ipynb": b""},
    },
}


@pytest.mark.parametrize("form", ["zip", "folder"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout(downloads, layout, form):
    files = {name: notebook(name) for name in LAYOUTS[layout]}
    source = downloads.zip("all.zip", files) if form == "zip" else downloads.put(files)
    assert "2 collected, 0 newer than before, 0 as before, 0 not understood" in downloads.collect(source)
    names = [name for name in LAYOUTS[layout] if "tensor" in name or name == "ada.ipynb"]
    assert [downloads.there("ada"), downloads.there("müller")] == names[:2]
    assert downloads.handed_in("müller") == "2026-11-20"
    assert sorted(path.name for path in (downloads.course / "submitted").iterdir()) == [
        "ada",
        "müller",
    ]


def test_zips_of_students_are_looked_into_and_bear_the_time_of_the_zip(downloads):
    bundle = {"01_tensor/tensor.ipynb": notebook("ada's"), "01_tensor/.tito/pristine/01.ipynb": notebook("")}
    source = downloads.zip("all.zip", {f"{MOODLE}/work.zip": zipped(**bundle)})
    downloads.collect(source)
    assert downloads.there("ada") == "ada's" and downloads.handed_in("ada") == "2026-11-20"
    downloads.collect(downloads.put({"müller.zip": zipped(**{"tensor.ipynb": notebook("his")})}))
    assert downloads.there("müller") == "his" and downloads.handed_in("müller") == "2026-11-20"


def test_nothing_is_lost_when_it_is_collected_again(downloads):
    first = downloads.zip("1.zip", {"ada/tensor.ipynb": notebook("first")}, day=10)
    second = downloads.zip("2.zip", {"ada/tensor.ipynb": notebook("second")}, day=12)
    downloads.collect(first)
    assert "1 as before" in downloads.collect(first) and downloads.handed_in("ada") == "2026-11-10"
    assert "1 newer than before" in downloads.collect(second)
    assert downloads.there("ada") == "second" and downloads.handed_in("ada") == "2026-11-12"
    said = downloads.collect(first)
    assert "1.zip: ada/tensor.ipynb is older than what is there (2026-11-10" in said and "1 as before" in said
    assert downloads.there("ada") == "second"
    kept = downloads.course / ".tito" / "collected" / MODULE / "ada"
    assert [json.loads(file.read_text(encoding="utf-8"))["metadata"]["words"] for file in kept.iterdir()] == [
        "first"
    ]
    both = downloads.collect(second, first)
    assert "ada: of 2 notebooks, 2.zip: ada/tensor.ipynb counts" in both and "1 as before" in both


@pytest.mark.parametrize(
    ("files", "roster", "why"),
    [
        ({"eve/tensor.ipynb": notebook("")}, True, "nobody in the roster is called `eve`"),
        ({"Ada Lovelace/tensor.ipynb": notebook("")}, False, "`Ada Lovelace` cannot be a student's ID"),
        ({"tensor.ipynb": notebook("")}, False, "its name does not say whose it is"),
        ({"ada/essay.pdf": b"%PDF"}, True, "ada/essay.pdf: it is no notebook"),
        ({"ada/work.zip": b"PK no"}, True, "ada/work.zip: it is no zip file that can be read"),
        ({"ada/a.zip": zipped(b=zipped())}, True, "ada/a.zip/b: it is no notebook"),
        ({"ada/a.zip": zipped(**{"b.zip": zipped()})}, True, "a zip in a zip in a zip"),
        ({"ada/tensor.ipynb": b" " * 20_000_001}, True, "it has 20 MB, the limit is 20 MB"),
        (
            {"ada/a.ipynb": notebook("1"), "ada/b.ipynb": notebook("2")},
            True,
            "2 notebooks of ada, which one?",
        ),
        (
            {"mullerben_11_5_tensor.ipynb": notebook("")},
            True,
            "in the roster, `11` is ada, but `mullerben` is müller",
        ),
    ],
)
def test_what_is_not_understood_is_listed(downloads, files, roster, why):
    said = downloads.collect(downloads.zip("all.zip", files), roster=roster, ok=False)
    assert f"not understood  all.zip: {next(iter(files))}" in said
    assert why in said and "0 collected" in said and "of them" not in said
    assert not list((downloads.course).glob("submitted/*/*/*"))


def test_a_broken_download_and_an_encrypted_file_are_named(downloads):
    broken = downloads.folder / "broken.zip"
    broken.write_bytes(b"PK cut off")
    said = downloads.collect(broken, ok=False)
    assert "not understood  broken.zip: it is no zip file that can be read" in said
    data = bytearray(zipped(**{"ada.ipynb": notebook("")}))
    for place in (data.index(b"PK\x03\x04") + 6, data.index(b"PK\x01\x02") + 8):
        data[place] |= 1  # the flag of an encrypted file
    broken.write_bytes(data)
    assert "broken.zip: ada.ipynb: it cannot be read from the zip (" in downloads.collect(broken, ok=False)
    said = downloads.collect(downloads.folder / "roster.csv", ok=False)
    assert "roster.csv is no folder, no .zip and no .ipynb." in said


def test_a_students_zip_that_would_fill_the_memory_is_not_unpacked(downloads, monkeypatch):
    monkeypatch.setattr("tinytorch.tito.instructor.downloads.ZIP_LIMIT", 3_000_000)
    inner = io.BytesIO()
    with zipfile.ZipFile(inner, "w", zipfile.ZIP_DEFLATED) as archive:
        for number in range(4):
            archive.writestr(f"{number}.ipynb", b" " * 1_000_000)
    said = downloads.collect(downloads.zip("all.zip", {"ada/a.zip": inner.getvalue()}), ok=False)
    assert "ada/a.zip/3.ipynb: with what stands before it in its zip, it has 4 MB, the limit is 3 MB" in said


def test_links_are_not_followed(downloads):
    outside = downloads.folder / "outside"
    outside.mkdir()
    (downloads.course / "submitted").mkdir(parents=True)
    (downloads.course / "submitted" / "ada").symlink_to(outside)
    said = downloads.collect(downloads.zip("1.zip", {"ada/tensor.ipynb": notebook("")}), ok=False)
    assert "a symbolic link in its place" in said and not list(outside.iterdir())


def test_feedback_goes_back_under_the_names_it_came_by(downloads):
    files = {f"{MOODLE}/tensor.ipynb": notebook(""), "mullerben_LATE_12_902_tensor-1.ipynb": notebook("")}
    downloads.collect(downloads.zip("all.zip", files))
    pages = downloads.course / "feedback"
    words = ["return", "01", "--course", str(downloads.course), "--output", str(downloads.folder / "out")]
    done = downloads.toy.tito(*words)
    assert done.exit_code == 1 and "There is no feedback of module 01" in done.output
    for student in ("ada", "müller", "eve"):
        (pages / student).mkdir(parents=True)
        (pages / student / f"{MODULE}.html").write_text(student, encoding="utf-8")
    for _ in range(2):
        done = downloads.toy.tito(*words)
        assert done.exit_code == 0 and "01_tensor-feedback.zip: 3 pages." in done.output
    with zipfile.ZipFile(downloads.folder / "out" / "01_tensor-feedback.zip") as archive:
        assert {name: archive.read(name).decode() for name in archive.namelist()} == {
            f"{MOODLE}/01_tensor.html": "ada",
            "mullerben_LATE_12_902_01_tensor.html": "müller",
            "eve/01_tensor.html": "eve",
        }


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("name\nAda\n", "has no column student"),
        ("student\nada\nada\n", "Row 3 of .*: the student ada stands there twice"),
        ("student\nada b\n", "Row 2 of .*: `ada b` cannot be a student's ID: it holds a space"),
    ],
)
def test_a_roster_that_cannot_be(text, why, tmp_path):
    (tmp_path / "roster.csv").write_text(text, encoding="utf-8")
    with pytest.raises(TitoError, match=why):
        read_roster(tmp_path / "roster.csv")


def test_two_of_one_name_are_told_apart_by_their_number(tmp_path):
    file = tmp_path / "roster.csv"
    file.write_text("student;name;id\na1;Kim Lee;5\na2;Lee, Kim;6\n", encoding="utf-8-sig")
    roster = read_roster(file)
    assert roster.id_of(["6", "leekim"]) == "a2" and roster.id_of(["Kim Lee", "5"]) == "a1"
    with pytest.raises(Unknown, match="in the roster, `Kim Lee` is a1 and a2"):
        roster.id_of(["Kim Lee"])
