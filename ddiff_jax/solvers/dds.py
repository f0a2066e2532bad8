"""DDS: decomposed diffusion sampling, with a few conjugate gradients per step (ICLR 2024)."""

from typing import Literal, cast

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ddiff_jax.levels import Schedule, walk
from ddiff_jax.noise import Noise
from ddiff_jax.operators.base import LinearOperator, Operator, conjugate_gradients
from ddiff_jax.priors.base import Prior, predict
from ddiff_jax.problem import Problem
from ddiff_jax.pytree import pytree_dataclass, static_field
from ddiff_jax.solvers.base import Cost, Needs, StepInfo, check_choice, coerce, noise_std, norm, root, wide
from ddiff_jax.solvers.walking import NoisyState, Renoising, Walker
from ddiff_jax.types import Column, Image, Scalar


@pytree_dataclass
class Grid(Renoising):
    """The numbers of every step."""

    variance: Column  # v_t


@pytree_dataclass
class DDS(Walker):
    """Denoise, correct the estimate by a few conjugate gradients on the data, then noise it to the next level.

    Every step goes from a level x_t = a x_0 + b n to the next one (a', b'), the last one to the clean image:

    1. z = (x_t - b eps) / a, not clipped.
    2. h minimises gamma ||A h - y||^2 + ||h - z||^2, exactly or by conjugate gradients from z.
    3. x_t' = a' h + b' (eta n + sqrt(1 - eta^2) eps), with eps the noise found in x_t.

    Aim: one image (MAP), a mean given the data at every level; the noise of step 3 lets it wander, and what it leaves
    is less than the posterior's spread.

    Derivatives: of conjugate gradients, those of the steps made, with a kink where fewer than `cg_steps` are exact, as
    on a mask. At eta = 1 a root has an infinite slope, which counts as 0. To sigma_y below 1e-4 the derivative is 0.

    Args:
        eta: share of fresh noise, in [0, 1].
        data_weight: gamma; None is v_t / sigma_y^2, with v_t = var b^2 / (a^2 var + b^2) the variance of
            p(x_0 | x_t) under independent Gaussian pixels. One number for all levels fits the data too little or
            too much.
        var: variance of the pixels of clean images, for v_t.
        num_steps: updates, that is network evaluations: every T / num_steps-th level; None is all of them.
        data_step: "prox" solves step 2; "cg" makes `cg_steps` steps of conjugate gradients; "auto" is prox where the
            operator has a decomposition, else cg. "noiseless" makes these steps on ||A h - y||^2 alone, from z: gamma
            is infinite then, and only the number of steps keeps h near z.
        cg_steps: of conjugate gradients in every step; none are made beyond a relative residual of 1e-6.
        variant: "consistent" makes step 3 everywhere; "published" leaves h as it is, without noise, where the next
            level is the least noisy one, and takes it for an x_t of that level.

    Raises:
        ValueError: a hyper-parameter is outside its range.

    Source: Chung et al. 2024 and its released code, whose values are `DDS(data_weight=1.0, data_step="cg",
    variant="published")`.
    Differs: (code) sigma_y counts; there it only chooses between the two systems, and no noise is added to y. The
    adjoint is the operator's own, where theirs of tomography is another back-projection. Conjugate gradients stop by
    the relative residual, there at an absolute 1e-5. Images are real here, complex ones have their parts as channels,
    so that A^H A is real and symmetric on them and the inner products are plain sums; theirs are sums of squares of
    complex numbers without conjugation, with which the iteration does not converge.
    """

    eta: Scalar = 0.85
    data_weight: Scalar | None = None
    var: Scalar = 0.25
    num_steps: int | None = static_field(default=50)
    data_step: Literal["auto", "prox", "cg", "noiseless"] = static_field(default="auto")
    cg_steps: int = static_field(default=5)
    variant: Literal["consistent", "published"] = static_field(default="consistent")

    def __post_init__(self):
        coerce(self, eta="fraction", data_weight="positive", var="positive")
        check_choice(self, data_step=("auto", "prox", "cg", "noiseless"), variant=("consistent", "published"))
        if self.cg_steps < 1:
            raise ValueError(f"DDS.cg_steps must be at least 1; got {self.cg_steps}")

    aim = "map"

    @property
    def needs(self) -> Needs:
        """Assume Gaussian noise, and ask for what the data step uses."""
        return Needs(("prox",) if self.data_step == "prox" else ("adjoint",), gaussian_noise=True)

    def _data_step_for(self, operator: Operator) -> str:
        if self.data_step == "auto":
            return "prox" if hasattr(operator, "svd") else "cg"
        return self.data_step

    def cost(self, operator: Operator) -> Cost:
        """Declare what one step costs with this operator."""
        if self._data_step_for(operator) == "prox":
            return Cost(network_evaluations=1, operator_evaluations=1, operator_solves=1, normal_draws=1)
        return Cost(network_evaluations=1, operator_gradients=self.cg_steps + 1, normal_draws=1)

    def grid(self, schedule: Schedule) -> Grid:
        """Tabulate v_t and the numbers of step 3 over the chosen levels."""
        level, cleaner = walk(schedule, self.num_steps, "strided")
        eta, stays = wide(self.eta), np.zeros(len(level.signal), bool)
        if self.variant == "published":
            stays[-2:-1] = True
        noise = np.where(stays, 0.0, cleaner.sigma)
        return Grid(
            level,
            next_signal=np.where(stays, 1.0, cleaner.signal),
            w_eps=root(1 - eta**2) * noise,
            w_n=eta * noise,
            variance=level.clean_variance(wide(self.var)),
        )

    def step(
        self, prior: Prior, problem: Problem, state: NoisyState, point: Grid, noise: Noise
    ) -> tuple[NoisyState, StepInfo]:
        """Make steps 1 to 3."""
        z, eps = predict(prior, state.x_t, point.level)
        if self.data_weight is None:
            rho = noise_std(problem) ** 2 / point.variance
        else:
            rho = 1 / self.data_weight
        misfit, h = self._step_to_data(problem, z, rho)
        x_t = point.renoise(h, eps, noise.draw(0, z.shape))
        return NoisyState(x_t), StepInfo(misfit, gap=norm(h - z))

    def _step_to_data(self, problem: Problem, z: Image, rho: Scalar) -> tuple[Float[Array, ""], Image]:
        operator, kind = cast(LinearOperator, problem.operator), self._data_step_for(problem.operator)
        if kind == "prox":
            return problem.misfit(z), operator.prox(z, problem.y, rho)
        misfit, g = problem.misfit_and_gradient(z)
        weight = jnp.zeros((), z.dtype) if kind == "noiseless" else jnp.asarray(rho, z.dtype)

        def normal(p: Image) -> Image:
            return operator.adjoint(operator.forward(p)) + weight * p

        return misfit, conjugate_gradients(normal, z, -g, self.cg_steps)
