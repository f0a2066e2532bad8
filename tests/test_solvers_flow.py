"""Flower and PnP-Flow against plain float64 loops, against published numbers, and against the laws of their outputs."""

import dataclasses
import functools
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracles import ALPHA_BAR, perturbation, start, tape_row, wave
from scipy.stats import norm as normal

import ddiff_jax as dd
from ddiff_jax import operators
from ddiff_jax.levels import Level
from ddiff_jax.operators import LinearOperator
from ddiff_jax.operators.separable import _separable
from ddiff_jax.priors.base import to_schedule
from ddiff_jax.solvers import Flower, PnPFlow
from ddiff_jax.types import to_type

pytestmark = pytest.mark.once

N = 16
SHAPE = (N, N, 3)
SIGMA = 0.05
STEPS = 20
FLOAT64, FLOAT32 = 1e-9, 1e-4  # relative to the loop
PRINTED = 3e-5  # how well the published numbers are known


# The loops. `denoise(x_t, t)` is E[x_0 | x_t] for x_t = t x_0 + (1 - t) n; noise is a tape: tape[k][i] is draw i of
# step k. Least squares and gradients are those of a model with `prox(z, y, rho)` and `gradient(x)`.


def flower_loop(model, denoise, x_t, num_steps, tape, *, draw, var=1.0):
    for k in range(num_steps):
        t = k / num_steps
        z = denoise(x_t, t)
        nu = np.sqrt(var * (1 - t) ** 2 / (t**2 * var + (1 - t) ** 2))
        rho, noises = (model.sigma_y / nu) ** 2, list(tape[k])
        if draw:
            x = model.prox(z + nu * noises[0], rho, model.sigma_y * noises[1])
        else:
            x = model.prox(z, rho)
        x_t = (t + 1 / num_steps) * x + (1 - t - 1 / num_steps) * noises[2 if draw else 0]
    return x_t


def pnp_flow_loop(model, denoise, x, num_steps, tape, *, num_samples, alpha, lr=1.0):
    for k in range(num_steps):
        t = k / num_steps
        z = x - lr * (1 - t) ** alpha * model.gradient(x)
        x = np.mean([denoise(t * z + (1 - t) * n, t) for n in tape[k][:num_samples]], axis=0)
    return x


def gaussian_path(mean, var, alpha_bar=ALPHA_BAR):
    """The denoiser of a Gaussian prior that knows no level beyond the noisiest of a table."""

    def denoise(x_t, t):
        a, b = t, 1 - t
        if b > a * np.sqrt(1 / alpha_bar[-1] - 1):
            a, b = np.sqrt(alpha_bar[-1]), np.sqrt(1 - alpha_bar[-1])
            x_t = b / (1 - t) * x_t
        return mean + a * var * (x_t - a * mean) / (a**2 * var + b**2)

    return denoise


@dataclasses.dataclass
class Factors:
    """A X = R X C^T in every channel, on images [N, N, 3], in plain NumPy."""

    factor: np.ndarray
    sigma_y: float
    y: np.ndarray

    def forward(self, x):
        return np.einsum("ab,bdc,ed->aec", self.factor, x, self.factor)

    def adjoint(self, y):
        return np.einsum("ba,bdc,de->aec", self.factor, y, self.factor)

    def gradient(self, x):
        return self.adjoint(self.forward(x) - self.y)

    def prox(self, z, rho, extra=0.0):
        """By the eigenvectors of R^T R."""
        values, vectors = np.linalg.eigh(self.factor.T @ self.factor)
        right = self.adjoint(self.y + extra) + rho * z
        c = np.einsum("ba,bdc,de->aec", vectors, right, vectors)
        c = c / (np.outer(values, values)[..., None] + rho)
        return np.einsum("ab,bdc,ed->aec", vectors, c, vectors)


@dataclasses.dataclass
class Mask:
    """y = m x."""

    mask: np.ndarray
    sigma_y: float
    y: np.ndarray

    def gradient(self, x):
        return self.mask * (x - self.y)

    def prox(self, z, rho):
        return (self.mask * self.y + rho * z) / (self.mask + rho)


def circular_blur():
    kernel = np.exp(-(np.arange(-3, 4) ** 2) / 2)
    row = np.zeros(N)
    row[:7] = kernel / kernel.sum()
    return np.stack([np.roll(row, k - 3) for k in range(N)])


MU, S2 = 0.5, 0.04


