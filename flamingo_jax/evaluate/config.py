"""Settings of a few-shot evaluation."""

from dataclasses import dataclass, field
from typing import Any, Literal

from flamingo_jax.errors import UserError
from flamingo_jax.evaluate.metrics.vqa import Mode
from flamingo_jax.evaluate.prompts import ContextImages
from flamingo_jax.evaluate.tasks import TASKS
from flamingo_jax.evaluate.tasks.task import OnError, Task
from flamingo_jax.parallel.mesh import MeshConfig
from flamingo_jax.schema import build, dump


@dataclass(frozen=True, kw_only=True)
class FewShotConfig:
    """Which tasks, with which demonstrations.

    Attributes:
      data_root: where the folders of the data sets lie.
      tasks: the fields of each task (`evaluation/tasks`) by its name; {} for all defaults.
      shots: demonstrations in a prompt; 0: two, of which only the text is shown.
      seeds: of the draws.
      demonstrations: drawn, or those whose images are most similar (RICES).
      sampling: "seeded": by seed and example; "openflamingo": as the original in one process.
      query_set_size: "openflamingo": training examples that demonstrations are drawn from.
      num_samples: test examples; 0: all.
      ensemble: classification: orders of the demonstrations whose scores are averaged.
      context_images: "own"; the others ask whether the images matter.
      metric_mode: of VQA accuracy, see `metrics/vqa.py`.
      on_error: what a fault of the data does: stop, or leave the example out and count it.
      length_penalty_counts_prompt: see `GenerationConfig`; matters with a length penalty only.
      compat: see `flamingo_jax.load`.
      rices_model: directory of the CLIP whose features RICES compares.
      feature_cache: where those features are kept.
      batch_size: prompts asked together.
      round_length: prompts are padded to a multiple of so many tokens: more padding, but fewer
        programs to compile.
      mesh: devices of each process.
    """

    data_root: str = "data/eval"
    tasks: dict[str, dict] = field(default_factory=dict)
    shots: tuple[int, ...] = (0, 4, 8, 16, 32)
    seeds: tuple[int, ...] = (42,)
    demonstrations: Literal["random", "rices"] = "random"
    sampling: Literal["seeded", "openflamingo"] = "seeded"
    query_set_size: int = 2048
    num_samples: int = 0
    ensemble: int = 1
    context_images: ContextImages = "own"
    metric_mode: Mode = "standard"
    on_error: OnError = "raise"
    length_penalty_counts_prompt: bool = False
    compat: Literal["", "openflamingo"] = ""
    rices_model: str = ""
    feature_cache: str = "data/eval/features"
    batch_size: int = 8
    round_length: int = 64
    mesh: MeshConfig = field(default_factory=MeshConfig)

    def __post_init__(self) -> None:
        for name, options in self.tasks.items():
            try:
                make_task(name, options)
            except UserError as error:  # what builds this config says where it stands
                raise ValueError(str(error)) from None
        for key in ("shots", "seeds"):
            if min(getattr(self, key), default=-1) < 0:
                raise ValueError(
                    f"{key} is {getattr(self, key)}, expected one or more numbers of at least 0"
                )
        if self.num_samples < 0:
            raise ValueError(f"num_samples is {self.num_samples}, expected at least 0 (0: all)")
        for key in ("query_set_size", "ensemble", "batch_size", "round_length"):
            if getattr(self, key) < 1:
                raise ValueError(f"{key} is {getattr(self, key)}, expected at least 1")
        if self.demonstrations == "rices" and not self.rices_model:
            raise ValueError(
                "demonstrations are 'rices', but rices_model is not given: name the directory of a "
                "CLIP model"
            )


def make_task(name: str, options: dict[str, Any]) -> Task:
    """ValueError or UserError: no such task, an option it does not have or cannot have."""
    if name not in TASKS:
        raise ValueError(f"tasks has {name!r}, expected some of: {', '.join(TASKS)}")
    task: Task = build(TASKS[name], options, f"tasks.{name}")
    if not task.max_new_tokens and type(task).choices is Task.choices:
        raise ValueError(
            f"tasks.{name}.max_new_tokens is 0, but {name} has no choices to classify among: let "
            "it generate at least one token"
        )
    return task


def complete(values: dict[str, Any]) -> dict[str, Any]:
    """Returns a config with every default written out, those of its tasks included."""
    whole = dump(build(FewShotConfig, values))
    for name, options in whole["tasks"].items():
        whole["tasks"][name] = dump(make_task(name, options))
    return whole
