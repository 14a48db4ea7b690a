"""Checkpoints that are damaged, cannot be written, or belong to other weights."""

import gc
import json
import resource
import shutil
from contextlib import closing, contextmanager
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from flamingo_jax.errors import UserError
from flamingo_jax.parallel.mesh import MeshConfig, make_mesh
from flamingo_jax.parallel.sharding import tree_shardings
from flamingo_jax.train.checkpoint import Checkpointer, check_frozen, check_same_run
from flamingo_jax.train.fingerprint import differing, fingerprints
from flamingo_jax.train.step import TrainState, init_state

PATH = "resampler/layers/query/kernel"
# Orbax leaves what failed to the garbage collector, which complains.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


@pytest.fixture(autouse=True)
def collect_garbage_here():
    """And not in a later test, which does not expect it."""
    yield
    gc.collect()


def lies_on(mesh, tree):
    stacks = {PATH: NamedSharding(mesh, PartitionSpec(None, "fsdp"))}
    return tree_shardings(tree, stacks, mesh)


def make_state(step: int, mesh=None) -> TrainState:
    values = np.random.default_rng(step).normal(size=(4, 64, 512)).astype(np.float32)
    state = init_state({PATH: jnp.asarray(values)}, optax.adamw(1e-3))
    return jax.device_put(state, lies_on(mesh or make_mesh(MeshConfig(fsdp=8)), state))


def like(devices: int) -> TrainState:
    mesh = make_mesh(MeshConfig(fsdp=devices), jax.devices()[:devices])
    state = make_state(0)
    return jax.tree.map(
        lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s),
        state,
        lies_on(mesh, state),
    )


def save(workdir: Path, *steps: int, **options) -> None:
    with closing(Checkpointer(workdir, **{"keep": 2, **options})) as checkpointer:
        for step in steps:
            checkpointer.save(step, make_state(step), {"frozen": {}})


