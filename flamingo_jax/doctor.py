"""Check a cluster before a long run: `python -m flamingo_jax.doctor --expect-devices=64`.

Run it as training is run: one process per task of the launcher. Exits with 1 and one line per check
that failed.
"""

import contextlib
import importlib.metadata
import json
import platform
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from flamingo_jax import cli
from flamingo_jax.parallel.multihost import initialized, is_lead_process
from flamingo_jax.train.kernels import compare_attention

EXPECT_DEVICES = flags.DEFINE_integer("expect-devices", None, "devices of all hosts together")
SHARED = flags.DEFINE_string("shared", None, "a directory that all hosts share; tried out if given")
MAX_SKEW = flags.DEFINE_float("max-skew", 1.0, "seconds by which clocks may differ")
MIN_BANDWIDTH = flags.DEFINE_float("min-bandwidth", 0.0, "GB/s that an all-reduce must reach")
MEGABYTES = flags.DEFINE_integer("megabytes", 64, "of the array that is reduced", lower_bound=1)

PACKAGES = ("flamingo-jax", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy")
MESSAGE_BYTES = 4096
SEEN_WITHIN_SECONDS = 30.0  # a network filesystem may show new files late
Result = tuple[bool, str]  # passed, and what was found


def check_devices(expected: int | None) -> Result:
    """Checks that each host has as many devices as the others, and all together as expected."""
    counts = [int(count) for count in np.ravel(gather(jax.local_device_count()))]
    total = sum(counts)
    found = f"{total} {jax.devices()[0].device_kind} on {len(counts)} process(es)"
    if len(set(counts)) > 1:
        uneven = ", ".join(f"process {i} has {count}" for i, count in enumerate(counts))
        return False, f"{found}: {uneven}"
    if expected is not None and total != expected:
        return False, f"{found}, expected {expected}: {counts[0]} on each process"
    return True, f"{found}, {counts[0]} on each"


def check_all_reduce(megabytes: int, minimum: float) -> Result:
    """Checks that the sum over all devices is right, and as fast as wanted."""
    devices = jax.devices()
    mesh = Mesh(np.array(devices), ("all",), axis_types=(AxisType.Auto,))
    rows = NamedSharding(mesh, PartitionSpec("all"))
    size = megabytes * 2**20 // 4
    shape = len(devices), size

    def row(index: Any) -> np.ndarray:
        return np.full((1, size), (index[0].start or 0) + 1, np.float32)

    numbered = jax.make_array_from_callback(shape, rows, row)
    total = jax.jit(
        lambda x: jnp.sum(x, axis=0), out_shardings=NamedSharding(mesh, PartitionSpec())
    )
    result = np.asarray(total(numbered).addressable_data(0))
    expected = len(devices) * (len(devices) + 1) / 2
    if not (result == expected).all():
        return False, f"the sum over devices is {result[0]}, expected {expected}"
    seconds = min(_seconds(lambda: total(numbered).block_until_ready()) for _ in range(3))
    speed = 2 * (len(devices) - 1) / len(devices) * size * 4 / seconds / 1e9
    found = f"right, {speed:.2f} GB/s per device with {megabytes} MB"
    return speed >= minimum, found if speed >= minimum else f"{found}, expected {minimum}"


def check_attention() -> Result:
    """Checks that the attention kernel of these devices is about as near to float32 as plain
    attention is."""
    kernel, distance, plain = compare_attention()
    found = f"{kernel} is {distance:.2%} from float32, plain attention {plain:.2%}"
    return distance <= 2 * plain, found


def check_shared_directory(directory: Path) -> Result:
    """Checks that every process sees what every other wrote."""
    own = directory / f".doctor-{jax.process_index()}"
    token = int(gather(time.time_ns() % 2**31)[0])  # the first process's, for all
    reason = ""
    try:
        own.write_text(str(token))
    except OSError as error:
        reason = f"{type(error).__name__}: {error.strerror}"
    multihost_utils.sync_global_devices("doctor wrote")
    missing = _unseen(directory, token)
    reports = exchange({"reason": reason, "missing": missing})
    with contextlib.suppress(OSError):
        own.unlink()
    for process, report in enumerate(reports):
        if report["reason"]:
            return False, f"process {process} cannot write to {directory}: {report['reason']}"
        if report["missing"]:
            return False, (
                f"process {process} does not see in {directory} what was written by "
                f"{report['missing']}: is it on a filesystem that all hosts share?"
            )
    return True, f"{directory} is shared by {len(reports)} process(es)"


def check_clocks(maximum: float) -> Result:
    """Checks that the clocks of the hosts agree."""
    gather(0)  # so that all read their clocks at about the same time
    now = time.time()
    # As two parts: devices compute in 32 bits.
    parts = np.array([now // 1000, round(now % 1000 * 1e6)], np.int32)
    times = gather(parts).astype(np.float64) @ np.array([1000.0, 1e-6])
    skew = float(times.max() - times.min())
    found = f"clocks differ by at most {skew:.3f} s"
    return skew <= maximum, found if skew <= maximum else f"{found}, allowed are {maximum} s"


def check_versions(own: dict[str, str] | None = None) -> Result:
    """Checks that all hosts have the same versions."""
    own = {name: importlib.metadata.version(name) for name in PACKAGES} if own is None else own
    reports = exchange({"python": platform.python_version(), **own})
    differing = {
        name: sorted({report[name] for report in reports})
        for name in reports[0]
        if len({report[name] for report in reports}) > 1
    }
    if differing:
        listed = "; ".join(f"{name} is {' and '.join(found)}" for name, found in differing.items())
        return False, f"versions differ between processes: {listed}"
    return True, ", ".join(f"{name} {version}" for name, version in reports[0].items())


def gather(value: Any) -> np.ndarray:
    """Gathers a small integer array of every process; the first axis is the process."""
    array = np.asarray(value, np.int32)
    if jax.process_count() == 1:
        return array[None]
    return np.asarray(multihost_utils.process_allgather(array))


def exchange(report: dict[str, Any]) -> list[dict[str, Any]]:
    """Gathers a report of every process, in the order of the processes."""
    encoded = json.dumps(report).encode()[:MESSAGE_BYTES].ljust(MESSAGE_BYTES)
    return [
        json.loads(row.astype(np.uint8).tobytes())
        for row in gather(np.frombuffer(encoded, np.uint8))
    ]


def _seconds(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def _unseen(directory: Path, token: int) -> list[int]:
    """Returns the processes whose file with this token does not show up in time."""
    deadline = time.monotonic() + SEEN_WITHIN_SECONDS
    missing = list(range(jax.process_count()))
    while missing:
        missing = [process for process in missing if not _has_token(directory, process, token)]
        if not missing or time.monotonic() > deadline or not directory.is_dir():
            break
        time.sleep(0.2)
    multihost_utils.sync_global_devices("doctor read")
    return missing


def _has_token(directory: Path, process: int, token: int) -> bool:
    try:
        return (directory / f".doctor-{process}").read_text() == str(token)
    except OSError:
        return False


def main(argv: Sequence[str]) -> int:
    cli.parse_flags(argv)
    with initialized():
        checks: dict[str, Callable[[], Result]] = {
            "devices": lambda: check_devices(EXPECT_DEVICES.value),
            "all-reduce": lambda: check_all_reduce(MEGABYTES.value, MIN_BANDWIDTH.value),
            "attention": check_attention,
            "clocks": lambda: check_clocks(MAX_SKEW.value),
            "versions": check_versions,
        }
        if SHARED.value:
            directory = Path(SHARED.value)
            checks["shared directory"] = lambda: check_shared_directory(directory)
        failed = False
        for name, check in checks.items():
            passed, found = check()
            failed |= not passed
            if is_lead_process():
                verdict, stream = ("ok", sys.stdout) if passed else ("FAILED", sys.stderr)
                print(f"{verdict}: {name}: {found}", file=stream, flush=True)
        return int(failed)


if __name__ == "__main__":
    cli.run(main)
