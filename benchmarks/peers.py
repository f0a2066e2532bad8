"""Compare with deepinv (PyTorch) and diffuse-jax in the same run, on the same network and the same measurements.

    python benchmarks/peers.py --images PHOTOGRAPHS --cache FOLDER --output FOLDER
    python benchmarks/peers.py --images PHOTOGRAPHS --cache FOLDER --output FOLDER --quick      # does everything run?

Every peer is installed by pip into an environment of its own in the cache (`--python` makes it; diffuse-jax needs 3.12)
and runs in a process of its own (`peers/*_peer.py`), which reads the same weights, operator and measurements from
files. Ours and the peers take turns, so that all meet the same machine; while one works the others wait. Before
anything is timed the peers' networks must agree with ours on the same input.

Sections: `network` (one evaluation, batch 1 and 16), `steps` (the steps of the samplers) and `quality` (PSNR and LPIPS
against evaluations and seconds: beside deepinv in super-resolution by 4, beside diffuse-jax behind a random mask).
Times are medians over repetitions after a first one that warms up; the ratios are of paired repetitions, the peer's
time over ours, with quartiles. Writes `peers.json`, `peers.md` and `peers.png`.
"""

import argparse
import dataclasses
import functools
import importlib.metadata
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import perceptual
from peers_report import ratio, write
from safetensors.numpy import save_file
from timing import compiled

import ddiff_jax as dd
from ddiff_jax import image_files, metrics, operators
from ddiff_jax._execution import block_size
from ddiff_jax.evaluation import interval

HERE = Path(__file__).resolve().parent
PEERS = {"deepinv": ("deepinv", "0.5.0"), "diffuse": ("diffuse-jax", "0.1.1")}
SHAPE, SIGMA = (64, 64, 3), 0.05
AGREEMENT = 2e-3  # as in speed.py: float32, outputs of order 1
GUIDED = {"dps", "dps_annealed", "pigdm"}  # a step of these also takes the network's gradient

# Method and step counts. Ours: solver, and the changes to what it has by default.
OURS_SR = {"ddiff": (5, 10, 20, 50, 100), "ddrm": (10, 20, 50), "diffpir": (50,), "dps": (50,)}
DEEPINV = {
    **{"ddrm": (20, 50, 100), "ddrm_levels": (20, 50), "diffpir": (20, 50, 100), "diffpir_0.3": (50,)},
    **{"dps": (50,), "dps_annealed": (50,), "pigdm": (50,)},
}
OURS_MASK = {"ddiff": (20, 50), "ddrm": (20, 50), "dps": (20, 50)}
DIFFUSE = {
    **{"dps:euler:0.01": (50,), "dps:euler:1": (50,), "dps:ddim:1": (50,), "dps:maruyama:1": (20, 50)},
    **{"tmp:ddim": (20,), "fps:euler": (50,)},
}
Found = tuple[float, np.ndarray]  # seconds and images
Run = Callable[[], Found]


class Peer:
    """A library in an environment and a process of its own, which answers jobs."""

    def __init__(self, name: str, options: argparse.Namespace, folder: Path):
        package, version = PEERS[name]
        home = options.cache / f"{package}-{version}"
        python = home / "bin" / "python"
        if not (home / "installed").exists():
            print(f"installing {package} {version} into {home}", flush=True)
            subprocess.run([options.python, "-m", "venv", "--clear", str(home)], check=True)
            wanted = [f"{package}=={version}", "safetensors"]
            if name == "diffuse":  # our network runs there, on the same XLA as here
                same = ("jax", "jaxlib", "flax", "numpy")
                wanted += [f"{p}=={importlib.metadata.version(p)}" for p in same] + [str(HERE.parent)]
            pip = [str(python), "-m", "pip", "install", "-q", *options.pip.split(), *wanted]
            subprocess.run(pip, check=True)
            (home / "installed").touch()
        command = [str(python), str(HERE / "peers" / f"{name}_peer.py"), str(folder)]
        environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
        environment |= {"CUDA_VISIBLE_DEVICES": "", "JAX_PLATFORMS": "cpu"}
        self.name, self._folder = name, folder
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment, cwd=folder
        )

    def ask(self, **job: Any) -> dict[str, Any]:
        """Have one job done."""
        assert self._process.stdin and self._process.stdout
        self._process.stdin.write(json.dumps(job) + "\n")
        self._process.stdin.flush()
        for line in self._process.stdout:
            if line.startswith("PEER "):
                return json.loads(line[5:])
        raise SystemExit(f"{self.name} ended while it was asked {job}; what it said stands above")

    def run(self, **job: Any) -> Found:
        """Have one job done that leaves an array."""
        seconds = self.ask(**job, output="output.npy").get("seconds", 0.0)
        return seconds, np.load(self._folder / "output.npy")

    def close(self) -> None:
        """End the process."""
        self._process.communicate()


