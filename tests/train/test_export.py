"""The model directory of a training run."""

from contextlib import closing

import jax
import numpy as np
import pytest

import flamingo_jax
from flamingo_jax.convert import __main__ as convert
from flamingo_jax.errors import UserError
from flamingo_jax.schema import build
from flamingo_jax.train.checkpoint import Checkpointer
from flamingo_jax.train.config import TrainConfig
from flamingo_jax.train.initial_weights import InitialWeights
from flamingo_jax.train.setup import set_up
from flamingo_jax.weights.model_directory import open_directory
from tests import tiny


def test_it_holds_what_was_trained_and_what_stayed_frozen(flamingo, model_dir):
    """Against the way that evaluation takes."""
    config = build(TrainConfig, tiny.get_config().to_dict())
    setup = set_up(config, jax.devices()[:1])
    with closing(Checkpointer(model_dir.parent / "run")) as checkpointer:
        state, _ = checkpointer.restore(setup.state_shapes)
    frozen = InitialWeights(setup, config.seed).frozen()
    expected = {**state.params, **frozen}
    assert flamingo.params.keys() == expected.keys()
    for path, value in expected.items():
        np.testing.assert_array_equal(flamingo.params[path], np.asarray(value, np.float32), path)


def test_its_tokenizer_is_that_of_the_run(flamingo, model_dir):
    ids = flamingo.processor.tokenizer("<image>a handwritten two<|endofchunk|>").input_ids
    assert (ids[0], ids[-1]) == (flamingo.config.image_token, flamingo.config.end_of_chunk_token)
    assert flamingo.processor.tokenizer.decode(ids, skip_special_tokens=True) == (
        "a handwritten two"
    )
    assert open_directory(model_dir).origin.source["step"] == 6


def test_mistakes_are_answered(model_dir, tmp_path, capsys):
    def command(*args):
        return convert.main(["convert", *map(str, args)])

    command("from-run", "--workdir", model_dir.parent / "run", "--out", tmp_path / "again")
    assert "after step 6" in capsys.readouterr().out
    with pytest.raises(UserError, match="holds no run with a checkpoint: train one there first"):
        command("from-run", "--workdir", tmp_path, "--out", tmp_path / "new")
    with pytest.raises(UserError, match="exists already"):
        command("from-run", "--workdir", model_dir.parent / "run", "--out", model_dir)
    with pytest.raises(UserError, match="did not come from a torch model"):
        command("export", "--dir", model_dir, "--to", "hf", "--out", tmp_path / "hf")
    with pytest.raises(UserError, match="did not come from a torch model"):
        command("verify", "--dir", model_dir)
    with pytest.raises(
        UserError, match=r"is no model directory .* or `from-run` of a training run"
    ):
        flamingo_jax.load(model_dir.parent / "run")
