"""The corpora a stream can read. Their fields are config keys: `streams.NAME.options`."""

from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from functools import partial

from flamingo_jax.data.fields import decoded, feature, image_bytes, json_object
from flamingo_jax.data.parsers import (
    ImageOrder,
    Passages,
    gpt_passages,
    mmc4_passages,
    pair_passages,
    place_images,
    sequence_passages,
    stored_passages,
    to_document,
    to_pair,
)
from flamingo_jax.data.records import BadRecordError, Record
from flamingo_jax.text.documents import Document


@dataclass(frozen=True, kw_only=True)
class Corpus(ABC):
    """Records in files.

    Attributes:
      shards: which files, see `stores.open_store`.
      index_dir: where indices of the files are kept; "": beside them.
    """

    shards: str
    index_dir: str = ""

    @abstractmethod
    def passages(self, record: Record) -> Passages:
        """Returns all that a record holds. BadRecordError: it is damaged or empty."""

    def placed(self, passages: Passages) -> Passages:
        """Returns what is used of it. RejectedError: nothing."""
        return passages

    def parse(self, record: Record) -> Document:
        """Makes the document of a record; see `streams.Parser`."""
        passages = self.passages(record)
        if passages.kind == "pair":
            return to_pair(record, passages)
        return to_document(record, self.placed(passages))


@dataclass(frozen=True, kw_only=True)
class Pairs(Corpus):
    """Image–caption pairs as img2dataset writes them, such as LAION; or stored ones."""

    def passages(self, record: Record) -> Passages:
        if "image_index" in record.fields:
            return replace(stored_passages(record), kind="pair")
        return pair_passages(record)


@dataclass(frozen=True, kw_only=True)
class Captions(Corpus):
    """Captioned images of any TFDS dataset; the defaults are those of `coco_captions`.

    Attributes:
      image: the feature that holds the image.
      text: the feature that holds its text, or several, of which every epoch shows the next one.
    """

    image: str = "image"
    text: str = "captions/text"

    def passages(self, record: Record) -> Passages:
        image, text = (feature(record.fields, path) for path in (self.image, self.text))
        if not isinstance(text, (str, bytes)):
            text = text[record.epoch % len(text)] if len(text) else ""
        if not isinstance(image, bytes):
            raise BadRecordError(f"feature {self.image!r} is {type(image).__name__}, not an image")
        return Passages((decoded(text),), (0,), (image,), kind="pair")


@dataclass(frozen=True, kw_only=True)
class Interleaved(Corpus):
    """What the corpora of interleaved documents share.

    Attributes:
      max_images: later ones are left out of the document; its text stays.
      separator: between two texts without an image between them.
    """

    max_images: int = 6
    separator: str = "\n\n"


@dataclass(frozen=True, kw_only=True)
class Mmc4(Interleaved):
    """MMC4 with images in base64, ChatGPT-generated sequences among it; or stored documents.

    Attributes:
      similarity_threshold: pairs of image and sentence below it are dropped.
      min_image_bytes: smaller images are left out; OpenFlamingo's limit.
      image_order: see `parsers.place_images`; "openflamingo" is for parity only.
    """

    separator: str = " "
    similarity_threshold: float = 0.24
    min_image_bytes: int = 11_000
    image_order: ImageOrder = "sentence"

    def passages(self, record: Record) -> Passages:
        if "image_index" in record.fields:
            return replace(stored_passages(record), separator=self.separator)
        values = json_object(record)
        if "is_gpt" in values or "image_map" in values:
            return gpt_passages(values, self.image_order)
        return replace(mmc4_passages(values, self.min_image_bytes), separator=self.separator)

    def placed(self, passages: Passages) -> Passages:
        return place_images(
            passages,
            threshold=self.similarity_threshold,
            max_images=self.max_images,
            order=self.image_order,
        )


@dataclass(frozen=True, kw_only=True)
class Sequences(Interleaved):
    """Documents as parallel lists of images and texts, such as OBELICS, or people's own data; or
    stored documents.

    One JSON object each: `{"images": ["a.jpg", null], "texts": [null, "a text"]}`, or
    `{"image": "a.jpg", "text": "a caption"}` for a pair. Images are named as files relative to the
    .jsonl file, or as parts of the tar's sample ("0.jpg").
    """

    def passages(self, record: Record) -> Passages:
        if "image_index" in record.fields:
            return replace(stored_passages(record), separator=self.separator)
        values = json_object(record)
        load = partial(image_bytes, record)
        if "image" in values:
            text = values.get("text")
            caption = text if isinstance(text, str) else ""
            return Passages((caption,), (0,), (load(values["image"]),), kind="pair")
        return replace(sequence_passages(values, load), separator=self.separator)

    def placed(self, passages: Passages) -> Passages:
        return place_images(passages, threshold=0.0, max_images=self.max_images, order="sentence")