@dataclasses.dataclass
class Setting:
    """What all sections share."""

    options: argparse.Namespace
    folder: Path
    prior: dd.DiffusionPrior
    peers: dict[str, Peer]
    truth: np.ndarray
    lpips: Any
    variant: dict[int, str] = dataclasses.field(default_factory=dict)  # of deepinv's network, the fastest by batch

    def give(self, name: str, array: Any) -> str:
        """Write an array where the peers read."""
        np.save(self.folder / name, np.asarray(array))
        return name


def take_turns(runs: dict[str, Run], repeats: int, dropped: int = 1) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Run everything in turn; return the seconds of all repetitions but the first ones, and the first images."""
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    images: dict[str, Any] = {}
    for _ in range(repeats + dropped):
        for name, run in runs.items():
            taken, x = run()
            seconds[name].append(taken)
            images.setdefault(name, x)
    return {name: np.asarray(values[dropped:]) for name, values in seconds.items()}, images


def spread(values: np.ndarray, per: float = 1.0) -> dict[str, float]:
    """Sum up seconds as milliseconds."""
    low, middle, high = np.percentile(np.asarray(values) * 1e3 / per, [25, 50, 75])
    return {"ms": float(middle), "low_ms": float(low), "high_ms": float(high)}


def export(setting: Setting) -> None:
    """Write the network, its weights and the operators for the peers."""
    module: Any = setting.prior.module
    flat, _ = jax.tree_util.tree_flatten_with_path(setting.prior.params)
    weights = {".".join(k.key for k in path): np.asarray(leaf, np.float32) for path, leaf in flat}
    save_file({k: np.ascontiguousarray(v) for k, v in weights.items()}, setting.folder / "weights.safetensors")
    names = ("model_channels", "channel_mult", "num_res_blocks", "attention_levels", "head_width", "scale_shift_norm")
    config = {name: getattr(module, name) for name in (*names, "attention_order")}
    config |= {"sigma_y": SIGMA, "prior": "faces64", "threads": setting.options.threads}
    (setting.folder / "network.json").write_text(json.dumps(config))
    reduce = operators.super_resolution(SHAPE, factor=4)
    setting.give("rows.npy", reduce.row_factor)
    setting.give("columns.npy", reduce.col_factor)
    setting.give("mask.npy", mask_operator().mask)


@functools.cache
def mask_operator() -> Any:
    """Hide 70% of the pixels."""
    return operators.random_inpainting(SHAPE, jax.random.key(1), fraction=0.7)


def agree(setting: Setting, name: str) -> list[dict[str, Any]]:
    """Compare a peer's network, and its operator, with ours on the same input."""
    # As many as there are photographs: what is compiled for this batch serves them as well.
    t = np.resize(np.asarray([500, 0, 10, 100, 250, 750, 900, 999], np.float32), max(len(setting.truth), 4))
    x, peer = jax.random.normal(jax.random.key(0), (len(t), *SHAPE)), setting.peers[name]
    mine = np.asarray(jax.jit(jax.vmap(functools.partial(eps, setting.prior)))(x, jnp.asarray(t)))
    files = {"x": setting.give("x.npy", x), "t": setting.give("t.npy", t)}
    outputs = {}
    for variant in setting.options.variants if name == "deepinv" else ("",):
        outputs[f"{name} {variant}".strip()] = peer.run(do="network", **files, variant=variant)[1] - mine
    if name == "deepinv":
        _, out = peer.run(do="forward", x=setting.give("truth.npy", setting.truth))
        outputs["deepinv, operator"] = out - np.asarray(
            jax.vmap(problem_of(name)[1].forward)(jnp.asarray(setting.truth))
        )
    rows = [{"who": who, "difference": float(np.abs(values).max())} for who, values in outputs.items()]
    print(*rows, sep="\n", flush=True)
    if max(row["difference"] for row in rows) > AGREEMENT:
        raise SystemExit("a peer disagrees with us")
    return rows


