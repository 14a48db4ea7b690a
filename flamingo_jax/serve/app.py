"""The web application: `POST /v1/generate`, `GET /healthz`, and the page at `/`."""

import base64
import binascii
import json
import logging
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing, asynccontextmanager
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import StreamingResponse
from pydantic import BaseModel, ConfigDict, Field

from flamingo_jax.errors import UserError
from flamingo_jax.generate.model import Inference
from flamingo_jax.serve.addresses import NoAddresses
from flamingo_jax.serve.guard import Guard, busy, refusal
from flamingo_jax.serve.limits import BusyError, ServerLimits
from flamingo_jax.serve.service import Service

logger = logging.getLogger(__name__)
GENERATE = "/v1/generate"


class Part(BaseModel):
    """A text, or a picture: the base64 of a JPEG, PNG, WebP or GIF file."""

    model_config = ConfigDict(extra="forbid")
    text: str | None = None
    image: str | None = None

    def decoded(self) -> str | bytes:
        """UserError: neither or both, or bad base64."""
        if (self.text is None) == (self.image is None):
            raise UserError('a part is either {"text": …} or {"image": …}')
        if self.image is None:
            return self.text or ""
        try:
            return base64.b64decode(self.image.partition("base64,")[2] or self.image, validate=True)
        except binascii.Error:
            raise UserError("an image is not base64: give the bytes of an image file") from None


class Question(BaseModel):
    """The body of `POST /v1/generate`; what is left out is as in `GenerationConfig`."""

    model_config = ConfigDict(extra="forbid")
    prompt: list[Part]
    examples: list[list[Part]] = []
    stream: bool = False
    stop: list[str] = Field([], max_length=8)
    seed: int = Field(0, ge=0, lt=2**32)
    max_new_tokens: int | None = None
    min_new_tokens: int | None = None
    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    no_repeat_ngram_size: int | None = None
    num_beams: int | None = None
    length_penalty: float | None = None

    def settings(self) -> dict[str, Any]:
        return self.model_dump(exclude={"prompt", "examples", "stream"}, exclude_none=True)


def make_app(model: Inference, limits: ServerLimits) -> FastAPI:
    """The application of one model."""
    from flamingo_jax.serve.page import mount_page

    service = Service(model, limits)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        service.batcher.close()

    app = FastAPI(title="flamingo_jax", lifespan=lifespan, docs_url=None, redoc_url=None)

    @app.get("/healthz")
    async def healthz() -> dict[str, Any]:
        return {"status": "ok", "waiting": service.batcher.num_waiting}

    @app.post(GENERATE)
    async def generate(question: Question) -> Response:
        texts = service.stream(
            [part.decoded() for part in question.prompt],
            [[part.decoded() for part in example] for example in question.examples],
            **question.settings(),
        )
        if question.stream:
            # The first one here, so that a refusal is an answer of its own.
            first = await anext(texts, "")
            return StreamingResponse(_lines(first, texts), media_type="application/x-ndjson")
        text = ""
        async with aclosing(texts):
            async for latest in texts:
                text = latest
        return Response(json.dumps({"text": text}), media_type="application/json")

    _answer_errors(app)
    mount_page(app, service)
    app.add_middleware(NoAddresses)
    app.add_middleware(
        Guard,
        max_bytes=limits.upload_bytes,
        max_active=limits.max_waiting + limits.max_batch,
        counted_path=GENERATE,
    )
    return app


async def _lines(first: str, texts: AsyncGenerator[str, None]) -> AsyncGenerator[str, None]:
    """One JSON object a line; the last one says how it ended."""
    yield json.dumps({"text": first}) + "\n"
    try:
        async for text in texts:
            yield json.dumps({"text": text}) + "\n"
    except (UserError, BusyError) as error:
        yield json.dumps({"error": str(error)}) + "\n"
        return
    yield json.dumps({"done": True}) + "\n"


def _answer_errors(app: FastAPI) -> None:
    @app.exception_handler(UserError)
    async def user_error(_: Request, error: UserError) -> Response:
        return refusal(422, str(error))

    @app.exception_handler(BusyError)
    async def busy_error(_: Request, error: BusyError) -> Response:
        return busy(str(error))

    @app.exception_handler(RequestValidationError)
    async def invalid(_: Request, error: RequestValidationError) -> Response:
        # Not the default answer, which repeats the whole body.
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"][1:])) or "the body"
        return refusal(422, f"{where}: {first['msg']}")
