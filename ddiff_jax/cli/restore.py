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
from collections.abc import Iterator, Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import yaml

from ddiff_jax import image_files
from ddiff_jax._solve import Progress, Solution
from ddiff_jax.checkpoint import load_prior
from ddiff_jax.cli import results
from ddiff_jax.cli.batches import Batch, Reader, batches, score
from ddiff_jax.cli.console import Bar, Console
from ddiff_jax.cli.environment import (
    cache_folder,
    choose_batch_size,
    describe,
    evaluation_flops,
    image_mesh,
    use_compilation_cache,
    versions,
)
from ddiff_jax.cli.jobs import LISTED, Job, Ledger, find_jobs, prepare, some
from ddiff_jax.cli.settings import Settings, resolve
from ddiff_jax.metrics import psnr
from ddiff_jax.operators import Operator
from ddiff_jax.priors import DiffusionPrior
from ddiff_jax.restarts import nearest_equivalent, solve_restarts
from ddiff_jax.solvers.base import count_steps, require_operator

CHUNKS = 40  # how often per batch the host regains control, for the bar and for Ctrl-C


def run(argv: Sequence[str]) -> int:
    """Run the command and return its exit code."""
    settings = resolve(argv)
    if settings.options.print_config:
        print(yaml.safe_dump(settings.as_dict(), sort_keys=False), end="")
        return 0
    if settings.options.cache:
        use_compilation_cache()
    with _terminable():
        return _Restoration(settings).run()


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


def warm_up(settings: Settings) -> None:
    """Compile every program that a restoration with these settings needs, into the cache, on a grey picture."""
    height, width, channels = settings.shape
    with tempfile.TemporaryDirectory() as folder:
        grey = Path(folder) / "grey.png"
        image_files.write_png(grey, np.zeros((height, width, channels), np.float32))
        options = dataclasses.replace(
            settings.options,
            inputs=(str(grey),),
            output=Path(folder) / "out",
            measured=False,
            full_scale=None,
            quiet=True,
        )
        settings = dataclasses.replace(settings, options=options, estimated=False)
        with _terminable():
            _Restoration(settings, only_compile=True).run()


