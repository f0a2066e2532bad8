"""The command line: what it writes, what it says, and what it does with bad input."""

import dataclasses
import inspect
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import yaml
from PIL import Image
from weights import save_tiny_prior

import ddiff_jax as dd
from ddiff_jax import image_files, stencils
from ddiff_jax.cli import console, settings
from ddiff_jax.config import VALUES, presets, solver_parameters, task_preset
from ddiff_jax.files import file_hash
from ddiff_jax.operators import OPERATORS
from ddiff_jax.restoration import parameters, resolve, results
from ddiff_jax.restoration.batches import Score
from ddiff_jax.restoration.jobs import Job
from ddiff_jax.restoration.reading import Item
from ddiff_jax.restoration.spelling import GENERAL, spelled
from ddiff_jax.solvers import SOLVERS, Fixed

SAMPLE = Path(str(dd.__path__[0])) / "assets" / "sample.png"
QUICK = ("--steps", "3", "--batch-size", "2", "--no-cache")  # one batch size: the tests share compiled programs
PSNR = 0.05  # dB; two machines round differently, and every step goes on from the one before
HALF_LEVEL = 0.5 / 127.5 + 1e-6  # an 8-bit file rounds to the nearest grey level


def sample(**changes):
    """Open the sample photograph, turned so that several differ."""
    return Image.open(SAMPLE).rotate(changes.get("turn", 0))


@pytest.fixture
def photos(tmp_path):
    """Make a folder of three good photographs and one bad one."""
    folder = tmp_path / "photos"
    folder.mkdir()
    for i in range(3):
        sample(turn=90 * i).save(folder / f"photo{i}.png")
    (folder / "broken.png").write_text("no picture")
    return folder


def size(path):
    with Image.open(path) as picture:
        return picture.size


def save_mask(path, rows=slice(10, 40), shape=(64, 64)):
    mask = np.zeros(shape, np.uint8)
    mask[rows] = 255
    Image.fromarray(mask).save(path)


def metrics(folder):
    return json.loads((Path(folder) / "metrics.json").read_text())


def one_error(err):
    """Return the one line that an error is."""
    lines = err.splitlines()
    assert len(lines) == 1, err
    assert lines[0].startswith("ddiff: error: ")
    return lines[0]


# What it writes


def test_without_arguments_the_sample_is_restored(ddiff, optimised):
    code, out, err = ddiff("restore", "--no-cache")
    assert code == 0, err
    assert out == ""
    assert {p.name for p in Path("restored").iterdir()} == {
        *("measurement.png", "measurement.npy", "restored.png", "comparison.png", "metrics.json", "records")
    }
    assert size("restored/measurement.png") == (16, 16)
    assert size("restored/restored.png") == (64, 64)
    document = metrics("restored")
    (row,), (run,) = document["images"], document["runs"]
    assert run["settings"]["solver"] == {
        **{"name": "ddiff", "step_length": {"name": "to_the_noise"}, "t0": 1.0, "noise_schedule": "full"},
        **{"num_steps": 100, "dual": None, "directions": 1, "output": "state", "climb": 0, **WALK},
    }
    assert run["settings"]["values"] == "default"
    assert run["settings"]["sigma_y"] == 0.05
    assert run["network_evaluations"] == 100
    assert run["prior"]["num_parameters"] == 5_167_558
    assert all(len(digest) == 64 for digest in run["prior"]["files"].values())
    assert set(run["versions"]) == {"ddiff_jax", "jax", "jaxlib", "flax", "numpy", "python"}
    assert run["seconds"]["compile"] > 0
    # The files and the numbers say the same.
    restored, truth = image_files.read_picture(Path("restored/restored.png"))[0], image_files.read_picture(SAMPLE)[0]
    assert row["psnr"] == pytest.approx(10 * np.log10(4 / np.mean((restored - truth) ** 2)), abs=0.02)  # 8-bit file
    assert row["psnr"] == pytest.approx(21.80, abs=PSNR)  # what README says of the first command
    assert row["misfit_excess"] == pytest.approx(row["misfit"] - 0.05**2, abs=1e-9)  # of float32 numbers near 0.0025
    assert row["input_sha256"] == file_hash(SAMPLE)
    for text in (
        "5.17 million parameters",
        "100 network evaluations of 3.7",
        "preset faces64, default values",
        "compiled in",
        "PSNR",
        "results in restored/",
    ):
        assert text in err


