"""Torch files sorted into the components of a model: encoder, language model, and adapter."""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from flamingo_jax.convert import clip, clip_config
from flamingo_jax.convert import openflamingo_names as names
from flamingo_jax.convert.family import Family, require_keys
from flamingo_jax.errors import UserError
from flamingo_jax.models.vision.clip import ClipVisionConfig
from flamingo_jax.weights.readers import read_file, read_json, read_weights
from flamingo_jax.weights.views import Tensors

VisionNames = Literal["openclip", "hf"]


@dataclass
class Components:
    """Tensors by what they belong to, under the names that each component's own table uses.

    Attributes:
      language: the language model's.
      vision: the vision encoder's.
      adapter: what OpenFlamingo adds to the two, its resampler and cross-attentions; {}: nothing.
    """

    language: Tensors
    vision: Tensors
    adapter: Tensors


def read_vision(path: Path, quick_gelu: bool) -> tuple[ClipVisionConfig, VisionNames, Tensors]:
    """Returns (config, whose names, tensors) of CLIP's vision tower, whoever wrote the file."""
    tensors = read_weights(path)
    tensors = {re.sub(r"^module\.", "", name): t for name, t in tensors.items()}
    if any(".encoder.layers." in f".{name}" for name in tensors):
        if not path.is_dir():
            raise UserError(f"{path} has transformers' names: give its directory, with config.json")
        tensors = _without(tensors, clip.HF_OTHERS)
        tensors = {
            re.sub(
                r"^(embeddings|encoder|pre_layrnorm|post_layernorm)\.", r"vision_model.\g<0>", n
            ): t
            for n, t in tensors.items()
        }
        projected = "visual_projection.weight" in tensors
        return clip_config.hf_config(read_json(path / "config.json"), projected), "hf", tensors
    for prefix in ("visual.", "vision_encoder."):
        if f"{prefix}conv1.weight" in tensors:
            others = [n for n in tensors if not n.startswith(prefix)]
            unknown = [n for n in others if not _matches(n, clip.OPENCLIP_OTHERS)]
            tensors = {n.removeprefix(prefix): t for n, t in tensors.items() if n not in others}
            if unknown:
                raise UserError(f"{path} has tensors unknown in a CLIP: {', '.join(unknown)}")
    if "conv1.weight" not in tensors:
        raise UserError(
            f"{path} has no CLIP vision tower (no conv1.weight, visual.conv1.weight or "
            "vision_model.*): give a CLIP directory of the Hub, or a file of OpenCLIP's or OpenAI's"
        )
    config_file = path / "open_clip_config.json"
    if config_file.is_file():
        config = clip_config.openclip_config(require_keys(read_json(config_file), "model_cfg")[0])
    else:
        config = clip_config.openclip_config_of(tensors, quick_gelu)
    return config, "openclip", tensors


def _matches(name: str, patterns: Iterable[str]) -> bool:
    return any(re.search(pattern, name) for pattern in patterns)


def _without(tensors: Tensors, patterns: Iterable[str]) -> Tensors:
    patterns = tuple(patterns)
    return {name: t for name, t in tensors.items() if not _matches(name, patterns)}


def language_tensors(tensors: Tensors, family: Family) -> Tensors:
    """Returns tensors under this family's names, without buffers."""
    renamed = {}
    for name, tensor in _without(tensors, family.buffers).items():
        for pattern, replacement in family.renames:
            name = re.sub(pattern, replacement, name)
        renamed[name] = tensor
    return renamed


def split(state: Tensors, family: Family, source: Path) -> Components:
    """Sorts OpenFlamingo's state dict. UserError: tensors that it does not have."""
    components = Components({}, {}, {})
    unknown = []
    for original, tensor in state.items():
        name = names.canonical(family, original)
        if name.startswith("perceiver.") or ".gated_cross_attn_layer." in name:
            components.adapter[name] = tensor
        elif name.startswith("lang_encoder."):
            components.language[names.unwrap(family, name)] = tensor
        elif name.startswith("vision_encoder."):
            components.vision[name.removeprefix("vision_encoder.")] = tensor
        else:
            unknown.append(original)
    if unknown:
        raise UserError(
            f"{source} has tensors that are no OpenFlamingo's: {', '.join(sorted(unknown))}; "
            f"names begin with perceiver., lang_encoder. or vision_encoder."
        )
    components.language = language_tensors(components.language, family)
    return components


def apply_checkpoint(components: Components, checkpoint: Path, family: Family) -> None:
    """Puts what OpenFlamingo saved in the place of the backbones' own tensors."""
    trained = split(read_file(checkpoint), family, checkpoint)
    components.language |= trained.language
    components.vision |= trained.vision
    components.adapter |= trained.adapter


def interval_of(adapter: Tensors, checkpoint: Path) -> int:
    """Returns how many decoder layers there are per cross-attention.

    Layer i has one where (i + 1) % interval == 0, so the first one tells.
    """
    layers = [
        int(match[1])
        for name in adapter
        if (match := re.search(r"\.(\d+)\.gated_cross_attn_layer\.", name))
    ]
    if not layers:
        raise UserError(
            f"{checkpoint} has no gated cross-attention of this language model: give the "
            "checkpoint that belongs to it"
        )
    return min(layers) + 1


def check_rows(tensors: Tensors, family: Family, rows: int, source: Path) -> None:
    table = tensors.get(family.embedding)
    if table is not None and len(table) != rows:
        raise UserError(
            f"{source}: {family.embedding} has shape {list(table.shape)}, expected "
            f"{rows} rows as its config.json says"
        )


def drop_tied_head(tensors: Tensors, family: Family, source: Path) -> None:
    head = tensors.get(family.head)
    if head is None:
        return
    if not np.array_equal(head, tensors.get(family.embedding, head)):
        raise UserError(
            f"{source}: config.json says that {family.head} is tied to {family.embedding}, but "
            "the two differ; set tie_word_embeddings to what the weights are"
        )
    del tensors[family.head]
