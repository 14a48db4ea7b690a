"""Batches of prompts through a model: text that is generated, or scores of given answers."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from flamingo_jax.errors import UserError
from flamingo_jax.evaluate.pictures import Pictures
from flamingo_jax.evaluate.prompts import Prompt
from flamingo_jax.evaluate.tasks import Task
from flamingo_jax.generate.engine.batching import model_config
from flamingo_jax.generate.engine.generate import GenerationConfig, generate
from flamingo_jax.generate.engine.scoring import score_continuations
from flamingo_jax.models.params import ModelGraph, Params
from flamingo_jax.text.tokenizer import TextTokenizer
from flamingo_jax.weights.image_processor import image_processor

KEPT_IMAGES = 1024  # at least; 150 MiB at 224 × 224


@dataclass(frozen=True)
class Model:
    """A Flamingo to be asked.

    Attributes:
      encode: (text, with the tokenizer's begin and end tokens?) → ids.
      decode: ids → text without special tokens.
      mesh: where the parameters lie; rows of a batch are split over it.
      facts: what the manifest says of it.
    """

    graph: ModelGraph
    params: Params
    encode: Callable[[str, bool], list[int]]
    decode: Callable[[list[int]], str]
    mesh: Mesh | None = None
    facts: dict[str, Any] = field(default_factory=dict)


def model_of_run(
    graph: ModelGraph, params: Params, tokens: TextTokenizer, mesh: Mesh | None
) -> Model:
    """A model that is being trained."""
    tokenizer = tokens.tokenizer
    return Model(
        graph,
        params,
        lambda text, special: tokenizer.encode(text, add_special_tokens=special).ids,
        lambda ids: tokenizer.decode(ids, skip_special_tokens=True),
        mesh,
    )


class Asker:
    """Asks a model the prompts of one task.

    Batches have few shapes, so that few programs are compiled.

    Args:
      model: to be asked.
      task: how its answers are made.
      data: the data root.
      batch_size: rows, also where fewer prompts are left.
      num_images: places for images in a row.
      round_length: texts are padded to a multiple of so many tokens.
    """

    def __init__(
        self,
        model: Model,
        task: Task,
        data: Path,
        *,
        batch_size: int,
        num_images: int,
        round_length: int,
    ):
        self._model, self._task = model, task
        self._batch_size, self._num_images = batch_size, num_images
        self._round_length = round_length
        self._config = model_config(model.graph)
        kept = max(KEPT_IMAGES, 2 * batch_size * num_images)
        self.pictures = Pictures(task, data, image_processor(self._config.encoder), kept)

    def texts(self, prompts: Sequence[Prompt], *, counts_prompt: bool) -> list[str]:
        """The best continuation of each prompt."""
        config = GenerationConfig(
            max_new_tokens=self._task.max_new_tokens,
            num_beams=self._task.num_beams,
            length_penalty=self._task.length_penalty,
            length_penalty_counts_prompt=counts_prompt,
        )
        stop = self._config.end_of_chunk_token
        with self._asking(prompts):
            inputs, num_images_B = self._arrays(prompts)
            generated = generate(
                self._model.graph,
                self._model.params,
                *inputs,
                config=config,
                num_images_B=num_images_B,
            )
        made = [generated.sequences(row)[0] for row in range(len(prompts))]
        return [self._model.decode([t for t in ids if t != stop]) for ids in made]

    def logprobs(self, prompts: Sequence[Prompt], choices: Sequence[str]) -> np.ndarray:
        """Mean log-probability of each choice's tokens after each prompt, float (B, C)."""
        tokens = [self._model.encode(choice, False) for choice in choices]
        with self._asking(prompts):
            inputs, num_images_B = self._arrays(prompts)
            scores = score_continuations(
                self._model.graph, self._model.params, *inputs, tokens, num_images_B=num_images_B
            )
        return scores.means_BC[: len(prompts)]

    @contextmanager
    def _asking(self, prompts: Sequence[Prompt]) -> Iterator[None]:
        """On the model's mesh. UserError: a prompt that the model cannot take."""
        mesh = self._model.mesh
        try:
            with jax.set_mesh(mesh) if mesh is not None else nullcontext():
                yield
        except ValueError as error:
            first = prompts[0].example.id
            raise UserError(f"prompts from example {first} on cannot be asked: {error}") from error

    def _arrays(
        self, prompts: Sequence[Prompt]
    ) -> tuple[tuple[Any, np.ndarray, np.ndarray], np.ndarray]:
        """(images, tokens, segments) and the number of each row's images."""
        rows = [*prompts, *[prompts[-1]] * (self._batch_size - len(prompts))]
        ids = [self._model.encode(prompt.text, True) for prompt in rows]
        length = -(-max(map(len, ids)) // self._round_length) * self._round_length
        slots, size = self._num_images, self._config.encoder.image_size
        tokens_BL = np.zeros((len(rows), length), np.int32)
        segments_BL = np.zeros((len(rows), length), np.int32)
        images = np.zeros((len(rows), slots, 1, size, size, 3), np.uint8)
        for row, (prompt, own) in enumerate(zip(rows, ids, strict=True)):
            tokens_BL[row, length - len(own) :] = own
            segments_BL[row, length - len(own) :] = 1
            for slot, image in enumerate(prompt.images):
                images[row, slot, 0] = self.pictures.pixels(image)
        counts_B = np.array([len(prompt.images) for prompt in rows])
        return (images, tokens_BL, segments_BL), counts_B
