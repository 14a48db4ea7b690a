"""OpenFlamingo-4B: RedPajama-INCITE-Base-3B-v1 (togethercomputer), Flamingo's token rows random and
frozen."""

from ml_collections import ConfigDict

from flamingo_jax.train.released import NEW_MODULES, REDPAJAMA_3B, released


def get_config() -> ConfigDict:
    return released(decoder=REDPAJAMA_3B, interval=2, trainable=NEW_MODULES)
