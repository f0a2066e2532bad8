"""Run an evaluation: what is recorded is taken, what is missing is computed, then the tables are made."""

import dataclasses
import datetime
import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from ddiff_jax import image_files
from ddiff_jax._solve import Progress, Solution, solve
from ddiff_jax.checkpoint import file_hash, load_prior, read_card
from ddiff_jax.cli.batches import Batch, Item, Reader, batches
from ddiff_jax.cli.console import warning
from ddiff_jax.cli.environment import choose_batch_size, image_mesh, versions
from ddiff_jax.cli.jobs import Job, find_jobs, prepare
from ddiff_jax.cli.settings import Settings
from ddiff_jax.evaluation import tables
from ddiff_jax.evaluation.plan import Cell, Plan
from ddiff_jax.evaluation.records import DONE, FORMAT, Record, Store, fingerprint, weights_hash
from ddiff_jax.files import Caution
from ddiff_jax.metrics import BACKBONES, METRICS, find_lpips, lpips_hashes, measure
from ddiff_jax.noise import restart_keys
from ddiff_jax.priors import DiffusionPrior

TRACE_POINTS = 100  # kept of what the steps report
FRAMES = 8  # of a trajectory


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """What an evaluation found.

    Args:
        folder: where everything is: results.csv, summary.json, records, pictures.
        rows: the table.
        summary: groups, paired differences, and how it was made.
        num_bad: rows whose status is not "ok".
    """

    folder: Path
    rows: list[tables.Row]
    summary: dict[str, Any]
    num_bad: int


class _WithTruth(Reader):
    """Reads measurements from files and puts the clean images beside them."""

    def __init__(self, settings: Settings, truths: dict[str, Path]):
        super().__init__(settings)
        self._truths = truths

    def read(self, job: Job) -> Item:
        item, path = super().read(job), self._truths.get(job.stem)
        if path is None:
            return item
        truth, notes = image_files.read(path, self._settings.shape[2], self._settings.options.full_scale)
        truth = self.clean(path, truth, notes)
        return dataclasses.replace(item, truth=truth, notes=item.notes + notes)


def evaluate(plan: Plan, folder: str | Path, *, say: Callable[[str], None] = print) -> Evaluation:
    """Run a plan, or what is missing of it, and write results.csv and summary.json.

    Every image is one file, written whole after it is restored. A run that was killed and is started again with the
    same plan ends with the same table, but for the seconds.

    Args:
        plan: what to run.
        folder: for all files; nothing in it is deleted.
        say: told what happens, line by line.

    Raises:
        ValueError: nothing of the plan can be run, or the folder cannot be used.
        FileNotFoundError: there are no such weights.
    """
    return _Run(plan, Path(folder), say).run()


