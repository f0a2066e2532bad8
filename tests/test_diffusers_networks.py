"""Networks of diffusers compute what they did there; what folders say is read, and what they lack is asked for."""

import dataclasses
import functools
import json
import os
import shutil
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
from diffusers_folders import (
    PIPELINE,
    SCHEDULER,
    SETTINGS,
    WEIGHTS,
    shapes_of,
    write_json,
    write_parts,
    write_pipeline,
    write_weights,
)
from hostile import refused
from safetensors.numpy import load_file, save_file
from weights import normal_like, synthetic, write_state_dict

import convert_weights
import ddiff_jax as dd
from convert_weights import diffusers_folder, diffusers_unet, mapping
from ddiff_jax import checkpoint
from ddiff_jax.models.layers import Style

pytestmark = pytest.mark.once


convert = functools.partial(convert_weights.convert, probe=False)  # since random weights denoise nothing


def distance(got, want):
    got, want = (np.asarray(a, np.float64) for a in (got, want.transpose(0, 2, 3, 1)))
    return np.linalg.norm(got - want) / np.linalg.norm(want)


@pytest.mark.parametrize("name", ["diffusers_legacy_bin", "diffusers_v_pipeline", "diffusers_sharded"])
def test_a_folder_denoises_as_diffusers_does(golden, tmp_path, name):
    convert(golden(name), tmp_path / "prior")
    prior = dd.load_prior(tmp_path / "prior")
    with np.load(golden(f"{name}.npz")) as recorded:
        table, t, fractional = (recorded[key] for key in ("alphas_cumprod", "t", "t_fractional"))
        assert isinstance(prior.schedule, dd.VPSchedule)
        np.testing.assert_allclose(prior.schedule.alpha_bar[:-1], table[:-1], rtol=3e-6)
        assert prior.schedule.alpha_bar[-1] == pytest.approx(max(table[-1], 2**-24), rel=1e-6)
        # Without signal either estimate is the network's output but for its sign: one program answers all.
        signal = np.concatenate([np.sqrt(table[t]), np.zeros(6)])
        sigma = np.concatenate([np.sqrt(1 - table[t]), np.ones(6)])
        levels = jax.tree.map(jnp.float32, dd.Level(signal, sigma, np.r_[t, t, fractional], prior.schedule))
        x = jnp.asarray(np.tile(recorded["x_t"].transpose(0, 2, 3, 1), (3, 1, 1, 1)))
        labels = jnp.asarray(np.tile(recorded["class_labels"], 3), jnp.int32) if "class_labels" in recorded else None

        def predict(x, level, label):
            return dataclasses.replace(prior, label=label).predict(x, level)

        with jax.default_matmul_precision("highest"):
            x_0, eps = jax.jit(jax.vmap(predict))(x, levels, labels)
        assert distance(x_0[:3], recorded["x0"]) < 2e-5
        assert distance(eps[:3], recorded["eps"]) < 5e-5
        raw = {"eps": eps, "v": -x_0, "x0": x_0}[prior.prediction]
        assert distance(raw[3:6], recorded["output"]) < 1e-5
        assert distance(raw[6:], recorded["output_fractional"]) < 1e-5


TWO = {**SETTINGS, "block_out_channels": [8, 16], "attention_head_dim": 4, "add_attention": True}
PLAIN = {"down_block_types": ["DownBlock2D"] * 2, "up_block_types": ["UpBlock2D"] * 2}
ATTENTION = {"down_block_types": ["DownBlock2D", "AttnDownBlock2D"], "up_block_types": ["UpBlock2D", "AttnUpBlock2D"]}
SAME = {"down_block_types": ["AttnDownBlock2D"] * 2, "up_block_types": ["AttnUpBlock2D"] * 2}
CONFIGURATIONS = {
    "plain": PLAIN,
    "attention on one way": {**PLAIN, "down_block_types": ["AttnDownBlock2D"] * 2, "attention_head_dim": None},
    "convolutions and blocks": {**SAME, "downsample_type": "resnet", "layers_per_block": 2},
    "blocks and convolutions": {**SAME, "upsample_type": "resnet", "time_embedding_dim": 12},
    "no middle": {**PLAIN, "mid_block_type": None},
    "norm of its own": {**PLAIN, "resnet_time_scale_shift": "scale_shift", "attn_norm_num_groups": 8},
    "no norm": {**ATTENTION, "resnet_time_scale_shift": "scale_shift", "num_class_embeds": 5},
    "six channels": {**PLAIN, "out_channels": 6, "layers_per_block": 3},
}


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_every_key_has_its_parameter(name):
    settings = {**TWO, **CONFIGURATIONS[name]}
    shapes = shapes_of(settings)
    made = convert_weights.plan(shapes, {"config": settings})
    assert made.family.KIND == "diffusers_unet" and len(made.targets) == len(shapes)
    wanted = {path: layout.convert(np.zeros(shapes[key])).shape for key, (path, layout) in made.targets.items()}
    more = {**shapes, "mid_block.resnets.2.conv1.weight": (8, 8, 3, 3)}
    for given, said in (
        (dict(list(shapes.items())[:-1]), "1 missing, 0 unexpected"),
        (more, "0 missing, 1 unexpected"),
    ):
        with pytest.raises(ValueError, match=said):
            mapping.check(given, made.targets, wanted, "it")


