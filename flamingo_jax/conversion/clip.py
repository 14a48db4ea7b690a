"""CLIP's vision tower, under the names of OpenAI and OpenCLIP and under those of transformers."""

from flamingo_jax.conversion.weights import Cut, Rows, array, identity, linear, norm, part
from flamingo_jax.models.vision import VisionConfig

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


def _patches(name: str, c: VisionConfig) -> Rows:
    # Ours multiplies patches laid out (row, column, colour); torch's convolution is (out, colour,
    # row, column).
    shape = (c.width, 3, c.patch_size, c.patch_size)
    return {"vision/patch_embedding/kernel": Cut(name, shape, lambda t: t.transpose(2, 3, 1, 0))}


def openclip_rows(c: VisionConfig) -> Rows:
    layer, width = "transformer.resblocks.{i}.", c.width
    rows = _patches("conv1.weight", c)
    rows |= array("vision/class_embedding", "class_embedding", width)
    rows |= array("vision/position_embedding", "positional_embedding", c.num_patches + 1, width)
    rows |= norm("vision/pre_norm", "ln_pre", width)
    rows |= norm("vision/post_norm", "ln_post", width)
    rows |= array("vision/projection/kernel", "proj", width, c.projection_width)
    rows |= norm("vision/layer/attention_norm", f"{layer}ln_1", width)
    rows |= norm("vision/layer/mlp_norm", f"{layer}ln_2", width)
    for index, ours in enumerate(("query", "key", "value")):
        # torch's MultiheadAttention writes an underscore where modules have a dot.
        fused = linear(f"vision/layer/attention/{ours}", "", 3 * width, width, part(index, 3))
        rows |= {
            path: Cut(f"{layer}attn.in_proj_{cut.name.removeprefix('.')}", cut.shape, cut.view)
            for path, cut in fused.items()
        }
    rows |= linear("vision/layer/attention/out", f"{layer}attn.out_proj", width, width)
    rows |= linear("vision/layer/mlp/up", f"{layer}mlp.c_fc", c.hidden_width, width)
    rows |= linear("vision/layer/mlp/down", f"{layer}mlp.c_proj", width, c.hidden_width)
    return rows


def hf_rows(c: VisionConfig) -> Rows:
    base, width = "vision_model.", c.width
    layer = f"{base}encoder.layers.{{i}}."
    rows = _patches(f"{base}embeddings.patch_embedding.weight", c)
    rows |= {
        "vision/class_embedding": Cut(f"{base}embeddings.class_embedding", (width,), identity),
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
    rows |= norm("vision/layer/attention_norm", f"{layer}layer_norm1", width)
    rows |= norm("vision/layer/mlp_norm", f"{layer}layer_norm2", width)
    for ours, theirs in (("query", "q"), ("key", "k"), ("value", "v"), ("out", "out")):
        name = f"{layer}self_attn.{theirs}_proj"
        rows |= linear(f"vision/layer/attention/{ours}", name, width, width)
    rows |= linear("vision/layer/mlp/up", f"{layer}mlp.fc1", c.hidden_width, width)
    rows |= linear("vision/layer/mlp/down", f"{layer}mlp.fc2", width, c.hidden_width)
    return rows


ROWS = {"openclip": openclip_rows, "hf": hf_rows}
