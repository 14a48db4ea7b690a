"""A page and a JSON endpoint to talk to a model: `python -m flamingo_jax.serve --model=DIR`."""

import argparse
import asyncio
import dataclasses
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from flamingo_jax.cli import run
from flamingo_jax.errors import UserError


def parser() -> argparse.ArgumentParser:
    from flamingo_jax.serving.limits import ServerLimits

    flags = argparse.ArgumentParser(
        prog="python -m flamingo_jax.serve",
        description=__doc__,
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    flags.add_argument("--model", type=Path, required=True, help="model directory")
    flags.add_argument(
        "--quantize", choices=("int8",), help="hold the frozen weights in eight bits"
    )
    flags.add_argument("--host", default="127.0.0.1", help="0.0.0.0 lets other machines in")
    flags.add_argument("--port", type=int, default=7860, help="0: any that is free")
    for field in dataclasses.fields(ServerLimits):
        flag = f"--{field.name.replace('_', '-')}"
        kind: Any = type(field.default)
        flags.add_argument(flag, type=kind, default=field.default, help="limit")
    return flags


def keep_to_itself() -> None:
    """Before Gradio is imported: no telemetry, and no request to anyone."""
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    os.environ["HF_HUB_OFFLINE"] = "1"
    os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"


def main(argv: Sequence[str]) -> int:
    args = parser().parse_args(argv[1:])
    keep_to_itself()
    try:
        import gradio  # noqa: F401
        import uvicorn
    except ImportError as error:
        raise UserError(
            f"{error.name} is not installed: pip install 'flamingo-jax[serve]'"
        ) from None
    import flamingo_jax
    from flamingo_jax.serving.app import make_app
    from flamingo_jax.serving.limits import ServerLimits

    names = [field.name for field in dataclasses.fields(ServerLimits)]
    try:
        limits = ServerLimits(**{name: getattr(args, name) for name in names})
    except ValueError as error:
        raise UserError(str(error)) from None
    model = flamingo_jax.load(args.model, quantize=args.quantize)

    async def serve() -> None:
        # Gradio's locks belong to the loop that is running when its app is made.
        app = make_app(model, limits)
        config = uvicorn.Config(
            app, args.host, args.port, log_level="warning", timeout_graceful_shutdown=5
        )
        socket = config.bind_socket()
        socket.listen()  # so that nobody who reads the address comes too early
        print("http://{}:{}".format(*socket.getsockname()[:2]), flush=True)
        await uvicorn.Server(config).serve(sockets=[socket])

    asyncio.run(serve())
    return 0


if __name__ == "__main__":
    run(main)
