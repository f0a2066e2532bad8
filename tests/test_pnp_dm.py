"""PnP-DM against published numbers, a plain float64 loop, and the exact law of its output."""

import itertools

import gibbs_oracles as oracle
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gibbs_oracles import LEAST, S, X, measured, noise
from output_laws import judge, matrix_operator, output_law, sampled_pixels, structured_prior

import ddiff_jax as dd
from ddiff_jax import operators
from ddiff_jax.levels import Schedule
from ddiff_jax.pytree import static_field
from ddiff_jax.solvers import PnPDM
from ddiff_jax.solvers.base import count_steps, total_cost

pytestmark = pytest.mark.once
slow = pytest.mark.slow

PRINTED = 4e-6  # numbers of six digits, from fixtures in float32
FLOAT64 = 1e-9  # relative, between two programs
FLOAT32 = 1e-4
SCHEDULE = dd.linear_schedule()
RELEASED = {"decay": 0.9, "num_levels": 100, "sigma_min": LEAST, "start": "below"}
# First six and last three entries, sum and sum of squares.
PRIOR_STEPS = {
    (1.0, True): "-.165488 .585638 -.026295 .421878 -.469241 -.294481 -.588526 -.283782 -.477746 1.930317 118.378581",
    (0.3, True): "-.148948 .826570 .476634 .623385 -.143925 -.518493 -.836691 -.494190 -.606039 2.679160 212.735144",
    (1.0, False): ".581749 .755394 .647860 .150057 -.583353 -.643529 -.814222 -.726863 -.276411 .050422 230.072297",
    (0.3, False): ".399304 .742026 .765273 .500290 -.266728 -.560764 -.898034 -.789527 -.348108 .404762 232.479741",
}
DRAWS = {
    "box": "1.355888 1.594477 1.104158 -.633840 -1.281118 -1.790958 -2.065393 -1.096814 -.410229 -.592686 885.876822",
    "mask": "1.058429 .534819 .730218 -.931298 .332240 -.419732 -.812822 -.643296 -.098170 .183968 445.079241",
}
MEANS = {
    "box": "1.431366 1.700803 .927981 -.302244 -1.678270 -1.388688 -1.653796 -1.325156 -.192187 .089028 815.279438",
    "blur": ".683401 1.926579 1.900324 .647007 -.733276 -1.470291 -2.055953 -1.147301 .821732 .142370 588.509135",
}
CHAIN = ".674879 .220319 .616816 -.163396 .161402 -.524629 -.471226 -.618941 -.463463 .658737 159.320909"
LAST_Z = ".493615 .251831 .552621 -.128072 .202522 -.733201 -.823566 -.333529 -.836283 1.353156 192.498148"
LANGEVIN = ".996835 1.375738 .542620 -.602712 -1.313011 -1.087163 -1.423932 -.959107 -.031551 .486305 703.440831"
MATRICES = {
    "box": oracle.box_mean,
    "mask": oracle.mask,
    "blur": lambda: oracle.circular_blur(9, 1.0, shift=-1),
}


def check(x, printed):
    """Compare with printed digits."""
    x, want = x.T.ravel(), np.array(printed.split(), float)
    np.testing.assert_allclose(np.concatenate([x[:6], x[-3:]]), want[:9], atol=PRINTED)
    np.testing.assert_allclose([x.sum(), (x**2).sum()], want[9:], rtol=1e-7, atol=PRINTED)


def recording(first):
    """Read the fixtures' noise in order, in any shape."""
    number = itertools.count(first)
    return lambda shape: noise(next(number), shape)


@dd.pytree_dataclass
class Bimodal:
    """Pixels around 0.5 or -0.5."""

    image_shape: tuple[int, ...] = static_field(default=S.shape)
    schedule: Schedule = static_field(default=SCHEDULE)

    def denoise(self, x_t, level):
        x, var = x_t / level.signal, (level.sigma / level.signal) ** 2
        return (0.04 * x + var * 0.5 * jnp.tanh(0.5 * x / (0.04 + var))) / (0.04 + var)


