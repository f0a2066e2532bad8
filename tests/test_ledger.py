"""metrics.json: made again where it lacks something, and shared by processes that know nothing of each other."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from ddiff_jax import image_files
from ddiff_jax.cli.jobs import Job, Ledger

WORKER = """
import sys
from pathlib import Path
from ddiff_jax.cli.jobs import Ledger
folder, who = Path(sys.argv[1]), sys.argv[2]
ledger = Ledger(folder)
(folder / f"{who}.ready").touch()
while len(list(folder.glob("*.ready"))) < 2:
    pass
for i in range(40):
    ledger.save_run({"settings": {"seed": 0}, "failed": {}})
    ledger.save_row({"name": f"{who}{i}", "files": {}, "input_sha256": "", "psnr": 20.0 + i})
    if i % 4 == 3:
        ledger.merge()
"""


def row(name, **values):
    return {"name": name, "files": {}, "input_sha256": "", **values}


def run(seed=0):
    return {"settings": {"seed": seed}, "failed": {}}


def document(folder):
    return json.loads((folder / "metrics.json").read_text())


def names(folder):
    return [row["name"] for row in document(folder)["images"]]


def test_two_processes_lose_nothing(tmp_path):
    root = Path(image_files.__file__).parents[1]
    workers = [
        subprocess.Popen([sys.executable, "-c", WORKER, str(tmp_path), who], cwd=root, stderr=subprocess.PIPE)
        for who in ("a", "b")
    ]
    for worker in workers:
        _, err = worker.communicate()
        assert worker.returncode == 0, err
    assert set(names(tmp_path)) == {f"{who}{i}" for who in ("a", "b") for i in range(40)}
    assert len(document(tmp_path)["runs"]) == 2
    assert document(tmp_path)["mean"]["psnr"] == pytest.approx(39.5)
    assert not list(tmp_path.rglob("*.tmp"))


def test_a_row_that_comes_while_the_file_is_written_is_not_lost(tmp_path, monkeypatch):
    ours, theirs = Ledger(tmp_path), Ledger(tmp_path)
    ours.save_run(run())
    ours.save_row(row("a"))
    write, calls = image_files.write_text, []

    def slowly(path, text):
        if path.name == "metrics.json" and not calls:
            calls.append(text)
            theirs.save_run(run())
            theirs.save_row(row("b"))
            theirs.merge()  # theirs is written before ours, which was read earlier
        write(path, text)

    monkeypatch.setattr(image_files, "write_text", slowly)
    ours.merge()
    assert calls
    assert names(tmp_path) == ["a", "b"]


def test_rows_of_earlier_runs_stay_and_a_repeated_one_is_replaced(tmp_path):
    for seed, images in ((0, ("a", "b")), (1, ("b", "sub/c"))):
        ledger = Ledger(tmp_path)
        ledger.save_run(run(seed))
        for name in images:
            ledger.save_row(row(name, psnr=10.0 + seed))
        found = ledger.merge()
    assert found == document(tmp_path)
    seeds = {row["name"]: found["runs"][row["run"]]["settings"]["seed"] for row in found["images"]}
    assert seeds == {"a": 0, "b": 1, "sub/c": 1}
    assert found["mean"] is None  # nothing is averaged over different settings


def test_damaged_records_are_no_rows(tmp_path):
    ledger = Ledger(tmp_path)
    ledger.save_run(run())
    for name in "abcd":
        ledger.save_row(row(name))
    records = tmp_path / "records" / "images"
    (records / "a.json").write_text('{"name"')
    (records / "b.json").write_text("[]")
    (records / "c.json").write_text('{"name": "c"}')
    ledger.merge()
    assert names(tmp_path) == ["d"]
    jobs = [Job(Path(f"{name}.png"), name, f"{name}_", tmp_path) for name in "abcd"]
    assert [Ledger(tmp_path).is_done(job) for job in jobs] == [False, False, False, True]
    for path in (tmp_path / "records" / "runs").iterdir():
        path.unlink()
    assert not Ledger(tmp_path).is_done(jobs[3])


def test_what_is_not_ours_is_not_overwritten(tmp_path):
    for text in ("{", "[1]", '{"rows": []}'):
        (tmp_path / "metrics.json").write_text(text)
        with pytest.raises(ValueError, match=r"metrics.json is damaged.*move it away"):
            Ledger(tmp_path)
        assert (tmp_path / "metrics.json").read_text() == text
