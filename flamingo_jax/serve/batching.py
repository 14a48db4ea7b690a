"""One thread that owns the model and answers waiting requests together."""

import asyncio
import logging
import threading
from collections import deque
from collections.abc import AsyncGenerator, Sequence
from typing import Any

from flamingo_jax.errors import UserError
from flamingo_jax.generate.engine.generate import GenerationConfig
from flamingo_jax.generate.model import Inference
from flamingo_jax.generate.prompts import ReadPrompt
from flamingo_jax.serve.limits import BusyError

logger = logging.getLogger(__name__)


class PendingRequest:
    """A waiting request. Its events reach the event loop on which it was made."""

    def __init__(
        self, prompt: ReadPrompt, config: GenerationConfig, seed: int, stop: Sequence[str] = ()
    ):
        self.prompt, self.config, self.seed, self.stop = prompt, config, seed, tuple(stop)
        self.abandoned = False
        self._loop = asyncio.get_running_loop()
        self._events: asyncio.Queue[str | Exception | None] = asyncio.Queue()

    @property
    def kind(self) -> tuple[Any, ...]:
        """Requests of one kind can be answered by one call of the model."""
        media = self.prompt.media_TFHWC
        return self.config, self.stop, media.shape[1] if len(media) else None

    def tell(self, event: str | Exception | None) -> None:
        """From any thread: the text so far, what went wrong, or None for the end."""
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._events.put_nowait, event)

    async def texts(self, max_wait_seconds: float) -> AsyncGenerator[str, None]:
        """The text so far, again and again, until it is complete.

        Raises:
          UserError: the model refused the prompt.
          BusyError: nothing came within the time.
        """
        try:
            while True:
                event = await asyncio.wait_for(self._events.get(), max_wait_seconds)
                if event is None:
                    return
                if isinstance(event, Exception):
                    raise event
                yield event
        except TimeoutError:
            raise BusyError(f"no answer within {max_wait_seconds:g} seconds") from None
        finally:
            self.abandoned = True


class Batcher:
    """Answers requests in the order they came, those of the first one's kind with it."""

    def __init__(self, model: Inference, *, max_batch: int, max_waiting: int):
        self.model = model
        self.max_batch, self.max_waiting = max_batch, max_waiting
        self._waiting: deque[PendingRequest] = deque()
        self._changed = threading.Condition()
        self._closed = False
        self._thread = threading.Thread(target=self._work, name="model", daemon=True)
        self._thread.start()

    @property
    def num_waiting(self) -> int:
        return len(self._waiting)

    def submit(self, ticket: PendingRequest) -> None:
        """BusyError: `max_waiting` requests wait already."""
        with self._changed:
            if len(self._waiting) >= self.max_waiting or self._closed:
                raise BusyError(f"{len(self._waiting)} requests are waiting already")
            self._waiting.append(ticket)
            self._changed.notify()

    def close(self) -> None:
        """End the thread after what it is doing; those who wait are told."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._thread.join()

    def _work(self) -> None:
        while tickets := self._next_batch():
            try:
                self._answer(tickets)
                end: Exception | None = None
            except UserError as error:
                end = error
            except Exception as error:  # whatever one batch did, the next must be answered
                logger.exception("a batch of %d requests failed", len(tickets))
                end = error
            for ticket in tickets:
                ticket.tell(end)
        for ticket in self._waiting:
            ticket.tell(BusyError("the server is shutting down"))

    def _next_batch(self) -> list[PendingRequest]:
        """Waits for one; empty when there will be no more."""
        with self._changed:
            while True:
                self._changed.wait_for(lambda: self._waiting or self._closed)
                if self._closed:
                    return []
                present = [ticket for ticket in self._waiting if not ticket.abandoned]
                same = [ticket for ticket in present if ticket.kind == present[0].kind]
                batch = same[: self.max_batch]
                self._waiting = deque(t for t in present if t not in batch)
                if batch:
                    return batch

    def _answer(self, tickets: Sequence[PendingRequest]) -> None:
        config, stop = tickets[0].config, tickets[0].stop
        question = [t.prompt for t in tickets], config, [t.seed for t in tickets], stop
        if config.num_beams > 1:  # beams may change until the end
            for ticket, made in zip(tickets, self.model.generate_batch(*question), strict=True):
                ticket.tell(made[0].text)
            return
        for texts in self.model.stream_batch(*question):
            for ticket, text in zip(tickets, texts, strict=True):
                ticket.tell(text)
            if all(ticket.abandoned for ticket in tickets):
                return
