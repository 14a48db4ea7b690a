"""Batches of prompts through a model: text that is generated, or scores of given answers."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path

import jax
import numpy as np

from flamingo_jax.errors import UserError
from flamingo_jax.evaluate.pictures import Pictures
from flamingo_jax.evaluate.prompts import Prompt
from flamingo_jax.evaluate.tasks import Task
from flamingo_jax.generate.base import Model
from flamingo_jax.generate.engine.generate import GenerationConfig
from flamingo_jax.generate.prompts import BatchShape, ReadPrompt

KEPT_IMAGES = 1024  # at least; 150 MiB at 224 × 224


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
        self._shape = BatchShape(batch_size, num_images, round_length)
        kept = max(KEPT_IMAGES, 2 * batch_size * num_images)
        self.pictures = Pictures(task, data, model.processor.images, kept)

    def texts(self, prompts: Sequence[Prompt], *, counts_prompt: bool) -> list[str]:
        """The best continuation of each prompt."""
        config = GenerationConfig(
            max_new_tokens=self._task.max_new_tokens,
            num_beams=self._task.num_beams,
            length_penalty=self._task.length_penalty,
            length_penalty_counts_prompt=counts_prompt,
        )
        with self._asking(prompts):
            return self._model.texts(self._read(prompts), config, shape=self._shape)

    def logprobs(self, prompts: Sequence[Prompt], choices: Sequence[str]) -> np.ndarray:
        """Mean log-probability of each choice's tokens after each prompt, float (B, C)."""
        tokens = [self._model.processor.encode(choice, special=False) for choice in choices]
        with self._asking(prompts):
            scores = self._model.scores(self._read(prompts), tokens, self._shape)
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

    def _read(self, prompts: Sequence[Prompt]) -> list[ReadPrompt]:
        encode, size = self._model.processor.encode, self._model.processor.images.size
        return [
            ReadPrompt.of_pictures(
                prompt.text,
                encode(prompt.text),
                [self.pictures.pixels(image) for image in prompt.images],
                size,
            )
            for prompt in prompts
        ]
