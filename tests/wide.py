"""A tiny run of one stream, with layers wide enough to be split over devices."""

from pathlib import Path

import numpy as np
from ml_collections import ConfigDict

from flamingo_jax.models.vlm import ModelConfig
from flamingo_jax.weights.model_directory import Provenance, write_directory
from flamingo_jax.weights.views import LazyArray
from tests import tiny


def get_config() -> ConfigDict:
    config = tiny.get_config()
    config.model.decoder.update(width=64, num_heads=4, num_layers=2)
    config.model.encoder.update(num_heads=4)
    config.model.connector.update(num_heads=4)
    config.model.fusion.update(num_heads=4, head_dim=16)
    del config.streams.pairs
    config.num_steps = 20
    config.checkpoint_every = 5
    config.keep_checkpoints = 4
    return config


def write_model(folder: Path, model: ModelConfig) -> str:
    """Random weights as a model directory; to begin with them costs no compilation."""
    from tests.conftest import random_params  # it sets the environment of tests, not of runs

    weights = {p: np.asarray(w) for p, w in random_params(model).items()}
    leaves = {p: LazyArray(w.shape, (w,), stacked=False) for p, w in weights.items()}
    write_directory(folder, model, Provenance("mpt", {}, {}, {}), leaves)
    return str(folder)
