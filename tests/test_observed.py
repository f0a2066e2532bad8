"""What was measured has a home: hidden entries count for nothing, and nothing depends on what a file holds there."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import gaussian_prior

import ddiff_jax as dd
from ddiff_jax import metrics, operators, solvers
from ddiff_jax.operators import LinearFunction
from ddiff_jax.restoration import batches
from ddiff_jax.restoration.jobs import Job

pytestmark = pytest.mark.once

SHAPE = (8, 8, 3)
PROGRAMS = 1e-5  # two compiled programs of the same mathematics
STEPS = 4
HIDDEN = ("noise", "zeros", "NaN", "a million")

SOLVERS = {
    "ddiff to the noise": solvers.DDiff(num_steps=STEPS),
    "ddiff": solvers.DDiff(solvers.Fixed(10.0), num_steps=STEPS),
    "ddiff_hqs": solvers.DDiffHQS(num_steps=STEPS),
    "diff_pnp_admm": solvers.DiffPnPADMM(solvers.Fixed(10.0), num_steps=STEPS),
    "diffpir": solvers.DiffPIR(num_steps=STEPS),
    "diffpir line": solvers.DiffPIR(num_steps=STEPS, data_step="line"),
    "dps": solvers.DPS(zeta=0.3, num_steps=STEPS),
    "daps": solvers.DAPS(lr=1e-5, num_steps=STEPS, ode_steps=2, langevin_steps=3),
    "daps of the likelihood": solvers.DAPS(lr=1e-5, num_steps=STEPS, ode_steps=2, langevin_steps=3, tau=None),
    "red_diff": solvers.REDDiff(num_steps=STEPS),
    "ddrm": solvers.DDRM(num_steps=STEPS),
    "pigdm": solvers.PiGDM(num_steps=STEPS),
    "ddnm": solvers.DDNM(num_steps=STEPS),
    "mmps": solvers.MMPS(num_steps=STEPS, sampler="ddpm"),
    "flower": solvers.Flower(num_steps=STEPS),
    "pnp_flow": solvers.PnPFlow(num_samples=2, num_steps=STEPS),
}
KNOWN = ("random_inpainting", "fourier")  # operators that say what they observe


def build(name):
    """Make an operator, and what a user adds about it."""
    seen = jax.random.bernoulli(jax.random.key(8), 0.6, (4, 4, 3))
    return {
        "random_inpainting": lambda: (operators.random_inpainting(SHAPE, jax.random.key(0), fraction=0.6), None),
        "fourier": lambda: (operators.undersampled_fourier(SHAPE, jax.random.key(0), acceleration=2.0), None),
        "dead pixels": lambda: (operators.super_resolution(SHAPE, factor=2), seen),
    }[name]()


def filled(y, seen):
    """Four measurements that differ only in what the hidden entries hold."""
    fills = [y, jnp.zeros_like(y), jnp.full_like(y, jnp.nan), jnp.full_like(y, 1e6)]
    return jnp.stack([jnp.where(seen, y, fill) for fill in fills])


# What tests/test_solver_laws.py asks of every solver, is asked here of one of every kind, and of what it does not have.
EVERY_DAY = ("ddiff to the noise", "ddiff", "diffpir line", "daps of the likelihood", "ddrm", "flower")
CASES = [
    *(
        pytest.param("random_inpainting", name, None, marks=[] if name in EVERY_DAY else [pytest.mark.slow])
        for name in SOLVERS
    ),
    *(("fourier", name, None) for name in ("ddiff to the noise", "dps", "ddrm", "pigdm")),
    *(("dead pixels", name, None) for name in ("ddiff to the noise", "diffpir", "dps", "red_diff")),
    *((name, "daps of the likelihood", dd.Poisson(30.0)) for name in ("random_inpainting", "dead pixels")),
]


@pytest.mark.parametrize(("physics", "name", "likelihood"), CASES, ids=lambda value: str(value).partition("(")[0])
def test_what_hidden_entries_hold_changes_no_bit(physics, name, likelihood):
    operator, extra = build(physics)
    x = jax.random.uniform(jax.random.key(1), SHAPE, minval=-0.9, maxval=0.9)
    y = dd.simulate(operator, x, 0.1, jax.random.key(2))
    seen = operators.observed_entries(operator, y.shape) if extra is None else extra
    assert seen is not None and 0 < seen.mean() < 1
    keys = jnp.stack([jax.random.key(3)] * len(HIDDEN))
    problem = dd.Problem(operator, filled(y, seen), 0.1, likelihood or dd.Gaussian(), extra)
    solution = dd.solve(SOLVERS[name], gaussian_prior(SHAPE), problem, keys)
    assert solution.finite.all()
    for i, what in enumerate(HIDDEN):
        np.testing.assert_array_equal(solution.x[i], solution.x[0], err_msg=what)
        np.testing.assert_array_equal(solution.info.misfit[i], solution.info.misfit[0], err_msg=what)


@pytest.mark.parametrize("physics", KNOWN)
def test_the_misfit_of_the_truth_is_the_noise_per_observed_number(physics):
    shape = (32, 32, 3)
    operator, share, parts = {
        "random_inpainting": (operators.random_inpainting(shape, jax.random.key(0), fraction=0.75), 0.25, 1),
        "fourier": (operators.undersampled_fourier(shape, jax.random.key(0), acceleration=4.0), 0.25, 2),
    }[physics]
    x = jax.random.uniform(jax.random.key(1), shape, minval=-0.9, maxval=0.9)
    problem = dd.Problem(operator, dd.simulate(operator, x, 0.1, jax.random.key(2)), 0.1)
    count = int(share * 32 * 32 * 3) * parts
    assert int(problem.num_observed) == count
    gate = 5 * np.sqrt(2 / count)  # five standard errors of a mean of squares
    np.testing.assert_allclose(float(problem.misfit(x)) / 0.1**2, 1, atol=gate)
    misfit, _ = problem.misfit_and_gradient(x)
    np.testing.assert_allclose(misfit, problem.misfit(x), rtol=1e-6)


@pytest.mark.parametrize("name", ["ddiff to the noise", "dps", "diffpir", "ddnm"])
def test_steps_report_the_noise_power_where_they_meet_complex_data_at_the_truth(name):
    # The convergence curves of a report draw these numbers beside a line at sigma_y^2.
    shape = (16, 16, 3)
    operator = operators.undersampled_fourier(shape, jax.random.key(0), acceleration=2.0)
    x = jax.random.uniform(jax.random.key(1), shape, minval=-0.9, maxval=0.9)
    problem = dd.Problem(operator, dd.simulate(operator, x, 0.1, jax.random.key(2)), 0.1)
    prior = dd.GaussianPrior(x, jnp.float32(1e-12), dd.linear_schedule(), shape)
    info = jax.jit(dd.solve_one)(SOLVERS[name], prior, problem, jax.random.key(3)).info
    gate = 5 * np.sqrt(2 / (16 * 16 * 3))  # half the entries, two numbers each
    np.testing.assert_allclose(info.misfit[0] / 0.1**2, 1, atol=gate)
    np.testing.assert_allclose(info.misfit[0], problem.misfit(x), rtol=1e-3)


@pytest.mark.parametrize("physics", KNOWN)
def test_zeros_where_nothing_was_observed_stop_at_the_noise(physics):
    # A prior so wide that it says nothing: the data alone decide where the steps end.
    shape, sigma_y = (16, 16, 3), 0.2
    operator = {
        "random_inpainting": lambda: operators.random_inpainting(shape, jax.random.key(0), fraction=0.75),
        "fourier": lambda: operators.undersampled_fourier(shape, jax.random.key(0), acceleration=4.0),
    }[physics]()
    x = jax.random.normal(jax.random.key(1), (2, *shape))
    y = jax.vmap(lambda x, key: dd.simulate(operator, x, sigma_y, key))(
        x, dd.image_keys(jax.random.key(2), jnp.arange(2))
    )
    y = jnp.where(operator.observed()[None], y, 0)
    keys = dd.image_keys(jax.random.key(3), jnp.arange(2))
    solver = solvers.DDiff(num_steps=20, output="x")
    problem = dd.Problem(operator, y, sigma_y)
    solution = dd.solve(solver, gaussian_prior(shape, var=1.0), problem, keys)
    chi_square = metrics.measure(problem, solution.x)["misfit"] / sigma_y**2
    np.testing.assert_allclose(chi_square, 1, atol=0.05)


def test_entries_that_a_user_hides_are_hidden_from_every_kind_of_data_step():
    operator, seen = build("dead pixels")
    same = LinearFunction(lambda x: jnp.where(seen, operator.forward(x), 0), SHAPE)
    y = operator.forward(jax.random.uniform(jax.random.key(1), SHAPE))
    key, prior, solve_one = jax.random.key(3), gaussian_prior(SHAPE), jax.jit(dd.solve_one)
    for name in ("ddiff", "diffpir", "pigdm"):
        solver = SOLVERS[name]
        got = solve_one(solver, prior, dd.Problem(operator, y, 0.1, observed=seen), key)
        want = solve_one(solver, prior, dd.Problem(same, jnp.where(seen, y, 0), 0.1), key)
        np.testing.assert_allclose(got.x, want.x, atol=PROGRAMS, err_msg=name)
    for name in ("ddrm", "ddnm"):  # the decomposition of the operator says nothing of the same with holes
        with pytest.raises(ValueError, match="needs the operator's svd, which LinearMasked does not have"):
            dd.solve_one(SOLVERS[name], prior, dd.Problem(operator, y, 0.1, observed=seen), key)
        with pytest.raises(ValueError, match="needs the operator's svd, which LinearMasked does not have"):
            dd.solve(SOLVERS[name], prior, dd.Problem(operator, y[None], 0.1, observed=seen), key[None])


def test_every_image_may_have_its_own_holes():
    operator, _ = build("dead pixels")
    seen = jax.random.bernoulli(jax.random.key(4), 0.7, (3, 4, 4, 1))
    keys = dd.image_keys(jax.random.key(5), jnp.arange(3))
    y = jax.random.normal(jax.random.key(6), (3, 4, 4, 3))
    solver, prior = SOLVERS["diffpir"], gaussian_prior(SHAPE)
    problem = dd.Problem(operator, y, 0.1, observed=seen)
    together = dd.solve(solver, prior, problem, keys)
    mesh = jax.make_mesh((1,), ("images",), axis_types=(jax.sharding.AxisType.Auto,))
    spread = dd.solve(solver, prior, problem, keys, mesh=mesh)
    np.testing.assert_allclose(spread.x, together.x, atol=PROGRAMS)
    solve_one = jax.jit(dd.solve_one)
    for i in range(3):
        one = solve_one(solver, prior, dd.Problem(operator, y[i], 0.1, observed=seen[i]), keys[i])
        np.testing.assert_allclose(together.x[i], one.x, atol=PROGRAMS)
        np.testing.assert_allclose(together.info.misfit[i], one.info.misfit, rtol=1e-4)


def test_restarts_choose_by_what_was_observed():
    operator, seen = build("dead pixels")
    y = operator.forward(jax.random.uniform(jax.random.key(1), SHAPE))
    keys = jnp.stack([jax.random.key(3)] * len(HIDDEN))
    problem = dd.Problem(operator, filled(y, seen), 0.1, observed=seen)
    found = dd.solve_restarts(SOLVERS["ddiff"], gaussian_prior(SHAPE), problem, keys, restarts=2)
    for i in range(len(HIDDEN)):
        np.testing.assert_array_equal(found.misfit[i], found.misfit[0])
        np.testing.assert_array_equal(found.solution.x[i], found.solution.x[0])
    want = dd.Problem(operator, y, 0.1, observed=seen).misfit(found.x[0, 0])
    np.testing.assert_allclose(found.misfit[0, 0], want, rtol=1e-5)


@dd.pytree_dataclass
class CodedAperture:
    """An operator of one's own whose fields happen to be called mask and outer, and mean something else."""

    mask: jax.Array
    outer: jax.Array

    def forward(self, x):
        return jnp.sum(self.mask * x, axis=2) * self.outer


