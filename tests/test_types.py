"""What a run computes in: the type of its measurement, whatever JAX's default type is."""

import dataclasses
import functools
import json
import os
import subprocess
import sys
from typing import Any

import gibbs_oracles as gibbs
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import solver_oracles as oracle
from oracles import ALPHA_BAR, ddiff, timesteps, to_least
from solver_oracles import Model
from test_conformance import OPERATOR_EXAMPLES, SERVED_BY, SOLVER_EXAMPLES
from test_sitcom import sitcom
from test_solvers_flow import flower_loop, gaussian_path, pnp_flow_loop
from test_solvers_spectral import ddnm_loop, ddrm_loop, pigdm_loop
from test_tds import particle_tape, tds, walked
from weights import save_tiny_prior

import ddiff_jax as dd
from ddiff_jax import operators
from ddiff_jax.solvers import (
    DAPS,
    DDNM,
    DDRM,
    DDS,
    DPS,
    MMPS,
    SITCOM,
    SOLVERS,
    TDS,
    DDiff,
    DDiffHQS,
    DiffPIR,
    DiffPnPADMM,
    DiffPnPHQS,
    FilteredBackProjection,
    Fixed,
    Flower,
    PiGDM,
    PnPDM,
    PnPFlow,
    PseudoInverse,
    REDDiff,
    RichardsonLucy,
    Tikhonov,
    TotalVariation,
    ZeroFilled,
)
from ddiff_jax.types import float_type, to_type

pytestmark = pytest.mark.once

SHAPE = (8, 8, 2)
SIZE = 8 * 8 * 2
STEPS = 10
FLOAT64 = 1e-9  # relative, between two programs; with any number of the run in float32 they are 1e-7 apart
MEAN, VAR, SIGMA = 0.1, 0.2, 0.3
GAMMA = 0.3 * (256 * 256 * 3 / SIZE) ** 0.5
STRIDED, RESPACED, TO_CLEAN = timesteps(STEPS, "strided"), to_least(STEPS), timesteps(STEPS)
DYNAMICS: dict[str, Any] = {"lr": 1e-5, "ode_steps": 2, "langevin_steps": 3}


def unclipped(x_t, t):
    return Model(np.zeros(()), np.zeros(()), SIGMA, MEAN, VAR).x0_hat(x_t, ALPHA_BAR[t])


def hqs(m, x, tape):
    values: dict[str, Any] = {"gamma": 0.3, "a": 1, "b": 1, "t0": 1, "posterior": True, "dual": False}
    return ddiff(m.matrix, m.y, x, RESPACED, tape[:, 0], denoise=unclipped, **values)[0][-1]


def pnp(m, x, tape, dual):
    return oracle.diff_pnp(m, x, RESPACED[:-1], gamma=0.3, dual=dual)


def pir(m, x, tape):
    return oracle.diffpir(m, x, to_least(STEPS, "quad"), tape, step="prox", lam=7.0, zeta=0.3, eta=0.0)


def spectral(loop, **values):
    return lambda m, x, tape: loop(m.matrix, m.y, x, STRIDED, tape[:, 0], sigma_y=SIGMA, **values)


def denoised(x, sigma):
    return MEAN + VAR / (VAR + sigma**2) * (x - MEAN)


def decomposed(m, x, tape):
    rows = iter(tape[:, 0])

    def weight(ab):
        return 0.25 * (1 - ab) / (0.25 * ab + 1 - ab) / SIGMA**2

    values: dict[str, Any] = {"gamma": weight, "cg_steps": None, "published": False}
    return gibbs.dds(m.matrix, m.y, x, STEPS, lambda shape: next(rows), denoise=denoised, **values)


def split_gibbs(m, x, tape):
    """Every iteration has two steps, and draws in the first of them."""
    for k, rho in enumerate(np.maximum(10 * 0.005 ** (2 * np.arange(5) / 5), 0.05)):
        rows = iter(tape[2 * k])
        draw = functools.partial(lambda rows, shape: next(rows), rows)
        z = gibbs.langevin(m.gradient, x, SIGMA, rho, 1e-4, 3, draw)
        x = gibbs.draw_given_prior(z, rho, gibbs.levels(2, 0.01), draw, is_exact=True, denoise=denoised)
    return x


def flower(m, x, tape):
    return flower_loop(m, gaussian_path(MEAN, VAR), x, STEPS, tape, draw=False)


