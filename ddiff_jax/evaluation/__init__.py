"""Evaluation: a data set times tasks times solvers times seeds, resumable, as tables that name how they were made."""

from ddiff_jax.evaluation.plan import Cell, Plan
from ddiff_jax.evaluation.run import Evaluation, evaluate
from ddiff_jax.evaluation.statistics import interval, paired

__all__ = ["Cell", "Evaluation", "Plan", "evaluate", "interval", "paired"]
