import base64
import dataclasses
import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flamingo_jax.data.examples import ExampleMaker
from flamingo_jax.data.images import decode_image
from flamingo_jax.data.parsers import Passages, place_images
from flamingo_jax.data.records import BadRecordError, Record, RejectedError
from flamingo_jax.data.sources import Mmc4, Pairs, Sequences
from flamingo_jax.text.documents import Text
from flamingo_jax.text.template import render
from flamingo_jax.text.tokenizer import load_tokenizer
from tests import golden_root

from .corpora import mmc4_record, picture
from .test_images import normalised

GOLDEN = golden_root.ROOT / "openflamingo/data"
FAMILIES = sorted(p.name.removeprefix("tokenizer_") for p in GOLDEN.glob("tokenizer_*"))
MMC4 = Mmc4(shards="", similarity_threshold=0.2, min_image_bytes=0)
A, B, C = (picture(n) for n in range(3))


def record(value, **fields) -> Record:
    data = value if isinstance(value, bytes) else json.dumps(value).encode()
    return Record("shard", "key", {"json": data, **fields})


def spelled(document) -> str:
    """The text with each image's letter."""
    letters = {A: "A", B: "B", C: "C"}
    return "|".join(
        part.text if isinstance(part, Text) else letters[part] for part in document.parts
    )


@pytest.fixture(scope="module")
def golden():
    documents = json.loads((GOLDEN / "docs.json").read_text())
    return documents, np.load(GOLDEN / "preprocess.npz")


def original_maker(family: str, text_length: int, size: int) -> ExampleMaker:
    path = str(GOLDEN / f"tokenizer_{family}/tokenizer.json")
    return ExampleMaker(load_tokenizer(path, None), text_length, 6, size)


@pytest.mark.parametrize("family", golden_root.each(FAMILIES, "openflamingo/data"))
def test_interleaved_documents_are_the_golden_ones(golden, family):
    documents, arrays = golden
    source = dataclasses.replace(
        MMC4,
        similarity_threshold=documents["sim_threshold"],
        min_image_bytes=11_000,
        image_order="openflamingo",
    )
    names = [name.split("/")[1] for name in documents["results"] if name.startswith(family)]
    checked = set()
    for name in set(names) - {"laion"}:
        values = record(documents["docs"][name])
        if documents["results"][f"{family}/{name}"] != "ok":
            with pytest.raises((BadRecordError, RejectedError), match=r"[Nn]o image"):
                source.parse(values)
            continue
        size = 224 if name == "gpt" else documents["image_size"]
        maker = original_maker(family, documents["max_tokens"], size)
        example = maker(source.parse(values))
        mask = arrays[f"{family}/{name}/attention_mask"] != 0
        np.testing.assert_array_equal(example["segments"] != 0, mask)
        expected = arrays[f"{family}/{name}/input_ids"]
        np.testing.assert_array_equal(example["tokens"][mask], expected[mask])
        # Images whose mark was cut off are in the original's array and not in ours.
        for index in range((example["tokens"] == maker.tokens.special.image).sum()):
            pixels = normalised(example["images"][index, 0])
            pixels = pixels[:, ::16, ::16] if name == "gpt" else pixels
            np.testing.assert_allclose(pixels, arrays[f"images/{name}"][index], atol=2e-6)
        checked.add(name)
    assert checked


@pytest.mark.parametrize("family", golden_root.each(FAMILIES, "openflamingo/data"))
def test_pairs_are_the_golden_ones(golden, family):
    documents, arrays = golden
    maker = original_maker(family, 32, 8)
    for row, caption in enumerate(documents["results"][f"{family}/laion"]):
        example = maker(Pairs(shards="").parse(Record("", "", {"jpg": A, "txt": caption})))
        mask = arrays[f"{family}/laion/attention_mask"][row] != 0
        np.testing.assert_array_equal(example["segments"] != 0, mask)
        expected = arrays[f"{family}/laion/input_ids"][row]
        np.testing.assert_array_equal(example["tokens"][mask], expected[mask])


def test_an_image_stands_before_its_own_sentence():
    values = record(mmc4_record(["zero", "one", "two"], [[0, 0, 0.9], [0.8, 0, 0]], [A, B]))
    assert spelled(MMC4.parse(values)) == "B|zero one|A|two"
    fault = dataclasses.replace(MMC4, image_order="openflamingo")
    assert spelled(fault.parse(values)) == "A|zero one|B|two"


def test_the_assignment_is_the_best_sum_not_the_best_first():
    values = record(mmc4_record(["zero", "one"], [[0.9, 0.8], [0.85, 0.1]], [A, B]))
    assert spelled(MMC4.parse(values)) == "B|zero|A|one"


def test_images_below_the_threshold_or_missing_leave_the_text():
    similarity = [[0.9, 0, 0], [0, 0.9, 0], [0, 0, 0.1]]
    values = record(mmc4_record(["zero", "one", "two"], similarity, [A, None, C]))
    assert spelled(MMC4.parse(values)) == "A|zero one two"
    with pytest.raises(RejectedError):
        dataclasses.replace(MMC4, similarity_threshold=0.95).parse(values)
    with pytest.raises(BadRecordError, match="no image"):
        dataclasses.replace(MMC4, min_image_bytes=10**6).parse(values)


def test_too_many_images_leave_the_text():
    similarity = [[0, 0, 0.9], [0, 0.9, 0], [0.9, 0, 0]]
    values = record(mmc4_record(["zero", "one", "two"], similarity, [A, B, C]))
    assert spelled(dataclasses.replace(MMC4, max_images=2).parse(values)) == "C|zero|B|one two"
    fault = dataclasses.replace(MMC4, max_images=2, image_order="openflamingo")
    assert spelled(fault.parse(values)) == "zero|A|one|B|two"


