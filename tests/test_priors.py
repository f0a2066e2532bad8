"""Priors of every parameterisation, schedule and shape: one prior written in all of them is one prior."""

import dataclasses
import functools
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import gaussian_prior
from test_conformance import SOLVER_EXAMPLES

import ddiff_jax as dd
from ddiff_jax import image_files, metrics, operators
from ddiff_jax.levels import Spacing
from ddiff_jax.priors import PredictsNoise, denoise_with_variance, predict
from ddiff_jax.priors.network import PREDICTIONS
from ddiff_jax.solvers import SOLVERS, DDiff, asks_network

pytestmark = pytest.mark.once

SHAPE = (4, 4, 1)
ONE_PRIOR = {"float32": 1e-4, "float64": 1e-9}  # the same restoration, whatever the prior is written in


@dataclasses.dataclass(frozen=True)
class Rescaled:
    """The levels of another schedule in another scaling of x_t: `kind` "ve" (signal 1) or "flow" (signal + sigma 1)."""

    base: dd.VPSchedule
    kind: str

    @property
    def num_levels(self):
        return self.base.num_levels

    def _rescaled(self, level):
        total = level.signal if self.kind == "ve" else level.signal + level.sigma
        told = level.ratio if self.kind == "ve" else level.sigma / total
        return dd.Level(level.signal / total, level.sigma / total, told, self)

    def levels(self, num_steps, spacing: Spacing = "even"):
        return self._rescaled(self.base.levels(num_steps, spacing))

    def at(self, ratio):
        return self._rescaled(self.base.at(ratio))


VP = dd.linear_schedule()
VE, FLOW = Rescaled(VP, "ve"), Rescaled(VP, "flow")
SIGMA_DATA = 0.4


def exact(shape=SHAPE, schedule=VP):
    """A mixture of two Gaussians, as an exact prior on some schedule."""
    means = 0.5 * jax.random.normal(jax.random.key(5), (2, *shape))
    return dd.MixturePrior(jnp.array([0.3, 0.7]), means, jnp.array([0.05, 0.2]), schedule)


def written_as(kind, shape=SHAPE):
    """The same prior as a plain function of one kind, made by formulas of this file."""
    prior = exact(shape)

    def vp(x, t):
        level = VP.at_time(t)
        return level.signal, level.sigma, *prior.predict(x, level)

    def ve(x, sigma):
        level = dd.Level(jnp.ones_like(sigma), sigma, sigma)
        return prior.predict(x, level)

    def edm(x, time):
        sigma = jnp.exp(4 * time)
        total = sigma**2 + SIGMA_DATA**2
        noisy = x * jnp.sqrt(total)
        clean, _ = ve(noisy, sigma)
        return (clean - SIGMA_DATA**2 / total * noisy) * jnp.sqrt(total) / (sigma * SIGMA_DATA)

    def v(x, t):
        a, b, clean, eps = vp(x, t)
        return a * eps - b * clean

    def velocity(x, s):
        clean, eps = prior.predict(x, dd.Level(1 - s, s, s))
        return eps - clean

    made = {
        "eps": (lambda x, t: vp(x, t)[3], VP),
        "v": (v, VP),
        "x0": (lambda x, t: vp(x, t)[2], VP),
        "denoiser": (lambda x, sigma: ve(x, sigma)[0], VE),
        "velocity": (velocity, FLOW),
        "edm": (edm, dataclasses.replace(dd.EDMSchedule(), sigma_max=1000.0)),
    }
    function, schedule = made[kind]
    arguments = {"sigma_data": SIGMA_DATA} if kind == "edm" else {}
    return dd.from_denoiser(function, kind=kind, schedule=schedule, image_shape=shape, clip=False, **arguments)


KINDS = ("eps", "v", "x0", "denoiser", "edm", "velocity")


