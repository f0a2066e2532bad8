"""EDM's networks: they compute what the originals do, and what their files do not tell is recognised, asked or said."""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from edm_oracle import edm_shapes, run, tensors_of
from weights import write_state_dict

import convert_weights
import ddiff_jax as dd
from convert_weights import edm, edm_dhariwal, edm_song, published
from ddiff_jax import cli
from ddiff_jax.architecture import abstract_params, build_module
from ddiff_jax.card import build_schedule
from ddiff_jax.priors import network

pytestmark = pytest.mark.once

RAW, X_0, EPS = 1e-5, 2e-5, 5e-5  # relative to the norm, in float32


convert = functools.partial(convert_weights.convert, probe=False)  # no network here is trained


def channels_last(array):
    return np.asarray(array, np.float32).transpose(0, 2, 3, 1)


def close(got, want, tolerance):
    wanted = np.asarray(want, np.float64)
    assert np.linalg.norm(np.asarray(got, np.float64) - wanted) <= tolerance * np.linalg.norm(wanted)


GOLDEN = {
    "deepinv_ddpmpp.pt": {},
    "deepinv_ncsnpp.pt": {},
    "deepinv_adm.pt": {},
    "ib_song_vp.pt": {"key": "ema", "precond": "vp"},
    "ib_dhariwal_edm.pt": {"key": "ema"},
    "nvidia_ncsnpp.pkl": {},
}


@pytest.mark.parametrize("file", GOLDEN)
def test_a_network_computes_what_the_original_does(golden, tmp_path, file):
    card = convert(golden(file), tmp_path / "prior", **GOLDEN[file])
    assert (card.clip, card.image_shape[0]) == (card.image_shape[2] != 2, 16)
    prior = dd.load_prior(tmp_path / "prior")
    with np.load(golden(file).with_suffix(".npz")) as recorded:
        want = {k: channels_last(a) if a.ndim == 4 else a for k, a in recorded.items()}
    for i, sigma in enumerate(want["sigma"]):
        label = int(want["class_labels"][i]) if "class_labels" in want else None
        one = prior.with_label(label)
        labels = {} if one.label is None else {"y": one.label[None]}
        told = (want["raw_input"][i : i + 1], jnp.asarray(want["raw_cond"][i : i + 1]))
        close(network._apply(one.module, one.params, *told, **labels)[0], want["raw_output"][i], RAW)
        level = dd.Level(jnp.float32(1), jnp.float32(sigma), jnp.float32(0))
        x_0, eps = one.predict(jnp.asarray(want["x"][i]), level)
        close(x_0, want["x0"][i], X_0)
        close(eps, want["eps"][i], EPS)


OWN = {
    "song, skips at both ends": (
        (8, 16, (1, 2), 1, (4,)),
        {"labels": 3, "encoder": "skip", "decoder": "skip", "taps": 4, "noise": 2},
    ),
    "song, residual and plain": ((8, 16, (1, 2), 1, (8, 4)), {"encoder": "residual", "fourier": True}),
    "dhariwal": ((4, 128, (1,), 1, (4,)), {"song": False, "labels": 4, "outputs": 6}),
}


def own(name):
    arguments, more = OWN[name]
    shapes = edm_shapes(*arguments, **more)
    family = edm_song if more.get("song", True) else edm_dhariwal
    tensors, about = tensors_of(shapes), {"prefix": "model."}
    made = convert_weights.plan(shapes, about)
    assert made.family is family
    return tensors, made, convert_weights.mapping.convert(tensors, made.targets)


@pytest.mark.parametrize("name", OWN)
def test_networks_of_other_shapes_compute_what_their_tensors_say(name):
    tensors, made, params = own(name)
    module = made.module.clone(remat=False)
    side, labels = OWN[name][0][0], OWN[name][1].get("labels")
    x = np.random.default_rng(1).standard_normal((2, 3, side, side)).astype(np.float32)
    t, y = jnp.asarray([0.3, -1.7]), jnp.asarray([2, 0]) if labels else None
    got = jax.jit(module.apply)({"params": params}, channels_last(x), t, *([y] if labels else []))
    want = jax.jit(lambda x, t, y: run(tensors, x, t, y))(x, t, y)
    close(got, channels_last(want), RAW)