def test_a_folder_with_a_bad_file(ddiff, quick_prior, photos):
    code, _, err = ddiff("restore", photos, "--output", "out", *QUICK)
    assert code == 1
    assert f"ddiff: error: {photos}/broken.png is not an image" in err
    assert f"failed 1: {photos}/broken.png" in err
    document = metrics("out")
    assert [row["name"] for row in document["images"]] == ["photo0", "photo1", "photo2"]
    assert list(document["runs"][0]["failed"]) == [f"{photos}/broken.png"]
    for i in range(3):
        for kind in ("measurement", "restored", "comparison"):
            assert Path(f"out/photo{i}_{kind}.png").exists()
    assert document["mean"]["psnr"] == pytest.approx(np.mean([row["psnr"] for row in document["images"]]))
    # Company, order and padding make no difference.
    assert ddiff("restore", photos / "photo2.png", "--output", "alone", *QUICK)[0] == 0
    assert Path("alone/photo2_restored.png").read_bytes() == Path("out/photo2_restored.png").read_bytes()
    assert Path("alone/photo2_measurement.png").read_bytes() == Path("out/photo2_measurement.png").read_bytes()


def test_globs_files_and_the_seed(ddiff, quick_prior, photos):
    assert ddiff("restore", "photos/photo[01].png", "photos/photo1.png", "--output", "out", *QUICK)[0] == 0
    assert [row["name"] for row in metrics("out")["images"]] == ["photo0", "photo1"]
    assert ddiff("restore", "photos/photo*.png", "--output", "other", "--seed", 1, *QUICK)[0] == 0
    assert Path("out/photo0_measurement.png").read_bytes() != Path("other/photo0_measurement.png").read_bytes()


def test_existing_results(ddiff, quick_prior, photos):
    photo = photos / "photo0.png"
    assert ddiff("restore", photo, "--output", "out", *QUICK)[0] == 0
    before = Path("out/photo0_restored.png").read_bytes()
    code, _, err = ddiff("restore", photo, photos / "photo1.png", "--output", "out", "--seed", 1, *QUICK)
    assert code == 0
    assert "skipped 1 of 2: out holds their results, made with another seed" in err
    assert Path("out/photo0_restored.png").read_bytes() == before
    document = metrics("out")
    assert [row["name"] for row in document["images"]] == ["photo0", "photo1"]
    assert [document["runs"][row["run"]]["settings"]["seed"] for row in document["images"]] == [0, 1]
    assert document["mean"] is None  # nothing is averaged over different settings

    code, _, err = ddiff("restore", photo, "--output", "out", "--existing", "error", *QUICK)
    assert code == 2
    assert "out/photo0_restored.png exists" in one_error(err)
    assert ddiff("restore", photo, "--output", "out", "--seed", 1, "--existing", "overwrite", *QUICK)[0] == 0
    assert Path("out/photo0_restored.png").read_bytes() != before
    document = metrics("out")
    assert [document["runs"][row["run"]]["settings"]["seed"] for row in document["images"]] == [1, 1]


def test_measured_pictures_and_arrays(ddiff, quick_prior, tmp_path):
    y = np.asarray(sample().resize((16, 16)))
    Image.fromarray(y).save("picture.png")
    np.save("array.npy", (y / 127.5 - 1).astype(np.float32))
    code, _, err = ddiff("restore", "picture.png", "array.npy", "--measured", "--output", "out", *QUICK)
    assert code == 0, err
    small = jax.jit(dd.operators.super_resolution((64, 64, 3), factor=4).forward)
    for row in metrics("out")["images"]:
        assert "psnr" not in row
        x = image_files.read_picture(Path(f"out/{row['name']}_restored.png"))[0]
        residual = np.asarray(small(x)) - (y / 127.5 - 1)
        assert row["misfit"] == pytest.approx(np.mean(residual**2), rel=0.2)  # files are clipped
        assert size(f"out/{row['name']}_restored.png") == (64, 64)
        assert not Path(f"out/{row['name']}_measurement.png").exists()


def test_what_was_measured_can_be_given_back(ddiff, quick_prior, photos):
    photo, task = photos / "photo0.png", ("--task", "random_inpainting")
    assert ddiff("restore", photo, *task, "--output", "out", *QUICK)[0] == 0
    mask, _ = stencils.read_mask(Path("out/photo0_mask.png"))
    assert mask.mean() == pytest.approx(0.3, abs=1e-3)  # a whole number of pixels
    measured = ("out/photo0_measurement.png", "--measured", "--mask", "out/photo0_mask.png")
    code, _, err = ddiff("restore", *measured, *task, "--output", "again", *QUICK)
    assert code == 0, err
    assert "30.0% of the pixels observed (white)" in err


