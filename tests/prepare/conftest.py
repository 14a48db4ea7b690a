import json
from pathlib import Path

import pytest

from flamingo_jax.prepare.commands import main
from tests.clip_models import save_clip


def prepare(*arguments: str | Path | float) -> dict:
    """The survival counts of a command."""
    assert main(["prepare", *map(str, arguments)]) == 0
    out = arguments[arguments.index("--out") + 1]
    survival = json.loads(Path(str(out), "survival.json").read_text())
    assert survival["documents"] == survival["kept"] + sum(survival["dropped"].values())
    lost = sum(survival["images_dropped"].values())
    assert survival["images"] >= survival["images_kept"] + lost
    return survival


@pytest.fixture(scope="session")
def clip_directory(tmp_path_factory):
    pytest.importorskip("torch")
    folder = tmp_path_factory.mktemp("clip")
    save_clip(folder)
    return folder
