"""OpenFlamingo-3B-Instruct: MPT-1B tuned on Dolly (mosaicml/mpt-1b-redpajama-200b-dolly)."""

from ml_collections import ConfigDict

from flamingo_jax.train.released import MPT_1B, NEW_MODULES, NEW_TOKENS, released


def get_config() -> ConfigDict:
    return released(decoder=MPT_1B, interval=1, trainable=NEW_MODULES + NEW_TOKENS)
