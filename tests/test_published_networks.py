"""What shapes cannot tell: published networks are recognised, buffers are read, and what is assumed is said."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from weights import openai_shapes, synthetic, write_state_dict

import convert_weights
import ddiff_jax as dd
from convert_weights import adm_unet, consistency, published, schedules
from ddiff_jax import cli
from ddiff_jax.card import build_schedule

PARITY = 1e-4  # absolute, on predicted noise of order 1 to 4: the bar for float32

DEEP, WIDE = (1, 1, 2, 2, 4, 4), (1, 2, 3, 4)
# File: arguments of its network, then schedule, T, rescaled, order, heads or width, side. From the READMEs.
FILES = {
    "64x64_diffusion.pt": ((192, WIDE, 3, (1, 2, 3), 1000), {}, "cosine", 1000, False, "new", None, 64),
    "128x128_diffusion.pt": ((256, (1, 1, 2, 3, 4), 2, (2, 3, 4), 1000), {}, "linear", 1000, False, "legacy", 4, 128),
    "256x256_diffusion.pt": ((256, DEEP, 2, (3, 4, 5), 1000), {}, "linear", 1000, False, "legacy", None, 256),
    "256x256_diffusion_uncond.pt": ((256, DEEP, 2, (3, 4, 5), None), {}, "linear", 1000, False, "legacy", None, 256),
    "512x512_diffusion.pt": ((256, (0.5, *DEEP), 2, (4, 5, 6), 1000), {}, "linear", 1000, False, "legacy", None, 512),
    "ffhq_10m.pt": ((128, DEEP, 1, (4,), None), {}, "linear", 1000, False, "legacy", None, 256),
    "imagenet64_uncond": ((128, WIDE, 3, (2, 3), None), {"updown": False}, "cosine", 4000, True, "legacy", 4, 64),
    "cifar10_uncond": ((128, (1, 2, 2, 2), 3, (1, 2), None), {"updown": False}, "cosine", 4000, True, "legacy", 4, 32),
    "imagenet64_cond": ((192, WIDE, 3, (2, 3), 1000), {"updown": False}, "cosine", 4000, False, "legacy", 4, 64),
    "lsun_uncond": (
        (128, DEEP, 2, (4,), None),
        {"updown": False, "scale_shift": False},
        *("linear", 1000, False, "legacy", 1, 256),
    ),
}
SIX = {  # the upsamplers
    "64_256": ((192, DEEP, 2, (3, 4, 5), 1000), {}),
    "128_512": ((192, DEEP, 2, (4, 5), 1000), {}),
    "upsample_cond": ((192, DEEP, 2, (4, 5), 1000), {"updown": False}),
}
SIGNATURES = (
    "b879ba9ed4fe94bb d91b9be2449a697e 408c4d65687d2b6d b9c90be1570d1541 f95458c996170da9 47cc71b580397ca5 "
    "5a42ef114f79713a 001b621871f3fa9d 59179ffdc09597c8 0313288a27e5d1d5"
).split()


def shapes_of(arguments, more):
    *rest, classes = arguments
    return openai_shapes(*rest, classes=classes, **more)


@pytest.mark.parametrize(("file", "signature"), list(zip(FILES, SIGNATURES, strict=True)))
def test_every_published_network_brings_its_settings(file, signature):
    arguments, more, schedule, count, rescaled, order, heads, side = FILES[file]
    shapes = shapes_of(arguments, more)
    assert published.signature(shapes) == signature
    fields = adm_unet.infer(shapes)
    assert (fields["attention_order"], fields["num_heads"]) == (order, heads)
    assert heads or fields["head_width"] == 64
    card = adm_unet.card_fields(fields, shapes)
    assert card["schedule"]["name"] == schedule
    assert build_schedule(card["schedule"]).num_levels == count
    assert card["schedule"].get("time_scale", 1) == (1000 / count if rescaled else 1)
    assert card["image_shape"] == (side, side, 3)
    (note,) = card["notes"]
    assert file in note
    for flag in ("--noise-schedule", "--num-heads", "--attention-order", "--image-size"):
        assert flag in note


def test_flags_overrule_what_was_published():
    arguments, more, *_ = FILES["64x64_diffusion.pt"]
    shapes = shapes_of(arguments, more)
    fields = adm_unet.infer(shapes, attention_order="legacy", num_heads=6)
    assert (fields["attention_order"], fields["num_heads"]) == ("legacy", 6)
    card = adm_unet.card_fields(fields, shapes, noise_schedule="linear", image_size=32, attention_order="legacy")
    assert (card["schedule"]["name"], card["image_shape"]) == ("linear", (32, 32, 3))
    part = adm_unet.card_fields(fields, shapes, num_timesteps=100)
    assert part["schedule"] == {"name": "cosine", "num_timesteps": 100}


@pytest.mark.parametrize("file", SIX)
def test_six_input_channels_are_refused_at_once(file):
    arguments, more = SIX[file]
    with pytest.raises(ValueError, match=r"takes six channels: an upsampler.* no prior"):
        adm_unet.infer(shapes_of(arguments, {**more, "inputs": 6}))


def test_networks_that_are_no_priors_are_refused():
    shapes = openai_shapes(32, (1, 1), 1, (1,), outputs=4)
    with pytest.raises(ValueError, match="takes 3 channels and gives 4"):
        adm_unet.infer(shapes)
    flat = openai_shapes(32, (1,), 1, ())
    shapes = {k: (*s, 1) if len(s) == 3 else s for k, s in flat.items()}
    assert convert_weights.plan(shapes, num_heads=1).family is consistency
    for file in ("cd_imagenet64_l2.pt", "ct_cat256.pt"):
        with pytest.raises(ValueError, match=f"{file} is named like a consistency model"):
            convert_weights.plan(shapes, {"file": file}, num_heads=1)


def predicted(folder, recorded):
    prior = dd.load_prior(folder)
    x, t = jnp.asarray(recorded["x_t"].transpose(0, 2, 3, 1)), jnp.asarray(recorded["t"].astype(np.int32))
    labels = jnp.asarray(recorded["labels"].astype(np.int32)) if "labels" in recorded else None

    def eps(x, level, label):
        return dataclasses.replace(prior, label=label).predict(x, level)[1]

    levels = jax.tree.map(jnp.float32, schedule_of(prior).at_time(np.asarray(t)))
    return prior, jax.jit(jax.vmap(eps))(x, levels, labels)


def schedule_of(prior):
    assert isinstance(prior.schedule, dd.VPSchedule)
    return prior.schedule


def tables_agree(schedule, recorded):
    count = schedule.num_levels
    ours = np.asarray(schedule.alpha_bar)[[0, 1, count // 2, count - 2, count - 1]]
    np.testing.assert_allclose(ours, recorded["alphas_cumprod"], rtol=1e-6)


def test_a_recognised_network_predicts_what_the_original_does(golden, tmp_path, monkeypatch):
    settings = published.Settings("small.pt", 16, noise_schedule="cosine", attention_order="new", head_width=16)
    monkeypatch.setitem(published.PUBLISHED, "17d199996674e1ca", settings)
    card = convert_weights.convert(golden("openai_gd64_like.pt"), tmp_path / "prior", probe=False, verify=True)
    assert any("small.pt" in note for note in card.notes)
    with np.load(golden("openai_gd64_like.npz")) as recorded:
        prior, eps = predicted(tmp_path / "prior", recorded)
        want = recorded["eps"].transpose(0, 2, 3, 1)
        np.testing.assert_allclose(eps, want, atol=PARITY, rtol=0)
        tables_agree(prior.schedule, recorded)


def test_many_rescaled_timesteps_and_four_heads(golden, tmp_path):
    options = {"noise_schedule": "cosine", "num_timesteps": 4000, "image_size": 16}
    card = convert_weights.convert(golden("openai_idd_cifar_like.pt"), tmp_path / "prior", probe=False, **options)
    assert any("4 heads assumed" in note and "--num-heads" in note for note in card.notes)
    assert any("assumed to be rescaled" in note and "--rescale-timesteps" in note for note in card.notes)
    with np.load(golden("openai_idd_cifar_like.npz")) as recorded:
        prior, eps = predicted(tmp_path / "prior", recorded)
        want = recorded["eps"].transpose(0, 2, 3, 1)
        np.testing.assert_allclose(eps, want, atol=PARITY, rtol=0)
        tables_agree(prior.schedule, recorded)


def tiny():
    return synthetic(openai_shapes(32, (1,), 1, ()))


def converted(tmp_path, tensors, **options):
    write_state_dict(tmp_path / "w.pt", tensors)
    folder = tmp_path / f"prior{len(list(tmp_path.iterdir()))}"
    return convert_weights.convert(tmp_path / "w.pt", folder, num_heads=1, probe=False, **options), folder


def test_the_command_line_has_a_flag_for_every_assumption(tmp_path, capsys):
    write_state_dict(tmp_path / "w.pt", tiny())
    call = ["convert", str(tmp_path / "w.pt"), "--no-probe", "--output"]
    assert cli.main([*call, str(tmp_path / "assumed")]) == 0
    said = capsys.readouterr().err
    flags = {
        "--noise-schedule": "cosine",
        "--num-timesteps": "50",
        "--rescale-timesteps": "True",
        "--attention-order": "new",
        "--num-heads": "2",
        "--image-size": "8",
        "--prediction": "v",
    }
    assumed = json.loads((tmp_path / "assumed" / "card.json").read_text())
    assert assumed["notes"]
    assert all(f"note: {note}" in said for note in assumed["notes"])
    for flag in flags.keys() - {"--rescale-timesteps"}:  # which says nothing of a thousand timesteps
        assert any(flag in note for note in assumed["notes"]), flag
    words = [word for pair in flags.items() for word in pair]
    assert cli.main([*call, str(tmp_path / "given"), *words]) == 0
    given = json.loads((tmp_path / "given" / "card.json").read_text())
    assert given["notes"] == []
    assert given["prediction"] == "v" and assumed["prediction"] == "eps"
    assert given["schedule"] == {"name": "cosine", "num_timesteps": 50, "time_scale": 20}
    fields = given["architecture"]
    assert (fields["attention_order"], fields["num_heads"]) == ("new", 2)
    assert given["image_shape"] == [8, 8, 3]
    assert cli.main([*call, str(tmp_path / "both"), "--num-heads", "2", "--head-width", "16"]) == 2
    assert "not both" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("linear", {"num_timesteps": 1000, "beta_start": 1e-4, "beta_end": 0.02}),
        ("linear", {"num_timesteps": 4000, "beta_start": 0.1 / 4000, "beta_end": 20 / 4000}),
        ("linear", {"num_timesteps": 500, "beta_start": 3e-4, "beta_end": 0.015}),
        ("cosine", {"num_timesteps": 1000}),
        ("scaled_linear", {"num_timesteps": 1000, "beta_start": 0.00085, "beta_end": 0.012}),
    ],
)
@pytest.mark.parametrize("buffer", ["betas", "alphas_cumprod"])
def test_buffers_name_the_schedule(name, values, buffer):
    table = build_schedule({"name": name, **values}).levels(None).signal[-2::-1] ** 2
    betas = np.diff(np.append(0, 1 - table)) / np.append(1, table[:-1])
    stored = (betas if buffer == "betas" else table).astype(np.float32)
    found = schedules.read_table({f"state.{buffer}": stored}, "state.net.")
    assert found is not None
    made = schedules.recognise(found[1])
    assert made == {"name": name, **{key: pytest.approx(value, rel=1e-3) for key, value in values.items()}}


def test_any_table_is_kept_and_read_again(tmp_path):
    table = np.exp(-(np.linspace(0.001, 3, 40) ** 1.5))
    card, folder = converted(tmp_path, {**tiny(), "alphas_cumprod": table.astype(np.float32)})
    assert card.schedule["name"] == "table"
    assert any("read from alphas_cumprod" in note for note in card.notes)
    np.testing.assert_allclose(schedule_of(dd.load_prior(folder)).alpha_bar, table, rtol=1e-6)
    np.save(tmp_path / "table.npy", table)
    np.save(tmp_path / "betas.npy", 1 - table / np.append(1, table[:-1]))
    for name in ("table", "betas"):
        card, folder = converted(tmp_path, tiny(), noise_schedule=str(tmp_path / f"{name}.npy"))
        np.testing.assert_allclose(schedule_of(dd.load_prior(folder)).alpha_bar, table, rtol=1e-6)


def test_buffers_are_checked_used_and_skipped_by_name(tmp_path):
    cosine = np.asarray(dd.cosine_schedule(200).alpha_bar, np.float32)
    buffers = {"alphas_cumprod": cosine, "posterior_variance": cosine, "step": np.float32(7)}
    card, folder = converted(tmp_path, {**tiny(), **buffers})
    assert card.schedule == {"name": "cosine", "num_timesteps": 200, "time_scale": 5.0}
    assert dd.load_prior(folder).schedule.num_levels == 200
    assert any("posterior_variance, step" in note for note in card.notes)
    card, _ = converted(tmp_path, {**tiny(), **buffers}, noise_schedule="cosine")  # says the same
    assert card.schedule["num_timesteps"] == 200
    for options in ({"noise_schedule": "linear"}, {"num_timesteps": 100}, {"beta_range": (1e-4, 0.02)}):
        with pytest.raises(ValueError, match=r"alphas_cumprod in the file is cosine in 200 timesteps|no --beta-range"):
            converted(tmp_path, {**tiny(), **buffers}, **options)
    with pytest.raises(ValueError, match="betas state different noise schedules"):
        converted(tmp_path, {**tiny(), **buffers, "betas": np.full(200, 0.01, np.float32)})
    with pytest.raises(ValueError, match="alphas_cumprod in the file is no noise schedule"):
        converted(tmp_path, {**tiny(), "alphas_cumprod": cosine[::-1].copy()})


def test_the_buffers_nearest_to_the_network_count():
    near, far = np.full(9, 0.1, np.float32), np.full(9, 0.3, np.float32)
    found = schedules.read_table({"betas": far, "ema.betas": near, "other.net.betas": far}, "ema.net.")
    assert found is not None
    assert found[0] == "ema.betas"
    np.testing.assert_allclose(found[1], np.cumprod(1 - near.astype(np.float64)))


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16])
def test_buffers_in_half_precision_name_a_schedule_or_are_refused(dtype):
    assert schedules.recognise(np.asarray(dd.cosine_schedule().alpha_bar).astype(dtype))["name"] == "cosine"
    assert schedules.recognise(np.asarray(dd.linear_schedule().alpha_bar).astype(dtype))["name"] == "linear"
    with pytest.raises(ValueError, match="too coarse"):
        schedules.recognise(np.linspace(0.9, 0.3, 50).astype(dtype))


def test_impossible_schedules_are_refused(tmp_path):
    np.save(tmp_path / "square.npy", np.ones((2, 2)))
    np.save(tmp_path / "table.npy", np.linspace(0.9, 0.1, 10))
    cases = [
        ({"noise_schedule": "cosin"}, "did you mean 'cosine'"),
        ({"noise_schedule": "linear", "beta_range": (0.02, 1e-4)}, "0 < beta_start <= beta_end < 1"),
        ({"noise_schedule": "cosine", "beta_range": (1e-4, 0.02)}, "no --beta-range"),
        ({"noise_schedule": "cosine", "num_timesteps": 0}, "num_timesteps >= 1"),
        ({"noise_schedule": str(tmp_path / "square.npy")}, "one row of real numbers"),
        ({"noise_schedule": str(tmp_path / "table.npy"), "num_timesteps": 20}, "10 levels already"),
    ]
    for options, message in cases:
        with pytest.raises(ValueError, match=message):
            schedules.choose(None, None, **options)


@pytest.mark.parametrize("which", range(3))
def test_the_edm_networks_of_openai(golden, tmp_path, which):
    folder = tmp_path / "prior"
    convert_weights.convert(golden("openai_consistency.pt"), folder, head_width=16, image_size=16, probe=False)
    prior = dd.load_prior(folder)
    with np.load(golden("openai_consistency.npz")) as recorded:
        x, x_0, eps = (recorded[name][which].transpose(1, 2, 0) for name in ("x", "x0_edm", "eps_edm"))
        level = jax.tree.map(jnp.float32, prior.schedule.at(np.float64(recorded["sigma"][which])))
        np.testing.assert_allclose(level.time, recorded["network_t"][which], rtol=1e-6)
        got = prior.with_label(int(recorded["labels"][which])).predict(jnp.asarray(x), level)
    for ours, theirs, bar in zip(got, (x_0, eps), (2e-5, 5e-5), strict=True):
        assert np.linalg.norm(ours - theirs) < bar * np.linalg.norm(theirs)


@pytest.mark.parametrize("file", ["wrap_model_ema_namespace.pt", "wrap_lightning_buffers.ckpt"])
def test_networks_in_the_wrappers_of_training_codes(golden, tmp_path, file):
    convert_weights.convert(golden(file), tmp_path / "prior", num_heads=2, image_size=16, probe=False)
    with np.load(golden("wrap.npz")) as recorded:
        _, eps = predicted(tmp_path / "prior", recorded)
        np.testing.assert_allclose(eps, recorded["eps"].transpose(0, 2, 3, 1), atol=PARITY, rtol=0)
