"""MPT, and MPT-1B, whose code ("mosaic_gpt") has its own names and norms of queries and keys."""

from typing import Any

from flamingo_jax.convert.family import Family, LMConfig, require_keys, require_values
from flamingo_jax.models.decoder import DecoderConfig
from flamingo_jax.weights.views import NameTable, linear, norm, nth_block

# our module → theirs, inside a layer
MPT_NAMES = {
    "attention_norm": "norm_1",
    "mlp_norm": "norm_2",
    "up": "ffn.up_proj",
    "down": "ffn.down_proj",
    "norm": "norm_f",
}
MOSAIC_GPT_NAMES = {
    "attention_norm": "ln_1",
    "mlp_norm": "ln_2",
    "up": "mlp.mlp_up",
    "down": "mlp.mlp_down",
    "norm": "ln_f",
}


def _decoder(config: LMConfig, attention: LMConfig, qk_norm: bool, ratio: str) -> DecoderConfig:
    width, heads, layers, vocabulary = require_keys(
        config, "d_model", "n_heads", "n_layers", "vocab_size"
    )
    require_values(
        {**attention, "model_type": config["model_type"]},
        alibi=True,
        clip_qkv=None,
        attn_clip_qkv=None,
        softmax_scale=None,
        prefix_lm=False,
    )
    require_values(config, logit_scale=None, embedding_fraction=1.0, tie_word_embeddings=True)
    bias = not config.get("no_bias", False)
    return DecoderConfig(
        width=width,
        num_layers=layers,
        num_heads=heads,
        mlp_width=int(config.get(ratio) or 4) * width,
        vocab_size=vocabulary,
        norm_eps=config.get("layer_norm_epsilon") or 1e-5,
        norm_bias=bias,
        attention_bias=bias,
        mlp_bias=bias,
        qk_norm=qk_norm,
        position="alibi",
        alibi_max=float(attention.get("alibi_bias_max") or 8),
        max_length=config.get("max_seq_len") or 2048,
    )


def _mpt_decoder(config: LMConfig) -> DecoderConfig:
    attention: dict[str, Any] = config.get("attn_config") or {}
    return _decoder(config, attention, bool(attention.get("qk_ln")), "expansion_ratio")


def _mosaic_gpt_decoder(config: LMConfig) -> DecoderConfig:
    return _decoder(config, config, bool(config.get("attn_qk_ln")), "mlp_ratio")


def _rows(c: DecoderConfig, names: dict[str, str]) -> NameTable:
    layer, width = "transformer.blocks.{i}.", c.width
    rows = norm("decoder/norm", f"transformer.{names['norm']}", width)
    for ours in ("attention_norm", "mlp_norm"):
        rows |= norm(f"decoder/layer/{ours}", layer + names[ours], width)
    for index, ours in enumerate(("query", "key", "value")):
        fused = f"{layer}attn.Wqkv"
        rows |= linear(
            f"decoder/layer/attention/{ours}", fused, 3 * width, width, nth_block(index, 3)
        )
    rows |= norm("decoder/layer/attention/query_norm", f"{layer}attn.q_ln", width)
    rows |= norm("decoder/layer/attention/key_norm", f"{layer}attn.k_ln", width)
    rows |= linear("decoder/layer/attention/out", f"{layer}attn.out_proj", width, width)
    rows |= linear("decoder/layer/mlp/up", layer + names["up"], c.hidden_width, width)
    rows |= linear("decoder/layer/mlp/down", layer + names["down"], width, c.hidden_width)
    return rows


MPT = Family(
    name="mpt",
    model_types=("mpt",),
    decoder=_mpt_decoder,
    rows=lambda config: _rows(config, MPT_NAMES),
    layers="transformer.blocks",
    embedding="transformer.wte.weight",
)
MOSAIC_GPT = Family(
    name="mosaic_gpt",
    model_types=("mosaic_gpt",),
    decoder=_mosaic_gpt_decoder,
    rows=lambda config: _rows(config, MOSAIC_GPT_NAMES),
    layers="transformer.blocks",
    embedding="transformer.wte.weight",
    repeats_tied_head=False,
)
