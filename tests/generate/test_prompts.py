from pathlib import Path

import numpy as np
import pytest

from flamingo_jax.errors import UserError
from flamingo_jax.generate.prompts import BatchShape, Limits, collate, read_prompt, split_batch
from flamingo_jax.text.template import join
from tests.conftest import random_images


@pytest.fixture
def scan(rng):
    return random_images(rng)


@pytest.fixture
def read(flamingo):
    def read(parts, examples=(), **limits):
        processor = flamingo.processor
        return read_prompt(
            join(examples, parts), processor.tokenizer, processor.images, Limits(**limits)
        )

    return read


def test_marks_are_set_as_in_the_papers(read, scan):
    prompt = read([scan, "dax", scan, "wug", scan])
    assert prompt.text == "<image>dax<|endofchunk|><image>wug<|endofchunk|><image>"
    assert prompt.media_TFHWC.shape == (3, 1, 8, 8, 3)
    few_shot = read([scan], examples=[(scan, "dax"), (scan, "wug")])
    assert few_shot.text == prompt.text
    np.testing.assert_array_equal(few_shot.tokens_L, prompt.tokens_L)
    assert read([scan, "dax<|endofchunk|>", scan]).text == "<image>dax<|endofchunk|><image>"
    assert read(["zero"], [("one",), (scan, "two")]).text == (
        "one<|endofchunk|><image>two<|endofchunk|>zero"
    )


def test_a_batch_is_a_list_of_lists(scan):
    assert split_batch("dax") == ([["dax"]], False)
    prompts, several = split_batch([[scan, "dax"], ["wug"]])
    assert several
    assert [len(prompt) for prompt in prompts] == [2, 1]
    video = [[scan, scan], "dax"]
    assert split_batch(video) == ([video], False)


def test_prompts_are_padded_on_the_left(read, scan):
    batch = collate([read([scan, "a handwritten"]), read(["zero"])])
    assert batch.images.shape == (2, 1, 1, 8, 8, 3)
    assert batch.segments_BL.tolist() == [[1, 1, 1], [0, 0, 1]]
    assert batch.num_images_B.tolist() == [1, 0]
    assert not batch.images[1].any()
    assert collate([read(["zero"])]).images.shape == (1, 0, 1, 8, 8, 3)


def test_a_batch_is_filled_up_to_a_shape(read, scan):
    batch = collate([read(["zero"]), read([scan, "a handwritten"])], BatchShape(3, 2, 5))
    assert batch.images.shape == (3, 2, 1, 8, 8, 3)
    assert batch.segments_BL.tolist() == [[0, 0, 0, 0, 1], [0, 0, 1, 1, 1], [0, 0, 1, 1, 1]]
    assert batch.num_images_B.tolist() == [0, 1, 1]
    np.testing.assert_array_equal(batch.images[2], batch.images[1])
    assert batch.images[1, 0].any()
    assert not batch.images[:, 1].any()


def test_videos_have_one_length(read, scan):
    assert read([[scan, scan], "dax"]).media_TFHWC.shape == (1, 2, 8, 8, 3)
    with pytest.raises(UserError, match="have 1 and 2 frames: give all of them equally many"):
        read([[scan, scan], "dax", scan])
    with pytest.raises(UserError, match="of 1 and 2 frames: run them apart"):
        collate([read([[scan, scan], "dax"]), read([scan])])


REFUSED = {
    "nothing": ([], "the prompt is empty"),
    "blanks": ([" \n"], "the prompt is empty"),
    "an address": (["https://a.org/cat.jpg"], "nothing is fetched: download it"),
    "the name of a file": (["cat.jpg"], r"is taken as text: give pathlib.Path\('cat.jpg'\)"),
    "a mark": (["a <image> b"], "stands for a picture: put the picture itself into the list"),
    "a number": ([3], "3 is no picture"),
    "a missing file": ([Path("/nowhere/cat.jpg")], "there is no file"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_no_prompt_is_refused(read, case):
    parts, message = REFUSED[case]
    with pytest.raises(UserError, match=message):
        read(parts)


def test_limits_are_kept(read, scan):
    assert len(read(["zero " * 20], tokens=20).tokens_L) == 20
    with pytest.raises(UserError, match="has 21 tokens, at most 20 are taken: shorten it"):
        read(["zero " * 21], tokens=20)
    with pytest.raises(UserError, match="has 3 pictures, at most 2 are taken"):
        read([scan] * 3, images=2)
    with pytest.raises(UserError, match="8 × 8 pixels, at most 63 are taken"):
        read([scan], pixels=63)


def test_an_example_is_a_pair(scan):
    with pytest.raises(UserError, match=r"'dax' is no example: each is a pair"):
        join(["dax"], [scan])
    with pytest.raises(UserError, match="is no prompt: give a list of pictures and texts"):
        split_batch({"dax": 1})
