"""CLIP's towers, under the names of OpenAI and OpenCLIP and under those of transformers."""

from dataclasses import replace

from flamingo_jax.models.clip import TextConfig
from flamingo_jax.models.transformer import BlockConfig
from flamingo_jax.models.vision.clip import ClipVisionConfig
from flamingo_jax.weights.views import (
    NameTable,
    TensorView,
    array,
    identity,
    linear,
    norm,
    nth_block,
)

# What the files hold beside the vision tower.
OPENCLIP_OTHERS = (
    r"^(transformer|token_embedding|ln_final)\.",
    r"^(positional_embedding|text_projection|logit_scale|logit_bias)$",
    r"^(input_resolution|context_length|vocab_size)$",
    r"^(text|attn_mask)(\.|$)",
)
HF_OTHERS = (
    r"^(text_model|text_projection)\.",
    r"^logit_scale$",
    r"\.position_ids$",
)


def _patches(name: str, c: ClipVisionConfig) -> NameTable:
    # Ours multiplies patches laid out (row, column, colour); torch's convolution is (out, colour,
    # row, column).
    shape = (c.width, 3, c.patch_size, c.patch_size)
    return {
        "vision/patch_embedding/kernel": TensorView(name, shape, lambda t: t.transpose(2, 3, 1, 0))
    }


def _openclip_layers(ours: str, c: BlockConfig) -> NameTable:
    layer, width = "transformer.resblocks.{i}.", c.width
    rows = norm(f"{ours}/attention_norm", f"{layer}ln_1", width)
    rows |= norm(f"{ours}/mlp_norm", f"{layer}ln_2", width)
    for index, name in enumerate(("query", "key", "value")):
        # torch's MultiheadAttention writes an underscore where modules have a dot.
        fused = linear(f"{ours}/attention/{name}", "", 3 * width, width, nth_block(index, 3))
        in_proj = f"{layer}attn.in_proj_"
        rows |= {
            path: replace(view, name=in_proj + view.name.removeprefix("."))
            for path, view in fused.items()
        }
    rows |= linear(f"{ours}/attention/out", f"{layer}attn.out_proj", width, width)
    rows |= linear(f"{ours}/mlp/up", f"{layer}mlp.c_fc", c.hidden_width, width)
    rows |= linear(f"{ours}/mlp/down", f"{layer}mlp.c_proj", width, c.hidden_width)
    return rows


def _hf_layers(ours: str, layer: str, c: BlockConfig) -> NameTable:
    rows = norm(f"{ours}/attention_norm", f"{layer}layer_norm1", c.width)
    rows |= norm(f"{ours}/mlp_norm", f"{layer}layer_norm2", c.width)
    for name, theirs in (("query", "q"), ("key", "k"), ("value", "v"), ("out", "out")):
        projection = f"{layer}self_attn.{theirs}_proj"
        rows |= linear(f"{ours}/attention/{name}", projection, c.width, c.width)
    rows |= linear(f"{ours}/mlp/up", f"{layer}mlp.fc1", c.hidden_width, c.width)
    rows |= linear(f"{ours}/mlp/down", f"{layer}mlp.fc2", c.width, c.hidden_width)
    return rows


def openclip_rows(c: ClipVisionConfig) -> NameTable:
    width = c.width
    rows = _patches("conv1.weight", c)
    rows |= array("vision/class_embedding", "class_embedding", width)
    rows |= array("vision/position_embedding", "positional_embedding", c.num_patches + 1, width)
    rows |= norm("vision/pre_norm", "ln_pre", width)
    rows |= norm("vision/post_norm", "ln_post", width)
    rows |= array("vision/projection/kernel", "proj", width, c.projection_width)
    return rows | _openclip_layers("vision/layer", c)


def hf_rows(c: ClipVisionConfig) -> NameTable:
    base, width = "vision_model.", c.width
    rows = _patches(f"{base}embeddings.patch_embedding.weight", c)
    rows |= {
        "vision/class_embedding": TensorView(
            f"{base}embeddings.class_embedding", (width,), identity
        ),
        **array(
            "vision/position_embedding",
            f"{base}embeddings.position_embedding.weight",
            c.num_patches + 1,
            width,
        ),
    }
    rows |= norm("vision/pre_norm", f"{base}pre_layrnorm", width)  # their spelling
    rows |= norm("vision/post_norm", f"{base}post_layernorm", width)
    rows |= linear("vision/projection", "visual_projection", c.projection_width, width)
    return rows | _hf_layers("vision/layer", f"{base}encoder.layers.{{i}}.", c)


def openclip_text_rows(c: TextConfig) -> NameTable:
    rows = array("text/token_embedding", "token_embedding.weight", c.vocab_size, c.width)
    rows |= array("text/position_embedding", "positional_embedding", c.max_length, c.width)
    rows |= norm("text/post_norm", "ln_final", c.width)
    rows |= array("text/projection/kernel", "text_projection", c.width, c.projection_width)
    return rows | _openclip_layers("text/layer", c)


def hf_text_rows(c: TextConfig) -> NameTable:
    base, tables = "text_model.", "text_model.embeddings."
    rows = array("text/token_embedding", f"{tables}token_embedding.weight", c.vocab_size, c.width)
    rows |= array(
        "text/position_embedding", f"{tables}position_embedding.weight", c.max_length, c.width
    )
    rows |= norm("text/post_norm", f"{base}final_layer_norm", c.width)
    rows |= linear("text/projection", "text_projection", c.projection_width, c.width)
    return rows | _hf_layers("text/layer", f"{base}encoder.layers.{{i}}.", c)


ROWS = {"openclip": openclip_rows, "hf": hf_rows}
TEXT_ROWS = {"openclip": openclip_text_rows, "hf": hf_text_rows}
