"""What a solver is: a table of steps, a state, and one step, with what they cost and what they need."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any, Protocol, TypeVar, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Float, PyTree, Shaped

from ddiff_jax.levels import Level, Schedule
from ddiff_jax.likelihood import Gaussian, Likelihood, sum_of_squares
from ddiff_jax.noise import Noise, draw_like
from ddiff_jax.operators._affine import linear_part
from ddiff_jax.operators.base import Operator
from ddiff_jax.priors.base import Prior
from ddiff_jax.problem import Problem
from ddiff_jax.pytree import pytree_dataclass
from ddiff_jax.types import Column, Image, Scalar

State = TypeVar("State")

# Lengths of steps are quoted as L2 lengths for this many numbers: 256 x 256 pixels, 3 channels.
REFERENCE_PIXELS = 256 * 256 * 3
# What a solver may aim at, in the words that outputs use.
AIMS = {
    "map": "one image, the most probable one or near it; runs from other noise end elsewhere, and how far apart they "
    "lie is not the posterior's uncertainty",
    "posterior": "samples of the posterior, as far as the method's approximations go",
    "estimate": "an estimate without a learned prior, which asks no network; nothing is drawn, so that all runs are "
    "the same",
}
TINY = 1e-20  # below every gradient that means something, above the float32 underflow


@dataclasses.dataclass(frozen=True)
class Cost:
    """What is computed for one image: in one step as a solver declares it, in all as `Solution` reports it.

    Args:
        network_evaluations: evaluations of the network.
        network_gradients: passes backwards through it.
        operator_evaluations: evaluations of the operator alone, or of its derivative in one direction.
        operator_gradients: evaluations of the operator together with a pass backwards through it.
        operator_solves: least-squares problems with the operator: `prox`, `pseudo_inverse`, or the equivalent with
            its singular value decomposition.
        normal_draws: draws of the size of the image or of the measurement; those of the start are not counted.
    """

    network_evaluations: int = 0
    network_gradients: int = 0
    operator_evaluations: int = 0
    operator_gradients: int = 0
    operator_solves: int = 0
    normal_draws: int = 0

    def __add__(self, other: "Cost") -> "Cost":
        """Add what else is computed."""
        return Cost(**{name: count + getattr(other, name) for name, count in dataclasses.asdict(self).items()})

    def __mul__(self, times: int) -> "Cost":
        """Add up so many steps."""
        return Cost(**{name: times * count for name, count in dataclasses.asdict(self).items()})


@dataclasses.dataclass(frozen=True)
class Needs:
    """What a solver asks of a problem.

    Args:
        methods: those that the operator must have besides `forward`, for example ("prox",).
        gaussian_noise: whether its formulas are those of Gaussian noise, and of no other.
        check: called with an operator that has the methods, to raise a ValueError if its numbers do not serve. They
            may be unknown: where a program is traced, or every image of a batch has an operator of its own.
    """

    methods: tuple[str, ...] = ()
    gaussian_noise: bool = False
    check: Callable[[Any], None] | None = None


@pytree_dataclass
class StepInfo:
    """What a step reports.

    Args:
        misfit: `Problem.misfit`, of the standardised problem, at the point v where the step met the data.
        gap: ||x - z||, how far the data step's x lies from the denoised z; None from solvers that split nothing.
        dual: ||u||, the length of the dual variable; None from solvers that keep none.
        solve_residual: ||M u - b|| / ||b|| of the linear system M u = b that the step solved; None from solvers that
            solve none, or leave it to the operator.
        effective_particles: 1 / sum W^2 of the particles' weights W, from 1, where one holds all weight, to their
            number; None from solvers without particles.
    """

    misfit: Float[Array, "..."]
    gap: Float[Array, "..."] | None = None
    dual: Float[Array, "..."] | None = None
    solve_residual: Float[Array, "..."] | None = None
    effective_particles: Float[Array, "..."] | None = None


@runtime_checkable
class Solver(Protocol[State]):
    """A method as a value: a frozen pytree of hyper-parameters with four pure methods, its cost and its needs.

    Arrays and floats are leaves, so that a new value of gamma compiles nothing; step counts, flags and names are
    static. See `ddiff_jax.solvers.ddiff` for a complete example.

    An attribute `aim`, a key of `AIMS`, says what the method is after; `aim_of` asks for it.
    """

    @property
    def needs(self) -> Needs:
        """Declare what the problem must have, of all operators and noise models; a plain attribute will do."""
        ...

    def cost(self, operator: Operator) -> Cost:
        """Declare what one step costs with this operator.

        Where steps differ, the costliest; such solvers also have `total_cost(operator, schedule, num_steps)`.
        """
        ...

    def grid(self, schedule: Schedule) -> PyTree[Shaped[Array | np.ndarray, "K ..."]]:
        """Tabulate all per-step numbers: a pytree whose leaves have K rows, one per step.

        Schedules answer in float64; the driver casts the table to the type that the run computes in.
        """
        ...

    def init(self, prior: Prior, problem: Problem, point: Any, noise: Noise, x_init: Image | None = None) -> State:
        """Make the first state, from `x_init` where it is given; `point` is the first row of the grid."""
        ...

    def step(self, prior: Prior, problem: Problem, state: State, point: Any, noise: Noise) -> tuple[State, StepInfo]:
        """Make one step; `point` is the step's row of the grid."""
        ...

    def estimate(self, state: State) -> Image:
        """Read the restored image off a state."""
        ...


