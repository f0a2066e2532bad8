"""What a training leaves: the prior with a card for people, and averages of which others can be made."""

import dataclasses
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from ddiff_jax import image_files
from ddiff_jax.atomic import replacing, sync_folder
from ddiff_jax.card import Card
from ddiff_jax.checkpoint import CARD, ORBAX, PACKED, named_leaves, save_weights, with_linear
from ddiff_jax.containers import read_safetensors
from ddiff_jax.priors import LinearDenoiser
from ddiff_jax.restoration.machine import versions
from ddiff_jax.training.judgement import Judgement
from ddiff_jax.training.recipe import Recipe
from ddiff_jax.training.state import build_network
from ddiff_jax.types import Params

AVERAGES = "averages"
MODEL_CARD = "MODEL_CARD.md"


def keep_averages(folder: Path, step: int, averages: Sequence[Params]) -> None:
    """Write the averages at a step, for the making of others later."""
    from safetensors.numpy import save

    path = folder / AVERAGES / f"{step:08d}.safetensors"
    path.parent.mkdir(parents=True, exist_ok=True)
    named = {f"{i}/{name}": np.asarray(leaf) for i, a in enumerate(averages) for name, leaf in named_leaves(a).items()}
    with replacing(path) as file:
        file.write(save(named))


def kept_averages(folder: Path, like: Sequence[Params]) -> dict[int, Callable[[], list[Params]]]:
    """List the averages that were kept: step to what reads them.

    Args:
        folder: of the run.
        like: averages of the same structure.
    """
    structure, names = jax.tree.structure(like[0]), list(named_leaves(like[0]))

    def load(path: Path) -> list[Params]:
        stored = read_safetensors(path)
        return [jax.tree.unflatten(structure, [stored[f"{i}/{n}"] for n in names]) for i in range(len(like))]

    found = sorted((folder / AVERAGES).glob("*.safetensors"))
    return {int(path.stem): lambda path=path: load(path) for path in found if path.stem.isdigit()}


def forget_averages(folder: Path, step: int) -> None:
    """Remove what was kept after a step, when a run goes on from there."""
    for path in (folder / AVERAGES).glob("*.safetensors"):
        if path.stem.isdigit() and int(path.stem) > step:
            path.unlink()


def write_prior(
    folder: Path,
    recipe: Recipe,
    params: Params,
    judgement: Judgement,
    images: Mapping[str, Any],
    *,
    linear: LinearDenoiser | None = None,
    licence: str,
    stored: str,
) -> None:
    """Write the prior of a folder, in the place of an earlier one.

    Until the new card is there the folder holds no prior; an earlier card never describes new weights.

    Args:
        folder: where `card.json` will lie.
        recipe: how it was trained.
        params: its weights.
        judgement: how good it is.
        images: what it was trained on: "name" and "count".
        linear: denoiser that the network's output is added to.
        licence: terms for whoever uses it.
        stored: "float32" or "int16".
    """
    module = build_network(recipe)
    left_out = {"parent", "name", "dtype", "param_dtype", "remat", "for_training"}
    architecture = {f.name: getattr(module, f.name) for f in dataclasses.fields(module) if f.name not in left_out}
    count = sum(leaf.size for leaf in jax.tree.leaves(params))
    seen = judgement.images_seen
    notes = [
        f"trained by ddiff_jax {versions()['ddiff_jax']}: {judgement.step} updates, {seen} images of "
        f"{images['count']} different ones"
    ]
    if (warning := judgement.warning()) is not None:
        notes.append(warning)
    card = Card(
        kind="adm_unet",
        architecture=architecture,
        image_shape=recipe.image_shape,
        schedule=dict(recipe.schedule or {}),
        dtype=stored,
        num_parameters=count,
        source={"images": str(images["name"]), "sha256": str(images["fingerprint"])},
        licence=licence,
        prediction=recipe.prediction,
        sigma_data=recipe.sigma_data,
        linear_rank=recipe.linear_rank,
        notes=notes,
    )
    made = folder / "training" / "prior"
    shutil.rmtree(made, ignore_errors=True)  # left by who was killed here
    save_weights(made, with_linear(params, linear), card, one_file=True)
    (folder / CARD).unlink(missing_ok=True)
    for name in (ORBAX, PACKED):
        old = folder / name
        shutil.rmtree(old) if old.is_dir() else old.unlink(missing_ok=True)
        if (made / name).exists():
            os.rename(made / name, old)
    image_files.write_text(folder / MODEL_CARD, model_card(folder.name, recipe, judgement, images, licence, count))
    sync_folder(folder)
    os.rename(made / CARD, folder / CARD)
    sync_folder(folder)
    shutil.rmtree(made, ignore_errors=True)


def model_card(
    name: str, recipe: Recipe, judgement: Judgement, images: Mapping[str, Any], licence: str, count: int
) -> str:
    """Write what people should know before they use a prior, in Markdown."""
    height, width, channels = recipe.image_shape
    schedule = dict(recipe.schedule or {})
    facts = {
        "Network": f"ADM UNet, base width {recipe.architecture.get('model_channels')}, "
        f"multipliers {', '.join(map(str, recipe.architecture.get('channel_mult', ())))}; {count:,} parameters",
        "Input": f"[{height}, {width}, {channels}] in [-1, 1]; noise schedule {schedule.pop('name')} "
        f"({', '.join(f'{k} {v}' for k, v in schedule.items()) or 'its own values'})",
        "Output": f"prediction {recipe.prediction}"
        + (", and the log variance of a step" if recipe.architecture.get("out_channels") == 2 * channels else "")
        + (
            f", added to that of a linear denoiser with {recipe.linear_rank} principal directions"
            if recipe.linear_rank
            else ""
        ),
        "Trained on": f"{images['count']:,} images: {images['name']}",
        "Training": f"{judgement.step:,} of {recipe.steps:,} updates of {recipe.batch_size} images, AdamW "
        f"{recipe.learning_rate:g} after {recipe.warmup_steps} updates of warm-up, falling over the last "
        f"{recipe.decay_steps:,}, gradients clipped at {recipe.clip_norm:g}, {recipe.dtype}, "
        f"{'mirrored at random, ' if recipe.flip else ''}average of relative width {recipe.average:g}",
    }
    rows = "\n".join(f"| {key} | {text} |" for key, text in facts.items())
    return f"""# {name}

| | |
|---|---|
{rows}

Denoising of images that it has not seen, root mean squared error of x_0 in [-1, 1], beside the best linear filter and
the mean image:

{judgement.table()}

**Terms.** {licence}

**Use.** For images like those it was trained on. Where a measurement has no detail it invents plausible ones.
"""
