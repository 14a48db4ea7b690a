"""A tiny run of one stream, with layers wide enough to be split over devices."""

from ml_collections import ConfigDict

from tests import tiny


def get_config() -> ConfigDict:
    config = tiny.get_config()
    config.model.decoder.update(width=64, num_heads=4, num_layers=2)
    config.model.vision.update(num_heads=4)
    config.model.resampler.update(num_heads=4)
    config.model.cross_attention.update(num_heads=4, head_dim=16)
    del config.streams.pairs
    config.num_steps = 40
    config.checkpoint_every = 10
    config.keep_checkpoints = 4
    return config
