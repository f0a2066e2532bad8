"""An operator of one's own, in a file that this package has never seen, through every command that takes one."""

import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import jax
import numpy as np
import pytest
from weights import smoothing_prior

from ddiff_jax import cli, image_files
from ddiff_jax.check import THREAD
from ddiff_jax.cli.settings import read
from ddiff_jax.evaluation import Plan
from ddiff_jax.names import UnknownName
from ddiff_jax.operators import Function, named
from ddiff_jax.restoration import resolve
from ddiff_jax.restoration.jobs import Job
from ddiff_jax.restoration.parameters import is_random, operator_parameters
from ddiff_jax.restoration.reading import Reader

pytestmark = pytest.mark.once

QUICK = ("--steps", "2", "--batch-size", "1", "--no-cache")

MODULE = '''
import jax
import jax.numpy as jnp
import numpy as np
import ddiff_jax as dd
import lens_of_mine


def halve(x):
    return lens_of_mine.mean(x)


def make(shape, every: int = 2, weights=None, *, gain=1.0):
    """Keep some rows.

    Args:
        shape: of the image.
        every: which rows are kept.
        weights: of the pixels.
        gain: of the detector.
    """
    from lens_of_mine import same  # found at this moment too

    return lambda x: gain * same(x if weights is None else x * jnp.asarray(weights))[::every]


@dd.pytree_dataclass
class Dark:
    mask: jax.Array

    def forward(self, x):
        return x * self.mask


def draw(shape, share: float, key):
    return Dark((jax.random.uniform(key, (*shape[:2], 1)) < share).astype(jnp.float32))


def draw_function(shape, key):
    mask = jax.random.uniform(key, (*shape[:2], 1))
    return lambda x: x * mask


class Plain:
    def __init__(self, shape, seed: int = 0):
        self.weights = np.random.default_rng(seed).uniform(size=shape).astype(np.float32)

    def forward(self, x):
        return x * self.weights


def grey(shape):
    if shape[-1] != 1:
        raise ValueError("one channel is wanted")
    return lambda x: x


def pairs(x):
    return x.reshape(64, 64, 2)


def levels(x):
    return (255 * x).astype(jnp.int32)


small = dd.operators.from_function(lambda x: x, (8, 8, 1))
wide = dd.operators.from_function(lambda x: x[::2], (80, 64, 3))


def shifted(x):
    return 2 * x + 1


def slow(x):
    for i in range(2000):
        x = jnp.sin(x + i)
    return x


number = 3
'''
LENS = "def same(x):\n    return x\ndef mean(x):\n    return (x[::2] + x[1::2]) / 2\n"


def forget():
    """Begin as a new process does."""
    named._own.cache_clear()
    named._built.cache_clear()
    for name in ("camera_of_mine", "lens_of_mine"):
        sys.modules.pop(name, None)


@pytest.fixture
def mine(tmp_path, monkeypatch):
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        forget()
        (tmp_path / "camera_of_mine.py").write_text(MODULE)
        (tmp_path / "lens_of_mine.py").write_text(LENS)
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(sys, "dont_write_bytecode", True)
        yield tmp_path
        forget()


def image(seed=0):
    return np.random.default_rng(seed).uniform(-0.9, 0.9, (64, 64, 3)).astype(np.float32)


def test_restore_takes_it_with_its_flags_and_knows_it_again(mine, ddiff, quick_prior):
    np.save("x.npy", image())
    np.save("w.npy", np.full((64, 64, 1), 0.5, np.float32))
    name = ("restore", "x.npy", "--operator", "camera_of_mine:make", "--every", "4", "--weights", "w.npy", *QUICK)
    code, _, err = ddiff(*name)
    assert code == 0, err
    assert "camera_of_mine:make has no preset: the values of the solvers are those that all tasks of faces64" in err
    assert "camera_of_mine:make (every 4, gain 1.0, weights w.npy), sigma_y 0.05" in err
    found = json.loads(Path("restored/metrics.json").read_text())
    made = found["runs"][0]["settings"]["operator"]
    assert made["name"] == "camera_of_mine:make" and len(made["source_sha256"]) == 64
    measured = image_files.read_picture(Path("restored/x_measurement.png"))[0]
    np.testing.assert_allclose(measured, 0.5 * image()[::4], atol=0.05 * 5)
    assert "skipped 1 of 1" in ddiff(*name)[2]
    # What it imports from the same folder is a part of it.
    Path("lens_of_mine.py").write_text(LENS.replace("/ 2", "/ 3"))
    forget()
    _, _, err = ddiff(*name)
    assert "skipped 1 of 1" in err and "made with another operator" in err