class _Run:
    def __init__(self, plan: Plan, folder: Path, say: Callable[[str], None]):
        self.plan, self.folder, self.say, self.store = plan, folder, say, Store(folder)
        self.cells = plan.cells()
        self.settings: dict[Cell, Settings] = {}
        self.unusable: dict[Cell, str] = {}
        for cell in self.cells:
            try:
                self.settings[cell] = plan.settings(cell)
            except ValueError as error:
                self.unusable[cell] = str(error)
        self._check_names()
        self.left_out: list[str] = []
        self.cautioned: set[tuple[Path, str]] = set()
        self.jobs, self.truths = self._find()
        self.hashes = {job.stem: _hash(job.path) for job in self.jobs}
        self._truth_hashes = {stem: _hash(path) for stem, path in self.truths.items()}
        self._decided: dict[Cell, str] = {}
        self.rejected: dict[tuple[Cell, str], tuple[str, str]] = {}
        self.card = read_card(plan.prior)
        self.lpips, self._lpips_places = find_lpips(plan.lpips, say)
        self._weights = weights_hash(self.card.files)
        self._lpips_weights = {name: weights_hash(lpips_hashes(where)) for name, where in self._lpips_places.items()}
        # By the plan alone, not by what is missing of it: programs of other shapes round differently.
        self.batch_size = choose_batch_size(plan.batch_size, len(self.jobs))
        self._prior: DiffusionPrior | None = None

    def _check_names(self) -> None:
        """Refuse what is misspelt now; only what cannot be combined marks its rows later.

        Raises:
            ValueError: a name or a flag is unknown, or no cell can be set up.
        """
        messages = list(self.unusable.values())
        given = [word for words in self.plan.flags.values() for word in words if word.startswith("--")]
        misspelt = ["unknown task", *(f"unknown flag {flag};" for flag in given)]
        for message in messages:
            if not self.settings or any(message.startswith(start) for start in misspelt):
                raise ValueError(message)

    def _find(self) -> tuple[list[Job], dict[str, Path]]:
        """List the inputs, and where the inputs are measurements, the clean images by their stems."""
        plan = self.plan
        images = self._list(plan.images)
        if plan.measurements is None:
            return images[: plan.subset], {}
        truths = {job.stem: job.path for job in images}
        return self._list([plan.measurements])[: plan.subset], truths

    def _list(self, inputs: Sequence[str]) -> list[Job]:
        found = find_jobs(inputs, self.folder, recursive=self.plan.recursive)
        self.left_out += found.left_out
        return sorted(found.jobs, key=lambda job: job.stem)

    @property
    def prior(self) -> DiffusionPrior:
        """The prior, read when it is first needed: a finished evaluation needs none."""
        if self._prior is None:
            self._prior = load_prior(self.plan.prior, dtype=self.plan.dtype).with_label(self.plan.label)
        return self._prior

    def run(self) -> Evaluation:
        prepare(self.folder)
        last = None
        for number, cell in enumerate(self.cells, start=1):
            head = f"[{number}/{len(self.cells)}] {cell.path}"
            if cell in self.unusable:
                self.say(f"{head}: not run: {self.unusable[cell]}")
                continue
            todo = self._missing(cell)
            if not todo:
                self.say(f"{head}: recorded")
                continue
            program = dataclasses.replace(cell, seed=0, sigma_y=None)
            if last is not None and program != last:
                jax.clear_caches()  # compiled programs of cells that are done would pile up
            last = program
            stale = sum(
                self.store.exists(cell, job.stem, run) and self._record(cell, job.stem, run) is None
                for job in todo
                for run in range(cell.runs)
            )
            note = f"; {stale} records of another evaluation are replaced" if stale else ""
            self.say(f"{head}: {len(todo)} of {len(self.jobs)} images{note}")
            self._restore(cell, todo)
        for line in self.left_out:
            self.say(f"left out of {line}")
        return self._tables()

    def _fingerprint(self, cell: Cell, stem: str, run: int) -> str:
        if cell not in self._decided:
            settings = self.settings[cell]
            # A folder of weights may move; the weights count.
            values = {name: value for name, value in settings.as_dict().items() if name != "prior"}
            self._decided[cell] = fingerprint(FORMAT, values, _files(settings), self._weights, self._lpips_weights)
        return fingerprint(self._decided[cell], self.hashes[stem], self._truth_hashes.get(stem), run)

    def _records(self, cell: Cell, stem: str) -> list[Record]:
        found = (self.store.load(cell, stem, run, self._fingerprint(cell, stem, run)) for run in range(cell.runs))
        return [record for record in found if record is not None and record.status in DONE]

    def _missing(self, cell: Cell) -> list[Job]:
        return [job for job in self.jobs if any(not self._is_done(cell, job.stem, run) for run in range(cell.runs))]

    def _is_done(self, cell: Cell, stem: str, run: int) -> bool:
        record = self._record(cell, stem, run)
        return (
            record is not None and record.status in DONE and image_files.is_whole(self.store.picture(cell, stem, run))
        )

    def _reject(self, cell: Cell, job: Job, status: str, message: str) -> None:
        message = " ".join(message.split())
        self.rejected[cell, job.stem] = status, message
        self.say(f"  {job.stem}: {status}: {message}")

    def _restore(self, cell: Cell, todo: Sequence[Job]) -> None:
        settings = self.settings[cell]

        def unusable(job: Job, message: str) -> None:
            self._reject(cell, job, "unusable", message)

        try:
            reader = Reader(settings) if self.plan.measurements is None else _WithTruth(settings, self.truths)
        except ValueError as error:
            for job in todo:
                self._reject(cell, job, "failed", str(error))
            return
        for path, note in reader.notes:
            self._warn(path, note)
        for batch in batches(reader, todo, self.batch_size, unusable):
            for item in batch.items:
                for note in item.notes:
                    self._warn(item.job.path, note)
                if settings.estimated:
                    self.say(f"  {item.job.stem}: noise level estimated as {item.sigma_y:.4f}")
            for run in range(cell.runs):
                if all(self._is_done(cell, item.job.stem, run) for item in batch.items):
                    continue
                try:
                    self._batch(cell, batch, run)
                except (ValueError, TypeError, NotImplementedError, jax.errors.JaxRuntimeError) as error:
                    if "RESOURCE_EXHAUSTED" in str(error):
                        raise ValueError(f"out of memory with {len(batch.y)} images; lower --batch-size") from error
                    for item in batch.items:
                        self._reject(cell, item.job, "failed", f"{type(error).__name__}: {error}")
                    break

    def _warn(self, path: Path, note: str) -> None:
        """Say what is probably wrong with a file, once in all cells."""
        if isinstance(note, Caution) and (path, note) not in self.cautioned:
            self.cautioned.add((path, note))
            self.say(warning(str(path), note))

    def _record(self, cell: Cell, stem: str, run: int) -> Record | None:
        return self.store.load(cell, stem, run, self._fingerprint(cell, stem, run))

    def _batch(self, cell: Cell, batch: Batch, run: int) -> None:
        """Restore one batch and record every image of it."""
        settings = self.settings[cell]
        keys = restart_keys(batch.keys, run)
        # One trajectory per cell: that of the first image that could be read.
        strip = self.store.strip(cell, batch.items[0].job.stem)
        wants_strip = run == 0 and not set(self.store.strips(cell)) - {strip}
        frames: list[np.ndarray] = []
        resumed = time.monotonic()
        seconds = 0.0  # of the steps alone, without compiling and previews

        def on_chunk(progress: Progress) -> None:
            nonlocal resumed, seconds
            if progress.step:
                seconds += time.monotonic() - resumed
            if progress.step and wants_strip:
                frames.append(progress.preview()[0])
            resumed = time.monotonic()

        solution = solve(
            *(settings.solver, self.prior, batch.problem(settings.likelihood), keys),
            num_chunks=FRAMES if wants_strip else 1,
            on_chunk=on_chunk,
            mesh=image_mesh(len(batch.y)),
        )
        solution = jax.device_get(solution)
        scores = self._measure(batch, solution)
        x, finite, info = solution.x, solution.finite, solution.info
        for i, item in enumerate(batch.items):
            stem = item.job.stem
            metrics = {name: float(values[i]) for name, values in scores.items()}
            status, message = "ok", ""
            if item.truth is None:
                status, message = "no truth", "there is no clean image of this name"
                metrics = {name: value for name, value in metrics.items() if name.startswith("misfit")}
            if not finite[i]:
                status, message = "diverged", "the restored image holds NaN or infinity; lower the solver's step length"
                metrics = {}
            record = Record(
                fingerprint=self._fingerprint(cell, stem, run),
                status=status,
                message=message,
                metrics=metrics,
                sigma_y=item.sigma_y,
                network_evaluations=solution.cost.network_evaluations,
                network_gradients=solution.cost.network_gradients,
                seconds=seconds / len(batch.y),
                trace=_trace(info, i),
                environment={**versions(), "device": jax.devices()[0].device_kind},
                notes=list(item.notes),
            )
            self._pictures(cell, item, x[i], run, frames if i == 0 else [])
            self.store.save(cell, stem, run, record)

    def _measure(self, batch: Batch, solution: Solution) -> dict[str, np.ndarray]:
        truths = [item.truth for item in batch.items]
        known = next((truth for truth in truths if truth is not None), None)
        stacked = None
        if known is not None:
            full = truths + truths[-1:] * (len(batch.y) - len(truths))
            stacked = np.stack([known if truth is None else truth for truth in full])  # a stand-in is not reported
        return measure(batch.problem(), solution.x, stacked, lpips=self.lpips)

    def _pictures(self, cell: Cell, item: Item, x: np.ndarray, run: int, frames: Sequence[np.ndarray]) -> None:
        stem, y = item.job.stem, np.asarray(item.y)
        drawn = {self.store.picture(cell, stem, run): np.nan_to_num(x)}
        if item.truth is not None:
            drawn[self.store.truth(stem)] = item.truth
        if y.ndim == 3 and y.shape[2] in (1, 3) and y.dtype.kind == "f":
            drawn[self.store.measurement(cell, stem)] = y
        if frames:
            drawn[self.store.strip(cell, stem)] = np.nan_to_num(np.concatenate(frames, axis=1))
        for path, picture in drawn.items():
            path.parent.mkdir(parents=True, exist_ok=True)
            image_files.write_png(path, picture)

    def _tables(self) -> Evaluation:
        absent = {f"lpips_{name}": f"no weights: --lpips-{name}" for name in BACKBONES if name not in self.lpips}
        rows = []
        for cell in self.cells:
            settings = self.settings.get(cell)
            for job in self.jobs:
                start = tables.describe(cell, self._sigma(cell), job.stem)
                sha256 = self.hashes[job.stem]
                records = [] if settings is None else self._records(cell, job.stem)
                if len(records) == cell.runs:
                    why = {} if records[0].status != "ok" else _too_small(records[0], absent)
                    rows += tables.rows_of(start, records, {**absent, **why}, sha256)
                    continue
                status, message = self.rejected.get((cell, job.stem), ("not set up", self.unusable.get(cell, "")))
                for how in (tables.SINGLE,) if cell.runs == 1 else (tables.ORACLE, tables.RESIDUAL):
                    rows.append({**start, "pick": how, "status": status, "message": message, "input_sha256": sha256})
        summary = {**tables.summarise(rows), **self._origin(rows)}
        image_files.write_text(self.folder / "results.csv", tables.to_csv(rows))
        image_files.write_text(
            self.folder / "summary.json", json.dumps(_finite(summary), indent=1, allow_nan=False) + "\n"
        )
        bad = [row for row in rows if row["status"] != "ok"]
        return Evaluation(self.folder, rows, summary, len(bad))

    def _sigma(self, cell: Cell) -> float | None:
        """Find the noise level of a cell; of one that cannot be set up, that of its neighbours on the same task."""
        alike = [s for c, s in self.settings.items() if (c.task, c.sigma_y) == (cell.task, cell.sigma_y)]
        settings = self.settings.get(cell, alike[0] if alike else None)
        return cell.sigma_y if settings is None else settings.sigma_y

    def _origin(self, rows: Sequence[tables.Row]) -> dict[str, Any]:
        """Say how the numbers were made."""
        records = [r for cell in self.settings for job in self.jobs for r in self._records(cell, job.stem)]
        environments = [dict(e) for e in {tuple(sorted(record.environment.items())) for record in records}]
        bad = [
            {k: row.get(k) for k in ("task", "solver", "sigma_y", "steps", "seed", "image", "status", "message")}
            for row in rows
            if row["status"] != "ok"
        ]
        return {
            "bad": bad,
            "plan": self.plan.as_dict(),
            "cells": [
                {"cell": cell.path, "command": self.plan.command(cell), "settings": settings.as_dict()}
                for cell, settings in self.settings.items()
            ],
            "prior": {"name": self.plan.prior, **dataclasses.asdict(self.card)},
            "lpips": {k: {"path": v, "weights": self._lpips_weights[k]} for k, v in self._lpips_places.items()},
            "images": self.hashes,
            "batch_size": self.batch_size,
            "environments": sorted(environments, key=str),
            "written": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        }