def test_formulas_have_the_recorded_values(golden, x64):
    with np.load(golden("parameterisations.npz")) as data:
        recorded = {name: jnp.asarray(data[name]) for name in data.files}
    prior = dd.GaussianPrior(recorded["mean"], recorded["std"] ** 2, VP, (64, 1))
    for k in range(len(recorded["signal"])):
        row = {name: values[k] for name, values in recorded.items() if values.ndim}
        level = dd.Level(row["signal"], row["sigma"], row["sigma"])
        x = row["x"][:, None]
        clean, eps = prior.predict(x, level)
        want = {name: row[name][:, None] for name in ("x0", "eps", "v", "score", "velocity", "edm_F")}
        np.testing.assert_allclose(clean, want["x0"], rtol=1e-9, atol=1e-12)
        np.testing.assert_allclose(eps, want["eps"], rtol=1e-9, atol=1e-12)
        np.testing.assert_allclose(level.score(x, clean), want["score"], rtol=1e-7, atol=1e-9)
        np.testing.assert_allclose(level.velocity(x, clean), want["velocity"], rtol=1e-7, atol=1e-9)
        outputs = {"v": "v", "x0": "x0", "flow": "velocity"} | ({"eps": "eps", "edm": "edm_F"} if level.signal else {})
        for prediction, column in outputs.items():
            got = PREDICTIONS[prediction](want[column], x, level, float(recorded["sigma_data"]))
            if prediction == "v":  # recorded for the signal and noise as they stand, not divided by their norm
                got = PREDICTIONS[prediction](want[column] / level.scale, x, level, 0.5)
            np.testing.assert_allclose(got[0], want["x0"], rtol=1e-6, atol=1e-8, err_msg=prediction)
            np.testing.assert_allclose(got[1], want["eps"], rtol=1e-6, atol=1e-8, err_msg=prediction)


@pytest.mark.parametrize("kind", KINDS)
def test_every_prior_serves_levels_of_every_schedule(kind, x64):
    prior, same = written_as(kind), exact()
    assert isinstance(prior, dd.Prior) and isinstance(prior, PredictsNoise)
    x_0, n = 0.5 * jax.random.normal(jax.random.key(1), (2, *SHAPE))
    for schedule in (VP, VE, FLOW, dd.FlowSchedule(0.99, 0.02), dd.EDMSchedule(sigma_min=0.02)):
        for k in range(5):
            level = schedule.levels(6)[k]
            x_t = level.signal * x_0 + level.sigma * n
            clean, eps = jax.jit(predict)(prior, x_t, level)
            np.testing.assert_allclose(clean, same.denoise(x_t, level), atol=1e-9)
            np.testing.assert_allclose(eps, same.predict(x_t, level)[1], atol=1e-7)
            np.testing.assert_allclose(prior.denoise(x_t, level), clean, atol=1e-12)


@functools.cache
def restored(name, kind, dtype):
    """Restore one image with a solver; the prior is written in some way, or exact on its own schedule for None."""
    prior = exact() if kind is None else written_as(kind)
    if kind == "edm":
        prior = dd.OnSchedule(prior, VE)
    solver = SOLVER_EXAMPLES[name](6)
    if name == "daps":
        solver = dataclasses.replace(solver, timestep="table")
    operator = operators.super_resolution(SHAPE, factor=2)
    y = operator.forward(0.5 * jax.random.normal(jax.random.key(3), SHAPE, dtype))
    problem = dd.Problem(operator, y, 0.1)
    return jax.jit(dd.solve_one)(solver, prior, problem, jax.random.key(4)).x


# The scalings for every solver; the parameterisations, which the denoiser hides from solvers, for one.
# Every day one of the two scalings, for solvers that ask the prior in different ways.
ASKING = ("ddiff", "dps", "daps", "ddrm", "mmps", "flower", "tds")
WRITTEN: list[Any] = [("ddiff", kind) for kind in ("eps", "v", "x0", "edm")]
for kind in ("denoiser", "velocity"):
    for name in filter(lambda name: asks_network(SOLVERS[name]), SOLVERS):
        is_daily = kind == "denoiser" and name in ASKING
        WRITTEN.append(pytest.param(name, kind, marks=[] if is_daily else [pytest.mark.slow]))


@pytest.mark.parametrize(("name", "kind"), WRITTEN)
def test_a_restoration_does_not_depend_on_how_the_prior_is_written(name, kind, x64):
    got, want = (restored(name, k, "float64") for k in (kind, None))
    assert got.dtype == jnp.float64
    np.testing.assert_allclose(got, want, rtol=0, atol=ONE_PRIOR["float64"] * float(jnp.max(jnp.abs(want))))


@pytest.mark.parametrize("kind", ["v", "edm", "velocity"])
def test_nor_in_float32(kind):
    for name in ("ddiff", "dps"):
        got, want = (restored(name, k, "float32") for k in (kind, None))
        np.testing.assert_allclose(got, want, rtol=0, atol=ONE_PRIOR["float32"] * float(jnp.max(jnp.abs(want))))


