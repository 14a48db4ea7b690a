"""Imports torch files: reads what is there, checks that it fits, says where each tensor goes."""

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from flamingo_jax.convert import clip, clip_config
from flamingo_jax.convert import openflamingo as of
from flamingo_jax.convert.components import (
    Components,
    VisionNames,
    apply_checkpoint,
    check_rows,
    drop_tied_head,
    interval_of,
    language_tensors,
    read_vision,
    split,
)
from flamingo_jax.convert.families import family_of
from flamingo_jax.convert.family import Family, require_keys
from flamingo_jax.errors import UserError
from flamingo_jax.models.connectors.perceiver import PerceiverConfig
from flamingo_jax.models.fusion.gated_cross_attention import GatedCrossAttentionConfig
from flamingo_jax.models.params import init_params, model_graph
from flamingo_jax.models.vision.clip import ClipVisionConfig
from flamingo_jax.models.vlm import ModelConfig
from flamingo_jax.text.special_tokens import SpecialTokens, check_fit, resize_rows
from flamingo_jax.text.tokenizer import grow_tokenizer, load_transformers_tokenizer
from flamingo_jax.weights.readers import read_directory, read_json, read_weights
from flamingo_jax.weights.views import LazyArray, NameTable, Tensors, check, leaves, make_plan

Dtype = Literal["float32", "bfloat16"]
ADAPTER = ("resampler/", "cross_attention/")  # our paths of what OpenFlamingo adds to its backbones


@dataclass(frozen=True, kw_only=True)
class TorchModel:
    """A model as its torch files hold it, not read yet.

    Attributes:
      language_config: the language model's config.json, its vocabulary already grown.
      tokenizer: grown transformers tokenizer; None where none was given.
      components: the tensors themselves.
      vision_names: whose names the vision encoder's tensors have.
      interval: decoder layers per cross-attention.
      language_source: where the language model was read, for errors.
    """

    family: Family
    language_config: dict[str, Any]
    ids: SpecialTokens
    tokenizer: Any
    components: Components
    vision_config: ClipVisionConfig
    vision_names: VisionNames
    interval: int
    language_source: Path


@dataclass(frozen=True, kw_only=True)
class Imported(TorchModel):
    """A torch model with what we make of it: our config, and our parameters by path."""

    config: ModelConfig
    leaves: dict[str, LazyArray]


def import_state_dict(
    weights: Path,
    config: Path,
    *,
    checkpoint: Path | None = None,
    tokenizer: Path | None = None,
    dtype: Dtype = "float32",
) -> Imported:
    """Imports an OpenFlamingo: its `model.state_dict()`, and a config.json with the configs of
    both backbones (`lm_config`, `clip_config`) and the token ids.

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
    components = split(read_weights(weights), family, weights)
    if checkpoint is not None:
        apply_checkpoint(components, checkpoint, family)
    folder = tokenizer or config.parent / "tokenizer"
    loaded = load_transformers_tokenizer(folder) if tokenizer or folder.is_dir() else None
    if loaded is not None and (found := grow_tokenizer(loaded)) != ids:
        raise UserError(
            f"the tokenizer in {folder} gives {found}, {config} says {ids}: give the tokenizer "
            "that belongs to the model"
        )
    model = TorchModel(
        family=family,
        language_config={**language_config, family.vocabulary_key: vocabulary},
        ids=ids,
        tokenizer=loaded,
        components=components,
        vision_config=clip_config.openclip_config(vision_facts),
        vision_names="openclip",
        interval=interval,
        language_source=weights,
    )
    return _assemble(model, dtype)


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
    """Imports a language model and a CLIP, joined by an OpenFlamingo checkpoint or by new modules.

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
    components = Components(language_tensors(read_directory(language), family), vision_tensors, {})
    check_rows(components.language, family, rows, language)
    if checkpoint is not None:
        apply_checkpoint(components, checkpoint, family)
        found = interval_of(components.adapter, checkpoint)
        if interval not in (None, found):
            raise UserError(
                f"--interval is {interval}, but {checkpoint} has a cross-attention before every "
                f"{found} layers: leave --interval out"
            )
        interval = found
    for name in (family.embedding, family.head):
        table = components.language.get(name)
        if table is not None and len(table) == rows:
            components.language[name] = resize_rows(table, ids.vocabulary)
        elif table is not None and len(table) != ids.vocabulary:
            raise UserError(
                f"{checkpoint} has {len(table)} token rows ({name}), the grown tokenizer "
                f"{ids.vocabulary} tokens: give the tokenizer it was trained with"
            )
    model = TorchModel(
        family=family,
        language_config={**language_config, family.vocabulary_key: ids.vocabulary},
        ids=ids,
        tokenizer=grown,
        components=components,
        vision_config=vision_config,
        vision_names=vision_names,
        interval=interval or 1,
        language_source=language,
    )
    return _assemble(model, dtype)


def _connector_config(tensors: Tensors) -> PerceiverConfig:
    """Returns the resampler of a checkpoint, by its tensors' shapes; heads are 64 wide."""

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


def _assemble(model: TorchModel, dtype: Dtype) -> Imported:
    family, components = model.family, model.components
    decoder = dataclasses.replace(
        family.decoder(model.language_config),
        vocab_size=model.ids.end_of_chunk,
        num_new_tokens=2,
        num_pad_tokens=model.ids.vocabulary - model.ids.end_of_chunk - 2,
    )
    if decoder.tie_head:
        drop_tied_head(components.language, family, model.language_source)
    adapter = components.adapter
    config = ModelConfig(
        encoder=model.vision_config,
        decoder=decoder,
        connector=_connector_config(adapter) if adapter else PerceiverConfig(),
        fusion=GatedCrossAttentionConfig(interval=model.interval, feed_forward_everywhere=True),
        dtype=dtype,
    )
    return Imported(**vars(model), config=config, leaves=_leaves(model, config))


def _leaves(model: TorchModel, config: ModelConfig) -> dict[str, LazyArray]:
    """Returns our parameters. UserError: a tensor is missing, left over or of a wrong shape."""
    components, shapes = model.components, model_graph(config).shapes()
    language_rows = of.language_rows(model.family, config.decoder)
    vision_rows = clip.ROWS[model.vision_names](config.encoder)
    groups: list[tuple[tuple[str, ...], NameTable, Tensors, str]] = [
        (("decoder/",), language_rows, components.language, "the language model"),
        (("vision/",), vision_rows, components.vision, "the vision encoder"),
    ]
    if components.adapter:
        adapter_rows = of.adapter_rows(model.family, config)
        groups.append((ADAPTER, adapter_rows, components.adapter, "OpenFlamingo's part"))
    taken: dict[str, LazyArray] = {}
    for prefixes, rows, tensors, what in groups:
        own = {path: leaf for path, leaf in shapes.items() if path.startswith(prefixes)}
        plan = make_plan(own, rows, config.locate)
        check(plan, tensors, what)
        taken |= leaves(plan, tensors)
    if not components.adapter:
        taken |= _fresh(config, [p for p in shapes if p.startswith(ADAPTER)])
    return taken


def _fresh(config: ModelConfig, paths: list[str]) -> dict[str, LazyArray]:
    """Draws parameters anew; the rest of the model is not computed."""
    import jax

    def draw(key: jax.Array) -> dict[str, jax.Array]:
        params = init_params(config, key)
        return {path: params[path] for path in paths}

    drawn = jax.jit(draw)(jax.random.key(0))
    return {p: LazyArray(v.shape, (np.asarray(v),), stacked=False) for p, v in drawn.items()}