def aim_of(solver: Any) -> str | None:
    """Ask a solver, or a class of them, what it aims at: a key of `AIMS`, or None if it does not say."""
    return getattr(solver, "aim", None)


def asks_network(solver: Any) -> bool:
    """Tell whether a solver evaluates the prior; those with the aim "estimate" only need the shape of its images."""
    return aim_of(solver) != "estimate"


def require_operator(solver: Solver, operator: Operator) -> None:
    """Refuse an operator that lacks what the solver needs.

    Raises:
        ValueError: it does; the message names what is missing and the operators that have it. Or its numbers are not
            such that the solver could use it.
    """
    needs, operator = solver.needs.methods, linear_part(operator)[0]  # as solvers see it
    missing = [name for name in needs if not hasattr(operator, name)]
    if missing:
        from ddiff_jax.operators import serving  # all operators, for one sentence

        raise ValueError(
            f"{type(solver).__name__} needs the operator's {' and '.join(missing)}, which {type(operator).__name__} "
            f"does not have; operators that serve it: {', '.join(serving(*needs))}; give your own operator "
            f"{'these methods' if len(missing) > 1 else 'this method'} (see LinearOperator and DecomposableOperator), "
            "or choose a solver that needs only the gradient, such as DDiff, DPS, DAPS or RED-diff"
        )
    if solver.needs.check is not None:
        solver.needs.check(operator)


def require_likelihood(solver: Solver, likelihood: Likelihood) -> None:
    """Refuse a noise model other than Gaussian where the solver's formulas assume it.

    Raises:
        ValueError: they do.
    """
    if solver.needs.gaussian_noise and not isinstance(likelihood, Gaussian):
        raise ValueError(
            f"{type(solver).__name__} assumes Gaussian noise, the problem has {type(likelihood).__name__} noise; "
            "choose a solver that follows the likelihood's gradient, such as DDiff, or state a Gaussian noise level"
        )


def total_cost(solver: Solver, operator: Operator, schedule: Schedule, num_steps: int) -> Cost:
    """Add up what the first steps of a run cost: by the solver's own `total_cost`, where its steps differ."""
    offer = getattr(solver, "total_cost", None)
    return solver.cost(operator) * num_steps if offer is None else offer(operator, schedule, num_steps)


def start(prior: Prior, level: Level, noise: Noise) -> Image:
    """Draw the noisy state that a walk from this level starts at: N(0, I) for variance-preserving levels.

    Args:
        prior: says the shape.
        level: the first one.
        noise: its draw 0 is taken.
    """
    return level.scale * noise.draw(0, prior.image_shape)


def wide(value: Any) -> Any:
    """Cast a hyper-parameter or a column to the type in which tables are made: float64 where there is it."""
    return jnp.asarray(value, jnp.result_type(float)) if isinstance(value, jax.Array) else np.asarray(value, np.float64)


