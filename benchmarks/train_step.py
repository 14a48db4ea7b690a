"""A training step, side by side with the original's way in PyTorch.

The same weights and batch for both, in turns; losses and gradients of the first steps must agree.
Each side is a process of its own, so that its peak memory is its own, too: above the imports on a
CPU, the accelerator's on a GPU. Then the step's parts, each alone: `layers` are the language
model's with the cross-attention between them. MFU is against the ceiling of matmuls that this run
measures; the floor is what the step's matmuls alone take at the better of both ceilings.

With `--data published`, documents have the tokens and images of OpenFlamingo's own training data,
by their medians: the original pads them to the same shapes as ever, this project packs them.

    python -m benchmarks.train_step --json figures.json
    python -m benchmarks.train_step --data published
    python -m benchmarks.train_step --device gpu --size 9b --layers 8
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Sequence
from typing import Any, get_args

from benchmarks import report
from benchmarks.models import SIZES
from benchmarks.train_step_rows import Data, run_config
from benchmarks.train_step_sides import PARTS, serve
from flamingo_jax.errors import UserError
from flamingo_jax.parallel.remat import RematPolicy
from flamingo_jax.train.config import TrainConfig

CORES = 2  # of a CPU, for either side
AGREE = {"float32": 1e-4, "bfloat16": 3e-2}  # within this share


class Side:
    """A process that runs one side; see `serve`."""

    def __init__(self, side: str, flags: Sequence[str]):
        command = [sys.executable, "-m", "benchmarks.train_step", *flags, "--side", side]
        self.name = side
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def run(self, what: str) -> dict[str, Any]:
        assert self.process.stdin
        assert self.process.stdout
        print(what, file=self.process.stdin, flush=True)
        line = self.process.stdout.readline()
        if not line:
            raise UserError(f"the side {self.name!r} of the benchmark ended; see what it printed")
        return json.loads(line)

    def close(self) -> None:
        assert self.process.stdin
        self.process.stdin.close()
        self.process.wait()


def check_results(steps: Sequence[dict[str, dict[str, Any]]], dtype: str) -> None:
    """UserError: a loss or norm of the first two steps differs: other work was timed."""
    for number, both in enumerate(steps[:2]):
        for name in both["ours"]["results"]:
            ours, theirs = (both[side]["results"][name] for side in ("ours", "original"))
            if not abs(ours - theirs) <= AGREE[dtype] * abs(theirs):  # nor is NaN like anything
                raise UserError(
                    f"step {number + 1}: {name} is {ours:.6g}, the original's {theirs:.6g}: they "
                    "do not do the same work"
                )


def compare(
    table: report.Report, sides: dict[str, Side], dtype: str, turns: int
) -> dict[str, float]:
    """Adds step and memory to the table, and gives each side's seconds per step."""
    steps = [{name: side.run("step") for name, side in sides.items()} for _ in range(turns + 2)]
    has_peer = "original" in sides
    if has_peer:
        check_results(steps, dtype)
    timed = {name: [both[name]["seconds"] for both in steps[2:]] for name in sides}
    medians = {name: statistics.median(times) for name, times in timed.items()}
    ratios = [a / b for a, b in zip(*timed.values(), strict=True)] if has_peer else [1.0]
    peaks = {name: steps[-1][name]["peak_bytes"] / 2**20 for name in sides}
    table.add(
        "step_time",
        medians["ours"],
        medians.get("original"),
        unit="s",
        ratio=statistics.median(ratios),
    )
    table.add("peak_memory", peaks["ours"], peaks.get("original"), unit="MiB")
    first = {name: steps[0][name]["seconds"] for name in sides}
    table.add("first_step", first["ours"], first.get("original"), unit="s")
    compiled = steps[-1]["ours"]["programs"] - steps[0]["ours"]["programs"]
    table.add("compiled_after_first_step", compiled)
    return medians


def compare_parts(table: report.Report, sides: dict[str, Side], turns: int) -> None:
    for part in PARTS:
        for side in sides.values():
            side.run(part)
        times = [{n: side.run(part)["seconds"] for n, side in sides.items()} for _ in range(turns)]
        medians = {name: statistics.median(t[name] for t in times) for name in sides}
        table.add(part, medians["ours"], medians.get("original"), unit="s")


def utilization(
    table: report.Report,
    config: TrainConfig,
    size: str,
    seconds: dict[str, float],
    device: str | None,
) -> None:
    """FLOPs of a step, the measured ceilings of matmuls, the share of ours that our step reaches,
    and the floor: the seconds of its FLOPs at the better ceiling, beside the original's step.

    `size`: of `benchmarks.ceilings`. `device`: PyTorch's, see `report.torch_device`.

    What rematerialisation computes a second time is not counted.
    """
    from benchmarks.ceilings import SIZES, matmul_flops_per_second
    from flamingo_jax.train.flops import step_flops

    flops = step_flops(config).total
    ours, theirs = matmul_flops_per_second(SIZES[size], config.model.dtype, device)
    table.add("work", flops / 1e12, unit="TFLOP")
    table.add("matmul_ceiling", ours / 1e12, theirs and theirs / 1e12, unit="TFLOP/s")
    table.add("mfu", flops / seconds["ours"] / ours)
    table.add("floor", flops / max(ours, theirs or 0.0), seconds.get("original"), unit="s")


def main(argv: Sequence[str]) -> None:
    parser = report.parser(__doc__, sizes=tuple(SIZES))
    parser.add_argument("--turns", type=int, default=7, help="timed steps of each")
    parser.add_argument("--layers", type=int, default=0, help="of the decoder; default: all")
    parser.add_argument("--rows", type=int, default=1, help="multiplies the rows of the batch")
    parser.add_argument(
        "--data", choices=get_args(Data), default="full", help="how documents fill their rows"
    )
    parser.add_argument("--remat", choices=get_args(RematPolicy), default="elementwise")
    parser.add_argument("--side", choices=("ours", "original"), help=argparse.SUPPRESS)
    flags = argv[1:]
    side = parser.parse_args(flags).side
    args = parser.parse_args(flags) if side else report.parse(parser, argv)
    if args.device == "cpu":
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:CORES])
    config = run_config(args.size, args.layers, args.rows, args.remat, args.data)
    torch_device = report.torch_device(args.device)
    if side:
        device = (torch_device or "") if side == "original" else args.device
        serve(side, config, args.data, device)
        return

    table = report.Report("train_step", args)
    names = ("ours", "original") if torch_device else ("ours",)
    if not torch_device:
        table.note("no PyTorch for this device: without the original's side")
    sides = {name: Side(name, flags) for name in names}
    seconds = compare(table, sides, config.model.dtype, args.turns)
    compare_parts(table, sides, args.turns)
    for process in sides.values():
        process.close()
    size = "tiny" if args.size == "tiny" else "small" if args.device == "cpu" else "full"
    utilization(table, config, size, seconds, torch_device)
    table.write()


if __name__ == "__main__":
    report.run(main)
