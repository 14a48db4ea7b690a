"""Scoring captions and answers, beside pycocoevalcap and the VQA authors' loop.

Captions and answers are made up, as many as `--size` says, with COCO's five references and VQA's
ten human answers. Tokens and scores of both sides must agree before they are timed. Then the whole
harness, files to scores, asks the digits demo's model (random weights) about scans of digits: by
likelihood of the ten names, and by generation; the first run of each, which compiles, is apart.

    pip install --no-deps pycocoevalcap  # the peer; its tokenizer needs Java as well
    python -m benchmarks.evaluation --json figures.json
"""

import math
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import report, scoring_peer
from benchmarks.measuring import add_rate, check_agree
from flamingo_jax.evaluate.metrics.cider import cider, cider_of_tokens, tokenize
from flamingo_jax.evaluate.metrics.vqa import vqa_accuracy

SIZES = {"coco": (5000, 397), "small": (500, 100), "tiny": (20, 8)}  # captions, scans
REFERENCES, HUMANS = 5, 10
SHOTS, NEW_TOKENS = 4, 4
ANSWERS = (
    "yes", "no", "a dog", "the dog", "two", "2", "dont know", "it isnt", "red, white", "T-shirt",
    "1,000", "on the table.", "tennis racket", "cant tell", "baseball", "ten o'clock",
)  # fmt: skip
ENDINGS = (".", "", " .", "!", ", isn't it?", " (2 of 3)", ' and "so on".', "; the man's.")


def made_captions(count: int) -> tuple[dict[int, str], dict[int, list[str]]]:
    """Returns a caption and five references of each image; common words are common, as in any
    text."""
    rng = np.random.default_rng(0)
    syllables = [a + b for a in "bdfgklmnprst" for b in "aeiou"]
    words = ["a", "on", "the", *("".join(rng.choice(syllables, 2 + i % 2)) for i in range(4000))]
    share = 1 / np.arange(1, len(words) + 1)

    def sentence() -> str:
        # After a last word of one letter, Java looks into the next caption.
        chosen = [*rng.choice(len(words), 9, p=share / share.sum()), rng.integers(3, len(words))]
        return " ".join(words[i] for i in chosen).capitalize() + str(rng.choice(ENDINGS))

    references = {i: [sentence() for _ in range(REFERENCES)] for i in range(count)}
    captions = {}
    for i, texts in references.items():
        first, second = texts[0].split(), texts[1].split()
        captions[i] = " ".join(first[:5] + second[5:])
    return captions, references


def made_answers(count: int) -> list[tuple[str, list[str]]]:
    """Returns a prediction and ten human answers of each question; most humans say one of three
    things."""
    rng = np.random.default_rng(1)
    questions = []
    for _ in range(count):
        likely = rng.choice(ANSWERS, 3)
        humans = [str(rng.choice(likely, p=(0.6, 0.3, 0.1))) for _ in range(HUMANS)]
        questions.append((str(rng.choice(likely)), humans))
    return questions


def score_captions(table: report.Report, count: int, turns: int) -> None:
    """Times tokens, CIDEr of tokens, and both together."""
    captions, references = made_captions(count)
    texts = [*captions.values(), *(text for own in references.values() for text in own)]
    tokens = {i: tokenize(text) for i, text in captions.items()}
    reference_tokens = {i: [tokenize(text) for text in own] for i, own in references.items()}
    their_cider, their_tokens = scoring_peer.cider(), scoring_peer.tokenizer()
    if their_cider is None:
        table.note(f"captions: peer not installed: {scoring_peer.INSTALL}")
    elif their_tokens is None:
        table.note("tokens: peer not run: there is no Java")

    def whole() -> None:
        made = their_tokens(texts)
        own = {i: made[count + REFERENCES * i :][:REFERENCES] for i in range(count)}
        their_cider(dict(enumerate(made[:count])), own)

    if their_cider:
        ours = list(cider_of_tokens(tokens, reference_tokens)[1].values())
        check_agree("CIDEr", ours, their_cider(tokens, reference_tokens), 1e-9)
    if their_tokens and (differ := differing(texts, their_tokens(texts))):
        raise SystemExit(f"tokens: the two do not agree, so their times say nothing: {differ!r}")
    add_rate(
        table,
        "tokenized_captions_per_second",
        lambda: [tokenize(text) for text in texts],
        their_tokens and (lambda: their_tokens(texts)),
        len(texts),
        turns,
    )
    add_rate(
        table,
        "cider_images_per_second",
        lambda: cider_of_tokens(tokens, reference_tokens),
        their_cider and (lambda: their_cider(tokens, reference_tokens)),
        count,
        turns,
    )
    add_rate(
        table,
        "captions_to_cider_images_per_second",
        lambda: cider(captions, references),
        their_tokens and whole,
        count,
        turns,
    )


def differing(texts: Sequence[str], theirs: Sequence[str]) -> str:
    """The first caption that is taken apart in another way; "": none."""
    pairs = zip(texts, theirs, strict=True)
    return next((text for text, made in pairs if tokenize(text) != made), "")


def score_answers(table: report.Report, count: int, turns: int) -> None:
    questions = made_answers(count)

    def ours() -> list[float]:
        return [vqa_accuracy(prediction, humans) for prediction, humans in questions]

    def theirs() -> list[float]:
        return [scoring_peer.vqa_accuracy(prediction, humans) for prediction, humans in questions]

    check_agree("VQA accuracy", ours(), theirs(), 1e-12)
    add_rate(table, "vqa_answers_per_second", ours, theirs, count, turns)


def run_harness(table: report.Report, scans: int) -> None:
    """Measures examples per second from prompts to score.json, the model's answers included."""
    import jax

    from configs import digits
    from flamingo_jax.evaluate.config import FewShotConfig
    from flamingo_jax.evaluate.harness import evaluate
    from flamingo_jax.generate.base import model_of_run
    from flamingo_jax.models.params import init_params, model_graph
    from flamingo_jax.schema import build
    from flamingo_jax.text.tokenizer import load_tokenizer
    from flamingo_jax.train.config import TrainConfig

    config = build(TrainConfig, digits.get_config().to_dict())
    params = jax.jit(lambda: init_params(config.model, jax.random.key(0)))()
    tokens = load_tokenizer(config.tokenizer, config.model.decoder.vocab_size)
    model = model_of_run(model_graph(config.model), params, tokens, None)
    for name, options in (("likelihood", {}), ("generation", {"max_new_tokens": NEW_TOKENS})):
        asked = FewShotConfig(tasks={"digits": options}, shots=(SHOTS,), num_samples=scans)

        def once(asked: Any = asked) -> tuple[float, float | None]:
            with tempfile.TemporaryDirectory() as out:
                start = time.perf_counter()
                (score,) = evaluate(model, asked, Path(out)).values()
                return time.perf_counter() - start, score

        (first, before), (later, after) = once(), once()
        if before != after or after is None or not math.isfinite(after):
            raise SystemExit(f"harness, {name}: scores {before} and {after} of the same examples")
        table.add(f"harness_{name}_first_run", first, unit="s")
        table.add(f"harness_{name}_examples_per_second", scans / later)


def main(argv: Sequence[str]) -> None:
    parser = report.parser(__doc__, tuple(SIZES))
    parser.add_argument("--turns", type=int, default=3, help="timed calls of each")
    args = report.parse(parser, argv)
    count, scans = SIZES[args.size]
    table = report.Report("evaluation", args)
    score_captions(table, count, args.turns)
    score_answers(table, count, args.turns)
    run_harness(table, scans)
    table.write()


if __name__ == "__main__":
    report.run(main)