def test_bfloat16_is_close_and_recomputing_changes_no_gradient():
    shapes = edm_shapes(4, 16, (1,), 1, ())
    made = convert_weights.plan(shapes, {"prefix": "model."})
    params = convert_weights.mapping.convert(tensors_of(shapes), made.targets)
    x, t = jnp.asarray(np.random.default_rng(2).standard_normal((1, 4, 4, 3)), jnp.float32), jnp.asarray([0.5])

    @functools.partial(jax.jit, static_argnums=0)
    def both(module, x):
        out, back = jax.vjp(lambda x: module.apply({"params": params}, x, t), x)
        return out, back(jnp.ones_like(out))[0]

    (want, first), (_, second) = (both(made.module.clone(remat=remat), x) for remat in (True, False))
    close(first, second, 1e-6)
    small = made.module.clone(dtype="bfloat16", remat=False)
    stored = small.cast(params)
    kinds = {leaf.dtype for leaf in jax.tree.leaves(stored["down_0_0"]["conv_1"])}
    assert kinds == {jnp.dtype(jnp.bfloat16)} and stored["time_1"]["kernel"].dtype == jnp.float32
    got = jax.jit(small.apply)({"params": stored}, x, t)
    assert got.dtype == jnp.float32
    close(got, want, 0.03)


def cifar(kind, **more):
    ncsn = {"fourier": True, "noise": 2, "encoder": "residual", "taps": 4} if kind == "ve" else {}
    return edm_shapes(32, 128, (2, 2, 2), 4, (16,), **ncsn, **more)


def faces(kind):
    ncsn = {"fourier": True, "noise": 2, "encoder": "residual", "taps": 4} if kind == "ve" else {}
    return edm_shapes(64, 128, (1, 2, 2, 2), 4, (16,), augment=9, **ncsn)


def imagenet(**more):
    return edm_shapes(64, 192, (1, 2, 3, 4), 3, (32, 16, 8), song=False, labels=1000, **more)


def science(side, channels):
    return edm_shapes(side, 128, (1, 1, 1, 2, 2), 1, (16,), song=False, channels=channels)


# Shapes, count of numbers in all tensors (u has 1001), preconditioning.
PUBLISHED = {
    "edm-cifar10-32x32-uncond-vp": (cifar("vp", augment=9), 55_733_923, "edm"),
    "edm-cifar10-32x32-cond-vp": (cifar("vp", augment=9, labels=10), 55_735_331, "edm"),
    "edm-cifar10-32x32-uncond-ve": (cifar("ve", augment=9), 56_398_115, "edm"),
    "edm-cifar10-32x32-cond-ve": (cifar("ve", augment=9, labels=10), 56_400_931, "edm"),
    "edm-ffhq-64x64-uncond-vp": (faces("vp"), 61_805_619, "edm"),
    "edm-afhqv2-64x64-uncond-ve": (faces("ve"), 62_761_459, "edm"),
    "edm-imagenet-64x64-cond-adm": (imagenet(), 295_899_315, "edm"),
    "baseline-cifar10-32x32-uncond-vp": (cifar("vp"), 55_732_771, "vp"),
    "baseline-cifar10-32x32-uncond-ve": (cifar("ve"), 56_395_811, "ve"),
    "baseline-imagenet-64x64-cond-adm": (imagenet(outputs=6), 295_905_503, "iddpm"),
    "blackhole": (edm_shapes(64, 128, (1, 2, 2), 1, (16,), channels=1), 20_041_249, "vp"),
    "fwi": (science(128, 1), 26_790_849, "edm"),
    "mri-knee": (science(320, 2), 26_002_114, "edm"),
}


@pytest.mark.parametrize("file", PUBLISHED)
def test_published_networks_are_recognised(file):
    shapes, count, precond = PUBLISHED[file]
    known = edm.find(shapes)
    assert known is not None and file in known.files
    about = {"prefix": "ema.model."}
    family = edm_song if edm_song.recognises(shapes) else edm_dhariwal
    fields = family.infer(shapes, about=about)
    assert family.targets(fields, shapes).keys() == {key for key in shapes if not family.skips(key)}
    assert sum(int(np.prod(shape)) for shape in shapes.values()) + 1001 * (precond == "iddpm") == count
    card = edm.card_fields(fields, shapes, about=about)
    assert (card["prediction"], known.precond) == ("edm" if precond == "edm" else "eps", precond)
    names = {"edm": "edm", "vp": "vp_sde", "ve": "edm", "iddpm": "cosine"}
    assert card["schedule"]["name"] == names[precond]
    assert card["clip"] == (file not in ("fwi", "mri-knee"))
    said = " ".join(card["notes"])
    assert file in said and "assumed" not in said
    assert ("no pictures" in said or "MRI" in said) == (not card["clip"])