@pytest.mark.once
@pytest.mark.parametrize(
    ("task", "sigma"),
    [("random_inpainting", 0.2), ("box_inpainting", 0.05), ("undersampled_fourier", 0.2), ("sparse_tomography", 0.05)],
)
def test_what_was_measured_restores_as_what_was_simulated(ddiff, quick_prior, task, sigma):
    arguments = ("--task", task, "--sigma", sigma, "--steps", 10, "--prior", "faces64", "--no-cache")
    assert ddiff("restore", SAMPLE, *arguments, "--output", "out")[0] == 0
    (row,) = metrics("out")["images"]
    written = Path("out", row["files"].get("measured_array", row["files"].get("measurement")))
    measured = written.rename(f"sample{written.suffix}")  # the stem decides the random numbers
    mask = ("--mask", Path("out", row["files"]["mask"])) if "mask" in row["files"] else ()
    if mask:
        y = np.load(measured)
        np.save(measured, np.where(stencils.read_mask(mask[1])[0][..., None] > 0, y, np.nan))
    code, _, err = ddiff("restore", measured, "--measured", *mask, *arguments, "--output", "again")
    assert code == 0, err
    (again,) = metrics("again")["images"]
    assert again["misfit"] == pytest.approx(row["misfit"], rel=0.02)  # a PNG rounds
    ours, back = (image_files.read_picture(Path(folder, "sample_restored.png"))[0] for folder in ("out", "again"))
    assert np.mean((back - ours) ** 2) < 1e-4  # 46 dB: next to errors of 30 dB that is 0.1 dB


def test_a_picture_that_cuts_its_noise_off_is_mentioned(ddiff, quick_prior, photos):
    photo, task = photos / "photo0.png", ("--task", "random_inpainting", "--sigma", 0.3)
    assert ddiff("restore", photo, *task, "--output", "out", *QUICK)[0] == 0
    text = "of what was observed is black or white: a picture cuts its noise off, an array (.npy) does not"
    for suffix in (".png", ".npy"):
        measured = (f"out/photo0_measurement{suffix}", "--measured", "--mask", "out/photo0_mask.png")
        code, _, err = ddiff("restore", *measured, *task, "--output", f"again{suffix}", *QUICK)
        assert code == 0, err
        assert (text in err) == (suffix == ".png")


def test_masks_of_a_folder(ddiff, quick_prior, photos):
    Path("masks").mkdir()
    save_mask("masks/photo0.png", slice(0, 20))
    save_mask("masks/photo1.png", slice(30, 60))
    arguments = ("--task", "box_inpainting", "--mask", "masks", "--output", "out")
    code, _, err = ddiff("restore", "photos/photo?.png", *arguments, *QUICK)
    assert code == 1
    assert "photo2.png: masks must hold one file named photo2.*; it holds 0" in err
    for i in range(2):
        np.testing.assert_array_equal(
            stencils.read_mask(Path(f"out/photo{i}_mask.png"))[0], stencils.read_mask(Path(f"masks/photo{i}.png"))[0]
        )


@pytest.mark.parametrize("kind", ["complex", "far outside [-1, 1]"])
def test_measurements_that_no_picture_can_hold_are_kept_as_arrays(ddiff, tmp_path, kind):
    y = jnp.full((4, 4, 3), 1j if kind == "complex" else 9.0)
    x = np.zeros((64, 64, 3), np.float32)
    job, told = Job(SAMPLE, "sample", "", tmp_path), resolve()
    operator = dd.operators.super_resolution((64, 64, 3), factor=4)
    item = Item(job, (64, 64, 3), jax.random.key(0), operator, y, 0.05, x, [], "")
    score = Score(np.abs(np.asarray(y)), {"psnr": 1.0, "ssim": 0.5, "misfit": 1.0})
    written = results.write(item, x, score, told)
    assert written["measured_array"] == (tmp_path / "measurement.npy", file_hash(Path("measurement.npy")))
    np.testing.assert_array_equal(np.load("measurement.npy"), y)
    assert ("measurement" in written) == (kind != "complex")
    assert size("restored.png") == (64, 64)


def test_kernel_from_a_picture(ddiff, quick_prior):
    kernel = np.zeros((5, 5), np.uint8)
    kernel[2, 2] = 77  # divided by its sum it changes nothing
    Image.fromarray(kernel).save("kernel.png")
    code, _, err = ddiff("restore", "--task", "gaussian_blur", "--kernel", "kernel.png", "--sigma", 0, *QUICK)
    assert code == 0, err
    measured, truth = image_files.read_picture(Path("restored/measurement.png"))[0], image_files.read_picture(SAMPLE)[0]
    np.testing.assert_allclose(measured, truth, atol=2 * HALF_LEVEL)


