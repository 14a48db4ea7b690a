"""Demonstrations that look like the query (RICES): features of images, and exact search.

RICES: https://arxiv.org/abs/2109.05014; as used by OpenFlamingo, https://arxiv.org/abs/2308.01390.
"""

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
from jaxtyping import Float, Int32
from numpy.lib.format import open_memmap
from PIL import Image

from flamingo_jax.errors import UserError

Features = Float[np.ndarray, "N D"]

# Candidates kept beside the k wanted: they cover the rounding of float32 products.
SLACK = 32
# No product of unit vectors of up to some thousand float32 numbers is further off than this.
ROUNDING = 1e-4


class ImageEncoder(Protocol):
    """Any CLIP: `flamingo_jax.similarity.clip.load_clip(DIR)` gives one."""

    @property
    def fingerprint(self) -> str:
        """Changes with the weights and with the preprocessing."""

    def encode_images(self, images: Sequence[Image.Image]) -> Features:
        """One vector per image, float32."""


def image_features(
    encoder: ImageEncoder,
    ids: Sequence[str],
    load: Callable[[str], Image.Image | None],
    cache: Path,
    *,
    batch_size: int = 64,
) -> Features:
    """Unit vectors of images, float32 (N, D), as a memory-mapped file that later calls find again.

    An image that is damaged has a row of zeros. Later calls try it again; once one can be read, all
    are encoded anew.

    Args:
      encoder: what encodes them. Its fingerprint and the ids, with their order, name the file.
      ids: names the images; ids of other data must differ, so begin them with the data's hash.
      load: gives the image of an id, None: it is damaged; called once for each, and for damaged
        ones alone when the file is there.
      cache: the directory of such files.
      batch_size: images in memory at a time.

    Raises:
      UserError: no ids, or no image that can be read.
    """
    if not ids:
        raise UserError("no images were given to encode; RICES needs at least one demonstration")
    digest = hashlib.sha256(encoder.fingerprint.encode())
    for name in ids:
        digest.update(b"\0" + name.encode())
    path = cache / f"{digest.hexdigest()[:32]}.npy"
    if path.is_file():
        features = np.load(path, mmap_mode="r")
        if all(load(ids[i]) is None for i in damaged(features)):
            return features
    _encode(encoder, ids, load, path, batch_size)
    return np.load(path, mmap_mode="r")


def damaged(features: Features) -> list[int]:
    """The rows of images that could not be read."""
    return np.flatnonzero(~features.any(axis=1)).tolist()


def _encode(
    encoder: ImageEncoder,
    ids: Sequence[str],
    load: Callable[[str], Image.Image | None],
    path: Path,
    batch_size: int,
) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_suffix(".unfinished.npy")
    features = None
    for start in range(0, len(ids), batch_size):
        loaded = ((i, load(ids[i])) for i in range(start, min(start + batch_size, len(ids))))
        images = {i: image for i, image in loaded if image is not None}
        if not images:
            continue
        rows = np.asarray(encoder.encode_images(list(images.values())), np.float32)
        if features is None:
            shape = (len(ids), rows.shape[1])
            features = open_memmap(unfinished, mode="w+", dtype=np.float32, shape=shape)
        features[list(images)] = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    if features is None:
        raise UserError(
            f"not one of {len(ids)} images can be read: give the images of the data set"
        )
    features.flush()
    unfinished.replace(path)


def top_k(
    query_QD: Float[np.ndarray, "Q D"],
    features_ND: Features,
    k: int,
    *,
    chunk: int = 16_384,
) -> Int32[np.ndarray, "Q k"]:
    """Indices of the k rows with the largest inner product, the largest first.

    Exact: products in float32 choose candidates, products in float64 order them; equal ones come in
    the order of the rows. Memory: Q × chunk and D × chunk float32 numbers, whatever N is.

    Args:
      query_QD: unit vectors, float16 or float32.
      features_ND: unit vectors, float16 or float32; may be memory-mapped.
      k: how many, at most N.
      chunk: rows looked at together.

    Raises:
      UserError: k larger than N, widths that differ, or a feature that is not finite.
    """
    if query_QD.shape[1] != features_ND.shape[1]:
        raise UserError(
            f"queries have {query_QD.shape[1]} features, the images {features_ND.shape[1]}; "
            "encode both with the same CLIP"
        )
    if not 0 < k <= len(features_ND):
        raise UserError(f"asked for the {k} most similar of {len(features_ND)} images")
    queries = np.asarray(query_QD, np.float32)
    kept = min(k + SLACK, len(features_ND))
    chunk = max(chunk, kept)
    scores, rows = _candidates(queries, features_ND, kept, chunk)
    chosen = np.empty((len(queries), k), np.int32)
    for i, query in enumerate(queries.astype(np.float64)):
        order, exact = _ordered(query, rows[i], features_ND)
        if kept < len(features_ND) and exact[k - 1] - ROUNDING <= scores[i].min():
            order, _ = _ordered(
                query, _all_near(query, features_ND, exact[k - 1], chunk), features_ND
            )
        chosen[i] = order[:k]
    return chosen


def _candidates(
    queries: np.ndarray, features: Features, kept: int, chunk: int
) -> tuple[np.ndarray, np.ndarray]:
    """Float32 products and row numbers of the `kept` best rows of each query, in no order."""
    scores: np.ndarray
    rows: np.ndarray
    for start in range(0, len(features), chunk):
        products = queries @ np.asarray(features[start : start + chunk], np.float32).T
        if not np.isfinite(products).all():
            raise UserError(
                f"features of rows {start} to {start + chunk} or a query are not finite"
            )
        if start == 0:
            rows = np.argpartition(-products, kept - 1, axis=1)[:, :kept]
            scores = np.take_along_axis(products, rows, axis=1)
            continue
        better = products > scores.min(axis=1, keepdims=True)
        for i in np.flatnonzero(better.any(axis=1)):
            found = np.flatnonzero(better[i])
            all_scores = np.concatenate([scores[i], products[i, found]])
            best = np.argpartition(-all_scores, kept - 1)[:kept]
            scores[i] = all_scores[best]
            rows[i] = np.concatenate([rows[i], found + start])[best]
    return scores, rows


def _ordered(
    query: np.ndarray, rows: np.ndarray, features: Features
) -> tuple[np.ndarray, np.ndarray]:
    """Rows by product, the largest first, equal ones by number; and their products in float64."""
    rows = np.sort(rows)
    # One sum per row, each over the same order of terms: equal rows have equal products.
    exact = np.array([np.dot(np.asarray(features[r], np.float64), query) for r in rows])
    order = np.argsort(-exact, kind="stable")
    return rows[order], exact[order]


def _all_near(query: np.ndarray, features: Features, least: float, chunk: int) -> np.ndarray:
    """Every row that may have a product of at least `least`: for queries with many equals."""
    near = []
    for start in range(0, len(features), chunk):
        products = np.asarray(features[start : start + chunk], np.float32) @ query.astype(
            np.float32
        )
        near.append(start + np.flatnonzero(products >= least - ROUNDING))
    return np.concatenate(near)
