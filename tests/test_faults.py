"""Full disks and kills at every single call that changes the folder: the same command makes it whole."""

import contextlib
import dataclasses
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from faults import Faults, Killed
from PIL import Image
from test_evaluation import plan, quick, save_photos, table, timeless

from ddiff_jax import atomic, evaluation
from ddiff_jax.cli import restore
from ddiff_jax.cli.settings import read
from ddiff_jax.evaluation import run as runner
from ddiff_jax.restoration import results
from ddiff_jax.restoration import run as restoring
from ddiff_jax.restoration.store import Store

pytestmark = pytest.mark.once

VARYING = ("made", "checksum", "seconds")  # between records of equal results
FLAGS = ("--task", "super_resolution", "--steps", "2", "--batch-size", "1", "--quiet", "--no-cache")


@pytest.fixture
def work(tmp_path, monkeypatch):
    """Restore two photographs into a folder, in milliseconds: what was solved once is remembered."""
    solved, solve = {}, restoring.solve_restarts

    def remember(solver, prior, problem, keys, **arguments):
        key = np.asarray(problem.y).tobytes()
        if key not in solved:
            solved[key] = solve(solver, prior, problem, keys, **arguments)
        return solved[key]

    monkeypatch.setattr(restoring, "load_prior", quick)
    monkeypatch.setattr(restoring, "solve_restarts", remember)
    monkeypatch.setattr(restoring, "evaluation_flops", lambda prior: 1e9)
    monkeypatch.setattr(results, "comparison", lambda *_: Image.new("RGB", (4, 4)))
    save_photos(tmp_path / "photos", 2)
    request = read(FLAGS)

    def run(folder, count=1, **options):
        inputs = tuple(str(tmp_path / "photos" / f"photo{i}.png") for i in range(count))
        atomic._swept.cache_clear()  # as in a new process
        options = dataclasses.replace(request.options, inputs=inputs, output=folder, **options)
        return restore._Command(dataclasses.replace(request, options=options)).run()

    return run


def contents(folder):
    """Everything that two equal restorations have in common: pictures, rows and records."""
    found = {}
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        name = path.relative_to(folder).as_posix()
        if name == "results.csv":
            found[name] = table(folder)
        elif name == "summary.json":
            found[name] = timeless(json.loads(path.read_text()))
        elif name == "metrics.json":
            found[name] = [{**row, "run": 0} for row in json.loads(path.read_text())["images"]]
        elif name.startswith(("records/images/", "records/cells/")):
            found[name] = {k: v for k, v in json.loads(path.read_text()).items() if k not in VARYING}
        elif not name.startswith("records/runs/"):
            found[name] = path.read_bytes()
    return found


def assert_sound(store):
    """No record speaks of results that are not there."""
    for name in store.images.names():
        record = store.load(name)
        assert record is not None
        assert store.standing(name, record.fingerprint) == "done"


def sweep(work, folder, how):
    """Do a work into a folder with a fault at every call in turn; yields after each."""
    number, struck = 0, True
    while struck:
        number += 1
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        with Faults(folder, number, how) as faults, contextlib.suppress(Killed):
            work(folder)
        struck = faults.struck
        yield number
    assert number > 25


HOW = pytest.mark.parametrize("how", ["once", "full", "killed"])


@HOW
def test_after_a_fault_at_any_call_the_same_command_leaves_an_identical_folder(how, work, tmp_path):
    assert work(tmp_path / "whole") == 0
    expected, out = contents(tmp_path / "whole"), tmp_path / "out"
    assert len(expected) == 4 + 1 + 1  # results, a record and the rows
    for number in sweep(work, out, how):
        assert_sound(Store(out))
        assert work(out) == 0
        assert contents(out) == expected, number


def test_a_failed_write_fails_one_image(work, tmp_path, capsys):
    left = set()
    for number in range(5, 60, 6):
        out = tmp_path / str(number)
        out.mkdir()
        with Faults(out, number, "once"):
            code = work(out, 2)
        lines = capsys.readouterr().err.splitlines()
        store = Store(out)
        assert_sound(store)
        names = store.images.names()
        assert [row["name"] for row in json.loads((out / "metrics.json").read_text())["images"]] == names
        assert (code, len(lines), len(names)) in ((0, 0, 2), (1, 1, 1))
        assert all(line.endswith("its results cannot be written: No space left on device") for line in lines)
        left.add(tuple(names))
    assert left >= {("photo0",), ("photo1",)}


