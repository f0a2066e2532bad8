"""`ddiff sample`: draw images from a prior alone, by DDIM or DDPM."""

import dataclasses
import datetime
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import jax
import numpy as np
import tyro
from jaxtyping import Float

from ddiff_jax import image_files
from ddiff_jax._solve import Progress, Solution
from ddiff_jax.checkpoint import Card, load_prior, read_card
from ddiff_jax.cli.console import Bar, Console
from ddiff_jax.cli.environment import use_compilation_cache
from ddiff_jax.cli.flags import parse
from ddiff_jax.drawing import tile
from ddiff_jax.noise import check_seed
from ddiff_jax.priors import DiffusionPrior
from ddiff_jax.restoration.jobs import prepare
from ddiff_jax.restoration.machine import choose_batch_size, device_in_words, versions
from ddiff_jax.restoration.settings import check_label
from ddiff_jax.sampling import batches, draw
from ddiff_jax.solvers.base import count_steps
from ddiff_jax.solvers.sampling import Sampler, Unmeasured

MOST = 1_000_000  # samples of one call; more take another --seed
MOST_SHOWN = 100  # that many samples at most are shown together
SAVE_SECONDS = 60.0  # between two writings of samples.json, which grows with the samples

DESCRIPTION = """Draw images from a prior alone, without a measurement.

Writes sample_0000.png, sample_0001.png, ..., all together as grid.png, and samples.json.
"""


@dataclasses.dataclass(frozen=True)
class Options:
    """What to draw.

    Args:
        count: Number of images.
        output: Folder for the results.
        prior: Name of a packaged prior, the folder of a converted one, or hf:OWNER/MODEL.
        label: Class of the images, for a class-conditional prior.
        steps: Network evaluations per image, spread evenly over the noise schedule.
        eta: Share of new noise in every step, from 0 to 1: 0 is DDIM, 1 with all steps is DDPM.
        seed: Root of all random numbers; sample i does not depend on how many are drawn.
        batch_size: Images drawn together; by default all, at most 8 of 64x64 pixels, fewer of larger ones,
            per device (16 of any size on accelerators).
        dtype: Computation type of the network.
        existing: What to do when the folder holds samples already.
        cache: Keep compiled programs in the user's cache folder for the next run.
        quiet: Print errors only.
        json: Print samples.json to standard output.
    """

    count: int = 16
    output: Path = Path("samples")
    prior: str = "faces64"
    label: Annotated[int | None, tyro.conf.arg(metavar="INT")] = None
    steps: int = 100
    eta: float = 0.0
    seed: int = 0
    batch_size: Annotated[int | None, tyro.conf.arg(metavar="INT")] = None
    dtype: Literal["float32", "bfloat16"] = "float32"
    existing: Literal["error", "overwrite"] = "error"
    cache: bool = True
    quiet: tyro.conf.FlagCreatePairsOff[bool] = False
    json: tyro.conf.FlagCreatePairsOff[bool] = False


def run(argv: Sequence[str]) -> int:
    """Run the command and return its exit code."""
    options = parse(Options, argv, prog="ddiff sample", description=DESCRIPTION)
    card, sampler = read_card(options.prior), Sampler(eta=options.eta, num_steps=options.steps)
    check_label(options.label, card.architecture.get("num_classes"))
    if not 1 <= options.count <= MOST:
        raise ValueError(f"--count must be from 1 to {MOST}; got {options.count}")
    check_seed(options.seed, "--seed")
    size = choose_batch_size(options.batch_size, options.count, card.image_shape)
    prepare(options.output)
    earlier = sorted(options.output.glob("sample_*.png"))
    if earlier and options.existing == "error":
        raise ValueError(f"{earlier[0]} exists; choose another --output, or --existing overwrite")
    if options.cache:
        use_compilation_cache()
    prior = load_prior(options.prior, dtype=options.dtype).with_label(options.label)
    count_steps(sampler, prior.schedule)  # says now what is wrong with the number of steps
    return _Sampling(options, card, prior, sampler, size).run()


