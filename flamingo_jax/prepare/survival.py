"""What became of every document and image: counted, and every loss listed with its key."""

import dataclasses
import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from flamingo_jax.data.records import BadRecordError

T = TypeVar("T")
DAMAGED = "damaged record"


class DroppedError(Exception):
    """A document or an image is left out.

    Attributes:
      reason: the step it fell at, as counted.
      detail: about this one, for the list of drops.
    """

    def __init__(self, reason: str, detail: str = ""):
        super().__init__(f"{reason}: {detail}")
        self.reason, self.detail = reason, detail


@dataclass
class Tally:
    """Counts of one shard, or of several.

    Attributes:
      documents, images: that were found, the images in documents that could be read.
      kept, images_kept: that were written.
      dropped, images_dropped: how many, by reason.
      files_damaged: inputs of which an unknown number of documents is lost.
      drops: what was lost: `key`, `reason`, `detail`, and what it was (`of`).
    """

    documents: int = 0
    kept: int = 0
    dropped: Counter[str] = field(default_factory=Counter)
    images: int = 0
    images_kept: int = 0
    images_dropped: Counter[str] = field(default_factory=Counter)
    files_damaged: int = 0
    drops: list[dict[str, str]] = field(default_factory=list)

    def drop(self, key: str, reason: str, detail: str = "") -> None:
        self.dropped[reason] += 1
        self._note("document", key, reason, detail)

    def drop_image(self, key: str, reason: str, detail: str = "") -> None:
        self.images_dropped[reason] += 1
        self._note("image", key, reason, detail)

    def lose_file(self, key: str, detail: str) -> None:
        self.files_damaged += 1
        self._note("file", key, "damaged file", detail)

    def _note(self, of: str, key: str, reason: str, detail: str) -> None:
        self.drops.append({"of": of, "key": key, "reason": reason, "detail": detail})

    def surviving(self, key: str, make: Callable[..., T], *args: Any) -> Iterator[T]:
        """Returns `make(*args)`, or nothing where that drops the document."""
        self.documents += 1
        try:
            made = make(*args)
        except DroppedError as error:
            self.drop(key, error.reason, error.detail)
        except BadRecordError as error:
            self.drop(key, DAMAGED, str(error))
        except (AttributeError, LookupError, TypeError, ValueError) as error:
            # Data of other people: anything may stand where a string or a number is expected.
            self.drop(key, DAMAGED, f"unexpected content: {type(error).__name__}: {error}")
        else:
            yield made

    def counted(self, samples: Iterable[T]) -> Iterator[T]:
        """Returns the samples, counted as kept."""
        for sample in samples:
            self.kept += 1
            yield sample

    def add(self, other: "Tally") -> None:
        """Take in another shard's counts; its list of drops stays in its own file."""
        for name in ("documents", "kept", "images", "images_kept", "files_damaged"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        self.dropped += other.dropped
        self.images_dropped += other.images_dropped

    def to_json(self, **more: Any) -> str:
        return json.dumps({**more, **vars(self)}, indent=1, sort_keys=True) + "\n"

    @classmethod
    def read(cls, path: Path) -> "Tally":
        values = json.loads(path.read_text())
        known = {f.name: values[f.name] for f in dataclasses.fields(cls)}
        counters = {name: Counter(known[name]) for name in ("dropped", "images_dropped")}
        return cls(**known | counters)

    def table(self) -> str:
        """Says, for people, what was read, what was dropped and why, and what is left."""
        rows = [("documents read", self.documents, self.documents)]
        rows += [(f"  {r}", n, self.documents) for r, n in self.dropped.most_common()]
        rows += [("documents kept", self.kept, self.documents)]
        if self.images:
            rest = self.images - self.images_kept - self.images_dropped.total()
            rows += [("images in them", self.images, self.images)]
            rows += [(f"  {r}", n, self.images) for r, n in self.images_dropped.most_common()]
            rows += [("  dropped with their document", rest, self.images)] * (rest > 0)
            rows += [("images kept", self.images_kept, self.images)]
        rows += [("damaged files", self.files_damaged, 0)] * (self.files_damaged > 0)
        width = max(len(name) for name, *_ in rows)
        return "\n".join(
            f"{name:{width}} {count:>12,}" + (f" {count / whole:8.1%}" if whole else "")
            for name, count, whole in rows
        )
