import datetime
import json
import os
import pickle
import zipfile
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file
from weights import Global, Tensor, dumps, synthetic, write_legacy, write_state_dict, write_zip

import convert_weights
from convert_weights.torch_file import read_tensors
from ddiff_jax.checkpoint import load_weights


@pytest.fixture
def state_dict(golden):
    """A small complete network in the original naming."""
    case = json.loads(golden("unet_variants.json").read_text())["new_order"]
    return synthetic({key: tuple(shape) for key, shape in case["shapes"].items()})


FORMATS = {"zip": write_zip, "legacy": write_legacy}
both_formats = pytest.mark.parametrize("write", FORMATS.values(), ids=FORMATS)


@both_formats
def test_views_shared_storage_and_types_are_read(tmp_path, write):
    base = np.arange(24, dtype=np.float32)
    half, whole = np.asarray([1.5, -2], np.float16), np.asarray([3, 4], np.int64)
    brain = np.asarray([0x3F80, 0xC000], np.uint16)  # 1 and -2 in bfloat16
    tree = {
        "view": Tensor("0", base, offset=2, shape=(3, 2), strides=(6, 1)),
        "transposed": Tensor("0", base, shape=(4, 6), strides=(1, 4)),
        "scalar": Tensor("0", base, offset=5, shape=(), strides=()),
        "empty": Tensor("0", base, shape=(0, 3), strides=(3, 1)),
        "half": Tensor("1", half, storage="HalfStorage"),
        "whole": Tensor("2", whole, storage="LongStorage"),
        "brain": Tensor("3", brain, storage="BFloat16Storage"),
    }
    write(tmp_path / "w.pt", tree, {"0": base, "1": half, "2": whole, "3": brain})
    read = read_tensors(tmp_path / "w.pt")
    assert list(read) == list(tree)
    np.testing.assert_array_equal(read["view"], [[2, 3], [8, 9], [14, 15]])
    np.testing.assert_array_equal(read["transposed"], base.reshape(6, 4).T)
    assert read["scalar"] == 5
    assert read["empty"].shape == (0, 3)
    np.testing.assert_array_equal(read["half"], half)
    np.testing.assert_array_equal(read["whole"], whole)
    np.testing.assert_array_equal(read["brain"].astype(np.float32), [1, -2])


@both_formats
def test_a_malicious_pickle_is_refused_and_executes_nothing(tmp_path, write):
    proof = tmp_path / "executed"

    class Attack:
        def __reduce__(self):
            return os.system, (f"touch {proof}",)

    weight = np.ones(3, np.float32)
    write(tmp_path / "bad.pt", {"w": Tensor("0", weight), "x": Attack()}, {"0": weight})
    with pytest.raises(ValueError, match=r"bad\.pt cannot be read as weights: it wants to call (posix|nt)\.system"):
        read_tensors(tmp_path / "bad.pt")
    assert not proof.exists()


@both_formats
@pytest.mark.parametrize(
    ("module", "name"),
    [
        ("builtins", "eval"),
        ("torch", "load"),
        ("torch.serialization", "load"),
        ("numpy", "load"),
        ("collections", "deque"),
    ],
)
def test_every_other_name_is_refused(tmp_path, write, module, name):
    write(tmp_path / "bad.pt", {"x": Global(module, name)}, {})
    with pytest.raises(ValueError, match=f"{module}.{name}"):
        read_tensors(tmp_path / "bad.pt")


def test_a_pickle_cannot_retype_a_storage_and_read_beyond_its_end(tmp_path):
    few = np.arange(8, dtype=np.uint8)
    # After the storage is made, ask the unpickler to overwrite its attribute `dtype` by a type eight times as wide.
    retype = b"}X\x05\x00\x00\x00dtypectorch\nDoubleStorage\nsb"
    pickled = dumps({"w": Tensor("0", few, storage="ByteStorage")})
    patched = pickled.replace(pickle.BINPERSID, pickle.BINPERSID + retype, 1)
    assert patched != pickled
    with zipfile.ZipFile(tmp_path / "bad.pt", "w") as archive:
        archive.writestr("archive/data.pkl", patched)
        archive.writestr("archive/data/0", few.tobytes())
    with pytest.raises(ValueError, match=r"bad\.pt cannot be read"):
        read_tensors(tmp_path / "bad.pt")