def test_fields_called_mask_or_outer_mean_nothing(tmp_path):
    mask = jax.random.uniform(jax.random.key(0), SHAPE).at[0].set(0)
    operator = CodedAperture(mask, jnp.float32(2.0))
    x = jax.random.uniform(jax.random.key(1), (2, *SHAPE))
    y = jax.vmap(operator.forward)(x)
    keys = dd.image_keys(jax.random.key(2), jnp.arange(2))
    problem = dd.Problem(operator, y, 0.1)
    solution = dd.solve(SOLVERS["ddiff to the noise"], gaussian_prior(SHAPE), problem, keys)
    measured = np.asarray(jax.vmap(operator.forward)(solution.x))
    want = np.mean((measured - np.asarray(y)) ** 2, axis=(1, 2))
    np.testing.assert_allclose(metrics.measure(problem, solution.x, x)["misfit"], want, rtol=1e-4)
    path = tmp_path / "x.png"
    items = [
        batches.Item(Job(path, "x", "", tmp_path), SHAPE, keys[i], operator, y[i], 0.1, None, [], "") for i in range(2)
    ]
    batch = batches.Batch(0, 0, items, operator, None, y, jnp.full(2, 0.1), keys)
    for score, misfit in zip(batches.score(batch, solution.x), want, strict=True):
        assert score.metrics["misfit"] == pytest.approx(misfit, rel=1e-4)