def test_weights_of_a_function_are_data():
    traces = []

    def function(weights, x, t):
        traces.append(1)
        return weights["gain"] * x

    def prior(gain):
        return dd.from_denoiser(function, kind="eps", image_shape=SHAPE, params={"gain": jnp.float32(gain)}, clip=False)

    level, denoise = VP.at_time(500), jax.jit(lambda prior, x, level: prior.denoise(x, level))
    x = jnp.ones(SHAPE)
    first, second = prior(0.1), prior(0.2)
    traces.clear()
    assert not np.array_equal(denoise(first, x, level), denoise(second, x, level))
    assert len(traces) == 1


@pytest.mark.parametrize(
    ("function", "options", "said"),
    [
        (lambda x, t: x, {"kind": "noise"}, "kind must be one of denoiser"),
        (lambda x: x, {}, "cannot be traced with an image"),
        (lambda x, t: float(x.sum()), {}, "cannot be traced with an image"),
        (lambda x, t: x[:2], {}, r"it returns \[2, 4, 1\]"),
        (lambda x, t: (x, x), {}, "it returns tuple"),
        ("network", {}, "got str"),
    ],
)
def test_functions_that_are_no_denoiser_are_refused(function, options, said, unchecked):
    with pytest.raises((TypeError, ValueError), match=said):
        dd.from_denoiser(function, **{"kind": "eps", "image_shape": SHAPE, **options})


def test_unknown_predictions_are_refused(unchecked):
    with pytest.raises(ValueError, match="prediction must be one of eps"):
        dd.DiffusionPrior({}, VP, written_as("eps").module, SHAPE, prediction="noise")  # pyright: ignore[reportArgumentType]


def test_a_clipping_prior_clips_what_it_denoises_and_nothing_else():
    prior = dataclasses.replace(written_as("eps"), clip=True)
    x_t, level = 3 * jax.random.normal(jax.random.key(0), SHAPE), VP.at_time(300)
    assert float(jnp.max(jnp.abs(prior.denoise(x_t, level)))) == 1.0
    assert float(jnp.max(jnp.abs(prior.predict(x_t, level)[0]))) > 1.0


def smooth(x):
    """A linear measurement of an image of any rank: every other plane of neighbours' means."""
    return (x[1:] + x[:-1])[::2] / 2


@pytest.mark.parametrize("shape", [(16, 1), (6, 5, 2), (4, 6, 5, 1)], ids=["signal", "two channels", "volume"])
def test_images_have_any_rank(shape):
    prior = gaussian_prior(shape)
    operator = operators.from_function(smooth, shape, linear=True)
    assert len(shape) < 4 or dd.check_operator(smooth, shape).ok
    x = 0.5 * jax.random.normal(jax.random.key(0), (3, *shape))
    y = jax.vmap(operator.forward)(x)
    keys = dd.image_keys(jax.random.key(1), jnp.arange(3))
    names = ("ddiff", "dps", "diffpir") if len(shape) == 2 else ("ddiff",)
    problem = dd.Problem(operator, y, 0.05)
    solutions = [dd.solve(SOLVER_EXAMPLES[name](5), prior, problem, keys) for name in names]
    for solution in solutions:
        assert solution.x.shape == x.shape and bool(solution.finite.all())
    scores = metrics.measure(problem, solutions[-1].x, x)
    assert scores["psnr_standard"].shape == (3,)


@pytest.mark.parametrize("axis", [0, 2])
def test_slices_of_a_volume_are_denoised_by_themselves(axis):
    slices = exact((4, 3, 1))
    prior = dd.SlicePrior(slices, 5, axis)
    assert prior.image_shape == ((5, 4, 3, 1) if axis == 0 else (4, 3, 5, 1))
    x_t, level = jax.random.normal(jax.random.key(0), prior.image_shape), VP.at_time(400)
    got = prior.denoise(x_t, level)
    for i in range(5):
        np.testing.assert_allclose(
            jnp.take(got, i, axis), slices.denoise(jnp.take(x_t, i, axis), level), rtol=1e-5, atol=1e-6
        )
    blocks = dataclasses.replace(prior, block=2)
    np.testing.assert_allclose(blocks.denoise(x_t, level), got, rtol=1e-5, atol=1e-6)
    for part, other in zip(blocks.predict(x_t, level), prior.predict(x_t, level), strict=True):
        np.testing.assert_allclose(part, other, rtol=1e-5, atol=1e-6)


