"""Records of the known corpora → `Passages` → `Document`."""

import dataclasses
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from flamingo_jax.data.fields import (
    base64_size,
    check_text,
    decoded,
    field,
    from_base64,
    json_object,
)
from flamingo_jax.data.records import BadRecordError, Record, RejectedError
from flamingo_jax.text.documents import Document, captioned, interleaved
from flamingo_jax.text.special_tokens import END_OF_CHUNK, IMAGE
from flamingo_jax.text.template import strip_marks

ImageOrder = Literal["sentence", "openflamingo"]
IMAGE_EXTENSIONS = ("jpg", "jpeg", "png", "webp")
GPT_MARK = re.compile(r"_!_IMAGE(\d+)_!_")


@dataclass(frozen=True)
class Passages:
    """Texts in reading order, each with at most one image before it.

    Attributes:
      texts: what is read.
      image_index: for each text, which image stands before it; −1: none.
      images: encoded, in the order of the record; a string is base64, decoded when it is chosen.
      similarity: of each text with its image; None: not known, so nothing is dropped for it.
      separator: between two texts without an image between them.
      kind: a "pair" is one image and its caption, see `to_pair`; others, see `to_document`.
      left_out: images of the record that are used no more, as far as they exist, and why.
    """

    texts: tuple[str, ...]
    image_index: tuple[int, ...]
    images: tuple[bytes | str, ...]
    similarity: tuple[float, ...] | None = None
    separator: str = ""
    kind: Literal["pair", "interleaved"] = "interleaved"
    left_out: tuple[tuple[bytes | str | None, str], ...] = ()

    def __post_init__(self) -> None:
        lengths = {len(self.texts), len(self.image_index)}
        lengths |= set() if self.similarity is None else {len(self.similarity)}
        if len(lengths) > 1 or max(self.image_index, default=-1) >= len(self.images):
            raise BadRecordError("texts, image indices and images do not fit each other")
        for text in self.texts:
            check_text(text)

    def image(self, index: int) -> bytes:
        """Returns encoded bytes. BadRecordError: its base64 is damaged."""
        encoded = self.images[index]
        return encoded if isinstance(encoded, bytes) else from_base64(encoded)


def place_images(
    passages: Passages, *, threshold: float, max_images: int, order: ImageOrder
) -> Passages:
    """Drops images below the similarity threshold, and those after the first `max_images`.

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
    left_out = tuple(
        (
            passages.images[image],
            f"similarity {score:.2f}, below {threshold}"
            if score < threshold
            else f"one image more than {max_images}",
        )
        for image, score in zip(passages.image_index, scores, strict=True)
        if image >= 0 and image not in image_index
    )
    return dataclasses.replace(
        passages,
        image_index=tuple(image_index),
        similarity=None,
        left_out=passages.left_out + left_out,
    )


def to_document(record: Record, passages: Passages) -> Document:
    """Makes a document that is learnt from its first image on.

    Texts are joined by the separator, except around an image, where one blank is removed as well:
    tokenizers put blanks at the beginning of words.
    """
    parts: list[str | bytes] = []
    text = ""
    for position, (passage, image) in enumerate(
        zip(passages.texts, passages.image_index, strict=True)
    ):
        passage = without_marks(passage)
        if image >= 0:
            parts += [text, passages.image(image)]
            text = passage.removeprefix(" ")
        elif parts and not text:
            text = passage
        else:
            text += passages.separator * (position > 0) + passage
    parts.append(text)
    return interleaved(record.key, (part for part in parts if part), record.shard)


def to_pair(record: Record, passages: Passages) -> Document:
    """Makes a captioned image, all of it learnt.

    Raises:
      BadRecordError: no caption, or more than one image or text.
    """
    if len(passages.texts) != 1 or len(passages.images) != 1:
        raise BadRecordError("a pair has one image and one text")
    caption = without_marks(passages.texts[0]).strip()
    if not caption:
        raise BadRecordError("empty caption")
    return captioned(record.key, (passages.image(0), caption), record.shard)


def without_marks(text: str) -> str:
    """Removes the marks that a corpus brings itself. BadRecordError: it spells one even so."""
    text = strip_marks(text)
    if IMAGE in text or END_OF_CHUNK in text:
        raise BadRecordError(f"the text spells {IMAGE} or {END_OF_CHUNK}")
    return text


def pair_passages(record: Record) -> Passages:
    """Reads an img2dataset sample: jpg, png or webp; its caption in txt or in json's "caption"."""
    images = [record.fields[e] for e in IMAGE_EXTENSIONS if e in record.fields]
    if not images:
        raise BadRecordError(f"no image among {sorted(record.fields)}")
    if "txt" in record.fields:
        caption = decoded(record.fields["txt"])
    else:
        caption = json_object(record).get("caption") or ""
    return Passages((caption,), (0,), (images[0],), kind="pair")


def mmc4_passages(record: Mapping[str, Any], min_bytes: int) -> Passages:
    """Reads a document of MMC4 with its images in base64; see `assigned_passages`.

    Images of fewer than `min_bytes` bytes are left out.
    """
    encoded = [info.get("image_base64") for info in field(record, "image_info", list)]
    images = {i: text for i, text in enumerate(encoded) if text and base64_size(text) >= min_bytes}
    passages = assigned_passages(record, images)
    left_out = tuple(
        (text or None, f"fewer than {min_bytes} bytes" if text else "not among the data")
        for i, text in enumerate(encoded)
        if i not in images
    )
    return dataclasses.replace(passages, left_out=left_out + passages.left_out)


def assigned_passages(record: Mapping[str, Any], images: Mapping[int, bytes | str]) -> Passages:
    """Reads a document of MMC4 with these of its images, by their place in `image_info`.

    Each is assigned to one sentence, such that the sum of similarities is largest.
    """
    from scipy.optimize import linear_sum_assignment  # importing it takes most of a second

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
        tuple(sentences),
        tuple(image_index),
        tuple(images.values()),
        tuple(similarity),
        left_out=tuple(
            (image, "no sentence left")
            for n, image in enumerate(images.values())
            if n not in assigned[0]
        ),
    )


def gpt_passages(record: Mapping[str, Any], order: ImageOrder) -> Passages:
    """Reads a ChatGPT-generated sequence: text with marks `_!_IMAGE1_!_`, images by mark.

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
    """Reads parallel lists `images` and `texts` with one of both per place, as in OBELICS.

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
    """Reads the project's own stored form: `text`, `image_index`, `images`, `sim`."""
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
