"""Time the network, the steps and whole restorations, beside PyTorch where it is installed.

    python benchmarks/speed.py                         # the packaged network on whatever JAX and PyTorch see
    python benchmarks/speed.py --network ffhq          # a network of another published architecture, random weights
    python benchmarks/speed.py --sections steps --batches 1 --repeats 20

Sections: `peak` (large matrix products), `network` (one evaluation), `steps` (one DDiff step per operator and what it
costs beyond the network), `restore` (the whole loop), `loop` (the loop with more and fewer returns to the host). Ours
and the peer's take turns in the same run; a ratio above 1 says that ours is faster. The peer loads our weights and must
agree with us before it is timed. On an accelerator the network also runs in bfloat16 and the peer also compiled. What
cannot run is reported as not run.
"""

import argparse
import functools
import importlib.metadata
import json
import platform
import resource
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from timing import ON_CPU, Run, alternate, compiled, random_params

import ddiff_jax as dd
from ddiff_jax import operators
from ddiff_jax._execution import block_size
from ddiff_jax.models import UNet
from ddiff_jax.restoration.run import evaluation_flops
from ddiff_jax.solvers import DDiff, Fixed
from ddiff_jax.solvers.base import size_factor
from ddiff_jax.types import to_type

ARCHITECTURES = {
    "ffhq": {"model_channels": 128, "channel_mult": (1, 1, 2, 2, 4, 4), "num_res_blocks": 1, "attention_levels": (4,)},
    "imagenet": {
        **{"model_channels": 256, "channel_mult": (1, 1, 2, 2, 4, 4), "num_res_blocks": 2},
        "attention_levels": (3, 4, 5),
    },
}
TIMESTEP = 500  # at which networks are evaluated
LOOP = 5  # steps per timed call of section `steps`
AGREEMENT = 2e-3  # float32, largest difference on outputs of order 1; convolution algorithms differ

try:
    import torch
    import torch_peer
except ImportError:
    torch = None


def load(name: str, dtype: str) -> dd.DiffusionPrior:
    """Load the packaged or a converted prior, or make one of a published architecture with random weights."""
    if name not in ARCHITECTURES:
        return dd.load_prior(name, dtype=dtype)
    module: Any = UNet(dtype=dtype, **ARCHITECTURES[name])
    return dd.DiffusionPrior(module.cast(random_params(module)), dd.linear_schedule(), module, (256, 256, 3))


def in_blocks(function: Any, block: int | None) -> Any:
    """Vectorise over images as `solve` does."""
    if block is None:
        return jax.vmap(function)
    return lambda *arguments: jax.lax.map(lambda image: function(*image), arguments, batch_size=block)


def synchronised(function: Callable[[], Any]) -> Run:
    """Wait for PyTorch's device after a call."""

    def run() -> None:
        function()
        if torch.cuda.is_available():
            torch.cuda.synchronize()

    return run


def spread(values: np.ndarray, per: float = 1.0) -> dict[str, float]:
    """Sum up timings in milliseconds."""
    low, middle, high = np.percentile(values / per * 1e3, [25, 50, 75])
    return {"ms": float(middle), "low_ms": float(low), "high_ms": float(high)}


def compare(ours: np.ndarray, peer: np.ndarray) -> dict[str, float]:
    """Give the median and the quartiles of the paired ratios, peer's time over ours."""
    low, middle, high = np.percentile(peer / ours, [25, 50, 75])
    return {"ratio": float(middle), "low": float(low), "high": float(high)}


def memory() -> float:
    """Tell the largest memory in use so far, in GiB: of the device, or of this process on a CPU."""
    stats = jax.devices()[0].memory_stats()
    used = stats["peak_bytes_in_use"] if stats else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return used / 2**30


def peak() -> list[dict[str, Any]]:
    """Measure what large matrix products reach."""
    rows, side = [], 2048 if ON_CPU else 8192
    for dtype in ("float32", "bfloat16"):
        a = jnp.ones((side, side), dtype)
        run, _ = compiled(lambda a: a @ a, a)
        seconds = alternate({"product": run}, 5)["product"]
        gflops = float(2e-9 * side**3 / seconds.min())
        rows.append({"what": f"{dtype} product of side {side}", "dtype": dtype, "gflops": gflops})
    return rows


