"""A training as people have it: stopped, killed, on a full disk, made longer; and the command line around it."""

import dataclasses
import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_training_core import Tiny, recipe, state_module

from ddiff_jax.checkpoint import load_prior, orbax
from ddiff_jax.training import recipe as recipes
from ddiff_jax.training import result
from ddiff_jax.training import run as loop
from ddiff_jax.training.data import ArrayImages, batches
from ddiff_jax.training.judgement import Judge
from ddiff_jax.training.log import read_log
from ddiff_jax.training.result import kept_averages
from ddiff_jax.training.run import Rhythm, Training

MAKE, BUILD = loop.make_update, state_module.build_network  # the real ones
IMAGES = ArrayImages(np.random.default_rng(5).integers(0, 256, (40, 8, 8, 1), dtype=np.uint8))
FEW = {"num_levels": 3, "num_samples": 2, "sample_steps": 2, "num_restored": 1, "restore_steps": 2}


@pytest.fixture(scope="module", autouse=True)
def compiled():
    """Train a network that costs nothing, and let runs share their program: making it takes longer than they do."""
    made = {}

    def shared(plan, mesh=None, block=None):
        same = {"steps": 1, "warmup_steps": 0, "decay_steps": 0, "learning_rate": 1.0, "average": 0.1}
        name = repr((dataclasses.replace(plan, **same), mesh, block))
        if name not in made:
            made[name] = MAKE(plan, mesh, block)
        return made[name]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "make_update", shared)
        for module in (state_module, result):
            patch.setattr(module, "build_network", lambda plan, **changes: Tiny(plan.architecture["out_channels"]))
        yield


@pytest.fixture
def quick(monkeypatch):
    """Draw no page."""
    monkeypatch.setattr(loop, "write_page", lambda folder, title: None)


@pytest.fixture(scope="module")
def judge():
    floats = IMAGES.array.astype(np.float32) / 127.5 - 1
    return Judge(floats[:8], floats[8:], **FEW)


def training(folder, judge, plan=None, rhythm=None, **changes):
    rhythm = rhythm or Rhythm(log=2, judge=4)
    plan = plan or recipe(steps=8, warmup_steps=2, decay_steps=3, batch_size=4)
    described = {"name": "forty", "count": 40, "fingerprint": IMAGES.fingerprint()}

    def start(step):
        return batches(IMAGES, batch_size=plan.batch_size, seed=plan.seed, start_step=step)

    return Training(plan, Path(folder), start, described, judge, rhythm, **changes)


def curve(folder):
    """Read the log but for its clock; who is killed while judging leaves a line twice."""
    lines, _ = read_log(Path(folder) / "training" / "log.jsonl")
    told = [{k: v for k, v in line.items() if k != "seconds"} for line in lines]
    return [line for i, line in enumerate(told) if line not in told[:i]]


def assert_same(one, other):
    assert jax.tree.structure(one) == jax.tree.structure(other)
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(np.asarray(a), np.asarray(b)), one, other)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory, judge):
    run = training(tmp_path_factory.mktemp("run") / "prior", judge)
    outcome = run.run()
    assert outcome.finished and outcome.lost == []
    return run


def test_a_run_leaves_its_log_its_card_and_its_page(undisturbed):
    folder = undisturbed.folder
    for name in ("card.json", "MODEL_CARD.md", "training/report.html", "training/log.jsonl", "training/run.json"):
        assert (folder / name).stat().st_size > 100, name
    said = (folder / "MODEL_CARD.md").read_text()
    assert "8 of 8 updates of 4 images" in said and "| linear filter |" in said and "forty" in said
    assert [line["step"] for line in curve(folder) if "loss" in line] == [2, 4, 6, 8]


@pytest.mark.parametrize("step", [1, 3, 5])
def test_a_run_that_was_stopped_goes_on_with_the_same_numbers(quick, tmp_path, judge, undisturbed, step):
    first = training(tmp_path / "prior", judge)
    outcome = first.run(should_stop=lambda: first._step == step)
    assert not outcome.finished and outcome.step == step
    said = []
    second = training(tmp_path / "prior", judge, say=said.append)
    assert second.first == step and f"going on after step {step} of 8" in said
    second.run()
    assert_same(second.state, undisturbed.state)
    assert curve(second.folder) == curve(undisturbed.folder)
    for name in ("MODEL_CARD.md", "training/judgements/00000008/judgement.json"):
        assert (second.folder / name).read_text() == (undisturbed.folder / name).read_text()


