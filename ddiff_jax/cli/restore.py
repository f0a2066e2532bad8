"""`ddiff restore`: degrade images or take measurements, restore them, and write pictures and metrics."""

import contextlib
import dataclasses
import datetime
import json
import math
import signal
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import jax
import numpy as np
import yaml

from ddiff_jax import image_files
from ddiff_jax._solve import Progress, Solution
from ddiff_jax.checkpoint import load_prior
from ddiff_jax.cli.console import Bar, Console
from ddiff_jax.cli.environment import cache_folder, evaluation_flops, use_compilation_cache
from ddiff_jax.cli.settings import Request, read
from ddiff_jax.files import file_hash
from ddiff_jax.operators import Operator
from ddiff_jax.priors import DiffusionPrior
from ddiff_jax.restarts import solve_restarts
from ddiff_jax.restoration import document, results
from ddiff_jax.restoration.batches import Batch, Score, batches, score, tell
from ddiff_jax.restoration.jobs import LISTED, Job, find_jobs, prepare, some
from ddiff_jax.restoration.machine import choose_batch_size, describe, image_mesh, out_of_memory, versions
from ddiff_jax.restoration.reading import Item, Reader
from ddiff_jax.restoration.records import fingerprint
from ddiff_jax.restoration.store import Record, Store, decided_by
from ddiff_jax.solvers.base import check_operator, count_steps

TOLD = ("psnr", "psnr_resolved", "ssim", "misfit")  # keys of metrics.json, in the order of a line
CHUNKS = 40  # how often per batch the host regains control, for the bar and for Ctrl-C


def run(argv: Sequence[str]) -> int:
    """Run the command and return its exit code."""
    request = read(argv)
    if request.options.print_config:
        print(yaml.safe_dump(request.settings.as_dict(), sort_keys=False), end="")
        return 0
    if request.options.cache:
        use_compilation_cache()
    with _terminable():
        return _Restoration(request).run()


