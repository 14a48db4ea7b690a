"""Eight fake CPU devices for every test; small models that many tests share."""

import gc
import os
from pathlib import Path

ROOT = Path(__file__).parents[1]
os.environ["JAX_PLATFORMS"] = "cpu"
# Programs here run for milliseconds: compile them fast rather than well. XLA's older emitters take
# two thirds of the newer ones' time.
os.environ["XLA_FLAGS"] = (
    "--xla_force_host_platform_device_count=8 --xla_backend_optimization_level=0 "
    "--xla_llvm_disable_expensive_passes=true --xla_cpu_use_fusion_emitters=false"
)
# Workers, and later runs, share compiled programs.
os.environ["JAX_COMPILATION_CACHE_DIR"] = str(ROOT / ".pytest_cache/compiled")
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.3"

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import settings
from PIL import ImageFile

import flamingo_jax
from flamingo_jax.models.connectors.perceiver import PerceiverConfig
from flamingo_jax.models.decoder import DecoderConfig
from flamingo_jax.models.fusion.gated_cross_attention import GatedCrossAttentionConfig
from flamingo_jax.models.params import model_graph
from flamingo_jax.models.vision.clip import ClipVisionConfig
from flamingo_jax.models.vlm import ModelConfig

settings.register_profile("compiled", deadline=None, max_examples=30)  # examples compile
settings.load_profile("compiled")

VOCAB, IMAGE = 30, 31  # rows of the pretrained table, and the id of <image>


def small_config(**decoder) -> ModelConfig:
    """Five decoder layers with a cross-attention every second one: one layer is left over."""
    return ModelConfig(
        encoder=ClipVisionConfig(width=16, num_layers=2, num_heads=2, image_size=8, patch_size=4),
        connector=PerceiverConfig(num_layers=2, num_latents=3, num_heads=2, head_dim=8),
        fusion=GatedCrossAttentionConfig(interval=2, num_heads=2, head_dim=8),
        decoder=DecoderConfig(
            **{
                "width": 16,
                "num_layers": 5,
                "num_heads": 2,
                "vocab_size": VOCAB,
                "num_new_tokens": 2,
                "num_pad_tokens": 1,
                **decoder,
            }
        ),
    )


def random_params(config: ModelConfig, *, gate: float = 0.7) -> dict[str, np.ndarray]:
    """Random parameters, biases and norms included, with open gates; nothing is compiled."""
    rng = np.random.default_rng(0)

    def draw(path: str, shape: tuple[int, ...]) -> np.ndarray:
        if path.endswith("_gate"):
            return np.full(shape, gate)
        if path.endswith("kernel"):
            return rng.normal(size=shape) / np.sqrt(shape[-2])
        return float(path.endswith("scale")) + 0.3 * rng.normal(size=shape)

    shapes = model_graph(config).shapes()
    return {p: jnp.asarray(draw(p, s.shape), jnp.float32) for p, s in shapes.items()}


@pytest.fixture(autouse=True)
def _whole_pictures(monkeypatch):
    """lmms-eval turns this on for all of its process, and so for the tests after its own."""
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", False)


@pytest.fixture(autouse=True, scope="module")
def _room_for_programs():
    """A compiled program maps memory, and Linux ends a process with more than 65,530 mappings."""
    yield
    maps = Path("/proc/self/maps")
    if maps.exists() and maps.read_bytes().count(b"\n") > 10_000:
        jax.clear_caches()
        gc.collect()


@pytest.fixture(scope="session")
def small():
    """(graph, params, model) of a small Flamingo with open gates."""
    config = small_config()
    graph, params = model_graph(config), random_params(config)
    return graph, params, graph.merge(params)


@pytest.fixture(scope="session")
def model_dir(tmp_path_factory):
    """The model directory of a finished digits run, the smallest there is."""
    from flamingo_jax.schema import build
    from flamingo_jax.train.config import TrainConfig
    from flamingo_jax.train.export import write_run
    from flamingo_jax.train.loop import run
    from tests import tiny

    folder = tmp_path_factory.mktemp("trained")
    run(build(TrainConfig, tiny.get_config().to_dict()), folder / "run", jax.devices()[:1])
    write_run(folder / "run", folder / "model")
    return folder / "model"


@pytest.fixture(scope="session")
def flamingo(model_dir):
    return flamingo_jax.load(model_dir)


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def random_images(rng, *shape: int) -> np.ndarray:
    return rng.integers(0, 256, (*shape, 8, 8, 3), dtype=np.uint8)
