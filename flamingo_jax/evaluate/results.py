"""The directory of an evaluation's results.

OUT/manifest.json                              weights' and data's hashes, settings, versions
OUT/TASK/4-random-seed42/examples.jsonl        a line per test example
                         skipped.jsonl         those left out while asking, and why
                         score.json
                         submission.json       for a test server, where answers are not public
"""

import hashlib
import importlib.metadata
import json
import shutil
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flamingo_jax.errors import UserError
from flamingo_jax.files import write_text

Record = dict[str, Any]
PACKAGES = ("flamingo-jax", "jax", "flax", "numpy", "transformers", "tokenizers", "pillow")
# Settings that may differ between calls with one directory: they are in the names of what is in it,
# or change no number.
FREE = (
    "tasks", "shots", "seeds", "demonstrations", "context_images",
    "data_root", "feature_cache", "batch_size", "round_length", "mesh",
)  # fmt: skip


def write_json(path: Path, content: Any) -> None:
    write_text(path, json.dumps(content, indent=2, ensure_ascii=False) + "\n")


def write_lines(path: Path, records: Iterable[Record]) -> None:
    write_text(path, "".join(json.dumps(r, ensure_ascii=False) + "\n" for r in records))


def read_lines(path: Path) -> Iterator[Record]:
    """Returns the records of a JSON lines file, but for a line that a killed process left
    unfinished."""
    with path.open() as lines:
        for line in lines:
            if line.endswith("\n"):
                yield json.loads(line)


@dataclass(frozen=True)
class Folder:
    """Results of one task with one kind of prompt, while they are made and afterwards."""

    path: Path

    @property
    def is_complete(self) -> bool:
        return (self.path / "score.json").is_file()

    @property
    def _parts(self) -> Path:
        return self.path / "parts"

    def gather(self) -> None:
        """Brings together what earlier calls have answered, whole lines only."""
        self._parts.mkdir(parents=True, exist_ok=True)
        write_lines(self._parts / "earlier.jsonl", self.answered().values())
        for part in self._parts.glob("process-*.jsonl"):
            part.unlink()

    def answered(self) -> dict[str, Record]:
        """Returns the records so far, by example id."""
        parts = sorted(self._parts.glob("*.jsonl"))
        return {record["id"]: record for part in parts for record in read_lines(part)}

    def part(self, process: int) -> Path:
        """Returns the file that a process appends to."""
        return self._parts / f"process-{process}.jsonl"

    def write(self, records: list[Record], score: Record) -> None:
        write_lines(self.path / "examples.jsonl", records)
        write_json(self.path / "score.json", score)

    def finish(
        self,
        records: list[Record],
        score: Record,
        skipped: list[Record],
        server: list[Record] | None,
    ) -> None:
        """Writes everything, the score last."""
        if skipped:
            write_lines(self.path / "skipped.jsonl", skipped)
        if server is not None:
            write_json(self.path / "submission.json", server)
        self.write(records, score)
        shutil.rmtree(self._parts, ignore_errors=True)


def folder_name(shots: int, demonstrations: str, seed: int, context_images: str) -> str:
    name = f"{shots}-{demonstrations}-seed{seed}"
    return name if context_images == "own" else f"{name}-images={context_images}"


def claim(out: Path, manifest: Mapping[str, Any]) -> None:
    """Writes the manifest, or brings that of earlier calls up to date.

    Raises:
      UserError: `out` holds results of another model, of other data or of other settings.
    """
    path = out / "manifest.json"
    if path.is_file():
        earlier = json.loads(path.read_text())
        differing = sorted(_differing(earlier, manifest))
        if differing:
            raise UserError(
                f"{out} holds results with other {', '.join(differing)}: give those again, or move "
                "the directory away"
            )
        tasks = earlier["settings"]["tasks"] | manifest["settings"]["tasks"]
        manifest = {
            **manifest,
            "data": earlier["data"] | manifest["data"],
            "settings": {**manifest["settings"], "tasks": tasks},
        }
    write_json(path, manifest)


def _differing(earlier: Mapping[str, Any], now: Mapping[str, Any]) -> Iterator[str]:
    if earlier["model"].get("hash") != now["model"].get("hash"):
        yield "model.hash"
    old, new = earlier["settings"], json.loads(json.dumps(now["settings"]))
    for key in new.keys() - set(FREE):
        absent = key == "rices_model" and not (old[key] and new[key])
        if old.get(key) != new[key] and not absent:
            yield f"config.{key}"
    for task in old["tasks"].keys() & new["tasks"].keys():
        if old["tasks"][task] != new["tasks"][task]:
            yield f"config.tasks.{task}"
        if earlier["data"][task] != now["data"][task]:
            yield f"files of {task}"


def versions() -> dict[str, str]:
    return {name: importlib.metadata.version(name) for name in PACKAGES}


def hash_of(paths: Iterable[Path]) -> str:
    """Returns the SHA-256 of files, and of the names in directories."""
    digest = hashlib.sha256()
    for path in paths:
        if path.is_dir():
            names = sorted(str(file.relative_to(path)) for file in path.rglob("*"))
            digest.update("\n".join(names).encode())
        else:
            with path.open("rb") as file:
                digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()
