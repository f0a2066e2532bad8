"""Find the network among the tensors of a file, whatever it was wrapped in on the way there."""

import dataclasses
from collections.abc import Iterable
from typing import Any

import numpy as np

from convert_weights.records import Contents
from convert_weights.schedules import is_buffer
from convert_weights.torch_file import UNMADE

MOST_SETS = 50  # of tensors in one file
USED = {"state_dict", "model_state_dict", "model", "net", "params", "unet"}  # names of the weights to use


@dataclasses.dataclass(frozen=True)
class Network:
    """The tensors of one network, and what lies beside it in its file.

    Args:
        prefix: what its names began with and no longer do; empty or ends in a dot.
        tensors: array by name.
        others: what the names of other networks of this kind in the file begin with.
        buffers: known tensors that are no weights, by their full names.
        beside: the other tensors that belong to no such network, by their full names.
        objects: what else the file would have had made, by its name.
        about: settings that lie beside the weights, see `Contents`.
    """

    prefix: str
    tensors: dict[str, np.ndarray]
    others: tuple[str, ...]
    buffers: dict[str, np.ndarray]
    beside: dict[str, np.ndarray]
    objects: dict[str, str]
    about: dict[str, Any]


def find(contents: Contents, anchors: Iterable[Iterable[str]], key: str | None = None) -> Network:
    """Find a network by a tensor that only it has.

    Wrappers and training loops put words and dots before the names of a network ("state_dict.", "module.",
    "ema.module._orig_mod."). Whatever stands before such a tensor's name is taken for that.

    Args:
        contents: of one file.
        anchors: for every kind of network, in the order of preference, names of which it has at least one.
        key: beginning of the prefix, without its last dot; chooses among several networks of one kind.

    Raises:
        ValueError: there are several networks of which none is the average of a training or named as the one to use, or
            none of this key; or one of the network's tensors is no tensor.
    """
    prefixes = next(filter(None, (_prefixes(contents.tensors, names) for names in anchors)), [])
    if len(prefixes) > MOST_SETS:
        raise ValueError(f"it holds {len(prefixes)} sets of tensors; up to {MOST_SETS} are told apart")
    if key is not None:
        chosen = [prefix for prefix in prefixes or _folders(contents) if f"{prefix}.".startswith(f"{key}.")]
    else:
        chosen = _best(prefixes) or [""]
    if not contents.tensors:
        made = [f"; it {what} as {name or 'a whole'}{UNMADE}" for name, what in contents.objects.items()]
        raise ValueError(f"it holds no dictionary of tensors (a state_dict){''.join(made[:1])}")
    if len(chosen) != 1:
        raise ValueError(_choice(contents, prefixes or _folders(contents), key, len(chosen)))
    prefix, others = chosen[0], tuple(other for other in prefixes if other != chosen[0])

    def owner(name: str) -> str | None:
        return max((p for p in (prefix, *others) if name.startswith(p)), key=len, default=None)

    for name, what in contents.objects.items():
        if owner(name) == prefix:
            raise ValueError(f"it {what} as {name}{UNMADE}")
    own = {name: a for name, a in contents.tensors.items() if owner(name) == prefix}
    none = {name: a for name, a in contents.tensors.items() if owner(name) is None}
    return Network(
        prefix,
        {name.removeprefix(prefix): a for name, a in own.items() if not is_buffer(name)},
        others,
        {name: a for name, a in {**none, **own}.items() if is_buffer(name)},
        {name: a for name, a in none.items() if not is_buffer(name)},
        contents.objects,
        contents.about,
    )


def _prefixes(names: Iterable[str], anchors: Iterable[str]) -> list[str]:
    ends = tuple(anchors)
    found = (name.removesuffix(end) for name in names for end in ends if f".{name}".endswith(f".{end}"))
    return list(dict.fromkeys(found))


def _folders(contents: Contents) -> list[str]:
    folders = dict.fromkeys(f"{name.split('.')[0]}." for name in contents.tensors if "." in name)
    return list(folders)[:MOST_SETS]


def _choice(contents: Contents, prefixes: list[str], key: str | None, fitting: int) -> str:
    counts = {prefix: sum(name.startswith(prefix) for name in contents.tensors) for prefix in prefixes}
    listed = ", ".join(f"{p.removesuffix('.') or 'those at the top'} ({n} tensors)" for p, n in counts.items())
    if key is None:
        short = _short(max(prefixes, key=_averaged), prefixes)
        return f"it holds several sets of tensors: {listed}; choose one, for example --key {short}"
    return f"--key {key} names {fitting or 'no'} sets of tensors; the file holds {listed or 'one without a name'}"


def _best(prefixes: list[str]) -> list[str]:
    """Keep the weights averaged over a training, or else those that are named like the ones to use."""
    averaged = [prefix for prefix in prefixes if _averaged(prefix)]
    return averaged or [prefix for prefix in prefixes if USED & {*prefix.split(".")}] or prefixes


def _averaged(prefix: str) -> bool:
    words = prefix.replace("_", ".").split(".")
    return bool({"ema", "averaged"} & {*words}) and "online" not in words


def _short(prefix: str, prefixes: list[str]) -> str:
    """Cut a prefix as short as it stays unlike the others."""
    words = prefix.removesuffix(".").split(".")
    for count in range(1, len(words)):
        head = ".".join(words[:count])
        if sum(f"{other}.".startswith(f"{head}.") for other in prefixes) == 1:
            return head
    return ".".join(words)


def notes(network: Network) -> list[str]:
    """Say what was taken, what was dropped from names, and what was left."""
    notes = []
    if network.prefix:
        notes.append(f"names begin with {network.prefix} in the file; dropped")
    if network.others:
        names = ", ".join(prefix.removesuffix(".") or "those at the top" for prefix in network.others)
        notes.append(f"other sets of tensors in the file: {names}; --key takes another one")
    if network.buffers:
        names = dict.fromkeys(name.rpartition(".")[2] for name in network.buffers)
        notes.append(f"buffers skipped, being no weights: {', '.join(names)}")
    if network.beside:
        groups = dict.fromkeys(".".join(name.split(".")[:2]) for name in network.beside)
        notes.append(f"{len(network.beside)} tensors beside the network left out: {_abridge(list(groups))}")
    if network.objects:
        made = [f"{name} ({what.removeprefix('wants to call ')})" for name, what in network.objects.items()]
        notes.append(f"neither made nor called, being no tensors: {_abridge(made)}")
    return notes


def _abridge(names: list[str], most: int = 5) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
