"""Every task there is; `openflamingo.py` has the ones of the paper."""

from ml_collections import ConfigDict

from flamingo_jax.evaluate.tasks import TASKS


def get_config() -> ConfigDict:
    return ConfigDict({"tasks": {name: {} for name in TASKS}, "shots": (0, 4), "ensemble": 6})
