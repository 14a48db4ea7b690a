import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flamingo_jax.data.examples import ExampleMaker
from flamingo_jax.text.documents import captioned, interleaved
from flamingo_jax.text.tokenizer import load_tokenizer
from tests import golden_root
from tests.openflamingo_labels import loss_weights

LABELS = "openflamingo/data/labels.npz"
SCAN = np.full((8, 8, 3), 7, np.uint8)
VOCAB_SIZE = 40


@pytest.fixture(scope="module")
def tokens():
    return load_tokenizer("digits", VOCAB_SIZE)


def document(*parts, kind="interleaved"):
    return {"pair": captioned, "interleaved": interleaved}[kind]("test", parts)


def test_a_row_has_fixed_shapes_and_an_end(tokens):
    example = ExampleMaker(tokens, 10, 3, 8)(document(SCAN, "dax", SCAN, "wug"))
    words = [tokens.tokenizer.id_to_token(i) for i in example["tokens"]]
    assert words[:8] == [
        "<image>", "dax", "<|endofchunk|>", "<image>", "wug", "<|endofchunk|>", "</s>", "</s>",
    ]  # fmt: skip
    assert example["segments"].tolist() == [1] * 7 + [0] * 3
    assert example["weights"].tolist() == [0, 1, 1, 0, 1, 1, 0, 0, 0, 0]
    assert example["images"].shape == (3, 1, 8, 8, 3)
    assert example["images"].dtype == np.uint8
    assert example["images"][:, 0, 0, 0, 0].tolist() == [7, 7, 0]


def test_a_pair_learns_its_end(tokens):
    example = ExampleMaker(tokens, 6, 1, 8)(document(SCAN, "dax", kind="pair"))
    assert example["weights"].tolist() == [0, 1, 1, 1, 0, 0]


def test_long_documents_are_cut_so_that_every_mark_has_its_image(tokens):
    parts = [part for _ in range(5) for part in (SCAN, "dax")]
    example = ExampleMaker(tokens, 40, 3, 8)(document(*parts))
    assert (example["tokens"] == tokens.special.image).sum() == 3
    assert example["segments"].sum() == 10
    short = ExampleMaker(tokens, 4, 3, 8)(document(*parts))
    assert (short["tokens"] == tokens.special.image).sum() == 2


def test_prompts_have_no_end(tokens):
    maker = ExampleMaker(tokens, 6, 2, 8)
    example = maker.prompt(document(SCAN, "dax", SCAN))
    assert example["segments"].sum() == 4
    assert example["tokens"][3] == tokens.special.image
    with pytest.raises(ValueError, match="prompt of 7 tokens and 3 images does not fit 6 tokens"):
        maker.prompt(document(SCAN, "dax", SCAN, "wug", SCAN))


def test_images_of_another_size_are_refused(tokens):
    with pytest.raises(ValueError, match=r"test: image 0 has shape \(4, 4, 3\), expected"):
        ExampleMaker(tokens, 6, 1, 8)(document(SCAN[:4, :4], "dax"))


def naive_weights(tokens, valid, kind):
    """OpenFlamingo's training loop, token by token."""
    counted = [v and t != 1 for t, v in zip(tokens, valid, strict=True)]
    if kind == "interleaved":
        inside = False
        for i, token in enumerate(tokens):
            if token == 1:
                inside = True
            counted[i] = counted[i] and inside
            if token == 2:
                inside = False
    return [float(c) for c in counted]


PARTS = st.lists(st.sampled_from([SCAN, "dax", "wug zorp"]), max_size=9)


@given(PARTS, st.integers(1, 24), st.integers(1, 4), st.sampled_from(["pair", "interleaved"]))
def test_rows_learn_what_openflamingo_learns(parts, length, num_images, kind):
    tokens = load_tokenizer("digits", VOCAB_SIZE)
    ids = {"image": tokens.special.image, "end_of_chunk": tokens.special.end_of_chunk}
    row = ExampleMaker(tokens, length, num_images, 8)(document(*parts, kind=kind))
    expected = loss_weights(row["tokens"], row["segments"] != 0, kind, **ids)
    np.testing.assert_array_equal(row["weights"], expected)


@given(
    st.lists(st.sampled_from([1, 2, 3, 4]), min_size=1, max_size=12),
    st.integers(0, 12),
    st.sampled_from(["pair", "interleaved"]),
)
def test_loss_weights_are_openflamingos(tokens, length, kind):
    valid = np.arange(len(tokens)) < length
    got = loss_weights(np.array(tokens), valid, kind, image=1, end_of_chunk=2)
    assert got.tolist() == naive_weights(tokens, valid, kind)


@golden_root.needs(LABELS)
@pytest.mark.parametrize(("kind", "name"), [("pair", "laion"), ("interleaved", "mmc4")])
def test_loss_weights_equal_the_golden_labels(kind, name):
    golden = np.load(golden_root.ROOT / LABELS)
    ids = {"image": int(golden["media_token_id"]), "end_of_chunk": int(golden["eoc_token_id"])}
    rows = zip(golden["input_ids"], golden["attention_mask"], golden[f"{name}_labels"], strict=True)
    for tokens, mask, labels in rows:
        got = loss_weights(tokens, mask != 0, kind, **ids)
        np.testing.assert_array_equal(got != 0, labels != -100)