@contextlib.contextmanager
def _terminable() -> Iterator[None]:
    """Make SIGTERM do what Ctrl-C does."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    earlier = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, earlier)


def warm_up(request: Request) -> None:
    """Compile every program that such a restoration needs, into the cache, on a grey picture."""
    height, width, channels = request.settings.shape
    with tempfile.TemporaryDirectory() as folder:
        grey = Path(folder) / "grey.png"
        image_files.write_png(grey, np.zeros((height, width, channels), np.float32))
        options = dataclasses.replace(request.options, inputs=(str(grey),), output=Path(folder) / "out", quiet=True)
        settings = dataclasses.replace(request.settings, measured=False, full_scale=None, estimated=False)
        with _terminable():
            _Restoration(Request(options, settings), only_compile=True).run()


class _Restoration:
    """One call of the command: what it was told, and what has been done so far."""

    def __init__(self, request: Request, *, only_compile: bool = False):
        self._only_compile = only_compile
        self.settings, self.options = request.settings, request.options
        self.console = Console(quiet=self.options.quiet)
        self.rows: list[dict[str, Any]] = []
        self.left_out: list[str] = []
        self.failed: dict[str, str] = {}
        self.record: dict[str, Any] = {}
        self._decided: str | None = None
        self.seconds = {"compile": 0.0, "run": 0.0}

    def run(self) -> int:
        """Do the work; the exit code says whether all went well."""
        for note in self.settings.notes:
            self.console.say(f"note: {note}")
        jobs = self._jobs()
        prepare(self.options.output)
        document.check(self.options.output)
        self.store = Store(self.options.output)
        todo = self._unless_existing(jobs)
        interrupted = False
        merged: dict[str, Any] = {}
        try:
            if todo:
                self._restore_all(todo)
        except KeyboardInterrupt:
            interrupted = True
        finally:
            if self.record:
                self.store.save_run(self.record)
            if self.record or len(todo) < len(jobs):
                merged = document.merge(self.store)
        if not self.record and len(self.failed) == len(jobs):
            return 2  # nothing but bad input: nothing was computed
        self._summary()
        if self.options.json:
            print(json.dumps(merged, indent=1))
        if interrupted:
            done = {row["name"] for row in self.rows}
            missing = [str(j.path) for j in todo if j.stem not in done and str(j.path) not in self.failed]
            self.console.fail(f"interrupted; not restored: {some(missing)}; the same command continues")
            return 130
        return 1 if self.failed else 0

    def _jobs(self) -> list[Job]:
        if self.options.inputs:
            found = find_jobs(self.options.inputs, self.options.output, recursive=self.options.recursive)
            self.left_out = found.left_out
            return found.jobs
        if self.settings.measured:
            raise ValueError("--measured says that INPUT is a measurement, but no INPUT is given")
        sample = Path(str(resources.files("ddiff_jax"))) / "assets" / "sample.png"
        return [Job(sample, "sample", "", self.options.output)]

    def _unless_existing(self, jobs: list[Job]) -> list[Job]:
        """Apply --existing."""
        there = [job for job in jobs if job.result("restored").exists()]
        if there and self.options.existing == "error":
            raise ValueError(
                f"{there[0].result('restored')} exists ({len(there)} of {len(jobs)} results do); "
                "choose another --output, or --existing skip or overwrite"
            )
        if self.options.existing == "overwrite":
            return jobs
        standing = {job: self.store.standing(job.stem, self._fingerprint(job)) for job in jobs}
        done = [job for job in jobs if standing[job] in ("done", "other")]
        todo = [job for job in jobs if job not in set(done)]
        again = [str(j.path) for j in todo if standing[j] == "damaged" or j.result("restored").exists()]
        if again:
            self.console.say(f"made again {len(again)}, whose results or rows are missing or damaged: {some(again)}")
        if done:
            others = [job for job in done if standing[job] == "other"]
            changed = sorted({name for job in others for name in self._differences(job)})
            other = f", made with another {', '.join(changed)}" if changed else ""
            self.console.say(
                f"skipped {len(done)} of {len(jobs)}: {self.options.output} holds their results{other}; "
                "--existing overwrite replaces them"
            )
        return todo

    def _fingerprint(self, job: Job, sha256: str | None = None) -> str:
        """Bind the settings to an input; one that is gone is the same as it was."""
        if self._decided is None:
            self._decided = decided_by(self.settings)
        if sha256 is None and job.path.is_file():
            sha256 = file_hash(job.path)
        earlier = self.store.load(job.stem) if sha256 is None else None
        return fingerprint(self._decided, earlier.input_sha256 if earlier is not None else sha256)

    def _differences(self, job: Job) -> list[str]:
        """Name what differs between an image's earlier run and this one: settings, weights or files, or the input."""
        record = self.store.load(job.stem)
        if record is None:
            return []
        earlier = (self.store.made_by(record.made) or {}).get("settings", {})
        settings = json.loads(json.dumps(self.settings.as_dict()))
        different = [key for key in settings.keys() | earlier.keys() if settings.get(key) != earlier.get(key)]
        if job.path.is_file() and record.input_sha256 != file_hash(job.path):
            different.append("input")
        return different or ["set of weights, masks or kernels"]

    def _fail(self, job: Job, message: str) -> None:
        self.failed[str(job.path)] = message
        self.console.fail(message if str(job.path) in message else f"{job.path}: {message}")

    def _restore_all(self, jobs: list[Job]) -> None:
        size = choose_batch_size(self.options.batch_size, len(jobs))
        reader = Reader(self.settings)
        for path, note in reader.notes:
            self.console.note(str(path), note)
        prior: DiffusionPrior | None = None
        bar = Bar(self.console, math.ceil(len(jobs) / size), len(jobs))
        with bar.live:
            for batch in batches(reader, jobs, size, self._fail):
                for item in batch.items:
                    for note in item.notes:
                        self.console.note(str(item.job.path), note)
                if prior is None:
                    prior = load_prior(self.settings.prior, dtype=self.settings.dtype).with_label(self.settings.label)
                    self._announce(prior, batch.operator, len(jobs), size)
                self._save(batch, self._solve(prior, batch, bar))

    def _announce(self, prior: DiffusionPrior, operator: Operator, num_images: int, batch_size: int) -> None:
        """Say before compiling what is about to happen, and note it for metrics.json."""
        settings, device = self.settings, jax.devices()[0]
        solver, told = settings.solver, settings.as_dict()
        check_operator(solver, operator)
        num_steps = count_steps(solver, prior.schedule)
        cost = solver.cost(operator) * num_steps * settings.restarts
        gflop = evaluation_flops(prior) / 1e9
        card = settings.card
        self.record = {
            "settings": told,
            "batch_size": batch_size,
            "network_evaluations": cost.network_evaluations,
            "cost_per_image": dataclasses.asdict(cost),
            "gigaflop_per_evaluation": gflop,
            "prior": {"name": settings.prior, **dataclasses.asdict(card)},
            "device": {"platform": device.platform, "kind": device.device_kind, "count": jax.device_count()},
            "versions": versions(),
            "started": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            "seconds": self.seconds,
            "failed": self.failed,
        }
        shape = "x".join(map(str, prior.image_shape))
        details = ", ".join(f"{k} {v}" for k, v in told["operator"].items() if k != "name")
        # A pass backwards through the network computes the gradient of the input only, but goes forwards once more.
        level = "estimated for each image" if settings.estimated else f"{settings.sigma_y:g}"
        total = num_images * (cost.network_evaluations + 2 * cost.network_gradients) * gflop / 1000
        spent = [f"{n} {what.replace('_', ' ')}" for what, n in dataclasses.asdict(cost).items() if n]
        rows = {
            "device": describe(device) + f", {jax.device_count()} of them" * (jax.device_count() > 1),
            "prior": f"{settings.prior}, {card.num_parameters / 1e6:.2f} million parameters, {shape}, {settings.dtype}",
            "task": f"{settings.task} ({details}), sigma_y {level}, preset {settings.dataset}, "
            f"{settings.values} values",
            "solver": ", ".join([settings.method, f"{spent[0]} of {gflop:.2f} GFLOP", *spent[1:]]) + " per image",
            "images": f"{num_images} in batches of {batch_size}: {total:.3g} TFLOP in all",
        }
        for name, text in rows.items():
            self.console.say(f"{name:<8}{text}")
        self.console.say("compiling" + (f" (cache: {cache_folder()}) ..." if self.options.cache else " ..."))

    def _solve(self, prior: DiffusionPrior, batch: Batch, bar: Bar) -> Solution:
        started = time.monotonic()

        def on_chunk(progress: Progress) -> bool:
            nonlocal started
            if progress.step == 0 and not self.seconds["compile"]:
                self.seconds["compile"] = time.monotonic() - started
                started = time.monotonic()
                self.console.say(f"compiled in {self.seconds['compile']:.1f} s")
                bar.start()
            elif progress.step:
                misfit = float(np.mean(progress.misfit[: len(batch.items)]))
                bar.update(batch.index, progress.step, progress.num_steps, batch.num_before, misfit)
            return self._only_compile

        with out_of_memory(len(batch.y)):
            restarts = solve_restarts(
                self.settings.solver,
                prior,
                batch.operator,
                batch.y,
                batch.sigma_y,
                batch.keys,
                restarts=self.settings.restarts,
                likelihood=self.settings.likelihood,
                operator_axis=batch.operator_axis,
                num_chunks=CHUNKS,
                on_chunk=on_chunk,
                mesh=image_mesh(len(batch.y) * self.settings.restarts),
            )
            solution = jax.device_get(restarts.solution)
        self.seconds["run"] += time.monotonic() - started
        return solution

    def _save(self, batch: Batch, solution: Solution) -> None:
        """Write what a batch gave; nothing that is written gets lost by what comes later."""
        scores = score(batch, solution.x)
        self.store.save_run(self.record)
        for i, item in enumerate(batch.items):
            if not solution.finite[i]:
                self._fail(item.job, "diverged to NaN or infinity, not written; lower the solver's step length")
                continue
            try:
                self._keep(item, np.asarray(solution.x[i]), scores[i])
            except OSError as error:  # a full disk, a name that is too long: the other images go on
                self._fail(item.job, f"its results cannot be written: {error.strerror}")

    def _keep(self, item: Item, x: np.ndarray, found: Score) -> None:
        """Write one image's results, then its record."""
        self.store.forget(item.job.stem)
        written = results.write(item, x, found, self.settings)
        record = Record(
            name=item.job.stem,
            fingerprint=self._fingerprint(item.job, item.sha256),
            status="ok",
            message="",
            input=str(item.job.path),
            input_sha256=item.sha256,
            metrics=found.metrics,
            sigma_y=item.sigma_y,
            files={kind: self.store.relative(path) for kind, (path, _) in written.items()},
            sha256={kind: sha256 for kind, (_, sha256) in written.items()},
            notes=list(item.notes),
            made=self.store.run,
            network_evaluations=self.record["cost_per_image"]["network_evaluations"],
            network_gradients=self.record["cost_per_image"]["network_gradients"],
        )
        self.store.save(item.job.stem, record)
        self.rows.append(document.row(record))

    def _summary(self) -> None:
        """Say how it went and where the results are."""
        say, rows = self.console.say, self.rows
        for row in rows[:LISTED] if len(rows) > 1 else []:
            say(f"  {row['name']:<24} {tell(row, TOLD)}")
        if len(rows) > LISTED:
            say(f"  and {len(rows) - LISTED} more, see metrics.json")
        if rows:
            mean = {name: np.mean([row[name] for row in rows]) for name in TOLD if rows[0].get(name) is not None}
            say(f"restored {len(rows)} in {self.seconds['run']:.1f} s: {'mean ' * (len(rows) > 1)}{tell(mean, TOLD)}")
        if self.failed:
            say(f"failed {len(self.failed)}: {some(list(self.failed))}")
        if self.console.cautioned:
            say(f"warned about {len(self.console.cautioned)}, see above: {some(self.console.cautioned)}")
        for line in self.left_out:
            say(f"left out of {line}")
        say(f"results in {self.options.output}/")
