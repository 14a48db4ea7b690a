"""The configs of CLIP's towers, from wherever a file or directory states them."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from flamingo_jax.convert.family import activation, require_keys
from flamingo_jax.models.clip import TextConfig
from flamingo_jax.models.vision.clip import ClipVisionConfig


def openclip_config(config: Mapping[str, Any]) -> ClipVisionConfig:
    """Reads OpenCLIP's model config (`embed_dim`, `vision_cfg`, `quick_gelu`)."""
    vision = config["vision_cfg"]
    size, width = require_keys(vision, "image_size", "width")
    return ClipVisionConfig(
        **_openclip_blocks(config, vision),
        num_heads=width // (vision.get("head_width") or 64),
        image_size=size,
        patch_size=vision.get("patch_size") or 16,
        projection_width=require_keys(config, "embed_dim")[0],
    )


def openclip_config_of(tensors: Mapping[str, np.ndarray], quick_gelu: bool) -> ClipVisionConfig:
    """Infers sizes from the shapes in a bare state dict."""
    width, _, patch, _ = tensors["conv1.weight"].shape
    patches = tensors["positional_embedding"].shape[0] - 1
    return ClipVisionConfig(
        **_blocks_of(tensors, width, quick_gelu),
        image_size=round(patches**0.5) * patch,
        patch_size=patch,
        projection_width=tensors["proj"].shape[1],
    )


def hf_config(config: Mapping[str, Any], projected: bool) -> ClipVisionConfig:
    """Reads the config.json of a CLIP model or of its vision tower alone."""
    vision = {**config, **(config.get("vision_config") or {})}
    projection = config.get("projection_dim") or vision.get("projection_dim") or 512
    return ClipVisionConfig(
        **_hf_blocks(vision),
        image_size=vision.get("image_size") or 224,
        patch_size=vision.get("patch_size") or 32,
        projection_width=projection if projected else 0,
        post_norm=not projected,
    )


def openclip_text_config(config: Mapping[str, Any]) -> TextConfig:
    """Reads OpenCLIP's model config (`embed_dim`, `text_cfg`, `quick_gelu`)."""
    text = config["text_cfg"]
    return TextConfig(
        **_openclip_blocks(config, text),
        num_heads=require_keys(text, "heads")[0],
        vocab_size=text.get("vocab_size") or 49408,
        max_length=text.get("context_length") or 77,
        projection_width=require_keys(config, "embed_dim")[0],
    )


def openclip_text_config_of(tensors: Mapping[str, np.ndarray], quick_gelu: bool) -> TextConfig:
    """Infers sizes from the shapes in a bare state dict."""
    vocab_size, width = tensors["token_embedding.weight"].shape
    return TextConfig(
        **_blocks_of(tensors, width, quick_gelu),
        vocab_size=vocab_size,
        max_length=len(tensors["positional_embedding"]),
        projection_width=tensors["text_projection"].shape[1],
    )


def hf_text_config(config: Mapping[str, Any]) -> TextConfig:
    """Reads the config.json of a CLIP model."""
    text = {**config, **(config.get("text_config") or {})}
    end = text.get("eos_token_id", 49407)
    return TextConfig(
        **_hf_blocks(text),
        vocab_size=text.get("vocab_size") or 49408,
        max_length=text.get("max_position_embeddings") or 77,
        projection_width=config.get("projection_dim") or 512,
        # Old configs say 2, which is no token of CLIP's: transformers then takes the highest id.
        end_token=None if end == 2 else end,
    )


def _openclip_blocks(config: Mapping[str, Any], tower: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a tower's settings but for its heads, which OpenCLIP states in two ways."""
    width, layers = require_keys(tower, "width", "layers")
    return {
        "width": width,
        "num_layers": layers,
        "mlp_width": int(width * (tower.get("mlp_ratio") or 4)),
        "activation": "quick_gelu" if config.get("quick_gelu") else "gelu",
    }


def _blocks_of(tensors: Mapping[str, np.ndarray], width: int, quick_gelu: bool) -> dict[str, Any]:
    """Returns a tower's settings; heads are 64 wide in every CLIP released as a bare state dict."""
    layers = {n.split(".")[2] for n in tensors if n.startswith("transformer.resblocks.")}
    return {
        "width": width,
        "num_layers": len(layers),
        "num_heads": max(width // 64, 1),
        "mlp_width": tensors["transformer.resblocks.0.mlp.c_fc.weight"].shape[0],
        "activation": "quick_gelu" if quick_gelu else "gelu",
    }


def _hf_blocks(tower: Mapping[str, Any]) -> dict[str, Any]:
    width, layers, heads, hidden = require_keys(
        tower, "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size"
    )
    return {
        "width": width,
        "num_layers": layers,
        "num_heads": heads,
        "mlp_width": hidden,
        "activation": activation(tower, "hidden_act", "quick_gelu"),
        "norm_eps": tower.get("layer_norm_eps") or 1e-5,
    }


def to_hf_config(c: ClipVisionConfig) -> dict[str, Any]:
    """Returns the config.json with which transformers builds this vision encoder."""
    return {
        "architectures": [
            "CLIPVisionModelWithProjection" if c.projection_width else "CLIPVisionModel"
        ],
        "model_type": "clip_vision_model",
        "hidden_size": c.width,
        "intermediate_size": c.hidden_width,
        "num_hidden_layers": c.num_layers,
        "num_attention_heads": c.num_heads,
        "hidden_act": c.activation,
        "layer_norm_eps": c.norm_eps,
        "image_size": c.image_size,
        "patch_size": c.patch_size,
        "projection_dim": c.projection_width or 512,
    }
