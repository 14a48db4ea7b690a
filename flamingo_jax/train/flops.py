"""Matmul FLOPs of an update, counted from a config; `traced_flops.py` counts those of a program.

A multiplication and an addition are two operations. What is no matmul is left out: below 1 % here.
"""

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal

from flamingo_jax.data.streams import StreamConfig
from flamingo_jax.models.params import model_graph, select
from flamingo_jax.models.vlm import ModelConfig
from flamingo_jax.ops.attention_xla import causal_blocks
from flamingo_jax.ops.grouped_attention import num_slots
from flamingo_jax.parallel.fsdp import RematPolicy, policy_for_new_modules
from flamingo_jax.train.config import TrainConfig

Part = Literal["vision", "resampler", "cross_attention", "lm", "head"]
FRAMES = 1  # per image, in every stream


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

    by_part: dict[Part, PartFlops]

    @property
    def total(self) -> float:
        return sum(part.total for part in self.by_part.values())

    @property
    def recomputed(self) -> float:
        return sum(part.recomputed for part in self.by_part.values())


def step_flops(config: TrainConfig) -> StepFlops:
    """FLOPs of one update by this config: every stream's batch, all micro-batches."""
    shapes = {path: leaf.shape for path, leaf in model_graph(config.model).shapes().items()}
    trained = select(shapes, config.trainable)
    counts: dict[Part, PartFlops] = {}
    for stream in config.streams.values():
        counter = StreamCounter(config.model, shapes, trained, stream)
        counter.linears()
        counter.attentions()
        for part, flops in counter.by_part.items():
            counts[part] = counts.get(part, PartFlops()) + flops
    return StepFlops(counts)


# Which tokens a weight is applied to, by the path of the weight.
LINEARS: tuple[tuple[str, Part, tuple[str, ...]], ...] = (
    (r"^vision/patch_embedding/", "vision", ("media",)),
    (r"^vision/layers/", "vision", ("vision",)),
    (r"^vision/projection/", "vision", ()),
    (r"^resampler/layers/(key|value)/", "resampler", ("media", "latents")),
    (r"^resampler/layers/", "resampler", ("latents",)),
    (r"^cross_attention/(key|value)/", "cross_attention", ("latents",)),
    (r"^cross_attention/", "cross_attention", ("text",)),
    (r"^decoder/(layers|tail)/", "lm", ("text",)),
    (r"^decoder/(head|embedding)/", "head", ("text",)),
)


