"""What int8 weights save and cost: bytes, and how far the predictions move.

For a model directory (`--model`), or for random weights at the shapes of `benchmarks.generate`.
Both models predict, token by token, text that the whole one sampled after random prompts.

    python -m benchmarks.int8 --json figures.json
"""

import argparse
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.generate import SIZES, draw_inputs, model_config
from flamingo_jax import model_directory
from flamingo_jax.models.generate import GenerationConfig, generate
from flamingo_jax.models.params import ModelGraph, Params, flamingo_graph, init_params
from flamingo_jax.models.quantization import is_quantized, quantize

TEXT = 32


def gigabytes(params: Params) -> float:
    return sum(x.nbytes for x in params.values()) / 1e9


def compare(graph: ModelGraph, whole: Params, small: Params) -> dict[str, float]:
    """Both models' predictions of text that the whole one sampled."""
    config = graph.merge(graph.shapes()).config
    images, tokens, _ = draw_inputs(config)
    settings = GenerationConfig(
        max_new_tokens=TEXT, min_new_tokens=TEXT, temperature=1.0, bad_tokens=(config.image_token,)
    )
    made = generate(graph, whole, images, tokens, config=settings).tokens_BRN[:, 0]
    text = np.concatenate([tokens, made], axis=1)

    @jax.jit
    def predict(params: Params) -> jax.Array:
        logits = graph.merge(params)(images, text)[:, -TEXT - 1 : -1]
        return jax.nn.log_softmax(logits)

    before, after = predict(whole), predict(small)
    own = [jnp.take_along_axis(x, made[..., None], axis=-1).mean() for x in (before, after)]
    divergence = (jnp.exp(before) * (before - after)).sum(axis=-1)
    figures = {
        "gigabytes": gigabytes(whole),
        "gigabytes_int8": gigabytes(small),
        "ratio_bytes": gigabytes(whole) / gigabytes(small),
        "perplexity": jnp.exp(-own[0]),
        "perplexity_int8": jnp.exp(-own[1]),
        "mean_divergence_nats": divergence.mean(),
        "same_likeliest_token": (before.argmax(-1) == after.argmax(-1)).mean(),
    }
    return {name: float(value) for name, value in figures.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, help="model directory; otherwise random weights")
    parser.add_argument("--size", choices=SIZES, default="small", help="of the random weights")
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    args = parser.parse_args()
    if args.model:
        loaded = model_directory.load(args.model)
        graph, whole = loaded.graph, loaded.params
    else:
        config = model_config(args.size)
        graph = flamingo_graph(config)
        whole = jax.jit(lambda: init_params(config, jax.random.key(0)))()
    small = {path: quantize(path, x) if is_quantized(path) else x for path, x in whole.items()}
    figures = compare(graph, whole, small)
    for name, value in figures.items():
        print(f"{name}: {value:.4g}")
    if args.json:
        args.json.write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()
