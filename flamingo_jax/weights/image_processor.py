"""The image processor of a vision encoder."""

from flamingo_jax.data.images import ImageProcessor
from flamingo_jax.models.vision.clip import CLIP_MEAN, CLIP_STD, ClipVisionConfig


def image_processor(encoder: ClipVisionConfig) -> ImageProcessor:
    """Returns what makes the encoder's pixels; a new kind of encoder is given its own here."""
    return ImageProcessor(encoder.image_size, CLIP_MEAN, CLIP_STD)
