"""The tiny run with few-shot evaluations that take a while."""

from ml_collections import ConfigDict

from tests import tiny


def get_config() -> ConfigDict:
    config = tiny.get_config()
    config.evaluate_every = 3
    config.few_shot = ConfigDict({"tasks": {"digits": {}}, "shots": (0,), "num_samples": 300})
    return config
