"""Whole runs, in this process."""

import dataclasses
import gc
import json
import shutil
from contextlib import closing
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flamingo_jax.data.pipeline import make_streams
from flamingo_jax.errors import UserError
from flamingo_jax.evaluate.config import FewShotConfig
from flamingo_jax.models.params import model_graph
from flamingo_jax.parallel.mesh import MeshConfig
from flamingo_jax.parallel.sharding import to_device
from flamingo_jax.schema import build
from flamingo_jax.text.tokenizer import load_tokenizer
from flamingo_jax.train.checkpoint import Checkpointer
from flamingo_jax.train.config import TrainConfig
from flamingo_jax.train.demo import SETTINGS, evaluate
from flamingo_jax.train.fingerprint import fingerprints
from flamingo_jax.train.initial_weights import InitialWeights
from flamingo_jax.train.loop import run
from flamingo_jax.train.metrics import read_metrics
from flamingo_jax.train.setup import Setup, set_up, shardings
from flamingo_jax.weights.model_directory import Provenance, write_directory
from flamingo_jax.weights.views import LazyArray
from tests import tiny
from tests.train.test_checkpoint import files_no_larger_than

CONFIG = build(TrainConfig, tiny.get_config().to_dict())


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The working directory of a finished run on one device."""
    workdir = tmp_path_factory.mktemp("one_device")
    run(CONFIG, workdir, jax.devices()[:1])
    return workdir


def final_params(workdir: Path, config: TrainConfig = CONFIG, devices=None):
    setup = set_up(config, devices or jax.devices()[:1])
    with closing(Checkpointer(workdir)) as checkpointer:
        state, _ = checkpointer.restore(setup.state_shapes)
    return jax.tree.map(np.asarray, state.params)


def beginning(config: TrainConfig, setup: Setup):
    """(state, frozen) before the first step."""
    initial = InitialWeights(setup, config.seed, config.init_from)
    return initial.state(), initial.frozen()


def test_a_run_leaves_metrics_checkpoints_and_tensorboard(trained):
    metrics = read_metrics(trained)
    assert [m["step"] for m in metrics] == [1, 2, 3, 4, 5, 6]
    assert {"loss", "loss/pairs", "loss/interleaved", "tokens/pairs", "grad_norm"} <= set(
        metrics[0]
    )
    assert sorted(p.name for p in (trained / "checkpoints").iterdir()) == ["4", "6"]
    assert list((trained / "tensorboard").glob("events.*"))


@pytest.mark.parametrize("mesh", [{}, {"fsdp": 4}], ids=["data 8", "data 2 × fsdp 4"])
def test_eight_devices_give_the_losses_of_one(trained, tmp_path, mesh):
    sharded = dataclasses.replace(CONFIG, mesh=MeshConfig(**mesh))
    run(sharded, tmp_path)
    for one, eight in zip(read_metrics(trained), read_metrics(tmp_path), strict=True):
        for name, value in one.items():
            np.testing.assert_allclose(eight[name], value, rtol=2e-4, atol=1e-6, err_msg=name)


def test_frozen_leaves_stay_bitwise_as_they_were():
    setup = set_up(CONFIG, jax.devices()[:1])
    state, frozen = beginning(CONFIG, setup)
    tokens = load_tokenizer(CONFIG.tokenizer, CONFIG.model.decoder.vocab_size)
    streams = make_streams(CONFIG.streams, tokens, CONFIG.model.encoder.image_size)
    before = jax.tree.map(np.array, (state.params, frozen))
    for step in range(3):
        rows = {n: s.batch(step, (0, i)) for i, (n, s) in enumerate(sorted(streams.items()))}
        with jax.set_mesh(setup.mesh):
            state, _ = setup.train_step(state, frozen, to_device(rows, setup.mesh))
    assert before[1]
    for path, value in before[1].items():
        assert np.array(frozen[path]).tobytes() == value.tobytes(), path
    unchanged = [p for p, v in before[0].items() if np.array_equal(v, state.params[p])]
    assert not unchanged


def test_checkpoints_hold_no_byte_of_a_frozen_leaf(trained):
    """Counted twice: the leaves that Orbax lists, and the bytes on the disk."""
    setup = set_up(CONFIG, jax.devices()[:1])
    metadata = json.loads((trained / "checkpoints/6/state/_METADATA").read_text())
    saved = [
        tuple(part["key"] for part in entry["key_metadata"])
        for entry in metadata["tree_metadata"].values()
    ]
    assert {path[-1] for path in saved if path[0] == "params"} == set(setup.trained)
    for path in setup.graph.shapes():
        copies = sum(path in key for key in saved)
        assert copies == (3 if path in setup.trained else 0), path  # itself and Adam's two moments


def test_checkpoint_size_does_not_grow_with_the_frozen_model(trained, tmp_path):
    def checkpoint_bytes(workdir):
        files = (workdir / "checkpoints").rglob("*")
        return sum(f.stat().st_size for f in files if f.is_file())

    large = tiny.get_config()
    large.model.encoder.mlp_width = 4096
    large.model.decoder.mlp_width = 4096
    large.num_steps = large.checkpoint_every = 1
    run(build(TrainConfig, large.to_dict()), tmp_path, jax.devices()[:1])
    frozen_bytes = 4 * 2 * 16 * 4096 * 2  # bfloat16 up and down kernels of four layers
    small_bytes = checkpoint_bytes(trained) / 2  # it kept two checkpoints
    assert checkpoint_bytes(tmp_path) < small_bytes + frozen_bytes / 10


def test_a_finished_run_has_nothing_left_to_do(trained, capsys):
    before = (trained / "metrics.jsonl").read_text()
    run(CONFIG, trained, jax.devices()[:1])
    assert "resumed from step 6" in capsys.readouterr().out
    assert (trained / "metrics.jsonl").read_text() == before


def test_evaluation_writes_results_and_pictures(trained, capsys):
    tasks = {**SETTINGS["tasks"], "digit_names": {"num_prompts": 6}}
    changes = {"tasks": tasks, "shots": (0, 2), "batch_size": 4}
    path = evaluate(trained, build(FewShotConfig, SETTINGS | changes))
    results = json.loads(path.read_text())
    assert set(results) == {"naming", "binding"}
    assert results["naming"]["n"] == 397
    assert set(results["binding"]) == {"0", "2"}
    assert set(results["binding"]["2"]) == {"accuracy", "stderr", "n"}
    for name in ("binding.png", "prompts.png"):
        assert (trained / name).read_bytes().startswith(b"\x89PNG")
    assert "name a held-out digit" in capsys.readouterr().out


@pytest.fixture(scope="module")
def model_directory(tmp_path_factory):
    """Random weights of the tiny model as a model directory, and the weights."""
    rng = np.random.default_rng(0)
    shapes = model_graph(CONFIG.model).shapes()
    weights = {p: rng.normal(size=s.shape).astype(np.float32) for p, s in shapes.items()}
    leaves = {p: LazyArray(w.shape, (w,), stacked=False) for p, w in weights.items()}
    folder = tmp_path_factory.mktemp("model") / "directory"
    write_directory(folder, CONFIG.model, Provenance("mpt", {}, {}, {}), leaves)
    return folder, weights


def test_a_run_begins_with_the_weights_of_a_model_directory(model_directory):
    folder, weights = model_directory
    config = dataclasses.replace(CONFIG, init_from=str(folder), mesh=MeshConfig(fsdp=2))
    setup = set_up(config, jax.devices()[:2])
    state, frozen = beginning(config, setup)
    assert state.params.keys() | frozen.keys() == weights.keys()
    for path, value in weights.items():
        if path in setup.trained:
            np.testing.assert_array_equal(state.params[path], value)
        else:
            np.testing.assert_array_equal(frozen[path], value.astype(jnp.bfloat16))
    leaves = jax.tree.leaves((state, shardings(setup.state_shapes)))
    half = len(leaves) // 2
    for value, sharding in zip(leaves[:half], leaves[half:], strict=True):
        assert value.sharding.is_equivalent_to(sharding, value.ndim)


def test_a_model_directory_of_another_model_is_refused(model_directory):
    decoder = dataclasses.replace(CONFIG.model.decoder, mlp_width=24)
    model = dataclasses.replace(CONFIG.model, decoder=decoder)
    config = dataclasses.replace(CONFIG, model=model, init_from=str(model_directory[0]))
    with pytest.raises(UserError, match="differ in 9 parameters, such as decoder/layers/0/mlp"):
        beginning(config, set_up(config))


def test_a_resume_beside_other_frozen_weights_is_refused(model_directory, tmp_path):
    weights = dict(model_directory[1])

    def write() -> None:
        leaves = {p: LazyArray(w.shape, (w,), stacked=False) for p, w in weights.items()}
        write_directory(tmp_path / "model", CONFIG.model, Provenance("mpt", {}, {}, {}), leaves)

    write()
    config = dataclasses.replace(CONFIG, init_from=str(tmp_path / "model"))
    setup = set_up(config, jax.devices()[:1])
    state, frozen = beginning(config, setup)
    with closing(Checkpointer(tmp_path / "run", keep=1)) as checkpointer:
        checkpointer.save(1, state, {"frozen": fingerprints(frozen)})
    path = "decoder/layers/0/mlp/up/kernel"
    weights[path] = weights[path].copy()
    weights[path][0, 3, 5] *= 1.01  # the next bfloat16
    shutil.rmtree(tmp_path / "model")
    write()
    with pytest.raises(UserError, match=f"checkpoint of step 1 .* 1 differ, such as {path}"):
        run(config, tmp_path / "run", jax.devices()[:1])


# Orbax leaves what failed to the garbage collector, which complains.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_full_disk_stops_the_run_with_its_cause(trained, tmp_path):
    workdir = tmp_path / "run"
    shutil.copytree(trained, workdir)
    shutil.rmtree(workdir / "checkpoints/6")
    with (
        files_no_larger_than(2**14),
        pytest.raises(UserError, match=r"step 6 could not be saved .*File too large.* of step 4$"),
    ):
        run(CONFIG, workdir, jax.devices()[:1])
    gc.collect()
    run(CONFIG, workdir, jax.devices()[:1])  # room again
    assert (workdir / "metrics.jsonl").read_text() == (trained / "metrics.jsonl").read_text()
    jax.tree.map(np.testing.assert_array_equal, final_params(workdir), final_params(trained))


def test_a_steps_line_is_written_before_its_checkpoint(tmp_path, monkeypatch):
    """A run that goes on from a checkpoint does not write the lines before it."""
    save, seen = Checkpointer.save, []

    def note(self, step, *args):
        seen.append((step, read_metrics(tmp_path)[-1]["step"]))
        save(self, step, *args)

    monkeypatch.setattr(Checkpointer, "save", note)
    run(CONFIG, tmp_path, jax.devices()[:1])
    assert seen == [(4, 4), (6, 6)]
