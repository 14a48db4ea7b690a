"""A training run → the model directory of its latest checkpoint."""

from contextlib import closing
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from flamingo_jax.errors import UserError
from flamingo_jax.models.params import Params, cast, init_params, model_graph, select
from flamingo_jax.text.tokenizer import TextTokenizer, load_tokenizer
from flamingo_jax.train.checkpoint import Checkpointer, check_frozen
from flamingo_jax.train.config import TrainConfig, read_config
from flamingo_jax.train.fingerprint import fingerprints
from flamingo_jax.weights.model_directory import Provenance, open_directory, write_directory
from flamingo_jax.weights.views import LazyArray


def write_run(workdir: Path, out: Path) -> int:
    """Writes the model of a run's latest checkpoint; returns its step.

    The data of the run is not needed. What it kept frozen is read from where it began: the model
    directory of `init_from`, or the random start that its seed gives.

    Raises:
      UserError: `workdir` holds no run or no checkpoint, or a damaged one; `init_from` is no longer
        what the run began with; `out` exists.
    """
    config_path = workdir / "config.json"
    if not config_path.is_file() or not (workdir / "checkpoints").is_dir():
        raise UserError(f"{workdir} holds no run with a checkpoint: train one there first")
    config = read_config(config_path)
    shapes = model_graph(config.model).shapes()
    trained = select(shapes, config.trainable)
    with closing(Checkpointer(workdir)) as checkpointer:
        found = checkpointer.trained_params({path: shapes[path] for path in trained})
    if found is None:
        raise UserError(f"{workdir} holds no checkpoint yet: train further first")
    params, facts = found
    step = facts["step"]

    leaves = _frozen(config, [path for path in shapes if path not in trained])
    check_frozen(facts, _fingerprints(leaves, config.frozen_dtype))
    leaves |= {path: _leaf(value) for path, value in params.items()}
    tokens = load_tokenizer(config.tokenizer, config.model.decoder.vocab_size)
    origin = (
        open_directory(config.init_from).origin
        if config.init_from
        else Provenance("", {}, _ids(tokens), {"workdir": str(workdir.resolve()), "step": step})
    )
    ordered = {path: leaves[path] for path in shapes}
    write_directory(out, config.model, origin, ordered, _for_transformers(tokens))
    return step


def _leaf(value: Any) -> LazyArray:
    return LazyArray(value.shape, (np.asarray(value),), stacked=False)


def _frozen(config: TrainConfig, paths: list[str]) -> dict[str, LazyArray]:
    if not paths:
        return {}
    if config.init_from:
        leaves = open_directory(config.init_from).leaves
        return {path: leaves[path] for path in paths}

    def draw(key: jax.Array) -> Params:
        params = init_params(config.model, key)
        return cast({path: params[path] for path in paths}, config.frozen_dtype)

    return {path: _leaf(x) for path, x in jax.jit(draw)(jax.random.key(config.seed)).items()}


def _fingerprints(leaves: dict[str, LazyArray], dtype: str) -> dict[str, str]:
    """Returns what training takes of its frozen weights, with one weight in memory at a time."""
    found: dict[str, str] = {}
    for path, leaf in leaves.items():
        found |= fingerprints({path: jnp.asarray(leaf.read(jnp.dtype(dtype)))})
    return found


def _ids(tokens: TextTokenizer) -> dict[str, int]:
    return {"end_of_chunk": tokens.special.end_of_chunk, "image": tokens.special.image}


def _for_transformers(tokens: TextTokenizer) -> Any:
    from transformers import PreTrainedTokenizerFast

    return PreTrainedTokenizerFast(
        tokenizer_object=tokens.tokenizer,
        eos_token=tokens.end_of_text,
        pad_token=tokens.tokenizer.id_to_token(tokens.special.pad),
        clean_up_tokenization_spaces=False,
    )
