"""Weights on disk: a folder with a card that describes them and says how to tell that they are whole."""

import contextlib
import dataclasses
import functools
import gc
import json
import logging
import os
import secrets
import shutil
import sys
from collections.abc import Callable, Collection, Iterator, Mapping
from importlib import resources
from pathlib import Path
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

from ddiff_jax.architecture import PRIORS, abstract_params, build_module, params_as_stored
from ddiff_jax.atomic import sync_file, sync_folder
from ddiff_jax.card import Card, build_schedule, parse_card
from ddiff_jax.containers import read_safetensors
from ddiff_jax.files import Unusable, catching, file_hash, quote, read_text
from ddiff_jax.limits import MOST_COPIES, SPARE
from ddiff_jax.names import nearest
from ddiff_jax.priors import DiffusionPrior, LinearDenoiser
from ddiff_jax.types import Params

CARD = "card.json"
ORBAX = "weights"
PACKED = "weights.safetensors"
HUB = "hf:"  # before OWNER/MODEL: a model of the Hugging Face Hub
LINEAR = "linear denoiser"  # name beside the network's own of what its output is added to
SCALE = "scale of "  # prefix of the names of packed arrays' scales

# Gives what a network wants, once it is known what is stored, and refuses what does not fit.
Want: TypeAlias = Callable[[Mapping[str, tuple[int, ...]]], Params]


def with_linear(params: Params, linear: LinearDenoiser | None) -> Params:
    """Put the linear denoiser of a prior beside the weights of its network, as both are stored."""
    return params if linear is None else {**params, LINEAR: dict(vars(linear))}


def without_linear(stored: Params) -> tuple[Params, LinearDenoiser | None]:
    """Take apart what `with_linear` put together."""
    params = dict(stored)
    linear = params.pop(LINEAR, None)
    return params, None if linear is None else LinearDenoiser(**linear)


def _wanted(module: Any, card: Card, size: int, stored: Mapping[str, tuple[int, ...]]) -> Params:
    """List shapes and types of what the files of a card hold, `size` bytes in all, with these shapes by name.

    Raises:
        ValueError: the card wants others.
    """
    rank = card.linear_rank
    linear = LinearDenoiser.shapes(rank, card.image_shape) if rank else {}
    own = {name: shape for name, shape in stored.items() if name not in {f"{LINEAR}/{part}" for part in linear}}
    wanted = params_as_stored(card.kind, module, card.image_shape, own) or abstract_params(module)
    if rank:
        wanted = {**wanted, LINEAR: {name: jax.ShapeDtypeStruct(shape, jnp.float32) for name, shape in linear.items()}}
    _check_size(wanted, size)
    _check_shapes(stored, wanted)
    return wanted


def save_weights(folder: str | Path, params: Params, card: Card, *, one_file: bool = False) -> Path:
    """Write weights and card into a new folder, all or nothing.

    Args:
        folder: must not exist yet.
        params: nested dict of float32 arrays.
        card: `files` is filled in here. A dtype of "float32" writes an Orbax checkpoint; "int16" one safetensors
            file of half the size, for shipping.
        one_file: write a safetensors file in float32, too: where several processes compute together, Orbax would wait
            for all of them to save.

    Returns:
        The folder.

    Raises:
        FileExistsError: the folder exists.
    """
    folder = Path(folder).absolute()
    if folder.exists():
        raise FileExistsError(f"{folder} exists already; choose another folder or move it away")
    folder.parent.mkdir(parents=True, exist_ok=True)
    # Written beside and renamed at the end: a folder of this name is whole or absent.
    partial = folder.with_name(f".{folder.name}.partial-{secrets.token_hex(4)}")
    partial.mkdir()
    try:
        if one_file or card.dtype == "int16":
            _save_packed(partial / PACKED, params, rounded=card.dtype == "int16")
        else:
            orbax().save(partial / ORBAX, params)
        written = sorted(path for path in partial.rglob("*") if path.is_file())
        files = {path.relative_to(partial).as_posix(): file_hash(path) for path in written}
        card = dataclasses.replace(card, files=files)
        (partial / CARD).write_text(json.dumps(dataclasses.asdict(card), indent=2) + "\n")
        for path in (*written, partial / CARD):
            sync_file(path)
        for path in (*(path for path in partial.rglob("*") if path.is_dir()), partial):
            sync_folder(path)
        os.rename(partial, folder)
        sync_folder(folder.parent)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    return folder


