"""A small Flamingo that learns, from real scans, to name digits and to bind new names to them.

Trains on a laptop in minutes. Nothing is frozen: there are no pretrained weights to keep.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    return ConfigDict(
        {
            "model": {
                "encoder": {
                    "kind": "clip",
                    "image_size": 8,
                    "patch_size": 4,
                    "width": 64,
                    "num_layers": 2,
                    "num_heads": 4,
                    "activation": "quick_gelu",
                },
                "connector": {
                    "kind": "perceiver",
                    "num_layers": 1,
                    "num_latents": 4,
                    "num_heads": 4,
                    "head_dim": 16,
                },
                "decoder": {
                    "vocab_size": 40,
                    "num_new_tokens": 2,
                    "width": 64,
                    "num_layers": 3,
                    "num_heads": 2,
                    "position": "rotary",
                    "rotary_fraction": 0.25,
                },
                "fusion": {
                    "kind": "gated_cross_attention",
                    "interval": 1,
                    "num_heads": 4,
                    "head_dim": 16,
                    "gate_init": 1.0,
                },
            },
            "tokenizer": "digits",
            "trainable": ("",),
            "streams": {
                "pairs": {
                    "source": "digits_pairs",
                    "batch_size": 32,
                    "weight": 1.0,
                    "text_length": 10,
                    "num_images": 1,
                },
                "interleaved": {
                    "source": "digits_documents",
                    "options": {
                        "binding_share": 0.75,
                        "upright_share": 0.5,
                        "num_images": 12,
                        "copies_until": 16_000,
                    },
                    "batch_size": 16,
                    "text_length": 38,
                    "num_images": 12,
                },
            },
            "optimizer": {
                "learning_rate": 1.5e-3,
                "schedule": "cosine",
                "warmup_steps": 200,
                "weight_decay": 0.1,
            },
            "num_steps": 4000,
        }
    )
