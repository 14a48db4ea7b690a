"""What the page and the JSON endpoint share: from a user's parts to texts."""

import asyncio
import dataclasses
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from typing import Any

from flamingo_jax.errors import UserError
from flamingo_jax.generate.engine.generate import GenerationConfig
from flamingo_jax.generate.model import Inference
from flamingo_jax.generate.prompts import Example, Part
from flamingo_jax.serve.batching import Batcher, PendingRequest
from flamingo_jax.serve.limits import ServerLimits

DECODING_AT_ONCE = 2  # pictures may be large until they are decoded and made small


class Service:
    """A model behind its limits."""

    def __init__(self, model: Inference, limits: ServerLimits):
        self.model, self.limits = model, limits
        self.batcher = Batcher(model, max_batch=limits.max_batch, max_waiting=limits.max_waiting)
        self._decoding = asyncio.Semaphore(DECODING_AT_ONCE)

    async def stream(
        self,
        prompt: Sequence[Part],
        examples: Sequence[Example] = (),
        *,
        stop: Sequence[str] = (),
        seed: int = 0,
        **settings: Any,
    ) -> AsyncGenerator[str, None]:
        """The text so far, again and again, until it is complete.

        Raises:
          UserError: a prompt or setting that is wrong, or above the limits.
          BusyError: too many requests are waiting.
        """
        config = self._config(settings)
        async with self._decoding:
            read = await asyncio.to_thread(
                self.model.read, list(prompt), examples, limits=self.limits.of_prompts
            )
        ticket = PendingRequest(read, config, seed, stop)
        self.batcher.submit(ticket)
        async with aclosing(ticket.texts(self.limits.max_wait_seconds)) as texts:
            async for text in texts:
                yield text

    def _config(self, settings: dict[str, Any]) -> GenerationConfig:
        config = self.model.generation_config(**settings)
        for name in ("max_new_tokens", "min_new_tokens"):
            if getattr(config, name) > self.limits.max_new_tokens:
                raise UserError(
                    f"{name} is {getattr(config, name)}, at most {self.limits.max_new_tokens} are "
                    "made here: ask for fewer"
                )
        if config.num_return_sequences > 1 or config.num_beams > self.limits.max_batch:
            raise UserError(
                f"num_return_sequences is {config.num_return_sequences} and num_beams "
                f"{config.num_beams}: one sequence is returned, from at most "
                f"{self.limits.max_batch} beams"
            )
        return dataclasses.replace(config, num_return_sequences=1)
