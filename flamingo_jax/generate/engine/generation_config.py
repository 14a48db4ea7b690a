"""Settings of a generation, and which of them are compiled in or traced."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool

from flamingo_jax.generate.engine import beam
from flamingo_jax.generate.engine.batching import PaddedPrompts, bucket
from flamingo_jax.generate.engine.sampling import SamplingParams
from flamingo_jax.models.vlm import ModelConfig


@dataclass(frozen=True, kw_only=True)
class GenerationConfig:
    """Says how to continue a prompt. The names are those of transformers, where it has them."""

    max_new_tokens: int = 32
    min_new_tokens: int = 0  # before these, no stop token comes
    num_return_sequences: int = 1
    temperature: float = 0.0  # 0: greedy, or beam search
    top_k: int = 0  # 0: all
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    no_repeat_ngram_size: int = 0  # 0: n-grams may repeat
    num_beams: int = 1
    length_penalty: float = 1.0
    early_stopping: beam.EarlyStopping = False
    # transformers ≤ 4.35, with which OpenFlamingo was evaluated, counted prompt and padding in the
    # length that `length_penalty` sees.
    length_penalty_counts_prompt: bool = False
    stop_tokens: tuple[int, ...] | None = None  # None: <|endofchunk|>
    bad_tokens: tuple[int, ...] | None = None  # never generated; None: <image>
    pad_token: int = 0  # after a row's end

    def __post_init__(self) -> None:
        bounds = {
            "max_new_tokens": self.max_new_tokens >= 1,
            "min_new_tokens": self.min_new_tokens >= 0,
            "num_return_sequences": self.num_return_sequences >= 1,
            "temperature": self.temperature >= 0,
            "top_k": self.top_k >= 0,
            "top_p": 0 < self.top_p <= 1,
            "min_p": 0 <= self.min_p <= 1,
            "repetition_penalty": self.repetition_penalty > 0,
            "no_repeat_ngram_size": self.no_repeat_ngram_size >= 0,
            "num_beams": self.num_beams >= 1,
            "early_stopping": self.early_stopping in (True, False, "never"),
        }
        for name, is_within in bounds.items():
            if not is_within:
                raise ValueError(f"{name} is {getattr(self, name)!r}, which is out of its range")
        if self.num_beams > 1 and self.temperature > 0:
            raise ValueError(
                f"num_beams is {self.num_beams} and temperature {self.temperature}: beam search "
                "draws nothing; set temperature=0, or num_beams=1 to sample"
            )
        if self.temperature == 0 and self.num_return_sequences > self.num_beams:
            raise ValueError(
                f"num_return_sequences is {self.num_return_sequences} with {self.num_beams} "
                "beam(s): set num_beams as high, or a temperature to sample different sequences"
            )

    @property
    def width(self) -> int:
        """Continuations of a row that are run side by side."""
        return self.num_beams if self.num_beams > 1 else self.num_return_sequences


class StaticOptions(NamedTuple):
    """Holds what of a generation is compiled in."""

    width: int
    new_tokens: int  # bucket that holds them
    num_stop: int
    beams: bool
    sample: bool
    repetition: bool
    no_repeat_ngram: int
    early_stopping: beam.EarlyStopping
    count_prompt: bool


def method_of(config: GenerationConfig, model: ModelConfig) -> StaticOptions:
    beams = config.num_beams > 1
    return StaticOptions(
        width=config.width,
        new_tokens=bucket(config.max_new_tokens, 8),
        num_stop=len(_stop_tokens(config, model)) if beams else 0,
        beams=beams,
        sample=config.temperature > 0,
        repetition=config.repetition_penalty != 1,
        no_repeat_ngram=config.no_repeat_ngram_size,
        early_stopping=config.early_stopping if beams else False,
        count_prompt=config.length_penalty_counts_prompt and beams,
    )


def knobs_of(
    config: GenerationConfig, model: ModelConfig, padded: PaddedPrompts, seeds: Sequence[int]
) -> SamplingParams:
    size = model.decoder.total_vocab_size

    def among(tokens: tuple[int, ...], name: str) -> Bool[np.ndarray, "V"]:
        for token in tokens:
            if not 0 <= token < size:
                raise ValueError(f"{name} has {token}, the vocabulary has {size} tokens")
        return np.isin(np.arange(size), tokens)

    if len(seeds) != padded.num_rows:
        raise ValueError(
            f"there are {len(seeds)} seeds for {padded.num_rows} prompts: give each one"
        )
    for seed in seeds:
        if not 0 <= seed < 2**32:
            raise ValueError(f"a seed is {seed}: give whole numbers from 0 to {2**32 - 1}")
    seeds = [*seeds, *[0] * (len(padded.active_B) - len(seeds))]
    return SamplingParams(
        temperature=jnp.float32(config.temperature or 1),
        top_k=jnp.int32(config.top_k),
        top_p=jnp.float32(config.top_p),
        min_p=jnp.float32(config.min_p),
        repetition_penalty=jnp.float32(config.repetition_penalty),
        length_penalty=jnp.float32(config.length_penalty),
        min_new_tokens=jnp.int32(config.min_new_tokens),
        max_new_tokens=jnp.int32(config.max_new_tokens),
        prompt_width=jnp.int32(padded.given_length),
        pad_token=jnp.int32(config.pad_token),
        is_stop_V=jnp.asarray(among(_stop_tokens(config, model), "stop_tokens")),
        is_bad_V=jnp.asarray(
            among(
                _bad_tokens(config, model),
                "bad_tokens",
            )
        ),
        keys_B=_keys(np.asarray(seeds, np.uint32)),
    )


def may_show_images(config: GenerationConfig, model: ModelConfig, padded: PaddedPrompts) -> bool:
    """Returns whether a continuation can see an image that its prompt has not shown yet."""
    if model.fusion.uniform_beyond_images:  # an <image> too many sees all of its row
        return True
    is_bad = model.image_token in _bad_tokens(config, model)
    return not is_bad and padded.has_spare_images(model.image_token)


def _bad_tokens(config: GenerationConfig, model: ModelConfig) -> tuple[int, ...]:
    return (model.image_token,) if config.bad_tokens is None else config.bad_tokens


def _stop_tokens(config: GenerationConfig, model: ModelConfig) -> tuple[int, ...]:
    return (model.end_of_chunk_token,) if config.stop_tokens is None else config.stop_tokens


_keys = jax.jit(jax.vmap(jax.random.key))
