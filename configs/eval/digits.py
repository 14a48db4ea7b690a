"""The digits demo's evaluation: `python -m flamingo_jax.evaluate --workdir=DIR` of a digits run.

It names held-out digits, and binds made-up names to them; results.json, a plot and a picture of
prompts come into the run's directory. `--config=configs/eval/digits.py` is needed to change a
setting only, such as `--config.tasks.digit_names.num_prompts=100`.
"""

from ml_collections import ConfigDict

from flamingo_jax.train.demo import SETTINGS


def get_config() -> ConfigDict:
    return ConfigDict(SETTINGS)
