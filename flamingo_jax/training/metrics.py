"""What a run says: a line to read, JSON lines to plot, TensorBoard to watch."""

import json
import time
from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path

from tensorboardX import SummaryWriter


class MetricWriter:
    """Writes the metrics of a run into its working directory, and a progress line to the terminal.

    Continues a run at `start`: lines of later steps, which a killed run may have left, are dropped,
    so that `metrics.jsonl` has every step once.
    """

    def __init__(self, workdir: Path, *, start: int, num_steps: int, examples_per_step: int):
        self._path = workdir / "metrics.jsonl"
        _drop_after(self._path, start)
        self._lines = self._path.open("a")
        self._tensorboard = SummaryWriter(str(workdir / "tensorboard"), purge_step=start + 1)
        self._num_steps = num_steps
        self._examples_per_step = examples_per_step
        self._last: tuple[float, int] | None = None  # when, and after which step

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        """Record the metrics of update number `step` (the first is 1)."""
        json.dump({"step": step, **metrics}, self._lines)
        self._lines.write("\n")
        self._lines.flush()
        losses = "  ".join(
            f"{name.removeprefix('loss/')} {value:.4f}"
            for name, value in metrics.items()
            if name.split("/")[0] == "loss"
        )
        line = f"step {step:>{len(str(self._num_steps))}}/{self._num_steps}  {losses}"
        speed = self._examples_per_second(step)
        if speed is not None:
            remaining = (self._num_steps - step) * self._examples_per_step / speed
            line += f"  {speed:.0f} examples/s  ETA {timedelta(seconds=round(remaining))}"
            metrics = {**metrics, "examples_per_second": speed}
        print(line, flush=True)
        for name, value in metrics.items():
            self._tensorboard.add_scalar(name, value, step)

    def close(self) -> None:
        self._lines.close()
        self._tensorboard.close()

    def _examples_per_second(self, step: int) -> float | None:
        """Since the last line; None at the first one, which waited for compilation."""
        now = time.monotonic()
        last, self._last = self._last, (now, step)
        if last is None or last[1] == step:
            return None
        return (step - last[1]) * self._examples_per_step / max(now - last[0], 1e-9)


def read_metrics(workdir: Path) -> list[dict[str, float]]:
    """All recorded metrics of a run, in the order of its steps."""
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def _drop_after(path: Path, step: int) -> None:
    if not path.exists():
        return
    kept = []
    for line in path.read_text().splitlines():
        try:
            record = json.loads(line)
        except json.JSONDecodeError:  # the process was killed while writing it
            continue
        if record["step"] <= step:
            kept.append(line + "\n")
    temporary = path.with_suffix(".tmp")
    temporary.write_text("".join(kept))
    temporary.replace(path)
