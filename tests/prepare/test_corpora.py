"""Each corpus → shards → what the pipeline reads from them, and what became of the rest."""

import json
import tarfile
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from flamingo_jax.data.order import Order
from flamingo_jax.data.pipeline import StepSource, StreamConfig, make_streams
from flamingo_jax.data.records import Record
from flamingo_jax.data.sources import Mmc4, Pairs, Sequences
from flamingo_jax.data.stores import open_store
from flamingo_jax.errors import UserError
from flamingo_jax.text.documents import Text, captioned
from flamingo_jax.text.template import render
from flamingo_jax.text.tokenizer import load_tokenizer
from tests.data.corpora import pair_samples, picture, write_tar

from .conftest import prepare
from .corpora import mmc4_document, write_img2dataset, write_mmc4, write_obelics

pytestmark = pytest.mark.filterwarnings("default")  # TFDS is noisy


def documents(directory: Path, source) -> dict:
    store = open_store(str(directory))
    places = [(s, i) for s, size in enumerate(store.sizes) for i in range(size)]
    found = [source.parse(store.record(*place)) for place in places]
    return {document.key: document for document in found}


def drops(directory: Path) -> Counter:
    """(what, reason) of every drop listed."""
    reports = [json.loads(path.read_text()) for path in sorted(directory.glob("report/*.json"))]
    return Counter((drop["of"], drop["reason"]) for report in reports for drop in report["drops"])


@pytest.fixture(scope="module")
def mmc4(tmp_path_factory):
    folder = tmp_path_factory.mktemp("mmc4")
    shards, images = write_mmc4(folder / "in")
    flags = ("--shards", shards, "--images", images, "--min-image-bytes", 0)
    return folder / "out", prepare("mmc4", *flags, "--out", folder / "out")


def test_mmc4_documents_are_those_of_the_corpus(mmc4):
    out, _ = mmc4
    found = documents(out, Mmc4(shards=""))
    assert len(found) == 8 + 6
    for n in range(8):
        document = found[f"docs_shard_0_v2/{n}"]
        assert document.images == (picture(2 * n + 1), picture(2 * n))
        text = render(document.parts)
        assert text == f"<image>dax<|endofchunk|><image>{mmc4_document(n)['text_list'][1]} toma"
    assert found["docs_shard_1_v2/4"].images == (picture(25),)  # the other one is damaged
    # The similarities are kept, so the threshold can be chosen when reading.
    first = open_store(str(out)).record(0, 0)
    assert Mmc4(shards="", similarity_threshold=0.28).parse(first).images == (picture(0),)


def test_mmc4_survival(mmc4):
    out, survival = mmc4
    assert survival["documents"] == 16
    assert survival["kept"] == 14
    assert survival["dropped"] == {"damaged record": 1, "no image": 1}
    assert survival["images"] == 30
    assert survival["images_kept"] == 26
    assert survival["images_dropped"] == {"image missing": 3, "damaged image": 1}
    assert survival["files_damaged"] == 1
    assert sum(drops(out).values()) == 2 + 4 + 1
    report = json.loads((out / "report/00001-of-00003.json").read_text())
    assert report["drops"][0]["key"] == "docs_shard_1_v2/1"
    assert "bad JSON" in report["drops"][0]["detail"]
    assert report["input"]["path"].endswith("docs_shard_1_v2.jsonl.zip")


def test_text_that_is_not_unicode_costs_its_document(tmp_path):
    texts = ["dax", "dax \ud83d"]
    lines = [json.dumps(mmc4_document(0) | {"text_list": [text, "wug", "toma"]}) for text in texts]
    (tmp_path / "docs.jsonl").write_text("\n".join(lines))
    for index in range(2):
        (tmp_path / f"0-{index}.jpg").write_bytes(picture(index))
    flags = ("--shards", tmp_path / "docs.jsonl", "--images", tmp_path, "--min-image-bytes", 0)
    survival = prepare("mmc4", *flags, "--out", tmp_path / "out")
    assert (survival["kept"], survival["dropped"]) == (1, {"damaged record": 1})


