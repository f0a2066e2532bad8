"""The work itself: read ahead, restore batch by batch, write behind; an image counts once its record is there."""

import collections
import contextlib
import dataclasses
import datetime
import json
import os
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal, Protocol, TypeVar, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np

from ddiff_jax._solve import Progress, Solution, memory_plan
from ddiff_jax.checkpoint import load_prior
from ddiff_jax.flops import count_flops
from ddiff_jax.image_files import source, source_hash
from ddiff_jax.memory import MemoryPlan
from ddiff_jax.priors import NoPrior, Prior
from ddiff_jax.restarts import Restarts, solve_restarts
from ddiff_jax.restoration import results, spread
from ddiff_jax.restoration.batches import Batch, Score, batches, score
from ddiff_jax.restoration.jobs import Job
from ddiff_jax.restoration.machine import image_mesh, out_of_memory, versions
from ddiff_jax.restoration.reading import Item, Reader
from ddiff_jax.restoration.records import fingerprint
from ddiff_jax.restoration.saving import result_paths
from ddiff_jax.restoration.settings import Settings
from ddiff_jax.restoration.sizes import caution, describe, evaluations, fitted
from ddiff_jax.restoration.snapshots import EVERY_SECONDS, Snapshots, drop_orphans
from ddiff_jax.restoration.store import Record, Standing, Store, decided_by
from ddiff_jax.samples import solve_samples
from ddiff_jax.solvers.base import AIMS, aim_of, asks_network, count_steps, require_operator, total_cost
from ddiff_jax.types import ImageShape

CHUNKS = 40  # how often per batch the host regains control, for the bar and for Ctrl-C
AHEAD = 2  # batches that are read before they are needed
BEHIND = 2  # batches whose results may still have to be written when the next one starts
WRITERS = min(8, os.cpu_count() or 1)  # images that are written at a time: drawing and PNG take some 20 ms each
RECORD_SECONDS = 60.0  # between two records of how far the run has come, which grow with what failed

T = TypeVar("T")
Existing = Literal["skip", "overwrite", "error"]


@runtime_checkable
class Watch(Protocol):
    """Who is told how a restoration goes; methods may be called from other threads, one at a time."""

    def note(self, about: str, text: str) -> None:
        """Hear what was done to an input, or doubted about it."""
        ...

    def failed(self, job: Job, message: str) -> None:
        """Hear why an image has no result."""
        ...

    def begins(self, prior: Prior, num_images: int) -> None:
        """Hear that all is known and compiling starts; the prior is fitted to the first images."""
        ...

    def compiled(self, seconds: float) -> None:
        """Hear that the first step starts."""
        ...

    def stepped(self, batch: Batch, progress: Progress) -> None:
        """Hear how far a batch is."""
        ...

    def restored(self, record: Record) -> None:
        """Hear that an image's results and its record are written."""
        ...


@dataclasses.dataclass(frozen=True)
class Sorted:
    """What is to be done.

    Args:
        todo: what has to be restored.
        done: what is not, because its results are there.
        again: those of todo that had results or a record before.
        differences: what was different when the results of `done` were made: settings, or the input.
    """

    todo: list[Job]
    done: list[Job]
    again: list[Job]
    differences: list[str]


