"""Pictures of an evaluation, and one page that holds them all and needs nothing else."""

from ddiff_jax.report.page import write_report

__all__ = ["write_report"]
