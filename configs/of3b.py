"""OpenFlamingo-3B: MPT-1B (mosaicml/mpt-1b-redpajama-200b), one cross-attention per layer."""

from ml_collections import ConfigDict

from flamingo_jax.released import MPT, NEW_MODULES, NEW_TOKENS, released


def get_config() -> ConfigDict:
    return released(
        decoder={
            **MPT,
            "width": 2048,
            "num_layers": 24,
            "num_heads": 16,
            "qk_norm": True,
        },
        interval=1,
        trainable=NEW_MODULES + NEW_TOKENS,
    )
