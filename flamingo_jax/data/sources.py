"""The corpora a stream can read. Their fields are config keys: `streams.NAME.options`."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import partial

from flamingo_jax.data.documents import Document
from flamingo_jax.data.parsers import (
    ImageOrder,
    Passages,
    gpt_passages,
    image_bytes,
    json_object,
    mmc4_passages,
    pair_passages,
    place_images,
    sequence_passages,
    stored_passages,
    to_document,
    without_marks,
)
from flamingo_jax.data.records import BadRecordError, Record


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
    def parse(self, record: Record) -> Document:
        """The document of a record; see `streams.Parser`."""


@dataclass(frozen=True, kw_only=True)
class Pairs(Corpus):
    """Image–caption pairs as img2dataset writes them, such as LAION; or stored ones."""

    def parse(self, record: Record) -> Document:
        stored = "image_index" in record.fields
        passages = stored_passages(record) if stored else pair_passages(record)
        if len(passages.texts) != 1 or len(passages.images) != 1:
            raise BadRecordError("a pair has one image and one text")
        return pair(record, passages.images[0], passages.texts[0])


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

    def parse(self, record: Record) -> Document:
        passages, separator = self._passages(record)
        passages = place_images(
            passages,
            threshold=self.similarity_threshold,
            max_images=self.max_images,
            order=self.image_order,
        )
        return to_document(record, passages, separator=separator)

    def _passages(self, record: Record) -> tuple[Passages, str]:
        if "image_index" in record.fields:
            return stored_passages(record), self.separator
        values = json_object(record)
        if "is_gpt" in values or "image_map" in values:
            return gpt_passages(values, self.image_order), ""
        return mmc4_passages(values, self.min_image_bytes), self.separator


@dataclass(frozen=True, kw_only=True)
class Sequences(Interleaved):
    """Documents as parallel lists of images and texts, such as OBELICS, or people's own data; or
    stored documents.

    One JSON object each: `{"images": ["a.jpg", null], "texts": [null, "a text"]}`, or
    `{"image": "a.jpg", "text": "a caption"}` for a pair. Images are named as files relative to the
    .jsonl file, or as parts of the tar's sample ("0.jpg").
    """

    def parse(self, record: Record) -> Document:
        if "image_index" in record.fields:
            passages = stored_passages(record)
        else:
            values = json_object(record)
            load = partial(image_bytes, record)
            if "image" in values:
                text = values.get("text")
                return pair(record, load(values["image"]), text if isinstance(text, str) else "")
            passages = sequence_passages(values, load)
        passages = place_images(
            passages, threshold=-1.0, max_images=self.max_images, order="sentence"
        )
        return to_document(record, passages, separator=self.separator)


def pair(record: Record, image: bytes, text: str) -> Document:
    """A captioned image. BadRecordError: no caption."""
    caption = without_marks(text).strip()
    if not caption:
        raise BadRecordError("empty caption")
    return Document(record.key, (image, caption), "pair", record.shard)
