"""Parsing: one-line errors with the nearest flag, and flags made from solver fields and operator arguments."""

import contextlib
import dataclasses
import inspect
import io
import itertools
import os
import re
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Annotated, Any, TypeVar, get_args

import tyro
from docstring_parser.google import parse as parse_docstring

from ddiff_jax.names import UnknownName, guess
from ddiff_jax.restoration.spelling import spelled

T = TypeVar("T")
LEAST_COLUMNS = 60


def peek(argv: Sequence[str], defaults: Mapping[str, Any]) -> dict[str, Any]:
    """Read the values of a few flags before the parser exists, because other flags depend on them.

    Args:
        argv: the arguments.
        defaults: names of the flags, and their values where they are not given.
    """
    found, flags = dict(defaults), {f"--{name}": name for name in defaults}
    for argument, following in itertools.zip_longest(argv, argv[1:]):
        flag, equals, value = argument.partition("=")
        if flag in flags and (equals or following is not None):
            found[flags[flag]] = value if equals else following
    return found


def parse(
    cls: type[T],
    argv: Sequence[str],
    *,
    prog: str,
    description: str = "",
    elsewhere: Callable[[], Mapping[str, str]] = dict,
) -> T:
    """Fill a dataclass (nested ones are sections of flags) from the command line.

    Args:
        cls: the dataclass.
        argv: the arguments.
        prog: program and command, for messages.
        description: head of the help text.
        elsewhere: gives flags that exist under other circumstances, and what makes them exist.

    Raises:
        ValueError: the arguments do not fit.
        SystemExit: code 0 after the help text.
    """
    boxes = io.StringIO()
    try:
        with contextlib.redirect_stderr(boxes), _wide_enough():
            options, unknown = tyro.cli(
                cls,
                args=argv,
                prog=prog,
                description=description,
                return_unknown_args=True,
                config=(tyro.conf.OmitArgPrefixes,),
            )
    except SystemExit as stop:
        if not stop.code:
            raise
        raise ValueError(f"{_first_paragraph(boxes.getvalue())}; see {prog} --help") from None
    if unknown:
        flag = next((a for a in unknown if a.startswith("-")), unknown[0]).partition("=")[0]
        where = elsewhere().get(flag)
        hint = f"it belongs to {where}; " if where else guess(flag, _flag_names(cls))
        raise UnknownName(f"unknown flag {flag}; {hint}{prog} --help lists all")
    return options


@contextlib.contextmanager
def _wide_enough() -> Iterator[None]:
    """Let help be laid out for a terminal that can hold it; in one of a few columns tyro never ends."""
    earlier, columns = os.environ.get("COLUMNS"), shutil.get_terminal_size().columns
    if columns < LEAST_COLUMNS:
        os.environ["COLUMNS"] = str(LEAST_COLUMNS)
    try:
        yield
    finally:
        if earlier is not None:
            os.environ["COLUMNS"] = earlier
        elif columns < LEAST_COLUMNS:
            del os.environ["COLUMNS"]


def _first_paragraph(box: str) -> str:
    """Take the message out of the box that tyro draws around it, in Unicode or ASCII."""
    paragraph = []
    for line in box.splitlines()[1:]:  # the first line is the box's title
        text = re.sub(r"\x1b\[[0-9;]*m", "", line).strip("│| ")
        if paragraph and (not text.strip("─-╰+") or text == "Got errors:"):
            break
        paragraph.append(text)
    return " ".join(paragraph).strip(" .") or "the arguments cannot be parsed"


def _flag_names(cls: Any) -> list[str]:
    names = ["--help"]
    for field in dataclasses.fields(cls):
        if dataclasses.is_dataclass(field.type):
            names += _flag_names(field.type)
        else:
            is_switch = bool in (field.type, getattr(field.type, "__origin__", None))
            names += [spelled(field.name), spelled(f"no_{field.name}")] if is_switch else [spelled(field.name)]
    return names


def argument_help(documented: Any) -> dict[str, str]:
    """Read the descriptions below "Args:" in a Google docstring, their first sentences."""
    found = parse_docstring(inspect.getdoc(documented) or "").params
    texts = {entry.arg_name: " ".join((entry.description or "").split()) for entry in found}
    return {name: re.split(r"(?<=\.) (?=[A-Z])", text)[0].rstrip(".") for name, text in texts.items()}


@dataclasses.dataclass(frozen=True)
class Flag:
    """One generated flag; `default` None means that it must be given by somebody."""

    name: str
    kind: Any
    default: Any
    help: str


def section(title: str, flags: Sequence[Flag], *, required: bool = False) -> type:
    """Make a dataclass whose fields are the flags; required ones have no default."""
    fields = []
    for flag in flags:
        kind = flag.kind if flag.default is not None else flag.kind | None
        optional = get_args(kind)[0] if type(None) in get_args(kind) else None
        metavar = optional.__name__.upper() if isinstance(optional, type) else None
        settings = tyro.conf.arg(help=flag.help or None, metavar=metavar)
        default = dataclasses.field() if required else dataclasses.field(default=flag.default)
        fields.append((flag.name, Annotated[kind, settings], default))
    return dataclasses.make_dataclass(title, fields, frozen=True)
