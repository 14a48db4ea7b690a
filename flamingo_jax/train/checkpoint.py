"""Checkpoints: what training changed, and where the data stood. Orbax does the work."""

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils

from flamingo_jax.errors import UserError
from flamingo_jax.files import write_text
from flamingo_jax.models.vlm import upgraded
from flamingo_jax.parallel import multihost
from flamingo_jax.train.fingerprint import differing, fingerprints
from flamingo_jax.train.step import TrainState

# Keys that may change between the parts of one run: they do not change its numbers.
FREE_KEYS = (
    "log_every",
    "checkpoint_every",
    "keep_checkpoints",
    "keep_every",
    "watchdog_seconds",
    "dead_after_seconds",
    "profile_steps",
    "evaluation",
    "evaluate_every",
    "few_shot",
    "mesh",
    "data",
)


class Checkpointer:
    """Saves in the background. Every method is for all processes together.

    Args:
      workdir: of the run; checkpoints are the directories `checkpoints/STEP` in it.
      keep: how many of the last checkpoints stay; None: only to read from.
      keep_every: checkpoints of steps that divide by it stay, too; 0: no others.
    """

    def __init__(self, workdir: Path, *, keep: int | None = None, keep_every: int = 0):
        self._folder = workdir.resolve() / "checkpoints"
        self._damaged = workdir.resolve() / "damaged_checkpoints"
        writes = keep is not None
        options = ocp.CheckpointManagerOptions(
            max_to_keep=keep,
            keep_period=keep_every or None,
            create=writes,
            cleanup_tmp_directories=writes,  # what a killed process left half-written
        )
        self._manager = ocp.CheckpointManager(self._folder, options=options)
        self._saving: int | None = None  # the step whose save has not been found finished

    def save(self, step: int, state: TrainState, facts: Mapping[str, Any]) -> None:
        """Begin to save, after the previous save; does nothing where the step is saved already.

        `facts` is what else to keep, as JSON.

        Raises:
          UserError: the previous save failed, or this one cannot begin.
        """
        self.wait()
        if step in self._manager.all_steps():
            return
        facts = {**facts, "step": step, "state": fingerprints(_as_dict(state))}
        self._saving = step
        try:
            self._manager.save(
                step,
                args=ocp.args.Composite(
                    state=ocp.args.StandardSave(_as_dict(state)), facts=ocp.args.JsonSave(facts)
                ),
            )
        except Exception as error:
            raise self._failed(error) from error

    @property
    def failure(self) -> UserError | None:
        """Why the save in the background failed. Does not wait for one that goes on."""
        if self._saving is None or self._manager.is_saving_in_progress():
            return None
        try:
            self.wait()
        except UserError as error:
            return error
        return None

    def wait(self) -> None:
        """Until the last save is complete. UserError: it failed."""
        try:
            self._manager.wait_until_finished()
        except Exception as error:
            raise self._failed(error) from error
        self._saving = None

    def _failed(self, error: Exception) -> UserError:
        step, self._saving = self._saving, None
        kept = sorted(int(p.name) for p in self._folder.iterdir() if p.name.isdecimal())
        last = f"the last good one is of step {kept[-1]}" if kept else "there is none before it"
        return UserError(f"the checkpoint of step {step} could not be saved in {self._folder}: "
                         f"{_brief(error)}; {last}")  # fmt: skip

    def restore(self, like: TrainState) -> tuple[TrainState, dict[str, Any]] | None:
        """The newest sound checkpoint and its facts; None: there is no checkpoint at all.

        One that cannot be read, or whose arrays are not bit for bit what was saved, is skipped
        with a warning.

        Args:
          like: shapes with the shardings to restore into, on any mesh.

        Raises:
          UserError: there are checkpoints, but none is sound.
        """
        steps = sorted(self._manager.all_steps(), reverse=True)
        for step in steps:
            found, problem = self._read(step, like)
            if problem is None:
                return found
            print(f"warning: checkpoint {self._folder / str(step)} is damaged and skipped: "
                  f"{problem}", file=sys.stderr, flush=True)  # fmt: skip
        if not steps:
            return None
        raise UserError(
            f"no checkpoint in {self._folder} can be read; to start anew, choose another --workdir"
        )

    def _read(self, step: int, like: TrainState) -> tuple[Any, str | None]:
        problem = None
        try:
            restored = self._manager.restore(
                step,
                args=ocp.args.Composite(
                    state=ocp.args.StandardRestore(_as_dict(like)), facts=ocp.args.JsonRestore()
                ),
            )
        except Exception as error:  # Orbax and its readers raise whatever they meet
            problem = _brief(error)
        if multihost.any_process(problem is not None):
            return None, problem or "another process could not read it"
        wrong = differing(restored.facts["state"], fingerprints(restored.state))
        if wrong:
            return None, f"{wrong[0]} is not what was saved ({len(wrong)} arrays differ)"
        return (TrainState(**restored.state), restored.facts), None

    def quarantine_after(self, step: int) -> None:
        """Move later checkpoints, which were found damaged, where no save meets them."""
        later = [s for s in self._manager.all_steps() if s > step]
        if not later:
            return
        if multihost.is_lead_process():
            self._damaged.mkdir(exist_ok=True)
            for number in later:
                target = self._damaged / str(number)
                while target.exists():
                    target = target.with_name(target.name + "_")
                (self._folder / str(number)).rename(target)
        multihost_utils.sync_global_devices("damaged checkpoints set aside")
        self._manager.reload()

    def trained_params(
        self, shapes: Mapping[str, Any]
    ) -> tuple[dict[str, np.ndarray], dict[str, Any]] | None:
        """The trained parameters of the latest checkpoint, without the optimizer's state, and its
        facts; None: there is no checkpoint.

        Args:
          shapes: of all that was trained, by path.

        Raises:
          UserError: the checkpoint is damaged.
        """
        step = self._manager.latest_step()
        if step is None:
            return None
        folder = self._manager.directory / str(step)
        args = ocp.args.PyTreeRestore(
            {"params": dict(shapes)},
            restore_args={"params": dict.fromkeys(shapes, ocp.RestoreArgs(np.ndarray))},
            partial_restore=True,
        )
        try:
            facts = json.loads((folder / "facts" / "metadata").read_text())
            with ocp.PyTreeCheckpointer() as reader:
                restored = {"params": reader.restore(folder / "state", args=args)["params"]}
        except Exception as error:  # Orbax and its readers raise whatever they meet
            raise UserError(f"checkpoint {folder} is damaged: {_brief(error)}") from None
        saved = {path: facts["state"].get(path, "") for path in fingerprints(restored)}
        if wrong := differing(saved, fingerprints(restored)):
            raise UserError(f"checkpoint {folder} is damaged: {wrong[0]} is not what was saved")
        return restored["params"], facts

    def close(self) -> None:
        """Wait for the last save. UserError: it failed."""
        try:
            self.wait()
        finally:
            self._manager.close()


