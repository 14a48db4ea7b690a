"""The losses that a stream may name: `streams.NAME.loss`."""

from collections.abc import Callable, Mapping

from jaxtyping import Array, Float

from flamingo_jax.models.vlm import VisionLanguageModel

# (model, the decoder's output for a stream, the stream) → Σ over its rows, not divided yet
Loss = Callable[[VisionLanguageModel, Array, Mapping[str, Array]], Array]


def next_token(
    model: VisionLanguageModel, x_BLD: Float[Array, "B L D"], stream: Mapping[str, Array]
) -> Float[Array, ""]:
    """Returns Σ weight · −log p(token | what is before it)."""
    return model.weighted_nll(x_BLD, stream["tokens"], stream["weights"])


LOSSES: dict[str, Loss] = {"next_token": next_token}
