"""Runs on tars whose images' features are kept on disk: the same losses, fewer images encoded."""

import dataclasses
import shutil
from pathlib import Path

import jax
import pytest

from flamingo_jax.data.pipeline import StepSource, make_streams
from flamingo_jax.errors import UserError
from flamingo_jax.parallel.mesh import MeshConfig
from flamingo_jax.schema import build
from flamingo_jax.text.tokenizer import load_tokenizer
from flamingo_jax.train.config import TrainConfig
from flamingo_jax.train.loop import run
from flamingo_jax.train.speed import read_ledger
from tests import tiny
from tests.data.corpora import mmc4_samples, pair_samples, write_tar


@pytest.fixture(scope="module")
def config(tmp_path_factory) -> TrainConfig:
    """Six steps of eight rows a stream: pairs are seen four times, documents eight times."""
    folder = tmp_path_factory.mktemp("corpora")
    values = tiny.get_config()
    values.streams.pairs.source = "pairs"
    values.streams.pairs.options = {
        "shards": str(write_tar(folder / "pairs.tar", pair_samples(100, 12)))
    }
    values.streams.interleaved.source = "mmc4"
    values.streams.interleaved.options = {
        "shards": str(write_tar(folder / "mmc4.tar", mmc4_samples(6))),
        "min_image_bytes": 0,
        "similarity_threshold": 0.0,
    }
    return build(TrainConfig, values.to_dict())


def cached(config: TrainConfig, folder: Path, gib: float = 1.0) -> TrainConfig:
    data = dataclasses.replace(config.data, vision_cache=str(folder), vision_cache_gib=gib)
    return dataclasses.replace(config, data=data)


@pytest.fixture(scope="module")
def plain(config, tmp_path_factory):
    """metrics.jsonl of a run that encodes every image in every step."""
    workdir = tmp_path_factory.mktemp("plain")
    run(config, workdir, jax.devices()[:1])
    return (workdir / "metrics.jsonl").read_text()


@pytest.fixture(scope="module")
def filled(config, tmp_path_factory):
    """A run that filled its cache, which is beside it."""
    folder = tmp_path_factory.mktemp("cached")
    run(cached(config, folder / "cache"), folder / "run", jax.devices()[:1])
    return folder


def count(workdir: Path, name: str) -> list[int]:
    return [line[name] for line in read_ledger(workdir / "ledger.jsonl") if name in line]


def test_losses_are_bitwise_those_without_a_cache(filled, plain):
    assert (filled / "run/metrics.jsonl").read_text() == plain


def test_an_image_is_encoded_once_in_all_epochs(config, filled):
    tokens = load_tokenizer(config.tokenizer, config.model.decoder.vocab_size)
    streams = make_streams(config.streams, tokens, config.model.encoder.image_size)
    source = StepSource(streams, config.seed, config.num_steps)
    shown = [
        image.tobytes()
        for step in range(config.num_steps)
        for rows in source[step].values()
        for image in rows["images"].reshape(-1, 8, 8, 3)
    ]
    encoded, found = (count(filled / "run", f"images_{name}")[-1] for name in ("encoded", "found"))
    assert encoded == len(set(shown)) < len(shown) / 5
    assert 0 < found < len(shown) - encoded  # some are several times in one batch
    assert count(filled / "run", "compiled") == [1] * 5


def test_a_run_beside_a_filled_cache_encodes_nothing(config, filled, plain, tmp_path):
    """As does a resumed one."""
    run(cached(config, filled / "cache"), tmp_path, jax.devices()[:1])
    assert count(tmp_path, "images_encoded") == [0] * 5
    assert (tmp_path / "metrics.jsonl").read_text() == plain


def test_a_run_may_go_on_with_a_cache_and_without(config, plain, tmp_path):
    halves = [dataclasses.replace(config, checkpoint_every=2, keep_checkpoints=3)] * 3
    halves[1] = cached(halves[1], tmp_path / "cache")
    for number, half in enumerate(halves):
        stop_after(2 * number + 2, half, tmp_path / "run")
    assert (tmp_path / "run/metrics.jsonl").read_text() == plain


def stop_after(step: int, config: TrainConfig, workdir: Path) -> None:
    """Train, and undo what comes after a step."""
    run(config, workdir, jax.devices()[:1])
    for checkpoint in (workdir / "checkpoints").iterdir():
        if int(checkpoint.name) > step:
            shutil.rmtree(checkpoint)


def test_damage_and_a_full_cache_change_nothing(config, filled, plain, tmp_path, capsys):
    shutil.copytree(filled / "cache", tmp_path / "cache")
    (records,) = (tmp_path / "cache").rglob("*.records")
    data = bytearray(records.read_bytes())
    data[100] ^= 1
    records.write_bytes(data)
    config = cached(config, tmp_path / "cache", gib=len(data) / 2**30)
    run(config, tmp_path / "run", jax.devices()[:1])
    assert (tmp_path / "run/metrics.jsonl").read_text() == plain
    assert count(tmp_path / "run", "images_encoded")[-1] > 1  # in every epoch
    assert capsys.readouterr().err.count("it has reached config.data.vision_cache_gib") == 1


def test_another_model_finds_nothing(config, filled, tmp_path):
    shutil.copytree(filled / "cache", tmp_path / "cache")
    other = cached(dataclasses.replace(config, seed=1, num_steps=3), tmp_path / "cache")
    run(other, tmp_path / "run", jax.devices()[:1])
    assert count(tmp_path / "run", "images_encoded")[-1] > 0
    assert len(list((tmp_path / "cache").iterdir())) == 2


def test_eight_devices_share_a_cache(config, plain, tmp_path):
    """Written split over a mesh, read on another one."""
    config = cached(config, tmp_path / "cache")
    fsdp = dataclasses.replace(config, mesh=MeshConfig(fsdp=4))
    run(fsdp, tmp_path / "eight")
    run(config, tmp_path / "one", jax.devices()[:1])
    assert count(tmp_path / "one", "images_encoded")[-1] == 0
    assert count(tmp_path / "eight", "images_encoded")[-1] > 0


def test_a_trained_vision_encoder_is_refused(config, tmp_path):
    trained = dataclasses.replace(config, trainable=("^vision/layers/", *config.trainable))
    message = r"config\.trainable trains the vision encoder \(vision/layers/.*set one of them only"
    with pytest.raises(UserError, match=message):
        run(cached(trained, tmp_path / "cache"), tmp_path / "run", jax.devices()[:1])
    assert not (tmp_path / "run").exists()


def test_several_processes_are_refused(config, tmp_path, monkeypatch):
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    with pytest.raises(UserError, match="for one process, this run has 2"):
        run(cached(config, tmp_path / "cache"), tmp_path / "run", jax.devices()[:1])


def test_a_directory_that_cannot_be_made_is_refused(config, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"cannot be made \(Not a directory\)"):
        run(cached(config, tmp_path / "file/cache"), tmp_path / "run", jax.devices()[:1])
