"""The log of a training: exact numbers, runs that are taken up again, full disks, and event files."""

import errno
import json
import os
import struct
import sys

import jax.numpy as jnp
import numpy as np
import pytest
from judgements import judgement

from ddiff_jax.training import events as event_module
from ddiff_jax.training import log as module
from ddiff_jax.training.log import Log, read_log


def steps(path):
    return [line["step"] for line in read_log(path)[0]]


def events(folder):
    """Read all event files as TensorBoard does, by name."""
    from tensorboardX.proto import event_pb2

    found = []
    for path in sorted(folder.iterdir()):
        raw = path.read_bytes()
        while raw:
            (size,) = struct.unpack("<Q", raw[:8])
            found.append(event_pb2.Event.FromString(raw[12 : 12 + size]))  # pyright: ignore[reportAttributeAccessIssue]
            raw = raw[16 + size :]
    return found


def test_numbers_are_read_back_exactly(tmp_path):
    values = {"a": 0.1 + 0.2, "b": np.float32(1) / 3, "c": jnp.float32(2) / 7, "d": 12_345_678_901, "e": np.int32(4)}
    with Log(tmp_path) as log:
        assert log.write(3, values) is None
        assert log.write(4, {"loss": float("nan"), "grad_norm": np.inf}) is None
        with pytest.raises(ValueError, match="numbers alone; got words='two'"):
            log.write(5, {"words": "two"})
    first, second = (tmp_path / "log.jsonl").read_text().splitlines()
    assert json.loads(second) == {"step": 4, "loss": None, "grad_norm": None}
    (line, other), damaged = read_log(tmp_path / "log.jsonl")
    assert line == {
        "step": 3,
        **{name: value.item() if hasattr(value, "item") else value for name, value in values.items()},
    }
    assert line["b"] == np.float32(1) / 3 and '"a": 0.30000000000000004' in first
    assert np.isnan(other["loss"]) and damaged == 0


def test_a_run_that_goes_on_drops_later_lines_and_a_torn_one(tmp_path):
    path = tmp_path / "log.jsonl"
    with Log(tmp_path) as log:
        for step in (10, 20, 20, 30):
            log.write(step, {"loss": float(step)})
    with path.open("ab") as file:
        file.write(b'{"step": 40, "lo')
    assert steps(path) == [10, 20, 20, 30] and read_log(path)[1] == 1
    with Log(tmp_path) as log:  # without a word about steps nothing is dropped, and nothing is glued to what is torn
        log.write(41, {"loss": 1.0})
    assert steps(path) == [10, 20, 20, 30, 41] and read_log(path)[1] == 1
    with Log(tmp_path, keep_until=20) as log:
        assert steps(path) == [10, 20, 20] and read_log(path)[1] == 0
        log.write(30, {"loss": 3.0})
    assert read_log(path)[0][-1] == {"step": 30, "loss": 3.0}
    assert [p.name for p in tmp_path.iterdir()] == ["log.jsonl"]


def test_a_reader_leaves_out_what_was_made_again(tmp_path):
    path = tmp_path / "log.jsonl"
    path.write_text(
        "".join(f'{{"step": {step}}}\n' for step in (1, 2, 3, 2, 3)) + 'null\n{"step": "4"}\n{"step": true}\n'
    )
    assert steps(path) == [1, 2, 2, 3]
    assert read_log(path)[1] == 3
    assert read_log(tmp_path / "none") == ([], 0)


def test_a_full_disk_loses_lines_and_is_told_once(tmp_path, monkeypatch):
    write, full = os.write, [False]

    def limited(descriptor, data):
        if not full[0]:
            return write(descriptor, data)
        if len(data) > 20:
            return write(descriptor, data[:20])  # what still fits
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(module.os, "write", limited)
    with Log(tmp_path) as log:
        assert log.write(1, {"loss": 1.0}) is None
        full[0] = True
        message = log.write(2, {"loss": 2.0, "more": 3.0})
        assert message is not None and message == log.note
        assert "log.jsonl cannot be written (No space left on device)" in message
        assert log.write(3, {"loss": 3.0}) is None and log.num_lost == 2
        full[0] = False
        assert log.write(4, {"loss": 4.0}) is None
    assert steps(tmp_path / "log.jsonl") == [1, 4]


