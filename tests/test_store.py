"""Records: whole or absent, shared by processes that know nothing of each other, and what they say of results."""

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from ddiff_jax import image_files
from ddiff_jax.restoration import document, resolve
from ddiff_jax.restoration.records import Records
from ddiff_jax.restoration.store import Record, Store, decided_by

pytestmark = pytest.mark.once

WORKER = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[3])
from test_store import record
from ddiff_jax.restoration import document
from ddiff_jax.restoration.store import Store
folder, who = Path(sys.argv[1]), sys.argv[2]
store = Store(folder)
(folder / f"{who}.ready").touch()
while len(list(folder.glob("*.ready"))) < 2:
    pass
for i in range(40):
    store.save_run({"settings": {"seed": 0}, "failed": {}})
    store.save(f"{who}{i}", record(store, f"{who}{i}", psnr=20.0 + i))
    if i % 4 == 3:
        document.merge(store)
"""


def record(store, name, **metrics):
    return Record(
        name=name,
        fingerprint="as asked for",
        status="ok",
        message="",
        input=f"{name}.png",
        input_sha256="",
        metrics=metrics,
        sigma_y=0.05,
        files={},
        sha256={},
        notes=[],
        made=store.run,
        network_evaluations=1,
        network_gradients=0,
    )


def run(seed=0):
    return {"settings": {"seed": seed}, "failed": {}}


def written(folder):
    return json.loads((folder / "metrics.json").read_text())


def names(folder):
    return [row["name"] for row in written(folder)["images"]]


def test_two_processes_lose_nothing(tmp_path):
    root = Path(image_files.__file__).parents[1]
    here = str(Path(__file__).parent)
    workers = [
        subprocess.Popen([sys.executable, "-c", WORKER, str(tmp_path), who, here], cwd=root, stderr=subprocess.PIPE)
        for who in ("a", "b")
    ]
    for worker in workers:
        _, err = worker.communicate()
        assert worker.returncode == 0, err
    assert set(names(tmp_path)) == {f"{who}{i}" for who in ("a", "b") for i in range(40)}
    assert len(written(tmp_path)["runs"]) == 2
    assert written(tmp_path)["mean"]["psnr"] == pytest.approx(39.5)
    assert not list(tmp_path.rglob("*.tmp"))


def test_a_row_that_comes_while_the_file_is_written_is_not_lost(tmp_path, monkeypatch):
    ours, theirs = Store(tmp_path), Store(tmp_path)
    ours.save_run(run())
    ours.save("a", record(ours, "a"))
    write, calls = image_files.write_text, []

    def slowly(path, text):
        if path.name == "metrics.json" and not calls:
            calls.append(text)
            theirs.save_run(run())
            theirs.save("b", record(theirs, "b"))
            document.merge(theirs)  # theirs is written before ours, which was read earlier
        write(path, text)

    monkeypatch.setattr(image_files, "write_text", slowly)
    document.merge(ours)
    assert calls
    assert names(tmp_path) == ["a", "b"]


def test_rows_of_earlier_runs_stay_and_a_repeated_one_is_replaced(tmp_path):
    for seed, images in ((0, ("a", "b")), (1, ("b", "sub/c"))):
        store = Store(tmp_path)
        store.save_run(run(seed))
        for name in images:
            store.save(name, record(store, name, psnr=10.0 + seed))
        found = document.merge(store)
    assert found == written(tmp_path)
    seeds = {row["name"]: found["runs"][row["run"]]["settings"]["seed"] for row in found["images"]}
    assert seeds == {"a": 0, "b": 1, "sub/c": 1}
    assert found["mean"] is None  # nothing is averaged over different settings


def test_damaged_records_are_no_rows(tmp_path):
    store = Store(tmp_path)
    store.save_run(run())
    for name in "abcde":
        store.save(name, record(store, name, psnr=21.5))
    records = tmp_path / "records" / "images"
    (records / "a.json").write_text('{"name"')
    (records / "b.json").write_text("[]")
    (records / "c.json").write_text('{"name": "c"}')
    (records / "d.json").write_text((records / "d.json").read_text().replace("21.5", "22.5"))
    document.merge(store)
    assert names(tmp_path) == ["e"]
    standing = [Store(tmp_path).standing(name, "as asked for") for name in "abcdef"]
    assert standing == ["damaged", "damaged", "damaged", "damaged", "done", "absent"]
    for path in (tmp_path / "records" / "runs").iterdir():
        path.unlink()
    assert Store(tmp_path).standing("e", "as asked for") == "damaged"


def test_no_bit_of_a_record_can_flip_unnoticed(tmp_path):
    records = Records(tmp_path)
    records.save("x", {"psnr": 21.25, "name": "photo", "lost": float("nan")})
    assert records.load("x") == {"psnr": 21.25, "name": "photo", "lost": None}
    whole = records.path("x").read_bytes()
    draw = np.random.default_rng(0)
    for _ in range(300):
        flipped = bytearray(whole)
        place = int(draw.integers(len(whole)))
        flipped[place] ^= 1 << int(draw.integers(8))
        records.path("x").write_bytes(flipped)
        assert records.load("x") in (None, {"psnr": 21.25, "name": "photo", "lost": None}), bytes(flipped)


def test_what_is_done_depends_on_settings_files_and_every_result(tmp_path):
    store = Store(tmp_path)
    store.save_run(run())
    sha256 = image_files.write_png(tmp_path / "a.png", np.zeros((4, 4, 3), np.float32))
    made = dataclasses.replace(record(store, "a"), files={"restored": "a.png"}, sha256={"restored": sha256})
    store.save("a", made)
    assert store.standing("a", "as asked for") == "done"
    assert store.standing("a", "otherwise") == "other"
    whole = (tmp_path / "a.png").read_bytes()
    for change in (whole[:-1], whole[:-1] + b"x", None):
        (tmp_path / "a.png").unlink()
        if change is not None:
            (tmp_path / "a.png").write_bytes(change)
            assert store.standing("a", "as asked for") == "damaged"
    assert store.standing("a", "as asked for") == "damaged"
    store.forget("a")
    assert store.standing("a", "as asked for") == "absent"


def test_everything_that_decides_a_result_changes_its_fingerprint(tmp_path):
    mask = tmp_path / "mask.npy"
    np.save(mask, np.ones((64, 64)))
    first = decided_by(resolve(task="random_inpainting", operator={"mask": mask}))
    assert first == decided_by(resolve(task="random_inpainting", operator={"mask": mask}))
    np.save(mask, np.zeros((64, 64)))
    others = [
        decided_by(resolve(task="random_inpainting", operator={"mask": mask})),
        decided_by(resolve(task="random_inpainting", operator={"mask": mask}), {"alex": "weights"}),
        decided_by(resolve(task="random_inpainting")),
        decided_by(resolve(task="random_inpainting", seed=1)),
        decided_by(resolve(task="random_inpainting", steps=3)),
        decided_by(resolve(task="random_inpainting", sigma=0.1)),
    ]
    assert len({first, *others}) == 7


def test_what_is_not_ours_is_not_overwritten(tmp_path):
    for text in ("{", "[1]", '{"rows": []}'):
        (tmp_path / "metrics.json").write_text(text)
        with pytest.raises(ValueError, match=r"metrics.json is damaged.*move it away"):
            document.check(tmp_path)
        assert (tmp_path / "metrics.json").read_text() == text
