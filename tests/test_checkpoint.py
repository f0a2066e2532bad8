import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from weights import synthetic, write_state_dict

import convert_weights
import ddiff_jax as dd
from ddiff_jax import checkpoint


@pytest.fixture
def state_dict(golden):
    case = json.loads(golden("unet_variants.json").read_text())["new_order"]
    return synthetic({key: tuple(shape) for key, shape in case["shapes"].items()})


@pytest.fixture(params=["float32", "int16"])
def folder(tmp_path, state_dict, request):
    write_state_dict(tmp_path / "w.pt", state_dict)
    convert_weights.convert(tmp_path / "w.pt", tmp_path / "prior", head_width=16, dtype=request.param, verify=True)
    return tmp_path / "prior"


def weight_files(folder):
    return sorted(path for path in folder.rglob("*") if path.is_file() and path.name != "card.json")


def test_a_converted_prior_loads(folder, state_dict):
    prior = dd.load_prior(folder, dtype="bfloat16")
    assert prior.image_shape == (16, 16, 3)
    assert prior.schedule.num_levels == 1000
    assert getattr(prior.module, "dtype") == "bfloat16"  # noqa: B009 - not in the protocol
    np.testing.assert_allclose(prior.params["norm_out"]["scale"], state_dict["out.0.weight"], rtol=1e-3)


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
        ({"architecture": {"channels": 3}}, "does not describe a network"),
    ],
)
def test_cards_that_do_not_fit_are_refused(folder, changes, message):
    change_card(folder, **changes)
    with pytest.raises(ValueError, match=message):
        dd.load_prior(folder)


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
