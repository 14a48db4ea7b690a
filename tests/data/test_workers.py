import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest

from flamingo_jax.data.bad_records import BadEntry, BadRecordLog, Drawn
from flamingo_jax.data.packing import Packing
from flamingo_jax.data.pipeline import StepSource, StreamConfig, batches, make_streams
from flamingo_jax.errors import UserError
from flamingo_jax.text.tokenizer import load_tokenizer

from .corpora import damaged_pairs, mmc4_samples, odd_pairs, write_pairs, write_tar

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """Pairs of which some are damaged, and interleaved documents."""
    directory = tmp_path_factory.mktemp("corpus")
    pattern = write_pairs(directory, shards=4, per_shard=25)
    write_tar(directory / "pairs-0004.tar", damaged_pairs(6) | odd_pairs())
    write_tar(directory / "mmc4-0.tar", mmc4_samples(12))
    return pattern.replace("0003", "0004"), f"{directory}/mmc4-{{0..0}}.tar"


def step_source(corpus, num_steps=9, *, seed=0, host=0, num_hosts=1, shuffle="window"):
    pairs, mmc4 = corpus
    configs = {
        "pairs": StreamConfig(
            source="pairs",
            options={"shards": pairs},
            batch_size=8,
            text_length=8,
            num_images=1,
            pack=Packing(documents=2, text_length=12),
            shuffle=shuffle,
            window_shards=2,
        ),
        "interleaved": StreamConfig(
            source="mmc4",
            options={"shards": mmc4, "min_image_bytes": 0},
            batch_size=4,
            text_length=14,
            num_images=6,
            single_image_share=0.5,
        ),
    }
    streams = make_streams(configs, load_tokenizer("digits", 40), 16)
    return StepSource(streams, seed, num_steps, host, num_hosts)


