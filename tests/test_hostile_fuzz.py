"""Thousands of mutations of whole files, for every reader: each ends soon, well or in one line. Slow."""

import io
import json
import resource
import struct
import time
import zipfile
from pathlib import Path

import jax
import numpy as np
import pytest
from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st
from PIL import Image
from safetensors.numpy import save
from weights import Tensor, dumps, openai_shapes, synthetic, write_legacy, write_lpips_ckpt, write_zip

import convert_weights
from convert_weights.torch_file import read_contents
from ddiff_jax import checkpoint, stencils
from ddiff_jax.card import Card
from ddiff_jax.checkpoint import file_hash, load_prior
from ddiff_jax.image_files import read
from ddiff_jax.metrics import load_lpips

MUTATIONS = 2000  # of every reader
MEBIBYTES = 300  # by which the process may grow, of all mutations of a file
SECONDS = 3.0  # of the processor; the time of a network's shapes included

pytestmark = pytest.mark.slow


def network():
    shapes = openai_shapes(32, (1,), 1, (), inputs=1, outputs=1)
    tensors = synthetic(shapes)
    storages = {str(i): array for i, array in enumerate(tensors.values())}
    tree = {key: Tensor(str(i), array) for i, (key, array) in enumerate(tensors.items())}
    return tree, storages


def tree_and_storages():
    one = np.arange(6, dtype=np.float32).reshape(2, 3)
    return {"a": Tensor("0", one), "b": {"c": Tensor("0", one, shape=(3,), strides=(2,))}, "d": [1, "x"]}, {"0": one}


def torch_zip(path):
    write_zip(path, *tree_and_storages(), byteorder=b"little")


def torch_legacy(path):
    write_legacy(path, *tree_and_storages())


def torch_pickle(path):
    with zipfile.ZipFile(io.BytesIO(), "w"):
        path.write_bytes(dumps({"a": {"b": 1, "c": [1.5, None, (2,)]}}))


def numpy_pickle(path):
    import pickle

    path.write_bytes(pickle.dumps({"a": np.ones((2, 3), np.float32), "b": {"c": np.arange(3), "d": np.float64(2)}}, 4))


def safetensors_file(path):
    path.write_bytes(save({"a": np.ones((2, 3), np.float32), "b": np.arange(3)}))


def picture(form, mode="RGB", **options):
    def write(path):
        rows = np.random.default_rng(0).integers(0, 255, (9, 11, 3)).astype(np.uint8)
        Image.fromarray(rows).convert(mode).save(path, form, **options)

    return write


def wide_png(path):
    from pictures16 import save_png16

    save_png16(path, np.random.default_rng(0).integers(0, 65535, (5, 6, 4)).astype(np.uint16))


def wide_tiff(path):
    from pictures16 import save_tiff16

    save_tiff16(path, np.random.default_rng(0).integers(0, 65535, (5, 6, 3)).astype(np.uint16))


def array(path):
    np.save(path, np.linspace(-1, 1, 24, dtype=np.float32).reshape(4, 6))


def arrays(path):
    np.savez_compressed(path, y=np.linspace(-1, 1, 24), mask=np.ones(3))


def index(path):
    path.write_text(json.dumps({"metadata": {}, "weight_map": {"a": "x.pt", "b": "y.pt"}}))


def small_lpips(path):
    if not CACHED:
        write_lpips_ckpt(path, "alex")
        CACHED.append(path.read_bytes()[:20_000])
    path.write_bytes(CACHED[0])


CACHED: list[bytes] = []