def test_prepared_shards_train(mmc4):
    """Batches of the stored form are those of the documents as downloaded, with base64 images."""
    import base64

    config = StreamConfig(
        source="mmc4",
        options={"shards": str(mmc4[0])},
        batch_size=4,
        text_length=24,
        num_images=2,
    )
    tokens = load_tokenizer("digits", 40)
    source = StepSource(make_streams({"x": config}, tokens, 16), 0, 3)
    store = open_store(str(mmc4[0]))
    maker = source.streams["x"].make_example
    order = Order(store.sizes, "global", 64)
    batch = source[0]["x"]
    for row in range(4):
        record = store.record(*order.place(row, (0, 0)))
        shard, number = record.key.split("/")
        values = mmc4_document(8 * int(shard[11]) + int(number))
        kept = {bytes(image) for image in record.fields["images"]}
        for info in values["image_info"]:
            n, index = info["image_name"].removesuffix(".jpg").split("-")
            data = picture(2 * int(n) + int(index))
            if data in kept:
                info["image_base64"] = base64.b64encode(data).decode()
        original = Record("", "", {"json": json.dumps(values).encode()})
        example = maker(Mmc4(shards="", min_image_bytes=0).parse(original))
        for name, array in example.items():
            np.testing.assert_array_equal(batch[name][row], array)


def test_img2dataset(tmp_path):
    shards = write_img2dataset(tmp_path / "in")
    out = tmp_path / "out"
    flags = ("--min-side", 16, "--max-aspect", 4, "--at-least", "similarity=0.25")
    flags += ("--at-most", "punsafe=0.5", "--min-words", 1, "--max-words", 4)
    survival = prepare("img2dataset", "--shards", shards, *flags, "--out", out)
    assert survival["documents"] == 20
    assert survival["dropped"] == {
        "too few or too many words": 3,
        "duplicate": 1,
        "image too small": 1,
        "image too long": 1,
        "no caption": 1,
        "damaged image": 1,
        "damaged record": 2,
        "no similarity": 1,
    }
    assert survival["kept"] == 9
    found = documents(out, Pairs(shards=""))
    assert found["000001"] == captioned("000001", (picture(1), "dax wug"), found["000001"].shard)
    assert sorted(found) == sorted([f"{n:06d}" for n in (0, 1, 2, 3, 5, 6, 7, 8, 10)])
    assert sum(drops(out).values()) == 11


def test_an_img2dataset_tar_that_is_none(tmp_path):
    (tmp_path / "a.tar").write_bytes(b"hello" * 500)
    survival = prepare("img2dataset", "--shards", tmp_path / "a.tar", "--out", tmp_path / "out")
    assert (survival["documents"], survival["files_damaged"]) == (0, 1)
    assert open_store(str(tmp_path / "out")).sizes.sum() == 0


def test_a_damaged_tar_loses_what_is_damaged_and_says_so(tmp_path):
    path = write_tar(tmp_path / "a.tar", pair_samples(0, 10))
    with tarfile.open(path) as tar:
        member = tar.getmembers()[7]  # the .json of the third pair
    data = bytearray(path.read_bytes())
    data[member.offset + 100 : member.offset + 140] = b"\xff" * 40
    path.write_bytes(data)
    survival = prepare("img2dataset", "--shards", path, "--out", tmp_path / "out")
    assert (survival["documents"], survival["kept"], survival["files_damaged"]) == (10, 10, 1)
    assert drops(tmp_path / "out") == {("file", "damaged file"): 1}


def test_keys_that_are_not_utf8(tmp_path):
    path = write_tar(tmp_path / "a.tar", {"caf\udce9": {"jpg": picture(0), "txt": b"dax"}})
    prepare("img2dataset", "--shards", path, "--out", tmp_path / "out")
    assert [*documents(tmp_path / "out", Pairs(shards=""))] == ["caf\\xe9"]


def test_limits_must_be_numbers(tmp_path):
    with pytest.raises(UserError, match="expected FIELD=NUMBER"):
        prepare("img2dataset", "--shards", "x", "--at-least", "similarity", "--out", tmp_path)


def test_obelics(tmp_path):
    pytest.importorskip("pyarrow")
    parquet, images = write_obelics(tmp_path)
    out = tmp_path / "out"
    flags = ("--parquet", parquet, "--images", images, "--row-groups", 1, "--min-images", 1)
    survival = prepare("obelics", *flags, "--out", out)
    assert survival["shards"] == 2
    assert survival["documents"] == 10
    assert survival["dropped"] == {"no image": 1, "damaged record": 1}
    assert survival["images_dropped"] == {"image missing": 3}
    found = documents(out, Sequences(shards=""))
    assert render(found["obelics/0/0"].parts) == "<image>dax wug<|endofchunk|><image>toma"
    assert found["obelics/1/1"].images == (picture(12), picture(13))
    assert found["obelics/0/3"].parts == (
        Text("dax wug", learn=False),
        picture(7),
        Text("toma"),
    )
