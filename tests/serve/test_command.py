"""The command itself: it starts, answers, and ends when told to."""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import urllib.request

import pytest

from flamingo_jax.errors import UserError
from flamingo_jax.serve.__main__ import main


def test_it_starts_answers_and_stops(model_dir):
    environment = {**os.environ, "PYTHONWARNINGS": ""}
    args = [f"--model={model_dir}", "--port=0", "--max-new-tokens=8"]
    command = [sys.executable, "-m", "flamingo_jax.serve", *args]
    with subprocess.Popen(
        command, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        give_up = threading.Timer(200, process.kill)
        give_up.start()
        address = process.stdout.readline().strip()
        assert address.startswith("http://127.0.0.1:")
        no_proxy = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with no_proxy.open(f"{address}/healthz", timeout=60) as answer:
            assert json.load(answer) == {"status": "ok", "waiting": 0}
        process.send_signal(signal.SIGTERM)
        _, errors = process.communicate()
        give_up.cancel()
    assert process.returncode == -signal.SIGTERM
    assert "Traceback" not in errors


@pytest.mark.parametrize("place", ["--host=no-such-host.invalid", "--port=70000", "taken"])
def test_an_address_that_cannot_be_served_is_refused(model_dir, place):
    with socket.create_server(("127.0.0.1", 0)) as other:
        flag = f"--port={other.getsockname()[1]}" if place == "taken" else place
        with pytest.raises(UserError, match=r"cannot be served .* a port that is free"):
            main(["serve", f"--model={model_dir}", flag])


@pytest.mark.parametrize("flag", ["--max-waiting=0", "--max-upload-mb=-1"])
def test_a_limit_below_one_is_refused(model_dir, flag):
    with pytest.raises(UserError, match="it must be above 0"):
        main(["serve", f"--model={model_dir}", flag])
