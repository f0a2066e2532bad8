"""PnP-DM: plug-and-play diffusion models by split Gibbs sampling (NeurIPS 2024)."""

import itertools
import math
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from ddiff_jax.levels import Level, Schedule
from ddiff_jax.noise import Noise
from ddiff_jax.operators.base import Operator
from ddiff_jax.priors.base import Prior, predict
from ddiff_jax.problem import Problem
from ddiff_jax.pytree import pytree_dataclass, static_field
from ddiff_jax.solvers.base import Cost, Needs, StepInfo, check_choice, coerce, draw_given_data, noise_std
from ddiff_jax.types import Column, Image, Scalar

SIGMA_MAX = 80.0  # of the list of levels, as published; walks begin at most at rho_max


@pytree_dataclass
class Grid:
    """The numbers of every step; noise levels are those of x_0 + sigma n."""

    rho: Column
    begins: Column  # booleans: whether the step begins with a draw given the data
    level: Level  # for which the prior takes s
    gain: Column  # gain (x_0 + s n) is what it takes
    w_eps: Column  # lambda (s' - s)
    w_n: Column


@pytree_dataclass
class State:
    """The image x, noisy at the level of the step; clean where the next step begins with the data."""

    x: Image


@pytree_dataclass
class PnPDM:
    r"""Draw in turns an image given the data, and one given the prior, with less and less room between the two.

    Gibbs sampling of p(x, z) proportional to p(x) exp(-||x - z||^2 / (2 rho^2)) p(y | z), from an image of noise. For
    k = 0, ..., K - 1 and rho_k = max(rho_max decay^k, rho_min):

    1. z ~ p(y | z) N(z; x, rho_k^2 I). For a linear A and Gaussian noise it is drawn exactly: it minimises
       ||A z - y - sigma_y n_2||^2 / sigma_y^2 + ||z - x - rho_k n_1||^2 / rho_k^2. For all others, by Langevin
       dynamics from z = x: z <- z + lr (grad log p(y | z) - (z - x) / rho_k^2) + sqrt(2 lr) n.
    2. x ~ p(x_0 | x_0 + rho_k n = z), by the reverse diffusion from z over levels s_0 > ... > s_J, and then 0:
       x <- x + lambda (s' - s) eps + sqrt(2 s (s - s')) n, with lambda = 2, not clipped, and no noise in the last one:
       Euler's method; or lambda = 1 and no noise at all, the probability flow.

    One step of the driver is one evaluation of the network: a level of 2, the first after a draw by 1. The defaults
    make 994 of them. What is restored is the last x, one sample; each costs a run.

    At a fixed rho, x has the posterior law for noise of covariance sigma_y^2 I + rho^2 A A^T. So `rho_min` is to be
    about sigma_y, and no more; the published 0.3, six times the noise, scatters too widely. But the less it is, the
    slower walks what the data do not see: an iteration keeps v / (v + rho^2) of where it was in a direction of
    variance v.

    Under a Gaussian prior of smooth pictures, sigma_y = 0.05, the defaults come within 0.05 dB of the least mean
    squared error, and scatter by 0.97 of the posterior's spread.

    Aim: the posterior, of noise inflated as above. Which of several modes a run ends in is decided where rho is large.

    Derivatives: those to lr are 0 where draws are exact. That to sigma_y below 1e-4 is 0 there.

    Args:
        lr: step size of the Langevin dynamics, in squared units of the image; stable below
            2 / (||A||^2 / sigma_y^2 + 1 / rho_min^2).
        rho_max: rho_0.
        rho_min: where rho stays; a good one is sigma_y over the typical singular value of A.
        decay: factor from one rho to the next, in (0, 1]; None reaches rho_min half way, whatever the number of
            iterations.
        num_steps: K, iterations of 1 and 2.
        num_levels: of the list from which 2 takes those below rho_k, 80 to `sigma_min` and spaced evenly in their
            seventh root; of 40 there are 26 below 10 and 4 below 0.05.
        sigma_min: the least of them.
        start: "exact" begins 2 at rho_k itself; "below", as published, takes z to be at the first level of the list
            that is below.
        prior_step: "sde" draws x; "flow" follows the probability flow, which is no draw given z.
        likelihood: "exact" needs the operator's `prox` and Gaussian noise, "langevin" neither; "auto" is exact where
            the operator has it, and takes Gaussian noise only.
        langevin_steps: of the dynamics, in each iteration.

    Raises:
        ValueError: a hyper-parameter is outside its range, or "below" finds no level below rho_min.

    Source: Wu et al. 2024 and its released code, whose values are `PnPDM(rho_min=0.3, decay=0.9, num_levels=100,
    sigma_min=0.0104838433, start="below")` for linear operators.
    Differs: the start is N(0, I) for all operators; at rho_max it hardly matters. Of its four lists of levels there is
    one, EDM's. It averages states of one chain for some metrics, here every sample has its own.
    """

    lr: Scalar = 1e-4
    rho_max: float | int = static_field(default=10.0)
    rho_min: float | int = static_field(default=0.05)
    decay: float | int | None = static_field(default=None)
    num_steps: int = static_field(default=100)
    num_levels: int = static_field(default=40)
    sigma_min: float | int = static_field(default=0.01)
    start: Literal["exact", "below"] = static_field(default="exact")
    prior_step: Literal["sde", "flow"] = static_field(default="sde")
    likelihood: Literal["auto", "exact", "langevin"] = static_field(default="auto")
    langevin_steps: int = static_field(default=100)

    def __post_init__(self):
        coerce(self, lr="positive")
        check_choice(self, start=("exact", "below"), prior_step=("sde", "flow"))
        check_choice(self, likelihood=("auto", "exact", "langevin"))
        for name in ("rho_max", "rho_min", "sigma_min"):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"PnPDM.{name} must be positive and finite; got {getattr(self, name)}")
        if self.rho_min > self.rho_max:
            raise ValueError(f"PnPDM.rho_min must not exceed rho_max, {self.rho_max}; got {self.rho_min}")
        if self.decay is not None and not 0 < self.decay <= 1:
            raise ValueError(f"PnPDM.decay must lie in (0, 1], or be None; got {self.decay}")
        for name, least in (("num_steps", 1), ("num_levels", 2), ("langevin_steps", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"PnPDM.{name} must be at least {least}; got {getattr(self, name)}")
        if self.sigma_min >= (self.rho_min if self.start == "below" else SIGMA_MAX):
            raise ValueError(
                f"PnPDM.sigma_min must be below rho_min, {self.rho_min}, where walks start below it, and below "
                f"{SIGMA_MAX} in any case; got {self.sigma_min}"
            )

    aim = "posterior"

    @property
    def needs(self) -> Needs:
        """Ask for what the draw given the data uses; Langevin dynamics follow any likelihood."""
        return Needs(("prox",) if self.likelihood == "exact" else (), gaussian_noise=self.likelihood != "langevin")

    def _is_exact(self, operator: Operator) -> bool:
        return self.likelihood == "exact" or (self.likelihood == "auto" and hasattr(operator, "prox"))

    def cost(self, operator: Operator) -> Cost:
        """Declare what a step costs that begins with a draw given the data; the others are `total_cost`'s."""
        return self._cost(operator, 1, 1)

    def total_cost(self, operator: Operator, schedule: Schedule, num_steps: int) -> Cost:
        """Add up what the first steps cost."""
        return self._cost(operator, num_steps, sum(first for *_, first in self._walks()[:num_steps]))

    def _cost(self, operator: Operator, evaluations: int, draws: int) -> Cost:
        is_exact, new = self._is_exact(operator), evaluations if self.prior_step == "sde" else 0
        return Cost(
            network_evaluations=evaluations,
            operator_evaluations=evaluations,
            operator_solves=draws if is_exact else 0,
            operator_gradients=0 if is_exact else self.langevin_steps * draws,
            normal_draws=new + (2 if is_exact else self.langevin_steps) * draws,
        )

    def _walks(self) -> list[tuple[float, float, float, bool]]:
        """List rho, s, s' and whether it is the first of its walk, of all steps."""
        levels = np.linspace(SIGMA_MAX ** (1 / 7), self.sigma_min ** (1 / 7), self.num_levels) ** 7
        decay = (self.rho_min / self.rho_max) ** (2 / self.num_steps) if self.decay is None else self.decay
        rows = []
        for k in range(self.num_steps):
            rho = max(self.rho_max * decay**k, self.rho_min)
            below = levels[levels < rho].tolist()
            walked = [*([rho] if self.start == "exact" else []), *below, 0.0]
            rows += [(rho, *pair, i == 0) for i, pair in enumerate(itertools.pairwise(walked))]
        return rows

    def grid(self, schedule: Schedule) -> Grid:
        """Tabulate the walks of all iterations, one after the other."""
        rho, s, cleaner, begins = map(np.array, zip(*self._walks(), strict=True))
        level = schedule.at(s)
        is_sde = self.prior_step == "sde"
        return Grid(
            rho=rho,
            begins=begins,
            level=level,
            gain=level.signal,
            w_eps=(2.0 if is_sde else 1.0) * (cleaner - s),
            w_n=np.sqrt(2 * s * (s - cleaner)) * (is_sde & (cleaner > 0)),
        )

    def init(self, prior: Prior, problem: Problem, point: Grid, noise: Noise, x_init: Image | None = None) -> State:
        """Start at N(0, I), or at `x_init` taken as the image x."""
        return State(noise.draw(0, prior.image_shape) if x_init is None else x_init)

    def step(self, prior: Prior, problem: Problem, state: State, point: Grid, noise: Noise) -> tuple[State, StepInfo]:
        """Make 1 where an iteration begins, and one level of 2."""
        is_exact = self._is_exact(problem.operator)
        draw = self._draw_exactly if is_exact else self._walk
        x = jax.lax.cond(point.begins, lambda: draw(problem, state.x, point.rho, noise), lambda: state.x)
        x0_hat, eps = predict(prior, point.gain * x, point.level)
        x = x + point.w_eps * eps
        if self.prior_step == "sde":
            x = x + point.w_n * noise.draw(2 if is_exact else self.langevin_steps, x.shape)
        return State(x), StepInfo(misfit=problem.misfit(x0_hat))

    def _draw_exactly(self, problem: Problem, x: Image, rho: Scalar, noise: Noise) -> Image:
        return draw_given_data(problem, x, rho, noise, 0)

    def _walk(self, problem: Problem, x: Image, rho: Scalar, noise: Noise) -> Image:
        precision = problem.likelihood.precision(noise_std(problem))

        def body(z: Image, i: Array) -> tuple[Image, None]:
            _, g = problem.misfit_and_gradient(z)
            force = (x - z) / rho**2 - precision * g
            return z + self.lr * force + jnp.sqrt(2 * self.lr) * noise.draw(i, z.shape), None

        z, _ = jax.lax.scan(body, x, jnp.arange(self.langevin_steps))
        return z

    def estimate(self, state: State) -> Image:
        """Read the image off a state."""
        return state.x