def test_a_finished_run_is_made_longer_from_where_its_rate_began_to_fall(quick, tmp_path, judge):
    plan = recipe(steps=6, warmup_steps=2, decay_steps=2)
    short = training(tmp_path / "prior", judge, plan, Rhythm(2, 3, 1e9))
    short.run()
    longer = dataclasses.replace(plan, steps=9, decay_steps=3)
    second = training(tmp_path / "prior", judge, longer, Rhythm(2, 3, 1e9))
    assert second.first == 4
    second.run()
    at_once = training(tmp_path / "other", judge, longer, Rhythm(2, 3, 1e9))
    at_once.run()
    assert_same(second.state.params, at_once.state.params)
    assert [line for line in curve(tmp_path / "prior") if "loss" in line] == [
        line for line in curve(tmp_path / "other") if "loss" in line
    ]
    assert sorted(kept_averages(second.inside, list(second.state.averages))) == [3, 6, 9]


def test_other_averages_are_made_when_a_finished_run_is_started_again(quick, tmp_path, judge):
    plan = recipe(steps=8, warmup_steps=2, decay_steps=0)
    first = training(tmp_path / "prior", judge, plan, Rhythm(4, 2))
    first.run()
    card, before = (tmp_path / "prior" / "card.json").read_text(), first.averaged()
    again = training(tmp_path / "prior", judge, dataclasses.replace(plan, average=0.07), Rhythm(4, 2))
    assert again.run().finished
    made = again.averaged()
    assert (tmp_path / "prior" / "card.json").read_text() != card  # other weights
    short, long = again.state.averages
    spread = max(float(np.abs(a - b).max()) for a, b in zip(*map(jax.tree.leaves, (short, long)), strict=True))
    apart = max(float(np.abs(a - b).max()) for a, b in zip(*map(jax.tree.leaves, (made, before)), strict=True))
    assert 0 < apart < 2 * spread


def test_another_recipe_or_other_images_are_refused(tmp_path, judge, undisturbed):
    for changes, message in {
        "rate": ({"learning_rate": 2e-3}, "another learning_rate \\(0.001; asked for: 0.002\\)"),
        "network": ({"prediction": "eps"}, "another prediction \\(v; asked for: eps\\)"),
    }.values():
        plan = dataclasses.replace(undisturbed.recipe, **changes)
        with pytest.raises(ValueError, match=message):
            training(undisturbed.folder, judge, plan)
    described = {"name": "others", "count": 40, "fingerprint": "f"}
    with pytest.raises(ValueError, match="another images"):
        Training(undisturbed.recipe, undisturbed.folder, undisturbed.batches, described, judge, Rhythm(2, 4))


def test_a_full_disk_loses_nothing_that_was_saved(quick, tmp_path, judge, undisturbed, monkeypatch):
    whole, calls = orbax().save_async, []

    class Full:
        def __init__(self):
            self.module = orbax()

        def __getattr__(self, name):
            return getattr(self.module, name) if name != "save_async" else self.save

        def save(self, path, tree):
            calls.append(path)
            if len(calls) in (3, 4):
                raise OSError(28, "No space left on device")
            return whole(path, tree)

    monkeypatch.setattr("ddiff_jax.training.checkpoints.orbax", Full)
    said = []
    run = training(tmp_path / "prior", judge, rhythm=Rhythm(2, 4, 0.0), say=said.append)
    outcome = run.run(should_stop=lambda: run._step == 4)
    assert [note for note in outcome.lost if "No space left" in note] and any("No space left" in line for line in said)
    second = training(tmp_path / "prior", judge)
    assert second.first == 2  # the last one that fitted
    second.run()
    assert_same(second.state, undisturbed.state)


def test_a_damaged_state_gives_way_to_the_one_before(quick, tmp_path, judge, undisturbed):
    first = training(tmp_path / "prior", judge, rhythm=Rhythm(2, 4, 0.0))
    first.run(should_stop=lambda: first._step == 4)
    newest = max((tmp_path / "prior" / "training" / "checkpoints").iterdir())
    for path in newest.rglob("*"):
        if path.is_file():
            path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    said = []
    second = training(tmp_path / "prior", judge, say=said.append)
    assert second.first == 3 and any("cannot be read" in line for line in said)
    second.run()
    assert_same(second.state, undisturbed.state)


def test_a_run_that_diverges_says_so(tmp_path, judge):
    broken = ArrayImages(np.zeros((40, 8, 8, 1), np.float32))
    broken.array[...] = np.nan
    plan = recipe(steps=8, warmup_steps=2, decay_steps=3)
    described = {"name": "nan", "count": 40, "fingerprint": "n"}
    run = Training(
        *(plan, tmp_path / "prior", lambda step: batches(broken, batch_size=4, seed=0, start_step=step)),
        *(described, judge, Rhythm(2, 4)),
    )
    with pytest.raises(ValueError, match=r"not finite in all of the last 2 updates .* lower --learning-rate"):
        run.run()


