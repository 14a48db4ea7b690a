"""Reads AdamW's state from a checkpoint of OpenFlamingo's training, as our optimizer's state."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import optax

from flamingo_jax.convert.family import Family
from flamingo_jax.convert.openflamingo import all_rows
from flamingo_jax.convert.openflamingo_names import canonical, wrap
from flamingo_jax.errors import UserError
from flamingo_jax.models.vlm import ModelConfig
from flamingo_jax.weights.readers import load_torch, to_numpy
from flamingo_jax.weights.views import Tensors, check, leaves, make_plan


@dataclass(frozen=True)
class AdamState:
    """Updates done, and the two moments of every trained parameter."""

    count: int
    first: dict[str, np.ndarray]
    second: dict[str, np.ndarray]

    def put_into(self, opt_state: optax.OptState) -> optax.OptState:
        """Returns `opt_state`, as `optimizer.init` makes it, with this count and these moments."""
        # optax keeps one counter for the moments and one for the schedule, both under this name.
        return optax.tree_utils.tree_set(
            opt_state, count=np.int32(self.count), mu=self.first, nu=self.second
        )


def read_adam_state(
    checkpoint: Path, family: Family, config: ModelConfig, trained: Mapping[str, Any]
) -> AdamState:
    """Reads the state behind the weights of `checkpoint`.

    Args:
      checkpoint: what OpenFlamingo's training saved.
      family: of its language model.
      config: of the imported model.
      trained: path → anything with `.shape`, of the parameters that our optimizer trains.

    Raises:
      UserError: no optimizer state, or one of other parameters.
    """
    content = load_torch(checkpoint)
    if not isinstance(content, dict) or not content.get("optimizer_state_dict", {}).get("state"):
        raise UserError(f"{checkpoint} holds no optimizer state: give one saved during training")
    state = content["optimizer_state_dict"]
    names = _order(content["model_state_dict"], family)
    indices = [index for group in state["param_groups"] for index in group["params"]]
    if len(names) != len(indices):
        raise UserError(
            f"{checkpoint}: the optimizer has {len(indices)} parameters, the checkpoint "
            f"{len(names)} trained tensors; they do not belong together"
        )
    entries = [state["state"][index] for index in indices]
    counts = {int(entry["step"]) for entry in entries}
    if len(counts) != 1:
        raise UserError(f"{checkpoint}: parameters were updated {sorted(counts)} times, not alike")
    plan = make_plan(trained, all_rows(family, config), config.locate)
    moments = []
    for key in ("exp_avg", "exp_avg_sq"):
        tensors: Tensors = {
            name: to_numpy(entry[key]) for name, entry in zip(names, entries, strict=True)
        }
        check(plan, tensors, f"the optimizer state in {checkpoint}")
        moments.append(
            {path: leaf.read(np.float32) for path, leaf in leaves(plan, tensors).items()}
        )
    return AdamState(counts.pop(), *moments)


def _order(model_state: Mapping[str, Any], family: Family) -> list[str]:
    """Returns names in the order of the optimizer's indices: those that decay come first."""
    names = [canonical(family, name) for name in model_state]
    decayed = [name for name in names if ".gated_cross_attn_layer." in name]
    others = {"perceiver", wrap(family, family.embedding)}
    return decayed + [name for name in names if name in others or name.split(".")[0] in others]
