"""Strict numerics for every test: no silent rank or dtype promotion, no warnings, no network."""

import os
from pathlib import Path

import jax
import jax.numpy as jnp
import jaxtyping
import pytest
from weights import smoothing_prior

import ddiff_jax as dd
from ddiff_jax import cli
from ddiff_jax.metrics import _perceptual as perceptual
from ddiff_jax.restoration import run

GOLDEN = Path(__file__).parent / "golden"


def pytest_configure(config):
    # Most of a test's time goes into compiling programs that run for milliseconds: XLA takes the short way, here and in
    # the processes that tests start. Tests whose programs run longer ask for the `optimised` fixture.
    os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
    jax.config.update("jax_disable_most_optimizations", os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] == "1")


@pytest.fixture
def optimised():
    """Compile as users do."""
    before = jax.config.read("jax_disable_most_optimizations")
    jax.config.update("jax_disable_most_optimizations", False)
    yield
    jax.config.update("jax_disable_most_optimizations", before)


@pytest.fixture(autouse=True)
def strict_numerics():
    with jax.numpy_rank_promotion("raise"), jax.numpy_dtype_promotion("strict"):
        yield


@pytest.fixture(autouse=True)
def no_installed_lpips(monkeypatch):
    """Find the same, nothing, wherever the tests run."""
    monkeypatch.setattr(perceptual, "PACKAGE", "no_such_package")


@pytest.fixture
def x64():
    with jax.enable_x64(True):
        yield


@pytest.fixture
def unchecked():
    """Switch the runtime type checks off, as they are for users: what is tested is our own error."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


@pytest.fixture
def quick_prior(monkeypatch):
    """Let the name of the packaged prior stand for a network that costs nothing."""
    prior = smoothing_prior()
    monkeypatch.setattr(run, "load_prior", lambda name, dtype: prior)


@pytest.fixture
def ddiff(tmp_path, monkeypatch, capsys):
    """Call the command line in an empty folder; returns exit code, standard output and standard error."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))

    def call(*arguments):
        code = cli.main([str(a) for a in arguments])
        return code, *capsys.readouterr()

    return call


@pytest.fixture
def golden():
    """Path of a file of recorded results."""
    return lambda name: GOLDEN / name


def gaussian_prior(shape=(16, 16, 3), mean=0.0, var=0.25, clip=True):
    return dd.GaussianPrior(jnp.float32(mean), jnp.float32(var), dd.linear_schedule(), shape, clip=clip)
