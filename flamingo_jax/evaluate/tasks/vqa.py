"""Visual question answering in the format of VQA: VQAv2, OK-VQA, TextVQA and VizWiz."""

from abc import abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

from flamingo_jax.evaluate.metrics import stemming
from flamingo_jax.evaluate.metrics.vqa import normalize, postprocess
from flamingo_jax.evaluate.tasks.task import DataErrors, Example, Split, Task
from flamingo_jax.weights.readers import read_json


@dataclass(frozen=True, kw_only=True)
class Vqa(Task):
    """Short answers to questions; answers are joined to questions by `question_id`."""

    max_new_tokens: int = 5

    metric = "vqa_accuracy"
    public: ClassVar[frozenset[str]]  # parts whose answers are published

    @abstractmethod
    def part(self, split: Split) -> str:
        """Returns the part of the data set that a split is, as its files call it."""

    @abstractmethod
    def names(self, part: str) -> tuple[str, str]:
        """Returns the question and annotation file of a part."""

    @abstractmethod
    def image(self, part: str, image_id: Any) -> str:
        """Returns the path of an image."""

    def files(self, split: Split) -> tuple[str, ...]:
        part = self.part(split)
        return self.names(part)[: 2 if part in self.public else 1]

    def read(self, data: Path, split: Split, problems: DataErrors) -> Iterator[Example]:
        part, (questions, *annotations) = self.part(split), self.files(split)
        path = self.path(data, questions)
        annotated = {
            entry["question_id"]: entry
            for name in annotations
            for entry in read_json(self.path(data, name))["annotations"]
        }
        for entry in read_json(path)["questions"]:
            key = entry["question_id"]
            annotation = annotated.get(key)
            if annotations and annotation is None:
                problems.found("question without annotation", f"{path}: question {key}")
                continue
            answers = annotation["answers"] if annotation else []
            if annotation and not answers:
                problems.found("question without answers", f"{path}: question {key}")
                continue
            yield Example(
                str(key),
                f"{self.folder}/{self.image(part, entry['image_id'])}",
                f"Question:{entry['question']} Short answer:",
                answers[0]["answer"] if answers else "",
                tuple(answer["answer"] for answer in answers),
                extras=_extras(entry, annotation),
            )

    def process(self, raw: str) -> str:
        return postprocess(raw)

    def submission(self, data: Path, answers: Mapping[str, str]) -> list[dict[str, Any]]:
        """Returns one normalised answer for every question the server asks, "" where there is
        none."""
        path = self.path(data, self.names(self.server_part)[0])
        return [
            self.server_entry(entry, normalize(answers.get(str(entry["question_id"]), "")))
            for entry in read_json(path)["questions"]
        ]

    @property
    def server_part(self) -> str:
        """Returns the part whose questions a test server wants, all of them."""
        return self.part("test")

    def server_entry(self, question: Mapping[str, Any], answer: str) -> dict[str, Any]:
        return {"question_id": question["question_id"], "answer": answer}


def _extras(question: dict[str, Any], annotation: dict[str, Any] | None) -> dict[str, Any]:
    extras = {"question": question["question"], "question_id": question["question_id"]}
    if annotation:
        extras |= {key: annotation[key] for key in ("question_type", "answer_type")
                   if key in annotation}  # fmt: skip
        if any("answer_id" not in answer for answer in annotation["answers"]):
            # The original compares whole entries, so equal ones count as one annotator.
            extras["confidences"] = [a.get("answer_confidence") for a in annotation["answers"]]
    return extras


@dataclass(frozen=True, kw_only=True)
class Vqav2(Vqa):
    """VQAv2. Answers of the test parts are on the test server only."""

    folder: str = "vqav2"
    split: Literal["val2014", "test-dev2015", "test2015"] = "val2014"
    public = frozenset({"train2014", "val2014"})

    def part(self, split: Split) -> str:
        return "train2014" if split == "train" else self.split

    def names(self, part: str) -> tuple[str, str]:
        return f"v2_OpenEnded_mscoco_{part}_questions.json", f"v2_mscoco_{part}_annotations.json"

    def image(self, part: str, image_id: int) -> str:
        part = part.replace("test-dev", "test")
        return f"{part}/COCO_{part}_{image_id:012d}.jpg"

    @property
    def server_part(self) -> str:
        return "test2015" if self.split == "test-dev2015" else self.split


@dataclass(frozen=True, kw_only=True)
class OkVqa(Vqa):
    """OK-VQA, whose answers are stemmed."""

    folder: str = "okvqa"
    public = frozenset({"train2014", "val2014"})

    @property
    def note(self) -> str:
        return f"stemmer: {stemming.make_stemmer().name}"

    def part(self, split: Split) -> str:
        return "train2014" if split == "train" else "val2014"

    def names(self, part: str) -> tuple[str, str]:
        return f"OpenEnded_mscoco_{part}_questions.json", f"mscoco_{part}_annotations.json"

    def image(self, part: str, image_id: int) -> str:
        return f"{part}/COCO_{part}_{image_id:012d}.jpg"

    def process(self, raw: str) -> str:
        return stemming.postprocess(raw)


@dataclass(frozen=True, kw_only=True)
class TextVqa(Vqa):
    """TextVQA in the format of VQA; all images lie in one folder."""

    folder: str = "textvqa"
    max_new_tokens: int = 10
    public = frozenset({"train", "val"})

    def part(self, split: Split) -> str:
        return "train" if split == "train" else "val"

    def names(self, part: str) -> tuple[str, str]:
        return f"{part}_questions_vqa_format.json", f"{part}_annotations_vqa_format.json"

    def image(self, part: str, image_id: str) -> str:
        return f"train_images/{image_id}.jpg"


@dataclass(frozen=True, kw_only=True)
class VizWiz(Vqa):
    """VizWiz in the format of VQA. The test part's answers are on the test server only."""

    folder: str = "vizwiz"
    split: Literal["val", "test"] = "val"
    public = frozenset({"train", "val"})

    def part(self, split: Split) -> str:
        return "train" if split == "train" else self.split

    def names(self, part: str) -> tuple[str, str]:
        return f"{part}_questions_vqa_format.json", f"{part}_annotations_vqa_format.json"

    def image(self, part: str, image_id: str) -> str:
        return f"{part}/{image_id}"

    def server_entry(self, question: Mapping[str, Any], answer: str) -> dict[str, Any]:
        return {"image": question["image_id"], "answer": answer}
