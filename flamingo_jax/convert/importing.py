"""From torch files to our parameters: what is there, whether it fits, and where each part goes."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from flamingo_jax.convert import clip, clip_config
from flamingo_jax.convert import openflamingo as of
from flamingo_jax.convert.families import family_of
from flamingo_jax.convert.family import Family, require_keys
from flamingo_jax.convert.parts import (
    Parts,
    VisionNames,
    apply_checkpoint,
    check_rows,
    drop_tied_head,
    interval_of,
    language_tensors,
    read_vision,
    split,
)
from flamingo_jax.errors import UserError
from flamingo_jax.models.connectors.perceiver import PerceiverConfig
from flamingo_jax.models.fusion.cross_attention import GatedCrossAttentionConfig
from flamingo_jax.models.params import init_params, model_graph
from flamingo_jax.models.vision.clip import ClipVisionConfig
from flamingo_jax.models.vlm import ModelConfig
from flamingo_jax.text.special_tokens import SpecialTokens, check_fit, resize_rows
from flamingo_jax.text.tokenizer import grow_tokenizer, load_transformers_tokenizer
from flamingo_jax.weights.readers import read_directory, read_json, read_weights
from flamingo_jax.weights.views import LazyArray, NameTable, Tensors, check, leaves, make_plan

Dtype = Literal["float32", "bfloat16"]
Vision = tuple[ClipVisionConfig, VisionNames]


@dataclass(frozen=True)
class Imported:
    """A model made of torch files, not read yet.

    Attributes:
      language_config: the torch language model's config.json, its vocabulary already grown.
      tokenizer: grown transformers tokenizer; None where none was given.
      parts: the torch tensors themselves.
    """

    config: ModelConfig
    family: Family
    language_config: dict[str, Any]
    ids: SpecialTokens
    tokenizer: Any
    leaves: dict[str, LazyArray]
    parts: Parts
    vision_names: VisionNames


def import_state_dict(
    weights: Path,
    config: Path,
    *,
    checkpoint: Path | None = None,
    tokenizer: Path | None = None,
    dtype: Dtype = "float32",
) -> Imported:
    """A whole OpenFlamingo model: `model.state_dict()` and a config.json with the configs of both
    backbones (`lm_config`, `clip_config`) and the token ids.

    Raises:
      UserError: see the functions called.
    """
    facts = read_json(config)
    language_config, vision_facts, interval, vocabulary, end_of_chunk, image, pad = require_keys(
        facts,
        "lm_config",
        "clip_config",
        "cross_attn_every_n_layers",
        "vocab_size_after_resize",
        "eoc_token_id",
        "media_token_id",
        "pad_token_id",
    )
    family = family_of(language_config)
    ids = SpecialTokens(end_of_chunk, image, pad, vocabulary)
    parts = split(read_weights(weights), family, weights)
    if checkpoint is not None:
        apply_checkpoint(parts, checkpoint, family)
    folder = tokenizer or config.parent / "tokenizer"
    loaded = load_transformers_tokenizer(folder) if tokenizer or folder.is_dir() else None
    if loaded is not None and (found := grow_tokenizer(loaded)) != ids:
        raise UserError(
            f"the tokenizer in {folder} gives {found}, {config} says {ids}: give the tokenizer "
            "that belongs to the model"
        )
    language_config = {**language_config, family.vocabulary_key: vocabulary}
    vision: Vision = (clip_config.openclip_config(vision_facts), "openclip")
    return _assemble(parts, family, language_config, ids, loaded, vision, interval, dtype, weights)


def import_backbones(
    language: Path,
    vision: Path,
    *,
    checkpoint: Path | None = None,
    tokenizer: Path | None = None,
    interval: int | None = None,
    quick_gelu: bool = True,
    dtype: Dtype = "float32",
) -> Imported:
    """A language model and a CLIP, joined by an OpenFlamingo checkpoint or by fresh modules.

    Args:
      language: directory as the Hub lays it out.
      vision: such a directory, or a file of OpenCLIP's or OpenAI's.
      checkpoint: what OpenFlamingo released or saved; None: resampler and cross-attention are new.
      tokenizer: directory, where it is not that of the language model.
      interval: decoder layers per cross-attention; None: as in the checkpoint, else 1.
      quick_gelu: the activation of a CLIP file that comes without a config.
      dtype: of the weights we write, and of the model's activations.

    Raises:
      UserError: see the functions called.
    """
    language_config = read_json(language / "config.json")
    family = family_of(language_config)
    folder = tokenizer or language
    grown = load_transformers_tokenizer(folder)
    ids = grow_tokenizer(grown)
    rows = family.decoder(language_config).vocab_size
    check_fit(ids, rows, folder)

    vision_config, vision_names, vision_tensors = read_vision(vision, quick_gelu)
    parts = Parts(language_tensors(read_directory(language), family), vision_tensors, {})
    check_rows(parts.language, family, rows, language)
    if checkpoint is not None:
        apply_checkpoint(parts, checkpoint, family)
        found = interval_of(parts.joining, checkpoint)
        if interval not in (None, found):
            raise UserError(
                f"--interval is {interval}, but {checkpoint} has a cross-attention before every "
                f"{found} layers: leave --interval out"
            )
        interval = found
    for name in (family.embedding, family.head):
        table = parts.language.get(name)
        if table is not None and len(table) == rows:
            parts.language[name] = resize_rows(table, ids.vocabulary)
        elif table is not None and len(table) != ids.vocabulary:
            raise UserError(
                f"{checkpoint} has {len(table)} token rows ({name}), the grown tokenizer "
                f"{ids.vocabulary} tokens: give the tokenizer it was trained with"
            )
    language_config = {**language_config, family.vocabulary_key: ids.vocabulary}
    return _assemble(
        parts,
        family,
        language_config,
        ids,
        grown,
        (vision_config, vision_names),
        interval or 1,
        dtype,
        language,
    )


def _joining_config(tensors: Tensors) -> PerceiverConfig:
    """Sizes of the resampler in a checkpoint; heads are 64 wide."""

    def rows(name: str, default: int = 0) -> int:
        return len(tensors[name]) if name in tensors else default

    numbers = {n.split(".")[2] for n in tensors if n.startswith("perceiver.layers.")}
    first = "perceiver.layers.0"
    width = tensors["perceiver.latents"].shape[-1] if "perceiver.latents" in tensors else 1
    default = PerceiverConfig()
    return PerceiverConfig(
        num_layers=len(numbers),
        num_latents=rows("perceiver.latents", default.num_latents),
        num_heads=rows(f"{first}.0.to_q.weight", 512) // 64,
        feed_forward_multiple=rows(f"{first}.1.1.weight", 4 * width) // width,
        max_frames=rows("perceiver.frame_embs"),
        max_media=rows("perceiver.media_time_embs"),
    )


def _assemble(
    parts: Parts,
    family: Family,
    language_config: Mapping[str, Any],
    ids: SpecialTokens,
    tokenizer: Any,
    vision: Vision,
    interval: int,
    dtype: Dtype,
    source: Path,
) -> Imported:
    decoder = dataclasses.replace(
        family.decoder(language_config),
        vocab_size=ids.end_of_chunk,
        num_new_tokens=2,
        num_pad_tokens=ids.vocabulary - ids.end_of_chunk - 2,
    )
    if decoder.tie_head:
        drop_tied_head(parts.language, family, source)
    config = ModelConfig(
        encoder=vision[0],
        decoder=decoder,
        connector=_joining_config(parts.joining) if parts.joining else PerceiverConfig(),
        fusion=GatedCrossAttentionConfig(interval=interval, feed_forward_everywhere=True),
        dtype=dtype,
    )
    shapes = model_graph(config).shapes()
    language_rows = of.language_rows(family, decoder)
    taken: dict[str, LazyArray] = {}
    joining = ("resampler/", "cross_attention/")
    groups: list[tuple[tuple[str, ...], NameTable, Tensors, str]] = [
        (("decoder/",), language_rows, parts.language, "the language model"),
        (("vision/",), clip.ROWS[vision[1]](config.encoder), parts.vision, "the vision encoder"),
    ]
    if parts.joining:
        rows = of.joining_rows(family, config)
        groups.append((joining, rows, parts.joining, "OpenFlamingo's part"))
    for prefixes, rows, tensors, what in groups:
        plan = make_plan({p: s for p, s in shapes.items() if p.startswith(prefixes)}, config, rows)
        check(plan, tensors, what)
        taken |= leaves(plan, tensors)
    if not parts.joining:
        taken |= _fresh(config, [p for p in shapes if p.startswith(joining)])
    return Imported(config, family, dict(language_config), ids, tokenizer, taken, parts, vision[1])


def _fresh(config: ModelConfig, paths: list[str]) -> dict[str, LazyArray]:
    """Newly drawn parameters; the rest of the model is not computed."""
    import jax

    def draw(key: jax.Array) -> dict[str, jax.Array]:
        params = init_params(config, key)
        return {path: params[path] for path in paths}

    drawn = jax.jit(draw)(jax.random.key(0))
    return {p: LazyArray(v.shape, (np.asarray(v),), stacked=False) for p, v in drawn.items()}
