"""Where the files of an evaluation lie below its folder."""

import dataclasses
from pathlib import Path

from ddiff_jax.evaluation.plan import Cell
from ddiff_jax.restoration.store import Store


@dataclasses.dataclass(frozen=True)
class Places:
    """Names of pictures and records.

    Args:
        folder: of the evaluation.
    """

    folder: Path

    def store(self) -> Store:
        """Open the records of all cells."""
        return Store(self.folder, "cells")

    def record(self, cell: Cell, stem: str, run: int) -> str:
        """Name the record of an image in the store."""
        return f"{cell.path}/{stem}.run{run}"

    def picture(self, cell: Cell, stem: str, run: int) -> Path:
        """Name the restored picture."""
        return self._picture("restored", cell, stem, run)

    def strip(self, cell: Cell, stem: str) -> Path:
        """Name the picture of a trajectory."""
        return self._picture("trajectories", cell, stem, 0)

    def strips(self, cell: Cell) -> list[Path]:
        """List the pictures of trajectories that a cell has."""
        return sorted((self.folder / "trajectories" / cell.path).rglob("*.png"))

    def measurement(self, cell: Cell, stem: str) -> Path:
        """Name the picture of a measurement; the solvers share it."""
        return self._picture("measurements", dataclasses.replace(cell, steps=None, solver="measurement"), stem, 0)

    def truth(self, stem: str) -> Path:
        """Name the picture of a clean image as it was used."""
        return self.folder / "images" / f"{stem}.png"

    def _picture(self, kind: str, cell: Cell, stem: str, run: int) -> Path:
        return self.folder / kind / f"{self.record(cell, stem, run)}.png"
