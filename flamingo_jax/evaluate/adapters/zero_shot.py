"""A model directory that answers questions about images without demonstrations."""

from collections.abc import Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple

from flamingo_jax.errors import UserError
from flamingo_jax.generate.engine.generate import GenerationConfig
from flamingo_jax.generate.loading import load
from flamingo_jax.generate.prompts import BatchShape, ReadPrompt
from flamingo_jax.text.special_tokens import IMAGE

Question = tuple[str, Sequence[Any]]  # text and its PIL images
MAX_NEW_TOKENS = 32  # where a task names no number
ONE_SLOT = BatchShape(slots=1)  # also where no question has an image
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
        stops, answers = [stop for stop in stops if stop], []
        for start in range(0, len(questions), self.batch_size):
            prompts = [self._read(*q) for q in questions[start : start + self.batch_size]]
            answers += self._model.texts(prompts, config, stops, ONE_SLOT)
        return answers

    def loglikelihood(self, question: Question, continuation: str) -> tuple[float, bool]:
        """Log-probability of the continuation's tokens, and whether greedy search gives them."""
        tokens = self._model.processor.encode(continuation, special=False)
        prompts = [self._read(*question)]
        scores = self._model.scores(prompts, [tokens], ONE_SLOT)
        config = GenerationConfig(max_new_tokens=len(tokens))
        greedy = self._model.generated(prompts, config, shape=ONE_SLOT)
        return float(scores.sums_BC[0, 0]), list(greedy.sequences(0)[0]) == list(tokens)

    def _read(self, text: str, pictures: Sequence[Any]) -> ReadPrompt:
        processor, text = self._model.processor, self._text(text, pictures)
        pixels = [processor.pixels(picture) for picture in pictures]
        return ReadPrompt.of_pictures(text, processor.encode(text), pixels, processor.images.size)

    def _text(self, text: str, pictures: Sequence[Any]) -> str:
        """The prompt; images without a mark in the text come first."""
        marks = text.count(IMAGE)
        if marks not in (0, len(pictures)):
            raise UserError(
                f"a question has {len(pictures)} images and {marks} {IMAGE} marks: {text[:80]!r}"
            )
        before = "" if marks else IMAGE * len(pictures)
        return before + self._prompt.replace("{text}", text)
