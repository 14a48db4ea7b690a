"""COCO and Flickr30k captions, in Karpathy's files."""

from abc import abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

from flamingo_jax.evaluate.tasks.task import DataErrors, Example, Split, Task
from flamingo_jax.weights.readers import read_json


@dataclass(frozen=True, kw_only=True)
class Captions(Task):
    """Captioning; a demonstration shows its image's first caption."""

    split: Literal["val", "test"] = "test"
    max_new_tokens: int = 20

    metric = "cider"
    annotations: ClassVar[str]

    @abstractmethod
    def key_and_image(self, entry: dict[str, Any]) -> tuple[str, str]:
        """Returns the id and image path of an entry."""

    def files(self, split: Split) -> tuple[str, ...]:
        return (self.annotations,)

    def read(self, data: Path, split: Split, problems: DataErrors) -> Iterator[Example]:
        path = self.path(data, self.annotations)
        wanted = "train" if split == "train" else self.split
        for entry in read_json(path)["images"]:
            if entry["split"] != wanted:
                continue
            key, image = self.key_and_image(entry)
            captions = tuple(s["raw"] for s in entry.get("sentences", ()) if s["raw"].strip())
            if not captions:
                problems.found("no caption", f"{path}: image {key}")
                continue
            yield Example(key, f"{self.folder}/{image}", "Output:", captions[0].strip(), captions)

    def process(self, raw: str) -> str:
        return raw.split("Output", 1)[0].replace('"', "")


@dataclass(frozen=True, kw_only=True)
class Coco(Captions):
    """COCO 2014, Karpathy's split."""

    folder: str = "coco"
    annotations = "dataset_coco.json"

    def key_and_image(self, entry: dict[str, Any]) -> tuple[str, str]:
        return str(entry["cocoid"]), f"{entry['filepath']}/{entry['filename']}"


@dataclass(frozen=True, kw_only=True)
class Flickr30k(Captions):
    """Flickr30k, Karpathy's split."""

    folder: str = "flickr30k"
    annotations = "dataset_flickr30k.json"

    def key_and_image(self, entry: dict[str, Any]) -> tuple[str, str]:
        return entry["filename"].split(".")[0], f"flickr30k-images/{entry['filename']}"