@given(st.data())
def test_both_orders_keep_every_text_and_as_many_images(data):
    count = data.draw(st.integers(1, 6))
    index = data.draw(st.permutations([*range(count), *[-1] * count]))
    similarity = data.draw(st.lists(st.floats(0, 1), min_size=2 * count, max_size=2 * count))
    images = tuple(bytes([n]) for n in range(count))
    passages = Passages(("x",) * 2 * count, tuple(index), images, tuple(similarity))
    limits = {"threshold": 0.5, "max_images": data.draw(st.integers(1, 6))}
    try:
        sentence = place_images(passages, order="sentence", **limits)
    except RejectedError:
        assert all(s < 0.5 for i, s in zip(index, similarity, strict=True) if i >= 0)
        return
    fault = place_images(passages, order="openflamingo", **limits)
    kept = [i for i in fault.image_index if i >= 0]
    assert kept == sorted(kept)
    assert len(kept) == sum(i >= 0 for i in sentence.image_index) <= limits["max_images"]
    for before, after in zip(index, sentence.image_index, strict=True):
        assert after in (before, -1)


def gpt(text: str, **images: bytes) -> Record:
    image_map = {
        f"_!_{name}_!_": {"base64_image": base64.b64encode(data).decode()}
        for name, data in images.items()
    }
    return record({"is_gpt": True, "example": text, "image_map": image_map})


def test_chatgpt_sequences():
    values = gpt("see _!_IMAGE2_!_ one _!_IMAGE1_!_ two", IMAGE1=A, IMAGE2=B)
    assert spelled(MMC4.parse(values)) == "see|B|one|A|two"
    fault = dataclasses.replace(MMC4, image_order="openflamingo")
    assert spelled(fault.parse(values)) == "see|A|one|B|two"
    with pytest.raises(BadRecordError, match="_!_IMAGE2_!_ has no image"):
        MMC4.parse(gpt("_!_IMAGE2_!_ x", IMAGE1=A))


def test_sequences_of_images_and_texts(tmp_path):
    source = Sequences(shards="")
    (tmp_path / "b.png").write_bytes(B)
    values = {"images": [None, "0.jpg", None, None, "b.png"], "texts": ["x", None, "y", "z", None]}
    row = Record("s", "k", {"json": json.dumps(values).encode(), "0.jpg": A}, str(tmp_path))
    assert spelled(source.parse(row)) == "x|A|y\n\nz|B"
    pair = record({"image": "0.jpg", "text": " dax "}, **{"0.jpg": A})
    document = source.parse(pair)
    assert (spelled(document), document.learn_ends) == ("A|dax", True)
    for name in ("../b.png", "/etc/hostname", "none.png", 3):
        values = json.dumps({"image": name, "text": "x"}).encode()
        with pytest.raises(BadRecordError, match="image"):
            source.parse(Record("s", "k", {"json": values}, str(tmp_path / "below")))


def test_stored_documents_keep_their_threshold():
    fields = {
        "text": [b"zero", b"one"],
        "image_index": np.array([1, 0]),
        "images": [A, B],
        "sim": np.array([0.3, 0.25], np.float32),
    }
    row = Record("shard", "key", fields)
    assert spelled(MMC4.parse(row)) == "B|zero|A|one"
    assert spelled(dataclasses.replace(MMC4, similarity_threshold=0.28).parse(row)) == "B|zero one"
    pair = {"text": [b"dax"], "image_index": [0], "images": [A]}
    assert spelled(Pairs(shards="").parse(Record("s", "k", pair))) == "A|dax"


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"txt": b"dax"}, "no image among"),
        ({"jpg": A, "txt": b" \n"}, "empty caption"),
        ({"jpg": A, "json": b'{"caption": null}'}, "empty caption"),
        ({"jpg": A}, "no json among"),
        ({"jpg": A, "json": b"{"}, "bad JSON"),
        ({"jpg": A, "json": b"[]"}, "bad JSON: expected an object"),
        ({"jpg": A, "txt": b"\xff\xfe"}, "not UTF-8"),
        ({"jpg": A, "json": rb'{"caption": "dax \ud83d"}'}, "not Unicode"),
        ({"jpg": A, "txt": b"<im<image>age>"}, "the text spells"),
    ],
)
def test_bad_pairs(fields, reason):
    with pytest.raises(BadRecordError, match=reason):
        Pairs(shards="").parse(Record("s", "k", fields))


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"text_list": "zero"}, "text_list is str, expected list"),
        ({"text_list": [1, 2]}, "a text is int"),
        ({"text_list": ["zero", "one \ud83d"]}, "a text is not Unicode"),
        ({"similarity_matrix": [[1]]}, "similarity_matrix"),
        ({"similarity_matrix": [[float("nan"), 1]]}, "similarity_matrix"),
        ({"image_info": [{"image_base64": "?"}]}, "not base64"),
    ],
)
def test_bad_documents(change, reason):
    values = json.loads(mmc4_record(["zero", "one"], [[0.9, 0.1]], [A]))
    with pytest.raises(BadRecordError, match=reason):
        MMC4.parse(record({**values, **change}))


def test_captions_cannot_bring_marks_of_their_own():
    fields = {"webp": A, "txt": b"a <image> b<|endofchunk|>"}
    document = Pairs(shards="").parse(Record("s", "k", fields))
    assert render(document.parts) == "<image>a  b"
    assert decode_image(document.images[0], 8).shape == (8, 8, 3)
