"""What a store gives a parser, and the two ways in which a record gives no row."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Record:
    """One stored record.

    Attributes:
      shard: the file it lies in.
      key: what it is called there.
      fields: its parts by name: a tar's files by extension, a JSON line's or a dataset's entries.
      root: the directory that relative file names in the fields start from; "": none.
      epoch: how many times the records have been gone through before.
    """

    shard: str
    key: str
    fields: Mapping[str, Any]
    root: str = ""
    epoch: int = 0


class BadRecordError(Exception):
    """A record is damaged or empty. Another one is drawn, and the log says why.

    Attributes:
      shard, key: of the record, once it is known which one it is.
    """

    shard = key = ""

    def at(self, shard: str, key: str) -> "BadRecordError":
        self.shard, self.key = shard, key
        return self


class RejectedError(Exception):
    """A sound record is left out by a setting, such as a threshold. Another one is drawn."""
