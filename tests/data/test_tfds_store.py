import pickle
from pathlib import Path

import numpy as np
import pytest

from flamingo_jax.data import tfds_store
from flamingo_jax.data.pipeline import StepSource, StreamConfig, make_streams
from flamingo_jax.data.records import BadRecordError, Record
from flamingo_jax.data.sources import Captions
from flamingo_jax.data.stores import open_store
from flamingo_jax.data.tfds_store import TfdsName
from flamingo_jax.errors import UserError
from flamingo_jax.text.tokenizer import load_tokenizer

from .corpora import picture, write_tfds
from .test_stores import records

pytestmark = pytest.mark.filterwarnings("default")  # TFDS is noisy


def stored_dataset(directory: Path, stored: list[dict]) -> str:
    """The project's stored form, two shards."""
    from tensorflow_datasets import features

    half = len(stored) // 2
    return write_tfds(
        directory,
        {
            "key": features.Text(),
            "text": features.Sequence(features.Text()),
            "image_index": features.Sequence(np.int32),
            "images": features.Sequence(features.Text()),
            "sim": features.Sequence(np.float32),
        },
        [stored[:half], stored[half:]],
    )


@pytest.fixture(scope="module")
def captioned(tmp_path_factory):
    """TFDS's directory, with a dataset that has the features of coco_captions; 3 + 3 records."""
    from tensorflow_datasets import features

    data_dir = tmp_path_factory.mktemp("tfds")
    examples = [
        {
            "image": picture(n),
            "image/id": n,
            "captions": [{"id": 2 * n, "text": "dax wug"}, {"id": 2 * n + 1, "text": "toma"}],
            "objects": [{"bbox": features.BBox(0.0, 0.0, 1.0, 1.0)}],
            "label": n % 2,
        }
        for n in range(6)
    ]
    write_tfds(
        data_dir / "little_coco/2014/1.1.0",
        {
            "image": features.Image(encoding_format="jpeg"),
            "image/id": np.int64,
            "captions": features.Sequence({"id": np.int64, "text": features.Text()}),
            "objects": features.Sequence({"bbox": features.BBoxFeature()}),
            "label": features.ClassLabel(names=["zorp", "fep"]),
        },
        [examples[:3], examples[3:]],
        name="little_coco",
    )
    return data_dir


def test_tfds_array_records(tmp_path):
    stored = [
        {
            "key": f"doc-{n}",
            "text": ["dax", "wug"],
            "image_index": [-1, 0],
            "images": [b"\xff\xd8" + bytes([n])],
            "sim": [0.0, 0.3],
        }
        for n in range(5)
    ]
    directory = stored_dataset(tmp_path / "data", stored)
    store = pickle.loads(pickle.dumps(open_store(directory)))
    assert store.sizes.tolist() == [2, 3]
    found = records(store)
    assert [record.key for record in found] == [f"doc-{n}" for n in range(5)]
    assert [bytes(record.fields["images"][0]) for record in found] == [
        record["images"][0] for record in stored
    ]
    assert Path(found[-1].shard).name == "data-train.array_record-00001-of-00002"
    with pytest.raises(UserError, match="no split 'test', but: train"):
        open_store(f"{directory}:test")


def test_datasets_by_name(captioned):
    store = open_store(f"tfds:little_coco/2014:1.1.0?data_dir={captioned}")
    assert store.sizes.tolist() == [3, 3]
    found = records(pickle.loads(pickle.dumps(store)))
    assert [record.fields["image"] for record in found] == [picture(n) for n in range(6)]
    assert [record.fields["label"] for record in found] == ["zorp", "fep"] * 3
    part = open_store(f"tfds:little_coco/2014?split=train[1:5]&data_dir={captioned}")
    assert part.sizes.tolist() == [2, 2]
    assert [record.fields["image/id"] for record in records(part)] == [1, 2, 3, 4]
    assert [record.key for record in records(part)] == ["1", "2", "0", "1"]


def test_names_that_cannot_be_opened(captioned):
    assert TfdsName.parse("tfds:a?split=train+test") == TfdsName("a", "train+test")
    with pytest.raises(UserError, match=r"not prepared in .*tfds build none --file_format"):
        open_store(f"tfds:none?data_dir={captioned}")
    with pytest.raises(UserError, match="has no split 'test', but: train"):
        open_store(f"tfds:little_coco/2014?split=test&data_dir={captioned}")
    for name in ("tfds:", "tfds:a?splits=train"):
        with pytest.raises(UserError, match="is not understood; expected tfds:NAME"):
            open_store(name)


def test_few_shards_are_open(captioned, monkeypatch):
    monkeypatch.setattr(tfds_store, "MAX_OPEN", 1)
    store = open_store(f"tfds:little_coco/2014?data_dir={captioned}")

    def still_open() -> int:
        files = (path for path in Path("/proc/self/fd").iterdir() if path.exists())
        return sum(captioned in path.resolve().parents for path in files)

    for shard in (0, 1, 0, 1):
        assert store.record(shard, 0).fields["image/id"] == 3 * shard
        assert still_open() == 1
    store.__del__()
    assert still_open() == 0


def test_every_epoch_shows_the_next_caption(captioned):
    options = {"shards": f"tfds:little_coco/2014?data_dir={captioned}"}
    config = StreamConfig(
        source="captions", options=options, batch_size=6, text_length=6, num_images=1
    )
    source = StepSource(make_streams({"x": config}, load_tokenizer("digits", 40), 16), 0, 3)
    lengths = [source[epoch]["x"]["segments"].sum(axis=1).tolist() for epoch in range(3)]
    assert lengths == [[5] * 6, [4] * 6, [5] * 6]
    assert source[0]["x"]["images"].any(axis=(1, 2, 3, 4, 5)).all()


def test_captions_by_feature():
    fields = {"image": b"x", "label": "dax", "nested": {"text": [b"wug"]}, "none": []}
    record = Record("s", "k", fields)

    def caption(path: str) -> str:
        return Captions(shards="", text=path).parse(record).parts[1].text

    assert (caption("label"), caption("nested/text")) == ("dax", "wug")
    for path, reason in (
        ("none", "empty caption"),
        ("text", "no feature 'text' among: image, label"),
        ("nested/a/b", "no feature 'a/b' among: text"),
    ):
        with pytest.raises(BadRecordError, match=reason):
            caption(path)
    with pytest.raises(BadRecordError, match="'label' is str, not an image"):
        Captions(shards="", image="label", text="label").parse(record)
