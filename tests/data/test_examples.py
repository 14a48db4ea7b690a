import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flamingo_jax.data.examples import ExampleMaker, loss_weights
from flamingo_jax.data.tokenizer import load_tokenizer
from flamingo_jax.errors import UserError
from flamingo_jax.text.documents import Document, render
from tests import golden_root

LABELS = "openflamingo/data/labels.npz"
SCAN = np.full((8, 8, 3), 7, np.uint8)
VOCAB_SIZE = 40


@pytest.fixture(scope="module")
def tokens():
    return load_tokenizer("digits", VOCAB_SIZE)


def document(*parts, kind="interleaved") -> Document:
    return Document("test", parts, kind)


def test_render_ends_every_chunk_but_the_last():
    assert render(document("see", SCAN, "dax", SCAN, "wug")) == (
        "see<image>dax<|endofchunk|><image>wug"
    )


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
    assert (example["tokens"] == tokens.image).sum() == 3
    assert example["segments"].sum() == 10
    short = ExampleMaker(tokens, 4, 3, 8)(document(*parts))
    assert (short["tokens"] == tokens.image).sum() == 2


def test_prompts_have_no_end(tokens):
    maker = ExampleMaker(tokens, 6, 2, 8)
    example = maker.prompt(document(SCAN, "dax", SCAN))
    assert example["segments"].sum() == 4
    assert example["tokens"][3] == tokens.image
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


def test_tokenizers_that_do_not_fit_the_model_are_refused(tmp_path):
    with pytest.raises(UserError, match=r"ids \(40, 41\).*set decoder.vocab_size to 40"):
        load_tokenizer("digits", 50)
    with pytest.raises(UserError, match=r"neither 'digits' nor a tokenizer\.json"):
        load_tokenizer(str(tmp_path / "none.json"), 50)


def test_a_saved_tokenizer_loses_its_truncation_and_padding(tokens, tmp_path):
    from flamingo_jax.data import digits

    saved = digits.tokenizer()
    saved.enable_truncation(2)
    saved.enable_padding(length=9)
    saved.save(str(tmp_path / "tokenizer.json"))
    loaded = load_tokenizer(str(tmp_path / "tokenizer.json"), VOCAB_SIZE)
    text = "<image>dax<|endofchunk|><image>"
    assert loaded.encode(text) == tokens.encode(text)
