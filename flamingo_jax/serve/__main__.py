"""A page and a JSON endpoint to talk to a model: `python -m flamingo_jax.serve --model=DIR`."""

import argparse
import asyncio
import dataclasses
import os
import socket
from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

from flamingo_jax import cli
from flamingo_jax.errors import UserError


def parser() -> argparse.ArgumentParser:
    from flamingo_jax.serve.limits import ServerLimits

    flags = cli.Parser(
        prog="python -m flamingo_jax.serve",
        description=__doc__,
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    cli.add_model_flags(flags)
    flags.add_argument("--host", default="127.0.0.1", help="0.0.0.0 lets other machines in")
    flags.add_argument("--port", type=int, default=7860, help="0: any that is free")
    for field in dataclasses.fields(ServerLimits):
        flag = f"--{field.name.replace('_', '-')}"
        kind: Any = type(field.default)
        flags.add_argument(flag, type=kind, default=field.default, help="limit")
    return flags


def disable_telemetry() -> None:
    """Before Gradio is imported: no telemetry, and no request to anyone."""
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    os.environ["HF_HUB_OFFLINE"] = "1"
    os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"


def main(argv: Sequence[str]) -> int:
    args = parser().parse_args(argv[1:])
    disable_telemetry()
    try:
        import gradio  # noqa: F401
        import uvicorn
    except ImportError as error:
        raise UserError(
            f"{error.name} is not installed: pip install 'flamingo-jax[serve]'"
        ) from None
    import flamingo_jax
    from flamingo_jax.serve.app import make_app
    from flamingo_jax.serve.limits import ServerLimits

    names = [field.name for field in dataclasses.fields(ServerLimits)]
    try:
        limits = ServerLimits(**{name: getattr(args, name) for name in names})
    except ValueError as error:
        raise UserError(str(error)) from None

    async def serve(own: socket.socket, model: Any) -> None:
        # Gradio's locks belong to the loop that is running when its app is made.
        app = make_app(model, limits)
        config = uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=5)
        own.listen()  # so that nobody who reads the address comes too early
        print("http://{}:{}".format(*own.getsockname()[:2]), flush=True)
        await uvicorn.Server(config).serve(sockets=[own])

    with bind(args.host, args.port) as own:
        asyncio.run(serve(own, flamingo_jax.load(args.model, quantize=args.quantize)))
    return 0


def bind(host: str, port: int) -> socket.socket:
    """UserError: the address is taken, or not this machine's."""
    try:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)[0]
        family, kind, protocol, _, (address, _, *scope) = found
        with ExitStack() as opened:
            own = opened.enter_context(socket.socket(family, kind, protocol))
            own.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            own.bind((address, port, *scope))
            opened.pop_all()
        return own
    except (OSError, OverflowError) as error:
        raise UserError(
            f"--host={host} --port={port} cannot be served ({error}): give an address of this "
            "machine and a port that is free, 0 for any"
        ) from None


if __name__ == "__main__":
    cli.run(main)
