"""Solvers. `SOLVERS` names every method."""

from ddiff_jax.solvers.base import Solver, StepInfo
from ddiff_jax.solvers.ddiff import DDiff

SOLVERS: dict[str, type[Solver]] = {
    "ddiff": DDiff,
}

__all__ = ["SOLVERS", "DDiff", "Solver", "StepInfo"]