@pytest.mark.parametrize("broken", ["card.json", "training/judgements/00000004/judgement.json"])
def test_who_was_killed_while_judging_judges_again(quick, tmp_path, judge, undisturbed, broken):
    first = training(tmp_path / "prior", judge)
    first.run(should_stop=lambda: first._step == 4)
    (tmp_path / "prior" / broken).unlink()
    second = training(tmp_path / "prior", judge)
    assert second.first == 4
    second.run(should_stop=lambda: second._step == 5)
    assert (tmp_path / "prior" / broken).exists()
    assert curve(second.folder)[:3] == curve(undisturbed.folder)[:3]


def test_two_processes_do_not_train_in_one_folder(tmp_path, judge):
    first = training(tmp_path / "prior", judge)
    with pytest.raises(ValueError, match="another process trains in"):
        training(tmp_path / "prior", judge)
    first.run(should_stop=lambda: True)
    second = training(tmp_path / "prior", judge)
    assert second.first == 1
    second.close()


@pytest.fixture
def small(monkeypatch):
    """A preset that costs little, with the real network."""
    monkeypatch.setattr(loop, "make_update", MAKE)
    for module in (state_module, result):
        monkeypatch.setattr(module, "build_network", BUILD)
    preset = recipes.Preset(
        8,
        {"model_channels": 32, "channel_mult": (1,), "attention_levels": (), "head_width": 32},
        False,
        {"steps": 4, "decay_steps": 1, "batch_size": 4, "warmup_steps": 1, "linear_rank": 64},
        "small",
    )
    monkeypatch.setitem(recipes.PRESETS, "small", preset)
    monkeypatch.setattr("ddiff_jax.cli.train.Judge", lambda *args, **kwargs: Judge(*args, **{**kwargs, **FEW}))


def test_the_command_trains_on_a_folder_and_the_prior_restores(ddiff, small, tmp_path):
    assert ddiff("phantoms", "pictures", "--count", 36, "--size", 16)[0] == 0
    code, _, err = ddiff(
        "train", "pictures", "--preset", "small", "--output", "mine", "--log-every", 2, "--judge-every", 4
    )
    assert code == 0 and "28 images to train on and 8 to judge by, 8x8 pixels, 1 channel" in err, err
    assert "mine is a prior now" in err
    prior = load_prior("mine")
    assert prior.prediction == "v" and prior.image_shape == (8, 8, 1)
    kept = kept_averages(Path("mine/training"), [prior.params] * 2)[4]()
    assert_same(prior.params, jax.tree.map(jnp.asarray, kept[1]))  # the wider one
    assert prior.linear is not None and prior.linear.directions.shape == (14, 8, 8, 1)  # as many as 28 images have
    code, out, err = ddiff("train", "pictures", "--preset", "small", "--output", "mine", "--json")
    assert code == 0 and "going on after step 4 of 4" in err and json.loads(out)["step"] == 4
    arguments = ("--prior", "mine", "--task", "random_inpainting", "--steps", 3, "--resize", "--preset", "faces64")
    code, _, err = ddiff("restore", "pictures/phantom_000001.png", *arguments, "--output", "out")
    assert code == 0, err
    assert (tmp_path / "out" / "phantom_000001_restored.png").exists()
    code, _, err = ddiff("train", "pictures", "--preset", "small", "--output", "next", "--start", "mine", "--steps", 1)
    assert code == 0, err
    assert_same(load_prior("next").linear, prior.linear)
    for flags, said in {
        ("--start", "mine", "--linear-rank", 3): "leave out --linear-rank",
        ("--linear-rank", 15): "at most 14",
    }.items():
        code, _, err = ddiff("train", "pictures", "--preset", "small", "--output", "other", *flags)
        assert code == 2 and said in err, err
    code, _, err = ddiff("train", "pictures", "--preset", "small", "--output", "mine", "--learning-rate", 1e-3)
    assert code == 2 and "another learning_rate" in err and "choose another --output" in err


def test_the_command_explains_what_is_wrong(ddiff, small, tmp_path):
    for arguments, said in {
        ("train",): "give training images",
        ("train", "nowhere"): "cannot be read",
        ("train", "x", "--preset", "tiny64"): "did you mean",
        ("train", "x", "--average", "0.5"): "relative width",
    }.items():
        code, _, err = ddiff(*arguments)
        assert code == 2 and said in err, (arguments, err)


