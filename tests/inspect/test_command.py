import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from absl.testing import flagsaver

from flamingo_jax.data.pipeline import StreamConfig, make_streams
from flamingo_jax.errors import UserError
from flamingo_jax.inspect import __main__ as inspect
from flamingo_jax.inspect.examine import examine, thresholds
from flamingo_jax.inspect.page import render_page
from flamingo_jax.inspect.shards import spread
from flamingo_jax.text.tokenizer import load_tokenizer
from tests.data.corpora import (
    damaged_pairs,
    mmc4_record,
    odd_pairs,
    pair_samples,
    picture,
    write_tar,
)

ROOT = Path(__file__).parents[2]


def stream(source: str, shards: Path, text_length: int, num_images: int, **options):
    config = StreamConfig(
        source=source,
        options={"shards": str(shards), **options},
        batch_size=1,
        text_length=text_length,
        num_images=num_images,
    )
    return make_streams({"x": config}, load_tokenizer("digits", 40), 16)["x"]


@pytest.fixture(scope="module")
def documents(tmp_path_factory):
    """Similarities of the images with their sentences: 0.3 and 0.25; 0.3; 0.2; and a bad record."""
    path = tmp_path_factory.mktemp("mmc4") / "mmc4.tar"
    both = mmc4_record(
        ["dax", "wug", "toma", "zorp"],
        [[0.3, 0, 0, 0], [0, 0, 0, 0.25], [0, 0.1, 0, 0]],
        [picture(0), picture(1), picture(2)],
    )
    small = mmc4_record(["dax", "wug"], [[0.1, 0.3], [0, 0]], [picture(3), b"tiny"])
    none = mmc4_record(["dax"], [[0.2]], [picture(4)])
    samples = {"both": both, "small": small, "none": none, "bad": b"{"}
    write_tar(path, {key: {"json": data} for key, data in samples.items()})
    return examine_all("mmc4", stream("mmc4", path, 5, 6, min_image_bytes=100))


def examine_all(name: str, stream):
    return examine(name, stream, records=1000, documents=20, shards=10)


def test_what_becomes_of_documents(documents):
    assert documents.fates == {"used": 2, "left out": 1, "bad": 1}
    assert documents.found == [3, 1, 1]
    assert documents.shown == [1, 1]
    left_out = [[reason for _, reason in shown.left_out] for shown in documents.documents]
    assert left_out == [
        ["similarity 0.10, below 0.24", "behind the end of the row"],
        ["fewer than 100 bytes"],
    ]
    assert documents.image_reasons["similarity …, below …"] == 1
    reasons = {first.key: first.reason for _, first in documents.reasons.values()}
    assert reasons["none"] == "no image reaches the similarity threshold"
    assert reasons["bad"].startswith("bad JSON")


def test_what_a_threshold_costs(documents):
    rows = thresholds(documents, [0.05, 0.24, 0.28, 0.32])
    third = pytest.approx(1 / 3)
    assert rows == [
        (0.05, 0, pytest.approx(2 / 3)),
        (0.24, third, 0.5),
        (0.28, third, 1),
        (0.32, 1, 0),
    ]


def test_the_page_shows_the_row(documents):
    page = render_page([documents], [0.24])
    assert not re.search(r"<script|<link|https?://", page)
    first = page.split("<article>")[1]
    row = re.sub(r"data:image/[^\"]*", "", first.split('<div class="dropped">')[0])
    kinds = re.findall(r'<span class="([a-z ]+)" title="token (\d)', row)
    assert [index for _, index in kinds] == list("1234")  # token 0 is the image
    assert row.index("<img") < row.index("dax")
    assert [kind for kind, _ in kinds] == ["learned"] * 3 + ["learned special"]
    assert '<span class="cut">' in row
    assert first.count("<figure>") == 2
    assert "<td>33.3%</td><td>50.0%</td>" in page


def test_damaged_and_repeated_records_of_pairs(tmp_path):
    samples = pair_samples(0, 20) | damaged_pairs(6) | odd_pairs()
    path = write_tar(tmp_path / "pairs.tar", samples)
    again = write_tar(tmp_path / "again.tar", pair_samples(0, 2))
    path.write_bytes(path.read_bytes() + again.read_bytes())
    data = bytearray(path.read_bytes())
    data[3 * 1024 + 100 : 3 * 1024 + 140] = b"\xff" * 40
    report = examine_all("pairs", stream("pairs", path, 8, 1))
    assert report.fates == {"used": 26, "bad": 6}
    assert report.shards[0].repeated_keys == 2
    assert report.shards[0].damage == ()
    page = render_page([report], [])
    for reason in ("truncated", "empty caption", "no image among", "bad JSON", "exceeds limit"):
        assert reason in page
    assert "2 keys stand for several samples" in page


def test_damaged_headers_are_told_although_an_index_exists(tmp_path):
    path = write_tar(tmp_path / "pairs.tar", pair_samples(0, 10))
    data = bytearray(path.read_bytes())
    data[100:140] = b"\xff" * 40
    path.write_bytes(data)
    for _ in range(2):
        report = examine_all("pairs", stream("pairs", path, 8, 1))
        assert len(report.shards[0].damage) == 1
        assert "bytes at 0" in report.shards[0].damage[0]


def test_spread():
    assert spread(5, 100) == [0, 1, 2, 3, 4]
    assert spread(1000, 3) == [0, 499, 999]


def test_the_command(tmp_path):
    path = write_tar(tmp_path / "pairs.tar", pair_samples(0, 20) | damaged_pairs(2))
    out = tmp_path / "page.html"
    flags = ["--source=pairs", f"--shards={path}", "--num_images=1", f"--out={out}"]
    done = subprocess.run(
        [sys.executable, "-m", "flamingo_jax.inspect", *flags],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert "22 records; examined: 2 bad, 20 used" in done.stdout
    assert out.read_text().count("<article>") == 22


@flagsaver.flagsaver
def test_every_stream_of_a_config_is_shown(tmp_path, capsys):
    out = tmp_path / "page.html"
    config = f"--config={ROOT}/tests/tiny.py"
    inspect.main(["inspect", config, "--records=4", "--documents=2", f"--out={out}"])
    assert "pairs: no files; examined: 4 used" in capsys.readouterr().out
    page = out.read_text()
    assert page.count("<h2>") == 2
    assert page.count("<article>") == 4


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ([], "nothing to look at: give --config=FILE, or --source=mmc4 --shards=PATTERN"),
        ([f"--config={ROOT}/tests/tiny.py", "--stream=x"], "no stream 'x' in the config, but: "),
        (["--source=pears", "--shards=x"], "flags.source is 'pears', expected one of"),
        (["--config=configs/digits.py", "--thresholds=a"], "expected numbers with commas"),
    ],
)
@flagsaver.flagsaver
def test_mistakes(args, message):
    with pytest.raises(UserError, match=re.escape(message)):
        inspect.main(["inspect", *args])
