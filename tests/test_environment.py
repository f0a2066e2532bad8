"""What surrounds a command: JAX's settings for debugging, terminals, closed streams, folders that cannot be used."""

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import gaussian_prior
from test_evaluation import save_photos

import ddiff_jax as dd
from ddiff_jax import cli
from ddiff_jax.cli import environment, flags
from ddiff_jax.cli.signals import terminable

ROOT = Path(dd.__file__).parents[1]
SAMPLE = Path(str(dd.__path__[0])) / "assets" / "sample.png"
QUICK = ("restore", SAMPLE, "--steps", 2, "--output", "out", "--no-cache", "--quiet")


def call(*arguments, **environment):
    """Call the command line in a process of its own."""
    command = [sys.executable, "-m", "ddiff_jax", *map(str, arguments)]
    given = {**os.environ, "PYTHONPATH": str(ROOT), **environment}
    return subprocess.run(command, env=given, capture_output=True, text=True, check=False, timeout=300)


@pytest.mark.parametrize("name", ["ddiff", "dps"])
def test_who_looks_for_nan_finds_none_of_ours(name):
    solver, prior = dd.preset("faces64", "super_resolution", name, num_steps=2), gaussian_prior((8, 8, 3))
    operator, keys = dd.operators.super_resolution((8, 8, 3), factor=2), dd.image_keys(jax.random.key(0), jnp.arange(1))
    problem, seen = dd.Problem(operator, jnp.zeros((1, 4, 4, 3)), 0.05), []
    with jax.debug_nans(True):
        dd.solve(solver, prior, problem, keys, num_chunks=2, on_chunk=seen.append)
        stopped = dd.solve(solver, prior, problem, keys, num_chunks=2, on_chunk=lambda progress: progress.step == 1)
    assert np.isnan(seen[0].misfit).all()
    assert np.isfinite(seen[1].misfit).all()
    np.testing.assert_array_equal(np.isnan(stopped.info.misfit), [[False, True]])


def test_settings_for_debugging_do_not_end_a_command_and_come_back(ddiff, quick_prior):
    assert ddiff(*QUICK)[0] == 0
    plain = Path("out/sample_restored.png").read_bytes()
    for name, value in {"jax_debug_nans": True, "jax_transfer_guard": "disallow"}.items():
        jax.config.update(name, value)
    try:
        with jax.default_prng_impl("rbg"):
            code, _, err = ddiff(*QUICK, "--existing", "overwrite")
            assert (code, err) == (0, "")
            assert Path("out/sample_restored.png").read_bytes() == plain
            code, _, err = ddiff(*QUICK, "--gamma", 3e38, "--existing", "overwrite")
            assert (code, len(err.splitlines())) == (1, 1)
            assert "diverged to NaN" in err
        assert [getattr(jax.config, name) for name in ("jax_debug_nans", "jax_transfer_guard")] == [True, "disallow"]
    finally:
        jax.config.update("jax_debug_nans", False)
        jax.config.update("jax_transfer_guard", None)


def test_contexts_for_debugging_do_not_leak(ddiff, quick_prior):
    with jax.debug_nans(True), jax.transfer_guard("disallow"):
        assert ddiff(*QUICK)[0] == 0
    assert not getattr(jax.config, "jax_debug_nans")  # noqa: B009 - its stub lacks it
    assert jnp.zeros(2)[0] == 0  # which transfers an index


def test_numbers_out_of_range_are_usage_errors(ddiff):
    for given, message in {
        ("--seed", -1): "--seed must be from 0 to 4294967295; got -1",
        ("--seed", 2**32): "--seed must be from 0 to 4294967295; got 4294967296",
        ("--batch-size", 0): "--batch-size must be at least 1; got 0",
        ("--restarts", 0): "--restarts must be at least 1; got 0",
        ("--save-every", -1): "--save-every must be at least 0 seconds; got -1",
        ("--save-every", "nan"): "--save-every must be at least 0 seconds; got nan",
        ("--full-scale", 0): "--full-scale must be at least 1; got 0",
    }.items():
        code, out, err = ddiff(*QUICK, *given)
        assert (code, out, len(err.splitlines())) == (2, "", 1)
        assert message in err
    assert not Path("out").exists()
    code, _, err = ddiff(*QUICK, "--steps", 0)
    assert (code, len(err.splitlines())) == (2, 1)
    assert "steps" in err


def test_help_ends_in_a_terminal_of_five_columns(ddiff, monkeypatch):
    monkeypatch.setenv("COLUMNS", "5")
    with flags._wide_enough():
        assert shutil.get_terminal_size().columns == flags.LEAST_COLUMNS
    for command in ("restore", "evaluate", "info"):
        code, out, _ = ddiff(command, "--help")
        assert (code, "--json" in out, os.environ["COLUMNS"]) == (0, True, "5")


