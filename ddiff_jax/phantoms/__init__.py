"""Phantoms: random piecewise smooth maps of attenuation, as tomography and magnetic resonance imaging have them.

A picture is air with a body in it, which holds organs, bones, vessels, foams, drilled holes, folds and more; or several
things that lie in the air. What a kind of picture consists of is a row of `scenes.SCENES`, what it is drawn with a
function of `contents.CONTENTS`. Everything lies in the circle that touches the frame, where tomography sees it from all
sides.
"""

import numpy as np
from jaxtyping import Float

from ddiff_jax.noise import check_seed
from ddiff_jax.phantoms.canvas import Waves
from ddiff_jax.phantoms.contents import CONTENTS
from ddiff_jax.phantoms.drawing import Drawing, choose
from ddiff_jax.phantoms.scenes import SCENES

__all__ = ["LEAST_SIDE", "MOST", "MOST_SIDE", "check_count", "check_side", "phantom", "phantoms"]

LEAST_SIDE, MOST_SIDE = 8, 1024  # pixels
MOST = 1_000_000  # phantoms of one seed; more take another


def phantom(seed: int, index: int, side: int = 64) -> Float[np.ndarray, "{side} {side} 1"]:
    """Draw one phantom, which depends on these three numbers alone; at another size it shows the same things.

    Edges are anti-aliased: a pixel is the mean of four finer ones, in each of which an edge is as soft as it is wide.

    Args:
        seed: of the family, from 0 to 2**32 - 1.
        index: which one, from 0 to 999,999.
        side: pixels along its side, from 8 to 1024.

    Returns:
        The picture in [-1, 1]. Air is -1, and there is nothing else outside of the circle that touches the frame.

    Raises:
        ValueError: a number is out of its range.
    """
    check_seed(seed)
    check_side(side)
    if not 0 <= index < MOST:
        raise ValueError(f"the index of a phantom must be from 0 to {MOST - 1}; got {index}")
    rng = np.random.Generator(np.random.Philox(np.random.SeedSequence([seed, index])))
    scene = SCENES[choose(rng, {name: scene.share for name, scene in SCENES.items()})]
    drawing = Drawing(rng, scene, side)
    for name, how_often in scene.usual.items():
        if rng.random() < how_often:
            CONTENTS[name](drawing)
    for _ in range(rng.integers(*scene.items, endpoint=True)):
        CONTENTS[choose(rng, scene.contents)](drawing)
    is_shaded, strength = rng.random() < scene.shaded, rng.uniform(0.05, 0.3)
    if is_shaded:
        drawing.canvas.density *= np.exp(np.float32(strength) * drawing.canvas.field(Waves.draw(rng, 0.3, 1.0, 4)))
    return drawing.canvas.picture()


def phantoms(count: int, side: int = 64, seed: int = 0) -> Float[np.ndarray, "{count} {side} {side} 1"]:
    """Draw the first phantoms of a seed.

    Args:
        count: how many, from 1 to 1,000,000.
        side: as in `phantom`.
        seed: as in `phantom`.

    Raises:
        ValueError: a number is out of its range.
    """
    check_count(count)
    return np.stack([phantom(seed, index, side) for index in range(count)])


def check_side(side: int, name: str = "the side of a phantom") -> None:
    """Refuse sizes at which nothing is to be seen, or that take seconds each.

    Raises:
        ValueError: it is not from 8 to 1024.
    """
    if not LEAST_SIDE <= side <= MOST_SIDE:
        raise ValueError(f"{name} must be from {LEAST_SIDE} to {MOST_SIDE} pixels; got {side}")


def check_count(count: int, name: str = "the number of phantoms") -> None:
    """Refuse more than a seed has.

    Raises:
        ValueError: it is not from 1 to 1,000,000.
    """
    if not 1 <= count <= MOST:
        raise ValueError(f"{name} must be from 1 to {MOST}; got {count}")
