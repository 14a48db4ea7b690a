"""Plans an evaluation: its examples, what each is shown, and its prompts."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from flamingo_jax.evaluate import sampling
from flamingo_jax.evaluate.config import FewShotConfig
from flamingo_jax.evaluate.prompts import Prompt, make_prompt
from flamingo_jax.evaluate.tasks import DataErrors, Example, Task, read_split

# (task, data root, queries, pool, k, problems) → by query id k indices into the pool, the most
# similar first. Unreadable images of the pool are problems; of a query: it is absent.
Neighbours = Callable[
    [Task, Path, Sequence[Example], Sequence[Example], int, DataErrors], dict[str, np.ndarray]
]
Shown = list[tuple[Example, list[Example]]]  # what is asked, with its demonstrations, oldest first


@dataclass(frozen=True)
class Dataset:
    """A task with its sound examples, and how many were left out of each split, by fault."""

    name: str
    task: Task
    train: list[Example]
    test: list[Example]
    left_out: dict[str, int]
    left_out_of_train: dict[str, int]
    neighbours: dict[str, list[int]]  # RICES: of each test example, the most similar first


def read(name: str, task: Task, config: FewShotConfig, neighbours: Neighbours | None) -> Dataset:
    """Returns the data of a task. UserError: missing or at fault, or too little for so many
    shots."""
    root = Path(config.data_root)
    problems, train_problems = DataErrors(config.on_error), DataErrors(config.on_error)
    test = read_split(task, root, "test", problems)
    # Without shots, only the text of demonstrations is shown.
    images = any(config.shots) or config.demonstrations == "rices" or _superfluous(task, config)
    train = read_split(task, root, "train", train_problems, images=images)
    if config.sampling == "seeded":
        test = sampling.subset(test, config.num_samples)
    most_similar: dict[str, list[int]] = {}
    if config.demonstrations == "rices":
        assert neighbours is not None
        queries = [example for example in test if example.image is not None]
        places = [i for i, example in enumerate(train) if example.image is not None]
        count = max(max(config.shots), task.text_only)
        sampling.check_pool(len(places), count)
        pool = [train[i] for i in places]
        found = neighbours(task, root, queries, pool, count, train_problems)
        most_similar = {query: [places[i] for i in row] for query, row in found.items()}
    counts = dict(problems.counts), dict(train_problems.counts)
    return Dataset(name, task, train, test, *counts, most_similar)


def show(dataset: Dataset, config: FewShotConfig, shots: int, seed: int) -> Shown:
    """Returns every test example with its demonstrations."""
    own = dataset.task.own_prompts(shots, seed)
    if own is not None:
        return [(example, list(demonstrations)) for example, demonstrations in own]
    count = shots or dataset.task.text_only
    train, test = dataset.train, dataset.test
    asked: list[int] | range = range(len(test))
    if config.sampling == "openflamingo":
        asked, chosen = sampling.openflamingo_order(
            len(test),
            len(train),
            num_samples=config.num_samples,
            query_set_size=config.query_set_size,
            count=count,
            seed=seed,
        )
    else:
        chosen = [sampling.drawn(len(train), count, seed, e.id) for e in test]
    shown = []
    for i, indices in zip(asked, chosen, strict=True):
        # The most similar comes last. A question without an image has none: its draw stays. So
        # does that of an unreadable image, which is left out when it is asked.
        if (similar := dataset.neighbours.get(test[i].id)) is not None:
            indices = similar[:count][::-1]
        shown.append((test[i], [train[j] for j in indices]))
    return shown


def plan(dataset: Dataset, config: FewShotConfig, shots: int, seed: int) -> list[list[Prompt]]:
    """Returns the prompts of every test example: one, or several orders of its demonstrations."""
    task = dataset.task
    orders = 1 if task.max_new_tokens else config.ensemble
    return [
        [
            make_prompt(
                task,
                example,
                order,
                text_only=shots == 0,
                context_images=config.context_images,
                superfluous_images=_superfluous(task, config),
            )
            for order in _orders(demonstrations, orders, seed, example.id)
        ]
        for example, demonstrations in show(dataset, config, shots, seed)
    ]


def _superfluous(task: Task, config: FewShotConfig) -> bool:
    """The original gives images to classification's 0-shot prompts, whose text has no marks."""
    return config.sampling == "openflamingo" and not task.max_new_tokens


def _orders(shown: list[Example], count: int, seed: int, example_id: str) -> list[list[Example]]:
    """Returns different orders of demonstrations, the given one first."""
    rng = sampling.rng_of(seed, example_id, "orders")
    orders = {tuple(range(len(shown))): None}
    while len(orders) < min(count, math.factorial(len(shown))):
        orders[tuple(rng.permutation(len(shown)).tolist())] = None
    return [[shown[i] for i in order] for order in orders]
