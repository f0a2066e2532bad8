"""Read pickles as records of what they say: no name in them is looked up, no object made, nothing called.

A pickle is a program for a small stack machine, two of whose instructions name a Python object and call it. This
machine writes down the name and the call instead. Whoever reads the records decides which of them stand for tensors.
"""

import dataclasses
import pickle
import pickletools
from collections.abc import Callable
from typing import Any, BinaryIO, NamedTuple

from ddiff_jax.files import quote
from ddiff_jax.limits import LONGEST_NAME, MOST_INSTRUCTIONS

Scalar = str | bytes | int | float | None
LONGEST_NUMBER = 512  # bits of an integer that is hashed, or shown


@dataclasses.dataclass(eq=False, slots=True)
class Name:
    """A Python object that the pickle refers to by name."""

    module: str
    name: str

    def __str__(self) -> str:
        return f"{self.module}.{self.name}"


@dataclasses.dataclass(eq=False, slots=True)
class Call:
    """What a call would have made, and what the pickle would have done to it.

    Args:
        function: what would have been called: a `Name`, or any other value of the pickle.
        args: with what.
        state: what it would have been given as state, None if nothing.
        items: entries that would have been set on it.
    """

    function: Any
    args: tuple
    state: Any = None
    items: dict[Any, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(eq=False, slots=True)
class Reference:
    """Something kept outside of the pickle."""

    pid: Any


class Pickle(NamedTuple):
    """One pickle: what it says, and all that it refers to outside of itself."""

    tree: Any
    references: list[Reference]


class _Key:
    """Stands for a key that is no plain value: hashing nested tuples takes as long as their file pleases."""


class _Machine:
    """The stack, the marks and the memo; one method per instruction."""

    def __init__(self):
        self.stack: list[Any] = []
        self.marks: list[list[Any]] = []
        self.memo: dict[int, Any] = {}
        self.references: list[Reference] = []

    def push(self, value: Any) -> None:
        self.stack.append(value)

    def pop_mark(self) -> list[Any]:
        items, self.stack = self.stack, self.marks.pop()
        return items

    def mark(self) -> None:
        self.marks.append(self.stack)
        self.stack = []

    def pop(self) -> None:
        if self.stack:
            self.stack.pop()
        else:
            self.pop_mark()

    def tuple(self, count: int) -> None:
        if len(self.stack) < count:
            raise pickle.UnpicklingError("a tuple of more than there is")
        self.stack[-count:] = [tuple(self.stack[-count:])]

    def extend(self, items: list[Any]) -> None:
        target = self.stack[-1]
        if isinstance(target, list):
            target.extend(items)
        elif not isinstance(target, Call):  # what is appended to an unknown object is of no use
            raise pickle.UnpicklingError("an element of something that is no list")

    def set(self, pairs: list[Any]) -> None:
        target = self.stack[-1]
        items = target.items if isinstance(target, Call) else target
        if not isinstance(items, dict):
            raise pickle.UnpicklingError("an entry of something that is no dictionary")
        items.update(_pairs(pairs))

    def call(self, function: Any, args: Any) -> None:
        if not isinstance(args, tuple):
            raise pickle.UnpicklingError("a call without a tuple of arguments")
        self.push(Call(function, args))

    def reduce(self) -> None:
        args, function = self.stack.pop(), self.stack.pop()
        self.call(function, args)

    def new_with_keywords(self) -> None:
        _, args, function = self.stack.pop(), self.stack.pop(), self.stack.pop()
        self.call(function, args)  # a copy that holds the keywords too would take memory every time

    def obj(self) -> None:
        function, *args = self.pop_mark()
        self.call(function, tuple(args))

    def inst(self, name: str) -> None:
        self.call(_name(name), tuple(self.pop_mark()))

    def build(self) -> None:
        state, target = self.stack.pop(), self.stack[-1]
        if not isinstance(target, Call):
            raise pickle.UnpicklingError(
                f"it wants to change {target if isinstance(target, Name) else 'a plain value'}"
            )
        target.state = state

    def get(self, index: Any) -> None:
        self.push(self.memo[int(index)])

    def put(self, index: Any) -> None:
        self.memo[int(index)] = self.stack[-1]

    def refer(self, pid: Any) -> None:
        self.references.append(Reference(pid))
        self.push(self.references[-1])

    def stack_global(self) -> None:
        name, module = self.stack.pop(), self.stack.pop()
        if not (isinstance(name, str) and isinstance(module, str)):
            raise pickle.UnpicklingError("a name that is no text")
        self.push(_checked(module, name))


def _pairs(items: list[Any]) -> dict[Any, Any]:
    if len(items) % 2:
        raise pickle.UnpicklingError("a key without its value")
    keys = (key if is_plain(key) else _Key() for key in items[::2])
    return dict(zip(keys, items[1::2], strict=True))


def is_plain(key: Any) -> bool:
    """Tell whether a key is hashed quickly, however often."""
    return isinstance(key, Scalar) and not (isinstance(key, int) and key.bit_length() > LONGEST_NUMBER)


def _name(text: str) -> Name:
    module, _, name = text.partition(" ")
    return _checked(module, name)


def _checked(module: str, name: str) -> Name:
    if len(module) + len(name) > LONGEST_NAME:
        raise pickle.UnpicklingError("a name longer than any")
    return Name(module, name)


# One action per instruction of `pickletools.opcodes`. Not among them are the registered extensions and the buffers
# outside of the file, which no file of weights uses.
_PUSHING = (
    "INT BININT BININT1 BININT2 LONG LONG1 LONG4 STRING BINSTRING SHORT_BINSTRING BINBYTES SHORT_BINBYTES BINBYTES8 "
    "UNICODE SHORT_BINUNICODE BINUNICODE BINUNICODE8 FLOAT BINFLOAT"
).split()
_ACTIONS: dict[str, Callable[[_Machine, Any], object]] = {
    **dict.fromkeys(_PUSHING, lambda m, arg: m.push(arg)),
    **dict.fromkeys(("PROTO", "FRAME", "STOP"), lambda m, arg: None),
    "BYTEARRAY8": lambda m, arg: m.push(bytes(arg)),
    "NONE": lambda m, _: m.push(None),
    "NEWTRUE": lambda m, _: m.push(True),
    "NEWFALSE": lambda m, _: m.push(False),
    "MARK": lambda m, _: m.mark(),
    "POP": lambda m, _: m.pop(),
    "POP_MARK": lambda m, _: m.pop_mark(),
    "DUP": lambda m, _: m.push(m.stack[-1]),
    # Sets are lists here: their elements need no hash, and nobody asks for one.
    **dict.fromkeys(("EMPTY_LIST", "EMPTY_SET"), lambda m, _: m.push([])),
    **dict.fromkeys(("LIST", "FROZENSET"), lambda m, _: m.push(m.pop_mark())),
    "APPEND": lambda m, _: m.extend([m.stack.pop()]),
    **dict.fromkeys(("APPENDS", "ADDITEMS"), lambda m, _: m.extend(m.pop_mark())),
    "EMPTY_TUPLE": lambda m, _: m.push(()),
    "TUPLE": lambda m, _: m.push(tuple(m.pop_mark())),
    "TUPLE1": lambda m, _: m.tuple(1),
    "TUPLE2": lambda m, _: m.tuple(2),
    "TUPLE3": lambda m, _: m.tuple(3),
    "EMPTY_DICT": lambda m, _: m.push({}),
    "DICT": lambda m, _: m.push(_pairs(m.pop_mark())),
    "SETITEM": lambda m, _: m.set([m.stack.pop(), m.stack.pop()][::-1]),
    "SETITEMS": lambda m, _: m.set(m.pop_mark()),
    **dict.fromkeys(("GET", "BINGET", "LONG_BINGET"), lambda m, arg: m.get(arg)),
    **dict.fromkeys(("PUT", "BINPUT", "LONG_BINPUT"), lambda m, arg: m.put(arg)),
    "MEMOIZE": lambda m, _: m.put(len(m.memo)),
    "GLOBAL": lambda m, arg: m.push(_name(arg)),
    "STACK_GLOBAL": lambda m, _: m.stack_global(),
    **dict.fromkeys(("REDUCE", "NEWOBJ"), lambda m, _: m.reduce()),
    "NEWOBJ_EX": lambda m, _: m.new_with_keywords(),
    "OBJ": lambda m, _: m.obj(),
    "INST": lambda m, arg: m.inst(arg),
    "BUILD": lambda m, _: m.build(),
    "PERSID": lambda m, arg: m.refer(arg),
    "BINPERSID": lambda m, _: m.refer(m.stack.pop()),
}


def load(file: BinaryIO, most: int = MOST_INSTRUCTIONS) -> Pickle:
    """Read one pickle, and leave the file at the byte behind it.

    Args:
        file: at the pickle's first byte.
        most: instructions that it may have.

    Returns:
        Plain values in lists, tuples and dicts; `Name`, `Call` and `Reference` for everything else.

    Raises:
        pickle.UnpicklingError: the pickle is damaged, too long, or does what pickles of weights never do.
    """
    machine = _Machine()
    try:
        for count, (opcode, argument, _) in enumerate(pickletools.genops(file)):
            if count == most:
                raise pickle.UnpicklingError(f"more than {count} instructions, which is more than any weights need")
            if opcode.name not in _ACTIONS:
                raise pickle.UnpicklingError(f"unknown instruction {opcode.name}")
            _ACTIONS[opcode.name](machine, argument)
        (tree,) = machine.stack
    except (IndexError, KeyError, ValueError, TypeError, OverflowError, MemoryError) as error:
        raise pickle.UnpicklingError(f"it is damaged ({quote(error)})") from error
    return Pickle(tree, machine.references)
