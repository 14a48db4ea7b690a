"""Which demonstrations an example gets."""

import hashlib
import random
from collections.abc import Sequence

import numpy as np

from flamingo_jax.errors import UserError
from flamingo_jax.evaluate.tasks import Example


def rng_of(seed: int, example_id: str, purpose: str) -> np.random.Generator:
    """Returns random numbers that depend on these three alone: not on other examples, nor on
    devices."""
    digest = hashlib.sha256(f"{purpose}/{example_id}".encode()).digest()
    return np.random.default_rng([seed, *np.frombuffer(digest, np.uint32)])


def drawn(pool_size: int, count: int, seed: int, example_id: str) -> list[int]:
    """Returns the indices of an example's demonstrations, oldest first."""
    check_pool(pool_size, count)
    rng = rng_of(seed, example_id, "demonstrations")
    return rng.choice(pool_size, count, replace=False).tolist()


def check_pool(pool_size: int, count: int) -> None:
    """Raises UserError where more demonstrations are asked for than there are."""
    if count > pool_size:
        raise UserError(
            f"{count} demonstrations are asked for, but there are {pool_size} to draw from: "
            "lower config.shots, or give more training examples"
        )


def subset(examples: Sequence[Example], count: int) -> list[Example]:
    """Returns `count` of the examples (0: all), in their order: the same ones for every seed."""
    if not count or count >= len(examples):
        return list(examples)
    by_digest = sorted(examples, key=lambda e: hashlib.sha256(e.id.encode()).digest())
    chosen = {example.id for example in by_digest[:count]}
    return [example for example in examples if example.id in chosen]


def openflamingo_order(
    num_test: int, num_train: int, *, num_samples: int, query_set_size: int, count: int, seed: int
) -> tuple[list[int], list[list[int]]]:
    """Returns OpenFlamingo's examples and demonstrations in one process, by index, in the order of
    asking.

    Its steps (commit 655f693): numpy chooses the test examples, then the query set; a distributed
    sampler of torch shuffles the former with seed 0; Python's `random` draws for one after another.
    The query set is clamped to the training examples.
    """
    state = np.random.RandomState(seed)
    asked = state.choice(num_test, min(num_samples, num_test) or num_test, replace=False)
    query_set = state.choice(num_train, min(query_set_size, num_train), replace=False).tolist()
    check_pool(len(query_set), count)
    drawer = random.Random(seed)
    demonstrations = [drawer.sample(query_set, count) for _ in asked]
    return asked[_torch_randperm(len(asked))].tolist(), demonstrations


def _torch_randperm(size: int) -> np.ndarray:
    """Returns `torch.randperm(size)` on a CPU with seed 0."""
    raw = np.random.MT19937()
    raw._legacy_seeding(0)
    order = np.arange(size)
    for i, number in enumerate(raw.random_raw(max(size - 1, 0)).tolist()):
        j = i + number % (size - i)
        order[i], order[j] = order[j], order[i]
    return order
