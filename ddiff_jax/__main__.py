"""Run the command line as `python -m ddiff_jax`."""

import sys

from ddiff_jax.cli import main

sys.exit(main())
