"""Laws that every operator and every solver obeys. The lists come from the package: a missing example fails."""

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import gaussian_prior
from weights import normal_like

import ddiff_jax as dd
from ddiff_jax import operators, solvers
from ddiff_jax.architecture import abstract_params
from ddiff_jax.operators import GIVEN_FORMS, OPERATOR_TYPES, OPERATORS, LinearOperator
from ddiff_jax.solvers import SOLVERS
from ddiff_jax.solvers.base import count_steps, total_cost
from ddiff_jax.solvers.without_prior import OneStep

pytestmark = pytest.mark.once

GRADIENT = 1e-5  # relative; float64 against a central difference
ADJOINT = {jnp.float32: 1e-5, jnp.float64: 1e-12}  # relative to ||A x|| ||y||: rounding
LINEARITY = {jnp.float32: 1e-5, jnp.float64: 1e-12}
SHAPES = [(16, 16, 3), (15, 21, 1), (12, 20, 3)]
COMPLEX = [(16, 16, 2), (15, 21, 2), (12, 20, 2)]
SHAPES_OF = {
    "nonlinear_blur": [(128, 128, 3)],  # the only size below 256 that its network takes
    "mri": COMPLEX,
    "multicoil_mri": COMPLEX,
    "interferometry": [(16, 16, 1), (15, 21, 1)],
    "closure_interferometry": [(16, 16, 1), (15, 21, 1)],
}


def _arrays(name):
    """List the arrays that a factory must be given."""
    arguments = inspect.signature(OPERATORS[name]).parameters.values()
    return [p.name for p in arguments if p.default is p.empty and p.name in ("mask", "kernel", "angles")]


def _mask(shape):
    return np.random.RandomState(0).rand(*shape[:2]) < 0.5


def _nonlinear_blur(shape):
    from ddiff_jax.models.kernel_wizard import KernelWizard

    return operators.nonlinear_blur(shape, params=normal_like(abstract_params(KernelWizard(2, 16, 0, 0)), 0.2))