def eps(prior: dd.DiffusionPrior, x: jax.Array, t: jax.Array) -> jax.Array:
    """Evaluate the network on one image."""
    module: Any = prior.module
    return module.apply({"params": prior.params}, x[None], t[None])[0, ..., : x.shape[-1]]


def network(setting: Setting, name: str) -> list[dict[str, Any]]:
    """Time one evaluation of deepinv's network, as it comes, with channels last, and compiled, and of ours."""
    rows = []
    for size in setting.options.batches:
        x, t = jax.random.normal(jax.random.key(0), (size, *SHAPE)), jnp.full(size, 500.0)
        files = {"x": setting.give("x.npy", x), "t": setting.give("t.npy", t)}
        one, block = functools.partial(eps, setting.prior), block_size(size, SHAPE)
        blocks: Any = lambda x, t, one=one, block=block: jax.lax.map(lambda a: one(*a), (x, t), batch_size=block)  # noqa: E731
        program, _ = compiled(blocks, x, t)  # in blocks and with the options that `solve` takes
        runs: dict[str, Run] = {"ours": functools.partial(timed, program)}
        for variant in setting.options.variants:
            runs[variant] = functools.partial(setting.peers[name].run, do="network", variant=variant, **files)
        seconds, _ = take_turns(runs, 2 * setting.options.repeats)
        for who, values in seconds.items():
            rows.append({"who": who, "batch": size, **spread(values, size), **ratio(values, seconds["ours"])})
            print(rows[-1], flush=True)
        setting.variant[size] = min(setting.options.variants, key=lambda kind: np.median(seconds[kind]))
    return rows


def timed(program: Callable[[], Any]) -> Found:
    """Time a call that waits for its result."""
    begin = time.perf_counter()
    program()
    return time.perf_counter() - begin, np.empty(0)


def measure(setting: Setting, operator: Any, truth: np.ndarray) -> jax.Array:
    """Simulate measurements, the same for all."""
    keys = dd.image_keys(jax.random.key(0), jnp.arange(len(truth)))
    return jax.vmap(lambda x, key: dd.simulate(operator, x, SIGMA, key))(jnp.asarray(truth), keys)


def ours(setting: Setting, operator: Any, y: jax.Array, task: str, method: str, steps: int | None) -> Run:
    """Restore with a solver of ours, its default values for the task, or the published ones with all steps."""
    if steps is None:
        solver = dd.preset("faces64", task, method, values="published")
    else:
        solver = dd.preset("faces64", task, method, num_steps=steps)
    keys = dd.image_keys(jax.random.key(7), jnp.arange(len(y)))
    solve = functools.partial(dd.solve, solver, setting.prior, dd.Problem(operator, y, SIGMA), keys)

    @functools.cache
    def compiled_before() -> None:
        solve(on_chunk=lambda progress: True)  # stops before the first step

    def run() -> Found:
        compiled_before()
        begin = time.perf_counter()
        x = np.asarray(solve().x)
        return time.perf_counter() - begin, x

    return run