def test_a_composition_observes_what_its_last_operator_does():
    hole = operators.random_inpainting(SHAPE, jax.random.key(0), fraction=0.5)
    soft = operators.gaussian_blur(SHAPE, size=3, std=1.0)
    seen = operators.observed_entries(operators.compose(hole, soft), SHAPE)
    np.testing.assert_array_equal(seen, jnp.broadcast_to(hole.mask > 0, SHAPE))
    assert operators.observed_entries(operators.compose(soft, hole), SHAPE) is None


def test_holes_in_a_hole_and_replaced_fields():
    hole = operators.random_inpainting(SHAPE, jax.random.key(0), fraction=0.5)
    alive = jax.random.bernoulli(jax.random.key(1), 0.8, SHAPE)
    y = jnp.ones(SHAPE)
    problem = dd.Problem(hole, y, 0.1, observed=alive)
    both = np.asarray(alive) & (np.asarray(hole.mask) > 0)
    np.testing.assert_array_equal(problem.y, both)
    assert int(problem.num_observed) == both.sum()
    again = dataclasses.replace(problem, sigma_y=0.2)
    assert jax.tree.structure(again) == jax.tree.structure(problem)
    np.testing.assert_array_equal(operators.observed_entries(again.operator), both)


@dd.pytree_dataclass
class Claims:
    """An operator that offers what a test wants."""

    claim: jax.Array

    def forward(self, x):
        return x

    def observed(self):
        return self.claim


