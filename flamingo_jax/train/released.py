"""What the released OpenFlamingo v2 models have in common (arXiv 2308.01390).

`configs/of*.py` say what sets each one apart.
"""

from typing import Any

from ml_collections import ConfigDict

NEOX_TOKENS = 50_277  # of the GPT-NeoX tokenizer, which all of them use; Flamingo's tokens follow
VISION = {  # OpenAI's CLIP ViT-L/14
    "image_size": 224,
    "patch_size": 14,
    "width": 1024,
    "num_layers": 24,
    "num_heads": 16,
    "activation": "quick_gelu",
    "projection_width": 768,
}
VOCABULARY = {"vocab_size": NEOX_TOKENS, "num_new_tokens": 2, "num_pad_tokens": 1}
MPT = {
    "position": "alibi",
    "norm_bias": False,
    "attention_bias": False,
    "mlp_bias": False,
}
MPT_1B = {**MPT, "width": 2048, "num_layers": 24, "num_heads": 16, "qk_norm": True}
MPT_7B = {**MPT, "width": 4096, "num_layers": 32, "num_heads": 32}
REDPAJAMA_3B = {
    "position": "rotary",
    "rotary_fraction": 1.0,
    "parallel_residual": False,
    "tie_head": False,
    "width": 2560,
    "num_layers": 32,
    "num_heads": 32,
}
OPTIMIZER = {
    "learning_rate": 1e-4,
    "schedule": "constant",
    "warmup_steps": 1875,
    "beta1": 0.9,
    "beta2": 0.999,
    "eps": 1e-8,
    "weight_decay": 0.1,
    "decay": ("^cross_attention/",),
    "clip_norm": 1.0,
}
NEW_MODULES = ("^resampler/", "^cross_attention/")
NEW_TOKENS = ("^decoder/embedding/new_rows$",)
GPUS = 64


def released(decoder: dict[str, Any], interval: int, trainable: tuple[str, ...]) -> ConfigDict:
    """Returns a config of the paper's training.

    Args:
      decoder: settings of the language model, but for its vocabulary.
      interval: decoder layers per cross-attention.
      trainable: patterns of trained parameters.
    """
    batch = 32 * GPUS  # interleaved rows; twice as many pairs
    return ConfigDict(
        {
            "model": {
                "encoder": VISION,
                "connector": {"num_layers": 6, "num_latents": 64, "num_heads": 8, "head_dim": 64},
                "decoder": {**VOCABULARY, **decoder},
                "fusion": {
                    "interval": interval,
                    "num_heads": 8,
                    "head_dim": 64,
                    "feed_forward_everywhere": True,
                },
                "dtype": "bfloat16",
                "remat": "full",
            },
            "tokenizer": "tokenizer.json",
            "trainable": trainable,
            "streams": _streams(batch),
            "optimizer": OPTIMIZER,
            # Weights are gathered inside of a node: right for any number of nodes of 8 GPUs, and
            # for TPU slices of 8 chips or more. docs/scaling.md has a table.
            "mesh": {"data": -1, "fsdp": 8, "tensor": 1},
            "num_steps": 60_000_000 // batch,
        }
    )


def _streams(batch: int) -> dict[str, Any]:
    """Returns the settings of pairs and interleaved documents."""
    return {
        "laion": {
            "source": "pairs",
            "options": {"shards": "data/laion/*.tar"},
            "batch_size": 2 * batch,
            "weight": 0.2,
            "text_length": 32,
            "num_images": 1,
        },
        "mmc4": {
            "source": "mmc4",
            "options": {"shards": "data/mmc4/*.tar"},
            "single_image_share": 0.5,
            "min_images": 1,
            "batch_size": batch,
            "weight": 1.0,
            "text_length": 256,
            "num_images": 6,
        },
    }
