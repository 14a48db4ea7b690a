"""Keeps Gradio from fetching addresses on behalf of whoever asks.

Where a request has an address in place of an uploaded file, Gradio fetches it. The page never asks
for that; a request made by hand could use the server to reach others.
"""

import json
import re
from collections.abc import MutableMapping
from typing import Any

from flamingo_jax.serve.guard import Receive, Scope, Send, refusal

API = "/gradio_api/"
UPLOAD = f"{API}upload"  # a form with the files themselves
FETCHES = re.compile(rf"^{API}(file|proxy)[=/]\s*https?:", re.IGNORECASE)
ADDRESS = re.compile(r"\s*https?:", re.IGNORECASE)


class NoAddresses:
    """ASGI middleware: requests to Gradio that name an address as a file are refused."""

    def __init__(self, app: Any):
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or not scope["path"].startswith(API):
            await self.app(scope, receive, send)
        elif FETCHES.match(scope["path"]):
            await _refuse(scope, receive, send)
        elif scope["method"] != "POST" or scope["path"] == UPLOAD:
            await self.app(scope, receive, send)
        else:
            await self._with_body(scope, receive, send)

    async def _with_body(self, scope: Scope, receive: Receive, send: Send) -> None:
        messages, more = [], True
        while more:
            messages.append(await receive())
            more = messages[-1].get("more_body", False)
        if names_address(b"".join(message.get("body", b"") for message in messages)):
            await _refuse(scope, receive, send)
            return
        kept = iter(messages)

        async def again() -> MutableMapping[str, Any]:
            return next(kept, None) or await receive()

        await self.app(scope, again, send)


def names_address(body: bytes) -> bool:
    """Whether JSON has a file whose path is an address, or is nested too deeply to tell."""
    try:
        values = [json.loads(body)]
    except ValueError:
        return False  # Gradio cannot read it either
    except RecursionError:
        return True
    while values:
        value = values.pop()
        if isinstance(value, dict):
            path = value.get("path")
            if isinstance(path, str) and ADDRESS.match(path):
                return True
            values.extend(value.values())
        elif isinstance(value, list):
            values.extend(value)
    return False


async def _refuse(scope: Scope, receive: Receive, send: Send) -> None:
    message = "addresses are not fetched: upload the picture itself"
    await refusal(422, message)(scope, receive, send)
