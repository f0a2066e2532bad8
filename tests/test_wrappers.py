"""Networks are found in whatever training codes and tools wrap them in, and the notes say what was left out."""

import argparse
import collections
import json
import os

import numpy as np
import pytest
from safetensors.numpy import save_file
from weights import Global, Tensor, openai_shapes, synthetic, write_legacy, write_zip

import convert_weights
from convert_weights import networks
from convert_weights.records import Contents
from convert_weights.torch_file import read_contents, read_tensors, weight_files
from ddiff_jax.checkpoint import load_weights

pytestmark = pytest.mark.once

ANCHORS = [("anchor.weight",), ("second.weight",)]
ONE = np.ones(1, np.float32)


@pytest.fixture(scope="module")
def tensors():
    """A complete network of one level."""
    return synthetic(openai_shapes(32, (1,), 1, ()))


class Checkpoint:
    """Collects tensors and their storages, and writes them."""

    def __init__(self):
        self.storages = {}

    def state(self, tensors, prefix="", factor=1.0):
        made = collections.OrderedDict()
        for name, array in tensors.items():
            key = str(len(self.storages))
            self.storages[key] = np.ascontiguousarray(factor * array, np.float32)
            made[prefix + name] = Tensor(key, self.storages[key])
        return made

    def write(self, path, tree, write=write_zip):
        write(path, tree, self.storages)
        return path


def converted(path, **options):
    """Convert; returns the notes, and the bias of the last layer, which tells which copy was taken."""
    folder = path.parent / f"out{len(list(path.parent.iterdir()))}"
    card = convert_weights.convert(path, folder, num_heads=1, probe=False, **options)
    _, params, _ = load_weights(folder, "adm_unet")
    return " | ".join(card.notes), np.asarray(params["conv_out"]["bias"])


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "module._orig_mod.", "model.", "denoise_fn.", "a.b.c-3."])
def test_prefixes_are_dropped_and_named(tmp_path, tensors, prefix):
    made = Checkpoint()
    path = made.write(tmp_path / "w.pt", {"epoch": 3, "state_dict": made.state(tensors, prefix)})
    notes, bias = converted(path)
    assert f"names begin with state_dict.{prefix} in the file" in notes
    np.testing.assert_array_equal(bias, tensors["out.2.bias"])


@pytest.mark.parametrize("write", [write_zip, write_legacy])
def test_a_training_checkpoint_is_read_without_its_objects(tmp_path, tensors, write):
    made = Checkpoint()
    tree = {
        "model": made.state(tensors, "module."),
        "ema": made.state(tensors, "module._orig_mod.", factor=2),
        "opt": {"state": {0: made.state({"exp_avg": np.ones((2, 2))})}, "param_groups": [{"params": [0]}]},
        "step": 7,
        "args": argparse.Namespace(lr=1e-4),
    }
    path = made.write(tmp_path / "w.pt", tree, write)
    notes, bias = converted(path)  # the average over the training, unless told otherwise
    np.testing.assert_array_equal(bias, 2 * tensors["out.2.bias"])
    for said in (
        "names begin with ema.module._orig_mod. in the file",
        "other sets of tensors in the file: model.module; --key takes another one",
        "1 tensors beside the network left out: opt.state",
        "neither made nor called, being no tensors: args (argparse.Namespace)",
    ):
        assert said in notes
    _, bias = converted(path, key="model.module")
    np.testing.assert_array_equal(bias, tensors["out.2.bias"])
    with pytest.raises(ValueError, match="--key emma names no sets of tensors; the file holds model"):
        converted(path, key="emma")


def test_two_copies_in_one_dictionary(tmp_path, tensors):
    made = Checkpoint()
    both = {**made.state(tensors, "online_model.net."), **made.state(tensors, "ema_model.net.", factor=2)}
    extra = made.state({"initted": np.ones(1), "step": np.ones(1)})
    path = made.write(tmp_path / "w.pt", {"ema": {**both, **extra}})
    notes, bias = converted(path)
    np.testing.assert_array_equal(bias, 2 * tensors["out.2.bias"])
    assert "buffers skipped, being no weights: initted, step" in notes
    with pytest.raises(ValueError, match="--key ema names 2 sets of tensors"):
        converted(path, key="ema")


def test_a_malicious_call_beside_the_network_is_named_and_not_made(tmp_path, tensors):
    proof = tmp_path / "executed"

    class Attack:
        def __reduce__(self):
            return os.system, (f"touch {proof}",)

    made = Checkpoint()
    state = made.state(tensors)
    notes, _ = converted(made.write(tmp_path / "beside.pt", {"state_dict": state, "x": Attack()}))
    assert "neither made nor called, being no tensors: x (posix.system)" in notes.replace("nt.system", "posix.system")
    for name, tree in {"among": {**state, "x": Attack()}, "whole": Attack(), "named": {"net": Attack()}}.items():
        path = made.write(tmp_path / f"{name}.pt", tree)
        with pytest.raises(ValueError, match=r"it wants to call (posix|nt)\.system as .*nothing was executed"):
            converted(path)
    assert not proof.exists()