def theirs(setting: Setting, name: str, y: str, size: int, method: str, steps: int, tuned: bool = False) -> Run:
    """Restore with a sampler of a peer."""
    extra: dict[str, Any] = {"tuned": tuned}
    if name == "deepinv":
        nearest = min(setting.variant, key=lambda batch: abs(batch - size), default=0)
        extra = {"variant": setting.variant.get(nearest, setting.options.variants[0])}
        if method in GUIDED:  # the pass backwards is not what was timed; compiled it would also compile for minutes
            extra["variant"] = extra["variant"].replace("compiled", "channels_last")
    return functools.partial(setting.peers[name].run, do="solve", y=y, method=method, steps=steps, seed=7, **extra)


def steps(setting: Setting, name: str) -> list[dict[str, Any]]:
    """Time the steps of the samplers: a run of few steps over its number."""
    rows, count = [], setting.options.step_count
    task, operator = problem_of(name)
    methods = {m: m for m in ("ddrm", "diffpir", "dps")} if name == "deepinv" else {"dps": "dps:euler:0.01"}
    for size in setting.options.batches:
        y = measure(setting, operator, np.resize(setting.truth, (size, *SHAPE)))
        file = setting.give(f"y_{name}_{size}.npy", y)
        runs = {"ours ddiff": ours(setting, operator, y, task, "ddiff", count)}
        for method, other in methods.items():
            runs[f"ours {method}"] = ours(setting, operator, y, task, method, count)
            runs[f"{name} {method}"] = theirs(setting, name, file, size, other, count)
            if name == "diffuse":
                runs[f"{name} {method}, our options"] = theirs(setting, name, file, size, other, count, tuned=True)
        seconds, _ = take_turns(runs, setting.options.repeats)
        for who, values in seconds.items():
            own = seconds["ours " + who.split(",")[0].split()[1]]
            rows.append({"who": who, "batch": size, **spread(values, size * count), **ratio(values, own)})
            print(rows[-1], flush=True)
    return rows


def problem_of(name: str) -> tuple[str, Any]:
    """Choose what is restored beside a peer."""
    if name == "deepinv":
        return "super_resolution", operators.super_resolution(SHAPE, factor=4)
    return "random_inpainting", mask_operator()


def quality(setting: Setting, name: str) -> list[dict[str, Any]]:
    """Restore the photographs with every method and number of steps."""
    size, sweeps = len(setting.truth), setting.options.sweeps
    task, operator = problem_of(name)
    y = measure(setting, operator, setting.truth)
    file = setting.give(f"y_{name}.npy", y)
    # What the seconds at equal PSNR are read from is repeated; all else is run once, warm as well.
    often: dict[str, Run] = {}
    once: dict[str, Run] = {}
    facts: dict[str, tuple[str, str, int]] = {}
    mine, other = (OURS_SR, DEEPINV) if name == "deepinv" else (OURS_MASK, DIFFUSE)
    for who, methods in (("ours", mine), (name, other)):
        for method, counts in methods.items():
            if name == "deepinv" and method in GUIDED:
                counts = (setting.options.guided_steps,)
            for count in [min(counts[0], 5)] if setting.options.quick else counts:
                if who == "ours":
                    run = ours(setting, operator, y, task, method, count)
                else:
                    run = theirs(setting, name, file, size, method, count)
                compared = name == "deepinv" and method not in GUIDED and (who, method) != ("ours", "diffpir")
                (often if compared else once)[f"{who} {method} {count}"] = run
                facts[f"{who} {method} {count}"] = (who, method, count)
    if name == "deepinv" and not setting.options.quick:
        once["published"] = ours(setting, operator, y, task, "ddiff", None)
        facts["published"] = ("ours", "ddiff, published", 999)
    if name == "deepinv":
        theirs(setting, name, file, size, "ddrm", 2)()  # compiles the network for this batch
    (seconds, images), (slow, more) = take_turns(often, sweeps, 0), take_turns(once, 1, 0)
    rows = []
    for key, values in {**seconds, **slow}.items():
        who, method, count = facts[key]
        x = np.nan_to_num({**images, **more}[key], nan=0.0)
        one: Any = functools.partial(metrics.psnr, protocol="standard")
        mean = interval(np.asarray(jax.vmap(one)(x, setting.truth), float).tolist())
        row: dict[str, Any] = {"who": who, "method": method, "evaluations": count, "psnr": mean.mean}
        row |= {"half_width": mean.half_width, "seconds": (values / size).tolist(), "repeated": key in seconds}
        for metric, found in perceptual.distances(setting.lpips, np.clip(x, -1, 1), setting.truth).items():
            row[metric] = float(np.mean(found))
        rows.append(row)
        print(row, flush=True)
    return rows


