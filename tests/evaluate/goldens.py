"""Cases made by the original metrics."""

import json

from tests import golden_root


def load(name: str) -> dict:
    """All cases where they are at hand, else the committed part."""
    return json.loads(golden_root.find(f"eval/{name}").read_text("utf-8"))
