"""The tasks by the name a config gives them."""

from flamingo_jax.evaluate.tasks.captions import Coco, Flickr30k
from flamingo_jax.evaluate.tasks.digits import DigitNames, Digits
from flamingo_jax.evaluate.tasks.hateful_memes import HatefulMemes
from flamingo_jax.evaluate.tasks.imagenet import ImageNet
from flamingo_jax.evaluate.tasks.scienceqa import ScienceQa, ScienceQaThought
from flamingo_jax.evaluate.tasks.task import DataErrors, Example, Task, read_split
from flamingo_jax.evaluate.tasks.vqa import OkVqa, TextVqa, VizWiz, Vqav2

TASKS: dict[str, type[Task]] = {
    "coco": Coco,
    "flickr30k": Flickr30k,
    "vqav2": Vqav2,
    "okvqa": OkVqa,
    "textvqa": TextVqa,
    "vizwiz": VizWiz,
    "hateful_memes": HatefulMemes,
    "imagenet": ImageNet,
    "scienceqa": ScienceQa,
    "scienceqa_thought": ScienceQaThought,
    "digits": Digits,
    "digit_names": DigitNames,
}

__all__ = ["TASKS", "DataErrors", "Example", "Task", "read_split"]