def count_steps(solver: Solver, schedule: Schedule) -> int:
    """Count the steps that a solver makes on a schedule.

    Raises:
        ValueError: the schedule does not have as many levels as the solver wants.
    """
    return jax.tree.leaves(solver.grid(schedule))[0].shape[0]


def size_factor(x: Image) -> float:
    """Scale lengths that are quoted for 256x256x3 to the size of x, so that the change per pixel is the same."""
    return math.sqrt(x.size / REFERENCE_PIXELS)


def norm(x: Image) -> Float[Array, ""]:
    """Compute the L2 norm over all numbers of an image."""
    return root(jnp.sum(x**2))


def root(x: Column) -> Float[Array, "..."]:
    """Compute sqrt(max(x, 0)) with the derivative 0 where x <= 0.

    That of `jnp.sqrt` is infinite there, and an infinity that is multiplied by 0 further on is NaN.
    """
    is_low = x <= 0  # not so of NaN, which stays visible
    return jnp.where(is_low, 0.0, jnp.sqrt(jnp.where(is_low, 1.0, x)))


def ratio(x: Float[Array, "..."], y: Float[Array, ""]) -> Float[Array, "..."]:
    """Compute x / y for y >= 0, and 0 with the derivative 0 where y = 0."""
    return jnp.where(y <= 0, 0.0, x / jnp.where(y <= TINY, TINY, y))


def derivative_norm(problem: Problem, x: Image, direction: Image) -> Float[Array, ""]:
    """Compute ||J d||^2 with J the operator's derivative at x: the curvature of ||A(x) - y||^2 / 2 along d.

    Args:
        problem: whose operator it is.
        x: where.
        direction: d, of the shape of x.
    """
    _, change = jax.jvp(problem.expected, (x,), (direction,))
    return sum_of_squares(change)


def noise_std(problem: Problem) -> Float[Array, ""]:
    """Take sigma_y for at least 1e-4, where formulas would divide by it or have nothing left to solve."""
    return jnp.maximum(problem.sigma_y, 1e-4)


def draw_given_data(problem: Problem, x: Image, std: Scalar, noise: Noise, first: int) -> Image:
    """Draw from p(z) proportional to exp(-||A z - y||^2 / (2 sigma_y^2) - ||z - x||^2 / (2 std^2)), for a linear A.

    The minimiser of this exponent with both x and y perturbed by the noise that they stand for has this very law.

    Args:
        problem: with an operator that has `prox`, and Gaussian noise; its level is taken for at least 1e-4.
        x: where the Gaussian that the data narrow down is centred.
        std: its standard deviation, above 0.
        noise: of the step; draws `first`, in the shape of x, and `first` + 1, in that of y, are used.
        first: see there.
    """
    operator: Any = problem.operator
    sigma_y = noise_std(problem)
    centre = x + std * noise.draw(first, x.shape)
    n = draw_like(noise, first + 1, problem.y)
    y = problem.y + problem.seen(sigma_y.astype(n.dtype) * n)
    return operator.prox(centre, y, (sigma_y / std) ** 2)


def coerce(obj: Any, **checks: str) -> None:
    """Turn the named float fields of a frozen dataclass into arrays of JAX's default type, in place, and check them.

    For `__post_init__`: a Python float in a pytree would be weakly typed and compile every program once more. None
    is left alone, and of numbers that are being traced nothing is known.

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
    default = jnp.result_type(float)
    for name, check in checks.items():
        value = getattr(obj, name)
        if value is None:
            continue
        value = value.astype(default) if isinstance(value, jax.Array) else np.asarray(value, default)[()]
        if not isinstance(value, Tracer) and not np.all(np.isfinite(value) & tests[check](value)):
            raise ValueError(f"{type(obj).__name__}.{name} must be {check} and finite; got {value}")
        object.__setattr__(obj, name, value)


def check_choice(obj: Any, **choices: tuple[str, ...]) -> None:
    """Check that string fields hold one of their allowed values.

    Args:
        obj: whose fields they are.
        choices: allowed values by the name of the field.

    Raises:
        ValueError: one does not; the message lists the choices.
    """
    for name, allowed in choices.items():
        if getattr(obj, name) not in allowed:
            raise ValueError(
                f"{type(obj).__name__}.{name} must be one of {', '.join(allowed)}; got {getattr(obj, name)!r}"
            )
