"""Datasets of TensorFlow Datasets, by directory or by name, read without TensorFlow."""

from collections import OrderedDict
from dataclasses import dataclass
from typing import Any

import numpy as np

from flamingo_jax.data.records import BadRecordError, Record
from flamingo_jax.errors import UserError

MAX_OPEN = 64  # shards held open by one process
PREFIX = "tfds:"


@dataclass(frozen=True)
class TfdsName:
    """A dataset that TFDS has prepared: `tfds:NAME/CONFIG:VERSION?split=train&data_dir=DIR`.

    Attributes:
      name: NAME, with /CONFIG and :VERSION where there are several.
      split: as TFDS writes it, such as "train", "train[:90%]" or "train+validation".
      data_dir: what TFDS keeps datasets in; None: its default.
    """

    name: str
    split: str = "train"
    data_dir: str | None = None

    @classmethod
    def parse(cls, text: str) -> "TfdsName":
        """Splits a name. UserError: a setting but split and data_dir."""
        name, _, query = text.removeprefix(PREFIX).partition("?")
        settings = dict(item.partition("=")[::2] for item in query.split("&") if item)
        if not name or settings.keys() - {"split", "data_dir"}:
            raise UserError(
                f"{text!r} is not understood; expected tfds:NAME/CONFIG:VERSION"
                "?split=train&data_dir=DIRECTORY, of which all but NAME may be left out"
            )
        return cls(name, **settings)

    def builder(self) -> Any:
        """Opens the data set. UserError: TFDS has not prepared it."""
        import tensorflow_datasets as tfds
        from tensorflow_datasets.core.read_only_builder import builder_from_files

        try:  # from its files alone: the code of many datasets needs TensorFlow
            return builder_from_files(self.name, data_dir=self.data_dir)
        except tfds.core.DatasetNotFoundError:
            where = self.data_dir or "TFDS's default directory"
            flag = f" --data_dir={self.data_dir}" if self.data_dir else ""
            raise UserError(
                f"TFDS dataset {self.name!r} is not prepared in {where}; name its config and "
                "version if it has several, or prepare it where TensorFlow is installed: "
                f"tfds build {self.name} --file_format=array_record{flag}"
            ) from None


@dataclass(frozen=True)
class TfdsDirectory:
    """The directory of one dataset, the one with its features.json."""

    directory: str
    split: str = "train"

    def builder(self) -> Any:
        import tensorflow_datasets as tfds

        return tfds.builder_from_directory(self.directory)


class TfdsStore:
    """Records of files of type ArrayRecord. Fields are the dataset's features as NumPy values,
    images left encoded, labels by their names.

    Opens the files as `tfds.data_source` does, but holds no more than `MAX_OPEN` of them open.

    Raises:
      UserError: no such split, or files of another type.
    """

    def __init__(self, where: TfdsName | TfdsDirectory):
        self._where = where
        self._decode: _Decoder | None = None
        self._open: OrderedDict[int, Any] = OrderedDict()
        info = where.builder().info
        self._check(info)
        try:
            self._files = info.splits[where.split].file_instructions
        except (KeyError, ValueError):
            raise UserError(
                f"{info.full_name} has no split {where.split!r}, but: {', '.join(info.splits)}"
            ) from None
        self.paths = [str(file.filename) for file in self._files]
        self.sizes = np.array([file.take for file in self._files], np.int64)

    def record(self, shard: int, index: int) -> Record:
        if self._decode is None:
            self._decode = _Decoder(self._where.builder().info.features)
        try:
            fields = self._decode(self._opened(shard)[index])
        except Exception as error:  # ArrayRecord and the decoder of features raise many kinds
            raise BadRecordError(f"unreadable: {error}") from error
        key = fields.get("key", self._files[shard].skip + index)
        key = key.decode() if isinstance(key, bytes) else str(key)
        return Record(self.paths[shard], key, fields)

    def _opened(self, shard: int) -> Any:
        from array_record.python.array_record_data_source import (
            ArrayRecordDataSource,
        )

        if shard not in self._open:
            if len(self._open) >= MAX_OPEN:
                _close(self._open.popitem(last=False)[1])
            self._open[shard] = ArrayRecordDataSource(self._files[shard])
        self._open.move_to_end(shard)
        return self._open[shard]

    def _check(self, info: Any) -> None:
        format_name = info.file_format.value if info.file_format else "none"
        if format_name != "array_record":
            raise UserError(
                f"{info.full_name} is stored as {format_name}, expected array_record: prepare it "
                "with --file_format=array_record"
            )

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_decode": None, "_open": OrderedDict()}

    def __del__(self) -> None:
        for source in self.__dict__.get("_open", {}).values():
            _close(source)


class _Decoder:
    """Serialised examples → fields."""

    def __init__(self, features: Any):
        import tensorflow_datasets as tfds

        image, label = tfds.features.Image, tfds.features.ClassLabel
        self._features = features
        self._skip = {
            n: tfds.decode.SkipDecoding() for n, f in features.items() if type(f) is image
        }
        self._labels = {n: f for n, f in features.items() if type(f) is label and f.names}

    def __call__(self, serialised: bytes) -> dict[str, Any]:
        fields = self._features.deserialize_example_np(serialised, decoders=self._skip)
        return fields | {n: f.int2str(int(fields[n])) for n, f in self._labels.items()}


def _close(source: Any) -> None:
    source.__exit__(None, None, None)  # its only way to close a file
