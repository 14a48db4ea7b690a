"""Generation and classification, side by side with the original's way in PyTorch.

The same weights and prompts for both, in turns; every timed call encodes its images. In float32
greedy tokens, best beams and class scores must agree; in bfloat16, where rounding decides between
near candidates, the table says how far they do. Shown are medians, and the median ratio of the
turns. On a CPU both get two cores; on one that has other work, `--busy` measures CPU time on one
core instead: threads that wait for each other would distort both sides.

    python -m benchmarks.generate --json figures.json
    python -m benchmarks.generate --device gpu --size 9b --layers 8
"""

import dataclasses
import os
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from benchmarks import report
from benchmarks.measuring import Run, add_rate, check_agree
from benchmarks.models import SIZES, model_config
from flamingo_jax.errors import UserError
from flamingo_jax.generate.engine import decoding, scoring
from flamingo_jax.generate.engine.generate import GenerationConfig, generate
from flamingo_jax.models.params import cast, init_params, model_graph
from flamingo_jax.models.vlm import ModelConfig

CLASSIFICATIONS = ("classification", "classification_cached")
TASKS = ("greedy", "beam3", *CLASSIFICATIONS)


@dataclasses.dataclass(frozen=True)
class Work:
    """What is asked: that of the original's known figures."""

    prompts: int = 4
    length: int = 128
    images: int = 4
    new_tokens: int = 32
    classes: int = 100


TINY = Work(prompts=2, length=16, images=2, new_tokens=4, classes=3)


def work_of(size: str) -> Work:
    return TINY if size == "tiny" else Work()


@dataclasses.dataclass(frozen=True)
class Both:
    """The same work done twice; `peer` is None where PyTorch cannot do it."""

    ours: Run
    peer: Run | None


def programs() -> int:
    """Counts the compiled programs of generation and scoring so far."""
    modules = (vars(decoding).values(), vars(scoring).values())
    jitted = {f for values in modules for f in values if hasattr(f, "_cache_size")}
    return sum(f._cache_size() for f in jitted)


def draw_inputs(config: ModelConfig, work: Work) -> tuple[np.ndarray, np.ndarray, list[list[int]]]:
    """Returns normalised images (B, T, 1, H, W, 3), tokens (B, L), class names of one to four
    tokens."""
    rng = np.random.default_rng(0)
    size, vocabulary = config.encoder.image_size, config.decoder.vocab_size
    shape = (work.prompts, work.images, 1, size, size, 3)
    images = rng.normal(size=shape).astype(np.float32)
    tokens = rng.integers(0, vocabulary, (work.prompts, work.length)).astype(np.int32)
    tokens[:, :: work.length // work.images] = config.image_token
    names = [rng.integers(0, vocabulary, 1 + i % 4).tolist() for i in range(work.classes)]
    return images, tokens, names


def tasks(config: ModelConfig, work: Work, device: str | None) -> dict[str, Both]:
    """What is timed: ours, and the original's on PyTorch's `device`."""
    graph = model_graph(config)
    params = jax.jit(lambda: cast(init_params(config, jax.random.key(0)), config.dtype))()
    images, tokens, names = draw_inputs(config, work)

    def ours(num_beams: int) -> np.ndarray:
        settings = GenerationConfig(
            max_new_tokens=work.new_tokens,
            min_new_tokens=work.new_tokens,
            num_beams=num_beams,
            bad_tokens=(),
        )
        return generate(graph, params, images, tokens, config=settings).tokens_BRN[:, 0]

    def scores() -> np.ndarray:
        return scoring.score_continuations(graph, params, images, tokens, None, names).sums_BC

    mine: dict[str, Run] = {"greedy": lambda: ours(1), "beam3": lambda: ours(3)}
    mine |= dict.fromkeys(CLASSIFICATIONS, scores)
    theirs = peers(config, params, device, work) if device else {}
    return {name: Both(run, theirs.get(name)) for name, run in mine.items()}


def peers(
    config: ModelConfig,
    params: Any,
    device: str,
    work: Work,
) -> dict[str, Run]:
    import torch

    from benchmarks.torch_flamingo import TorchFlamingo, original_tensors

    if device == "cpu":
        torch.set_num_threads(len(os.sched_getaffinity(0)))
    dtype = getattr(torch, config.dtype)
    images, tokens, names = draw_inputs(config, work)
    arrays = original_tensors(config, jax.device_get(params))
    original = TorchFlamingo(config, arrays, device, dtype)
    shown = torch.from_numpy(np.moveaxis(images[:, :, 0], -1, 2).copy())
    asked = torch.from_numpy(tokens).long()

    def made(num_beams: int) -> np.ndarray:
        return original.generate(shown, asked, num_beams=num_beams, new_tokens=work.new_tokens)

    return {
        "greedy": lambda: made(1),
        "beam3": lambda: made(3),
        "classification": lambda: original.classify(shown, asked, names),
        "classification_cached": lambda: original.classify_cached(shown, asked, names),
    }


def measure(
    table: report.Report,
    name: str,
    both: Both,
    work: Work,
    turns: int,
    *,
    clock: Callable[[], float],
    exact: bool,
) -> None:
    start = clock()
    made = both.ours()
    first_call, before = clock() - start, programs()
    classifies = name in CLASSIFICATIONS
    if both.peer:
        expected = both.peer()
        if exact:
            check_agree(name, made, expected, 2e-3)
        elif classifies:
            table.add(f"{name}_largest_difference", np.abs(made - expected).max(), unit="nats")
        else:
            table.add(f"{name}_same_tokens", np.mean(made == expected))
    row, count, unit = f"{name}_tokens_per_second", work.prompts * work.new_tokens, ""
    if classifies:
        row, count, unit = name, work.prompts, "prompts/s"
    add_rate(table, row, both.ours, both.peer, count, turns, unit=unit, clock=clock)
    table.add(f"{name}_first_call", first_call, unit="s")
    table.add(f"{name}_compiled_after_first_call", programs() - before)


def main(argv: Sequence[str]) -> None:
    parser = report.parser(__doc__, tuple(SIZES))
    parser.add_argument("--turns", type=int, default=5, help="timed calls of each")
    parser.add_argument("--busy", action="store_true", help="CPU time on one core")
    parser.add_argument("--only", choices=TASKS)
    parser.add_argument("--layers", type=int, default=0, help="of the decoder; default: all")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), help="default: by device")
    args = report.parse(parser, argv)
    if args.busy and args.device != "cpu":
        raise UserError("--busy counts the time of a CPU's core; leave it out on other devices")
    clock = time.process_time if args.busy else time.perf_counter
    if args.device == "cpu":  # JAX counts them later
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: 1 if args.busy else 2])
    args.dtype = args.dtype or ("float32" if args.device == "cpu" else "bfloat16")
    if args.dtype == "float32":  # as PyTorch, on every device
        jax.config.update("jax_default_matmul_precision", "highest")
    config = dataclasses.replace(model_config(args.size, args.layers), dtype=args.dtype)
    table = report.Report("generate", args)
    device = report.torch_device(args.device)
    if device is None:
        table.note(report.no_torch(args.device))
    work = work_of(args.size)
    for name, both in tasks(config, work, device).items():
        if args.only in (None, name):
            turns = 1 if name == "classification" else args.turns  # the original takes minutes
            exact = args.dtype == "float32"
            measure(table, name, both, work, turns, clock=clock, exact=exact)
    table.write()


if __name__ == "__main__":
    report.run(main)
