"""Run an evaluation: what is recorded is taken, what is missing is computed, then the tables are made."""

import dataclasses
import datetime
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from ddiff_jax import image_files
from ddiff_jax._solve import Progress, Solution, solve
from ddiff_jax.checkpoint import load_prior, read_card
from ddiff_jax.evaluation import formats
from ddiff_jax.evaluation.places import Places
from ddiff_jax.evaluation.plan import Cell, Plan
from ddiff_jax.evaluation.rows import ORACLE, RESIDUAL, SINGLE, Row, rows_of
from ddiff_jax.evaluation.summary import Setup, Summary, summarise
from ddiff_jax.files import Caution, warning
from ddiff_jax.metrics import BACKBONES, METRICS, find_lpips, lpips_hashes, measure
from ddiff_jax.names import UnknownName
from ddiff_jax.noise import restart_keys
from ddiff_jax.priors import DiffusionPrior, NoPrior
from ddiff_jax.restoration.batches import Batch, batches
from ddiff_jax.restoration.jobs import Job, find_jobs, prepare
from ddiff_jax.restoration.machine import OutOfMemory, choose_batch_size, image_mesh, out_of_memory, versions
from ddiff_jax.restoration.reading import Item, Reader
from ddiff_jax.restoration.records import fingerprint
from ddiff_jax.restoration.results import is_picture, why_not_written
from ddiff_jax.restoration.saving import Written, put
from ddiff_jax.restoration.settings import Settings
from ddiff_jax.restoration.share import Share
from ddiff_jax.restoration.sizes import SizeNotes, fitted
from ddiff_jax.restoration.store import Record, Standing, decided_by
from ddiff_jax.solvers import SOLVERS, aim_of, asks_network

TRACE_POINTS = 100  # kept of what the steps report
FRAMES = 8  # of a trajectory


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """What an evaluation found.

    Args:
        folder: where everything is: results.csv, summary.json, records, pictures.
        rows: the table.
        summary: groups, paired differences, and how it was made.
    """

    folder: Path
    rows: list[Row]
    summary: Summary

    @property
    def num_bad(self) -> int:
        """Rows whose status is neither "ok" nor "pending", which are in the share of another process."""
        return len(self.summary.bad)


@dataclasses.dataclass(frozen=True)
class _Solved:
    """What came of one batch."""

    solution: Solution
    scores: dict[str, np.ndarray]
    seconds: float  # per image
    frames: list[np.ndarray]


def evaluate(
    plan: Plan, folder: str | Path, *, say: Callable[[str], None] = print, share: Share | None = None
) -> Evaluation:
    """Run a plan, or what is missing of it, and write results.csv and summary.json.

    Every image is one file, written whole after it is restored. A run that was killed and is started again with the
    same plan ends with the same table, but for the seconds.

    Args:
        plan: what to run.
        folder: for all files; nothing in it is deleted.
        say: told what happens, line by line.
        share: of the images that this process restores; None is all. Several processes may share a folder, and the
            table has what is there so far.

    Raises:
        UnknownName: something in the plan is misspelt.
        ValueError: nothing of the plan can be run, or the folder cannot be used.
        FileNotFoundError: there are no such weights.
    """
    return _Run(plan, Path(folder), say, share or Share()).run()


