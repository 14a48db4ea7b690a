"""Errors that are the user's to mend."""

import importlib
from typing import Any


class UserError(Exception):
    """A mistake in what the user gave. Its text says what was given, what was expected and what to
    do; the commands print it as one line, without a traceback, and exit with status 2."""


class Stopped(BaseException):
    """No error: work was left for a later start, because the process was asked to stop."""


def need_package(name: str, extra: str) -> Any:
    """Imports an optional package. UserError: it is not there; names the extra that brings it."""
    try:
        return importlib.import_module(name)
    except ImportError:
        raise UserError(
            f"this needs {name}, which is not installed: pip install 'flamingo-jax[{extra}]'"
        ) from None
