"""Requests made by hand that would have the server fetch an address."""

import json

import gradio.processing_utils
import httpx
import pytest

from flamingo_jax.serve.addresses import names_address

ADDRESS = "https://example.org/a.png"


@pytest.fixture
def client(server):
    with httpx.Client(base_url=server, timeout=60, trust_env=False) as client:
        yield client


@pytest.fixture
def fetched(monkeypatch):
    """Addresses that Gradio would have fetched."""
    addresses = []

    async def fetch(address, *rest):
        addresses.append(address)
        raise OSError("no address is fetched in tests")

    for name in ("async_ssrf_protected_download", "async_ssrf_protected_get"):
        monkeypatch.setattr(gradio.processing_utils, name, fetch)
    return addresses


def question(client, picture) -> dict:
    """What the page sends when it asks."""
    config = client.get("/config").json()
    (ask,) = [d for d in config["dependencies"] if len(d["inputs"]) > 6 and len(d["outputs"]) == 1]
    data = [4, 0, 1, 0, *[None, ""] * ((len(ask["inputs"]) - 6) // 2), picture, "zero"]
    return {"data": data, "fn_index": ask["id"], "session_hash": "made by hand"}


def answer(client) -> str:
    """All that the queue says."""
    return client.get("/gradio_api/queue/data", params={"session_hash": "made by hand"}).text


@pytest.mark.parametrize("path", ["queue/join", "run/predict", "call/predict"])
def test_an_address_in_a_pictures_place_is_refused(client, fetched, path):
    picture = {"path": ADDRESS, "meta": {"_type": "gradio.FileData"}}
    refused = client.post(f"/gradio_api/{path}", json=question(client, picture))
    assert refused.status_code == 422
    assert refused.json()["error"] == "addresses are not fetched: upload the picture itself"
    assert not fetched


@pytest.mark.parametrize("path", [f"file={ADDRESS}", f"file/{ADDRESS}", f"proxy={ADDRESS}"])
def test_no_address_is_passed_on(client, fetched, path):
    assert client.get(f"/gradio_api/{path}").status_code == 422
    assert not fetched


def test_a_question_without_one_is_answered(client, flamingo):
    assert client.post("/gradio_api/queue/join", json=question(client, None)).status_code == 200
    assert flamingo.generate("zero", max_new_tokens=4) in answer(client)


@pytest.mark.parametrize(
    ("value", "refused"),
    [
        ({"data": [{"path": "/tmp/gradio/a.png", "url": ADDRESS}, ADDRESS]}, False),
        ({"data": [[{"a": {"path": ADDRESS.upper()}}]]}, True),
        ({"path": {"path": [f" {ADDRESS}"]}}, False),
        ({"path": {"path": f" {ADDRESS}"}}, True),
    ],
)
def test_only_a_files_path_counts(value, refused):
    assert names_address(json.dumps(value).encode()) == refused
    assert names_address(json.dumps(value).encode("utf-16")) == refused


def test_what_cannot_be_read():
    assert not names_address(b"{")
    assert not names_address(b"\xff\xfe\xfd")
    assert names_address(b"[" * 100_000 + b"]" * 100_000)
