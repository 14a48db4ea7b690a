"""Where the cases lie that the originals made: inputs, weights, and what came out.

FLAMINGO_GOLDEN names the folder; by default it is `shared/golden` beside the repository. A part is
committed in `tests/golden`, laid out alike, so that a fresh clone proves parity.
"""

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

COMMITTED = Path(__file__).parent / "golden"
ROOT = Path(
    os.environ.get("FLAMINGO_GOLDEN") or Path(__file__).parents[2] / "shared/golden"
).absolute()


def find(path: str) -> Path:
    """Returns a file or folder of the cases, or the committed part of it."""
    return ROOT / path if (ROOT / path).exists() else COMMITTED / path


def needs(path: str) -> pytest.MarkDecorator:
    """Marks tests to be skipped where the cases lack this."""
    reason = f"{ROOT / path} is not at hand; FLAMINGO_GOLDEN names the folder of the cases"
    return pytest.mark.skipif(not (ROOT / path).exists(), reason=reason)


def each(values: Iterable[Any], path: str) -> list[Any]:
    """Returns parameters of a test, and one more that is skipped where the cases lack `path`."""
    found = (ROOT / path).exists()
    return [*values, *([] if found else [pytest.param(None, marks=needs(path), id="absent")])]
