import jax
import pytest


@pytest.fixture(autouse=True)
def _other_tests_keep_their_programs():
    """Planning turns the compilation cache off, for good: a command of its own does."""
    before = jax.config.jax_enable_compilation_cache
    yield
    jax.config.update("jax_enable_compilation_cache", before)
