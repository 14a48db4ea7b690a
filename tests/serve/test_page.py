"""The page in a real browser."""

import pytest
from PIL import Image
from playwright.sync_api import expect

from flamingo_jax.data import digits
from tests.serve.memory import keeping_less_than

SCANS = digits.scans("held_out")[0]
SECONDS = 1000  # Playwright counts in milliseconds


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pictures")
    for index in range(2):
        Image.fromarray(SCANS[index]).save(folder / f"{index}.png")
    return folder


@pytest.fixture
def page(browser, server):
    page = browser.new_page()
    page.set_default_timeout(120 * SECONDS)
    page.goto(server)
    page.wait_for_selector("#ask")
    yield page
    page.close()


def upload(page, row, path):
    page.set_input_files(f"#{row}-picture input[type=file]", path)
    page.wait_for_selector(f"#{row}-picture img")


def test_two_pictures_a_question_and_an_answer(browser, server, pictures, flamingo):
    page = browser.new_page()
    page.set_default_timeout(120 * SECONDS)
    errors, elsewhere = [], []
    page.on("console", lambda m: errors.append(m.text) if m.type == "error" else None)
    page.on("pageerror", lambda error: errors.append(str(error)))
    local = (server, "data:", "blob:")
    page.on("request", lambda r: None if r.url.startswith(local) else elsewhere.append(r.url))
    page.goto(server)
    page.click("#more")
    upload(page, "example-1", pictures / "0.png")
    page.fill("#example-1-text textarea", "dax")
    upload(page, "question", pictures / "1.png")
    page.click("#ask")
    expected = flamingo.generate([SCANS[1]], [(SCANS[0], "dax")], max_new_tokens=32)
    expect(page.locator("#answer textarea")).to_have_value(expected, timeout=120 * SECONDS)
    assert expected
    assert not errors
    assert not elsewhere
    page.close()


def test_an_example_that_is_removed_is_not_asked(page, pictures, flamingo):
    page.click("#more")
    upload(page, "example-1", pictures / "0.png")
    page.click("#fewer")
    expect(page.locator("#example-1-picture")).to_be_hidden()
    page.fill("#question-text textarea", "zero")
    page.click("#ask")
    expected = flamingo.generate("zero", max_new_tokens=32)
    expect(page.locator("#answer textarea")).to_have_value(expected, timeout=120 * SECONDS)


def refused(page, message):
    expect(page.locator(".toast-body").first).to_contain_text(message, timeout=120 * SECONDS)


def test_a_text_named_jpg_is_refused(page, tmp_path):
    (tmp_path / "letter.jpg").write_text("Dear Sir or Madam")
    page.set_input_files("#question-picture input[type=file]", tmp_path / "letter.jpg")
    page.wait_for_selector("#question-picture img", state="attached")
    page.click("#ask")
    refused(page, "letter.jpg cannot be read as a picture: give a JPEG, PNG, WebP or GIF file")


def test_a_decompression_bomb_is_refused(page, tmp_path):
    with keeping_less_than(64):
        Image.new("1", (9_000, 9_000)).save(tmp_path / "bomb.png")
        page.set_input_files("#question-picture input[type=file]", tmp_path / "bomb.png")
        page.wait_for_selector("#question-picture img", state="attached")
        page.click("#ask")
        refused(page, "bomb.png has 9000 × 9000 pixels, at most 50,000,000 are taken")


def test_a_prompt_of_10_000_tokens_is_refused_and_the_next_is_answered(page, flamingo):
    page.fill("#question-text textarea", "zero " * 10_000)
    page.click("#ask")
    refused(page, "the prompt has 10000 tokens, at most 2048 are taken: shorten it")
    page.fill("#question-text textarea", "zero")
    page.click("#ask")
    expected = flamingo.generate("zero", max_new_tokens=32)
    expect(page.locator("#answer textarea")).to_have_value(expected, timeout=120 * SECONDS)


def test_an_upload_of_100_mb_is_refused(page, tmp_path):
    with keeping_less_than(64):
        with (tmp_path / "large.jpg").open("wb") as file:
            file.truncate(100 * 2**20)
        page.set_input_files("#question-picture input[type=file]", tmp_path / "large.jpg")
        refused(page, 'exceed the maximum allowed size of 20.0 Mb: "large.jpg"')
