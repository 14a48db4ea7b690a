import dataclasses
import traceback
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from typing_extensions import get_protocol_members

import flamingo_jax
from flamingo_jax.models.kinds import ConnectorKind, EncoderKind, FusionKind
from flamingo_jax.models.params import init_params, model_graph, select
from flamingo_jax.models.vlm import ModelConfig
from flamingo_jax.ops import attention
from flamingo_jax.ops.cross_entropy import weighted_nll
from flamingo_jax.parallel.mesh import MeshConfig, make_mesh
from flamingo_jax.text.documents import check_image_count
from tests.conftest import IMAGE, VOCAB, random_images, random_params, small_config

PACKAGE = str(Path(flamingo_jax.__file__).parent)


@pytest.fixture
def batch(rng):
    """Two rows with two images each; the second row is shorter and begins with its image."""
    tokens = rng.integers(0, VOCAB, (2, 9)).astype(np.int32)
    tokens[0, [2, 5]] = IMAGE
    tokens[1, [0, 4]] = IMAGE
    segments = np.ones_like(tokens)
    segments[1, 7:] = 0
    return random_images(rng, 2, 2, 1), tokens, segments


def test_a_graph_is_made_once_per_config_whatever_mesh_is_in_force():
    graph = model_graph(small_config())
    assert model_graph(small_config()) is graph
    model_graph.cache_clear()
    with jax.set_mesh(make_mesh(MeshConfig(data=1, fsdp=-1))):
        again = model_graph(small_config())
    assert again is not graph
    assert again.shapes() == graph.shapes()
    assert again.graphdef == graph.graphdef


def test_closed_gates_leave_the_language_model_as_it_is(batch):
    config = small_config()
    model = model_graph(config).merge(init_params(config, jax.random.key(0)))
    images, tokens, segments = map(jnp.asarray, batch)
    np.testing.assert_array_equal(model(images, tokens, segments), model.decoder(tokens, segments))


def test_text_before_the_first_image_is_the_language_model(small, batch):
    model = small[2]
    images, tokens, segments = map(jnp.asarray, batch)
    logits, plain = model(images, tokens, segments), model.decoder(tokens, segments)
    np.testing.assert_array_equal(logits[0, :2], plain[0, :2])
    assert (np.abs(logits - plain)[0, 2:].max(axis=-1) > 1e-3).all()


def test_a_row_without_images_is_the_language_model(small, batch):
    model = small[2]
    images, tokens, segments = map(jnp.asarray, batch)
    tokens = tokens.at[1].set(jnp.where(tokens[1] == IMAGE, 3, tokens[1]))
    logits, plain = model(images, tokens, segments), model.decoder(tokens, segments)
    np.testing.assert_array_equal(logits[1], plain[1])
    no_images = jnp.zeros((2, 0, 1, 8, 8, 3), jnp.uint8)
    text_only = jnp.where(tokens == IMAGE, 3, tokens)
    np.testing.assert_array_equal(
        model(no_images, text_only, segments), model.decoder(text_only, segments)
    )


def test_feed_forward_everywhere_is_openflamingos_way(small, batch):
    """There the block's feed-forward changes text without an image, its attention does not."""
    config = small_config()
    everywhere = dataclasses.replace(
        config,
        fusion=dataclasses.replace(config.fusion, feed_forward_everywhere=True),
    )
    model = model_graph(everywhere).merge(small[1])
    images, tokens, segments = map(jnp.asarray, batch)
    logits = model(images, tokens, segments)
    assert (np.abs(logits - model.decoder(tokens, segments))[0, :2].max(axis=-1) > 1e-3).all()
    other_images = model(255 - images, tokens, segments)
    np.testing.assert_array_equal(logits[0, :2], other_images[0, :2])


def test_an_image_is_seen_by_nothing_before_it(small, batch):
    images, tokens, segments = batch
    changed = images.copy()
    changed[:, 1] = 255 - changed[:, 1]
    before = small[2](jnp.asarray(images), jnp.asarray(tokens), jnp.asarray(segments))
    after = small[2](jnp.asarray(changed), jnp.asarray(tokens), jnp.asarray(segments))
    for row, second_image in ((0, 5), (1, 4)):
        np.testing.assert_array_equal(before[row, :second_image], after[row, :second_image])
        assert np.abs(before[row, second_image] - after[row, second_image]).max() > 1e-4


def test_a_mixed_batch_is_each_row_alone(small, batch):
    images, tokens, segments = batch
    together = small[2](jnp.asarray(images), jnp.asarray(tokens), jnp.asarray(segments))
    for row in range(2):
        length = segments[row].sum()
        alone = small[2](
            jnp.asarray(images[row : row + 1]), jnp.asarray(tokens[row : row + 1, :length])
        )
        np.testing.assert_allclose(together[row, :length], alone[0], atol=2e-6)


def test_learned_positions_begin_anew_with_each_document_of_a_row(rng):
    """So a row may be longer than they are, where its documents are not."""
    config = small_config(position="learned", max_length=4)
    model = model_graph(config).merge(random_params(config))
    tokens = rng.integers(0, VOCAB, (2, 4)).astype(np.int32)
    tokens[:, 0] = IMAGE
    images = jnp.asarray(random_images(rng, 2, 1, 1))
    segments = np.array([[1] * 4 + [2] * 4 + [0] * 5], np.int32)  # padding, too, is longer
    packed = np.pad(tokens.reshape(1, 8), ((0, 0), (0, 5)))
    vectors = model.image_vectors(images)
    in_one_row = vectors.reshape(1, 2, *vectors.shape[2:])
    (together,) = model.hidden_states([in_one_row], [packed], [segments])
    (alone,) = model.hidden_states([vectors], [tokens], [np.ones_like(tokens)])
    np.testing.assert_allclose(together[0, :8].reshape(alone.shape), alone, atol=1e-5)
    with pytest.raises(ValueError, match="13 tokens is longer than the 4 learned positions"):
        model(images.reshape(1, 2, 1, 8, 8, 3), jnp.asarray(packed), jnp.asarray(segments))


