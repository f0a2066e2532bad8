"""Derivatives of the restored image through every solver, against central differences in float64."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_tds import particle_tape

import ddiff_jax as dd
from ddiff_jax import operators
from ddiff_jax.operators import LinearOperator
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
from ddiff_jax.solvers.base import norm, ratio, root
from ddiff_jax.solvers.sampling import Sampler
from ddiff_jax.types import to_type

pytestmark = pytest.mark.once

SHAPE = (8, 8, 1)
AGREEMENT = 1e-4  # relative
ROUNDING = 1e-6  # of a central difference: the loss is known to some 1e-13, the step is 1e-6 of a number
STEPS = 3
KERNEL = np.array([[0.02, 0.08, 0.0], [0.08, 0.7, 0.05], [0.0, 0.05, 0.02]])
MASK = np.random.RandomState(0).rand(8, 8) < 0.6

# Every name in SOLVERS; values inside of their ranges, where derivatives have two sides.
EXAMPLES = {
    "ddiff": DDiff(num_steps=STEPS),
    "ddiff with gamma": DDiff(Fixed(20.0), noise_schedule="posterior", num_steps=STEPS),
    "ddiff_hqs": DDiffHQS(num_steps=STEPS),
    "diff_pnp_admm": DiffPnPADMM(Fixed(20.0), num_steps=STEPS),
    "diff_pnp_hqs": DiffPnPHQS(Fixed(20.0), num_steps=STEPS),
    "diffpir": DiffPIR(eta=0.3, num_steps=STEPS),
    "dps": DPS(zeta=0.5, num_steps=STEPS),
    "daps": DAPS(lr=1e-4, var=0.3, momentum=0.4, num_steps=2, ode_steps=2, langevin_steps=3),
    "red_diff": REDDiff(sigma_x0=0.1, num_steps=STEPS),
    "ddrm": DDRM(eta_b=0.9, num_steps=STEPS),
    "pigdm": PiGDM(eta=0.8, num_steps=STEPS),
    "ddnm": DDNM(num_steps=STEPS),
    "dds": DDS(num_steps=STEPS, data_step="prox"),
    "dds with conjugate gradients": DDS(data_weight=5.0, num_steps=STEPS, data_step="cg", cg_steps=2),
    "pnp_dm": PnPDM(num_steps=STEPS, num_levels=3, langevin_steps=4),
    "mmps": MMPS(eta=0.5, sigma_max=20.0, sigma_min=0.1, num_steps=STEPS),
    "mmps with noise": MMPS(eta=0.6, num_steps=STEPS, sampler="ddim", linear_solver="gmres", iterations=2),
    "mmps solved": MMPS(eta=0.5, num_steps=STEPS, sampler="ddpm", levels="strided", linear_solver="exact"),
    "flower": Flower(var=0.4, num_steps=STEPS),
    "flower mean": Flower("mean", 0.4, num_steps=STEPS),
    "pnp_flow": PnPFlow(num_samples=2, num_steps=STEPS),
    "pnp_flow published": PnPFlow(num_samples=2, num_steps=STEPS, length="published"),
    "sitcom": SITCOM(num_steps=2, adam_steps=2),
    "tds": TDS(num_particles=2, num_steps=STEPS),
    "zero_filled": ZeroFilled(),
    "pseudo_inverse": PseudoInverse(),
    # No operator here serves it: see tests/test_op_fan_beam.py.
    "filtered_back_projection": FilteredBackProjection(outside=-0.4),
    "tikhonov": Tikhonov(num_steps=8),
    "tikhonov with lam": Tikhonov(0.03),
    "total_variation": TotalVariation(num_steps=STEPS),
    "total_variation with lam": TotalVariation(0.03, num_steps=STEPS),
    "richardson_lucy": RichardsonLucy("never", num_steps=STEPS),
}


@dd.pytree_dataclass
class Sensor:
    """A nonlinear operator that compiles in no time."""

    gain: jax.Array

    def forward(self, x):
        return jnp.tanh(self.gain * x)


@functools.cache
def physics():
    """Operators with a measurement each; made in float64, once."""
    with jax.enable_x64(True):
        made = {
            "blur": operators.blur(SHAPE, kernel=KERNEL),
            "inpainting": operators.inpainting(SHAPE, MASK),
            "nonlinear": Sensor(jnp.float64(1.3)),
            "fourier": operators.fourier(SHAPE, MASK),
        }
        x = jnp.asarray(0.4 * draw(1))
        return {kind: (operator, np.asarray(operator.forward(x)) + 0.05) for kind, operator in made.items()}


def draw(seed, shape=SHAPE):
    return np.random.RandomState(seed).standard_normal(shape)


def serves(operator, solver):
    return all(hasattr(operator, need) for need in solver.needs.methods)


# Solvers by least squares meet the blur, whose solution is iterated, and those that follow the gradient the nonlinear
# operator; of the others nothing is new there, and they wait for the slow run.
ITERATED = ("ddiff", "diffpir", "pigdm", "tikhonov", "pseudo_inverse")
# One iteration finds the solution for this mask, but not for one beside it: a kink in the mask.
KINKS = [("dds with conjugate gradients", "inpainting"), ("mmps", "inpainting")]


# Of these one kind stands for the others.
SAMPLERS = ("dds", "pnp_dm", "mmps", "flower", "pnp_flow", "sitcom", "tds")


def is_slow(name, solver, kind):
    if name.split()[0] in SAMPLERS:
        return kind != ("inpainting" if solver.needs.methods else "nonlinear")
    if kind == "blur":
        return name not in ITERATED
    return kind == "inpainting" and not solver.needs.methods and name not in ITERATED


CASES = [
    pytest.param(name, kind, marks=[pytest.mark.slow] if is_slow(name, solver, kind) else [])
    for name, solver in EXAMPLES.items()
    for kind, (operator, _) in physics().items()
    if serves(operator, solver) and (kind != "fourier" or name == "ddiff") and (name, kind) not in KINKS
]


def test_every_solver_has_an_example():
    assert set(SOLVERS) <= set(EXAMPLES)


@pytest.mark.parametrize(("name", "kind"), CASES)
def test_derivatives_of_the_restoration_are_central_differences(name, kind, x64):
    operator, y = physics()[kind]
    if kind == "inpainting":
        y = y * np.asarray(operator.mask)
    prior = dd.GaussianPrior(0.1, 0.2, dd.linear_schedule(), SHAPE)
    tape, weights, key = jnp.asarray(draw(2, (8, 8, *SHAPE))), draw(3), jax.random.key(0)
    tape = particle_tape(tape, 2) if name == "tds" else tape
    everything = {"y": y, "sigma_y": 0.05, "solver": EXAMPLES[name], "operator": operator}
    paths, structure = jax.tree_util.tree_flatten_with_path(everything)
    names, leaves = [jax.tree_util.keystr(path) for path, _ in paths], [np.asarray(leaf) for _, leaf in paths]
    leaves = [leaf.astype(complex if leaf.dtype.kind == "c" else float) for leaf in leaves]

    @jax.jit
    def loss_and_gradient(leaves):
        def loss(leaves):
            given = jax.tree.unflatten(structure, leaves)
            problem = dd.Problem(given["operator"], given["y"], given["sigma_y"])
            x = dd.solve_one(given["solver"], prior, problem, key, tape).x
            assert x.dtype == jnp.float64
            return jnp.vdot(weights, x)

        return jax.value_and_grad(loss)(leaves)

    _, gradient = jax.device_get(loss_and_gradient(leaves))
    for i, (leaf, slope) in enumerate(zip(leaves, gradient, strict=True)):
        assert np.isfinite(slope).all(), names[i]
        direction = draw(4, leaf.shape) if leaf.ndim else np.ones(())
        if names[i].endswith(".mask"):
            direction = direction * leaf  # hidden entries stay hidden
        h = 1e-6 * np.abs(leaf).max()
        up, down = (
            float(loss_and_gradient([*leaves[:i], leaf + move * direction, *leaves[i + 1 :]])[0]) for move in (h, -h)
        )
        along = np.sum(np.real(slope * direction))
        np.testing.assert_allclose(along, (up - down) / (2 * h), rtol=AGREEMENT, atol=ROUNDING, err_msg=names[i])
    assert np.abs(gradient[names.index("['y']")]).max() > 1e-6


def test_roots_and_ratios_have_finite_derivatives_at_zero_and_hide_no_nan():
    zero, x = jnp.zeros(()), jnp.zeros((2, 2, 1))
    np.testing.assert_array_equal([root(zero), jax.grad(root)(zero), jax.grad(root)(zero - 1)], 0)
    np.testing.assert_array_equal(jax.grad(norm)(x), 0)
    np.testing.assert_array_equal(jax.grad(lambda x: ratio(x, norm(x)).sum())(x), 0)
    np.testing.assert_allclose(jax.grad(root)(jnp.float32(4.0)), 0.25)
    assert jnp.isnan(root(zero / 0)) and jnp.isnan(ratio(zero + 1, zero / 0))


def test_an_exact_fit_has_finite_derivatives():
    """Nothing is measured and nothing is missed: residual, its gradient and the curvature are all zero."""
    prior = dd.GaussianPrior(0.0, 0.2, dd.linear_schedule(), SHAPE)
    solvers = (DDiff(num_steps=2), DDiff(Fixed(1.0), num_steps=2), DPS(1.0, num_steps=2), DiffPIR(num_steps=2))

    @jax.jit
    def loss(y, gain):
        total, noise = 0.0, dd.TapeNoise(jnp.ones((1, *SHAPE)))
        solver: Any
        for solver in solvers:
            problem = dd.Problem(Sensor(gain), y, 0.1)
            point = jax.tree.map(lambda column: column[0], to_type(solver.grid(prior.schedule), jnp.float32))
            state = solver.init(prior, problem, point, noise)
            state, info = solver.step(prior, problem, state, point, noise)
            total += jnp.sum(solver.estimate(state)) + sum(map(jnp.sum, jax.tree.leaves(info)))
        return total

    for gradient in jax.grad(loss, (0, 1))(jnp.zeros(SHAPE), jnp.zeros(())):
        assert jnp.isfinite(gradient).all()


def test_tables_have_finite_derivatives_at_the_ends_of_ranges():
    ends = [
        DiffPIR(zeta=0.0),
        DiffPIR(zeta=1.0, eta=1.0),
        PiGDM(),
        PiGDM(eta=0.0),
        Sampler(num_steps=9),
        Sampler(eta=0.0),
        MMPS(num_steps=9),
        MMPS(num_steps=9, sampler="ddim"),
        MMPS(eta=1.0, num_steps=9, sampler="ddim", levels="strided"),
    ]

    @jax.jit
    @jax.grad
    def slopes(solvers):
        columns = jax.tree.leaves([solver.grid(dd.linear_schedule()) for solver in solvers])
        return sum(jnp.sum(column) for column in columns if column.dtype == jnp.float32)

    assert all(jnp.isfinite(leaf) for leaf in jax.tree.leaves(slopes(ends)))


@pytest.mark.parametrize("kind", ["inpainting", "fourier"])
def test_weighted_masks_have_the_least_squares_of_their_forward(kind, x64):
    """What a derivative with respect to a mask asks for: entries between 0 and 1."""
    operator, y = physics()[kind]
    weights = operator.mask.astype(jnp.float64) * jnp.linspace(0.5, 1.0, 64).reshape(8, 8, 1)
    operator = dataclasses.replace(operator, mask=weights)
    z, y = jnp.asarray(draw(5)), jnp.asarray(y)
    want = jax.jit(functools.partial(LinearOperator.prox, operator))(z, y, 0.1)
    np.testing.assert_allclose(operator.prox(z, y, 0.1), want, rtol=1e-9, atol=1e-9)


def test_iterated_least_squares_have_the_right_derivatives(x64):
    operator, y = physics()["blur"]
    y, dy, z, dk = map(jnp.asarray, (y, draw(1), draw(2), draw(3, KERNEL.shape)))

    @jax.jit
    def solutions(step):
        moved = dataclasses.replace(operator, kernel=operator.kernel + step * dk)
        return moved.prox(z, y + step * dy, 1e-3), moved.pseudo_inverse(y + step * dy)

    h = 1e-5
    quotients = jax.tree.map(lambda up, down: (up - down) / (2 * h), solutions(h), solutions(-h))
    _, slopes = jax.jit(lambda step: jax.jvp(solutions, (step,), (jnp.ones_like(step),)))(jnp.float64(0))
    for slope, quotient in zip(slopes, quotients, strict=True):
        np.testing.assert_allclose(slope, quotient, rtol=AGREEMENT, atol=1e-4)
