"""Processes that only read data start without the model's imports, and leave the devices alone."""

import subprocess
import sys
from dataclasses import dataclass

import numpy as np

from flamingo_jax.data.pipeline import StepSource, make_streams
from flamingo_jax.data.streams import StreamConfig
from flamingo_jax.data.workers import prefetched
from flamingo_jax.text.tokenizer import load_tokenizer

WITHOUT_GRAIN = """
import importlib, pkgutil, sys, types
sys.modules["grain"] = types.ModuleType("grain")
import flamingo_jax.data as data
for module in pkgutil.walk_packages(data.__path__, "flamingo_jax.data."):
    importlib.import_module(module.name)
print(*sorted({"jax", "flax", "optax", "orbax", "transformers", "torch"} & sys.modules.keys()))
"""


def test_only_grain_brings_jax_to_what_reads_data():
    """Grain imports JAX by itself, for its profiler."""
    command = [sys.executable, "-c", WITHOUT_GRAIN]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout == "\n"


@dataclass(frozen=True)
class Probe:
    """Tells what is there in a process that has read a batch."""

    source: StepSource

    def __len__(self):
        return len(self.source)

    def __getitem__(self, step):
        self.source.read(step)
        from jax._src import xla_bridge

        return np.array(["flax" in sys.modules, xla_bridge.backends_are_initialized()])


def test_a_worker_has_neither_flax_nor_devices():
    stream = StreamConfig(source="digits_pairs", batch_size=1, text_length=8, num_images=1)
    streams = make_streams({"pairs": stream}, load_tokenizer("digits", 40), 8)
    probed = prefetched(Probe(StepSource(streams, 0, 1)), 0, workers=1, prefetch=1)
    (found,) = probed
    assert found.tolist() == [False, False]
