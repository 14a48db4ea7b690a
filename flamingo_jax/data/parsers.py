"""Records of the known corpora → `Passages` → `Document`."""

import base64
import binascii
import json
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from scipy.optimize import linear_sum_assignment

from flamingo_jax.data.documents import END_OF_CHUNK, IMAGE, Document
from flamingo_jax.data.records import BadRecordError, Record, RejectedError

ImageOrder = Literal["sentence", "openflamingo"]
IMAGE_EXTENSIONS = ("jpg", "jpeg", "png", "webp")
GPT_MARK = re.compile(r"_!_IMAGE(\d+)_!_")


@dataclass(frozen=True)
class Passages:
    """Texts in reading order, each with at most one image before it.

    Attributes:
      texts: what is read.
      image_index: for each text, which image stands before it; −1: none.
      images: encoded, in the order of the record.
      similarity: of each text with its image; None: not known, so nothing is dropped for it.
    """

    texts: tuple[str, ...]
    image_index: tuple[int, ...]
    images: tuple[bytes, ...]
    similarity: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        lengths = {len(self.texts), len(self.image_index)}
        lengths |= set() if self.similarity is None else {len(self.similarity)}
        if len(lengths) > 1 or max(self.image_index, default=-1) >= len(self.images):
            raise BadRecordError("texts, image indices and images do not fit each other")
        for text in self.texts:
            if not isinstance(text, str):
                raise BadRecordError(f"a text is {type(text).__name__}, expected str")


def place_images(
    passages: Passages, *, threshold: float, max_images: int, order: ImageOrder
) -> Passages:
    """Drop images below the similarity threshold, and those after the first `max_images`.

    With order "sentence", an image stands before the text it was assigned to. "openflamingo" is for
    parity: the chosen places are filled with the chosen images in the order of the record, so that
    a text may follow another text's image; of too many images the last in the record are dropped.

    Raises:
      RejectedError: no image is left.
    """
    scores = passages.similarity or (np.inf,) * len(passages.texts)
    chosen = [
        (place, image)
        for place, (image, score) in enumerate(zip(passages.image_index, scores, strict=True))
        if image >= 0 and score >= threshold
    ]
    if order == "openflamingo":
        chosen = sorted(chosen, key=lambda pair: pair[1])[:max_images]
        places = sorted(place for place, _ in chosen)
        chosen = list(zip(places, (image for _, image in chosen), strict=True))
    chosen = chosen[:max_images]
    if not chosen:
        raise RejectedError("no image reaches the similarity threshold")
    image_index = [-1] * len(passages.texts)
    for place, image in chosen:
        image_index[place] = image
    return Passages(passages.texts, tuple(image_index), passages.images)


def to_document(record: Record, passages: Passages, *, separator: str) -> Document:
    """An interleaved document. Texts are joined by `separator`, except around an image, where one
    blank is removed as well: tokenizers put blanks at the beginning of words."""
    parts: list[str | bytes] = []
    text = ""
    for position, (passage, image) in enumerate(
        zip(passages.texts, passages.image_index, strict=True)
    ):
        passage = without_marks(passage)
        if image >= 0:
            parts += [text, passages.images[image]]
            text = passage.removeprefix(" ")
        elif parts and not text:
            text = passage
        else:
            text += separator * (position > 0) + passage
    parts.append(text)
    kept = tuple(part for part in parts if part)
    return Document(record.key, kept, "interleaved", record.shard)


def without_marks(text: str) -> str:
    """Text of a corpus must not bring marks of its own: they would stand for images."""
    text = text.replace(IMAGE, "").replace(END_OF_CHUNK, "")
    if IMAGE in text or END_OF_CHUNK in text:
        raise BadRecordError(f"the text spells {IMAGE} or {END_OF_CHUNK}")
    return text


def pair_passages(record: Record) -> Passages:
    """An img2dataset sample: jpg, png or webp, with its caption in txt or in json's "caption"."""
    images = [record.fields[e] for e in IMAGE_EXTENSIONS if e in record.fields]
    if not images:
        raise BadRecordError(f"no image among {sorted(record.fields)}")
    if "txt" in record.fields:
        caption = decoded(record.fields["txt"])
    else:
        caption = json_object(record).get("caption") or ""
    return Passages((caption,), (0,), (images[0],))


def mmc4_passages(record: Mapping[str, Any], min_bytes: int) -> Passages:
    """A document of MMC4 with its images in base64: each image is assigned to one sentence, such
    that the sum of similarities is largest. Images of fewer than `min_bytes` bytes are left out.
    """
    encoded = [info.get("image_base64") for info in field(record, "image_info", list)]
    images = {i: from_base64(text) for i, text in enumerate(encoded) if text}
    return assigned_passages(
        record, {i: image for i, image in images.items() if len(image) >= min_bytes}
    )


