"""Puts what stands beside the package in the repository into the installed package.

So an installed package has `flamingo_jax/configs` and `flamingo_jax/launch`. `pyproject.toml` says
everything else.
"""

from functools import partial

from setuptools import find_namespace_packages, setup

BESIDE = ("configs", "launch")
find = partial(find_namespace_packages, exclude=["*__pycache__"])

setup(
    packages=[
        *find(include=["flamingo_jax", "flamingo_jax.*"]),
        *(f"flamingo_jax.{name}" for name in BESIDE),
        *(f"flamingo_jax.{name}.{inner}" for name in BESIDE for inner in find(name)),
    ],
    package_dir={f"flamingo_jax.{name}": name for name in BESIDE},
)
