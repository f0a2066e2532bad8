"""Evaluation: a data set times tasks times solvers times seeds, resumable, as tables that name how they were made."""

from ddiff_jax.evaluation.plan import Cell, Plan
from ddiff_jax.evaluation.rows import Row
from ddiff_jax.evaluation.run import Evaluation, evaluate
from ddiff_jax.evaluation.summary import Difference, Group, Summary
from ddiff_jax.statistics import Mean, interval, paired

__all__ = [
    "Cell",
    "Difference",
    "Evaluation",
    "Group",
    "Mean",
    "Plan",
    "Row",
    "Summary",
    "evaluate",
    "interval",
    "paired",
]
