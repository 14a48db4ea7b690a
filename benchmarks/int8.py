"""What int8 weights save and cost: bytes, and how far the predictions move.

For a model directory (`--model`), or for random weights at the shapes of `benchmarks.generate`.
Both models predict, token by token, text that the whole one sampled after random prompts.

    python -m benchmarks.int8 --json figures.json
"""

from collections.abc import Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

import flamingo_jax
from benchmarks import report
from benchmarks.generate import Work, draw_inputs, work_of
from benchmarks.models import SIZES, model_config
from flamingo_jax.generate.engine.generate import GenerationConfig, generate
from flamingo_jax.models.params import ModelGraph, Params, cast, init_params, model_graph
from flamingo_jax.ops.int8 import quantize

TEXT = 32


def megabytes(params: Params) -> float:
    return sum(x.nbytes for x in params.values()) / 1e6


def compare(
    table: report.Report, work: Work, graph: ModelGraph, whole: Params, small: Params
) -> None:
    """Both models' predictions of text that the whole one sampled."""
    config = graph.merge(graph.shapes()).config
    images, tokens, _ = draw_inputs(config, work)
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
    table.add("parameters", megabytes(small), megabytes(whole), unit="MB")
    table.add("perplexity", float(jnp.exp(-own[1])), float(jnp.exp(-own[0])))
    table.add("same_likeliest_token", float((before.argmax(-1) == after.argmax(-1)).mean()))
    table.add("mean_divergence", float(divergence.mean()), unit="nats")


def main(argv: Sequence[str]) -> None:
    parser = report.parser(__doc__, tuple(SIZES))
    parser.add_argument("--model", type=Path, help="model directory; otherwise random weights")
    args = report.parse(parser, argv)
    if args.model:
        loaded = flamingo_jax.load(args.model)
        graph, whole, config = loaded.graph, loaded.params, loaded.config
    else:
        config = model_config(args.size)
        graph = model_graph(config)
        whole = jax.jit(lambda: cast(init_params(config, jax.random.key(0)), config.dtype))()
    axes = {path: config.int8_axis(path, facts) for path, facts in graph.facts.items()}
    small = {
        path: x if (axis := axes[path]) is None else quantize(x, axis) for path, x in whole.items()
    }
    table = report.Report("int8", args)
    compare(table, work_of(args.size), graph, whole, small)
    table.note("the peer is the same model whole, as it was given")
    table.write()


if __name__ == "__main__":
    report.run(main)
