"""CLIP over the shards that the pipeline reads: similarities of pairs, embeddings of images."""

import functools
import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from flamingo_jax.data.images import decode_image
from flamingo_jax.data.parsers import Passages, pair_passages, stored_passages
from flamingo_jax.data.records import Record
from flamingo_jax.data.stores import Store, open_store
from flamingo_jax.prepare.img2dataset import store_records
from flamingo_jax.prepare.job import Unit
from flamingo_jax.prepare.options import REQUIRED, option
from flamingo_jax.prepare.survival import Tally
from flamingo_jax.prepare.writers import Embeddings, JsonLines, Sample

GROUP = 256  # records read at a time


@functools.lru_cache(maxsize=2)
def opened(shards: str, index_dir: str = "") -> Store:
    return open_store(shards, index_dir)


@functools.lru_cache(maxsize=2)
def loaded(clip: str, batch_size: int) -> Any:
    from flamingo_jax.similarity.clip import load_clip

    return load_clip(clip, batch_size=batch_size)


def passages_of(record: Record) -> Passages:
    """Of a pair as img2dataset writes it, or of a stored document."""
    stored = "image_index" in record.fields
    return stored_passages(record) if stored else pair_passages(record)


@dataclass(frozen=True)
class Pictured:
    """A record's texts that have an image, with the images as CLIP sees them.

    Attributes:
      places: of the texts in the document.
      images: the image's number in the record, for each text.
    """

    index: int
    key: str
    length: int
    places: tuple[int, ...]
    texts: tuple[str, ...]
    images: tuple[int, ...]
    pixels: tuple[np.ndarray, ...]


@dataclass(frozen=True, kw_only=True)
class ClipReader:
    """Fields of every preparation that puts records through CLIP."""

    shards: str = option(REQUIRED, "shards as a stream of the config reads them")
    clip: str = option(REQUIRED, "directory of a CLIP, see flamingo_jax.similarity.clip.load_clip")
    index_dir: str = option("", "where indices of tars are kept; by default beside them")
    batch_size: int = option(64, "images or texts per call of CLIP")

    def units(self) -> list[Unit]:
        return [Unit(path, i) for i, path in enumerate(opened(self.shards, self.index_dir).paths)]

    def groups(self, unit: Unit, tally: Tally) -> Iterator[list[Pictured]]:
        """Returns the readable records of a shard, some at a time."""
        store = opened(self.shards, self.index_dir)
        size = loaded(self.clip, self.batch_size).config.vision.image_size
        records = store_records(store, unit.start, tally)
        while group := list(itertools.islice(records, GROUP)):
            yield [
                pictured
                for index, record in group
                for pictured in tally.surviving(record.key, _pictured, index, record, size, tally)
            ]


def _pictured(index: int, record: Record, size: int, tally: Tally) -> Pictured:
    passages = passages_of(record)
    places = tuple(p for p, image in enumerate(passages.image_index) if image >= 0)
    images = tuple(passages.image_index[place] for place in places)
    pixels = {i: decode_image(passages.image(i), size) for i in set(images)}
    tally.images += len(pixels)
    tally.images_kept += len(pixels)
    texts = tuple(passages.texts[place] for place in places)
    chosen = tuple(pixels[image] for image in images)
    return Pictured(index, record.key, len(passages.texts), places, texts, images, chosen)


@dataclass(frozen=True, kw_only=True)
class Score(ClipReader):
    """CLIP's similarity of every image and its text, one line per record."""

    writer = JsonLines()

    def samples(self, unit: Unit, tally: Tally) -> Iterator[Sample]:
        clip = loaded(self.clip, self.batch_size)
        for group in self.groups(unit, tally):
            texts = clip.encode_texts([text for p in group for text in p.texts])
            images = clip.encode_images([pixels for p in group for pixels in p.pixels])
            scores = iter((texts * images).sum(axis=1))
            for pictured in group:
                similarity: list[float | None] = [None] * pictured.length
                for place in pictured.places:
                    similarity[place] = round(float(next(scores)), 4)
                yield {"record": pictured.index, "key": pictured.key, "sim": similarity}


@dataclass(frozen=True, kw_only=True)
class Embed(ClipReader):
    """CLIP's embedding of every image, to retrieve images by text."""

    writer = Embeddings()

    def samples(self, unit: Unit, tally: Tally) -> Iterator[Sample]:
        clip = loaded(self.clip, self.batch_size)
        for group in self.groups(unit, tally):
            vectors = iter(clip.encode_images([pixels for p in group for pixels in p.pixels]))
            for pictured in group:
                rows = [(image, next(vectors)) for image in pictured.images]
                unique = dict(rows)  # an image may stand before several texts
                yield {
                    "record": pictured.index,
                    "images": list(unique),
                    "vectors": list(unique.values()),
                    "fingerprint": clip.fingerprint,
                }