class _Run:
    def __init__(self, plan: Plan, folder: Path, say: Callable[[str], None], share: Share):
        self.plan, self.folder, self.say = plan, folder, say
        self.places = Places(folder)
        self.store = self.places.store()
        self.cells = plan.cells()
        self.settings: dict[Cell, Settings] = {}
        self.unusable: dict[Cell, str] = {}
        for cell in self.cells:
            try:
                self.settings[cell] = plan.settings(cell)
            except UnknownName:  # misspelt: say so now; only what cannot be combined marks its rows later
                raise
            except ValueError as error:
                self.unusable[cell] = str(error)
        if not self.settings:
            raise ValueError(next(iter(self.unusable.values())))
        self.left_out: list[str] = []
        self.cautioned: set[tuple[Path, str]] = set()
        self.jobs, self.truths = self._find()
        self.ours = share.of(self.jobs)
        self._is_announced = False
        self._environment = {**versions(), "device": jax.devices()[0].device_kind}
        self.hashes = {job.stem: _hash(job.path) for job in self.jobs}
        self._truth_hashes = {stem: _hash(path) for stem, path in self.truths.items()}
        self._decided: dict[Cell, str] = {}
        self.rejected: dict[tuple[Cell, str], tuple[str, str]] = {}
        self.card = read_card(plan.prior)
        self.lpips, self._lpips_places = find_lpips(plan.lpips, say)
        self._lpips_weights = {
            name: fingerprint(dict(lpips_hashes(where))) for name, where in self._lpips_places.items()
        }
        # By the plan alone, not by what is missing of it: programs of other shapes round differently.
        self.batch_size = choose_batch_size(plan.batch_size, len(self.jobs), self.card.image_shape)
        self._prior: DiffusionPrior | None = None
        self._size_notes = SizeNotes(plan.prior)

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

    def _prior_of(self, settings: Settings) -> DiffusionPrior | NoPrior:
        """Choose the prior of a cell; solvers that ask no network have none."""
        return self.prior if asks_network(settings.solver) else NoPrior(settings.shape)

    def run(self) -> Evaluation:
        prepare(self.folder)
        last = None
        for number, cell in enumerate(self.cells, start=1):
            head = f"[{number}/{len(self.cells)}] {cell.path}"
            if cell in self.unusable:
                self.say(f"{head}: not run: {self.unusable[cell]}")
                continue
            standing = {
                (job.stem, run): self._standing(cell, job.stem, run) for job in self.ours for run in range(cell.runs)
            }
            missing = {stem for (stem, _), how in standing.items() if how != "done"}
            todo = [job for job in self.ours if job.stem in missing]
            if not todo:
                self.say(f"{head}: recorded")
                continue
            program = dataclasses.replace(cell, seed=0, sigma_y=None)
            if last is not None and program != last:
                jax.clear_caches()  # compiled programs of cells that are done would pile up
            last = program
            stale = sum(how in ("other", "damaged") for how in standing.values())
            note = f"; {stale} records of another evaluation are replaced" if stale else ""
            self.say(f"{head}: {len(todo)} of {len(self.jobs)} images{note}")
            self._restore(cell, todo)
        for line in self.left_out:
            self.say(f"left out of {line}")
        return self._tables()

    def _fingerprint(self, cell: Cell, stem: str, run: int) -> str:
        if cell not in self._decided:
            self._decided[cell] = decided_by(self.settings[cell], self._lpips_weights)
        return fingerprint(self._decided[cell], self.hashes[stem], self._truth_hashes.get(stem), run)

    def _standing(self, cell: Cell, stem: str, run: int) -> Standing:
        return self.store.standing(self.places.record(cell, stem, run), self._fingerprint(cell, stem, run))

    def _records(self, cell: Cell, stem: str) -> list[Record]:
        """Read what is on record of an image, made as this plan says."""
        names = {run: self.places.record(cell, stem, run) for run in range(cell.runs)}
        found = {run: self.store.load(name) for run, name in names.items()}
        wanted = {run: self._fingerprint(cell, stem, run) for run in names}
        return [record for run, record in found.items() if record is not None and record.fingerprint == wanted[run]]

    def _reject(self, cell: Cell, job: Job, status: str, message: str) -> None:
        message = " ".join(message.split())
        self.rejected[cell, job.stem] = status, message
        self.say(f"  {job.stem}: {status}: {message}")

    def _restore(self, cell: Cell, todo: Sequence[Job]) -> None:
        settings = self.settings[cell]

        def unusable(job: Job, message: str) -> None:
            self._reject(cell, job, "unusable", message)

        try:
            reader = Reader(settings, self.truths)
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
                # Another process that shares the folder may have been here meanwhile.
                if all(self._standing(cell, item.job.stem, run) == "done" for item in batch.items):
                    continue
                try:
                    solved = self._solve(cell, batch, run)
                except OutOfMemory:
                    raise
                except (ValueError, TypeError, NotImplementedError, jax.errors.JaxRuntimeError) as error:
                    for item in batch.items:
                        self._reject(cell, item.job, "failed", f"{type(error).__name__}: {error}")
                    break
                self._keep(cell, batch, run, solved)

    def _warn(self, path: Path, note: str) -> None:
        """Say what is probably wrong with a file, once in all cells."""
        if isinstance(note, Caution) and (path, note) not in self.cautioned:
            self.cautioned.add((path, note))
            self.say(warning(str(path), note))

    def _solve(self, cell: Cell, batch: Batch, run: int) -> _Solved:
        """Restore one batch."""
        settings = self.settings[cell]
        problem, keys = batch.problem(settings.likelihood), restart_keys(batch.keys, run)
        # One trajectory per cell: that of the first image that could be read.
        strip = self.places.strip(cell, batch.items[0].job.stem)
        wants_strip = run == 0 and not set(self.places.strips(cell)) - {strip}
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

        with out_of_memory(len(batch.y)):
            prior = fitted(self._prior_of(settings), settings.sizes, batch.shape)
            for note in self._size_notes.of(prior, self.prior.image_shape):
                self.say(f"  note: {note}")
            solution = solve(
                *(settings.solver, prior, problem, keys),
                num_chunks=FRAMES if wants_strip else 1,
                on_chunk=on_chunk,
                mesh=image_mesh(len(batch.y)),
            )
            solution = jax.device_get(solution)
            scores = measure(problem, solution.x, batch.truths, lpips=self.lpips)
        return _Solved(solution, scores, seconds / len(batch.y), frames)

    def _keep(self, cell: Cell, batch: Batch, run: int, solved: _Solved) -> None:
        """Write and record every image of a batch."""
        for i, item in enumerate(batch.items):
            try:
                if not self._is_announced:
                    self.store.save_run({"plan": self.plan.as_dict(), "environment": self._environment})
                    self._is_announced = True
                self._keep_one(cell, item, run, solved, i)
            except OSError as error:  # a full disk, a name that is too long: the other images go on
                self._reject(cell, item.job, "failed", why_not_written(error))

    def _keep_one(self, cell: Cell, item: Item, run: int, solved: _Solved, i: int) -> None:
        stem, solution = item.job.stem, solved.solution
        if item.sha256 != self.hashes[stem]:
            self._reject(cell, item.job, "failed", "its file changed after the evaluation began; run it again")
            return
        metrics: dict[str, float | None] = {name: float(values[i]) for name, values in solved.scores.items()}
        status, message = "ok", ""
        if item.truth is None:
            status, message = "no truth", "there is no clean image of this name"
            metrics = {name: value for name, value in metrics.items() if name.startswith("misfit")}
        if not solution.finite[i]:
            status, message = "diverged", "the restored image holds NaN or infinity; lower the solver's step length"
            metrics = {}
        name = self.places.record(cell, stem, run)
        self.store.forget(name)
        written = self._pictures(cell, item, np.asarray(solution.x[i]), run, solved.frames if i == 0 else [])
        record = Record(
            name=stem,
            fingerprint=self._fingerprint(cell, stem, run),
            status=status,
            message=message,
            input=str(item.job.path),
            input_sha256=self.hashes[stem],
            metrics=metrics,
            sigma_y=item.sigma_y,
            files={kind: self.store.relative(path) for kind, (path, _) in written.items()},
            sha256={kind: sha256 for kind, (_, sha256) in written.items()},
            notes=list(item.notes),
            made=self.store.run,
            network_evaluations=solution.cost.network_evaluations,
            network_gradients=solution.cost.network_gradients,
            seconds=solved.seconds,
            trace=_trace(solution.info, i),
        )
        self.store.save(name, record)

    def _pictures(self, cell: Cell, item: Item, x: np.ndarray, run: int, frames: Sequence[np.ndarray]) -> Written:
        """Write an image's pictures."""
        stem, y, places = item.job.stem, np.asarray(item.y), self.places
        drawn = {}
        if item.truth is not None:
            drawn["truth"] = places.truth(stem), image_files.as_picture(item.truth)
        if is_picture(y):
            drawn["measurement"] = places.measurement(cell, stem), y
        if frames:
            strip = np.concatenate([image_files.as_picture(frame) for frame in frames], axis=1)
            drawn["trajectory"] = places.strip(cell, stem), np.nan_to_num(strip)
        drawn["restored"] = places.picture(cell, stem, run), np.nan_to_num(image_files.as_picture(x))
        written: Written = {}
        for kind, (path, picture) in drawn.items():
            put(written, kind, image_files.write_png, picture, path)
        if not self.plan.measures_alike(cell):  # the next solver replaces it
            written.pop("measurement", None)
        return written

    def _tables(self) -> Evaluation:
        absent = {f"lpips_{name}": f"no weights: --lpips-{name}" for name in BACKBONES if name not in self.lpips}
        elsewhere = {job.stem for job in self.jobs} - {job.stem for job in self.ours}
        rows: list[Row] = []
        made: set[str] = set()
        for cell in self.cells:
            settings = self.settings.get(cell)
            for job in self.jobs:
                start = Row(
                    *(cell.task, cell.solver, self._sigma(cell), cell.steps, cell.seed, job.stem),
                    input_sha256=self.hashes[job.stem],
                    aim=aim_of(SOLVERS[cell.solver]),
                )
                records = [] if settings is None else self._records(cell, job.stem)
                made |= {record.made for record in records}
                if len(records) == cell.runs:
                    why = {} if records[0].status != "ok" else _too_small(records[0], absent)
                    rows += rows_of(start, records, {**absent, **why}, oracle=self.plan.oracle)
                    continue
                pending = "pending", "in the share of another process"
                other = pending if job.stem in elsewhere else ("not set up", self.unusable.get(cell, ""))
                status, message = self.rejected.get((cell, job.stem), other)
                for how in (SINGLE,) if cell.runs == 1 else (ORACLE, RESIDUAL)[not self.plan.oracle :]:
                    rows.append(dataclasses.replace(start, pick=how, status=status, message=message))
        summary = self._summary(rows, made)
        image_files.write_text(self.folder / "results.csv", formats.to_csv(rows))
        summary.write(self.folder / "summary.json")
        return Evaluation(self.folder, rows, summary)

    def _sigma(self, cell: Cell) -> float | None:
        """Find the noise level of a cell; of one that cannot be set up, that of its neighbours on the same task."""
        alike = [s for c, s in self.settings.items() if (c.task, c.sigma_y) == (cell.task, cell.sigma_y)]
        settings = self.settings.get(cell, alike[0] if alike else None)
        return cell.sigma_y if settings is None else settings.sigma_y

    def _summary(self, rows: Sequence[Row], made: set[str]) -> Summary:
        """Sum up, and say how the numbers were made: by which runs."""
        runs = [self.store.made_by(name) or {} for name in sorted(made)]
        environments = [dict(e) for e in {tuple(sorted(run["environment"].items())) for run in runs}]
        groups, paired = summarise(rows)
        return Summary(
            groups=groups,
            paired=paired,
            bad=tuple(row for row in rows if row.status not in ("ok", "pending")),
            plan=self.plan,
            cells=tuple(
                Setup(cell.path, self.plan.command(cell, settings), settings.as_dict())
                for cell, settings in self.settings.items()
            ),
            prior={"name": self.plan.prior, **dataclasses.asdict(self.card)},
            lpips={k: {"path": v, "weights": self._lpips_weights[k]} for k, v in self._lpips_places.items()},
            images=self.hashes,
            batch_size=self.batch_size,
            environments=tuple(sorted(environments, key=str)),
            written=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        )


def _hash(path: Path) -> str:
    return image_files.source_hash(path) if image_files.source(path).is_file() else ""


def _too_small(record: Record, absent: dict[str, str]) -> dict[str, str]:
    missing = [name for name, metric in METRICS.items() if metric.general and name not in record.metrics]
    return {name: "image too small" for name in missing if name not in absent}


def _trace(info: Any, i: int) -> dict[str, list[float]]:
    """Keep some points of every number that the steps of image i reported."""
    columns = {f.name: np.asarray(getattr(info, f.name)) for f in dataclasses.fields(info)}
    columns = {name: column[i] for name, column in columns.items() if column.ndim == 2}
    length = max((len(column) for column in columns.values()), default=0)
    rows = np.unique(np.linspace(0, length - 1, min(TRACE_POINTS, length)).astype(int))
    kept = {name: [float(f"{v:.6g}") for v in column[rows]] for name, column in columns.items()}
    return {"step": [float(row + 1) for row in rows], **kept}
