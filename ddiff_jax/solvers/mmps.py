"""MMPS: moment matching posterior sampling (Rozet et al., NeurIPS 2024)."""

from collections.abc import Callable
from typing import Any, Literal, cast

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ddiff_jax.levels import Level, Schedule, spaced
from ddiff_jax.likelihood import sum_of_squares
from ddiff_jax.noise import Noise
from ddiff_jax.operators.base import LinearOperator, Operator, known_image_shape
from ddiff_jax.priors.base import Prior, predict
from ddiff_jax.problem import Problem
from ddiff_jax.pytree import pytree_dataclass, static_field
from ddiff_jax.solvers.base import (
    Cost,
    Needs,
    StepInfo,
    check_choice,
    coerce,
    noise_std,
    norm,
    ratio,
    root,
    start,
    wide,
)
from ddiff_jax.types import Column, Image, Measurement, Scalar

# A matrix of this many rows is one pass backwards through the network for each, and solved in no time beside that.
MOST_EXACT = 512
# So many iterations are written out: XLA for CPUs has no fast form of a convolution's gradient inside of a loop.
UNROLLED = 4
# Rows of the matrix of an exact solution that are computed at a time.
ROWS_AT_ONCE = 16

Vector = Float[Array, " m"]
Product = Callable[[Vector], Vector]


@pytree_dataclass
class Grid:
    """The numbers of every row: x_t' = w_anchor anchor + w_x x + w_eps eps + w_n n, and what the anchor becomes."""

    level: Level
    gain: Column  # b^2 / a; times the network's Jacobian it is the covariance of p(x_0 | x_t)
    w_x: Column
    w_eps: Column
    w_n: Column | None = None  # of samplers that draw
    w_anchor: Column | None = None  # of Heun's method: 1 where a row corrects, 0 where it predicts
    anchor_eps: Column | None = None  # anchor' = w_x x + anchor_eps eps


@pytree_dataclass
class State:
    """The noisy state, and for Heun's method the state and half a step along the slope, which the corrector goes on."""

    x_t: Image
    anchor: Image | None = None


