"""The one record of what is done: a file per image and run, bound to everything that decided it."""

import dataclasses
import datetime
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from ddiff_jax import image_files
from ddiff_jax.files import Unusable, file_hash
from ddiff_jax.restoration.records import Records, fingerprint
from ddiff_jax.restoration.settings import Settings

FORMAT = 3  # of a record; part of its fingerprint

Standing = Literal["absent", "damaged", "other", "done"]


@dataclasses.dataclass(frozen=True)
class Record:
    """What one run on one image gave.

    Args:
        name: of the image.
        fingerprint: of settings, weights and input.
        status: "ok", "diverged" (NaN or infinity) or "no truth" (restored, but there is nothing to compare with).
        message: what went wrong, for people.
        input: the file that was read.
        input_sha256: its hash.
        metrics: name to value; None where one is not defined.
        sigma_y: noise level of the measurement, as given or estimated.
        files: kind of a result to its path below the folder of the results.
        sha256: the same kinds to hashes of what was written there.
        notes: conversions made while reading the image.
        made: the run that made it, see `Store.save_run`.
        network_evaluations: per image.
        network_gradients: passes backwards through the network, per image.
        seconds: time of the batch's steps divided by its images; compiling left out;
            None where it was not taken.
        trace: name of what the steps reported to every few values, and "step" to their numbers; may be empty.
    """

    name: str
    fingerprint: str
    status: str
    message: str
    input: str
    input_sha256: str
    metrics: dict[str, float | None]
    sigma_y: float
    files: dict[str, str]
    sha256: dict[str, str]
    notes: list[str]
    made: str
    network_evaluations: int
    network_gradients: int
    seconds: float | None = None
    trace: dict[str, list[float]] = dataclasses.field(default_factory=dict)


class Store:
    """The records of one folder of results.

    What is done has one meaning: there is a record, it is whole, the run that made it is on record too, every result
    that it names is there with the bytes that were written, and settings, weights and inputs were the same. Results are
    written first and the record after them; before results are replaced their record is taken back. So whatever kills a
    process, a record never speaks of results that are not there, and the same command makes what is missing.
    """

    def __init__(self, folder: Path, kind: str = "images"):
        """Look into a folder of results.

        Args:
            folder: the folder.
            kind: name of the records' own folder in it.
        """
        self.folder = folder
        self.images = Records(folder / "records" / kind)
        self.runs = Records(folder / "records" / "runs")
        now = datetime.datetime.now(datetime.UTC)
        self.run = f"{now:%Y%m%dT%H%M%S%f}-{secrets.token_hex(4)}"
        self._known: dict[str, dict[str, Any]] = {}

    def save_run(self, run: Mapping[str, Any]) -> None:
        """Record how this run works and how far it has come; call it before its first record."""
        self.runs.save(self.run, run)

    def look_again(self) -> None:
        """Forget what other runs said of themselves: they may have said more since."""
        self._known.clear()

    def made_by(self, run: str) -> dict[str, Any] | None:
        """Read what a run said of itself; None if that is lost."""
        if run not in self._known:
            found = self.runs.load(run)
            if found is None:
                return None
            self._known[run] = found
        return self._known[run]

    def load(self, name: str) -> Record | None:
        """Read a record; None if it or the run that made it is absent or damaged."""
        found = self.images.load(name)
        try:
            record = Record(**(found or {}))
        except TypeError:  # absent, or of another format
            return None
        return record if isinstance(record.made, str) and self.made_by(record.made) is not None else None

    def standing(self, name: str, wanted: str) -> Standing:
        """Tell how an image stands: "done" as the fingerprint says, done in an "other" way, "damaged" or "absent"."""
        record = self.load(name)
        if record is None:
            return "damaged" if self.images.exists(name) else "absent"
        if not all(self._is_whole(path, record.sha256.get(kind)) for kind, path in record.files.items()):
            return "damaged"
        return "done" if record.fingerprint == wanted else "other"

    def _is_whole(self, path: str, sha256: str | None) -> bool:
        try:
            return file_hash(self.folder / path) == sha256
        except (OSError, Unusable):
            return False

    def forget(self, name: str) -> None:
        """Take a record back, before its results are replaced."""
        self.images.forget(name)

    def save(self, name: str, record: Record) -> None:
        """Write a record; its results must be there already."""
        self.images.save(name, dataclasses.asdict(record))

    def relative(self, path: Path) -> str:
        """Name a result as a record does."""
        return path.relative_to(self.folder).as_posix()


def decided_by(settings: Settings, *more: Any) -> str:
    """Hash everything but the image that decides a result; with the image's own hashes it makes a fingerprint."""
    # A folder of weights may move; the weights count.
    values = {name: value for name, value in settings.as_dict().items() if name != "prior"}
    files = {**settings.files, **({} if settings.levels is None else {"sigma": settings.levels})}
    given = {name: _hashes(path) for name, path in files.items()}
    return fingerprint(FORMAT, values, given, fingerprint(settings.card.files), *more)


def _hashes(path: Path) -> list[str]:
    """Hash what an operator reads from a file or a folder."""
    inside = sorted(path.rglob("*")) if path.is_dir() else [image_files.source(path)]
    return [file_hash(p) for p in inside if p.is_file()]
