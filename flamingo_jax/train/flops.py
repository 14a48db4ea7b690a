"""Matmul FLOPs of an update, counted from a config; `traced_flops.py` counts those of a program.

A multiplication and an addition are two operations. What is no matmul is left out: below 1 % here.
"""

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, field

from flamingo_jax.data.streams import StreamConfig
from flamingo_jax.models.matmuls import Account, BatchSize, Scores, Weights
from flamingo_jax.models.params import model_graph, select
from flamingo_jax.models.vlm import ModelConfig
from flamingo_jax.parallel.remat import RematPolicy, policy_for_new_modules
from flamingo_jax.train.config import TrainConfig


@dataclass(frozen=True)
class PartFlops:
    """FLOPs of one part of the model.

    Attributes:
      forward, backward: what the mathematics asks for; a frozen weight has no weight gradient, and
        nothing below the lowest trained layer has a gradient at all.
      recomputed: what rematerialisation computes a second time.
    """

    forward: float = 0.0
    backward: float = 0.0
    recomputed: float = 0.0

    def __add__(self, other: "PartFlops") -> "PartFlops":
        return PartFlops(
            self.forward + other.forward,
            self.backward + other.backward,
            self.recomputed + other.recomputed,
        )

    @property
    def total(self) -> float:
        """Without what is computed a second time: what MFU counts (arXiv 2204.02311)."""
        return self.forward + self.backward


@dataclass(frozen=True)
class StepFlops:
    """FLOPs of one update on all devices together."""

    by_part: dict[str, PartFlops]

    @property
    def total(self) -> float:
        return sum(part.total for part in self.by_part.values())

    @property
    def recomputed(self) -> float:
        return sum(part.recomputed for part in self.by_part.values())


def batch_size(stream: StreamConfig) -> BatchSize:
    return BatchSize(stream.batch_size, stream.row_length, stream.row_images, stream.row_parts)


def step_flops(config: TrainConfig) -> StepFlops:
    """Counts one update by this config: every stream's batch, all micro-batches."""
    shapes = {path: leaf.shape for path, leaf in model_graph(config.model).shapes().items()}
    trained = select(shapes, config.trainable)
    counts: dict[str, PartFlops] = {}
    for stream in config.streams.values():
        counter = StreamCounter(config.model, shapes, trained, batch_size(stream))
        for part, flops in counter.count().items():
            counts[part] = counts.get(part, PartFlops()) + flops
    return StepFlops(counts)


@dataclass
class StreamCounter:
    """Counts the matmuls of one stream's batch, by what the model says of them.

    Attributes:
      flows: stage → whether a gradient flows through it. A scan treats its layers alike, so one
        trained layer is enough for all of its stack.
    """

    model: ModelConfig
    shapes: dict[str, tuple[int, ...]]
    trained: frozenset[str]
    size: BatchSize
    accounts: tuple[Account, ...] = ()
    flows: dict[str | None, bool] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.accounts = self.model.accounts(self.size)
        owners: dict[str, list[tuple[Account, str]]] = {}
        for account in self.accounts:
            for stage in account.stages:
                owners.setdefault(stage.name, []).append((account, stage.pattern))
        flows = False
        self.flows = {None: False}
        for name, patterns in owners.items():
            flows = flows or any(self.trains(account, pattern) for account, pattern in patterns)
            self.flows[name] = flows

    def trains(self, account: Account, pattern: str) -> bool:
        """Returns whether some parameter is trained whose path in this part has the pattern."""
        prefix = account.parameters + "/"
        return any(
            path.startswith(prefix) and re.search(pattern, path.removeprefix(prefix))
            for path in self.trained
        )

    def policy(self, account: Account) -> RematPolicy:
        return policy_for_new_modules(self.model.remat) if account.new else self.model.remat

    def matrices(self) -> Iterator[tuple[str, Account, Weights]]:
        """Yields the path of each matrix, once for each kind of tokens that it multiplies."""
        for account in self.accounts:
            prefix = account.parameters + "/"
            for path in self.shapes:
                for weights in account.weights:
                    if path.startswith(prefix) and re.search(
                        weights.pattern, path.removeprefix(prefix)
                    ):
                        yield path, account, weights
                        if not weights.elementwise_again:  # the first that fits, but for two inputs
                            break

    def count(self) -> dict[str, PartFlops]:
        by_part = {account.part: PartFlops() for account in self.accounts}
        for path, account, weights in self.matrices():
            forward = 2.0 * weights.tokens * math.prod(self.shapes[path])
            gradients = self.flows[weights.input] + (path in self.trained)
            again = self.flows[weights.layer] and self._again(path, account, weights)
            by_part[account.part] += PartFlops(forward, gradients * forward, again * forward)
        for account in self.accounts:
            for scores in account.scores:
                by_part[account.part] += self._attention(account, scores)
        return by_part

    def _again(self, path: str, account: Account, weights: Weights) -> bool:
        """Returns whether remat computes the output of this matmul again."""
        policy = self.policy(account)
        if policy == "elementwise":
            return weights.elementwise_again
        return policy == "full" and not re.search(account.added, path)

    def _attention(self, account: Account, scores: Scores) -> PartFlops:
        policy, flows = self.policy(account), self.flows[scores.stage]
        keys_flow = self.flows[scores.keys] or bool(
            scores.keys_pattern and self.trains(account, scores.keys_pattern)
        )
        # The weighted sum is needed again for what comes after it, or for the weight after it.
        weight_needs = self.trains(account, scores.pattern)
        sum_again = weight_needs or (policy == "full" and not scores.parallel)
        keeps_sum = policy in ("none", "elementwise")
        forward = 2.0 * scores.multiplications
        again = (flows and policy != "none") + (flows and sum_again and not keeps_sum)
        return PartFlops(2 * forward, 2 * flows * (1 + keys_flow) * forward, again * forward)
