"""OPT."""

from flamingo_jax.convert.family import Family, LMConfig, activation, require_keys, require_values
from flamingo_jax.models.decoder import DecoderConfig
from flamingo_jax.weights.views import NameTable, array, linear, norm

# The first rows of the position table belong to padding (and to nothing).
POSITION_OFFSET = 2


def _decoder(config: LMConfig) -> DecoderConfig:
    width, heads, layers, vocabulary, hidden, length = require_keys(
        config,
        "hidden_size",
        "num_attention_heads",
        "num_hidden_layers",
        "vocab_size",
        "ffn_dim",
        "max_position_embeddings",
    )
    require_values(
        config,
        do_layer_norm_before=True,
        layer_norm_elementwise_affine=True,
        _remove_final_layer_norm=False,
        word_embed_proj_dim=width,
        tie_word_embeddings=True,
    )
    bias = config.get("enable_bias", True)
    return DecoderConfig(
        width=width,
        num_layers=layers,
        num_heads=heads,
        mlp_width=hidden,
        activation=activation(config, "activation_function", "relu"),
        vocab_size=vocabulary,
        attention_bias=bias,
        mlp_bias=bias,
        position="learned",
        position_offset=POSITION_OFFSET,
        max_length=length,
    )


def _rows(c: DecoderConfig) -> NameTable:
    layer, width = "model.decoder.layers.{i}.", c.width
    rows = norm("decoder/norm", "model.decoder.final_layer_norm", width)
    rows |= array(
        "decoder/positions",
        "model.decoder.embed_positions.weight",
        c.max_length + POSITION_OFFSET,
        width,
    )
    rows |= norm("decoder/layer/attention_norm", f"{layer}self_attn_layer_norm", width)
    rows |= norm("decoder/layer/mlp_norm", f"{layer}final_layer_norm", width)
    for ours, theirs in (("query", "q"), ("key", "k"), ("value", "v"), ("out", "out")):
        name = f"{layer}self_attn.{theirs}_proj"
        rows |= linear(f"decoder/layer/attention/{ours}", name, width, width)
    rows |= linear("decoder/layer/mlp/up", f"{layer}fc1", c.hidden_width, width)
    rows |= linear("decoder/layer/mlp/down", f"{layer}fc2", width, c.hidden_width)
    return rows


OPT = Family(
    name="opt",
    model_types=("opt",),
    decoder=_decoder,
    rows=_rows,
    layers="model.decoder.layers",
    embedding="model.decoder.embed_tokens.weight",
    # Some files on the Hub were saved from the model without its head.
    renames=((r"^decoder\.", "model.decoder."),),
)
