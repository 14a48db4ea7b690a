"""Refuses what is too much before it is read."""

from collections.abc import Awaitable, Callable, MutableMapping
from contextlib import suppress
from typing import Any

from fastapi.responses import JSONResponse

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]


class _TooLargeError(Exception):
    pass


class Guard:
    """ASGI middleware: bodies up to `max_bytes`, and `max_active` questions at once.

    A body that announces its size is refused unread, another one when it grows too large.
    """

    def __init__(self, app: Any, *, max_bytes: int, max_active: int, counted_path: str):
        self.app, self.max_bytes, self.max_active = app, max_bytes, max_active
        self.counted_path, self._active = counted_path, 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
        elif scope["path"] != self.counted_path:
            await self._bounded(scope, receive, send)
        elif self._active >= self.max_active:
            await busy(f"{self._active} requests are being answered")(scope, receive, send)
        else:
            self._active += 1
            try:
                await self._bounded(scope, receive, send)
            finally:
                self._active -= 1

    async def _bounded(self, scope: Scope, receive: Receive, send: Send) -> None:
        announced = dict(scope["headers"]).get(b"content-length", b"0")
        if not announced.isdigit() or int(announced) > self.max_bytes:
            await self._refuse(scope, receive, send)
            return
        size, answering = 0, False

        async def counted() -> MutableMapping[str, Any]:
            nonlocal size
            message = await receive()
            size += len(message.get("body", b""))
            if size > self.max_bytes:
                raise _TooLargeError
            return message

        async def passed_on(message: MutableMapping[str, Any]) -> None:
            nonlocal answering
            # What the application makes of the broken body is not its sender's to know.
            if answering or size <= self.max_bytes:
                answering = True
                await send(message)

        with suppress(_TooLargeError):
            await self.app(scope, counted, passed_on)
        if size > self.max_bytes and not answering:
            await self._refuse(scope, receive, send)

    async def _refuse(self, scope: Scope, receive: Receive, send: Send) -> None:
        limit = f"{self.max_bytes / 2**20:g} MB"
        await refusal(413, f"the upload is above {limit}: make the pictures smaller")(
            scope, receive, send
        )


def refusal(status: int, message: str, headers: dict[str, str] | None = None) -> JSONResponse:
    return JSONResponse({"error": message, "detail": message}, status, headers)


def busy(reason: str) -> JSONResponse:
    return refusal(429, f"{reason}: try again in a few seconds", {"Retry-After": "5"})
