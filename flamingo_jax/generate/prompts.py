"""Pictures and text in reading order → what the model takes."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Int, UInt8

from flamingo_jax.data.images import MAX_PIXELS, ImageProcessor
from flamingo_jax.errors import UserError
from flamingo_jax.generate.pictures import Medium, is_picture, pixels_of
from flamingo_jax.text.special_tokens import IMAGE
from flamingo_jax.text.template import prompt_text

Part = str | Medium
Example = Sequence[Part]  # usually (picture, text)
LOOKS_LIKE_A_FILE = re.compile(r"\S+\.(jpe?g|png|webp|gif|bmp|tiff?)", re.IGNORECASE)


@dataclass(frozen=True)
class Limits:
    """The most a prompt may hold; None: as much as the machine and the model take."""

    tokens: int | None = None
    images: int | None = None
    pixels: int = MAX_PIXELS  # of each picture as it is given


@dataclass(frozen=True)
class ReadPrompt:
    """A prompt whose pictures are decoded and whose text is tokenised."""

    text: str  # marks included
    tokens_L: Int[np.ndarray, "L"]
    media_TFHWC: UInt8[np.ndarray, "T F H W 3"]

    @classmethod
    def of_pictures(
        cls, text: str, tokens: Sequence[int], pixels: Sequence[np.ndarray], size: int
    ) -> "ReadPrompt":
        """Makes a prompt from the pixels of its pictures, each (size, size, 3); no videos."""
        media = np.zeros((len(pixels), 1, size, size, 3), np.uint8)
        for slot, picture in enumerate(pixels):
            media[slot, 0] = picture
        return cls(text, np.asarray(tokens, np.int32), media)


def split_batch(query: Any) -> tuple[list[list[Part]], bool]:
    """Prompts as lists of parts, and whether several were given.

    One prompt is a text, a picture, or a list of texts, pictures and videos (lists of frames). A
    list of nothing but lists is a batch of prompts.
    """
    if isinstance(query, str) or is_picture(query):
        return [[query]], False
    if not isinstance(query, list | tuple):
        raise UserError(
            f"{query!r:.80} is no prompt: give a list of pictures and texts in reading order, as "
            'in [picture, "A cat.", picture, "Two"]'
        )
    if query and all(isinstance(part, list | tuple) for part in query):
        return [list(prompt) for prompt in query], True
    return [list(query)], False


def read_prompt(
    parts: Sequence[Part], tokenizer: Any, images: ImageProcessor, limits: Limits | None = None
) -> ReadPrompt:
    """One prompt in the template of the papers: `<image>` for each picture or video, and
    `<|endofchunk|>` before every picture but the first.

    Raises:
      UserError: nothing in it, something that is neither picture nor text, or more than the limits.
    """
    limits = limits or Limits()
    texts = [part for part in parts if isinstance(part, str)]
    for text in texts:
        _check_text(text)
    num_images = len(parts) - len(texts)
    if not num_images and not any(text.strip() for text in texts):
        raise UserError("the prompt is empty: give it a picture or some text")
    if limits.images is not None and num_images > limits.images:
        raise UserError(
            f"the prompt has {num_images} pictures, at most {limits.images} are taken: leave out "
            "some examples"
        )
    text = prompt_text(parts)
    tokens = np.asarray(tokenizer(text).input_ids, np.int32)
    if limits.tokens is not None and len(tokens) > limits.tokens:
        raise UserError(
            f"the prompt has {len(tokens)} tokens, at most {limits.tokens} are taken: shorten it"
        )
    media = [
        pixels_of(part, images, max_pixels=limits.pixels)
        for part in parts
        if not isinstance(part, str)
    ]
    frames = sorted({len(medium) for medium in media})
    if len(frames) > 1:
        raise UserError(
            f"the prompt's pictures and videos have {' and '.join(map(str, frames))} frames: give "
            "all of them equally many"
        )
    shape = (0, 1, images.size, images.size, 3)
    return ReadPrompt(text, tokens, np.stack(media) if media else np.zeros(shape, np.uint8))


def _check_text(text: str) -> None:
    if IMAGE in text:
        raise UserError(
            f"a text has {IMAGE} in it, which stands for a picture: put the picture itself into "
            "the list, in its place"
        )
    if text.lower().startswith(("http://", "https://")) and not re.search(r"\s", text):
        raise UserError(f"{text:.80} is an address, nothing is fetched: download it, give its path")
    if LOOKS_LIKE_A_FILE.fullmatch(text):
        raise UserError(
            f"{text:.80} is the name of a file, a str is taken as text: give pathlib.Path("
            f"{text[:80]!r}) for the picture"
        )


@dataclass(frozen=True)
class Batch:
    """Prompts as arrays: text padded on the left, pictures at the end."""

    images: Any  # uint8 (B, T, F, H, W, 3)
    tokens_BL: Int[np.ndarray, "B L"]
    segments_BL: Int[np.ndarray, "B L"]
    num_images_B: Int[np.ndarray, "B"]

    @property
    def inputs(self) -> tuple[Any, np.ndarray, np.ndarray]:
        return self.images, self.tokens_BL, self.segments_BL


@dataclass(frozen=True)
class BatchShape:
    """Says what a batch is filled up to, where batches should have few shapes.

    Attributes:
      rows: at least so many; the last prompt is repeated.
      slots: at least so many images in a row.
      round_length: texts are padded to a multiple of so many tokens.
    """

    rows: int = 1
    slots: int = 0
    round_length: int = 1


def collate(prompts: Sequence[ReadPrompt], least: BatchShape | None = None) -> Batch:
    """Makes a batch of prompts, no smaller than `least`.

    Raises:
      UserError: no prompt, or videos of different lengths in different prompts.
    """
    least = least or BatchShape()
    if not prompts:
        raise UserError("there is no prompt: give at least one")
    frames = {p.media_TFHWC.shape[1] for p in prompts if len(p.media_TFHWC)}
    if len(frames) > 1:
        raise UserError(
            f"the prompts have pictures or videos of {' and '.join(map(str, sorted(frames)))} "
            "frames: run them apart"
        )
    prompts = [*prompts, *[prompts[-1]] * (least.rows - len(prompts))]
    num_images_B = np.array([len(p.media_TFHWC) for p in prompts])
    length = -(-max(len(p.tokens_L) for p in prompts) // least.round_length)
    length *= least.round_length
    size = prompts[0].media_TFHWC.shape[2:]
    shape = len(prompts), max(least.slots, num_images_B.max()), *(frames or {1}), *size
    images = np.zeros(shape, np.uint8)
    tokens_BL = np.zeros((len(prompts), length), np.int32)
    segments_BL = np.zeros_like(tokens_BL)
    for row, prompt in enumerate(prompts):
        if len(prompt.media_TFHWC):
            images[row, : num_images_B[row]] = prompt.media_TFHWC
        tokens_BL[row, length - len(prompt.tokens_L) :] = prompt.tokens_L
        segments_BL[row, length - len(prompt.tokens_L) :] = 1
    return Batch(images, tokens_BL, segments_BL, num_images_B)