def assigned_passages(record: Mapping[str, Any], images: Mapping[int, bytes]) -> Passages:
    """A document of MMC4 with these of its images, by their place in `image_info`."""
    sentences = field(record, "text_list", list)
    rows = list(images)
    if not rows:
        raise BadRecordError("no image")
    try:
        matrix = np.array(field(record, "similarity_matrix", list), np.float64)
        shape = len(field(record, "image_info", list)), len(sentences)
        similarity_IS = matrix.reshape(shape)[rows]
        assigned = linear_sum_assignment(similarity_IS, maximize=True)
    except ValueError as error:
        raise BadRecordError(f"similarity_matrix: {error}") from error
    image_index = [-1] * len(sentences)
    similarity = [-np.inf] * len(sentences)
    for image, sentence in zip(*assigned, strict=True):
        image_index[sentence] = int(image)
        similarity[sentence] = float(similarity_IS[image, sentence])
    return Passages(
        tuple(sentences), tuple(image_index), tuple(images[i] for i in rows), tuple(similarity)
    )


def gpt_passages(record: Mapping[str, Any], order: ImageOrder) -> Passages:
    """A ChatGPT-generated sequence: text with marks `_!_IMAGE1_!_`, images by mark.

    With order "openflamingo" the n-th mark gets image n, whatever its number.
    """
    pieces = GPT_MARK.split(field(record, "example", str))
    found = field(record, "image_map", dict)
    images: dict[str, bytes] = {}
    image_index = [-1]
    for mark, number in enumerate(pieces[1::2], 1):
        name = f"_!_IMAGE{mark if order == 'openflamingo' else number}_!_"
        if name not in found:
            raise BadRecordError(f"{name} has no image")
        images.setdefault(name, from_base64(field(found[name], "base64_image", str)))
        image_index.append(list(images).index(name))
    texts = [text.removesuffix(" ") for text in pieces[:-1:2]] + [pieces[-1]]
    return Passages(tuple(texts), tuple(image_index), tuple(images.values()))


def sequence_passages(record: Mapping[str, Any], load: Callable[[Any], bytes]) -> Passages:
    """Parallel lists `images` and `texts` with one of both per place, as in OBELICS.

    `load` turns an entry of `images` into encoded bytes.
    """
    names, texts = field(record, "images", list), field(record, "texts", list)
    if len(names) != len(texts):
        raise BadRecordError(f"{len(names)} images and {len(texts)} texts are not parallel")
    passages: list[str] = []
    image_index: list[int] = []
    images: list[bytes] = []
    for name, text in zip(names, texts, strict=True):
        if name is not None:
            images.append(load(name))
            image_index.append(len(images) - 1)
            passages.append(text or "")
        elif text and passages and image_index[-1] >= 0 and not passages[-1]:
            passages[-1] = text
        elif text:
            passages.append(text)
            image_index.append(-1)
    return Passages(tuple(passages), tuple(image_index), tuple(images))


def stored_passages(record: Record) -> Passages:
    """The project's own stored form: `text`, `image_index`, `images`, `sim`."""
    missing = [name for name in ("text", "image_index", "images") if name not in record.fields]
    if missing:
        raise BadRecordError(f"no {', '.join(missing)} among {sorted(record.fields)}")
    similarity = record.fields.get("sim", ())
    return Passages(
        tuple(decoded(text) for text in record.fields["text"]),
        tuple(int(index) for index in record.fields["image_index"]),
        tuple(bytes(image) for image in record.fields["images"]),
        tuple(float(s) for s in similarity) if len(similarity) else None,
    )


def image_bytes(record: Record, name: Any) -> bytes:
    """An image by what a record calls it: one of its fields, or a file beside the record."""
    if not isinstance(name, str):
        raise BadRecordError(f"image {name!r} is not named by a string")
    if name in record.fields:
        return record.fields[name]
    path = os.path.normpath(os.path.join(record.root, name))
    if not record.root or os.path.relpath(path, record.root).startswith(os.pardir):
        raise BadRecordError(f"image {name!r} is neither a part of the record nor a file beside it")
    try:
        with open(path, "rb") as file:
            return file.read()
    except OSError as error:
        raise BadRecordError(f"image {name!r}: {error.strerror}") from error


def json_object(record: Record) -> dict[str, Any]:
    """The record's JSON. BadRecordError: there is none, or it is no object."""
    if "json" not in record.fields:
        raise BadRecordError(f"no json among {sorted(record.fields)}")
    try:
        value = json.loads(record.fields["json"])
    except ValueError as error:
        raise BadRecordError(f"bad JSON: {error}") from error
    if not isinstance(value, dict):
        raise BadRecordError(f"bad JSON: expected an object, found {type(value).__name__}")
    return value


def field(record: Mapping[str, Any], name: str, kind: type) -> Any:
    value = record.get(name) if isinstance(record, Mapping) else None
    if not isinstance(value, kind):
        raise BadRecordError(f"{name} is {type(value).__name__}, expected {kind.__name__}")
    return value


def decoded(text: bytes | str) -> str:
    try:
        return text.decode() if isinstance(text, bytes) else text
    except UnicodeDecodeError as error:
        raise BadRecordError(f"text is not UTF-8: {error}") from error


def from_base64(text: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError, TypeError) as error:
        raise BadRecordError(f"image is not base64: {error}") from error
