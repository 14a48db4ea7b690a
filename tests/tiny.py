"""The smallest run: the digits config with a model that compiles in seconds and a frozen part."""

from ml_collections import ConfigDict

from configs import digits


def get_config() -> ConfigDict:
    config = digits.get_config()
    config.model.encoder.update(width=16, num_layers=1, num_heads=2)
    config.model.connector.update(num_latents=2, num_heads=2, head_dim=4)
    config.model.decoder.update(width=16, num_layers=3, num_heads=2)
    config.model.fusion.update(interval=2, num_heads=2, head_dim=4)
    config.trainable = ("^resampler/", "^cross_attention/", "^decoder/embedding/new_rows$")
    config.streams.pairs.update(batch_size=8)
    config.streams.interleaved.update(batch_size=8, text_length=14, num_images=4)
    config.streams.interleaved.options.update(num_images=4, copies_until=100)
    config.optimizer.update(warmup_steps=2)
    config.num_steps = 6
    config.log_every = 1
    config.checkpoint_every = 4
    return config
