"""OpenFlamingo-4B-Instruct: RedPajama-INCITE-Instruct-3B-v1 (togethercomputer), Flamingo's token
rows random and frozen."""

from ml_collections import ConfigDict

from flamingo_jax.released import NEW_MODULES, released


def get_config() -> ConfigDict:
    return released(
        decoder={
            "position": "rotary",
            "rotary_fraction": 1.0,
            "parallel_residual": False,
            "tie_head": False,
            "width": 2560,
            "num_layers": 32,
            "num_heads": 32,
        },
        interval=2,
        trainable=NEW_MODULES,
    )
