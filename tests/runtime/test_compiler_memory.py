import os
import subprocess
import sys

from flamingo_jax.runtime import compiler_memory

BOTH_WAYS = """
import sys
import jax, jax.numpy as jnp
from flamingo_jax.runtime.compiler_memory import trim_malloc

def resident():
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("VmRSS:"))

def many(x):
    for i in range(150):
        x = jnp.sin(x @ x) + i * jnp.roll(x, i)
    return x

if sys.argv[1] == "give":
    trim_malloc()
jax.jit(many).lower(jnp.ones((64, 64))).compile()
print(resident())
"""


def kib_after_compiling(way: str) -> int:
    command = [sys.executable, "-W", "error", "-c", BOTH_WAYS, way]
    # As users compile, not as tests do.
    env = os.environ | {"JAX_ENABLE_COMPILATION_CACHE": "false", "XLA_FLAGS": ""}
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=True)
    return int(done.stdout)


def test_the_compilers_memory_is_given_back():
    assert kib_after_compiling("give") < kib_after_compiling("keep") - 10 * 1024


def test_only_a_long_compilation_is_followed_by_it(monkeypatch):
    calls = []
    monkeypatch.setattr(compiler_memory, "_trim", lambda: calls.append(1))
    compiler_memory._listen("other", 9.0)
    compiler_memory._listen(compiler_memory.COMPILED, 0.001)
    assert not calls
    compiler_memory._listen(compiler_memory.COMPILED, 1.0)
    assert calls == [1]
