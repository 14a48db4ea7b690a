"""Where the time of a run goes: speed, waiting for data, and the share of time that trained."""

import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax

from flamingo_jax.runtime.chips import CHIPS, GIB
from flamingo_jax.train.config import TrainConfig
from flamingo_jax.train.flops import step_flops

# A word of what JAX calls a device → the chip; "v5" without more is v5p.
KINDS = {
    "a100": "a100-40gb",
    "h100": "h100",
    "h200": "h100",
    "v4": "v4",
    "v5 lite": "v5e",
    "v5": "v5p",
    "v6 lite": "v6e",
}


class Throughput:
    """Measures a run's speed, and keeps a ledger of it over restarts.

    Time is productive when it is neither start-up nor compilation, nor `paused`; steps that a crash
    undid do not count. Goodput is the productive share of the time since the run first
    began, the time between its parts included.

    Args:
      ledger: lines are appended to this file; None: this process writes none.
      start: the step that the run goes on from.
      per_step: what a step consumes, by name, such as tokens.
      seconds_at_peak: of a step, see `seconds_at_peak`; gives the model FLOPs utilization (MFU).
      counters: further facts, by name, such as how often the step was compiled.
    """

    def __init__(
        self,
        ledger: Path | None,
        *,
        start: int,
        per_step: Mapping[str, int],
        seconds_at_peak: float | None = None,
        counters: Mapping[str, Callable[[], float]] | None = None,
    ):
        self._ledger = ledger
        self._counters = dict(counters or {})
        self._per_step = per_step
        self._seconds_at_peak = seconds_at_peak
        lines = read_ledger(ledger) if ledger else []
        self._append({"start": start, "time": time.time()})
        self._began, self._productive = replay([*lines, {"start": start, "time": time.time()}])
        self._last: tuple[float, int] | None = None  # when, and after which step
        self._paused: dict[str, float] = {}

    @contextmanager
    def paused(self, what: str, pending: Any = ()) -> Iterator[None]:
        """Excludes the time inside from goodput, by the name of what it was for.

        Not so where the devices were busy all the while: `pending` is not computed at the end.
        """
        begin = time.monotonic()
        try:
            yield
        finally:
            spent = time.monotonic() - begin
            if all(array.is_ready() for array in jax.tree.leaves(pending)):
                self._paused[what] = self._paused.get(what, 0.0) + spent

    def begin(self, step: int, start_up: Mapping[str, float]) -> None:
        """Starts the clock after this step: the first one, which waited for compilation.

        `start_up` is what took how many seconds until then, for the ledger.
        """
        self._append({"first_step": step, "time": time.time(), "start_up": dict(start_up)})
        self._restart(step)

    def facts(self, step: int) -> dict[str, float]:
        """Returns rates per second and shares of the time since the last call.

        There are none after the first step.
        """
        if self._last is None or self._last[1] == step:
            return {}
        seconds = max(time.monotonic() - self._last[0], 1e-9)
        steps = step - self._last[1]
        productive = max(seconds - sum(self._paused.values()), 0.0)
        self._productive += productive
        per_step = {"steps": 1, **self._per_step}
        facts = {f"{name}_per_second": n * steps / seconds for name, n in per_step.items()}
        facts["data_wait"] = self._paused.get("data", 0.0) / seconds
        facts["goodput"] = self._productive / max(time.time() - self._began, 1e-9)
        if self._seconds_at_peak is not None:
            facts["mfu"] = self._seconds_at_peak * steps / seconds
        facts |= _memory() | {name: count() for name, count in self._counters.items()}
        self._append({"step": step, "time": time.time(), "productive": productive, **facts})
        self._restart(step)
        return facts

    def _restart(self, step: int) -> None:
        self._last = time.monotonic(), step
        self._paused.clear()

    def _append(self, line: Mapping[str, Any]) -> None:
        if self._ledger is not None:
            with self._ledger.open("a") as file:
                file.write(json.dumps(line) + "\n")


def seconds_at_peak(config: TrainConfig, devices: Sequence[jax.Device]) -> float | None:
    """Returns a step's seconds if all devices did its matmuls at their peak; None: unknown chips.

    What rematerialisation computes a second time is not counted (arXiv 2204.02311); nor is the
    vision encoder beside a cache of its features.
    """
    kind = devices[0].device_kind.lower()
    chip = next((CHIPS[name] for words, name in KINDS.items() if words in kind), None)
    if chip is None:
        return None
    parts = dict(step_flops(config).by_part)
    if config.data.vision_cache:
        parts.pop("vision", None)
    return sum(part.total for part in parts.values()) / (chip.flops * len(devices))


def replay(lines: list[dict[str, Any]]) -> tuple[float, float]:
    """Returns when the run first began (Unix time), and its productive seconds but undone ones."""
    done: list[tuple[int, float]] = []
    for line in lines:
        if "start" in line:
            done = [(step, seconds) for step, seconds in done if step <= line["start"]]
        elif "productive" in line:
            done.append((line["step"], line["productive"]))
    return lines[0]["time"], sum(seconds for _, seconds in done)


def read_ledger(path: Path) -> list[dict[str, Any]]:
    """Reads the lines of a ledger, but for one that a kill left half-written."""
    lines = []
    for line in path.read_text().splitlines() if path.exists() else ():
        try:
            lines.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return lines


def _memory() -> dict[str, float]:
    """Returns the fullest local device's memory; nothing where the platform does not tell (CPU)."""
    stats = [s for device in jax.local_devices() if (s := device.memory_stats())]
    return {
        f"memory_{name}_gib": max(s[key] for s in stats) / GIB
        for name, key in (("in_use", "bytes_in_use"), ("peak", "peak_bytes_in_use"))
        if stats and all(key in s for s in stats)
    }
