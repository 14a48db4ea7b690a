"""One run on every kind of mesh: the same losses, the same state, the same examples."""

import dataclasses
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest

from flamingo_jax.data.packing import Packing
from flamingo_jax.parallel.mesh import MeshConfig
from flamingo_jax.parallel.sharding import to_device
from flamingo_jax.schema import build
from flamingo_jax.train import feed
from flamingo_jax.train.checkpoint import Checkpointer
from flamingo_jax.train.config import TrainConfig
from flamingo_jax.train.loop import run
from flamingo_jax.train.metrics import read_metrics
from flamingo_jax.train.setup import set_up
from tests import wide

CONFIG = build(TrainConfig, wide.get_config().to_dict())
MESHES = {
    "1 device": MeshConfig(data=1),
    "4: fsdp": MeshConfig(data=1, fsdp=4),
    "8: data 2 × fsdp 4": MeshConfig(data=2, fsdp=4),
    "8: data 2 × fsdp 2 × tensor 2": MeshConfig(data=2, fsdp=2, tensor=2),
}
HYBRID = "8: data 2 × fsdp 4"


def config_and_devices(mesh: str, model: str = "") -> tuple[TrainConfig, list[jax.Device]]:
    config = dataclasses.replace(CONFIG, mesh=MESHES[mesh], init_from=model)
    return config, jax.devices()[: int(mesh[0])]


class Runs:
    """Runs by mesh, each done once: their directories, and the rows of every batch they used."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.model = wide.write_model(folder / "model", CONFIG.model)
        self.rows: dict[str, list[bytes]] = {}

    def run(self, mesh: str, name: str | None = None) -> Path:
        name = name or mesh
        workdir = self.folder / name
        if name not in self.rows:
            rows = self.rows[name] = []

            def note(batch, mesh):
                rows.extend(
                    batch["interleaved"]["tokens"][i].tobytes()
                    + batch["interleaved"]["images"][i].tobytes()
                    for i in range(len(batch["interleaved"]["tokens"]))
                )
                return to_device(batch, mesh)

            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(feed, "to_device", note)
                config, devices = config_and_devices(mesh, self.model)
                run(config, workdir, devices)
        return workdir


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    return Runs(tmp_path_factory.mktemp("meshes"))


def assert_same_losses(one: Path, other: Path, steps: range = range(1, 21)) -> None:
    pairs = list(zip(read_metrics(one), read_metrics(other), strict=True))
    assert [first["step"] for first, _ in pairs] == list(steps)
    for first, second in pairs:
        for name, value in first.items():
            np.testing.assert_allclose(second[name], value, rtol=2e-4, atol=1e-6, err_msg=name)


def test_the_wide_model_is_really_split():
    setup = set_up(*config_and_devices("8: data 2 × fsdp 2 × tensor 2"))
    specs = [s.sharding.spec for s in setup.state_shapes.params.values()]
    assert sum("fsdp" in str(spec) for spec in specs) >= 2
    assert sum("tensor" in str(spec) for spec in specs) >= 8


@pytest.mark.slow
@pytest.mark.parametrize("mesh", list(MESHES)[1:])
def test_every_mesh_gives_the_losses_of_one_device(runs, mesh):
    assert_same_losses(runs.run("1 device"), runs.run(mesh))


@pytest.mark.slow
def test_documents_that_share_places_train_alike_on_every_mesh(runs, tmp_path):
    stream = CONFIG.streams["interleaved"]
    packing = Packing(documents=4, text_length=4 * stream.text_length, images=14, parts=4)
    for mesh in ("1 device", HYBRID):
        config, devices = config_and_devices(mesh, runs.model)
        streams = {"interleaved": dataclasses.replace(stream, pack=packing)}
        config = dataclasses.replace(config, streams=streams, num_steps=3, accumulation_steps=1)
        run(config, tmp_path / mesh, devices)
    assert_same_losses(tmp_path / "1 device", tmp_path / HYBRID, range(1, 4))


def saved_state(workdir: Path, mesh: str) -> dict[str, bytes]:
    checkpointer = Checkpointer(workdir)
    state, facts = checkpointer.restore(set_up(*config_and_devices(mesh)).state_shapes)
    checkpointer.close()
    assert facts["step"] == 5
    leaves = jax.tree_util.tree_leaves_with_path(state)
    return {jax.tree_util.keystr(path): np.asarray(leaf).tobytes() for path, leaf in leaves}


@pytest.mark.slow
@pytest.mark.parametrize("mesh", ["4: fsdp", "1 device"])
def test_a_checkpoint_of_eight_devices_goes_on_with_fewer(runs, mesh):
    whole = runs.run(HYBRID)
    workdir = runs.folder / f"resumed on {mesh}"
    shutil.copytree(whole, workdir)
    for step in (10, 15, 20):
        shutil.rmtree(workdir / f"checkpoints/{step}")

    assert saved_state(workdir, mesh) == saved_state(workdir, HYBRID)
    runs.run(mesh, workdir.name)
    assert_same_losses(whole, workdir)
    used = runs.rows[HYBRID]
    assert len(set(used)) == len(used) == 20 * 8  # every row of the run is another
    assert runs.rows[workdir.name] == used[5 * 8 :]