def test_video_input(small, batch, rng):
    _, tokens, segments = batch
    video = random_images(rng, 2, 2, 3)
    logits = small[2](jnp.asarray(video), jnp.asarray(tokens), jnp.asarray(segments))
    assert logits.shape == (2, 9, VOCAB + 3)
    assert logits.dtype == jnp.float32


def test_more_image_marks_than_images_name_the_row(small, batch):
    images, tokens, _ = batch
    tokens = tokens.copy()
    tokens[1, 6] = IMAGE
    with pytest.raises(ValueError, match="row 1 has 3 <image> tokens but 2 images"):
        small[2](jnp.asarray(images), jnp.asarray(tokens))
    check_image_count(tokens, IMAGE, np.array([2, 3]))


def test_a_mark_without_an_image_sees_nothing_under_jit(small, batch):
    """Inside a compiled step nothing can be raised: such text is the plain language model."""
    _, tokens, segments = map(jnp.asarray, batch)
    no_images = jnp.zeros((2, 0, 1, 8, 8, 3), jnp.uint8)
    logits = jax.jit(lambda t: small[2](no_images, t, segments))(tokens)
    np.testing.assert_allclose(logits, small[2].decoder(tokens, segments), atol=1e-6)


@pytest.mark.parametrize("remat", ["elementwise", "dots", "full"])
def test_remat_changes_no_gradient(small, batch, remat):
    images, tokens, segments = map(jnp.asarray, batch)
    weights = segments.astype(jnp.float32)

    def gradient(graph):
        def loss(params):
            return weighted_nll(graph.merge(params)(images, tokens, segments), tokens, weights)

        return jax.jit(jax.grad(loss))(small[1])

    remat_graph = model_graph(dataclasses.replace(small_config(), remat=remat))
    plain, saved = gradient(small[0]), gradient(remat_graph)
    for path, value in plain.items():
        np.testing.assert_allclose(saved[path], value, rtol=1e-4, atol=1e-5, err_msg=path)


@pytest.mark.parametrize("tie_head", [True, False])
def test_new_rows_are_looked_up_and_trained_alone(tie_head, batch, rng):
    config = small_config(tie_head=tie_head)
    graph, params = model_graph(config), random_params(config)
    images, tokens, segments = map(jnp.asarray, batch)
    rows = params["decoder/embedding/new_rows"]
    assert rows.shape == (2, 16)
    embedded = graph.merge(params).decoder.embedding(jnp.array([[VOCAB, IMAGE, VOCAB + 2, 5]]))
    np.testing.assert_array_equal(embedded[0, :2], rows)
    np.testing.assert_array_equal(embedded[0, 2], params["decoder/embedding/pad_rows"][0])
    np.testing.assert_array_equal(embedded[0, 3], params["decoder/embedding/table"][5])

    def loss(new_rows):
        model = graph.merge({**params, "decoder/embedding/new_rows": new_rows})
        return weighted_nll(model(images, tokens, segments), tokens, jnp.ones(tokens.shape))

    gradient = jax.grad(loss)(rows)
    assert (np.abs(gradient).max(axis=1) > 0).tolist() == [tie_head, True]


def test_an_interval_without_a_whole_group_is_refused():
    config = small_config()
    cross = dataclasses.replace(config.fusion, interval=6)
    with pytest.raises(ValueError, match="interval is 6, it must be between 1 and the decoder's 5"):
        dataclasses.replace(config, fusion=cross)


def test_bfloat16_has_finite_gradients(batch):
    config = dataclasses.replace(small_config(), dtype="bfloat16")
    graph, params = model_graph(config), random_params(config)
    images, tokens, segments = map(jnp.asarray, batch)

    def loss(params):
        logits = graph.merge(params)(images, tokens, segments)
        return weighted_nll(logits, tokens, jnp.ones(tokens.shape))

    gradient = jax.jit(jax.grad(loss))(params)
    assert all(bool(jnp.isfinite(g).all()) for g in gradient.values())


def test_select_names_patterns_that_match_nothing():
    paths = ["decoder/norm/scale", "resampler/latents"]
    assert select(paths, ["^resampler/"]) == {"resampler/latents"}
    with pytest.raises(ValueError, match=r"'xattn' matches no parameter.*decoder/norm, resampler"):
        select(paths, ["xattn"])
    with pytest.raises(ValueError, match="not a regular expression"):
        select(paths, ["("])


def test_every_kind_answers_what_a_model_asks(small):
    config: ModelConfig = small[2].config
    for part, kind in (
        (config.encoder, EncoderKind),
        (config.connector, ConnectorKind),
        (config.fusion, FusionKind),
    ):
        assert not get_protocol_members(kind) - {"__init__", *dir(part)}


def test_seven_calls_in_four_files_lead_to_the_softmax(small, batch, monkeypatch):
    """What a reader passes from the model to the line with the softmax."""
    paths = []

    def passed(*inputs):
        stack = [f for f in traceback.extract_stack() if f.filename.startswith(PACKAGE)]
        paths.append([(f.name, f.filename.removeprefix(PACKAGE)) for f in stack])
        return softmax(*inputs)

    softmax = attention._softmax
    monkeypatch.setattr(attention, "_softmax", passed)
    small[2](*map(jnp.asarray, batch))
    of_text = [path for path in paths if ("attend", "/models/text.py") in path][-1]
    assert len(of_text) <= 7
    assert len({file for _, file in of_text}) <= 4
