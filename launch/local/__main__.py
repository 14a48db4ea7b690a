"""Run a command as several processes of one run, on this machine.

python -m launch.local --processes 2 --devices-per-process 4 -- \
    python -m flamingo_jax.train --config=configs/digits.py --workdir=runs/two

Each process gets fake CPU devices (--devices-per-process) or GPUs of its own (--gpus-per-process).
Signals go on to all of them. When one fails, the others get --grace seconds to end by themselves.
"""

import argparse
import os
import shlex
import signal
import socket
import subprocess
import sys
import threading
import time
from typing import IO

FAKE = "--xla_force_host_platform_device_count"
FORWARDED = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)


def main() -> int:
    arguments = parse(sys.argv[1:])
    address = f"localhost:{arguments.port or free_port()}"
    settings = [environment(arguments, index, address) for index in range(arguments.processes)]
    if arguments.dry_run:
        for changes in settings:
            assignments = [f"{name}={shlex.quote(value)}" for name, value in changes.items()]
            print(" ".join([*assignments, shlex.join(arguments.command)]))
        return 0
    group = [
        subprocess.Popen(
            arguments.command,
            env=os.environ | changes,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            start_new_session=True,  # Ctrl-C reaches them through us alone, and only once
        )
        for changes in settings
    ]
    for index, process in enumerate(group):
        print(f"process {index} has pid {process.pid}", file=sys.stderr, flush=True)
    for number in FORWARDED:
        signal.signal(number, lambda number, _frame: send(group, number))
    printers = [
        threading.Thread(target=copy_lines, args=(process.stdout, f"[{index}] "))
        for index, process in enumerate(group)
    ]
    for printer in printers:
        printer.start()
    status = wait(group, arguments.grace)
    for printer in printers:
        printer.join(timeout=5)
    return status


def parse(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m launch.local",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--processes", type=int, required=True)
    devices = parser.add_mutually_exclusive_group()
    devices.add_argument("--devices-per-process", type=int, help="fake CPU devices of each")
    devices.add_argument("--gpus-per-process", type=int, help="GPUs of each, in order")
    parser.add_argument("--port", type=int, help="of the coordinator; default: a free one")
    parser.add_argument("--grace", type=float, default=30.0, help="seconds after a failure")
    parser.add_argument("--dry-run", action="store_true", help="print what would be run")
    parser.add_argument("command", nargs=argparse.REMAINDER, help="after --")
    arguments = parser.parse_args(argv)
    if arguments.command[:1] == ["--"]:
        del arguments.command[0]
    if not arguments.command:
        parser.error("no command given; put it after --")
    if arguments.processes < 1:
        parser.error(f"--processes is {arguments.processes}, it must be at least 1")
    return arguments


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("localhost", 0))
        return found.getsockname()[1]


def environment(arguments: argparse.Namespace, index: int, address: str) -> dict[str, str]:
    """What is set for one process."""
    changes = {
        "JAX_COORDINATOR_ADDRESS": address,
        "JAX_NUM_PROCESSES": str(arguments.processes),
        "JAX_PROCESS_ID": str(index),
    }
    if arguments.devices_per_process:
        others = [flag for flag in os.environ.get("XLA_FLAGS", "").split() if FAKE not in flag]
        changes["JAX_PLATFORMS"] = "cpu"
        changes["XLA_FLAGS"] = " ".join([*others, f"{FAKE}={arguments.devices_per_process}"])
    if arguments.gpus_per_process:
        first = index * arguments.gpus_per_process
        own = range(first, first + arguments.gpus_per_process)
        changes["CUDA_VISIBLE_DEVICES"] = ",".join(map(str, own))
    return changes


def copy_lines(lines: IO[str], prefix: str) -> None:
    for line in lines:
        sys.stdout.write(prefix + line if line.endswith("\n") else f"{prefix}{line}\n")
        sys.stdout.flush()


def send(group: list[subprocess.Popen], number: int) -> None:
    for process in group:
        if process.poll() is None:
            os.kill(process.pid, number)


def wait(group: list[subprocess.Popen], grace: float) -> int:
    """Until all have ended; the status of the first that failed, 0 if none did."""
    status, failed = 0, 0.0
    running = group
    while running:
        time.sleep(0.05)
        for process in (ended := [p for p in running if p.poll() is not None]):
            if process.returncode and not status:
                status, failed = process.returncode, time.monotonic()
                what = f"process {group.index(process)} {describe(status)}"
                print(what, file=sys.stderr, flush=True)
        running = [process for process in running if process not in ended]
        if status and time.monotonic() > failed + grace:
            for process in running:
                os.killpg(process.pid, signal.SIGKILL)
    return status if status >= 0 else 128 - status  # as shells do for signals


def describe(status: int) -> str:
    if status < 0:
        return f"was ended by {signal.Signals(-status).name}"
    return f"failed with status {status}"


if __name__ == "__main__":
    sys.exit(main())
