"""DDiff: dual ascent diffusion (CVPR 2026)."""

from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from ddiff_jax.noise import Noise
from ddiff_jax.operators.base import ImageShape, Operator
from ddiff_jax.prior import Prior
from ddiff_jax.problem import Problem
from ddiff_jax.pytree import pytree_dataclass, static_field
from ddiff_jax.schedule import NoiseSchedule, respaced_timesteps
from ddiff_jax.solvers.base import Cost, StepInfo, check_choice, coerce, derivative_norm, norm, ratio, root, size_factor
from ddiff_jax.types import Image, Scalar


@pytree_dataclass
class Grid:
    """The numbers of every step."""

    t: Int[Array, " K"]
    gamma: Float[Array, " K"] | None  # step length before it is scaled to the image's size
    memory: Float[Array, " K"]  # 0 in the first step, where there is no x to compare with yet, then 1
    signal: Float[Array, " K"]  # sqrt(ab_t)
    sigma_t: Float[Array, " K"]  # sqrt(1 - ab_t)
    next_signal: Float[Array, " K"]  # sqrt(ab_t')
    w_eps: Float[Array, " K"]
    w_n: Float[Array, " K"]


@pytree_dataclass
class State:
    """The iterates between two steps."""

    x_t: Image
    u: Image
    x: Image


@pytree_dataclass
class DDiff:
    r"""Minimise ||y - A(x)||^2 / (2 sigma_y^2) - log p(x) by splitting x = z with a scaled dual variable u.

    Every step goes from timestep t to the next one t', with ab the cumulative products of the schedule:

    1. z = denoise(x_t), clipped to [-1, 1]: the prior step, on the diffusion manifold.
    2. v = z - u.
    3. g = the gradient of ||y - A(v)||^2 / 2, divided by its norm: sigma_y cancels.
    4. x = v - gamma_t g: the data step.
    5. eps_hat = (x_t - sqrt(ab_t) x) / sqrt(1 - ab_t).
    6. n ~ N(0, I) while t > t0, then n = 0.
    7. x_t' = sqrt(ab_t') (x + u) + w_eps eps_hat + w_n n, where
       "full":      w_eps = 0,                       w_n = sqrt(1 - ab_t');
       "posterior": w_eps = sqrt(1 - ab_t' - s_t^2), w_n = s_t, the DDPM posterior's standard deviation.
    8. u <- u + x - z.

    Steps 4 and 8 together give u = -gamma_t g: the dual variable remembers one step and accumulates nothing. With
    `dual=False` it stays zero (the ablation DDiff-HQS with everything else held fixed). With `accumulate=True` it
    is updated as in ADMM, against the next z: u <- u + x - z between steps 1 and 2, with the x of the step before.

    Without gamma the step chooses its own length and needs no tuning: the step s along -g (not normalised) that
    brings the residual of the linearised operator J down to the noise, and no further, is the smaller root of
    ||r - s J g||^2 = m sigma_y^2, with r = A(v) - y and m numbers in y; where the line does not get there, the
    step to its closest point, ||g||^2 / ||J g||^2. This costs one more evaluation of the operator, J g. The dual
    variable stays zero then: what it remembers acts as momentum, and on top of a step of full length momentum diverges.

    Derivatives: none pass through clipped pixels of z, and t0 and t_gamma, which choose among timesteps, have 0. Where
    one length of step gives way to another, there is a kink.

    Args:
        gamma: gamma_0, the base step length: the L2 length of the data step for a 256x256x3 image, in units of the
            image range [-1, 1]. Other sizes scale it by sqrt(numbers in the image / 196608), so that the change
            per pixel is the same. With `normalise=False` it multiplies the gradient and is not scaled. None chooses
            every step's length as above; a, b, t_gamma and normalise then play no part.
        t0: the last timestep without fresh noise.
        a: factor on gamma while t > t_gamma.
        b: factor on gamma from t_gamma down.
        t_gamma: timestep of the step-down.
        noise_schedule: "full" (super-resolution, inpainting, phase retrieval) or "posterior" (deblurring, high
            dynamic range).
        num_steps: updates, that is network evaluations, spread evenly over the schedule; None, or as many as the
            schedule has timesteps, walks all of them as published. The evaluation at t = 0, which the released
            loop makes and discards, is left out.
        dual: keep the dual variable.
        accumulate: let the dual variable accumulate, as it does in ADMM but not in the released code.
        normalise: divide the gradient by its norm. False is the paper's form, x = v - gamma_t grad nll(v).
        output: "state" returns the state at t = 0, as released; "x" returns the last x of the data step.

    Raises:
        ValueError: a hyper-parameter is outside its range, or a dual variable that is not kept is to accumulate.

    Source: the authors' released code; gamma_0, t0 and the schedule of every task are in the presets.
    Differs: (paper) the paper writes the gradient without the norm, and t_gamma = 500 for box inpainting on
    ImageNet where the code has 90 throughout; (code) the norm is taken per image, a zero gradient gives a zero
    step instead of NaN, and the early stop, which cannot fire there, is absent.
    """

    gamma: Scalar | None = None
    t0: Scalar = 1.0
    a: Scalar = 3.3
    b: Scalar = 0.1
    t_gamma: Scalar = 90.0
    noise_schedule: Literal["full", "posterior"] = static_field(default="full")
    num_steps: int | None = static_field(default=None)
    dual: bool = static_field(default=True)
    accumulate: bool = static_field(default=False)
    normalise: bool = static_field(default=True)
    output: Literal["state", "x"] = static_field(default="state")

    def __post_init__(self):
        coerce(self, gamma="positive", t0="non-negative", a="positive", b="positive", t_gamma="non-negative")
        check_choice(self, noise_schedule=("full", "posterior"), output=("state", "x"))
        if self.accumulate and (self.gamma is None or not self.dual):
            raise ValueError("DDiff can accumulate only a dual variable that it keeps; give gamma and leave dual=True")

    needs = ()

    def cost(self, operator: Operator) -> Cost:
        """Declare what one step costs."""
        extra = 1 if self.gamma is None else 0
        return Cost(network_evaluations=1, operator_evaluations=extra, operator_gradients=1, normal_draws=1)

    def grid(self, schedule: NoiseSchedule) -> Grid:
        """Tabulate steps 4 to 7 over the chosen timesteps."""
        timesteps = respaced_timesteps(schedule.num_timesteps, self.num_steps)
        t, t_next = jnp.asarray(timesteps[:-1]), jnp.asarray(timesteps[1:])
        level = t.astype(schedule.alpha_bar.dtype)  # t0 and t_gamma are floats, so that they can be swept and stacked
        sigma_next = jnp.sqrt(schedule.noise_var[t_next])
        if self.noise_schedule == "full":
            w_eps, w_n = jnp.zeros_like(sigma_next), sigma_next
        else:
            w_n = schedule.posterior_std(t, t_next)
            w_eps = jnp.sqrt(schedule.noise_var[t_next] - w_n**2)
        return Grid(
            t=t,
            gamma=None if self.gamma is None else self.gamma * jnp.where(level > self.t_gamma, self.a, self.b),
            memory=jnp.asarray(t != t[0], level.dtype),
            signal=jnp.sqrt(schedule.alpha_bar[t]),
            sigma_t=jnp.sqrt(schedule.noise_var[t]),
            next_signal=jnp.sqrt(schedule.alpha_bar[t_next]),
            w_eps=w_eps,
            w_n=jnp.where(level > self.t0, w_n, 0.0),
        )

    def init(
        self, prior: Prior, problem: Problem, shape: ImageShape, noise: Noise, x_init: Image | None = None
    ) -> State:
        """Start at x_T ~ N(0, I), or at `x_init` taken as the noisy state, with u = 0."""
        x_t = noise.draw(0, shape) if x_init is None else x_init
        return State(x_t=x_t, u=jnp.zeros_like(x_t), x=x_t)

    def step(self, prior: Prior, problem: Problem, state: State, point: Grid, noise: Noise) -> tuple[State, StepInfo]:
        """Make the update from t to t', steps 1 to 8."""
        x_t, u = state.x_t, state.u
        z = prior.denoise(x_t, point.t)
        if self.accumulate:
            u = u + point.memory * (state.x - z)
        v = z - u
        misfit, x = data_step(problem, v, point.gamma, normalise=self.normalise)
        eps_hat = (x_t - point.signal * x) / point.sigma_t
        n = noise.draw(0, x_t.shape)
        x_t = point.next_signal * (x + u) + point.w_eps * eps_hat + point.w_n * n
        keeps_dual = self.dual and self.gamma is not None
        if keeps_dual and not self.accumulate:
            u = u + x - z
        return State(x_t, u, x), StepInfo(misfit, gap=norm(x - z), dual=norm(u) if keeps_dual else None)

    def estimate(self, state: State) -> Image:
        """Read the restored image off a state."""
        return state.x_t if self.output == "state" else state.x


