"""The largest batch that fits, and the cheapest rematerialisation that does."""

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass, field

from flamingo_jax.parallel.remat import RematPolicy
from flamingo_jax.plan.account import StepCost
from flamingo_jax.train.config import TrainConfig

BY_FLOPS: tuple[RematPolicy, ...] = ("none", "elementwise", "dots", "full")  # fewest first
Measure = Callable[[TrainConfig], StepCost]


@dataclass
class Search:
    """What was tried, by name, and the config it led to (the first one where none fits)."""

    config: TrainConfig
    chosen: str | None = None
    tried: list[tuple[str, StepCost]] = field(default_factory=list)


def cheapest_remat(config: TrainConfig, measure: Measure) -> Search:
    """Returns the policy with the fewest FLOPs that fits."""
    search = Search(config)
    for policy in BY_FLOPS:
        candidate = dataclasses.replace(
            config, model=dataclasses.replace(config.model, remat=policy)
        )
        account = measure(candidate)
        search.tried.append((policy, account))
        if account.per_device.fits:
            search.config, search.chosen = candidate, policy
            break
    return search


def largest_batch(config: TrainConfig, row_parts: int, capacity: float, measure: Measure) -> Search:
    """Returns the largest batch that fits, with the config's proportions of streams.

    Rows are cut into `row_parts` by the mesh; a device has `capacity` bytes. Begins with the
    config's batch, or the next one that can be cut so.
    """
    parts = row_parts * config.accumulation_steps
    common = math.gcd(*(stream.batch_size for stream in config.streams.values()))
    start = math.ceil(common / parts)

    def multiplied(factor: int) -> TrainConfig:
        streams = {
            name: dataclasses.replace(
                stream, batch_size=stream.batch_size // common * parts * factor
            )
            for name, stream in config.streams.items()
        }
        return dataclasses.replace(config, streams=streams)

    def name(candidate: TrainConfig) -> str:
        return " + ".join(str(stream.batch_size) for stream in candidate.streams.values())

    def peak(factor: int) -> float:
        candidate = multiplied(factor)
        account = measure(candidate)
        search.tried.append((name(candidate), account))
        return account.per_device.peak_gib * 2**30

    search = Search(multiplied(start))
    best = largest_fitting(peak, capacity, start)
    if best:
        search.config = multiplied(best)
        search.chosen = name(search.config)
    return search


def largest_fitting(peak: Callable[[int], float], capacity: float, start: int) -> int:
    """Returns the largest k with peak(k) ≤ capacity, where peak grows with k; 0: not even 1 fits.

    `peak` is a compilation, so few are made: two of them are taken for points of a straight line,
    and the line's answer is tried next.
    """
    known: dict[int, float] = {}
    fits, too_large = 0, math.inf
    guess = start
    while too_large - fits > 1:
        known[guess] = peak(guess)
        if known[guess] <= capacity:
            fits = max(fits, guess)
        else:
            too_large = min(too_large, guess)
        guess = _next_guess(known, capacity, fits, too_large)
    return fits


def _next_guess(known: dict[int, float], capacity: float, fits: int, too_large: float) -> int:
    highest = int(too_large) - 1 if math.isfinite(too_large) else 8 * max(fits, 1)
    measured = sorted((k, value) for k, value in known.items() if math.isfinite(value))
    if len(measured) < 2:
        guess = 2 * fits if fits else int(too_large) // 2
    else:
        (k0, low), (k1, high) = measured[-2:]
        guess = math.floor(k0 + (capacity - low) * (k1 - k0) / max(high - low, 1))
    # Where the line's answer is known to fit, ask whether one more does.
    return max(min(guess, highest), fits + 1)
