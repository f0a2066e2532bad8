"""The command line `ddiff`: every subcommand is a module here with `run(argv) -> exit code`."""

import importlib
import os
import sys
from collections.abc import Sequence

from ddiff_jax.names import check_name
from ddiff_jax.safe_text import one_line

COMMANDS = {
    "restore": "restore images, or degrade clean ones first and compare",
    "check": "tell whether a measurement operator of your own is sound",
    "check-prior": "tell how well a prior denoises at every noise level",
    "evaluate": "restore a data set by several solvers and tabulate the results",
    "reproduce": "run a table or figure of the paper, beside the published numbers",
    "sample": "draw images from the prior alone, without a measurement",
    "convert": "turn a PyTorch checkpoint into one that --prior reads",
    "warmup": "compile ahead of time what a restore with the same flags needs",
    "info": "versions, devices, priors, presets",
}

USAGE = f"""usage: ddiff COMMAND [...]

Solve imaging inverse problems with diffusion priors.

{chr(10).join(f"  {name:<13}{text}" for name, text in COMMANDS.items())}

examples:
  ddiff restore                                             a demonstration, into ./restored
  ddiff restore photos/ --task gaussian_blur --output out   degrade clean photographs, restore, compare
  ddiff restore small/*.png --measured --output out         enlarge 16x16 measurements to 64x64
  ddiff convert ffhq_10m.pt --output ffhq                   then: ddiff restore --prior ffhq ...

ddiff COMMAND --help explains a command; --version; --debug shows where an error comes from.
Exit codes: 0 done, 1 some inputs failed, 2 usage or bad input, 130 interrupted.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code: 0 done, 1 some inputs failed, 2 bad input, 130 interrupted.

    Args:
        argv: arguments without the program's name; None takes those of the process.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in arguments or os.environ.get("DDIFF_DEBUG", "0") not in ("", "0")
    try:
        return _dispatch([a for a in arguments if a != "--debug"])
    except SystemExit as stop:  # tyro leaves this way after --help
        return stop.code if isinstance(stop.code, int) else 0
    except KeyboardInterrupt:
        print("ddiff: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        # The reader of our output has gone; keep Python from complaining about it once more when it exits.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except (ValueError, TypeError, OSError) as error:
        if debug:
            raise
        print(f"ddiff: error: {one_line(str(error))}", file=sys.stderr)
        return 2


def _dispatch(arguments: list[str]) -> int:
    command, *rest = arguments or ["--help"]
    if command in ("-h", "--help", "help"):
        print(USAGE, end="")
        return 0
    if command == "--version":
        from ddiff_jax._version import __version__

        print(f"ddiff_jax {__version__}")
        return 0
    check_name("command", command, COMMANDS)
    return importlib.import_module(f"ddiff_jax.cli.{command.replace('-', '_')}").run(rest)
