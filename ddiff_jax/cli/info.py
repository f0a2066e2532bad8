"""`ddiff info`: versions, devices, memory, cache folder, priors, presets with their values, tasks and solvers."""

import dataclasses
import json
import sys
from collections.abc import Sequence
from typing import Any

import jax
import tyro

from ddiff_jax.checkpoint import available_priors, read_card
from ddiff_jax.cli.convert import card_in_words
from ddiff_jax.cli.environment import cache_folder
from ddiff_jax.cli.flags import parse
from ddiff_jax.config import VALUES, presets
from ddiff_jax.memory import GIB, device_bytes
from ddiff_jax.restoration.machine import device_in_words, versions
from ddiff_jax.solvers import SOLVERS


@dataclasses.dataclass(frozen=True)
class Options:
    """How to print.

    Args:
        json: Print JSON.
    """

    json: tyro.conf.FlagCreatePairsOff[bool] = False


def run(argv: Sequence[str]) -> int:
    """Run the command and return its exit code."""
    options = parse(Options, argv, prog="ddiff info", description="Show what is installed and available.")
    facts = _facts()
    if options.json:
        print(json.dumps(facts, indent=1))
        return 0
    for title, values in facts.items():
        print(title)
        width = max(map(len, values), default=0) + 2
        for name, value in values.items():
            print(f"  {name:<{width}}{', '.join(value) if isinstance(value, list) else value}")
    return 0


def _facts() -> dict[str, Any]:
    return {
        "versions": versions(),
        "devices": {
            f"{d.platform}:{d.id}": f"{device_in_words(d)}, {device_bytes(d) / GIB:.1f} GiB" for d in jax.devices()
        },
        "cache": {"folder": str(cache_folder()), "size": f"{_folder_size() / 2**20:.1f} MiB"},
        "priors": {name: card_in_words(read_card(name)) for name in available_priors()},
        "presets": {dataset: list(tasks) for dataset, tasks in presets().items()},
        "values": {name: f"{text} (--values {name})" for name, text in VALUES.items()},
        "solvers": {name: (sys.modules[cls.__module__].__doc__ or "").strip() for name, cls in SOLVERS.items()},
    }


def _folder_size() -> int:
    folder = cache_folder()
    return sum(path.stat().st_size for path in folder.iterdir()) if folder.is_dir() else 0