def test_the_noise_level_is_estimated_from_a_measurement(ddiff, quick_prior):
    truth, _ = image_files.read_picture(SAMPLE)
    blurred = jax.jit(dd.operators.gaussian_blur((64, 64, 3), size=31, std=1.5).forward)(truth)
    for name, sigma in {"quiet": 0.03, "loud": 0.2}.items():
        noise = np.random.default_rng(0).normal(0, sigma, truth.shape)
        np.save(f"{name}.npy", (np.asarray(blurred) + noise).astype(np.float32))
    arguments = ("quiet.npy", "loud.npy", "--measured", "--task", "gaussian_blur", "--sigma", "auto", *QUICK)
    code, _, err = ddiff("restore", *arguments)
    assert code == 0, err
    loud, quiet = metrics("restored")["images"]
    # 12000 coefficients, each of which overlaps its neighbours: a few percent; the photograph adds little.
    np.testing.assert_allclose([quiet["sigma_y"], loud["sigma_y"]], [0.03, 0.2], rtol=0.08)
    assert loud["notes"] == [f"noise level estimated as {loud['sigma_y']:.4f}"]
    np.testing.assert_allclose(loud["misfit_excess"], loud["misfit"] - loud["sigma_y"] ** 2, atol=1e-8)
    assert metrics("restored")["runs"][0]["settings"]["sigma_y"] == "auto"


def test_few_photons(ddiff, quick_prior):
    code, _, err = ddiff("restore", "--photons", 1, *QUICK, "--sigma", 0.05)
    assert code == 0, err
    y = np.asarray(Image.open("restored/measurement.png"))
    assert set(np.unique(y)) <= {0, 255}  # -1 is no photon, 1 is one, 3 is two: clipped in the picture
    settings_used = metrics("restored")["runs"][0]["settings"]
    assert settings_used["noise"] == {"name": "poisson", "photons": 1.0}
    np.testing.assert_allclose(settings_used["sigma_y"], np.sqrt(2))


def test_resize(ddiff, quick_prior):
    sample().resize((100, 80)).save("large.png")
    code, _, err = ddiff("restore", "large.png", "--resize", *QUICK)
    assert code == 0, err
    note = "100x80 pixels cut to a centred square and resized to 64x64 pixels"
    assert f"note: large.png: {note}" in err
    assert metrics("restored")["images"][0]["notes"] == [note]


@pytest.mark.parametrize("mode", ["L", "CMYK", "P", "1"])
def test_other_colours_are_converted_and_said(ddiff, quick_prior, mode):
    sample().convert(mode).save("photo.tif")
    code, _, err = ddiff("restore", "photo.tif", *QUICK)
    assert code == 0, err
    assert "note: photo.tif: " in err


def test_restarts_keep_the_run_of_least_misfit(ddiff, quick_prior):
    for restarts in (1, 3):
        flags = ("--task", "phase_retrieval", "--restarts", restarts, "--output", f"out{restarts}", *QUICK)
        assert ddiff("restore", *flags)[0] == 0
    (once,), (thrice,) = metrics("out1")["images"], metrics("out3")["images"]
    assert thrice["misfit"] <= once["misfit"] + 1e-6
    assert thrice["psnr_resolved"] >= thrice["psnr"] - 1e-3
    (run,) = metrics("out3")["runs"]
    assert run["network_evaluations"] == run["cost_per_image"]["network_evaluations"] == 9
    assert not any(name.startswith("oracle_gap") for name in (*once, *metrics("out1")))
    assert one_error(ddiff("restore", "--restarts", 0)[2]).endswith("--restarts must be at least 1; got 0")


def test_quiet_and_json(ddiff, quick_prior):
    code, out, err = ddiff("restore", "--quiet", "--json", *QUICK)
    assert (code, err) == (0, "")
    assert json.loads(out) == metrics("restored")


def test_a_diverged_image_is_reported_and_not_written(ddiff, quick_prior):
    code, _, err = ddiff("restore", "--gamma", 3e38, *QUICK)
    assert code == 1
    assert "sample.png: diverged to NaN or infinity" in err
    assert not Path("restored/restored.png").exists()
    assert metrics("restored")["images"] == []