FILES = {
    "torch zip": ("x.pt", torch_zip, read_contents),
    "torch legacy": ("x.pt", torch_legacy, read_contents),
    "pickle": ("x.pkl", torch_pickle, read_contents),
    "arrays in a pickle": ("x.ckpt", numpy_pickle, read_contents),
    "safetensors": ("x.safetensors", safetensors_file, read_contents),
    "index": ("x.index.json", index, read_contents),
    "LPIPS": ("x.ckpt", small_lpips, load_lpips),
    "PNG": ("x.png", picture("PNG"), read),
    "PNG of 16 bits": ("x.png", wide_png, read),
    "JPEG": ("x.jpg", picture("JPEG", progressive=True), read),
    "GIF": ("x.gif", picture("GIF", "P"), read),
    "TIFF": ("x.tif", picture("TIFF", compression="tiff_lzw"), read),
    "TIFF of 16 bits": ("x.tif", wide_tiff, read),
    "WebP": ("x.webp", picture("WEBP"), read),
    "JPEG 2000": ("x.jp2", picture("JPEG2000"), read),
    "AVIF": ("x.avif", picture("AVIF"), read),
    "BMP": ("x.bmp", picture("BMP"), read),
    "TGA": ("x.tga", picture("TGA", compression="tga_rle"), read),
    "DDS": ("x.dds", picture("DDS"), read),
    "ICO": ("x.ico", picture("ICO"), read),
    "SGI": ("x.sgi", picture("SGI"), read),
    "PCX": ("x.pcx", picture("PCX"), read),
    "PPM": ("x.ppm", picture("PPM"), read),
    "QOI": ("x.qoi", picture("QOI"), read),
    "BLP": ("x.blp", picture("BLP", "P"), read),
    "array": ("x.npy", array, read),
    "arrays": ("x.npz", arrays, read),
    "mask": ("x.png", picture("PNG", "1"), stencils.read_mask),
    "mask array": ("x.npy", array, stencils.read_mask),
    "kernel": ("x.npy", array, stencils.read_kernel),
}

SPECIAL = [b"\0" * 4, b"\xff" * 4, b"\x7f\xff\xff\xff", b"\x80\0\0\0", b"\xff\xff\xff\x7f", b"\1\0\0\0", b"\xff" * 8]
EDITS = st.lists(
    st.tuples(
        st.sampled_from(["flip", "set", "special", "cut", "drop", "double", "insert"]),
        st.floats(0, 1, exclude_max=True),
        st.integers(0, 255),
    ),
    min_size=1,
    max_size=6,
)


def mutate(data, edits):
    """Change a file in a few places."""
    data = bytearray(data)
    for kind, share, value in edits:
        place = int(share * len(data))
        if kind == "flip" and data:
            data[place] ^= 1 << value % 8
        elif kind == "set" and data:
            data[place] = value
        elif kind == "special":
            new = SPECIAL[value % len(SPECIAL)]
            data[place : place + len(new)] = new
        elif kind == "cut":
            del data[place:]
        elif kind == "drop":
            del data[place : place + value]
        elif kind == "double":
            data[place:place] = data[place : place + value]
        elif kind == "insert":
            data[place:place] = bytes([value]) * (1 + value % 9)
    return bytes(data)


def check(function, *arguments):
    start = time.process_time()
    try:
        function(*arguments)
    except (ValueError, FileNotFoundError) as error:
        assert type(error).__name__ in ("ValueError", "Unusable", "FileNotFoundError", "UnknownName", "TooLarge")
        assert len(str(error)) < 4000
        if "do not fit the" not in str(error):  # which lists the keys line by line
            assert len(str(error).splitlines()) == 1, str(error)
    assert time.process_time() - start < SECONDS


fuzzed = settings(
    max_examples=MUTATIONS,
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


@pytest.mark.parametrize("name", FILES)
def test_mutations_of_files(tmp_path, name):
    file, write, reader = FILES[name]
    path = tmp_path / file
    write(path)
    whole = path.read_bytes()
    reader(path) if name not in ("index", "mask array", "LPIPS") else None
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024

    @seed(0)
    @fuzzed
    @given(EDITS)
    def mutated(edits):
        path.write_bytes(mutate(whole, edits))
        check(reader, path)

    mutated()
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024 - before < MEBIBYTES


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | st.text(max_size=20) | st.just("linear"),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=8,
)
SMALL = {"model_channels": 32, "channel_mult": [1], "attention_levels": [], "head_width": 32, "out_channels": 3}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    folder = tmp_path_factory.mktemp("priors")
    fields = {**SMALL, "channel_mult": (1,), "attention_levels": ()}
    params = jax.tree.map(
        lambda leaf: np.ones(leaf.shape, np.float32),
        checkpoint.abstract_params(checkpoint.build_module("adm_unet", fields)),
    )
    card = Card("adm_unet", fields, (8, 8, 3), {"name": "linear"}, "int16", 1, {}, "free", "eps")
    checkpoint.save_weights(folder / "packed", params, card)
    return folder


