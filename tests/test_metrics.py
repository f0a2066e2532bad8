"""Metrics against scikit-image and hand-made cases."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

import ddiff_jax as dd
from ddiff_jax import metrics, operators

pytestmark = pytest.mark.once

ATOL = 1e-5  # float32 against scikit-image's float64


def pair(side=32, seed=0, noise=0.2):
    """A smooth image that nearly fills [-1, 1], and a noisy one that leaves it."""
    rng = np.random.default_rng(seed)
    i, j, c = np.meshgrid(np.arange(side), np.arange(side), np.arange(3), indexing="ij")
    truth = 0.95 * np.sin(0.3 * i + 0.11 * j + c) * np.cos(0.2 * i - 0.1 * j)
    return (truth + noise * rng.standard_normal(truth.shape)).astype(np.float32), truth.astype(np.float32)


def oracle(x, truth, name, protocol):
    """What scikit-image says."""
    x, truth = x.astype(np.float64), truth.astype(np.float64)
    if protocol == "paper":
        data_range = truth.max() - truth.min()
        if name == "psnr":
            return peak_signal_noise_ratio(truth, x, data_range=data_range)
        return structural_similarity(x, truth, win_size=5, channel_axis=-1, data_range=data_range)
    x, truth = (np.clip(x, -1, 1) + 1) / 2, (np.clip(truth, -1, 1) + 1) / 2
    if name == "psnr":
        return peak_signal_noise_ratio(truth, x, data_range=1)
    return structural_similarity(
        *(x, truth), channel_axis=-1, data_range=1, gaussian_weights=True, sigma=1.5, use_sample_covariance=False
    )


@pytest.mark.parametrize("protocol", metrics.PROTOCOLS)
@pytest.mark.parametrize("name", ["psnr", "ssim"])
@pytest.mark.parametrize("noise", [0.02, 0.2, 1.0])
def test_both_protocols_agree_with_scikit_image(name, protocol, noise):
    x, truth = pair(noise=noise)
    ours = getattr(metrics, name)(jnp.asarray(x), jnp.asarray(truth), protocol=protocol)
    assert float(ours) == pytest.approx(oracle(x, truth, name, protocol), abs=ATOL)


def test_the_paper_protocol_gives_the_published_golden_values():
    # Recorded by the calls of ddiff_sample.py (scikit-image) on two formulas at 256x256.
    c, i, j = np.meshgrid(np.arange(3), np.arange(256), np.arange(256), indexing="ij")
    truth = 0.9 * np.sin(0.05 * i + 0.11 * j + c) * np.cos(0.013 * i - 0.029 * j)
    x = truth.astype(np.float32) + 0.1 * np.sin(1.3 * i + 0.7 * j + c)
    x, truth = (jnp.asarray(v.transpose(1, 2, 0), jnp.float32) for v in (x, truth))
    assert float(metrics.psnr(x, truth, protocol="paper")) == pytest.approx(28.115738, abs=ATOL)
    assert float(metrics.ssim(x, truth, protocol="paper")) == pytest.approx(0.660734, abs=ATOL)


def test_equal_images_are_perfect():
    _, truth = pair()
    for protocol in metrics.PROTOCOLS:
        assert metrics.psnr(jnp.asarray(truth), jnp.asarray(truth), protocol=protocol) == np.inf
        assert metrics.ssim(jnp.asarray(truth), jnp.asarray(truth), protocol=protocol) == pytest.approx(1, abs=1e-6)


def test_what_cannot_be_compared_is_refused(unchecked):
    x, truth = map(jnp.asarray, pair(8))
    with pytest.raises(ValueError, match="needs images of at least 11 pixels a side; got 8x8"):
        metrics.ssim(x, truth, protocol="standard")
    with pytest.raises(ValueError, match="protocol must be one of paper, standard; got 'ours'"):
        metrics.psnr(x, truth, protocol="ours")  # pyright: ignore[reportArgumentType] - a wrong type on purpose
    with pytest.raises(ValueError, match="one shape"):
        metrics.psnr(x[:4], truth, protocol="paper")


def masked(side=32):
    mask = np.ones((side, side))
    mask[4:20, 4:20] = 0
    return operators.inpainting((side, side, 3), mask), mask


def test_the_misfit_is_that_of_the_problem():
    x, truth = pair()
    operator, mask = masked()
    y = (truth * mask[..., None] + 7.0 * (1 - mask[..., None])).astype(np.float32)  # rubbish in the hole
    got = metrics.measure(dd.Problem(operator, jnp.asarray(y[None]), 0.05), x[None])["misfit"]
    np.testing.assert_allclose(got, np.mean((x - truth)[mask > 0] ** 2), rtol=1e-5)
    everything = operators.gaussian_blur((32, 32, 3), size=1, std=1.0)  # changes nothing, and knows of no hole
    got = metrics.measure(
        dd.Problem(everything, jnp.asarray(y[None]), 0.05, observed=jnp.asarray(mask[..., None] > 0)), x[None]
    )["misfit"]
    np.testing.assert_allclose(got, np.mean((x - truth)[mask > 0] ** 2), rtol=1e-5)


def test_the_excess_of_the_truth_is_zero_on_average_for_real_and_complex_measurements():
    _, truth = pair(64)
    for operator in (masked(64)[0], operators.undersampled_fourier((64, 64, 3), jax.random.key(0), acceleration=2.0)):
        clean = operator.forward(jnp.asarray(truth))
        parts = 0.1 * np.random.default_rng(1).standard_normal((2, *clean.shape)).astype(np.float32)
        y = clean + (parts[0] + 1j * parts[1] if jnp.iscomplexobj(clean) else parts[0])
        excess = metrics.measure(dd.Problem(operator, jnp.asarray(y)[None], 0.1), truth[None])["misfit_excess"][0]
        # 64 * 64 * 3 / 4 or more independent squares of variance 2 sigma^4: five standard errors.
        assert abs(excess) < 5 * np.sqrt(2 / (64 * 64 * 3 / 4)) * 0.1**2


def test_a_batch_gives_what_its_images_give_alone_and_neighbours_do_not_matter():
    pairs = [pair(seed=i) for i in range(3)]
    x, truth = (np.stack(v) for v in zip(*pairs, strict=True))
    operator, _ = masked()
    y = np.stack([np.asarray(operator.forward(jnp.asarray(t))) for t in truth])
    together = metrics.measure(dd.Problem(operator, jnp.asarray(y), 0.05), x, truth)
    general = {name for name, metric in metrics.METRICS.items() if metric.general}
    assert set(together) == {name for name in general if not name.startswith("lpips")}
    for i, (x_i, truth_i) in enumerate(pairs):
        for name in ("psnr", "ssim"):
            for protocol in metrics.PROTOCOLS:
                alone = oracle(x_i, truth_i, name, protocol)
                assert together[f"{name}_{protocol}"][i] == pytest.approx(alone, abs=ATOL)
    x[1] = np.nan
    poisoned = metrics.measure(dd.Problem(operator, jnp.asarray(y), 0.05), x, truth)
    for name, values in poisoned.items():
        np.testing.assert_array_equal(values[[0, 2]], together[name][[0, 2]])
        assert np.isnan(values[1])


def test_without_truth_or_room_for_a_window_less_is_measured():
    x, truth = pair(8)
    operator = operators.gaussian_blur((8, 8, 3), size=3, std=1.0)
    y = np.asarray(operator.forward(jnp.asarray(truth)))
    assert set(metrics.measure(dd.Problem(operator, jnp.asarray(y[None]), 0.05), x[None])) == {
        "misfit",
        "misfit_excess",
    }
    small = metrics.measure(dd.Problem(operator, jnp.asarray(y[None]), 0.05), x[None], truth[None])
    assert "ssim_paper" in small
    assert "ssim_standard" not in small
    network = metrics.Perceptual({}, None)
    with pytest.raises(ValueError, match="backbones alex, vgg; got squeeze"):
        metrics.measure(dd.Problem(operator, jnp.asarray(y[None]), 0.05), x[None], lpips={"squeeze": network})


def test_what_an_operator_cannot_tell_apart_costs_no_decibel():
    x, truth = pair(8)
    same = np.stack([x, -x, x[::-1, ::-1], -x[::-1, ::-1]])
    operator = operators.phase_retrieval((8, 8, 3))
    y = np.broadcast_to(operator.forward(jnp.asarray(truth)), (4, 12, 12, 3))
    problem = dd.Problem(operator, jnp.asarray(y), 0.05)
    found = metrics.measure(problem, same, np.broadcast_to(truth, same.shape))
    np.testing.assert_allclose(found["psnr_resolved"], found["psnr_standard"][0], atol=ATOL)
    assert np.all(found["psnr_standard"][1:] < found["psnr_standard"][0] - 3)


def test_every_metric_says_what_it_is():
    assert metrics.METRICS["psnr_paper"].title == "PSNR (paper)"
    assert metrics.METRICS["misfit"].title == "misfit"
    assert metrics.METRICS["psnr_resolved"].say(20.126) == "PSNR up to sign and turn 20.13 dB"
    assert metrics.METRICS["ssim_paper"].say(0.5) == "SSIM 0.500"
    assert metrics.METRICS["misfit_excess"].span((-0.001, 0.002)) == "-0.00100 to +0.00200"
    assert len({metric.title for metric in metrics.METRICS.values()}) == len(metrics.METRICS)