def test_interruption_keeps_what_is_done(ddiff, quick_prior, photos, monkeypatch):
    def stop_in_second_batch(self, batch, *_, **__):
        if batch == 1:
            signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr(console.Bar, "update", stop_in_second_batch)
    code, _, err = ddiff("restore", "photos/photo?.png", "--output", "out", *QUICK)
    assert code == 130
    assert "interrupted; not restored: photos/photo2.png" in err
    assert [row["name"] for row in metrics("out")["images"]] == ["photo0", "photo1"]
    monkeypatch.undo()
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


def test_progress_in_plain_lines(ddiff, quick_prior, monkeypatch):
    monkeypatch.setattr(console, "PLAIN_SECONDS", 0.0)
    _, _, err = ddiff("restore", *QUICK)
    assert "step 3/3  images 0/1  misfit 0." in err


# What it is told

FIXED = {"name": "fixed", "gamma": 2.9, "before": 3.3, "after": 0.1, "t_gamma": 90.0, "normalise": True}
WALK = {"levels": None, "sigma_max": 5.0, "sigma_min": 0.05}
TO_THE_NOISE = {"name": "to_the_noise"}


def test_print_config_shows_the_preset_and_flags_replace_it(ddiff):
    flags = ("--gamma", 5, "--noise-schedule", "posterior", "--dual", "off", "--solver-output", "x", "--factor", 2)
    code, out, err = ddiff("restore", "--print-config", "--steps", 7, *flags)
    assert (code, err) == (0, "")
    values = yaml.safe_load(out)
    assert values["operator"] == {"name": "super_resolution", "factor": 2}
    assert values["solver"] == {
        **{"name": "ddiff", "step_length": FIXED | {"gamma": 5.0}, "t0": 1.0, "noise_schedule": "posterior"},
        **{"num_steps": 7, "dual": "off", "directions": 1, "output": "x", "climb": 0, **WALK},
    }
    assert not Path("restored").exists()


@pytest.mark.parametrize(
    ("flags", "wanted"),
    [
        ((), {"step_length": TO_THE_NOISE, "t0": 1, "noise_schedule": "full", "num_steps": 100}),
        (("--steps", "None"), {"step_length": TO_THE_NOISE, "num_steps": None}),
        (("--values", "published"), {"step_length": FIXED, "t0": 50, "noise_schedule": "posterior", "num_steps": None}),
        (("--values", "published", "--steps", "20"), {"step_length": FIXED, "t0": 50, "num_steps": 20}),
        (("--values", "published", "--after", "0.2"), {"step_length": FIXED | {"after": 0.2}, "t0": 50}),
        (("--values", "published", "--gamma", "None"), {"step_length": TO_THE_NOISE, "t0": 50, "num_steps": None}),
        (("--gamma", "2.9", "--no-normalise"), {"step_length": FIXED | {"normalise": False}, "num_steps": 100}),
        (("--solver", "ddiff_hqs", "--before", "2"), {"step_length": FIXED | {"gamma": 90, "before": 2, "after": 1}}),
    ],
)
def test_one_name_chooses_the_values_and_the_number_of_steps_changes_no_other(ddiff, flags, wanted):
    code, out, err = ddiff("restore", "--task", "gaussian_blur", "--print-config", *flags)
    assert (code, err) == (0, "")
    resolved = yaml.safe_load(out)
    assert resolved["values"] == ("published" if "published" in flags else "default")
    assert resolved["solver"] == {**resolved["solver"], **wanted}


def test_a_flag_of_none_replaces_the_number_of_a_preset(ddiff):
    flags = ("--solver", "daps", "--tau", "None")
    assert yaml.safe_load(ddiff("restore", "--print-config", *flags)[1])["solver"]["tau"] is None


def test_what_is_nowhere_published_is_said():
    note = "nothing is published for ddiff on colourisation; its default values are used"
    assert resolve(task="colourisation", values="published").notes == (note,)
    assert resolve(task="colourisation").notes == ()
    assert resolve(values="published").notes == ()


@pytest.mark.once
@pytest.mark.parametrize(
    ("dataset", "task"),
    [
        pytest.param(d, t, marks=[pytest.mark.slow] if d == "imagenet" else [])
        for d, tasks in presets().items()
        for t in tasks
    ],
)
def test_every_preset_becomes_flags(ddiff, dataset, task):
    preset = task_preset(dataset, task)
    # That every preset builds its solver is tested without the command line; two solvers of every task pass through it,
    # at other tasks others.
    first = list(presets()[dataset]).index(task)
    for choice in VALUES:
        said = [(solver, values) for solver, values in getattr(preset, choice).items() if values] or [("ddiff", {})]
        for i in range(min(2, len(said))):
            becomes_flags(ddiff, dataset, task, choice, *said[(2 * first + i) % len(said)])