def _baselines():
    """Four stations at two times; in units of the inverse pixel."""
    u, v = np.random.RandomState(2).uniform(-0.3, 0.3, (2, 12))
    pairs = np.array([(0, 1), (0, 2), (3, 0), (1, 2), (1, 3), (2, 3)] * 2)
    return {"u": u, "v": v}, {"time": np.arange(12) // 6, "t1": pairs[:, 0], "t2": pairs[:, 1]}


# One builder per name in OPERATORS, for any of SHAPES.
OPERATOR_EXAMPLES = {
    "super_resolution": lambda shape: operators.super_resolution(shape, factor=3 if shape[0] % 4 else 4),
    "box_inpainting": lambda shape: operators.box_inpainting(shape, jax.random.key(0), size=5, margin=2),
    "random_inpainting": lambda shape: operators.random_inpainting(shape, jax.random.key(0), fraction=0.6),
    "inpainting": lambda shape: operators.inpainting(shape, _mask(shape)),
    "gaussian_blur": lambda shape: operators.gaussian_blur(shape, size=9, std=1.5),
    "blur": lambda shape: operators.blur(shape, kernel=np.random.RandomState(1).rand(5, 7)),
    "motion_blur": lambda shape: operators.motion_blur(shape, 0, size=9),
    "phase_retrieval": lambda shape: operators.phase_retrieval(shape),
    "high_dynamic_range": lambda shape: operators.high_dynamic_range(shape),
    "camera_blur": lambda shape: operators.camera_blur(shape, 0, size=9),
    "colourisation": lambda shape: operators.Colourisation(jnp.array([0.299, 0.587, 0.114])[-shape[2] :], shape),
    "fourier": lambda shape: operators.fourier(shape, _mask(shape)),
    "undersampled_fourier": lambda shape: operators.undersampled_fourier(shape, jax.random.key(0)),
    "mri": lambda shape: operators.mri(shape, mask=_mask(shape), maps=operators.birdcage_maps(shape, 3)),
    "multicoil_mri": lambda shape: operators.multicoil_mri(shape, jax.random.key(0), num_coils=2),
    "tomography": lambda shape: operators.tomography(shape, angles=[10.0, 60.0, 0.0]),
    "sparse_tomography": lambda shape: operators.sparse_tomography(shape, num_angles=5),
    "fan_beam_tomography": lambda shape: operators.fan_beam_tomography(shape, angles=[10.0, 150.0, 300.0]),
    "sparse_fan_beam_tomography": lambda shape: operators.sparse_fan_beam_tomography(shape, num_angles=5),
    "nonlinear_blur": _nonlinear_blur,
    "interferometry": lambda shape: operators.interferometry(shape, **_baselines()[0], pixel=1.0, scale=0.2),
    "closure_interferometry": lambda shape: operators.closure_interferometry(
        shape, **_baselines()[0], **_baselines()[1], pixel=1.0
    ),
}

# One configuration per name in SOLVERS, short enough to run everywhere.
SOLVER_EXAMPLES = {
    "ddiff": lambda num_steps: solvers.DDiff(solvers.Fixed(10.0), num_steps=num_steps),
    "ddiff_hqs": lambda num_steps: solvers.DDiffHQS(num_steps=num_steps),
    "diff_pnp_admm": lambda num_steps: solvers.DiffPnPADMM(solvers.Fixed(10.0), num_steps=num_steps),
    "diff_pnp_hqs": lambda num_steps: solvers.DiffPnPHQS(solvers.Fixed(10.0), num_steps=num_steps),
    "diffpir": lambda num_steps: solvers.DiffPIR(num_steps=num_steps),
    "dps": lambda num_steps: solvers.DPS(zeta=0.3, num_steps=num_steps),
    "daps": lambda num_steps: solvers.DAPS(lr=1e-5, num_steps=num_steps, ode_steps=2, langevin_steps=3),
    "red_diff": lambda num_steps: solvers.REDDiff(num_steps=num_steps),
    "ddrm": lambda num_steps: solvers.DDRM(num_steps=num_steps),
    "pigdm": lambda num_steps: solvers.PiGDM(num_steps=num_steps),
    "ddnm": lambda num_steps: solvers.DDNM(num_steps=num_steps),
    "dds": lambda num_steps: solvers.DDS(num_steps=num_steps),
    "pnp_dm": lambda num_steps: solvers.PnPDM(num_steps=num_steps, num_levels=3, langevin_steps=3),
    "mmps": lambda num_steps: solvers.MMPS(num_steps=num_steps),
    "flower": lambda num_steps: solvers.Flower(num_steps=num_steps),
    "pnp_flow": lambda num_steps: solvers.PnPFlow(num_samples=2, num_steps=num_steps),
    "sitcom": lambda num_steps: solvers.SITCOM(num_steps=num_steps, adam_steps=2),
    "tds": lambda num_steps: solvers.TDS(num_particles=2, num_steps=num_steps),
    "zero_filled": lambda num_steps: solvers.ZeroFilled(),
    "pseudo_inverse": lambda num_steps: solvers.PseudoInverse(),
    "filtered_back_projection": lambda num_steps: solvers.FilteredBackProjection(),
    "tikhonov": lambda num_steps: solvers.Tikhonov(num_steps=num_steps),
    "total_variation": lambda num_steps: solvers.TotalVariation(num_steps=num_steps),
    "richardson_lucy": lambda num_steps: solvers.RichardsonLucy(num_steps=num_steps),
}

# What serves a solver that `super_resolution` does not serve.
SERVED_BY = dict.fromkeys(SOLVERS, "super_resolution") | {"filtered_back_projection": "sparse_tomography"}

# Of those whose steps evaluate the network more than once, and whose rows are not the steps that were asked for.
EVALUATIONS = {"daps": 2, "pnp_flow": 2, "tds": 2}
ROWS = {"pnp_dm": 9, "mmps": 7, "sitcom": 8}

every_operator = pytest.mark.parametrize("name", OPERATORS)
# A square of even sides and an oblong of odd ones find what a third shape would, but for the slow run.
every_case = pytest.mark.parametrize(
    ("name", "shape"),
    [
        pytest.param(name, shape, marks=[pytest.mark.slow] if i > 1 else [])
        for name in OPERATORS
        for i, shape in enumerate(SHAPES_OF.get(name, SHAPES))
    ],
)
every_solver = pytest.mark.parametrize("name", SOLVERS)
both_types = pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64], ids=["float32", "float64"])


def build(name, shape):
    assert name in OPERATOR_EXAMPLES, f"add an example of the operator {name} to OPERATOR_EXAMPLES"
    return OPERATOR_EXAMPLES[name](shape)


def draw(seed, shape, dtype):
    return jax.random.uniform(jax.random.key(seed), shape, dtype, -0.9, 0.9)


def relative(a, b):
    return float(jnp.linalg.norm((a - b).ravel()) / jnp.linalg.norm(b.ravel()))


@every_case
@both_types
def test_operator_is_finite_and_keeps_its_type_and_shape(name, shape, dtype, x64):
    operator = build(name, shape)
    assert type(operator) is OPERATOR_TYPES[name]
    x = draw(0, shape, dtype)
    y = jax.jit(operator.forward)(x)
    assert jnp.isfinite(y).all()
    assert jnp.finfo(y.dtype).dtype == dtype
    abstract = jax.eval_shape(operator.forward, x)
    assert (abstract.shape, abstract.dtype) == (y.shape, y.dtype)


