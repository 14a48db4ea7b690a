"""How work and memory grow with text, images, model and rematerialisation: counted, not measured.

Per device of 8 under FSDP, 8 interleaved rows each. Operations are those of matmuls; memory is the
parameters, optimizer state and batch of one device, exactly, and the activations that are kept for
the backward pass; what the compiler needs besides is told by `python -m flamingo_jax.plan`.

    python -m benchmarks.growth --json growth.json --picture docs/images/cost-growth.png
"""

import argparse
import dataclasses
import runpy
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from flamingo_jax import cli
from flamingo_jax.evaluate.results import write_json
from flamingo_jax.parallel.mesh import MeshConfig
from flamingo_jax.plan.account import device_bytes
from flamingo_jax.plan.targets import open_target, prepare_backends
from flamingo_jax.runtime.chips import GIB
from flamingo_jax.schema import build
from flamingo_jax.train.config import TrainConfig
from flamingo_jax.train.roofline import OPTIMIZER, step_floor
from flamingo_jax.train.setup import set_up

CONFIGS = Path(__file__).parents[1] / "configs"
DEVICES, ROWS = 8, 8
MODELS = ("3b", "4b", "9b")
REMATS = ("full", "dots", "none")
AXES: dict[str, tuple[str, Sequence[Any]]] = {
    "text": ("tokens per row", (128, 256, 512, 1024)),
    "images": ("images per row", (1, 3, 6, 12, 24)),
    "model": ("model", MODELS),
    "remat": ("rematerialisation", REMATS),
}
BASE = {"text": 256, "images": 6, "model": "9b", "remat": "full"}
COLORS = {
    "vision": "#8c6bb1",
    "resampler": "#f2a93b",
    "cross_attention": "#2f6f9f",
    "lm": "#41ab5d",
    "head": "#a6761d",
    "recomputed": "#c9d1d9",
    "state": "#57606a",
    "activations": "#e8833a",
}
NAMES = {"lm": "language model", "cross_attention": "cross-attention"}


def config_of(text: int, images: int, model: str, remat: str) -> TrainConfig:
    """Returns a released model with one stream of interleaved rows."""
    values = runpy.run_path(str(CONFIGS / f"of{model}.py"))["get_config"]().to_dict()
    config = build(TrainConfig, values)
    rows = dataclasses.replace(
        config.streams["mmc4"],
        batch_size=ROWS * DEVICES,
        text_length=text,
        num_images=images,
    )
    return dataclasses.replace(
        config,
        model=dataclasses.replace(config.model, remat=remat),
        streams={"mmc4": rows},
        mesh=MeshConfig(data=1, fsdp=DEVICES),
    )


def cost(config: TrainConfig) -> dict[str, Any]:
    """Returns TFLOP and GiB of one update on one of the devices."""
    floors = step_floor(config)
    floors.pop(OPTIMIZER)
    arguments = set_up(config).arguments
    tflop = {part: floor.flops / DEVICES / 1e12 for part, floor in floors.items()}
    recomputed = sum(floor.recomputed for floor in floors.values()) / DEVICES / 1e12
    kept = sum(floor.saved_bytes for floor in floors.values()) / DEVICES
    return {
        "tflop": tflop | {"recomputed": recomputed},
        "gib": {"state": device_bytes(arguments) / GIB, "activations": kept / GIB},
    }


def points() -> Iterator[dict[str, Any]]:
    for axis, (_, values) in AXES.items():
        for value in values:
            yield {"axis": axis, "value": value, **cost(config_of(**BASE | {axis: value}))}


def line(point: dict[str, Any]) -> str:
    tflop, gib = point["tflop"], point["gib"]
    needed = sum(tflop.values()) - tflop["recomputed"]
    return (
        f"{AXES[point['axis']][0]:20}{point['value']!s:>6}{needed:14.1f}{tflop['recomputed']:12.1f}"
        f"{gib['state']:10.2f}{gib['activations']:14.2f}"
    )


def draw(found: list[dict[str, Any]], path: Path) -> None:
    """Draws bars of every axis: operations above, memory below."""
    with mpl.rc_context({"font.size": 10, "hatch.linewidth": 0.6}):
        figure = Figure(figsize=(11, 5.6), layout="constrained")
        grid = figure.subplots(2, len(AXES), sharey="row", width_ratios=(4, 5, 3, 3))
        for column, (axis, (name, _)) in enumerate(AXES.items()):
            own = [point for point in found if point["axis"] == axis]
            _bars(grid[0, column], own, "tflop")
            _bars(grid[1, column], own, "gib")
            grid[1, column].set_xlabel(name)
        grid[0, 0].set_ylabel("TFLOP of one update")
        grid[1, 0].set_ylabel("GiB, at least")
        for row in grid:
            handles, names = row[0].get_legend_handles_labels()
            # Topmost of the bars first.
            row[-1].legend(handles[::-1], names[::-1], frameon=False, loc="upper left",
                           bbox_to_anchor=(1, 1), fontsize=9)  # fmt: skip
        figure.suptitle(
            f"Per device of {DEVICES}, {ROWS} rows each; where nothing else is said: "
            "9B, 256 tokens, 6 images, full rematerialisation",
            fontsize=11,
        )
        figure.savefig(path, dpi=120)


def _bars(axes: Axes, own: list[dict[str, Any]], kind: str) -> None:
    places, bottom = np.arange(len(own)), np.zeros(len(own))
    for name in own[0][kind]:
        heights = np.array([point[kind][name] for point in own])
        axes.bar(places, heights, 0.7, bottom, color=COLORS[name], label=NAMES.get(name, name))
        bottom += heights
    for place, height in zip(places, bottom, strict=True):
        axes.text(place, height, f"{height:.3g}", ha="center", va="bottom", fontsize=8)
    axes.set_xticks(places, [str(point["value"]) for point in own])
    axes.spines[["top", "right"]].set_visible(False)


def main(argv: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    parser.add_argument("--picture", type=Path, help="draw them into this PNG")
    args = parser.parse_args(argv[1:])
    prepare_backends()
    open_target(f"cpu:{DEVICES}")
    print(f"{'':26}{'TFLOP needed':>14}{'recomputed':>12}{'GiB state':>10}{'activations':>14}")
    found = []
    for point in points():
        found.append(point)
        print(line(point), flush=True)
    if args.json:
        write_json(args.json, {"devices": DEVICES, "rows": ROWS, "base": BASE, "points": found})
    if args.picture:
        draw(found, args.picture)


if __name__ == "__main__":
    cli.run(main)
