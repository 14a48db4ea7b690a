"""The JSON endpoint over a socket, and what it does with too much."""

import asyncio
import base64
import io
import json

import httpx
import pytest
from PIL import Image

from flamingo_jax.data import digits
from tests.serve.memory import keeping_less_than

SCANS = digits.scans("held_out")[0]
SHORT = {"max_new_tokens": 4}


def encoded(array) -> str:
    file = io.BytesIO()
    Image.fromarray(array).save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode()


PROMPT = [{"image": encoded(SCANS[0])}, {"text": "dax"}, {"image": encoded(SCANS[1])}]


@pytest.fixture
def client(server):
    with httpx.Client(base_url=server, timeout=300, trust_env=False) as client:
        yield client


def ask(client, **body):
    return client.post("/v1/generate", json={"prompt": PROMPT, **SHORT, **body})


def test_it_answers_as_the_model_does(client, flamingo):
    expected = flamingo.generate([SCANS[0], "dax", SCANS[1]], **SHORT)
    assert ask(client).json() == {"text": expected}
    few_shot = ask(client, prompt=PROMPT[2:], examples=[PROMPT[:2]])
    assert few_shot.json() == {"text": expected}
    lines = [json.loads(line) for line in ask(client, stream=True).text.splitlines()]
    assert lines[-2:] == [{"text": expected}, {"done": True}]
    assert [expected.startswith(line["text"]) for line in lines[:-1]] == [True] * (len(lines) - 1)
    assert ask(client, num_beams=2).json() == {
        "text": flamingo.generate([SCANS[0], "dax", SCANS[1]], num_beams=2, **SHORT)
    }
    assert client.get("/healthz").json() == {"status": "ok", "waiting": 0}


def bomb() -> str:
    file = io.BytesIO()
    Image.new("1", (30_000, 30_000)).save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode()


REFUSED = {
    "nothing": ({"prompt": []}, "the prompt is empty"),
    "a text in a picture's place": (
        {"prompt": [{"image": base64.b64encode(b"hello, a text").decode()}]},
        "the picture cannot be read as a picture: give a JPEG, PNG, WebP or GIF file",
    ),
    "a decompression bomb": ({"prompt": [{"image": bomb()}]}, "pixels"),
    "no base64": ({"prompt": [{"image": "%%%"}]}, "an image is not base64"),
    "an address": ({"prompt": [{"image": "https://a.org/b.jpg"}]}, "an image is not base64"),
    "both": ({"prompt": [{"image": "", "text": ""}]}, 'a part is either {"text": …} or'),
    "10,000 tokens": (
        {"prompt": [{"text": "zero " * 10_000}]},
        "the prompt has 10000 tokens, at most 2048 are taken",
    ),
    "17 pictures": ({"prompt": PROMPT[:1] * 17}, "has 17 pictures, at most 16 are taken"),
    "too many new tokens": ({"max_new_tokens": 300}, "at most 256 are made here"),
    "too many beams": ({"num_beams": 20}, "from at most 8 beams"),
    "a setting out of range": ({"top_p": 3}, "top_p is 3.0, which is out of its range"),
    "a setting that does not exist": ({"temprature": 1}, "temprature: Extra inputs"),
    "a wrong type": ({"top_k": "many"}, "top_k: Input should be a valid integer"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_bad_question_is_refused_in_one_line(client, case):
    body, message = REFUSED[case]
    answer = ask(client, **body)
    assert answer.status_code == 422
    assert message in answer.json()["error"]
    assert len(answer.text) < 500
    assert ask(client, stream=True, **body).status_code == 422


def zeros(megabytes):
    yield b'--x\r\nContent-Disposition: form-data; name="files"; filename="a.jpg"\r\n\r\n'
    for _ in range(megabytes):
        yield bytes(2**20)


@pytest.mark.parametrize("path", ["/v1/generate", "/gradio_api/upload"])
@pytest.mark.parametrize("announced", [True, False], ids=["announced", "in chunks"])
def test_100_mb_are_refused_and_not_kept(client, path, announced):
    with keeping_less_than(64):
        headers = {"content-type": "multipart/form-data; boundary=x"}
        if announced:
            headers["content-length"] = str(sum(map(len, zeros(100))))
        answer = client.post(path, content=zeros(100), headers=headers)
        assert answer.status_code == 413
        assert "the upload is above 20 MB: make the pictures smaller" in answer.json()["error"]


def test_eight_questions_at_once_take_fewer_calls(server, flamingo, monkeypatch):
    calls = []
    real = type(flamingo).stream_batch

    def counted(self, prompts, *rest):
        calls.append(len(prompts))
        return real(self, prompts, *rest)

    monkeypatch.setattr(type(flamingo), "stream_batch", counted)
    answers = at_once(server, 8)
    alone = flamingo.generate([SCANS[0], "dax", SCANS[1]], **SHORT)
    assert [answer.json() for answer in answers] == [{"text": alone}] * 8
    assert sum(calls) == 8
    assert len(calls) < 8


def test_fifty_questions_at_once_are_answered_or_refused(server, client):
    with keeping_less_than(512):
        answers = at_once(server, 50)
        codes = [answer.status_code for answer in answers]
        assert set(codes) == {200, 429}
        assert codes.count(200) > 32  # 32 may wait while others are answered
        for answer in answers:
            if answer.status_code == 429:
                assert "try again in a few seconds" in answer.json()["error"]
                assert answer.headers["retry-after"] == "5"
        assert ask(client).status_code == 200
        assert client.get("/healthz").json()["waiting"] == 0


def at_once(server, count):
    async def send():
        limits = httpx.Limits(max_connections=count)
        async with httpx.AsyncClient(
            base_url=server, timeout=300, limits=limits, trust_env=False
        ) as client:
            body = {"prompt": PROMPT, **SHORT}
            return await asyncio.gather(
                *(client.post("/v1/generate", json=body) for _ in range(count))
            )

    return asyncio.run(send())
