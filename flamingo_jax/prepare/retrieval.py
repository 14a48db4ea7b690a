"""Images of a pool by text: nearest by the embeddings that `embed` wrote, then re-ranked."""

import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

from flamingo_jax.data.images import decode_image
from flamingo_jax.data.records import BadRecordError
from flamingo_jax.errors import UserError
from flamingo_jax.prepare.job import made_of
from flamingo_jax.prepare.similarity import opened, passages_of
from flamingo_jax.prepare.writers import Embeddings

QUERIES = 4096  # compared with one shard at a time, so that memory stays bounded


class Place(NamedTuple):
    """Where an image of the pool lies."""

    shard: int
    record: int
    image: int


@dataclass(frozen=True)
class Wanted:
    """What an image is looked for by: its description and the text it stands at."""

    candidates: list[Place]
    description: str
    context: str


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

    @functools.cached_property
    def settings(self) -> dict[str, Any]:
        return made_of(Path(self.directory), "embed")

    def candidates(
        self, texts_QP: Float[np.ndarray, "Q P"], fingerprint: str, count: int
    ) -> list[list[Place]]:
        """Returns the nearest images of each text, best first.

        Raises:
          UserError: the pool was embedded by another CLIP than this one.
        """
        parts = [texts_QP[i : i + QUERIES] for i in range(0, len(texts_QP), QUERIES)]
        best: list[tuple[np.ndarray, np.ndarray]] = [
            (np.zeros((len(part), 0), np.float32), np.zeros((len(part), 0, 3), np.int64))
            for part in parts
        ]
        for vectors_NP, places_N3 in self._shards(fingerprint):
            for number, part in enumerate(parts):
                scores_QN = part @ vectors_NP.T
                if count < scores_QN.shape[1]:  # sorting all would take most of the time
                    chosen = np.argpartition(-scores_QN, count, axis=1)[:, :count]
                    chosen.sort(axis=1)
                else:
                    chosen = np.broadcast_to(np.arange(scores_QN.shape[1]), scores_QN.shape)
                scores_QN = np.take_along_axis(scores_QN, chosen, axis=1)
                scores_QN = np.concatenate([best[number][0], scores_QN], axis=1)
                places_QN3 = np.concatenate([best[number][1], places_N3[chosen]], axis=1)
                order = np.argsort(-scores_QN, axis=1, kind="stable")[:, :count]
                best[number] = (
                    np.take_along_axis(scores_QN, order, axis=1),
                    np.take_along_axis(places_QN3, order[..., None], axis=1),
                )
        return [[Place(*map(int, p)) for p in row] for _, places in best for row in places]

    def _shards(self, fingerprint: str) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        count = len(self.settings["inputs"])
        for shard in range(count):
            path = Path(self.directory) / Embeddings().name(shard, count)
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
        """Returns (encoded image, key of its record). BadRecordError: it cannot be read."""
        store = opened(self.settings["shards"], self.settings["index_dir"])
        record = store.record(place.shard, place.record)
        return passages_of(record).image(place.image), record.key


def rerank(pool: Pool, clip: Any, wanted: Sequence[Wanted], share: float) -> list[list[Chosen]]:
    """Ranks for each text its candidates that can be read, best first, by (1 − share) ·
    similarity with the description + share · similarity with the context."""
    size = clip.config.vision.image_size
    read: dict[Place, tuple[bytes, str]] = {}
    pixels: list[np.ndarray] = []
    for place in dict.fromkeys(place for one in wanted for place in one.candidates):
        try:
            data, key = pool.read(place)
            pixels.append(decode_image(data, size))
        except BadRecordError:
            continue
        read[place] = data, key
    images_NP = clip.encode_images(pixels)
    rows = {place: row for row, place in enumerate(read)}
    texts = clip.encode_texts([one.description for one in wanted])
    contexts = clip.encode_texts([one.context for one in wanted])
    ranked = []
    for one, text_P, context_P in zip(wanted, texts, contexts, strict=True):
        places = [place for place in one.candidates if place in rows]
        vectors_NP = images_NP[[rows[place] for place in places]]
        similarity = vectors_NP @ text_P
        score = (1 - share) * similarity + share * vectors_NP @ context_P
        ranked.append(
            [
                Chosen(places[i], read[places[i]][0], float(similarity[i]), read[places[i]][1])
                for i in np.argsort(-score, kind="stable")
            ]
        )
    return ranked