def orbax() -> Any:
    """Import the interface of Orbax that this library uses."""
    try:
        from orbax.checkpoint import v1  # pyright: ignore[reportAttributeAccessIssue] - in later versions
    except ImportError:
        from orbax.checkpoint.experimental import v1
    return v1


@contextlib.contextmanager
def _silenced() -> Iterator[None]:
    """Keep Orbax from telling beside its error what else it found."""
    loggers = [logging.getLogger(name) for name in ("asyncio", "absl")]
    levels, hook = [logger.level for logger in loggers], sys.unraisablehook
    for logger in loggers:
        logger.setLevel(logging.CRITICAL + 1)
    sys.unraisablehook = lambda _: None
    try:
        with catching():
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
        sys.unraisablehook = hook


def _load_orbax(path: Path, want: Want) -> tuple[Params, Params]:
    with _silenced():
        try:
            return _load_checked(path, want)
        except Exception as error:
            said = quote(error)
        gc.collect()  # the tasks that it leaves behind complain when they are collected: now
    raise ValueError(said)


def _load_checked(path: Path, want: Want) -> tuple[Params, Params]:
    # Orbax finds a wrong shape only while arrays are in flight, and leaves those behind.
    stored = {name: tuple(leaf.shape) for name, leaf in named_leaves(orbax().metadata(path).metadata).items()}
    wanted = want(stored)
    device = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    placed = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, jnp.float32, sharding=device), wanted)
    return orbax().load(path, placed), wanted


def named_leaves(params: Params) -> dict[str, Any]:
    """List the leaves of any tree by their paths, "middle_0/conv_1/kernel"."""
    leaves = jax.tree_util.tree_flatten_with_path(params)[0]
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in leaves}


def packs(array: Any) -> bool:
    """Tell whether int16 storage rounds an array; norms and biases are few, and every output depends on them."""
    return array.ndim > 1


