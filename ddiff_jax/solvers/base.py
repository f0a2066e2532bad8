"""What a solver is: a table of steps, a state, and one step."""

from typing import Any, Protocol, TypeVar, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Float, PyTree, Shaped

from ddiff_jax.noise import Noise
from ddiff_jax.operators.base import ImageShape
from ddiff_jax.prior import Prior
from ddiff_jax.problem import Problem
from ddiff_jax.pytree import pytree_dataclass
from ddiff_jax.schedule import NoiseSchedule
from ddiff_jax.types import Image

State = TypeVar("State")


@pytree_dataclass
class StepInfo:
    """What a step reports.

    Args:
        misfit: mean |A(v) - y|^2 at the point v where the step met the data.
    """

    misfit: Float[Array, "..."]


@runtime_checkable
class Solver(Protocol[State]):
    """A method as a value: a frozen pytree of hyper-parameters with four pure methods.

    Arrays and floats are leaves, so that a new value of gamma compiles nothing; step counts, flags and names are
    static. See `ddiff_jax.solvers.ddiff` for a complete example.
    """

    def grid(self, schedule: NoiseSchedule) -> PyTree[Shaped[Array, "K ..."]]:
        """Tabulate all per-step numbers: a pytree whose leaves have K rows, one per step."""
        ...

    def init(
        self, prior: Prior, problem: Problem, shape: ImageShape, noise: Noise, x_init: Image | None = None
    ) -> State:
        """Make the first state, from `x_init` where it is given."""
        ...

    def step(self, prior: Prior, problem: Problem, state: State, point: Any, noise: Noise) -> tuple[State, StepInfo]:
        """Make one step; `point` is the step's row of the grid."""
        ...

    def estimate(self, state: State) -> Image:
        """Read the restored image off a state."""
        ...


def coerce(obj: Any, **checks: str) -> None:
    """Turn the named float fields of a frozen dataclass into float32 arrays, in place, and check concrete ones.

    For `__post_init__`: a Python float in a pytree would be weakly typed and compile every program once more.

    Args:
        obj: the dataclass.
        checks: field name to the condition it must meet: "positive", "non-negative" or "fraction" (in [0, 1]).

    Raises:
        ValueError: a number does not meet its condition.
    """
    tests = {
        "positive": lambda v: v > 0,
        "non-negative": lambda v: v >= 0,
        "fraction": lambda v: (v >= 0) & (v <= 1),
    }
    for name, check in checks.items():
        value = getattr(obj, name)
        if isinstance(value, jax.Array):
            value = value.astype(jnp.float32)
        else:
            value = np.float32(value)
        if not isinstance(value, Tracer) and not np.all(np.isfinite(value) & tests[check](value)):
            raise ValueError(f"{type(obj).__name__}.{name} must be {check} and finite; got {value}")
        object.__setattr__(obj, name, value)


def check_choice(obj: Any, **choices: tuple[str, ...]) -> None:
    """Check that string fields hold one of their allowed values.

    Raises:
        ValueError: one does not; the message lists the choices.
    """
    for name, allowed in choices.items():
        if getattr(obj, name) not in allowed:
            raise ValueError(
                f"{type(obj).__name__}.{name} must be one of {', '.join(allowed)}; got {getattr(obj, name)!r}"
            )
