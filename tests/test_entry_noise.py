"""Noise per entry: every solver sees the same likelihood at one level; affine instruments; counts of a camera."""

from typing import cast

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import GOLDEN, gaussian_prior

import ddiff_jax as dd
from ddiff_jax import metrics, operators, solvers
from ddiff_jax.operators import LinearOperator, LinearWeighted, Weighted, affine, compose, from_function, inpainting
from ddiff_jax.solvers import ddiff
from ddiff_jax.solvers.base import require_operator
from ddiff_jax.solvers.ddiff import data_step

pytestmark = pytest.mark.once

SHAPE = (6, 5, 1)
STEPS = 4
SOLVERS = {
    "ddiff to the noise": solvers.DDiff(num_steps=STEPS),
    "ddiff": solvers.DDiff(solvers.Fixed(10.0), num_steps=STEPS),
    "dps": solvers.DPS(zeta=0.3, num_steps=STEPS),
    "daps": solvers.DAPS(lr=1e-5, num_steps=STEPS, ode_steps=2, langevin_steps=3, tau=None),
    "red_diff": solvers.REDDiff(num_steps=STEPS),
    "diffpir": solvers.DiffPIR(num_steps=STEPS),
    "ddrm": solvers.DDRM(num_steps=STEPS),
    "pigdm": solvers.PiGDM(num_steps=STEPS),
    "ddnm": solvers.DDNM(num_steps=STEPS),
    "mmps": solvers.MMPS(num_steps=STEPS, sampler="ddpm"),
    "flower": solvers.Flower(num_steps=STEPS),
    "pnp_flow": solvers.PnPFlow(num_samples=2, num_steps=STEPS),
}


@dd.pytree_dataclass
class Dense(LinearOperator):
    """y = matrix x."""

    matrix: jax.Array
    image_shape: tuple[int, ...] = dd.static_field(default=SHAPE)

    def forward(self, x):
        return self.matrix.astype(x.dtype) @ x.reshape(-1)


@pytest.fixture
def golden():
    return np.load(GOLDEN / "instruments" / "noise_gaussian.npz")


def golden_problem(golden, sigma="sigma"):
    seen = golden["mask"]
    y = np.where(seen, golden["y"], np.nan)  # what was not observed is never read
    level = np.where(seen, golden[sigma], -1.0)
    matrix, y, level, seen = (jnp.asarray(array) for array in (golden["A"], y, level, seen))
    return dd.Problem(Dense(matrix), y, level, observed=seen)


