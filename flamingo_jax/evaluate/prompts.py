"""The prompt of an example, with demonstrations, as OpenFlamingo writes it (commit 655f693)."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from flamingo_jax.evaluate.sampling import rng_of
from flamingo_jax.evaluate.tasks import Example, Task
from flamingo_jax.text.template import few_shot_text

# What the model is shown for a demonstration's image; all but "own" ask whether images matter.
ContextImages = Literal["own", "shuffled", "blank", "removed"]
BLANK = ""  # stands for the path of an image that is mean grey


@dataclass(frozen=True)
class Prompt:
    """What the model is given for an example: `<image>` in the text stands for the next image."""

    example: Example
    demonstrations: tuple[Example, ...]
    text: str
    images: tuple[str, ...]


def make_prompt(
    task: Task,
    example: Example,
    demonstrations: Sequence[Example],
    *,
    text_only: bool = False,
    context_images: ContextImages = "own",
    superfluous_images: bool = False,
) -> Prompt:
    """Makes the prompt of one example.

    Args:
      task: whose separator.
      example: what is asked.
      demonstrations: the oldest first.
      text_only: demonstrations are shown without their images, as with 0 shots.
      context_images: which images the demonstrations get.
      superfluous_images: images are given even where the text has no mark for them, as the original
        does for classification with 0 shots.
    """
    removed = context_images == "removed"
    hidden = text_only or removed
    text = few_shot_text(
        (
            (not hidden and shown.image is not None, shown.question + shown.answer)
            for shown in demonstrations
        ),
        (example.image is not None, example.question),
        task.separator,
    )
    images = [shown.image for shown in demonstrations if shown.image is not None]
    if removed or (text_only and not superfluous_images):
        images = []
    elif context_images == "blank":
        images = [BLANK] * len(images)
    elif context_images == "shuffled" and len(images) > 1:
        # Turned by some places, so that no demonstration keeps its own.
        by = int(rng_of(0, example.id, "shuffled").integers(1, len(images)))
        images = images[by:] + images[:by]
    if example.image is not None:
        images.append(example.image)
    return Prompt(example, tuple(demonstrations), text, tuple(images))
