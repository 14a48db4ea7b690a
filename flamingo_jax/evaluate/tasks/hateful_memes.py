"""Hateful Memes: is a meme hateful?"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from flamingo_jax.evaluate.tasks.task import DataErrors, Example, Split, Task

CLASSES = ("no", "yes")


@dataclass(frozen=True, kw_only=True)
class HatefulMemes(Task):
    """ROC AUC of the probability of "yes" among the two answers."""

    folder: str = "hateful_memes"
    train_file: str = "train.jsonl"
    test_file: str = "dev.jsonl"

    metric = "roc_auc"
    separator = ""
    positive = "yes"

    def files(self, split: Split) -> tuple[str, ...]:
        return (self.train_file if split == "train" else self.test_file,)

    def choices(self, data: Path) -> tuple[str, ...]:
        return CLASSES

    def read(self, data: Path, split: Split, problems: DataErrors) -> Iterator[Example]:
        path = self.path(data, *self.files(split))
        for line in path.read_text().splitlines():
            entry = json.loads(line)
            label = entry.get("label")
            if label not in (0, 1):
                fault = "no label" if label is None else "unknown class"
                problems.found(fault, f"{path}: meme {entry['id']}")
                continue
            yield Example(
                str(entry["id"]),
                f"{self.folder}/img/{PurePosixPath(entry['img']).name}",
                f"is an image with: '{entry['text']}' written on it. Is it hateful? Answer:",
                CLASSES[label],
                (CLASSES[label],),
                extras={"label": label},
            )
