"""Nested mappings ↔ frozen dataclasses, with errors that name the key."""

import dataclasses
import difflib
import types
import typing
from collections.abc import Iterable, Mapping
from typing import Any, Literal, TypeVar

from flamingo_jax.errors import UserError

T = TypeVar("T")


def build(cls: type[T], values: Mapping[str, Any], path: str = "config") -> T:
    """A dataclass from nested mappings.

    Raises:
      UserError: an unknown key (naming the nearest right one), a missing key, a wrong type, or a
        value that the dataclass itself refuses.
    """
    hints = typing.get_type_hints(cls)
    fields = {f.name: f for f in dataclasses.fields(cls) if f.init}  # type: ignore[arg-type]
    for key in values:
        if key not in fields:
            raise UserError(unknown_key(f"{path}.{key}", fields))
    missing = [
        f"{path}.{name}"
        for name, f in fields.items()
        if name not in values
        and f.default is dataclasses.MISSING
        and f.default_factory is dataclasses.MISSING
    ]
    if missing:
        raise UserError(f"missing config {_plural('key', missing)}: {', '.join(missing)}")
    converted = {key: _convert(hints[key], value, f"{path}.{key}") for key, value in values.items()}
    try:
        return cls(**converted)
    except ValueError as error:
        raise UserError(f"{path}: {error}") from None


def dump(config: Any) -> Any:
    """Nested plain dicts, tuples and scalars, with every default written out."""
    if dataclasses.is_dataclass(config):
        return {f.name: dump(getattr(config, f.name)) for f in dataclasses.fields(config)}
    if isinstance(config, Mapping):
        return {key: dump(value) for key, value in config.items()}
    if isinstance(config, tuple):
        return tuple(dump(value) for value in config)
    return config


def unknown_key(path: str, known: Iterable[str]) -> str:
    """The message for a key that does not exist, with the nearest that does."""
    known = sorted(known)
    nearest = difflib.get_close_matches(path.rsplit(".", 1)[-1], known, n=1, cutoff=0.5)
    hint = f"did you mean {nearest[0]!r}?" if nearest else f"known here: {', '.join(known)}"
    return f"unknown config key {path!r}; {hint}"


def _convert(hint: Any, value: Any, path: str) -> Any:
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if dataclasses.is_dataclass(hint) and isinstance(value, Mapping):
        return build(hint, value, path)  # type: ignore[arg-type]
    if origin is dict and isinstance(value, Mapping):
        return {key: _convert(args[1], item, f"{path}.{key}") for key, item in value.items()}
    if origin is tuple and isinstance(value, (list, tuple)):
        return tuple(_convert(args[0], item, f"{path}[{i}]") for i, item in enumerate(value))
    if origin in (typing.Union, types.UnionType):
        if value is None and type(None) in args:
            return None
        return _convert(next(a for a in args if a is not type(None)), value, path)
    if origin is Literal:
        if value in args:
            return value
        raise UserError(f"{path} is {value!r}, expected one of: {', '.join(map(repr, args))}")
    if hint is Any:
        return value
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    is_bool = isinstance(value, bool) and hint is not bool  # which Python counts as an int
    if isinstance(hint, type) and isinstance(value, hint) and not is_bool:
        return value
    name = getattr(hint, "__name__", str(hint)) if origin is None else str(hint)
    raise UserError(f"{path} is {value!r} ({type(value).__name__}), expected {name}")


def _plural(word: str, items: list[str]) -> str:
    return word if len(items) == 1 else word + "s"
