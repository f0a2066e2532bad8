"""`ddiff restore`: degrade images or take measurements, restore them, and write pictures and metrics."""

import contextlib
import dataclasses
import json
import math
import tempfile
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import jax
import numpy as np
import yaml

from ddiff_jax import image_files
from ddiff_jax._solve import Progress
from ddiff_jax.cli.console import Bar, Console
from ddiff_jax.cli.environment import cache_folder, use_compilation_cache
from ddiff_jax.cli.settings import Request, read
from ddiff_jax.files import Caution
from ddiff_jax.metrics import METRICS
from ddiff_jax.priors import NoPrior, Prior
from ddiff_jax.restoration import document, spread
from ddiff_jax.restoration.batches import GAPS, Batch, tell
from ddiff_jax.restoration.jobs import LISTED, Job, find_jobs, prepare, some
from ddiff_jax.restoration.machine import choose_batch_size, device_in_words
from ddiff_jax.restoration.run import Restoration
from ddiff_jax.restoration.settings import SOURCE
from ddiff_jax.restoration.share import share_of
from ddiff_jax.restoration.store import Record, Store
from ddiff_jax.solvers import aim_of

SPREAD = ("mean_std", "psnr_mean", "psnr_sample", "coverage", "expected_coverage")  # keys too, of several samples
TOLD = ("psnr", "psnr_resolved", "ssim", "misfit")  # keys of metrics.json, in the order of a line

TOO_MUCH = (
    "this may not fit into the device's memory: lower --batch-size, take --dtype bfloat16, or a solver that does not "
    "differentiate the network, such as ddiff"
)


def run(argv: Sequence[str]) -> int:
    """Run the command and return its exit code."""
    request = read(argv)
    if request.options.print_config:
        print(yaml.safe_dump(request.settings.as_dict(), sort_keys=False), end="")
        return 0
    options = dataclasses.replace(request.options, cache=request.options.cache and use_compilation_cache())
    return _Command(dataclasses.replace(request, options=options)).run()


def warm_up(request: Request) -> None:
    """Compile every program that such a restoration needs, into the cache, on a grey image."""
    with tempfile.TemporaryDirectory() as folder:
        grey = Path(folder) / "grey.npy"
        image_files.write_array(grey, np.full(request.settings.shape, -0.1, np.float32))
        options = dataclasses.replace(request.options, inputs=(str(grey),), output=Path(folder) / "out", quiet=True)
        settings = dataclasses.replace(request.settings, measured=False, full_scale=None, estimated=False, units=None)
        _Command(Request(options, settings), only_compile=True).run()


