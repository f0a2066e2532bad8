"""The samplers of diffuse-jax on our network, in a process of their own; `benchmarks/peers.py` installs and asks.

    python benchmarks/peers/diffuse_peer.py FOLDER

FOLDER holds `network.json`, `mask.npy` and arrays to work on; our package must be installed beside diffuse-jax, for the
network and its weights. Every line of the input is a job in JSON, every answer a line that begins with PEER.

diffuse-jax 0.1.1 conditions on a measurement by DPS, TMP and FPS. It ships no operators beyond the mask of its examples
(diffuse/examples/mnist/forward_model.py), which is the one here.
"""

import dataclasses
import functools
import importlib.metadata
import json
import sys
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from diffuse.base_forward_model import MeasurementState
from diffuse.denoisers.cond import DPSDenoiser, FPSDenoiser, TMPDenoiser
from diffuse.diffusion.sde import SDE, LinearSchedule
from diffuse.integrator.deterministic import DDIMIntegrator, EulerIntegrator
from diffuse.integrator.stochastic import EulerMaruyamaIntegrator
from diffuse.predictor import Predictor
from diffuse.timer import VpTimer

import ddiff_jax as dd
from ddiff_jax._execution import CPU_OPTIONS


@dataclasses.dataclass
class Mask:
    """Pixels that are seen, as in its example."""

    std: float

    def apply(self, img: Any, measurement_state: MeasurementState) -> Any:
        """Hide pixels."""
        return img * measurement_state.mask_history

    adjoint = apply

    def restore(self, img: Any, measurement_state: MeasurementState) -> Any:
        """Keep what is hidden."""
        return img * (1 - measurement_state.mask_history)


INTEGRATORS = {"euler": EulerIntegrator, "ddim": DDIMIntegrator, "maruyama": EulerMaruyamaIntegrator}
DENOISERS = {"dps": DPSDenoiser, "tmp": TMPDenoiser, "fps": FPSDenoiser}


def main() -> None:
    """Answer jobs until the input ends."""
    folder = Path(sys.argv[1])
    config = json.loads((folder / "network.json").read_text())
    prior, mask = dd.load_prior(config["prior"]), jnp.asarray(np.load(folder / "mask.npy"))
    # The variance-preserving diffusion that our timesteps discretise: beta from 0.1 to 20 on [0, 1], where timestep k
    # of 1000 ends at (k + 1) / 1000. The examples' own schedules belong to their networks.
    model = SDE(LinearSchedule(b_min=0.1, b_max=20.0, t0=0.0, T=1.0))
    programs: dict[str, Any] = {}

    def eps(weights: Any, x: Any, t: Any) -> Any:
        t = jnp.float32(1000 * t - 1)
        return prior.module.apply({"params": weights}, x[None], t[None])[0, ..., : x.shape[-1]]

    def build(method: str, steps: int, weights: Any) -> Any:
        """Build a sampler, such as "dps:euler:0.01"; what is not said is its default.

        The integrator and the timer of its README are Euler and VpTimer(eps=0.001, tf=1.0). zeta is 0.01 by default;
        the paper of DPS has 1 in these units.
        """
        kind, integrator, *zeta = method.split(":")
        predictor = Predictor(model, functools.partial(eps, weights), "noise")
        timer = VpTimer(n_steps=steps, eps=0.001, tf=1.0)
        values = {"zeta": float(zeta[0])} if zeta else {}
        walk = INTEGRATORS[integrator](model=model, timer=timer)
        forward = Mask(config["sigma_y"])
        return DENOISERS[kind](walk, model, predictor, forward, x0_shape=prior.image_shape, **values)

    def program(job: dict[str, Any], *arguments: Any) -> Any:
        """Compile a run once: every image is a measurement of its own, so that each has a run of one particle."""
        key = json.dumps([job["method"], job["steps"], job["tuned"], arguments[-1].shape])
        if key not in programs:

            def one(weights: Any, key: Any, y: Any) -> Any:
                sampler = build(job["method"], job["steps"], weights)
                state, _ = sampler.generate(key, MeasurementState(y, mask), job["steps"], 1)
                return state.integrator_state.position[0]

            lowered = jax.jit(jax.vmap(one, in_axes=(None, 0, 0))).lower(*arguments)
            programs[key] = lowered.compile(CPU_OPTIONS if job["tuned"] else {})
        return programs[key]

    for line in sys.stdin:
        job = json.loads(line)
        answer: dict[str, Any] = {}
        if job["do"] == "hello":
            names = ("diffuse-jax", "jax", "jaxlib", "flax", "numpy")
            answer = {name: importlib.metadata.version(name) for name in names}
        elif job["do"] == "network":
            t = (jnp.asarray(np.load(folder / job["t"])) + 1.0) / 1000
            predictor = build("dps:euler", 1, prior.params).predictor
            out = jax.jit(jax.vmap(predictor.noise))(jnp.asarray(np.load(folder / job["x"])), t)
            np.save(folder / job["output"], np.asarray(out))
        elif job["do"] == "solve":
            y = jnp.asarray(np.load(folder / job["y"]))
            keys = jax.random.split(jax.random.PRNGKey(job["seed"]), len(y))
            run = program(job, prior.params, keys, y)
            begin = time.perf_counter()
            x = jax.block_until_ready(run(prior.params, keys, y))
            answer["seconds"] = time.perf_counter() - begin
            np.save(folder / job["output"], np.asarray(x))
        print("PEER " + json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
