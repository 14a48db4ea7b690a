import io
import json

import numpy as np
import pytest
from PIL import Image

from flamingo_jax.data.sources import Mmc4, Pairs
from flamingo_jax.data.stores import open_store
from flamingo_jax.errors import UserError
from flamingo_jax.prepare.retrieval import Pool
from flamingo_jax.prepare.similarity import opened
from flamingo_jax.similarity.clip import load_clip
from flamingo_jax.text.documents import Text
from tests.data.corpora import damaged_pairs, pair_samples, picture, write_tar

from .conftest import prepare
from .corpora import write_mmc4

pytestmark = pytest.mark.filterwarnings("default")  # TFDS is noisy


def similarity(clip, data: bytes, text: str) -> float:
    image = Image.open(io.BytesIO(data))
    return float((clip.encode_images([image]) @ clip.encode_texts([text]).T)[0, 0])


def lines(path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture(scope="module")
def scored(clip_directory, tmp_path_factory):
    """(two tars of pairs, damaged ones among them; directory of their scores)."""
    folder = tmp_path_factory.mktemp("scored")
    write_tar(folder / "0.tar", pair_samples(0, 6))
    write_tar(folder / "1.tar", pair_samples(6, 6) | damaged_pairs(3))
    flags = ("--shards", f"{folder}/{{0..1}}.tar", "--clip", clip_directory, "--batch-size", 4)
    survival = prepare("score", *flags, "--out", folder / "scores")
    assert (survival["documents"], survival["kept"]) == (15, 13)
    assert survival["dropped"] == {"damaged record": 2}  # an empty caption can be scored
    return folder, folder / "scores"


def test_scores_are_those_of_clip(scored, clip_directory):
    clip = load_clip(clip_directory, batch_size=4)
    samples = pair_samples(0, 12)
    found = [line for n in range(2) for line in lines(scored[1] / f"0000{n}-of-00002.jsonl")]
    pairs = {line["key"]: line["sim"] for line in found if line["key"] in samples}
    assert len(pairs) == 12
    for key, sample in samples.items():
        expected = similarity(clip, sample["jpg"], sample["txt"].decode())
        assert pairs[key] == pytest.approx([expected], abs=1e-4)


def test_filtering_keeps_the_pairs_above(scored, tmp_path):
    _, scores = scored
    found = [line["sim"][0] for n in range(2) for line in lines(scores / f"0000{n}-of-00002.jsonl")]
    threshold = float(np.median(found))
    survival = prepare(
        "filter", "--scores", scores, "--min-similarity", threshold, "--out", tmp_path / "out"
    )
    store = open_store(str(tmp_path / "out"))
    kept = [
        store.record(shard, index)
        for shard, size in enumerate(store.sizes)
        for index in range(size)
    ]
    samples = pair_samples(0, 12)
    for record in kept:
        assert record.fields["sim"][0] >= np.float32(threshold)
        document = Pairs(shards="").parse(record)
        caption = Text(samples[record.key]["txt"].decode())
        assert document.parts == (samples[record.key]["jpg"], caption)
    above = sum(score >= threshold for score in found)
    assert survival["images_dropped"]["below the similarity"] == len(found) - above
    assert above - 1 <= survival["kept"] == len(kept) <= above  # the empty caption goes anyway
    assert survival["dropped"]["not scored"] == 2


def test_documents_are_scored_and_filtered_too(clip_directory, tmp_path):
    shards, images = write_mmc4(tmp_path / "in")
    flags = ("--images", images, "--min-image-bytes", 0)
    prepare("mmc4", "--shards", shards, *flags, "--out", tmp_path / "docs")
    flags = ("--shards", tmp_path / "docs", "--clip", clip_directory)
    prepare("score", *flags, "--out", tmp_path / "scores")
    (line, *_) = lines(min((tmp_path / "scores").glob("*.jsonl")))
    assert line["sim"][2] is None
    clip = load_clip(clip_directory)
    assert line["sim"][0] == pytest.approx(similarity(clip, picture(1), "dax"), abs=1e-4)
    between = sum(line["sim"][:2]) / 2
    prepare(
        *("filter", "--scores", tmp_path / "scores", "--min-similarity", between),
        *("--out", tmp_path / "out"),
    )
    document = Mmc4(shards="", similarity_threshold=-1.0).parse(
        open_store(str(tmp_path / "out")).record(0, 0)
    )
    assert document.images == (picture(int(line["sim"][0] > line["sim"][1])),)


def test_scores_that_do_not_fit_are_refused(scored, tmp_path):
    folder, scores = scored
    with pytest.raises(UserError, match=r"no complete output of `score`: run .* score"):
        prepare("filter", "--scores", tmp_path, "--out", tmp_path / "out")
    write_tar(folder / "other.tar", pair_samples(0, 1))
    settings = scores / "settings.json"
    before = settings.read_text()
    settings.write_text(before.replace("{0..1}.tar", "other.tar"))
    opened.cache_clear()
    with pytest.raises(UserError, match="other shards"):
        prepare("filter", "--scores", scores, "--out", tmp_path / "out")
    settings.write_text(before)
    with pytest.raises(UserError, match="no complete output of `embed`"):
        Pool(str(scores)).candidates(np.zeros((1, 16), np.float32), "", 1)
