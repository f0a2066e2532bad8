"""Restore a folder with Ray Data: every actor of a pool holds the prior and its compiled program.

    pip install "ray[data]"
    python docs/examples/ray_restore.py archive --output out --actors 8 --gpus 1

The pictures are those of `ddiff restore` with the same flags, bit for bit on machines of one kind. All of them must see
both folders under the same path. What Ray loses it computes again; the same command makes only what is missing.
"""

import argparse
import math
import os
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import ray

import ddiff_jax as dd
from ddiff_jax import image_files, metrics
from ddiff_jax.operators.named import maker
from ddiff_jax.restoration import Job, find_jobs, resolve
from ddiff_jax.restoration.parameters import is_random
from ddiff_jax.safe_text import csv_cell


class Restorer:
    """One actor. Its first batch compiles what serves all others."""

    def __init__(self, asked: dict[str, Any], output: str, batch_size: int):
        self.settings = settings = resolve(**asked)
        self.operator = maker(settings.operator).build(settings.shape, **settings.arguments)
        self.prior = dd.load_prior(settings.prior, dtype=settings.dtype).with_label(settings.label)
        self.root = jax.random.key(settings.seed)
        self.simulate = jax.jit(dd.simulate)
        self.output, self.batch_size = Path(output), batch_size

    def __call__(self, rows: dict[str, np.ndarray]) -> dict[str, Any]:
        """Restore the pictures that the rows name; a bad one costs no other."""
        jobs = [
            Job(Path(path), stem, f"{stem}_", self.output)
            for path, stem in zip(rows["path"], rows["stem"], strict=True)
        ]
        keys = dd.image_keys(self.root, jnp.asarray([job.image_id for job in jobs], jnp.int32))
        table = {**rows, "misfit": np.full(len(jobs), np.nan), "error": np.full(len(jobs), "", object)}
        table["made_by"] = np.full(len(jobs), f"{os.uname().nodename}:{os.getpid()}", object)
        read: dict[int, jax.Array] = {}
        for i, job in enumerate(jobs):
            try:
                read[i] = self.measured(job, keys[i])
            except (ValueError, OSError) as error:
                table["error"][i] = str(error)
        if not read:
            return table
        # Filled up, so that one program serves all batches; neighbours do not change a result.
        rows_of_y = list(read) + [list(read)[-1]] * (self.batch_size - len(read))
        y, sigma_y = jnp.stack([read[i] for i in rows_of_y]), jnp.full(self.batch_size, self.settings.sigma_y)
        problem = dd.Problem(self.operator, y, sigma_y, self.settings.likelihood)
        solution = jax.device_get(dd.solve(self.settings.solver, self.prior, problem, keys[jnp.asarray(rows_of_y)]))
        misfit = metrics.measure(problem, solution.x)["misfit"]
        for place, i in enumerate(read):
            table["misfit"][i] = misfit[place]
            if solution.finite[place]:
                image_files.write_png(jobs[i].result("restored"), solution.x[place])  # whole or not at all
            else:
                table["error"][i] = "diverged to NaN or infinity"
        return table

    def measured(self, job: Job, key: jax.Array) -> jax.Array:
        """Read a measurement, or a clean picture and measure it."""
        settings = self.settings
        x, _ = image_files.read(job.path, settings.shape[2])
        wanted = jax.eval_shape(self.operator.forward, jnp.zeros(settings.shape)) if settings.measured else settings
        if x.shape != wanted.shape:
            raise ValueError(f"{job.path} is {list(x.shape)}, it must be {list(wanted.shape)}")
        if settings.measured:
            return jnp.asarray(x)
        noise_key = dd.stream_key(key, dd.Stream.MEASUREMENT)
        return self.simulate(self.operator, x, np.float32(settings.sigma_y), noise_key, settings.likelihood)


def main() -> None:
    """Read the command line, restore, and write the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("folder")
    parser.add_argument("--output", type=Path, default=Path("restored"))
    parser.add_argument("--batch-size", type=int, default=8, help="pictures that an actor restores together")
    parser.add_argument("--actors", type=int, default=1)
    parser.add_argument("--gpus", type=float, default=0, help="of every actor")
    for name, kind in (("task", str), ("solver", str), ("prior", str), ("steps", int), ("sigma", float), ("seed", int)):
        parser.add_argument(f"--{name}", type=kind, default=argparse.SUPPRESS, help="as of ddiff restore")
    parser.add_argument("--measured", action="store_true", default=argparse.SUPPRESS, help="as of ddiff restore")
    asked = vars(parser.parse_args())
    folder, output, size = asked.pop("folder"), asked.pop("output"), asked.pop("batch_size")
    actors, gpus = asked.pop("actors"), asked.pop("gpus")
    settings = resolve(**asked)  # says now what does not fit
    if is_random(settings.operator, settings.arguments):
        parser.error(f"{settings.operator} is drawn anew for every picture; here all share one")
    output.mkdir(parents=True, exist_ok=True)
    jobs = [job for job in find_jobs([folder], output).jobs if not job.result("restored").exists()]
    if not jobs:
        return print(f"nothing is missing in {output}")
    rows = [{"path": str(job.path.resolve()), "stem": job.stem} for job in jobs]
    table = ray.data.from_items(rows, override_num_blocks=math.ceil(len(rows) / size)).map_batches(
        Restorer,
        batch_size=size,
        compute=ray.data.ActorPoolStrategy(size=actors, max_tasks_in_flight_per_actor=1),  # a task takes seconds
        fn_constructor_args=(asked, str(output.resolve()), size),
        num_gpus=gpus,
    )
    found = table.to_pandas().sort_values("stem")
    found.map(csv_cell).to_csv(csv := output / "restored.csv", mode="a", header=not csv.exists(), index=False)
    print(f"restored {sum(found['error'] == '')} of {len(found)}; see {csv}")


if __name__ == "__main__":
    main()
