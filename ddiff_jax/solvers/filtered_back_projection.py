"""Filtered back-projection: what scanners computed before anything else, without a prior."""

from typing import cast

from ddiff_jax.noise import Noise
from ddiff_jax.operators._back_projection import Scan
from ddiff_jax.operators.base import Operator
from ddiff_jax.priors.base import Prior
from ddiff_jax.problem import Problem
from ddiff_jax.pytree import pytree_dataclass
from ddiff_jax.solvers.base import Cost, Needs
from ddiff_jax.solvers.without_prior import Estimated, Iterations, OneStep, first_image
from ddiff_jax.types import Image, Scalar


@pytree_dataclass
class FilteredBackProjection(OneStep):
    """Filter the projections with a ramp and smear them back along their rays.

    The inverse of tomography for complete, clean data; from few angles it leaves streaks, and it amplifies noise: that
    is what a table shows beside it. Angles must be evenly spaced over the circle, for parallel rays over half of it,
    and all entries must share one noise level. No network is evaluated, nothing is drawn, and the noise level plays no
    part. Given an `x_init`, what that does not explain is filtered and added to it.

    Aim: an estimate without a learned prior.

    Args:
        outside: grey level of what surrounds the image: -1 is black, and air in Hounsfield units.

    Source: Kak and Slaney, "Principles of Computerized Tomographic Imaging", 1988, sections 3.3 and 3.4.2.
    """

    needs = Needs(("filtered_back_projection",), check=Scan.check_angles)

    outside: Scalar = -1.0

    def cost(self, operator: Operator) -> Cost:
        """Declare what the one step costs."""
        return Cost(operator_evaluations=1, operator_gradients=1)

    def init(
        self, prior: Prior, problem: Problem, point: Iterations, noise: Noise, x_init: Image | None = None
    ) -> Estimated:
        """Start with what surrounds the image, or at `x_init`."""
        return Estimated(first_image(prior, problem, x_init) + (self.outside if x_init is None else 0.0))

    def correction(self, problem: Problem, x: Image) -> Image:
        """Filter and smear back what x does not explain."""
        return cast(Scan, problem.operator).filtered_back_projection(-problem.residual(x))