def assert_same(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


@pytest.fixture(scope="module")
def expected(corpus, tmp_path_factory):
    path = tmp_path_factory.mktemp("log") / "bad.jsonl"
    log = BadRecordLog(path)
    return list(batches(step_source(corpus), 0, log=log)), log, path.read_text()


@pytest.mark.parametrize("workers", [1, 2, 3])
def test_worker_processes_change_nothing(corpus, expected, workers, tmp_path):
    path = tmp_path / "bad.jsonl"
    log = BadRecordLog(path)
    reader = batches(step_source(corpus), 0, workers=workers, prefetch=2, log=log)
    for step, batch in enumerate(reader):
        assert_same(batch, expected[0][step])
    assert step == 8
    assert path.read_text() == expected[2]
    assert (log.records, log.rejected) == (expected[1].records, expected[1].rejected)


@pytest.mark.parametrize("num_hosts", [2, 4])
def test_the_parts_of_all_hosts_are_the_batch_of_one(corpus, expected, num_hosts):
    parts = [step_source(corpus, host=host, num_hosts=num_hosts)[3] for host in range(num_hosts)]
    together = jax.tree.map(lambda *rows: np.concatenate(rows), *parts)
    assert_same(together, expected[0][3])
    with pytest.raises(UserError, match="batch_size is 8, which does not divide by 3 hosts"):
        step_source(corpus, num_hosts=3)


def test_every_bad_record_is_replaced_and_written_down(corpus, expected):
    entries = [json.loads(line) for line in expected[2].splitlines()]
    assert len(entries) == expected[1].bad == expected[1].total
    assert {Path(entry["shard"]).name for entry in entries} == {"pairs-0004.tar"}
    assert {entry["stream"] for entry in entries} == {"pairs"}
    assert {entry["key"] for entry in entries} == {f"bad{n:06d}" for n in range(6)}
    reasons = " ".join(entry["reason"] for entry in entries)
    for reason in ("truncated", "no known format", "empty caption", "no image", "JSON", "pixels"):
        assert reason in reasons
    for batch in expected[0]:
        marks = batch["pairs"]["tokens"] == 41
        assert (marks.sum(axis=1) == 2).all()
    assert expected[1].rejected > 0


def test_too_many_bad_records_stop_the_run(tmp_path):
    tar = write_tar(tmp_path / "bad.tar", damaged_pairs(6) | odd_pairs())
    corpus = str(tar), str(write_tar(tmp_path / "mmc4.tar", mmc4_samples(6)))
    log = BadRecordLog(tmp_path / "bad.jsonl", max_fraction=0.2)
    with pytest.raises(
        UserError, match=r"\d+ of \d+ records are bad, .* 0\.2 allows.*bad\.tar:bad"
    ):
        list(batches(step_source(corpus, 50), 0, log=log))


def test_nothing_that_can_be_used_stops_the_run(tmp_path):
    tar = write_tar(tmp_path / "bad.tar", damaged_pairs(6))
    corpus = str(tar), str(write_tar(tmp_path / "mmc4.tar", mmc4_samples(6)))
    message = "stream 'pairs', step 0: none of 100 records drawn could be used"
    with pytest.raises(UserError, match=message):
        next(batches(step_source(corpus), 0))
    with pytest.raises(UserError, match=message):
        next(batches(step_source(corpus), 0, workers=1))


def test_a_continued_log_has_every_bad_record_once(corpus, expected, tmp_path):
    path = tmp_path / "bad.jsonl"
    path.write_text(expected[2] + '{"step": 4, "str')
    log = BadRecordLog(path, start=4)
    list(batches(step_source(corpus), 4, log=log))
    assert path.read_text() == expected[2]
    assert log.total == expected[1].total


def test_a_part_of_a_run_is_judged_by_what_it_has_drawn(tmp_path):
    """How many sound records earlier parts have drawn is written nowhere."""
    path = tmp_path / "bad.jsonl"
    bad = [BadEntry(3, "pairs", 0, "a.tar", "k", "why")]
    BadRecordLog(path).add(Drawn(20, bad=bad * 20))
    log = BadRecordLog(path, start=4, max_fraction=0.1)
    log.add(Drawn(200, bad=bad * 20))
    assert (log.records, log.bad, log.total) == (200, 20, 40)
    with pytest.raises(
        UserError, match=r"21 of 201 records are bad,.* 0\.1 allows, counted since this process sta"
    ):
        log.add(Drawn(1, bad=bad))


SCRIPT = """
import sys
from tests.data.test_workers import digest, step_source
from flamingo_jax.data.pipeline import batches

if __name__ == "__main__":
    start, workers, *corpus = sys.argv[1:]
    for batch in batches(step_source(corpus, 10**6), int(start), workers=int(workers), prefetch=2):
        print(digest(batch), flush=True)
"""


def digest(batch) -> str:
    """A hash of every byte of a batch."""
    found = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_leaves_with_path(batch):
        found.update(f"{path}{leaf.dtype}{leaf.shape}".encode() + leaf.tobytes())
    return found.hexdigest()


def processes_of(group: int) -> list[str]:
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rsplit(")", 1)[1].split()
        except OSError:  # it has ended meanwhile
            continue
        if int(fields[2]) == group and fields[0] != "Z":
            found.append(path.parent.name)
    return found


def shared_memory_of(processes: list[str]) -> set[Path]:
    """Files in /dev/shm that the processes use; other programs have theirs there, too."""
    lines = [line for p in processes for line in Path(f"/proc/{p}/maps").read_text().splitlines()]
    paths = {Path(line[line.index("/dev/shm") :]) for line in lines if "/dev/shm" in line}
    return {path for path in paths if path.exists()}


def read_and_kill(tmp_path, corpus, start: int, workers: int, count: int) -> list[str]:
    """Digests of the first batches of a reading process, which is then killed with SIGKILL; neither
    processes nor shared memory may be left of it."""
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    process = subprocess.Popen(
        [sys.executable, str(script), str(start), str(workers), *corpus],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
        text=True,
    )
    digests = [process.stdout.readline().strip() for _ in range(count)]
    running = processes_of(process.pid)
    assert len(running) > workers
    shared = shared_memory_of(running)
    assert shared
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    end = time.monotonic() + 60
    while time.monotonic() < end:
        left = processes_of(process.pid), {path for path in shared if path.exists()}
        if not any(left):
            break
        time.sleep(0.1)
    assert left == ([], set())
    return digests


def test_a_killed_reader_leaves_nothing_and_continues_with_other_workers(
    corpus, expected, tmp_path
):
    digests = read_and_kill(tmp_path, corpus, 0, 2, 5)
    digests += read_and_kill(tmp_path, corpus, 5, 1, 4)
    assert digests == [digest(batch) for batch in expected[0]]