class _Sampling:
    """One call of the command: what it was told, and what has been done so far."""

    def __init__(self, options: Options, card: Card, prior: DiffusionPrior, sampler: Sampler, size: int):
        self.options, self.card, self.prior, self.sampler, self.size = options, card, prior, sampler, size
        self.console = Console(quiet=options.quiet)
        self.rows: list[dict[str, Any]] = []
        self.shown: list[np.ndarray] = []
        self.seconds = {"compile": 0.0, "run": 0.0}
        self.started = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")

    def run(self) -> int:
        """Draw batch by batch; what is drawn is written before the next batch starts."""
        options, say = self.options, self.console.say
        numbers = batches(options.count, self.size)
        kind = "DDIM" if options.eta == 0 else f"eta {options.eta:g}"
        say(f"{options.count} images of {options.prior} in batches of {self.size}, {options.steps} steps, {kind}")
        saved = time.monotonic()
        bar = Bar(self.console, len(numbers), options.count, "sampling")
        try:
            with bar.live:
                for batch, indices in enumerate(numbers):
                    solution = self._draw(batch, indices, bar)
                    for x, finite, index in zip(solution.x, solution.finite, indices, strict=True):
                        if index < options.count:  # the last batch is filled up
                            self._write(int(index), np.asarray(x), bool(finite))
                    if time.monotonic() - saved > SAVE_SECONDS:
                        self._save()
                        saved = time.monotonic()
        finally:
            document = self._save() if self.rows else {}
        if options.json:
            print(json.dumps(document, indent=1))
        good = sum(row["finite"] for row in self.rows)
        say(f"drew {good} in {self.seconds['run']:.1f} s; see {options.output / 'grid.png'}")
        return 0 if good == options.count else 1

    def _draw(self, batch: int, indices: np.ndarray, bar: Bar) -> Solution:
        started = time.monotonic()

        def on_chunk(progress: Progress) -> None:
            nonlocal started
            if progress.step:
                bar.update(batch, progress.step, progress.num_steps, batch * self.size)
            elif batch == 0:
                self.seconds["compile"] = time.monotonic() - started
                started = time.monotonic()
                self.console.say(f"compiled in {self.seconds['compile']:.1f} s")
                bar.start()

        solution = draw(self.sampler, self.prior, self.options.seed, indices, on_chunk)
        self.seconds["run"] += time.monotonic() - started
        return solution

    def _write(self, index: int, x: Float[np.ndarray, "H W C"], finite: bool) -> None:
        name = f"sample_{index:04d}"
        if finite:
            image_files.write_png(self.options.output / f"{name}.png", x)
            self.shown += [x] * (len(self.shown) < MOST_SHOWN)
        else:
            self.console.fail(f"{name} diverged to NaN or infinity, not written")
        self.rows.append({"name": name, "index": index, "finite": finite})

    def _save(self) -> dict[str, Any]:
        """Write the grid and samples.json as far as they go."""
        options, device = self.options, jax.devices()[0]
        if self.shown:
            image_files.write_png(options.output / "grid.png", tile(self.shown))
        cost = self.sampler.cost(Unmeasured(self.prior.image_shape)) * options.steps
        document = {
            "samples": self.rows,
            "settings": {
                **{name: getattr(options, name) for name in ("count", "label", "steps", "eta", "seed", "dtype")},
                "prior": options.prior,
            },
            "batch_size": self.size,
            "cost_per_image": dataclasses.asdict(cost),
            "prior": {"name": options.prior, **dataclasses.asdict(self.card)},
            "device": {"platform": device.platform, "kind": device_in_words(device), "count": jax.device_count()},
            "versions": versions(),
            "started": self.started,
            "seconds": self.seconds,
        }
        image_files.write_text(options.output / "samples.json", json.dumps(document, indent=1) + "\n")
        return document
