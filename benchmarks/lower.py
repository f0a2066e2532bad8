"""Lower the whole DDiff step for TPU and GPU without the hardware, so that what would break there is seen here.

    python benchmarks/lower.py [--platforms tpu cuda rocm]

For every operator: one step of a batch, network in bfloat16, is lowered by `jax.export` for each platform and its size
and the share of convolutions and products in bfloat16 are printed. Lowering runs JAX's whole front end with the rules
of that platform; XLA's own compilation needs the platform's compiler and is not run.
"""

import argparse
import re
from collections import Counter
from typing import Any

import jax
import jax.numpy as jnp
from operators import build
from timing import random_params

import ddiff_jax as dd
from ddiff_jax.checkpoint import build_module
from ddiff_jax.solvers import DDiff

BATCH = 16


def main() -> None:
    """Lower everything."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--platforms", nargs="+", default=["tpu", "cuda"])
    arguments = parser.parse_args()
    module = build_module("adm_unet", {"dtype": "bfloat16"})
    shape = (256, 256, 3)
    prior = dd.DiffusionPrior(random_params(module), dd.linear_schedule(), module, shape)
    solver, failed = DDiff(gamma=10.0), 0
    keys = jax.random.key_data(jax.random.split(jax.random.key(0), BATCH))
    x = jax.ShapeDtypeStruct((BATCH, *shape), jnp.float32)
    for name, operator in build().items():
        made = jax.eval_shape(operator.forward, jax.ShapeDtypeStruct(shape, jnp.float32))
        y = jax.ShapeDtypeStruct((BATCH, *made.shape), made.dtype)

        def batch(prior: Any, operator: Any, x: jax.Array, y: jax.Array, keys: jax.Array) -> jax.Array:
            def one(x: jax.Array, y: jax.Array, key: jax.Array) -> jax.Array:
                problem, noise = dd.Problem(operator, y, 0.05), dd.KeyNoise(jax.random.wrap_key_data(key))
                state = solver.init(prior, problem, shape, noise, x)
                row = jax.tree.map(lambda column: column[500], solver.grid(prior.schedule))
                return solver.step(prior, problem, state, row, noise)[0].x_t

            return jax.vmap(one)(x, y, keys)

        for platform in arguments.platforms:
            try:
                text = jax.export.export(jax.jit(batch), platforms=[platform])(
                    prior, operator, x, y, keys
                ).mlir_module()
            except Exception as error:  # every platform and operator is reported
                failed += 1
                print(f"{name:<22}{platform:<6} FAILED: {str(error).splitlines()[0]}", flush=True)
                continue
            found = re.findall(r"stablehlo\.(?:convolution|dot_general).*?->\s*tensor<[^>]*x(\w+)>", text)
            types = ", ".join(f"{count} in {kind}" for kind, count in Counter(found).most_common())
            print(f"{name:<22}{platform:<6} {len(text) / 1e6:6.1f} MB, convolutions and products: {types}", flush=True)
    raise SystemExit(failed > 0)


if __name__ == "__main__":
    main()