def bimodal(x_t, a, b, tanh=np.tanh):
    """E[x_0 | x_t = a x_0 + b n] of pixels +-0.5 + 0.2 n'."""
    total = a**2 * S2 + b**2
    return (a * S2 * x_t + b**2 * MU * tanh(a * MU * x_t / total)) / total


@dd.pytree_dataclass
class Bimodal:
    """Independent pixels around two values, for levels of any schedule."""

    # So noisy at its noisiest that only noise is left, as the published numbers have it.
    schedule: dd.EDMSchedule = dd.static_field(default=dd.EDMSchedule(sigma_max=1e8))
    image_shape: tuple[int, ...] = dd.static_field(default=SHAPE)

    def denoise(self, x_t, level):
        a, b = (jnp.asarray(value, x_t.dtype) for value in (level.signal, level.sigma))
        return bimodal(x_t, a, b, jnp.tanh)


def physics(name):
    """Make the operator and its model, with the measurement of the fixtures."""
    x = np.asarray(wave(N), np.float64)
    if name == "mask":
        i, k = np.meshgrid(np.arange(N), np.arange(N), indexing="ij")
        mask = ((i + k) % 3 != 0).astype(float)
        model = Mask(mask[..., None], SIGMA, mask[..., None] * (x + perturbation(N)))
        return operators.inpainting(SHAPE, mask), model
    factor = circular_blur() if name == "blur" else np.eye(N)[::2]
    model = Factors(factor, SIGMA, np.zeros(()))
    model.y = model.forward(x) + perturbation(len(factor))
    return _separable(factor, factor, SHAPE), model


# What was published: the first six values, channels first, the last three, sum and sum of squares.
PUBLISHED = [
    (
        "mask",
        lambda: Flower("mean", num_steps=STEPS),
        [0.266658, 0.533802, 0.683283, -0.542301, 0.327961, -0.346181, -0.737988, -0.654316, 0.172680],
        (1.361469, 238.632225),
    ),
    (
        "blur",
        lambda: Flower("mean", num_steps=STEPS),
        [0.352444, 0.117118, 0.765060, 0.652757, 0.785605, -0.900236, -1.033170, -0.476905, -0.843031],
        (0.076246, 386.685758),
    ),
    (
        "decimation",
        lambda: Flower("mean", num_steps=STEPS),
        [0.012692, -0.351596, 0.728281, -0.542301, 0.211813, -0.712933, -0.733081, 0.441671, 0.172680],
        (-1.231937, 234.180473),
    ),
    (
        "blur",
        lambda: Flower(num_steps=STEPS),
        [0.211112, 0.445427, 0.545852, 0.959198, 0.395236, -0.445327, -0.404805, -0.849656, -0.368705],
        (0.510731, 254.578768),
    ),
    (
        "mask",
        lambda: PnPFlow(alpha=0.5, num_samples=2, num_steps=STEPS, length="published"),
        [0.170590, 0.607992, 0.458919, -0.289544, 0.254218, -0.279679, -0.559192, -0.581085, -0.211844],
        (7.390816, 151.189437),
    ),
    (
        "blur",
        lambda: PnPFlow(alpha=0.01, num_samples=2, num_steps=STEPS, length="published"),
        [0.156756, 0.529993, 0.526125, 0.613202, 0.408051, -0.455187, -0.715098, -0.622787, -0.487448],
        (0.716451, 216.937376),
    ),
    (
        "decimation",
        lambda: PnPFlow(alpha=0.3, num_samples=2, num_steps=STEPS, length="published"),
        [-0.146536, -0.252534, 0.572687, -0.289544, 0.143663, -0.352274, -0.407644, 0.368121, -0.211844],
        (0.029009, 110.538797),
    ),
]


def recorded(solver, operator):
    """Number the draws of the fixtures one after the other: Flower's start is the first."""
    draws, first = solver.cost(operator).normal_draws, 1 if isinstance(solver, Flower) else 0
    rows = [tape_row(m, N) for m in range(first, first + STEPS * draws)]
    return np.reshape(rows, (STEPS, draws, *SHAPE)), tape_row(0, N) if first else start(N)


def looped(solver, model, tape, x):
    def denoise(x_t, t):
        return bimodal(x_t, t, 1 - t)

    if isinstance(solver, Flower):
        return flower_loop(model, denoise, x, STEPS, tape, draw=solver.data_step == "draw")
    return pnp_flow_loop(model, denoise, x, STEPS, tape, num_samples=solver.num_samples, alpha=solver.alpha)


