"""`check_operator` and `ddiff check`: sound operators pass, and every kind of mistake is found and named."""

import json
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ddiff_jax as dd
from ddiff_jax import cli, operators
from ddiff_jax.operators import LinearOperator
from ddiff_jax.operators.tracing import CURES

pytestmark = pytest.mark.once

SHAPE = (16, 12, 3)


@pytest.fixture(autouse=True)
def as_users_have_it():
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


def texts(report, ok=False):
    return " ".join(f"{f.name}: {f.text}" for f in report.findings if f.ok is ok)


@pytest.mark.parametrize(
    ("operator", "linear", "norm"),
    [
        (operators.inpainting(SHAPE, np.arange(192).reshape(16, 12) % 2), True, 1.0),
        (operators.undersampled_fourier(SHAPE, jax.random.key(0)), True, 1.0),
        (operators.high_dynamic_range(SHAPE), False, 2.0),
        (lambda x: 3 * x[::2], True, 3.0),
        (lambda x: jnp.tanh(x) + 1, False, None),
        (lambda x: x + 1, False, 1.0),  # affine is not linear
    ],
)
def test_sound_operators_pass(operator, linear, norm):
    report = dd.check_operator(operator, SHAPE)
    assert report.ok, str(report)
    assert report.linear is linear
    if norm is not None:
        np.testing.assert_allclose(float(report.spectral_norm or 0), norm, rtol=1e-3)
    assert report.gamma is not None and report.gamma > 0
    assert "sound" in str(report)


def test_the_suggested_step_undoes_an_error_best():
    # Of y = c x the gradient is along the error itself, so the best step is the error's own length, whatever c.
    report = dd.check_operator(lambda x: 5 * x, (64, 64, 3))
    assert report.gamma is not None
    np.testing.assert_allclose(float(report.gamma or 0), 0.3 / 3.3 * np.sqrt(256 * 256 * 3), rtol=0.02)


@jax.custom_jvp
def wrong_derivative(x):
    return x**2


wrong_derivative.defjvp(lambda primals, tangents: (primals[0] ** 2, 3 * primals[0] * tangents[0]))


@dd.pytree_dataclass
class WrongAdjoint(LinearOperator):
    image_shape: tuple[int, int, int] = dd.static_field()

    def forward(self, x):
        return 2 * x

    def adjoint(self, y):
        return y


@dd.pytree_dataclass
class AdjointOfNothing(WrongAdjoint):
    def forward(self, x):
        return x**2


def mixes_the_batch(x):
    @jax.custom_batching.custom_vmap
    def centred(x):
        return x + 1

    centred.def_vmap(lambda size, batched, x: (x + jnp.mean(x), True))
    return centred(x)


def noisy(x, generator=np.random.default_rng(0)):  # noqa: B008 - one for all calls, on purpose
    return x + 0.1 * generator.standard_normal()