def test_the_tables_beside_the_operators_name_them_all():
    assert OPERATOR_TYPES.keys() == OPERATORS.keys()
    linear = [name for name, made in OPERATOR_TYPES.items() if issubclass(made, LinearOperator)]
    given = [name for name in linear if _arrays(name)]
    # What is called a kind of another linear operator, and is given no array itself, makes up what that one is given.
    kinds = {name: [of for of in given if name.endswith(f"_{of}")] for name in linear if name not in given}
    assert GIVEN_FORMS == {name: max(of, key=len) for name, of in kinds.items() if of}
    assert all(len(_arrays(name)) == 1 for name in GIVEN_FORMS.values())
    for name, part in operators.LINEAR_PARTS.items():
        assert type(operators.linear_part(build(name, SHAPES_OF.get(name, SHAPES)[0]))[0]) is part
    assert operators.serving("svd", "prox") == [name for name in OPERATORS if hasattr(OPERATOR_TYPES[name], "svd")]


@every_case
def test_vmap_equals_a_loop(name, shape):
    operator = build(name, shape)
    x = draw(0, (3, *shape), jnp.float32)
    forward = jax.jit(operator.forward)
    mapped = jax.jit(jax.vmap(operator.forward))(x)
    for i in range(3):
        np.testing.assert_allclose(mapped[i], forward(x[i]), atol=1e-5)


@every_case
def test_gradient_equals_a_central_difference(name, shape, x64):
    operator = build(name, shape)
    x, direction = draw(0, shape, jnp.float64), draw(1, shape, jnp.float64)
    y = jax.jit(operator.forward)(draw(2, shape, jnp.float64))
    value = jax.jit(dd.Problem(operator, y, 0.1).half_squared_residual)
    slope = jnp.vdot(jax.jit(jax.grad(value))(x), direction)
    h = 1e-6
    quotient = (value(x + h * direction) - value(x - h * direction)) / (2 * h)
    np.testing.assert_allclose(slope, quotient, rtol=GRADIENT)


@every_case
@both_types
def test_adjoint_and_linearity_of_linear_operators(name, shape, dtype, x64):
    operator = build(name, shape)
    forward = jax.jit(operator.forward)
    x, v = draw(0, shape, dtype), draw(1, shape, dtype)
    y = forward(x)
    if not isinstance(operator, LinearOperator):
        # What is not declared linear must not be: a linear operator without adjoint would be a loss.
        assert relative(y + forward(v), forward(x + v)) > 1e-3
        return
    w = jax.random.normal(jax.random.key(2), y.shape, y.dtype)
    assert jax.jit(operators.dot_test)(operator, v, w) < ADJOINT[dtype]
    assert jax.eval_shape(operator.adjoint, w).shape == shape
    combined = forward(jnp.asarray(2, dtype) * x - v)
    assert relative(jnp.asarray(2, y.dtype) * y - forward(v), combined) < LINEARITY[dtype]


@every_operator
def test_operator_is_a_pytree_that_stacks(name):
    shape = SHAPES_OF.get(name, SHAPES)[0]
    operator = build(name, shape)
    stacked = jax.tree.map(lambda leaf: jnp.stack([leaf, leaf]), operator)
    x = draw(0, (2, *shape), jnp.float32)
    out = jax.jit(jax.vmap(lambda operator, x: operator.forward(x)))(stacked, x)
    np.testing.assert_allclose(out[1], jax.jit(operator.forward)(x[1]), atol=1e-5)


def solver_case(name, operator, num_steps=4):
    assert name in SOLVER_EXAMPLES, f"add an example of the solver {name} to SOLVER_EXAMPLES"
    solver = SOLVER_EXAMPLES[name](num_steps)
    # Four images: in smaller odd batches XLA's small matrix products on a CPU end in a remainder loop that rounds
    # otherwise than the main one, and a place in the batch shows in the last digit of DDRM.
    keys = dd.image_keys(jax.random.key(0), jnp.arange(4))
    x = draw(0, (4, *SHAPES[0]), jnp.float32)
    y = jax.vmap(lambda x, key: dd.simulate(operator, x, 0.05, key))(x, keys)
    return solver, gaussian_prior(SHAPES[0]), y, keys