def data_step(
    problem: Problem, v: Image, gamma: Scalar | None, *, normalise: bool = True
) -> tuple[Float[Array, ""], Image]:
    """Step from v towards the data: by a given length, or without gamma as far as the noise allows.

    Returns:
        The misfit at v, and x.
    """
    if gamma is None:
        return _step_to_the_noise(problem, v)
    misfit, g = problem.misfit_and_gradient(v)
    if not normalise:
        return misfit, v - gamma * problem.likelihood.precision(problem.sigma_y) * g
    return misfit, v - gamma * size_factor(v) * ratio(g, norm(g))


def _step_to_the_noise(problem: Problem, v: Image) -> tuple[Float[Array, ""], Image]:
    half, g = jax.value_and_grad(problem.half_squared_residual)(v)
    count = problem.y.size * (2 if jnp.iscomplexobj(problem.y) else 1)
    excess = jnp.maximum(2 * half - count * problem.sigma_y**2, 0.0)
    slope, curvature = jnp.sum(g**2), derivative_norm(problem, v, g)
    # The smaller root of excess - 2 s slope + s^2 curvature, in the form that does not cancel.
    smaller = ratio(excess, slope + root(slope**2 - curvature * excess))
    return 2 * half / problem.y.size, v - jnp.minimum(smaller, ratio(slope, curvature)) * g
