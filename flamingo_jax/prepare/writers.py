"""Forms in which prepared shards are written. Equal samples give equal bytes."""

import functools
import io
import json
import tarfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from flamingo_jax.data.parsers import Passages

Sample = dict[str, Any]
NAME = "corpus"


class Writer(Protocol):
    """One form of shards."""

    def name(self, index: int, count: int) -> str:
        """Returns the file name of a shard."""
        ...

    def write(self, path: Path, samples: Iterable[Sample]) -> None:
        """Writes one shard."""
        ...

    def finish(self, directory: Path, sizes: list[int]) -> None:
        """Writes what readers need beside the shards; called when all are there."""
        ...


def stored(key: str, passages: Passages) -> Sample:
    """Returns the project's stored form, with the images that stand somewhere, in reading order."""
    used = [index for index in passages.image_index if index >= 0]
    places = {image: place for place, image in enumerate(dict.fromkeys(used))}
    similarity = passages.similarity or ()
    return {
        "key": key,
        "text": list(passages.texts),
        "image_index": [places.get(index, -1) for index in passages.image_index],
        "images": [passages.image(image) for image in places],
        "sim": [
            s if i >= 0 else 0.0 for s, i in zip(similarity, passages.image_index, strict=False)
        ],
    }


class ArrayRecords:
    """Stored form, in the format of TensorFlow Datasets; written without TensorFlow."""

    def name(self, index: int, count: int) -> str:
        return f"{NAME}-train.array_record-{index:05d}-of-{count:05d}"

    def write(self, path: Path, samples: Iterable[Sample]) -> None:
        from array_record.python import array_record_module
        from tensorflow_datasets.core.example_serializer import ExampleSerializer

        serializer = ExampleSerializer(_features().get_serialized_info())
        # Larger groups are read 45 times slower at random.
        writer = array_record_module.ArrayRecordWriter(str(path), "group_size:1,uncompressed")
        for sample in samples:
            example = serializer.get_tf_example(_features().encode_example(sample))
            # A map of protobuf's has another order in every process unless it is told otherwise.
            writer.write(example.SerializeToString(deterministic=True))
        writer.close()

    def finish(self, directory: Path, sizes: list[int]) -> None:
        import tensorflow_datasets as tfds

        template = tfds.core.ShardedFileTemplate(
            data_dir=directory,
            dataset_name=NAME,
            split="train",
            filetype_suffix="array_record",
        )
        size = sum((directory / self.name(i, len(sizes))).stat().st_size for i in range(len(sizes)))
        split = tfds.core.SplitInfo(
            name="train", shard_lengths=sizes, num_bytes=size, filename_template=template
        )
        tfds.folder_dataset.write_metadata(
            data_dir=directory, features=_features(), split_infos=[split], check_data=False
        )


@functools.cache
def _features() -> Any:
    import tensorflow_datasets as tfds

    return tfds.features.FeaturesDict(
        {
            "key": tfds.features.Text(),
            "text": tfds.features.Sequence(tfds.features.Text()),
            "image_index": tfds.features.Sequence(np.int32),
            # As text: a sequence of TFDS's images cannot be read without being decoded.
            "images": tfds.features.Sequence(tfds.features.Text()),
            "sim": tfds.features.Sequence(np.float32),
        }
    )


class Tars:
    """WebDataset tars of samples' `json`."""

    def name(self, index: int, count: int) -> str:
        return f"{NAME}-{index:05d}.tar"

    def write(self, path: Path, samples: Iterable[Sample]) -> None:
        with tarfile.open(path, "w") as tar:
            for sample in samples:
                data = json.dumps(sample["json"]).encode()
                member = tarfile.TarInfo(f"{sample['key']}.json")
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))

    def finish(self, directory: Path, sizes: list[int]) -> None:
        pass


class Embeddings:
    """Per shard `vectors` (N, P) float16, `places` (N, 2) of record and image, and the CLIP."""

    def name(self, index: int, count: int) -> str:
        return f"{index:05d}-of-{count:05d}.npz"

    def write(self, path: Path, samples: Iterable[Sample]) -> None:
        vectors, places, fingerprint = [], [], ""
        for sample in samples:
            vectors += [vector.astype(np.float16) for vector in sample["vectors"]]
            places += [(sample["record"], image) for image in sample["images"]]
            fingerprint = sample["fingerprint"]
        with path.open("wb") as file:
            np.savez(
                file,
                vectors=np.array(vectors, np.float16),
                places=np.array(places, np.int64).reshape(-1, 2),
                fingerprint=fingerprint,
            )

    def finish(self, directory: Path, sizes: list[int]) -> None:
        pass


class JsonLines:
    """One JSON object per line."""

    def name(self, index: int, count: int) -> str:
        return f"{index:05d}-of-{count:05d}.jsonl"

    def write(self, path: Path, samples: Iterable[Sample]) -> None:
        with path.open("w") as file:
            file.writelines(json.dumps(sample) + "\n" for sample in samples)

    def finish(self, directory: Path, sizes: list[int]) -> None:
        pass
