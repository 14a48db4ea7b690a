"""GPT-NeoX: Pythia, RedPajama-INCITE."""

import numpy as np

from flamingo_jax.convert.family import (
    Family,
    LMConfig,
    activation,
    require_keys,
    require_values,
    rope,
)
from flamingo_jax.models.decoder import DecoderConfig
from flamingo_jax.weights.views import NameTable, View, linear, norm


def _decoder(config: LMConfig) -> DecoderConfig:
    width, heads, layers, vocabulary = require_keys(
        config, "hidden_size", "num_attention_heads", "num_hidden_layers", "vocab_size"
    )
    require_values(config, tie_word_embeddings=False)
    rotary = rope(config)
    return DecoderConfig(
        width=width,
        num_layers=layers,
        num_heads=heads,
        mlp_width=require_keys(config, "intermediate_size")[0],
        activation=activation(config, "hidden_act", "gelu"),
        vocab_size=vocabulary,
        norm_eps=config.get("layer_norm_eps") or 1e-5,
        attention_bias=config.get("attention_bias", True),
        parallel_residual=config.get("use_parallel_residual", True),
        position="rotary",
        rotary_fraction=float(rotary["fraction"] or 0.25),
        rotary_theta=float(rotary["theta"] or 10_000),
        max_length=config.get("max_position_embeddings") or 2048,
        tie_head=False,
    )


def _of_each_head(index: int, heads: int) -> View:
    """Takes queries, keys or values of a fused matrix that lists them head by head."""
    return lambda t: t.reshape(heads, 3, -1, *t.shape[1:], copy=False)[:, index]


def _rows(c: DecoderConfig) -> NameTable:
    layer, width = "gpt_neox.layers.{i}.", c.width
    rows = norm("decoder/norm", "gpt_neox.final_layer_norm", width)
    rows |= norm("decoder/layer/attention_norm", f"{layer}input_layernorm", width)
    rows |= norm("decoder/layer/mlp_norm", f"{layer}post_attention_layernorm", width)
    for index, ours in enumerate(("query", "key", "value")):
        rows |= linear(
            f"decoder/layer/attention/{ours}",
            f"{layer}attention.query_key_value",
            3 * width,
            width,
            _of_each_head(index, c.num_heads),
        )
    rows |= linear("decoder/layer/attention/out", f"{layer}attention.dense", width, width)
    rows |= linear("decoder/layer/mlp/up", f"{layer}mlp.dense_h_to_4h", c.hidden_width, width)
    rows |= linear("decoder/layer/mlp/down", f"{layer}mlp.dense_4h_to_h", width, c.hidden_width)
    return rows


def _frequencies(c: DecoderConfig) -> dict[str, np.ndarray]:
    rotated = int(c.head_width * c.rotary_fraction)
    exponent = np.arange(0, rotated, 2, dtype=np.float32) / np.float32(rotated)
    frequency = 1 / np.float32(c.rotary_theta) ** exponent
    name = "gpt_neox.layers.{}.attention.rotary_emb.inv_freq"
    return {name.format(layer): frequency for layer in range(c.num_layers)}


GPT_NEOX = Family(
    name="gpt_neox",
    model_types=("gpt_neox",),
    decoder=_decoder,
    rows=_rows,
    layers="gpt_neox.layers",
    embedding="gpt_neox.embed_in.weight",
    head="embed_out.weight",
    # The causal mask and rotary frequencies, which files of older versions carry along.
    buffers=(
        r"\.attention\.(bias|masked_bias)$",
        r"\.rotary_emb\.inv_freq$",
    ),
    # transformers 5 has the new name in memory; its files keep the old one.
    renames=((r"^lm_head\.weight$", "embed_out.weight"),),
    computed=_frequencies,
)
