"""Describes families of language models, and helps to read their config.json."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from flamingo_jax.errors import UserError
from flamingo_jax.models.decoder import DecoderConfig
from flamingo_jax.weights.views import NameTable

LMConfig = Mapping[str, Any]  # a config.json


@dataclass(frozen=True)
class Family:
    """One family of torch language models.

    Attributes:
      name: as we call it.
      model_types: values of `model_type` in config.json.
      decoder: config.json → our config, with all of its vocabulary as pretrained rows.
      rows: our config → the table of everything but the vocabulary.
      layers: the torch module that lists the decoder layers.
      embedding, head: the vocabulary's tensors. A tied head may be stored again under its name.
      vocabulary_key: of config.json.
      buffers: regular expressions of tensors that hold no weights and may be in a file.
      renames: (regular expression, replacement) bringing older names to the ones used here.
      repeats_tied_head: a tied head is in the state dict again, under its own name.
      computed: buffers that the state dict has beside its weights.
    """

    name: str
    model_types: tuple[str, ...]
    decoder: Callable[[LMConfig], DecoderConfig]
    rows: Callable[[DecoderConfig], NameTable]
    layers: str
    embedding: str
    head: str = "lm_head.weight"
    vocabulary_key: str = "vocab_size"
    buffers: tuple[str, ...] = ()
    renames: tuple[tuple[str, str], ...] = ()
    repeats_tied_head: bool = True
    computed: Callable[[DecoderConfig], Mapping[str, np.ndarray]] = lambda config: {}


def require_keys(config: LMConfig, *keys: str) -> list[Any]:
    """Returns the values of these keys. UserError: some are not there."""
    missing = [key for key in keys if config.get(key) is None]
    if missing:
        raise UserError(
            f"config.json of this {config.get('model_type')!r} model lacks {', '.join(missing)}: "
            "give the config.json that belongs to the weights"
        )
    return [config[key] for key in keys]


def require_values(config: LMConfig, **supported: Any) -> None:
    """Raises a UserError where a setting that is there has another value than the supported one."""
    for key, value in supported.items():
        given = config.get(key, value)
        if given != value and not (given in (None, False, 0) and not value):
            raise UserError(
                f"config.json has {key} = {given!r}, but only {value!r} is supported for "
                f"model_type {config.get('model_type')!r}"
            )


ACTIVATION_NAMES = {
    "gelu": "gelu",
    "gelu_python": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "quick_gelu": "quick_gelu",
    "relu": "relu",
    "silu": "silu",
    "swish": "silu",
}


def activation(config: LMConfig, key: str, default: str) -> Any:
    given = config.get(key) or default
    if given not in ACTIVATION_NAMES:
        raise UserError(
            f"config.json has {key} = {given!r}; known activations: {', '.join(ACTIVATION_NAMES)}"
        )
    return ACTIVATION_NAMES[given]


def rope(config: LMConfig) -> Mapping[str, Any]:
    """Returns rotary settings, wherever this version of transformers wrote them.

    Raises:
      UserError: a scaled rotary embedding, which this project does not have.
    """
    new = config.get("rope_parameters") or {}
    scaling = config.get("rope_scaling") or {}
    kind = new.get("rope_type") or scaling.get("rope_type") or scaling.get("type") or "default"
    if kind != "default":
        raise UserError(
            f"config.json asks for rotary positions of type {kind!r}; only plain ones are supported"
        )
    return {
        "theta": new.get("rope_theta") or config.get("rope_theta") or config.get("rotary_emb_base"),
        "fraction": new.get("partial_rotary_factor") or config.get("rotary_pct"),
    }
