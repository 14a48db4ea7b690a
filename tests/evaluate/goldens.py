"""Cases made by the original metrics; `tests/golden/eval` holds a part, for a fresh clone."""

import json
from pathlib import Path

COMMITTED = Path(__file__).parents[1] / "golden" / "eval"
SHARED = Path(__file__).parents[3] / "shared" / "golden" / "eval"


def load(name: str) -> dict:
    """All cases where they are at hand, else the committed part."""
    path = SHARED / name
    return json.loads((path if path.is_file() else COMMITTED / name).read_text("utf-8"))
