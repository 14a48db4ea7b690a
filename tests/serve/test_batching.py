"""Requests that wait are answered together, each with its own answer."""

import asyncio
import threading
import time

import numpy as np
import pytest

from flamingo_jax.errors import UserError
from flamingo_jax.generate.engine.generate import GenerationConfig
from flamingo_jax.generate.prompts import ReadPrompt
from flamingo_jax.serve.batching import Batcher, PendingRequest
from flamingo_jax.serve.limits import BusyError

GREEDY = GenerationConfig()
NO_IMAGE = np.zeros((0, 1, 8, 8, 3), np.uint8)


class Echo:
    """A model that repeats each prompt word by word, and holds its first answer back."""

    def __init__(self):
        self.calls = []
        self.go = threading.Event()

    def stream_batch(self, prompts, config, seeds, stop):
        self.calls.append([prompt.text for prompt in prompts])
        assert self.go.wait(30)
        if "refuse" in prompts[0].text:
            raise UserError("no")
        if "break" in prompts[0].text:
            raise RuntimeError("a fault of the server")
        words = [prompt.text.split() for prompt in prompts]
        for count in range(1, max(map(len, words)) + 1):
            yield [" ".join(line[:count]) for line in words]


@pytest.fixture
def batcher():
    batcher = Batcher(Echo(), max_batch=8, max_waiting=12)
    yield batcher
    batcher.model.go.set()
    batcher.close()


def ticket(text, config=GREEDY, media=NO_IMAGE):
    return PendingRequest(ReadPrompt(text, np.array([1]), media), config, seed=0)


async def said(ticket):
    return [text async for text in ticket.texts(30)]


async def taken(batcher):
    """Until a request is in the model's hands."""
    async with asyncio.timeout(30):
        while not batcher.model.calls:
            await asyncio.sleep(0.01)


def ask(batcher, make_tickets):
    """Answers (or errors) of tickets that wait at once."""

    async def all_of_them():
        first, *others = make_tickets()
        batcher.submit(first)
        await taken(batcher)
        for other in others:
            batcher.submit(other)
        batcher.model.go.set()
        return await asyncio.gather(*map(said, [first, *others]), return_exceptions=True)

    return asyncio.run(all_of_them())


def test_eight_requests_take_two_calls(batcher):
    answers = ask(batcher, lambda: [ticket(f"a b{i}") for i in range(8)])
    assert answers == [["a", f"a b{i}"] for i in range(8)]
    assert [len(call) for call in batcher.model.calls] == [1, 7]


def test_a_batch_has_one_kind_of_request_and_the_first_goes_first(batcher):
    longer = GenerationConfig(max_new_tokens=40)
    image = np.zeros((1, 1, 8, 8, 3), np.uint8)
    ask(
        batcher,
        lambda: [
            ticket("1"), ticket("2", longer), ticket("3"), ticket("4", longer),
            ticket("5", media=image), *(ticket(f"6{i}") for i in range(8)),
        ],
    )  # fmt: skip
    assert batcher.model.calls == [
        ["1"], ["2", "4"], ["3", *(f"6{i}" for i in range(7))], ["5"], ["67"]
    ]  # fmt: skip


def test_an_error_is_told_and_the_next_are_answered(batcher, caplog):
    refused, broken, fine = ask(
        batcher,
        lambda: [
            ticket("refuse"),
            ticket("break", GenerationConfig(max_new_tokens=1)),
            ticket("fine", GenerationConfig(max_new_tokens=2)),
        ],
    )
    assert isinstance(refused, UserError)
    assert isinstance(broken, RuntimeError)
    assert fine == ["fine"]
    assert "a batch of 1 requests failed" in caplog.text


def test_no_more_than_the_limit_may_wait(batcher):
    async def crowd():
        batcher.submit(ticket("first"))
        await taken(batcher)
        for _ in range(12):
            batcher.submit(ticket("more"))
        with pytest.raises(BusyError, match="12 requests are waiting already"):
            batcher.submit(ticket("too many"))

    asyncio.run(crowd())


def test_nobody_waits_for_ever_or_is_answered_in_vain(batcher):
    async def impatient():
        batcher.submit(ticket("first"))
        late = ticket("late", GenerationConfig(max_new_tokens=1))
        batcher.submit(late)
        with pytest.raises(BusyError, match=r"no answer within 0\.05 seconds"):
            async for _ in late.texts(0.05):
                pass
        batcher.model.go.set()
        last = ticket("last", GenerationConfig(max_new_tokens=2))
        batcher.submit(last)
        return await said(last)

    assert asyncio.run(impatient()) == ["last"]
    assert ["late"] not in batcher.model.calls


def test_closing_tells_those_who_wait(batcher):
    async def close():
        batcher.submit(ticket("first"))
        await taken(batcher)
        waiting = ticket("waiting")
        batcher.submit(waiting)
        closing = threading.Thread(target=batcher.close)
        closing.start()
        while not batcher._closed:
            time.sleep(0.01)
        batcher.model.go.set()
        with pytest.raises(BusyError, match="shutting down"):
            await said(waiting)
        closing.join()

    asyncio.run(close())