@pytest.mark.parametrize("old", [True, "convolutions"])
def test_old_names_and_shapes_of_attention(old):
    settings = {**TWO, **ATTENTION}
    shapes = shapes_of(settings, old=old)
    made = convert_weights.plan(shapes, {"config": settings})
    path, layout = made.targets["down_blocks.1.attentions.0.query.weight"]
    assert path == ("down_1_0_attention", "q", "kernel")
    kernel = np.arange(16.0).reshape(4, 4)
    turned = layout.convert(kernel.reshape(layout.file_shape((1, 1, 4, 4))))
    np.testing.assert_array_equal(turned, kernel.T[None, None])


def network(**changes):
    """Build a network of one block, with attention."""
    fields = diffusers_unet.infer({}, {"config": {**SETTINGS, "attention_head_dim": 4}})
    one = {"num_res_blocks": 0, "middle": False, "up_attention": (0,)}
    return checkpoint.build_module("diffusers_unet", {**fields, **one, **changes})


@pytest.fixture(scope="module")
def drawn():
    """Random weights, and what the network is given."""
    params = normal_like(checkpoint.abstract_params(network()), 0.3)
    x = jnp.asarray(np.random.default_rng(1).standard_normal((2, 8, 8, 3)), jnp.float32)
    return params, x, jnp.asarray([3, 700])


def output(drawn, **changes):
    params, x, t = drawn
    module = network(**changes)
    return np.asarray(jax.jit(module.apply)({"params": params}, x, t))


def test_what_fields_do(drawn):
    params, x, t = drawn
    plain = output(drawn, head_width=None)  # one head of all eight channels
    assert np.abs(plain).max() > 0.1
    one = output(drawn, head_width=8, remat=False)
    np.testing.assert_allclose(one, plain, rtol=1e-5, atol=1e-5)
    coarse = output((network(dtype="bfloat16").cast(params), x, t), head_width=None, dtype="bfloat16")
    assert coarse.dtype == np.float32
    assert 1e-4 < np.linalg.norm(coarse - plain) / np.linalg.norm(plain) < 3e-2
    centred = output((params, (x + 1) / 2, t), head_width=None, centred=True)
    np.testing.assert_allclose(centred, plain, rtol=1e-3, atol=1e-3)
    assert np.abs(output(drawn, head_width=None, activation="mish") - plain).max() > 1e-3


def test_activations():
    x = np.linspace(-5, 5, 101)
    want = {
        "gelu": x * (1 + scipy.special.erf(x / np.sqrt(2))) / 2,
        "mish": x * np.tanh(np.log1p(np.exp(x))),
        "relu": np.maximum(x, 0),
        "silu": x / (1 + np.exp(-x)),
    }
    for name, values in want.items():
        np.testing.assert_allclose(Style(activation=name).activate(jnp.float32(x)), values, atol=1e-6)


