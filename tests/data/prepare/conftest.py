import json
from pathlib import Path

import pytest

from flamingo_jax.data.prepare.commands import main
from tests.clip_models import save_clip


def prepare(*arguments: str | Path | float) -> dict:
    """The survival counts of a command."""
    assert main(["prepare", *map(str, arguments)]) == 0
    out = arguments[arguments.index("--out") + 1]
    return json.loads(Path(str(out), "survival.json").read_text())


@pytest.fixture(scope="session")
def clip_directory(tmp_path_factory):
    pytest.importorskip("torch")
    folder = tmp_path_factory.mktemp("clip")
    save_clip(folder)
    return folder
