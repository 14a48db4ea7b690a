"""CLIP's text tower in torch files, and the plan of a whole CLIP."""

import re
from pathlib import Path

from flamingo_jax.convert import clip, clip_config
from flamingo_jax.convert.components import VisionNames, read_vision
from flamingo_jax.convert.family import require_keys
from flamingo_jax.errors import UserError
from flamingo_jax.models.clip import ClipConfig, TextConfig
from flamingo_jax.models.params import Params
from flamingo_jax.weights.readers import read_json, read_weights
from flamingo_jax.weights.views import LazyArray, Tensors, check, leaves, make_plan

# A text tower's tensors, as OpenAI and OpenCLIP, and as transformers names them; and the others.
TEXT_NAMES = {
    "openclip": r"^((transformer|ln_final)\.|(token_embedding\.weight|positional_embedding)$"
    r"|text_projection$)",
    "hf": r"^(text_model|text_projection)\.(?!.*position_ids$)",
}
OTHERS = {
    "openclip": r"^(visual\.|(logit_scale|logit_bias|attn_mask)$"
    r"|(input_resolution|context_length|vocab_size)$)",
    "hf": r"^(vision_model|visual_projection)\.|^logit_scale$|\.position_ids$",
}


def read_clip(path: Path, quick_gelu: bool) -> tuple[ClipConfig, VisionNames, Tensors, Tensors]:
    """Reads a CLIP: its config, whose names it has, and the tensors of vision and text tower.

    Raises:
      UserError: the path has no CLIP with both towers and their projections.
    """
    vision, names, vision_tensors = read_vision(path, quick_gelu)
    text, text_tensors = _read_text(path, names, quick_gelu)
    if not vision.projection_width:
        raise UserError(f"{path} has a vision tower without projection: give a whole CLIP")
    try:
        return ClipConfig(vision, text), names, vision_tensors, text_tensors
    except ValueError as error:
        raise UserError(f"{path}: {error}; give the config that belongs to the weights") from None


def _read_text(path: Path, names: VisionNames, quick_gelu: bool) -> tuple[TextConfig, Tensors]:
    # OpenCLIP's newer models keep the text tower in a module of its own.
    every = {re.sub(r"^(module\.)?(text\.)?", "", n): t for n, t in read_weights(path).items()}
    tensors = {n: t for n, t in every.items() if re.search(TEXT_NAMES[names], n)}
    unknown = [n for n in every if n not in tensors and not re.search(OTHERS[names], n)]
    projection, table = {
        "openclip": ("text_projection", "token_embedding.weight"),
        "hf": ("text_projection.weight", "text_model.embeddings.token_embedding.weight"),
    }[names]
    if projection not in tensors or table not in tensors:
        raise UserError(
            f"{path} has no CLIP text tower (no {table} or no {projection}): give a whole CLIP, as "
            "CLIPModel.save_pretrained or OpenCLIP writes it, not a vision tower alone"
        )
    if unknown:
        raise UserError(f"{path} has tensors unknown in a CLIP: {', '.join(sorted(unknown))}")
    if names == "hf":
        return clip_config.hf_text_config(read_json(path / "config.json")), tensors
    config_file = path / "open_clip_config.json"
    if config_file.is_file():
        facts = require_keys(read_json(config_file), "model_cfg")[0]
        return clip_config.openclip_text_config(facts), tensors
    return clip_config.openclip_text_config_of(tensors, quick_gelu), tensors


def clip_leaves(
    shapes: Params,
    config: ClipConfig,
    names: VisionNames,
    vision: Tensors,
    text: Tensors,
    source: Path,
) -> dict[str, LazyArray]:
    """Returns every parameter of a `models.clip.Clip`, not read yet.

    Raises:
      UserError: a tensor is missing, left over or of a wrong shape.
    """
    taken: dict[str, LazyArray] = {}
    for head, rows, tensors in (
        ("vision", clip.ROWS[names](config.vision), vision),
        ("text", clip.TEXT_ROWS[names](config.text), text),
    ):
        part = {path: leaf for path, leaf in shapes.items() if path.startswith(f"{head}/")}
        plan = make_plan(part, rows, config.locate)
        check(plan, tensors, f"the {head} tower in {source}")
        taken |= leaves(plan, tensors)
    return taken
