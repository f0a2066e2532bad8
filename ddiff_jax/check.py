"""Tell whether a measurement operator is sound before any time is spent on it."""

import dataclasses
import threading
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ddiff_jax.linearity import linearity
from ddiff_jax.noise import root_key
from ddiff_jax.operators._affine import Affine
from ddiff_jax.operators._function import Function, LinearFunction
from ddiff_jax.operators.base import (
    Operator,
    check_any_shape,
    dot_test,
    known_image_shape,
    observed_entries,
    spectral_norm,
)
from ddiff_jax.operators.named import registered
from ddiff_jax.operators.tracing import diagnosis
from ddiff_jax.pytree import check_registered
from ddiff_jax.solvers.base import size_factor
from ddiff_jax.solvers.step_length import Fixed
from ddiff_jax.types import Image, ImageShape, Measurement

AGREEMENT = 1e-5  # of two float32 programs, relative to the largest entry
GRADIENT = {jnp.dtype(jnp.float64): 1e-5, jnp.dtype(jnp.float32): 2e-2}  # relative, against a central difference
STEP = {jnp.dtype(jnp.float64): 1e-6, jnp.dtype(jnp.float32): 1e-2}  # of the central difference
GAP = "<A x, y> and <x, A^H y> differ by"
THREAD = "check of an operator"  # name of the thread that works while the time is watched
ERROR_LEVEL = 0.3  # root mean square of the error that the suggested step undoes


@dataclasses.dataclass(frozen=True)
class Finding:
    """One thing that was looked at.

    Args:
        name: what.
        ok: whether it is as it must be; None for mere information.
        text: what was found, and what to do where it is wrong.
    """

    name: str
    ok: bool | None
    text: str


@dataclasses.dataclass(frozen=True)
class Report:
    """What `check_operator` found; print it.

    Args:
        findings: in the order in which they were made.
        image_shape: (H, W, C) of the input.
        measurement_shape: shape of A(x), None if it cannot be traced.
        dtype: of A(x).
        linear: whether A is linear; None if it was not reached.
        spectral_norm: largest singular value of A, or of its derivative at a test image.
        gamma: suggested `Fixed.gamma` of DDiff.
        complete: whether all that can be looked at was, in the time that there was.
    """

    findings: tuple[Finding, ...]
    image_shape: ImageShape
    measurement_shape: tuple[int, ...] | None = None
    dtype: str | None = None
    linear: bool | None = None
    spectral_norm: float | None = None
    gamma: float | None = None
    complete: bool = True

    @property
    def ok(self) -> bool:
        """Whether nothing is wrong of what was looked at."""
        return all(finding.ok is not False for finding in self.findings)

    def as_dict(self) -> dict[str, Any]:
        """Give plain types for JSON."""
        return {"ok": self.ok, **dataclasses.asdict(self)}

    def __str__(self) -> str:
        marks = {True: "ok", False: "WRONG", None: ""}
        width = max(len(finding.name) for finding in self.findings)
        lines = [f"{marks[f.ok]:<6}{f.name:<{width}}  {f.text}" for f in self.findings]
        wrong = sum(finding.ok is False for finding in self.findings)
        sound = "The operator is sound." if self.complete else "Nothing is wrong, but not everything was looked at."
        verdict = sound if self.ok else f"{wrong} thing{'s' * (wrong > 1)} to mend."
        return "\n".join([*lines, verdict])


