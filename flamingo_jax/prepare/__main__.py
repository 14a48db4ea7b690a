"""`python -m flamingo_jax.prepare`; thin, since spawned workers import it again."""

from flamingo_jax.cli import run
from flamingo_jax.prepare.commands import main

if __name__ == "__main__":
    run(main)
