"""A model directory that answers questions about images without demonstrations."""

from collections.abc import Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from flamingo_jax.errors import UserError
from flamingo_jax.generate.engine.generate import GenerationConfig, generate
from flamingo_jax.generate.engine.scoring import score_continuations
from flamingo_jax.generate.loading import load
from flamingo_jax.text.special_tokens import IMAGE

Question = tuple[str, Sequence[Any]]  # text and its PIL images
MAX_NEW_TOKENS = 32  # where a task names no number
OF_HARNESSES = ("device", "max_batch_size")  # arguments they give to every model


class Request(NamedTuple):
    """A question, and how its answer ends."""

    question: Question
    max_new_tokens: int
    stops: tuple[str, ...]


def request(question: Question, settings: Mapping[str, Any], max_tokens: str) -> Request:
    """What a harness asks; `max_tokens` is its name for the limit in `settings`."""
    until = settings.get("until") or ()
    stops = (until,) if isinstance(until, str) else tuple(until)
    return Request(question, int(settings.get(max_tokens) or MAX_NEW_TOKENS), stops)


def open_model(model: str, arguments: Mapping[str, Any]) -> "ZeroShot":
    """A model from a harness's arguments; TypeError: one that `ZeroShot` does not have."""
    given = {k: v for k, v in arguments.items() if v is not None and k not in OF_HARNESSES}
    return ZeroShot(model, **given)


class ZeroShot:
    """What the harnesses' adapters share.

    Args:
      model: a model directory.
      prompt: a template; `{text}` is what the harness asks, as in
        "Question:{text} Short answer:".
      num_beams: of generation.
      batch_size: questions answered together.
    """

    def __init__(
        self,
        model: str,
        *,
        prompt: str = "{text}",
        num_beams: int | str = 1,
        batch_size: int | str = 8,
    ):
        if "{text}" not in prompt:
            raise UserError(f"prompt is {prompt!r}; it must contain {{text}}, what is asked")
        self._model = load(Path(model))
        self._prompt, self._num_beams = prompt, int(num_beams)
        self.batch_size = int(batch_size)

    def answer(self, requests: Sequence[Request]) -> list[str]:
        """The answer to each request; neighbours that end alike are asked together."""
        answers = []
        for (max_new_tokens, stops), group in groupby(requests, key=lambda r: r[1:]):
            questions = [request.question for request in group]
            answers += self.generate(questions, max_new_tokens, stops)
        return answers

    def generate(
        self, questions: Sequence[Question], max_new_tokens: int, stops: Sequence[str] = ()
    ) -> list[str]:
        """The likeliest answer to each question, cut before the first of `stops`."""
        config = GenerationConfig(max_new_tokens=max_new_tokens, num_beams=self._num_beams)
        stop, answers = self._model.config.end_of_chunk_token, []
        for start in range(0, len(questions), self.batch_size):
            arrays, counts_B = self._arrays(questions[start : start + self.batch_size])
            made = generate(
                self._model.graph, self._model.params, *arrays, config=config, num_images_B=counts_B
            )
            for row in range(len(counts_B)):
                ids = [token for token in made.sequences(row)[0] if token != stop]
                text = self._model.processor.tokenizer.decode(ids, skip_special_tokens=True)
                ends = [text.find(word) for word in stops if word and word in text]
                answers.append(text[: min(ends, default=len(text))])
        return answers

    def loglikelihood(self, question: Question, continuation: str) -> tuple[float, bool]:
        """Log-probability of the continuation's tokens, and whether greedy search gives them."""
        tokenizer = self._model.processor.tokenizer
        tokens = tokenizer.encode(continuation, add_special_tokens=False)
        arrays, counts_B = self._arrays([question])
        graph, params = self._model.graph, self._model.params
        scores = score_continuations(graph, params, *arrays, [tokens], num_images_B=counts_B)
        config = GenerationConfig(max_new_tokens=len(tokens))
        greedy = generate(graph, params, *arrays, config=config, num_images_B=counts_B)
        return float(scores.sums_BC[0, 0]), list(greedy.sequences(0)[0]) == list(tokens)

    def _arrays(
        self, questions: Sequence[Question]
    ) -> tuple[tuple[Any, np.ndarray, np.ndarray], np.ndarray]:
        """(images, tokens, segments) and the number of each row's images."""
        processor, size = self._model.processor, self._model.config.encoder.image_size
        ids = [processor.tokenizer.encode(self._text(*question)) for question in questions]
        counts_B = np.array([len(pictures) for _, pictures in questions])
        shape = len(ids), max(map(len, ids))
        tokens_BL, segments_BL = np.zeros(shape, np.int32), np.zeros(shape, np.int32)
        images = np.zeros((len(ids), max(1, counts_B.max()), 1, size, size, 3), np.uint8)
        for row, (own, (_, pictures)) in enumerate(zip(ids, questions, strict=True)):
            tokens_BL[row, -len(own) :], segments_BL[row, -len(own) :] = own, 1
            for slot, picture in enumerate(pictures):
                images[row, slot, 0] = processor.pixels(picture)
        return (images, tokens_BL, segments_BL), counts_B

    def _text(self, text: str, pictures: Sequence[Any]) -> str:
        """The prompt; images without a mark in the text come first."""
        marks = text.count(IMAGE)
        if marks not in (0, len(pictures)):
            raise UserError(
                f"a question has {len(pictures)} images and {marks} {IMAGE} marks: {text[:80]!r}"
            )
        before = "" if marks else IMAGE * len(pictures)
        return before + self._prompt.replace("{text}", text)