def test_a_disk_that_is_full_from_the_start_is_told_and_not_raised(tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(errno.ENOSPC, "full")

    with Log(tmp_path) as log:
        log.write(1, {})
        log.write(9, {})
    monkeypatch.setattr(module.image_files, "write_text", refuse)
    with Log(tmp_path, keep_until=4) as log:
        assert "full" in (log.note or "")
        assert log.write(5, {}) is None
    assert steps(tmp_path / "log.jsonl") == [1, 5]  # the reader knows
    monkeypatch.setattr(module.os, "open", refuse)
    assert "full" in (Log(tmp_path / "other").write(1, {}) or "")


def test_event_files_hold_scalars_and_pictures_and_purge_what_is_made_again(tmp_path):
    with Log(tmp_path, tensorboard=True) as log:
        log.write(10, {"loss": 0.5})
        log.judged(10, judgement([0.4, 0.1, 0.02], psnr=21.0))
    with Log(tmp_path, keep_until=4, tensorboard=True) as log:
        log.write(5, {"loss": 0.25})
    assert read_log(tmp_path / "log.jsonl")[0] == [{"step": 5, "loss": 0.25}]
    found = events(tmp_path / "tensorboard")
    values = {(e.step, v.tag): v for e in found for v in e.summary.value}
    assert values[10, "loss"].simple_value == 0.5 and values[5, "loss"].simple_value == 0.25
    assert values[10, "judgement/psnr_super_resolution"].simple_value == 22.0
    assert values[10, "judgement/levels_lost"].simple_value == 1
    assert values[10, "denoising/error_over_linear_filter/at_0.01"].simple_value == 2.0
    shown = values[10, "restorations"].image
    assert (shown.height, shown.width) == (40, 30) and values[10, "samples"].image.encoded_image_string[1:4] == b"PNG"
    assert [e.step for e in found if e.session_log.status] == [5]


def test_a_judgement_is_a_line_of_the_log(tmp_path):
    with Log(tmp_path) as log:
        log.judged(8, judgement([0.4, 0.1, 0.02]))
    want = {"psnr_super_resolution": 21.0, "psnr_box_inpainting": 24.0, "levels_lost": 1, "samples_diverged": 0}
    assert read_log(tmp_path / "log.jsonl")[0] == [{"step": 8, **want}]


def test_event_files_on_a_full_disk_go_on_in_another_file(tmp_path, monkeypatch):
    from tensorboardX import record_writer

    full = [True]
    monkeypatch.setattr(record_writer, "open_file", lambda path: open("/dev/full" if full[0] else path, "wb"))
    monkeypatch.setattr(event_module, "FLUSH_SECONDS", 0.0)
    with Log(tmp_path, keep_until=1, tensorboard=True) as log:
        assert "No space left on device" in (log.write(2, {"loss": 2.0}) or "")
        assert log.write(3, {"loss": 3.0}) is None and log.num_lost == 2
        full[0] = False
        assert log.write(4, {"loss": 4.0}) is None
    found = events(tmp_path / "tensorboard")
    assert [e.step for e in found if e.summary.value] == [4]
    assert [e.step for e in found if e.session_log.status] == [2]  # what is purged is not forgotten meanwhile
    assert steps(tmp_path / "log.jsonl") == [2, 3, 4]


def test_without_tensorboardx_the_cure_is_told(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorboardX", None)
    with pytest.raises(ImportError, match=r"pip install 'ddiff-jax\[tensorboard\]'"):
        Log(tmp_path, tensorboard=True)
    Log(tmp_path).close()
