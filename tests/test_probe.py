"""What shapes leave open is decided by how well the network denoises, and a network that never does is refused."""

import dataclasses
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from weights import openai_shapes, synthetic, write_state_dict

import convert_weights
import ddiff_jax as dd
from convert_weights import adm_unet, probe
from ddiff_jax import checkpoint
from ddiff_jax.models import UNet
from ddiff_jax.noise import root_key

pytestmark = pytest.mark.once

QUICK = 32  # side of the picture that these tests look at
BACK = {2: lambda a: a.T, 4: lambda a: a.transpose(3, 2, 0, 1)}


@pytest.fixture
def original(tmp_path, monkeypatch):
    """Write the packaged prior as its PyTorch file; tests look at few pixels and one of the levels."""
    monkeypatch.setattr(probe, "SIDE", QUICK)
    prior = dd.load_prior("faces64")
    fields = checkpoint.read_card("faces64").architecture
    fields = {k: tuple(v) if isinstance(v, list) else v for k, v in fields.items()}
    leaves = {path: np.asarray(leaf) for path, leaf in checkpoint.named_leaves(prior.params).items()}
    tensors = {}
    for key, (path, layout) in adm_unet.targets({"num_classes": None, **_defaults(), **fields}).items():
        leaf = leaves["/".join(path)]
        shape = layout.file_shape(leaf.shape)
        tensors[key] = BACK.get(leaf.ndim, lambda a: a)(leaf).reshape(shape)
    write_state_dict(tmp_path / "faces.pt", tensors)
    return tmp_path / "faces.pt"


def _defaults():
    return {field.name: field.default for field in dataclasses.fields(UNet)}


def test_wrong_heads_are_found(original, tmp_path, monkeypatch):
    """Four heads, 32 channels wide, are the truth, 64 channels what is assumed."""
    heads = [("number of attention heads", [{"num_heads": 1}, {"num_heads": 4}, {"num_heads": 3}])]
    monkeypatch.setattr(adm_unet, "alternatives", lambda *_, **__: heads)
    given: dict[str, Any] = {"attention_order": "legacy", "prediction": "eps"}
    card = convert_weights.convert(original, tmp_path / "heads", noise_schedule="linear", **given)
    assert card.architecture["num_heads"] == 4
    assert any("--num-heads 4 taken for the number of attention heads" in note for note in card.notes)
    x, level = jnp.zeros((64, 64, 3)), dd.linear_schedule().at_time(300)
    ours, theirs = (dd.load_prior(name).denoise(x, level) for name in (tmp_path / "heads", "faces64"))
    np.testing.assert_allclose(ours, theirs, atol=2e-3)  # the packaged numbers have 16 bits


def test_what_shapes_leave_open():
    shapes = openai_shapes(64, (1, 2), 1, (1,), outputs=3)
    fields = adm_unet.infer(shapes)
    open_axes = dict(adm_unet.alternatives(fields, shapes, None, {}))
    assert list(open_axes) == ["number of attention heads", "order of attention", "noise schedule", "prediction"]
    assert {"num_heads": 4} in open_axes["number of attention heads"]
    assert {"head_width": 64} not in open_axes["number of attention heads"]  # is what is assumed
    assert open_axes["order of attention"] == [{"attention_order": "new"}]
    assert {"noise_schedule": "cosine", "num_timesteps": 4000, "rescale_timesteps": False} in open_axes[
        "noise schedule"
    ]
    given = {"num_heads": 2, "attention_order": "legacy", "num_timesteps": 500, "prediction": "eps"}
    assert adm_unet.alternatives(fields, shapes, None, given) == []
    table = ("betas", np.ones(3))
    assert "noise schedule" not in dict(adm_unet.alternatives(fields, shapes, table, {}))
    variance = openai_shapes(64, (1, 2), 1, (1,))
    assert "prediction" not in dict(adm_unet.alternatives(adm_unet.infer(variance), variance, None, {}))
    known = openai_shapes(128, (1, 1, 2, 2, 4, 4), 1, (4,))
    assert adm_unet.alternatives(adm_unet.infer(known), known, None, {}) == []
    assert adm_unet.alternatives(adm_unet.infer(known), known, None, {}, everything=True)