def test_the_likelihood_is_that_of_the_reference(golden, x64):
    problem, v = golden_problem(golden), jnp.asarray(golden["v"].reshape(SHAPE))
    np.testing.assert_allclose(problem.nll(v), golden["nll"], rtol=1e-9)
    np.testing.assert_allclose(problem.chi_square(v), golden["chi2"], rtol=1e-9)
    np.testing.assert_allclose(problem.grad(v).reshape(-1), golden["gradient"], rtol=1e-9, atol=1e-9)
    standard = problem.standardised()
    assert isinstance(standard.operator, LinearWeighted)
    np.testing.assert_allclose(standard.sigma_y, golden["sigma_ref"], rtol=1e-9)
    np.testing.assert_allclose(standard.operator.root, golden["whitening"], rtol=1e-9)
    np.testing.assert_allclose(standard.nll(v), golden["nll"], rtol=1e-9)
    x = standard.operator.prox(v, standard.y, float(golden["rho"]))
    np.testing.assert_allclose(x.reshape(-1), golden["prox"], rtol=1e-7, atol=1e-9)
    rho = golden["sigma_ref"] ** 2 / golden["r2"]
    q = standard.operator.prox(v, standard.y, rho) - v
    np.testing.assert_allclose(q.reshape(-1) / golden["r2"], golden["pigdm"], rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("which", ["", "6"])
def test_ddiff_steps_to_the_noise_as_the_reference_does(golden, x64, which):
    v = jnp.asarray(golden["v"].reshape(SHAPE))
    problem = golden_problem(golden, "sigma_times6" if which else "sigma")
    _, x = data_step(problem.standardised(), v, solvers.ToTheNoise(), None)
    np.testing.assert_allclose(x.reshape(-1), golden[f"x_step{which}"], rtol=1e-8, atol=1e-9)
    np.testing.assert_allclose(problem.chi_square(x), golden[f"chi2_step{which}"], rtol=1e-8)


def test_ddiff_goes_on_along_conjugate_directions_until_the_noise_is_met(golden, x64):
    v, problem = jnp.asarray(golden["v"].reshape(SHAPE)), golden_problem(golden).standardised()
    _, one = data_step(problem, v, solvers.ToTheNoise(), None)
    _, same = ddiff._steps_to_the_noise(problem, v, 1)
    np.testing.assert_allclose(same, one, rtol=1e-10)
    misfits = [float(problem.chi_square(data_step(problem, v, solvers.ToTheNoise(), None, n)[1])) for n in (1, 3, 30)]
    assert misfits[0] > 20 and misfits[0] > misfits[1] > 1
    assert misfits[2] == pytest.approx(1, abs=1e-6)  # there, and no further
    _, far = data_step(problem, v, solvers.ToTheNoise(), None, 60)
    np.testing.assert_allclose(far, data_step(problem, v, solvers.ToTheNoise(), None, 30)[1], atol=1e-8)
    with pytest.raises(ValueError, match="directions must be at least 1"):
        solvers.DDiff(solvers.Fixed(1.0), directions=2)


def mask_and_level():
    mask = jax.random.bernoulli(jax.random.key(3), 0.7, (*SHAPE[:2], 1))
    return mask, 0.05 * jnp.exp(jax.random.normal(jax.random.key(4), (2, *SHAPE)))


@pytest.mark.parametrize("name", SOLVERS)
def test_every_solver_takes_levels_per_entry(name):
    """Equal levels per entry are one level; others change the result, and that of no other image."""
    solver, prior = SOLVERS[name], gaussian_prior(SHAPE)
    mask, level = mask_and_level()
    operator, keys = inpainting(SHAPE, mask), dd.image_keys(jax.random.key(0), jnp.arange(2))
    y = jax.random.normal(jax.random.key(1), (2, *SHAPE))
    same = dd.solve(solver, prior, dd.Problem(operator, y, 0.1), keys).x
    batch = dd.solve(solver, prior, dd.Problem(operator, y, level.at[0].set(0.1)), keys).x
    np.testing.assert_allclose(batch[0], same[0], rtol=1e-4, atol=1e-4)
    assert np.max(np.abs(batch[1] - same[1])) > 1e-3
    if name == "ddiff to the noise":
        alone = dd.solve_one(solver, prior, dd.Problem(operator, y[1], level[1]), keys[1]).x
        np.testing.assert_allclose(batch[1], alone, rtol=1e-4, atol=1e-4)


def test_a_shared_operator_stays_shared_and_stacks_stay_right():
    blur = operators.gaussian_blur(SHAPE, size=3, std=1.0)
    level = mask_and_level()[1]
    y, x = jax.random.normal(jax.random.key(1), (2, *SHAPE)), jax.random.normal(jax.random.key(2), (2, *SHAPE))
    seen = level < 0.08
    ones = [dd.Problem(blur, y[i], level[i], observed=seen[i]) for i in range(2)]
    want = [p.nll(x[i]) for i, p in enumerate(ones)]
    batch = dd.Problem(blur, y, level, observed=seen)
    standard = batch.standardised_batch()
    assert isinstance(standard.operator, Weighted) and standard.operator.operator == blur
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *ones)
    for problem in (batch, standard, stacked, stacked.standardised_batch()):
        np.testing.assert_allclose(problem.map(dd.Problem.nll, x), want, rtol=1e-5)
    found = metrics.measure(batch, x)
    power = [np.mean(level[i][seen[i]] ** 2) for i in range(2)]
    np.testing.assert_allclose(found["misfit"] - found["misfit_excess"], power, rtol=1e-4)


