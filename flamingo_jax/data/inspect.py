"""`python -m flamingo_jax.inspect` by its former name."""

import runpy

if __name__ == "__main__":
    runpy.run_module("flamingo_jax.inspect", run_name="__main__", alter_sys=True)