@dd.pytree_dataclass
class Anything:
    """A prior that takes every image for clean: what it returns is the draw given the data."""

    image_shape: tuple[int, ...] = static_field(default=S.shape)
    schedule: Schedule = static_field(default=SCHEDULE)

    def denoise(self, x_t, level):
        return x_t / level.signal


def tape_for(solver, y, draw):
    """Lay out the draws as a loop makes them: two where an iteration begins, one per noisy step of the diffusion."""
    grid = solver.grid(SCHEDULE)
    tape = tuple(np.zeros((len(grid.rho), *shape)) for shape in (S.shape, y.shape, S.shape))
    for k, (begins, w_n) in enumerate(zip(grid.begins, grid.w_n, strict=True)):
        if begins:
            tape[0][k], tape[1][k] = draw(S.shape), draw(y.shape)
        if w_n:
            tape[2][k] = draw(S.shape)
    return tape


@jax.jit
def restore(solver, prior, operator, y, tape, x_init):
    return dd.solve_one(solver, prior, dd.Problem(operator, y, 0.05), jax.random.key(0), tape, x_init).x


def replayed(solver, prior, matrix, y, x_init, dtype=jnp.float64):
    run = matrix_operator(matrix, 3), y, tape_for(solver, y, recording(1)), x_init
    operator, *run = jax.tree.map(lambda leaf: jnp.asarray(leaf, dtype), run)
    return np.asarray(restore(solver, prior, operator, *run), np.float64)


@pytest.mark.parametrize(("rho", "is_sde"), PRIOR_STEPS)
def test_the_loop_draws_given_the_prior_as_published(rho, is_sde):
    z = X + rho * S
    check(oracle.draw_given_prior(z, rho, oracle.levels(), recording(1), is_sde=is_sde), PRIOR_STEPS[rho, is_sde])


@pytest.mark.parametrize("kind", MEANS)
def test_the_loop_finds_the_published_mean_given_the_data(kind):
    matrix = MATRICES[kind]()
    check(oracle.prox(matrix, S, measured(matrix), (0.05 / 0.3) ** 2), MEANS[kind])


@pytest.mark.parametrize("kind", ["box", pytest.param("mask", marks=slow)])
def test_the_draw_given_the_data_is_the_published_one(kind, x64):
    matrix = MATRICES[kind]()
    want = oracle.draw_given_data(matrix, measured(matrix), 0.05, S, 0.3, recording(1))
    check(want, DRAWS[kind])
    solver = PnPDM(rho_max=0.3, rho_min=0.3, num_steps=1, num_levels=2, prior_step="flow")
    got = replayed(solver, Anything(), matrix, measured(matrix), S)
    assert np.linalg.norm(got - want) < FLOAT64 * np.linalg.norm(want)


HOW = {
    "released": ({"start": "below"}, {}),
    "exact": ({"start": "exact"}, {"is_exact": True}),
    "flow": ({"start": "exact", "prior_step": "flow"}, {"is_exact": True, "is_sde": False}),
}


@pytest.mark.parametrize("how", ["released", "exact", pytest.param("flow", marks=slow)])
def test_the_chain_equals_a_float64_loop(how, x64):
    fields, options = HOW[how]
    matrix = oracle.box_mean()
    y = measured(matrix)
    solver = PnPDM(rho_max=2.0, rho_min=0.2, num_steps=6, **{**RELEASED, "decay": 0.6, **fields})
    rhos = np.maximum(2 * 0.6 ** np.arange(6), 0.2)
    z, want = oracle.pnp_dm(matrix, y, 0.05, 0 * S, rhos, oracle.levels(), recording(1), **options)
    if how == "released":
        check(want, CHAIN)
        check(z, LAST_Z)
    got = replayed(solver, Bimodal(), matrix, y, 0 * S)
    assert np.linalg.norm(got - want) < FLOAT64 * np.linalg.norm(want)
    if how == "exact":
        got = replayed(solver, Bimodal(), matrix, y, 0 * S, jnp.float32)
        assert np.linalg.norm(got - want) < FLOAT32 * np.linalg.norm(want)


