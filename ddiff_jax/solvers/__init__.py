"""Solvers. `SOLVERS` names every method.

A solver's grid (the table of numbers per step) and its state are pytree dataclasses with named fields, even where there
is only one. Those whose state is the noisy image x_t alone share `walking.NoisyState` and `walking.Walker`.
"""

from ddiff_jax.solvers.base import Cost, Needs, Solver, StepInfo
from ddiff_jax.solvers.daps import DAPS
from ddiff_jax.solvers.ddiff import DDiff
from ddiff_jax.solvers.ddiff_hqs import DDiffHQS
from ddiff_jax.solvers.ddnm import DDNM
from ddiff_jax.solvers.ddrm import DDRM
from ddiff_jax.solvers.diff_pnp import DiffPnPADMM, DiffPnPHQS
from ddiff_jax.solvers.diffpir import DiffPIR
from ddiff_jax.solvers.dps import DPS
from ddiff_jax.solvers.pigdm import PiGDM
from ddiff_jax.solvers.red_diff import REDDiff
from ddiff_jax.solvers.step_length import Fixed, StepLength, ToTheNoise

SOLVERS: dict[str, type[Solver]] = {
    "ddiff": DDiff,
    "ddiff_hqs": DDiffHQS,
    "diff_pnp_admm": DiffPnPADMM,
    "diff_pnp_hqs": DiffPnPHQS,
    "diffpir": DiffPIR,
    "dps": DPS,
    "daps": DAPS,
    "red_diff": REDDiff,
    "ddrm": DDRM,
    "pigdm": PiGDM,
    "ddnm": DDNM,
}

__all__ = [
    "DAPS",
    "DDNM",
    "DDRM",
    "DPS",
    "SOLVERS",
    "Cost",
    "DDiff",
    "DDiffHQS",
    "DiffPIR",
    "DiffPnPADMM",
    "DiffPnPHQS",
    "Fixed",
    "Needs",
    "PiGDM",
    "REDDiff",
    "Solver",
    "StepInfo",
    "StepLength",
    "ToTheNoise",
]
