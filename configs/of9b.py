"""OpenFlamingo-9B: MPT-7B (mosaicml/mpt-7b), a cross-attention before every fourth layer."""

from ml_collections import ConfigDict

from flamingo_jax.train.released import MPT_7B, NEW_MODULES, NEW_TOKENS, released


def get_config() -> ConfigDict:
    return released(decoder=MPT_7B, interval=4, trainable=NEW_MODULES + NEW_TOKENS)
