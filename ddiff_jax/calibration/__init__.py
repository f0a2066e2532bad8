"""Problems whose posteriors are known, and how well samplers reproduce them.

    >>> import jax
    >>> import ddiff_jax as dd
    >>> from ddiff_jax import calibration
    >>> sorted(calibration.LABELS)[:3]
    ['approximate', 'biased', 'diffuse']

`calibrate` measures one solver on one cell, `calibrate_all` many on many, and `compare` takes one measurement and
thousands of samples of it; the command is `ddiff calibrate`. A cell of one's own is a `Cell`: any prior and operator with a `Posterior`
that is known.
"""

from ddiff_jax.calibration.cell import CELLS, DEFAULT, FULL, Cell, Posterior
from ddiff_jax.calibration.findings import LABELS, Coverage, Findings, Measures, labels, measure
from ddiff_jax.calibration.page import write_page
from ddiff_jax.calibration.run import Draws, Exact, calibrate, draw
from ddiff_jax.calibration.single import Single, compare
from ddiff_jax.calibration.suite import Entry, Watch, calibrate_all, default_solvers, document, find_cell, find_solver
from ddiff_jax.calibration.table import sentences, to_document, to_text

__all__ = [
    "CELLS",
    "DEFAULT",
    "FULL",
    "LABELS",
    "Cell",
    "Coverage",
    "Draws",
    "Entry",
    "Exact",
    "Findings",
    "Measures",
    "Posterior",
    "Single",
    "Watch",
    "calibrate",
    "calibrate_all",
    "compare",
    "default_solvers",
    "document",
    "draw",
    "find_cell",
    "find_solver",
    "labels",
    "measure",
    "sentences",
    "to_document",
    "to_text",
    "write_page",
]
