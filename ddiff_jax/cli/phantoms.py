"""`ddiff phantoms`: write random phantoms as pictures, to train or to test a prior for scanners."""

import dataclasses
import json
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Annotated, Literal

import tyro

from ddiff_jax import image_files
from ddiff_jax._version import __version__
from ddiff_jax.cli.console import Bar, Console
from ddiff_jax.cli.flags import parse
from ddiff_jax.files import Caution
from ddiff_jax.noise import check_seed
from ddiff_jax.phantoms import check_count, check_side, phantom
from ddiff_jax.restoration.jobs import prepare

WRITERS = 4  # threads: what takes long is to bring a small file to the disk
GROUP = 64  # pictures handed to the threads at a time

DESCRIPTION = """Write random phantoms, as tomography and magnetic resonance imaging have them: sections through bodies,
machine parts, foams and test objects, in grey, of any size and number.

Writes phantom_000000.png, phantom_000001.png, ..., and when all are written phantoms.json. A phantom depends on its
number and on the seed alone, and looks alike at every size.

examples:
  ddiff phantoms ct --count 20000
  ddiff phantoms unseen --count 100 --size 128 --seed 1"""


@dataclasses.dataclass(frozen=True)
class Options:
    """What to draw.

    Args:
        folder: Folder for the pictures.
        count: Number of pictures.
        size: Pixels along the side of each.
        seed: Root of all random numbers; phantom i does not depend on how many are drawn.
        existing: What to do when the folder holds phantoms already.
        quiet: Print errors only.
    """

    folder: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="FOLDER")]
    count: int = 2000
    size: int = 64
    seed: int = 0
    existing: Literal["error", "overwrite"] = "error"
    quiet: tyro.conf.FlagCreatePairsOff[bool] = False


def run(argv: Sequence[str]) -> int:
    """Run the command and return its exit code."""
    options = parse(Options, argv, prog="ddiff phantoms", description=DESCRIPTION)
    check_count(options.count, "--count")
    check_side(options.size, "--size")
    check_seed(options.seed, "--seed")
    prepare(options.folder, "FOLDER")
    earlier = sorted(options.folder.glob("phantom_*.png"))
    if earlier and options.existing == "error":
        raise ValueError(f"{earlier[0]} exists; choose another FOLDER, or --existing overwrite")
    console = Console(quiet=options.quiet)
    kind = f"phantoms of {options.size}x{options.size} pixels"
    console.say(f"{options.count} {kind}, seed {options.seed}")
    document = options.folder / "phantoms.json"
    document.unlink(missing_ok=True)  # it is there again when all that it says is true
    started = time.monotonic()
    _write(options, console)
    settings = {"seed": options.seed, "size": options.size, "count": options.count, "version": __version__}
    image_files.write_text(document, json.dumps(settings, indent=1) + "\n")
    others = {path.name for path in earlier} - {_name(index) for index in range(options.count)}
    if others:
        note = (
            f"holds {len(others)} older phantoms as well, such as {min(others)}; remove them unless they belong there"
        )
        console.note(str(options.folder), Caution(note))
    console.say(f"drew {options.count} {kind} in {time.monotonic() - started:.1f} s; see {options.folder}")
    return 0


def _name(index: int) -> str:
    return f"phantom_{index:06d}.png"


def _write(options: Options, console: Console) -> None:
    def write(index: int) -> None:
        image_files.write_png(options.folder / _name(index), phantom(options.seed, index, options.size))

    bar, pool = Bar(console, options.count, options.count, "drawing"), ThreadPoolExecutor(WRITERS)
    try:
        with bar.live:
            for start in range(0, options.count, GROUP):
                group = range(start, min(start + GROUP, options.count))
                for index, _ in zip(group, pool.map(write, group), strict=True):
                    bar.update(index, 1, 1, index + 1)
    finally:
        pool.shutdown(cancel_futures=True)  # an interruption waits for those that are being written
