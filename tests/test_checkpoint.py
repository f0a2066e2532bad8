import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import GOLDEN
from weights import synthetic, write_state_dict

import convert_weights
import ddiff_jax as dd
from ddiff_jax import checkpoint


@pytest.fixture(scope="module")
def priors(tmp_path_factory):
    """Convert one small network into both formats."""
    folder = tmp_path_factory.mktemp("priors")
    case = json.loads((GOLDEN / "unet_variants.json").read_text())["new_order"]
    tensors = synthetic({key: tuple(shape) for key, shape in case["shapes"].items()})
    write_state_dict(folder / "w.pt", tensors)
    for dtype in ("float32", "int16"):
        convert_weights.convert(folder / "w.pt", folder / dtype, head_width=16, dtype=dtype, probe=False, verify=True)
    return folder, tensors


@pytest.fixture(params=["float32", "int16"])
def folder(tmp_path, priors, request):
    return shutil.copytree(priors[0] / request.param, tmp_path / "prior")


@pytest.fixture
def packed(tmp_path, priors):
    return shutil.copytree(priors[0] / "int16", tmp_path / "prior")


def weight_files(folder):
    return sorted(path for path in folder.rglob("*") if path.is_file() and path.name != "card.json")


def test_a_converted_prior_loads(folder, priors):
    prior = dd.load_prior(folder, dtype="bfloat16")
    assert prior.image_shape == (16, 16, 3)
    assert prior.schedule.num_levels == 1000
    assert getattr(prior.module, "dtype") == "bfloat16"  # noqa: B009 - not in the protocol
    np.testing.assert_allclose(prior.params["norm_out"]["scale"], priors[1]["out.0.weight"], rtol=1e-3)


def test_weights_are_kept_in_the_type_that_the_network_computes_in(folder):
    exact, rough = (dd.load_prior(folder, dtype=dtype) for dtype in ("float32", "bfloat16"))
    assert {leaf.dtype for leaf in jax.tree.leaves(exact.params)} == {jnp.dtype("float32")}
    assert rough.params["down_0_0"]["conv_1"]["kernel"].dtype == jnp.bfloat16
    assert {leaf.dtype for leaf in jax.tree.leaves(rough.params["down_0_0"]["norm_1"])} == {jnp.dtype("float32")}


def test_damage_anywhere_is_found_and_the_file_is_named(folder):
    for path in weight_files(folder):
        whole = path.read_bytes()
        flipped = bytearray(whole or b"\0")
        flipped[len(flipped) // 2] ^= 1
        for damaged in (bytes(flipped), whole[:-1] if whole else b"more"):
            path.write_bytes(damaged)
            with pytest.raises(ValueError, match=f"{path.name} is damaged"):
                dd.load_prior(folder)
        path.unlink()
        with pytest.raises(FileNotFoundError, match=f"{path.name} is missing"):
            dd.load_prior(folder)
        path.write_bytes(whole)
    dd.load_prior(folder)


def change_card(folder, **changes):
    path = folder / "card.json"
    values = json.loads(path.read_text())
    path.write_text(json.dumps({**values, **changes}))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format": 99}, "format 99"),
        ({"kind": "kernel_wizard"}, "kind kernel_wizard, wanted adm_unet"),
        ({"files": {}}, "lists no weight files"),
        ({"surprise": 1}, "card.json is damaged"),
        ({"architecture": {"channels": 3}}, "unknown key in a network of kind adm_unet: 'channels'"),
        ({"architecture": {"model_channels": "64"}}, "model_channels must be int; got '64'"),
        ({"architecture": {"channel_mult": 2}}, "channel_mult must be tuple"),
        ({"architecture": {"attention_levels": ["a"]}}, "attention_levels must be tuple"),
        ({"architecture": {"attention_order": "old"}}, "must be legacy or new; got 'old'"),
        ({"architecture": {"model_channels": 0}}, "cannot be loaded as the network on its card"),
        ({"architecture": [1]}, r"card\.json is damaged: architecture must be dict"),
        ({"kind": 3}, r"card\.json is damaged: kind must be str; got 3"),
        ({"image_shape": [16, 16]}, "image_shape must be tuple"),
        ({"image_shape": "big"}, "image_shape must be tuple"),
        ({"num_parameters": True}, "num_parameters must be int"),
        ({"notes": "none"}, "notes must be list"),
        ({"notes": [1]}, "notes must be list"),
        ({"files": ["weights.safetensors"]}, "files must be dict"),
        ({"dtype": "int8"}, "dtype must be one of float32, int16"),
        ({"schedule": {}}, "unknown noise schedule 'None'"),
        ({"schedule": {"name": "linaer"}}, "did you mean 'linear'"),
        ({"schedule": {"name": "linear", "beta_start": "small"}}, "beta_start must be float; got 'small'"),
        ({"schedule": {"name": "cosine", "beta_end": 0.1}}, "unknown key in noise schedule cosine: 'beta_end'"),
        ({"schedule": {"name": "linear", "beta_start": 2.0}}, "0 < beta_start <= beta_end < 1"),
        ({"schedule": {"name": "table", "alpha_bar": [0.1, 0.9]}}, "decreasing sequence"),
        ({"schedule": {"name": "table", "alpha_bar": [[0.9], 0.1]}}, "alpha_bar must be"),
        ({"schedule": {"name": "table"}}, "noise schedule table cannot be built"),
        ({"files": {"../weights.safetensors": "0"}}, "'../weights.safetensors', which is no path inside the folder"),
        ({"files": {"/etc/passwd": "0"}}, "'/etc/passwd', which is no path inside the folder"),
        ({"files": {"weights/../card.json": "0"}}, "no path inside the folder"),
    ],
)
def test_cards_that_do_not_fit_are_refused(packed, changes, message):
    change_card(packed, **changes)
    with pytest.raises(ValueError, match=message) as error:
        dd.load_prior(packed)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("text", ["[1]", "null", "3", "[" * 100_000, '{"format": 2}'])
