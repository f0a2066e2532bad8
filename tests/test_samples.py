"""Several answers: what `solve_samples` promises, and that the spread is the posterior's where a method samples it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import gaussian_prior

import ddiff_jax as dd
from ddiff_jax import operators, samples, solvers
from ddiff_jax.solvers import DDiff, Fixed, PiGDM

pytestmark = pytest.mark.once

SHAPE = (8, 8, 1)
SOLVER = DDiff(Fixed(20.0), num_steps=6)


@pytest.fixture(scope="module")
def batch():
    """Two images with their own masks, measurements and keys."""
    keys = dd.image_keys(jax.random.key(3), jnp.arange(2))
    masks = jax.vmap(lambda key: operators.random_inpainting(SHAPE, key, fraction=0.4))(keys)
    x = jax.random.uniform(jax.random.key(1), (2, *SHAPE), minval=-1, maxval=1)
    y = jax.vmap(lambda operator, x, key: dd.simulate(operator, x, 0.05, key))(masks, x, keys)
    return masks, y, keys


def run(batch, y=None, solver=SOLVER, **kwargs):
    masks, measured, keys = batch
    problem = dd.Problem(masks, measured if y is None else y, 0.05, operator_axis=0)
    return dd.solve_samples(solver, gaussian_prior(SHAPE), problem, keys, **kwargs)


@pytest.fixture(scope="module")
def many(batch):
    return run(batch, samples=5, quantiles=(0.5,))


def test_the_first_sample_is_the_run_without_samples(batch, many):
    masks, y, keys = batch
    problem = dd.Problem(masks, y, 0.05, operator_axis=0)
    plain = dd.solve(SOLVER, gaussian_prior(SHAPE), problem, keys)
    np.testing.assert_allclose(many.x[:, 0], plain.x, atol=1e-5)
    np.testing.assert_array_equal(many.first.x, many.x[:, 0])
    np.testing.assert_allclose(many.first.info.misfit, plain.info.misfit, rtol=1e-4)
    assert many.first.cost == plain.cost * 5
    assert len({float(jnp.sum(x)) for x in many.x.reshape(-1, *SHAPE)}) == 10  # all are different


def test_maps_are_those_of_numpy(many):
    found = many
    x = np.asarray(found.x)
    np.testing.assert_allclose(found.mean, x.mean(axis=1), atol=1e-6)
    np.testing.assert_allclose(found.std, x.std(axis=1, ddof=1), atol=1e-6)
    for share, got in {0.05: found.low, 0.5: found.quantile(0.5), 0.95: found.high}.items():
        np.testing.assert_allclose(got, np.quantile(x, share, axis=1), atol=1e-6)
    with pytest.raises(ValueError, match=r"0\.05, 0\.5, 0\.95; ask for 0\.1"):
        found.quantile(0.1)


def test_neither_blocks_nor_the_number_of_samples_change_one(batch, many):
    steps, whole = [], many
    parts = run(batch, samples=5, block=2, on_chunk=lambda p: steps.append((p.step, p.num_steps)) and None)
    np.testing.assert_allclose(parts.x, whole.x, atol=1e-5)
    np.testing.assert_allclose(parts.std, whole.std, atol=1e-5)
    assert parts.first.cost == SOLVER.cost(batch[0]) * 6 * 6  # three blocks of two
    assert [s for s, _ in steps] == list(range(19)) and {n for _, n in steps} == {18}
    stopped = run(batch, samples=5, block=2, on_chunk=lambda progress: progress.step == 8)
    assert stopped.x.shape == (2, 4, *SHAPE)
    np.testing.assert_allclose(stopped.x[:, :2], whole.x[:, :2], atol=1e-5)


def test_diverged_samples_count_for_nothing(batch):
    _, y, _ = batch
    found = run(batch, samples=3, y=y.at[1].set(jnp.nan))
    np.testing.assert_array_equal(found.finite, [[True] * 3, [False] * 3])
    assert np.isfinite(found.std[0]).all() and np.isnan(found.mean[1]).all() and np.isnan(found.low[1]).all()
    x = jnp.stack([jnp.zeros(SHAPE), jnp.full(SHAPE, jnp.inf), jnp.ones(SHAPE)])
    mean, std, maps = samples._statistics(x, jnp.array([True, False, True]), jnp.array([0.5]))
    np.testing.assert_allclose([mean[0, 0, 0], std[0, 0, 0], maps[0, 0, 0, 0]], [0.5, np.sqrt(0.5), 0.5], rtol=1e-6)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"samples": 1}, "at least 2: one is `solve`; got 1"),
        ({"samples": 2, "block": 0}, "at least 1; got 0"),
        ({"samples": 2, "quantiles": (5.0,)}, "shares between 0 and 1"),
        ({"samples": 4, "block": 2, "resume": lambda snapshot: None}, "cannot be resumed"),
    ],
)
def test_what_cannot_be_is_refused(batch, wrong, message):
    with pytest.raises(ValueError, match=message):
        run(batch, **wrong)


def test_the_spread_is_the_posteriors_where_a_method_samples_it():
    """A Gaussian prior and a mask: PiGDM with the score's guidance is exact up to the length of its steps."""
    shape, sigma, var, count = (8, 8, 1), 0.2, 0.25, 200
    prior = dd.GaussianPrior(0.1, var, dd.linear_schedule(), shape)
    operator = operators.inpainting(shape, np.random.RandomState(0).rand(8, 8) < 0.5)
    truth = 0.1 + 0.5 * jax.random.normal(jax.random.key(1), shape)
    y = dd.simulate(operator, truth, sigma, jax.random.key(2))
    problem, keys = dd.Problem(operator, y[None], sigma), dd.image_keys(jax.random.key(5), jnp.arange(1))
    solver = PiGDM(var=var, guidance="score", num_steps=None)
    found = dd.solve_samples(solver, prior, problem, keys, samples=count, block=100)
    seen = np.asarray(operator.mask)[..., 0] > 0
    want_var = np.where(seen, 1 / (1 / var + 1 / sigma**2), var)[..., None]
    want = np.where(seen[..., None], want_var * (0.1 / var + np.asarray(y) / sigma**2), 0.1)
    std, standard_error = np.sqrt(want_var), np.sqrt(want_var / count)
    assert np.abs((found.mean[0] - want) / standard_error).max() < 5
    for part in (seen, ~seen):  # 32 pixels of 200 samples each: the pooled deviation is known to 0.9%
        ratio = np.sqrt(np.mean(np.asarray(found.std[0])[part] ** 2 / want_var[part]))
        np.testing.assert_allclose(ratio, 1.0, atol=0.05)
    low, high = want - 1.645 * std, want + 1.645 * std
    np.testing.assert_allclose(np.asarray(found.high - found.low)[0].mean(), (high - low).mean(), rtol=0.05)


def test_coverage_of_calibrated_samples_is_what_is_expected():
    rng = np.random.RandomState(0)
    for count in (3, 8, 40):
        draws = rng.standard_normal((count + 1, 200000))
        low, high = np.quantile(draws[1:], (0.05, 0.95), axis=0)
        got = samples.coverage(low, high, draws[0])
        np.testing.assert_allclose(got, samples.expected_coverage(count), atol=0.03)


def test_which_answer_is_shown(many):
    found = many
    assert samples.likely_image("posterior", found)[0] == "mean"
    name, x = samples.likely_image(solvers.aim_of(SOLVER), found)
    assert name == "sample 0"
    np.testing.assert_array_equal(x, found.x[:, 0])