BROKEN = {
    "rounds": (lambda x: jnp.round(4 * x) / 4, "gradient: zero everywhere"),
    "logarithm": (jnp.log, "finiteness: NaN or infinity for"),
    "root": (lambda x: jnp.sqrt(jnp.abs(x)), "the gradient is NaN or infinite for the constant 0.0"),
    "branches": (lambda x: x if x.sum() > 0 else -x, "tracing: raises TracerBoolConversionError"),
    "numpy": (lambda x: np.sin(np.asarray(x)), "tracing: raises TracerArrayConversionError"),
    "own error": (lambda x: x.reshape(7, 7), "tracing: raises TypeError"),
    "integers": (lambda x: (10 * x).astype(jnp.int32), "float32 or complex64 is wanted"),
    "two arrays": (lambda x: (x, x), "must return one array; returns tuple"),
    "random": (noisy, "repeatability: two calls"),
    "batch": (mixes_the_batch, "vmap: differs from a loop"),
    "derivative": (wrong_derivative, "a custom derivative is wrong"),
    "adjoint": (WrongAdjoint(SHAPE), "adjoint: <A x, y> and <x, A^H y> differ"),
    "adjoint of nothing": (AdjointOfNothing(SHAPE), "has a method adjoint, but is not linear"),
    "empty": (lambda x: x[:0], "[16, 12, 3] -> float32[0, 12, 3]"),
    "zero": (lambda x: 0 * x, "gradient: zero everywhere"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_every_mistake_is_found(name, unchecked):
    operator, message = BROKEN[name]
    report = dd.check_operator(operator, SHAPE)
    assert not report.ok
    assert message in texts(report)
    assert "to mend" in str(report)
    json.dumps(report.as_dict())


class Keeps:
    """An operator that remembers its last image, traced as it was."""

    def __init__(self):
        self.last = None

    def forward(self, x):
        y = x if self.last is None else x - self.last
        self.last = x
        return y


UNTRACEABLE = {
    "NonConcreteBooleanIndexError": (lambda x: x[:, jnp.arange(12) % 3 != 2], "make a constant mask with NumPy"),
    "NonConcreteBooleanIndexError of the image": (lambda x: x[x > 0], "jnp.where(mask, x, 0)"),
    "TracerBoolConversionError": (lambda x: x if x.sum() > 0 else -x, "between values with jnp.where"),
    "TracerBoolConversionError of min": (lambda x: x * min(x.sum(), 1.0), "jnp.minimum"),
    "TracerArrayConversionError": (lambda x: np.convolve(x[:, 0, 0], [1, 1]), "same name in jax.numpy"),
    "TracerIntegerConversionError": (lambda x: x * [1.0, 2.0][(x.sum() > 0).astype(int)], "jnp.take"),
    "ConcretizationTypeError": (lambda x: x * float(x.sum()), "leave the conversion out"),
    "ConcretizationTypeError of an item": (lambda x: x * x.sum().item(), "leave the conversion out"),
    "ConcretizationTypeError of a size": (lambda x: jnp.nonzero(x)[0] * 1.0, "sizes from x.shape"),
    "UnexpectedTracerError": (Keeps(), "keeps an array of an earlier call"),
    "TypeError": (lambda x: x.reshape(7, 7), "one image of shape [16, 12, 3], without a batch axis"),
}


@pytest.mark.parametrize("name", UNTRACEABLE)
def test_every_way_to_look_at_values_too_early_has_its_own_cure(name, unchecked):
    operator, cure = UNTRACEABLE[name]
    (finding,) = (f for f in dd.check_operator(operator, SHAPE).findings if f.ok is False)
    assert f"raises {name.split()[0]}: " in finding.text
    assert cure in finding.text
    told = [kind.__name__ for kind, text in CURES.items() if text in finding.text]
    assert told == ([] if name == "TypeError" else [name.split()[0]])


def test_functions_that_cannot_be_traced_are_refused_with_the_cure(unchecked):
    with pytest.raises(TypeError, match=r"the function: it raises NonConcreteBoolean\w+: .*; .*mask with NumPy"):
        operators.from_function(lambda x: x[:, jnp.arange(12) % 3 != 2], SHAPE)


def test_the_cures_cure():
    columns = np.arange(12) % 3 != 2
    for mended in (
        lambda x: x[:, columns],
        lambda x: jnp.where(x > 0, x, 0),
        lambda x: jnp.where(x.sum() > 0, x, -x),
        lambda x: x * jnp.minimum(x.sum(), 1.0),
        lambda x: jnp.convolve(x[:, 0, 0], jnp.ones(2)),
        lambda x: x * jnp.take(jnp.asarray([1.0, 2.0]), (x.sum() > 0).astype(int)),
        lambda x: x * x.sum(),
    ):
        assert jnp.isfinite(jax.jit(mended)(jnp.full(SHAPE, 0.1))).all()


def test_what_is_no_operator_or_shape_is_refused(unchecked):
    with pytest.raises(TypeError, match="has a method forward, or is a function; got int"):
        dd.check_operator(3, SHAPE)  # pyright: ignore[reportArgumentType] - a wrong type on purpose
    with pytest.raises(ValueError, match="positive integers with the channels last"):
        dd.check_operator(jnp.sin, (4,))


def test_functions_become_operators(unchecked):
    halve = operators.from_function(lambda x: x[::2], SHAPE, linear=True)
    assert isinstance(halve, LinearOperator)
    y = jnp.ones((8, 12, 3))
    np.testing.assert_array_equal(halve.adjoint(y)[::2], y)
    assert not isinstance(operators.from_function(jnp.sin, SHAPE), LinearOperator)
    with pytest.raises(TypeError, match="must return one array; it returns tuple"):
        operators.from_function(lambda x: (x, x), SHAPE)
    with pytest.raises(TypeError, match="a function of one image is wanted; got int"):
        operators.from_function(3, SHAPE)  # pyright: ignore[reportArgumentType] - a wrong type on purpose


MODULE = """
import jax.numpy as jnp
def sound(x): return x[::2]
def rounds(x): return jnp.round(x)
def make(shape): return lambda x: x.reshape(-1)[: shape[0]]
number = 3
class Camera:
    def forward(self, x): return x
"""


def test_the_command_reports_and_its_exit_code_tells(tmp_path):
    (tmp_path / "own_camera.py").write_text(MODULE)
    command = [sys.executable, "-m", "ddiff_jax", "check", "own_camera:sound", "--shape", "8", "8", "1", "--json"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    report = json.loads(done.stdout)
    assert report["ok"] and report["linear"] and report["measurement_shape"] == [4, 8, 1]


def test_the_command_finds_modules_makers_and_mistakes(tmp_path, monkeypatch, capsys):
    (tmp_path / "own_lens.py").write_text(MODULE)
    (tmp_path / "own_broken.py").write_text("import nothing_of_this_name")
    monkeypatch.chdir(tmp_path)
    assert cli.main(["check", "own_lens:rounds", "--shape", "8", "8", "1"]) == 1
    assert "WRONG gradient" in capsys.readouterr().out
    assert cli.main(["check", "own_lens:make", "--shape", "8", "8", "1"]) == 0
    assert "float32[8]" in capsys.readouterr().out
    for name, message in {
        "own_lens": "named MODULE:NAME",
        "own_lens:missing": "has no missing; it holds jnp, sound",
        "own_lens:number": "it is a int",
        "own_lens:Camera": "a class; name an object of it",
        "own_absent:x": "cannot be imported: ModuleNotFoundError",
        "own_broken:x": "cannot be imported: ModuleNotFoundError: No module named 'nothing_of_this_name'",
    }.items():
        assert cli.main(["check", name]) == 2
        assert message in capsys.readouterr().err
