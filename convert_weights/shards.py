"""Weights in several files, and the index that says which tensor is in which."""

import json
import re
from pathlib import Path

from ddiff_jax.files import Unusable, quote, read_text

MOST_FILES = 1000  # in an index
ENDINGS = (".safetensors", ".pt", ".pth", ".ckpt", ".bin")
SHARD = re.compile(r"-\d{5}-of-(\d{5})\.\w+$")


def resolve(source: Path) -> Path:
    """Find the file to begin with: the only weights in a folder, and the index of a shard; others stay as they are.

    Raises:
        FileNotFoundError: there is no such file, or a shard has no index.
        ValueError: a folder holds no weights, or several.
    """
    if source.is_dir():
        indices = _indices(source)
        found = indices or sorted(path for path in source.iterdir() if path.suffix in ENDINGS)
        if len(found) != 1:
            listed = f"holds {', '.join(path.name for path in found[:5])}; give one of them" if found else "holds none"
            raise ValueError(f"{source} is a folder of weights if it holds one file of them or one index; it {listed}")
        return found[0]
    if not source.exists():
        raise FileNotFoundError(f"no weight file at {source}")
    shard = SHARD.search(source.name)
    if shard and int(shard[1]) > 1:
        owners = [index for index in _indices(source.parent) if source.name in read(index)]
        if not owners:
            name = f"{source.name[: shard.start()]}{source.suffix}.index.json"
            raise FileNotFoundError(
                f"{source} is one of {int(shard[1])} parts, and their index {name} is not beside it"
            )
        return owners[0]
    return source


def is_index(path: Path) -> bool:
    """Tell whether a file is the index of others."""
    return path.suffix == ".json"


def _indices(folder: Path) -> list[Path]:
    return sorted(path for path in folder.glob("*.json") if ".index." in path.name)


def read(index: Path) -> dict[str, list[str]]:
    """Read an index: file to names of tensors.

    Raises:
        ValueError: it is no index, or names a file outside of its folder.
    """
    try:
        names = json.loads(read_text(index))["weight_map"]
        files: dict[str, list[str]] = {}
        for name, file in names.items():
            if Path(file).name != file or file in ("", "..") or "\\" in file or "\0" in file:
                raise ValueError(f"{quote(repr(file))} is no file beside it")
            files.setdefault(file, []).append(name)
            if len(files) > MOST_FILES:
                raise ValueError(f"it names more than {MOST_FILES} files")
    except Unusable:
        raise
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"{index} is no index of weights: {quote(error)}") from error
    return files