def becomes_flags(ddiff, dataset, task, choice, solver, values):
    preset = task_preset(dataset, task)
    arguments = ["--preset", dataset, "--task", task, "--solver", solver, "--values", choice]
    for name, (_, default) in parameters.operator_parameters(preset.operator).items():
        if default is parameters.REQUIRED and name not in preset.arguments:
            arguments += [spelled(name), "folder"]  # weights that a preset cannot know
    code, out, err = ddiff("restore", "--print-config", *arguments)
    assert (code, err) == (0, "")
    resolved = yaml.safe_load(out)
    assert resolved["operator"].items() >= {"name": preset.operator, **preset.arguments}.items()
    assert resolved["sigma_y"] == preset.sigma_y
    found = {**resolved["solver"].get("step_length", {}), **resolved["solver"]}
    assert {k: found[k] for k in values} == values


def test_a_seed_or_a_file_may_be_given_where_an_operator_takes_both(ddiff):
    use = ("restore", "--preset", "ffhq", "--task", "nonlinear_blur", "--params", "weights", "--print-config")
    for given, want in {"3": 3, "code.npy": "code.npy"}.items():
        code, out, err = ddiff(*use, "--kernel-code", given)
        assert code == 0, err
        assert yaml.safe_load(out)["operator"]["kernel_code"] == want


@pytest.mark.parametrize("operator", OPERATORS)
def test_every_operator_argument_becomes_a_flag(operator):
    task = dataclasses.replace(task_preset("faces64", "super_resolution"), operator=operator, arguments={})
    flags = settings.operator_flags(task)
    assert flags.keys() >= parameters.operator_parameters(operator).keys()


@pytest.mark.parametrize("solver", SOLVERS)
def test_every_solver_field_becomes_a_flag(solver):
    flags = settings._solver_flags(solver, {}, GENERAL)
    fields = set(inspect.signature(SOLVERS[solver]).parameters)
    parts = set(inspect.signature(Fixed).parameters) if "step_length" in fields else set()
    assert flags.keys() == solver_parameters(SOLVERS[solver]).keys() == fields - {"step_length"} | parts
    assert all(flag.help for flag in flags.values())


def test_help_names_examples_and_flags(ddiff):
    code, out, _ = ddiff("restore", "--task", "random_inpainting", "--help")
    assert code == 0
    for text in ("ddiff restore photos/", "--fraction", "--mask", "--gamma", "--dual", "--steps"):
        assert text in out
    code, out, _ = ddiff("--help")
    assert code == 0
    assert "ddiff convert" in out


def test_info(ddiff):
    code, out, _ = ddiff("info", "--json")
    assert code == 0
    facts = json.loads(out)
    assert "faces64" in facts["priors"]
    assert facts["versions"]["ddiff_jax"] == dd.__version__
    assert facts["presets"] == {k: list(v) for k, v in presets().items()}
    code, out, _ = ddiff("info")
    assert code == 0
    assert "solvers\n  ddiff" in out
    assert "(--values published)" in out


def test_as_a_module():
    command = [sys.executable, "-m", "ddiff_jax", "--version"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=Path(dd.__path__[0]).parent)
    assert done.stdout == f"ddiff_jax {dd.__version__}\n"


# Bad input: one line, exit code 2, nothing lost


@pytest.fixture
def bad_files(tmp_path):
    sample().save(tmp_path / "good.png")
    whole = (tmp_path / "good.png").read_bytes()
    (tmp_path / "truncated.png").write_bytes(whole[:2000])
    (tmp_path / "text.png").write_text("no picture")
    sample().resize((80, 60)).save(tmp_path / "large.png")
    sample().save(tmp_path / "good.webp", lossless=True)
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").touch()
    y = np.zeros((16, 16, 3), np.float32)
    np.save(tmp_path / "zero.npy", y)
    y[0, 0, 0] = np.nan
    np.save(tmp_path / "nan.npy", y)
    save_mask(tmp_path / "mask.png")
    save_mask(tmp_path / "narrow.png", shape=(64, 32))
    save_mask(tmp_path / "black.png", slice(0, 0))
    save_mask(tmp_path / "white.png", slice(0, 64))
    Image.fromarray(np.full((4, 4), 9, np.uint8)).save(tmp_path / "even.png")


