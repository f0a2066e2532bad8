"""Images from the prior alone: the sampler against a float64 loop and the prior's own moments; the command."""

import itertools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import gaussian_prior
from oracles import ALPHA_BAR, timesteps
from PIL import Image as Pillow

import ddiff_jax as dd
from ddiff_jax.cli import main
from ddiff_jax.drawing import tile
from ddiff_jax.restoration.machine import out_of_memory
from ddiff_jax.solvers.sampling import Sampler, without_data

SHAPE = (4, 4, 2)
MEAN, VAR = 0.1, 0.2
ORACLE = 1e-5  # relative; float32 against float64


def draw(sampler, keys, clip=False, **arguments):
    prior = gaussian_prior(SHAPE, MEAN, VAR, clip=clip)
    return dd.solve(sampler, prior, without_data(prior, keys), keys, num_chunks=1, **arguments)


@pytest.mark.parametrize("eta", [0.0, 0.6, 1.0])
def test_sampler_equals_a_float64_loop(eta):
    steps = 25
    keys = dd.image_keys(jax.random.key(0), jnp.arange(1))
    x_init = jax.random.normal(jax.random.key(1), (1, *SHAPE))
    tape = jax.random.normal(jax.random.key(2), (1, steps, 1, *SHAPE))
    solution = draw(Sampler(eta=eta, num_steps=steps), keys, clip=True, x_init=x_init, noise=tape)
    x, n = np.asarray(x_init[0], np.float64), np.asarray(tape[0, :, 0], np.float64)
    for k, (t, s) in enumerate(itertools.pairwise(timesteps(steps))):
        ab, ab_s = ALPHA_BAR[t], ALPHA_BAR[s] if s >= 0 else 1.0
        z = np.clip(MEAN + np.sqrt(ab) * VAR / (ab * VAR + 1 - ab) * (x - np.sqrt(ab) * MEAN), -1, 1)
        eps = (x - np.sqrt(ab) * z) / np.sqrt(1 - ab)
        std = eta * np.sqrt((1 - ab_s) / (1 - ab) * (1 - ab / ab_s))
        x = np.sqrt(ab_s) * z + np.sqrt(1 - ab_s - std**2) * eps + std * n[k]
    assert np.linalg.norm(solution.x[0] - x) / np.linalg.norm(x) < ORACLE
    assert solution.cost == dd.solvers.Cost(network_evaluations=steps, normal_draws=steps)


@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_samples_have_the_moments_of_the_prior(eta):
    """5 standard errors, and 1% for the size of the steps."""
    count = 1000
    x = draw(Sampler(eta=eta, num_steps=500), dd.image_keys(jax.random.key(0), jnp.arange(count))).x
    numbers = np.asarray(x, np.float64).ravel()
    assert abs(numbers.mean() - MEAN) < (5 / np.sqrt(numbers.size) + 0.01) * np.sqrt(VAR)
    assert abs(numbers.var() / VAR - 1) < 5 * np.sqrt(2 / numbers.size) + 0.02


def test_tiles_keep_every_pixel():
    images = [np.full((3, 5, 1), value, np.float32) for value in (-1.0, -0.5, 0.0, 0.25, 0.5)]
    canvas = tile(images)
    assert canvas.shape == (2 * 5 + 2, 3 * 7 + 2, 1)
    np.testing.assert_array_equal(canvas[2:5, 2:7], images[0])
    np.testing.assert_array_equal(canvas[7:10, 9:14], images[4])
    assert canvas[7:10, 16:].min() == 1


def test_command_draws_samples_that_do_not_depend_on_their_company(tmp_path, capsys):
    few = ["sample", "--steps", "2", "--batch-size", "2", "--no-cache", "--quiet"]
    assert main([*few, "--count", "3", "--json", "--output", str(tmp_path / "three")]) == 0
    document = json.loads(capsys.readouterr().out)
    assert json.loads((tmp_path / "three" / "samples.json").read_text()) == document
    assert [row["name"] for row in document["samples"]] == ["sample_0000", "sample_0001", "sample_0002"]
    assert document["settings"]["steps"] == document["cost_per_image"]["network_evaluations"] == 2
    pictures = [np.asarray(Pillow.open(tmp_path / "three" / f"sample_{i:04d}.png")) for i in range(3)]
    assert pictures[0].shape == (64, 64, 3)
    assert np.any(pictures[0] != pictures[1])
    board = np.asarray(Pillow.open(tmp_path / "three" / "grid.png"))
    np.testing.assert_array_equal(board[2:66, 68:132], pictures[1])
    assert not (tmp_path / "three" / "sample_0003.png").exists()

    assert main([*few, "--count", "3", "--output", str(tmp_path / "three")]) == 2
    assert "--existing overwrite" in capsys.readouterr().err
    assert main([*few, "--count", "1", "--existing", "overwrite", "--output", str(tmp_path / "three")]) == 0
    np.testing.assert_array_equal(np.asarray(Pillow.open(tmp_path / "three" / "sample_0000.png")), pictures[0])
    assert len(json.loads((tmp_path / "three" / "samples.json").read_text())["samples"]) == 1


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--count", "0"], "--count must be from 1 to"),
        (["--count", "99999999999"], "--count must be from 1 to"),
        (["--seed", "-1"], "--seed must be from 0 to 4294967295; got -1"),
        (["--seed", "4294967296"], "--seed must be from 0 to"),
        (["--steps", "0"], "number of steps"),
        (["--batch-size", "0"], "--batch-size must be at least 1"),
        (["--steps", "1001"], "number of steps"),
        (["--eta", "2"], "eta must be fraction"),
        (["--label", "3"], "no classes"),
        (["--stesp", "3"], "did you mean '--steps'"),
    ],
)
def test_bad_arguments_are_refused_and_nothing_is_written(flags, message, tmp_path, capsys):
    assert main(["sample", *flags, "--quiet", "--no-cache", "--output", str(tmp_path)]) == 2
    assert message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_want_of_memory_becomes_advice():
    with pytest.raises(ValueError, match="out of memory with 7 images at once; lower --batch-size"), out_of_memory(7):
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: no room")
    with pytest.raises(jax.errors.JaxRuntimeError, match="else"), out_of_memory(7):
        raise jax.errors.JaxRuntimeError("INTERNAL: something else")
