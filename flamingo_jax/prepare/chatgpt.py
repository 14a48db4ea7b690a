"""Sequences that a chat model writes: prompts for it, and its replies with images put in."""

import base64
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from string import Template
from typing import Any

from flamingo_jax.data.fields import check_text, field
from flamingo_jax.data.records import BadRecordError
from flamingo_jax.data.stores import expand
from flamingo_jax.errors import UserError
from flamingo_jax.files import write_text
from flamingo_jax.prepare.job import Unit
from flamingo_jax.prepare.options import REQUIRED, option
from flamingo_jax.prepare.retrieval import Chosen, Place, Pool, Wanted, rerank
from flamingo_jax.prepare.similarity import loaded
from flamingo_jax.prepare.survival import DroppedError, Tally
from flamingo_jax.prepare.writers import Sample, Tars

IMAGE_PATTERN = r"\[IMAGE:\s*([^\]]*)\]"


def write_prompts(template: Path, values: Path, out: Path) -> int:
    """Writes prompts for a chat model, `{"key", "prompt"}` per line of `values`; returns how many.

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
    """A sequence as it was written: texts, and between each two the description of an image.

    Attributes:
      key: file and line, which no two replies share.
      name: what its author calls it.
    """

    key: str
    name: str
    texts: tuple[str, ...]
    descriptions: tuple[str, ...]

    def around(self, image: int) -> str:
        """Returns what the image illustrates: the text after it, or else the text before it."""
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
        return [Unit(path) for path in expand(self.replies, "--replies")]

    def samples(self, unit: Unit, tally: Tally) -> Iterator[Sample]:
        replies: list[Reply] = []
        with open(unit.path, "rb") as file:
            for number, line in enumerate(file):
                key = f"{Path(unit.path).stem}/{number}"
                replies += tally.surviving(key, self._parse, key, line, tally)
        clip, pool = loaded(self.clip, self.batch_size), Pool(self.pool)
        texts = list(dict.fromkeys(d for reply in replies for d in reply.descriptions))
        found = pool.candidates(clip.encode_texts(texts), clip.fingerprint, self.candidates)
        nearest = dict(zip(texts, found, strict=True))
        for reply in replies:
            try:
                yield self._sample(reply, nearest, pool, tally)
            except DroppedError as error:
                tally.drop(reply.key, error.reason, error.detail)

    def _parse(self, key: str, line: bytes, tally: Tally) -> Reply:
        try:
            values = json.loads(line)
        except ValueError as error:
            raise BadRecordError(f"bad JSON: {error}") from error
        reply = field(values, "reply", str)
        check_text(reply)
        pieces = re.split(self.image_pattern, reply.strip())
        texts, descriptions = tuple(pieces[::2]), tuple(d.strip() for d in pieces[1::2])
        if not "".join(texts).strip() or not all(descriptions):
            raise DroppedError("empty text or description")
        if len(descriptions) < self.min_images:
            raise DroppedError("too few images described", str(len(descriptions)))
        tally.images += len(descriptions)
        return Reply(key, str(values.get("key", key)), texts, descriptions)

    def _sample(
        self, reply: Reply, nearest: dict[str, list[Place]], pool: Pool, tally: Tally
    ) -> Sample:
        wanted = [
            Wanted(nearest[description], description, reply.around(number))
            for number, description in enumerate(reply.descriptions)
        ]
        clip = loaded(self.rerank_clip or self.clip, self.batch_size)
        used: set[Place] = set()
        example, images = reply.texts[0], []
        for number, ranked in enumerate(rerank(pool, clip, wanted, self.context)):
            description = reply.descriptions[number]
            fit = (
                chosen
                for chosen in ranked
                if chosen.place not in used and chosen.similarity >= self.min_similarity
            )
            if best := next(fit, None):
                used.add(best.place)
                images.append(_entry(best, description))
                example += f"_!_IMAGE{len(images)}_!_"
            else:
                tally.drop_image(f"{reply.key}/{number}", "no similar image", description)
            example += reply.texts[number + 1]
        if len(images) < self.min_images:
            raise DroppedError("too few similar images", str(len(images)))
        tally.images_kept += len(images)
        image_map = {f"_!_IMAGE{n}_!_": entry for n, entry in enumerate(images, 1)}
        sequence = {"key": reply.name, "is_gpt": True, "example": example, "image_map": image_map}
        return {"key": reply.key, "json": sequence}


def _entry(chosen: Chosen, description: str) -> dict[str, Any]:
    return {
        "base64_image": base64.b64encode(chosen.data).decode(),
        "description": description,
        "similarity": round(chosen.similarity, 4),
        "source": chosen.source,
    }
