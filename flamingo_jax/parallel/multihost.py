"""Several processes as one run: how they find each other, and how they agree to stop."""

import importlib.util
import os
import re
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from flamingo_jax import cli
from flamingo_jax.errors import UserError
from flamingo_jax.runtime.compilation_cache import keep_only_what_is_shared

DEAD_AFTER_SECONDS = 60
EXPLICIT = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")


@contextmanager
def initialized(dead_after_seconds: int = DEAD_AFTER_SECONDS) -> Iterator[None]:
    """Joins the processes of this run, where the environment names any; see `cluster_from_env`.

    A process that gives no sign of life for so long is taken for dead, and the others end.

    To be entered before anything else of JAX is used. An error inside ends this process at once:
    the usual way out waits for the others, who may be waiting for this one.
    """
    found = cluster_from_env(os.environ)
    if found is None:
        yield
        return
    jax.config.update("jax_enable_preemption_service", False)  # `StopOnSignal` handles signals
    jax.distributed.initialize(
        **found,
        heartbeat_timeout_seconds=dead_after_seconds,
        shutdown_timeout_seconds=DEAD_AFTER_SECONDS,
    )
    if jax.process_count() > 1:
        keep_only_what_is_shared()
    try:
        yield
    except Exception as error:
        if jax.process_count() == 1:
            raise
        status = cli.report(error) if isinstance(error, UserError) else 1
        if status == 1:
            traceback.print_exc()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def cluster_from_env(environment: Mapping[str, str]) -> dict[str, Any] | None:
    """Returns what `jax.distributed.initialize` must be told here; None: this process is alone.

    In this order: JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID (an indexed
    Kubernetes job's JOB_COMPLETION_INDEX stands for the last); a SLURM step of several tasks; a
    host with TPUs, about which JAX asks the platform.

    Raises:
      UserError: only some of the three variables are set; GPUs that a SLURM step leaves idle.
    """
    if any(name in environment for name in EXPLICIT[:2]):
        values = {name: environment.get(name) for name in EXPLICIT}
        values[EXPLICIT[2]] = values[EXPLICIT[2]] or environment.get("JOB_COMPLETION_INDEX")
        missing = [name for name, value in values.items() if not value]
        if missing:
            raise UserError(f"{' and '.join(missing)} not set; to start by hand, set all of "
                            f"{', '.join(EXPLICIT)}")  # fmt: skip
        address, count, index = values.values()
        return {
            "coordinator_address": address,
            "num_processes": int(count or 0),
            "process_id": int(index or 0),
            "cluster_detection_method": "deactivate",  # it would hide all devices but one
        }
    # Not SLURM_NTASKS, which a batch script's own shell has, too: there, no other task runs.
    if int(environment.get("SLURM_STEP_NUM_TASKS", 1)) > 1:
        return {"local_device_ids": _slurm_devices(environment)}
    if environment.get("JAX_PLATFORMS", "").split(",")[0] in ("", "tpu") and _has_tpus():
        return {}
    return None


def _has_tpus() -> bool:
    chips = [*Path("/dev").glob("accel[0-9]*"), *Path("/dev/vfio").glob("[0-9]*")]
    return bool(chips) and importlib.util.find_spec("libtpu") is not None


def _slurm_devices(environment: Mapping[str, str]) -> list[int]:
    """Returns the GPUs of this task: all where it is alone on its node, else its own.

    Left to itself, JAX takes one per task, and of a node with one task leaves all but one idle.

    Raises:
      UserError: the node has neither one task nor one per GPU.
    """
    visible = environment.get("CUDA_VISIBLE_DEVICES") or environment.get("SLURM_JOB_GPUS")
    on_node = int(environment.get("SLURM_GPUS_ON_NODE", 0))
    count = len(visible.split(",")) if visible else on_node or 1
    tasks = _slurm_tasks(environment)
    if 1 in (count, tasks):
        return list(range(count))
    if {count, on_node or count} != {tasks}:  # a task bound to two GPUs of four sees two
        raise UserError(
            f"this SLURM task sees {count} of {on_node or count} GPUs and is one of {tasks} on its "
            "node, expected one task per GPU or one per node: set --ntasks-per-node to the GPUs of "
            "a node, or to 1"
        )
    return [int(environment["SLURM_LOCALID"])]


def _slurm_tasks(environment: Mapping[str, str]) -> int:
    """Counts the tasks of this node; "8(x4),2" says eight on each of four nodes, two on a fifth."""
    parts = re.findall(r"(\d+)(?:\(x(\d+)\))?", environment["SLURM_STEP_TASKS_PER_NODE"])
    counts = [int(tasks) for tasks, nodes in parts for _ in range(int(nodes or 1))]
    return counts[int(environment["SLURM_NODEID"])]


def is_lead_process() -> bool:
    """Tells whether this process logs, and writes what the processes share."""
    return jax.process_index() == 0


def print0(message: str) -> None:
    """Prints, in the process that logs."""
    if is_lead_process():
        print(message, flush=True)


def any_process(flag: bool) -> bool:
    """Tells whether the flag is set in any process. Waits for all of them."""
    return bool(multihost_utils.process_allgather(flag).any())


class StopVote:
    """Lets all processes stop after the same step.

    Their votes meet on the devices: `cast` sends this process's vote to their queue, ahead of a
    step, and `result` reads the largest when that step has long begun. Nothing waits.

    Args:
      vote: returns this process's, 0 for nothing to say.
    """

    def __init__(self, mesh: Mesh, vote: Callable[[], int]):
        self._vote = vote
        self._sharding = NamedSharding(mesh, PartitionSpec(mesh.axis_names))
        self._local_devices = len(mesh.local_devices)
        self._max = jax.jit(jnp.max, out_shardings=NamedSharding(mesh, PartitionSpec()))
        self._pending: jax.Array | None = None

    def cast(self) -> None:
        """Sends this process's vote; on all processes."""
        if jax.process_count() == 1:
            return
        # One number tells the largest vote, and whose it was.
        vote = self._vote() * jax.process_count()
        own = np.full(self._local_devices, vote and vote + jax.process_index(), np.int32)
        self._pending = self._max(jax.make_array_from_process_local_data(self._sharding, own))

    def result(self) -> tuple[int, int]:
        """Returns the largest vote that the processes cast last, and whose it was."""
        if jax.process_count() == 1:
            return self._vote(), 0
        if self._pending is None:
            self.cast()
        vote, process = divmod(int(np.asarray(self._pending)), jax.process_count())
        return vote, process
