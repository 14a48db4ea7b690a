"""What a run says: a line to read, JSON lines to plot, TensorBoard to watch."""

import contextlib
import json
from collections.abc import Iterator, Mapping
from datetime import timedelta
from functools import cached_property
from pathlib import Path
from typing import Any

import jax

from flamingo_jax.files import write_text


class MetricWriter:
    """Writes the metrics of a run into its working directory, and a progress line to the terminal.

    Continues a run at `start`: lines of later steps, which a killed run may have left, are dropped,
    so that `metrics.jsonl` has every step once. Without a directory it does nothing: of several
    processes, one writes.
    """

    def __init__(self, workdir: Path | None, *, start: int, num_steps: int):
        self._workdir = workdir
        self._start = start
        self._num_steps = num_steps
        if workdir is not None:
            path = workdir / "metrics.jsonl"
            _drop_after(path, start)
            self._lines = path.open("a")

    @cached_property
    def _tensorboard(self) -> Any:
        """Opened by the first write, while the devices have a step to do: importing it takes
        seconds where PyTorch is installed."""
        from tensorboardX import SummaryWriter

        assert self._workdir is not None
        return SummaryWriter(str(self._workdir / "tensorboard"), purge_step=self._start + 1)

    def write(self, step: int, metrics: Mapping[str, float], facts: Mapping[str, float]) -> None:
        """Records the metrics of update number `step` (the first is 1).

        `facts` are about speed; they differ from run to run, so they are not in `metrics.jsonl`.
        """
        if self._workdir is None:
            return
        json.dump({"step": step, **metrics}, self._lines)
        self._lines.write("\n")
        self._lines.flush()
        losses = "  ".join(
            f"{name.removeprefix('loss/')} {value:.4f}"
            for name, value in metrics.items()
            if name.split("/")[0] == "loss"
        )
        number = f"{step:>{len(str(self._num_steps))}}/{self._num_steps}"
        print(f"step {number}  {losses}{self._describe(step, facts)}", flush=True)
        for name, value in metrics.items():
            self._tensorboard.add_scalar(name, value, step)
        for name, value in facts.items():
            self._tensorboard.add_scalar(f"speed/{name}", value, step)

    def _describe(self, step: int, facts: Mapping[str, float]) -> str:
        if not facts:
            return ""
        remaining = timedelta(seconds=round((self._num_steps - step) / facts["steps_per_second"]))
        words = [f"{facts['examples_per_second']:.0f} examples/s", f"ETA {remaining}"]
        if "mfu" in facts:
            words.append(f"MFU {facts['mfu']:.1%}")
        if facts["data_wait"] > 0.05:
            words.append(f"waiting for data {facts['data_wait']:.0%}")
        return "".join(f"  {word}" for word in words)

    def close(self) -> None:
        if self._workdir is not None:
            self._lines.close()
            if "_tensorboard" in vars(self):
                self._tensorboard.close()


def read_metrics(workdir: Path) -> list[dict[str, float]]:
    """Reads all metrics of a run, in the order of its steps."""
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def is_recorded(workdir: Path, step: int) -> bool:
    """Tells whether a step has its line."""
    return any(record["step"] == step for record, _ in _whole_lines(workdir / "metrics.jsonl"))


def floats(metrics: Mapping[str, Any]) -> dict[str, float]:
    """Returns metrics as they are written; waits for the devices."""
    return {name: float(value) for name, value in jax.device_get(dict(metrics)).items()}


def _drop_after(path: Path, step: int) -> None:
    if path.exists():
        kept = (line for record, line in _whole_lines(path) if record["step"] <= step)
        write_text(path, "".join(f"{line}\n" for line in kept))


def _whole_lines(path: Path) -> Iterator[tuple[dict[str, float], str]]:
    """Reads lines, each as what it says and as text, but for one that a kill left half-written."""
    for line in path.read_text().splitlines() if path.exists() else ():
        with contextlib.suppress(json.JSONDecodeError):
            yield json.loads(line), line
