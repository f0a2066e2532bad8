"""Solvers. `SOLVERS` names every method.

A solver's grid (the table of numbers per step) and its state are pytree dataclasses with named fields, even where there
is only one. Those whose state is the noisy image x_t alone share `walking.NoisyState` and `walking.Walker`.
"""

from ddiff_jax.solvers.base import AIMS, Cost, Needs, Solver, StepInfo, aim_of, asks_network
from ddiff_jax.solvers.daps import DAPS
from ddiff_jax.solvers.ddiff import DDiff
from ddiff_jax.solvers.ddiff_hqs import DDiffHQS
from ddiff_jax.solvers.ddnm import DDNM
from ddiff_jax.solvers.ddrm import DDRM
from ddiff_jax.solvers.dds import DDS
from ddiff_jax.solvers.diff_pnp import DiffPnPADMM, DiffPnPHQS
from ddiff_jax.solvers.diffpir import DiffPIR
from ddiff_jax.solvers.dps import DPS
from ddiff_jax.solvers.filtered_back_projection import FilteredBackProjection
from ddiff_jax.solvers.flower import Flower
from ddiff_jax.solvers.mmps import MMPS
from ddiff_jax.solvers.pigdm import PiGDM
from ddiff_jax.solvers.pnp_dm import PnPDM
from ddiff_jax.solvers.pnp_flow import PnPFlow
from ddiff_jax.solvers.pseudo_inverse import PseudoInverse
from ddiff_jax.solvers.red_diff import REDDiff
from ddiff_jax.solvers.richardson_lucy import RichardsonLucy
from ddiff_jax.solvers.sitcom import SITCOM
from ddiff_jax.solvers.step_length import Fixed, StepLength, ToTheNoise
from ddiff_jax.solvers.tds import TDS
from ddiff_jax.solvers.tikhonov import Tikhonov
from ddiff_jax.solvers.total_variation import TotalVariation
from ddiff_jax.solvers.zero_filled import ZeroFilled

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
    "dds": DDS,
    "pnp_dm": PnPDM,
    "mmps": MMPS,
    "flower": Flower,
    "pnp_flow": PnPFlow,
    "sitcom": SITCOM,
    "tds": TDS,
    # The classical columns of a comparison, which ask no network.
    "zero_filled": ZeroFilled,
    "pseudo_inverse": PseudoInverse,
    "filtered_back_projection": FilteredBackProjection,
    "tikhonov": Tikhonov,
    "total_variation": TotalVariation,
    "richardson_lucy": RichardsonLucy,
}

__all__ = [
    "AIMS",
    "DAPS",
    "DDNM",
    "DDRM",
    "DDS",
    "DPS",
    "MMPS",
    "SITCOM",
    "SOLVERS",
    "TDS",
    "Cost",
    "DDiff",
    "DDiffHQS",
    "DiffPIR",
    "DiffPnPADMM",
    "DiffPnPHQS",
    "FilteredBackProjection",
    "Fixed",
    "Flower",
    "Needs",
    "PiGDM",
    "PnPDM",
    "PnPFlow",
    "PseudoInverse",
    "REDDiff",
    "RichardsonLucy",
    "Solver",
    "StepInfo",
    "StepLength",
    "Tikhonov",
    "ToTheNoise",
    "TotalVariation",
    "ZeroFilled",
    "aim_of",
    "asks_network",
]