SECTIONS = {"network": network, "steps": steps, "quality": quality}


def main() -> None:
    """Run the comparison."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=Path, required=True, help="folder of 64x64 photographs")
    parser.add_argument("--cache", type=Path, required=True, help="where the peers' environments are made and kept")
    parser.add_argument("--output", type=Path, default=Path("peers"))
    parser.add_argument("--python", default=shutil.which("python3.12") or sys.executable, help="3.12 or newer")
    parser.add_argument("--pip", default="", help="further arguments of pip install, such as an index of CPU builds")
    parser.add_argument("--peers", nargs="+", default=list(PEERS), choices=list(PEERS))
    parser.add_argument("--sections", nargs="+", default=list(SECTIONS), choices=list(SECTIONS))
    kinds = ["eager", "channels_last", "compiled"]
    parser.add_argument("--variants", nargs="+", default=kinds, choices=kinds, help="of deepinv's network")
    parser.add_argument("--count", type=int, default=8, help="photographs")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 16])
    parser.add_argument("--repeats", type=int, default=3, help="of short runs; twice as many of the network")
    parser.add_argument("--sweeps", type=int, default=2, help="repetitions of whole restorations")
    parser.add_argument("--step-count", type=int, default=5, help="steps of the short runs")
    text = "of DPS and PiGDM in super-resolution; deepinv's default is 1000, which takes 20 times as long"
    parser.add_argument("--guided-steps", type=int, default=50, help=text)
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="of PyTorch")
    parser.add_argument("--quick", action="store_true", help="five steps of everything, once")
    perceptual.add_flags(parser)
    options = parser.parse_args()
    options.cache, options.output = options.cache.resolve(), options.output.resolve()
    if options.quick:
        options.repeats, options.sweeps, options.step_count = 1, 1, 2
    folder = options.cache / "shared"
    folder.mkdir(parents=True, exist_ok=True)
    paths = sorted(options.images.glob("*.png"))[: options.count]
    truth = np.stack([image_files.read_picture(path)[0] for path in paths])
    setting = Setting(options, folder, dd.load_prior("faces64"), {}, truth, perceptual.load(options))
    export(setting)
    versions = {p: importlib.metadata.version(p) for p in ("jax", "flax", "numpy")}
    # One run per peer may write into the same folder: what the other has found stays.
    kept = options.output / "peers.json"
    found: dict[str, Any] = json.loads(kept.read_text()) if kept.exists() else {}
    for name in options.peers:
        setting.peers[name] = peer = Peer(name, options, folder)
        try:
            about = {"ours": versions, "peer": peer.ask(do="hello"), "python": sys.version.split()[0]}
            print(about, flush=True)
            begin = time.perf_counter()
            mine = found[name] = {"about": about | {"images": len(truth)}, "agreement": agree(setting, name)}
            for section in options.sections:
                if section != "network" or name == "deepinv":
                    mine[section] = SECTIONS[section](setting, name)
                    mine["about"]["seconds"] = time.perf_counter() - begin
                    write(found, options.output)
        finally:
            peer.close()
    print((options.output / "peers.md").read_text())


if __name__ == "__main__":
    main()
