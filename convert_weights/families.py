"""What a source of weights is: one file that knows the names, the shapes and the habits of one family of networks."""

from collections.abc import Collection, Mapping
from typing import Any, Protocol

from convert_weights.mapping import Shape


class Family(Protocol):
    """A module of this package with these names; it may have `skips` and `examine` besides.

    `skips(key)` tells of tensors that are known and not needed; `examine(tensors)` raises a ValueError where numbers
    contradict what shapes say. Of shapes, about and flags functions are given those that they name; `about` has the
    prefix of the network's names as "prefix".
    """

    @property
    def NAME(self) -> str:
        """Where such networks come from, for messages and cards."""
        ...

    @property
    def KIND(self) -> str:
        """Key of `ddiff_jax.checkpoint.MODULES`: the network that they become."""
        ...

    @property
    def ANCHORS(self) -> Collection[str]:
        """Names that find the network in a file, whatever stands before them."""
        ...

    @property
    def FLAGS(self) -> Collection[str]:
        """Settings of `convert_weights.convert` that say something of such a network."""
        ...

    def recognises(self, shapes: Mapping[str, Shape], /) -> bool:
        """Tell whether these keys are those of such a network."""
        ...

    @property
    def infer(self) -> Any:
        """Infer the module's fields from (shapes, about=settings that lie beside the weights, **flags)."""
        ...

    @property
    def targets(self) -> Any:
        """Name the parameter of the module that every tensor belongs to, from (fields, shapes, about=..., **flags)."""
        ...

    @property
    def card_fields(self) -> Any:
        """Fill in a card from (fields, shapes, table of noise levels in the file or None, about=..., **flags)."""
        ...