@pytest.mark.parametrize(("name", "make", "numbers", "sums"), PUBLISHED)
def test_loops_have_the_published_numbers_and_solvers_are_their_loops(name, make, numbers, sums, x64):
    (operator, model), solver = physics(name), make()
    tape, x_init = recorded(solver, operator)
    want = looped(solver, model, tape.astype(float), x_init.astype(float))
    flat = want.transpose(2, 0, 1).ravel()
    np.testing.assert_allclose([*flat[:6], *flat[-3:]], numbers, atol=PRINTED)
    np.testing.assert_allclose([flat.sum(), np.sum(flat**2)], sums, atol=PRINTED * flat.size**0.5)
    for dtype, tolerance in ((jnp.float64, FLOAT64), (jnp.float32, FLOAT32)):
        problem = dd.Problem(operator, jnp.asarray(model.y, dtype), SIGMA)
        x = jax.jit(dd.solve_one)(solver, Bimodal(), problem, jax.random.key(0), jnp.asarray(tape, dtype), x_init).x
        assert x.dtype == dtype
        assert np.linalg.norm(np.asarray(x, float) - want) < tolerance * np.linalg.norm(want)


# The law of the output under a Gaussian prior: every step is affine in the state, in y and in its draws.


IMAGE = (8, 8, 1)


@dd.pytree_dataclass
class Structured:
    """N(0, C) with C = basis diag(spectrum) basis^T."""

    basis: jax.Array
    spectrum: jax.Array
    schedule: dd.EDMSchedule = dd.static_field(default=dd.EDMSchedule(sigma_max=1e6))
    image_shape: tuple[int, ...] = dd.static_field(default=IMAGE)

    def denoise(self, x_t, level):
        a, b = level.signal, level.sigma
        shrunk = a * self.spectrum / (a**2 * self.spectrum + b**2) * (self.basis.T @ x_t.ravel())
        return (self.basis @ shrunk).reshape(x_t.shape)


@functools.cache
def structured(n=8):
    """A spectrum that falls like that of pictures, of 0.25 per pixel on average, over the discrete cosine basis."""
    k, j = np.arange(n)[None], np.arange(n)[:, None]
    q = np.sqrt(2 / n) * np.cos(np.pi * (j + 0.5) * k / n) / np.where(k == 0, np.sqrt(2), 1)
    spectrum = (1 + (k**2 + j**2) / 4) ** -1.5
    return np.kron(q, q), (spectrum * 0.25 * n**2 / spectrum.sum()).ravel()


@dd.pytree_dataclass
class Dense(LinearOperator):
    """y = matrix x, with A^T A = vectors diag(values) vectors^T."""

    matrix: jax.Array
    values: jax.Array
    vectors: jax.Array
    image_shape: tuple[int, ...] = dd.static_field(default=IMAGE)

    def forward(self, x):
        return self.matrix @ x.reshape(-1)

    def prox(self, z, y, rho):
        right = self.matrix.T @ y + rho * z.reshape(-1)
        return (self.vectors @ ((self.vectors.T @ right) / (self.values + rho))).reshape(z.shape)


