"""`tito collect`: what was downloaded from a learning platform -> the course's submitted/ folder."""

import hashlib
import json
import os
import re
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path, PurePosixPath

import click

from tinytorch.tito.console import count, say
from tinytorch.tito.instructor.downloads import NO_NOTEBOOK, Download, notebooks_in
from tinytorch.tito.instructor.grading.handed_in import TIMESTAMP, timestamp
from tinytorch.tito.instructor.roster import ByName, Roster, Unknown, read_roster
from tinytorch.tito.project import (
    Module,
    Project,
    TitoError,
    need_package,
    need_project,
    write_bytes,
    write_text,
)

# How a platform names what belongs to one student. Moodle: full name and participant's number. Canvas: the
# name without its spaces, the user's number, the file's.
MOODLE = re.compile(r"(?P<name>.+)_(?P<number>\d+)_assignsubmission_[a-z]+_")
CANVAS = re.compile(r"(?P<name>[^_]+)_(?:LATE_)?(?P<number>\d+)_\d+_")
AGAIN = r"([ _-]*\(?\d+\)?)?"  # what browsers and platforms put behind a name that was there already
MENTIONED = 5  # so many students without a submission are named


@dataclass
class Collected:
    """What became of all that was downloaded."""

    new: list[str] = field(default_factory=list)  # students
    newer: list[str] = field(default_factory=list)  # than what they had handed in before
    same: list[str] = field(default_factory=list)
    told: list[str] = field(default_factory=list)  # what was chosen, and why
    unclear: list[str] = field(default_factory=list)  # what was not understood


@click.command("collect")
@click.argument("number", metavar="NN")
@click.argument(
    "sources", metavar="PATH...", nargs=-1, required=True, type=click.Path(exists=True, path_type=Path)
)
@click.option(
    "--course", required=True, type=click.Path(file_okay=False, path_type=Path), help="nbgrader's folder."
)
@click.option(
    "--roster",
    type=click.Path(dir_okay=False, path_type=Path),
    help="A CSV file with a column `student`, the IDs; its other columns are names.",
)
def command(number: str, sources: tuple[Path, ...], course: Path, roster: Path | None) -> None:
    """Put what was downloaded into course/submitted/ID/NN_name/.

    PATH is a folder, a zip or a notebook: Moodle's or Canvas's download of all submissions, or a folder or
    file for each student. Times are kept, and so is a notebook that a newer one replaces. What is not
    understood is listed, and the exit status is then 1.
    """
    need_package("nbgrader", "Reading the times of submissions", "dev,instructor")
    project = need_project()
    known = read_roster(roster) if roster else ByName()
    course = course.resolve()
    found = [download for source in sources for download in notebooks_in(source.resolve())]
    collected = bring_in(project, project.module(number), course, found, known)
    for line in collected.told:
        say(line)
    for line in collected.unclear:
        say(f"not understood  {line}")
    label = project.module(number).label
    here = course / "submitted"
    missing = [student for student in known.students if not (here / student / label).is_dir()]
    if missing:
        names = ", ".join(missing[:MENTIONED]) + (", ..." if len(missing) > MENTIONED else "")
        say(f"Nothing from {count(len(missing), 'student')} of the roster: {names}.")
    say(
        f"{label}: {len(collected.new)} collected, {len(collected.newer)} newer than before, "
        f"{len(collected.same)} as before, {len(collected.unclear)} not understood."
    )
    if collected.unclear:
        raise TitoError(f"{count(len(collected.unclear), 'file')} of {len(found)} not understood; see above.")


def bring_in(
    project: Project, module: Module, course: Path, found: list[Download], roster: Roster | ByName
) -> Collected:
    """Puts each student's notebook into its place; one that is there and is another is kept aside first."""
    collected = Collected()
    theirs: dict[str, list[tuple[Download, str]]] = {}
    with_notebook = {(one.source, one.path.parts[0]) for one in found if not one.problem}
    for download in found:
        if _of_another_module(download.path, project, module):
            continue
        if download.problem == NO_NOTEBOOK and (download.source, download.path.parts[0]) in with_notebook:
            continue
        names, origin = _owner(download.path, module)
        try:
            if download.problem:
                raise Unknown(download.problem)
            if not names:
                raise Unknown("its name does not say whose it is")
            theirs.setdefault(roster.id_of(names), []).append((download, origin))
        except Unknown as error:
            collected.unclear.append(f"{download.where}: {error}")
    places = Places(course, module)
    for student, downloads in sorted(theirs.items()):
        chosen = _newest(student, downloads, module, collected)
        if chosen is not None:
            try:
                places.put(student, *chosen, collected)
            except OSError as error:
                collected.unclear.append(f"{chosen[0].where}: {error.strerror} ({error.filename})")
    places.close()
    return collected