def test_evaluate_and_warmup_take_it(mine, ddiff, quick_prior, monkeypatch):
    monkeypatch.setattr("ddiff_jax.evaluation.run.load_prior", lambda name, dtype: smoothing_prior())
    np.save("x.npy", image())
    own = ("--operator", "camera_of_mine:make", "--set", "camera_of_mine:make:every=4", "ddiff:steps=2")
    code, out, err = ddiff("evaluate", "x.npy", *own, "--sigmas", "0.1", "--no-report", "--no-cache", "--json")
    assert code == 0, err
    (cell,) = json.loads(out)["cells"]
    assert cell["cell"] == "camera_of_mine.make/ddiff-sigma0.1/seed0"
    assert cell["settings"]["operator"]["every"] == 4
    assert "--operator camera_of_mine:make" in cell["command"] and "--every 4" in cell["command"]
    assert "recorded" in ddiff("evaluate", "x.npy", *own, "--sigmas", "0.1", "--no-report", "--no-cache")[2]
    code, _, err = ddiff("warmup", "--operator", "camera_of_mine:halve", "--steps", "2", "--batch-size", "1")
    assert code == 0, err
    assert "compiled in" in err


def test_what_does_not_fit_the_prior_is_said_before_anything_runs(mine, ddiff, quick_prior, unchecked):
    np.save("x.npy", image())
    for name, message in {
        "grey": "camera_of_mine:grey, called with the image shape (64, 64, 3), raises ValueError: one channel",
        "pairs": "camera_of_mine:pairs does not take images of [64, 64, 3] (the prior faces64): it raises TypeError",
        "levels": "must measure one array of float32 or complex64; it makes int32[64, 64, 3]",
        "small": "camera_of_mine:small takes images of [8, 8, 1], and there are images of [8, 8, 3]",
        "number": "it is a int",
        "absent": "camera_of_mine has no absent; it holds jax",
        "draw_function": "draws with a key and makes a function",
    }.items():
        code, _, err = ddiff("restore", "x.npy", "--operator", f"camera_of_mine:{name}", *QUICK)
        assert code == 2, (name, err)
        assert message in err, name
        assert "Traceback" not in err
    code, _, err = ddiff("restore", "x.npy", "--operator", "camera_of_mine:make", "--evry", "3")
    assert code == 2 and "did you mean '--every'" in err
    code, _, err = ddiff("restore", "x.npy", "--measured", "--operator", "camera_of_mine:halve")
    assert code == 2 and "nothing is known of the noise of camera_of_mine:halve: give --sigma" in err
    typed = read(["--measured", "--operator", "camera_of_mine:halve", "--sigma", "0.05"]).settings  # the same number
    assert typed.sigma_y == 0.05
    code, _, err = ddiff("restore", "x.npy", "--measured", "--operator", "camera_of_mine:draw", "--share", "0.5")
    assert code == 2 and "give --sigma" in err


def test_settings_from_python_are_those_of_the_command_line(mine):
    asked = resolve(operator_name="camera_of_mine:draw", operator={"share": 0.25}, sigma=0.1)
    typed = read(["--operator", "camera_of_mine.py:draw", "--share", "0.25", "--sigma", "0.1"]).settings
    assert asked.as_dict()["operator"] == typed.as_dict()["operator"]
    assert asked.task == "camera_of_mine:draw" and asked.solver.num_steps == 100  # pyright: ignore
    assert is_random("camera_of_mine:draw", {})
    assert operator_parameters("camera_of_mine:make").keys() == {"every", "weights", "gain"}
    assert operator_parameters("camera_of_mine:Plain") == {"seed": (int, 0)}
    np.save("w.npy", image())
    held = resolve(operator_name="camera_of_mine:make", operator={"weights": "w.npy", "gain": 2.0})
    assert (held.files, held.arguments) == ({"weights": Path("w.npy")}, {"every": 2, "gain": 2.0})
    borrowed = resolve(task="gaussian_blur", operator_name="camera_of_mine:halve", values="published")
    assert (borrowed.task, borrowed.operator) == ("gaussian_blur", "camera_of_mine:halve")
    with pytest.raises(ValueError, match="needs --share"):
        resolve(operator_name="camera_of_mine:draw")
    with pytest.raises(UnknownName, match="unknown operator 'bluur'; did you mean 'blur'"):
        resolve(operator_name="bluur")
    plan = Plan(images=("x.png",), tasks=("camera_of_mine:draw",), changes={"camera_of_mine:draw": {"share": 0.5}})
    assert plan.settings(plan.cells()[0]).arguments == {"share": 0.5}


