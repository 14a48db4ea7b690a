"""Train a Flamingo: `python -m flamingo_jax.train --config=configs/digits.py --workdir=DIR`.

Run the same command again to go on from the last checkpoint. SIGTERM, SIGUSR1 or Ctrl-C saves and
exits with 0. On several hosts, start it once per host (docs/scaling.md).
"""

from collections.abc import Sequence

from flamingo_jax import cli
from flamingo_jax.parallel import multihost
from flamingo_jax.train.config import TrainConfig, complete
from flamingo_jax.train.loop import run
from flamingo_jax.train.start_up import StartupTimer, process_began


def main(argv: Sequence[str]) -> None:
    start_up = StartupTimer(process_began())
    config = cli.parse_config(argv, TrainConfig, complete)
    with multihost.initialized(config.dead_after_seconds):
        start_up.done("imports")
        run(config, cli.workdir(), start_up=start_up)


if __name__ == "__main__":
    cli.run(main)
