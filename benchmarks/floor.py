r"""What one training step must at least take: operations and bytes of each part over the ceilings.

Ceilings are the file that `benchmarks.ceilings` wrote on the machine in question, or a chip's data
sheet. One device has all rows of the config: give it its share of them by overrides.

    python -m benchmarks.floor --ceilings ceilings.json --config=configs/digits.py
    python -m benchmarks.floor --chip h100 --config=configs/of3b.py \
        --config.streams.mmc4.batch_size=8 --config.streams.laion.batch_size=16
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from flamingo_jax import cli
from flamingo_jax.errors import UserError
from flamingo_jax.evaluate.results import write_json
from flamingo_jax.runtime.chips import CHIPS
from flamingo_jax.train.config import TrainConfig, complete
from flamingo_jax.train.roofline import Ceilings, PartFloor, floor_seconds, step_floor

COLUMNS = ("TFLOP", "again", "GB weights", "GB activ.", "ms arithm.", "ms memory", "bound by")
TERA, GIGA, MILLI = 1e12, 1e9, 1e-3


def measured_ceilings(path: Path, dtype: str) -> Ceilings:
    """Reads ceilings. UserError: no such file, or not one of `benchmarks.ceilings`."""
    try:
        found = json.loads(path.read_text())
        return Ceilings(found[f"ceiling_{dtype}"] * TERA, found["ceiling_memory"] * GIGA)
    except (OSError, ValueError, KeyError) as error:
        raise UserError(
            f"--ceilings {path}: {error!r}; expected the file that "
            "`python -m benchmarks.ceilings --json FILE` writes"
        ) from None


def chip_ceilings(name: str, dtype: str) -> Ceilings:
    """UserError: the data sheets' matmul figures here are for bfloat16."""
    if dtype != "bfloat16":
        raise UserError(
            f"--chip {name} knows the peak of bfloat16, config.model.dtype is {dtype}: give "
            "--config.model.dtype=bfloat16, or measure the machine with benchmarks.ceilings"
        )
    return Ceilings(CHIPS[name].flops, CHIPS[name].bandwidth)


def part_facts(floor: PartFloor, ceilings: Ceilings) -> dict[str, Any]:
    arithmetic, memory = floor.arithmetic_seconds(ceilings), floor.memory_seconds(ceilings)
    return {
        "tflop": floor.flops / TERA,
        "tflop_recomputed": floor.recomputed / TERA,
        "gigabytes_weights": floor.weight_bytes / GIGA,
        "gigabytes_activations": floor.activation_bytes / GIGA,
        "ms_arithmetic": arithmetic / MILLI,
        "ms_memory": memory / MILLI,
        "bound": "arithmetic" if arithmetic >= memory else "memory",
    }


def facts(floors: dict[str, PartFloor], ceilings: Ceilings) -> dict[str, Any]:
    """Of every part, and of the whole update; MFU is that of a program at the floor."""
    total = floor_seconds(floors, ceilings)
    needed = sum(floor.flops for floor in floors.values())
    return {
        "parts": {name: part_facts(floor, ceilings) for name, floor in floors.items()},
        "tflops_ceiling": ceilings.flops / TERA,
        "gigabytes_per_second_ceiling": ceilings.bandwidth / GIGA,
        "ms": total / MILLI,
        "mfu": needed / ceilings.flops / total,
    }


def text(found: dict[str, Any]) -> str:
    lines = [" " * 16 + "".join(name.rjust(12) for name in COLUMNS)]
    for name, part in found["parts"].items():
        *numbers, bound = part.values()
        lines.append(f"{name:16}" + "".join(f"{n:12.4g}" for n in numbers) + bound.rjust(12))
    return "\n".join(
        [
            *lines,
            f"ceilings: {found['tflops_ceiling']:.4g} TFLOP/s, "
            f"{found['gigabytes_per_second_ceiling']:.4g} GB/s",
            f"floor of the step: {found['ms']:.4g} ms; MFU there: {found['mfu']:.1%}",
        ]
    )


def main(argv: Sequence[str]) -> None:
    program, *given = argv
    overrides = [argument for argument in given if argument.startswith("--config")]
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--ceilings", type=Path, help="what `benchmarks.ceilings --json` wrote")
    source.add_argument("--chip", choices=CHIPS, help="peaks of its data sheet instead")
    args = parser.parse_args([argument for argument in given if argument not in overrides])
    config = cli.parse_config([program, *overrides], TrainConfig, complete)
    dtype = config.model.dtype
    ceilings = (
        measured_ceilings(args.ceilings, dtype)
        if args.ceilings
        else chip_ceilings(args.chip, dtype)
    )
    found = facts(step_floor(config), ceilings)
    print(text(found))
    if args.json:
        write_json(args.json, found)


if __name__ == "__main__":
    cli.run(main)
