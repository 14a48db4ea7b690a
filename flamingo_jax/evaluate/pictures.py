"""Images of prompts, decoded ahead of their use."""

from collections import OrderedDict
from collections.abc import Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import numpy as np
from jaxtyping import UInt8

from flamingo_jax.data.images import ImageProcessor
from flamingo_jax.data.records import BadRecordError
from flamingo_jax.evaluate.prompts import BLANK
from flamingo_jax.evaluate.tasks import Task

THREADS = 8


class Pictures:
    """Pixels of a task's images as the vision encoder takes them.

    Args:
      task, data: which images, and the data root.
      images: makes the pixels.
      kept: so many are kept, those used last.
    """

    def __init__(self, task: Task, data: Path, images: ImageProcessor, kept: int):
        self._task, self._data, self._images, self._kept = task, data, images, kept
        self._pool = ThreadPoolExecutor(THREADS)
        self._begun: OrderedDict[str, Future[np.ndarray]] = OrderedDict()

    def ahead(self, images: Iterable[str]) -> None:
        """Begin to decode them."""
        for image in images:
            self._future(image)

    def pixels(self, image: str) -> UInt8[np.ndarray, "H W 3"]:
        """BadRecordError: damaged or unreadable."""
        return self._future(image).result()

    def _future(self, image: str) -> Future[np.ndarray]:
        if image not in self._begun:
            self._begun[image] = self._pool.submit(self._decode, image)
            if len(self._begun) > self._kept:
                self._begun.popitem(last=False)
        self._begun.move_to_end(image)
        return self._begun[image]

    def _decode(self, image: str) -> np.ndarray:
        if image == BLANK:
            mean = np.round(255 * np.asarray(self._images.mean)).astype(np.uint8)
            return np.broadcast_to(mean, (self._images.size, self._images.size, 3))
        try:
            picture = self._task.picture(self._data, image)
        except OSError as error:
            raise BadRecordError(f"image cannot be read: {error.strerror}") from error
        return self._images.decode(picture) if isinstance(picture, bytes) else picture
