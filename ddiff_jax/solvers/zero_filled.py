"""Zero-filled reconstruction: the adjoint of what was measured, without a prior."""

from ddiff_jax.operators.base import Operator
from ddiff_jax.problem import Problem
from ddiff_jax.pytree import pytree_dataclass
from ddiff_jax.solvers.base import Cost, Needs
from ddiff_jax.solvers.without_prior import OneStep, linear
from ddiff_jax.types import Image


@pytree_dataclass
class ZeroFilled(OneStep):
    """Compute x = A^H y.

    For Fourier sampling and magnetic resonance, whose transforms are orthonormal and whose coil maps are normalised,
    this is the image with zeros for what was not sampled. For all other operators it is the matched filter: the
    unfiltered back-projection of tomography, whose grey levels mean nothing. No network is evaluated, nothing is drawn,
    and the noise level plays no part. Given an `x_init`, it is one step of Landweber's iteration from there.

    Aim: an estimate without a learned prior.

    Source: the usual starting image of compressed sensing in magnetic resonance.
    """

    needs = Needs(("adjoint",))

    def cost(self, operator: Operator) -> Cost:
        """Declare what the one step costs."""
        return Cost(operator_evaluations=1, operator_gradients=1)

    def correction(self, problem: Problem, x: Image) -> Image:
        """Compute A^H (y - A x)."""
        return linear(problem).adjoint(-problem.residual(x))