def _hash(path: Path) -> str:
    return file_hash(path) if path.is_file() else ""


def _files(settings: Settings) -> dict[str, Any]:
    """Hash what an operator reads from files."""
    found = {}
    for name, path in settings.files.items():
        inside = sorted(path.rglob("*")) if path.is_dir() else [path]
        found[name] = [_hash(p) for p in inside if p.is_file()]
    return found


def _too_small(record: Record, absent: dict[str, str]) -> dict[str, str]:
    return {name: "image too small" for name in METRICS if name not in record.metrics and name not in absent}


def _trace(info: Any, i: int) -> dict[str, list[float]]:
    """Keep some points of every number that the steps of image i reported."""
    columns = {f.name: np.asarray(getattr(info, f.name)) for f in dataclasses.fields(info)}
    columns = {name: column[i] for name, column in columns.items() if column.ndim == 2}
    length = max((len(column) for column in columns.values()), default=0)
    rows = np.unique(np.linspace(0, length - 1, min(TRACE_POINTS, length)).astype(int))
    kept = {name: [float(f"{v:.6g}") for v in column[rows]] for name, column in columns.items()}
    return {"step": [float(row + 1) for row in rows], **kept}


def _finite(value: Any) -> Any:
    """Replace NaN and infinity, which JSON does not know, by null."""
    if isinstance(value, dict):
        return {k: _finite(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(v) for v in value]
    return None if isinstance(value, float) and not np.isfinite(value) else value