def pnp_flow(m, x, tape):
    return pnp_flow_loop(m, gaussian_path(MEAN, VAR), x, STEPS, tape, num_samples=3, alpha=0.3)


def with_slope(x, sigma):
    return denoised(x, sigma), VAR / (VAR + sigma**2)


def on_network_input(m, x, tape):
    """Noise is drawn in the second of two rows."""
    rows = {"forward": lambda z: m.matrix @ z, "adjoint": lambda r: m.matrix.T @ r, "denoise": with_slope}
    return sitcom(m.y, x, timesteps(STEPS // 2, "strided")[:-1], tape[1::2, 0], adam_steps=2, sigma_y=SIGMA, **rows)[0]


def particles(m, x, tape):
    """Two particles: draw 0 of a step resamples, 1 and 2 are their noise, 3 chooses."""
    uniforms = np.asarray(jax.scipy.special.ndtr(tape[..., 0]))
    levels = walked(dd.linear_schedule(), STEPS, "strided")
    rows = {"matrix": m.matrix, "sigma_y": SIGMA, "denoise": with_slope, "threshold": 0.9}
    found, log_w, parents, _ = tds(m.y, np.stack([x, x]), levels, tape[:, 1:3], uniforms[:, 0], **rows)
    assert [0, 0] in parents or [1, 1] in parents
    return found[int(uniforms[-1, 3] > 1 / (1 + np.exp(log_w[1] - log_w[0])))]


def least_squares(m, x, tape, lam=0.0):
    normal = m.matrix.T @ m.matrix + lam * np.eye(len(x))
    return x + np.linalg.pinv(normal) @ m.matrix.T @ (m.y - m.matrix @ x)


def richardson_lucy(m, x, tape):
    ones = np.ones_like(x)
    u, white, seen = np.maximum((x + 1) / 2, 0), m.matrix @ ones, m.matrix.T @ np.ones_like(m.y)
    for _ in range(STEPS):
        u = u * (m.matrix.T @ (np.maximum((m.y + white) / 2, 0) / (m.matrix @ u))) / seen
    return 2 * u - 1


# One per name in SOLVERS, with its published loop in NumPy, and whether the prior clips.
LOOPS = {
    "ddiff": (
        lambda: DDiff(num_steps=STEPS),
        lambda m, x, tape: oracle.ddiff_geometric(m, x, STEPS, tape, first=5.0, last=0.05),
        True,
    ),
    "ddiff_hqs": (lambda: DDiffHQS(Fixed(GAMMA, before=1.0, after=1.0), num_steps=STEPS), hqs, False),
    "diff_pnp_admm": (lambda: DiffPnPADMM(Fixed(GAMMA), num_steps=STEPS), functools.partial(pnp, dual=True), True),
    "diff_pnp_hqs": (lambda: DiffPnPHQS(Fixed(GAMMA), num_steps=STEPS), functools.partial(pnp, dual=False), True),
    "diffpir": (lambda: DiffPIR(num_steps=STEPS), pir, True),
    "dps": (lambda: DPS(0.5, num_steps=STEPS), lambda m, x, tape: oracle.dps(m, x, TO_CLEAN, tape, zeta=0.5), True),
    "daps": (
        lambda: DAPS(**DYNAMICS, num_steps=STEPS),
        lambda m, x, tape: oracle.daps(m, x, STEPS, tape, published=False, **DYNAMICS),
        False,
    ),
    "red_diff": (
        lambda: REDDiff(lr=0.02, num_steps=STEPS),
        lambda m, x, tape: oracle.red_diff(m, x, STRIDED[:-1], tape, lam=0.25, lr=0.02, weighting="linear"),
        False,
    ),
    "ddrm": (lambda: DDRM(num_steps=STEPS), spectral(ddrm_loop, eta=0.85, eta_b=1.0), False),
    "pigdm": (
        lambda: PiGDM(0.7, var=0.5, num_steps=STEPS),
        spectral(pigdm_loop, eta=0.7, var=0.5, posterior=False),
        False,
    ),
    "ddnm": (lambda: DDNM(num_steps=STEPS), spectral(ddnm_loop, eta=0.85), False),
    "dds": (lambda: DDS(num_steps=STEPS), decomposed, False),
    "pnp_dm": (lambda: PnPDM(num_steps=5, num_levels=2, likelihood="langevin", langevin_steps=3), split_gibbs, False),
    # Independent pixels of one variance make the covariance a multiple of the identity, as PiGDM takes it to be.
    "mmps": (
        lambda: MMPS(0.7, num_steps=STEPS, sampler="ddim", levels="strided", linear_solver="exact"),
        spectral(pigdm_loop, eta=0.7, var=VAR, posterior=True),
        False,
    ),
    "flower": (lambda: Flower("mean", num_steps=STEPS), flower, False),
    "pnp_flow": (lambda: PnPFlow(num_samples=3, num_steps=STEPS, length="published"), pnp_flow, False),
    "sitcom": (lambda: SITCOM(num_steps=STEPS // 2, adam_steps=2), on_network_input, False),
    "tds": (lambda: TDS(num_particles=2, ess_threshold=0.9, num_steps=STEPS, clip=False), particles, False),
    "zero_filled": (ZeroFilled, lambda m, x, tape: x + m.matrix.T @ (m.y - m.matrix @ x), False),
    "pseudo_inverse": (PseudoInverse, least_squares, False),
    # Its formula is recorded, see tests/test_op_fan_beam.py.
    "filtered_back_projection": (FilteredBackProjection, None, False),
    "tikhonov": (lambda: Tikhonov(0.3), functools.partial(least_squares, lam=0.3), False),
    # Its iterates depend on an estimate of the operator's norm; where they end is known, see tests/test_classical.py.
    "total_variation": (lambda: TotalVariation(0.1, num_steps=STEPS), None, False),
    "richardson_lucy": (lambda: RichardsonLucy("never", num_steps=STEPS), richardson_lucy, False),
}


@functools.cache
def case(name):
    """An operator with its matrix, a measurement, a start and a tape, all in float64."""
    is_served = SERVED_BY[name] == "super_resolution"
    operator = operators.super_resolution(SHAPE, factor=2) if is_served else OPERATOR_EXAMPLES[SERVED_BY[name]](SHAPE)
    matrix = np.asarray(jax.jit(jax.vmap(operator.forward))(np.eye(SIZE).reshape(SIZE, *SHAPE))).reshape(SIZE, -1).T
    y, x_init = np.random.RandomState(0).standard_normal((2, SIZE))
    tape = np.random.RandomState(1).standard_normal((STEPS, 4, SIZE))
    return operator, matrix, matrix @ y, x_init, tape


@pytest.mark.parametrize("name", SOLVERS)
def test_a_measurement_in_float64_is_solved_in_float64(name, x64):
    make, loop, clip = LOOPS[name]
    operator, matrix, y, x_init, tape = case(name)
    prior = dd.GaussianPrior(MEAN, VAR, dd.linear_schedule(), SHAPE, clip=clip)
    shape_of_y = jax.eval_shape(operator.forward, jnp.zeros(SHAPE)).shape
    start, images, measured = (
        jnp.asarray(a.reshape(1, *shape)) for a, shape in ((x_init, SHAPE), (tape, (STEPS, 4, *SHAPE)), (y, shape_of_y))
    )
    keys = dd.image_keys(jax.random.key(0), jnp.arange(1))
    images = particle_tape(images, 2) if name == "tds" else images
    solution = dd.solve(make(), prior, dd.Problem(operator, measured, SIGMA), keys, noise=images, x_init=start)
    assert {leaf.dtype for leaf in jax.tree.leaves((solution.x, solution.info))} == {jnp.dtype(jnp.float64)}
    if loop is None:
        return
    want = loop(Model(matrix, y, SIGMA, MEAN, VAR), x_init, tape)
    assert np.linalg.norm(np.asarray(solution.x).ravel() - want) < FLOAT64 * np.linalg.norm(want)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64, jnp.complex64, jnp.complex128])
@pytest.mark.parametrize("name", SOLVERS)
def test_the_measurement_decides_the_type(name, dtype, x64):
    """Solver, prior, operator, noise level and start are made in float64 here."""
    mask = np.arange(64).reshape(8, 8) % 3 == 0
    is_complex = jnp.issubdtype(dtype, jnp.complexfloating)
    if is_complex and name in ("richardson_lucy", "filtered_back_projection"):
        pytest.skip("it meets no complex measurements")
    operator = operators.fourier(SHAPE, mask) if is_complex else operators.gaussian_blur(SHAPE, size=5, std=0.8)
    if name == "filtered_back_projection":
        operator = OPERATOR_EXAMPLES[SERVED_BY[name]](SHAPE)
    measured = jax.eval_shape(operator.forward, jnp.zeros(SHAPE))
    prior = dd.GaussianPrior(MEAN, VAR, dd.linear_schedule(), SHAPE)
    solve = functools.partial(dd.solve_one, SOLVER_EXAMPLES[name](3), prior)
    solution = jax.eval_shape(
        lambda y, key, x_init: solve(dd.Problem(operator, y, SIGMA), key, x_init=x_init),
        jax.ShapeDtypeStruct(measured.shape, dtype),
        jax.random.key(0),
        jax.ShapeDtypeStruct(SHAPE, jnp.float64),
    )
    types = {leaf.dtype for leaf in jax.tree.leaves((solution.x, solution.info))}
    assert types == {jnp.finfo(dtype).dtype}


def test_hyper_parameters_and_tables_keep_the_digits_that_jax_allows(x64):
    blur = operators.blur(SHAPE, kernel=[[0.1, 0.8, 0.1]])
    assert Fixed(20.1).gamma == 20.1 and dd.Poisson(30.1).photons == 30.1 and blur.kernel[0, 0] == 0.1
    np.testing.assert_array_equal(dd.linear_schedule().alpha_bar, ALPHA_BAR)
    with jax.enable_x64(False):
        gamma = Fixed(20.1).gamma
        assert jnp.asarray(gamma).dtype == jnp.float32 and gamma == np.float32(20.1)


def test_float_type_and_to_type_see_nothing_but_floats(x64):
    for y, want in ((jnp.zeros(2, jnp.complex128), "float64"), (jnp.zeros(2, jnp.bfloat16), "float32"), (3, "float32")):
        assert float_type(y) == want
    tree: Any = [jnp.zeros(2, dtype) for dtype in ("float64", "complex128", "bfloat16", "int64")]
    narrow: Any = to_type([*tree, jax.random.key(0), 0.5, None], "float32")
    assert [leaf.dtype.name for leaf in narrow[:4]] == ["float32", "complex64", "bfloat16", "int64"]
    assert narrow[5:] == [0.5, None]
    assert [leaf.dtype.name for leaf in to_type(narrow[:2], "float64")] == ["float64", "complex128"]


def test_draws_are_the_same_numbers_in_both_types(x64):
    narrow, wide = (dd.KeyNoise(jax.random.key(0), dtype).draw(1, SHAPE) for dtype in ("float32", "float64"))
    assert (narrow.dtype, wide.dtype) == (jnp.float32, jnp.float64)
    np.testing.assert_array_equal(narrow, wide)


@dataclasses.dataclass(frozen=True)
class Picky:
    """A network that takes one type only, and says so."""

    dtype: str

    def apply(self, variables, x, t):
        assert x.dtype == t.dtype == self.dtype, (x.dtype, t.dtype)
        return x * variables["params"]["w"]


@pytest.mark.parametrize("own", ["float32", "float64"])
def test_a_network_keeps_its_own_type(own, x64):
    prior = dd.DiffusionPrior({"w": jnp.ones((), own)}, dd.linear_schedule(), Picky(own), SHAPE)
    for dtype in (jnp.float32, jnp.float64):
        x, level = jnp.ones(SHAPE, dtype), to_type(dd.linear_schedule().at_time(500.5), dtype)
        assert prior.predict(x, level)[1].dtype == prior.denoise(x, level).dtype == dtype


def test_the_packaged_network_takes_images_in_float64(x64):
    prior = dd.load_prior("faces64")
    x = jax.ShapeDtypeStruct((64, 64, 3), jnp.float64)
    assert jax.eval_shape(prior.denoise, x, prior.schedule.levels(1)[0]).dtype == jnp.float64


def test_the_command_line_works_under_x64(tmp_path):
    save_tiny_prior(tmp_path / "prior")
    document = {}
    for wide in ("0", "1"):
        command = [
            sys.executable,
            "-m",
            "ddiff_jax",
            "restore",
            "--prior",
            "prior",
            "--preset",
            "faces64",
            "--no-cache",
        ]
        done = subprocess.run(
            [*command, "--resize", "--steps", "3", "--factor", "2", "--output", wide],
            env={**os.environ, "JAX_ENABLE_X64": wide, "JAX_PLATFORMS": "cpu"},
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert done.returncode == 0, done.stderr
        document[wide] = json.loads((tmp_path / wide / "metrics.json").read_text())
    settings, images = ([document[wide][part] for wide in "01"] for part in ("runs", "images"))
    assert settings[0][0]["settings"] == settings[1][0]["settings"]
    np.testing.assert_allclose(images[0][0]["psnr"], images[1][0]["psnr"], atol=1e-3)
