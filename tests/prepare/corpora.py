"""Corpora as they are downloaded, sound and damaged records among them."""

import hashlib
import json
import zipfile
from pathlib import Path

from tests.data.corpora import pair_samples, picture, write_tar

WORDS = ("dax", "wug", "toma", "zorp", "fep")


def mmc4_document(number: int) -> dict:
    """Two images; the second belongs to the sentence before the first one's."""
    return {
        "text_list": ["dax", f"wug {WORDS[number % 5]}", "toma"],
        "similarity_matrix": [[0.1, 0.3, 0.2], [0.25, 0.1, 0.1]],
        "image_info": [{"image_name": f"{number}-{n}.jpg"} for n in range(2)],
    }


def write_mmc4(folder: Path, shards: int = 3, per_shard: int = 8) -> tuple[str, str]:
    """(pattern of zips, directory of images). In shard 1: a line that is no JSON, a document whose
    images are missing, a damaged and a missing image; shard 2 is a damaged zip."""
    images = folder / "images"
    images.mkdir(parents=True)
    for shard in range(shards):
        lines = []
        for n in range(shard * per_shard, (shard + 1) * per_shard):
            place = images / f"docs_shard_{shard}_v2" if n % 2 else images
            place.mkdir(exist_ok=True)
            for index in range(2):
                (place / f"{n}-{index}.jpg").write_bytes(picture(2 * n + index))
            lines.append(json.dumps(mmc4_document(n)))
        if shard == 1:
            lines[1] = "{"
            lines[2] = json.dumps(mmc4_document(10_000))
            images.joinpath(f"{per_shard + 4}-0.jpg").write_bytes(picture(0)[:-40])
            images.joinpath(f"{per_shard + 6}-1.jpg").unlink()
        with zipfile.ZipFile(folder / f"docs_shard_{shard}_v2.jsonl.zip", "w") as archive:
            archive.writestr(f"docs_shard_{shard}_v2.jsonl", "\n".join(lines) + "\n")
    broken = folder / f"docs_shard_{shards - 1}_v2.jsonl.zip"
    data = bytearray(broken.read_bytes())
    data[200:240] = b"x" * 40
    broken.write_bytes(data)
    return f"{folder}/docs_shard_*_v2.jsonl.zip", str(images)


def write_img2dataset(folder: Path) -> str:
    """Two tars of ten pairs; the second has a duplicate, a low score and odd images."""
    folder.mkdir(parents=True)
    for shard in range(2):
        samples = pair_samples(shard * 10, 10)
        for n, sample in enumerate(samples.values()):
            sample["json"] = json.dumps({"similarity": 0.25 + 0.01 * n, "punsafe": 0.1}).encode()
        if shard:
            keys = list(samples)
            samples[keys[1]] = dict(samples[keys[0]])
            samples[keys[2]]["jpg"] = picture(1, 8, 8)
            samples[keys[3]]["jpg"] = picture(1, 300, 40)
            samples[keys[4]]["txt"] = b" "
            samples[keys[5]]["jpg"] = picture(1)[:-40]
            samples[keys[6]]["json"] = b"{"
            samples[keys[7]]["json"] = b"{}"
            del samples[keys[8]]["jpg"]
        write_tar(folder / f"{shard:05d}.tar", samples)
    return f"{folder}/{{00000..00001}}.tar"


def write_obelics(folder: Path, documents: int = 10) -> tuple[str, str]:
    """(pattern of a parquet file with two row groups, directory of images)."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = []
    for n in range(documents):
        urls = [f"http://a/{n}.jpg", f"http://b/{n}.jpg"]
        for index, url in enumerate(urls):
            if (n, index) not in ((3, 0), (4, 0), (4, 1)):
                save_obelics_image(folder / "images", url, picture(2 * n + index))
        rows.append(
            {"images": [urls[0], None, urls[1], None], "texts": [None, "dax wug", None, "toma"]}
        )
    rows[5]["texts"] = [None]
    table = pa.Table.from_pylist(rows)
    pq.write_table(table, folder / "obelics.parquet", row_group_size=documents // 2)
    return f"{folder}/*.parquet", str(folder / "images")


def save_obelics_image(images: Path, url: str, data: bytes) -> None:
    digest = hashlib.sha256(url.encode()).hexdigest()
    path = images / digest[:2] / digest
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