def check_operator(
    operator: Operator | Callable[[Any], Any],
    shape: ImageShape,
    *,
    seed: int = 0,
    prior_shape: ImageShape | None = None,
    seconds: float | None = None,
    tell: Callable[[str], None] = lambda doing: None,
) -> Report:
    """Check an operator on test images: can it be traced, batched, differentiated, and is its adjoint the adjoint?

    Looks at shape and type, finiteness inside and outside of [-1, 1], repeatability, agreement of plain, compiled and
    batched calls, gradients against central differences in float64, linearity with or without an offset, and for a
    linear operator the adjoint (by <A x, y> = <x, A^H y>). Estimates the spectral norm and suggests a step length.

    The suggested gamma of `Fixed` is the step that best undoes an error of white noise with root mean square 0.3: with
    g = J^T J e that is |g|^3 / |J g|^2, for the derivative J of A at a test image. It is divided by 3.3, the factor on
    the first steps, and stated for 256x256x3 numbers as everywhere. Measured against the published FFHQ values, it is
    0.4 to 1.2 times those of the "full" noise schedule (super-resolution, both inpaintings, phase retrieval), and too
    long for the "posterior" schedule: 2 to 3 times for blurs, 10 times for high dynamic range. A place to start a
    search, then, not a result.

    Args:
        operator: any object with `forward`, or a function of one image.
        shape: (H, W, C) of the images, or (L, C) of signals, or (D, H, W, C) of volumes.
        seed: draws the test images.
        prior_shape: of the images of the prior that is to be used; then the channels must be the same.
        seconds: after which the report says what was found by then; what is running goes on in a thread of its own and
            ends after its next step. None takes as long as it takes.
        tell: told what is looked at, before it is.

    Returns:
        A report; `report.ok` says whether all is well, and printing it says what is not. Errors that the operator
        raises become findings.

    Raises:
        ValueError: the shape is no image shape.
        TypeError: the operator has neither `forward` nor is callable.
    """
    shape = check_any_shape(shape)
    if not isinstance(operator, Operator):
        if not callable(operator):
            raise TypeError(f"an operator has a method forward, or is a function; got {type(operator).__name__}")
        operator = Function(operator, shape)
    check = _Check(registered(operator, shape), shape, seed, prior_shape, tell)
    complete = check.run(seconds)
    return Report(tuple(check.findings), shape, **check.facts, complete=complete)


