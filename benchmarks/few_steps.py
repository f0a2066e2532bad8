"""Compare variants of DDiff with one another at several numbers of network evaluations.

    python benchmarks/few_steps.py PHOTOGRAPHS                           # published values against the default ones
    python benchmarks/few_steps.py PHOTOGRAPHS --steps 20 --variants published "gamma: null, t0: 1"

A variant is "published" or "default", the values of the task by that name, or what it changes in the published values,
in YAML, where "dtype: bfloat16" is the network's precision. All variants get the same measurements, starts and noise.
PHOTOGRAPHS is a folder of 64x64 pictures. Prints the mean PSNR (range 2, clamped), and the mean difference to the first
variant with half of its 95% interval.
"""

import argparse
import functools
import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import yaml
from tasks import runnable

import ddiff_jax as dd
from ddiff_jax import io, metrics
from ddiff_jax.cli.settings import is_random
from ddiff_jax.config import VALUES, task_preset
from ddiff_jax.evaluation import interval
from ddiff_jax.operators import OPERATORS
from ddiff_jax.restarts import nearest_equivalent

load_prior = functools.cache(dd.load_prior)


def build(task: str, variant: str, steps: int | None) -> tuple[Any, dd.DiffusionPrior]:
    """Build DDiff for a task, and the prior, as a variant says."""
    counted: dict[str, Any] = {} if steps is None else {"num_steps": steps}
    if variant in VALUES:
        return dd.preset("faces64", task, values=variant, **counted), load_prior("faces64")
    changes = {**counted, **yaml.safe_load("{" + variant + "}")}
    prior = load_prior("faces64", dtype=changes.pop("dtype", "float32"))
    return dd.preset("faces64", task, values="published", **changes), prior


def main() -> None:
    """Run the comparison."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photographs", type=Path)
    parser.add_argument("--skip", type=int, default=0, help="so many photographs first")
    parser.add_argument("--count", type=int, default=8)
    parser.add_argument("--steps", type=int, nargs="+", default=[20, 50, 100], help="0 for that of the values")
    parser.add_argument("--tasks", nargs="+", default=[name for name in runnable() if name != "phase_retrieval"])
    parser.add_argument("--variants", nargs="+", default=["published", "default"])
    parser.add_argument("--json", type=Path, help="also write the numbers here")
    arguments = parser.parse_args()
    paths = sorted(arguments.photographs.glob("*.png"))[arguments.skip :][: arguments.count]
    truth = jnp.asarray(np.stack([io.read_picture(path)[0] for path in paths]))
    keys = dd.image_keys(jax.random.key(0), jnp.arange(len(paths)))
    names = arguments.variants
    print(f"| task | steps | {' | '.join(names)} |\n{'|---' * (2 + len(names))}|")
    rows = []
    for name in arguments.tasks:
        task = task_preset("faces64", name)
        random = [jax.random.key(1)] if is_random(task.operator, task.arguments) else []
        operator = OPERATORS[task.operator](truth.shape[1:], *random, **task.arguments)
        noise = None if task.photons is None else dd.Poisson(task.photons)
        y = jax.vmap(lambda x, key: dd.simulate(operator, x, task.sigma_y, key, noise))(truth, keys)  # noqa: B023 - used at once
        for steps in arguments.steps:
            found: list[list[float]] = []
            for variant in arguments.variants:
                solver, prior = build(name, variant, steps or None)
                restored = dd.solve(solver, prior, operator, y, task.sigma_y, keys, likelihood=noise).x
                restored = [nearest_equivalent(operator, *pair) for pair in zip(restored, truth, strict=True)]
                pairs = zip(restored, truth, strict=True)
                found.append([float(metrics.psnr(x, t, protocol="standard")) for x, t in pairs])
            rows.append({"task": name, "steps": steps, "psnr": dict(zip(names, found, strict=True))})
            cells = [f"{np.mean(found[0]):.2f}"]
            for values in found[1:]:
                gain = interval([a - b for a, b in zip(values, found[0], strict=True)])
                low, high = gain["interval"] or (0.0, 0.0)
                cells.append(f"{np.mean(values):.2f} ({gain['mean']:+.2f} ± {(high - low) / 2:.2f})")
            print(f"| {name.replace('_', ' ')} | {steps or 'all'} | {' | '.join(cells)} |", flush=True)
            if arguments.json:
                arguments.json.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