def test_the_preconditionings_tell_the_network_what_they_should():
    sigma = np.asarray([0.05, 1.0, 50.0])
    shapes = edm_shapes(8, 32, (1,), 1, ())

    def told(shapes=shapes, **options):
        fields = edm_song.infer(shapes, about={"prefix": "model."})
        card = edm.card_fields(fields, shapes, about={"prefix": "model."}, **options)
        return card, build_schedule(card["schedule"]).at(sigma)

    card, level = told()
    np.testing.assert_allclose(level.time, np.log(sigma) / 4)
    assert (card["sigma_data"], card["image_range"]) == (0.5, (-1.0, 1.0))
    card, level = told(sigma_data=0.75, image_range=(0.0, 1.0))
    np.testing.assert_allclose(level.time, np.log(sigma / 2) / 4)
    assert (card["sigma_data"], card["schedule"]["sigma_max"], card["schedule"]["sigma_min"]) == (1.5, 160, 0.004)
    card, level = told(precond="vp")
    np.testing.assert_allclose(level.ratio, sigma)
    np.testing.assert_allclose(level.signal**2 + level.sigma**2, 1)
    t = level.time / 999
    np.testing.assert_allclose(np.sqrt(np.exp(19.9 * t**2 / 2 + 0.1 * t) - 1), sigma)
    card, level = told(precond="ve")
    np.testing.assert_allclose(level.time, np.log(sigma / 2))
    np.testing.assert_allclose(level.signal, 1)
    assert any("negated" in note for note in card["notes"])
    card, level = told(edm_shapes(8, 32, (1,), 1, (), outputs=6))
    assert card["schedule"] == {"name": "cosine", "num_timesteps": 1000}
    assert any("no noise levels (u)" in note for note in card["notes"])


def test_networks_that_explode_the_variance_predict_the_negative_noise(tmp_path):
    tensors = tensors_of(edm_shapes(8, 16, (1,), 1, ()))
    write_state_dict(tmp_path / "w.pt", {f"model.{name}": tensor for name, tensor in tensors.items()})
    layers = []
    for precond in ("edm", "ve"):
        convert(tmp_path / "w.pt", tmp_path / precond, precond=precond)
        layers.append(dd.load_prior(tmp_path / precond).params["out_0"])
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a, -b), *layers)


def noise_levels():
    """List u of iDDPMPrecond: ratios of the cosine schedule from the noisiest to 0, in float32."""
    table, u = np.asarray(dd.cosine_schedule().alpha_bar, np.float64), np.zeros(1001, np.float32)
    u[-2::-1] = np.sqrt((1 - table) / table)
    return u


def test_the_levels_of_an_iddpm_network_are_read_from_its_file(tmp_path):
    tensors = {f"model.{k}": v for k, v in tensors_of(edm_shapes(8, 32, (1,), 1, (), song=False, outputs=6)).items()}
    write_state_dict(tmp_path / "w.pt", {"u": noise_levels(), **tensors})
    card = convert(tmp_path / "w.pt", tmp_path / "named")
    assert card.schedule == {"name": "cosine", "num_timesteps": 1000}
    assert any("read from u in the file" in note for note in card.notes)
    told = build_schedule(card.schedule).at(noise_levels()[[64, 504, 989]].astype(np.float64))
    np.testing.assert_allclose(told.time, 999 - np.asarray([64, 504, 989]), atol=0.01)
    write_state_dict(tmp_path / "other.pt", {"u": noise_levels()[::2], **tensors})
    card = convert(tmp_path / "other.pt", tmp_path / "listed")
    assert card.schedule["name"] == "table"
    np.testing.assert_allclose(card.schedule["alpha_bar"][0], 1 / (1 + noise_levels()[-3] ** 2), rtol=1e-6)
    with pytest.raises(ValueError, match=r"u in the file is cosine.*leave them out"):
        convert(tmp_path / "w.pt", tmp_path / "no", noise_schedule="linear")


TWICE, ONCE = {"outputs": 6}, {}
REFUSED = [
    (ONCE, {"precond": "iddpm"}, "iddpm gives twice the channels that it takes, .*give another of edm, vp, ve"),
    (TWICE, {"precond": "edm"}, "edm gives as many channels as it takes.*leave --precond out"),
    (ONCE, {"precond": "edn"}, "unknown preconditioning 'edn'"),
    (ONCE, {"precond": "vp", "sigma_data": 0.5}, "preconditioning vp has no --sigma-data"),
    (ONCE, {"precond": "ve", "image_range": (0.0, 1.0)}, r"images in \[-1, 1\] alone; leave --image-range out"),
    (ONCE, {"image_range": (1.0, 0.0)}, "must rise, black first"),
    (ONCE, {"sigma_data": -1.0}, "sigma_data must be above 0"),
    (ONCE, {"image_size": 16}, "images are 8x8; leave --image-size 16 out"),
    (ONCE, {"noise_schedule": "linear", "num_timesteps": 9}, "edm has no --noise-schedule, --num-timesteps"),
    (ONCE, {"num_heads": 2}, "has no num_heads; leave it out"),
    (ONCE, {"prediction": "eps"}, "has no prediction; leave it out"),
    ({"outputs": 4}, {}, "takes 3 channels and gives 4"),
    ({"taps": 6}, {}, r"filters of length \[6\]"),
]


