"""The judgement of a network in training: what it finds for priors that are known, compiled once."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import gaussian_prior
from PIL import Image

import ddiff_jax as dd
from ddiff_jax.drawing import picture, tile
from ddiff_jax.files import Unusable
from ddiff_jax.sampling import draw
from ddiff_jax.solvers.sampling import Sampler
from ddiff_jax.training.judgement import Judge, Judgement
from ddiff_jax.training.trials import make_trials

pytestmark = pytest.mark.once

SHAPE, VAR = (8, 8, 1), 0.1
COUNTS = {"num_levels": 4, "num_samples": 3, "sample_steps": 4, "num_restored": 2, "restore_steps": 5}


def white(count, seed=0, shape=SHAPE):
    return np.random.default_rng(seed).normal(0, np.sqrt(VAR), (count, *shape)).astype(np.float32)


@pytest.fixture(scope="module")
def judge():
    return Judge(white(40), white(400, 1), seed=3, **COUNTS)


def scaled(weight, x, t):
    return weight * x


def network(weight, function=scaled):
    """Make a prior that takes the noisy image times its one weight for the clean one."""
    return dd.from_denoiser(function, kind="x0", image_shape=SHAPE, params=jnp.float32(weight), clip=False)


def assert_same(one, other):
    for name, values in vars(one.errors).items():
        np.testing.assert_array_equal(getattr(other.errors, name), values)
    assert one.psnr.keys() == other.psnr.keys()
    for task, values in one.psnr.items():
        np.testing.assert_array_equal(other.psnr[task], values)
    np.testing.assert_array_equal(one.samples, other.samples)
    np.testing.assert_array_equal(one.restorations, other.restorations)


def test_the_exact_prior_never_loses_and_its_samples_are_those_of_the_command(judge):
    prior = gaussian_prior(SHAPE, var=VAR, clip=False)
    found = judge(prior, step=7, images_seen=70)
    want = np.sqrt(VAR * found.errors.ratio**2 / (VAR + found.errors.ratio**2))
    np.testing.assert_allclose(found.errors.network, want, rtol=0.05)
    assert not len(found.lost) and found.warning() is None
    assert list(found.psnr) == ["super_resolution", "box_inpainting"]
    for values in found.psnr.values():
        assert values.shape == (2,) and np.all(values > 10 * np.log10(4 / (2 * VAR)))  # nearer than another image is
    x = draw(Sampler(eta=0.0, num_steps=4), prior, 3, [0, 1, 2]).x
    np.testing.assert_array_equal(found.samples, picture(tile(list(x))))
    assert (found.num_samples, found.num_diverged, found.step, found.images_seen) == (3, 0, 7, 70)


def test_a_network_that_loses_is_warned_about(judge):
    found = judge(network(1.0))  # denoises nothing
    assert found.lost.tolist() == found.errors.ratio[found.errors.network > 1.02 * found.errors.linear].tolist()
    assert found.errors.ratio[0] in found.lost and found.errors.ratio[-1] not in found.lost
    sentence = found.warning()
    assert sentence is not None
    low, high = f"{found.lost.min():.3g}", f"{found.lost.max():.3g}"
    assert f"at {len(found.lost)} of 4 noise levels (sigma/signal {low} to {high})" in sentence


def test_a_network_that_is_not_finite_is_reported_saved_and_loaded(judge, tmp_path):
    found = judge(network(np.nan))
    assert np.isnan(found.errors.network).all() and len(found.lost) == 4
    assert found.num_diverged == 3 and all(np.isnan(values).all() for values in found.psnr.values())
    assert "NaN or infinity at 4 of 4 noise levels" in (found.warning() or "")
    found.save(tmp_path)
    assert json.loads((tmp_path / "judgement.json").read_text())["denoising"]["network"] == [None] * 4
    assert_same(found, Judgement.load(tmp_path))


def test_programs_are_compiled_once_and_the_same_weights_are_judged_the_same(judge, caplog):
    def compiled():
        messages = [r.getMessage() for r in caplog.records if "Finished XLA compilation" in r.getMessage()]
        caplog.clear()
        return messages

    prior = network(0.5, lambda weight, x, t: weight * x)  # nobody else's
    with jax.log_compiles():
        first = judge(prior)
        assert any("_run_chunk" in message for message in compiled())
        other = judge(dataclasses.replace(prior, params=jnp.float32(0.4)))
        again = judge(dataclasses.replace(prior, params=jnp.float32(0.5)))
        assert not compiled()
    assert_same(first, again)
    assert not np.array_equal(other.errors.network, first.errors.network)
    assert not np.array_equal(other.samples, first.samples)


def test_saved_equals_loaded(judge, tmp_path):
    found = judge(network(0.3), images_seen=960)
    folder = tmp_path / "judgements" / "00000120"
    for _ in range(2):  # a run that was taken up judges the same step again
        found.save(folder)
    assert sorted(path.name for path in folder.iterdir()) == ["judgement.json", "restorations.png", "samples.png"]
    loaded = Judgement.load(folder)
    assert_same(found, loaded)
    assert loaded.as_dict() == {**found.as_dict(), "step": 120}  # by the folder's name
    assert Judgement.load(folder, pictures=False).samples is None
    (folder / "samples.png").write_bytes(b"no picture")
    with pytest.raises(Unusable, match=r"samples\.png is no picture"):
        Judgement.load(folder)
    (folder / "judgement.json").write_text('{"denoising": 3}')
    with pytest.raises(Unusable, match="is no judgement of a training"):
        Judgement.load(folder)


@pytest.mark.parametrize(
    ("shape", "first", "measured"),
    [
        ((8, 12, 3), "super_resolution", (2, 3, 3)),
        ((6, 10, 1), "super_resolution", (3, 5, 1)),
        ((7, 6, 2), "random_inpainting", (7, 6, 2)),
    ],
)
def test_tasks_fit_every_shape_and_number_of_channels(shape, first, measured):
    truth = white(2, 0, shape)
    trials = {trial.task: trial for trial in make_trials(truth, 0)}
    assert list(trials) == [first, "box_inpainting"]
    assert trials[first].problem.y.shape == (2, *measured)
    hidden = np.asarray(trials["box_inpainting"].problem.y) == 0
    side = min(shape[:2]) // 2
    assert hidden.sum(axis=(1, 2, 3)).tolist() == [side * side * shape[2]] * 2
    assert picture(truth[0]).shape == (*shape[:2], 3)


def test_pictures_show_truth_measurement_and_restoration_of_every_task(judge, tmp_path):
    judge(gaussian_prior(SHAPE, var=VAR, clip=False)).save(tmp_path)
    with Image.open(tmp_path / "restorations.png") as sheet:
        levels = np.asarray(sheet.convert("RGB"))
    truth = np.repeat(np.repeat(picture(white(40)[1]), 16, 0), 16, 1)  # the second of the images held out
    rows, columns = (np.flatnonzero((levels != 255).any(axis=(1 - axis, 2))) for axis in (0, 1))
    right = columns.max() + 1
    places = [top for top in rows.tolist() if np.array_equal(levels[top : top + 128, right - 128 : right], truth)]
    assert len(places) == 2  # one for each task


def test_what_cannot_be_judged_is_refused(judge, unchecked):
    with pytest.raises(ValueError, match="must be of one shape"):
        Judge(white(2), white(8, 1, (4, 4, 1)))
    with pytest.raises(ValueError, match="for reference hold NaN"):
        Judge(white(2), white(8) * np.float32(np.nan))
    with pytest.raises(ValueError, match="num_samples must be at least 1; got 0"):
        Judge(white(2), white(8), num_samples=0)
    with pytest.raises(ValueError, match=r"held out are \(8, 8, 1\), the prior is for \(4, 4, 1\)"):
        judge(gaussian_prior((4, 4, 1)))
