"""What a report can show: which pictures there are, and which numbers belong to them."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image as Pillow

from ddiff_jax.evaluation.places import Places
from ddiff_jax.evaluation.plan import Cell, digits
from ddiff_jax.evaluation.rows import ORACLE, RESIDUAL, SINGLE, Row
from ddiff_jax.evaluation.run import Evaluation


@dataclasses.dataclass(frozen=True)
class Scene:
    """One task at one noise level and step count: what stands side by side.

    Args:
        task: name of the preset.
        sigma_y: noise level.
        steps: step count; None is that of every solver's preset.
        rows: solver to image to row; of several seeds the first, of several runs the one that `Gallery.pick` names.
    """

    task: str
    sigma_y: float
    steps: int | None
    rows: dict[str, dict[str, Row]]

    @property
    def title(self) -> str:
        """Name it for people."""
        parts = [self.task.replace("_", " "), f"noise {digits(self.sigma_y)}"]
        return ", ".join(parts + ([] if self.steps is None else [f"{self.steps} steps"]))


class Gallery:
    """The pictures and traces of an evaluation."""

    def __init__(self, found: Evaluation):
        plan = found.summary.plan
        self.found, self._swept = found, plan.sigmas != (None,)
        self._places = Places(found.folder)
        self._store = self._places.store()
        self._seed = plan.seeds[0]
        # Of several runs pictures and curves show what a user could have, but the paper's pick where that is compared.
        self.pick = ORACLE if plan.oracle else RESIDUAL
        self.solvers: list[str] = list(plan.solvers)
        self.images = sorted({row.image for row in found.rows if row.is_restored})
        self.scenes = self._scenes()

    def _scenes(self) -> list[Scene]:
        scenes: dict[Any, Scene] = {}
        for row in self.found.rows:
            if row.seed != self._seed or not row.is_restored or row.sigma_y is None:  # what is restored has a level
                continue
            key = row.task, row.sigma_y, row.steps
            rows = scenes.setdefault(key, Scene(*key, {})).rows.setdefault(row.solver, {})
            if row.pick in (SINGLE, self.pick) or row.image not in rows:
                rows[row.image] = row
        return list(scenes.values())

    def _cell(self, scene: Scene, solver: str) -> Cell:
        sigma = scene.sigma_y if self._swept else None
        return Cell(scene.task, solver, self._seed, sigma, scene.steps)

    def restored(self, scene: Scene, solver: str, image: str) -> Path:
        """Find what a solver made of an image."""
        return self._places.picture(self._cell(scene, solver), image, scene.rows[solver][image].run or 0)

    def measurement(self, scene: Scene, image: str) -> Path | None:
        """Find the picture of what was measured; None where a measurement is no picture."""
        path = self._places.measurement(self._cell(scene, ""), image)
        return path if path.is_file() else None

    def truth(self, image: str) -> Path | None:
        """Find the clean image."""
        path = self._places.truth(image)
        return path if path.is_file() else None

    def strips(self, scene: Scene) -> dict[str, Path]:
        """Find the trajectories: solver to picture."""
        found = {}
        for solver in scene.rows:
            paths = self._places.strips(self._cell(scene, solver))
            if paths:
                found[solver] = paths[0]
        return found

    def traces(self, scene: Scene) -> dict[str, dict[str, np.ndarray]]:
        """Average over images what the steps reported: solver to name to [points]; "cost" in network evaluations."""
        found = {}
        for solver, rows in scene.rows.items():
            columns: dict[str, list[list[float]]] = {}
            evaluations = 0
            for image, row in rows.items():
                record = self._store.load(self._places.record(self._cell(scene, solver), image, row.run or 0))
                if record is None:  # somebody took it away meanwhile
                    continue
                evaluations = record.network_evaluations
                for name, values in record.trace.items():
                    columns.setdefault(name, []).append(values)
            means = {name: np.mean(np.asarray(values, float), axis=0) for name, values in columns.items()}
            if "step" in means and len(means["step"]):
                found[solver] = {**means, "cost": means["step"] * evaluations / means["step"][-1]}
        return found


def open_picture(path: Path) -> Pillow.Image:
    """Open a picture in colour."""
    with Pillow.open(path) as picture:
        return picture.convert("RGB")