@pytree_dataclass
class MMPS:
    r"""Sample with the denoiser of the posterior, of which p(x_0 | x_t) is taken for Gaussian with the true covariance.

    At a level x_t = a x_0 + b n, with J the Jacobian d x0_hat / d x_t of the denoiser:

    1. x0_hat = (x_t - b eps_hat) / a, not clipped.
    2. u solves M u = y - A x0_hat with M = sigma_y^2 I + A S A^T, where S = (b^2 / a) J^T is the covariance of
       p(x_0 | x_t). S v is one pass backwards through the network, which is linearised once.
    3. g = J^T A^T u, the gradient of log p(y | x_t).
    4. x = x0_hat + (b^2 / a) g and eps = eps_hat - b g, so that x_t = a x + b eps still.
    5. To the next level (a', b'), of noise-to-signal ratio s' = b' / a' where this one has s = b / a:

       - "ddim": x_t' = a' x + sqrt(b'^2 - w^2) eps + w n, with w = eta times the standard deviation of the DDPM
         posterior;
       - "ddpm": the same with eta = 1;
       - "heun": x_t' = a' x + b' eps predicts, steps 1 to 4 at x_t' find eps' there, and
         x_t' = a' (x_t / a + (s' - s) (eps + eps') / 2) corrects; to the clean image it only predicts.

    Of a nonlinear A its derivative at x0_hat takes the place of A in M, and its transpose that of A^T. With a multiple
    of the identity for S step 3 is that of PiGDM, and with S = 0 in M it is that of DPS without its norm.

    Aim: the posterior. For a Gaussian prior, whose p(x_0 | x_t) is Gaussian, exact solutions and small steps sample it
    exactly; with several modes the samples of informative data may settle in the wrong one.

    Measured on Gaussian images of 8x8 with known posteriors, half of the pixels seen | all blurred, noise of 0.05:

    - "heun" with 50 levels (99 evaluations) and exact solutions has 1.005 times the posterior's spread, with 25 levels
      1.02 | 1.03, with 18 1.05 | 1.06, with 10 1.20 | 1.23. Of 99 evaluations "ddim" without new noise makes 0.97, of
      35 0.92, of 19 0.86 | 0.85; "ddpm" makes 0.97 of 199 and 0.89 | 0.88 of 49. So "heun" is the nearest from 30
      evaluations on.
    - With 1, 3, 5 and 10 iterations of "cg" and these 50 levels the mean of the samples has a squared error of 0.21,
      0.02, 0.01 and 0.00 dB | 0.96, 0.18, 0.16 and 0.01 dB above the least one, and the spread is right from 3 on.
      Where `StepInfo.solve_residual` is above 0.1 in many rows, 10 iterations are worth their price: it was above 0.3
      in some with 3, and below 0.1 in all with 10.

    Derivatives: those of the iterations, not of the solution that they approach; where they reach it before they end,
    as the first of "cg" does for independent pixels some of which are seen, those of the iterations up to there. That
    to sigma_y below 1e-4 is 0.

    Args:
        eta: share of fresh noise of "ddim", in [0, 1].
        sigma_max: noise-to-signal ratio of the first level of "spaced", or the noisiest that the prior knows.
        sigma_min: that of the last.
        num_steps: K, levels. "heun" evaluates the network 2 K - 1 times, the others K times.
        sampler: see step 5.
        levels: "spaced" evenly in the seventh root of the noise-to-signal ratio, as EDM does; "strided" every T / K-th
            of the prior's own.
        linear_solver: "cg", conjugate gradients; "gmres", least residual, also where J is not symmetric; "exact", by
            the matrix M, for measurements of up to 512 numbers (a complex entry is two, and hidden ones count).
        iterations: of "cg" and "gmres", from u = 0; each passes backwards through the network once.

    Raises:
        ValueError: a hyper-parameter is outside its range, or "exact" is asked of a larger measurement.

    Source: Rozet et al. 2024, "Learning diffusion priors from observations by expectation maximization"; Heun's method
    and the levels of Karras et al. 2022.
    Differs: sigma_y is at least 1e-4, since M is singular where neither it nor J leaves anything. "gmres" finds its
    iterates by conjugate residuals, without an inner least-squares problem; a step against a direction in which M is
    not positive, which conjugate gradients would follow to infinity, is left out.
    """

    eta: Scalar = 0.0
    sigma_max: Scalar = 80.0
    sigma_min: Scalar = 0.01
    num_steps: int = static_field(default=50)
    sampler: Literal["heun", "ddpm", "ddim"] = static_field(default="heun")
    levels: Literal["spaced", "strided"] = static_field(default="spaced")
    linear_solver: Literal["cg", "gmres", "exact"] = static_field(default="cg")
    iterations: int = static_field(default=3)

    def __post_init__(self):
        coerce(self, eta="fraction", sigma_max="positive", sigma_min="positive")
        check_choice(self, sampler=("heun", "ddpm", "ddim"), levels=("spaced", "strided"))
        check_choice(self, linear_solver=("cg", "gmres", "exact"))
        for name in ("num_steps", "iterations"):
            if getattr(self, name) < 1:
                raise ValueError(f"MMPS.{name} must be at least 1; got {getattr(self, name)}")

    aim = "posterior"
    needs = Needs(gaussian_noise=True)

    def cost(self, operator: Operator) -> Cost:
        """Declare what one row costs; of a measurement whose size nobody knows beforehand, the most."""
        products = self.iterations
        if self.linear_solver == "exact":
            size = _num_measured(operator)
            products = MOST_EXACT if size is None else size
        return Cost(
            network_evaluations=1,
            network_gradients=products + 1,
            operator_evaluations=products + 1,
            operator_gradients=products + 1,
            normal_draws=0 if self.sampler == "heun" else 1,
        )

    def grid(self, schedule: Schedule) -> Grid:
        """Tabulate steps 2 and 5; of Heun's method, predictors and correctors in turn."""
        rows = self._walked(schedule)
        if self.sampler != "heun":
            level, end = rows[:-1], rows[1:]
            eta = 1.0 if self.sampler == "ddpm" else wide(self.eta)
            w_n = eta * level.posterior_std(end)
            return Grid(level, level.sigma * level.ratio, end.signal, root(end.sigma**2 - w_n**2), w_n)
        # Row 2 i asks at level i and predicts level i + 1; row 2 i + 1 asks there and corrects.
        j = np.arange(2 * self.num_steps - 1)
        level, begin, end = rows[(j + 1) // 2], rows[j // 2], rows[j // 2 + 1]
        corrects = (j % 2).astype(np.float64)
        predicts, half_step = 1 - corrects, end.signal * (end.ratio - begin.ratio) / 2
        return Grid(
            level,
            level.sigma * level.ratio,
            w_x=predicts * end.signal,
            w_eps=predicts * end.sigma + corrects * half_step,
            w_anchor=corrects,
            anchor_eps=end.signal * begin.ratio + half_step,
        )

    def _walked(self, schedule: Schedule) -> Level:
        """List the K levels and the clean image."""
        if self.levels == "strided":
            return schedule.levels(self.num_steps, "strided")
        k, first = np.arange(self.num_steps + 1.0), schedule.at(wide(self.sigma_max)).ratio  # the noisiest there is
        share, is_noisy = np.minimum(k / max(self.num_steps - 1, 1), 1.0), (k < self.num_steps).astype(np.float64)
        return schedule.at(is_noisy * spaced(first, wide(self.sigma_min), share))

    def init(self, prior: Prior, problem: Problem, point: Grid, noise: Noise, x_init: Image | None = None) -> State:
        """Start at noise, or at `x_init` taken as the noisy state.

        Raises:
            ValueError: the measurement is too large for an exact solution.
        """
        size = _unfolded(problem.y).size
        if self.linear_solver == "exact" and size > MOST_EXACT:
            raise ValueError(
                f'MMPS with linear_solver="exact" takes measurements of up to {MOST_EXACT} numbers, since every step '
                f"passes backwards through the network once for each; this one holds {size}: choose "
                'linear_solver="cg", or "gmres"'
            )
        x_t = start(prior, point.level, noise) if x_init is None else x_init
        return State(x_t, jnp.zeros_like(x_t) if self.sampler == "heun" else None)

    def step(self, prior: Prior, problem: Problem, state: State, point: Grid, noise: Noise) -> tuple[State, StepInfo]:
        """Make steps 1 to 5, of Heun's method one half of the fifth."""
        level = point.level
        x0_hat, pull, eps_hat = jax.vjp(lambda x_t: predict(prior, x_t, level), state.x_t, has_aux=True)
        clean, push, transposed = _linearised(problem, x0_hat)
        missing = problem.y - clean
        variance = noise_std(problem) ** 2

        def guidance(u: Vector) -> Image:
            (g,) = pull(transposed(_folded(u, missing)))
            return g

        def product(v: Vector) -> Vector:
            return variance * v + _unfolded(push(point.gain * guidance(v)))

        b = _unfolded(missing)
        u, left = self._solve(product, b)
        g = guidance(u)
        x, eps = x0_hat + point.gain * g, eps_hat - level.sigma * g
        x_t = point.w_x * x + point.w_eps * eps
        anchor = None
        if point.w_anchor is not None:
            x_t = point.w_anchor * state.anchor + x_t
            anchor = point.w_x * x + point.anchor_eps * eps
        if point.w_n is not None:
            x_t = x_t + point.w_n * noise.draw(0, x_t.shape)
        misfit = sum_of_squares(missing) / problem.num_observed
        return State(x_t, anchor), StepInfo(misfit, solve_residual=ratio(norm(left), norm(b)))

    def _solve(self, product: Product, b: Vector) -> tuple[Vector, Vector]:
        """Solve M u = b; return u and b - M u."""
        if self.linear_solver == "exact":
            return _exact(product, b)
        solve = _conjugate_gradients if self.linear_solver == "cg" else _conjugate_residuals
        return solve(product, b, self.iterations)

    def estimate(self, state: State) -> Image:
        """Read the image off a state."""
        return state.x_t


def _linearised(
    problem: Problem, x: Image
) -> tuple[Measurement, Callable[[Image], Measurement], Callable[[Measurement], Image]]:
    """Compute A(x), its derivative and the transpose of that; hidden entries are 0."""
    if hasattr(problem.operator, "adjoint"):
        return problem.measured(x), problem.measured, cast(LinearOperator, problem.operator).adjoint
    clean, push = jax.linearize(problem.measured, x)
    transpose = jax.linear_transpose(push, x)
    return clean, push, lambda v: transpose(jnp.conj(v))[0]


def _unfolded(y: Measurement) -> Vector:
    """List the numbers of a measurement, of a complex one all real parts and then all imaginary ones."""
    parts = [jnp.real(y), jnp.imag(y)] if jnp.iscomplexobj(y) else [y]
    return jnp.concatenate([part.ravel() for part in parts])


def _folded(v: Vector, like: Measurement) -> Measurement:
    """Give a list of numbers the shape and type of a measurement."""
    if not jnp.iscomplexobj(like):
        return v.reshape(like.shape)
    real, imaginary = (part.reshape(like.shape) for part in jnp.split(v, 2))
    return jax.lax.complex(real, imaginary)


def _num_measured(operator: Operator) -> int | None:
    """Count the numbers that an operator measures; None if it does not say of what images."""
    shape = known_image_shape(operator)
    if shape is None:
        return None
    x = jax.ShapeDtypeStruct(shape, jnp.float32)
    y = jax.eval_shape(lambda operator, x: _unfolded(operator.forward(x)), operator, x)
    return y.size


def _repeat(body: Callable[[Any, Array], tuple[Any, None]], carry: Any, iterations: int) -> Any:
    carry, _ = jax.lax.scan(body, carry, jnp.arange(iterations), unroll=UNROLLED)
    return carry


def _conjugate_gradients(product: Product, b: Vector, iterations: int) -> tuple[Vector, Vector]:
    """Iterate from 0, for a symmetric M; return u and b - M u."""

    def body(carry: tuple[Vector, Vector, Vector, Array], _: Array) -> tuple[Any, None]:
        u, r, p, power = carry
        q = product(p)
        length = ratio(power, jnp.sum(p * q))
        u, r = u + length * p, r - length * q
        left = jnp.sum(r**2)
        return (u, r, r + ratio(left, power) * p, left), None

    u, r, *_ = _repeat(body, (jnp.zeros_like(b), b, b, jnp.sum(b**2)), iterations)
    return u, r


def _conjugate_residuals(product: Product, b: Vector, iterations: int) -> tuple[Vector, Vector]:
    """Find the u of least ||b - M u|| among the combinations of b, M b, M^2 b, ...; return it and b - M u.

    These are the iterates of GMRES, as long as no r^T M r is 0. The directions p are kept with their products q = M p,
    of which each is orthogonal to all others and of length 1.
    """

    def body(carry: tuple[Vector, Vector, Array, Array], i: Array) -> tuple[Any, None]:
        u, r, ps, qs = carry
        q = product(r)
        share = jnp.sum(qs * q[None], axis=1, keepdims=True)
        p, q = r - jnp.sum(share * ps, axis=0), q - jnp.sum(share * qs, axis=0)
        size = norm(q)
        p, q = ratio(p, size), ratio(q, size)
        length = jnp.sum(q * r)
        return (u + length * p, r - length * q, ps.at[i].set(p), qs.at[i].set(q)), None

    none = jnp.zeros_like(b, shape=(iterations, b.size))
    u, r, *_ = _repeat(body, (jnp.zeros_like(b), b, none, none), iterations)
    return u, r


def _exact(product: Product, b: Vector) -> tuple[Vector, Vector]:
    """Tabulate M by its products with the unit vectors, and factorise it; return u and b - M u."""
    matrix = jax.lax.map(product, jnp.eye(b.size, dtype=b.dtype), batch_size=ROWS_AT_ONCE).T
    u = jnp.linalg.solve(matrix, b)
    return u, b - jnp.matmul(matrix, u, precision="highest")
