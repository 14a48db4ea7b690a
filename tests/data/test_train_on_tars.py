"""Whole runs on files of which some are damaged."""

import dataclasses
import json
import multiprocessing
import os
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import jax
import numpy as np
import pytest

from benchmarks.process_tree import resident_bytes
from flamingo_jax.data.bad_records import BadRecordLog
from flamingo_jax.data.pipeline import DataConfig, StepSource, StreamConfig, batches, make_streams
from flamingo_jax.errors import UserError
from flamingo_jax.schema import build
from flamingo_jax.text.tokenizer import load_tokenizer
from flamingo_jax.train.config import TrainConfig
from flamingo_jax.train.loop import run
from flamingo_jax.train.metrics import read_metrics
from tests import tiny

from .corpora import damaged_pairs, mmc4_samples, odd_pairs, pair_samples, write_tar


def write_corpus(directory: Path, sound: int, damaged: int) -> Path:
    """Pairs of which some are damaged, and four are odd but sound."""
    samples = pair_samples(0, sound) | damaged_pairs(damaged) | odd_pairs()
    return write_tar(directory / "pairs.tar", samples)


def bad_records(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture
def config(tmp_path) -> TrainConfig:
    """The tiny run with its shapes, so that its compiled program is shared; six batches of eight
    pairs are one epoch."""
    values = tiny.get_config()
    shards = {
        "pairs": {"shards": str(write_corpus(tmp_path, 38, 6))},
        "mmc4": {
            "shards": str(write_tar(tmp_path / "mmc4.tar", mmc4_samples(20))),
            "min_image_bytes": 0,
        },
    }
    for name, source in (("pairs", "pairs"), ("interleaved", "mmc4")):
        values.streams[name].source = source
        values.streams[name].options = shards[source]
    return build(TrainConfig, values.to_dict())


def test_training_goes_on_over_bad_records(config, tmp_path):
    run(config, tmp_path / "run", jax.devices()[:1])
    metrics = read_metrics(tmp_path / "run")
    assert [m["step"] for m in metrics] == [1, 2, 3, 4, 5, 6]
    assert all(np.isfinite(m["loss"]) for m in metrics)
    entries = bad_records(tmp_path / "run/bad_records-0.jsonl")
    assert metrics[-1]["bad_records"] == len(entries)
    assert {entry["key"] for entry in entries} == {f"bad{n:06d}" for n in range(6)}
    for entry in entries:
        assert entry["stream"] == "pairs"
        assert entry["shard"] == str(tmp_path / "pairs.tar")
        assert entry["reason"]


def test_too_many_bad_records_stop_training(config, tmp_path):
    strict = dataclasses.replace(config, data=DataConfig(max_bad_fraction=0.0))
    message = r"records are bad, more than data\.max_bad_fraction 0\.0 allows.*pairs\.tar:bad"
    with pytest.raises(UserError, match=message):
        run(strict, tmp_path / "run", jax.devices()[:1])


def read_on(tar: Path, log_file: Path) -> tuple[dict[int, int], float]:
    """Resident bytes of this process by step, over 300 steps, and the share of bad records."""
    config = StreamConfig(
        source="pairs",
        options={"shards": str(tar)},
        batch_size=16,
        text_length=10,
        num_images=1,
    )
    streams = make_streams({"pairs": config}, load_tokenizer("digits", 40), 64)
    log = BadRecordLog(log_file, max_fraction=0.1)
    reader = batches(StepSource(streams, 0, 300), 0, workers=2, prefetch=2, log=log)
    memory = {}
    for step, _ in enumerate(reader, 1):
        if step % 50 == 0 and step < 300:  # after the last one the workers end
            memory[step] = resident_bytes(os.getpid())
    assert step == 300
    return memory, log.bad / log.records


@pytest.mark.slow
def test_memory_stays_flat_over_300_steps(tmp_path):
    """In a process of its own: that of the tests holds gigabytes which come and go."""
    inputs = write_corpus(tmp_path, 376, 20), tmp_path / "bad.jsonl"
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        memory, bad_share = pool.submit(read_on, *inputs).result()
    assert max(memory.values()) < memory[50] + 8e6, memory
    assert 0.04 < bad_share < 0.06
    entries = bad_records(tmp_path / "bad.jsonl")
    assert {entry["key"] for entry in entries} == {f"bad{n:06d}" for n in range(20)}
