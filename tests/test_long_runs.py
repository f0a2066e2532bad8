"""Long runs: what is interrupted goes on where it was, and several processes share the work."""

import dataclasses
import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import gaussian_prior
from PIL import Image
from test_evaluation import plan, quick, quiet, save_photos, table

import ddiff_jax as dd
from ddiff_jax import cli, evaluation
from ddiff_jax._solve import Snapshot
from ddiff_jax.evaluation import run as runner
from ddiff_jax.restoration import resolve
from ddiff_jax.restoration import run as restoring
from ddiff_jax.restoration.jobs import find_jobs
from ddiff_jax.restoration.share import Share, parse, share_of
from ddiff_jax.restoration.snapshots import Snapshots
from ddiff_jax.restoration.store import Store
from ddiff_jax.solvers import DDiff

pytestmark = pytest.mark.once

SHAPE = (8, 8, 3)
SAMPLE = Path(str(dd.__path__[0])) / "assets" / "sample.png"


@pytest.fixture(autouse=True)
def quick_networks(monkeypatch):
    for module in (runner, restoring):
        monkeypatch.setattr(module, "load_prior", quick)


def run(solver, **arguments):
    prior, operator = gaussian_prior(SHAPE), dd.operators.super_resolution(SHAPE, factor=2)
    keys = dd.image_keys(jax.random.key(0), jnp.arange(2))
    y = jax.random.uniform(jax.random.key(1), (2, 4, 4, 3), minval=-1, maxval=1)
    return dd.solve(solver, prior, dd.Problem(operator, y, 0.05), keys, **arguments)


@pytest.mark.parametrize("name", ["ddiff", "dps", "daps", "red_diff"])
def test_a_run_taken_up_again_is_the_undisturbed_run(name, tmp_path):
    solver = dd.preset("faces64", "super_resolution", name, "published", num_steps=8)
    whole, kept, seen = run(solver), [], []

    def stop(progress):
        if progress.step >= 3:
            kept.append(progress.snapshot())
        return bool(kept)

    run(solver, num_chunks=8, on_chunk=stop)
    assert kept[0].step == 3
    snapshots = Snapshots(tmp_path, "batch", {}, every=0.0)
    snapshots.save(dataclasses.replace(progress_at(3), snapshot=lambda: kept[0]))
    found = run(solver, resume=snapshots.load, on_chunk=lambda progress: seen.append(progress.step))
    assert min(step for step in seen if step) > 3
    assert snapshots.notes == []
    for ours, theirs in zip(
        jax.tree.leaves((found.x, found.info)), jax.tree.leaves((whole.x, whole.info)), strict=True
    ):
        np.testing.assert_array_equal(ours, theirs)
    snapshots.drop()
    assert list(tmp_path.iterdir()) == []


def progress_at(step, num_steps=8):
    return dd.Progress(step, num_steps, np.zeros(2), lambda: np.zeros(2), lambda: Snapshot(step, {}))


def test_a_snapshot_of_another_run_is_refused():
    solver, kept = DDiff(num_steps=6), []
    run(solver, on_chunk=lambda progress: kept.append(progress.snapshot()))
    with pytest.raises(ValueError, match=r"after step 6, is not of a run with these arguments \(5 steps"):
        run(DDiff(num_steps=5), resume=lambda first: kept[-1])
    with pytest.raises(ValueError, match="begin anew"):
        run(dd.preset("faces64", "super_resolution", "dps", num_steps=6), resume=lambda first: kept[2])


def test_a_damaged_snapshot_begins_anew(tmp_path):
    solver, snapshots = DDiff(num_steps=6), Snapshots(tmp_path, "batch", {}, every=0.0)
    run(solver, num_chunks=6, on_chunk=snapshots.save)
    (folder,) = (tmp_path / "batch").glob("step_*")
    assert folder.name == "step_5"  # the last is kept, and none after the last step
    for path in folder.rglob("*"):
        if path.is_file():
            path.write_bytes(b"")
    steps = []
    found = run(solver, resume=snapshots.load, on_chunk=lambda progress: steps.append(progress.step))
    assert steps[1] == 1
    assert "cannot be read" in snapshots.notes[0]
    np.testing.assert_array_equal(found.x, run(solver).x)


class Silent:
    """Hears everything and says nothing; stops at a step of a batch if told to."""

    def __init__(self, stop_at=None):
        self.stop_at, self.steps = stop_at, []

    def note(self, about, text):
        pass

    def failed(self, job, message):
        raise AssertionError(message)

    def begins(self, prior, num_images):
        pass

    def compiled(self, seconds):
        pass

    def stepped(self, batch, progress):
        self.steps.append((batch.index, progress.step))
        if self.steps[-1] == self.stop_at:
            raise KeyboardInterrupt

    def restored(self, record):
        pass


def test_an_interrupted_batch_is_taken_up_by_the_same_restoration(tmp_path):
    photos = save_photos(tmp_path / "photos", 3)
    settings = resolve(task="gaussian_blur", steps=6)

    def restore(folder, watch):
        folder.mkdir(exist_ok=True)
        store = Store(folder)
        work = restoring.Restoration(settings, store, watch, save_every=0.0)
        work.run(work.sort(find_jobs([str(photos)], folder).jobs, "skip").todo, 2)
        return work

    restore(tmp_path / "whole", Silent())
    with pytest.raises(KeyboardInterrupt):
        restore(tmp_path / "out", Silent(stop_at=(1, 4)))
    assert len(list((tmp_path / "out").glob("*_restored.png"))) == 2
    watch = Silent()
    restore(tmp_path / "out", watch)
    assert watch.steps == [(0, 4), (0, 5), (0, 6)]  # after step 3, which was saved
    pictures = sorted(path.name for path in (tmp_path / "whole").glob("*.png"))
    assert len(pictures) == 9
    for name in pictures:
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    assert not list((tmp_path / "out" / "records" / "running").iterdir())


