"""What the networks that denoise have in common, whatever lies inside of them."""

from typing import TYPE_CHECKING

import flax.linen as nn
import jax
import jax.numpy as jnp

from ddiff_jax.architecture import abstract_params
from ddiff_jax.types import Params


class Network(nn.Module):
    """Base of networks of several levels, each half the size of the one before.

    They map images x [N, H, W, C], what they are told of the noise t [N], and, if they have classes, labels y [N] to
    [N, H, W, D] in float32; their blocks compute in `dtype`.
    """

    if TYPE_CHECKING:  # fields of all of them
        in_channels: int
        num_res_blocks: int
        num_classes: int | None
        dtype: str

    @property
    def num_levels(self) -> int:
        """Count the levels."""
        raise NotImplementedError

    @property
    def num_blocks(self) -> int:
        """Count the residual blocks, resampling ones included."""
        return self.num_levels * (2 * self.num_res_blocks + 3)

    @property
    def size_multiple(self) -> int:
        """What divides the height and the width of every image that the network takes."""
        return 2 ** (self.num_levels - 1)

    def example_inputs(self) -> tuple[jax.ShapeDtypeStruct, ...]:
        """Describe the smallest inputs that the network takes."""
        side = self.size_multiple
        inputs = (
            jax.ShapeDtypeStruct((1, side, side, self.in_channels), jnp.float32),
            jax.ShapeDtypeStruct((1,), jnp.float32),
        )
        return inputs if self.num_classes is None else (*inputs, jax.ShapeDtypeStruct((1,), jnp.int32))

    def cast(self, params: Params) -> Params:
        """Store weights in the types in which the computation takes them.

        The results stay the same, but bfloat16 takes half the memory, and no step has to convert the weights again.
        """
        stored = abstract_params(self.clone(param_dtype=self.dtype))
        return jax.tree.map(lambda leaf, like: leaf.astype(like.dtype), params, stored)

    def check(self, shape: tuple[int, ...], labelled: bool) -> None:
        """Refuse inputs that the network does not take, and fields that do not go together.

        Args:
            shape: of the images, [N, H, W, C].
            labelled: whether they come with labels.

        Raises:
            ValueError: a side is no multiple, or channels or labels differ; or fields contradict each other.
        """
        multiple = self.size_multiple
        if shape[1] % multiple or shape[2] % multiple or shape[3] != self.in_channels:
            raise ValueError(
                f"this network takes images whose height and width are multiples of {multiple}, with "
                f"{self.in_channels} channels; got {shape[1]}x{shape[2]}x{shape[3]}"
            )
        if labelled != (self.num_classes is not None):
            wanted = "labels y" if self.num_classes is not None else "no labels"
            raise ValueError(f"this network takes {wanted} (num_classes = {self.num_classes})")
