"""The configs of the released models, counted without allocating anything."""

import math
import re
import runpy
from pathlib import Path

import pytest

from flamingo_jax.models.params import model_graph, select
from flamingo_jax.models.vlm import ModelConfig
from flamingo_jax.schema import build
from flamingo_jax.train.optimizer import OptimizerConfig

ROOT = Path(__file__).parents[2]
TOKENS = 50_280  # GPT-NeoX's 50277, <|endofchunk|>, <image>, <PAD>
CLIP = (  # ViT-L/14 with its last norm and projection
    3 * 14**2 * 1024
    + (256 + 1 + 1) * 1024
    + 24 * (12 * 1024**2 + 13 * 1024)
    + 4 * 1024
    + 1024 * 768
)
RESAMPLER = 64 * 1024 + 6 * (4 * 1024 * 512 + 8 * 1024**2 + 6 * 1024) + 2 * 1024


def gated(width: int) -> int:
    return 2 * width * 512 + 2 * 1024 * 512 + 8 * width**2 + 4 * width + 2


def mpt(width: int, layers: int, norms: int) -> int:
    return TOKENS * width + layers * (12 * width**2 + norms * width) + width


EXPECTED = {  # language model, cross-attentions, trained
    "of3b": (mpt(2048, 24, 4), 24 * gated(2048), 2 * 2048),
    "of4b": (
        2 * TOKENS * 2560 + 32 * (12 * 2560**2 + 13 * 2560) + 2 * 2560,
        16 * gated(2560),
        0,
    ),
    "of9b": (mpt(4096, 32, 2), 8 * gated(4096), 2 * 4096),
}
EXPECTED |= {f"{name}_instruct": EXPECTED[name] for name in ("of3b", "of4b")}


def read(name):
    return runpy.run_path(str(ROOT / "configs" / f"{name}.py"))["get_config"]()


@pytest.mark.parametrize("name", sorted(EXPECTED))
def test_parameter_counts(name):
    config = read(name)
    model = build(ModelConfig, config.model.to_dict())
    build(OptimizerConfig, config.optimizer.to_dict())
    shapes = {path: math.prod(leaf.shape) for path, leaf in model_graph(model).shapes().items()}

    def count(prefix):
        return sum(size for path, size in shapes.items() if path.startswith(prefix))

    language, cross_attention, rows = EXPECTED[name]
    assert count("vision/") == CLIP
    assert count("resampler/") == RESAMPLER
    assert count("decoder/") == language
    assert count("cross_attention/") == cross_attention
    trained = sum(shapes[path] for path in select(shapes, config.trainable))
    assert trained == RESAMPLER + cross_attention + rows
    assert (model.end_of_chunk_token, model.image_token) == (50_277, 50_278)

    table = (ROOT / "docs" / "conversion.md").read_text()
    row = re.search(rf"^\| `{name}` \|.*$", table, re.MULTILINE)[0]
    for figure in (sum(shapes.values()), trained):
        assert f"{figure:,}" in row


def test_language_model_counts_are_transformers():
    torch = pytest.importorskip("torch")
    import transformers

    configs = {
        "of9b": transformers.MptConfig(d_model=4096, n_heads=32, n_layers=32, vocab_size=TOKENS),
        "of4b": transformers.GPTNeoXConfig(
            hidden_size=2560,
            num_hidden_layers=32,
            num_attention_heads=32,
            intermediate_size=10_240,
            vocab_size=TOKENS,
        ),
    }
    for name, config in configs.items():
        with torch.device("meta"):
            model = transformers.AutoModelForCausalLM.from_config(config)
        assert sum(p.numel() for p in model.parameters()) == EXPECTED[name][0]
