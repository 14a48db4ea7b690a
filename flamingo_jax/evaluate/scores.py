"""From the lines of a result directory to its score; nothing but them is needed."""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from flamingo_jax.errors import UserError
from flamingo_jax.evaluate.config import make_task
from flamingo_jax.evaluate.metrics.cider import cider
from flamingo_jax.evaluate.metrics.roc_auc import roc_auc
from flamingo_jax.evaluate.metrics.vqa import Mode, vqa_accuracy
from flamingo_jax.evaluate.results import Folder, Record, read_lines
from flamingo_jax.evaluate.tasks import Task

CIDER_NOTE = (
    "CIDEr weighs n-grams by how rare they are in the references of these very images: scores of "
    "subsets are higher than that of the whole set, and comparable only on the same images"
)


@dataclass(frozen=True)
class Score:
    """Of all examples together, in per cent (CIDEr: × 100), and of each where that has a sense."""

    value: float | None
    each: list[float | None]
    note: str = ""


def _cider(records: Sequence[Record], mode: Mode) -> Score:
    total, each = cider(
        {r["id"]: r["answer"] for r in records}, {r["id"]: r["references"] for r in records}
    )
    return Score(100 * total, [100 * each[r["id"]] for r in records], CIDER_NOTE)


def _vqa_accuracy(records: Sequence[Record], mode: Mode) -> Score:
    each = [vqa_accuracy(r["answer"], _human(r), mode=mode) for r in records]
    return Score(100 * float(np.mean(each)), [100 * float(x) for x in each])


def _human(record: Record) -> Sequence[Any]:
    """Returns the annotators' answers; where annotations have no `answer_id`, all there is of
    them."""
    if "confidences" not in record:
        return record["references"]
    pairs = zip(record["references"], record["confidences"], strict=True)
    return [{"answer": answer, "answer_confidence": sure} for answer, sure in pairs]


def _accuracy(records: Sequence[Record], mode: Mode) -> Score:
    each: list[float | None] = [100.0 * (r["answer"] in r["references"]) for r in records]
    return Score(float(np.mean([x for x in each if x is not None])), each)


def _roc_auc(records: Sequence[Record], mode: Mode) -> Score:
    value = roc_auc([r["label"] for r in records], [r["probability"] for r in records])
    one_class = math.isnan(value)
    note = "not defined: all examples are of one class" if one_class else ""
    return Score(None if one_class else 100 * value, [None] * len(records), note)


@dataclass(frozen=True)
class Scored:
    """Lines with answers and scores, `score.json`, and the file for a test server, if any."""

    records: list[Record]
    summary: Record
    server: list[Record] | None


METRICS: dict[str, Callable[[Sequence[Record], Mode], Score]] = {
    "cider": _cider,
    "vqa_accuracy": _vqa_accuracy,
    "accuracy": _accuracy,
    "roc_auc": _roc_auc,
}


def score_records(
    task: Task,
    records: Sequence[Record],
    mode: Mode,
    settings: Mapping[str, Any],
    data: Path | None = None,
) -> Scored:
    """Returns the contents of a result directory from raw answers.

    Args:
      task: whose post-processing and metric.
      records: lines of `examples.jsonl`, with or without `answer` and `score`.
      mode: of VQA accuracy.
      settings: recorded beside the score; what was left out is counted in `skipped_because`.
      data: the data root; None: no file for a test server is made.
    """
    processed: list[Record] = [
        {**r, "answer": task.process(r["raw"]) if task.max_new_tokens else r["raw"]}
        for r in records
    ]
    public = bool(processed) and all(r["references"] for r in processed)
    nothing = Score(None, [None] * len(processed), "no public answers")
    score = METRICS[task.metric](processed, mode) if public else nothing
    scored = [{**r, "score": each} for r, each in zip(processed, score.each, strict=True)]
    summary = {
        "metric": task.metric,
        "mode": mode,
        "score": score.value,
        "n": len(scored),
        "skipped": sum(settings["skipped_because"].values()),
        "groups": _groups(scored),
        "note": " ".join(note for note in (score.note, task.note) if note),
        "settings": dict(settings),
    }
    server = None
    if data is not None and not public:
        server = task.submission(data, {r["id"]: r["answer"] for r in processed})
    return Scored(scored, summary, server)


def _groups(records: Sequence[Record]) -> dict[str, dict[str, Any]]:
    """Returns the mean score and number of the examples of each group, where a task has groups."""
    by_group: dict[str, list[float]] = {}
    for record in records:
        for group in record.get("groups", ()):
            by_group.setdefault(group, []).append(record["score"])
    return {g: {"score": float(np.mean(x)), "n": len(x)} for g, x in sorted(by_group.items())}


def rescore(out: Path, mode: Mode | None = None) -> dict[str, float | None]:
    """Scores the recorded answers of every complete directory again, without a model or data.

    Args:
      out: of an evaluation.
      mode: of VQA accuracy; None: as before.

    Returns:
      Scores by "TASK/4-random-seed42".

    Raises:
      UserError: `out` holds no results.
    """
    made = {}
    for path in sorted(out.glob("*/*/score.json")):
        before, folder = json.loads(path.read_text()), Folder(path.parent)
        settings = before["settings"]
        task = make_task(settings["task"], settings["options"])
        records = list(read_lines(folder.path / "examples.jsonl"))
        scored = score_records(task, records, mode or before["mode"], settings)
        folder.write(scored.records, scored.summary)
        made[f"{settings['task']}/{folder.path.name}"] = scored.summary["score"]
    if not made:
        raise UserError(f"{out} holds no results (no TASK/SETTING/score.json): give an --output")
    return made
