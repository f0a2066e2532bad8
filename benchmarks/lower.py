"""Lower and compile whole restorations for TPU and GPU without the hardware, so that what would break is seen here.

    python benchmarks/lower.py [--platforms tpu cuda rocm] [--operators super_resolution ...]
    JAX_PLATFORMS=cpu python benchmarks/lower.py --compile --platforms tpu cuda [--network imagenet] [--batch 16]

For every operator a batch is restored by DDiff with the network in bfloat16, in one program. Lowering runs JAX's whole
front end with the rules of a platform; the types of the convolutions and products are printed. `--compile` runs XLA's
compiler, too, which comes with `pip install jax[tpu]` (for a v5e) and `jax[cuda12]` (for a Hopper GPU, without timing
alternative algorithms, which takes the device), and prints how much memory the program needs beside its arguments and
how much a step reads and writes. Platforms whose compiler is missing are reported as not run.
"""

import argparse
import math
import re
import time
from collections import Counter
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import topologies
from operators import build
from speed import ARCHITECTURES

import ddiff_jax as dd
from ddiff_jax.architecture import abstract_params
from ddiff_jax.models import UNet
from ddiff_jax.solvers import DDiff, Fixed

# What a compiler must know of a GPU that is not there.
HOPPER = """
gpu_device_info {
  cuda_compute_capability { major: 9 } core_count: 132 fpus_per_core: 128 clock_rate_ghz: 1.98
  threads_per_warp: 32 threads_per_block_limit: 1024 threads_per_core_limit: 2048
  block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
  shared_memory_per_block: 49152 shared_memory_per_block_optin: 232448 shared_memory_per_core: 233472
  registers_per_block_limit: 65536 registers_per_core_limit: 65536
  l2_cache_size: 52428800 memory_bandwidth: 4800000000000 device_memory_size: 150000000000
}
platform_name: "CUDA"
dnn_version_info { major: 9 minor: 10 }
runtime_version { major: 12 minor: 9 }
device_description_str: "Hopper"
"""
TARGETS: dict[str, dict[str, str]] = {
    "tpu": {"topology_name": "v5e:2x2"},
    "cuda": {"target_config": HOPPER, "topology": "1x1x1"},
}
# Without a device no algorithm can be timed, and XLA's own products do not take every shape untimed.
OPTIONS: dict[str, Any] = {"tpu": {}, "cuda": {"xla_gpu_autotune_level": 0, "xla_gpu_enable_triton_gemm": False}}
BYTES = {"bf16": 2, "f16": 2, "f32": 4, "s32": 4, "u32": 4, "pred": 1, "f64": 8, "c64": 8}


def restoration(prior: Any, operator: Any, y: jax.Array, keys: jax.Array) -> jax.Array:
    """Restore a batch."""

    def one(y: jax.Array, key: jax.Array) -> jax.Array:
        return dd.solve_one(DDiff(Fixed(10.0)), prior, dd.Problem(operator, y, 0.05), jax.random.wrap_key_data(key)).x

    return jax.vmap(one)(y, keys)


def precision(text: str) -> str:
    """Tell the types of the convolutions and products of a lowered program."""
    found = re.findall(r"stablehlo\.(?:convolution|dot_general).*?->\s*tensor<[^>]*x(\w+)>", text)
    return "convolutions and products: " + ", ".join(f"{count} in {kind}" for kind, count in Counter(found).items())


def size(shapes: str) -> int:
    """Add up the bytes of typed shapes; workspaces, which are untyped bytes, count nothing."""
    found = re.findall(r"(\w+)\[([\d,]*)\]", shapes)
    return sum(BYTES.get(kind, 0) * math.prod(int(n) for n in sides.split(",") if n) for kind, sides in found)


def kernels(text: str) -> tuple[int, int]:
    """Count the bytes that a step reads and writes, and its kernels, in a program compiled for a GPU.

    A step is the computation that moves most: the body of the loop.
    """
    found = [(0, 0)]
    for computation in re.split(r"\n(?=(?:ENTRY )?%)", text):
        if computation.startswith("ENTRY"):
            continue
        sizes: dict[str, int] = {}
        moved = []
        pattern = r"%([\w.\-]+) = (\([^=]*?\)|\S+) ([\w\-]+)\((.*?)\)"
        for name, shapes, kind, operands in re.findall(pattern, computation):
            sizes[name] = written = size(shapes)
            read = sum(sizes.get(operand, 0) for operand in re.findall(r"%([\w.\-]+)", operands))
            if kind in ("fusion", "custom-call", "copy"):
                moved.append(written + (written if "slice" in name else read))  # a slice reads what it cuts out
        found.append((sum(moved), len(moved)))
    return max(found)


def compiled(lowered: Any, platform: str, batch: int) -> str:
    """Compile; tell how long it took, and what the program needs."""
    begin = time.perf_counter()
    program = lowered.compile(OPTIONS[platform])
    seconds = time.perf_counter() - begin
    if platform == "cuda":
        moved, count = kernels(program.as_text())
        launched = f" in {count} kernels"
    else:
        moved, launched = program.cost_analysis()["bytes accessed"], ""
    memory = program.memory_analysis().temp_size_in_bytes / 2**30
    step = f"a step reads and writes {moved / batch / 1e9:.2f} GB per image{launched}"
    return f"{seconds:.0f} s, {memory:.2f} GiB beside the arguments, {step}"


def main() -> None:
    """Lower, and compile, everything."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--platforms", nargs="+", default=["tpu", "cuda"])
    parser.add_argument("--operators", nargs="+", help="instead of all")
    parser.add_argument("--network", default="ffhq", choices=ARCHITECTURES)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--compile", action="store_true")
    arguments = parser.parse_args()
    module: Any = UNet(dtype="bfloat16", **ARCHITECTURES[arguments.network])
    shape, failed = (256, 256, 3), 0
    params = jax.eval_shape(module.cast, abstract_params(module))
    prior = dd.DiffusionPrior(params, dd.linear_schedule(), module, shape)
    keys = jax.random.key_data(jax.random.split(jax.random.key(0), arguments.batch))
    made = build()
    if unknown := set(arguments.operators or ()) - set(made):
        parser.error(f"there are no operators {', '.join(sorted(unknown))}; there are {', '.join(made)}")
    for platform in arguments.platforms:
        sharding = None
        if arguments.compile:
            try:
                topology = topologies.get_topology_desc(platform=platform, **TARGETS[platform])
            except Exception as error:  # what is not installed, or cannot do without the device
                print(f"{platform}: not run: {str(error).splitlines()[0]}")
                continue
            sharding = jax.sharding.SingleDeviceSharding(topology.devices[0])

        def describe(leaf: Any, sharding: Any = sharding) -> jax.ShapeDtypeStruct:
            return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)

        for name in arguments.operators or made:
            operator = made[name]
            y = jax.eval_shape(operator.forward, jax.ShapeDtypeStruct(shape, jnp.float32))
            y = jax.ShapeDtypeStruct((arguments.batch, *y.shape), y.dtype)
            try:
                traced = jax.jit(restoration).trace(*jax.tree.map(describe, (prior, operator, y, keys)))
                lowered = traced.lower(lowering_platforms=(platform,))
                found = compiled(lowered, platform, len(keys)) if arguments.compile else precision(lowered.as_text())
            except Exception as error:  # every platform and operator is reported
                failed += 1
                found = f"FAILED: {str(error).splitlines()[0]}"
            print(f"{name:<22}{platform:<6}{found}", flush=True)
    raise SystemExit(failed > 0)


if __name__ == "__main__":
    main()
