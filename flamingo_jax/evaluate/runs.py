"""Result directories as they are on disk, and the statistics that a report makes of them."""

import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from flamingo_jax.errors import UserError
from flamingo_jax.evaluate.metrics.roc_auc import roc_auc

Record = Mapping[str, Any]
FOLDER = re.compile(r"(\d+)-(random|rices)-seed(\d+)(?:-images=(shuffled|blank|removed))?")
RESAMPLES = 1000


@dataclass(frozen=True, eq=False)
class Run:
    """One task with one number of shots and one seed.

    Attributes:
      task, shots, demonstrations, seed: as in the directory's name.
      images: "own", or what the demonstrations' images were replaced with.
      summary: of `score.json`: `metric`, `mode`, `score`, `n`, `skipped`.
    """

    folder: Path
    task: str
    shots: int
    demonstrations: str
    seed: int
    images: str
    summary: Record

    @property
    def score(self) -> float:
        return self.summary["score"]

    @cached_property
    def records(self) -> list[Record]:
        """Returns a line of `examples.jsonl` for each test example."""
        with (self.folder / "examples.jsonl").open(encoding="utf-8") as lines:
            return [json.loads(line) for line in lines]

    @cached_property
    def interval(self) -> tuple[float, float]:
        """95 % of the scores of resampled examples lie between; NaN without scores of examples.

        CIDEr's document frequencies are held fixed.
        """
        if self.summary["metric"] == "roc_auc":
            labels = np.array([r["label"] for r in self.records])
            chances = np.array([r["probability"] for r in self.records])
            return _bootstrap(
                len(labels), lambda rows: 100 * _area(labels[rows], chances[rows]), 200
            )
        scores = [r["score"] for r in self.records]
        if None in scores:
            return float("nan"), float("nan")
        return mean_interval(scores)


@dataclass(frozen=True, eq=False)
class Results:
    """An evaluation's output directory."""

    name: str
    manifest: Record
    runs: list[Run]

    @property
    def data_root(self) -> Path:
        settings = self.manifest.get("settings", {})
        return Path(self.manifest.get("data_root") or settings.get("data_root") or ".")

    def tasks(self) -> list[str]:
        return list(dict.fromkeys(run.task for run in self.runs))

    def of(self, **wanted: Any) -> list[Run]:
        """Returns the runs with these attributes."""
        return [r for r in self.runs if all(getattr(r, k) == v for k, v in wanted.items())]


def read_results(out: Path) -> Results:
    """Returns every complete run of an output directory, those without a score left out.

    Raises:
      UserError: no manifest, or not one run with a score.
    """
    manifest = out / "manifest.json"
    if not manifest.is_file():
        raise UserError(f"{out} holds no results (no manifest.json); name an --output of evaluate")
    runs = []
    for path in sorted(out.glob("*/*/score.json")):
        if match := FOLDER.fullmatch(path.parent.name):
            shots, demonstrations, seed, images = match.groups()
            summary = json.loads(path.read_text("utf-8"))
            if summary["score"] is not None:
                task = path.parent.parent.name
                place = path.parent, task, int(shots), demonstrations, int(seed), images or "own"
                runs.append(Run(*place, summary))
    if not runs:
        raise UserError(f"{out} holds no scored run (no TASK/SETTING/score.json with a score)")
    runs.sort(key=lambda r: (r.task, r.demonstrations, r.images, r.shots, r.seed))
    return Results(out.resolve().name, json.loads(manifest.read_text("utf-8")), runs)


@dataclass(frozen=True)
class Estimate:
    """A mean over seeds, their population standard deviation, and an interval by bootstrap.

    Attributes:
      low, high: mean over seeds of the bounds of `Run.interval`.
    """

    mean: float
    deviation: float
    seeds: int
    low: float
    high: float


def estimate(runs: Sequence[Run]) -> Estimate:
    """Returns the estimate of runs that differ in the seed only."""
    scores = np.array([run.score for run in runs])
    intervals = np.array([run.interval for run in runs])
    low, high = intervals.mean(axis=0)
    return Estimate(float(scores.mean()), float(scores.std()), len(runs), float(low), float(high))


def _area(labels: np.ndarray, chances: np.ndarray) -> float:
    if labels.all() or not labels.any():
        return float("nan")
    return roc_auc(labels.tolist(), chances.tolist())


def mean_interval(scores: Iterable[float]) -> tuple[float, float]:
    """Returns the 95 % interval of the mean, by bootstrap over examples."""
    values = np.array(list(scores), np.float64)
    return _bootstrap(len(values), lambda rows: values[rows].mean(), RESAMPLES)


def _bootstrap(
    n: int, statistic: Callable[[np.ndarray], float], resamples: int
) -> tuple[float, float]:
    rng = np.random.default_rng(0)
    found = [statistic(rng.integers(0, n, n)) for _ in range(resamples)]
    low, high = np.nanpercentile(found, (2.5, 97.5))
    return float(low), float(high)


def goodness(record: Record) -> float | None:
    """Returns how good one answer is: its score, or the chance given to the right class."""
    if record.get("score") is not None:
        return record["score"]
    if record.get("probability") is not None and record.get("label") in (0, 1):
        chance = record["probability"]
        return 100 * (chance if record["label"] else 1 - chance)
    return None
