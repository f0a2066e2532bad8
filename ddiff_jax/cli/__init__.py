"""The command line `ddiff`: every subcommand is a module here with `run(argv) -> exit code`."""

import contextlib
import importlib
import os
import sys
from collections.abc import Sequence

from ddiff_jax.cli.complaints import complain
from ddiff_jax.cli.signals import terminable
from ddiff_jax.names import check_name

COMMANDS = {
    "restore": "restore images, or degrade clean ones first and compare",
    "check": "tell whether a measurement operator of your own is sound",
    "check-prior": "tell how well a prior denoises at every noise level",
    "calibrate": "measure how well solvers reproduce posteriors that are known",
    "evaluate": "restore a data set by several solvers and tabulate the results",
    "reproduce": "run a table or figure of the paper, beside the published numbers",
    "phantoms": "write random phantoms of CT and MRI as pictures, to train a prior on",
    "train": "train a prior on a folder of your own images",
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
    code = _main(list(sys.argv[1:] if argv is None else argv))
    return _flush() or code


def _flush() -> int:
    """Write out what was printed, now, where it can still be said if that fails; what cannot be is given up."""
    code = 0
    for stream in filter(None, (sys.stdout, sys.stderr)):  # None where the descriptor was closed from the start
        try:
            stream.flush()
        except OSError as error:
            if stream is sys.stdout and not isinstance(error, BrokenPipeError):  # whose reader has had enough
                code = 2
                complain(f"standard output cannot be written: {error.strerror}")
            # Keep Python from complaining about it once more when it exits.
            with contextlib.suppress(OSError):  # of a stream without a descriptor
                os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
    return code


def _main(arguments: list[str]) -> int:
    debug = "--debug" in arguments or os.environ.get("DDIFF_DEBUG", "0") not in ("", "0")
    try:
        with terminable():
            return _dispatch([a for a in arguments if a != "--debug"])
    except SystemExit as stop:  # tyro leaves this way after --help
        return stop.code if isinstance(stop.code, int) else 0
    except KeyboardInterrupt:
        complain("interrupted")
        return 130
    except BrokenPipeError:
        return 0  # the reader of our output has gone
    except (ValueError, TypeError, OSError, ImportError) as error:
        if debug:
            raise
        complain(str(error))
        return 2
    except Exception:
        from ddiff_jax.cli.environment import why_no_device

        why = None if debug else why_no_device()
        if why is None:
            raise
        complain(why)
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
    module = importlib.import_module(f"ddiff_jax.cli.{command.replace('-', '_')}")
    from ddiff_jax.cli.environment import own_settings

    with own_settings():
        return module.run(rest)
