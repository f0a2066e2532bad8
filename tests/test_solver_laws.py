"""Laws that every solver obeys on every operator that it accepts. Both lists come from the package."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_conformance import KINDS_OF_SOLVERS, OPERATOR_EXAMPLES, SERVED_BY, SOLVER_EXAMPLES, draw

import ddiff_jax as dd
from ddiff_jax import operators, solvers
from ddiff_jax.operators import OPERATORS, serving
from ddiff_jax.solvers import SOLVERS
from ddiff_jax.solvers.base import count_steps, require_operator
from ddiff_jax.types import to_type

pytestmark = pytest.mark.once

SHAPE = (8, 8, 3)
STEPS, DRAWS = 2, 5  # DAPS draws most of one shape: for three steps of its dynamics, to noise again, and a velocity
SIGMA = 0.05
IMAGES = 4  # see `solver_case` in test_conformance.py
FLOAT = jnp.float32
PROGRAMS = 1e-5  # two compiled programs of the same mathematics
HERE = {  # where the examples for 16x16 images do not fit; inpainting and blurs share their programs with others
    "box_inpainting": lambda shape: operators.box_inpainting(shape, jax.random.key(0), size=3, margin=1),
    "tomography": lambda shape: operators.tomography(shape, angles=[10.0, 70.0, 130.0]),  # even, for filtering
    "fan_beam_tomography": lambda shape: operators.fan_beam_tomography(shape, angles=[10.0, 130.0, 250.0]),
    "sparse_tomography": lambda shape: operators.sparse_tomography(shape, num_angles=3),
    "sparse_fan_beam_tomography": lambda shape: operators.sparse_fan_beam_tomography(shape, num_angles=3),
    "motion_blur": lambda shape: operators.motion_blur(shape, 0, size=5),
    "blur": lambda shape: operators.blur(shape, kernel=np.random.RandomState(1).rand(5, 5)),
}
# Its network takes no image below 128x128: one solver, of those that follow gradients, takes minutes.
ONE_SOLVER = {"nonlinear_blur": "ddiff"}
SHAPES_OF = {
    "nonlinear_blur": (128, 128, 3),
    "mri": (8, 8, 2),  # complex images
    "multicoil_mri": (8, 8, 2),
    "interferometry": (8, 8, 1),  # one brightness
    "closure_interferometry": (8, 8, 1),
}
PAIRED = [name for name in OPERATORS if name not in ONE_SOLVER]

# Least-squares problems of condition 1e7 by conjugate gradients in float32: two programs end in different digits.
ILL_CONDITIONED = [
    (name, solver)
    for name in ("tomography", "sparse_tomography", "interferometry")
    for solver in ("diffpir", "pigdm", "dds", "pnp_dm", "mmps", "flower", "tds", "pseudo_inverse")
]
REPORT_THE_END = ("daps", "zero_filled", "pseudo_inverse", "filtered_back_projection", "tikhonov")


def build(name):
    shape = SHAPES_OF.get(name, SHAPE)
    assert name in OPERATOR_EXAMPLES, f"add an example of the operator {name} to OPERATOR_EXAMPLES"
    return HERE.get(name, OPERATOR_EXAMPLES[name])(shape), shape


def accepts(solver, operator):
    return all(hasattr(operators.linear_part(operator)[0], need) for need in solver.needs.methods)


@pytest.mark.parametrize("name", OPERATORS)
def test_no_number_of_an_operator_is_weakly_typed(name):
    # It would compile every program once more, beside the one of the same operator with other numbers.
    for leaf in jax.tree.leaves(build(name)[0]):
        assert isinstance(leaf, (jax.Array, np.ndarray)) and not getattr(leaf, "weak_type", False)


@jax.jit
def restore(solver, prior, operator, y, tape, x_init):
    """One program for all laws: the noise is a tape, since drawing it would take half of the compilation."""

    def one(y, tape, x_init):
        return dd.solve_one(solver, prior, dd.Problem(operator, y, SIGMA), jax.random.key(0), tape, x_init)

    return jax.vmap(one)(y, tape, x_init)


def same(a, b, images=(0, 1, 2, 3)):
    """Compare what was restored and reported, bit by bit."""
    for one, other in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_array_equal(one[np.asarray(images)], other[np.asarray(images)])


# Every pair is a program of its own. Of the instruments and of the classical solvers the default run has those pairs in
# which each meets one of every kind: solvers that follow a gradient, that go through the network, that solve least
# squares and that need a decomposition; operators with a decomposition, with complex measurements, and with neither.
INSTRUMENTS = ("mri", "multicoil_mri", "interferometry", "closure_interferometry", "fan_beam_tomography")
KINDS_OF_OPERATORS = ("super_resolution", "undersampled_fourier", "tomography")
# Their data step is that of `ddiff`, which meets all operators.
ABLATIONS = ("ddiff_hqs", "diff_pnp_admm", "diff_pnp_hqs")
# Their work with an operator is that of solvers which meet all of them.
SAMPLERS = ("dds", "pnp_dm", "mmps", "flower", "pnp_flow", "sitcom", "tds")
# Others of the same type, with another mask, kernel or number of angles.
SAME_TYPES = ("box_inpainting", "inpainting", "gaussian_blur", "motion_blur", "sparse_tomography", "fourier")


def is_slow(operator, solver):
    if solver in SAMPLERS:
        return operator != KINDS_OF_OPERATORS[0]
    if solvers.aim_of(SOLVERS[solver]) == "estimate" or solver in ABLATIONS:
        return operator not in KINDS_OF_OPERATORS
    is_special = operator.endswith(INSTRUMENTS) or operator in SAME_TYPES
    return operator in ONE_SOLVER or (is_special and solver not in KINDS_OF_SOLVERS)


CASES = [
    pytest.param(operator, solver, marks=[pytest.mark.slow] if is_slow(operator, solver) else [])
    for operator in OPERATORS
    for solver in SOLVERS
    if ONE_SOLVER.get(operator, solver) == solver
]


def example(operator_name, name):
    """Make a solver, an operator, the images of a batch and what was measured of them."""
    assert name in SOLVER_EXAMPLES, f"add an example of the solver {name} to SOLVER_EXAMPLES"
    operator, shape = build(operator_name)
    operator = operators.prepared_operator(operator)  # it will be an argument of a compiled program
    truth = draw(0, (IMAGES, *shape), FLOAT)
    clean = jax.vmap(operator.forward)(truth)
    y = clean + SIGMA * draw(1, clean.shape, FLOAT).astype(clean.dtype)
    return SOLVER_EXAMPLES[name](STEPS), operator, truth, clean, y


@pytest.mark.parametrize(("operator_name", "name"), CASES)
def test_every_solver_obeys_the_laws_on_every_operator(operator_name, name):
    solver, operator, truth, clean, y = example(operator_name, name)
    if not accepts(solver, operator):
        assert operator_name not in serving(*solver.needs.methods)
        named = type(operators.linear_part(operator)[0]).__name__
        with pytest.raises(ValueError, match=f"needs the operator's .*, which {named} does not have"):
            require_operator(solver, operator)
        return
    shape = truth.shape[1:]
    if name == "richardson_lucy" and np.iscomplexobj(y):
        with pytest.raises(ValueError, match="needs a measurement of brightness"):
            restore(solver, dd.NoPrior(shape), operator, y, jnp.zeros((IMAGES, STEPS, 1, *shape)), truth)
        return
    prior = dd.GaussianPrior(jnp.zeros(shape), jnp.asarray(0.25), dd.linear_schedule(), shape)
    tape = recorded(solver, prior, operator, y[0])
    run = [solver, prior, operator, y, tape, draw(3, truth.shape, FLOAT)]
    solution = restore(*run)

    # Finite, of the right shape and type, and the same again; and it depends on the measurement.
    assert solution.finite.all()
    assert (solution.x.shape, solution.x.dtype) == (truth.shape, FLOAT)
    assert solution.info.misfit.shape == (IMAGES, count_steps(solver, prior.schedule))
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(solution.info))
    same(restore(*run), solution)
    assert np.abs(restore(*run[:3], y + 1, *run[4:]).x - solution.x).max() > 1e-4

    # An image does not depend on its place in the batch, nor on a neighbour that is broken.
    turned = restore(*run[:3], *jax.tree.map(lambda rows: rows[::-1], run[3:]))
    same(jax.tree.map(lambda leaf: leaf[::-1], turned), solution)
    poisoned = restore(*run[:3], y.at[1].set(jnp.nan), *run[4:])
    np.testing.assert_array_equal(poisoned.finite, [True, False, True, True])
    same(poisoned, solution, (0, 2, 3))

    # Nothing depends on what a measurement holds where nothing was observed.
    seen = operators.observed_entries(operator, y.shape[1:])
    if seen is not None:
        for value in (jnp.nan, 1e6):
            same(restore(*run[:3], jnp.where(seen, y, value), *run[4:]), solution)

    # Where the prior is sure of an image, a method meets the data at that image, and reports its misfit there; without
    # a prior, where it starts. Not so those that report where their step ends: DAPS, and estimates by a formula.
    if name in REPORT_THE_END:
        return
    sure = dd.GaussianPrior(truth[0], jnp.asarray(1e-14), dd.linear_schedule(), shape)
    known = restore(solver, sure, operator, y, tape, jnp.broadcast_to(truth[0], truth.shape))
    residual, counts = np.asarray(clean[0]) - np.asarray(y), np.asarray(operators.entry_counts(operator, y[0]))
    want = [np.sum(np.abs(r[counts > 0]) ** 2) / np.sum(counts) for r in residual]
    np.testing.assert_allclose(known.info.misfit[:, 0], want, rtol=1e-3)


class Counting:
    """Noise that remembers what was drawn."""

    def __init__(self):
        self.draws = []

    def draw(self, i, shape):
        self.draws.append((i, shape))
        return jnp.zeros(shape)


def drawn(solver, prior, operator, y):
    """List the draws of a step, with their shapes."""
    noise = Counting()

    def step(y, x_init):
        problem = dd.Problem(operator, y, SIGMA).standardised()
        point = to_type(jax.tree.map(lambda column: column[0], solver.grid(prior.schedule)), FLOAT)
        state = solver.init(prior, problem, point, Counting(), x_init)
        return solver.step(prior, problem, state, point, noise)

    jax.eval_shape(step, y, jax.ShapeDtypeStruct(prior.image_shape, FLOAT))
    return noise.draws


def recorded(solver, prior, operator, y):
    """Record the noise of a batch: a tuple of arrays where the draws of a step differ in shape."""
    draws, shape = drawn(solver, prior, operator, y), prior.image_shape
    head = (IMAGES, count_steps(solver, prior.schedule))
    if all(each == shape for _, each in draws):
        return jax.random.normal(jax.random.key(2), (*head, DRAWS, *shape))
    assert [i for i, _ in draws] == list(range(len(draws)))
    return tuple(jax.random.normal(jax.random.key(10 + i), (*head, *each)) for i, each in draws)


@pytest.mark.parametrize("name", SOLVERS)
def test_no_draw_of_a_step_is_used_twice_and_all_are_counted(name):
    # `jax.debug_key_reuse` does not see it: every draw folds its index into the key, and makes another one each time.
    solver, operator, _, _, y = example(SERVED_BY[name], name)
    prior = dd.GaussianPrior(jnp.zeros(()), jnp.asarray(0.25), dd.linear_schedule(), SHAPE)
    draws = drawn(solver, prior, operator, y[0])
    fixed = [i for i, _ in draws if isinstance(i, int)]
    looped = [i for i, _ in draws if not isinstance(i, int)]
    assert len(set(fixed)) == len(fixed)
    # Of particles every one draws its own; single numbers are not counted.
    num_draws = sum(shape[0] if shape[1:] == SHAPE else 1 for i, shape in draws if isinstance(i, int) and shape)
    if looped:  # in the steps of Langevin dynamics, 0 to 2, by one line of code
        assert name == "daps" and len(looped) == 1 and min(fixed) >= 3
        num_draws += 3
    assert num_draws == solver.cost(operator).normal_draws


@functools.cache
def pairs():
    """Pair every operator with the solver that had the fewest so far, and what serves most with those left over."""
    found, used = {}, dict.fromkeys(SOLVERS, 0)
    for name in PAIRED:
        operator, _ = build(name)
        fitting = [s for s in SOLVERS if accepts(SOLVER_EXAMPLES[s](STEPS), operator)]
        found[name] = [min((s for s in fitting if (name, s) not in ILL_CONDITIONED), key=lambda s: used[s])]
        used[found[name][0]] += 1
    for solver in (solver for solver, count in used.items() if not count):
        found[SERVED_BY[solver]].append(solver)
    return found


@pytest.mark.parametrize("operator_name", PAIRED)
def test_a_batch_of_solve_is_what_solve_one_makes_of_every_image(operator_name):
    for name in pairs()[operator_name]:
        solver, operator, truth, _, y = example(operator_name, name)
        prior = dd.GaussianPrior(jnp.zeros(()), jnp.asarray(0.25), dd.linear_schedule(), truth.shape[1:])
        keys = dd.image_keys(jax.random.key(4), jnp.arange(IMAGES))
        batch = dd.solve(solver, prior, dd.Problem(operator, y, SIGMA), keys)
        one = jax.jit(dd.solve_one)(solver, prior, dd.Problem(operator, y[2], SIGMA), keys[2])
        scale = max(1.0, float(np.abs(one.x).max()))  # after two steps some are far from being images
        np.testing.assert_allclose(batch.x[2], one.x, atol=PROGRAMS * scale)
        # A square.
        np.testing.assert_allclose(batch.info.misfit[2], one.info.misfit, rtol=1e-4, atol=PROGRAMS**2 * scale)
        assert batch.cost == one.cost
