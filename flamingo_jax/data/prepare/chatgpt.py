"""Sequences that a chat model writes: prompts for it, and its replies with images put in."""

import base64
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from string import Template
from typing import Any

from flamingo_jax.data.parsers import field
from flamingo_jax.data.prepare.job import Unit, write_text
from flamingo_jax.data.prepare.options import REQUIRED, option
from flamingo_jax.data.prepare.retrieval import Chosen, Place, Pool, rerank
from flamingo_jax.data.prepare.similarity import loaded
from flamingo_jax.data.prepare.survival import DroppedError, Tally
from flamingo_jax.data.prepare.writers import Sample, Tars
from flamingo_jax.data.records import BadRecordError
from flamingo_jax.data.stores import expand
from flamingo_jax.errors import UserError

IMAGE_PATTERN = r"\[IMAGE:\s*([^\]]*)\]"


def write_prompts(template: Path, values: Path, out: Path) -> int:
    """Prompts to send to a chat model: `{"key", "prompt"}` per line of `values`; gives how many.

    Args:
      template: text with `$name` where a value goes.
      values: JSON lines, objects with those names; `key` names the sequence (default: its number).
      out: JSON lines.

    Raises:
      UserError: a file is missing, or a line lacks a value.
    """
    for path in (template, values):
        if not path.is_file():
            raise UserError(
                f"{path} does not exist: give a file of your own, see docs/preparing.md"
            )
    text, lines = Template(template.read_text()), []
    for number, line in enumerate(values.read_text().splitlines(), 1):
        try:
            given = json.loads(line)
            prompt = text.substitute(given)
        except (ValueError, TypeError) as error:
            raise UserError(f"{values}, line {number}, with {template}: {error}") from None
        except KeyError as error:
            raise UserError(
                f"{values}, line {number} lacks {error}, which {template} asks for"
            ) from None
        lines.append(json.dumps({"key": str(given.get("key", number)), "prompt": prompt}) + "\n")
    write_text(out, "".join(lines))
    return len(lines)


@dataclass(frozen=True)
class Reply:
    """A sequence as it was written: texts, and between each two the description of an image."""

    key: str
    texts: tuple[str, ...]
    descriptions: tuple[str, ...]

    def around(self, image: int) -> str:
        """What the image is to illustrate: the text after it, or else the text before it."""
        return self.texts[image + 1].strip() or self.texts[image].strip()


@dataclass(frozen=True, kw_only=True)
class ChatGpt:
    """Replies of a chat model, each image it describes retrieved from a pool."""

    replies: str = option(REQUIRED, 'JSON lines {"key", "reply"}; a pattern')
    pool: str = option(REQUIRED, "directory that `embed` wrote, of the images to choose from")
    clip: str = option(REQUIRED, "the CLIP that the pool was embedded with")
    rerank_clip: str = option("", "a CLIP for re-ranking (default: the same)")
    batch_size: int = option(64, "images or texts per call of CLIP")
    candidates: int = option(16, "images retrieved for each description")
    context: float = option(0.3, "share of the surrounding text in the re-ranking")
    min_similarity: float = option(0.2, "a description without such an image gets none")
    min_images: int = option(2, "sequences with fewer images are dropped")
    image_pattern: str = option(IMAGE_PATTERN, "where a reply describes an image; one group")

    writer = Tars()

    def __post_init__(self) -> None:
        try:
            groups = re.compile(self.image_pattern).groups
        except re.error as error:
            raise UserError(f"--image-pattern is no regular expression: {error}") from None
        if groups != 1 or self.candidates < 1:
            raise UserError(
                f"--image-pattern has {groups} groups, --candidates is {self.candidates}; expected "
                "one group, the description, and at least one candidate"
            )

    def units(self) -> list[Unit]:
        return [Unit(path) for path in expand(self.replies)]

    def samples(self, unit: Unit, tally: Tally) -> Iterator[Sample]:
        replies: list[Reply] = []
        with open(unit.path, "rb") as file:
            for number, line in enumerate(file):
                key = f"{Path(unit.path).stem}/{number}"
                replies += tally.surviving(key, self._parse, key, line, tally)
        clip = loaded(self.clip, self.batch_size)
        texts = list(dict.fromkeys(d for reply in replies for d in reply.descriptions))
        found = Pool(self.pool).candidates(
            clip.encode_texts(texts), clip.fingerprint, self.candidates
        )
        nearest = dict(zip(texts, found, strict=True))
        for reply in replies:
            try:
                yield self._sample(reply, nearest, tally)
            except DroppedError as error:
                tally.drop(reply.key, error.reason, error.detail)

    def _parse(self, key: str, line: bytes, tally: Tally) -> Reply:
        try:
            values = json.loads(line)
        except ValueError as error:
            raise BadRecordError(f"bad JSON: {error}") from error
        pieces = re.split(self.image_pattern, field(values, "reply", str).strip())
        texts, descriptions = tuple(pieces[::2]), tuple(d.strip() for d in pieces[1::2])
        if not "".join(texts).strip() or not all(descriptions):
            raise DroppedError("empty text or description")
        if len(descriptions) < self.min_images:
            raise DroppedError("too few images described", str(len(descriptions)))
        tally.images += len(descriptions)
        return Reply(str(values.get("key", key)), texts, descriptions)

    def _sample(self, reply: Reply, nearest: dict[str, list[Place]], tally: Tally) -> Sample:
        clip = loaded(self.rerank_clip or self.clip, self.batch_size)
        used: set[Place] = set()
        example, images = reply.texts[0], []
        for number, description in enumerate(reply.descriptions):
            fresh = [place for place in nearest[description] if place not in used]
            ranked = rerank(
                Pool(self.pool), clip, fresh, description, reply.around(number), self.context
            )
            fit = [chosen for chosen in ranked if chosen.similarity >= self.min_similarity]
            if fit:
                used.add(fit[0].place)
                images.append(_entry(fit[0], description))
                example += f"_!_IMAGE{len(images)}_!_"
            else:
                tally.drop_image(f"{reply.key}/{number}", "no similar image", description)
            example += reply.texts[number + 1]
        if len(images) < self.min_images:
            raise DroppedError("too few similar images", str(len(images)))
        tally.images_kept += len(images)
        image_map = {f"_!_IMAGE{n}_!_": entry for n, entry in enumerate(images, 1)}
        sequence = {"is_gpt": True, "example": example, "image_map": image_map}
        return {"key": reply.key.replace(".", "_"), "json": sequence}


def _entry(chosen: Chosen, description: str) -> dict[str, Any]:
    return {
        "base64_image": base64.b64encode(chosen.data).decode(),
        "description": description,
        "similarity": round(chosen.similarity, 4),
        "source": chosen.source,
    }
