"""Results of the digits demo as a table, a plot and a picture of prompts with answers."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from flamingo_jax.evaluate.results import Record
from flamingo_jax.evaluate.tasks.digits import Digits
from flamingo_jax.text.special_tokens import END_OF_CHUNK, IMAGE

RIGHT, WRONG, LINE, MUTED = "#1a7f37", "#cf222e", "#0550ae", "#6e7781"


def table(naming: Mapping[str, float], binding: Mapping[int, Mapping[str, float]]) -> str:
    """The figures as plain text."""
    lines = [
        "task                         accuracy   ± stderr      n",
        f"name a held-out digit          {naming['accuracy']:6.1%}              {naming['n']:5d}",
    ]
    for shots, result in binding.items():
        lines.append(
            f"bind two names, {shots} shot{'s' if shots != 1 else ' '} each   "
            f"{result['accuracy']:6.1%}     {result['stderr']:6.1%}  {result['n']:5d}"
        )
    return "\n".join(lines)


def plot_binding(binding: Mapping[int, Mapping[str, float]], path: Path) -> None:
    """Accuracy against shots, with 95 % intervals and the level of chance."""
    with mpl.rc_context({"font.size": 11}):
        figure = Figure(figsize=(6, 3.8), layout="constrained")
        axes = figure.subplots()
        x = np.arange(len(binding))
        accuracy = np.array([100 * r["accuracy"] for r in binding.values()])
        interval = np.array([196 * r["stderr"] for r in binding.values()])
        axes.axhline(50, color=MUTED, linestyle="--", linewidth=1)
        axes.text(x[-1], 51, "chance", color=MUTED, ha="right", va="bottom")
        axes.errorbar(x, accuracy, interval, color=LINE, marker="o", linewidth=2, capsize=4)
        for i, value in enumerate(accuracy):
            offset, align = ((0, 10), "center") if i else ((10, -16), "left")  # off the line
            axes.annotate(
                f"{value:.1f} %", (x[i], value), offset, textcoords="offset points", ha=align
            )
        axes.set_xticks(x, [str(shots) for shots in binding])
        axes.set_xlabel("examples of each of the two classes in the prompt (shots)")
        axes.set_ylabel("right name (%)")
        axes.set_ylim(40, 108)
        axes.set_yticks(range(40, 101, 10))
        axes.set_title("Binding made-up names to held-out handwritten digits", fontsize=12)
        axes.spines[["top", "right"]].set_visible(False)
        figure.savefig(path, dpi=150)


def draw_prompts(records: Sequence[Record], path: Path) -> None:
    """One prompt a row: its images with their text, and what the model says of the last one."""
    longest = max(len(record["images"]) for record in records)
    with mpl.rc_context({"font.size": 10}):
        figure = Figure(figsize=(1.25 * longest, 1.8 * len(records)), layout="constrained")
        grid = figure.subplots(len(records), longest, squeeze=False)
        for row, record in zip(grid, records, strict=True):
            for axes in row:
                axes.set_axis_off()
            _draw_prompt(row, record)
        figure.savefig(path, dpi=110)


def _draw_prompt(row: Sequence[Axes], record: Record) -> None:
    images = [Digits().picture(Path(), image) for image in record["images"]]
    texts = record["prompt"].replace(END_OF_CHUNK, "").split(IMAGE)[1:]
    for axes, image, text in zip(row, images, texts, strict=False):
        axes.imshow(255 - image, interpolation="nearest")  # ink is bright in the data
        if axes is not row[len(images) - 1]:
            _write_below(axes, text, "black")

    last = row[len(images) - 1]
    (right,) = record["references"]
    correct = record["answer"] == right
    asked = f"{texts[-1].strip()}\n" if texts[-1] else ""
    color = RIGHT if correct else WRONG
    remark = "" if correct else f"\n(right: {right})"
    _write_below(last, f"{asked}{record['answer']}{remark}", color, weight="bold")
    frame = Rectangle((0, 0), 1, 1, transform=last.transAxes, fill=False, color=color, linewidth=3)
    last.add_patch(frame)


def _write_below(axes: Axes, text: str, color: str, weight: str = "normal") -> None:
    axes.text(0.5, -0.06, text, transform=axes.transAxes, ha="center", va="top", color=color,
              weight=weight)  # fmt: skip
