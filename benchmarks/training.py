"""Time updates of the weights, beside PyTorch where it is installed.

    python benchmarks/training.py                     # the small presets on two cores
    python benchmarks/training.py --preset adm256     # on a GPU: bfloat16, the peer compiled

Ours and the peer's updates take turns in the same run, on the same batch: mirroring, noise and noise levels are drawn,
the loss of v is differentiated, the gradient clipped, AdamW applied and two averages taken. A ratio above 1 says that
ours is faster. Both begin with the same weights, and their first update has the same random numbers: loss and norm of
the gradient must agree before anything is timed. The variance of a step, which only ours can learn, is left out of
both. OMP_NUM_THREADS sets how many threads the peer has.
"""

import argparse
import dataclasses
import json
import os
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from speed import compare, memory, synchronised
from timing import ON_CPU, Run, alternate, random_params

from ddiff_jax.card import build_schedule
from ddiff_jax.noise import root_key
from ddiff_jax.training import state as training
from ddiff_jax.training.averages import retained
from ddiff_jax.training.recipe import PRESETS, Recipe

BATCHES = {"tiny32": 32, "small64": 16, "faces64": 16, "adm256": 16}
AGREEMENT = {"float32": 1e-3, "bfloat16": 3e-2}  # relative, of the loss and of the gradient's norm

try:
    import torch
    import torch_peer
except ImportError:
    torch = None


def make_recipe(preset: str, dtype: str, size: int) -> Recipe:
    """Make the preset's recipe for v alone, on grey images at 32x32 and colour above."""
    recipe = PRESETS[preset].recipe(1 if preset == "tiny32" else 3, dtype=dtype, batch_size=size)
    channels = recipe.image_shape[-1]
    return dataclasses.replace(recipe, architecture={**recipe.architecture, "out_channels": channels})


def starting_weights(recipe: Recipe) -> Any:
    """Draw weights of which none is zero: a network that begins as nothing would agree with any other."""
    drawn = training.new_state(recipe).params
    # On the host, because an update takes over the memory of the weights that it is given.
    return jax.device_get(jax.tree.map(jnp.add, drawn, random_params(training.build_network(recipe))))


def ours(recipe: Recipe, params: Any, batch: jax.Array, block: int | None) -> tuple[Run, dict[str, Any]]:
    """Make an update; return the call for the next ones, and what the first one found."""
    update, state = training.make_update(recipe, block=block), [training.new_state(recipe, params)]

    def run() -> None:
        state[0] = jax.block_until_ready(update(state[0], batch))

    begin = time.perf_counter()
    run()
    sums = state[0].sums
    found = {"loss": float(sums["loss"].sum()) / recipe.batch_size, "norm": float(sums["norm"])}
    return run, found | {"first_s": time.perf_counter() - begin}


def peer(recipe: Recipe, params: Any, batch: jax.Array, dtype: str) -> tuple[Run, dict[str, Any]]:
    """Do the same in PyTorch."""
    device, schedule = "cuda" if torch.cuda.is_available() else "cpu", build_schedule(recipe.schedule or {})
    level = schedule.levels(None)[:-1][::-1]  # by timestep
    trainer = torch_peer.Trainer(
        torch_peer.unet(training.build_network(recipe), params, device),
        np.asarray(level.signal, np.float32),
        np.asarray(level.sigma, np.float32),
        rates=[float(training.learning_rate(recipe, step)) for step in range(recipe.warmup_steps)],
        beta2=recipe.beta2,
        weight_decay=recipe.weight_decay,
        clip_norm=recipe.clip_norm,
        shares=tuple(float(retained(1000, width)) for width in recipe.averages),
        autocast=torch.bfloat16 if dtype == "bfloat16" else None,
        compiled=device == "cuda",
    )

    def as_tensor(images: Any) -> Any:
        return torch.tensor(np.asarray(images).transpose(0, 3, 1, 2), device=device)

    key = jax.random.fold_in(jax.random.fold_in(root_key(recipe.seed), training.UPDATE), 0)
    x_0, n, drawn, _ = training._draw(key, recipe, schedule, training.to_images(batch))
    t = torch.tensor(np.asarray(drawn.time), device=device).round().long()
    begin = time.perf_counter()
    loss, norm = (float(a) for a in trainer.update(as_tensor(x_0), as_tensor(n), t))
    images = as_tensor(batch)
    run = synchronised(lambda: trainer.update(*trainer.draw(images)))
    return run, {"loss": loss, "norm": norm, "first_s": time.perf_counter() - begin}


def measure(preset: str, options: argparse.Namespace) -> list[dict[str, Any]]:
    """Time a preset in the types that are asked for."""
    size = options.batch or BATCHES[preset]
    exact = make_recipe(preset, "float32", size)
    params = starting_weights(exact)
    generator = np.random.default_rng(0)
    batch = jnp.asarray(generator.integers(0, 256, (size, *exact.image_shape), dtype=np.uint8))
    runs: dict[str, Run] = {}
    facts: dict[str, dict[str, Any]] = {}
    for dtype in options.dtypes:
        recipe = dataclasses.replace(exact, dtype=dtype)
        runs[dtype], facts[dtype] = ours(recipe, params, batch, options.block)
        # An accelerator against a CPU would be no comparison.
        if torch is not None and (ON_CPU or torch.cuda.is_available()):
            name = f"PyTorch, {dtype}"
            runs[name], facts[name] = peer(recipe, params, batch, dtype)
            for what in ("loss", "norm"):
                mine, theirs = facts[dtype][what], facts[name][what]
                if abs(mine - theirs) > AGREEMENT[dtype] * abs(mine):
                    raise SystemExit(f"{preset}, {dtype}: our {what} is {mine}, the peer's {theirs}")
    times = alternate(runs, options.repeats)
    rows = []
    for name, values in times.items():
        low, middle, high = np.percentile(size / values, [25, 50, 75])
        row = {"preset": preset, "batch": size, "what": name, "images_per_s": middle, "low": low, "high": high}
        if name.startswith("PyTorch"):
            row |= {f"{k}_to_ours": v for k, v in compare(times[name.split()[-1]], values).items()}
        rows.append(row | facts[name] | {"memory_gib": memory()})
    return rows


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", nargs="+", default=["tiny32", "faces64"], choices=sorted(BATCHES))
    parser.add_argument("--batch", type=int, help="images per update")
    parser.add_argument("--block", type=int, help="images that ours computes together")
    parser.add_argument("--dtypes", nargs="+", choices=sorted(AGREEMENT), help="of the network's computation")
    parser.add_argument("--repeats", type=int, default=8)
    parser.add_argument("--json", type=Path, help="also write the numbers here")
    options = parser.parse_args()
    options.dtypes = options.dtypes or (["float32", "bfloat16"] if ON_CPU else ["bfloat16"])
    versions = {"jax": jax.__version__, "torch": torch.__version__ if torch else None}
    found: dict[str, Any] = {"device": str(jax.devices()[0]), "versions": versions, "load_before": os.getloadavg()}
    print(json.dumps(found))
    if torch is None or not (ON_CPU or torch.cuda.is_available()):
        print("not run: the peer, because PyTorch is not installed or sees no accelerator")
    found["rows"] = []
    for preset in options.preset:
        for row in measure(preset, options):
            found["rows"].append(row)
            print(
                "  " + ", ".join(f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}" for k, v in row.items()),
                flush=True,
            )
    found["load_after"] = os.getloadavg()
    print(f"load of the machine: {found['load_before'][0]:.1f} before, {found['load_after'][0]:.1f} after")
    if options.json:
        options.json.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