class _Restoration:
    """One call of the command: what it was told, and what has been done so far."""

    def __init__(self, settings: Settings, *, only_compile: bool = False):
        self._only_compile = only_compile
        self.settings, self.options = settings, settings.options
        self.console = Console(quiet=self.options.quiet)
        self.rows: list[dict[str, Any]] = []
        self.left_out: list[str] = []
        self.failed: dict[str, str] = {}
        self.record: dict[str, Any] = {}
        self.seconds = {"compile": 0.0, "run": 0.0}

    def run(self) -> int:
        """Do the work; the exit code says whether all went well."""
        for note in self.settings.notes:
            self.console.say(f"note: {note}")
        jobs = self._jobs()
        prepare(self.options.output)
        self.ledger = Ledger(self.options.output)
        todo = self._unless_existing(jobs)
        interrupted = False
        document: dict[str, Any] = {}
        try:
            if todo:
                self._restore_all(todo)
        except KeyboardInterrupt:
            interrupted = True
        finally:
            if self.record:
                self.ledger.save_run(self.record)
            if self.record or len(todo) < len(jobs):
                document = self.ledger.merge()
        if not self.record and len(self.failed) == len(jobs):
            return 2  # nothing but bad input: nothing was computed
        self._summary()
        if self.options.json:
            print(json.dumps(document, indent=1))
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
        if self.options.measured:
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
        done = {job for job in jobs if self.ledger.is_done(job)}
        todo = [job for job in jobs if job not in done]
        again = [str(job.path) for job in todo if self.ledger.has_traces(job)]
        if again:
            self.console.say(f"made again {len(again)}, whose results or rows are missing or damaged: {some(again)}")
        if done:
            settings = self.settings.as_dict()
            changed = sorted({name for job in done for name in self.ledger.differences(job, settings)})
            other = f", made with another {', '.join(changed)}" if changed else ""
            self.console.say(
                f"skipped {len(done)} of {len(jobs)}: {self.options.output} holds their results{other}; "
                "--existing overwrite replaces them"
            )
        return todo

    def _fail(self, job: Job, message: str) -> None:
        self.failed[str(job.path)] = message
        self.console.fail(message if str(job.path) in message else f"{job.path}: {message}")

    def _restore_all(self, jobs: list[Job]) -> None:
        size = choose_batch_size(self.options.batch_size, len(jobs))
        if self.options.restarts < 1:
            raise ValueError(f"--restarts must be at least 1; got {self.options.restarts}")
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
                    prior = load_prior(self.options.prior, dtype=self.options.dtype).with_label(self.options.label)
                    self._announce(prior, batch.operator, len(jobs), size)
                self._save(batch, self._solve(prior, batch, bar))

    def _announce(self, prior: DiffusionPrior, operator: Operator, num_images: int, batch_size: int) -> None:
        """Say before compiling what is about to happen, and note it for metrics.json."""
        options, settings, device = self.options, self.settings.as_dict(), jax.devices()[0]
        solver = self.settings.solver
        require_operator(solver, operator)
        num_steps = count_steps(solver, prior.schedule)
        cost = solver.cost(operator) * num_steps * options.restarts
        gflop = evaluation_flops(prior) / 1e9
        card = self.settings.card
        self.record = {
            "settings": settings,
            "batch_size": batch_size,
            "network_evaluations": cost.network_evaluations,
            "cost_per_image": dataclasses.asdict(cost),
            "gigaflop_per_evaluation": gflop,
            "prior": {"name": options.prior, **dataclasses.asdict(card)},
            "device": {"platform": device.platform, "kind": device.device_kind, "count": jax.device_count()},
            "versions": versions(),
            "started": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            "seconds": self.seconds,
            "failed": self.failed,
        }
        shape = "x".join(map(str, prior.image_shape))
        details = ", ".join(f"{k} {v}" for k, v in settings["operator"].items() if k != "name")
        # A pass backwards through the network computes the gradient of the input only, but goes forwards once more.
        level = "estimated for each image" if self.settings.estimated else f"{self.settings.sigma_y:g}"
        total = num_images * (cost.network_evaluations + 2 * cost.network_gradients) * gflop / 1000
        spent = [f"{n} {what.replace('_', ' ')}" for what, n in dataclasses.asdict(cost).items() if n]
        rows = {
            "device": describe(device) + f", {jax.device_count()} of them" * (jax.device_count() > 1),
            "prior": f"{options.prior}, {card.num_parameters / 1e6:.2f} million parameters, {shape}, {options.dtype}",
            "task": f"{options.task} ({details}), sigma_y {level}, preset {self.settings.dataset}, "
            f"{options.values} values",
            "solver": ", ".join([options.solver, f"{spent[0]} of {gflop:.2f} GFLOP", *spent[1:]]) + " per image",
            "images": f"{num_images} in batches of {batch_size}: {total:.3g} TFLOP in all",
        }
        for name, text in rows.items():
            self.console.say(f"{name:<8}{text}")
        self.console.say("compiling" + (f" (cache: {cache_folder()}) ..." if options.cache else " ..."))

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

        try:
            restarts = solve_restarts(
                self.settings.solver,
                prior,
                batch.problem(self.settings.likelihood),
                batch.keys,
                restarts=self.options.restarts,
                num_chunks=CHUNKS,
                on_chunk=on_chunk,
                mesh=image_mesh(len(batch.y) * self.options.restarts),
            )
            solution = jax.device_get(restarts.solution)
        except jax.errors.JaxRuntimeError as error:
            if "RESOURCE_EXHAUSTED" not in str(error):
                raise
            raise ValueError(f"out of memory with {len(batch.y)} images at once; lower --batch-size") from error
        self.seconds["run"] += time.monotonic() - started
        return solution

    def _save(self, batch: Batch, solution: Solution) -> None:
        """Write what a batch gave; nothing that is written gets lost by what comes later."""
        scores = score(batch, solution.x)
        self.ledger.save_run(self.record)
        for i, item in enumerate(batch.items):
            if item.truth is not None and hasattr(item.operator, "equivalents"):
                x = nearest_equivalent(item.operator, jnp.asarray(solution.x[i]), jnp.asarray(item.truth))
                scores[i].metrics["psnr_resolved"] = float(psnr(x, jnp.asarray(item.truth), protocol="standard"))
            if solution.finite[i]:
                self.rows.append(results.write(item, np.asarray(solution.x[i]), scores[i], self.settings))
                self.ledger.save_row(self.rows[-1])
            else:
                self._fail(item.job, "diverged to NaN or infinity, not written; lower the solver's step length")

    def _summary(self) -> None:
        """Say how it went and where the results are."""
        say, rows = self.console.say, self.rows
        for row in rows[:LISTED] if len(rows) > 1 else []:
            say(f"  {row['name']:<24} {_metrics(row)}")
        if len(rows) > LISTED:
            say(f"  and {len(rows) - LISTED} more, see metrics.json")
        if rows:
            mean = {name: np.mean([row[name] for row in rows]) for name in METRICS if rows[0].get(name) is not None}
            say(f"restored {len(rows)} in {self.seconds['run']:.1f} s: {'mean ' * (len(rows) > 1)}{_metrics(mean)}")
        if self.failed:
            say(f"failed {len(self.failed)}: {some(list(self.failed))}")
        if self.console.cautioned:
            say(f"warned about {len(self.console.cautioned)}, see above: {some(self.console.cautioned)}")
        for line in self.left_out:
            say(f"left out of {line}")
        say(f"results in {self.options.output}/")


METRICS = {
    "psnr": "PSNR {:.2f} dB",
    "psnr_resolved": "up to sign and turn {:.2f} dB",
    "ssim": "SSIM {:.3f}",
    "misfit": "misfit {:.5f}",
}


def _metrics(row: Mapping[str, Any]) -> str:
    return ", ".join(text.format(row[name]) for name, text in METRICS.items() if row.get(name) is not None)
