"""Priors of the Hugging Face Hub: fetched, converted once, and kept in the user's cache folder."""

import dataclasses
import functools
import glob
import re
from pathlib import Path
from typing import Any

from convert_weights import diffusers_folder, shards
from ddiff_jax.caches import user_cache
from ddiff_jax.card import FORMAT
from ddiff_jax.checkpoint import CARD, HUB
from ddiff_jax.files import quote

NAME = re.compile(r"hf:(?P<owner>\w[\w.-]{0,95})/(?P<model>\w[\w.-]{0,95})(@(?P<revision>\w[\w./-]{0,199}))?", re.ASCII)
COMMIT = re.compile(r"[0-9a-f]{40}")
PART = re.compile(rf"{diffusers_folder.STEM}[\w.-]*", re.ASCII)
SETTINGS = (
    *(diffusers_folder.README, diffusers_folder.PIPELINE, diffusers_folder.CONFIG, diffusers_folder.SCHEDULER),
    f"scheduler/{diffusers_folder.SCHEDULER}",
    *(f"{name}/{diffusers_folder.CONFIG}" for name in diffusers_folder.NETWORKS),
)
"""What is fetched first: small, and says whether and which weights are worth fetching."""


@dataclasses.dataclass(frozen=True)
class Snapshot:
    """A model as it was at one time.

    Args:
        folder: where its files are.
        commit: which version.
        source: what a card says of it.
    """

    folder: Path
    commit: str
    source: dict[str, str]


def is_remote(source: str | Path) -> bool:
    """Tell whether a name is of the hub and not of a file."""
    return str(source).startswith(HUB)


def _parse(name: str) -> tuple[str, str, str | None]:
    """Read owner, model and revision.

    Raises:
        ValueError: these are not in the name.
    """
    found = NAME.fullmatch(name)
    if found is None or ".." in name:
        raise ValueError(f"{quote(name)} must be hf:OWNER/MODEL or hf:OWNER/MODEL@REVISION, as on huggingface.co")
    return found["owner"], found["model"], found["revision"]


def fetch(name: str) -> Snapshot:
    """Fetch the settings and the weights of a network of diffusers, and nothing else of its repository.

    What was fetched before is taken from the cache of huggingface_hub, which alone decides about the network:
    HF_HUB_OFFLINE, HF_HOME, HF_ENDPOINT and HF_TOKEN mean what they mean there.

    Args:
        name: "hf:OWNER/MODEL", or with "@REVISION" a branch, tag or commit of it.

    Raises:
        ImportError: huggingface_hub is not installed.
        OSError: there is no such model, it cannot be reached, or holds no weights of diffusers.
        ValueError: it is no name of a model, or the model is no prior.
    """
    owner, model, revision = _parse(name)
    try:
        import huggingface_hub  # pyright: ignore[reportMissingImports] - an extra
    except ImportError as error:
        raise ImportError(f"{name} needs huggingface_hub; install it with: pip install 'ddiff-jax[hf]'") from error
    hub: Any = huggingface_hub

    def get(revision: str | None, *patterns: str) -> Path:
        return Path(hub.snapshot_download(f"{owner}/{model}", revision=revision, allow_patterns=list(patterns)))

    try:
        folder = get(revision, *SETTINGS)
    except Exception as error:  # of the network and of the hub, by classes that differ between versions
        raise OSError(
            f"{name} cannot be fetched ({type(error).__name__}: {quote(error)}); check the name and the network, or "
            "convert a folder of it: ddiff convert FOLDER"
        ) from error
    commit = folder.name
    if not COMMIT.fullmatch(commit):
        raise OSError(f"huggingface_hub put {name} into {folder}, which is not named by a commit")
    network = diffusers_folder.locate(folder)
    inside = "" if network == folder else f"{network.name}/"
    problems = []

    def arrives(*files: str) -> bool:
        try:
            get(commit, *(glob.escape(inside + file) for file in files))
        except Exception as error:  # offline, a file that does not exist is one that cannot be reached
            problems.append(f"{type(error).__name__}: {quote(error)}")
        return all((network / file).is_file() for file in files)

    for file in diffusers_folder.WEIGHTS:
        if not arrives(file):
            continue
        parts = shards.read(network / file) if shards.is_index(network / file) else ()
        if not parts or arrives(*filter(PART.fullmatch, parts)):
            source = {"repository": f"{HUB}{owner}/{model}", "revision": commit}
            return Snapshot(folder, commit, source)
    why = f" ({problems[0]})" if problems else ""
    raise FileNotFoundError(f"{name} has no {diffusers_folder.STEM}.* that can be fetched{why}")


def converted(name: str) -> Path:
    """Find the converted weights of a model, fetched and converted before if that was not done yet.

    One process asks the hub once, and stays with the version that it found.

    Args:
        name: as `fetch` takes it.

    Raises:
        ImportError: huggingface_hub is not installed.
        OSError: the model cannot be fetched.
        ValueError: it cannot be converted without more being said; see `ddiff convert`.
    """
    return _converted(name, user_cache() / "priors" / str(FORMAT))


@functools.lru_cache
def _converted(name: str, cache: Path) -> Path:
    owner, model, revision = _parse(name)
    home = cache / owner / model
    if revision is not None and COMMIT.fullmatch(revision) and (home / revision / CARD).is_file():
        return home / revision
    snapshot = fetch(name)
    folder = home / snapshot.commit
    if not (folder / CARD).is_file():
        from convert_weights import convert

        try:
            convert(f"{HUB}{owner}/{model}@{snapshot.commit}", folder)
        except ValueError as error:
            raise ValueError(
                f"{error} (what flags can say is said to: ddiff convert {name} --output FOLDER)"
            ) from error
        except OSError:
            if not (folder / CARD).is_file():  # another process was quicker
                raise
    return folder
