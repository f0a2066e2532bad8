"""Visibilities and closures against recorded results of ehtim and InverseBench, and against their definitions."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ddiff_jax as dd
from ddiff_jax import metrics, operators

pytestmark = pytest.mark.once

# Of float32 against float64, relative to the largest entry; phases in radian.
VISIBILITIES, PHASES, AMPLITUDES, CHI2, GRADIENT = 1e-6, 5e-5, 5e-5, 1e-5, 2e-5


def load(path):
    with np.load(path) as file:
        return {name: file[name][()] for name in file.files}  # numbers for arrays without axes


def build(recorded, **changes):
    names = {"triangles": "cp_index", "conjugates": "cp_conj", "quadrangles": "ca_index", "pixel": "psize"}
    given = {name: recorded[names.get(name, name)] for name in (*names, "u", "v", "sigma")}
    return operators.closures((*recorded["x"].shape, 1), **{**given, **changes})


@jax.jit
def evaluate(operator, instrument, x, x0, vis, noisy, flux):
    """Compute all that was recorded, in one program."""
    data = operator.from_visibilities(noisy, flux)

    def nll(x):
        return 0.5 * jnp.sum(((operator.forward(x) - data.y) / data.sigma_y) ** 2)

    model = instrument.forward(x0)
    return {
        "vis": instrument.forward(x),
        "adjoint_noisy": instrument.linear.adjoint(noisy)[..., 0],
        "clean": operator.split(operator.forward(x)),
        "data": operator.from_visibilities(vis, flux),
        "noisy": data,
        "nll": jax.value_and_grad(nll)(x0),
        "chi2": metrics.closure_chi2(operator, x0, data),
        "chi2_vis": metrics.chi2_vis(model, noisy, operator.sigma),
        "chi2_amp": metrics.chi2_amp(jnp.abs(model), jnp.abs(noisy), operator.sigma),
    }


@pytest.fixture(scope="module", params=["vlbi_16", "vlbi_64"])
def recorded(request):
    from conftest import GOLDEN

    recorded = load(GOLDEN / f"{request.param}.npz")
    operator = build(recorded)
    instrument = operators.interferometry(
        operator.image_shape, u=recorded["u"], v=recorded["v"], pixel=recorded["psize"]
    )
    images = (jnp.asarray(recorded[name])[..., None] for name in ("x", "x0"))
    data = (jnp.asarray(recorded[name], jnp.complex64) for name in ("vis", "vis_noisy"))
    return recorded, operator, evaluate(operator, instrument, *images, *data, jnp.float32(recorded["flux"]))


def close(got, want, tolerance):
    np.testing.assert_allclose(got, want, rtol=0, atol=tolerance * np.abs(want).max())


def turned_by(got, want):
    """Give the angle between two phases."""
    return np.abs(np.angle(np.exp(1j * (np.asarray(got, np.float64) - want))))


def test_visibilities_and_their_adjoint(recorded):
    recorded, _, got = recorded
    close(got["vis"], recorded["vis"], VISIBILITIES)
    if "adjoint_noisy" in recorded:  # of images in [0, 1]: twice ours
        close(2 * got["adjoint_noisy"], recorded["adjoint_noisy"], VISIBILITIES)


def test_closures_and_their_noise(recorded):
    recorded, operator, got = recorded
    clean = got["clean"]
    assert turned_by(clean.phases, recorded["cp"]).max() < PHASES
    np.testing.assert_allclose(clean.log_amplitudes, recorded["logca"], atol=AMPLITUDES)
    np.testing.assert_allclose(clean.flux, recorded["flux"], rtol=VISIBILITIES)
    for name, suffix in (("data", ""), ("noisy", "_noisy")):
        if f"sigma_ca{suffix}" not in recorded:
            continue
        data = got[name]
        parts, noise, count = operator.split(data.y), operator.split(data.sigma_y), len(recorded["cp"])
        assert turned_by(parts.phases, recorded[f"cp{suffix}"]).max() < PHASES
        np.testing.assert_allclose(parts.log_amplitudes, recorded[f"logca{suffix}"], atol=AMPLITUDES)
        np.testing.assert_allclose(noise.log_amplitudes, recorded[f"sigma_ca{suffix}"], rtol=1e-5)
        np.testing.assert_allclose(data.sigma_y[:count], recorded[f"sigma_cp{suffix}"], rtol=1e-5)
        np.testing.assert_array_equal(data.sigma_y[:count], data.sigma_y[count : 2 * count])
        np.testing.assert_allclose(noise.flux, np.sqrt(8), rtol=1e-6)
        assert data.observed.all()


def test_minimal_sets_in_the_order_of_ehtim(recorded):
    recorded, _, _ = recorded
    sets = operators.minimal_closures(recorded["t1"], recorded["t2"], recorded["time"], len(recorded["stations"]))
    for got, name in zip(sets, ("cp_index", "cp_conj", "ca_index"), strict=True):
        np.testing.assert_array_equal(got, recorded[name])


def test_the_negative_log_likelihood_is_a_quarter_of_the_loss_of_inversebench(recorded):
    recorded, _, got = recorded
    value, gradient = got["nll"]
    np.testing.assert_allclose(value, recorded["nll"], rtol=CHI2)
    np.testing.assert_allclose(4 * value, recorded["loss_inversebench"], rtol=CHI2)
    close(gradient[..., 0], recorded["gradient_nll"], GRADIENT)
    want_vis, want_amp, want_cp, want_ca, want_flux = recorded["chi2_at_x0"]
    np.testing.assert_allclose(got["chi2_vis"], want_vis, rtol=CHI2)
    np.testing.assert_allclose(got["chi2_amp"], want_amp, rtol=CHI2)
    np.testing.assert_allclose(got["chi2"]["cp"], want_cp, rtol=CHI2)
    np.testing.assert_allclose(got["chi2"]["ca"], want_ca, rtol=CHI2)
    # Theirs is ((F - F_obs) / 2)^2; the difference costs a digit.
    np.testing.assert_allclose(2 * got["chi2"]["flux"], want_flux, rtol=5 * CHI2)
    weighed = len(recorded["cp"]) * want_cp + len(recorded["logca"]) * want_ca + want_flux / 2
    np.testing.assert_allclose(value, weighed / 2, rtol=CHI2)


# Four stations at two times, the last one late; three baselines run the other way.
T1 = np.array([0, 2, 1, 0, 1, 3, 0, 3, 2])
T2 = np.array([1, 0, 2, 1, 2, 0, 2, 1, 3])
TIME = np.array([0, 0, 0, 1, 1, 1, 1, 1, 1]) / 3
UV = np.random.RandomState(0).uniform(-3e9, 3e9, (2, 9))
PIXEL, SHAPE = 3e-11, (6, 7, 1)


@functools.partial(jax.jit, static_argnames=("debias", "snr_cut"))
def close_up(operator, vis, flux, **options):
    return operator.from_visibilities(vis.astype(np.complex64), flux, **options)


@jax.jit
def forward(operator, x):
    return operator.forward(x)


def small(**changes):
    given = {"u": UV[0], "v": UV[1], "time": TIME, "t1": T1, "t2": T2, "pixel": PIXEL, **changes}
    return operators.closure_interferometry(SHAPE, **given)


def test_closures_are_what_they_are_called():
    sets = operators.minimal_closures(T1, T2, TIME)
    np.testing.assert_array_equal(sets.triangles, [[0, 2, 1], [3, 4, 6], [3, 7, 5], [6, 8, 5]])
    np.testing.assert_array_equal(sets.conjugates, [[0, 0, 0], [0, 0, 1], [0, 1, 0], [0, 0, 0]])
    # (0 3)(1 2) over (0 2)(1 3), and (0 3)(1 2) over (0 1)(2 3), with stations b, c, d as in the docstring
    np.testing.assert_array_equal(sets.quadrangles, [[5, 4, 6, 7], [5, 4, 3, 8]])


def test_station_gains_leave_closures_alone_and_change_visibilities():
    operator = small()
    rng = np.random.RandomState(1)
    vis = (rng.standard_normal(9) + 1j * rng.standard_normal(9)).astype(np.complex64)
    gains = np.exp(rng.standard_normal((2, 4)) + 2j * np.pi * rng.rand(2, 4))
    when = np.round(3 * TIME).astype(int)
    spoiled = vis * gains[when, T1] * np.conj(gains[when, T2])
    got = [close_up(operator, v, 3.0).y for v in (vis, spoiled)]
    np.testing.assert_allclose(got[1], got[0], atol=1e-5)
    assert np.abs(spoiled - vis).max() > 0.5


def test_counts_are_degrees_of_freedom():
    np.testing.assert_array_equal(small().counts(), [0.5] * 8 + [1] * 3)
    np.testing.assert_array_equal(small(flux=False).counts(), [0.5] * 8 + [1] * 2)


def test_the_black_image_has_a_value_and_a_gradient():
    operator = small()

    def total(x):
        return jnp.sum(operator.forward(x) ** 2)

    value, gradient = jax.jit(jax.value_and_grad(total))(-jnp.ones(SHAPE))
    assert jnp.isfinite(value) and jnp.isfinite(gradient).all()


def test_visibilities_follow_their_definition_and_their_scale(x64):
    x = np.random.RandomState(2).uniform(-1, 1, SHAPE)
    east = (3.0 - np.arange(7)) * PIXEL
    north = (2.5 - np.arange(6)) * PIXEL
    phase = UV[0][:, None, None] * east + UV[1][:, None, None] * north[:, None]
    want = np.einsum("mrc,rc->m", np.exp(2j * np.pi * phase), 2.5 * (x[..., 0] + 1) / 2)
    make = functools.partial(operators.interferometry, SHAPE, u=UV[0], v=UV[1], pixel=PIXEL, scale=2.5)
    for power, operator in enumerate((make(pulse="delta"), make(pulse="rectangle"), make())):
        factor = (np.sinc(UV[0] * PIXEL) * np.sinc(UV[1] * PIXEL)) ** power
        np.testing.assert_allclose(forward(operator, jnp.asarray(x)), factor * want, atol=1e-12)
    # Closures have no units, their flux has.
    got, unit = (forward(small(scale=scale), jnp.asarray(x)) for scale in (2.5, 1.0))
    np.testing.assert_allclose(got[:-1], unit[:-1], atol=1e-12)
    np.testing.assert_allclose(got[-1], np.sum(2.5 * (x + 1) / 2))


@pytest.mark.parametrize("kind", ["interferometry", "closures"])
def test_gradients_with_respect_to_baselines_pixel_and_scale_are_central_differences(kind, x64):
    x = jnp.asarray(np.random.RandomState(3).uniform(-1, 1, SHAPE))
    sets = operators.minimal_closures(T1, T2, TIME)

    @jax.jit
    def value(given):
        given = {"u": 1e9 * given["u"], "v": 1e9 * given["v"], "pixel": 1e-11 * given["pixel"], "scale": given["scale"]}
        if kind == "closures":
            y = operators.closures(SHAPE, **given, sigma=1.0, **sets._asdict()).forward(x)
        else:
            y = operators.interferometry(SHAPE, **given).forward(x)
        weights = jnp.cos(jnp.arange(y.size))
        return jnp.sum(weights * (jnp.real(y) ** 2 + 0.5 * jnp.imag(y)))

    given = {"u": UV[0] / 1e9, "v": UV[1] / 1e9, "pixel": np.float64(3.0), "scale": np.float64(1.5)}
    slopes = jax.jit(jax.grad(value))(given)
    for name, number in given.items():
        direction = np.random.RandomState(4).standard_normal(np.shape(number))
        h = 1e-5
        up, down = (value({**given, name: number + move * direction}) for move in (h, -h))
        np.testing.assert_allclose(np.sum(slopes[name] * direction), (up - down) / (2 * h), rtol=1e-5, err_msg=name)
    # The host's tables and the traced ones are the same.
    made = jax.jit(lambda u: operators.interferometry(SHAPE, u=u, v=UV[1], pixel=PIXEL))(UV[0])
    want = operators.interferometry(SHAPE, u=UV[0], v=UV[1], pixel=PIXEL)
    for traced, table in zip(jax.tree.leaves(made), jax.tree.leaves(want), strict=True):
        np.testing.assert_allclose(traced, table, atol=1e-10)


def test_weak_visibilities_are_cut_and_vanished_ones_never_count():
    operator = small(sigma=np.full(9, 0.5))
    vis = np.full(9, 3 + 0j, np.complex64)
    vis[0], vis[7] = 0.9, 0
    data, cut = (close_up(operator, vis, 1.0, snr_cut=snr) for snr in (0.0, 2.0))
    np.testing.assert_array_equal(data.observed, 2 * [True, True, False, True] + [False, True, True])
    np.testing.assert_array_equal(cut.observed, 2 * [False, True, False, True] + [False, True, True])
    for found in (data, cut):
        assert np.isfinite(found.y).all() and np.isfinite(found.sigma_y).all()
        np.testing.assert_allclose(found.sigma_y[1], np.sqrt(3) / 6, rtol=1e-6)
        np.testing.assert_allclose(found.sigma_y[9], np.sqrt(4) / 6, rtol=1e-6)


def test_debiased_amplitudes():
    sigma = np.linspace(0.2, 0.6, 9)
    operator = small(sigma=sigma)
    vis = (np.arange(1, 10) * np.exp(1j * np.arange(9))).astype(np.complex64)
    vis[4] = 0.1  # below its noise
    strength = np.sqrt(np.maximum(np.abs(vis) ** 2 - sigma**2, 0))
    strength[4] = sigma[4]
    logs, snr = np.log(strength), strength / sigma
    sets = np.asarray(operator.quadrangles)
    signs = [1, 1, -1, -1]
    data = close_up(operator, vis, 1.0, debias=True)
    want = (logs[sets] * signs).sum(1) + 0.5 * (snr[sets] ** -2.0 * signs).sum(1)
    np.testing.assert_allclose(operator.split(data.y).log_amplitudes, want, rtol=1e-5)
    np.testing.assert_allclose(
        operator.split(data.sigma_y).log_amplitudes, np.sqrt((snr[sets] ** -2.0).sum(1)), rtol=1e-5
    )
    plain = close_up(operator, vis, 1.0)
    np.testing.assert_allclose(operator.split(plain.y).phases, operator.split(data.y).phases, atol=1e-6)


def test_noise_is_as_large_as_said():
    """Over many draws the chi-squares of the truth are 1, but for what of the noise is not Gaussian."""
    operator = small(sigma=np.linspace(0.02, 0.06, 9), scale=0.2)
    instrument = operators.interferometry(SHAPE, u=UV[0], v=UV[1], pixel=PIXEL, scale=0.2)
    x = jnp.asarray(np.random.RandomState(7).uniform(-1, 1, SHAPE), jnp.float32)
    flux = 0.2 * jnp.sum((x + 1) / 2)

    @jax.jit
    def draw(key):
        noisy = dd.simulate(instrument, x, operator.sigma, key)
        data = operator.from_visibilities(noisy, flux)
        model = instrument.forward(x)
        return {**metrics.closure_chi2(operator, x, data), "vis": metrics.chi2_vis(model, noisy, operator.sigma)}

    found = jax.lax.map(draw, jax.random.split(jax.random.key(0), 2000))
    means = {name: float(jnp.mean(values)) for name, values in found.items()}
    assert abs(means["vis"] - 1) < 0.02
    assert abs(means["cp"] - 1) < 0.1 and abs(means["ca"] - 1) < 0.1
    assert means["flux"] < 1e-10


def test_a_shifted_image_is_the_same_up_to_the_shift():
    rng = np.random.RandomState(5)
    truth = np.full((12, 15, 1), -1, np.float32)
    truth[3:8, 4:9] = rng.uniform(-1, 1, (5, 5, 1))
    noisy = truth + 0.05 * rng.standard_normal(truth.shape).astype(np.float32)
    want = -10 * np.log10(np.mean((np.clip(noisy, -1, 1) - truth) ** 2) / 4)
    shifted = jax.jit(metrics.shifted_psnr)
    for move in ((0, 0), (4, -5), (-3, 6)):
        np.testing.assert_allclose(shifted(np.roll(noisy, move, (0, 1)), truth), want, atol=1e-2)
    assert shifted(np.roll(noisy, (2, 3), (0, 1)), truth, fwhm=3.0) > want + 3  # noise goes, the picture stays
    assert shifted(-noisy, truth) < want - 5
    with pytest.raises(ValueError, match="one shape"):
        metrics.shifted_psnr(jnp.zeros((2, 3, 1)), jnp.zeros((3, 2, 1)))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: operators.interferometry((6, 7, 3), u=UV[0], v=UV[1], pixel=PIXEL), r"\(H, W, 1\)"),
        (lambda: operators.interferometry(SHAPE, u=UV[0], v=UV[1, :4], pixel=PIXEL), r"one length.*\(9,\) and \(4,\)"),
        (lambda: operators.interferometry(SHAPE, u=UV, v=UV, pixel=PIXEL), "two rows"),
        (lambda: operators.interferometry(SHAPE, u=[], v=[], pixel=PIXEL), "two rows"),
        (lambda: operators.interferometry(SHAPE, u=[np.nan], v=[0.0], pixel=PIXEL), "finite"),
        (lambda: operators.interferometry(SHAPE, u=UV[0], v=UV[1], pixel=0.0), "pixel must be positive"),
        (lambda: operators.interferometry(SHAPE, u=UV[0], v=UV[1], pixel=PIXEL, scale=-1.0), "scale must be positive"),
        (lambda: small(pulse="box"), "triangle, rectangle"),
        (lambda: small(sigma=0.0), "sigma must be positive"),
        (lambda: small(sigma=np.ones(4)), r"\[9\]; got shape \(4,\)"),
        (lambda: small(sigma_flux=0.0), "sigma_flux must be positive"),
        (lambda: small(t1=T1 + 0.5), "whole numbers"),
        (lambda: small(t1=T1[:-1]), "one number per visibility"),
        (lambda: small(t1=T2), "paired with itself"),
        (lambda: small(time=np.zeros(9)), "occurs twice at time 0"),
        (lambda: operators.minimal_closures(T1, T2, TIME, 3), "below num_stations, 3"),
        (lambda: small().from_visibilities(np.ones(9, np.complex64)), "give flux"),
        (lambda: small(flux=False).from_visibilities(np.ones(9, np.complex64), 1.0), "leave flux out"),
        (lambda: sets(triangles=[[0, 1, 9]]), "numbers from 0 to 8"),
        (lambda: sets(triangles=[[0, 1]]), r"shape \[.., 3\]"),
        (lambda: sets(conjugates=[[0, 1, 1], [0, 0, 0]]), "every side"),
        (lambda: sets(triangles=[], conjugates=[], quadrangles=[], flux=False), "nothing is measured"),
    ],
)
def test_wrong_arguments_are_refused(make, message, unchecked):
    with pytest.raises(ValueError, match=message):
        make()


def sets(**changes):
    given = {"triangles": [[0, 2, 1]], "conjugates": [[0, 0, 0]], "quadrangles": [[5, 4, 6, 7]], **changes}
    return operators.closures(SHAPE, u=UV[0], v=UV[1], sigma=1.0, pixel=PIXEL, **given)
