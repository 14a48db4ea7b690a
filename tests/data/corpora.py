"""Small corpora on disk: real files of every format, made of random pictures."""

import base64
import io
import json
import struct
import tarfile
import zlib
from pathlib import Path

import numpy as np
from PIL import Image


def picture(seed: int, width: int = 40, height: int = 32, kind: str = "JPEG", mode="RGB") -> bytes:
    """A smooth random picture, encoded."""
    rng = np.random.default_rng(seed)
    small = Image.fromarray(rng.integers(0, 256, (4, 4, 3), dtype=np.uint8))
    file = io.BytesIO()
    small.resize((width, height), Image.Resampling.BICUBIC).convert(mode).save(file, kind)
    return file.getvalue()


def write_tar(path: Path, samples: dict[str, dict[str, bytes]]) -> Path:
    with tarfile.open(path, "w") as tar:
        for key, parts in samples.items():
            for extension, data in parts.items():
                info = tarfile.TarInfo(f"{key}.{extension}")
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
    return path


def pair_samples(first: int, count: int) -> dict[str, dict[str, bytes]]:
    """Captions are words of the demo's tokenizer."""
    words = ("dax", "wug", "toma", "zorp", "fep")
    return {
        f"{n:06d}": {
            "jpg": picture(n),
            "json": json.dumps({"key": f"{n:06d}"}).encode(),
            "txt": " ".join(words[: 1 + n % 5]).encode(),
        }
        for n in range(first, first + count)
    }


def write_pairs(directory: Path, shards: int = 4, per_shard: int = 10) -> str:
    """Tars of pairs, as a pattern."""
    for shard in range(shards):
        write_tar(directory / f"pairs-{shard:04d}.tar", pair_samples(shard * per_shard, per_shard))
    return f"{directory}/pairs-{{0000..{shards - 1:04d}}}.tar"


def mmc4_record(sentences: list[str], similarity: list[list[float]], images: list) -> bytes:
    """A document as JSON; an image is encoded bytes, or None where it is missing."""
    info = [
        {"image_name": str(i)}
        | ({} if image is None else {"image_base64": base64.b64encode(image).decode()})
        for i, image in enumerate(images)
    ]
    record = {"text_list": sentences, "similarity_matrix": similarity, "image_info": info}
    return json.dumps(record).encode()


def mmc4_samples(count: int) -> dict[str, dict[str, bytes]]:
    return {
        f"doc{n}": {
            "json": mmc4_record(
                ["dax", "wug", "toma"],
                [[0.1, 0.3, 0.2], [0.2, 0.1, 0.1 + 0.05 * (n % 5)]],
                [picture(2 * n), picture(2 * n + 1)],
            )
        }
        for n in range(count)
    }


def damaged_pairs(count: int) -> dict[str, dict[str, bytes]]:
    """Pairs that cannot be used, each for another reason."""
    whole = picture(0)
    kinds = (
        {"jpg": whole[:-40], "txt": b"dax"},
        {"jpg": b"", "txt": b"dax"},
        {"jpg": whole, "txt": b" "},
        {"txt": b"dax"},
        {"jpg": whole, "json": b"{"},
        {"png": bomb(), "txt": b"dax"},
    )
    return {f"bad{n:06d}": kinds[n % len(kinds)] for n in range(count)}


def odd_pairs() -> dict[str, dict[str, bytes]]:
    """Pairs that are unusual and can be used."""
    pictures = {
        "cmyk": picture(1, mode="CMYK"),
        "point": picture(2, 1, 1),
        "strip": picture(3, 3000, 4),
        "animation": picture(4, kind="GIF"),
    }
    return {f"odd{name}": {"jpg": data, "txt": b"dax"} for name, data in pictures.items()}


def write_tfds(
    directory: Path, features: dict, shards: list[list[dict]], name: str = "data"
) -> str:
    """A dataset in TFDS format, split "train", without TensorFlow."""
    import tensorflow_datasets as tfds
    from array_record.python.array_record_module import ArrayRecordWriter

    features = tfds.features.FeaturesDict(features)
    directory.mkdir(parents=True)
    for number, shard in enumerate(shards):
        path = directory / f"{name}-train.array_record-{number:05d}-of-{len(shards):05d}"
        writer = ArrayRecordWriter(str(path), "group_size:1,uncompressed")
        for record in shard:
            writer.write(features.serialize_example(features.encode_example(record)))
        writer.close()
    template = tfds.core.ShardedFileTemplate(
        data_dir=directory, dataset_name=name, split="train", filetype_suffix="array_record"
    )
    split = tfds.core.SplitInfo(
        name="train",
        shard_lengths=[len(shard) for shard in shards],
        num_bytes=0,
        filename_template=template,
    )
    tfds.folder_dataset.write_metadata(
        data_dir=directory, features=features, split_infos=[split], check_data=False
    )
    return str(directory)


def bomb() -> bytes:
    """A PNG of a few bytes that says it has 10⁹ pixels."""
    header = struct.pack(">IIBBBBB", 40_000, 25_000, 8, 2, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(b"")), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        for name, data in chunks
    )
