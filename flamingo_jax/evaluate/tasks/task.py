"""What a task is: which files it reads, what its prompts ask, how answers are made and scored."""

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np

from flamingo_jax.errors import UserError

Split = Literal["train", "test"]
OnError = Literal["raise", "skip"]


@dataclass(frozen=True)
class Example:
    """One image with what is asked of it.

    Attributes:
      id: unique in its split; demonstrations are drawn from it.
      image: path relative to the data root; None: a question without an image.
      question: the text between `<image>` and the answer.
      answer: what stands there when the example is a demonstration.
      references: right answers; empty where they are not public.
      choices: the ones of the task's that this example may be answered with; empty: all.
      extras: further entries of its line in the results.
    """

    id: str
    image: str | None
    question: str
    answer: str = ""
    references: tuple[str, ...] = ()
    choices: tuple[str, ...] = ()
    extras: Mapping[str, Any] = field(default_factory=dict)


class DataErrors:
    """Faults of the data: the first one is an error, or all are counted and left out."""

    def __init__(self, on_error: OnError):
        self.on_error = on_error
        self.counts: Counter[str] = Counter()

    def found(self, fault: str, where: str) -> None:
        """Counts a fault; UserError unless faults are skipped."""
        if self.on_error == "raise":
            raise UserError(
                f"{where}: {fault}; mend the data, or leave such examples out and have them "
                "counted with --config.on_error=skip"
            )
        self.counts[fault] += 1


@dataclass(frozen=True, kw_only=True)
class Task(ABC):
    """A data set with its prompt, decoding and metric. Fields are config keys.

    A prompt is `<image>{question}{answer}<|endofchunk|>{separator}` for each demonstration, then
    `<image>{question}`.

    Attributes:
      folder: of the data set, relative to the data root.
      max_new_tokens: 0: the likeliest of `choices()` is the answer, otherwise text is generated.
      num_beams, length_penalty: of the beam search.
    """

    folder: str
    max_new_tokens: int = 0
    num_beams: int = 3
    length_penalty: float = 0.0

    metric: ClassVar[str]
    separator: ClassVar[str] = "\n"
    positive: ClassVar[str | None] = (
        None  # the choice whose probability is recorded; None: the best
    )
    text_only: ClassVar[int] = 2  # demonstrations whose text alone is shown in a 0-shot prompt

    @property
    def note(self) -> str:
        """Returns what is said beside every score."""
        return ""

    @abstractmethod
    def files(self, split: Split) -> tuple[str, ...]:
        """Returns the annotation files, relative to `folder`; their hashes go into the manifest."""

    @abstractmethod
    def read(self, data: Path, split: Split, problems: DataErrors) -> Iterable[Example]:
        """Returns the examples of a split, in the order of its files."""

    def choices(self, data: Path) -> tuple[str, ...]:
        """Returns all possible answers; none: a task of free text, whose answers are generated."""
        return ()

    def process(self, raw: str) -> str:
        """Cuts a generated text to the answer that is scored."""
        return raw.strip()

    def submission(self, data: Path, answers: Mapping[str, str]) -> list[dict[str, Any]] | None:
        """Returns what a test server takes, from answers by example id; None: there is no
        server."""
        return None

    def own_prompts(
        self, shots: int, seed: int
    ) -> list[tuple[Example, tuple[Example, ...]]] | None:
        """Returns examples with their demonstrations, where a task does not draw them from a
        split."""
        return None

    def picture(self, data: Path, image: str) -> bytes | np.ndarray:
        """Returns an encoded image file, or uint8 pixels (H, W, 3) of the model's size."""
        return (data / image).read_bytes()

    def path(self, data: Path, name: str) -> Path:
        """Returns a file of the data set. UserError: it is not there."""
        path = data / self.folder / name
        if not path.exists():
            raise UserError(
                f"{path} does not exist: put the data set there, or say where it lies with "
                "--config.data_root and --config.tasks.NAME.folder (docs/evaluation.md lists the "
                "files of each task)"
            )
        return path


def read_split(
    task: Task, data: Path, split: Split, problems: DataErrors, *, images: bool = True
) -> list[Example]:
    """Returns the sound examples of a split; without `images`, those need not be there.

    Raises:
      UserError: an image that does not exist or an id that stands twice, unless faults are skipped;
        an annotation file in another format.
    """
    listed: dict[Path, set[str]] = {}
    seen: set[str] = set()
    sound = []
    images &= type(task).picture is Task.picture
    for example in _entries(task, data, split, problems):
        if example.id in seen:
            problems.found("duplicate id", f"{task.folder}: example {example.id}")
            continue
        seen.add(example.id)
        if example.image is not None and images:
            file = data / example.image
            if file.parent not in listed:
                there = file.parent.is_dir()
                listed[file.parent] = {p.name for p in file.parent.iterdir()} if there else set()
            if file.name not in listed[file.parent]:
                problems.found("missing image", str(file))
                continue
        sound.append(example)
    return sound


def _entries(task: Task, data: Path, split: Split, problems: DataErrors) -> Iterator[Example]:
    try:
        yield from task.read(data, split, problems)
    except KeyError as error:
        raise UserError(
            f"an annotation file of {data / task.folder} has an entry without {error}: give the "
            "files in their original format (docs/evaluation.md lists them)"
        ) from error