def test_levels_whose_axes_could_mean_two_things_are_refused():
    operator, y = operators.gaussian_blur(SHAPE, size=3, std=1.0), jnp.zeros((2, *SHAPE))
    for level, message in {
        SHAPE: r"sigma\[None\]",
        (1, 6, 4, 1): "does not broadcast to y",
        (6, 5): "as many axes as y",
    }.items():
        with pytest.raises(ValueError, match=message):
            dd.Problem(operator, y, jnp.full(level, 0.1))
    with pytest.raises(ValueError, match="3 of them are not"):
        dd.Problem(operator, y, jnp.full(y.shape, 0.1).at[0, 0, :3, 0].set(jnp.asarray([0.0, -1.0, np.nan])))
    with pytest.raises(ValueError, match="Poisson noise has its own"):
        dd.Problem(operator, y, jnp.full(y.shape, 0.1), dd.Poisson(20.0))
    with pytest.raises(ValueError, match="solve_one takes the problem of one image"):
        problem = dd.Problem(operator, y[0], jnp.full(6, 0.1))
        dd.solve_one(SOLVERS["ddiff"], gaussian_prior(SHAPE), problem, jax.random.key(0))


def test_affine_instruments_are_seen_as_their_linear_part():
    blur, y = operators.gaussian_blur(SHAPE, size=3, std=1.0), jax.random.normal(jax.random.key(1), (2, *SHAPE))
    camera = affine(blur, jnp.full(SHAPE, 7.0))
    own = from_function(lambda x: 2.0 * blur.forward(x) + 3.0, SHAPE, affine=True)
    half = from_function(lambda x: 2.0 * blur.forward(x), SHAPE, linear=True)
    seen, x = jnp.broadcast_to(mask_and_level()[0], SHAPE), jax.random.normal(jax.random.key(2), (2, *SHAPE))
    for instrument, linear, offset in ((camera, blur, 7.0), (own, half, 3.0)):
        for observed in (None, seen[None]):
            for level in (0.1, mask_and_level()[1]):
                batch = dd.Problem(instrument, y + offset, level, observed=observed).standardised_batch()
                want = dd.Problem(linear, y, level, observed=observed).standardised_batch()
                np.testing.assert_allclose(batch.y, want.y, atol=1e-5)
                for method in (dd.Problem.nll, dd.Problem.grad):
                    np.testing.assert_allclose(batch.map(method, x), want.map(method, x), rtol=1e-3, atol=1e-3)
                require_operator(SOLVERS["diffpir"], batch.operator)
    behind = compose(affine(operators.super_resolution((6, 6, 1), factor=2), jnp.ones((3, 3, 1))), blur_of_six())
    assert isinstance(behind, operators.Affine)


def test_a_solver_by_least_squares_restores_from_an_affine_instrument():
    blur, prior = operators.gaussian_blur(SHAPE, size=3, std=1.0), gaussian_prior(SHAPE)
    keys, y = dd.image_keys(jax.random.key(0), jnp.arange(2)), jax.random.normal(jax.random.key(1), (2, *SHAPE))
    camera, solver = affine(blur, jnp.full(SHAPE, 7.0)), SOLVERS["pigdm"]
    want = dd.solve(solver, prior, dd.Problem(blur, y, 0.1), keys).x
    np.testing.assert_allclose(dd.solve(solver, prior, dd.Problem(camera, y + 7.0, 0.1), keys).x, want, atol=1e-3)
    one = dd.solve_one(solver, prior, dd.Problem(camera, y[0] + 7.0, 0.1), keys[0]).x
    np.testing.assert_allclose(one, want[0], atol=1e-3)


def blur_of_six():
    return operators.gaussian_blur((6, 6, 1), size=3, std=1.0)


