"""Randomness as a value: named streams of keys, and the normal draws that a solver step receives."""

import enum
import math
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jaxtyping import Float, Int, Key

from ddiff_jax.pytree import pytree_dataclass, static_field
from ddiff_jax.types import PRNGKey


class Stream(enum.IntEnum):
    """What a key made from an image's key is for. Keys of different streams never meet."""

    OPERATOR = 0
    MEASUREMENT = 1
    INIT = 2
    LOOP = 3


def check_seed(seed: int, name: str = "a seed") -> None:
    """Refuse what JAX would take for another seed.

    Raises:
        ValueError: it is not from 0 to 2**32 - 1.
    """
    if not 0 <= seed < 2**32:
        raise ValueError(f"{name} must be from 0 to {2**32 - 1}; got {seed}")


def root_key(seed: int) -> PRNGKey:
    """Make the root of all random numbers, of the kind that this library is written for, whatever JAX's default is.

    Raises:
        ValueError: JAX would take it for another seed.
    """
    check_seed(seed)
    return jax.random.key(seed, impl="threefry2x32")


def stream_key(image_key: PRNGKey, stream: Stream) -> PRNGKey:
    """Derive the key of one stream from the key of one image.

    Args:
        image_key: of the image, from `image_keys`.
        stream: what is drawn with it.
    """
    return jax.random.fold_in(image_key, stream)


def image_keys(root: PRNGKey, image_ids: Int[jax.Array, " N"]) -> Key[jax.Array, " N"]:
    """Give every image its own key, by its identity and not by its place in a batch.

    Args:
        root: `jax.random.key(seed)`.
        image_ids: one integer per image that names it in its dataset.
    """
    return jax.vmap(jax.random.fold_in, (None, 0))(root, jnp.asarray(image_ids))


RUN_KEYS = 1 << 16  # restarts draw from here; the streams of one image (0, 1, ...) stay below


def restart_keys(keys: Key[jax.Array, " N"], run: int) -> Key[jax.Array, " N"]:
    """Derive the keys of another run of the same images; run 0 keeps their own."""
    return keys if run == 0 else jax.vmap(jax.random.fold_in, (0, None))(keys, RUN_KEYS + run)


@runtime_checkable
class Noise(Protocol):
    """The normal draws of one step."""

    def draw(self, i: int | Int[jax.Array, ""], shape: tuple[int, ...]) -> jax.Array:
        """Return the i-th draw of this step, N(0, I)."""
        ...


@pytree_dataclass
class KeyNoise:
    """Draws made from a key; draw i depends on the key and on i alone, and is drawn in float32 whatever its type.

    Args:
        key: a typed key.
        dtype: type of what is drawn.
    """

    key: PRNGKey
    dtype: Any = static_field(default="float32")

    def draw(self, i: int | Int[jax.Array, ""], shape: tuple[int, ...]) -> jax.Array:
        """Return the i-th draw of this step, N(0, I)."""
        # The same numbers as drawn in that shape, but with counters along one axis a CPU makes them twice as fast.
        flat = jax.random.normal(jax.random.fold_in(self.key, i), (math.prod(shape),), jnp.float32)
        return flat.reshape(shape).astype(self.dtype)


@pytree_dataclass
class TapeNoise:
    """Draws read from a recording: entry i of `tape` is draw i.

    Args:
        tape: the rows of an array where all draws have one shape, a tuple of arrays where they differ.
    """

    tape: Float[jax.Array, "draws ..."] | tuple[jax.Array, ...]

    def draw(self, i: int | Int[jax.Array, ""], shape: tuple[int, ...]) -> jax.Array:
        """Return entry i of the tape; a traced i is not checked, so ask for the last draw with a number.

        Raises:
            ValueError: the tape has no such draw, or it has another shape.
        """
        if isinstance(self.tape, tuple):
            shapes = [draw.shape for draw in self.tape]
            if not isinstance(i, int) or i >= len(shapes) or shapes[i] != shape:
                raise ValueError(
                    f"this step wants draw {i} of shape {shape}, the tape holds draws of the shapes {shapes}: give a "
                    f"tuple of arrays [steps, *shape], one for every draw"
                )
            return self.tape[i]
        if (isinstance(i, int) and i >= self.tape.shape[0]) or self.tape.shape[1:] != shape:
            raise ValueError(
                f"this step wants draw {i} of shape {shape}, the tape holds {self.tape.shape[0]} draws of shape "
                f"{self.tape.shape[1:]}; give noise of shape [steps, draws, *{shape}], or a tuple of arrays "
                "[steps, *shape], one for every draw, where their shapes differ"
            )
        return self.tape[i]


def draw_like(noise: Noise, i: int, y: jax.Array) -> jax.Array:
    """Return the i-th draw of a step in the shape and type of a measurement.

    Of a complex one the real and the imaginary part are N(0, 1) each, from a draw with a last axis of both.
    """
    if not jnp.iscomplexobj(y):
        return noise.draw(i, y.shape)
    parts = noise.draw(i, (*y.shape, 2))
    return jax.lax.complex(parts[..., 0], parts[..., 1]).astype(y.dtype)