def test_cards_that_are_none_are_refused(packed, text):
    (packed / "card.json").write_text(text)
    with pytest.raises(ValueError, match=r"card\.json is damaged"):
        dd.load_prior(packed)


def test_the_card_lists_exactly_what_is_loaded(folder):
    files = json.loads((folder / "card.json").read_text())["files"]
    for name in files:  # one that is not checked could hold anything
        change_card(folder, files={other: digest for other, digest in files.items() if other != name})
        with pytest.raises(ValueError, match=r"loaded but not on the card|lists no weight files"):
            dd.load_prior(folder)
    change_card(folder, files={**files, "card.json": "0"})
    with pytest.raises(ValueError, match=r"card\.json is on the card but not loaded"):
        dd.load_prior(folder)
    change_card(folder, files=files)
    (folder / "MODEL_CARD.md").write_text("read me")  # is not loaded
    dd.load_prior(folder)


def test_other_weights_beside_those_on_the_card_change_nothing(tmp_path, priors):
    shutil.copytree(priors[0] / "float32", tmp_path / "float32")
    prior = dd.load_prior(tmp_path / "float32")
    (tmp_path / "float32" / "weights.safetensors").write_bytes(b"planted")
    again = dd.load_prior(tmp_path / "float32")
    assert jax.tree.all(jax.tree.map(np.array_equal, prior.params, again.params))
    (tmp_path / "float32" / "weights" / "more").write_bytes(b"planted")
    with pytest.raises(ValueError, match="weights/more is loaded but not on the card"):
        dd.load_prior(tmp_path / "float32")
    (tmp_path / "float32" / "weights" / "more").unlink()
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "float32" / "weights" / "linked").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ValueError, match="weights/linked is loaded but not on the card"):
        dd.load_prior(tmp_path / "float32")


def test_weights_of_another_architecture_are_refused(folder):
    architecture = json.loads((folder / "card.json").read_text())["architecture"]
    change_card(folder, architecture={**architecture, "model_channels": 64})
    with pytest.raises(ValueError, match="cannot be loaded as the network on its card"):
        dd.load_prior(folder)


def test_absent_weights_say_what_to_do(tmp_path):
    with pytest.raises(FileNotFoundError, match="did you mean 'faces64'"):
        dd.load_prior("face64")
    (tmp_path / "model.pt").write_bytes(b"x")
    with pytest.raises(FileNotFoundError, match="ddiff convert"):
        dd.load_prior(tmp_path / "model.pt")
    with pytest.raises(FileNotFoundError, match="half written"):
        dd.load_prior(tmp_path)
    (tmp_path / "card.json").write_text("{")
    with pytest.raises(ValueError, match=r"card\.json is damaged"):
        dd.load_prior(tmp_path)
    with pytest.raises(ValueError, match="float32 or bfloat16"):
        dd.load_prior("faces64", dtype="float64")


def test_a_failed_write_leaves_nothing(tmp_path):
    card = checkpoint.Card("adm_unet", {}, (8, 8, 3), {"not json": object()}, "int16", 1, {}, "")
    with pytest.raises(TypeError, match="not JSON serializable"):
        checkpoint.save_weights(tmp_path / "out", {"a": np.ones((2, 2), np.float32)}, card)
    assert list(tmp_path.iterdir()) == []


def test_the_packaged_prior_carries_its_licence():
    card = checkpoint.read_card("faces64")
    assert "non-commercial" in card.licence
    assert card.num_parameters == 5_167_558
    assert "faces64" in checkpoint.available_priors()
