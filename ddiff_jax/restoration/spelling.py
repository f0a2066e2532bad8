"""How settings are spelled as flags of `ddiff restore`: text made for people, which nothing here reads again."""

import shlex
from collections.abc import Iterable, Mapping
from typing import Any

RENAMED = {"num_steps": "steps"}  # fields of solvers to flags

# Flags that every restoration has; a hyper-parameter of the same name is spelled --solver-NAME.
GENERAL = (
    *("inputs", "output", "task", "operator", "solver", "prior", "label", "preset", "values", "measured", "recursive"),
    *("full_scale", "data_range", "save", "resize", "fit", "overlap", "shift_windows", "image_size", "seed"),
    *("restarts", "samples", "keep_samples", "batch_size", "dtype", "shard", "distributed", "save_every"),
    *("existing", "cache", "print_config", "quiet", "json"),
)

NOISE = ("sigma", "photons", "gain", "offset", "read")  # flags that every operator has


def spelled(name: str) -> str:
    """Spell a name as a flag."""
    return f"--{name.replace('_', '-')}"


def flag_name(name: str, section: str, taken: Iterable[str]) -> str:
    """Name a flag after an argument; if another flag has that name, put the section's name before it."""
    flag = RENAMED.get(name, name)
    return f"{section}_{flag}" if flag in taken else flag


def words(values: Mapping[str, Any]) -> list[str]:
    """Spell values as flags; None and False are not said, a sequence takes several words."""
    found: list[str] = []
    for name, value in values.items():
        if value is None or value is False:
            continue
        found.append(spelled(name))
        if isinstance(value, tuple | list):
            found += [str(v) for v in value]
        elif value is not True:
            found.append(str(value))
    return found


def command(
    general: Mapping[str, Any], operator: Mapping[str, Any], solver: Mapping[str, Any], known: Iterable[str]
) -> str:
    """Spell the command that restores IMAGES with such values.

    Args:
        general: of every restoration.
        operator: arguments of the operator.
        solver: hyper-parameters, where None means None.
        known: all arguments that the operator has.
    """
    flags = {name: flag_name(name, "operator", GENERAL + NOISE) for name in (*known, *operator)}
    taken = (*GENERAL, *NOISE, *flags.values())
    said = {flag_name(name, "solver", taken): "None" if value is None else value for name, value in solver.items()}
    switches = [spelled(f"no_{name}") for name, value in said.items() if value is False]
    given = {flags[name]: value for name, value in operator.items()}
    return shlex.join(["ddiff", "restore", "IMAGES", *words(general), *words(given), *words(said), *switches])