class _Check:
    """The checks in their order; the first that makes the others pointless ends the run."""

    def __init__(
        self,
        operator: Operator,
        shape: ImageShape,
        seed: int,
        prior_shape: ImageShape | None,
        tell: Callable[[str], None],
    ):
        self.operator, self.shape, self.prior_shape, self.tell = operator, shape, prior_shape, tell
        self._is_over = threading.Event()
        self._doing = ""
        self.findings: list[Finding] = []
        self.facts: dict[str, Any] = {}
        self._keys = iter(jax.random.split(root_key(seed), 32))

    def find(self, name: str, ok: bool | None, text: str) -> bool | None:
        self.findings.append(Finding(name, ok, text))
        return ok

    def run(self, seconds: float | None) -> bool:
        """Look at everything, or at what can be looked at in some seconds; tells whether that was everything."""
        if seconds is None:
            self.look()
            return True
        thread = threading.Thread(target=self.look, name=THREAD, daemon=True)
        started = time.monotonic()
        thread.start()
        thread.join(seconds)
        if not thread.is_alive():
            return True
        self._is_over.set()
        self.findings, self.facts = list(self.findings), dict(self.facts)  # the thread has the others
        text = f"over after {time.monotonic() - started:.0f} s, while it looked at the {self._doing}; give it more, or"
        self.findings.append(Finding("time", None, f"{text} a smaller shape"))
        return False

    def look(self) -> None:
        steps = {
            "registration": self.registration,
            "prior": self.prior,
            "shape and type": self.trace,
            "plain, compiled and batched calls": self.programs,
            "observed entries": self.observed,
            "values and gradients in and around [-1, 1]": self.finite,
            "gradient against central differences": self.gradient,
            "linearity and adjoint": self.linearity,
            "spectral norm and step length": self.size,
        }
        for self._doing, step in steps.items():
            if self._is_over.is_set():
                return
            self.tell(self._doing)
            try:
                if step() is False:
                    return
            except Exception as error:  # whatever a stranger's code raises is a finding, not our failure
                self.find(step.__name__, False, diagnosis(error, self.shape))
                return

    def image(self, dtype: Any = jnp.float32) -> Image:
        """Draw a test image: smooth and in [-0.8, 0.8] where there is room for smoothness."""
        *sides, channels = self.shape
        coarse = (*(max(1, side // 8) for side in sides), channels)
        noise = jax.random.uniform(next(self._keys), coarse, jnp.float32, -0.8, 0.8)
        return jax.image.resize(noise, self.shape, "linear").astype(dtype)

    def white(self, dtype: Any = jnp.float32) -> Image:
        return jax.random.normal(next(self._keys), self.shape, jnp.float32).astype(dtype)

    def registration(self) -> bool | None:
        try:
            check_registered("operator", self.operator)
        except TypeError as error:
            return self.find("registration", False, str(error))
        return None

    def prior(self) -> bool | None:
        if self.prior_shape is None:
            return None
        own, priors = known_image_shape(self.operator) or self.shape, self.prior_shape
        shapes = f"images of {list(own)}, and the prior's are {list(priors)}"
        if own[-1] != priors[-1] or len(own) != len(priors):
            cure = "; complex images are two channels, real and imaginary part" if 2 in (own[-1], priors[-1]) else ""
            return self.find("prior", False, f"it takes {shapes}: the channels must be the same{cure}")
        return self.find("prior", True, f"it takes {shapes}")

    def trace(self) -> bool | None:
        try:
            made = jax.eval_shape(self.operator.forward, jax.ShapeDtypeStruct(self.shape, jnp.float32))
        except Exception as error:
            return self.find("tracing", False, diagnosis(error, self.shape))
        if not isinstance(made, jax.ShapeDtypeStruct):
            return self.find("tracing", False, f"must return one array; returns {type(made).__name__}")
        self.facts |= {"measurement_shape": made.shape, "dtype": str(made.dtype)}
        text = f"{list(self.shape)} -> {made.dtype}{list(made.shape)}"
        if made.dtype not in (jnp.float32, jnp.complex64):
            return self.find("measurement", False, f"{text}; float32 or complex64 is wanted: rounding has no gradient")
        return self.find("measurement", made.size > 0, text)

    def finite(self) -> bool | None:
        forward = jax.jit(self.operator.forward)
        gradient = jax.jit(jax.grad(lambda x, y: jnp.sum(jnp.abs(self.operator.forward(x) - y) ** 2)))
        points = {"a photograph-like image": self.image(), "noise of size 2": 2 * self.white()}
        points |= {f"the constant {value}": jnp.full(self.shape, value, jnp.float32) for value in (-1.0, 0.0, 1.0)}
        target = forward(self.image())
        bad = [name for name, x in points.items() if not _all_finite(forward(x))]
        if bad:
            return self.find("finiteness", False, f"NaN or infinity for {', '.join(bad)}; solvers do go there")
        bad = [name for name, x in points.items() if not _all_finite(gradient(x, target))]
        if bad:
            text = f"the gradient is NaN or infinite for {', '.join(bad)}; guard roots, logarithms and divisions"
            return self.find("finiteness", False, text)
        return self.find("finiteness", True, "value and gradient, inside and outside of [-1, 1]")

    def programs(self) -> bool | None:
        forward = self.operator.forward
        x = jnp.stack([self.image(), self.image()])
        plain = forward(x[0])
        if not _all_finite(plain):
            return None  # the next check says where
        if not np.array_equal(plain, forward(x[0])):
            text = "two calls with one image differ; an operator is noiseless, the noise belongs to `simulate`"
            return self.find("repeatability", False, text)
        compiled = _relative(jax.jit(forward)(x[0]), plain)
        self.find("jit", compiled < AGREEMENT, f"differs from the plain call by {compiled:.1e} (relative)")
        mapped = jax.jit(jax.vmap(forward))(x)
        worst = max(_relative(mapped[i], forward(x[i])) for i in range(2))
        return self.find("vmap", worst < AGREEMENT, f"differs from a loop by {worst:.1e} (relative)")

    def observed(self) -> bool | None:
        seen = observed_entries(self.operator, self.facts["measurement_shape"])
        if seen is None:
            return None
        leak = jnp.where(seen, 0, jnp.abs(self.operator.forward(self.image())))
        if jnp.any(leak > 0):
            text = "A(x) is not 0 where observed() is false: multiply by the mask, or use operators.masked"
            return self.find("observed", False, text)
        return self.find("observed", bool(jnp.any(seen)), f"{float(jnp.mean(seen)):.1%} of the measurement")

    def gradient(self) -> bool | None:
        with jax.enable_x64(True):
            operator = jax.tree.map(_widen, self.operator)
            x, other = self.image(jnp.float64), self.image(jnp.float64)
            y = operator.forward(other)
            dtype = jnp.dtype(jnp.finfo(y.dtype).dtype)
            value = jax.jit(lambda x: jnp.sum(jnp.abs(operator.forward(x) - y) ** 2))
            slope = jax.jit(jax.grad(value))(x)
            if not np.any(slope):
                return self.find("gradient", False, "zero everywhere: rounding, argmax or stop_gradient in the way?")
            worst = 0.0
            for _ in range(3):
                direction = self.white(jnp.float64)
                h = STEP[dtype]
                quotient = float(value(x + h * direction) - value(x - h * direction)) / (2 * h)
                scale = float(jnp.linalg.norm(slope.ravel()) * jnp.linalg.norm(direction.ravel()))
                exact = float(jnp.vdot(slope, direction))
                worst = max(worst, abs(exact - quotient) / max(abs(exact), abs(quotient), 1e-3 * scale))
        text = f"differs from a central difference in {dtype} by {worst:.1e} (relative)"
        if dtype != jnp.float64:
            text += "; it computes in float32 whatever it is given, so this says less"
        if worst > GRADIENT[dtype]:
            text += "; a custom derivative is wrong, or there are jumps"
        return self.find("gradient", worst < GRADIENT[dtype], text)

    def linearity(self) -> bool | None:
        x = self.image()
        kind, offset = linearity(self.operator, x, self.white())
        self.facts["linear"] = kind == "linear"
        adjoint = getattr(self.operator, "adjoint", None)
        if kind == "affine":
            text = f"affine: A(x) - A(0) is linear, and A(0) is {offset:.2g} times as large"
            if isinstance(self.operator, Affine):
                self.find("linearity", None, text)
                gap = float(dot_test(self.operator.linear, x, self._measurement()))
                return self.find("adjoint", gap < AGREEMENT, f"{GAP} {gap:.1e} (relative), of the linear part")
            text += "; ddiff_jax.operators.affine(linear, offset), or from_function(..., affine=True) of a function, "
            self.find("linearity", None, text + "lets solvers see the linear part and y - A(0)")
        if kind == "nonlinear":
            self.find("linearity", None, "nonlinear: solvers that need an adjoint refuse it")
        if kind != "linear":
            if adjoint is not None:
                return self.find("adjoint", False, "it has a method adjoint, but is not linear")
            return None
        if adjoint is None:
            text = "linear, but no LinearOperator: from_function(..., linear=True) or the base class add the adjoint"
            self.find("linearity", None, text)
            operator: Any = LinearFunction(self.operator.forward, self.shape)
        else:
            self.find("linearity", None, "linear")
            operator = self.operator
        gap = float(dot_test(operator, x, self._measurement()))
        return self.find("adjoint", gap < AGREEMENT, f"{GAP} {gap:.1e} (relative)")

    def _measurement(self) -> Measurement:
        dtype = jnp.dtype(self.facts["dtype"])
        return jax.random.normal(next(self._keys), self.facts["measurement_shape"], dtype)

    def size(self) -> bool | None:
        x = self.image()
        norm = float(jax.jit(lambda op, key, x: spectral_norm(op, key, at=x))(self.operator, next(self._keys), x))
        where = "largest singular value" if self.facts["linear"] else "of the derivative at a test image"
        self.find("spectral norm", norm > 0, f"{norm:.3g}, {where}")
        length = float(jax.jit(_line_search)(self.operator, x, ERROR_LEVEL * self.white()))
        gamma = length / float(Fixed.before) / size_factor(x)
        self.facts |= {"spectral_norm": norm, "gamma": gamma}
        text = f"start from DDiff(Fixed({gamma:.2g})), the step that undoes a white error of {ERROR_LEVEL} best; search"
        text += ' a factor of three each way, downwards with noise_schedule="posterior"'
        return self.find("step length", None, text)


def _line_search(operator: Operator, x: Image, error: Image) -> jax.Array:
    """Find the length of the step along the normalised gradient that undoes an error best, to first order."""
    _, push = jax.linearize(operator.forward, x)
    pull = jax.linear_transpose(push, x)
    (g,) = pull(jnp.conj(push(error)))
    size, pushed = jnp.linalg.norm(g.ravel()), jnp.linalg.norm(push(g).ravel())
    return size**3 / jnp.maximum(pushed**2, 1e-30)


def _widen(leaf: Any) -> Any:
    if not isinstance(leaf, jax.Array | np.ndarray):
        return leaf
    wide = {jnp.dtype(jnp.float32): jnp.float64, jnp.dtype(jnp.complex64): jnp.complex128}
    return jnp.asarray(leaf, wide.get(jnp.dtype(leaf.dtype), leaf.dtype)) if leaf.dtype in wide else leaf


def _all_finite(values: Any) -> bool:
    return bool(jnp.all(jnp.isfinite(values)))


def _relative(a: Any, b: Any) -> float:
    return float(jnp.max(jnp.abs(a - b)) / jnp.maximum(jnp.max(jnp.abs(b)), 1e-30))