def peers(module: Any, params: Any) -> dict[str, Any]:
    """Build the peer networks, eager and on accelerators compiled, each with its autocast type."""
    if torch is None:
        return {}
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if not ON_CPU and device == "cpu":
        return {}  # an accelerator against a CPU would be no comparison
    eager = torch_peer.unet(module, params, device)
    if device == "cpu":
        return {"PyTorch": (eager, None)}
    fast = torch.compile(eager)
    return {"PyTorch": (eager, None), "PyTorch compiled, bfloat16": (fast, torch.bfloat16)}


def noise_of(prior: Any, level: Any) -> Any:
    """Predict the noise in images at one level."""
    return lambda x: prior.predict(x, level)[1]


def network(options: argparse.Namespace, size: int) -> list[dict[str, Any]]:
    """Time one evaluation of the network."""
    rows = []
    runs: dict[str, Run] = {}
    facts: dict[str, dict[str, Any]] = {}
    prior = load(options.network, "float32")
    x = jax.random.normal(jax.random.key(0), (size, *prior.image_shape))
    every = prior.schedule.levels(None)
    level = jax.tree.map(lambda column: jnp.float32(column[np.flatnonzero(every.time == TIMESTEP)[0]]), every)
    for dtype in ("float32",) if ON_CPU else ("float32", "bfloat16"):
        variant = load(options.network, dtype)
        runs[dtype], seconds = compiled(in_blocks(noise_of(variant, level), block_size(size, prior.image_shape)), x)
        facts[dtype] = {"compile_s": seconds}
    expected = np.asarray(jax.jit(jax.vmap(noise_of(prior, level)))(x))
    rivals = peers(prior.module, prior.params)
    for name, (net, autocast) in rivals.items():
        device = next(net.parameters()).device
        xt = torch.tensor(np.asarray(x).transpose(0, 3, 1, 2), device=device)
        xt, tt = xt.contiguous(memory_format=torch.channels_last), torch.full((size,), TIMESTEP, device=device)

        def call(net: Any = net, autocast: Any = autocast, xt: Any = xt, tt: Any = tt) -> Any:
            enabled = autocast is not None
            with torch.no_grad(), torch.autocast(xt.device.type, autocast or torch.bfloat16, enabled=enabled):
                return net(xt, tt)

        got = call().float().cpu().numpy().transpose(0, 2, 3, 1)[..., :3]
        worst = float(np.abs(got - expected).max())
        if autocast is None and worst > AGREEMENT:
            raise SystemExit(f"the peer disagrees with us by {worst}")
        facts[name] = {"largest_difference": worst}
        runs[name] = synchronised(call)
    times = alternate(runs, options.repeats)
    gflop = evaluation_flops(prior) / 1e9
    for name, values in times.items():
        row = {"batch": size, "what": name, **spread(values, size), **facts[name]}
        row["gflops"] = gflop * size / float(np.median(values))
        if name in rivals:
            row |= compare(times["float32" if ON_CPU or "bf" not in name else "bfloat16"], values)
        rows.append(row | {"memory_gib": memory()})
    return rows


