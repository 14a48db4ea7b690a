"""A model with its parameters, ready to be asked: opened from a directory, or still in training."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from jax.sharding import Mesh

from flamingo_jax.data.images import ImageProcessor
from flamingo_jax.generate.engine.batching import model_config
from flamingo_jax.generate.engine.generate import Generated, GenerationConfig, generate
from flamingo_jax.generate.engine.scoring import Scores, score_continuations
from flamingo_jax.generate.prompts import BatchShape, ReadPrompt, collate
from flamingo_jax.models.params import ModelGraph, Params
from flamingo_jax.models.vlm import ModelConfig
from flamingo_jax.text.stop_strings import StopStrings
from flamingo_jax.text.tokenizer import TextTokenizer
from flamingo_jax.weights.image_processor import image_processor


@dataclass(frozen=True)
class Model:
    """Holds what asking a model needs.

    Attributes:
      graph: `graph.merge(params)` gives the `Flamingo` module.
      params: by path, on the mesh if there is one.
      processor: has `images`, an `ImageProcessor`, `encode` and `decode`; see `RunProcessor`.
      mesh: rows of an evaluation's batch are split over it.
      facts: what the manifest of an evaluation says of the model.
    """

    config: ModelConfig
    graph: ModelGraph
    params: Params
    processor: Any
    mesh: Mesh | None = field(default=None, kw_only=True)
    facts: dict[str, Any] = field(default_factory=dict, kw_only=True)

    def generated(
        self,
        prompts: Sequence[ReadPrompt],
        config: GenerationConfig,
        *,
        seeds: Sequence[int] | None = None,
        stop: StopStrings | None = None,
        shape: BatchShape | None = None,
    ) -> Generated:
        """Returns the continuations of prompts; `shape`: see `collate`."""
        batch = collate(prompts, shape)
        return generate(
            self.graph,
            self.params,
            *batch.inputs,
            config=config,
            num_images_B=batch.num_images_B,
            seeds=seeds,
            stop=stop,
        )

    def texts(
        self,
        prompts: Sequence[ReadPrompt],
        config: GenerationConfig,
        stop: Sequence[str] = (),
        shape: BatchShape | None = None,
    ) -> list[str]:
        """Returns the best continuation of each prompt, cut before the first of `stop`."""
        made = self.generated(prompts, config, shape=shape)
        decode = self.processor.decode
        text = StopStrings(tuple(stop), decode).text if stop else decode
        end = self.config.end_of_chunk_token
        best = (made.sequences(row)[0] for row in range(len(prompts)))
        return [text([token for token in ids if token != end]) for ids in best]

    def scores(
        self,
        prompts: Sequence[ReadPrompt],
        continuations: Sequence[Sequence[int]],
        shape: BatchShape | None = None,
    ) -> Scores:
        """Returns how likely each continuation is after each prompt; `shape`: see `collate`."""
        batch = collate(prompts, shape)
        return score_continuations(
            self.graph,
            self.params,
            *batch.inputs,
            continuations,
            num_images_B=batch.num_images_B,
        )


@dataclass(frozen=True)
class RunProcessor:
    """The tokenizer and the image processor of a run."""

    tokens: TextTokenizer
    images: ImageProcessor

    def encode(self, text: str, *, special: bool = True) -> list[int]:
        """Returns ids; `special`: with the tokenizer's begin and end tokens."""
        return self.tokens.tokenizer.encode(text, add_special_tokens=special).ids

    def decode(self, ids: Sequence[int]) -> str:
        """Returns text without special tokens."""
        return self.tokens.tokenizer.decode(list(ids), skip_special_tokens=True)


def model_of_run(
    graph: ModelGraph, params: Params, tokens: TextTokenizer, mesh: Mesh | None
) -> Model:
    """Returns a model that is being trained."""
    config = model_config(graph)
    processor = RunProcessor(tokens, image_processor(config.encoder))
    return Model(config, graph, params, processor, mesh=mesh)
