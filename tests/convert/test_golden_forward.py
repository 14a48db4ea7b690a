import dataclasses

import jax
import numpy as np
import pytest

from flamingo_jax.convert.importing import import_state_dict
from flamingo_jax.models.params import model_graph
from tests.convert.goldens import unpadded

TOLERANCE = 2e-4  # ten times the original's own float32 noise


def mean_loss(logits, batch):
    logp = jax.nn.log_softmax(logits[:, :-1])
    nll = -np.take_along_axis(np.asarray(logp), batch["tokens"][:, 1:, None], -1)[..., 0]
    weights = batch["weights"][:, 1:]
    return (nll * weights).sum() / weights.sum()


@pytest.mark.parametrize("case", ["mmc4", "laion"])
def test_logits_and_loss_equal_the_originals(golden, case):
    batch = golden.batch(case)
    logits = golden.logits(batch)
    rows, length = golden.arrays[f"{case}_attention_mask"].shape
    difference = np.abs(logits[:rows, :length] - golden.arrays[f"{case}_logits"])
    assert difference[golden.arrays[f"{case}_attention_mask"] == 1].max() < TOLERANCE
    assert np.array_equal(
        batch["weights"][:rows, :length] == 1, golden.arrays[f"{case}_labels"] != -100
    )
    assert mean_loss(logits, batch) == pytest.approx(golden.arrays[f"{case}_loss"], abs=1e-5)


def test_greedy_tokens_equal_the_originals(golden):
    """Prompts are padded on the left, as in generation; a row ends with its `<|endofchunk|>`."""
    batch = golden.batch("gen")
    rows, start = golden.arrays["gen_lang_x"].shape
    expected = golden.arrays["gen_greedy"]
    if (prompt := golden.arrays.get("gen_prompt_logits")) is not None:
        difference = np.abs(golden.logits(batch)[:rows, :start] - prompt)
        assert difference[batch["segments"][:rows, :start] == 1].max() < TOLERANCE
    ended = np.zeros(rows, bool)
    for step in range(expected.shape[1]):
        chosen = golden.logits(batch)[:rows, start + step - 1].argmax(-1)
        assert np.array_equal(chosen[~ended], expected[:, step][~ended])
        ended |= chosen == golden.imported.ids.end_of_chunk
        batch["tokens"][:rows, start + step] = expected[:, step]
        batch["segments"][:rows, start + step] = 1


def test_text_with_too_many_image_marks(golden):
    """An error; what the original does with it on request."""
    arrays = {k: golden.arrays[f"excess_{k}"] for k in ("vision_x", "lang_x", "attention_mask")}
    inputs = unpadded(arrays)
    with pytest.raises(ValueError, match=r"row \d+ has \d+ <image> tokens but \d+ images"):
        golden.graph.merge(golden.params)(*inputs)
    config = golden.imported.config
    cross = dataclasses.replace(config.fusion, uniform_beyond_images=True)
    graph = model_graph(dataclasses.replace(config, fusion=cross))
    logits = jax.jit(lambda params: graph.merge(params)(*inputs))(golden.params)
    difference = np.abs(logits - golden.arrays["excess_logits"])
    assert difference[arrays["attention_mask"] == 1].max() < TOLERANCE


def test_checkpoint_laid_over_the_model(golden):
    if not golden.whole:
        pytest.skip("the checkpoint is not at hand")
    imported = import_state_dict(
        golden.folder / "model.safetensors",
        golden.folder / "config.json",
        checkpoint=golden.folder / "checkpoint_0.pt",
    )
    params = {p: leaf.read(np.float32) for p, leaf in imported.leaves.items()}
    batch = golden.batch("mmc4")
    difference = np.abs(golden.logits(batch, params) - golden.arrays["ckpt_mmc4_logits"])
    assert difference[batch["segments"] == 1].max() < TOLERANCE
    assert any(not np.array_equal(params[p], golden.params[p]) for p in params)


def test_activations_equal_the_originals(mpt):
    if not mpt.whole:
        pytest.skip("the activations are not at hand")
    flamingo = mpt.graph.merge(mpt.params)
    arrays = {k: mpt.arrays[f"mmc4_{k}"] for k in ("vision_x", "lang_x", "attention_mask")}
    images = unpadded(arrays)[0]
    flat = images.reshape(-1, *images.shape[-3:])
    pooled, latents = jax.jit(
        lambda: (flamingo.vision.pooled(flat), flamingo.image_vectors(images))
    )()
    for ours, name in ((pooled, "vit_pooled"), (latents, "perceiver")):
        assert np.abs(ours - mpt.arrays[f"act_{name}"]).max() < TOLERANCE
