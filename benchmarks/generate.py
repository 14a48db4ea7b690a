"""Generation and classification, side by side with the original's way in PyTorch.

The same weights, prompts and two cores for both, in turns; every timed call encodes its images.
Greedy tokens, best beams and class scores must agree. Prints medians, and the median ratio of the
turns. On a machine that has other work, `--busy` measures CPU time on one core instead: threads
that wait for each other would distort both sides.

    python -m benchmarks.generate --json figures.json
"""

import argparse
import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np

from flamingo_jax.models import decoding, scoring
from flamingo_jax.models.cross_attention import CrossAttentionConfig
from flamingo_jax.models.decoder import DecoderConfig
from flamingo_jax.models.flamingo import FlamingoConfig
from flamingo_jax.models.generate import GenerationConfig, generate
from flamingo_jax.models.params import flamingo_graph, init_params
from flamingo_jax.models.vision import VisionConfig

PROMPTS, LENGTH, IMAGES, NEW_TOKENS, CLASSES = 4, 128, 4, 32, 100
CLASSIFICATIONS = ("classification", "classification_cached")
SIZES = {"small": (512, 8, 8192), "tiny": (64, 4, 512)}  # of the decoder: width, layers, vocabulary


def model_config(size: str) -> FlamingoConfig:
    width, layers, vocabulary = SIZES[size]
    return FlamingoConfig(
        vision=VisionConfig(
            width=width // 2, num_layers=3 * layers // 4, num_heads=4, image_size=112, patch_size=14
        ),
        decoder=DecoderConfig(
            width=width,
            num_layers=layers,
            num_heads=8,
            vocab_size=vocabulary - 2,
            num_new_tokens=2,
            position="alibi",
            norm_bias=False,
            attention_bias=False,
            mlp_bias=False,
        ),
        cross_attention=CrossAttentionConfig(
            interval=2, gate_init=0.5, feed_forward_everywhere=True
        ),
    )


def programs() -> int:
    """Compiled programs of generation and scoring so far."""
    modules = (vars(decoding).values(), vars(scoring).values())
    jitted = {f for values in modules for f in values if hasattr(f, "_cache_size")}
    return sum(f._cache_size() for f in jitted)


def draw_inputs(config: FlamingoConfig) -> tuple[np.ndarray, np.ndarray, list[list[int]]]:
    """Normalised images (B, T, 1, H, W, 3), tokens (B, L), class names of one to four tokens."""
    rng = np.random.default_rng(0)
    size, vocabulary = config.vision.image_size, config.decoder.vocab_size
    images = rng.normal(size=(PROMPTS, IMAGES, 1, size, size, 3)).astype(np.float32)
    tokens = rng.integers(0, vocabulary, (PROMPTS, LENGTH)).astype(np.int32)
    tokens[:, :: LENGTH // IMAGES] = config.image_token
    names = [rng.integers(0, vocabulary, 1 + i % 4).tolist() for i in range(CLASSES)]
    return images, tokens, names


def tasks(
    config: FlamingoConfig, cores: int
) -> dict[str, tuple[Callable[[], Any], Callable[[], Any]]]:
    """What is timed: ours and the original's."""
    import torch

    from benchmarks.torch_flamingo import TorchFlamingo

    torch.set_num_threads(cores)
    graph = flamingo_graph(config)
    params = jax.jit(lambda: init_params(config, jax.random.key(0)))()
    images, tokens, names = draw_inputs(config)
    original = TorchFlamingo(config, jax.device_get(params))
    theirs = torch.from_numpy(np.moveaxis(images[:, :, 0], -1, 2).copy())
    their_tokens = torch.from_numpy(tokens).long()

    def ours(num_beams: int) -> np.ndarray:
        settings = GenerationConfig(
            max_new_tokens=NEW_TOKENS,
            min_new_tokens=NEW_TOKENS,
            num_beams=num_beams,
            bad_tokens=(),
        )
        return generate(graph, params, images, tokens, config=settings).tokens_BRN[:, 0]

    def the_originals(num_beams: int) -> np.ndarray:
        return original.generate(theirs, their_tokens, num_beams=num_beams, new_tokens=NEW_TOKENS)

    def scores() -> np.ndarray:
        return scoring.score_continuations(graph, params, images, tokens, None, names).sums_BC

    return {
        "greedy": (lambda: ours(1), lambda: the_originals(1)),
        "beam3": (lambda: ours(3), lambda: the_originals(3)),
        "classification": (scores, lambda: original.classify(theirs, their_tokens, names)),
        "classification_cached": (
            scores,
            lambda: original.classify_cached(theirs, their_tokens, names),
        ),
    }


def seconds(run: Callable[[], Any], clock: Callable[[], float]) -> float:
    start = clock()
    run()
    return clock() - start


def measure(
    name: str, ours: Callable, theirs: Callable, turns: int, clock: Callable[[], float]
) -> dict[str, float]:
    start = clock()
    made = ours()
    first_call = clock() - start
    before = programs()
    agree = np.allclose(made, theirs(), atol=2e-3)
    if not agree:
        raise SystemExit(f"{name}: the two do not agree, so their times cannot be compared")
    times = np.array([(seconds(ours, clock), seconds(theirs, clock)) for _ in range(turns)])
    ours_s, theirs_s = np.median(times, axis=0)
    figures = {
        "seconds": ours_s,
        "seconds_original": theirs_s,
        "first_call_seconds": first_call,
        "compiled_after_first_call": programs() - before,
    }
    generates = not name.startswith("classification")
    unit = f"{name}_tokens_per_second" if generates else name
    if generates:
        total = PROMPTS * NEW_TOKENS
        figures |= {"tokens_per_second": total / ours_s}
        figures |= {"tokens_per_second_original": total / theirs_s}
    ratios = {f"ratio_{unit}": np.median(times[:, 1] / times[:, 0])}
    return {f"{name}_{key}": float(value) for key, value in figures.items()} | {
        key: float(value) for key, value in ratios.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    parser.add_argument("--size", choices=SIZES, default="small")
    parser.add_argument("--turns", type=int, default=5, help="timed calls of each")
    parser.add_argument("--busy", action="store_true", help="CPU time on one core")
    parser.add_argument("--only", choices=("greedy", "beam3", *CLASSIFICATIONS))
    args = parser.parse_args()
    cores, clock = (1, time.process_time) if args.busy else (2, time.perf_counter)
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:cores])  # JAX counts them later
    figures: dict[str, float] = {}
    for name, (ours, theirs) in tasks(model_config(args.size), cores).items():
        if args.only in (None, name):
            turns = 1 if name == "classification" else args.turns  # the original takes minutes
            measured = measure(name, ours, theirs, turns, clock)
            print(*(f"{key}: {value:.4g}" for key, value in measured.items()), sep="\n", flush=True)
            figures |= measured
    if args.json:
        args.json.write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()
