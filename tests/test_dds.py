"""DDS against published numbers, a plain float64 loop, and the exact law of its output."""

import gibbs_oracles as oracle
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gibbs_oracles import S, measured
from output_laws import judge, matrix_operator, output_law, sampled_pixels, structured_prior
from test_pnp_dm import FLOAT32, FLOAT64, SCHEDULE, Bimodal, check, recording

import ddiff_jax as dd
from ddiff_jax import operators
from ddiff_jax.solvers import DDS

pytestmark = pytest.mark.once

BLUR = oracle.circular_blur(7, 1.0)
PUBLISHED = {
    (20, 1.0): ".297319 .050117 1.033499 -.173377 .875212 -.941461 -1.214043 -.234102 -.583600 -.571061 394.760956",
    (20, None): ".384127 .050731 .693059 .748799 .994609 -1.403365 -.697802 -.301573 -1.004615 .560495 492.073413",
    (50, 10.0): ".597322 -.164012 .904266 .483774 .905881 -1.004107 -.811145 -.583265 -.470739 .140382 365.248775",
}
# The released iteration stops at a residual of 1e-5 of its own system; ours goes on.
STOPPED = 3e-5


def tape_for(num_steps, published):
    """Lay out one draw per step, none in the one that the published variant leaves without noise."""
    draw = recording(1)
    rows = [0 * S if published and k == num_steps - 2 else draw(S.shape) for k in range(num_steps)]
    return np.stack(rows)[:, None]


@jax.jit
def restore(solver, operator, y, tape, x_init):
    problem = dd.Problem(operator, y, 0.05)
    return dd.solve_one(solver, Bimodal(), problem, jax.random.key(0), tape, x_init).x


def distance(solver, want, dtype=jnp.float64):
    tape = tape_for(solver.num_steps, solver.variant == "published")
    run = matrix_operator(BLUR, 3), measured(BLUR), tape, S
    got = restore(solver, *jax.tree.map(lambda leaf: jnp.asarray(leaf, dtype), run))
    return np.linalg.norm(np.asarray(got, np.float64) - want) / np.linalg.norm(want)


def loop(num_steps, **how):
    return oracle.dds(BLUR, measured(BLUR), S, num_steps, recording(1), denoise=oracle.bimodal, **how)


@pytest.mark.parametrize(("num_steps", "gamma"), PUBLISHED)
def test_released_values_give_the_published_numbers(num_steps, gamma, x64):
    want = loop(num_steps, gamma=gamma)
    check(want, PUBLISHED[num_steps, gamma])
    if gamma is None:
        solver = DDS(num_steps=num_steps, data_step="noiseless", variant="published")
    else:
        solver = DDS(data_weight=gamma, num_steps=num_steps, data_step="cg", variant="published")
    assert distance(solver, want) < STOPPED
    if gamma == 1.0:
        assert distance(solver, want, jnp.float32) < FLOAT32


def test_the_consistent_variant_equals_a_float64_loop(x64):
    """With the exact solution, of the weight v_t / sigma_y^2; the operator's decomposition makes it."""

    def weight(ab):
        return 0.2 * (1 - ab) / (0.2 * ab + 1 - ab) / 0.05**2

    want = loop(20, gamma=weight, cg_steps=None, published=False)
    assert distance(DDS(var=0.2, num_steps=20), want) < FLOAT64


@pytest.mark.slow
def test_enough_conjugate_gradients_are_the_exact_solution(x64):
    exact = loop(20, gamma=20.0, cg_steps=None, published=False)
    for count, least, most in ((60, 0.0, 1e-5), (2, 1e-3, np.inf)):
        assert least <= distance(DDS(data_weight=20.0, num_steps=20, data_step="cg", cg_steps=count), exact) < most


@pytest.mark.parametrize(("kind", "gaps"), [("sample", (0.5464, 0.2376, 0.2090)), ("blur", (1.5555, 0.1665, 5.1837))])
def test_the_law_of_the_output_is_the_known_one(kind, gaps, x64):
    """The MMSE gap under a Gaussian prior at weights of 1, 10 and 100, to all digits that are known."""
    operator = matrix_operator(sampled_pixels() if kind == "sample" else oracle.circular_blur(7, 1.0, 8))
    prior = structured_prior(SCHEDULE)
    for weight, want in zip((1.0, 10.0, 100.0), gaps, strict=True):
        law = output_law(DDS(data_weight=weight, data_step="prox", variant="published"), prior, operator, ((64, 1),))
        np.testing.assert_allclose(judge(*law, prior, operator)[0], want, atol=6e-5)


@pytest.mark.slow
def test_complex_measurements_are_met_by_real_images():
    """The adjoint of a scanner gives real numbers, two per pixel: the system is real and symmetric."""
    shape = (8, 8, 2)
    mask = np.random.RandomState(0).rand(8, 8) < 0.5
    operator = operators.mri(shape, mask=mask, maps=operators.birdcage_maps(shape, 2))
    prior = dd.GaussianPrior(0.1, 0.25, SCHEDULE, (8, 8, 2))
    y = operator.forward(0.5 * jax.random.normal(jax.random.key(1), (8, 8, 2)))
    exact, cg = (
        dd.solve_one(
            DDS(num_steps=5, data_step=how, cg_steps=20), prior, dd.Problem(operator, y, 0.1), jax.random.key(0)
        )
        for how in ("prox", "cg")
    )
    np.testing.assert_allclose(cg.x, exact.x, atol=1e-4)


def test_costs_and_needs_follow_the_data_step():
    blur = operators.gaussian_blur((8, 8, 1), size=3, std=0.6)
    tomography = operators.tomography((8, 8, 1), angles=[0.0, 40.0])
    assert DDS().cost(blur).operator_solves == 1 and DDS().cost(tomography).operator_gradients == 6
    assert DDS(data_step="prox").needs.methods == ("prox",) and DDS().needs.methods == ("adjoint",)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"eta": 1.5}, "eta must be fraction"),
        ({"data_weight": 0.0}, "data_weight must be positive"),
        ({"var": 0.0}, "var must be positive"),
        ({"cg_steps": 0}, "cg_steps must be at least 1"),
    ],
)
def test_bad_hyper_parameters_are_refused(values, message):
    with pytest.raises(ValueError, match=message):
        DDS(**values)