def test_a_cache_that_cannot_be_written_is_gone_without(monkeypatch, capsys, tmp_path):
    (tmp_path / "file").touch()
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert not environment.use_compilation_cache()
    assert "compiled programs are not kept for the next run" in capsys.readouterr().err

    def homeless():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr(Path, "home", homeless)
    assert not environment.use_compilation_cache()
    assert "no home folder; set XDG_CACHE_HOME" in capsys.readouterr().err


def test_folders_that_cannot_be_written_are_said_before_anything_is_computed(ddiff):
    Path("file").touch()
    for command in (("restore", SAMPLE), ("evaluate", SAMPLE, "--quiet"), ("sample",)):
        code, _, err = ddiff(*command, "--output", "file/out", "--no-cache")
        assert (code, "cannot write to file/out: Not a directory; choose another --output" in err) == (2, True)


def test_a_signal_that_is_ignored_stays_ignored():
    earlier = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with terminable():
            signal.raise_signal(signal.SIGHUP)  # as after nohup
            with pytest.raises(KeyboardInterrupt):
                signal.raise_signal(signal.SIGTERM)
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, earlier)


class Unwritable:
    """A stream on a full disk, or whose reader has gone."""

    encoding = "utf-8"

    def __init__(self, error):
        self._error = error

    def write(self, text):
        raise self._error

    def flush(self):
        pass

    def isatty(self):
        return False


@pytest.mark.parametrize("error", [BrokenPipeError(), OSError(28, "No space left on device")])
def test_what_cannot_be_said_does_not_end_the_work(error, ddiff, quick_prior, monkeypatch):
    monkeypatch.setattr(sys, "stderr", Unwritable(error))
    monkeypatch.setattr(sys, "stdout", Unwritable(error))
    assert cli.main(["restore", str(SAMPLE), "--steps", "2", "--output", "out", "--no-cache"]) == 0
    assert Path("out/sample_restored.png").exists()


def test_without_the_device_that_is_asked_for_one_line_says_so(tmp_path):
    done = call("restore", "--output", tmp_path / "out", "--no-cache", JAX_PLATFORMS="cuda", PYTHONOPTIMIZE="1")
    assert (done.returncode, done.stdout, len(done.stderr.splitlines())) == (2, "", 1)
    assert "JAX has no device to compute on; JAX_PLATFORMS=cuda asks for one that is not there" in done.stderr


@pytest.mark.slow
def test_a_process_in_a_strange_environment(tmp_path):
    save_photos(tmp_path / "photos", 1)
    command = ("restore", tmp_path / "photos", "--steps", 2, "--json")
    cache = {"JAX_COMPILATION_CACHE_DIR": str(tmp_path / "cache")}
    plain = call(*command, "--output", tmp_path / "plain", **cache)
    assert plain.returncode == 0
    strange = {
        **{"JAX_DEBUG_NANS": "1", "JAX_TRANSFER_GUARD": "disallow", "JAX_DEFAULT_PRNG_IMPL": "rbg"},
        **{"JAX_NUMPY_RANK_PROMOTION": "raise", "JAX_NUMPY_DTYPE_PROMOTION": "strict", "PYTHONOPTIMIZE": "1"},
        **{"LANG": "C", "LC_ALL": "C", "PYTHONIOENCODING": "ascii", "NO_COLOR": "1", "COLUMNS": "5"},
        **{"TMPDIR": "/nonexistent", **cache},
    }
    for number, given in enumerate((strange, {"JAX_ENABLE_X64": "1", "HOME": "/dev/null", **cache})):
        folder = tmp_path / str(number)
        done = call(*command, "--output", folder, **given)
        assert done.returncode == 0, done.stderr
        ours, theirs = ((f / "photo0_restored.png").read_bytes() for f in (folder, tmp_path / "plain"))
        assert number == 1 or ours == theirs  # in float64 noise may be rounded otherwise
    for closed in (">&-", "2>&-", "> /dev/full", "2> /dev/full"):
        line = (
            f"{sys.executable} -m ddiff_jax restore {tmp_path}/photos --steps 2 --json --output {tmp_path}/x {closed}"
        )
        done = subprocess.run(["sh", "-c", line], env={**os.environ, **cache, "PYTHONPATH": str(ROOT)}, check=False)
        assert done.returncode == (2 if closed == "> /dev/full" else 0)
        assert (tmp_path / "x" / "photo0_restored.png").exists()
