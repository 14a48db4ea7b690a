"""The data pipeline beside a plain webdataset pipeline that does the original's work.

Both read the same made tars of MMC4 documents with the same number of worker processes, and end in
the same float arrays: normalised pixels, tokens, mask. Processor time is user and system time of
all processes of a pipeline, between two batches of its steady state.

    python -m benchmarks.data --json results.json
"""

import os
import tempfile
import time
from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import report
from benchmarks.data_corpus import write_corpus, write_tokenizer
from benchmarks.measuring import in_own_process
from benchmarks.process_tree import cpu_seconds, resident_bytes
from flamingo_jax.errors import UserError

BATCH_SIZE = 8
WARM = 6  # batches before the clock starts
# Documents that are made, batches that are measured, shards whose index is opened.
SIZES = {"small": (200, 25, 10_000), "large": (800, 100, 10_000), "tiny": (50, 4, 100)}
# Suffix of the figures' names, how images are decoded, and their size.
CORPORA = (("", "exact", (640, 480)), ("_fast_1024", "fast", (1024, 768)))
MEAN = np.array([0.48145466, 0.4578275, 0.40821073], np.float32) * 255
STD = np.array([0.26862954, 0.26130258, 0.27577711], np.float32) * 255
Batch = tuple[np.ndarray, np.ndarray, np.ndarray]  # images (B, T, 3, H, W), tokens (B, L), mask


def our_batches(
    shards: str, tokenizer: str, vocab: int, decode: str, workers: int, *, limit: int | None
) -> Iterator[Batch]:
    """Returns `limit` batches, shuffled; None: one pass, in order."""
    from flamingo_jax.data.pipeline import StepSource, StreamConfig, batches, make_streams
    from flamingo_jax.text.tokenizer import load_tokenizer

    config = StreamConfig(
        source="mmc4",
        options={"shards": shards, "image_order": "openflamingo"},
        batch_size=BATCH_SIZE,
        text_length=256,
        num_images=6,
        decode=decode,
        shuffle="global" if limit else "none",
    )
    streams = make_streams({"mmc4": config}, load_tokenizer(tokenizer, vocab), 224)
    steps = limit or len(streams["mmc4"].source.order) // BATCH_SIZE
    for batch in batches(StepSource(streams, 0, steps), 0, workers=workers, prefetch=2):
        rows = batch["mmc4"]
        # On an accelerator this happens there.
        pixels = rows["images"][:, :, 0]
        images = np.zeros(pixels.shape, np.float32)
        shown = np.arange(6) < (rows["tokens"] == vocab + 1).sum(axis=1)[:, None]
        images[shown] = (pixels[shown] - MEAN) / STD
        yield images.transpose(0, 1, 4, 2, 3), rows["tokens"], rows["segments"]


def opened(pipeline: str, setting: dict[str, Any], **options: Any) -> Iterator[Batch]:
    if pipeline == "peer":
        from benchmarks.data_peer import peer_batches
        from flamingo_jax.data.stores import expand

        shards = expand(setting["shards"])
        return peer_batches(shards, setting["tokenizer"], BATCH_SIZE, **options)
    return our_batches(**{**setting, **options})


def measure(
    pipeline: str, setting: dict[str, Any], workers: int, count: int
) -> tuple[float, int, float]:
    """Of one pipeline: processor seconds per document, bytes, and seconds to the first batch."""
    started = time.perf_counter()
    reader = opened(pipeline, setting, workers=workers, limit=WARM + count + 10)
    next(reader)
    first_batch = time.perf_counter() - started
    for _ in range(WARM):
        next(reader)
    start = cpu_seconds(os.getpid())
    for _ in range(count):
        next(reader)
    used = cpu_seconds(os.getpid()) - start
    memory = []
    for _ in range(4):
        memory.append(resident_bytes(os.getpid()))
        next(reader)
    for _ in reader:  # to its end, where worker processes end
        pass
    return used / (count * BATCH_SIZE), max(memory), first_batch


