"""Pictures, arrays, masks and kernels of strangers: what they declare is checked before anything is decoded."""

import io
import json
import os
import socket
import struct
import zipfile
import zlib

import numpy as np
import pytest
from budget import MEBIBYTES, SECONDS, Meter
from hostile import refused, survived
from pictures16 import chunk, save_png16
from PIL import Image

from convert_weights import schedules
from convert_weights.torch_file import read_contents
from ddiff_jax import files, image_files, limits, pictures, stencils
from ddiff_jax.checkpoint import load_prior
from ddiff_jax.image_files import load_array, read, read_array
from ddiff_jax.metrics import load_lpips

READ = "ddiff_jax.image_files:read_picture"
SIDE = 13_000  # squared is what Pillow refuses; times a few bytes is what nobody has


@pytest.fixture(scope="module")
def meter():
    found = Meter()
    yield found
    found.close()


def within(cost):
    return cost.seconds < SECONDS and cost.mebibytes < MEBIBYTES


def png(width, height, bits=1, kind=0, rows=None, *before):
    """Make a PNG of zeros, of a declared size, that holds so many rows."""
    channels = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}[kind]
    row = bytes(1 + (width * bits * channels + 7) // 8)
    packer = zlib.compressobj(9)
    data = b"".join(packer.compress(row) for _ in range(height if rows is None else rows)) + packer.flush()
    head = struct.pack(">IIBBBBB", width, height, bits, kind, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + b"".join((chunk(b"IHDR", head), *before, chunk(b"IDAT", data), chunk(b"IEND", b"")))


def encoded(form, side=SIDE, mode="L", **options):
    stream = io.BytesIO()
    Image.new(mode, (side, side)).save(stream, form, **options)
    return stream.getvalue()


def patched(data, old, new):
    assert data.count(old) >= 1
    return data.replace(old, new)


def scans(count):
    """Make a progressive JPEG that goes over the same picture again and again."""
    data = encoded("JPEG", 512, "RGB", progressive=True)
    start = data.index(b"\xff\xda")
    end = data.index(b"\xff", start + 2)
    while data[end + 1] == 0:
        end = data.index(b"\xff", end + 2)
    return data[:end] + data[start:end] * count + data[end:]


def icon(side):
    inner = png(side, side)
    entry = struct.pack("<BBBBHHII", 16, 16, 0, 0, 1, 1, len(inner), 22)
    return struct.pack("<HHH", 0, 1, 1) + entry + inner


def dds(side):
    head = struct.pack("<7I44x", 124, 0x1007, side, side, side * 3, 0, 0)
    return b"DDS " + head + struct.pack("<8I", 32, 0x40, 0, 24, 0xFF0000, 0xFF00, 0xFF, 0) + bytes(20)


def fits():
    import gzip

    cards = {"XTENSION": "'BINTABLE'", "BITPIX": 8, "NAXIS": 2, "NAXIS1": 8, "NAXIS2": 1, "PCOUNT": 0, "GCOUNT": 1}
    cards |= {"ZIMAGE": "T", "ZCMPTYPE": "'GZIP_1  '", "ZBITPIX": 8, "ZNAXIS": 2, "ZNAXIS1": 8, "ZNAXIS2": 8}
    first = {"SIMPLE": "T", "BITPIX": 8, "NAXIS": 0}

    def block(values):
        return b"".join(f"{k:<8}= {v:>20}".encode().ljust(80) for k, v in values.items()) + b"END".ljust(80)

    data = gzip.compress(bytes(1 << 28))
    return block(first).ljust(2880) + block(cards).ljust(2880) + bytes(8) + data


BOMBS = {
    "1 bit PNG.png": lambda: png(170_000, 1000),
    "PNG of 6 GB.png": lambda: png(2**31 - 1, 2**31 - 1, rows=1),
    "PNG as wide as it goes.png": lambda: png(2**31 - 1, 1, rows=1),
    "PNG as high as it goes.png": lambda: png(1, 2**31 - 1, rows=1),
    "16 bits.png": lambda: png(4096, 4096, 16, 2, rows=1),
    "16 bits and alpha.png": lambda: png(3500, 3500, 16, 6, rows=1),
    "palette.png": lambda: png(SIDE, SIDE, 8, 3, 1, chunk(b"PLTE", bytes(768))),
    "transparent.png": lambda: png(SIDE, SIDE, 8, 0, 1, chunk(b"tRNS", b"\0\0")),
    "GIF.gif": lambda: encoded("GIF", 8)[:6] + b"\xff\xff\xff\xff" + encoded("GIF", 8)[10:],
    "TIFF.tif": lambda: encoded("TIFF", SIDE, "1", compression="group4"),
    "TIFF, deflated.tif": lambda: encoded("TIFF", 6000, compression="tiff_deflate"),
    "JPEG.jpg": lambda: encoded("JPEG", 8000),
    "scans.jpg": lambda: scans(5000),
    "WebP.webp": lambda: encoded("WEBP", 5000, "RGB", lossless=True),
    "JPEG 2000.jp2": lambda: encoded("JPEG2000", 4000),
    "BMP.bmp": lambda: patched(encoded("BMP", 8), struct.pack("<ii", 8, 8), struct.pack("<ii", 2**31 - 1, 2**31 - 1)),
    "BMP in runs.bmp": lambda: encoded("BMP", 8)[:18] + struct.pack("<iiHHI", 4000, 4000, 1, 8, 1) + bytes(2000),
    "icon.ico": lambda: icon(SIDE),
    "DDS.dds": lambda: dds(60_000),
    "DDS, slowly.dds": lambda: dds(4096),
    "PPM.ppm": lambda: b"P6 99999 99999 255\n",
    "PPM, slowly.ppm": lambda: b"P3 4096 4096 255\n" + b"0 " * 100,
    "PGM of 12 bits.pgm": lambda: b"P5 3000 3000 4095\n" + bytes(100),
    "TGA.tga": lambda: struct.pack("<BBBHHBHHHHBB", 0, 0, 10, 0, 0, 0, 0, 0, 65535, 65535, 24, 0) + b"\xff\0\0\0" * 100,
    "PCX.pcx": lambda: b"\x0a\5\1\x08" + struct.pack("<6H", 0, 0, 65534, 65534, 1, 1) + bytes(49) + b"\3" + bytes(62),
    "SGI.sgi": lambda: struct.pack(">HBBHHHHII", 474, 1, 1, 3, 65535, 65535, 3, 0, 255) + bytes(492),
    "QOI.qoi": lambda: b"qoif" + struct.pack(">IIBB", 20_000, 20_000, 3, 0) + b"\xfd" * 100,
    "FITS.fits": lambda: fits(),
    "XBM.xbm": lambda: b"#define a_width 60000\n#define a_height 60000\nstatic char a_bits[] = {\n0x00 };\n",
}


@pytest.mark.parametrize("name", BOMBS)
def test_pictures_that_unfold_are_refused(tmp_path, meter, name):
    (tmp_path / name).write_bytes(BOMBS[name]())
    cost = meter.measure(READ, tmp_path / name)
    assert cost.raised == "Unusable", cost
    assert name in cost.message
    assert len(cost.message.splitlines()) == 1
    assert within(cost), cost


LARGE = {
    "x.png": ("RGB", 4096, {}),
    "alpha.png": ("RGBA", 4096, {}),
    "bits.png": ("1", 4096, {}),
    "x.jpg": ("RGB", 4096, {}),
    "x.tif": ("CMYK", 4096, {"compression": "tiff_lzw"}),
    "x.webp": ("RGB", 2896, {}),
    "wide.png": ("I;16", 2896, {}),
    "x.msp": ("1", 1024, {}),
}


@pytest.mark.parametrize("name", LARGE)
def test_the_largest_pictures_that_are_read_stay_within_the_budget(tmp_path, meter, name):
    mode, side, options = LARGE[name]
    Image.new(mode, (side, side)).save(tmp_path / name, **options)
    cost = meter.measure(READ, tmp_path / name)
    assert not cost.raised, cost
    assert within(cost), cost


@pytest.mark.parametrize("function", ["read_mask", "read_kernel"])
def test_the_largest_masks_and_kernels_do_so_too(tmp_path, meter, function):
    levels = np.zeros((2048, 2048), np.uint8)
    levels[::2] = 255
    Image.fromarray(levels).save(tmp_path / "x.png")
    np.save(tmp_path / "x.npy", (levels > 0).astype(np.float32))
    Image.new("RGB", (4096, 4096)).save(tmp_path / "large.png")
    np.save(tmp_path / "large.npy", np.ones((3000, 3000), np.float32))
    for name in ("x.png", "x.npy", "large.png", "large.npy"):
        cost = meter.measure(f"ddiff_jax.stencils:{function}", tmp_path / name)
        assert within(cost), cost
        assert ("large" in cost.message) == ("large" in name)


def test_the_limit_is_an_environment_variable(tmp_path, monkeypatch):
    Image.new("L", (300, 300)).save(tmp_path / "x.png")
    np.save(tmp_path / "x.npy", np.zeros((400, 400), np.float32))
    for name in ("x.png", "x.npy"):
        read(tmp_path / name)
        monkeypatch.setenv(limits.VARIABLE, "1")
        assert "set DDIFF_MAX_MIB=2" in refused(read, tmp_path / name, "takes 2 MiB to read, and 1 are allowed")
        monkeypatch.setenv(limits.VARIABLE, "2")
        read(tmp_path / name)
        monkeypatch.delenv(limits.VARIABLE)
    before = Image.MAX_IMAGE_PIXELS
    for wrong in ("0", "-1", "many", "1.5", "9" * 30, "\u0663"):
        monkeypatch.setenv(limits.VARIABLE, wrong)
        with pytest.raises(ValueError, match="DDIFF_MAX_MIB must be a whole number of MiB"):
            read(tmp_path / "x.png")
    assert before == Image.MAX_IMAGE_PIXELS


# Arrays


def npy(descr, shape, data=bytes(64), version=1, order=False):
    header = f"{{'descr': {descr!r}, 'fortran_order': {order}, 'shape': {shape}, }}\n".encode()
    return b"\x93NUMPY" + bytes((version, 0)) + struct.pack("<H" if version == 1 else "<I", len(header)) + header + data


ARRAYS = {
    "more than it holds": npy("<f8", "(9,)"),
    "a terabyte": npy("<f4", f"({2**38},)"),
    "a terabyte of two axes": npy("<f4", f"({2**19}, {2**19})"),
    "no multiple": npy("<f8", f"({2**64 + 1},)"),
    "overflows": npy("<f8", f"({2**32}, {2**32})"),
    "nothing, often": npy("<f8", f"(0, {2**62}, {2**62})"),
    "negative": npy("<f8", "(-1,)"),
    "twice negative": npy("<f8", "(-2, -4)"),
    "floats as lengths": npy("<f8", "(2.0,)"),
    "text as length": npy("<f8", "('a',)"),
    "no tuple": npy("<f8", "[2]"),
    "forty axes": npy("<f8", "(" + "1," * 40 + ")"),
    "hundred axes": npy("<f8", "(" + "1," * 100 + ")"),
    "objects": npy("|O", "(2,)"),
    "text": npy("<U16", "(1,)"),
    "nothing of a type": npy("|V0", f"({2**40},)"),
    "no letters": npy("<U0", f"({2**40},)"),
    "raw bytes": npy("|V64", "(1,)"),
    "letters of 2 GB": npy("|S2000000000", "(1,)"),
    "records": npy([("a", "<f8")], "(2,)"),
    "records of objects": npy([("a", "|O")], "(2,)"),
    "arrays in records": npy([("a", "<f8", (100000, 100000))], "(0,)"),
    "times": npy("<M8[s]", "(2,)"),
    "no type": npy("<q9", "(2,)"),
    "types without end": npy("<f8," * 2000, "(1,)"),
    "no magic": b"\x93NUMPX\1\0" + bytes(100),
    "version 9": npy("<f8", "(2,)", version=9),
    "version 2 with a long header": b"\x93NUMPY\2\0" + struct.pack("<I", 2**31) + bytes(100),
    "a header longer than the file": b"\x93NUMPY\1\0\xff\xff" + bytes(100),
    "no header": b"\x93NUMPY\1\0\0\0" + bytes(100),
    "code": b"\x93NUMPY\1\0\x20\0" + b"__import__('os').system('true')".ljust(32) + bytes(8),
    "brackets": b"\x93NUMPY\1\0\xe8\3" + b"(" * 1000 + bytes(8),
    "a number of nine thousand digits": b"\x93NUMPY\1\0\x28\x23" + b"9" * 9000 + bytes(8),
    "keys missing": b"\x93NUMPY\1\0\x12\0" + b"{'descr': '<f8'}  " + bytes(8),
    "keys unknown": npy("<f8", "(2,), 'x': 1"),
    "empty": b"",
    "one byte": b"\x93",
    "text file": b"1.0 2.0 3.0\n",
    "a pickle": b"\x80\x04cos\nsystem\n(S'true'\ntR.",
}


@pytest.mark.parametrize("reader", [load_array, read_array, stencils.read_mask, stencils.read_kernel])
@pytest.mark.parametrize("name", ARRAYS)
def test_arrays_hold_what_their_headers_declare(tmp_path, name, reader):
    (tmp_path / "x.npy").write_bytes(ARRAYS[name])
    refused(reader, tmp_path / "x.npy")


def archive(path, data, size=None, method=zipfile.ZIP_DEFLATED, name="y.npy"):
    with zipfile.ZipFile(path, "w", method) as file:
        file.writestr(name, data)
        if size is not None:
            file.filelist[0].file_size = size


ZEROS = bytes(1 << 28)
NPZ = {
    "deflated zeros": lambda path: archive(path, npy("<f4", f"({1 << 26},)", ZEROS)),
    "bzip2": lambda path: archive(path, npy("<f4", "(16,)"), method=zipfile.ZIP_BZIP2),
    "lzma": lambda path: archive(path, npy("<f4", "(16,)"), method=zipfile.ZIP_LZMA),
    "declares less": lambda path: archive(path, npy("<f4", f"({1 << 26},)", ZEROS), 300),
    "declares more": lambda path: archive(path, npy("<f4", f"({1 << 26},)"), 1 << 40),
    "objects": lambda path: archive(path, npy("|O", "(2,)")),
    "no array": lambda path: archive(path, b"text"),
    "empty": lambda path: archive(path, b""),
    "nothing": lambda path: zipfile.ZipFile(path, "w").close(),
    "two": lambda path: np.savez(path, a=np.ones(1), b=np.ones(1)),
    "a thousand": lambda path: np.savez(path, *[np.ones(1)] * 1000),
    "start alone": lambda path: path.write_bytes(b"PK\3\4"),
    "a wrong checksum": lambda path: (
        np.savez(path, y=np.arange(64.0)),
        path.write_bytes(path.read_bytes().replace(struct.pack("<d", 33.0), struct.pack("<d", 34.0))),
    ),
}


@pytest.mark.parametrize("name", NPZ)
def test_archives_of_arrays(tmp_path, meter, name):
    NPZ[name](tmp_path / "x.npz")
    cost = meter.measure("ddiff_jax.image_files:load_array", tmp_path / "x.npz")
    assert cost.raised == "Unusable", cost
    assert "x.npz" in cost.message
    assert len(cost.message) < 600
    assert within(cost), cost


# Whatever happens to a file on its way


FORMATS = [
    "PNG",
    "JPEG",
    "GIF",
    "TIFF",
    "WEBP",
    "BMP",
    "PPM",
    "TGA",
    "ICO",
    "PCX",
    "SGI",
    "JPEG2000",
    "AVIF",
    "DDS",
    "QOI",
]


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("part", ["half", "head", "tail", "zeros", "ones", "doubled"])
def test_damaged_pictures_are_one_line(tmp_path, form, part):
    if form not in Image.SAVE:
        pytest.skip(f"this Pillow does not write {form}")
    stream = io.BytesIO()
    rows = np.random.default_rng(3).integers(0, 255, (24, 24, 3)).astype(np.uint8)
    Image.fromarray(rows).save(stream, form)
    data, middle = stream.getvalue(), len(stream.getvalue()) // 2
    made = {
        "half": data[:middle],
        "head": data[:20],
        "tail": data[20:],
        "zeros": data[:middle] + bytes(len(data) - middle),
        "ones": data[:30] + b"\xff" * (len(data) - 30),
        "doubled": data[:middle] + data,
    }
    suffix = {"JPEG": "jpg", "JPEG2000": "jp2"}.get(form, form.lower())
    (tmp_path / f"x.{suffix}").write_bytes(made[part])
    survived(read, tmp_path / f"x.{suffix}")


EXIF = {
    "no TIFF": b"no TIFF header at all",
    "a loop": b"MM\0*\0\0\0\x08\0\0\0\0\0\x08",
    "a huge count": b"MM\0*\0\0\0\x08\0\1\x01\x12\0\3\xff\xff\xff\xff\0\0\0\0",
    "text as a turn": b"MM\0*\0\0\0\x08\0\1\x01\x12\0\2\0\0\0\2a\0\0\0\0\0\0\0",
    "many entries": b"MM\0*\0\0\0\x08\xff\xff",
    "turn 99": b"MM\0*\0\0\0\x08\0\1\x01\x12\0\3\0\0\0\1\0\x63\0\0\0\0\0\0",
    "empty": b"",
}


@pytest.mark.parametrize("exif", EXIF)
def test_exif_stops_nothing(tmp_path, exif):
    save_png16(tmp_path / "x.png", np.zeros((4, 4, 3), np.uint16), chunk(b"eXIf", EXIF[exif]))
    survived(read, tmp_path / "x.png")
    stream = io.BytesIO()
    Image.new("RGB", (8, 8)).save(stream, "JPEG")
    segment = b"Exif\0\0" + EXIF[exif]
    part = b"\xff\xe1" + struct.pack(">H", len(segment) + 2) + segment
    (tmp_path / "x.jpg").write_bytes(stream.getvalue()[:2] + part + stream.getvalue()[2:])
    survived(read, tmp_path / "x.jpg")


@pytest.mark.parametrize(
    "raised",
    [SyntaxError("odd"), MemoryError(), zlib.error("-3"), RecursionError(), OverflowError(), struct.error("x")],
)
def test_whatever_a_decoder_raises_is_taken(tmp_path, monkeypatch, raised):
    Image.new("L", (8, 8)).save(tmp_path / "x.png")
    np.save(tmp_path / "x.npy", np.zeros(3))

    def fail(*_, **__):
        raise raised

    monkeypatch.setattr(pictures.Pillow.Image, "getexif", fail)
    monkeypatch.setattr(image_files, "check_npy", fail)
    for reader in (read, stencils.read_mask):
        refused(reader, tmp_path / "x.png")
        refused(reader, tmp_path / "x.npy")


# What is no plain file


def schedule(path):
    return schedules.choose(None, None, noise_schedule=str(path))


READERS = {
    "picture": (read, "x.png"),
    "array": (read, "x.npy"),
    "archive": (read, "x.npz"),
    "mask": (stencils.read_mask, "x.png"),
    "mask array": (stencils.read_mask, "x.npy"),
    "kernel": (stencils.read_kernel, "x.png"),
    "weights": (read_contents, "x.pt"),
    "safetensors": (read_contents, "x.safetensors"),
    "index": (read_contents, "x.index.json"),
    "folder of weights": (lambda path: read_contents(path.parent), "x.ckpt"),
    "folder with an index": (lambda path: read_contents(path.parent), "x.index.json"),
    "part": (lambda path: read_contents(path.parent / "w-00001-of-00002.bin"), "x.index.json"),
    "card": (lambda path: load_prior(path.parent), "card.json"),
    "LPIPS": (load_lpips, "x.ckpt"),
    "schedule": (schedule, "x.npy"),
    "text": (files.read_text, "x.yaml"),
}


def socket_at(path):
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(path))


SPECIAL = {
    "a pipe": os.mkfifo,
    "a socket": socket_at,
    "a device": lambda path: path.symlink_to("/dev/zero"),
    "a folder": lambda path: path.mkdir(),
}


@pytest.mark.parametrize("kind", SPECIAL)
@pytest.mark.parametrize("reader", READERS)
def test_no_reader_opens_what_is_no_plain_file(tmp_path, monkeypatch, reader, kind):
    monkeypatch.chdir(tmp_path)  # the names of sockets must be short
    (tmp_path / "w-00001-of-00002.bin").write_bytes(b"")
    read_one, name = READERS[reader]
    if reader == "folder of weights":
        (tmp_path / "w-00001-of-00002.bin").unlink()
    SPECIAL[kind](tmp_path / name if kind != "a socket" else type(tmp_path)(name))
    opened = os.open

    def watched(path, *arguments, **keywords):
        assert not str(path).endswith(name), "opened"
        return opened(path, *arguments, **keywords)

    monkeypatch.setattr(os, "open", watched)
    with pytest.raises((ValueError, FileNotFoundError)) as error:
        read_one(tmp_path / name)
    assert len(str(error.value).splitlines()) == 1
    assert not isinstance(error.value, AssertionError)


def test_a_pipe_that_takes_the_place_of_a_file_is_not_waited_for(tmp_path, monkeypatch):
    path = tmp_path / "x.png"
    Image.new("L", (8, 8)).save(path)
    opened = os.open

    def swapped(name, *arguments, **keywords):
        path.unlink()
        os.mkfifo(path)
        return opened(name, *arguments, **keywords)

    monkeypatch.setattr(os, "open", swapped)
    refused(read, path, "is a pipe, not a file")


TEXTS = {
    "long": b"[" + b"1," * (limits.MOST_TEXT // 2) + b"1]",
    "no text": b"\xff\xfe{}",
    "brackets": b"[" * 200_000,
    "digits": b'{"weight_map": {"a": ' + b"9" * 100_000 + b"}}",
    "no mapping": b"[]",
    "numbers as files": b'{"weight_map": {"a": 1}}',
    "a list as a file": b'{"weight_map": {"a": ["b"]}}',
    "no file": b'{"weight_map": {"a": ""}}',
    "outside": b'{"weight_map": {"a": "../b"}}',
    "from the root": b'{"weight_map": {"a": "/etc/passwd"}}',
    "above": b'{"weight_map": {"a": ".."}}',
    "backslashes": b'{"weight_map": {"a": "..\\\\b"}}',
    "a zero": b'{"weight_map": {"a": "b\\u0000"}}',
    "a lone surrogate": b'{"weight_map": {"a": "b\\ud800.pt"}}',
    "many files": json.dumps({"weight_map": {str(i): f"{i}.pt" for i in range(2000)}}).encode(),
    "itself": b'{"weight_map": {"a": "x.index.json"}}',
}


@pytest.mark.parametrize("text", TEXTS)
def test_indices_of_parts(tmp_path, text):
    (tmp_path / "x.index.json").write_bytes(TEXTS[text])
    survived(read_contents, tmp_path / "x.index.json")
    with pytest.raises((ValueError, FileNotFoundError)):
        read_contents(tmp_path / "x.index.json")