PROGRAM = """
import sys
sys.path.insert(0, {tests!r})
from pathlib import Path
import numpy as np
from test_training_run import FEW, IMAGES, Judge, training
from test_training_core import Tiny, recipe, state_module
from ddiff_jax.training.run import Rhythm

floats = IMAGES.array.astype(np.float32) / 127.5 - 1
plan = recipe(steps=60, warmup_steps=2, decay_steps=20)
run = training(sys.argv[1], Judge(floats[:8], floats[8:], **FEW), plan, Rhythm(5, 20, 0.05))
run.run(on_step=lambda step, loss: print("step", flush=True))
"""


def process(folder):
    program = PROGRAM.format(tests=str(Path(__file__).parent))
    return subprocess.Popen([sys.executable, "-c", program, str(folder)], stdout=subprocess.PIPE, text=True)


def killed_within(process, seconds):
    """Kill a process so many seconds after its first step, unless it has ended by then; tell whether."""
    assert process.stdout is not None and process.stdout.readline() == "step\n"
    try:
        process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()
    return process.returncode == -signal.SIGKILL


@pytest.mark.slow
def test_a_run_killed_at_random_moments_ends_with_the_same_parameters(tmp_path):
    whole = process(tmp_path / "whole")
    started = time.monotonic()
    assert not killed_within(whole, 600) and whole.returncode == 0
    seconds = (time.monotonic() - started) / 10
    random, killed = np.random.default_rng(0), 0
    while killed < 10 and killed_within(process(tmp_path / "killed"), float(random.uniform(0, seconds))):
        killed += 1
    last = process(tmp_path / "killed")
    assert last.wait() == 0 and killed >= 5, killed
    last.communicate()
    one, other = (load_prior(tmp_path / name) for name in ("whole", "killed"))
    assert_same(one.params, other.params)
    assert curve(tmp_path / "whole") == curve(tmp_path / "killed")
    states = [
        sorted(p.name for p in (tmp_path / name / "training" / "checkpoints").iterdir()) for name in ("whole", "killed")
    ]
    assert states[0][-1] == states[1][-1] == "00000060"


SHARED = """
import sys
sys.path.insert(0, {tests!r})
import jax
if sys.argv[2] == "alone":
    jax.config.update("jax_num_cpu_devices", 2)
import pytest
from test_training_run import FEW, Judge
from ddiff_jax import cli
from ddiff_jax.training import recipe as recipes
from ddiff_jax.training import result
import ddiff_jax.cli.train as train
train.Judge = lambda *args, **kwargs: Judge(*args, **{{**kwargs, **FEW}})
architecture = {{"model_channels": 32, "channel_mult": (1,), "attention_levels": (), "head_width": 32}}
values = {{"steps": 6, "decay_steps": 2, "batch_size": 4, "warmup_steps": 1, "linear_rank": 5}}
recipes.PRESETS["small"] = recipes.Preset(8, architecture, False, values, "small")
shared = ["--distributed"] if sys.argv[2] == "shared" else []
sys.exit(cli.main(["train", "pictures", "--preset", "small", "--output", sys.argv[1], "--no-cache", *shared]))
"""


@pytest.mark.slow
def test_two_processes_train_what_one_with_two_devices_does(ddiff, tmp_path):
    assert ddiff("phantoms", "pictures", "--count", 36, "--size", 16)[0] == 0
    program = SHARED.format(tests=str(Path(__file__).parent))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]

    def start(output, kind, **environment):
        known = {**os.environ, **environment}
        return subprocess.Popen([sys.executable, "-c", program, output, kind], env=known, cwd=tmp_path)

    assert start("one", "alone").wait() == 0
    job = {"JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{port}", "JAX_NUM_PROCESSES": "2"}
    both = [start("two", "shared", **job, JAX_PROCESS_ID=str(i)) for i in range(2)]
    assert [process.wait(timeout=300) for process in both] == [0, 0]
    one, two = (load_prior(tmp_path / name) for name in ("one", "two"))
    for a, b in zip(*map(jax.tree.leaves, ((one.params, one.linear), (two.params, two.linear))), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="signals as on POSIX")
def test_a_signal_saves_and_stops_and_the_second_one_interrupts():
    from ddiff_jax.cli.signals import asked_to_stop

    with asked_to_stop() as stopping:
        assert not stopping()
        os.kill(os.getpid(), signal.SIGTERM)
        assert stopping()
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(1)
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