PLACES = st.sampled_from(
    [(field,) for field in Card.__dataclass_fields__]
    + [("architecture", field) for field in (*SMALL, "num_res_blocks", "num_heads", "num_classes", "new")]
    + [("schedule", field) for field in ("name", "num_timesteps", "beta_start", "alpha_bar", "time_scale", "s_max")]
)


def test_mutations_of_entries_of_cards(folders):
    path = folders / "packed" / "card.json"
    whole = json.loads(path.read_text())

    @seed(0)
    @fuzzed
    @given(st.lists(st.tuples(PLACES, JSON), min_size=1, max_size=2))
    def mutated(changes):
        values = json.loads(json.dumps(whole))
        for (first, *rest), value in changes:
            if rest and isinstance(values.get(first), dict):
                values[first][rest[0]] = value
            else:
                values[first] = value
        path.write_text(json.dumps(values))
        check(load_prior, path.parent)

    mutated()
    path.write_text(json.dumps(whole))


def test_mutations_of_texts_of_cards(folders):
    path = folders / "packed" / "card.json"
    whole = path.read_bytes()

    @seed(0)
    @fuzzed
    @given(EDITS)
    def mutated(edits):
        path.write_bytes(mutate(whole, edits))
        check(load_prior, path.parent)

    mutated()
    path.write_bytes(whole)


def test_mutations_of_packed_weights_whose_hash_is_right(folders, monkeypatch):
    module = checkpoint.build_module("adm_unet", SMALL)
    wanted = checkpoint.abstract_params(module)
    monkeypatch.setattr(checkpoint, "abstract_params", lambda _: wanted)  # that of the same card, every time
    path = folders / "packed" / "weights.safetensors"
    card = path.with_name("card.json")
    whole, values = path.read_bytes(), json.loads(card.read_text())
    (length,) = struct.unpack("<Q", whole[:8])

    @seed(0)
    @fuzzed
    @given(EDITS)
    def mutated(edits):
        path.write_bytes(mutate(whole[: 8 + length], edits) + whole[8 + length :])
        card.write_text(json.dumps({**values, "files": {path.name: file_hash(path)}}))
        check(load_prior, path.parent)

    mutated()
    path.write_bytes(whole)
    card.write_text(json.dumps(values))


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # what threads of Orbax find later
def test_mutations_of_orbax_weights(tmp_path):
    params = {"a": {"kernel": np.ones((3, 4), np.float32)}, "b": np.arange(5, dtype=np.float32)}
    checkpoint.orbax().save(tmp_path / "weights", params)
    wanted = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), params)
    whole = {path: path.read_bytes() for path in sorted((tmp_path / "weights").rglob("*")) if path.is_file()}
    checkpoint._load_orbax(tmp_path / "weights", lambda _: wanted)

    @seed(0)
    @fuzzed
    @given(st.sampled_from(list(whole)), EDITS)
    def mutated(path, edits):
        path.write_bytes(mutate(whole[path], edits))
        try:
            check(checkpoint._load_orbax, tmp_path / "weights", lambda _: wanted)
        finally:
            path.write_bytes(whole[path])

    mutated()


SHAPES = openai_shapes(32, (1, 1), 1, (1,), inputs=3, outputs=3)


@seed(0)
@fuzzed
@given(
    st.lists(
        st.tuples(
            st.sampled_from(sorted(SHAPES)),
            st.sampled_from(["remove", "rename", "shape", "number"]),
            st.lists(st.integers(0, 5), max_size=5),
            st.integers(0, 10**15),
        ),
        min_size=1,
        max_size=3,
    )
)
def test_mutations_of_names_and_shapes_of_networks(changes):
    shapes = dict(SHAPES)
    for name, kind, shape, number in changes:
        old = shapes.pop(name, ())
        if kind == "rename":
            shapes[name + str(number)] = old
        elif kind == "shape":
            shapes[name] = tuple(shape)
        elif kind == "number":
            shapes["".join(str(number) if c.isdigit() else c for c in name)] = old
    check(convert_weights.plan, shapes)


def test_what_is_mutated_is_whole(tmp_path):
    for file, write, _ in FILES.values():
        write(Path(tmp_path / file))
    tree, storages = network()
    write_zip(tmp_path / "w.pt", tree, storages)
    assert convert_weights.convert(tmp_path / "w.pt", tmp_path / "out", num_heads=1, probe=False).kind == "adm_unet"