def _as_dict(state: TrainState) -> dict[str, Any]:
    return {name: getattr(state, name) for name in TrainState.__dataclass_fields__}


def _brief(error: BaseException) -> str:
    """The first cause of an error; TensorStore puts it last, before the places in its source."""
    while error.__cause__ is not None:
        error = error.__cause__
    message = " ".join(str(error).split()).split(" [")[0] or type(error).__name__
    return message if len(message) <= 200 else "… " + message[-200:]


def check_frozen(facts: Mapping[str, Any], frozen: Mapping[str, str]) -> None:
    """UserError: a checkpoint was trained beside other frozen weights than these.

    Args:
      facts: of the checkpoint.
      frozen: `fingerprints` of the frozen weights at hand.
    """
    wrong = differing(facts["frozen"], dict(frozen))
    if wrong:
        raise UserError(
            f"the frozen weights are not those that the checkpoint of step {facts['step']} was "
            f"trained with: {len(wrong)} differ, such as {wrong[0]}. Give config.init_from the "
            "model directory that the run began with"
        )


def check_same_run(workdir: Path, config: Mapping[str, Any]) -> None:
    """Make `workdir` this run's, or check that it is. A config that never made a step is replaced.

    Raises:
      UserError: it cannot be written, or holds a run with another config (naming what differs).
    """
    path = workdir / "config.json"
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        probe = workdir / f".write-test-{jax.process_index()}"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise UserError(
            f"workdir {workdir} cannot be written ({error.strerror}); choose another --workdir"
        ) from None
    wanted = json.loads(json.dumps(config))
    if path.exists() and _has_begun(workdir):
        stored = json.loads(path.read_text())
        stored |= {"model": upgraded(stored["model"])} if "model" in stored else {}
        for stream in stored.get("streams", {}).values():
            stream.setdefault("loss", "next_token")  # the only one there was
        found, given = _flat(stored), _flat(wanted)
        changed = [
            f"{key} was {found.get(key, 'absent')!r}, is now {given.get(key, 'absent')!r}"
            for key in sorted(found.keys() | given.keys())
            if found.get(key) != given.get(key) and key.split(".")[0] not in FREE_KEYS
        ]
        if changed:
            more = f" and {len(changed) - 3} more" if len(changed) > 3 else ""
            raise UserError(
                f"workdir {workdir} holds a run with another config: {'; '.join(changed[:3])}"
                f"{more}. Choose another --workdir, or give the config it was started with"
            )
    if not multihost.is_lead_process():
        return
    write_text(path, json.dumps(wanted, indent=2) + "\n")


def _has_begun(workdir: Path) -> bool:
    """Whether a run made a step here: it left a checkpoint or a line of metrics."""
    metrics = workdir / "metrics.jsonl"  # empty until the first line
    return any((workdir / "checkpoints").glob("[0-9]*")) or (
        metrics.exists() and metrics.stat().st_size > 0
    )


def _flat(tree: Any, prefix: str = "") -> dict[str, Any]:
    if isinstance(tree, dict):
        return {
            path: leaf
            for key, value in tree.items()
            for path, leaf in _flat(value, f"{prefix}.{key}" if prefix else key).items()
        }
    return {prefix: tree}