def test_shares_hold_everything_once():
    for count in (1, 2, 3, 7, 11):
        taken = [image for i in range(count) for image in Share(i + 1, count).of(range(10))]
        assert sorted(taken) == list(range(10))
    assert parse("2/4") == Share(2, 4)
    for text in ("0/4", "5/4", "2", "a/b", "1/0", "-1/2", "1/2/3", ""):
        with pytest.raises(ValueError, match=r"1/N to N/N|such as 2/4"):
            parse(text)
    with pytest.raises(ValueError, match="give one of the two"):
        share_of("1/2", True)


def free_port():
    with socket.socket() as found:
        found.bind(("localhost", 0))
        return found.getsockname()[1]


def cluster(count):
    """Environments of so many processes of a cluster on this machine."""
    address = f"localhost:{free_port()}"
    return [
        {**os.environ, "JAX_COORDINATOR_ADDRESS": address, "JAX_NUM_PROCESSES": str(count), "JAX_PROCESS_ID": str(i)}
        for i in range(count)
    ]


def test_processes_of_a_cluster_find_their_shares():
    program = "from ddiff_jax.restoration.share import share_of; print(share_of(None, True))"
    root = Path(dd.__file__).parents[1]
    workers = [
        subprocess.Popen([sys.executable, "-c", program], cwd=root, env=env, stdout=subprocess.PIPE, text=True)
        for env in cluster(3)
    ]
    assert sorted(worker.communicate()[0].strip() for worker in workers) == ["1/3", "2/3", "3/3"]


def test_without_a_cluster_one_line_says_what_to_do(monkeypatch):
    for name in ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(ValueError, match=r"recognises no cluster here .* or give every process its --shard I/N"):
        share_of(None, True)


def test_shares_of_restore_make_the_folder_of_one_process(tmp_path, monkeypatch, capsys):
    save_photos(tmp_path / "photos", 5)
    monkeypatch.chdir(tmp_path)
    command = ["restore", "photos", "--task", "gaussian_blur", "--steps", "2", "--no-cache", "--batch-size", "2"]
    assert cli.main([*command, "--output", "whole"]) == 0
    for share in ("2/2", "1/2"):
        assert cli.main([*command, "--output", "out", "--shard", share]) == 0
    capsys.readouterr()
    assert cli.main([*command, "--output", "out"]) == 0
    assert "skipped 5 of 5" in capsys.readouterr().err
    ours, theirs = (json.loads(Path(folder, "metrics.json").read_text()) for folder in ("out", "whole"))
    assert len(ours["runs"]) == 2
    assert ours["mean"] == theirs["mean"]
    for one, other in zip(ours["images"], theirs["images"], strict=True):
        assert {**one, "run": 0} == other
        for file in one["files"].values():
            assert Path("out", file).read_bytes() == Path("whole", file).read_bytes()
    assert cli.main([*command, "--output", "out", "--shard", "3/2"]) == 2
    assert "from 1/N to N/N" in capsys.readouterr().err


def test_shares_of_an_evaluation_make_one_table(tmp_path):
    made = plan(save_photos(tmp_path / "photos", 3))
    evaluation.evaluate(made, tmp_path / "whole", say=quiet)
    first = evaluation.evaluate(made, tmp_path / "out", say=quiet, share=Share(1, 2))
    assert [row["status"] for row in table(tmp_path / "out")] == ["ok", "pending", "ok"]
    assert first.num_bad == 0
    evaluation.evaluate(made, tmp_path / "out", say=quiet, share=Share(2, 2))
    assert table(tmp_path / "out") == table(tmp_path / "whole")


@pytest.mark.slow
def test_four_processes_one_of_them_killed_make_the_table_of_one(tmp_path):
    (tmp_path / "photos").mkdir()
    with Image.open(SAMPLE) as picture:
        for i in range(200):
            picture.rotate(1.7 * i).save(tmp_path / "photos" / f"photo{i:03}.png")
    command = [sys.executable, "-m", "ddiff_jax", "restore", "photos", "--steps", "2", "--batch-size", "8", "--quiet"]
    root = {"PYTHONPATH": str(Path(dd.__file__).parents[1])}

    def start(env, folder, *flags):
        return subprocess.Popen([*command, "--output", folder, *flags], cwd=tmp_path, env={**env, **root})

    workers = [start(env, "out", "--distributed") for env in cluster(4)]
    while len(list((tmp_path / "out").glob("*_restored.png"))) < 20:
        assert all(worker.poll() is None for worker in workers)
    workers[1].kill()
    assert [worker.wait() for worker in workers] == [0, -9, 0, 0]  # the others go on
    assert len(list((tmp_path / "out").glob("*_restored.png"))) < 200
    assert start(dict(os.environ), "out", "--shard", "2/4").wait() == 0
    assert start(dict(os.environ), "whole").wait() == 0
    ours, theirs = (json.loads((tmp_path / folder / "metrics.json").read_text()) for folder in ("out", "whole"))
    assert ours["mean"] == theirs["mean"]
    assert [{**row, "run": 0} for row in ours["images"]] == theirs["images"]
    for row in theirs["images"]:
        for file in row["files"].values():
            assert (tmp_path / "out" / file).read_bytes() == (tmp_path / "whole" / file).read_bytes()
