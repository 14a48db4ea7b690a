"""Configuration: ml_collections at the door, frozen dataclasses inside.

A config file returns a `ConfigDict`; `schema.build` turns it once into these dataclasses.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from flamingo_jax.data.pipeline import SOURCES, DataConfig
from flamingo_jax.data.streams import StreamConfig
from flamingo_jax.evaluate import config as few_shot
from flamingo_jax.evaluate.config import FewShotConfig
from flamingo_jax.models.vlm import ModelConfig, upgraded
from flamingo_jax.parallel.mesh import MeshConfig
from flamingo_jax.schema import build, dump
from flamingo_jax.train.optimizer import OptimizerConfig
from flamingo_jax.weights.readers import read_json


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Settings of a training run: everything that changes its numbers. Paths are not here."""

    model: ModelConfig
    # A model directory whose weights the run begins with; "": random weights.
    init_from: str = ""
    tokenizer: str  # "digits", or a tokenizer.json whose ids end where the model's new rows begin
    streams: dict[str, StreamConfig]
    data: DataConfig = field(default_factory=DataConfig)
    num_steps: int
    seed: int = 0
    # Regular expressions over parameter paths. What no pattern finds is frozen: no gradient, no
    # optimizer state and no checkpoint bytes. The default is OpenFlamingo's choice.
    trainable: tuple[str, ...] = (
        "^resampler/",
        "^cross_attention/",
        "^decoder/embedding/new_rows$",
    )
    frozen_dtype: Literal["float32", "bfloat16"] = "bfloat16"
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    accumulation_steps: int = 1  # micro-batches per update; equal to the one large batch
    # "openflamingo": accumulate as the original does, clipping after every micro-batch.
    compat: Literal["", "openflamingo"] = ""
    mesh: MeshConfig = field(default_factory=MeshConfig)
    max_nonfinite_steps: int = 10  # updates in a row skipped for NaN or inf before the run stops
    log_every: int = 50
    checkpoint_every: int = 1000
    keep_checkpoints: int = 2  # the last ones
    keep_every: int = 0  # checkpoints of steps that divide by it are kept, too; 0: no others
    # A step that takes longer prints where every thread is; twice as long, and the process ends.
    watchdog_seconds: float = 900.0  # 0: never
    dead_after_seconds: int = 60  # the others end when one of several processes shows no life
    profile_steps: tuple[int, ...] = ()  # (first, how many): a profiler's trace of these steps
    evaluate_every: int = 0  # steps between few-shot evaluations; 0: none
    few_shot: FewShotConfig = field(default_factory=FewShotConfig)

    def __post_init__(self) -> None:
        positive = (
            "num_steps", "accumulation_steps", "log_every", "checkpoint_every", "keep_checkpoints",
            "dead_after_seconds",
        )  # fmt: skip
        or_zero = ("keep_every", "evaluate_every", "max_nonfinite_steps", "watchdog_seconds")
        for name in (*positive, *or_zero):
            least = int(name in positive)
            if not getattr(self, name) >= least:  # so that NaN is refused, too
                raise ValueError(f"{name} is {getattr(self, name)}, it must be at least {least}")
        if len(self.profile_steps) not in (0, 2):
            raise ValueError(
                f"profile_steps is {self.profile_steps}, it must be (first step, number of steps)"
            )
        if not self.streams:
            raise ValueError("streams is empty: a run needs at least one stream of examples")


def read_config(path: Path) -> TrainConfig:
    """Reads the `config.json` of a run, of an earlier version too. UserError: it is damaged."""
    return build(TrainConfig, of_today(read_json(path)), str(path))


def of_today(values: dict[str, Any]) -> dict[str, Any]:
    """Translates the values of a run's `config.json` into those of this version."""
    kept = {key: value for key, value in values.items() if key != "evaluation"}
    if "model" in kept:
        kept["model"] = upgraded(kept["model"])
    if "streams" in kept:  # which had one loss, unnamed
        named = {name: {"loss": "next_token", **s} for name, s in kept["streams"].items()}
        kept["streams"] = named
    return kept


def complete(values: dict[str, Any]) -> dict[str, Any]:
    """Writes every default out, those of the streams' sources and of the evaluation's tasks
    included, so that all may be overridden."""
    whole = dump(build(TrainConfig, values))
    for name, stream in whole["streams"].items():
        source = SOURCES[stream["source"]]
        options: Any = build(source, stream["options"], f"config.streams.{name}.options")
        stream["options"] = dump(options)
    whole["few_shot"] = few_shot.complete(whole["few_shot"])
    return whole