INPAINT = ("good.png", "--task", "random_inpainting")
BAD = {
    "not an image": (("text.png",), "text.png is not an image"),
    "truncated": (("truncated.png",), "truncated.png is truncated or damaged"),
    "missing": (("missing.png",), "missing.png cannot be read: No such file"),
    "all bad": (("empty",), "folder empty holds no image"),
    "no match": (("*.jpg",), "no file matches '*.jpg'"),
    "wrong size": (
        ("large.png", "--fit", "refuse"),
        "large.png is 80x60 pixels, the prior is for 64x64 pixels; add --resize",
    ),
    "colliding": (("good.png", "good.webp"), "would both become good_restored.png"),
    "own output": (("good.png", "--output", "."), "good.png lies in the output folder itself"),
    "unwritable": (("good.png", "--output", "file/out"), "cannot write to file/out"),
    "task": (("--task", "super_resolutoin"), "did you mean 'super_resolution'?"),
    "solver": (("--solver", "dddif"), "did you mean 'ddiff'?"),
    "flag": (("--gama", "3"), "unknown flag --gama; did you mean '--gamma'?"),
    "flag of another task": (("--fraction", "0.5"), "--fraction; it belongs to --task random_inpainting"),
    "preset": (("--preset", "ffqh"), "did you mean 'ffhq'?"),
    "prior": (("--prior", "faces46"), "did you mean 'faces64'?"),
    "label": (("--label", "3"), "this prior has no classes"),
    "choice": (("--dtype", "float64"), "'float32', 'bfloat16'"),
    "number": (("--gamma", "much"), "Error parsing --gamma"),
    "range": (("--gamma", "-1"), "gamma must be positive"),
    "values": (("--values", "publised"), "unknown values 'publised'; did you mean 'published'?"),
    "factor without gamma": (("--before", "2"), "before would play no part; give gamma a number as well"),
    "dual without gamma": (("--dual", "accumulating"), 'no dual variable to keep (dual="accumulating")'),
    "untuned": (("--task", "colourisation", "--solver", "dps"), "no default for zeta; give --zeta"),
    "sigma": (("--sigma", "-0.1"), "at least 0; got -0.1"),
    "sigma auto": (("--sigma", "auto"), "estimates the noise of a measurement: give --measured"),
    "sigma auto of no picture": (
        ("zero.npy", "--measured", "--task", "phase_retrieval", "--sigma", "auto"),
        "--sigma auto needs a measurement that is a picture",
    ),
    "sigma and photons": (("--sigma", "0.1", "--photons", "9"), "--sigma for Gaussian noise or --photons for Poisson"),
    "photons": (("--photons", "-3"), "photons, the expected count at white, must be positive"),
    "factor": (("--factor", "5"), "factor 5 does not divide the image size 64x64"),
    "box": (("--task", "box_inpainting", "--size", "90"), "a box of side 90 with a margin of 4 pixels does not fit"),
    "steps": (("--steps", "2000"), "between 1 and 1000"),
    "batch": (("--batch-size", "0"), "--batch-size must be at least 1"),
    "measured nothing": (("--measured",), "no INPUT is given"),
    "measured NaN": (("nan.npy", "--measured"), "NaN or infinity in 1 of 768 entries"),
    "measured size": (("good.png", "--measured", "--fit", "refuse"), "makes measurements of float32[16, 16, 3]"),
    "measured without mask": ((*INPAINT, "--measured"), "what random_inpainting drew at random; give --mask"),
    "mask shape": (
        (*INPAINT, "--mask", "narrow.png", "--fit", "refuse"),
        "narrow.png: the mask must have the height and width",
    ),
    "mask black": ((*INPAINT, "--mask", "black.png"), "black.png: the mask hides every pixel"),
    "mask white": ((*INPAINT, "--mask", "white.png"), "white.png: the mask hides no pixel"),
    "mask grey": ((*INPAINT, "--mask", "good.png"), "good.png is in colour"),
    "mask missing": ((*INPAINT, "--mask", "missing.png"), "missing.png cannot be read"),
    "kernel": (("--task", "gaussian_blur", "--kernel", "even.png"), "even.png: a blur kernel must be"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input(ddiff, quick_prior, bad_files, tmp_path, unchecked, case):
    arguments, message = BAD[case]
    before = {p: p.read_bytes() for p in tmp_path.iterdir() if p.is_file()}
    code, out, err = ddiff("restore", *arguments)
    assert (code, out) == (2, "")
    assert message in one_error(err)
    assert {p: p.read_bytes() for p in before} == before
    assert not list(tmp_path.glob("**/*restored.png"))


@pytest.fixture
def converted(ddiff, golden):
    """Convert a small network for 16x16 images with the command line."""
    code, out, err = ddiff(
        "convert", golden("unet_ffhq_like.pt"), "--output", "prior", "--no-probe", "--verify", "--json"
    )
    assert code == 0, err
    assert "prior/ holds adm_unet, 16x16x3" in err
    assert err.endswith(", verified\n")
    assert json.loads(out) == json.loads(Path("prior/card.json").read_text()) | {"files": {}}
    sample().resize((16, 16)).save("small.png")
    return Path("prior")


def test_checkpoints_that_cannot_be_used(ddiff, converted, golden):
    use = ("restore", "small.png", "--prior", "prior", "--factor", 2)
    code, _, err = ddiff(*use, "--steps", 1, "--output", "first")
    assert code == 0 and "the faces64 preset is used though the prior is 16x16" in err
    use = (*use, "--preset", "faces64")

    card = (converted / "card.json").read_text()
    (converted / "card.json").write_text(card.replace('"model_channels": 32', '"model_channels": 64'))
    code, _, err = ddiff(*use)
    assert code == 2
    assert "prior cannot be loaded as the network on its card" in one_error(err)
    (converted / "card.json").write_text(card)

    weights = max(converted.glob("weights/**/*"), key=lambda path: path.stat().st_size if path.is_file() else 0)
    whole = weights.read_bytes()
    weights.write_bytes(whole[: len(whole) // 2])
    code, _, err = ddiff(*use)
    assert code == 2
    assert f"{weights} is damaged" in one_error(err)
    weights.unlink()
    code, _, err = ddiff(*use)
    assert code == 2
    assert f"{weights} is missing" in one_error(err)

    code, _, err = ddiff("restore", "--prior", golden("unet_ffhq_like.pt"))
    assert code == 2
    assert "run: ddiff convert" in one_error(err)
    code, _, err = ddiff("convert", golden("unet_ffhq_like.pt"), "--output", "prior")
    assert code == 2
    assert "prior exists already" in one_error(err)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("restor",), "unknown command 'restor'; did you mean 'restore'?"),
        (("info", "--jsn"), "did you mean '--json'?"),
        (("convert",), "--output"),
        (("convert", SAMPLE, "--output", "prior"), "sample.png cannot be read as weights"),
    ],
)
def test_bad_commands(ddiff, arguments, message):
    code, _, err = ddiff(*arguments)
    assert code == 2
    assert message in one_error(err)


def test_a_damaged_metrics_json_is_not_overwritten(ddiff, quick_prior):
    Path("restored").mkdir()
    Path("restored/metrics.json").write_text("{")
    code, _, err = ddiff("restore", *QUICK)
    assert code == 2
    assert "metrics.json is damaged" in one_error(err)
    assert Path("restored/metrics.json").read_text() == "{"


def test_debug_shows_where_an_error_comes_from(ddiff):
    with pytest.raises(ValueError, match="unknown task"):
        ddiff("restore", "--task", "nothing", "--debug")


def test_the_compilation_cache_is_kept_in_the_users_folder(tmp_path):
    environment = {**os.environ, "XDG_CACHE_HOME": str(tmp_path)}
    code = "import jax; from ddiff_jax.cli.environment import *; use_compilation_cache(); jax.jit(lambda x: x + 1)(1.0)"
    root = Path(dd.__path__[0]).parent
    subprocess.run([sys.executable, "-c", code], check=True, env=environment, cwd=root)
    assert list((tmp_path / "ddiff_jax" / "compiled").iterdir())


@pytest.mark.once
def test_warmup_leaves_restore_nothing_to_compile(ddiff, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    environment = {**os.environ, "XDG_CACHE_HOME": str(tmp_path / "cache")}
    save_tiny_prior(tmp_path / "prior")
    sample().resize((16, 16)).save("small.png")
    flags = ["--steps", "2", "--task", "random_inpainting", "--prior", "prior", "--preset", "faces64"]

    def call(*arguments):
        command = [sys.executable, "-m", "ddiff_jax", *arguments, *flags]
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return {p.name for p in (tmp_path / "cache" / "ddiff_jax" / "compiled").glob("*-cache")}

    warm = call("warmup")
    assert not (tmp_path / "restored").exists()
    assert warm == call("restore", "small.png")
    code, _, err = ddiff("warmup", "--no-cache")
    assert code == 2
    assert "leave --no-cache out" in err
