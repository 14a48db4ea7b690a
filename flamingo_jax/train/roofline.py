"""What one update must at least compute and move, and how long that takes at a machine's ceilings.

Bytes are those that no cache of a real machine spares: a weight is read once in the forward pass
and once where a gradient flows through it, in every micro-batch; each layer reads its input and
writes its output, and their gradients; what the remat policy saves is written and read; the
optimizer reads and writes its state. Inside of a layer everything is taken to stay on the chip,
logits and attention weights too. So no program is faster, and a good one is not much slower.
"""

import math
import re
from collections import defaultdict
from dataclasses import dataclass

import jax.numpy as jnp

from flamingo_jax.models.params import model_graph, select
from flamingo_jax.train.config import TrainConfig
from flamingo_jax.train.flops import StreamCounter, batch_size, step_flops

OPTIMIZER = "optimizer"
FLOAT32 = 4
# Of float32 numbers per trained weight: both moments and the weight, each read and written.
STATE_ACCESSES = 6


@dataclass(frozen=True)
class Ceilings:
    """What a device reaches at best: matmul operations, and bytes of its memory, per second."""

    flops: float
    bandwidth: float


@dataclass(frozen=True)
class PartFloor:
    """The least work of one part of the model in one update.

    Attributes:
      flops: of matmuls, as the mathematics asks for; `recomputed`: by rematerialisation, besides.
      weight_bytes, activation_bytes: read and written. Of the part `optimizer`, gradients and
        state count as weights.
      saved_bytes: activations that are kept from the forward to the backward pass.
    """

    flops: float = 0.0
    recomputed: float = 0.0
    weight_bytes: float = 0.0
    activation_bytes: float = 0.0
    saved_bytes: float = 0.0

    def arithmetic_seconds(self, ceilings: Ceilings) -> float:
        return (self.flops + self.recomputed) / ceilings.flops

    def memory_seconds(self, ceilings: Ceilings) -> float:
        return (self.weight_bytes + self.activation_bytes) / ceilings.bandwidth

    def seconds(self, ceilings: Ceilings) -> float:
        """Both at once, so the longer of them."""
        return max(self.arithmetic_seconds(ceilings), self.memory_seconds(ceilings))


def step_floor(config: TrainConfig) -> dict[str, PartFloor]:
    """The floor of every part of one update, and of its optimizer, on one device.

    The device has all rows of the config: to look at one of many, give it its share of them.
    """
    graph = model_graph(config.model)
    shapes = {path: leaf.shape for path, leaf in graph.shapes().items()}
    trained = select(shapes, config.trainable)
    sizes = map(batch_size, config.streams.values())
    counters = [StreamCounter(config.model, shapes, trained, size) for size in sizes]
    weights = _weight_bytes(config, counters[0])
    activations = [_activations(counter) for counter in counters]
    size = jnp.dtype(config.model.dtype).itemsize
    floors = {
        part: PartFloor(
            flops.total,
            flops.recomputed,
            weights[part],
            size * sum(moved[part] for moved, _ in activations),
            size * sum(saved[part] for _, saved in activations),
        )
        for part, flops in step_flops(config).by_part.items()
    }
    numbers = sum(math.prod(shapes[path]) for path in trained)
    return floors | {
        OPTIMIZER: PartFloor(weight_bytes=float(FLOAT32) * numbers * _accesses(config))
    }


def floor_seconds(floors: dict[str, PartFloor], ceilings: Ceilings) -> float:
    """Of the whole update: its parts follow one another."""
    return sum(floor.seconds(ceilings) for floor in floors.values())


def _accesses(config: TrainConfig) -> int:
    """How often a trained weight's gradient and state are read or written in an update.

    The gradient is written, added to by later micro-batches, and read: twice where it is clipped,
    since its norm is known only when all of it is there.
    """
    gradient = 2 * config.accumulation_steps - 1 + (2 if config.optimizer.clip_norm else 1)
    return gradient + STATE_ACCESSES


def _weight_bytes(config: TrainConfig, counter: StreamCounter) -> dict[str, float]:
    """Matrices only: vectors are below a thousandth."""
    frozen_size = jnp.dtype(config.frozen_dtype).itemsize
    total: dict[str, float] = defaultdict(float)
    backward = {
        (path, account.part): counter.flows[weights.input]
        for path, account, weights in counter.matrices()
    }
    for (path, part), flows in backward.items():
        size = FLOAT32 if path in counter.trained else frozen_size
        reads = config.accumulation_steps * (1 + flows)
        total[part] += reads * size * math.prod(counter.shapes[path])
    return total


def _activations(counter: StreamCounter) -> tuple[dict[str, float], dict[str, float]]:
    """Returns numbers read and written, and numbers kept for the backward pass, by part."""
    moved: dict[str, float] = defaultdict(float)
    saved: dict[str, float] = defaultdict(float)
    flows, itemsize = counter.flows, jnp.dtype(counter.model.dtype).itemsize
    for account in counter.accounts:
        part = account.part
        for reads in account.reads:
            times = 1 + flows[reads.again] + 2 * flows[reads.gradient]
            moved[part] += times * reads.numbers / (itemsize if reads.in_bytes else 1)
        for layers in account.layers:
            # Input and output; then the input again, and the gradients of both.
            moved[part] += (2 + 3 * flows[layers.stage]) * layers.numbers
            saved[part] += flows[layers.stage] * layers.numbers
    for path, account, weights in counter.matrices():
        # The output of a matmul in a layer, but where it is only added to the layer's.
        is_kept = weights.layer and counter.policy(account) != "full"
        backward = flows[weights.layer if weights.elementwise_again else weights.input]
        if is_kept and backward and not re.search(account.added, path):
            shape = counter.shapes[path]
            numbers = shape[0] * shape[-1] * weights.tokens
            moved[account.part] += 2 * numbers
            saved[account.part] += numbers
    return moved, saved
