"""Processes that prepare batches ahead. Everything that knows Grain's prefetching is here."""

import atexit
import gc
import multiprocessing
import os
import sys
import threading
from collections.abc import Generator
from typing import Any

from absl import flags

# Read by libraries when they start: a worker computes on one core and touches no accelerator.
ENVIRONMENT = {
    "JAX_PLATFORMS": "cpu",
    "OMP_NUM_THREADS": "1",
    "TOKENIZERS_PARALLELISM": "false",
}


def prefetched(
    source: Any, start: int, *, workers: int, prefetch: int
) -> Generator[Any, None, None]:
    """Elements `start`, start + 1, … of a source with random access, prepared ahead. Close it if it
    is not read to its end.

    Args:
      source: has `__len__` and `__getitem__`, and can be pickled.
      start: the first element.
      workers: processes; 0: one thread of this process.
      prefetch: elements kept ready, in each process.
    """
    import grain  # it imports JAX, which is not needed to say what data there is

    options = grain.ReadOptions(num_threads=1, prefetch_buffer_size=prefetch)
    dataset = grain.MapDataset.source(source)[start:].to_iter_dataset(options)
    if workers:
        if not flags.FLAGS.is_parsed():  # Grain reads its flags, and not every program parses any
            flags.FLAGS.mark_as_parsed()
        dataset = dataset.mp_prefetch(
            grain.MultiprocessingOptions(num_workers=workers, per_worker_buffer_size=prefetch),
            worker_init_fn=start_worker,
        )
        # Reference cycles hold the last batches, whose shared memory would outlive this process.
        atexit.register(gc.collect)
    elements = iter(dataset)
    try:
        yield from elements
    finally:
        if workers:
            elements.close()  # ends the processes and frees their shared memory


def start_worker(_index: int = 0, _count: int = 1) -> None:
    """Sets up a new process: it computes on one core, and ends with its parent."""
    os.environ.update(ENVIRONMENT)
    if "jax" in sys.modules:  # it has read its environment
        sys.modules["jax"].config.update("jax_platforms", "cpu")
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """Waits to end with the trainer: if it is killed, workers would keep shared memory for ever."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
