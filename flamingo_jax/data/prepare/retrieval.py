"""Images of a pool by text: nearest by the embeddings that `embed` wrote, then re-ranked."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

from flamingo_jax.data.images import decode_image
from flamingo_jax.data.prepare.job import made_of
from flamingo_jax.data.prepare.similarity import opened, passages_of
from flamingo_jax.data.prepare.writers import Embeddings
from flamingo_jax.data.records import BadRecordError
from flamingo_jax.errors import UserError

QUERIES = 4096  # compared with one shard at a time, so that memory stays bounded


class Place(NamedTuple):
    """Where an image of the pool lies."""

    shard: int
    record: int
    image: int


@dataclass(frozen=True)
class Chosen:
    """An image for a text.

    Attributes:
      similarity: of image and description.
      source: key of the record it comes from.
    """

    place: Place
    data: bytes
    similarity: float
    source: str


@dataclass(frozen=True)
class Pool:
    """A directory that `embed` wrote, and the shards it was made of."""

    directory: str

    def candidates(
        self, texts_QP: Float[np.ndarray, "Q P"], fingerprint: str, count: int
    ) -> list[list[Place]]:
        """The nearest images of each text, best first.

        Raises:
          UserError: the pool was embedded by another CLIP than this one.
        """
        best = [
            (np.full((len(part), 0), 0.0, np.float32), np.zeros((len(part), 0, 3), np.int64))
            for part in _parts(texts_QP)
        ]
        for vectors_NP, places_N3 in self._shards(fingerprint):
            for number, part in enumerate(_parts(texts_QP)):
                scores_QN, places_QN3 = best[number]
                scores_QN = np.concatenate([scores_QN, part @ vectors_NP.T], axis=1)
                new = np.broadcast_to(places_N3, (len(part), *places_N3.shape))
                places_QN3 = np.concatenate([places_QN3, new], axis=1)
                # Stable, so that equal images come in the order of the pool.
                order = np.argsort(-scores_QN, axis=1, kind="stable")[:, :count]
                best[number] = (
                    np.take_along_axis(scores_QN, order, axis=1),
                    np.take_along_axis(places_QN3, order[..., None], axis=1),
                )
        return [[Place(*map(int, p)) for p in row] for _, places in best for row in places]

    def _shards(self, fingerprint: str) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        inputs = made_of(Path(self.directory), "embed")["inputs"]
        for shard in range(len(inputs)):
            path = Path(self.directory) / Embeddings().name(shard, len(inputs))
            with np.load(path) as arrays:
                found = str(arrays["fingerprint"])
                vectors, places = arrays["vectors"].astype(np.float32), arrays["places"]
            if found not in ("", fingerprint):
                raise UserError(
                    f"{self.directory} was embedded by another CLIP: give the one it was made "
                    "with, or run `embed` again"
                )
            if len(places):
                yield vectors, np.insert(places, 0, shard, axis=1)

    def read(self, place: Place) -> tuple[bytes, str]:
        """(encoded image, key of its record). BadRecordError: it cannot be read."""
        settings = made_of(Path(self.directory), "embed")
        store = opened(settings["shards"], settings["index_dir"])
        record = store.record(place.shard, place.record)
        return passages_of(record).images[place.image], record.key


def _parts(texts_QP: np.ndarray) -> list[np.ndarray]:
    return [texts_QP[i : i + QUERIES] for i in range(0, len(texts_QP), QUERIES)]


def rerank(
    pool: Pool,
    clip: Any,
    candidates: list[Place],
    description: str,
    context: str,
    share: float,
) -> list[Chosen]:
    """Candidates that can be read, best first, by (1 − share) · similarity with the description +
    share · similarity with the text around the image."""
    read: list[tuple[Place, bytes, str, np.ndarray]] = []
    for place in candidates:
        try:
            data, key = pool.read(place)
            read.append((place, data, key, decode_image(data, clip.config.vision.image_size)))
        except BadRecordError:
            continue
    images = clip.encode_images([pixels for *_, pixels in read])
    described, around = clip.encode_texts([description, context])
    similarity = images @ described
    order = np.argsort(-((1 - share) * similarity + share * images @ around), kind="stable")
    return [
        Chosen(place, data, float(similarity[i]), key)
        for i, (place, data, key, _) in ((i, read[i]) for i in order)
    ]