def _of_another_module(path: PurePosixPath, project: Project, module: Module) -> bool:
    others = [other for other in project.modules() if other != module]
    return bool({other.label for other in others} & set(path.parts)) or path.stem in {m.name for m in others}


def _owner(path: PurePosixPath, module: Module) -> tuple[list[str], str]:
    """The names by which a path says whose it is, and how what goes back to that student must begin."""
    first = path.parts[0]
    match = MOODLE.match(first) or CANVAS.match(first)
    if match:
        return [match["number"], match["name"]], match[0] + ("/" if match.end() == len(first) else "")
    name = first
    if len(path.parts) == 1 or first.lower().endswith(".zip"):
        own = re.compile(rf"(^|[ _-]+)({module.number}[ _-]*)?{module.name}{AGAIN}$")
        name = own.sub("", PurePosixPath(first).stem)
    return ([name] if name else []), f"{name}/"


def _newest(
    student: str, downloads: list[tuple[Download, str]], module: Module, collected: Collected
) -> tuple[Download, str] | None:
    """Which of a student's notebooks counts: of those with the module's name the newest."""
    named = re.compile(rf"(.*_)?{module.name}{AGAIN}", re.IGNORECASE)
    chosen = [one for one in downloads if named.fullmatch(one[0].path.stem)] or downloads
    newest = max(_time(one[0]) for one in chosen)
    last = [one for one in chosen if _time(one[0]) == newest]
    if len({one[0].data for one in last}) > 1:
        names = ", ".join(str(one[0].path) for one in last[:MENTIONED])
        collected.unclear.append(
            f"{last[0][0].where}: {len(last)} notebooks of {student}, which one? ({names})"
        )
        return None
    if len({one[0].data for one in downloads}) > 1:
        collected.told.append(f"{student}: of {len(downloads)} notebooks, {last[0][0].where} counts")
    return last[0]


def _time(download: Download) -> datetime:
    return download.when or datetime.min.replace(tzinfo=UTC)


class Places:
    """submitted/ of one module, what was there before, and where each notebook came from."""

    def __init__(self, course: Path, module: Module):
        self.course, self.module = course, module
        self.folder = course / ".tito" / "collected" / module.label
        self.folder.mkdir(parents=True, exist_ok=True)
        self.origins = origins(course, module)

    def put(self, student: str, download: Download, origin: str, collected: Collected) -> None:
        """Puts a notebook there, unless the one that is there is newer. Of two, the other is kept aside."""
        place = self.course / "submitted" / student / self.module.label
        file = place / f"{self.module.name}.ipynb"
        for path in (place.parent, place, file):
            if path.is_symlink():
                raise OSError(0, "there is a symbolic link in its place", str(path))
        place.mkdir(parents=True, exist_ok=True)
        if not file.exists():
            collected.new.append(student)
        elif (before := file.read_bytes()) == download.data:
            self.origins[student] = origin
            collected.same.append(student)
            return
        else:
            recorded = timestamp(place / TIMESTAMP, [])
            seconds = recorded.replace(tzinfo=UTC).timestamp() if recorded else file.stat().st_mtime
            there = datetime.fromtimestamp(seconds, UTC)
            if download.when is not None and download.when < there:
                self._keep(student, download.data, download.when)
                times = f"{download.when:%Y-%m-%d %H:%M} and {there:%Y-%m-%d %H:%M} UTC"
                collected.told.append(f"{student}: {download.where} is older than what is there ({times})")
                collected.same.append(student)
                return
            self._keep(student, before, there)
            collected.newer.append(student)
        self.origins[student] = origin
        write_bytes(file, download.data)
        (place / TIMESTAMP).unlink(missing_ok=True)
        if download.when is not None:
            os.utime(file, (download.when.timestamp(),) * 2)
            write_text(place / TIMESTAMP, f"{download.when:%Y-%m-%d %H:%M:%S.%f} UTC\n")

    def _keep(self, student: str, data: bytes, when: datetime) -> None:
        copy = self.folder / student / f"{when:%Y-%m-%dT%H%M%S}-{hashlib.sha256(data).hexdigest()[:8]}.ipynb"
        copy.parent.mkdir(exist_ok=True)
        write_bytes(copy, data)

    def close(self) -> None:
        write_text(self.folder / "origins.json", json.dumps(self.origins, indent=1, ensure_ascii=False))


def origins(course: Path, module: Module) -> dict[str, str]:
    """{student: how the platform names what belongs to that student}, of those who were collected."""
    file = course / ".tito" / "collected" / module.label / "origins.json"
    return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
