"""`--samples`: the files and numbers that several answers give, and what is refused."""

import json

import jax.numpy as jnp
import numpy as np
import pytest

from ddiff_jax.restoration import resolve, spread
from ddiff_jax.samples import coverage, expected_coverage

pytestmark = pytest.mark.once


def test_samples_are_written_summed_up_and_told(ddiff, quick_prior, tmp_path):
    words = ("--task", "random_inpainting", "--solver", "ddrm", "--steps", 3, "--no-cache")
    code, _, said = ddiff("restore", *words, "--samples", 4, "--keep-samples", "--output", tmp_path / "out")
    assert code == 0, said
    out = tmp_path / "out"
    document = json.loads((out / "metrics.json").read_text())
    (row,), (run,) = document["images"], document["runs"]
    x = np.load(out / "samples.npy")
    assert x.shape == (4, 64, 64, 3) and run["settings"]["samples"] == 4
    np.testing.assert_allclose(np.load(out / "mean.npy"), x.mean(axis=0), atol=1e-6)
    np.testing.assert_allclose(np.load(out / "std.npy"), x.std(axis=0, ddof=1), atol=1e-6)
    for name, share in (("q05", 0.05), ("q95", 0.95)):
        np.testing.assert_allclose(np.load(out / f"{name}.npy"), np.quantile(x, share, axis=0), atol=1e-5)
    assert (out / "restored.png").read_bytes() == (out / "mean.png").read_bytes()
    assert {"std", "samples", "sample", "q05_array"} <= row["files"].keys()
    np.testing.assert_allclose(row["psnr_mean"], row["psnr"], atol=1e-3)
    np.testing.assert_allclose(row["mean_std"], x.std(axis=0, ddof=1).mean(), rtol=1e-4)
    assert 0 < row["coverage"] < 1 and row["expected_coverage"] == pytest.approx(expected_coverage(4))
    assert run["aim"]["name"] == "posterior" and run["network_evaluations"] == 12
    assert row["notes"] == ["restored: the mean of 4 samples"]
    assert "aim     posterior: samples of the posterior" in said and "band holds" in said

    # What one run gives is the first sample, and the results of samples are not taken for it.
    code, _, said = ddiff("restore", *words, "--existing", "skip", "--output", out)
    assert code == 0 and "made with another" in said and "samples" in said
    code, _, _ = ddiff("restore", *words, "--save", "npy", "--output", tmp_path / "one")
    assert code == 0
    np.testing.assert_allclose(np.load(tmp_path / "one" / "restored.npy"), x[0], atol=1e-4)


def test_of_a_method_for_one_image_the_first_sample_is_restored(ddiff, quick_prior, tmp_path):
    words = ("--solver", "ddiff", "--steps", 2, "--no-cache", "--samples", 2, "--output", tmp_path)
    code, _, said = ddiff("restore", *words)
    assert code == 0, said
    assert (tmp_path / "restored.png").read_bytes() == (tmp_path / "sample.png").read_bytes()
    assert "no posterior uncertainty" in said


def test_a_classical_solver_reads_no_weights(ddiff, monkeypatch, tmp_path):
    from ddiff_jax.restoration import run

    monkeypatch.setattr(run, "load_prior", None)
    code, _, said = ddiff("restore", "--solver", "zero_filled", "--task", "gaussian_blur", "--output", tmp_path)
    assert code == 0, said
    (made,) = json.loads((tmp_path / "metrics.json").read_text())["runs"]
    assert made["network_evaluations"] == made["gigaflop_per_evaluation"] == 0
    assert made["aim"]["name"] == "estimate" and "prior   none" in said


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"samples": 4, "restarts": 2}, r"--samples 4 sums up .* --restarts 2 keeps one of them: give one"),
        ({"samples": 0}, "at least 1; got 0"),
        ({"keep_samples": True}, "give --samples a number above 1"),
        ({"samples": 2, "solver": "total_variation"}, "draws nothing"),
    ],
)
def test_what_means_nothing_is_refused(asked, message):
    with pytest.raises(ValueError, match=message):
        resolve(**asked)


def test_diverged_samples_are_counted_and_told():
    x = np.stack([np.zeros((4, 4, 1), np.float32), np.full((4, 4, 1), np.nan, np.float32)])
    flat = np.zeros((4, 4, 1), np.float32)
    several = spread.Spread("mean", x, np.array([True, False]), flat, flat, flat, flat)
    assert spread.notes(several) == ["restored: the mean of 2 samples, without 1 that diverged"]
    found = spread.metrics(several, np.asarray(jnp.zeros((4, 4, 1))))
    assert found["samples"] == 1 and found["coverage"] == coverage(flat, flat, flat) == 1