def steps(options: argparse.Namespace, size: int) -> list[dict[str, Any]]:
    """Time one DDiff step per operator beside an evaluation of the network alone."""
    rows, dtype = [], "float32" if ON_CPU else "bfloat16"
    prior, key = load(options.network, dtype), jax.random.key(0)
    shape = prior.image_shape
    side = shape[0]
    made = {
        "super_resolution": operators.super_resolution(shape, factor=4),
        "box_inpainting": operators.box_inpainting(shape, key, size=side // 2, margin=side // 16),
        "random_inpainting": operators.random_inpainting(shape, key, fraction=0.7),
        "gaussian_blur": operators.gaussian_blur(shape, size=61 if side > 64 else 31, std=3.0),
        "motion_blur": operators.motion_blur(shape, 0, size=61 if side > 64 else 31),
        "phase_retrieval": operators.phase_retrieval(shape),
        "high_dynamic_range": operators.high_dynamic_range(shape),
        "camera_blur": operators.camera_blur(shape, 0, size=61 if side > 64 else 31),
        "undersampled_fourier": operators.undersampled_fourier(shape, key),
        "sparse_tomography": operators.sparse_tomography(shape, num_angles=30),
    }
    solver = DDiff(Fixed(10.0))
    row = jax.tree.map(lambda column: column[500], to_type(solver.grid(prior.schedule), jnp.float32))
    block, keys = block_size(size, shape), dd.image_keys(key, jnp.arange(size))
    x = jax.random.uniform(key, (size, *shape), minval=-1, maxval=1)

    # As in `solve`: a loop in one program, in its blocks, so that calling the program does not count as a step.
    # What a step reports is kept, too: without it the compiler would leave out parts of the step and fuse it otherwise.
    def repeated(one: Any, images: Any, x: Any) -> Any:
        def step(x: Any, k: Any) -> Any:
            return in_blocks(functools.partial(one, k), block)(*images, x)

        return jax.lax.scan(step, x, jnp.arange(LOOP))

    def evaluate(prior: Any, x: Any) -> Any:
        return repeated(lambda k, x: (prior.denoise(x, row.level), None), (), x)

    def make_steps(solver: Any, prior: Any, operator: Any, y: Any, keys: Any, x: Any) -> Any:
        def one(k: Any, y: Any, key: Any, state: Any) -> Any:
            noise = dd.KeyNoise(jax.random.fold_in(key, k))
            return solver.step(prior, dd.Problem(operator, y, 0.05), state, row, noise)

        problem = dd.Problem(operator, y, 0.05)
        state = jax.vmap(lambda x: solver.init(prior, problem, shape, dd.KeyNoise(key), x))(x)
        return repeated(one, (y, keys), state)

    alone, _ = compiled(evaluate, prior, x)
    for name, operator in made.items():
        y = jax.jit(jax.vmap(operator.forward))(x)
        run, _ = compiled(make_steps, solver, prior, operator, y, keys, x)
        # In turn with evaluations of its own: a machine's speed drifts over minutes by more than operators cost.
        times = alternate({"network": alone, "step": run}, options.repeats)
        low, middle, high = np.percentile(times["step"] / times["network"] - 1, [25, 50, 75])
        found = {"batch": size, "what": name, **spread(times["step"], size * LOOP)}
        rows.append(found | {"beyond_network": float(middle), "low": float(low), "high": float(high)})
    return rows


def restoration(prior: dd.DiffusionPrior, solver: DDiff, size: int) -> tuple[Any, Any, Any]:
    """Make an operator, the measurements of some images, and a call of `solve` on them in so many chunks."""
    shape = prior.image_shape
    operator = operators.super_resolution(shape, factor=4)
    keys = dd.image_keys(jax.random.key(0), jnp.arange(size))
    x = jax.random.uniform(jax.random.key(1), (size, *shape), minval=-1, maxval=1)
    y = jax.vmap(lambda x, key: dd.simulate(operator, x, 0.05, key))(x, keys)
    problem = dd.Problem(operator, y, 0.05)

    def run(num_chunks: int = 20) -> None:
        jax.block_until_ready(dd.solve(solver, prior, problem, keys, num_chunks=num_chunks).x)

    return operator, y, run


def loop(options: argparse.Namespace, size: int) -> list[dict[str, Any]]:
    """Time whole restorations that return to the host more or less often."""
    rows = []
    prior = load(options.network, "float32" if ON_CPU else "bfloat16")
    _, _, solve = restoration(prior, DDiff(Fixed(18.0), num_steps=options.steps), size)
    counts = [1, 5, 20, options.steps]
    runs: dict[str, Run] = {f"{count} chunks": functools.partial(solve, count) for count in counts}
    for name, values in alternate(runs, max(2, options.repeats // 4)).items():
        found = {"batch": size, "what": name, "steps": options.steps, **spread(values, size)}
        rows.append(found | {"memory_gib": memory()})
    return rows


def restore(options: argparse.Namespace, size: int) -> list[dict[str, Any]]:
    """Time whole restorations: `solve` and the peer's loop on the same measurements."""
    rows = []
    prior = load(options.network, "float32" if ON_CPU else "bfloat16")
    exact = prior if ON_CPU else load(options.network, "float32")
    shape = prior.image_shape
    solver = DDiff(Fixed(18.0), num_steps=options.steps)
    operator, y, solve = restoration(prior, solver, size)
    begin = time.perf_counter()
    solve()
    first = time.perf_counter() - begin
    runs: dict[str, Run] = {"ours": solve}
    for name, (net, autocast) in peers(exact.module, exact.params).items():
        device = str(next(net.parameters()).device)
        grid = torch_peer.table(solver.grid(prior.schedule))
        forward = torch_peer.separable(operator.row_factor, operator.col_factor, device)
        yt = torch.tensor(np.asarray(y).transpose(0, 3, 1, 2), device=device)
        generator = torch.Generator(device).manual_seed(0)
        fixed = (net, forward, yt, (size, shape[2], *shape[:2]), grid, size_factor(jnp.zeros(shape)), generator)
        runs[name] = synchronised(
            lambda fixed=fixed, autocast=autocast: torch_peer.restore(
                *fixed, prediction=prior.prediction, autocast=autocast
            )
        )
    times = alternate(runs, max(2, options.repeats // 4))
    for name, values in times.items():
        row = {"batch": size, "what": name, "steps": options.steps, **spread(values, size)}
        row["images_per_second"] = size / float(np.median(values))
        row |= {"compile_s": first - float(np.median(values))} if name == "ours" else compare(times["ours"], values)
        rows.append(row)
    return rows


SECTIONS = {"network": network, "steps": steps, "restore": restore, "loop": loop}


def measure(section: str, options: argparse.Namespace) -> list[dict[str, Any]]:
    """Run a section with growing batches, as far as they fit."""
    rows = []
    for size in sorted(options.batches):
        try:
            rows += SECTIONS[section](options, size)
        except RuntimeError as error:  # both libraries derive theirs from it
            if "RESOURCE_EXHAUSTED" not in str(error) and "out of memory" not in str(error):
                raise
            return [*rows, {"batch": size, "what": "not run: out of memory"}]
    return rows


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--network", default="faces64", help="name or folder of a prior, or ffhq or imagenet")
    parser.add_argument("--sections", nargs="+", default=["peak", *SECTIONS], choices=["peak", *SECTIONS])
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 16])
    parser.add_argument("--repeats", type=int, default=12)
    parser.add_argument("--steps", type=int, default=50, help="of the whole restorations")
    parser.add_argument("--json", type=Path, help="also write the numbers here")
    options = parser.parse_args()
    installed = {name: importlib.metadata.version(name) for name in ("jax", "flax", "numpy")}
    found: dict[str, Any] = {
        "device": str(jax.devices()[0]),
        "machine": f"{platform.processor() or platform.machine()}, {len(jax.devices())} device(s)",
        "versions": installed | {"torch": torch.__version__ if torch else None},
        "network": options.network,
    }
    print(json.dumps(found))
    if torch is None:
        print("not run: the peer, because PyTorch is not installed")
    elif not ON_CPU and not torch.cuda.is_available():
        print("not run: the peer, because PyTorch sees no accelerator")
    if ON_CPU:
        print("not run: bfloat16, and the peer compiled, because there is no accelerator")
    peaks: dict[str, float] = {}
    for section in options.sections:
        found[section] = peak() if section == "peak" else measure(section, options)
        if section == "peak":
            peaks = {row["dtype"]: row["gflops"] for row in found[section]}
        for row in found[section] if section == "network" else ():
            dtype = "bfloat16" if "bfloat16" in row["what"] else "float32"
            if "gflops" in row and dtype in peaks:
                row["of_peak"] = row["gflops"] / peaks[dtype]
        print(f"\n{section}")
        for row in found[section]:
            print(
                "  " + ", ".join(f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}" for k, v in row.items()),
                flush=True,
            )
    if options.json:
        options.json.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