class _Command:
    """One call of the command: it says how the restoration goes."""

    def __init__(self, request: Request, *, only_compile: bool = False):
        self.settings, self.options, self._only_compile = request.settings, request.options, only_compile
        self.console = Console(quiet=self.options.quiet)
        self.left_out: list[str] = []
        self.rows: list[dict[str, Any]] = []  # the first ones
        self.names: set[str] = set()
        self._is_told = True  # that metrics.json says what there is
        self._sums: dict[str, float] = {}
        self.share = share_of(self.options.shard, self.options.distributed)

    def run(self) -> int:
        """Do the work; the exit code says whether all went well."""
        for note in self.settings.notes:
            self.console.say(f"note: {note}")
        jobs = self._jobs()
        prepare(self.options.output)
        document.check(self.options.output)
        self.store = Store(self.options.output)
        self.work = Restoration(
            *(self.settings, self.store, self),
            only_compile=self._only_compile,
            save_every=self.options.save_every,
        )
        ours = self.share.of(jobs)
        todo = self._todo(ours)
        interrupted = False
        merged: dict[str, Any] = {}
        try:
            if todo:
                # By all images, not by what is missing of them: programs of other shapes round differently.
                self._size = choose_batch_size(self.options.batch_size, len(jobs), self.settings.card.image_shape)
                self._bar = Bar(self.console, math.ceil(len(todo) / self._size), len(todo))
                with self._bar.live:
                    self.work.run(todo, self._size)
        except KeyboardInterrupt:
            interrupted = True
        finally:
            if self.work.record or len(todo) < len(ours):
                merged = self._merge()
        if not self.work.record and ours and len(self.work.failed) == len(ours):
            return 2  # nothing but bad input: nothing was computed
        self._summary()
        if self.options.json:
            print(json.dumps(merged, indent=1))
        if interrupted:
            missing = [str(j.path) for j in todo if j.stem not in self.names and str(j.path) not in self.work.failed]
            self.console.fail(f"interrupted; not restored: {some(missing)}; the same command continues")
            return 130
        return 1 if self.work.failed or not self._is_told else 0

    def _merge(self) -> dict[str, Any]:
        """Write metrics.json; a full disk costs the file, not what is restored."""
        with contextlib.suppress(OSError):  # then it says what was known a while ago
            self.work.save_record()
        try:
            return document.merge(self.store)
        except OSError as error:
            self._is_told = False
            path = document.path_of(self.options.output)
            self.console.fail(f"{path} cannot be written: {error.strerror or error}; the same command writes it")
            return {}

    def _jobs(self) -> list[Job]:
        if self.options.inputs:
            found = find_jobs(self.options.inputs, self.options.output, recursive=self.options.recursive)
            self.left_out = found.left_out
            return found.jobs
        if self.settings.measured:
            raise ValueError("--measured says that INPUT is a measurement, but no INPUT is given")
        name = "sample" if self.settings.card.image_shape[-1] == 3 else "phantom"
        sample = Path(str(resources.files("ddiff_jax"))) / "assets" / f"{name}.png"
        return [Job(sample, name, "", self.options.output)]

    def _todo(self, jobs: list[Job]) -> list[Job]:
        """Apply --existing."""
        found = self.work.sort(jobs, self.options.existing)
        if found.again:
            again = some([str(job.path) for job in found.again])
            self.console.say(f"made again {len(found.again)}, whose results or rows are missing or damaged: {again}")
        if found.done:
            other = f", made with another {', '.join(found.differences)}" if found.differences else ""
            self.console.say(
                f"skipped {len(found.done)} of {len(jobs)}: {self.options.output} holds their results{other}; "
                "--existing overwrite replaces them"
            )
        return found.todo

    def note(self, about: str, text: str) -> None:
        """Say what was done to an input."""
        self.console.note(about, text)

    def failed(self, job: Job, message: str) -> None:
        """Say why an image has no result."""
        self.console.fail(message if str(job.path) in message else f"{job.path}: {message}")

    def begins(self, prior: Prior, num_images: int) -> None:
        """Say before compiling what is about to happen."""
        settings, device, record = self.settings, jax.devices()[0], self.work.record
        cost, gflop = record["cost_per_image"], record["gigaflop_per_evaluation"]
        shape = "x".join(map(str, settings.card.image_shape))
        details = ", ".join(f"{k} {v}" for k, v in record["settings"]["operator"].items() if k not in ("name", SOURCE))
        level = "estimated for each image" if settings.estimated else f"{settings.sigma_y:g}"
        # A pass backwards through the network computes the gradient of the input only, but goes forwards once more.
        total = num_images * (cost["network_evaluations"] + 2 * cost["network_gradients"]) * gflop / 1000
        spent = [f"{n} {what.replace('_', ' ')}" for what, n in cost.items() if n]
        spent[0] += f" of {gflop:.2f} GFLOP" * (cost["network_evaluations"] > 0)
        million, aim = settings.card.num_parameters / 1e6, record["aim"]
        network = f"{million:.2f} million parameters, {shape}, {settings.dtype}"
        rows = {
            "device": device_in_words(device) + f", {jax.device_count()} of them" * (jax.device_count() > 1),
            "prior": f"none: only images of {shape}" if isinstance(prior, NoPrior) else f"{settings.prior}, {network}",
            "task": f"{settings.task} ({details}), sigma_y {level}, preset {settings.dataset}, "
            f"{settings.values} values",
            "solver": ", ".join([settings.method, *spent]) + " per image",
            **({} if aim is None else {"aim": f"{aim['name']}: {aim['meaning'].partition(';')[0]}"}),
            "memory": str(self.work.plan),
            "images": f"{num_images} in batches of {self._size}: {total:.3g} TFLOP in all",
        }
        if settings.samples > 1 and (aim is None or aim["name"] != "posterior"):
            rows["samples"] = (
                f"{settings.samples} per image, which differ by how they started: no posterior uncertainty"
            )
        for name, text in rows.items():
            self.console.say(f"{name:<8}{text}")
        if self.work.plan is not None and not self.work.plan.fits:
            self.console.note("memory", Caution(TOO_MUCH))
        self.console.say("compiling" + (f" (cache: {cache_folder()}) ..." if self.options.cache else " ..."))

    def compiled(self, seconds: float) -> None:
        """Say how long compiling took."""
        self.console.say(f"compiled in {seconds:.1f} s")
        self._bar.start()

    def stepped(self, batch: Batch, progress: Progress) -> None:
        """Show how far a batch is."""
        misfit = float(np.mean(progress.misfit[: len(batch.items)]))
        count = len(batch.items)
        self._bar.update(batch.index, progress.step, progress.num_steps, batch.num_before, misfit, count=count)

    def restored(self, record: Record) -> None:
        """Count an image, and keep the first ones for the summary."""
        row = document.row(record)
        self.names.add(record.name)
        for name in (*TOLD, *SPREAD, *GAPS):
            if row.get(name) is not None:
                self._sums[name] = self._sums.get(name, 0.0) + row[name]
        if len(self.rows) < LISTED:
            self.rows.append(row)

    def _summary(self) -> None:
        """Say how it went and where the results are."""
        say, count = self.console.say, len(self.names)
        for row in self.rows if count > 1 else []:
            say(f"  {row['name']:<24} {tell(row, TOLD)}")
        if count > LISTED:
            say(f"  and {count - LISTED} more, see metrics.json")
        if count:
            mean = {name: total / count for name, total in self._sums.items()}
            say(f"restored {count} in {self.work.seconds['run']:.1f} s: {'mean ' * (count > 1)}{tell(mean, TOLD)}")
        gaps = [METRICS[GAPS[name]].say(self._sums[name] / count) for name in GAPS if name in self._sums]
        if gaps:
            say(f"restarts {self.settings.restarts}, kept by the misfit: picking by the truth adds {', '.join(gaps)}")
        if count and "mean_std" in self._sums:
            aim = aim_of(self.settings.solver)
            means = {name: self._sums[name] / count for name in SPREAD if name in self._sums}
            say(f"samples {self.settings.samples}: {spread.tell(means, aim)}")
        if self.work.failed:
            say(f"failed {len(self.work.failed)}: {some(list(self.work.failed))}")
        if self.console.cautioned:
            say(f"warned about {len(self.console.cautioned)}, see above: {some(self.console.cautioned)}")
        for line in self.left_out:
            say(f"left out of {line}")
        say(f"results in {self.options.output}/")
