"""Problems whose posteriors are known, and how well samplers reproduce them."""

from ddiff_jax.calibration.cell import CELLS, DEFAULT, FULL, Cell, Posterior

__all__ = ["CELLS", "DEFAULT", "FULL", "Cell", "Posterior"]
