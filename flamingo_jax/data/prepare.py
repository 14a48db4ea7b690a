"""`python -m flamingo_jax.prepare` by its former name."""

import runpy

if __name__ == "__main__":
    runpy.run_module("flamingo_jax.prepare", run_name="__main__", alter_sys=True)