@pytest.mark.parametrize(("network", "options", "message"), REFUSED)
def test_settings_that_contradict_the_file_are_refused(network, options, message, tmp_path):
    shapes = edm_shapes(8, 16, (1, 1), 1, (), **network)
    tensors = tensors_of({k: v for k, v in shapes.items() if "resample" not in k or network.get("taps") is None})
    if "taps" in network:
        tensors |= {k: np.ones(v, np.float32) for k, v in shapes.items() if "resample" in k}
    write_state_dict(tmp_path / "w.pt", {f"model.{name}": tensor for name, tensor in tensors.items()})
    with pytest.raises(ValueError, match=message) as error:
        convert(tmp_path / "w.pt", tmp_path / "prior", **options)
    assert len(str(error.value).splitlines()) == 1


def test_damaged_names_and_filters_are_refused(tmp_path):
    shapes = edm_shapes(8, 16, (1, 1), 1, ())
    tensors = tensors_of(shapes)
    filters = {k: v + 0.01 for k, v in tensors.items() if k.endswith("resample_filter")}
    uneven = {k.replace("4x4", "3x3"): v for k, v in tensors.items()}
    wide = {k.replace("4x4", "4x2"): v for k, v in tensors.items()}
    deep = {**tensors, **{f"enc.8x8_block{i}.norm0.weight": np.ones(1, np.float32) for i in range(70)}}
    half = {k: v for k, v in tensors.items() if not k.startswith("enc.8x8_conv")}
    flat = {**tensors, "enc.8x8_conv.weight": np.ones((16, 3), np.float32)}
    cases = [
        ({**tensors, **filters}, r"neither \[1, 1\] nor \[1, 3, 3, 1\]"),
        (uneven, "sides that halve"),
        (wide, "sides that halve"),
        (deep, r"70 blocks in each of 2 levels"),
        (half, r"half of the network is missing, or damaged: it has no enc.8x8_conv.weight"),
        (flat, r"enc.8x8_conv.weight with four axes"),
        ({k: v for k, v in tensors.items() if "in1" not in k}, "10 missing, 0 unexpected"),
    ]
    for i, (made, message) in enumerate(cases):
        write_state_dict(tmp_path / f"{i}.pt", made)
        with pytest.raises(ValueError, match=message):
            convert(tmp_path / f"{i}.pt", tmp_path / "prior")


def test_how_norms_are_grouped_follows_from_the_names(tmp_path):
    tensors = tensors_of(edm_shapes(8, 32, (1,), 1, ()))
    write_state_dict(tmp_path / "without.pt", tensors)
    write_state_dict(tmp_path / "with.pt", {f"model.{k}": v for k, v in tensors.items()})
    for name, width in (("without", 1), ("with", 4)):
        card = convert(tmp_path / f"{name}.pt", tmp_path / name)
        assert card.architecture["group_width"] == width
        assert any(f"begin {name} model." in note for note in card.notes)
    without = json.loads((tmp_path / "without" / "card.json").read_text())["notes"]
    assert any("--image-range 0 1" in note for note in without)


def test_the_command_line_takes_the_settings(tmp_path, capsys):
    write_state_dict(tmp_path / "w.pt", tensors_of(edm_shapes(8, 32, (1,), 1, ())))
    flags = ["--precond", "edm", "--sigma-data", "0.75", "--image-range", "0", "1"]
    assert cli.main(["convert", str(tmp_path / "w.pt"), "--output", str(tmp_path / "prior"), "--no-probe", *flags]) == 0
    card = json.loads((tmp_path / "prior" / "card.json").read_text())
    assert (card["sigma_data"], card["image_range"], card["schedule"]["sigma_max"]) == (1.5, [0.0, 1.0], 160.0)
    assert not any("assumed" in note for note in card["notes"])
    assert "note: norms taken" in capsys.readouterr().err


def test_inputs_that_the_network_does_not_take_are_refused(unchecked):
    module = build_module("song_unet", {"model_channels": 16, "channel_mult": (1, 1), "num_classes": 2})
    with pytest.raises(ValueError, match="multiples of 2"):
        module.check((1, 7, 8, 3), True)
    with pytest.raises(ValueError, match="labels y"):
        module.check((1, 8, 8, 3), False)
    assert abstract_params(module)["conv_in"]["kernel"].shape == (3, 3, 3, 16)
    with pytest.raises(ValueError, match="encoder"):
        build_module("song_unet", {"encoder": "plain"})


def test_signatures_are_those_of_the_files():
    shapes, *_ = PUBLISHED["fwi"]
    assert published.signature({f"model.{name}": shape for name, shape in shapes.items()}) == "62fca52a7b2a911e"
    assert edm.PUBLISHED.keys() >= {edm._signature(shapes) for shapes, *_ in PUBLISHED.values()}
    assert len({edm._signature(shapes) for shapes, *_ in PUBLISHED.values()}) == len(edm.PUBLISHED)