def pack(array: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Round an array to 16 bits: integers, and a scale for every column (along the second last axis).

    Sixteen bits spread evenly over a column's range round ten times finer than float16, whose exponent takes five.
    """
    largest = np.max(np.abs(array), axis=-2, keepdims=True)
    scale = np.where(largest > 0, largest / np.float32(32767), np.float32(1))
    return np.round(array / scale).astype(np.int16), scale


def unpack(integers: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """Undo `pack` up to rounding."""
    return integers.astype(np.float32) * scale


def _save_packed(path: Path, params: Params, *, rounded: bool) -> None:
    from safetensors.numpy import save_file

    stored = {}
    for name, leaf in named_leaves(params).items():
        if rounded and packs(leaf):
            stored[name], stored[SCALE + name] = pack(np.asarray(leaf))
        else:
            stored[name] = np.asarray(leaf)
    save_file(stored, path)
    path.chmod(0o644)  # safetensors makes it private


def _load_packed(path: Path, want: Want) -> tuple[Params, Params]:
    stored = read_safetensors(path)
    packed = {name: values for name, values in stored.items() if not name.startswith(SCALE)}
    wanted = want({name: array.shape for name, array in packed.items()})
    arrays = {name: _unpacked(name, values, stored.get(SCALE + name)) for name, values in packed.items()}
    return jax.tree.unflatten(jax.tree.structure(wanted), [arrays[name] for name in named_leaves(wanted)]), wanted


def _unpacked(name: str, values: np.ndarray, scale: np.ndarray | None) -> np.ndarray:
    if scale is None and values.dtype == np.float32:
        return values
    # Anything else would broadcast, to whatever size.
    shape = (*values.shape[:-2], 1, *values.shape[-1:])
    if values.dtype != np.int16 or values.ndim < 2 or scale is None or scale.shape != shape:
        raise ValueError(f"{name} is neither float32 nor int16 with a scale per column")
    if scale.dtype != np.float32:
        raise ValueError(f"the scale of {name} must be float32; got {scale.dtype}")
    return unpack(values, scale)


def _check_size(wanted: Params, stored: int) -> None:
    """Refuse an architecture whose numbers the files cannot hold, compressed as they may be."""
    size = 4 * sum(leaf.size for leaf in jax.tree.leaves(wanted))
    if size > SPARE + 2 * MOST_COPIES * stored:
        raise ValueError(f"its architecture has {size // 4} parameters, and the files hold {stored} bytes")


def _check_shapes(stored: Mapping[str, tuple[int, ...]], wanted: Params) -> None:
    shapes = {name: leaf.shape for name, leaf in named_leaves(wanted).items()}
    different = sorted(name for name in stored.keys() | shapes.keys() if stored.get(name) != shapes.get(name))
    if different:
        name = different[0]
        raise ValueError(
            f"{len(different)} tensors differ from the card's architecture, the first is {name}: stored as "
            f"{stored.get(name, 'absent')}, wanted {shapes.get(name, 'absent')}"
        )


def available_priors() -> dict[str, Path]:
    """List the priors that come with the package: name to folder."""
    assets = Path(str(resources.files("ddiff_jax"))) / "assets"
    return {path.parent.name: path.parent for path in sorted(assets.glob(f"*/{CARD}"))}


def find_weights(name_or_path: str | Path) -> Path:
    """Find the folder of a packaged name, of a model of the hub, or of a path.

    Raises:
        ImportError: it is a model of the hub, and huggingface_hub is not installed.
        OSError: that model cannot be fetched.
        ValueError: that model is no prior, or needs flags to be converted.
        FileNotFoundError: there is neither; says what is known, or how to convert a PyTorch file.
    """
    known = available_priors()
    if str(name_or_path) in known:
        return known[str(name_or_path)]
    if str(name_or_path).startswith(HUB):
        from convert_weights.hub import converted

        return converted(str(name_or_path))
    path = Path(name_or_path).absolute()  # Orbax takes no relative ones
    if path.is_file() and path.name == CARD:
        return path.parent
    if path.is_file():
        raise FileNotFoundError(f"{path} is a file, not converted weights; run: ddiff convert {path} --output FOLDER")
    if not path.is_dir():
        raise FileNotFoundError(
            f"no weights at {path}, and no packaged prior of this name; {nearest(str(name_or_path), known)}"
        )
    return path


def read_card(name_or_path: str | Path) -> Card:
    """Read the card of a packaged name or of a folder.

    Raises:
        FileNotFoundError: there is no such folder, or no card in it.
        ValueError: the card is damaged or of another version.
    """
    path = find_weights(name_or_path) / CARD
    if not path.exists():
        raise FileNotFoundError(
            f"{path} is missing: the folder is no converted checkpoint or was half written; run ddiff convert again"
        )
    try:
        return parse_card(read_text(path))
    except Unusable:
        raise
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is damaged: {error}") from error


def load_weights(name_or_path: str | Path, kind: str | Collection[str], **changes: Any) -> tuple[Any, Params, Card]:
    """Load a network with its weights, after checking every file against the card.

    Args:
        name_or_path: packaged name or folder.
        kind: which network is expected, or several of which one is.
        changes: fields of the module that differ from the card, for example dtype.

    Returns:
        The module, its parameters in the types in which it makes them (with a linear denoiser beside them where the
        card has one, see `with_linear`), and the card.

    Raises:
        FileNotFoundError: a file is missing; named in the message.
        ValueError: a file is damaged (named in the message), or the weights are of another kind or architecture.
    """
    folder, card = find_weights(name_or_path), read_card(name_or_path)
    kinds = (kind,) if isinstance(kind, str) else kind
    if card.kind not in kinds:
        raise ValueError(f"{folder} holds a network of kind {quote(card.kind)}, wanted {' or '.join(kinds)}")
    _check_files(folder, card)
    try:
        module = build_module(card.kind, {**card.architecture, **changes})
        size = sum((folder / name).stat().st_size for name in card.files)
        want = functools.partial(_wanted, module, card, size)
        packed = PACKED in card.files
        params, wanted = _load_packed(folder / PACKED, want) if packed else _load_orbax(folder / ORBAX, want)
    except Exception as error:  # an architecture that does not fit together surfaces as anything
        raise ValueError(f"{folder} cannot be loaded as the network on its card: {quote(error)}") from error
    # All at once, and arrays of the host in their type already: else every shape is a program of its own.
    return module, jax.device_put(jax.tree.map(lambda leaf, like: leaf.astype(like.dtype), params, wanted)), card


def _check_files(folder: Path, card: Card) -> None:
    """Check that the card lists exactly the files that will be loaded, and that they are whole."""
    if not card.files:
        raise ValueError(f"{folder / CARD} is damaged: it lists no weight files")
    for name in card.files:
        if not (folder / name).exists():
            raise FileNotFoundError(
                f"{folder / name} is missing: the checkpoint is incomplete; run ddiff convert again"
            )
        if not (folder / name).resolve().is_relative_to(folder.resolve()):
            raise ValueError(f"{folder / name} is a link out of the folder; put the file itself there")
    inside = [folder / PACKED] if PACKED in card.files else sorted((folder / ORBAX).rglob("*"))
    loaded = {path.relative_to(folder).as_posix() for path in inside if path.is_symlink() or not path.is_dir()}
    for name in sorted(loaded ^ card.files.keys()):
        where = "loaded but not on the card" if name in loaded else "on the card but not loaded"
        raise ValueError(
            f"{folder / name} is {where}, whose files must be those of the weights; run ddiff convert again"
        )
    for name, digest in card.files.items():
        if file_hash(folder / name) != digest:
            raise ValueError(
                f"{folder / name} is damaged: its SHA-256 is not the one on the card; run ddiff convert again"
            )


def load_prior(name_or_path: str | Path, dtype: str | None = None) -> DiffusionPrior:
    """Load a diffusion prior.

    Args:
        name_or_path: the name of a packaged prior ("faces64"), a folder that `ddiff convert` wrote, or "hf:OWNER/MODEL"
            (with "@REVISION" a branch, tag or commit of it): a UNet2DModel of diffusers on the Hugging Face Hub, which
            is fetched and converted once. That takes the extra `ddiff-jax[hf]`.
        dtype: type of the network's computation, "float32" (also None) or "bfloat16"; the statistics of the norms, the
            embedding of the timestep, the last layer and the output are float32 in both.

    Raises:
        FileNotFoundError: there are no such weights, or a file of them is missing.
        ValueError: a file is damaged, or the weights do not fit the architecture on their card; or an unknown dtype.
    """
    if dtype not in (None, "float32", "bfloat16"):
        raise ValueError(f"dtype must be float32 or bfloat16; got {dtype!r}")
    dtype = dtype or "float32"
    module, params, card = load_weights(name_or_path, PRIORS, dtype=dtype, param_dtype=dtype)
    try:
        return build_prior(module, params, card)
    except ValueError as error:
        raise ValueError(f"{find_weights(name_or_path) / CARD} is damaged: {error}") from error


def build_prior(module: Any, params: Params, card: Card) -> DiffusionPrior:
    """Build the prior that a card describes.

    Raises:
        ValueError: its noise schedule cannot be built, it is no prior, or the network takes no such images.
    """
    schedule = build_schedule(card.schedule)
    if card.prediction is None:
        raise ValueError("a prior must say its prediction")
    module.check((1, *card.image_shape), module.num_classes is not None)
    low, high = card.image_range
    params, linear = without_linear(params)
    return DiffusionPrior(
        params,
        schedule,
        module,
        card.image_shape,
        linear=linear,
        clip=card.clip,
        prediction=card.prediction,
        sigma_data=card.sigma_data,
        shift=(high + low) / (high - low),
    )
