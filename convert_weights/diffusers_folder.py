"""Folders as diffusers saves them: weights, and beside them the settings that say what these are."""

import contextlib
import dataclasses
import json
import re
from pathlib import Path
from typing import Any

from convert_weights import shards
from ddiff_jax.files import Unusable, quote, read_text

CONFIG, PIPELINE, SCHEDULER, README = "config.json", "model_index.json", "scheduler_config.json", "README.md"
STEM = "diffusion_pytorch_model"
# In the order of preference; the last ones are what different versions of diffusers call half precision in parts.
WEIGHTS = tuple(
    f"{STEM}.{ending}"
    for ending in (
        *("safetensors", "safetensors.index.json", "bin", "bin.index.json"),
        *("fp16.safetensors", "fp16.safetensors.index.json", "safetensors.index.fp16.json"),
        *("safetensors.fp16.index.json", "fp16.bin"),
    )
)
NETWORKS = ("unet_ema", "unet")  # folders inside of a pipeline's, the averaged weights first
NETWORK = "UNet2DModel"
ALONE = f"of the networks of diffusers {NETWORK} alone makes images of pixels by itself, and is converted"
MOST_README = 2**20  # bytes
LONGEST_LICENCE = 100


@dataclasses.dataclass(frozen=True)
class Folder:
    """What was found.

    Args:
        weights: the file or index to read.
        about: "config" and "scheduler" (None if there is none), the settings; "licence" (None); "notes", a list.
        settings: the files of settings that were read, by what they are called inside of the folder.
    """

    weights: Path
    about: dict[str, Any]
    settings: dict[str, Path]


def find(source: Path) -> Folder | None:
    """Find the weights and the settings in a folder, or those that belong to one of its files.

    Args:
        source: a folder in the layout of a pipeline (`unet/`, `scheduler/`) or of a single model, the `unet/` of the
            former, or any of their files.

    Returns:
        None if it is no folder of diffusers, nor a file that is called like one of theirs and has settings beside it.

    Raises:
        FileNotFoundError: the settings of a pipeline's network are missing.
        ValueError: it is one and holds no network that is a prior, or a file in it is damaged.
    """
    source, weights = source.absolute(), None
    if source.is_file():
        weights = source if source.name.startswith(STEM) else None
        if weights is None and source.name not in (CONFIG, PIPELINE, SCHEDULER, README):
            return None
        source = source.parent.parent if source.parent.name == "scheduler" else source.parent
    if not source.is_dir():
        return None
    network = source if weights else _network(source)
    config, whole = network / CONFIG, _whole(network)
    if not (config.is_file() or (source / PIPELINE).is_file()):
        return None
    values = _settings(source, config)
    if "_class_name" not in values and weights is None and not _first(network):
        return None  # of another library
    _check_pipeline(whole)
    _check_class(config, values)
    notes = []
    other = source / NETWORKS[1]
    if network == source / NETWORKS[0] and (other / CONFIG).is_file():
        notes.append(f"{network.name}/ taken, the averaged weights; give {other.name}/ for the others")
    places = (whole / "scheduler" / SCHEDULER, whole / SCHEDULER, network / SCHEDULER)
    scheduler = next(filter(Path.is_file, places), None)
    about = {
        "config": values,
        "scheduler": None if scheduler is None else read_json(scheduler),
        "licence": _licence(whole / README),
        "notes": notes,
    }
    weights = weights or _first(network) or shards.resolve(network)
    if ".fp16." in weights.name:
        notes.append(f"{weights.name}: numbers of half precision")
    settings = {path.relative_to(whole).as_posix(): path for path in (config, scheduler) if path is not None}
    return Folder(weights, about, settings)


def _whole(network: Path) -> Path:
    """Find the pipeline's folder that a network's lies in; a network by itself is whole."""
    parent = network.parent
    inside = network.name in NETWORKS and any(
        path.is_file() for path in (parent / PIPELINE, parent / "scheduler" / SCHEDULER, parent / SCHEDULER)
    )
    return parent if inside else network


def locate(folder: Path) -> Path:
    """Find the network's folder in one of diffusers, of which the weights may be missing.

    Raises:
        FileNotFoundError: there are no settings of a network.
        ValueError: they are of no network that is a prior.
    """
    _check_pipeline(folder)
    network = _network(folder)
    _check_class(network / CONFIG, _settings(folder, network / CONFIG))
    return network


def _network(folder: Path) -> Path:
    """Choose the network among those of a pipeline, or the folder itself."""
    return next((folder / name for name in NETWORKS if (folder / name / CONFIG).is_file()), folder)


def _settings(source: Path, config: Path) -> dict[str, Any]:
    if not config.is_file():
        missing = source / NETWORKS[1] / CONFIG if (source / PIPELINE).is_file() else config
        raise FileNotFoundError(f"{missing} is missing, without which weights of diffusers cannot be converted")
    return read_json(config)


def _check_class(config: Path, values: dict[str, Any]) -> None:
    name = values.get("_class_name")
    if name != NETWORK:
        raise ValueError(f"{config} describes {quote(repr(name))}; {ALONE}")


def _first(network: Path) -> Path | None:
    """Find the preferred weights of a folder."""
    return next(filter(Path.is_file, (network / name for name in WEIGHTS)), None)


def _check_pipeline(folder: Path) -> None:
    """Refuse pipelines whose network does not make pixels by itself."""
    path = folder / PIPELINE
    if not path.is_file():
        return
    parts = {name: part for name, part in read_json(path).items() if isinstance(part, list) and part[-1:] != [None]}
    coded = [name for name in ("vae", "vqvae", "movq") if name in parts]
    if coded:
        raise ValueError(
            f"{path} has a {coded[0]}: its network makes latents, not pixels, and is no prior of images by itself"
        )
    unet = parts.get("unet", [None])[-1]
    if unet != NETWORK:
        raise ValueError(f"{path} has {'no unet' if unet is None else f'for unet {quote(repr(unet))}'}; {ALONE}")


def read_json(path: Path) -> dict[str, Any]:
    """Read a mapping of settings.

    Raises:
        ValueError: it is none.
    """
    try:
        values = json.loads(read_text(path))
        if not isinstance(values, dict):
            raise ValueError(f"a mapping was expected; got {type(values).__name__}")
    except Unusable:
        raise
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} holds no settings in JSON: {quote(error)}") from error
    return values


def _licence(path: Path) -> str | None:
    """Read the licence in the head of a model's page, as far as there is one that can be printed."""
    text = ""
    with contextlib.suppress(Unusable):
        text = read_text(path, MOST_README)
    head = re.match(r"\ufeff?---\s*\n(.*?)\n---", text, re.DOTALL)
    fields = {}
    for name in ("license", "license_name"):
        found = re.search(rf"^{name}:[ \t]*(?:\n[ \t]*-[ \t]*)?(\S[^\n]*)$", head[1] if head else "", re.MULTILINE)
        fields[name] = found[1].strip(" \t\r'\"[]") if found else ""
    named = fields["license_name"] if fields["license"] in ("", "other") else ""
    licence = named or fields["license"]
    return licence if licence.isprintable() and 0 < len(licence) <= LONGEST_LICENCE else None
