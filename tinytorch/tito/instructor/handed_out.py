"""The notebooks that a course has handed out: the one of now, and each that it was before."""

# A student works on the notebook that was handed out on the day. When a check is mended, its points are
# changed or a part is left out afterwards, that student has edited nothing. What counts is the present
# release; what is called an edit is measured against the release that the student had.

import hashlib
import json
from pathlib import Path

from tinytorch.tito.notebook import files
from tinytorch.tito.notebook.cells import cells_of
from tinytorch.tito.notebook.settle import tidy
from tinytorch.tito.project import Module, Project, write_text


class Releases:
    """Those of one module: .tito/releases/NN_name/ in the course and in the project, one file for each.

    The course keeps what it released, the project the notebooks of the bundles that were made in it. One that
    was handed out elsewhere can be put there by hand, under any name.
    """

    def __init__(self, course: Path, module: Module, project: Project):
        self.file = course / "release" / module.label / module.notebook.name
        self.folder = _folder(course / ".tito", module)
        self.bundles = _folder(project.state_dir, module)

    def made_from(self, source: str) -> bool:
        """Whether the release that lies there was made from this text of the source."""
        stamp = self.folder / "source.sha256"
        return self.file.is_file() and stamp.is_file() and stamp.read_text() == _hash(source)

    def stamp(self, source: str) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        write_text(self.folder / "source.sha256", _hash(source))

    def remember(self) -> None:
        """Keeps the release that lies there now."""
        try:
            notebook = files.read(self.file)
        except files.Unreadable:  # there is none, or one that could not be handed out
            return
        _keep(notebook, self.folder)

    def all(self) -> list[dict]:
        """Every notebook that was ever handed out."""
        paths = [*self.folder.glob("*.ipynb"), *self.bundles.glob("*.ipynb")]
        return [files.read(path) for path in sorted(paths)]


def remember_bundle(project: Project, module: Module, notebook: dict) -> None:
    """Keeps the notebook of a bundle, so that every course of this project knows that it was handed out."""
    _keep(notebook, _folder(project.state_dir, module))


def _folder(state: Path, module: Module) -> Path:
    return state / "releases" / module.label


def _keep(notebook: dict, folder: Path) -> None:
    copy = folder / f"{_hash(json.dumps(sorted(_marks(notebook))))[:16]}.ipynb"
    if not copy.exists():
        files.put(copy, files.text_of(notebook))


def nearest(notebook: dict, releases: list[dict]) -> dict:
    """The release that a student's notebook was begun with; the first of those that are equally like it."""
    own = _marks(notebook)
    return min(releases, key=lambda release: len(own ^ _marks(release)))


def _marks(notebook: dict) -> set[tuple[str, str, str]]:
    """What a student does not change of the cells: their names, their points, and the text of the checks."""
    return {
        (cell.grade_id, f"{cell.points:g}", tidy(cell.source) if cell.locked else "")
        for cell in cells_of(notebook)
        if cell.grade_id
    }


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