def test_langevin_dynamics_are_the_published_ones(x64):
    """On amplitudes of the Fourier transform; one step of the chain, from which the prior takes nothing."""
    phase = operators.phase_retrieval((16, 16, 3), oversample=4.0, image_range=(0, 1))
    y = phase.forward(jnp.asarray(X.reshape(16, 16, 3)))
    amplitudes = np.fft.ifftshift(np.asarray(y), (0, 1))  # the operator's are centred

    def gradient(z):
        padded = np.pad((z.reshape(16, 16, 3) + 1) / 2, ((8, 8), (8, 8), (0, 0)))
        spectrum = np.fft.fft2(padded, axes=(0, 1), norm="ortho")
        back = np.fft.ifft2(spectrum - amplitudes * spectrum / np.abs(spectrum), axes=(0, 1), norm="ortho").real
        return back[8:-8, 8:-8].reshape(z.shape) / 2

    want = oracle.langevin(gradient, S, 0.1, 0.5, 1e-4, 20, recording(1))
    check(want, LANGEVIN)
    solver = PnPDM(
        1e-4, 0.5, 0.5, num_steps=1, num_levels=2, langevin_steps=20, likelihood="langevin", prior_step="flow"
    )
    tape = np.stack([noise(m).reshape(16, 16, 3) for m in range(1, 21)])
    tape = jnp.asarray(np.stack([tape] * count_steps(solver, SCHEDULE)))
    run = dd.Problem(phase, y, 0.1), jax.random.key(0), tape, jnp.asarray(S.reshape(16, 16, 3))
    got = jax.jit(dd.solve_one)(solver, Anything((16, 16, 3)), *run).x
    np.testing.assert_allclose(got.reshape(S.shape), want, rtol=FLOAT64, atol=FLOAT64)


@slow
def test_langevin_dynamics_draw_what_the_exact_draw_does():
    """Mean and spread of many draws, far into the dynamics: at five standard errors, and 5% for their steps' size."""
    operator, y, count = operators.super_resolution((4, 4, 1), factor=4), jnp.full((1, 1, 1), 0.4), 512
    keys, start = jax.random.split(jax.random.key(0), count), jnp.zeros((4, 4, 1))

    def draws(**fields):
        solver = PnPDM(5e-3, 0.3, 0.3, num_steps=1, num_levels=2, prior_step="flow", **fields)
        problem = dd.Problem(operator, y, 0.1)
        one = jax.vmap(lambda key: dd.solve_one(solver, Anything((4, 4, 1)), problem, key, x_init=start).x)
        return np.asarray(jax.jit(one)(keys), np.float64).reshape(count, -1)

    walked, exact = draws(likelihood="langevin", langevin_steps=100), draws(likelihood="exact")
    for pair in ((walked.mean(1), exact.mean(1)), (walked[:, 0] - walked[:, 1], exact[:, 0] - exact[:, 1])):
        means, stds = ([f(x) for x in pair] for f in (np.mean, np.std))
        assert abs(means[0] - means[1]) < 5 * np.sqrt(2 / count) * stds[1]
        assert abs(stds[0] / stds[1] - 1) < 5 / np.sqrt(count) + 0.05
    assert walked.mean() > 0.1  # the data pull


@pytest.mark.parametrize(
    ("kind", "want"),
    [
        ("sample", (0.0477, 1.0187, 0.5639, 0.9355)),
        pytest.param("blur", (0.0011, 0.9916, 0.4962, 0.8970), marks=slow),
    ],
)
def test_the_law_of_the_output_is_the_known_one(kind, want, x64):
    """MMSE gap, spread and coverage under a Gaussian prior with the released levels, to all digits that are known."""
    operator = matrix_operator(sampled_pixels() if kind == "sample" else oracle.circular_blur(7, 1.0, 8))
    prior = structured_prior(SCHEDULE)
    draws = ((64, 1), (len(operator.matrix), 1), (64, 1))
    law = output_law(PnPDM(rho_min=0.05, num_steps=100, **RELEASED), prior, operator, draws)
    np.testing.assert_allclose(judge(*law, prior, operator), want, atol=6e-5)


@slow
def test_the_defaults_are_calibrated(x64):
    prior, operator = structured_prior(SCHEDULE), matrix_operator(sampled_pixels())
    law = output_law(PnPDM(), prior, operator, ((64, 1), (32, 1), (64, 1)))
    gap, spread, half, ninety = judge(*law, prior, operator)
    assert gap < 0.05 and abs(spread - 1) < 0.03 and abs(half - 0.5) < 0.08 and abs(ninety - 0.9) < 0.04


