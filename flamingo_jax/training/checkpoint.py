"""Checkpoints: what training changed, and where the data stood. Orbax does the work."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from flamingo_jax.errors import UserError
from flamingo_jax.training.step import TrainState

# Keys that may change between the parts of one run: they do not change its numbers.
FREE_KEYS = ("log_every", "checkpoint_every", "keep_checkpoints", "evaluation", "mesh", "data")


class Checkpointer:
    """Saves in the background and keeps the last `keep` checkpoints."""

    def __init__(self, workdir: Path, *, keep: int):
        options = ocp.CheckpointManagerOptions(max_to_keep=keep, create=True)
        self._manager = ocp.CheckpointManager(workdir.resolve() / "checkpoints", options=options)

    @property
    def latest_step(self) -> int | None:
        return self._manager.latest_step()

    def save(self, state: TrainState, data_state: Mapping[str, Any]) -> None:
        """Begin to save; the previous save must have succeeded, or its error is raised here."""
        step = int(state.step)
        if step in self._manager.all_steps():
            return
        self._manager.save(
            step,
            args=ocp.args.Composite(
                state=ocp.args.StandardSave(_as_dict(state)),
                data=ocp.args.JsonSave(dict(data_state)),
            ),
        )

    def restore(self, like: TrainState) -> tuple[TrainState, dict[str, Any]]:
        """The latest checkpoint, laid out as `like` (arrays, or shapes with shardings)."""
        restored = self._manager.restore(
            self.latest_step,
            args=ocp.args.Composite(
                state=ocp.args.StandardRestore(_as_dict(like)), data=ocp.args.JsonRestore()
            ),
        )
        return TrainState(**restored.state), restored.data

    def trained_params(self, shapes: Mapping[str, Any]) -> dict[str, np.ndarray]:
        """The trained parameters of the latest checkpoint, without the optimizer's state.

        Args:
          shapes: of all that was trained, by path.
        """
        folder = self._manager.directory / str(self.latest_step) / "state"
        args = ocp.args.PyTreeRestore(
            {"params": dict(shapes)},
            restore_args={"params": dict.fromkeys(shapes, ocp.RestoreArgs(np.ndarray))},
            partial_restore=True,
        )
        with ocp.PyTreeCheckpointer() as reader:
            return reader.restore(folder, args=args)["params"]

    def close(self) -> None:
        """Wait for the last save."""
        self._manager.wait_until_finished()
        self._manager.close()


def _as_dict(state: TrainState) -> dict[str, Any]:
    return {name: getattr(state, name) for name in TrainState.__dataclass_fields__}


def claim_workdir(workdir: Path, config: Mapping[str, Any]) -> None:
    """Make `workdir` this run's, or check that it is.

    Raises:
      UserError: it cannot be written, or holds a run with another config (naming what differs).
    """
    path = workdir / "config.json"
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        probe = workdir / ".write-test"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise UserError(
            f"workdir {workdir} cannot be written ({error.strerror}); choose another --workdir"
        ) from None
    wanted = json.loads(json.dumps(config))
    if path.exists():
        found, given = _flat(json.loads(path.read_text())), _flat(wanted)
        differing = [
            f"{key} was {found.get(key, 'absent')!r}, is now {given.get(key, 'absent')!r}"
            for key in sorted(found.keys() | given.keys())
            if found.get(key) != given.get(key) and key.split(".")[0] not in FREE_KEYS
        ]
        if differing:
            more = f" and {len(differing) - 3} more" if len(differing) > 3 else ""
            raise UserError(
                f"workdir {workdir} holds a run with another config: {'; '.join(differing[:3])}"
                f"{more}. Choose another --workdir, or give the config it was started with"
            )
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(wanted, indent=2) + "\n")
    temporary.replace(path)


def _flat(tree: Any, prefix: str = "") -> dict[str, Any]:
    if isinstance(tree, dict):
        return {
            path: leaf
            for key, value in tree.items()
            for path, leaf in _flat(value, f"{prefix}.{key}" if prefix else key).items()
        }
    return {prefix: tree}


def state_shapes(state: TrainState, shardings: Any) -> TrainState:
    """`state` as shapes with shardings, to restore into."""
    return jax.tree.map(
        lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), state, shardings
    )