@pytest.mark.parametrize("how", ["full", "killed"])
def test_after_a_fault_at_any_call_the_same_evaluation_leaves_an_identical_folder(how, tmp_path, monkeypatch):
    solved, solve = {}, runner.solve

    def remember(solver, prior, problem, keys, *, on_chunk, **arguments):
        key = np.asarray(problem.y).tobytes()
        if key not in solved:
            seen = []
            solved[key] = solve(solver, prior, problem, keys, on_chunk=seen.append, **arguments), seen
        for progress in solved[key][1]:
            on_chunk(progress)
        return solved[key][0]

    monkeypatch.setattr(runner, "load_prior", quick)
    monkeypatch.setattr(runner, "solve", remember)
    monkeypatch.setattr(runner, "measure", lambda *_, **__: {"psnr_paper": np.ones(1), "misfit": np.ones(1)})
    wanted = plan(save_photos(tmp_path / "photos", 1), tasks=("super_resolution",), steps=(2,))

    def work(folder):
        atomic._swept.cache_clear()
        try:
            return evaluation.evaluate(wanted, folder, say=lambda _: None).num_bad
        except OSError:  # of the table
            return None

    assert work(tmp_path / "whole") == 0
    expected, out = contents(tmp_path / "whole"), tmp_path / "out"
    assert len(expected) == 4 + 1 + 2  # pictures, a record and the tables
    for number in sweep(work, out, how):
        assert_sound(Store(out, "cells"))
        assert work(out) == 0
        assert contents(out) == expected, number


KILLED_AT = """
import sys
from faults import Faults
from ddiff_jax import cli
Faults(sys.argv[1], int(sys.argv[2]), "really killed").__enter__()
sys.exit(cli.main(sys.argv[3:]))
"""


@pytest.mark.slow
def test_forty_kills_leave_an_identical_folder(tmp_path):
    save_photos(tmp_path / "photos", 30)
    flags = ["restore", "photos", "--steps", "2", "--batch-size", "2", "--save-every", "0", "--quiet"]
    root = Path(__file__).parents[1]
    environment = {
        **os.environ,
        "JAX_COMPILATION_CACHE_DIR": str(tmp_path / "cache"),
        "PYTHONPATH": os.pathsep.join([str(root), str(root / "tests")]),
    }

    def start(number, folder):
        command = [sys.executable, "-c", KILLED_AT, folder, str(number), *flags, "--output", folder]
        return subprocess.Popen(command, cwd=tmp_path, env=environment, stderr=subprocess.DEVNULL)

    def resume(folder):
        assert start(10**9, folder).wait() == 0
        return contents(tmp_path / folder)

    expected, draw = resume("whole"), random.Random(0)
    assert len(expected) == 30 * (4 + 1) + 1
    kills, aimed, done = 0, tmp_path / "aimed", set()
    while kills < 20:  # at a call that changes the folder
        code = start(draw.randint(1, 150), "aimed").wait()
        kills += code == -signal.SIGKILL
        done.add(len(Store(aimed).images.names()))
        if code == 0:  # it had done everything
            assert contents(aimed) == expected
            shutil.rmtree(aimed)
    assert len(done) > 4
    assert resume("aimed") == expected
    signals = [signal.SIGKILL] * 8 + [signal.SIGTERM, signal.SIGINT, signal.SIGHUP] * 4
    for number, kind in enumerate(signals):
        process, out = start(10**9, "random"), tmp_path / "random"
        there = len(list(out.rglob("*.json")))
        while number % 2 and process.poll() is None and len(list(out.rglob("*.json"))) == there:
            time.sleep(0.01)  # every other one is at work already
        time.sleep(draw.uniform(0, 0.3 if number % 2 else 5))
        process.send_signal(kind)
        if process.wait() == 0:  # it had done everything
            assert contents(out) == expected
            shutil.rmtree(out)
    assert resume("random") == expected