def test_an_object_in_the_place_of_a_tensor_is_refused(tmp_path, tensors):
    made = Checkpoint()
    state = made.state(tensors, "net.")
    state["net.out.2.bias"] = Global("omegaconf", "DictConfig")
    path = made.write(tmp_path / "w.pt", state)
    with pytest.raises(ValueError, match=r"it wants to call omegaconf\.DictConfig as net\.out\.2\.bias"):
        converted(path)


def find(names, key=None):
    return networks.find(Contents(dict.fromkeys(names, ONE)), ANCHORS, key)


def test_the_first_kind_of_network_is_taken():
    found = find(["loss.second.weight", "net.anchor.weight", "net.other", "betas"])
    assert (found.prefix, list(found.tensors)) == ("net.", ["anchor.weight", "other"])
    assert (list(found.beside), list(found.buffers)) == (["loss.second.weight"], ["betas"])
    assert find(["a.second.weight"]).prefix == "a."
    assert find(["unknown.weight", "b"]).prefix == ""
    assert list(find(["a.w", "b.w"], key="b").tensors) == ["w"]


def test_a_network_inside_the_dictionary_of_another_is_none_of_its_tensors():
    names = ["anchor.weight", "other", "ema.anchor.weight", "ema.other"]
    assert list(find(names, key="ema").tensors) == ["anchor.weight", "other"]
    assert find(names).prefix == "ema."
    assert find([*names[:2], "net.ema_copy.anchor.weight"]).prefix == "net.ema_copy."
    assert find([*names[:2], "online_ema.anchor.weight", "model.anchor.weight"]).prefix == "model."
    with pytest.raises(ValueError, match=r"those at the top \(4 tensors\), other \(2 tensors\)"):
        find(["anchor.weight", "other", "other.anchor.weight", "other.other"])


def test_networks_of_which_none_is_the_better_one_are_listed(tmp_path, tensors):
    made = Checkpoint()
    path = made.write(tmp_path / "w.pt", {"generator": made.state(tensors), "g_old": made.state(tensors, factor=2)})
    count = len(tensors)
    with pytest.raises(ValueError, match=rf"generator \({count} tensors\), g_old \({count} tensors\); choose one"):
        converted(path)
    assert "generator" in converted(path, key="g_old")[0]


@pytest.fixture
def parts(tmp_path, tensors):
    """Write a network in two parts and their index, as Hugging Face's tools do."""
    folder = tmp_path / "parts"
    folder.mkdir()
    names = list(tensors)
    weight_map = {}
    for i, chosen in enumerate((names[::2], names[1::2]), start=1):
        file = f"model-0000{i}-of-00002.safetensors"
        save_file({name: tensors[name] for name in chosen}, folder / file)
        weight_map |= dict.fromkeys(chosen, file)
    index = {"metadata": {"total_size": 1}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    (folder / "config.json").write_text("{}")
    return folder


@pytest.mark.parametrize("given", ["", "model.safetensors.index.json", "model-00002-of-00002.safetensors"])
def test_parts_are_read_together(parts, tensors, given):
    read = read_tensors(parts / given)
    assert read.keys() == tensors.keys()
    assert [path.name for path in weight_files(parts / given)] == [
        "model.safetensors.index.json",
        "model-00001-of-00002.safetensors",
        "model-00002-of-00002.safetensors",
    ]
    _, bias = converted(parts / given)
    np.testing.assert_array_equal(bias, tensors["out.2.bias"])


def test_the_card_names_every_part(parts):
    card = convert_weights.convert(parts, parts / "out", num_heads=1, probe=False)
    assert card.source["file"] == "model.safetensors.index.json"
    assert {"model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"} < card.source.keys()


def test_parts_that_do_not_fit_their_index_are_refused(parts):
    index = parts / "model.safetensors.index.json"
    whole = json.loads(index.read_text())
    second = "model-00002-of-00002.safetensors"

    def refused(message, error: type[Exception] = ValueError, given=""):
        with pytest.raises(error, match=message):
            read_contents(parts / given)

    moved = dict.fromkeys(whole["weight_map"], second)
    index.write_text(json.dumps({"weight_map": moved}))
    refused("only in the index")
    index.write_text(json.dumps({"weight_map": {k: v for k, v in whole["weight_map"].items() if k != "out.2.bias"}}))
    refused(r"out\.2\.bias is only in the file")
    for outside in ("../x.safetensors", "/x.safetensors", "..", "", "a/b", 3):
        index.write_text(json.dumps({"weight_map": {"a": outside}}))
        refused("is no index of weights")
    for nothing in ("[]", "{", '{"weight_map": [1]}'):
        index.write_text(nothing)
        refused("is no index of weights")
    index.write_text(json.dumps(whole))
    (parts / second).unlink()
    refused(f"no weight file at .*{second}", FileNotFoundError)
    index.unlink()
    first = "model-00001-of-00002.safetensors"
    refused(r"one of 2 parts, and their index model\.safetensors\.index\.json is not beside", FileNotFoundError, first)


def test_folders_hold_one_set_of_weights(tmp_path, tensors):
    with pytest.raises(ValueError, match="it holds none"):
        read_contents(tmp_path)
    save_file(tensors, tmp_path / "one.safetensors")
    assert read_tensors(tmp_path).keys() == tensors.keys()
    save_file(tensors, tmp_path / "two.safetensors")
    with pytest.raises(ValueError, match=r"it holds one\.safetensors, two\.safetensors; give one of them"):
        read_contents(tmp_path)