@dd.pytree_dataclass
class FieldInstead:
    observed: jax.Array

    def forward(self, x):
        return x


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (
            lambda y: dd.Problem(Claims(jnp.ones(SHAPE[:2], bool)), y, 0.1),
            ValueError,
            r"Claims.observed\(\) must broad",
        ),
        (lambda y: dd.Problem(Claims(jnp.full(SHAPE, 0.5)), y, 0.1), TypeError, r"booleans.* write mask > 0"),
        (lambda y: dd.Problem(FieldInstead(jnp.ones(SHAPE, bool)), y, 0.1), TypeError, "must be a method"),
        (
            lambda y: dd.Problem(Claims(jnp.ones(SHAPE, bool)), y, 0.1, observed=jnp.ones(SHAPE[:2], bool)),
            ValueError,
            r"observed must broadcast to y; .* mask\[..., None\]",
        ),
        (
            lambda y: dd.Problem(Claims(jnp.ones(SHAPE, bool)), y, 0.1, observed=jnp.full(SHAPE, 0.5)),
            TypeError,
            "observed must hold booleans",
        ),
        (
            lambda y: dd.solve(
                *(SOLVERS["ddiff"], gaussian_prior(SHAPE)),
                dd.Problem(Claims(jnp.ones(SHAPE, bool)), y[None], 0.1, observed=jnp.zeros(SHAPE, bool)),
                jax.random.key(0)[None],
            ),
            ValueError,
            r"hides everything of images \[0\]; true means observed",
        ),
    ],
)
def test_what_cannot_say_what_was_observed_is_refused(make, error, message, unchecked):
    with pytest.raises(error, match=message):
        make(jnp.zeros(SHAPE))


def test_numbers_0_and_1_serve_as_booleans(unchecked):
    seen = jnp.asarray(np.arange(192).reshape(SHAPE) % 2, jnp.float32)
    problem = dd.Problem(operators.high_dynamic_range(SHAPE), jnp.ones(SHAPE), 0.1, observed=seen)
    np.testing.assert_array_equal(problem.y, seen)


def test_check_operator_finds_entries_that_are_measured_and_not_observed():
    seen = jnp.asarray(np.arange(192).reshape(SHAPE) % 2 > 0)
    report = dd.check_operator(Claims(seen), SHAPE)
    assert [f.text for f in report.findings if f.ok is False] == [
        "A(x) is not 0 where observed() is false: multiply by the mask, or use operators.masked"
    ]
    report = dd.check_operator(operators.masked(Claims(seen), seen), SHAPE)
    assert report.ok
    assert "50.0% of the measurement" in str(report)