def test_steps_are_counted_as_published():
    counts = {10.0: 64, 5.0: 55, 1.0: 36, 0.5: 29, 0.3: 24, 0.1: 15, 0.05: 10}
    first = (9.516739, 4.960999, 0.987862, 0.489177, 0.282496, 0.0929205, 0.0459718)
    for (rho, count), s in zip(counts.items(), first, strict=True):
        grid = PnPDM(rho_max=rho, rho_min=rho, num_steps=1, **RELEASED).grid(SCHEDULE)
        assert len(grid.rho) == count and list(grid.begins) == [True] + [False] * (count - 1)
        np.testing.assert_allclose(grid.level.ratio[0], s, rtol=2e-6)
    for rho_min, count in {0.3: 3032, 0.1: 2482, 0.02: 1950}.items():
        assert count_steps(PnPDM(rho_min=rho_min, **RELEASED), SCHEDULE) == count
    assert count_steps(PnPDM(), SCHEDULE) == 994


def test_rho_reaches_its_floor_half_way_whatever_the_number_of_iterations():
    for num_steps in (7, 30, 100):
        grid = PnPDM(num_steps=num_steps).grid(SCHEDULE)
        rho = grid.rho[grid.begins]
        assert len(rho) == num_steps and rho[0] == 10
        np.testing.assert_array_equal(rho > 0.05 * (1 + 1e-9), np.arange(num_steps) < num_steps / 2)
        np.testing.assert_array_equal(grid.level.ratio[grid.begins], rho)


def test_costs_are_those_of_the_steps_made():
    operator = operators.super_resolution((8, 8, 1), factor=2)
    for solver in (PnPDM(), PnPDM(likelihood="langevin", langevin_steps=7), PnPDM(prior_step="flow")):
        total = total_cost(solver, operator, SCHEDULE, 30)
        begun = solver.grid(SCHEDULE).begins[:30].sum()
        assert begun == 2 and total.network_evaluations == total.operator_evaluations == 30
        draws = 7 if solver.likelihood == "langevin" else 2
        assert total.normal_draws == (0 if solver.prior_step == "flow" else 30) + 2 * draws
        assert (total.operator_solves, total.operator_gradients) == ((0, 14) if draws == 7 else (2, 0))
        assert solver.cost(operator) == total_cost(solver, operator, SCHEDULE, 1)  # a run begins with the data


def test_what_serves_no_exact_draw_is_refused_or_walked():
    prior, key = dd.GaussianPrior(0.0, 0.25, SCHEDULE, (8, 8, 1)), jax.random.key(0)
    hdr = operators.high_dynamic_range((8, 8, 1))
    assert PnPDM(num_steps=1).cost(hdr).operator_gradients == 100
    with pytest.raises(ValueError, match="needs the operator's prox"):
        dd.solve_one(PnPDM(likelihood="exact"), prior, dd.Problem(hdr, jnp.zeros((8, 8, 1)), 0.1), key)
    photons = dd.Problem(hdr, jnp.zeros((8, 8, 1)), 0.1, dd.Poisson(30.0))
    with pytest.raises(ValueError, match="assumes Gaussian noise"):
        dd.solve_one(PnPDM(), prior, photons, key)
    solver = PnPDM(likelihood="langevin", num_steps=2, num_levels=3, langevin_steps=2)
    assert jax.jit(dd.solve_one)(solver, prior, photons, key).finite


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"lr": 0.0}, "lr must be positive"),
        ({"rho_max": 0.0}, "rho_max must be positive"),
        ({"rho_min": 20.0}, "rho_min must not exceed rho_max"),
        ({"decay": 1.5}, "decay must lie in"),
        ({"num_steps": 0}, "num_steps must be at least 1"),
        ({"num_levels": 1}, "num_levels must be at least 2"),
        ({"sigma_min": 0.06, "start": "below"}, "sigma_min must be below rho_min"),
    ],
)
def test_bad_hyper_parameters_are_refused(values, message):
    with pytest.raises(ValueError, match=message):
        PnPDM(**values)