def test_an_operator_that_is_made_for_one_size_says_which(mine):
    settings = resolve(operator_name="camera_of_mine:wide", measured=True, sigma=0.1)
    assert settings.shape == (80, 64, 3)
    np.save("y.npy", np.zeros((40, 64, 3), np.float32))
    assert Reader(settings).read(Job(Path("y.npy"), "y", "y_", Path("out"))).shape == (80, 64, 3)
    with pytest.raises(ValueError, match=r"takes images of \[80, 64, 3\], and there are images of \[64, 64, 3\]"):
        Reader(resolve(operator_name="camera_of_mine:wide", measured=True, sigma=0.1, fit="refuse"))


def test_a_grey_measurement_without_an_axis_of_channels_is_replicated(mine):
    settings = resolve(measured=True)
    np.save("y.npy", np.linspace(-1, 1, 20 * 16, dtype=np.float32).reshape(20, 16))
    item = Reader(settings).read(Job(Path("y.npy"), "y", "y_", Path("out")))
    assert (item.shape, item.y.shape) == ((80, 64, 3), (20, 16, 3))  # behind which there is a larger image


def test_names_of_the_package_serve_too(mine):
    assert resolve(operator_name="super_resolution").as_dict() == resolve().as_dict()
    without = resolve(operator_name="tomography", operator={"angles": "angles.npy"})
    assert without.operator == "tomography" and "has no preset" in " ".join(without.notes)
    assert read(["--operator", "gaussian_blur", "--std", "2"]).settings.arguments["std"] == 2.0


def test_built_twice_it_is_the_same(mine):
    made = named.maker("camera_of_mine:make")
    assert made.build((64, 64, 3), every=2) is made.build((64, 64, 3), every=2)
    assert made.build((64, 64, 3), every=4) is not made.build((64, 64, 3), every=2)
    plain = named.maker("camera_of_mine:Plain").build((8, 8, 3))
    assert isinstance(plain, Function)  # its class is no pytree, and offers nothing but forward
    key = jax.random.key(0)
    mask = named.maker("camera_of_mine:draw").build((8, 8, 3), key, share=0.5).mask  # pyright: ignore
    assert 0 < mask.mean() < 1


# ddiff check


def test_check_takes_flags_and_tells_what_it_does(mine, ddiff):
    code, out, err = ddiff("check", "camera_of_mine:make", "--shape", "8", "8", "1", "--every", "4")
    assert code == 0, out + err
    assert "[8, 8, 1] -> float32[2, 8, 1]" in out
    assert "checking gradient against central differences ..." in err
    code, out, _ = ddiff("check", "--operator", "camera_of_mine:shifted", "--shape", "8", "8", "1", "--quiet")
    assert code == 0 and "affine: A(x) - A(0) is linear" in out and "operators.affine" in out
    code, out, _ = ddiff("check", "camera_of_mine:halve", "--prior", "faces64", "--shape", "8", "8", "2", "--quiet")
    assert code == 1
    assert "WRONG prior" in out and "the channels must be the same; complex images are two channels" in out
    code, _, err = ddiff("check", "camera_of_mine:draw")
    assert code == 2 and "needs --share" in err


def test_check_ends_in_time_with_what_it_found(mine):
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    command = [sys.executable, "-m", "ddiff_jax", "check", "camera_of_mine:slow", "--shape", "8", "8", "1"]
    done = subprocess.run(
        [*command, "--seconds", "1"], cwd=mine, env=environment, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 1, done.stderr
    assert "over after 1 s, while it looked at the " in done.stdout
    assert done.stdout.endswith("Nothing is wrong, but not everything was looked at.\n")
    assert not any(thread.name == THREAD for thread in threading.enumerate())


def test_a_module_that_ends_the_process_is_an_error(mine, capsys):
    Path("camera_that_leaves.py").write_text("raise SystemExit(3)")
    assert cli.main(["check", "camera_that_leaves:x"]) == 2
    assert "cannot be imported: SystemExit: 3" in capsys.readouterr().err
