"""Against transformers' torch models with random weights."""

import jax
import numpy as np
import pytest

from flamingo_jax.convert.importing import import_backbones
from flamingo_jax.models.params import model_graph
from tests.convert.torch_models import VOCABULARY, random_tokens, save_language_model, save_vision

torch = pytest.importorskip("torch")


@pytest.fixture(scope="module")
def vision(tmp_path_factory):
    folder = tmp_path_factory.mktemp("vision")
    return folder, save_vision(folder)


@pytest.mark.parametrize("kind", ["mpt", "gpt_neox", "opt", "llama"])
def test_language_models(kind, vision, tmp_path):
    """Flamingo's fresh gates are closed, so without images it is the language model."""
    original = save_language_model(kind, tmp_path)
    imported = import_backbones(tmp_path, vision[0], interval=2)
    assert imported.ids.vocabulary == VOCABULARY + 3
    graph = model_graph(imported.config)
    params = {p: leaf.read(np.float32) for p, leaf in imported.leaves.items()}
    tokens = random_tokens()
    mask = np.ones_like(tokens)
    mask[1, 6:] = 0
    size = imported.config.encoder.image_size
    images = np.zeros((2, 0, 1, size, size, 3), np.float32)
    ours = jax.jit(lambda p: graph.merge(p)(images, tokens, mask))(params)
    with torch.no_grad():
        theirs = original(
            torch.tensor(tokens).long(), attention_mask=torch.tensor(mask), use_cache=False
        ).logits.numpy()
    # The padded rows of the vocabulary are cut; new tokens take over the first of them.
    assert ours.shape[-1] == VOCABULARY + 3
    difference = np.abs(ours - theirs[..., : VOCABULARY + 3])
    assert difference[mask == 1].max() < 2e-4


def test_clip_vision(vision, tmp_path):
    folder, original = vision
    save_language_model("mpt", tmp_path)
    imported = import_backbones(tmp_path, folder)
    graph = model_graph(imported.config)
    params = {p: leaf.read(np.float32) for p, leaf in imported.leaves.items()}
    images = np.random.default_rng(0).normal(size=(2, 28, 28, 3)).astype(np.float32)
    tower = graph.merge(params).vision
    patches, pooled = jax.jit(lambda: (tower(images), tower.pooled(images)))()
    with torch.no_grad():
        theirs = original(
            torch.tensor(np.moveaxis(images, -1, 1).copy()), output_hidden_states=True
        )
    assert np.abs(patches - theirs.hidden_states[-1][:, 1:].numpy()).max() < 2e-4
    assert np.abs(pooled - theirs.image_embeds.numpy()).max() < 2e-4
