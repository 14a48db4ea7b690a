"""Flamingo in JAX."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from flamingo_jax.generate.loading import load as load

__version__ = "0.1.0"
__all__ = ["load"]


def __getattr__(name: str) -> Any:
    # Lazily: worker processes that only read data start without the model's imports.
    if name == "load":
        from flamingo_jax.generate.loading import load

        return load
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
