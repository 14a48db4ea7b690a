import os
import subprocess
import sys

import pytest

from flamingo_jax.errors import UserError
from flamingo_jax.runtime.xla_flags import PRESETS, xla_flags

START = "import jax; print(len(jax.devices()))"


def start(flags: str) -> subprocess.CompletedProcess:
    environment = os.environ | {"XLA_FLAGS": flags}
    command = [sys.executable, "-c", START]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)


def test_xla_knows_every_flag_of_every_preset():
    """It ends a process that gives it another one."""
    done = start(" ".join(map(xla_flags, PRESETS)))
    assert done.stdout == "1\n", done.stderr
    assert start("--xla_gpu_no_such_flag=true").returncode != 0


def test_an_unknown_preset_names_the_others():
    with pytest.raises(UserError, match="no XLA flag preset 'fast'; there are: data_parallel, "):
        xla_flags("fast")