def compare(
    table: report.Report,
    suffix: str,
    setting: dict[str, Any],
    workers: int,
    count: int,
    rounds: int,
) -> None:
    """Runs both pipelines by turns, each time in a process of its own."""
    taken: dict[str, list] = {"ours": [], "peer": []}
    for _ in range(rounds):
        for pipeline, found in taken.items():
            found.append(in_own_process(measure, pipeline, setting, workers, count))
    ours, peer = (np.array(taken[name]).T for name in ("ours", "peer"))
    rates = (1 / seconds.mean() for seconds, _, _ in (ours, peer))
    table.add(f"docs_per_cpu_second{suffix}", *rates)
    table.add(f"memory{suffix}", ours[1].max() / 1e6, peer[1].max() / 1e6, unit="MB")
    table.add(f"seconds_to_first_batch{suffix}", ours[2].mean(), peer[2].mean())


def check_same(setting: dict[str, Any]) -> tuple[float, float]:
    """Returns the mean and the largest difference of pixels in one pass, of 255.

    AssertionError: tokens, masks or rows differ, or pixels by more than the decoding says: "exact"
    rounding only, "fast" a mean of 1.
    """
    passes = [opened(name, setting, workers=0, limit=None) for name in ("ours", "peer")]
    worst = total = pixels = 0.0
    for ours, peer in zip(*passes, strict=False):
        peer_mask = peer[2] != 0
        np.testing.assert_array_equal(ours[2] != 0, peer_mask)
        np.testing.assert_array_equal(ours[1][peer_mask], peer[1][peer_mask])
        # The original keeps images whose mark the end of the row cut off.
        marked = np.arange(6) < (ours[1] == setting["vocab"] + 1).sum(axis=1)[:, None]
        difference = np.abs(ours[0][marked] - peer[0][marked])
        worst = max(worst, float(difference.max()))
        total, pixels = total + float(difference.sum(dtype=np.float64)), pixels + difference.size
    levels = 255 * 0.27  # of a unit of normalised pixels
    mean = total / pixels * levels
    assert (worst * levels < 0.01) if setting["decode"] == "exact" else (mean < 1), (worst, mean)
    return mean, worst * levels


def index_start_up(directory: Path, shards: int) -> tuple[float, float]:
    """Returns seconds, and seconds of processors, to open shards whose index exists.

    They are links to one of a thousand samples.
    """
    import io
    import tarfile

    from flamingo_jax.data.cached_index import index_path
    from flamingo_jax.data.stores import open_store

    directory.mkdir()
    first = directory / "000000.tar"
    with tarfile.open(first, "w") as tar:
        for number in range(1000):
            for extension in ("jpg", "json", "txt"):
                info = tarfile.TarInfo(f"{number:09d}.{extension}")
                info.size = 1
                tar.addfile(info, io.BytesIO(b"x"))
    open_store(str(first))
    for number in range(1, shards):
        path = directory / f"{number:06d}.tar"
        path.hardlink_to(first)
        index_path(str(path), "").hardlink_to(index_path(str(first), ""))
    started, used = time.perf_counter(), time.process_time()
    store = open_store(f"{directory}/{{000000..{shards - 1:06d}}}.tar")
    seconds, used = time.perf_counter() - started, time.process_time() - used
    assert store.sizes.sum() == 1000 * shards
    return seconds, used


def main(argv: Sequence[str]) -> None:
    parser = report.parser(__doc__, tuple(SIZES), devices=("cpu",))
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=2, help="of measuring both")
    args = report.parse(parser, argv)
    if not (find_spec("webdataset") and find_spec("torch")):
        raise UserError("the peer is not installed: pip install 'flamingo-jax[dev,torch]'")
    documents, count, shards = SIZES[args.size]
    table = report.Report("data", args)
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        tokenizer = directory / "tokenizer.json"
        vocab = write_tokenizer(tokenizer)
        seconds, used = index_start_up(directory / "links", shards)
        table.add(f"start_up_seconds_{shards}", seconds)
        table.add(f"start_up_cpu_seconds_{shards}", used)
        for suffix, decode, size in CORPORA[: 1 if args.size == "tiny" else None]:
            pattern = write_corpus(directory / f"{size[0]}", documents, *size)
            setting = {
                "shards": pattern, "tokenizer": str(tokenizer), "vocab": vocab, "decode": decode,
            }  # fmt: skip
            mean, largest = check_same(setting)
            compare(table, suffix, setting, args.workers, count, args.rounds)
            table.add(f"mean_pixel_difference{suffix}", mean)
            table.add(f"largest_pixel_difference{suffix}", largest)
    table.note(f"{count * BATCH_SIZE} documents of each pipeline, {args.rounds} times")
    table.write()


if __name__ == "__main__":
    report.run(main)
