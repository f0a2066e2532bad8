"""One file per restored image: whole or absent, and bound to everything that decided it."""

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ddiff_jax.evaluation.plan import Cell
from ddiff_jax.records import Records

FORMAT = 2  # of a record; part of its fingerprint

DONE = ("ok", "diverged", "no truth")  # what the same settings would only find again


def fingerprint(*parts: Any) -> str:
    """Hash values that JSON can hold, or that print themselves."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()


@dataclasses.dataclass(frozen=True)
class Record:
    """What one run on one image gave.

    Args:
        fingerprint: of settings, weights and input.
        status: "ok", "diverged" (NaN or infinity) or "no truth" (restored, but there is nothing to compare with).
        message: what went wrong, for people.
        metrics: name in `METRICS` to value.
        sigma_y: noise level of the measurement, as given or estimated.
        network_evaluations: per image.
        network_gradients: passes backwards through the network, per image.
        seconds: time of the batch's steps divided by its images; compiling left out.
        trace: name of what the steps reported to every few values, and "step" to their numbers.
        environment: versions and device.
        notes: conversions made while reading the image.
    """

    fingerprint: str
    status: str
    message: str
    metrics: dict[str, float]
    sigma_y: float
    network_evaluations: int
    network_gradients: int
    seconds: float
    trace: dict[str, list[float]]
    environment: dict[str, str]
    notes: list[str]


class Store:
    """The files of an evaluation below one folder."""

    def __init__(self, folder: Path):
        self.folder = folder
        self._records = Records(folder / "records")

    def _path(self, kind: str, cell: Cell, stem: str, run: int, suffix: str) -> Path:
        return self.folder / kind / f"{_name(cell, stem, run)}{suffix}"

    def picture(self, cell: Cell, stem: str, run: int) -> Path:
        """Name the restored picture."""
        return self._path("restored", cell, stem, run, ".png")

    def record(self, cell: Cell, stem: str, run: int) -> Path:
        """Name the record."""
        return self._records.path(_name(cell, stem, run))

    def strip(self, cell: Cell, stem: str) -> Path:
        """Name the picture of a trajectory."""
        return self._path("trajectories", cell, stem, 0, ".png")

    def strips(self, cell: Cell) -> list[Path]:
        """List the pictures of trajectories that a cell has."""
        return sorted((self.folder / "trajectories" / cell.path).rglob("*.png"))

    def measurement(self, cell: Cell, stem: str) -> Path:
        """Name the picture of a measurement; the solvers share it."""
        variant = dataclasses.replace(cell, steps=None, solver="measurement")
        return self._path("measurements", variant, stem, 0, ".png")

    def truth(self, stem: str) -> Path:
        """Name the picture of a clean image as it was used."""
        return self.folder / "images" / f"{stem}.png"

    def load(self, cell: Cell, stem: str, run: int, wanted: str) -> Record | None:
        """Read a record if it is there, whole, and was made with what the fingerprint says."""
        try:
            record = Record(**(self._records.load(_name(cell, stem, run)) or {}))
        except TypeError:  # absent, or not ours: it is made again
            return None
        return record if record.fingerprint == wanted else None

    def exists(self, cell: Cell, stem: str, run: int) -> bool:
        """Tell whether there is a record, whatever made it."""
        return self.record(cell, stem, run).exists()

    def save(self, cell: Cell, stem: str, run: int, record: Record) -> None:
        """Write a record; its pictures must be there already."""
        self._records.save(_name(cell, stem, run), dataclasses.asdict(record))


def _name(cell: Cell, stem: str, run: int) -> str:
    return f"{cell.path}/{stem}.run{run}"


def weights_hash(files: Mapping[str, str]) -> str:
    """Sum up the hashes on a card in one."""
    return fingerprint(dict(files))