def test_configurations_that_are_no_such_network_are_refused():
    cases = [
        ({"time_embedding_type": "fourier"}, "time_embedding_type 'fourier'"),
        ({"class_embed_type": "timestep"}, "class_embed_type 'timestep'"),
        ({"class_embed_type": "identity"}, "class_embed_type 'identity'"),
        ({"down_block_types": ["SkipDownBlock2D"]}, "'SkipDownBlock2D', which is not converted"),
        ({"up_block_types": ["AttnSkipUpBlock2D"]}, "'AttnSkipUpBlock2D', which is not converted"),
        ({"up_block_types": ["DownBlock2D"]}, "up_block_types has 'DownBlock2D'"),
        ({"down_block_types": ["DownBlock2D"] * 2}, "has 2 entries and block_out_channels 1"),
        ({"resnet_time_scale_shift": "spatial"}, "resnet_time_scale_shift 'spatial'"),
        ({"act_fn": "tanh"}, "act_fn 'tanh' is not converted; known: silu"),
        ({"downsample_padding": 2}, "downsample_padding '?2'? is not converted"),
        ({"mid_block_type": "UNetMidBlock2DCrossAttn"}, "mid_block_type"),
        ({"in_channels": 6}, "takes 6 channels and gives 3"),
        ({"norm_num_groups": 3}, "multiples of the 3 groups"),
        ({"add_attention": True, "attention_head_dim": 3}, "multiples of the 3 channels of a head"),
        ({"layers_per_block": 10**5}, "residual blocks; up to 64"),
        ({"block_out_channels": [0]}, "block_out_channels must be from 1"),
        ({"block_out_channels": "x" * 10**5}, "block_out_channels must be list"),
        ({"norm_eps": float("nan")}, "norm_eps must be from 0"),
        ({"attention_head_dim": 10**30}, "attention_head_dim must be from 1"),
        ({"mid_block_scale_factor": 0}, "mid_block_scale_factor must be from"),
        ({"block_out_channels": [2], "norm_num_groups": 2, "freq_shift": 1}, "wave_shift must be below"),
    ]
    for changes, message in cases:
        settings = {**SETTINGS, **changes}
        with pytest.raises(ValueError, match=message) as error:
            convert_weights.plan(shapes_of(SETTINGS), {"config": settings})
        assert "\n" not in str(error.value) and len(str(error.value)) < 800
    with pytest.raises(ValueError, match=r"without its config\.json"):
        convert_weights.plan(shapes_of(SETTINGS))


def names(folder):
    return None if folder is None else folder.weights.relative_to(folder.weights.parents[1]).as_posix()


def test_a_pipeline_is_found_by_any_of_its_files(tmp_path):
    write_pipeline(tmp_path / "p")
    write_json(tmp_path / "p" / "README.md", "---\nlicense: 'apache-2.0'\ntags:\n- a\n---\n# A model\nlicense: no")
    card = convert(tmp_path / "p", tmp_path / "whole")
    assert card.image_shape == (8, 8, 3) and card.licence == "apache-2.0" and card.family == "diffusers' UNet2DModel"
    assert set(card.source) == {"file", "sha256", "unet/config.json", "scheduler/scheduler_config.json"}
    files = ("", "unet", "README.md", "model_index.json", "scheduler/scheduler_config.json", "unet/config.json")
    for file in (*files, f"unet/{WEIGHTS}"):
        found = diffusers_folder.find(tmp_path / "p" / file)
        assert found is not None and names(found) == f"unet/{WEIGHTS}", file
        assert found.about["scheduler"] == SCHEDULER
    assert convert(tmp_path / "p", tmp_path / "mine", licence="mine").licence == "mine"


def test_averaged_weights_and_the_better_file_are_preferred(tmp_path):
    folder = write_pipeline(tmp_path / "p")
    shutil.copytree(folder / "unet", folder / "unet_ema")
    write_json(folder / "unet_ema" / "config.json", {**SETTINGS, "decay": 0.99, "optimization_step": 7})
    card = convert(folder, tmp_path / "out")
    assert any("unet_ema/ taken" in note for note in card.notes)
    assert any("decay, optimization_step" in note for note in card.notes)
    inner = folder / "unet_ema"
    half = {name: array.astype(np.float16) for name, array in load_file(inner / WEIGHTS).items()}
    save_file(half, inner / "diffusion_pytorch_model.fp16.safetensors")
    write_state_dict(inner / "diffusion_pytorch_model.bin", synthetic(shapes_of(SETTINGS)))
    index = write_parts(inner)
    order = [WEIGHTS, index.name, "diffusion_pytorch_model.bin", "diffusion_pytorch_model.fp16.safetensors"]
    for file in order:
        assert names(diffusers_folder.find(folder)) == f"unet_ema/{file}"
        (inner / file).unlink()
    save_file(half, inner / "diffusion_pytorch_model.fp16.safetensors")
    card = convert(folder, tmp_path / "half")
    assert any("half precision" in note for note in card.notes)
    assert names(diffusers_folder.find(folder / "unet")) == f"unet/{WEIGHTS}"


