"""What a server takes, and what it answers when that is too much."""

from dataclasses import dataclass

from flamingo_jax.generate.prompts import Limits


@dataclass(frozen=True, kw_only=True)
class ServerLimits:
    """Each is a flag of `python -m flamingo_jax.serve`."""

    max_upload_mb: float = 20.0  # of one request: a picture on the page, a whole JSON body
    max_pixels: int = 50_000_000  # of each picture
    max_images: int = 16  # of a prompt
    max_prompt_tokens: int = 2048
    max_new_tokens: int = 256
    max_waiting: int = 32  # requests, those in the model's hands not counted
    max_batch: int = 8  # requests answered together
    max_wait_seconds: float = 120.0  # between two words, the first included

    def __post_init__(self) -> None:
        for name in self.__dataclass_fields__:
            if getattr(self, name) <= 0:
                raise ValueError(f"{name} is {getattr(self, name)}, it must be above 0")

    @property
    def upload_bytes(self) -> int:
        return int(self.max_upload_mb * 2**20)

    @property
    def of_prompts(self) -> Limits:
        return Limits(self.max_prompt_tokens, self.max_images, self.max_pixels)


class BusyError(Exception):
    """Too many requests wait; the same one may be answered later."""
