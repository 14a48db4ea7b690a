"""Generation against transformers' own on the plain language model."""

import jax.numpy as jnp
import numpy as np
import pytest

from flamingo_jax.convert.importing import import_backbones
from flamingo_jax.generate.engine.generate import GenerationConfig, generate
from flamingo_jax.models.params import model_graph
from tests.convert.torch_models import VOCABULARY, random_tokens, save_language_model, save_vision

torch = pytest.importorskip("torch")
NEW = 8
STOPS = (3, 11, 42)
NEW_TOKENS = tuple(range(VOCABULARY, VOCABULARY + 3))  # which Flamingo adds


@pytest.fixture(scope="module")
def vision(tmp_path_factory):
    folder = tmp_path_factory.mktemp("vision")
    save_vision(folder)
    return folder


def both(kind, vision, folder):
    """The torch model, and ours: fresh gates are closed, so without images it is the same."""
    original = save_language_model(kind, folder)
    original.resize_token_embeddings(VOCABULARY + len(NEW_TOKENS))  # without the padded rows
    imported = import_backbones(folder, vision, interval=2)
    params = {p: jnp.asarray(leaf.read(np.float32)) for p, leaf in imported.leaves.items()}
    return original, model_graph(imported.config), params


def compare(original, graph, params, *, beams, **settings):
    tokens, mask = random_tokens(rows=4), np.ones((4, 9), np.int32)
    mask[1, :3] = mask[2, :6] = 0
    size = graph.merge(graph.shapes()).config.encoder.image_size
    config = GenerationConfig(
        max_new_tokens=NEW,
        num_beams=beams,
        num_return_sequences=beams,
        stop_tokens=STOPS,
        bad_tokens=NEW_TOKENS,
        **settings,
    )
    no_images = np.zeros((4, 0, 1, size, size, 3), np.float32)
    ours = generate(graph, params, no_images, tokens, mask, config=config)
    theirs = original.generate(
        input_ids=torch.tensor(tokens).long(),
        attention_mask=torch.tensor(mask),
        max_new_tokens=NEW,
        num_beams=beams,
        num_return_sequences=beams,
        do_sample=False,
        use_cache=True,
        eos_token_id=list(STOPS),
        pad_token_id=0,
        suppress_tokens=list(NEW_TOKENS),
        return_dict_in_generate=True,
        output_scores=True,
        **settings,
    )
    made = theirs.sequences[:, tokens.shape[1] :].numpy().reshape(4, beams, -1)
    # What stands after a beam's end is padding here, and may be a stop token there.
    is_token = np.arange(made.shape[-1]) < ours.lengths_BR[..., None]
    np.testing.assert_array_equal(
        ours.tokens_BRN[..., : made.shape[-1]], np.where(is_token, made, config.pad_token)
    )
    assert ours.lengths_BR.max() <= made.shape[-1]
    if beams > 1:
        scores = theirs.sequences_scores.numpy().reshape(4, beams)
        np.testing.assert_allclose(ours.scores_BR, scores, rtol=1e-5)  # as the goldens


@pytest.mark.parametrize("kind", ["mpt", "gpt_neox", "opt", "llama"])
def test_greedy_and_beams_are_those_of_transformers(kind, vision, tmp_path):
    models = both(kind, vision, tmp_path)
    compare(*models, beams=1)
    compare(*models, beams=1, repetition_penalty=1.5, no_repeat_ngram_size=2)
    for length_penalty in (1.0, 0.0, -2.0):
        compare(*models, beams=3, length_penalty=length_penalty)
    if kind == "llama":
        for early_stopping in (True, "never"):
            compare(*models, beams=3, early_stopping=early_stopping, length_penalty=0.6)
