"""Asks a loaded model to continue, to choose, or to say how likely a document is."""

import dataclasses
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np

from flamingo_jax.errors import UserError
from flamingo_jax.generate.base import Model
from flamingo_jax.generate.engine.generate import Generated, GenerationConfig, stream
from flamingo_jax.generate.engine.scoring import perplexity
from flamingo_jax.generate.prompts import (
    Example,
    Limits,
    ReadPrompt,
    collate,
    read_prompt,
    split_batch,
)
from flamingo_jax.generate.texts import decoded, emittable_prefix, stop_strings, tokens_after
from flamingo_jax.schema import unknown_key
from flamingo_jax.text.stop_strings import StopStrings
from flamingo_jax.text.template import join


@dataclass(frozen=True)
class Continuation:
    """Holds what the model said, token by token.

    Attributes:
      logprobs: of each token under the model itself; the token that stopped is the last.
      score: with beams the length-penalised score, otherwise the sum of `logprobs`.
    """

    text: str
    tokens: tuple[int, ...]
    logprobs: tuple[float, ...]
    score: float


@dataclass(frozen=True)
class Choice:
    """The likeliest of some texts, and how likely each of them is.

    Attributes:
      logprobs: log-likelihood of each text after the prompt, per token where normalised.
      probabilities: their softmax, so that those of all texts add up to 1.
    """

    text: str
    logprobs: dict[str, float]
    probabilities: dict[str, float]