def test_a_schedule_is_chosen_and_what_is_given_is_not_touched(original, tmp_path, monkeypatch):
    settings: dict[str, Any] = {"num_heads": 4, "attention_order": "legacy", "prediction": "eps"}
    card = convert_weights.convert(original, tmp_path / "linear", **settings)
    assert card.schedule["name"] == "linear"
    assert "the nearest of them (the noise schedule by --noise-schedule" in card.notes[-1]
    assert card.notes[-1].startswith("probe on 1 picture: mean squared error of the noise 0.")
    monkeypatch.setattr(convert_weights.schedules, "choose", _cosine_first(convert_weights.schedules.choose))
    card = convert_weights.convert(original, tmp_path / "found", **settings)
    assert card.schedule["name"] == "linear"
    assert any("--noise-schedule linear taken for the noise schedule" in note for note in card.notes)
    card = convert_weights.convert(original, tmp_path / "given", noise_schedule="cosine", **settings)
    assert card.schedule["name"] == "cosine"


def _cosine_first(choose):
    def assume(found, known, noise_schedule=None, **more):
        return choose(found, known, noise_schedule=noise_schedule or "cosine", **more)

    return assume


def test_networks_that_denoise_with_no_setting_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(probe, "SIDE", QUICK)
    write_state_dict(tmp_path / "w.pt", synthetic(openai_shapes(32, (1,), 1, ())))
    settings: dict[str, Any] = {"num_heads": 1, "noise_schedule": "linear", "prediction": "eps"}
    with pytest.raises(ValueError, match=r"w\.pt: with no setting that was tried .*--probe-images.*--no-probe"):
        convert_weights.convert(tmp_path / "w.pt", tmp_path / "out", **settings)
    assert not (tmp_path / "out").exists()
    golden = Path(__file__).parent / "golden"
    for file in ("nvidia_ncsnpp.pkl", "diffusers_legacy_bin"):  # at high levels EDM's formulas denoise by themselves
        with pytest.raises(ValueError, match="with no setting that was tried"):
            convert_weights.convert(golden / file, tmp_path / "out")
    write_state_dict(tmp_path / "grey.pt", synthetic(openai_shapes(32, (1,), 1, (), inputs=1, outputs=1)))
    card = convert_weights.convert(tmp_path / "grey.pt", tmp_path / "grey", **settings)  # of images we know nothing of
    assert any("--probe-images gives pictures" in note for note in card.notes)
    write_state_dict(tmp_path / "two.pt", synthetic(openai_shapes(32, (1,), 1, (), inputs=2, outputs=2)))
    card = convert_weights.convert(tmp_path / "two.pt", tmp_path / "two", **settings)
    assert "not probed" in card.notes[-1]
    arrays = tmp_path / "arrays"
    arrays.mkdir()
    np.save(arrays / "a.npy", np.asarray(jax.random.uniform(root_key(0), (32, 32, 2))))
    with pytest.raises(ValueError, match="with no setting"):
        convert_weights.convert(tmp_path / "two.pt", tmp_path / "again", probe_images=[arrays], **settings)


def test_errors_of_the_noise_are_those_of_the_perfect_denoiser():
    images = np.zeros((2, 8, 8, 1), np.float32)
    prior = dd.from_denoiser(lambda x, sigma: 0 * x, kind="denoiser", image_shape=(8, 8, 1))
    np.testing.assert_allclose(probe.measure(prior, images), 0, atol=1e-6)
    lost = dd.from_denoiser(lambda x, sigma: x, kind="denoiser", image_shape=(8, 8, 1))
    np.testing.assert_allclose(probe.measure(lost, images), 1, rtol=0.3)
