"""Tiny, invented data sets in the original file formats of every task.

Their entries are those on which the original was run for `tests/golden/prompts.json`. Every image
has a size of its own.
"""

import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image

OBJECTS = ("cat", "dog", "bus", "kite", "boat", "horse")
PLACES = ("mat", "road", "lawn", "beach")
COLORS = ("red", "blue", "old", "small")
WNIDS = ("n01440764", "n01443537", "n01484850")
QUESTIONS = (
    ("is the", "yes/no", "Is the light on?", ("yes", "no")),
    ("how many", "number", "How many cups are there?", ("2", "two", "3")),
    ("what color is the", "other", "What color is the wall?", ("white", "gray", "light gray")),
    ("what is", "other", "What is the person doing?", ("surfing", "riding a bike")),
)
STEMS = {"surfing": "surf", "riding a bike": "ride bike"}


class Images:
    """Writes images, each with a size and a colour of its own."""

    def __init__(self) -> None:
        self.count = 0

    def write(self, path: Path, kind: str | None = None) -> None:
        if path.exists():
            return
        self.count += 1
        path.parent.mkdir(parents=True, exist_ok=True)
        color = random.Random(self.count)
        size = 32 + self.count % 64, 32 + self.count // 64
        Image.new("RGB", size, tuple(color.randrange(256) for _ in range(3))).save(path, kind)


def write_json(path: Path, content: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))


def captions(i: int) -> list[str]:
    thing, place, color = OBJECTS[i % 6], PLACES[i % 4], COLORS[i % 3]
    return [
        f"A {color} {thing} on a {place}. ",
        f"The {thing} is near the {place}",
        f"{color.title()} {thing} next to a {place}.",
        f"A photo of a {thing}.",
        f"There is a {thing}, it is {color}.",
    ]


def write_captions(root: Path, kind: str, images: Images, train: int = 40, test: int = 11) -> None:
    entries = []
    for i in range(train + test + 2):
        split = "train" if i < train else "test" if i < train + test else "restval"
        entry: dict[str, Any] = {"imgid": i, "split": split}
        if kind == "coco":
            folder = "train2014" if split == "train" else "val2014"
            key = 1000 + 37 * i
            name = f"COCO_{folder}_{key:012d}.jpg"
            entry |= {"filepath": folder, "cocoid": key}
        else:
            folder, name = "flickr30k-images", f"{1000092795 + i}.jpg"
        images.write(root / folder / name)
        entry |= {"filename": name, "sentences": [{"raw": text} for text in captions(i)]}
        entries.append(entry)
    write_json(root / f"dataset_{kind}.json", {"images": entries, "dataset": kind})


def vqa_image(kind: str, part: str, i: int, train: bool) -> tuple[Any, int, str]:
    """Image id, question id and image path."""
    if kind in ("vqav2", "okvqa"):
        key = (1 if train else 500_000) + i // 2
        question = key * 1000 + i % 2 if kind == "vqav2" else key * 10 + 5 - i % 2
        return key, question, f"{part}/COCO_{part}_{key:012d}.jpg"
    if kind == "textvqa":
        name = f"{0x1000 + i + 9000 * (not train):016x}"
        return name, i if train else 34602 + i, f"train_images/{name}.jpg"
    name = f"VizWiz_{part}_{i:08d}.jpg"
    return name, i, f"{part}/{name}"


def vqa_entry(kind: str, i: int, rng: random.Random) -> tuple[str, dict[str, Any]]:
    """A question and its annotation, but for ids."""
    prefix, answer_type, question, possible = QUESTIONS[i % 4]
    if kind == "okvqa":
        possible = tuple(STEMS.get(answer, answer) for answer in possible)
    if kind == "vizwiz" and i % 5 == 0:
        prefix, possible = "unanswerable", ("unanswerable", "can")
    answers: list[dict[str, Any]] = [{"answer": rng.choice(possible)} for _ in range(10)]
    for number, answer in enumerate(answers, start=1):
        answer["answer_confidence"] = rng.choice(("yes", "maybe", "no"))
        if kind != "vizwiz":
            answer["answer_id"] = number
    return question, {"question_type": prefix, "answer_type": answer_type, "answers": answers}


