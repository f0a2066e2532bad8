"""Solvers. `SOLVERS` names every method."""

from ddiff_jax.solvers.base import Cost, Solver, StepInfo
from ddiff_jax.solvers.ddiff import DDiff

SOLVERS: dict[str, type[Solver]] = {
    "ddiff": DDiff,
}

__all__ = ["SOLVERS", "Cost", "DDiff", "Solver", "StepInfo"]
