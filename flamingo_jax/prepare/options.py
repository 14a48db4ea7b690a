"""Fields of dataclasses as flags of commands."""

import argparse
import dataclasses
import typing
from typing import Any, TypeVar

T = TypeVar("T")
REQUIRED: Any = dataclasses.MISSING


def option(default: Any, text: str) -> Any:
    """Returns a field with the help text of its flag."""
    return dataclasses.field(default=default, metadata={"help": text})


def add_flags(parser: argparse.ArgumentParser, cls: type) -> None:
    """Adds a flag for every field; a tuple's may be given several times."""
    hints = typing.get_type_hints(cls)
    for field in dataclasses.fields(cls):
        kind, default = hints[field.name], field.default
        settings: dict[str, Any] = {"help": field.metadata["help"], "dest": field.name}
        if default is dataclasses.MISSING:
            settings["required"] = True
        else:
            settings["default"] = default
            shown = "none" if default == () else default
            settings["help"] += "" if default == "" else f" (default: {shown})"
        if kind is bool:
            settings["action"] = argparse.BooleanOptionalAction
            settings["help"] = field.metadata["help"]
        elif typing.get_origin(kind) is tuple:
            settings |= {"action": "append", "default": None}
        else:
            settings["type"] = kind
        parser.add_argument(f"--{field.name.replace('_', '-')}", **settings)


def build(cls: type[T], args: argparse.Namespace) -> T:
    """Returns the dataclass that the flags describe."""
    values = {f.name: getattr(args, f.name) for f in dataclasses.fields(cls)}  # type: ignore[arg-type]
    hints = typing.get_type_hints(cls)
    tuples = {n: tuple(v or ()) for n, v in values.items() if typing.get_origin(hints[n]) is tuple}
    return cls(**values | tuples)
