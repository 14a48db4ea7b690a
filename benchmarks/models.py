"""Models to measure, with random weights: those of the reference figures, and released shapes."""

from flamingo_jax.models.connectors.perceiver import PerceiverConfig
from flamingo_jax.models.decoder import DecoderConfig
from flamingo_jax.models.fusion.gated_cross_attention import GatedCrossAttentionConfig
from flamingo_jax.models.vision.clip import ClipVisionConfig
from flamingo_jax.models.vlm import ModelConfig

# Of the decoder: width, layers, heads, vocabulary, interval of cross-attention.
SIZES = {
    "small": (512, 8, 8, 8192, 2),
    "tiny": (64, 4, 8, 512, 2),
    "3b": (2048, 24, 16, 50_280, 1),
    "9b": (4096, 32, 32, 50_280, 4),
}
CLIP = ClipVisionConfig(width=1024, num_layers=24, num_heads=16, activation="quick_gelu")


def model_config(size: str, layers: int = 0) -> ModelConfig:
    """Returns an MPT between whose layers the cross-attention stands, with open gates.

    "small" has the shapes for which the original's figures are known; "3b" and "9b" those of
    OpenFlamingo, in bfloat16.

    Args:
      size: a key of `SIZES`.
      layers: of the decoder, rather than its own number: a multiple of the interval.
    """
    width, own_layers, heads, vocabulary, interval = SIZES[size]
    released = size in ("3b", "9b")
    vision = ClipVisionConfig(
        width=width // 2, num_layers=3 * own_layers // 4, num_heads=4, image_size=112, patch_size=14
    )
    return ModelConfig(
        encoder=CLIP if released else vision,
        decoder=DecoderConfig(
            width=width,
            num_layers=layers or own_layers,
            num_heads=heads,
            vocab_size=vocabulary - 2,
            num_new_tokens=2,
            position="alibi",
            norm_bias=False,
            attention_bias=False,
            mlp_bias=False,
        ),
        connector=PerceiverConfig(num_layers=2) if size == "tiny" else PerceiverConfig(),
        fusion=GatedCrossAttentionConfig(
            interval=interval, gate_init=0.5, feed_forward_everywhere=True
        ),
        dtype="bfloat16" if released else "float32",
    )
