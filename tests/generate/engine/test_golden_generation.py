"""Generation and scoring against what the original OpenFlamingo made of the same weights."""

import json

import numpy as np
import pytest

from flamingo_jax.generate.engine.generate import GenerationConfig, generate
from flamingo_jax.generate.engine.scoring import score_continuations
from tests.convert import goldens

KEYS = ("vision_x", "lang_x", "attention_mask")


@pytest.fixture(scope="module", params=goldens.CASES)
def golden(request):
    return goldens.load(request.param)


def prompts(golden, prefix):
    if f"{prefix}_lang_x" not in golden.arrays and not golden.whole:
        pytest.skip(f"the {prefix} arrays are not in the committed part")
    return goldens.unpadded({k: golden.arrays[f"{prefix}_{k}"] for k in KEYS})


def generated(golden, expected, **settings):
    pad = json.loads((golden.folder / "config.json").read_text())["generate_pad_token_id"]
    config = GenerationConfig(max_new_tokens=10, pad_token=pad, **settings)
    made = generate(golden.graph, golden.params, *prompts(golden, "gen"), config=config)
    length = expected.shape[1]
    np.testing.assert_array_equal(made.tokens_BRN[:, 0, :length], expected)
    assert made.lengths_BR.max() <= length
    return made


def test_greedy_tokens(golden):
    generated(golden, golden.arrays["gen_greedy"])


@pytest.mark.parametrize("scoring", ["", "_newlen"])
@pytest.mark.parametrize("length_penalty", [0, -2, 1])
def test_beam_search(golden, length_penalty, scoring):
    name = f"gen_beam3_lp{length_penalty}{scoring}"
    if name not in golden.arrays and not golden.whole:
        pytest.skip("the beam searches are not in the committed part")
    made = generated(
        golden,
        golden.arrays[name],
        num_beams=3,
        length_penalty=length_penalty,
        length_penalty_counts_prompt=not scoring,
    )
    expected = golden.arrays[f"{name}_seqscore"]
    np.testing.assert_allclose(made.scores_BR[:, 0], expected, rtol=1e-5)


@pytest.mark.parametrize("padding", ["pad", "nopad"])
def test_class_scores(golden, padding):
    inputs = prompts(golden, f"cls_{padding}")
    classes = [row[row >= 0].tolist() for row in golden.arrays["cls_class_ids"]]
    scores = score_continuations(golden.graph, golden.params, *inputs, classes, at_once=3)
    for ours, name in ((scores.sums_BC, "sum"), (scores.means_BC, "mean")):
        expected = golden.arrays[f"cls_{padding}_logprob_nocache_{name}"]
        np.testing.assert_allclose(ours, expected, atol=1e-4)
