"""Ways to write pictures of 16 bits, which Pillow reads but cannot write."""

import struct
import zlib

import numpy as np

PNG_COLOURS = {1: 0, 2: 4, 3: 2, 4: 6}  # channels to colour type


def chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def save_png16(path, values, *more):
    """Write [H, W, C] as PNG with the filter Sub, which the decoder must undo over pixels of 2 C bytes."""
    height, width, channels = values.shape
    header = struct.pack(">IIBBBBB", width, height, 16, PNG_COLOURS[channels], 0, 0, 0)
    raw = values.astype(">u2").view(np.uint8).reshape(height, width, 2 * channels)
    filtered = np.diff(raw, axis=1, prepend=np.uint8(0))
    rows = b"".join(b"\1" + row.tobytes() for row in filtered)
    body = chunk(b"IHDR", header) + b"".join(more) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + body)


def save_tiff16(path, values, *, photometric=2, order="<", planar=False, extra=None, bits=16):
    """Write [H, W, C] as TIFF without compression."""
    height, width, channels = values.shape
    arranged = np.moveaxis(values, -1, 0) if planar else values
    data = arranged.astype(f"{order}u2").tobytes()
    bands = channels if planar else 1
    entries = {
        **{256: [width], 257: [height], 258: [bits] * channels, 259: [1], 262: [photometric]},
        **{277: [channels], 278: [height], 284: [2 if planar else 1]},
        **({} if extra is None else {338: [extra]}),
    }
    size = len(data) // bands
    longs = {273: [8 + i * size for i in range(bands)], 279: [size] * bands}
    directory, overflow = b"", b""
    start = 8 + len(data)
    count = len(entries) + len(longs)
    after = start + 2 + 12 * count + 4
    for tag in sorted({**entries, **longs}):
        kind, form, found = (4, "I", longs[tag]) if tag in longs else (3, "H", entries[tag])
        packed = struct.pack(f"{order}{len(found)}{form}", *found)
        if len(packed) > 4:
            place = struct.pack(f"{order}I", after + len(overflow))
            overflow += packed
        else:
            place = packed.ljust(4, b"\0")
        directory += struct.pack(f"{order}HHI", tag, kind, len(found)) + place
    mark = b"II" if order == "<" else b"MM"
    head = mark + struct.pack(f"{order}HI", 42, start)
    body = struct.pack(f"{order}H", count) + directory + struct.pack(f"{order}I", 0) + overflow
    path.write_bytes(head + data + body)
