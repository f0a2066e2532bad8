"""What a source of weights is: one file that knows the names, the shapes and the habits of one family of networks."""

from collections.abc import Collection, Mapping
from typing import Any, Protocol

from convert_weights.mapping import Shape


class Family(Protocol):
    """A module of this package with these names; it may have three more.

    `skips(key)` tells of tensors that are known and not needed; `examine(tensors)` raises a ValueError where numbers
    contradict what shapes say; `alternatives(fields, shapes, table, given, everything=...)` lists for `probe` what else
    could be meant where shapes do not tell. Of shapes, about and flags functions are given those that they name;
    `about` has the prefix of the network's names as "prefix", and the name of the file as "file".
    """

    @property
    def NAME(self) -> str:
        """Where such networks come from, for messages and cards."""
        ...

    @property
    def KIND(self) -> str:
        """Key of `ddiff_jax.architecture.MODULES`: the network that they become."""
        ...

    @property
    def FILES(self) -> str:
        """What people hold of it, for the table in README.md."""
        ...

    @property
    def LEFT_OPEN(self) -> str:
        """What neither names nor shapes tell, and what does; for the same table."""
        ...

    @property
    def ANCHORS(self) -> Collection[str]:
        """Names that find the network in a file, whatever stands before them."""
        ...

    @property
    def WORDS(self) -> Collection[str]:
        """Parts of names that occur in all such networks, to find the nearest family of a file that is of none."""
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


def unknown(families: Collection[Family], names: Collection[str]) -> str:
    """Say that no family knows these names, which one is nearest, and what differs."""
    words = {word for name in names for word in name.split(".")}
    nearest = max(families, key=lambda family: len(words & {*family.WORDS}) / len(family.WORDS))
    found = words & {*nearest.WORDS}
    if not found:
        listed = f"known: {', '.join(family.NAME for family in families)}"
        return f"no known network has these tensors ({listed}); the file begins with {', '.join([*names][:3])}"
    lacks = sorted({*nearest.WORDS} - found)
    other = [name for name in names if not {*name.split(".")} & {*nearest.WORDS}]
    return (
        f"no known network has these tensors; the nearest is {nearest.NAME}, whose names have "
        f"{', '.join(sorted(found))}, too, but {', '.join(lacks[:5]) or 'nothing'} is missing"
        f"{' and it has ' * bool(other)}{', '.join(other[:3])}{' besides' * bool(other)}"
    )


def table(families: Collection[Family]) -> list[str]:
    """Write what converts as the lines of a table."""
    rows = [f"| {family.NAME} | {family.FILES} | {family.LEFT_OPEN} |" for family in families]
    return ["| family | files | what shapes leave open |", "|---|---|---|", *rows]
