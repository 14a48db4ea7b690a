"""What stands in a record's fields; BadRecordError where it is not what it should be."""

import base64
import binascii
import json
import os
from collections.abc import Mapping
from typing import Any

from flamingo_jax.data.records import BadRecordError, Record


def image_bytes(record: Record, name: Any) -> bytes:
    """Reads an image by what a record calls it: one of its fields, or a file beside the record."""
    if not isinstance(name, str):
        raise BadRecordError(f"image {name!r} is not named by a string")
    if name in record.fields:
        return record.fields[name]
    path = os.path.normpath(os.path.join(record.root, name))
    if not record.root or os.path.relpath(path, record.root).startswith(os.pardir):
        raise BadRecordError(f"image {name!r} is neither a part of the record nor a file beside it")
    try:
        with open(path, "rb") as file:
            return file.read()
    except OSError as error:
        raise BadRecordError(f"image {name!r}: {error.strerror}") from error


def json_object(record: Record) -> dict[str, Any]:
    """Returns the record's JSON. BadRecordError: there is none, or it is no object."""
    if "json" not in record.fields:
        raise BadRecordError(f"no json among {sorted(record.fields)}")
    try:
        value = json.loads(record.fields["json"])
    except ValueError as error:
        raise BadRecordError(f"bad JSON: {error}") from error
    if not isinstance(value, dict):
        raise BadRecordError(f"bad JSON: expected an object, found {type(value).__name__}")
    return value


def field(record: Mapping[str, Any], name: str, kind: type) -> Any:
    value = record.get(name) if isinstance(record, Mapping) else None
    if not isinstance(value, kind):
        raise BadRecordError(f"{name} is {type(value).__name__}, expected {kind.__name__}")
    return value


def feature(fields: Mapping[str, Any], path: str) -> Any:
    """Returns a feature by its path, as in "captions/text". BadRecordError: there is none."""
    if path in fields:
        return fields[path]
    head, _, rest = path.partition("/")
    if rest and isinstance(fields.get(head), Mapping):
        return feature(fields[head], rest)
    raise BadRecordError(f"no feature {path!r} among: {', '.join(fields)}")


def check_text(text: Any) -> None:
    """Raises BadRecordError for what is no string, or one that cannot be encoded, nor tokenized."""
    if not isinstance(text, str):
        raise BadRecordError(f"a text is {type(text).__name__}, expected str")
    try:
        text.encode()
    except UnicodeEncodeError as error:  # JSON of the web has halves of characters: "\ud83d"
        raise BadRecordError(f"a text is not Unicode: {error}") from None


def decoded(text: bytes | str) -> str:
    try:
        return text.decode() if isinstance(text, bytes) else text
    except UnicodeDecodeError as error:
        raise BadRecordError(f"text is not UTF-8: {error}") from error


def base64_size(text: str) -> int:
    """Bytes that base64 stands for."""
    return len(text) * 3 // 4 - text[-2:].count("=")


def from_base64(text: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError, TypeError) as error:
        raise BadRecordError(f"image is not base64: {error}") from error
