"""Compiled programs are kept on disk, so that a command starts faster the next time."""

import hashlib
import os
import platform
import sys
import tempfile
from pathlib import Path
from typing import Any

import jax

MAX_BYTES = 4 * 2**30  # the programs that were not used for longest are dropped
FEWEST_SECONDS = 0.1  # a program that compiles faster is not kept
VARIABLES = {
    "jax_compilation_cache_max_size": MAX_BYTES,
    "jax_persistent_cache_min_compile_time_secs": FEWEST_SECONDS,
}


def keep_compiled_programs() -> None:
    """Let JAX keep programs in `default_folder()`; before anything is compiled.

    What the environment says goes first: JAX_COMPILATION_CACHE_DIR (another folder, or "" for
    none), JAX_ENABLE_COMPILATION_CACHE, and the variables of the settings above. A folder that
    cannot be written is noted, and nothing is kept; nor are programs with oneDNN's calls.
    """
    settings: Any = jax.config
    if "JAX_COMPILATION_CACHE_DIR" in os.environ or not settings.jax_enable_compilation_cache:
        return
    if "xla_cpu_use_onednn=true" in os.environ.get("XLA_FLAGS", ""):
        return  # JAX cannot write them, and would warn of each
    try:
        folder = default_folder()
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
        _sweep(folder)
    except (OSError, RuntimeError) as error:  # RuntimeError: there is no home
        reason = getattr(error, "strerror", None) or error
        print(f"note: compiled programs are not kept on disk ({reason}); to keep them, set "
              "JAX_COMPILATION_CACHE_DIR to a directory that can be written",
              file=sys.stderr)  # fmt: skip
        return
    jax.config.update("jax_compilation_cache_dir", str(folder))
    for name, value in VARIABLES.items():
        if name.upper() not in os.environ:
            jax.config.update(name, value)


def keep_only_what_is_shared() -> None:
    """For several processes: keep programs only where the environment names a folder, which is one
    place for all of them.

    The first process writes. Others whose folder is another one would compile what the first one
    loads; on GPUs their choice of kernels then differs, and collectives wait for ever.
    """
    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        jax.config.update("jax_compilation_cache_dir", None)


def default_folder() -> Path:
    """In XDG_CACHE_HOME or ~/.cache, one for each kind of processor: programs for the host use
    what its processor can do, and homes are shared between machines."""
    home = os.environ.get("XDG_CACHE_HOME")
    base = Path(home) if home else Path.home() / ".cache"
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    abilities = next((line for line in lines if line.startswith(("flags", "Features"))), "")
    kind = hashlib.sha256(abilities.encode()).hexdigest()[:8]
    return base / "flamingo_jax" / "compiled" / f"{platform.machine()}-{kind}"


def _sweep(folder: Path) -> None:
    """Drop what a killed process left half-written: JAX writes a program, then when it was used.

    JAX would neither read nor replace it, and fail to drop old programs beside it.
    """
    for program in folder.glob("*-cache"):
        if not program.with_name(program.name.removesuffix("cache") + "atime").exists():
            program.unlink(missing_ok=True)