def write_vqa(root: Path, kind: str, images: Images) -> None:
    rng = random.Random(7)
    mscoco = kind in ("vqav2", "okvqa")
    for train, count in ((True, 40), (False, 11)):
        part = ("train" if train else "val") + "2014" * mscoco
        questions, annotations = [], []
        for i in range(count):
            image_id, key, image = vqa_image(kind, part, i, train)
            images.write(root / image)
            question, annotation = vqa_entry(kind, i, rng)
            questions.append({"image_id": image_id, "question": question, "question_id": key})
            annotations.append({"question_id": key, "image_id": image_id, **annotation})
        names = {
            "vqav2": f"v2_OpenEnded_mscoco_{part}_questions v2_mscoco_{part}_annotations",
            "okvqa": f"OpenEnded_mscoco_{part}_questions mscoco_{part}_annotations",
        }.get(kind, f"{part}_questions_vqa_format {part}_annotations_vqa_format")
        first, second = names.split()
        write_json(root / f"{first}.json", {"questions": questions})
        write_json(root / f"{second}.json", {"annotations": annotations})
    if kind == "vqav2":
        write_test_questions(root, images)


def write_test_questions(root: Path, images: Images) -> None:
    keys = range(900_000, 900_006)
    questions = [
        {"image_id": key, "question": "What is this?", "question_id": key * 1000} for key in keys
    ]
    for key in keys:
        images.write(root / f"test2015/COCO_test2015_{key:012d}.jpg")
    for part, asked in (("test2015", questions), ("test-dev2015", questions[:4])):
        name = f"v2_OpenEnded_mscoco_{part}_questions.json"
        write_json(root / name, {"questions": asked})


def write_hateful_memes(root: Path, images: Images) -> None:
    for part, count, first in (("train", 20, 10_000), ("dev", 8, 20_000)):
        lines = []
        for i in range(count):
            image = f"img/{first + i:05d}.png"
            images.write(root / image)
            entry = {"id": first + i, "img": image, "label": i * 7 // 3 % 2}
            lines.append(json.dumps(entry | {"text": f"it's meme number {i}"}))
        (root / f"{part}.jsonl").write_text("\n".join(lines) + "\n")


def write_imagenet(root: Path, images: Images, wnids: Sequence[str] = WNIDS) -> None:
    for place, wnid in enumerate(wnids):
        for i in range(4):
            images.write(root / f"train/{wnid}/{wnid}_{i}.JPEG", "JPEG")
        for i in range(2):
            name = f"ILSVRC2012_val_{2 * place + i + 1:08d}.JPEG"
            images.write(root / f"val/{wnid}/{name}", "JPEG")


def write_scienceqa(root: Path, images: Images) -> None:
    problems: dict[str, Any] = {}
    splits: dict[str, list[str]] = {"train": [], "val": [], "test": []}
    for i in range(1, 25):
        part = "train" if i <= 14 else "val" if i <= 18 else "test"
        problems[str(i)] = {
            "question": f"Which object is number {i}?",
            "choices": ["stone", "feather", "glass"][: 2 + i % 2],
            "answer": i % 2,
            "hint": "" if i % 3 else "Look at the picture.",
            "image": "image.png" if i % 2 else None,
            "grade": f"grade{1 + i % 12}",
            "subject": ("natural science", "social science", "language science")[i % 3],
            "lecture": "A lecture." if i % 4 else "",
            "solution": "Because.",
            "split": part,
        }
        splits[part].append(str(i))
        if i % 2:
            images.write(root / f"images/{part}/{i}/image.png")
    write_json(root / "problems.json", problems)
    write_json(root / "pid_splits.json", splits)


def write_all(root: Path) -> None:
    images = Images()
    write_captions(root / "coco", "coco", images)
    write_captions(root / "flickr30k", "flickr30k", images)
    for kind in ("vqav2", "okvqa", "textvqa", "vizwiz"):
        write_vqa(root / kind, kind, images)
    write_hateful_memes(root / "hateful_memes", images)
    write_imagenet(root / "imagenet", images)
    write_scienceqa(root / "scienceqa", images)
