"""Runs an evaluation: plan the prompts, ask the model, write the results.

What an example is shown depends on its seed and id alone. Batches are parts of the plan, dealt out
to the processes in turn; each process asks its own devices. So neither the number of devices nor
that of processes, nor an interruption, changes a result.
"""

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import jax
import numpy as np
from jax.experimental import multihost_utils

from flamingo_jax.data.records import BadRecordError
from flamingo_jax.errors import Stopped
from flamingo_jax.evaluate import results
from flamingo_jax.evaluate.config import FewShotConfig, complete, make_task
from flamingo_jax.evaluate.inference import Asker
from flamingo_jax.evaluate.plan import Dataset, Neighbours, plan, read
from flamingo_jax.evaluate.prompts import Prompt
from flamingo_jax.evaluate.results import Folder, Record
from flamingo_jax.evaluate.scores import score_records
from flamingo_jax.evaluate.tasks import DataErrors, Example, Task
from flamingo_jax.generate.base import Model
from flamingo_jax.parallel.multihost import any_process
from flamingo_jax.schema import dump


def evaluate(
    model: Model,
    config: FewShotConfig,
    out: Path,
    neighbours: Neighbours | None = None,
    stopping: Callable[[], bool] = lambda: False,
) -> dict[str, float | None]:
    """Score every task with every number of shots and every seed.

    Directories that are complete are kept; a begun one is gone on with. `stopping` is asked before
    every batch, on every process.

    Returns:
      Scores by "TASK/4-random-seed42", the same on every process.

    Raises:
      UserError: data that is missing or at fault, a prompt the model cannot take, or an `out` with
        results of something else.
      Stopped: on every process, when `stopping` made one leave a batch.
    """
    made: dict[str, float | None] = {}
    if jax.process_index() == 0:
        results.claim(out, _manifest(model, config))
    for name, options in config.tasks.items():
        dataset = read(name, make_task(name, options), config, neighbours)
        for shots in config.shots:
            for seed in config.seeds:
                folder = results.folder_name(
                    shots, config.demonstrations, seed, config.context_images
                )
                _run(model, config, dataset, shots, seed, Folder(out / name / folder), stopping)
                score = json.loads((out / name / folder / "score.json").read_text())
                made[f"{name}/{folder}"] = score["score"]
    return made


def _manifest(model: Model, config: FewShotConfig) -> Record:
    data = {}
    for name, options in config.tasks.items():
        task = make_task(name, options)
        files = sorted({*task.files("train"), *task.files("test")})
        root = Path(config.data_root)
        data[name] = {f: results.hash_of([task.path(root, f)]) for f in files}
    return {
        "format": 1,
        "model": model.facts,
        "data": data,
        "settings": complete(dump(config)),
        "versions": results.versions(),
    }


def _run(
    model: Model,
    config: FewShotConfig,
    dataset: Dataset,
    shots: int,
    seed: int,
    folder: Folder,
    stopping: Callable[[], bool],
) -> None:
    """Answer what is not answered yet; process 0 writes the results."""
    is_complete = folder.is_complete
    _wait("looked", folder)
    if is_complete:
        return
    process, processes = jax.process_index(), jax.process_count()
    if process == 0:
        folder.gather()
    _wait("gathered", folder)
    answered = folder.answered()
    _wait("read", folder)
    root = Path(config.data_root)
    choices = () if dataset.task.max_new_tokens else dataset.task.choices(root)
    planned = plan(dataset, config, shots, seed)
    size = config.batch_size
    asker = Asker(
        model,
        dataset.task,
        root,
        batch_size=size,
        num_images=max((len(prompts[0].images) for prompts in planned), default=0),
        round_length=config.round_length,
    )
    batches = [planned[start : start + size] for start in range(0, len(planned), size)]
    batches = [
        batch
        for batch in batches[process::processes]
        if not all(prompts[0].example.id in answered for prompts in batch)
    ]
    left = False
    with folder.part(process).open("w") as lines:
        for place, batch in enumerate(batches):
            if left := stopping():
                break
            soon = [prompts[0] for later in batches[place : place + 2] for prompts in later]
            asker.pictures.ahead(image for prompt in soon for image in prompt.images)
            for record in answer(asker, dataset.task, choices, batch, config):
                lines.write(json.dumps(record, ensure_ascii=False) + "\n")
            lines.flush()
    if any_process(left):
        raise Stopped
    if process == 0:
        _finish(config, dataset, shots, seed, folder, [p[0].example.id for p in planned])
    _wait("finished", folder)