def test_a_volume_is_restored_with_a_prior_for_its_slices():
    prior = dd.SlicePrior(gaussian_prior((6, 5, 1)), 4)
    operator = operators.from_function(smooth, prior.image_shape, linear=True)
    y = operator.forward(0.5 * jax.random.normal(jax.random.key(0), prior.image_shape))
    got = dd.solve_one(SOLVER_EXAMPLES["ddiff"](5), prior, dd.Problem(operator, y, 0.05), jax.random.key(1))
    whole = gaussian_prior(prior.image_shape)
    want = dd.solve_one(SOLVER_EXAMPLES["ddiff"](5), whole, dd.Problem(operator, y, 0.05), jax.random.key(1))
    np.testing.assert_allclose(got.x, want.x, atol=1e-5)


@pytest.mark.parametrize(
    ("options", "said"), [({"count": 0}, "at least one slice"), ({"count": 2, "axis": 3}, "between 0 and 2")]
)
def test_impossible_slices_are_refused(options, said):
    with pytest.raises(ValueError, match=said):
        dd.SlicePrior(gaussian_prior((6, 5, 1)), **options)


@dd.pytree_dataclass
class OfOnesOwn:
    """A prior that has learned the variance of a step, and is no `DiffusionPrior`."""

    prior: dd.Prior
    image_shape: tuple = dd.static_field()
    schedule: dd.Schedule = dd.static_field(default=VP)

    def denoise(self, x_t, level):
        return self.prior.denoise(x_t, level)

    def denoise_with_variance(self, x_t, level):
        return self.prior.denoise(x_t, level), jnp.tanh(x_t)


@pytest.mark.parametrize(
    "wrap",
    [
        lambda prior: prior,
        lambda prior: dd.OnSchedule(prior, VP),
        lambda prior: dd.LatentPrior(prior, jnp.negative),
        lambda prior: dd.SlicePrior(OfOnesOwn(exact((4, 1)), (4, 1)), 4),
    ],
    ids=["itself", "on a schedule", "latent", "slices"],
)
def test_a_learned_variance_is_passed_on(wrap):
    plain = exact((4, 4, 1))
    prior = wrap(OfOnesOwn(plain, (4, 4, 1)))
    x_t, level = jax.random.normal(jax.random.key(0), (4, 4, 1)), VP.at_time(400)
    z, v = denoise_with_variance(prior, x_t, level)
    np.testing.assert_allclose(z, prior.denoise(x_t, level), rtol=1e-6)
    np.testing.assert_allclose(v, jnp.tanh(x_t), rtol=1e-6)
    np.testing.assert_array_equal(denoise_with_variance(plain, x_t, level)[1], 0)


def latent_prior(rotation):
    """Latents of half the sides whose decoder doubles the sides and mixes pixels by an orthogonal matrix."""
    latents = dd.GaussianPrior(0.0, 0.25, VP, (2, 2, 4))
    return dd.LatentPrior(latents, lambda params, z: (params @ z.reshape(-1)).reshape(4, 4, 1), rotation)


def test_a_latent_prior_restores_pictures():
    rotation = jnp.linalg.qr(jax.random.normal(jax.random.key(0), (16, 16)))[0]
    prior = latent_prior(rotation)
    operator = operators.from_function(smooth, (4, 4, 1))
    x = 0.5 * jax.random.normal(jax.random.key(1), (2, 4, 4, 1))
    y, keys = jax.vmap(operator.forward)(x), dd.image_keys(jax.random.key(2), jnp.arange(2))
    solver = SOLVER_EXAMPLES["ddiff"](8)
    solution = dd.solve(solver, prior, dd.Problem(operator, y, 0.05), keys)
    assert solution.x.shape == (2, 4, 4, 1)
    one = dd.solve_one(solver, prior, dd.Problem(operator, y[1], 0.05), keys[1])
    np.testing.assert_allclose(solution.x[1], one.x, atol=1e-5)
    # White latents behind a rotation are white pictures: the operator seen through the decoder does the same.
    seen = operators.from_function(lambda z: smooth(prior.decode(z)), (2, 2, 4))
    by_hand = dd.solve_one(solver, prior.prior, dd.Problem(seen, y[1], 0.05), keys[1])
    np.testing.assert_allclose(one.x, prior.decode(by_hand.x), atol=1e-5)


