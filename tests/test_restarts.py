import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import gaussian_prior

import ddiff_jax as dd
from ddiff_jax import operators
from ddiff_jax.solvers import DDiff, Fixed

pytestmark = pytest.mark.once

SHAPE = (8, 8, 3)
SOLVER = DDiff(Fixed(20.0), num_steps=8)


@pytest.fixture(scope="module")
def batch():
    """Three images with their own masks, measurements and keys."""
    keys = dd.image_keys(jax.random.key(3), jnp.arange(3))
    masks = jax.vmap(lambda key: operators.random_inpainting(SHAPE, key, fraction=0.4))(keys)
    x = jax.random.uniform(jax.random.key(1), (3, *SHAPE), minval=-1, maxval=1)
    y = jax.vmap(lambda operator, x, key: dd.simulate(operator, x, 0.05, key))(masks, x, keys)
    return masks, y, keys


def run(batch, restarts, y=None, **kwargs):
    masks, measured, keys = batch
    y = measured if y is None else y
    problem = dd.Problem(masks, y, 0.05, operator_axis=0)
    return dd.solve_restarts(SOLVER, gaussian_prior(SHAPE), problem, keys, restarts=restarts, **kwargs)


def test_the_restart_of_least_misfit_is_chosen(batch):
    masks, y, _ = batch
    found = run(batch, 4)
    assert found.x.shape == (3, 4, *SHAPE)
    for i in range(3):
        operator = jax.tree.map(lambda leaf, i=i: leaf[i], masks)
        misfits = [float(dd.Problem(operator, y[i], 0.05).misfit(x)) for x in found.x[i]]
        np.testing.assert_allclose(found.misfit[i], misfits, rtol=1e-5)
        assert int(found.chosen[i]) == int(np.argmin(misfits))
        np.testing.assert_array_equal(found.solution.x[i], found.x[i, int(np.argmin(misfits))])
    assert len(set(np.asarray(found.misfit).ravel().tolist())) == 12  # all runs are different
    assert found.solution.info.misfit.shape == (3, 8)
    assert found.solution.cost == SOLVER.cost(masks) * 8 * 4


def test_the_first_restart_is_the_run_without_restarts_and_more_change_none(batch):
    masks, y, keys = batch
    plain = dd.solve(SOLVER, gaussian_prior(SHAPE), dd.Problem(masks, y, 0.05, operator_axis=0), keys)
    np.testing.assert_allclose(run(batch, 2).x[:, 0], plain.x, atol=1e-5)
    np.testing.assert_allclose(run(batch, 4).x[:, :2], run(batch, 2).x, atol=1e-5)


def test_a_diverged_restart_is_never_chosen(batch):
    _, y, _ = batch
    found = run(batch, 2, y=y.at[1].set(jnp.nan))
    np.testing.assert_array_equal(found.solution.finite, [True, False, True])
    assert np.isinf(np.asarray(found.misfit)[1]).all()


def test_progress_reports_the_least_misfit(batch):
    seen = []
    run(batch, 2, on_chunk=lambda progress: seen.append((progress.misfit.shape, progress.preview().shape)) and None)
    assert set(seen) == {((3,), (3, *SHAPE))}


def test_no_restart_is_refused(batch):
    with pytest.raises(ValueError, match="at least 1; got 0"):
        run(batch, 0)


@pytest.mark.parametrize("image_range", [(-1, 1), (0, 1)])
def test_equivalent_images_of_phase_retrieval_measure_the_same(image_range):
    operator = operators.phase_retrieval((16, 12, 3), image_range=image_range)
    x = jax.random.uniform(jax.random.key(0), (16, 12, 3), minval=-1, maxval=1)
    candidates = operator.equivalents(x)
    assert len(candidates) == (4 if image_range == (-1, 1) else 2)
    for candidate in candidates:
        np.testing.assert_allclose(operator.forward(candidate), operator.forward(x), atol=1e-5)
        np.testing.assert_array_equal(dd.nearest_equivalent(operator, candidate, x), x)


def test_what_an_operator_cannot_tell_apart_nothing_behind_it_can():
    operator = operators.phase_retrieval((8, 6, 1))
    x = jax.random.uniform(jax.random.key(0), (8, 6, 1), minval=-1, maxval=1)
    some = jax.random.bernoulli(jax.random.key(1), 0.5, operator.forward(x).shape)
    squared = operators.from_function(jnp.square, operator.forward(x).shape)
    for behind in (operators.masked(operator, some), operators.compose(squared, operator)):
        assert isinstance(behind, operators.Ambiguous)
        np.testing.assert_array_equal(dd.nearest_equivalent(behind, -x[::-1, ::-1], x), x)


def test_an_operator_says_whether_it_measures_pictures():
    shape = (8, 6, 1)
    blur, amplitudes = operators.gaussian_blur(shape, size=3, std=1.0), operators.phase_retrieval(shape)
    assert operators.measures_picture(blur) and operators.measures_picture(type(blur))
    assert operators.measures_picture(operators.masked(blur, np.ones((8, 6, 1), bool)))
    assert operators.measures_picture(operators.compose(operators.high_dynamic_range(shape), blur))
    assert not operators.measures_picture(amplitudes)
    assert not operators.measures_picture(operators.compose(amplitudes, blur))
    assert operators.known_image_shape(operators.Masked(blur, jnp.ones(shape, bool))) == shape


def test_an_operator_without_ambiguity_leaves_the_image_alone():
    operator = operators.gaussian_blur(SHAPE, size=3, std=1.0)
    x = jax.random.normal(jax.random.key(0), SHAPE)
    np.testing.assert_array_equal(dd.nearest_equivalent(operator, x, -x), x)
