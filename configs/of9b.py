"""OpenFlamingo-9B: MPT-7B (mosaicml/mpt-7b), a cross-attention before every fourth layer."""

from ml_collections import ConfigDict

from flamingo_jax.released import MPT, NEW_MODULES, NEW_TOKENS, released


def get_config() -> ConfigDict:
    return released(
        decoder={
            **MPT,
            "width": 4096,
            "num_layers": 32,
            "num_heads": 32,
        },
        interval=4,
        trainable=NEW_MODULES + NEW_TOKENS,
    )
