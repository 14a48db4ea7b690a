"""Nested mappings ↔ frozen dataclasses, with errors that name the key.

A field that may be one of several dataclasses, `Perceiver | QFormer`, is a choice: each of them has
a field `kind: Literal["its name"]`, and the mapping's `kind` says which one is meant.
"""

import dataclasses
import difflib
import types
import typing
from collections.abc import Iterable, Mapping
from typing import Any, Literal, TypeVar

from flamingo_jax.errors import UserError

T = TypeVar("T")
UNIONS = (typing.Union, types.UnionType)


def build(cls: type[T], values: Mapping[str, Any], path: str = "config") -> T:
    """Makes a dataclass from nested mappings.

    Raises:
      UserError: an unknown key (naming the nearest right one), a missing key, a wrong type, an
        unknown kind, or a value that the dataclass itself refuses.
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
    converted = {
        key: _convert(hints[key], value, f"{path}.{key}", _default_of(fields[key]))
        for key, value in values.items()
    }
    try:
        return cls(**converted)
    except ValueError as error:
        raise UserError(f"{path}: {error}") from None


def dump(config: Any) -> Any:
    """Returns nested plain dicts, tuples and scalars, with every default and kind written out."""
    if dataclasses.is_dataclass(config):
        return {f.name: dump(getattr(config, f.name)) for f in dataclasses.fields(config)}
    if isinstance(config, Mapping):
        return {key: dump(value) for key, value in config.items()}
    if isinstance(config, tuple):
        return tuple(dump(value) for value in config)
    return config


def unknown_key(path: str, known: Iterable[str]) -> str:
    """Returns the message for a key that does not exist, with the nearest that does."""
    known = sorted(known)
    hint = did_you_mean(path.rsplit(".", 1)[-1], known) or f"known here: {', '.join(known)}"
    return f"unknown config key {path!r}; {hint}"


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Returns a question that names the nearest known word; "" where none is near."""
    nearest = difflib.get_close_matches(word, known, n=1, cutoff=0.5)
    return f"did you mean {nearest[0]!r}?" if nearest else ""


def kinds_at(hint: Any, keys: Iterable[str]) -> dict[str, type]:
    """Returns the dataclasses among which `kind` chooses at a path of keys: none, where nothing is
    chosen."""
    members = _members(hint)
    for key in keys:
        below = []
        for member in members:
            if dataclasses.is_dataclass(member):
                below += _members(typing.get_type_hints(member).get(key))
            elif typing.get_origin(member) is dict:
                below += _members(typing.get_args(member)[1])
        members = below
    return _by_kind(members)


def _convert(hint: Any, value: Any, path: str, default: Any = None) -> Any:
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if dataclasses.is_dataclass(hint) and isinstance(value, Mapping):
        return build(hint, value, path)  # type: ignore[arg-type]
    if origin is dict and isinstance(value, Mapping):
        return {key: _convert(args[1], item, f"{path}.{key}") for key, item in value.items()}
    if origin is tuple and isinstance(value, (list, tuple)):
        return tuple(_convert(args[0], item, f"{path}[{i}]") for i, item in enumerate(value))
    if origin in UNIONS:
        return _convert_union(_members(hint), value, path, default)
    if origin is Literal:
        if value in args:
            return value
        raise UserError(_not_among(path, value, args))
    if hint is Any or (hint is type(None) and value is None):
        return value
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    is_bool = isinstance(value, bool) and hint is not bool  # which Python counts as an int
    if isinstance(hint, type) and isinstance(value, hint) and not is_bool:
        return value
    raise UserError(f"{path} is {value!r} ({type(value).__name__}), expected {_name(hint)}")


def _convert_union(members: list[Any], value: Any, path: str, default: Any) -> Any:
    kinds = _by_kind(members)
    if kinds and isinstance(value, Mapping):
        kind = value.get("kind", getattr(default, "kind", next(iter(kinds))))
        if kind not in kinds:
            hint = did_you_mean(str(kind), kinds)
            raise UserError(_not_among(f"{path}.kind", kind, kinds) + (f"; {hint}" if hint else ""))
        return build(kinds[kind], {"kind": kind, **value}, path)
    wanted = [member for member in members if member is not type(None)]
    for member in members:
        try:
            return _convert(member, value, path)
        except UserError:
            if [member] == wanted:  # nothing else was possible, and this error says most
                raise
    expected = " or ".join(map(_name, wanted))
    raise UserError(f"{path} is {value!r} ({type(value).__name__}), expected {expected}")


def _members(hint: Any) -> list[Any]:
    """Returns the types that a value may have, None first."""
    if typing.get_origin(hint) not in UNIONS:
        return [hint]
    return sorted(typing.get_args(hint), key=lambda member: member is not type(None))


def _by_kind(members: Iterable[Any]) -> dict[str, type]:
    kinds: dict[str, type] = {}
    for member in members:
        if isinstance(member, type) and dataclasses.is_dataclass(member):
            names = typing.get_args(typing.get_type_hints(member).get("kind"))
            if len(names) == 1:
                kinds[names[0]] = member
    return kinds


def _default_of(field: dataclasses.Field) -> Any:
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    return field.default


def _not_among(path: str, value: Any, known: Iterable[Any]) -> str:
    return f"{path} is {value!r}, expected one of: {', '.join(map(repr, known))}"


def _name(hint: Any) -> str:
    plain = typing.get_origin(hint) is None
    return getattr(hint, "__name__", str(hint)) if plain else str(hint)


def _plural(word: str, items: list[str]) -> str:
    return word if len(items) == 1 else word + "s"
