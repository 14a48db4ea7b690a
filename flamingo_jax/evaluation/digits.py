"""What the digits demo has learned, on held-out scans: naming digits, and binding new names."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from flamingo_jax.config import EvaluationConfig
from flamingo_jax.data import digits
from flamingo_jax.data.documents import Document
from flamingo_jax.data.examples import ExampleMaker
from flamingo_jax.data.tokenizer import TextTokens
from flamingo_jax.models.params import ModelGraph, Params


@dataclass(frozen=True)
class Question:
    """A prompt, the words that may follow it, and which of them is right."""

    prompt: Document
    choices: tuple[str, ...]
    right: int


@dataclass(frozen=True)
class Answered:
    """A question with the model's choice."""

    question: Question
    choice: int

    @property
    def correct(self) -> bool:
        return self.choice == self.question.right


def naming_questions(split: digits.Split) -> list[Question]:
    """Every scan of a split: which of the ten digits is it?"""
    return [
        Question(
            Document(f"digits/name/{index}", (scan, digits.PROMPT), "pair"),
            digits.WORDS,
            int(digit),
        )
        for index, (scan, digit) in enumerate(zip(*digits.scans(split), strict=True))
    ]


def binding_questions(
    shots: int, count: int, seed: int, split: digits.Split = "held_out"
) -> list[Question]:
    """Two-way fast binding with `shots` scans per name; which of the two names is it?"""
    questions = []
    for index in range(count):
        rng = np.random.default_rng((seed, shots, index))
        prompt, (right, wrong) = digits.binding_prompt(shots, rng, split)
        # In the order of the vocabulary, so that the place of the right answer tells nothing.
        choices = tuple(sorted((right, wrong), key=digits.NAMES.index))
        questions.append(Question(prompt, choices, choices.index(right)))
    return questions


@partial(jax.jit, static_argnums=0)
def next_token_logits(
    graph: ModelGraph, params: Params, batch: dict[str, Array]
) -> Float[Array, "B V"]:
    """Float32 logits of the token after each row's last one."""
    model = graph.merge(params)
    logits_BLV = model(batch["images"], batch["tokens"], batch["segments"])
    last_B = batch["segments"].sum(axis=1) - 1
    return jnp.take_along_axis(logits_BLV, last_B[:, None, None], axis=1)[:, 0]


def answer(
    graph: ModelGraph,
    params: Params,
    tokens: TextTokens,
    questions: Sequence[Question],
    *,
    image_size: int,
    batch_size: int,
) -> list[Answered]:
    """The likeliest choice of each question. All prompts must have equally many images."""
    num_images = len(questions[0].prompt.images)
    # Three tokens an image at most: <image>, its text, <|endofchunk|>; one more for the caption.
    maker = ExampleMaker(tokens, 3 * num_images + 1, num_images, image_size)
    answered: list[Answered] = []
    for start in range(0, len(questions), batch_size):
        chunk = questions[start : start + batch_size]
        rows = [maker.prompt(question.prompt) for question in chunk]
        rows += [rows[-1]] * (batch_size - len(rows))  # one shape, so one compilation
        batch = {name: np.stack([row[name] for row in rows]) for name in rows[0]}
        logits_BV = np.asarray(next_token_logits(graph, params, batch))
        for question, logits_V in zip(chunk, logits_BV, strict=False):
            ids = [tokens.token_id(word) for word in question.choices]
            answered.append(Answered(question, int(np.argmax(logits_V[ids]))))
    return answered


def score(answers: Sequence[Answered]) -> dict[str, float]:
    """Accuracy, its standard error and the number of questions."""
    accuracy = float(np.mean([a.correct for a in answers]))
    stderr = float(np.sqrt(accuracy * (1 - accuracy) / len(answers)))
    return {"accuracy": accuracy, "stderr": stderr, "n": len(answers)}


def evaluate(
    graph: ModelGraph,
    params: Params,
    tokens: TextTokens,
    config: EvaluationConfig,
    *,
    image_size: int,
    seed: int = 0,
) -> tuple[list[Answered], dict[int, list[Answered]]]:
    """Answers to the naming questions, and to the binding questions by number of shots."""
    ask = partial(
        answer, graph, params, tokens, image_size=image_size, batch_size=config.batch_size
    )
    naming = ask(naming_questions(config.split))
    binding = {
        shots: ask(binding_questions(shots, config.num_examples, seed, config.split))
        for shots in config.shots
    }
    return naming, binding
