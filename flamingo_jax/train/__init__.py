"""Training: `run(TrainConfig(...), workdir)`, or `python -m flamingo_jax.train`."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from flamingo_jax.train.config import TrainConfig as TrainConfig
    from flamingo_jax.train.loop import run as run

__all__ = ["TrainConfig", "run"]


def __getattr__(name: str) -> Any:
    # Lazily, so that what needs one file of this room does not import JAX and the models.
    if name == "run":
        from flamingo_jax.train.loop import run

        return run
    if name == "TrainConfig":
        from flamingo_jax.train.config import TrainConfig

        return TrainConfig
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
