"""Generation and scoring where the parameters are split over eight devices."""

import jax
import numpy as np
import pytest

from flamingo_jax.generate.engine.batching import model_config
from flamingo_jax.generate.engine.generate import GenerationConfig, generate
from flamingo_jax.generate.engine.scoring import score_continuations
from flamingo_jax.ops.int8 import quantize
from flamingo_jax.parallel import sharding
from flamingo_jax.parallel.mesh import MeshConfig, make_mesh
from tests.conftest import IMAGE, VOCAB, random_images


@pytest.fixture(scope="module")
def prompts():
    rng = np.random.default_rng(0)
    tokens = rng.integers(0, VOCAB, (8, 5)).astype(np.int32)
    segments = np.ones_like(tokens)
    tokens[:, 2], segments[::2, :2] = IMAGE, 0
    return random_images(rng, 8, 1, 1), tokens, segments


def placed(graph, params, mesh):
    """As `flamingo_jax.load` places them, small arrays too."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sharding, "SMALLEST_SHARDED", 1)
        lies = graph.shardings(mesh)
    assert sum(any(x.spec) for x in lies.values()) > len(lies) // 2
    return jax.device_put(params, lies)


def in_eight_bits(graph, params):
    config = model_config(graph)
    axes = {p: config.int8_axis(p, facts) for p, facts in graph.facts.items()}
    return {p: x if axes[p] is None else quantize(x, axes[p]) for p, x in params.items()}


@pytest.mark.parametrize("int8", [False, True])
def test_a_mesh_is_one_device(small, prompts, int8):
    graph, params, _ = small
    mesh = make_mesh(MeshConfig(data=4, fsdp=2))
    results = []
    for p in (params, placed(graph, params, mesh)):
        if int8:
            p = in_eight_bits(graph, p)
        config = GenerationConfig(max_new_tokens=6, num_beams=3)
        made = generate(graph, p, *prompts, config=config)
        scores = score_continuations(graph, p, *prompts, [[3], [4, 5, 6]])
        results.append((made, scores))
    (one, one_scores), (many, many_scores) = results
    np.testing.assert_array_equal(one.tokens_BRN, many.tokens_BRN)
    np.testing.assert_allclose(one.scores_BR, many.scores_BR, atol=1e-5)
    np.testing.assert_allclose(one_scores.logprobs_BCM, many_scores.logprobs_BCM, atol=1e-5)