def test_what_a_folder_lacks_is_asked_for(tmp_path):
    folder = write_pipeline(tmp_path / "p", {**SETTINGS, "sample_size": None}, scheduler=None)
    flags: dict[str, Any] = {"noise_schedule": "linear", "prediction": "eps"}
    with pytest.raises(ValueError, match="--image-size"):
        convert(folder, tmp_path / "out", **flags)
    with pytest.raises(ValueError, match=r"no scheduler_config\.json.*--noise-schedule and --prediction"):
        convert(folder, tmp_path / "out", image_size=16)
    card = convert(folder, tmp_path / "out", image_size=16, **flags)
    assert card.image_shape == (16, 16, 3)
    write_json(folder / "unet" / "config.json", {**SETTINGS, "sample_size": [8, 16]})
    assert convert(folder, tmp_path / "wide", **flags).image_shape == (8, 16, 3)
    (folder / "unet" / "config.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"unet/config\.json is missing"):
        convert(folder, tmp_path / "none")
    with pytest.raises(ValueError, match=r"without its config\.json.*nothing is guessed"):
        convert(folder / "unet" / WEIGHTS, tmp_path / "none")


def test_other_networks_and_pipelines_are_refused_by_name(tmp_path):
    folder = write_pipeline(tmp_path / "p", {**SETTINGS, "_class_name": "UNet2DConditionModel"})
    with pytest.raises(ValueError, match="describes 'UNet2DConditionModel'; of the networks of diffusers"):
        convert(folder, tmp_path / "out")
    write_json(folder / "model_index.json", {**PIPELINE, "vqvae": ["diffusers", "VQModel"]})
    with pytest.raises(ValueError, match="has a vqvae: its network makes latents"):
        convert(folder, tmp_path / "out")
    for unet, said in ((None, "has no unet"), (["diffusers", "Transformer2DModel"], "unet 'Transformer2DModel'")):
        write_json(folder / "model_index.json", {**PIPELINE, "unet": unet})
        with pytest.raises(ValueError, match=said):
            convert(folder, tmp_path / "out")
    write_json(tmp_path / "llm" / "config.json", {"architectures": ["Llama"]})
    assert diffusers_folder.find(tmp_path / "llm") is None


LICENCES = {
    "---\nlicense: mit\n---\n": "mit",
    "---\r\nlicense: mit\r\n---\r\n": "mit",
    "---\ntags: [a]\nlicense:\n- cc-by-nc-sa-4.0\n- mit\n---\n": "cc-by-nc-sa-4.0",
    "---\nlicense: other\nlicense_name: nvidia\n---\n": "nvidia",
    "---\nlicense: \x1b[2J\n---\n": None,
    f"---\nlicense: {'x' * 1000}\n---\n": None,
    "license: mit": None,
    "\xff" * 2**21: None,
}


def test_licences_are_read_off_pages(tmp_path):
    for text, licence in LICENCES.items():
        (tmp_path / "README.md").write_bytes(text.encode())
        assert diffusers_folder._licence(tmp_path / "README.md") == licence, text[:50]


TEXTS = {
    "empty": "",
    "list": "[]",
    "deep": "[" * 200_000,
    "long": json.dumps({"a": "x" * 5_000_000}),
    "digits": '{"sample_size": 1' + "0" * 10_000 + "}",
    "broken": '{"_class_name": "UNet2DModel"',
}


@pytest.mark.parametrize("file", ["unet/config.json", "scheduler/scheduler_config.json", "model_index.json"])
def test_damaged_settings_are_one_line(tmp_path, file):
    folder = write_pipeline(tmp_path / "p")
    for text in TEXTS.values():
        write_json(folder / file, text)
        refused(lambda path: diffusers_folder.find(path.parents[len(file.split("/")) - 1]), folder / file)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no pipes with names")
@pytest.mark.parametrize("file", ["unet/config.json", "scheduler/scheduler_config.json"])
def test_pipes_are_not_waited_for(tmp_path, file):
    folder = write_pipeline(tmp_path / "p")
    (folder / file).unlink()
    os.mkfifo(folder / file)
    refused(lambda path: convert(path, tmp_path / "out"), folder)


def test_an_index_leads_nowhere_else(tmp_path):
    folder = write_pipeline(tmp_path / "p") / "unet"
    (folder / WEIGHTS).unlink()
    index = write_parts(folder)
    convert(tmp_path / "p", tmp_path / "whole")
    write_weights(tmp_path / "p" / WEIGHTS)
    places = json.loads(index.read_text())["weight_map"]
    first = next(iter(places))
    for file in (f"../{WEIGHTS}", str(tmp_path / "p" / WEIGHTS), "..", ""):
        write_json(index, {"weight_map": {**places, first: file}})
        refused(lambda path: convert(path.parent, tmp_path / "out"), index, "no file beside it")
    part = "diffusion_pytorch_model-00002-of-00002.safetensors"
    write_json(index, {"weight_map": {**places, first: part}})
    with pytest.raises(ValueError, match=f"is not the file that .* describes: {first} is only in the"):
        convert(folder, tmp_path / "out")
    index.unlink()
    with pytest.raises(FileNotFoundError, match=r"their index diffusion_pytorch_model\.safetensors\.index\.json"):
        convert(folder / part, tmp_path / "out")
