"""`ddiff calibrate`: measure how well solvers reproduce posteriors that are known."""

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import tyro

from ddiff_jax import image_files
from ddiff_jax.cli.changes import read_changes
from ddiff_jax.cli.console import Console
from ddiff_jax.cli.environment import use_compilation_cache
from ddiff_jax.cli.flags import parse
from ddiff_jax.names import check_name
from ddiff_jax.noise import check_seed
from ddiff_jax.restoration.jobs import prepare
from ddiff_jax.solvers import SOLVERS

DESCRIPTION = """Measure how well solvers reproduce posteriors that are known: coverage by highest posterior density and
by coordinate, ranks, the gap of the mean, the spread, and the distance to exact samples. Every solver gets a label for
every cell, which is a problem with its prior: posterior, wrong modes, overconfident, diffuse, point, approximate or
biased.

examples:
  ddiff calibrate                                  all solvers that aim at the posterior, beside DDiff and exact samples
  ddiff calibrate --solver ddrm diffpir --cell M8/quadrants
  ddiff calibrate --solver dps --set dps:zeta=1 dps:num-steps=200 --output dps1
  ddiff calibrate --solver mine:solver exact --cell mine:cell

Writes calibration.json, calibration.md and report.html. MODULE:NAME is a solver or a ddiff_jax.calibration.Cell of your
own in ./MODULE.py, or a function that makes one. What was measured with the same settings is not measured again, so a
command that was stopped goes on.
"""
DATASET = "faces64"  # any: solvers have the same flags on all
FULL_PROBLEMS = 1000


@dataclasses.dataclass(frozen=True)
class Options:
    """What to measure.

    Args:
        solver: Names of solvers, MODULE:NAME for your own, or exact for samples of the posterior itself; by default
            exact, ddiff and all that aim at the posterior.
        cell: Names of cells, or MODULE:NAME for your own; by default a few.
        full: Take all cells, with 1000 problems each, which takes hours.
        problems: Problems of every cell; by default as many as it asks for.
        samples: Samples of every problem, 19, 39, 59 and so on.
        set: Other hyper-parameters of a solver, as NAME:FLAG=VALUE.
        seed: Draws problems, measurements and samples.
        output: Folder for tables, page and records.
        cache: Keep compiled programs in the user's cache folder for the next run.
        quiet: Print errors and the table only.
        json: Print the findings as JSON instead of the table.
    """

    solver: Annotated[tuple[str, ...], tyro.conf.arg(metavar="NAME ...")] = ()
    cell: Annotated[tuple[str, ...], tyro.conf.arg(metavar="NAME ...")] = ()
    full: tyro.conf.FlagCreatePairsOff[bool] = False
    problems: Annotated[int | None, tyro.conf.arg(metavar="INT")] = None
    samples: int = 19
    set: tuple[str, ...] = ()
    seed: int = 0
    output: Path = Path("calibration")
    cache: bool = True
    quiet: tyro.conf.FlagCreatePairsOff[bool] = False
    json: tyro.conf.FlagCreatePairsOff[bool] = False


def run(argv: Sequence[str]) -> int:
    """Run the command and return its exit code."""
    options = parse(Options, argv, prog="ddiff calibrate", description=DESCRIPTION + _known())
    from ddiff_jax.calibration import DEFAULT, FULL, Watch, calibrate_all, default_solvers, find_solver

    check_seed(options.seed, "--seed")
    names = list(dict.fromkeys(options.solver or default_solvers()))
    changes = _changes(options.set, names)
    solvers = [find_solver(name, changes.get(name)) for name in names]
    cells = options.cell or (FULL if options.full else DEFAULT)
    problems = FULL_PROBLEMS if options.full and options.problems is None else options.problems
    prepare(options.output)
    if options.cache:
        use_compilation_cache()
    console, done = Console(quiet=options.quiet), []

    def found(findings: Any, again: bool) -> None:
        done.append(findings)
        console.say(f"[{len(done)}/{len(solvers) * len(set(cells))}] {_line(findings)}" + " (found before)" * again)

    try:
        calibrate_all(
            *(solvers, cells, options.output / "records"),
            seed=options.seed,
            num_problems=problems,
            num_samples=options.samples,
            watch=Watch(console.say, found),
        )
    finally:
        if done:
            _write(options, done, console)
    is_bad = [f for f in done if f.measures is None and (options.solver or not f.why)]
    for findings in is_bad:
        console.fail(f"{findings.solver} on {findings.cell}: {findings.why or 'its samples are not finite'}")
    return 1 if is_bad else 0


def _known() -> str:
    from ddiff_jax.calibration import CELLS, default_solvers

    return f"\n  solvers  {', '.join(dict.fromkeys((*default_solvers(), *SOLVERS)))}\n  cells    {', '.join(CELLS)}"


def _changes(texts: Sequence[str], names: Sequence[str]) -> dict[str, dict[str, Any]]:
    for text in texts:
        name = text.partition("=")[0].rpartition(":")[0]
        if name:
            check_name("solver that is changed", name, [name for name in names if name in SOLVERS])
    return read_changes(texts, DATASET)


def _line(found: Any) -> str:
    """Tell one finding in a line."""
    where, measures = f"{found.solver} on {found.cell}: ", found.measures
    if measures is None:
        return where + (f"not run: {found.why}" if found.why else "its samples are not finite")
    fifty, ninety = measures.coverage.values
    return (
        f"{where}{found.label}; coverage {fifty:.2f} {ninety:.2f}, gap {measures.gap:.2f} dB, "
        f"spread {measures.spread:.2f}, {found.seconds:.1f} s"
    )


def _write(options: Options, done: Sequence[Any], console: Console) -> None:
    """Write all that was found, and print it."""
    from ddiff_jax.calibration import document, labels, to_document, to_text, write_page

    words, folder = labels(done), options.output
    text = json.dumps(document(done, words), indent=1)
    image_files.write_text(folder / "calibration.json", text + "\n")
    image_files.write_text(folder / "calibration.md", to_document(done, words))
    page = write_page(done, words, folder)
    print(text if options.json else to_text(done, words))
    console.say(f"report: {page}")
