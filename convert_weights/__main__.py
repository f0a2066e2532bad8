"""`python -m convert_weights` is `ddiff convert`."""

import sys

from ddiff_jax.cli import main

sys.exit(main(["convert", *sys.argv[1:]]))
