import os
import subprocess
import sys
from pathlib import Path

import jax
import pytest

from flamingo_jax.runtime import compilation_cache
from flamingo_jax.runtime.compilation_cache import (
    default_folder,
    keep_compiled_programs,
    keep_only_what_is_shared,
)
from flamingo_jax.runtime.xla_flags import xla_flags

NAMES = ("jax_compilation_cache_dir", *compilation_cache.VARIABLES)


@pytest.fixture
def home(monkeypatch, tmp_path):
    """A place for programs that nobody chose; the settings are put back."""
    before = {name: getattr(jax.config, name) for name in NAMES}
    for name in NAMES:
        monkeypatch.delenv(name.upper(), raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert jax.config.jax_enable_compilation_cache
    yield tmp_path
    for name, value in before.items():
        jax.config.update(name, value)


def test_programs_are_kept_by_default_and_their_size_is_bounded(home):
    keep_compiled_programs()
    assert jax.config.jax_compilation_cache_dir == str(default_folder())
    assert default_folder().is_relative_to(home / "cache/flamingo_jax/compiled")
    assert jax.config.jax_compilation_cache_max_size == compilation_cache.MAX_BYTES


@pytest.mark.parametrize("chosen", ["elsewhere", ""])
def test_what_the_environment_says_goes_first(home, monkeypatch, chosen):
    before = jax.config.jax_compilation_cache_dir
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", chosen)
    keep_compiled_programs()
    assert jax.config.jax_compilation_cache_dir == before
    assert not (home / "cache").exists()


def test_programs_that_cannot_be_written_are_not_kept(home, monkeypatch):
    before = jax.config.jax_compilation_cache_dir
    monkeypatch.setenv("XLA_FLAGS", xla_flags("cpu_training"))
    keep_compiled_programs()
    assert jax.config.jax_compilation_cache_dir == before


def test_a_setting_of_the_environment_is_left(home, monkeypatch):
    monkeypatch.setenv("JAX_COMPILATION_CACHE_MAX_SIZE", "7")
    before = jax.config.jax_compilation_cache_max_size
    keep_compiled_programs()
    assert jax.config.jax_compilation_cache_max_size == before


def test_a_folder_that_cannot_be_written_is_noted(home, monkeypatch, capsys):
    before = jax.config.jax_compilation_cache_dir
    (home / "cache").write_text("a file")
    keep_compiled_programs()
    assert jax.config.jax_compilation_cache_dir == before
    note = capsys.readouterr().err
    assert note.count("\n") == 1
    assert note.startswith("note: compiled programs are not kept on disk (Not a directory)")


def test_what_a_kill_left_half_written_is_dropped(home):
    folder = default_folder()
    folder.mkdir(parents=True)
    for name in ("jit_whole-1-cache", "jit_whole-1-atime", "jit_half-2-cache"):
        (folder / name).write_bytes(b"")
    keep_compiled_programs()
    assert sorted(p.name for p in folder.iterdir()) == ["jit_whole-1-atime", "jit_whole-1-cache"]


def test_several_processes_keep_programs_in_a_folder_that_was_named_only(home, monkeypatch):
    keep_compiled_programs()
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(home))
    keep_only_what_is_shared()
    assert jax.config.jax_compilation_cache_dir == str(default_folder())
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR")
    keep_only_what_is_shared()
    assert jax.config.jax_compilation_cache_dir is None


COMMAND = """
import jax
import jax.numpy as jnp
from flamingo_jax import cli

def main(argv):
    events = []
    jax.monitoring.register_event_listener(lambda event, **_: events.append(event))
    jax.jit(lambda x: jnp.sort(x @ x))(jnp.ones((8, 8)))
    print(events.count("/jax/compilation_cache/cache_hits") > 0)

cli.run(main)
"""


def test_a_command_finds_what_the_last_one_compiled(tmp_path):
    env = {k: v for k, v in os.environ.items() if k not in ("JAX_COMPILATION_CACHE_DIR", "HOME")}
    env |= {
        "PYTHONPATH": str(Path(__file__).parents[2]),
        "XDG_CACHE_HOME": str(tmp_path),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }
    for found in ("False", "True"):
        done = subprocess.run(
            [sys.executable, "-c", COMMAND], env=env, capture_output=True, text=True, timeout=120
        )
        assert (done.stdout.strip(), done.stderr) == (found, "")
    assert list((tmp_path / "flamingo_jax/compiled").rglob("*-cache"))
