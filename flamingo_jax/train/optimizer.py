"""AdamW with decay on chosen parameters, schedules and clipping, all from optax."""

from dataclasses import dataclass
from typing import Literal

import optax

from flamingo_jax.models.params import Params, select


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """Defaults are OpenFlamingo's. Schedules count updates, also with gradient accumulation."""

    learning_rate: float = 1e-4
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    warmup_steps: int = 0
    beta1: float = 0.9
    beta2: float = 0.999
    eps: float = 1e-8
    weight_decay: float = 0.1
    # Regular expressions over paths of trained parameters.
    decay: tuple[str, ...] = ("^cross_attention/",)
    clip_norm: float = 1.0  # of the gradient of all trained parameters together; 0: no clipping


def learning_rate(config: OptimizerConfig, num_steps: int) -> optax.Schedule:
    """Learning rate of update 0, 1, …: linear warm-up from 0, then the schedule down to 0."""
    peak, warmup = config.learning_rate, config.warmup_steps
    if config.schedule == "constant":
        decay = optax.constant_schedule(peak)
    elif config.schedule == "linear":
        decay = optax.linear_schedule(peak, 0.0, max(num_steps - warmup, 1))
    else:
        decay = optax.cosine_decay_schedule(peak, max(num_steps - warmup, 1))
    if not warmup:
        return decay
    return optax.join_schedules([optax.linear_schedule(0.0, peak, warmup), decay], [warmup])


def make_optimizer(
    config: OptimizerConfig, num_steps: int, params: Params
) -> optax.GradientTransformation:
    """The optimizer of these trained parameters (arrays or shapes, by path).

    Raises:
      ValueError: a `decay` pattern matches no trained parameter.
    """
    decayed = select(params, config.decay) if config.weight_decay else frozenset()
    adamw = optax.adamw(
        learning_rate(config, num_steps),
        b1=config.beta1,
        b2=config.beta2,
        eps=config.eps,
        weight_decay=config.weight_decay,
        mask={path: path in decayed for path in params},
    )
    if not config.clip_norm:
        return adamw
    return optax.chain(optax.clip_by_global_norm(config.clip_norm), adamw)