def matrix_of(name, n=8):
    if name == "sample":
        order = np.argsort(np.arange(1, n**2 + 1) * 0.6180339887498949 % 1, kind="stable")
        return np.eye(n**2)[np.sort(order[: n**2 // 2])]
    kernel = np.exp(-(np.arange(-3, 4) ** 2) / 2)
    row = np.zeros(n)
    row[:7] = kernel / kernel.sum()
    factor = np.stack([np.roll(row, k - 3) for k in range(n)])
    return np.kron(factor, factor)


def output_law(solver, spectrum, matrix, sigma_y):
    """Propagate mean and covariance: x ~ N(M y, V), exactly, by the solver's own steps on a basis."""
    rows, size = matrix.shape
    prior = Structured(jnp.asarray(structured()[0]), jnp.asarray(spectrum))
    values, vectors = np.linalg.eigh(matrix.T @ matrix)
    operator = Dense(jnp.asarray(matrix), jnp.asarray(values), jnp.asarray(vectors))
    # In the order of the draws; the second of Flower's three is one of y.
    shapes = [IMAGE] * solver.cost(operator).normal_draws
    if isinstance(solver, Flower) and solver.data_step == "draw":
        shapes[1] = (rows,)
    ends = np.cumsum([size, rows, *map(np.prod, shapes)])

    def step(point, flat):
        x, y, *draws = jnp.split(flat, ends[:-1])
        noise = dd.TapeNoise(tuple(n.reshape(shape) for n, shape in zip(draws, shapes, strict=True)))
        problem = dd.Problem(operator, y, sigma_y)
        state = solver.init(prior, problem, point, noise, jnp.reshape(x, IMAGE))
        return solver.estimate(solver.step(prior, problem, state, point, noise)[0]).ravel()

    @jax.jit
    def walk(grid):
        def body(law, point):
            mean, var = law
            moved = jax.vmap(lambda unit: step(point, unit))(jnp.eye(ends[-1])).T
            f, g, q = moved[:, :size], moved[:, size : size + rows], moved[:, size + rows :]
            return (f @ mean + g, f @ var @ f.T + q @ q.T), None

        return jax.lax.scan(body, (jnp.zeros((size, rows)), jnp.eye(size)), grid)[0]

    return map(np.asarray, walk(jax.tree.map(jnp.asarray, solver.grid(prior.schedule))))


def verdict(solver, name, spectrum=None, sigma_y=0.05):
    """Gap to the MMSE in dB, spread, coverage of half and of 90% of the posterior, and W2 over its size."""
    basis, matrix = structured()[0], matrix_of(name)
    spectrum = structured()[1] if spectrum is None else spectrum
    covariance = basis * spectrum @ basis.T
    mean, var = output_law(solver, spectrum, matrix, sigma_y)
    evidence = matrix @ covariance @ matrix.T + sigma_y**2 * np.eye(len(matrix))
    best = covariance @ matrix.T @ np.linalg.inv(evidence)
    posterior = covariance - best @ matrix @ covariance
    off = (mean - best) @ evidence @ (mean - best).T
    size = np.trace(posterior)
    error, std = np.sqrt(np.diag(posterior + off)), np.sqrt(np.diag(var))
    coverage = [np.mean(2 * normal.cdf(normal.ppf(0.5 + share / 2) * std / error) - 1) for share in (0.5, 0.9)]
    values, vectors = np.linalg.eigh(posterior)
    root = vectors * np.sqrt(np.maximum(values, 0)) @ vectors.T
    cross = np.sqrt(np.maximum(np.linalg.eigvalsh(root @ var @ root), 0)).sum()
    distance = np.sqrt((np.trace(off) + size + np.trace(var) - 2 * cross) / size)
    return [10 * np.log10(1 + np.trace(off) / size), np.sqrt(np.trace(var) / size), *coverage, distance]


LAWS = [
    (lambda: Flower("mean"), "sample", [0.0712, 0.7101, 0.3488, 0.7291, 0.3182]),
    (lambda: Flower("mean"), "blur", [0.0086, 0.6798, 0.3525, 0.7351, 0.3234]),
    (lambda: Flower(), "sample", [0.0712, 1.0567, 0.5109, 0.9081, 0.1424]),
    (lambda: Flower(), "blur", [0.0086, 1.0289, 0.5121, 0.9093, 0.0558]),
    (lambda: Flower(num_steps=1000), "sample", [0.0052, 1.0115, 0.5024, 0.9019, 0.0367]),
    (lambda: Flower(num_steps=1000), "blur", [0.0003, 1.0053, 0.5023, 0.9018, 0.0110]),
    (lambda: PnPFlow(alpha=0.3, length="published"), "sample", [0.1477, 0.3244, 0.1602, 0.3777, 0.7013]),
    (lambda: PnPFlow(alpha=0.3, length="published"), "blur", [1.5217, 0.3836, 0.1712, 0.4021, 0.9105]),
]


@pytest.mark.parametrize(("make", "name", "want"), LAWS)
def test_outputs_have_their_exact_laws_under_a_gaussian_prior(make, name, want, x64):
    np.testing.assert_allclose(verdict(make(), name), want, atol=6e-5)  # all digits that are known


def test_flower_is_exact_for_independent_pixels_of_a_known_variance(x64):
    """There p(x_0 | x_t) is the Gaussian that it takes it for, and even ten steps sample the posterior."""
    white = np.full(64, 0.04)
    found = verdict(Flower(var=0.04, num_steps=10), "blur", white)
    np.testing.assert_allclose(found, [0, 1, 0.5, 0.9, 0], atol=1e-5)
    published = verdict(Flower(num_steps=10), "blur", white)
    assert published[0] > 0.01 and published[-1] > 0.01


# On whose levels it is asked.


@dataclasses.dataclass(frozen=True)
class Echo:
    """A network whose velocity is the time that it was told, everywhere."""

    def apply(self, variables, x, t):
        assert x.shape[1:] == (2, 2, 1)
        return jnp.broadcast_to(t[:, None, None, None], x.shape)


@pytest.mark.parametrize("time_scale", [1.0, 999.0])
def test_a_flow_network_is_told_the_times_of_the_path(time_scale):
    schedule, shape = dd.FlowSchedule(time_scale=time_scale), (2, 2, 1)
    prior = dd.DiffusionPrior({}, schedule, Echo(), shape, clip=False, prediction="flow")
    points = to_type(Flower(num_steps=50).grid(schedule), jnp.float32)
    times = np.arange(50) / 50
    x_t = jnp.full(shape, 0.3)
    found = jax.jit(jax.vmap(lambda point: point.denoise(prior, x_t)))(points)[1:, 0, 0, 0]
    told = np.float32((1 - times[1:]) * time_scale)  # in the direction of our schedules, noise at 1
    np.testing.assert_array_equal(points.level.time[1:], told)
    np.testing.assert_array_equal(points.gain[1:], 1)
    np.testing.assert_array_equal(points.level.signal[1:], np.float32(times[1:]))
    # x_0 = x_t + (1 - t) v with our v = n - x_0, the other way round
    np.testing.assert_allclose(found, 0.3 - (1 - times[1:]) * told, rtol=1e-5)
    # At t = 0, where no signal is left, it is asked at the noisiest level that it knows.
    np.testing.assert_allclose(points.level.time[0], 0.999 * time_scale, rtol=1e-6)
    assert points.gain[0] == np.float32(0.999)


SCHEDULES = [dd.linear_schedule(), dd.EDMSchedule(), dd.FlowSchedule(), dd.VPSDESchedule(), dd.EDMSchedule(5.0)]


@pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda schedule: type(schedule).__name__)
def test_the_path_goes_over_the_levels_that_a_prior_would_find_itself(schedule, x64):
    points = Flower(num_steps=40).grid(schedule)
    x_t = jnp.ones(())
    for k in range(40):
        path = Level(jnp.asarray(k / 40), jnp.asarray(1 - k / 40), jnp.zeros(()))
        x, level = to_schedule(schedule, x_t, path)
        own = points.level[k]
        np.testing.assert_allclose(
            [points.gain[k], own.signal, own.sigma, own.time], [x, level.signal, level.sigma, level.time], rtol=1e-9
        )
    assert points.level.schedule == schedule


@pytest.mark.parametrize("name", ["mask", "decimation"])
def test_both_lengths_of_pnp_flow_are_one_where_they_should_be(name):
    """And of an operator that transmits a quarter, "line" gives the same; "published" steps are far too short."""
    operator, model = physics(name)
    tape, _ = recorded(solver := PnPFlow(num_samples=2, num_steps=STEPS), operator)

    @jax.jit
    def run(solver, operator, y, sigma_y):
        problem = dd.Problem(operator, y, sigma_y)
        return dd.solve_one(solver, Bimodal(), problem, jax.random.key(0), jnp.asarray(tape)).x

    y, kinds = jnp.asarray(model.y, jnp.float32), ("line", "published")
    line, published = (run(dataclasses.replace(solver, length=kind), operator, y, SIGMA) for kind in kinds)
    np.testing.assert_allclose(line, published, atol=1e-5)
    if name == "decimation":
        half = 0.5 * np.eye(N)[::2]
        weak = _separable(half, half, SHAPE)
        np.testing.assert_allclose(run(solver, weak, y / 4, SIGMA / 4), line, atol=1e-5)


def test_the_first_step_of_pnp_flow_forgets_its_start():
    operator, model = physics("blur")
    problem = dd.Problem(operator, jnp.asarray(model.y, jnp.float32), SIGMA)
    solve = jax.jit(functools.partial(dd.solve_one, PnPFlow(num_samples=2, num_steps=4), Bimodal(), problem))
    found = [solve(jax.random.key(0), x_init=x).x for x in (jnp.zeros(SHAPE), jnp.ones(SHAPE))]
    np.testing.assert_array_equal(*found)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Flower(cast(Any, "average")), "data_step must be one of draw, mean"),
        (lambda: Flower(var=0.0), "var must be positive"),
        (lambda: Flower(num_steps=0), "num_steps must be at least 1"),
        (lambda: PnPFlow(num_samples=0), "num_samples must be at least 1"),
        (lambda: PnPFlow(num_steps=-1), "num_steps must be at least 1"),
        (lambda: PnPFlow(alpha=-0.5), "alpha must be non-negative"),
        (lambda: PnPFlow(lr=0.0), "lr must be positive"),
    ],
)
def test_bad_hyper_parameters_are_refused(make, message, unchecked):
    with pytest.raises(ValueError, match=message):
        make()