def test_a_container_that_holds_itself_is_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / "loop.pt", "w") as archive:
        archive.writestr("archive/data.pkl", b"\x80\x02]q\x00h\x00a.")
    with pytest.raises(ValueError, match=r"loop\.pt cannot be read"):
        read_tensors(tmp_path / "loop.pt")


@both_formats
def test_truncated_files_are_refused_at_any_length(tmp_path, write, state_dict):
    small = dict(list(state_dict.items())[:3])
    write_state_dict(tmp_path / "w.pt", small, write=write)
    whole = (tmp_path / "w.pt").read_bytes()
    read_tensors(tmp_path / "w.pt")
    for length in (0, 1, 10, 100, len(whole) // 2, len(whole) - 1):
        (tmp_path / "cut.pt").write_bytes(whole[:length])
        with pytest.raises(ValueError, match=r"cut\.pt cannot be read"):
            read_tensors(tmp_path / "cut.pt")


def test_other_files_are_refused(tmp_path):
    weight = np.ones(3, np.float32)
    (tmp_path / "text.pt").write_text("hello, I am not a checkpoint")
    write_zip(tmp_path / "big.pt", {"w": Tensor("0", weight)}, {"0": weight}, byteorder="big")
    write_zip(tmp_path / "reach.pt", {"w": Tensor("0", weight, shape=(4,))}, {"0": weight})
    write_zip(tmp_path / "none.pt", {"lr": 0.1}, {})
    (tmp_path / "bad.safetensors").write_bytes(b"\x10\0\0\0\0\0\0\0{broken")
    cases = {"text.pt": "neither", "big.pt": "big-endian", "reach.pt": "outside", "none.pt": "no dictionary"}
    for name, message in {**cases, "bad.safetensors": "cannot be read"}.items():
        with pytest.raises(ValueError, match=message):
            read_tensors(tmp_path / name)
    with pytest.raises(FileNotFoundError, match=r"absent\.pt"):
        read_tensors(tmp_path / "absent.pt")


@pytest.mark.parametrize("kind", ["zip", "legacy", "safetensors"])
def test_conversion_round_trip(tmp_path, state_dict, kind):
    source = tmp_path / f"source.{kind}"
    if kind == "safetensors":
        save_file(state_dict, source)
    else:
        write_state_dict(source, state_dict, write=FORMATS[kind])
    card = convert_weights.convert(
        source,
        tmp_path / "out",
        head_width=16,
        image_size=32,
        attention_order="new",
        licence="mine",
        probe=False,
        verify=True,
    )
    assert card.image_shape == (32, 32, 3)
    assert card.num_parameters == sum(value.size for value in state_dict.values())
    module, params, again = load_weights(tmp_path / "out", "adm_unet")
    assert module.attention_order == "new"
    assert again.licence == "mine"
    kernel = np.asarray(params["conv_in"]["kernel"])
    np.testing.assert_array_equal(kernel, state_dict["input_blocks.0.0.weight"].transpose(2, 3, 1, 0))
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_what_was_assumed_is_on_the_card(tmp_path, state_dict):
    write_state_dict(tmp_path / "w.pt", state_dict)
    card = convert_weights.convert(tmp_path / "w.pt", tmp_path / "out", head_width=16, probe=False)
    assert card.image_shape == (16, 16, 3)
    assert any("assumed" in note for note in card.notes)


def test_mismatches_are_listed_side_by_side(tmp_path, state_dict):
    del state_dict["out.0.bias"]
    state_dict["middle_block.0.out_layers.3.weight"] = np.zeros((64, 64, 5, 5), np.float32)
    state_dict["extra.thing"] = np.zeros(7, np.float32)
    write_state_dict(tmp_path / "w.pt", state_dict)
    with pytest.raises(ValueError) as error:
        convert_weights.convert(tmp_path / "w.pt", tmp_path / "out", head_width=16)
    message = str(error.value)
    assert "1 missing, 1 unexpected, 1 mis-shaped" in message
    assert "missing     out.0.bias: wanted (32,)" in message
    assert "unexpected  extra.thing: has (7,)" in message
    assert "middle_block.0.out_layers.3.weight: has (64, 64, 5, 5), wanted (64, 64, 3, 3)" in message
    assert not (tmp_path / "out").exists()


def test_conversion_refuses_what_it_cannot_do(tmp_path, state_dict):
    write_state_dict(tmp_path / "w.pt", state_dict)
    write_state_dict(tmp_path / "other.pt", {"a.weight": np.zeros((2, 2), np.float32)})
    near = {f"down_blocks.0.resnets.{i}.conv1.weight": np.zeros((2, 2), np.float32) for i in range(2)}
    write_state_dict(tmp_path / "near.pt", near)
    poisoned = {**state_dict, "out.2.bias": np.full(6, np.nan, np.float32)}
    write_state_dict(tmp_path / "nan.pt", poisoned)
    (tmp_path / "there").mkdir()
    cases: list[tuple[str, dict[str, Any], Any, str]] = [
        ("w.pt", {"head_width": 48}, ValueError, "--head-width"),
        ("w.pt", {"head_width": 16, "image_size": 33}, ValueError, "multiple of 2"),
        ("w.pt", {"head_width": 16, "attention_order": "old"}, ValueError, "legacy or new"),
        ("w.pt", {"head_width": 16, "dtype": "int8"}, ValueError, "float32 or int16"),
        ("other.pt", {}, ValueError, "no known network"),
        ("near.pt", {}, ValueError, r"nearest is diffusers' UNet2DModel, whose names have .*down_blocks.* is missing"),
        ("nan.pt", {"head_width": 16}, ValueError, "NaN"),
    ]
    for source, options, error, message in cases:
        with pytest.raises(error, match=message):
            convert_weights.convert(tmp_path / source, tmp_path / "out", **options)
    with pytest.raises(FileExistsError, match="exists already"):
        convert_weights.convert(tmp_path / "w.pt", tmp_path / "there", head_width=16)


@pytest.mark.parametrize("protocol", range(2, 6))
def test_plain_pickles_of_nested_arrays_are_read(tmp_path, protocol):
    arrays = {
        "kernel": np.arange(12, dtype=np.float32).reshape(3, 4),
        "fortran": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
        "big_endian": np.arange(3, dtype=">i2"),
        "brain": np.asarray([1, -2], ml_dtypes.bfloat16),
        "scalar": np.array(5, np.int64),
        "empty": np.zeros((0, 3), np.float16),
    }
    tree = {"params": {"layer": arrays, "twice": {"kernel": arrays["kernel"]}}, "step": 3}
    (tmp_path / "weights.ckpt").write_bytes(pickle.dumps(tree, protocol))
    read = read_tensors(tmp_path / "weights.ckpt")
    assert list(read) == [f"params.layer.{name}" for name in arrays] + ["params.twice.kernel"]
    for name, array in arrays.items():
        np.testing.assert_array_equal(read[f"params.layer.{name}"], array)
        assert read[f"params.layer.{name}"].dtype == array.dtype


def test_plain_pickles_of_anything_else_are_refused(tmp_path):
    words, things = np.asarray(["a", "b"]), np.asarray([{}, None], dtype=object)
    for name, tree in {"words": words, "things": things}.items():
        (tmp_path / "w.ckpt").write_bytes(pickle.dumps({name: tree}))
        with pytest.raises(ValueError, match="something else than numbers"):
            read_tensors(tmp_path / "w.ckpt")
    (tmp_path / "w.ckpt").write_bytes(pickle.dumps({"w": np.ones(3), "when": datetime.date(2026, 1, 1)}))
    with pytest.raises(ValueError, match=r"wants to call datetime\.date"):
        read_tensors(tmp_path / "w.ckpt")
