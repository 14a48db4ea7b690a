"""Lets a module say what its matmuls are, beside its code: whoever counts them knows no module.

A *stage* is a name for what a gradient reaches: it flows through a stage where something is trained
that belongs to it, or to a stage before it. Patterns are regular expressions over the module's own
paths.
"""

from dataclasses import dataclass

from flamingo_jax.ops.attention import causal_blocks
from flamingo_jax.ops.attention_kernels import AttentionChoice


@dataclass(frozen=True)
class BatchSize:
    """Describes one stream's batch: rows of `parts` parts, with images of so many frames each."""

    rows: int
    length: int
    images: int
    parts: int = 1
    frames: int = 1


@dataclass(frozen=True)
class Stage:
    """A stage, and the parameters that belong to it."""

    name: str
    pattern: str


@dataclass(frozen=True)
class Weights:
    """Matrices that multiply the same tokens.

    Attributes:
      pattern: of their paths.
      tokens: how many each of them multiplies.
      input: the stage that their input comes from; None: no gradient reaches it.
      layer: the stage of the layer that they are in, where it may be rematerialised; None: no such.
      elementwise_again: also the policy "elementwise" computes their output again.
    """

    pattern: str
    tokens: int
    input: str | None
    layer: str | None = None
    elementwise_again: bool = False


@dataclass(frozen=True)
class Scores:
    """The two matmuls of attention: scores, and the weighted sum.

    Attributes:
      pattern: of the matrices that multiply the sum.
      count: layers × sequences.
      stage: that the queries come from; `keys`: that the keys come from.
      keys_pattern: of the matrices that make the keys, where only these may be trained.
      parallel: the sum is only added to the layer's output.
      name: in logs, where a kernel may compute it; "": none may.
    """

    pattern: str
    count: int
    num_heads: int
    head_width: int
    num_queries: int
    num_keys: int
    stage: str
    keys: str
    keys_pattern: str = ""
    causal: bool = False
    parallel: bool = False
    name: str = ""
    choice: AttentionChoice = "auto"

    @property
    def multiplications(self) -> int:
        """Counts those of either matmul; of causal rows, only those that are not left out."""
        pairs = self.num_queries * self.num_keys
        if self.causal:
            pairs = sum(len(block) * block.stop for block in causal_blocks(self.num_queries))
        return self.count * pairs * self.num_heads * self.head_width


@dataclass(frozen=True)
class Layers:
    """The stream of numbers that layers read and hand on."""

    numbers: int
    stage: str


@dataclass(frozen=True)
class Reads:
    """Numbers read besides: once, again where a gradient flows through `again`, and with their own
    gradient, written and read, where one flows through `gradient`; or bytes, as pixels are."""

    numbers: int
    again: str | None = None
    gradient: str | None = None
    in_bytes: bool = False


@dataclass(frozen=True)
class Account:
    """One part of a model.

    Attributes:
      part: its name in reports.
      parameters: what its paths begin with.
      stages: in order.
      added: of matrices whose output is only added to their layer's, so that no gradient needs it.
      new: rematerialised by `policy_for_new_modules`.
    """

    part: str
    parameters: str
    stages: tuple[Stage, ...]
    weights: tuple[Weights, ...]
    scores: tuple[Scores, ...] = ()
    layers: tuple[Layers, ...] = ()
    reads: tuple[Reads, ...] = ()
    added: str = "/down/kernel$"
    new: bool = False
