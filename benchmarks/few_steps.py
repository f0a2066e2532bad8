"""Compare DDiff's published step lengths with the lengths it finds itself, at few network evaluations.

    python benchmarks/few_steps.py PHOTOGRAPHS [--count 8] [--steps 20 50 100] [--tasks super_resolution ...]

PHOTOGRAPHS is a folder of 64x64 pictures. Both get the same measurements, starts and noise. Prints the mean PSNR (range
2, clamped) with half of the 95% interval of the paired difference.
"""

import argparse
import inspect
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from tasks import runnable

import ddiff_jax as dd
from ddiff_jax import io, metrics
from ddiff_jax.config import task_preset
from ddiff_jax.operators import OPERATORS

T_975 = {2: 12.71, 4: 3.18, 8: 2.365, 16: 2.131, 32: 2.040}  # quantiles of Student's t for that many photographs


def main() -> None:
    """Run the comparison."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photographs", type=Path)
    parser.add_argument("--count", type=int, default=8, choices=sorted(T_975))
    parser.add_argument("--steps", type=int, nargs="+", default=[20, 50, 100])
    parser.add_argument("--tasks", nargs="+", default=[name for name in runnable() if name != "phase_retrieval"])
    parser.add_argument("--json", type=Path, help="also write the numbers here")
    arguments = parser.parse_args()
    paths = sorted(arguments.photographs.glob("*.png"))[: arguments.count]
    truth = jnp.asarray(np.stack([io.read_picture(path)[0] for path in paths]))
    shape = truth.shape[1:]
    prior, keys = dd.load_prior("faces64"), dd.image_keys(jax.random.key(0), jnp.arange(len(paths)))
    rows = []
    print("| task | steps | published gamma | no gamma | difference |\n|---|---|---|---|---|")
    for name in arguments.tasks:
        task = task_preset("faces64", name)
        make = OPERATORS[task.operator]
        is_random = "key" in inspect.signature(make).parameters and "key" not in task.arguments
        operator = make(shape, *([jax.random.key(1)] if is_random else []), **task.arguments)
        noise = None if task.photons is None else dd.Poisson(task.photons)
        y = jax.vmap(lambda x, key: dd.simulate(operator, x, task.sigma_y, key, noise))(truth, keys)  # noqa: B023
        for steps in arguments.steps:
            found = []
            for change in ({}, {"gamma": None}):
                solver = dd.preset("faces64", name, "ddiff", num_steps=steps, **change)
                x = dd.solve(solver, prior, operator, y, task.sigma_y, keys, likelihood=noise).x
                found.append([float(metrics.psnr(a, b, protocol="standard")) for a, b in zip(x, truth, strict=True)])
            tuned, auto = np.asarray(found)
            half = T_975[len(paths)] * (auto - tuned).std(ddof=1) / np.sqrt(len(paths))
            row = {"task": name, "steps": steps, "tuned": tuned.mean(), "auto": auto.mean(), "half": half}
            rows.append({k: v if isinstance(v, str | int) else float(v) for k, v in row.items()})
            difference = f"{auto.mean() - tuned.mean():+.2f} ± {half:.2f}"
            print(f"| {name} | {steps} | {tuned.mean():.2f} | {auto.mean():.2f} | {difference} |", flush=True)
    if arguments.json:
        arguments.json.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
