"""What interleaved documents must have to be kept."""

import dataclasses
from dataclasses import dataclass

from flamingo_jax.data.parsers import Passages
from flamingo_jax.prepare.options import option
from flamingo_jax.prepare.survival import DroppedError, Tally


@dataclass(frozen=True, kw_only=True)
class DocumentLimits:
    """Fields of every preparation of interleaved documents."""

    min_similarity: float = option(
        -1.0, "images less similar to their text are dropped; their text stays"
    )
    min_images: int = option(1, "documents with fewer images left are dropped")
    min_words: int = option(1, "documents with fewer words are dropped")

    def kept(self, key: str, passages: Passages | None, tally: Tally) -> Passages:
        """Returns the document as it is kept. DroppedError: it is not."""
        if passages is None:
            raise DroppedError("no image")
        passages = keep_similar(key, passages, self.min_similarity, tally)
        images = {index for index in passages.image_index if index >= 0}
        if len(images) < max(self.min_images, 1):
            raise DroppedError("too few images" if images else "no image", str(len(images)))
        words = sum(len(text.split()) for text in passages.texts)
        if words < self.min_words:
            raise DroppedError("too few words", str(words))
        tally.images_kept += len(images)
        return passages


def keep_similar(key: str, passages: Passages, threshold: float, tally: Tally) -> Passages:
    """Returns the images that stand before a text they are similar enough to."""
    scores = passages.similarity or (threshold,) * len(passages.texts)
    index = tuple(
        image if score >= threshold else -1
        for image, score in zip(passages.image_index, scores, strict=True)
    )
    for image, kept, score in zip(passages.image_index, index, scores, strict=True):
        if image != kept:
            tally.drop_image(f"{key}/{image}", "below the similarity", f"{score:.4f}")
    for image in range(len(passages.images)):
        if image not in passages.image_index:
            tally.drop_image(f"{key}/{image}", "image without a text")
    return dataclasses.replace(passages, image_index=index)