@pytest.fixture(scope="module")
def two_checkpoints(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("two")
    save(workdir, 1, 2)
    return workdir


def restore(workdir: Path, devices: int = 1):
    with closing(Checkpointer(workdir)) as checkpointer:
        return checkpointer.restore(like(devices))


@pytest.mark.parametrize("devices", [8, 4, 1])
def test_any_number_of_devices_restores_the_same_bits(two_checkpoints, devices):
    state, facts = restore(two_checkpoints, devices)
    assert facts["step"] == 2
    assert len(state.params[PATH].sharding.device_set) == devices
    jax.tree.map(np.testing.assert_array_equal, state, make_state(2))


def files(workdir: Path, step: int) -> list[Path]:
    found = sorted(p for p in (workdir / f"checkpoints/{step}").rglob("*") if p.is_file())
    return [p.relative_to(workdir) for p in found]


def damaged(path: Path, how: str) -> None:
    content = bytearray(path.read_bytes())
    if how == "missing":
        path.unlink()
        return
    if how == "cut":
        content = content[: len(content) // 2]
    else:
        content[len(content) // 2] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("how", ["missing", "cut", "one bit"])
def test_a_damaged_checkpoint_is_skipped_with_a_warning(two_checkpoints, tmp_path, how, capsys):
    """Whichever of its files it is: the state is either the newest, exactly, or the one before."""
    names = [n for n in files(two_checkpoints, 2) if (two_checkpoints / n).stat().st_size]
    largest = max(names, key=lambda n: (two_checkpoints / n).stat().st_size)
    skipped = set()
    for number, name in enumerate(names):
        workdir = tmp_path / str(number)
        shutil.copytree(two_checkpoints, workdir)
        damaged(workdir / name, how)
        state, facts = restore(workdir)
        np.testing.assert_array_equal(state.params[PATH], make_state(facts["step"]).params[PATH])
        if facts["step"] == 1:
            skipped.add(name)
            assert "checkpoints/2 is damaged and skipped" in capsys.readouterr().err
        shutil.rmtree(workdir)
    assert largest in skipped


def test_a_half_written_checkpoint_is_not_there(two_checkpoints, tmp_path):
    shutil.copytree(two_checkpoints, tmp_path / "run")
    folder = tmp_path / "run/checkpoints"
    (folder / "2").rename(folder / "2.orbax-checkpoint-tmp")  # as a killed save leaves it
    assert restore(tmp_path / "run")[1]["step"] == 1
    save(tmp_path / "run", 2)
    assert restore(tmp_path / "run")[1]["step"] == 2
    assert sorted(p.name for p in folder.iterdir()) == ["1", "2"]


def test_damaged_checkpoints_make_room_for_sound_ones(two_checkpoints, tmp_path):
    shutil.copytree(two_checkpoints, tmp_path / "run")
    shutil.rmtree(tmp_path / "run/checkpoints/2/state")
    with closing(Checkpointer(tmp_path / "run", keep=2)) as checkpointer:
        assert checkpointer.restore(like(1))[1]["step"] == 1
        checkpointer.quarantine_after(1)
        checkpointer.save(2, make_state(2), {"frozen": {}})
    assert restore(tmp_path / "run")[1]["step"] == 2
    assert (tmp_path / "run/damaged_checkpoints/2").is_dir()


def test_no_sound_checkpoint_is_an_error_and_none_at_all_is_not(two_checkpoints, tmp_path):
    assert restore(tmp_path / "nothing") is None
    shutil.copytree(two_checkpoints, tmp_path / "run")
    for step in (1, 2):
        shutil.rmtree(tmp_path / f"run/checkpoints/{step}/state")
    with pytest.raises(UserError, match=r"no checkpoint in .* can be read"):
        restore(tmp_path / "run")


def test_the_last_and_every_fourth_are_kept(tmp_path):
    save(tmp_path, *range(1, 8), keep=2, keep_every=4)
    assert sorted(p.name for p in (tmp_path / "checkpoints").iterdir()) == ["4", "6", "7"]


@contextmanager
def files_no_larger_than(size: int):
    """What a full disk does, without filling one: writing beyond this fails."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    cached_from = "jax_persistent_cache_min_compile_time_secs"
    before = getattr(jax.config, cached_from)
    jax.config.update(cached_from, 1e9)  # compiled programs are files, too
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        jax.config.update(cached_from, before)


def test_a_full_disk_is_a_clear_error_and_harms_no_earlier_checkpoint(tmp_path):
    save(tmp_path, 1)
    with (
        pytest.raises(UserError, match=r"of step 2 could not be saved .*too large.* is of step 1$"),
        files_no_larger_than(2**16),
        closing(Checkpointer(tmp_path, keep=1)) as checkpointer,
    ):
        checkpointer.save(2, make_state(2), {"frozen": {}})
    state, facts = restore(tmp_path)
    assert facts["step"] == 1
    jax.tree.map(np.testing.assert_array_equal, state, make_state(1))


def test_fingerprints_do_not_depend_on_the_mesh_and_see_every_bit():
    tree = {
        "a": np.arange(64 * 256, dtype=np.float32).reshape(64, 256),
        "b": np.ones((8, 16), jnp.bfloat16),
        "c": np.int32(3),
    }
    whole = fingerprints(tree)
    mesh = make_mesh(MeshConfig(fsdp=8))
    sharding = {name: NamedSharding(mesh, PartitionSpec()) for name in tree}
    sharding["a"] = NamedSharding(mesh, PartitionSpec("fsdp"))
    assert fingerprints(jax.device_put(tree, sharding)) == whole
    for name, other in {
        "a": np.flip(tree["a"]),
        "b": np.ones((16, 8), jnp.bfloat16),
        "c": np.int32(2),
    }.items():
        changed = other.copy() if name != "b" else tree["b"].copy()
        if name == "b":
            changed.view(np.uint16)[3, 5] ^= 1
        assert differing(fingerprints({**tree, name: changed}), whole) == [name]


def test_other_frozen_weights_are_refused():
    saved = {"step": 7, "frozen": fingerprints({"vision/x": np.ones(3), "vision/y": np.ones(2)})}
    check_frozen(saved, fingerprints({"vision/x": np.ones(3), "vision/y": np.ones(2)}))
    with pytest.raises(UserError, match=r"checkpoint of step 7 .* 1 differ, such as vision/y"):
        check_frozen(saved, fingerprints({"vision/x": np.ones(3), "vision/y": np.zeros(2)}))


def test_a_config_that_made_no_step_may_be_corrected(tmp_path):
    check_same_run(tmp_path, {"num_steps": 1})
    (tmp_path / "checkpoints").mkdir()  # as a run leaves them that ends while its step is compiled
    (tmp_path / "metrics.jsonl").touch()
    check_same_run(tmp_path, {"num_steps": 2})
    assert json.loads((tmp_path / "config.json").read_text()) == {"num_steps": 2}
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\n')
    with pytest.raises(UserError, match="num_steps was 2, is now 1"):
        check_same_run(tmp_path, {"num_steps": 1})


def test_a_run_from_before_streams_named_their_loss_goes_on(tmp_path):
    check_same_run(tmp_path, {"streams": {"x": {"batch_size": 2}}})
    (tmp_path / "metrics.jsonl").write_text("{}\n")
    check_same_run(tmp_path, {"streams": {"x": {"batch_size": 2, "loss": "next_token"}}})
    with pytest.raises(UserError, match=r"streams\.x\.loss was 'next_token', is now 'other'"):
        check_same_run(tmp_path, {"streams": {"x": {"batch_size": 2, "loss": "other"}}})