class Inference(Model):
    """Asking a model. `LoadedModel` has these methods.

    A prompt is a text, a picture, or a list of texts, pictures and videos in reading order; a list
    of such lists is a batch, and gives a list of results. Pictures are PIL images, `pathlib.Path`s,
    bytes of image files or uint8 arrays; a video is a list of pictures. `<image>` and
    `<|endofchunk|>` are set where they belong. Every mistake is a `UserError`.
    """

    def read(
        self, query: Any, examples: Sequence[Example] = (), *, limits: Limits | None = None
    ) -> ReadPrompt:
        """One prompt, decoded and tokenised: what the methods below take in a prompt's place. A
        list of lists is no batch here, but a prompt of videos."""
        parts = list(query) if isinstance(query, list | tuple) else [query]
        return self._read_parts(join(examples, parts), limits)

    def generate(
        self,
        query: Any,
        examples: Sequence[Example] = (),
        *,
        stop: Sequence[str] = (),
        seed: int = 0,
        details: bool = False,
        **settings: Any,
    ) -> Any:
        """Continues a prompt.

        Args:
          query: a prompt, or a batch of them.
          examples: few-shot examples before every prompt, as in [(picture, "A cat."), …].
          stop: strings that end a text; it is given without them. Not with beams.
          seed: of sampling; the k-th prompt of a batch has the seed + k.
          details: give `Continuation`s in place of texts.
          **settings: see `GenerationConfig`, as in max_new_tokens=20, num_beams=3, temperature=0.7.
            Without stop_tokens, `<|endofchunk|>` and the end-of-text token stop.

        Returns:
          A str, or with num_return_sequences > 1 a list of them, best first; a list of that for a
          batch.
        """
        prompts, several = self._prompts(query, examples)
        config = self.generation_config(**settings)
        seeds = [seed + row for row in range(len(prompts))]
        made = self.generate_batch(prompts, config, seeds, stop)
        rows = made if details else [[c.text for c in row] for row in made]
        results = rows if config.num_return_sequences > 1 else [row[0] for row in rows]
        return results if several else results[0]

    def stream(
        self,
        query: Any,
        examples: Sequence[Example] = (),
        *,
        stop: Sequence[str] = (),
        seed: int = 0,
        **settings: Any,
    ) -> Iterator[Any]:
        """As `generate`, but yields the text so far again after every token: a str that grows, or
        a list of them for a batch. Not with beams or several sequences."""
        prompts, several = self._prompts(query, examples)
        config = self.generation_config(**settings)
        seeds = [seed + row for row in range(len(prompts))]
        for texts in self.stream_batch(prompts, config, seeds, stop):
            yield texts if several else texts[0]

    def classify(
        self,
        query: Any,
        choices: Sequence[str],
        examples: Sequence[Example] = (),
        *,
        normalize: bool = False,
        details: bool = False,
    ) -> Any:
        """Which of some texts is likeliest to follow a prompt: a str, or a `Choice` with details;
        a list of that for a batch.

        Args:
          query: a prompt, or a batch of them.
          choices: where the prompt ends with a word, a space is put before each.
          examples: few-shot examples before every prompt.
          normalize: compare means per token, not sums, so that long texts have no disadvantage.
          details: give `Choice`s.
        """
        if isinstance(choices, str) or not choices or not all(choices):
            raise UserError(
                f"choices are {choices!r:.80}: give a list of texts, none of them empty"
            )
        prompts, several = self._prompts(query, examples)
        tokenizer, results = self.processor.tokenizer, []
        for prompt in prompts:
            tokens = [tokens_after(tokenizer, prompt, choice) for choice in choices]
            with self._asking():
                scores = self.scores([prompt], tokens)
            logprobs = (scores.means_BC if normalize else scores.sums_BC)[0].astype(float)
            shares = np.exp(logprobs - logprobs.max())
            results.append(
                Choice(
                    choices[int(logprobs.argmax())],
                    dict(zip(choices, logprobs.tolist(), strict=True)),
                    dict(zip(choices, (shares / shares.sum()).tolist(), strict=True)),
                )
            )
        answers = results if details else [result.text for result in results]
        return answers if several else answers[0]

    def perplexity(self, query: Any) -> Any:
        """exp(mean negative log-likelihood per token) of the text of a document of pictures and
        text, or a list of that for a batch. Marks of pictures are not predicted."""
        prompts, several = self._prompts(query, ())
        batch = collate(prompts)
        with self._asking():
            values = perplexity(self.graph, self.params, *batch.inputs).tolist()
        return values if several else values[0]

    def generation_config(self, **settings: Any) -> GenerationConfig:
        """UserError: a setting that does not exist or is out of its range."""
        known = [field.name for field in dataclasses.fields(GenerationConfig)]
        for name in settings:
            if name not in known:
                raise UserError(unknown_key(name, known))
        end_of_text = self.processor.tokenizer.eos_token_id
        stops = (self.config.end_of_chunk_token, end_of_text)
        defaults = {"stop_tokens": tuple(t for t in stops if t is not None)}
        try:
            return GenerationConfig(**{**defaults, **settings})
        except (TypeError, ValueError) as error:
            raise UserError(str(error)) from None

    def generate_batch(
        self,
        prompts: Sequence[ReadPrompt],
        config: GenerationConfig,
        seeds: Sequence[int],
        stop: Sequence[str] = (),
    ) -> list[list[Continuation]]:
        """Continuations of prompts that are read, best first, in one call of the model."""
        with self._asking():
            end = stop_strings(self.processor.tokenizer, stop)
            made = self.generated(prompts, config, seeds=seeds, stop=end)
        return [self._continuations(made, row, end) for row in range(len(prompts))]

    def stream_batch(
        self,
        prompts: Sequence[ReadPrompt],
        config: GenerationConfig,
        seeds: Sequence[int],
        stop: Sequence[str] = (),
    ) -> Iterator[list[str]]:
        """The texts so far of prompts that are read, again after every token."""
        if config.num_return_sequences > 1:
            raise UserError(f"num_return_sequences is {config.num_return_sequences}: stream one")
        batch = collate(prompts)
        with self._asking():
            end = stop_strings(self.processor.tokenizer, stop)
            parts = stream(
                self.graph,
                self.params,
                *batch.inputs,
                config=config,
                num_images_B=batch.num_images_B,
                seeds=seeds,
                stop=end,
            )
        latest = None
        while True:
            with self._asking():  # not across the yield: the mesh in force belongs to the caller
                part = next(parts, None)
            # One behind, so that the last one is known as such.
            if latest is not None:
                texts = [self._text(latest.sequences(r)[0], end) for r in range(len(prompts))]
                yield texts if part is None else [emittable_prefix(text, stop) for text in texts]
            if part is None:
                return
            latest = part

    def _prompts(self, query: Any, examples: Sequence[Example]) -> tuple[list[ReadPrompt], bool]:
        if isinstance(query, ReadPrompt):
            return [query], False
        if isinstance(query, list) and query and all(isinstance(p, ReadPrompt) for p in query):
            return query, True
        prompts, several = split_batch(query)
        return [self._read_parts(join(examples, prompt), None) for prompt in prompts], several

    def _read_parts(self, parts: Sequence[Any], limits: Limits | None) -> ReadPrompt:
        return read_prompt(parts, self.processor.tokenizer, self.processor.images, limits)

    def _continuations(
        self, made: Generated, row: int, stop: StopStrings | None
    ) -> list[Continuation]:
        return [
            Continuation(
                self._text(tokens, stop),
                tuple(tokens),
                tuple(made.logprobs_BRN[row, index, : len(tokens)].tolist()),
                float(made.scores_BR[row, index]),
            )
            for index, tokens in enumerate(made.sequences(row))
        ]

    def _text(self, tokens: Sequence[int], stop: StopStrings | None) -> str:
        return decoded(self.processor.tokenizer, tokens) if stop is None else stop.text(tokens)

    @contextmanager
    def _asking(self) -> Iterator[None]:
        """Turns what the model refuses into errors that the user can mend."""
        try:
            yield
        except ValueError as error:
            raise UserError(str(error)) from None
