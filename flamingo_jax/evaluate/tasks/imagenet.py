"""ImageNet classification, in folders named by WordNet ids."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from flamingo_jax.evaluate.tasks.imagenet_classes import class_names
from flamingo_jax.evaluate.tasks.task import DataErrors, Example, Split, Task

# Two names stand twice in the list, so that one of each pair could never be told.
TOLD_APART = {"n04008634": "projectile", "n04355933": "sunglass lens"}


@dataclass(frozen=True, kw_only=True)
class ImageNet(Task):
    """Top-1 accuracy by class name.

    A class is known by its folder's name, never by its rank among the folders, and the classes to
    choose among are those that have a folder in `train`.
    """

    folder: str = "imagenet"

    metric = "accuracy"
    separator = ""

    def files(self, split: Split) -> tuple[str, ...]:
        return ("train" if split == "train" else "val",)

    def choices(self, data: Path) -> tuple[str, ...]:
        names = _names()
        folders = sorted(f.name for f in self.path(data, "train").iterdir())
        return tuple(names[folder] for folder in folders if folder in names)

    def read(self, data: Path, split: Split, problems: DataErrors) -> Iterator[Example]:
        (part,) = self.files(split)
        names = _names()
        for folder in sorted(f for f in self.path(data, part).iterdir() if f.is_dir()):
            if folder.name not in names:
                problems.found("unknown class", str(folder))
                continue
            name = names[folder.name]
            for file in sorted(folder.iterdir()):
                image = f"{self.folder}/{part}/{folder.name}/{file.name}"
                extras = {"label": folder.name}
                yield Example(file.stem, image, "Output:", name, (name,), extras=extras)


def _names() -> dict[str, str]:
    return class_names() | TOLD_APART
