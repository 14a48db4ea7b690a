"""OpenFlamingo-3B-Instruct: MPT-1B tuned on Dolly (mosaicml/mpt-1b-redpajama-200b-dolly)."""

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
