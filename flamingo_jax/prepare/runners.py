"""Making the shards of a job: by processes on one machine, or by Apache Beam on many."""

import multiprocessing
import sys
from collections.abc import Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool

from flamingo_jax.data.workers import start_worker
from flamingo_jax.errors import UserError, need_package
from flamingo_jax.prepare.job import Job


def by_processes(job: Job, indices: Sequence[int], workers: int) -> None:
    """Makes shards `indices`, by `workers` processes at a time; 0: by this one.

    Raises:
      UserError: a process was killed. What it was at is made by the next run.
    """
    if not workers:
        _watch(job, (job.make(index) for index in indices), len(indices))
        return
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, context, start_worker) as pool:
        futures = [pool.submit(job.make, index) for index in indices]
        try:
            _watch(job, (future.result() for future in as_completed(futures)), len(indices))
        except BrokenProcessPool:
            raise UserError(
                "a worker was killed, perhaps for want of memory; run the same command again, with "
                "fewer --workers: finished shards are kept"
            ) from None
        finally:
            pool.shutdown(cancel_futures=True)


def _watch(job: Job, made: Iterable[int], count: int) -> None:
    for number, index in enumerate(made, 1):
        print(f"{number}/{count} {job.target(index).name}", file=sys.stderr, flush=True)


def by_beam(job: Job, indices: Sequence[int], arguments: Sequence[str]) -> None:
    """Makes the same shards as a pipeline; `arguments` are Beam's own (--runner=…, --project=…).

    `job.out` and the inputs must be on a file system that every Beam worker has mounted.

    Raises:
      UserError: the extra is not installed.
    """
    beam = need_package("apache_beam", "beam")
    pipeline_options = need_package("apache_beam.options.pipeline_options", "beam")
    options = pipeline_options.PipelineOptions(list(arguments))
    with beam.Pipeline(options=options) as pipeline:
        (
            pipeline
            | "Shards" >> beam.Create(list(indices))
            | "Spread" >> beam.Reshuffle()
            | "Prepare" >> beam.Map(job.make)
        )
