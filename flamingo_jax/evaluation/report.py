"""Results of the digits demo as a table, a plot and a picture of prompts with answers."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from flamingo_jax.evaluation.digits import Answered

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
            offset, align = ((0, 10), "center") if i else ((10, -4), "left")
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


def draw_prompts(answers: Sequence[Answered], path: Path) -> None:
    """One prompt a row: its images with their text, and what the model says of the last one."""
    longest = max(len(a.question.prompt.images) for a in answers)
    with mpl.rc_context({"font.size": 10}):
        figure = Figure(figsize=(1.25 * longest, 1.8 * len(answers)), layout="constrained")
        grid = figure.subplots(len(answers), longest, squeeze=False)
        for row, answered in zip(grid, answers, strict=True):
            for axes in row:
                axes.set_axis_off()
            _draw_prompt(row, answered)
        figure.savefig(path, dpi=110)


def _draw_prompt(row: Sequence[Axes], answered: Answered) -> None:
    question = answered.question
    captions = [part for part in question.prompt.parts if isinstance(part, str)]
    images = question.prompt.images
    for axes, image in zip(row, images, strict=False):
        axes.imshow(255 - np.asarray(image), interpolation="nearest")  # ink is bright in the data
    for axes, caption in zip(row[: len(images) - 1], captions, strict=False):
        _write_below(axes, caption, "black")

    last = row[len(images) - 1]
    said, right = question.choices[answered.choice], question.choices[question.right]
    asked = f"{captions[-1]}\n" if len(captions) == len(images) else ""
    color = RIGHT if answered.correct else WRONG
    remark = "" if answered.correct else f"\n(right: {right})"
    _write_below(last, f"{asked}{said}{remark}", color, weight="bold")
    frame = Rectangle((0, 0), 1, 1, transform=last.transAxes, fill=False, color=color, linewidth=3)
    last.add_patch(frame)


def _write_below(axes: Axes, text: str, color: str, weight: str = "normal") -> None:
    axes.text(0.5, -0.06, text, transform=axes.transAxes, ha="center", va="top", color=color,
              weight=weight)  # fmt: skip
