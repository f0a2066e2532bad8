"""Cards and weights of strangers: an entry of another type or size is one line, and only what is listed is loaded."""

import json
import re
import shutil
import struct

import jax
import numpy as np
import pytest
from budget import MEBIBYTES, SECONDS, Meter
from hostile import refused, survived
from safetensors.numpy import load_file, save_file
from weights import save_tiny_prior

import ddiff_jax as dd
from convert_weights.torch_file import read_contents
from ddiff_jax import checkpoint
from ddiff_jax.card import Card, parse_card
from ddiff_jax.checkpoint import file_hash, load_prior

pytestmark = pytest.mark.once

FIELDS = {"model_channels": 32, "channel_mult": (1,), "attention_levels": (), "head_width": 32, "out_channels": 3}


@pytest.fixture(scope="module")
def meter():
    found = Meter()
    yield found
    found.close()


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Write a prior of one level."""
    folder = tmp_path_factory.mktemp("prior") / "prior"
    module = checkpoint.build_module("adm_unet", FIELDS)
    params = jax.tree.map(lambda leaf: np.ones(leaf.shape, np.float32), checkpoint.abstract_params(module))
    schedule = {"name": "linear", "num_timesteps": 10, "beta_start": 0.1, "beta_end": 0.2}
    card = Card("adm_unet", {**FIELDS}, (8, 8, 3), schedule, "int16", 1, {"file": "x"}, "free", "eps")
    return checkpoint.save_weights(folder, params, card)


@pytest.fixture
def folder(tmp_path, whole):
    return shutil.copytree(whole, tmp_path / "prior")


def change(folder, **changes):
    path = folder / "card.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def load(folder):
    """Read the card, and build and load the network if it lets us."""
    return load_prior(folder)


WRONG = {
    "null": None,
    "true": True,
    "text": "x" * 2000,
    "list": [1, "a", None],
    "nested": [[[]]],
    "mapping": {"a": {"b": []}},
    "zero": 0,
    "negative": -1,
    "huge": 10**9,
    "digits": 10**4000,
    "fraction": 0.5,
    "NaN": float("nan"),
    "infinity": float("inf"),
    "control": "\x1b[2J\n\u202e",
}
# Texts for people may be any, and what says nothing of the numbers may be of any size.
ALLOWED = {
    *((field, value) for field in ("licence", "family") for value in ("text", "control")),
    ("clip", "true"),
    *((field, "zero") for field in ("num_parameters", "linear_rank")),
    *(("num_parameters", "huge"),),
    *(("sigma_data", value) for value in ("fraction",)),
}
TOP = [field for field in Card.__dataclass_fields__ if field not in ("notes", "source")]


@pytest.mark.parametrize("value", WRONG)
@pytest.mark.parametrize("field", TOP)
def test_entries_of_another_type_or_size(folder, field, value):
    change(folder, **{field: WRONG[value]})
    if (field, value) in ALLOWED:
        load_prior(folder)
    else:
        refused(load, folder)


@pytest.mark.parametrize("field", ["notes", "source"])
@pytest.mark.parametrize("value", ["null", "text", "huge", "NaN", "nested"])
def test_entries_for_people(folder, field, value):
    change(folder, **{field: WRONG[value]})
    refused(load, folder)


ARCHITECTURE = [
    field for field in checkpoint.build_module("adm_unet", {}).__dataclass_fields__ if field not in ("name", "parent")
]


@pytest.mark.parametrize("value", ["null", "text", "list", "mapping", "huge", "digits", "NaN", "negative"])
@pytest.mark.parametrize("field", ARCHITECTURE)
def test_architectures(folder, field, value):
    change(folder, architecture={**FIELDS, field: WRONG[value]})
    survived(load, folder)


SCHEDULES = [
    {"name": "linear", "num_timesteps": 10**9},
    {"name": "linear", "num_timesteps": -1},
    {"name": "linear", "num_timesteps": 0},
    {"name": "cosine", "num_timesteps": 10**12},
    {"name": "cosine", "num_timesteps": 2.5},
    {"name": "scaled_linear", "num_timesteps": 10**8},
    {"name": "linear", "beta_start": 10**400},
    {"name": "linear", "beta_end": float("nan")},
    {"name": "linear", "beta_start": float("-inf")},
    {"name": "linear", "time_scale": 0},
    {"name": "linear", "time_scale": 1e300},
    {"name": "table", "alpha_bar": []},
    {"name": "table", "alpha_bar": [0.5, float("nan")]},
    {"name": "table", "alpha_bar": "0.5"},
    {"name": "table", "alpha_bar": [0.5] * 100},
    {"name": "edm", "num_levels": 10**9},
    {"name": "edm", "sigma_min": -1},
    {"name": "flow", "num_levels": 10**30},
    {"name": "flow", "s_max": 2},
    {"name": ["linear"]},
    {"name": "__class__"},
    {},
]


@pytest.mark.parametrize("schedule", SCHEDULES, ids=range(len(SCHEDULES)))
def test_schedules(folder, schedule):
    change(folder, schedule=schedule)
    refused(load, folder)


SHAPES = [
    [10**9, 10**9, 3],
    [2**20, 2**20, 3],
    [0, 8, 3],
    [8, -8, 3],
    [8, 8],
    [8, 8, 3, 1],
    [8.0, 8, 3],
    [True, 8, 3],
    ["8", 8, 3],
    [8, 8, 2],
    [8, 8, None],
    [],
]


@pytest.mark.parametrize("shape", SHAPES, ids=map(str, SHAPES))
def test_image_shapes(folder, shape):
    change(folder, image_shape=shape)
    refused(load, folder)


LARGE = {
    "many blocks": {"num_res_blocks": 10**5},
    "blocks within the limit of numbers": {"num_res_blocks": 2**20},
    "many levels": {"channel_mult": [1] * 64},
    "more levels": {"channel_mult": [1] * 5000},
    "wide": {"model_channels": 2**15},
    "wider": {"model_channels": 2**20},
    "many classes": {"num_classes": 2**20},
    "wide levels": {"channel_mult": [1, 2**20]},
    "blocks and levels": {"channel_mult": [1] * 12, "num_res_blocks": 12},
    "as many as are built": {"channel_mult": [1, 1, 1, 1], "num_res_blocks": 6},
}


@pytest.mark.parametrize("case", LARGE)
def test_architectures_without_end(folder, meter, case):
    change(folder, architecture={**FIELDS, **LARGE[case]})
    cost = meter.measure("ddiff_jax.checkpoint:load_prior", folder)
    assert cost.raised == "ValueError", cost
    assert len(cost.message.splitlines()) == 1
    assert cost.mebibytes < MEBIBYTES
    # Building a network of the largest size that is built takes as long as a real one does.
    assert cost.seconds < (2 * SECONDS if case == "as many as are built" else SECONDS), cost


TEXTS = {
    "brackets": "[" * 100_000,
    "mappings": '{"a":' * 100_000,
    "digits": '{"format": ' + "9" * 100_000 + "}",
    "a long format": json.dumps({"format": "x" * 1_000_000}),
    "a long key": json.dumps({"format": 2, "x" * 1_000_000: 1}),
    "many keys": json.dumps({"format": 2, **{str(i): i for i in range(100_000)}}),
    "too long": json.dumps({"format": 2, "notes": ["x" * 5_000_000]}),
    "many lists": json.dumps({"format": 2, "notes": [[]] * 1_000_000}),
    "bytes": "\udcff",
    "nothing": "",
    "a constant": '{"format": NaN}',
}


@pytest.mark.parametrize("text", TEXTS)
def test_texts_that_are_no_cards(folder, meter, text):
    (folder / "card.json").write_bytes(TEXTS[text].encode("utf-8", "surrogateescape"))
    refused(load, folder)
    cost = meter.measure("ddiff_jax.checkpoint:read_card", folder)
    assert cost.seconds < SECONDS
    assert cost.mebibytes < MEBIBYTES


NAMES = ["../w", "/w", "a/../w", "./w", "a//b", "a\\b", "", ".", "..", "w\0", "weights.safetensors/", "C:\\w", "~/../w"]


@pytest.mark.parametrize("name", NAMES)
def test_no_file_outside_of_the_folder_is_listed(folder, name):
    files = json.loads((folder / "card.json").read_text())["files"]
    change(folder, files={**files, name: "0" * 64})
    refused(load, folder)


def test_a_changed_file_that_is_not_listed_is_not_loaded(tmp_path):
    folder = save_tiny_prior(tmp_path / "prior")
    files = json.loads((folder / "card.json").read_text())["files"]
    for name in files:
        change(folder, files={other: digest for other, digest in files.items() if other != name})
        data = (folder / name).read_bytes()
        (folder / name).write_bytes(data[:-1] + bytes([data[-1] ^ 1]) if data else b"x")
        refused(load, folder)
        (folder / name).write_bytes(data)


@pytest.mark.parametrize("what", ["file", "relative", "folder"])
def test_links_out_of_the_folder_are_not_followed(tmp_path, folder, what):
    (tmp_path / "elsewhere").mkdir()
    weights = folder / "weights.safetensors"
    if what == "folder":
        (folder / "deep").symlink_to(tmp_path / "elsewhere")
        shutil.move(weights, tmp_path / "elsewhere" / "w")
        files = json.loads((folder / "card.json").read_text())["files"]
        change(folder, files={"deep/w": next(iter(files.values()))})
    else:
        moved = tmp_path / "elsewhere" / "w"
        shutil.move(weights, moved)
        weights.symlink_to(moved if what == "file" else "../elsewhere/w")
    refused(load, folder, "is a link out of the folder")


# What is in a file whose hash is right


def rewrite(folder, tensors):
    save_file(tensors, folder / "weights.safetensors")
    change(folder, files={"weights.safetensors": file_hash(folder / "weights.safetensors")})


KERNEL = "conv_in/kernel"
WEIGHTS = {
    "a scale that broadcasts": lambda t: t | {f"scale of {KERNEL}": np.ones((3, 3, 3, 32), np.float32)},
    "a scale of one axis": lambda t: t | {f"scale of {KERNEL}": np.ones(32, np.float32)},
    "columns and rows": lambda t: t | {KERNEL: t[KERNEL][..., :1]},
    "no scale": lambda t: {k: v for k, v in t.items() if k != f"scale of {KERNEL}"},
    "scale of whole numbers": lambda t: t | {f"scale of {KERNEL}": np.ones((3, 3, 1, 32), np.int32)},
    "float64": lambda t: t | {"conv_in/bias": np.ones(32)},
    "booleans": lambda t: t | {"conv_in/bias": np.ones(32, bool)},
    "float16": lambda t: t | {KERNEL: t[KERNEL].astype(np.float16)},
    "one missing": lambda t: {k: v for k, v in t.items() if k != "conv_in/bias"},
    "one more": lambda t: t | {"more": np.ones(1, np.float32)},
    "none": lambda t: {},
}


@pytest.mark.parametrize("case", WEIGHTS)
def test_weights_that_are_not_those_of_the_card(folder, case):
    rewrite(folder, WEIGHTS[case](load_file(folder / "weights.safetensors")))
    refused(load, folder, "cannot be loaded as the network on its card")


def header(entries, data=b"", length=None):
    text = entries if isinstance(entries, bytes) else json.dumps(entries).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def tensor(dtype="F32", shape=(1,), offsets=(0, 4)):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)}


HEADERS = {
    "4 GB": header({"w": tensor(shape=(2**30,), offsets=(0, 2**32))}, bytes(4)),
    "overflow": header({"w": tensor(shape=(2**62, 4), offsets=(0, 0))}),
    "nothing, often": header({"w": tensor(shape=(0, 2**63), offsets=(0, 0))}),
    "negative": header({"w": tensor(shape=(-1,), offsets=(0, 4))}, bytes(4)),
    "backwards": header({"w": tensor(offsets=(4, 0))}, bytes(4)),
    "overlapping": header({"a": tensor(), "b": tensor()}, bytes(4)),
    "hole": header({"w": tensor(offsets=(4, 8))}, bytes(8)),
    "rest": header({"w": tensor()}, bytes(5)),
    "too few": header({"w": tensor()}, bytes(3)),
    "fractions": header({"w": tensor(shape=(1.0,))}, bytes(4)),
    "truth": header({"w": tensor(shape=(True,))}, bytes(4)),
    "text": header({"w": tensor(shape=("1",))}, bytes(4)),
    "no type": header({"w": tensor("F99")}, bytes(4)),
    "a type of half a byte": header({"w": tensor("F4", (8,))}, bytes(4)),
    "no mapping": header([]),
    "entries that are none": header({"w": 1}),
    "metadata alone": header({"__metadata__": {"a": "b"}}),
    "metadata that is none": header({"__metadata__": [1], "w": tensor()}, bytes(4)),
    "hundred axes": header({"w": tensor(shape=(1,) * 100)}, bytes(4)),
    "a long name": header({"w" * 5000: tensor()}, bytes(4)),
    "a control character": header({"\x1b[2J": tensor()}, bytes(4)),
    "many": header({str(i): tensor(shape=(0,), offsets=(0, 0)) for i in range(70_000)}),
    "deep": header(b"{" + b'"a":{' * 50_000),
    "digits": header(b'{"w": {"dtype": "F32", "shape": [' + b"9" * 9000 + b'], "data_offsets": [0, 4]}}', bytes(4)),
    "no text": header(b"{\xff\xfe}"),
    "a long header": header(b"{" + b" " * (5 << 20) + b"}"),
    "longer than the file": header({"w": tensor()}, bytes(4), 2**40),
    "longer than any": header({"w": tensor()}, bytes(4), 2**64 - 1),
    "twice": header(
        b'{"w": ' + json.dumps(tensor()).encode() + b', "w": ' + json.dumps(tensor()).encode() + b"}", bytes(4)
    ),
    "short": b"\1\0\0",
    "empty": b"",
}


@pytest.mark.parametrize("case", HEADERS)
def test_headers_of_safetensors(tmp_path, meter, case):
    path = tmp_path / "x.safetensors"
    path.write_bytes(HEADERS[case])
    survived(read_contents, path)
    if case not in ("many", "twice", "metadata alone"):
        refused(read_contents, path, "cannot be read as weights")
    cost = meter.measure("convert_weights.torch_file:read_contents", path)
    assert cost.seconds < SECONDS, cost
    assert cost.mebibytes < MEBIBYTES, cost


def test_zeros_that_compress_do_not_unfold(tmp_path, meter):
    fields = {"model_channels": 512, "channel_mult": (1, 4), "attention_levels": (), "head_width": 32}
    folder = save_tiny_prior(tmp_path / "prior")
    change(folder, architecture=fields)
    cost = meter.measure("ddiff_jax.checkpoint:load_prior", folder)
    found = re.search(r"(\d+) parameters, and the files hold", cost.message)
    assert found and int(found[1]) > 1e8
    assert cost.mebibytes < MEBIBYTES


def test_the_packaged_card_passes():
    card = checkpoint.read_card("faces64")
    assert parse_card(json.dumps({**card.__dict__, "image_shape": list(card.image_shape)})) == card
    assert dd.load_prior("faces64").image_shape == (64, 64, 3)