@dataclass
class StreamCounter:
    """Counts the matmuls of one stream's rows."""

    model: ModelConfig
    shapes: dict[str, tuple[int, ...]]
    trained: frozenset[str]
    stream: StreamConfig
    by_part: dict[Part, PartFlops] = field(default_factory=dict)

    def __post_init__(self) -> None:
        vision, resampler = self.model.encoder, self.model.connector
        images = self.stream.batch_size * self.stream.row_images
        frames = images * FRAMES
        latents = images * resampler.num_latents
        self.tokens = {
            "media": frames * vision.num_patches,
            "vision": frames * (vision.num_patches + 1),
            "latents": latents,
            "text": self.stream.batch_size * self.stream.row_length,
        }
        # Whether a gradient flows through the layers of a part. A scan treats its layers alike, so
        # one trained layer is enough for all of its stack.
        self.flows_vision = self._trains(r"^vision/(?!projection|post_norm)")
        self.flows_patches = self.flows_vision or self._trains(r"^resampler/\w+_embedding$")
        self.flows_resampler = self.flows_vision or self._trains(r"^resampler/(?!norm)")
        self.flows_media = self.flows_resampler or self._trains("^resampler/norm")
        self.flows_text = self.flows_media or self._trains(
            "^cross_attention/|^decoder/(embedding|positions|layers)"
        )
        self.flows_tail = self.flows_text or self._trains("^decoder/tail/")
        self.flows_head = self.flows_tail or self._trains("^decoder/norm/")

    def _trains(self, pattern: str) -> bool:
        return any(re.search(pattern, path) for path in self.trained)

    def remat(self, part: Part) -> RematPolicy:
        new = part in ("resampler", "cross_attention")
        return policy_for_new_modules(self.model.remat) if new else self.model.remat

    def matrices(self) -> Iterator[tuple[str, Part, str]]:
        """Weights of matmuls: path, part, and the tokens (a key of `tokens`) they multiply."""
        for path in self.shapes:
            rows = self.model.decoder.tie_head and path.startswith("decoder/embedding/")
            if path.endswith("/kernel") or rows:
                part, kinds = next((p, k) for pattern, p, k in LINEARS if re.search(pattern, path))
                for kind in kinds:
                    yield path, part, kind

    def linears(self) -> None:
        for path, part, tokens in self.matrices():
            # The media enter each layer of the resampler as they are, and the latents as the layer
            # below left them.
            flows = self.flows_patches if tokens == "media" else self.input_flows(path)
            self._add(
                part,
                2.0 * self.tokens[tokens] * math.prod(self.shapes[path]),
                flows + (path in self.trained),
                recomputed=self._recomputes(path, part, tokens),
            )

    def input_flows(self, path: str) -> bool:
        """Whether the matmul with this weight has a gradient of its input."""
        if path.startswith("vision/"):
            return self.flows_vision and "patch_embedding" not in path
        if path.startswith("resampler/"):
            return self.flows_resampler
        if re.match("cross_attention/(key|value)/", path):
            return self.flows_media
        if path.startswith("decoder/tail/"):
            return self.flows_tail
        if re.match("decoder/(head|embedding)/", path):
            return self.flows_head
        return self.flows_text

    def _recomputes(self, path: str, part: Part, tokens: str) -> bool:
        """Whether remat computes this matmul again.

        A layer's gradient needs the inputs of its matmuls and norms; what is only added to the
        output of the layer is not among them.
        """
        remat = self.remat(part)
        if remat == "elementwise" and tokens == "media":
            return self.input_flows(path)
        if remat != "full" or path.endswith("/down/kernel"):
            return False
        if path.startswith("cross_attention/"):
            return self.flows_text
        layered = re.match(r"(vision|resampler|decoder)/(layers|tail)/", path)
        if not layered:
            return False
        parallel = layered[1] == "decoder" and self.model.decoder.parallel_residual
        if parallel and path.endswith("/out/kernel"):
            return False
        return self.input_flows(path)

    def attentions(self) -> None:
        vision, decoder = self.model.encoder, self.model.decoder
        cross, resampler = self.model.fusion, self.model.connector
        rows, images = self.stream.batch_size, self.stream.batch_size * self.stream.row_images
        length, latents = self.stream.row_length, resampler.num_latents
        tokens = vision.num_patches + 1
        self._attention(
            "vision",
            "vision/layers/",
            images * FRAMES * vision.num_layers * tokens**2 * vision.num_heads * vision.head_width,
            flows=self.flows_vision,
        )
        keys = FRAMES * vision.num_patches + latents
        width = resampler.num_heads * resampler.head_dim
        self._attention(
            "resampler",
            "resampler/layers/",
            images * resampler.num_layers * latents * keys * width,
            flows=self.flows_resampler,
        )
        width = cross.num_heads * cross.head_dim
        blocks = decoder.num_layers // cross.interval
        slots = None if cross.uniform_beyond_images else num_slots(length, self.stream.row_images)
        pairs = slots or length * self.stream.row_images  # of text and images
        self._attention(
            "cross_attention",
            "cross_attention/",
            rows * blocks * pairs * latents * width,
            flows=self.flows_text,
            keys_flow=self.flows_media or self._trains("^cross_attention/(key|value)"),
        )
        seen = sum(len(block) * block.stop for block in causal_blocks(self.stream.part_length))
        scores = rows * self.stream.row_parts * seen * decoder.num_heads * decoder.head_width
        left_over = decoder.num_layers % cross.interval
        self._attention(
            "lm",
            "decoder/layers/",
            scores * (decoder.num_layers - left_over),
            flows=self.flows_text,
            parallel=decoder.parallel_residual,
        )
        self._attention(
            "lm",
            "decoder/tail/",
            scores * left_over,
            flows=self.flows_tail,
            parallel=decoder.parallel_residual,
        )

    def _attention(
        self,
        part: Part,
        prefix: str,
        size: int,
        *,
        flows: bool,
        keys_flow: bool = True,
        parallel: bool = False,
    ) -> None:
        """Scores and weighted sum. `size`: multiplications of either."""
        remat = self.remat(part)
        # The weighted sum is needed again for what comes after it, or for the weight after it.
        weight_needs = self._trains(rf"^{prefix}.*out/kernel$")
        sum_again = weight_needs or (remat == "full" and not parallel)
        gradients = flows * (1 + keys_flow)
        keeps_sum = remat in ("none", "elementwise")
        self._add(part, 2.0 * size, gradients, recomputed=flows and remat != "none")
        self._add(part, 2.0 * size, gradients, recomputed=flows and sum_again and not keeps_sum)

    def _add(self, part: Part, forward: float, gradients: int, *, recomputed: bool) -> None:
        new = PartFlops(forward, gradients * forward, recomputed * forward)
        self.by_part[part] = self.by_part.get(part, PartFlops()) + new