def test_a_latent_prior_and_an_operator_for_other_pictures_are_refused():
    prior = latent_prior(jnp.eye(16))
    with pytest.raises(ValueError, match=r"images of shape \(6, 4, 1\), the prior for \(4, 4, 1\)"):
        operator = operators.from_function(smooth, (6, 4, 1))
        dd.solve_one(
            SOLVER_EXAMPLES["ddiff"](2), prior, dd.Problem(operator, jnp.zeros((3, 4, 1)), 0.05), jax.random.key(0)
        )
    small = operators.super_resolution((4, 4, 1), factor=2)
    with pytest.raises(ValueError, match="needs the operator's svd"):
        problem = dd.Problem(small, jnp.zeros((2, 2, 1)), 0.05)
        dd.solve_one(SOLVER_EXAMPLES["ddrm"](2), prior, problem, jax.random.key(0))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((jnp.ones(2), jnp.zeros((3, 4, 1)), jnp.ones(2)), r"weights \[M\], means .*; got shapes \(2,\), \(3, 4, 1\)"),
        ((jnp.ones(2), jnp.zeros((2, 4, 1)), jnp.zeros(2)), "a mixture needs .* positive variances"),
        ((-jnp.ones(2), jnp.zeros((2, 4, 1)), jnp.ones(2)), "a mixture needs weights of at least 0"),
    ],
)
def test_impossible_mixtures_are_refused(arguments, message, unchecked):
    with pytest.raises(ValueError, match=message):
        dd.MixturePrior(*arguments, schedule=VP)


def test_density_of_a_mixture_and_its_score_agree():
    prior = exact()
    x = jax.random.normal(jax.random.key(0), SHAPE)
    level = dd.Level(jnp.float32(1.0), jnp.float32(1e-3), jnp.float32(0.0))
    np.testing.assert_allclose(
        level.score(x, prior.denoise(x, level)), jax.grad(prior.log_density)(x), rtol=2e-2, atol=1
    )


def packaged_as(kind):
    """The packaged network, which predicts the noise, as a function of another kind."""
    packaged = dd.load_prior("faces64")

    def vp(params, x, level):
        told = jnp.asarray(level.time, jnp.float32)[None]
        eps = packaged.module.apply({"params": params}, x[None], told)[0, ..., :3]
        return level.x_0(x, eps), eps

    def ve(params, x, sigma):
        level = VP.at(sigma)
        return vp(params, level.signal * x, level)

    def v(params, x, t):
        level = VP.at_time(t)
        clean, eps = vp(params, x, level)
        return level.signal * eps - level.sigma * clean

    def edm(params, x, time):
        sigma = jnp.exp(4 * time)
        total = sigma**2 + SIGMA_DATA**2
        noisy = x * jnp.sqrt(total)
        clean, _ = ve(params, noisy, sigma)
        return (clean - SIGMA_DATA**2 / total * noisy) * jnp.sqrt(total) / (sigma * SIGMA_DATA)

    def velocity(params, x, s):
        clean, eps = ve(params, x / (1 - s), s / (1 - s))
        return eps - clean

    made = {
        "eps": (lambda params, x, t: vp(params, x, VP.at_time(t))[1], VP, {}),
        "v": (v, VP, {}),
        "x0": (lambda params, x, t: vp(params, x, VP.at_time(t))[0], VP, {}),
        "denoiser": (lambda params, x, sigma: ve(params, x, sigma)[0], VE, {}),
        "edm": (edm, dd.EDMSchedule(1000.0), {"sigma_data": SIGMA_DATA}),
        "velocity": (velocity, FLOW, {}),
    }
    function, schedule, more = made[kind]
    prior = dd.from_denoiser(
        function, kind=kind, schedule=schedule, image_shape=(64, 64, 3), params=packaged.params, **more
    )
    return dd.OnSchedule(prior, VE) if kind == "edm" else prior


@pytest.mark.slow
def test_the_packaged_network_restores_alike_in_every_parameterisation(optimised):
    truth = jnp.asarray(image_files.read_picture(Path(str(dd.__path__[0])) / "assets" / "sample.png")[0])
    operator = operators.super_resolution((64, 64, 3), factor=4)
    y, keys = (
        dd.simulate(operator, truth, 0.05, jax.random.key(1))[None],
        dd.image_keys(jax.random.key(2), jnp.arange(1)),
    )
    found = {}
    for kind in KINDS:
        x = dd.solve(DDiff(num_steps=50), packaged_as(kind), dd.Problem(operator, y, 0.05), keys).x[0]
        found[kind] = float(metrics.psnr(x, truth, protocol="standard"))
    assert max(found.values()) - min(found.values()) < 0.01, found
