"""Time the value and gradient of every operator at 256x256 against one evaluation of the FFHQ network.

    python benchmarks/operators.py [--repeats 20] [--json operators.json]

The network has random weights: its cost does not depend on them. Every repetition times each operator and the network
once, in turn, so that they meet the same machine; the ratio is that of the medians.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from timing import alternate, compiled, random_params

import ddiff_jax as dd
from ddiff_jax import operators
from ddiff_jax.models import UNet
from ddiff_jax.models.kernel_wizard import KernelWizard

SHAPE = (256, 256, 3)


def build() -> dict[str, Any]:
    """Build every operator at the size and with the arguments of its published task, or of its preset."""
    key = jax.random.key(0)
    return {
        "super_resolution": operators.super_resolution(SHAPE, factor=4),
        "box_inpainting": operators.box_inpainting(SHAPE, key, size=128, margin=16),
        "random_inpainting": operators.random_inpainting(SHAPE, key, fraction=0.7),
        "gaussian_blur": operators.gaussian_blur(SHAPE, size=61, std=3.0),
        "motion_blur": operators.motion_blur(SHAPE, 0, size=61),
        "phase_retrieval": operators.phase_retrieval(SHAPE),
        "high_dynamic_range": operators.high_dynamic_range(SHAPE),
        "camera_blur": operators.camera_blur(SHAPE, 0, size=61),
        "colourisation": operators.colourisation(SHAPE),
        "undersampled_fourier": operators.undersampled_fourier(SHAPE, key),
        "sparse_tomography": operators.sparse_tomography(SHAPE, num_angles=30),
        "sparse_fan_beam_tomography": operators.sparse_fan_beam_tomography(SHAPE, num_angles=60),
        "nonlinear_blur": operators.nonlinear_blur(SHAPE, params=random_params(KernelWizard())),
    }


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--json", type=Path, help="also write the numbers here")
    arguments = parser.parse_args()
    x = jax.random.uniform(jax.random.key(1), SHAPE, minval=-1, maxval=1)
    network = UNet()
    t = jnp.asarray([500])
    runs = {"network": compiled(lambda p, x: network.apply({"params": p}, x[None], t), random_params(network), x)[0]}
    for name, operator in build().items():
        problem = dd.Problem(operator, jax.jit(operator.forward)(-x), 0.05)
        runs[name], _ = compiled(lambda problem, x: problem.misfit_and_gradient(x), problem, x)
    seconds = alternate(runs, arguments.repeats)
    medians = {name: float(np.median(values)) for name, values in seconds.items()}
    rows = []
    print(f"{'':<22}{'ms':>9}{'quartiles':>18}{'of the network':>16}")
    for name, values in seconds.items():
        low, high = np.percentile(values, [25, 75]) * 1e3
        share = medians[name] / medians["network"]
        rows.append({"name": name, "ms": medians[name] * 1e3, "low_ms": low, "high_ms": high, "share": share})
        print(f"{name:<22}{medians[name] * 1e3:>9.2f}{f'{low:.2f} to {high:.2f}':>18}{share:>16.2%}")
    if arguments.json:
        arguments.json.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
