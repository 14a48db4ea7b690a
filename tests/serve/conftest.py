"""Servers on this machine, on ports of their own."""

import asyncio
import shutil
import threading
from contextlib import contextmanager
from pathlib import Path

import pytest
import uvicorn
from playwright.sync_api import sync_playwright

from flamingo_jax.serve.__main__ import disable_telemetry
from flamingo_jax.serve.limits import ServerLimits

disable_telemetry()
CHROMIUM = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


@contextmanager
def serving(model, limits):
    """The address of a server of this process."""
    ready, servers = threading.Event(), []
    socket = uvicorn.Config(None, "127.0.0.1", 0, log_level="warning").bind_socket()
    socket.listen()

    async def serve():
        from flamingo_jax.serve.app import make_app

        try:
            config = uvicorn.Config(make_app(model, limits), log_level="warning", ws="none")
            servers.append(uvicorn.Server(config))
        finally:
            ready.set()
        await servers[0].serve(sockets=[socket])

    thread = threading.Thread(target=asyncio.run, args=[serve()])
    thread.start()
    ready.wait()
    try:
        yield "http://{}:{}".format(*socket.getsockname())
    finally:
        for server in servers:
            server.should_exit = True
        thread.join()
        socket.close()


@pytest.fixture(scope="module")
def server(flamingo):
    """With the limits that a user gets."""
    with serving(flamingo, ServerLimits()) as address:
        yield address


@pytest.fixture(scope="module")
def browser():
    with sync_playwright() as playwright:
        own = playwright.chromium.executable_path
        found = next(filter(None, map(shutil.which, CHROMIUM)), own)
        if not Path(found).exists():
            pytest.fail(
                f"no browser: none of {', '.join(CHROMIUM)} is on the PATH; install one with "
                "`apt-get install chromium` or `.venv/bin/playwright install chromium`"
            )
        with playwright.chromium.launch(executable_path=found, args=["--no-sandbox"]) as chromium:
            yield chromium