@pytest.mark.usefixtures("unchecked")
def test_what_is_affine_is_said_once():
    with pytest.raises(TypeError, match="must be linear"):
        affine(cast(LinearOperator, operators.high_dynamic_range(SHAPE)), jnp.zeros(SHAPE))
    with pytest.raises(ValueError, match="different things"):
        from_function(lambda x: x, SHAPE, linear=True, affine=True)


@dd.pytree_dataclass
class Phasors:
    """cos and sin of x: two entries of one degree of freedom."""

    image_shape: tuple[int, ...] = dd.static_field(default=SHAPE)

    def forward(self, x):
        return jnp.stack([jnp.cos(x), jnp.sin(x)])

    def counts(self):
        return jnp.asarray(0.5)


def test_redundant_entries_count_their_degrees_of_freedom_whatever_is_put_behind():
    operator, size = Phasors(), SHAPE[0] * SHAPE[1]
    y = operator.forward(jnp.ones(SHAPE))
    assert dd.Problem(operator, y, 0.1).num_observed == size
    seen = jnp.ones((2, *SHAPE), bool).at[1].set(False)
    problem = dd.Problem(operator, y, jnp.full((1, 1, 1, 1), 0.1), observed=seen)
    assert problem.num_observed == problem.standardised().num_observed == size / 2
    assert problem.num_hidden == size


def test_a_cameras_noise_is_that_of_the_reference(x64):
    golden = np.load(GOLDEN / "instruments" / "noise_poisson_gaussian.npz")
    photons = 30.0
    noise = dd.PoissonGaussian(photons, *(float(golden[n]) for n in ("gain", "offset", "read")), floor=1e-6)
    y, clean = jnp.asarray(golden["y"]), jnp.asarray(2 * golden["e"] / photons - 1)
    slope = jax.grad(lambda clean: noise.data_term(clean, y))(clean) * 2 / photons
    np.testing.assert_allclose(slope, golden["grad_shifted"], rtol=1e-8, atol=1e-10)
    each = jax.vmap(noise.data_term)(clean[:, None], y[:, None])
    c, b = (golden["y"] - golden["offset"]) / golden["gain"], golden["b"]
    np.testing.assert_allclose(each, golden["nll_shifted"] + (c + b) * np.log(b) - b, rtol=1e-7, atol=1e-7)
    np.testing.assert_allclose(noise.levels(y) ** 2, golden["wls_variance"], rtol=1e-9)


def test_a_cameras_numbers_scatter_as_they_should_and_restore():
    noise = dd.PoissonGaussian(photons=40.0, gain=2.5, offset=100.0, read=4.0)
    clean = jnp.full((200, 200, 1), 0.5)
    y = dd.simulate(from_function(lambda x: x, clean.shape), clean, 0.0, jax.random.key(0), noise)
    expected = 40.0 * 0.75
    variance = 2.5**2 * expected + 4.0**2
    assert abs(float(y.mean()) - (2.5 * expected + 100)) < 5 * np.sqrt(variance / y.size)
    assert abs(float(y.var()) / variance - 1) < 5 * np.sqrt(2 / y.size) * 1.2  # the counts have some kurtosis
    blur, truth = operators.gaussian_blur(SHAPE, size=3, std=1.0), jnp.full(SHAPE, 0.4)
    y = dd.simulate(blur, truth, 0.0, jax.random.key(1), noise)
    problem = dd.Problem(blur, y, 10.0, noise)
    x = dd.solve_one(
        solvers.DDiff(solvers.Fixed(10.0), num_steps=40), gaussian_prior(SHAPE), problem, jax.random.key(2)
    ).x
    assert float(problem.nll(x)) < float(problem.nll(jnp.zeros(SHAPE)))
    in_image, level = noise.as_gaussian(y)
    weighed = dd.Problem(blur, in_image, level)
    assert 0.3 < float(weighed.chi_square(truth)) < 3
    with pytest.raises(ValueError, match="must be positive and finite"):
        dd.PoissonGaussian(photons=40.0, gain=0.0)
    with pytest.raises(ValueError, match="offset, what is read of no light, must be finite"):
        dd.PoissonGaussian(photons=40.0, offset=np.nan)