def answer(
    asker: Asker,
    task: Task,
    choices: Sequence[str],
    batch: Sequence[list[Prompt]],
    config: FewShotConfig,
) -> list[Record]:
    """A record for each example of a batch, without its score.

    Raises:
      UserError: an image that cannot be read, unless faults are skipped.
    """
    problems = DataErrors(config.on_error)
    records: list[Record] = []
    sound = []
    for prompts in batch:
        try:
            for image in prompts[0].images:
                asker.pictures.pixels(image)
        except BadRecordError as error:
            example = prompts[0].example
            problems.found("unreadable image", f"example {example.id}: {error}")
            records.append({"id": example.id, "skipped": "unreadable image"})
        else:
            sound.append(prompts)
    if not sound:
        return records
    first = [prompts[0] for prompts in sound]
    if task.max_new_tokens:
        raw = asker.texts(first, counts_prompt=config.length_penalty_counts_prompt)
        return records + [
            {**_record(prompt), "raw": text} for prompt, text in zip(first, raw, strict=True)
        ]
    orders = [asker.logprobs(order, choices) for order in zip(*sound, strict=True)]
    logprobs_BC = np.mean(orders, axis=0)
    return records + [
        {**_record(prompt), **chosen(prompt.example, choices, logprobs_C, task.positive)}
        for prompt, logprobs_C in zip(first, logprobs_BC, strict=True)
    ]


def _record(prompt: Prompt) -> Record:
    return {
        "id": prompt.example.id,
        "prompt": prompt.text,
        "demonstrations": [shown.id for shown in prompt.demonstrations],
        "images": list(prompt.images),
        "references": list(prompt.example.references),
        **prompt.example.extras,
    }


def chosen(
    example: Example, choices: Sequence[str], logprobs_C: np.ndarray, positive: str | None
) -> Record:
    """The likeliest of an example's choices; the probability of it, or of the positive class."""
    own = example.choices or tuple(choices)
    logprobs = logprobs_C[[choices.index(choice) for choice in own]]
    likely = np.exp(logprobs - np.logaddexp.reduce(logprobs))
    best = own[int(np.argmax(logprobs))]
    return {"raw": best, "probability": float(likely[own.index(positive or best)])}


def _finish(
    config: FewShotConfig,
    dataset: Dataset,
    shots: int,
    seed: int,
    folder: Folder,
    order: Sequence[str],
) -> None:
    answered = folder.answered()
    left_out = dict(dataset.left_out)
    skipped = [answered[key] for key in order if "skipped" in answered[key]]
    for record in skipped:
        left_out[record["skipped"]] = left_out.get(record["skipped"], 0) + 1
    records = [answered[key] for key in order if "skipped" not in answered[key]]
    settings = {
        **{key: value for key, value in dump(config).items() if key not in results.FREE},
        "task": dataset.name,
        "options": dump(dataset.task),
        "shots": shots,
        "seed": seed,
        "demonstrations": config.demonstrations,
        "context_images": config.context_images,
        "skipped_because": left_out,
        "skipped_in_training_data": dataset.left_out_of_train,
    }
    mode, root = config.metric_mode, Path(config.data_root)
    scored = score_records(dataset.task, records, mode, settings, root)
    folder.finish(scored.records, scored.summary, skipped, scored.server)


def _wait(what: str, folder: Folder) -> None:
    """Until all processes are here."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(f"{what} {folder.path}")
