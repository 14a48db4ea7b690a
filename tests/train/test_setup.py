"""What the set-up checks of rows before anything is compiled."""

import dataclasses

import jax
import pytest

from flamingo_jax.data.packing import Packing
from flamingo_jax.errors import UserError
from flamingo_jax.schema import build
from flamingo_jax.train.config import TrainConfig
from flamingo_jax.train.setup import set_up
from tests import tiny


def config(max_length: int, max_media: int, pack: Packing) -> TrainConfig:
    """Documents of up to 14 tokens and 4 images, packed; see `tests/tiny.py`."""
    values = tiny.get_config()
    values.model.decoder.update(position="learned", max_length=max_length)
    values.model.connector.max_media = max_media
    made = build(TrainConfig, values.to_dict())
    interleaved = dataclasses.replace(made.streams["interleaved"], pack=pack)
    return dataclasses.replace(made, streams={**made.streams, "interleaved": interleaved})


@pytest.mark.parametrize(
    ("max_length", "text_length"), [(14, 40), (12, 12)], ids=["long rows", "short rows"]
)
def test_packed_rows_need_positions_for_a_document_only(max_length, text_length):
    given = config(max_length, 8, Packing(documents=2, text_length=text_length))
    setup = set_up(given)
    with jax.set_mesh(setup.mesh):
        state, metrics = jax.eval_shape(setup.train_step, *setup.arguments)
    assert jax.tree.structure(state) == jax.tree.structure(setup.state_shapes)
    assert metrics["loss"].shape == ()


def test_packed_rows_need_embeddings_for_all_their_images():
    with pytest.raises(
        UserError, match=r"^config\.streams\.interleaved\.num_images: 8 media given"
    ):
        set_up(config(14, 7, Packing(documents=2, text_length=40)))


def test_documents_in_packed_rows_need_positions():
    message = r"^config\.streams\.interleaved\.text_length: text of 14 tokens .* 13 learned"
    with pytest.raises(UserError, match=message):
        set_up(config(13, 8, Packing(documents=2, text_length=40)))
