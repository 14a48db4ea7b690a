"""Document → Example: fixed-shape arrays of images, tokens and loss weights."""

import dataclasses
from dataclasses import dataclass
from typing import Literal

import numpy as np

from flamingo_jax.data.images import Decode, decode_image
from flamingo_jax.text.documents import END_OF_CHUNK, Document, render
from flamingo_jax.text.tokenizer import TextTokens

Example = dict[str, np.ndarray]  # images, tokens, segments, weights; see `make_example`


def loss_weights(
    tokens: np.ndarray,
    valid: np.ndarray,
    kind: Literal["pair", "interleaved"],
    *,
    image: int,
    end_of_chunk: int,
) -> np.ndarray:
    """1.0 where a token is to be predicted, else 0.0: OpenFlamingo's label masks.

    Never counted: padding and `<image>`. In interleaved rows nor what stands before the first
    `<image>` or between an `<|endofchunk|>` and the next `<image>`: it belongs to no image.

    Args:
      tokens: int (L,).
      valid: bool (L,), False for padding.
      kind: of the document.
      image: id of `<image>`.
      end_of_chunk: id of `<|endofchunk|>`.
    """
    counted = valid & (tokens != image)
    if kind == "interleaved":
        # From an <image> to the next <|endofchunk|>, that token included.
        index = np.arange(len(tokens))
        last_image = np.maximum.accumulate(np.where(tokens == image, index, -1))
        last_end = np.maximum.accumulate(np.where(tokens == end_of_chunk, index, -1))
        counted &= last_image > np.concatenate([[-1], last_end[:-1]])
    return counted.astype(np.float32)


@dataclass(frozen=True)
class ExampleMaker:
    """Makes examples of one shape.

    Attributes:
      text_length: L, tokens per row; longer texts are cut.
      num_images: T, images per row; a document is cut before the image that is one too many.
      image_size: H = W of the vision encoder.
      decode: how encoded images are, see `images.decode_image`.
    """

    tokens: TextTokens
    text_length: int
    num_images: int
    image_size: int
    decode: Decode = "exact"

    def __call__(self, document: Document) -> Example:
        """A row to train on, ended by `<|endofchunk|>` and the end-of-text token.

        Returns:
          images: uint8 (T, 1, H, W, 3), missing ones zero; the text never refers to those.
          tokens: int32 (L,), 0 where padded.
          segments: int32 (L,), 1 for text, 0 for padding.
          weights: float32 (L,), see `loss_weights`.

        Raises:
          ValueError: an image of another size.
          BadRecordError: an encoded image that cannot be decoded.
        """
        document = self._cut(document)
        example = self._row(document, self.text(document))
        weights = loss_weights(
            example["tokens"],
            example["segments"] != 0,
            document.kind,
            image=self.tokens.image,
            end_of_chunk=self.tokens.end_of_chunk,
        )
        return {**example, "weights": weights}

    def text(self, document: Document) -> str:
        """What a row to train on is made of, before its end is cut."""
        return render(self._cut(document)) + END_OF_CHUNK + self.tokens.end_of_text

    def prompt(self, document: Document) -> Example:
        """A row to be continued: as for training, but without an end and without loss weights.

        Raises:
          ValueError: an image of another size, or a prompt that does not fit the row.
        """
        text = render(document)
        length = len(self.tokens.encode(text))
        if length > self.text_length or len(document.images) > self.num_images:
            raise ValueError(
                f"{document.key}: prompt of {length} tokens and {len(document.images)} images does "
                f"not fit {self.text_length} tokens and {self.num_images} images"
            )
        return self._row(document, text)

    def _row(self, document: Document, text: str) -> Example:
        ids = self.tokens.encode(text)[: self.text_length]
        tokens = np.zeros(self.text_length, np.int32)
        tokens[: len(ids)] = ids
        segments = (np.arange(self.text_length) < len(ids)).astype(np.int32)
        marks = int((tokens == self.tokens.image).sum())  # a cut text may have fewer
        return {"images": self.images(document, marks), "tokens": tokens, "segments": segments}

    def images(self, document: Document, marks: int) -> np.ndarray:
        """The document's images, zeros after the last one: uint8 (T, 1, H, W, 3).

        Encoded ones are decoded for the first `marks` of them only: no text refers to the others.
        """
        shape = (self.image_size, self.image_size, 3)
        pixels = np.zeros((self.num_images, 1, *shape), np.uint8)
        for index, image in enumerate(document.images):
            if isinstance(image, bytes):
                if index >= marks:
                    continue
                image = decode_image(image, self.image_size, self.decode)
            if image.shape != shape:
                raise ValueError(
                    f"{document.key}: image {index} has shape {image.shape}, expected {shape}"
                )
            pixels[index, 0] = image
        return pixels

    def _cut(self, document: Document) -> Document:
        if len(document.images) <= self.num_images:
            return document
        seen, kept = 0, []
        for part in document.parts:
            seen += not isinstance(part, str)
            if seen > self.num_images:
                break
            kept.append(part)
        return dataclasses.replace(document, parts=tuple(kept))
