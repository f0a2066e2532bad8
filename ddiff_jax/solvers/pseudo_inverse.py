"""Pseudo-inverse: the least-squares image of least norm, without a prior."""

from ddiff_jax.operators.base import Operator
from ddiff_jax.problem import Problem
from ddiff_jax.pytree import pytree_dataclass
from ddiff_jax.solvers.base import Cost, Needs
from ddiff_jax.solvers.without_prior import OneStep, linear
from ddiff_jax.types import Image


@pytree_dataclass
class PseudoInverse(OneStep):
    """Find x = A^+ y: the image of least norm among those that minimise ||A x - y||.

    No network is evaluated, nothing is drawn, and the noise level plays no part: what A hardly transmits is amplified
    with its noise. Operators with a singular value decomposition leave out what counts as zero there, and those that
    iterate stop before they reach it, see `LinearOperator.pseudo_inverse`. Given an `x_init`, it is the least-squares
    image nearest to that.

    Aim: an estimate without a learned prior.

    Source: Moore and Penrose; the first column of any comparison.
    """

    needs = Needs(("pseudo_inverse",))

    def cost(self, operator: Operator) -> Cost:
        """Declare what the one step costs."""
        return Cost(operator_evaluations=2, operator_solves=1)

    def correction(self, problem: Problem, x: Image) -> Image:
        """Compute A^+ (y - A x)."""
        return linear(problem).pseudo_inverse(-problem.residual(x))
