"""ScienceQA: multiple choice, with or without a chain of thought."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from flamingo_jax.evaluate.tasks.task import DataErrors, Example, Split, Task
from flamingo_jax.weights.readers import read_json

LETTERS = ("A", "B", "C", "D", "E")
SUBJECTS = {"natural science": "NAT", "social science": "SOC", "language science": "LAN"}


@dataclass(frozen=True, kw_only=True)
class ScienceQa(Task):
    """The likeliest letter; questions without an image are asked without one."""

    folder: str = "scienceqa"
    split: Literal["val", "test", "minival", "minitest"] = "test"

    metric = "accuracy"

    def files(self, split: Split) -> tuple[str, ...]:
        return "problems.json", "pid_splits.json"

    def choices(self, data: Path) -> tuple[str, ...]:
        return LETTERS

    def read(self, data: Path, split: Split, problems: DataErrors) -> Iterator[Example]:
        path, splits = (self.path(data, name) for name in self.files(split))
        entries = read_json(path)
        for pid in read_json(splits)["train" if split == "train" else self.split]:
            entry = entries.get(pid)
            if entry is None:
                problems.found("question without annotation", f"{path}: problem {pid}")
                continue
            letters = LETTERS[: len(entry["choices"])]
            if not 0 <= entry["answer"] < len(letters):
                problems.found("unknown class", f"{path}: problem {pid}")
                continue
            image = f"{self.folder}/images/{entry['split']}/{pid}/{entry['image']}"
            letter = letters[entry["answer"]]
            yield Example(
                pid,
                image if entry["image"] else None,
                _question(entry),
                self.told(entry, letter),
                (letter,),
                letters,
                _extras(entry),
            )

    def told(self, entry: dict[str, Any], letter: str) -> str:
        """Returns a demonstration's answer."""
        return letter


@dataclass(frozen=True, kw_only=True)
class ScienceQaThought(ScienceQa):
    """Lecture and solution are written before the answer, as demonstrations show it."""

    max_new_tokens: int = 256
    num_beams: int = 1

    def told(self, entry: dict[str, Any], letter: str) -> str:
        said = (entry["lecture"], entry["solution"], f"The answer is {letter}.")
        return " ".join(text for text in said if text)

    def process(self, raw: str) -> str:
        found = re.findall(r"answer is \(?([A-E])\b", raw)
        return found[-1] if found else ""


def _question(entry: dict[str, Any]) -> str:
    context = f" Context:{entry['hint']}" if entry["hint"] else ""
    pairs = zip(LETTERS, entry["choices"], strict=False)
    options = " ".join(f"({letter}) {choice}" for letter, choice in pairs)
    return f"Question:{entry['question']}{context} Options:{options} Answer:"


def _extras(entry: dict[str, Any]) -> dict[str, Any]:
    """Returns the groups in which ScienceQA's figures are given."""
    grade = int(entry["grade"].removeprefix("grade"))
    contexts = (["TXT"] if entry["hint"] else []) + (["IMG"] if entry["image"] else [])
    groups = [SUBJECTS[entry["subject"]], *(contexts or ["NO"]), "G1-6" if grade <= 6 else "G7-12"]
    return {"question": entry["question"], "question_type": groups[0], "groups": groups}
