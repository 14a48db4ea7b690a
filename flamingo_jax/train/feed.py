"""Batches ahead of their use: the next one on the devices, the one after it on the host."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager, nullcontext
from pathlib import Path
from typing import Any, Generic, TypeVar

import jax
from jax.sharding import Mesh

from flamingo_jax.data.bad_records import BadRecordLog
from flamingo_jax.data.pipeline import Batches, StepSource, Stream, batches
from flamingo_jax.parallel.sharding import host_part, to_device
from flamingo_jax.train.config import TrainConfig
from flamingo_jax.train.vision_cache import VisionCache

T = TypeVar("T")
P = TypeVar("P")


class DevicePrefetcher(Generic[T, P]):
    """Iterates over elements that were put on the devices while those before them were in use.

    Of the elements that are not yet taken, the first is on its way to the devices and the second is
    fetched. So `next` waits for nothing, and a failure is known one element ahead.

    Args:
      elements: in the order of their use.
      count: how many will be taken.
      put: begins to bring an element to the devices. It should not wait.
    """

    def __init__(self, elements: Iterator[T], count: int, put: Callable[[T], P]):
        self._elements = elements
        self._left = count
        self._put = put
        self._fetched: list[T] = []  # none or one
        self._on_devices: list[P] = []  # none or one
        self._error: Exception | None = None
        self._fetch()
        self.prefetch()

    @property
    def failure(self) -> Exception | None:
        """Tells why there is no next element; None: there is one, or all have been taken."""
        return None if self._on_devices or self._fetched else self._error

    def __iter__(self) -> Iterator[P]:
        return self

    def __next__(self) -> P:
        """Takes the next element. Raises its failure, if there is one."""
        if self.failure is not None:
            raise self.failure
        if not self._on_devices:
            self.prefetch()
        if not self._on_devices:
            raise StopIteration
        return self._on_devices.pop()

    def prefetch(self) -> None:
        """Puts the next element on the devices and fetches the one after it, which may take time.

        To be called when the devices have enough to do: after a step was dispatched.
        """
        if self._fetched and not self._on_devices:
            self._on_devices.append(self._put(self._fetched.pop()))
        if not self._fetched:
            self._fetch()

    def _fetch(self) -> None:
        if not self._left or self._error is not None:
            return
        self._left -= 1
        try:
            self._fetched.append(next(self._elements))
        except StopIteration:
            self._error = RuntimeError("the data ended before the last step")
        except Exception as error:
            self._error = error


@contextmanager
def open_batches(
    config: TrainConfig,
    streams: Mapping[str, Stream],
    mesh: Mesh,
    workdir: Path,
    start: int,
    cache: VisionCache | None = None,
) -> Iterator[DevicePrefetcher[Any, tuple[Any, dict[str, int]]]]:
    """Gives the batches of a run from step `start` on, each with what was counted on the way.

    Each process reads its own part of a batch. The cache, if any, is closed with the batches.
    """
    source = StepSource(streams, config.seed, config.num_steps, *host_part(mesh))
    bad_records = BadRecordLog(
        workdir / f"bad_records-{jax.process_index()}.jsonl",
        start=start,
        max_fraction=config.data.max_bad_fraction,
    )

    def counted(reader: Iterator[Batches]) -> Iterator[tuple[Batches, dict[str, int]]]:
        for batch in reader:
            yield batch, {"bad_records": bad_records.total} if source.reads_files else {}

    def put(element: tuple[Batches, dict[str, int]]) -> tuple[Any, dict[str, int]]:
        batch, counts = element
        return cache.put(batch) if cache else to_device(batch, mesh), counts

    workers, prefetch = config.data.workers, config.data.prefetch
    with (
        closing(cache) if cache else nullcontext(),
        closing(
            batches(source, start, workers=workers, prefetch=prefetch, log=bad_records)
        ) as read,
    ):
        yield DevicePrefetcher(counted(read), config.num_steps - start, put)
