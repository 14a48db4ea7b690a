"""Document → Example: fixed-shape arrays of images, tokens and loss weights."""

import dataclasses
from dataclasses import dataclass

import numpy as np

from flamingo_jax.data.images import Decode, decode_image
from flamingo_jax.text.documents import Document, Text
from flamingo_jax.text.template import learn_flags, render, training_pieces
from flamingo_jax.text.tokenizer import TextTokenizer

Example = dict[str, np.ndarray]  # images, tokens, segments, weights; see `make_example`


@dataclass(frozen=True)
class ExampleMaker:
    """Makes examples of one shape.

    Attributes:
      text_length: L, tokens per row; longer texts are cut.
      num_images: T, images per row; a document is cut before the image that is one too many.
      image_size: H = W of the vision encoder.
      decode: how encoded images are, see `images.decode_image`.
    """

    tokens: TextTokenizer
    text_length: int
    num_images: int
    image_size: int
    decode: Decode = "exact"

    def __call__(self, document: Document) -> Example:
        """Makes a row to train on, ended by `<|endofchunk|>` and the end-of-text token.

        Returns:
          images: uint8 (T, 1, H, W, 3), missing ones zero; the text never refers to those.
          tokens: int32 (L,), 0 where padded.
          segments: int32 (L,), 1 for text, 0 for padding.
          weights: float32 (L,), 1.0 where a token is to be predicted; see `learn_flags`.

        Raises:
          ValueError: an image of another size.
          BadRecordError: an encoded image that cannot be decoded.
        """
        document = self._cut(document)
        pieces = training_pieces(document, self.tokens.end_of_text)
        encoding = self.tokens.tokenizer.encode("".join(piece.text for piece in pieces))
        ids = np.array(encoding.ids[: self.text_length], np.int32)
        weights = np.zeros(self.text_length, np.float32)
        weights[: len(ids)] = learn_flags(
            pieces, encoding, ids, self.tokens.special, learn_begin=document.learn_ends
        )
        return {**self._row(document, ids), "weights": weights}

    def text(self, document: Document) -> str:
        """Returns what a row to train on is made of, before its end is cut."""
        pieces = training_pieces(self._cut(document), self.tokens.end_of_text)
        return "".join(piece.text for piece in pieces)

    def prompt(self, document: Document) -> Example:
        """Makes a row to be continued: as for training, but without an end or loss weights.

        Raises:
          ValueError: an image of another size, or a prompt that does not fit the row.
        """
        ids = self.tokens.encode(render(document.parts))
        length = len(ids)
        if length > self.text_length or len(document.images) > self.num_images:
            raise ValueError(
                f"{document.key}: prompt of {length} tokens and {len(document.images)} images does "
                f"not fit {self.text_length} tokens and {self.num_images} images"
            )
        return self._row(document, np.array(ids, np.int32))

    def _row(self, document: Document, ids: np.ndarray) -> Example:
        tokens = np.zeros(self.text_length, np.int32)
        tokens[: len(ids)] = ids
        segments = (np.arange(self.text_length) < len(ids)).astype(np.int32)
        marks = int((tokens == self.tokens.special.image).sum())  # a cut text may have fewer
        return {"images": self.images(document, marks), "tokens": tokens, "segments": segments}

    def images(self, document: Document, marks: int) -> np.ndarray:
        """Returns the document's images, zeros after the last one: uint8 (T, 1, H, W, 3).

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
            seen += not isinstance(part, Text)
            if seen > self.num_images:
                break
            kept.append(part)
        return dataclasses.replace(document, parts=tuple(kept))
