"""DDiff with the packaged prior against recorded trajectories of the released code."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracles import tape_row

import ddiff_jax as dd
from ddiff_jax import operators
from ddiff_jax.types import to_type

# What can be asked: fixed-length steps amplify rounding, so later states are held to ten times the largest difference
# between two float32 runs of the original with different convolution algorithms, recorded beside each state.
FIRST_TEN, DRIFTS = 1e-3, 10
PSNR = 0.01  # dB

CASES = {
    "sr4": (
        lambda: operators.super_resolution((64, 64, 3), factor=4),
        dd.preset("ffhq", "super_resolution", values="published", num_steps=50),
    ),
    "gaussian": (
        lambda: operators.gaussian_blur((64, 64, 3), size=61, std=3.0),
        dd.preset("ffhq", "gaussian_blur", values="published", num_steps=50),
    ),
}


@pytest.mark.once
@pytest.mark.parametrize("name", CASES)
def test_recorded_trajectory_is_followed(golden, optimised, name):
    build, solver = CASES[name]
    with np.load(golden(f"ddiff_trace_{name}.npz")) as data:
        recorded = dict(data)
    prior = dd.load_prior("faces64")
    problem = dd.Problem(build(), jnp.asarray(recorded["y"]), 0.05)
    grid = to_type(solver.grid(prior.schedule), jnp.float32)
    first = jax.tree.map(lambda column: column[0], grid)
    np.testing.assert_array_equal(grid.level.time, recorded["timesteps"][:-1])
    state = solver.init(prior, problem, first, dd.KeyNoise(jax.random.key(0)), jnp.asarray(recorded["x_start"]))
    step = jax.jit(solver.step)
    states = dict(zip(recorded["after"].tolist(), recorded["states"], strict=True))
    drifts = dict(zip(recorded["after"].tolist(), recorded["drift"].tolist(), strict=True))
    for k in range(50):
        point = jax.tree.map(lambda column, k=k: column[k], grid)
        state, _ = step(prior, problem, state, point, dd.TapeNoise(jnp.asarray(tape_row(k + 1, 64))[None]))
        if k + 1 in states:
            tolerance = FIRST_TEN if k < 10 else FIRST_TEN + DRIFTS * drifts[k + 1]
            np.testing.assert_allclose(state.x_t, states[k + 1], atol=tolerance, rtol=0, err_msg=f"step {k + 1}")
    error = np.mean((np.clip(np.asarray(state.x_t), -1, 1) - recorded["x_true"]) ** 2)
    np.testing.assert_allclose(10 * np.log10(4 / error), recorded["final_psnr"], atol=PSNR)