class Restoration:
    """A restoration with one set of settings into one folder.

    Args:
        settings: what decides the results.
        store: of the folder.
        watch: is told how it goes.
        only_compile: stop before the first step.
        save_every: seconds of computing after which the state of the running batch is saved, to be taken up again by
            the same restoration after a crash.
    """

    def __init__(
        self,
        settings: Settings,
        store: Store,
        watch: Watch,
        *,
        only_compile: bool = False,
        save_every: float = EVERY_SECONDS,
    ):
        self.settings, self.store, self._watch, self._only_compile = settings, store, watch, only_compile
        self._decided, self._save_every = decided_by(settings), save_every
        self._telling = threading.Lock()
        self.failed: dict[str, str] = {}
        self._is_cautioned = False
        self.seconds = {"compile": 0.0, "run": 0.0}
        self.record: dict[str, Any] = {}  # of this run; empty until all is known
        self.plan: MemoryPlan | None = None
        self._recorded: float | None = None  # when it was last written

    def sort(self, jobs: Sequence[Job], existing: Existing) -> Sorted:
        """Find out what is done.

        Raises:
            ValueError: there are results, and existing is "error".
        """
        there = [job for job in jobs if _has_result(job)]
        if there and existing == "error":
            raise ValueError(
                f"{there[0].result('restored')} exists ({len(there)} of {len(jobs)} results do); "
                "choose another --output, or --existing skip or overwrite"
            )
        if existing == "overwrite":
            return Sorted(list(jobs), [], [], [])
        standing = {job: self._standing(job) for job in jobs}
        todo = [job for job in jobs if standing[job] in ("absent", "damaged")]
        others = [job for job in jobs if standing[job] == "other"]
        return Sorted(
            todo=todo,
            done=[job for job in jobs if standing[job] in ("done", "other")],
            again=[job for job in todo if standing[job] == "damaged" or _has_result(job)],
            differences=sorted({name for job in others for name in self._differences(job)}),
        )

    def _standing(self, job: Job) -> Standing:
        sha256 = source_hash(job.path) if source(job.path).is_file() else None
        if sha256 is None:  # an input that is gone is as it was
            earlier = self.store.load(job.stem)
            sha256 = None if earlier is None else earlier.input_sha256
        return self.store.standing(job.stem, self._fingerprint(sha256))

    def _differences(self, job: Job) -> list[str]:
        """Name what differs between an image's earlier run and this one."""
        record = self.store.load(job.stem)
        if record is None:
            return []
        earlier = (self.store.made_by(record.made) or {}).get("settings", {})
        settings = json.loads(json.dumps(self.settings.as_dict()))
        different = [key for key in settings.keys() | earlier.keys() if settings.get(key) != earlier.get(key)]
        if source(job.path).is_file() and record.input_sha256 != source_hash(job.path):
            different.append("input")
        return different or ["set of weights, masks or kernels"]

    def run(self, jobs: Sequence[Job], batch_size: int) -> None:
        """Restore all jobs; one that fails does not stop the others.

        Raises:
            ValueError: nothing can be restored with these settings.
            FileNotFoundError: there are no such weights.
        """
        reader = Reader(self.settings)
        for path, note in reader.notes:
            self._watch.note(str(path), note)
        prior: Prior | None = None
        writing: collections.deque[Future[None]] = collections.deque()
        # The last one ends first: after Ctrl-C what is restored is still saved, and for that takes the writers.
        with ThreadPoolExecutor(WRITERS, "write") as writers, ThreadPoolExecutor(1, "save") as saver:
            for batch in _ahead(batches(reader, jobs, batch_size, self._fail), AHEAD):
                for item in batch.items:
                    for note in item.notes:
                        self._watch.note(str(item.job.path), note)
                is_first = prior is None
                prior = self._prior() if prior is None else prior
                seen_by = fitted(prior, self.settings.sizes, batch.shape)
                self._tell_of_size(seen_by, prior.image_shape, batch)
                if is_first:
                    self._begin(seen_by, batch, batch_size)
                    self._watch.begins(seen_by, len(jobs))
                snapshots = self._snapshots(batch)
                solved = self._solve(seen_by, batch, snapshots)
                writing.append(saver.submit(self._save, batch, *solved, snapshots, writers))
                while len(writing) > BEHIND or (writing and writing[0].done()):
                    writing.popleft().result()
            for last in writing:
                last.result()
        drop_orphans(self.store, self._running)

    def _prior(self) -> Prior:
        """Load the weights, if the solver asks for more than the shape of images."""
        settings = self.settings
        if not asks_network(settings.solver):
            return NoPrior(settings.card.image_shape)
        return load_prior(settings.prior, dtype=settings.dtype).with_label(settings.label)

    def _tell_of_size(self, prior: Prior, own: ImageShape, batch: Batch) -> None:
        """Say how images of another size than the prior's are seen, and once, what that cannot give."""
        told = describe(prior, own)
        for item in batch.items if told else []:
            item.notes.append(told)
            self._watch.note(str(item.job.path), told)
        if told and not self._is_cautioned:
            self._is_cautioned = True
            self._watch.note("prior", caution(self.settings.prior, own))

    def _fail(self, job: Job, message: str) -> None:
        with self._telling:
            self.failed[str(job.path)] = message
            self._watch.failed(job, message)

    def _begin(self, prior: Prior, batch: Batch, batch_size: int) -> None:
        settings, device, operator = self.settings, jax.devices()[0], batch.operator
        require_operator(settings.solver, operator)
        runs, aim = settings.restarts * settings.samples, aim_of(settings.solver)
        num_steps = count_steps(settings.solver, prior.schedule)
        cost = total_cost(settings.solver, operator, prior.schedule, num_steps) * runs
        problem = batch.problem(settings.likelihood)
        self.plan = memory_plan(settings.solver, prior, problem, batch.keys).of_runs(runs)
        self.record = {
            "settings": settings.as_dict(),
            "batch_size": batch_size,
            "network_evaluations": cost.network_evaluations,
            "cost_per_image": dataclasses.asdict(cost),
            "aim": None if aim is None else {"name": aim, "meaning": AIMS[aim]},
            "gigaflop_per_evaluation": 0.0 if isinstance(prior, NoPrior) else evaluation_flops(prior) / 1e9,
            "memory": dataclasses.asdict(self.plan),
            "prior": {"name": settings.prior, **dataclasses.asdict(settings.card)},
            "device": {"platform": device.platform, "kind": device.device_kind, "count": jax.local_device_count()},
            "versions": versions(),
            "started": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        }

    def save_record(self) -> None:
        """Record how this run works and how far it has come, once it has begun."""
        if self.record:
            with self._telling:  # other threads write into these
                now = {"seconds": dict(self.seconds), "failed": dict(self.failed)}
            self.store.save_run({**self.record, **now})
            self._recorded = time.monotonic()

    def _snapshots(self, batch: Batch) -> Snapshots:
        """Name the state of a batch after all that decides it: who is in it, and in which place."""
        name = fingerprint(self._decided, len(batch.y), [(item.job.stem, item.sha256) for item in batch.items])
        wanted = {item.job.stem: self._fingerprint(item.sha256) for item in batch.items}
        return Snapshots(self._running, name[:24], wanted, self._save_every)

    @property
    def _running(self) -> Path:
        return self.store.folder / "records" / "running"

    def _fingerprint(self, sha256: str | None) -> str:
        """Stand for everything that decides an image's results."""
        return fingerprint(self._decided, sha256)

    def _solve(
        self, prior: Prior, batch: Batch, snapshots: Snapshots
    ) -> tuple[Solution, list[spread.Spread] | None, Restarts | None]:
        """Restore a batch; of samples say their spread too, and of restarts with a truth what all of them gave."""
        started = time.monotonic()

        def on_chunk(progress: Progress) -> bool:
            nonlocal started
            if progress.step == 0 and not self.seconds["compile"]:
                self.seconds["compile"] = time.monotonic() - started
                started = time.monotonic()
                self._watch.compiled(self.seconds["compile"])
            elif progress.step:
                self._watch.stepped(batch, progress)
                snapshots.save(progress)
            return self._only_compile

        settings, spreads, every = self.settings, None, None
        asked = settings.solver, prior, batch.problem(settings.likelihood), batch.keys
        driving: Any = {"num_chunks": CHUNKS, "on_chunk": on_chunk, "resume": snapshots.load}
        driving["mesh"] = image_mesh(len(batch.y) * settings.restarts * settings.samples)
        with out_of_memory(len(batch.y)):
            if settings.samples > 1:
                samples = solve_samples(*asked, samples=settings.samples, **driving)
                solution, spreads = spread.spread_out(samples, aim_of(settings.solver))
            else:
                found = solve_restarts(*asked, restarts=settings.restarts, **driving)
                solution = jax.device_get(found.solution)
                every = jax.device_get(found) if settings.restarts > 1 and batch.truths is not None else None
        self.seconds["run"] += time.monotonic() - started
        for note in snapshots.notes:
            self._watch.note(str(self.store.folder), note)
        return solution, spreads, every

    def _save(
        self,
        batch: Batch,
        solution: Solution,
        spreads: list[spread.Spread] | None,
        every: Restarts | None,
        snapshots: Snapshots,
        writers: ThreadPoolExecutor,
    ) -> None:
        """Write what a batch gave; nothing that is written gets lost by what comes later."""
        scores = score(batch, solution.x, self.settings.likelihood, every)
        try:
            self._announce()
        except OSError as error:
            for item in batch.items:
                self._fail(item.job, results.why_not_written(error))
            return
        x, finite = np.asarray(solution.x), np.asarray(solution.finite)
        list(writers.map(self._keep, batch.items, x, finite, scores, spreads or [None] * len(batch.items)))
        snapshots.drop()

    def _announce(self) -> None:
        """See to it that the run is on record before an image is; what comes later is no condition."""
        if self._recorded is None:
            self.save_record()
        elif time.monotonic() - self._recorded > RECORD_SECONDS:
            with contextlib.suppress(OSError):
                self.save_record()

    def _keep(
        self, item: Item, x: np.ndarray, finite: np.bool_, found: Score, spread_out: spread.Spread | None
    ) -> None:
        """Write one image's results and its record; what goes wrong with it does not stop the others."""
        if not finite:
            self._fail(item.job, "diverged to NaN or infinity, not written; lower the solver's step length")
            return
        try:
            record = self._write(item, x, found, spread_out)
        except OSError as error:  # a full disk, a name that is too long
            self._fail(item.job, results.why_not_written(error))
            return
        with self._telling:
            self._watch.restored(record)

    def _write(self, item: Item, x: np.ndarray, found: Score, spread_out: spread.Spread | None) -> Record:
        """Write the results, then the record."""
        self.store.forget(item.job.stem)
        metrics, notes, written = dict(found.metrics), list(item.notes), {}
        if spread_out is not None:
            metrics |= spread.metrics(spread_out, item.truth)
            notes += spread.notes(spread_out)
            written = spread.write(item, spread_out, self.settings)
        written |= results.write(item, x, found, self.settings)
        record = Record(
            name=item.job.stem,
            fingerprint=self._fingerprint(item.sha256),
            status="ok",
            message="",
            input=str(item.job.path),
            input_sha256=item.sha256,
            metrics=metrics,
            sigma_y=item.sigma_y,
            files={kind: self.store.relative(path) for kind, (path, _) in written.items()},
            sha256={kind: sha256 for kind, (_, sha256) in written.items()},
            notes=notes,
            made=self.store.run,
            network_evaluations=self.record["cost_per_image"]["network_evaluations"],
            network_gradients=self.record["cost_per_image"]["network_gradients"],
        )
        self.store.save(item.job.stem, record)
        return record


def _has_result(job: Job) -> bool:
    return any(map(os.path.exists, result_paths("restored", job)))  # of a name that is too long, too


def evaluation_flops(prior: Prior) -> float:
    """Count the floating-point operations of denoising one image, windows and all, without compiling it."""
    prior, times = evaluations(prior)
    x = jax.ShapeDtypeStruct(prior.image_shape, jnp.float32)
    level = jax.tree.map(lambda column: jax.ShapeDtypeStruct((), jnp.float32), prior.schedule.levels(1)[0])
    return times * count_flops(lambda prior, x, level: prior.denoise(x, level), prior, x, level)


def _ahead(values: Iterator[T], depth: int) -> Iterator[T]:
    """Compute the next values of an iterator in a thread of its own, while the present one is used."""
    end: Any = object()
    pool = ThreadPoolExecutor(1, "read")
    try:
        coming = collections.deque(pool.submit(next, values, end) for _ in range(depth))
        while (value := coming.popleft().result()) is not end:
            coming.append(pool.submit(next, values, end))
            yield value
    finally:
        pool.shutdown(cancel_futures=True)