PHYSICS = ("super_resolution", "random_inpainting", "high_dynamic_range")
# They stand for the others, which meet one operator in the default run: solvers that follow a gradient, that go through
# the network, that solve least squares and that need a decomposition.
KINDS_OF_SOLVERS = ("ddiff", "dps", "pigdm", "ddrm")
every_pair = pytest.mark.parametrize(
    ("name", "physics"),
    [
        pytest.param(name, kind, marks=[] if kind == PHYSICS[0] or name in KINDS_OF_SOLVERS else [pytest.mark.slow])
        for name in SOLVERS
        for kind in PHYSICS
    ],
    indirect=["physics"],
)


def every_day(names, chosen):
    """Leave the others for the slow run."""
    return [pytest.param(name, marks=[] if name in chosen else [pytest.mark.slow]) for name in names]


@pytest.fixture(scope="module")
def physics(request):
    return build(request.param, SHAPES[0])


def refused(name, solver, prior, physics, y, keys):
    """Tell whether the operator lacks what the solver needs, and check that this is said, with a way out."""
    if all(hasattr(physics, need) for need in solver.needs.methods):
        return False
    needs = " and ".join(solver.needs.methods)
    for call in (
        lambda: dd.solve(solver, prior, dd.Problem(physics, y, 0.05), keys),
        lambda: dd.solve_one(solver, prior, dd.Problem(physics, y[0], 0.05), keys[0]),
    ):
        with pytest.raises(ValueError, match=f"needs the operator's {needs}, which .* serve it: .*{SERVED_BY[name]}"):
            call()
    return True


@every_solver
def test_solver_needs_nothing_that_a_linear_operator_with_a_decomposition_lacks(name):
    """But for what is made for one kind of measurement."""
    operator = build(SERVED_BY[name], SHAPES[0])
    assert all(hasattr(operator, need) for need in SOLVER_EXAMPLES[name](6).needs.methods)


@every_pair
def test_solver_reports_its_cost(name, physics):
    solver, prior, y, keys = solver_case(name, physics)
    if refused(name, solver, prior, physics, y, keys):
        return
    solution = jax.eval_shape(
        lambda y, key: dd.solve_one(solver, prior, dd.Problem(physics, y, 0.05), key), y[0], keys[0]
    )
    num_steps = count_steps(solver, prior.schedule)
    assert num_steps == (1 if isinstance(solver, OneStep) else ROWS.get(name, 4))
    assert solution.cost == total_cost(solver, physics, prior.schedule, num_steps)
    per_step = EVALUATIONS.get(name, 1)
    assert solution.cost.network_evaluations == (per_step * num_steps if solvers.asks_network(solver) else 0)
    assert solvers.asks_network(solver) or solution.cost.network_gradients == solution.cost.normal_draws == 0


@every_solver
def test_solver_says_what_it_aims_at(name):
    solver = SOLVERS[name]
    assert solvers.aim_of(solver) in solvers.AIMS
    assert solvers.asks_network(solver) == (solvers.aim_of(solver) != "estimate")
    said = {"map": "Aim: one image", "posterior": "Aim: the posterior", "estimate": "Aim: an estimate"}
    assert said[str(solvers.aim_of(solver))] in (inspect.getdoc(solver) or ""), name


@pytest.mark.parametrize("name", every_day(SOLVERS, (*KINDS_OF_SOLVERS, "daps", "pnp_dm", "tikhonov")))
def test_solver_is_finite_and_jit_equals_eager(name):
    physics = build(SERVED_BY[name], SHAPES[0])  # for all others see test_solver_laws.py
    solver, prior, y, keys = solver_case(name, physics)
    problem = dd.Problem(physics, y[0], 0.05)
    eager = dd.solve_one(solver, prior, problem, keys[0])
    jitted = jax.jit(dd.solve_one)(solver, prior, problem, keys[0])
    assert bool(eager.finite)
    assert jnp.isfinite(eager.info.misfit).all()
    np.testing.assert_allclose(jitted.x, eager.x, atol=1e-5)


@every_pair
def test_solver_does_not_mix_images(name, physics):
    solver, prior, y, keys = solver_case(name, physics)
    if refused(name, solver, prior, physics, y, keys):
        return
    clean = dd.solve(solver, prior, dd.Problem(physics, y, 0.05), keys)
    flipped = dd.solve(solver, prior, dd.Problem(physics, y[::-1], 0.05), keys[::-1])
    np.testing.assert_array_equal(flipped.x[::-1], clean.x)
    poisoned = dd.solve(solver, prior, dd.Problem(physics, y.at[1].set(jnp.nan), 0.05), keys)
    np.testing.assert_array_equal(poisoned.finite, [True, False, True, True])
    for i in (0, 2, 3):
        np.testing.assert_array_equal(poisoned.x[i], clean.x[i])
